// losses.c: losses, the logarithm of the softmax, and picking from it. Sums over rows are ordered, in double.
#include "vector.h"

#include <math.h>

INLINE vec sqrt_vec(vec x) {
    UNROLL for (int i = 0; i < W; i++) x[i] = sqrtf(x[i]);
    return x;
}
INLINE vec loss_of(const Loss f, vec d, float c) {
    if (f == LOSS_MSE) return d * d;
    if (f == LOSS_L1) return abs_vec(d);
    return d * d / (sqrt_vec(d * d + c * c) + c); // sqrt(d^2 + c^2) - c without cancellation
}
INLINE vec loss_slope(const Loss f, vec d, float c) {
    vec sign = choose(d > 0.0f, all(1), choose(d < 0.0f, all(-1), all(0)));
    if (f == LOSS_MSE) return 2.0f * d;
    if (f == LOSS_L1) return sign;
    return choose(d == 0.0f, all(0), d / sqrt_vec(d * d + c * c));
}

// The sum over a row; stretches of at most 4096 elements in fp32, these in double.
INLINE double sum_losses(const float *x, const float *target, int cols, const Loss f, float c) {
    double total = 0;
    for (int begin = 0; begin < cols; begin += 4096) {
        vec sum = all(0);
        for (int i = begin, end = min_int(cols, begin + 4096); i < end; i += W) {
            int lanes = min_int(W, end - i); // beyond them d is zero, and so is every loss
            vec d = load_part(x + i, lanes) - load_part(target + i, lanes);
            sum += lanes < W && f == LOSS_HUBER && c == 0 ? abs_vec(d) : loss_of(f, d, c);
        }
        for (int i = 0; i < W; i++) total += (double)sum[i];
    }
    return total;
}

static void loss(float *loss, Mem prediction, Mem target, const float *weight, int rows, int cols, Loss f,
                 float c) {
    double total = 0;
    for (int r = 0; r < rows; r++) {
        const float *x = (const float *)prediction.at + (size_t)r * (size_t)cols;
        const float *t = (const float *)target.at + (size_t)r * (size_t)cols;
        double sum = f == LOSS_MSE  ? sum_losses(x, t, cols, LOSS_MSE, c)
                     : f == LOSS_L1 ? sum_losses(x, t, cols, LOSS_L1, c)
                                    : sum_losses(x, t, cols, LOSS_HUBER, c);
        total += (weight ? (double)weight[r] : 1) * sum;
    }
    *loss = (float)(total / ((double)rows * cols));
}

INLINE void add_slopes(float *dx, const float *x, const float *target, float factor, int cols, const Loss f,
                       float c) {
    for (int i = 0; i < cols; i += W) {
        int lanes = min_int(W, cols - i);
        vec d = load_part(x + i, lanes) - load_part(target + i, lanes);
        store_part(dx + i, load_part(dx + i, lanes) + factor * loss_slope(f, d, c), lanes);
    }
}

static void loss_backward(Mem dprediction, const float *dloss, Mem prediction, Mem target,
                          const float *weight, int rows, int cols, Loss f, float c) {
    if (!dprediction.at) return;
    PARALLEL_FOR((double)rows * cols > WORTH_A_THREAD)
    for (int r = 0; r < rows; r++) {
        size_t row = (size_t)r * (size_t)cols;
        float *dx = (float *)dprediction.at + row;
        const float *x = (const float *)prediction.at + row, *t = (const float *)target.at + row;
        float factor = (float)((double)*dloss * (weight ? (double)weight[r] : 1) / ((double)rows * cols));
        if (f == LOSS_MSE)
            add_slopes(dx, x, t, factor, cols, LOSS_MSE, c);
        else if (f == LOSS_L1)
            add_slopes(dx, x, t, factor, cols, LOSS_L1, c);
        else
            add_slopes(dx, x, t, factor, cols, LOSS_HUBER, c);
    }
}

// ---- softmax ----------------------------------------------------------------------------------------------

static void log_softmax(Mem ym, Mem xm, int rows, int cols) {
    PARALLEL_FOR((double)rows * cols > WORTH_A_THREAD / 5)
    for (int r = 0; r < rows; r++) {
        const float *x = (const float *)xm.at + (size_t)r * (size_t)cols;
        float *y = (float *)ym.at + (size_t)r * (size_t)cols, largest = x[0];
        for (int c = 1; c < cols; c++) largest = x[c] > largest ? x[c] : largest;
        double sum = 0;
        for (int c = 0; c < cols; c += W) {
            int lanes = min_int(W, cols - c);
            vec e = exp_vec(load_part(x + c, lanes) - largest);
            for (int i = 0; i < lanes; i++) sum += (double)e[i];
        }
        float log_sum = (float)log(sum);
        for (int c = 0; c < cols; c++) y[c] = x[c] - largest - log_sum;
    }
}

// dx += dy - exp(y) sum(dy)
static void log_softmax_backward(Mem dxm, Mem dym, Mem ym, int rows, int cols) {
    if (!dxm.at) return;
    PARALLEL_FOR((double)rows * cols > WORTH_A_THREAD / 5)
    for (int r = 0; r < rows; r++) {
        size_t row = (size_t)r * (size_t)cols;
        const float *dy = (const float *)dym.at + row, *y = (const float *)ym.at + row;
        float *dx = (float *)dxm.at + row;
        double sum = 0;
        for (int c = 0; c < cols; c++) sum += (double)dy[c];
        for (int c = 0; c < cols; c += W) {
            int lanes = min_int(W, cols - c);
            vec v = load_part(dy + c, lanes) - exp_vec(load_part(y + c, lanes)) * (float)sum;
            store_part(dx + c, load_part(dx + c, lanes) + v, lanes);
        }
    }
}

static void pick(float *loss, Mem x, const int32_t *ids, int rows, int cols) {
    double sum = 0;
    for (int r = 0; r < rows; r++)
        if (ids[r] >= 0) sum += (double)((const float *)x.at)[(size_t)r * (size_t)cols + (size_t)ids[r]];
    *loss = (float)(-sum / rows);
}

static void pick_backward(Mem dx, const float *dloss, const int32_t *ids, int rows, int cols) {
    if (!dx.at) return;
    for (int r = 0; r < rows; r++)
        if (ids[r] >= 0) ((float *)dx.at)[(size_t)r * (size_t)cols + (size_t)ids[r]] -= *dloss / (float)rows;
}
