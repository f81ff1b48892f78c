// differences.c: plain's backward kernels, which define all others, against finite differences of its forward
// ones.
//
// Everything in double, so that a difference of outputs is good to 10 digits. The derivative of sum(dy y) by
// x[i] is taken from four points (error h^4 times the fifth derivative, about 1e-8 for h = 0.01); what
// plain's backward added is compared. What limits it are the fp32 statistics (stats, lse) and outputs: 2^-24,
// and an fp32 loss over h: 2^-24 / 0.01.
#include "operands.h"

static double weighted_sum(const Operand *dy, const Operand *y) {
    double sum = 0;
    for (size_t i = 0; i < y->count; i++)
        sum += value_of(dy->host, dy->type, i) * value_of(y->host, y->type, i);
    return sum;
}
#define DIFFERENCES(what, tolerance, x, dx, y, dy, forward)                                                  \
    do {                                                                                                     \
        double worst_ = 0, scale_ = 1e-30;                                                                   \
        for (size_t i_ = 0; i_ < (x)->count; i_++) {                                                         \
            double at_ = value_of((x)->host, F64, i_), h_ = 0.01, s_[5] = {0};                               \
            for (int p_ = -2; p_ <= 2; p_++) {                                                               \
                set((x), i_, at_ + p_ * h_);                                                                 \
                forward;                                                                                     \
                s_[p_ + 2] = weighted_sum((dy), (y));                                                        \
            }                                                                                                \
            set((x), i_, at_);                                                                               \
            double want_ = (8 * (s_[3] - s_[1]) - (s_[4] - s_[0])) / (12 * h_);                              \
            double d_ = fabs(want_ - value_of((dx)->host, (dx)->type, i_));                                  \
            keep_largest(&worst_, d_), keep_largest(&scale_, fabs(want_));                                   \
        }                                                                                                    \
        bool ok_ = worst_ / scale_ <= (tolerance);                                                           \
        if (ok_)                                                                                             \
            tests_passed++;                                                                                  \
        else                                                                                                 \
            tests_failed++;                                                                                  \
        printf("%-7s differences of plain's %s: error %.2g, tolerance %.0e\n", ok_ ? "ok" : "FAILED", what,  \
               worst_ / scale_, (double)(tolerance));                                                        \
    } while (0)

