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

// What becomes of a sum: C = alpha sum [+ bias] [+ residual] [+ C].
struct Epilogue {
    Mem c, bias, residual; // (m, n), (n), (m, n)
    int n;
    float alpha;
    bool add;
    bool wide;   // n and the addresses allow four() to read and write four numbers at once
    float *part; // (splits, m, n) where k is split, else NULL
    int m;
    // What is fused: a residual of one row for every `rows` of them; geglu of [value | gate], 16 columns of
    // each in turn; a second and a third matrix, `each` columns of C to each of the three.
    int rows, each;
    bool gate;
    Mem more[2];
    Epilogue(Mem c, Mem bias, Mem residual, int n, float alpha, bool add)
        : c(c), bias(bias), residual(residual), n(n), alpha(alpha), add(add),
          wide(n % 4 == 0 && fours(c) && fours(bias) && fours(residual)), part(NULL), m(0), rows(0), each(0),
          gate(false), more() {}
    __device__ __forceinline__ void operator()(int i, int j, float sum) const {
        if (part) {
            part[((size_t)blockIdx.z * m + i) * n + j] = sum;
            return;
        }
        size_t at = (size_t)i * n + j;
        sum *= alpha;
        if (bias.at) sum += load(bias, j);
        if (residual.at) sum += load(residual, rows ? (size_t)(i / rows) * n + j : at);
        if (add) sum += load(c, at);
        store(c, at, sum);
    }
    __device__ __forceinline__ void four(int i, int j, float4 s) const {
        if (part) {
            *(float4 *)&part[((size_t)blockIdx.z * m + i) * n + j] = s;
            return;
        }
        size_t at = (size_t)i * n + j;
        Mem to = c;
        if (each) to = j < each ? c : j < 2 * each ? more[0] : more[1], at = (size_t)i * each + j % each;
        s = make_float4(s.x * alpha, s.y * alpha, s.z * alpha, s.w * alpha);
        if (bias.at) s = sum_of(s, load4(bias, j));
        if (residual.at) s = sum_of(s, load4(residual, rows ? (size_t)(i / rows) * n + j : at));
        if (add) s = sum_of(s, load4(c, at));
        store4(to, at, s);
    }
    __device__ __forceinline__ void gated(int i, int j, float4 v, float4 g) const {
        int at = j / 32 * 16 + j % 16;
        if (bias.at) v = sum_of(v, load4(bias, at)), g = sum_of(g, load4(bias, n / 2 + at));
        v = make_float4(v.x * gelu(g.x), v.y * gelu(g.y), v.z * gelu(g.z), v.w * gelu(g.w));
        store4(c, (size_t)i * (n / 2) + at, v);
    }
};

// A product with few tiles and a long k would leave most of a GPU idle. Then k is split: each part's sums go
// to scratch memory, and finish_split() adds the parts in ascending order. How it is split depends on the
// shape alone, so the bits do too. There are as many parts as make up to `blocks` blocks of so many tiles,
// each part at least `least` along k.
int split_count(size_t tiles, size_t k, int blocks, int least);
void finish_split(Epilogue out, int splits);

// Four sums beside one another, of which some may lie outside of C (m, n).
__device__ __forceinline__ void put_four(const Epilogue &out, int i, int j, int m, int n, const float *sums) {
    if (i >= m || j >= n || (out.gate && j % 32 >= 16)) return;
    if (out.gate)
        out.gated(i, j, *(const float4 *)sums, *(const float4 *)(sums + 16));
    else if (out.wide)
        out.four(i, j, *(const float4 *)sums);
    else
#pragma unroll 1
        for (int e = 0; e < 4 && j + e < n; e++) out(i, j + e, sums[e]);
}

