// explain.c: what may be wrong in the first block that differs from another implementation's? A guess is
// proved by making the mistake here too: on the same inputs the two must then agree.
#include "film.h"
#include "options.h"
#include "verify.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

// ---- what the numbers alone say ---------------------------------------------------------------------------

static int compare_floats(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

// The same values in another order?
static bool permuted(const float *x, const float *y, size_t n, double small) {
    float *a = xmalloc(n * sizeof(float)), *b = xmalloc(n * sizeof(float));
    memcpy(a, x, n * sizeof(float)), memcpy(b, y, n * sizeof(float));
    qsort(a, n, sizeof(float), compare_floats), qsort(b, n, sizeof(float), compare_floats);
    bool same = distance(a, b, n) < fmin(small, 1e-1 * distance(x, y, n));
    free(a), free(b);
    return same;
}

// x is theirs, y ours.
static const char *usual_mistake(const float *x, const float *y, size_t n, double small) {
    double largest = largest_of(y, n), dot = 0, xx = 0, yy = 0;
    for (size_t i = 0; i < n; i++)
        dot += (double)x[i] * y[i], xx += (double)x[i] * x[i], yy += (double)y[i] * y[i];
    double scale = dot / yy, left = xx - dot * dot / yy;
    if (left < small * small * xx && fabs(scale - 1) > 10 * small)
        return "a constant factor apart: a scale is missing";
    if (distance(x, y, n) < 5e-3 * largest)
        return "a small difference everywhere: TF32 on their side, a wrong epsilon of a norm, or another form "
               "of an activation?";
    return "";
}

// Least squares: y is about k[0] x[0] + k[1] x[1] + ... (at most 3 terms). Returns the largest error.
static double fit(const float *y, float *const *x, int terms, size_t n, double k[3]) {
    double a[3][4] = {{0}};
    for (int r = 0; r < terms; r++)
        for (int c = 0; c <= terms; c++)
            for (size_t i = 0; i < n; i++) a[r][c] += (double)x[r][i] * (c < terms ? x[c][i] : y[i]);
    for (int p = 0; p < terms; p++) // Gauss-Jordan; the matrix is positive definite
        for (int r = 0; r < terms; r++)
            for (int c = terms; r != p && c >= p; c--) a[r][c] -= a[r][p] / a[p][p] * a[p][c];
    for (int r = 0; r < terms; r++) k[r] = a[r][terms] / a[r][r];
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double left = y[i];
        for (int r = 0; r < terms; r++) left -= k[r] * x[r][i];
        if (!(fabs(left) <= worst)) worst = isnan(left) ? INFINITY : fabs(left);
    }
    return worst;
}

// ---- between the networks: guidance, the sampler's step, scaling ------------------------------------------

// Their block of a step, n elements, or NULL.
static float *given(const Inputs *in, int step, const char *name, size_t n) {
    const Stored *t = find_traced(in->trace, step, name);
    return t && t->count == n ? stored_floats(t) : NULL;
}

static float *latents_before(const Inputs *in, int step, size_t n) {
    return step ? given(in, step - 1, "sampler", n) : given(in, -1, "inputs.latents", n);
}

// The configuration with which we agree behind `step`, on their latents and predictions.
static const char *wrong_configuration(Inputs in, int step, const float *their, size_t n, double small) {
    static const char *const what[] = {
        "the network's output taken as noise (epsilon)", "the network's output taken as v",
        "the network's output taken as clean latents (sample)", "set_alpha_to_one is the other way",
        "beta_schedule is the other one of linear and scaled_linear"};
    const SchedulerConfig own = in.sampler;
    for (int i = 0; i < 5; i++) {
        in.sampler = own;
        if (i < 3) in.sampler.prediction_type = (PredictionType)i;
        if (i == 3) in.sampler.set_alpha_to_one = !own.set_alpha_to_one;
        if (i == 4) in.sampler.beta_schedule = own.beta_schedule ? LINEAR_BETAS : SCALED_LINEAR_BETAS;
        Scope whole = scope_begin();
        Scheduler s = sampler_of(&in);
        Tensor *z = in.latents, *next = z;
        for (int k = 0; k <= step; k++, z = theirs(&in, next, k - 1, "sampler"))
            next = step_again(&in, &s, z, theirs(&in, z, k, "guidance"), k);
        int64_t shape[4];
        float *x = file_order(next, shape);
        bool agree = distance(x, their, n) < small;
        free(x), scheduler_free(&s);
        scope_end(whole, NULL);
        if (agree) return what[i];
    }
    return NULL;
}

