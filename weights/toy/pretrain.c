// pretrain.c: the training from nothing of the tiny model that the project ships. Its stages, a function
// each, in the order in which they stand on one another:
//
//   tokenizer  byte-pair merges from the toy world's captions
//   vae        pixels <-> latents; at the end the latents are scaled to mean 0 and standard deviation 1
//   text       the text encoder, contrastively beside a small picture encoder (Radford et al. 2021)
//   unet       noise prediction on latents (Ho et al. 2020), the text encoder trained along
//   decoder    more of the VAE's decoder, the encoder left as it is (so latents keep their meaning)
//
// (`inception`, the judge of what they draw, and `check`, which measures it and the VAE, are in judge.c.)
// Every stage is a run as lib/io/train.h has it: it resumes from its checkpoint with the same bits, and
// writes its moving-average weights as fp16 in diffusers' layout. Started on a folder that already holds such
// weights it continues from them with a fresh optimiser.
#include "sd.h"
#include "lib/io/architectures.h"
#include "lib/nn/ranks.h"
#include "pretrain.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SIZE = SCENE_SIZE, TOKENS = 32, VOCABULARY = 768, WIDTH = 128, LATENT = 16, CHANNELS = 4 };

// ---- models in training -----------------------------------------------------------------------------------

typedef struct {
    const char *name, *file; // "unet", "unet/diffusion_pytorch_model.safetensors"
    Params params;
} Part;

// The tiny model's configurations, as its files will hold them.
static Json *json_of(const char *text) { return json_parse(text, strlen(text), "the tiny configuration"); }

static Model tiny(void) {
    const Architecture *a = architecture("tiny");
    Json *text = json_of(a->text_encoder), *net = json_of(a->unet), *vae = json_of(a->vae);
    Model m = {
        .text_config = text_config(text), .unet_config = unet_config(net), .vae_config = vae_config(vae)};
    json_free(text), json_free(net), json_free(vae);
    return m;
}

