// power.c: power DIR STEPS: a training run of a small layer with a checkpoint after each step, and its
// result, DIR/out. test/attack/power.py records what it writes and lets the power fail between any two
// writes.
#include "sd.h"
#include "lib/io/train.h"
#include "test/io/layer.h"

#include <stdlib.h>

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    program_begin();
    backend_init(1);
    Params p = {0};
    Layer *layer = small_layer(&p);
    const Params *models[] = {&p};
    OptimiserConfig adamw = {.rate = 1e-2f, .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f};
    Run run = {.dir = format("%s/run", argv[1]),
               .what = "power",
               .config = xstrdup("{}"),
               .optimiser = optimiser_new(adamw, 0, models, 1),
               .total = atol(argv[2]),
               .batch = 2,
               .checkpoint_every = 1e-9};
    run_begin(&run, 0, false);
    while (run_continues(&run)) {
        float x[6], zeros[6] = {0};
        random_normal(&run.random, x, 6);
        tape_begin();
        Tensor *in = tensor_from(SHAPE(2, 3), x), *y = run_block(through_linear, layer, (Tensor *[]){in}, 1);
        Tensor *loss = loss_between(y, tensor_from(SHAPE(2, 3), zeros), NULL, LOSS_MSE, 0);
        backward(loss);
        run_step(&run, loss, NULL, "this batch");
        tape_end();
    }
    run_end(&run);
    char *path = format("%s/out", argv[1]);
    Output *o = output_open(path);
    for (int i = 0; i < p.count; i++) {
        float *w = tensor_read(p.list[i].tensor);
        output_write(o, w, tensor_count(p.list[i].tensor) * sizeof *w);
        free(w);
    }
    output_commit(o);
    return 0;
}
