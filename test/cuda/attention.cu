// attention.cu: attention on tensor cores, in both types of 16 bits, against one in double: every size of
// head, numbers of queries and keys that fill no tile, the causal mask.
//
// Inputs are values of the operands' type. The weights of the values are rounded to that type, and so is the
// result: one part in 2^9 (bf16) or 2^12 (fp16) each. lse is fp32.
#include "cuda.h"
#include "lib/nn/kernels.h"

static std::vector<double> random_values(size_t n) { // that bf16 holds
    std::vector<double> x(n);
    for (double &v : x) v = (int)(test_random() % 255 - 127) / 64.0;
    return x;
}
static Mem upload(Type type, const std::vector<double> &v) {
    std::vector<float> floats(v.begin(), v.end());
    Mem staging = {backend.alloc(v.size() * 4), F32}, x = {backend.alloc(v.size() * 2), type};
    backend.upload(staging.at, floats.data(), v.size() * 4);
    backend.copy(x, staging, v.size());
    backend.free(staging.at);
    return x;
}

static void test(Type type, Attention p) {
    size_t width = (size_t)p.heads * p.d, q_count = (size_t)p.n * p.tq * width,
           k_count = (size_t)p.n * p.tk * width;
    size_t rows = (size_t)p.n * p.heads * p.tq;
    std::vector<double> q = random_values(q_count), k = random_values(k_count), v = random_values(k_count);
    std::vector<float> want(q_count), want_lse(rows), got(q_count), got_lse(rows);
    for (int n = 0; n < p.n; n++)
        for (int h = 0; h < p.heads; h++)
            for (int i = 0; i < p.tq; i++) {
                std::vector<double> s(p.tk), sum(p.d);
                double total = 0;
                int keys = p.causal && i + 1 < p.tk ? i + 1 : p.tk;
                for (int j = 0; j < keys; j++) {
                    for (int e = 0; e < p.d; e++)
                        s[j] += q[((size_t)n * p.tq + i) * width + h * p.d + e] *
                                k[((size_t)n * p.tk + j) * width + h * p.d + e];
                    total += s[j] = exp(p.scale * s[j]);
                    for (int e = 0; e < p.d; e++)
                        sum[e] += s[j] * v[((size_t)n * p.tk + j) * width + h * p.d + e];
                }
                for (int e = 0; e < p.d; e++)
                    want[((size_t)n * p.tq + i) * width + h * p.d + e] = (float)(sum[e] / total);
                want_lse[((size_t)n * p.heads + h) * p.tq + i] = (float)log(total);
            }
    Mem mq = upload(type, q), mk = upload(type, k), mv = upload(type, v);
    Mem o = {backend.alloc(q_count * 2), type}, o32 = {backend.alloc(q_count * 4), F32};
    float *lse = (float *)backend.alloc(rows * 4);
    backend.attention(o, lse, mq, mk, mv, p);
    backend.copy(o32, o, q_count);
    backend.download(got.data(), o32.at, q_count * 4);
    backend.download(got_lse.data(), lse, rows * 4);
    char what[200];
    snprintf(what, sizeof what, "%s, n %d, %d heads of %d, %d queries, %d keys%s",
             type == F16 ? "f16" : "bf16", p.n, p.heads, p.d, p.tq, p.tk, p.causal ? ", causal" : "");
    check_close(what, got.data(), want.data(), got.size(), type == F16 ? 0x1p-10 : 0x1p-7);
    check_close("  its lse", got_lse.data(), want_lse.data(), got_lse.size(), 1e-5);
    for (void *at : {mq.at, mk.at, mv.at, o.at, o32.at, (void *)lse}) backend.free(at);
}

int main() {
    backend_init(0);
    static const Attention shapes[] = {
        // n heads tq tk d scale causal
        {1, 2, 64, 64, 40, 0.15f, false},                                     // whole tiles
        {2, 1, 70, 77, 40, 0.15f, false},                                     // a caption's keys
        {1, 1, 5, 130, 40, 0.3f, false},    {1, 2, 77, 77, 64, 0.125f, true}, // the text encoder's
        {1, 1, 130, 130, 64, 0.125f, true}, {1, 2, 33, 65, 80, 0.1f, false},
        {2, 1, 17, 77, 160, 0.08f, false},  {1, 1, 64, 31, 160, 0.08f, true},
    };
    for (const Attention &p : shapes)
        for (Type type : {F16, BF16}) test(type, p);
    return test_report();
}
