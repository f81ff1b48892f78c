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
static Layer *wide, *back, *norm;

static Tensor *block(const void *layer, Tensor *const *in) {
    (void)layer;
    return conv2d_add(group_norm_silu(conv2d(in[0], wide, 1, 1), norm, 8, 1e-5f), back, in[0]);
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
    return test_report();
}
