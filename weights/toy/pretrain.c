// pretrain.c: `sd pretrain`, the training from nothing of the tiny model that the project ships. Its stages, a
// function each, in the order in which they stand on one another:
//
//   tokenizer  byte-pair merges from the toy world's captions
//   vae        pixels <-> latents; at the end the latents are brought to mean 0 and spread 1
//   text       the text encoder, contrastively beside a small picture encoder (Radford et al. 2021)
//   unet       noise prediction on latents (Ho et al. 2020), the text encoder trained along
//   decoder    more of the VAE's decoder, the encoder left as it is (so latents keep their meaning)
//
// (`inception`, the judge of what they draw, and `check`, which measures it and the VAE, are in judge.c.) Every stage
// is a run as lib/io/train.h has it: it resumes from its checkpoint with the same bits, and writes its moving-average
// weights as fp16 in diffusers' layout. Started on a folder that already holds such weights it continues from them
// with a fresh optimiser.
#include "sd.h"
#include "lib/io/architectures.h"
#include "cli/commands.h"
#include "pretrain.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SIZE = SCENE_SIZE, TOKENS = 32, VOCABULARY = 768, WIDTH = 128, LATENT = 16, CHANNELS = 4 };
enum { LATENT_COUNT = LATENT * LATENT * CHANNELS };

// ---- models in training ---------------------------------------------------------------------------------------

typedef struct {
    const char *name, *file; // "unet", "unet/diffusion_pytorch_model.safetensors"
    Params params;
} Part;

static Json *json_of(const char *text) { return json_parse(text, strlen(text), "the tiny configuration"); }

// Uniform in +-sqrt(3 / fan_in) times gain: outputs are as spread as inputs. Biases zero, norms one.
static void initialise(const Params *p, Random *r) {
    for (int i = 0; i < p->count; i++) {
        Tensor *t = p->list[i].tensor;
        const char *name = p->list[i].name;
        size_t n = tensor_count(t), fan_in = n / (size_t)t->shape[0];
        float *x = xcalloc(n, sizeof(float));
        bool embedding = strstr(name, "embedding.weight"), weight = strstr(name, ".weight");
        // The last layer of every residual branch starts at nothing, so that the network begins as its skips.
        bool silent = strstr(name, ".conv2.weight") || strstr(name, ".proj_out.weight") ||
                      !strcmp(name, "unet.conv_out.weight");
        // In the text encoder only nearly: it must not ignore its words.
        bool quiet =
            strstr(name, "text_encoder") && (strstr(name, ".out_proj.weight") || strstr(name, ".fc2.weight"));
        if (t->dims == 1 && weight)
            for (size_t j = 0; j < n; j++) x[j] = 1;
        else if (embedding) {
            random_normal(r, x, n);
            for (size_t j = 0; j < n; j++) x[j] *= strstr(name, "position") ? 0.1f : 0.5f;
        } else if (weight && !silent) {
            float bound = sqrtf(3 / (float)fan_in) * (quiet ? 0.35f : 1);
            for (size_t j = 0; j < n; j++) x[j] = bound * (2 * random_uniform(r) - 1);
        }
        if (t->data) backend.free(t->data);
        param_allocate(t, F32);
        tensor_write(t, x);
        free(x);
    }
}

static const Stored *find_without_prefix(void *store, const char *name) {
    return store_find(store, strchr(name, '.') + 1);
}

// Weights that stand in DIR already, else fresh ones. Returns whether they were there.
static bool load_or_initialise(const Part *part, const char *dir, Random *r) {
    char *path = format("%s/%s", dir, part->file);
    bool there = file_exists(path);
    if (there) {
        Store *s = store_open(path);
        params_load(&part->params, find_without_prefix, s, path);
        params_to_f32(&part->params);
        store_close(s);
        note("%s: continuing from %s", part->name, path);
    } else {
        initialise(&part->params, r);
    }
    free(path);
    return there;
}

static void train_part(const Part *part) {
    for (int i = 0; i < part->params.count; i++) param_trainable(part->params.list[i].tensor);
}

