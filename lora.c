// lora.c: Phase 3, low-rank adaptation (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models").
// A layer's weight W stays frozen; what is learnt is an update of low rank r beside it:
//
//   y = W x + (alpha / r) B A x,   A (r, in) called down, B (out, r) called up
//
// For Stable Diffusion v1.5 and r = 64 that is a file of 135 MB where the model has 3.4 GB, and a model can wear several.
// The file is in reading order: the adapters; plain fine-tuning (the baseline of the paper); the two ways to distill
// a model that needs few steps. Layers apply adapters themselves (linear and conv_layer in lib/nn/ops.c); model code
// knows nothing of them. File formats are in lib/io/lora_names.c, the command line in cli/lora.c.
// `[P1]` ... mark the stops of doc/READING.md, the way of a LoRA step.
#include "sd.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// ============================================================================================================
// Adapters
// ============================================================================================================

// Names that stand for several layers: each list is of ends of layer names.
static const struct {
    const char *group, *what, *ends[8];
} groups[] = {
    {"attention", "unet.", {"to_q", "to_k", "to_v", "to_out.0"}},
    {"ff", "unet.", {"ff.net.0.proj", "ff.net.2"}},
    {"resnet", "unet.", {"conv1", "conv2", "conv_shortcut", "time_emb_proj"}},
    {"proj", "unet.", {"proj_in", "proj_out"}},
    {"samplers", "unet.", {"samplers.0.conv"}},
    {"ends", "unet.", {"unet.conv_in", "time_embedding.linear_1", "time_embedding.linear_2"}},
    {"text", "text_encoder.", {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}},
};
// The layers of lcm-lora-sdv1-5.
static const char lcm_targets[] = "attention,ff,resnet,proj,samplers,ends";

static bool ends_with(const char *name, const char *end) {
    size_t n = strlen(name), m = strlen(end);
    return n >= m && !strcmp(name + n - m, end);
}

// Does `target` (a group, or a part of layer names) mean this layer?
static bool target_means(const char *target, const char *layer) {
    for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
        if (strcmp(target, groups[g].group)) continue;
        if (strncmp(layer, groups[g].what, strlen(groups[g].what))) return false;
        for (int i = 0; i < 8 && groups[g].ends[i]; i++)
            if (ends_with(layer, groups[g].ends[i])) return true;
        return false;
    }
    return strstr(layer, target) != NULL;
}

Layer **lora_layers(const Params *model, int *count) {
    Layer **layers = xcalloc((size_t)model->count + 1, sizeof *layers);
    *count = 0;
    for (int i = 0; i < model->count; i++) {
        const Parameter *p = &model->list[i];
        if (p->tensor->dims < 2 || !ends_with(p->name, ".weight") || !strncmp(p->name, "vae.", 4)) continue;
        char *name = format("%.*s", (int)strlen(p->name) - 7, p->name);
        Layer *l = params_layer(model, name); // embeddings are no layers
        if (l) layers[(*count)++] = l;
        free(name);
    }
    return layers;
}

LoraPart *lora_add(Lora *l, Layer *layer, int rank, float alpha) {
    const Tensor *w = layer->weight;
    l->parts = xrealloc(l->parts, (size_t)(l->count + 1) * sizeof *l->parts);
    LoraPart *p = &l->parts[l->count++];
    *p = (LoraPart){.layer = layer, .alpha = alpha};
    int shape[4];
    memcpy(shape, w->shape, sizeof shape); // (out, in) or (out, kh, kw, in)
    shape[0] = rank;
    p->adapter.down = param_tensor(&l->params, w->dims, shape, "%s.lora_A.weight", layer->name);
    p->adapter.up = param_tensor(&l->params, SHAPE(w->shape[0], rank), "%s.lora_B.weight", layer->name);
    param_allocate(p->adapter.down, F32), param_allocate(p->adapter.up, F32);
    return p;
}

