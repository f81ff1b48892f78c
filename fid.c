// fid.c: Phase 4, how good are the pictures? The Fréchet inception distance (Heusel et al. 2017), as the
// field's reference pytorch-fid computes it; that is a copy of the TensorFlow original, quirks included. Two
// sets of pictures go through Inception-v3 (Szegedy et al. 2015), and the 2,048 features that its last
// average pooling gives for each picture are compared as if they were Gaussian, by mean and covariance. The
// kernel inception distance (Binkowski et al. 2018) compares the same features without that assumption.
//
// Not here: the command line (cli/fid.c), file formats (lib/io), and what the toy world does with a small
// Inception: it trains one and lets it judge pictures (weights/toy/judge.c).
//
//   pictures   Inception-v3   its weights   moments   Fréchet distance   KID   interval
// doc/READING.md, "The way of an FID", follows the tags F1 to F10.
#include "sd.h"            // Phase 4: what is defined here
#include "lib/nn/ranks.h"  // pictures are shared
#include "lib/nn/linalg.h" // product_f64, pivoted_cholesky, tridiagonalise, tridiagonal_eigenvalues

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- pictures ---------------------------------------------------------------------------------------------

// What became of a picture.
typedef struct {
    char unreadable[200]; // why, or ""
    bool differs;         // people see it otherwise: turned, or with 16 bits scaled
} Seen;

typedef struct {
    char *const *paths;
    size_t count, at, batch; // of all pictures; the next one to read; how many to read at once
    int size;
    FidResize resize;
    float *pixels; // (batch, size, size, 3)
    Seen *seen;    // (batch)
} Reader;

// Reads the next batch that is this rank's: the ranks take turns. Returns how many pictures it gave.
static int read_batch(Reader *r) {
    size_t each = 3 * (size_t)r->size * (size_t)r->size, left = r->at < r->count ? r->count - r->at : 0;
    size_t wanted = left < r->batch ? left : r->batch, good = 0;
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < wanted; i++) {
        const char *reason;
        Seen *seen = &r->seen[i];
        *seen = (Seen){0};
        Image *image = image_try_measure(r->paths[r->at + i], &reason, &seen->differs);
        if (image) fid_resize(r->pixels + i * each, image, r->size, r->resize);
        if (!image) snprintf(seen->unreadable, sizeof seen->unreadable, "%s", reason);
        image_free(image);
    }
    for (size_t i = 0; i < wanted; i++)
        if (!*r->seen[i].unreadable)
            memmove(r->pixels + good++ * each, r->pixels + i * each, each * sizeof(float));
    r->at += r->batch * (size_t)ranks_count();
    return (int)good;
}

// How many pictures could not be read, and how many are measured otherwise than people see them.
typedef struct {
    size_t unreadable, differ;
} Tally;

// Takes a batch's features into the set, and the names of its pictures. Unreadable pictures are named and
// left out; more than one in a hundred is an error.
static void take_batch(FidSet *s, Tally *t, char *const *paths, size_t wanted, size_t of, const Seen *seen,
                       const float *features, FidOptions o) {
    size_t D = (size_t)s->dim, n = 0;
    for (size_t i = 0; i < wanted; i++) {
        if (*seen[i].unreadable) {
            note("%s is left out: %s", paths[i], seen[i].unreadable);
            if (++t->unreadable * 100 > of)
                die("%zu of %zu pictures could not be read, %s the last; more than 1 %% is too many",
                    t->unreadable, of, paths[i]);
            continue;
        }
        if (seen[i].differs && !t->differ++)
            note("%s is measured as it is stored, as pytorch-fid does: not turned as its EXIF says, 16 "
                 "bits of gray cut at 255",
                 paths[i]);
        for (size_t k = 0; k < D; k++)
            if (!isfinite(features[n * D + k])) die("the features of %s hold a NaN or an infinity", paths[i]);
        s->names[(size_t)s->count + n++] = xstrdup(paths[i]);
    }
    if (o.keep_features) memcpy(s->features + (size_t)s->count * D, features, n * D * sizeof(float));
    if (o.statistics && n)
        moments_add(s, features, (int)n);
    else
        s->count += (long)n;
}

// [F1] The pictures go through the network a batch at a time; features are kept, or moments, or both. A rank
// computes every ranks_count()-th batch; then all ranks take all batches, in the order of the pictures.
FidSet fid_scan_files(Inception *net, const char *dir, char *const *paths, size_t count, FidOptions o) {
    int size = inception_size(net), dim = inception_dim(net), ranks = ranks_count(), mine = ranks_mine();
    size_t D = (size_t)dim, batch = (size_t)o.batch < count ? (size_t)o.batch : count;
    FidSet s = {.path = xstrdup(dir),
                .dim = dim,
                .made_by = fid_made_by(net, o.resize),
                .names = xmalloc(count * sizeof(char *))};
    if (o.keep_features) s.features = xmalloc(count * D * sizeof(float));
    if (o.statistics) moments_begin(&s);
    uint64_t all = hash_more(0, &batch, sizeof batch);
    for (size_t i = 0; i < count; i++) all = hash_more(all, paths[i], strlen(paths[i]));
    ranks_must_agree("list of pictures", &all, sizeof all);
    Reader r = {paths, count, .batch = batch, .size = size, .resize = o.resize, .at = batch * (size_t)mine};
    r.pixels = xmalloc(batch * (size_t)(3 * size * size) * sizeof(float));
    r.seen = xcalloc(batch, sizeof *r.seen);
    Seen *seen = xcalloc(batch, sizeof *seen), *own = xcalloc(batch, sizeof *own); // a rank's; this one's
    float *features = xmalloc(batch * D * sizeof(float));
    Tally tally = {0};
    Progress progress;
    progress_begin(&progress, "inception", (long)count);
    size_t at = 0;
    for (int n = read_batch(&r), next; at < count; n = next) {
        Scope scope = scope_begin();
        Tensor *x = n ? inception_features(net, tensor_from(SHAPE(n, size, size, 3), r.pixels)) : NULL;
        memcpy(own, r.seen, batch * sizeof *own);
        next = read_batch(&r); // a GPU computes meanwhile: reading x waits for it
        float *made = x ? tensor_read(x) : NULL;
        scope_end(scope, NULL);
        for (int k = 0; k < ranks && at < count; k++) {
            size_t wanted = count - at < batch ? count - at : batch;
            if (k == mine) memcpy(seen, own, wanted * sizeof *seen);
            if (k == mine && n) memcpy(features, made, (size_t)n * D * sizeof(float));
            ranks_give(seen, wanted * sizeof *seen, k);
            ranks_give(features, wanted * D * sizeof(float), k);
            take_batch(&s, &tally, paths + at, wanted, count, seen, features, o);
            progress_step(&progress, (long)(at += wanted), NULL);
        }
        free(made);
    }
    progress_end(&progress);
    if (tally.differ > 1) note("%zu of %zu pictures are measured so", tally.differ, count);
    if (tally.unreadable) note("%zu of %zu pictures were left out", tally.unreadable, count);
    if (o.statistics) moments_end(&s);
    free(r.pixels), free(r.seen), free(seen), free(own), free(features);
    return s;
}

