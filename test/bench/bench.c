// bench.c: how fast this machine is, how fast the networks are on it, and how far that is from what their own
// multiply-adds would take at the machine's peak. `make bench`; QUICK=1: the tiny model alone.
//
// Each kernel is timed where it is called, in a pass of the network, under the shape that `sd info --kernels`
// lists. So a table adds up to its pass; what lies between the kernels is its last row. Of several passes the
// fastest counts: neighbours only add. Each network has a process of its own, which gives its memory back.
//
// With one thread (OMP_NUM_THREADS=1) the time is the processor's, from which others take nothing but cache
// and bandwidth: for machines that are never quiet.
#define _GNU_SOURCE // getloadavg, madvise, clock_gettime
#include "cli/model_folder.h"
#include "lib/nn/dry.h"
#include "lib/nn/ranks.h"
#include "weights/toy/made.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

static struct {
    double (*chains)(long, float *); // multiply-adds of the backend's instruction set
    double fp32;      // so many of them take as long as one in fp32: above 1 where they are bf16's
    double bandwidth; // bytes a second, all threads
} * machine;          // shared by the processes
static bool quick;

static double larger(double a, double b) { return a > b ? a : b; }

static double now(void) {
    if (!strstr(backend.name(), " 1 thread")) return seconds();
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// ---- the machine ------------------------------------------------------------------------------------------

// Twelve independent chains of a = a x + y hide the latency of a multiply-add. None begins at 1, which stays
// 1: the compiler would leave it out. Multiply-adds done.
#define CHAINS(name, bytes, ...)                                                                             \
    __VA_ARGS__ static double name(long rounds, float *keep) {                                               \
        typedef float V __attribute__((vector_size(bytes)));                                                 \
        V a[12], x = (V){0} + 0.999f, y = (V){0} + 0.001f;                                                   \
        for (int i = 0; i < 12; i++) a[i] = (V){0} + (float)(i + 2);                                         \
        for (long r = 0; r < rounds; r++)                                                                    \
            _Pragma("GCC unroll 12") for (int i = 0; i < 12; i++) a[i] = a[i] * x + y;                       \
        for (int i = 0; i < 12; i++) *keep += a[i][0];                                                       \
        return (double)rounds * 12 * (bytes / 4);                                                            \
    }
CHAINS(chains_portable, 16, )
#if defined(__x86_64__)
CHAINS(chains_avx2, 32, __attribute__((target("avx2,fma"))))
CHAINS(chains_avx512, 64, __attribute__((target("avx512f,fma,prefer-vector-width=512"))))

__attribute__((target("avx512f,avx512bf16"))) static double chains_avx512_bf16(long rounds, float *keep) {
    typedef short Halves __attribute__((vector_size(64)));
    __m512bh x = (__m512bh)((Halves){0} + (short)0x3f80), y = (__m512bh)((Halves){0} + (short)0x3a80);
    __m512 a[12];
    for (int i = 0; i < 12; i++) a[i] = (__m512){0} + (float)i; // equal ones would be computed once
    for (long r = 0; r < rounds; r++)
        _Pragma("GCC unroll 12") for (int i = 0; i < 12; i++) a[i] = _mm512_dpbf16_ps(a[i], x, y);
    for (int i = 0; i < 12; i++) *keep += a[i][0];
    return (double)rounds * 12 * 32;
}

// Six tiles of sums, each 16 x 16 x 32 products at a time (cpu/tiles.c).
__attribute__((target("amx-tile,amx-bf16"))) static double chains_amx_bf16(long rounds, float *keep) {
    static const struct {
        uint8_t palette, start, unused[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shapes = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&shapes);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    rounds /= 16; // each is long
    for (long r = 0; r < rounds; r++) {
        _tile_dpbf16ps(0, 6, 7);
        _tile_dpbf16ps(1, 6, 7);
        _tile_dpbf16ps(2, 6, 7);
        _tile_dpbf16ps(3, 6, 7);
        _tile_dpbf16ps(4, 6, 7);
        _tile_dpbf16ps(5, 6, 7);
    }
    float sums[256];
    _tile_stored(0, sums, 64);
    _tile_release();
    *keep += sums[0];
    return (double)rounds * 6 * 16 * 16 * 32;
}
#endif

// Multiply-adds a second of one thread, or of all: the best of some times 10 ms or so.
static double chains_speed(double (*chains)(long, float *), bool all, int times) {
    double best = 0;
    for (int k = 0; k < times; k++) {
        double done = 0, started = now();
        float keep = 0;
#pragma omp parallel if (all) reduction(+ : done, keep)
        done += chains(4000000, &keep);
        best = larger(best, done / (now() - started) * (isfinite(keep) ? 1 : 0));
    }
    return best;
}

// The last one whose name the backend's contains is the backend's; the last one in fp32 is what Winograd's
// products would take.
static double (*fp32_chains)(long, float *);
static void print_chains(const char *isa, double (*chains)(long, float *)) {
    double one = chains_speed(chains, false, 20), all = chains_speed(chains, true, 20);
    printf("multiply-adds, %-15s %7.1f GFLOP/s one thread, %7.1f all\n", isa, 2 * one / 1e9, 2 * all / 1e9);
    if (!strstr(isa, "bf16")) fp32_chains = chains;
    if (strstr(backend.name(), isa)) {
        machine->chains = chains;
        machine->fp32 = one / chains_speed(fp32_chains, false, 20);
    }
}

// a = b + s c, arrays that no cache holds: three streams.
static double triad_speed(void) {
    const size_t n = (size_t)(quick ? 8 : 32) << 20;
    float *a = xmalloc(n * sizeof *a), *b = xmalloc(n * sizeof *b), *c = xmalloc(n * sizeof *c);
    double best = 0;
    for (int k = 0; k < 5; k++) {
        double started = now();
#pragma omp parallel for schedule(static)
        for (size_t i = 0; i < n; i++) a[i] = k ? b[i] + 0.5f * c[i] : (b[i] = c[i] = 1);
        if (k) best = larger(best, 12.0 * (double)n / (now() - started));
    }
    free(a), free(b), free(c);
    return best;
}

// Memory that is touched for the first time, bytes a second of one thread.
static double clearing_speed(int advice) {
    const size_t bytes = (size_t)256 << 20;
    double best = 0;
    for (int k = 0; k < 3; k++) {
        char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED) die("out of memory");
        madvise(at, bytes, advice);
        double started = now();
        for (size_t i = 0; i < bytes; i += 4096) ((volatile char *)at)[i] = 1;
        best = larger(best, (double)bytes / (now() - started));
        munmap(at, bytes);
    }
    return best;
}

static void measure_machine(void) {
    double load[3] = {0};
    machine->chains = fp32_chains = chains_portable, machine->fp32 = 1;
    if (getloadavg(load, 3) < 1) load[0] = NAN;
    printf("%s, load %.1f%s\n", backend.name(), load[0], load[0] > 0.5 ? ": other programs run" : "");
    print_chains("portable", chains_portable);
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) print_chains("avx2", chains_avx2);
    if (__builtin_cpu_supports("avx512f")) print_chains("avx512", chains_avx512);
    if (__builtin_cpu_supports("avx512bf16")) print_chains("avx512_bf16", chains_avx512_bf16);
    if (strstr(backend.name(), "amx_bf16")) print_chains("amx_bf16", chains_amx_bf16); // it may use tiles
#endif
    machine->bandwidth = triad_speed();
    printf("memory, a = b + s c            %7.1f GB/s all threads\n", machine->bandwidth / 1e9);
    printf("clearing of pages              %7.1f GB/s one thread, in large pages %.1f\n",
           clearing_speed(MADV_NOHUGEPAGE) / 1e9, clearing_speed(MADV_HUGEPAGE) / 1e9);
}

