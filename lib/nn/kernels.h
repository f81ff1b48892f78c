// kernels.h: the one list of kernels, a table that cpu/ and cuda/ fill in.
//
// The terms, set by what a GPU wants:
//   - An operand is a `Mem`: where the elements lie and their type. Only the backend may dereference it; the
//     host reads elements with download() and writes them with upload().
//   - Activations and their gradients have the backend's storage type (F32 on processors). Weights may be
//     F32, F16 or BF16. Gradients of weights, the optimiser's state, statistics, losses and per-row
//     coefficients are plain `float *`, in backend memory all the same. Arithmetic is fp32.
//   - Calls are ordered as on one stream and return nothing.
//   - Same inputs, same bits: every sum has a fixed order, whatever the number of threads.
//   - A gradient is always added to (`dx += ...`): a tensor used twice gets the sum of both. Fresh ones are
//     zero. A gradient argument whose `at` is NULL is not wanted and is not computed.
//   - Outputs never overlap inputs, unless a comment says so ("may be x").
//
// Names: n pictures of a batch, h x w pixels, c channels, stored NHWC; `rows` x `cols` a matrix, row-major.
// Argument order: outputs, inputs, weights, sizes, the rest.
#ifndef KERNELS_H
#define KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// ---- operands and shapes ---------------------------------------------------------------------------------

// The kernels know the first three.
typedef enum { F32, F16, BF16, F64, I8, U8, I16, U16, I32, I64, BOOL8 } Type;

typedef struct {
    void *at; // NULL: absent (an optional operand)
    Type type;
} Mem;

// C (m, n) = alpha A B [+ C] [+ bias (n), on every row] [+ residual (m, n)]
// A is (m, k), or (k, m) where `a_transposed`; B is (k, n), or (n, k) where `b_transposed`: so a linear layer
// with PyTorch's weight (out, in) is A = x, B = w, b_transposed.
typedef struct {
    int m, n, k;
    bool a_transposed, b_transposed;
    bool add; // C += instead of C =
    float alpha;
} Gemm;

// A convolution, or a pooling. x (n, h, w, c), weight (oc, kh, kw, c), y (n, oh, ow, oc). Output pixel (i, j)
// sees the input rows i * stride - pad_top ... + kh - 1; what lies outside is zero. The padding below and on
// the right is whatever oh and ow need. 1x1 without stride or padding is computed as a matrix product.
typedef struct {
    int n, h, w, c;
    int oh, ow, oc;
    int kh, kw, stride, pad_top, pad_left;
} Conv;

// o = softmax(scale q k^T) v for each of `heads`. q, o (n, tq, heads * d); k, v (n, tk, heads * d).
typedef struct {
    int n, heads, tq, tk, d;
    float scale;
    bool causal; // query i sees keys 0..i
} Attention;

// Group norm over (hw, c / groups) of each picture, followed by SiLU where `silu`.
typedef struct {
    int n, hw, c, groups;
    float eps;
    bool silu;
} GroupNorm;

typedef enum {
    SILU,       // x / (1 + exp(-x))
    GELU,       // x Phi(x), with the error function
    QUICK_GELU, // x / (1 + exp(-1.702 x)), CLIP's
    RELU,
    EXP,
    SQUARE,
    LOG, // of positive x
} Activation;

// The average divides by the pixels inside the picture (PyTorch's count_include_pad=False).
typedef enum { POOL_MAX, POOL_AVERAGE } Pool;

typedef enum {
    LOSS_MSE,   // d^2
    LOSS_L1,    // |d|
    LOSS_HUBER, // sqrt(d^2 + c^2) - c, the pseudo-Huber loss of the LCM paper
} Loss;

