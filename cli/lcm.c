// lcm.c: `sd lcm`. Options and files -> a call of Phase 2 -> a model folder. The algorithm is in ../lcm.c.
#define _XOPEN_SOURCE 700 // open_memstream, readlink, realpath, symlink
#include "lib/io/architectures.h"
#include "train.h"
#include "plan.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char help[] =
    "usage: sd lcm --data DIR -o OUT [options]\n\n"
    "Phase 2: distils a model into one that needs 4 steps and no guidance (Luo et al. 2023), on captioned "
    "pictures.\n"
    "OUT becomes a model folder. Ctrl-C keeps what is learnt; the same command continues.\n\n"
    "What to learn from\n"
    "  -m, --model PATH       the teacher: diffusers folder or LDM file (default weights/tiny)\n"
    "      --tokenizer DIR    where the model has none\n"
    "      --data DIR         pictures with captions: Flickr8k's and Flickr30k's layouts\n"
    "      --cache DIR        where the pictures' latents are kept (default run/cache)\n"
    "How\n"
    "      --steps N          training steps (default 2000)\n"
    "      --batch N          pictures a step (default 16)\n"
    "      --lr R             learning rate (default 8e-6, the paper's; 2e-4 for small models)\n"
    "      --warmup N         steps over which the rate rises (default 100; cosine: at most a tenth)\n"
    "      --schedule NAME    constant (default, the paper's), or cosine: the rate falls to a twentieth\n"
    "                         at the last step, so the run continues with the same --steps only\n"
    "      --ema D            how slowly the target follows (default 0.95)\n"
    "      --w-min W, --w-max W   range of the guidance scale (default 5 to 15)\n"
    "      --skip K           timesteps that the solver skips (default 20)\n"
    "      --loss huber|l2    (default huber)\n"
    "      --weighting NAME   none (default, the paper's), or snr: a pair of timesteps counts alpha / sigma\n"
    "                         of the noisier, so that those in the middle are learnt too\n"
    "      --ablate NAME      take one idea away, to see what it does (repeatable): ema, skip, huber, "
    "guidance,\n"
    "                         boundary\n"
    "      --checkpointing    less memory, more time; by itself where memory would not do\n"
    "What comes out\n"
    "  -o, --output OUT       the model; its text encoder, VAE and tokenizer are links to the teacher's,\n"
    "      --copy             or copies\n"
    "      --dtype f16|f32|bf16   of the UNet's weights (default f16)\n"
    "      --run DIR          checkpoint, log, sample pictures (default run/NAME of OUT)\n"
    "      --sample-every N   steps between sample pictures (default 500; 0: none)\n"
    "      --checkpoint-every S   seconds (default 300)\n"
    "      --resume           only continue: die where there is no checkpoint\n"
    "      --fresh            begin anew though there is one\n"
    "      --seed N   --json   -t, --threads N   -q, --quiet   -v, --verbose   -h, --help\n";

typedef struct {
    const char *model, *out;
    Training t;
    LcmConfig lcm;
    bool guidance, copy;
    int sample_every;
    uint64_t seed;
} Options;

// ---- JSON: a configuration with some members changed -------------------------------------------------------------

static void json_text(FILE *f, const Json *j) {
    switch (j->kind) {
    case JSON_NULL: fputs("null", f); break;
    case JSON_BOOL: fputs(j->number != 0 ? "true" : "false", f); break;
    case JSON_NUMBER: {
        char text
            [40]; // whole numbers as such (Python tells 1000 from 1e3), others the shortest that reads back
        bool whole = j->number == floor(j->number) && fabs(j->number) < 1e15;
        for (int digits = whole ? 17 : 1; digits <= 17; digits++) {
            snprintf(text, sizeof text, whole ? "%.*f" : "%.*g", whole ? 0 : digits, j->number);
            if (strtod(text, NULL) == j->number) break;
        }
        fputs(text, f);
        break;
    }
    case JSON_STRING:
        putc('"', f);
        for (const char *s = j->string; *s; s++) {
            if (*s == '"' || *s == '\\') putc('\\', f);
            if ((unsigned char)*s < 32)
                fprintf(f, "\\u%04x", *s);
            else
                putc(*s, f);
        }
        putc('"', f);
        break;
    case JSON_ARRAY:
    case JSON_OBJECT:
        putc(j->kind == JSON_ARRAY ? '[' : '{', f);
        for (size_t i = 0; i < j->length; i++) {
            if (i) fputs(", ", f);
            if (j->kind == JSON_OBJECT) {
                json_text(f, &(Json){.kind = JSON_STRING, .string = j->items[i].key});
                fputs(": ", f);
            }
            json_text(f, &j->items[i]);
        }
        putc(j->kind == JSON_ARRAY ? ']' : '}', f);
        break;
    }
}

