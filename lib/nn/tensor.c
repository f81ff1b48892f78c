// tensor.c: where tensors live (scopes), and the tape. See nn.h.
#include "nn.h"
#include "tape.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- host memory of a scope -------------------------------------------------------------------------------

// A stack, as the backend's scratch memory is one: the Tensor structs and small arrays of the host lie here.
// It grows by chunks, which never move. `used` counts over all chunks.
enum { CHUNK = 1 << 20 };
static struct {
    char **chunks;
    int count;
    size_t used;
} structs;

void *scope_memory(size_t bytes) {
    bytes = (bytes + 15) / 16 * 16;
    if (bytes > CHUNK) die("scope_memory: %zu bytes are more than %d", bytes, CHUNK);
    size_t in_chunk = structs.used % CHUNK;
    if (in_chunk + bytes > CHUNK) structs.used += CHUNK - in_chunk; // start a new chunk
    int chunk = (int)(structs.used / CHUNK);
    if (chunk == structs.count) {
        structs.chunks = xrealloc(structs.chunks, (size_t)(chunk + 1) * sizeof(char *));
        structs.chunks[structs.count++] = xmalloc(CHUNK);
    }
    void *p = structs.chunks[chunk] + structs.used % CHUNK;
    structs.used += bytes;
    return memset(p, 0, bytes);
}

// ---- tensors ----------------------------------------------------------------------------------------------

static size_t type_size(Type t) { return t == F16 || t == BF16 ? 2 : 4; }

size_t tensor_count(const Tensor *t) {
    size_t n = 1;
    for (int i = 0; i < t->dims; i++) n *= (size_t)t->shape[i];
    return n;
}

int tensor_cols(const Tensor *t) { return t->shape[t->dims - 1]; }
int tensor_rows(const Tensor *t) { return (int)(tensor_count(t) / (size_t)tensor_cols(t)); }

Tensor *tensor_struct(int dims, const int *shape, Type type) {
    Tensor *t = scope_memory(sizeof *t);
    t->dims = dims, t->type = type;
    memcpy(t->shape, shape, (size_t)dims * sizeof(int));
    return t;
}

Tensor *tensor_new_type(int dims, const int *shape, Type type) {
    Tensor *t = tensor_struct(dims, shape, type);
    t->place = backend.mark() + 1;
    t->data = backend.temp(tensor_count(t) * type_size(type));
    return t;
}

Tensor *tensor_new(int dims, const int *shape) { return tensor_new_type(dims, shape, backend.storage); }

Tensor *tensor_from(int dims, const int *shape, const float *host) {
    Tensor *t = tensor_new_type(dims, shape, F32);
    tensor_write(t, host);
    return t;
}

void tensor_write(Tensor *t, const float *host) {
    size_t n = tensor_count(t);
    if (t->type == F32) {
        backend.upload(t->data, host, n * sizeof(float));
        return;
    }
    size_t mark = backend.mark();
    Mem staging = {backend.temp(n * sizeof(float)), F32};
    backend.upload(staging.at, host, n * sizeof(float));
    backend.copy(mem(t), staging, n);
    backend.release(mark);
}

float *tensor_read(const Tensor *t) {
    size_t n = tensor_count(t), mark = backend.mark();
    float *host = xmalloc(n * sizeof(float));
    Mem from = mem(t);
    if (t->type != F32) {
        from = (Mem){backend.temp(n * sizeof(float)), F32};
        backend.copy(from, mem(t), n);
    }
    backend.download(host, from.at, n * sizeof(float));
    backend.release(mark);
    return host;
}

bool tensor_finite(const Tensor *t) {
    float *x = tensor_read(t);
    size_t n = tensor_count(t), i = 0;
    while (i < n && isfinite(x[i])) i++;
    free(x);
    return i == n;
}

float tensor_item(const Tensor *t) {
    float *host = tensor_read(t), value = host[0];
    free(host);
    return value;
}

