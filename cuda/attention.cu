// attention.cu: attention and its gradients, without ever storing the matrix of scores (Dao et al. 2022).
//
// A block owns 32 rows (queries, or keys in two of the gradients) of one head of one picture and walks over
// the other side 32 rows at a time. A thread owns 4 of the 32 x 32 scores of such a tile: row tid / 8,
// columns tid % 8 + 8 i. So a row of scores belongs to 8 neighbouring lanes, which find its largest and its
// sum by shuffles. Rows are read in pieces of 64 elements, so any head size fits.
#include "device.h"

enum { T = 32, PIECE = 64 };

struct Side { // rows of q, k, v or o: (n, length, heads * d)
    Mem x;
    int length;
};
// Element 0 of row t of the block's head and picture.
__device__ __forceinline__ size_t row_at(Attention p, int length, int t) {
    return (((size_t)blockIdx.z * length + t) * p.heads + blockIdx.y) * p.d;
}

struct Buffers {
    float x[T][PIECE + 1], y[T][PIECE + 1]; // pieces of rows; + 1: a column lies in 32 banks
    float s[T][T + 1];                      // weights of a tile, made of its scores
};

// Copies elements e0 .. e0 + 63 of 32 rows from t0 on; zero where there are none.
__device__ __forceinline__ void load_piece(float (&to)[T][PIECE + 1], Side side, int t0, int e0,
                                           Attention p) {
    for (int at = threadIdx.x; at < T * PIECE; at += blockDim.x) {
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
            for (int c = 0; c < T; c++) sum += b.s[row][c] * b.y[c][e];
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
    int q0 = blockIdx.x * T, query = q0 + row;
    for (int e = col; e < p.d; e += 8) result[row * stride + e] = 0;
    float largest = -INFINITY, total = 0;
    int end = p.causal && q0 + T < p.tk ? q0 + T : p.tk;
    for (int k0 = 0; k0 < end; k0 += T) {
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
    int bytes = T * result_stride(p.d) * (int)sizeof(float);
    if (p.d > 512) die("CUDA: attention heads of %d channels; at most 512 fit into shared memory", p.d);
    return bytes;
}

static void launch_attention(Mem o, float *lse, Mem q, Mem k, Mem v, Attention p) {
    if (!p.n || !p.heads || !p.tq) return;
    dim3 grid(ceil_div(p.tq, T), p.heads, p.n);
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
    int own0 = blockIdx.x * T;
    size_t head = ((size_t)blockIdx.z * p.heads + blockIdx.y) * p.tq; // of lse and inner
    for (int e = col; e < p.d; e += 8) result[row * stride + e] = 0;
    int begin = p.causal && G != DQ ? own0 : 0; // the first query that sees these keys
    int end = p.causal && G == DQ && own0 + T < p.tk ? own0 + T : other.length;
    for (int other0 = begin; other0 < end; other0 += T) {
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
    dim3 grid(ceil_div(G == DQ ? p.tq : p.tk, T), p.heads, p.n);
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
    run_backward<DQ>(dq, lse, inner, sq, sk, sv, sd, p);
    run_backward<DK>(dk, lse, inner, sq, sk, sv, sd, p);
    run_backward<DV>(dv, lse, inner, sq, sk, sv, sd, p);
}

void attention_kernels(Backend &b) {
    b.attention = launch_attention;
    b.attention_backward = launch_attention_backward;
}
