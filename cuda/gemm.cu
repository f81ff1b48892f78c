// gemm.cu: the matrix product, in four steps from the plainest kernel to the tensor cores.
//
//   1 naive     a thread computes one element of C, straight from global memory
//   2 tiled     a block shares tiles of A and B in shared memory
//   3 blocked   a thread computes 4 x 4 elements in registers (tile.h)
//   4 tensor    a warp computes 16 x 8 at once with mma.sync; tiles arrive by cp.async while it computes
//
// All compute the same thing. backend.gemm takes step 4 where A and B are both fp16 or both bf16, else step
// 3: step 4 would round fp32 operands to TF32 (10 bits of mantissa, an error of 1e-3), so there it is taken
// only on request. SD_GEMM=naive|tiled|blocked|tensor in the environment asks for a step.
#include "gemm.h"
#include "tile.h"

// An element of A or B, transposed or not: element (i, p) lies at i * row + p * col.
struct Matrix {
    Mem x;
    size_t row, col;
    bool along_k; // which index runs along memory, for tile.h
    __device__ __forceinline__ float operator()(int i, int p) const { return load(x, i * row + p * col); }
};
static Matrix matrix_a(Mem a, Gemm g) {
    return g.a_transposed ? Matrix{a, 1, (size_t)g.m, false} : Matrix{a, (size_t)g.k, 1, true};
}
static Matrix matrix_b(Mem b, Gemm g) {
    return g.b_transposed ? Matrix{b, 1, (size_t)g.k, true} : Matrix{b, (size_t)g.n, 1, false};
}

// ---- 1. naive --------------------------------------------------------------------------------------------
// The definition, a thread an element. For one multiplication it loads two elements, from global memory or,
// with luck, from the cache. Neighbouring threads read neighbouring columns of B, so at least those loads
// coalesce; the same element of A goes to all of them at once.

static __global__ void gemm_naive(Matrix a, Matrix b, Epilogue out, int m, int n, int k) {
    int j = blockIdx.y * blockDim.x + threadIdx.x, i = blockIdx.x * blockDim.y + threadIdx.y;
    if (i >= m || j >= n) return;
    float sum = 0;
    for (int p = 0; p < k; p++) sum += a(i, p) * b(p, j);
    out(i, j, sum);
}

// ---- 2. tiled --------------------------------------------------------------------------------------------
// What it fixes: step 1 loads each element of A n times and each of B m times. Here a block of 32 x 32
// threads first copies a tile of each to shared memory, then all its threads multiply from there: global
// memory is read 32 times less. What is left: two reads of shared memory for one multiplication, and shared
// memory delivers 32 elements a cycle where the arithmetic units could take 256.

enum { SMALL = 32 };
static __global__ void __launch_bounds__(SMALL *SMALL)
    gemm_tiled(Matrix a, Matrix b, Epilogue out, int m, int n, int k) {
    __shared__ float as[SMALL][SMALL + 1],
        bs[SMALL][SMALL + 1]; // + 1: a column's elements lie in different banks
    int tx = threadIdx.x, ty = threadIdx.y;
    int row0 = blockIdx.x * SMALL, col0 = blockIdx.y * SMALL;
    float sum = 0;
    for (int k0 = 0; k0 < k; k0 += SMALL) {
        // as[i][p], bs[p][j]; tx runs along memory
        int i = a.along_k ? ty : tx, pa = a.along_k ? tx : ty, pb = b.along_k ? tx : ty,
            j = b.along_k ? ty : tx;
        as[i][pa] = row0 + i < m && k0 + pa < k ? a(row0 + i, k0 + pa) : 0;
        bs[pb][j] = col0 + j < n && k0 + pb < k ? b(k0 + pb, col0 + j) : 0;
        __syncthreads(); // the tiles are there
        for (int p = 0; p < SMALL; p++) sum += as[ty][p] * bs[p][tx];
        __syncthreads(); // all have read them: the next round may write
    }
    if (row0 + ty < m && col0 + tx < n) out(row0 + ty, col0 + tx, sum);
}

// ---- 3. blocked ------------------------------------------------------------------------------------------
// What it fixes: a thread that owns 4 x 4 elements of C reads 8 elements for 16 multiplications (tile.h).
// What is left: the arithmetic units of an ordinary core do one multiplication a thread a cycle; loads wait
// for global memory between two barriers while nothing is computed; and elements pass through registers on
// their way to shared memory.

