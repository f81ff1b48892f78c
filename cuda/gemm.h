// gemm.h: the steps of the ladder in gemm.cu, for tests and timings. backend.gemm chooses one by itself.
#ifndef GEMM_H
#define GEMM_H
#include "lib/nn/kernels.h"

typedef enum { GEMM_NAIVE, GEMM_TILED, GEMM_BLOCKED, GEMM_TENSOR } GemmStep;
// As backend.gemm, by one given step.
void gemm_step(GemmStep step, Mem c, Mem a, Mem b, Mem bias, Mem residual, Gemm g);
// Whether the tensor cores can take these operands: one type for both, rows aligned to 16 bytes.
bool gemm_tensor_fits(Mem a, Mem b, Gemm g);

#endif
