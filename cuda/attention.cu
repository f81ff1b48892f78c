// attention.cu: attention and its gradients, in three steps from the definition to the tensor cores.
//
//   1 naive     the matrix of scores is stored, a thread an element
//   2 blocked   it is never stored (Dao et al. 2022): tiles of it pass through shared memory
//   3 tensor    nor do its tiles: they stay in registers (FlashAttention-2, Dao 2023)
//
// What moves, for a head of 40 channels and 4096 queries and keys: the naive step writes and reads a matrix
// of 64 MB a head several times; the others read keys and values once for every 32 or 64 queries, from the L2
// cache. The blocked step is then limited by shared memory: five numbers are read from it for four
// multiplications. The tensor step reads a number of a tile once for 16 x 8 x 16 of them; there, for so small
// a head, the exponentials take as long as the products.
//
// backend.attention takes the tensor step where all is in one type of 16 bits and heads have 40, 64, 80 or
// 160 channels; for the VAE's one head of 512, two products with the scores between them; else the blocked
// step. SD_ATTENTION=naive|blocked|tensor asks for a step.
#include "attention.h"
#include "tensor.h"

struct Side { // rows of q, k, v or o: (n, length, heads * d)
    Mem x;
    int length;
};
// Element 0 of row t of the block's head and picture.
__device__ __forceinline__ size_t row_at(Attention p, int length, int t) {
    return (((size_t)blockIdx.z * length + t) * p.heads + blockIdx.y) * p.d;
}
// Query t of the block's head and picture, where one number a query is kept: (n, heads, tq).
__device__ __forceinline__ size_t query_at(Attention p, int t) {
    return ((size_t)blockIdx.z * p.heads + blockIdx.y) * p.tq + t;
}
// The same where two are kept for the backward, with an even number of places a row, so that two queries are
// 16 aligned bytes: x, the log-sum-exp of a row of scores, and y = dout_i . o_i. See attention_rows().
__device__ __host__ __forceinline__ int even(int t) { return (t + 1) / 2 * 2; }
__device__ __forceinline__ size_t row_of(Attention p, int t) {
    return ((size_t)blockIdx.z * p.heads + blockIdx.y) * even(p.tq) + t;
}
__device__ __forceinline__ bool visible(Attention p, int query, int key) {
    return key < p.tk && (!p.causal || key <= query);
}

// ---- 1. naive --------------------------------------------------------------------------------------------
// The definition. Forward: S = scale Q K^T, P = softmax(S), O = P V. Backward, with inner_i = dout_i . o_i:
//   dP = dout V^T    dS = P (dP - inner)    dQ += scale dS K    dK += scale dS^T Q    dV += P^T dout