// ---- gradients --------------------------------------------------------------------------------------------

// The gradients that the running backward() made. Once the operation that made a tensor is played, nobody
// reads the tensor's gradient again, and the next of its size takes its memory.
typedef struct {
    void *at;
    size_t bytes;
    bool free;
} Gradient;
static struct {
    Gradient *list;
    int count, room;
} gradients;

static void *gradient_memory(size_t bytes) {
    for (int i = gradients.count; i-- > 0;) { // the newest first: it may still be in the cache
        Gradient *g = &gradients.list[i];
        if (!g->free || g->bytes != bytes) continue;
        g->free = false;
        return g->at;
    }
    if (gradients.count == gradients.room) {
        gradients.room = gradients.room ? 2 * gradients.room : 64;
        gradients.list = xrealloc(gradients.list, (size_t)gradients.room * sizeof(Gradient));
    }
    gradients.list[gradients.count] = (Gradient){.at = backend.temp(bytes), .bytes = bytes};
    return gradients.list[gradients.count++].at;
}

// A parameter's gradient is not among them.
static void gradient_release(Tensor *t) {
    for (int i = 0; i < gradients.count; i++)
        if (gradients.list[i].at == t->gradient) gradients.list[i].free = true;
    t->gradient = NULL;
}

Mem grad_to_store(Tensor *t, bool *begun) {
    *begun = t && t->gradient; // of a parameter since it became trainable
    if (!t || !t->wants_grad) return (Mem){0};
    if (!*begun) t->gradient = gradient_memory(tensor_count(t) * type_size(t->type));
    return (Mem){t->gradient, t->type};
}

Mem grad(Tensor *t) {
    bool begun;
    Mem g = grad_to_store(t, &begun);
    if (g.at && !begun) backend.fill(g, 0, tensor_count(t));
    return g;
}

// ---- scopes -----------------------------------------------------------------------------------------------

static bool recording;

Scope scope_begin(void) { return (Scope){backend.mark(), structs.used}; }

Tensor *scope_end(Scope s, Tensor *result) {
    if (recording) return result;
    if (!result) {
        backend.release(s.data), structs.used = s.structs;
        return NULL;
    }
    Tensor old = *result; // a copy, because the struct lies above the mark and its memory is used again below
    structs.used = s.structs;
    Tensor *up = tensor_struct(old.dims, old.shape, old.type);
    up->data = old.data, up->place = old.place;
    if (old.place && old.place <= s.data) // it is older than the scope: a residual that became a sum
        backend.release(s.data);
    else {
        up->data = backend.release_but(s.data, old.data, tensor_count(&old) * type_size(old.type));
        up->place = s.data + 1;
    }
    return up;
}

void tensor_keep(Tensor **slot, const Tensor *t) {
    if (!*slot) {
        *slot = xcalloc(1, sizeof **slot);
        (*slot)->dims = t->dims;
        memcpy((*slot)->shape, t->shape, sizeof t->shape);
        param_allocate(*slot, t->type);
    }
    backend.copy(mem(*slot), mem(t), tensor_count(t));
}

void tensor_discard(Tensor *kept) {
    if (kept) backend.free(kept->data);
    free(kept);
}

// ---- the tape ---------------------------------------------------------------------------------------------

static struct {
    Record *list;
    int count, room;
    Record *played; // what backward() began with, for tape_first_nan()
    int played_count;
} tape;
static Scope tape_scope;
static bool muted;

bool checkpointing;

void tape_begin(void) {
    tape_scope = scope_begin();
    tape.count = gradients.count = 0;
    recording = !muted;
}

void tape_end(void) {
    recording = false;
    tape.count = 0;
    scope_end(tape_scope, NULL);
}

void tape_mute(bool mute) { muted = mute; }

bool tape_pause(void) {
    bool was = recording;
    recording = false;
    return was;
}

void tape_resume(bool state) { recording = state; }

