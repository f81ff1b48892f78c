// networks.c: the three networks, the schedulers, the noise and the whole pipeline against PyTorch,
// transformers and diffusers, with made weights. Expected outputs: test/fixtures/*.safetensors, see its
// README.md; reference.py wrote them from test/configs. The tiny architecture always, Stable Diffusion v1.5
// under make test-full.
#define _DEFAULT_SOURCE // mkdtemp
#include "lib/io/architectures.h"
#include "lib/nn/dry.h"
#include "sd.h"
#include "weights/toy/made.h"
#include "test/test.h"

#include <setjmp.h>
#include <stdint.h>
#include <unistd.h>

#define FIXTURES "test/fixtures/"
#define CLIP "../shared/data/clip"

// ---- our blocks -------------------------------------------------------------------------------------------

enum { MOST = 1024 };
static struct {
    char *name;
    float *data; // NCHW
    size_t count;
} blocks[MOST];
static int block_count;

static void collect(const char *name, const Tensor *t) {
    if (block_count == MOST) return;
    float *x = tensor_read(t);
    if (t->dims == 4) {
        float *nchw = nhwc_to_nchw(x, t->shape[0], t->shape[3], t->shape[1], t->shape[2]);
        free(x), x = nchw;
    }
    blocks[block_count].name = xstrdup(name), blocks[block_count].data = x;
    blocks[block_count++].count = tensor_count(t);
}

static void forget_blocks(void) {
    for (int i = 0; i < block_count; i++) free(blocks[i].name), free(blocks[i].data);
    block_count = 0;
}

static Store *fixture(const char *name) {
    char *path = format(FIXTURES "%s.safetensors", name);
    Store *s = file_exists(path) ? store_open(path) : NULL;
    if (!s) skip(name, "no fixture");
    free(path);
    return s;
}

static float *read_fixture(const Store *s, const char *name, const char *more, size_t *count) {
    char *full = format("%s%s", name, more);
    const Stored *t = store_find(s, full);
    float *x = t ? xmalloc(t->count * sizeof *x) : NULL;
    if (t) store_read_f32(t, x), *count = t->count;
    free(full);
    return x;
}

// The fixtures hold entries (k * 2654435761 + 12345) mod n of a block of n elements: scattered over all its
// axes.
static double sampled_error(const float *block, size_t n, const float *want, size_t count, double scale) {
    double worst = 0;
    for (size_t k = 0; k < count; k++)
        keep_largest(&worst, fabs((double)block[(k * 2654435761u + 12345) % n] - want[k]));
    return worst / scale;
}

static void judge(const char *what, double used, double allowed, int parts) {
    bool ok = used <= allowed;
    if (ok)
        tests_passed++;
    else
        tests_failed++;
    printf("%-7s %s: %.2g, %.0f %% of %.1g (%d blocks)\n", ok ? "ok" : "FAILED", what, used,
           100 * used / allowed, allowed, parts);
}

// Every block of the fixture against ours. Soft weights: differences relative to the block's largest value.
// Hard weights: in multiples of the error of PyTorch's own fp32 against the same float64 run, at the same
// entries. Where PyTorch's error is under 3e-7, 3e-7 counts: an error within 1e-6 is always allowed.
static void compare_blocks(const char *name, const Store *s, bool hard, double tolerance) {
    double worst = 0;
    int compared = 0;
    const char *where = "";
    for (int i = 0; i < block_count; i++) {
        size_t count = 0, four;
        float *want = read_fixture(s, blocks[i].name, "", &count);
        float *summary = read_fixture(s, blocks[i].name, ".summary", &four);
        float *peer = hard ? read_fixture(s, blocks[i].name, ".fp32_error", &four) : NULL;
        if (want && summary) {
            double e = (size_t)summary[3] == blocks[i].count
                           ? sampled_error(blocks[i].data, blocks[i].count, want, count, (double)summary[2])
                           : INFINITY;
            if (getenv("VERBOSE"))
                printf("        %-60s %.2g%s%.2g\n", blocks[i].name, e, hard ? " PyTorch " : " of ",
                       peer ? (double)peer[1] : tolerance);
            if (peer) e /= fmax((double)peer[1], 1e-6 / 3);
            if (keep_largest(&worst, e)) where = blocks[i].name;
            compared++;
        }
        free(want), free(summary), free(peer);
    }
    size_t expected = 0;
    for (size_t i = 0; i < store_count(s); i++) expected += strstr(store_at(s, i)->name, ".summary") != NULL;
    char *what = format("%s, worst at %s", name, where);
    judge(what, worst, hard ? 3 : tolerance, compared);
    check(compared == (int)expected && compared > 0, "every block of the fixture is one of ours");
    free(what);
}