// [P1] New adapters: down uniform in +-1 / sqrt(inputs), which is PyTorch's start for linear layers and convolutions
// and PEFT's for A; up zero. So B A = 0, and training begins at the model as it is.
Lora *lora_new(const Params *model, const char *targets, int rank, float alpha, Random *r) {
    if (!strcmp(targets, "lcm")) targets = lcm_targets;
    int count, wanted = 0;
    Layer **layers = lora_layers(model, &count);
    bool *chosen = xcalloc((size_t)count + 1, sizeof *chosen);
    char *list = xstrdup(targets);
    for (char *item = strtok(list, ","); item; item = strtok(NULL, ",")) {
        int matches = 0;
        for (int i = 0; i < count; i++)
            if (target_means(item, layers[i]->name)) wanted += !chosen[i], chosen[i] = true, matches++;
        if (!matches)
            die("the target \"%s\" matches no layer; groups are attention, ff, resnet, proj, samplers, ends, "
                "text and lcm, or give a part of layer names",
                item);
    }
    if (!wanted) die("the list of targets is empty");
    Lora *l = xcalloc(1, sizeof *l);
    for (int i = 0; i < count; i++) {
        if (!chosen[i]) continue;
        int in = layer_inputs(layers[i]), out = layers[i]->weight->shape[0], most = in > out ? in : out;
        if (rank < 1 || rank > most)
            die("the rank is %d; for the layer %s (%d x %d) it must be from 1 to %d", rank, layers[i]->name,
                out, in, most);
        LoraPart *p = lora_add(l, layers[i], rank, alpha);
        size_t n = tensor_count(p->adapter.down);
        float *x = xmalloc(n * sizeof(float)), bound = 1 / sqrtf((float)in);
        for (size_t k = 0; k < n; k++) x[k] = random_uniform(r) * (2 * bound) - bound;
        param_write(p->adapter.down, x);
        backend.sync();
        free(x);
        backend.fill(mem(p->adapter.up), 0, tensor_count(p->adapter.up));
    }
    free(layers), free(chosen), free(list);
    return l;
}

// [P2] From here on the layers see the adapters: a list hangs on each layer, so several sets may hang at once.
void lora_hang(Lora *l, float strength) {
    for (int i = 0; i < l->count; i++) {
        LoraPart *p = &l->parts[i];
        p->adapter.scale = strength * p->alpha / (float)p->adapter.down->shape[0];
        p->adapter.next = p->layer->adapters;
        p->layer->adapters = &p->adapter;
    }
}

void lora_take_off(Lora *l) {
    for (int i = 0; i < l->count; i++)
        for (Adapter **at = &l->parts[i].layer->adapters; *at; at = &(*at)->next)
            if (*at == &l->parts[i].adapter) {
                *at = (*at)->next;
                break;
            }
}

// W += scale B A, for good.
void lora_merge(const Lora *l, float strength) {
    for (int i = 0; i < l->count; i++) {
        const LoraPart *p = &l->parts[i];
        Tensor *w = p->layer->weight;
        int rank = p->adapter.down->shape[0];
        Scope s = scope_begin();
        Tensor *sum = w->type == F32 ? w : tensor_new_type(w->dims, w->shape, F32);
        if (sum != w) backend.copy(mem(sum), mem(w), tensor_count(w));
        adapter_add(sum, &p->adapter, strength * p->alpha / (float)rank);
        if (sum != w) backend.copy(mem(w), mem(sum), tensor_count(w));
        float *x = tensor_read(w);
        for (size_t k = 0; k < tensor_count(w); k++)
            if (!isfinite(x[k])) die("%s: merged, weight %zu is too large for its type", p->layer->name, k);
        free(x);
        scope_end(s, NULL);
    }
}

void lora_free(Lora *l) {
    lora_take_off(l);
    params_free(&l->params);
    free(l->parts), free(l->mode), free(l);
}

// ============================================================================================================
// Plain fine-tuning: the paper's baseline
// ============================================================================================================

// Noise prediction (Ho et al. 2020) with only the adapters learning:
//   z_t = sqrt(a_t) z + sqrt(1 - a_t) eps;   L = mean of weight(t) |eps_theta(z_t, t, c) - eps|^2
// weight(t) = min(SNR, gamma) / SNR with SNR = a_t / (1 - a_t) (Hang et al. 2023, "Efficient Diffusion Training via
// Min-SNR Weighting"): the nearly clean pictures, whose noise nobody can see, count less.
Tensor *lora_finetune_loss(const Scheduler *s, const UNet *net, Tensor *z, Tensor *noise, Tensor *text,
                           const int *t, float min_snr) {
    int n = z->shape[0];
    float *room = xmalloc(4 * (size_t)n * sizeof(float));
    float *time = room, *signal = room + n, *sigma = room + 2 * n, *weight = room + 3 * n;
    for (int i = 0; i < n; i++) {
        float a = s->alphas_cumprod[t[i]], snr = a / (1 - a);
        time[i] = (float)t[i], signal[i] = sqrtf(a), sigma[i] = sqrtf(1 - a);
        weight[i] = min_snr > 0 ? fminf(snr, min_snr) / snr : 1;
    }
    Tensor *z_t = combine_each(signal, z, sigma, noise);
    Tensor *loss = loss_between(unet(net, z_t, time, text, NULL), noise, weight, LOSS_MSE, 0);
    free(room);
    return loss;
}

