// pretrain.h: the stages in which the tiny model is trained (the command is cli/pretrain.c).
#ifndef PRETRAIN_H
#define PRETRAIN_H

#include "lib/io/pairs.h"
#include "lib/io/train.h"
#include "scenes.h"

typedef struct {
    const char *stage, *out, *run; // out: the model's folder; run: checkpoint and log (default run/<stage>)
    long steps;                    // this, batch, rate and ema: 0 for the stage's own
    const char *data;              // a folder of captioned scenes, for the stages that need pairs
    int batch, shards, validate;
    double rate, ema, checkpoint_every;
    uint64_t seed;
    bool fresh, keep_one;
    Run *ended; // how the training went is left here, unless NULL
} PretrainOptions;

typedef struct {
    const char *name;
    void (*train)(const PretrainOptions *o);
    bool pairs; // it learns from a folder of captioned scenes; the others draw their scenes themselves
    long steps;
    int batch;
    double rate, ema;
} PretrainStage;
extern const PretrainStage pretrain_stages[]; // ended by a NULL name
void pretrain(const PretrainStage *stage, PretrainOptions o);

// pairs: what it learns from, or NULL where scenes are drawn on the way. A checkpoint of others is refused.
Run pretrain_run(const PretrainOptions *o, Pairs *pairs, const Params *const *models, int count);
// True on rank 0 when all steps are done. From here on the models have their moving averages.
bool pretrain_end(const PretrainOptions *o, Run *run);
// Scenes as pixels in [-1, 1], (n, crop, crop, 3): 4 of 5 cuts are around the figure, which is the hard part.
// What they are, and the boxes of their figures in the whole picture (n: left, top, right, bottom): both may
// be NULL. Of BOTH_WORLDS in turn, or of one.
enum { BOTH_WORLDS = 2 };
Tensor *pretrain_scenes(const PretrainOptions *o, Split split, int world, long first, int n, int crop,
                        Scene *scenes, int (*boxes)[4]);

void pretrain_inception(const PretrainOptions *o); // judge.c
void pretrain_check(const PretrainOptions *o);

#endif