// What is made from few tensors by few numbers: which numbers are theirs, which ours? Else NULL.
static const char *explain_between(const Inputs *in, const char *block, const float *their,
                                   const Traced *ours, double small) {
    int step = 0, terms = 1;
    sscanf(block, "step.%d.", &step);
    const char *name = without_step(block), *called[3] = {"latents", "prediction", "noise"};
    size_t n = traced_elements(ours);
    float *x[3] = {NULL, NULL, NULL};
    if (!strcmp(name, "inputs.timesteps"))
        return in->times_why ? in->times_why : "they are not those of the model's sampler";
    if (!strcmp(name, "guidance") && in->rows == 2) {
        terms = 2, called[0] = "without the caption", called[1] = "with it";
        x[0] = given(in, step, "unet.conv_out", 2 * n), x[1] = x[0] ? x[0] + n : NULL;
    } else if (!strcmp(name, "sampler")) {
        const char *why = wrong_configuration(*in, step, their, n, small);
        if (why) return format("%s: so we agree", why);
        x[0] = latents_before(in, step, n), x[1] = given(in, step, "guidance", n);
        x[2] = given(in, -1, format("inputs.noise.%d", step), n);
        terms = x[2] ? 3 : 2;
    } else if (!strcmp(name, "latents"))
        x[0] = latents_before(in, in->steps, n);
    else if (!strcmp(name, "vae.scaling"))
        x[0] = given(in, -1, "latents", n);
    else if (!strcmp(name, "unet.input"))
        n /= (size_t)in->rows, x[0] = latents_before(in, step, n); // the rows are alike
    else
        return NULL;
    double a[3], b[3];
    if (!x[0]) return "what it is made from is absent, too";
    if ((terms > 1 && !x[1]) || fit(their, x, terms, n, a) >= small ||
        fit(ours->data, x, terms, n, b) >= small)
        return "not made as ours is from the same tensors";
    char *text = xstrdup("");
    for (int i = 0; i < terms; i++)
        format_more(&text, "%s%s times %.4g (ours %.4g)", i ? " + " : "", called[i], a[i], b[i]);
    return text;
}

// ---- a run with a mistake ---------------------------------------------------------------------------------

// What is tried, on which model and block; and the best explanation so far.
typedef struct {
    const Model *model;
    const Inputs *in;
    const char *block, *module; // module: the block's name without the step
    bool of_text;
    const float *theirs; // the block's output (count)
    size_t count;
    double difference, small, deadline; // small: what rounding explains
    const char *why;
} Case;

// A run ends at the block in question, with how far it is from theirs.
static struct {
    const Case *c;
    int unet_calls;
    double difference;
    jmp_buf reached;
} hunt;

static double distance_from(const Case *c, const Tensor *t) {
    int64_t shape[4];
    float *x = file_order(t, shape);
    double far = tensor_count(t) == c->count ? distance(c->theirs, x, c->count) : INFINITY;
    free(x);
    return far;
}

static void hunt_sink(const char *name, const Tensor *t) {
    char *full = name_with_step(name, &hunt.unet_calls);
    bool here = !strcmp(full, hunt.c->block);
    free(full);
    if (!here) return;
    hunt.difference = distance_from(hunt.c, t);
    longjmp(hunt.reached, 1);
}

static double difference_with(const Case *c, const Model *m) {
    hunt.c = c, hunt.unet_calls = 0, hunt.difference = INFINITY;
    if (seconds() > c->deadline) return INFINITY;
    Scope s = scope_begin();
    trace_sink = hunt_sink;
    if (!setjmp(hunt.reached)) run_again(m, c->in);
    trace_sink = NULL;
    scope_end(s, NULL);
    return hunt.difference;
}

// To count, a mistake must take away nine tenths of the difference, or in half precision all but rounding.
static void consider(Case *c, double difference, const char *mistake) {
    if (difference < c->difference / 10 || (difference < c->small && difference < c->difference / 2))
        c->why = format("%s: so we agree", mistake), c->difference = difference;
}

// ---- mistakes in the parameters ---------------------------------------------------------------------------

// Parameters of the block changed as the mistake has them: all 1, or `factor` times as large, or moved.
typedef struct {
    enum { ONE, SCALED, TRANSPOSED, ROWS_ROLLED, INPUTS_ROLLED } how;
    float factor;
    int by;               // rows or input channels
    const char *parts[3]; // of the names of those that change
} Change;

static float *changed(const float *w, const Tensor *t, Change c) { // w in file order: (out, in, kh, kw)
    size_t n = tensor_count(t), row = t->dims > 1 ? n / (size_t)t->shape[0] : 1,
           input = t->dims == 4 ? (size_t)t->shape[1] * (size_t)t->shape[2] : 1,
           side = t->dims > 1 ? (size_t)t->shape[1] : 1; // of a square matrix, or of a kernel
    bool inputs = c.how == INPUTS_ROLLED;
    size_t ring = inputs && t->dims > 1 ? row : n, by = (size_t)c.by * (inputs ? input : row);
    float *x = xmalloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) {
        size_t map = i / (side * side), y = i / side % side, column = i % side, from = i;
        if (c.how == TRANSPOSED) from = (map * side + column) * side + y;
        if (inputs || c.how == ROWS_ROLLED) from = i - i % ring + (i + by) % ring;
        x[i] = c.how == ONE ? 1 : c.factor * w[from];
    }
    return x;
}

