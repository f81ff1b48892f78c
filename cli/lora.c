// lora.c: `sd lora`. Options and files -> a call of Phase 3 -> a LoRA file or a model folder. The algorithms are
// in ../lora.c, the layouts of files in lib/io/lora_names.c.
#define _XOPEN_SOURCE 700 // realpath
#include "lib/io/architectures.h"
#include "train.h"
#include "plan.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static LoraFormat format_option(const char *text) {
    bool kohya = !strcmp(text, "kohya");
    if (!kohya && strcmp(text, "peft") && strcmp(text, "diffusers"))
        die_usage("--format is \"%s\"; peft (or diffusers) or kohya is expected", text);
    return kohya ? LORA_KOHYA : LORA_PEFT;
}

// FILE[:SCALE]; a file whose name ends so by itself is taken as it is.
char *option_lora(const char *text, float *scale) {
    const char *colon = strrchr(text, ':');
    *scale = 1;
    if (file_exists(text) || !colon) return xstrdup(text);
    *scale = (float)option_number("--lora", colon + 1, -1000, 1000);
    return format("%.*s", (int)(colon - text), text);
}

// ---- finetune, distill ------------------------------------------------------------------------------------------

static const char train_help[] =
    "usage: sd lora finetune --data DIR -o FILE.safetensors [options]\n"
    "       sd lora distill --teacher LCM --data DIR -o FILE.safetensors [options]\n\n"
    "Phase 3: trains low-rank adapters on a frozen model, on captioned pictures. finetune: the model learns "
    "the\n"
    "pictures' look. distill: the model learns to draw in 4 steps without guidance. Ctrl-C keeps what is "
    "learnt; the\n"
    "same command continues.\n\n"
    "What to learn from\n"
    "  -m, --model PATH       the base: diffusers folder or LDM file (default weights/tiny)\n"
    "      --tokenizer DIR    where the model has none\n"
    "      --data DIR         pictures with captions: Flickr8k's and Flickr30k's layouts\n"
    "      --cache DIR        where the pictures' latents are kept (default run/cache)\n"
    "      --teacher PATH     distill, mode mimic: a latent consistency model of the same base (sd lcm)\n"
    "Adapters\n"
    "      --rank R           (default 16; lcm-lora-sdv1-5 has 64)\n"
    "      --alpha A          (default: the rank); the update is alpha / rank up(down(x))\n"
    "      --targets LIST     layers: groups attention, ff, resnet, proj, samplers, ends (conv_in and the "
    "time\n"
    "                         embedding), text (the text encoder; finetune only), lcm (all of the UNet's "
    "before),\n"
    "                         or parts of layer names, with commas between (default attention; distill: "
    "lcm)\n"
    "How\n"
    "      --steps N          training steps (default 1000)\n"
    "      --batch N          pictures a step (default 16)\n"
    "      --lr R             learning rate (default 1e-4)\n"
    "      --warmup N         steps over which the rate rises (default 100; cosine: at most a tenth)\n"
    "      --schedule NAME    constant (default), or cosine: the rate falls to a twentieth\n"
    "                         at the last step, so the run continues with the same --steps only\n"
    "      --ema D            keep a moving average of the adapters (default 0: none)\n"
    "      --dropout P        finetune: share of pictures without caption (default 0.1)\n"
    "      --min-snr G        finetune: weigh timesteps by min(SNR, G) / SNR (default 0: all alike; 5 is "
    "usual)\n"
    "      --mode NAME        distill: mimic (default; match the teacher's latents by MSE and KL) or "
    "consistency\n"
    "                         (LCM-LoRA of Luo et al.: no teacher but the base)\n"
    "      --kl NAME          mimic: gaussians (default), elements or channels: what the KL divergence "
    "compares\n"
    "      --kl-weight L      (default 1)   --mse-weight M (default 1)\n"
    "      --kl-temp T        divides the latents before a softmax (elements, channels; default 1)\n"
    "      --w-min W, --w-max W   distill: range of the guidance scale (default 5 to 15)\n"
    "      --skip K           distill: timesteps between two of the solver (default 20)\n"
    "      --weighting NAME   distill, mode consistency: none (default), or snr, as in sd lcm\n"
    "      --loss huber|l2    distill, mode consistency (default huber)\n"
    "      --checkpointing    less memory, more time; by itself where memory would not do\n"
    "What comes out\n"
    "  -o, --output FILE      the adapters, with\n"
    "      --format peft|kohya   (default peft)   --dtype f16|f32|bf16 (default f16)\n"
    "      --run DIR          checkpoint and log (default run/NAME of FILE)\n"
    "      --checkpoint-every S   seconds (default 120)\n"
    "      --resume           only continue: die where there is no checkpoint\n"
    "      --fresh            begin anew though there is one\n"
    "      --seed N   --json   -t, --threads N   -q, --quiet   -v, --verbose   -h, --help\n";

