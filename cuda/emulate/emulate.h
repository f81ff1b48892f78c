// emulate.h: lets g++ or clang++ build the .cu files of this folder for the processor, so that every kernel
// can be run, tested and stepped through without a GPU.
//
// It is included before a .cu file. launch.sed has turned `k<<<grid, block>>>(...)` in that file into a call,
// and changed nothing else. The threads of a block are fibers: they take turns on one thread of the operating
// system. Blocks are spread over cores. The declarations here are implemented in
//   emulate.cc  the scheduler of fibers, launches, barriers, device memory, streams, graphs
//   warp.cc     what the lanes of a warp do together: shuffles, votes, ldmatrix, mma; cp.async; atomics
//   check.cc    races, bounds, uninitialised reads, bank conflicts (the calls that -fsanitize=thread makes)
//
// It is not a simulator of the hardware: it knows no time, no caches, no registers, and orders memory as the
// processor does. Sums inside an mma are taken in ascending order of k; a GPU may differ in the last bits.
//
// Environment: EMU_SEED=n random order of threads (0: fixed), EMU_THREADS=n threads of the operating system,
// EMU_ASYNC=1 (work is done when something waits for it), EMU_POISON=0, EMU_COUNT=1, EMU_CHECK=0, EMU_ABORT=1
// (core dump at the first finding), EMU_DEVICES, EMU_MEMORY=MiB, EMU_CAPABILITY=75 (no device, a smaller, an
// older one, to see the messages).
//
// Order: keywords, vector types, built-in variables, barriers, warp operations, atomics, arithmetic, half and
// bf16, cp.async and tensor cores, the runtime's functions.
#ifndef EMULATE_H
#define EMULATE_H

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>
#define EMULATE 1
#pragma GCC diagnostic ignored "-Wattributes" // __shared__ says `used`, which means nothing after extern

// ---- keywords --------------------------------------------------------------------------------------------
// Each block has its own shared arrays. A thread of the operating system runs one block at a time, from start
// to end. So shared arrays are thread_local.
// __constinit: without it, g++ tests at each use whether an array of classes has been initialised.
// `used`: without it, the compiler reads zeros from an array that nothing writes, which hides a mistake.
// patchable_function_entry: a kernel begins with an instruction that does nothing. The linker lists the
// addresses of these instructions, and so those of the kernels.
#define __global__ __attribute__((patchable_function_entry(1)))
#define __device__
#define __host__
#define __constant__
#ifdef __clang__
#define __shared__ __attribute__((used)) thread_local
#else
#define __shared__ __attribute__((used)) __constinit thread_local
#endif
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __restrict__ __restrict

// ---- vector types ----------------------------------------------------------------------------------------
// They are copied as a whole, so that what is one access on a GPU is one access for the checks.
typedef float EmuFloats2 __attribute__((vector_size(8), may_alias));
typedef float EmuFloats4 __attribute__((vector_size(16), may_alias));
typedef uint32_t EmuWord __attribute__((may_alias));
#define EMU_COPIED_AS(Whole, V)                                                                              \
    V() = default;                                                                                           \
    V(const V &o) { *this = o; }                                                                             \
    V &operator=(const V &o) {                                                                               \
        *(Whole *)(void *)this = *(const Whole *)(const void *)&o;                                           \
        return *this;                                                                                        \
    }
struct alignas(8) float2 {
    float x, y;
    float2(float x, float y) : x(x), y(y) {}
    EMU_COPIED_AS(EmuFloats2, float2)
};
struct alignas(16) float4 {
    float x, y, z, w;
    float4(float x, float y, float z, float w) : x(x), y(y), z(z), w(w) {}
    EMU_COPIED_AS(EmuFloats4, float4)
};
static inline float2 make_float2(float x, float y) { return float2(x, y); }
static inline float4 make_float4(float x, float y, float z, float w) { return float4(x, y, z, w); }
struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// ---- built-in variables ----------------------------------------------------------------------------------
// These are variables, so a debugger knows them by name. emulate.cc sets them. For kernels they are const,
// so the checks ignore them and the compiler may keep their values across a barrier.
extern "C" {
extern const __thread uint3 threadIdx, blockIdx, blockDim, gridDim;
}
// The dynamic shared memory of a launch. A kernel declares it with these very words and type.
extern __shared__ __align__(128) unsigned char dynamic_shared[];

