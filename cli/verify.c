// verify.c: `sd sample --dump` writes a trace: every block's output, and what went in. `sd verify` runs the
// same inputs again and compares block by block; explain.c guesses what may be wrong in one that differs.
#define _POSIX_C_SOURCE 200809L // open_memstream
#include "verify.h"
#include "commands.h"
#include "model_folder.h"

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

// Adds to ours, which own name and data.
static void keep(char *name, int ndim, const int64_t *shape, float *data) {
    traced = xrealloc(traced, (size_t)(traced_count + 1) * sizeof *traced);
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
    bool input = !strcmp(name, "unet.input"); // comes before the first block
    bool of_step = starts_with(name, "unet.") || !strcmp(name, "guidance") || !strcmp(name, "sampler");
    return of_step ? format("step.%d.%s", *calls - !input, name) : xstrdup(name);
}

const char *without_step(const char *name) {
    const char *dot = starts_with(name, "step.") ? strchr(name + strlen("step."), '.') : NULL;
    return dot ? dot + 1 : name;
}

static void sink(const char *name, const Tensor *t) {
    int64_t shape[4];
    if (strstr(name, ".attn2.")) return; // queries and keys, for film.c: within a block
    float *x = file_order(t, shape);
    keep(name_with_step(name, &unet_calls), t->dims, shape, x);
}

void trace_begin(void) { trace_sink = sink; }

static const char *shown_name(const char *name, bool several) {
    return !several && starts_with(name, "step.0.") ? without_step(name) : name;
}

Scheduler scheduler_of(SchedulerConfig c, int steps) {
    Scheduler s;
    scheduler_init(&s, c);
    scheduler_set_timesteps(&s, steps);
    return s;
}

// The last n timesteps.
static void keep_times(const Scheduler *s, int n) {
    size_t bytes = (size_t)n * sizeof(float);
    keep(xstrdup("inputs.timesteps"), 1, (int64_t[]){n},
         memcpy(xmalloc(bytes), s->timesteps + s->count - n, bytes));
}

// Tokens, timesteps and guidance scale. The other inputs went through the sink: the first latents, LCM's
// fresh noise ("inputs.noise.0") and the picture of image-to-image.
static void keep_inputs(const SampleOptions *o, const Model *m) {
    int tokens = m->text_config.max_position_embeddings;
    const char *texts[2] = {o->prompt, NULL};
    if (o->cfg > 1 && !m->unet_config.time_cond_proj_dim)
        texts[0] = o->negative ? o->negative : "", texts[1] = o->prompt;
    int rows = texts[1] ? 2 : 1, *ids = xmalloc((size_t)tokens * sizeof *ids);
    float *all = xmalloc((size_t)(rows * tokens) * sizeof *all), *cfg = xmalloc(sizeof *cfg);
    for (int i = 0; i < rows; i++) {
        int used = tokenizer_encode(m->tokenizer, texts[i], ids, tokens, NULL);
        while (used < tokens) ids[used++] = tokenizer_pad(m->tokenizer);
        for (int k = 0; k < tokens; k++) all[i * tokens + k] = (float)ids[k];
    }
    keep(xstrdup("inputs.ids"), 2, (int64_t[]){rows, tokens}, all);
    Scheduler s = scheduler_of(sample_scheduler(m, o), o->steps);
    keep_times(&s, unet_calls < s.count ? unet_calls : s.count); // image-to-image skips the first ones
    scheduler_free(&s);
    *cfg = o->cfg;
    keep(xstrdup("inputs.cfg"), 1, (int64_t[]){1}, cfg);
}

static const char *const spacings[] = {"leading", "trailing", "linspace"};

