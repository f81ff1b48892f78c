// ops.c: the operations of nn.h. Most are a pair of functions. The forward computes and notes a record on the
// tape. Its backward stands above it, under the formula: y is the output, x an input, dy and dx are the
// derivatives of the loss with respect to y and x. They are added up (`dx +=`), because a tensor may be used
// more than once.
//
// No arithmetic happens here. An operation checks shapes and calls the kernels of kernels.h.
//   products  convolution  norms  attention  elementwise  sums  data movement;  losses.c: losses
#include "tape.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- helpers ----------------------------------------------------------------------------------------------

Tensor *like(const Tensor *x) { return tensor_new_type(x->dims, x->shape, x->type); }

// A new tensor of x's shape, except for one axis.
static Tensor *like_with(const Tensor *x, int axis, int size, Type type) {
    int shape[4];
    memcpy(shape, x->shape, sizeof shape);
    shape[axis] = size;
    return tensor_new_type(x->dims, shape, type);
}

static Tensor *like_with_cols(const Tensor *x, int cols) {
    return like_with(x, x->dims - 1, cols, backend.storage);
}

void same_shape(const char *operation, const Tensor *a, const Tensor *b) {
    if (tensor_count(a) != tensor_count(b) || tensor_cols(a) != tensor_cols(b))
        die("%s: the shapes differ: %d x %d and %d x %d", operation, tensor_rows(a), tensor_cols(a),
            tensor_rows(b), tensor_cols(b));
}

void *upload(const void *host, int count) {
    void *at = backend.temp((size_t)count * 4);
    backend.upload(at, host, (size_t)count * 4);
    return at;
}

// dx += a dy, of as many elements
static void add_gradient(Tensor *x, float a, Mem dy) {
    if (!x || !x->wants_grad) return;
    bool begun;
    Mem dx = grad_to_store(x, &begun);
    backend.combine(dx, a, dy, 0, (Mem){0}, begun ? 1 : 0, tensor_count(x));
}

// ---- products ---------------------------------------------------------------------------------------------

// [G3] gemm, the general matrix product: Y = alpha A B (+ bias + residual), A (m, k), B (k, n) or B^T (n, k)
//   dA += alpha dY B^T     dB += alpha A^T dY     dbias += column sums of dY     dresidual += dY
static void gemm_backward(Record *r) {
    Tensor *a = r->in[0], *b = r->in[1];
    Gemm f = r->p.gemm;
    Mem dy = grad(r->out);
    if (a->wants_grad) {
        bool begun;
        Mem da = grad_to_store(a, &begun);
        backend.gemm(da, dy, mem(b), (Mem){0}, (Mem){0},
                     (Gemm){f.m, f.k, f.n, .b_transposed = !f.b_transposed, .add = begun, .alpha = f.alpha});
    }
    if (b->wants_grad && f.b_transposed) // dB^T (n, k) += dY^T A
        backend.gemm(grad(b), dy, mem(a), (Mem){0}, (Mem){0},
                     (Gemm){f.n, f.k, f.m, .a_transposed = true, .add = true, .alpha = f.alpha});
    if (b->wants_grad && !f.b_transposed)
        backend.gemm(grad(b), mem(a), dy, (Mem){0}, (Mem){0},
                     (Gemm){f.k, f.n, f.m, .a_transposed = true, .add = true, .alpha = f.alpha});
    if (r->in[2] && r->in[2]->wants_grad) backend.sum_rows(grad(r->in[2]), dy, 1, f.m, f.n);
    add_gradient(r->in[3], 1, dy);
}

// [T12] Every operation comes down to this: call a kernel, note on the tape what the backward needs.
static Tensor *gemm(Tensor *y, Tensor *a, Tensor *b, Tensor *bias, Tensor *residual, Gemm f) {
    backend.gemm(mem(y), mem(a), mem(b), mem(bias), mem(residual), f);
    return record((Record){.backward = gemm_backward, .out = y, .in = {a, b, bias, residual}, .p.gemm = f});
}

Tensor *matmul(Tensor *a, Tensor *b, bool b_transposed, float alpha) {
    Gemm f = {tensor_rows(a), b_transposed ? b->shape[0] : tensor_cols(b), tensor_cols(a),
              .b_transposed = b_transposed, .alpha = alpha};
    int inner = b_transposed ? (int)(tensor_count(b) / (size_t)b->shape[0]) : tensor_rows(b);
    if (inner != f.k) die("matmul: inner sizes %d and %d differ", f.k, inner);
    return gemm(like_with_cols(a, f.n), a, b, NULL, NULL, f);
}

