// lora.c (test): Phase 3 against PEFT and PyTorch on the tiny architecture with made weights
// (make_lora_fixtures.py), LoRA files of diffusers, PEFT and kohya, and files that must be refused.
#define _POSIX_C_SOURCE 200809L
#include "sd.h"
#include "lib/io/architectures.h"
#include "weights/toy/made.h"
#include "test/test.h"

#include <setjmp.h>
#include <unistd.h>

enum { N = 2, SIDE = 16, TOKENS = 32, WIDTH = 128, RANK = 2 };
static const float alpha = 1;
static Store *fixtures;
static char scratch[] = "/tmp/sd-lora-test-XXXXXX";

// ---- models and inputs ------------------------------------------------------------------------------------

static float *fixture(const char *name, size_t *count) {
    const Stored *t = store_find(fixtures, name);
    if (!t) die("test/fixtures/lora.safetensors: %s is missing", name);
    float *x = xmalloc(t->count * sizeof(float));
    store_read_f32(t, x);
    if (count) *count = t->count;
    return x;
}

static Json *parsed(const char *text) { return json_parse(text, strlen(text), "a configuration"); }

static UNetConfig tiny_unet(const char *arch) {
    Json *j = parsed(architecture(arch)->unet);
    UNetConfig c = unet_config(j);
    json_free(j);
    return c;
}

static TextEncoder *tiny_text(Params *p) {
    Json *j = parsed(architecture("tiny")->text_encoder);
    TextEncoder *e = text_encoder_new(text_config(j), p);
    json_free(j);
    return e;
}

static Tensor *made_latents(const char *name, int n, int side) {
    float *x = xmalloc((size_t)(n * 4 * side * side) * sizeof(float));
    made_fill(name, 4, (int64_t[]){n, 4, side, side}, MADE_SOFT, x);
    float *y = nchw_to_nhwc(x, n, 4, side, side);
    Tensor *t = tensor_from(SHAPE(n, side, side, 4), y);
    free(x), free(y);
    return t;
}
static Tensor *latents(const char *name) { return made_latents(name, N, SIDE); }

static Tensor *made_states(const char *name, int n, int tokens, int width) {
    float *x = xmalloc((size_t)(n * tokens * width) * sizeof(float));
    made_fill(name, 3, (int64_t[]){n, tokens, width}, MADE_SOFT, x);
    Tensor *t = tensor_from(SHAPE(n, tokens, width), x);
    free(x);
    return t;
}
static Tensor *states(const char *name) { return made_states(name, N, TOKENS, WIDTH); }

static int *token_ids(void) {
    int *ids = xmalloc(N * TOKENS * sizeof(int));
    for (int i = 0; i < N * TOKENS; i++) ids[i] = i * 37 % 768;
    return ids;
}

static Lora *made_lora_of(const Params *model, const char *targets, int rank, float its_alpha) {
    Random r;
    random_seed(&r, 0);
    Lora *l = lora_new(model, targets, rank, its_alpha, &r);
    made_params(&l->params, "lora.", MADE_SOFT, F32);
    return l;
}
static Lora *made_lora(const Params *model, const char *targets) {
    return made_lora_of(model, targets, RANK, alpha);
}

static void check_picture(const char *what, const Tensor *got, const char *want, double tolerance) {
    float *x = tensor_read(got), *y = nhwc_to_nchw(x, N, 4, SIDE, SIDE), *z = fixture(want, NULL);
    check_close(what, y, z, N * 4 * SIDE * SIDE, tolerance);
    free(x), free(y), free(z);
}

// ---- forward ----------------------------------------------------------------------------------------------

// 1e-5 of the largest value is a hundred roundings of fp32, through a network of 60 layers.
static void test_forward(void) {
    Params p = {0};
    UNet *net = unet_new(tiny_unet("tiny"), &p);
    TextEncoder *e = tiny_text(&p);
    made_params(&p, "", MADE_SOFT, F32);
    const float t[] = {999, 259};
    Scope s = scope_begin();
    Tensor *z = latents("input.lora.z"), *text = states("input.lora.text");
    check_picture("UNet without adapters", unet(net, z, t, text, NULL), "unet.without", 1e-5);
    Lora *l = made_lora(&p, "lcm"), *te = made_lora(&p, "text");
    lora_attach(l, 1), lora_attach(te, 1);
    check_picture("UNet with adapters on all kinds of layers", unet(net, z, t, text, NULL), "unet", 1e-5);
    int *ids = token_ids();
    float *x = tensor_read(text_encode(e, ids, N)), *want = fixture("text", NULL);
    check_close("text encoder with adapters", x, want, N * TOKENS * WIDTH, 1e-5);
    free(x);
    lora_detach(l), lora_detach(te);
    check_picture("UNet after taking them off", unet(net, z, t, text, NULL), "unet.without", 1e-5);
    lora_attach(l, 0.25f), lora_attach(te, 0), lora_detach(te);
    Random r;
    random_seed(&r, 0);
    Lora *more = lora_new(&p, "lcm", RANK, 3 * alpha, &r); // a second set: 1/4 + 3/4
    made_params(&more->params, "lora.", MADE_SOFT, F32);
    lora_attach(more, 0.25f);
    check_picture("UNet with two sets, weighted", unet(net, z, t, text, NULL), "unet", 1e-5);
    lora_detach(l), lora_detach(more);
    lora_merge(l, 1), lora_merge(te, 1);
    check_picture("UNet, merged", unet(net, z, t, text, NULL), "unet", 1e-5);
    x = tensor_read(text_encode(e, ids, N));
    check_close("text encoder, merged", x, want, N * TOKENS * WIDTH, 1e-5);
    lora_merge(l, -1);
    check_picture("UNet, merged and taken out again", unet(net, z, t, text, NULL), "unet.without", 1e-5);
    scope_end(s, NULL);
    free(x), free(want), free(ids);
    lora_free(l), lora_free(te), lora_free(more);
    text_encoder_free(e), free(net);
    params_free(&p);
}