void trace_save(const char *path, const SampleOptions *o, const Model *m, Texts loras) {
    trace_sink = NULL;
    keep_inputs(o, m);
    StoreWriter *w = store_create(path);
    SchedulerKind kind = scheduler_config(m->scheduler_json, o->scheduler).kind;
    store_metadata_add(w, "sampler", samplers[kind].name); // timesteps alone leave it open now and then
    if (kind == TCD) store_metadata_add(w, "eta", format("%.17g", o->eta));
    if (o->spacing >= 0) store_metadata_add(w, "spacing", spacings[o->spacing]);
    for (int i = 0; i < loras.count; i++) {
        char *spec = xstrdup(loras.at[i]);
        utf8_mend(spec); // a path may be none
        store_metadata_add(w, format("lora.%d", i), spec);
    }
    for (int i = 0; i < traced_count; i++)
        store_declare(w, shown_name(traced[i].name, unet_calls > 1), F32, traced[i].ndim, traced[i].shape);
    for (int i = 0; i < traced_count; i++) store_data_f32(w, traced[i].data, traced_elements(&traced[i]));
    store_commit(w);
}

// ---- the same inputs once more ----------------------------------------------------------------------------

float *stored_floats(const Stored *t) {
    float *x = xmalloc(t->count * sizeof(float));
    store_read_f32(t, x);
    return x;
}

const Stored *find_traced(const Store *s, int step, const char *name) {
    char *full = step < 0 ? xstrdup(name) : format("step.%d.%s", step, name);
    const Stored *t = store_find(s, full);
    if (!t && starts_with(full, "step.0.")) t = store_find(s, full + strlen("step.0."));
    free(full);
    return t;
}

Tensor *picture_from(const float *nchw, int n, int c, int h, int w) {
    float *nhwc = nchw_to_nhwc(nchw, n, c, h, w);
    Tensor *t = tensor_from(SHAPE(n, h, w, c), nhwc);
    free(nhwc);
    return t;
}

// As read_tensor() a tensor, of pictures NHWC.
static Tensor *trace_tensor(const Store *s, const char *path, const char *name, int dims, int64_t *shape) {
    float *x = read_tensor(s, path, name, dims, shape);
    int n[4] = {0};
    for (int i = 0; i < dims; i++) n[i] = (int)shape[i];
    return dims == 4 ? picture_from(x, n[0], n[1], n[2], n[3]) : tensor_from(dims, n, x);
}

// And whole numbers from 0 on.
static int *trace_wholes(const Store *s, const char *path, const char *name, int dims, int64_t *shape,
                         int below) {
    float *x = read_tensor(s, path, name, dims, shape);
    size_t n = store_find(s, name)->count;
    int *y = xmalloc(n * sizeof *y);
    for (size_t i = 0; i < n; i++) {
        if (!(x[i] >= 0 && x[i] < (float)below))
            die("%s: %s holds %g; 0 to %d are expected", path, name, (double)x[i], below - 1);
        y[i] = (int)x[i];
    }
    return y;
}

// Do these timesteps, the last of so many, belong to this configuration?
static bool takes(SchedulerConfig c, Inputs *in) {
    int most = c.kind == LCM || c.kind == TCD ? c.original_inference_steps : c.num_train_timesteps - 2;
    for (int steps = in->steps > 1 ? in->steps - 1 : 1; steps <= most && !in->sampled; steps++) {
        int highest = c.steps_offset + (steps - 1) * (c.num_train_timesteps / steps);
        if (highest >= c.num_train_timesteps) continue;
        Scheduler s = scheduler_of(c, steps);
        in->sampled = s.count >= in->steps;
        for (int i = 0; in->sampled && i < in->steps; i++)
            in->sampled = fabsf(s.timesteps[s.count - in->steps + i] - in->times[i]) < 0.01f;
        scheduler_free(&s);
        in->sampler = c, in->sampler_steps = steps;
    }
    return in->sampled;
}

