// norm.cu: group norm and layer norm, forward and backward, and sums over rows, which their gradients need.
//
// The average of squares minus the square of the average loses everything where the mean is large against the
// standard deviation. So a layer norm takes two passes over a row: a mean, then the distances from it, whose
// own mean corrects the first. A group norm, which is large, takes one, of distances from a number of the
// group.
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
// x (+)= sum of the .x, y (+)= sum of the .y; either may be absent.
static __global__ void sum_chunks(Mem x, Mem y, const float *part, int groups, int chunks, int cols,
                                  bool add) {
    EACH(i, (size_t)groups * cols) {
        size_t group = i / cols, c = i % cols;
        float sum_x = 0, sum_y = 0;
        for (int k = 0; k < chunks; k++) {
            size_t at = ((group * chunks + k) * cols + c) * 2;
            sum_x += part[at];
            sum_y += part[at + 1];
        }
        if (x.at) store(x, i, add ? load(x, i) + sum_x : sum_x);
        if (y.at) store(y, i, add ? load(y, i) + sum_y : sum_y);
    }
}
static void add_chunks(Mem x, Mem y, const float *part, int groups, int chunks, int cols, bool add) {
    if (!x.at && !y.at) return;
    unsigned blocks = blocks_for((size_t)groups * cols);
    sum_chunks<<<blocks, THREADS, 0, stream>>>(x, y, part, groups, chunks, cols, add);
    check_launch("sum_chunks", blocks, THREADS);
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
    add_chunks(x, y, part, groups, (int)grid.y, cols, true);
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
        sum_over_rows(to, absent, RowTerm{from, rows, cols}, n, rows, cols);
    }
}

// ---- group norm ------------------------------------------------------------------------------------------
// A group's pixels lie in pieces of a few channels, far apart. So a block takes whole groups beside one
// another, up to 128 channels, and some rows (pixels) of them: a thread four neighbouring channels of every
// 8th row. Two launches: the first leaves the moments of every chunk of rows, the second merges them, each
// block for its own groups, and normalises. (A group of more than 128 channels is taken in pieces.)

// Mean and sum of squared distances from it, of `count` numbers. One number at a time is Welford's method,
// two sets are merged by Chan's: neither subtracts large numbers that are nearly equal.
struct Moments {
    float mean, square, count;
    __device__ __forceinline__ void merge(Moments b) {
        if (b.count == 0) return;
        float all = count + b.count, d = b.mean - mean, part = b.count / all;
        mean += d * part, square += b.square + d * d * count * part, count = all;
    }
    __device__ __forceinline__ void merge_warp() { // every lane gets the same
        for (int o = 1; o < 32; o *= 2)
            merge({__shfl_down_sync(0xffffffffu, mean, o), __shfl_down_sync(0xffffffffu, square, o),
                   __shfl_down_sync(0xffffffffu, count, o)});
        mean = __shfl_sync(0xffffffffu, mean, 0), square = __shfl_sync(0xffffffffu, square, 0);
        count = __shfl_sync(0xffffffffu, count, 0);
    }
};
enum { SPAN = 4 * COLUMNS }; // channels of a block, at most
struct Walk {                // how the work of a group norm is dealt out
    GroupNorm p;
    int size, piece, span, chunk, chunks; // channels of a group, a piece, a block; rows of a chunk; chunks
    bool wide;                            // channels may be read and written in fours
    Walk(GroupNorm p, bool aligned) : p(p), size(p.c / p.groups), piece(size) {
        if (piece > SPAN) piece = SPAN;
        while (size % piece) piece--;
        span = piece < size ? piece : SPAN / piece * piece, wide = aligned && p.c % 4 == 0 && span % 4 == 0;
        chunk = (int)ceil_div(p.hw, 256), chunk = chunk < 64 ? 64 : chunk;
        chunks = (int)ceil_div(p.hw, chunk);
    }
    dim3 grid() const { return dim3(ceil_div(p.c, span), chunks, p.n); }
    __device__ __forceinline__ int first() const { return blockIdx.x * span + threadIdx.x * 4; } // channel
    __device__ __forceinline__ int here() const { // this thread's channels: 0 to 4
        int left = span - (int)threadIdx.x * 4, in_row = p.c - first();
        left = left < in_row ? left : in_row;
        return left < 0 ? 0 : left < 4 ? left : 4;
    }
    __device__ __forceinline__ int group0() const { return blockIdx.x * span / size; } // the block's first
    __device__ __forceinline__ int begin() const { return blockIdx.y * chunk + threadIdx.y; } // row
    __device__ __forceinline__ int end() const {
        int next = (blockIdx.y + 1) * chunk;
        return next < p.hw ? next : p.hw;
    }
    __device__ __forceinline__ size_t at(int row) const { // this thread's first element in it
        return ((size_t)blockIdx.z * p.hw + row) * p.c + first();
    }
    // A number of each channel's group, its first: distances from it are small where a mean is large.
    __device__ __forceinline__ void pivots(float (&v)[4], Mem x) const {
        for (int e = 0; e < 4; e++)
            v[e] = e < here() ? ::load(x, at(0) - first() + (first() + e) / size * size) : 0;
    }
    __device__ __forceinline__ void load(float (&v)[4], Mem x, size_t i) const {
        if (wide) {
            float4 f = load4(x, i);
            v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
        } else
            for (int e = 0, n = here(); e < 4; e++) v[e] = e < n ? ::load(x, i + e) : 0;
    }
    __device__ __forceinline__ void store(Mem y, size_t i, const float (&v)[4]) const {
        if (wide) return store4(y, i, make_float4(v[0], v[1], v[2], v[3]));
        for (int e = 0, n = here(); e < 4; e++)
            if (e < n) ::store(y, i + e, v[e]);
    }
};

