// nn.h: tensors, the operations of neural networks, the tape that differentiates them, named parameters, the
// optimiser, and PyTorch's random numbers.
//
// A model is plain C that runs line by line:
//     h = conv2d(group_norm_silu(x, r->norm1, 32, 1e-5f), r->conv1, 1, 1);
// Each call computes at once. While the tape records, the call also notes what it did. backward(loss) then
// plays these records in reverse. Operations know no file format and no model.
//   tensor.c (memory, tape)  ops.c, losses.c (each forward beside its backward)  params.c  optim.c  random.c
#ifndef NN_H
#define NN_H

#include "lib/base.h"
#include "kernels.h"

// ---- tensors ----------------------------------------------------------------------------------------------

// Pictures are (n, h, w, c), sequences (n, tokens, c), matrices (rows, cols). Most operations treat a tensor
// as a matrix: the last axis holds its columns, all other axes together are its rows.
typedef struct {
    int dims, shape[4];
    Type type;
    void *data;      // backend memory
    void *gradient;  // backend memory with as many elements, or NULL. A parameter's is fp32.
    bool wants_grad; // backward() computes the gradient: requires_grad
    size_t place;    // where it lies on the stack of scratch memory: 1 + the mark below it. 0: not there
} Tensor;

Tensor *tensor_new(int dims, const int *shape); // an activation in the current scope, not filled
Tensor *tensor_new_type(int dims, const int *shape, Type type);
Tensor *tensor_from(int dims, const int *shape, const float *host); // fp32, with these values
void tensor_write(Tensor *t, const float *host);
float *tensor_read(const Tensor *t); // a new host array of fp32: for printing, saving and tests
float tensor_item(const Tensor *t);  // the value of a tensor with one element, such as a loss
bool tensor_finite(const Tensor *t); // holds no NaN and no infinity (reads it back)
size_t tensor_count(const Tensor *t);
int tensor_rows(const Tensor *t), tensor_cols(const Tensor *t);
#define SHAPE(...)                                                                                           \
    (int)(sizeof((int[]){__VA_ARGS__}) / sizeof(int)), (int[]) { __VA_ARGS__ }

static inline Mem mem(const Tensor *t) { return t ? (Mem){t->data, t->type} : (Mem){0}; }
// Where an operation's backward adds this tensor's gradient, at first zero. Absent where nobody wants it.
Mem grad(Tensor *t);
// The same for a kernel that can also store: one that has not begun yet holds anything, and *begun is false.
Mem grad_to_store(Tensor *t, bool *begun);

// A scope gives memory back. scope_end() frees every tensor made since scope_begin(), except the result: it
// moves to where the scope began, and the pointer returned replaces the old one. The result may be NULL.
// While the tape records, nothing is freed, because backward() needs it.
typedef struct {
    size_t data, structs;
} Scope;
Scope scope_begin(void);
Tensor *scope_end(Scope s, Tensor *result);
void *scope_memory(size_t bytes); // a small host array (at most 1 MB), zeroed, that goes with the scope
static inline float *scope_floats(int n) { return scope_memory((size_t)n * sizeof(float)); }
static inline int *scope_ints(int n) { return scope_memory((size_t)n * sizeof(int)); }
// Copies t into *slot, a tensor that outlives all scopes. The first call makes it, tensor_discard() frees it.
void tensor_keep(Tensor **slot, const Tensor *t);
void tensor_discard(Tensor *kept); // may be NULL

// ---- the tape ---------------------------------------------------------------------------------------------