// Which sampler takes these timesteps? The model's own is tried first if none is named. Timesteps that no
// configuration of the model's takes are compared with its own; maybe another spacing or offset has them.
// spacing: that of the named sampler's timesteps; NULL: the model's.
static void find_sampler(const Model *m, const char *named, const char *spacing, Inputs *in) {
    int kind = named ? TCD : -1;
    while (named && kind >= 0 && strcmp(named, samplers[kind].name)) kind--;
    if (named && kind < 0) note("the sampler \"%s\" is not known here; its steps are not compared", named);
    if (named && kind < 0) return;
    SchedulerConfig own = scheduler_config(m->scheduler_json, kind);
    for (int i = LEADING; spacing && i <= LINSPACE; i++)
        if (!strcmp(spacing, spacings[i])) own.timestep_spacing = i;
    if (takes(own, in)) return;
    for (kind = PNDM; kind <= LCM && !named; kind++)
        if (takes(scheduler_config(m->scheduler_json, kind), in)) return;
    if (in->steps == 1) return;
    for (int i = 0; i < 6 && !in->sampled; i++) {
        SchedulerConfig c = own;
        c.timestep_spacing = i / 2, c.steps_offset = i % 2;
        if (takes(c, in))
            in->times_why = format("they are those of timestep_spacing \"%s\" and steps_offset %d, which the "
                                   "model has not",
                                   spacings[i / 2], i % 2);
    }
    Scheduler s = scheduler_of(own, in->sampled ? in->sampler_steps : in->steps - (own.kind == PNDM));
    if (s.count < in->steps) die("the %d timesteps are those of no sampler of this model", in->steps);
    keep_times(&s, in->steps);
    scheduler_free(&s);
}

// Notes where what sampling begins with is not compared, or is not as large as the sampler's noise.
static void check_start(const Inputs *in) {
    if (in->image) note("not compared: the way from vae.quant_conv to inputs.latents, which needs its noise");
    if (in->image || !in->sampled) return;
    Scheduler s = sampler_of(in);
    size_t n = tensor_count(in->latents);
    Tensor *ones = tensor_new(SHAPE(1, 1, 1, 1));
    backend.fill(mem(ones), 1, 1);
    double expected = (double)tensor_item(scheduler_start(&s, NULL, ones)), squares = 0;
    float *z = tensor_read(in->latents);
    for (size_t i = 0; i < n; i++) squares += (double)z[i] * z[i];
    double size = sqrt(squares / (double)n);
    if (n >= 256 && fabs(size / expected - 1) > 0.25)
        note("inputs.latents have the size %.3g; this sampler's noise has %.3g (init_noise_sigma)", size,
             expected);
    scheduler_free(&s), free(z);
}

static Inputs read_inputs(const Model *m, const Store *s, const char *path) {
    int64_t z[4] = {1, m->unet_config.in_channels, -1, -1}, n[1] = {-1}, one[1] = {1},
            ids[2] = {-1, m->text_config.max_position_embeddings},
            context[3] = {-1, -1, m->unet_config.cross_attention_dim}, image[4] = {1, 3, -1, -1};
    Inputs in = {.trace = s, .latents = trace_tensor(s, path, "inputs.latents", 4, z)};
    if (store_find(s, "inputs.ids"))
        in.ids = trace_wholes(s, path, "inputs.ids", 2, ids, m->text_config.vocab_size);
    else
        in.context = trace_tensor(s, path, "inputs.context", 3, context);
    in.rows = (int)(in.ids ? ids[0] : context[0]);
    if (in.rows > 2) die("%s has text in %d rows; 1 or 2 are expected", path, in.rows);
    in.cfg = *read_tensor(s, path, "inputs.cfg", 1, one);
    in.times = read_tensor(s, path, "inputs.timesteps", 1, n);
    in.steps = (int)n[0];
    find_sampler(m, store_metadata(s, "sampler"), store_metadata(s, "spacing"), &in);
    const char *eta = store_metadata(s, "eta");
    if (eta) in.sampler.eta = strtod(eta, NULL);
    for (int i = 0; i < in.steps - 1; i++)
        if (!in.sampled && !find_traced(s, i, "sampler"))
            die("%s: the %d timesteps from %g on are those of no sampler of this model, and step.%d.sampler, "
                "the latents behind that step, is missing",
                path, in.steps, (double)in.times[0], i);
    in.decodes = store_find(s, "vae.decoder.conv_out") &&
                 (in.sampled || store_find(s, "latents") || store_find(s, "vae.scaling"));
    if (store_find(s, "inputs.image")) in.image = trace_tensor(s, path, "inputs.image", 4, image);
    if (in.image && (image[2] < 8 || image[3] < 8)) // a smaller one has no latents
        die("%s: inputs.image has %d x %d pixels; 8 x 8 is the least", path, (int)image[3], (int)image[2]);
    check_start(&in);
    return in;
}

