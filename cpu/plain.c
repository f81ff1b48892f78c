// plain.c: every kernel of lib/nn/kernels.h as the simplest loops that are right. This file defines what the
// kernels compute: `make plain` links it, for stepping through a model in a debugger, and every faster kernel
// is compared with it. It is not fast and does not try to be. Memory is in memory.c.
//
// Functions stand in the order of kernels.h, each with its formula above it; under a forward stands its
// backward, which quotes the line that it differentiates. `dx` is the derivative of the loss by x; gradients
// are added to what is there. Sums run in double and are rounded once, so an error found is the other's.
#include "cpu.h"
#include "lib/base.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- elements in memory ----------------------------------------------------------------------------------
//
// Everything below reads and writes operands through get(), put() and add(): no kernel knows of types.

// fp16: a sign, 5 bits of exponent (bias 15), 10 bits of fraction. fp32: 8 bits (bias 127), 23 bits.
static float from_f16(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 0) return (sign ? -0x1p-24f : 0x1p-24f) * (float)fraction; // zero, or subnormal
    uint32_t bits = exponent == 31 ? sign | 0x7f800000 | fraction << 13        // infinity, or NaN
                                   : sign | (exponent + 112) << 23 | fraction << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// The value is a whole number of quanta; a quantum is 2^(exponent - 10), and no less than 2^-24. rint()
// rounds that number to nearest even. A full 11 bits carry into the exponent by themselves.
static uint16_t to_f16(float value) {
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    if (isnan(value)) return sign | 0x7e00;
    double size = fabs((double)value);
    if (size >= 65520) return sign | 0x7c00; // nearer to 2^16 than to the largest, 65504: infinity
    int exponent = size < 0x1p-14 ? -14 : ilogb(size);
    int quanta = (int)rint(ldexp(size, 10 - exponent));
    return (uint16_t)(sign | ((exponent + 14) * 1024 + quanta));
}

// bf16 is the upper half of an fp32. Adding just under half of the last place (or half, where the number is
// odd) before cutting rounds to nearest even.
static float from_bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (isnan(value)) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// x[i]. F64 is nobody's storage; test/nn/kernels.c uses it to compare derivatives with differences.
static double get(Mem x, size_t i) {
    switch (x.type) {
    case F32: return ((const float *)x.at)[i];
    case F16: return from_f16(((const uint16_t *)x.at)[i]);
    case BF16: return from_bf16(((const uint16_t *)x.at)[i]);
    case F64: return ((const double *)x.at)[i];
    default: die("plain.c: operands are F32, F16 or BF16, not type %d", (int)x.type);
    }
}

// y[i] = value
static void put(Mem y, size_t i, double value) {
    switch (y.type) {
    case F32: ((float *)y.at)[i] = (float)value; break;
    case F16: ((uint16_t *)y.at)[i] = to_f16((float)value); break;
    case BF16: ((uint16_t *)y.at)[i] = to_bf16((float)value); break;
    case F64: ((double *)y.at)[i] = value; break;
    default: die("plain.c: operands are F32, F16 or BF16, not type %d", (int)y.type);
    }
}

// y[i] += value, where y is a gradient; an absent one is not wanted.
static void add(Mem y, size_t i, double value) {
    if (y.at) put(y, i, get(y, i) + value);
}

// Where element (a, b, c, d) of an array (., nb, nc, nd) lies; a = 0 where there are only three indices.
static size_t at4(int a, int b, int nb, int c, int nc, int d, int nd) {
    return (((size_t)a * nb + b) * nc + c) * nd + d;
}

// y[i] = value
static void fill(Mem y, float value, size_t count) {
    for (size_t i = 0; i < count; i++) put(y, i, value);
}

// y[i] = x[i]
static void copy(Mem y, Mem x, size_t count) {
    for (size_t i = 0; i < count; i++) put(y, i, get(x, i));
}

// ---- products --------------------------------------------------------------------------------------------

// [T13] c[i, j] = alpha sum_p a[i, p] b[p, j] (+ c[i, j]) (+ bias[j]) (+ residual[i, j])
static void gemm(Mem c, Mem a, Mem b, Mem bias, Mem residual, Gemm g) {
    size_t m = (size_t)g.m, n = (size_t)g.n, k = (size_t)g.k;
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            double sum = 0;
            for (size_t p = 0; p < k; p++)
                sum += get(a, g.a_transposed ? p * m + i : i * k + p) *
                       get(b, g.b_transposed ? j * k + p : p * n + j);
            sum *= g.alpha;
            if (g.add) sum += get(c, i * n + j);
            if (bias.at) sum += get(bias, j);
            if (residual.at) sum += get(residual, i * n + j);
            put(c, i * n + j, sum);
        }
}

