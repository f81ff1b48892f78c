// nn.h: tensors, the operations of neural networks, the tape that differentiates them, named parameters,
// the optimiser, and PyTorch's random numbers.
//
// A model is plain C that runs line by line:
//     h = conv2d(group_norm_silu(x, &r->norm1, 32, 1e-5f), &r->conv1, 1, 1);
// Each call computes at once. While the tape records, it also notes what it did, and backward(loss) plays the
// notes in reverse. Operations know no file format and no model.
//   tensor.c (memory, tape)  ops.c (each forward beside its backward)  params.c  optim.c  random.c
#ifndef NN_H
#define NN_H

#include "lib/base.h"
#include "kernels.h"

// ---- tensors -----------------------------------------------------------------------------------------------

// Pictures are (n, h, w, c), sequences (n, tokens, c), matrices (rows, cols). Most operations see only the last
// axis: "rows" are all the others together.
typedef struct {
    int dims, shape[4];
    Type type;
    void *data; // backend memory
    void
        *gradient; // backend memory of the same size, or NULL; backend.storage of activations, fp32 of parameters
    bool wants_grad; // backward() is to compute the gradient
} Tensor;

Tensor *tensor_new(int dims, const int *shape); // activation in the current scope, not filled
Tensor *tensor_new_type(int dims, const int *shape, Type type);
Tensor *tensor_from(int dims, const int *shape, const float *host); // with these values
void tensor_write(Tensor *t, const float *host);
float *tensor_read(const Tensor *t); // a new host array of fp32: for printing, saving and tests
float tensor_item(const Tensor *t);  // the one number of a loss
bool tensor_finite(const Tensor *t); // no NaN and no infinity in it (read back)
size_t tensor_count(const Tensor *t);
int tensor_rows(const Tensor *t), tensor_cols(const Tensor *t);
#define SHAPE(...)                                                                                           \
    (int)(sizeof((int[]){__VA_ARGS__}) / sizeof(int)), (int[]) { __VA_ARGS__ }

static inline Mem mem(const Tensor *t) { return t ? (Mem){t->data, t->type} : (Mem){0}; }
// Where the gradient is to be added; absent where it is not wanted. Fresh ones are cleared.
Mem grad(Tensor *t);

// A scope: what is created in it goes at its end, but for the result, which moves up to where the scope
// began. While the tape records nothing goes: backward needs it.
typedef struct {
    size_t data, structs;
} Scope;
Scope scope_begin(void);
Tensor *scope_end(Scope s, Tensor *result); // result may be NULL

// ---- the tape ----------------------------------------------------------------------------------------------

void tape_begin(void);       // record from here on; opens a scope
void backward(Tensor *loss); // gradients of everything recorded that wants one; loss is one number
void tape_end(void);         // forget the records, close the scope
// Where numbers that are not finite began: the first operation whose output is so, or else (backward) the first that
// made such a gradient. After backward() and a step of the optimiser, before tape_end(); slow, for the last words of a run.
typedef struct {
    const char *operation;   // "conv2d"; NULL: all is finite
    bool backward;           // its gradients, not its output
    const Tensor *inputs[4]; // its other inputs, among them its parameters
} Culprit;
Culprit tape_culprit(Tensor *loss);
bool tape_pause(void);        // stop recording for a while (a frozen teacher): returns the state for
void tape_resume(bool state); //   this
// A block of a network, called through one door: it runs in a scope of its own. While the tape records and
// `checkpointing` is set, only its result is kept, and backward runs the block a second time to differentiate
// it (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").
typedef Tensor *Block(const void *layer, Tensor *const *in);
Tensor *run_block(Block *f, const void *layer, Tensor *const *in, int in_count); // in_count at most 4
extern bool checkpointing;

// A block's output under the name that diffusers gives the module; does nothing unless a sink is set.
typedef void TraceSink(const char *name, const Tensor *t);
extern TraceSink *trace_sink;
Tensor *trace(Tensor *t, const char *name, ...) PRINTF_LIKE(2, 3); // returns t

// ---- parameters --------------------------------------------------------------------------------------------

