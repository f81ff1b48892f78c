// repeated.c: a UNet's pass that a backend repeats as a whole (kernels.h: replay) gives the bits of one that
// is made call by call, whatever has changed since: values, weights, adapters, sizes, batch, places in
// memory. On a backend without replay both are one.
#define _POSIX_C_SOURCE 200809L
#include "sd.h"
#include "lib/io/architectures.h"
#include "weights/toy/made.h"
#include "test/test.h"

#include <sys/wait.h>
#include <unistd.h>

enum { TOKENS = 5, WIDTH = 32 };
static bool (*replay)(uint64_t key);
static int replayed;
static bool counted_replay(uint64_t key) {
    bool did = replay(key);
    replayed += did;
    return did;
}

// What unet() may not ask for, once it ran: an upload, an allocation, a wait.
static int asked;
static void asked_upload(void *to, const void *host, size_t bytes) {
    (void)to, (void)host, (void)bytes, asked++;
}
static void asked_download(void *host, const void *from, size_t bytes) {
    (void)host, (void)from, (void)bytes, asked++;
}
static void *asked_alloc(size_t bytes) { return (void)bytes, asked++, NULL; }
static void asked_sync(void) { asked++; }

static Tensor *numbers(int dims, const int *shape, uint64_t seed) {
    Random r;
    random_seed(&r, seed);
    return random_tensor(&r, dims, shape);
}
typedef struct {
    int n, h, w;
    uint64_t seed; // of latents, timesteps and caption
} Input;
// The prediction, as many times as asked for: each must have the same bits.
static float *predict(const char *what, const UNet *u, Input in, int times, bool one_caption) {
    float *first = NULL;
    bool same = true;
    size_t bytes = (size_t)(in.n * in.h * in.w * 4) * sizeof(float);
    replayed = 0;
    Scope s = scope_begin();
    Tensor *context = numbers(SHAPE(in.n, TOKENS, WIDTH), in.seed + 1);
    if (one_caption) constant_begin(context);
    for (int i = 0; i < times; i++) {
        Scope pass = scope_begin();
        float t[2] = {(float)(in.seed * 7), (float)(in.seed * 3)};
        Tensor *x = numbers(SHAPE(in.n, in.h, in.w, 4), in.seed);
        const Backend usual = backend;
        size_t peak = backend.peak();
        if (i) backend.upload = asked_upload, backend.download = asked_download;
        if (i) backend.alloc = asked_alloc, backend.sync = asked_sync;
        Tensor *eps = unet(u, x, t, context, (float[]){7, 8});
        backend = usual;
        // The second has all copies of weights from the start, so its peak may be higher.
        asked += i > 1 && backend.peak() != peak;
        float *out = tensor_read(eps);
        same &= !first || !memcmp(first, out, bytes);
        free(first), first = out;
        scope_end(pass, NULL);
    }
    if (one_caption) constant_end();
    scope_end(s, NULL);
    check(same, what);
    check(!asked, "nothing is uploaded, allocated or waited for within unet()");
    return first;
}
// Repeated, against call by call. How many passes of the three are replays, where there are any.
static void compare(const char *what, const UNet *u, Input in, bool one_caption, int replays) {
    float *got = predict(what, u, in, 3, one_caption);
    if (replay && replayed != replays) printf("%s: %d replays, not %d\n", what, replayed, replays);
    check(!replay || replayed == replays, what);
    backend.replay = NULL;
    float *want = predict(what, u, in, 1, false);
    backend.replay = replay ? counted_replay : NULL;
    check(!memcmp(got, want, (size_t)(in.n * in.h * in.w * 4) * sizeof(float)), what);
    free(got), free(want);
}

// What a run may not do while it is caught: the process ends with a message, not with a wrong picture.
static void test_refused(const char *what, void (*f)(void)) {
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        close(2);
        backend.begin(1), backend.end();
        backend.begin(1);
        f();
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 1, what);
}
static void uploads(void) {
    float x = 0;
    void *at = backend.temp(256);
    backend.upload(at, &x, sizeof x);
}
static void allocates(void) { backend.alloc(1000); }
static void waits(void) { backend.sync(); }
static void downloads(void) {
    float x;
    backend.download(&x, backend.temp(256), sizeof x);
}

