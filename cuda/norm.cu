// norm.cu: group norm and layer norm, forward and backward, and sums over rows, which their gradients need.
//
// Statistics are taken in two passes over the data: a mean, then the squared distances from it. (The one-pass
// formula, average of squares minus square of the average, loses everything where the mean is large against
// the standard deviation.) The second pass also sums the distances themselves; the rest corrects the mean.
#include "device.h"

// ---- sums over rows --------------------------------------------------------------------------------------
// Two sums at once for each column of (groups, rows, cols): of term(group, row, col).x and .y. A block sums
// 32 columns of one chunk of rows, 8 rows at a time; the chunks' parts are added by a second kernel. Chunks
// depend on the shape alone, so the order of the sum does too.

enum { COLUMNS = 32, ROWS_AT_ONCE = 8 };

template <class Term>
static __global__ void sum_chunk(float *part, Term term, int rows, int cols, int chunk) {
    __shared__ float sum_x[ROWS_AT_ONCE][COLUMNS], sum_y[ROWS_AT_ONCE][COLUMNS];
    int c = blockIdx.x * COLUMNS + threadIdx.x, begin = blockIdx.y * chunk, group = blockIdx.z;
    int end = begin + chunk < rows ? begin + chunk : rows;
    float2 sum = make_float2(0, 0);
    if (c < cols)
        for (int r = begin + threadIdx.y; r < end; r += ROWS_AT_ONCE) {
            float2 t = term(group, r, c);
            sum.x += t.x;
            sum.y += t.y;
        }
    sum_x[threadIdx.y][threadIdx.x] = sum.x;
    sum_y[threadIdx.y][threadIdx.x] = sum.y;
    __syncthreads();
    if (threadIdx.y || c >= cols) return;
    sum = make_float2(0, 0);
    for (int i = 0; i < ROWS_AT_ONCE; i++) {
        sum.x += sum_x[i][threadIdx.x];
        sum.y += sum_y[i][threadIdx.x];
    }
    size_t at = (((size_t)group * gridDim.y + blockIdx.y) * cols + c) * 2;
    part[at] = sum.x;
    part[at + 1] = sum.y;
}
// x += sum of the .x, y += sum of the .y; either may be absent.
static __global__ void add_chunks(Mem x, Mem y, const float *part, int groups, int chunks, int cols) {
    EACH(i, (size_t)groups * cols) {
        size_t group = i / cols, c = i % cols;
        float sum_x = 0, sum_y = 0;
        for (int k = 0; k < chunks; k++) {
            size_t at = ((group * chunks + k) * cols + c) * 2;
            sum_x += part[at];
            sum_y += part[at + 1];
        }
        if (x.at) accumulate(x, i, sum_x);
        if (y.at) accumulate(y, i, sum_y);
    }
}
template <class Term> static void sum_over_rows(Mem x, Mem y, Term term, int groups, int rows, int cols) {
    if (groups <= 0 || rows <= 0 || cols <= 0 || (!x.at && !y.at)) return;
    int chunk = (int)ceil_div(rows, 128); // at most 128 chunks, of at least 64 rows
    if (chunk < 64) chunk = 64;
    dim3 grid(ceil_div(cols, COLUMNS), ceil_div(rows, chunk), groups), block(COLUMNS, ROWS_AT_ONCE);
    Scratch scratch;
    float *part = scratch.floats((size_t)groups * grid.y * cols * 2);
    sum_chunk<Term><<<grid, block, 0, stream>>>(part, term, rows, cols, chunk);
    check_launch("sum_chunk", grid, block);
    unsigned blocks = blocks_for((size_t)groups * cols);
    add_chunks<<<blocks, THREADS, 0, stream>>>(x, y, part, groups, (int)grid.y, cols);
    check_launch("add_chunks", blocks, THREADS);
}

struct RowTerm {
    Mem x;
    int rows, cols;
    __device__ float2 operator()(int group, int r, int c) const {
        return make_float2(load(x, ((size_t)group * rows + r) * cols + c), 0);
    }
};
static void launch_sum_rows(Mem y, Mem x, int groups, int rows, int cols) {
    for (int g = 0; g < groups; g += 65535) { // a grid has at most so many blocks along z
        int n = groups - g < 65535 ? groups - g : 65535;
        Mem from = {(char *)x.at + (size_t)g * rows * cols * size_of(x.type), x.type};
        Mem to = {(char *)y.at + (size_t)g * cols * size_of(y.type), y.type};
        sum_over_rows(to, Mem{NULL, F32}, RowTerm{from, rows, cols}, n, rows, cols);
    }
}