// The input row (or column) that output row i sees through row ki of the kernel, or -1 where it is outside.
static int seen(int i, int ki, int stride, int pad, int size) {
    int y = i * stride - pad + ki;
    return y >= 0 && y < size ? y : -1;
}
// The other way round: the output row that sees input row y through row ki of the kernel, or -1.
static int sees(int y, int ki, int stride, int pad, int out_size) {
    int i = y + pad - ki;
    return i >= 0 && i % stride == 0 && i / stride < out_size ? i / stride : -1;
}

// y[n, i, j, o] = sum_{ki, kj, c} x[n, i stride - pad_top + ki, j stride - pad_left + kj, c] weight[o, ki,
// kj, c]
//                 (+ bias[o]) (+ residual[n, i, j, o])
static void conv2d(Mem y, Mem x, Mem weight, Mem bias, Mem residual, Conv p) {
    for (int n = 0; n < p.n; n++)
        for (int i = 0; i < p.oh; i++)
            for (int j = 0; j < p.ow; j++)
                for (int o = 0; o < p.oc; o++) {
                    size_t out = at4(n, i, p.oh, j, p.ow, o, p.oc);
                    double sum = 0;
                    if (bias.at) sum += get(bias, o);
                    if (residual.at) sum += get(residual, out);
                    for (int ki = 0; ki < p.kh; ki++)
                        for (int kj = 0; kj < p.kw; kj++) {
                            int row = seen(i, ki, p.stride, p.pad_top, p.h);
                            int col = seen(j, kj, p.stride, p.pad_left, p.w);
                            if (row < 0 || col < 0) continue;
                            size_t from = at4(n, row, p.h, col, p.w, 0, p.c);
                            size_t tap = at4(o, ki, p.kh, kj, p.kw, 0, p.c);
                            for (int c = 0; c < p.c; c++) sum += get(x, from + c) * get(weight, tap + c);
                        }
                    put(y, out, sum);
                }
}

// y[n, i, j, o] += x[n, row, col, c] weight[o, ki, kj, c]
// dx[n, row, col, c] = or += sum_{ki, kj, o} dy[n, i, j, o] weight[o, ki, kj, c], for all (i, j) that saw it
static void conv2d_backward_input(Mem dx, Mem dy, Mem weight, Conv p, bool add) {
    for (int n = 0; n < p.n; n++)
        for (int row = 0; row < p.h; row++)
            for (int col = 0; col < p.w; col++)
                for (int c = 0; c < p.c; c++) {
                    double sum = 0;
                    for (int ki = 0; ki < p.kh; ki++)
                        for (int kj = 0; kj < p.kw; kj++) {
                            int i = sees(row, ki, p.stride, p.pad_top, p.oh);
                            int j = sees(col, kj, p.stride, p.pad_left, p.ow);
                            if (i < 0 || j < 0) continue;
                            size_t out = at4(n, i, p.oh, j, p.ow, 0, p.oc);
                            for (int o = 0; o < p.oc; o++)
                                sum += get(dy, out + o) * get(weight, at4(o, ki, p.kh, kj, p.kw, c, p.c));
                        }
                    size_t at = at4(n, row, p.h, col, p.w, c, p.c);
                    put(dx, at, (add ? get(dx, at) : 0) + sum);
                }
}

// y[n, i, j, o] += x[n, row, col, c] weight[o, ki, kj, c]
// dweight[o, ki, kj, c] += sum_{n, i, j} dy[n, i, j, o] x[n, row, col, c]
static void conv2d_backward_weight(float *dweight, Mem dy, Mem x, Conv p) {
    if (!dweight) return;
    for (int o = 0; o < p.oc; o++)
        for (int ki = 0; ki < p.kh; ki++)
            for (int kj = 0; kj < p.kw; kj++)
                for (int c = 0; c < p.c; c++) {
                    double sum = 0;
                    for (int n = 0; n < p.n; n++)
                        for (int i = 0; i < p.oh; i++)
                            for (int j = 0; j < p.ow; j++) {
                                int row = seen(i, ki, p.stride, p.pad_top, p.h);
                                int col = seen(j, kj, p.stride, p.pad_left, p.w);
                                if (row < 0 || col < 0) continue;
                                sum += get(dy, at4(n, i, p.oh, j, p.ow, o, p.oc)) *
                                       get(x, at4(n, row, p.h, col, p.w, c, p.c));
                            }
                    dweight[at4(o, ki, p.kh, kj, p.kw, c, p.c)] += (float)sum;
                }
}

// y[g, c] += sum_r x[g, r, c]
static void sum_rows(Mem y, Mem x, int groups, int rows, int cols) {
    for (int g = 0; g < groups; g++)
        for (int c = 0; c < cols; c++) {
            double sum = 0;
            for (int r = 0; r < rows; r++) sum += get(x, at4(0, g, groups, r, rows, c, cols));
            add(y, (size_t)g * cols + c, sum);
        }
}

