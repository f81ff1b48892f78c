// lora.c: Phase 3, low-rank adaptation (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language
// Models"). The weight W of a layer stays frozen. What is trained is an update of low rank r beside it:
//
//   y = W x + s B A x,   s = alpha / r,   A (r, in) is called down, B (out, r) is called up
//
// For Stable Diffusion v1.5 and r = 64 the update is a file of 135 MB, beside a model of 3.4 GB. Several
// updates can be attached to one model.
//
// The layers compute y += s B A x themselves: see `adapt` in lib/nn/ops.c. The networks in sd.c know nothing
// of it. This file is in reading order: the adapters, plain fine-tuning, distillation, files. The options are
// in cli/train.c. "The paper" is the one that README.md names. `[P1]`, ... are stops of doc/READING.md.
#define _XOPEN_SOURCE 700 // realpath
#include "sd.h"

#include <ctype.h>
#include <math.h>
#include <regex.h>
#include <stdlib.h>
#include <string.h>

// ---- Adapters ---------------------------------------------------------------------------------------------

// Groups of layers that --targets can name: the layers of a network whose names have one of these ends.
static const struct {
    const char *group, *network, *ends[8];
} groups[] = {
    {"attention", "unet.", {"to_q", "to_k", "to_v", "to_out.0"}},
    {"ff", "unet.", {"ff.net.0.proj", "ff.net.2"}},
    {"resnet", "unet.", {"conv1", "conv2", "conv_shortcut", "time_emb_proj"}},
    {"proj", "unet.", {"proj_in", "proj_out"}},
    {"samplers", "unet.", {"samplers.0.conv"}},
    {"ends", "unet.", {"unet.conv_in", "time_embedding.linear_1", "time_embedding.linear_2"}},
    {"text", "text_encoder.", {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}},
};
// The layers that the published lcm-lora-sdv1-5 adapts.
static const char lcm_targets[] = "attention,ff,resnet,proj,samplers,ends";

// Does `target`, a group or a part of layer names, include this layer?
static bool target_includes(const char *target, const char *layer) {
    for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
        if (strcmp(target, groups[g].group)) continue;
        bool its = false;
        for (int i = 0; i < 8 && groups[g].ends[i]; i++) its |= ends_with(layer, groups[g].ends[i]);
        return its && starts_with(layer, groups[g].network);
    }
    return strstr(layer, target) != NULL;
}

