// gemm.cu: each step of the ladder in cuda/gemm.cu against a product in double, for operands transposed or
// not, odd and round shapes, and every part of the epilogue.
//
// Inputs are values of the operands' type, so the reference computes from the same. The remaining error is
// that of the fp32 sum: 1e-5 of the largest value. TF32 keeps 10 bits of each factor's mantissa. Products are
// off by up to 2^-10, sums of k of them by less than 2^-10 of the largest, because signs differ: 1e-3.
#include "operand.h"
#include "cuda/gemm.h"

static Values many_bits(size_t n) { return random_values(n, 1000, 512); } // bf16 and fp16 round them

static const char *const step_names[] = {"naive", "tiled", "blocked", "tensor"}, *const type_names[] = {
                                                                                     "f32", "f16", "bf16"};

static void test(GemmStep step, Type type, Gemm g, bool bias, bool residual) {
    Operand a(type, many_bits((size_t)g.m * g.k)), b(type, many_bits((size_t)g.k * g.n));
    Operand c(F32, many_bits((size_t)g.m * g.n)), v(F32, many_bits(g.n)),
        r(F32, many_bits((size_t)g.m * g.n));
    Mem absent = {NULL, F32};
    gemm_step(step, c.mem, a.mem, b.mem, bias ? v.mem : absent, residual ? r.mem : absent, g);
    std::vector<float> got((size_t)g.m * g.n), want(got.size());
    backend.download(got.data(), c.mem.at, got.size() * 4);
    for (int i = 0; i < g.m; i++)
        for (int j = 0; j < g.n; j++) {
            double sum = 0;
            for (int p = 0; p < g.k; p++)
                sum += a.value[g.a_transposed ? p * (size_t)g.m + i : i * (size_t)g.k + p] *
                       b.value[g.b_transposed ? j * (size_t)g.k + p : p * (size_t)g.n + j];
            sum *= g.alpha;
            if (bias) sum += v.value[j];
            size_t at = (size_t)i * g.n + j;
            if (residual) sum += r.value[at];
            if (g.add) sum += c.value[at];
            want[at] = (float)sum;
        }
    char what[200];
    snprintf(what, sizeof what, "%s %s %dx%dx%d%s%s%s%s%s", step_names[step], type_names[type], g.m, g.n, g.k,
             g.a_transposed ? " A^T" : "", g.b_transposed ? " B^T" : "", bias ? " bias" : "",
             residual ? " residual" : "", g.add ? " add" : "");
    check_close(what, got.data(), want.data(), got.size(), step == GEMM_TENSOR && type == F32 ? 1e-3 : 1e-5);
}

// Two steps in one, against the two: in fp32 the same bits, in 16 bits one rounding less in the middle.
static void compare(const char *what, Mem got, Mem want, size_t count, double tolerance) {
    size_t mark = backend.mark();
    std::vector<float> a = read(got, count), b = read(want, count);
    backend.release(mark);
    check_close(what, a.data(), b.data(), count, backend.storage == F32 ? 0 : tolerance);
}
static void fused(int m, int n, int k) {
    Type type = backend.storage;
    double rounding = type == F16 ? 0x1p-10 : 0x1p-7;
    Mem absent = {NULL, F32};
    Operand x(type, many_bits((size_t)m * k)), bias(F32, many_bits(2 * n));
    Operand w0(F32, many_bits((size_t)2 * n * k)), w1(F32, many_bits((size_t)n * k)),
        w2(type, many_bits((size_t)n * k));
    size_t mark = backend.mark(), count = (size_t)m * n;
    auto make = [&](size_t size) { return Mem{backend.temp(size * 4), type}; };
    Mem three[3] = {make(count), make(count), make(count)}, w[3] = {w0.mem, w1.mem, w2.mem},
        want = make(2 * count);
    backend.gemm_three(three, x.mem, w, m, n, k);
    for (int i = 0; i < 3; i++) {
        backend.gemm(want, x.mem, w[i], absent, absent, Gemm{m, n, k, false, true, false, 1});
        compare("one of three products", three[i], want, count, 1e-5);
    }
    Mem gated = make(count);
    backend.gemm_geglu(three[0], x.mem, w0.mem, bias.mem, m, n, k);
    backend.gemm(want, x.mem, w0.mem, bias.mem, absent, Gemm{m, 2 * n, k, false, true, false, 1});
    backend.geglu(gated, want, m, n);
    compare("a product with GEGLU", three[0], gated, count, 2 * rounding);

    Conv p = {2, 5, 7, 16, 5, 7, n, 3, 3, 1, 1, 1};
    count = (size_t)2 * 35 * n;
    Operand picture(type, many_bits(2 * 35 * 16)), weight(F32, many_bits((size_t)n * 9 * 16)),
        v(type, many_bits(2 * n));
    Mem y = make(count), two = make(count);
    backend.conv2d_vector(y, picture.mem, weight.mem, bias.mem, v.mem, p);
    backend.conv2d(two, picture.mem, weight.mem, bias.mem, absent, p);
    backend.add_vector(two, two, v.mem, 2, 35, n);
    compare("a convolution with a row a picture", y, two, count, 2 * rounding);
    backend.release(mark);
}

int main() {
    backend_init(0);
    fused(70, 48, 64), fused(130, 80, 40), fused(9, 24, 16), fused(5, 7, 3), fused(40, 320, 1040);
    static const struct {
        int m, n, k;
    } shapes[] = {{1, 1, 1},   {5, 7, 3},      {64, 64, 16}, {65, 33, 70},
                  {40, 24, 8}, {136, 136, 72}, {8, 200, 264}};
    for (int s = GEMM_NAIVE; s <= GEMM_TENSOR; s++)
        for (int type = F32; type <= BF16; type++)
            for (auto &shape : shapes)
                for (int t = 0; t < 4; t++) {
                    Gemm g = {shape.m,      shape.n, shape.k,          (t & 1) != 0,
                              (t & 2) != 0, t == 3,  t == 2 ? 0.5f : 1};
                    Mem aligned = {NULL, (Type)type};
                    if (s == GEMM_TENSOR && !gemm_tensor_fits(aligned, aligned, g)) continue;
                    if (s < GEMM_TENSOR && type == BF16 && shape.m > 64)
                        continue; // the types differ in load() alone
                    test((GemmStep)s, (Type)type, g, t % 2 == 1, t > 1);
                }
    // Few tiles and a long k: the sum is split over blocks.
    test(GEMM_BLOCKED, F32, Gemm{20, 30, 5000, true, false, true, 1}, true, false);
    Mem odd = {(void *)2, BF16};
    check(!gemm_tensor_fits(odd, odd, Gemm{64, 64, 64, false, true, false, 1}),
          "an odd address is not for the tensor cores");
    Mem even = {(void *)16, BF16};
    check(!gemm_tensor_fits(even, even, Gemm{64, 64, 60, false, true, false, 1}),
          "rows of 120 bytes are not for the tensor cores");
    return test_report();
}