// Where row t of head `head` of picture n begins in an array (n, length, heads d).
static size_t head_row(Attention p, int n, int t, int length, int head) {
    return at4(n, t, length, head, p.heads, 0, p.d);
}
// q_i . k_j, for rows of d elements that begin at i in q and at j in k.
static double dot(Mem q, size_t i, Mem k, size_t j, int d) {
    double sum = 0;
    for (int e = 0; e < d; e++) sum += get(q, i + e) * get(k, j + e);
    return sum;
}
static int keys_seen(Attention p, int i) { return p.causal && i + 1 < p.tk ? i + 1 : p.tk; }

// s_ij = scale q_i . k_j    lse_i = log sum_j exp(s_ij)    P_ij = exp(s_ij - lse_i)    o_i = sum_j P_ij v_j
static void attention(Mem o, float *lse, Mem q, Mem k, Mem v, Attention p) {
    double *s = xmalloc(sizeof *s * (size_t)p.tk);
    for (int n = 0; n < p.n; n++)
        for (int h = 0; h < p.heads; h++)
            for (int i = 0; i < p.tq; i++) {
                int keys = keys_seen(p, i);
                size_t qi = head_row(p, n, i, p.tq, h);
                double largest = -INFINITY, sum = 0;
                for (int j = 0; j < keys; j++) {
                    s[j] = p.scale * dot(q, qi, k, head_row(p, n, j, p.tk, h), p.d);
                    largest = fmax(largest, s[j]);
                }
                for (int j = 0; j < keys; j++) sum += exp(s[j] - largest); // so that exp() does not overflow
                double log_sum = largest + log(sum);
                if (lse) lse[at4(0, n, p.n, h, p.heads, i, p.tq)] = (float)log_sum;
                for (int j = 0; j < keys; j++) s[j] = exp(s[j] - log_sum);
                for (int e = 0; e < p.d; e++) {
                    double mix = 0;
                    for (int j = 0; j < keys; j++) mix += s[j] * get(v, head_row(p, n, j, p.tk, h) + e);
                    put(o, qi + e, mix);
                }
            }
    free(s);
}

// o_i = sum_j P_ij v_j            dv_j += sum_i P_ij dout_i     dP_ij = dout_i . v_j
// P_ij = exp(s_ij - lse_i)        ds_ij = P_ij (dP_ij - sum_l P_il dP_il), and that sum is dout_i . o_i
// s_ij = scale q_i . k_j          dq_i += scale sum_j ds_ij k_j     dk_j += scale sum_i ds_ij q_i
// Here P and ds (tq, tk) of one head are stored; the fast kernels make them anew where they need them.
static void attention_backward(Mem dq, Mem dk, Mem dv, Mem dout, Mem q, Mem k, Mem v, Mem o, const float *lse,
                               Attention p) {
    size_t tk = (size_t)p.tk;
    double *P = xmalloc(sizeof *P * (size_t)p.tq * tk), *ds = xmalloc(sizeof *ds * (size_t)p.tq * tk);
    for (int n = 0; n < p.n; n++)
        for (int h = 0; h < p.heads; h++) {
            for (int i = 0; i < p.tq; i++) {
                size_t qi = head_row(p, n, i, p.tq, h);
                double dout_o = dot(dout, qi, o, qi, p.d), lse_i = lse[at4(0, n, p.n, h, p.heads, i, p.tq)];
                for (int j = 0; j < p.tk; j++) {
                    size_t kj = head_row(p, n, j, p.tk, h);
                    bool visible = j < keys_seen(p, i);
                    P[i * tk + j] = visible ? exp(p.scale * dot(q, qi, k, kj, p.d) - lse_i) : 0;
                    ds[i * tk + j] = visible ? P[i * tk + j] * (dot(dout, qi, v, kj, p.d) - dout_o) : 0;
                }
            }
            for (int i = 0; i < p.tq; i++)
                for (int e = 0; e < p.d; e++) {
                    double sum = 0;
                    for (int j = 0; j < p.tk; j++)
                        sum += ds[i * tk + j] * get(k, head_row(p, n, j, p.tk, h) + e);
                    add(dq, head_row(p, n, i, p.tq, h) + e, p.scale * sum);
                }
            for (int j = 0; j < p.tk; j++)
                for (int e = 0; e < p.d; e++) {
                    size_t kj = head_row(p, n, j, p.tk, h) + e;
                    double sum_k = 0, sum_v = 0;
                    for (int i = 0; i < p.tq; i++) {
                        size_t qi = head_row(p, n, i, p.tq, h) + e;
                        sum_k += ds[i * tk + j] * get(q, qi);
                        sum_v += P[i * tk + j] * get(dout, qi);
                    }
                    add(dk, kj, p.scale * sum_k);
                    add(dv, kj, sum_v);
                }
        }
    free(P);
    free(ds);
}

