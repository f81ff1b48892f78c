// pointwise.cu: activations, sums with coefficients, data movement, pooling, embeddings: a thread computes
// one element, or eight neighbours, from a few others. All but the exponentials are bound by memory traffic;
// eight neighbours of 16 bits are one access of 16 bytes, the widest there is.
//
// A backward gathers: the thread that owns an element of dx looks for every output that used it. Nothing is
// scattered, so no atomic is needed and the order of each sum is fixed.
#include "pointwise.h"

// ---- element by element ----------------------------------------------------------------------------------

// y = f(y, a, b); what is absent, or not read, is 0.
template <class F> struct Map {
    Mem y, a, b;
    bool reads_y;
    F f;
    template <int W> __device__ void run(size_t i) const {
        Lanes<W> u = {}, v = {}, w = {};
        if (reads_y) u = load_lanes<W>(y, i);
        if (a.at) v = load_lanes<W>(a, i);
        if (b.at) w = load_lanes<W>(b, i);
#pragma unroll
        for (int e = 0; e < W; e++) u.v[e] = f(u.v[e], v.v[e], w.v[e]);
        store_lanes(y, i, u);
    }
};
template <class F> static void map(const char *name, Mem y, bool reads_y, Mem a, Mem b, size_t count, F f) {
    run_pointwise(name, Map<F>{y, a, b, reads_y, f}, count, count, y, a, b);
}
__device__ static float activate(float x, Activation f) {
    switch (f) {
    case SILU: return x * sigmoid(x);
    case GELU: return gelu(x);
    case QUICK_GELU: return x * sigmoid(1.702f * x);
    case RELU: return x < 0 ? 0 : x; // NaN stays NaN
    case EXP: return expf(x);
    case LOG: return logf(x);
    default: return x * x;
    }
}
struct Activate { // y = f(x)
    Activation f;
    __device__ float operator()(float, float x, float) const { return activate(x, f); }
};
static void launch_activation(Mem y, Mem x, size_t count, Activation f) {
    map("activation", y, false, x, absent, count, Activate{f});
}

__device__ static float slope(float x, Activation f) {
    switch (f) {
    case SILU: return silu_slope(x);
    case GELU: return gelu_slope(x);
    case QUICK_GELU: return silu_slope(1.702f * x); // x s(a x) = silu(a x) / a
    case RELU: return x > 0 ? 1 : 0;
    case EXP: return expf(x);
    case LOG: return 1 / x;
    default: return 2 * x;
    }
}
struct ActivateBackward { // y = f(x)     dx += dy f'(x)
    Activation f;
    __device__ float operator()(float dx, float dy, float x) const { return dx + dy * slope(x, f); }
};
static void launch_activation_backward(Mem dx, Mem dy, Mem x, size_t count, Activation f) {
    if (dx.at) map("activation_backward", dx, true, dy, x, count, ActivateBackward{f});
}

struct Combine { // y = a x + b z + c y
    float a, b, c;
    __device__ float operator()(float y, float x, float z) const { return a * x + b * z + c * y; }
};
static void launch_combine(Mem y, float a, Mem x, float b, Mem z, float c, size_t count) {
    weight_changes(y.at);
    map("combine", y, c != 0, x, z, count, Combine{x.at ? a : 0, z.at ? b : 0, c});
}

struct Clamp { // y = min(max(x, low), high); NaN stays NaN
    float low, high;
    __device__ float operator()(float, float x, float) const { return x < low ? low : x > high ? high : x; }
};
static void launch_clamp(Mem y, Mem x, float low, float high, size_t count) {
    map("clamp", y, false, x, absent, count, Clamp{low, high});
}

struct Multiply { // y = a b (+ y)
    __device__ float operator()(float y, float a, float b) const { return a * b + y; }
};
static void launch_multiply(Mem y, Mem a, Mem b, size_t count, bool add) {
    map("multiply", y, add, a, b, count, Multiply{});
}

// ---- row by row ------------------------------------------------------------------------------------------
// Eight elements of a row share its index, so the division is done once for them.

