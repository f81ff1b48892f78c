// sd.c: Phase 1, Stable Diffusion v1.5 (Rombach et al. 2022, "High-Resolution Image Synthesis with Latent
// Diffusion Models"). It turns a caption into a picture:
//
//   prompt -> tokens -> text states -> loop over timesteps (UNet, guidance, scheduler step) -> VAE -> picture
//
// The file is in reading order: the pipeline above as one function, the three networks, the schedulers, the
// loading of a model. There is no arithmetic here: the operations are in lib/nn/ops.c, their kernels in cpu/
// and cuda/. Training is in lcm.c and lora.c.
//
// Names are those of diffusers and the papers. Shapes: n pictures, h x w pixels, c channels, stored NHWC.
// Three functions of lib/nn/nn.h recur:
//   scope_begin() ... scope_end(s, t)   frees every tensor made in between, except t
//   run_block(f, layer, in, n)          is f(layer, in) in such a scope
//   trace(t, name)                      returns t, and shows it to `sd sample --dump` and `sd verify`
// `[T1]`, `[T2]`, ... are the stops of doc/READING.md on the way of a picture.
#include "sd.h"
#include "lib/io/architectures.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- The pipeline -----------------------------------------------------------------------------------------

static Tensor *guide(Tensor *both, float w);
static Tensor *random_latents(Random *r, int c, int h, int w);
static Tensor *first_latents(const Model *m, const SampleOptions *o, Scheduler *s, Random *r, int h, int w);
static double median(double *x, int n);
static void die_of_nan(const Model *m, SampleOptions o);

// [T2] Text to image in four steps: (1) the caption becomes text states, (2) noise is drawn, (3) the network
// and the scheduler remove it step by step, (4) the decoder turns latents into pixels.
Image *sample(const Model *m, SampleOptions o, SampleTimes *times) {
    int c = m->unet_config.in_channels, h = o.height / 8, w = o.width / 8;
    // A full LCM (lcm.c), unlike an LCM-LoRA (lora.c), takes the guidance scale as an input. Other models
    // need two predictions for guidance, without and with the caption.
    bool embeds_guidance = m->unet_config.time_cond_proj_dim > 0, guided = o.cfg > 1 && !embeds_guidance;
    float guidance = o.cfg - 1; // diffusers embeds guidance_scale - 1
    Scope everything = scope_begin();

    // 1. [negative, prompt] -> tokens -> text states (2, 77, 768). Without guidance it is only the prompt.
    double started = seconds();
    const char *captions[2] = {o.negative ? o.negative : "", o.prompt};
    Tensor *context =
        trace(encode_prompts(m, guided ? captions : captions + 1, guided ? 2 : 1), "text_encoder");
    double text_s = seconds() - started;

    // 2. Timesteps, and z_T ~ N(0, I). Image-to-image skips some timesteps and begins with a noised picture.
    Scheduler s;
    scheduler_init(&s, sample_scheduler(m, &o));
    scheduler_set_timesteps(&s, o.steps);
    Random rng;
    (o.philox ? random_seed_philox : random_seed)(&rng, o.seed);
    Scope loop = scope_begin();
    Tensor *z = trace(first_latents(m, &o, &s, &rng, h, w), "inputs.latents");

    // 3. At each timestep t the UNet predicts the noise in z_t, and the scheduler goes on to z_{t-1}.
    Progress bar;
    int steps = s.count - s.at;
    double *step_s = xmalloc((size_t)steps * sizeof(double));
    progress_begin(&bar, "sampling", steps);
    constant_begin(context);
    for (int i = 0; i < steps; i++) {
        double begun = seconds();
        float t[2] = {s.timesteps[s.at], s.timesteps[s.at]};
        Tensor *scaled = scheduler_input(&s, z);
        Tensor *in = trace(guided ? stack(scaled, scaled) : scaled, "unet.input");
        Tensor *out = unet(m->unet, in, t, context, embeds_guidance ? &guidance : NULL);
        Tensor *eps = trace(guided ? guide(out, o.cfg) : out, "guidance");
        // Drawn while a GPU is at work on all that.
        Tensor *noise =
            scheduler_wants_noise(&s) ? trace(random_latents(&rng, c, h, w), "inputs.noise.%d", i) : NULL;
        if (times) backend.sync();
        step_s[i] = seconds() - begun;
        z = scope_end(loop, scheduler_step(&s, z, eps, noise)); // frees all else of the step, the old z too
        trace(z, "sampler");
        if (o.progress) progress_step(&bar, i + 1, NULL);
    }
    if (o.progress) progress_end(&bar);
    constant_end();

    // 4. Decode: pixels = VAE(z_0 / 0.18215). The VAE's own latents have a standard deviation of about 5.5,
    // that is 1 / 0.18215. For the UNet they were scaled to a standard deviation of 1, like the noise.
    started = seconds();
    trace(z, "latents");
    Tensor *pixels = vae_decode(m->vae, trace(scale(z, 1 / m->vae_config.scaling_factor), "vae.scaling"));
    if (!tensor_finite(z) || !tensor_finite(pixels)) die_of_nan(m, o);
    Image *image = tensor_to_image(pixels, 0);
    if (times)
        *times = (SampleTimes){text_s, median(step_s, steps), seconds() - started, steps, backend.peak()};
    free(step_s);
    scheduler_free(&s);
    scope_end(everything, NULL);
    return image;
}

// [T3] Captions -> token ids -> text states (n, tokens, hidden_size). CLIP pads every caption to 77 tokens by
// repeating its end token. The UNet attends to the padding too, because it was trained that way.
Tensor *encode_prompts(const Model *m, const char *const *prompts, int n) {
    int tokens = m->text_config.max_position_embeddings, *ids = scope_ints(n * tokens);
    for (int i = 0; i < n; i++) {
        long cut_at;
        int used = tokenizer_encode(m->tokenizer, prompts[i], ids + i * tokens, tokens, &cut_at);
        if (cut_at >= 0)
            note("the caption is longer than %d tokens; cut before \"%.*s\"", tokens,
                 utf8_fit(prompts[i] + cut_at, 40), prompts[i] + cut_at);
        while (used < tokens) ids[i * tokens + used++] = tokenizer_pad(m->tokenizer);
    }
    return text_encode(m->text_encoder, ids, n);
}

// [T9] Classifier-free guidance (Ho and Salimans 2022) moves the prediction away from the unconditional one.
//   eps = eps_uncond + w (eps_cond - eps_uncond),   w > 1
// `both` is one batch: first the prediction without the caption (uncond), then the one with it (cond).
static Tensor *guide(Tensor *both, float w) { return combine(1 - w, take(both, 0, 1), w, take(both, 1, 1)); }

// One picture from PyTorch's order: its elements are given as NCHW and stored as NHWC.
static Tensor *from_nchw(const float *x, int c, int h, int w) {
    float *nhwc = nchw_to_nhwc(x, 1, c, h, w);
    Tensor *t = tensor_from(SHAPE(1, h, w, c), nhwc);
    free(nhwc);
    return t;
}

// Normal noise, drawn in PyTorch's order.
static Tensor *random_latents(Random *r, int c, int h, int w) {
    float *x = xmalloc((size_t)c * (size_t)h * (size_t)w * sizeof(float));
    random_normal(r, x, (size_t)c * (size_t)h * (size_t)w);
    Tensor *t = from_nchw(x, c, h, w);
    free(x);
    return t;
}

// The latents of a picture, scaled for the UNet. The encoder gives their moments: mu and the logarithm of
// sigma^2. The latents are drawn from N(mu, sigma^2).
static Tensor *encode_init(const Model *m, const Image *image, int width, int height, Random *r) {
    Image *fitted = image_resize(image, width, height, RESIZE_LANCZOS); // as diffusers resizes
    Tensor *pixels = trace(image_to_tensor((const Image *const[]){fitted}, 1), "inputs.image");
    Tensor *moments = vae_encode(m->vae, pixels);
    image_free(fitted);
    int c = m->vae_config.latent_channels, h = moments->shape[1], w = moments->shape[2];
    Tensor *mu = slice(moments, 0, c), *log_variance = slice(moments, c, c);
    Tensor *sigma = exponential(scale(log_variance, 0.5f));
    Tensor *latents = add(mu, multiply(sigma, random_latents(r, c, h, w)));
    return scale(latents, m->vae_config.scaling_factor);
}

// z_T, where sampling begins. Image-to-image (Meng et al. 2022, SDEdit) skips the first steps, which decide
// on the composition. It begins with the latents of a picture, noised for the first timestep that remains.
// --strength is the fraction of steps that run.
static Tensor *first_latents(const Model *m, const SampleOptions *o, Scheduler *s, Random *r, int h, int w) {
    int c = m->unet_config.in_channels;
    if (o->init) {
        Tensor *clean = encode_init(m, o->init, o->width, o->height, r);
        int run = (int)(o->steps * o->strength);
        scheduler_skip(s, o->steps - (run < o->steps ? run : o->steps));
        return scheduler_start(s, clean, random_latents(r, c, h, w));
    }
    return scheduler_start(s, NULL, o->latents ? from_nchw(o->latents, c, h, w) : random_latents(r, c, h, w));
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int n) {
    qsort(x, (size_t)n, sizeof *x, compare_doubles);
    return n ? x[n / 2] : 0;
}

static void find_bad_block(const char *name, const Tensor *t) {
    if (!tensor_finite(t)) die("a NaN or an infinity arose in the block %s", name);
}

// A NaN is noticed only after the last step. To find the block that made it, sample again and check each one.
static void die_of_nan(const Model *m, SampleOptions o) {
    if (trace_sink == find_bad_block) die("a NaN or an infinity arose, but in no block");
    trace_sink = find_bad_block;
    o.progress = false;
    sample(m, o, NULL);
}