// LoRA: y += s B A x, with A = down, B = up and low = A x. y is updated in place. Its gradient is
// the same before and after the update, so the backward adds nothing for y itself.
static void adapt(Tensor *y, Tensor *low, const Adapter *a) {
    Gemm f = {tensor_rows(low),     tensor_cols(y), tensor_cols(low),
              .b_transposed = true, .add = true,    .alpha = a->scale};
    gemm(y, low, a->up, NULL, NULL, f);
}

int layer_inputs(const Layer *l) { return (int)(tensor_count(l->weight) / (size_t)l->weight->shape[0]); }

void adapter_add(Tensor *w, const Adapter *a, float scale) {
    int out = w->shape[0], rank = a->down->shape[0], in = (int)(tensor_count(a->down) / (size_t)rank);
    backend.gemm(mem(w), mem(a->up), mem(a->down), (Mem){0}, (Mem){0},
                 (Gemm){out, in, rank, .add = true, .alpha = scale});
}

// The weights by which a layer multiplies its `rows` input rows: W itself, or a copy of W + s B A. The copy
// takes in * out multiply-adds per unit of rank. With W itself, adapt() follows, which takes
// rows * (in + out). The cheaper way is chosen. While the tape records it is always adapt(), because A and B
// need gradients. Examples: with 320 channels and 64 x 64 pixels the copy is 26 times cheaper. With 1280
// channels and 8 x 8 pixels adapt() is 10 times cheaper. Where W was rounded when it was read, it is also
// adapt(): rounded again, a sum would lose what is small beside W.
static bool takes_adapt(const Layer *l, int rows) {
    double out = l->weight->shape[0], in = layer_inputs(l);
    return l->adapters && (is_recording() || backend.weights == BF16 || rows * (in + out) <= in * out);
}

static Tensor *weights_for(const Layer *l, int rows) {
    Tensor *w = l->weight;
    if (!l->adapters || takes_adapt(l, rows)) return w;
    Tensor *sum = tensor_new_type(w->dims, w->shape, F32);
    backend.copy(mem(sum), mem(w), tensor_count(w));
    for (Adapter *a = l->adapters; a; a = a->next) adapter_add(sum, a, a->scale);
    return sum;
}

// A residual that the sum may be written over, or NULL: see nn.h.
static Tensor *spare(Tensor *residual) {
    return residual && residual->type == backend.storage && !is_recording() && in_block(residual) ? residual
                                                                                                  : NULL;
}

// A linear layer, x (..., in) -> (..., out): check the shapes, then gemm(), once more for each adapter.
Tensor *linear_add(Tensor *x, const Layer *l, Tensor *residual) {
    int out = l->weight->shape[0], in = layer_inputs(l);
    if (tensor_cols(x) != in) die("%s takes %d channels, not %d", l->name, in, tensor_cols(x));
    Gemm f = {tensor_rows(x), out, in, .b_transposed = true, .alpha = 1};
    Tensor *y = spare(residual);
    if (!y) y = like_with_cols(x, out);
    Scope s = scope_begin();
    gemm(y, x, weights_for(l, f.m), l->bias, residual, f);
    if (takes_adapt(l, f.m))
        for (Adapter *a = l->adapters; a; a = a->next) adapt(y, matmul(x, a->down, true, 1), a);
    scope_end(s, NULL);
    return y;
}

Tensor *linear(Tensor *x, const Layer *l) { return linear_add(x, l, NULL); }

// Whether linear() is one product of x and l's own weights, which nothing need remember.
static bool is_plain(const Tensor *x, const Layer *l) {
    return !is_recording() && !l->adapters && tensor_cols(x) == layer_inputs(l);
}

void linear_three(Tensor **y, Tensor *x, const Layer *const *l) {
    bool plain = backend.gemm_three != NULL;
    for (int i = 0; i < 3; i++)
        plain = plain && is_plain(x, l[i]) && !l[i]->bias && l[i]->weight->shape[0] == l[0]->weight->shape[0];
    Mem to[3], w[3];
    for (int i = 0; i < 3; i++) {
        y[i] = plain ? like_with_cols(x, l[i]->weight->shape[0]) : linear(x, l[i]);
        to[i] = mem(y[i]), w[i] = mem(l[i]->weight);
    }
    if (plain) backend.gemm_three(to, mem(x), w, tensor_rows(x), tensor_cols(y[0]), tensor_cols(x));
}

Tensor *linear_geglu(Tensor *x, const Layer *l) {
    if (!backend.gemm_geglu || !is_plain(x, l)) return geglu(linear(x, l));
    Tensor *y = like_with_cols(x, l->weight->shape[0] / 2);
    backend.gemm_geglu(mem(y), mem(x), mem(l->weight), mem(l->bias), tensor_rows(x), tensor_cols(y),
                       tensor_cols(x));
    return y;
}

