// optim.c: AdamW with clipping, warm-up and cosine, and the moving average of the weights, over every trainable
// parameter. The arithmetic is in the kernels; nothing is read back within a step. See nn.h.
#include "nn.h"

#include <stdlib.h>
#include <string.h>

static float *zeros(size_t count) {
    float *at = backend.alloc(count * sizeof(float));
    backend.fill((Mem){at, F32}, 0, count);
    return at;
}

Optimiser *optimiser_new(OptimiserConfig c, float ema_decay, const Params *const *models, int model_count) {
    Optimiser *o = xcalloc(1, sizeof *o);
    o->config = c, o->ema_decay = ema_decay;
    for (int m = 0; m < model_count; m++)
        for (int i = 0; i < models[m]->count; i++) o->count += models[m]->list[i].tensor->wants_grad;
    size_t n = (size_t)o->count;
    o->tensors = xcalloc(n, sizeof *o->tensors), o->names = xcalloc(n, sizeof *o->names);
    o->m = xcalloc(n, sizeof *o->m), o->v = xcalloc(n, sizeof *o->v);
    if (ema_decay > 0) o->ema = xcalloc(n, sizeof *o->ema);
    int at = 0;
    for (int m = 0; m < model_count; m++)
        for (int i = 0; i < models[m]->count; i++) {
            Tensor *t = models[m]->list[i].tensor;
            if (!t->wants_grad) continue;
            size_t count = tensor_count(t);
            o->tensors[at] = t, o->names[at] = models[m]->list[i].name;
            o->m[at] = zeros(count), o->v[at] = zeros(count);
            if (o->ema) {
                o->ema[at] = backend.alloc(count * sizeof(float));
                backend.copy((Mem){o->ema[at], F32}, mem(t), count);
            }
            at++;
        }
    o->state = backend.alloc(sizeof *o->state);
    OptimiserState start = {0};
    backend.upload(o->state, &start, sizeof start);
    return o;
}

// [G7] From gradients to weights: the norm of all gradients, then clip factor and rate, then AdamW on each tensor.
void optimiser_step(Optimiser *o) {
    for (int i = 0; i < o->count; i++)
        backend.sum_square(o->state, o->tensors[i]->gradient, tensor_count(o->tensors[i]));
    backend.optimiser_begin(o->state, o->config);
    float n = (float)o->steps++, decay = o->ema_decay;
    if (o->ema_warmup && (1 + n) / (10 + n) < decay) decay = (1 + n) / (10 + n);
    for (int i = 0; i < o->count; i++) {
        Tensor *t = o->tensors[i];
        backend.adamw(t->data, o->m[i], o->v[i], t->gradient, o->state, o->config, tensor_count(t));
        if (o->ema) backend.ema(o->ema[i], t->data, o->state, decay, tensor_count(t));
    }
}

OptimiserState optimiser_read(const Optimiser *o) {
    OptimiserState s;
    backend.download(&s, o->state, sizeof s);
    return s;
}

void optimiser_swap_ema(Optimiser *o) {
    if (!o->ema) return;
    for (int i = 0; i < o->count; i++) {
        void *weights = o->tensors[i]->data;
        o->tensors[i]->data = o->ema[i];
        o->ema[i] = weights;
    }
}

void optimiser_free(Optimiser *o) {
    for (int i = 0; i < o->count; i++) {
        backend.free(o->m[i]), backend.free(o->v[i]);
        if (o->ema) backend.free(o->ema[i]);
    }
    backend.free(o->state);
    free(o->tensors), free(o->names), free(o->m), free(o->v), free(o->ema), free(o);
}