SampleOptions sample_defaults(const Model *m) {
    const Json *own = json_get(m->index_json, "_sd_defaults");
    if (!own) own = json_get(m->index_json, "sd_defaults"); // in older folders; diffusers warns of this name
    int size = 8 * m->unet_config.sample_size;
    // diffusers' defaults: LatentConsistencyModelPipeline's for a full LCM, else StableDiffusionPipeline's.
    bool lcm = m->unet_config.time_cond_proj_dim > 0;
    return (SampleOptions){
        .prompt = "",
        .width = size,
        .height = size,
        .scheduler = -1,
        .spacing = -1,
        .steps = (int)json_get_number(own, "steps", lcm ? 4 : 50),
        .cfg = (float)json_get_number(own, "guidance_scale", lcm ? 8.5 : 7.5),
        .strength = 0.8,
        .eta = json_get_number(own, "eta", 0),
        .progress = true,
    };
}

// ---- The text encoder: the text half of CLIP ViT-L/14 (Radford et al. 2021) -------------------------------

typedef struct {
    int heads;
    float eps;
    Activation act;
    Layer *layer_norm1, *q_proj, *k_proj, *v_proj, *out_proj; // self_attn.*
    Layer *layer_norm2, *fc1, *fc2;                           // mlp.*
} TextLayer;

struct TextEncoder {
    TextConfig c;
    Tensor *token_embedding, *position_embedding; // (vocab_size, c), (tokens, c)
    TextLayer *layers;
    Layer *final_layer_norm;
};

TextEncoder *text_encoder_new(TextConfig c, Params *p) {
    TextEncoder *e = xcalloc(1, sizeof *e);
    int d = c.hidden_size;
    const char *model = "text_encoder.text_model";
    e->c = c;
    e->token_embedding =
        param_tensor(p, SHAPE(c.vocab_size, d), "%s.embeddings.token_embedding.weight", model);
    e->position_embedding = param_tensor(p, SHAPE(c.max_position_embeddings, d),
                                         "%s.embeddings.position_embedding.weight", model);
    e->layers = xcalloc((size_t)c.num_hidden_layers, sizeof *e->layers);
    for (int i = 0; i < c.num_hidden_layers; i++) {
        TextLayer *l = &e->layers[i];
        char *at = format("%s.encoder.layers.%d", model, i);
        l->heads = c.num_attention_heads, l->eps = c.layer_norm_eps, l->act = c.hidden_act;
        l->k_proj = layer_linear(p, d, d, true, "%s.self_attn.k_proj", at);
        l->v_proj = layer_linear(p, d, d, true, "%s.self_attn.v_proj", at);
        l->q_proj = layer_linear(p, d, d, true, "%s.self_attn.q_proj", at);
        l->out_proj = layer_linear(p, d, d, true, "%s.self_attn.out_proj", at);
        l->layer_norm1 = layer_norm_params(p, d, "%s.layer_norm1", at);
        l->fc1 = layer_linear(p, d, c.intermediate_size, true, "%s.mlp.fc1", at);
        l->fc2 = layer_linear(p, c.intermediate_size, d, true, "%s.mlp.fc2", at);
        l->layer_norm2 = layer_norm_params(p, d, "%s.layer_norm2", at);
        free(at);
    }
    e->final_layer_norm = layer_norm_params(p, d, "%s.final_layer_norm", model);
    return e;
}

void text_encoder_free(TextEncoder *e) {
    if (e) free(e->layers);
    free(e);
}

// A pre-norm transformer layer, (n, tokens, c) -> the same shape. Its attention is causal: a token sees
// itself and the tokens before it.
static Tensor *text_layer(const void *layer, Tensor *const *in) {
    const TextLayer *l = layer;
    Tensor *x = in[0], *h = layer_norm(x, l->layer_norm1, l->eps);
    h = attention(linear(h, l->q_proj), linear(h, l->k_proj), linear(h, l->v_proj), l->heads, true);
    x = linear_add(h, l->out_proj, x);
    h = linear(layer_norm(x, l->layer_norm2, l->eps), l->fc1);
    h = activation(h, l->act); // OpenAI's CLIP has "quick GELU", x sigmoid(1.702 x), instead of GELU
    return linear_add(h, l->fc2, x);
}

// [T4] Token ids (n, tokens) -> the last hidden states (n, tokens, hidden_size), after the final norm. The
// first layer's input is the sum of two embeddings: one of the token, one of its position in the caption.
Tensor *text_encode(const TextEncoder *e, const int *ids, int n) {
    return text_encode_first(e, ids, n, e->c.max_position_embeddings);
}

Tensor *text_encode_first(const TextEncoder *e, const int *ids, int n, int tokens) {
    int *positions = xmalloc((size_t)n * (size_t)tokens * sizeof(int));
    for (int i = 0; i < n * tokens; i++) positions[i] = i % tokens;
    Tensor *x = add(embed(e->token_embedding, ids, SHAPE(n, tokens)),
                    embed(e->position_embedding, positions, SHAPE(n, tokens)));
    free(positions);
    for (int i = 0; i < e->c.num_hidden_layers; i++)
        x = trace(run_block(text_layer, &e->layers[i], &x, 1), "text_encoder.text_model.encoder.layers.%d",
                  i);
    x = layer_norm(x, e->final_layer_norm, e->c.layer_norm_eps);
    return trace(x, "text_encoder.text_model.final_layer_norm");
}

// ---- Blocks that the UNet and the VAE share ---------------------------------------------------------------

typedef struct {
    int groups;
    float eps; // of the group norms: 1e-5 in the UNet, 1e-6 in the VAE
    Layer *norm1, *conv1, *time_emb_proj, *norm2, *conv2, *conv_shortcut;
} ResNet;

static ResNet resnet_new(Params *p, int in, int out, int temb, int groups, float eps, const char *at) {
    ResNet r = {.groups = groups, .eps = eps};
    r.norm1 = layer_norm_params(p, in, "%s.norm1", at);
    r.conv1 = layer_conv(p, in, out, 3, 3, true, "%s.conv1", at);
    if (temb) r.time_emb_proj = layer_linear(p, temb, out, true, "%s.time_emb_proj", at);
    r.norm2 = layer_norm_params(p, out, "%s.norm2", at);
    r.conv2 = layer_conv(p, out, out, 3, 3, true, "%s.conv2", at);
    if (in != out) r.conv_shortcut = layer_conv(p, in, out, 1, 1, true, "%s.conv_shortcut", at);
    return r;
}

// [T6] ResNet block, x (n, h, w, in) and silu of the timestep's embedding (n, channels) -> y (n, h, w, out):
//   h = conv1(silu(norm1(x))) + time_emb_proj(silu(temb));   y = x + conv2(silu(norm2(h)))
// If `in` and `out` differ, a 1x1 convolution gives x `out` channels (conv_shortcut). The VAE has no temb.
static Tensor *resnet(const void *layer, Tensor *const *in) {
    const ResNet *r = layer;
    Tensor *x = in[0], *h;
    if (r->time_emb_proj)
        h = norm_silu_conv2d_vector(x, r->norm1, r->groups, r->eps, r->conv1,
                                    linear(in[1], r->time_emb_proj));
    else
        h = norm_silu_conv2d(x, r->norm1, r->groups, r->eps, r->conv1, NULL);
    if (r->conv_shortcut) x = conv2d(x, r->conv_shortcut, 1, 0);
    return norm_silu_conv2d(h, r->norm2, r->groups, r->eps, r->conv2, x);
}

// Nearest-neighbour upsampling to twice the size, then a convolution. If the skip connection in[1] has an odd
// height or width, the upsampled picture is a row or a column too large and is cropped.
static Tensor *upsample_conv(const void *layer, Tensor *const *in) {
    int h = 2 * in[0]->shape[1], w = 2 * in[0]->shape[2];
    if (in[1]) h = in[1]->shape[1], w = in[1]->shape[2];
    return upsample_conv2d(in[0], layer, h, w);
}

// ---- The UNet ---------------------------------------------------------------------------------------------

// [T7] A transformer over pixels: self-attention, cross-attention to the caption, feed-forward.
typedef struct {
    int heads, groups;
    float eps; // of `norm`
    Layer *norm, *proj_in, *proj_out;
    Layer *norm1, *to_q1, *to_k1, *to_v1, *to_out1; // transformer_blocks.0.attn1: self-attention
    Layer *norm2, *to_q2, *to_k2, *to_v2, *to_out2; // transformer_blocks.0.attn2: cross-attention
    Layer *norm3, *ff_in, *ff_out;                  // transformer_blocks.0.ff.net.0.proj and net.2
} Transformer;

static Transformer transformer_new(Params *p, UNetConfig c, int channels, int heads, const char *at) {
    Transformer t = {.heads = heads, .groups = c.norm_num_groups, .eps = c.transformer_norm_eps};
    int d = channels, x = c.cross_attention_dim;
    t.norm = layer_norm_params(p, d, "%s.norm", at);
    t.proj_in = c.use_linear_projection ? layer_linear(p, d, d, true, "%s.proj_in", at)
                                        : layer_conv(p, d, d, 1, 1, true, "%s.proj_in", at);
    t.norm1 = layer_norm_params(p, d, "%s.transformer_blocks.0.norm1", at);
    t.to_q1 = layer_linear(p, d, d, false, "%s.transformer_blocks.0.attn1.to_q", at);
    t.to_k1 = layer_linear(p, d, d, false, "%s.transformer_blocks.0.attn1.to_k", at);
    t.to_v1 = layer_linear(p, d, d, false, "%s.transformer_blocks.0.attn1.to_v", at);
    t.to_out1 = layer_linear(p, d, d, true, "%s.transformer_blocks.0.attn1.to_out.0", at);
    t.norm2 = layer_norm_params(p, d, "%s.transformer_blocks.0.norm2", at);
    t.to_q2 = layer_linear(p, d, d, false, "%s.transformer_blocks.0.attn2.to_q", at);
    t.to_k2 = layer_linear(p, x, d, false, "%s.transformer_blocks.0.attn2.to_k", at);
    t.to_v2 = layer_linear(p, x, d, false, "%s.transformer_blocks.0.attn2.to_v", at);
    t.to_out2 = layer_linear(p, d, d, true, "%s.transformer_blocks.0.attn2.to_out.0", at);
    t.norm3 = layer_norm_params(p, d, "%s.transformer_blocks.0.norm3", at);
    // 8 d: the value and the gate of GEGLU, 4 d each
    t.ff_in = layer_linear(p, d, 8 * d, true, "%s.transformer_blocks.0.ff.net.0.proj", at);
    t.ff_out = layer_linear(p, 4 * d, d, true, "%s.transformer_blocks.0.ff.net.2", at);
    t.proj_out = c.use_linear_projection ? layer_linear(p, d, d, true, "%s.proj_out", at)
                                         : layer_conv(p, d, d, 1, 1, true, "%s.proj_out", at);
    return t;
}