char **fid_list(const char *dir, FidOptions o, size_t *count) {
    char **paths = list_images(dir, o.recursive, count);
    if (!*count)
        die("the folder %s holds no picture (.png, .jpg, .jpeg)%s", dir,
            o.recursive ? "" : "; folders within it are searched under --recursive");
    if (o.statistics && *count < 2) die("the folder %s holds one picture; an FID needs two at least", dir);
    return paths;
}

FidSet fid_scan(Inception *net, const char *dir, FidOptions o) {
    size_t count;
    char **paths = fid_list(dir, o, &count);
    FidSet s = fid_scan_files(net, dir, paths, count, o);
    for (size_t i = 0; i < count; i++) free(paths[i]);
    free(paths);
    return s;
}

// [F2] pytorch-fid divides the 8 bits by 255 and resizes without antialiasing: a large picture is sampled at
// sparse points, aliases and all. That is the definition: an antialiased resize gives another FID. clean-fid
// (Parmar et al. 2022) is that other FID: each channel goes, as floats, through Pillow's bicubic with
// antialiasing and is cut to 0..255, which the kernel overshoots.
void fid_resize(float *out, const Image *image, int size, FidResize how) {
    size_t n = 3 * (size_t)size * (size_t)size;
    if (how == RESIZE_CLEAN) {
        image_resize_f32(out, image, size, size, RESIZE_BICUBIC);
        for (size_t i = 0; i < n; i++) out[i] = (fminf(fmaxf(out[i], 0), 255) - 128) / 128;
    } else {
        image_interpolate(out, image, size, size);
        for (size_t i = 0; i < n; i++) out[i] = 2 * out[i] - 1;
    }
}

// ---- Inception-v3 -----------------------------------------------------------------------------------------

// Its unit is convolution without bias, batch norm, ReLU (torchvision's BasicConv2d).
typedef struct {
    Layer *conv, *bn;   // "Mixed_5b.branch1x1.conv.weight"; "Mixed_5b.branch1x1.bn.weight" and ".bn.bias"
    Tensor *mean, *var; // "Mixed_5b.branch1x1.bn.running_mean", ".bn.running_var"
} Unit;

enum { MAX_A = 3, MAX_C = 4, MAX_E = 2, MAX_UNITS = 94 };
static const float bn_eps = 0.001f; // TensorFlow's; PyTorch's default is 1e-5

struct Inception {
    int size, width, a_count, c_count, e_count, dim;
    Params params;
    Unit units[MAX_UNITS]; // in the order of the file
    int unit_count, next;  // next: the one that this pass comes to next
    bool declaring;        // this is the first pass, which makes the parameters
    bool folded;           // batch norm has joined the convolutions
    uint64_t hash;         // of what the batch norms held then: another trained network has other numbers
};

// Name, output channels and kernel of a unit that keeps the picture's size (with padding), of one that trims
// it by the kernel's margin, and of one that halves it (stride 2); the last two have no padding.
#define KEEP(name, out, kh, kw)                                                                              \
    { name, out, kh, kw, 1, kh / 2, kw / 2 }
#define TRIM(name, out, kh, kw)                                                                              \
    { name, out, kh, kw, 1, 0, 0 }
#define HALVE(name, out, kh, kw)                                                                             \
    { name, out, kh, kw, 2, 0, 0 }
typedef struct {
    const char *name; // torchvision's
    int out, kh, kw, stride, pad_h, pad_w;
} UnitShape;

// Units one behind another, the first with `in` input channels. The first pass through the network makes
// their parameters; later passes meet them in the same order. CHAIN needs `net` and `block`.
typedef struct {
    const UnitShape *shape;
    Unit *unit;
    int count;
} Chain;
#define CHAIN(in, ...)                                                                                       \
    chain(net, block, in, (const UnitShape[]){__VA_ARGS__},                                                  \
          sizeof((const UnitShape[]){__VA_ARGS__}) / sizeof(UnitShape))
static Chain chain(Inception *net, const char *block, int in, const UnitShape *shape, int count) {
    Chain c = {shape, net->units + net->next, count};
    net->next += count;
    for (int i = 0; i < count && net->declaring; i++) {
        const UnitShape *s = &shape[i];
        Unit *u = &c.unit[i];
        u->conv = layer_conv(&net->params, i ? s[-1].out : in, s->out, s->kh, s->kw, false, "%s%s.conv",
                             block, s->name);
        u->bn = layer_norm_params(&net->params, s->out, "%s%s.bn", block, s->name);
        u->mean = param_tensor(&net->params, SHAPE(s->out), "%s%s.bn.running_mean", block, s->name);
        u->var = param_tensor(&net->params, SHAPE(s->out), "%s%s.bn.running_var", block, s->name);
    }
    return c;
}

