// explain.c: what may be wrong in the first block that differs from another implementation's? A guess is
// proved by making the mistake here too: on the same inputs the two must then agree.
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
static bool permuted(const float *x, const float *y, size_t n, double largest) {
    float *a = xmalloc(n * sizeof(float)), *b = xmalloc(n * sizeof(float));
    memcpy(a, x, n * sizeof(float)), memcpy(b, y, n * sizeof(float));
    qsort(a, n, sizeof(float), compare_floats), qsort(b, n, sizeof(float), compare_floats);
    bool same = distance(a, b, n) < fmin(1e-4 * largest, 1e-2 * distance(x, y, n));
    free(a), free(b);
    return same;
}

// Do x and y differ by one number a channel? Channels lie `stride` apart, the elements of one `step` apart.
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

// x is theirs, y ours.
static const char *usual_mistake(const float *x, const float *y, const Traced *t) {
    size_t n = traced_elements(t);
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

// ---- a run with a mistake ---------------------------------------------------------------------------------

// The run ends at the block in question, with how far it is from theirs.
static struct {
    const char *block;
    bool several; // steps
    const float *theirs;
    size_t count;
    int unet_calls;
    double difference;
    jmp_buf reached;
} hunt;

static void hunt_sink(const char *name, const Tensor *t) {
    char *full = name_with_step(name, &hunt.unet_calls);
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
    hunt.unet_calls = 0, hunt.difference = INFINITY;
    trace_sink = hunt_sink;
    if (!setjmp(hunt.reached)) run_again(m, in);
    trace_sink = NULL;
    scope_end(s, NULL);
    return hunt.difference;
}

// What is tried, on which model and block; and the best explanation so far.
typedef struct {
    const Model *model;
    const Inputs *in;
    const char *module; // the block's name without the step
    double difference, deadline;
    char *why;
} Case;

// To count, it must take away nine tenths of the difference.
static void consider(Case *c, double difference, char *why) {
    if (difference < c->difference / 10) {
        free(c->why);
        c->why = why, c->difference = difference;
    } else
        free(why);
}

// ---- mistakes in the parameters ---------------------------------------------------------------------------

// Parameters of the block changed as the mistake would amount to.
typedef struct {
    enum { ZERO, ONE, SCALED, TRANSPOSED, ROWS_ROLLED, INPUTS_ROLLED } how;
    float factor;
    int by;               // rows or input channels
    const char *parts[3]; // of the names of those that change
} Change;

static float *changed(const float *w, const Tensor *t, Change c) { // w in file order: (out, in, kh, kw)
    size_t n = tensor_count(t), row = t->dims > 1 ? n / (size_t)t->shape[0] : n,
           input = t->dims == 4 ? (size_t)t->shape[1] * (size_t)t->shape[2] : 1,
           unit = c.how == INPUTS_ROLLED ? input
                  : t->dims > 1          ? row
                                         : 1,
           by = (size_t)c.by * unit,
           side = t->dims > 1 ? (size_t)t->shape[1] : 1; // of a square matrix, or of a kernel
    float *x = xmalloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) {
        size_t map = i / (side * side), y = i / side % side, column = i % side;
        x[i] = c.how == ZERO          ? 0
               : c.how == ONE         ? 1
               : c.how == SCALED      ? c.factor * w[i]
               : c.how == TRANSPOSED  ? w[(map * side + column) * side + y]
               : c.how == ROWS_ROLLED ? w[(i + by) % n]
                                      : w[i - i % row + (i + by) % row];
    }
    return x;
}

static bool belongs_to(const char *parameter, const char *block) {
    size_t n = strlen(block), stem = n - strlen("conv_out");
    if (!strncmp(parameter, block, n) && parameter[n] == '.') return true;
    if (ends_with(block, "conv_out") && !strncmp(parameter, block, stem) &&
        !strncmp(parameter + stem, "conv_norm_out.", 14))
        return true;
    return !strcmp(block, "text_encoder.text_model.encoder.layers.0") && strstr(parameter, "embeddings.");
}

static void try_change(Case *c, Change change, char *why) {
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
    consider(c, count ? difference_with(c->model, c->in) : INFINITY, why);
    for (int i = 0; i < count; i++) param_write(tensors[i], was[i]), free(was[i]);
}