// `base` with the members `set` ({key, JSON text}, ended by a NULL key) in place of its own: a new string, a member a
// line as diffusers writes it.
static char *json_changed(const Json *base, const char *const set[][2]) {
    char *text;
    size_t bytes;
    FILE *f = open_memstream(&text, &bytes);
    if (!f) die("out of memory");
    const char *before = "{\n  ";
    for (size_t i = 0; base && i < base->length; i++) {
        bool changed = false;
        for (int k = 0; set[k][0]; k++) changed |= !strcmp(base->items[i].key, set[k][0]);
        if (changed) continue;
        fprintf(f, "%s\"%s\": ", before, base->items[i].key);
        json_text(f, &base->items[i]);
        before = ",\n  ";
    }
    for (int k = 0; set[k][0]; k++) {
        fprintf(f, "%s\"%s\": %s", before, set[k][0], set[k][1]);
        before = ",\n  ";
    }
    fputs("\n}\n", f);
    fclose(f);
    return text;
}

static Json *parsed(const char *text) {
    return json_parse(text, strlen(text), "the student's configuration");
}

// The student's configurations, from the teacher's: {unet, scheduler, model_index}.
typedef struct {
    char *unet, *scheduler, *index;
} Configs;

static Configs student_configs(const Model *teacher, const Options *o) {
    Configs c;
    const Architecture *sd15 = architecture("sd15"); // what an LDM file is
    char *path = format("%s/unet/config.json", teacher->path);
    Json *unet_json = file_exists(path) ? json_load(path) : parsed(sd15->unet);
    c.unet = json_changed(
        unet_json, (const char *const[][2]){{"time_cond_proj_dim", o->guidance ? "256" : "null"}, {0}});
    json_free(unet_json), free(path);

    SchedulerConfig noise = scheduler_config(teacher->scheduler_json, LCM);
    char original[32], scaling[32], defaults[96];
    snprintf(original, sizeof original, "%d",
             noise.num_train_timesteps / o->lcm.k > 50 ? 50 : noise.num_train_timesteps / o->lcm.k);
    snprintf(scaling, sizeof scaling, "%g", (double)o->lcm.timestep_scaling);
    c.scheduler =
        json_changed(teacher->scheduler_json, (const char *const[][2]){{"_class_name", "\"LCMScheduler\""},
                                                                       {"original_inference_steps", original},
                                                                       {"timestep_scaling", scaling},
                                                                       {0}});
    snprintf(defaults, sizeof defaults, "{\"steps\": 4, \"guidance_scale\": %g}",
             o->guidance ? 1 + (double)(o->lcm.w_min + o->lcm.w_max) / 2 : 1);
    Json *index = teacher->index_json ? NULL : parsed(sd15->model_index);
    c.index =
        json_changed(index ? index : teacher->index_json,
                     (const char *const[][2]){
                         {"scheduler", "[\"diffusers\", \"LCMScheduler\"]"}, {"sd_defaults", defaults}, {0}});
    if (index) json_free(index);
    return c;
}

// ---- the model folder ----------------------------------------------------------------------------------------

static void write_text(const char *dir, const char *name, const char *text) {
    char *path = format("%s/%s", dir, name), *folder = xstrdup(path);
    *strrchr(folder, '/') = 0;
    make_directories(folder);
    Output *o = output_open(path);
    output_write(o, text, strlen(text));
    output_commit(o);
    free(path), free(folder);
}

