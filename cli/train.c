// train.c: `sd lcm`, `sd lora finetune`, `sd lora distill`: options and captioned pictures -> a call of a
// phase -> a model folder or a LoRA file. The algorithms are in ../lcm.c and ../lora.c.
#include "commands.h"
#include "model_folder.h"
#include "options.h"
#include "lib/nn/ranks.h"
#include "plan.h"
#include "verify.h" // distance

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// What is trained. Bits, since an option may go with several.
enum { FULL = 1, FINETUNE = 2, MIMIC = 4, CONSISTENCY = 8 };
enum { DISTILL = MIMIC | CONSISTENCY, LORA = FINETUNE | DISTILL, GUIDED = FULL | DISTILL };

// Parts of the algorithm of Phase 2 that --ablate takes away.
enum { EMA, SKIP, HUBER, GUIDANCE, BOUNDARY, ABLATIONS };

typedef struct {
    int what;
    const char *model, *teacher, *tokenizer, *data, *cache, *out, *run;
    long steps;
    int batch, shards, warmup, sample_every, validate;
    double rate, ema, checkpoint_every;
    bool cosine, checkpointing, resume, fresh, keep_one, json;
    uint64_t seed;
    Type type; // of the weights written
    bool copy; // FULL: the folder's other networks are copies
    bool ablated[ABLATIONS], l2;
    LcmConfig lcm;
    bool consistency; // LORA
    const char *targets;
    int rank, format;
    double alpha;
    FinetuneConfig finetune;
    MimicConfig mimic;
} Training;

static const char *mode_name(const Training *t) {
    return t->what == FINETUNE ? "finetune" : t->what == MIMIC ? "mimic" : "consistency";
}

// ---- options ----------------------------------------------------------------------------------------------

// Those that all trainings have in common.
static Training defaults(int what, long steps, double checkpoint_every) {
    Training t = {.what = what, .model = DEFAULT_MODEL, .cache = "run/cache", .steps = steps, .batch = 16};
    t.shards = 1, t.warmup = -1, t.checkpoint_every = checkpoint_every, t.type = F16, t.lcm = lcm_defaults;
    return t;
}

// What follows from the options, and which of them contradict each other.
static void settle(Training *t) {
    if (!t->data || !t->out)
        die_usage("--data DIR and --output %s are needed", t->what == FULL ? "DIR" : "FILE");
    if (t->resume && t->fresh) die_usage("--resume and --fresh contradict each other");
    run_check_shards(t->batch, t->shards);
    if (t->warmup < 0) t->warmup = t->cosine && t->steps < 1000 ? (int)(t->steps / 10) : 100;
    if (t->cosine && t->warmup >= t->steps)
        die_usage("--schedule cosine: nothing is left of %ld steps after --warmup %d", t->steps, t->warmup);

    if (t->lcm.w_min > t->lcm.w_max)
        die_usage("--w-min is %g and --w-max %g", (double)t->lcm.w_min, (double)t->lcm.w_max);
    t->lcm.loss = t->l2 || t->ablated[HUBER] ? LOSS_MSE : LOSS_HUBER;
    if (t->ablated[EMA]) t->ema = 0; // the target is the student itself
    if (t->ablated[SKIP]) t->lcm.k = 1;
    if (t->ablated[BOUNDARY]) t->lcm.boundary = false;

    if (t->what == MIMIC && !t->teacher)
        die_usage("--mode mimic needs --teacher, a latent consistency model (sd lcm makes one)");
    if (t->what == MIMIC && t->mimic.mse_weight <= 0 && t->mimic.kl_weight <= 0)
        die_usage("--mse-weight and --kl-weight are both 0: nothing is left to learn from");
    if (t->mimic.temperature > 0 && t->mimic.reading == KL_GAUSSIANS)
        die_usage("--kl-temp does not go with --kl gaussians, which has no softmax");
    if (t->mimic.temperature == 0) t->mimic.temperature = 1;
    if (t->format > LORA_KOHYA) t->format = LORA_PEFT;
    if (t->alpha == 0) t->alpha = t->rank;
}