static __global__ void naive_dots(float *s, Side x, Side y, Attention p) { // s_ij = x_i . y_j
    EACH(at, (size_t)p.tq * p.tk) {
        size_t i = row_at(p, p.tq, (int)(at / p.tk)), j = row_at(p, p.tk, (int)(at % p.tk));
        float sum = 0;
        for (int e = 0; e < p.d; e++) sum += load(x.x, i + e) * load(y.x, j + e);
        s[query_at(p, 0) * p.tk + at] = sum;
    }
}
static __global__ void naive_softmax(float *s, float *lse, Attention p) { // a thread a row
    EACH(i, (size_t)p.tq) {
        float *row = s + query_at(p, (int)i) * p.tk, most = -INFINITY, total = 0;
        for (int j = 0; j < p.tk; j++) {
            row[j] = visible(p, (int)i, j) ? row[j] * p.scale : -INFINITY;
            most = fmaxf(most, row[j]);
        }
        for (int j = 0; j < p.tk; j++) total += row[j] = expf(row[j] - most);
        for (int j = 0; j < p.tk; j++) row[j] /= total;
        if (lse) lse[query_at(p, (int)i)] = most + logf(total);
    }
}
// s becomes P, dp becomes scale dS.
static __global__ void naive_slopes(float *s, float *dp, const float2 *of, Attention p) {
    EACH(at, (size_t)p.tq * p.tk) {
        int i = (int)(at / p.tk), j = (int)(at % p.tk);
        size_t here = query_at(p, 0) * p.tk + at;
        float2 row = of[row_of(p, i)];
        s[here] = visible(p, i, j) ? expf(s[here] * p.scale - row.x) : 0;
        dp[here] = s[here] * (dp[here] - row.y) * p.scale;
    }
}
// y_i = sum_j w_ij x_j (+ y_i), or the same with w_ji: then the rows of y are keys, and those of x queries.
static __global__ void naive_weighted(Side y, const float *w, bool turned, Side x, bool add, Attention p) {
    w += query_at(p, 0) * p.tk;
    EACH(at, (size_t)y.length * p.d) {
        int i = (int)(at / p.d), e = (int)(at % p.d);
        float sum = 0;
        for (int j = 0; j < x.length; j++)
            sum += w[turned ? (size_t)j * p.tk + i : (size_t)i * p.tk + j] *
                   load(x.x, row_at(p, x.length, j) + e);
        size_t to = row_at(p, y.length, i) + e;
        store(y.x, to, add ? load(y.x, to) + sum : sum);
    }
}
static void run_naive(float *s, Side x, Side y, Attention p) {
    dim3 grid(blocks_for((size_t)p.tq * p.tk), p.heads, p.n);
    naive_dots<<<grid, THREADS, 0, stream>>>(s, x, y, p);
    check_launch("naive_dots", grid, THREADS);
}
static void run_weighted(Side y, const float *w, bool turned, Side x, bool add, Attention p) {
    if (!y.x.at) return;
    dim3 grid(blocks_for((size_t)y.length * p.d), p.heads, p.n);
    naive_weighted<<<grid, THREADS, 0, stream>>>(y, w, turned, x, add, p);
    check_launch("naive_weighted", grid, THREADS);
}
static void naive_forward(Side o, float *lse, Side q, Side k, Side v, Attention p) {
    Scratch scratch;
    float *s = scratch.floats((size_t)p.n * p.heads * p.tq * p.tk);
    run_naive(s, q, k, p);
    dim3 grid(blocks_for(p.tq), p.heads, p.n);
    naive_softmax<<<grid, THREADS, 0, stream>>>(s, lse, p);
    check_launch("naive_softmax", grid, THREADS);
    run_weighted(o, s, false, v, false, p);
}
static void naive_backward(Side dq, Side dk, Side dv, Side dout, Side q, Side k, Side v, const float2 *of,
                           Attention p) {
    Scratch scratch;
    size_t count = (size_t)p.n * p.heads * p.tq * p.tk;
    float *s = scratch.floats(count), *ds = scratch.floats(count);
    run_naive(s, q, k, p), run_naive(ds, dout, v, p);
    dim3 grid(blocks_for((size_t)p.tq * p.tk), p.heads, p.n);
    naive_slopes<<<grid, THREADS, 0, stream>>>(s, ds, of, p);
    check_launch("naive_slopes", grid, THREADS);
    run_weighted(dq, ds, false, k, true, p);
    run_weighted(dk, ds, true, q, true, p);
    run_weighted(dv, s, true, dout, true, p);
}

// ---- 2. blocked ------------------------------------------------------------------------------------------
// What it fixes: nothing of the size of tq x tk is stored. A block owns 32 rows (queries, or keys in two of
// the gradients) of one head of one picture and walks over the other side 32 rows at a time. A thread owns 4
// of the 32 x 32 scores of such a tile: row tid / 8, columns tid % 8 + 8 i. So a row of scores belongs to 8
// neighbouring lanes, which find its largest and its sum by shuffles. Rows are read in pieces of 64 elements,
// so any head size fits.

enum { ROWS = 32, PIECE = 64 };

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

// Forward. o_i = sum_j exp(s_ij) v_j / sum_j exp(s_ij), s_ij = scale q_i . k_j. The largest score so far is
// subtracted in every exponential; when a larger one turns up, what was gathered is scaled down to it.

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
            s[i] = visible(p, query, key) ? s[i] * p.scale : -INFINITY;
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
    if (lse && col == 0) lse[query_at(p, query)] = largest + logf(total);
}

static int result_bytes(Attention p) {
    int bytes = ROWS * result_stride(p.d) * (int)sizeof(float);
    if (p.d > 512) die("CUDA: attention heads of %d channels; at most 512 fit into shared memory", p.d);
    return bytes;
}

