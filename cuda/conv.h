// conv.h: the steps of the ladder in conv.cu, for tests and timings. backend.conv2d and its gradients choose
// one by themselves.
#ifndef CONV_H
#define CONV_H
#include "lib/nn/kernels.h"

typedef enum { CONV_NAIVE, CONV_BLOCKED, CONV_TENSOR } ConvStep;
// As in kernels.h, by one given step; 1x1 too. The residual may be a row a picture, (n, oc).
void conv_forward(ConvStep step, Mem y, Mem x, Mem weight, Mem bias, Mem residual, Conv p, bool row = false);
void conv_backward_input(ConvStep step, Mem dx, Mem dy, Mem weight, Conv p);
void conv_backward_weight(ConvStep step, float *dweight, Mem dy, Mem x, Conv p);
// Whether the tensor cores can take these operands: one type of 16 bits, channels of both in eights.
bool conv_tensor_fits(Mem a, Mem b, int channels_a, int channels_b);

#endif