// in: x (n, h, w, c), context (n, tokens, cross_attention_dim). In NHWC the pixels are a sequence of h w
// tokens already, so nothing is reshaped. Some checkpoints store proj_in and proj_out as 1x1 convolutions,
// others as linear layers. Both are the same matrix product.
static Tensor *transformer(const void *layer, Tensor *const *in) {
    const Transformer *t = layer;
    Tensor *context = in[1], *qkv[3];
    const float eps = 1e-5f; // of the layer norms
    Tensor *h = group_norm(in[0], t->norm, t->groups, t->eps);
    Tensor *x = linear(h, t->proj_in);
    h = layer_norm(x, t->norm1, eps);
    linear_three(qkv, h, (const Layer *[]){t->to_q1, t->to_k1, t->to_v1});
    h = attention(qkv[0], qkv[1], qkv[2], t->heads, false);
    x = linear_add(h, t->to_out1, x);
    // [T8] Cross-attention: queries from pixels, keys and values from the caption.
    h = layer_norm(x, t->norm2, eps);
    Tensor *q = trace(linear(h, t->to_q2), "%s", t->to_q2->name);
    Tensor *k = trace(linear_once(context, t->to_k2), "%s", t->to_k2->name);
    h = attention(q, k, linear_once(context, t->to_v2), t->heads, false);
    x = linear_add(h, t->to_out2, x);
    h = linear_geglu(layer_norm(x, t->norm3, eps), t->ff_in); // value * gelu(gate) (Shazeer 2020)
    x = linear_add(h, t->ff_out, x);
    return linear_add(x, t->proj_out, in[0]);
}

typedef struct {
    int layers;
    bool attends; // a transformer follows each ResNet
    ResNet resnets[MAX_LAYERS];
    Transformer attentions[MAX_LAYERS];
    Layer *sampler; // downsamplers.0.conv or upsamplers.0.conv; NULL in the last block
} UNetLevel;

struct UNet {
    UNetConfig c;
    Layer *conv_in, *time_linear1, *time_linear2, *time_cond_proj; // time_embedding.*
    UNetLevel down[MAX_LEVELS], up[MAX_LEVELS];
    ResNet mid_resnets[2];
    Transformer mid_attention;
    Layer *conv_norm_out, *conv_out;
    const Params *params; // `count` of them, from `first` on, are this network's
    int first, count;
};

UNet *unet_new(UNetConfig c, Params *p) {
    UNet *u = xcalloc(1, sizeof *u);
    const int *ch = c.block_out_channels, top = c.levels - 1, temb = 4 * ch[0]; // size of the time embedding
    int groups = c.norm_num_groups, d = ch[top];
    char at[128];
    u->c = c, u->params = p, u->first = p->count;
    u->conv_in = layer_conv(p, c.in_channels, ch[0], 3, 3, true, "unet.conv_in");
    u->time_linear1 = layer_linear(p, ch[0], temb, true, "unet.time_embedding.linear_1");
    if (c.time_cond_proj_dim)
        u->time_cond_proj =
            layer_linear(p, c.time_cond_proj_dim, ch[0], false, "unet.time_embedding.cond_proj");
    u->time_linear2 = layer_linear(p, temb, temb, true, "unet.time_embedding.linear_2");

    // As in unet(): h has `channels` channels on its way, and the skip connections have skips[].
    int channels = ch[0], skips[MAX_LEVELS * (MAX_LAYERS + 1)], kept = 0;
    skips[kept++] = channels;
    for (int i = 0; i <= top; i++) {
        UNetLevel *l = &u->down[i];
        *l = (UNetLevel){.layers = c.layers_per_block, .attends = c.cross_attention[i]};
        for (int j = 0; j < l->layers; j++) {
            snprintf(at, sizeof at, "unet.down_blocks.%d.resnets.%d", i, j);
            l->resnets[j] = resnet_new(p, channels, ch[i], temb, groups, c.norm_eps, at);
            snprintf(at, sizeof at, "unet.down_blocks.%d.attentions.%d", i, j);
            if (l->attends) l->attentions[j] = transformer_new(p, c, ch[i], c.heads[i], at);
            skips[kept++] = channels = ch[i];
        }
        if (i == top) continue;
        l->sampler = layer_conv(p, ch[i], ch[i], 3, 3, true, "unet.down_blocks.%d.downsamplers.0.conv", i);
        skips[kept++] = channels;
    }

    u->mid_resnets[0] = resnet_new(p, d, d, temb, groups, c.norm_eps, "unet.mid_block.resnets.0");
    u->mid_attention = transformer_new(p, c, d, c.heads[top], "unet.mid_block.attentions.0");
    u->mid_resnets[1] = resnet_new(p, d, d, temb, groups, c.norm_eps, "unet.mid_block.resnets.1");

    // Up block i mirrors down block `level`. Each of its ResNets reads h concatenated with a skip connection:
    // the outputs of the down block's layers, from last to first, and then the down block's input.
    for (int i = 0; i <= top; i++) {
        int level = top - i, out = ch[level];
        UNetLevel *l = &u->up[i];
        *l = (UNetLevel){.layers = c.layers_per_block + 1, .attends = c.cross_attention[level]};
        for (int j = 0; j < l->layers; j++) {
            int in = channels + skips[--kept];
            snprintf(at, sizeof at, "unet.up_blocks.%d.resnets.%d", i, j);
            l->resnets[j] = resnet_new(p, in, out, temb, groups, c.norm_eps, at);
            snprintf(at, sizeof at, "unet.up_blocks.%d.attentions.%d", i, j);
            if (l->attends) l->attentions[j] = transformer_new(p, c, out, c.heads[level], at);
            channels = out;
        }
        if (i < top)
            l->sampler = layer_conv(p, out, out, 3, 3, true, "unet.up_blocks.%d.upsamplers.0.conv", i);
    }
    u->conv_norm_out = layer_norm_params(p, ch[0], "unet.conv_norm_out");
    u->conv_out = layer_conv(p, ch[0], c.out_channels, 3, 3, true, "unet.conv_out");
    u->count = p->count - u->first;
    return u;
}

UNet *unet_view(UNetConfig c, const Params *owner, Params *params) {
    UNet *u = unet_new(c, params);
    for (int i = 0; i < params->count; i++) {
        Tensor *t = params->list[i].tensor;
        const Tensor *own = params_find(owner, params->list[i].name);
        if (!own || tensor_count(own) != tensor_count(t))
            die("%s: the network whose weights are to be shared has no such parameter", params->list[i].name);
        t->type = own->type, t->data = own->data;
    }
    return u;
}

void unet_view_free(UNet *u, Params *params) {
    for (int i = 0; i < params->count; i++) params->list[i].tensor->data = NULL; // the owner's
    params_free(params);
    free(u);
}

// The embedding of a full LCM's guidance scale w, (n, dim): first the sines, then the cosines of the angles
//   1000 w / 10000^(i / (half - 1)),   i = 0, ..., half - 1,   half = dim / 2
// For w = 14 the largest is 14,000 rad. There neighbouring fp32 numbers are 0.001 apart, so rounding changes
// the third decimal of a sine. Every step rounds as diffusers' get_guidance_scale_embedding does.
Tensor *guidance_embedding(const float *guidance, int n, int dim) {
    int half = dim / 2;
    float *f = scope_floats(half), *scaled = scope_floats(n), ratio = 9.2103404f / (float)(half - 1);
    for (int i = 0; i < half; i++) f[i] = (float)exp((double)((float)i * -ratio));
    for (int r = 0; guidance && r < n; r++) scaled[r] = guidance[r] * 1000;
    return sinusoid(scaled, f, n, dim, false);
}

// The same of the timesteps t, and as diffusers' get_timestep_embedding rounds it, by which the networks were
// trained: t / 10000^(i / (half - shift)).
static Tensor *timestep_embedding(const UNet *u, const float *t, int n) {
    int dim = u->c.block_out_channels[0], half = dim / 2;
    float *f = scope_floats(half);
    for (int i = 0; i < half; i++) {
        float exponent = -9.210340371976184f * (float)i / ((float)half - u->c.freq_shift); // ln 10000
        f[i] = (float)exp((double)exponent);
    }
    return sinusoid(t, f, n, dim, u->c.flip_sin_to_cos);
}

// timesteps (n) -> (n, 4 * block_out_channels[0]): sinusoids, cosines before sines (flip_sin_to_cos), and two
// linear layers. A full LCM adds the embedding of its guidance scale before the first of them.
static Tensor *time_embedding(const UNet *u, const float *timesteps, const float *guidance, int n) {
    Tensor *e = timestep_embedding(u, timesteps, n);
    if (u->time_cond_proj)
        e = linear_add(guidance_embedding(guidance, n, u->c.time_cond_proj_dim), u->time_cond_proj, e);
    return linear(activation(linear(e, u->time_linear1), SILU), u->time_linear2);
}

static Tensor *downsample(const void *layer, Tensor *const *in) { return conv2d(in[0], layer, 2, 1); }

