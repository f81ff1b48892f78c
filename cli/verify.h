// verify.h: traces. A trace holds one fp32 tensor a block, NCHW, under diffusers' name of the module;
// "step.N." stands before the UNet's where there are several steps. Under "inputs." it holds what went in.
#ifndef VERIFY_H
#define VERIFY_H

#include "sd.h"

void trace_begin(void); // collect from here on
// Writes what was collected, and what went in.
void trace_save(const char *path, const SampleOptions *o, const Model *m);

// ---- between verify.c and explain.c -----------------------------------------------------------------------

// A block's output.
typedef struct {
    char *name;
    int64_t shape[4];
    int ndim;
    float *data; // pictures NCHW
} Traced;
size_t traced_elements(const Traced *t);

// What a trace was made from.
typedef struct {
    int rows, tokens, *ids; // rows: 2 with guidance (unconditional, conditional), else 1
    int c, h, w, steps;
    float *latents, *times, cfg; // latents, noise, end and image are NCHW
    float **noise;               // (steps - 1) of LCM's; NULL where there is none
    float *end, *image; // the latents that went into the other side's VAE, or NULL; a picture or NULL
    int image_h, image_w;
    bool decodes, sampled; // sampled: the sampler is known
    SchedulerConfig sampler;
    int sampler_steps; // of which the last `steps` evaluations are run
} Inputs;

// Text encoder, UNet and sampler, VAE on the trace's inputs; trace_sink sees our blocks.
void run_again(const Model *m, const Inputs *in);
float *file_order(const Tensor *t, int64_t shape[4]); // a tensor as a trace has it; its shape is filled in
// calls: of the UNet so far; its first block begins a step.
char *name_with_step(const char *name, int *calls);
const char *shown_name(const char *name, bool several); // with a single step the UNet's names lack "step.0."
double distance(const float *x, const float *y, size_t n); // the largest difference; NaN counts as infinite
double largest_of(const float *x, size_t n);

// explain.c: what may be wrong in the first block that differs, a new string or NULL. before: the one before
// it.
char *explain(const Model *m, const Inputs *in, const char *block, const float *theirs, const Traced *ours,
              const Traced *before);

#endif