// ---- norms -----------------------------------------------------------------------------------------------

static double square(double x) { return x * x; }
static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double silu_slope(double x) { return sigmoid(x) * (1 + x * (1 - sigmoid(x))); }

// Over the hw pixels and the c / groups channels of group g of picture n:
// mean = average of x     rstd = 1 / sqrt(average of (x - mean)^2 + eps)
// y = f(gamma[c] (x - mean) rstd + beta[c]), f(z) = z or silu(z)
static void group_norm(Mem y, float *stats, Mem x, Mem gamma, Mem beta, GroupNorm p) {
    int size = p.c / p.groups; // channels of a group
    double count = (double)p.hw * size;
    for (int n = 0; n < p.n; n++)
        for (int g = 0; g < p.groups; g++) {
            double mean = 0, variance = 0; // two passes: the mean may be large against the standard deviation
            for (int r = 0; r < p.hw; r++)
                for (int c = g * size; c < (g + 1) * size; c++)
                    mean += get(x, at4(0, n, p.n, r, p.hw, c, p.c)) / count;
            for (int r = 0; r < p.hw; r++)
                for (int c = g * size; c < (g + 1) * size; c++)
                    variance += square(get(x, at4(0, n, p.n, r, p.hw, c, p.c)) - mean) / count;
            double rstd = 1 / sqrt(variance + p.eps);
            for (int r = 0; r < p.hw; r++)
                for (int c = g * size; c < (g + 1) * size; c++) {
                    size_t i = at4(0, n, p.n, r, p.hw, c, p.c);
                    double z = get(gamma, c) * (get(x, i) - mean) * rstd + get(beta, c);
                    put(y, i, p.silu ? z * sigmoid(z) : z);
                }
            size_t at = ((size_t)n * p.groups + g) * 2;
            if (stats) stats[at] = (float)mean, stats[at + 1] = (float)rstd;
        }
}

// z = gamma xhat + beta, y = f(z)     dz = dy f'(z)     dgamma += sum dz xhat     dbeta += sum dz
// xhat = (x - mean) rstd              dxhat = dz gamma
// mean and rstd depend on every x     dx += rstd (dxhat - average of dxhat - xhat average of (dxhat xhat))
static void group_norm_backward(Mem dx, float *dgamma, float *dbeta, Mem dy, Mem x, Mem gamma, Mem beta,
                                const float *stats, GroupNorm p) {
    int size = p.c / p.groups;
    double count = (double)p.hw * size;
    double *sum_dz = xcalloc(2 * (size_t)p.c, sizeof *sum_dz), *sum_dz_xhat = sum_dz + p.c;
    for (int n = 0; n < p.n; n++)
        for (int g = 0; g < p.groups; g++) {
            double mean = stats[((size_t)n * p.groups + g) * 2];
            double rstd = stats[((size_t)n * p.groups + g) * 2 + 1];
            double average = 0, average_xhat = 0; // of dxhat, of dxhat xhat
            for (int pass = 0; pass < 2; pass++)  // first the averages, then dx
                for (int r = 0; r < p.hw; r++)
                    for (int c = g * size; c < (g + 1) * size; c++) {
                        size_t i = at4(0, n, p.n, r, p.hw, c, p.c);
                        double xhat = (get(x, i) - mean) * rstd, dz = get(dy, i);
                        if (p.silu) dz *= silu_slope(get(gamma, c) * xhat + get(beta, c));
                        double dxhat = dz * get(gamma, c);
                        if (pass == 0) {
                            average += dxhat / count;
                            average_xhat += dxhat * xhat / count;
                            sum_dz[c] += dz;
                            sum_dz_xhat[c] += dz * xhat;
                        } else {
                            add(dx, i, rstd * (dxhat - average - xhat * average_xhat));
                        }
                    }
        }
    for (int c = 0; c < p.c; c++) {
        if (dgamma) dgamma[c] += (float)sum_dz_xhat[c];
        if (dbeta) dbeta[c] += (float)sum_dz[c];
    }
    free(sum_dz);
}

// The same over each row, as if it were a picture of one pixel whose channels are one group.
static void layer_norm(Mem y, float *stats, Mem x, Mem gamma, Mem beta, int rows, int cols, float eps) {
    group_norm(y, stats, x, gamma, beta, (GroupNorm){rows, 1, cols, 1, eps, false});
}
static void layer_norm_backward(Mem dx, float *dgamma, float *dbeta, Mem dy, Mem x, Mem gamma,
                                const float *stats, int rows, int cols) {
    // beta matters to the SiLU alone
    group_norm_backward(dx, dgamma, dbeta, dy, x, gamma, (Mem){0}, stats,
                        (GroupNorm){rows, 1, cols, 1, 0, false});
}