// y[r, i] = value gelu(gate), value = x[r, i], gate = x[r, inner + i]
struct Geglu {
    Mem y, x;
    int inner;
    __device__ size_t value(size_t i) const { return i / inner * 2 * inner + i % inner; }
    template <int W> __device__ void run(size_t i) const {
        Lanes<W> v = load_lanes<W>(x, value(i)), gate = load_lanes<W>(x, value(i) + inner);
#pragma unroll
        for (int e = 0; e < W; e++) v.v[e] *= gelu(gate.v[e]);
        store_lanes(y, i, v);
    }
};
static void launch_geglu(Mem y, Mem x, int rows, int inner) {
    run_pointwise("geglu", Geglu{y, x, inner}, (size_t)rows * inner, inner, y, x, x);
}
// y = value gelu(gate)     dvalue += dy gelu(gate)     dgate += dy value gelu'(gate)
struct GegluBackward {
    Mem dx, dy;
    Geglu of;
    bool add;
    template <int W> __device__ void run(size_t i) const {
        size_t value = of.value(i), gate = value + of.inner;
        Lanes<W> v = load_lanes<W>(of.x, value), g = load_lanes<W>(of.x, gate), d = load_lanes<W>(dy, i);
        Lanes<W> dv = {}, dg = {};
        if (add) dv = load_lanes<W>(dx, value), dg = load_lanes<W>(dx, gate);
#pragma unroll
        for (int e = 0; e < W; e++)
            dv.v[e] += d.v[e] * gelu(g.v[e]), dg.v[e] += d.v[e] * v.v[e] * gelu_slope(g.v[e]);
        store_lanes(dx, value, dv), store_lanes(dx, gate, dg);
    }
};
static void launch_geglu_backward(Mem dx, Mem dy, Mem x, int rows, int inner, bool add) {
    if (!dx.at) return;
    run_pointwise("geglu_backward", GegluBackward{dx, dy, {dy, x, inner}, add}, (size_t)rows * inner, inner,
                  dx, dy, x);
}

// y[r, i] = a[r] x[r, i] + b[r] z[r, i] (+ y[r, i])
struct CombineRows {
    Mem y;
    const float *a;
    Mem x;
    const float *b;
    Mem z;
    int cols;
    bool add;
    template <int W> __device__ void run(size_t i) const {
        size_t r = i / cols;
        Lanes<W> v = load_lanes<W>(x, i), w = {}, old = {};
        if (b && z.at) w = load_lanes<W>(z, i);
        if (add) old = load_lanes<W>(y, i);
#pragma unroll
        for (int e = 0; e < W; e++) v.v[e] = a[r] * v.v[e] + (b && z.at ? b[r] * w.v[e] : 0) + old.v[e];
        store_lanes(y, i, v);
    }
};
static void launch_combine_rows(Mem y, const float *a, Mem x, const float *b, Mem z, int rows, int cols,
                                bool add) {
    run_pointwise("combine_rows", CombineRows{y, a, x, b, z, cols, add}, (size_t)rows * cols, cols, y, x, z);
}

// y[g, r, c] = x[g, r, c] + v[g, c]
struct AddVector {
    Mem y, x, v;
    int rows, cols;
    template <int W> __device__ void run(size_t i) const {
        Lanes<W> l = load_lanes<W>(x, i), w = load_lanes<W>(v, i / cols / rows * cols + i % cols);
#pragma unroll
        for (int e = 0; e < W; e++) l.v[e] += w.v[e];
        store_lanes(y, i, l);
    }
};
static void launch_add_vector(Mem y, Mem x, Mem v, int groups, int rows, int cols) {
    run_pointwise("add_vector", AddVector{y, x, v, rows, cols}, (size_t)groups * rows * cols, cols, y, x, v);
}

// ---- data movement ----------------------------------------------------------------------------------------

// y[r, c] = x[r, c] (+ y[r, c]), rows y_stride and x_stride apart
struct CopyColumns {
    Mem y;
    size_t y_stride;
    Mem x;
    size_t x_stride;
    int cols;
    bool add;
    template <int W> __device__ void run(size_t i) const {
        size_t to = i / cols * y_stride + i % cols;
        Lanes<W> l = load_lanes<W>(x, i / cols * x_stride + i % cols), old = {};
        if (add) old = load_lanes<W>(y, to);
#pragma unroll
        for (int e = 0; e < W; e++) l.v[e] += old.v[e];
        store_lanes(y, to, l);
    }
};
static void launch_copy_columns(Mem y, int y_stride, Mem x, int x_stride, int rows, int cols, bool add) {
    CopyColumns c = {y, (size_t)y_stride, x, (size_t)x_stride, cols, add};
    run_pointwise("copy_columns", c, (size_t)rows * cols, cols | y_stride | x_stride, y, x, x);
}

// An element's indices in an array (., h, w, c).
struct Pixel {
    int n, i, j, c;
};
__device__ __forceinline__ Pixel pixel_of(size_t at, int h, int w, int c) {
    size_t p = at / c;
    return {(int)(p / w / h), (int)(p / w % h), (int)(p % w), (int)(at % c)};
}
__device__ __forceinline__ size_t at4(int n, int i, int h, int j, int w, int c, int channels) {
    return (((size_t)n * h + i) * w + j) * channels + c;
}