// ---- group norm ------------------------------------------------------------------------------------------
// A block normalises one group of one picture: hw pixels of `size` channels, `count` elements.

// Element e of group g of picture n.
__device__ __forceinline__ size_t group_element(GroupNorm p, int n, int g, size_t e, int *channel) {
    int size = p.c / p.groups;
    *channel = g * size + (int)(e % size);
    return ((size_t)n * p.hw + e / size) * p.c + *channel;
}

static __global__ void __launch_bounds__(512)
    group_norm(Mem y, float *stats, Mem x, Mem gamma, Mem beta, GroupNorm p) {
    __shared__ float part[32];
    int g = blockIdx.x, n = blockIdx.y, c;
    size_t count = (size_t)p.hw * (p.c / p.groups);
    float sum = 0;
    for (size_t e = threadIdx.x; e < count; e += blockDim.x) sum += load(x, group_element(p, n, g, e, &c));
    float mean = block_sum(sum, part) / count;

    float distance = 0, square = 0;
    for (size_t e = threadIdx.x; e < count; e += blockDim.x) {
        float d = load(x, group_element(p, n, g, e, &c)) - mean;
        distance += d;
        square += d * d;
    }
    float off = block_sum(distance, part) / count;
    float variance = block_sum(square, part) / count - off * off;
    float rstd = 1 / sqrtf(variance + p.eps);

    for (size_t e = threadIdx.x; e < count; e += blockDim.x) {
        size_t i = group_element(p, n, g, e, &c);
        float z = load(gamma, c) * ((load(x, i) - mean - off) * rstd) + load(beta, c);
        store(y, i, p.silu ? z * sigmoid(z) : z);
    }
    if (stats && threadIdx.x == 0) {
        stats[((size_t)n * p.groups + g) * 2] = mean + off;
        stats[((size_t)n * p.groups + g) * 2 + 1] = rstd;
    }
}
static void launch_group_norm(Mem y, float *stats, Mem x, Mem gamma, Mem beta, GroupNorm p) {
    if (!p.n || !p.hw || !p.c) return;
    dim3 grid(p.groups, p.n);
    group_norm<<<grid, 512, 0, stream>>>(y, stats, x, gamma, beta, p);
    check_launch("group_norm", grid, 512);
}

// z = gamma xhat + beta, y = f(z)     dz = dy f'(z)     dxhat = dz gamma
struct GroupNormTerm { // dz and dz xhat at a pixel's channel
    Mem dy, x, gamma, beta;
    const float *stats;
    GroupNorm p;
    __device__ float2 at(int n, size_t i, int c) const {
        const float *s = &stats[((size_t)n * p.groups + c / (p.c / p.groups)) * 2];
        float xhat = (load(x, i) - s[0]) * s[1], dz = load(dy, i);
        if (p.silu) dz *= silu_slope(load(gamma, c) * xhat + load(beta, c));
        return make_float2(dz, dz * xhat);
    }
    __device__ float2 operator()(int, int r, int c) const { return at(r / p.hw, (size_t)r * p.c + c, c); }
};
// dx += rstd (dxhat - average of dxhat - xhat average of (dxhat xhat))
static __global__ void __launch_bounds__(512) group_norm_backward(Mem dx, GroupNormTerm term) {
    __shared__ float part[32];
    GroupNorm p = term.p;
    int g = blockIdx.x, n = blockIdx.y, c;
    size_t count = (size_t)p.hw * (p.c / p.groups);
    float mean = term.stats[((size_t)n * p.groups + g) * 2],
          rstd = term.stats[((size_t)n * p.groups + g) * 2 + 1];
    float sum = 0, sum_xhat = 0;
    for (size_t e = threadIdx.x; e < count; e += blockDim.x) {
        size_t i = group_element(p, n, g, e, &c);
        float2 t = term.at(n, i, c);
        float weight = load(term.gamma, c);
        sum += t.x * weight;
        sum_xhat += t.y * weight;
    }
    float average = block_sum(sum, part) / count, average_xhat = block_sum(sum_xhat, part) / count;
    for (size_t e = threadIdx.x; e < count; e += blockDim.x) {
        size_t i = group_element(p, n, g, e, &c);
        float xhat = (load(term.x, i) - mean) * rstd, dxhat = term.at(n, i, c).x * load(term.gamma, c);
        accumulate(dx, i, rstd * (dxhat - average - xhat * average_xhat));
    }
}
static void launch_group_norm_backward(Mem dx, float *dgamma, float *dbeta, Mem dy, Mem x, Mem gamma,
                                       Mem beta, const float *stats, GroupNorm p) {
    if (!p.n || !p.hw || !p.c) return;
    GroupNormTerm term = {dy, x, gamma, beta, stats, p};
    if (dx.at) {
        dim3 grid(p.groups, p.n);
        group_norm_backward<<<grid, 512, 0, stream>>>(dx, term);
        check_launch("group_norm_backward", grid, 512);
    }
    sum_over_rows(f32(dbeta), f32(dgamma), term, 1, p.n * p.hw, p.c);
}