// Backward. P_ij = exp(s_ij - lse_i), and the rest as in step 1. Three launches of one kernel, each gathering
// one of the sums: the scores are made anew in each, which costs 8 products instead of 5 but needs no
// atomics, so that the sums have a fixed order.

enum Gradient { DQ, DK, DV };
template <Gradient G>
static __global__ void __launch_bounds__(256)
    attention_backward(Mem gradient, const float2 *of, Side q, Side k, Side v, Side dout, Attention p) {
    __shared__ Buffers b;
    extern __shared__ __align__(128) unsigned char dynamic_shared[];
    float *result = (float *)dynamic_shared;
    int row = threadIdx.x / 8, col = threadIdx.x % 8, stride = result_stride(p.d);
    // The block's own rows are queries for dq, keys for dk and dv; it walks over the others.
    Side own = G == DQ ? q : k, other = G == DQ ? k : q;
    int own0 = blockIdx.x * ROWS;
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
            if (query < p.tq && visible(p, query, key)) {
                float2 row_numbers = of[row_of(p, query)];
                weight = expf(s[i] * p.scale - row_numbers.x);
                if (G != DV) weight *= (dp[i] - row_numbers.y) * p.scale;
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
static void run_backward(Mem gradient, const float2 *of, Side q, Side k, Side v, Side dout, Attention p) {
    if (!gradient.at) return;
    dim3 grid(ceil_div(G == DQ ? p.tq : p.tk, ROWS), p.heads, p.n);
    int bytes = result_bytes(p);
    check_cuda(
        cudaFuncSetAttribute(attention_backward<G>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "asking for shared memory");
    attention_backward<G><<<grid, 256, bytes, stream>>>(gradient, of, q, k, v, dout, p);
    check_launch("attention_backward", grid, 256);
}

// ---- 3. tensor cores -------------------------------------------------------------------------------------
// What it fixes: scores and results never leave the registers. A warp owns 16 rows, in the forward queries;
// their fragments are loaded once. Rows of the other side, keys and values, arrive by cp.async, the next tile
// while one is worked on, and are read once for the 64 rows of a block.
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

#define LOG2_E 1.4426950408889634f

// Two neighbours of a row, in one register.
template <class Two> __device__ __forceinline__ uint32_t word_of(Two h) {
    uint32_t u;
    memcpy(&u, &h, 4);
    return u;
}
__device__ __forceinline__ uint32_t two_rounded(float low, float high, __half) {
    return word_of(__floats2half2_rn(low, high));
}
__device__ __forceinline__ uint32_t two_rounded(float low, float high, __nv_bfloat16) {
    return word_of(__floats2bfloat162_rn(low, high));
}
__device__ __forceinline__ float2 two_floats(uint32_t u, __half) {
    __half2 h;
    memcpy((void *)&h, &u, 4);
    return make_float2(__half2float(h.x), __half2float(h.y));
}
__device__ __forceinline__ float2 two_floats(uint32_t u, __nv_bfloat16) { // the upper halves of two fp32
    return make_float2(__uint_as_float(u << 16), __uint_as_float(u & 0xffff0000u));
}

template <class T, int D> struct Flash {
    static constexpr int WARPS = 4, OWN = 16 * WARPS, OTHERS = D > 80 ? 32 : 64, THREADS = 32 * WARPS;
    static constexpr int CHUNKS = D / 8, STEPS = (CHUNKS + 1) / 2, TILE = OTHERS * D; // a tile's elements
    static constexpr int G = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : CHUNKS % 2 == 0 ? 2 : 1;
    static constexpr int STAGE = 2 * TILE + OTHERS * 4; // two tiles, and two floats for each row of them
    static constexpr int BYTES = 2 * STAGE * 2;         // of two stages
    __device__ __forceinline__ static int at(int r, int c) {
        return (r * CHUNKS + (c ^ (r / (8 / G) % G))) * 8;
    }
    // Starts the copies of a tile: rows of x from t0 on, zeros beyond the last.
    __device__ __forceinline__ static void fetch(T *tile, const T *x, int length, int t0, Attention p) {
#pragma unroll
        for (int i = threadIdx.x; i < OTHERS * CHUNKS; i += THREADS) {
            int r = i / CHUNKS, c = i % CHUNKS, bytes = t0 + r < length ? 16 : 0;
            cp_async16(tile + at(r, c), x + (bytes ? row_at(p, length, t0 + r) + c * 8 : 0), bytes);
        }
    }
    // The fragments of 16 rows of x from t0 on, which stay; zeros beyond the last row and column.
    __device__ __forceinline__ static void own(uint32_t (&f)[STEPS][4], const T *x, int length, int t0,
                                               Attention p) {
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int s = 0; s < STEPS; s++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int t = t0 + lane / 4 + e % 2 * 8, column = s * 16 + e / 2 * 8 + lane % 4 * 2;
                bool inside = t < length && column < D;
                f[s][e] = inside ? *(const uint32_t *)(x + row_at(p, length, t) + column) : 0;
            }
    }
    // Dots of the own rows with 16 rows of a tile, from r on: two fragments of 16 x 8, added to.
    __device__ __forceinline__ static void dots(float (&low)[4], float (&high)[4],
                                                const uint32_t (&own)[STEPS][4], const T *tile, int r) {
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            uint32_t b[4];
            bool half = 2 * s + 1 == CHUNKS; // the second half of the step does not exist
            ldmatrix_x4(b, tile + at(r + lane / 16 * 8 + lane % 8, half ? 2 * s : 2 * s + lane / 8 % 2));
            uint32_t left[2] = {b[0], half ? 0 : b[1]}, right[2] = {b[2], half ? 0 : b[3]};
            multiply(low, own[s], left, T());
            multiply(high, own[s], right, T());
        }
    }
    // result (16 x D) += the weights, two such fragments, times the 16 rows of a tile from r on.
    __device__ __forceinline__ static void gather(float (&result)[CHUNKS][4], const float (&low)[4],
                                                  const float (&high)[4], const T *tile, int r) {
        int lane = threadIdx.x % 32;
        uint32_t a[4] = {two_rounded(low[0], low[1], T()), two_rounded(low[2], low[3], T()),
                         two_rounded(high[0], high[1], T()), two_rounded(high[2], high[3], T())};
#pragma unroll
        for (int c = 0; c + 1 < CHUNKS; c += 2) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, tile + at(r + lane % 16, c + lane / 16));
            uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
            multiply(result[c], a, left, T());
            multiply(result[c + 1], a, right, T());
        }
        if (CHUNKS % 2) {
            uint32_t b[2];
            ldmatrix_x2_trans(b, tile + at(r + lane % 16, CHUNKS - 1));
            multiply(result[CHUNKS - 1], a, b, T());
        }
    }
};

