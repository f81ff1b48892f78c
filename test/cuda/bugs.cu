// bugs.cu: small kernels with a mistake each, and correct ones: the emulator's checks must find the former
// and report nothing for the latter. `bugs` lists the cases, `bugs NAME` runs one. test/cuda/bugs.sh runs all
// of them, in several orders of threads, and looks for the words that each report must contain.
#include "cuda.h"
#include "cuda/device.h"

#define K static __global__ void

// ---- races in shared memory
K good_reverse(const int *x, int *y) {
    __shared__ int s[128];
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[127 - threadIdx.x];
}
K no_barrier(const int *x, int *y) {
    __shared__ int s[128];
    s[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = s[127 - threadIdx.x];
}
K no_second_barrier(const int *x, int *y) {
    __shared__ int s[128];
    int sum = 0;
    for (int i = 0; i < 3; i++) {
        s[threadIdx.x] = x[threadIdx.x] + i;
        __syncthreads();
        sum += s[127 - threadIdx.x];
    }
    y[threadIdx.x] = sum;
}
K good_syncwarp(const int *x, int *y) {
    __shared__ int s[128];
    int t = threadIdx.x;
    s[t] = x[t];
    __syncwarp();
    y[t] = s[t ^ 1];
    __syncwarp();
    s[t] = 0;
}
K no_syncwarp(const int *x, int *y) {
    __shared__ int s[128];
    int t = threadIdx.x;
    s[t] = x[t];
    y[t] = s[t ^ 1];
}
K shuffle_is_no_barrier(const int *x, int *y) { // a shuffle synchronises lanes, but does not order memory
    __shared__ int s[128];
    int t = threadIdx.x;
    s[t] = x[t];
    int v = __shfl_xor_sync(~0u, t, 1);
    y[t] = s[t ^ 1] + v;
}
K good_histogram(const int *x, int *y) {
    __shared__ int h[16];
    int t = threadIdx.x;
    if (t < 16) h[t] = 0;
    __syncthreads();
    atomicAdd(&h[x[t] % 16], 1);
    __syncthreads();
    if (t < 16) y[t] = h[t];
}
K racy_histogram(const int *x, int *y) {
    __shared__ int h[16];
    int t = threadIdx.x;
    if (t < 16) h[t] = 0;
    __syncthreads();
    h[x[t] % 16]++;
    __syncthreads();
    if (t < 16) y[t] = h[t];
}

// ---- races in global memory
K good_blocks(int *y) { y[blockIdx.x * blockDim.x + threadIdx.x] = 1; }
K blocks_overlap(int *y) {
    y[blockIdx.x * (blockDim.x - 1) + threadIdx.x] = 1;
} // the last of one, the first of the next
K threads_overlap(int *y) { y[threadIdx.x / 2] = threadIdx.x; }
K block_reads_block(int *y) { // block 1 reads what block 0 wrote in the same launch
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = i;
    if (blockIdx.x == 1) y[i] += y[i - blockDim.x];
}
K sum_without_atomic(int *sum) { *sum += 1; }
K good_sum(int *sum) { atomicAdd(sum, 1); }
K good_global_exchange(int *y) { // a barrier orders global memory within a block
    y[threadIdx.x] = threadIdx.x;
    __syncthreads();
    int v = y[blockDim.x - 1 - threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = v;
}
K global_exchange(int *y) {
    y[threadIdx.x] = threadIdx.x;
    y[threadIdx.x] = y[blockDim.x - 1 - threadIdx.x];
}

// ---- barriers and warps
K barrier_in_if(int *y) {
    if (threadIdx.x < 40) __syncthreads();
    y[threadIdx.x] = 1;
}
K two_barriers(int *y) {
    if (threadIdx.x < 64) {
        y[threadIdx.x] = 1;
        __syncthreads();
    } else {
        y[threadIdx.x] = 2;
        __syncthreads();
    }
}
K early_return(int *y, int n) {
    if ((int)threadIdx.x >= n) return;
    y[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x]++;
}
K shuffle_in_branch(int *y) {
    int v = threadIdx.x;
    if (threadIdx.x % 32 < 16) v = __shfl_xor_sync(0xffffffffu, v, 1);
    y[threadIdx.x] = v;
}
K good_partial_shuffle(int *y) {
    int v = threadIdx.x;
    if (threadIdx.x % 32 < 16) v = __shfl_xor_sync(0xffffu, v, 1);
    y[threadIdx.x] = v;
}
K shuffle_and_vote(int *y) {
    int v = threadIdx.x;
    if (threadIdx.x % 32 < 16)
        v = __shfl_xor_sync(0xffffffffu, v, 1);
    else
        v = __ballot_sync(0xffffffffu, v & 1);
    y[threadIdx.x] = v;
}
K mask_without_self(int *y) { y[threadIdx.x] = __shfl_sync(0xfffeu, (int)threadIdx.x, 1); }

// ---- bounds, uninitialised memory, wrong pointers
K global_past_end(int *y) { y[threadIdx.x + 1] = 1; }
K load_past_end(Mem x, int *y) { y[threadIdx.x] = (int)load(x, threadIdx.x + 1); } // inlined from a header
K global_before_begin(const int *x, int *y) { y[threadIdx.x] = x[(int)threadIdx.x - 1]; }
K global_uninitialised(const int *x, int *y) { y[threadIdx.x] = x[threadIdx.x] + 1; }
K static_past_end(const int *x, int *y) {
    __shared__ int s[128];
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x + 1];
}
static __device__ void count_up(int *s) { s[threadIdx.x] = threadIdx.x; }
K past_end_by_pointer(int *y) { // into the array of a kernel that may never be launched
    __shared__ int s[32];
    count_up(s);
    __syncthreads();
    if (threadIdx.x < 32) y[threadIdx.x] = s[threadIdx.x];
}
K dynamic_past_end(const int *x, int *y) {
    extern __shared__ __align__(128) unsigned char dynamic_shared[];
    int *s = (int *)dynamic_shared;
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x + 1];
}
K shared_never_written(int *y) {
    __shared__ int s[128];
    y[threadIdx.x] = s[threadIdx.x];
}
K shared_uninitialised(int *y) {
    __shared__ int s[128];
    if (threadIdx.x < 100) s[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}
K shared_of_last_block(int *y) { // block 0 filled it, block 1 has another one
    __shared__ int s[128];
    if (blockIdx.x == 0) s[threadIdx.x] = 1;
    __syncthreads();
    y[blockIdx.x * 128 + threadIdx.x] = s[threadIdx.x];
}
K copy_of(const int *x, int *y) { y[threadIdx.x] = x[threadIdx.x]; }
K misaligned(const int *x, int *y) {
    *(float4 *)&y[threadIdx.x * 4] = *(const float4 *)&x[threadIdx.x * 4 + 1];
}

// ---- asynchronous copies
K good_async(const int *x, int *y) {
    __shared__ __align__(16) int s[128];
    int t = threadIdx.x;
    if (t < 32) cp_async16(&s[t * 4], x + t * 4, 16);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    y[t] = s[127 - t];
}
K no_wait(const int *x, int *y) {
    __shared__ __align__(16) int s[128];
    int t = threadIdx.x;
    if (t < 32) cp_async16(&s[t * 4], x + t * 4, 16);
    cp_async_commit();
    __syncthreads();
    y[t] = s[t];
    cp_async_wait<0>();
}
K wait_one_short(const int *x, int *y) {
    __shared__ __align__(16) int s[2][128];
    int t = threadIdx.x, sum = 0;
    for (int i = 0; i < 2; i++) {
        if (t < 32) cp_async16(&s[i][t * 4], x + t * 4, 16);
        cp_async_commit();
    }
    for (int i = 0; i < 2; i++) {
        cp_async_wait<1>();
        __syncthreads();
        sum += s[i][t];
    }
    y[t] = sum;
    cp_async_wait<0>();
}
K async_no_barrier(const int *x, int *y) {
    __shared__ __align__(16) int s[128];
    int t = threadIdx.x;
    if (t < 32) cp_async16(&s[t * 4], x + t * 4, 16);
    cp_async_commit();
    cp_async_wait<0>();
    y[t] = s[127 - t];
}
K never_waited(const int *x, int *y) {
    __shared__ __align__(16) int s[128];
    if (threadIdx.x < 32) cp_async16(&s[threadIdx.x * 4], x + threadIdx.x * 4, 16);
    y[threadIdx.x] = 1;
}
K ldmatrix_misaligned(const int *x, int *y) {
    __shared__ __align__(16) int s[132];
    for (int i = threadIdx.x; i < 132; i += 32) s[i] = x[i % 128];
    __syncwarp();
    uint32_t r[1];
    ldmatrix_x1(r, &s[threadIdx.x % 8 * 4 + 1]);
    y[threadIdx.x] = r[0];
}

// ---- for the counters: tiles transposed through shared memory, with and without a pad
template <int PAD> K transpose(const float *x, float *y) {
    __shared__ float s[32][32 + PAD];
    s[threadIdx.y][threadIdx.x] = x[threadIdx.y * 32 + threadIdx.x];
    __syncthreads();
    y[threadIdx.y * 32 + threadIdx.x] = s[threadIdx.x][threadIdx.y];
}
K stride_8(const float *x, float *y) { y[threadIdx.x] = x[threadIdx.x * 8]; }

int main(int argc, char **argv) {
    enum { N = 128 };
    std::vector<int> numbers(N);
    for (int i = 0; i < N; i++) numbers[i] = i;
    Device<int> x(numbers), y(N), zero(1);
    std::vector<float> square(1024, 1.0f);
    Device<float> fx(square), fy(1024);
    int *raw, *host = numbers.data();
    cudaMalloc(&raw, N * sizeof(int));
    const char *want = argc > 1 ? argv[1] : "";
#define CASE(name, ...)                                                                                      \
    if (!*want) puts(name);                                                                                  \
    if (!strcmp(want, name)) {                                                                               \
        __VA_ARGS__;                                                                                         \
        cudaError_t e = cudaDeviceSynchronize();                                                             \
        return e != cudaSuccess;                                                                             \
    }
    CASE("good_reverse", good_reverse<<<1, N>>>(x.at, y.at))
    CASE("no_barrier", no_barrier<<<1, N>>>(x.at, y.at))
    CASE("no_second_barrier", no_second_barrier<<<1, N>>>(x.at, y.at))
    CASE("good_syncwarp", good_syncwarp<<<1, N>>>(x.at, y.at))
    CASE("no_syncwarp", no_syncwarp<<<1, N>>>(x.at, y.at))
    CASE("shuffle_is_no_barrier", shuffle_is_no_barrier<<<1, N>>>(x.at, y.at))
    CASE("good_histogram", good_histogram<<<1, N>>>(x.at, y.at))
    CASE("racy_histogram", racy_histogram<<<1, N>>>(x.at, y.at))
    CASE("good_blocks", good_blocks<<<4, 32>>>(y.at))
    CASE("blocks_overlap", blocks_overlap<<<4, 32>>>(y.at))
    CASE("threads_overlap", threads_overlap<<<1, N>>>(y.at))
    CASE("block_reads_block", block_reads_block<<<2, 64>>>(y.at))
    CASE("sum_without_atomic", sum_without_atomic<<<2, 1>>>(zero.at))
    CASE("good_sum", good_sum<<<2, 64>>>(zero.at))
    CASE("good_global_exchange", good_global_exchange<<<1, N>>>(y.at))
    CASE("global_exchange", global_exchange<<<1, N>>>(y.at))
    CASE("barrier_in_if", barrier_in_if<<<1, N>>>(y.at))
    CASE("two_barriers", two_barriers<<<1, N>>>(y.at))
    CASE("early_return", early_return<<<1, N>>>(y.at, 100))
    CASE("shuffle_in_branch", shuffle_in_branch<<<1, N>>>(y.at))
    CASE("good_partial_shuffle", good_partial_shuffle<<<1, N>>>(y.at))
    CASE("shuffle_and_vote", shuffle_and_vote<<<1, N>>>(y.at))
    CASE("mask_without_self", mask_without_self<<<1, N>>>(y.at))
    CASE("global_past_end", global_past_end<<<1, N>>>(y.at))
    CASE("load_past_end", load_past_end<<<1, N>>>(Mem{x.at, F32}, y.at))
    CASE("global_before_begin", global_before_begin<<<1, N>>>(x.at, y.at))
    CASE("global_uninitialised", global_uninitialised<<<1, N>>>(raw, y.at))
    CASE("static_past_end", static_past_end<<<1, N>>>(x.at, y.at))
    CASE("past_end_by_pointer", past_end_by_pointer<<<1, N>>>(y.at))
    CASE("dynamic_past_end", dynamic_past_end<<<1, N, N * sizeof(int)>>>(x.at, y.at))
    CASE("shared_never_written", shared_never_written<<<1, N>>>(y.at))
    CASE("null_pointer", good_sum<<<1, 1>>>(nullptr))
    CASE("shared_uninitialised", shared_uninitialised<<<1, N>>>(y.at))
    CASE("shared_of_last_block", shared_of_last_block<<<2, 64>>>(y.at))
    CASE("host_pointer", copy_of<<<1, N>>>(host, y.at))
    CASE("misaligned", misaligned<<<1, 8>>>(x.at, y.at))
    CASE("good_async", good_async<<<1, N>>>(x.at, y.at))
    CASE("no_wait", no_wait<<<1, N>>>(x.at, y.at))
    CASE("wait_one_short", wait_one_short<<<1, N>>>(x.at, y.at))
    CASE("async_no_barrier", async_no_barrier<<<1, N>>>(x.at, y.at))
    CASE("never_waited", never_waited<<<1, N>>>(x.at, y.at))
    CASE("ldmatrix_misaligned", ldmatrix_misaligned<<<1, 32>>>(x.at, y.at))
    CASE("count_conflicts", transpose<0><<<1, dim3(32, 32)>>>(fx.at, fy.at))
    CASE("count_padded", transpose<1><<<1, dim3(32, 32)>>>(fx.at, fy.at))
    CASE("count_strided", stride_8<<<1, 32>>>(fx.at, fy.at))
    return *want ? 2 : 0;
}