// [L1] The command line: the options of one training, out of one table for all. t holds the defaults.
static void parse(Training *t, int argc, char **argv, const char *usage, const char *about,
                  const char *examples) {
    Option all[] = {
        {.help = "What to learn from"},
        {'m', "model", TEXT(&t->model, "PATH"), "the teacher: a diffusers folder or an LDM file", FULL},
        {'m', "model", TEXT(&t->model, "PATH"), "the base: a diffusers folder or an LDM file", LORA},
        {0, "tokenizer", TEXT(&t->tokenizer, "DIR"), "for a model that has none"},
        {0, "data", TEXT(&t->data, "DIR"), "pictures with captions, in Flickr8k's or Flickr30k's layout"},
        {0, "cache", TEXT(&t->cache, "DIR"), "where the latents of the pictures are kept"},

        {.help = "Adapters", .modes = LORA},
        {0, "rank", WHOLE(&t->rank, 1, 65536), "of the adapters; lcm-lora-sdv1-5 has 64"},
        {0, "alpha", NUMBER(&t->alpha, 1e-6, 1e6), "the update is X / rank up(down(x)) (default: the rank)"},
        {0, "targets", TEXT(&t->targets, "LIST"),
         "layers, with commas between: parts of their names, or the groups attention, ff, resnet, proj, "
         "samplers, ends (conv_in and the time embedding), lcm (all of these), text (the text encoder; "
         "finetune only)"},

        {.help = "How"},
        {0, "mode", CHOICE(&t->consistency, "mimic|consistency"),
         "mimic: match a teacher's latents; consistency: LCM-LoRA of Luo et al., the base is the teacher",
         DISTILL},
        {0, "steps", WHOLE(&t->steps, 1, 1 << 30), "training steps"},
        {0, "batch", WHOLE(&t->batch, 1, 4096), "pictures a step"},
        {0, "shards", WHOLE(&t->shards, 1, 4096),
         "parts of a batch, a power of two, that as many ranks may share; the result depends on them, but not "
         "on the ranks"},
        {0, "lr", NUMBER(&t->rate, 1e-12, 1),
         "learning rate (default 8e-6, the paper's; 2e-4 for small models)", FULL},
        {0, "lr", NUMBER(&t->rate, 1e-12, 1), "learning rate", LORA},
        {0, "warmup", WHOLE(&t->warmup, 0, 1 << 24),
         "steps over which the rate rises (default 100; with cosine at most a tenth of all)"},
        {0, "schedule", CHOICE(&t->cosine, "constant|cosine"),
         "constant is the papers'; with cosine the rate falls to a twentieth at the last step, so the run "
         "continues with the same --steps only"},
        {0, "ema", NUMBER(&t->ema, 0, 0.999999), "how slowly the target follows the student", FULL},
        {0, "ema", NUMBER(&t->ema, 0, 0.999999), "of a moving average of the adapters; 0: none", LORA},
        {0, "dropout", NUMBER(&t->finetune.dropout, 0, 1), "fraction of pictures without their caption",
         FINETUNE},
        {0, "min-snr", NUMBER(&t->finetune.min_snr, 0, 1e6),
         "weigh timesteps by min(SNR, X) / SNR; 0: all alike, 5 is usual", FINETUNE},
        {0, "w-min", NUMBER(&t->lcm.w_min, -100, 1000), "the guidance scale is drawn between this", GUIDED},
        {0, "w-max", NUMBER(&t->lcm.w_max, -100, 1000), "and this", GUIDED},
        {0, "skip", WHOLE(&t->lcm.k, 1, 100000), "timesteps that a step of the solver skips", GUIDED},
        {0, "checkpointing", FLAG(&t->checkpointing),
         "less memory, more time (default: where memory would not do otherwise)"},
        {0, "ablate", CHOICES(t->ablated, "ema|skip|huber|guidance|boundary"),
         "take one idea away, to see what it does, whatever --ema, --skip and --loss say (repeatable)", FULL},

        {.help = "How, in mode mimic", .modes = MIMIC},
        {0, "teacher", TEXT(&t->teacher, "PATH"),
         "a latent consistency model of the same base; sd lcm makes one"},
        {0, "kl", CHOICE(&t->mimic.reading, "elements|channels|gaussians"),
         "what the KL divergence compares"},
        {0, "kl-temp", NUMBER(&t->mimic.temperature, 1e-3, 1e6),
         "divides the latents before the softmax of elements or channels (default 1)"},
        {0, "kl-weight", NUMBER(&t->mimic.kl_weight, 0, 1e9), "of the KL divergence in the loss"},
        {0, "mse-weight", NUMBER(&t->mimic.mse_weight, 0, 1e9), "of the mean squared error in the loss"},

        {.help = "How, in mode consistency", .modes = CONSISTENCY},
        {0, "loss", CHOICE(&t->l2, "huber|l2"), "between the predictions of student and target",
         FULL | CONSISTENCY},
        {0, "weighting", CHOICE(&t->lcm.snr_weighting, "none|snr"),
         "none is the paper's; with snr a pair of timesteps counts alpha / sigma of the noisier, so that "
         "those in the middle are learnt too",
         FULL | CONSISTENCY},

        {.help = "What comes out"},
        {'o', "output", TEXT(&t->out, "DIR"),
         "the model; its text encoder, VAE and tokenizer are links to the teacher's", FULL},
        {0, "copy", FLAG(&t->copy), "copies instead of links", FULL},
        {'o', "output", TEXT(&t->out, "FILE"), "the adapters, .safetensors", LORA},
        {0, "format", CHOICE(&t->format, "peft|kohya|diffusers"), "spelling of the names; diffusers is peft",
         LORA},
        {0, "dtype", CHOICE(&t->type, TYPE_NAMES), "of the weights"},
        {0, "run", TEXT(&t->run, "DIR"), "checkpoint and log (default: run/ and the output's name)"},
        {0, "validate", WHOLE(&t->validate, 1, 100000),
         "fifty times in a run also the loss on N pictures that nothing is learnt from: the split \"test\", else "
         "the data set's last"},
        {0, "sample-every", WHOLE(&t->sample_every, 0, 1 << 24), "steps between sample pictures; 0: none",
         FULL},
        {0, "checkpoint-every", NUMBER(&t->checkpoint_every, 1e-9, 1e9), "seconds between checkpoints"},
        {0, "keep-one", FLAG(&t->keep_one), "do not keep the checkpoint before the newest"},
        {0, "resume", FLAG(&t->resume), "only continue: an error where there is no checkpoint"},
        {0, "fresh", FLAG(&t->fresh), "begin anew though there is a checkpoint"},
        {SEED_OPTION(&t->seed, "of everything that is drawn")},
        {JSON_OPTION(&t->json)},
        {0}};
    Option options[sizeof all / sizeof *all], *next = options;
    int heading = 0; // its modes are those of the rows below it, unless they have their own
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (!all[i].name) heading = all[i].modes;
        if (!all[i].modes) all[i].modes = heading;
        if (!all[i].modes || all[i].modes & t->what) *next++ = all[i];
    }
    no_words(options_parse(argc, argv, options, usage, about, examples), "");
    if (t->what == DISTILL) t->what = t->consistency ? CONSISTENCY : MIMIC;
    for (const Option *o = options; o->help; o++)
        if (o->given && o->modes && !(o->modes & t->what))
            die_usage("--%s does not go with sd lora distill --mode %s", o->name, mode_name(t));
    settle(t);
}

