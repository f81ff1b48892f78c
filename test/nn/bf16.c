// bf16.c: products whose operands are rounded to bf16 (`sd sample --dtype bf16`). cpu/fast.c is compiled
// twice more for it, with functions in place of the instructions of AVX512_BF16 and of AMX (vector.h), so
// that every processor tests what is built on them; one that has them tests its own tables, too.
//   1. products, convolutions and attention beside their definition, given operands that were rounded before
//   2. the same bits in bands, and with one thread or two
//   3. a picture of the tiny model beside the one in fp32
#define _DEFAULT_SOURCE // mkdtemp, for files.h
#include "cli/model_folder.h"
#include "cpu/cpu.h"
#include "lib/io/io.h"
#include "test/io/files.h"
#include "weights/toy/made.h"

extern const Backend emulated, emulated_tiles; // fast.c
static const Backend *table;                   // under test
static bool tiles;                             // it multiplies tiles
static Random source;

static float *normal(size_t count) {
    float *x = xmalloc((count + 1) * sizeof *x);
    random_normal(&source, x, count);
    return x;
}
// What the product sees of it.
static float *rounded(const float *x, size_t count, float factor) {
    float *y = xmalloc((count + 1) * sizeof *y);
    for (size_t i = 0; i < count; i++) y[i] = bf16_to_f32(f32_to_bf16(x[i] * factor)) / factor;
    return y;
}
static void *stored(const float *x, size_t count, Type type) {
    uint16_t *y = xmalloc((count + 1) * sizeof *y);
    for (size_t i = 0; i < count; i++) y[i] = type == BF16 ? f32_to_bf16(x[i]) : f32_to_f16(x[i]);
    return y;
}
#define FP32(x) ((Mem){x, F32})

static void test_products(void) {
    static const struct {
        int m, n, k;
        Type weight;
    } cases[] = {{1, 1, 1, F32},       {3, 5, 7, F32},       {77, 96, 33, F16},     {8, 48, 255, BF16},
                 {64, 49, 257, F32},   {361, 130, 100, F32}, {1000, 17, 511, BF16}, {800, 320, 320, F16},
                 {90, 130, 2600, F16}, {600, 35, 64, F32},   {700, 16, 1290, BF16}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int way = 0; way < 4; way++) {
            Gemm g = {cases[i].m, cases[i].n, cases[i].k, way & 1, way & 2, way == 3, 0.5f};
            size_t mk = (size_t)(g.m * g.k), kn = (size_t)(g.k * g.n), mn = (size_t)(g.m * g.n);
            float *a = normal(mk), *b = normal(kn), *bias = normal((size_t)g.n), *c = normal(mn),
                  *want = xmalloc(mn * 4);
            void *half = stored(b, kn, cases[i].weight);
            for (size_t j = 0; j < kn && cases[i].weight == F16; j++)
                b[j] = f16_to_f32(((uint16_t *)half)[j]);
            memcpy(want, c, mn * 4);
            float *ra = rounded(a, mk, 1), *rb = rounded(b, kn, 1);
            plain.gemm(FP32(want), FP32(ra), FP32(rb), FP32(bias), (Mem){0}, g);
            table->gemm(FP32(c), FP32(a), cases[i].weight == F32 ? FP32(b) : (Mem){half, cases[i].weight},
                        FP32(bias), (Mem){0}, g);
            char what[99];
            snprintf(what, sizeof what, "product %d x %d x %d, way %d", g.m, g.n, g.k, way);
            check_close(what, c, want, mn, 1e-5);
            free(a), free(b), free(bias), free(c), free(want), free(half), free(ra), free(rb);
        }
}

