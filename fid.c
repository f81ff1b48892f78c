// fid.c: Phase 4, how good are the pictures? The Fréchet inception distance (Heusel et al. 2017) as the field's
// reference computes it: pytorch-fid, itself a copy of the TensorFlow original, quirks included. Two sets of
// pictures go through Inception-v3 (Szegedy et al. 2015); of its last average pooling's 2,048 numbers a picture,
// mean and covariance are compared as if they were Gaussian. The kernel inception distance (Binkowski et al.
// 2018) compares the same numbers without that assumption.
//
// Not here: the command line (cli/fid.c), file formats (lib/), the training of the toy world's small
// Inception (weights/toy/pretrain.c), which is this same network with a smaller configuration.
//
//   Inception-v3   pictures into the network   reading a folder   statistics   FID   KID   interval
// doc/READING.md, "The way of an FID", follows the tags F1 to F10.
#define _POSIX_C_SOURCE 200809L
#include "sd.h"         // Phase 4: what is defined here
#include "lib/nn/linalg.h" // product_f64, pivoted_cholesky, tridiagonalise, tridiagonal_eigenvalues

#include <float.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// ---- Inception-v3 -------------------------------------------------------------------------------------------

// The unit that everything is built from: convolution without bias, batch norm, ReLU. torchvision's BasicConv2d.
typedef struct {
    Layer *conv, *bn;   // "NAME.conv.weight"; "NAME.bn.weight", "NAME.bn.bias"
    Tensor *mean, *var; // "NAME.bn.running_mean", "NAME.bn.running_var"
    int stride, pad_h, pad_w;
    double *sums; // inception_gather: of each channel's outputs, then of their squares
    double count; // of numbers in each sum
} Unit;

// The stem is one chain of units. The blocks behind it are of five kinds: each runs several chains (and a
// pooling) on the same input and concatenates what comes out along the channels. Names as in torchvision.
typedef struct {
    Unit Conv2d_1a_3x3, Conv2d_2a_3x3, Conv2d_2b_3x3, Conv2d_3b_1x1, Conv2d_4a_3x3;
} Stem; // 299x299 -> 35x35
typedef struct {
    Unit branch1x1, branch5x5_1, branch5x5_2, branch3x3dbl_1, branch3x3dbl_2, branch3x3dbl_3, branch_pool;
} BlockA; // 35x35
typedef struct {
    Unit branch3x3, branch3x3dbl_1, branch3x3dbl_2, branch3x3dbl_3;
} BlockB; // 35x35 -> 17x17
typedef struct {
    Unit branch1x1, branch7x7_1, branch7x7_2, branch7x7_3, branch7x7dbl_1, branch7x7dbl_2, branch7x7dbl_3,
        branch7x7dbl_4, branch7x7dbl_5, branch_pool;
} BlockC; // 17x17
typedef struct {
    Unit branch3x3_1, branch3x3_2, branch7x7x3_1, branch7x7x3_2, branch7x7x3_3, branch7x7x3_4;
} BlockD; // 17x17 -> 8x8
typedef struct {
    Unit branch1x1, branch3x3_1, branch3x3_2a, branch3x3_2b, branch3x3dbl_1, branch3x3dbl_2, branch3x3dbl_3a,
        branch3x3dbl_3b, branch_pool;
} BlockE; // 8x8

enum { MAX_A = 3, MAX_C = 4, MAX_E = 2, FID_CLASSES = 1008 };
static const float bn_eps = 0.001f; // TensorFlow's; PyTorch's default is 1e-5

struct Inception {
    int size, width, a_count, c_count, e_count, classes, dim;
    Json *config; // holds the heads' names
    Stem stem;
    BlockA a[MAX_A]; // Mixed_5b, 5c, 5d
    BlockB b;        // Mixed_6a
    BlockC c[MAX_C]; // Mixed_6b, 6c, 6d, 6e
    BlockD d;        // Mixed_7a
    BlockE e[MAX_E]; // Mixed_7b, 7c
    Layer *fc;       // not used by FID itself
    Params params;
    Unit **units; // all of them, in the order of the file
    int unit_count;
    bool folded, gathering;
};

static void declare_unit(Inception *net, Unit *u, int in, int out, int kh, int kw, int stride, bool same_size,
                         const char *block, const char *name) {
    char full[64];
    snprintf(full, sizeof full, "%s%s%s", block, *block ? "." : "", name);
    u->stride = stride, u->pad_h = same_size ? kh / 2 : 0, u->pad_w = same_size ? kw / 2 : 0;
    u->conv = layer_conv(&net->params, in, out, kh, kw, false, "%s.conv", full);
    u->bn = layer_norm_params(&net->params, out, "%s.bn", full);
    u->mean = param_tensor(&net->params, SHAPE(out), "%s.bn.running_mean", full);
    u->var = param_tensor(&net->params, SHAPE(out), "%s.bn.running_var", full);
    net->units = xrealloc(net->units, (size_t)(net->unit_count + 1) * sizeof(Unit *));
    net->units[net->unit_count++] = u;
}

// A unit of block b: input channels, output channels, window; and whether it keeps the size (padded), trims it by
// the window's margin (not padded) or halves it (stride 2, not padded).
#define KEEP(unit, in, out, kh, kw) declare_unit(net, &b->unit, in, out, kh, kw, 1, true, name, #unit)
#define TRIM(unit, in, out, kh, kw) declare_unit(net, &b->unit, in, out, kh, kw, 1, false, name, #unit)
#define HALVE(unit, in, out, kh, kw) declare_unit(net, &b->unit, in, out, kh, kw, 2, false, name, #unit)

// w: the width in sixteenths; every channel number of Inception-v3 is a multiple of 16. Each returns the channels
// that come out.
static void declare_stem(Inception *net, Stem *b, int w) {
    static const char name[] = "";
    HALVE(Conv2d_1a_3x3, 3, 2 * w, 3, 3);
    TRIM(Conv2d_2a_3x3, 2 * w, 2 * w, 3, 3);
    KEEP(Conv2d_2b_3x3, 2 * w, 4 * w, 3, 3);
    KEEP(Conv2d_3b_1x1, 4 * w, 5 * w, 1, 1);
    TRIM(Conv2d_4a_3x3, 5 * w, 12 * w, 3, 3);
}

static int declare_a(Inception *net, BlockA *b, const char *name, int in, int pool_features, int w) {
    KEEP(branch1x1, in, 4 * w, 1, 1);
    KEEP(branch5x5_1, in, 3 * w, 1, 1);
    KEEP(branch5x5_2, 3 * w, 4 * w, 5, 5);
    KEEP(branch3x3dbl_1, in, 4 * w, 1, 1);
    KEEP(branch3x3dbl_2, 4 * w, 6 * w, 3, 3);
    KEEP(branch3x3dbl_3, 6 * w, 6 * w, 3, 3);
    KEEP(branch_pool, in, pool_features, 1, 1);
    return 14 * w + pool_features;
}

