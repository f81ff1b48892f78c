// lcm.c (test): Phase 2 against a float64 run of the published script in PyTorch, see make_lcm_fixtures.py.
// Both sides draw weights and batches from PyTorch's generator, seeded by a hash of their names; at full size
// weights are made.
#include "sd.h"
#include "weights/toy/made.h"
#include "lib/nn/dry.h"
#include "test/test.h"

#include <string.h>

static Store *fixtures;

static float *fixture(const char *name, size_t *count) {
    const Stored *t = store_find(fixtures, name);
    if (!t) die("fixtures/lcm.safetensors: %s is missing", name);
    float *x = xmalloc(t->count * sizeof(float));
    store_read_f32(t, x);
    if (count) *count = t->count;
    return x;
}

// ---- random values by name --------------------------------------------------------------------------------

static float *draw(const char *name, size_t count) {
    uint32_t h = 2166136261u;
    for (const char *c = name; *c; c++) h = (h ^ (unsigned char)*c) * 16777619u;
    Random r;
    random_seed(&r, h);
    float *x = xmalloc(count * sizeof(float));
    random_normal(&r, x, count);
    return x;
}

static float *draw_of(const char *what, const char *name, size_t count) {
    char *full = format("%s %s", what, name);
    float *x = draw(full, count);
    free(full);
    return x;
}

static void fill(const Params *p, const char *role) {
    for (int i = 0; i < p->count; i++) {
        Tensor *t = p->list[i].tensor;
        const char *name = p->list[i].name + strlen("unet.");
        size_t n = tensor_count(t), length = strlen(name);
        float *x = draw_of("base", name, n), *own = draw_of(role, name, n);
        bool bias = length > 5 && !strcmp(name + length - 5, ".bias");
        double deviation = (strstr(name, "cond_proj") ? 0.3 : 0.8) / sqrt((double)n / t->shape[0]);
        for (size_t j = 0; j < n; j++) {
            x[j] += 0.1f * own[j];
            x[j] = bias ? 0.1f * x[j] : t->dims == 1 ? 1 + 0.1f * x[j] : (float)(deviation * (double)x[j]);
        }
        if (!t->data) param_allocate(t, F32);
        param_write(t, x);
        free(x), free(own);
    }
}

static UNetConfig tiny(bool guidance) {
    Json *j = json_load("test/configs/tiny/unet.json");
    UNetConfig c = unet_config(j);
    json_free(j);
    c.time_cond_proj_dim = guidance ? 256 : 0;
    return c;
}

static Tensor *latents(const char *batch, const char *what, int n) {
    char *name = format("%s %s", batch, what);
    float *x = draw(name, (size_t)n * 1024), *y = nchw_to_nhwc(x, n, 4, 16, 16);
    Tensor *t = tensor_from(SHAPE(n, 16, 16, 4), y);
    free(x), free(y), free(name);
    return t;
}

static LcmBatch batch(const char *name, const int *index, const float *w, int n) {
    char *text = format("%s text", name);
    float *states = draw(text, (size_t)n * 32 * 128), *one = draw("no text", 32 * 128);
    float *nothing = xmalloc((size_t)n * 32 * 128 * sizeof(float));
    for (int i = 0; i < n; i++) memcpy(nothing + i * 32 * 128, one, 32 * 128 * sizeof(float));
    LcmBatch b = {.n = n,
                  .index = index,
                  .w = w,
                  .z = latents(name, "z", n),
                  .noise = latents(name, "noise", n),
                  .text = tensor_from(SHAPE(n, 32, 128), states),
                  .no_text = tensor_from(SHAPE(n, 32, 128), nothing)};
    free(text), free(states), free(one), free(nothing);
    return b;
}

static void sampled(const float *x, size_t n, float *out, size_t count) {
    for (size_t i = 0; i < count; i++) out[i] = x[((uint64_t)i * 2654435761u + 12345) % n];
}