// 3x3 convolutions of many tiles are Winograd's, and stay in fp32, where the processor does not multiply
// tiles.
static void test_convolutions(void) {
    static const struct {
        Conv p;
        bool winograd;
    } cases[] = {{{2, 9, 7, 5, 9, 7, 6, 1, 1, 1, 0, 0}, false},
                 {{1, 8, 8, 48, 8, 8, 32, 3, 3, 1, 1, 1}, false},
                 {{1, 13, 11, 3, 13, 11, 17, 3, 3, 1, 1, 1}, false},
                 {{1, 16, 16, 32, 8, 8, 48, 3, 3, 2, 1, 1}, false},
                 {{1, 32, 32, 64, 32, 32, 4, 3, 3, 1, 1, 1}, false},
                 {{3, 6, 10, 32, 6, 10, 19, 3, 3, 1, 1, 1}, false},
                 {{2, 5, 33, 96, 5, 33, 50, 3, 3, 1, 1, 1}, false},
                 {{1, 1, 1, 1440, 1, 1, 3, 3, 3, 1, 1, 1}, false},
                 {{2, 9, 9, 64, 7, 9, 5, 3, 3, 1, 0, 1}, false},
                 {{1, 16, 16, 32, 16, 16, 48, 3, 3, 1, 1, 1}, true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Conv p = cases[i].p;
        size_t nx = (size_t)(p.n * p.h * p.w * p.c), nw = (size_t)(p.oc * p.kh * p.kw * p.c),
               ny = (size_t)(p.n * p.oh * p.ow * p.oc);
        float *x = normal(nx), *w = normal(nw), *y = normal(ny), *want = normal(ny),
              *bias = normal((size_t)p.oc);
        float *rx = rounded(x, nx, 1), *rw = rounded(w, nw, 1);
        bool fp32 = cases[i].winograd && !tiles;
        plain.conv2d(FP32(want), FP32(fp32 ? x : rx), FP32(fp32 ? w : rw), FP32(bias), (Mem){0}, p);
        table->conv2d(FP32(y), FP32(x), FP32(w), FP32(bias), (Mem){0}, p);
        char what[99];
        snprintf(what, sizeof what, "convolution %d x %d, %d to %d channels, kernel %d, stride %d", p.h, p.w,
                 p.c, p.oc, p.kh, p.stride);
        check_close(what, y, want, ny, 1e-5);
        free(x), free(w), free(y), free(want), free(bias), free(rx), free(rw);
    }
}

// Sums of exponentials tell whether queries and keys were rounded. Probabilities are rounded, too: each by
// 2^-9 at most, at random; a single one is 1.
static void test_attention(void) {
    static const Attention cases[] = {
        {1, 1, 1, 1, 1, 1, false},          {2, 3, 17, 77, 12, 0.3f, false},
        {1, 2, 300, 301, 40, 0.16f, false}, {1, 1, 100, 129, 33, 0.2f, false},
        {2, 2, 77, 77, 64, 0.125f, true},   {1, 1, 400, 1200, 300, 0.05f, false},
        {1, 2, 500, 500, 20, 0.2f, true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Attention p = cases[i];
        size_t width = (size_t)(p.heads * p.d), nq = (size_t)(p.n * p.tq) * width,
               nk = (size_t)(p.n * p.tk) * width;
        float *q = normal(nq), *k = normal(nk), *v = normal(nk), *o = normal(nq), *want = normal(nq);
        size_t sums = (size_t)(p.n * p.heads * p.tq);
        float *lse = normal(sums), *lse_want = normal(sums);
        float *rq = rounded(q, nq, p.scale * 1.44269504f), *rk = rounded(k, nk, 1), *rv = rounded(v, nk, 1);
        plain.attention(FP32(want), lse_want, FP32(rq), FP32(rk), FP32(rv), p);
        table->attention(FP32(o), lse, FP32(q), FP32(k), FP32(v), p);
        char what[99];
        snprintf(what, sizeof what, "attention %d x %d, heads of %d", p.tq, p.tk, p.d);
        check_close(what, o, want, nq, p.tk == 1 ? 1e-6 : 4e-3);
        check_close("  its sums", lse, lse_want, sums, 1e-5);
        free(lse), free(lse_want), free(q), free(k), free(v), free(o), free(want), free(rq), free(rk),
            free(rv);
    }
}

// With weights of every type and something to add; the two pictures are two bands each.
static void test_bands(void) {
    const Conv p = {2, 300, 264, 32, 300, 264, 17, 3, 3, 1, 1, 1};
    size_t half = (size_t)2 * 150 * 132 * 32, nx = 4 * half, nw = 17 * 9 * 32,
           ny = (size_t)2 * 300 * 264 * 17;
    float *x = normal(half), *up = normal(nx), *w = normal(nw), *bias = normal(17), *y = normal(ny);
    float *want = normal(ny), *residual = normal(ny), *sum = normal(ny);
    void *w16 = stored(w, nw, F16);
    table->upsample(FP32(up), FP32(x), 2, 150, 132, 32);
    for (size_t i = 0; i < nw; i++) w[i] = f16_to_f32(((uint16_t *)w16)[i]);
    table->conv2d(FP32(want), FP32(up), FP32(w), FP32(bias), (Mem){0}, p);
    table->conv2d_upsampled(FP32(y), FP32(x), (Mem){w16, F16}, FP32(bias), p);
    check(!memcmp(y, want, ny * 4), "an upsampled picture, weights in fp16");
    table->conv2d(FP32(sum), FP32(up), FP32(w), FP32(bias), FP32(residual), p);
    for (size_t i = 0; i < ny; i++) want[i] += residual[i];
    check_close("a picture with a residual", sum, want, ny, 1e-6);
    up[nx / 2] = NAN; // pixel (0, 0) of the second picture, seen by four
    table->conv2d(FP32(y), FP32(up), FP32(w), FP32(bias), (Mem){0}, p);
    size_t bad = 0;
    for (size_t i = 0; i < ny; i++) bad += isnan(y[i]) != 0;
    check(bad == 4 * 17, "a NaN reaches the pixels that see it, and no other");
    free(x), free(up), free(w), free(bias), free(y), free(want), free(residual), free(sum), free(w16);
}

// A picture of several bands has the bits of a group norm and a convolution one after the other, with one
// thread, two or four; so have products and attention.
static void test_same_bits(void) {
    const Conv p = {1, 264, 264, 32, 264, 264, 4, 3, 3, 1, 1, 1};
    const GroupNorm norm = {1, 264 * 264, 32, 8, 1e-5f, true};
    const Attention a = {1, 3, 130, 500, 32, 0.2f, false};
    const Gemm g = {700, 100, 1500, false, true, false, 1};
    size_t nx = (size_t)264 * 264 * 32, nw = 4 * 9 * 32, ny = (size_t)264 * 264 * 4, bytes = ny * 4;
    float *x = normal(nx), *normed = normal(nx), *w = normal(nw), *gamma = normal(32), *want = normal(ny);
    float *y = normal(ny), *stats = normal(16), *attended[3], *product[3];
    table->group_norm(FP32(normed), stats, FP32(x), FP32(gamma), FP32(gamma), norm);
    table->conv2d(FP32(want), FP32(normed), FP32(w), (Mem){0}, (Mem){0}, p);
    for (int i = 0; i < 3; i++) {
        backend_init(1 << i);
        table->conv2d_normed(FP32(y), FP32(x), FP32(gamma), FP32(gamma), norm, FP32(w), (Mem){0}, (Mem){0},
                             p);
        check(!memcmp(y, want, bytes), "bands");
        attended[i] = normal(130 * 96), product[i] = normal(700 * 100);
        table->attention(FP32(attended[i]), NULL, FP32(x), FP32(x + 20000), FP32(x + 80000), a);
        table->gemm(FP32(product[i]), FP32(x), FP32(x + 1050000), (Mem){0}, (Mem){0}, g);
    }
    for (int i = 1; i < 3; i++) {
        check(!memcmp(attended[0], attended[i], 130 * 96 * 4), "attention");
        check(!memcmp(product[0], product[i], 700 * 100 * 4), "a product");
    }
    for (int i = 0; i < 3; i++) free(attended[i]), free(product[i]);
    backend_init(2);
    free(x), free(normed), free(w), free(gamma), free(want), free(y), free(stats);
}

// The same picture, whose every number went another way.
static void test_pictures(void) {
    Model *m = model_load("weights/tiny", NULL, NEED_ALL);
    SampleOptions o = sample_defaults(m);
    o.prompt = "a dog runs in the park at night", o.steps = 8;
    SampleTimes t;
    Image *want = sample(m, o, &t);
    const Backend usual = backend;
    backend = *table;
    cpu_memory(&backend);
    Image *got = sample(m, o, &t);
    backend = usual;
    size_t n = (size_t)(want->width * want->height * 3);
    double sum = 0, largest = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)want->rgb[i] - got->rgb[i]);
        sum += d, keep_largest(&largest, d);
    }
    printf("picture: of 255, %.2f apart on average, %.0f at most\n", sum / (double)n, largest);
    check(sum > 0 && sum / (double)n < 2, "a picture in bf16 is nearly the one in fp32");
    image_free(want), image_free(got);
    model_free(m);
}