// ---- the networks with made weights -----------------------------------------------------------------------

static Tensor *made_input(const char *name, int n, int c, int h, int w, float scale) {
    int64_t shape[4] = {n, c, h, w};
    size_t count = (size_t)n * (size_t)c * (size_t)h * (size_t)w;
    float *x = xmalloc(count * sizeof *x);
    made_fill(name, 4, shape, MADE_SOFT, x);
    for (size_t i = 0; i < count; i++) x[i] *= scale;
    float *nhwc = nchw_to_nhwc(x, n, c, h, w);
    Tensor *t = tensor_from(SHAPE(n, h, w, c), nhwc);
    free(x), free(nhwc);
    return t;
}

static Tensor *made_context(int n, int tokens, int d) {
    float *x = xmalloc((size_t)n * (size_t)tokens * (size_t)d * sizeof *x);
    made_fill("input.unet.context", 3, (int64_t[]){n, tokens, d}, MADE_SOFT, x);
    Tensor *t = tensor_from(SHAPE(n, tokens, d), x);
    free(x);
    return t;
}

// CLIP's tokens of "A child in a pink dress is climbing up a set of stairs in an entry way ."
static const int clip_caption[] = {49406, 320,  2913, 530,  320, 3360, 2595, 533, 9877, 705,
                                   320,   1167, 539,  9577, 530, 550,  5362, 923, 269};

static void token_rows(const char *arch, int *ids, int tokens) {
    if (strcmp(arch, "tiny")) {
        for (int i = 0; i < 2 * tokens; i++) ids[i] = 49407;
        ids[0] = 49406;
        memcpy(ids + tokens, clip_caption, sizeof clip_caption);
        return;
    }
    Store *s = store_open(FIXTURES "tiny-picture-ddim-20.safetensors");
    size_t count = 0;
    float *x = read_fixture(s, "ids", "", &count);
    for (size_t i = 0; i < count && i < 2 * (size_t)tokens; i++) ids[i] = (int)x[i];
    free(x);
    store_close(s);
}

static Json *config(const char *arch, const char *part) {
    char *path = format("test/configs/%s/%s.json", arch, part);
    Json *j = json_load(path);
    free(path);
    return j;
}

static bool same_json(const Json *a, const Json *b) {
    if (!a || !b || a->kind != b->kind || a->length != b->length) return false;
    bool same = a->kind == JSON_STRING ? !strcmp(a->string, b->string) : a->number == b->number;
    for (size_t i = 0; same && a->kind >= JSON_ARRAY && i < a->length; i++)
        same = same_json(&a->items[i], a->kind == JSON_ARRAY ? &b->items[i] : json_get(b, a->items[i].key));
    return same;
}

// `sd synth` writes the very configuration from which the tiny fixtures were made.
static void tiny_configuration(void) {
    static const char *const parts[] = {"text_encoder", "unet", "vae", "scheduler"};
    const Architecture *a = architecture("tiny");
    const char *const ours[] = {a->text_encoder, a->unet, a->vae, a->scheduler};
    for (int i = 0; i < 4; i++) {
        Json *theirs = config("tiny", parts[i]), *j = json_parse(ours[i], strlen(ours[i]), parts[i]);
        check(same_json(j, theirs) && same_json(theirs, j), parts[i]);
        json_free(theirs), json_free(j);
    }
}

static void run_text(const char *arch, MadeRegime regime, Type type) {
    Json *j = config(arch, "text_encoder");
    TextConfig c = text_config(j);
    Params p = {0};
    TextEncoder *e = text_encoder_new(c, &p);
    made_params(&p, "", regime, type);
    int *ids = xmalloc(2 * (size_t)c.max_position_embeddings * sizeof *ids);
    token_rows(arch, ids, c.max_position_embeddings);
    Scope s = scope_begin();
    text_encode(e, ids, 2);
    scope_end(s, NULL);
    free(ids), text_encoder_free(e), params_free(&p), json_free(j);
}

// The first tokens of a caption alone have the states that they have in the whole: no token attends to a
// later one.
static void first_tokens(void) {
    enum { N = 2, FIRST = 5 };
    Json *j = config("tiny", "text_encoder");
    TextConfig c = text_config(j);
    Params p = {0};
    TextEncoder *e = text_encoder_new(c, &p);
    made_params(&p, "", MADE_SOFT, F32);
    int all = c.max_position_embeddings, width = c.hidden_size, first[N * FIRST];
    int *ids = xmalloc((size_t)(N * all) * sizeof *ids);
    token_rows("tiny", ids, all);
    for (int i = 0; i < N; i++) memcpy(first + i * FIRST, ids + i * all, sizeof *ids * FIRST);
    Scope s = scope_begin();
    float *whole = tensor_read(text_encode(e, ids, N)),
          *part = tensor_read(text_encode_first(e, first, N, FIRST));
    for (int i = 0; i < N; i++)
        check_close("the first five tokens alone", part + i * FIRST * width, whole + i * all * width,
                    (size_t)(FIRST * width), 1e-6);
    scope_end(s, NULL);
    free(whole), free(part), free(ids), text_encoder_free(e), params_free(&p), json_free(j);
}