// ---- losses and gradients ---------------------------------------------------------------------------------

static int compare_names(const void *a, const void *b) {
    return strcmp((*(Parameter *const *)a)->name, (*(Parameter *const *)b)->name);
}

// Gradients of all adapters, in the order of names, against the fixture's rows: largest value, norm, 16
// entries.
static void check_case_within(const char *name, Tensor *loss, Lora *const *loras, int count, double of_loss,
                              double of_gradients) {
    char *key = format("%s.loss", name);
    float *want = fixture(key, NULL), got = tensor_item(loss);
    check_close(key, &got, want, 1, of_loss);
    free(want), free(key);
    backward(loss);
    Parameter **list = xmalloc(4096 * sizeof *list);
    int rows = 0;
    for (int i = 0; i < count; i++)
        for (int k = 0; k < loras[i]->params.count; k++) list[rows++] = &loras[i]->params.list[k];
    qsort(list, (size_t)rows, sizeof *list, compare_names);
    key = format("%s.gradients", name);
    size_t count_facts;
    float *facts = fixture(key, &count_facts);
    check(count_facts == (size_t)rows * 18, key);
    double worst = 0;
    const char *worst_name = "";
    for (int i = 0; i < rows && count_facts == (size_t)rows * 18; i++) {
        Tensor *t = list[i]->tensor;
        Tensor gradient = *t;
        gradient.data = t->gradient, gradient.type = F32;
        float *g = param_read(&gradient), *f = facts + 18 * i;
        size_t n = tensor_count(t);
        double square = 0, error = 0;
        for (size_t k = 0; k < n; k++) square += (double)g[k] * g[k];
        keep_largest(&error, fabs(sqrt(square) - f[1]) / f[1]);
        for (size_t k = 0; k < 16; k++) keep_largest(&error, fabs((double)g[k * n / 16] - f[2 + k]) / f[0]);
        if (keep_largest(&worst, error)) worst_name = list[i]->name;
        backend.fill((Mem){t->gradient, F32}, 0, n);
        free(g);
    }
    if (other_rounding()) {
        skip(name, "the tolerance is for the usual build");
    } else {
        int ok = worst <= of_gradients;
        printf("%-7s %s: %d gradients, worst %.2g of %.0e at %s\n", ok ? "ok" : "FAILED", name, rows, worst,
               of_gradients, worst_name);
        check(ok, key);
    }
    free(facts), free(list), free(key);
}

static void check_case(const char *name, Tensor *loss, Lora *const *loras, int count) {
    check_case_within(name, loss, loras, count, 1e-5, 1e-4);
}

static void trainable(const Lora *l) {
    for (int i = 0; i < l->params.count; i++) param_trainable(l->params.list[i].tensor);
}

static void test_finetune(void) {
    Params p = {0};
    UNet *net = unet_new(tiny_unet("tiny"), &p);
    TextEncoder *e = tiny_text(&p);
    made_params(&p, "", MADE_SOFT, F32);
    Scheduler s;
    Json *j = parsed(architecture("tiny")->scheduler);
    scheduler_init(&s, scheduler_config(j, -1));
    json_free(j);
    Lora *both[] = {made_lora(&p, "lcm"), made_lora(&p, "text")};
    const int t[] = {999, 259};
    int *ids = token_ids();
    trainable(both[0]), lora_attach(both[0], 1);
    tape_begin();
    Tensor *loss = lora_finetune_loss(&s, net, latents("input.lora.z"), latents("input.lora.noise"),
                                      states("input.lora.text"), t, 0);
    check_case("finetune", loss, both, 1);
    tape_end();
    trainable(both[1]), lora_attach(both[1], 1);
    for (checkpointing = false;; checkpointing = true) {
        tape_begin();
        loss = lora_finetune_loss(&s, net, latents("input.lora.z"), latents("input.lora.noise"),
                                  text_encode(e, ids, N), t, 5);
        check_case("finetune_text", loss, both, 2);
        tape_end();
        if (checkpointing) break;
    }
    checkpointing = false;
    lora_free(both[0]), lora_free(both[1]);
    text_encoder_free(e), free(net), free(ids);
    scheduler_free(&s);
    params_free(&p);
}

static void test_distill(void) {
    Model m = {.unet_config = tiny_unet("tiny")};
    Params lcm_params = {0}, student_params = {0};
    m.unet = unet_new(m.unet_config, &m.params);
    made_params(&m.params, "", MADE_SOFT, F32);
    UNet *lcm = unet_new(tiny_unet("tiny-lcm"), &lcm_params);
    made_params(&lcm_params, "", MADE_SOFT, F32);
    UNet *student = unet_view(m.unet_config, &m.params, &student_params);
    Lora *l = made_lora(&student_params, "lcm");
    trainable(l), lora_attach(l, 1);
    Json *j = parsed(architecture("tiny")->scheduler);
    const int index[] = {49, 12};
    const float w[] = {5.5f, 13};
    Scope s = scope_begin();
    LcmBatch b = {N,
                  latents("input.lora.z"),
                  latents("input.lora.noise"),
                  states("input.lora.text"),
                  states("input.lora.no_text"),
                  index,
                  w};
    Lcm way;
    lcm_init(&way, lcm_defaults, scheduler_config(j, LCM), m.unet, student, student);
    tape_begin();
    check_case("consistency", lcm_loss(&way, &b), &l, 1);
    tape_end();
    way.teacher = lcm;
    static const struct {
        const char *name, *parts;
        MimicConfig c;
    } readings[] = {{"mimic_elements", "mimic_elements.parts", {1, 10, 1, KL_ELEMENTS}},
                    {"mimic_channels", "mimic_channels.parts", {1, 0.5f, 2, KL_CHANNELS}},
                    {"mimic_gaussians", "mimic_gaussians.parts", {1, 0.1f, 1, KL_GAUSSIANS}}};
    for (int i = 0; i < 3; i++) {
        MimicConfig c = readings[i].c;
        Tensor *mse, *kl;
        tape_begin();
        lora_mimic_losses(&way, &b, c, &mse, &kl);
        float got[2] = {tensor_item(mse), tensor_item(kl)}, *want = fixture(readings[i].parts, NULL);
        check_close(readings[i].parts, got, want, 1, 1e-5);
        check_close(readings[i].parts, got + 1, want + 1, 1, 1e-5);
        check_case(readings[i].name, combine(c.mse_weight, mse, c.kl_weight, kl), &l, 1);
        tape_end();
        free(want);
    }
    scope_end(s, NULL);
    lcm_free(&way);
    json_free(j);
    lora_free(l);
    unet_view_free(student, &student_params);
    free(lcm), free(m.unet);
    params_free(&lcm_params), params_free(&m.params);
}