// What a step draws on the host: pictures with captions, noise, timesteps, guidance scales.
typedef struct {
    PairsBatch pairs;
    float *noise, *w; // (n, side, side, channels), (n)
    int *t;           // (n)
} Draw;

static Draw draw_new(const Pairs *p, int n) {
    size_t count = (size_t)n, each = (size_t)p->side * (size_t)p->side * (size_t)p->channels;
    return (Draw){pairs_batch(p, n), xmalloc(count * each * sizeof(float)), xmalloc(count * sizeof(float)),
                  xmalloc(count * sizeof(int))};
}

static void draw_free(Draw *d) {
    pairs_batch_free(&d->pairs);
    free(d->noise), free(d->w), free(d->t);
}

// `times`: how many timesteps there are to draw from.
static void draw(Draw *d, const Pairs *p, Random *r, int times) {
    pairs_draw(&d->pairs, p, r);
    for (int i = 0; i < d->pairs.n; i++) d->t[i] = random_below(r, times);
    random_normal(r, d->noise, (size_t)d->pairs.n * (size_t)p->side * (size_t)p->side * (size_t)p->channels);
}

static Tensor *drawn(const Draw *d, const float *x) { // latents or noise
    return tensor_from(SHAPE(d->pairs.n, d->pairs.side, d->pairs.side, d->pairs.channels), x);
}

// A few pictures come without their caption, so that guidance (Ho and Salimans 2022) keeps its other half. The text
// encoder stands inside the tape: it may wear adapters too.
void lora_finetune(Run *run, const Model *model, const Lora *lora, const Pairs *pairs, FinetuneConfig c) {
    Scheduler s;
    scheduler_init(&s, scheduler_config(model->scheduler_json, -1));
    if (s.config.prediction_type != EPSILON)
        die("%s does not predict noise; fine-tuning is for models that do", model->path);
    bool learns_text = false;
    for (int i = 0; i < lora->count; i++)
        learns_text |= !strncmp(lora->parts[i].layer->name, "text_encoder.", 13);
    int tokens = pairs->tokens, *nothing = xmalloc((size_t)tokens * sizeof(int));
    int used = tokenizer_encode(model->tokenizer, "", nothing, tokens, NULL);
    while (used < tokens) nothing[used++] = tokenizer_pad(model->tokenizer);
    Draw d = draw_new(pairs, run->batch);
    while (run_continues(run)) {
        // [P3] (z, c) ~ data, t ~ U, eps ~ N(0, I); sometimes no caption
        draw(&d, pairs, &run->random, s.config.num_train_timesteps);
        for (int i = 0; i < d.pairs.n; i++)
            if (random_uniform(&run->random) < c.dropout)
                memcpy(d.pairs.ids + i * tokens, nothing, (size_t)tokens * sizeof(int));
        Scope step = scope_begin();
        Tensor *text =
            learns_text ? NULL : text_encode(model->text_encoder, d.pairs.ids, d.pairs.n); // a constant
        tape_begin();
        if (learns_text) text = text_encode(model->text_encoder, d.pairs.ids, d.pairs.n);
        Tensor *loss = lora_finetune_loss(&s, model->unet, drawn(&d, d.pairs.z), drawn(&d, d.noise), text,
                                          d.t, c.min_snr);
        // [P4] gradients of the adapters alone: the frozen weights want none, and none is computed
        backward(loss);
        run_step(run, loss, NULL, d.pairs.names);
        tape_end();
        scope_end(step, NULL);
    }
    draw_free(&d), free(nothing);
    scheduler_free(&s);
}

// ============================================================================================================
// Distillation by imitation: the paper's Phase 3
// ============================================================================================================

// The KL divergence compares distributions, and a latent is none: something must make it one. The paper writes
// KL(z_LCM || z_LoRA) and no more. Three readings, P made of the teacher's latent and Q of the student's; all are
// means over the n samples.

static Tensor *constant(float value, int rows, int cols) {
    Tensor *t = tensor_new(SHAPE(rows, cols));
    backend.fill(mem(t), value, tensor_count(t));
    return t;
}

