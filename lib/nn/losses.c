// losses.c: what training minimises, each backward above its forward as in ops.c.
#include "tape.h"

// loss = mean over pictures of weight * mean of f(prediction - target)
//   dprediction += dloss weight f'(prediction - target) / count, with count the elements of all pictures
static void loss_backward(Record *r) {
    Tensor *x = r->in[0];
    int n = x->shape[0], cols = (int)(tensor_count(x) / (size_t)n);
    backend.loss_backward(grad(x), grad(r->out).at, mem(x), mem(r->in[1]), r->kept, n, cols, r->p.loss.f,
                          r->p.loss.c);
}

Tensor *loss_between(Tensor *prediction, Tensor *target, const float *weight, Loss f, float c) {
    same_shape("loss", prediction, target);
    int n = prediction->shape[0], cols = (int)(tensor_count(prediction) / (size_t)n);
    Tensor *y = tensor_new_type(SHAPE(1), F32);
    float *w = weight ? upload(weight, n) : NULL;
    backend.loss(y->data, mem(prediction), mem(target), w, n, cols, f, c);
    if (target->wants_grad && is_recording())
        die("loss: the target is a constant; it may not want a gradient");
    return record((Record){
        .backward = loss_backward, .out = y, .in = {prediction, target}, .kept = w, .p.loss = {f, c}});
}

// y = x - log sum exp x;  dx += dy - exp(y) sum(dy)
static void log_softmax_backward(Record *r) {
    backend.log_softmax_backward(grad(r->in[0]), grad(r->out), mem(r->out), tensor_rows(r->out),
                                 tensor_cols(r->out));
}

Tensor *log_softmax(Tensor *x) {
    Tensor *y = like(x);
    backend.log_softmax(mem(y), mem(x), tensor_rows(x), tensor_cols(x));
    return record((Record){.backward = log_softmax_backward, .out = y, .in = {x}});
}

// loss = - mean over rows of x[r, ids[r]];  dx[r, ids[r]] -= dloss / rows
static void loss_pick_backward(Record *r) {
    Tensor *x = r->in[0];
    backend.pick_backward(grad(x), grad(r->out).at, r->ids, tensor_rows(x), tensor_cols(x));
}

Tensor *loss_pick(Tensor *x, const int *ids) {
    int rows = tensor_rows(x);
    for (int i = 0; i < rows; i++)
        if (ids[i] >= tensor_cols(x)) die("loss_pick: id %d is not below %d", ids[i], tensor_cols(x));
    Tensor *y = tensor_new_type(SHAPE(1), F32);
    int32_t *at = upload(ids, rows);
    backend.pick(y->data, mem(x), at, rows, tensor_cols(x));
    return record((Record){.backward = loss_pick_backward, .out = y, .in = {x}, .ids = at});
}