// How to get from folder `from` to `to`, both absolute and without links: "../tiny/vae".
static char *relative_path(const char *from, const char *to) {
    size_t same = 0, at = 0; // `same`: what they share, up to and with a slash
    while (from[at] && from[at] == to[at]) {
        if (from[at] == '/') same = at + 1;
        at++;
    }
    if (!from[at] && to[at] == '/') same = at + 1; // `to` lies below `from`
    char *path = xstrdup("");
    for (const char *rest = strlen(from) > same ? from + same : ""; *rest;) {
        char *longer = format("../%s", path);
        free(path), path = longer;
        const char *slash = strchr(rest, '/');
        rest = slash ? slash + 1 : "";
    }
    char *whole = format("%s%s", path, to + same);
    free(path);
    return whole;
}

static void copy_folder(const char *from, const char *to) {
    DIR *folder = opendir(from);
    if (!folder) die("cannot read the folder %s: %s", from, strerror(errno));
    make_directories(to);
    for (struct dirent *entry; (entry = readdir(folder));) {
        char *source = format("%s/%s", from, entry->d_name), *copy = format("%s/%s", to, entry->d_name);
        if (entry->d_name[0] != '.' && !is_directory(source)) {
            size_t bytes;
            char *data = read_file(source, &bytes);
            Output *o = output_open(copy);
            output_write(o, data, bytes);
            output_commit(o);
            free(data);
        }
        free(source), free(copy);
    }
    closedir(folder);
}

static bool is_link(const char *path) {
    struct stat s;
    return !lstat(path, &s) && S_ISLNK(s.st_mode);
}

// OUT/name becomes the folder `from`: a relative link, so that both can move together, or a copy.
static void share(const char *out, const char *name, const char *from, bool copy) {
    char *to = format("%s/%s", out, name), *source = realpath(from, NULL), *here = realpath(out, NULL);
    if (!source || !here) die("%s: %s", source ? out : from, strerror(errno));
    if (is_link(to) && unlink(to)) die("cannot replace %s: %s", to, strerror(errno));
    if (copy) {
        copy_folder(source, to);
    } else {
        char *link = relative_path(here, source);
        if (symlink(link, to)) die("cannot make the link %s: %s", to, strerror(errno));
        free(link);
    }
    free(to), free(source), free(here);
}

static const char *const shared[] = {"text_encoder", "vae", "tokenizer"};

// Refuses before the work what could not be written after it.
static void check_output(const Options *o) {
    char *here = realpath(o->out, NULL), *teacher = realpath(o->model, NULL);
    if (here && teacher && !strcmp(here, teacher))
        die("--output is the teacher itself, %s; the student needs its own folder", o->out);
    if (here && !is_directory(o->out)) die("%s is no folder", o->out);
    training_output(o->out, true);
    for (int i = 0; i < 3 && !o->copy; i++) {
        char *path = format("%s/%s", o->out, shared[i]);
        if (is_directory(path) && !is_link(path))
            die("%s is a folder already, where a link to the teacher's is to be; remove it, or use --copy",
                path);
        free(path);
    }
    free(here), free(teacher);
}

// [L12] A model folder as diffusers has it: the new UNet and scheduler beside the teacher's other networks.
static void write_model(const Options *o, const Model *teacher, const Configs *c, const Params *student) {
    make_directories(o->out);
    write_text(o->out, "scheduler/scheduler_config.json", c->scheduler);
    write_text(o->out, "unet/config.json", c->unet);
    char *weights = format("%s/unet/diffusion_pytorch_model.safetensors", o->out);
    params_save(student, weights, strlen("unet."), o->t.dtype);
    free(weights);
    if (is_directory(teacher->path)) {
        for (int i = 0; i < 3; i++) {
            char *from = i == 2 && o->t.tokenizer ? xstrdup(o->t.tokenizer)
                                                  : format("%s/%s", teacher->path, shared[i]);
            share(o->out, shared[i], from, o->copy);
            free(from);
        }
    } else { // one LDM file: its parts are written out
        const Architecture *a = architecture("sd15");
        write_text(o->out, "text_encoder/config.json", a->text_encoder);
        write_text(o->out, "vae/config.json", a->vae);
        Params text = params_part(&teacher->params, "text_encoder."),
               vae = params_part(&teacher->params, "vae.");
        char *path = format("%s/text_encoder/model.safetensors", o->out);
        params_save(&text, path, strlen("text_encoder."), o->t.dtype);
        free(path);
        path = format("%s/vae/diffusion_pytorch_model.safetensors", o->out);
        params_save(&vae, path, strlen("vae."), o->t.dtype);
        free(path);
        share(o->out, "tokenizer", o->t.tokenizer, o->copy);
    }
    write_text(o->out, "model_index.json", c->index);
}