template <class T, int D>
static __global__ void __launch_bounds__(Flash<T, D>::THREADS)
    attention_tensor(T *o, float *lse, const T *q, const T *k, const T *v, Attention p) {
    typedef Flash<T, D> F;
    extern __shared__ __align__(128) unsigned char dynamic_shared[];
    T *tiles = (T *)dynamic_shared; // stage 0: keys, values; stage 1: keys, values
    int lane = threadIdx.x % 32, row = lane / 4, pair = lane % 4 * 2;
    int block0 = blockIdx.x * F::OWN, q0 = block0 + threadIdx.x / 32 * 16; // this block's first, this warp's
    int end = p.causal && block0 + F::OWN < p.tk ? block0 + F::OWN : p.tk;
    auto fetch = [&](int k0, int stage) {
        F::fetch(tiles + stage * F::STAGE, k, p.tk, k0, p);
        F::fetch(tiles + stage * F::STAGE + F::TILE, v, p.tk, k0, p);
        cp_async_commit();
    };
    fetch(0, 0);
    uint32_t own[F::STEPS][4];
    F::own(own, q, p.tq, q0, p);
    float scale = p.scale * LOG2_E, result[F::CHUNKS][4] = {}; // 16 queries x D
    // Of rows `row` and row + 8: the largest so far, and the sum of what this lane has seen. [C9]
    float largest[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};

    for (int k0 = 0, stage = 0; k0 < end; k0 += F::OTHERS, stage ^= 1) {
        cp_async_wait<0>(); // this thread's copies have landed
        __syncthreads();    // everyone's have; and all are done with the other stage
        if (k0 + F::OTHERS < end) fetch(k0 + F::OTHERS, stage ^ 1);
        const T *keys = tiles + stage * F::STAGE, *values = keys + F::TILE;
        float s[F::OTHERS / 8][4] = {};
#pragma unroll
        for (int j = 0; j < F::OTHERS / 8; j += 2) F::dots(s[j], s[j + 1], own, keys, j * 8);
        bool edge = k0 + F::OTHERS > p.tk || (p.causal && k0 + F::OTHERS > q0);
        float most[2] = {largest[0], largest[1]};
#pragma unroll
        for (int j = 0; j < F::OTHERS / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                s[j][e] *= scale;
                if (edge && !visible(p, q0 + row + e / 2 * 8, k0 + j * 8 + pair + e % 2)) s[j][e] = -INFINITY;
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
        for (int j = 0; j < F::OTHERS / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[j][e] = exp2f(s[j][e] - most[e / 2]), total[e / 2] += s[j][e];
#pragma unroll
        for (int c = 0; c < F::CHUNKS; c++)
#pragma unroll
            for (int e = 0; e < 4; e++) result[c][e] *= keep[e / 2];
#pragma unroll
        for (int j = 0; j < F::OTHERS / 8; j += 2) F::gather(result, s[j], s[j + 1], values, j * 8);
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
        if (lse && pair == 0) lse[query_at(p, query)] = (largest[h] + log2f(total[h])) / LOG2_E;
    }
}

// Backward: the same walk, twice. Once a warp owns 16 queries, X = Q and Y = dout, and the others are X' = K
// and Y' = V; once it owns 16 keys, X = K and Y = V, and the others are X' = Q and Y' = dout. In both
//   S = X X'^T, dP = Y Y'^T, turned or not;  dX += scale dS X';  and where keys are owned  dY += P Y'
// So there are 7 products, where atomics would allow 5, and every sum has one order. No largest score is
// needed, P follows from the stored log-sum-exp; so 16 of the others are finished before the next 16 begin,
// and the tile of scores is small. What is large are the fragments: X, Y, dX and dY of 160 channels would
// take 240 registers, so there dX and dY are gathered by two launches.

// Two blocks a multiprocessor for heads of 64: the compiler would have three for sm_100, and spill.
template <class T, int D, bool KEYS, bool DX, bool DY>
static __global__ void __launch_bounds__(Flash<T, D>::THREADS, D == 64 && KEYS ? 2 : 0)
    attention_tensor_backward(T *dx, T *dy, const float2 *of, const T *q, const T *k, const T *v,
                              const T *dout, Attention p) {
    typedef Flash<T, D> F;
    extern __shared__ __align__(128) unsigned char dynamic_shared[];
    T *tiles = (T *)dynamic_shared; // of a stage: X', Y', the float2 of queries
    const T *other_x = KEYS ? q : k, *other_y = KEYS ? dout : v;
    int lane = threadIdx.x % 32, row = lane / 4, pair = lane % 4 * 2;
    int length = KEYS ? p.tk : p.tq, others = KEYS ? p.tq : p.tk;
    int block0 = blockIdx.x * F::OWN,
        own0 = block0 + threadIdx.x / 32 * 16; // this block's first, this warp's
    int begin = p.causal && KEYS ? block0 : 0; // the first query that sees these keys
    int end = p.causal && !KEYS && block0 + F::OWN < p.tk ? block0 + F::OWN : others;
    auto fetch = [&](int t0, int stage) {
        T *to = tiles + stage * F::STAGE;
        F::fetch(to, other_x, others, t0, p);
        F::fetch(to + F::TILE, other_y, others, t0, p);
        if (KEYS && threadIdx.x < F::OTHERS / 2) { // those of two queries; zeros beyond the last
            int t = t0 + 2 * threadIdx.x, bytes = t < p.tq ? 16 : 0;
            cp_async16(to + 2 * F::TILE + 8 * threadIdx.x, of + (bytes ? row_of(p, t) : 0), bytes);
        }
        cp_async_commit();
    };
    if (begin < end) fetch(begin, 0);
    uint32_t x[F::STEPS][4], y[F::STEPS][4];
    F::own(x, KEYS ? k : q, length, own0, p);
    if (DX) F::own(y, KEYS ? v : dout, length, own0, p);
    float2 mine[2] = {}; // of queries `row` and row + 8
    for (int h = 0; h < 2; h++)
        if (!KEYS && own0 + row + h * 8 < p.tq) mine[h] = of[row_of(p, own0 + row + h * 8)];
    float scale = p.scale * LOG2_E, sum_x[F::CHUNKS][4] = {}, sum_y[F::CHUNKS][4] = {};

    for (int t0 = begin, stage = 0; t0 < end; t0 += F::OTHERS, stage ^= 1) {
        cp_async_wait<0>(); // this thread's copies have landed
        __syncthreads();    // everyone's have; and all are done with the other stage
        if (t0 + F::OTHERS < end) fetch(t0 + F::OTHERS, stage ^ 1);
        const T *tile_x = tiles + stage * F::STAGE, *tile_y = tile_x + F::TILE;
        const float2 *theirs = (const float2 *)(tile_y + F::TILE);
        bool edge =
            KEYS ? p.causal && own0 + 16 > t0 : t0 + F::OTHERS > p.tk || (p.causal && t0 + F::OTHERS > own0);
#pragma unroll 1
        for (int r = 0; r < F::OTHERS && t0 + r < end; r += 16) {
            float s[2][4] = {}, ds[2][4] = {};
            F::dots(s[0], s[1], x, tile_x, r);
            if (DX) F::dots(ds[0], ds[1], y, tile_y, r);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float4 two = KEYS ? *(const float4 *)(theirs + r + j * 8 + pair) : make_float4(0, 0, 0, 0);
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int own = own0 + row + e / 2 * 8, other = t0 + r + j * 8 + pair + e % 2;
                    float2 of_query = !KEYS   ? mine[e / 2]
                                      : e % 2 ? make_float2(two.z, two.w)
                                              : make_float2(two.x, two.y);
                    s[j][e] = exp2f(s[j][e] * scale - of_query.x);
                    if (edge && !visible(p, KEYS ? other : own, KEYS ? own : other)) s[j][e] = 0;
                    if (DX) ds[j][e] = s[j][e] * (ds[j][e] - of_query.y);
                }
            }
            if (DY) F::gather(sum_y, s[0], s[1], tile_y, r);
            if (DX) F::gather(sum_x, ds[0], ds[1], tile_x, r);
        }
    }
    auto add = [&](T *to, const float(&sum)[F::CHUNKS][4], float factor) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int own = own0 + row + h * 8;
            if (!to || own >= length) continue;
            uint32_t *at = (uint32_t *)(to + row_at(p, length, own) + pair);
#pragma unroll
            for (int c = 0; c < F::CHUNKS; c++) {
                float2 old = two_floats(at[c * 4], T());
                at[c * 4] =
                    two_rounded(old.x + sum[c][2 * h] * factor, old.y + sum[c][2 * h + 1] * factor, T());
            }
        }
    };
    if (DX) add(dx, sum_x, p.scale);
    if (DY) add(dy, sum_y, 1);
}

