// optim.cu: the optimiser. Its state lives in device memory, so a training step decides by itself how far the
// gradients are clipped, what the learning rate is, and whether the step is fit to be taken.
#include "device.h"

#include <vector>

// All tensors are one launch: a block takes 16,384 elements of one of them, found in a list of where each
// begins.
enum { PIECE = 1 << 14 };
struct Part {
    TrainedTensor t;
    int first; // block
};
struct Parts { // the list, on the GPU
    Scratch scratch;
    Part *list;
    int count, blocks;
    Parts(const TrainedTensor *tensors, int count) : count(count), blocks(0) {
        std::vector<Part> host;
        for (int i = 0; i < count; blocks += ceil_div(tensors[i++].count, PIECE))
            host.push_back({tensors[i], blocks});
        list = (Part *)backend.temp(count * sizeof(Part));
        backend.upload(list, host.data(), count * sizeof(Part));
    }
};
// The tensor of this block, and its elements from *begin to *end.
__device__ static const TrainedTensor *part_of(const Part *list, int count, size_t *begin, size_t *end) {
    int low = 0;
    for (int high = count; high - low > 1;) { // list[low] begins at or before this block, list[high] after it
        int middle = (low + high) / 2;
        if (list[middle].first <= (int)blockIdx.x)
            low = middle;
        else
            high = middle;
    }
    *begin = (size_t)(blockIdx.x - list[low].first) * PIECE;
    *end = *begin + PIECE < list[low].t.count ? *begin + PIECE : list[low].t.count;
    return &list[low].t;
}

// sum_square += sum g^2
static __global__ void square_part(float *part, const Part *list, int count) {
    __shared__ float scratch[32];
    size_t begin, end;
    const float *g = part_of(list, count, &begin, &end)->g;
    float sum = 0;
    for (size_t i = begin + threadIdx.x; i < end; i += THREADS) sum += g[i] * g[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}
static void sum_squares(OptimiserState *s, const Parts &p) {
    Scratch scratch;
    float *part = scratch.floats(p.blocks);
    square_part<<<p.blocks, THREADS, 0, stream>>>(part, p.list, p.count);
    check_launch("square_part", p.blocks, THREADS);
    finish_sum(&s->sum_square, part, p.blocks, 1, true);
}
static void launch_sum_square(OptimiserState *s, const float *g, size_t count) {
    TrainedTensor one = {NULL, NULL, NULL, (float *)g, NULL, count};
    if (count) sum_squares(s, Parts(&one, 1));
}

// Step 1 is the first. While step < warmup: rate = c.rate step / warmup. Then, with a progress from 0 at
// warmup to 1 at total: rate = c.rate (floor + (1 - floor) (1 + cos(pi progress)) / 2).
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
// e = decay e + (1 - decay) w, where there is an average
static __global__ void adamw(const Part *list, int count, const OptimiserState *s, OptimiserConfig c,
                             float decay) {
    bool bad = is_bad(s);
    float unbias1 = unbias(c.beta1, s->step), unbias2 = unbias(c.beta2, s->step);
    size_t begin, end;
    TrainedTensor t = *part_of(list, count, &begin, &end);
    for (size_t i = begin + threadIdx.x; i < end; i += THREADS) {
        if (!bad) {
            float gi = s->clip * t.g[i], w = t.w[i];
            float mi = c.beta1 * t.m[i] + (1 - c.beta1) * gi, vi = c.beta2 * t.v[i] + (1 - c.beta2) * gi * gi;
            t.m[i] = mi;
            t.v[i] = vi;
            w -= s->rate * c.weight_decay * w + s->rate * (mi / unbias1) / (sqrtf(vi / unbias2) + c.eps);
            t.w[i] = w;
            if (t.ema) t.ema[i] += (1 - decay) * (w - t.ema[i]);
        }
        t.g[i] = 0;
    }
}
static void update(const Parts &p, const OptimiserState *s, OptimiserConfig c, float decay) {
    adamw<<<p.blocks, THREADS, 0, stream>>>(p.list, p.count, s, c, decay);
    check_launch("adamw", p.blocks, THREADS);
}
static void launch_adamw(float *w, float *m, float *v, float *g, const OptimiserState *s, OptimiserConfig c,
                         size_t count) {
    TrainedTensor one = {w, m, v, g, NULL, count};
    weight_changes(w);
    if (count) update(Parts(&one, 1), s, c, 0);
}
static void launch_optimise(const TrainedTensor *list, int count, OptimiserState *s, OptimiserConfig c,
                            float decay) {
    Parts parts(list, count);
    for (int i = 0; i < count; i++) weight_changes(list[i].w), weight_changes(list[i].ema);
    if (parts.blocks) sum_squares(s, parts);
    launch_optimiser_begin(s, c);
    if (parts.blocks) update(parts, s, c, decay);
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
    b.optimise = launch_optimise;
}