// ---- convolution ------------------------------------------------------------------------------------------

// y[i, o] = sum over k, c of w[o, k, c] x[i + k, c] (+ bias + residual), i a pixel, k an offset in the kernel
//   dx[i + k, c] += sum over o of w[o, k, c] dy[i, o]     dw[o, k, c] += sum over i of dy[i, o] x[i + k, c]
static void conv_backward(Record *r) {
    Tensor *x = r->in[0], *w = r->in[1];
    Mem dy = grad(r->out);
    Conv p = r->p.conv;
    if (x->wants_grad) {
        bool begun;
        Mem dx = grad_to_store(x, &begun);
        backend.conv2d_backward_input(dx, dy, mem(w), p, begun);
    }
    if (w->wants_grad) backend.conv2d_backward_weight(grad(w).at, dy, mem(x), p);
    if (r->in[2] && r->in[2]->wants_grad) backend.sum_rows(grad(r->in[2]), dy, 1, p.n * p.oh * p.ow, p.oc);
    add_gradient(r->in[3], 1, dy);
}

static Tensor *conv(Tensor *y, Tensor *x, Tensor *weight, Tensor *bias, Tensor *residual, Conv p) {
    if (!y) y = tensor_new(SHAPE(p.n, p.oh, p.ow, p.oc));
    backend.conv2d(mem(y), mem(x), mem(weight), mem(bias), mem(residual), p);
    return record(
        (Record){.backward = conv_backward, .out = y, .in = {x, weight, bias, residual}, .p.conv = p});
}

static Conv conv_shape(Tensor *x, const Layer *l, int stride, int top, int left, int oh, int ow) {
    const int *w = l->weight->shape;
    if (x->dims != 4 || x->shape[3] != w[3])
        die("%s takes pictures of %d channels, not %d", l->name, w[3], tensor_cols(x));
    return (Conv){x->shape[0], x->shape[1], x->shape[2], x->shape[3], oh,  ow,
                  w[0],        w[1],        w[2],        stride,      top, left};
}

static Tensor *conv_layer(Tensor *x, const Layer *l, Tensor *residual, Conv p) {
    Tensor *y = spare(residual);
    if (!y) y = tensor_new(SHAPE(p.n, p.oh, p.ow, p.oc));
    Scope s = scope_begin();
    conv(y, x, weights_for(l, p.n * p.oh * p.ow), l->bias, residual, p);
    if (takes_adapt(l, p.n * p.oh * p.ow))
        for (Adapter *a = l->adapters; a; a = a->next) { // down has the layer's kernel size, up is 1x1
            p.oc = a->down->shape[0];
            adapt(y, conv(NULL, x, a->down, NULL, NULL, p), a);
        }
    scope_end(s, NULL);
    return y;
}

Tensor *conv2d_padded(Tensor *x, const Layer *l, int stride, int pad_top, int pad_left, int oh, int ow) {
    return conv_layer(x, l, NULL, conv_shape(x, l, stride, pad_top, pad_left, oh, ow));
}

Tensor *conv2d(Tensor *x, const Layer *l, int stride, int padding) {
    int oh = (x->shape[1] + 2 * padding - l->weight->shape[1]) / stride + 1;
    int ow = (x->shape[2] + 2 * padding - l->weight->shape[2]) / stride + 1;
    return conv_layer(x, l, NULL, conv_shape(x, l, stride, padding, padding, oh, ow));
}

static Conv same_size(Tensor *x, const Layer *l, int h, int w) { // padding="same"
    return conv_shape(x, l, 1, l->weight->shape[1] / 2, l->weight->shape[2] / 2, h, w);
}

Tensor *conv2d_add(Tensor *x, const Layer *l, Tensor *residual) {
    return conv_layer(x, l, residual, same_size(x, l, x->shape[1], x->shape[2]));
}

// ---- norms ------------------------------------------------------------------------------------------------

// xhat = (x - mean) rstd over the elements of a group, rstd = 1 / sqrt(variance + eps)
// y = gamma xhat + beta. If SiLU is fused, it is applied to this y, and dy below is multiplied by SiLU'(y).
//   dgamma += dy xhat;  dbeta += dy;  dx += rstd (g - mean(g) - xhat mean(g xhat)),  g = gamma dy
static void group_norm_backward(Record *r) {
    Tensor *gamma = r->in[1], *beta = r->in[2];
    backend.group_norm_backward(grad(r->in[0]), grad(gamma).at, grad(beta).at, grad(r->out), mem(r->in[0]),
                                mem(gamma), mem(beta), r->kept, r->p.norm);
}