static void save_part(const Part *part, const char *dir) {
    char *path = format("%s/%s", dir, part->file);
    char *folder = xstrdup(path);
    *strrchr(folder, '/') = 0;
    make_directories(folder);
    params_save(&part->params, path, strlen(part->name) + 1, F16);
    free(folder), free(path);
}

// ---- options ---------------------------------------------------------------------------------------------------

Run pretrain_run(const PretrainOptions *o, const Pairs *pairs, Optimiser *optimiser) {
    Run run = {.dir = o->run ? xstrdup(o->run) : format("run/%s", o->stage),
               .what = o->stage,
               .optimiser = optimiser,
               .total = o->steps,
               .batch = o->batch,
               .checkpoint_every = o->checkpoint_every};
    char data[20] = "";
    if (pairs) snprintf(data, sizeof data, "%016llx", (unsigned long long)pairs->key);
    run.config = format("{\"stage\": \"%s\", \"steps\": %ld, \"batch\": %d, \"rate\": %g, \"ema\": %g, "
                        "\"data\": \"%s\", \"seed\": %llu}",
                        o->stage, o->steps, o->batch, o->rate, o->ema, data, (unsigned long long)o->seed);
    optimiser->ema_warmup = true;
    run_begin(&run, o->seed, o->fresh);
    return run;
}

OptimiserConfig pretrain_adamw(const PretrainOptions *o) {
    return (OptimiserConfig){.rate = (float)o->rate,
                             .beta1 = 0.9f,
                             .beta2 = 0.99f,
                             .eps = 1e-8f,
                             .weight_decay = 0.01f,
                             .max_norm = 1,
                             .warmup = (float)(o->steps / 20 < 500 ? o->steps / 20 : 500),
                             .total = (float)o->steps,
                             .floor = 0.05f};
}

// ---- stage: tokenizer -------------------------------------------------------------------------------------------

static void pretrain_tokenizer(const PretrainOptions *o) {
    enum { SCENES = 4000 };
    char **texts = xmalloc(2 * SCENES * 5 * sizeof *texts);
    for (long i = 0; i < 2 * SCENES; i++) {
        Scene scene;
        char captions[SCENE_CAPTIONS][SCENE_CAPTION_BYTES];
        scene_describe(i % 2 ? WORLD_FLICKR : WORLD_BROAD, SPLIT_TRAIN, o->seed, i / 2, &scene, captions);
        for (int j = 0; j < 5; j++) texts[5 * i + j] = xstrdup(captions[j]);
    }
    char *dir = format("%s/tokenizer", o->out);
    make_directories(dir);
    tokenizer_train(dir, (const char *const *)texts, 2 * SCENES * 5, VOCABULARY, TOKENS);
    for (long i = 0; i < 2 * SCENES * 5; i++) free(texts[i]);
    free(texts), free(dir);
}

// ---- stage: vae -------------------------------------------------------------------------------------------------

enum { CROP = 64 };

// A batch of fresh scenes as pixels in [-1, 1], cut to crop x crop: 4 of 5 around the figure, which is what is hard.
static Tensor *scene_crops(const PretrainOptions *o, long first, int n, int crop, World world) {
    float *x = xmalloc((size_t)n * (size_t)(crop * crop * 3) * sizeof(float));
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < n; i++) {
        unsigned char *rgb = xmalloc(SIZE * SIZE * 3);
        Scene scene;
        char captions[SCENE_CAPTIONS][SCENE_CAPTION_BYTES];
        int box[4], room = SIZE - crop;
        scene_describe(world, SPLIT_TRAIN, o->seed, first + i, &scene, captions);
        scene_draw_as(world, scene_seed(world, SPLIT_TRAIN, o->seed, first + i), &scene, rgb, box);
        uint32_t at[4], key[2] = {(uint32_t)o->seed, 1},
                        counter[4] = {(uint32_t)(first + i), (uint32_t)world, 0, 0};
        philox4x32(counter, key, at);
        int corner[2]; // left, top
        for (int k = 0; k < 2; k++) {
            int middle = (box[k] + box[k + 2] - crop) / 2,
                jitter = (int)(at[k] % (uint32_t)(crop / 2 + 1)) - crop / 4;
            corner[k] = at[2] % 5 ? middle + jitter : (int)(at[k] % (uint32_t)(room + 1));
            corner[k] = corner[k] < 0 ? 0 : corner[k] > room ? room : corner[k];
        }
        for (int y = 0; y < crop; y++)
            for (int k = 0; k < 3 * crop; k++)
                x[((size_t)i * (size_t)crop + (size_t)y) * 3 * (size_t)crop + (size_t)k] =
                    (float)rgb[((corner[1] + y) * SIZE + corner[0]) * 3 + k] / 127.5f - 1;
        free(rgb);
    }
    Tensor *t = tensor_from(SHAPE(n, crop, crop, 3), x);
    free(x);
    return t;
}