// The trace's tensor in place of ours, if it has one.
Tensor *theirs(const Inputs *in, Tensor *ours, int step, const char *name) {
    const Stored *t = find_traced(in->trace, step, name);
    if (!t || t->count != tensor_count(ours)) return ours;
    float *x = stored_floats(t);
    const int *n = ours->shape;
    if (isfinite(distance(x, x, t->count)))
        ours = ours->dims == 4 ? picture_from(x, n[0], n[3], n[1], n[2]) : tensor_from(ours->dims, n, x);
    free(x);
    return ours;
}

Scheduler sampler_of(const Inputs *in) {
    Scheduler s = scheduler_of(in->sampler, in->sampler_steps);
    scheduler_skip(&s, s.count - in->steps);
    return s;
}

// Without the noise that it needs a step is not compared.
Tensor *step_again(const Inputs *in, Scheduler *s, Tensor *z, Tensor *eps, int step) {
    char *name = format("inputs.noise.%d", step);
    Tensor *noise = scheduler_wants_noise(s) ? theirs(in, z, -1, name) : NULL;
    if (noise == z && !find_traced(in->trace, step, "sampler"))
        die("tensor %s is missing, the noise of this sampler, and step.%d.sampler, the latents", name, step);
    free(name);
    Tensor *next = scheduler_step(s, z, eps, noise);
    return noise == z ? next : trace(next, "sampler");
}

void run_again(const Model *m, const Inputs *in) {
    Scope whole = scope_begin();
    Tensor *context = in->context, *z = in->latents;
    if (in->ids) context = trace(text_encode(m->text_encoder, in->ids, in->rows), "text_encoder");
    context = theirs(in, context, -1, "text_encoder");
    Scope loop = scope_begin();
    float guidance[2] = {in->cfg - 1, in->cfg - 1};
    bool embeds = m->unet_config.time_cond_proj_dim > 0, guided = in->rows == 2;
    Scheduler s = {0};
    if (in->sampled) s = sampler_of(in);
    for (int i = 0; i < in->steps; i++) {
        float t[2] = {in->times[i], in->times[i]};
        Tensor *x = in->sampled ? scheduler_input(&s, z) : z;
        if (guided) x = stack(x, x);
        if (in->sampled) trace(x, "unet.input"); // others may scale it
        x = theirs(in, x, i, "unet.input");
        Tensor *eps = theirs(in, unet(m->unet, x, t, context, embeds ? guidance : NULL), i, "unet.conv_out");
        if (guided) eps = combine(1 - in->cfg, take(eps, 0, 1), in->cfg, take(eps, 1, 1));
        eps = theirs(in, trace(eps, "guidance"), i, "guidance");
        if (in->sampled) z = step_again(in, &s, z, eps, i);
        z = scope_end(loop, theirs(in, z, i, "sampler"));
    }
    scheduler_free(&s);
    if (in->sampled) trace(z, "latents");
    z = scale(theirs(in, z, -1, "latents"), 1 / m->vae_config.scaling_factor);
    if (in->decodes && (in->sampled || store_find(in->trace, "latents"))) trace(z, "vae.scaling");
    if (in->decodes) vae_decode(m->vae, theirs(in, z, -1, "vae.scaling"));
    if (in->image) vae_encode(m->vae, in->image);
    scope_end(whole, NULL);
}