typedef enum { FINETUNE, MIMIC, CONSISTENCY } Mode;
static const char *const mode_names[] = {"finetune", "mimic", "consistency"};
static const char *const kl_names[] = {"elements", "channels", "gaussians"};

typedef struct {
    Mode mode;
    const char *model, *teacher, *out, *targets;
    int rank;
    double alpha;
    LoraFormat format;
    Training t;
    FinetuneConfig finetune;
    MimicConfig mimic;
    LcmConfig lcm;
    uint64_t seed;
} Options;

// Do two models agree in the networks named by `prefix`? As far as fp16 can tell, in which one of them may be stored.
static bool same_network(const Model *a, const Model *b, const char *prefix) {
    Params p = params_part(&a->params, prefix);
    for (int i = 0; i < p.count; i++) {
        const Tensor *t = p.list[i].tensor, *other = params_find(&b->params, p.list[i].name);
        if (!other || tensor_count(t) != tensor_count(other)) return false;
        float *x = tensor_read(t), *y = tensor_read(other), most = 0, apart = 0;
        for (size_t k = 0; k < tensor_count(t); k++)
            most = fmaxf(most, fabsf(x[k])), apart = fmaxf(apart, fabsf(x[k] - y[k]));
        free(x), free(y);
        if (!(apart <= most / 100)) return false; // bf16 keeps 8 bits
    }
    return true;
}

// The latent consistency model that the adapters are to imitate: another UNet for the same latents and captions.
static Model *load_teacher(const Options *o, const Model *base) {
    Model *t = model_load(o->teacher, NULL, NEED_TEXT | NEED_UNET | NEED_VAE);
    if (!t->unet_config.time_cond_proj_dim)
        die("%s is no latent consistency model: its UNet has no guidance embedding (time_cond_proj_dim)",
            o->teacher);
    if (t->vae_config.scaling_factor != base->vae_config.scaling_factor || !same_network(base, t, "vae."))
        die("the teacher %s has another VAE than %s: their latents mean different pictures", o->teacher,
            base->path);
    if (t->unet_config.cross_attention_dim != base->unet_config.cross_attention_dim ||
        !same_network(base, t, "text_encoder."))
        die("the teacher %s has another text encoder than %s", o->teacher, base->path);
    return t;
}