// The tape knows no sum, but the mean over rows of the negative of a picked column, in fp32 (loss_pick):
//   -factor / rows  sum over rows  sum over columns of x
static Tensor *negative_mean_of_sums(Tensor *x, float factor) {
    int rows = tensor_rows(x), cols = tensor_cols(x), *first = xcalloc((size_t)rows, sizeof *first);
    Tensor *mean = loss_pick(matmul(x, constant(1, 1, cols), true, factor), first);
    free(first);
    return mean;
}

// Each row of cols numbers, divided by the temperature and put through a softmax, is a distribution:
//   KL = 1 / rows  sum over rows  sum over j  P_j (log P_j - log Q_j),   P = softmax(teacher / T), Q = softmax(student / T)
// (F.kl_div(log Q, P, reduction="batchmean") in PyTorch.) Its gradient at the student's latent is (Q - P) / (T rows).
static Tensor *kl_of_softmax(Tensor *teacher, Tensor *student, int rows, int cols, float temperature) {
    Tensor *log_p = log_softmax(combine(1 / temperature, reshape(teacher, SHAPE(rows, cols)), 0, NULL));
    Tensor *log_q = log_softmax(combine(1 / temperature, reshape(student, SHAPE(rows, cols)), 0, NULL));
    return negative_mean_of_sums(multiply(activation(log_p, EXP), combine(1, log_q, -1, log_p)), 1);
}

// Each channel of a sample is taken for draws from a Gaussian; for Gaussians the divergence has a closed form:
//   KL = 1 / n  sum over samples  sum over channels  1/2 (log v_s - log v_t + (v_t + (m_t - m_s)^2) / v_s - 1)
// with m, v the mean and variance over the positions of the teacher's (t) and the student's (s) latent. It sees brightness and contrast
// of each channel, and nothing of where things are.
static void gaussians(Tensor *x, Tensor **mean, Tensor **log_variance) { // (n, side, side, c) -> twice (n, c)
    int n = x->shape[0], side = x->shape[1], c = x->shape[3];
    if (x->shape[2] != side) die("the latents are %d x %d; squares are expected", side, x->shape[2]);
    const float least = 1e-6f; // so that an even channel has a logarithm
    *mean = reshape(pool(x, POOL_AVERAGE, side, 1, 0), SHAPE(n, c));
    Tensor *squares = activation(add_vector(x, combine(-1, *mean, 0, NULL)), SQUARE);
    Tensor *variance = reshape(pool(squares, POOL_AVERAGE, side, 1, 0), SHAPE(n, c));
    *log_variance = activation(combine(1, variance, least, constant(1, n, c)), LOG);
}

static Tensor *kl_of_gaussians(Tensor *teacher, Tensor *student) {
    Tensor *mean_t, *log_t, *mean_s, *log_s;
    gaussians(teacher, &mean_t, &log_t), gaussians(student, &mean_s, &log_s);
    Tensor *ratio = combine(1, log_t, -1, log_s); // log (v_t / v_s)
    Tensor *distance = multiply(activation(combine(1, mean_t, -1, mean_s), SQUARE),
                                activation(combine(-1, log_s, 0, NULL), EXP));
    Tensor *terms = combine(1, combine(-1, ratio, 1, activation(ratio, EXP)), 1, distance);
    return negative_mean_of_sums(combine(1, terms, -1, constant(1, tensor_rows(terms), tensor_cols(terms))),
                                 -0.5f);
}

// [P7] KL(teacher || student) by one of the readings.
Tensor *kl_divergence(Tensor *teacher, Tensor *student, KlReading reading, float temperature) {
    int n = student->shape[0], all = (int)(tensor_count(student) / (size_t)n), c = tensor_cols(student);
    switch (reading) {
    // (a) A sample's latent as one distribution over all its elements: where it is large, relative to itself. A shift of
    //     the whole latent does not count.
    case KL_ELEMENTS: return kl_of_softmax(teacher, student, n, all, temperature);
    // (b) At each position a distribution over the channels, as a classifier's over classes: local, and blind to a shift of
    //     all channels of a position.
    case KL_CHANNELS: return kl_of_softmax(teacher, student, n * (all / c), c, temperature);
    // (c) Statistics of the channels: the default, since it keeps the contrast that MSE gives away (weights/README.md).
    case KL_GAUSSIANS: return kl_of_gaussians(teacher, student);
    }
    return NULL;
}