// ---- the kernels, timed where they are called -------------------------------------------------------------

typedef struct {
    const char *kernel;
    char shape[120];
    long calls;
    double spent, products; // seconds; multiply-adds
} Row;
static Row rows[400];
static int row_count;
static Backend real;

static void note_call(const char *kernel, double spent, double products, const char *shape, ...)
    PRINTF_LIKE(4, 5);
static void note_call(const char *kernel, double spent, double products, const char *shape, ...) {
    Row r = {.kernel = kernel};
    va_list args;
    va_start(args, shape);
    vsnprintf(r.shape, sizeof r.shape, shape, args);
    va_end(args);
    int i = 0;
    while (i < row_count && (strcmp(rows[i].kernel, kernel) || strcmp(rows[i].shape, r.shape))) i++;
    if (i == sizeof rows / sizeof *rows) die("more than %d shapes", i);
    if (i == row_count) rows[row_count++] = r;
    rows[i].calls++, rows[i].spent += spent, rows[i].products += products;
}

// Of a convolution: Winograd's products where it can be used and needs fewer (cpu/winograd.c), 36 for each
// tile of 4 x 4 outputs instead of 9 for each output; always in fp32.
static double conv_products(Conv p) {
    double channels = (double)p.n * p.c * p.oc, direct = channels * p.oh * p.ow * p.kh * p.kw,
           tiles = channels * 36 * ((p.oh + 3) / 4) * ((p.ow + 3) / 4);
    bool suits = p.kh == 3 && p.kw == 3 && p.stride == 1 && p.c % 16 == 0 && p.oc % 16 == 0;
    return suits ? fmin(direct, tiles * machine->fp32) : direct;
}