static int train(const Options *o, bool json) {
    Model *m = model_load(o->model, o->t.tokenizer, NEED_ALL);
    if (m->unet_config.time_cond_proj_dim)
        die("%s has a guidance embedding: it is a latent consistency model; adapters are for its base",
            o->model);
    Model *teacher = o->mode == MIMIC ? load_teacher(o, m) : NULL;

    // The adapters hang on the model itself, or on a second UNet over the same weights where the first is asked too.
    Params student_params = {0}, net = params_part(&m->params, "unet.");
    UNet *student = o->mode == FINETUNE ? NULL : lora_student(m, &student_params);
    Random start;
    random_seed(&start, o->seed);
    Lora *lora =
        lora_new(student ? &student_params : &m->params, o->targets, o->rank, (float)o->alpha, &start);
    lora->mode = xstrdup(mode_names[o->mode]);
    lora_hang(lora, 1);
    for (int i = 0; i < lora->params.count; i++) param_trainable(lora->params.list[i].tensor);
    size_t learnt = params_count(&lora->params);
    note("%d layers learn %zu numbers: %.3f %% of the UNet's %zu", lora->count, learnt,
         100 * (double)learnt / (double)params_count(&net), params_count(&net));

    double planned =
        plan_run(&(Plan){.unet = &m->unet_config,
                         .lora = lora,
                         .batch = o->t.batch,
                         .tokens = m->text_config.max_position_embeddings,
                         .models = plan_weights(&m->params) + (teacher ? plan_weights(&teacher->params) : 0),
                         .numbers = (double)learnt,
                         .average = o->t.ema > 0,
                         .checkpointed = o->t.checkpointing});

    Pairs *pairs = model_pairs(m, o->t.data, o->t.cache);
    Optimiser *optimiser = training_optimiser(&o->t, &lora->params);
    const char *name = strrchr(o->out, '/') ? strrchr(o->out, '/') + 1 : o->out;
    Run run = {.dir = o->t.run ? xstrdup(o->t.run)
                               : format("run/%.*s", (int)(strlen(name) - strlen(".safetensors")), name),
               .what = "lora"};
    Params teacher_net = teacher ? params_part(&teacher->params, "unet.") : net;
    run.config = format(
        "{\"stage\": \"lora\", \"mode\": \"%s\", \"base\": \"%016llx\", \"teacher\": \"%016llx\", \"data\": "
        "\"%016llx\", \"targets\": \"%s\", \"rank\": %d, \"alpha\": %g, \"batch\": %d, \"rate\": %g, "
        "\"warmup\": %d, \"falls_until\": %ld, \"ema\": %g, \"dropout\": %g, \"min_snr\": %g, \"kl\": "
        "\"%s\", \"kl_weight\": %g, "
        "\"kl_temp\": %g, \"mse_weight\": %g, \"w_min\": %g, \"w_max\": %g, \"skip\": %d, "
        "\"weighting\": \"%s\", \"loss\": \"%s\", \"seed\": %llu}",
        mode_names[o->mode], (unsigned long long)params_key(&net),
        (unsigned long long)params_key(&teacher_net), (unsigned long long)pairs->key, o->targets, o->rank,
        o->alpha, o->t.batch, o->t.rate, o->t.warmup, o->t.cosine ? o->t.steps : 0, o->t.ema,
        (double)o->finetune.dropout, (double)o->finetune.min_snr, kl_names[o->mimic.reading],
        (double)o->mimic.kl_weight, (double)o->mimic.temperature, (double)o->mimic.mse_weight,
        (double)o->lcm.w_min, (double)o->lcm.w_max, o->lcm.k, o->lcm.snr_weighting ? "snr" : "none",
        o->lcm.loss == LOSS_HUBER ? "huber" : "l2", (unsigned long long)o->seed);
    training_begin(&run, &o->t, optimiser, o->seed);
    if (o->mode == FINETUNE) {
        lora_finetune(&run, m, lora, pairs, o->finetune);
    } else {
        // [P10] In mode consistency it is Phase 2's own loop: teacher the base, student and target the base with adapters.
        Lcm lcm;
        lcm_init(&lcm, o->lcm, m->scheduler_json, teacher ? teacher->unet : m->unet, student, student);
        if (teacher)
            lora_mimic(&lcm, &run, m, lora, pairs, o->mimic);
        else
            lcm_distill(&lcm, &run, m, pairs, NULL, NULL);
        lcm_free(&lcm);
    }
    double took = run_seconds(&run);
    bool done = run_end(&run);
    if (done) {
        optimiser_swap_ema(optimiser);
        lora_save(lora, o->out, o->format, o->t.dtype);
        optimiser_swap_ema(optimiser);
    }
    char more[128];
    snprintf(more, sizeof more, ", \"mode\": \"%s\", \"trainable\": %zu, \"trainable_share\": %.6g",
             mode_names[o->mode], learnt, (double)learnt / (double)params_count(&net));
    training_report(&run, took, o->out, done, planned, more, json);

    optimiser_free(optimiser);
    lora_free(lora);
    if (student) lcm_target_free(student, &student_params);
    pairs_close(pairs);
    free(run.dir), free(run.config);
    if (teacher) model_free(teacher);
    model_free(m);
    return done ? 0 : 1;
}

