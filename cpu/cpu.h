// cpu.h: what the kernels of this folder share: threads, scratch memory. vector.h adds the arithmetic.
#ifndef CPU_H
#define CPU_H

#include "lib/nn/kernels.h"

// ---- threads ----------------------------------------------------------------------------------------------

// A loop shared among threads. What an iteration computes must not depend on which thread has it, nor on how
// many there are: partition outputs, or reduce over chunks of a fixed size. `condition`: worth waking a
// thread. Within such a loop another one is a plain loop.
#ifdef _OPENMP
#define PRAGMA(x) _Pragma(#x)
#define PARALLEL_FOR(condition)                                                                              \
    PRAGMA(omp parallel for schedule(dynamic) if ((condition) && cpu_threads() > 1))
// Of many short rows, such as one token's or one pixel's: a thread takes 16 at once. Taking them one by one
// was 40 % of a layer norm's time.
#define PARALLEL_ROWS(condition)                                                                             \
    PRAGMA(omp parallel for schedule(dynamic, 16) if ((condition) && cpu_threads() > 1))
#else
#define PARALLEL_FOR(condition) (void)(condition);
#define PARALLEL_ROWS(condition) (void)(condition);
#endif
enum { WORTH_A_THREAD = 20000 }; // elements handled by simple arithmetic, about 5 us
int cpu_threads(void);           // that a PARALLEL_FOR would have here
// The step of gemm.c's ladder that SD_GEMM names; else the last.
enum { GEMM_NAIVE, GEMM_BLOCKED, GEMM_PACKED, GEMM_FAST };
int cpu_gemm_step(void);
bool cpu_winograd(void); // false where SD_WINOGRAD=0 asks for the direct convolutions

// ---- scratch ----------------------------------------------------------------------------------------------

// Memory of this thread, at least so many floats, aligned to a cache line; it stays for the next call, and
// its content does not. One block for each purpose. What threads share is the first one's own.
typedef enum {
    S_A,
    S_B,
    S_SHARED_B,
    S_TILE,
    S_KEYS,
    S_ROWS,
    S_BIAS,
    S_GAMMA,
    S_PARTS,
    S_NORM,
    S_BAND,
    S_V,
    S_U,
    S_M
} Slot;
float *scratch(Slot slot, size_t floats);

// ---- the tables -------------------------------------------------------------------------------------------

extern const Backend plain;  // plain.c: the definition of each kernel
void cpu_memory(Backend *b); // memory.c: fills in what is the same for all of them

#endif
