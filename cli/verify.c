// verify.c: `sd sample --dump` writes a trace: every block's output, and what went in. `sd verify` runs the
// same inputs again and compares block by block; explain.c guesses what may be wrong in one that differs.
#include "verify.h"
#include "commands.h"
#include "options.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- collecting -------------------------------------------------------------------------------------------

static Traced *traced;
static int traced_count, unet_calls;

size_t traced_elements(const Traced *t) {
    size_t n = 1;
    for (int i = 0; i < t->ndim; i++) n *= (size_t)t->shape[i];
    return n;
}

static void keep(char *name, int ndim, const int64_t *shape, float *data) {
    if ((traced_count & (traced_count - 1)) == 0)
        traced = xrealloc(traced, (size_t)(traced_count ? 2 * traced_count : 1) * sizeof *traced);
    Traced *t = &traced[traced_count++];
    *t = (Traced){.name = name, .ndim = ndim, .data = data};
    memcpy(t->shape, shape, (size_t)ndim * sizeof *shape);
}

float *file_order(const Tensor *t, int64_t shape[4]) {
    float *x = tensor_read(t);
    for (int i = 0; i < t->dims; i++) shape[i] = t->shape[i];
    if (t->dims != 4) return x;
    float *nchw = nhwc_to_nchw(x, t->shape[0], t->shape[3], t->shape[1], t->shape[2]);
    free(x);
    shape[1] = t->shape[3], shape[2] = t->shape[1], shape[3] = t->shape[2];
    return nchw;
}

char *name_with_step(const char *name, int *calls) {
    *calls += !strcmp(name, "unet.time_embedding");
    return strncmp(name, "unet.", 5) ? xstrdup(name) : format("step.%d.%s", *calls - 1, name);
}

static void sink(const char *name, const Tensor *t) {
    int64_t shape[4];
    float *x = file_order(t, shape);
    keep(name_with_step(name, &unet_calls), t->dims, shape, x);
}

static void clear(void) {
    for (int i = 0; i < traced_count; i++) free(traced[i].name), free(traced[i].data);
    free(traced);
    traced = NULL, traced_count = unet_calls = 0;
}

void trace_begin(void) {
    clear();
    trace_sink = sink;
}

static const char *const sampler_names[] = {"pndm", "ddim", "lcm"};
const char *shown_name(const char *name, bool several) {
    return !several && !strncmp(name, "step.0.", 7) ? name + 7 : name;
}

static float *floats(const int *x, int n) {
    float *y = xmalloc((size_t)n * sizeof(float));
    for (int i = 0; i < n; i++) y[i] = (float)x[i];
    return y;
}

// Tokens, timesteps and guidance scale. The other inputs went through the sink: the first latents, LCM's
// fresh noise ("inputs.noise.0") and the picture of image-to-image.
static void keep_inputs(const SampleOptions *o, const Model *m) {
    int tokens = m->text_config.max_position_embeddings;
    bool guided = o->cfg > 1 && !m->unet_config.time_cond_proj_dim;
    int *ids = xmalloc(2 * (size_t)tokens * sizeof(int));
    const char *texts[2] = {o->negative ? o->negative : "", o->prompt};
    for (int i = 0; i < 2; i++) {
        int used = tokenizer_encode(m->tokenizer, texts[i], ids + i * tokens, tokens, NULL);
        while (used < tokens) ids[i * tokens + used++] = tokenizer_pad(m->tokenizer);
    }
    keep(xstrdup("inputs.ids"), 2, (int64_t[]){guided ? 2 : 1, tokens},
         floats(guided ? ids : ids + tokens, (guided ? 2 : 1) * tokens));
    free(ids);
    Scheduler s;
    scheduler_init(&s, scheduler_config(m->scheduler_json, o->scheduler));
    scheduler_set_timesteps(&s, o->steps);
    int last = unet_calls < s.count ? unet_calls : s.count; // image-to-image skips the first ones
    keep(xstrdup("inputs.timesteps"), 1, (int64_t[]){last}, floats(s.timesteps + s.count - last, last));
    scheduler_free(&s);
    float *cfg = xmalloc(sizeof(float));
    *cfg = o->cfg;
    keep(xstrdup("inputs.cfg"), 1, (int64_t[]){1}, cfg);
}