template <class T, int D> static void run_tensor(Mem o, float *lse, Mem q, Mem k, Mem v, Attention p) {
    typedef Flash<T, D> F;
    dim3 grid(ceil_div(p.tq, F::OWN), p.heads, p.n);
    auto kernel = attention_tensor<T, D>;
    kernel<<<grid, F::THREADS, F::BYTES, stream>>>((T *)o.at, lse, (const T *)q.at, (const T *)k.at,
                                                   (const T *)v.at, p);
    check_launch("attention_tensor", grid, F::THREADS);
}
template <class T, int D, bool KEYS, bool DX, bool DY>
static void run_tensor_backward(Mem dx, Mem dy, const float2 *of, Mem q, Mem k, Mem v, Mem dout,
                                Attention p) {
    typedef Flash<T, D> F;
    if (!(DX && dx.at) && !(DY && dy.at)) return;
    dim3 grid(ceil_div(KEYS ? p.tk : p.tq, F::OWN), p.heads, p.n);
    auto kernel = attention_tensor_backward<T, D, KEYS, DX, DY>;
    kernel<<<grid, F::THREADS, F::BYTES, stream>>>((T *)dx.at, (T *)dy.at, of, (const T *)q.at,
                                                   (const T *)k.at, (const T *)v.at, (const T *)dout.at, p);
    check_launch("attention_tensor_backward", grid, F::THREADS);
}
// What is asked for: the forward where o is there, else the gradients.
struct Task {
    Mem o, q, k, v, dq, dk, dv, dout;
    float *lse;
    const float2 *of;
};
template <class T, int D> static void run_tensor(const Task &t, Attention p) {
    if (t.o.at) return run_tensor<T, D>(t.o, t.lse, t.q, t.k, t.v, p);
    run_tensor_backward<T, D, false, true, false>(t.dq, t.dq, t.of, t.q, t.k, t.v, t.dout, p);
    if constexpr (D <= 80)
        run_tensor_backward<T, D, true, true, true>(t.dk, t.dv, t.of, t.q, t.k, t.v, t.dout, p);
    else {
        run_tensor_backward<T, D, true, true, false>(t.dk, t.dv, t.of, t.q, t.k, t.v, t.dout, p);
        run_tensor_backward<T, D, true, false, true>(t.dk, t.dv, t.of, t.q, t.k, t.v, t.dout, p);
    }
}
static void run_tensor(const Task &task, Attention p) {
    in_16_bits(task.q.type, [&](auto t) {
        typedef decltype(t) T;
        p.d == 40   ? run_tensor<T, 40>(task, p)
        : p.d == 64 ? run_tensor<T, 64>(task, p)
        : p.d == 80 ? run_tensor<T, 80>(task, p)
                    : run_tensor<T, 160>(task, p);
    });
}

