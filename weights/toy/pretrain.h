// pretrain.h: what the stages of `sd pretrain` share.
#ifndef PRETRAIN_H
#define PRETRAIN_H

#include "lib/io/pairs.h"
#include "lib/io/train.h"
#include "scenes.h"

typedef struct {
    const char *stage, *out, *run; // out: the model's folder; run: checkpoint and log (default run/<stage>)
    long steps;
    const char *data; // a folder of captioned scenes, for the stages that need pairs
    int batch;
    double rate, ema, checkpoint_every;
    uint64_t seed;
    bool fresh;
} PretrainOptions;

// pairs: what it learns from, or NULL where scenes are drawn on the way; a checkpoint of other pairs is refused.
Run pretrain_run(const PretrainOptions *o, const Pairs *pairs, Optimiser *optimiser);
OptimiserConfig pretrain_adamw(const PretrainOptions *o);

void pretrain_inception(const PretrainOptions *o); // judge.c
void pretrain_check(const PretrainOptions *o);

#endif
