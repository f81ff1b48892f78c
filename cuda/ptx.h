// ptx.h: the instructions that CUDA C++ has no words for, each behind a function: asynchronous copies,
// ldmatrix, mma.sync, rounding to TF32. Nothing else in this folder holds inline assembly.
//
// Two versions of one list: PTX for nvcc, calls into the emulator for g++ and clang++. test/cuda/wrap.cu
// tests both against tables taken from the PTX ISA manual, on raw registers.
//
//   cp_async16(shared, global, bytes)  starts a copy of 16 bytes; of these the first `bytes` (0 to 16) are
//                                      read, the others become zero. Both addresses are multiples of 16.
//   cp_async_commit()                  closes a group of copies; cp_async_wait<N>() waits until at most the
//                                      last N groups of this thread are under way.
//   ldmatrix_xN[_trans](r, row)        loads N matrices of 8 x 8 values of 16 bits: lane 8 j + i gives the
//                                      shared address of row i of matrix j
//   mma_m16n8k16_f16 / _bf16, mma_m16n8k8_tf32(d, a, b)   d += a b, for a warp; fragments as in the PTX ISA
//   round_tf32(f)                      the nearest value with a mantissa of 10 bits, ties away from zero
#ifndef PTX_H
#define PTX_H
#include <stdint.h>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>

__device__ __forceinline__ uint32_t shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

__device__ __forceinline__ void cp_async16(void *shared, const void *global, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#define LDMATRIX(suffix, modifier)                                                                           \
    __device__ __forceinline__ void ldmatrix_x1##suffix(uint32_t(&r)[1], const void *row) {                  \
        asm volatile("ldmatrix.sync.aligned.m8n8.x1" modifier ".shared.b16 {%0}, [%1];"                      \
                     : "=r"(r[0])                                                                            \
                     : "r"(shared_address(row))                                                              \
                     : "memory");                                                                            \
    }                                                                                                        \
    __device__ __forceinline__ void ldmatrix_x2##suffix(uint32_t(&r)[2], const void *row) {                  \
        asm volatile("ldmatrix.sync.aligned.m8n8.x2" modifier ".shared.b16 {%0, %1}, [%2];"                  \
                     : "=r"(r[0]), "=r"(r[1])                                                                \
                     : "r"(shared_address(row))                                                              \
                     : "memory");                                                                            \
    }                                                                                                        \
    __device__ __forceinline__ void ldmatrix_x4##suffix(uint32_t(&r)[4], const void *row) {                  \
        asm volatile("ldmatrix.sync.aligned.m8n8.x4" modifier ".shared.b16 {%0, %1, %2, %3}, [%4];"          \
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                                        \
                     : "r"(shared_address(row))                                                              \
                     : "memory");                                                                            \
    }
LDMATRIX(, "")
LDMATRIX(_trans, ".trans")

// A warp's 16 x 8 += 16 x 16 times 16 x 8; which lane holds what is drawn in emulate/warp.cc. [C5]
#define MMA(name, shape_and_types)                                                                           \
    __device__ __forceinline__ void name(float(&d)[4], const uint32_t(&a)[4], const uint32_t(&b)[2]) {       \
        asm volatile("mma.sync.aligned." shape_and_types                                                     \
                     " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                      \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                        \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                    \
    }
MMA(mma_m16n8k16_f16, "m16n8k16.row.col.f32.f16.f16.f32")
MMA(mma_m16n8k16_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
MMA(mma_m16n8k8_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")

__device__ __forceinline__ uint32_t round_tf32(float f) {
    uint32_t u;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(u) : "f"(f));
    return u;
}

#else // ---- the emulator's

static inline void cp_async16(void *shared, const void *global, int bytes, EMU_AT) {
    emu_cp_async16(shared, global, bytes, EMU_SITE("cp.async"));
}
static inline void cp_async_commit() { emu_cp_async_commit(); }
template <int N> static inline void cp_async_wait() { emu_cp_async_wait(N); }

#define LDMATRIX(name, count, transposed)                                                                    \
    static inline void name(uint32_t(&r)[count], const void *row, EMU_AT) {                                  \
        emu_ldmatrix(r, row, count, transposed, EMU_SITE(#name));                                            \
    }
LDMATRIX(ldmatrix_x1, 1, false)
LDMATRIX(ldmatrix_x2, 2, false)
LDMATRIX(ldmatrix_x4, 4, false)
LDMATRIX(ldmatrix_x1_trans, 1, true)
LDMATRIX(ldmatrix_x2_trans, 2, true)
LDMATRIX(ldmatrix_x4_trans, 4, true)

#define MMA(name, kind)                                                                                      \
    static inline void name(float(&d)[4], const uint32_t(&a)[4], const uint32_t(&b)[2], EMU_AT) {            \
        emu_mma(kind, d, a, b, EMU_SITE(#name));                                                             \
    }
MMA(mma_m16n8k16_f16, EMU_MMA_F16)
MMA(mma_m16n8k16_bf16, EMU_MMA_BF16)
MMA(mma_m16n8k8_tf32, EMU_MMA_TF32)

static inline uint32_t round_tf32(float f) {
    uint32_t u = __float_as_uint(f);
    if ((u & 0x7f800000u) == 0x7f800000u) return u & 0x7fffffu ? 0x7fffffffu : u;
    return (u + 0x1000u) & ~0x1fffu;
}
#endif
#endif