static int declare_b(Inception *net, BlockB *b, const char *name, int in, int w) {
    HALVE(branch3x3, in, 24 * w, 3, 3);
    KEEP(branch3x3dbl_1, in, 4 * w, 1, 1);
    KEEP(branch3x3dbl_2, 4 * w, 6 * w, 3, 3);
    HALVE(branch3x3dbl_3, 6 * w, 6 * w, 3, 3);
    return 30 * w + in;
}

static int declare_c(Inception *net, BlockC *b, const char *name, int in, int c7, int w) {
    KEEP(branch1x1, in, 12 * w, 1, 1);
    KEEP(branch7x7_1, in, c7, 1, 1);
    KEEP(branch7x7_2, c7, c7, 1, 7); // 7x7 as a row of 1x7 and a column of 7x1
    KEEP(branch7x7_3, c7, 12 * w, 7, 1);
    KEEP(branch7x7dbl_1, in, c7, 1, 1);
    KEEP(branch7x7dbl_2, c7, c7, 7, 1);
    KEEP(branch7x7dbl_3, c7, c7, 1, 7);
    KEEP(branch7x7dbl_4, c7, c7, 7, 1);
    KEEP(branch7x7dbl_5, c7, 12 * w, 1, 7);
    KEEP(branch_pool, in, 12 * w, 1, 1);
    return 48 * w;
}

static int declare_d(Inception *net, BlockD *b, const char *name, int in, int w) {
    KEEP(branch3x3_1, in, 12 * w, 1, 1);
    HALVE(branch3x3_2, 12 * w, 20 * w, 3, 3);
    KEEP(branch7x7x3_1, in, 12 * w, 1, 1);
    KEEP(branch7x7x3_2, 12 * w, 12 * w, 1, 7);
    KEEP(branch7x7x3_3, 12 * w, 12 * w, 7, 1);
    HALVE(branch7x7x3_4, 12 * w, 12 * w, 3, 3);
    return 32 * w + in;
}

static int declare_e(Inception *net, BlockE *b, const char *name, int in, int w) {
    KEEP(branch1x1, in, 20 * w, 1, 1);
    KEEP(branch3x3_1, in, 24 * w, 1, 1);
    KEEP(branch3x3_2a, 24 * w, 24 * w, 1, 3);
    KEEP(branch3x3_2b, 24 * w, 24 * w, 3, 1);
    KEEP(branch3x3dbl_1, in, 28 * w, 1, 1);
    KEEP(branch3x3dbl_2, 28 * w, 24 * w, 3, 3);
    KEEP(branch3x3dbl_3a, 24 * w, 24 * w, 1, 3);
    KEEP(branch3x3dbl_3b, 24 * w, 24 * w, 3, 1);
    KEEP(branch_pool, in, 12 * w, 1, 1);
    return 128 * w;
}

static int config_number(const Json *config, const char *key, int fallback, int least, int most) {
    double x = json_get_number(config, key, fallback);
    if (!(x >= least && x <= most) || x != floor(x))
        die("the Inception configuration's %s is %g; a whole number from %d to %d is expected", key, x, least,
            most);
    return (int)x;
}

Inception *inception_new(const char *config) {
    Inception *net = xcalloc(1, sizeof *net);
    const Json *j = net->config =
        config ? json_parse(config, strlen(config), "the Inception configuration") : NULL;
    int w = net->width = config_number(j, "width", 16, 1, 64);
    net->size = config_number(j, "size", 299, 75, 4096); // below 75 nothing is left for the last blocks
    net->a_count = config_number(j, "a", MAX_A, 1, MAX_A);
    net->c_count = config_number(j, "c", MAX_C, 1, MAX_C);
    net->e_count = config_number(j, "e", MAX_E, 1, MAX_E);
    const Json *heads = json_get(j, "heads");
    net->classes = heads ? 0 : config_number(j, "classes", FID_CLASSES, 1, 1 << 20);
    for (size_t i = 0; heads && i < heads->length; i++) {
        const Json *head = &heads->items[i];
        if (head->kind != JSON_ARRAY || !head->length)
            die("the Inception configuration's head %s has no classes", head->key);
        for (size_t k = 0; k < head->length; k++)
            if (head->items[k].kind != JSON_STRING)
                die("the Inception configuration's head %s names no class %zu", head->key, k);
        net->classes += (int)head->length;
    }

    declare_stem(net, &net->stem, w);
    static const char *const a_names[MAX_A] = {"Mixed_5b", "Mixed_5c", "Mixed_5d"};
    static const char *const c_names[MAX_C] = {"Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"};
    static const char *const e_names[MAX_E] = {"Mixed_7b", "Mixed_7c"};
    static const int c7[MAX_C] = {8, 10, 10, 12}; // 128, 160, 160, 192
    int c = 12 * w;
    for (int i = 0; i < net->a_count; i++) c = declare_a(net, &net->a[i], a_names[i], c, (i ? 4 : 2) * w, w);
    c = declare_b(net, &net->b, "Mixed_6a", c, w);
    for (int i = 0; i < net->c_count; i++) c = declare_c(net, &net->c[i], c_names[i], c, c7[i] * w, w);
    c = declare_d(net, &net->d, "Mixed_7a", c, w);
    for (int i = 0; i < net->e_count; i++) c = declare_e(net, &net->e[i], e_names[i], c, w);
    net->dim = c;
    net->fc = layer_linear(&net->params, c, net->classes, true, "fc");
    return net;
}

Params *inception_params(Inception *net) { return &net->params; }
int inception_size(const Inception *net) { return net->size; }
int inception_dim(const Inception *net) { return net->dim; }
int inception_classes(const Inception *net) { return net->classes; }

int inception_head(const Inception *net, int i, const char **name, const char **classes, int room) {
    const Json *heads = json_get(net->config, "heads");
    if (!heads || i < 0 || (size_t)i >= heads->length) return 0;
    const Json *head = &heads->items[i];
    *name = head->key;
    for (int k = 0; k < (int)head->length && k < room; k++) classes[k] = head->items[k].string;
    return (int)head->length;
}

void inception_free(Inception *net) {
    for (int i = 0; i < net->unit_count; i++) free(net->units[i]->sums);
    params_free(&net->params);
    if (net->config) json_free(net->config);
    free(net->units), free(net);
}