// ---- elementwise ---------------------------------------------------------------------------------------

// The normal distribution: Phi(x), the fraction below x, and its density, Phi'(x).
static double normal_below(double x) { return 0.5 * erfc(-x / sqrt(2)); }
static double normal_density(double x) { return exp(-x * x / 2) / sqrt(2 * 3.14159265358979323846); }

static double activate(Activation f, double x) {
    switch (f) {
    case SILU: return x * sigmoid(x);
    case GELU: return x * normal_below(x);
    case QUICK_GELU: return x * sigmoid(1.702 * x);
    case RELU: return x < 0 ? 0 : x; // NaN stays NaN
    case EXP: return exp(x);
    case SQUARE: return x * x;
    case LOG: return log(x);
    }
    die("plain.c: there is no activation %d", (int)f);
}

static double slope(Activation f, double x) {
    switch (f) {
    case SILU: return silu_slope(x);
    case GELU: return normal_below(x) + x * normal_density(x);
    case QUICK_GELU: return silu_slope(1.702 * x); // x s(a x) = silu(a x) / a
    case RELU: return x > 0;
    case EXP: return exp(x);
    case SQUARE: return 2 * x;
    case LOG: return 1 / x;
    }
    die("plain.c: there is no activation %d", (int)f);
}

// y = f(x)
static void activation(Mem y, Mem x, size_t count, Activation f) {
    for (size_t i = 0; i < count; i++) put(y, i, activate(f, get(x, i)));
}

// y = f(x)     dx += dy f'(x)
static void activation_backward(Mem dx, Mem dy, Mem x, size_t count, Activation f) {
    for (size_t i = 0; i < count; i++) add(dx, i, get(dy, i) * slope(f, get(x, i)));
}

// y[r, i] = value gelu(gate), value = x[r, i], gate = x[r, inner + i]
static void geglu(Mem y, Mem x, int rows, int inner) {
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < inner; i++) {
            size_t value = (size_t)r * 2 * inner + i, gate = value + inner;
            put(y, (size_t)r * inner + i, get(x, value) * activate(GELU, get(x, gate)));
        }
}

// y = value gelu(gate)     dvalue = dy gelu(gate)     dgate = dy value gelu'(gate) (+ what was there)
static void geglu_backward(Mem dx, Mem dy, Mem x, int rows, int inner, bool add) {
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < inner; i++) {
            size_t value = (size_t)r * 2 * inner + i, gate = value + inner;
            double dyi = get(dy, (size_t)r * inner + i);
            put(dx, value, (add ? get(dx, value) : 0) + dyi * activate(GELU, get(x, gate)));
            put(dx, gate, (add ? get(dx, gate) : 0) + dyi * get(x, value) * slope(GELU, get(x, gate)));
        }
}

// y = a x + b z + c y
static void combine(Mem y, float a, Mem x, float b, Mem z, float c, size_t count) {
    for (size_t i = 0; i < count; i++) {
        double sum = 0;
        if (x.at) sum += (double)a * get(x, i);
        if (z.at) sum += (double)b * get(z, i);
        if (c != 0) sum += (double)c * get(y, i);
        put(y, i, sum);
    }
}

// y[r, i] = a[r] x[r, i] + b[r] z[r, i] (+ y[r, i])
static void combine_rows(Mem y, const float *a, Mem x, const float *b, Mem z, int rows, int cols,
                         bool add_to_y) {
    for (int r = 0; r < rows; r++)
        for (size_t i = (size_t)r * cols; i < (size_t)(r + 1) * cols; i++) {
            double sum = (double)a[r] * get(x, i);
            if (b && z.at) sum += (double)b[r] * get(z, i);
            put(y, i, add_to_y ? get(y, i) + sum : sum);
        }
}

// y = x, but not outside [low, high]
static void clamp(Mem y, Mem x, float low, float high, size_t count) {
    for (size_t i = 0; i < count; i++) {
        double v = get(x, i);
        put(y, i, v < low ? low : v > high ? high : v);
    }
}

// y = a b (+ y)
static void multiply(Mem y, Mem a, Mem b, size_t count, bool add_to_y) {
    for (size_t i = 0; i < count; i++) put(y, i, get(a, i) * get(b, i) + (add_to_y ? get(y, i) : 0));
}

// y[g, r, c] = x[g, r, c] + v[g, c]
static void add_vector(Mem y, Mem x, Mem v, int groups, int rows, int cols) {
    for (int g = 0; g < groups; g++)
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < cols; c++) {
                size_t i = at4(0, g, groups, r, rows, c, cols);
                put(y, i, get(x, i) + get(v, (size_t)g * cols + c));
            }
}

