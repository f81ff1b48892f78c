// train.c: options, optimiser and closing line of the commands that train on captioned pictures. See train.h.
#define _POSIX_C_SOURCE 200809L // access
#include "train.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const Training training_defaults = {.cache = "run/cache", .batch = 16, .warmup = -1, .dtype = F16};

Type option_type(const char *text) {
    if (!strcmp(text, "f32")) return F32;
    if (!strcmp(text, "f16")) return F16;
    if (!strcmp(text, "bf16")) return BF16;
    die_usage("--dtype is \"%s\"; f32, f16 or bf16 is expected", text);
}

bool training_option(Training *t, int option) {
    switch (option) {
    case DATA: t->data = optarg; break;
    case CACHE: t->cache = optarg; break;
    case TOKENIZER: t->tokenizer = optarg; break;
    case RUN_DIR: t->run = optarg; break;
    case STEPS: t->steps = option_whole("--steps", optarg, 1, 1 << 30); break;
    case BATCH: t->batch = (int)option_whole("--batch", optarg, 1, 4096); break;
    case RATE: t->rate = option_number("--lr", optarg, 1e-12, 1); break;
    case WARMUP: t->warmup = (int)option_whole("--warmup", optarg, 0, 1 << 24); break;
    case SCHEDULE:
        if (strcmp(optarg, "constant") && strcmp(optarg, "cosine"))
            die_usage("--schedule is constant or cosine, not \"%s\"", optarg);
        t->cosine = !strcmp(optarg, "cosine");
        break;
    case EMA: t->ema = option_number("--ema", optarg, 0, 0.999999); break;
    case CHECKPOINTING: t->checkpointing = true; break;
    case CHECKPOINT_EVERY:
        t->checkpoint_every = option_number("--checkpoint-every", optarg, 1e-9, 1e9);
        break;
    case RESUME: t->resume = true; break;
    case FRESH: t->fresh = true; break;
    case DTYPE: t->dtype = option_type(optarg); break;
    default: return false;
    }
    return true;
}

bool distillation_option(LcmConfig *c, int option) {
    switch (option) {
    case W_MIN: c->w_min = (float)option_number("--w-min", optarg, -100, 1000); break;
    case W_MAX: c->w_max = (float)option_number("--w-max", optarg, -100, 1000); break;
    case SKIP: c->k = (int)option_whole("--skip", optarg, 1, 100000); break;
    case WEIGHTING:
        if (strcmp(optarg, "none") && strcmp(optarg, "snr"))
            die_usage("--weighting is none or snr, not \"%s\"", optarg);
        c->snr_weighting = !strcmp(optarg, "snr");
        break;
    case LOSS:
        if (strcmp(optarg, "huber") && strcmp(optarg, "l2"))
            die_usage("--loss is \"%s\"; huber or l2 is expected", optarg);
        c->loss = strcmp(optarg, "l2") ? LOSS_HUBER : LOSS_MSE;
        break;
    default: return false;
    }
    return true;
}

// Steps of warm-up, where --warmup does not say: 100; with a rate that falls, at most a tenth of all.
void training_check(Training *t, const LcmConfig *c) {
    if (t->resume && t->fresh) die_usage("--resume and --fresh contradict each other");
    if (t->warmup < 0) t->warmup = t->cosine && t->steps < 1000 ? (int)(t->steps / 10) : 100;
    if (t->cosine && t->warmup >= t->steps)
        die_usage("--schedule cosine: nothing is left of %ld steps after --warmup %d", t->steps, t->warmup);
    if (c->w_min > c->w_max) die_usage("--w-min is %g and --w-max %g", (double)c->w_min, (double)c->w_max);
}

void training_output(const char *path, bool parents) {
    char *folder = xstrdup(path);
    do {
        const char *slash = strrchr(folder, '/');
        char *above = !slash            ? xstrdup(".")
                      : slash == folder ? xstrdup("/")
                                        : format("%.*s", (int)(slash - folder), folder);
        free(folder), folder = above;
    } while (parents && !file_exists(folder) && strcmp(folder, "."));
    if (file_exists(folder) && !is_directory(folder)) die("cannot write %s: %s is no folder", path, folder);
    if (access(folder, W_OK)) die("cannot write %s: %s: %s", path, folder, strerror(errno));
    free(folder);
}

Optimiser *training_optimiser(const Training *t, const Params *learnt) {
    OptimiserConfig adamw = {.rate = (float)t->rate,
                             .beta1 = 0.9f,
                             .beta2 = 0.999f,
                             .eps = 1e-8f,
                             .weight_decay = 0.01f,
                             .max_norm = 1,
                             .warmup = (float)t->warmup,
                             .total = t->cosine ? (float)t->steps : 0,
                             .floor = 0.05f};
    return optimiser_new(adamw, (float)t->ema, &learnt, 1);
}

void training_begin(Run *run, const Training *t, Optimiser *optimiser, uint64_t seed) {
    run->optimiser = optimiser;
    run->total = t->steps, run->batch = t->batch;
    run->checkpoint_every = t->checkpoint_every;
    char *checkpoint = format("%s/checkpoint.safetensors", run->dir);
    if (t->resume && !file_exists(checkpoint)) die("--resume: there is no %s", checkpoint);
    free(checkpoint);
    run_begin(run, seed, t->fresh);
}

void training_report(const Run *run, double seconds, const char *output, bool done, double planned,
                     const char *more, bool json) {
    double used = (double)backend.peak();
    note("memory: %.0f MB were planned, %.0f MB used", planned / 1e6, used / 1e6);
    if (json)
        printf("{\"steps\": %ld, \"loss\": %.6g, \"samples_per_s\": %.3f, \"seconds\": %.1f, \"output\": "
               "\"%s\", \"done\": %s%s, \"planned_mb\": %.1f, \"peak_mb\": %.1f}\n",
               run->step, (double)run->loss, seconds > 0 ? (double)run->step * run->batch / seconds : 0,
               seconds, output, done ? "true" : "false", more, planned / 1e6, used / 1e6);
    else if (done)
        note("%s: loss %.4g after %ld steps, %.1f s", output, (double)run->loss, run->step, seconds);
}