// [F4] A trained batch norm is a fixed scale and shift of each channel, so it can join the convolution before it:
//   gamma (w * x - mean) / sqrt(var + eps) + beta  =  (w s) * x + (beta - mean s),   s = gamma / sqrt(var + eps)
void inception_fold(Inception *net) {
    for (int i = 0; i < net->unit_count && !net->folded; i++) {
        Unit *u = net->units[i];
        size_t out = (size_t)u->conv->weight->shape[0], each = tensor_count(u->conv->weight) / out;
        float *weight = tensor_read(u->conv->weight), *gamma = tensor_read(u->bn->weight);
        float *beta = tensor_read(u->bn->bias), *mean = tensor_read(u->mean), *var = tensor_read(u->var);
        for (size_t c = 0; c < out; c++) {
            if (!(var[c] >= 0))
                die("%s.running_var[%zu] is %g; a variance cannot be negative", u->bn->name, c,
                    (double)var[c]);
            double s = gamma[c] / sqrt((double)var[c] + (double)bn_eps);
            for (size_t k = 0; k < each; k++) weight[c * each + k] = (float)(weight[c * each + k] * s);
            beta[c] = (float)(beta[c] - mean[c] * s);
        }
        tensor_write(u->conv->weight, weight);
        tensor_write(u->bn->bias, beta);
        u->conv->bias = u->bn->bias;
        free(weight), free(gamma), free(beta), free(mean), free(var);
    }
    net->folded = true;
}

static const Stored *find_in_store(void *store, const char *name) { return store_find(store, name); }

Inception *inception_load(const char *path) {
    Store *store = store_open(path);
    // torchvision's network has the same names and shapes, but its weights were trained anew, on other data
    // augmentation, with average pooling where this one has the maximum: its "FID" is another number.
    const Stored *fc = store_find(store, "fc.weight");
    const char *config = store_metadata(store, "inception");
    if (!config &&
        (store_find(store, "AuxLogits.conv0.conv.weight") || (fc && fc->ndim == 2 && fc->shape[0] == 1000)))
        die("%s holds torchvision's Inception-v3 (1000 classes); FID is defined by the TensorFlow network of "
            "2015 "
            "(1008 classes): weights/fetch.sh inception fetches it",
            path);
    Inception *net = inception_new(config);
    params_load(&net->params, find_in_store, store, path);
    params_to_f32(&net->params);
    store_close(store);
    inception_fold(net);
    return net;
}

void inception_initialise(Inception *net, Random *r) {
    for (int i = 0; i < net->params.count; i++) {
        Tensor *t = net->params.list[i].tensor;
        size_t n = tensor_count(t);
        if (!t->data) param_allocate(t, F32);
        float *x = xcalloc(n, sizeof(float));
        if (t->dims > 1) random_normal(r, x, n); // He et al. 2015: keeps the spread through a ReLU
        for (size_t k = 0; k < n && t->dims > 1; k++) x[k] *= sqrtf(2 / (float)(n / (size_t)t->shape[0]));
        tensor_write(t, x);
        free(x);
    }
    for (int i = 0; i < net->unit_count; i++) {
        Unit *u = net->units[i];
        backend.fill(mem(u->bn->weight), 1, tensor_count(u->bn->weight));
        backend.fill(mem(u->var), 1, tensor_count(u->var));
        param_trainable(u->conv->weight), param_trainable(u->bn->weight), param_trainable(u->bn->bias);
    }
    param_trainable(net->fc->weight), param_trainable(net->fc->bias);
}

// Exact statistics of many batches, rather than a moving average along the training whose end is noisy.
static void gather(Unit *u, const Tensor *y) {
    int channels = tensor_cols(y), rows = tensor_rows(y);
    float *x = tensor_read(y);
    for (size_t i = 0; i < (size_t)rows; i++)
        for (int c = 0; c < channels; c++) {
            double v = x[i * (size_t)channels + (size_t)c];
            u->sums[c] += v, u->sums[channels + c] += v * v;
        }
    u->count += rows;
    free(x);
}

void inception_gather(Inception *net, bool on) {
    for (int i = 0; i < net->unit_count; i++) {
        Unit *u = net->units[i];
        int channels = u->bn->weight->shape[0];
        if (on) {
            free(u->sums);
            u->sums = xcalloc(2 * (size_t)channels, sizeof(double)), u->count = 0;
            continue;
        }
        float *mean = xmalloc((size_t)channels * sizeof(float)),
              *var = xmalloc((size_t)channels * sizeof(float));
        if (!u->sums || !u->count) die("inception_gather: no picture went through the network");
        for (int c = 0; c < channels; c++) {
            double m = u->sums[c] / u->count;
            mean[c] = (float)m, var[c] = (float)fmax(u->sums[channels + c] / u->count - m * m, 0);
        }
        tensor_write(u->mean, mean), tensor_write(u->var, var);
        free(mean), free(var);
    }
    net->gathering = on;
}

static Tensor *unit(const Inception *net, Unit *u, Tensor *x) {
    int kh = u->conv->weight->shape[1], kw = u->conv->weight->shape[2];
    int oh = (x->shape[1] + 2 * u->pad_h - kh) / u->stride + 1;
    int ow = (x->shape[2] + 2 * u->pad_w - kw) / u->stride + 1;
    Tensor *y = conv2d_padded(x, u->conv, u->stride, u->pad_h, u->pad_w, oh, ow);
    if (net->gathering) gather(u, y);
    if (!net->folded) y = batch_norm_batch(y, u->bn, bn_eps);
    return activation_in_place(y, RELU);
}

#define UNIT(name, x) unit(net, &b->name, x)

// [F3] From 299x299x3 to 35x35x192.
static Tensor *stem(const Inception *net, Stem *b, Tensor *x) {
    x = UNIT(Conv2d_2b_3x3, UNIT(Conv2d_2a_3x3, UNIT(Conv2d_1a_3x3, x)));
    x = pool(x, POOL_MAX, 3, 2, 0);
    x = UNIT(Conv2d_4a_3x3, UNIT(Conv2d_3b_1x1, x));
    return pool(x, POOL_MAX, 3, 2, 0);
}

// [F5] Departure from torchvision: TensorFlow's average pooling divides by the pixels that lie inside the picture,
// torchvision's by 9 even at the border. The same in the blocks C and in the first E.
static Tensor *average_3x3(Tensor *x) { return pool(x, POOL_AVERAGE, 3, 1, 1); }

static Tensor *block_a(const Inception *net, BlockA *b, Tensor *x) {
    return concat_many((Tensor *[]){UNIT(branch1x1, x), UNIT(branch5x5_2, UNIT(branch5x5_1, x)),
                                    UNIT(branch3x3dbl_3, UNIT(branch3x3dbl_2, UNIT(branch3x3dbl_1, x))),
                                    UNIT(branch_pool, average_3x3(x))},
                       4);
}

static Tensor *block_b(const Inception *net, BlockB *b, Tensor *x) {
    return concat_many((Tensor *[]){UNIT(branch3x3, x),
                                    UNIT(branch3x3dbl_3, UNIT(branch3x3dbl_2, UNIT(branch3x3dbl_1, x))),
                                    pool(x, POOL_MAX, 3, 2, 0)},
                       3);
}