static const Stored *find_in_store(void *store, const char *name) { return store_find(store, name); }

// Weights that are multiplied are read as bf16 where all products round to it: the same results, and what
// adapters add is not lost beside them.
static void test_weights(void) {
    const Backend usual = backend;
    folder_begin();
    Params p = {0};
    Layer *conv = layer_conv(&p, 32, 20, 3, 3, true, "unet.conv"),
          *thin = layer_linear(&p, 30, 25, true, "unet.thin");
    Layer *norm = layer_norm_params(&p, 32, "unet.norm");
    Tensor *looked_up = param_tensor(&p, SHAPE(50, 32), "unet.embedding.weight");
    made_params(&p, "", MADE_SOFT, F32);
    params_save(&p, in_folder("w.safetensors"), 0, F32, NULL, NULL);
    float *w = param_read(conv->weight), *v = param_read(thin->weight), *e = param_read(looked_up);
    backend = *table;
    cpu_memory(&backend);
    float *x = normal(40 * 30), *with[2];
    Params of_adapter = {0};
    Adapter a = {param_tensor(&of_adapter, SHAPE(4, 30), "down"),
                 param_tensor(&of_adapter, SHAPE(25, 4), "up"), 1e-5f, NULL};
    made_params(&of_adapter, "", MADE_SOFT, F32);
    for (int i = 0; i < 2; i++) {
        backend.weights = i ? BF16 : F32;
        Store *store = store_open(in_folder("w.safetensors"));
        params_load(&p, find_in_store, store, "w.safetensors");
        store_close(store);
        Scope s = scope_begin();
        Tensor *in = tensor_new(SHAPE(40, 30)), *y[2];
        tensor_write(in, x);
        for (int j = 0; j < 2; j++) thin->adapters = j ? &a : NULL, y[j] = linear(in, thin);
        float *without = tensor_read(y[0]), *adapted = tensor_read(y[1]);
        for (int j = 0; j < 40 * 25; j++) adapted[j] -= without[j];
        if (i) {
            check(conv->weight->type == BF16 && thin->weight->type == BF16, "weights are read as bf16");
            check(norm->weight->type == F32 && conv->bias->type == F32 && looked_up->type == F32,
                  "norms, biases and embeddings are not");
            float *got = param_read(conv->weight), *got2 = param_read(thin->weight),
                  *got3 = param_read(looked_up);
            size_t wrong = memcmp(got3, e, 50 * 32 * 4) != 0;
            for (int j = 0; j < 20 * 32 * 9; j++) wrong += got[j] != bf16_to_f32(f32_to_bf16(w[j]));
            for (int j = 0; j < 25 * 30; j++) wrong += got2[j] != bf16_to_f32(f32_to_bf16(v[j]));
            check(!wrong, "and each is rounded");
            free(got), free(got2), free(got3);
        }
        with[i] = adapted, free(without);
        thin->adapters = NULL;
        scope_end(s, NULL);
    }
    // What is added is about 1e-5, beside products of 1, each of whose weights keeps 8 bits.
    Scope s = scope_begin();
    Tensor *in = tensor_new(SHAPE(40, 30));
    tensor_write(in, x);
    backend = usual;
    Tensor *low = matmul(in, a.down, true, 1), *added = matmul(low, a.up, true, a.scale);
    float *want = tensor_read(added);
    check_close("adapters beside weights in bf16", with[1], want, 40 * 25, 0.1);
    free(want);
    scope_end(s, NULL);
    params_unload(&p), params_free(&p), params_unload(&of_adapter), params_free(&of_adapter);
    free(w), free(v), free(e), free(x), free(with[0]), free(with[1]);
    folder_end();
}