// Biases left out, scales left out, square matrices transposed, kernels with height and width exchanged.
static void try_parameter(Case *c, const Parameter *p) {
    const Tensor *t = p->tensor;
    bool bias = ends_with(p->name, ".bias");
    Change change = {t->dims > 1 ? TRANSPOSED : bias ? ZERO : ONE, .parts = {p->name}};
    if (t->dims == 1)
        try_change(c, change,
                   format("the %s %s is missing: without it we agree", bias ? "bias" : "scale", p->name));
    else if (t->dims == 2 && t->shape[0] == t->shape[1])
        try_change(c, change, format("transposed: %s: so we agree", p->name));
    else if (t->dims == 4 && t->shape[1] == t->shape[2] && t->shape[1] > 1)
        try_change(c, change, format("height and width exchanged: %s: so we agree", p->name));
}

// The level of the UNet that a block belongs to; blocks outside of any count as the first's.
static int level_of(const char *module, const UNetConfig *u) {
    int level = 0;
    if (!strncmp(module, "unet.mid_block", 14)) level = u->levels - 1;
    if (sscanf(module, "unet.up_blocks.%d", &level) == 1) level = u->levels - 1 - level;
    sscanf(module, "unet.down_blocks.%d", &level);
    return level >= 0 && level < u->levels ? level : 0;
}

// Attention, GEGLU and skip connections: mistakes that amount to other parameters.
static void try_changes(Case *c, bool of_text) {
    const UNetConfig *u = &c->model->unet_config;
    const TextConfig *t = &c->model->text_config;
    char *name = format("%s.transformer_blocks.0.attn1.to_q.weight", c->module);
    const Tensor *q = params_find(&c->model->params, name);
    free(name);
    int channels = q ? q->shape[0] : 0, heads = u->heads[level_of(c->module, u)], up, resnet;
    if (of_text) channels = t->hidden_size, heads = t->num_attention_heads;
    if (channels) {
        Change scaled = {SCALED, sqrtf((float)channels / (float)heads), 0, {".to_q.", ".q_proj."}};
        try_change(c, scaled, xstrdup("attention without the scale 1 / sqrt(d): so we agree"));
        Change halves = {ROWS_ROLLED, 1, 4 * channels, {".ff.net.0.proj."}};
        if (!of_text)
            try_change(c, halves, xstrdup("GEGLU's halves, value and gate, exchanged: so we agree"));
    }
    if (sscanf(c->module, "unet.up_blocks.%d.resnets.%d", &up, &resnet) == 2) {
        int level = u->levels - 1 - up, skip = level - (resnet == u->layers_per_block && level);
        Change swapped = {INPUTS_ROLLED, 1, .parts = {".norm1.", ".conv1.weight", ".conv_shortcut.weight"}};
        swapped.by = u->block_out_channels[skip];
        try_change(c, swapped,
                   xstrdup("the skip connection in front of the stream, not behind it: so we agree"));
    }
}

// A downsampling of the UNet padded as the VAE's is.
static void try_padding(Case *c, const Traced *before) {
    char *name = format("%s.conv", c->module);
    const Layer *conv = params_layer(&c->model->params, name);
    free(name);
    if (strncmp(c->module, "unet.", 5) || !strstr(c->module, ".downsamplers.") || !conv) return;
    Scope s = scope_begin();
    int n = (int)before->shape[0], channels = (int)before->shape[1];
    int h = (int)before->shape[2], w = (int)before->shape[3];
    float *nhwc = nchw_to_nhwc(before->data, n, channels, h, w);
    Tensor *in = tensor_from(SHAPE(n, h, w, channels), nhwc);
    int64_t shape[4];
    float *x = file_order(conv2d_padded(in, conv, 2, 0, 0, (h + 1) / 2, (w + 1) / 2), shape);
    consider(c, distance(hunt.theirs, x, hunt.count),
             xstrdup("padded below and on the right only, as the VAE's downsampling is: so we agree"));
    free(x), free(nhwc);
    scope_end(s, NULL);
}

// ---- mistakes in the configuration ------------------------------------------------------------------------

// The model with other configurations, on the same parameters.
static void try_configs(Case *c, TextConfig text, UNetConfig u, char *why) {
    const Model *m = c->model;
    Model other = *m;
    other.params = (Params){0}, other.text_config = text, other.unet_config = u;
    other.text_encoder = text_encoder_new(text, &other.params);
    other.unet = unet_new(u, &other.params);
    for (int i = 0; i < other.params.count; i++) {
        const Tensor *own = params_find(&m->params, other.params.list[i].name);
        other.params.list[i].tensor->data = own->data, other.params.list[i].tensor->type = own->type;
    }
    consider(c, difference_with(&other, c->in), why);
    for (int i = 0; i < other.params.count; i++) other.params.list[i].tensor->data = NULL; // not its own
    params_free(&other.params);
    text_encoder_free(other.text_encoder), free(other.unet);
}