// Horizontal and vertical differences of each colour as a convolution: y = x(right) - x, x(below) - x.
static Layer *difference_layer(Params *p) {
    Layer *l = layer_conv(p, 3, 6, 2, 2, false, "difference");
    float w[6 * 3 * 4] = {0}; // (out, in, 2, 2)
    for (int c = 0; c < 3; c++) {
        float *right = w + (c * 3 + c) * 4, *below_ = w + ((c + 3) * 3 + c) * 4;
        right[0] = -1, right[1] = 1;
        below_[0] = -1, below_[2] = 1;
    }
    param_allocate(l->weight, F32);
    param_write(l->weight, w);
    return l;
}

// After training: latents of mean 0 and spread 1 per channel. diffusers knows a single scaling factor, so the
// shift and scale of each channel are folded into the 1x1 convolutions on both sides of the latent:
//   z' = (z - mean) / spread, the logarithm of the variance loses 2 log spread; the decoder gets z' spread + mean.
static void normalise_latents(const PretrainOptions *o, const Vae *v, const Params *p) {
    enum { BATCHES = 32, EACH = 16 };
    double sum[CHANNELS] = {0}, square[CHANNELS] = {0}, count = 0;
    for (int b = 0; b < BATCHES; b++) {
        Scope s = scope_begin();
        float *x = tensor_read(vae_encode(
            v, scene_crops(o, (1 << 24) + b * EACH, EACH, SIZE, b % 2 ? WORLD_FLICKR : WORLD_BROAD)));
        for (int i = 0; i < EACH * LATENT * LATENT; i++)
            for (int c = 0; c < CHANNELS; c++)
                sum[c] += x[i * 2 * CHANNELS + c],
                    square[c] += x[i * 2 * CHANNELS + c] * (double)x[i * 2 * CHANNELS + c];
        count += EACH * LATENT * LATENT;
        free(x);
        scope_end(s, NULL);
    }
    Layer *quant = params_layer(p, "vae.quant_conv"), *post = params_layer(p, "vae.post_quant_conv");
    float *qw = param_read(quant->weight), *qb = param_read(quant->bias), *pw = param_read(post->weight),
          *pb = param_read(post->bias);
    for (int c = 0; c < CHANNELS; c++) {
        double mean = sum[c] / count, spread = sqrt(square[c] / count - mean * mean);
        note("latent channel %d: mean %.3f, spread %.3f", c, mean, spread);
        for (int i = 0; i < 2 * CHANNELS; i++) qw[c * 2 * CHANNELS + i] /= (float)spread;
        qb[c] = (float)((qb[c] - mean) / spread);
        qb[CHANNELS + c] -= (float)(2 * log(spread));
        for (int i = 0; i < CHANNELS; i++) {
            pb[i] += pw[i * CHANNELS + c] * (float)mean;
            pw[i * CHANNELS + c] *= (float)spread;
        }
    }
    param_write(quant->weight, qw), param_write(quant->bias, qb), param_write(post->weight, pw),
        param_write(post->bias, pb);
    free(qw), free(qb), free(pw), free(pb);
}