// What a training step decides without asking the host. Lives in backend memory.
typedef struct {
    float step;       // steps begun so far
    float sum_square; // of the gradients, gathered by sum_square(), cleared by optimiser_begin()
    float norm;       // of the gradients of the last step begun
    float clip;       // factor on the gradients: min(1, max_norm / (norm + 1e-6)), as torch's clip_grad_norm_
    float rate;       // learning rate of this step
    float bad;        // the step's number where its gradient norm is NaN or infinite: nothing is updated
} OptimiserState;
typedef struct {
    float rate, beta1, beta2, eps, weight_decay, max_norm; // max_norm 0: no clipping
    // The rate rises over `warmup` steps (rate * step / warmup, steps count from 1), then falls as a cosine
    // to rate * floor at `total`. total 0: it stays constant.
    float warmup, total, floor;
} OptimiserConfig;
typedef struct {                // a parameter tensor that is trained
    float *w, *m, *v, *g, *ema; // ema may be NULL
    size_t count;
} TrainedTensor;

// ---- the table -------------------------------------------------------------------------------------------

typedef struct {
    // -- the machine and its memory
    const char *(*name)(void); // "cpu avx512, 2 threads"
    Type storage;              // the type of activations
    // What fp32 weights may be kept as: BF16 where every product rounds them to it, else F32.
    Type weights;

    // Persistent memory: weights, the optimiser's state. Dies with the figure where there is none left.
    void *(*alloc)(size_t bytes);
    void (*free)(void *at);
    // Scratch memory, for activations, is a stack: what was taken after a mark goes back at release(mark).
    void *(*temp)(size_t bytes);
    size_t (*mark)(void);
    void (*release)(size_t mark);
    // The same, but the `bytes` at `at`, taken after the mark, move down to it. Returns where they are now.
    void *(*release_but)(size_t mark, void *at, size_t bytes);
    size_t (*peak)(void); // largest sum of persistent and scratch memory so far, in bytes

    // A run of calls that comes again as a whole, such as a network's pass. Two runs with one key must make
    // the same calls; only what lies at their addresses may differ. replay() makes them all, if it can, and
    // says so; else the run is to be made between begin() and end(), without upload, download, sync, alloc or
    // free the second time. All three may be NULL.
    bool (*replay)(uint64_t key);
    void (*begin)(uint64_t key);
    void (*end)(void);

    void (*upload)(void *to, const void *host, size_t bytes);     // `host` is free when it returns
    void (*download)(void *host, const void *from, size_t bytes); // waits for the calls before it
    void (*sync)(void);                                           // waits for the calls before it
    void (*fill)(Mem y, float value, size_t count);
    void (*copy)(Mem y, Mem x, size_t count); // converts

    // -- products
    void (*gemm)(Mem c, Mem a, Mem b, Mem bias, Mem residual, Gemm g);           // residual may be c
    void (*conv2d)(Mem y, Mem x, Mem weight, Mem bias, Mem residual, Conv p);    // residual may be y
    void (*conv2d_backward_input)(Mem dx, Mem dy, Mem weight, Conv p, bool add); // dx = or +=
    void (*conv2d_backward_weight)(float *dweight, Mem dy, Mem x, Conv p);
    // y (groups, cols) += the sum over the middle of x (groups, rows, cols): the gradient of a bias (groups
    // 1) and of a vector that was added to every pixel of a picture.
    void (*sum_rows)(Mem y, Mem x, int groups, int rows, int cols);
    // Attention without storing the matrix of scores. lse (n, heads, tq): the logarithm of each row's sum of
    // exponentials of scaled scores, kept for the backward; may be NULL.
    void (*attention)(Mem o, float *lse, Mem q, Mem k, Mem v, Attention p);
    void (*attention_backward)(Mem dq, Mem dk, Mem dv, Mem dout, Mem q, Mem k, Mem v, Mem o, const float *lse,
                               Attention p);

    // -- norms
    // y = gamma (x - mean) / sqrt(var + eps) + beta. stats (n, groups, 2): mean and 1 / sqrt(var + eps), kept
    // for the backward; may be NULL. Mean and variance are exact to fp32 even where the mean is large against
    // the standard deviation.
    void (*group_norm)(Mem y, float *stats, Mem x, Mem gamma, Mem beta, GroupNorm p);
    void (*group_norm_backward)(Mem dx, float *dgamma, float *dbeta, Mem dy, Mem x, Mem gamma, Mem beta,
                                const float *stats, GroupNorm p);
    // Layer norm of each row. stats (rows, 2) as above.
    void (*layer_norm)(Mem y, float *stats, Mem x, Mem gamma, Mem beta, int rows, int cols, float eps);
    void (*layer_norm_backward)(Mem dx, float *dgamma, float *dbeta, Mem dy, Mem x, Mem gamma,
                                const float *stats, int rows, int cols);

    // -- elementwise
    void (*activation)(Mem y, Mem x, size_t count, Activation f); // y may be x
    void (*activation_backward)(Mem dx, Mem dy, Mem x, size_t count, Activation f);
    // GEGLU: x (rows, 2 inner) is [value | gate]; y (rows, inner) = value gelu(gate).
    void (*geglu)(Mem y, Mem x, int rows, int inner);
    void (*geglu_backward)(Mem dx, Mem dy, Mem x, int rows, int inner, bool add); // dx = or +=
    // y = a x + b z + c y. x or z may be absent; y may be x or z. c = 0 does not read y.
    void (*combine)(Mem y, float a, Mem x, float b, Mem z, float c, size_t count);
    // The same with a coefficient a row: y[r, :] = a[r] x[r, :] + b[r] z[r, :] (+ y). b, z may be absent.
    void (*combine_rows)(Mem y, const float *a, Mem x, const float *b, Mem z, int rows, int cols, bool add);
    void (*clamp)(Mem y, Mem x, float low, float high, size_t count); // y may be x
    void (*multiply)(Mem y, Mem a, Mem b, size_t count, bool add);    // y = a b (+ y)
    // y (groups, rows, cols) = x + v (groups, cols) on every row: a time embedding. y may be x.
    void (*add_vector)(Mem y, Mem x, Mem v, int groups, int rows, int cols);

    // -- data movement
    // y[r, 0..cols) = x[r, 0..cols) (+ y), with row strides: concatenation of channels, and its reverse.
    void (*copy_columns)(Mem y, int y_stride, Mem x, int x_stride, int rows, int cols, bool add);
    // Nearest-neighbour upsampling by 2. x (n, h, w, c), y (n, 2h, 2w, c).
    void (*upsample)(Mem y, Mem x, int n, int h, int w, int c);
    void (*upsample_backward)(Mem dx, Mem dy, int n, int h, int w, int c);
    // The maximum ignores what lies outside; its gradient goes to the first largest in row order. p.oc = p.c.
    void (*pool)(Mem y, Mem x, Conv p, Pool kind);
    void (*pool_backward)(Mem dx, Mem dy, Mem x, Conv p, Pool kind);
    // y[r, :] = table[ids[r], :], ids in backend memory. dtable[ids[r], :] += dy[r, :], r ascending.
    void (*embed)(Mem y, Mem table, const int32_t *ids, int rows, int cols);
    void (*embed_backward)(float *dtable, Mem dy, const int32_t *ids, int rows, int cols);
    // y[r, i] = cos(t[r] f[i]), y[r, half + i] = sin(t[r] f[i]), angles in fp32, i < half = dim / 2; sine
    // first unless cos_first. t and f are the host's own memory: a GPU gets them with the launch.
    void (*sinusoid)(Mem y, const float *t, const float *f, int rows, int dim, bool cos_first);

    // -- two steps in one: the tensor between them need not exist. Where one would gain nothing, it is NULL.
    // conv2d() of the group norm of x; residual may be y.
    void (*conv2d_normed)(Mem y, Mem x, Mem gamma, Mem beta, GroupNorm norm, Mem weight, Mem bias,
                          Mem residual, Conv p);
    // conv2d() of x (n, ceil(h / 2), ceil(w / 2), c), upsampled and cut to h x w pixels.
    void (*conv2d_upsampled)(Mem y, Mem x, Mem weight, Mem bias, Conv p);
    void (*conv2d_vector)(Mem y, Mem x, Mem weight, Mem bias, Mem v, Conv p); // conv2d() + v (n, oc)
    // Three products of one x: y[i] (m, n) = x w[i]^T, w[i] (n, k).
    void (*gemm_three)(const Mem *y, Mem x, const Mem *w, int m, int n, int k);
    // y (m, n) = geglu(x w^T + bias), w (2 n, k).
    void (*gemm_geglu)(Mem y, Mem x, Mem w, Mem bias, int m, int n, int k);

    // -- losses
    // *loss = mean over rows of weight[r] * mean over cols of f(prediction - target); weight NULL: 1.
    void (*loss)(float *loss, Mem prediction, Mem target, const float *weight, int rows, int cols, Loss f,
                 float c);
    // dprediction += *dloss * its derivative.
    void (*loss_backward)(Mem dprediction, const float *dloss, Mem prediction, Mem target,
                          const float *weight, int rows, int cols, Loss f, float c);
    void (*log_softmax)(Mem y, Mem x, int rows, int cols);
    void (*log_softmax_backward)(Mem dx, Mem dy, Mem y, int rows, int cols); // dx += dy - exp(y) sum(dy)
    // *loss = - mean over rows of x[r, ids[r]]; a row with a negative id adds nothing but is counted.
    void (*pick)(float *loss, Mem x, const int32_t *ids, int rows, int cols);
    void (*pick_backward)(Mem dx, const float *dloss, const int32_t *ids, int rows, int cols);

    // -- optimiser
    void (*sum_square)(OptimiserState *s, const float *g, size_t count); // s->sum_square += sum g^2
    void (*optimiser_begin)(OptimiserState *s, OptimiserConfig c);       // step, norm, clip, rate
    // One AdamW step (Loshchilov and Hutter 2019, as torch.optim.AdamW) on one parameter tensor; clears g.
    void (*adamw)(float *w, float *m, float *v, float *g, const OptimiserState *s, OptimiserConfig c,
                  size_t count);
    // e = decay e + (1 - decay) w, unless the step was bad (s may be NULL).
    void (*ema)(float *e, const float *w, const OptimiserState *s, float decay, size_t count);
    // All four for a list of tensors at once, in a few launches; NULL where that gains nothing.
    void (*optimise)(const TrainedTensor *list, int count, OptimiserState *s, OptimiserConfig c, float decay);
} Backend;