// ---- the run -------------------------------------------------------------------------------------------------

// Sample pictures of fixed prompts, drawn as the finished model would.
typedef struct {
    const Options *o;
    Model model; // the teacher's, with the target as its UNet
    char *dir;
    const char *prompts[4];
} Look;

static void look_at(void *context, long step) {
    Look *look = context;
    if (!look->o->sample_every || step % look->o->sample_every) return;
    make_directories(look->dir);
    for (int i = 0; i < 4 && look->prompts[i]; i++) {
        SampleOptions how = sample_defaults(&look->model);
        how.prompt = look->prompts[i], how.seed = (uint64_t)i, how.progress = false;
        Image *image = sample(&look->model, how, NULL);
        char *path = format("%s/%06ld-%d.png", look->dir, step, i);
        image_save_png(path, image, look->prompts[i]);
        image_free(image);
        free(path);
    }
}

static int distil(Options *o, bool json) {
    check_output(o);
    Model *teacher = model_load(o->model, o->t.tokenizer, NEED_ALL);
    if (teacher->unet_config.time_cond_proj_dim)
        die("%s has a guidance embedding: it is distilled already", o->model);
    if (!is_directory(o->model) && !o->t.tokenizer)
        die_usage("%s is one file; --tokenizer DIR is needed", o->model);
    if (o->t.rate == 0) o->t.rate = teacher->unet_config.block_out_channels[0] < 320 ? 2e-4 : 8e-6;
    Configs configs = student_configs(teacher, o);
    Json *unet_json = parsed(configs.unet);
    UNetConfig student_config = unet_config(unet_json);
    Params net = params_part(&teacher->params, "unet.");
    double guidance = o->guidance ? 256.0 * student_config.block_out_channels[0] : 0;
    double planned = plan_run(&(Plan){.unet = &student_config,
                                      .batch = o->t.batch,
                                      .tokens = teacher->text_config.max_position_embeddings,
                                      .models = plan_weights(&teacher->params),
                                      .numbers = (double)params_count(&net) + guidance,
                                      .average = o->t.ema > 0,
                                      .checkpointed = o->t.checkpointing});
    Pairs *pairs = model_pairs(teacher, o->t.data, o->t.cache);

    Params student_params = {0}, target_params = {0};
    UNet *student = lcm_student(teacher, student_config, &student_params);
    for (int i = 0; i < student_params.count; i++) param_trainable(student_params.list[i].tensor);
    Optimiser *optimiser = training_optimiser(&o->t, &student_params);
    UNet *target = o->t.ema > 0 ? lcm_target(student_config, optimiser, &target_params) : student;
    Lcm lcm;
    lcm_init(&lcm, o->lcm, teacher->scheduler_json, teacher->unet, student, target);

    const char *name = strrchr(o->out, '/') ? strrchr(o->out, '/') + 1 : o->out;
    Run run = {.dir = o->t.run ? xstrdup(o->t.run) : format("run/%s", name), .what = "lcm"};
    run.config = format("{\"stage\": \"lcm\", \"teacher\": \"%016llx\", \"data\": \"%016llx\", \"batch\": "
                        "%d, \"rate\": %g, \"warmup\": %d, \"falls_until\": %ld, "
                        "\"ema\": %g, \"w_min\": %g, \"w_max\": %g, \"skip\": %d, \"loss\": \"%s\", "
                        "\"guidance_embedding\": %s, "
                        "\"boundary\": %s, \"weighting\": \"%s\", \"seed\": %llu}",
                        (unsigned long long)params_key(&net), (unsigned long long)pairs->key, o->t.batch,
                        o->t.rate, o->t.warmup, o->t.cosine ? o->t.steps : 0, o->t.ema, (double)o->lcm.w_min,
                        (double)o->lcm.w_max, o->lcm.k, o->lcm.loss == LOSS_HUBER ? "huber" : "l2",
                        o->guidance ? "true" : "false", o->lcm.boundary ? "true" : "false",
                        o->lcm.snr_weighting ? "snr" : "none", (unsigned long long)o->seed);
    Look look = {.o = o, .model = *teacher, .dir = format("%s/samples", run.dir)};
    look.model.unet = target, look.model.unet_config = student_config;
    look.model.scheduler_json = parsed(configs.scheduler), look.model.index_json = parsed(configs.index);
    for (int i = 0; i < 4; i++) { // the first captions of four pictures
        const Sample *s = &pairs->data->samples[(size_t)i * (size_t)pairs->count / 4];
        look.prompts[i] = s->captions[0];
    }

    training_begin(&run, &o->t, optimiser, o->seed);
    lcm_distill(&lcm, &run, teacher, pairs, look_at, &look);
    double took = run_seconds(&run);
    bool done = run_end(&run);
    if (done) write_model(o, teacher, &configs, o->t.ema > 0 ? &target_params : &student_params);
    training_report(&run, took, o->out, done, planned, "", json);

    lcm_free(&lcm);
    if (target != student) lcm_target_free(target, &target_params);
    optimiser_free(optimiser);
    params_free(&student_params);
    free(student);
    pairs_close(pairs);
    json_free(look.model.scheduler_json), json_free(look.model.index_json), json_free(unet_json);
    free(look.dir), free(run.dir), free(run.config), free(configs.unet), free(configs.scheduler),
        free(configs.index);
    model_free(teacher);
    return done ? 0 : 1;
}

