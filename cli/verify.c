// verify.c: `--dump` and `sd verify`. See verify.h.
#include "verify.h"
#include "commands.h"

#include <math.h>
#include <setjmp.h>
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

static size_t traced_numbers(const Traced *t) {
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

// A tensor as the file has it: fp32, pictures NCHW. Its shape is filled in.
static float *file_order(const Tensor *t, int64_t shape[4]) {
    float *x = tensor_read(t);
    for (int i = 0; i < t->dims; i++) shape[i] = t->shape[i];
    if (t->dims != 4) return x;
    float *turned = nhwc_to_nchw(x, t->shape[0], t->shape[3], t->shape[1], t->shape[2]);
    free(x);
    shape[1] = t->shape[3], shape[2] = t->shape[1], shape[3] = t->shape[2];
    return turned;
}

// A step of the sampler begins with the UNet's first block.
static char *name_with_step(const char *name) {
    if (!strcmp(name, "unet.time_embedding")) unet_calls++;
    return strncmp(name, "unet.", 5) ? xstrdup(name) : format("step.%d.%s", unet_calls - 1, name);
}

static void sink(const char *name, const Tensor *t) {
    int64_t shape[4];
    float *x = file_order(t, shape);
    keep(name_with_step(name), t->dims, shape, x);
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

// One step: the UNet's names stand without "step.0.".
static const char *shown_name(const char *name, bool several) {
    return !several && !strncmp(name, "step.0.", 7) ? name + 7 : name;
}

static float *floats(const int *x, int n) {
    float *y = xmalloc((size_t)n * sizeof(float));
    for (int i = 0; i < n; i++) y[i] = (float)x[i];
    return y;
}

// The inputs, so that `sd verify` can run the same: tokens, timesteps, guidance scale. The first latents, LCM's fresh
// noise and the picture of image-to-image went through the sink as "inputs.latents", "inputs.noise.0", "inputs.image".
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
    for (int i = 0; i < traced_count; i++) store_data_f32(w, traced[i].data, traced_numbers(&traced[i]));
    store_commit(w);
    clear();
}

// ---- the same inputs once more ----------------------------------------------------------------------------------

typedef struct {
    int rows, tokens, *ids; // rows: 2 with guidance (unconditional, conditional), else 1
    int c, h, w, steps;
    float *latents, *times, cfg; // latents NCHW
    float **noise;               // (steps - 1) of LCM's, NCHW; NULL where there is none
    float *end;                  // the latents that went into the VAE on the other side, or NULL
    float *image;                // NCHW, or NULL
    int image_h, image_w;
    bool decodes;
    bool sampled; // the sampler is known
    SchedulerConfig sampler;
    int sampler_steps; // of which the last `steps` evaluations are run
} Inputs;

// Their numbers, NaN and all.
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

// Which sampler takes these timesteps, in how many steps? The model's own is asked first, unless the trace names one.
// Image-to-image runs only the last ones of its schedule.
static bool find_sampler(const Model *m, const char *named, Inputs *in) {
    for (int kind = -1; kind <= LCM; kind++) {
        if (named && (kind < 0 || strcmp(named, sampler_names[kind]))) continue;
        SchedulerConfig c = scheduler_config(m->scheduler_json, kind);
        int most = c.kind == LCM ? c.original_inference_steps : c.num_train_timesteps;
        for (int steps = in->steps > 1 ? in->steps - 1 : 1; steps <= most; steps++) {
            Scheduler s;
            if (c.steps_offset + (steps - 1) * (c.num_train_timesteps / steps) >= c.num_train_timesteps)
                continue;
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
        die("%s: inputs.timesteps and inputs.cfg must hold numbers, the latter one", path);
    in.rows = (int)ids->shape[0], in.h = (int)z->shape[2], in.w = (int)z->shape[3],
    in.steps = (int)times->count;
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
    float *turned = nchw_to_nhwc(nchw, 1, c, h, w);
    Tensor *t = tensor_from(SHAPE(1, h, w, c), turned);
    free(turned);
    return t;
}

// Text encoder, UNet and sampler, VAE on the trace's inputs; the sink sees our blocks.
static void run_again(const Model *m, const Inputs *in) {
    Scope whole = scope_begin();
    Tensor *context = text_encode(m->text_encoder, in->ids, in->rows);
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
        Scope step = scope_begin();
        float t[2] = {in->times[i], in->times[i]};
        Tensor *eps = unet(m->unet, in->rows == 2 ? stack(z, z) : z, t, context, embeds ? guidance : NULL);
        if (in->rows == 2) eps = combine(1 - in->cfg, take(eps, 0, 1), in->cfg, take(eps, 1, 1));
        bool fresh = in->sampled && scheduler_wants_noise(&s);
        Tensor *noise = fresh ? picture_from(in->noise[i], in->c, in->h, in->w) : NULL;
        if (in->sampled) scheduler_step(&s, z, eps, noise);
        scope_end(step, NULL);
    }
    scheduler_free(&s);
    if (in->end) z = picture_from(in->end, in->c, in->h, in->w);
    if (in->decodes) vae_decode(m->vae, combine(1 / m->vae_config.scaling_factor, z, 0, NULL));
    if (in->image) vae_encode(m->vae, picture_from(in->image, 3, in->image_h, in->image_w));
    scope_end(whole, NULL);
}

// ---- which mistake it may be ------------------------------------------------------------------------------------

// Largest difference; NaN counts as infinite.
static double distance(const float *x, const float *y, size_t n) {
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)x[i] - y[i]);
        if (!(d <= worst)) worst = isnan(d) ? INFINITY : d;
    }
    return worst;
}

