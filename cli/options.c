// options.c: a table of options as a parser and as a help text. See options.h.
#define _POSIX_C_SOURCE 200809L // strcasecmp
#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static int threads; // 0: all cores
static const char *no_model;
static uint64_t no_seed;
static bool no_json;
static Option common[] = {
    // Every command takes these three; one without a use for them does not show them.
    {'m', "model", TEXT(&no_model, "PATH"), ""},
    {0, "seed", SEED(&no_seed), ""},
    {0, "json", FLAG(&no_json), ""},
    {.help = "Common"},
    {'t', "threads", WHOLE(&threads, 1, 1024), "threads that compute (default: one for each core)"},
    {'q', "quiet", .kind = A_CONSTANT, .to = &verbosity, .least = -1, .help = "say nothing but errors"},
    {'v', "verbose", .kind = A_CONSTANT, .to = &verbosity, .least = 1, .help = "say more"},
    {'h', "help", .kind = A_HELP, .help = "print this text"},
    {0}};

// ---- values -----------------------------------------------------------------------------------------------

static long parse_whole(const char *option, const char *text, double least, double most) {
    char *end;
    errno = 0;
    long x = strtol(text, &end, 10);
    if (end == text || *end || errno) die_usage("--%s takes a whole number, not \"%s\"", option, text);
    if (!(x >= least && x <= most))
        die_usage("--%s is %ld; it must be from %.0f to %.0f", option, x, least, most);
    return x;
}

static double parse_number(const char *option, const char *text, double least, double most) {
    char *end;
    double x = strtod(text, &end);
    if (end == text || *end || !isfinite(x)) die_usage("--%s takes a number, not \"%s\"", option, text);
    if (!(x >= least && x <= most)) die_usage("--%s is %g; it must be from %g to %g", option, x, least, most);
    return x;
}

static uint64_t parse_seed(const char *option, const char *text) {
    char *end;
    errno = 0;
    uint64_t x = strtoull(text, &end, 10);
    if (!isdigit((unsigned char)*text) || *end || errno)
        die_usage("--%s takes a whole number from 0 on, not \"%s\"", option, text);
    return x;
}

// The next of "a|b|c": its length, and *names moves on to what follows; 0 at the end.
static int next_name(const char **names) {
    *names += **names == '|';
    return (int)strcspn(*names, "|");
}

static int smaller(int a, int b) { return a < b ? a : b; }

// How many letters to change, add, leave out or swap to make the first n of b from a; above `most` any more.
static int distance(const char *a, const char *b, int n, int most) {
    while (*a && n && tolower((unsigned char)*a) == tolower((unsigned char)*b)) a++, b++, n--;
    if (!*a && !n) return 0;
    int least = most;
    if (!most) return 1;
    if (*a && n) least = distance(a + 1, b + 1, n - 1, most - 1);
    if (*a) least = smaller(least, distance(a + 1, b, n, most - 1));
    if (n) least = smaller(least, distance(a, b + 1, n - 1, most - 1));
    if (*a && n > 1 && a[0] == b[1] && a[1] == b[0])
        least = smaller(least, distance(a + 2, b + 2, n - 2, most - 1));
    return 1 + least;
}

char *did_you_mean(const char *word, const char *names, const char *before) {
    int length;
    for (int far = 1; far <= 2; far++)
        for (const char *name = names; (length = next_name(&name)); name += length)
            if (2 * far < length && distance(word, name, length, far) <= far) // most of it is there
                return format("; did you mean %s%.*s?", before, length, name);
    return xstrdup("");
}

int choice(const char *refusal, const char *word, const char *names) {
    int place = place_in(names, word), length;
    if (place >= 0) return place;
    char *list = xstrdup("");
    for (const char *name = names; (length = next_name(&name)); name += length) {
        const char *between = name == names ? "" : name[length] ? ", " : " or ";
        format_more(&list, "%s%.*s", between, length, name);
    }
    die_usage("%s \"%s\"; %s is expected%s", refusal, word, list, did_you_mean(word, names, ""));
}

// Of an option.
static int parse_choice(const Option *o, const char *text) {
    char *refusal = format("--%s is", o->name);
    int place = choice(refusal, text, o->value);
    free(refusal);
    return place;
}