// ---- heads of 512: two products --------------------------------------------------------------------------
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

// ---- by a given step -------------------------------------------------------------------------------------

bool attention_tensor_fits(const Mem *operands, int count, Attention p) {
    Type type = operands[0].type;
    bool fits = (type == F16 || type == BF16) && (p.d == 40 || p.d == 64 || p.d == 80 || p.d == 160) && p.tk;
    for (int i = 0; i < count; i++)
        fits = fits && (!operands[i].at || (operands[i].type == type && (uintptr_t)operands[i].at % 16 == 0));
    return fits;
}

void attention_forward(AttentionStep step, Mem o, float *lse, Mem q, Mem k, Mem v, Attention p) {
    Side so = {o, p.tq}, sq = {q, p.tq}, sk = {k, p.tk}, sv = {v, p.tk};
    if (step == ATTENTION_NAIVE) return naive_forward(so, lse, sq, sk, sv, p);
    if (step == ATTENTION_TENSOR) return run_tensor(Task{o, q, k, v, {}, {}, {}, {}, lse, NULL}, p);
    dim3 grid(ceil_div(p.tq, ROWS), p.heads, p.n);
    int bytes = result_bytes(p);
    check_cuda(cudaFuncSetAttribute(attention, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
               "asking for shared memory");
    attention<<<grid, 256, bytes, stream>>>(o, lse, sq, sk, sv, p);
    check_launch("attention", grid, 256);
}

// What a backward needs to know of each query: see row_of(). x = unit lse_i, y = dout_i . o_i; a warp a
// query.
static __global__ void attention_rows(float2 *of, const float *lse, float unit, Side dout, Side o,
                                      Attention p) {
    int i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= even(p.tq)) return; // the whole warp
    float sum = 0;
    if (i < p.tq)
        for (size_t at = row_at(p, p.tq, i) + lane, end = at - lane + p.d; at < end; at += 32)
            sum += load(dout.x, at) * load(o.x, at);
    sum = warp_sum(sum);
    if (lane == 0) of[row_of(p, i)] = make_float2(i < p.tq ? unit * lse[query_at(p, i)] : 0, sum);
}

