// pointwise.c: elementwise kernels: filling and copying with conversion, activations, GEGLU,
// sums of tensors. Memory-bound but for the activations; all take any type and compute in fp32.
#include "vector.h"

#include "lib/base.h"

#include <math.h>

// Runs over elements i = 0, W, 2 W, ... of `count`, `lanes` of them at a time, in pieces shared among
// threads. A piece is always the same elements, and no element depends on another.
enum { PIECE = 8192 };
#define EACH(count, cost)                                                                                    \
    PARALLEL_FOR((count) * (cost) > WORTH_A_THREAD)                                                          \
    for (size_t piece = 0; piece < (count); piece += PIECE)                                                  \
        for (size_t i = piece, end = piece + PIECE < (count) ? piece + PIECE : (count); i < end; i += W)
#define LANES (end - i < W ? (int)(end - i) : W)

INLINE vec get(Mem x, size_t i, int lanes) { return load_part_as(from(x, i).at, x.type, lanes); }
INLINE void put(Mem y, size_t i, vec v, int lanes) { store_part_as(from(y, i).at, y.type, v, lanes); }

static void fill(Mem y, float value, size_t count) { EACH(count, 1) put(y, i, all(value), LANES); }

static void copy(Mem y, Mem x, size_t count) {
    if (y.type == x.type) {
        if (count) memmove(y.at, x.at, count * size_of(x.type));
        return;
    }
    EACH(count, 1) put(y, i, get(x, i, LANES), LANES);
}

// ---- activations ------------------------------------------------------------------------------------------

// The library's: only statistics need it, a few values at a time.
INLINE vec log_each(vec x) {
    for (int i = 0; i < W; i++) x[i] = logf(x[i]);
    return x;
}

INLINE vec value_of(const Activation f, vec x) {
    switch (f) {
    case SILU: return x * sigmoid_vec(x);
    case GELU: return gelu_vec(x);
    case QUICK_GELU: return x * sigmoid_vec(1.702f * x);
    case RELU: return choose(x < 0.0f, all(0), x);
    case EXP: return exp_full(x);
    case SQUARE: return x * x;
    case LOG: return log_each(x);
    }
    return x;
}

INLINE vec slope_of(const Activation f, vec x) {
    switch (f) {
    case SILU: return silu_slope_vec(x);
    case GELU: return gelu_slope_vec(x);
    case QUICK_GELU: return silu_slope_vec(1.702f * x); // x s(a x) = silu(a x) / a
    case RELU: return choose(x > 0.0f, all(1), all(0));
    case EXP: return exp_full(x);
    case SQUARE: return 2.0f * x;
    case LOG: return 1.0f / x;
    }
    return x;
}

// The switch stands outside the loop: one loop for each function.
#define ACTIVATIONS(DO)                                                                                      \
    switch (f) {                                                                                             \
    case SILU: DO(SILU) break;                                                                               \
    case GELU: DO(GELU) break;                                                                               \
    case QUICK_GELU: DO(QUICK_GELU) break;                                                                   \
    case RELU: DO(RELU) break;                                                                               \
    case EXP: DO(EXP) break;                                                                                 \
    case SQUARE: DO(SQUARE) break;                                                                           \
    case LOG: DO(LOG) break;                                                                                 \
    }

static void activation(Mem y, Mem x, size_t count, Activation f) {
#define FORWARD(f) EACH(count, 5) put(y, i, value_of(f, get(x, i, LANES)), LANES);
    ACTIVATIONS(FORWARD)
}

static void activation_backward(Mem dx, Mem dy, Mem x, size_t count, Activation f) {
    if (!dx.at) return;
#define BACKWARD(f)                                                                                          \
    EACH(count, 5)                                                                                           \
    put(dx, i, get(dx, i, LANES) + get(dy, i, LANES) * slope_of(f, get(x, i, LANES)), LANES);
    ACTIVATIONS(BACKWARD)
}

static void geglu(Mem y, Mem x, int rows, int inner) {
    PARALLEL_ROWS((double)rows * inner > WORTH_A_THREAD / 8)
    for (int r = 0; r < rows; r++) {
        size_t value = 2 * (size_t)r * (size_t)inner, gate = value + (size_t)inner;
        for (int i = 0; i < inner; i += W) {
            int lanes = min_int(W, inner - i);
            vec v = get(x, value + (size_t)i, lanes), g = get(x, gate + (size_t)i, lanes);
            put(y, value / 2 + (size_t)i, v * gelu_vec(g), lanes);
        }
    }
}