static Tensor *run(const Inception *net, Chain c, Tensor *x) {
    for (int i = 0; i < c.count; i++) {
        const UnitShape *s = &c.shape[i];
        int h = (x->shape[1] + 2 * s->pad_h - s->kh) / s->stride + 1;
        int w = (x->shape[2] + 2 * s->pad_w - s->kw) / s->stride + 1;
        if (net->declaring) { // there are no weights yet; only the shape matters
            x = tensor_new(SHAPE(1, h, w, s->out));
            backend.fill(mem(x), 0, tensor_count(x));
            continue;
        }
        const Layer *conv = c.unit[i].conv;
        x = trace(conv2d_padded(x, conv, s->stride, s->pad_h, s->pad_w, h, w), "%s", conv->name);
        if (!net->folded) x = batch_norm_batch(x, c.unit[i].bn, bn_eps);
        x = activation_in_place(x, RELU);
    }
    return x;
}

// w: the width in sixteenths; every channel number of Inception-v3 is a multiple of 16.
// [F3] From 299x299x3 to 35x35x192.
static Tensor *stem(Inception *net, const char *block, Tensor *x) {
    int w = net->width;
    Chain first = CHAIN(3, HALVE("Conv2d_1a_3x3", 2 * w, 3, 3), TRIM("Conv2d_2a_3x3", 2 * w, 3, 3),
                        KEEP("Conv2d_2b_3x3", 4 * w, 3, 3));
    Chain second = CHAIN(4 * w, KEEP("Conv2d_3b_1x1", 5 * w, 1, 1), TRIM("Conv2d_4a_3x3", 12 * w, 3, 3));
    x = pool(run(net, first, x), POOL_MAX, 3, 2, 0);
    return pool(run(net, second, x), POOL_MAX, 3, 2, 0);
}

// The blocks behind the stem are of five kinds. Each runs several chains (and a pooling) on the same input
// and concatenates what comes out along the channels. The chains stand in the order of the file; the order in
// which they run decides only in which order training adds up the gradients of x.
#define CONCAT(...)                                                                                          \
    concat_many((Tensor *[]){__VA_ARGS__}, sizeof((Tensor *[]){__VA_ARGS__}) / sizeof(Tensor *))

// [F5] Departure from torchvision: TensorFlow's average pooling divides by the pixels that lie inside the
// picture, torchvision's by 9 even at the border. The same in the blocks C and in the first E.
static Tensor *average_3x3(Tensor *x) { return pool(x, POOL_AVERAGE, 3, 1, 1); }

static Tensor *block_a(Inception *net, const char *block, Tensor *x, int pool_features) { // 35x35
    int in = tensor_cols(x), w = net->width;
    Chain one = CHAIN(in, KEEP("branch1x1", 4 * w, 1, 1));
    Chain five = CHAIN(in, KEEP("branch5x5_1", 3 * w, 1, 1), KEEP("branch5x5_2", 4 * w, 5, 5));
    Chain twice = CHAIN(in, KEEP("branch3x3dbl_1", 4 * w, 1, 1), KEEP("branch3x3dbl_2", 6 * w, 3, 3),
                        KEEP("branch3x3dbl_3", 6 * w, 3, 3));
    Chain pooled = CHAIN(in, KEEP("branch_pool", pool_features, 1, 1));
    Tensor *a = run(net, one, x), *b = run(net, five, x), *c = run(net, twice, x);
    return CONCAT(a, b, c, run(net, pooled, average_3x3(x)));
}

static Tensor *block_b(Inception *net, const char *block, Tensor *x) { // 35x35 -> 17x17
    int in = tensor_cols(x), w = net->width;
    Chain three = CHAIN(in, HALVE("branch3x3", 24 * w, 3, 3));
    Chain twice = CHAIN(in, KEEP("branch3x3dbl_1", 4 * w, 1, 1), KEEP("branch3x3dbl_2", 6 * w, 3, 3),
                        HALVE("branch3x3dbl_3", 6 * w, 3, 3));
    Tensor *a = run(net, three, x), *b = run(net, twice, x);
    return CONCAT(a, b, pool(x, POOL_MAX, 3, 2, 0));
}

// A 7x7 kernel is made of a 1x7 and a 7x1.
static Tensor *block_c(Inception *net, const char *block, Tensor *x, int c7) { // 17x17
    int in = tensor_cols(x), w = net->width;
    Chain one = CHAIN(in, KEEP("branch1x1", 12 * w, 1, 1));
    Chain seven = CHAIN(in, KEEP("branch7x7_1", c7, 1, 1), KEEP("branch7x7_2", c7, 1, 7),
                        KEEP("branch7x7_3", 12 * w, 7, 1));
    Chain twice = CHAIN(in, KEEP("branch7x7dbl_1", c7, 1, 1), KEEP("branch7x7dbl_2", c7, 7, 1),
                        KEEP("branch7x7dbl_3", c7, 1, 7), KEEP("branch7x7dbl_4", c7, 7, 1),
                        KEEP("branch7x7dbl_5", 12 * w, 1, 7));
    Chain pooled = CHAIN(in, KEEP("branch_pool", 12 * w, 1, 1));
    Tensor *c = run(net, twice, x), *a = run(net, one, x), *b = run(net, seven, x);
    return CONCAT(a, b, c, run(net, pooled, average_3x3(x)));
}

static Tensor *block_d(Inception *net, const char *block, Tensor *x) { // 17x17 -> 8x8
    int in = tensor_cols(x), w = net->width;
    Chain three = CHAIN(in, KEEP("branch3x3_1", 12 * w, 1, 1), HALVE("branch3x3_2", 20 * w, 3, 3));
    Chain seven = CHAIN(in, KEEP("branch7x7x3_1", 12 * w, 1, 1), KEEP("branch7x7x3_2", 12 * w, 1, 7),
                        KEEP("branch7x7x3_3", 12 * w, 7, 1), HALVE("branch7x7x3_4", 12 * w, 3, 3));
    Tensor *b = run(net, seven, x), *a = run(net, three, x);
    return CONCAT(a, b, pool(x, POOL_MAX, 3, 2, 0));
}