// Loss (Esser et al. 2021 without the adversary): L1 + 4 MSE + 1/4 L1 of the differences + a breath of KL. The squared
// error comes first: with L1 alone figures, which are small, stay grey for long.
static void pretrain_vae(const PretrainOptions *o, bool decoder_only) {
    Part vae = {"vae", "vae/diffusion_pytorch_model.safetensors", {0}};
    Json *j = json_of(architecture("tiny")->vae);
    Vae *v = vae_new(vae_config(j), &vae.params);
    json_free(j);
    Random init;
    random_seed(&init, o->seed);
    load_or_initialise(&vae, o->out, &init);
    for (int i = 0; i < vae.params.count; i++) {
        const char *name = vae.params.list[i].name;
        bool encoder = strstr(name, "vae.encoder") || strstr(name, "vae.quant_conv");
        if (!decoder_only || !encoder) param_trainable(vae.params.list[i].tensor);
    }
    Params fixed = {0};
    Layer *difference = difference_layer(&fixed);
    const Params *models[] = {&vae.params};
    Optimiser *optimiser = optimiser_new(pretrain_adamw(o), (float)o->ema, models, 1);
    Run run = pretrain_run(o, NULL, optimiser);
    int n = o->batch, latent = CROP / 8, each = latent * latent * CHANNELS;
    float *noise = xmalloc((size_t)(n * each) * sizeof(float)),
          *zeros = xcalloc((size_t)(n * each), sizeof(float));
    while (run_continues(&run)) {
        tape_begin();
        Tensor *x = scene_crops(o, run.step * n, n, CROP, run.step % 4 == 3 ? WORLD_FLICKR : WORLD_BROAD);
        Tensor *moments = vae_encode(v, x);
        Tensor *mean = slice(moments, 0, CHANNELS), *log_variance = slice(moments, CHANNELS, CHANNELS);
        random_normal(&run.random, noise, (size_t)(n * each));
        Tensor *eps = tensor_from(SHAPE(n, latent, latent, CHANNELS), noise);
        Tensor *z = add(mean, multiply(activation(combine(0.5f, log_variance, 0, NULL), EXP), eps));
        Tensor *y = vae_decode(v, z);
        Tensor *l1 = loss_between(y, x, NULL, LOSS_L1, 0), *mse = loss_between(y, x, NULL, LOSS_MSE, 0);
        Tensor *edges =
            loss_between(conv2d(y, difference, 1, 0), conv2d(x, difference, 1, 0), NULL, LOSS_L1, 0);
        Tensor *loss = combine(1, combine(1, l1, 4, mse), 0.25f, edges);
        if (!decoder_only) {
            // KL(N(mean, variance) || N(0, 1)) = (mean^2 + variance - 1 - log variance) / 2, as means of three terms;
            // "mean of |x - 0|" of a positive x is its mean.
            Tensor *zero = tensor_from(SHAPE(n, latent, latent, CHANNELS), zeros);
            Tensor *kl = combine(0.5f, loss_between(mean, zero, NULL, LOSS_MSE, 0), 0.5f,
                                 loss_between(combine(1, activation(log_variance, EXP), -1, log_variance),
                                              zero, NULL, LOSS_L1, 0));
            loss = combine(1, loss, 5e-4f, kl);
        }
        backward(loss);
        char parts[96];
        snprintf(parts, sizeof parts, ", \"l1\": %.5f, \"psnr\": %.3f", (double)tensor_item(l1),
                 10 * log10(4 / (double)tensor_item(mse)));
        run_step(&run, loss, parts, "fresh scenes");
        tape_end();
    }
    bool done = run_end(&run);
    optimiser_swap_ema(optimiser);
    if (done && !decoder_only) normalise_latents(o, v, &vae.params);
    if (done) save_part(&vae, o->out);
}

// ---- the pairs that the text encoder and the UNet learn from -------------------------------------------------------