Layer **lora_layers(const Params *model, int *count) {
    Layer **layers = xcalloc((size_t)model->count + 1, sizeof *layers);
    *count = 0;
    for (int i = 0; i < model->count; i++) {
        const Parameter *p = &model->list[i];
        if (p->tensor->dims < 2 || !ends_with(p->name, ".weight") || starts_with(p->name, "vae.")) continue;
        char *name = format("%.*s", (int)strlen(p->name) - 7, p->name);
        Layer *l = params_layer(model, name); // NULL for an embedding, which is not a layer
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

// [P1] New adapters. A is uniform in +-1 / sqrt(inputs), as PyTorch initialises linear layers and
// convolutions, and PEFT initialises A. B is zero. So B A = 0, and training begins with the model as it is.
Lora *lora_new(const Params *model, const char *targets, int rank, float alpha, Random *r) {
    if (!strcmp(targets, "lcm")) targets = lcm_targets;
    int count, wanted = 0;
    Layer **layers = lora_layers(model, &count);
    bool *chosen = xcalloc((size_t)count + 1, sizeof *chosen);
    char *list = xstrdup(targets);
    for (char *item = strtok(list, ","); item; item = strtok(NULL, ",")) {
        int matches = 0;
        for (int i = 0; i < count; i++)
            if (target_includes(item, layers[i]->name)) wanted += !chosen[i], chosen[i] = true, matches++;
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

// [P2] From here on the layers use the adapters. A layer has a list, so several LoRAs can be attached.
void lora_attach(Lora *l, float strength) {
    for (int i = 0; i < l->count; i++) {
        LoraPart *p = &l->parts[i];
        p->adapter.scale = strength * p->alpha / (float)p->adapter.down->shape[0];
        p->adapter.next = p->layer->adapters;
        p->layer->adapters = &p->adapter;
    }
}

void lora_detach(Lora *l) {
    for (int i = 0; i < l->count; i++)
        for (Adapter **at = &l->parts[i].layer->adapters; *at; at = &(*at)->next)
            if (*at == &l->parts[i].adapter) {
                *at = (*at)->next;
                break;
            }
}

// W += s B A, permanently. Weights that are not fp32 are added to in fp32 and rounded.
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
        if (!tensor_finite(w)) die("%s: merged, a weight is too large for its type", p->layer->name);
        scope_end(s, NULL);
    }
}

void lora_free(Lora *l) {
    lora_detach(l);
    params_free(&l->params);
    free(l->parts), free(l->mode), free(l->title), free(l);
}

// ---- Plain fine-tuning: the paper's baseline --------------------------------------------------------------

// [S2] Noise prediction (Ho et al. 2020), where only the adapters learn:
//   z_t = alpha z + sigma eps,   L = mean of weight(t) |eps_theta(z_t, t, c) - eps|^2
// The weighting is an option (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting"):
//   weight(t) = min(SNR, gamma) / SNR,   SNR = alpha^2 / sigma^2 (signal-to-noise ratio),   gamma = min_snr
// With it a nearly clean picture, in which the noise is hardly visible, counts less.
Tensor *lora_finetune_loss(const Scheduler *s, const UNet *net, Tensor *z, Tensor *noise, Tensor *text,
                           const int *t, float min_snr) {
    Times at = times_at(s, t, z->shape[0]);
    float *weight = scope_floats(at.n);
    for (int i = 0; i < at.n; i++) {
        float a = s->alphas_cumprod[t[i]], snr = a / (1 - a);
        weight[i] = min_snr > 0 ? fminf(1, min_snr / snr) : 1; // SNR may be 0 at the last timestep
    }
    Tensor *prediction = unet(net, noised(at, z, noise), at.t, text, NULL);
    return loss_between(prediction, noise, weight, LOSS_MSE, 0);
}

// Some pictures come without their caption, so that the model keeps the unconditional prediction that
// guidance needs (Ho and Salimans 2022). The text encoder is recorded only if it has adapters.
void lora_finetune(Run *run, const Model *model, const Lora *lora, const Pairs *pairs, FinetuneConfig c) {
    Scheduler s;
    scheduler_init(&s, scheduler_config(model->scheduler_json, -1));
    if (s.config.prediction_type != EPSILON)
        die("%s does not predict noise; fine-tuning is for models that do", model->path);
    bool learns_text = false;
    for (int i = 0; i < lora->count; i++)
        learns_text |= starts_with(lora->parts[i].layer->name, "text_encoder.");
    int n = run->batch, shape[] = {n, pairs->side, pairs->side, pairs->channels}, tokens = pairs->tokens;
    Random *r = &run->random;
    PairsBatch batch = pairs_batch(pairs, n);
    Scope whole = scope_begin();
    int *t = scope_ints(n), *nothing = scope_ints(tokens);
    int used = tokenizer_encode(model->tokenizer, "", nothing, tokens, NULL);
    while (used < tokens) nothing[used++] = tokenizer_pad(model->tokenizer);

    while (run_continues(run)) {
        // [P3] (z, c) ~ data, t ~ U{0, ..., T - 1}, eps ~ N(0, I); sometimes no caption
        Scope step = scope_begin();
        pairs_draw(&batch, pairs, r);
        for (int i = 0; i < n; i++) t[i] = random_below(r, s.config.num_train_timesteps);
        Tensor *z = tensor_from(4, shape, batch.z), *noise = random_tensor(r, 4, shape), *text = NULL;
        for (int i = 0; i < n; i++)
            if (random_uniform(r) < c.dropout)
                memcpy(batch.ids + i * tokens, nothing, (size_t)tokens * sizeof(int));
        if (!learns_text) text = text_encode(model->text_encoder, batch.ids, n); // a constant
        tape_begin();
        if (learns_text) text = text_encode(model->text_encoder, batch.ids, n);
        Tensor *loss = lora_finetune_loss(&s, model->unet, z, noise, text, t, c.min_snr);
        // [P4] Only adapters want gradients. None is computed for the frozen weights.
        backward(loss);
        run_step(run, loss, NULL, batch.names);
        tape_end();
        scope_end(step, NULL);
    }
    scope_end(whole, NULL);
    pairs_batch_free(&batch);
    scheduler_free(&s);
}

// ---- Distillation by imitation: the paper's Phase 3 -------------------------------------------------------

// A KL divergence compares two distributions, but a latent is not one. The paper writes KL(z_LCM || z_LoRA)
// and does not say how it makes distributions of the latents. Here are three ways. P is made of the teacher's
// latent, Q of the student's, and the result is the mean over the pictures.

// Softmax makes a distribution of each row of `cols` elements. T is the temperature:
//   P = softmax(teacher / T),   Q = softmax(student / T)
//   KL = 1 / rows  sum over rows  sum over j  P_j (log P_j - log Q_j)
// In PyTorch this is F.kl_div(log Q, P, reduction="batchmean"). Its gradient is (Q - P) / (T rows).
static Tensor *kl_of_softmax(Tensor *teacher, Tensor *student, int rows, int cols, float temperature) {
    Tensor *log_p = log_softmax(scale(reshape(teacher, SHAPE(rows, cols)), 1 / temperature));
    Tensor *log_q = log_softmax(scale(reshape(student, SHAPE(rows, cols)), 1 / temperature));
    return mean(sum(multiply(exponential(log_p), sub(log_p, log_q))));
}

// x (n, h, w, c) -> mean m (n, c) of each channel of a picture, and the logarithm of its variance v (n, c).
static void gaussians(Tensor *x, Tensor **m, Tensor **log_v) {
    *m = spatial_mean(x);
    Tensor *v = spatial_mean(square(add_vector(x, scale(*m, -1))));
    *log_v = logarithm(add_scalar(v, 1e-6f)); // so that a variance of 0 has a logarithm
}

// The elements of a channel are taken as draws from a Gaussian, the teacher's N(m_t, v_t) and the student's
// N(m_s, v_s). The divergence of two Gaussians has a closed form:
//   KL = 1 / n  sum over pictures, channels of  1/2 (v_t / v_s - log(v_t / v_s) + (m_t - m_s)^2 / v_s - 1)
// It compares brightness and contrast of each channel. It does not see where in the picture something is.
static Tensor *kl_of_gaussians(Tensor *teacher, Tensor *student) {
    Tensor *m_t, *log_t, *m_s, *log_s;
    gaussians(teacher, &m_t, &log_t), gaussians(student, &m_s, &log_s);
    Tensor *log_ratio = sub(log_t, log_s); // log(v_t / v_s)
    Tensor *distance = multiply(square(sub(m_t, m_s)), exponential(scale(log_s, -1)));
    Tensor *terms = add(sub(exponential(log_ratio), log_ratio), distance);
    return scale(mean(sum(add_scalar(terms, -1))), 0.5f);
}

// [P7] KL(teacher || student), in one of the three ways.
Tensor *kl_divergence(Tensor *teacher, Tensor *student, KlReading reading, float temperature) {
    int n = student->shape[0], all = (int)(tensor_count(student) / (size_t)n), c = tensor_cols(student);
    switch (reading) {
    // (a) A latent is one distribution over all its elements: it says where the latent is large, compared
    // with the rest of it. A shift of the whole latent makes no difference.
    case KL_ELEMENTS: return kl_of_softmax(teacher, student, n, all, temperature);
    // (b) Each position has a distribution over the channels, like a classifier's over classes. A shift of
    // all channels of a position makes no difference.
    case KL_CHANNELS: return kl_of_softmax(teacher, student, n * (all / c), c, temperature);
    // (c) Each channel has a Gaussian. This is the default, because it keeps the contrast that MSE alone
    // loses (see weights/README.md).
    case KL_GAUSSIANS: return kl_of_gaussians(teacher, student);
    }
    return NULL;
}

// [P5] Both networks get the same noised latent and predict the end of its path (see lcm.c):
//   f_teacher = c_skip z_t + c_out x0,   x0 predicted by the LCM from (z_t, t, c, w)
//   f_student = c_skip z_t + c_out x0,   x0 predicted by the base with adapters from (z_t, t, c)
// The base has no input for w. So the student learns one prediction for the whole range of w.
void lora_mimic_losses(const Lcm *l, const LcmBatch *b, MimicConfig c, Tensor **mse, Tensor **kl) {
    Times at = lcm_times(l, b->index, b->n, 1);
    Tensor *z_t = noised(at, b->z, b->noise);
    bool recording = tape_pause();
    Scope unrecorded = scope_begin();
    Tensor *teacher = scope_end(unrecorded, lcm_consistency(l, l->teacher, z_t, at, b->text, b->w));
    tape_resume(recording);
    Tensor *student = lcm_consistency(l, l->student, z_t, at, b->text, NULL);
    *mse = loss_between(student, teacher, NULL, LOSS_MSE, 0);
    *kl = kl_divergence(teacher, student, c.reading, c.temperature);
}

// [P8] The KL term's share: the norm of its gradient over the sum of the norms of both terms' gradients.
static double kl_fraction(const Lcm *l, const LcmBatch *b, const Lora *lora, MimicConfig c) {
    double norm[2];
    for (int which = 0; which < 2; which++) {
        Tensor *mse, *kl;
        tape_begin();
        lora_mimic_losses(l, b, c, &mse, &kl);
        backward(which ? scale(kl, c.kl_weight) : scale(mse, c.mse_weight));
        tape_end();
        norm[which] = gradient_norm(&lora->params);
    }
    return norm[0] + norm[1] > 0 ? norm[1] / (norm[0] + norm[1]) : 0;
}

enum { FRACTION_EVERY = 50 }; // steps between two measurements of that fraction, which cost two passes each

void lora_mimic(const Lcm *l, Run *run, const Model *model, const Lora *lora, const Pairs *pairs,
                MimicConfig c) {
    int n = run->batch, shape[] = {n, pairs->side, pairs->side, pairs->channels};
    Random *r = &run->random;
    PairsBatch batch = pairs_batch(pairs, n);
    while (run_continues(run)) {
        Scope step = scope_begin();
        int *index = scope_ints(n);
        float *w = scope_floats(n);
        pairs_draw(&batch, pairs, r);
        for (int i = 0; i < n; i++) index[i] = random_below(r, l->solver_steps);
        Tensor *noise = random_tensor(r, 4, shape);
        for (int i = 0; i < n; i++) w[i] = l->c.w_min + (l->c.w_max - l->c.w_min) * random_uniform(r);
        LcmBatch b = {.n = n,
                      .z = tensor_from(4, shape, batch.z),
                      .noise = noise,
                      .text = text_encode(model->text_encoder, batch.ids, n),
                      .index = index,
                      .w = w};
        bool measure = run->step % FRACTION_EVERY == 0 && !run->turn;
        double fraction = measure ? kl_fraction(l, &b, lora, c) : 0;
        Tensor *mse, *kl;
        tape_begin();
        lora_mimic_losses(l, &b, c, &mse, &kl);
        Tensor *loss = combine(c.mse_weight, mse, c.kl_weight, kl); // [P6] mse_weight MSE + kl_weight KL
        backward(loss);
        RunPart parts[RUN_PARTS] = {{"\"mse\": %.6g", (double)tensor_item(mse)},
                                    {"\"kl\": %.6g", (double)tensor_item(kl)},
                                    {measure ? "\"kl_share\": %.4f" : NULL, fraction}};
        run_step(run, loss, parts, batch.names); // [P9] only the adapters move
        tape_end();
        scope_end(step, NULL);
    }
    pairs_batch_free(&batch);
}

// ---- Files ------------------------------------------------------------------------------------------------

// An unknown key is an error: a LoRA that is applied in part draws plausible but wrong pictures. The keys
// of PEFT (Hugging Face's adapters), kohya (kohya-ss/sd-scripts) and others are in lib/io/lora_names.c.

// What a file has for one layer.
typedef struct {
    const Stored *down, *up, *alpha;
} Found;

// What a layer's number of inputs tells about the model that a file was made for, or "". Names alone tell
// little: those of the original code, and "lora_te1", are Stable Diffusion 1's and SDXL's alike.
static const char *made_for(const Store *s) {
    static const struct {
        const char *part, *other_part;
        int64_t inputs;
        const char *words;
    } widths[] = {{"attn2", "to_k", 768, "; it was made for Stable Diffusion 1"},
                  {"attn2", "to_k", 1024, "; it was made for Stable Diffusion 2"},
                  {"attn2", "to_k", 2048, "; it was made for SDXL"},
                  {"te2_", "encoder_layers", 1280, "; it was made for SDXL"},
                  {"joint_blocks", "", 1536, "; it was made for Stable Diffusion 3"},
                  {"single_", "blocks", 3072, "; its layers are as wide as Flux's"},
                  {"double_blocks", "", 3072, "; its layers are as wide as Flux's"}};
    for (size_t i = 0; i < store_count(s); i++) {
        const Stored *t = store_at(s, i);
        size_t n;
        if (t->ndim < 2 || lora_role(t->name, &n) != LORA_DOWN) continue;
        for (size_t k = 0; k < sizeof widths / sizeof *widths; k++)
            if (t->shape[1] == widths[k].inputs && strstr(t->name, widths[k].part) &&
                strstr(t->name, widths[k].other_part))
                return widths[k].words;
    }
    return "";
}

// A linear layer's tensor may come as a 1x1 convolution and the other way round.
static bool has_shape(const Stored *t, int64_t rows, int64_t cols, int64_t kh, int64_t kw) {
    if (t->ndim != 2 && t->ndim != 4) return false;
    return t->shape[0] == rows && t->shape[1] == cols && (t->ndim == 2 ? 1 : t->shape[2]) == kh &&
           (t->ndim == 2 ? 1 : t->shape[3]) == kw;
}

// NULL, or what is wrong with the tensors of a layer.
static char *check_part(const Found *f, const Layer *l, const Store *s) {
    int64_t w[4] = {0, 0, 1, 1}; // (out, in, kh, kw)
    param_file_shape(l->weight, w);
    const Stored *any = f->down ? f->down : f->up ? f->up : f->alpha;
    const char *lacking = f->down ? "up (lora_B)" : f->up ? "down (lora_A)" : "weights";
    if (!f->down || !f->up) return format("%s: %s has no %s beside it", any->file, any->name, lacking);
    const Stored *odd = f->down->type > F64 ? f->down : f->up->type > F64 ? f->up : NULL;
    if (odd) return format("%s: tensor %s is neither F64, F32, F16 nor BF16", any->file, odd->name);
    char have[200];
    int64_t rank = f->down->ndim ? f->down->shape[0] : 0;
    if (rank < 1 || rank > 65536 || !has_shape(f->down, rank, w[1], w[2], w[3]))
        return format(
            "%s: tensor %s has the shape %s; (rank, %lld, %lld, %lld) is expected for the layer %s%s",
            any->file, f->down->name, shape_text(have, f->down->shape, f->down->ndim), (long long)w[1],
            (long long)w[2], (long long)w[3], l->name, made_for(s));
    if (!has_shape(f->up, w[0], rank, 1, 1))
        return format("%s: tensor %s has the shape %s; (%lld, %lld) is expected: the layer's outputs and the "
                      "rank of %s%s",
                      any->file, f->up->name, shape_text(have, f->up->shape, f->up->ndim), (long long)w[0],
                      (long long)rank, f->down->name, made_for(s));
    if (f->alpha && f->alpha->count != 1)
        return format("%s: %s holds %zu numbers; one is expected", any->file, f->alpha->name,
                      f->alpha->count);
    return NULL;
}

static const char bundled[] = "bundle_emb."; // OneTrainer's embeddings, learnt together with the LoRA

// Finds the layer of each of a file's tensors. Returns NULL, or why the file does not fit this model.
static char *sort_keys(Found *found, const Store *s, const char *path, Layer *const *layers, int count) {
    Names names = {0};
    char *problem = NULL;
    bool any = false;
    for (int i = 0; i < count; i++) lora_names_add(&names, layers[i]->name, i);
    for (size_t i = 0; i < store_count(s) && !problem; i++) {
        const Stored *t = store_at(s, i);
        if (starts_with(t->name, bundled)) continue;
        size_t n = 0;
        LoraRole role = lora_role(t->name, &n);
        const char *foreign = role ? NULL : lora_foreign(t->name);
        int at = role ? lora_find_layer(&names, t->name, n) : -1;
        const Stored **slot = at < 0              ? NULL
                              : role == LORA_DOWN ? &found[at].down
                              : role == LORA_UP   ? &found[at].up
                                                  : &found[at].alpha;
        if (foreign)
            problem = format("%s: the key %s belongs to %s, which cannot be applied", path, t->name, foreign);
        else if (!role)
            problem = format("%s holds %s: the key %s is none of a LoRA", path, store_kind(s), t->name);
        else if (!slot)
            problem =
                format("%s: the key %s belongs to no layer of this model%s", path, t->name, made_for(s));
        else if (*slot)
            problem = format("%s: the keys %s and %s mean the same tensor", path, (*slot)->name, t->name);
        else
            *slot = t;
    }
    for (int i = 0; i < count && !problem; i++) {
        const Found *f = &found[i];
        if (!f->down && !f->up && !f->alpha) continue;
        problem = check_part(f, layers[i], s);
        any = true;
    }
    if (!problem && !any) problem = format("%s holds embeddings alone, no LoRA", path);
    names_free(&names);
    return problem;
}

bool lora_fits(const Params *model, const char *path) {
    int count;
    Layer **layers = lora_layers(model, &count);
    Found *found = xcalloc((size_t)count, sizeof *found);
    Store *s = store_open(path);
    char *problem = sort_keys(found, s, path, layers, count);
    bool fits = !problem;
    store_close(s);
    free(problem), free(found), free(layers);
    return fits;
}

// PEFT's LoraConfig: in the header, or beside PEFT's own files in adapter_config.json. NULL: there is none.
static Json *read_config(const Store *s, const char *path) {
    const char *text = store_metadata(s, "lora_adapter_metadata");
    if (text) return json_parse(text, strlen(text), path);
    if (!starts_with(store_at(s, 0)->name, "base_model.")) return NULL;
    const char *slash = strrchr(path, '/');
    char *beside = format("%.*sadapter_config.json", slash ? (int)(slash + 1 - path) : 0, path);
    if (!file_exists(beside)) die("%s: its adapter_config.json, which says alpha, is missing", path);
    Json *j = json_load(beside);
    free(beside);
    return j;
}

// LoraConfig (peft 0.21), key by key, as in sd.c. What changes the adapters' arithmetic or the weights below
// them is refused. So are the beginnings of training that take the adapter's first value off the base weights
// (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA): PEFT does so again when it reads the file.
static const JsonKey peft_keys[] = {
    {"peft_type", "'LORA'"},
    {"bias", "'none'"},
    {"init_lora_weights", "true|false|null|'gaussian'|'orthogonal'|'eva'"},
    {"ensure_weight_tying|fan_in_fan_out|lora_bias|use_dora|use_qalora", "false"},
    {"exclude_modules|layers_pattern|layers_to_transform|modules_to_save", "null|[]"},
    {"alora_invocation_tokens|arrow_config|corda_config|kasa_config|layer_replication|lora_ga_config|"
     "megatron_config|monteclora_config|target_parameters|trainable_token_indices|use_bdlora|velora_config",
     "null"},
    {"lora_alpha|r", "number"},
    {"use_rslora", "boolean"},
    {"alpha_pattern|rank_pattern", "object"},
    {"target_modules", "list|string|null"},
    {"eva_config|loftq_config|megatron_core|qalora_group_size", NULL}, // EVA's beginning; of what is refused
    {"auto_mapping|base_model_name_or_path|inference_mode|lora_dropout|peft_version|revision|runtime_config|"
     "task_type",
     NULL},
    {0}};

// Patterns for layer names are Python's regular expressions in PEFT, POSIX's here. This is what means the
// same in both, and leaves out \d and its like, (?...), lazy and possessive repeats, braces.
#define CHARACTER "[]A-Za-z0-9 _.,:;<=>@~!\"#%&'/`-]"
#define ESCAPED "\\\\[].^$*+?()[{}|\\-]"
#define BRACKETS "\\[(\\^?]|\\^[^][\\]|[^][\\^])[^][\\]*]" // without a bracket or a backslash between them
static const char alike[] = "^((" CHARACTER "|" ESCAPED "|" BRACKETS "|\\))[*+?]?|[(|^$])*";

static regex_t compile_pattern(const char *prefix, const char *pattern, const char *key, const char *where) {
    regex_t tokens, compiled;
    int repeats = 0; // glibc's memory doubles with each + around another
    for (const char *c = pattern; *c; c++) repeats += *c == '+';
    if (repeats > 8 || strlen(pattern) > 1000)
        die("%s: \"%s\": a pattern has more than 1000 bytes or 8 times \"+\"", where, key);
    regmatch_t match = {0};
    regcomp(&tokens, alike, REG_EXTENDED), regexec(&tokens, pattern, 1, &match, 0), regfree(&tokens);
    const char *odd = pattern + match.rm_eo;
    char *text = format("^(%s(%s)$)", prefix, pattern);
    if (*odd || regcomp(&compiled, text, REG_EXTENDED | REG_NOSUB))
        die("%s: \"%s\": the pattern \"%s\" is not supported, from \"%s\" on", where, key, pattern,
            *odd ? odd : pattern);
    free(text);
    return compiled;
}

// A layer's name in PEFT. transformers 5 has no "text_model." in its text encoder.
static const char *peft_name(const Layer *l) {
    const char *name = strchr(l->name, '.') + 1;
    return starts_with(name, "text_model.") ? name + strlen("text_model.") : name;
}

// "rank_pattern" or "alpha_pattern": {"attn1.to_q": 8, ...}. A pattern fits a whole name, or all that follows
// one of its dots. Of several that fit the first one counts.
static void apply_patterns(double *values, const Json *config, const char *key, Layer *const *layers,
                           int count, const char *where) {
    const Json *patterns = json_get(config, key);
    size_t bytes = 0;
    for (size_t k = patterns ? patterns->length : 0; k-- > 0;) { // backwards: the first has the last word
        const char *pattern = patterns->items[k].key;
        double value = json_get_number(patterns, pattern, NAN);
        if ((bytes += strlen(pattern)) > 1 << 17)
            die("%s: \"%s\" has more than 128 KB of patterns", where, key);
        regex_t compiled = compile_pattern("(.*\\.)?", pattern, key, where);
        for (int i = 0; i < count; i++)
            if (!regexec(&compiled, peft_name(layers[i]), 0, NULL, 0)) values[i] = value;
        regfree(&compiled);
    }
}

// Is the layer one of "target_modules", a list of ends of names, or a pattern for whole names?
static bool is_target(const Json *targets, const Layer *l, const char *where) {
    const char *name = peft_name(l);
    if (targets->kind == JSON_STRING) {
        regex_t compiled = compile_pattern("", targets->string, targets->key, where);
        bool fits = !regexec(&compiled, name, 0, NULL, 0);
        regfree(&compiled);
        return fits;
    }
    for (size_t i = 0; i < targets->length; i++) {
        const char *end = targets->items[i].kind == JSON_STRING ? targets->items[i].string : "";
        size_t before = strlen(name) - strlen(end);
        if (*end && ends_with(name, end) && (!before || name[before - 1] == '.')) return true;
    }
    return false;
}

// The alphas of the layers that the file has, in a new array. With "use_rslora" the scale is alpha /
// sqrt(rank): as if alpha were sqrt(rank) times as large. A layer without a configuration has its rank.
// diffusers writes every network's configuration into one header ("unet.lora_alpha") and takes the layers
// that the file has; PEFT's own ("lora_alpha") names them in "target_modules", and others would be left out.
static double *config_alphas(const Json *config, const Found *found, Layer *const *layers, int count,
                             const char *path) {
    static const char *const networks[] = {"", "unet.", "text_encoder."};
    if (config->kind != JSON_OBJECT) die("%s: its configuration is no object", path);
    size_t n = (size_t)count + 1;
    double *alphas = xcalloc(n, sizeof *alphas), *ranks = xmalloc(n * sizeof *ranks),
           *values = xmalloc(n * sizeof *values);
    char *where = format("%s: its configuration", path);
    for (int i = 0; i < count; i++) alphas[i] = found[i].down ? (double)found[i].down->shape[0] : 0;
    for (int k = 0; k < 3; k++) {
        Json own = {
            .kind = JSON_OBJECT, .file = config->file, .items = xcalloc(config->length + 1, sizeof(Json))};
        for (size_t i = 0; i < config->length; i++) {
            Json *item = &own.items[own.length];
            *item = config->items[i];
            if (starts_with(item->key, networks[k]) && !strchr(item->key += strlen(networks[k]), '.'))
                own.length++;
        }
        json_check_keys(&own, where, peft_keys);
        const Json *targets = k == 0 ? json_get(&own, "target_modules") : NULL;
        for (int i = 0; i < count; i++)
            ranks[i] = json_get_number(&own, "r", 8), values[i] = json_get_number(&own, "lora_alpha", 8);
        apply_patterns(ranks, &own, "rank_pattern", layers, count, where);
        apply_patterns(values, &own, "alpha_pattern", layers, count, where);
        for (int i = 0; own.length && i < count; i++) {
            if (!found[i].down || !starts_with(layers[i]->name, networks[k])) continue;
            if (ranks[i] != alphas[i])
                die("%s gives the layer %s the rank %g (\"r\", \"rank_pattern\"); its tensors have %g", where,
                    layers[i]->name, ranks[i], alphas[i]);
            if (targets && !is_target(targets, layers[i], where))
                die("%s leaves the layer %s out of \"target_modules\", but the file has tensors for it",
                    where, layers[i]->name);
            alphas[i] = values[i] * (json_get_bool(&own, "use_rslora", false) ? sqrt(ranks[i]) : 1);
        }
        free(own.items);
    }
    free(where), free(ranks), free(values);
    return alphas;
}

static void read_tensor(Tensor *t, const Stored *s) {
    float *x = store_floats(s, s->file);
    param_write(t, x);
    backend.sync();
    store_done_with(s);
    free(x);
}

Lora *lora_load(const Params *model, const char *path) {
    int count;
    Layer **layers = lora_layers(model, &count);
    Found *found = xcalloc((size_t)count, sizeof *found);
    Store *s = store_open(path);
    char *problem = sort_keys(found, s, path, layers, count);
    if (problem) die("%s", problem);
    for (size_t i = 0; i < store_count(s); i++) {
        const char *name = store_at(s, i)->name;
        if (!starts_with(name, bundled)) continue;
        name += strlen(bundled);
        note("%s: the embedding %.*s in it is not applied", path, (int)strcspn(name, "."), name);
    }
    bool some = false, kohya = false;
    const Layer *guessed = NULL;
    Json *config = read_config(s, path);
    double *alphas = config ? config_alphas(config, found, layers, count, path) : NULL;
    Lora *l = xcalloc(1, sizeof *l);
    const char *mode = store_metadata(s, "sd_mode");
    if (mode) l->mode = xstrdup(mode);
    const char *title = store_metadata(s, "modelspec.title"), *output = store_metadata(s, "ss_output_name");
    l->title = format("%s %s", title ? title : "", output ? output : "");
    for (int i = 0; i < count; i++) {
        const Found *f = &found[i];
        if (!f->down) continue;
        int rank = (int)f->down->shape[0];
        float alpha = (float)rank; // the convention where nothing says otherwise: a scale of 1
        if (f->alpha)
            store_read_f32(f->alpha, &alpha), some = true;
        else if (config)
            alpha = (float)alphas[i];
        else
            guessed = layers[i], kohya |= starts_with(f->down->name, "lora_");
        if (!isfinite(alpha)) die("%s: alpha of the layer %s is not finite", path, layers[i]->name);
        LoraPart *part = lora_add(l, layers[i], rank, alpha);
        read_tensor(part->adapter.down, f->down), read_tensor(part->adapter.up, f->up);
    }
    if (some ? guessed != NULL : kohya) // what kohya's tools take
        note("%s: alpha is missing%s%s; the rank is taken, a scale of 1", path, some ? " for the layer " : "",
             some ? guessed->name : "");
    if (config) json_free(config);
    store_close(s);
    free(found), free(layers), free(alphas);
    return l;
}

// " lcm lora sdv1 5 " of "LCM-LoRA_SDv1.5": the words in small letters, a blank around each
static char *words_of(const char *text, size_t length) {
    char *words = format(" %.*s ", (int)length, text);
    for (char *c = words; *c; c++) *c = (char)(isalnum((unsigned char)*c) ? tolower((unsigned char)*c) : ' ');
    return words;
}

// Those of lcm-lora-sdv1-5 and its like. Hardly any other LoRA has the time embedding and conv_in, but not
// conv_out and no text encoder. They tell that a LoRA is distilled, not for which sampler.
static bool has_distilled_layers(const Lora *l) {
    int ends = 0;
    for (int i = 0; i < l->count; i++) {
        const char *name = l->parts[i].layer->name;
        if (!starts_with(name, "unet.") || !strcmp(name, "unet.conv_out")) return false;
        ends += !strcmp(name, "unet.conv_in") || !strcmp(name, "unet.time_embedding.linear_2");
    }
    return ends == 2;
}

// By its metadata, else the name of its file or folder, else its layers.
FewSteps lora_few_steps(const Lora *l, const char *path) {
    static const struct {
        const char *words;
        FewSteps how;
    } known[] = {{" lcm ", {"an LCM-LoRA", LCM, 4, 1, 0, false}},
                 {" tcd ", {"a TCD-LoRA", TCD, 4, 1, 0.3f, false}},
                 {" latent consistency ", {"an LCM-LoRA", LCM, 4, 1, 0, false}},
                 {" hypersd", {"a Hyper-SD LoRA", DDIM, 0, 1, 0, true}},
                 {" hyper sd", {"a Hyper-SD LoRA", DDIM, 0, 1, 0, true}}}; // its name says the steps
    static const FewSteps none = {.scheduler = -1};
    if (l->mode) return strcmp(l->mode, "finetune") ? known[0].how : none; // one of ours says so itself
    const char *slash = strrchr(path, '/'), *file = slash ? slash + 1 : path;
    char *where = slash ? format("%.*s", (int)(slash - path), path) : xstrdup("."),
         *real = realpath(where, NULL);
    const char *dir = real ? real : where, *folder = strrchr(dir, '/') ? strrchr(dir, '/') + 1 : dir,
               *hub = strstr(dir, "models--"); // in the Hub's cache the folder itself is a hash
    if (hub && hub < folder) folder = hub;
    char *words[] = {words_of(l->title, strlen(l->title)), words_of(file, strlen(file)),
                     words_of(folder, strlen(folder))};
    const char *how = has_distilled_layers(l) ? "layers" : NULL;
    FewSteps f = how ? known[0].how : none;
    for (int i = 2; i >= 0; i--) // the last that is found counts
        for (size_t k = 0; k < sizeof known / sizeof *known; k++) {
            const char *step = strstr(words[i], "step");
            while (step && step > words[i] && step[-1] == ' ') step--;
            while (step && step > words[i] && isdigit((unsigned char)step[-1])) step--;
            int steps = known[k].how.steps ? known[k].how.steps : step ? atoi(step) : 0;
            if (!strstr(words[i], known[k].words) || steps < 1) continue;
            f = known[k].how, f.steps = steps;
            if (f.trailing && strstr(words[i], " cfg "))
                f.cfg = 7.5f; // Hyper-SD's own for guidance of 5 to 8
            how = (const char *[]){"metadata", "file's name", "folder's name"}[i];
        }
    for (int i = 0; i < 3; i++) free(words[i]);
    free(where), free(real);
    if (how)
        note("%s is taken for %s by its %s, made for %d steps of %s%s, --cfg %g", path, f.name, how, f.steps,
             samplers[f.scheduler].name, f.trailing ? " with trailing timesteps" : "", (double)f.cfg);
    return f;
}

// PEFT's LoraConfig of each network, in one object as diffusers writes it: {"unet.r": 8, "unet.lora_alpha":
// 8, ...}. The first layer's rank and alpha are those of all layers that are not listed by name. PEFT
// compares the ends of names. So "text_model.", which only transformers before version 5 has, is left out.
static char *config_text(const Lora *l) {
    static const char *const networks[] = {"unet", "text_encoder"};
    static const char *const lists[] = {"rank_pattern\": {", "alpha_pattern\": {", "target_modules\": ["};
    char *text = xstrdup("{");
    for (int k = 0; k < 2; k++) {
        const LoraPart *first = NULL;
        for (int i = l->count - 1; i >= 0; i--)
            if (starts_with(l->parts[i].layer->name, networks[k])) first = &l->parts[i];
        if (!first) continue;
        int rank = first->adapter.down->shape[0];
        format_more(&text, "%s\"%s.r\": %d, \"%s.lora_alpha\": %.9g", text[1] ? ", " : "", networks[k], rank,
                    networks[k], (double)first->alpha);
        for (int which = 0; which < 3; which++) {
            const char *comma = "";
            format_more(&text, ", \"%s.%s", networks[k], lists[which]);
            for (int i = 0; i < l->count; i++) {
                const LoraPart *p = &l->parts[i];
                int its = p->adapter.down->shape[0];
                bool usual = (which == 0 && its == rank) || (which == 1 && p->alpha == first->alpha);
                if (usual || !starts_with(p->layer->name, networks[k])) continue;
                format_more(&text, "%s\"%s\"", comma, peft_name(p->layer));
                if (which < 2) format_more(&text, ": %.9g", which ? (double)p->alpha : its);
                comma = ", ";
            }
            format_more(&text, which < 2 ? "}" : "]");
        }
    }
    format_more(&text, "}");
    return text;
}

static void declare(StoreWriter *w, const LoraPart *p, LoraRole role, LoraFormat f, Type type, int dims,
                    const int64_t *shape) {
    char *key = lora_key(p->layer->name, role, f);
    store_declare(w, key, type, dims, shape);
    free(key);
}

void lora_save(const Lora *l, const char *path, LoraFormat f, Type type) {
    StoreWriter *w = store_create(path);
    store_metadata_add(w, "format", "pt");
    if (l->mode) store_metadata_add(w, "sd_mode", l->mode);
    if (f == LORA_PEFT) {
        char *config = config_text(l);
        store_metadata_add(w, "lora_adapter_metadata", config);
        free(config);
    } else {
        store_metadata_add(w, "ss_network_module", "networks.lora"); // kohya's tools look for it
    }
    for (int i = 0; i < l->count; i++) {
        const LoraPart *p = &l->parts[i];
        const Tensor *up = p->adapter.up;
        int64_t down_shape[4], up_shape[] = {up->shape[0], up->shape[1], 1, 1};
        int dims = param_file_shape(p->adapter.down, down_shape);
        declare(w, p, LORA_DOWN, f, type, dims, down_shape);
        declare(w, p, LORA_UP, f, type, dims, up_shape);
        if (f == LORA_KOHYA) declare(w, p, LORA_ALPHA, f, F32, 0, NULL);
    }
    for (int i = 0; i < l->count; i++) {
        const LoraPart *p = &l->parts[i];
        float *down = param_read(p->adapter.down), *up = tensor_read(p->adapter.up);
        store_data_f32(w, down, tensor_count(p->adapter.down));
        store_data_f32(w, up, tensor_count(p->adapter.up));
        if (f == LORA_KOHYA) store_data_f32(w, &p->alpha, 1);
        free(down), free(up);
    }
    store_commit(w);
}

// For `sd info`.
bool lora_describe(const char *path) {
    Store *s = store_open(path);
    int downs = 0, convolutions = 0, text = 0;
    double ranks[2] = {INFINITY, 0}, alphas[2] = {INFINITY, -INFINITY}; // the least and the most
    const char *kind = NULL;
    for (size_t i = 0; i < store_count(s); i++) {
        const Stored *t = store_at(s, i);
        size_t n;
        bool relative = strstr(t->name, "lora") || strstr(t->name, "hada_") || strstr(t->name, "lokr_");
        if (!kind && relative) kind = lora_foreign(t->name);
        LoraRole role = lora_role(t->name, &n);
        if (role == LORA_ALPHA && t->count == 1) {
            float alpha;
            store_read_f32(t, &alpha);
            alphas[0] = fmin(alphas[0], (double)alpha), alphas[1] = fmax(alphas[1], (double)alpha);
        }
        if (role != LORA_DOWN || t->ndim < 2) continue;
        downs++;
        convolutions += t->ndim == 4 && t->shape[2] * t->shape[3] > 1;
        text += strstr(t->name, "encoder.layers.") || strstr(t->name, "encoder_layers_");
        ranks[0] = fmin(ranks[0], (double)t->shape[0]), ranks[1] = fmax(ranks[1], (double)t->shape[0]);
    }
    if (downs) {
        bool kohya = starts_with(store_at(s, 0)->name, "lora_");
        const char *mode = store_metadata(s, "sd_mode"), *config = store_metadata(s, "lora_adapter_metadata");
        printf("LoRA          %s keys; %d layers: %d 3x3 convolutions, %d in the text encoder; rank %g",
               kohya ? "kohya" : "diffusers/PEFT", downs, convolutions, text, ranks[0]);
        if (ranks[1] != ranks[0]) printf(" to %g", ranks[1]);
        if (alphas[0] <= alphas[1])
            printf(alphas[0] == alphas[1] ? ", alpha %g\n" : ", alpha %g to %g\n", alphas[0], alphas[1]);
        else
            puts(config ? ", alpha in the header" : ", alpha not said: the rank");
        if (mode)
            printf("trained by    sd lora %s%s\n", strcmp(mode, "finetune") ? "distill --mode " : "", mode);
    }
    if (kind) printf("cannot be applied: it is %s\n", kind);
    if (*made_for(s)) puts(made_for(s) + strlen("; "));
    store_close(s);
    return downs > 0 || kind;
}