// Two of its chains fork at the end, into a 1x3 and a 3x1.
// [F6] Another departure: the last block's pooling branch takes the maximum. That is an oddity of the graph
// that FID was defined with (the paper and all other Inceptions average), and so part of the definition.
static Tensor *block_e(Inception *net, const char *block, Tensor *x, bool last) { // 8x8
    int in = tensor_cols(x), w = net->width, mid = 24 * w;
    Chain one = CHAIN(in, KEEP("branch1x1", 20 * w, 1, 1));
    Chain three = CHAIN(in, KEEP("branch3x3_1", mid, 1, 1));
    Chain three_row = CHAIN(mid, KEEP("branch3x3_2a", mid, 1, 3));
    Chain three_column = CHAIN(mid, KEEP("branch3x3_2b", mid, 3, 1));
    Chain twice = CHAIN(in, KEEP("branch3x3dbl_1", 28 * w, 1, 1), KEEP("branch3x3dbl_2", mid, 3, 3));
    Chain twice_row = CHAIN(mid, KEEP("branch3x3dbl_3a", mid, 1, 3));
    Chain twice_column = CHAIN(mid, KEEP("branch3x3dbl_3b", mid, 3, 1));
    Chain pooled = CHAIN(in, KEEP("branch_pool", 12 * w, 1, 1));
    Tensor *b = run(net, three, x), *c = run(net, twice, x), *a = run(net, one, x);
    Tensor *b1 = run(net, three_row, b), *b2 = run(net, three_column, b);
    Tensor *c1 = run(net, twice_row, c), *c2 = run(net, twice_column, c);
    return CONCAT(a, b1, b2, c1, c2, run(net, pooled, last ? pool(x, POOL_MAX, 3, 1, 1) : average_3x3(x)));
}

// Each block is a scope: the memory of its branches goes when its result is there.
#define IN_SCOPE(call) (s = scope_begin(), x = scope_end(s, call))

Tensor *inception_features(Inception *net, Tensor *x) {
    if (x->dims != 4 || x->shape[1] != net->size || x->shape[2] != net->size || x->shape[3] != 3)
        die("Inception takes pictures of %d x %d pixels and 3 channels", net->size, net->size);
    static const char *const a_names[MAX_A] = {"Mixed_5b.", "Mixed_5c.", "Mixed_5d."};
    static const char *const c_names[MAX_C] = {"Mixed_6b.", "Mixed_6c.", "Mixed_6d.", "Mixed_6e."};
    static const char *const e_names[MAX_E] = {"Mixed_7b.", "Mixed_7c."};
    static const int c7[MAX_C] = {8, 10, 10, 12}; // 128, 160, 160, 192 channels
    int w = net->width;
    Scope all = scope_begin(), s;
    net->next = 0;
    IN_SCOPE(stem(net, "", x));
    for (int i = 0; i < net->a_count; i++) IN_SCOPE(block_a(net, a_names[i], x, (i ? 4 : 2) * w));
    IN_SCOPE(block_b(net, "Mixed_6a.", x));
    for (int i = 0; i < net->c_count; i++) IN_SCOPE(block_c(net, c_names[i], x, c7[i] * w));
    IN_SCOPE(block_d(net, "Mixed_7a.", x));
    for (int i = 0; i < net->e_count; i++) IN_SCOPE(block_e(net, e_names[i], x, i == net->e_count - 1));
    x = pool(x, POOL_AVERAGE, x->shape[1], 1, 0); // over the whole picture: TensorFlow's "pool_3"
    return scope_end(all, reshape(x, SHAPE(x->shape[0], tensor_cols(x))));
}

int inception_size(const Inception *net) { return net->size; }
int inception_dim(const Inception *net) { return net->dim; }
Params *inception_params(Inception *net) { return &net->params; }

// ---- its weights ------------------------------------------------------------------------------------------

static int config_number(const Json *config, const char *key, int fallback, int least, int most) {
    double x = json_get_number(config, key, fallback);
    if (!(x >= least && x <= most) || x != floor(x))
        die("%s: the Inception configuration's %s is %g; a whole number from %d to %d is expected",
            json_file(config), key, x, least, most);
    return (int)x;
}

Inception *inception_new(const char *config, const char *path) {
    enum { SMALLEST = 75 }; // of a smaller picture nothing is left for the last blocks
    Inception *net = xcalloc(1, sizeof *net);
    Json *j = config ? json_parse(config, strlen(config), path) : NULL;
    net->width = config_number(j, "width", 16, 1, 64);
    net->a_count = config_number(j, "a", MAX_A, 1, MAX_A);
    net->c_count = config_number(j, "c", MAX_C, 1, MAX_C);
    net->e_count = config_number(j, "e", MAX_E, 1, MAX_E);
    int size = config_number(j, "size", 299, SMALLEST, 4096);
    json_free(j);
    Scope s = scope_begin();
    net->declaring = true, net->size = SMALLEST;
    net->dim = tensor_cols(inception_features(net, tensor_new(SHAPE(1, SMALLEST, SMALLEST, 3))));
    net->declaring = false, net->size = size;
    net->unit_count = net->next;
    scope_end(s, NULL);
    return net;
}

void inception_free(Inception *net) {
    params_free(&net->params);
    free(net);
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
            "2015 (1008 classes): weights/fetch.sh inception fetches it",
            path);
    Inception *net = inception_new(config, path);
    params_load(&net->params, find_in_store, store, path);
    params_to_f32(&net->params);
    store_close(store);
    inception_fold(net);
    return net;
}

