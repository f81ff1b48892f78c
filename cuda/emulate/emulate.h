// emulate.h: lets g++ or clang++ build the .cu files of this folder for the processor, so that every kernel
// can be run, tested and stepped through without a GPU.
//
// Included before a .cu file that launch.sed has been over (it turns `k<<<grid, block>>>(...)` into a call;
// nothing else of the file is changed). The threads of a block are fibers of one thread of the operating
// system; blocks are spread over cores. What lies behind the declarations here:
//   emulate.cc        the scheduler of fibers, launches, barriers, device memory, streams, graphs
//   warp.cc   what the lanes of a warp do together: shuffles, votes, ldmatrix, mma; cp.async; atomics
//   check.cc  races, bounds, uninitialised reads, bank conflicts (answers to -fsanitize=thread)
//
// It is not a simulator of the hardware: it knows no time, no caches, no registers, and orders memory as the
// processor does. Sums inside an mma are taken in ascending order of k; a GPU may differ in the last bits.
//
// Environment: EMU_SEED=n random order of threads (0: fixed), EMU_THREADS=n threads of the operating system,
// EMU_BREAK=bx,by,bz,tx,ty,tz calls emu_break() in that thread, EMU_POISON=0, EMU_COUNT=1, EMU_CHECK=0,
// EMU_EXITED_OK=1 (threads that returned no longer count for barriers, as since Volta), EMU_ABORT=1 (core dump
// at the first finding), EMU_DEVICES, EMU_MEMORY=MiB, EMU_CAPABILITY=75 (none, a smaller, an older device, to see
// the messages).
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
// A shared array is one per block, and a thread of the operating system runs one block at a time without ever
// giving it to another: so thread_local is exactly right, in a function's scope (where it implies static) and
// after extern. __constinit: without it g++ guards arrays of classes with a hidden test at each use.
// `used`: one that nothing writes is a mistake to be found, not a zero for the compiler to put in its place.
// A kernel begins with an instruction to be patched, which does nothing: for its address, which the linker then lists.
// (__noinline__ must not be a macro: the C++ library uses the word itself.)
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
#define __grid_constant__
#define __restrict__ __restrict

// ---- vector types ----------------------------------------------------------------------------------------
// They are copied as one vector, so that what is one access on a GPU is one access for the checks.
#define EMU_VECTOR2(V, T)                                                                                    \
    struct alignas(2 * sizeof(T)) V {                                                                        \
        T x, y;                                                                                              \
        V() = default;                                                                                       \
        V(T x, T y) : x(x), y(y) {}                                                                          \
        V(const V &o) { *this = o; }                                                                         \
        V &operator=(const V &o) {                                                                           \
            typedef T Whole __attribute__((vector_size(2 * sizeof(T)), may_alias));                          \
            *(Whole *)(void *)this = *(const Whole *)(const void *)&o;                                       \
            return *this;                                                                                    \
        }                                                                                                    \
    };                                                                                                       \
    static inline V make_##V(T x, T y) { return V(x, y); }
#define EMU_VECTOR4(V, T)                                                                                    \
    struct alignas(4 * sizeof(T)) V {                                                                        \
        T x, y, z, w;                                                                                        \
        V() = default;                                                                                       \
        V(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}                                                    \
        V(const V &o) { *this = o; }                                                                         \
        V &operator=(const V &o) {                                                                           \
            typedef T Whole __attribute__((vector_size(4 * sizeof(T)), may_alias));                          \
            *(Whole *)(void *)this = *(const Whole *)(const void *)&o;                                       \
            return *this;                                                                                    \
        }                                                                                                    \
    };                                                                                                       \
    static inline V make_##V(T x, T y, T z, T w) { return V(x, y, z, w); }
