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

// Does it lie in memory in another order than in files?
static bool reordered(const Tensor *t) { return t->dims == 4 && t->shape[1] * t->shape[2] > 1; }

// `out` output channels of such weights, numbers of `size` bytes (2, 4): files' order (out, in, kernel) to
// memory's (out, kernel, in) or back.
static void reorder(void *to, const void *from, const Tensor *t, size_t out, size_t size, bool back) {
    size_t kernel = (size_t)t->shape[1] * (size_t)t->shape[2], in = (size_t)t->shape[3];
#pragma omp parallel for
    for (size_t o = 0; o < out; o++)
        for (size_t i = 0; i < in; i++)
            for (size_t k = 0; k < kernel; k++) {
                size_t file = ((o * in + i) * kernel + k) * size, memory = ((o * kernel + k) * in + i) * size;
                char *d = (char *)to + (back ? file : memory);
                const char *s = (const char *)from + (back ? memory : file);
                if (size == 4)
                    memcpy(d, s, 4);
                else
                    memcpy(d, s, 2);
            }
}

// Element i is an infinity or a NaN: both have all bits of the exponent set.
static inline bool is_bad(const void *data, Type type, size_t i) {
    uint32_t whole, exponent = type == F32 ? 0x7f800000u : type == F16 ? 0x7c00 : 0x7f80;
    uint16_t half;
    if (type == F32) {
        memcpy(&whole, (const char *)data + 4 * i, 4);
        return (whole & exponent) == exponent;
    }
    memcpy(&half, (const char *)data + 2 * i, 2);
    return (half & exponent) == exponent;
}

// The index of the first such element, or count. A block without one, which nearly all are, is seen through
// without a branch, many elements at once.
static size_t first_bad(const void *data, Type type, size_t count) {
    enum { BLOCK = 4096 };
    size_t bad = count;
#pragma omp parallel for reduction(min : bad)
    for (size_t from = 0; from < count; from += BLOCK) {
        size_t end = from + BLOCK < count ? from + BLOCK : count, i = from;
        unsigned any = 0;
        for (size_t j = from; j < end; j++) any |= is_bad(data, type, j);
        if (!any) continue;
        while (!is_bad(data, type, i)) i++;
        if (i < bad) bad = i;
    }
    return bad;
}

enum { PIECE = 4 << 20 }; // bytes of a tensor that are read at a time

// `type`: that of the file's numbers, or BF16, to which fp32 is rounded.
static void load_one(Tensor *t, const char *name, const Stored *s, Type type) {
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
    // Some rows at a time, so that what was checked is still in a cache when it is put in order and copied.
    size_t size = s->type == F32 ? 4 : 2, rows = (size_t)t->shape[0], row = s->count / rows;
    size_t piece = PIECE / (row * size) + 1;
    void *in_order = reordered(t) || type != s->type ? xmalloc(piece * row * size) : NULL;
    param_allocate(t, type);
    for (size_t r = 0; r < rows; r += piece) {
        size_t n = r + piece < rows ? piece : rows - r, at = r * row;
        const char *from = (const char *)s->data + at * size;
        size_t bad = first_bad(from, s->type, n * row);
        if (bad < n * row)
            die("%s: tensor %s has a NaN or an infinity at element %zu", s->file, name, at + bad);
        if (reordered(t))
            reorder(in_order, from, t, n, size, false);
        else if (in_order)
            memcpy(in_order, from, n * row * size); // a file's numbers may be unaligned
        if (type == s->type)
            backend.upload((char *)t->data + at * size, in_order ? in_order : from, n * row * size);
        else // a processor's kernels see the host's memory
            backend.copy((Mem){(char *)t->data + at * 2, type}, (Mem){in_order, F32}, n * row);
    }
    free(in_order);
    store_done_with(s);
}

void params_load(const Params *p, FindStored *find, void *context, const char *where) {
    for (int i = 0; i < p->count; i++) {
        const Stored *s = find(context, p->list[i].name);
        if (!s) die("%s: tensor %s is missing", where, p->list[i].name);
        Tensor *t = p->list[i].tensor;
        bool multiplied = p->list[i].layer && t->dims > 1;
        load_one(t, p->list[i].name, s, multiplied && s->type == F32 ? backend.weights : s->type);
    }
}

void params_note_extra(const Params *p, FindStored *find, void *context, const Store *s, const char *where) {
    if (verbosity < 1) return;
    Names used = {0};
    for (int i = 0; i < p->count; i++) {
        const char *name = find(context, p->list[i].name)->name;
        names_set(&used, name, strlen(name), 0);
    }
    size_t extra = 0;
    const char *first = NULL;
    for (size_t i = 0; i < store_count(s); i++) {
        const char *name = store_at(s, i)->name;
        // Old text encoders carry the numbers 0, 1, 2, ... under this name; nothing is lost with them.
        if (strstr(name, "position_ids") || names_get(&used, name, strlen(name)) >= 0) continue;
        if (!extra++) first = name;
    }
    names_free(&used);
    if (extra == 1) note_verbose("%s: tensor %s is not of this network; ignored", where, first);
    if (extra > 1)
        note_verbose("%s: %zu tensors are not of this network, tensor %s first; ignored", where, extra,
                     first);
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
    if (!reordered(t)) return x;
    float *y = xmalloc(tensor_count(t) * sizeof(float));
    reorder(y, x, t, (size_t)t->shape[0], sizeof(float), true);
    free(x);
    return y;
}

void param_write(Tensor *t, const float *file_order) {
    if (!reordered(t)) {
        tensor_write(t, file_order);
        return;
    }
    float *x = xmalloc(tensor_count(t) * sizeof(float));
    reorder(x, file_order, t, (size_t)t->shape[0], sizeof(float), false);
    tensor_write(t, x);
    free(x);
}

void params_save(const Params *p, const char *path, size_t strip, Type type, const char *key,
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
