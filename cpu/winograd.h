// winograd.h: 3x3 convolutions of stride 1 with a quarter of the multiplications. See winograd.c.
#ifndef WINOGRAD_H
#define WINOGRAD_H

#include "gemm.h"

// True where it is the faster way, and possible.
#define winograd_suits LOCAL(winograd_suits)
bool winograd_suits(Conv p, int oh, int ow);
#define winograd LOCAL(winograd)
#define winograd_backward_input LOCAL(winograd_backward_input)
#define winograd_backward_weight LOCAL(winograd_backward_weight)
void winograd(float *y, const float *x, Mem weight, const float *bias, const float *residual, Conv p);
void winograd_backward_input(float *dx, const float *dy, Mem weight, Conv p);
void winograd_backward_weight(float *dweight, const float *dy, const float *x, Conv p);

#endif