static void run_unet(const char *arch, MadeRegime regime, Type type, int h, int w) {
    Json *j = config(arch, "unet"), *text = config(arch, "text_encoder");
    UNetConfig c = unet_config(j);
    Params p = {0};
    UNet *u = unet_new(c, &p);
    made_params(&p, "", regime, type);
    Scope s = scope_begin();
    unet(u, made_input("input.unet.sample", 2, 4, h, w, 1), (float[]){501, 21},
         made_context(2, text_config(text).max_position_embeddings, c.cross_attention_dim), NULL);
    scope_end(s, NULL);
    free(u), params_free(&p), json_free(j), json_free(text);
}

static void run_vae(const char *arch, MadeRegime regime, Type type, int size, bool decode) {
    Json *j = config(arch, "vae");
    Params p = {0};
    Vae *v = vae_new(vae_config(j), &p);
    made_params(&p, "", regime, type);
    Scope s = scope_begin();
    if (decode)
        vae_decode(v, made_input("input.vae.latents", 1, 4, size, size, 5));
    else
        vae_encode(v, made_input("input.vae.image", 1, 3, 8 * size, 8 * size, 0.4f));
    scope_end(s, NULL);
    free(v), params_free(&p), json_free(j);
}

// The project promises these tolerances. They are 100 times the rounding error of fp32 at such depths.
static void networks(const char *arch) {
    static const char *const parts[] = {"text_encoder", "unet", "vae.encoder", "vae.decoder"};
    int size = strcmp(arch, "tiny") ? 64 : 16;
    for (int hard = 0; hard < 2; hard++)
        for (int part = 0; part < 4; part++) {
            char *name = format("%s-%s-%s", arch, hard ? "hard" : "soft", parts[part]);
            Store *s = fixture(name);
            if (s) {
                MadeRegime regime = hard ? MADE_HARD : MADE_SOFT;
                trace_sink = collect;
                if (part == 0) run_text(arch, regime, F32);
                if (part == 1) run_unet(arch, regime, F32, size, size);
                if (part >= 2) run_vae(arch, regime, F32, size, part == 3);
                trace_sink = NULL;
                compare_blocks(name, s, hard, part ? 1e-4 : 2e-5);
                forget_blocks();
                store_close(s);
            }
            free(name);
        }
}

static void wide_unet(const char *arch, const char *name, int h, int w) {
    Store *s = fixture(name);
    if (!s) return;
    trace_sink = collect;
    run_unet(arch, MADE_SOFT, F32, h, w);
    trace_sink = NULL;
    compare_blocks(name, s, false, 1e-4);
    forget_blocks();
    store_close(s);
}

// The full-size networks on small pictures, for an emulated GPU: every kind of block at its real number of
// channels.
static void reduced(void) {
    wide_unet("sd15", "sd15-soft-unet-8x16", 8, 16);
    for (int decode = 0; decode < 2; decode++) {
        const char *name = decode ? "sd15-soft-vae.decoder-8x8" : "sd15-soft-vae.encoder-64x64";
        Store *s = fixture(name);
        if (!s) continue;
        trace_sink = collect;
        run_vae("sd15", MADE_SOFT, F32, 8, decode);
        trace_sink = NULL;
        compare_blocks(name, s, false, 1e-4);
        forget_blocks();
        store_close(s);
    }
}

// fp16 and bf16 weights convert to fp32 exactly: the only error is that of rounding the weights once.
static void half_weights(void) {
    Store *s = fixture("tiny-rounded-unet");
    if (!s) return;
    for (int i = 0; i < 2; i++) {
        size_t count = 0;
        float *want = read_fixture(s, i ? "bfloat16" : "float16", "", &count);
        trace_sink = collect;
        run_unet("tiny", MADE_SOFT, i ? BF16 : F16, 16, 16);
        trace_sink = NULL;
        check_close(i ? "UNet, bf16 weights" : "UNet, fp16 weights", blocks[block_count - 1].data, want,
                    count, 1e-4);
        forget_blocks();
        free(want);
    }
    store_close(s);
}

// ---- noise and schedulers ---------------------------------------------------------------------------------

