// cuda.h: what the tests in CUDA share: arrays on the device, words compared bit by bit. Compiled by nvcc
// (and run on a GPU, or on a stand-in for its runtime) and, through cuda/emulate/launch.sed, by g++ for the
// emulator.
#ifndef TEST_CUDA_H
#define TEST_CUDA_H
#include "cuda/ptx.h"
#include "test/test.h"
#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif
#include <string>
#include <vector>

template <class T> struct Device { // an array on the device
    T *at;
    size_t count;
    Device(size_t count, int fill = 0) : count(count) {
        cudaMalloc(&at, count * sizeof(T));
        cudaMemset(at, fill, count * sizeof(T));
    }
    Device(const std::vector<T> &host) : count(host.size()) {
        cudaMalloc(&at, count * sizeof(T));
        cudaMemcpy(at, host.data(), count * sizeof(T), cudaMemcpyHostToDevice);
    }
    Device(const Device &) = delete;
    ~Device() { cudaFree(at); }
    std::vector<T> get() const {
        std::vector<T> host(count);
        cudaDeviceSynchronize();
        cudaMemcpy(host.data(), at, count * sizeof(T), cudaMemcpyDeviceToHost);
        return host;
    }
};

typedef std::vector<uint32_t> Words;

static inline void check_words(const std::string &what, const Words &got, const Words &want) {
    size_t wrong = 0, first = 0;
    for (size_t i = 0; i < want.size(); i++)
        if (got.size() != want.size() || got[i] != want[i]) {
            if (!wrong) first = i;
            wrong++;
        }
    if (wrong)
        printf("%s: %zu of %zu words differ, first [%zu]: got %08x, want %08x\n", what.c_str(), wrong,
               want.size(), first, first < got.size() ? got[first] : 0, want[first]);
    check(!wrong, what.c_str());
}

static uint32_t test_random_state = 12345;
static inline uint32_t test_random() {
    test_random_state = test_random_state * 1664525u + 1013904223u;
    return test_random_state ^ test_random_state >> 15;
}
static inline float as_float(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline uint32_t as_word(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
#endif