static Json *noise_schedule(const char *prediction) {
    char *text = format("{\"beta_start\": 0.00085, \"beta_end\": 0.012, \"beta_schedule\": "
                        "\"scaled_linear\", \"prediction_type\": \"%s\"}",
                        prediction);
    Json *j = json_parse(text, strlen(text), "the test's schedule");
    free(text);
    return j;
}

// ---- tables -----------------------------------------------------------------------------------------------

static void test_tables(void) {
    Json *j = noise_schedule("epsilon");
    Lcm l;
    lcm_init(&l, lcm_defaults, scheduler_config(j, LCM), NULL, NULL, NULL);
    float *want = fixture("alphas_cumprod", NULL), got[2000];
    check(!memcmp(want, l.schedule.alphas_cumprod, 1000 * sizeof(float)),
          "the noise schedule is PyTorch's, bit for bit");
    free(want);
    want = fixture("scalings", NULL);
    for (int t = 0; t < 1000; t++) lcm_scalings(&l, t, &got[2 * t], &got[2 * t + 1]);
    double worst = 0;
    for (int i = 0; i < 2000; i++)
        keep_largest(&worst, fabs((double)got[i] - (double)want[i]) / fmax(fabs((double)want[i]), 1e-30));
    printf("scalings: largest relative difference %.2g\n", worst);
    check(worst <= 1e-6,
          "c_skip and c_out of all 1,000 timesteps agree with diffusers' to 1e-6, each relative to itself");
    check(got[0] == 1 && got[1] == 0, "at timestep 0 the consistency function is its input");
    free(want);
    json_free(j), lcm_free(&l);

    static const char *const kinds[] = {"epsilon", "v_prediction", "sample"};
    for (int k = 0; k < 3; k++) {
        j = noise_schedule(kinds[k]);
        lcm_init(&l, lcm_defaults, scheduler_config(j, LCM), NULL, NULL, NULL);
        int index[50];
        for (int i = 0; i < 50; i++) index[i] = i;
        char *name = format("solver.%s", kinds[k]);
        float *z = draw("solver z", 200), *y = draw("solver y", 200), *step = fixture(name, NULL);
        Scope s = scope_begin();
        float *mine = tensor_read(
            lcm_solve(&l, tensor_from(SHAPE(50, 1, 1, 4), z), tensor_from(SHAPE(50, 1, 1, 4), y), index));
        check_close(name, mine, step, 200, 1e-6);
        scope_end(s, NULL);
        free(name), free(z), free(y), free(step), free(mine);
        json_free(j), lcm_free(&l);
    }

    // Libraries differ in the last bit of expf(). At an angle of 14,000 rad that changes the sine by 1e-3.
    // Where both sides have the same angle, only the rounding of the sine is left.
    size_t n;
    float *w = fixture("w", &n), *embedding = fixture("w.embedding", NULL),
          *angles = fixture("w.angles", NULL);
    Scope s = scope_begin();
    float *mine = tensor_read(guidance_embedding(w, (int)n, 256));
    double all = 0, same = 0;
    int equal = 0;
    for (size_t r = 0; r < n; r++)
        for (int i = 0; i < 128; i++) {
            float angle = 1000 * w[r] * (float)exp((double)((float)i * -(9.2103404f / 127)));
            for (int half = 0; half < 2; half++) {
                size_t at = r * 256 + (size_t)(half * 128 + i);
                double d = fabs((double)mine[at] - (double)embedding[at]);
                keep_largest(&all, d);
                if (angle == angles[r * 128 + (size_t)i]) {
                    equal++;
                    keep_largest(&same, d);
                }
            }
        }
    printf("embedding of w: %.2g at most; %.2g over the %d of %zu whose angle is the same\n", all, same,
           equal, n * 256);
    check(all <= 2e-3, "the embedding of w agrees with the script's within 2e-3");
    check(same <= 1e-6 && equal > (int)n * 200, "and within 1e-6 where both take the sine of the same angle");
    scope_end(s, NULL);
    free(w), free(embedding), free(angles), free(mine);
}

