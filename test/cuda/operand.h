// operand.h: a kernel's operands on the device, for tests that compute the same in double. See cuda.h.
#ifndef TEST_OPERAND_H
#define TEST_OPERAND_H
#include "cuda.h"
#include "lib/nn/kernels.h"

typedef std::vector<double> Values;

// n multiples of 1 / unit, up to most / unit.
static inline Values random_values(size_t n, int most, double unit) {
    Values x(n);
    for (double &v : x) v = ((int)(test_random() % (2 * most + 1)) - most) / unit;
    return x;
}
static inline Values random_values(size_t n) { return random_values(n, 127, 64); } // that bf16 holds

static inline std::vector<float> read(Mem x, size_t count) {
    Mem floats = {backend.alloc(count * 4), F32};
    std::vector<float> host(count);
    backend.copy(floats, x, count);
    backend.download(host.data(), floats.at, count * 4);
    backend.free(floats.at);
    return host;
}

struct Operand {
    Mem mem;
    Values value; // what its type holds
    Operand(Type type, const Values &v) : value(v) {
        std::vector<float> floats(v.begin(), v.end());
        Mem staging = {backend.alloc(v.size() * 4), F32};
        backend.upload(staging.at, floats.data(), v.size() * 4);
        mem = Mem{backend.alloc(v.size() * (type == F32 ? 4 : 2)), type};
        backend.copy(mem, staging, v.size());
        backend.free(staging.at);
        floats = get(), value.assign(floats.begin(), floats.end());
    }
    std::vector<float> get() const { return read(mem, value.size()); }
    ~Operand() { backend.free(mem.at); }
};

#endif