// The parameters of a model, in the order and under the names of its checkpoint. A model declares them
// ("a convolution from 320 to 640 channels, called ..."); loading, made weights, initialising, saving and the
// optimiser then all walk one list. Shapes in memory: linear (out, in), convolution (out, kh, kw, in) -- on
// file PyTorch's (out, in, kh, kw); norm (c).
typedef struct {
    char *name;
    Tensor *tensor; // data is NULL until loaded
} Parameter;
typedef struct {
    Parameter *list;
    int count;
} Params;

// A low-rank update that hangs on a linear layer or a convolution: y += scale * up(down(x)).
typedef struct Adapter Adapter;
typedef struct {
    Tensor *weight, *bias; // bias may be NULL
    Adapter *adapters;     // a list, mostly empty
    const char *name;      // "unet.down_blocks.0.resnets.0.conv1"
} Layer;
struct Adapter {
    Tensor *down; // linear (rank, in), convolution (rank, kh, kw, in)
    Tensor *up;   // (out, rank)
    float scale;
    Adapter *next;
};

int layer_inputs(const Layer *l); // how many numbers it reads for one of a row's outputs: in, or kh kw in
// w += scale up down. w: fp32, the layer's weights or a copy. Over a convolution's window down and w run in the same
// order, so there too it is one product.
void adapter_add(Tensor *w, const Adapter *a, float scale);

Layer *layer_linear(Params *p, int in, int out, bool bias, const char *name, ...) PRINTF_LIKE(5, 6);
Layer *layer_conv(Params *p, int in, int out, int kh, int kw, bool bias, const char *name, ...)
    PRINTF_LIKE(7, 8);
Layer *layer_norm_params(Params *p, int channels, const char *name, ...)
    PRINTF_LIKE(3, 4); // group and layer norms
Tensor *param_tensor(Params *p, int dims, const int *shape, const char *name, ...) PRINTF_LIKE(4, 5);
Layer *params_layer(const Params *p, const char *name); // the layer declared under that name, or NULL
Tensor *params_find(const Params *p, const char *name); // NULL where absent
size_t params_count(const Params *p);                   // numbers in all
// Those whose names begin with prefix ("unet."); they stand together, and the list stays all's.
Params params_part(const Params *all, const char *prefix);
// The shape that PyTorch's files have: convolutions (out, in, kh, kw), everything else as in memory. Returns dims.
int param_file_shape(const Tensor *t, int64_t shape[4]);
// Memory for a parameter (not filled), and for its gradient, which makes it trainable.
void param_allocate(Tensor *t, Type type);
void param_trainable(Tensor *t);
void params_free(Params *p);

// ---- operations --------------------------------------------------------------------------------------------

Tensor *linear(Tensor *x, const Layer *l);                            // (..., in) -> (..., out)
Tensor *linear_add(Tensor *x, const Layer *l, Tensor *residual);      // + residual (..., out)
Tensor *matmul(Tensor *a, Tensor *b, bool b_transposed, float alpha); // (m, k) x (k, n), or (n, k) transposed
Tensor *conv2d(Tensor *x, const Layer *l, int stride, int padding);
Tensor *conv2d_add(Tensor *x, const Layer *l, Tensor *residual); // 3x3 or 1x1, stride 1, same size
// The general form: padding above and on the left; how far it goes below and on the right oh and ow say.
Tensor *conv2d_padded(Tensor *x, const Layer *l, int stride, int pad_top, int pad_left, int oh, int ow);
Tensor *group_norm(Tensor *x, const Layer *l, int groups, float eps);
Tensor *group_norm_silu(Tensor *x, const Layer *l, int groups, float eps);
Tensor *batch_norm_batch(Tensor *x, const Layer *l, float eps); // with the statistics of this batch
Tensor *layer_norm(Tensor *x, const Layer *l, float eps);
Tensor *attention(Tensor *q, Tensor *k, Tensor *v, int heads,
                  bool causal); // (n, t, heads d), scale 1 / sqrt(d)