EMU_VECTOR2(float2, float)
EMU_VECTOR2(int2, int)
EMU_VECTOR2(uint2, unsigned)
EMU_VECTOR2(double2, double)
EMU_VECTOR4(float4, float)
EMU_VECTOR4(int4, int)
EMU_VECTOR4(uint4, unsigned)
EMU_VECTOR4(ushort4, unsigned short)
struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// ---- built-in variables ----------------------------------------------------------------------------------
// Real objects, so that a debugger knows them by name. They are const here, because a thread's never change
// (so the checks leave them alone, and a compiler may keep them across a barrier), and set by emulate.cc.
extern "C" {
extern const __thread uint3 threadIdx, blockIdx, blockDim, gridDim;
}
static const int warpSize = 32;
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

enum EmuReduce {
    EMU_BALLOT,
    EMU_ANY,
    EMU_ALL,
    EMU_ADD,
    EMU_MIN,
    EMU_MAX,
    EMU_UMIN,
    EMU_UMAX,
    EMU_AND,
    EMU_OR,
    EMU_BITXOR
};
unsigned emu_reduce(EmuReduce kind, unsigned mask, unsigned value, EmuSite at);
static inline unsigned __ballot_sync(unsigned mask, int p, EMU_AT) {
    return emu_reduce(EMU_BALLOT, mask, p != 0, EMU_SITE("__ballot_sync"));
}
static inline int __any_sync(unsigned mask, int p, EMU_AT) {
    return (int)emu_reduce(EMU_ANY, mask, p != 0, EMU_SITE("__any_sync"));
}
static inline int __all_sync(unsigned mask, int p, EMU_AT) {
    return (int)emu_reduce(EMU_ALL, mask, p != 0, EMU_SITE("__all_sync"));
}
#define EMU_REDUCTION(name, kind, T)                                                                         \
    static inline T name(unsigned mask, T v, EMU_AT) {                                                       \
        return (T)emu_reduce(kind, mask, (unsigned)v, EMU_SITE(#name));                                      \
    }
EMU_REDUCTION(__reduce_add_sync, EMU_ADD, int)
EMU_REDUCTION(__reduce_add_sync, EMU_ADD, unsigned)
EMU_REDUCTION(__reduce_min_sync, EMU_MIN, int)
EMU_REDUCTION(__reduce_min_sync, EMU_UMIN, unsigned)
EMU_REDUCTION(__reduce_max_sync, EMU_MAX, int)
EMU_REDUCTION(__reduce_max_sync, EMU_UMAX, unsigned)
EMU_REDUCTION(__reduce_and_sync, EMU_AND, unsigned)
EMU_REDUCTION(__reduce_or_sync, EMU_OR, unsigned)
EMU_REDUCTION(__reduce_xor_sync, EMU_BITXOR, unsigned)

// ---- atomics and fences ----------------------------------------------------------------------------------
float atomicAdd(float *p, float v);
int atomicAdd(int *p, int v);
unsigned atomicAdd(unsigned *p, unsigned v);
int atomicMax(int *p, int v);
int atomicMin(int *p, int v);
unsigned atomicMax(unsigned *p, unsigned v);
unsigned atomicOr(unsigned *p, unsigned v);
unsigned atomicExch(unsigned *p, unsigned v);
float atomicExch(float *p, float v);
unsigned atomicCAS(unsigned *p, unsigned compare, unsigned v);
int atomicCAS(int *p, int compare, int v);
static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence_block() {}

// ---- arithmetic ------------------------------------------------------------------------------------------
// The approximate functions are the C library's. glibc declares __expf and its like itself, so these names can
// only be macros.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __powf(x, y) powf(x, y)
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
static inline int __float_as_int(float f) { return (int)__float_as_uint(f); }
static inline float __int_as_float(int i) { return __uint_as_float((unsigned)i); }
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float a) { return 1 / a; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
// PTX min and max: -0 is below +0; a NaN gives way to a number; two NaN give 0x7fffffff. C leaves the first open.
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
static inline float min(float a, float b) { return emu_minf(a, b); }
static inline float max(float a, float b) { return emu_maxf(a, b); }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
static inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
static inline size_t min(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t max(size_t a, size_t b) { return a > b ? a : b; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
template <class T> T __ldg(const T *p) { return *p; }

// ---- half and bf16 ---------------------------------------------------------------------------------------
// Numbers become 16 bits by rounding to nearest, ties to even. NaN becomes 0x7fff, as cvt.rn makes it.
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
    return (uint16_t)(sign |
                      ((u - (112u << 23)) >> 13)); // exponent bias 127 -> 15; 65520 and more carry to inf
}
static inline float emu_half_to_float(uint16_t h) {
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13, sign = (uint32_t)(h & 0x8000) << 16, u;
    uint32_t exponent = h & 0x7c00;
    if (exponent == 0x7c00)
        u = magnitude + (224u << 23); // infinity and NaN
    else if (exponent)
        u = magnitude + (112u << 23);
    else
        u = __float_as_uint(__uint_as_float(magnitude + (113u << 23)) - __uint_as_float(113u << 23));
    return __uint_as_float(u | sign);
}
static inline uint16_t emu_float_to_bf16(float f) {
    uint32_t u = __float_as_uint(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
static inline float emu_bf16_to_float(uint16_t h) { return __uint_as_float((uint32_t)h << 16); }

// x + y of two 16-bit numbers is exact enough in fp32 that the second rounding does no harm (24 >= 2 * 11 + 2).
#define EMU_FLOAT16(H, H2, from, to)                                                                         \
    struct H {                                                                                               \
        uint16_t bits;                                                                                       \
        H() = default;                                                                                       \
        H(float f) : bits(from(f)) {}                                                                        \
        operator float() const { return to(bits); }                                                          \
    };                                                                                                       \
    struct alignas(4) H2 {                                                                                   \
        H x, y;                                                                                              \
        H2() = default;                                                                                      \
        H2(H x, H y) : x(x), y(y) {}                                                                         \
        H2(const H2 &o) { *this = o; }                                                                       \
        H2 &operator=(const H2 &o) {                                                                         \
            typedef uint32_t Whole __attribute__((may_alias));                                               \
            *(Whole *)(void *)this = *(const Whole *)(const void *)&o;                                       \
            return *this;                                                                                    \
        }                                                                                                    \
    };                                                                                                       \
    static inline H operator+(H a, H b) { return H((float)a + (float)b); }                                   \
    static inline H operator-(H a, H b) { return H((float)a - (float)b); }                                   \
    static inline H operator*(H a, H b) { return H((float)a * (float)b); }
EMU_FLOAT16(__half, __half2, emu_float_to_half, emu_half_to_float)
EMU_FLOAT16(__nv_bfloat16, __nv_bfloat162, emu_float_to_bf16, emu_bf16_to_float)
typedef __half half;
typedef __half2 half2;
static inline __half __float2half(float f) { return __half(f); }
static inline __half __float2half_rn(float f) { return __half(f); }
static inline float __half2float(__half h) { return h; }
static inline __half2 __floats2half2_rn(float a, float b) { return __half2(a, b); }
static inline float2 __half22float2(__half2 h) { return float2(h.x, h.y); }
static inline __nv_bfloat16 __float2bfloat16(float f) { return __nv_bfloat16(f); }
static inline __nv_bfloat16 __float2bfloat16_rn(float f) { return __nv_bfloat16(f); }
static inline float __bfloat162float(__nv_bfloat16 h) { return h; }
static inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return __nv_bfloat162(a, b); }

// ---- cp.async, ldmatrix, mma.sync: what ptx.h calls ------------------------------------------------------
void emu_cp_async(void *shared, const void *global, int bytes, int source_bytes, EmuSite at);
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
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorStreamCaptureUnsupported = 900,
};
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};
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
cudaError_t cudaFreeHost(void *p);
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
cudaError_t cudaPeekAtLastError();
const char *cudaGetErrorString(cudaError_t e);
const char *cudaGetErrorName(cudaError_t e);
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };
cudaError_t cudaStreamCreate(cudaStream_t *s);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t s);
cudaError_t cudaStreamSynchronize(cudaStream_t s);
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags = 0);
cudaError_t cudaEventCreate(cudaEvent_t *e);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t e);
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s = 0);
cudaError_t cudaEventSynchronize(cudaEvent_t e);
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end);
enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal,
    cudaStreamCaptureModeThreadLocal,
    cudaStreamCaptureModeRelaxed
};
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