enum {
    TEACHER = OWN_OPTIONS,
    RANK,
    ALPHA,
    TARGETS,
    DROPOUT,
    MIN_SNR,
    MODE,
    KL,
    KL_WEIGHT,
    KL_TEMP,
    MSE_WEIGHT,
    FORMAT,
    LORA
};

// Would it do anything in that mode?
static bool goes_with(int option, Mode mode) {
    switch (option) {
    case DROPOUT:
    case MIN_SNR: return mode == FINETUNE;
    case MODE:
    case W_MIN:
    case W_MAX:
    case SKIP: return mode != FINETUNE;
    case TEACHER:
    case KL:
    case KL_WEIGHT:
    case KL_TEMP:
    case MSE_WEIGHT: return mode == MIMIC;
    case WEIGHTING:
    case LOSS: return mode == CONSISTENCY;
    default: return true;
    }
}

static int command_train(int argc, char **argv, bool distill) {
    static const struct option options[] = {{"output", required_argument, 0, 'o'},
                                            {"teacher", required_argument, 0, TEACHER},
                                            {"rank", required_argument, 0, RANK},
                                            {"alpha", required_argument, 0, ALPHA},
                                            {"targets", required_argument, 0, TARGETS},
                                            {"dropout", required_argument, 0, DROPOUT},
                                            {"min-snr", required_argument, 0, MIN_SNR},
                                            {"mode", required_argument, 0, MODE},
                                            {"kl", required_argument, 0, KL},
                                            {"kl-weight", required_argument, 0, KL_WEIGHT},
                                            {"kl-temp", required_argument, 0, KL_TEMP},
                                            {"mse-weight", required_argument, 0, MSE_WEIGHT},
                                            {"format", required_argument, 0, FORMAT},
                                            TRAINING_LONG,
                                            DISTILLATION_LONG,
                                            COMMON_LONG,
                                            {0}};
    Common common = common_defaults;
    Options o = {.mode = distill ? MIMIC : FINETUNE,
                 .targets = distill ? "lcm" : "attention",
                 .rank = 16,
                 .t = training_defaults,
                 .finetune = {.dropout = 0.1f},
                 .mimic = {.mse_weight = 1, .kl_weight = 1, .temperature = 1, .reading = KL_GAUSSIANS},
                 .lcm = lcm_defaults};
    o.t.steps = 1000, o.t.rate = 1e-4, o.t.checkpoint_every = 120;
    bool given[LORA] = {0};
    int option;
    while ((option = getopt_long(argc, argv, "o:" COMMON_SHORT, options, NULL)) != -1) {
        if (option < LORA) given[option] = true;
        if (common_option(&common, option, train_help) || training_option(&o.t, option) ||
            distillation_option(&o.lcm, option))
            continue;
        switch (option) {
        case 'o': o.out = optarg; break;
        case TEACHER: o.teacher = optarg; break;
        case RANK: o.rank = (int)option_whole("--rank", optarg, 1, 65536); break;
        case ALPHA: o.alpha = option_number("--alpha", optarg, 1e-6, 1e6); break;
        case TARGETS: o.targets = optarg; break;
        case DROPOUT: o.finetune.dropout = (float)option_number("--dropout", optarg, 0, 1); break;
        case MIN_SNR: o.finetune.min_snr = (float)option_number("--min-snr", optarg, 0, 1e6); break;
        case MODE:
            o.mode = strcmp(optarg, "mimic") ? CONSISTENCY : MIMIC;
            if (o.mode == CONSISTENCY && strcmp(optarg, "consistency"))
                die_usage("--mode is \"%s\"; mimic or consistency is expected", optarg);
            break;
        case KL:
            o.mimic.reading = !strcmp(optarg, "elements")   ? KL_ELEMENTS
                              : !strcmp(optarg, "channels") ? KL_CHANNELS
                                                            : KL_GAUSSIANS;
            if (strcmp(optarg, kl_names[o.mimic.reading]))
                die_usage("--kl is \"%s\"; elements, channels or gaussians is expected", optarg);
            break;
        case KL_WEIGHT: o.mimic.kl_weight = (float)option_number("--kl-weight", optarg, 0, 1e9); break;
        case KL_TEMP: o.mimic.temperature = (float)option_number("--kl-temp", optarg, 1e-3, 1e6); break;
        case MSE_WEIGHT: o.mimic.mse_weight = (float)option_number("--mse-weight", optarg, 0, 1e9); break;
        case FORMAT: o.format = format_option(optarg); break;
        }
    }
    if (optind < argc) die_usage("\"%s\" is no option", argv[optind]);
    for (int i = 0; options[i].name; i++)
        if (options[i].val < LORA && given[options[i].val] && !goes_with(options[i].val, o.mode))
            die_usage("--%s does not go with sd lora %s%s", options[i].name, distill ? "distill --mode " : "",
                      mode_names[o.mode]);
    if (given[KL_TEMP] && o.mimic.reading == KL_GAUSSIANS)
        die_usage("--kl-temp does not go with --kl gaussians, which has no softmax");
    if (!o.t.data || !o.out) die_usage("--data DIR and --output FILE are needed");
    if (o.mode == MIMIC && !o.teacher)
        die_usage("--mode mimic needs --teacher, a latent consistency model (sd lcm makes one)");
    if (o.mode == MIMIC && o.mimic.mse_weight <= 0 && o.mimic.kl_weight <= 0)
        die_usage("--mse-weight and --kl-weight are both 0: nothing is left to learn from");
    training_check(&o.t, &o.lcm);
    const char *ending = strrchr(o.out, '.');
    if (!ending || strcmp(ending, ".safetensors"))
        die_usage("--output is \"%s\"; adapters are written as safetensors, so end the name in .safetensors",
                  o.out);
    if (is_directory(o.out)) die("%s is a folder; the adapters go into one file", o.out);
    training_output(o.out, false);
    if (o.alpha == 0) o.alpha = o.rank;
    o.model = common.model, o.seed = common.seed;
    common_start(&common);
    return train(&o, common.json);
}