// [T5] Predicts the noise in x at each picture's timestep, given the text states (context). The data pass
// through the down blocks, the middle block and the up blocks. On the way down the output of every layer is
// kept as a skip connection. On the way up each ResNet also reads one skip connection, the newest first.
//
// This is Stable Diffusion v1.5 for pictures of 512 x 512 pixels, that is, latents of 64 x 64. Where a block
// has cross-attention, a transformer follows each ResNet. Down blocks end with downsampling, up blocks with
// upsampling, except the last of each.
//
//   block            channels into its ResNets     side      heads   cross-attention
//   conv_in             4 -> 320                   64
//   down_blocks.0     320,  320         ->  320    64 -> 32      8   yes
//   down_blocks.1     320,  640         ->  640    32 -> 16      8   yes
//   down_blocks.2     640, 1280         -> 1280    16 -> 8       8   yes
//   down_blocks.3    1280, 1280         -> 1280     8            -   no
//   mid_block        1280, 1280         -> 1280     8            8   yes, one transformer
//   up_blocks.0      2560, 2560, 2560   -> 1280     8 -> 16      -   no
//   up_blocks.1      2560, 2560, 1920   -> 1280    16 -> 32      8   yes
//   up_blocks.2      1920, 1280,  960   ->  640    32 -> 64      8   yes
//   up_blocks.3       960,  640,  640   ->  320    64            8   yes
//   conv_out          320 -> 4                     64
static Tensor *unet_blocks(const void *layer, Tensor *const *in) {
    const UNet *u = layer;
    Tensor *temb = in[1], *context = in[2];
    Tensor *h = trace(conv2d(in[0], u->conv_in, 1, 1), "unet.conv_in");
    Tensor *skips[MAX_LEVELS * (MAX_LAYERS + 1)];
    int kept = 0;
    skips[kept++] = h;

    for (int i = 0; i < u->c.levels; i++) {
        const UNetLevel *l = &u->down[i];
        for (int j = 0; j < l->layers; j++) {
            h = run_block(resnet, &l->resnets[j], (Tensor *[]){h, temb}, 2);
            trace(h, "unet.down_blocks.%d.resnets.%d", i, j);
            if (l->attends) {
                h = run_block(transformer, &l->attentions[j], (Tensor *[]){h, context}, 2);
                trace(h, "unet.down_blocks.%d.attentions.%d", i, j);
            }
            skips[kept++] = h;
        }
        if (l->sampler) {
            h = run_block(downsample, l->sampler, &h, 1);
            skips[kept++] = trace(h, "unet.down_blocks.%d.downsamplers.0", i);
        }
    }

    h = trace(run_block(resnet, &u->mid_resnets[0], (Tensor *[]){h, temb}, 2), "unet.mid_block.resnets.0");
    h = trace(run_block(transformer, &u->mid_attention, (Tensor *[]){h, context}, 2),
              "unet.mid_block.attentions.0");
    h = trace(run_block(resnet, &u->mid_resnets[1], (Tensor *[]){h, temb}, 2), "unet.mid_block.resnets.1");

    for (int i = 0; i < u->c.levels; i++) {
        const UNetLevel *l = &u->up[i];
        for (int j = 0; j < l->layers; j++) {
            Scope s = scope_begin();
            h = run_block(resnet, &l->resnets[j], (Tensor *[]){concat(h, skips[--kept]), temb}, 2);
            h = scope_end(s, h);
            trace(h, "unet.up_blocks.%d.resnets.%d", i, j);
            if (l->attends) {
                h = run_block(transformer, &l->attentions[j], (Tensor *[]){h, context}, 2);
                trace(h, "unet.up_blocks.%d.attentions.%d", i, j);
            }
        }
        if (l->sampler) {
            h = run_block(upsample_conv, l->sampler, (Tensor *[]){h, skips[kept - 1]}, 2);
            trace(h, "unet.up_blocks.%d.upsamplers.0", i);
        }
    }
    h = norm_silu_conv2d(h, u->conv_norm_out, u->c.norm_num_groups, u->c.norm_eps, u->conv_out, NULL);
    return trace(h, "unet.conv_out");
}

// The same from the timesteps on. The blocks may be one launch on a GPU: all that the host gives comes
// before.
Tensor *unet(const UNet *u, Tensor *x, const float *timesteps, Tensor *context, const float *guidance) {
    Tensor *eps = tensor_new_type(SHAPE(x->shape[0], x->shape[1], x->shape[2], u->c.out_channels), F32);
    Scope whole = scope_begin();
    Tensor *temb = trace(time_embedding(u, timesteps, guidance, x->shape[0]), "unet.time_embedding");
    temb = activation(temb, SILU); // once for all ResNets
    uint64_t state = params_state(u->params, u->first, u->count, hash_more(0, u, sizeof *u));
    eps = run_repeated(eps, unet_blocks, u, state, (Tensor *[]){x, temb, context}, 3);
    scope_end(whole, NULL);
    return in_f32(eps);
}

// ---- The VAE (Kingma and Welling 2013; Esser et al. 2021): pixels <-> latents, an eighth as high and wide

typedef struct {
    int groups;
    Layer *group_norm, *to_q, *to_k, *to_v, *to_out;
} VaeAttention;

typedef struct {
    ResNet resnets[MAX_LAYERS];
    Layer *sampler;
} VaeLevel;

typedef struct { // the encoder and the decoder alike
    Layer *conv_in, *conv_norm_out, *conv_out;
    VaeLevel levels[MAX_LEVELS];
    ResNet mid_resnets[2];
    VaeAttention mid_attention;
} VaeHalf;

struct Vae {
    VaeConfig c;
    VaeHalf encoder, decoder;
    Layer *quant_conv, *post_quant_conv; // 1x1: the last layer of vae_encode(), the first of vae_decode()
};

static const float vae_eps = 1e-6f;

// The encoder (down) or the decoder: the encoder's levels from last to first, each with one ResNet more.
static void vae_half_new(VaeHalf *v, VaeConfig c, Params *p, bool down, int in, int out) {
    const char *half = down ? "vae.encoder" : "vae.decoder", *way = down ? "down" : "up";
    int top = c.levels - 1, groups = c.norm_num_groups, d = c.block_out_channels[top];
    int channels = down ? c.block_out_channels[0] : d;
    char at[128];
    v->conv_in = layer_conv(p, in, channels, 3, 3, true, "%s.conv_in", half);
    for (int i = 0; i <= top; i++) {
        int next = c.block_out_channels[down ? i : top - i];
        for (int j = 0; j < c.layers_per_block + !down; j++, channels = next) {
            snprintf(at, sizeof at, "%s.%s_blocks.%d.resnets.%d", half, way, i, j);
            v->levels[i].resnets[j] = resnet_new(p, channels, next, 0, groups, vae_eps, at);
        }
        snprintf(at, sizeof at, "%s.%s_blocks.%d.%ssamplers.0.conv", half, way, i, way);
        if (i < top) v->levels[i].sampler = layer_conv(p, next, next, 3, 3, true, "%s", at);
    }
    snprintf(at, sizeof at, "%s.mid_block.attentions.0", half);
    v->mid_attention.groups = groups;
    v->mid_attention.group_norm = layer_norm_params(p, d, "%s.group_norm", at);
    v->mid_attention.to_q = layer_linear(p, d, d, true, "%s.to_q", at);
    v->mid_attention.to_k = layer_linear(p, d, d, true, "%s.to_k", at);
    v->mid_attention.to_v = layer_linear(p, d, d, true, "%s.to_v", at);
    v->mid_attention.to_out = layer_linear(p, d, d, true, "%s.to_out.0", at);
    for (int i = 0; i < 2; i++) {
        snprintf(at, sizeof at, "%s.mid_block.resnets.%d", half, i);
        v->mid_resnets[i] = resnet_new(p, d, d, 0, groups, vae_eps, at);
    }
    v->conv_norm_out = layer_norm_params(p, channels, "%s.conv_norm_out", half);
    v->conv_out = layer_conv(p, channels, out, 3, 3, true, "%s.conv_out", half);
}

Vae *vae_new(VaeConfig c, Params *p) {
    Vae *v = xcalloc(1, sizeof *v);
    int z = c.latent_channels;
    v->c = c;
    vae_half_new(&v->encoder, c, p, true, 3, 2 * z);
    vae_half_new(&v->decoder, c, p, false, z, 3);
    v->quant_conv = layer_conv(p, 2 * z, 2 * z, 1, 1, true, "vae.quant_conv");
    v->post_quant_conv = layer_conv(p, z, z, 1, 1, true, "vae.post_quant_conv");
    return v;
}

// A single head as wide as all channels: every pixel attends to every other.
static Tensor *vae_attention(const void *layer, Tensor *const *in) {
    const VaeAttention *a = layer;
    Tensor *h = group_norm(in[0], a->group_norm, a->groups, vae_eps);
    h = attention(linear(h, a->to_q), linear(h, a->to_k), linear(h, a->to_v), 1, false);
    return linear_add(h, a->to_out, in[0]);
}

static Tensor *vae_mid(const VaeHalf *v, Tensor *h, const char *half) {
    h = trace(run_block_over(resnet, &v->mid_resnets[0], h), "vae.%s.mid_block.resnets.0", half);
    h = trace(run_block_over(vae_attention, &v->mid_attention, h), "vae.%s.mid_block.attentions.0", half);
    return trace(run_block_over(resnet, &v->mid_resnets[1], h), "vae.%s.mid_block.resnets.1", half);
}

// The VAE's downsampling pads only below and on the right, one row and one column (F.pad(0, 1, 0, 1) in the
// original code). The weights were trained with this padding.
static Tensor *vae_downsample(const void *layer, Tensor *const *in) {
    return conv2d_padded(in[0], layer, 2, 0, 0, in[0]->shape[1] / 2, in[0]->shape[2] / 2);
}

