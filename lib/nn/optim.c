// optim.c: AdamW over every trainable parameter, with gradient clipping, warm-up, cosine decay and a moving
// average of the weights. The arithmetic is in the kernels, and a step reads nothing back. See nn.h.
#include "nn.h"

#include <math.h>
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

// [G7] From gradients to weights: norm of all gradients, clip factor and learning rate, AdamW on each tensor.
void optimiser_step(Optimiser *o) {
    float n = (float)o->steps++, decay = o->ema_decay;
    if (o->ema_warmup) decay = fminf(decay, (1 + n) / (10 + n));
    TrainedTensor *list = xcalloc((size_t)o->count, sizeof *list), *end = list + o->count;
    for (int i = 0; i < o->count; i++) {
        Tensor *t = o->tensors[i];
        list[i] = (TrainedTensor){t->data,        o->m[i], o->v[i], t->gradient, o->ema ? o->ema[i] : NULL,
                                  tensor_count(t)};
    }
    if (backend.optimise) {
        backend.optimise(list, o->count, o->state, o->config, decay);
    } else {
        for (TrainedTensor *t = list; t < end; t++) backend.sum_square(o->state, t->g, t->count);
        backend.optimiser_begin(o->state, o->config);
        for (TrainedTensor *t = list; t < end; t++) {
            backend.adamw(t->w, t->m, t->v, t->g, o->state, o->config, t->count);
            if (t->ema) backend.ema(t->ema, t->w, o->state, decay, t->count);
        }
    }
    free(list);
}

double gradient_norm(const Params *p) {
    OptimiserState *state = backend.alloc(sizeof *state), host = {0};
    backend.upload(state, &host, sizeof host);
    for (int i = 0; i < p->count; i++) {
        Tensor *t = p->list[i].tensor;
        backend.sum_square(state, t->gradient, tensor_count(t));
        backend.fill((Mem){t->gradient, F32}, 0, tensor_count(t));
    }
    backend.download(&host, state, sizeof host);
    backend.free(state);
    return sqrt((double)host.sum_square);
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

Params optimiser_averages(const Optimiser *o) {
    Params p = {scope_memory((size_t)o->count * sizeof *p.list), o->count};
    for (int i = 0; i < o->count; i++) {
        Tensor *t = scope_memory(sizeof *t);
        *t = *o->tensors[i], t->data = o->ema[i], t->wants_grad = false;
        p.list[i] = (Parameter){o->names[i], t, NULL};
    }
    return p;
}

void optimiser_free(Optimiser *o) {
    for (int i = 0; i < o->count; i++) {
        backend.free(o->m[i]), backend.free(o->v[i]);
        if (o->ema) backend.free(o->ema[i]);
    }
    backend.free(o->state);
    free(o->tensors), free(o->names), free(o->m), free(o->v), free(o->ema), free(o);
}