// y[n, i, j, c] = x[n, i / 2, j / 2, c]
struct Upsample {
    Mem y, x;
    int h, w, c;
    template <int W> __device__ void run(size_t at) const {
        Pixel p = pixel_of(at, 2 * h, 2 * w, c);
        store_lanes(y, at, load_lanes<W>(x, at4(p.n, p.i / 2, h, p.j / 2, w, p.c, c)));
    }
};
static void launch_upsample(Mem y, Mem x, int n, int h, int w, int c) {
    run_pointwise("upsample", Upsample{y, x, h, w, c}, (size_t)n * h * w * c * 4, c, y, x, x);
}
// dx[n, i, j, c] += the sum of the four dy that copied it
struct UpsampleBackward {
    Mem dx, dy;
    int h, w, c;
    template <int W> __device__ void run(size_t at) const {
        Pixel p = pixel_of(at, h, w, c);
        Lanes<W> sum = {}, old = load_lanes<W>(dx, at);
        for (int k = 0; k < 4; k++) {
            Lanes<W> d = load_lanes<W>(dy, at4(p.n, 2 * p.i + k / 2, 2 * h, 2 * p.j + k % 2, 2 * w, p.c, c));
#pragma unroll
            for (int e = 0; e < W; e++) sum.v[e] += d.v[e];
        }
#pragma unroll
        for (int e = 0; e < W; e++) sum.v[e] += old.v[e];
        store_lanes(dx, at, sum);
    }
};
static void launch_upsample_backward(Mem dx, Mem dy, int n, int h, int w, int c) {
    if (!dx.at) return;
    run_pointwise("upsample_backward", UpsampleBackward{dx, dy, h, w, c}, (size_t)n * h * w * c, c, dx, dy,
                  dy);
}

// ---- pooling ---------------------------------------------------------------------------------------------

// What the kernel sees at output pixel `o`: its sum, how many pixels lie inside, the place of the largest
// (the first in row order; NaN wins, so that it is seen).
struct Look {
    float sum, largest;
    int inside;
    size_t at;
};
__device__ static Look look(Mem x, Conv p, Pixel o) {
    Look s = {0, 0, 0, 0};
    for (int ki = 0; ki < p.kh; ki++)
        for (int kj = 0; kj < p.kw; kj++) {
            int i = o.i * p.stride - p.pad_top + ki, j = o.j * p.stride - p.pad_left + kj;
            if (i < 0 || i >= p.h || j < 0 || j >= p.w) continue;
            size_t at = at4(o.n, i, p.h, j, p.w, o.c, p.c);
            float v = load(x, at);
            if (s.inside == 0 || v > s.largest || isnan(v)) {
                s.largest = v;
                s.at = at;
            }
            s.sum += v;
            s.inside++;
        }
    return s;
}
static __global__ void pool(Mem y, Mem x, Conv p, Pool kind, size_t count) {
    EACH(at, count) {
        Look s = look(x, p, pixel_of(at, p.oh, p.ow, p.c));
        store(y, at, kind == POOL_MAX ? s.largest : s.sum / s.inside);
    }
}
static void launch_pool(Mem y, Mem x, Conv p, Pool kind) {
    size_t count = (size_t)p.n * p.oh * p.ow * p.c;
    if (!count) return;
    pool<<<blocks_for(count), THREADS, 0, stream>>>(y, x, p, kind, count);
    check_launch("pool", blocks_for(count), THREADS);
}
// Each input pixel asks every output that saw it: y = x[largest], dx[largest] += dy;
// y = sum / inside, dx += dy / inside.
static __global__ void pool_backward(Mem dx, Mem dy, Mem x, Conv p, Pool kind, size_t count) {
    EACH(at, count) {
        Pixel q = pixel_of(at, p.h, p.w, p.c);
        float sum = 0;
        for (int ki = p.kh - 1; ki >= 0; ki--)
            for (int kj = p.kw - 1; kj >= 0; kj--) { // outputs in row order
                int i = q.i + p.pad_top - ki, j = q.j + p.pad_left - kj;
                if (i < 0 || j < 0 || i % p.stride || j % p.stride) continue;
                i /= p.stride, j /= p.stride;
                if (i >= p.oh || j >= p.ow) continue;
                Look s = look(x, p, {q.n, i, j, q.c});
                float d = load(dy, at4(q.n, i, p.oh, j, p.ow, q.c, p.c));
                if (kind == POOL_MAX)
                    sum += s.at == at ? d : 0;
                else
                    sum += d / s.inside;
            }
        accumulate(dx, at, sum);
    }
}
static void launch_pool_backward(Mem dx, Mem dy, Mem x, Conv p, Pool kind) {
    size_t count = (size_t)p.n * p.h * p.w * p.c;
    if (!count || !dx.at) return;
    pool_backward<<<blocks_for(count), THREADS, 0, stream>>>(dx, dy, x, p, kind, count);
    check_launch("pool_backward", blocks_for(count), THREADS);
}