// After the arguments: multiply-adds, and the shape.
#define TIMED(kernel, parameters, arguments, ...)                                                            \
    static void timed_##kernel parameters {                                                                  \
        double started = now();                                                                              \
        real.kernel arguments;                                                                               \
        real.sync();                                                                                         \
        note_call(#kernel, now() - started, __VA_ARGS__);                                                    \
    }
#define CONV                                                                                                 \
    conv_products(p), "n=%d h=%d w=%d c=%d oc=%d kh=%d kw=%d stride=%d", p.n, p.h, p.w, p.c, p.oc, p.kh,     \
        p.kw, p.stride
#define MATRIX 0, "rows=%d cols=%d", row, cols
TIMED(copy, (Mem y, Mem x, size_t count), (y, x, count), 0, "count=%zu", count)
TIMED(gemm, (Mem c, Mem a, Mem b, Mem bias, Mem residual, Gemm g), (c, a, b, bias, residual, g),
      (double)g.m *g.n *g.k, "m=%d n=%d k=%d", g.m, g.n, g.k)
TIMED(conv2d, (Mem y, Mem x, Mem w, Mem bias, Mem residual, Conv p), (y, x, w, bias, residual, p), CONV)
TIMED(conv2d_normed,
      (Mem y, Mem x, Mem gamma, Mem beta, GroupNorm norm, Mem w, Mem bias, Mem residual, Conv p),
      (y, x, gamma, beta, norm, w, bias, residual, p), CONV)
TIMED(conv2d_upsampled, (Mem y, Mem x, Mem w, Mem bias, Conv p), (y, x, w, bias, p), CONV)
TIMED(attention, (Mem o, float *lse, Mem q, Mem k, Mem v, Attention p), (o, lse, q, k, v, p),
      2.0 * p.n * p.heads * p.tq * p.d * (p.causal ? (p.tk + 1) / 2 : p.tk),
      "n=%d heads=%d tq=%d tk=%d d=%d%s", p.n, p.heads, p.tq, p.tk, p.d, p.causal ? " causal" : "")
TIMED(group_norm, (Mem y, float *stats, Mem x, Mem gamma, Mem beta, GroupNorm p),
      (y, stats, x, gamma, beta, p), 0, "n=%d hw=%d c=%d groups=%d%s", p.n, p.hw, p.c, p.groups,
      p.silu ? " silu" : "")
TIMED(layer_norm, (Mem y, float *stats, Mem x, Mem gamma, Mem beta, int row, int cols, float eps),
      (y, stats, x, gamma, beta, row, cols, eps), MATRIX)
TIMED(activation, (Mem y, Mem x, size_t count, Activation f), (y, x, count, f), 0, "count=%zu f=%d", count,
      (int)f)
TIMED(geglu, (Mem y, Mem x, int row, int cols), (y, x, row, cols), MATRIX)
TIMED(combine, (Mem y, float a, Mem x, float b, Mem z, float c, size_t count), (y, a, x, b, z, c, count), 0,
      "count=%zu", count)