// ---- Stable Diffusion v1.5, rank 64 -----------------------------------------------------------------------

static UNetConfig full_unet(void) {
    Json *j = json_load("test/configs/sd15/unet.json");
    UNetConfig c = unet_config(j);
    json_free(j);
    return c;
}

// The fraction of parameters that would be trained; the network itself is only declared.
static void test_fraction(void) {
    Params p = {0};
    free(unet_new(full_unet(), &p));
    Random r;
    random_seed(&r, 0);
    Lora *l = lora_new(&p, "attention", 8, 8, &r);
    double fraction = (double)params_count(&l->params) / (double)params_count(&p);
    printf("rank 8 on the attention of Stable Diffusion v1.5's UNet trains %.3f %% of it\n", 100 * fraction);
    check(fraction > 0 && fraction < 0.002, "rank 8, attention only, trains under 0.2 % of the full UNet");
    lora_free(l);
    params_free(&p);
}

static void check_full_output(const char *what, const UNet *net, Tensor *z, Tensor *text) {
    Scope s = scope_begin();
    float *x = tensor_read(unet(net, z, (float[]){300}, text, NULL)), *y = nhwc_to_nchw(x, 1, 4, 64, 64),
          got[512];
    for (uint64_t i = 0; i < 512; i++) got[i] = y[(i * 2654435761u + 12345) % (4 * 64 * 64)];
    size_t n;
    float *want = fixture("unet", &n);
    check(n == 512, "the fixture's samples");
    check_close(what, got, want, 512, 1e-4);
    scope_end(s, NULL);
    free(x), free(y), free(want);
}

// The time of a pass with the adapters of `student` over that of one without: best of three, interleaved, one
// thread.
static double cost(const char *what, const UNet *student, const UNet *base, Tensor *z, Tensor *text) {
    backend_init(1);
    double best[2] = {INFINITY, INFINITY};
    for (int i = 0; i < 6; i++) {
        Scope s = scope_begin();
        double started = processor_seconds();
        unet(i % 2 ? student : base, z, (float[]){300}, text, NULL);
        best[i % 2] = fmin(best[i % 2], processor_seconds() - started);
        scope_end(s, NULL);
    }
    backend_init(2);
    printf("a pass %.2f s, with unmerged adapters of rank 64 on %s %.2f s: %.1f %% more\n", best[0], what,
           best[1], 100 * (best[1] / best[0] - 1));
    return best[1] / best[0] - 1;
}

static void test_full(void) {
    Store *tiny = fixtures;
    fixtures = store_open("test/fixtures/lora-sd15.safetensors");
    Model m = {.unet_config = full_unet()};
    m.unet = unet_new(m.unet_config, &m.params);
    made_params(&m.params, "", MADE_SOFT, F32);
    Params student_params = {0};
    UNet *student = unet_view(m.unet_config, &m.params, &student_params);
    Lora *l = made_lora_of(&student_params, "lcm", 64, 8);
    trainable(l), lora_attach(l, 1);
    Optimiser *o =
        optimiser_new((OptimiserConfig){.rate = 1e-4f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f}, 0,
                      (const Params *[]){&l->params}, 1); // for its memory
    Scope s = scope_begin();
    LcmBatch b = {1,
                  made_latents("input.lora.full.z", 1, 64),
                  made_latents("input.lora.full.noise", 1, 64),
                  made_states("input.lora.full.text", 1, 77, 768),
                  made_states("input.lora.full.no_text", 1, 77, 768),
                  (const int[]){30},
                  (const float[]){9}};
    check_full_output("the full UNet with adapters", student, b.z, b.text);
    Json *j = json_load("test/configs/sd15/scheduler.json");
    Lcm way;
    lcm_init(&way, lcm_defaults, scheduler_config(j, LCM), m.unet, student, student);
    static const double most[] = {9e9, 7e9}; // bytes, the bars
    for (int saving = 1; saving >= 0; saving--) {
        checkpointing = saving;
        double started = seconds();
        tape_begin();
        Tensor *loss = lcm_loss(&way, &b);
        check_case_within("consistency", loss, &l, 1, 1e-4, 1e-3);
        tape_end();
        double used = (double)backend.peak();
        printf("a step of LCM-LoRA at full size%s: %.1f s, peak memory %.2f GB\n",
               saving ? ", with gradient checkpointing" : "", seconds() - started, used / 1e9);
        check(used < most[saving], saving ? "under 7 GB with gradient checkpointing" : "under 9 GB without");
    }
    optimiser_free(o);
    check(cost("the layers of lcm-lora-sdv1-5", student, m.unet, b.z, b.text) < 0.18,
          "unmerged adapters on all those layers cost under 18 %");
    lora_detach(l);
    Lora *few = made_lora_of(&student_params, "attention", 64, 8);
    lora_attach(few, 1);
    check(cost("the attention", student, m.unet, b.z, b.text) < 0.05,
          "unmerged adapters on the attention cost under 5 %");
    lora_free(few);
    lora_merge(l, 1);
    check_full_output("the full UNet, adapters merged", m.unet, b.z, b.text);
    scope_end(s, NULL);
    lcm_free(&way);
    json_free(j);
    lora_free(l);
    unet_view_free(student, &student_params);
    free(m.unet);
    params_free(&m.params);
    store_close(fixtures);
    fixtures = tiny;
}

