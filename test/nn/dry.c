// dry.c: a dry run counts what the real run then takes, to the byte, and leaves the backend as it was.
#include "test/test.h"

#include "lib/nn/dry.h"
#include "lib/nn/nn.h"

#if defined(__SANITIZE_ADDRESS__) // cpu/memory.c then puts a gap behind each piece
enum { GAPS = true };
#else
enum { GAPS = false };
#endif

static Params params;
static Layer *wide, *squared, *back, *eight, *norm;

static Tensor *block(const void *layer, Tensor *const *in) {
    (void)layer;
    return conv2d_add(group_norm_silu(conv2d(in[0], wide, 1, 1), norm, 8, 1e-5f), back, in[0]);
}

// A residual of its own, and then its input: the sum may take the place of both, if nobody reads the input.
static Tensor *sums(const void *layer, Tensor *const *in) {
    (void)layer;
    Tensor *h = conv2d(in[0], wide, 1, 1), *same = conv2d(in[0], eight, 1, 0);
    same = conv2d_add(norm_silu_conv2d(h, norm, 8, 1e-5f, squared, NULL), back, same);
    return conv2d_add(norm_silu_conv2d(h, norm, 8, 1e-5f, squared, NULL), back, add(same, in[0]));
}

static void places(void) {
    enum { COUNT = 2 * 15 * 15 * 8 };
    float made[COUNT];
    for (int i = 0; i < COUNT; i++) made[i] = (float)(i * 37 % 101) / 50 - 1;
    float *y[4];
    size_t took[4];
    // Recorded; run_block; run_block_over; the same where f's result is its input.
    for (int way = 0; way < 4; way++) {
        Scope s = scope_begin();
        Tensor *x = tensor_from(SHAPE(2, 15, 15, 8), made), *out;
        size_t begin = x->place - 1;
        if (!way) tape_begin();
        out = way < 2 ? run_block(sums, NULL, &x, 1) : run_block_over(way == 2 ? sums : block, NULL, x);
        took[way] = backend.mark() - begin;
        y[way] = tensor_read(out);
        if (way < 2) {
            float *still = tensor_read(x);
            check(!memcmp(still, made, sizeof made), "run_block leaves its input as it was");
            free(still);
        } else
            check(out->place == begin + 1, "the result of run_block_over takes its input's place");
        if (!way) tape_end();
        scope_end(s, NULL);
    }
    check(!memcmp(y[0], y[1], sizeof made) && !memcmp(y[1], y[2], sizeof made),
          "recorded, in a block and over its input: the same bits");
    check(took[2] == took[3] && took[2] < took[1], "run_block_over leaves nothing but its result");
    Scope s = scope_begin();
    Tensor *x = tensor_from(SHAPE(2, 15, 15, 8), made);
    float *want = tensor_read(run_block(block, NULL, &x, 1));
    check(!memcmp(want, y[3], sizeof made), "a sum written over the block's input: the same bits");
    scope_end(s, NULL);
    for (int i = 0; i < 4; i++) free(y[i]);
    free(want);
}

// Two blocks, forward and backward.
static void step(int n) {
    float weight[8] = {0};
    Scope s = scope_begin();
    tape_begin();
    Tensor *x = tensor_new(SHAPE(n, 16, 16, 8)), *target = tensor_new(SHAPE(n, 16, 16, 8));
    backend.fill(mem(x), 0.5f, tensor_count(x)), backend.fill(mem(target), 1, tensor_count(target));
    for (int i = 0; i < 2; i++) x = run_block(block, NULL, (Tensor *[]){x}, 1);
    backward(loss_between(x, target, weight, LOSS_MSE, 0));
    tape_end();
    scope_end(s, NULL);
}

int main(void) {
    backend_init(1);
    wide = layer_conv(&params, 8, 32, 3, 3, true, "wide");
    squared = layer_conv(&params, 32, 32, 3, 3, true, "squared");
    eight = layer_conv(&params, 8, 8, 1, 1, true, "eight");
    norm = layer_norm_params(&params, 32, "norm");
    back = layer_conv(&params, 32, 8, 1, 1, true, "back");
    for (int i = 0; i < params.count; i++) {
        Tensor *t = params.list[i].tensor;
        param_allocate(t, F32);
        backend.fill(mem(t), 0.1f, tensor_count(t));
        param_trainable(t);
    }
    size_t before = backend.peak(); // persistent memory alone
    for (int n = 1; n <= 4; n *= 2) // each larger than what was before, because a peak never falls
        for (int checkpoints = 1; checkpoints >= 0; checkpoints--) {
            checkpointing = checkpoints;
            dry_begin(true);
            step(n);
            DryUse use = dry_end();
            step(n);
            size_t took = backend.peak() - before;
            printf("%d pictures%s: %zu bytes planned, %zu taken\n", n, checkpoints ? ", checkpointed" : "",
                   use.scratch, took);
            check(GAPS ? use.scratch < took : use.scratch == took, "the dry run counts what the step takes");
            check(use.persistent == 0, "a step has no persistent memory of its own");
            long convolutions = 0;
            for (int i = 0; i < use.call_count; i++)
                if (!strcmp(use.calls[i].kernel, "conv2d")) convolutions += use.calls[i].count;
            check(convolutions == (checkpoints ? 8 : 4), "it lists each kernel as often as it is called");
        }
    size_t peak = 0;
    for (int i = 0; i < 4; i++) {
        backend.free(backend.alloc(64 << 20));
        if (i == 0) peak = backend.peak();
    }
    check(backend.peak() == peak, "memory that was given back does not count");
    check(strcmp(backend.name(), "dry"), "the backend is the old one again");
    places();
    return test_report();
}
