// dry.c: a backend that computes nothing. Its memory has addresses but no bytes: pieces are counted, uploads
// are ignored, downloads give zeros. Its kernels note their name and shape. So what a piece of work needs is
// found by running that very work: a training step of Stable Diffusion takes some milliseconds. See dry.h.
#include "dry.h"
#include "lib/base.h"

#include <stdlib.h>
#include <string.h>

#pragma GCC diagnostic ignored "-Wunused-parameter" // of its arguments a kernel here reads the shape alone

static Backend real; // dry_end() goes back to it

// ---- memory -----------------------------------------------------------------------------------------------

enum { ALIGN = 64 };
static size_t top, persistent, most_scratch; // bytes

// Not NULL; nobody looks behind it.
static void *address(size_t at) { return (void *)(uintptr_t)(ALIGN + at); }
static size_t aligned(size_t bytes) { return (bytes + ALIGN - 1) / ALIGN * ALIGN; }

static void *persistent_alloc(size_t bytes) {
    void *at = address(persistent);
    persistent += aligned(bytes);
    return at;
}
static void persistent_free(void *at) {} // the most that there was is asked for, and steps free nothing large

static void *scratch_alloc(size_t bytes) {
    void *at = address(top);
    top += aligned(bytes);
    if (top > most_scratch) most_scratch = top;
    return at;
}
static size_t scratch_mark(void) { return top; }
static void scratch_release(size_t mark) { top = mark; }
static void *scratch_release_but(size_t mark, void *at, size_t bytes) {
    top = mark;
    return scratch_alloc(bytes);
}
static size_t peak(void) { return persistent + most_scratch; }

static void upload(void *to, const void *host, size_t bytes) {}
static void download(void *host, const void *from, size_t bytes) { memset(host, 0, bytes); }
static void synchronise(void) {}
static const char *name(void) { return "dry"; }

// ---- kernels ----------------------------------------------------------------------------------------------

static DryCall *calls;
static int call_count;
static bool listing;

static void call(const char *kernel, const char *shape, ...) PRINTF_LIKE(2, 3);
static void call(const char *kernel, const char *shape, ...) {
    if (!listing) return;
    DryCall c = {.kernel = kernel, .count = 1};
    va_list args;
    va_start(args, shape);
    vsnprintf(c.shape, sizeof c.shape, shape, args);
    va_end(args);
    for (int i = 0; i < call_count; i++)
        if (!strcmp(calls[i].kernel, kernel) && !strcmp(calls[i].shape, c.shape)) {
            calls[i].count++;
            return;
        }
    calls = xrealloc(calls, (size_t)(call_count + 1) * sizeof *calls);
    calls[call_count++] = c;
}

static const char *type_name(Mem m) { return m.type == F32 ? "f32" : m.type == F16 ? "f16" : "bf16"; }