// ---- files ------------------------------------------------------------------------------------------------

// The change of each layer's weight, scale B A, against PEFT's: the largest value and 64 entries.
static void check_deltas(const char *what, const Lora *l, double tolerance) {
    Store *s = store_open("test/fixtures/lora/deltas.safetensors");
    check((size_t)l->count == store_count(s), what);
    double worst = 0;
    for (int i = 0; i < l->count; i++) {
        const LoraPart *p = &l->parts[i];
        const Stored *t = store_find(s, p->layer->name);
        if (!t) {
            check(0, p->layer->name);
            continue;
        }
        float facts[65], *down = param_read(p->adapter.down), *up = tensor_read(p->adapter.up);
        store_read_f32(t, facts);
        int rank = p->adapter.down->shape[0];
        size_t in = tensor_count(p->adapter.down) / (size_t)rank, n = in * (size_t)p->adapter.up->shape[0];
        for (size_t k = 0; k < 64; k++) {
            size_t at = k * n / 64;
            double sum = 0;
            for (int r = 0; r < rank; r++)
                sum += (double)up[at / in * (size_t)rank + (size_t)r] * down[(size_t)r * in + at % in];
            keep_largest(&worst, fabs(sum * p->alpha / rank - facts[1 + k]) / facts[0]);
        }
        free(down), free(up);
    }
    printf("%-7s %s: worst %.2g of %.0e\n", worst <= tolerance ? "ok" : "FAILED", what, worst, tolerance);
    check(worst <= tolerance, what);
    store_close(s);
}

static char *in_scratch(const char *name) { return format("%s/%s", scratch, name); }

static void test_files(const Params *p) {
    // fp32: rounding errors of the product alone. bf16 keeps 8 bits of each factor, fp16 11.
    static const struct {
        const char *path;
        double tolerance;
    } theirs[] = {{"test/fixtures/lora/peft.safetensors", 1e-6},
                  {"test/fixtures/lora/kohya.safetensors", 1e-2},
                  {"test/fixtures/lora/old.safetensors", 2e-3}};
    for (int i = 0; i < 3; i++) {
        Lora *l = lora_load(p, theirs[i].path);
        check_deltas(theirs[i].path, l, theirs[i].tolerance);
        lora_free(l);
    }
    Lora *l = lora_load(p, theirs[0].path);
    l->mode = xstrdup("mimic");
    static const Type types[] = {F32, F16, BF16};
    static const double loss[] = {1e-6, 2e-3, 1e-2};
    for (int f = 0; f < 2; f++)
        for (int k = 0; k < 3; k++) {
            char *path = in_scratch("written.safetensors");
            lora_save(l, path, f ? LORA_KOHYA : LORA_PEFT, types[k]);
            Lora *again = lora_load(p, path);
            check(again->mode && !strcmp(again->mode, "mimic"), "the mode is kept in the file");
            check_deltas(f ? "written with kohya's keys" : "written with PEFT's keys", again, loss[k]);
            lora_free(again);
            free(path);
        }
    // Both formats keep ranks and alphas that differ from layer to layer.
    Lora *mixed = xcalloc(1, sizeof *mixed);
    int count;
    Layer **layers = lora_layers(p, &count);
    for (int i = 0; i < 6; i++) lora_add(mixed, layers[i * 7], 1 + i % 3, 0.5f * (float)(1 + i));
    made_params(&mixed->params, "lora.", MADE_SOFT, F32);
    for (int f = 0; f < 2; f++) {
        char *path = in_scratch("mixed.safetensors");
        lora_save(mixed, path, (LoraFormat)f, F32);
        Lora *again = lora_load(p, path);
        bool same = again->count == mixed->count;
        for (int i = 0; same && i < mixed->count; i++)
            same = again->parts[i].layer == mixed->parts[i].layer &&
                   again->parts[i].alpha == mixed->parts[i].alpha &&
                   again->parts[i].adapter.down->shape[0] == mixed->parts[i].adapter.down->shape[0];
        check(same, "a file keeps ranks and alphas that differ from layer to layer");
        lora_free(again);
        free(path);
    }
    free(layers);
    lora_free(mixed), lora_free(l);
}

// ---- refusals ---------------------------------------------------------------------------------------------

static jmp_buf back;
static char message[1024];
static void caught(const char *text) {
    snprintf(message, sizeof message, "%s", text);
    longjmp(back, 1);
}

// lora_load() must die with a message that contains `part`.
static void refused(const Params *p, const char *path, const char *part) {
    die_hook = caught;
    bool ended = setjmp(back) != 0;
    if (!ended) lora_load(p, path);
    die_hook = NULL;
    bool named = ended && strstr(message, part);
    if (!named) printf("  \"%s\" is expected in \"%s\"\n", part, ended ? message : "nothing");
    check(named, part);
}

typedef struct {
    const char *name;
    int dims;
    int64_t shape[4];
    float value;
} Piece;

#define Q "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
#define K2 "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
#define KOHYA_Q "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
#define DOWN(stem, r, in)                                                                                    \
    { stem ".lora_A.weight", 2, {r, in}, 0.5f }
#define UP(stem, out, r)                                                                                     \
    { stem ".lora_B.weight", 2, {out, r}, 0.5f }
#define GOOD DOWN(Q, 2, 144), UP(Q, 144, 2)

