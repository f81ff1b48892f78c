// conv.h: the view of a picture that makes a convolution a product: one row for each output pixel, the numbers
// that it sees (kh, kw, c) beside each other.
#ifndef CONV_H
#define CONV_H

#include "gemm.h"

typedef struct {
    const float *x; // (n, h, w, c)
    int h, w, c;
    int oh, ow; // rows of the product: n oh ow
    int kh, kw, stride, pad_top, pad_left;
} Patches;

// The convolution as products; k_conv2d and its relatives choose between these and Winograd's.
#define conv_direct LOCAL(conv_direct)
#define conv_direct_backward_input LOCAL(conv_direct_backward_input)
#define conv_direct_backward_weight LOCAL(conv_direct_backward_weight)
void conv_direct(float *y, const float *x, Mem weight, const float *bias, const float *residual, Conv p);
void conv_direct_backward_input(float *dx, const float *dy, Mem weight, Conv p);
void conv_direct_backward_weight(float *dweight, const float *dy, const float *x, Conv p);

#endif