static void noise(void) {
    Store *s = fixture("noise");
    if (!s) return;
    double worst = 0;
    for (int n = 1; n <= 65; n++) { // 65: 4 x 64 x 64
        char *name = n < 65 ? format("randn.%d", n) : xstrdup("randn.4x64x64");
        size_t count = 0, size = n < 65 ? (size_t)n : 16384;
        float *want = read_fixture(s, name, "", &count), *got = xmalloc(size * sizeof *got);
        Random r;
        random_seed(&r, n < 65 ? (uint64_t)n : 1234);
        for (int draw = 0; draw < 3; draw++) {
            random_normal(&r, got, size);
            size_t each = count / 3;
            if (n == 65) keep_largest(&worst, sampled_error(got, size, want + (size_t)draw * each, each, 1));
            for (size_t i = 0; n < 65 && i < each; i++)
                keep_largest(&worst, fabs((double)got[i] - want[(size_t)draw * each + i]));
        }
        free(want), free(got), free(name);
    }
    judge("noise of 1 to 64 values and of 4 x 64 x 64, three draws each", worst, 2e-6, 65);
    store_close(s);
}

// `--rng philox` is torch.randn on a GPU: curand's values in the order of PyTorch's kernel.
static void gpu_noise(void) {
    static const struct {
        uint64_t seed;
        size_t n;
    } cases[] = {{0, 1}, {1, 3}, {2, 64}, {1234, 16384}, {(1ull << 40) + 5, 16384}, {7, 1000000}};
    static const uint32_t zeros[4], ones[4] = {~0u, ~0u, ~0u, ~0u},
                                    pi[4] = {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                                    more_pi[2] = {0xa4093822, 0x299f31d0};
    static const uint32_t known[3][4] = {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
                                         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
                                         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}};
    uint32_t words[3][4];
    philox4x32(zeros, zeros, words[0]), philox4x32(ones, ones, words[1]), philox4x32(pi, more_pi, words[2]);
    check(!memcmp(words, known, sizeof known), "Philox 4x32-10 gives Random123's known answers");
    Store *s = fixture("philox");
    if (!s) return;
    double worst = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t n = cases[i].n, count = 0;
        char *name = format("randn.%llu.%zu", (unsigned long long)cases[i].seed, n);
        float *want = read_fixture(s, name, "", &count), *got = xmalloc(n * sizeof *got);
        Random r;
        random_seed_philox(&r, cases[i].seed);
        for (size_t draw = 0; draw < 3; draw++) {
            random_normal(&r, got, n);
            keep_largest(&worst,
                         want ? sampled_error(got, n, want + draw * (count / 3), count / 3, 1) : INFINITY);
        }
        free(want), free(got), free(name);
    }
    float near_zero[1], angle = (float)(6.283185307179586 * 30.5 / 4294967296.0);
    Random r;
    random_seed_philox(&r, 118838085); // its second word is 30: curand's offset of half a step is felt
    random_normal(&r, near_zero, 1);
    float want = (float)(sqrt(-2 * log(3535391076.5 / 4294967296.0)) * sin((double)angle));
    check_close("noise of an angle near zero", near_zero, &want, 1, 1e-5);
    judge("noise of --rng philox, 1 to a million values, three draws each", worst, 2e-6, 6);
    store_close(s);
}

static void schedulers(void) {
    static const char *const names[] = {"pndm", "ddim", "lcm"};
    static const int counts[] = {1, 4, 20, 50};
    Store *s = fixture("schedulers");
    if (!s) return;
    for (int kind = PNDM; kind <= LCM; kind++)
        for (int i = 0; i < 4; i++) {
            Json *j = config(kind == LCM ? "sd15-lcm" : "sd15", "scheduler");
            Scheduler sampler;
            scheduler_init(&sampler, scheduler_config(j, kind));
            scheduler_set_timesteps(&sampler, counts[i]);
            char *name = format("%s.%d", names[kind], counts[i]);
            size_t steps = 0, count = 0;
            float *times = read_fixture(s, name, ".timesteps", &steps),
                  *want = read_fixture(s, name, ".latents", &count);
            bool same = steps == (size_t)sampler.count;
            for (int k = 0; same && k < sampler.count; k++) same = times[k] == (float)sampler.timesteps[k];
            check(same, "the timesteps are diffusers'");
            Scope all = scope_begin();
            Tensor *z = made_input("input.scheduler.sample", 1, 4, 4, 4, 1);
            Random r;
            random_seed(&r, 0);
            double worst = same ? 0 : INFINITY;
            for (int k = 0; same && k < sampler.count; k++) {
                char *input = format("input.scheduler.output.%d", k);
                Tensor *output = made_input(input, 1, 4, 4, 4, 1), *fresh = NULL;
                if (scheduler_wants_noise(&sampler)) {
                    float x[64];
                    random_normal(&r, x, 64);
                    float *nhwc = nchw_to_nhwc(x, 1, 4, 4, 4);
                    fresh = tensor_from(SHAPE(1, 4, 4, 4), nhwc);
                    free(nhwc);
                }
                z = scheduler_step(&sampler, z, output, fresh);
                float *x = tensor_read(z), *got = nhwc_to_nchw(x, 1, 4, 4, 4);
                keep_largest(&worst, max_error(got, want + 64 * k, 64, 1e-30));
                free(x), free(got), free(input);
            }
            scope_end(all, NULL);
            char *what = format("%s, each of %d steps", names[kind], counts[i]);
            judge(what, worst, 1e-5, sampler.count);
            free(what), free(name), free(times), free(want);
            scheduler_free(&sampler);
            json_free(j);
        }
    store_close(s);
}

