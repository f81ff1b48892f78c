// main.c: the program `sd`. Each command, in a file beside this one, turns options into a phase's call.
#include "commands.h"
#include "lib/nn/ranks.h"
#include "options.h"

#include <errno.h>
#include <string.h>

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *what;
} commands[] = {
    {"sample", command_sample, "draw a picture of a caption"},
    {"encode", command_encode, "picture -> latents"},
    {"decode", command_decode, "latents -> picture"},
    {"tokenize", command_tokenize, "text -> token ids"},
    {"synth", command_synth, "write a model with made weights at the full architecture"},
    {"scenes", command_scenes, "draw the toy world: captioned scenes in Flickr8k's layout"},
    {"data", command_data, "a captioned data set, or a part of it, in Flickr8k's layout"},
    {"fid", command_fid, "Frechet and kernel inception distance of two sets of pictures"},
    {"report", command_report, "the results of `make paper` as tables and figures, or curves of trainings"},
    {"pretrain", command_pretrain, "train the tiny model from nothing"},
    {"verify", command_verify, "compare another implementation's trace with this one, block by block"},
    {"lcm", command_lcm, "Phase 2: distil a model into one of 4 steps"},
    {"lora", command_lora, "Phase 3: train, merge and convert low-rank adapters"},
    {"info", command_info, "what a model, LoRA, picture or statistics file contains"},
};

static int help(FILE *to, int status) {
    fputs("usage: sd COMMAND [options]\n\n", to);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(to, "  %-10s %s\n", commands[i].name, commands[i].what);
    fputs("\n  sd help COMMAND says more, sd --version which program this is. For example:\n"
          "  sd sample -p \"A child in a pink dress is climbing up a set of stairs in an entryway\" -o "
          "child.png\n",
          to);
    return status;
}

// What a report of a mistake should name.
static int version(void) {
    start_backend();
    printf("sd.c 1.0, %s, compiler " __VERSION__ "\n", backend.name());
    return 0;
}

int main(int argc, char **argv) {
    program_begin();
    ranks_begin();
    if (argc < 2) return help(stderr, 2);
    if (!strcmp(argv[1], "--version")) return version();
    bool asks = !strcmp(argv[1], "help");
    if ((asks && argc == 2) || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) return help(stdout, 0);
    static char all_of_it[] = "--help"; // sd help lora merge: sd lora merge --help
    for (int i = 1; asks && i < argc; i++) argv[i] = i + 1 < argc ? argv[i + 1] : all_of_it;
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(argv[1], commands[i].name)) {
            // What ranks do not share, rank 0 does alone.
            bool shared = place_in("sample|fid|pretrain|lcm|lora", argv[1]) >= 0;
            int status = shared || !ranks_mine() ? commands[i].run(argc - 1, argv + 1) : 0;
            if (fflush(stdout)) die("cannot write to standard output: %s", strerror(errno));
            ranks_end();
            return status;
        }
    char *all = xstrdup("help");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        format_more(&all, "|%s", commands[i].name);
    die_usage("there is no command \"%s\"; \"sd help\" lists them%s", argv[1],
              did_you_mean(argv[1], all, "sd "));
}
