// tile.h: the register-blocked matrix product, the third step of the ladder in gemm.cu, as a function that is
// told where the elements of A and B come from. gemm.cu gives it matrices; conv.cu gives it pictures, of
// which a convolution is a product too, so that both share one text.
#ifndef TILE_H
#define TILE_H
#include "device.h"

// A block of 16 x 16 threads makes a tile of 64 x 64 of C; each thread 4 x 4 of it, in registers. For each
// element of k, a thread reads 4 + 4 elements and does 16 multiplications: half a read each, instead of two.
enum { TILE = 64, TILE_K = 16, TILE_THREADS = 256 };
struct Tiles {
    // Rows of 68 floats: a multiple of 4, for float4, and not of 32, to spread writes over banks.
    __align__(16) float rows[2 * TILE_K][TILE + 4];
};

// C (m, n) = A (m, k) B (k, n), the sum over k from k_begin to k_end in ascending order.
//   a(i, p), b(p, j)  give a number; a.along_k, b.along_k: neighbours in memory are neighbours along k
//   out(i, j, sum)    takes one
template <class A, class B, class Out>
__device__ __forceinline__ void tile_product(Tiles &t, A a, B b, Out out, int m, int n, int k_begin,
                                             int k_end) {
    int tid = threadIdx.x, tx = tid % 16, ty = tid / 16;
    int row0 = blockIdx.x * TILE, col0 = blockIdx.y * TILE;
    float(*a_tile)[TILE + 4] = t.rows, (*b_tile)[TILE + 4] = t.rows + TILE_K; // [k][row], [k][column]
    float sum[4][4] = {};
    for (int k0 = k_begin; k0 < k_end; k0 += TILE_K) {
        // 4 elements of each tile a thread; neighbours in memory to neighbouring threads
#pragma unroll
        for (int r = 0; r < 4; r++) {
            int p = a.along_k ? tid % 16 : tid / 64 + 4 * r, i = a.along_k ? tid / 16 + 16 * r : tid % 64;
            a_tile[p][i] = row0 + i < m && k0 + p < k_end ? a(row0 + i, k0 + p) : 0;
            int q = b.along_k ? tid % 16 : tid / 64 + 4 * r, j = b.along_k ? tid / 16 + 16 * r : tid % 64;
            b_tile[q][j] = col0 + j < n && k0 + q < k_end ? b(k0 + q, col0 + j) : 0;
        }
        __syncthreads(); // the tiles are there
        // 16 products are added up by themselves, and then to the rest: a sum of k terms in two stages is
        // rounded about 16 times less than one that grows term by term, for one more addition in 17.
        float part[4][4] = {};
#pragma unroll
        for (int p = 0; p < TILE_K; p++) {
            float4 x = *(const float4 *)&a_tile[p][ty * 4], y = *(const float4 *)&b_tile[p][tx * 4];
            float xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) part[i][j] += xs[i] * ys[j];
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) sum[i][j] += part[i][j];
        __syncthreads(); // all have read them: the next round may write
    }
    // The results go through shared memory, 32 rows at a time, so that a warp writes whole rows, not 4
    // columns a thread. The tiles are free: the loop ended with a barrier.
    float(*turn)[TILE + 4] = t.rows;
    for (int half = 0; half < 2; half++) {
        if (ty / 8 == half)
#pragma unroll
            for (int i = 0; i < 4; i++)
                *(float4 *)&turn[ty % 8 * 4 + i][tx * 4] =
                    make_float4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
        __syncthreads(); // the rows are there
#pragma unroll 1
        for (int r = tid / 64; r < 32; r += 4) {
            int row = row0 + half * 32 + r, col = col0 + tid % 64;
            if (row < m && col < n) out(row, col, turn[r][tid % 64]);
        }
        __syncthreads(); // all have read them: the other half may be written
    }
}

// What becomes of a sum: C = alpha sum [+ bias] [+ residual] [+ C].
struct Epilogue {
    Mem c, bias, residual; // (m, n), (n), (m, n)
    int n;
    float alpha;
    bool add;
    __device__ __forceinline__ void operator()(int i, int j, float sum) const {
        size_t at = (size_t)i * n + j;
        sum *= alpha;
        if (bias.at) sum += load(bias, j);
        if (residual.at) sum += load(residual, at);
        if (add) sum += load(c, at);
        store(c, at, sum);
    }
};

// A product with few tiles and a long k (the gradient of a weight) would leave most of a GPU idle. Then k is
// split: each part's C goes to scratch memory, and finish_split() adds the parts in ascending order. How it
// is split depends on the shape alone, so the bits do too.
struct Part {
    float *part; // (splits, m, n)
    int m, n;
    __device__ __forceinline__ void operator()(int i, int j, float sum) const {
        part[((size_t)blockIdx.z * m + i) * n + j] = sum;
    }
};
int split_count(size_t m, size_t n, size_t k);
void finish_split(const float *part, int splits, size_t m, size_t n, Epilogue out);

#endif