static Tensor *norm(Tensor *x, const Layer *l, GroupNorm p) {
    Tensor *y = like(x);
    float *stats = is_recording() ? backend.temp((size_t)p.n * (size_t)p.groups * 2 * sizeof(float)) : NULL;
    backend.group_norm(mem(y), stats, mem(x), mem(l->weight), mem(l->bias), p);
    return record((Record){.backward = group_norm_backward,
                           .out = y,
                           .in = {x, l->weight, l->bias},
                           .kept = stats,
                           .p.norm = p});
}

static GroupNorm group_norm_shape(Tensor *x, const Layer *l, int groups, float eps, bool fused_silu) {
    int c = tensor_cols(x);
    if (l->weight->shape[0] != c || c % groups)
        die("%s norms %d channels in %d groups, not %d", l->name, l->weight->shape[0], groups, c);
    return (GroupNorm){x->shape[0], tensor_rows(x) / x->shape[0], c, groups, eps, fused_silu};
}

Tensor *group_norm(Tensor *x, const Layer *l, int groups, float eps) {
    return norm(x, l, group_norm_shape(x, l, groups, eps, false));
}

Tensor *group_norm_silu(Tensor *x, const Layer *l, int groups, float eps) {
    return norm(x, l, group_norm_shape(x, l, groups, eps, true));
}

Tensor *norm_silu_conv2d(Tensor *x, const Layer *norm_layer, int groups, float eps, const Layer *l,
                         Tensor *residual) {
    Conv p = same_size(x, l, x->shape[1], x->shape[2]);
    if (is_recording() || takes_adapt(l, p.n * p.oh * p.ow))
        return conv2d_add(group_norm_silu(x, norm_layer, groups, eps), l, residual);
    GroupNorm f = group_norm_shape(x, norm_layer, groups, eps, true);
    Tensor *y = spare(residual);
    if (!y) y = tensor_new(SHAPE(p.n, p.oh, p.ow, p.oc));
    Scope s = scope_begin();
    Tensor *w = weights_for(l, p.n * p.oh * p.ow);
    if (backend.conv2d_normed)
        backend.conv2d_normed(mem(y), mem(x), mem(norm_layer->weight), mem(norm_layer->bias), f, mem(w),
                              mem(l->bias), mem(residual), p);
    else
        conv(y, norm(x, norm_layer, f), w, l->bias, residual, p);
    scope_end(s, NULL);
    return y;
}

Tensor *norm_silu_conv2d_vector(Tensor *x, const Layer *norm_layer, int groups, float eps, const Layer *l,
                                Tensor *v) {
    Conv p = same_size(x, l, x->shape[1], x->shape[2]);
    if (!backend.conv2d_vector || is_recording() || l->adapters)
        return add_vector(norm_silu_conv2d(x, norm_layer, groups, eps, l, NULL), v);
    Tensor *y = tensor_new(SHAPE(p.n, p.oh, p.ow, p.oc));
    Scope s = scope_begin();
    Tensor *z = group_norm_silu(x, norm_layer, groups, eps);
    backend.conv2d_vector(mem(y), mem(z), mem(l->weight), mem(l->bias), mem(v), p);
    scope_end(s, NULL);
    return y;
}

// Batch norm in training is a group norm of the whole batch as if it were one picture, one channel a group.
Tensor *batch_norm_batch(Tensor *x, const Layer *l, float eps) {
    return norm(x, l, (GroupNorm){1, tensor_rows(x), tensor_cols(x), tensor_cols(x), eps, false});
}

// As the group norm, over the last axis of each row.
static void layer_norm_backward(Record *r) {
    Tensor *x = r->in[0], *gamma = r->in[1], *beta = r->in[2];
    backend.layer_norm_backward(grad(x), grad(gamma).at, grad(beta).at, grad(r->out), mem(x), mem(gamma),
                                r->kept, tensor_rows(x), tensor_cols(x));
}

Tensor *layer_norm(Tensor *x, const Layer *l, float eps) {
    int rows = tensor_rows(x), cols = tensor_cols(x);
    if (l->weight->shape[0] != cols) die("%s norms %d channels, not %d", l->name, l->weight->shape[0], cols);
    Tensor *y = like(x);
    float *stats = is_recording() ? backend.temp((size_t)rows * 2 * sizeof(float)) : NULL;
    backend.layer_norm(mem(y), stats, mem(x), mem(l->weight), mem(l->bias), rows, cols, eps);
    return record(
        (Record){.backward = layer_norm_backward, .out = y, .in = {x, l->weight, l->bias}, .kept = stats});
}

// ---- attention --------------------------------------------------------------------------------------------