void option_set(Option *o, const char *text) {
    void *to = o->to;
    Texts *list = to;
    switch (o->kind) {
    case A_FLAG: *(bool *)to = true; break;
    case A_CONSTANT: *(int *)to = (int)o->least; break;
    case A_TEXT: *(const char **)to = text; break;
    case A_LIST:
        list->at = xrealloc(list->at, (size_t)(list->count + 1) * sizeof *list->at);
        list->at[list->count++] = text;
        break;
    case AN_INT: *(int *)to = (int)parse_whole(o->name, text, o->least, o->most); break;
    case A_LONG: *(long *)to = parse_whole(o->name, text, o->least, o->most); break;
    case A_SEED: *(uint64_t *)to = parse_seed(o->name, text); break;
    case A_FLOAT: *(float *)to = (float)parse_number(o->name, text, o->least, o->most); break;
    case A_DOUBLE: *(double *)to = parse_number(o->name, text, o->least, o->most); break;
    case A_CHOICE: *(int *)to = parse_choice(o, text); break;
    case A_BOOL: *(bool *)to = parse_choice(o, text) == 1; break;
    case A_NAME: parse_choice(o, text), *(const char **)to = text; break;
    case A_SET: ((bool *)to)[parse_choice(o, text)] = true; break;
    case A_HELP: break;
    }
}

char *option_text(const Option *o) {
    double x = NAN;
    int place = -1, length;
    switch (o->kind) {
    case A_TEXT:
    case A_NAME: return *(const char **)o->to ? xstrdup(*(const char **)o->to) : NULL;
    case A_SEED: return format("%llu", (unsigned long long)*(uint64_t *)o->to);
    case AN_INT: x = *(int *)o->to; break;
    case A_LONG: x = (double)*(long *)o->to; break;
    case A_FLOAT: x = *(float *)o->to; break;
    case A_DOUBLE: x = *(double *)o->to; break;
    case A_CHOICE: place = *(int *)o->to; break;
    case A_BOOL: place = *(bool *)o->to; break;
    default: break;
    }
    if (x >= o->least && x <= o->most) return number_text(x, o->kind == A_FLOAT);
    for (const char *name = o->value; place >= 0 && (length = next_name(&name)); name += length)
        if (!place--) return format("%.*s", length, name);
    return NULL;
}

// ---- the help ---------------------------------------------------------------------------------------------

enum { WIDTH = 100, HELP_COLUMN = 28 };

// From column `indent` on, where the cursor is, and back there in each new line.
static void print_wrapped(int indent, const char *text) {
    int column = indent, length;
    for (; *text; text += length + (text[length] != 0)) {
        length = (int)strcspn(text, " ");
        if (column > indent && column + 1 + length > WIDTH) column = printf("\n%*s", indent, "") - 1;
        column += printf("%s%.*s", column > indent ? " " : "", length, text);
    }
    putchar('\n');
}

static void print_row(const Option *o) {
    int column = o->letter ? printf("  -%c, ", o->letter) : printf("      ");
    column += printf("--%s%s%s", o->name, o->value ? " " : "", o->value ? o->value : "");
    if (column + 2 > HELP_COLUMN) column = printf("\n") - 1;
    printf("%*s", HELP_COLUMN - column, "");
    char *value = strstr(o->help, "default") ? NULL : option_text(o),
         *text = value ? format("%s (default %s)", o->help, value) : xstrdup(o->help);
    print_wrapped(HELP_COLUMN, text);
    free(value), free(text);
}

static _Noreturn void print_help(Option *const tables[2], const char *usage, const char *about,
                                 const char *examples) {
    printf("usage: %s\n\n", usage);
    print_wrapped(0, about);
    if (tables[0]->name) printf("\nOptions\n");
    for (int t = 0; t < 2; t++)
        for (const Option *o = tables[t]; o->help; o++)
            if (!o->name)
                printf("\n%s\n", o->help);
            else if (*o->help)
                print_row(o);
    printf("\nExamples\n  %s\n", examples);
    exit(0);
}

// Says what getopt found wrong, and the nearest option where there is none of that name.
static _Noreturn void refuse(int argc, char **argv, const char *letters, const struct option *names) {
    const char *word = argv[optind - 1];
    if (!optopt && starts_with(word, "--")) {
        char *typed = format("%.*s", (int)strcspn(word + 2, "="), word + 2), *all = xstrdup("");
        bool begins = false; // then it is ambiguous
        for (const struct option *o = names; o->name; o++) {
            format_more(&all, "|%s", o->name);
            begins |= starts_with(o->name, typed);
        }
        if (!begins) die_usage("unrecognized option '--%s'%s", typed, did_you_mean(typed, all, "--"));
    }
    optind = 0, opterr = 1; // once more, for its message
    while (getopt_long(argc, argv, letters, names, NULL) != '?') {}
    if (json_output) puts("{\"error\": \"an option is wrong\"}");
    exit(2);
}

// ---- the command line -------------------------------------------------------------------------------------

