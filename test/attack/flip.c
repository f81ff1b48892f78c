// flip.c: flip N: turns one bit at a time, N in all, of checkpoints, caches, statistics, adapters and models,
// and opens them, each in a process of its own. A checkpoint must be refused. What is read from a cache and
// from statistics must be refused, made again or the same. Adapters and models have no digest: no crash, no
// hang.
#define _GNU_SOURCE // popen, random
#include "lib/io/pairs.h"
#include "sd.h"
#include "test/io/files.h"

#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { REFUSED = 1, SAME, OTHER }; // how a child ends; die() ends it with 1

static char *place; // of the file that is opened
static Tokenizer *tokenizer;

static int open_checkpoint(void) { return store_sealed(place) ? OTHER : REFUSED; }

static float *encode(void *context, const Image *const *images, int n) {
    (void)context;
    float *out = xmalloc((size_t)n * 32 * sizeof *out);
    for (int i = 0; i < 32 * n; i++) out[i] = (float)images[i / 32]->rgb[i % 32] / 64;
    return out;
}

static uint64_t cache_hash(void) {
    PairsModel m = {.tokenizer = tokenizer,
                    .tokens = 32,
                    .size = 16,
                    .side = 2,
                    .channels = 4,
                    .scale = 1,
                    .encoder = 5,
                    .encode = encode};
    char *dir = format("%s", place);
    *strrchr(dir, '/') = 0;
    Pairs *p = pairs_open(in_folder("data"), dir, &m);
    uint64_t h = p->key;
    for (int i = 0; i < p->count; i++) h = fnv1a(h, p->list[i].moments, 32 * sizeof(float));
    pairs_close(p);
    return h;
}
static uint64_t right_cache;
static int open_cache(void) { return cache_hash() == right_cache ? SAME : OTHER; }

static uint64_t statistics_hash(void) {
    FidSet s = fid_read_statistics(place);
    size_t n = (size_t)s.dim;
    return fnv1a(fnv1a(FNV_START, s.mu, n * sizeof(double)), s.sigma, n * n * sizeof(double));
}
static uint64_t right_statistics;
static int open_statistics(void) { return statistics_hash() == right_statistics ? SAME : OTHER; }

static Model *tiny;
static int open_adapters(void) { return lora_free(lora_load(&tiny->params, place)), SAME; }
static int open_model(void) { return model_free(model_load(in_folder("model"), NULL, NEED_ALL)), SAME; }

// Opens it with N bits turned, one after the other. must: OTHER is a failure.
static void flip(const char *what, const char *file, int (*open_it)(void), long n, bool must) {
    size_t bytes;
    place = format("%s", in_folder(file));
    char *data = read_file(place, &bytes);
    long ends[OTHER + 1] = {0}, bad = 0;
    for (long i = 0; i < n; i++) {
        size_t at = (size_t)random() % bytes;
        if (i % 2) at = (size_t)random() % (bytes < 4000 ? bytes : 4000); // half of them at the head
        char bit = (char)(1 << random() % 8);
        data[at] ^= bit;
        write_bytes(file, data, bytes);
        fflush(stdout);
        pid_t child = fork();
        if (!child) {
            verbosity = -1;
            if (!freopen("/dev/null", "w", stderr)) _exit(9);
            alarm(60);
            _exit(open_it());
        }
        int status = 0;
        waitpid(child, &status, 0);
        int end = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
        if (end >= REFUSED && end <= OTHER) ends[end]++;
        if (end < REFUSED || end > OTHER || (must && end == OTHER)) {
            if (!bad++) printf("%s: byte %zu, bit %d: status %x\n", what, at, bit & 255, status);
        }
        data[at] ^= bit;
    }
    write_bytes(file, data, bytes);
    printf("%s: %ld bits turned, %ld refused, %ld read the same or made again, %ld otherwise\n", what, n,
           ends[REFUSED], ends[SAME], ends[OTHER]);
    check(!bad, what);
    free(data);
}

static void copy(const char *from, const char *to) { copy_file(from, in_folder(to)); }

int main(int argc, char **argv) {
    long n = argc > 1 ? atol(argv[1]) : 1000;
    folder_begin();
    backend_init(1);
    verbosity = -1;
    srandom(1);
    // A checkpoint as training writes it: sealed tensors.
    StoreWriter *w = store_create(in_folder("checkpoint"));
    store_seal(w);
    float x[3000];
    for (int i = 0; i < 3000; i++) x[i] = (float)i;
    store_metadata_add(w, "config", "{}");
    store_declare(w, "weight.x", F32, 1, (int64_t[]){3000});
    store_data(w, x, sizeof x);
    store_commit(w);
    check(store_sealed(in_folder("checkpoint")), "whole");
    flip("checkpoints", "checkpoint", open_checkpoint, 4 * n / 10, true);

    tokenizer = tokenizer_open("weights/tiny/tokenizer");
    make_directories(in_folder("data")), make_directories(in_folder("cache"));
    for (int i = 0; i < 3; i++) {
        Image *image = image_new(16, 16);
        noise(image->rgb, 16 * 16 * 3, (uint32_t)i);
        char *name = format("data/%d.png", i);
        image_save_png(in_folder(name), image, NULL);
    }
    write_text("data/captions.txt", "image,caption\n0.png,a dog\n1.png,a cat\n2.png,a girl\n");
    place = format("%s", in_folder("cache/x"));
    right_cache = cache_hash();
    char *found = NULL;
    FILE *list = popen(format("ls %s", in_folder("cache")), "r");
    char line[300] = "";
    if (list && fgets(line, sizeof line, list))
        line[strcspn(line, "\n")] = 0, found = format("cache/%s", line);
    if (!found || pclose(list)) die("no cache was written");
    flip("caches", found, open_cache, 2 * n / 10, true);

    double mu[8], sigma[64];
    for (int i = 0; i < 64; i++) sigma[i] = i % 9 ? 0.1 : 1.5, mu[i % 8] = i;
    fid_write_statistics(&(FidSet){.dim = 8, .made_by = 1, .mu = mu, .sigma = sigma}, in_folder("x.npz"));
    place = format("%s", in_folder("x.npz"));
    right_statistics = statistics_hash();
    flip("statistics", "x.npz", open_statistics, n / 10, true);

    tiny = model_load("weights/tiny", NULL, NEED_TEXT | NEED_UNET);
    copy("weights/tiny-lora.safetensors", "lora.safetensors");
    flip("adapters", "lora.safetensors", open_adapters, 2 * n / 10, false);
    if (system(format("cp -r weights/tiny %s", in_folder("model")))) die("no copy of the model");
    static const char *const parts[] = {"model/unet/diffusion_pytorch_model.safetensors",
                                        "model/unet/config.json", "model/tokenizer/vocab.json",
                                        "model/vae/diffusion_pytorch_model.safetensors"};
    for (int i = 0; i < 4; i++) flip(parts[i], parts[i], open_model, n / 40, false);
    folder_end();
    return test_report();
}
