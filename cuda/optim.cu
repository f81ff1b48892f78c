// optim.cu: the optimiser. Its state lives in device memory, so a training step decides by itself how far the
// gradients are clipped, what the learning rate is, and whether the step is fit to be taken.
#include "device.h"

// sum_square += sum g^2
static __global__ void square_part(float *part, const float *g, size_t count) {
    __shared__ float scratch[32];
    float sum = 0;
    EACH(i, count) sum += g[i] * g[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}
static void launch_sum_square(OptimiserState *s, const float *g, size_t count) {
    if (!count) return;
    unsigned blocks = parts_for(count);
    Scratch scratch;
    float *part = scratch.floats(blocks);
    square_part<<<blocks, THREADS, 0, stream>>>(part, g, count);
    check_launch("square_part", blocks, THREADS);
    finish_sum(&s->sum_square, part, (int)blocks, 1, true);
}

// rate = c.rate step / warmup                                         while step < warmup; step 1 is the
// first rate = c.rate (floor + (1 - floor) (1 + cos(pi progress)) / 2)      progress: 0 at warmup, 1 at total
__device__ static double scheduled_rate(OptimiserConfig c, double step) {
    if (step < c.warmup) return (double)c.rate * step / c.warmup;
    if (c.total <= c.warmup) return c.rate; // no decay
    double progress = (step - c.warmup) / ((double)c.total - c.warmup);
    if (progress > 1) progress = 1;
    return c.rate * (c.floor + (1 - (double)c.floor) * (1 + cos(3.14159265358979323846 * progress)) / 2);
}

// norm = sqrt(sum_square)     clip = min(1, max_norm / (norm + 1e-6)). One thread.
static __global__ void optimiser_begin(OptimiserState *s, OptimiserConfig c) {
    s->step += 1;
    s->norm = sqrtf(s->sum_square);
    s->clip = c.max_norm > 0 ? fminf(1.0f, c.max_norm / (s->norm + 1e-6f)) : 1;
    s->rate = (float)scheduled_rate(c, s->step);
    if (!isfinite(s->norm)) s->bad = s->step;
    s->sum_square = 0;
}
static void launch_optimiser_begin(OptimiserState *s, OptimiserConfig c) {
    optimiser_begin<<<1, 1, 0, stream>>>(s, c);
    check_launch("optimiser_begin", 1, 1);
}

// True where this step's gradients are unusable and nothing may be updated.
__device__ static bool is_bad(const OptimiserState *s) { return s->step > 0 && s->bad == s->step; }

// 1 - beta^step. beta is near 1, so the difference is taken before it is rounded away.
__device__ static float unbias(float beta, float step) { return -expm1f(step * log1pf(beta - 1)); }

// g' = clip g
// m = beta1 m + (1 - beta1) g'     v = beta2 v + (1 - beta2) g'^2
// w = (1 - rate weight_decay) w - rate (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)
static __global__ void adamw(float *w, float *m, float *v, float *g, const OptimiserState *s,
                             OptimiserConfig c, size_t count) {
    bool bad = is_bad(s);
    float unbias1 = unbias(c.beta1, s->step), unbias2 = unbias(c.beta2, s->step);
    EACH(i, count) {
        if (!bad) {
            float gi = s->clip * g[i];
            float mi = c.beta1 * m[i] + (1 - c.beta1) * gi, vi = c.beta2 * v[i] + (1 - c.beta2) * gi * gi;
            m[i] = mi;
            v[i] = vi;
            w[i] -=
                s->rate * c.weight_decay * w[i] + s->rate * (mi / unbias1) / (sqrtf(vi / unbias2) + c.eps);
        }
        g[i] = 0;
    }
}
static void launch_adamw(float *w, float *m, float *v, float *g, const OptimiserState *s, OptimiserConfig c,
                         size_t count) {
    if (!count) return;
    weight_changes(w);
    adamw<<<blocks_for(count), THREADS, 0, stream>>>(w, m, v, g, s, c, count);
    check_launch("adamw", blocks_for(count), THREADS);
}

// e = decay e + (1 - decay) w
static __global__ void ema(float *e, const float *w, const OptimiserState *s, float decay, size_t count) {
    if (s && is_bad(s)) return;
    EACH(i, count) e[i] += (1 - decay) * (w[i] - e[i]);
}
static void launch_ema(float *e, const float *w, const OptimiserState *s, float decay, size_t count) {
    if (!count) return;
    weight_changes(e);
    ema<<<blocks_for(count), THREADS, 0, stream>>>(e, w, s, decay, count);
    check_launch("ema", blocks_for(count), THREADS);
}

void optim_kernels(Backend &b) {
    b.sum_square = launch_sum_square;
    b.optimiser_begin = launch_optimiser_begin;
    b.adamw = launch_adamw;
    b.ema = launch_ema;
}