// P = softmax(S), S = scale q k^T, o = P v
//   dv += P^T do;  dP = do v^T;  dS = P (dP - rowsum(do o));  dq += scale dS k;  dk += scale dS^T q
// P is not stored. The backward computes it again, as exp(S - lse). lse is the logarithm of the sum of exp(S)
// over a row (log-sum-exp; Dao et al. 2022, "FlashAttention").
static void attention_backward(Record *r) {
    Tensor *q = r->in[0], *k = r->in[1], *v = r->in[2];
    backend.attention_backward(grad(q), grad(k), grad(v), grad(r->out), mem(q), mem(k), mem(v), mem(r->out),
                               r->kept, r->p.attention);
}

Tensor *attention(Tensor *q, Tensor *k, Tensor *v, int heads, bool causal) {
    int n = q->shape[0], c = tensor_cols(q), d = c / heads;
    if (c % heads || tensor_cols(k) != c || tensor_cols(v) != c || k->shape[0] != n)
        die("attention: %d heads of %d, %d and %d channels do not fit", heads, c, tensor_cols(k),
            tensor_cols(v));
    Attention p = {n, heads, tensor_rows(q) / n, tensor_rows(k) / n, d, 1 / sqrtf((float)d), causal};
    Tensor *o = like(q);
    float *lse =
        is_recording() ? backend.temp((size_t)n * (size_t)heads * (size_t)p.tq * sizeof(float)) : NULL;
    backend.attention(mem(o), lse, mem(q), mem(k), mem(v), p);
    return record(
        (Record){.backward = attention_backward, .out = o, .in = {q, k, v}, .kept = lse, .p.attention = p});
}

// ---- elementwise ------------------------------------------------------------------------------------------

// y = f(x);  dx += f'(x) dy
static void activation_backward(Record *r) {
    backend.activation_backward(grad(r->in[0]), grad(r->out), mem(r->in[0]), tensor_count(r->out),
                                r->p.activation);
}

Tensor *activation(Tensor *x, Activation f) {
    Tensor *y = like(x);
    backend.activation(mem(y), mem(x), tensor_count(x), f);
    return record((Record){.backward = activation_backward, .out = y, .in = {x}, .p.activation = f});
}

// For an x that nobody else reads, such as a convolution's result: this saves a tensor.
Tensor *activation_in_place(Tensor *x, Activation f) {
    if (is_recording()) return activation(x, f);
    backend.activation(mem(x), mem(x), tensor_count(x), f);
    return x;
}

Tensor *exponential(Tensor *x) { return activation(x, EXP); }
Tensor *logarithm(Tensor *x) { return activation(x, LOG); }
Tensor *square(Tensor *x) { return activation(x, SQUARE); }

// y = v gelu(g), x = [v | g];  dv += gelu(g) dy;  dg += v gelu'(g) dy
static void geglu_backward(Record *r) {
    bool begun;
    Mem dx = grad_to_store(r->in[0], &begun);
    backend.geglu_backward(dx, grad(r->out), mem(r->in[0]), tensor_rows(r->out), tensor_cols(r->out), begun);
}

Tensor *geglu(Tensor *x) {
    Tensor *y = like_with_cols(x, tensor_cols(x) / 2);
    backend.geglu(mem(y), mem(x), tensor_rows(y), tensor_cols(y));
    return record((Record){.backward = geglu_backward, .out = y, .in = {x}});
}

// y = a x + b z;  dx += a dy;  dz += b dy
static void combine_backward(Record *r) {
    Mem dy = grad(r->out);
    add_gradient(r->in[0], r->a, dy);
    add_gradient(r->in[1], r->b, dy);
}

static Tensor *combine_to(Type type, float a, Tensor *x, float b, Tensor *z) {
    if (z) same_shape("combine", x, z);
    Tensor *y = tensor_new_type(x->dims, x->shape, type);
    backend.combine(mem(y), a, mem(x), b, mem(z), 0, tensor_count(x));
    return record_as("combine",
                     (Record){.backward = combine_backward, .out = y, .in = {x, z}, .a = a, .b = b});
}

Tensor *combine(float a, Tensor *x, float b, Tensor *z) { return combine_to(x->type, a, x, b, z); }

Tensor *add(Tensor *a, Tensor *b) { return combine(1, a, 1, b); }
Tensor *sub(Tensor *a, Tensor *b) { return combine(1, a, -1, b); }
Tensor *scale(Tensor *x, float a) { return combine(a, x, 0, NULL); }

Tensor *in_f32(Tensor *x) { return x->type == F32 ? x : combine_to(F32, 1, x, 0, NULL); }

