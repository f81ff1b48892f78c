// tensor.h: the matrix product on tensor cores, the last step of the ladders in gemm.cu and conv.cu, as a
// function that is told where the chunks of A and B lie. gemm.cu gives it matrices; conv.cu gives it
// pictures.
//
// mma.sync multiplies 16 x 16 by 16 x 8 in one instruction of a warp: 2048 multiplications where tile.h
// has 32. To feed it, cp.async copies chunks of 16 bytes from global to shared memory without passing
// registers, and without waiting: while one tile is multiplied, the next two are on their way (STAGES).
// ldmatrix deals the elements of a tile out to the lanes in the order that mma.sync wants them.
//
// A block of 8 warps makes 128 x 128 of C, a warp 64 x 32 as 4 x 4 fragments of 16 x 8. A tile reaches 64
// bytes along k: 32 elements of 16 bits, or 16 of 32 bits (TF32), in both cases two steps of the mma.
//
// How a tile lies in shared memory. "Along k": a row of 64 bytes is 4 chunks of 16; chunk c of row r lies at
// place c ^ (r / 2 % 4). So the 8 rows that ldmatrix reads at once, and the 8 chunks that 8 threads write at
// once, each touch all 32 banks once. Otherwise: a row is 128 elements along m or n and a pad, which shifts
// each row by 4 banks (16 bits) or 8 banks (32 bits): rows read at once again miss one another. [C4]
//
// A fetcher F says where the chunks of an operand come from, an object that each thread has its own of:
//   F::ALONG_K                  neighbours in memory are neighbours along k
//   f.begin(table, first, k, k_end)  before the first tile: it begins at row (column) `first` and at k. All
//                               threads call it; `table` is shared memory of its own, f.table_bytes()
//   f.copy(tile)                starts the copies of one tile, and goes on to the next along k
// What needs a division belongs into begin(). What lies outside is filled with zeros by the copy itself.
#ifndef TENSOR_H
#define TENSOR_H
#include "tile.h"

template <class T> struct TensorTile {
    static constexpr int M = 128, N = 128, K = 64 / (int)sizeof(T), STAGES = 3, CHUNK = 16 / (int)sizeof(T);
    static constexpr int LONG = 128 + 8; // a row along m or n, with its pad
    template <bool ALONG_K> static constexpr int SIZE = ALONG_K ? 128 * K : K *LONG; // elements
    // A row of the epilogue; the pad keeps 4 rows of float2 in different banks.
    static constexpr int TURN = 32 + 8;
    // Chunks of a tile: `ACROSS` in a row. A thread copies two, these.
    template <bool ALONG_K> static constexpr int IN_ROW = ALONG_K ? K / CHUNK : 128 / CHUNK;
    template <bool ALONG_K> __device__ __forceinline__ static int row(int i) {
        return ((int)threadIdx.x + i * 256) / IN_ROW<ALONG_K>;
    }
    template <bool ALONG_K> __device__ __forceinline__ static int chunk() { // the same for both
        return (int)threadIdx.x % IN_ROW<ALONG_K>;
    }
    // Where element 0 of chunk c of row r lies.
    template <bool ALONG_K> __device__ __forceinline__ static int at(int r, int c) {
        return ALONG_K ? r * K + (c ^ (r >> 1 & 3)) * CHUNK : r * LONG + c * CHUNK;
    }
};

// A matrix: element (i, p) at i * k + p where ALONG_K, else at p * across + i.
template <class T, bool ALONG> struct MatrixChunks {
    static constexpr bool ALONG_K = ALONG;
    typedef TensorTile<T> S;
    const T *x;
    int across, k;     // the whole matrix
    int first, p, end; // of this block's part: its row or column, where its next tile begins, its end
    static int table_bytes() { return 0; }
    __device__ __forceinline__ void begin(void *, int first_, int k_begin, int k_end) {
        first = first_, p = k_begin, end = k_end;
    }
    __device__ __forceinline__ void copy(T *tile) {
        int c = S::template chunk<ALONG>();
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int r = S::template row<ALONG>(i), q = first + (ALONG ? r : c * S::CHUNK);
            int at = p + (ALONG ? c * S::CHUNK : r);
            bool inside = at < end && q < across;
            size_t offset = ALONG ? (size_t)q * k + at : (size_t)at * across + q;
            cp_async16(&tile[S::template at<ALONG>(r, c)], inside ? x + offset : x, inside ? 16 : 0);
        }
        p += S::K;
    }
};

