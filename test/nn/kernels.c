// kernels.c: the linked kernels against their definition, cpu/plain.c, and both against PyTorch.
//   1. every kernel beside plain's on odd shapes, all weight types, all flags, present and absent operands
//   2. the linked kernels against values that PyTorch computed (test/fixtures/kernels.safetensors)
// Plain's own backward kernels are tested in differences.c.
// `backend.gemm` is the linked kernel, `plain.gemm` its definition. Where both are the same (SD_ISA=plain),
// part 1 tests this file only.
//
// Tolerances are relative to the largest value of an output. fp32: 1e-5, which is 170 roundings (2^-24 each);
// a sum of a few thousand terms in another order moves by less, a missing term by far more. A tolerance that
// is wider says why where it is used.
#define _POSIX_C_SOURCE 200809L // setenv
#include "lib/io/io.h"
#include "operands.h"

#include <stdarg.h>
#ifdef _OPENMP
#include <omp.h>
#endif

// ---- running and comparing -------------------------------------------------------------------------------

static char label[256]; // the case at hand, for messages
static void describe(const char *fmt, ...) PRINTF_LIKE(1, 2);
static void describe(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vsnprintf(label, sizeof label, fmt, args);
    va_end(args);
}

static Type storage; // of activations
// Tolerance for them. fp32: 1e-5; 16 bits: one rounding more or less of the largest value.
static const double fp32_rounding = 1e-5;
static double rounding;

static int cases;          // since the last report
static double worst_share; // largest error / tolerance among them
static char worst_label[256];

static void upload_all(void) {
    for (int i = 0; i < operand_count; i++)
        backend.upload(operands[i].backend, operands[i].host, operands[i].bytes);
}
static void download_all(int to) {
    for (int i = 0; i < operand_count; i++)
        backend.download(operands[i].result[to], operands[i].backend, operands[i].bytes);
}

static bool complain(const char *kernel, const Operand *o, const char *what) {
    printf("FAILED  %s %s: %s %s\n", kernel, label, o->name, what);
    return false;
}

static bool guards_whole(const Operand *o, const char *data) {
    for (int i = 0; i < GUARD; i++)
        if ((unsigned char)data[i] != o->guard || (unsigned char)data[o->bytes - 1 - i] != o->guard)
            return false;
    return true;
}

static void compare_all(const char *kernel, double tolerance) {
    bool ok = true;
    for (int i = 0; i < operand_count; i++) {
        const Operand *o = &operands[i];
        if (memcmp(o->result[0], o->result[1], o->bytes))
            ok = complain(kernel, o, "differs between 1 and 2 threads");
        if (!guards_whole(o, o->result[0]) || !guards_whole(o, o->host))
            ok = complain(kernel, o, "was written outside its bounds");
        if (!o->output) {
            if (memcmp(o->result[0], o->host, o->bytes))
                ok = complain(kernel, o, "is an input and was changed");
            continue;
        }
        double worst = 0, scale = 1e-30;
        for (size_t j = 0; j < o->count; j++) {
            double want = value_of(o->host, o->type, j), got = value_of(o->result[0], o->type, j);
            double d = fabs(got - want);
            if (got == want) d = 0; // infinities too
            if (!(d <= worst)) worst = isnan(d) ? INFINITY : d;
            if (fabs(want) > scale && isfinite(want)) scale = fabs(want);
        }
        // Inputs are the same on both sides, so an fp32 output owes nothing to the 16 bits of the others.
        double own =
            o->type == F32 && tolerance >= rounding ? tolerance / rounding * fp32_rounding : tolerance;
        double share = worst / scale / own;
        if (!(share <= 1)) {
            char what[100];
            snprintf(what, sizeof what, "is off by %.3g of its largest value, tolerance %.1e", worst / scale,
                     own);
            ok = complain(kernel, o, what);
        }
        if (share > worst_share) {
            worst_share = share;
            memcpy(worst_label, label, sizeof label);
        }
    }
    if (ok)
        tests_passed++;
    else
        tests_failed++;
    cases++;
}

// One line for all cases of a kernel since the last report.
static void report(const char *kernel) {
    printf("%-24s %4d cases, at most %3.0f %% of the tolerance (%s)\n", kernel, cases, 100 * worst_share,
           worst_label);
    cases = 0;
    worst_share = 0;
    worst_label[0] = 0;
}

// Of diffusers' get_timestep_embedding: 10000^(-i / (half - shift)).
static float *frequencies(int half, float shift) {
    float *f = xmalloc((size_t)half * sizeof *f);
    for (int i = 0; i < half; i++)
        f[i] = (float)exp((double)(-9.2103404f * (float)i / ((float)half - shift)));
    return f;
}