static void write_pieces(const char *path, const Piece *pieces, const char *config) {
    StoreWriter *w = store_create(path);
    if (config) store_metadata_add(w, "lora_adapter_metadata", config);
    for (int round = 0; round < 2; round++)
        for (const Piece *p = pieces; p->name; p++) {
            size_t n = 1;
            for (int i = 0; i < p->dims; i++) n *= (size_t)p->shape[i];
            if (!round) {
                store_declare(w, p->name, F32, p->dims, p->shape);
                continue;
            }
            float *x = xmalloc(n * sizeof(float));
            for (size_t i = 0; i < n; i++) x[i] = p->value;
            store_data_f32(w, x, n);
            free(x);
        }
    store_commit(w);
}

// What lora_load() says on stderr.
static char *notes_of(const Params *p, const char *path, Lora **l) {
    char *file = in_scratch("notes.txt");
    int before = dup(2);
    if (!freopen(file, "w", stderr)) die("cannot write %s", file);
    verbosity = 0;
    *l = lora_load(p, path);
    verbosity = -1;
    fflush(stderr), dup2(before, 2), close(before);
    char *text = read_file(file, NULL);
    free(file);
    return text;
}

// A configuration of another kind than an object's.
static void test_odd_configurations(const Params *p) {
    static const char *const odd[] = {"\"x\"", "[1]", "1", "null"};
    char *path = in_scratch("odd.safetensors");
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        write_pieces(path, (Piece[]){GOOD, {0}}, odd[i]);
        refused(p, path, "its configuration is no object");
    }
    free(path);
}

// Which LoRAs are for a few steps: as they say, by whole words of names in any case, by their layers.
static void test_few_steps(const Params *p) {
    static const struct {
        const char *path, *title, *mode, *targets, *name;
        int steps;
    } cases[] = {
        {"a/style.safetensors", "", NULL, "attention", NULL, 0},
        {"a/style.safetensors", "", NULL, "lcm", "an LCM-LoRA", 4},
        {"a/style.safetensors", "", NULL, "attention,ff,resnet,proj,samplers,ends,text", NULL, 0},
        {"a/style.safetensors", "", NULL, "ends,unet.conv_out", NULL, 0},
        {"a/lcm.safetensors", "", "finetune", "lcm", NULL, 0},
        {"a/style.safetensors", "", "mimic", "attention", "an LCM-LoRA", 4},
        {"a/style.safetensors", "", "consistency", "attention", "an LCM-LoRA", 4},
        {"a/my LCM_lora.safetensors", "", NULL, "attention", "an LCM-LoRA", 4},
        {"x/LCM-LoRA-sdv1-5/pytorch_lora_weights.safetensors", "", NULL, "attention", "an LCM-LoRA", 4},
        {"lcm/x/style.safetensors", "", NULL, "attention", NULL, 0},
        {"a/lcmish.safetensors", "", NULL, "attention", NULL, 0},
        {"falcm.safetensors", "", NULL, "attention", NULL, 0},
        {"lcm.safetensors", "", NULL, "attention", "an LCM-LoRA", 4},
        {"a/style.safetensors", "SD15 LCM", NULL, "attention", "an LCM-LoRA", 4},
        {"TCD-SD15-LoRA/pytorch_lora_weights.safetensors", "", NULL, "lcm", "a TCD-LoRA", 4},
        {"Hyper-SD15-2steps-lora.safetensors", "", NULL, "lcm", "a Hyper-SD LoRA", 2},
        {"Hyper-SD/Hyper-SD15-8-steps.safetensors", "", NULL, "attention", "a Hyper-SD LoRA", 8},
        {"hyper_realistic_4steps.safetensors", "", NULL, "attention", NULL, 0},
        {"hypersd15_8step.safetensors", "", NULL, "attention", "a Hyper-SD LoRA", 8},
        {"latent-consistency-lora.safetensors", "", NULL, "attention", "an LCM-LoRA", 4},
        {"hyper-sd.safetensors", "", NULL, "attention", NULL, 0}};
    Random r;
    random_seed(&r, 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Lora *l = lora_new(p, cases[i].targets, 1, 1, &r);
        l->title = xstrdup(cases[i].title), l->mode = cases[i].mode ? xstrdup(cases[i].mode) : NULL;
        FewSteps f = lora_few_steps(l, cases[i].path);
        bool right = cases[i].name ? f.name && !strcmp(f.name, cases[i].name) && f.steps == cases[i].steps
                                   : !f.name && f.scheduler == -1;
        if (!right) printf("%s: %s, %d steps\n", cases[i].path, f.name ? f.name : "nothing", f.steps);
        right &= !f.name || (f.cfg > 7) == (strstr(cases[i].path, "CFG") != NULL);
        check(right, "what a LoRA was made for");
        lora_free(l);
    }
}