// The initialisers of a table whose functions bear the names of its members.
#define KERNELS_BY_NAME                                                                                      \
    .fill = fill, .copy = copy, .gemm = gemm, .conv2d = conv2d,                                              \
    .conv2d_backward_input = conv2d_backward_input, .conv2d_backward_weight = conv2d_backward_weight,        \
    .sum_rows = sum_rows, .attention = attention, .attention_backward = attention_backward,                  \
    .group_norm = group_norm, .group_norm_backward = group_norm_backward, .layer_norm = layer_norm,          \
    .layer_norm_backward = layer_norm_backward, .activation = activation,                                    \
    .activation_backward = activation_backward, .geglu = geglu, .geglu_backward = geglu_backward,            \
    .combine = combine, .combine_rows = combine_rows, .clamp = clamp, .multiply = multiply,                  \
    .add_vector = add_vector, .copy_columns = copy_columns, .upsample = upsample,                            \
    .upsample_backward = upsample_backward, .pool = pool, .pool_backward = pool_backward, .embed = embed,    \
    .embed_backward = embed_backward, .sinusoid = sinusoid, .conv2d_normed = conv2d_normed,                  \
    .conv2d_upsampled = conv2d_upsampled, .loss = loss, .loss_backward = loss_backward,                      \
    .log_softmax = log_softmax, .log_softmax_backward = log_softmax_backward, .pick = pick,                  \
    .pick_backward = pick_backward, .sum_square = sum_square, .optimiser_begin = optimiser_begin,            \
    .adamw = adamw, .ema = ema

extern Backend backend;         // the one that runs the kernels
void backend_init(int threads); // once, first. 0: OMP_NUM_THREADS, or as many as there are cores
// Behind it, for --dtype: what products multiply from now on. F32, or BF16: they round their operands, and
// sums stay fp32; not for training. Dies where the processor cannot, and on a GPU of another type than its
// build's.
void backend_dtype(Type type);

#ifdef __cplusplus
}
#endif
#endif