void tape_begin(void); // record from here on; opens a scope
// Every recorded tensor that wants a gradient gets it; loss has one element. Behind it only leaves have
// theirs, tensors that no operation made, such as parameters: others' memory is used again on the way.
void backward(Tensor *loss);
void tape_end(void);          // forget the records, close the scope
void tape_mute(bool mute);    // until it ends, tape_begin() records nothing, and backward() does nothing
bool tape_pause(void);        // stop recording for a while, as torch.no_grad() does; returns the state
void tape_resume(bool state); //   for this
// The operation in which the first NaN or infinity arose: in its output or, if all outputs are finite, in the
// gradients that its backward made. To be called after backward() and before tape_end(). It runs the backward
// again and reads everything back, so it is slow: it serves the error message of a run that failed.
typedef struct {
    const char *operation;   // "conv2d"; NULL: all is finite
    bool backward;           // it was in the gradients
    const Tensor *inputs[4]; // the operation's inputs from the second on, which include its parameters
} FirstNan;
FirstNan tape_first_nan(Tensor *loss);
// Runs a block of a network, f(layer, in), in a scope of its own. If the tape records and `checkpointing` is
// set, only the block's result is kept, and backward() runs the block again to differentiate it (Chen et al.
// 2016, "Training Deep Nets with Sublinear Memory Cost"; torch.utils.checkpoint).
typedef Tensor *Block(const void *layer, Tensor *const *in);
Tensor *run_block(Block *f, const void *layer, Tensor *const *in, int in_count); // in_count at most 4
// The same for a block of one input, the newest tensor, that nobody reads again: unless the tape records, the
// result takes its place.
Tensor *run_block_over(Block *f, const void *layer, Tensor *x);
extern bool checkpointing;
// Writes f(layer, in) to y and returns y; while the tape records, it returns the block's own result. The
// backend may repeat the block's calls without running it, where nothing has changed since: not the shapes
// and places of y and `in`, nor `state`, which must change with all else on the host that f depends on.
Tensor *run_repeated(Tensor *y, Block *f, const void *layer, uint64_t state, Tensor *const *in, int in_count);

// Hands a block's output to trace_sink, if one is set, under diffusers' name for the module. Returns t.
typedef void TraceSink(const char *name, const Tensor *t);
extern TraceSink *trace_sink;
Tensor *trace(Tensor *t, const char *name, ...) PRINTF_LIKE(2, 3);

// ---- parameters -------------------------------------------------------------------------------------------

// The parameters of a model, in the order and under the names of its checkpoint. A model declares them ("a
// convolution from 320 to 640 channels, called ..."). Whoever loads, initialises, trains or saves the model
// walks this list. Shapes in memory: linear (out, in), norm (c), convolution (out, kh, kw, in). Files have
// PyTorch's (out, in, kh, kw).
typedef struct Layer Layer;
typedef struct {
    char *name;
    Tensor *tensor; // data is NULL until loaded
    Layer *layer;   // of which it is the weight, or NULL
} Parameter;
typedef struct {
    Parameter *list;
    int count;
} Params;

// A low-rank update (LoRA) that is attached to a linear layer or a convolution: y += scale * up(down(x)).
typedef struct Adapter Adapter;
struct Layer {
    Tensor *weight, *bias; // bias may be NULL
    Adapter *adapters;     // a list, usually empty
    const char *name;      // "unet.down_blocks.0.resnets.0.conv1"
};
struct Adapter {
    Tensor *down; // linear (rank, in), convolution (rank, kh, kw, in)
    Tensor *up;   // (out, rank)
    float scale;
    Adapter *next;
};

int layer_inputs(const Layer *l); // how many inputs one output element depends on: in, or kh kw in
// w += scale up down, where w holds the layer's weights in fp32. The kernel of a convolution lies in memory
// as one row of `down` does, so the update is one matrix product there too.
void adapter_add(Tensor *w, const Adapter *a, float scale);

Layer *layer_linear(Params *p, int in, int out, bool bias, const char *name, ...) PRINTF_LIKE(5, 6);
Layer *layer_conv(Params *p, int in, int out, int kh, int kw, bool bias, const char *name, ...)
    PRINTF_LIKE(7, 8);
Layer *layer_norm_params(Params *p, int channels, const char *name, ...) PRINTF_LIKE(3, 4); // of any norm
Tensor *param_tensor(Params *p, int dims, const int *shape, const char *name, ...) PRINTF_LIKE(4, 5);
Layer *params_layer(const Params *p, const char *name); // the layer declared under that name, or NULL
Tensor *params_find(const Params *p, const char *name); // NULL where absent
size_t params_count(const Params *p);                   // elements of all tensors together
// The parameters whose names begin with prefix ("unet."), side by side in `all`, which keeps the list.
Params params_part(const Params *all, const char *prefix);
// The shape in PyTorch's files: convolutions (out, in, kh, kw), everything else as in memory. Returns dims.
int param_file_shape(const Tensor *t, int64_t shape[4]);
void param_allocate(Tensor *t, Type type); // memory, not filled
void param_trainable(Tensor *t);           // memory for its gradient, which makes it trainable
// A hash of where the parameters from `first` on lie and of the adapters on their layers, for run_repeated().
uint64_t params_state(const Params *p, int first, int count, uint64_t hash);
void params_unload(const Params *p); // frees their data; they stay declared
void params_free(Params *p);

