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

// Notes operations of products, convolutions and attention for -v: how many, and how many on tensor cores.
void count_operations(double count, bool tensor);

// Which of the names an environment variable holds; -1 where it is not set. Another value ends the program.
int step_named(const char *variable, const char *const *names, int count);

// Memory for what one call needs only while it runs: `Scratch s; float *x = s.floats(100);`.
struct Scratch {
    size_t mark = backend.mark();
    float *floats(size_t count) { return (float *)backend.temp(count * sizeof(float)); }
    ~Scratch() { backend.release(mark); }
};

// x in the type of activations, where that is 16 bits: x itself, or a copy. A weight's copy is kept until the
// weight changes, which whoever writes persistent memory must say.
Mem in_storage(Mem x, size_t count, Scratch &scratch);
void weight_changes(const void *at);

// ---- operands --------------------------------------------------------------------------------------------

static inline size_t size_of(Type t) { return t == F32 ? 4 : 2; }
static inline Mem f32(const float *at) { return Mem{(void *)at, F32}; }
static const Mem absent = {NULL, F32}; // an operand that is not there

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
// f(T()), T being C++'s name for a type of 16 bits.
template <class F> void in_16_bits(Type type, F f) { type == F16 ? f(__half()) : f(__nv_bfloat16()); }

// Four elements of 16 bits, which came in 8 bytes.
__device__ __forceinline__ float4 unpacked(float2 two, Type type) {
    if (type == BF16) { // the upper half of an fp32
        uint32_t a = __float_as_uint(two.x), b = __float_as_uint(two.y);
        return make_float4(__uint_as_float(a << 16), __uint_as_float(a & 0xffff0000u),
                           __uint_as_float(b << 16), __uint_as_float(b & 0xffff0000u));
    }
    __half2 h[2];
    memcpy((void *)h, &two, sizeof h);
    return make_float4(__half2float(h[0].x), __half2float(h[0].y), __half2float(h[1].x),
                       __half2float(h[1].y));
}
__device__ __forceinline__ float2 packed(float4 v, Type type) {
    float2 two = make_float2(0, 0);
    if (type == BF16) {
        __nv_bfloat162 h[2] = {__floats2bfloat162_rn(v.x, v.y), __floats2bfloat162_rn(v.z, v.w)};
        memcpy((void *)&two, h, sizeof h);
    } else {
        __half2 h[2] = {__floats2half2_rn(v.x, v.y), __floats2half2_rn(v.z, v.w)};
        memcpy((void *)&two, h, sizeof h);
    }
    return two;
}
// Four elements from i on, which is a multiple of four, in one access of 16 bytes, or 8: see fours().
__device__ __forceinline__ float4 load4(Mem x, size_t i) {
    if (x.type == F32) return *(const float4 *)((const float *)x.at + i);
    return unpacked(*(const float2 *)((const uint16_t *)x.at + i), x.type);
}
__device__ __forceinline__ void store4(Mem y, size_t i, float4 v) {
    if (y.type == F32)
        *(float4 *)((float *)y.at + i) = v;
    else
        *(float2 *)((uint16_t *)y.at + i) = packed(v, y.type);
}
__device__ __forceinline__ float4 sum_of(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
static inline bool fours(Mem x) { return (uintptr_t)x.at % (4 * size_of(x.type)) == 0; } // or absent

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

// W elements beside one another: one, or eight, which are 16 bytes (of fp32 twice 16).
template <int W> struct Lanes { float v[W]; };
template <int W> __device__ __forceinline__ Lanes<W> load_lanes(Mem x, size_t i) {
    if constexpr (W == 1)
        return {{load(x, i)}};
    else {
        float4 a, b;
        if (x.type == F32)
            a = load4(x, i), b = load4(x, i + 4);
        else {
            float4 words = *(const float4 *)((const uint16_t *)x.at + i);
            a = unpacked(make_float2(words.x, words.y), x.type);
            b = unpacked(make_float2(words.z, words.w), x.type);
        }
        return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
    }
}
template <int W> __device__ __forceinline__ void store_lanes(Mem y, size_t i, const Lanes<W> &l) {
    if constexpr (W == 1)
        store(y, i, l.v[0]);
    else {
        float4 a = make_float4(l.v[0], l.v[1], l.v[2], l.v[3]),
               b = make_float4(l.v[4], l.v[5], l.v[6], l.v[7]);
        if (y.type == F32)
            store4(y, i, a), store4(y, i + 4, b);
        else {
            float2 low = packed(a, y.type), high = packed(b, y.type);
            *(float4 *)((uint16_t *)y.at + i) = make_float4(low.x, low.y, high.x, high.y);
        }
    }
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