template <class Out>
static __global__ void __launch_bounds__(TILE_THREADS, 2)
    gemm_blocked(Matrix a, Matrix b, Out out, int m, int n, int k, int k_part) {
    __shared__ Tiles tiles;
    int begin = blockIdx.z * k_part, end = begin + k_part < k ? begin + k_part : k;
    tile_product(tiles, a, b, out, m, n, begin, end);
}

int split_count(size_t m, size_t n, size_t k) {
    size_t tiles = (size_t)ceil_div(m, TILE) * ceil_div(n, TILE), splits = k / 1024;
    if (splits > 256 / tiles) splits = 256 / tiles;
    return splits > 1 ? (int)splits : 1;
}
static __global__ void add_split(const float *part, int splits, size_t m, size_t n, Epilogue out) {
    EACH(i, m * n) {
        float sum = 0;
        for (int s = 0; s < splits; s++) sum += part[s * m * n + i];
        out((int)(i / n), (int)(i % n), sum);
    }
}
void finish_split(const float *part, int splits, size_t m, size_t n, Epilogue out) {
    add_split<<<blocks_for(m * n), THREADS, 0, stream>>>(part, splits, m, n, out);
    check_launch("add_split", blocks_for(m * n), THREADS);
}

static void run_blocked(Matrix a, Matrix b, Epilogue out, int m, int n, int k) {
    int splits = split_count(m, n, k), k_part = (int)ceil_div(k, splits);
    dim3 grid(ceil_div(m, TILE), ceil_div(n, TILE), splits);
    if (splits == 1) {
        gemm_blocked<Epilogue><<<grid, TILE_THREADS, 0, stream>>>(a, b, out, m, n, k, k);
        check_launch("gemm_blocked", grid, TILE_THREADS);
        return;
    }
    Scratch scratch;
    Part part = {scratch.floats((size_t)splits * m * n), m, n};
    gemm_blocked<Part><<<grid, TILE_THREADS, 0, stream>>>(a, b, part, m, n, k, k_part);
    check_launch("gemm_blocked", grid, TILE_THREADS);
    finish_split(part.part, splits, m, n, out);
}

// ---- 4. tensor cores -------------------------------------------------------------------------------------
// What it fixes: mma.sync multiplies 16 x 16 by 16 x 8 in one instruction of a warp, 2048 multiplications
// where step 3 had 32. To feed it, cp.async copies tiles from global to shared memory without passing
// registers, and without waiting: while one tile is multiplied, the next two are on their way (STAGES).
// ldmatrix deals the elements of a tile out to the lanes in the order that mma.sync wants them.
//
// A block of 8 warps makes 128 x 128 of C, a warp 64 x 32 as 4 x 4 fragments of 16 x 8. A tile reaches 64
// bytes along k: 32 elements of 16 bits, or 16 of 32 bits (TF32), in both cases two steps of the mma.
//
// How a tile lies in shared memory. "Along k": a row of 64 bytes is 4 chunks of 16; chunk c of row r lies at
// place c ^ (r / 2 % 4). So the 8 rows that ldmatrix reads at once, and the 8 chunks that 8 threads write at
// once, each touch all 32 banks once. Otherwise: a row is 128 elements along m or n and a pad, which shifts
// each row by 4 banks (16 bits) or 8 banks (32 bits): rows read at once again miss one another.

template <class T> struct Tensor {
    static constexpr int M = 128, N = 128, K = 64 / (int)sizeof(T), STAGES = 3, CHUNK = 16 / (int)sizeof(T);
    static constexpr int LONG = 128 + 8;                                // a row along m or n, with its pad
    static constexpr int A = (128 * K > K * LONG ? 128 * K : K * LONG); // elements of one tile, either way
    static constexpr int TURN =
        32 + 8; // a row of the epilogue; the pad keeps 4 rows of float2 in different banks
    static constexpr int SHARED = STAGES * 2 * A * (int)sizeof(T); // bytes
};

// Where element 0 of chunk c of row r of a tile lies.
template <class T, bool ALONG_K> __device__ __forceinline__ int tile_at(int r, int c) {
    return ALONG_K ? r * Tensor<T>::K + (c ^ (r >> 1 & 3)) * Tensor<T>::CHUNK
                   : r * Tensor<T>::LONG + c * Tensor<T>::CHUNK;
}