// ---- data movement ---------------------------------------------------------------------------------------

// y[r, c] = x[r, c] (+ y[r, c])
static void copy_columns(Mem y, int y_stride, Mem x, int x_stride, int rows, int cols, bool add_to_y) {
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) {
            size_t to = (size_t)r * y_stride + c;
            put(y, to, get(x, (size_t)r * x_stride + c) + (add_to_y ? get(y, to) : 0));
        }
}

// y[n, i, j, c] = x[n, i / 2, j / 2, c]
static void upsample(Mem y, Mem x, int n, int h, int w, int c) {
    for (int a = 0; a < n; a++)
        for (int i = 0; i < 2 * h; i++)
            for (int j = 0; j < 2 * w; j++)
                for (int e = 0; e < c; e++)
                    put(y, at4(a, i, 2 * h, j, 2 * w, e, c), get(x, at4(a, i / 2, h, j / 2, w, e, c)));
}

// y[n, i, j, c] = x[n, i / 2, j / 2, c]     dx[n, i, j, c] += the sum of the four dy that copied it
static void upsample_backward(Mem dx, Mem dy, int n, int h, int w, int c) {
    for (int a = 0; a < n; a++)
        for (int i = 0; i < h; i++)
            for (int j = 0; j < w; j++)
                for (int e = 0; e < c; e++) {
                    double sum = 0;
                    for (int di = 0; di < 2; di++)
                        for (int dj = 0; dj < 2; dj++)
                            sum += get(dy, at4(a, 2 * i + di, 2 * h, 2 * j + dj, 2 * w, e, c));
                    add(dx, at4(a, i, h, j, w, e, c), sum);
                }
}

// What the kernel of a pooling sees in channel c: its sum, the pixels that lie inside, the largest's place.
typedef struct {
    double sum;
    int inside;
    size_t largest;
} Seen;
static Seen look(Mem x, Conv p, int n, int i, int j, int c) {
    Seen s = {0};
    for (int ki = 0; ki < p.kh; ki++)
        for (int kj = 0; kj < p.kw; kj++) {
            int row = seen(i, ki, p.stride, p.pad_top, p.h), col = seen(j, kj, p.stride, p.pad_left, p.w);
            if (row < 0 || col < 0) continue;
            size_t at = at4(n, row, p.h, col, p.w, c, p.c);
            double v = get(x, at);
            if (s.inside == 0 || v > get(x, s.largest) || isnan(v)) s.largest = at; // a NaN must be seen
            s.sum += v;
            s.inside++;
        }
    return s;
}

// y[n, i, j, c] = the largest, or the average, of x[n, row, col, c] under the kernel
static void pool(Mem y, Mem x, Conv p, Pool kind) {
    for (int n = 0; n < p.n; n++)
        for (int i = 0; i < p.oh; i++)
            for (int j = 0; j < p.ow; j++)
                for (int c = 0; c < p.c; c++) {
                    Seen s = look(x, p, n, i, j, c);
                    put(y, at4(n, i, p.oh, j, p.ow, c, p.c),
                        kind == POOL_MAX ? get(x, s.largest) : s.sum / s.inside);
                }
}

// y = x[largest]      dx[largest] += dy
// y = sum / inside    dx += dy / inside, for each pixel inside the kernel
static void pool_backward(Mem dx, Mem dy, Mem x, Conv p, Pool kind) {
    for (int n = 0; n < p.n; n++)
        for (int row = 0; row < p.h; row++)
            for (int col = 0; col < p.w; col++)
                for (int c = 0; c < p.c; c++) {
                    size_t here = at4(n, row, p.h, col, p.w, c, p.c);
                    double sum = 0;
                    for (int ki = 0; ki < p.kh; ki++)
                        for (int kj = 0; kj < p.kw; kj++) { // the outputs that see this pixel
                            int i = sees(row, ki, p.stride, p.pad_top, p.oh);
                            int j = sees(col, kj, p.stride, p.pad_left, p.ow);
                            if (i < 0 || j < 0) continue;
                            Seen s = look(x, p, n, i, j, c);
                            double d = get(dy, at4(n, i, p.oh, j, p.ow, c, p.c));
                            if (kind == POOL_MAX)
                                sum += s.largest == here ? d : 0;
                            else
                                sum += d / s.inside;
                        }
                    add(dx, here, sum);
                }
}

// y[r, c] = table[ids[r], c]
static void embed(Mem y, Mem table, const int32_t *ids, int rows, int cols) {
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) put(y, (size_t)r * cols + c, get(table, (size_t)ids[r] * cols + c));
}

