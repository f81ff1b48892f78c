// attention.cu: each step of the ladder in cuda/attention.cu, forward and backward, against attention in
// double: every size of head, numbers of queries and keys that fill no tile, the causal mask.
//
// Inputs are values of the operands' type. On tensor cores the weights of the values and the slopes of the
// scores are rounded to that type, and so is every result: one part in 2^9 (bf16) or 2^12 (fp16) each. lse is
// fp32.
#include "operand.h"
#include "cuda/attention.h"

static void compare(const char *what, const Operand &got, const Values &want, double tolerance) {
    std::vector<float> wanted(want.begin(), want.end());
    check_close(what, got.get().data(), wanted.data(), wanted.size(), tolerance);
}

struct Wanted { // in double
    Values o, lse, dq, dk, dv;
};
static Wanted attend(Attention p, const Values &q, const Values &k, const Values &v, const Values &dout,
                     const Wanted &old) {
    Wanted w = old;
    int width = p.heads * p.d;
    for (int n = 0; n < p.n; n++)
        for (int h = 0; h < p.heads; h++)
            for (int i = 0; i < p.tq; i++) {
                Values s(p.tk), dp(p.tk);
                size_t query = ((size_t)n * p.tq + i) * width + h * p.d,
                       first = (size_t)n * p.tk * width + h * p.d;
                int keys = p.causal && i + 1 < p.tk ? i + 1 : p.tk;
                double total = 0, inner = 0;
                for (int j = 0; j < keys; j++) {
                    for (int e = 0; e < p.d; e++) s[j] += q[query + e] * k[first + (size_t)j * width + e];
                    total += s[j] = exp(p.scale * s[j]);
                }
                for (int e = 0; e < p.d; e++) w.o[query + e] = 0;
                for (int j = 0; j < keys; j++) {
                    s[j] /= total;
                    for (int e = 0; e < p.d; e++) {
                        double value = v[first + (size_t)j * width + e];
                        w.o[query + e] += s[j] * value, dp[j] += dout[query + e] * value;
                    }
                    inner += s[j] * dp[j];
                }
                for (int j = 0; j < keys; j++)
                    for (int e = 0; e < p.d; e++) {
                        size_t key = first + (size_t)j * width + e;
                        double slope = p.scale * s[j] * (dp[j] - inner);
                        w.dq[query + e] += slope * k[key], w.dk[key] += slope * q[query + e];
                        w.dv[key] += s[j] * dout[query + e];
                    }
                w.lse[((size_t)n * p.heads + h) * p.tq + i] = log(total);
            }
    return w;
}

static void test(AttentionStep step, Type type, Attention p) {
    static const char *const steps[] = {"naive", "blocked", "tensor"}, *const types[] = {"f32", "f16",
                                                                                         "bf16"};
    size_t q_count = (size_t)p.n * p.tq * p.heads * p.d, k_count = (size_t)p.n * p.tk * p.heads * p.d;
    size_t rows = (size_t)p.n * p.heads * p.tq;
    Values vq = random_values(q_count), vk = random_values(k_count), vv = random_values(k_count),
           vd = random_values(q_count);
    Wanted old = {Values(q_count), Values(rows), random_values(q_count), random_values(k_count),
                  random_values(k_count)},
           want = attend(p, vq, vk, vv, vd, old);
    Operand q(type, vq), k(type, vk), v(type, vv), dout(type, vd), o(type, old.o), lse(F32, old.lse);
    Operand dq(type, old.dq), dk(type, old.dk), dv(type, old.dv);
    attention_forward(step, o.mem, (float *)lse.mem.at, q.mem, k.mem, v.mem, p);
    char what[200];
    snprintf(what, sizeof what, "%s %s, n %d, %d heads of %d, %d queries, %d keys%s", steps[step],
             types[type], p.n, p.heads, p.d, p.tq, p.tk, p.causal ? ", causal" : "");
    double tolerance = type == F32 ? 1e-5 : type == F16 ? 0x1p-10 : 0x1p-7;
    compare(what, o, want.o, tolerance);
    compare("  its lse", lse, want.lse, 1e-5);
    attention_gradients(step, dq.mem, dk.mem, dv.mem, dout.mem, q.mem, k.mem, v.mem, o.mem,
                        (float *)lse.mem.at, p);
    compare("  dq", dq, want.dq, tolerance), compare("  dk", dk, want.dk, tolerance);
    compare("  dv", dv, want.dv, tolerance);
    Mem none = {NULL, type}, gradients[] = {dq.mem, dk.mem, dv.mem};
    for (int only = 0; only < 3; only++) { // one alone: the same bits, and the others untouched
        Operand one(type, only == 0 ? old.dq : only == 1 ? old.dk : old.dv);
        attention_gradients(step, only == 0 ? one.mem : none, only == 1 ? one.mem : none,
                            only == 2 ? one.mem : none, dout.mem, q.mem, k.mem, v.mem, o.mem,
                            (float *)lse.mem.at, p);
        size_t bytes = one.value.size() * (type == F32 ? 4 : 2);
        std::vector<char> a(bytes), b(bytes);
        backend.download(a.data(), one.mem.at, bytes), backend.download(b.data(), gradients[only].at, bytes);
        check(a == b, "  a gradient alone is the same");
    }
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
        {1, 1, 31, 70, 160, 0.08f, true},
    };
    for (const Attention &p : shapes) {
        for (Type type : {F16, BF16}) test(ATTENTION_TENSOR, type, p);
        if (p.tq > 100) continue; // the types of the others differ in load() alone
        test(ATTENTION_NAIVE, F32, p), test(ATTENTION_BLOCKED, F32, p);
    }
    test(ATTENTION_BLOCKED, BF16, shapes[1]);
    Mem odd = {(void *)2, BF16}, even = {(void *)16, BF16}, other = {(void *)16, F16}, none = {NULL, F32};
    Mem mixed[][2] = {{even, odd}, {even, other}, {even, none}};
    check(!attention_tensor_fits(mixed[0], 2, shapes[0]), "an odd address is not for the tensor cores");
    check(!attention_tensor_fits(mixed[1], 2, shapes[0]), "two types are not for the tensor cores");
    check(attention_tensor_fits(mixed[2], 2, shapes[0]), "a gradient may be absent");
    Attention p = shapes[0];
    p.d = 48;
    check(!attention_tensor_fits(mixed[2], 2, p), "heads of 48 are not for the tensor cores");
    return test_report();
}