Tensor *vae_encode(const Vae *v, Tensor *pixels) {
    const VaeHalf *e = &v->encoder;
    Scope whole = scope_begin();
    Tensor *h = trace(conv2d(pixels, e->conv_in, 1, 1), "vae.encoder.conv_in");
    for (int i = 0; i < v->c.levels; i++) {
        for (int j = 0; j < v->c.layers_per_block; j++)
            h = trace(run_block_over(resnet, &e->levels[i].resnets[j], h),
                      "vae.encoder.down_blocks.%d.resnets.%d", i, j);
        if (e->levels[i].sampler)
            h = trace(run_block_over(vae_downsample, e->levels[i].sampler, h),
                      "vae.encoder.down_blocks.%d.downsamplers.0", i);
    }
    h = vae_mid(e, h, "encoder");
    h = norm_silu_conv2d(h, e->conv_norm_out, v->c.norm_num_groups, vae_eps, e->conv_out, NULL);
    trace(h, "vae.encoder.conv_out");
    return scope_end(whole, in_f32(trace(linear(h, v->quant_conv), "vae.quant_conv")));
}

// [T11] Latents (n, h, w, 4) -> pixels (n, 8 h, 8 w, 3): first the middle, at the size of the latents, then
// four levels. After each of the first three the picture is upsampled.
Tensor *vae_decode(const Vae *v, Tensor *latents) {
    const VaeHalf *d = &v->decoder;
    Scope whole = scope_begin();
    Tensor *h = trace(linear(latents, v->post_quant_conv), "vae.post_quant_conv");
    h = trace(conv2d(h, d->conv_in, 1, 1), "vae.decoder.conv_in");
    h = vae_mid(d, h, "decoder");
    for (int i = 0; i < v->c.levels; i++) {
        for (int j = 0; j <= v->c.layers_per_block; j++)
            h = trace(run_block_over(resnet, &d->levels[i].resnets[j], h),
                      "vae.decoder.up_blocks.%d.resnets.%d", i, j);
        if (d->levels[i].sampler)
            h = trace(run_block_over(upsample_conv, d->levels[i].sampler, h),
                      "vae.decoder.up_blocks.%d.upsamplers.0", i);
    }
    h = norm_silu_conv2d(h, d->conv_norm_out, v->c.norm_num_groups, vae_eps, d->conv_out, NULL);
    return scope_end(whole, trace(h, "vae.decoder.conv_out"));
}

// ---- Schedulers: how much noise there is at timestep t, and the step from t to the next timestep ----------

// beta, the variance of the noise that timestep t adds (Ho et al. 2020). PyTorch keeps it in fp32.
static float beta_at(const SchedulerConfig *c, int t) {
    int n = c->num_train_timesteps;
    if (c->trained_betas) return (float)c->trained_betas->items[t].number;
    if (c->beta_schedule == COSINE_BETAS) { // alphas_cumprod is a squared cosine
        double now = cos(((double)t / n + 0.008) / 1.008 * acos(0)),
               next = cos(((double)(t + 1) / n + 0.008) / 1.008 * acos(0));
        return (float)fmin(1 - next * next / (now * now), 0.999);
    }
    bool squared = c->beta_schedule == SCALED_LINEAR_BETAS;
    float first = (float)(squared ? sqrt(c->beta_start) : c->beta_start);
    float last = (float)(squared ? sqrt(c->beta_end) : c->beta_end);
    // As in torch.linspace: up from `first` in the first half, then down from `last`. One rounding each.
    double step = n > 1 ? (double)((last - first) / (float)(n - 1)) : 0;
    float beta = (float)(t < n / 2 ? (double)first + step * t : (double)last - step * (n - 1 - t));
    return squared ? (float)((double)beta * (double)beta) : beta;
}

// [S1] alphas_cumprod[t] is the product of 1 - beta over the timesteps 0 to t: how noisy a latent is at t.
//   z_t = sqrt(a) z_0 + sqrt(1 - a) eps,   a = alphas_cumprod[t]
// PyTorch multiplies in double precision.
static float *alphas_cumprod(const SchedulerConfig *c) {
    int n = c->num_train_timesteps;
    float *a = xmalloc((size_t)n * sizeof(float));
    double product = 1;
    for (int i = 0; i < n; i++) a[i] = 1 - beta_at(c, i);
    if (c->zero_snr) remove_last_signal(a, n);
    for (int i = 0; i < n; i++) {
        a[i] = (float)(product *= (double)a[i]);
        if (!(a[i] >= 0 && a[i] <= (i ? a[i - 1] : 1)))
            die("scheduler_config.json: the betas are no noise schedule: each must be from 0 to 1");
    }
    return a;
}

void scheduler_init(Scheduler *s, SchedulerConfig c) {
    *s = (Scheduler){.config = c, .alphas_cumprod = alphas_cumprod(&c)};
    // A sigma cannot be infinite. diffusers leaves a trace of the picture here, fp16's smallest number.
    if (c.zero_snr && in_sigmas(s)) s->alphas_cumprod[c.num_train_timesteps - 1] = 0x1p-24f;
}

void scheduler_free(Scheduler *s) {
    for (int i = 0; i < 4; i++) tensor_discard(s->history[i]);
    tensor_discard(s->held);
    free(s->alphas_cumprod), free(s->timesteps), free(s->sigmas);
    *s = (Scheduler){0};
}

// [S4] The timestep at place i of `steps`, from noisy to clean. Leading includes timestep 0 (+ steps_offset),
// trailing the noisiest, linspace both (Lin et al. 2023, table 2). NumPy's arithmetic to the last bit decides
// where halves are rounded to. Where its arange() makes one step more than asked for, as for 61 "trailing"
// ones, diffusers goes on to timestep -1 and ruins the picture; here it is the steps asked for.
static float spaced_timestep(const SchedulerConfig *c, int steps, int i) {
    // DPM-Solver++ leaves out the last of steps + 1 timesteps, which is the end.
    int train = c->num_train_timesteps;
    int points = steps + (c->kind == DPMPP_2M || c->kind == DPMPP_2M_KARRAS), k = points - 1 - i;
    if (c->timestep_spacing == LEADING) return (float)(k * (train / points) + c->steps_offset);
    if (c->timestep_spacing == TRAILING) {
        double next = train - (double)train / steps;
        return (float)nearbyint(train + i * (next - train)) - 1;
    }
    double t = points > 1 ? k * ((train - 1.0) / (points - 1)) : 0;
    if (k && k == points - 1) t = train - 1;
    return (float)(c->kind == EULER || c->kind == EULER_ANCESTRAL ? t : nearbyint(t));
}

// The timesteps at which the network is evaluated, from noisy to clean.
void scheduler_set_timesteps(Scheduler *s, int steps) {
    const SchedulerConfig *c = &s->config;
    int train = c->num_train_timesteps;
    if (steps < 1 || steps > train) die("--steps is %d; it must be from 1 to %d", steps, train);
    s->step_ratio = train / steps;
    s->timesteps = xrealloc(s->timesteps, (size_t)(steps + 1) * sizeof *s->timesteps);
    s->count = steps, s->at = 0, s->steps_taken = 0, s->history_count = 0;
    // An LCM was distilled at `original` timesteps only: k - 1, 2k - 1, ... Take `steps` of them, evenly
    // spaced, beginning with the noisiest. TCD does the same.
    bool distilled = c->kind == LCM || c->kind == TCD;
    int original = c->original_inference_steps, k = distilled ? train / original : 0;
    if (distilled && steps > original)
        die("--steps is %d; the schedule of a distilled model has %d timesteps to choose from", steps,
            original);
    for (int i = 0; i < steps; i++) {
        float t = distilled ? (float)((original - (int)floor(i * ((double)original / steps))) * k - 1)
                            : spaced_timestep(c, steps, i);
        if (!(t < (float)train))
            die("--steps %d asks for timestep %g; the schedule ends at %d", steps, (double)t, train - 1);
        if (i && t >= s->timesteps[i - 1]) die("--steps is %d; two of the timesteps would be one", steps);
        s->timesteps[i] = t;
    }
    if (c->kind == PNDM && steps > 1) { // the second timestep comes twice: see pndm_step
        memmove(s->timesteps + 2, s->timesteps + 1, (size_t)(steps - 1) * sizeof *s->timesteps);
        s->count = steps + 1;
    }
    if (in_sigmas(s)) sigma_schedule(s);
    bool blind = c->prediction_type == EPSILON; // diffusers divides by 0 there, and draws black
    const char *key = c->zero_snr        ? "rescale_betas_zero_snr"
                      : c->trained_betas ? "trained_betas"
                                         : "beta_end";
    if ((blind || in_sigmas(s)) && !(s->alphas_cumprod[(int)s->timesteps[0]] > 0))
        die("scheduler_config.json: \"%s\" leaves nothing of the picture at timestep %g, where %s", key,
            (double)s->timesteps[0],
            blind ? "a network that predicts the noise (\"prediction_type\" 'epsilon') cannot begin"
                  : "sigma is infinite");
}

void scheduler_skip(Scheduler *s, int count) {
    s->at = count;
    if (s->at >= s->count) die("--strength is too small: no step is left to run");
}

// t < 0 is the end, after the last timestep.
static float cumprod_at(const Scheduler *s, int t) {
    return t >= 0 ? s->alphas_cumprod[t] : s->config.set_alpha_to_one ? 1 : s->alphas_cumprod[0];
}

Times times_at(const Scheduler *s, const int *t, int n) {
    float *t_alpha_sigma = scope_floats(3 * n);
    Times at = {n, t_alpha_sigma, t_alpha_sigma + n, t_alpha_sigma + 2 * n};
    for (int i = 0; i < n; i++) {
        float a = s->alphas_cumprod[t[i]];
        at.t[i] = (float)t[i], at.alpha[i] = sqrtf(a), at.sigma[i] = sqrtf(1 - a);
    }
    return at;
}

Tensor *noised(Times at, Tensor *z, Tensor *noise) { return combine_each(at.alpha, z, at.sigma, noise); }

