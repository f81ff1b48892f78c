// loss.cu: losses, the logarithm of a softmax, and the picking of a row's entry; each with its backward. What
// they compute stays in device memory; no kernel here makes the host wait.
#include "device.h"

static __global__ void add_parts(float *out, const float *part, int count, float factor, bool add) {
    __shared__ float scratch[32];
    float sum = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += part[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) *out = factor * sum + (add ? *out : 0);
}
void finish_sum(float *out, const float *part, int count, float factor, bool add) {
    add_parts<<<1, THREADS, 0, stream>>>(out, part, count, factor, add);
    check_launch("add_parts", 1, THREADS);
}

__device__ static float loss_of(Loss f, float d, float c) {
    switch (f) {
    case LOSS_MSE: return d * d;
    case LOSS_L1: return fabsf(d);
    default: return d * d / (sqrtf(d * d + c * c) + c); // = sqrt(d^2 + c^2) - c, without cancellation
    }
}
__device__ static float loss_slope(Loss f, float d, float c) {
    switch (f) {
    case LOSS_MSE: return 2 * d;
    case LOSS_L1: return d > 0 ? 1 : d < 0 ? -1 : 0;
    default: return d == 0 ? 0 : d / sqrtf(d * d + c * c);
    }
}

// loss = 1 / (rows cols) sum_{r, i} weight[r] f(prediction[r, i] - target[r, i])
static __global__ void loss_part(float *part, Mem prediction, Mem target, const float *weight, size_t count,
                                 int cols, Loss f, float c) {
    __shared__ float scratch[32];
    float sum = 0;
    EACH(i, count)
    sum += (weight ? weight[i / cols] : 1) * loss_of(f, load(prediction, i) - load(target, i), c);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}
static void launch_loss(float *loss, Mem prediction, Mem target, const float *weight, int rows, int cols,
                        Loss f, float c) {
    size_t count = (size_t)rows * cols;
    unsigned blocks = parts_for(count);
    Scratch scratch;
    float *part = scratch.floats(blocks);
    loss_part<<<blocks, THREADS, 0, stream>>>(part, prediction, target, weight, count, cols, f, c);
    check_launch("loss_part", blocks, THREADS);
    finish_sum(loss, part, (int)blocks, (float)(1 / (double)count), false);
}
// dprediction[r, i] += dloss weight[r] / (rows cols) f'(prediction[r, i] - target[r, i])
static __global__ void loss_backward(Mem dprediction, const float *dloss, Mem prediction, Mem target,
                                     const float *weight, size_t count, int cols, Loss f, float c,
                                     float share) {
    EACH(i, count) {
        float d = load(prediction, i) - load(target, i);
        accumulate(dprediction, i, *dloss * share * (weight ? weight[i / cols] : 1) * loss_slope(f, d, c));
    }
}
static void launch_loss_backward(Mem dprediction, const float *dloss, Mem prediction, Mem target,
                                 const float *weight, int rows, int cols, Loss f, float c) {
    size_t count = (size_t)rows * cols;
    if (!count || !dprediction.at) return;
    loss_backward<<<blocks_for(count), THREADS, 0, stream>>>(dprediction, dloss, prediction, target, weight,
                                                             count, cols, f, c, (float)(1 / (double)count));
    check_launch("loss_backward", blocks_for(count), THREADS);
}

// y[r, c] = x[r, c] - log sum_c exp(x[r, c]); a block a row
static __global__ void log_softmax(Mem y, Mem x, int cols) {
    __shared__ float scratch[32];
    size_t row = (size_t)blockIdx.x * cols;
    float largest = -INFINITY, sum = 0;
    for (int c = threadIdx.x; c < cols; c += blockDim.x) largest = fmaxf(largest, load(x, row + c));
    largest = block_max(largest, scratch);
    for (int c = threadIdx.x; c < cols; c += blockDim.x) sum += expf(load(x, row + c) - largest);
    float log_sum = logf(block_sum(sum, scratch));
    for (int c = threadIdx.x; c < cols; c += blockDim.x)
        store(y, row + c, load(x, row + c) - largest - log_sum);
}
static void launch_log_softmax(Mem y, Mem x, int rows, int cols) {
    if (!rows || !cols) return;
    log_softmax<<<rows, THREADS, 0, stream>>>(y, x, cols);
    check_launch("log_softmax", rows, THREADS);
}
// dx[r, c] += dy[r, c] - exp(y[r, c]) sum_c dy[r, c]
static __global__ void log_softmax_backward(Mem dx, Mem dy, Mem y, int cols) {
    __shared__ float scratch[32];
    size_t row = (size_t)blockIdx.x * cols;
    float sum = 0;
    for (int c = threadIdx.x; c < cols; c += blockDim.x) sum += load(dy, row + c);
    sum = block_sum(sum, scratch);
    for (int c = threadIdx.x; c < cols; c += blockDim.x)
        accumulate(dx, row + c, load(dy, row + c) - expf(load(y, row + c)) * sum);
}
static void launch_log_softmax_backward(Mem dx, Mem dy, Mem y, int rows, int cols) {
    if (!rows || !cols || !dx.at) return;
    log_softmax_backward<<<rows, THREADS, 0, stream>>>(dx, dy, y, cols);
    check_launch("log_softmax_backward", rows, THREADS);
}

// loss = - 1 / rows sum_r x[r, ids[r]]
static __global__ void pick(float *loss, Mem x, const int32_t *ids, int rows, int cols) {
    __shared__ float scratch[32];
    float sum = 0;
    for (int r = threadIdx.x; r < rows; r += blockDim.x)
        if (ids[r] >= 0) sum += load(x, (size_t)r * cols + ids[r]);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) *loss = -sum / rows;
}
static void launch_pick(float *loss, Mem x, const int32_t *ids, int rows, int cols) {
    pick<<<1, THREADS, 0, stream>>>(loss, x, ids, rows, cols);
    check_launch("pick", 1, THREADS);
}
// dx[r, ids[r]] -= dloss / rows
static __global__ void pick_backward(Mem dx, const float *dloss, const int32_t *ids, int rows, int cols) {
    EACH(r, (size_t)rows) {
        if (ids[r] >= 0) accumulate(dx, r * cols + ids[r], -*dloss / rows);
    }
}
static void launch_pick_backward(Mem dx, const float *dloss, const int32_t *ids, int rows, int cols) {
    if (!rows || !dx.at) return;
    pick_backward<<<blocks_for(rows), THREADS, 0, stream>>>(dx, dloss, ids, rows, cols);
    check_launch("pick_backward", blocks_for(rows), THREADS);
}

void loss_kernels(Backend &b) {
    b.loss = launch_loss;
    b.loss_backward = launch_loss_backward;
    b.log_softmax = launch_log_softmax;
    b.log_softmax_backward = launch_log_softmax_backward;
    b.pick = launch_pick;
    b.pick_backward = launch_pick_backward;
}