// [G2] An operation's record is noted while the tape records. If no tape records or no input wants a
// gradient, nothing is kept, and the operation costs no more than its forward.
Tensor *record_as(const char *operation, Record r) {
    bool wanted = false;
    for (int i = 0; i < RECORD_INPUTS; i++) wanted |= r.in[i] && r.in[i]->wants_grad;
    if (!recording || !wanted) return r.out;
    r.in_place = r.out->wants_grad;
    r.out->wants_grad = true;
    if (tape.count == tape.room) {
        tape.room = tape.room ? 2 * tape.room : 1024;
        tape.list = xrealloc(tape.list, (size_t)tape.room * sizeof(Record));
    }
    r.operation = operation;
    tape.list[tape.count++] = r;
    return r.out;
}

bool is_recording(void) { return recording; }

// See tape_first_nan().
static bool looking_for_nan;
static FirstNan first_nan;

static void found_nan(const Record *r, bool in_backward) {
    if (first_nan.operation) return;
    first_nan = (FirstNan){.operation = r->operation, .backward = in_backward};
    for (int i = 1; i < RECORD_INPUTS; i++) first_nan.inputs[i - 1] = r->in[i];
}

static void check_gradients(const Record *r) {
    for (int i = 0; i < RECORD_INPUTS; i++) {
        const Tensor *t = r->in[i];
        if (!t || !t->gradient || t->gradient == t->data) continue;
        Tensor gradient = *t;
        gradient.data = t->gradient;
        if (!tensor_finite(&gradient)) found_nan(r, true);
    }
}

// [G4] Plays the records above `from` in reverse. Each is taken off before it is played, because the backward
// of a checkpointed block puts new ones in its place.
static void play_back(int from) {
    while (tape.count > from) {
        Record r = tape.list[--tape.count];
        if (!r.out->gradient) continue; // no gradient arrived: the loss does not depend on it
        r.backward(&r);
        if (looking_for_nan) check_gradients(&r);
        if (!r.in_place) gradient_release(r.out); // else the record that made it is yet to come
    }
}

// [G5] d loss / d loss = 1, and from there back.
void backward(Tensor *loss) {
    bool was = tape_pause();
    tape.played = xrealloc(tape.played, (size_t)tape.count * sizeof(Record) + 1);
    memcpy(tape.played, tape.list, (size_t)tape.count * sizeof(Record));
    tape.played_count = tape.count;
    if (loss->wants_grad) backend.fill(grad(loss), 1, 1);
    play_back(0);
    tape_resume(was);
}

FirstNan tape_first_nan(Tensor *loss) {
    bool was = tape_pause();
    first_nan = (FirstNan){0};
    for (int i = 0; i < tape.played_count; i++)
        if (!tensor_finite(tape.played[i].out)) found_nan(&tape.played[i], false);
    if (!first_nan.operation) { // it is in a gradient: play everything again and check after each operation
        memcpy(tape.list, tape.played, (size_t)tape.played_count * sizeof(Record));
        tape.count = tape.played_count;
        backend.fill(grad(loss), 1, 1);
        looking_for_nan = true;
        play_back(0);
        looking_for_nan = false;
    }
    tape_resume(was);
    return first_nan;
}

// ---- blocks and gradient checkpointing --------------------------------------------------------------------

// [G6] A block that kept only its result runs again and records. Then its records are played at once.
static void block_backward(Record *r) {
    for (int i = 0; i < RECORD_INPUTS; i++) grad(r->in[i]); // made here, because they outlive the scope below
    Scope s = scope_begin();
    int from = tape.count, outer = gradients.count;
    recording = true;
    Tensor *again = r->block(r->layer, r->in);
    recording = false;
    again->gradient = r->out->gradient;
    play_back(from);
    gradients.count = outer; // those made since go with the scope
    scope_end(s, NULL);
}

// What lies on the stack from here on was made by the block that runs now.
static size_t block_begin = SIZE_MAX;

bool in_block(const Tensor *t) { return t->place > block_begin; }