// y[r, c] = table[ids[r], c]     dtable[ids[r], c] += dy[r, c]
static void embed_backward(float *dtable, Mem dy, const int32_t *ids, int rows, int cols) {
    if (!dtable) return;
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++)
            dtable[(size_t)ids[r] * cols + c] += (float)get(dy, (size_t)r * cols + c);
}

// angle = t[r] f[i], i = 0 .. half - 1, rounded to fp32: a cosine and a sine of each.
static void sinusoid(Mem y, const float *t, const float *f, int rows, int dim, bool cos_first) {
    int half = dim / 2;
    for (int r = 0; r < rows; r++) {
        size_t row = (size_t)r * dim;
        for (int i = 0; i < half; i++) {
            float angle = t[r] * f[i];
            put(y, row + (cos_first ? i : half + i), cos((double)angle));
            put(y, row + (cos_first ? half + i : i), sin((double)angle));
        }
        if (dim % 2) put(y, row + dim - 1, 0);
    }
}

// ---- two steps in one -------------------------------------------------------------------------------------

// y = conv2d(group_norm(x))
static void conv2d_normed(Mem y, Mem x, Mem gamma, Mem beta, GroupNorm norm, Mem weight, Mem bias,
                          Mem residual, Conv p) {
    Mem between = {xmalloc(sizeof(double) * (size_t)p.n * (size_t)p.h * (size_t)p.w * (size_t)p.c), F64};
    group_norm(between, NULL, x, gamma, beta, norm);
    conv2d(y, between, weight, bias, residual, p);
    free(between.at);
}

// y = conv2d(between), between[n, i, j, c] = x[n, i / 2, j / 2, c]
static void conv2d_upsampled(Mem y, Mem x, Mem weight, Mem bias, Conv p) {
    int h = p.h / 2 + p.h % 2, w = p.w / 2 + p.w % 2;
    Mem between = {xmalloc(sizeof(double) * (size_t)p.n * (size_t)p.h * (size_t)p.w * (size_t)p.c), F64};
    for (int n = 0; n < p.n; n++)
        for (int i = 0; i < p.h; i++)
            for (int j = 0; j < p.w; j++)
                for (int c = 0; c < p.c; c++)
                    put(between, at4(n, i, p.h, j, p.w, c, p.c), get(x, at4(n, i / 2, h, j / 2, w, c, p.c)));
    conv2d(y, between, weight, bias, (Mem){0}, p);
    free(between.at);
}

// ---- losses ----------------------------------------------------------------------------------------------

static double loss_of(Loss f, double d, double c) {
    switch (f) {
    case LOSS_MSE: return d * d;
    case LOSS_L1: return fabs(d);
    case LOSS_HUBER: return d * d / (sqrt(d * d + c * c) + c); // = sqrt(d^2 + c^2) - c, without cancellation
    }
    die("plain.c: there is no loss %d", (int)f);
}

static double loss_slope(Loss f, double d, double c) {
    switch (f) {
    case LOSS_MSE: return 2 * d;
    case LOSS_L1: return (d > 0) - (d < 0);
    case LOSS_HUBER: return d == 0 ? 0 : d / sqrt(d * d + c * c);
    }
    die("plain.c: there is no loss %d", (int)f);
}

// loss = 1 / (rows cols) sum_{r, i} weight[r] f(prediction[r, i] - target[r, i])
static void loss(float *loss, Mem prediction, Mem target, const float *weight, int rows, int cols, Loss f,
                 float c) {
    double sum = 0;
    for (int r = 0; r < rows; r++)
        for (size_t i = (size_t)r * cols; i < (size_t)(r + 1) * cols; i++)
            sum += (weight ? weight[r] : 1) * loss_of(f, get(prediction, i) - get(target, i), c);
    *loss = (float)(sum / ((double)rows * cols));
}

// loss = 1 / (rows cols) sum weight[r] f(prediction - target)
// dprediction[r, i] += dloss weight[r] / (rows cols) f'(prediction[r, i] - target[r, i])
static void loss_backward(Mem dprediction, const float *dloss, Mem prediction, Mem target,
                          const float *weight, int rows, int cols, Loss f, float c) {
    for (int r = 0; r < rows; r++) {
        double factor = *dloss * (weight ? (double)weight[r] : 1) / ((double)rows * cols);
        for (size_t i = (size_t)r * cols; i < (size_t)(r + 1) * cols; i++)
            add(dprediction, i, factor * loss_slope(f, get(prediction, i) - get(target, i), c));
    }
}

// y[r, c] = x[r, c] - log sum_c exp(x[r, c])
static void log_softmax(Mem y, Mem x, int rows, int cols) {
    for (int r = 0; r < rows; r++) {
        size_t row = (size_t)r * cols;
        double largest = -INFINITY, sum = 0;
        for (int c = 0; c < cols; c++) largest = fmax(largest, get(x, row + c));
        for (int c = 0; c < cols; c++) sum += exp(get(x, row + c) - largest);
        double log_sum = largest + log(sum);
        for (int c = 0; c < cols; c++) put(y, row + c, get(x, row + c) - log_sum);
    }
}