// y = x + a;  dx += dy
Tensor *add_scalar(Tensor *x, float a) {
    Tensor *y = tensor_new_type(x->dims, x->shape, x->type);
    backend.fill(mem(y), a, tensor_count(y));
    backend.combine(mem(y), 1, mem(x), 0, (Mem){0}, 1, tensor_count(y));
    return record((Record){.backward = combine_backward, .out = y, .in = {x}, .a = 1});
}

Tensor *clamp(Tensor *x, float range) { // no backward: not for training
    Tensor *y = like(x);
    backend.clamp(mem(y), mem(x), -range, range, tensor_count(x));
    return y;
}

// y[i] = a[i] x[i] + b[i] z[i], for picture i;  dx[i] += a[i] dy[i];  dz[i] += b[i] dy[i]
static void combine_each_backward(Record *r) {
    int n = r->out->shape[0], cols = (int)(tensor_count(r->out) / (size_t)n);
    Mem dy = grad(r->out);
    if (r->in[0]->wants_grad)
        backend.combine_rows(grad(r->in[0]), r->kept, dy, NULL, (Mem){0}, n, cols, true);
    if (r->in[1] && r->in[1]->wants_grad)
        backend.combine_rows(grad(r->in[1]), r->kept + n, dy, NULL, (Mem){0}, n, cols, true);
}

Tensor *combine_each(const float *a, Tensor *x, const float *b, Tensor *z) {
    if (z) same_shape("combine_each", x, z);
    int n = x->shape[0], cols = (int)(tensor_count(x) / (size_t)n);
    Tensor *y = like(x);
    float *kept = backend.temp(2 * (size_t)n * sizeof(float));
    backend.upload(kept, a, (size_t)n * sizeof(float));
    if (z) backend.upload(kept + n, b, (size_t)n * sizeof(float));
    backend.combine_rows(mem(y), kept, mem(x), z ? kept + n : NULL, mem(z), n, cols, false);
    return record((Record){.backward = combine_each_backward, .out = y, .in = {x, z}, .kept = kept});
}

// y = a b;  da += b dy;  db += a dy
static void multiply_backward(Record *r) {
    size_t n = tensor_count(r->out);
    Tensor *a = r->in[0], *b = r->in[1];
    if (a->wants_grad) backend.multiply(grad(a), mem(b), grad(r->out), n, true);
    if (b->wants_grad) backend.multiply(grad(b), mem(a), grad(r->out), n, true);
}

Tensor *multiply(Tensor *a, Tensor *b) {
    same_shape("multiply", a, b);
    Tensor *y = like(a);
    backend.multiply(mem(y), mem(a), mem(b), tensor_count(a), false);
    return record((Record){.backward = multiply_backward, .out = y, .in = {a, b}});
}

// y[n, pixel] = x[n, pixel] + v[n];  dx += dy;  dv[n] += sum over pixels of dy[n, pixel]
static void add_vector_backward(Record *r) {
    Tensor *x = r->in[0], *v = r->in[1];
    int groups = v->shape[0], cols = tensor_cols(v), rows = tensor_rows(x) / groups;
    add_gradient(x, 1, grad(r->out));
    if (v->wants_grad) backend.sum_rows(grad(v), grad(r->out), groups, rows, cols);
}

Tensor *add_vector(Tensor *x, Tensor *v) {
    if (tensor_rows(v) != x->shape[0] || tensor_cols(v) != tensor_cols(x))
        die("add_vector: %d x %d does not fit a batch of %d with %d channels", tensor_rows(v), tensor_cols(v),
            x->shape[0], tensor_cols(x));
    Tensor *y = like(x);
    int groups = v->shape[0];
    backend.add_vector(mem(y), mem(x), mem(v), groups, tensor_rows(x) / groups, tensor_cols(v));
    return record((Record){.backward = add_vector_backward, .out = y, .in = {x, v}});
}

// ---- sums -------------------------------------------------------------------------------------------------

// y[g, c] = sum over r of x[g, r, c];  dx[g, r, c] += dy[g, c]
static void sum_backward(Record *r) {
    Mem dx = grad(r->in[0]);
    backend.add_vector(dx, dx, grad(r->out), r->p.sum.groups, r->p.sum.rows, r->p.sum.cols);
}

// In fp32: the sum of many elements may be too large for fp16.
static Tensor *sum_middle(Tensor *x, int groups, int rows, int cols, int dims, const int *shape) {
    Tensor *y = tensor_new_type(dims, shape, F32);
    backend.fill(mem(y), 0, tensor_count(y));
    backend.sum_rows(mem(y), mem(x), groups, rows, cols);
    return record((Record){.backward = sum_backward, .out = y, .in = {x}, .p.sum = {groups, rows, cols}});
}

