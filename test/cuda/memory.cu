// memory.cu: scratch memory against a model of it, in a random order of calls: what was taken after a mark
// goes back at its release, the rest keeps its bytes; a result that is kept moves down whole. And the copies
// of weights that in_storage() keeps: whoever writes a weight, its next product sees the new one.
#include "cuda.h"
#include "cuda/device.h"

struct Piece { // of scratch memory, filled with one number
    float *at;
    size_t count;
    float number;
};
static bool holds(const Piece &p) {
    std::vector<float> host(p.count);
    backend.download(host.data(), p.at, p.count * 4);
    for (float x : host)
        if (x != p.number) return false;
    return true;
}

static void test_scratch() {
    struct Mark {
        size_t mark, pieces;
    };
    std::vector<Piece> pieces;
    std::vector<Mark> marks = {{backend.mark(), 0}};
    int wrong = 0, overlaps = 0, misaligned = 0;
    float number = 0;
    auto take = [&](size_t count) {
        Piece p = {(float *)backend.temp(count * 4), count, ++number};
        misaligned += (uintptr_t)p.at % 256 != 0;
        for (const Piece &o : pieces) overlaps += p.at < o.at + o.count && o.at < p.at + p.count;
        backend.fill(f32(p.at), p.number, p.count);
        pieces.push_back(p);
    };
    for (int i = 0; i < 3000; i++) {
        unsigned what = test_random() % 10;
        if (what < 5) {
            size_t count = 1 + test_random() % (what ? 5000 : 400000); // of a chunk's 262144 some, or all
            if (pieces.size() < 60) take(count);
        } else if (what < 7)
            marks.push_back({backend.mark(), pieces.size()});
        else if (marks.size() > 1) {
            Mark m = marks.back();
            marks.pop_back();
            if (what < 9 || pieces.size() == m.pieces)
                backend.release(m.mark), pieces.resize(m.pieces);
            else { // of those above the mark one stays
                Piece p = pieces[m.pieces + test_random() % (pieces.size() - m.pieces)];
                p.at = (float *)backend.release_but(m.mark, p.at, p.count * 4);
                pieces.resize(m.pieces);
                for (const Piece &o : pieces) overlaps += p.at < o.at + o.count && o.at < p.at + p.count;
                pieces.push_back(p);
                wrong += !holds(p);
            }
        }
        if (i % 50 == 0)
            for (const Piece &p : pieces) wrong += !holds(p);
    }
    for (const Piece &p : pieces) wrong += !holds(p);
    backend.release(marks[0].mark);
    check(!wrong, "scratch memory keeps its bytes");
    check(!overlaps, "pieces of scratch memory do not overlap");
    check(!misaligned, "scratch memory begins at multiples of 256");
}

// Uploads follow one another faster than the device takes them.
static void test_uploads() {
    enum { COUNT = 500 };
    float *at = (float *)backend.alloc(COUNT * 4 * 16);
    for (int i = 0; i < COUNT; i++) {
        float x[16];
        for (float &v : x) v = (float)i;
        backend.upload(at + 16 * i, x, sizeof x);
    }
    std::vector<float> host(COUNT * 16);
    backend.download(host.data(), at, host.size() * 4);
    int wrong = 0;
    for (int i = 0; i < COUNT * 16; i++) wrong += host[i] != (float)(i / 16);
    check(!wrong, "uploads arrive");
    backend.free(at);
}

// y = x W^T with every element of x 1 and of W w: 64 w.
static void test_copies() {
    enum { N = 64 };
    Scratch scratch;
    Mem x = {backend.temp(N * N * 4), backend.storage}, y = f32(scratch.floats(N * N));
    Mem w = f32((float *)backend.alloc(N * N * 4)), absent = {NULL, F32};
    backend.fill(x, 1, N * N);
    auto product_is = [&](float want, const char *after) {
        backend.gemm(y, x, w, absent, absent, Gemm{N, N, N, false, true, false, 1});
        float got;
        backend.download(&got, (float *)y.at + N - 1, 4);
        check(got == N * want, after);
    };
    backend.fill(w, 2, N * N);
    product_is(2, "a weight that was filled");
    product_is(2, "the same weight again");
    std::vector<float> threes(N * N, 3.0f);
    backend.upload(w.at, threes.data(), N * N * 4);
    product_is(3, "a weight that was uploaded");
    Mem four = f32(scratch.floats(N * N));
    backend.fill(four, 4, N * N);
    backend.copy(w, four, N * N);
    product_is(4, "a weight that was copied to");
    backend.combine(w, 1, four, 1, four, 0, N * N);
    product_is(8, "a weight that was computed");
    backend.ema((float *)w.at, (const float *)four.at, NULL, 0.5f, N * N);
    product_is(6, "a weight that is a moving average");
    Gemm add = {N, N, N, false, false, true, 0.25f / N};
    backend.gemm(w, four, four, absent, absent, add);
    product_is(10, "a weight that a product was added to");
    OptimiserState begun = {1, 0, 0, 1, 1, 0};
    OptimiserState *s = (OptimiserState *)backend.alloc(sizeof begun);
    backend.upload(s, &begun, sizeof begun);
    float *m = scratch.floats(N * N), *v = scratch.floats(N * N), *g = scratch.floats(N * N);
    backend.fill(f32(m), 0, N * N), backend.fill(f32(v), 0, N * N), backend.fill(f32(g), 1, N * N);
    backend.adamw((float *)w.at, m, v, g, s, OptimiserConfig{1, 0, 0, 0, 0, 0, 0, 0, 0}, N * N);
    product_is(9, "a weight after a step of the optimiser");
    backend.fill(f32((float *)w.at + N * N / 2), 5, N * N / 2);
    product_is(5, "a weight of which a part was written");
    backend.free(w.at), backend.free(s);
}

int main() {
    backend_init(0);
    test_scratch();
    test_uploads();
    test_copies();
    return test_report();
}
