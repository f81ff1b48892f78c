// attention.cu: attention and its gradients, without ever storing the matrix of scores (Dao et al. 2022).
//
//   blocked     forward and backward, any type and any head: scores and results pass through shared memory
//   tensor      forward, 16 bits, heads of 40, 64, 80 and 160 channels: FlashAttention-2 (Dao 2023)
//
// Blocked: a block owns 32 rows (queries, or keys in two of the gradients) of one head of one picture and
// walks over the other side 32 rows at a time. A thread owns 4 of the 32 x 32 scores of such a tile: row tid
// / 8, columns tid % 8 + 8 i. So a row of scores belongs to 8 neighbouring lanes, which find its largest and
// its sum by shuffles. Rows are read in pieces of 64 elements, so any head size fits. What limits it is
// shared memory: five numbers are read from it for four multiplications.
#include "tensor.h"

enum { ROWS = 32, PIECE = 64 };

struct Side { // rows of q, k, v or o: (n, length, heads * d)
    Mem x;
    int length;
};
// Element 0 of row t of the block's head and picture.
__device__ __forceinline__ size_t row_at(Attention p, int length, int t) {
    return (((size_t)blockIdx.z * length + t) * p.heads + blockIdx.y) * p.d;
}

struct Buffers {
    float x[ROWS][PIECE + 1], y[ROWS][PIECE + 1]; // pieces of rows; + 1: a column lies in 32 banks
    float s[ROWS][ROWS + 1];                      // weights of a tile, made of its scores
};

// Copies elements e0 .. e0 + 63 of 32 rows from t0 on; zero where there are none.
__device__ __forceinline__ void load_piece(float (&to)[ROWS][PIECE + 1], Side side, int t0, int e0,
                                           Attention p) {
    for (int at = threadIdx.x; at < ROWS * PIECE; at += blockDim.x) {
        int r = at / PIECE, e = at % PIECE;
        bool inside = t0 + r < side.length && e0 + e < p.d;
        to[r][e] = inside ? load(side.x, row_at(p, side.length, t0 + r) + e0 + e) : 0;
    }
}

// sum[i] = x_row . y_column for this thread's 4 elements of a tile.
__device__ __forceinline__ void dot_tile(float (&sum)[4], Buffers &b, Side x, int x0, Side y, int y0,
                                         Attention p) {
    int row = threadIdx.x / 8, col = threadIdx.x % 8;
#pragma unroll
    for (int i = 0; i < 4; i++) sum[i] = 0;
    for (int e0 = 0; e0 < p.d; e0 += PIECE) {
        __syncthreads(); // what was in the buffers is no longer needed
        load_piece(b.x, x, x0, e0, p);
        load_piece(b.y, y, y0, e0, p);
        __syncthreads(); // the pieces are there
        int n = p.d - e0 < PIECE ? p.d - e0 : PIECE;
        for (int e = 0; e < n; e++) {
            float a = b.x[row][e];
#pragma unroll
            for (int i = 0; i < 4; i++) sum[i] += a * b.y[col + 8 * i][e];
        }
    }
}

// A row of the gathered result, in shared memory: an odd multiple of 8 elements apart, so that the 4 rows x 8
// columns that a warp touches at once lie in 32 banks.
__device__ __host__ __forceinline__ int result_stride(int d) { return ((d + 7) / 8 | 1) * 8; }

// result[row][:] = result[row][:] * keep + sum over the tile's 32 columns c of s[row][c] z[c][:]
__device__ __forceinline__ void add_weighted(float *result, float keep, Buffers &b, Side z, int z0,
                                             Attention p) {
    int row = threadIdx.x / 8, col = threadIdx.x % 8, stride = result_stride(p.d);
    for (int e0 = 0; e0 < p.d; e0 += PIECE) {
        __syncthreads(); // b.y is no longer needed; in the first round also: b.s is complete
        load_piece(b.y, z, z0, e0, p);
        __syncthreads(); // the piece is there
        int n = p.d - e0 < PIECE ? p.d - e0 : PIECE;
        for (int e = col; e < n; e += 8) {
            float sum = 0;
            for (int c = 0; c < ROWS; c++) sum += b.s[row][c] * b.y[c][e];
            float *r = &result[row * stride + e0 + e]; // this thread's alone
            *r = *r * keep + sum;
        }
    }
}