// ---- merge ------------------------------------------------------------------------------------------------------

static const char merge_help[] =
    "usage: sd lora merge -m MODEL --lora FILE[:SCALE] ... -o DIR [options]\n\n"
    "Writes the model with the adapters' updates added to its weights: W + SCALE alpha / rank up down.\n\n"
    "  -m, --model DIR          diffusers folder (default weights/tiny)\n"
    "      --lora FILE[:SCALE]  (repeatable)\n"
    "  -o, --output DIR         the new model's folder\n"
    "      --dtype f16|f32|bf16 of the networks that change (default: as they are)\n"
    "      --json   -q   -v   -h\n";

static void copy_file(const char *from, const char *to) {
    FILE *f = fopen(from, "rb");
    if (!f) die("cannot read %s: %s", from, strerror(errno));
    Output *o = output_open(to);
    char *piece = xmalloc(1 << 20);
    for (size_t n; (n = fread(piece, 1, 1 << 20, f)) > 0;) output_write(o, piece, n);
    if (ferror(f)) die("cannot read %s: %s", from, strerror(errno));
    output_commit(o);
    free(piece), fclose(f);
}

// A folder and what is in it. Of networks that change only the configuration.
static void copy_tree(const char *from, const char *to, bool changes) {
    DIR *folder = opendir(from);
    if (!folder) die("cannot read the folder %s: %s", from, strerror(errno));
    make_directories(to);
    for (struct dirent *e; (e = readdir(folder));) {
        if (e->d_name[0] == '.') continue;
        char *a = format("%s/%s", from, e->d_name), *b = format("%s/%s", to, e->d_name);
        if (is_directory(a))
            copy_tree(a, b, false);
        else if (!changes || !strcmp(e->d_name, "config.json"))
            copy_file(a, b);
        free(a), free(b);
    }
    closedir(folder);
}

