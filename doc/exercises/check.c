// check.c: the checks of the exercises of doc/COURSE.md, each from a definition and not from the code that it
// checks. `make exercise N=1` links it with a copy of one source file that has a mistake; see run.sh.
#include "sd.h"
#include "lib/io/architectures.h"
#include "weights/toy/made.h"
#include "test/test.h" // keep_largest

static bool right = true;

// Prints what is expected and what came out; NaN is never near.
static void expect(const char *what, double want, double got, double tolerance) {
    bool near = fabs(got - want) <= tolerance * fmax(fabs(want), 1e-6);
    printf("  %-58s %12.6g %12.6g  %s\n", what, want, got, near ? "" : "<-");
    right = right && near;
}

static void heading(const char *what) { printf("%s\n  %-58s %12s %12s\n", what, "", "expected", "came out"); }

static Tensor *drawn(uint64_t seed, int dims, const int *shape) {
    Random r;
    random_seed(&r, seed);
    size_t n = 1;
    for (int i = 0; i < dims; i++) n *= (size_t)shape[i];
    float *x = xmalloc(n * sizeof(float));
    random_normal(&r, x, n);
    Tensor *t = tensor_from(dims, shape, x);
    free(x);
    return t;
}

static Json *noise_schedule(void) {
    static const char text[] =
        "{\"beta_start\": 0.00085, \"beta_end\": 0.012, \"beta_schedule\": \"scaled_linear\", "
        "\"clip_sample\": false}";
    return json_parse(text, sizeof text - 1, "the noise schedule");
}

// ---- 1: a sampler -----------------------------------------------------------------------------------------

// A network that is always right: at z_t = sqrt(a) x0 + sqrt(1 - a) eps it predicts eps. Then DDIM never
// leaves the line from eps to x0: after each step z is sqrt(a') x0 + sqrt(1 - a') eps, with the a' of the
// next timestep.
static void sampler(void) {
    Json *j = noise_schedule();
    Scheduler s;
    scheduler_init(&s, scheduler_config(j, DDIM));
    scheduler_set_timesteps(&s, 10);
    Tensor *x0 = drawn(1, SHAPE(1, 8, 8, 4)), *eps = drawn(2, SHAPE(1, 8, 8, 4));
    float a = s.alphas_cumprod[(int)s.timesteps[0]];
    Tensor *z = combine(sqrtf(a), x0, sqrtf(1 - a), eps);
    heading("DDIM with a network that is always right: how far z is from where it should be");
    for (int i = 0; i < 10; i++) {
        z = scheduler_step(&s, z, eps, NULL);
        float last = s.config.set_alpha_to_one ? 1 : s.alphas_cumprod[0];
        a = i < 9 ? s.alphas_cumprod[(int)s.timesteps[i + 1]] : last;
        float *want = tensor_read(combine(sqrtf(a), x0, sqrtf(1 - a), eps)), *got = tensor_read(z);
        double far = 0;
        for (int k = 0; k < 256; k++) keep_largest(&far, fabs((double)(got[k] - want[k])));
        char *what = format("after step %d, timestep %d", i + 1, i < 9 ? (int)s.timesteps[i + 1] : 0);
        expect(what, 0, far < 1e-4 ? 0 : far, 0);
        free(want), free(got), free(what);
    }
    scheduler_free(&s), json_free(j);
}

// ---- 2: a step of latent consistency distillation ---------------------------------------------------------

static UNet *made_unet(const char *name, Params *p) {
    const char *text = architecture(name)->unet;
    Json *j = json_parse(text, strlen(text), name);
    UNet *u = unet_new(unet_config(j), p);
    json_free(j);
    made_params(p, "", MADE_SOFT, F32);
    return u;
}