// LCM's timesteps where its configuration is silent, and where the model was distilled at a single one.
static void lcm_timesteps(void) {
    static const char *const texts[] = {"{}", "{\"original_inference_steps\": 1}"};
    static const int steps[] = {4, 1}, want[2][4] = {{999, 759, 499, 259}, {999}};
    for (int i = 0; i < 2; i++) {
        Json *j = json_parse(texts[i], strlen(texts[i]), "a scheduler");
        Scheduler s;
        scheduler_init(&s, scheduler_config(j, LCM));
        scheduler_set_timesteps(&s, steps[i]);
        bool same = s.count == steps[i];
        for (int k = 0; same && k < s.count; k++) same = s.timesteps[k] == want[i][k];
        check(same, texts[i]);
        scheduler_free(&s), json_free(j);
    }
}

static jmp_buf refusal;
static void go_back(const char *message) { longjmp(refusal, strstr(message, "Runge-Kutta") ? 2 : 1); }

// 0 if the configuration is taken, 2 where PNDM's Runge-Kutta steps are the reason, else 1.
static int refused(const char *text, int scheduler) {
    Json *j = json_parse(text, strlen(text), "a configuration");
    die_hook = go_back;
    int said = setjmp(refusal);
    if (!said && scheduler >= 0) scheduler_config(j, scheduler);
    if (!said && scheduler < 0) unet_config(j), vae_config(j);
    die_hook = NULL;
    json_free(j);
    return said;
}

static void configurations(void) {
    check(refused("{}", PNDM) == 2, "PNDMScheduler begins with Runge-Kutta steps unless it is told not to");
    check(!refused("{\"num_train_timesteps\": 100000}", DDIM), "100,000 timesteps");
    check(refused("{\"num_train_timesteps\": 100001}", DDIM), "no more than 100,000");
    check(refused("{\"num_train_timesteps\": 0}", DDIM), "at least one");
    static const char *const levels[] = {"32", "[]", "[32, 32, 32, 32, 32, 32, 32, 32, 32]", "[0]", "\"32\""};
    for (int i = 0; i < 5; i++) {
        char *text = format("{\"block_out_channels\": %s}", levels[i]);
        check(refused(text, -1), text);
        free(text);
    }
}

// ---- the whole pipeline -----------------------------------------------------------------------------------

// The tiny model of `sd synth` has bytes as tokens, Stable Diffusion CLIP's vocabulary.
static Tokenizer *tokenizer_of(const char *arch) {
    char dir[] = "/tmp/sd-tokens-XXXXXX";
    if (strcmp(arch, "tiny")) return is_directory(CLIP) ? tokenizer_open(CLIP) : NULL;
    if (!mkdtemp(dir)) die("cannot make a folder under /tmp");
    tokenizer_train(dir, NULL, 0, 514, 32);
    Tokenizer *t = tokenizer_open(dir);
    char *remove = format("rm -r %s", dir);
    if (system(remove)) die("cannot remove %s", dir);
    free(remove);
    return t;
}

static void collect_latents(const char *name, const Tensor *t) {
    if (!strcmp(name, "latents")) collect(name, t);
}

static void collect_ends(const char *name, const Tensor *t) {
    if (!strcmp(name, "inputs.latents") || !strcmp(name, "latents")) collect(name, t);
}

// 99.9 % of the 8-bit values are within 1: of all of a small picture, of samples of a large one.
static void compare_pictures(const char *name, const Image *image, const float *want, size_t count) {
    size_t far = 0, n = 3 * (size_t)image->width * (size_t)image->height;
    double sum = 0, square = 0;
    for (size_t k = 0; k < count; k++) {
        double got = image->rgb[count == n ? k : (k * 2654435761u + 12345) % n];
        far += !(fabs(got - want[k]) <= 1);
        sum += got, square += got * got;
    }
    sum /= (double)count;
    double deviation = sqrt(square / (double)count - sum * sum);
    char *what =
        format("%s: fraction of 8-bit values more than 1 off (standard deviation %.0f)", name, deviation);
    judge(what, count ? (double)far / (double)count : 1, 1e-3, (int)count);
    check(deviation >= 30, "the picture has contrast enough to show a mistake");
    free(what);
}