// Dies of a trace of another kind of model, which its names or its text states tell.
static void check_kind(const Model *m, const Store *s, const char *path) {
    const int own = m->unet_config.cross_attention_dim;
    int wide = own;
    const char *kind = NULL;
    for (size_t i = 0; i < store_count(s); i++) {
        const Stored *t = store_at(s, i);
        bool states = !strcmp(t->name, "text_encoder") || !strcmp(t->name, "inputs.context");
        if (t->ndim == 3 && (states || ends_with(t->name, "final_layer_norm"))) wide = (int)t->shape[2];
        if (starts_with(t->name, "transformer.")) kind = "a diffusion transformer (SD 3, Flux)";
        if (strstr(t->name, "text_encoder_2.") || strstr(t->name, ".add_embedding"))
            kind = "Stable Diffusion XL";
    }
    static const char *const kinds[] = {"Stable Diffusion v1", "Stable Diffusion v2", "Stable Diffusion XL"};
    if (!kind && wide != own)
        kind = wide == 768 || wide == 1024 || wide == 2048 ? kinds[wide / 1024] : "another model";
    if (kind)
        die("%s is a trace of %s, with text states of %d channels; %s has %d", path, kind, wide, m->path,
            own);
}

// Adds the adapters that a trace was made with; or, of `--lora`, FILE[:SCALE] instead, or none.
static void add_traced_loras(const Model *m, const Store *s, const char *path, const char *instead) {
    if (instead && strcmp(instead, "none")) add_loras(m, (Texts){&instead, 1}, false, (bool[ADAPTED]){0});
    const char *spec;
    for (int i = 0; !instead && (spec = store_metadata(s, format("lora.%d", i))); i++) {
        if (!file_exists(parse_lora(spec, &(float){0})))
            die("%s was made with the adapter %s, which is not here; --lora FILE[:SCALE] says where it is",
                path, spec);
        add_loras(m, (Texts){&spec, 1}, false, (bool[ADAPTED]){0});
    }
}

// ---- a training step once more ----------------------------------------------------------------------------

// backward() comes to the last layers first, so they stand first.
static void keep_gradients(Tensor *loss, const Params *p) {
    backward(loss);
    keep(xstrdup("loss"), 1, (int64_t[]){1}, tensor_read(loss));
    for (int i = p->count - 1; i >= 0; i--) {
        Tensor gradient = *p->list[i].tensor;
        gradient.data = gradient.gradient;
        int64_t shape[4];
        int dims = param_file_shape(&gradient, shape);
        keep(format("gradient.%s", p->list[i].name), dims, shape, param_read(&gradient));
    }
}

// Keeps the loss and the gradients of the training step that a trace names. With inputs.index the step is
// Phase 2's, else Phase 3's, of the adapters in the file `lora`.
static void gradients_again(const Model *m, const Store *s, const char *path, const char *lora) {
    bool lcm = store_find(s, "inputs.index") != NULL;
    UNetConfig c = m->unet_config;
    if (c.time_cond_proj_dim) die("%s has a guidance embedding; a step begins with its base", m->path);
    if (!lcm && !lora) die("%s holds a step of adapters; --lora FILE names them", path);
    params_to_f32(&m->params);
    int64_t shape[4] = {-1, c.in_channels, -1, -1};
    Tensor *z = trace_tensor(s, path, "inputs.z", 4, shape),
           *noise = trace_tensor(s, path, "inputs.noise", 4, shape);
    int n = z->shape[0];
    int64_t states[3] = {lcm ? 2 * n : n, -1, c.cross_attention_dim}, list[1] = {n};
    Tensor *text = trace_tensor(s, path, "inputs.context", 3, states);
    Lcm l;
    lcm_init(&l, lcm_defaults, scheduler_config(m->scheduler_json, lcm ? LCM : -1), m->unet, NULL, NULL);
    Params student = {0};
    c.time_cond_proj_dim = 256;
    if (lcm) l.student = l.target = lcm_student(m, c, &student);
    Lora *adapters = lcm ? NULL : lora_load(&m->params, lora);
    if (adapters) params_to_f32(&adapters->params), lora_attach(adapters, 1);
    const Params *learnt = lcm ? &student : &adapters->params;
    for (int i = 0; i < learnt->count; i++) param_trainable(learnt->list[i].tensor);
    int *t = lcm ? trace_wholes(s, path, "inputs.index", 1, list, l.solver_steps)
                 : trace_wholes(s, path, "inputs.timesteps", 1, list, l.schedule.config.num_train_timesteps);
    float *w = lcm ? read_tensor(s, path, "inputs.w", 1, list) : NULL;
    tape_begin();
    if (lcm)
        keep_gradients(lcm_loss(&l, &(LcmBatch){n, z, noise, take(text, n, n), take(text, 0, n), t, w}),
                       learnt);
    else
        keep_gradients(lora_finetune_loss(&l.schedule, m->unet, z, noise, text, t, 0), learnt);
    tape_end();
}