void attention_gradients(AttentionStep step, Mem dq, Mem dk, Mem dv, Mem dout, Mem q, Mem k, Mem v, Mem o,
                         const float *lse, Attention p) {
    Side sq = {q, p.tq}, sk = {k, p.tk}, sv = {v, p.tk}, sd = {dout, p.tq};
    Scratch scratch;
    float2 *of = (float2 *)scratch.floats((size_t)2 * p.n * p.heads * even(p.tq));
    dim3 grid(ceil_div(even(p.tq), 8), p.heads, p.n);
    float unit = step == ATTENTION_TENSOR ? LOG2_E : 1;
    attention_rows<<<grid, 256, 0, stream>>>(of, lse, unit, sd, Side{o, p.tq}, p);
    check_launch("attention_rows", grid, 256);
    if (step == ATTENTION_TENSOR) return run_tensor(Task{{}, q, k, v, dq, dk, dv, dout, NULL, of}, p);
    if (step == ATTENTION_NAIVE)
        return naive_backward(Side{dq, p.tq}, Side{dk, p.tk}, Side{dv, p.tk}, sd, sq, sk, sv, of, p);
    run_backward<DQ>(dq, of, sq, sk, sv, sd, p);
    run_backward<DK>(dk, of, sq, sk, sv, sd, p);
    run_backward<DV>(dv, of, sq, sk, sv, sd, p);
}

