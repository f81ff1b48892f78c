// pointwise.h: how a kernel whose threads have nothing to do with one another is launched.
#ifndef POINTWISE_H
#define POINTWISE_H
#include "device.h"

// f.run<W>(i) computes W elements from i on. They are eight where `row` elements, which lie beside one
// another and are treated alike, come in eights, and so do the operands' addresses.
template <class F, int W> static __global__ void pointwise(F f, size_t count) {
    EACH(i, count / W) f.template run<W>(i * W);
}
template <class F>
static void run_pointwise(const char *name, F f, size_t count, size_t row, Mem a, Mem b, Mem c) {
    if (!count) return;
    bool wide = row % 8 == 0 && ((uintptr_t)a.at | (uintptr_t)b.at | (uintptr_t)c.at) % 16 == 0;
    unsigned blocks = blocks_for(wide ? count / 8 : count);
    if (wide)
        pointwise<F, 8><<<blocks, THREADS, 0, stream>>>(f, count);
    else
        pointwise<F, 1><<<blocks, THREADS, 0, stream>>>(f, count);
    check_launch(name, blocks, THREADS);
}

#endif