// ---- barriers --------------------------------------------------------------------------------------------
struct EmuSite { // where a call stands in the source
    const char *what, *file;
    int line;
};
#define EMU_AT const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMU_SITE(name)                                                                                       \
    EmuSite { name, file, line }

enum EmuBarrier { EMU_SYNC, EMU_COUNT_TRUE, EMU_ALL_TRUE, EMU_ANY_TRUE };
int emu_barrier(EmuBarrier kind, int predicate, EmuSite at);
static inline void __syncthreads(EMU_AT) { emu_barrier(EMU_SYNC, 0, EMU_SITE("__syncthreads")); }
static inline int __syncthreads_count(int p, EMU_AT) {
    return emu_barrier(EMU_COUNT_TRUE, p, EMU_SITE("__syncthreads_count"));
}
static inline int __syncthreads_and(int p, EMU_AT) {
    return emu_barrier(EMU_ALL_TRUE, p, EMU_SITE("__syncthreads_and"));
}
static inline int __syncthreads_or(int p, EMU_AT) {
    return emu_barrier(EMU_ANY_TRUE, p, EMU_SITE("__syncthreads_or"));
}
void emu_syncwarp(unsigned mask, EmuSite at);
static inline void __syncwarp(unsigned mask = ~0u, EMU_AT) { emu_syncwarp(mask, EMU_SITE("__syncwarp")); }

// ---- warp operations -------------------------------------------------------------------------------------
// The last lane to arrive carries the operation out for all: one switch of fibers a lane.
enum EmuShuffle { EMU_INDEX, EMU_UP, EMU_DOWN, EMU_XOR };
uint64_t emu_shuffle(EmuShuffle kind, unsigned mask, uint64_t value, int arg, int width, EmuSite at);
template <class T>
T emu_shuffle_any(EmuShuffle kind, unsigned mask, T value, int arg, int width, EmuSite at) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = emu_shuffle(kind, mask, bits, arg, width, at);
    memcpy((void *)&value, &bits, sizeof value);
    return value;
}
template <class T> T __shfl_sync(unsigned mask, T v, int lane, int width = 32, EMU_AT) {
    return emu_shuffle_any(EMU_INDEX, mask, v, lane, width, EMU_SITE("__shfl_sync"));
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, EMU_AT) {
    return emu_shuffle_any(EMU_UP, mask, v, (int)by, width, EMU_SITE("__shfl_up_sync"));
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, EMU_AT) {
    return emu_shuffle_any(EMU_DOWN, mask, v, (int)by, width, EMU_SITE("__shfl_down_sync"));
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32, EMU_AT) {
    return emu_shuffle_any(EMU_XOR, mask, v, lanes, width, EMU_SITE("__shfl_xor_sync"));
}