static Tensor *block_c(const Inception *net, BlockC *b, Tensor *x) {
    Tensor *twice = UNIT(branch7x7dbl_3, UNIT(branch7x7dbl_2, UNIT(branch7x7dbl_1, x)));
    return concat_many(
        (Tensor *[]){UNIT(branch1x1, x), UNIT(branch7x7_3, UNIT(branch7x7_2, UNIT(branch7x7_1, x))),
                     UNIT(branch7x7dbl_5, UNIT(branch7x7dbl_4, twice)), UNIT(branch_pool, average_3x3(x))},
        4);
}

static Tensor *block_d(const Inception *net, BlockD *b, Tensor *x) {
    Tensor *both = UNIT(branch7x7x3_3, UNIT(branch7x7x3_2, UNIT(branch7x7x3_1, x)));
    return concat_many((Tensor *[]){UNIT(branch3x3_2, UNIT(branch3x3_1, x)), UNIT(branch7x7x3_4, both),
                                    pool(x, POOL_MAX, 3, 2, 0)},
                       3);
}

// [F6] Another departure: the last block's pooling branch takes the maximum. That is an oddity of the very graph
// that FID was defined with (the paper and all other Inceptions average), and so part of the definition.
static Tensor *block_e(const Inception *net, BlockE *b, Tensor *x, bool last) {
    Tensor *one = UNIT(branch3x3_1, x), *two = UNIT(branch3x3dbl_2, UNIT(branch3x3dbl_1, x));
    return concat_many((Tensor *[]){UNIT(branch1x1, x), UNIT(branch3x3_2a, one), UNIT(branch3x3_2b, one),
                                    UNIT(branch3x3dbl_3a, two), UNIT(branch3x3dbl_3b, two),
                                    UNIT(branch_pool, last ? pool(x, POOL_MAX, 3, 1, 1) : average_3x3(x))},
                       6);
}

// Each block is a scope: its branches' memory goes when its result is there.
#define IN_SCOPE(call) (s = scope_begin(), x = scope_end(s, call))

Tensor *inception_features(Inception *net, Tensor *x) {
    if (x->dims != 4 || x->shape[1] != net->size || x->shape[2] != net->size || x->shape[3] != 3)
        die("Inception takes pictures of %d x %d pixels and 3 channels", net->size, net->size);
    Scope all = scope_begin(), s;
    IN_SCOPE(stem(net, &net->stem, x));
    for (int i = 0; i < net->a_count; i++) IN_SCOPE(block_a(net, &net->a[i], x));
    IN_SCOPE(block_b(net, &net->b, x));
    for (int i = 0; i < net->c_count; i++) IN_SCOPE(block_c(net, &net->c[i], x));
    IN_SCOPE(block_d(net, &net->d, x));
    for (int i = 0; i < net->e_count; i++) IN_SCOPE(block_e(net, &net->e[i], x, i == net->e_count - 1));
    x = pool(x, POOL_AVERAGE, x->shape[1], 1, 0); // the average over the picture: TensorFlow's "pool_3"
    return scope_end(all, reshape(x, SHAPE(x->shape[0], net->dim)));
}

Tensor *inception_logits(const Inception *net, Tensor *features) { return linear(features, net->fc); }

// ---- pictures into the network ------------------------------------------------------------------------------

// [F2] pytorch-fid: 8 bits / 255, bilinear to size x size, then to [-1, 1]. Output pixel i looks at the input
// around (i + 1/2) scale - 1/2, in fp32 as PyTorch does (align_corners False). No antialiasing: a large picture is
// sampled at sparse points, aliases and all. It is the definition: an antialiased resize gives another FID.
static void resize_fid(float *out, const Image *image, int size) {
    int w = image->width, h = image->height;
    float scale_x = (float)w / (float)size, scale_y = (float)h / (float)size;
    for (int i = 0; i < size; i++) {
        float y = fmaxf(scale_y * ((float)i + 0.5f) - 0.5f, 0);
        int y0 = (int)y < h ? (int)y : h - 1, y1 = y0 < h - 1 ? y0 + 1 : y0;
        float below = y - (float)y0;
        const unsigned char *r0 = image->rgb + 3 * (size_t)y0 * (size_t)w,
                            *r1 = image->rgb + 3 * (size_t)y1 * (size_t)w;
        for (int j = 0; j < size; j++) {
            float x = fmaxf(scale_x * ((float)j + 0.5f) - 0.5f, 0);
            int x0 = (int)x < w ? (int)x : w - 1, x1 = x0 < w - 1 ? x0 + 1 : x0;
            float right = x - (float)x0;
            for (int c = 0; c < 3; c++) {
                float p00 = r0[3 * x0 + c] / 255.0f, p01 = r0[3 * x1 + c] / 255.0f;
                float p10 = r1[3 * x0 + c] / 255.0f, p11 = r1[3 * x1 + c] / 255.0f;
                float v = (1 - below) * ((1 - right) * p00 + right * p01) +
                          below * ((1 - right) * p10 + right * p11);
                *out++ = 2 * v - 1;
            }
        }
    }
}

// The bicubic kernel of Keys (1981) with a = -1/2.
static double keys(double x) {
    x = fabs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    if (x < 2) return ((-0.5 * x + 2.5) * x - 4) * x + 2;
    return 0;
}

// The numbers of the input that one number of the output is made of, from first on, and their weights.
typedef struct {
    int first, count;
    double *weight;
} Window;

// Pillow's windows: when shrinking, the kernel is stretched by the scale, so that every input number counts.
static Window *windows(int in, int out) {
    double scale = (double)in / out, stretch = fmax(scale, 1), support = 2 * stretch;
    Window *list = xmalloc((size_t)out * sizeof *list);
    for (int i = 0; i < out; i++) {
        double center = (i + 0.5) * scale, sum = 0;
        int first = (int)fmax(center - support + 0.5, 0), end = (int)fmin(center + support + 0.5, in);
        list[i] = (Window){first, end - first, xmalloc((size_t)(end - first) * sizeof(double))};
        for (int k = 0; k < end - first; k++)
            sum += list[i].weight[k] = keys((first + k + 0.5 - center) / stretch);
        for (int k = 0; k < end - first; k++) list[i].weight[k] /= sum;
    }
    return list;
}

static void windows_free(Window *list, int count) {
    for (int i = 0; i < count; i++) free(list[i].weight);
    free(list);
}