int main(void) {
    backend_init(0);
    replay = backend.replay;
    if (replay) backend.replay = counted_replay;
    Json *j = json_parse(architecture("tiny")->unet, strlen(architecture("tiny")->unet), "tiny");
    UNetConfig c = unet_config(j);
    json_free(j);
    c.levels = 2, c.layers_per_block = 1, c.cross_attention_dim = WIDTH, c.norm_num_groups = 8,
    c.time_cond_proj_dim = 16;
    for (int i = 0; i < 2; i++)
        c.block_out_channels[i] = 32 + 32 * i, c.heads[i] = 2, c.cross_attention[i] = i == 0;
    Params p = {0};
    UNet *u = unet_new(c, &p);
    made_params(&p, "", MADE_SOFT, F32);
    uint64_t seed = 5;
    const Input small = {1, 8, 8, seed}, tall = {1, 16, 8, seed}, other = {1, 8, 8, 9},
                wide = {1, 8, 16, seed}, two = {2, 8, 8, seed};

    compare("the first pass is made, the second caught, the third replayed", u, small, false, 1);
    // Whether a weight has a copy in the type of activations, which is then stale, is the backend's affair.
    int where_copied = backend.storage == F32 ? 3 : 1;
    Tensor *weight = params_find(&p, "unet.mid_block.resnets.0.conv1.weight");
    float *first = predict("before", u, small, 1, false), *values = tensor_read(weight);
    for (size_t i = 0; i < tensor_count(weight); i++) values[i] *= 1.5f;
    tensor_write(weight, values);
    compare("other values of a weight", u, small, false, where_copied);
    float *changed = predict("after", u, small, 1, false);
    check(memcmp(first, changed, 8 * 8 * 4 * sizeof(float)), "they matter");
    backend.free(weight->data), weight->data = NULL;
    param_allocate(weight, F16), tensor_write(weight, values);
    compare("a weight in another place, in another type", u, small, false, 1);

    if (backend.storage != F32) return test_report(); // the rest does not depend on it, and takes long there

    compare("other latents, timesteps and caption in the same places", u, other, false, 3);
    compare("another size", u, wide, false, 1), compare("a batch of two", u, two, false, 1);
    compare("the first again", u, small, false, 3);
    Random r;
    random_seed(&r, 1);
    Lora *l = lora_new(&p, "lcm", 2, 2, &r);
    made_params(&l->params, "lora.", MADE_SOFT, F32);
    lora_attach(l, 1), compare("adapters", u, small, false, 1), lora_detach(l);
    lora_attach(l, 0.5f), compare("adapters at another scale", u, small, false, 1), lora_detach(l);
    compare("without them", u, small, false, 3);

    Scope s = scope_begin();
    tensor_new(SHAPE(1000));
    compare("other places for all that a pass makes", u, small, false, 1);
    scope_end(s, NULL);
    compare("the caption's products once", u, tall, true, 1), compare("anew", u, tall, true, 1);

    Params p2 = {0}, views = {0};
    UNet *u2 = unet_new(c, &p2);
    made_params(&p2, "", MADE_HARD, F32);
    for (int i = 0; i < 2; i++) { // the second view may lie where the first lay
        UNet *view = unet_view(c, i ? &p2 : &p, &views);
        compare("a view", view, small, false, 1);
        unet_view_free(view, &views);
        views = (Params){0};
    }
    if (replay) {
        test_refused("an upload within a run", uploads), test_refused("a download within a run", downloads);
        test_refused("an allocation within a run", allocates), test_refused("a wait within a run", waits);
    }
    free(values), free(first), free(changed);
    lora_free(l), params_free(&p), params_free(&p2), free(u), free(u2);
    return test_report();
}
