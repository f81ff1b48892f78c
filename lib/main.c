// main.c: the program `sd`: which command, and the options that all of them share. No algorithm is here; each
// command turns options into a call of a phase (sample.c, ..., beside this file) and prints what came out.
#include "base.h"
#include "commands.h"
#include "kernels.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
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
    {"verify", command_verify, "compare another implementation's trace with this one, block by block"},
    {"info", command_info, "what a model, LoRA or statistics file contains"},
    {"synth", command_synth, "write a model with made weights at the full architecture"},
};

const Common common_defaults = {.model = "weights/tiny"};

long option_whole(const char *option, const char *text, long least, long most) {
    char *end;
    errno = 0;
    long x = strtol(text, &end, 10);
    if (end == text || *end || errno) die_usage("%s takes a whole number, not \"%s\"", option, text);
    if (x < least || x > most) die_usage("%s is %ld; it must be from %ld to %ld", option, x, least, most);
    return x;
}

double option_number(const char *option, const char *text, double least, double most) {
    char *end;
    double x = strtod(text, &end);
    if (end == text || *end || !isfinite(x)) die_usage("%s takes a number, not \"%s\"", option, text);
    if (x < least || x > most) die_usage("%s is %g; it must be from %g to %g", option, x, least, most);
    return x;
}

bool common_option(Common *c, int option, const char *help) {
    switch (option) {
    case 'm': c->model = optarg; return true;
    case 't': c->threads = (int)option_whole("--threads", optarg, 1, 1024); return true;
    case 0x5eed: {
        char *end;
        errno = 0;
        c->seed = strtoull(optarg, &end, 10);
        if (end == optarg || *end || errno || *optarg == '-')
            die_usage("--seed takes a whole number, not \"%s\"", optarg);
        return true;
    }
    case 'q': verbosity = -1; return true;
    case 'v': verbosity = 1; return true;
    case 0x1503: c->json = true; return true;
    case 'h': fputs(help, stdout); exit(0);
    case '?': exit(2); // getopt_long has said which
    default: return false;
    }
}

void common_start(const Common *c) {
    k_init(c->threads);
    note_verbose("running on %s", k_name());
}

static int help(FILE *to, int status) {
    fputs("usage: sd COMMAND [options]\n\n", to);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(to, "  %-10s %s\n", commands[i].name, commands[i].what);
    fputs("\n  sd COMMAND --help says more. For example:\n"
          "  sd sample -p \"A child in a pink dress is climbing up a set of stairs in an entryway\" -o "
          "child.png\n",
          to);
    return status;
}

int main(int argc, char **argv) {
    if (argc < 2) return help(stderr, 2);
    if (!strcmp(argv[1], "help") || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))
        return help(stdout, 0);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(argv[1], commands[i].name)) {
            int status = commands[i].run(argc - 1, argv + 1);
            if (fflush(stdout)) die("cannot write to standard output: %s", strerror(errno));
            return status;
        }
    die_usage("there is no command \"%s\"; \"sd help\" lists them", argv[1]);
}
