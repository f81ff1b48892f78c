// pointwise.cu: activations, sums with coefficients, data movement, pooling, embeddings: a thread computes
// one element (or one after another) from a few others. All are bound by memory traffic.
//
// A backward gathers: the thread that owns an element of dx looks for every output that used it. Nothing is
// scattered, so no atomic is needed and the order of each sum is fixed.
#include "device.h"

// ---- activations -----------------------------------------------------------------------------------------

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
// y = f(x)
static __global__ void activation(Mem y, Mem x, size_t count, Activation f) {
    EACH(i, count) store(y, i, activate(load(x, i), f));
}
static void launch_activation(Mem y, Mem x, size_t count, Activation f) {
    if (!count) return;
    activation<<<blocks_for(count), THREADS, 0, stream>>>(y, x, count, f);
    check_launch("activation", blocks_for(count), THREADS);
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
// y = f(x)     dx += dy f'(x)
static __global__ void activation_backward(Mem dx, Mem dy, Mem x, size_t count, Activation f) {
    EACH(i, count) accumulate(dx, i, load(dy, i) * slope(load(x, i), f));
}
static void launch_activation_backward(Mem dx, Mem dy, Mem x, size_t count, Activation f) {
    if (!count || !dx.at) return;
    activation_backward<<<blocks_for(count), THREADS, 0, stream>>>(dx, dy, x, count, f);
    check_launch("activation_backward", blocks_for(count), THREADS);
}

// y[r, i] = value gelu(gate), value = x[r, i], gate = x[r, inner + i]
static __global__ void geglu(Mem y, Mem x, size_t count, int inner) {
    EACH(i, count) {
        size_t value = i / inner * 2 * inner + i % inner;
        store(y, i, load(x, value) * gelu(load(x, value + inner)));
    }
}
static void launch_geglu(Mem y, Mem x, int rows, int inner) {
    size_t count = (size_t)rows * inner;
    if (!count) return;
    geglu<<<blocks_for(count), THREADS, 0, stream>>>(y, x, count, inner);
    check_launch("geglu", blocks_for(count), THREADS);
}
// y = value gelu(gate)     dvalue += dy gelu(gate)     dgate += dy value gelu'(gate)
static __global__ void geglu_backward(Mem dx, Mem dy, Mem x, size_t count, int inner) {
    EACH(i, count) {
        size_t value = i / inner * 2 * inner + i % inner, gate = value + inner;
        float d = load(dy, i), g = load(x, gate);
        accumulate(dx, value, d * gelu(g));
        accumulate(dx, gate, d * load(x, value) * gelu_slope(g));
    }
}
static void launch_geglu_backward(Mem dx, Mem dy, Mem x, int rows, int inner) {
    size_t count = (size_t)rows * inner;
    if (!count || !dx.at) return;
    geglu_backward<<<blocks_for(count), THREADS, 0, stream>>>(dx, dy, x, count, inner);
    check_launch("geglu_backward", blocks_for(count), THREADS);
}

// ---- sums with coefficients ------------------------------------------------------------------------------

// y = a x + b z + c y
static __global__ void combine(Mem y, float a, Mem x, float b, Mem z, float c, size_t count) {
    EACH(i, count) {
        float sum = 0;
        if (x.at) sum += a * load(x, i);
        if (z.at) sum += b * load(z, i);
        if (c != 0) sum += c * load(y, i);
        store(y, i, sum);
    }
}
static void launch_combine(Mem y, float a, Mem x, float b, Mem z, float c, size_t count) {
    if (!count) return;
    weight_changes(y.at);
    combine<<<blocks_for(count), THREADS, 0, stream>>>(y, a, x, b, z, c, count);
    check_launch("combine", blocks_for(count), THREADS);
}

// y[r, i] = a[r] x[r, i] + b[r] z[r, i] (+ y[r, i])
static __global__ void combine_rows(Mem y, const float *a, Mem x, const float *b, Mem z, size_t count,
                                    int cols, bool add) {
    EACH(i, count) {
        size_t r = i / cols;
        float sum = a[r] * load(x, i);
        if (b && z.at) sum += b[r] * load(z, i);
        store(y, i, add ? load(y, i) + sum : sum);
    }
}
static void launch_combine_rows(Mem y, const float *a, Mem x, const float *b, Mem z, int rows, int cols,
                                bool add) {
    size_t count = (size_t)rows * cols;
    if (!count) return;
    combine_rows<<<blocks_for(count), THREADS, 0, stream>>>(y, a, x, b, z, count, cols, add);
    check_launch("combine_rows", blocks_for(count), THREADS);
}

// y = min(max(x, low), high); NaN stays NaN
static __global__ void clamp(Mem y, Mem x, float low, float high, size_t count) {
    EACH(i, count) {
        float v = load(x, i);
        store(y, i, v < low ? low : v > high ? high : v);
    }
}
static void launch_clamp(Mem y, Mem x, float low, float high, size_t count) {
    if (!count) return;
    clamp<<<blocks_for(count), THREADS, 0, stream>>>(y, x, low, high, count);
    check_launch("clamp", blocks_for(count), THREADS);
}

// y = a b (+ y)
static __global__ void multiply(Mem y, Mem a, Mem b, size_t count, bool add) {
    EACH(i, count) store(y, i, load(a, i) * load(b, i) + (add ? load(y, i) : 0));
}
static void launch_multiply(Mem y, Mem a, Mem b, size_t count, bool add) {
    if (!count) return;
    multiply<<<blocks_for(count), THREADS, 0, stream>>>(y, a, b, count, add);
    check_launch("multiply", blocks_for(count), THREADS);
}

// y[g, r, c] = x[g, r, c] + v[g, c]
static __global__ void add_vector(Mem y, Mem x, Mem v, size_t count, int rows, int cols) {
    EACH(i, count) store(y, i, load(x, i) + load(v, i / cols / rows * cols + i % cols));
}
static void launch_add_vector(Mem y, Mem x, Mem v, int groups, int rows, int cols) {
    size_t count = (size_t)groups * rows * cols;
    if (!count) return;
    add_vector<<<blocks_for(count), THREADS, 0, stream>>>(y, x, v, count, rows, cols);
    check_launch("add_vector", blocks_for(count), THREADS);
}

// ---- data movement ----------------------------------------------------------------------------------------

// y[r, c] = x[r, c] (+ y[r, c]), rows y_stride and x_stride apart
static __global__ void copy_columns(Mem y, int y_stride, Mem x, int x_stride, size_t count, int cols,
                                    bool add) {
    EACH(i, count) {
        size_t to = i / cols * y_stride + i % cols;
        store(y, to, load(x, i / cols * x_stride + i % cols) + (add ? load(y, to) : 0));
    }
}
static void launch_copy_columns(Mem y, int y_stride, Mem x, int x_stride, int rows, int cols, bool add) {
    size_t count = (size_t)rows * cols;
    if (!count) return;
    copy_columns<<<blocks_for(count), THREADS, 0, stream>>>(y, y_stride, x, x_stride, count, cols, add);
    check_launch("copy_columns", blocks_for(count), THREADS);
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
static __global__ void upsample(Mem y, Mem x, size_t count, int h, int w, int c) {
    EACH(at, count) {
        Pixel p = pixel_of(at, 2 * h, 2 * w, c);
        store(y, at, load(x, at4(p.n, p.i / 2, h, p.j / 2, w, p.c, c)));
    }
}
static void launch_upsample(Mem y, Mem x, int n, int h, int w, int c) {
    size_t count = (size_t)n * h * w * c * 4;
    if (!count) return;
    upsample<<<blocks_for(count), THREADS, 0, stream>>>(y, x, count, h, w, c);
    check_launch("upsample", blocks_for(count), THREADS);
}
// dx[n, i, j, c] += the sum of the four dy that copied it
static __global__ void upsample_backward(Mem dx, Mem dy, size_t count, int h, int w, int c) {
    EACH(at, count) {
        Pixel p = pixel_of(at, h, w, c);
        float sum = 0;
        for (int k = 0; k < 4; k++)
            sum += load(dy, at4(p.n, 2 * p.i + k / 2, 2 * h, 2 * p.j + k % 2, 2 * w, p.c, c));
        accumulate(dx, at, sum);
    }
}
static void launch_upsample_backward(Mem dx, Mem dy, int n, int h, int w, int c) {
    size_t count = (size_t)n * h * w * c;
    if (!count || !dx.at) return;
    upsample_backward<<<blocks_for(count), THREADS, 0, stream>>>(dx, dy, count, h, w, c);
    check_launch("upsample_backward", blocks_for(count), THREADS);
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

// angle = t[r] exp(-i ln(10000) / (half - shift)), each step rounded to fp32 as diffusers does, whose
// networks were trained with that. The exponential is double: an fp32 one is off by a last place, which t =
// 999 shows.
static __global__ void sinusoid(Mem y, const float *t, int rows, int dim, bool cos_first, float shift) {
    int half = dim / 2;
    EACH(at, (size_t)rows * dim) {
        int r = (int)(at / dim), i = (int)(at % dim);
        if (i >= 2 * half) { // an odd last one
            store(y, at, 0);
            continue;
        }
        bool cosine = cos_first ? i < half : i >= half;
        float exponent = __fmul_rn(-9.210340371976184f, (float)(i % half)) / ((float)half - shift);
        float angle = t[r] * (float)exp((double)exponent);
        store(y, at, cosine ? cosf(angle) : sinf(angle));
    }
}
static void launch_sinusoid(Mem y, const float *t, int rows, int dim, bool cos_first, float shift) {
    size_t count = (size_t)rows * dim;
    if (!count) return;
    sinusoid<<<blocks_for(count), THREADS, 0, stream>>>(y, t, rows, dim, cos_first, shift);
    check_launch("sinusoid", blocks_for(count), THREADS);
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
