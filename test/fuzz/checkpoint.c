// checkpoint.c: any bytes as a checkpoint, its digest made right, and as the log beside it.
#define _GNU_SOURCE // memmem
#include "fuzz.h"
#include "folder.h"
#include "lib/io/train.h"
#include "sd.h"

static void fuzz_one(unsigned char *data, size_t size) {
    static Params p;
    static Optimiser *optimiser;
    static int first_free;
    if (!optimiser) {
        backend_init(1);
        layer_linear(&p, 3, 3, true, "net.layer");
        for (int i = 0; i < p.count; i++)
            param_allocate(p.list[i].tensor, F32), param_trainable(p.list[i].tensor);
        const Params *models[] = {&p};
        optimiser = optimiser_new(
            (OptimiserConfig){.rate = 1e-2f, .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f}, 0, models, 1);
        first_free = dup(0);
        close(first_free);
    }
    for (int fd = first_free; fd < first_free + 20; fd++) close(fd); // of a run that ended by die()
    size_t length;
    unsigned char *log = fuzz_piece(&data, &size, &length);
    fuzz_write("log.jsonl", log, length);
    fuzz_write_store("unsealed", data, size);
    char *unsealed = fuzz_path("unsealed"), *newest = fuzz_path("checkpoint.safetensors");
    static const char mark[] = "\"digest\":\"";
    size_t bytes;
    const unsigned char *all = map_file(unsealed, &bytes), *at = memmem(all, bytes, mark, sizeof mark - 1);
    if (!at || bytes - (size_t)(at - all) < sizeof mark + 15) die("no place for a digest");
    Output *o = output_open(newest);
    output_write(o, all, bytes);
    output_seal(o, mark);
    output_commit(o);
    if (!store_sealed(newest)) abort();
    Run run = {.dir = fuzz_path(""),
               .what = "fuzz",
               .config = xstrdup("{\"a\": 1}"),
               .optimiser = optimiser,
               .total = 9,
               .batch = 2};
    run_begin(&run, 0, false);
    if (run.step < 0 || run.random.next < 0 || run.random.next > 624) abort();
    random_below(&run.random, 5);
    unlock_folder();
}