Tensor *sum(Tensor *x) {
    if (x->dims == 1) return sum_middle(x, 1, x->shape[0], 1, SHAPE(1));
    return sum_middle(x, tensor_rows(x), tensor_cols(x), 1, x->dims - 1, x->shape);
}

Tensor *mean(Tensor *x) {
    int count = (int)tensor_count(x);
    return scale(sum_middle(x, 1, count, 1, SHAPE(1)), 1 / (float)count);
}

Tensor *spatial_mean(Tensor *x) {
    int n = x->shape[0], c = tensor_cols(x), pixels = tensor_rows(x) / n;
    return scale(sum_middle(x, n, pixels, c, SHAPE(n, c)), 1 / (float)pixels);
}

// average: dx += dy / count, for each of the `count` pixels under the kernel;  max: dx of the largest += dy
static void pool_backward(Record *r) {
    backend.pool_backward(grad(r->in[0]), grad(r->out), mem(r->in[0]), r->pool_shape, r->p.pool);
}

Tensor *pool(Tensor *x, Pool kind, int size, int stride, int padding) {
    int n = x->shape[0], h = x->shape[1], w = x->shape[2], c = x->shape[3];
    int oh = (h + 2 * padding - size) / stride + 1, ow = (w + 2 * padding - size) / stride + 1;
    Conv p = {n, h, w, c, oh, ow, c, size, size, stride, padding, padding};
    Tensor *y = tensor_new(SHAPE(n, oh, ow, c));
    backend.pool(mem(y), mem(x), p, kind);
    return record((Record){.backward = pool_backward, .out = y, .in = {x}, .pool_shape = p, .p.pool = kind});
}

// ---- data movement ----------------------------------------------------------------------------------------

// m without its first `elements` elements.
static Mem offset(Mem m, size_t elements) {
    if (!m.at) return m;
    return (Mem){(char *)m.at + elements * (m.type == F32 ? 4 : 2), m.type};
}

// A part of y = a part of x; that part of dx += that part of dy
static void part_backward(Record *r) {
    Part p = r->p.part;
    Tensor *x = r->in[0];
    bool begun = true, whole = (size_t)p.rows * (size_t)p.cols == tensor_count(x);
    Mem dx = whole ? grad_to_store(x, &begun) : grad(x);
    backend.copy_columns(offset(dx, p.x_from), p.x_stride, offset(grad(r->out), p.y_from), p.y_stride, p.rows,
                         p.cols, begun);
}

static Tensor *copy_part(const char *operation, Tensor *y, Tensor *x, Part p) {
    backend.copy_columns(offset(mem(y), p.y_from), p.y_stride, offset(mem(x), p.x_from), p.x_stride, p.rows,
                         p.cols, false);
    return record_as(operation, (Record){.backward = part_backward, .out = y, .in = {x}, .p.part = p});
}

// y = [part | part | ...]
Tensor *concat_many(Tensor **parts, int count) {
    int cols = 0;
    for (int i = 0; i < count; i++) cols += tensor_cols(parts[i]);
    Tensor *y = like_with_cols(parts[0], cols);
    for (int i = 0, from = 0; i < count; from += tensor_cols(parts[i++])) {
        int rows = tensor_rows(parts[i]), width = tensor_cols(parts[i]);
        if (rows != tensor_rows(y)) die("concat: %d and %d rows differ", rows, tensor_rows(y));
        copy_part("concat", y, parts[i], (Part){0, (size_t)from, width, cols, rows, width});
    }
    return y;
}

Tensor *concat(Tensor *a, Tensor *b) { return concat_many((Tensor *[]){a, b}, 2); }

// y = columns of x
Tensor *slice(Tensor *x, int from, int count) {
    if (from < 0 || count < 1 || from + count > tensor_cols(x))
        die("slice: %d..%d of %d columns", from, from + count, tensor_cols(x));
    return copy_part("slice", like_with(x, x->dims - 1, count, x->type), x,
                     (Part){(size_t)from, 0, tensor_cols(x), count, tensor_rows(x), count});
}

// y = pictures of x. In memory they follow one another.
Tensor *take(Tensor *x, int from, int count) {
    if (from < 0 || count < 1 || from + count > x->shape[0])
        die("take: %d..%d of %d", from, from + count, x->shape[0]);
    int each = (int)(tensor_count(x) / (size_t)x->shape[0]);
    return copy_part("take", like_with(x, 0, count, x->type), x,
                     (Part){(size_t)from * (size_t)each, 0, each, each, count, each});
}