// Refuses what is not the broad world's training scenes: the flickr world is what fine-tuning is to learn.
static void check_broad(const char *dir) {
    static const char wanted[] = "this stage learns from `sd scenes DIR --world broad`";
    dataset_close(dataset_open(dir)); // is it captioned pictures at all? It says what is missing
    char *path = format("%s/scenes.jsonl", dir);
    if (!file_exists(path)) die("%s has no scenes.jsonl; %s", dir, wanted);
    char *text = read_file(path, NULL);
    for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1) {
        Scene scene = scene_parse(line, (size_t)(end - line), path);
        if (scene_held_out(&scene))
            die("%s holds combinations that are held out for tests (--split test); %s", dir, wanted);
        Json *j = json_parse(line, (size_t)(end - line), path);
        if (strcmp(json_get_string(j, "world", ""), "broad"))
            die("%s is not of the broad world; %s", dir, wanted);
        json_free(j);
    }
    free(text), free(path);
}

// The folder's scenes (`sd scenes DIR --world broad`) as tokens and latents. Needs the stages before.
static Pairs *open_pairs(const PretrainOptions *o) {
    if (!o->data)
        die_usage("this stage needs --data DIR: scenes of the broad world, as `sd scenes` writes them");
    check_broad(o->data);
    const Architecture *tiny = architecture("tiny");
    Json *text = json_of(tiny->text_encoder), *net = json_of(tiny->unet), *vae_json = json_of(tiny->vae);
    Model m = {.text_config = text_config(text),
               .unet_config = unet_config(net),
               .vae_config = vae_config(vae_json)};
    json_free(text), json_free(net), json_free(vae_json);
    Part vae = {"vae", "vae/diffusion_pytorch_model.safetensors", {0}};
    m.vae = vae_new(m.vae_config, &vae.params);
    Random unused;
    random_seed(&unused, 0);
    if (!load_or_initialise(&vae, o->out, &unused))
        die("%s/%s is missing: train the vae first", o->out, vae.file);
    m.params = vae.params;
    char *dir = format("%s/tokenizer", o->out);
    m.tokenizer = tokenizer_open(dir);
    free(dir);
    Pairs *pairs = model_pairs(&m, o->data, "run/cache");
    tokenizer_close(m.tokenizer);
    params_free(&vae.params);
    free(m.vae);
    return pairs;
}

// ---- stage: text ------------------------------------------------------------------------------------------------

// The picture's side, only for this stage: three strided convolutions over the latents and a mean.
typedef struct {
    Layer *conv[3], *project, *norm, *text_project, *text_norm;
} Towers;

enum { JOINT = 64 };

static Towers towers_new(Params *p) {
    Towers t;
    int channels[] = {CHANNELS, 48, 96, 128};
    for (int i = 0; i < 3; i++)
        t.conv[i] = layer_conv(p, channels[i], channels[i + 1], 3, 3, true, "towers.conv%d", i);
    t.project = layer_linear(p, 128, JOINT, true, "towers.project"),
    t.norm = layer_norm_params(p, JOINT, "towers.norm");
    t.text_project = layer_linear(p, WIDTH, JOINT, true, "towers.text_project"),
    t.text_norm = layer_norm_params(p, JOINT, "towers.text_norm");
    return t;
}

static Tensor *picture_features(const Towers *t, Tensor *x) { // (n, 16, 16, 4) -> (n, JOINT)
    for (int i = 0; i < 3; i++) x = activation(conv2d(x, t->conv[i], 2, 1), SILU);
    x = pool(x, POOL_AVERAGE, x->shape[1], 1, 0);
    return layer_norm(linear(reshape(x, SHAPE(x->shape[0], x->shape[3])), t->project), t->norm, 1e-5f);
}