static void test_differences(void) {
    const double TIGHT = 1e-6, FP32_LOSS = 1e-3;
    on_host = true;
    const Conv tiny[] = {{2, 4, 5, 2, 2, 3, 3, 3, 3, 2, 1, 1}, {1, 4, 4, 2, 2, 2, 2, 3, 3, 2, 0, 0}};
    for (int i = 0; i < 2; i++) {
        Conv p = tiny[i];
        Operand *x = input("x", F64, conv_x(p)), *w = input("w", F64, conv_w(p)),
                *y = output("y", F64, conv_y(p));
        Operand *dy = input("dy", F64, conv_y(p)), *dx = zeros("dx", F64, conv_x(p)),
                *dw = zeros("dw", F32, conv_w(p));
        plain.conv2d_backward_input(M(dx), M(dy), M(w), p, true);
        plain.conv2d_backward_weight(F(dw), M(dy), M(x), p);
        DIFFERENCES("conv2d by x", TIGHT, x, dx, y, dy, plain.conv2d(M(y), M(x), M(w), M(NULL), M(NULL), p));
        DIFFERENCES("conv2d by weight", TIGHT, w, dw, y, dy,
                    plain.conv2d(M(y), M(x), M(w), M(NULL), M(NULL), p));
        clear();
    }
    for (int causal = 0; causal < 2; causal++) {
        Attention p = {2, 2, 4, 3, 3, 0.7f, causal};
        size_t nq = 2 * 4 * 6, nk = 2 * 3 * 6;
        Operand *q = input("q", F64, nq), *k = input("k", F64, nk), *v = input("v", F64, nk),
                *o = output("o", F64, nq);
        Operand *dout = input("dout", F64, nq), *lse = output("lse", F32, 2 * 2 * 4);
        Operand *dq = zeros("dq", F64, nq), *dk = zeros("dk", F64, nk), *dv = zeros("dv", F64, nk);
        plain.attention(M(o), F(lse), M(q), M(k), M(v), p);
        plain.attention_backward(M(dq), M(dk), M(dv), M(dout), M(q), M(k), M(v), M(o), F(lse), p);
        DIFFERENCES("attention by q", TIGHT, q, dq, o, dout,
                    plain.attention(M(o), F(lse), M(q), M(k), M(v), p));
        DIFFERENCES("attention by k", TIGHT, k, dk, o, dout,
                    plain.attention(M(o), F(lse), M(q), M(k), M(v), p));
        DIFFERENCES("attention by v", TIGHT, v, dv, o, dout,
                    plain.attention(M(o), F(lse), M(q), M(k), M(v), p));
        clear();
    }
    for (int silu = 0; silu < 2; silu++) {
        GroupNorm p = {2, 5, 6, 3, 1e-5f, silu};
        Operand *x = input("x", F64, 60), *gamma = input("gamma", F64, 6), *beta = input("beta", F64, 6);
        Operand *y = output("y", F64, 60), *dy = input("dy", F64, 60), *stats = output("stats", F32, 12);
        Operand *dx = zeros("dx", F64, 60), *dgamma = zeros("dgamma", F32, 6),
                *dbeta = zeros("dbeta", F32, 6);
        plain.group_norm(M(y), F(stats), M(x), M(gamma), M(beta), p);
        plain.group_norm_backward(M(dx), F(dgamma), F(dbeta), M(dy), M(x), M(gamma), M(beta), F(stats), p);
        DIFFERENCES("group_norm by x", 1e-5, x, dx, y, dy,
                    plain.group_norm(M(y), NULL, M(x), M(gamma), M(beta), p));
        DIFFERENCES("group_norm by gamma", TIGHT, gamma, dgamma, y, dy,
                    plain.group_norm(M(y), NULL, M(x), M(gamma), M(beta), p));
        DIFFERENCES("group_norm by beta", TIGHT, beta, dbeta, y, dy,
                    plain.group_norm(M(y), NULL, M(x), M(gamma), M(beta), p));
        clear();
    }
    {
        Operand *x = input("x", F64, 28), *gamma = input("gamma", F64, 7), *beta = input("beta", F64, 7);
        Operand *y = output("y", F64, 28), *dy = input("dy", F64, 28), *stats = output("stats", F32, 8);
        Operand *dx = zeros("dx", F64, 28), *dgamma = zeros("dgamma", F32, 7),
                *dbeta = zeros("dbeta", F32, 7);
        plain.layer_norm(M(y), F(stats), M(x), M(gamma), M(beta), 4, 7, 1e-5f);
        plain.layer_norm_backward(M(dx), F(dgamma), F(dbeta), M(dy), M(x), M(gamma), F(stats), 4, 7);
        DIFFERENCES("layer_norm by x", 1e-5, x, dx, y, dy,
                    plain.layer_norm(M(y), NULL, M(x), M(gamma), M(beta), 4, 7, 1e-5f));
        DIFFERENCES("layer_norm by gamma", TIGHT, gamma, dgamma, y, dy,
                    plain.layer_norm(M(y), NULL, M(x), M(gamma), M(beta), 4, 7, 1e-5f));
        DIFFERENCES("layer_norm by beta", TIGHT, beta, dbeta, y, dy,
                    plain.layer_norm(M(y), NULL, M(x), M(gamma), M(beta), 4, 7, 1e-5f));
        clear();
    }
    for (int f = SILU; f <= SQUARE; f++) {
        Operand *x = input_near("x", F64, 20, 0, 3), *y = output("y", F64, 20), *dy = input("dy", F64, 20);
        Operand *dx = zeros("dx", F64, 20);
        for (size_t i = 0; i < 20; i++) // away from RELU's corner
            if (fabs(value_of(x->host, F64, i)) < 0.03) set(x, i, 0.5);
        plain.activation_backward(M(dx), M(dy), M(x), 20, (Activation)f);
        DIFFERENCES(activations[f], TIGHT, x, dx, y, dy, plain.activation(M(y), M(x), 20, (Activation)f));
        clear();
    }
    {
        Operand *x = input("x", F64, 24), *y = output("y", F64, 12), *dy = input("dy", F64, 12),
                *dx = zeros("dx", F64, 24);
        plain.geglu_backward(M(dx), M(dy), M(x), 3, 4, true);
        DIFFERENCES("geglu", TIGHT, x, dx, y, dy, plain.geglu(M(y), M(x), 3, 4));
        clear();
    }
    {
        Operand *x = input("x", F64, 36), *y = output("y", F64, 144), *dy = input("dy", F64, 144),
                *dx = zeros("dx", F64, 36);
        plain.upsample_backward(M(dx), M(dy), 2, 3, 2, 3);
        DIFFERENCES("upsample", TIGHT, x, dx, y, dy, plain.upsample(M(y), M(x), 2, 3, 2, 3));
        clear();
    }
    for (int kind = POOL_MAX; kind <= POOL_AVERAGE; kind++) {
        Conv p = {1, 4, 5, 2, 4, 5, 2, 3, 3, 1, 1, 1};
        Operand *x = input("x", F64, 40), *y = output("y", F64, 40), *dy = input("dy", F64, 40),
                *dx = zeros("dx", F64, 40);
        for (size_t i = 0; i < 40; i++)
            set(x, i, (double)(i * 7 % 41) / 10); // no two nearer than the differences reach
        plain.pool_backward(M(dx), M(dy), M(x), p, (Pool)kind);
        DIFFERENCES("pool", TIGHT, x, dx, y, dy, plain.pool(M(y), M(x), p, (Pool)kind));
        clear();
    }
    {
        Operand *table = input("table", F64, 15), *ids = ids_below(7, 5, false), *y = output("y", F64, 21);
        Operand *dy = input("dy", F64, 21), *dtable = zeros("dtable", F32, 15);
        plain.embed_backward(F(dtable), M(dy), I(ids), 7, 3);
        DIFFERENCES("embed", TIGHT, table, dtable, y, dy, plain.embed(M(y), M(table), I(ids), 7, 3));
        clear();
    }
    for (int f = LOSS_MSE; f <= LOSS_HUBER; f++) {
        Operand *x = input("prediction", F64, 12), *target = input_near("target", F64, 12, 3, 1);
        Operand *weight = input_near("weight", F32, 3, 1, 0.5), *loss = output("loss", F32, 1);
        Operand *dloss = input_near("dloss", F32, 1, 0.7, 0), *dx = zeros("dprediction", F64, 12);
        plain.loss_backward(M(dx), F(dloss), M(x), M(target), F(weight), 3, 4, (Loss)f, 0.3f);
        DIFFERENCES("loss", FP32_LOSS, x, dx, loss, dloss,
                    plain.loss(F(loss), M(x), M(target), F(weight), 3, 4, (Loss)f, 0.3f));
        clear();
    }
    {
        Operand *x = input("x", F64, 15), *y = output("y", F64, 15), *dy = input("dy", F64, 15),
                *dx = zeros("dx", F64, 15);
        plain.log_softmax(M(y), M(x), 3, 5);
        plain.log_softmax_backward(M(dx), M(dy), M(y), 3, 5);
        DIFFERENCES("log_softmax", TIGHT, x, dx, y, dy, plain.log_softmax(M(y), M(x), 3, 5));
        clear();
    }
    {
        Operand *x = input("x", F64, 20), *ids = ids_below(5, 4, true), *loss = output("loss", F32, 1);
        Operand *dloss = input_near("dloss", F32, 1, 0.7, 0), *dx = zeros("dx", F64, 20);
        plain.pick_backward(M(dx), F(dloss), I(ids), 5, 4);
        DIFFERENCES("pick", FP32_LOSS, x, dx, loss, dloss, plain.pick(F(loss), M(x), I(ids), 5, 4));
        clear();
    }
}

int main(void) {
    backend_init(1);
    test_differences();
    return test_report();
}