// C (m, n) = A (m, k) B (k, n), the sum over k from k_begin to k_end in ascending order. An operand tells how
// its elements are found, in parts: what costs a division is done once for a row, or once for a step along k,
// and not for each element. [C3]
//   A::ALONG_K           neighbours in memory are neighbours along k
//   a.across(i)          what is to be known of row i of A, or of column i of B
//   a.along(p)           what is to be known of position p of the sum; a.next(along, d) moves it by d
//   a.at(across, along)  the element
template <bool ALONG> struct Elements { // of a matrix
    static constexpr bool ALONG_K = ALONG;
    typedef size_t Across, Along;
    Mem x;
    size_t length; // of a row in memory
    __device__ __forceinline__ size_t across(int i) const { return ALONG ? i * length : i; }
    __device__ __forceinline__ size_t along(int p) const { return ALONG ? p : p * length; }
    __device__ __forceinline__ void next(size_t &at, int by) const { at += along(by); }
    __device__ __forceinline__ float at(size_t i, size_t p) const { return load(x, i + p); }
};

template <class A> struct Share { // what one thread loads of each tile of A or B: 4 elements
    static constexpr int ROWS = A::ALONG_K ? 4 : 1, STEPS = A::ALONG_K ? 1 : 4;
    typename A::Across across[ROWS];
    typename A::Along along[STEPS];
    bool inside[ROWS];
    __device__ __forceinline__ static int row(int r) { // in the tile; neighbours in memory go to neighbours
        return A::ALONG_K ? threadIdx.x / 16 + 16 * r : threadIdx.x % 64;
    }
    __device__ __forceinline__ static int step(int r) {
        return A::ALONG_K ? threadIdx.x % 16 : threadIdx.x / 64 + 4 * r;
    }
    __device__ __forceinline__ Share(const A &a, int first, int count, int k) {
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            inside[r] = first + row(r) < count, across[r] = a.across(first + row(r));
#pragma unroll
        for (int r = 0; r < STEPS; r++) along[r] = a.along(k + step(r));
    }
    __device__ __forceinline__ void load_next(const A &a, float (*tile)[TILE + 4], int left) {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            int i = ROWS == 4 ? r : 0, p = STEPS == 4 ? r : 0;
            tile[step(r)][row(r)] = inside[i] && step(r) < left ? a.at(across[i], along[p]) : 0;
        }
#pragma unroll
        for (int r = 0; r < STEPS; r++) a.next(along[r], TILE_K);
    }
};

template <class A, class B>
static __global__ void __launch_bounds__(TILE_THREADS, 2)
    tile_product(A a, B b, Epilogue out, int m, int n, int k, int k_part) {
    __shared__ Tiles t;
    int k_begin = blockIdx.z * k_part, k_end = k_begin + k_part < k ? k_begin + k_part : k;
    int tid = threadIdx.x, tx = tid % 16, ty = tid / 16;
    int row0 = blockIdx.x * TILE, col0 = blockIdx.y * TILE;
    float(*a_tile)[TILE + 4] = t.rows, (*b_tile)[TILE + 4] = t.rows + TILE_K; // [k][row], [k][column]
    float sum[4][4] = {};
    Share<A> a_share(a, row0, m, k_begin);
    Share<B> b_share(b, col0, n, k_begin);
    for (int k0 = k_begin; k0 < k_end; k0 += TILE_K) {
        a_share.load_next(a, a_tile, k_end - k0);
        b_share.load_next(b, b_tile, k_end - k0);
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
        for (int r = ty; r < 32; r += 16)
            put_four(out, row0 + half * 32 + r, col0 + tx * 4, m, n, &turn[r][tx * 4]);
        __syncthreads(); // all have read them: the other half may be written
    }
}

template <class A, class B> void launch_tiles(A a, B b, Epilogue out, int m, int n, int k) {
    dim3 grid(ceil_div(m, TILE), ceil_div(n, TILE));
    int splits = split_count((size_t)grid.x * grid.y, k, 256, 1024), k_part = (int)ceil_div(k, splits);
    grid.z = splits;
    Scratch scratch;
    if (splits > 1) out.part = scratch.floats((size_t)splits * m * n), out.m = m;
    tile_product<A, B><<<grid, TILE_THREADS, 0, stream>>>(a, b, out, m, n, k, k_part);
    check_launch("tile_product", grid, TILE_THREADS);
    count_operations(2.0 * m * n * k, false);
    if (splits > 1) finish_split(out, splits);
}

#endif