// ---- one step ---------------------------------------------------------------------------------------------

static Params teacher_p, student_p, target_p;
static UNet *teacher, *student, *target;

static float loss_with(const char *prediction, LcmConfig c, const LcmBatch *b) {
    Json *j = noise_schedule(prediction);
    Lcm l;
    lcm_init(&l, c, scheduler_config(j, LCM), teacher, student, target);
    Scope s = scope_begin();
    float loss = tensor_item(lcm_loss(&l, b));
    scope_end(s, NULL);
    json_free(j), lcm_free(&l);
    return loss;
}

static void test_step(void) {
    static const int index[] = {0, 17, 49};
    float *w = fixture("one.w", NULL);
    LcmBatch b = batch("one", index, w, 3);
    Json *j = noise_schedule("epsilon");
    Lcm l;
    lcm_init(&l, lcm_defaults, scheduler_config(j, LCM), teacher, student, target);
    tape_begin();
    Tensor *loss = lcm_loss(&l, &b);
    backward(loss);
    float huber = tensor_item(loss);
    tape_end();

    LcmConfig l2 = lcm_defaults, unbound = lcm_defaults, weighted = lcm_defaults;
    l2.loss = LOSS_MSE, unbound.boundary = false, weighted.snr_weighting = true;
    float got[] = {huber,
                   loss_with("epsilon", l2, &b),
                   loss_with("v_prediction", lcm_defaults, &b),
                   loss_with("sample", lcm_defaults, &b),
                   loss_with("epsilon", unbound, &b),
                   loss_with("epsilon", weighted, &b)};
    static const char *const names[] = {"loss.huber",  "loss.l2",          "loss.v_prediction",
                                        "loss.sample", "loss.no_boundary", "loss.snr"};
    for (int i = 0; i < 6; i++) {
        float *want = fixture(names[i], NULL);
        check_close(names[i], &got[i], want, 1, 1e-5); // fp32 against float64
        free(want);
    }

    // A gradient's error is relative to the tensor's largest value, or to 1e-3 of the network's where that is
    // more.
    double largest = 0, worst = 0;
    const char *worst_name = "";
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < student_p.count; i++) {
            const Tensor *t = student_p.list[i].tensor;
            char *name = format("grad.%s", student_p.list[i].name + strlen("unet."));
            float *want = fixture(name, NULL);
            free(name);
            if (round == 0) {
                keep_largest(&largest, (double)want[0]);
            } else {
                Tensor as_weight = *t;
                as_weight.data = t->gradient;
                float *g = param_read(&as_weight), some[24];
                size_t n = tensor_count(t);
                double square = 0, floor = 1e-3 * largest, error = 0;
                for (size_t k = 0; k < n; k++) square += (double)g[k] * (double)g[k];
                keep_largest(&error, fabs(sqrt(square) - (double)want[1]) / fmax((double)want[1], floor));
                sampled(g, n, some, 24);
                for (int k = 0; k < 24; k++)
                    keep_largest(&error,
                                 fabs((double)some[k] - (double)want[2 + k]) / fmax((double)want[0], floor));
                if (keep_largest(&worst, error)) worst_name = student_p.list[i].name;
                free(g);
            }
            free(want);
        }
    printf("gradients of %d tensors: largest difference %.2g, in %s\n", student_p.count, worst, worst_name);
    check(worst <= 1e-4, "every parameter's gradient agrees with PyTorch's within 1e-4");
    bool quiet = true;
    for (int i = 0; i < teacher_p.count; i++) quiet &= !teacher_p.list[i].tensor->gradient;
    for (int i = 0; i < target_p.count; i++) quiet &= !target_p.list[i].tensor->gradient;
    check(quiet, "teacher and target get no gradients");
    json_free(j), lcm_free(&l);
    free(w);
}