static bool belongs_to(const char *parameter, const char *block) {
    size_t n = strlen(block), stem = n - strlen("conv_out");
    if (starts_with(parameter, block) && parameter[n] == '.') return true;
    if (ends_with(block, "conv_out") && !strncmp(parameter, block, stem) &&
        starts_with(parameter + stem, "conv_norm_out."))
        return true;
    return !strcmp(block, "text_encoder.text_model.encoder.layers.0") && strstr(parameter, "embeddings.");
}

static void try_change(Case *c, Change change, const char *mistake) {
    enum { MOST = 8 };
    const Params *all = &c->model->params;
    Tensor *tensors[MOST];
    float *was[MOST];
    int count = 0;
    for (int i = 0; i < all->count && count < MOST; i++) {
        const char *name = all->list[i].name;
        bool named = false;
        for (int k = 0; k < 3 && change.parts[k]; k++) named = named || strstr(name, change.parts[k]);
        if (!named || !belongs_to(name, c->module)) continue;
        tensors[count] = all->list[i].tensor;
        was[count] = param_read(tensors[count]);
        float *x = changed(was[count], tensors[count], change);
        param_write(tensors[count++], x);
        free(x);
    }
    consider(c, count ? difference_with(c, c->model) : INFINITY, mistake);
    for (int i = 0; i < count; i++) param_write(tensors[i], was[i]), free(was[i]);
}

// Biases left out, scales left out, square matrices transposed, kernels with height and width exchanged.
static void try_parameter(Case *c, const Parameter *p) {
    const Tensor *t = p->tensor;
    bool bias = ends_with(p->name, ".bias");
    const char *mistake = bias ? "without the bias" : t->dims == 1 ? "without the scale" : "transposed:";
    if (t->dims == 4) mistake = "height and width exchanged:";
    if (t->dims == 2 && t->shape[0] != t->shape[1]) return;
    if (t->dims == 4 && (t->shape[1] != t->shape[2] || t->shape[1] == 1)) return;
    Change change = {t->dims > 1 ? TRANSPOSED : bias ? SCALED : ONE, bias ? 0 : 1, .parts = {p->name}};
    try_change(c, change, format("%s %s", mistake, p->name));
    change.factor = 2;
    if (bias) try_change(c, change, format("twice the bias %s", p->name));
}

// Attention, GEGLU and skip connections: mistakes that amount to other parameters.
static void try_changes(Case *c) {
    const UNetConfig *u = &c->model->unet_config;
    const TextConfig *t = &c->model->text_config;
    const char *name = format("%s.transformer_blocks.0.attn1.to_q.weight", c->module);
    const Tensor *q = params_find(&c->model->params, name);
    int channels = q ? q->shape[0] : 0, heads = u->heads[level_of(c->module, u)], up, resnet;
    if (c->of_text) channels = t->hidden_size, heads = t->num_attention_heads;
    if (channels) {
        Change scaled = {SCALED, sqrtf((float)channels / (float)heads), 0, {".to_q.", ".q_proj."}};
        try_change(c, scaled, "attention without the scale 1 / sqrt(d)");
        Change halves = {ROWS_ROLLED, 1, 4 * channels, {".ff.net.0.proj."}}; // of the UNet only
        try_change(c, halves, "GEGLU's halves, value and gate, exchanged");
    }
    if (sscanf(c->module, "unet.up_blocks.%d.resnets.%d", &up, &resnet) == 2) {
        int level = u->levels - 1 - up, skip = level - (resnet == u->layers_per_block && level);
        Change swapped = {INPUTS_ROLLED, 1, .parts = {".norm1.", ".conv1.weight", ".conv_shortcut.weight"}};
        swapped.by = u->block_out_channels[skip];
        try_change(c, swapped, "the skip connection in front of the stream, not behind it");
    }
}

// A downsampling of the UNet padded as the VAE's is.
static void try_padding(Case *c, const Traced *before) {
    const Layer *conv = params_layer(&c->model->params, format("%s.conv", c->module));
    if (!starts_with(c->module, "unet.") || !strstr(c->module, ".downsamplers.") || !conv) return;
    const int64_t *n = before->shape;
    Tensor *in = picture_from(before->data, (int)n[0], (int)n[1], (int)n[2], (int)n[3]);
    Tensor *out = conv2d_padded(in, conv, 2, 0, 0, (int)(n[2] + 1) / 2, (int)(n[3] + 1) / 2);
    consider(c, distance_from(c, out), "padded below and on the right only, as the VAE's downsampling is");
}