// ---- operations -------------------------------------------------------------------------------------------

// Behind each stands PyTorch's counterpart; F is torch.nn.functional. Shapes are NHWC here and NCHW there.

// -- products
Tensor *linear(Tensor *x, const Layer *l);                       // F.linear: (..., in) -> (..., out)
Tensor *linear_add(Tensor *x, const Layer *l, Tensor *residual); // F.linear(x, ...) + residual
void linear_three(Tensor **y, Tensor *x, const Layer *const *l); // y[i] = linear(x, l[i]), i < 3
Tensor *linear_geglu(Tensor *x, const Layer *l);                 // geglu(linear(x, l))
// linear(x, l). Between constant_begin(x) and constant_end(), unless the tape records, it is computed once
// for each layer.
Tensor *linear_once(Tensor *x, const Layer *l);
void constant_begin(const Tensor *x);
void constant_end(void);
Tensor *matmul(Tensor *a, Tensor *b, bool b_transposed, float alpha); // alpha * a @ b, or alpha * a @ b.T
Tensor *conv2d(Tensor *x, const Layer *l, int stride, int padding);   // F.conv2d
Tensor *conv2d_add(Tensor *x, const Layer *l, Tensor *residual); // F.conv2d(..., padding="same") + residual
// In a block (run_block) a residual that the block itself has made is not read again: unless the tape
// records, linear_add and conv2d_add write the sum in its place.
// F.conv2d(F.pad(x, ...), ...): padding above and on the left; below and on the right it is what oh, ow need.
Tensor *conv2d_padded(Tensor *x, const Layer *l, int stride, int pad_top, int pad_left, int oh, int ow);
// Two steps in one, so that the tensor between them exists only if the tape records:
// conv2d_add(group_norm_silu(x, norm, groups, eps), l, residual), residual may be NULL
Tensor *norm_silu_conv2d(Tensor *x, const Layer *norm, int groups, float eps, const Layer *l,
                         Tensor *residual);
// add_vector(conv2d(group_norm_silu(x, norm, groups, eps), l, "same"), v)
Tensor *norm_silu_conv2d_vector(Tensor *x, const Layer *norm, int groups, float eps, const Layer *l,
                                Tensor *v);
Tensor *upsample_conv2d(Tensor *x, const Layer *l, int h, int w); // conv2d(crop(upsample(x), h, w), l, 1, 1)

// -- norms
Tensor *group_norm(Tensor *x, const Layer *l, int groups, float eps);      // F.group_norm
Tensor *group_norm_silu(Tensor *x, const Layer *l, int groups, float eps); // F.silu(F.group_norm(...))
Tensor *batch_norm_batch(Tensor *x, const Layer *l, float eps);            // F.batch_norm(..., training=True)
Tensor *layer_norm(Tensor *x, const Layer *l, float eps);                  // F.layer_norm over the last axis

// -- attention: F.scaled_dot_product_attention(q, k, v, is_causal=causal), each (n, tokens, heads d)
Tensor *attention(Tensor *q, Tensor *k, Tensor *v, int heads, bool causal);

// -- elementwise
Tensor *activation(Tensor *x, Activation f);          // F.silu, F.gelu, F.relu, ...
Tensor *activation_in_place(Tensor *x, Activation f); // the same with inplace=True, unless the tape records
Tensor *geglu(Tensor *x);               // value * F.gelu(gate), x = [value | gate] along the last axis
Tensor *exponential(Tensor *x);         // torch.exp
Tensor *logarithm(Tensor *x);           // torch.log, of positive x
Tensor *square(Tensor *x);              // torch.square
Tensor *add(Tensor *a, Tensor *b);      // a + b
Tensor *sub(Tensor *a, Tensor *b);      // a - b
Tensor *multiply(Tensor *a, Tensor *b); // a * b
Tensor *scale(Tensor *x, float a);      // a * x
Tensor *in_f32(Tensor *x);              // x.float()
Tensor *add_scalar(Tensor *x, float a); // x + a
Tensor *combine(float a, Tensor *x, float b, Tensor *z); // a * x + b * z; z may be NULL
// The same with coefficients for each picture of the batch, a[i] x[i] + b[i] z[i]; a, b (n) are host arrays.
Tensor *combine_each(const float *a, Tensor *x, const float *b, Tensor *z);
Tensor *add_vector(Tensor *x, Tensor *v); // x + v[:, None, None, :], x (n, h, w, c), v (n, c)
Tensor *clamp(Tensor *x, float range);    // x.clamp(-range, range); has no backward

