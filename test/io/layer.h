// layer.h: the smallest network that can be trained, for tests of training runs.
#ifndef IO_LAYER_H
#define IO_LAYER_H
#include "lib/nn/nn.h"

// A linear layer, 3 to 3, that learns; its weights are ones, its biases zeros.
static inline Layer *small_layer(Params *p) {
    Layer *layer = layer_linear(p, 3, 3, true, "net.layer");
    for (int i = 0; i < p->count; i++) {
        param_allocate(p->list[i].tensor, F32);
        param_trainable(p->list[i].tensor);
        backend.fill(mem(p->list[i].tensor), i == 0, tensor_count(p->list[i].tensor));
    }
    return layer;
}

// For run_block().
static inline Tensor *through_linear(const void *layer, Tensor *const *in) { return linear(in[0], layer); }

#endif