// At the solver's first timestep the nearer point of the path is its end, t = 0, and there the boundary
// condition says f(z, 0) = z whatever the network predicts. So the target is the solver's own result, and the
// loss can be told without it:
//   d(f_student(z_far), z_near),   z_near = one step of DDIM from z_far with out_c + w (out_c - out_0)
static void consistency_step(void) {
    Params teacher_p = {0}, student_p = {0};
    UNet *teacher = made_unet("tiny", &teacher_p), *student = made_unet("tiny-lcm", &student_p);
    Json *j = noise_schedule();
    LcmConfig c = lcm_defaults;
    c.loss = LOSS_MSE;
    heading("One step at the solver's first timestep, where the target is the solver's own result");
    for (int i = 0; i < 2; i++) {
        Lcm l;
        lcm_init(&l, c, scheduler_config(j, LCM), teacher, student, student);
        float w = i ? 8 : 0, t = (float)(c.k - 1);
        int index = 0;
        Scope s = scope_begin();
        LcmBatch b = {.n = 1,
                      .z = drawn(3, SHAPE(1, 16, 16, 4)),
                      .noise = drawn(4, SHAPE(1, 16, 16, 4)),
                      .text = drawn(5, SHAPE(1, 32, 128)),
                      .no_text = drawn(6, SHAPE(1, 32, 128)),
                      .index = &index,
                      .w = &w};
        double got = (double)tensor_item(lcm_loss(&l, &b));
        Times there = lcm_times(&l, &index, 1, 1);
        Tensor *far = noised(there, b.z, b.noise);
        Tensor *with = unet(teacher, far, &t, b.text, NULL),
               *without = unet(teacher, far, &t, b.no_text, NULL);
        Tensor *near = lcm_solve(&l, far, combine(1 + w, with, -w, without), &index);
        Tensor *prediction = lcm_consistency(&l, student, far, there, b.text, &w);
        char *what = format("loss (mean squared) with guidance w = %g", (double)w);
        expect(what, (double)tensor_item(loss_between(prediction, near, NULL, LOSS_MSE, 0)), got, 1e-4);
        free(what);
        scope_end(s, NULL);
        lcm_free(&l);
    }
    json_free(j), params_free(&teacher_p), params_free(&student_p);
    free(teacher), free(student);
}

// ---- 3: the KL divergence ---------------------------------------------------------------------------------

enum { N = 2, SIDE = 4, CHANNELS = 4, ALL = SIDE * SIDE * CHANNELS };

static void softmax(double *p, const float *x, double temperature) {
    double sum = 0;
    for (int k = 0; k < ALL; k++) sum += p[k] = exp((double)x[k] / temperature);
    for (int k = 0; k < ALL; k++) p[k] /= sum;
}

// KL(P || Q) = sum P log(P / Q), the mean over samples; P of the teacher's latent, Q of the student's, both
// softmax of x / T. Its gradient at the student's latent is (Q - P) / (T n).
static void divergence(void) {
    const double temperature = 2;
    tape_begin();
    Params p = {0};
    Tensor *teacher = drawn(7, SHAPE(N, SIDE, SIDE, CHANNELS)),
           *first = drawn(8, SHAPE(N, SIDE, SIDE, CHANNELS));
    Tensor *student = param_tensor(&p, SHAPE(N, SIDE, SIDE, CHANNELS), "student");
    param_allocate(student, F32);
    float *x = tensor_read(teacher), *y = tensor_read(first);
    tensor_write(student, y);
    param_trainable(student);
    Tensor *kl = kl_divergence(teacher, student, KL_ELEMENTS, (float)temperature);
    backward(kl);
    double want = 0, most = 0, P[ALL], Q[ALL];
    float gradient[N * ALL];
    backend.download(gradient, student->gradient, sizeof gradient);
    for (int i = 0; i < N; i++) {
        softmax(P, x + i * ALL, temperature), softmax(Q, y + i * ALL, temperature);
        for (int k = 0; k < ALL; k++) {
            want += P[k] * log(P[k] / Q[k]) / N;
            keep_largest(&most, fabs((double)gradient[i * ALL + k] - (Q[k] - P[k]) / (temperature * N)));
        }
    }
    heading("The divergence of two latents as distributions, KL(teacher || student)");
    expect("its value", want, (double)tensor_item(kl), 1e-4);
    expect("its gradient at the student: largest deviation", 0, most < 1e-6 ? 0 : most, 0);
    tape_end();
    free(x), free(y), params_free(&p);
}