static void geglu_backward(Mem dx, Mem dy, Mem x, int rows, int inner, bool add) {
    if (!dx.at) return;
    PARALLEL_ROWS((double)rows * inner > WORTH_A_THREAD / 16)
    for (int r = 0; r < rows; r++) {
        size_t value = 2 * (size_t)r * (size_t)inner, gate = value + (size_t)inner;
        for (size_t i = 0; i < (size_t)inner; i += W) {
            int lanes = min_int(W, inner - (int)i);
            vec v = get(x, value + i, lanes), g = get(x, gate + i, lanes), d = get(dy, value / 2 + i, lanes);
            vec dv = d * gelu_vec(g), dg = d * v * gelu_slope_vec(g);
            put(dx, value + i, add ? get(dx, value + i, lanes) + dv : dv, lanes);
            put(dx, gate + i, add ? get(dx, gate + i, lanes) + dg : dg, lanes);
        }
    }
}

// ---- sums -------------------------------------------------------------------------------------------------

static void combine(Mem y, float a, Mem x, float b, Mem z, float c, size_t count) {
    EACH(count, 1) {
        int lanes = LANES;
        vec sum = c != 0 ? c * get(y, i, lanes) : all(0);
        if (x.at) sum += a * get(x, i, lanes);
        if (z.at) sum += b * get(z, i, lanes);
        put(y, i, sum, lanes);
    }
}

static void combine_rows(Mem y, const float *a, Mem x, const float *b, Mem z, int rows, int cols, bool add) {
    for (int r = 0; r < rows; r++) {
        size_t row = (size_t)r * (size_t)cols;
        float br = b && z.at ? b[r] : 0;
        combine(from(y, row), a[r], from(x, row), br, b ? from(z, row) : (Mem){0}, add ? 1 : 0, (size_t)cols);
    }
}

static void clamp(Mem y, Mem x, float low, float high, size_t count) {
    EACH(count, 1) put(y, i, min_vec(max_vec(get(x, i, LANES), all(low)), all(high)), LANES);
}

static void multiply(Mem y, Mem a, Mem b, size_t count, bool add) {
    EACH(count, 1) {
        int lanes = LANES;
        vec v = get(a, i, lanes) * get(b, i, lanes);
        put(y, i, add ? v + get(y, i, lanes) : v, lanes);
    }
}

static void add_vector(Mem y, Mem x, Mem v, int groups, int rows, int cols) {
    PARALLEL_ROWS((double)groups * rows * cols > WORTH_A_THREAD)
    for (int r = 0; r < groups * rows; r++) {
        size_t row = (size_t)r * (size_t)cols, vector = (size_t)(r / rows) * (size_t)cols;
        for (size_t i = 0; i < (size_t)cols; i += W) {
            int lanes = min_int(W, cols - (int)i);
            put(y, row + i, get(x, row + i, lanes) + get(v, vector + i, lanes), lanes);
        }
    }
}

// y[g] += the sum over r of x[g, r]. Rows are summed in stretches of a fixed length, so that long sums lose
// no precision and threads have something to share; then the stretches.
static void sum_rows(Mem y, Mem x, int groups, int rows, int cols) {
    if (!y.at) return;
    enum { STRETCH = 256 };
    int stretches = blocks_of(rows, STRETCH), padded = round_up(cols, W);
    float *parts = scratch(S_PARTS, (size_t)groups * (size_t)stretches * (size_t)padded);
    PARALLEL_FOR((double)groups * rows * cols > WORTH_A_THREAD)
    for (int t = 0; t < groups * stretches; t++) {
        int begin = t % stretches * STRETCH, end = min_int(rows, begin + STRETCH);
        for (int c = 0; c < cols; c += W) {
            int lanes = min_int(W, cols - c);
            vec sum = all(0);
            for (int r = begin; r < end; r++) {
                size_t row = (size_t)(t / stretches) * (size_t)rows + (size_t)r;
                sum += get(x, row * (size_t)cols + (size_t)c, lanes);
            }
            store(parts + (size_t)t * (size_t)padded + c, sum);
        }
    }
    for (int g = 0; g < groups; g++)
        for (int c = 0; c < cols; c += W) {
            vec sum = all(0);
            for (int s = 0; s < stretches; s++)
                sum += load(parts + ((size_t)g * (size_t)stretches + (size_t)s) * (size_t)padded + c);
            size_t at = (size_t)g * (size_t)cols + (size_t)c;
            put(y, at, get(y, at, min_int(W, cols - c)) + sum, min_int(W, cols - c));
        }
}