static void test_refusals(const Params *p) {
    char *many = xstrdup("\"0\": 2");
    for (int i = 1; i < 140; i++) format_more(&many, ", \"%0999d\": 2", i);
    const struct {
        Piece pieces[8];
        const char *part, *config;
    } bad[] = {
        {{{0}}, "holds no tensors", NULL},
        // The widths say for which model; names that Stable Diffusion 1 has in common with others do not.
        {{GOOD, {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", 2, {2, 1280}, 0}},
         "made for SDXL",
         NULL},
        {{GOOD, {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", 2, {2, 8}, 0}},
         "belongs to no layer of this model",
         NULL},
        {{GOOD,
          {"lora_unet_input_blocks_4_1_transformer_blocks_5_attn2_to_k.lora_down.weight", 2, {2, 2048}, 0}},
         "made for SDXL",
         NULL},
        {{GOOD, {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", 2, {2, 3072}, 0}},
         "as wide as Flux's",
         NULL},
        {{{"bundle_emb.dog.string_to_param.*", 2, {1, 8}, 0}}, "embeddings alone, no LoRA", NULL},
        {{GOOD,
          {"unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q.lora_A.weight", 2, {2, 8}, 0}},
         "belongs to no layer of this model",
         NULL},
        {{DOWN(K2, 2, 1024), UP(K2, 144, 2)}, "made for Stable Diffusion 2", NULL},
        {{DOWN(K2, 2, 2048), UP(K2, 144, 2)}, "made for SDXL", NULL},
        {{DOWN(K2, 2, 768), UP(K2, 320, 2)}, "made for Stable Diffusion 1", NULL},
        {{DOWN(Q, 2, 144), UP(Q, 144, 3)}, "the layer's outputs and the rank of", NULL},
        {{DOWN(Q, 2, 144), UP(Q, 96, 2)}, "(144, 2) is expected", NULL},
        {{{Q ".lora_A.weight", 1, {144}, 0}, UP(Q, 144, 2)}, "(rank, 144, 1, 1) is expected", NULL},
        {{DOWN(Q, 2, 144)}, "has no up (lora_B) beside it", NULL},
        {{UP(Q, 144, 2)}, "has no down (lora_A) beside it", NULL},
        {{{KOHYA_Q ".alpha", 0, {0}, 2}}, "has no weights beside it", NULL},
        {{GOOD, {KOHYA_Q ".lora_down.weight", 2, {2, 144}, 0}}, "mean the same tensor", NULL},
        {{GOOD, {KOHYA_Q ".alpha", 1, {2}, 2}}, "holds 2 numbers; one is expected", NULL},
        {{GOOD, {KOHYA_Q ".alpha", 0, {0}, NAN}}, "alpha of the layer " Q " is not finite", NULL},
        {{DOWN(Q, 2, 144), {Q ".lora_B.weight", 2, {144, 2}, NAN}}, "NaN or an infinity at element 0", NULL},
        {{GOOD, {"unet.conv_in.weight", 2, {2, 8}, 0}}, "is none of a LoRA", NULL},
        {{{KOHYA_Q ".hada_w1_a", 2, {144, 2}, 0}}, "LoHa", NULL},
        {{{KOHYA_Q ".lokr_w1", 2, {12, 12}, 0}}, "LoKr", NULL},
        {{GOOD, {KOHYA_Q ".dora_scale", 2, {144, 1}, 0}}, "DoRA", NULL},
        {{GOOD, {Q ".lora_magnitude_vector", 1, {144}, 0}}, "DoRA", NULL},
        {{GOOD, {"lora_unet_conv_in.lora_mid.weight", 4, {2, 2, 3, 3}, 0}}, "Tucker", NULL},
        {{GOOD, {KOHYA_Q ".diff", 2, {144, 144}, 0}}, "whole weight differences", NULL},
        {{GOOD, {Q ".lora_B.bias", 1, {144}, 0}}, "biases", NULL},
        {{GOOD}, "use_dora", "{\"unet.r\": 2, \"unet.use_dora\": true}"},
        {{GOOD}, "lora_alpha", "{\"unet.r\": 2, \"unet.lora_alpha\": \"two\"}"},
        // These would take gigabytes or minutes: glibc unrolls nested repeats.
        {{GOOD}, "8 times", "{\"unet.r\": 2, \"unet.rank_pattern\": {\"(((((((((a+)+)+)+)+)+)+)+)+)\": 1}}"},
        {{GOOD}, "1000 bytes", format("{\"unet.r\": 2, \"unet.alpha_pattern\": {\"%01001d\": 1}}", 0)},
        {{GOOD}, "128 KB", format("{\"unet.r\": 2, \"unet.alpha_pattern\": {%s}}", many)},
    };
    char *path = in_scratch("bad.safetensors");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_pieces(path, bad[i].pieces, bad[i].config);
        refused(p, path, bad[i].part);
    }
    Output *o = output_open(path);
    output_commit(o);
    refused(p, path, path); // an empty file is named
    // The good part alone is read. Where alpha comes from: nothing said, the header, its patterns, rslora.
    static const struct {
        const char *config;
        float alpha;
    } says[] = {{NULL, 2},
                {"{\"unet.r\": 2, \"unet.lora_alpha\": 6}", 6},
                {"{\"unet.r\": 2, \"unet.lora_alpha\": 6, \"unet.alpha_pattern\": {\"attn1.to_q\": 3, "
                 "\"to_k\": 9, \"o_q\": 8}}",
                 3},
                {"{\"unet.r\": 2, \"unet.lora_alpha\": 6, \"unet.use_rslora\": true}", 6 * 1.41421356f}};
    for (int i = 0; i < 4; i++) {
        write_pieces(path, (const Piece[]){GOOD, {0}}, says[i].config);
        Lora *l = lora_load(p, path);
        check(l->count == 1 && fabsf(l->parts[0].alpha - says[i].alpha) < 1e-5f,
              "alpha by PEFT's configuration");
        lora_free(l);
    }
    // What is not applied or guessed is said in a line, and the rest is applied.
    static const struct {
        Piece pieces[8];
        const char *words;
        float alphas[2];
    } said[] = {{{GOOD, {"bundle_emb.dog.string_to_param.*", 2, {1, 8}, 0}},
                 "the embedding dog in it is not applied",
                 {2}},
                {{GOOD, {KOHYA_Q ".alpha", 0, {0}, 1}, DOWN(K2, 2, 128), UP(K2, 144, 2)},
                 "alpha is missing for the layer " K2 "; the rank is taken",
                 {1, 2}}};
    for (int i = 0; i < 2; i++) {
        write_pieces(path, said[i].pieces, NULL);
        Lora *l;
        char *line = notes_of(p, path, &l);
        check(strstr(line, said[i].words) != NULL, said[i].words);
        for (int k = 0; k < l->count; k++)
            check(l->count == 1 + i && l->parts[k].alpha == said[i].alphas[k], "and the right alphas");
        lora_free(l), free(line);
    }
    unlink(path), free(path);

    static const struct {
        const char *targets, *part;
        int rank;
    } news[] = {{"attention,nothing", "\"nothing\" matches no layer", 2},
                {"attention", "the rank is 0", 0},
                {"unet.conv_in", "it must be from 1 to 48", 49},
                {",", "is empty", 2}};
    Random r;
    random_seed(&r, 0);
    for (size_t i = 0; i < sizeof news / sizeof *news; i++) {
        die_hook = caught;
        bool ended = setjmp(back) != 0;
        if (!ended) lora_new(p, news[i].targets, news[i].rank, 1, &r);
        die_hook = NULL;
        check(ended && strstr(message, news[i].part), news[i].part);
    }
}

// New adapters: down uniform within 1 / sqrt(inputs), up zero.
static void test_begin(const Params *p) {
    Random r;
    random_seed(&r, 1);
    Lora *l = lora_new(p, "conv_in", 4, 4, &r);
    float *down = tensor_read(l->parts[0].adapter.down), *up = tensor_read(l->parts[0].adapter.up);
    double most = 0, any = 0;
    for (int i = 0; i < 4 * 36; i++) keep_largest(&most, fabs(down[i]));
    for (int i = 0; i < 48 * 4; i++) keep_largest(&any, fabs(up[i]));
    check(most <= 1.0f / 6 && most > 0.9f / 6 && any == 0, "new adapters: down uniform, up zero");
    free(down), free(up);
    lora_free(l);
}

// The operation LOG and its derivative against the C library's logf().
static void test_log(void) {
    Params p = {0};
    Tensor *x = param_tensor(&p, SHAPE(1, 37), "x");
    param_allocate(x, F32);
    float host[37], want[37], derivative[37], one = 1;
    for (int i = 0; i < 37; i++)
        host[i] = 1e-6f * powf(2, (float)i), want[i] = logf(host[i]), derivative[i] = 1 / host[i] / 37;
    tensor_write(x, host);
    param_trainable(x);
    tape_begin();
    Tensor *y = activation(x, LOG);
    Tensor *ones = tensor_new(SHAPE(1, 37));
    backend.fill(mem(ones), one, 37);
    Tensor *sum = matmul(y, ones, true, -1.0f / 37);
    backward(loss_pick(sum, (int[]){0}));
    float *got = tensor_read(y);
    check_close("LOG", got, want, 37, 1e-6);
    Tensor g = *x;
    g.data = x->gradient;
    free(got), got = tensor_read(&g);
    for (int i = 0; i < 37; i++) got[i] /= derivative[i], derivative[i] = 1;
    check_close("its derivative", got, derivative, 37, 1e-6);
    free(got);
    tape_end();
    params_free(&p);
}

// ---- the loops --------------------------------------------------------------------------------------------

// A data set of three made pictures with two captions each, and what a training loop draws of it: two
// pictures, one after the other its number, its caption's and the noise of its latents.
enum { PICTURES = 3, CAPTIONS = 2, VALUES = SIDE * SIDE * 4 };
typedef struct {
    float moments[PICTURES][2 * VALUES];
    int ids[PICTURES][CAPTIONS * TOKENS];
    Pair list[PICTURES];
    Pairs pairs;
} MadePairs;

static void make_pairs(MadePairs *d) {
    for (int i = 0; i < PICTURES; i++) {
        for (int k = 0; k < 2 * VALUES; k++)
            d->moments[i][k] = sinf((float)(k * (i + 1))) - (float)(k / 4 % 2);
        for (int k = 0; k < CAPTIONS * TOKENS; k++) d->ids[i][k] = (k * 31 + i * 101) % 514;
        char *name = format("%d.png", i);
        d->list[i] = (Pair){name, d->moments[i], d->ids[i], CAPTIONS};
    }
    d->pairs = (Pairs){
        .list = d->list, .count = PICTURES, .side = SIDE, .channels = 4, .tokens = TOKENS, .scale = 0.2f};
}

static Tensor *drawn(const MadePairs *d, Random *r, int ids[N * TOKENS]) {
    float z[N][VALUES];
    for (int i = 0; i < N; i++) {
        int which = random_below(r, PICTURES), caption = random_below(r, CAPTIONS);
        memcpy(ids + i * TOKENS, d->ids[which] + caption * TOKENS, TOKENS * sizeof(int));
        random_normal(r, z[i], VALUES);
        for (int k = 0; k < VALUES; k++) {
            const float *at = d->moments[which] + k / 4 * 8 + k % 4;
            z[i][k] = 0.2f * (at[0] + expf(at[4] / 2) * z[i][k]);
        }
    }
    return tensor_from(SHAPE(N, SIDE, SIDE, 4), z[0]);
}

static Run one_step(const Params *trained, int seed) {
    OptimiserConfig still = {.beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f};
    Run run = {.dir = format("%s/%d", scratch, seed), "test", xstrdup("{}"), .total = 1, .batch = N};
    run.optimiser = optimiser_new(still, 0, (const Params *[]){trained}, 1);
    run.checkpoint_every = 1e9;
    run_begin(&run, (uint64_t)seed, true);
    return run;
}

// The value of a key in the log's only line; ends the run.
static float logged(Run *run, const char *key) {
    if (run->log) run_end(run), run->log = NULL;
    char *path = format("%s/log.jsonl", run->dir), *text = read_file(path, NULL);
    Json *line = json_parse(text, strlen(text), path);
    float value = (float)json_get_number(line, key, NAN);
    json_free(line), free(text), free(path);
    return value;
}

// A step of each loop has the loss of the published algorithm on what it must have drawn: timesteps and
// guidance scales from their whole ranges, noise, and pictures without their caption. The log has six digits.
static void test_loops(void) {
    Json *text = parsed(architecture("tiny")->text_encoder);
    Model m = {.unet_config = tiny_unet("tiny"), .scheduler_json = parsed(architecture("tiny")->scheduler)};
    m.path = "tiny", m.text_config = text_config(text), m.text_encoder = tiny_text(&m.params);
    m.unet = unet_new(m.unet_config, &m.params);
    made_params(&m.params, "", MADE_SOFT, F32);
    tokenizer_train(scratch, NULL, 0, 514, TOKENS);
    m.tokenizer = tokenizer_open(scratch);
    Params lcm_params = {0}, view_params = {0};
    UNet *lcm = unet_new(tiny_unet("tiny-lcm"), &lcm_params);
    made_params(&lcm_params, "", MADE_SOFT, F32);
    UNet *student = unet_view(m.unet_config, &m.params, &view_params);
    Lora *l = made_lora(&view_params, "attention"), *own = made_lora(&m.params, "attention");
    trainable(l), lora_attach(l, 1), trainable(own);
    MadePairs *d = xmalloc(sizeof *d);
    make_pairs(d);
    int nothing[N * TOKENS], ids[N * TOKENS], index[N], t[N];
    for (int i = 0; i < N; i++) {
        int used = tokenizer_encode(m.tokenizer, "", nothing + i * TOKENS, TOKENS, NULL);
        while (used < TOKENS) nothing[i * TOKENS + used++] = tokenizer_pad(m.tokenizer);
    }
    float w[N], got, want;
    Random r;
    Scope s = scope_begin();
    LcmBatch b = {.n = N, .index = index, .w = w};
    Lcm way;
    lcm_init(&way, lcm_defaults, scheduler_config(m.scheduler_json, LCM), m.unet, lcm, lcm);

    Run run = one_step(&l->params, 3);
    way.student = student;
    lcm_distill(&way, &run, &m, &d->pairs, NULL, NULL);
    got = logged(&run, "loss");
    random_seed(&r, 3);
    b.z = drawn(d, &r, ids);
    for (int i = 0; i < N; i++) index[i] = random_below(&r, 50), w[i] = 5 + 10 * random_uniform(&r);
    b.noise = random_tensor(&r, SHAPE(N, SIDE, SIDE, 4));
    b.text = text_encode(m.text_encoder, ids, N), b.no_text = text_encode(m.text_encoder, nothing, N);
    want = tensor_item(lcm_loss(&way, &b));
    check_close("a step of lcm_distill()", &got, &want, 1, 1e-5);

    run = one_step(&l->params, 4);
    way.teacher = lcm;
    MimicConfig c = {2, 3, 1, KL_GAUSSIANS};
    lora_mimic(&way, &run, &m, l, &d->pairs, c);
    random_seed(&r, 4);
    b.z = drawn(d, &r, ids);
    for (int i = 0; i < N; i++) index[i] = random_below(&r, 50);
    b.noise = random_tensor(&r, SHAPE(N, SIDE, SIDE, 4));
    for (int i = 0; i < N; i++) w[i] = 5 + 10 * random_uniform(&r);
    b.text = text_encode(m.text_encoder, ids, N);
    Tensor *parts[2];
    double norm[2];
    float terms[2];
    for (int k = 0; k < 2; k++) { // each term's share of the gradient
        tape_begin();
        lora_mimic_losses(&way, &b, c, &parts[0], &parts[1]);
        backward(scale(parts[k], k ? 3 : 2));
        terms[k] = tensor_item(parts[k]);
        tape_end();
        norm[k] = gradient_norm(&l->params);
    }
    got = logged(&run, "mse"), check_close("a step of lora_mimic(): MSE", &got, &terms[0], 1, 1e-5);
    got = logged(&run, "kl"), check_close("its KL", &got, &terms[1], 1, 1e-5);
    got = logged(&run, "loss"), want = 2 * terms[0] + 3 * terms[1];
    check_close("their weighted sum", &got, &want, 1, 1e-5);
    got = logged(&run, "kl_share"), want = (float)(norm[1] / (norm[0] + norm[1]));
    check(fabs(got - want) <= 1e-4, "the KL's share of the gradient");

    run = one_step(&own->params, 5);
    lora_attach(own, 1);
    lora_finetune(&run, &m, own, &d->pairs, (FinetuneConfig){.dropout = 0.5f, .min_snr = 5});
    got = logged(&run, "loss");
    random_seed(&r, 5);
    Tensor *z = drawn(d, &r, ids);
    for (int i = 0; i < N; i++) t[i] = random_below(&r, 1000);
    Tensor *noise = random_tensor(&r, SHAPE(N, SIDE, SIDE, 4));
    int without = 0;
    for (int i = 0; i < N; i++)
        if (random_uniform(&r) < 0.5f) memcpy(ids + i * TOKENS, nothing, TOKENS * sizeof(int)), without++;
    check(without == 1, "one of the two pictures comes without its caption");
    want = tensor_item(
        lora_finetune_loss(&way.schedule, m.unet, z, noise, text_encode(m.text_encoder, ids, N), t, 5));
    check_close("a step of lora_finetune()", &got, &want, 1, 1e-5);
    scope_end(s, NULL);
}

int main(void) {
    backend_init(2);
    verbosity = -1;
    if (!mkdtemp(scratch)) die("cannot make %s", scratch);
    fixtures = store_open("test/fixtures/lora.safetensors");
    Params p = {0};
    free(unet_new(tiny_unet("tiny"), &p));
    text_encoder_free(tiny_text(&p)); // declared and empty: names and shapes
    test_log();
    test_begin(&p);
    test_files(&p);
    test_refusals(&p);
    test_few_steps(&p);
    test_odd_configurations(&p);
    params_free(&p);
    test_forward();
    test_finetune();
    test_distill();
    test_fraction();
    test_loops();
    if (full_size("LCM-LoRA of Stable Diffusion v1.5")) test_full();
    store_close(fixtures);
    char *command = format("rm -rf %s", scratch);
    if (system(command)) puts("the scratch folder stays");
    free(command);
    return test_report();
}