// ---- forward ---------------------------------------------------------------------------------------------
// o_i = sum_j exp(s_ij) v_j / sum_j exp(s_ij), s_ij = scale q_i . k_j. The largest score so far is subtracted
// in every exponential; when a larger one turns up, what was gathered is scaled down to it.

// Four blocks a multiprocessor, 64 registers a thread: by itself the compiler takes 48 for sm_87, and spills.
static __global__ void __launch_bounds__(256, 4)
    attention(Mem o, float *lse, Side q, Side k, Side v, Attention p) {
    __shared__ Buffers b;
    extern __shared__ __align__(128) unsigned char dynamic_shared[];
    float *result = (float *)dynamic_shared;
    int row = threadIdx.x / 8, col = threadIdx.x % 8, stride = result_stride(p.d);
    int q0 = blockIdx.x * ROWS, query = q0 + row;
    for (int e = col; e < p.d; e += 8) result[row * stride + e] = 0;
    float largest = -INFINITY, total = 0;
    int end = p.causal && q0 + ROWS < p.tk ? q0 + ROWS : p.tk;
    for (int k0 = 0; k0 < end; k0 += ROWS) {
        float s[4];
        dot_tile(s, b, q, q0, k, k0, p);
        float most = largest, sum = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int key = k0 + col + 8 * i;
            bool visible = key < p.tk && (!p.causal || key <= query);
            s[i] = visible ? s[i] * p.scale : -INFINITY;
            most = fmaxf(most, s[i]);
        }
        for (int o = 4; o; o >>= 1)
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, o)); // over the row's 8 lanes
        float keep = expf(largest - most);                             // 0 the first time
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[i] = expf(s[i] - most);
            b.s[row][col + 8 * i] = s[i];
            sum += s[i];
        }
        for (int o = 4; o; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
        total = total * keep + sum;
        largest = most;
        add_weighted(result, keep, b, v, k0, p); // its barrier completes b.s
    }
    if (query >= p.tq) return;
    for (int e = col; e < p.d; e += 8) store(o, row_at(p, p.tq, query) + e, result[row * stride + e] / total);
    if (lse && col == 0)
        lse[((size_t)blockIdx.z * p.heads + blockIdx.y) * p.tq + query] = largest + logf(total);
}

static int result_bytes(Attention p) {
    int bytes = ROWS * result_stride(p.d) * (int)sizeof(float);
    if (p.d > 512) die("CUDA: attention heads of %d channels; at most 512 fit into shared memory", p.d);
    return bytes;
}

// ---- forward on tensor cores -----------------------------------------------------------------------------
// What it fixes: scores and results never leave the registers. A warp owns 16 queries; their fragments are
// loaded once. Keys and values arrive by cp.async, the next tile while one is worked on, and are read once
// for 64 queries.
//
// The trick of the middle: a lane's four numbers of a fragment of scores, S = Q K^T, stand at the very places
// (row lane / 4, columns 2 (lane % 4), one more, and 8 rows below) where mma.sync wants its share of the left
// operand of P V. So two fragments of scores, side by side, become one of P by rounding alone; nothing is
// exchanged. A row of scores belongs to the 4 lanes of a quad, which find its largest by two shuffles and its
// sum once, at the end. exp(x) is computed as 2^(x log2 e), one instruction; log2 e is part of the scale.
//
// A row of a tile is D / 8 chunks, without a pad. Chunk c of row r lies at c ^ (r / (8 / G) % G), where G is
// the largest power of two in D / 8, up to 8: the 8 rows of one chunk that ldmatrix reads at once, and 8
// chunks that follow one another, which cp.async writes at once, lie in 32 different banks. D = 40 is two and
// a half steps of k: the second half of the third is zeros, in registers.