// Rows of up to three matrices (., k) as one, `unit` of each in turn: row i is row i / (unit count) unit + i
// % unit of matrix i / unit % count.
template <class T> struct RowsInTurn {
    static constexpr bool ALONG_K = true;
    typedef TensorTile<T> S;
    const T *x[3];
    int unit, count, across, k, p, end;
    const T *row[2]; // of this thread's two chunks, or NULL
    static int table_bytes() { return 0; }
    __device__ __forceinline__ void begin(void *, int first, int k_begin, int k_end) {
        p = k_begin, end = k_end;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int q = first + S::template row<true>(i), which = q / unit % count;
            const T *from = which == 0 ? x[0] : which == 1 ? x[1] : x[2];
            row[i] = q < across ? from + ((size_t)(q / (unit * count)) * unit + q % unit) * k : NULL;
        }
    }
    __device__ __forceinline__ void copy(T *tile) {
        int c = S::template chunk<true>(), at = p + c * S::CHUNK;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            bool inside = row[i] && at < end;
            cp_async16(&tile[S::template at<true>(S::template row<true>(i), c)], inside ? row[i] + at : x[0],
                       inside ? 16 : 0);
        }
        p += S::K;
    }
};

// ---- fragments -------------------------------------------------------------------------------------------

__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                         __half) {
    mma_m16n8k16_f16(d, a, b);
}
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                         __nv_bfloat16) {
    mma_m16n8k16_bf16(d, a, b);
}
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                         float) {
    mma_m16n8k8_tf32(d, a, b);
}

// The fragment of A that begins at row `i` of the tile and at step s (0 or 1) along k.
template <class T, bool ALONG_K>
__device__ __forceinline__ void fragment_a(uint32_t (&a)[4], const T *tile, int i, int s) {
    int lane = threadIdx.x % 32;
    if constexpr (ALONG_K)
        ldmatrix_x4(a, &tile[TensorTile<T>::template at<true>(i + lane % 16, s * 2 + lane / 16)]);
    else if constexpr (sizeof(T) == 2)
        ldmatrix_x4_trans(
            a, &tile[(s * 16 + lane / 16 * 8 + lane % 8) * TensorTile<T>::LONG + i + lane / 8 % 2 * 8]);
    else { // ldmatrix transposes values of 16 bits only; so the layout of m16n8k8 is read value by value
#pragma unroll
        for (int e = 0; e < 4; e++)
            a[e] = __float_as_uint(
                tile[(s * 8 + lane % 4 + e / 2 * 4) * TensorTile<T>::LONG + i + lane / 4 + e % 2 * 8]);
    }
    if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int e = 0; e < 4; e++) a[e] = round_tf32(__uint_as_float(a[e]));
    }
}
// Two fragments of B side by side, from column j of the tile on.
template <class T, bool ALONG_K>
__device__ __forceinline__ void fragments_b(uint32_t (&b)[2][2], const T *tile, int j, int s) {
    int lane = threadIdx.x % 32;
    uint32_t r[4];
    if constexpr (ALONG_K)
        ldmatrix_x4(
            r, &tile[TensorTile<T>::template at<true>(j + lane / 16 * 8 + lane % 8, s * 2 + lane / 8 % 2)]);
    else if constexpr (sizeof(T) == 2)
        ldmatrix_x4_trans(r, &tile[(s * 16 + lane % 16) * TensorTile<T>::LONG + j + lane / 16 * 8]);
    else {
#pragma unroll
        for (int e = 0; e < 4; e++)
            r[e] = __float_as_uint(
                tile[(s * 8 + lane % 4 + e % 2 * 4) * TensorTile<T>::LONG + j + lane / 4 + e / 2 * 8]);
    }
#pragma unroll
    for (int e = 0; e < 4; e++) b[e / 2][e % 2] = sizeof(T) == 4 ? round_tf32(__uint_as_float(r[e])) : r[e];
}

// ---- the product -----------------------------------------------------------------------------------------