// clean-fid (Parmar et al. 2022): each channel, as floats, through Pillow's bicubic with antialiasing, first the
// rows, then the columns; cut to 0..255 because the kernel overshoots. Its network then takes (x - 128) / 128.
static void resize_clean(float *out, const Image *image, int size) {
    int w = image->width, h = image->height;
    size_t row = 3 * (size_t)size;
    float *narrow = xmalloc((size_t)h * row * sizeof(float)); // (h, size, 3)
    Window *across = windows(w, size), *down = windows(h, size);
    for (int y = 0; y < h; y++)
        for (int x = 0; x < size; x++)
            for (int c = 0; c < 3; c++) {
                double sum = 0;
                const unsigned char *from =
                    image->rgb + 3 * ((size_t)y * (size_t)w + (size_t)across[x].first) + c;
                for (int k = 0; k < across[x].count; k++) sum += across[x].weight[k] * from[3 * k];
                narrow[(size_t)y * row + 3 * (size_t)x + (size_t)c] = (float)sum;
            }
    for (int y = 0; y < size; y++)
        for (size_t x = 0; x < row; x++) {
            double sum = 0;
            for (int k = 0; k < down[y].count; k++)
                sum += down[y].weight[k] * narrow[(size_t)(down[y].first + k) * row + x];
            out[(size_t)y * row + x] = ((float)fmin(fmax(sum, 0), 255) - 128) / 128;
        }
    windows_free(across, size), windows_free(down, size), free(narrow);
}

void fid_resize(float *out, const Image *image, int size, FidResize how) {
    if (how == RESIZE_CLEAN)
        resize_clean(out, image, size);
    else
        resize_fid(out, image, size);
}

// ---- reading a folder ---------------------------------------------------------------------------------------

// A batch that threads read, decode and resize while the network works on the one before.
typedef struct {
    char **paths;       // of all pictures
    size_t from, to;    // this batch
    atomic_size_t next; // the picture to take next
    int size;
    FidResize resize;
    float *pixels;  // (batch, size, size, 3)
    char **reasons; // (batch) why a picture could not be read, or NULL
    pthread_t thread[16];
    int thread_count;
} Batch;

static void *read_pictures(void *arg) {
    Batch *b = arg;
    for (size_t i; (i = atomic_fetch_add(&b->next, 1)) < b->to;) {
        const char *reason;
        Image *image = image_try_load(b->paths[i], &reason);
        b->reasons[i - b->from] = image ? NULL : xstrdup(reason);
        if (!image) continue;
        fid_resize(b->pixels + (i - b->from) * 3 * (size_t)b->size * (size_t)b->size, image, b->size,
                   b->resize);
        image_free(image);
    }
    return NULL;
}

static void batch_begin(Batch *b, size_t from, size_t to, int readers) {
    b->from = from, b->to = to, b->thread_count = 0;
    atomic_store(&b->next, from);
    while (b->thread_count < readers && !pthread_create(&b->thread[b->thread_count], NULL, read_pictures, b))
        b->thread_count++;
}

static void batch_wait(Batch *b) {
    read_pictures(b); // whoever waits lends a hand
    for (int i = 0; i < b->thread_count; i++) pthread_join(b->thread[i], NULL);
    b->thread_count = 0;
}

// The readers use what lies on the caller's stack: they end before an error takes it away.
static void batch_stop(Batch *b) {
    atomic_store(&b->next, b->to);
    batch_wait(b);
}

// [F1] A folder's pictures through the network, a batch at a time. `receive` gets each batch's features (count, dim)
// and the places in the list of the pictures they belong to. Unreadable pictures are named and left out, above one
// in a hundred the folder is refused. Returns how many pictures went through.
typedef void Take(void *context, const float *features, const float *logits, char *const *paths, int count);
static long scan(Inception *net, char **paths, size_t count, FidOptions o, bool want_logits, Take *receive,
                 void *context) {
    size_t each = 3 * (size_t)net->size * (size_t)net->size, skipped = 0, done = 0;
    size_t batch = (size_t)o.batch < count ? (size_t)o.batch : count;
    int readers = o.readers;
    if (!readers) readers = (int)fmin(16, fmax(1, (double)sysconf(_SC_NPROCESSORS_ONLN) / 4));
    Batch two[2] = {0};
    for (int i = 0; i < 2; i++) {
        two[i].paths = paths, two[i].size = net->size, two[i].resize = o.resize;
        two[i].pixels = xmalloc(batch * each * sizeof(float));
        two[i].reasons = xcalloc(batch, sizeof(char *));
    }
    char **names = xmalloc(batch * sizeof *names);
    Progress progress;
    progress_begin(&progress, "inception", (long)count);
    batch_begin(&two[0], 0, batch < count ? batch : count, readers);
    for (int turn = 0; two[turn].from < count; turn = 1 - turn) {
        Batch *b = &two[turn];
        batch_wait(b);
        size_t end = b->to + batch < count ? b->to + batch : count;
        batch_begin(&two[1 - turn], b->to, end, b->to < count ? readers : 0);
        int n = 0;
        for (size_t i = 0; i < b->to - b->from; i++) {
            char *path = paths[b->from + i];
            if (b->reasons[i]) {
                note("%s is left out: %s", path, b->reasons[i]);
                free(b->reasons[i]), b->reasons[i] = NULL;
                if (++skipped * 100 > count) {
                    batch_stop(&two[1 - turn]);
                    die("%zu of %zu pictures could not be read, %s the last; more than 1 %% is too many",
                        skipped, count, path);
                }
                continue;
            }
            if ((size_t)n < i)
                memmove(b->pixels + (size_t)n * each, b->pixels + i * each, each * sizeof(float));
            names[n++] = path;
        }
        if (n) {
            Scope s = scope_begin();
            Tensor *f = inception_features(net, tensor_from(SHAPE(n, net->size, net->size, 3), b->pixels));
            float *features = tensor_read(f),
                  *logits = want_logits ? tensor_read(inception_logits(net, f)) : NULL;
            scope_end(s, NULL);
            for (size_t i = 0; i < (size_t)n * (size_t)net->dim; i++)
                if (!isfinite(features[i])) {
                    batch_stop(&two[1 - turn]);
                    die("the features of %s hold a NaN or an infinity", names[i / (size_t)net->dim]);
                }
            receive(context, features, logits, names, n);
            free(features), free(logits);
        }
        done += (size_t)n;
        progress_step(&progress, (long)b->to, NULL);
    }
    progress_end(&progress);
    if (skipped) note("%zu of %zu pictures were left out", skipped, count);
    for (int i = 0; i < 2; i++) free(two[i].pixels), free(two[i].reasons);
    free(names);
    return (long)done;
}

// ---- statistics ---------------------------------------------------------------------------------------------

// [F7] Mean and scatter of portions are merged as Chan, Golub and LeVeque (1979) merge them: each portion around
// its own mean, plus a rank-one term for the distance between the means. Nothing large is ever subtracted from
// something large, which is where sum(x^2) - n mean^2 loses its digits. The rank-one term rides along as one
// more row of the product.
void moments_begin(Moments *m, int dim) {
    size_t D = (size_t)dim;
    *m = (Moments){dim, 0, xcalloc(D, sizeof(double)), xcalloc(D * D, sizeof(double))};
}

