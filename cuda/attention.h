// attention.h: the steps of the ladder in attention.cu, for tests and timings. backend.attention and its
// gradient choose one by themselves.
#ifndef ATTENTION_H
#define ATTENTION_H
#include "lib/nn/kernels.h"

typedef enum { ATTENTION_NAIVE, ATTENTION_BLOCKED, ATTENTION_TENSOR } AttentionStep;
// As in kernels.h, by one given step.
void attention_forward(AttentionStep step, Mem o, float *lse, Mem q, Mem k, Mem v, Attention p);
void attention_gradients(AttentionStep step, Mem dq, Mem dk, Mem dv, Mem dout, Mem q, Mem k, Mem v, Mem o,
                         const float *lse, Attention p);
// Whether the tensor cores can take these operands: one type of 16 bits, a size of head that was compiled.
bool attention_tensor_fits(const Mem *operands, int count, Attention p);

#endif