static int command_merge(int argc, char **argv) {
    static const struct option options[] = {{"lora", required_argument, 0, LORA},
                                            {"output", required_argument, 0, 'o'},
                                            {"dtype", required_argument, 0, DTYPE},
                                            COMMON_LONG,
                                            {0}};
    Common common = common_defaults;
    const char *out = NULL, **specs = xcalloc((size_t)argc, sizeof *specs);
    int count = 0, dtype = -1, option;
    while ((option = getopt_long(argc, argv, "o:" COMMON_SHORT, options, NULL)) != -1) {
        if (common_option(&common, option, merge_help)) continue;
        if (option == 'o') out = optarg;
        if (option == LORA) specs[count++] = optarg;
        if (option == DTYPE) dtype = (int)option_type(optarg);
    }
    if (optind < argc) die_usage("\"%s\" is no option; a LoRA goes behind --lora", argv[optind]);
    if (!count || !out) die_usage("--lora FILE and --output DIR are needed");
    common_start(&common);
    double started = seconds();
    if (!is_directory(common.model))
        die("%s is no folder: adapters are merged into a diffusers folder", common.model);
    char *here = realpath(common.model, NULL), *there = realpath(out, NULL);
    if (here && there && !strcmp(here, there))
        die("--output is the model itself, %s; the merged one needs its own folder", out);
    free(here), free(there);

    Model *m = model_load(common.model, NULL, NEED_TEXT | NEED_UNET);
    static const char *const parts[] = {"unet", "text_encoder"}, *const files[] = {"diffusion_pytorch_model",
                                                                                   "model"};
    bool changes[2] = {false, false};
    for (int i = 0; i < count; i++) {
        float scale;
        char *path = option_lora(specs[i], &scale);
        Lora *l = lora_load(&m->params, path);
        for (int k = 0; k < l->count; k++)
            changes[!strncmp(l->parts[k].layer->name, "text_encoder.", 13)] = true;
        lora_merge(l, scale);
        note_verbose("%s: %d layers, scale %g", path, l->count, (double)scale);
        lora_free(l);
        free(path);
    }
    DIR *folder = opendir(common.model);
    if (!folder) die("cannot read the folder %s: %s", common.model, strerror(errno));
    make_directories(out);
    for (struct dirent *e; (e = readdir(folder));) {
        if (e->d_name[0] == '.') continue;
        char *a = format("%s/%s", common.model, e->d_name), *b = format("%s/%s", out, e->d_name);
        if (is_directory(a))
            copy_tree(a, b,
                      (changes[0] && !strcmp(e->d_name, parts[0])) ||
                          (changes[1] && !strcmp(e->d_name, parts[1])));
        else if (strcmp(e->d_name, "model_index.json")) // last: what makes the folder a model
            copy_file(a, b);
        free(a), free(b);
    }
    closedir(folder);
    for (int i = 0; i < 2; i++) {
        if (!changes[i]) continue;
        char *prefix = format("%s.", parts[i]),
             *path = format("%s/%s/%s.safetensors", out, parts[i], files[i]);
        Params part = params_part(&m->params, prefix);
        params_save(&part, path, strlen(prefix), dtype < 0 ? part.list[0].tensor->type : (Type)dtype);
        free(prefix), free(path);
    }
    char *a = format("%s/model_index.json", common.model), *b = format("%s/model_index.json", out);
    if (file_exists(a)) copy_file(a, b);
    if (common.json)
        printf("{\"loras\": %d, \"output\": \"%s\", \"seconds\": %.3f}\n", count, out, seconds() - started);
    free(a), free(b), free(specs);
    model_free(m);
    return 0;
}

// ---- convert ----------------------------------------------------------------------------------------------------

static const char convert_help[] = "usage: sd lora convert FILE -o FILE [options]\n\n"
                                   "Between the spellings of LoRA files.\n\n"
                                   "      --format peft|kohya  what to write (default: the other one)\n"
                                   "      --dtype f16|f32|bf16 (default: as it is)\n"
                                   "  -m, --model DIR          whose layers the file is for (default: Stable "
                                   "Diffusion v1.5 or the tiny model)\n"
                                   "  -o, --output FILE\n"
                                   "      --json   -q   -v   -h\n";