// The linked kernel with 1 thread and with 2, then plain's, each from the same operands; then compares all.
#define BOTH(tolerance, f, ...)                                                                              \
    do {                                                                                                     \
        on_host = false;                                                                                     \
        for (int threads = 1; threads <= 2; threads++) {                                                     \
            upload_all();                                                                                    \
            backend_init(threads);                                                                           \
            backend.f(__VA_ARGS__);                                                                          \
            download_all(threads - 1);                                                                       \
        }                                                                                                    \
        on_host = true;                                                                                      \
        plain.f(__VA_ARGS__);                                                                                \
        compare_all(#f, tolerance);                                                                          \
    } while (0)

#ifdef _OPENMP
// In place of OpenMP's own: cpu_threads() asks it. Where a loop got one thread, the loops within get no more;
// who asks for threads there would have had work for them.
static int loops_without_threads;
int omp_get_level(void) {
    int team = omp_get_team_size(1); // threads of the outermost loop; -1 outside of any
    if (team == 1 && omp_get_max_threads() > 1) loops_without_threads++;
    return team >= 0;
}
#endif

static Operand *gradient(const char *name, Type type, size_t count) {
    Operand *o = input(name, type, count);
    o->output = true, o->guard = 0x3f;
    memset(o->host, o->guard, GUARD), memset(o->host + o->bytes - GUARD, o->guard, GUARD);
    return o;
}
static const Type weight_types[] = {F32, F16, BF16};
static const char *const type_names[] = {"f32", "f16", "bf16"};
#define COUNT(array) (int)(sizeof(array) / sizeof *(array))

// ---- 1. beside plain -------------------------------------------------------------------------------------

static void test_fill_copy(void) {
    const size_t counts[] = {1, 3, 7, 33, 1000, 4099};
    for (int c = 0; c < COUNT(counts); c++)
        for (int t = 0; t < 3; t++) {
            describe("%zu %s", counts[c], type_names[t]);
            Operand *y = output("y", weight_types[t], counts[c]);
            BOTH(1e-12, fill, M(y), 1.2345f, y->count);
            clear();
        }
    report("fill");
    for (int c = 0; c < COUNT(counts); c++)
        for (int from = 0; from < 3; from++)
            // conversions are exact, or rounded to nearest even: no tolerance
            for (int to = 0; to < 3; to++) {
                describe("%zu %s to %s", counts[c], type_names[from], type_names[to]);
                Operand *y = output("y", weight_types[to], counts[c]);
                Operand *x = input("x", weight_types[from], counts[c]);
                BOTH(1e-12, copy, M(y), M(x), y->count);
                clear();
            }
    report("copy");
}

// Every half there is, and fp32 numbers around every step between halves, against io.h's conversions.
static void test_conversions(void) {
    enum { HALVES = 65536 };
    Operand *h = new_operand("halves", F16, HALVES, false), *f = output("floats", F32, HALVES);
    Operand *b = new_operand("bhalves", BF16, HALVES, false);
    uint16_t *halves = (uint16_t *)(h->host + GUARD), *bhalves = (uint16_t *)(b->host + GUARD);
    for (int i = 0; i < HALVES; i++) halves[i] = bhalves[i] = (uint16_t)i;
    int wrong[4] = {0};
    for (int bf = 0; bf < 2; bf++) {
        float *got = xmalloc(HALVES * sizeof *got);
        on_host = false;
        upload_all();
        backend.copy(M(f), M(bf ? b : h), HALVES);
        backend.download(got, F(f), HALVES * sizeof *got);
        for (int i = 0; i < HALVES; i++) {
            float want = bf ? bf16_to_f32((uint16_t)i) : f16_to_f32((uint16_t)i);
            wrong[bf] += isnan(want) ? !isnan(got[i]) : memcmp(&got[i], &want, 4) != 0;
        }
        // Between two neighbours: the middle (a tie), and one step of fp32 to each side of it.
        float *tries = (float *)(f->host + GUARD);
        for (int step = -1; step <= 1; step++) {
            for (int i = 0; i < HALVES; i++) {
                float here = got[i], next = i + 1 < HALVES ? got[i + 1] : 0;
                float middle = (float)(((double)here + next) / 2);
                tries[i] = step ? nextafterf(middle, step < 0 ? -INFINITY : INFINITY) : middle;
            }
            upload_all();
            backend.copy(M(bf ? b : h), M(f), HALVES);
            uint16_t *back = xmalloc(HALVES * sizeof *back);
            backend.download(back, M(bf ? b : h).at, HALVES * sizeof *back);
            for (int i = 0; i < HALVES; i++) {
                uint16_t want = bf ? f32_to_bf16(tries[i]) : f32_to_f16(tries[i]);
                float a = bf ? bf16_to_f32(want) : f16_to_f32(want),
                      c = bf ? bf16_to_f32(back[i]) : f16_to_f32(back[i]);
                wrong[2 + bf] += isnan(a) ? !isnan(c) : back[i] != want;
            }
            free(back);
        }
        free(got);
    }
    clear();
    check(!wrong[0], "fp16 to fp32 is exact for every fp16");
    check(!wrong[1], "bf16 to fp32 is exact for every bf16");
    check(!wrong[2], "fp32 to fp16 rounds to nearest even");
    check(!wrong[3], "fp32 to bf16 rounds to nearest even");
}

static void test_gemm(void) {
    const int shapes[][3] = {{1, 1, 1},   {1, 2, 1},    {3, 5, 7},    {33, 17, 65}, {1, 96, 77},
                             {77, 1, 33}, {64, 48, 96}, {70, 130, 9}, {5, 9, 2500}, {130, 66, 40}}; // m, n, k
    for (int s = 0; s < COUNT(shapes); s++)
        for (int t = 0; t < 3; t++)
            for (int flags = 0; flags < 48; flags++) {
                Gemm g = {shapes[s][0], shapes[s][1], shapes[s][2], flags & 1, flags & 2, flags & 4, 1};
                int residual_kind = flags / 16; // none, its own memory, C's memory
                if (flags % 5 == 2) g.alpha = -0.37f;
                describe("m %d n %d k %d %s, a %s, b %s%s%s, residual %d, alpha %g", g.m, g.n, g.k,
                         type_names[t], g.a_transposed ? "transposed" : "straight",
                         g.b_transposed ? "transposed" : "straight", g.add ? ", add" : "",
                         flags & 8 ? ", bias" : "", residual_kind, (double)g.alpha);
                size_t m = (size_t)g.m, n = (size_t)g.n, k = (size_t)g.k;
                Operand *c =
                    g.add || residual_kind == 2 ? gradient("c", storage, m * n) : output("c", storage, m * n);
                Operand *a = input("a", storage, m * k), *b = input("b", weight_types[t], k * n);
                Operand *bias = flags & 8 ? input("bias", weight_types[t], n) : NULL;
                Operand *residual = residual_kind == 1 ? input("residual", storage, m * n) : NULL;
                if (residual_kind == 2) residual = c;
                // One number alone may cancel to nothing, and has no larger one beside it to be compared
                // with.
                bool sum = g.add || bias || residual;
                if (m * n > 1 || !sum) BOTH(rounding, gemm, M(c), M(a), M(b), M(bias), M(residual), g);
                clear();
            }
    for (int t = 0; t < 3; t++) // a weight on the left; the gradient of one, in fp32
        for (int transposed = 0; transposed < 4; transposed++) {
            Gemm g = {37, 21, 50, transposed & 1, transposed & 2, true, 0.5f};
            describe("a %s, transposed %d", type_names[t], transposed);
            Operand *c = gradient("c", F32, 37 * 21), *a = input("a", weight_types[t], 37 * 50);
            Operand *b = input("b", storage, 50 * 21);
            BOTH(rounding, gemm, M(c), M(a), M(b), M(NULL), M(NULL), g);
            clear();
        }
    report("gemm");
}

static const Conv convs[] = {
    // n h w c   oh ow oc  kh kw stride pad_top pad_left
    {1, 1, 1, 1, 1, 1, 1, 3, 3, 1, 1, 1},       // one pixel
    {2, 5, 7, 3, 5, 7, 5, 3, 3, 1, 1, 1},       //
    {1, 16, 16, 4, 16, 16, 32, 3, 3, 1, 1, 1},  // conv_in
    {2, 8, 8, 40, 8, 8, 4, 3, 3, 1, 1, 1},      // conv_out
    {1, 9, 11, 33, 9, 11, 65, 3, 3, 1, 1, 1},   //
    {2, 8, 8, 32, 4, 4, 32, 3, 3, 2, 1, 1},     // the UNet's downsampling
    {1, 8, 10, 16, 4, 5, 24, 3, 3, 2, 0, 0},    // the VAE's: padding at the bottom and right only
    {2, 7, 5, 20, 7, 5, 36, 1, 1, 1, 0, 0},     // a shortcut
    {1, 7, 9, 8, 4, 5, 6, 1, 1, 2, 0, 0},       //
    {1, 6, 17, 16, 6, 17, 12, 1, 7, 1, 0, 3},   // Inception's
    {1, 17, 6, 16, 17, 6, 12, 7, 1, 1, 3, 0},   //
    {1, 9, 9, 12, 9, 9, 16, 5, 5, 1, 2, 2},     //
    {2, 15, 13, 3, 7, 6, 32, 3, 3, 2, 0, 0},    //
    {1, 10, 4, 130, 10, 4, 70, 3, 3, 1, 1, 1},  // more channels than a tile
    {1, 20, 20, 48, 20, 20, 48, 3, 3, 1, 1, 1}, //
    {1, 6, 6, 7, 4, 4, 9, 3, 3, 1, 0, 0},       //
    {1, 4, 4, 5, 6, 6, 3, 3, 3, 1, 2, 2},       // more padding than usual
    {1, 47, 45, 3, 47, 45, 5, 3, 3, 1, 1, 1},   // so many pixels that a GPU sums them up in parts
};
static void describe_conv(Conv p, int t, int kind) {
    describe("n %d, %dx%dx%d to %dx%dx%d, kernel %dx%d, stride %d, pad %d %d, %s, %d", p.n, p.h, p.w, p.c,
             p.oh, p.ow, p.oc, p.kh, p.kw, p.stride, p.pad_top, p.pad_left, type_names[t], kind);
}

static void test_conv(void) {
    for (int s = 0; s < COUNT(convs); s++)
        for (int t = 0; t < 3; t++)
            for (int kind = 0; kind < 5; kind++) { // bias: kinds 1, 3, 4; residual: 2, 3 of its own, 4 in y
                Conv p = convs[s];
                describe_conv(p, t, kind);
                Operand *y = kind == 4 ? gradient("y", storage, conv_y(p)) : output("y", storage, conv_y(p));
                Operand *x = input("x", storage, conv_x(p)),
                        *weight = input("weight", weight_types[t], conv_w(p));
                Operand *bias = kind % 2 || kind == 4 ? input("bias", weight_types[t], (size_t)p.oc) : NULL;
                Operand *residual = kind == 2 || kind == 3 ? input("residual", storage, conv_y(p)) : NULL;
                if (kind == 4) residual = y;
                BOTH(rounding, conv2d, M(y), M(x), M(weight), M(bias), M(residual), p);
                clear();
            }
    report("conv2d");
    for (int s = 0; s < COUNT(convs); s++)
        for (int t = 0; t < 3; t++)
            for (int add = 0; add < 2; add++) {
                Conv p = convs[s];
                describe_conv(p, t, add);
                Operand *dx = add ? gradient("dx", storage, conv_x(p)) : output("dx", storage, conv_x(p));
                Operand *weight = input("weight", weight_types[t], conv_w(p)),
                        *dy = input("dy", storage, conv_y(p));
                BOTH(rounding, conv2d_backward_input, M(dx), M(dy), M(weight), p, add);
                clear();
            }
    report("conv2d_backward_input");
    for (int s = 0; s < COUNT(convs); s++) {
        Conv p = convs[s];
        describe_conv(p, 0, 0);
        Operand *dweight = gradient("dweight", F32, conv_w(p)), *dy = input("dy", storage, conv_y(p));
        Operand *x = input("x", storage, conv_x(p));
        BOTH(rounding, conv2d_backward_weight, F(dweight), M(dy), M(x), p);
        clear();
    }
    report("conv2d_backward_weight");
}

static void test_sum_rows(void) {
    const int shapes[][3] = {{1, 1, 1}, {1, 7, 33}, {3, 33, 7}, {2, 256, 40}, {1, 1000, 65}, {5, 3, 130}};
    for (int s = 0; s < COUNT(shapes); s++)
        for (int fp32 = 0; fp32 < 2; fp32++) {
            int groups = shapes[s][0], rows = shapes[s][1], cols = shapes[s][2];
            describe("groups %d, %dx%d", groups, rows, cols);
            Operand *y = gradient("y", fp32 ? F32 : storage, (size_t)groups * cols);
            Operand *x = input("x", storage, (size_t)groups * rows * cols);
            BOTH(rounding, sum_rows, M(y), M(x), groups, rows, cols);
            clear();
        }
    report("sum_rows");
}

static void test_attention(void) {
    const int shapes[][5] = {
        {1, 1, 1, 1, 1},     {2, 3, 7, 5, 8},     {2, 1, 5, 7, 3},
        {1, 2, 33, 33, 40},  {2, 2, 65, 77, 24},  {1, 8, 64, 77, 40},
        {1, 1, 20, 20, 160}, {1, 2, 50, 130, 64}, {1, 1, 17, 17, 512},
        {1, 2, 77, 77, 64},  {1, 1, 200, 3, 16},  {1, 1, 210, 520, 512}}; // n heads tq tk d
    for (int backward = 0; backward < 2; backward++) {
        for (int s = 0; s < COUNT(shapes); s++)
            for (int kind = 0; kind < (backward ? 16 : 8); kind++) {
                const int *z = shapes[s];
                // Keys beyond the processor's cache: see attend() in cpu/attention.c.
                if (z[3] > 500 && (backward || kind > 1 || strncmp(backend.name(), "cpu", 3))) continue;
                bool causal = kind & 1, sharp = kind & 2;
                Attention p = {z[0], z[1], z[2], z[3], z[4], 1 / sqrtf((float)z[4]), causal};
                // Sharp: scores reach +-30 and more, as in trained networks. fp32 holds a score of 30 to
                // 2e-6, and its exponential is off by as much for each of a few roundings.
                double tolerance = sharp ? 5 * rounding : rounding;
                double range = sharp ? sqrt(40 / sqrt((double)z[4])) : 1;
                size_t width = (size_t)p.heads * p.d, nq = (size_t)p.n * p.tq * width,
                       nk = (size_t)p.n * p.tk * width;
                describe("n %d heads %d tq %d tk %d d %d%s%s, %d", p.n, p.heads, p.tq, p.tk, p.d,
                         causal ? ", causal" : "", sharp ? ", sharp" : "", kind / 4);
                Operand *q = input_near("q", storage, nq, 0, range),
                        *k = input_near("k", storage, nk, 0, range);
                Operand *v = input("v", storage, nk), *o = output("o", storage, nq);
                Operand *lse = output("lse", F32, (size_t)p.n * p.heads * p.tq);
                if (!backward) {
                    // kinds 0-3: with lse, 4-7: without
                    lse->output = kind < 4;
                    BOTH(tolerance, attention, M(o), kind < 4 ? F(lse) : NULL, M(q), M(k), M(v), p);
                } else { // kinds 0-3: all gradients; 4-7: dq; 8-11: dk; 12-15: dv
                    on_host = true;
                    plain.attention(M(o), F(lse), M(q), M(k), M(v), p);
                    o->output = lse->output = false;
                    int want = kind / 4;
                    Operand *dout = input("dout", storage, nq);
                    Operand *dq = want == 0 || want == 1 ? gradient("dq", storage, nq) : NULL;
                    Operand *dk = want == 0 || want == 2 ? gradient("dk", storage, nk) : NULL;
                    Operand *dv = want == 0 || want == 3 ? gradient("dv", storage, nk) : NULL;
                    BOTH(tolerance, attention_backward, M(dq), M(dk), M(dv), M(dout), M(q), M(k), M(v), M(o),
                         F(lse), p);
                }
                clear();
            }
        clear();
        report(backward ? "attention_backward" : "attention");
    }
}

// The mean is so many times the standard deviation. A mean that was rounded to fp32 would be off by 1000 *
// 2^-24 of the standard deviation, so a forward kernel must keep more of it. The backward kernels get the
// same rounded one as plain's.
static const double ratios[] = {0, 30, 1000};

static void test_group_norm(void) {
    const int shapes[][4] = {{1, 1, 4, 2},    {2, 7, 6, 3},    {1, 49, 32, 32},
                             {2, 64, 96, 32}, {1, 15, 33, 11}, {1, 256, 40, 8},
                             {3, 5, 320, 32}, {1, 1030, 16, 1}}; // n hw c groups
    for (int backward = 0; backward < 2; backward++) {
        for (int s = 0; s < COUNT(shapes); s++)
            for (int ratio = 0; ratio < 3; ratio++)
                for (int t = 0; t < 3; t++)
                    for (int kind = 0; kind < 8; kind++) {
                        const int *z = shapes[s];
                        GroupNorm p = {z[0], z[1], z[2], z[3], kind & 4 ? 1e-5f : 1e-6f, kind & 1};
                        size_t count = (size_t)p.n * p.hw * p.c, c = (size_t)p.c;
                        describe("n %d hw %d c %d groups %d%s, mean %g, %s, %d", p.n, p.hw, p.c, p.groups,
                                 p.silu ? ", silu" : "", ratios[ratio], type_names[t], kind);
                        // noise() has the standard deviation 0.58
                        Operand *x = input_near("x", storage, count, 0.58 * ratios[ratio], 1);
                        Operand *gamma = input("gamma", weight_types[t], c),
                                *beta = input("beta", weight_types[t], c);
                        Operand *stats = output("stats", F32, (size_t)p.n * p.groups * 2);
                        Operand *y = output("y", storage, count);
                        if (!backward) {
                            stats->output = kind & 2;
                            BOTH(rounding, group_norm, M(y), kind & 2 ? F(stats) : NULL, M(x), M(gamma),
                                 M(beta), p);
                        } else { // kind / 2: everything, dx, dgamma, dbeta
                            on_host = true;
                            plain.group_norm(M(y), F(stats), M(x), M(gamma), M(beta), p);
                            y->output = stats->output = false;
                            int want = kind / 2;
                            Operand *dy = input("dy", storage, count);
                            Operand *dx = want == 0 || want == 1 ? gradient("dx", storage, count) : NULL;
                            Operand *dgamma = want == 0 || want == 2 ? gradient("dgamma", F32, c) : NULL;
                            Operand *dbeta = want == 0 || want == 3 ? gradient("dbeta", F32, c) : NULL;
                            BOTH(rounding, group_norm_backward, M(dx), F(dgamma), F(dbeta), M(dy), M(x),
                                 M(gamma), M(beta), F(stats), p);
                        }
                        clear();
                    }
        report(backward ? "group_norm_backward" : "group_norm");
    }
}

static void test_layer_norm(void) {
    const int shapes[][2] = {{1, 1}, {3, 7}, {33, 65}, {5, 320}, {2, 768}, {7, 33}, {100, 16}};
    for (int backward = 0; backward < 2; backward++) {
        for (int s = 0; s < COUNT(shapes); s++)
            for (int ratio = 0; ratio < 3; ratio++)
                for (int t = 0; t < 3; t++)
                    for (int kind = 0; kind < 4; kind++) {
                        int rows = shapes[s][0], cols = shapes[s][1];
                        size_t count = (size_t)rows * cols, c = (size_t)cols;
                        describe("%dx%d, mean %g, %s, %d", rows, cols, ratios[ratio], type_names[t], kind);
                        Operand *x = input_near("x", storage, count, 0.58 * ratios[ratio], 1);
                        Operand *gamma = input("gamma", weight_types[t], c),
                                *beta = input("beta", weight_types[t], c);
                        Operand *stats = output("stats", F32, (size_t)rows * 2),
                                *y = output("y", storage, count);
                        if (!backward) {
                            stats->output = kind & 1;
                            BOTH(rounding, layer_norm, M(y), kind & 1 ? F(stats) : NULL, M(x), M(gamma),
                                 M(beta), rows, cols, kind & 2 ? 1e-5f : 1e-6f);
                        } else {
                            // One column has no variance: rstd is 1 / sqrt(eps), 316, and multiplies the
                            // rounding of a difference that should be 0.
                            double tolerance = cols == 1 ? rounding + 316 * 0x1p-23 : rounding;
                            on_host = true;
                            plain.layer_norm(M(y), F(stats), M(x), M(gamma), M(beta), rows, cols, 1e-5f);
                            y->output = stats->output = false;
                            Operand *dy = input("dy", storage, count);
                            Operand *dx = kind == 0 || kind == 1 ? gradient("dx", storage, count) : NULL;
                            Operand *dgamma = kind == 0 || kind == 2 ? gradient("dgamma", F32, c) : NULL;
                            Operand *dbeta = kind == 0 || kind == 3 ? gradient("dbeta", F32, c) : NULL;
                            BOTH(tolerance, layer_norm_backward, M(dx), F(dgamma), F(dbeta), M(dy), M(x),
                                 M(gamma), F(stats), rows, cols);
                        }
                        clear();
                    }
        report(backward ? "layer_norm_backward" : "layer_norm");
    }
}

static const size_t counts[] = {1, 3, 7, 33, 1000, 4099};

static void test_activation(void) {
    const double ranges[] = {1, 8, 120};
    for (int backward = 0; backward < 2; backward++) {
        for (int f = SILU; f <= SQUARE; f++)
            for (int c = 0; c < COUNT(counts); c++)
                for (int s = 0; s < COUNT(ranges); s++) {
                    if (f == EXP && s == 2) continue; // exp(120) is infinite in fp32
                    describe("%s, %zu, up to %g", activations[f], counts[c], ranges[s]);
                    // exp: an fp32 argument of 8 is held to 5e-7, and so is the result, relatively.
                    Operand *x = input_near("x", storage, counts[c], 0, ranges[s]);
                    set(x, 0, ranges[s]); // so that the largest value is not a tail's, far below rounding
                    if (!backward) {
                        Operand *y = output("y", storage, counts[c]);
                        BOTH(rounding, activation, M(y), M(x), counts[c], (Activation)f);
                        clear();
                        Operand *xy = gradient("x and y", storage, counts[c]);
                        BOTH(rounding, activation, M(xy), M(xy), counts[c], (Activation)f);
                    } else {
                        Operand *dx = gradient("dx", storage, counts[c]),
                                *dy = input("dy", storage, counts[c]);
                        BOTH(rounding, activation_backward, M(dx), M(dy), M(x), counts[c], (Activation)f);
                    }
                    clear();
                }
        report(backward ? "activation_backward" : "activation");
    }
    const int shapes[][2] = {{1, 1}, {3, 7}, {33, 40}, {5, 129}, {64, 160}};
    for (int backward = 0; backward < 2; backward++) {
        for (int s = 0; s < COUNT(shapes); s++)
            for (int large = 0; large < 2; large++) {
                int rows = shapes[s][0], inner = shapes[s][1];
                size_t count = (size_t)rows * inner;
                describe("%dx%d%s", rows, inner, large ? ", large" : "");
                Operand *x = input_near("x", storage, 2 * count, 0, large ? 20 : 1);
                if (!backward) {
                    Operand *y = output("y", storage, count);
                    BOTH(rounding, geglu, M(y), M(x), rows, inner);
                } else {
                    Operand *dx = gradient("dx", storage, 2 * count), *dy = input("dy", storage, count);
                    BOTH(rounding, geglu_backward, M(dx), M(dy), M(x), rows, inner, large);
                }
                clear();
            }
        report(backward ? "geglu_backward" : "geglu");
    }
}

// Each by itself, not by the largest one: exp, and the exponential in attention's softmax. A query of 1 that
// sees keys 0 and x and values 0 and 1 gives 1 / (1 + e^-x). fp32 holds x to 6e-8 of itself, and e^x is off
// by as much.
static void test_exponentials(void) {
    if (storage != F32) return;
    enum { N = 300 };
    double worst = 0;
    for (int within = 0; within < 2; within++) {
        describe("%d arguments from -80 to 0", N);
        Operand *x = zeros("x", F32, 2 * N), *q = zeros("q", F32, N), *v = zeros("v", F32, 2 * N);
        Operand *y = output("y", F32, within ? N : 2 * N);
        for (size_t i = 0; i < N; i++)
            set(x, 2 * i + 1, -80 + 80.0 * (double)i / (N - 1)), set(q, i, 1), set(v, 2 * i + 1, 1);
        if (within)
            BOTH(rounding, attention, M(y), NULL, M(q), M(x), M(v), ((Attention){N, 1, 1, 2, 1, 1, false}));
        else
            BOTH(rounding, activation, M(y), M(x), 2 * N, EXP);
        for (size_t i = 0; i < N; i++) {
            double argument = value_of(x->host, F32, 2 * i + 1);
            double want = within ? 1 / (1 + exp(-argument)) : exp(argument);
            double got = value_of(y->result[0], F32, within ? i : 2 * i + 1);
            keep_largest(&worst, fabs(got / want - 1) / (5e-7 + 1.2e-7 * fabs(argument)));
        }
        clear();
    }
    check(worst <= 1, format("exponentials: error %.2f of what fp32 allows", worst));
    report("exponentials");
}

static void test_combine(void) {
    for (int c = 0; c < COUNT(counts); c++)
        for (int kind = 0; kind < 7; kind++) // x and z; x; z; neither; y is x; y is z; y is both
            for (int keep = 0; keep < 2; keep++) {
                describe("%zu, %d, %s", counts[c], kind, keep ? "y kept" : "y not read");
                Operand *y =
                    keep || kind >= 4 ? gradient("y", storage, counts[c]) : output("y", storage, counts[c]);
                Operand *x = kind == 0 || kind == 1 || kind == 5 ? input("x", storage, counts[c]) : NULL;
                Operand *z = kind == 0 || kind == 2 || kind == 4 ? input("z", storage, counts[c]) : NULL;
                if (kind == 4 || kind == 6) x = y;
                if (kind == 5 || kind == 6) z = y;
                BOTH(rounding, combine, M(y), 0.7f, M(x), -1.3f, M(z), keep ? 0.4f : 0.0f, counts[c]);
                clear();
            }
    report("combine");
    const int shapes[][2] = {{1, 1}, {3, 7}, {7, 33}, {4, 1024}, {33, 5}};
    for (int s = 0; s < COUNT(shapes); s++)
        for (int kind = 0; kind < 4; kind++) {
            int rows = shapes[s][0], cols = shapes[s][1];
            size_t count = (size_t)rows * cols;
            describe("%dx%d, %s%s", rows, cols, kind & 1 ? "x and z" : "x", kind & 2 ? ", add" : "");
            Operand *y = kind & 2 ? gradient("y", storage, count) : output("y", storage, count);
            Operand *x = input("x", storage, count), *z = kind & 1 ? input("z", storage, count) : NULL;
            Operand *a = input("a", F32, (size_t)rows), *b = kind & 1 ? input("b", F32, (size_t)rows) : NULL;
            BOTH(rounding, combine_rows, M(y), F(a), M(x), F(b), M(z), rows, cols, kind & 2);
            clear();
        }
    report("combine_rows");
    for (int c = 0; c < COUNT(counts); c++)
        for (int add = 0; add < 2; add++) {
            describe("%zu%s", counts[c], add ? ", add" : "");
            Operand *y = add ? gradient("y", storage, counts[c]) : output("y", storage, counts[c]);
            Operand *a = input("a", storage, counts[c]), *b = input("b", storage, counts[c]);
            BOTH(rounding, multiply, M(y), M(a), M(b), counts[c], add);
            clear();
        }
    report("multiply");
    for (int s = 0; s < COUNT(shapes); s++)
        for (int same = 0; same < 2; same++) {
            int rows = shapes[s][0], cols = shapes[s][1], groups = 3;
            size_t count = (size_t)groups * rows * cols;
            describe("3x%dx%d%s", rows, cols, same ? ", y is x" : "");
            Operand *y = same ? gradient("y", storage, count) : output("y", storage, count);
            Operand *x = same ? y : input("x", storage, count),
                    *v = input("v", storage, (size_t)groups * cols);
            BOTH(rounding, add_vector, M(y), M(x), M(v), groups, rows, cols);
            clear();
        }
    report("add_vector");
}

static void test_movement(void) {
    const int shapes[][4] = {
        {1, 1, 1, 1}, {3, 7, 10, 7}, {33, 5, 5, 12}, {17, 40, 72, 100}}; // rows cols strides
    for (int s = 0; s < COUNT(shapes); s++)
        for (int add = 0; add < 2; add++) {
            int rows = shapes[s][0], cols = shapes[s][1], to = shapes[s][2], from = shapes[s][3];
            describe("%dx%d, strides %d and %d%s", rows, cols, to, from, add ? ", add" : "");
            Operand *y = gradient("y", storage, (size_t)rows * to),
                    *x = input("x", storage, (size_t)rows * from);
            BOTH(rounding, copy_columns, M(y), to, M(x), from, rows, cols, add);
            clear();
        }
    report("copy_columns");
    const int pictures[][4] = {{1, 1, 1, 1}, {2, 3, 5, 7}, {1, 8, 8, 40}, {3, 4, 2, 33}};
    for (int s = 0; s < COUNT(pictures); s++) {
        const int *z = pictures[s];
        size_t count = (size_t)z[0] * z[1] * z[2] * z[3];
        describe("%dx%dx%dx%d", z[0], z[1], z[2], z[3]);
        Operand *y = output("y", storage, 4 * count), *x = input("x", storage, count);
        BOTH(rounding, upsample, M(y), M(x), z[0], z[1], z[2], z[3]);
        clear();
        Operand *dx = gradient("dx", storage, count), *dy = input("dy", storage, 4 * count);
        BOTH(rounding, upsample_backward, M(dx), M(dy), z[0], z[1], z[2], z[3]);
        clear();
    }
    report("upsample, backward");
}

// A convolution of a group norm, and of an upsampled picture: beside plain's, and where pictures are so large
// that they are convolved in bands, bit by bit beside the two steps one after the other.
static void test_fused(void) {
    if (!backend.conv2d_normed) return;
    for (int s = 0; s < COUNT(convs); s++)
        for (int t = 0; t < 3; t++)
            for (int kind = 0; kind < 5; kind++) { // as conv2d's; SiLU: even ones
                Conv p = convs[s];
                GroupNorm norm = {p.n, p.h * p.w, p.c, p.c % 4 ? 1 : p.c / 4, 1e-5f, kind % 2 == 0};
                describe_conv(p, t, kind);
                Operand *y = kind == 4 ? gradient("y", storage, conv_y(p)) : output("y", storage, conv_y(p));
                Operand *x = input_near("x", storage, conv_x(p), kind == 3 ? 58 : 1, 1);
                Operand *gamma = input("gamma", weight_types[t], (size_t)p.c),
                        *beta = input("beta", weight_types[t], (size_t)p.c),
                        *weight = input("weight", weight_types[t], conv_w(p));
                Operand *bias = kind % 2 || kind == 4 ? input("bias", weight_types[t], (size_t)p.oc) : NULL;
                Operand *residual = kind == 2 || kind == 3 ? input("residual", storage, conv_y(p)) : NULL;
                if (kind == 4) residual = y;
                BOTH(2 * rounding, conv2d_normed, M(y), M(x), M(gamma), M(beta), norm, M(weight), M(bias),
                     M(residual), p); // 2: what is convolved is rounded, too
                clear();
            }
    report("conv2d_normed");
    for (int s = 0; s < COUNT(convs); s++)
        for (int t = 0; t < 3; t++) {
            Conv p = convs[s];
            describe_conv(p, t, 0);
            Operand *y = output("y", storage, conv_y(p)),
                    *weight = input("weight", weight_types[t], conv_w(p));
            Operand *x = input("x", storage, (size_t)p.n * ((p.h + 1) / 2) * ((p.w + 1) / 2) * p.c);
            Operand *bias = t ? input("bias", weight_types[t], (size_t)p.oc) : NULL;
            BOTH(rounding, conv2d_upsampled, M(y), M(x), M(weight), M(bias), p);
            clear();
        }
    report("conv2d_upsampled");
    bool fast = !strncmp(backend.name(), "cpu", 3) && !strstr(backend.name(), "plain"); // plain rounds once
    const Conv large[] = {
        {2, 46, 130, 256, 46, 130, 32, 3, 3, 1, 1, 1},   // Winograd's tiles, cut at the bottom
        {1, 41, 1030, 128, 41, 1030, 16, 3, 3, 1, 1, 1}, // a last band that alone would be direct
        {1, 900, 132, 20, 900, 132, 3, 3, 3, 1, 1, 1},   // direct
        {1, 300, 132, 64, 150, 66, 8, 3, 3, 2, 0, 0}};
    for (int s = 0; s < COUNT(large) && fast; s++)
        for (int up = 0; up < 2; up++)
            for (int threads = 1; threads <= 2; threads++) {
                Conv p = large[s];
                backend_init(threads);
                on_host = false;
                Operand *x = input_near("x", F32, conv_x(p), 3, 1), *z = output("z", F32, conv_x(p)),
                        *y = output("y", F32, conv_y(p)), *weight = input("weight", F32, conv_w(p)),
                        *gamma = input("gamma", F32, (size_t)p.c);
                GroupNorm norm = {p.n, p.h * p.w, p.c, 4, 1e-5f, true};
                p.h -= up * (p.h % 2), p.oh -= up * (p.oh % 2); // upsample() makes even sides
                upload_all();
                if (up) {
                    backend.upsample(M(z), M(x), p.n, p.h / 2, p.w / 2, p.c);
                    backend.conv2d_upsampled(M(y), M(x), M(weight), M(NULL), p);
                } else {
                    backend.group_norm(M(z), NULL, M(x), M(gamma), M(gamma), norm);
                    backend.conv2d_normed(M(y), M(x), M(gamma), M(gamma), norm, M(weight), M(NULL), M(NULL),
                                          p);
                }
                download_all(0);
                backend.conv2d(M(y), M(z), M(weight), M(NULL), M(NULL), p);
                download_all(1);
                describe_conv(p, 0, up);
                puts(label);
                check(!memcmp(y->result[0], y->result[1], y->bytes),
                      up ? "conv2d_upsampled: the bits of two steps"
                         : "conv2d_normed: the bits of two steps");
                clear();
            }
    backend_init(2);
}

static const Conv pools[] = {
    {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0},   {2, 7, 9, 3, 3, 4, 3, 3, 3, 2, 0, 0}, // Inception's, no padding
    {1, 8, 8, 33, 8, 8, 33, 3, 3, 1, 1, 1}, {2, 6, 4, 16, 3, 2, 16, 2, 2, 2, 0, 0},
    {3, 8, 8, 20, 1, 1, 20, 8, 8, 1, 0, 0}, {1, 5, 6, 7, 3, 4, 7, 3, 3, 2, 1, 1},
};
static void test_pool(void) {
    for (int backward = 0; backward < 2; backward++) {
        for (int s = 0; s < COUNT(pools); s++)
            for (int kind = POOL_MAX; kind <= POOL_AVERAGE; kind++) {
                Conv p = pools[s];
                describe_conv(p, 0, kind);
                Operand *x = input("x", storage, conv_x(p));
                for (size_t i = 0; i < x->count; i += 3) set(x, i, 0.5); // ties: the first one counts
                if (!backward) {
                    Operand *y = output("y", storage, conv_y(p));
                    BOTH(rounding, pool, M(y), M(x), p, (Pool)kind);
                } else {
                    Operand *dx = gradient("dx", storage, conv_x(p)), *dy = input("dy", storage, conv_y(p));
                    BOTH(rounding, pool_backward, M(dx), M(dy), M(x), p, (Pool)kind);
                }
                clear();
            }
        report(backward ? "pool_backward" : "pool");
    }
}

static void test_embed(void) {
    const int shapes[][3] = {{1, 1, 1}, {7, 33, 5}, {77, 64, 100}, {50, 3, 4}}; // rows cols entries
    for (int s = 0; s < COUNT(shapes); s++)
        for (int t = 0; t < 3; t++) {
            int rows = shapes[s][0], cols = shapes[s][1], entries = shapes[s][2];
            describe("%dx%d of %d, %s", rows, cols, entries, type_names[t]);
            Operand *ids = ids_below((size_t)rows, entries, false);
            Operand *table = input("table", weight_types[t], (size_t)entries * cols);
            Operand *y = output("y", storage, (size_t)rows * cols);
            BOTH(rounding, embed, M(y), M(table), I(ids), rows, cols);
            y->output = false;
            Operand *dtable = gradient("dtable", F32, (size_t)entries * cols);
            BOTH(rounding, embed_backward, F(dtable), M(y), I(ids), rows, cols);
            clear();
        }
    report("embed, backward");
    const int dims[] = {1, 2, 7, 320, 1100};
    for (int d = 0; d < COUNT(dims); d++)
        for (int kind = 0; kind < 4; kind++) {
            int dim = dims[d], rows = 66;
            float shift = kind & 2 && dim > 3 ? 1 : 0;
            describe("dim %d, %s, shift %g", dim, kind & 1 ? "cos first" : "sin first", (double)shift);
            float *f = frequencies(dim / 2, shift), *t = xmalloc((size_t)rows * sizeof *t);
            for (int r = 0; r < rows; r++) t[r] = 999 * (float)(r + 1) / (float)rows;
            output("y", storage, (size_t)rows * dim);
            BOTH(rounding, sinusoid, M(&operands[0]), t, f, rows, dim, kind & 1);
            clear(), free(f), free(t);
        }
    report("sinusoid");
}

static void test_losses(void) {
    const int shapes[][2] = {{1, 1}, {3, 7}, {33, 5}, {2, 1025}, {12, 1024}};
    for (int s = 0; s < COUNT(shapes); s++)
        for (int kind = 0; kind < 12; kind++) {
            int rows = shapes[s][0], cols = shapes[s][1];
            size_t count = (size_t)rows * cols;
            Loss f = (Loss)(kind % 3);
            float c = kind >= 6 ? 1e-3f : 0.3f;
            describe("%dx%d, %s%s, c %g", rows, cols,
                     f == LOSS_MSE  ? "mse"
                     : f == LOSS_L1 ? "l1"
                                    : "huber",
                     kind / 3 % 2 ? ", weights" : "", (double)c);
            Operand *prediction = input("prediction", storage, count),
                    *target = input("target", storage, count);
            set(target, 0, value_of(prediction->host, storage, 0)); // a difference of nothing
            Operand *weight = kind / 3 % 2 ? input_near("weight", F32, (size_t)rows, 1, 0.9) : NULL;
            Operand *loss = output("loss", F32, 1);
            BOTH(1e-5, loss, F(loss), M(prediction), M(target), F(weight), rows, cols, f, c);
            loss->output = false;
            Operand *d = gradient("dprediction", storage, count), *dloss = input("dloss", F32, 1);
            for (size_t i = 0; i < count; i++)
                set(d, i, noise() / (double)count); // as small as what is added
            BOTH(rounding, loss_backward, M(d), F(dloss), M(prediction), M(target), F(weight), rows, cols, f,
                 c);
            clear();
        }
    report("loss, backward");
    for (int s = 0; s < COUNT(shapes); s++)
        for (int sharp = 0; sharp < 2; sharp++) {
            int rows = shapes[s][0], cols = shapes[s][1];
            size_t count = (size_t)rows * cols;
            describe("%dx%d%s", rows, cols, sharp ? ", sharp" : "");
            Operand *x = input_near("x", storage, count, sharp ? 50 : 0, sharp ? 40 : 1);
            Operand *y = output("y", storage, count);
            // y is a difference of numbers up to 90, held to 4e-6 each; a single column gives exactly 0, give
            // or take.
            BOTH(cols == 1 ? INFINITY : rounding, log_softmax, M(y), M(x), rows, cols);
            y->output = false;
            Operand *dx = gradient("dx", storage, count), *dy = input("dy", storage, count);
            BOTH(2 * rounding, log_softmax_backward, M(dx), M(dy), M(y), rows, cols);
            clear();
        }
    report("log_softmax, backward");
    for (int s = 0; s < COUNT(shapes); s++)
        for (int negative = 0; negative < 2; negative++) {
            int rows = shapes[s][0], cols = shapes[s][1];
            size_t count = (size_t)rows * cols;
            describe("%dx%d%s", rows, cols, negative ? ", some left out" : "");
            Operand *x = input_near("x", storage, count, -2, 1),
                    *ids = ids_below((size_t)rows, cols, negative);
            Operand *loss = output("loss", F32, 1);
            BOTH(1e-5, pick, F(loss), M(x), I(ids), rows, cols);
            loss->output = false;
            Operand *dx = gradient("dx", storage, count), *dloss = input("dloss", F32, 1);
            BOTH(rounding, pick_backward, M(dx), F(dloss), I(ids), rows, cols);
            clear();
        }
    report("pick, backward");
}

static const size_t state_floats = sizeof(OptimiserState) / sizeof(float);
static void test_optimiser(void) {
    for (int c = 0; c < COUNT(counts); c++)
        for (int kind = 0; kind < 6; kind++) { // 5: a NaN in step 3
            OptimiserConfig config = {1e-2f, 0.9f, 0.999f, 1e-8f, kind & 1 ? 0.05f : 0, kind & 2 ? 1 : 0,
                                      0,     0,    0.1f};
            if (kind & 1) config.warmup = 2;
            if (kind & 4) config.total = 6;
            size_t n = counts[c];
            Operand *s = gradient("state", F32, state_floats), *w = gradient("w", F32, n);
            Operand *m = gradient("m", F32, n), *v = gradient("v", F32, n), *g = gradient("g", F32, n);
            Operand *e = gradient("e", F32, n);
            for (size_t i = 0; i < state_floats; i++) set(s, i, 0);
            for (size_t i = 0; i < n; i++) set(m, i, 0), set(v, i, 0), set(e, i, value_of(w->host, F32, i));
            for (int step = 1; step <= 7; step++) {
                for (size_t i = 0; i < n; i++) set(g, i, (kind & 2 ? 10 : 1) * noise() / step);
                if (kind == 5 && step == 3) set(g, n / 2, NAN);
                describe("%zu, %d, step %d", n, kind, step);
                bool bad =
                    kind == 5 && step == 3; // sum_square and norm are NaN there: not compared, but looked at
                s->output = !bad;
                if (bad) {
                    on_host = false;
                    upload_all();
                    backend.sum_square((OptimiserState *)F(s), F(g), n);
                    backend.optimiser_begin((OptimiserState *)F(s), config);
                    backend.adamw(F(w), F(m), F(v), F(g), (OptimiserState *)F(s), config, n);
                    backend.ema(F(e), F(w), (OptimiserState *)F(s), 0.9f, n);
                    download_all(0);
                    OptimiserState seen;
                    memcpy(&seen, s->result[0] + GUARD, sizeof seen);
                    check(seen.bad == 3 && seen.step == 3, "a NaN gradient is noted with its step");
                    check(!memcmp(w->result[0], w->host, w->bytes) &&
                              !memcmp(m->result[0], m->host, m->bytes) &&
                              !memcmp(v->result[0], v->host, v->bytes) &&
                              !memcmp(e->result[0], e->host, e->bytes),
                          "a NaN gradient updates nothing");
                    bool cleared = true;
                    for (size_t i = 0; i < n; i++) cleared = cleared && value_of(g->result[0], F32, i) == 0;
                    check(cleared, "a NaN gradient is cleared");
                    on_host = true;
                    plain.sum_square((OptimiserState *)F(s), F(g), n);
                    plain.optimiser_begin((OptimiserState *)F(s), config);
                    // The bits of a NaN are free, so the norm gets a number before the next comparison.
                    set(s, offsetof(OptimiserState, norm) / sizeof(float), 0);
                    set(s, offsetof(OptimiserState, clip) / sizeof(float), 0);
                    continue;
                }
                BOTH(1e-5, sum_square, (OptimiserState *)F(s), F(g), n);
                BOTH(1e-6, optimiser_begin, (OptimiserState *)F(s), config);
                BOTH(1e-5, adamw, F(w), F(m), F(v), F(g), (OptimiserState *)F(s), config, n);
                BOTH(1e-6, ema, F(e), F(w), (OptimiserState *)F(s), 0.9f, n);
                s->output = true;
            }
            clear();
        }
    describe("a norm that is not large against 1e-6");
    Operand *s = gradient("state", F32, state_floats);
    for (size_t i = 0; i < state_floats; i++) set(s, i, 0);
    set(s, offsetof(OptimiserState, sum_square) / sizeof(float), 1e-10);
    BOTH(1e-6, optimiser_begin, (OptimiserState *)F(s), ((OptimiserConfig){.rate = 1, .max_norm = 1e-6f}));
    clear();
    report("optimiser");
}

// ---- 2. against PyTorch ----------------------------------------------------------------------------------

// test/python/make_kernel_fixtures.py computed these in double from fp32 inputs. Gradients start from zero
// here.
static Store *fixtures;
static char key[80];

static const Stored *stored(const char *of, const char *name) {
    snprintf(key, sizeof key, "%s.%s", of, name);
    const Stored *t = store_find(fixtures, key);
    if (!t) die("test/fixtures/kernels.safetensors: %s is missing", key);
    return t;
}
static void params(const char *of, int *out, size_t count) {
    const Stored *t = stored(of, "params");
    if (t->count != count || t->type != I32)
        die("test/fixtures/kernels.safetensors: %s is not %zu I32", key, count);
    memcpy(out, t->data, count * sizeof *out);
}
static Operand *given_as(Type type, const char *of, const char *name) {
    const Stored *t = stored(of, name);
    Operand *o = new_operand(name, type, t->count, false);
    if (type == I32) {
        memcpy(o->host + GUARD, t->data, t->count * 4);
        return o;
    }
    float *values = xmalloc(t->count * sizeof *values);
    store_read_f32(t, values);
    for (size_t i = 0; i < t->count; i++) set(o, i, values[i]);
    free(values);
    return o;
}
static Operand *given(const char *of, const char *name) { return given_as(storage, of, name); }
static Operand *like(const char *name, Type type, const Operand *o) { return zeros(name, type, o->count); }

// Calls the linked kernel. Where activations have 16 bits plain's too, on the same rounded inputs: see
// expect().
#define RUN(f, ...)                                                                                          \
    do {                                                                                                     \
        on_host = false;                                                                                     \
        backend.f(__VA_ARGS__);                                                                              \
        on_host = rounded_inputs = storage != F32;                                                           \
        if (on_host) plain.f(__VA_ARGS__);                                                                   \
        on_host = false;                                                                                     \
    } while (0)

// PyTorch had the inputs in fp32. Where they were rounded to 16 bits, the right result is another one: as far
// from PyTorch's as plain's is, whose sums are in double. That comes on top of the tolerance.
static void expect(const Operand *o, const char *of, const char *name, double tolerance) {
    const Stored *t = stored(of, name);
    if (t->count != o->count)
        die("test/fixtures/kernels.safetensors: %s has %zu elements, not %zu", key, t->count, o->count);
    float *want = xmalloc(t->count * sizeof *want), *got = xmalloc(t->count * sizeof *got);
    char *bytes = xmalloc(o->bytes);
    store_read_f32(t, want);
    if (rounded_inputs) {
        for (size_t i = 0; i < t->count; i++) got[i] = (float)value_of(o->host, o->type, i);
        double inputs = max_error(got, want, t->count, 1e-30);
        if (!(inputs < 0.1)) {
            printf("FAILED  PyTorch's %s: rounding the inputs moves it by %.2g\n", key, inputs);
            tests_failed++;
        }
        tolerance += inputs;
    }
    backend.download(bytes, o->backend, o->bytes);
    for (size_t i = 0; i < t->count; i++) got[i] = (float)value_of(bytes, o->type, i);
    char what[100];
    snprintf(what, sizeof what, "PyTorch's %s", key);
    check_close(what, got, want, t->count, tolerance);
    free(want), free(got), free(bytes);
}

static void compare_products(void) {
    {
        const char *of = "linear";
        int z[3];
        params(of, z, 3);
        int rows = z[0], in = z[1], out = z[2];
        Operand *x = given(of, "x"), *w = given_as(F32, of, "weight"), *b = given_as(F32, of, "bias"),
                *dy = given(of, "dy");
        Operand *y = like("y", storage, dy), *dx = like("dx", storage, x), *dw = like("dw", F32, w),
                *db = like("db", F32, b);
        upload_all();
        RUN(gemm, M(y), M(x), M(w), M(b), M(NULL), (Gemm){rows, out, in, false, true, false, 1});
        RUN(gemm, M(dx), M(dy), M(w), M(NULL), M(NULL), (Gemm){rows, in, out, false, false, true, 1});
        RUN(gemm, M(dw), M(dy), M(x), M(NULL), M(NULL), (Gemm){out, in, rows, true, false, true, 1});
        RUN(sum_rows, M(db), M(dy), 1, rows, out);
        expect(y, of, "y", rounding), expect(dx, of, "dx", rounding), expect(dw, of, "dweight", rounding);
        expect(db, of, "dbias", rounding);
        clear();
    }
    for (int i = 0; i < 5; i++) {
        char of[32];
        snprintf(of, sizeof of, "conv%d", i);
        int z[12];
        params(of, z, 12);
        Conv p = {z[0], z[1], z[2], z[3], z[4], z[5], z[6], z[7], z[8], z[9], z[10], z[11]};
        Operand *x = given(of, "x"), *w = given_as(F32, of, "weight"), *b = given_as(F32, of, "bias"),
                *dy = given(of, "dy");
        Operand *y = like("y", storage, dy), *dx = like("dx", storage, x), *dw = like("dw", F32, w);
        upload_all();
        RUN(conv2d, M(y), M(x), M(w), M(b), M(NULL), p);
        RUN(conv2d_backward_input, M(dx), M(dy), M(w), p, false);
        RUN(conv2d_backward_weight, F(dw), M(dy), M(x), p);
        expect(y, of, "y", rounding), expect(dx, of, "dx", rounding), expect(dw, of, "dweight", rounding);
        clear();
    }
    for (int i = 0; i < 3; i++) {
        char of[32];
        snprintf(of, sizeof of, "attention%d", i);
        int z[6];
        params(of, z, 6);
        Attention p = {z[0], z[1], z[2], z[3], z[4], 1 / sqrtf((float)z[4]), z[5]};
        Operand *q = given(of, "q"), *k = given(of, "k"), *v = given(of, "v"), *dout = given(of, "do");
        Operand *o = like("o", storage, q), *lse = zeros("lse", F32, (size_t)p.n * p.heads * p.tq);
        Operand *dq = like("dq", storage, q), *dk = like("dk", storage, k), *dv = like("dv", storage, v);
        upload_all();
        RUN(attention, M(o), F(lse), M(q), M(k), M(v), p);
        RUN(attention_backward, M(dq), M(dk), M(dv), M(dout), M(q), M(k), M(v), M(o), F(lse), p);
        expect(o, of, "o", rounding), expect(dq, of, "dq", rounding), expect(dk, of, "dk", rounding);
        expect(dv, of, "dv", rounding);
        clear();
    }
}

static void compare_norms(void) {
    for (int i = 0; i < 3; i++) {
        char of[32];
        snprintf(of, sizeof of, "group_norm%d", i);
        int z[6]; // the last: mean / standard deviation
        params(of, z, 6);
        GroupNorm p = {z[0], z[1], z[2], z[3], 1e-5f, z[4]};
        double tolerance = rounding + z[5] * 0x1p-24; // the backward knows the mean as fp32 has it
        Operand *x = given(of, "x"), *gamma = given_as(F32, of, "gamma"), *beta = given_as(F32, of, "beta");
        Operand *dy = given(of, "dy"), *y = like("y", storage, x), *dx = like("dx", storage, x);
        Operand *stats = zeros("stats", F32, (size_t)p.n * p.groups * 2);
        Operand *dgamma = like("dgamma", F32, gamma), *dbeta = like("dbeta", F32, beta);
        upload_all();
        RUN(group_norm, M(y), F(stats), M(x), M(gamma), M(beta), p);
        RUN(group_norm_backward, M(dx), F(dgamma), F(dbeta), M(dy), M(x), M(gamma), M(beta), F(stats), p);
        expect(y, of, "y", tolerance), expect(dx, of, "dx", tolerance);
        expect(dgamma, of, "dgamma", tolerance), expect(dbeta, of, "dbeta", tolerance);
        clear();
    }
    const char *of = "layer_norm";
    int z[2];
    params(of, z, 2);
    Operand *x = given(of, "x"), *gamma = given_as(F32, of, "gamma"), *beta = given_as(F32, of, "beta");
    Operand *dy = given(of, "dy"), *y = like("y", storage, x), *dx = like("dx", storage, x);
    Operand *stats = zeros("stats", F32, (size_t)z[0] * 2);
    Operand *dgamma = like("dgamma", F32, gamma), *dbeta = like("dbeta", F32, beta);
    upload_all();
    RUN(layer_norm, M(y), F(stats), M(x), M(gamma), M(beta), z[0], z[1], 1e-5f);
    RUN(layer_norm_backward, M(dx), F(dgamma), F(dbeta), M(dy), M(x), M(gamma), F(stats), z[0], z[1]);
    expect(y, of, "y", rounding), expect(dx, of, "dx", rounding);
    expect(dgamma, of, "dgamma", rounding), expect(dbeta, of, "dbeta", rounding);
    clear();
}

static void compare_pointwise(void) {
    for (int f = SILU; f <= SQUARE; f++) {
        const char *of = activations[f];
        Operand *x = given(of, "x"), *dy = given(of, "dy"), *y = like("y", storage, x),
                *dx = like("dx", storage, x);
        upload_all();
        RUN(activation, M(y), M(x), x->count, (Activation)f);
        RUN(activation_backward, M(dx), M(dy), M(x), x->count, (Activation)f);
        expect(y, of, "y", rounding), expect(dx, of, "dx", rounding);
        clear();
    }
    {
        int z[2];
        params("geglu", z, 2);
        Operand *x = given("geglu", "x"), *dy = given("geglu", "dy"), *y = like("y", storage, dy),
                *dx = like("dx", storage, x);
        upload_all();
        RUN(geglu, M(y), M(x), z[0], z[1]);
        RUN(geglu_backward, M(dx), M(dy), M(x), z[0], z[1], false);
        expect(y, "geglu", "y", rounding), expect(dx, "geglu", "dx", rounding);
        clear();
    }
    {
        int z[4];
        params("upsample", z, 4);
        Operand *x = given("upsample", "x"), *dy = given("upsample", "dy");
        Operand *y = like("y", storage, dy), *dx = like("dx", storage, x);
        upload_all();
        RUN(upsample, M(y), M(x), z[0], z[1], z[2], z[3]);
        RUN(upsample_backward, M(dx), M(dy), z[0], z[1], z[2], z[3]);
        expect(y, "upsample", "y", rounding), expect(dx, "upsample", "dx", rounding);
        clear();
    }
    for (int i = 0; i < 4; i++) {
        char of[32];
        snprintf(of, sizeof of, "pool%d", i);
        int z[13];
        params(of, z, 13);
        if (z[12] > POOL_AVERAGE) continue; // count_include_pad=True: no network here has it
        Conv p = {z[0], z[1], z[2], z[3], z[4], z[5], z[6], z[7], z[8], z[9], z[10], z[11]};
        Operand *x = given(of, "x"), *dy = given(of, "dy"), *y = like("y", storage, dy),
                *dx = like("dx", storage, x);
        upload_all();
        RUN(pool, M(y), M(x), p, (Pool)z[12]);
        RUN(pool_backward, M(dx), M(dy), M(x), p, (Pool)z[12]);
        expect(y, of, "y", rounding), expect(dx, of, "dx", rounding);
        clear();
    }
    {
        int z[3]; // rows cols entries
        params("embed", z, 3);
        Operand *table = given_as(F32, "embed", "table"), *ids = given_as(I32, "embed", "ids"),
                *dy = given("embed", "dy");
        Operand *y = like("y", storage, dy), *dtable = like("dtable", F32, table);
        upload_all();
        RUN(embed, M(y), M(table), I(ids), z[0], z[1]);
        RUN(embed_backward, F(dtable), M(dy), I(ids), z[0], z[1]);
        expect(y, "embed", "y", rounding), expect(dtable, "embed", "dtable", rounding);
        clear();
    }
    for (int i = 0; i < 3; i++) {
        char of[32];
        snprintf(of, sizeof of, "sinusoid%d", i);
        int z[4]; // rows dim cos_first shift
        params(of, z, 4);
        float *t = xmalloc((size_t)z[0] * sizeof *t), *f = frequencies(z[1] / 2, (float)z[3]);
        store_read_f32(stored(of, "t"), t);
        Operand *y = zeros("y", storage, (size_t)z[0] * z[1]);
        upload_all();
        RUN(sinusoid, M(y), t, f, z[0], z[1], z[2]);
        expect(y, of, "y", fmax(rounding, 1.2e-4)); // a step of fp32 in a frequency, times 999
        clear(), free(t), free(f);
    }
}

static void compare_losses(void) {
    const char *const names[] = {"mse", "l1", "huber"};
    for (int f = LOSS_MSE; f <= LOSS_HUBER; f++) {
        const char *of = names[f];
        int z[2];
        params(of, z, 2);
        Operand *x = given(of, "prediction"), *target = given(of, "target"),
                *weight = given_as(F32, of, "weight");
        Operand *dloss = given_as(F32, of, "dloss"), *loss = zeros("loss", F32, 1),
                *dx = like("dx", storage, x);
        upload_all();
        RUN(loss, F(loss), M(x), M(target), F(weight), z[0], z[1], (Loss)f, 1e-3f);
        RUN(loss_backward, M(dx), F(dloss), M(x), M(target), F(weight), z[0], z[1], (Loss)f, 1e-3f);
        expect(loss, of, "loss", rounding), expect(dx, of, "dprediction", rounding);
        clear();
    }
    const char *of = "log_softmax";
    int z[2];
    params(of, z, 2);
    Operand *x = given(of, "x"), *ids = given_as(I32, of, "ids"), *dy = given(of, "dy"),
            *dloss = given_as(F32, of, "dloss");
    Operand *y = like("y", storage, x), *dx = like("dx", storage, x), *dx_pick = like("dx", storage, x);
    Operand *loss = zeros("loss", F32, 1), *dy_pick = like("dy", storage, x);
    upload_all();
    RUN(log_softmax, M(y), M(x), z[0], z[1]);
    RUN(log_softmax_backward, M(dx), M(dy), M(y), z[0], z[1]);
    RUN(pick, F(loss), M(y), I(ids), z[0], z[1]);
    RUN(pick_backward, M(dy_pick), F(dloss), I(ids), z[0], z[1]);
    RUN(log_softmax_backward, M(dx_pick), M(dy_pick), M(y), z[0], z[1]);
    expect(y, of, "y", rounding), expect(dx, of, "dx", rounding), expect(loss, of, "loss", rounding);
    expect(dx_pick, of, "dx_pick", rounding);
    clear();
}

static void compare_optimiser(void) {
    const char *of = "adamw";
    int z[4]; // steps, warm-up, total, elements of the first tensor (the rest is a second one)
    params(of, z, 4);
    Operand *w = given_as(F32, of, "w"), *m = like("m", F32, w), *v = like("v", F32, w),
            *e = given_as(F32, of, "w");
    Operand *g = like("g", F32, w), *s = zeros("state", F32, state_floats);
    OptimiserConfig c = {1e-2f, 0.9f, 0.999f, 1e-8f, 0.1f, 1, (float)z[1], (float)z[2], 0};
    size_t n1 = (size_t)z[3], n2 = w->count - n1;
    OptimiserState *state = (OptimiserState *)F(s);
    float *gradients = xmalloc((size_t)z[0] * w->count * sizeof *gradients);
    store_read_f32(stored(of, "g"), gradients);
    upload_all();
    for (int step = 0; step < z[0]; step++) {
        char name[32];
        backend.upload(F(g), gradients + (size_t)step * w->count, w->count * sizeof *gradients);
        TrainedTensor list[] = {{F(w), F(m), F(v), F(g), F(e), n1},
                                {F(w) + n1, F(m) + n1, F(v) + n1, F(g) + n1, F(e) + n1, n2}};
        if (backend.optimise && step % 2) // both ways give the same
            backend.optimise(list, 2, state, c, 0.95f);
        else {
            backend.sum_square(state, F(g), n1);
            backend.sum_square(state, F(g) + n1, n2);
            backend.optimiser_begin(state, c);
            backend.adamw(F(w), F(m), F(v), F(g), state, c, n1);
            backend.adamw(F(w) + n1, F(m) + n1, F(v) + n1, F(g) + n1, state, c, n2);
            backend.ema(F(e), F(w), state, 0.95f, w->count);
        }
        snprintf(name, sizeof name, "w%d", step + 1);
        expect(w, of, name, 1e-6); // a step moves w by 0.01, and is right to 1e-5 of itself
        snprintf(name, sizeof name, "ema%d", step + 1);
        expect(e, of, name, 1e-6);
        OptimiserState seen;
        backend.download(&seen, state, sizeof seen);
        float want;
        snprintf(name, sizeof name, "norm%d", step + 1);
        store_read_f32(stored(of, name), &want);
        check_close("PyTorch's gradient norm", &seen.norm, &want, 1, 1e-6);
        snprintf(name, sizeof name, "rate%d", step + 1);
        store_read_f32(stored(of, name), &want);
        check_close("diffusers' learning rate", &seen.rate, &want, 1, 1e-6);
    }
    free(gradients);
    clear();
}

static void compare_with_pytorch(void) {
    on_host = false;
    fixtures = store_open("test/fixtures/kernels.safetensors");
    compare_products();
    compare_norms();
    compare_pointwise();
    compare_losses();
    compare_optimiser();
    store_close(fixtures);
}

// What a reader relies on without thinking: NaN is never swallowed.
static void test_nan(void) {
    for (int f = SILU; f <= SQUARE; f++) {
        Operand *x = input("x", storage, 33), *y = output("y", storage, 33);
        set(x, 17, NAN);
        on_host = false;
        upload_all();
        backend.activation(M(y), M(x), 33, (Activation)f);
        download_all(1);
        check(isnan(value_of(y->result[1], storage, 17)) && !isnan(value_of(y->result[1], storage, 16)),
              activations[f]);
        clear();
    }
    Conv p = {1, 4, 4, 3, 2, 2, 3, 2, 2, 2, 0, 0};
    Operand *x = input("x", storage, conv_x(p)), *y = output("y", storage, conv_y(p));
    set(x, 3, NAN);
    upload_all();
    backend.pool(M(y), M(x), p, POOL_MAX);
    download_all(1);
    check(isnan(value_of(y->result[1], storage, 0)), "a NaN passes the maximum of a pooling");
    clear();
    for (int c = 3; c <= 16 && backend.conv2d_normed;
         c += 13) { // direct, and Winograd's method: one pixel of 9 x 9 is not finite
        Conv q = {1, 9, 9, c, 9, 9, 16, 3, 3, 1, 1, 1};
        x = input("x", storage, conv_x(q)), y = output("y", storage, conv_y(q));
        Operand *w = input("w", F32, conv_w(q)), *gamma = input("gamma", F32, (size_t)c);
        set(x, (size_t)(4 * 9 + 4) * (size_t)c, NAN);
        upload_all();
        backend.conv2d_normed(M(y), M(x), M(gamma), M(gamma), (GroupNorm){1, 81, c, 1, 1e-5f, true}, M(w),
                              M(NULL), M(NULL), q);
        download_all(1);
        size_t count = 0;
        for (size_t i = 0; i < y->count; i++) count += isnan(value_of(y->result[1], storage, i));
        check(count == y->count, "a NaN passes a group norm inside a convolution, to every pixel");
        set(x, (size_t)(4 * 9 + 4) * (size_t)c, 0), set(x, (size_t)(2 * 5 + 2) * (size_t)c, NAN);
        upload_all();
        backend.conv2d_upsampled(M(y), M(x), M(w), M(NULL),
                                 q); // x (5, 5): its pixel (2, 2) is (4, 4) to (5, 5)
        download_all(1);
        check(isnan(value_of(y->result[1], storage, (size_t)(6 * 9 + 6) * 16)) &&
                  !isnan(value_of(y->result[1], storage, (size_t)(8 * 9 + 8) * 16)),
              "a NaN passes an upsampling inside a convolution, to its neighbours");
        clear();
    }
}

// The steps of cpu/gemm.c before the fast one.
static void test_gemm_steps(void) {
    if (strncmp(backend.name(), "cpu", 3) || !strncmp(backend.name(), "cpu plain", 9)) return;
    for (int i = 0; i < 3; i++) {
        setenv("SD_GEMM", ((const char *const[]){"naive", "blocked", "packed"})[i], 1);
        backend_init(2);
        test_gemm();
    }
    unsetenv("SD_GEMM");
    backend_init(2);
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(void);
    } tests[] = {{"fill_copy", test_fill_copy},
                 {"conversions", test_conversions},
                 {"gemm", test_gemm},
                 {"gemm_steps", test_gemm_steps},
                 {"conv", test_conv},
                 {"sum_rows", test_sum_rows},
                 {"attention", test_attention},
                 {"group_norm", test_group_norm},
                 {"layer_norm", test_layer_norm},
                 {"activation", test_activation},
                 {"exponentials", test_exponentials},
                 {"combine", test_combine},
                 {"movement", test_movement},
                 {"fused", test_fused},
                 {"pool", test_pool},
                 {"embed", test_embed},
                 {"losses", test_losses},
                 {"optimiser", test_optimiser},
                 {"nan", test_nan},
                 {"PyTorch", compare_with_pytorch}};
    backend_init(2);
    storage = backend.storage;
    rounding = storage == F32 ? fp32_rounding : storage == F16 ? 0x1p-10 : 0x1p-7;
    printf("kernels: %s\n", backend.name());
    for (int k = 1; k < argc; k++) { // `kernels attention PyTorch` runs these alone
        bool known = false;
        for (int i = 0; i < COUNT(tests); i++) known |= !strcmp(argv[k], tests[i].name);
        if (known) continue;
        printf("the tests are:");
        for (int i = 0; i < COUNT(tests); i++) printf(" %s", tests[i].name);
        printf("\n");
        die_usage("\"%s\" is none of the tests", argv[k]);
    }
    for (int i = 0; i < COUNT(tests); i++) {
        bool wanted = argc == 1;
        for (int k = 1; k < argc; k++) wanted |= !strcmp(argv[k], tests[i].name);
        if (!wanted) continue;
        random_state = 42; // the same values, whichever tests run
        tests[i].run();
#ifdef _OPENMP
        int lost = loops_without_threads;
        loops_without_threads = 0;
        check(!lost,
              format("%s: %d loops found no threads, as one around them had one", tests[i].name, lost));
#endif
    }
    return test_report();
}