enum class EmuReduce { BALLOT, ANY, ALL, ADD, MIN, MAX, UMIN, UMAX, AND, OR, XOR };
unsigned emu_reduce(EmuReduce kind, unsigned mask, unsigned value, EmuSite at);
static inline unsigned __ballot_sync(unsigned mask, int p, EMU_AT) {
    return emu_reduce(EmuReduce::BALLOT, mask, p != 0, EMU_SITE("__ballot_sync"));
}
static inline int __any_sync(unsigned mask, int p, EMU_AT) {
    return (int)emu_reduce(EmuReduce::ANY, mask, p != 0, EMU_SITE("__any_sync"));
}
static inline int __all_sync(unsigned mask, int p, EMU_AT) {
    return (int)emu_reduce(EmuReduce::ALL, mask, p != 0, EMU_SITE("__all_sync"));
}
#define EMU_REDUCTION(name, kind, T)                                                                         \
    static inline T name(unsigned mask, T v, EMU_AT) {                                                       \
        return (T)emu_reduce(EmuReduce::kind, mask, (unsigned)v, EMU_SITE(#name));                           \
    }
EMU_REDUCTION(__reduce_add_sync, ADD, int)
EMU_REDUCTION(__reduce_add_sync, ADD, unsigned)
EMU_REDUCTION(__reduce_min_sync, MIN, int)
EMU_REDUCTION(__reduce_min_sync, UMIN, unsigned)
EMU_REDUCTION(__reduce_max_sync, MAX, int)
EMU_REDUCTION(__reduce_max_sync, UMAX, unsigned)
EMU_REDUCTION(__reduce_and_sync, AND, unsigned)
EMU_REDUCTION(__reduce_or_sync, OR, unsigned)
EMU_REDUCTION(__reduce_xor_sync, XOR, unsigned)

// ---- atomics ---------------------------------------------------------------------------------------------
float atomicAdd(float *p, float v);
int atomicAdd(int *p, int v);
unsigned atomicAdd(unsigned *p, unsigned v);
int atomicMax(int *p, int v);
unsigned atomicCAS(unsigned *p, unsigned compare, unsigned v);

// ---- arithmetic ------------------------------------------------------------------------------------------
static inline unsigned __float_as_uint(float f) {
    unsigned u;
    memcpy(&u, &f, 4);
    return u;
}
static inline float __uint_as_float(unsigned u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fmul_rn(float a, float b) { return a * b; }
// As PTX: -0 is less than +0, a number wins over a NaN, two NaN give 0x7fffffff. C does not order the zeros.
static inline float emu_minf(float a, float b) {
    if (a != a) return b != b ? __uint_as_float(0x7fffffffu) : b;
    if (b != b) return a;
    if (a == b) return __uint_as_float(__float_as_uint(a) | (a == 0 ? __float_as_uint(b) : 0));
    return a < b ? a : b;
}
static inline float emu_maxf(float a, float b) {
    if (a != a) return b != b ? __uint_as_float(0x7fffffffu) : b;
    if (b != b) return a;
    if (a == b) return __uint_as_float(__float_as_uint(a) & (a == 0 ? __float_as_uint(b) : ~0u));
    return a > b ? a : b;
}
#define fminf(a, b) emu_minf(a, b)
#define fmaxf(a, b) emu_maxf(a, b)
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }

// ---- half and bf16 ---------------------------------------------------------------------------------------
// fp32 becomes 16 bits by rounding to nearest, ties to even. NaN becomes 0x7fff, as cvt.rn makes it.
static inline uint16_t emu_float_to_half(float f) {
    uint32_t u = __float_as_uint(f), sign = u >> 16 & 0x8000;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return 0x7fff;
    if (u >= 0x47800000u) return (uint16_t)(sign | 0x7c00); // 65536 and more: infinity
    if (u < 0x38800000u) { // below 2^-14: adding 0.5 moves the subnormal's last bit to the float's last bit
        float shifted = __uint_as_float(u) + 0.5f;
        return (uint16_t)(sign | (__float_as_uint(shifted) - 0x3f000000u));
    }
    u += 0xfff + (u >> 13 & 1); // round: half of the part cut off, ties to even
    u -= 112u << 23;            // exponent bias 127 -> 15; 65520 and more carry to infinity
    return (uint16_t)(sign | u >> 13);
}
// Without branches, so that the compiler makes vectors of it.
static inline float emu_half_to_float(uint16_t h) {
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13, exponent = h & 0x7c00;
    uint32_t normal = magnitude + (exponent == 0x7c00 ? 224u << 23 : 112u << 23); // 0x7c00: infinity and NaN
    float small = __uint_as_float(magnitude + (113u << 23)) - __uint_as_float(113u << 23);
    return __uint_as_float((exponent ? normal : __float_as_uint(small)) | (uint32_t)(h & 0x8000) << 16);
}
static inline uint16_t emu_float_to_bf16(float f) {
    uint32_t u = __float_as_uint(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
static inline float emu_bf16_to_float(uint16_t h) { return __uint_as_float((uint32_t)h << 16); }

// fp32 has 24 bits, fp16 11. As 24 >= 2 * 11 + 2, rounding to fp32 first does not change a sum or product.
#define EMU_FLOAT16(H, H2, from, to)                                                                         \
    struct H {                                                                                               \
        uint16_t bits;                                                                                       \
        H() = default;                                                                                       \
        H(float f) : bits(from(f)) {}                                                                        \
        operator float() const { return to(bits); }                                                          \
    };                                                                                                       \
    struct alignas(4) H2 {                                                                                   \
        H x, y;                                                                                              \
        H2(H x, H y) : x(x), y(y) {}                                                                         \
        EMU_COPIED_AS(EmuWord, H2)                                                                           \
    };                                                                                                       \
    static inline H operator+(H a, H b) { return H((float)a + (float)b); }                                   \
    static inline H operator*(H a, H b) { return H((float)a * (float)b); }
EMU_FLOAT16(__half, __half2, emu_float_to_half, emu_half_to_float)
EMU_FLOAT16(__nv_bfloat16, __nv_bfloat162, emu_float_to_bf16, emu_bf16_to_float)
static inline __half __float2half_rn(float f) { return __half(f); }
static inline float __half2float(__half h) { return h; }
static inline __half2 __floats2half2_rn(float a, float b) { return __half2(a, b); }
static inline __nv_bfloat16 __float2bfloat16_rn(float f) { return __nv_bfloat16(f); }
static inline float __bfloat162float(__nv_bfloat16 h) { return h; }
static inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return __nv_bfloat162(a, b); }

// ---- cp.async, ldmatrix, mma.sync: what ptx.h calls ------------------------------------------------------
void emu_cp_async16(void *shared, const void *global, int source_bytes, EmuSite at);
void emu_cp_async_commit();
void emu_cp_async_wait(int keep); // until at most `keep` groups are under way; the bytes land only here
void emu_ldmatrix(uint32_t *r, const void *row, int count, bool transposed, EmuSite at);
enum EmuMma { EMU_MMA_F16, EMU_MMA_BF16, EMU_MMA_TF32 };
void emu_mma(EmuMma kind, float *d, const uint32_t *a, const uint32_t *b, EmuSite at);

// ---- the runtime's functions -----------------------------------------------------------------------------
enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorNoDevice = 100,
    cudaErrorStreamCaptureUnsupported = 900,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
typedef struct EmuStream *cudaStream_t;
typedef struct EmuEvent *cudaEvent_t;
typedef struct EmuGraph *cudaGraph_t;
typedef struct EmuGraph *cudaGraphExec_t;
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
    int major, minor, multiProcessorCount;
    size_t sharedMemPerBlockOptin;
};
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device);
cudaError_t cudaMemGetInfo(size_t *available, size_t *total);
cudaError_t emu_malloc(void **p, size_t bytes);
template <class T> cudaError_t cudaMalloc(T **p, size_t bytes) { return emu_malloc((void **)p, bytes); }
cudaError_t cudaFree(void *p);
cudaError_t emu_malloc_host(void **p, size_t bytes);
template <class T> cudaError_t cudaMallocHost(T **p, size_t bytes) {
    return emu_malloc_host((void **)p, bytes);
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t s = 0);
cudaError_t cudaMemset(void *to, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t s = 0);
template <class T>
cudaError_t cudaMemcpyToSymbol(T &symbol, const void *from, size_t bytes, size_t offset = 0) {
    memcpy((char *)&symbol + offset, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaGetLastError();
const char *cudaGetErrorString(cudaError_t e);
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };
cudaError_t cudaStreamCreate(cudaStream_t *s);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t s);
cudaError_t cudaStreamSynchronize(cudaStream_t s);
cudaError_t cudaEventCreate(cudaEvent_t *e);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t e);
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s = 0);
cudaError_t cudaEventSynchronize(cudaEvent_t e);
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end);
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal };
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags = 0);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
cudaError_t emu_set_attribute(const void *kernel, cudaFuncAttribute what, int value);
template <class... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute what, int value) {
    return emu_set_attribute((const void *)kernel, what, value);
}