// ---- what all trainings share -----------------------------------------------------------------------------

// AdamW over these parameters, and their moving average.
static Optimiser *new_optimiser(const Training *t, const Params *learnt) {
    OptimiserConfig adamw = {.beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.01f};
    adamw.rate = (float)t->rate, adamw.warmup = (float)t->warmup, adamw.max_norm = 1;
    adamw.total = t->cosine ? (float)t->steps : 0, adamw.floor = 0.05f;
    return optimiser_new(adamw, (float)t->ema, &learnt, 1);
}

static double run_plan(const Training *t, Plan plan) {
    if (backend.storage == F16)
        die("training in fp16 loses gradients, which are near 1e-6 where fp16 rounds below 6e-5; make cuda "
            "PRECISION=bf16, or f32");
    plan.batch = t->batch / t->shards, plan.sums = run_sums(t->shards), plan.average = t->ema > 0,
    plan.checkpointed = t->checkpointing, plan.keep_one = t->keep_one;
    return plan_run(&plan);
}

// Begins or continues a run. config: what must be the same when it continues.
static Run begin(const Training *t, Optimiser *optimiser, Pairs *pairs, char *config) {
    const char *name = strrchr(t->out, '/') ? strrchr(t->out, '/') + 1 : t->out;
    size_t length = strlen(name) - (t->what == FULL ? 0 : strlen(".safetensors"));
    Run run = {.what = t->what == FULL ? "lcm" : "lora", .config = config, .optimiser = optimiser};
    run.dir = t->run ? xstrdup(t->run) : format("run/%.*s", (int)length, name);
    run.total = t->steps, run.batch = t->batch, run.shards = t->shards,
    run.checkpoint_every = t->checkpoint_every;
    run.keep_one = t->keep_one, run.validate = t->validate, run.pairs = pairs;
    char *checkpoint = format("%s/checkpoint.safetensors", run.dir),
         *previous = format("%s/checkpoint.previous.safetensors", run.dir);
    if (t->resume && !file_exists(checkpoint) && !file_exists(previous))
        die("--resume: there is no %s", checkpoint);
    run_begin(&run, t->seed, t->fresh);
    return run;
}

