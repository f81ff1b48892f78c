// commands.h: the sub-commands of `sd`, one function each, and the options they share.
#ifndef COMMANDS_H
#define COMMANDS_H

#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>

// argv[1] is the first option. Returns the exit status; errors end the program through die() (1) or
// die_usage() (2).
int command_sample(int argc, char **argv);
int command_encode(int argc, char **argv);
int command_decode(int argc, char **argv);
int command_tokenize(int argc, char **argv);
int command_verify(int argc, char **argv);
int command_info(int argc, char **argv);
int command_synth(int argc, char **argv);
int command_scenes(int argc, char **argv);
int command_data(int argc, char **argv);
int command_pretrain(int argc, char **argv);
int command_lcm(int argc, char **argv);
int command_lora(int argc, char **argv);
int command_fid(int argc, char **argv);
int command_report(int argc, char **argv);
int command_bench(int argc, char **argv);

// What every command takes: -m, -t, --seed, -q, -v, --json, --help.
typedef struct {
    const char *model; // default weights/tiny
    int threads;       // 0: all cores
    uint64_t seed;
    bool json;
} Common;
#define COMMON_SHORT "m:t:qvh"
#define COMMON_LONG                                                                                          \
    {"model", required_argument, 0, 'm'}, {"threads", required_argument, 0, 't'},                            \
        {"seed", required_argument, 0, 0x5eed}, {"quiet", no_argument, 0, 'q'},                              \
        {"verbose", no_argument, 0, 'v'}, {"json", no_argument, 0, 0x1503}, {                                \
        "help", no_argument, 0, 'h'                                                                          \
    }
extern const Common common_defaults;
// Takes one of them (what getopt_long returned); false if it is none of them. --help prints `help` and exits;
// an unknown option ('?') dies.
bool common_option(Common *c, int option, const char *help);
void common_start(const Common *c); // starts the backend

// Checked numbers: die_usage() names the option where the text is no number or lies outside.
long option_whole(const char *option, const char *text, long least, long most);
double option_number(const char *option, const char *text, double least, double most);
char *option_lora(const char *text, float *scale); // FILE[:SCALE] -> FILE, and SCALE or 1 (cmd_lora.c)

void option_png(const char *output); // die_usage() where the name says JPEG or the like

void print_json_string(const char *s); // in quotes, to stdout

#endif