// ---- the optimiser and the moving average -----------------------------------------------------------------

static OptimiserConfig adamw(float rate) {
    return (OptimiserConfig){
        .rate = rate, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.01f, .max_norm = 1};
}

static void test_average(void) {
    Optimiser *o = optimiser_new(adamw(1e-3f), 0.95f, (const Params *[]){&student_p}, 1);
    double worst = 0;
    for (int i = 0; i < student_p.count; i++) {
        Tensor *t = student_p.list[i].tensor, as_weight = *t, average = *target_p.list[i].tensor;
        size_t n = tensor_count(t);
        float *g = draw_of("gradient", student_p.list[i].name + strlen("unet."), n);
        for (size_t k = 0; k < n; k++) g[k] *= 0.01f;
        as_weight.data = t->gradient;
        param_write(&as_weight, g);
        backend.copy((Mem){o->ema[i], F32}, mem(&average), n); // the average begins with the target's weights
        free(g);
    }
    optimiser_step(o);
    for (int i = 0; i < student_p.count; i++) {
        char *name = format("ema.%s", student_p.list[i].name + strlen("unet."));
        float *want = fixture(name, NULL), some[8];
        Tensor average = *student_p.list[i].tensor;
        average.data = o->ema[i];
        float *x = param_read(&average);
        sampled(x, tensor_count(&average), some, 8);
        keep_largest(&worst, max_error(some, want, 8, 1e-3));
        free(name), free(want), free(x);
    }
    printf("moving average after a step: largest relative difference %.2g\n", worst);
    check(worst <= 1e-6, "the moving average after a step fed the same gradients agrees within 1e-6");
    optimiser_free(o);
}

static void test_ten_steps(void) {
    fill(&student_p, "student");
    Optimiser *o = optimiser_new(adamw(5e-5f), 0.95f, (const Params *[]){&student_p}, 1);
    Params average_p = {0};
    UNet *average = lcm_target(tiny(true), o, &average_p);
    Json *j = noise_schedule("epsilon");
    Lcm l;
    lcm_init(&l, lcm_defaults, scheduler_config(j, LCM), teacher, student, average);
    float *want = fixture("losses", NULL), got[10];
    for (int i = 0; i < 10; i++) {
        char *name = format("step %d", i), *w_name = format("w.%d", i);
        float *w = fixture(w_name, NULL);
        int index[] = {(7 * i + 3) % 50, (31 * i + 20) % 50};
        Scope s = scope_begin();
        LcmBatch b = batch(name, index, w, 2);
        tape_begin();
        Tensor *loss = lcm_loss(&l, &b);
        backward(loss);
        optimiser_step(o);
        got[i] = tensor_item(loss);
        tape_end();
        scope_end(s, NULL);
        free(name), free(w_name), free(w);
    }
    double worst = 0;
    for (int i = 0; i < 10; i++)
        keep_largest(&worst, fabs((double)got[i] - (double)want[i]) / (double)want[i]);
    printf("ten steps: losses %.5f ... %.5f, largest relative difference %.2g\n", (double)got[0],
           (double)got[9], worst);
    check(worst <= 1e-3, "the losses of ten end-to-end steps agree within 1e-3");
    free(want);
    json_free(j), lcm_free(&l);
    unet_view_free(average, &average_p);
    optimiser_free(o);
}

// ---- Stable Diffusion v1.5 --------------------------------------------------------------------------------

static UNetConfig full_config(const char *path) {
    Json *j = json_load(path);
    UNetConfig c = unet_config(j);
    json_free(j);
    return c;
}

static void fill_made(Tensor *t, const char *name) {
    int64_t shape[4];
    for (int d = 0; d < t->dims; d++) shape[d] = t->shape[d];
    if (t->dims == 4) shape[1] = t->shape[3], shape[2] = t->shape[1], shape[3] = t->shape[2];
    float *x = xmalloc(tensor_count(t) * sizeof(float));
    made_fill(name, t->dims, shape, MADE_SOFT, x);
    param_allocate(t, F32);
    param_write(t, x);
    backend.sync();
    free(x);
}

