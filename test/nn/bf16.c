// bf16.c: products whose operands are rounded to bf16 (`sd sample --dtype bf16`). cpu/fast.c is compiled once
// more for it, with functions in place of the instructions of AVX512_BF16 (vector.h), so that every processor
// tests what is built on them; one that has them tests its own table, too.
//   1. products, convolutions and attention beside their definition, given operands that were rounded before
//   2. a picture of the tiny model beside the one in fp32
#define _DEFAULT_SOURCE // mkdtemp, for files.h
#include "cli/model_folder.h"
#include "cpu/cpu.h"
#include "lib/io/io.h"
#include "test/io/files.h"

extern const Backend emulated; // fast.c
static const Backend *table;   // under test
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
    } cases[] = {{1, 1, 1, F32},     {3, 5, 7, F32},       {77, 96, 33, F16},     {8, 48, 255, BF16},
                 {64, 49, 257, F32}, {361, 130, 100, F32}, {1000, 17, 511, BF16}, {800, 320, 320, F16}};
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

// 3x3 convolutions of many tiles are Winograd's, and stay in fp32.
static void test_convolutions(void) {
    static const struct {
        Conv p;
        bool fp32;
    } cases[] = {{{2, 9, 7, 5, 9, 7, 6, 1, 1, 1, 0, 0}, false},
                 {{1, 8, 8, 48, 8, 8, 32, 3, 3, 1, 1, 1}, false},
                 {{1, 13, 11, 3, 13, 11, 17, 3, 3, 1, 1, 1}, false},
                 {{1, 16, 16, 32, 8, 8, 48, 3, 3, 2, 1, 1}, false},
                 {{1, 32, 32, 64, 32, 32, 4, 3, 3, 1, 1, 1}, false},
                 {{1, 16, 16, 32, 16, 16, 48, 3, 3, 1, 1, 1}, true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Conv p = cases[i].p;
        size_t nx = (size_t)(p.n * p.h * p.w * p.c), nw = (size_t)(p.oc * p.kh * p.kw * p.c),
               ny = (size_t)(p.n * p.oh * p.ow * p.oc);
        float *x = normal(nx), *w = normal(nw), *y = normal(ny), *want = normal(ny),
              *bias = normal((size_t)p.oc);
        float *rx = rounded(x, nx, 1), *rw = rounded(w, nw, 1);
        plain.conv2d(FP32(want), FP32(cases[i].fp32 ? x : rx), FP32(cases[i].fp32 ? w : rw), FP32(bias),
                     (Mem){0}, p);
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
        {2, 2, 77, 77, 64, 0.125f, true},   {1, 1, 400, 1200, 300, 0.05f, false}};
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

static void test_table(const char *name, const Backend *tested) {
    printf("%s\n", name);
    table = tested;
    random_seed(&source, 1);
    test_products();
    test_convolutions();
    test_attention();
    test_pictures();
}

int main(void) {
    backend_init(2);
    test_table("emulated", &emulated);
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512bf16")) {
        backend_dtype(BF16);
        Backend own = backend;
        check(strstr(own.name(), "bf16") != NULL, "--dtype bf16 has a table of its own");
        backend_dtype(F32);
        check(!strstr(backend.name(), "bf16"), "--dtype f32 leaves it");
        test_table(own.name(), &own);
        return test_report();
    }
#endif
    skip("the processor's own products of bf16", "it has none");
    CHECK_DIES("--dtype bf16", "has no products of bf16", backend_dtype(BF16));
    return test_report();
}