// -- sums, in fp32
Tensor *sum(Tensor *x);          // x.sum(-1): over the last axis
Tensor *mean(Tensor *x);         // x.mean(): over everything, one element
Tensor *spatial_mean(Tensor *x); // x.mean((1, 2)): over the positions of a picture, (n, h, w, c) -> (n, c)
Tensor *pool(Tensor *x, Pool kind, int size, int stride, int padding); // F.max_pool2d, F.avg_pool2d

// -- data movement
Tensor *concat(Tensor *a, Tensor *b);                   // torch.cat([a, b], -1)
Tensor *concat_many(Tensor **parts, int count);         // torch.cat(parts, -1)
Tensor *stack(Tensor *a, Tensor *b);                    // torch.cat([a, b], 0)
Tensor *slice(Tensor *x, int from, int count);          // x[..., from : from + count]
Tensor *take(Tensor *x, int from, int count);           // x[from : from + count]
Tensor *crop(Tensor *x, int h, int w);                  // x[:, :h, :w]
Tensor *upsample(Tensor *x);                            // F.interpolate(x, scale_factor=2, mode="nearest")
Tensor *reshape(Tensor *x, int dims, const int *shape); // x.view(shape): the same memory
// F.embedding: row ids[i] of table (rows, c) for each of `shape` host ids -> (shape..., c)
Tensor *embed(Tensor *table, const int *ids, int dims, const int *shape);
// The sines and cosines of t[r] f[i], t (count) and frequencies f (dim / 2) on the host -> (count, dim)
Tensor *sinusoid(const float *t, const float *f, int count, int dim, bool cos_first);

// -- losses: one element in fp32
Tensor *log_softmax(Tensor *x); // F.log_softmax(x, -1), for loss_pick()
// F.mse_loss, F.l1_loss, pseudo-Huber with constant c. weight (n) on the host, one a picture; NULL: all 1.
Tensor *loss_between(Tensor *prediction, Tensor *target, const float *weight, Loss f, float c);
// F.nll_loss: the mean of -log p[ids]. A row with a negative id adds nothing but is counted.
Tensor *loss_pick(Tensor *log_probabilities, const int *ids);

// ---- optimiser --------------------------------------------------------------------------------------------

typedef struct {
    OptimiserConfig config;
    OptimiserState *state; // backend memory
    int count;
    Tensor **tensors; // the trainable parameters
    float **m, **v;   // their moments
    float **ema;      // their moving average, or NULL
    float ema_decay;
    bool ema_warmup; // after n steps the decay is at most (1 + n) / (10 + n), so that the start is forgotten
    long steps;      // so far
    char **names;
} Optimiser;
// Over every trainable parameter of the models given. ema_decay 0: no moving average.
Optimiser *optimiser_new(OptimiserConfig c, float ema_decay, const Params *const *models, int model_count);
void optimiser_step(Optimiser *o);                 // clip, learning rate, AdamW, EMA; clears the gradients
OptimiserState optimiser_read(const Optimiser *o); // waits for the backend: at most once a step
void optimiser_free(Optimiser *o);
void optimiser_swap_ema(Optimiser *o); // exchanges parameters and averages: to draw or save with the averages
double gradient_norm(const Params *p); // of all gradients together, which it clears; waits for the backend
Params optimiser_averages(const Optimiser *o); // the moving averages as parameters; they go with the scope

// ---- random numbers ---------------------------------------------------------------------------------------

// PyTorch's generator on the CPU: MT19937 (Matsumoto and Nishimura 1998). See random.c.
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
float random_uniform(Random *r);                              // torch.rand: 24 bits, [0, 1)
int random_below(Random *r, int n);                           // 0 to n - 1
void random_normal(Random *r, float *out, size_t count);      // torch.randn(count)
Tensor *random_tensor(Random *r, int dims, const int *shape); // torch.randn(shape)
// Philox 4x32-10 (Salmon et al. 2011): four random words of a counter and a key.
void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

#endif