// ---- 4: the Frechet distance ------------------------------------------------------------------------------

// Of Gaussians whose covariances are diagonal, d^2 = sum (m1 - m2)^2 + (s1 - s2)^2, with s the standard
// deviations: two bell curves side by side differ in where they stand and in how wide they are.
static void frechet(void) {
    enum { D = 3 };
    static const struct {
        const char *what;
        double mean[2][D], deviation[2][D];
    } cases[] = {
        {"the same Gaussian twice", {{1, 2, 3}, {1, 2, 3}}, {{1, 1, 2}, {1, 1, 2}}},
        {"twice as wide in one direction", {{0}, {0}}, {{1, 1, 1}, {2, 1, 1}}},
        {"moved by 3 in one direction and by 4 in another", {{0}, {3, 4, 0}}, {{1, 1, 1}, {1, 1, 1}}},
        {"moved and widened", {{0}, {1, 0, 2}}, {{1, 2, 1}, {3, 2, 2}}}};
    heading("The distance of two Gaussians");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double c[2][D * D] = {{0}}, want = 0;
        for (int k = 0; k < D; k++) {
            for (int g = 0; g < 2; g++) c[g][k * D + k] = cases[i].deviation[g][k] * cases[i].deviation[g][k];
            want += pow(cases[i].mean[0][k] - cases[i].mean[1][k], 2) +
                    pow(cases[i].deviation[0][k] - cases[i].deviation[1][k], 2);
        }
        double got = frechet_distance(cases[i].mean[0], c[0], cases[i].mean[1], c[1], D);
        expect(cases[i].what, want, fabs(got) < 1e-9 ? 0 : got, 1e-6);
    }
}

// ---- 5: gradients by finite differences -------------------------------------------------------------------

typedef Tensor *Operation(Tensor **in);
static Tensor *do_linear(Tensor **in) {
    return linear(in[0], &(Layer){.weight = in[1], .bias = in[2], .name = "linear"});
}
static Tensor *do_conv(Tensor **in) {
    return conv2d(in[0], &(Layer){.weight = in[1], .bias = in[2], .name = "conv2d"}, 1, 1);
}
static Tensor *do_norm(Tensor **in) {
    return group_norm_silu(in[0], &(Layer){.weight = in[1], .bias = in[2], .name = "norm"}, 2, 1e-5f);
}
static Tensor *do_attention(Tensor **in) { return attention(in[0], in[1], in[2], 2, false); }
static Tensor *do_geglu(Tensor **in) { return geglu(in[0]); }
static Tensor *do_multiply(Tensor **in) { return multiply(in[0], in[1]); }
static Tensor *do_add(Tensor **in) { return add(in[0], in[1]); }
static Tensor *do_combine(Tensor **in) { return combine(0.5f, in[0], 2, in[1]); }
static Tensor *do_combine_each(Tensor **in) {
    return combine_each((float[]){0.5f, 3}, in[0], (float[]){2, -1}, in[1]);
}
static Tensor *do_add_vector(Tensor **in) { return add_vector(in[0], in[1]); }
static Tensor *do_concat(Tensor **in) { return concat(in[0], in[1]); }
static Tensor *do_upsample(Tensor **in) { return upsample(in[0]); }
static Tensor *do_log_softmax(Tensor **in) { return log_softmax(in[0]); }