static Tensor *made_latents(const char *name) {
    float *x = xmalloc(4 * 64 * 64 * sizeof(float));
    made_fill(name, 4, (int64_t[]){1, 4, 64, 64}, MADE_SOFT, x);
    float *y = nchw_to_nhwc(x, 1, 4, 64, 64);
    Tensor *t = tensor_from(SHAPE(1, 64, 64, 4), y);
    free(x), free(y);
    return t;
}

static Tensor *made_text(const char *name) {
    float *x = xmalloc(77 * 768 * sizeof(float));
    made_fill(name, 3, (int64_t[]){1, 77, 768}, MADE_SOFT, x);
    Tensor *t = tensor_from(SHAPE(1, 77, 768), x);
    free(x);
    return t;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const Parameter *)a)->name, ((const Parameter *)b)->name);
}

// Every gradient, in the order of names, against the fixture's largest value, norm and 6 entries, relative as
// above.
static void check_full_gradients(const float *want) {
    Parameter *list = memcpy(xmalloc((size_t)student_p.count * sizeof *list), student_p.list,
                             (size_t)student_p.count * sizeof *list);
    qsort(list, (size_t)student_p.count, sizeof *list, by_name);
    double largest = 0, worst = 0;
    const char *where = "";
    for (int i = 0; i < student_p.count; i++) keep_largest(&largest, (double)want[8 * i]);
    for (int i = 0; i < student_p.count; i++) {
        Tensor g = *list[i].tensor;
        g.data = g.gradient;
        float *x = param_read(&g), some[6];
        size_t n = tensor_count(&g);
        double square = 0, floor = 1e-3 * largest, error = 0;
        for (size_t k = 0; k < n; k++) square += (double)x[k] * (double)x[k];
        keep_largest(&error,
                     fabs(sqrt(square) - (double)want[8 * i + 1]) / fmax((double)want[8 * i + 1], floor));
        sampled(x, n, some, 6);
        for (int k = 0; k < 6; k++)
            keep_largest(&error, fabs((double)some[k] - (double)want[8 * i + 2 + k]) /
                                     fmax((double)want[8 * i], floor));
        if (keep_largest(&worst, error)) where = list[i].name;
        free(x);
    }
    free(list);
    printf("gradients at full size: worst %.2g of 1e-3, at %s\n", worst, where);
    check(worst <= 1e-3, "every gradient of a full-size step agrees with PyTorch's within 1e-3");
}

// The network's time for 50 guided steps, divided by that for 4 steps without guidance: best of three,
// interleaved, one thread.
static double measure_gain(void) {
    backend_init(1);
    Scope s = scope_begin();
    Tensor *z = made_latents("input.lcm.full.z"), *text = made_text("input.lcm.full.text");
    Tensor *two = stack(z, z), *texts = stack(text, text);
    double guided = INFINITY, plain = INFINITY;
    for (int i = 0; i < 3; i++) {
        double started = processor_seconds();
        Scope pass = scope_begin();
        unet(student, z, (float[]){499}, text, (float[]){7.5f});
        scope_end(pass, NULL);
        plain = fmin(plain, processor_seconds() - started);
        started = processor_seconds(), pass = scope_begin();
        unet(teacher, two, (float[]){499, 499}, texts, NULL);
        scope_end(pass, NULL);
        guided = fmin(guided, processor_seconds() - started);
    }
    scope_end(s, NULL);
    backend_init(0);
    printf("a pass %.2f s, a guided pass %.2f s: 4 plain ones take %.1f times less than 50 guided ones\n",
           plain, guided, 50 * guided / (4 * plain));
    return 50 * guided / (4 * plain);
}