// Starts the copy of one tile: 512 chunks, two a thread. The operand has `across` rows or columns from
// `first` on, k elements along k; what lies outside becomes zero.
template <class T, bool ALONG_K>
__device__ __forceinline__ void fetch_tile(T *tile, const T *from, int first, int across, int k0, int k) {
    constexpr int CHUNKS = ALONG_K ? 4 : 128 / Tensor<T>::CHUNK; // a row
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int at = threadIdx.x + i * 256, r = at / CHUNKS, c = at % CHUNKS;
        int p = k0 + (ALONG_K ? c * Tensor<T>::CHUNK : r), q = first + (ALONG_K ? r : c * Tensor<T>::CHUNK);
        bool inside = p < k && q < across;
        size_t offset = ALONG_K ? (size_t)q * k + p : (size_t)p * across + q;
        cp_async16(&tile[tile_at<T, ALONG_K>(r, c)], inside ? from + offset : from, inside ? 16 : 0);
    }
}

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
        ldmatrix_x4(a, &tile[tile_at<T, true>(i + lane % 16, s * 2 + lane / 16)]);
    else if constexpr (sizeof(T) == 2)
        ldmatrix_x4_trans(
            a, &tile[(s * 16 + lane / 16 * 8 + lane % 8) * Tensor<T>::LONG + i + lane / 8 % 2 * 8]);
    else { // ldmatrix transposes values of 16 bits only; so the layout of m16n8k8 is read value by value
#pragma unroll
        for (int e = 0; e < 4; e++)
            a[e] = __float_as_uint(
                tile[(s * 8 + lane % 4 + e / 2 * 4) * Tensor<T>::LONG + i + lane / 4 + e % 2 * 8]);
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
        ldmatrix_x4(r, &tile[tile_at<T, true>(j + lane / 16 * 8 + lane % 8, s * 2 + lane / 8 % 2)]);
    else if constexpr (sizeof(T) == 2)
        ldmatrix_x4_trans(r, &tile[(s * 16 + lane % 16) * Tensor<T>::LONG + j + lane / 16 * 8]);
    else {
#pragma unroll
        for (int e = 0; e < 4; e++)
            r[e] = __float_as_uint(
                tile[(s * 8 + lane % 4 + e % 2 * 4) * Tensor<T>::LONG + j + lane / 4 + e / 2 * 8]);
    }
#pragma unroll
    for (int e = 0; e < 4; e++) b[e / 2][e % 2] = sizeof(T) == 4 ? round_tf32(__uint_as_float(r[e])) : r[e];
}

template <class T, bool A_ALONG_K, bool B_ALONG_K>
static __global__ void __launch_bounds__(256)
    gemm_tensor(const T *a, const T *b, Epilogue out, int m, int n, int k) {
    typedef Tensor<T> S;
    extern __shared__ __align__(128) unsigned char dynamic_shared[];
    T *a_tiles = (T *)dynamic_shared, *b_tiles = a_tiles + S::STAGES * S::A;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int warp_row = warp / 4 * 64, warp_col = warp % 4 * 32;
    int row0 = blockIdx.x * S::M, col0 = blockIdx.y * S::N;
    int steps = (k + S::K - 1) / S::K;
    float sum[4][4][4] = {};

    auto fetch = [&](int step) { // the tiles of a step, if there is one; a group of copies in any case
        if (step < steps) {
            fetch_tile<T, A_ALONG_K>(a_tiles + step % S::STAGES * S::A, a, row0, m, step * S::K, k);
            fetch_tile<T, B_ALONG_K>(b_tiles + step % S::STAGES * S::A, b, col0, n, step * S::K, k);
        }
        cp_async_commit();
    };
    for (int s = 0; s < S::STAGES - 1; s++) fetch(s);
    for (int step = 0; step < steps; step++) {
        cp_async_wait<S::STAGES - 2>(); // this thread's copies for this step have landed
        __syncthreads();                // everyone's have; and all are done with the tiles of the step before
        fetch(step + S::STAGES - 1);    // into those
        const T *a_tile = a_tiles + step % S::STAGES * S::A, *b_tile = b_tiles + step % S::STAGES * S::A;
#pragma unroll
        for (int s = 0; s < 2; s++) {
            uint32_t fa[4][4], fb[4][2];
#pragma unroll
            for (int i = 0; i < 4; i++) fragment_a<T, A_ALONG_K>(fa[i], a_tile, warp_row + i * 16, s);
#pragma unroll
            for (int j = 0; j < 4; j += 2) {
                uint32_t two[2][2];
                fragments_b<T, B_ALONG_K>(two, b_tile, warp_col + j * 8, s);
                fb[j][0] = two[0][0], fb[j][1] = two[0][1], fb[j + 1][0] = two[1][0],
                fb[j + 1][1] = two[1][1];
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) multiply(sum[i][j], fa[i], fb[j], T());
        }
    }
    // The epilogue. Register e of a fragment of C is row lane / 4 (8 more for e = 2, 3) and column 2 (lane %
    // 4) (one more for e = 1, 3). Written like that, a warp would touch 8 rows in pieces of 32 bytes. So each
    // warp turns 16 x 32 elements at a time through shared memory and writes whole rows, a lane a column.
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
        for (int r = 0; r < 16; r++) {
            int row = row0 + warp_row + i * 16 + r, col = col0 + warp_col + lane;
            if (row < m && col < n) out(row, col, turn[r][lane]);
        }
        __syncwarp(); // all have read: the next 16 rows may be written
    }
}

