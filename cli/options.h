// options.h: the options of a command are one table, a row an option. The command line is parsed by it,
// values are checked by it, and --help is printed from it.
//
//     int steps = 20;
//     const char *output = NULL;
//     Option options[] = {
//         {.help = "How to draw"}, // a heading
//         {0, "steps", WHOLE(&steps, 1, 1000), "evaluations of the network"},
//         {'o', "output", TEXT(&output, "FILE.png"), "where the picture goes"},
//         {0}};
//     char **words = options_parse(argc, argv, options, usage, about, examples);
//
// A variable holds its default before and its value after. The help shows the default, unless it is NULL or
// out of the option's range: then nothing is chosen. Every command also takes --threads, --quiet, --verbose
// and --help; and --model, --seed and --json, though the help is silent where they do nothing.
#ifndef OPTIONS_H
#define OPTIONS_H

#include "lib/io/io.h"

typedef enum {
    A_FLAG,     // sets a bool
    A_CONSTANT, // sets an int to `least`
    A_TEXT,     // a string
    A_LIST,     // a string each time: Texts
    AN_INT,     // whole numbers from `least` to `most`
    A_LONG,
    A_SEED, // any uint64_t
    A_FLOAT,
    A_DOUBLE,
    A_CHOICE, // one of "a|b|c": its place from 0, as an enum or an int; -1: none
    A_BOOL,   // the second of "a|b"?
    A_NAME,   // one of "a|b|c" as a string
    A_SET,    // one of "a|b|c" each time: true at its place in a bool[]
    A_HELP,
} OptionKind;

typedef struct {
    char letter;      // 'o' for -o, or 0
    const char *name; // "output" for --output; NULL: a heading
    // These five are filled in by one of the macros below.
    OptionKind kind;
    void *to; // where the value goes
    double least, most;
    const char *value; // what the help calls it: "FILE.png", "a|b|c"; NULL: the option takes none
    const char *help;
    int modes;  // for a command that has several: those in which the option does something
    bool given; // set by options_parse()
} Option;

typedef struct {
    const char **at;
    int count;
} Texts;

// The middle of a row. `p` is the address of a variable, whose type chooses the kind.
#define FLAG(p) .kind = _Generic(*(p), bool : A_FLAG), .to = (p), .value = NULL
#define TEXT(p, called) .kind = TEXT_KIND(p), .to = (p), .value = called
#define WHOLE(p, from, up_to) .kind = WHOLE_KIND(p), .to = (p), .least = from, .most = up_to, .value = "N"
#define SEED(p) .kind = _Generic(*(p), uint64_t : A_SEED), .to = (p), .value = "N"
#define NUMBER(p, from, up_to) .kind = NUMBER_KIND(p), .to = (p), .least = from, .most = up_to, .value = "X"
#define CHOICE(p, names) .kind = CHOICE_KIND(p), .to = (p), .value = names
#define CHOICES(bools, names) .kind = A_SET, .to = (bools), .value = names
#define TEXT_KIND(p) _Generic(*(p), const char * : A_TEXT, Texts : A_LIST)
#define WHOLE_KIND(p) _Generic(*(p), int : AN_INT, long : A_LONG)
#define NUMBER_KIND(p) _Generic(*(p), float : A_FLOAT, double : A_DOUBLE)
#define CHOICE_KIND(p) _Generic(*(p), bool : A_BOOL, const char * : A_NAME, default : A_CHOICE)

// Whole rows that many commands have: {MODEL_OPTION(&model)}.
#define MODEL_OPTION(p) 'm', "model", TEXT(p, "PATH"), "the model: a diffusers folder or an LDM file"
#define SEED_OPTION(p, help) 0, "seed", SEED(p), help
#define JSON_OPTION(p) 0, "json", FLAG(p), "print the figures as one JSON object"
#define FORCE_OPTION(p) 0, "force", FLAG(p), "replace also what another command has made"
#define DEFAULT_MODEL "weights/tiny"
#define TYPE_NAMES "f32|f16|bf16" // in the order of Type

// Returns the words that are no options, ended by NULL. A wrong option ends the program with status 2 and a
// line that names it, what was found and what is expected. --help prints usage, about, table and examples.
char **options_parse(int argc, char **argv, Option *options, const char *usage, const char *about,
                     const char *examples);
// Dies where an option of "a|b|c" was given: "--a goes with --other".
void goes_with(const Option *options, const char *names, const char *other);
const char *one_word(char **words, const char *expected); // the only word, else dies with what is expected
void no_words(char **words, const char *hint);            // dies with the first word if there is one
// An option's value (not of lists) as one types it, all digits that count; NULL: none. The caller frees it.
char *option_text(const Option *o);
void option_set(Option *o, const char *text); // as if `text` had been typed; it must stay

// The place of a word in "a|b|c". Dies of another, with status 2: `refusal` "d"; a, b or c is expected.
int choice(const char *refusal, const char *word, const char *names);
// "; did you mean --steps?": that of "a|b|c" which is nearest to a word, `before` it; "" where none is near.
char *did_you_mean(const char *word, const char *names, const char *before);

void start_backend(void);                                  // with the threads that --threads asks for
char *parse_lora(const char *spec, float *scale);          // FILE[:SCALE] -> FILE, and SCALE or 1
char *numbered_name(const char *output, int i, int count); // a.png; of more than one a-0.png, a-1.png, ...
// Die where an output's name is empty, or its ending says that it is a file of another kind.
void check_png(const char *option, const char *output);
void check_safetensors(const char *option, const char *output);
// A file's tensor as floats. shape (dims): what is expected, -1 for any size; then what was found. A leading
// 1 may be absent. Dies where the tensor is, or has another shape, a NaN or an infinity.
float *read_tensor(const Store *s, const char *path, const char *name, int dims, int64_t *shape);

#endif