// How it went, on stderr or as one JSON object on stdout; more: further members of it, or "".
static void report(const Training *t, const Run *run, double took, bool done, double planned,
                   const char *more) {
    double used = (double)backend.peak();
    note("memory: %.0f MB were planned, %.0f MB used", planned / 1e6, used / 1e6);
    if (t->json)
        printf("{\"steps\": %ld, \"loss\": %.6g, \"samples_per_s\": %.3f, \"seconds\": %.1f, \"output\": %s, "
               "\"done\": %s%s, \"planned_mb\": %.1f, \"peak_mb\": %.1f}\n",
               run->step, (double)run->loss, took > 0 ? (double)run->step * t->batch / took : 0, took,
               json_quote(t->out), done ? "true" : "false", more, planned / 1e6, used / 1e6);
    else if (done)
        note("%s: loss %.4g after %ld steps, %.1f s", t->out, (double)run->loss, run->step, took);
}

// ---- sd lcm -----------------------------------------------------------------------------------------------

// Sample pictures of fixed prompts, drawn as the finished model would.
typedef struct {
    int every;
    Model model; // the teacher's, with the target as its UNet
    char *dir;
    const char *prompts[4];
} Samples;

static void draw_samples(void *context, long step) {
    Samples *s = context;
    if (!s->every || step % s->every || ranks_mine()) return;
    make_directories(s->dir);
    for (int i = 0; i < 4 && s->prompts[i]; i++) {
        SampleOptions how = sample_defaults(&s->model);
        how.prompt = s->prompts[i], how.seed = (uint64_t)i, how.progress = false;
        Image *image = sample(&s->model, how, NULL);
        char *path = format("%s/%06ld-%d.png", s->dir, step, i);
        image_save_png(path, image, s->prompts[i]);
        image_free(image);
        free(path);
    }
}

static char *lcm_run_config(const Training *t, const Params *net, const Pairs *pairs) {
    return format(
        "{\"stage\": \"lcm\", \"teacher\": \"%016llx\", \"data\": \"%016llx\", \"batch\": %d, "
        "\"rate\": %g, \"warmup\": %d, \"falls_until\": %ld, \"ema\": %g, \"w_min\": %g, \"w_max\": %g, "
        "\"skip\": %d, \"loss\": \"%s\", \"guidance_embedding\": %s, \"boundary\": %s, "
        "\"weighting\": \"%s\", \"seed\": %llu}",
        (unsigned long long)params_key(net), (unsigned long long)pairs->key, t->batch, t->rate, t->warmup,
        t->cosine ? t->steps : 0, t->ema, (double)t->lcm.w_min, (double)t->lcm.w_max, t->lcm.k,
        t->lcm.loss == LOSS_HUBER ? "huber" : "l2", t->ablated[GUIDANCE] ? "false" : "true",
        t->lcm.boundary ? "true" : "false", t->lcm.snr_weighting ? "snr" : "none",
        (unsigned long long)t->seed);
}