// y = a's pictures, then b's
Tensor *stack(Tensor *a, Tensor *b) {
    int each = (int)(tensor_count(a) / (size_t)a->shape[0]);
    Tensor *y = like_with(a, 0, a->shape[0] + b->shape[0], backend.storage);
    copy_part("stack", y, a, (Part){0, 0, each, each, a->shape[0], each});
    return copy_part("stack", y, b, (Part){0, tensor_count(a), each, each, b->shape[0], each});
}

// y[2i + a, 2j + b] = x[i, j];  dx[i, j] += the sum of its four dy
static void upsample_backward(Record *r) {
    Tensor *x = r->in[0];
    backend.upsample_backward(grad(x), grad(r->out), x->shape[0], x->shape[1], x->shape[2], x->shape[3]);
}

Tensor *upsample(Tensor *x) {
    Tensor *y = tensor_new(SHAPE(x->shape[0], 2 * x->shape[1], 2 * x->shape[2], x->shape[3]));
    backend.upsample(mem(y), mem(x), x->shape[0], x->shape[1], x->shape[2], x->shape[3]);
    return record((Record){.backward = upsample_backward, .out = y, .in = {x}});
}

// y = the upper left pixels of x. A picture's row is one row of w c elements here.
Tensor *crop(Tensor *x, int h, int w) {
    int n = x->shape[0], H = x->shape[1], W = x->shape[2], c = x->shape[3];
    if (h > H || w > W) die("crop: %d x %d pixels do not hold %d x %d", H, W, h, w);
    Tensor *y = tensor_new(SHAPE(n, h, w, c));
    for (int i = 0; i < n; i++)
        copy_part(
            "crop", y, x,
            (Part){(size_t)i * (size_t)(H * W * c), (size_t)i * (size_t)(h * w * c), W * c, w * c, h, w * c});
    return y;
}

static Tensor *upsampled(Tensor *x, int h, int w) {
    Tensor *y = upsample(x);
    return y->shape[1] == h && y->shape[2] == w ? y : crop(y, h, w);
}

Tensor *upsample_conv2d(Tensor *x, const Layer *l, int h, int w) {
    Conv p = same_size(x, l, h, w);
    if (is_recording() || takes_adapt(l, p.n * h * w)) return conv2d(upsampled(x, h, w), l, 1, 1);
    if (x->shape[1] != (h + 1) / 2 || x->shape[2] != (w + 1) / 2)
        die("%s: %d x %d pixels, upsampled, are not %d x %d", l->name, x->shape[1], x->shape[2], h, w);
    p.h = h, p.w = w;
    Tensor *y = tensor_new(SHAPE(p.n, h, w, p.oc));
    Scope s = scope_begin();
    Tensor *weight = weights_for(l, p.n * h * w);
    if (backend.conv2d_upsampled)
        backend.conv2d_upsampled(mem(y), mem(x), mem(weight), mem(l->bias), p);
    else
        conv(y, upsampled(x, h, w), weight, l->bias, NULL, p);
    scope_end(s, NULL);
    return y;
}

// dx += dy
static void reshape_backward(Record *r) { add_gradient(r->in[0], 1, grad(r->out)); }

// The data is x's own memory.
Tensor *reshape(Tensor *x, int dims, const int *shape) {
    Tensor *y = tensor_struct(dims, shape, x->type);
    if (tensor_count(y) != tensor_count(x))
        die("reshape: %zu elements are not %zu", tensor_count(x), tensor_count(y));
    y->data = x->data, y->place = x->place;
    return record((Record){.backward = reshape_backward, .out = y, .in = {x}});
}

// y[r] = table[ids[r]];  dtable[ids[r]] += dy[r]
static void embed_backward(Record *r) {
    backend.embed_backward(grad(r->in[0]).at, grad(r->out), r->ids, tensor_rows(r->out), tensor_cols(r->out));
}

Tensor *embed(Tensor *table, const int *ids, int dims, const int *shape) {
    int full[4], rows = 1;
    for (int i = 0; i < dims; i++) full[i] = shape[i], rows *= shape[i];
    full[dims] = tensor_cols(table);
    for (int i = 0; i < rows; i++)
        if (ids[i] < 0 || ids[i] >= table->shape[0])
            die("embed: id %d is not in 0..%d", ids[i], table->shape[0] - 1);
    Tensor *y = tensor_new(dims + 1, full);
    int32_t *at = upload(ids, rows);
    backend.embed(mem(y), mem(table), at, rows, full[dims]);
    return record((Record){.backward = embed_backward, .out = y, .in = {table}, .ids = at});
}

Tensor *sinusoid(const float *t, const float *f, int count, int dim, bool cos_first) {
    Tensor *y = tensor_new(SHAPE(count, dim));
    backend.sinusoid(mem(y), t, f, count, dim, cos_first);
    return y;
}
