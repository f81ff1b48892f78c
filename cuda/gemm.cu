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
#include "tensor.h"

// An element of A or B, transposed or not: element (i, p) lies at i * row + p * col.
struct Matrix {
    Mem x;
    size_t row, col;
    bool along_k; // which index runs along memory
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
// with luck, from the cache. Neighbouring threads read neighbouring columns of B, so where B lies as (k, n)
// those loads coalesce; a layer's weights lie as (n, k), and each thread's element is in a sector of its own.
// The same element of A goes to all of them at once. [C1]

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
// memory delivers 32 elements a cycle where the arithmetic units could take 256. [C2]

enum { SMALL = 32 };
static __global__ void __launch_bounds__(SMALL *SMALL)
    gemm_tiled(Matrix a, Matrix b, Epilogue out, int m, int n, int k) {
    // + 1: a column's elements lie in different banks.
    __shared__ float as[SMALL][SMALL + 1], bs[SMALL][SMALL + 1];
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

template <bool A_ALONG_K> static void run_blocked(Matrix a, Matrix b, Epilogue out, Gemm g) {
    Elements<A_ALONG_K> ma = {a.x, A_ALONG_K ? a.row : a.col};
    if (b.along_k)
        launch_tiles(ma, Elements<true>{b.x, b.col}, out, g.m, g.n, g.k);
    else
        launch_tiles(ma, Elements<false>{b.x, b.row}, out, g.m, g.n, g.k);
}

int split_count(size_t tiles, size_t k, int blocks, int least) {
    size_t splits = k / least;
    if (splits > blocks / tiles) splits = blocks / tiles;
    return splits > 2 ? (int)splits : 1; // two would gain less than adding them costs
}
static __global__ void add_split(const float *part, int splits, size_t count, Epilogue out) {
    size_t step = out.wide ? 4 : 1;
    EACH(i, count / step) {
        size_t at = i * step;
        int row = (int)(at / out.n), col = (int)(at % out.n);
        float4 sum = make_float4(0, 0, 0, 0);
        for (int s = 0; s < splits; s++)
            if (out.wide)
                sum = sum_of(sum, *(const float4 *)&part[s * count + at]);
            else
                sum.x += part[s * count + at];
        if (out.wide)
            out.four(row, col, sum);
        else
            out(row, col, sum.x);
    }
}
void finish_split(Epilogue out, int splits) {
    const float *part = out.part;
    size_t count = (size_t)out.m * out.n;
    unsigned blocks = blocks_for(count / (out.wide ? 4 : 1));
    out.part = NULL;
    add_split<<<blocks, THREADS, 0, stream>>>(part, splits, count, out);
    check_launch("add_split", blocks, THREADS);
}

// ---- 4. tensor cores -------------------------------------------------------------------------------------
// What it fixes: a tensor core multiplies whole fragments of matrices, and tiles arrive by asynchronous
// copies while others are multiplied (tensor.h).

template <class T, bool A_ALONG_K> static void run_tensor(Mem a, Mem b, Epilogue out, Gemm g) {
    MatrixChunks<T, A_ALONG_K> ma = {(const T *)a.at, g.m, g.k, 0, 0, 0};
    if (g.b_transposed)
        launch_tensor<T>(ma, MatrixChunks<T, true>{(const T *)b.at, g.n, g.k, 0, 0, 0}, out, g.m, g.n, g.k);
    else
        launch_tensor<T>(ma, MatrixChunks<T, false>{(const T *)b.at, g.n, g.k, 0, 0, 0}, out, g.m, g.n, g.k);
}
template <class T> static void run_tensor(Mem a, Mem b, Epilogue out, Gemm g) {
    g.a_transposed ? run_tensor<T, false>(a, b, out, g) : run_tensor<T, true>(a, b, out, g);
}

bool gemm_tensor_fits(Mem a, Mem b, Gemm g) {
    int chunk = a.type == F32 ? 4 : 8; // elements in 16 bytes
    return a.type == b.type && ((uintptr_t)a.at | (uintptr_t)b.at) % 16 == 0 &&
           (g.a_transposed ? g.m : g.k) % chunk == 0 && (g.b_transposed ? g.k : g.n) % chunk == 0;
}

// ---- the choice ------------------------------------------------------------------------------------------

void gemm_step(GemmStep step, Mem c, Mem a, Mem b, Mem bias, Mem residual, Gemm g) {
    if (g.m <= 0 || g.n <= 0) return;
    Epilogue out(c, bias, residual, g.n, g.alpha, g.add);
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
    case GEMM_BLOCKED:
        ma.along_k ? run_blocked<true>(ma, mb, out, g) : run_blocked<false>(ma, mb, out, g);
        break;
    case GEMM_TENSOR:
        if (a.type == F32) return run_tensor<float>(a, b, out, g);
        in_16_bits(a.type, [&](auto t) { run_tensor<decltype(t)>(a, b, out, g); });
        break;
    }
}

static void launch_gemm(Mem c, Mem a, Mem b, Mem bias, Mem residual, Gemm g) {
    static const char *const names[] = {"naive", "tiled", "blocked", "tensor"};
    static const int wanted = step_named("SD_GEMM", names, 4); // -1: the best that fits
    if (g.m <= 0 || g.n <= 0) return;
    weight_changes(c.at);
    Scratch scratch;
    int step = wanted >= 0 ? wanted : backend.storage != F32 ? GEMM_TENSOR : GEMM_BLOCKED;
    if (step == GEMM_TENSOR && !gemm_tensor_fits(Mem{NULL, F16}, Mem{NULL, F16}, g)) step = GEMM_BLOCKED;
    if (step == GEMM_TENSOR)
        a = in_storage(a, (size_t)g.m * g.k, scratch), b = in_storage(b, (size_t)g.k * g.n, scratch);
    if (step == GEMM_TENSOR && !gemm_tensor_fits(a, b, g)) step = GEMM_BLOCKED;
    gemm_step((GemmStep)step, c, a, b, bias, residual, g);
}

// ---- products with more in them --------------------------------------------------------------------------

// Weights' rows in turn, on tensor cores; false where they cannot take it.
static bool run_in_turn(Epilogue out, Mem x, const Mem *w, int count, int unit, int m, int k) {
    Scratch scratch;
    Mem rows[3] = {};
    bool fits = backend.storage != F32 && !getenv("SD_GEMM") && unit % 4 == 0 && k % 8 == 0;
    for (int i = 0; fits && i < count; i++) {
        rows[i] = in_storage(w[i], (size_t)out.n / count * k, scratch);
        fits = gemm_tensor_fits(x, rows[i], Gemm{m, out.n, k, false, true, false, 1});
    }
    if (!fits) return false;
    in_16_bits(x.type, [&](auto t) {
        typedef decltype(t) T;
        const T *at[3] = {(const T *)rows[0].at, (const T *)rows[1].at, (const T *)rows[2].at};
        RowsInTurn<T> b = {{at[0], at[1], at[2]}, unit, count, out.n, k, 0, 0, {}};
        launch_tensor<T>(MatrixChunks<T, true>{(const T *)x.at, m, k, 0, 0, 0}, b, out, m, out.n, k);
    });
    return true;
}
static void launch_gemm_three(const Mem *y, Mem x, const Mem *w, int m, int n, int k) {
    Epilogue out(y[0], absent, absent, 3 * n, 1, false);
    out.each = n, out.more[0] = y[1], out.more[1] = y[2];
    out.wide = n % 4 == 0 && fours(y[0]) && fours(y[1]) && fours(y[2]);
    if (out.wide && run_in_turn(out, x, w, 3, n, m, k)) return;
    for (int i = 0; i < 3; i++)
        launch_gemm(y[i], x, w[i], absent, absent, Gemm{m, n, k, false, true, false, 1});
}
static void launch_gemm_geglu(Mem y, Mem x, Mem w, Mem bias, int m, int n, int k) {
    Epilogue out(y, bias, absent, 2 * n, 1, false);
    out.gate = true;
    Scratch scratch;
    w = in_storage(w, (size_t)2 * n * k, scratch);
    Mem halves[2] = {w, {(char *)w.at + (size_t)n * k * size_of(w.type), w.type}};
    if (n % 16 == 0 && out.wide && w.type == backend.storage && run_in_turn(out, x, halves, 2, 16, m, k))
        return;
    Mem both = {backend.temp((size_t)2 * m * n * size_of(backend.storage)), backend.storage};
    launch_gemm(both, x, w, bias, absent, Gemm{m, 2 * n, k, false, true, false, 1});
    backend.geglu(y, both, m, n);
}

void gemm_kernels(Backend &b) {
    b.gemm = launch_gemm;
    b.gemm_three = launch_gemm_three, b.gemm_geglu = launch_gemm_geglu;
}