void trace_save(const char *path, const SampleOptions *o, const Model *m) {
    trace_sink = NULL;
    keep_inputs(o, m);
    StoreWriter *w = store_create(path);
    SchedulerKind kind = scheduler_config(m->scheduler_json, o->scheduler).kind;
    store_metadata_add(w, "sampler", sampler_names[kind]); // timesteps alone leave it open now and then
    for (int i = 0; i < traced_count; i++)
        store_declare(w, shown_name(traced[i].name, unet_calls > 1), F32, traced[i].ndim, traced[i].shape);
    for (int i = 0; i < traced_count; i++) store_data_f32(w, traced[i].data, traced_elements(&traced[i]));
    store_commit(w);
    clear();
}

// ---- the same inputs once more ----------------------------------------------------------------------------

// All elements, NaN and all.
static float *stored_floats(const Stored *t) {
    float *x = xmalloc(t->count * sizeof(float));
    store_read_f32(t, x);
    return x;
}

static const Stored *input(const Store *s, const char *name, const char *path) {
    const Stored *t = store_find(s, name);
    if (!t) die("%s: tensor %s is missing; it says what the trace was made from", path, name);
    return t;
}

// Which sampler takes these timesteps, the last of how many? The model's own is tried first if none is named.
static bool find_sampler(const Model *m, const char *named, Inputs *in) {
    for (int kind = -1; kind <= LCM; kind++) {
        if (named && (kind < 0 || strcmp(named, sampler_names[kind]))) continue;
        SchedulerConfig c = scheduler_config(m->scheduler_json, kind);
        int most = c.kind == LCM ? c.original_inference_steps : c.num_train_timesteps;
        for (int steps = in->steps > 1 ? in->steps - 1 : 1; steps <= most; steps++) {
            int highest = c.steps_offset + (steps - 1) * (c.num_train_timesteps / steps);
            if (highest >= c.num_train_timesteps) continue;
            Scheduler s;
            scheduler_init(&s, c);
            scheduler_set_timesteps(&s, steps);
            bool same = s.count >= in->steps;
            for (int i = 0; same && i < in->steps; i++)
                same = s.timesteps[s.count - in->steps + i] == (int)in->times[i];
            scheduler_free(&s);
            if (!same) continue;
            in->sampler = c, in->sampler_steps = steps;
            return true;
        }
    }
    return false;
}