typedef struct {
    const char *name;
    Operation *f;
    const char *inputs[3];
    int dims[3], shape[3][4];
} Case;
static const Case operations[] = {
    {"linear", do_linear, {"x", "weight", "bias"}, {2, 2, 1}, {{3, 4}, {5, 4}, {5}}},
    {"conv2d", do_conv, {"x", "weight", "bias"}, {4, 4, 1}, {{1, 4, 4, 3}, {2, 3, 3, 3}, {2}}},
    {"group norm, SiLU", do_norm, {"x", "gamma", "beta"}, {4, 1, 1}, {{2, 3, 3, 4}, {4}, {4}}},
    {"attention", do_attention, {"q", "k", "v"}, {3, 3, 3}, {{1, 5, 8}, {1, 3, 8}, {1, 3, 8}}},
    {"geglu", do_geglu, {"x"}, {2}, {{3, 8}}},
    {"multiply", do_multiply, {"a", "b"}, {2, 2}, {{3, 4}, {3, 4}}},
    {"add", do_add, {"a", "b"}, {2, 2}, {{3, 4}, {3, 4}}},
    {"combine", do_combine, {"x", "z"}, {2, 2}, {{3, 4}, {3, 4}}},
    {"combine_each", do_combine_each, {"x", "z"}, {2, 2}, {{2, 4}, {2, 4}}},
    {"add_vector", do_add_vector, {"x", "v"}, {4, 2}, {{2, 2, 2, 3}, {2, 3}}},
    {"concat", do_concat, {"a", "b"}, {2, 2}, {{3, 2}, {3, 4}}},
    {"upsample", do_upsample, {"x"}, {4}, {{1, 2, 2, 3}}},
    {"log_softmax", do_log_softmax, {"x"}, {2}, {{2, 6}}},
};

// The loss is the mean square of the distance to some other tensor of the result's shape.
static double loss_of(const Case *c, Tensor **in, bool differentiate) {
    if (differentiate) tape_begin();
    Scope s = scope_begin();
    Tensor *y = c->f(in), *loss = loss_between(y, drawn(99, y->dims, y->shape), NULL, LOSS_MSE, 0);
    if (differentiate) backward(loss);
    double value = (double)tensor_item(loss);
    scope_end(s, NULL);
    if (differentiate) tape_end();
    return value;
}

// Slopes (L(x + h) - L(x - h)) / 2h beside what backward() says. In fp32 the two agree to some thousandths.
static void gradients(void) {
    const float h = 1e-2f;
    heading("Gradients, relative to the largest: how far backward() is from the slope of the loss");
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++) {
        const Case *c = &operations[i];
        Params p = {0};
        Tensor *in[3] = {0};
        for (int k = 0; k < 3 && c->inputs[k]; k++) {
            in[k] = param_tensor(&p, c->dims[k], c->shape[k], "%s", c->inputs[k]);
            param_allocate(in[k], F32);
            float *x = tensor_read(drawn(10 * i + (size_t)k, c->dims[k], c->shape[k]));
            tensor_write(in[k], x);
            param_trainable(in[k]);
            free(x);
        }
        loss_of(c, in, true);
        for (int k = 0; k < 3 && c->inputs[k]; k++) {
            size_t n = tensor_count(in[k]);
            float *x = tensor_read(in[k]), *says = xmalloc(n * sizeof(float));
            backend.download(says, in[k]->gradient, n * sizeof(float));
            double most = 0, far = 0;
            for (size_t e = 0; e < n; e++) {
                float before = x[e];
                double at[2];
                for (int side = 0; side < 2; side++) {
                    x[e] = side ? before + h : before - h;
                    tensor_write(in[k], x);
                    at[side] = loss_of(c, in, false);
                }
                x[e] = before;
                tensor_write(in[k], x);
                double slope = (at[1] - at[0]) / (2 * (double)h);
                keep_largest(&most, fabs(slope)), keep_largest(&far, fabs(slope - (double)says[e]));
            }
            char *what = format("%s, %s", c->name, c->inputs[k]);
            expect(what, 0, far / most < 0.02 ? 0 : far / most, 0);
            free(x), free(says), free(what);
        }
        params_free(&p);
    }
}

int main(int argc, char **argv) {
    static void (*const exercises[])(void) = {sampler, consistency_step, divergence, frechet, gradients};
    int n = argc > 1 ? atoi(argv[1]) : 0;
    if (n < 1 || n > 5) die_usage("which exercise, 1 to 5?");
    backend_init(1);
    exercises[n - 1]();
    printf(right ? "Exercise %d: right.\n" : "Exercise %d: not yet.\n", n);
    return right ? 0 : 1;
}