void moments_add(Moments *m, const float *features, int count) {
    if (count < 1) return;
    size_t D = (size_t)m->dim, rows = (size_t)count + 1;
    double *t = xmalloc(D * rows * sizeof(double)), n = (double)m->count; // t (dim, count + 1)
    for (size_t j = 0; j < D; j++) {
        double sum = 0, *row = t + j * rows;
        for (size_t i = 0; i < (size_t)count; i++) sum += features[i * D + j];
        double mean = sum / count, step = mean - m->mean[j];
        for (size_t i = 0; i < (size_t)count; i++) row[i] = features[i * D + j] - mean;
        row[count] = step * sqrt(n * count / (n + count));
        m->mean[j] += step * count / (n + count);
    }
    product_f64(m->scatter, D, t, rows, t, rows, m->dim, m->dim, (int)rows, 1, LOWER);
    m->count += count;
    free(t);
}

void moments_end(Moments *m, double *mu, double *sigma) {
    size_t D = (size_t)m->dim;
    if (m->count < 2) die("a covariance needs two pictures at least; there is %ld", m->count);
    memcpy(mu, m->mean, D * sizeof(double));
    for (size_t i = 0; i < D; i++)
        for (size_t j = 0; j <= i; j++)
            sigma[i * D + j] = sigma[j * D + i] = m->scatter[i * D + j] / (double)(m->count - 1);
    free(m->mean), free(m->scatter);
}

typedef struct {
    FidSet *set;
    Moments moments;
    bool statistics, keep;
} Collect;

static void collect(void *context, const float *features, const float *logits, char *const *paths,
                    int count) {
    (void)logits;
    Collect *c = context;
    FidSet *s = c->set;
    size_t D = (size_t)s->dim, at = (size_t)s->count;
    if (c->statistics) moments_add(&c->moments, features, count);
    if (c->keep) {
        memcpy(s->features + at * D, features, (size_t)count * D * sizeof(float));
        for (int i = 0; i < count; i++) s->names[at + (size_t)i] = xstrdup(paths[i]);
    }
    s->count += count;
}

FidSet fid_scan(Inception *net, const char *dir, FidOptions o) {
    FidSet s = {.path = xstrdup(dir), .dim = net->dim};
    size_t count, D = (size_t)s.dim;
    char **paths = list_images(dir, &count);
    if (!count)
        die("the folder %s holds no picture (.png, .jpg, .jpeg); folders within it are not searched", dir);
    if (o.statistics && count < 2) die("the folder %s holds one picture; an FID needs two at least", dir);
    Collect c = {&s, .statistics = o.statistics, .keep = o.keep_features};
    if (o.statistics) moments_begin(&c.moments, s.dim);
    if (o.keep_features) { // their number is known: no growing, no copying
        s.features = xmalloc(count * D * sizeof(float));
        s.names = xmalloc(count * sizeof(char *));
    }
    scan(net, paths, count, o, false, collect, &c);
    if (o.statistics) {
        s.mu = xmalloc(D * sizeof(double)), s.sigma = xmalloc(D * D * sizeof(double));
        moments_end(&c.moments, s.mu, s.sigma);
    }
    for (size_t i = 0; i < count; i++) free(paths[i]);
    free(paths);
    return s;
}

// pytorch-fid's file: mu (D) and sigma (D, D).
FidSet fid_read_statistics(const char *npz) {
    FidSet s = {.path = xstrdup(npz)};
    int64_t mu[4], sigma[4];
    int mu_dims, sigma_dims;
    s.mu = npz_read(npz, "mu", mu, &mu_dims);
    s.sigma = npz_read(npz, "sigma", sigma, &sigma_dims);
    if (mu_dims != 1 || mu[0] < 1 || mu[0] > 32768)
        die("%s: mu has %d dimensions, the first of %lld; one of 1 to 32768 is expected", npz, mu_dims,
            mu_dims ? (long long)mu[0] : 0LL);
    if (sigma_dims != 2 || sigma[0] != mu[0] || sigma[1] != mu[0])
        die("%s: sigma has %d dimensions (%lld, %lld); (%lld, %lld) is expected, as mu has it", npz,
            sigma_dims, sigma_dims > 0 ? (long long)sigma[0] : 0LL,
            sigma_dims > 1 ? (long long)sigma[1] : 0LL, (long long)mu[0], (long long)mu[0]);
    size_t D = (size_t)mu[0];
    s.dim = (int)D;
    double largest = 0;
    for (size_t i = 0; i < D; i++) {
        if (!isfinite(s.mu[i])) die("%s: mu[%zu] is %g", npz, i, s.mu[i]);
        double variance = s.sigma[i * (D + 1)];
        if (!(variance >= 0))
            die("%s: sigma[%zu, %zu] is %g; a variance cannot be negative", npz, i, i, variance);
        largest = fmax(largest, variance);
    }
    for (size_t i = 0; i < D; i++)
        for (size_t j = 0; j <= i; j++) {
            double a = s.sigma[i * D + j], b = s.sigma[j * D + i];
            if (!isfinite(a) || !isfinite(b))
                die("%s: sigma[%zu, %zu] is %g", npz, i, j, isfinite(a) ? b : a);
            if (fabs(a - b) > 1e-4 * largest)
                die("%s: sigma is no covariance: [%zu, %zu] is %g and [%zu, %zu] is %g", npz, i, j, a, j, i,
                    b);
        }
    return s;
}

void fid_write_statistics(const FidSet *s, const char *npz) {
    NpzArray arrays[] = {{"mu", s->mu, 1, {s->dim}}, {"sigma", s->sigma, 2, {s->dim, s->dim}}};
    npz_write(npz, arrays, 2);
}

void fid_set_free(FidSet *s) {
    for (long i = 0; s->names && i < s->count; i++) free(s->names[i]);
    free(s->names), free(s->features), free(s->mu), free(s->sigma), free(s->path);
    *s = (FidSet){0};
}

// ---- FID ----------------------------------------------------------------------------------------------------