// What is to be known of this thread's four channels. stats: mean and 1 / sqrt(var + eps) of the block's
// groups.
struct Channels {
    float gamma[4], beta[4], mean[4], rstd[4];
    __device__ __forceinline__ Channels(const Walk &w, Mem gammas, Mem betas, const float *stats) {
        w.load(gamma, gammas, w.first()), w.load(beta, betas, w.first());
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int i = e < w.here() ? ((w.first() + e) / w.size - w.group0()) * 2 : 0;
            mean[e] = stats[i], rstd[e] = stats[i + 1];
        }
    }
    // dz and xhat of four elements: z = gamma xhat + beta, y = f(z), dz = dy f'(z)
    __device__ __forceinline__ void slopes(float (&dz)[4], float (&xhat)[4], const Walk &w, Mem dy, Mem x,
                                           int row) const {
        w.load(dz, dy, w.at(row)), w.load(xhat, x, w.at(row));
#pragma unroll
        for (int e = 0; e < 4; e++) {
            xhat[e] = (xhat[e] - mean[e]) * rstd[e];
            if (w.p.silu) dz[e] *= silu_slope(gamma[e] * xhat[e] + beta[e]);
        }
    }
};

// part (n, chunks, c / piece): the moments of each piece in each chunk, from the group's pivot on.
static __global__ void __launch_bounds__(COLUMNS *ROWS_AT_ONCE) group_moments(Moments *part, Mem x, Walk w) {
    __shared__ __align__(16) float means[ROWS_AT_ONCE][SPAN], squares[ROWS_AT_ONCE][SPAN];
    float mean[4] = {}, square[4] = {}, count = 0, pivot[4];
    w.pivots(pivot, x);
    if (w.here())
        for (int r = w.begin(); r < w.end(); r += ROWS_AT_ONCE) {
            float v[4], share = 1 / ++count;
            w.load(v, x, w.at(r));
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float shifted = v[e] - pivot[e], d = shifted - mean[e];
                mean[e] += d * share, square[e] += d * (shifted - mean[e]);
            }
        }
    *(float4 *)&means[threadIdx.y][threadIdx.x * 4] = make_float4(mean[0], mean[1], mean[2], mean[3]);
    *(float4 *)&squares[threadIdx.y][threadIdx.x * 4] =
        make_float4(square[0], square[1], square[2], square[3]);
    __syncthreads(); // all are there
    int rows = w.end() - (int)blockIdx.y * w.chunk, first = blockIdx.x * w.span;
    for (int i = threadIdx.y; i < w.span / w.piece && first + i * w.piece < w.p.c; i += ROWS_AT_ONCE) {
        Moments sum = {0, 0, 0};
        for (int k = threadIdx.x; k < ROWS_AT_ONCE * w.piece; k += 32) {
            int y = k / w.piece, c = i * w.piece + k % w.piece;
            sum.merge({means[y][c], squares[y][c], (float)((rows - y + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE)});
        }
        sum.merge_warp();
        if (threadIdx.x == 0)
            part[((size_t)blockIdx.z * w.chunks + blockIdx.y) * (w.p.c / w.piece) + first / w.piece + i] =
                sum;
    }
}
// Four blocks a multiprocessor, 64 registers a thread: by itself the compiler takes 48 for sm_90, and spills.
static __global__ void __launch_bounds__(COLUMNS *ROWS_AT_ONCE, 4)
    group_norm(Mem y, float *stats, const Moments *part, Mem x, Mem gamma, Mem beta, Walk w) {
    __shared__ float of[2 * SPAN]; // mean, from the pivot on, and rstd of the block's groups
    GroupNorm p = w.p;
    int cuts = w.size / w.piece;
    part += (size_t)blockIdx.z * w.chunks * (p.c / w.piece);
    for (int i = threadIdx.y; i * w.size < w.span && w.group0() + i < p.groups; i += ROWS_AT_ONCE) {
        Moments sum = {0, 0, 0};
        for (int k = threadIdx.x; k < w.chunks * cuts; k += 32)
            sum.merge(part[(size_t)(k / cuts) * (p.c / w.piece) + (w.group0() + i) * cuts + k % cuts]);
        sum.merge_warp();
        if (threadIdx.x) continue;
        of[2 * i] = sum.mean, of[2 * i + 1] = 1 / sqrtf(sum.square / sum.count + p.eps);
        if (!stats || blockIdx.y) continue;
        float *to = &stats[((size_t)blockIdx.z * p.groups + w.group0() + i) * 2];
        to[0] = load(x, w.at(0) - w.first() + (w.group0() + i) * w.size) + of[2 * i], to[1] = of[2 * i + 1];
    }
    __syncthreads(); // all groups are there
    if (!w.here()) return;
    Channels c(w, gamma, beta, of);
    float pivot[4];
    w.pivots(pivot, x);
    for (int r = w.begin(); r < w.end(); r += ROWS_AT_ONCE) {
        float v[4];
        w.load(v, x, w.at(r));
#pragma unroll
        for (int e = 0; e < 4; e++) {
            float z = c.gamma[e] * ((v[e] - pivot[e] - c.mean[e]) * c.rstd[e]) + c.beta[e];
            v[e] = p.silu ? z * sigmoid(z) : z;
        }
        w.store(y, w.at(r), v);
    }
}
static void launch_group_norm(Mem y, float *stats, Mem x, Mem gamma, Mem beta, GroupNorm p) {
    if (!p.n || !p.hw || !p.c) return;
    Walk w(p, fours(x) && fours(y) && fours(gamma) && fours(beta));
    dim3 grid = w.grid(), block(COLUMNS, ROWS_AT_ONCE);
    Scratch scratch;
    Moments *part = (Moments *)scratch.floats((size_t)3 * p.n * w.chunks * (p.c / w.piece));
    group_moments<<<grid, block, 0, stream>>>(part, x, w);
    check_launch("group_moments", grid, block);
    group_norm<<<grid, block, 0, stream>>>(y, stats, part, x, gamma, beta, w);
    check_launch("group_norm", grid, block);
}