// ---- layer norm ------------------------------------------------------------------------------------------
// A warp normalises one row; a block of 8 warps takes 8 rows.

enum { ROWS = 8 };

static __global__ void __launch_bounds__(32 * ROWS)
    layer_norm(Mem y, float *stats, Mem x, Mem gamma, Mem beta, int rows, int cols, float eps) {
    int r = blockIdx.x * ROWS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (r >= rows) return; // the whole warp
    size_t row = (size_t)r * cols;
    float sum = 0;
    for (int c = lane; c < cols; c += 32) sum += load(x, row + c);
    float mean = warp_sum(sum) / cols;
    float distance = 0, square = 0;
    for (int c = lane; c < cols; c += 32) {
        float d = load(x, row + c) - mean;
        distance += d;
        square += d * d;
    }
    float off = warp_sum(distance) / cols, variance = warp_sum(square) / cols - off * off;
    float rstd = 1 / sqrtf(variance + eps);
    for (int c = lane; c < cols; c += 32)
        store(y, row + c, load(gamma, c) * ((load(x, row + c) - mean - off) * rstd) + load(beta, c));
    if (stats && lane == 0) {
        stats[(size_t)r * 2] = mean + off;
        stats[(size_t)r * 2 + 1] = rstd;
    }
}
static void launch_layer_norm(Mem y, float *stats, Mem x, Mem gamma, Mem beta, int rows, int cols,
                              float eps) {
    if (!rows || !cols) return;
    layer_norm<<<ceil_div(rows, ROWS), 32 * ROWS, 0, stream>>>(y, stats, x, gamma, beta, rows, cols, eps);
    check_launch("layer_norm", ceil_div(rows, ROWS), 32 * ROWS);
}

struct LayerNormTerm { // dy and dy xhat
    Mem dy, x;
    const float *stats;
    int cols;
    __device__ float2 operator()(int, int r, int c) const {
        float d = load(dy, (size_t)r * cols + c);
        return make_float2(
            d, d * ((load(x, (size_t)r * cols + c) - stats[(size_t)r * 2]) * stats[(size_t)r * 2 + 1]));
    }
};
// dxhat = dy gamma     dx += rstd (dxhat - average of dxhat - xhat average of (dxhat xhat))
static __global__ void __launch_bounds__(32 * ROWS)
    layer_norm_backward(Mem dx, LayerNormTerm term, Mem gamma, int rows) {
    int r = blockIdx.x * ROWS + threadIdx.x / 32, lane = threadIdx.x % 32, cols = term.cols;
    if (r >= rows) return; // the whole warp
    float mean = term.stats[(size_t)r * 2], rstd = term.stats[(size_t)r * 2 + 1];
    float sum = 0, sum_xhat = 0;
    for (int c = lane; c < cols; c += 32) {
        float2 t = term(0, r, c);
        sum += t.x * load(gamma, c);
        sum_xhat += t.y * load(gamma, c);
    }
    float average = warp_sum(sum) / cols, average_xhat = warp_sum(sum_xhat) / cols;
    for (int c = lane; c < cols; c += 32) {
        size_t i = (size_t)r * cols + c;
        float xhat = (load(term.x, i) - mean) * rstd;
        accumulate(dx, i, rstd * (load(term.dy, i) * load(gamma, c) - average - xhat * average_xhat));
    }
}
static void launch_layer_norm_backward(Mem dx, float *dgamma, float *dbeta, Mem dy, Mem x, Mem gamma,
                                       const float *stats, int rows, int cols) {
    if (!rows || !cols) return;
    LayerNormTerm term = {dy, x, stats, cols};
    if (dx.at) {
        layer_norm_backward<<<ceil_div(rows, ROWS), 32 * ROWS, 0, stream>>>(dx, term, gamma, rows);
        check_launch("layer_norm_backward", ceil_div(rows, ROWS), 32 * ROWS);
    }
    sum_over_rows(f32(dbeta), f32(dgamma), term, 1, rows, cols);
}

void norm_kernels(Backend &b) {
    b.sum_rows = launch_sum_rows;
    b.group_norm = launch_group_norm;
    b.group_norm_backward = launch_group_norm_backward;
    b.layer_norm = launch_layer_norm;
    b.layer_norm_backward = launch_layer_norm_backward;
}