// ---- the comparison ---------------------------------------------------------------------------------------

double distance(const float *x, const float *y, size_t n) {
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)x[i] - y[i]);
        if (!(d <= worst)) worst = isnan(d) ? INFINITY : d;
    }
    return worst;
}

double largest_of(const float *x, size_t n) {
    float largest = 0;
    for (size_t i = 0; i < n; i++) largest = fmaxf(largest, fabsf(x[i]));
    return largest;
}

const double rounding[3] = {[F32] = 1e-4, [F16] = 1e-2, [BF16] = 8e-2};
const char *const precision_names[3] = {[F32] = "fp32", [F16] = "fp16", [BF16] = "bf16"};

// What the numbers were computed in: half precision where that holds every one of them, however stored.
static Type precision_of(const float *x, size_t n) {
    size_t f16 = 0, bf16 = 0, zero = 0;
    for (size_t i = 0; i < n; i++) {
        zero += x[i] == 0;
        f16 += f16_to_f32(f32_to_f16(x[i])) == x[i];
        bf16 += bf16_to_f32(f32_to_bf16(x[i])) == x[i];
    }
    return n - zero < 16 ? F32 : bf16 == n ? BF16 : f16 == n ? F16 : F32;
}

// Adds a name to a list in JSON, and prints it where that is not asked for.
static void list(char **names, const char *name, const char *what, bool json) {
    format_more(names, "%s%s", **names ? ", " : "", json_quote(name));
    if (!json) printf("%-6s %s\n", what, plain_text(name));
}

// What may be wrong in block i of ours, the first that differs from theirs, x; maybe "".
static const char *reason(const Store *s, const Model *m, const Inputs *in, int i, const Stored *t,
                          const float *x, Type precision) {
    char has[200], expected[200];
    const Traced *ours = &traced[i];
    const char *why = t->count == traced_elements(ours)
                          ? explain(m, in, ours->name, x, ours, i ? ours - 1 : NULL, precision)
                          : format("its shape is %s; %s is expected", shape_text(has, t->shape, t->ndim),
                                   shape_text(expected, ours->shape, ours->ndim));
    while (--i > 0 && ends_with(traced[i].name, "time_embedding")) {} // of which the next block knows nothing
    if (i < 0 || find_traced(s, -1, traced[i].name)) return why;
    return format("%s%shere, or before it in what the trace lacks", why, *why ? "; " : "");
}

