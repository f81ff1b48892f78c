// params.c: the named parameters of a model. See nn.h.
#include "nn.h"

#include <stdlib.h>
#include <string.h>

static Tensor *declare(Params *p, char *name, int dims, const int *shape) {
    Tensor *t = xcalloc(1, sizeof *t);
    t->dims = dims;
    memcpy(t->shape, shape, (size_t)dims * sizeof(int));
    if ((p->count & (p->count - 1)) == 0) // at each power of two the room doubles
        p->list = xrealloc(p->list, (size_t)(p->count ? 2 * p->count : 1) * sizeof(Parameter));
    p->list[p->count++] = (Parameter){name, t, NULL};
    return t;
}

static Layer *layer(Params *p, char *name, int dims, const int *weight_shape, bool bias) {
    Layer *l = xcalloc(1, sizeof *l);
    l->name = name;
    l->weight = declare(p, format("%s.weight", name), dims, weight_shape);
    p->list[p->count - 1].layer = l;
    if (bias) l->bias = declare(p, format("%s.bias", name), 1, weight_shape);
    return l;
}

#define NAME_FROM_ARGS(text)                                                                                 \
    va_list args;                                                                                            \
    va_start(args, text);                                                                                    \
    char *full = vformat(text, args);                                                                        \
    va_end(args)

Layer *layer_linear(Params *p, int in, int out, bool bias, const char *name, ...) {
    NAME_FROM_ARGS(name);
    return layer(p, full, SHAPE(out, in), bias);
}

Layer *layer_conv(Params *p, int in, int out, int kh, int kw, bool bias, const char *name, ...) {
    NAME_FROM_ARGS(name);
    return layer(p, full, SHAPE(out, kh, kw, in), bias);
}

Layer *layer_norm_params(Params *p, int channels, const char *name, ...) {
    NAME_FROM_ARGS(name);
    return layer(p, full, SHAPE(channels), true);
}

Tensor *param_tensor(Params *p, int dims, const int *shape, const char *name, ...) {
    NAME_FROM_ARGS(name);
    return declare(p, full, dims, shape);
}

static uint64_t hash_place(uint64_t hash, const Tensor *t) {
    Mem m = mem(t);
    return hash_more(hash_more(hash, &m.at, sizeof m.at), &m.type, sizeof m.type);
}

uint64_t params_state(const Params *p, int first, int count, uint64_t hash) {
    for (int i = first; i < first + count; i++) {
        hash = hash_place(hash, p->list[i].tensor);
        for (Adapter *a = p->list[i].layer ? p->list[i].layer->adapters : NULL; a; a = a->next) {
            hash = hash_place(hash_place(hash, a->down), a->up);
            hash = hash_more(hash_more(hash, a->down->shape, sizeof(int)), &a->scale, sizeof a->scale);
        }
    }
    return hash;
}

static const Parameter *find(const Params *p, const char *name) {
    for (int i = 0; i < p->count; i++)
        if (!strcmp(p->list[i].name, name)) return &p->list[i];
    return NULL;
}

Tensor *params_find(const Params *p, const char *name) {
    const Parameter *found = find(p, name);
    return found ? found->tensor : NULL;
}

Layer *params_layer(const Params *p, const char *name) {
    char weight[300];
    snprintf(weight, sizeof weight, "%s.weight", name);
    const Parameter *found = find(p, weight);
    return found ? found->layer : NULL;
}

size_t params_count(const Params *p) {
    size_t n = 0;
    for (int i = 0; i < p->count; i++) n += tensor_count(p->list[i].tensor);
    return n;
}

Params params_part(const Params *all, const char *prefix) {
    size_t n = strlen(prefix);
    int from = 0, to;
    while (from < all->count && strncmp(all->list[from].name, prefix, n)) from++;
    for (to = from; to < all->count && !strncmp(all->list[to].name, prefix, n);) to++;
    return (Params){all->list + from, to - from};
}

void param_allocate(Tensor *t, Type type) {
    t->type = type;
    t->data = backend.alloc(tensor_count(t) * (type == F32 ? 4 : 2));
}

int param_file_shape(const Tensor *t, int64_t shape[4]) {
    for (int i = 0; i < t->dims; i++) shape[i] = t->shape[i];
    if (t->dims == 4) shape[1] = t->shape[3], shape[2] = t->shape[1], shape[3] = t->shape[2];
    return t->dims;
}

void param_trainable(Tensor *t) {
    if (t->type != F32) die("a parameter that is trained must be fp32");
    if (t->wants_grad) return;
    t->gradient = backend.alloc(tensor_count(t) * sizeof(float));
    backend.fill((Mem){t->gradient, F32}, 0, tensor_count(t));
    t->wants_grad = true;
}

void params_unload(const Params *p) {
    for (int i = 0; i < p->count; i++) {
        backend.free(p->list[i].tensor->data);
        p->list[i].tensor->data = NULL;
    }
}

void params_free(Params *p) {
    for (int i = 0; i < p->count; i++) {
        Tensor *t = p->list[i].tensor;
        if (p->list[i].layer) free((void *)p->list[i].layer->name);
        free(p->list[i].layer);
        if (t->data) backend.free(t->data);
        if (t->gradient) backend.free(t->gradient);
        free(p->list[i].name), free(t);
    }
    free(p->list);
    *p = (Params){0};
}