// y[r, c] = x[r, c] - log sum_c exp(x[r, c])     dx[r, c] += dy[r, c] - exp(y[r, c]) sum_c dy[r, c]
static void log_softmax_backward(Mem dx, Mem dy, Mem y, int rows, int cols) {
    for (int r = 0; r < rows; r++) {
        size_t row = (size_t)r * cols;
        double sum = 0;
        for (int c = 0; c < cols; c++) sum += get(dy, row + c);
        for (int c = 0; c < cols; c++) add(dx, row + c, get(dy, row + c) - exp(get(y, row + c)) * sum);
    }
}

// loss = - 1 / rows sum_r x[r, ids[r]]
static void pick(float *loss, Mem x, const int32_t *ids, int rows, int cols) {
    double sum = 0;
    for (int r = 0; r < rows; r++)
        if (ids[r] >= 0) sum += get(x, (size_t)r * cols + ids[r]);
    *loss = (float)(-sum / rows);
}

// loss = - 1 / rows sum_r x[r, ids[r]]     dx[r, ids[r]] -= dloss / rows
static void pick_backward(Mem dx, const float *dloss, const int32_t *ids, int rows, int cols) {
    for (int r = 0; r < rows; r++)
        if (ids[r] >= 0) add(dx, (size_t)r * cols + ids[r], -(double)*dloss / rows);
}

// ---- optimiser -------------------------------------------------------------------------------------------

// sum_square += sum g^2
static void sum_square(OptimiserState *s, const float *g, size_t count) {
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += (double)g[i] * g[i];
    s->sum_square += (float)sum;
}

// rate = c.rate step / warmup while step < warmup (step 1 is the first), then
// rate = c.rate (floor + (1 - floor) (1 + cos(pi progress)) / 2), progress from 0 at warmup to 1 at total
static double scheduled_rate(OptimiserConfig c, double step) {
    if (step < c.warmup) return c.rate * step / c.warmup;
    if (c.total <= c.warmup) return c.rate; // no decay
    double progress = fmin(1, (step - c.warmup) / (c.total - c.warmup));
    return c.rate * (c.floor + (1 - c.floor) * (1 + cos(3.14159265358979323846 * progress)) / 2);
}

// norm = sqrt(sum_square)     clip = min(1, max_norm / (norm + 1e-6))
static void optimiser_begin(OptimiserState *s, OptimiserConfig c) {
    s->step += 1;
    s->norm = sqrtf(s->sum_square);
    s->clip = c.max_norm > 0 ? (float)fmin(1, c.max_norm / ((double)s->norm + 1e-6)) : 1;
    s->rate = (float)scheduled_rate(c, s->step);
    if (!isfinite(s->norm)) s->bad = s->step;
    s->sum_square = 0;
}

// True where this step's gradients are unusable and nothing may be updated.
static bool is_bad(const OptimiserState *s) { return s->step > 0 && s->bad == s->step; }

// [G8] g' = clip g
// m = beta1 m + (1 - beta1) g'     v = beta2 v + (1 - beta2) g'^2
// w = (1 - rate weight_decay) w - rate (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)
static void adamw(float *w, float *m, float *v, float *g, const OptimiserState *s, OptimiserConfig c,
                  size_t count) {
    double beta1 = c.beta1, beta2 = c.beta2, rate = s->rate;
    double unbias1 = 1 - pow(beta1, s->step), unbias2 = 1 - pow(beta2, s->step);
    for (size_t i = 0; i < count; i++) {
        if (!is_bad(s)) {
            double gi = (double)s->clip * g[i];
            m[i] = (float)(beta1 * m[i] + (1 - beta1) * gi);
            v[i] = (float)(beta2 * v[i] + (1 - beta2) * gi * gi);
            w[i] = (float)((1 - rate * c.weight_decay) * w[i] -
                           rate * (m[i] / unbias1) / (sqrt(v[i] / unbias2) + c.eps));
        }
        g[i] = 0;
    }
}

// [G9] e = decay e + (1 - decay) w, the moving average of the weights. In lcm.c it is theta-, the target.
static void ema(float *e, const float *w, const OptimiserState *s, float decay, size_t count) {
    if (s && is_bad(s)) return;
    for (size_t i = 0; i < count; i++) e[i] = (float)((double)decay * e[i] + (1 - (double)decay) * w[i]);
}

// ---- the table -------------------------------------------------------------------------------------------

static const char *name(void) { return "cpu plain"; }

const Backend plain = {
    .name = name,
    KERNELS_BY_NAME,
};
