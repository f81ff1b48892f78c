// training.c: what all training runs share (lib/io/train.h, lib/nn/tensor.c). A loss or gradient that is not
// finite ends the run and names the operation and the parameter where it began. An exploding loss ends it.
// The last checkpoint stays. Each run is a child process, because it ends with die().
#define _GNU_SOURCE
#include "sd.h"
#include "test/test.h"
#include "test/io/layer.h"

#include <sys/wait.h>
#include <unistd.h>

// The loss of a step, from the small layer's output.
typedef Tensor *Loss_of(Tensor *y, long step);

static void train(const char *dir, Loss_of *f, long steps) {
    Params p = {0};
    Layer *layer = small_layer(&p);
    const Params *models[] = {&p};
    OptimiserConfig adamw = {.rate = 1e-4f, .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f};
    Run run = {.dir = xstrdup(dir),
               .what = "test",
               .config = xstrdup("{}"),
               .optimiser = optimiser_new(adamw, 0, models, 1),
               .total = steps,
               .batch = 2,
               .checkpoint_every = 1e-9};
    run_begin(&run, 0, false);
    const float x[6] = {1, 2, 3, 4, 5, 6};
    while (run_continues(&run)) {
        tape_begin();
        Tensor *in = tensor_from(SHAPE(2, 3), x);
        Tensor *loss = f(run_block(through_linear, layer, (Tensor *[]){in}, 1), run.step + 1);
        backward(loss);
        run_step(&run, loss, NULL, "this batch");
        tape_end();
    }
    run_end(&run);
}

static Tensor *to_zero(Tensor *y, Loss f, float c) {
    const float zeros[6] = {0};
    return loss_between(y, tensor_from(SHAPE(2, 3), zeros), NULL, f, c);
}

static Tensor *healthy(Tensor *y, long step) {
    (void)step;
    return to_zero(y, LOSS_MSE, 0);
}
// The third step takes the logarithm of -y: the loss is NaN.
static Tensor *bad_forward(Tensor *y, long step) {
    return to_zero(step == 3 ? activation(combine(-1, y, 0, NULL), LOG) : y, LOSS_MSE, 0);
}
// The third step takes the logarithm of values around 1e-38: it is about -87, but its derivative overflows.
static Tensor *bad_backward(Tensor *y, long step) {
    return to_zero(step == 3 ? activation(combine(2.5e-39f, y, 0, NULL), LOG) : y, LOSS_MSE, 0);
}
// The loss itself overflows in the third step: the square of 1e20 y.
static Tensor *overflow(Tensor *y, long step) {
    return to_zero(step == 3 ? combine(1e20f, y, 0, NULL) : y, LOSS_MSE, 0);
}
// The third step subtracts the outputs, 6 and 15, from themselves and multiplies by 3e38. The loss is finite,
// and so is the gradient that arrives at the layer, but not the gradient of its weights.
static Tensor *bad_layer(Tensor *y, long step) {
    const float near[6] = {6, 6, 6, 15, 15, 15};
    if (step == 3) y = combine(3e38f, combine(1, y, -1, tensor_from(SHAPE(2, 3), near)), 0, NULL);
    return to_zero(y, step == 3 ? LOSS_L1 : LOSS_MSE, 0);
}
static Tensor *explosion(Tensor *y, long step) {
    return combine(step < 150 ? 1 : 1e4f, to_zero(y, LOSS_MSE, 0), 0, NULL);
}

static const char *folder;

// Trains in a child process. It must end with status 1, a message with all words of `said`, and the
// checkpoint of step `kept`.
static void dies(const char *what, Loss_of *f, long steps, bool by_block, const char *const *said,
                 const char *kept) {
    char *dir = format("%s/%s", folder, what), *err = format("%s.err", dir);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        if (!freopen(err, "w", stderr)) _exit(9);
        checkpointing = by_block;
        train(dir, f, steps);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    char *text = read_file(err, NULL), *path = format("%s/checkpoint.safetensors", dir);
    bool ok = WIFEXITED(status) && WEXITSTATUS(status) == 1;
    for (int i = 0; said[i]; i++) ok &= strstr(text, said[i]) != NULL;
    if (!ok) printf("status %d: %s", status, text);
    check(ok, what);
    Store *s = store_open(path);
    const char *step = store_metadata(s, "step");
    check(step && !strcmp(step, kept), format("%s: the checkpoint of step %s stays", what, kept));
    store_close(s);
    free(dir), free(err), free(text), free(path);
}