// [S3] A network's output `out` is eps, v = alpha eps - sigma x0 (Salimans and Ho 2022) or x0 ("sample").
// As z = alpha x0 + sigma eps, each of them gives both x0, the prediction of z_0, and eps, that of the noise:
//
//   out is   x0                                  eps
//   eps      (1 / alpha) z - (sigma / alpha) out   out
//   v        alpha z - sigma out                   alpha out + sigma z
//   x0       out                                   (1 / sigma) z - (alpha / sigma) out
Tensor *predicted_x0(const Scheduler *s, Times at, Tensor *z, Tensor *out) {
    if (s->config.prediction_type == SAMPLE) return out;
    bool v = s->config.prediction_type == V_PREDICTION;
    float *a = scope_floats(2 * at.n), *b = a + at.n;
    for (int i = 0; i < at.n; i++) {
        a[i] = v ? at.alpha[i] : 1 / at.alpha[i];
        b[i] = v ? -at.sigma[i] : -at.sigma[i] / at.alpha[i];
    }
    return combine_each(a, z, b, out);
}

Tensor *predicted_eps(const Scheduler *s, Times at, Tensor *z, Tensor *out) {
    if (s->config.prediction_type == EPSILON) return out;
    if (s->config.prediction_type == V_PREDICTION) return combine_each(at.alpha, out, at.sigma, z);
    float *a = scope_floats(2 * at.n), *b = a + at.n;
    for (int i = 0; i < at.n; i++) a[i] = 1 / at.sigma[i], b[i] = -at.alpha[i] / at.sigma[i];
    return combine_each(a, z, b, out);
}

// In sampling all pictures of a batch are at the same timestep.
Times times_all_at(const Scheduler *s, int t, int n) {
    int *same = scope_ints(n);
    for (int i = 0; i < n; i++) same[i] = t;
    return times_at(s, same, n);
}

// [S5] DDIM (Song et al. 2020, equation 12, sigma 0): predicted x0 and eps, mixed for the next timestep.
static Tensor *ddim_step(const Scheduler *s, Tensor *z, Tensor *out) {
    int t = (int)s->timesteps[s->at];
    float a_prev = cumprod_at(s, t - s->step_ratio); // at the next step; diffusers calls it previous
    Times now = times_all_at(s, t, z->shape[0]);
    Tensor *x0 = predicted_x0(s, now, z, out), *eps = predicted_eps(s, now, z, out);
    return combine(sqrtf(a_prev), x0, sqrtf(1 - a_prev), eps);
}

// c_skip and c_out of a consistency model: 1 and 0 at t = 0, close to 0 and 1 at later t. See lcm_scalings().
void boundary_scalings(double sigma_data, double timestep_scaling, int t, float *c_skip, float *c_out) {
    double scaled = t * timestep_scaling;
    *c_skip = (float)(sigma_data * sigma_data / (scaled * scaled + sigma_data * sigma_data));
    *c_out = (float)(scaled / sqrt(scaled * scaled + sigma_data * sigma_data));
}

// LCM (Luo et al. 2023, algorithm 3). The consistency function f(z, t) = c_skip z + c_out x0 predicts z_0.
// Unless this is the last step, the prediction is noised again for the next timestep.
static Tensor *lcm_step(const Scheduler *s, Tensor *z, Tensor *out, Tensor *noise) {
    int t = (int)s->timesteps[s->at];
    float c_skip, c_out;
    boundary_scalings(0.5, (double)s->config.timestep_scaling, t, &c_skip, &c_out);
    Tensor *end = combine(c_out, predicted_x0(s, times_all_at(s, t, z->shape[0]), z, out), c_skip, z);
    if (s->at == s->count - 1) return end;
    float a_next = cumprod_at(s, (int)s->timesteps[s->at + 1]);
    return combine(sqrtf(a_next), end, sqrtf(1 - a_next), noise);
}

// PNDM's transfer of z from timestep t to `next`, given eps (Liu et al. 2022, equation 9, as in diffusers).
static Tensor *pndm_transfer(const Scheduler *s, Tensor *z, int t, int next, Tensor *eps) {
    double a = cumprod_at(s, t), b = cumprod_at(s, next);
    if (s->config.prediction_type == V_PREDICTION)
        eps = predicted_eps(s, times_all_at(s, t, z->shape[0]), z, eps);
    double denominator = a * sqrt(1 - b) + sqrt(a * (1 - a) * b);
    return combine((float)sqrt(b / a), z, (float)(-(b - a) / denominator), eps);
}

// Keeps the prediction as the newest of four.
static void remember(Scheduler *s, const Tensor *prediction) {
    Tensor *oldest = s->history[3];
    memmove(s->history + 1, s->history, 3 * sizeof s->history[0]);
    s->history[0] = oldest;
    tensor_keep(&s->history[0], prediction);
    s->history_count += s->history_count < 4;
}

// PNDM without its Runge-Kutta start ("skip_prk_steps") is a linear multistep method (Adams-Bashforth): it
// extrapolates from the last four predictions. The first step is taken twice, the second time with the mean
// of the predictions at both its ends (Heun's method). That is why 50 steps evaluate the network 51 times.
static Tensor *pndm_step(Scheduler *s, Tensor *z, Tensor *out) {
    int t = (int)s->timesteps[s->at];
    Tensor **e = s->history; // newest first
    if (s->steps_taken == 1)
        return pndm_transfer(s, s->held, t + s->step_ratio, t, combine(0.5f, out, 0.5f, e[0]));
    if (s->steps_taken == 0) tensor_keep(&s->held, z);
    remember(s, out);
    Tensor *eps = e[0];
    if (s->history_count == 2)
        eps = combine(3 / 2.0f, e[0], -1 / 2.0f, e[1]);
    else if (s->history_count == 3)
        eps = combine(1, combine(23 / 12.0f, e[0], -16 / 12.0f, e[1]), 5 / 12.0f, e[2]);
    else if (s->history_count == 4)
        eps = add(combine(55 / 24.0f, e[0], -59 / 24.0f, e[1]), combine(37 / 24.0f, e[2], -9 / 24.0f, e[3]));
    return pndm_transfer(s, z, t, t - s->step_ratio, eps);
}

bool scheduler_wants_noise(const Scheduler *s) {
    SchedulerKind kind = s->config.kind;
    return (kind == LCM || kind == EULER_ANCESTRAL || (kind == TCD && s->config.eta > 0)) &&
           s->at < s->count - 1;
}

// [T10] One step of the sampler: from z at this timestep to z at the next one, which has less noise.
Tensor *scheduler_step(Scheduler *s, Tensor *z, Tensor *out, Tensor *noise) {
    if (s->at >= s->count) die("the scheduler has no step left");
    Scope scope = scope_begin();
    Tensor *next = NULL;
    switch (s->config.kind) {
    case PNDM: next = pndm_step(s, z, out); break;
    case DDIM: next = ddim_step(s, z, out); break;
    case LCM: next = lcm_step(s, z, out, noise); break;
    case EULER:
    case EULER_ANCESTRAL: next = euler_step(s, z, out, noise); break; // these are in samplers.c
    case DPMPP_2M:
    case DPMPP_2M_KARRAS: next = dpmpp_2m_step(s, z, out); break;
    case TCD: next = tcd_step(s, z, out, noise); break;
    }
    s->at++, s->steps_taken++;
    return scope_end(scope, next);
}

// ---- Where a model comes from: configurations, pictures, files --------------------------------------------

int config_count(const Json *config, const char *file, const char *key, int fallback, int most) {
    double x = json_get_number(config, key, fallback);
    if (!(x >= 1 && x <= most) || x != floor(x))
        die("%s: \"%s\" is %g; a whole number from 1 to %d is expected", file, key, x, most);
    return (int)x;
}
enum { LARGEST = 1 << 20 }; // of all other sizes in a configuration

// The keys of each configuration: all of the reference's constructor (diffusers 0.42, transformers 5.23). A
// key that changes what the network computes is obeyed, or it has the one value with which the network is
// Stable Diffusion v1's. An absent key takes the constructor's default. NULL: it does nothing to a picture.
static const JsonKey unet_keys[] = {
    {"_class_name", "'UNet2DConditionModel'"},
    {"act_fn", "'silu'|'swish'"},
    {"attention_type|resnet_time_scale_shift", "'default'"},
    {"center_input_sample|class_embeddings_concat|dual_cross_attention|only_cross_attention|resnet_skip_time_act",
     "false"},
    {"addition_embed_type|addition_time_embed_dim|class_embed_type|cross_attention_norm|encoder_hid_dim|"
     "encoder_hid_dim_type|num_attention_heads|num_class_embeds|projection_class_embeddings_input_dim|"
     "quantization_config|reverse_transformer_layers_per_block|time_embedding_act_fn|time_embedding_dim|timestep_post_act",
     "null"},
    {"conv_in_kernel|conv_out_kernel", "3"},
    {"downsample_padding|mid_block_scale_factor|resnet_out_scale_factor|transformer_layers_per_block", "1"},
    {"dropout", "0"},
    {"flip_sin_to_cos|upcast_attention|use_linear_projection", "boolean"}, // all of attention is fp32 here
    {"cross_attention_dim|freq_shift|in_channels|layers_per_block|norm_eps|norm_num_groups|out_channels",
     "number"},
    {"mid_block_only_cross_attention|_use_default_values", "null|false|[]"},
    {"mid_block_type", "'UNetMidBlock2DCrossAttn'"}, // null: a network without a middle
    {"sample_size|time_cond_proj_dim", "number|null"},
    {"time_embedding_type", "'positional'"},
    {"attention_head_dim", "number|list"},
    {"block_out_channels|down_block_types|up_block_types", "list"},
    {"addition_embed_type_num_heads", NULL}, // of an embedding that is refused above
    {0}};
static const JsonKey vae_keys[] = {
    {"_class_name", "'AutoencoderKL'"},
    {"act_fn", "'silu'|'swish'"},
    {"in_channels|out_channels", "3"},
    {"latent_channels|layers_per_block|norm_num_groups|scaling_factor", "number"},
    {"latents_mean|latents_std|quantization_config|shift_factor|_use_default_values", "null|[]"},
    {"mid_block_add_attention|use_post_quant_conv|use_quant_conv", "true"},
    {"block_out_channels|down_block_types|up_block_types", "list"},
    {"force_upcast|sample_size", NULL}, // of half precision; of tiles, which nobody asks for here
    {0}};