// ---- the choice ------------------------------------------------------------------------------------------

static AttentionStep choose(const Mem *operands, int count, Attention p) {
    static const char *const names[] = {"naive", "blocked", "tensor"};
    static const int wanted = step_named("SD_ATTENTION", names, 3);
    if (wanted == ATTENTION_NAIVE || wanted == ATTENTION_BLOCKED) return (AttentionStep)wanted;
    return attention_tensor_fits(operands, count, p) ? ATTENTION_TENSOR : ATTENTION_BLOCKED;
}

// Heads of a size that was not compiled, filled up with zeros to the next that was, as the tensor cores take
// them. x is q, k, v, o and, for a backward, dout, dq, dk, dv; what is written is given back by cut().
struct FilledUp {
    Scratch scratch;
    Attention p;
    Mem x[8];
    AttentionStep step;
    FilledUp(const Mem *operands, int count, Attention narrow) : p(narrow) {
        p.d = p.d <= 40 ? 40 : p.d <= 64 ? 64 : p.d <= 80 ? 80 : p.d <= 160 ? 160 : p.d;
        for (int i = 0; i < count; i++) {
            x[i] = operands[i];
            if (operands[i].at && (operands[i].type != backend.storage || backend.storage == F32))
                p.d = narrow.d;
        }
        for (int i = 0; i < count && p.d > narrow.d; i++) {
            if (!x[i].at) continue;
            x[i].at = backend.temp((size_t)rows(i) * p.d * size_of(x[i].type));
            backend.fill(x[i], 0, (size_t)rows(i) * p.d);
            if (i == 3 && count == 4) continue; // the result
            backend.copy_columns(x[i], p.d, operands[i], narrow.d, rows(i), narrow.d, false);
        }
        step = choose(x, count, p);
    }
    int rows(int i) const { return p.n * p.heads * (i == 1 || i == 2 || i > 5 ? p.tk : p.tq); }
    void cut(const Mem *operands, int i, int d) const {
        if (p.d > d && x[i].at) backend.copy_columns(operands[i], d, x[i], p.d, rows(i), d, false);
    }
};
static void launch_attention(Mem o, float *lse, Mem q, Mem k, Mem v, Attention p) {
    if (!p.n || !p.heads || !p.tq) return;
    Mem operands[] = {q, k, v, o};
    FilledUp f(operands, 4, p);
    bool one_type = q.type == backend.storage && k.type == q.type && v.type == q.type && o.type == q.type;
    if (f.step == ATTENTION_BLOCKED && one_type && q.type != F32 && p.heads == 1 && p.d > 160 && p.tk &&
        !lse && !p.causal)
        return products_attention(o, q, k, v, p);
    count_operations(4.0 * p.n * p.heads * p.tq * p.tk * p.d, f.step == ATTENTION_TENSOR);
    attention_forward(f.step, f.x[3], lse, f.x[0], f.x[1], f.x[2], f.p);
    f.cut(operands, 3, p.d);
}
static void launch_attention_backward(Mem dq, Mem dk, Mem dv, Mem dout, Mem q, Mem k, Mem v, Mem o,
                                      const float *lse, Attention p) {
    if (!p.n || !p.heads || !p.tq || !p.tk) return;
    Mem operands[] = {q, k, v, o, dout, dq, dk, dv};
    FilledUp f(operands, 8, p);
    count_operations(10.0 * p.n * p.heads * p.tq * p.tk * p.d, f.step == ATTENTION_TENSOR);
    attention_gradients(f.step, f.x[5], f.x[6], f.x[7], f.x[4], f.x[0], f.x[1], f.x[2], f.x[3], lse, f.p);
    for (int i = 5; i < 8; i++) f.cut(operands, i, p.d);
}

void attention_kernels(Backend &b) {
    b.attention = launch_attention;
    b.attention_backward = launch_attention_backward;
}