// A kernel in one line: the name, the parameters, and how the shape is written.
#define DRY(kernel, parameters, ...)                                                                         \
    static void kernel parameters { call(#kernel, __VA_ARGS__); }
#define MATRIX "rows=%d cols=%d", rows, cols
#define NORM "n=%d hw=%d c=%d groups=%d%s", p.n, p.hw, p.c, p.groups, p.silu ? " silu" : ""
#define CONV(weight)                                                                                         \
    "n=%d h=%d w=%d c=%d oh=%d ow=%d oc=%d kh=%d kw=%d stride=%d top=%d left=%d weight=%s", p.n, p.h, p.w,   \
        p.c, p.oh, p.ow, p.oc, p.kh, p.kw, p.stride, p.pad_top, p.pad_left, weight
#define ATTENTION "n=%d heads=%d tq=%d tk=%d d=%d%s", p.n, p.heads, p.tq, p.tk, p.d, p.causal ? " causal" : ""
#define POOL "n=%d h=%d w=%d c=%d size=%d stride=%d", p.n, p.h, p.w, p.c, p.kh, p.stride

DRY(fill, (Mem y, float value, size_t count), "count=%zu", count)
DRY(copy, (Mem y, Mem x, size_t count), "count=%zu", count)
DRY(gemm, (Mem c, Mem a, Mem b, Mem bias, Mem residual, Gemm g), "m=%d n=%d k=%d a=%s b=%s%s%s%s", g.m, g.n,
    g.k, type_name(a), type_name(b), g.a_transposed ? " a_transposed" : "",
    g.b_transposed ? " b_transposed" : "", g.add ? " add" : "")
DRY(conv2d, (Mem y, Mem x, Mem weight, Mem bias, Mem residual, Conv p), CONV(type_name(weight)))
DRY(conv2d_backward_input, (Mem dx, Mem dy, Mem weight, Conv p, bool add), CONV(type_name(weight)))
DRY(conv2d_backward_weight, (float *dweight, Mem dy, Mem x, Conv p), CONV("f32"))
DRY(attention, (Mem o, float *lse, Mem q, Mem k, Mem v, Attention p), ATTENTION)
DRY(attention_backward,
    (Mem dq, Mem dk, Mem dv, Mem dout, Mem q, Mem k, Mem v, Mem o, const float *lse, Attention p), ATTENTION)
DRY(sum_rows, (Mem y, Mem x, int groups, int rows, int cols), "groups=%d rows=%d cols=%d", groups, rows, cols)
DRY(group_norm, (Mem y, float *stats, Mem x, Mem gamma, Mem beta, GroupNorm p), NORM)
DRY(group_norm_backward,
    (Mem dx, float *dgamma, float *dbeta, Mem dy, Mem x, Mem gamma, Mem beta, const float *stats,
     GroupNorm p),
    NORM)
DRY(layer_norm, (Mem y, float *stats, Mem x, Mem gamma, Mem beta, int rows, int cols, float eps), MATRIX)
DRY(layer_norm_backward,
    (Mem dx, float *dgamma, float *dbeta, Mem dy, Mem x, Mem gamma, const float *stats, int rows, int cols),
    MATRIX)
DRY(activation, (Mem y, Mem x, size_t count, Activation f), "count=%zu f=%d", count, (int)f)
DRY(activation_backward, (Mem dx, Mem dy, Mem x, size_t count, Activation f), "count=%zu f=%d", count, (int)f)
DRY(geglu, (Mem y, Mem x, int rows, int inner), "rows=%d inner=%d", rows, inner)
DRY(geglu_backward, (Mem dx, Mem dy, Mem x, int rows, int inner, bool add), "rows=%d inner=%d", rows, inner)
DRY(combine, (Mem y, float a, Mem x, float b, Mem z, float c, size_t count), "count=%zu", count)
DRY(combine_rows, (Mem y, const float *a, Mem x, const float *b, Mem z, int rows, int cols, bool add), MATRIX)
DRY(clamp, (Mem y, Mem x, float low, float high, size_t count), "count=%zu", count)
DRY(multiply, (Mem y, Mem a, Mem b, size_t count, bool add), "count=%zu", count)
DRY(add_vector, (Mem y, Mem x, Mem v, int groups, int rows, int cols), "groups=%d rows=%d cols=%d", groups,
    rows, cols)
DRY(copy_columns, (Mem y, int y_stride, Mem x, int x_stride, int rows, int cols, bool add), MATRIX)
DRY(upsample, (Mem y, Mem x, int n, int h, int w, int c), "n=%d h=%d w=%d c=%d", n, h, w, c)
DRY(upsample_backward, (Mem dx, Mem dy, int n, int h, int w, int c), "n=%d h=%d w=%d c=%d", n, h, w, c)
DRY(pool, (Mem y, Mem x, Conv p, Pool kind), POOL)
DRY(pool_backward, (Mem dx, Mem dy, Mem x, Conv p, Pool kind), POOL)
DRY(conv2d_normed,
    (Mem y, Mem x, Mem gamma, Mem beta, GroupNorm norm, Mem weight, Mem bias, Mem residual, Conv p),
    CONV(type_name(weight)))
DRY(conv2d_upsampled, (Mem y, Mem x, Mem weight, Mem bias, Conv p), CONV(type_name(weight)))
DRY(embed, (Mem y, Mem table, const int32_t *ids, int rows, int cols), MATRIX)
DRY(embed_backward, (float *dtable, Mem dy, const int32_t *ids, int rows, int cols), MATRIX)
DRY(sinusoid, (Mem y, const float *t, const float *f, int rows, int dim, bool cos_first), "rows=%d cols=%d",
    rows, dim)
DRY(loss, (float *at, Mem x, Mem target, const float *weight, int rows, int cols, Loss f, float c), MATRIX)
DRY(loss_backward,
    (Mem dx, const float *dloss, Mem x, Mem target, const float *weight, int rows, int cols, Loss f, float c),
    MATRIX)
DRY(log_softmax, (Mem y, Mem x, int rows, int cols), MATRIX)
DRY(log_softmax_backward, (Mem dx, Mem dy, Mem y, int rows, int cols), MATRIX)
DRY(pick, (float *at, Mem x, const int32_t *ids, int rows, int cols), MATRIX)
DRY(pick_backward, (Mem dx, const float *dloss, const int32_t *ids, int rows, int cols), MATRIX)
DRY(sum_square, (OptimiserState * s, const float *g, size_t count), "count=%zu", count)
DRY(optimiser_begin, (OptimiserState * s, OptimiserConfig c), "%s", "")
DRY(adamw, (float *w, float *m, float *v, float *g, const OptimiserState *s, OptimiserConfig c, size_t count),
    "count=%zu", count)
DRY(ema, (float *e, const float *w, const OptimiserState *s, float decay, size_t count), "count=%zu", count)

static const Backend dry = {
    .name = name,
    .alloc = persistent_alloc,
    .free = persistent_free,
    .temp = scratch_alloc,
    .mark = scratch_mark,
    .release = scratch_release,
    .release_but = scratch_release_but,
    .peak = peak,
    .upload = upload,
    .download = download,
    .sync = synchronise,
    KERNELS_BY_NAME,
};

// ---- in and out -------------------------------------------------------------------------------------------

void dry_begin(bool list) {
    if (backend.name == name) die("dry_begin: the backend is dry already");
    real = backend;
    backend = dry;
    backend.storage = real.storage;
    if (!real.conv2d_normed) backend.conv2d_normed = NULL; // what is convolved then takes scratch memory
    if (!real.conv2d_upsampled) backend.conv2d_upsampled = NULL;
    top = persistent = most_scratch = 0;
    listing = list, call_count = 0;
}

DryUse dry_end(void) {
    backend = real;
    return (DryUse){persistent, most_scratch, calls, call_count};
}
