// options.c: the options that every command takes, and numbers checked. See commands.h.
#define _POSIX_C_SOURCE 200809L // strcasecmp
#include "lib/base.h"
#include "commands.h"
#include "lib/nn/kernels.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

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

void option_png(const char *output) {
    static const char *const others[] = {".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"};
    const char *ending = strrchr(output, '.');
    for (size_t i = 0; ending && i < sizeof others / sizeof *others; i++)
        if (!strcasecmp(ending, others[i]))
            die_usage("--output is \"%s\"; pictures are PNG, so end the name in .png", output);
}

void print_json_string(const char *s) {
    putchar('"');
    for (; *s; s++)
        if ((unsigned char)*s < ' ')
            printf("\\u%04x", (unsigned)*s);
        else
            printf(*s == '"' || *s == '\\' ? "\\%c" : "%c", *s);
    putchar('"');
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
    backend_init(c->threads);
    note_verbose("running on %s", backend.name());
}