TIMED(add_vector, (Mem y, Mem x, Mem v, int groups, int row, int cols), (y, x, v, groups, row, cols), 0,
      "groups=%d rows=%d cols=%d", groups, row, cols)
TIMED(copy_columns, (Mem y, int y_stride, Mem x, int x_stride, int row, int cols, bool more),
      (y, y_stride, x, x_stride, row, cols, more), MATRIX)
TIMED(upsample, (Mem y, Mem x, int n, int h, int w, int c), (y, x, n, h, w, c), 0, "n=%d h=%d w=%d c=%d", n,
      h, w, c)

static void time_kernels(void) {
    real = backend;
#define T(kernel)                                                                                            \
    if (real.kernel) backend.kernel = timed_##kernel;
    T(copy)
    T(gemm)
    T(conv2d)
    T(conv2d_normed)
    T(conv2d_upsampled)
    T(attention)
    T(group_norm)
    T(layer_norm)
    T(activation)
    T(geglu)
    T(combine)
    T(add_vector)
    T(copy_columns)
    T(upsample)
#undef T
}

// ---- the networks -----------------------------------------------------------------------------------------

typedef struct {
    double whole, products, scores; // seconds; multiply-adds; seconds of attention among as many keys
    double peak;                    // multiply-adds a second, right before and after: the clock wanders
} Pass;
typedef void Network_(const Model *m, int side);

static Pass pass_once(Network_ *run, const Model *m, int side) {
    row_count = 0;
    Scope s = scope_begin();
    double before = chains_speed(machine->chains, true, 2), started = now();
    run(m, side);
    backend.sync();
    Pass p = {.whole = now() - started};
    p.peak = (before + chains_speed(machine->chains, true, 2)) / 2;
    scope_end(s, NULL);
    for (int i = 0; i < row_count; i++) {
        int tq = 0, tk = 1;
        const char *at = strstr(rows[i].shape, " tq=");
        if (at) sscanf(at, " tq=%d tk=%d", &tq, &tk);
        p.products += rows[i].products;
        if (tq == tk) p.scores += rows[i].spent;
    }
    return p;
}

static int slower_first(const void *a, const void *b) {
    double x = ((const Row *)a)->spent, y = ((const Row *)b)->spent;
    return (x < y) - (x > y);
}

static void print_row(long calls, const char *kernel, const char *shape, double spent, double products,
                      const Pass *p) {
    printf("%5ld %-17s %-55s %9.2f ms %5.1f %%", calls, kernel, shape, spent * 1e3, 100 * spent / p->whole);
    if (products > 0) printf(" %8.2f %5.0f %%", 2e-9 * products, 100 * products / p->peak / spent);
    putchar('\n');
}

// The fastest of some passes, as a table; then how the time grows with the pictures' sides.
static void measure(const char *what, Network_ *run, const Model *m, int side, const int *sides) {
    Pass best = pass_once(run, m, side); // the first one touches the memory
    Row kept[sizeof rows / sizeof *rows];
    int kept_count = 0;
    best.whole = INFINITY;
    double spent = 0;
    for (int k = 0; k < 10 && (k < 2 || spent < (quick ? 0.5 : 3)); k++) {
        Pass p = pass_once(run, m, side);
        spent += p.whole;
        if (p.whole >= best.whole) continue;
        best = p, kept_count = row_count;
        memcpy(kept, rows, sizeof rows);
    }
    qsort(kept, (size_t)kept_count, sizeof *kept, slower_first);
    double least = best.products / best.peak;
    printf("\n%s: %.4f s; its %.2f G multiply-adds take %.4f s at the peak beside it: %.0f %% reached\n",
           what, best.whole, best.products / 1e9, least, 100 * least / best.whole);
    printf("%5s %-17s %-55s %12s %7s %8s %7s\n", "calls", "kernel", "shape", "all calls", "share", "GFLOP",
           "of peak");
    double rest = best.whole, others = 0;
    long other_calls = 0;
    for (int i = 0; i < kept_count; i++) {
        const Row *r = &kept[i];
        rest -= r->spent;
        if (quick && i >= 8)
            others += r->spent, other_calls += r->calls;
        else
            print_row(r->calls, r->kernel, r->shape, r->spent, r->products, &best);
    }
    if (other_calls) print_row(other_calls, "others", "", others, 0, &best);
    print_row(0, "between them", "", rest, 0, &best);

    DryUse use;
    dry_begin(true);
    Scope s = scope_begin();
    run(m, side);
    scope_end(s, NULL);
    use = dry_end();
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    printf("memory: %.0f MB of scratch at %d x %d pixels; with the weights %.0f MB resident\n",
           (double)use.scratch / 1e6, side, side, (double)r.ru_maxrss / 1e3);
    fflush(stdout);

    for (; sides && *sides; sides++) {
        Pass p = pass_once(run, m, *sides);
        if (*sides < side) p = pass_once(run, m, *sides);
        double pixels = pow((double)*sides / side, 2);
        printf(
            "at %4d x %4d pixels %8.3f s: of %d x %d's, a pixel, %.2f; attention among pixels, a pair, %.2f\n",
            *sides, *sides, p.whole, side, side, (p.whole - p.scores) / (best.whole - best.scores) / pixels,
            p.scores / best.scores / (pixels * pixels));
        fflush(stdout);
    }
}