// [F8] The trace of the square root of C1 C2, which is not symmetric, without a general matrix square root:
// with C1 = L L^T the product L^T C2 L is symmetric, positive semidefinite and has the same eigenvalues but for
// zeros. The trace is the sum of their square roots. A covariance of fewer pictures than features is singular;
// then L is just narrow. Statistics from a file need not be covariances: of one with negative eigenvalues there is
// no such root, and L would miss part of its trace, or the product have clearly negative eigenvalues itself.
static double trace_of_root(const double *c1, const double *c2, int n) {
    size_t N = (size_t)n, bytes = N * N * sizeof(double);
    double *lt = xmalloc(bytes), *work = xmalloc(bytes);
    int *order = xmalloc(N * sizeof *order);
    memcpy(work, c1, bytes);
    int r = pivoted_cholesky(lt, order, work, n);
    double trace = 0, missing = 0, positive = 0, negative = 0;
    for (size_t i = 0; i < N; i++) trace += c1[i * (N + 1)];
    missing = trace;
    for (size_t i = 0; i < (size_t)r * N; i++) missing -= lt[i] * lt[i];
    for (size_t i = 0; i < N; i++) // C2 in the order that L^T is triangular in
        for (size_t j = 0; j < N; j++) work[i * N + j] = c2[(size_t)order[i] * N + (size_t)order[j]];
    size_t R = (size_t)r;
    double *half = xcalloc(R * N, sizeof(double)), *whole = work;
    product_f64(half, N, lt, N, work, N, r, n, n, 1, A_TRIANGULAR); // L^T C2
    memset(whole, 0, R * R * sizeof(double));
    product_f64(whole, R, lt, N, half, N, r, r, n, 1, LOWER | A_TRIANGULAR); // L^T C2 L
    double *d = xmalloc(2 * (N + 1) * sizeof(double)), *e = d + n + 1, sum = 0;
    if (r) tridiagonalise(d, e, whole, r), tridiagonal_eigenvalues(d, e, r);
    for (int i = 0; i < r; i++) {
        if (d[i] > 0)
            sum += sqrt(d[i]), positive += d[i];
        else
            negative -= d[i]; // a zero may come out as -1e-17
    }
    if (fabs(missing) > 0.01 * trace || negative > 0.01 * positive)
        die("a covariance has negative eigenvalues: is it a covariance?");
    free(lt), free(work), free(order), free(half), free(d);
    return sum;
}

// [F9] Fréchet distance of two Gaussians (Dowson and Landau 1982):
//   d^2 = |mu1 - mu2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)
double frechet_distance(const double *mu1, const double *c1, const double *mu2, const double *c2, int n) {
    double d = 0;
    for (int i = 0; i < n; i++) {
        size_t diagonal = (size_t)i * ((size_t)n + 1);
        d += (mu1[i] - mu2[i]) * (mu1[i] - mu2[i]) + c1[diagonal] + c2[diagonal];
    }
    return d - 2 * trace_of_root(c1, c2, n);
}

static void same_dim(const FidSet *a, const FidSet *b) {
    if (a->dim != b->dim)
        die("%s has %d features, %s has %d: they come from different networks", a->path, a->dim, b->path,
            b->dim);
}

double fid_distance(const FidSet *a, const FidSet *b) {
    same_dim(a, b);
    return frechet_distance(a->mu, a->sigma, b->mu, b->sigma, a->dim);
}

// ---- KID ----------------------------------------------------------------------------------------------------

// `count` different numbers below n, the first part of a random order (Fisher and Yates).
static void choose(long *order, long n, long count, Random *r) {
    for (long i = 0; i < n; i++) order[i] = i;
    for (long i = 0; i < count; i++) {
        long k = i + (long)((((uint64_t)random_u32(r) << 32 | random_u32(r)) >> 1) % (uint64_t)(n - i)),
             t = order[i];
        order[i] = order[k], order[k] = t;
    }
}

static double *gather_rows(const FidSet *s, const long *order, long count) {
    size_t D = (size_t)s->dim;
    double *x = xmalloc((size_t)count * D * sizeof(double));
    for (size_t i = 0; i < (size_t)count; i++)
        for (size_t j = 0; j < D; j++) x[i * D + j] = s->features[(size_t)order[i] * D + j];
    return x;
}

// Sums of k(x, y) = (x . y / D + 1)^3 over each row and, where wanted, each column; the diagonal left out where
// x and y are the same set.
static void kernel_sums(double *rows, double *columns, const double *x, const double *y, int m, int dim,
                        double *k) {
    bool same = x == y;
    memset(k, 0, (size_t)m * (size_t)m * sizeof(double));
    product_f64(k, (size_t)m, x, (size_t)dim, y, (size_t)dim, m, m, dim, 1.0 / dim, same ? LOWER : 0);
    memset(rows, 0, (size_t)m * sizeof(double));
    if (columns) memset(columns, 0, (size_t)m * sizeof(double));
    for (int i = 0; i < m; i++)
        for (int j = 0; j < (same ? i : m); j++) {
            double t = k[(size_t)i * (size_t)m + (size_t)j] + 1, value = t * t * t;
            rows[i] += value;
            if (same)
                rows[j] += value; // the kernel is symmetric
            else
                columns[j] += value;
        }
}

// [F10] The squared maximum mean discrepancy with that polynomial kernel, unbiased: of one subset of m pictures each
//   sum_{i != j} k(x_i, x_j) / m(m-1)  +  sum_{i != j} k(y_i, y_j) / m(m-1)  -  2 sum_{i, j} k(x_i, y_j) / m^2
// and of that the mean over 100 subsets of min(1000, pictures), as clean-fid, torch-fidelity and torchmetrics have
// it. (Where every subset is the whole set, one is enough: they are all the same.)
// The standard error is that of a statistic of pairs to first order (Hoeffding 1948): with h(x) the part of the
// sums above that involves x, divided so that its mean over x is (KID + a constant),
//   4 (var h(x) / n_x + var h(y) / n_y)
double kid_distance(const FidSet *a, const FidSet *b, uint64_t seed, double *standard_error) {
    enum { SUBSETS = 100, SUBSET_SIZE = 1000 };
    same_dim(a, b);
    if (!a->features || !b->features)
        die("a KID needs the features of both sets; statistics do not hold them");
    const FidSet *set[2] = {a, b};
    long n[2] = {a->count, b->count};
    int m = (int)fmin(SUBSET_SIZE, fmin((double)n[0], (double)n[1]));
    if (m < 2) die("a KID needs two pictures in each set; %s holds one", n[0] < 2 ? a->path : b->path);
    int subsets = n[0] == m && n[1] == m ? 1 : SUBSETS;
    size_t M = (size_t)m;
    double *k = xmalloc(M * M * sizeof(double)), *own[2], *cross[2], *h[2], sum = 0;
    long *seen[2], *order[2];
    for (int s = 0; s < 2; s++) {
        own[s] = xmalloc(M * sizeof(double)), cross[s] = xmalloc(M * sizeof(double));
        h[s] = xcalloc((size_t)n[s], sizeof(double)), seen[s] = xcalloc((size_t)n[s], sizeof(long));
        order[s] = xmalloc((size_t)n[s] * sizeof(long));
    }
    Random r;
    random_seed(&r, seed);
    for (int t = 0; t < subsets; t++) {
        double *x[2];
        for (int s = 0; s < 2; s++) choose(order[s], n[s], m, &r), x[s] = gather_rows(set[s], order[s], m);
        kernel_sums(own[0], NULL, x[0], x[0], m, a->dim, k);
        kernel_sums(own[1], NULL, x[1], x[1], m, a->dim, k);
        kernel_sums(cross[0], cross[1], x[0], x[1], m, a->dim, k);
        for (int s = 0; s < 2; s++) {
            for (int i = 0; i < m; i++) {
                double of_i = own[s][i] / (m - 1) - cross[s][i] / m;
                sum += of_i / m;
                h[s][order[s][i]] += of_i, seen[s][order[s][i]]++;
            }
            free(x[s]);
        }
    }
    double variance = 0;
    for (int s = 0; s < 2; s++) {
        double mean = 0, squares = 0;
        long count = 0;
        for (long i = 0; i < n[s]; i++)
            if (seen[s][i]) h[s][i] /= (double)seen[s][i], mean += h[s][i], count++;
        mean /= (double)count;
        for (long i = 0; i < n[s]; i++)
            if (seen[s][i]) squares += (h[s][i] - mean) * (h[s][i] - mean);
        variance += 4 * squares / (double)(count - 1) / (double)count;
        free(own[s]), free(cross[s]), free(h[s]), free(seen[s]), free(order[s]);
    }
    free(k);
    if (standard_error) *standard_error = sqrt(variance);
    return sum / subsets;
}