static const JsonKey text_keys[] = {
    {"attention_dropout", "0"},
    {"hidden_act", "'quick_gelu'|'gelu'"},
    {"hidden_size|intermediate_size|layer_norm_eps|max_position_embeddings|num_attention_heads|num_hidden_layers|"
     "vocab_size",
     "number"},
    {"model_type", "'clip_text_model'|'clip'"},
    {"quantization_config|use_attention_mask", "false|null"},
    {"bos_token_id|eos_token_id|pad_token_id", NULL}, // the tokenizer's count
    {"projection_dim", NULL},                         // CLIP's, for comparing with pictures
    {"initializer_factor|initializer_range", NULL},   // how training began
    {"architectures|dropout|dtype|torch_dtype|transformers_version", NULL},
    {0}};

// "block_out_channels": the channels of each level. Returns how many levels there are.
static int read_levels(const Json *config, const char *file, int groups, int channels[MAX_LEVELS]) {
    const Json *list = json_get(config, "block_out_channels");
    if (!list || list->length < 1 || list->length > MAX_LEVELS)
        die("%s: \"block_out_channels\" must list 1 to %d levels", file, MAX_LEVELS);
    for (size_t i = 0; i < list->length; i++) {
        double x = list->items[i].kind == JSON_NUMBER ? list->items[i].number : 0;
        if (!(x >= 1 && x <= LARGEST) || fmod(x, groups) != 0)
            die("%s: \"block_out_channels\"[%zu] is %s channels; %d groups (\"norm_num_groups\") must divide it",
                file, i, json_text(&list->items[i], '\''), groups);
        channels[i] = (int)x;
    }
    return (int)list->length;
}

// The kind of block i, one for each level; `otherwise` where the list is absent and there are four.
static const char *block_type(const Json *config, const char *file, const char *key, int i, int levels,
                              const char *otherwise) {
    const Json *list = json_get(config, key);
    if (!list && levels == 4) return otherwise;
    if (!list || list->length != (size_t)levels || list->items[i].kind != JSON_STRING)
        die("%s: \"%s\" must list the kinds of %d blocks, as many as \"block_out_channels\" has levels", file,
            key, levels);
    return list->items[i].string;
}

TextConfig text_config(const Json *j) {
    const char *file = json_file(j);
    if (json_get(j, "text_config")) j = json_get(j, "text_config"); // of all of CLIP
    json_check_keys(j, file, text_keys);
    const char *act = json_get_string(j, "hidden_act", "quick_gelu");
    TextConfig c = {.vocab_size = config_count(j, file, "vocab_size", 49408, LARGEST),
                    .hidden_size = config_count(j, file, "hidden_size", 512, LARGEST),
                    .num_hidden_layers = config_count(j, file, "num_hidden_layers", 12, 1000),
                    .num_attention_heads = config_count(j, file, "num_attention_heads", 8, LARGEST),
                    .intermediate_size = config_count(j, file, "intermediate_size", 2048, LARGEST),
                    .max_position_embeddings = config_count(j, file, "max_position_embeddings", 77, LARGEST),
                    .hidden_act = strcmp(act, "gelu") ? QUICK_GELU : GELU,
                    .layer_norm_eps = (float)json_get_number(j, "layer_norm_eps", 1e-5)};
    if (c.hidden_size % c.num_attention_heads)
        die("%s: \"hidden_size\": %d does not divide into \"num_attention_heads\": %d", file, c.hidden_size,
            c.num_attention_heads);
    return c;
}

UNetConfig unet_config(const Json *j) {
    const char *file = json_file(j);
    json_check_keys(j, file, unet_keys);
    UNetConfig c = {
        .in_channels = config_count(j, file, "in_channels", 4, LARGEST),
        .out_channels = config_count(j, file, "out_channels", 4, LARGEST),
        .sample_size = config_count(j, file, "sample_size", 64, 2048),
        .layers_per_block = config_count(j, file, "layers_per_block", 2, MAX_LAYERS - 1),
        .cross_attention_dim = config_count(j, file, "cross_attention_dim", 1280, LARGEST),
        .norm_num_groups = config_count(j, file, "norm_num_groups", 32, LARGEST),
        .flip_sin_to_cos = json_get_bool(j, "flip_sin_to_cos", true),
        .use_linear_projection = json_get_bool(j, "use_linear_projection", false),
        .freq_shift = (float)json_get_number(j, "freq_shift", 0),
        .norm_eps = (float)json_get_number(j, "norm_eps", 1e-5),
        .transformer_norm_eps = 1e-6f, // of attentions.*.norm: not 1e-5, and nowhere in config.json
    };
    c.levels = read_levels(j, file, c.norm_num_groups, c.block_out_channels);
    // StableDiffusionPipeline takes a smaller size for a slip in files of diffusers before 0.9.
    const char *version = json_get_string(j, "_diffusers_version", "");
    if (c.sample_size < 64 && starts_with(version, "0.") && atoi(version + 2) < 9) c.sample_size = 64;
    const Json *guidance = json_get(j, "time_cond_proj_dim");
    if (guidance && guidance->kind != JSON_NULL)
        c.time_cond_proj_dim = config_count(j, file, "time_cond_proj_dim", 0, LARGEST);

    // "attention_head_dim" is the number of heads, not their size: a slip of diffusers' first release that
    // every published config.json carries. diffusers itself refuses "num_attention_heads".
    const Json *heads = json_get(j, "attention_head_dim");
    static const char *const downs[] = {"DownBlock2D", "CrossAttnDownBlock2D"};
    static const char *const ups[] = {"UpBlock2D", "CrossAttnUpBlock2D"};
    bool each = heads && heads->kind == JSON_ARRAY && heads->length == (size_t)c.levels;
    for (int i = 0; i < c.levels; i++) {
        const Json *own = each ? &heads->items[i] : heads;
        double n = !own ? 8 : own->kind == JSON_NUMBER ? own->number : 0;
        if (!(n >= 1) || n != floor(n) || fmod(c.block_out_channels[i], n) != 0)
            die("%s: \"attention_head_dim\", the number of heads, must divide %d channels (one number, or %d of them)",
                file, c.block_out_channels[i], c.levels);
        c.heads[i] = (int)n;
        const char *down = block_type(j, file, "down_block_types", i, c.levels, downs[i < 3]);
        const char *up = block_type(j, file, "up_block_types", c.levels - 1 - i, c.levels, ups[i < 3]);
        bool cross = c.cross_attention[i] = !strcmp(down, downs[1]);
        if (strcmp(down, downs[cross]) || strcmp(up, ups[cross]))
            die("%s: level %d has a '%s' and an '%s' (\"down_block_types\", \"up_block_types\"); what is supported "
                "is '%s' with '%s', or '%s' with '%s'",
                file, i, down, up, downs[1], ups[1], downs[0], ups[0]);
    }
    return c;
}

VaeConfig vae_config(const Json *j) {
    const char *file = json_file(j), *down = "DownEncoderBlock2D", *up = "UpDecoderBlock2D";
    json_check_keys(j, file, vae_keys);
    VaeConfig c = {.latent_channels = config_count(j, file, "latent_channels", 4, LARGEST),
                   .layers_per_block = config_count(j, file, "layers_per_block", 1, MAX_LAYERS - 1),
                   .norm_num_groups = config_count(j, file, "norm_num_groups", 32, LARGEST),
                   .scaling_factor = (float)json_get_number(j, "scaling_factor", 0.18215)};
    c.levels = read_levels(j, file, c.norm_num_groups, c.block_out_channels);
    if (c.levels != 4)
        die("%s: \"block_out_channels\" lists %d levels; 4 are supported: latents an eighth as wide as pictures",
            file, c.levels);
    if (c.scaling_factor == 0) die("%s: \"scaling_factor\" is 0", file);
    for (int i = 0; i < c.levels; i++)
        if (strcmp(block_type(j, file, "down_block_types", i, c.levels, ""), down) ||
            strcmp(block_type(j, file, "up_block_types", i, c.levels, ""), up))
            die("%s: \"down_block_types\" and \"up_block_types\" must list '%s' and '%s' only", file, down,
                up);
    return c;
}

// x (n, rows, cols) -> (n, cols, rows), a new array
static float *transposed(const float *x, int n, size_t rows, size_t cols) {
    float *y = xmalloc((size_t)n * rows * cols * sizeof(float)), *to = y;
    for (size_t i = 0; i < (size_t)n; i++)
        for (size_t c = 0; c < cols; c++)
            for (size_t r = 0; r < rows; r++) *to++ = x[(i * rows + r) * cols + c];
    return y;
}

float *nchw_to_nhwc(const float *x, int n, int c, int h, int w) {
    return transposed(x, n, (size_t)c, (size_t)h * (size_t)w);
}

float *nhwc_to_nchw(const float *x, int n, int c, int h, int w) {
    return transposed(x, n, (size_t)h * (size_t)w, (size_t)c);
}

Tensor *image_to_tensor(const Image *const *images, int n) {
    int h = images[0]->height, w = images[0]->width;
    size_t each = (size_t)h * (size_t)w * 3;
    float *x = xmalloc((size_t)n * each * sizeof(float));
    for (int i = 0; i < n; i++)
        for (size_t j = 0; j < each; j++) x[(size_t)i * each + j] = (float)images[i]->rgb[j] / 255 * 2 - 1;
    Tensor *t = tensor_from(SHAPE(n, h, w, 3), x);
    free(x);
    return t;
}

// Picture i of a batch in [-1, 1] to 8 bits, rounded to nearest even as diffusers' numpy does.
Image *tensor_to_image(const Tensor *pixels, int i) {
    int h = pixels->shape[1], w = pixels->shape[2];
    Image *image = image_new(w, h);
    float *x = tensor_read(pixels), *at = x + (size_t)i * (size_t)h * (size_t)w * 3;
    for (size_t j = 0; j < (size_t)h * (size_t)w * 3; j++) {
        float v = at[j] / 2 + 0.5f;
        if (!(v >= 0)) v = 0;
        if (v > 1) v = 1;
        image->rgb[j] = (unsigned char)nearbyintf(v * 255);
    }
    free(x);
    return image;
}