static Tensor *made(int n, int h, int w, int c) {
    Tensor *t = tensor_new(SHAPE(n, h, w, c));
    float *x = xmalloc(tensor_count(t) * sizeof *x);
    made_fill("input.bench", 1, (int64_t[]){(int64_t)tensor_count(t)}, MADE_SOFT, x);
    tensor_write(t, x);
    free(x);
    return t;
}
static void text_pass(const Model *m, int side) {
    (void)side;
    text_encode(m->text_encoder, scope_ints(m->text_config.max_position_embeddings), 1);
}
static void unet_pass(const Model *m, int side) {
    Tensor *context = tensor_new(SHAPE(1, 77, m->unet_config.cross_attention_dim));
    float *zeros = xcalloc(tensor_count(context), sizeof *zeros);
    tensor_write(context, zeros);
    free(zeros);
    unet(m->unet, made(1, side / 8, side / 8, m->unet_config.in_channels), (float[]){500}, context, NULL);
}
static void encode_pass(const Model *m, int side) { vae_encode(m->vae, made(1, side, side, 3)); }
static void decode_pass(const Model *m, int side) {
    vae_decode(m->vae, made(1, side / 8, side / 8, m->vae_config.latent_channels));
}

// In a process of its own: nothing before it has started a thread.
static void apart(void (*work)(const char *arch, int what), const char *arch, int what) {
    fflush(stdout);
    pid_t child = fork();
    if (child < 0) die("cannot start a process: %s", strerror(errno));
    if (!child) {
        backend_init(0);
        work(arch, what);
        fflush(stdout);
        _exit(0);
    }
    int status;
    if (waitpid(child, &status, 0) < 0 || status) exit(1);
}

static void on_machine(const char *arch, int what) {
    (void)arch, (void)what;
    measure_machine();
}

static void on_network(const char *arch, int what) {
    static const struct {
        const char *name, *prefix;
        Network_ *run;
        bool grows;
    } passes[] = {{"text encoder", "text_encoder.", text_pass, false},
                  {"UNet", "unet.", unet_pass, true},
                  {"VAE encode", "vae.", encode_pass, false},
                  {"VAE decode", "vae.", decode_pass, true}};
    Model *m = model_declared(NULL, architecture(arch));
    Params part = params_part(&m->params, passes[what].prefix);
    made_params(&part, "", MADE_SOFT, F32);
    bool full = !strcmp(arch, "sd15");
    int side = 8 * m->unet_config.sample_size, sides[] = {256, full ? 1024 : 512, full ? 0 : 1024, 0};
    time_kernels();
    measure(format("%s, %s", arch, passes[what].name), passes[what].run, m, side,
            passes[what].grows && !quick ? sides : NULL);
}

int main(void) {
    quick = getenv("QUICK") != NULL;
    machine = ranks_shared(sizeof *machine);
    apart(on_machine, NULL, 0);
    for (int i = 0; i < 4; i++) apart(on_network, "tiny", i);
    for (int i = 0; i < 4 && !quick; i++) apart(on_network, "sd15", i);
    return 0;
}
