// train.h: what `sd lcm` and `sd lora` share, being commands that train on captioned pictures: options, the optimiser, the
// beginning and the closing line of a run.
#ifndef CMD_TRAIN_H
#define CMD_TRAIN_H

#include "sd.h"
#include "commands.h"

typedef struct {
    const char *data, *cache, *tokenizer;
    const char *run; // folder of checkpoint and log; NULL: run/, and the output's name
    long steps;
    int batch, warmup;
    double rate, ema, checkpoint_every;
    bool cosine, checkpointing, resume, fresh;
    Type dtype; // of the weights written
} Training;
extern const Training training_defaults; // steps, rate, ema and checkpoint_every are the command's

// What getopt_long returns for them; a command's own options begin at OWN_OPTIONS.
enum {
    DATA = 256,
    CACHE,
    TOKENIZER,
    RUN_DIR,
    STEPS,
    BATCH,
    RATE,
    WARMUP,
    SCHEDULE,
    EMA,
    CHECKPOINTING,
    CHECKPOINT_EVERY,
    RESUME,
    FRESH,
    DTYPE,
    W_MIN,
    W_MAX,
    SKIP,
    WEIGHTING,
    LOSS,
    OWN_OPTIONS
};
#define TRAINING_LONG                                                                                        \
    {"data", required_argument, 0, DATA}, {"cache", required_argument, 0, CACHE},                            \
        {"tokenizer", required_argument, 0, TOKENIZER}, {"run", required_argument, 0, RUN_DIR},              \
        {"steps", required_argument, 0, STEPS}, {"batch", required_argument, 0, BATCH},                      \
        {"lr", required_argument, 0, RATE}, {"warmup", required_argument, 0, WARMUP},                        \
        {"schedule", required_argument, 0, SCHEDULE}, {"ema", required_argument, 0, EMA},                    \
        {"checkpointing", no_argument, 0, CHECKPOINTING},                                                    \
        {"checkpoint-every", required_argument, 0, CHECKPOINT_EVERY}, {"resume", no_argument, 0, RESUME},    \
        {"fresh", no_argument, 0, FRESH}, {                                                                  \
        "dtype", required_argument, 0, DTYPE                                                                 \
    }
#define DISTILLATION_LONG                                                                                    \
    {"w-min", required_argument, 0, W_MIN}, {"w-max", required_argument, 0, W_MAX},                          \
        {"skip", required_argument, 0, SKIP}, {"weighting", required_argument, 0, WEIGHTING}, {              \
        "loss", required_argument, 0, LOSS                                                                   \
    }
// Take an option, or say that it is none of theirs: those of every training, those of Algorithm 1.
bool training_option(Training *t, int option);
bool distillation_option(LcmConfig *c, int option);
// After the last option: contradictions end the program through die_usage(), and the warm-up is settled.
void training_check(Training *t, const LcmConfig *c);
Type option_type(const char *text); // --dtype

// Before hours of work: can the result be written there? Its folder is there, or (parents) one above it, and lets us.
void training_output(const char *path, bool parents);
// AdamW over these parameters as the options say, and their moving average.
Optimiser *training_optimiser(const Training *t, const Params *learnt);
// Fills in what the options say of a run and begins it; dir, what and config are the caller's.
void training_begin(Run *run, const Training *t, Optimiser *optimiser, uint64_t seed);
// How it went, on stderr or as one JSON object on stdout (more: further members, ", \"mode\": ...", or ""). seconds: of
// training; planned: bytes of memory.
void training_report(const Run *run, double seconds, const char *output, bool done, double planned,
                     const char *more, bool json);

#endif
