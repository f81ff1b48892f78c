// made.h: made weights. A model of the real architecture whose parameters come from a counter-based
// generator, so that tests at full size need no download, and so that C and Python (test/python/made.py)
// build the same model bit for bit. What it draws is a pattern, not a scene.
#ifndef MADE_H
#define MADE_H

#include "lib/nn/nn.h"

#include <stdint.h>

typedef enum {
    MADE_SOFT, // activations near unit size, every branch of the network counts
    MADE_HARD, // what trained networks do to arithmetic: sharp attention, outlying channels, large means
} MadeRegime;

// Fills `out` (row-major, PyTorch's layout: a convolution is [out][in][kh][kw]) with the values of the tensor
// `name`: the diffusers name behind "unet.", "vae." or "text_encoder." (as in the files: transformers' own
// names begin with "text_model."), or pytorch-fid's name as it is. Names that begin with "input." give test
// inputs of unit standard deviation. ndim is 1 to 4.
void made_fill(const char *name, int ndim, const int64_t *shape, MadeRegime regime, float *out);
// The same for every parameter of a list, as `type`, under its name with `prefix` ("" or "lora.") in front.
void made_params(const Params *p, const char *prefix, MadeRegime regime, Type type);

#endif