// The caption's feature is the state at its end token, as in CLIP: the first of them, padding being the same token.
// What comes after the longest caption's end, a quarter of the places or so, is not computed: nothing asks for it.
static Tensor *text_features(const Towers *t, const TextEncoder *e, const int *ids, int n) {
    int *ends = xmalloc((size_t)n * sizeof(int)), tokens = 0;
    for (int i = 0; i < n; i++) {
        ends[i] = 0;
        while (ends[i] < TOKENS - 1 && ids[i * TOKENS + ends[i]] != VOCABULARY - 1) ends[i]++;
        if (ends[i] >= tokens) tokens = ends[i] + 1;
    }
    int *first = xmalloc((size_t)(n * tokens) * sizeof(int)); // (n, tokens)
    for (int i = 0; i < n; i++) {
        memcpy(first + i * tokens, ids + i * TOKENS, (size_t)tokens * sizeof(int));
        ends[i] += i * tokens;
    }
    Tensor *states = text_encode_first(e, first, n, tokens);
    Tensor *end = embed(reshape(states, SHAPE(n * tokens, WIDTH)), ends, SHAPE(n)); // picks rows
    free(first), free(ends);
    return layer_norm(linear(end, t->text_project), t->text_norm, 1e-5f);
}

static void pretrain_text(const PretrainOptions *o) {
    Pairs *pairs = open_pairs(o);
    int n = o->batch;
    PairsBatch batch = pairs_batch(pairs, n);
    Part text = {"text_encoder", "text_encoder/model.safetensors", {0}};
    Json *j = json_of(architecture("tiny")->text_encoder);
    TextEncoder *e = text_encoder_new(text_config(j), &text.params);
    json_free(j);
    Part side = {"towers", "", {0}};
    Towers towers = towers_new(&side.params);
    Random init;
    random_seed(&init, o->seed + 1);
    load_or_initialise(&text, o->out, &init);
    initialise(&side.params, &init);
    train_part(&text), train_part(&side);
    const Params *models[] = {&text.params, &side.params};
    Optimiser *optimiser = optimiser_new(pretrain_adamw(o), (float)o->ema, models, 2);
    Run run = pretrain_run(o, pairs, optimiser);
    int *diagonal = xmalloc((size_t)n * sizeof(int));
    for (int i = 0; i < n; i++) diagonal[i] = i;
    while (run_continues(&run)) {
        pairs_draw(&batch, pairs, &run.random);
        tape_begin();
        Tensor *pictures =
            picture_features(&towers, tensor_from(SHAPE(n, LATENT, LATENT, CHANNELS), batch.z));
        Tensor *captions = text_features(&towers, e, batch.ids, n);
        // Which caption belongs to a picture, and which picture to a caption: features are norm-like (their spread is
        // learned), so a fixed temperature of 1 / JOINT serves.
        Tensor *loss =
            combine(0.5f, loss_pick(log_softmax(matmul(pictures, captions, true, 16.0f / JOINT)), diagonal),
                    0.5f, loss_pick(log_softmax(matmul(captions, pictures, true, 16.0f / JOINT)), diagonal));
        backward(loss);
        run_step(&run, loss, NULL, batch.names);
        tape_end();
    }
    bool done = run_end(&run);
    optimiser_swap_ema(optimiser);
    if (done) save_part(&text, o->out);
}

// ---- stage: unet ------------------------------------------------------------------------------------------------