// C (m, n) = A (m, k) B (k, n); a block makes one tile of it, in one of the parts of the sum over k.
template <class T, class A, class B>
static __global__ void __launch_bounds__(256)
    tensor_product(A a, B b, Epilogue out, int m, int n, int k, int k_part) {
    typedef TensorTile<T> S;
    constexpr int A_SIZE = S::template SIZE<A::ALONG_K>, B_SIZE = S::template SIZE<B::ALONG_K>;
    extern __shared__ __align__(128) unsigned char dynamic_shared[];
    T *a_tiles = (T *)dynamic_shared, *b_tiles = a_tiles + S::STAGES * A_SIZE;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int warp_row = warp / 4 * 64, warp_col = warp % 4 * 32;
    int row0 = blockIdx.x * S::M, col0 = blockIdx.y * S::N;
    int k_begin = blockIdx.z * k_part, k_end = k_begin + k_part < k ? k_begin + k_part : k;
    int steps = (k_end - k_begin + S::K - 1) / S::K;
    float sum[4][4][4] = {};
    void *table = b_tiles + S::STAGES * B_SIZE; // none has more than one
    a.begin(table, row0, k_begin, k_end), b.begin(table, col0, k_begin, k_end);

    int ahead = 0;               // the step whose tiles are fetched next [C6]
    auto fetch = [&](int into) { // its tiles, if there is one; a group of copies in any case
        if (ahead++ < steps) a.copy(a_tiles + into * A_SIZE), b.copy(b_tiles + into * B_SIZE);
        cp_async_commit();
    };
    for (int s = 0; s < S::STAGES - 1; s++) fetch(s);
    for (int step = 0, stage = 0; step < steps; step++) {
        cp_async_wait<S::STAGES - 2>(); // this thread's copies for this step have landed
        __syncthreads();                // everyone's have; and all are done with the tiles of the step before
        fetch(stage == 0 ? S::STAGES - 1 : stage - 1); // into those
        const T *a_tile = a_tiles + stage * A_SIZE, *b_tile = b_tiles + stage * B_SIZE;
#pragma unroll
        for (int s = 0; s < 2; s++) {
            uint32_t fa[4][4], fb[4][2];
#pragma unroll
            for (int i = 0; i < 4; i++) fragment_a<T, A::ALONG_K>(fa[i], a_tile, warp_row + i * 16, s);
#pragma unroll
            for (int j = 0; j < 4; j += 2) {
                uint32_t two[2][2];
                fragments_b<T, B::ALONG_K>(two, b_tile, warp_col + j * 8, s);
                fb[j][0] = two[0][0], fb[j][1] = two[0][1], fb[j + 1][0] = two[1][0],
                fb[j + 1][1] = two[1][1];
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) multiply(sum[i][j], fa[i], fb[j], T());
        }
        stage = stage == S::STAGES - 1 ? 0 : stage + 1;
    }
    // The epilogue. Register e of a fragment of C is row lane / 4 (8 more for e = 2, 3) and column 2 (lane %
    // 4) (one more for e = 1, 3). Written like that, a warp would touch 8 rows in pieces of 32 bytes. So each
    // warp turns 16 x 32 elements at a time through shared memory and writes 4 rows at once, a lane 4
    // columns. [C7]
    __syncthreads(); // everyone is done with the tiles
    float(*turn)[S::TURN] = (float(*)[S::TURN])dynamic_shared + warp * 16;
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int e = 0; e < 4; e += 2)
                *(float2 *)&turn[lane / 4 + e / 2 * 8][j * 8 + lane % 4 * 2] =
                    make_float2(sum[i][j][e], sum[i][j][e + 1]);
        __syncwarp(); // the rows are there
#pragma unroll 1
        for (int r = lane / 8; r < 16; r += 4) {
            int c = lane % 8 * 4;
            put_four(out, row0 + warp_row + i * 16 + r, col0 + warp_col + c, m, n, &turn[r][c]);
        }
        __syncwarp(); // all have read: the next 16 rows may be written
    }
}

// ---- launching it ----------------------------------------------------------------------------------------

template <class T, class A, class B> void launch_tensor(A a, B b, Epilogue out, int m, int n, int k) {
    typedef TensorTile<T> S;
    dim3 grid(ceil_div(m, S::M), ceil_div(n, S::N));
    size_t tiles = (size_t)grid.x * grid.y;
    // Every part is written and read again, in fp32. So a multiprocessor gets one block; two, where those
    // were fewer than three parts and k is long.
    int splits = split_count(tiles, k, 128, 512);
    if (splits == 1) splits = split_count(tiles, k, 256, 1024);
    if (out.gate) splits = 1;
    int k_part = (int)ceil_div(ceil_div(k, splits), S::K) * S::K;
    if (k) splits = (int)ceil_div(k, k_part);
    int sizes = S::template SIZE<A::ALONG_K> + S::template SIZE<B::ALONG_K>;
    int bytes = S::STAGES * sizes * (int)sizeof(T) + a.table_bytes() + b.table_bytes();
    grid.z = splits;
    auto kernel = tensor_product<T, A, B>;
    static int allowed; // bytes
    if (bytes > allowed) {
        cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
        check_cuda(cudaFuncSetAttribute(kernel, most, bytes), "asking for shared memory");
        allowed = bytes;
    }
    Scratch scratch;
    if (splits > 1) out.part = scratch.floats((size_t)splits * m * n), out.m = m;
    kernel<<<grid, 256, bytes, stream>>>(a, b, out, m, n, k, k_part);
    check_launch("tensor_product", grid, 256);
    count_operations(2.0 * m * n * k, true);
    if (splits > 1) finish_split(out, splits);
}

#endif
