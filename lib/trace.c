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
static int traced_count, unet_calls;

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
    if (!strcmp(name, "unet.time_embedding")) unet_calls++;
    float *x = tensor_read(t);
    int64_t shape[4];
    for (int i = 0; i < t->dims; i++) shape[i] = t->shape[i];
    if (t->dims == 4) {
        float *turned = nhwc_to_nchw(x, t->shape[0], t->shape[3], t->shape[1], t->shape[2]);
        free(x);
        x = turned;
        shape[1] = t->shape[3], shape[2] = t->shape[1], shape[3] = t->shape[2];
    }
    keep(of_unet ? format("step.%d.%s", unet_calls - 1, name) : xstrdup(name), t->dims, shape, x);
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

// One step: the UNet's names stand without "step.0.".
static const char *shown_name(const char *name) {
    return unet_calls == 1 && !strncmp(name, "step.0.", 7) ? name + 7 : name;
}

static float *floats(const int *x, int n) {
    float *y = xmalloc((size_t)n * sizeof(float));
    for (int i = 0; i < n; i++) y[i] = (float)x[i];
    return y;
}

// The inputs, so that `sd verify` can run the same: tokens, noise, timesteps, guidance scale.
static void keep_inputs(const SampleOptions *o, const Model *m) {
    int tokens = m->text_config.max_position_embeddings, c = m->unet_config.in_channels, h = o->height / 8,
        w = o->width / 8;
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
    size_t n = (size_t)c * (size_t)h * (size_t)w;
    float *noise = xmalloc(n * sizeof(float));
    if (o->latents)
        memcpy(noise, o->latents, n * sizeof(float));
    else {
        Random r;
        if (o->philox)
            random_seed_philox(&r, o->seed);
        else
            random_seed(&r, o->seed);
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
    for (int i = 0; i < traced_count; i++)
        store_declare(w, shown_name(traced[i].name), F32, traced[i].ndim, traced[i].shape);
    for (int i = 0; i < traced_count; i++) {
        size_t n = 1;
        for (int j = 0; j < traced[i].ndim; j++) n *= (size_t)traced[i].shape[j];
        store_data_f32(w, traced[i].data, n);
    }
    store_commit(w);
    clear();
}

// ---- sd verify --------------------------------------------------------------------------------------------------

// Where two blocks differ, the numbers often tell the mistake. x is theirs, y ours, (rows, channels of `plane`
// numbers each) or plain rows of features.
static int compare_floats(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

typedef struct {
    double mean, spread;
} Summary;

static Summary summary(const float *x, const float *y, size_t first, size_t stride, size_t count,
                       bool ratio) {
    double sum = 0, square = 0;
    for (size_t i = 0; i < count; i++) {
        double d = ratio ? (double)x[first + i * stride] / y[first + i * stride]
                         : (double)x[first + i * stride] - y[first + i * stride];
        sum += d, square += d * d;
    }
    double mean = sum / (double)count;
    return (Summary){mean, sqrt(fmax(0, square / (double)count - mean * mean))};
}

// Does x differ from y by one number a channel? channels at `stride`, each `count` numbers `step` apart.
static bool offset_per_channel(const float *x, const float *y, size_t channels, size_t stride, size_t count,
                               size_t step, double largest) {
    double inside = 0, between = 0;
    for (size_t c = 0; c < channels; c++) {
        Summary s = summary(x, y, c * stride, step, count, false);
        inside = fmax(inside, s.spread), between = fmax(between, fabs(s.mean));
    }
    return count > 1 && inside < 1e-4 * largest && between > 20 * inside;
}

static const char *usual_mistake(const float *x, const float *y, const Traced *t) {
    size_t n = 1;
    for (int i = 0; i < t->ndim; i++) n *= (size_t)t->shape[i];
    double largest = 0, dot = 0, xx = 0, yy = 0;
    for (size_t i = 0; i < n; i++)
        largest = fmax(largest, fabs((double)y[i])), dot += (double)x[i] * y[i], xx += (double)x[i] * x[i],
        yy += (double)y[i] * y[i];
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return "the other side has a NaN or an infinity";

    float *a = xmalloc(n * sizeof(float)), *b = xmalloc(n * sizeof(float));
    memcpy(a, x, n * sizeof(float)), memcpy(b, y, n * sizeof(float));
    qsort(a, n, sizeof(float), compare_floats), qsort(b, n, sizeof(float), compare_floats);
    double sorted = 0;
    for (size_t i = 0; i < n; i++) sorted = fmax(sorted, fabs((double)a[i] - b[i]));
    free(a), free(b);
    if (sorted < 1e-4 * largest) return "the same numbers in another order: axes transposed or permuted";

    size_t channels, plane;
    bool picture = t->ndim == 4;
    if (picture)
        channels = (size_t)t->shape[1], plane = (size_t)t->shape[2] * (size_t)t->shape[3];
    else
        channels = (size_t)t->shape[t->ndim - 1], plane = n / channels;
    if (offset_per_channel(x, y, channels, picture ? plane : 1, plane, picture ? 1 : channels, largest))
        return "one number a channel apart: a bias is missing, or is there twice";
    double scale = dot / yy, left = xx - dot * dot / yy;
    if (left < 1e-8 * xx && fabs(scale - 1) > 1e-3) return "a constant factor apart: a scale is missing";
    if (left < 1e-5 * xx && fabs(scale - 1) > 1e-6)
        return "almost a constant factor apart: a norm with another epsilon?";
    return NULL;
}

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

// Runs the model on the trace's inputs, collecting our blocks. Only what the trace has blocks of is run.
static void run_again(const Model *m, const Store *s, const char *path) {
    const Stored *ids_in = input(s, "inputs.ids", path), *z_in = input(s, "inputs.latents", path),
                 *t_in = input(s, "inputs.timesteps", path), *cfg_in = input(s, "inputs.cfg", path);
    int tokens = m->text_config.max_position_embeddings, c = m->unet_config.in_channels;
    if (ids_in->ndim != 2 || ids_in->shape[1] != tokens || ids_in->shape[0] < 1 || ids_in->shape[0] > 2)
        die("%s: inputs.ids must be (1 or 2, %d)", path, tokens);
    if (z_in->ndim != 4 || z_in->shape[0] != 1 || z_in->shape[1] != c || z_in->shape[2] < 1 ||
        z_in->shape[3] < 1 || z_in->count > 1u << 28)
        die("%s: inputs.latents must be (1, %d, h, w)", path, c);
    if (t_in->count < 1 || cfg_in->count != 1)
        die("%s: inputs.timesteps and inputs.cfg must hold numbers, the latter one", path);
    int rows = (int)ids_in->shape[0], h = (int)z_in->shape[2], w = (int)z_in->shape[3],
        steps = (int)t_in->count;
    float *idf = stored_floats(ids_in), *zf = stored_floats(z_in), *times = stored_floats(t_in),
          *cfg = stored_floats(cfg_in);
    int *ids = xmalloc((size_t)(rows * tokens) * sizeof(int));
    for (int i = 0; i < rows * tokens; i++) ids[i] = (int)idf[i];
    Scope whole = scope_begin();
    Tensor *context = text_encode(m->text_encoder, ids, rows);
    float *nhwc = nchw_to_nhwc(zf, 1, c, h, w), guidance = *cfg - 1;
    Tensor *z = tensor_from(SHAPE(1, h, w, c), nhwc);
    Scheduler sampler;
    scheduler_init(&sampler, scheduler_config(m->scheduler_json, -1));
    if (steps > 1) { // several steps only make sense with the sampler that made them
        scheduler_set_timesteps(&sampler, sampler.config.kind == PNDM ? steps - 1 : steps);
        for (int i = 0; i < steps; i++)
            if (sampler.count != steps || sampler.timesteps[i] != (int)times[i])
                die("%s: timestep %d is %g; the model's scheduler would take %d", path, i, (double)times[i],
                    sampler.timesteps[i]);
        if (scheduler_wants_noise(&sampler))
            die("%s: several steps of LCM draw fresh noise; trace one step", path);
    }
    bool embeds = m->unet_config.time_cond_proj_dim > 0;
    for (int i = 0; i < steps; i++) {
        Scope step_scope = scope_begin();
        float t[2] = {times[i], times[i]};
        Tensor *eps = unet(m->unet, rows == 2 ? stack(z, z) : z, t, context, embeds ? &guidance : NULL);
        if (rows == 2) eps = combine(1 - *cfg, take(eps, 0, 1), *cfg, take(eps, 1, 1));
        if (steps > 1) scheduler_step(&sampler, z, eps, NULL);
        scope_end(step_scope, NULL);
    }
    const Stored *latents =
        store_find(s, "latents"); // what went into the VAE on the other side, if it is there
    bool decodes = store_find(s, "vae.decoder.conv_out") != NULL;
    if (decodes && latents && latents->count == z_in->count) {
        float *end = stored_floats(latents), *turned = nchw_to_nhwc(end, 1, c, h, w);
        tensor_write(z, turned);
        free(end), free(turned);
    }
    if (decodes) vae_decode(m->vae, combine(1 / m->vae_config.scaling_factor, z, 0, NULL));
    const Stored *image = store_find(s, "inputs.image");
    if (image && image->ndim == 4 && image->shape[0] == 1 && image->shape[1] == 3) {
        float *x = stored_floats(image),
              *turned = nchw_to_nhwc(x, 1, 3, (int)image->shape[2], (int)image->shape[3]);
        vae_encode(m->vae, tensor_from(SHAPE(1, (int)image->shape[2], (int)image->shape[3], 3), turned));
        free(x), free(turned);
    }
    scope_end(whole, NULL);
    scheduler_free(&sampler);
    free(idf), free(zf), free(times), free(cfg), free(ids), free(nhwc);
}

static const char verify_help[] = "usage: sd verify TRACE.safetensors [options]\n\n"
                                  "Runs this implementation on the inputs that a trace of another one names, "
                                  "and compares block by block. test/trace.py\n"
                                  "makes a trace of any diffusers pipeline; sd sample --dump makes one of "
                                  "this program. Exit status 1 where a block\n"
                                  "differs.\n\n"
                                  "      --tolerance R   largest difference allowed, as a share of the "
                                  "block's largest value (default 1e-4)\n"
                                  "  -m, --model PATH   --json   -t, --threads N   -q   -v (every block, not "
                                  "only those that differ)   -h\n";

int command_verify(int argc, char **argv) {
    enum { TOLERANCE = 256 };
    static const struct option options[] = {{"tolerance", required_argument, 0, TOLERANCE}, COMMON_LONG, {0}};
    Common common = common_defaults;
    double tolerance = 1e-4;
    int option;
    while ((option = getopt_long(argc, argv, COMMON_SHORT, options, NULL)) != -1)
        if (!common_option(&common, option, verify_help))
            tolerance = option_number("--tolerance", optarg, 0, 1e6);
    if (optind != argc - 1) die_usage("sd verify takes one trace");
    const char *path = argv[optind];
    common_start(&common);
    Store *s = store_open(path);
    Model *m = model_load(common.model, NULL, NEED_TEXT | NEED_UNET | NEED_VAE);
    trace_begin();
    run_again(m, s, path);
    trace_sink = NULL;
    const char *first = NULL;
    int compared = 0, differ = 0;
    if (common.json) printf("{\"blocks\": [");
    for (int i = 0; i < traced_count; i++) {
        const Stored *theirs = store_find(s, shown_name(traced[i].name));
        if (!theirs) continue;
        size_t n = 1;
        for (int j = 0; j < traced[i].ndim; j++) n *= (size_t)traced[i].shape[j];
        const char *name = theirs->name, *why = NULL;
        double worst = INFINITY, largest = 0;
        if (theirs->count == n) {
            float *x = stored_floats(theirs);
            worst = 0;
            for (size_t j = 0; j < n; j++) {
                double d = fabs((double)x[j] - traced[i].data[j]);
                if (!(d <= worst)) worst = isnan(d) ? INFINITY : d;
                largest = fmax(largest, fabs((double)traced[i].data[j]));
            }
            if (!(worst <= tolerance * largest) && !first) why = usual_mistake(x, traced[i].data, &traced[i]);
            free(x);
        } else {
            why = "another number of elements";
        }
        double relative = largest > 0 ? worst / largest : worst;
        bool ok = worst <= tolerance * largest;
        if (common.json)
            printf("%s{\"name\": \"%s\", \"max_abs\": %.6g, \"max_rel\": %.6g, \"ok\": %s}",
                   compared ? ", " : "", name, isfinite(worst) ? worst : 1e300,
                   isfinite(relative) ? relative : 1e300, ok ? "true" : "false");
        else
            printf("%-6s %-64s %10.3g %10.3g\n", ok ? "ok" : "DIFFER", name, worst, relative);
        if (!ok && !first) {
            first = name;
            if (!common.json)
                printf("       ^ the first block that differs%s%s\n", why ? ": " : "", why ? why : "");
        }
        compared++, differ += !ok;
    }
    if (!compared) die("%s: none of its blocks has a name of this model", path);
    if (common.json)
        printf("], \"ok\": %s}\n", differ ? "false" : "true");
    else if (differ)
        printf("%d of %d blocks differ, %s first\n", differ, compared, first);
    else
        printf("%d blocks agree within %g of their largest value\n", compared, tolerance);
    clear();
    store_close(s);
    model_free(m);
    return differ ? 1 : 0;
}