enum { SAMPLE_EVERY = OWN_OPTIONS, ABLATE, COPY };

static void ablate(Options *o, const char *name) {
    if (!strcmp(name, "ema"))
        o->t.ema = 0; // the target is the student itself
    else if (!strcmp(name, "skip"))
        o->lcm.k = 1;
    else if (!strcmp(name, "huber"))
        o->lcm.loss = LOSS_MSE;
    else if (!strcmp(name, "guidance"))
        o->guidance = false;
    else if (!strcmp(name, "boundary"))
        o->lcm.boundary = false;
    else
        die_usage("--ablate is \"%s\"; ema, skip, huber, guidance or boundary is expected", name);
}

// [L1] The command line.
int command_lcm(int argc, char **argv) {
    static const struct option options[] = {{"output", required_argument, 0, 'o'},
                                            {"ablate", required_argument, 0, ABLATE},
                                            {"copy", no_argument, 0, COPY},
                                            {"sample-every", required_argument, 0, SAMPLE_EVERY},
                                            TRAINING_LONG,
                                            DISTILLATION_LONG,
                                            COMMON_LONG,
                                            {0}};
    Common common = common_defaults;
    Options o = {.t = training_defaults, .lcm = lcm_defaults, .guidance = true, .sample_every = 500};
    o.t.steps = 2000, o.t.ema = 0.95, o.t.checkpoint_every = 300;
    const char **ablations = xmalloc((size_t)argc * sizeof *ablations);
    int option, ablated = 0;
    while ((option = getopt_long(argc, argv, "o:" COMMON_SHORT, options, NULL)) != -1) {
        if (common_option(&common, option, help) || training_option(&o.t, option) ||
            distillation_option(&o.lcm, option))
            continue;
        switch (option) {
        case 'o': o.out = optarg; break;
        case ABLATE: ablations[ablated++] = optarg; break;
        case COPY: o.copy = true; break;
        case SAMPLE_EVERY: o.sample_every = (int)option_whole("--sample-every", optarg, 0, 1 << 24); break;
        }
    }
    if (optind < argc) die_usage("\"%s\" is no option", argv[optind]);
    for (int i = 0; i < ablated; i++) ablate(&o, ablations[i]); // whatever else was asked for
    free(ablations);
    if (!o.t.data || !o.out) die_usage("--data DIR and --output DIR are needed");
    training_check(&o.t, &o.lcm);
    char *out = xstrdup(o.out);
    for (size_t end = strlen(out); end > 1 && out[end - 1] == '/';) out[--end] = 0;
    o.out = out;
    o.model = common.model, o.seed = common.seed;
    common_start(&common);
    int status = distil(&o, common.json);
    free(out);
    return status;
}