// part (n, chunks, c): sums of dz and of dz xhat over a chunk's rows, as add_chunks() takes them.
static __global__ void __launch_bounds__(COLUMNS *ROWS_AT_ONCE)
    group_slopes(float2 *part, Mem dy, Mem x, Mem gamma, Mem beta, const float *stats, Walk w) {
    __shared__ __align__(16) float sums[2][ROWS_AT_ONCE][SPAN];
    float sum[2][4] = {};
    if (w.here()) {
        Channels c(w, gamma, beta, stats + ((size_t)blockIdx.z * w.p.groups + w.group0()) * 2);
        for (int r = w.begin(); r < w.end(); r += ROWS_AT_ONCE) {
            float dz[4], xhat[4];
            c.slopes(dz, xhat, w, dy, x, r);
#pragma unroll
            for (int e = 0; e < 4; e++) sum[0][e] += dz[e], sum[1][e] += dz[e] * xhat[e];
        }
    }
    for (int i = 0; i < 2; i++)
        *(float4 *)&sums[i][threadIdx.y][threadIdx.x * 4] =
            make_float4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
    __syncthreads(); // all are there
    int c = threadIdx.y * COLUMNS + threadIdx.x, channel = blockIdx.x * w.span + c;
    if (c >= w.span || channel >= w.p.c) return;
    float2 all = make_float2(0, 0);
    for (int y = 0; y < ROWS_AT_ONCE; y++) all.x += sums[0][y][c], all.y += sums[1][y][c];
    part[((size_t)blockIdx.z * w.chunks + blockIdx.y) * w.p.c + channel] = all;
}
// dxhat = dz gamma     dx += rstd (dxhat - average of dxhat - xhat average of (dxhat xhat))
// sums (2, n, c): of dz and of dz xhat over a picture.
static __global__ void __launch_bounds__(COLUMNS *ROWS_AT_ONCE)
    group_norm_backward(Mem dx, const float *sums, Mem dy, Mem x, Mem gamma, Mem beta, const float *stats,
                        Walk w) {
    __shared__ float averages[2][SPAN];
    GroupNorm p = w.p;
    for (int i = threadIdx.y; i * w.size < w.span && w.group0() + i < p.groups; i += ROWS_AT_ONCE) {
        float sum[2] = {0, 0};
        for (int k = threadIdx.x, c = (w.group0() + i) * w.size; k < w.size; k += 32)
            for (int h = 0; h < 2; h++)
                sum[h] += load(gamma, c + k) * sums[((size_t)h * p.n + blockIdx.z) * p.c + c + k];
        for (int h = 0; h < 2; h++) {
            sum[h] = warp_sum(sum[h]) / ((float)p.hw * w.size);
            if (threadIdx.x == 0) averages[h][i] = sum[h];
        }
    }
    __syncthreads(); // all groups are there
    if (!w.here()) return;
    Channels c(w, gamma, beta, stats + ((size_t)blockIdx.z * p.groups + w.group0()) * 2);
    for (int r = w.begin(); r < w.end(); r += ROWS_AT_ONCE) {
        float v[4], dz[4], xhat[4];
        c.slopes(dz, xhat, w, dy, x, r), w.load(v, dx, w.at(r));
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int i = e < w.here() ? (w.first() + e) / w.size - w.group0() : 0;
            v[e] += c.rstd[e] * (dz[e] * c.gamma[e] - averages[0][i] - xhat[e] * averages[1][i]);
        }
        w.store(dx, w.at(r), v);
    }
}
static void launch_group_norm_backward(Mem dx, float *dgamma, float *dbeta, Mem dy, Mem x, Mem gamma,
                                       Mem beta, const float *stats, GroupNorm p) {
    if (!p.n || !p.hw || !p.c) return;
    Walk w(p, fours(x) && fours(dy) && fours(dx) && fours(gamma) && fours(beta));
    dim3 grid = w.grid(), block(COLUMNS, ROWS_AT_ONCE);
    Scratch scratch;
    float *part = scratch.floats((size_t)2 * p.n * w.chunks * p.c),
          *sums = scratch.floats((size_t)2 * p.n * p.c);
    group_slopes<<<grid, block, 0, stream>>>((float2 *)part, dy, x, gamma, beta, stats, w);
    check_launch("group_slopes", grid, block);
    add_chunks(f32(dbeta), f32(dgamma), part, 1, p.n * w.chunks, p.c, true);
    if (!dx.at) return;
    add_chunks(f32(sums), f32(sums + (size_t)p.n * p.c), part, p.n, w.chunks, p.c, false);
    group_norm_backward<<<grid, block, 0, stream>>>(dx, sums, dy, x, gamma, beta, stats, w);
    check_launch("group_norm_backward", grid, block);
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
