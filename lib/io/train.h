// train.h: what every training run has in common: a folder with its configuration, a log and a checkpoint; a
// progress bar; the optimiser's step; an end that loses nothing.
//
//   run_begin(&run, ...);            resumes where the folder's checkpoint stands
//   while (run_continues(&run)) {
//       tape_begin();  ... loss ...  backward(loss);
//       run_step(&run, loss, NULL, names);   optimiser, log, now and then a checkpoint
//       tape_end();
//   }
//   run_end(&run);
//
// A resumed run gives the same bits as one that was never stopped: weights, moments, moving averages,
// counters and the random generator's state are all in checkpoint.safetensors, which is replaced as a whole
// and carries a digest of its bytes. The one before it stays as checkpoint.previous.safetensors.
#ifndef TRAIN_H
#define TRAIN_H

#include "io.h"

typedef struct {
    char *dir;        // checkpoint.safetensors, log.jsonl, config.json; locked while the run lasts
    const char *what; // for the progress bar
    char *config;     // one JSON object: what was asked for; a checkpoint of another configuration is refused
    Optimiser *optimiser;
    Random random;           // everything that the run draws comes from here
    long step, total;        // steps done; steps to do
    int batch;               // samples a step, for the log
    double checkpoint_every; // seconds
    bool keep_one;           // else the checkpoint before the newest is kept beside it
    // of its own:
    double started, earlier, saved_at; // when this start began; seconds of earlier ones; last checkpoint
    float loss, lowest;                // running mean; its lowest value
    FILE *log;
    Progress bar;
} Run;

// Fill in dir, what, config, optimiser, total, batch; the rest is set here. fresh: begin anew even if there
// is a checkpoint; else resume from it.
void run_begin(Run *r, uint64_t seed, bool fresh);
bool run_continues(const Run *r); // false at the end, and after Ctrl-C
// Clips the gradients, steps, clears them; then writes the log and, when due, the checkpoint. parts: more
// values for the log line, as JSON members (", \"kl\": 0.1"), or NULL. Dies where the loss or a gradient is
// not finite or explodes; the message tells batch_name, what was in the batch.
void run_step(Run *r, Tensor *loss, const char *parts, const char *batch_name);
void run_checkpoint(Run *r);
// The last checkpoint; says how to continue if the run was interrupted. Returns true when all steps are done.
bool run_end(Run *r);
double run_seconds(const Run *r); // of training so far, earlier sessions included

#endif
