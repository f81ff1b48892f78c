// optim.c: the optimiser's step on one tensor. What the steps decide together lives in OptimiserState.
#include "vector.h"

#include <math.h>

static void sum_square(OptimiserState *s, const float *g, size_t count) {
    enum { PART = 1 << 14 }; // each in fp32, lane by lane; pieces in double, in order
    size_t pieces = (count + PART - 1) / PART;
    double total = 0, *sums = (double *)(void *)scratch(S_PARTS, 2 * pieces);
    PARALLEL_FOR(count > WORTH_A_THREAD)
    for (size_t p = 0; p < pieces; p++) {
        vec sum = all(0);
        size_t end = p + 1 < pieces ? (p + 1) * PART : count;
        for (size_t i = p * PART; i < end; i += W) {
            vec v = load_part(g + i, end - i < W ? (int)(end - i) : W);
            sum += v * v;
        }
        sums[p] = 0;
        for (int i = 0; i < W; i++) sums[p] += (double)sum[i];
    }
    for (size_t p = 0; p < pieces; p++) total += sums[p];
    s->sum_square += (float)total;
}

// Linear warm-up, then a cosine from rate to rate * floor, or a constant rate.
static double scheduled_rate(OptimiserConfig c, double step) {
    if (step < (double)c.warmup) return (double)c.rate * step / (double)c.warmup;
    if (c.total <= c.warmup) return (double)c.rate;
    double progress = fmin(1, (step - (double)c.warmup) / (double)(c.total - c.warmup));
    return (double)c.rate *
           ((double)c.floor + (1 - (double)c.floor) * (1 + cos(3.14159265358979323846 * progress)) / 2);
}

static void optimiser_begin(OptimiserState *s, OptimiserConfig c) {
    s->step += 1;
    s->norm = sqrtf(s->sum_square);
    s->clip = c.max_norm > 0 ? (float)fmin(1, (double)c.max_norm / ((double)s->norm + 1e-6)) : 1;
    s->rate = (float)scheduled_rate(c, (double)s->step);
    if (!isfinite(s->norm)) s->bad = s->step;
    s->sum_square = 0;
}

static bool is_bad(const OptimiserState *s) { return s->step > 0 && s->bad == s->step; }

// m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
// w = (1 - rate decay) w - rate (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps), of g clipped
static void adamw(float *w, float *m, float *v, float *g, const OptimiserState *s, OptimiserConfig c,
                  size_t count) {
    if (is_bad(s)) {
        memset(g, 0, count * sizeof *g);
        return;
    }
    float unbias1 = (float)(1 / (1 - pow((double)c.beta1, (double)s->step)));
    float unbias2 = (float)(1 / (1 - pow((double)c.beta2, (double)s->step)));
    float decay = s->rate * c.weight_decay, rate = s->rate * unbias1;
    float rest1 = (float)(1 - (double)c.beta1), rest2 = (float)(1 - (double)c.beta2), clip = s->clip;
    PARALLEL_FOR(count > WORTH_A_THREAD)
    for (size_t piece = 0; piece < count; piece += 8192)
        for (size_t i = piece; i < (piece + 8192 < count ? piece + 8192 : count); i++) {
            float gi = clip * g[i];
            m[i] = c.beta1 * m[i] + rest1 * gi;
            v[i] = c.beta2 * v[i] + rest2 * (gi * gi);
            // One rounding a step: (1 - rate decay) in fp32 would err to the same side each time.
            w[i] -= decay * w[i] + rate * m[i] / (sqrtf(v[i] * unbias2) + c.eps);
            g[i] = 0;
        }
}

static void ema(float *e, const float *w, const OptimiserState *s, float decay, size_t count) {
    if (s && is_bad(s)) return;
    float rest = (float)(1 - (double)decay);
    PARALLEL_FOR(count > WORTH_A_THREAD)
    for (size_t piece = 0; piece < count; piece += 8192)
        for (size_t i = piece; i < (piece + 8192 < count ? piece + 8192 : count); i++)
            e[i] += rest * (w[i] - e[i]); // weights that sum to 1 exactly
}