static bool train_lcm(Training *t) {
    ModelFolder folder = {.out = t->out, .tokenizer = t->tokenizer, .copy = t->copy, .type = t->type};
    model_folder_check(&folder, t->model);
    refuse_inside(t->out, t->data);
    Model *teacher = model_load(t->model, t->tokenizer, NEED_ALL);
    if (teacher->unet_config.time_cond_proj_dim)
        die("%s has a guidance embedding: it is distilled already", t->model);
    if (t->rate == 0) t->rate = teacher->unet_config.block_out_channels[0] < 320 ? 2e-4 : 8e-6;
    Configs configs = student_configs(teacher, t->lcm, !t->ablated[GUIDANCE]);
    Json *unet_json = json_parse(configs.unet, strlen(configs.unet), "the student's configuration");
    UNetConfig config = unet_config(unet_json);
    Params net = params_part(&teacher->params, "unet.");
    double embedding = t->ablated[GUIDANCE] ? 0 : 256.0 * config.block_out_channels[0];
    Plan plan = {.model = teacher, .student = &config, .models = plan_weights(&teacher->params)};
    plan.learnt = (double)params_count(&net) + embedding;
    double planned = run_plan(t, plan);
    if (!ranks_mine()) { // said before the work, not after; a folder that was not there goes again
        check_output(path_inside(t->out, "model_index.json"));
        rmdir(t->out);
    }
    Pairs *pairs = model_pairs(teacher, t->data, t->cache, t->validate);

    Params student_params = {0}, target_params = {0};
    UNet *student = lcm_student(teacher, config, &student_params);
    for (int i = 0; i < student_params.count; i++) param_trainable(student_params.list[i].tensor);
    Optimiser *optimiser = new_optimiser(t, &student_params);
    UNet *target = t->ema > 0 ? lcm_target(config, optimiser, &target_params) : student;
    Lcm lcm;
    lcm_init(&lcm, t->lcm, scheduler_config(teacher->scheduler_json, LCM), teacher->unet, student, target);

    Run run = begin(t, optimiser, pairs, lcm_run_config(t, &net, pairs));
    Samples samples = {.every = t->sample_every, .model = *teacher, .dir = format("%s/samples", run.dir)};
    samples.model.unet = target, samples.model.unet_config = config;
    samples.model.scheduler_json = json_parse(configs.scheduler, strlen(configs.scheduler), "its scheduler");
    samples.model.index_json = json_parse(configs.index, strlen(configs.index), "its index");
    for (int i = 0; i < 4; i++) // the first captions of four pictures
        samples.prompts[i] = pairs->data->samples[(size_t)i * (size_t)pairs->count / 4].captions[0];
    lcm_distill(&lcm, &run, teacher, pairs, draw_samples, &samples);
    double took = run_seconds(&run);
    bool done = run_end(&run);
    if (done && !ranks_mine())
        model_folder_write(&folder, teacher, &configs, t->ema > 0 ? &target_params : &student_params);
    report(t, &run, took, done, planned, "");
    return done;
}

int command_lcm(int argc, char **argv) {
    Training t = defaults(FULL, 2000, 300);
    t.ema = 0.95, t.sample_every = 500;
    parse(
        &t, argc, argv, "sd lcm --data DIR -o OUT [options]",
        "Phase 2: distils a model into one that needs 4 steps and no guidance (Luo et al. 2023), on captioned "
        "pictures. OUT becomes a model folder. Ctrl-C keeps what is learnt; the same command continues.",
        "sd scenes run/flickr8k -n 8000\n"
        "  sd lcm --data run/flickr8k -o run/lcm\n"
        "  sd sample -m run/lcm -p \"a dog runs\"");
    char *out = xstrdup(t.out);
    for (size_t end = strlen(out); end > 1 && out[end - 1] == '/';) out[--end] = 0;
    t.out = out;
    start_backend();
    return !train_lcm(&t);
}

// ---- sd lora finetune, sd lora distill --------------------------------------------------------------------

// Do two models have the same network `prefix`? One of them may be stored in 16 bits.
static bool same_network(const Model *a, const Model *b, const char *prefix) {
    Params p = params_part(&a->params, prefix);
    for (int i = 0; i < p.count; i++) {
        const Tensor *t = p.list[i].tensor, *other = params_find(&b->params, p.list[i].name);
        if (!other || tensor_count(t) != tensor_count(other)) return false;
        float *x = tensor_read(t), *y = tensor_read(other);
        bool alike = distance(x, y, tensor_count(t)) <= largest_of(x, tensor_count(t)) / 100;
        free(x), free(y);
        if (!alike) return false; // bf16 keeps 8 bits
    }
    return true;
}