static Inputs read_inputs(const Model *m, const Store *s, const char *path) {
    const Stored *ids = input(s, "inputs.ids", path), *z = input(s, "inputs.latents", path),
                 *times = input(s, "inputs.timesteps", path), *cfg = input(s, "inputs.cfg", path);
    Inputs in = {.tokens = m->text_config.max_position_embeddings, .c = m->unet_config.in_channels};
    if (ids->ndim != 2 || ids->shape[1] != in.tokens || ids->shape[0] < 1 || ids->shape[0] > 2)
        die("%s: inputs.ids must be (1 or 2, %d)", path, in.tokens);
    if (z->ndim != 4 || z->shape[0] != 1 || z->shape[1] != in.c || z->shape[2] < 1 || z->shape[3] < 1 ||
        z->count > 1u << 28)
        die("%s: inputs.latents must be (1, %d, h, w)", path, in.c);
    if (times->count < 1 || times->count > 100000 || cfg->count != 1)
        die("%s: inputs.timesteps must hold timesteps, and inputs.cfg one number", path);
    in.rows = (int)ids->shape[0], in.steps = (int)times->count;
    in.h = (int)z->shape[2], in.w = (int)z->shape[3];
    in.latents = store_floats(z, path), in.times = store_floats(times, path);
    float *one = store_floats(cfg, path), *wide = store_floats(ids, path);
    in.cfg = *one;
    in.ids = xmalloc(ids->count * sizeof(int));
    for (size_t i = 0; i < ids->count; i++) {
        if (!(wide[i] >= 0 && wide[i] < (float)m->text_config.vocab_size))
            die("%s: inputs.ids holds %g; a token is expected, 0 to %d", path, (double)wide[i],
                m->text_config.vocab_size - 1);
        in.ids[i] = (int)wide[i];
    }
    free(one), free(wide);
    for (int i = 0; i < in.steps; i++)
        if (!(in.times[i] >= 0 && in.times[i] < 1e6f))
            die("%s: inputs.timesteps holds %g", path, (double)in.times[i]);
    in.sampled = find_sampler(m, store_metadata(s, "sampler"), &in);
    if (in.steps > 1) { // several steps only make sense with the sampler that made them
        if (!in.sampled)
            die("%s: the %d timesteps from %g on are those of no sampler of this model", path, in.steps,
                (double)in.times[0]);
        bool fresh = in.sampler.kind == LCM;
        in.noise = fresh ? xcalloc((size_t)in.steps, sizeof *in.noise) : NULL;
        for (int i = 0; fresh && i < in.steps - 1; i++) {
            char *name = format("inputs.noise.%d", i);
            const Stored *t = input(s, name, path);
            if (t->count != z->count) die("%s: %s must be as large as inputs.latents", path, name);
            in.noise[i] = store_floats(t, path);
            free(name);
        }
    }
    const Stored *end = store_find(s, "latents"), *image = store_find(s, "inputs.image");
    if (end && end->count == z->count) in.end = stored_floats(end);
    in.decodes = store_find(s, "vae.decoder.conv_out") && (in.sampled || in.end);
    if (image && image->ndim == 4 && image->shape[0] == 1 && image->shape[1] == 3 && image->shape[2] >= 8 &&
        image->shape[3] >= 8) {
        in.image_h = (int)image->shape[2], in.image_w = (int)image->shape[3];
        in.image = store_floats(image, path);
    }
    return in;
}

static void free_inputs(Inputs *in) {
    for (int i = 0; in->noise && i < in->steps; i++) free(in->noise[i]);
    free(in->ids), free(in->latents), free(in->times), free(in->noise), free(in->end), free(in->image);
}

static Tensor *picture_from(const float *nchw, int c, int h, int w) {
    float *nhwc = nchw_to_nhwc(nchw, 1, c, h, w);
    Tensor *t = tensor_from(SHAPE(1, h, w, c), nhwc);
    free(nhwc);
    return t;
}

void run_again(const Model *m, const Inputs *in) {
    Scope whole = scope_begin();
    Tensor *context = text_encode(m->text_encoder, in->ids, in->rows);
    Scope loop = scope_begin();
    Tensor *z = picture_from(in->latents, in->c, in->h, in->w);
    float guidance[2] = {in->cfg - 1, in->cfg - 1};
    bool embeds = m->unet_config.time_cond_proj_dim > 0;
    Scheduler s = {0};
    if (in->sampled) {
        scheduler_init(&s, in->sampler);
        scheduler_set_timesteps(&s, in->sampler_steps);
        scheduler_skip(&s, s.count - in->steps);
    }
    for (int i = 0; i < in->steps; i++) {
        float t[2] = {in->times[i], in->times[i]};
        Tensor *eps = unet(m->unet, in->rows == 2 ? stack(z, z) : z, t, context, embeds ? guidance : NULL);
        if (in->rows == 2) eps = combine(1 - in->cfg, take(eps, 0, 1), in->cfg, take(eps, 1, 1));
        bool fresh = in->sampled && scheduler_wants_noise(&s);
        Tensor *noise = fresh ? picture_from(in->noise[i], in->c, in->h, in->w) : NULL;
        z = scope_end(loop, in->sampled ? scheduler_step(&s, z, eps, noise) : z);
    }
    scheduler_free(&s);
    if (in->end) z = picture_from(in->end, in->c, in->h, in->w);
    if (in->decodes) vae_decode(m->vae, scale(z, 1 / m->vae_config.scaling_factor));
    if (in->image) vae_encode(m->vae, picture_from(in->image, 3, in->image_h, in->image_w));
    scope_end(whole, NULL);
}