char **options_parse(int argc, char **argv, Option *options, const char *usage, const char *about,
                     const char *examples) {
    enum { MOST = 64 };
    Option *rows[MOST], *tables[2] = {options, common};
    struct option names[MOST] = {0};
    char letters[2 * MOST] = "", *letter = letters;
    int count = 0;
    for (int t = 0; t < 2; t++)
        for (Option *o = tables[t]; o->help; o++) {
            bool taken = !o->name;
            for (int i = 0; i < count && !taken; i++) taken = !strcmp(o->name, names[i].name);
            if (taken) continue; // a heading, or a command's own --model in place of the common one
            int value = o->value ? required_argument : no_argument;
            names[count] = (struct option){o->name, value, NULL, 256 + count};
            if (o->letter) letter += sprintf(letter, o->value ? "%c:" : "%c", o->letter);
            rows[count++] = o;
        }
    for (int i = 1; i < argc; i++) json_output |= !strcmp(argv[i], "--json");
    argv[0] = (char[]){"sd"}; // getopt's messages begin with it
    opterr = 0;
    // Twice: --help must see the defaults, before other options change them.
    for (int pass = 0; pass < 2; pass++) {
        optind = 0;
        for (int found; (found = getopt_long(argc, argv, letters, names, NULL)) != -1;) {
            Option *o = NULL;
            for (int i = 0; i < count; i++)
                if (found == 256 + i || found == rows[i]->letter) o = rows[i];
            if (!o) refuse(argc, argv, letters, names);
            if (o->kind == A_HELP) print_help(tables, usage, about, examples);
            if (pass == 1) option_set(o, optarg), o->given = true;
        }
    }
    return argv + optind;
}

void goes_with(const Option *options, const char *names, const char *other) {
    for (const Option *o = options; o->help; o++)
        if (o->given && place_in(names, o->name) >= 0) die_usage("--%s goes with --%s", o->name, other);
}

const char *one_word(char **words, const char *expected) {
    if (!words[0] || words[1]) die_usage("%s", expected);
    return words[0];
}

void no_words(char **words, const char *hint) {
    if (words[0]) die_usage("\"%s\" is no option%s", words[0], hint);
}

// ---- what commands share besides --------------------------------------------------------------------------

void start_backend(void) {
    const char *asked = getenv("OMP_NUM_THREADS");
    if (!threads && asked && strtol(asked, NULL, 10) > 1024)
        die("OMP_NUM_THREADS is %s; 1024 is the most", asked);
    backend_init(threads);
    note_verbose("running on %s", backend.name());
}

// A file whose name ends like a scale is taken as it is.
char *parse_lora(const char *spec, float *scale) {
    const char *colon = strrchr(spec, ':');
    *scale = 1;
    if (file_exists(spec) || !colon) return xstrdup(spec);
    *scale = (float)parse_number("lora", colon + 1, -1000, 1000);
    return format("%.*s", (int)(colon - spec), spec);
}

char *numbered_name(const char *output, int i, int count) {
    const char *dot = strrchr(output, '.');
    int stem = dot && !strchr(dot, '/') ? (int)(dot - output) : (int)strlen(output);
    return count > 1 ? format("%.*s-%d%s", stem, output, i, output + stem) : xstrdup(output);
}

static void check_ending(const char *option, const char *output, const char *what, const char *own) {
    static const char *const known[] = {".png", ".jpg",  ".jpeg",        ".webp", ".gif",  ".bmp",
                                        ".tif", ".tiff", ".safetensors", ".npz",  ".json", ".txt"};
    const char *ending = strrchr(output, '.');
    if (!*output) die_usage("%s is empty; the name of a file is expected", option);
    for (size_t i = 0; ending && i < sizeof known / sizeof *known; i++)
        if (!strcasecmp(ending, known[i]) && strcasecmp(ending, own))
            die_usage("%s is \"%s\"; %s, so end the name in %s", option, output, what, own);
}

void check_png(const char *option, const char *output) {
    check_ending(option, output, "pictures are PNG", ".png");
}

void check_safetensors(const char *option, const char *output) {
    check_ending(option, output, "it is a safetensors file", ".safetensors");
}

float *read_tensor(const Store *s, const char *path, const char *name, int dims, int64_t *shape) {
    char has[200], expected[200];
    const Stored *t = store_find(s, name);
    if (!t) die("%s holds %s: tensor %s is missing", path, store_kind(s), name);
    int absent = dims - t->ndim;
    bool fits = t->count && t->count <= 1u << 28 && (absent == 0 || (absent == 1 && labs(shape[0]) == 1));
    for (int i = absent; fits && i < dims; i++) fits = shape[i] < 0 || t->shape[i - absent] == shape[i];
    if (!fits)
        die("%s: %s is %s; %s is expected, where -1 is any size", path, name,
            shape_text(has, t->shape, t->ndim), shape_text(expected, shape, dims));
    for (int i = 0; i < dims; i++) shape[i] = i < absent ? 1 : t->shape[i - absent];
    return store_floats(t, path);
}