// Gives back the memory of a network that is not needed any more.
static void unload(const Model *m, const char *prefix) {
    Params p = params_part(&m->params, prefix);
    params_unload(&p);
}

// The latent consistency model that the adapters imitate: another UNet for the same latents and captions.
static Model *load_teacher(const char *path, const Model *base) {
    Model *t = model_load(path, NULL, NEED_TEXT | NEED_UNET | NEED_VAE);
    if (!t->unet_config.time_cond_proj_dim)
        die("%s is no latent consistency model: its UNet has no guidance embedding (time_cond_proj_dim)",
            path);
    if (t->vae_config.scaling_factor != base->vae_config.scaling_factor || !same_network(base, t, "vae."))
        die("the teacher %s has another VAE than %s: their latents mean different pictures", path,
            base->path);
    if (!same_network(base, t, "text_encoder."))
        die("the teacher %s has another text encoder than %s", path, base->path);
    unload(t, "vae."), unload(t, "text_encoder.");
    return t;
}

static char *lora_run_config(const Training *t, const Params *net, const Params *teacher_net,
                             const Pairs *pairs) {
    static const char *const kl_names[] = {"elements", "channels", "gaussians"};
    return format("{\"stage\": \"lora\", \"mode\": \"%s\", \"base\": \"%016llx\", \"teacher\": \"%016llx\", "
                  "\"data\": \"%016llx\", \"targets\": \"%s\", \"rank\": %d, \"alpha\": %g, \"batch\": %d, "
                  "\"rate\": %g, \"warmup\": %d, \"falls_until\": %ld, \"ema\": %g, \"dropout\": %g, "
                  "\"min_snr\": %g, \"kl\": \"%s\", \"kl_weight\": %g, \"kl_temp\": %g, \"mse_weight\": %g, "
                  "\"w_min\": %g, \"w_max\": %g, \"skip\": %d, \"weighting\": \"%s\", \"loss\": \"%s\", "
                  "\"seed\": %llu}",
                  mode_name(t), (unsigned long long)params_key(net),
                  (unsigned long long)params_key(teacher_net), (unsigned long long)pairs->key, t->targets,
                  t->rank, t->alpha, t->batch, t->rate, t->warmup, t->cosine ? t->steps : 0, t->ema,
                  (double)t->finetune.dropout, (double)t->finetune.min_snr, kl_names[t->mimic.reading],
                  (double)t->mimic.kl_weight, (double)t->mimic.temperature, (double)t->mimic.mse_weight,
                  (double)t->lcm.w_min, (double)t->lcm.w_max, t->lcm.k, t->lcm.snr_weighting ? "snr" : "none",
                  t->lcm.loss == LOSS_HUBER ? "huber" : "l2", (unsigned long long)t->seed);
}

