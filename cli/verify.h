// verify.h: traces. A trace holds one tensor a block, NCHW, under diffusers' name of the module; "step.N."
// stands before what each step makes. Under "inputs." it holds what went in. See doc/TRACE.md.
#ifndef VERIFY_H
#define VERIFY_H

#include "options.h"
#include "sd.h"

void trace_begin(void); // collect from here on
// Writes what was collected, and what went in. loras: the adapters drawn with, FILE[:SCALE].
void trace_save(const char *path, const SampleOptions *o, const Model *m, Texts loras);

// ---- between verify.c and explain.c, and some of it for others --------------------------------------------

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
    const Store *trace;
    int rows, *ids;          // rows: 2 with guidance (unconditional, conditional), else 1
    Tensor *context;         // text states (rows, tokens, d), where ids is NULL
    Tensor *latents, *image; // image may be NULL
    float cfg, *times;       // times (steps)
    int steps;
    bool decodes, sampled; // sampled: the sampler is known
    SchedulerConfig sampler;
    int sampler_steps; // of which the last `steps` evaluations are run
    char *times_why;   // whose timesteps they are, where the model's sampler takes others; or NULL
} Inputs;

// Text encoder, UNet and sampler, VAE on the trace's inputs; trace_sink sees our blocks. Text states,
// predictions and latents go on as the trace has them, so a mistake shows where it is made, not behind it.
void run_again(const Model *m, const Inputs *in);
Scheduler scheduler_of(SchedulerConfig c, int steps);
Scheduler sampler_of(const Inputs *in); // before the first step
Tensor *step_again(const Inputs *in, Scheduler *s, Tensor *z, Tensor *eps, int step);
// In place of ours, if it is there.
Tensor *theirs(const Inputs *in, Tensor *ours, int step, const char *name);
Tensor *picture_from(const float *nchw, int n, int c, int h, int w);
float *file_order(const Tensor *t, int64_t shape[4]); // a tensor as a trace has it; its shape is filled in
// calls: of the UNet so far; its first block begins a step.
char *name_with_step(const char *name, int *calls);
const char *without_step(const char *name); // behind "step.N.", where that stands before it
// The tensor of a step (-1: of none). In a trace of a single step the names may lack "step.0.".
const Stored *find_traced(const Store *s, int step, const char *name);
float *stored_floats(const Stored *t);                     // all elements, NaN and all
double distance(const float *x, const float *y, size_t n); // the largest difference; NaN counts as infinite
double largest_of(const float *x, size_t n);
// How far two right implementations are apart, over the largest value, where one computes in F32, F16, BF16.
extern const double rounding[3];
extern const char *const precision_names[3];

// explain.c: what may be wrong in the first block that differs; "" where nothing is found. before: the one
// before it. precision: of the less exact side. m: NULL where both sides are traces.
const char *explain(const Model *m, const Inputs *in, const char *block, const float *their,
                    const Traced *ours, const Traced *before, Type precision);

#endif