// What a killed writer of a file left is gone when the file is written again. What looks like it stays.
static void leftovers(void) {
    const char *const names[] = {"a.png.part", "a.part", "b.png.part", "a.png.1.part", "a.png.part.txt"};
    char *dir = format("%s/leftovers", folder);
    for (int i = 0; i < 5; i++) write_text_file(dir, names[i], "much longer than what comes");
    write_text_file(dir, "a.png", "new");
    for (int i = 0; i < 5; i++) {
        char *path = format("%s/%s", dir, names[i]);
        check(file_exists(path) == (i > 0), names[i]);
        free(path);
    }
    char *path = format("%s/a.png", dir), *text = read_file(path, NULL);
    check(!strcmp(text, "new"), "and nothing of it is left in the file");
    free(path), free(text), free(dir);
}

// The running mean of the loss and the generator's whole state are in the checkpoint.
static void checkpoint_of(const char *dir) {
    char *path = format("%s/checkpoint.safetensors", dir), *log_path = format("%s/log.jsonl", dir);
    Store *s = store_open(path);
    const char *random = store_metadata(s, "random");
    int words = 1;
    for (const char *c = random; *c; c++) words += *c == ' ';
    check(words == 6 + 624, "the generator's state is 624 words and what belongs to them");
    float mean = 0, got = strtof(store_metadata(s, "loss"), NULL), loss;
    char *log = read_file(log_path, NULL);
    long step;
    for (char *line = log; line && sscanf(line, "{\"step\": %ld, \"loss\": %g", &step, &loss) == 2;) {
        mean = step == 1 ? loss : 0.98f * mean + 0.02f * loss;
        line = strchr(line, '\n') + 1;
    }
    check(step == 200, "every step is in the log");
    check_close("the running mean of the loss", &got, &mean, 1, 1e-5);
    store_close(s);
    free(path), free(log_path), free(log);
}

int main(void) {
    backend_init(1);
    char name[] = "/tmp/sd-training-XXXXXX";
    folder = mkdtemp(name);
    if (!folder) return 1;
    for (int by_block = 0; by_block < 2; by_block++) {
        const char *with = by_block ? "checkpointed: " : "";
        dies(format("%sa loss that is not finite", with), bad_forward, 10, by_block,
             (const char *[]){"step 3", "the loss is not finite", "activation", "this batch", NULL}, "2");
        dies(format("%sa gradient that is not finite", with), bad_backward, 10, by_block,
             (const char *[]){"step 3", "the gradient is not finite", "backward of activation", NULL}, "2");
        dies(format("%sa gradient that is not finite in a layer", with), bad_layer, 10, by_block,
             (const char *[]){"step 3", "the gradient is not finite", "backward of gemm",
                              "with net.layer.weight", NULL},
             "2");
        dies(format("%sa loss that overflows", with), overflow, 10, by_block,
             (const char *[]){"step 3", "loss_between", NULL}, "2");
    }
    dies("an exploding loss", explosion, 1000, false, (const char *[]){"the loss explodes", "--lr", NULL},
         "149");
    pid_t child = fork();
    if (!child) {
        if (!freopen("/dev/null", "w", stderr)) _exit(9);
        train(format("%s/healthy", folder), healthy, 200);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    check(status == 0, "a healthy run ends well");
    checkpoint_of(format("%s/healthy", folder));
    leftovers();
    char *clean = format("rm -rf '%s'", folder);
    check(system(clean) == 0, "nothing stays behind");
    return test_report();
}
