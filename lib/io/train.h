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
//
// A step's batch may be divided into shards (doc/SCALE.md): then the loop goes round once for each that is
// this rank's. Each gradient starts from zero, and all are added in the order of a binary tree over the
// shards' numbers, whatever rank made them. So the result depends on the number of shards, but not on that of
// ranks.
#ifndef TRAIN_H
#define TRAIN_H

#include "io.h"
#include "pairs.h"

// More values for the log, as printf wants them, without the comma: {"\"kl\": %.6g", x}.
typedef struct {
    const char *text; // NULL: not there
    double value;
} RunPart;

enum { RUN_PARTS = 3 }; // at most

typedef struct {
    char *dir;        // checkpoint.safetensors, log.jsonl, config.json; locked while the run lasts
    const char *what; // for the progress bar
    char *config;     // one JSON object: what was asked for; a checkpoint of another configuration is refused
    Optimiser *optimiser;
    Random random;     // everything that the run draws comes from here
    long step, total;  // steps done; steps to do
    int batch, shards; // samples a step, in so many shards (0: 1). From run_begin() on: those of a shard
    double checkpoint_every; // seconds
    bool keep_one;           // else the checkpoint before the newest is kept beside it
    int validate;            // 0, or on how many held-out samples the loss is measured, 50 times in a run;
    Pairs *pairs;            //   from where these are drawn, or NULL
    // of its own:
    int turn;         // 0, or which batch of the validation is made, from 1 on, of
    int turns;        //   so many
    long validated;   // the step of the last one
    Random before;    // the random numbers of training
    double *held_out; // (1 + RUN_PARTS): sums over the turns
    int shard;     // of this rank's shards, the one that comes next or that is being made; 0: a step begins
    long portion;  // and its number among the shards of all steps
    uint64_t seed; // with several shards, each draws from its own random numbers
    float **sums;  // of 1, 2, 4, ... shards of this rank, each all gradients and the values for the log
    size_t summed; // elements of one
    float *values; // (1 + RUN_PARTS), backend memory
    double started, earlier, saved_at; // when this start began; seconds of earlier ones; last checkpoint
    float loss, lowest;                // running mean; its lowest value
    FILE *log;
    Progress bar;
} Run;

// Dies where a batch cannot be divided into so many shards, or these among the ranks: before the work.
void run_check_shards(int batch, int shards);
int run_sums(int shards); // how many sums as large as the gradient a rank holds beside it

// Fill in dir, what, config, optimiser, total, batch, shards; the rest is set here. fresh: begin anew even if
// there is a checkpoint; else resume from it.
void run_begin(Run *r, uint64_t seed, bool fresh);
// False at the end, and after Ctrl-C. Now and then a round of the loop is one of validation: pairs_draw()
// gives held-out pairs, `random` gives the same numbers each time, no tape records, and run_step() notes the
// loss.
bool run_continues(Run *r);
// When the last shard of a step is there: clips the gradients, steps, clears them; then writes the log and,
// when due, the checkpoint. parts (RUN_PARTS): more values for the log line, or NULL. Dies where the loss or
// a gradient is not finite or explodes; the message tells batch_name, what was in the batch. Returns whether
// a step was made.
bool run_step(Run *r, Tensor *loss, const RunPart *parts, const char *batch_name);
void run_checkpoint(Run *r);
// The last checkpoint; says how to continue if the run was interrupted. Returns true when all steps are done.
bool run_end(Run *r);
double run_seconds(const Run *r); // of training so far, earlier sessions included

#endif