// The network learns the noise in z_t = sqrt(a) z + sqrt(1 - a) eps (Ho et al. 2020), a picture in ten without its
// caption (Ho and Salimans 2022), errors weighted by min(SNR, 5) / SNR (Hang et al. 2023). The text encoder learns on.
static void pretrain_unet(const PretrainOptions *o) {
    Pairs *pairs = open_pairs(o);
    int n = o->batch;
    PairsBatch batch = pairs_batch(pairs, n);
    Part text = {"text_encoder", "text_encoder/model.safetensors", {0}},
         net = {"unet", "unet/diffusion_pytorch_model.safetensors", {0}};
    Json *j = json_of(architecture("tiny")->text_encoder);
    TextEncoder *e = text_encoder_new(text_config(j), &text.params);
    json_free(j), j = json_of(architecture("tiny")->unet);
    UNet *u = unet_new(unet_config(j), &net.params);
    json_free(j);
    Random init;
    random_seed(&init, o->seed + 2);
    load_or_initialise(&text, o->out, &init);
    load_or_initialise(&net, o->out, &init);
    train_part(&text), train_part(&net);
    const Params *models[] = {&text.params, &net.params};
    Optimiser *optimiser = optimiser_new(pretrain_adamw(o), (float)o->ema, models, 2);
    Run run = pretrain_run(o, pairs, optimiser);
    Scheduler s;
    j = json_of(architecture("tiny")->scheduler);
    scheduler_init(&s, scheduler_config(j, -1));
    json_free(j);

    char *dir = format("%s/tokenizer", o->out);
    Tokenizer *tokenizer = tokenizer_open(dir);
    int empty[TOKENS], used = tokenizer_encode(tokenizer, "", empty, TOKENS, NULL);
    while (used < TOKENS) empty[used++] = tokenizer_pad(tokenizer);
    tokenizer_close(tokenizer);
    size_t numbers = (size_t)n * LATENT_COUNT;
    float *eps = xmalloc(numbers * sizeof(float));
    float *t = xmalloc((size_t)n * sizeof(float)), *signal = xmalloc((size_t)n * sizeof(float));
    float *sigma = xmalloc((size_t)n * sizeof(float)), *weight = xmalloc((size_t)n * sizeof(float));
    double saved = seconds();
    while (run_continues(&run)) {
        pairs_draw(&batch, pairs, &run.random);
        for (int i = 0; i < n; i++) {
            if (random_below(&run.random, 10) == 0) memcpy(batch.ids + i * TOKENS, empty, sizeof empty);
            int time = random_below(&run.random, 1000);
            float a = s.alphas_cumprod[time], snr = a / (1 - a);
            t[i] = (float)time, signal[i] = sqrtf(a), sigma[i] = sqrtf(1 - a),
            weight[i] = fminf(snr, 5) / snr;
        }
        random_normal(&run.random, eps, numbers);
        tape_begin(); // [G1] a training step: forward while the tape records, backward, optimiser
        Tensor *noise = tensor_from(SHAPE(n, LATENT, LATENT, CHANNELS), eps);
        Tensor *z =
            combine_each(signal, tensor_from(SHAPE(n, LATENT, LATENT, CHANNELS), batch.z), sigma, noise);
        Tensor *loss =
            loss_between(unet(u, z, t, text_encode(e, batch.ids, n), NULL), noise, weight, LOSS_MSE, 0);
        backward(loss);
        run_step(&run, loss, NULL, batch.names);
        tape_end();
        if (seconds() - saved > 300) { // so that samples can be looked at while it learns
            run_checkpoint(&run);      // first: a run that is killed must not begin anew from what it wrote
            optimiser_swap_ema(optimiser);
            save_part(&text, o->out), save_part(&net, o->out);
            optimiser_swap_ema(optimiser);
            saved = seconds();
        }
    }
    run_end(&run);
    optimiser_swap_ema(optimiser);
    save_part(&text, o->out), save_part(&net, o->out);
}

// ---- the command --------------------------------------------------------------------------------------------------

static const char help[] =
    "usage: sd pretrain tokenizer|vae|decoder|text|unet|inception|check [options]\n\n"
    "Trains the tiny model on the toy world's broad scenes, a stage a command, in this order. The\n"
    "same command continues after an interruption. check trains nothing: it tells how well the judge\n"
    "(inception) reads held-out scenes, and what the VAE makes of them.\n\n"
    "  -o, --output DIR   the model's folder (default weights/tiny)\n"
    "      --run DIR      checkpoint and log (default run/STAGE)\n"
    "      --steps N   --batch N   --lr R   --ema D   --data DIR (text, unet: scenes of the broad world)\n"
    "      --checkpoint-every S   seconds (default 120)\n"
    "      --fresh        begin the run anew (weights in the model's folder are still the start)\n"
    "      --seed N   -t, --threads N   -q   -v   -h\n";

enum { TOKENIZER, VAE, DECODER, TEXT, UNET, INCEPTION, CHECK }; // the stages
enum { RUN_DIR = 256, STEPS, BATCH, RATE, EMA, DATA, CHECKPOINT_EVERY, FRESH };