// Weights are uniform in +-sqrt(3 / fan_in), of variance 1 / fan_in, so that outputs have the variance of the
// inputs. Biases are 0, scales of norms 1, embeddings normal.
static void initialise(const Params *p, Random *r) {
    for (int i = 0; i < p->count; i++) {
        Tensor *t = p->list[i].tensor;
        const char *name = p->list[i].name;
        size_t n = tensor_count(t), fan_in = n / (size_t)t->shape[0];
        float *x = xcalloc(n, sizeof(float));
        bool embedding = strstr(name, "embedding.weight"), weight = strstr(name, ".weight");
        // The last layer of every residual branch starts at 0: the network begins as its skip connections.
        bool silent = strstr(name, ".conv2.weight") || strstr(name, ".proj_out.weight") ||
                      !strcmp(name, "unet.conv_out.weight");
        // In the text encoder it only starts small: at 0 no word would know of the others.
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

// The weights in DIR, or fresh ones where there are none. Returns whether there were some.
static bool load_or_initialise(const Part *part, const char *dir, Random *r) {
    char *path = format("%s/%s", dir, part->file);
    bool exists = file_exists(path);
    if (exists) {
        Store *s = store_open(path);
        params_load(&part->params, find_without_prefix, s, path);
        params_to_f32(&part->params);
        store_close(s);
        note("%s: continuing from %s", part->name, path);
    } else {
        initialise(&part->params, r);
    }
    free(path);
    return exists;
}

static void train_part(const Part *part) {
    for (int i = 0; i < part->params.count; i++) param_trainable(part->params.list[i].tensor);
}

static void save_part(const Part *part, const char *dir) {
    if (ranks_mine()) return;
    char *path = path_inside(dir, part->file);
    params_save(&part->params, path, strlen(part->name) + 1, F16, NULL, NULL);
    free(path);
}

// ---- options ----------------------------------------------------------------------------------------------

Run pretrain_run(const PretrainOptions *o, Pairs *pairs, const Params *const *models, int count) {
    OptimiserConfig adamw = {.rate = (float)o->rate,
                             .beta1 = 0.9f,
                             .beta2 = 0.99f,
                             .eps = 1e-8f,
                             .weight_decay = 0.01f,
                             .max_norm = 1,
                             .warmup = (float)(o->steps / 20 < 500 ? o->steps / 20 : 500),
                             .total = (float)o->steps,
                             .floor = 0.05f};
    Run run = {.dir = o->run ? xstrdup(o->run) : format("run/%s", o->stage),
               .what = o->stage,
               .optimiser = optimiser_new(adamw, (float)o->ema, models, count),
               .total = o->steps,
               .batch = o->batch,
               .shards = o->shards,
               .checkpoint_every = o->checkpoint_every,
               .keep_one = o->keep_one,
               .validate = o->validate,
               .pairs = pairs};
    char data[20] = "";
    if (pairs) snprintf(data, sizeof data, "%016llx", (unsigned long long)pairs->key);
    run.config = format("{\"stage\": \"%s\", \"steps\": %ld, \"batch\": %d, \"rate\": %g, \"ema\": %g, "
                        "\"data\": \"%s\", \"seed\": %llu}",
                        o->stage, o->steps, o->batch, o->rate, o->ema, data, (unsigned long long)o->seed);
    run.optimiser->ema_warmup = true;
    run_begin(&run, o->seed, o->fresh);
    return run;
}

bool pretrain_end(const PretrainOptions *o, Run *run) {
    bool done = run_end(run);
    if (o->ended) *o->ended = *run;
    optimiser_swap_ema(run->optimiser);
    return done && ranks_mine() == 0;
}

// ---- stage: tokenizer -------------------------------------------------------------------------------------

static void pretrain_tokenizer(const PretrainOptions *o) {
    enum { SCENES = 4000 };
    char **texts = xmalloc(2 * SCENES * 5 * sizeof *texts);
    for (long i = 0; i < 2 * SCENES; i++) {
        char captions[SCENE_CAPTIONS][SCENE_CAPTION_BYTES];
        scene_describe(i % 2 ? WORLD_FLICKR : WORLD_BROAD, SPLIT_TRAIN, o->seed, i / 2, NULL, captions);
        for (int j = 0; j < 5; j++) texts[5 * i + j] = xstrdup(captions[j]);
    }
    char *dir = path_inside(o->out, "tokenizer");
    tokenizer_train(dir, (const char *const *)texts, 2 * SCENES * 5, VOCABULARY, TOKENS);
    for (long i = 0; i < 2 * SCENES * 5; i++) free(texts[i]);
    free(texts), free(dir);
}

// ---- stage: vae -------------------------------------------------------------------------------------------

enum { CROP = 64 };

Tensor *pretrain_scenes(const PretrainOptions *o, Split split, int world, long first, int n, int crop,
                        Scene *scenes, int (*boxes)[4]) {
    float *x = xmalloc((size_t)n * (size_t)(crop * crop * 3) * sizeof(float));
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < n; i++) {
        unsigned char *rgb = xmalloc(SIZE * SIZE * 3);
        World of = (World)(world == BOTH_WORLDS ? (first + i) % 2 : world);
        long index = world == BOTH_WORLDS ? (first + i) / 2 : first + i;
        Scene scene;
        int box[4], most = SIZE - crop; // box of the figure; largest place of a corner
        scene_draw(of, split, o->seed, index, rgb, &scene, box);
        uint32_t at[4], key[2] = {(uint32_t)o->seed, 1}, counter[4] = {(uint32_t)index, (uint32_t)of, 0, 0};
        philox4x32(counter, key, at);
        int corner[2]; // left, top
        for (int k = 0; k < 2; k++) {
            int middle = (box[k] + box[k + 2] - crop) / 2,
                jitter = (int)(at[k] % (uint32_t)(crop / 2 + 1)) - crop / 4;
            corner[k] = at[2] % 5 ? middle + jitter : (int)(at[k] % (uint32_t)(most + 1));
            corner[k] = corner[k] < 0 ? 0 : corner[k] > most ? most : corner[k];
        }
        for (int y = 0; y < crop; y++)
            for (int k = 0; k < 3 * crop; k++)
                x[((size_t)i * (size_t)crop + (size_t)y) * 3 * (size_t)crop + (size_t)k] =
                    (float)rgb[((corner[1] + y) * SIZE + corner[0]) * 3 + k] / 127.5f - 1;
        free(rgb);
        if (scenes) scenes[i] = scene;
        if (boxes) memcpy(boxes[i], box, sizeof box);
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

// After training each channel of the latents gets mean 0 and standard deviation 1. diffusers has a single
// scaling factor for all, so shift and scale are folded into the 1x1 convolutions on both sides of the
// latents:
//   z' = (z - mean) / std,   log var' = log var - 2 log std;   the decoder gets z' std + mean
static void normalise_latents(const PretrainOptions *o, const Vae *v, const Params *p) {
    enum { BATCHES = 32, EACH = 16 };
    double sum[CHANNELS] = {0}, square[CHANNELS] = {0}, count = 0;
    for (int b = 0; b < BATCHES; b++) {
        Scope s = scope_begin();
        World world = b % 2 ? WORLD_FLICKR : WORLD_BROAD;
        float *x = tensor_read(vae_encode(
            v, pretrain_scenes(o, SPLIT_TRAIN, world, (1 << 24) + b * EACH, EACH, SIZE, NULL, NULL)));
        for (int i = 0; i < EACH * LATENT * LATENT; i++)
            for (int c = 0; c < CHANNELS; c++) {
                double value = x[i * 2 * CHANNELS + c];
                sum[c] += value, square[c] += value * value;
            }
        count += EACH * LATENT * LATENT;
        free(x);
        scope_end(s, NULL);
    }
    Layer *quant = params_layer(p, "vae.quant_conv"), *post = params_layer(p, "vae.post_quant_conv");
    float *qw = param_read(quant->weight), *qb = param_read(quant->bias);
    float *pw = param_read(post->weight), *pb = param_read(post->bias);
    for (int c = 0; c < CHANNELS; c++) {
        double mean = sum[c] / count, std = sqrt(square[c] / count - mean * mean);
        note("latent channel %d: mean %.3f, standard deviation %.3f", c, mean, std);
        for (int i = 0; i < 2 * CHANNELS; i++) qw[c * 2 * CHANNELS + i] /= (float)std;
        qb[c] = (float)((qb[c] - mean) / std);
        qb[CHANNELS + c] -= (float)(2 * log(std));
        for (int i = 0; i < CHANNELS; i++) {
            pb[i] += pw[i * CHANNELS + c] * (float)mean;
            pw[i * CHANNELS + c] *= (float)std;
        }
    }
    param_write(quant->weight, qw), param_write(quant->bias, qb);
    param_write(post->weight, pw), param_write(post->bias, pb);
    free(qw), free(qb), free(pw), free(pb);
}

// Loss (Esser et al. 2021 without the adversary): L1 + 4 MSE + 1/4 L1 of the differences + a little KL. The
// squared error weighs most: with L1 alone the figures, which are small, stay grey for long.
static void pretrain_vae(const PretrainOptions *o) {
    bool decoder_only = !strcmp(o->stage, "decoder");
    Part vae = {"vae", "vae/diffusion_pytorch_model.safetensors", {0}};
    Vae *v = vae_new(tiny().vae_config, &vae.params);
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
    Run run = pretrain_run(o, NULL, models, 1);
    int n = run.batch, latent = CROP / 8;
    while (run_continues(&run)) {
        tape_begin();
        World world = (run.turn ? run.turn : run.step) % 4 == 3 ? WORLD_FLICKR : WORLD_BROAD;
        Split split = run.turn ? SPLIT_TEST : SPLIT_TRAIN;
        Tensor *x = pretrain_scenes(o, split, world, run.portion * n, n, CROP, NULL, NULL);
        Tensor *moments = vae_encode(v, x);
        Tensor *mu = slice(moments, 0, CHANNELS), *log_variance = slice(moments, CHANNELS, CHANNELS);
        Tensor *eps = random_tensor(&run.random, SHAPE(n, latent, latent, CHANNELS));
        Tensor *z = add(mu, multiply(exponential(scale(log_variance, 0.5f)), eps));
        Tensor *y = vae_decode(v, z);
        Tensor *l1 = loss_between(y, x, NULL, LOSS_L1, 0), *mse = loss_between(y, x, NULL, LOSS_MSE, 0);
        Tensor *edges =
            loss_between(conv2d(y, difference, 1, 0), conv2d(x, difference, 1, 0), NULL, LOSS_L1, 0);
        Tensor *loss = combine(1, combine(1, l1, 4, mse), 0.25f, edges);
        if (!decoder_only) {
            // KL(N(mu, variance) || N(0, 1)) = (mu^2 + variance - log variance - 1) / 2; -1 has no gradient.
            Tensor *terms = add(square(mu), sub(exponential(log_variance), log_variance));
            Tensor *kl = scale(mean(terms), 0.5f);
            loss = combine(1, loss, 5e-4f, kl);
        }
        backward(loss);
        RunPart parts[RUN_PARTS] = {{"\"l1\": %.5f", (double)tensor_item(l1)},
                                    {"\"psnr\": %.3f", 10 * log10(4 / (double)tensor_item(mse))}};
        run_step(&run, loss, parts, "fresh scenes");
        tape_end();
    }
    bool done = pretrain_end(o, &run);
    if (done && !decoder_only) normalise_latents(o, v, &vae.params);
    if (done) save_part(&vae, o->out);
}

// ---- the pairs that the text encoder and the UNet learn from ----------------------------------------------

// Accepts the broad world's training scenes only: the flickr world is for fine-tuning, the rest is held out.
static void check_broad(const char *dir) {
    static const char wanted[] = "this stage learns from `sd scenes DIR --world broad`";
    dataset_close(dataset_open(dir)); // says what is missing where these are no captioned pictures at all
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

// Before anything is written: are the scenes and the stages before there?
static void check_pairs(const PretrainOptions *o) {
    if (!o->data)
        die_usage("this stage needs --data DIR: scenes of the broad world, as `sd scenes` writes them");
    check_broad(o->data);
    char *vae = format("%s/vae/diffusion_pytorch_model.safetensors", o->out);
    if (!file_exists(vae)) die("%s is missing: train the vae first", vae);
    free(vae);
}

// The folder's scenes (`sd scenes DIR --world broad`) as tokens and latents.
static Pairs *open_pairs(const PretrainOptions *o) {
    Model *m = model_load(o->out, NULL, NEED_VAE | NEED_TOKENIZER), all = tiny();
    params_to_f32(&m->params);
    m->text_config = all.text_config, m->unet_config = all.unet_config; // how captions and latents are sized
    Pairs *pairs = model_pairs(m, o->data, "run/cache", o->validate);
    model_free(m);
    return pairs;
}

// ---- stage: text ------------------------------------------------------------------------------------------

// What only this stage needs: for pictures three strided convolutions over the latents and a mean, and on
// both sides a projection into the space of JOINT features in which pictures and captions are compared.
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

// A caption's features are the state at its end token, as in CLIP: at the first one, because padding is the
// same token. No token sees those behind it, so these are not computed: captions of like length are encoded
// together, each group as far as its longest one. That is little more than half of the positions.
static Tensor *text_features(const Towers *t, const TextEncoder *e, const int *ids, int n) {
    enum { GROUP = 16 };
    int *ends = xmalloc((size_t)n * sizeof(int)), *order = xmalloc((size_t)n * sizeof(int)),
        *place = xmalloc((size_t)n * sizeof(int)), sorted = 0;
    for (int i = 0; i < n; i++) {
        ends[i] = 0;
        while (ends[i] < TOKENS - 1 && ids[i * TOKENS + ends[i]] != VOCABULARY - 1) ends[i]++;
    }
    for (int end = 0; end < TOKENS; end++)
        for (int i = 0; i < n; i++)
            if (ends[i] == end) place[i] = sorted, order[sorted++] = i;
    Tensor *states = NULL; // at the ends, in order of length
    for (int from = 0; from < n; from += GROUP) {
        int count = n - from < GROUP ? n - from : GROUP, tokens = ends[order[from + count - 1]] + 1;
        int first[GROUP * TOKENS], at[GROUP]; // (count, tokens); rows of the states
        for (int i = 0; i < count; i++) {
            memcpy(first + i * tokens, ids + order[from + i] * TOKENS, (size_t)tokens * sizeof(int));
            at[i] = i * tokens + ends[order[from + i]];
        }
        Tensor *x = reshape(text_encode_first(e, first, count, tokens), SHAPE(count * tokens, WIDTH));
        x = embed(x, at, SHAPE(count)); // picks rows
        states = states ? stack(states, x) : x;
    }
    states = embed(states, place, SHAPE(n));
    free(ends), free(order), free(place);
    return layer_norm(linear(states, t->text_project), t->text_norm, 1e-5f);
}

static void pretrain_text(const PretrainOptions *o) {
    Pairs *pairs = open_pairs(o);
    int n = o->batch / o->shards;
    PairsBatch batch = pairs_batch(pairs, n);
    Part text = {"text_encoder", "text_encoder/model.safetensors", {0}};
    TextEncoder *e = text_encoder_new(tiny().text_config, &text.params);
    Part side = {"towers", "", {0}};
    Towers towers = towers_new(&side.params);
    Random init;
    random_seed(&init, o->seed + 1);
    load_or_initialise(&text, o->out, &init);
    initialise(&side.params, &init);
    train_part(&text), train_part(&side);
    const Params *models[] = {&text.params, &side.params};
    Run run = pretrain_run(o, pairs, models, 2);
    int *diagonal = xmalloc((size_t)n * sizeof(int));
    for (int i = 0; i < n; i++) diagonal[i] = i;
    while (run_continues(&run)) {
        pairs_draw(&batch, pairs, &run.random);
        tape_begin();
        Tensor *pictures =
            picture_features(&towers, tensor_from(SHAPE(n, LATENT, LATENT, CHANNELS), batch.z));
        Tensor *captions = text_features(&towers, e, batch.ids, n);
        // Which caption belongs to a picture, and which picture to a caption? The layer norms learn the scale
        // of the features, so the factor on their scalar products can be fixed.
        Tensor *loss =
            combine(0.5f, loss_pick(log_softmax(matmul(pictures, captions, true, 16.0f / JOINT)), diagonal),
                    0.5f, loss_pick(log_softmax(matmul(captions, pictures, true, 16.0f / JOINT)), diagonal));
        backward(loss);
        run_step(&run, loss, NULL, batch.names);
        tape_end();
    }
    if (pretrain_end(o, &run)) save_part(&text, o->out);
}

// ---- stage: unet ------------------------------------------------------------------------------------------

// The network learns the noise in z_t = sqrt(a) z + sqrt(1 - a) eps (Ho et al. 2020), for one picture in ten
// without its caption (Ho, Salimans 2022), weighted by min(SNR, 5) / SNR (Hang et al. 2023). CLIP learns too.
static void pretrain_unet(const PretrainOptions *o) {
    Pairs *pairs = open_pairs(o);
    int n = o->batch / o->shards;
    PairsBatch batch = pairs_batch(pairs, n);
    Part text = {"text_encoder", "text_encoder/model.safetensors", {0}},
         net = {"unet", "unet/diffusion_pytorch_model.safetensors", {0}};
    TextEncoder *e = text_encoder_new(tiny().text_config, &text.params);
    UNet *u = unet_new(tiny().unet_config, &net.params);
    Random init;
    random_seed(&init, o->seed + 2);
    load_or_initialise(&text, o->out, &init);
    load_or_initialise(&net, o->out, &init);
    train_part(&text), train_part(&net);
    const Params *models[] = {&text.params, &net.params};
    Run run = pretrain_run(o, pairs, models, 2);
    Scheduler s;
    Json *j = json_of(architecture("tiny")->scheduler);
    scheduler_init(&s, scheduler_config(j, -1));
    json_free(j);

    char *dir = format("%s/tokenizer", o->out);
    Tokenizer *tokenizer = tokenizer_open(dir);
    int empty[TOKENS], used = tokenizer_encode(tokenizer, "", empty, TOKENS, NULL);
    while (used < TOKENS) empty[used++] = tokenizer_pad(tokenizer);
    tokenizer_close(tokenizer);
    int *t = xmalloc((size_t)n * sizeof *t);
    float *weight = xmalloc((size_t)n * sizeof *weight);
    double saved = seconds();
    while (run_continues(&run)) {
        pairs_draw(&batch, pairs, &run.random);
        for (int i = 0; i < n; i++) {
            if (random_below(&run.random, 10) == 0) memcpy(batch.ids + i * TOKENS, empty, sizeof empty);
            t[i] = random_below(&run.random, 1000);
            float a = s.alphas_cumprod[t[i]], snr = a / (1 - a);
            weight[i] = fminf(snr, 5) / snr;
        }
        tape_begin(); // [G1] a training step: forward while the tape records, backward, optimiser
        Times at = times_at(&s, t, n);
        Tensor *noise = random_tensor(&run.random, SHAPE(n, LATENT, LATENT, CHANNELS));
        Tensor *z = noised(at, tensor_from(SHAPE(n, LATENT, LATENT, CHANNELS), batch.z), noise);
        Tensor *out = unet(u, z, at.t, text_encode(e, batch.ids, n), NULL);
        Tensor *loss = loss_between(out, noise, weight, LOSS_MSE, 0);
        backward(loss);
        bool done = run_step(&run, loss, NULL, batch.names);
        tape_end();
        if (done && seconds() - saved > 300) { // so that one can draw with it while it learns
            run_checkpoint(&run); // first: a killed run must go on from here, not start from those weights
            optimiser_swap_ema(run.optimiser);
            save_part(&text, o->out), save_part(&net, o->out);
            optimiser_swap_ema(run.optimiser);
            saved = seconds();
        }
    }
    pretrain_end(o, &run);
    save_part(&text, o->out), save_part(&net, o->out);
}

// ---- the stages -------------------------------------------------------------------------------------------

// Steps, batch, rate and average are what worked: weights/README.md tells how it was found.
const PretrainStage pretrain_stages[] = {{"tokenizer", pretrain_tokenizer, false, 1, 1, 1, 0},
                                         {"vae", pretrain_vae, false, 6000, 12, 1.5e-3, 0.998},
                                         {"decoder", pretrain_vae, false, 6000, 12, 5e-4, 0.998},
                                         {"text", pretrain_text, true, 800, 128, 1e-3, 0.99},
                                         {"unet", pretrain_unet, true, 5000, 64, 8e-4, 0.9995},
                                         {"inception", pretrain_inception, false, 3000, 32, 2e-3, 0.995},
                                         {"check", pretrain_check, false, 1, 1, 1, 0},
                                         {0}};

void pretrain(const PretrainStage *stage, PretrainOptions o) {
    o.stage = stage->name;
    if (!o.steps) o.steps = stage->steps;
    if (!o.batch) o.batch = stage->batch;
    if (o.rate == 0) o.rate = stage->rate;
    if (o.ema == 0) o.ema = stage->ema;
    if (stage->batch > 1)
        run_check_shards(o.batch, o.shards);
    else if (ranks_mine())
        return; // nothing is trained
    if (stage->pairs) check_pairs(&o);
    if (!ranks_mine()) architecture_write(architecture("tiny"), o.out);
    ranks_barrier();
    may_replace(o.out); // a stage goes on from the weights that it replaces
    stage->train(&o);
}