// [F4] A trained batch norm is a fixed scale and shift of each channel, so it can join the convolution before
// it: with s = gamma / sqrt(var + eps),
//   gamma (w * x - mean) / sqrt(var + eps) + beta  =  (w s) * x + (beta - mean s)
void inception_fold(Inception *net) {
    for (int i = 0; i < net->unit_count; i++) {
        Unit *u = &net->units[i];
        size_t out = (size_t)u->conv->weight->shape[0], each = tensor_count(u->conv->weight) / out;
        float *weight = tensor_read(u->conv->weight), *gamma = tensor_read(u->bn->weight);
        float *beta = tensor_read(u->bn->bias), *mean = tensor_read(u->mean), *var = tensor_read(u->var);
        for (size_t c = 0; c < out; c++) {
            if (!(var[c] >= 0))
                die("%s.running_var[%zu] is %g; a variance cannot be negative", u->bn->name, c,
                    (double)var[c]);
            net->hash = hash_more(net->hash, (float[]){gamma[c], beta[c], mean[c], var[c]}, 16);
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

uint64_t fid_made_by(const Inception *net, FidResize resize) {
    return hash_more(net->hash, &resize, sizeof resize) >> 11 | 1; // a float64 holds 53 bits
}

// ---- moments ----------------------------------------------------------------------------------------------

// [F7] Mean and covariance in one pass. Portions of the features are merged as Chan, Golub and LeVeque (1979)
// merge them: the scatter of each portion around its own mean, plus a rank-one term for the distance between
// the means. So nothing large is ever subtracted from something large, where sum(x^2) - n mean^2 would lose
// its digits. The rank-one term is one more row of the product.
void moments_begin(FidSet *s) {
    size_t D = (size_t)s->dim;
    s->mu = xcalloc(D, sizeof(double)), s->sigma = xcalloc(D * D, sizeof(double));
}

void moments_add(FidSet *s, const float *features, int count) {
    size_t D = (size_t)s->dim, rows = (size_t)count + 1;
    double *t = xmalloc(D * rows * sizeof(double)), n = (double)s->count; // t (dim, count + 1)
    for (size_t j = 0; j < D; j++) {
        double sum = 0, *row = t + j * rows;
        for (size_t i = 0; i < (size_t)count; i++) sum += features[i * D + j];
        double mean = sum / count, step = mean - s->mu[j];
        for (size_t i = 0; i < (size_t)count; i++) row[i] = features[i * D + j] - mean;
        row[count] = step * sqrt(n * count / (n + count));
        s->mu[j] += step * count / (n + count);
    }
    product_f64(s->sigma, D, t, rows, t, rows, s->dim, s->dim, (int)rows, 1, LOWER);
    s->count += count;
    free(t);
}

void moments_end(FidSet *s) {
    size_t D = (size_t)s->dim;
    if (s->count < 2) die("a covariance needs two pictures at least; there is %ld", s->count);
    for (size_t i = 0; i < D; i++)
        for (size_t j = 0; j <= i; j++)
            s->sigma[i * D + j] = s->sigma[j * D + i] = s->sigma[i * D + j] / (double)(s->count - 1);
}

FidSet fid_read_statistics(const char *npz) {
    FidSet s = {.path = xstrdup(npz)};
    int64_t mu[4], sigma[4];
    int mu_dims, sigma_dims;
    s.mu = npz_read(npz, "mu", 32768, mu, &mu_dims);
    if (mu_dims != 1 || mu[0] < 1 || mu[0] > 32768)
        die("%s: mu has %d dimensions, the first of %lld; one of 1 to 32768 is expected", npz, mu_dims,
            (long long)mu[0]);
    s.sigma = npz_read(npz, "sigma", (size_t)(mu[0] * mu[0]), sigma, &sigma_dims);
    if (sigma_dims != 2 || sigma[0] != mu[0] || sigma[1] != mu[0])
        die("%s: sigma has %d dimensions (%lld, %lld); (%lld, %lld) is expected, as mu has it", npz,
            sigma_dims, (long long)sigma[0], (long long)sigma[1], (long long)mu[0], (long long)mu[0]);
    if (npz_has(npz, "made_by")) {
        int64_t one[4];
        int dims;
        double *made_by = npz_read(npz, "made_by", 1, one, &dims);
        if (dims != 1 || one[0] != 1 || !(*made_by >= 1 && *made_by < 0x1p53))
            die("%s: made_by is no number of 53 bits", npz);
        s.made_by = (uint64_t)*made_by;
        free(made_by);
    }
    size_t D = (size_t)mu[0];
    s.dim = (int)D;
    double largest = 0; // of the variances
    for (size_t i = 0; i < D; i++) largest = fmax(largest, s.sigma[i * (D + 1)]);
    for (size_t i = 0; i < D; i++) {
        if (!isfinite(s.mu[i])) die("%s: mu[%zu] is %g", npz, i, s.mu[i]);
        if (s.sigma[i * (D + 1)] < 0)
            die("%s: sigma[%zu, %zu] is %g; a variance cannot be negative", npz, i, i, s.sigma[i * (D + 1)]);
        for (size_t j = 0; j <= i; j++) {
            double a = s.sigma[i * D + j], b = s.sigma[j * D + i];
            if (!isfinite(a) || !isfinite(b))
                die("%s: sigma[%zu, %zu] is %g", npz, i, j, isfinite(a) ? b : a);
            if (!(fabs(a - b) <= 1e-4 * largest))
                die("%s: sigma is no covariance: [%zu, %zu] is %g and [%zu, %zu] is %g", npz, i, j, a, j, i,
                    b);
        }
    }
    return s;
}

void fid_write_statistics(const FidSet *s, const char *npz) {
    double made_by = (double)s->made_by;
    NpzArray arrays[] = {
        {"mu", s->mu, 1, {s->dim}}, {"sigma", s->sigma, 2, {s->dim, s->dim}}, {"made_by", &made_by, 1, {1}}};
    npz_write(npz, arrays, s->made_by ? 3 : 2);
}

void fid_set_free(FidSet *s) {
    for (long i = 0; s->names && i < s->count; i++) free(s->names[i]);
    free(s->names), free(s->features), free(s->mu), free(s->sigma), free(s->path);
    *s = (FidSet){0};
}

// ---- Fréchet distance -------------------------------------------------------------------------------------

// [F8] tr (C1 C2)^(1/2) without a general matrix square root. C1 C2 is not symmetric, but with C1 = L L^T the
// product L^T C2 L is: it is positive semidefinite and has the same eigenvalues but for zeros. The trace is
// the sum of their square roots. Of fewer pictures than features a covariance is singular; then L is just
// narrow. A file may hold matrices that are no covariances. One with negative eigenvalues has no such root;
// it shows in that L misses part of the trace of C1, or in clearly negative eigenvalues of the product.
static double trace_of_root(const double *c1, const double *c2, int n) {
    size_t N = (size_t)n, bytes = N * N * sizeof(double);
    double *lt = xmalloc(bytes), *work = xmalloc(bytes);
    int *order = xmalloc(N * sizeof *order);
    memcpy(work, c1, bytes);
    int r = pivoted_cholesky(lt, order, work, n);
    double trace = 0, missing, positive = 0, negative = 0;
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
    if (!(fabs(missing) <= 0.01 * trace && negative <= 0.01 * positive))
        die("a covariance has negative eigenvalues: is it a covariance?");
    free(lt), free(work), free(order), free(half), free(d);
    return sum;
}

// [F9] Fréchet distance of two Gaussians (Dowson and Landau 1982):
//   d^2 = |mu1 - mu2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)
// Rounding leaves less than zero of equal sets: -1e-8 of d in float32, up to -1e-3 in half precision.
double frechet_distance(const double *mu1, const double *c1, const double *mu2, const double *c2, int n) {
    double d = 0;
    for (int i = 0; i < n; i++) {
        size_t diagonal = (size_t)i * ((size_t)n + 1);
        d += (mu1[i] - mu2[i]) * (mu1[i] - mu2[i]) + c1[diagonal] + c2[diagonal];
    }
    double distance = d - 2 * trace_of_root(c1, c2, n);
    if (!(distance >= -1e-6 * d))
        die("the FID is %g; rounding does not explain what is negative: are the statistics in half precision?",
            distance);
    return fmax(distance, 0);
}

static void must_fit(const FidSet *a, const FidSet *b, bool paired) {
    if (paired && a->count != b->count) die("pairs of %ld and %ld pictures", a->count, b->count);
    if (a->dim != b->dim)
        die("%s has %d features, %s has %d: they come from different networks", a->path, a->dim, b->path,
            b->dim);
}

double fid_distance(const FidSet *a, const FidSet *b) {
    must_fit(a, b, false);
    return frechet_distance(a->mu, a->sigma, b->mu, b->sigma, a->dim);
}

// ---- KID --------------------------------------------------------------------------------------------------

// The first m of a random order of 0, ..., n - 1 (Fisher and Yates).
static void random_order(long *order, long n, long m, Random *r) {
    for (long i = 0; i < n; i++) order[i] = i;
    for (long i = 0; i < m; i++) {
        uint64_t high = random_u32(r), low = random_u32(r);
        long k = i + (long)((high << 32 | low) / 2 % (uint64_t)(n - i)), t = order[i];
        order[i] = order[k], order[k] = t;
    }
}

// A random order for each of two sets; the same one for both, or none for a set that has no features.
static void random_orders(long *const order[2], const FidSet *const set[2], long m, bool same, Random *r) {
    for (int s = 0; s < 2; s++)
        if (s && same)
            memcpy(order[1], order[0], (size_t)set[0]->count * sizeof(long));
        else if (order[s])
            random_order(order[s], set[s]->count, m < set[s]->count ? m : set[s]->count, r);
}

// The features of the first m pictures of an order, (m, dim).
static void gather(double *x, const FidSet *s, const long *order, int m) {
    size_t D = (size_t)s->dim;
    for (size_t i = 0; i < (size_t)m; i++)
        for (size_t j = 0; j < D; j++) x[i * D + j] = s->features[(size_t)order[i] * D + j];
}

// k (m, m): k(x, y) = (x . y / D + 1)^3. Of a set with itself only the lower triangle.
static void kernel(double *k, const double *x, const double *y, int m, int dim) {
    size_t M = (size_t)m, D = (size_t)dim;
    memset(k, 0, M * M * sizeof(double));
    product_f64(k, M, x, D, y, D, m, m, dim, 1.0 / dim, x == y ? LOWER : 0);
    for (size_t i = 0; i < M * M; i++) k[i] = (k[i] + 1) * (k[i] + 1) * (k[i] + 1);
}

// What one subset says, or the mean over subsets.
typedef struct {
    double kid, x, y, xy; // KID; variance of h over the pictures of x and of y; covariance, row by row
    double second;        // variance of what h misses: the interaction of two pictures
} KidFigures;

// h of a picture is its part of the sums of KID. Over rows i, with
//   H_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)
// an analysis of variance of H (i != j) by rows and columns leaves the interaction. k: room for (3, m, m).
static KidFigures kid_of_subset(const double *x, const double *y, int m, int dim, bool paired, double *k) {
    size_t M = (size_t)m;
    double *kx = k, *ky = k + M * M, *kxy = k + 2 * M * M, n = m, squares = 0, rows = 0, all = 0;
    kernel(kx, x, x, m, dim);
    kernel(ky, y, y, m, dim);
    kernel(kxy, x, y, m, dim);
    // Of each picture: sums of the kernel over its set's other pictures, and over the other set's.
    double *own_x = xcalloc(4 * M, sizeof(double)), *own_y = own_x + M, *cross_x = own_y + M,
           *cross_y = cross_x + M;
    for (size_t i = 0; i < M; i++)
        for (size_t j = 0; j < i; j++) {
            double a = kx[i * M + j], b = ky[i * M + j], c = kxy[i * M + j], d = kxy[j * M + i];
            own_x[i] += a, own_x[j] += a, cross_x[i] += c, cross_x[j] += d;
            own_y[i] += b, own_y[j] += b, cross_y[i] += d, cross_y[j] += c;
            squares += 2 * (a + b - c - d) * (a + b - c - d);
        }
    KidFigures f = {0};
    double mean_x = 0, mean_y = 0;
    for (size_t i = 0; i < M; i++) {
        double row = own_x[i] + own_y[i] - cross_x[i] - cross_y[i]; // of H
        rows += row * row, all += row;
        double pair = paired ? 0 : kxy[i * (M + 1)], others = paired ? n - 1 : n;
        mean_x += own_x[i] = own_x[i] / (n - 1) - (cross_x[i] + pair) / others; // now h
        mean_y += own_y[i] = own_y[i] / (n - 1) - (cross_y[i] + pair) / others;
    }
    mean_x /= n, mean_y /= n;
    for (size_t i = 0; i < M; i++) {
        double a = own_x[i] - mean_x, b = own_y[i] - mean_y;
        f.x += a * a / (n - 1), f.y += b * b / (n - 1), f.xy += a * b / (n - 1);
    }
    free(own_x);
    f.kid = mean_x + mean_y;
    f.second = m > 3 ? (squares - 2 * rows / (n - 2) + all * all / ((n - 1) * (n - 2))) / (n * (n - 3)) : NAN;
    return f;
}

// A jackknife's variance counts the second order, the interaction of pictures, twice (Efron and Stein 1981):
// of sets that do not differ its 95 % intervals hold 99 of 100 true values. Less `second` the variance is
// unbiased; but it comes out small where the estimate does, and of sets that differ a little the intervals
// hold 92. So of a small share less is taken off. The 1.9 is found by trial: test/phases/fid.c counts.
static double corrected(double jackknife, double second) {
    double share = fmin(second / jackknife, 0.5); // 1/2 where the sets do not differ
    return jackknife > 0 ? jackknife * (1 - 1.9 * share * share) : jackknife;
}

// [F10] The squared maximum mean discrepancy with that polynomial kernel, unbiased: of m pictures each
//   sum_{i != j} (k(x_i, x_j) + k(y_i, y_j)) / m(m-1)  -  2 sum_{i, j} k(x_i, y_j) / m^2
// and of that the mean over 100 subsets of min(1000, pictures), as clean-fid, torch-fidelity and torchmetrics
// have it. (Where every subset is the whole set, one is enough: they are all the same.) If x_i and y_i have
// something in common, such as the caption, the terms k(x_i, y_i) are too large and KID is too small. Paired,
// it is without them (Gretton et al. 2012, lemma 6): 2 sum_{i != j} k(x_i, y_j) / m(m-1).
//
// The variance is that of a statistic of pairs (Hoeffding 1948): with h(x) the part of the sums above that
// involves x, divided so that its mean over x is (KID + a constant),
//   4 (var h(x) / n_x + var h(y) / n_y)  +  2 second / (n_x n_y)  +  var_subsets / subsets
// A jackknife has the middle term twice; h measured with m pictures adds 2 second (1/n_x + 1/n_y) / m.
double kid_distance(const FidSet *a, const FidSet *b, bool paired, uint64_t seed, double *standard_error) {
    enum { SUBSETS = 100, SUBSET_SIZE = 1000 };
    must_fit(a, b, paired);
    if (!a->features || !b->features)
        die("a KID needs the features of both sets; statistics do not hold them");
    int m = (int)fmin(SUBSET_SIZE, fmin((double)a->count, (double)b->count));
    if (m < 2) die("a KID needs two pictures in each set; %s holds one", a->count < 2 ? a->path : b->path);
    int subsets = a->count == m && b->count == m ? 1 : SUBSETS;
    const FidSet *set[2] = {a, b};
    long *order[2];
    double *x[2], *k = xmalloc(3 * (size_t)m * (size_t)m * sizeof(double)), squares = 0;
    for (int s = 0; s < 2; s++) {
        order[s] = xmalloc((size_t)set[s]->count * sizeof(long));
        x[s] = xmalloc((size_t)m * (size_t)a->dim * sizeof(double)); // (m, dim): the subset's features
    }
    KidFigures mean = {0};
    Random r;
    random_seed(&r, seed);
    for (int t = 0; t < subsets; t++) {
        random_orders(order, set, m, paired || subsets == 1, &r); // of whole sets any order is as good
        for (int s = 0; s < 2; s++) gather(x[s], set[s], order[s], m);
        KidFigures f = kid_of_subset(x[0], x[1], m, a->dim, paired, k);
        double step = f.kid - mean.kid; // Welford 1962
        mean.kid += step / (t + 1), squares += step * (f.kid - mean.kid);
        mean.x += f.x / subsets, mean.y += f.y / subsets, mean.xy += f.xy / subsets;
        mean.second += f.second / subsets;
    }
    double nx = (double)a->count, ny = (double)b->count, second = 2 * mean.second / (nx * ny);
    double measured = 4 * (mean.x / nx + mean.y / ny + (paired ? 2 * mean.xy / nx : 0));
    double jackknife = measured + 2 * second - 2 * mean.second / m * (1 / nx + 1 / ny);
    double variance = corrected(fmax(jackknife, second), second);
    if (subsets > 1) variance += squares / (subsets - 1) / subsets;
    if (standard_error) *standard_error = m > 3 ? sqrt(fmax(variance, 0)) : NAN;
    free(order[0]), free(order[1]), free(x[0]), free(x[1]), free(k);
    return mean.kid;
}

// ---- precision and recall ---------------------------------------------------------------------------------

enum { NEIGHBOURS = 5, BLOCK = 64 }; // the k of Naeem et al.; rows of distances that are held at once

// Of each picture of a set the squared distance to the k-th nearest of the others.
static double *radii_of(const FidSet *s) {
    size_t D = (size_t)s->dim, N = (size_t)s->count;
    double *radii = xmalloc(N * sizeof *radii), *d = xmalloc(BLOCK * N * sizeof *d);
    for (size_t i0 = 0; i0 < N; i0 += BLOCK) {
        size_t rows = N - i0 < BLOCK ? N - i0 : BLOCK;
        squared_distances(d, s->features + i0 * D, s->features, (int)rows, (int)N, s->dim);
        for (size_t i = 0; i < rows; i++) {
            double nearest[NEIGHBOURS + 1]; // sorted; the first is the picture itself
            for (int k = 0; k <= NEIGHBOURS; k++) nearest[k] = INFINITY;
            for (size_t j = 0; j < N; j++) {
                double x = d[i * N + j];
                for (int k = 0; k <= NEIGHBOURS && x < INFINITY; k++)
                    if (x < nearest[k]) {
                        double larger = nearest[k];
                        nearest[k] = x, x = larger;
                    }
            }
            radii[i0 + i] = nearest[NEIGHBOURS];
        }
    }
    free(d);
    return radii;
}

// [F11] Where are the pictures of a set? Within balls around each of them that reach to its k-th neighbour.
//   precision  of the drawn pictures, those that lie in a ball of a real one
//   recall     of the real ones, those in a ball of a drawn one (Kynkaanniemi et al. 2019)
//   density    real balls that a drawn picture lies in, divided by k: an outlier's large ball counts once
//   coverage   of the real balls, those that hold a drawn picture (Naeem et al. 2020)
// A model that draws few things well has precision and density, but neither recall nor coverage.
Neighbours fid_neighbours(const FidSet *a, const FidSet *b) {
    must_fit(a, b, false);
    size_t D = (size_t)a->dim, NA = (size_t)a->count, NB = (size_t)b->count;
    if (a->count <= NEIGHBOURS || b->count <= NEIGHBOURS) return (Neighbours){NAN, NAN, NAN, NAN};
    double *ra = radii_of(a), *rb = radii_of(b), *d = xmalloc(BLOCK * NB * sizeof *d);
    long *balls = xcalloc(NB, sizeof *balls), real = 0, covered = 0, seen = 0, all = 0;
    for (size_t i0 = 0; i0 < NA; i0 += BLOCK) {
        size_t rows = NA - i0 < BLOCK ? NA - i0 : BLOCK;
        squared_distances(d, a->features + i0 * D, b->features, (int)rows, (int)NB, a->dim);
        for (size_t i = 0; i < rows; i++) {
            bool holds = false, held = false;
            for (size_t j = 0; j < NB; j++) {
                bool inside = d[i * NB + j] < ra[i0 + i];
                balls[j] += inside, holds |= inside, held |= d[i * NB + j] < rb[j];
            }
            covered += holds, seen += held;
        }
    }
    for (size_t j = 0; j < NB; j++) real += balls[j] > 0, all += balls[j];
    free(ra), free(rb), free(d), free(balls);
    double na = (double)NA, nb = (double)NB;
    return (Neighbours){(double)real / nb, (double)seen / na, (double)all / nb / NEIGHBOURS,
                        (double)covered / na};
}

// A model may draw what it has learnt by heart. Beside its nearest picture of the training set one sees
// whether it did.
void fid_nearest(const FidSet *a, const FidSet *b, int rows, long *nearest, double *distance) {
    must_fit(a, b, false);
    double *d = xmalloc((size_t)rows * (size_t)a->count * sizeof *d);
    squared_distances(d, b->features, a->features, rows, (int)a->count, a->dim);
    for (size_t i = 0; i < (size_t)rows; i++) {
        const double *row = d + i * (size_t)a->count;
        nearest[i] = 0;
        for (long j = 1; j < a->count; j++)
            if (row[j] < row[nearest[i]]) nearest[i] = j;
        distance[i] = sqrt(fmax(row[nearest[i]], 0));
    }
    free(d);
}

// ---- interval ---------------------------------------------------------------------------------------------

// Mean and covariance of some pictures of a set, as a set.
static FidSet part_of(const FidSet *s, const long *picks, long count) {
    enum { PORTION = 512 };
    FidSet t = {.path = xstrdup(s->path), .dim = s->dim};
    size_t D = (size_t)s->dim;
    moments_begin(&t);
    float *portion = xmalloc(PORTION * D * sizeof(float));
    for (long i = 0, filled = 0; i < count; i++) {
        memcpy(portion + (size_t)filled++ * D, s->features + (size_t)picks[i] * D, D * sizeof(float));
        if (filled == PORTION || i == count - 1) moments_add(&t, portion, (int)filled), filled = 0;
    }
    moments_end(&t);
    free(portion);
    return t;
}

// The FID of few pictures is too large, so this is an interval about its expectation at this number of
// pictures. A bootstrap is not one: its sets have repeated pictures and come from sets that differ already,
// so it finds up to three times the variance. Here the sets are halved at random, again and again. The halves
// are independent, and FIDs f1, f2 of them have the mean (f1 + f2) / 2 with the variance E (f1 - f2)^2 / 4.
// Of that the whole sets do not have the part that comes from how they were halved, the variance of the mean
// over the halvings; it is the second order, and the rest is the variance to that order (the decomposition of
// Efron and Stein 1981). A set given as statistics stays.
void fid_interval(const FidSet *a, const FidSet *b, bool paired, int rounds, uint64_t seed, double ends[2]) {
    must_fit(a, b, paired);
    if (!a->features && !b->features) die("an interval needs the features of one set at least");
    ends[0] = ends[1] = NAN;
    const FidSet *set[2] = {a, b};
    long *order[2];
    for (int s = 0; s < 2; s++) {
        if (set[s]->features && set[s]->count < 4) return; // half of it would have no covariance
        order[s] = set[s]->features ? xmalloc((size_t)set[s]->count * sizeof(long)) : NULL;
    }
    double jackknife = 0, mean = 0, squares = 0, fid = fid_distance(a, b);
    Random r;
    random_seed(&r, seed);
    Progress progress;
    progress_begin(&progress, "interval", rounds);
    for (int i = 0; i < rounds; i++) {
        double f[2];
        random_orders(order, set, LONG_MAX, paired, &r);
        for (int half = 0; half < 2; half++) {
            FidSet part[2] = {{0}};
            for (int s = 0; s < 2; s++)
                if (order[s])
                    part[s] = part_of(set[s], order[s] + half * (set[s]->count / 2), set[s]->count / 2);
            f[half] = fid_distance(order[0] ? &part[0] : a, order[1] ? &part[1] : b);
            fid_set_free(&part[0]), fid_set_free(&part[1]);
        }
        double step = (f[0] + f[1]) / 2 - mean;
        mean += step / (i + 1), squares += step * ((f[0] + f[1]) / 2 - mean);
        jackknife += (f[0] - f[1]) * (f[0] - f[1]) / 4 / rounds;
        progress_step(&progress, i + 1, NULL);
    }
    progress_end(&progress);
    double width = 1.96 * sqrt(corrected(jackknife, squares / (rounds - 1)));
    ends[0] = fmax(fid - width, 0), ends[1] = fid + width;
    free(order[0]), free(order[1]);
}
