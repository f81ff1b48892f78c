// cpu.h: what the fast kernels share beside vector.h: the list of kernels that exist once for each instruction
// set, threads, scratch memory. cpu.c chooses among the sets.
#ifndef CPU_H
#define CPU_H

#include "lib/nn/kernels.h"

// ---- threads -----------------------------------------------------------------------------------------------

// A loop shared among threads. What an iteration computes must not depend on which thread has it, nor on how
// many there are: partition outputs, or reduce over chunks of a fixed size. `condition`: worth waking a thread. Within
// such a loop another one is a plain loop.
#ifdef _OPENMP
#define PRAGMA(x) _Pragma(#x)
#define PARALLEL_FOR(condition) PRAGMA(omp parallel for schedule(dynamic) if ((condition) && cpu_threads() > 1))
#else
#define PARALLEL_FOR(condition) (void)(condition);
#endif
enum { WORTH_A_THREAD = 20000 }; // numbers handled by simple arithmetic, about 5 us
int cpu_threads(void);           // that a PARALLEL_FOR would have here
bool cpu_winograd(void);         // false where SD_WINOGRAD=0 asks for the direct convolutions

// ---- scratch -----------------------------------------------------------------------------------------------

// Memory of this thread, at least so many floats, aligned to a cache line; it stays for the next call, and its
// content does not. One block for each purpose. What a kernel shares among threads is its first thread's own.
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
    S_V,
    S_U,
    S_M,
    S_SLOTS
} Slot;
float *scratch(Slot slot, size_t floats);

// ---- the kernels -------------------------------------------------------------------------------------------