template <int D> struct Flash {
    static constexpr int WARPS = 4, QUERIES = 16 * WARPS, KEYS = D > 80 ? 32 : 64, THREADS = 32 * WARPS;
    static constexpr int CHUNKS = D / 8, STEPS = (CHUNKS + 1) / 2, TILE = KEYS * D; // a tile's elements
    static constexpr int G = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : CHUNKS % 2 == 0 ? 2 : 1;
    static constexpr int BYTES = 2 * 2 * TILE * 2; // two stages, keys and values
    __device__ __forceinline__ static int at(int r, int c) {
        return (r * CHUNKS + (c ^ (r / (8 / G) % G))) * 8;
    }
};
__device__ __forceinline__ uint32_t two_rounded(float low, float high, __half) {
    __half2 h = __floats2half2_rn(low, high);
    uint32_t u;
    memcpy(&u, &h, 4);
    return u;
}
__device__ __forceinline__ uint32_t two_rounded(float low, float high, __nv_bfloat16) {
    __nv_bfloat162 h = __floats2bfloat162_rn(low, high);
    uint32_t u;
    memcpy(&u, &h, 4);
    return u;
}

template <class T, int D>
static __global__ void __launch_bounds__(Flash<D>::THREADS)
    attention_tensor(T *o, float *lse, const T *q, const T *k, const T *v, Attention p) {
    typedef Flash<D> F;
    extern __shared__ __align__(128) unsigned char dynamic_shared[];
    T *tiles = (T *)dynamic_shared; // stage 0: keys, values; stage 1: keys, values
    int lane = threadIdx.x % 32, row = lane / 4, pair = lane % 4 * 2;
    int q0 = blockIdx.x * F::QUERIES + threadIdx.x / 32 * 16; // this warp's first
    int end = p.causal && (int)blockIdx.x * F::QUERIES + F::QUERIES < p.tk
                  ? blockIdx.x * F::QUERIES + F::QUERIES
                  : p.tk;

    auto fetch = [&](int k0, int stage) { // one tile of keys and of values; zeros beyond the last
        T *to = tiles + stage * 2 * F::TILE;
#pragma unroll
        for (int at = threadIdx.x; at < F::KEYS * F::CHUNKS; at += F::THREADS) {
            int r = at / F::CHUNKS, c = at % F::CHUNKS, bytes = k0 + r < p.tk ? 16 : 0;
            size_t from = bytes ? row_at(p, p.tk, k0 + r) + c * 8 : 0;
            cp_async16(to + F::at(r, c), k + from, bytes);
            cp_async16(to + F::TILE + F::at(r, c), v + from, bytes);
        }
        cp_async_commit();
    };
    fetch(0, 0);

    uint32_t fq[F::STEPS][4]; // fragments of Q; queries beyond the last are zeros
#pragma unroll
    for (int s = 0; s < F::STEPS; s++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int query = q0 + row + e % 2 * 8, column = s * 16 + e / 2 * 8 + pair;
            bool inside = query < p.tq && column < D;
            fq[s][e] = inside ? *(const uint32_t *)(q + row_at(p, p.tq, query) + column) : 0;
        }
    float scale = p.scale * 1.4426950408889634f; // log2(e)
    float result[F::CHUNKS][4] = {};             // 16 queries x D
    // Of rows `row` and row + 8; `total` is this lane's part.
    float largest[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};

    for (int k0 = 0, stage = 0; k0 < end; k0 += F::KEYS, stage ^= 1) {
        cp_async_wait<0>(); // this thread's copies have landed
        __syncthreads();    // everyone's have; and all are done with the other stage
        if (k0 + F::KEYS < end) fetch(k0 + F::KEYS, stage ^ 1);
        const T *keys = tiles + stage * 2 * F::TILE, *values = keys + F::TILE;
        float s[F::KEYS / 8][4] = {};
#pragma unroll
        for (int j = 0; j < F::KEYS / 8; j += 2)
#pragma unroll
            for (int step = 0; step < F::STEPS; step++) {
                uint32_t b[4];
                bool half = 2 * step + 1 == F::CHUNKS; // the second half of the step does not exist
                int c = half ? 2 * step : 2 * step + lane / 8 % 2;
                ldmatrix_x4(b, keys + F::at(j * 8 + lane / 16 * 8 + lane % 8, c));
                uint32_t left[2] = {b[0], half ? 0 : b[1]}, right[2] = {b[2], half ? 0 : b[3]};
                multiply(s[j], fq[step], left, T());
                multiply(s[j + 1], fq[step], right, T());
            }
        bool edge = k0 + F::KEYS > p.tk || (p.causal && k0 + F::KEYS > q0);
        float most[2] = {largest[0], largest[1]};
#pragma unroll
        for (int j = 0; j < F::KEYS / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                s[j][e] *= scale;
                int key = k0 + j * 8 + pair + e % 2;
                if (edge && (key >= p.tk || (p.causal && key > q0 + row + e / 2 * 8))) s[j][e] = -INFINITY;
                most[e / 2] = fmaxf(most[e / 2], s[j][e]);
            }
        float keep[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            most[h] = fmaxf(most[h], __shfl_xor_sync(0xffffffffu, most[h], 1));
            most[h] = fmaxf(most[h], __shfl_xor_sync(0xffffffffu, most[h], 2));
            keep[h] = exp2f(largest[h] - most[h]); // 0 the first time
            largest[h] = most[h], total[h] *= keep[h];
        }
#pragma unroll
        for (int j = 0; j < F::KEYS / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[j][e] = exp2f(s[j][e] - most[e / 2]), total[e / 2] += s[j][e];
#pragma unroll
        for (int c = 0; c < F::CHUNKS; c++)
#pragma unroll
            for (int e = 0; e < 4; e++) result[c][e] *= keep[e / 2];
#pragma unroll
        for (int step = 0; step < F::KEYS / 16; step++) {
            const float *low = s[2 * step], *high = s[2 * step + 1];
            uint32_t fp[4] = {two_rounded(low[0], low[1], T()), two_rounded(low[2], low[3], T()),
                              two_rounded(high[0], high[1], T()), two_rounded(high[2], high[3], T())};
#pragma unroll
            for (int c = 0; c + 1 < F::CHUNKS; c += 2) {
                uint32_t b[4];
                ldmatrix_x4_trans(b, values + F::at(step * 16 + lane % 16, c + lane / 16));
                uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
                multiply(result[c], fp, left, T());
                multiply(result[c + 1], fp, right, T());
            }
            if (F::CHUNKS % 2) {
                uint32_t b[2];
                ldmatrix_x2_trans(b, values + F::at(step * 16 + lane % 16, F::CHUNKS - 1));
                multiply(result[F::CHUNKS - 1], fp, b, T());
            }
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        total[h] += __shfl_xor_sync(0xffffffffu, total[h], 1);
        total[h] += __shfl_xor_sync(0xffffffffu, total[h], 2);
        int query = q0 + row + h * 8;
        if (query >= p.tq) continue;
        T *to = o + row_at(p, p.tq, query) + pair;
#pragma unroll
        for (int c = 0; c < F::CHUNKS; c++)
            *(uint32_t *)(to + c * 8) =
                two_rounded(result[c][2 * h] / total[h], result[c][2 * h + 1] / total[h], T());
        if (lse && pair == 0)
            lse[((size_t)blockIdx.z * p.heads + blockIdx.y) * p.tq + query] =
                (largest[h] + log2f(total[h])) * 0.6931471805599453f; // ln(2)
    }
}

template <class T, int D> static void run_tensor(Mem o, float *lse, Mem q, Mem k, Mem v, Attention p) {
    dim3 grid(ceil_div(p.tq, Flash<D>::QUERIES), p.heads, p.n);
    auto kernel = attention_tensor<T, D>;
    kernel<<<grid, Flash<D>::THREADS, Flash<D>::BYTES, stream>>>((T *)o.at, lse, (const T *)q.at,
                                                                 (const T *)k.at, (const T *)v.at, p);
    check_launch("attention_tensor", grid, Flash<D>::THREADS);
}
template <class T> static bool tensor_attention(Mem o, float *lse, Mem q, Mem k, Mem v, Attention p) {
    switch (p.d) {
    case 40: run_tensor<T, 40>(o, lse, q, k, v, p); return true;
    case 64: run_tensor<T, 64>(o, lse, q, k, v, p); return true;
    case 80: run_tensor<T, 80>(o, lse, q, k, v, p); return true;
    case 160: run_tensor<T, 160>(o, lse, q, k, v, p); return true;
    default: return false;
    }
}

// ---- forward as two products -----------------------------------------------------------------------------
// The results of 16 queries with 512 channels fill no registers. So the VAE's one head stores its scores
// after all, for some queries at a time: S = scale Q K^T in fp32, P = softmax(S) rounded, O = P V. Both are
// backend.gemm's.

// p = softmax(s), row by row, a block a row.
static __global__ void __launch_bounds__(256) softmax_rows(Mem p, const float *s, int cols) {
    __shared__ float part[32];
    s += (size_t)blockIdx.x * cols;
    float most = -INFINITY, sum = 0;
    for (int j = threadIdx.x; j < cols; j += 256) most = fmaxf(most, s[j]);
    most = block_max(most, part);
    for (int j = threadIdx.x; j < cols; j += 256) sum += expf(s[j] - most);
    sum = block_sum(sum, part);
    for (int j = threadIdx.x; j < cols; j += 256)
        store(p, (size_t)blockIdx.x * cols + j, expf(s[j] - most) / sum);
}
static Mem rows_from(Mem x, size_t row, int cols) {
    return Mem{(char *)x.at + row * cols * size_of(x.type), x.type};
}
static void products_attention(Mem o, Mem q, Mem k, Mem v, Attention p) {
    static const Mem absent = {NULL, F32};
    int slab = (int)(((size_t)4 << 20) / p.tk); // 16 MB of scores
    slab = slab < 128 ? 128 : slab < p.tq ? slab : p.tq;
    for (int n = 0; n < p.n; n++)
        for (int from = 0; from < p.tq; from += slab) {
            int rows = p.tq - from < slab ? p.tq - from : slab;
            size_t first = (size_t)n * p.tq + from, keys = (size_t)n * p.tk;
            Scratch scratch;
            float *scores = scratch.floats((size_t)rows * p.tk);
            Mem weights = {backend.temp((size_t)rows * p.tk * 2), q.type};
            backend.gemm(f32(scores), rows_from(q, first, p.d), rows_from(k, keys, p.d), absent, absent,
                         Gemm{rows, p.tk, p.d, false, true, false, p.scale});
            softmax_rows<<<rows, 256, 0, stream>>>(weights, scores, p.tk);
            check_launch("softmax_rows", rows, 256);
            backend.gemm(rows_from(o, first, p.d), weights, rows_from(v, keys, p.d), absent, absent,
                         Gemm{rows, p.d, p.tk, false, false, false, 1});
        }
}

static void launch_attention(Mem o, float *lse, Mem q, Mem k, Mem v, Attention p) {
    if (!p.n || !p.heads || !p.tq) return;
    uintptr_t addresses = (uintptr_t)o.at | (uintptr_t)q.at | (uintptr_t)k.at | (uintptr_t)v.at;
    bool one_type = o.type == q.type && q.type == k.type && k.type == v.type && addresses % 16 == 0 && p.tk;
    bool done = one_type && q.type == F16    ? tensor_attention<__half>(o, lse, q, k, v, p)
                : one_type && q.type == BF16 ? tensor_attention<__nv_bfloat16>(o, lse, q, k, v, p)
                                             : false;
    bool products = one_type && !done && q.type == backend.storage && q.type != F32 && !lse && !p.causal &&
                    p.heads == 1 && p.d > 160;
    if (products) return products_attention(o, q, k, v, p);
    count_operations(4.0 * p.n * p.heads * p.tq * p.tk * p.d, done);
    if (done) return;
    dim3 grid(ceil_div(p.tq, ROWS), p.heads, p.n);
    int bytes = result_bytes(p);
    check_cuda(cudaFuncSetAttribute(attention, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
               "asking for shared memory");
    attention<<<grid, 256, bytes, stream>>>(o, lse, Side{q, p.tq}, Side{k, p.tk}, Side{v, p.tk}, p);
    check_launch("attention", grid, 256);
}

// ---- backward --------------------------------------------------------------------------------------------
// P_ij = exp(s_ij - lse_i)     dP_ij = dout_i . v_j     ds_ij = P_ij (dP_ij - dout_i . o_i)
// dq_i += scale sum_j ds_ij k_j     dk_j += scale sum_i ds_ij q_i     dv_j += sum_i P_ij dout_i
// Three launches of one kernel, each gathering one of the sums: the scores are made anew in each, which costs
// 8 products instead of 5 but needs no atomics, so that the sums have a fixed order.

// inner_i = dout_i . o_i (n, heads, tq); a warp a row
static __global__ void attention_inner(float *inner, Side dout, Side o, Attention p) {
    int i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= p.tq) return; // the whole warp
    size_t at = row_at(p, p.tq, i);
    float sum = 0;
    for (int e = lane; e < p.d; e += 32) sum += load(dout.x, at + e) * load(o.x, at + e);
    sum = warp_sum(sum);
    if (lane == 0) inner[((size_t)blockIdx.z * p.heads + blockIdx.y) * p.tq + i] = sum;
}

enum Gradient { DQ, DK, DV };
template <Gradient G>
static __global__ void __launch_bounds__(256)
    attention_backward(Mem gradient, const float *lse, const float *inner, Side q, Side k, Side v, Side dout,
                       Attention p) {
    __shared__ Buffers b;
    extern __shared__ __align__(128) unsigned char dynamic_shared[];
    float *result = (float *)dynamic_shared;
    int row = threadIdx.x / 8, col = threadIdx.x % 8, stride = result_stride(p.d);
    // The block's own rows are queries for dq, keys for dk and dv; it walks over the others.
    Side own = G == DQ ? q : k, other = G == DQ ? k : q;
    int own0 = blockIdx.x * ROWS;
    size_t head = ((size_t)blockIdx.z * p.heads + blockIdx.y) * p.tq; // of lse and inner
    for (int e = col; e < p.d; e += 8) result[row * stride + e] = 0;
    int begin = p.causal && G != DQ ? own0 : 0; // the first query that sees these keys
    int end = p.causal && G == DQ && own0 + ROWS < p.tk ? own0 + ROWS : other.length;
    for (int other0 = begin; other0 < end; other0 += ROWS) {
        float s[4], dp[4];
        dot_tile(s, b, own, own0, other, other0, p);
        if (G == DQ) dot_tile(dp, b, dout, own0, v, other0, p);
        if (G == DK) dot_tile(dp, b, v, own0, dout, other0, p);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int mine = own0 + row, its = other0 + col + 8 * i;
            int query = G == DQ ? mine : its, key = G == DQ ? its : mine;
            float weight = 0;
            if (query < p.tq && key < p.tk && (!p.causal || key <= query)) {
                weight = expf(s[i] * p.scale - lse[head + query]);
                if (G != DV) weight *= (dp[i] - inner[head + query]) * p.scale;
            }
            b.s[row][col + 8 * i] = weight;
        }
        add_weighted(result, 1, b, G == DQ ? k : G == DK ? q : dout, other0, p); // its barrier completes b.s
    }
    if (own0 + row >= own.length) return;
    for (int e = col; e < p.d; e += 8)
        accumulate(gradient, row_at(p, own.length, own0 + row) + e, result[row * stride + e]);
}

template <Gradient G>
static void run_backward(Mem gradient, const float *lse, const float *inner, Side q, Side k, Side v,
                         Side dout, Attention p) {
    if (!gradient.at) return;
    dim3 grid(ceil_div(G == DQ ? p.tq : p.tk, ROWS), p.heads, p.n);
    int bytes = result_bytes(p);
    check_cuda(
        cudaFuncSetAttribute(attention_backward<G>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "asking for shared memory");
    attention_backward<G><<<grid, 256, bytes, stream>>>(gradient, lse, inner, q, k, v, dout, p);
    check_launch("attention_backward", grid, 256);
}

static void launch_attention_backward(Mem dq, Mem dk, Mem dv, Mem dout, Mem q, Mem k, Mem v, Mem o,
                                      const float *lse, Attention p) {
    if (!p.n || !p.heads || !p.tq || !p.tk) return;
    Side sq = {q, p.tq}, sk = {k, p.tk}, sv = {v, p.tk}, sd = {dout, p.tq};
    Scratch scratch;
    float *inner = scratch.floats((size_t)p.n * p.heads * p.tq);
    dim3 grid(ceil_div(p.tq, 8), p.heads, p.n);
    attention_inner<<<grid, 256, 0, stream>>>(inner, sd, Side{o, p.tq}, p);
    check_launch("attention_inner", grid, 256);
    count_operations(10.0 * p.n * p.heads * p.tq * p.tk * p.d, false);
    run_backward<DQ>(dq, lse, inner, sq, sk, sv, sd, p);
    run_backward<DK>(dk, lse, inner, sq, sk, sv, sd, p);
    run_backward<DV>(dv, lse, inner, sq, sk, sv, sd, p);
}

void attention_kernels(Backend &b) {
    b.attention = launch_attention;
    b.attention_backward = launch_attention_backward;
}