// ---- embeddings ------------------------------------------------------------------------------------------

// y[r, c] = table[ids[r], c]
static __global__ void embed(Mem y, Mem table, const int32_t *ids, size_t count, int cols) {
    EACH(i, count) store(y, i, load(table, (size_t)ids[i / cols] * cols + i % cols));
}
static void launch_embed(Mem y, Mem table, const int32_t *ids, int rows, int cols) {
    size_t count = (size_t)rows * cols;
    if (!count) return;
    embed<<<blocks_for(count), THREADS, 0, stream>>>(y, table, ids, count, cols);
    check_launch("embed", blocks_for(count), THREADS);
}
// dtable[ids[r], c] += dy[r, c], r ascending: a thread owns a column.
static __global__ void embed_backward(float *dtable, Mem dy, const int32_t *ids, int rows, int cols) {
    EACH(c, (size_t)cols) {
        for (int r = 0; r < rows; r++) dtable[(size_t)ids[r] * cols + c] += load(dy, (size_t)r * cols + c);
    }
}
static void launch_embed_backward(float *dtable, Mem dy, const int32_t *ids, int rows, int cols) {
    if (!rows || !cols || !dtable) return;
    embed_backward<<<blocks_for(cols), THREADS, 0, stream>>>(dtable, dy, ids, rows, cols);
    check_launch("embed_backward", blocks_for(cols), THREADS);
}

// angle = t[r] f[i]: a cosine and a sine of each. t and f come with the launch, some at a time, so nothing is
// uploaded.
struct Angles { // of rows row0 to row0 + rows and of frequencies first to first + count
    float t[64], f[512];
    int row0, rows, first, count;
};
static __global__ void sinusoid(Mem y, Angles a, int dim, bool cos_first) {
    EACH(at, (size_t)a.rows * a.count) {
        int r = (int)(at / a.count), i = (int)(at % a.count), half = dim / 2;
        float angle = a.t[r] * a.f[i];
        size_t to = (size_t)(a.row0 + r) * dim + a.first + i;
        store(y, to + (cos_first ? 0 : half), cosf(angle)),
            store(y, to + (cos_first ? half : 0), sinf(angle));
        if (dim % 2 && a.first + i == half - 1) store(y, to + half + 1, 0);
    }
}
static void launch_sinusoid(Mem y, const float *t, const float *f, int rows, int dim, bool cos_first) {
    int half = dim / 2;
    if (dim == 1) backend.fill(y, 0, rows); // there are no pairs
    for (int r = 0; r < rows; r += 64)
        for (int i = 0; i < half; i += 512) {
            Angles a = {{}, {}, r, rows - r < 64 ? rows - r : 64, i, half - i < 512 ? half - i : 512};
            memcpy(a.t, t + r, (size_t)a.rows * sizeof(float));
            memcpy(a.f, f + i, (size_t)a.count * sizeof(float));
            unsigned blocks = blocks_for((size_t)a.rows * a.count);
            sinusoid<<<blocks, THREADS, 0, stream>>>(y, a, dim, cos_first);
            check_launch("sinusoid", blocks, THREADS);
        }
}

void pointwise_kernels(Backend &b) {
    b.activation = launch_activation;
    b.activation_backward = launch_activation_backward;
    b.geglu = launch_geglu;
    b.geglu_backward = launch_geglu_backward;
    b.combine = launch_combine;
    b.combine_rows = launch_combine_rows;
    b.clamp = launch_clamp;
    b.multiply = launch_multiply;
    b.add_vector = launch_add_vector;
    b.copy_columns = launch_copy_columns;
    b.upsample = launch_upsample;
    b.upsample_backward = launch_upsample_backward;
    b.pool = launch_pool;
    b.pool_backward = launch_pool_backward;
    b.embed = launch_embed;
    b.embed_backward = launch_embed_backward;
    b.sinusoid = launch_sinusoid;
}