// The trace against `traced`, ours, in the order of the run. m: NULL where ours is a trace, too. tolerance:
// negative for that of the precision. Returns the exit status.
static int compare(const Store *s, const char *path, double tolerance, bool json, const Model *m,
                   const Inputs *in) {
    int compared = 0, differ = 0;
    const char *first = NULL, *why = "";
    char *absent = xstrdup(""), *extra = xstrdup("");
    Type type = F32, least = F32; // blocks of a network are as exact as the least exact before them
    bool inside = false;
    char *text = NULL; // the JSON, printed as a whole: an error may come before its end
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    fprintf(out, "{\"blocks\": [");
    for (int i = 0; i < traced_count; i++) {
        const Traced *ours = &traced[i];
        const Stored *t = find_traced(s, -1, ours->name);
        if (!t) list(&absent, ours->name, "absent", json);
        if (!t) continue;
        size_t n = traced_elements(ours);
        float *x = stored_floats(t);
        Type own = precision_of(x, t->count), other = m ? F32 : precision_of(ours->data, n);
        if (other > own) own = other;
        if (starts_with(t->name, "inputs.")) own = F32;
        bool was_inside = inside;
        inside = (strstr(t->name, "unet.") || strstr(t->name, "coder.")) && !ends_with(t->name, ".input");
        if (!(inside && was_inside) || own > type) type = own;
        if (type > least) least = type;
        double largest = largest_of(ours->data, n),
               worst = t->count == n ? distance(x, ours->data, n) : INFINITY,
               relative = largest > 0 ? worst / largest : worst;
        bool ok = worst <= (tolerance < 0 ? rounding[type] : tolerance) * largest;
        if (json) {
            fprintf(out, "%s{\"name\": %s, \"max_abs\": %.6g, \"max_rel\": %.6g, \"ok\": %s}",
                    compared ? ", " : "", json_quote(t->name), fmin(worst, 1e300), fmin(relative, 1e300),
                    ok ? "true" : "false");
        } else
            printf("%-6s %-64s %10.3g %10.3g\n", ok ? "ok" : "DIFFER", t->name, worst, relative);
        if (!ok && !first) {
            first = t->name, why = reason(s, m, in, i, t, x, type);
            if (!json) printf("       ^ the first block that differs%s%s\n", *why ? ": " : "", why);
        }
        free(x);
        compared++, differ += !ok;
    }
    if (!compared) die("%s: none of its blocks has a name of this model", path);
    for (size_t i = 0; i < store_count(s); i++) {
        const char *name = store_at(s, i)->name;
        bool known = m && starts_with(name, "inputs.") && !(in->ids && !strcmp(name, "inputs.context"));
        for (int k = 0; k < traced_count && !known; k++)
            known = !strcmp(name, traced[k].name) || !strcmp(name, shown_name(traced[k].name, false));
        if (!known) list(&extra, name, "extra", json);
    }
    const char *half =
        least == F32 ? "" : format(" (theirs is in half precision, %s)", precision_names[least]);
    if (json) {
        fprintf(out, "], \"absent\": [%s], \"not_compared\": [%s], \"precision\": \"%s\", \"ok\": %s", absent,
                extra, precision_names[least], differ ? "false" : "true");
        if (first) fprintf(out, ", \"first\": %s", json_quote(first));
        if (*why) fprintf(out, ", \"why\": %s", json_quote(why));
        fclose(out), printf("%s}\n", text);
    } else if (differ)
        printf("%d of %d blocks differ%s, %s first\n", differ, compared, half, first);
    else
        printf("%d blocks agree within %g of their largest value%s\n", compared,
               tolerance < 0 ? rounding[least] : tolerance, half);
    return differ > 0;
}

// ---- two traces -------------------------------------------------------------------------------------------

// A block's name as a text whose order is that of a run: its words become their places in a list. A network's
// result comes behind its blocks.
static char *place_in_run(const char *name) {
    static const char order[] =
        " inputs text_encoder step unet guidance sampler latents vae input time_embedding conv_in down_blocks "
        "mid_block up_blocks conv_out resnets attentions downsamplers upsamplers encoder final_layer_norm "
        "quant_conv scaling post_quant_conv decoder ";
    char *key = xstrdup("");
    int number = 0;
    for (int n; *name; name += n + (name[n] == '.')) {
        n = (int)strcspn(name, ".");
        char *word = format(" %.*s ", n, name);
        const char *at = strstr(order, word);
        // resnets.0 attentions.0 resnets.1 attentions.1
        if (sscanf(name, "resnets.%d", &number) + sscanf(name, "attentions.%d", &number) > 0)
            format_more(&key, "%03d%06d", (int)(strstr(order, "resnets") - order), number);
        if (sscanf(name, "%d", &number) == 1)
            format_more(&key, "%06d", number);
        else
            format_more(&key, "%03d%s", at ? (int)(at - order) : 999, word);
        free(word);
    }
    format_more(&key, "~"); // behind all digits
    return key;
}