// A whole picture with made weights, seed 0, guidance 7.5.
static void picture(const char *arch, SchedulerKind kind, int steps, const char *prompt) {
    char *name = format("%s-picture-%s-%d", arch, samplers[kind].name, steps);
    Store *s = fixture(name);
    Model m = {.tokenizer = tokenizer_of(arch)};
    if (s && !m.tokenizer) skip(name, "CLIP's merges are not at hand (../shared/data/clip)");
    if (s && m.tokenizer) {
        Json *text = config(arch, "text_encoder"), *net = config(arch, "unet"), *vae = config(arch, "vae");
        m.text_config = text_config(text), m.unet_config = unet_config(net), m.vae_config = vae_config(vae);
        m.scheduler_json = config(arch, "scheduler");
        m.text_encoder = text_encoder_new(m.text_config, &m.params);
        m.unet = unet_new(m.unet_config, &m.params);
        m.vae = vae_new(m.vae_config, &m.params);
        made_params(&m.params, "", MADE_SOFT, F32);
        SampleOptions o = sample_defaults(&m);
        o.prompt = prompt, o.steps = steps, o.scheduler = kind, o.cfg = 7.5f, o.progress = false;
        trace_sink = collect_latents;
        Image *image = sample(&m, o, NULL);
        trace_sink = NULL;
        size_t count = 0, n = 0;
        float *want = read_fixture(s, "picture", "", &count), *latents = read_fixture(s, "latents", "", &n);
        check(block_count == 1 && blocks[0].count == n, "the latents have their size");
        check_close(name, blocks[0].data, latents, n, 1e-3);
        compare_pictures(name, image, want, count);
        free(want), free(latents);
        forget_blocks();
        image_free(image);
        json_free(text), json_free(net), json_free(vae), json_free(m.scheduler_json);
        text_encoder_free(m.text_encoder), free(m.unet), free(m.vae), params_free(&m.params);
    }
    if (m.tokenizer) tokenizer_close(m.tokenizer);
    if (s) store_close(s);
    free(name);
}

// A whole model with made weights, in the size of the tests.
static Model *small_model(const char *name) {
    const Architecture *a = architecture(name);
    Json *text = json_parse(a->text_encoder, strlen(a->text_encoder), name),
         *net = json_parse(a->unet, strlen(a->unet), name), *vae = json_parse(a->vae, strlen(a->vae), name);
    Model *m = xcalloc(1, sizeof *m);
    m->tokenizer = tokenizer_of("tiny"), m->path = xstrdup(name);
    m->scheduler_json = json_parse(a->scheduler, strlen(a->scheduler), name);
    m->text_config = text_config(text), m->unet_config = unet_config(net), m->vae_config = vae_config(vae);
    m->text_encoder = text_encoder_new(m->text_config, &m->params);
    m->unet = unet_new(m->unet_config, &m->params), m->vae = vae_new(m->vae_config, &m->params);
    made_params(&m->params, "", MADE_SOFT, F32);
    json_free(text), json_free(net), json_free(vae);
    return m;
}

