// pretrain.c: `sd pretrain`, options -> a stage of the tiny model's training. See ../weights/toy/pretrain.c.
#include "commands.h"
#include "options.h"
#include "weights/toy/pretrain.h"

#include <string.h>

int command_pretrain(int argc, char **argv) {
    Run run = {0}; // stays so where nothing is trained
    PretrainOptions o = {.shards = 1, .checkpoint_every = 120, .ended = &run};
    bool json = false;
    Option options[] = {
        {'o', "output", TEXT(&o.out, "DIR"), "the model's folder; what the stage trains is replaced there"},
        {0, "run", TEXT(&o.run, "DIR"), "checkpoint and log (default: run/ and the stage's name)"},
        {0, "data", TEXT(&o.data, "DIR"), "text and unet: scenes of the broad world"},
        {0, "steps", WHOLE(&o.steps, 1, 1 << 24), "training steps (default: the stage's)"},
        {0, "batch", WHOLE(&o.batch, 1, 4096), "pictures a step (default: the stage's)"},
        {0, "shards", WHOLE(&o.shards, 1, 4096), "parts of a batch that ranks may share, as of sd lcm"},
        {0, "validate", WHOLE(&o.validate, 1, 100000), "as of sd lcm"},
        {0, "lr", NUMBER(&o.rate, 0, 1), "learning rate (default: the stage's)"},
        {0, "ema", NUMBER(&o.ema, 0, 0.999999),
         "of the moving average of the weights (default: the stage's)"},
        {0, "checkpoint-every", NUMBER(&o.checkpoint_every, 1e-9, 1e9), "seconds between checkpoints"},
        {0, "keep-one", FLAG(&o.keep_one), "do not keep the checkpoint before the newest"},
        {0, "fresh", FLAG(&o.fresh), "begin the run anew; weights in the model's folder are still the start"},
        {SEED_OPTION(&o.seed, "of everything that is drawn")},
        {JSON_OPTION(&json)},
        {0}};
    char **words = options_parse(
        argc, argv, options, "sd pretrain tokenizer|vae|decoder|text|unet|inception|check -o DIR [options]",
        "Trains the tiny model on the toy world's broad scenes, a stage a command, in this order. The same "
        "command continues after an interruption. check trains nothing: it tells how well the judge "
        "(inception) reads held-out scenes, and what the VAE makes of them.",
        "sd pretrain tokenizer -o run/tiny\n"
        "  sd pretrain vae -o run/tiny\n"
        "  sd scenes run/broad -n 20000 --world broad\n"
        "  sd pretrain text -o run/tiny --data run/broad");
    const char *name = one_word(words, "one stage is needed: sd pretrain --help lists them");
    choice("there is no stage", name, "tokenizer|vae|decoder|text|unet|inception|check");
    if (!o.out) die_usage("--output DIR is needed: the model's folder");
    const PretrainStage *stage = pretrain_stages;
    while (strcmp(name, stage->name)) stage++;
    if (o.data && !stage->pairs) die_usage("%s takes no --data: it draws its scenes itself", name);
    start_backend();
    pretrain(stage, o);
    if (!json) return 0;
    double took = run.dir ? run_seconds(&run) : 0;
    const char *output = strcmp(name, "inception") ? o.out : format("%s-inception.safetensors", o.out);
    printf("{\"steps\": %ld, \"loss\": %.6g, \"samples_per_s\": %.3f, \"seconds\": %.1f, \"output\": %s}\n",
           run.step, (double)run.loss, took > 0 ? (double)run.step * run.batch * run.shards / took : 0, took,
           json_quote(output));
    return 0;
}