static int by_run(const void *a, const void *b) {
    char *x = place_in_run(((const Traced *)a)->name), *y = place_in_run(((const Traced *)b)->name);
    int order = strcmp(x, y);
    free(x), free(y);
    return order;
}

static int compare_traces(const char *a, const char *b, double tolerance, bool json) {
    Store *s = store_open(a), *other = store_open(b);
    for (size_t i = 0; i < store_count(other); i++) {
        const Stored *t = store_at(other, i);
        int call = strcmp(t->name, "unet.input") && strcmp(t->name, "unet.time_embedding");
        if (t->ndim > 4) die("%s: tensor %s has %d axes; a trace's have four at most", b, t->name, t->ndim);
        keep(name_with_step(t->name, &call), t->ndim, t->shape, stored_floats(t));
    }
    qsort(traced, (size_t)traced_count, sizeof *traced, by_run);
    return compare(s, a, tolerance, json, NULL, NULL);
}

// ---- sd verify --------------------------------------------------------------------------------------------

int command_verify(int argc, char **argv) {
    const char *model = DEFAULT_MODEL, *lora = NULL;
    double tolerance = -1;
    bool json = false, gradients = false;
    Option options[] = {
        {0, "tolerance", NUMBER(&tolerance, 0, 1e6),
         "largest difference allowed, as a fraction of the block's largest value (default: "
         "1e-4, of gradients 1e-3; where the trace is in half precision, fp16 1e-2, bf16 8e-2)"},
        {0, "gradients", FLAG(&gradients),
         "the trace is of a training step: compares its loss and its gradients"},
        {0, "lora", TEXT(&lora, "FILE"),
         "adapters instead of those that the trace names, or none; with --gradients: those that learn"},
        {MODEL_OPTION(&model)},
        {JSON_OPTION(&json)},
        {0}};
    char **words = options_parse(
        argc, argv, options,
        "sd verify TRACE.safetensors [options]\n       sd verify A.safetensors B.safetensors",
        "Runs this implementation on the inputs that a trace of another one names, and compares block by "
        "block; or compares two traces. test/python/trace.py makes a trace of any diffusers pipeline; sd "
        "sample --dump makes one of this program; doc/TRACE.md tells how to write one. Exit status 1 where a "
        "block differs.",
        "sd sample -p \"a dog runs\" --dump trace.safetensors\n  sd verify trace.safetensors");
    if (!words[0] || (words[1] && words[2])) die_usage("sd verify takes one trace, or two");
    if (words[1] && gradients) die_usage("--gradients takes one trace");
    if (lora && words[1]) die_usage("--lora does not go with two traces");
    if (words[1]) return compare_traces(words[0], words[1], tolerance, json);
    const char *path = words[0];
    start_backend();
    Store *s = store_open(path);
    Model *m = model_load(model, NULL, gradients ? NEED_UNET : NEED_TEXT | NEED_UNET | NEED_VAE);
    check_kind(m, s, path);
    Inputs in = {0};
    if (gradients) {
        gradients_again(m, s, path, lora);
        if (tolerance < 0) tolerance = 1e-3; // sums of many products of both signs
    } else {
        add_traced_loras(m, s, path, lora);
        trace_begin();
        in = read_inputs(m, s, path);
        run_again(m, &in);
        trace_sink = NULL;
    }
    return compare(s, path, tolerance, json, m, &in);
}