// ---- sd verify --------------------------------------------------------------------------------------------

double distance(const float *x, const float *y, size_t n) {
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)x[i] - y[i]);
        if (!(d <= worst)) worst = isnan(d) ? INFINITY : d;
    }
    return worst;
}

double largest_of(const float *x, size_t n) {
    double largest = 0;
    for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs((double)x[i]));
    return largest;
}

int command_verify(int argc, char **argv) {
    const char *model = DEFAULT_MODEL;
    double tolerance = 1e-4;
    bool json = false;
    Option options[] = {{0, "tolerance", NUMBER(&tolerance, 0, 1e6),
                         "largest difference allowed, as a fraction of the block's largest value"},
                        {MODEL_OPTION(&model)},
                        {JSON_OPTION(&json)},
                        {0}};
    char **words = options_parse(
        argc, argv, options, "sd verify TRACE.safetensors [options]",
        "Runs this implementation on the inputs that a trace of another one names, and compares block by "
        "block. test/python/trace.py makes a trace of any diffusers pipeline; sd sample --dump makes one of "
        "this program. Exit status 1 where a block differs.",
        "sd sample -p \"a dog runs\" --dump trace.safetensors\n  sd verify trace.safetensors");
    const char *path = one_word(words, "sd verify takes one trace");
    start_backend();
    Store *s = store_open(path);
    Model *m = model_load(model, NULL, NEED_TEXT | NEED_UNET | NEED_VAE);
    Inputs in = read_inputs(m, s, path);
    trace_begin();
    run_again(m, &in);
    trace_sink = NULL;
    int count = traced_count, compared = 0, differ = 0;
    const char *first = NULL;
    char *why = NULL;
    if (json) printf("{\"blocks\": [");
    for (int i = 0; i < count; i++) {
        const Stored *theirs = store_find(s, shown_name(traced[i].name, in.steps > 1));
        if (!theirs || !strncmp(theirs->name, "inputs.", 7)) continue;
        size_t n = traced_elements(&traced[i]);
        bool same_size = theirs->count == n;
        float *x = same_size ? stored_floats(theirs) : NULL;
        double largest = largest_of(traced[i].data, n);
        double worst = same_size ? distance(x, traced[i].data, n) : INFINITY;
        double relative = largest > 0 ? worst / largest : worst;
        bool ok = worst <= tolerance * largest;
        if (json) {
            printf("%s{\"name\": ", compared ? ", " : ""), print_json_string(stdout, theirs->name);
            printf(", \"max_abs\": %.6g, \"max_rel\": %.6g, \"ok\": %s}", isfinite(worst) ? worst : 1e300,
                   isfinite(relative) ? relative : 1e300, ok ? "true" : "false");
        } else
            printf("%-6s %-64s %10.3g %10.3g\n", ok ? "ok" : "DIFFER", theirs->name, worst, relative);
        if (!ok && !first) {
            first = theirs->name;
            why = same_size ? explain(m, &in, first, x, &traced[i], i ? &traced[i - 1] : NULL)
                            : xstrdup("another number of elements");
            if (!json) printf("       ^ the first block that differs%s%s\n", why ? ": " : "", why ? why : "");
        }
        free(x);
        compared++, differ += !ok;
    }
    if (!compared) die("%s: none of its blocks has a name of this model", path);
    if (json) {
        printf("], \"ok\": %s", differ ? "false" : "true");
        if (first) printf(", \"first\": "), print_json_string(stdout, first);
        if (why) printf(", \"why\": "), print_json_string(stdout, why);
        puts("}");
    } else if (differ)
        printf("%d of %d blocks differ, %s first\n", differ, compared, first);
    else
        printf("%d blocks agree within %g of their largest value\n", compared, tolerance);
    free(why);
    clear();
    free_inputs(&in);
    store_close(s);
    model_free(m);
    return differ ? 1 : 0;
}
