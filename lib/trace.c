// trace.c: `--dump` and `sd verify`. See trace.h.
#include "trace.h"
#include "commands.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- collecting -----------------------------------------------------------------------------------------------

typedef struct {
    char *name;
    int64_t shape[4];
    int ndim;
    float *data; // pictures NCHW
} Traced;
static Traced *traced;
static int traced_count, step;

static void keep(char *name, int ndim, const int64_t *shape, float *data) {
    if ((traced_count & (traced_count - 1)) == 0)
        traced = xrealloc(traced, (size_t)(traced_count ? 2 * traced_count : 1) * sizeof *traced);
    Traced *t = &traced[traced_count++];
    *t = (Traced){.name = name, .ndim = ndim, .data = data};
    memcpy(t->shape, shape, (size_t)ndim * sizeof *shape);
}

// A step of the sampler begins with the UNet's first block.
static void sink(const char *name, const Tensor *t) {
    bool of_unet = !strncmp(name, "unet.", 5);
    if (!strcmp(name, "unet.time_embedding")) step++;
    float *x = tensor_read(t);
    int64_t shape[4];
    for (int i = 0; i < t->dims; i++) shape[i] = t->shape[i];
    if (t->dims == 4) {
        float *turned = nhwc_to_nchw(x, t->shape[0], t->shape[3], t->shape[1], t->shape[2]);
        free(x);
        x = turned;
        shape[1] = t->shape[3], shape[2] = t->shape[1], shape[3] = t->shape[2];
    }
    keep(of_unet ? format("step.%d.%s", step - 1, name) : xstrdup(name), t->dims, shape, x);
}

static void clear(void) {
    for (int i = 0; i < traced_count; i++) free(traced[i].name), free(traced[i].data);
    free(traced);
    traced = NULL, traced_count = step = 0;
}

void trace_begin(void) {
    clear();
    trace_sink = sink;
}

// One step: the UNet's names stand without "step.0.".
static const char *shown_name(const char *name) { return step == 1 && !strncmp(name, "step.0.", 7) ? name + 7 : name; }

static float *floats(const int *x, int n) {
    float *y = xmalloc((size_t)n * sizeof(float));
    for (int i = 0; i < n; i++) y[i] = (float)x[i];
    return y;
}

// The inputs, so that `sd verify` can run the same: tokens, noise, timesteps, guidance scale.
static void keep_inputs(const SampleOptions *o, const Model *m) {
    int tokens = m->text_config.max_position_embeddings, c = m->unet_config.in_channels, h = o->height / 8, w = o->width / 8;
    bool guided = o->cfg > 1 && !m->unet_config.time_cond_proj_dim;
    int *ids = xmalloc(2 * (size_t)tokens * sizeof(int));
    const char *texts[2] = {o->negative ? o->negative : "", o->prompt};
    for (int i = 0; i < 2; i++) {
        int used = tokenizer_encode(m->tokenizer, texts[i], ids + i * tokens, tokens, NULL);
        while (used < tokens) ids[i * tokens + used++] = tokenizer_pad(m->tokenizer);
    }
    keep(xstrdup("inputs.ids"), 2, (int64_t[]){guided ? 2 : 1, tokens}, floats(guided ? ids : ids + tokens, (guided ? 2 : 1) * tokens));
    free(ids);
    size_t n = (size_t)c * (size_t)h * (size_t)w;
    float *noise = xmalloc(n * sizeof(float));
    if (o->latents) memcpy(noise, o->latents, n * sizeof(float));
    else {
        Random r;
        if (o->philox) random_seed_philox(&r, o->seed);
        else random_seed(&r, o->seed);
        random_normal(&r, noise, n);
    }
    keep(xstrdup("inputs.latents"), 4, (int64_t[]){1, c, h, w}, noise);
    Scheduler s;
    scheduler_init(&s, scheduler_config(m->scheduler_json, o->scheduler));
    scheduler_set_timesteps(&s, o->steps);
    keep(xstrdup("inputs.timesteps"), 1, (int64_t[]){s.count}, floats(s.timesteps, s.count));
    scheduler_free(&s);
    float *cfg = xmalloc(sizeof(float));
    *cfg = o->cfg;
    keep(xstrdup("inputs.cfg"), 1, (int64_t[]){1}, cfg);
}

void trace_save(const char *path, const SampleOptions *o, const Model *m) {
    trace_sink = NULL;
    keep_inputs(o, m);
    StoreWriter *w = store_create(path);
    for (int i = 0; i < traced_count; i++) store_declare(w, shown_name(traced[i].name), F32, traced[i].ndim, traced[i].shape);
    for (int i = 0; i < traced_count; i++) {
        size_t n = 1;
        for (int j = 0; j < traced[i].ndim; j++) n *= (size_t)traced[i].shape[j];
        store_data_f32(w, traced[i].data, n);
    }
    store_commit(w);
    clear();
}