// ---- interval -----------------------------------------------------------------------------------------------

static FidSet resample(const FidSet *s, Random *r) {
    FidSet t = {.path = xstrdup(s->path), .count = s->count, .dim = s->dim};
    enum { PORTION = 512 };
    size_t D = (size_t)s->dim;
    Moments m;
    moments_begin(&m, s->dim);
    float *portion = xmalloc(PORTION * D * sizeof(float));
    int filled = 0;
    for (long i = 0; i < s->count; i++) {
        size_t pick = (size_t)((((uint64_t)random_u32(r) << 32 | random_u32(r)) >> 1) % (uint64_t)s->count);
        memcpy(portion + (size_t)filled++ * D, s->features + pick * D, D * sizeof(float));
        if (filled == PORTION || i == s->count - 1) moments_add(&m, portion, filled), filled = 0;
    }
    t.mu = xmalloc(D * sizeof(double)), t.sigma = xmalloc(D * D * sizeof(double));
    moments_end(&m, t.mu, t.sigma);
    free(portion);
    return t;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// Bootstrap (Efron 1979): draw as many pictures as there are, with repetition, and compute the FID anew. Repeated
// pictures make every such FID too large, by about as much as the FID of a finite sample is too large already; so
// only the spread is taken from them, and laid around the FID itself. A set given as statistics stays as it is.
void fid_bootstrap(const FidSet *a, const FidSet *b, int rounds, uint64_t seed, double interval[2]) {
    same_dim(a, b);
    if (!a->features && !b->features) die("an interval needs the features of one set at least");
    double *value = xmalloc((size_t)rounds * sizeof(double)), mean = 0, fid = fid_distance(a, b);
    Random r;
    random_seed(&r, seed);
    Progress progress;
    progress_begin(&progress, "bootstrap", rounds);
    for (int i = 0; i < rounds; i++) {
        FidSet x = a->features ? resample(a, &r) : (FidSet){0},
               y = b->features ? resample(b, &r) : (FidSet){0};
        value[i] = fid_distance(a->features ? &x : a, b->features ? &y : b);
        mean += value[i] / rounds;
        fid_set_free(&x), fid_set_free(&y);
        progress_step(&progress, i + 1, NULL);
    }
    progress_end(&progress);
    qsort(value, (size_t)rounds, sizeof(double), ascending);
    double low = value[(int)(0.025 * (rounds - 1) + 0.5)], high = value[(int)(0.975 * (rounds - 1) + 0.5)];
    interval[0] = fmax(fid + low - mean, 0), interval[1] = fid + high - mean;
    free(value);
}

// ---- the toy world's judge ----------------------------------------------------------------------------------

// How many pictures show what they were asked to? A small Inception reads the attributes off each picture
// (the heads of its configuration) and they are compared with those that prompts.jsonl names.
typedef struct {
    Inception *net;
    char *const *paths;
    const Json *const *wanted; // a line a picture
    long at, asked[16], right[16];
} Judge;

static void judge(void *context, const float *features, const float *logits, char *const *paths, int count) {
    (void)features;
    Judge *j = context;
    for (int i = 0; i < count; i++) {
        while (strcmp(j->paths[j->at], paths[i])) j->at++; // those left out
        const Json *wanted = j->wanted[j->at];
        const float *logit = logits + (size_t)i * (size_t)j->net->classes;
        const char *name, *classes[256];
        for (int h = 0, n; h < 16 && (n = inception_head(j->net, h, &name, classes, 256)); h++, logit += n) {
            const char *want = json_get_string(wanted, name, NULL);
            if (!want) continue; // unsaid
            int best = 0;
            for (int k = 1; k < n; k++)
                if (logit[k] > logit[best]) best = k;
            j->asked[h]++, j->right[h] += best < 256 && !strcmp(classes[best], want);
        }
    }
}

// Returns the share of attributes that were read right, the mean over the heads; share[h] (up to 16) of each head.
// The pictures are 00000.png, 00001.png, ... of `dir`, a line of prompts.jsonl each.
double fid_fidelity(Inception *net, const char *dir, FidOptions o, double share[16], int *heads,
                    long *count) {
    const char *name = NULL, *classes[1];
    *heads = 0;
    while (*heads < 16 && inception_head(net, *heads, &name, classes, 1)) ++*heads;
    if (!*heads) die("these Inception weights judge no attributes: they are not the toy world's");
    char *list = format("%s/prompts.jsonl", dir), **paths = NULL;
    size_t bytes, n = 0;
    char *text = read_file(list, &bytes);
    Json **lines = NULL;
    for (char *at = text, *end; at < text + bytes; at = end + 1) {
        if (!(end = memchr(at, '\n', (size_t)(text + bytes - at)))) end = text + bytes;
        if (end == at) continue;
        lines = xrealloc(lines, (n + 1) * sizeof *lines), paths = xrealloc(paths, (n + 1) * sizeof *paths);
        char *where = format("%s, line %zu", list, n + 1);
        lines[n] = json_parse(at, (size_t)(end - at), where);
        free(where);
        paths[n] = format("%s/%05zu.png", dir, n);
        if (!file_exists(paths[n])) die("the picture %s is missing: %s has a line for it", paths[n], list);
        n++;
    }
    if (!n) die("%s holds no line", list);
    Judge j = {net, paths, (const Json *const *)lines, .at = 0};
    *count = scan(net, paths, n, o, true, judge, &j);
    double sum = 0;
    for (int h = 0; h < *heads; h++) {
        inception_head(net, h, &name, classes, 1);
        if (!j.asked[h]) die("no line of %s names the attribute \"%s\"", list, name);
        sum += share[h] = (double)j.right[h] / (double)j.asked[h];
    }
    for (size_t i = 0; i < n; i++) free(paths[i]), json_free(lines[i]);
    free(paths), free(lines), free(list), free(text);
    return sum / *heads;
}
