// params_io.c: the parameters of a model (the list in nn.h) from safetensors and back.
#include "io.h"

#include <string.h>
#include <stdlib.h>

static bool shapes_agree(const Stored *s, const int64_t *want, int dims) {
    int n = s->ndim;
    while (n > 0 && n > dims && s->shape[n - 1] == 1) n--; // (out, in, 1, 1) holds a linear layer
    if (n > dims) return false;
    for (int i = 0; i < dims; i++)
        if ((i < n ? s->shape[i] : 1) != want[i]) return false;
    return true;
}

// A convolution's weights, (out, in, kernel) -> (out, kernel, in), elements of `size` bytes (2 or 4).
static void to_memory_order(char *to, const char *from, const Tensor *t, size_t size) {
    size_t out = (size_t)t->shape[0], kernel = (size_t)t->shape[1] * (size_t)t->shape[2],
           in = (size_t)t->shape[3];
#pragma omp parallel for
    for (size_t o = 0; o < out; o++)
        for (size_t i = 0; i < in; i++)
            for (size_t k = 0; k < kernel; k++) {
                const char *s = from + ((o * in + i) * kernel + k) * size;
                char *d = to + ((o * kernel + k) * in + i) * size;
                if (size == 4)
                    memcpy(d, s, 4);
                else
                    memcpy(d, s, 2);
            }
}

// The index of the first infinity or NaN, or count. Both have all bits of the exponent set.
static size_t first_bad(const void *data, Type type, size_t count) {
    size_t bad = count, size = type == F32 ? 4 : 2;
    uint32_t exponent = type == F32 ? 0x7f800000u : type == F16 ? 0x7c00 : 0x7f80;
#pragma omp parallel for reduction(min : bad)
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = 0;
        if (size == 4)
            memcpy(&bits, (const char *)data + 4 * i, 4);
        else
            memcpy(&bits, (const char *)data + 2 * i, 2);
        if ((bits & exponent) == exponent && i < bad) bad = i;
    }
    return bad;
}

static void load_one(Tensor *t, const char *name, const Stored *s) {
    int64_t want[4];
    int dims = param_file_shape(t, want);
    if (!shapes_agree(s, want, dims)) {
        char have[200], expected[200];
        die("%s: tensor %s has the shape %s; %s is expected", s->file, name,
            shape_text(have, s->shape, s->ndim), shape_text(expected, want, dims));
    }
    if (s->type > F64) die("%s: tensor %s is neither F64, F32, F16 nor BF16", s->file, name);
    if (t->data) backend.free(t->data);
    if (s->type == F64) { // no kernel computes with it
        float *x = store_floats(s, s->file);
        param_allocate(t, F32);
        param_write(t, x);
        backend.sync();
        store_done_with(s), free(x);
        return;
    }
    size_t bad = first_bad(s->data, s->type, s->count);
    if (bad < s->count) die("%s: tensor %s has a NaN or an infinity at element %zu", s->file, name, bad);
    size_t size = s->type == F32 ? 4 : 2;
    param_allocate(t, s->type);
    if (t->dims == 4 && t->shape[1] * t->shape[2] > 1) {
        char *reordered = xmalloc(s->count * size);
        to_memory_order(reordered, s->data, t, size);
        backend.upload(t->data, reordered, s->count * size);
        backend.sync();
        free(reordered);
    } else {
        backend.upload(t->data, s->data, s->count * size);
    }
    store_done_with(s);
}

void params_load(const Params *p, FindStored *find, void *context, const char *where) {
    for (int i = 0; i < p->count; i++) {
        const Stored *s = find(context, p->list[i].name);
        if (!s) die("%s: tensor %s is missing", where, p->list[i].name);
        load_one(p->list[i].tensor, p->list[i].name, s);
    }
}

static int compare_addresses(const void *a, const void *b) {
    const Stored *x = *(const Stored *const *)a, *y = *(const Stored *const *)b;
    return (x > y) - (x < y);
}

void params_note_extra(const Params *p, FindStored *find, void *context, const Store *s, const char *where) {
    if (verbosity < 1) return;
    size_t count = (size_t)p->count, extra = 0;
    const Stored **used = xmalloc(count * sizeof *used), *first = NULL;
    for (size_t i = 0; i < count; i++) used[i] = find(context, p->list[i].name);
    qsort(used, count, sizeof *used, compare_addresses);
    for (size_t i = 0; i < store_count(s); i++) {
        const Stored *t = store_at(s, i);
        // Old text encoders carry the numbers 0, 1, 2, ... under this name; nothing is lost with them.
        if (strstr(t->name, "position_ids") || bsearch(&t, used, count, sizeof *used, compare_addresses))
            continue;
        if (!extra++) first = t;
    }
    free(used);
    if (extra == 1) note_verbose("%s: tensor %s is not of this network; ignored", where, first->name);
    if (extra > 1)
        note_verbose("%s: %zu tensors are not of this network, tensor %s first; ignored", where, extra,
                     first->name);
}

void params_to_f32(const Params *p) {
    for (int i = 0; i < p->count; i++) {
        Tensor *t = p->list[i].tensor;
        if (t->type == F32) continue;
        Mem old = mem(t);
        param_allocate(t, F32);
        backend.copy(mem(t), old, tensor_count(t));
        backend.free(old.at);
    }
}

float *param_read(const Tensor *t) {
    float *x = tensor_read(t);
    if (t->dims != 4 || t->shape[1] * t->shape[2] == 1) return x;
    size_t out = (size_t)t->shape[0], kernel = (size_t)t->shape[1] * (size_t)t->shape[2],
           in = (size_t)t->shape[3];
    float *y = xmalloc(tensor_count(t) * sizeof(float));
    for (size_t o = 0; o < out; o++)
        for (size_t k = 0; k < kernel; k++)
            for (size_t i = 0; i < in; i++) y[(o * in + i) * kernel + k] = x[(o * kernel + k) * in + i];
    free(x);
    return y;
}

void param_write(Tensor *t, const float *file_order) {
    if (t->dims != 4) {
        tensor_write(t, file_order);
        return;
    }
    float *reordered = xmalloc(tensor_count(t) * sizeof(float));
    to_memory_order((char *)reordered, (const char *)file_order, t, sizeof(float));
    tensor_write(t, reordered);
    free(reordered);
}

void params_save(const Params *p, const char *path, size_t strip, Type type) {
    params_save_with(p, path, strip, type, NULL, NULL);
}

void params_save_with(const Params *p, const char *path, size_t strip, Type type, const char *key,
                      const char *value) {
    StoreWriter *w = store_create(path);
    store_metadata_add(w, "format", "pt"); // what transformers and diffusers look for
    if (key) store_metadata_add(w, key, value);
    for (int i = 0; i < p->count; i++) {
        int64_t shape[4];
        int dims = param_file_shape(p->list[i].tensor, shape);
        store_declare(w, p->list[i].name + strip, type, dims, shape);
    }
    for (int i = 0; i < p->count; i++) {
        float *x = param_read(p->list[i].tensor);
        store_data_f32(w, x, tensor_count(p->list[i].tensor));
        free(x);
    }
    store_commit(w);
}