// The layers of an architecture, declared and empty: their names and shapes are all that a conversion needs.
static Params declare_layers(const char *text, const char *net) {
    Params p = {0};
    Json *a = json_parse(text, strlen(text), "text_encoder/config.json"),
         *b = json_parse(net, strlen(net), "unet/config.json");
    text_encoder_free(text_encoder_new(text_config(a), &p));
    free(unet_new(unet_config(b), &p));
    json_free(a), json_free(b);
    return p;
}

static Params layers_for(const char *file, const char *model) {
    if (model) {
        char *a = format("%s/text_encoder/config.json", model), *b = format("%s/unet/config.json", model);
        char *text = read_file(a, NULL), *net = read_file(b, NULL);
        Params p = declare_layers(text, net);
        free(a), free(b), free(text), free(net);
        return p;
    }
    const Architecture *tiny = architecture("tiny"), *sd15 = architecture("sd15");
    Params p = declare_layers(tiny->text_encoder, tiny->unet);
    if (lora_fits(&p, file)) return p;
    params_free(&p);
    return declare_layers(sd15->text_encoder, sd15->unet);
}

static int command_convert(int argc, char **argv) {
    static const struct option options[] = {{"format", required_argument, 0, FORMAT},
                                            {"output", required_argument, 0, 'o'},
                                            {"dtype", required_argument, 0, DTYPE},
                                            COMMON_LONG,
                                            {0}};
    Common common = common_defaults;
    const char *out = NULL;
    int to = -1, dtype = -1, option;
    while ((option = getopt_long(argc, argv, "o:" COMMON_SHORT, options, NULL)) != -1) {
        if (common_option(&common, option, convert_help)) continue;
        if (option == 'o') out = optarg;
        if (option == FORMAT) to = (int)format_option(optarg);
        if (option == DTYPE) dtype = (int)option_type(optarg);
    }
    if (optind != argc - 1) die_usage("sd lora convert takes one file");
    if (!out) die_usage("--output FILE is needed");
    const char *in = argv[optind];
    common_start(&common);
    Params p = layers_for(in, common.model == common_defaults.model ? NULL : common.model);
    Lora *l = lora_load(&p, in);
    Store *s = store_open(in);
    if (to < 0) to = strncmp(store_at(s, 0)->name, "lora_", 5) ? LORA_KOHYA : LORA_PEFT;
    for (size_t i = 0; dtype < 0 && i < store_count(s); i++)
        if (store_at(s, i)->ndim >= 2) dtype = (int)store_at(s, i)->type;
    store_close(s);
    lora_save(l, out, (LoraFormat)to, (Type)dtype);
    if (common.json)
        printf("{\"layers\": %d, \"format\": \"%s\", \"output\": \"%s\"}\n", l->count,
               to == LORA_KOHYA ? "kohya" : "peft", out);
    lora_free(l);
    params_free(&p);
    return 0;
}

int command_lora(int argc, char **argv) {
    static const char help[] = "usage: sd lora finetune|distill|merge|convert [options]\n\n"
                               "  finetune   adapters learn the look of captioned pictures\n"
                               "  distill    adapters learn to draw in 4 steps\n"
                               "  merge      adapters into a model's weights\n"
                               "  convert    between the formats of LoRA files\n\n"
                               "sd lora NAME --help says more.\n";
    const char *name = argc > 1 ? argv[1] : "";
    if (!strcmp(name, "finetune") || !strcmp(name, "distill"))
        return command_train(argc - 1, argv + 1, *name == 'd');
    if (!strcmp(name, "merge")) return command_merge(argc - 1, argv + 1);
    if (!strcmp(name, "convert")) return command_convert(argc - 1, argv + 1);
    if (!strcmp(name, "--help") || !strcmp(name, "-h")) {
        fputs(help, stdout);
        return 0;
    }
    die_usage("\"%s\" is no sub-command of sd lora; finetune, distill, merge and convert are", name);
}