// [P5] One step: both networks stand at the same noised latent and answer with the picture that they expect.
//   f_teacher = c_skip z_t + c_out x0(LCM(z_t, t, c, w));   f_student = c_skip z_t + c_out x0(base + adapters (z_t, t, c))
// The student learns the answer for all w at once: it has no input for w, and 4 steps later nobody will tell it one.
void lora_mimic_losses(const Lcm *l, const LcmBatch *b, MimicConfig c, Tensor **mse, Tensor **kl) {
    Tensor *z_t = lcm_noised(l, b->z, b->noise, b->index);
    bool recording = tape_pause();
    Scope passing = scope_begin();
    Tensor *teacher = scope_end(passing, lcm_answer(l, l->teacher, z_t, b->index, b->text, b->w));
    tape_resume(recording);
    Tensor *student = lcm_answer(l, l->student, z_t, b->index, b->text, NULL);
    *mse = loss_between(student, teacher, NULL, LOSS_MSE, 0);
    *kl = kl_divergence(teacher, student, c.reading, c.temperature);
}

UNet *lora_student(const Model *model, Params *params) {
    UNet *student = unet_new(model->unet_config, params);
    for (int i = 0; i < params->count; i++) {
        const Tensor *from = params_find(&model->params, params->list[i].name);
        params->list[i].tensor->type = from->type, params->list[i].tensor->data = from->data;
    }
    return student;
}

// The norm over all adapters' gradients, which are then cleared.
static double take_gradient_norm(const Lora *l) {
    OptimiserState *state = backend.alloc(sizeof *state), host = {0};
    backend.upload(state, &host, sizeof host);
    for (int i = 0; i < l->params.count; i++) {
        Tensor *t = l->params.list[i].tensor;
        backend.sum_square(state, t->gradient, tensor_count(t));
        backend.fill((Mem){t->gradient, F32}, 0, tensor_count(t));
    }
    backend.download(&host, state, sizeof host);
    backend.free(state);
    return sqrt((double)host.sum_square);
}

// [P8] How much the KL term has to say: the length of its gradient at the adapters, over the sum of both lengths.
static double kl_share(const Lcm *l, const LcmBatch *b, const Lora *lora, MimicConfig c) {
    double norm[2];
    for (int which = 0; which < 2; which++) {
        Tensor *mse, *kl;
        tape_begin();
        lora_mimic_losses(l, b, c, &mse, &kl);
        backward(which ? combine(c.kl_weight, kl, 0, NULL) : combine(c.mse_weight, mse, 0, NULL));
        tape_end();
        norm[which] = take_gradient_norm(lora);
    }
    return norm[0] + norm[1] > 0 ? norm[1] / (norm[0] + norm[1]) : 0;
}

enum { SHARE_EVERY = 50 }; // steps between two looks at that share: two passes more

void lora_mimic(const Lcm *l, Run *run, const Model *model, const Lora *lora, const Pairs *pairs,
                MimicConfig c) {
    Draw d = draw_new(pairs, run->batch);
    while (run_continues(run)) {
        draw(&d, pairs, &run->random, l->solver_steps);
        for (int i = 0; i < d.pairs.n; i++)
            d.w[i] = l->c.w_min + (l->c.w_max - l->c.w_min) * random_uniform(&run->random);
        Scope step = scope_begin();
        LcmBatch b = {.n = d.pairs.n,
                      .z = drawn(&d, d.pairs.z),
                      .noise = drawn(&d, d.noise),
                      .text = text_encode(model->text_encoder, d.pairs.ids, d.pairs.n),
                      .index = d.t,
                      .w = d.w};
        bool look = run->step % SHARE_EVERY == 0;
        double share = look ? kl_share(l, &b, lora, c) : 0;
        Tensor *mse, *kl;
        tape_begin();
        lora_mimic_losses(l, &b, c, &mse, &kl);
        Tensor *loss = combine(c.mse_weight, mse, c.kl_weight, kl); // [P6] mse_weight MSE + kl_weight KL
        backward(loss);
        char parts[128];
        int at = snprintf(parts, sizeof parts, ", \"mse\": %.6g, \"kl\": %.6g", (double)tensor_item(mse),
                          (double)tensor_item(kl));
        if (look) snprintf(parts + at, sizeof parts - (size_t)at, ", \"kl_share\": %.4f", share);
        run_step(run, loss, parts, d.pairs.names); // [P9] only the adapters move
        tape_end();
        scope_end(step, NULL);
    }
    draw_free(&d);
}