// ---- launches: what launch.sed makes of <<<...>>> --------------------------------------------------------
struct emu_config {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
    emu_config(dim3 grid, dim3 block, size_t shared = 0, cudaStream_t stream = 0)
        : grid(grid), block(block), shared(shared), stream(stream) {}
};
struct EmuCall { // a kernel with its arguments, ready to be run by each thread
    const char *name;
    const void *kernel;
    void (*run)(const void *arguments);
    void (*destroy)(void *arguments);
    void *arguments;
    size_t arguments_size;
};
void emu_submit(const emu_config &config, const EmuCall &call);

// Arguments are converted to the kernel's parameter types and copied once, at the launch, as CUDA does.
template <class... P, class... A>
void emu_launch(void (*kernel)(P...), const char *name, const emu_config &config, A &&...a) {
    struct Bound {
        void (*kernel)(P...);
        std::tuple<P...> arguments;
    };
    static_assert(sizeof...(P) == sizeof...(A), "the kernel takes another number of arguments");
    Bound *bound = new Bound{kernel, std::tuple<P...>(std::forward<A>(a)...)};
    EmuCall call = {
        name,
        (const void *)kernel,
        [](const void *p) { std::apply(((const Bound *)p)->kernel, ((const Bound *)p)->arguments); },
        [](void *p) { delete (Bound *)p; },
        bound,
        sizeof *bound};
    emu_submit(config, call);
}
#endif