int command_pretrain(int argc, char **argv) {
    static const struct option options[] = {{"output", required_argument, 0, 'o'},
                                            {"run", required_argument, 0, RUN_DIR},
                                            {"steps", required_argument, 0, STEPS},
                                            {"batch", required_argument, 0, BATCH},
                                            {"lr", required_argument, 0, RATE},
                                            {"ema", required_argument, 0, EMA},
                                            {"data", required_argument, 0, DATA},
                                            {"checkpoint-every", required_argument, 0, CHECKPOINT_EVERY},
                                            {"fresh", no_argument, 0, FRESH},
                                            COMMON_LONG,
                                            {0}};
    Common common = common_defaults;
    PretrainOptions o = {.out = "weights/tiny"};
    int option;
    while ((option = getopt_long(argc, argv, "o:" COMMON_SHORT, options, NULL)) != -1) {
        if (common_option(&common, option, help)) continue;
        switch (option) {
        case 'o': o.out = optarg; break;
        case RUN_DIR: o.run = optarg; break;
        case STEPS: o.steps = option_whole("--steps", optarg, 1, 1 << 24); break;
        case BATCH: o.batch = (int)option_whole("--batch", optarg, 1, 4096); break;
        case RATE: o.rate = option_number("--lr", optarg, 0, 1); break;
        case EMA: o.ema = option_number("--ema", optarg, 0, 0.999999); break;
        case DATA: o.data = optarg; break;
        case CHECKPOINT_EVERY:
            o.checkpoint_every = option_number("--checkpoint-every", optarg, 1e-9, 1e9);
            break;
        case FRESH: o.fresh = true; break;
        }
    }
    if (optind != argc - 1)
        die_usage("one stage is needed: tokenizer, vae, decoder, text, unet, inception or check");
    // What worked, a row a stage: weights/README.md tells how it was found.
    static const struct {
        const char *name;
        long steps;
        int batch;
        double rate, ema;
    } stages[] = {[TOKENIZER] = {"tokenizer", 1, 1, 1, 0},
                  [VAE] = {"vae", 6000, 12, 1.5e-3, 0.998},
                  [DECODER] = {"decoder", 6000, 12, 5e-4, 0.998},
                  [TEXT] = {"text", 800, 128, 1e-3, 0.99},
                  [UNET] = {"unet", 20000, 32, 6e-4, 0.9995},
                  [INCEPTION] = {"inception", 3000, 32, 2e-3, 0.995},
                  [CHECK] = {"check", 1, 1, 1, 0}};
    const char *name = argv[optind];
    for (size_t i = 0; i < sizeof stages / sizeof *stages; i++) {
        if (strcmp(name, stages[i].name)) continue;
        if (o.data && i != TEXT && i != UNET)
            die_usage("%s takes no --data: it draws its scenes itself", name);
        o.stage = name, o.seed = common.seed;
        if (!o.steps) o.steps = stages[i].steps;
        if (!o.batch) o.batch = stages[i].batch;
        if (o.rate == 0) o.rate = stages[i].rate;
        if (o.ema == 0) o.ema = stages[i].ema;
        common_start(&common);
        static const char *const parts[] = {".", "tokenizer", "scheduler", "text_encoder", "unet", "vae"};
        for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) {
            char *folder = format("%s/%s", o.out, parts[k]);
            remove_leftovers(folder);
            free(folder);
        }
        architecture_write(architecture("tiny"), o.out);
        switch (i) {
        case TOKENIZER: pretrain_tokenizer(&o); break;
        case VAE: pretrain_vae(&o, false); break;
        case DECODER: pretrain_vae(&o, true); break;
        case TEXT: pretrain_text(&o); break;
        case UNET: pretrain_unet(&o); break;
        case INCEPTION: pretrain_inception(&o); break;
        case CHECK: pretrain_check(&o); break;
        }
        return 0;
    }
    die_usage("there is no stage \"%s\"; tokenizer, vae, decoder, text, unet, inception and check are", name);
}