static void try_configurations(Case *c, bool of_text) {
    static const float epsilons[] = {1e-6f, 1e-5f, 1e-12f, 1e-3f, 1e-4f, 1e-8f, 1e-2f};
    const TextConfig own_text = c->model->text_config;
    const UNetConfig own_unet = c->model->unet_config;
    TextConfig t;
    UNetConfig u;
    for (int i = 0; i < 7 && seconds() < c->deadline; i++) {
        double eps = epsilons[i];
        if (of_text) {
            t = own_text, t.layer_norm_eps = epsilons[i];
            try_configs(c, t, own_unet, format("epsilon %g in the layer norms: so we agree", eps));
            continue;
        }
        u = own_unet, u.norm_eps = epsilons[i];
        try_configs(c, own_text, u, format("epsilon %g in the ResNets' norms: so we agree", eps));
        u = own_unet, u.transformer_norm_eps = epsilons[i];
        try_configs(c, own_text, u,
                    format("epsilon %g in the norm before the transformer: so we agree", eps));
    }
    if (of_text) {
        bool gelu = own_text.hidden_act == GELU;
        t = own_text, t.hidden_act = gelu ? QUICK_GELU : GELU;
        const char *why = gelu ? "quick_gelu for gelu: so we agree" : "gelu for quick_gelu: so we agree";
        try_configs(c, t, own_unet, xstrdup(why));
    } else {
        u = own_unet, u.flip_sin_to_cos = !u.flip_sin_to_cos;
        try_configs(c, own_text, u,
                    xstrdup("sine and cosine exchanged in the timestep's embedding: so we agree"));
        u = own_unet, u.freq_shift = 1 - u.freq_shift;
        try_configs(c, own_text, u, format("freq_shift %g: so we agree", (double)u.freq_shift));
    }
    // Heads: of the block's own level, since whatever comes before it agrees.
    int level = level_of(c->module, &own_unet),
        channels = of_text ? own_text.hidden_size : own_unet.block_out_channels[level],
        now = of_text ? own_text.num_attention_heads : own_unet.heads[level];
    for (int heads = 1; heads <= channels / 2 && seconds() < c->deadline; heads++) {
        if (channels % heads || heads == now) continue;
        t = own_text, u = own_unet;
        *(of_text ? &t.num_attention_heads : &u.heads[level]) = heads;
        try_configs(c, t, u, format("%d heads instead of %d: so we agree", heads, now));
    }
}

// ---- all of it --------------------------------------------------------------------------------------------

char *explain(const Model *m, const Inputs *in, const char *block, const float *theirs, const Traced *ours,
              const Traced *before) {
    size_t n = traced_elements(ours);
    double difference = distance(theirs, ours->data, n), largest = largest_of(ours->data, n);
    for (size_t i = 0; i < n; i++)
        if (!isfinite(theirs[i])) return xstrdup("the other side has a NaN or an infinity");
    if (difference < 1e-6 * largest)
        return xstrdup("no more than the rounding of fp32: is the tolerance too strict?");
    note("looking for the mistake in %s, a minute at most ...", block);
    if (permuted(theirs, ours->data, n, largest))
        return xstrdup("the same numbers in another order: axes transposed or permuted");
    hunt.block = block, hunt.several = in->steps > 1, hunt.theirs = theirs, hunt.count = n;
    const char *module = strncmp(block, "step.", 5) ? block : strchr(block + 5, '.') + 1;
    bool of_text = !strncmp(module, "text", 4), of_vae = !strncmp(module, "vae", 3);
    Case c = {m, in, module, difference, .deadline = seconds() + 60};
    if (before) try_padding(&c, before);
    if (!of_vae) try_changes(&c, of_text);
    for (int i = 0; i < m->params.count && seconds() < c.deadline; i++)
        if (belongs_to(m->params.list[i].name, module)) try_parameter(&c, &m->params.list[i]);
    if (!of_vae) try_configurations(&c, of_text);
    if (c.why) return c.why;
    const char *usual = usual_mistake(theirs, ours->data, ours);
    return usual ? xstrdup(usual) : NULL;
}