static void test_table(const char *name, const Backend *tested) {
    printf("%s\n", name);
    tiles = strstr(name, "tiles") || strstr(name, "amx");
    table = tested;
    random_seed(&source, 1);
    test_products();
    test_convolutions();
    test_attention();
    test_bands();
    test_same_bits();
    if (tiles) test_weights();
    test_pictures();
}

int main(void) {
    backend_init(2);
    test_table("emulated", &emulated);
    test_table("emulated tiles", &emulated_tiles);
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512bf16")) {
        setenv("SD_ISA", "avx512_bf16", 1);
        backend_init(2);
        Backend own = backend;
        unsetenv("SD_ISA");
        test_table("avx512_bf16", &own);
        backend_dtype(BF16);
        own = backend;
        bool has_tiles = strstr(own.name(), "amx_bf16") != NULL;
        check(strstr(own.name(), "bf16") != NULL, "--dtype bf16 has a table of its own");
        backend_dtype(F32);
        check(!strstr(backend.name(), "bf16"), "--dtype f32 leaves it");
        if (has_tiles)
            test_table("amx_bf16", &own);
        else
            skip("the processor's own products of tiles", "it has none");
        return test_report();
    }
#endif
    skip("the processor's own products of bf16", "it has none");
    CHECK_DIES("--dtype bf16", "has no products of bf16", backend_dtype(BF16));
    return test_report();
}