// ---- a model from its files -------------------------------------------------------------------------------

// The file of one part: the plain name, its fp16 variant, or an index of shards. A .bin is a pickle: refused.
static Store *open_part(const char *dir, const char *base) {
    static const char *const endings[] = {".safetensors", ".fp16.safetensors", ".safetensors.index.json",
                                          ".fp16.safetensors.index.json", ".bin"};
    Store *s = NULL;
    for (int i = 0; i < 5 && !s; i++) {
        char *path = format("%s/%s%s", dir, base, endings[i]);
        if (file_exists(path)) s = store_open(path);
        free(path);
    }
    if (!s) die("%s: no %s.safetensors there (nor its .fp16 or .index.json form)", dir, base);
    return s;
}

// The networks of a model: folders of diffusers' layout, and the files in them.
static const struct {
    ModelParts part;
    const char *folder, *file;
} networks[] = {{NEED_TEXT, "text_encoder", "model"},
                {NEED_UNET, "unet", "diffusion_pytorch_model"},
                {NEED_VAE, "vae", "diffusion_pytorch_model"}};

static void declare_network(Model *m, ModelParts part, Json *config) {
    if (part == NEED_TEXT)
        m->text_encoder = text_encoder_new(m->text_config = text_config(config), &m->params);
    else if (part == NEED_UNET)
        m->unet = unet_new(m->unet_config = unet_config(config), &m->params);
    else
        m->vae = vae_new(m->vae_config = vae_config(config), &m->params);
    json_free(config);
}

// A file, and in which spelling it has the names of each network: the one under which most are found.
typedef struct {
    const Store *store;
    int spelling[3];
} Source;

static Source source(const Store *s, const Params *p) {
    Source from = {.store = s};
    char spelled[512];
    for (int k = 0; k < 3; k++) {
        Params own = params_part(p, networks[k].folder);
        for (int i = 0, most = 0; own.count && name_spelling(own.list[0].name, i, spelled, 512); i++) {
            int found = 0;
            for (int j = 0; j < own.count; j++) {
                name_spelling(own.list[j].name, i, spelled, sizeof spelled);
                found += store_find(s, spelled) != NULL;
            }
            if (found > most) most = found, from.spelling[k] = i;
        }
    }
    return from;
}

// The stored tensor of a parameter.
static const Stored *find_tensor(void *context, const char *name) {
    const Source *from = context;
    char spelled[512];
    int k = 0;
    while (!starts_with(name, networks[k].folder)) k++;
    name_spelling(name, from->spelling[k], spelled, sizeof spelled);
    const Stored *t = store_find(from->store, spelled);
    if (t || ends_with(name, spelled)) return t; // params_load() says what is missing
    die("%s: tensor %s is missing (%s of diffusers)", store_at(from->store, 0)->file, spelled, name);
}

// Reads the parameters, and closes the file. all: what else the file has is noted.
static void load_params(const Params *p, Store *s, const char *path, bool all) {
    Source from = source(s, p);
    params_load(p, find_tensor, &from, path);
    if (all) params_note_extra(p, find_tensor, &from, s, path);
    store_close(s);
}

// Pipelines that draw a picture from a caption with one UNet; others (inpainting, SDXL, ...) need more.
static const JsonKey index_keys[] = {
    {"_class_name",
     "'StableDiffusionPipeline'|'StableDiffusionImg2ImgPipeline'|'LatentConsistencyModelPipeline'|"
     "'LatentConsistencyModelImg2ImgPipeline'"},
    {"text_encoder", "['transformers', 'CLIPTextModel']"},
    {"tokenizer", "['transformers', 'CLIPTokenizer']|['transformers', 'CLIPTokenizerFast']"},
    {"unet", "['diffusers', 'UNet2DConditionModel']"},
    {"vae", "['diffusers', 'AutoencoderKL']"},
    {"feature_extractor|image_encoder|requires_safety_checker|safety_checker|scheduler|sd_defaults", NULL},
    {0}};

static void load_folder(Model *m, ModelParts parts) {
    char *index = format("%s/model_index.json", m->path),
         *scheduler = format("%s/scheduler/scheduler_config.json", m->path);
    m->index_json = file_exists(index) ? json_load(index) : NULL;
    if (m->index_json) json_check_keys(m->index_json, index, index_keys);
    m->scheduler_json = scheduler_load(scheduler);
    free(index), free(scheduler);
    for (int i = 0; i < 3; i++) {
        if (!(parts & networks[i].part)) continue;
        char *folder = format("%s/%s", m->path, networks[i].folder),
             *config = format("%s/config.json", folder);
        declare_network(m, networks[i].part, json_load(config));
        Store *s = open_part(folder, networks[i].file);
        Params own = params_part(&m->params, networks[i].folder);
        load_params(&own, s, store_at(s, 0)->file, true);
        free(folder), free(config);
    }
}

// One file with all networks, as the original code saves them (CompVis/stable-diffusion, package `ldm`). Most
// published checkpoints are such files. The configuration is missing: v1.5's is assumed, and shapes must fit.
static void load_ldm(Model *m, ModelParts parts) {
    const char *path = m->path;
    Store *s = store_open(path);
    if (!store_find(s, "model.diffusion_model.input_blocks.0.0.weight"))
        die("%s is no Stable Diffusion checkpoint but holds %s: tensor "
            "model.diffusion_model.input_blocks.0.0.weight is missing",
            path, store_kind(s));
    const Stored *context =
        store_find(s, "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight");
    if (context && context->ndim == 2 && context->shape[1] != 768)
        die("%s is of another version of Stable Diffusion: its text states have %lld channels, not 768", path,
            (long long)context->shape[1]);
    bool guidance = store_find(s, "model.diffusion_model.time_embed.cond_proj.weight");
    const Architecture *a = architecture(guidance ? "sd15-lcm" : "sd15");
    const char *const configs[] = {a->text_encoder, a->unet, a->vae};
    m->scheduler_json = ldm_scheduler(s, path, a->scheduler);
    for (int i = 0; i < 3; i++)
        if (parts & networks[i].part)
            declare_network(m, networks[i].part,
                            json_parse(configs[i], strlen(configs[i]), "Stable Diffusion v1.5"));
    load_params(&m->params, s, path, parts == NEED_ALL);
}

// Do the networks and the tokenizer fit one another?
static void check_fit(const Model *m) {
    int in = m->unet_config.in_channels, out = m->unet_config.out_channels, z = m->vae_config.latent_channels;
    if (m->unet && in != out)
        die("%s: the UNet reads %d channels and writes %d; both must be the latents (models for inpainting read 9, "
            "InstructPix2Pix 8)",
            m->path, in, out);
    if (m->unet && m->vae && in != z)
        die("%s: the VAE's latents have %d channels, the UNet's %d", m->path, z, in);
    const TextConfig *text = &m->text_config;
    if (m->text_encoder && m->unet && text->hidden_size != m->unet_config.cross_attention_dim)
        die("%s: the text encoder gives %d channels a token, the UNet expects %d", m->path, text->hidden_size,
            m->unet_config.cross_attention_dim);
    if (!m->text_encoder || !m->tokenizer) return;
    int tokens = tokenizer_max_length(m->tokenizer), last = tokenizer_last(m->tokenizer);
    if (tokens > text->max_position_embeddings)
        die("%s: a caption has %d tokens (model_max_length in tokenizer_config.json, else 77), the text encoder "
            "%d positions",
            m->path, tokens, text->max_position_embeddings);
    if (last >= text->vocab_size)
        die("%s: the tokenizer has %d tokens, the text encoder knows %d", m->path, last + 1,
            text->vocab_size);
}

Model *model_load(const char *path, const char *tokenizer, ModelParts parts) {
    bool folder = is_directory(path);
    Model *m = xcalloc(1, sizeof *m);
    m->path = xstrdup(path);
    (folder ? load_folder : load_ldm)(m, parts);
    if (parts & NEED_TOKENIZER) {
        if (!tokenizer && !folder)
            die("%s holds no tokenizer; name the folder of one by --tokenizer DIR", path);
        char *own = format("%s/tokenizer", path);
        m->tokenizer = tokenizer_open(tokenizer ? tokenizer : own);
        free(own);
    }
    check_fit(m);
    // Captions are cut and padded to the tokenizer's length. The encoder may have more positions than that.
    if (m->tokenizer && m->text_encoder)
        m->text_config.max_position_embeddings = m->text_encoder->c.max_position_embeddings =
            tokenizer_max_length(m->tokenizer);
    return m;
}

void model_free(Model *m) {
    params_free(&m->params);
    text_encoder_free(m->text_encoder);
    free(m->unet), free(m->vae);
    if (m->tokenizer) tokenizer_close(m->tokenizer);
    if (m->index_json) json_free(m->index_json);
    json_free(m->scheduler_json);
    free(m->path), free(m);
}

// ---- a captioned data set as the model sees it ------------------------------------------------------------

static float *encode_moments(void *vae, const Image *const *images, int n) {
    Scope s = scope_begin();
    float *moments = tensor_read(vae_encode(vae, image_to_tensor(images, n)));
    scope_end(s, NULL);
    return moments;
}

Pairs *model_pairs(const Model *m, const char *data, const char *cache, int held_out) {
    Params vae = params_part(&m->params, "vae.");
    int side = m->unet_config.sample_size;
    PairsModel how = {.tokenizer = m->tokenizer,
                      .tokens = m->text_config.max_position_embeddings,
                      .size = 8 * side,
                      .side = side,
                      .channels = m->vae_config.latent_channels,
                      .scale = m->vae_config.scaling_factor,
                      .held_out = held_out,
                      .encoder = params_key(&vae),
                      .context = m->vae,
                      .encode = encode_moments};
    return pairs_open(data, cache, &how);
}