Tensor *activation(Tensor *x, Activation f);
Tensor *activation_in_place(Tensor *x, Activation f); // overwrites x, unless the tape records
Tensor *geglu(Tensor *x);                             // (..., 2 c) -> (..., c)
Tensor *add(Tensor *a, Tensor *b);
Tensor *clamp(Tensor *x, float range);                   // to [-range, range]; no gradient
Tensor *combine(float a, Tensor *x, float b, Tensor *z); // a x + b z; z may be NULL
// a[i] x + b[i] z for picture i of the batch; a, b (n) host arrays; z may be NULL.
Tensor *combine_each(const float *a, Tensor *x, const float *b, Tensor *z);
Tensor *multiply(Tensor *a, Tensor *b);
Tensor *add_vector(Tensor *x, Tensor *v); // x (n, h, w, c) + v (n, c)
Tensor *concat(Tensor *a, Tensor *b);     // along the last axis
Tensor *concat_many(Tensor **parts, int count);
Tensor *slice(Tensor *x, int from, int count); // of the last axis
Tensor *take(Tensor *x, int from, int count);  // of the first axis (a batch's part; a copy)
Tensor *stack(Tensor *a, Tensor *b);           // along the first axis
Tensor *upsample(Tensor *x);                   // nearest, twice as high and wide
Tensor *crop(Tensor *x, int h, int w);         // the upper left h x w pixels
Tensor *pool(Tensor *x, Pool kind, int size, int stride, int padding);
Tensor *reshape(Tensor *x, int dims, const int *shape); // the same numbers, another shape
Tensor *embed(Tensor *table, const int *ids, int dims,
              const int *shape); // host ids, `shape` of them -> (shape..., c)
Tensor *sinusoid(const float *t, int count, int dim, bool cos_first, float shift); // host t -> (count, dim)
Tensor *log_softmax(Tensor *x);                                                    // over the last axis

// Losses: one number. weight (n), host, one a picture or row of the first axis; NULL: all 1.
Tensor *loss_between(Tensor *prediction, Tensor *target, const float *weight, Loss f, float c);
Tensor *loss_pick(Tensor *log_probabilities,
                  const int *ids); // mean of -log p[ids]; negative ids are left out

// ---- optimiser ---------------------------------------------------------------------------------------------

typedef struct {
    OptimiserConfig config;
    OptimiserState *state; // backend memory
    int count;
    Tensor **tensors; // the trainable parameters
    float **m, **v;   // their moments
    float **ema;      // their moving average, or NULL
    float ema_decay;
    long steps; // so far
    bool
        ema_warmup; // a short memory at first: after n steps at most (1 + n) / (10 + n), so that the start is forgotten
    char **names;
} Optimiser;
// Over every trainable parameter of the models given.
Optimiser *optimiser_new(OptimiserConfig c, float ema_decay /* 0: none */, const Params *const *models,
                         int model_count);
void optimiser_step(Optimiser *o);                 // clip, rate, AdamW, EMA; clears the gradients
OptimiserState optimiser_read(const Optimiser *o); // waits; at most once a step
void optimiser_free(Optimiser *o);
void optimiser_swap_ema(Optimiser *o); // parameters <-> moving averages, to draw or save with the latter

// ---- random numbers ----------------------------------------------------------------------------------------

// PyTorch's generator on the CPU: MT19937 (Matsumoto and Nishimura 1998), and its two ways to normal numbers.
typedef struct {
    uint32_t state[624];
    int next;
    bool has_spare;
    double spare; // second value of a Box-Muller pair, for draws of fewer than 16
    bool philox;  // or the GPU generator's stream
    uint64_t seed, offset;
} Random;
void random_seed(Random *r, uint64_t seed);        // torch.manual_seed
void random_seed_philox(Random *r, uint64_t seed); // as torch.cuda's generator
uint32_t random_u32(Random *r);
float random_uniform(Random *r);                         // torch.rand: 24 bits, [0, 1)
int random_below(Random *r, int n);                      // 0 to n - 1
void random_normal(Random *r, float *out, size_t count); // torch.randn(count)
// Philox 4x32-10 (Salmon et al. 2011): four random words of a counter and a key.
void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

#endif