// Where image-to-image begins: z_T = sqrt(a) scale (mu + sigma n_1) + sqrt(1 - a) n_2 at the first timestep
// that remains, n_1 and n_2 from one generator in this order. 2 of 4 steps remain at a strength of 0.5.
static void image_to_image(void) {
    Model *m = small_model("tiny");
    m->vae_config.scaling_factor = 0.3f; // the tiny model's own is 1
    enum { SIDE = 64, COUNT = 4 * 8 * 8 };
    Image *picture = image_new(SIDE, SIDE);
    for (int i = 0; i < 3 * SIDE * SIDE; i++) picture->rgb[i] = (unsigned char)(i * 37 % 251);
    SampleOptions o = sample_defaults(m);
    o.prompt = "a", o.width = o.height = SIDE, o.steps = 4, o.scheduler = DDIM, o.progress = false,
    o.seed = 5;
    o.init = picture, o.strength = 0.5;
    trace_sink = collect_ends;
    Image *drawn = sample(m, o, NULL);
    trace_sink = NULL;
    Scheduler s;
    scheduler_init(&s, scheduler_config(m->scheduler_json, DDIM));
    scheduler_set_timesteps(&s, 4);
    double a = (double)s.alphas_cumprod[(int)s.timesteps[2]];
    float first[COUNT], second[COUNT], want[COUNT];
    Random r;
    random_seed(&r, 5), random_normal(&r, first, COUNT), random_normal(&r, second, COUNT);
    Scope scope = scope_begin();
    float *x = tensor_read(vae_encode(m->vae, image_to_tensor((const Image *const[]){picture}, 1)));
    float *moments = nhwc_to_nchw(x, 1, 8, 8, 8);
    scope_end(scope, NULL);
    for (int i = 0; i < COUNT; i++) {
        double latent = moments[i] + exp(moments[COUNT + i] / 2.0) * first[i];
        want[i] = (float)(sqrt(a) * (double)m->vae_config.scaling_factor * latent + sqrt(1 - a) * second[i]);
    }
    check(block_count == 2 && blocks[0].count == COUNT, "there is a start and an end");
    check_close("image-to-image begins at", blocks[0].data, want, COUNT, 1e-5);
    for (int i = 0; i < COUNT; i++) want[i] = blocks[1].data[i] / m->vae_config.scaling_factor;
    float *last = nchw_to_nhwc(want, 1, 4, 8, 8);
    scope = scope_begin();
    Image *decoded = tensor_to_image(vae_decode(m->vae, tensor_from(SHAPE(1, 8, 8, 4), last)), 0);
    scope_end(scope, NULL);
    int far = 0;
    for (int i = 0; i < 3 * SIDE * SIDE; i++) {
        int off = drawn->rgb[i] - decoded->rgb[i];
        far += off * off > 1;
    }
    check(far == 0, "the picture is what the VAE makes of the latents by the scaling factor");
    forget_blocks();
    free(x), free(moments), free(last), scheduler_free(&s);
    image_free(picture), image_free(drawn), image_free(decoded);
    model_free(m);
}

// A full LCM takes its guidance scale as an input: w = scale - 1, beside one evaluation without a second
// batch.
static void collect_first(const char *name, const Tensor *t) {
    if (!strcmp(name, "inputs.latents") || !strcmp(name, "text_encoder") || !strcmp(name, "unet.conv_out"))
        collect(name, t);
}
static void embedded_guidance(void) {
    Model *m = small_model("tiny-lcm");
    SampleOptions o = sample_defaults(m);
    check(
        o.steps == 4 && o.cfg == 8.5f && o.width == 8 * m->unet_config.sample_size && o.height == o.width,
        "a full LCM draws in 4 steps, at the middle of its guidance scales, in the size that it was made for");
    o.prompt = "a", o.width = o.height = 64, o.steps = 1, o.cfg = 6, o.progress = false;
    trace_sink = collect_first;
    image_free(sample(m, o, NULL));
    trace_sink = NULL;
    check(block_count == 3, "one evaluation for one step");
    Scope scope = scope_begin();
    float *z = nchw_to_nhwc(blocks[1].data, 1, 4, 8, 8), w = 5, t = 999;
    Tensor *out = unet(m->unet, tensor_from(SHAPE(1, 8, 8, 4), z), &t,
                       tensor_from(SHAPE(1, 32, 128), blocks[0].data), &w);
    float *want = tensor_read(out), *got = nchw_to_nhwc(blocks[2].data, 1, 4, 8, 8);
    check_close("the output of a full LCM at the guidance scale 6", got, want, 256, 1e-6);
    scope_end(scope, NULL);
    free(z), free(got), free(want);
    forget_blocks();
    model_free(m);
}

// Pictures of 8 bits: -1 is 0, 1 is 255, what lies beyond is cut, and halves are rounded to even.
static void eight_bits(void) {
    static const float x[] = {-1,           1, 0, -1.5f, 1.5f, 0.5f / 127.5f, -0.4f / 127.5f, 126.4f / 127.5f,
                              1.4f / 127.5f};
    static const unsigned char want[] = {0, 255, 128, 0, 255, 128, 127, 254, 129};
    Scope s = scope_begin();
    Image *image = tensor_to_image(tensor_from(SHAPE(1, 1, 3, 3), x), 0);
    check(image->width == 3 && image->height == 1 && !memcmp(image->rgb, want, 9), "values become 8 bits");
    float *back = tensor_read(image_to_tensor((const Image *const[]){image}, 1));
    double worst = 0;
    for (int i = 0; i < 9; i++) keep_largest(&worst, fabs(back[i] - (want[i] / 127.5 - 1)));
    check(worst <= 1e-6, "and 8 bits values");
    image_free(image), free(back);
    scope_end(s, NULL);
}