// X(name, parameters, arguments): k_<name> of kernels.h, for which cpu/*.c define <name>_avx512 and so on.
#define KERNELS(X)                                                                                           \
    X(fill, (Mem y, float value, size_t count), (y, value, count))                                           \
    X(copy, (Mem y, Mem x, size_t count), (y, x, count))                                                     \
    X(gemm, (Mem c, Mem a, Mem b, Mem bias, Mem residual, Gemm g), (c, a, b, bias, residual, g))             \
    X(conv2d, (Mem y, Mem x, Mem weight, Mem bias, Mem residual, Conv p), (y, x, weight, bias, residual, p)) \
    X(conv2d_backward_input, (Mem dx, Mem dy, Mem weight, Conv p), (dx, dy, weight, p))                      \
    X(conv2d_backward_weight, (float *dweight, Mem dy, Mem x, Conv p), (dweight, dy, x, p))                  \
    X(sum_rows, (Mem y, Mem x, int groups, int rows, int cols), (y, x, groups, rows, cols))                  \
    X(attention, (Mem o, float *lse, Mem q, Mem k, Mem v, Attention p), (o, lse, q, k, v, p))                \
    X(attention_backward,                                                                                    \
      (Mem dq, Mem dk, Mem dv, Mem dout, Mem q, Mem k, Mem v, Mem o, const float *lse, Attention p),         \
      (dq, dk, dv, dout, q, k, v, o, lse, p))                                                                \
    X(group_norm, (Mem y, float *stats, Mem x, Mem gamma, Mem beta, GroupNorm p),                            \
      (y, stats, x, gamma, beta, p))                                                                         \
    X(group_norm_backward,                                                                                   \
      (Mem dx, float *dgamma, float *dbeta, Mem dy, Mem x, Mem gamma, Mem beta, const float *stats,          \
       GroupNorm p),                                                                                         \
      (dx, dgamma, dbeta, dy, x, gamma, beta, stats, p))                                                     \
    X(layer_norm, (Mem y, float *stats, Mem x, Mem gamma, Mem beta, int rows, int cols, float eps),          \
      (y, stats, x, gamma, beta, rows, cols, eps))                                                           \
    X(layer_norm_backward,                                                                                   \
      (Mem dx, float *dgamma, float *dbeta, Mem dy, Mem x, Mem gamma, const float *stats, int rows,          \
       int cols),                                                                                            \
      (dx, dgamma, dbeta, dy, x, gamma, stats, rows, cols))                                                  \
    X(activation, (Mem y, Mem x, size_t count, Activation f), (y, x, count, f))                              \
    X(activation_backward, (Mem dx, Mem dy, Mem x, size_t count, Activation f), (dx, dy, x, count, f))       \
    X(geglu, (Mem y, Mem x, int rows, int inner), (y, x, rows, inner))                                       \
    X(geglu_backward, (Mem dx, Mem dy, Mem x, int rows, int inner), (dx, dy, x, rows, inner))                \
    X(combine, (Mem y, float a, Mem x, float b, Mem z, float c, size_t count), (y, a, x, b, z, c, count))    \
    X(combine_rows, (Mem y, const float *a, Mem x, const float *b, Mem z, int rows, int cols, bool add),     \
      (y, a, x, b, z, rows, cols, add))                                                                      \
    X(clamp, (Mem y, Mem x, float low, float high, size_t count), (y, x, low, high, count))                  \
    X(multiply, (Mem y, Mem a, Mem b, size_t count, bool add), (y, a, b, count, add))                        \
    X(add_vector, (Mem y, Mem x, Mem v, int groups, int rows, int cols), (y, x, v, groups, rows, cols))      \
    X(copy_columns, (Mem y, int y_stride, Mem x, int x_stride, int rows, int cols, bool add),                \
      (y, y_stride, x, x_stride, rows, cols, add))                                                           \
    X(upsample, (Mem y, Mem x, int n, int h, int w, int c), (y, x, n, h, w, c))                              \
    X(upsample_backward, (Mem dx, Mem dy, int n, int h, int w, int c), (dx, dy, n, h, w, c))                 \
    X(pool, (Mem y, Mem x, Conv p, Pool kind), (y, x, p, kind))                                              \
    X(pool_backward, (Mem dx, Mem dy, Mem x, Conv p, Pool kind), (dx, dy, x, p, kind))                       \
    X(embed, (Mem y, Mem table, const int32_t *ids, int rows, int cols), (y, table, ids, rows, cols))        \
    X(embed_backward, (float *dtable, Mem dy, const int32_t *ids, int rows, int cols),                       \
      (dtable, dy, ids, rows, cols))                                                                         \
    X(sinusoid, (Mem y, const float *t, int rows, int dim, bool cos_first, float shift),                     \
      (y, t, rows, dim, cos_first, shift))                                                                   \
    X(loss,                                                                                                  \
      (float *loss, Mem prediction, Mem target, const float *weight, int rows, int cols, Loss f, float c),   \
      (loss, prediction, target, weight, rows, cols, f, c))                                                  \
    X(loss_backward,                                                                                         \
      (Mem dprediction, const float *dloss, Mem prediction, Mem target, const float *weight, int rows,       \
       int cols, Loss f, float c),                                                                           \
      (dprediction, dloss, prediction, target, weight, rows, cols, f, c))                                    \
    X(log_softmax, (Mem y, Mem x, int rows, int cols), (y, x, rows, cols))                                   \
    X(log_softmax_backward, (Mem dx, Mem dy, Mem y, int rows, int cols), (dx, dy, y, rows, cols))            \
    X(pick, (float *loss, Mem x, const int32_t *ids, int rows, int cols), (loss, x, ids, rows, cols))        \
    X(pick_backward, (Mem dx, const float *dloss, const int32_t *ids, int rows, int cols),                   \
      (dx, dloss, ids, rows, cols))                                                                          \
    X(sum_square, (OptimiserState * s, const float *g, size_t count), (s, g, count))                         \
    X(optimiser_begin, (OptimiserState * s, OptimiserConfig c), (s, c))                                      \
    X(adamw,                                                                                                 \
      (float *w, float *m, float *v, float *g, const OptimiserState *s, OptimiserConfig c, size_t count),    \
      (w, m, v, g, s, c, count))                                                                             \
    X(ema, (float *e, const float *w, const OptimiserState *s, float decay, size_t count),                   \
      (e, w, s, decay, count))

#ifdef ISA // in a file compiled for each instruction set
// The same function needs a name for each: LOCAL(f) is f_avx512 and so on.
#define LOCAL_(name, isa) name##_##isa
#define LOCAL__(name, isa) LOCAL_(name, isa)
#define LOCAL(name) LOCAL__(name, ISA)
#define DECLARE_LOCAL(name, parameters, arguments) void LOCAL(name) parameters;
KERNELS(DECLARE_LOCAL)
#endif

#endif
