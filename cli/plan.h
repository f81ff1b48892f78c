// plan.h: how much memory a training run will take, told before it is taken; and which kernels a model calls.
#ifndef PLAN_H
#define PLAN_H

#include "sd.h"

double plan_weights(const Params *p); // bytes of them

// A whole run.
typedef struct {
    const Model *model;        // sd lcm's teacher, sd lora's base; its text encoder reads the captions
    const UNetConfig *student; // sd lcm: the network that learns, as a copy. Else NULL, and
    const UNet *teacher;       //   the network that is imitated (NULL in fine-tuning),
    const UNet *adapted;       //   the one with the adapters,
    const Lora *lora;          //   and those
    const MimicConfig *mimic;  // how the latents are compared, in mode mimic; else NULL
    int batch;                 // pictures of a step, or of one of its shards
    int sums;                  // of shards' gradients that are kept beside the one that is being made
    double models;             // bytes that are there already, and stay,
    double encoder;            //   and of those that go before the first step
    double learnt;             // parameters that learn
    bool average, checkpointed, keep_one; // with a moving average; gradient checkpointing was asked for
} Plan;
// Prints and returns the bytes that the run will hold; dies where there are fewer. Sets `checkpointing`.
double plan_run(const Plan *p);

// To stdout, a line a distinct kernel call: how often, which, its shape. Of two captions, one guided
// evaluation and one picture decoded; or, `training`, of one picture's step of sd lcm. `model`: a diffusers
// folder, of which only the configurations are read, or an architecture ("sd15").
void plan_kernels(const char *model, bool training);

#endif
