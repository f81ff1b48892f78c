// device.h: what every .cu file of this folder starts from: operands, launches, sums over a block.
//
// A kernel is plain CUDA C++ and reads like the loop in cpu/plain.c that defines it. Operands come as `Mem`,
// an address with an element type known only at run time, so one kernel serves weights of any type with
// activations of any other: load() and store() look at the type, which is the same for all threads and so
// costs a branch that never diverges. Arithmetic is fp32. Only the tensor-core kernel is compiled once for
// each type.
#ifndef DEVICE_H
#define DEVICE_H

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif
#include "ptx.h"

#include <float.h>
#include <math.h>
#define _Noreturn [[noreturn]]
extern "C" {
#include "lib/base.h"
}
#undef _Noreturn
#include "lib/nn/kernels.h"

// ---- what memory.cu keeps --------------------------------------------------------------------------------

// At its end each file puts its launchers into the table of kernels.h; backend_init() calls these.
void memory_kernels(Backend &), gemm_kernels(Backend &), conv_kernels(Backend &),
    attention_kernels(Backend &);
void norm_kernels(Backend &), pointwise_kernels(Backend &), loss_kernels(Backend &), optim_kernels(Backend &);

extern cudaStream_t stream; // every kernel and copy goes here
// Ends the program with one line if the launch just made failed.
void check_launch(const char *kernel, dim3 grid, dim3 block);
void check_cuda(cudaError_t e, const char *doing);

// Memory for what one call needs only while it runs: `Scratch s; float *x = s.floats(100);`.
struct Scratch {
    size_t mark = backend.mark();
    float *floats(size_t count) { return (float *)backend.temp(count * sizeof(float)); }
    ~Scratch() { backend.release(mark); }
};

// ---- operands --------------------------------------------------------------------------------------------

static inline size_t size_of(Type t) { return t == F32 ? 4 : 2; }
static inline Mem f32(const float *at) { return Mem{(void *)at, F32}; }

__device__ __forceinline__ float load(Mem x, size_t i) {
    switch (x.type) {
    case F16: return __half2float(((const __half *)x.at)[i]);
    case BF16: return __bfloat162float(((const __nv_bfloat16 *)x.at)[i]);
    default: return ((const float *)x.at)[i];
    }
}
__device__ __forceinline__ void store(Mem y, size_t i, float value) {
    switch (y.type) {
    case F16: ((__half *)y.at)[i] = __float2half_rn(value); break;
    case BF16: ((__nv_bfloat16 *)y.at)[i] = __float2bfloat16_rn(value); break;
    default: ((float *)y.at)[i] = value;
    }
}
__device__ __forceinline__ void accumulate(Mem y, size_t i, float value) { store(y, i, load(y, i) + value); }

// ---- launches --------------------------------------------------------------------------------------------

// The elements that this thread works on, where one thread takes one and then the one a whole grid further.
#define EACH(i, count)                                                                                       \
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < (count);                              \
         i += (size_t)gridDim.x * blockDim.x)

enum { THREADS = 256 };
static inline unsigned blocks_for(size_t count) { // for EACH: enough blocks to fill any GPU
    size_t n = (count + THREADS - 1) / THREADS;
    return (unsigned)(n < 4096 ? n : 4096);
}
static inline unsigned ceil_div(size_t a, size_t b) { return (unsigned)((a + b - 1) / b); }
static inline unsigned parts_for(size_t count) { // of a sum: blocks that leave a part each
    unsigned n = ceil_div(count, 4 * THREADS);
    return n < 1 ? 1 : n < 1024 ? n : 1024;
}

// ---- sums in a fixed order -------------------------------------------------------------------------------

__device__ __forceinline__ float warp_sum(float v) { // every lane gets it
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
    return v;
}
__device__ __forceinline__ float warp_max(float v) {
    for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, o));
    return v;
}
// The sum, or the largest, over a block of whole warps; every thread gets it. `part` is shared, 32 floats.
template <bool MAX> __device__ __forceinline__ float block_reduce(float v, float *part) {
    v = MAX ? warp_max(v) : warp_sum(v);
    __syncthreads(); // the last call's parts have been read
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads(); // the parts are there
    v = part[0];
    for (unsigned i = 1; i < blockDim.x / 32; i++) v = MAX ? fmaxf(v, part[i]) : v + part[i];
    return v;
}
__device__ __forceinline__ float block_sum(float v, float *part) { return block_reduce<false>(v, part); }
__device__ __forceinline__ float block_max(float v, float *part) { return block_reduce<true>(v, part); }

// *out = factor * (the sum of part[0..count)) (+ *out); in loss.cu.
void finish_sum(float *out, const float *part, int count, float factor, bool add);

// ---- elementwise functions -------------------------------------------------------------------------------

__device__ __forceinline__ float sigmoid(float x) { return 1 / (1 + expf(-x)); }
__device__ __forceinline__ float silu_slope(float x) {
    float s = sigmoid(x);
    return s * (1 + x * (1 - s));
}
__device__ __forceinline__ float normal_below(float x) { return 0.5f * erfcf(-x * 0.70710678118654752f); }
__device__ __forceinline__ float gelu(float x) { return x * normal_below(x); }
__device__ __forceinline__ float gelu_slope(float x) { // Phi(x) + x Phi'(x)
    return normal_below(x) + x * 0.39894228040143268f * expf(-0.5f * x * x);
}

#endif