// What the step takes beside what is there already, by a dry run.
static size_t dry_step(const Lcm *l, const LcmBatch *b) {
    dry_begin(false);
    Scope s = scope_begin();
    tape_begin();
    backward(lcm_loss(l, b));
    tape_end();
    scope_end(s, NULL);
    return dry_end().scratch;
}

// Forward and backward of one step, without the moving average and the optimiser. The teacher has the
// student's weights, as at the start of a run; here it shares their memory.
static void test_full_step(void) {
    UNetConfig c = full_config("test/configs/sd15-lcm/unet.json");
    teacher = unet_new(full_config("test/configs/sd15/unet.json"), &teacher_p);
    student = unet_new(c, &student_p);
    double persistent = 0;
    for (int i = 0; i < student_p.count; i++) {
        Tensor *t = student_p.list[i].tensor, *same = params_find(&teacher_p, student_p.list[i].name);
        fill_made(t, student_p.list[i].name);
        param_trainable(t);
        if (same) same->type = F32, same->data = t->data;
        persistent += 2.0 * (double)tensor_count(t) * sizeof(float);
    }
    Store *full = store_open("test/fixtures/lcm-sd15.safetensors");
    Store *tables = fixtures;
    fixtures = full;
    Json *j = json_load("test/configs/sd15/scheduler.json");
    Lcm l;
    lcm_init(&l, lcm_defaults, scheduler_config(j, LCM), teacher, student, student);
    LcmBatch b = {1,
                  made_latents("input.lcm.full.z"),
                  made_latents("input.lcm.full.noise"),
                  made_text("input.lcm.full.text"),
                  made_text("input.lcm.full.no_text"),
                  (const int[]){24},
                  (const float[]){7.5f}};
    checkpointing = true;
    double planned = persistent + (double)dry_step(&l, &b), started = seconds();
    tape_begin();
    Tensor *loss = lcm_loss(&l, &b);
    backward(loss);
    float got = tensor_item(loss), *want = fixture("loss", NULL), *rows = fixture("gradients", NULL);
    tape_end();
    checkpointing = false;
    printf("a step at full size, with gradient checkpointing: %.1f s\n", seconds() - started);
    check_close("its loss", &got, want, 1, 1e-4);
    check_full_gradients(rows);
    double used = (double)backend.peak();
    printf("memory: weights and gradients %.2f GB; %.2f GB planned in all, %.2f GB used\n", persistent / 1e9,
           planned / 1e9, used / 1e9);
    check(fabs(used / planned - 1) <= 0.1, "the plan of its memory holds within 10 %");
    check(measure_gain() >= 20, "4 plain steps take at most a twentieth of 50 guided ones");
    free(want), free(rows);
    json_free(j), lcm_free(&l);
    fixtures = tables;
    store_close(full);
    for (int i = 0; i < teacher_p.count; i++) teacher_p.list[i].tensor->data = NULL; // the student's
    params_free(&teacher_p), params_free(&student_p);
    free(teacher), free(student);
}

int main(void) {
    backend_init(getenv("FULL") ? 0 : 1);
    fixtures = store_open("test/fixtures/lcm.safetensors");
    test_tables();
    teacher = unet_new(tiny(false), &teacher_p);
    student = unet_new(tiny(true), &student_p), target = unet_new(tiny(true), &target_p);
    fill(&teacher_p, "teacher"), fill(&student_p, "student"), fill(&target_p, "target");
    for (int i = 0; i < student_p.count; i++) param_trainable(student_p.list[i].tensor);
    test_step();
    test_average();
    test_ten_steps();
    params_free(&teacher_p), params_free(&student_p), params_free(&target_p);
    free(teacher), free(student), free(target);
    teacher_p = student_p = (Params){0};
    if (full_size("an LCM step of Stable Diffusion v1.5")) test_full_step();
    store_close(fixtures);
    return test_report();
}