template <class T, bool A_ALONG_K, bool B_ALONG_K>
static void launch_tensor(Mem a, Mem b, Epilogue out, Gemm g) {
    dim3 grid(ceil_div(g.m, Tensor<T>::M), ceil_div(g.n, Tensor<T>::N));
    int bytes = Tensor<T>::SHARED;
    auto kernel = gemm_tensor<T, A_ALONG_K, B_ALONG_K>;
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
               "asking for shared memory");
    kernel<<<grid, 256, bytes, stream>>>((const T *)a.at, (const T *)b.at, out, g.m, g.n, g.k);
    check_launch("gemm_tensor", grid, 256);
}
template <class T> static void run_tensor(Mem a, Mem b, Epilogue out, Gemm g) {
    if (!g.a_transposed && g.b_transposed)
        launch_tensor<T, true, true>(a, b, out, g);
    else if (!g.a_transposed)
        launch_tensor<T, true, false>(a, b, out, g);
    else if (g.b_transposed)
        launch_tensor<T, false, true>(a, b, out, g);
    else
        launch_tensor<T, false, false>(a, b, out, g);
}

bool gemm_tensor_fits(Mem a, Mem b, Gemm g) {
    int chunk = a.type == F32 ? 4 : 8; // elements in 16 bytes
    return a.type == b.type && ((uintptr_t)a.at | (uintptr_t)b.at) % 16 == 0 &&
           (g.a_transposed ? g.m : g.k) % chunk == 0 && (g.b_transposed ? g.k : g.n) % chunk == 0;
}

// ---- the choice ------------------------------------------------------------------------------------------

void gemm_step(GemmStep step, Mem c, Mem a, Mem b, Mem bias, Mem residual, Gemm g) {
    if (g.m <= 0 || g.n <= 0) return;
    Epilogue out = {c, bias, residual, g.n, g.alpha, g.add};
    Matrix ma = matrix_a(a, g), mb = matrix_b(b, g);
    dim3 grid, block;
    switch (step) {
    case GEMM_NAIVE:
        grid = dim3(ceil_div(g.m, 8), ceil_div(g.n, 32)), block = dim3(32, 8);
        gemm_naive<<<grid, block, 0, stream>>>(ma, mb, out, g.m, g.n, g.k);
        check_launch("gemm_naive", grid, block);
        break;
    case GEMM_TILED:
        grid = dim3(ceil_div(g.m, SMALL), ceil_div(g.n, SMALL)), block = dim3(SMALL, SMALL);
        gemm_tiled<<<grid, block, 0, stream>>>(ma, mb, out, g.m, g.n, g.k);
        check_launch("gemm_tiled", grid, block);
        break;
    case GEMM_BLOCKED: run_blocked(ma, mb, out, g.m, g.n, g.k); break;
    case GEMM_TENSOR:
        if (a.type == F16)
            run_tensor<__half>(a, b, out, g);
        else if (a.type == BF16)
            run_tensor<__nv_bfloat16>(a, b, out, g);
        else
            run_tensor<float>(a, b, out, g);
        break;
    }
}

static int wanted_step() { // -1: the best that fits
    static const char *const names[] = {"naive", "tiled", "blocked", "tensor"};
    const char *s = getenv("SD_GEMM");
    if (!s || !*s) return -1;
    for (int i = 0; i < 4; i++)
        if (!strcmp(s, names[i])) return i;
    die("SD_GEMM is '%s'; naive, tiled, blocked and tensor are known", s);
}
static void launch_gemm(Mem c, Mem a, Mem b, Mem bias, Mem residual, Gemm g) {
    static const int wanted = wanted_step();
    int step = wanted >= 0 ? wanted : a.type != F32 ? GEMM_TENSOR : GEMM_BLOCKED;
    if (step == GEMM_TENSOR && !gemm_tensor_fits(a, b, g)) step = GEMM_BLOCKED;
    gemm_step((GemmStep)step, c, a, b, bias, residual, g);
}

void gemm_kernels(Backend &b) { b.gemm = launch_gemm; }
