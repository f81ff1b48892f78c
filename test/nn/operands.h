// operands.h: operands of a kernel for test/nn/kernels.c and differences.c, a copy of each in two places.
#ifndef OPERANDS_H
#define OPERANDS_H
#include "test/test.h"

#include "cpu/cpu.h"
#include "lib/base.h"

// Each operand has a host copy, which plain works on, and a copy in the backend's memory. Both lie between
// guards of 0xff bytes (NaN in every type): a write outside is seen, and a read outside spoils the result.
// What is added to has guards of 0x3f bytes (near 1), because NaN and something is the same NaN.
// AddressSanitizer and the checks of cuda/build.mk (-DNO_GUARD) see both by themselves and name the line, if
// nothing of the allocation is behind the operand.
#if defined(__SANITIZE_ADDRESS__) || defined(NO_GUARD)
enum { GUARD = 0 };
#else
enum { GUARD = 64 };
#endif

typedef struct {
    const char *name;
    Type type;
    size_t count, bytes;  // bytes with guards
    char *host, *backend; // host: what plain started from and then wrote
    char *result[2];      // what the backend wrote with 1 and with 2 threads
    bool output;
    unsigned char guard; // the bytes of the guards
} Operand;

static Operand operands[24];
static int operand_count;
static bool on_host;        // which copy M() and F() mean
static bool rounded_inputs; // plain has computed the host copies from inputs of 16 bits: see expect()

static size_t size_of(Type t) { return t == F64 ? 8 : t == F16 || t == BF16 ? 2 : 4; }

static uint64_t random_state = 42;
static double noise(void) { // uniform in [-1, 1)
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(random_state >> 11) * 0x1p-52 - 1;
}

static Mem M(const Operand *o) {
    if (!o) return (Mem){0};
    return (Mem){(on_host ? o->host : o->backend) + GUARD, o->type};
}
static float *F(const Operand *o) { return M(o).at; }
static int32_t *I(const Operand *o) { return M(o).at; }

static Operand *new_operand(const char *name, Type type, size_t count, bool output) {
    if (operand_count == sizeof operands / sizeof *operands) die("test/nn/kernels.c: too many operands");
    Operand *o = &operands[operand_count++];
    *o = (Operand){.name = name, .type = type, .count = count, .output = output, .guard = 0xff};
    o->bytes = count * size_of(type) + 2 * GUARD;
    o->host = xmalloc(o->bytes);
    memset(o->host, 0xff, o->bytes);
    o->backend = backend.alloc(o->bytes);
    for (int i = 0; i < 2; i++) o->result[i] = xmalloc(o->bytes);
    return o;
}

static void clear(void) {
    for (int i = 0; i < operand_count; i++) {
        Operand *o = &operands[i];
        free(o->host);
        backend.free(o->backend);
        for (int j = 0; j < 2; j++) free(o->result[j]);
    }
    operand_count = 0;
    rounded_inputs = false;
}

static void set(Operand *o, size_t i, double value) {
    plain.copy((Mem){o->host + GUARD + i * size_of(o->type), o->type}, (Mem){&value, F64}, 1);
}
static double value_of(const char *data, Type type, size_t i) {
    double value;
    plain.copy((Mem){&value, F64}, (Mem){(void *)(data + GUARD + i * size_of(type)), type}, 1);
    return value;
}

// An input: center + range * noise. An output that must be written whole starts as NaN (the guards' bytes);
// one that is added to starts as noise.
static Operand *input_near(const char *name, Type type, size_t count, double center, double range) {
    Operand *o = new_operand(name, type, count, false);
    for (size_t i = 0; i < count; i++) set(o, i, center + range * noise());
    return o;
}
static Operand *input(const char *name, Type type, size_t count) {
    return input_near(name, type, count, 0, 1);
}
static Operand *zeros(const char *name, Type type, size_t count) {
    return input_near(name, type, count, 0, 0);
}
static Operand *output(const char *name, Type type, size_t count) {
    return new_operand(name, type, count, true);
}
static Operand *ids_below(size_t count, int limit, bool some_negative) {
    Operand *o = new_operand("ids", I32, count, false);
    for (size_t i = 0; i < count; i++) {
        int id = (int)((noise() + 1) / 2 * limit);
        if (some_negative && i % 3 == 1) id = -1;
        memcpy(o->host + GUARD + 4 * i, &id, 4);
    }
    return o;
}

static size_t conv_x(Conv p) { return (size_t)p.n * p.h * p.w * p.c; }
static size_t conv_y(Conv p) { return (size_t)p.n * p.oh * p.ow * p.oc; }
static size_t conv_w(Conv p) { return (size_t)p.oc * p.kh * p.kw * p.c; }
static const char *const activations[] = {"silu", "gelu", "quick_gelu", "relu", "exp", "square"};

#endif