static Tensor *run_in(Scope s, Block *f, const void *layer, Tensor *const *in) {
    size_t outer = block_begin;
    block_begin = s.data;
    Tensor *out = f(layer, in);
    block_begin = outer;
    return scope_end(s, out);
}

Tensor *run_block_over(Block *f, const void *layer, Tensor *x) {
    Tensor *in[] = {x, NULL}; // for a block of two inputs, too, if it needs no second one
    Scope s = scope_begin();
    if (recording || !x->place) return run_block(f, layer, in, 1);
    s.data = x->place - 1;
    return run_in(s, f, layer, in);
}

// A checkpointed block is always recorded: its parameters may want gradients even if none of its inputs does.
Tensor *run_block(Block *f, const void *layer, Tensor *const *in, int in_count) {
    bool was = recording, keep_only_result = recording && checkpointing;
    if (keep_only_result) recording = false;
    Tensor *out = run_in(scope_begin(), f, layer, in);
    recording = was;
    if (!keep_only_result) return out;
    Record r = {.backward = block_backward, .out = out, .block = f, .layer = layer};
    memcpy(r.in, in, (size_t)in_count * sizeof *in);
    bool any = false;
    for (int i = 0; i < in_count; i++) any |= in[i] && in[i]->wants_grad;
    if (any) return record(r);
    static Tensor always = {.wants_grad = true}; // stands in for the parameters
    r.in[RECORD_INPUTS - 1] = &always;
    always.gradient = always.data = &always;
    return record(r);
}

// ---- what comes again -------------------------------------------------------------------------------------

// linear_once(): the products of the caption that `constant` names.
static struct {
    const Tensor *x;
    const Layer **layers;
    Tensor **products;
    size_t count;
} constant;

void constant_begin(const Tensor *x) { constant.x = x; }

void constant_end(void) {
    while (constant.count) tensor_discard(constant.products[--constant.count]);
    constant.x = NULL;
}

Tensor *linear_once(Tensor *x, const Layer *l) {
    if (is_recording() || x != constant.x) return linear(x, l);
    size_t n = constant.count;
    for (size_t i = 0; i < n; i++)
        if (constant.layers[i] == l) return constant.products[i];
    constant.layers = xrealloc(constant.layers, (n + 1) * sizeof *constant.layers);
    constant.products = xrealloc(constant.products, (n + 1) * sizeof *constant.products);
    Tensor *y = linear(x, l);
    constant.layers[n] = l, constant.products[n] = NULL;
    tensor_keep(&constant.products[constant.count++], y);
    return y;
}

static uint64_t hash_tensor(uint64_t hash, const Tensor *t) {
    hash = hash_more(hash_more(hash, &t->data, sizeof t->data), &t->type, sizeof t->type);
    return hash_more(hash, t->shape, (size_t)t->dims * sizeof(int));
}

Tensor *run_repeated(Tensor *y, Block *f, const void *layer, uint64_t state, Tensor *const *in,
                     int in_count) {
    if (recording) return f(layer, in);
    Scope s = scope_begin();
    uint64_t key = hash_tensor(hash_more(state, &s.data, sizeof s.data), y);
    for (int i = 0; i < in_count; i++) key = hash_tensor(key, in[i]);
    bool as_one = backend.replay && !trace_sink; // a sink reads every block's result
    if (!as_one || !backend.replay(key)) {
        if (as_one) backend.begin(key);
        backend.copy(mem(y), mem(f(layer, in)), tensor_count(y));
        if (as_one) backend.end();
    }
    scope_end(s, NULL);
    return y;
}

// ---- trace ------------------------------------------------------------------------------------------------

TraceSink *trace_sink;

Tensor *trace(Tensor *t, const char *name, ...) {
    if (!trace_sink) return t;
    char full[256];
    va_list args;
    va_start(args, name);
    vsnprintf(full, sizeof full, name, args);
    va_end(args);
    trace_sink(full, t);
    return t;
}