static bool train_lora(const Training *t) {
    Model *m = model_load(t->model, t->tokenizer, NEED_ALL);
    if (m->unet_config.time_cond_proj_dim)
        die("%s has a guidance embedding: it is a latent consistency model; adapters are for its base",
            t->model);
    Model *teacher = t->what == MIMIC ? load_teacher(t->teacher, m) : NULL;

    // The adapters go on the model itself, or on a second UNet over its weights where the first is a teacher.
    Params student_params = {0}, net = params_part(&m->params, "unet.");
    UNet *student = t->what == FINETUNE ? NULL : unet_view(m->unet_config, &m->params, &student_params);
    Random start;
    random_seed(&start, t->seed);
    Lora *lora =
        lora_new(student ? &student_params : &m->params, t->targets, t->rank, (float)t->alpha, &start);
    lora->mode = xstrdup(mode_name(t));
    lora_attach(lora, 1);
    for (int i = 0; i < lora->params.count; i++) param_trainable(lora->params.list[i].tensor);
    Params text = params_part(&m->params, "text_encoder.");
    bool in_unet = params_part(&lora->params, "unet.").count,
         in_text = params_part(&lora->params, "text_encoder.").count;
    size_t learnt = params_count(&lora->params);
    size_t of = (in_unet ? params_count(&net) : 0) + (in_text ? params_count(&text) : 0);
    note("%d layers learn %zu parameters: %.3f %% of the %s%s%s's %zu", lora->count, learnt,
         100 * (double)learnt / (double)of, in_unet ? "UNet" : "", in_unet && in_text ? "'s and the " : "",
         in_text ? "text encoder" : "", of);
    Plan plan = {.model = m, .lora = lora, .learnt = (double)learnt, .adapted = student ? student : m->unet};
    plan.teacher = teacher ? teacher->unet : student ? m->unet : NULL;
    plan.mimic = t->what == MIMIC ? &t->mimic : NULL;
    Params vae = params_part(&m->params, "vae."), teacher_net = net;
    if (teacher) teacher_net = params_part(&teacher->params, "unet.");
    plan.encoder = plan_weights(&vae);
    plan.models = plan_weights(&m->params) - plan.encoder + (teacher ? plan_weights(&teacher_net) : 0);
    double planned = run_plan(t, plan);

    Pairs *pairs = model_pairs(m, t->data, t->cache, t->validate);
    unload(m, "vae."); // the pictures are latents now
    Optimiser *optimiser = new_optimiser(t, &lora->params);
    Run run = begin(t, optimiser, pairs, lora_run_config(t, &net, &teacher_net, pairs));
    if (t->what == FINETUNE) {
        lora_finetune(&run, m, lora, pairs, t->finetune);
    } else {
        // [P10] Mode consistency is Phase 2's own loop: the base with adapters is both student and target.
        Lcm lcm;
        lcm_init(&lcm, t->lcm, scheduler_config(m->scheduler_json, LCM), teacher ? teacher->unet : m->unet,
                 student, student);
        if (teacher)
            lora_mimic(&lcm, &run, m, lora, pairs, t->mimic);
        else
            lcm_distill(&lcm, &run, m, pairs, NULL, NULL);
    }
    double took = run_seconds(&run);
    bool done = run_end(&run);
    if (done && !ranks_mine()) {
        optimiser_swap_ema(optimiser);
        lora_save(lora, t->out, (LoraFormat)t->format, t->type);
        optimiser_swap_ema(optimiser);
    }
    char more[128];
    snprintf(more, sizeof more, ", \"mode\": \"%s\", \"trainable\": %zu, \"trainable_share\": %.6g",
             mode_name(t), learnt, (double)learnt / (double)of);
    report(t, &run, took, done, planned, more);
    return done;
}

static int command_adapters(int argc, char **argv, int what, const char *targets, const char *usage,
                            const char *about, const char *examples) {
    Training t = defaults(what, 1000, 120);
    t.rate = 1e-4, t.rank = 16, t.targets = targets, t.finetune.dropout = 0.1f;
    t.mimic = (MimicConfig){.mse_weight = 1, .kl_weight = 1, .reading = KL_GAUSSIANS};
    parse(&t, argc, argv, usage, about, examples);
    if (!ends_with(t.out, ".safetensors"))
        die_usage("--output is \"%s\"; adapters are written as safetensors, so end the name in .safetensors",
                  t.out);
    if (!ranks_mine()) check_output(t.out);
    start_backend();
    return !train_lora(&t);
}

int command_lora_finetune(int argc, char **argv) {
    return command_adapters(
        argc, argv, FINETUNE, "attention", "sd lora finetune --data DIR -o FILE.safetensors [options]",
        "Phase 3, the baseline: adapters on a frozen model learn the look of captioned pictures. "
        "Ctrl-C keeps what is learnt; the same command continues.",
        "sd scenes run/flickr8k -n 8000\n"
        "  sd lora finetune --data run/flickr8k -o run/style.safetensors\n"
        "  sd sample --lora run/style.safetensors -p \"a dog runs\"");
}

int command_lora_distill(int argc, char **argv) {
    return command_adapters(
        argc, argv, DISTILL, "lcm",
        "sd lora distill --teacher LCM --data DIR -o FILE.safetensors [options]\n"
        "       sd lora distill --mode consistency --data DIR -o FILE.safetensors [options]",
        "Phase 3: adapters on a frozen model learn to draw in 4 steps without guidance, from captioned "
        "pictures. Ctrl-C keeps what is learnt; the same command continues.",
        "sd scenes run/flickr8k -n 8000\n"
        "  sd lora distill --teacher weights/tiny-lcm --data run/flickr8k -o run/lcm-lora.safetensors\n"
        "  sd sample --lora run/lcm-lora.safetensors -p \"a dog runs\"");
}