// ---- mistakes in the configuration ------------------------------------------------------------------------

// `other`: the model with other configurations. It gets networks of these, on the same parameters.
static void try_model(Case *c, Model other, const char *mistake) {
    other.params = (Params){0};
    other.text_encoder = text_encoder_new(other.text_config, &other.params);
    other.unet = unet_new(other.unet_config, &other.params);
    for (int i = 0; i < other.params.count; i++) {
        const Tensor *own = params_find(&c->model->params, other.params.list[i].name);
        other.params.list[i].tensor->data = own->data, other.params.list[i].tensor->type = own->type;
    }
    consider(c, difference_with(c, &other), mistake);
    for (int i = 0; i < other.params.count; i++) other.params.list[i].tensor->data = NULL; // not its own
    params_free(&other.params);
    text_encoder_free(other.text_encoder), free(other.unet);
}

static void try_configurations(Case *c) {
    Model m = *c->model;
    TextConfig *t = &m.text_config;
    UNetConfig *u = &m.unet_config;
    static const float epsilons[] = {1e-6f, 1e-5f, 1e-12f, 1e-3f, 1e-4f, 1e-8f, 1e-2f};
    const struct {
        float *epsilon;
        const char *norm;
    } norms[] = {{&t->layer_norm_eps, "the layer norms"},
                 {&u->norm_eps, "the ResNets' norms"},
                 {&u->transformer_norm_eps, "the norm before the transformer"}};
    for (int i = 0; i < 7; i++)
        for (int k = c->of_text ? 0 : 1; k < (c->of_text ? 1 : 3); k++, m = *c->model) {
            *norms[k].epsilon = epsilons[i];
            try_model(c, m, format("epsilon %g in %s", (double)epsilons[i], norms[k].norm));
        }
    if (c->of_text) {
        bool gelu = t->hidden_act == GELU;
        t->hidden_act = gelu ? QUICK_GELU : GELU;
        try_model(c, m, gelu ? "quick_gelu for gelu" : "gelu for quick_gelu");
        m = *c->model, t->num_hidden_layers--; // "clip skip"
        try_model(c, m, "the states before the last layer");
    } else {
        u->flip_sin_to_cos = !u->flip_sin_to_cos;
        try_model(c, m, "sine and cosine exchanged in the timestep's embedding");
        m = *c->model, u->freq_shift = 1 - u->freq_shift;
        try_model(c, m, format("freq_shift %g", (double)u->freq_shift));
    }
    // Heads: of the block's own level, since whatever comes before it agrees.
    m = *c->model;
    int level = level_of(c->module, u), channels = c->of_text ? t->hidden_size : u->block_out_channels[level],
        *heads = c->of_text ? &t->num_attention_heads : &u->heads[level], own = *heads;
    for (int i = 1; i <= channels / 2; i++) {
        *heads = i;
        if (channels % i == 0 && i != own) try_model(c, m, format("%d heads instead of %d", i, own));
    }
}

// ---- all of it --------------------------------------------------------------------------------------------

const char *explain(const Model *m, const Inputs *in, const char *block, const float *their,
                    const Traced *ours, const Traced *before, Type precision) {
    size_t n = traced_elements(ours);
    double difference = distance(their, ours->data, n), largest = largest_of(ours->data, n),
           small = rounding[precision] * largest;
    for (size_t i = 0; i < n; i++)
        if (!isfinite(their[i])) return "the other side has a NaN or an infinity";
    if (difference < (precision == F32 ? 1e-6 * largest : small))
        return format("no more than the rounding of %s: is the tolerance too strict?",
                      precision_names[precision]);
    const char *usual = usual_mistake(their, ours->data, n, rounding[precision]),
               *module = without_step(block);
    if (!m || starts_with(block, "gradient.") || !strcmp(block, "loss")) return usual;
    const char *between = explain_between(in, block, their, ours, small);
    if (between) return between;
    note("looking for the mistake in %s, a minute at most ...", block);
    if (permuted(their, ours->data, n, small))
        return "the same numbers in another order: axes transposed or permuted";
    Case c = {m,     in, block,      module, starts_with(module, "text"),
              their, n,  difference, small,  .deadline = seconds() + 60};
    if (before) try_padding(&c, before);
    bool of_vae = starts_with(module, "vae");
    if (!of_vae) try_changes(&c);
    for (int i = 0; i < m->params.count; i++)
        if (belongs_to(m->params.list[i].name, module)) try_parameter(&c, &m->params.list[i]);
    if (!of_vae) try_configurations(&c);
    return c.why ? c.why : usual;
}