// The built-in configurations are those of the published models.
static void architectures(void) {
    static const struct {
        const char *name;
        size_t unet, text, vae; // parameters; PyTorch's counts
    } known[] = {{"sd15", 859520964, 123060480, 83653863}, {"sd15-lcm", 859602884, 123060480, 83653863}};
    for (int i = 0; i < 2; i++) {
        const Architecture *a = architecture(known[i].name);
        Json *net = json_parse(a->unet, strlen(a->unet), ""), *vae = json_parse(a->vae, strlen(a->vae), ""),
             *text = json_parse(a->text_encoder, strlen(a->text_encoder), "");
        Params p[3] = {0};
        free(unet_new(unet_config(net), &p[0])), free(vae_new(vae_config(vae), &p[2]));
        text_encoder_free(text_encoder_new(text_config(text), &p[1]));
        printf("        %s: %zu, %zu and %zu parameters\n", a->name, params_count(&p[0]), params_count(&p[1]),
               params_count(&p[2]));
        check(params_count(&p[0]) == known[i].unet && params_count(&p[1]) == known[i].text &&
                  params_count(&p[2]) == known[i].vae,
              "it has the published model's number of parameters");
        for (int k = 0; k < 3; k++) params_free(&p[k]);
        json_free(net), json_free(vae), json_free(text);
    }
    static const char *const names[] = {"sd15", "sd15-lcm", "tiny", "tiny-lcm"};
    for (int i = 0; i < 4; i++) {
        const char *index = architecture(names[i])->model_index;
        check((strstr(index, "_sd_defaults") != NULL) == (i == 2),
              "the tiny model alone has its own defaults");
    }
    check(!architecture("sd16"), "no other is known");
}

// What model_index.json says of steps and guidance, under today's name and the one of older models.
// What the VAE of Stable Diffusion needs beside its weights, by a dry run: a 512 x 512 picture, a 1024 x
// 1024.
static void vae_memory(void) {
    const Architecture *a = architecture("sd15");
    Json *config = json_parse(a->vae, strlen(a->vae), "");
    Params params = {0};
    Vae *vae = vae_new(vae_config(config), &params);
    for (int side = 512; side <= 1024; side *= 2)
        for (int decode = 0; decode < 2; decode++) {
            dry_begin(false);
            Scope s = scope_begin();
            if (decode)
                vae_decode(vae, tensor_new(SHAPE(1, side / 8, side / 8, 4)));
            else
                vae_encode(vae, tensor_new(SHAPE(1, side, side, 3)));
            scope_end(s, NULL);
            double used = (double)dry_end().scratch / 1e6, allowed = side == 512 ? 700 : 2200;
            printf("        %s of %d x %d: %.0f MB of scratch memory\n", decode ? "decode" : "encode", side,
                   side, used);
            check(strncmp(backend.name(), "cpu", 3) || used <= allowed, "at most 700 MB, 2.2 GB");
        }
    free(vae), params_free(&params), json_free(config);
}

static void own_defaults(void) {
    static const char *const texts[] = {"{\"_sd_defaults\": {\"steps\": 7, \"guidance_scale\": 3}}",
                                        "{\"sd_defaults\": {\"steps\": 7, \"guidance_scale\": 3}}",
                                        "{\"sd_defaults\": {\"steps\": 9}, \"_sd_defaults\": {\"steps\": 7, "
                                        "\"guidance_scale\": 3}}"};
    for (int i = 0; i < 3; i++) {
        Model m = {.index_json = json_parse(texts[i], strlen(texts[i]), "the index")};
        SampleOptions o = sample_defaults(&m);
        check(o.steps == 7 && o.cfg == 3, "a model's own defaults");
        json_free(m.index_json);
    }
    check(sample_defaults(&(Model){0}).steps == 50, "50 steps where it has none");
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    backend_init(0);
    if (getenv("REDUCED")) { // for kernels that are slow
        reduced();
        return test_report();
    }
    tiny_configuration();
    own_defaults();
    noise();
    gpu_noise();
    schedulers();
    lcm_timesteps();
    configurations();
    networks("tiny");
    first_tokens();
    wide_unet("tiny", "tiny-soft-unet-5x9", 5, 9); // odd at every level
    half_weights();
    picture("tiny", PNDM, 20, "a child in a pink dress");
    picture("tiny", DDIM, 20, "a child in a pink dress");
    picture("tiny", LCM, 4, "a child in a pink dress");
    picture("tiny", EULER_ANCESTRAL, 6, "a child in a pink dress"); // scales its latents, and draws noise
    image_to_image();
    embedded_guidance();
    eight_bits();
    architectures();
    vae_memory();
    if (full_size("Stable Diffusion v1.5")) {
        networks("sd15");
        wide_unet("sd15", "sd15-soft-unet-48x80", 48, 80);
        picture("sd15", PNDM, 20, "A child in a pink dress is climbing up a set of stairs in an entry way .");
        picture("sd15-lcm", LCM, 4,
                "A black dog and a tri-colored dog playing with each other on the road .");
        reduced();
    }
    return test_report();
}