static double largest_of(const float *x, size_t n) {
    double largest = 0;
    for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs((double)x[i]));
    return largest;
}

static int compare_floats(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static bool permuted(const float *x, const float *y, size_t n, double largest) {
    float *a = xmalloc(n * sizeof(float)), *b = xmalloc(n * sizeof(float));
    memcpy(a, x, n * sizeof(float)), memcpy(b, y, n * sizeof(float));
    qsort(a, n, sizeof(float), compare_floats), qsort(b, n, sizeof(float), compare_floats);
    bool same = distance(a, b, n) < fmin(1e-4 * largest, 1e-2 * distance(x, y, n));
    free(a), free(b);
    return same;
}

// Do x and y differ by one number a channel? Channels lie `stride` apart, a channel's `count` numbers `step` apart.
static bool offset_per_channel(const float *x, const float *y, size_t channels, size_t stride, size_t count,
                               size_t step, double largest) {
    double inside = 0, between = 0;
    for (size_t c = 0; c < channels; c++) {
        double sum = 0, square = 0;
        for (size_t i = 0; i < count; i++) {
            double d = (double)x[c * stride + i * step] - y[c * stride + i * step];
            sum += d, square += d * d;
        }
        double mean = sum / (double)count;
        inside = fmax(inside, sqrt(fmax(0, square / (double)count - mean * mean)));
        between = fmax(between, fabs(mean));
    }
    return count > 1 && inside < 1e-4 * largest && between > 20 * inside;
}

// What the numbers alone say; x is theirs, y ours.
static const char *usual_mistake(const float *x, const float *y, const Traced *t) {
    size_t n = traced_numbers(t);
    double largest = largest_of(y, n), dot = 0, xx = 0, yy = 0;
    for (size_t i = 0; i < n; i++)
        dot += (double)x[i] * y[i], xx += (double)x[i] * x[i], yy += (double)y[i] * y[i];
    bool picture = t->ndim == 4;
    size_t channels = (size_t)t->shape[picture ? 1 : t->ndim - 1],
           plane = picture ? (size_t)t->shape[2] * (size_t)t->shape[3] : n / channels;
    if (offset_per_channel(x, y, channels, picture ? plane : 1, plane, picture ? 1 : channels, largest))
        return "one number a channel apart: a bias is missing, or is there twice";
    double scale = dot / yy, left = xx - dot * dot / yy;
    if (left < 1e-8 * xx && fabs(scale - 1) > 1e-3) return "a constant factor apart: a scale is missing";
    if (distance(x, y, n) < 5e-3 * largest)
        return "a small difference everywhere: a wrong epsilon of a norm, or another form of an activation?";
    return NULL;
}

// A stronger proof: make the mistake here too, and see whether we agree then. The run ends at the block in question.
static struct {
    const char *block;
    bool several; // steps
    const float *theirs;
    size_t count;
    double difference;
    jmp_buf reached;
} hunt;

static void hunt_sink(const char *name, const Tensor *t) {
    char *full = name_with_step(name);
    bool here = !strcmp(shown_name(full, hunt.several), hunt.block);
    free(full);
    if (!here) return;
    int64_t shape[4];
    float *x = file_order(t, shape);
    hunt.difference = tensor_count(t) == hunt.count ? distance(hunt.theirs, x, hunt.count) : INFINITY;
    free(x);
    longjmp(hunt.reached, 1);
}

static double difference_with(const Model *m, const Inputs *in) {
    Scope s = scope_begin();
    unet_calls = 0, hunt.difference = INFINITY;
    trace_sink = hunt_sink;
    if (!setjmp(hunt.reached)) run_again(m, in);
    trace_sink = NULL;
    scope_end(s, NULL);
    return hunt.difference;
}

// The model with other configurations, on the same parameters.
static double difference_with_configs(const Model *m, const Inputs *in, TextConfig text, UNetConfig u) {
    Model other = *m;
    other.params = (Params){0}, other.text_config = text, other.unet_config = u;
    other.text_encoder = text_encoder_new(text, &other.params);
    other.unet = unet_new(u, &other.params);
    for (int i = 0; i < other.params.count; i++) {
        const Tensor *own = params_find(&m->params, other.params.list[i].name);
        other.params.list[i].tensor->data = own->data, other.params.list[i].tensor->type = own->type;
    }
    double d = difference_with(&other, in);
    for (int i = 0; i < other.params.count; i++) other.params.list[i].tensor->data = NULL; // not its own
    params_free(&other.params);
    text_encoder_free(other.text_encoder), free(other.unet);
    return d;
}

// The best explanation so far: what is tried must take away nine tenths of the difference to count.
typedef struct {
    double difference, deadline;
    char *why;
} Explanation;

static void consider(Explanation *e, double difference, char *why) {
    if (difference < e->difference / 10) {
        free(e->why);
        e->why = why, e->difference = difference;
    } else
        free(why);
}

// Biases left out, scales left out, square matrices transposed, kernels with height and width exchanged.
static void try_parameter(Explanation *e, const Model *m, const Inputs *in, const Parameter *p) {
    Tensor *t = p->tensor;
    size_t n = tensor_count(t);
    float *was = param_read(t), *wrong = xmalloc(n * sizeof(float));
    size_t length = strlen(p->name);
    bool bias = length > 5 && !strcmp(p->name + length - 5, ".bias"), square = false;
    const char *what = bias           ? "the bias"
                       : t->dims == 1 ? "the scale"
                       : t->dims == 2 ? "transposed:"
                                      : "height and width exchanged:";
    if (t->dims == 1)
        for (size_t i = 0; i < n; i++) wrong[i] = bias ? 0 : 1;
    else {
        size_t side = (size_t)t->shape[1], maps = t->dims == 2 ? 1 : n / (side * (size_t)t->shape[2]);
        square = t->dims == 2 ? t->shape[0] == t->shape[1] : side == (size_t)t->shape[2] && side > 1;
        for (size_t k = 0; square && k < maps; k++)
            for (size_t i = 0; i < side; i++)
                for (size_t j = 0; j < side; j++)
                    wrong[(k * side + i) * side + j] = was[(k * side + j) * side + i];
    }
    if (t->dims == 1 || square) {
        param_write(t, wrong);
        consider(e, difference_with(m, in),
                 t->dims == 1 ? format("%s %s is missing: without it we agree", what, p->name)
                              : format("%s %s: so we agree", what, p->name));
        param_write(t, was);
    }
    free(was), free(wrong);
}

static bool belongs_to(const char *parameter, const char *block) {
    size_t n = strlen(block);
    if (!strncmp(parameter, block, n) && parameter[n] == '.') return true;
    const char *end = block + n;
    if (n > 8 && !strcmp(end - 8, "conv_out") && !strncmp(parameter, block, n - 8) &&
        !strncmp(parameter + n - 8, "conv_norm_out.", 14))
        return true;
    return !strcmp(block, "text_encoder.text_model.encoder.layers.0") && strstr(parameter, "embeddings.");
}

// The level of the UNet that a block belongs to; blocks outside of any count as the first's.
static int level_of(const char *module, const UNetConfig *u) {
    int level = 0;
    if (!strncmp(module, "unet.mid_block", 14)) level = u->levels - 1;
    if (sscanf(module, "unet.up_blocks.%d", &level) == 1) level = u->levels - 1 - level;
    sscanf(module, "unet.down_blocks.%d", &level);
    return level >= 0 && level < u->levels ? level : 0;
}

static void try_configurations(Explanation *e, const Model *m, const Inputs *in, const char *module,
                               bool of_text) {
    static const float epsilons[] = {1e-6f, 1e-5f, 1e-12f, 1e-3f, 1e-4f, 1e-8f, 1e-2f};
    TextConfig t = m->text_config;
    UNetConfig u = m->unet_config;
    for (int i = 0; i < 7 && seconds() < e->deadline; i++) {
        TextConfig t2 = t;
        UNetConfig u2 = u, u3 = u;
        t2.layer_norm_eps = u2.norm_eps = u3.transformer_norm_eps = epsilons[i];
        if (of_text)
            consider(e, difference_with_configs(m, in, t2, u),
                     format("epsilon %g in the layer norms: so we agree", (double)epsilons[i]));
        else {
            consider(e, difference_with_configs(m, in, t, u2),
                     format("epsilon %g in the ResNets' norms: so we agree", (double)epsilons[i]));
            consider(
                e, difference_with_configs(m, in, t, u3),
                format("epsilon %g in the norm before the transformer: so we agree", (double)epsilons[i]));
        }
    }
    if (of_text) {
        t.hidden_act = t.hidden_act == GELU ? QUICK_GELU : GELU;
        consider(
            e, difference_with_configs(m, in, t, u),
            format("%s: so we agree", t.hidden_act == GELU ? "gelu for quick_gelu" : "quick_gelu for gelu"));
        t.hidden_act = m->text_config.hidden_act;
    } else {
        u.flip_sin_to_cos = !u.flip_sin_to_cos;
        consider(e, difference_with_configs(m, in, t, u),
                 format("sine and cosine exchanged in the timestep's embedding: so we agree"));
        u.flip_sin_to_cos = !u.flip_sin_to_cos, u.freq_shift = 1 - u.freq_shift;
        consider(e, difference_with_configs(m, in, t, u),
                 format("freq_shift %g: so we agree", (double)u.freq_shift));
        u.freq_shift = m->unet_config.freq_shift;
    }
    // Heads: of the block's own level, since whatever comes before it agrees.
    int level = level_of(module, &u), channels = of_text ? t.hidden_size : u.block_out_channels[level],
        now = of_text ? t.num_attention_heads : u.heads[level];
    for (int heads = 1; heads <= channels / 2 && seconds() < e->deadline; heads++) {
        if (channels % heads || heads == now) continue;
        t.num_attention_heads = of_text ? heads : t.num_attention_heads;
        u.heads[level] = of_text ? u.heads[level] : heads;
        consider(e, difference_with_configs(m, in, t, u),
                 format("%d heads instead of %d: so we agree", heads, now));
    }
}

// Several parameters of a block changed at once, as the mistake would amount to.
typedef struct {
    enum { SCALED, ROWS_ROLLED, INPUTS_ROLLED } how;
    float factor;
    int by;               // rows or input channels
    const char *parts[3]; // of the names of those that change
} Change;

static float *changed(const float *w, const Tensor *t, Change c) { // w in file order: (out, in, kh, kw)
    size_t n = tensor_count(t), row = t->dims > 1 ? n / (size_t)t->shape[0] : n,
           input = t->dims == 4 ? (size_t)t->shape[1] * (size_t)t->shape[2] : 1,
           by = (size_t)c.by * (c.how == INPUTS_ROLLED ? input
                                : t->dims > 1          ? row
                                                       : 1);
    float *x = xmalloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = c.how == SCALED        ? c.factor * w[i]
               : c.how == ROWS_ROLLED ? w[(i + by) % n]
                                      : w[i - i % row + (i + by) % row];
    return x;
}

static void try_change(Explanation *e, const Model *m, const Inputs *in, const char *module, Change c,
                       const char *why) {
    enum { MOST = 8 };
    Tensor *tensors[MOST];
    float *was[MOST];
    int count = 0;
    for (int i = 0; i < m->params.count && count < MOST; i++) {
        const char *name = m->params.list[i].name;
        bool named = false;
        for (int k = 0; k < 3 && c.parts[k]; k++) named = named || strstr(name, c.parts[k]);
        if (!named || !belongs_to(name, module)) continue;
        tensors[count] = m->params.list[i].tensor;
        was[count] = param_read(tensors[count]);
        float *x = changed(was[count], tensors[count], c);
        param_write(tensors[count++], x);
        free(x);
    }
    if (count) consider(e, difference_with(m, in), format("%s: so we agree", why));
    for (int i = 0; i < count; i++) param_write(tensors[i], was[i]), free(was[i]);
}

// A downsampling of the UNet padded as the VAE's is.
static void try_padding(Explanation *e, const Model *m, const char *module, const Traced *before) {
    char *name = format("%s.conv", module);
    const Layer *conv = params_layer(&m->params, name);
    free(name);
    if (strncmp(module, "unet.", 5) || !strstr(module, ".downsamplers.") || !conv) return;
    Scope s = scope_begin();
    int n = (int)before->shape[0], c = (int)before->shape[1], h = (int)before->shape[2],
        w = (int)before->shape[3];
    float *nhwc = nchw_to_nhwc(before->data, n, c, h, w);
    int64_t shape[4];
    float *x = file_order(
        conv2d_padded(tensor_from(SHAPE(n, h, w, c), nhwc), conv, 2, 0, 0, (h + 1) / 2, (w + 1) / 2), shape);
    consider(e, distance(hunt.theirs, x, hunt.count),
             format("padded below and on the right only, as the VAE's downsampling is: so we agree"));
    free(x), free(nhwc);
    scope_end(s, NULL);
}

static void try_changes(Explanation *e, const Model *m, const Inputs *in, const char *module) {
    const UNetConfig *u = &m->unet_config;
    int up, resnet, heads = m->text_config.num_attention_heads, channels = m->text_config.hidden_size;
    bool of_text = !strncmp(module, "text", 4);
    if (!of_text) {
        const Tensor *q = NULL;
        char *name = format("%s.transformer_blocks.0.attn1.to_q.weight", module);
        q = params_find(&m->params, name);
        free(name);
        channels = q ? q->shape[0] : 0, heads = u->heads[level_of(module, u)];
    }
    if (channels) {
        Change scaled = {SCALED, sqrtf((float)channels / (float)heads), 0, {".to_q.", ".q_proj."}};
        try_change(e, m, in, module, scaled, "attention without the scale 1 / sqrt(d)");
        Change halves = {ROWS_ROLLED, 1, 4 * channels, {".ff.net.0.proj."}};
        if (!of_text) try_change(e, m, in, module, halves, "GEGLU's halves, value and gate, exchanged");
    }
    if (sscanf(module, "unet.up_blocks.%d.resnets.%d", &up, &resnet) == 2) {
        int level = u->levels - 1 - up, skip = level - (resnet == u->layers_per_block && level);
        Change swapped = {INPUTS_ROLLED,
                          1,
                          u->block_out_channels[skip],
                          {".norm1.", ".conv1.weight", ".conv_shortcut.weight"}};
        try_change(e, m, in, module, swapped, "the skip connection in front of the stream, not behind it");
    }
}

// What may be wrong in the first block that differs: a new string, or NULL.
static char *explain(const Model *m, const Inputs *in, const char *block, const float *theirs,
                     const Traced *ours) {
    size_t n = traced_numbers(ours);
    for (size_t i = 0; i < n; i++)
        if (!isfinite(theirs[i])) return xstrdup("the other side has a NaN or an infinity");
    if (distance(theirs, ours->data, n) < 1e-6 * largest_of(ours->data, n))
        return xstrdup("no more than the rounding of fp32: is the tolerance too strict?");
    note("looking for the mistake in %s, a minute at most ...", block);
    if (permuted(theirs, ours->data, n, largest_of(ours->data, n)))
        return xstrdup("the same numbers in another order: axes transposed or permuted");
    hunt.block = block, hunt.several = in->steps > 1, hunt.theirs = theirs, hunt.count = n;
    Explanation e = {.difference = distance(theirs, ours->data, n), .deadline = seconds() + 60};
    const char *module = strncmp(block, "step.", 5) ? block : strchr(block + 5, '.') + 1;
    bool of_text = !strncmp(module, "text", 4);
    bool of_vae = !strncmp(module, "vae", 3);
    if (ours > traced) try_padding(&e, m, module, ours - 1);
    if (!of_vae) try_changes(&e, m, in, module);
    for (int i = 0; i < m->params.count && seconds() < e.deadline; i++)
        if (belongs_to(m->params.list[i].name, module)) try_parameter(&e, m, in, &m->params.list[i]);
    if (!of_vae) try_configurations(&e, m, in, module, of_text);
    if (e.why) return e.why;
    const char *usual = usual_mistake(theirs, ours->data, ours);
    return usual ? xstrdup(usual) : NULL;
}

// ---- sd verify --------------------------------------------------------------------------------------------------

static const char verify_help[] = "usage: sd verify TRACE.safetensors [options]\n\n"
                                  "Runs this implementation on the inputs that a trace of another one names, "
                                  "and compares block by block. test/python/trace.py\n"
                                  "makes a trace of any diffusers pipeline; sd sample --dump makes one of "
                                  "this program. Exit status 1 where a block\n"
                                  "differs.\n\n"
                                  "      --tolerance R   largest difference allowed, as a share of the "
                                  "block's largest value (default 1e-4)\n"
                                  "  -m, --model PATH   --json   -t, --threads N   -q   -v   -h\n";

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
    Inputs in = read_inputs(m, s, path);
    trace_begin();
    run_again(m, &in);
    trace_sink = NULL;
    int count = traced_count, compared = 0, differ = 0;
    const char *first = NULL;
    char *why = NULL;
    if (common.json) printf("{\"blocks\": [");
    for (int i = 0; i < count; i++) {
        const Stored *theirs = store_find(s, shown_name(traced[i].name, in.steps > 1));
        if (!theirs || !strncmp(theirs->name, "inputs.", 7)) continue;
        size_t n = traced_numbers(&traced[i]);
        bool same_size = theirs->count == n;
        float *x = same_size ? stored_floats(theirs) : NULL;
        double largest = largest_of(traced[i].data, n),
               worst = same_size ? distance(x, traced[i].data, n) : INFINITY;
        double relative = largest > 0 ? worst / largest : worst;
        bool ok = worst <= tolerance * largest;
        if (common.json) {
            printf("%s{\"name\": ", compared ? ", " : "");
            print_json_string(theirs->name);
            printf(", \"max_abs\": %.6g, \"max_rel\": %.6g, \"ok\": %s}", isfinite(worst) ? worst : 1e300,
                   isfinite(relative) ? relative : 1e300, ok ? "true" : "false");
        } else
            printf("%-6s %-64s %10.3g %10.3g\n", ok ? "ok" : "DIFFER", theirs->name, worst, relative);
        if (!ok && !first) {
            first = theirs->name;
            why = same_size ? explain(m, &in, first, x, &traced[i]) : xstrdup("another number of elements");
            if (!common.json)
                printf("       ^ the first block that differs%s%s\n", why ? ": " : "", why ? why : "");
        }
        free(x);
        compared++, differ += !ok;
    }
    if (!compared) die("%s: none of its blocks has a name of this model", path);
    if (common.json) {
        printf("], \"ok\": %s", differ ? "false" : "true");
        if (first) printf(", \"first\": "), print_json_string(first);
        if (why) printf(", \"why\": "), print_json_string(why);
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
