// data.c: `sd data`, a captioned data set of any layout, or a part of it, in the one layout that everything here
// reads: Flickr8k's as Kaggle has it. It is how `make paper` keeps pictures back for the evaluation.
#define _XOPEN_SOURCE 700 // realpath, symlink
#include "commands.h"
#include "lib/io/io.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
    "usage: sd data DIR -o OUT [options]\n\n"
    "Writes the captioned data set DIR, or a part of it, in Flickr8k's layout: OUT/captions.txt,\n"
    "OUT/Images, links to the pictures of DIR, and OUT/prompts.txt, the first caption of each\n"
    "picture, a line each. Both are in the order of the names in OUT/Images.\n\n"
    "  -o, --output OUT\n"
    "      --part NAME      all (default), train or held-out. Where the layout knows splits these\n"
    "                       are train and restval, and test; elsewhere\n"
    "      --hold-out N     the last N pictures are held out (default 1000, at most half of the set)\n"
    "  -n, --count N        the first N of that part\n"
    "      --size S         S x S pixels as PNG instead of links: the middle square, as training\n"
    "                       sees it\n"
    "      --json   -q   -v   -h\n";

typedef enum { ALL, TRAIN, HELD_OUT } Part;

// Brings the samples of `part` to the front of the set; returns how many they are.
static size_t choose(Dataset *d, Part part, size_t hold_out) {
    bool splits = false;
    for (size_t i = 0; i < d->count; i++) splits |= d->samples[i].split != NULL;
    if (hold_out > d->count / 2) hold_out = d->count / 2;
    size_t kept = 0;
    for (size_t i = 0; i < d->count; i++) {
        const Sample *s = &d->samples[i];
        bool test = splits ? s->split && !strcmp(s->split, "test") : i >= d->count - hold_out;
        bool train = splits ? dataset_trains(s) : !test;
        if (s->caption_count == 0 || (part == TRAIN && !train) || (part == HELD_OUT && !test)) continue;
        Sample moved = d->samples[kept];
        d->samples[kept++] = *s;
        d->samples[i] = moved;
    }
    return kept;
}

// A field of RFC 4180: in quotes, those inside doubled.
static void write_field(Output *o, const char *text) {
    output_write(o, "\"", 1);
    for (; *text; text++) output_write(o, *text == '"' ? "\"\"" : text, *text == '"' ? 2 : 1);
    output_write(o, "\"", 1);
}

// The picture under OUT/Images, whose name begins with its number so that the order of names is the set's.
static char *write_picture(const char *out, size_t i, const Sample *s, int size) {
    const char *ending = size ? ".png" : strrchr(s->path, '.');
    char *name = format("%05zu%s", i, ending ? ending : ""), *path = format("%s/Images/%s", out, name);
    if (size) {
        Image *whole = image_load(s->path), *square = image_center_square(whole, size, RESIZE_BILINEAR);
        image_save_png(path, square, s->captions[0]);
        image_free(whole), image_free(square);
    } else {
        char *target = realpath(s->path, NULL);
        if (!target) die("cannot read %s: %s", s->path, strerror(errno));
        unlink(path);
        if (symlink(target, path)) die("cannot write %s: %s", path, strerror(errno));
        free(target);
    }
    free(path);
    return name;
}

int command_data(int argc, char **argv) {
    enum { PART = 256, OUT_SIZE, HOLD_OUT };
    static const struct option options[] = {{"output", required_argument, 0, 'o'},
                                            {"part", required_argument, 0, PART},
                                            {"hold-out", required_argument, 0, HOLD_OUT},
                                            {"count", required_argument, 0, 'n'},
                                            {"size", required_argument, 0, OUT_SIZE},
                                            COMMON_LONG,
                                            {0}};
    Common common = common_defaults;
    const char *out = NULL;
    Part part = ALL;
    size_t hold_out = 1000, most = SIZE_MAX;
    int size = 0, option;
    while ((option = getopt_long(argc, argv, "o:n:" COMMON_SHORT, options, NULL)) != -1) {
        if (common_option(&common, option, help)) continue;
        switch (option) {
        case 'o': out = optarg; break;
        case 'n': most = (size_t)option_whole("--count", optarg, 1, 100000000); break;
        case OUT_SIZE: size = (int)option_whole("--size", optarg, 8, 16384); break;
        case HOLD_OUT: hold_out = (size_t)option_whole("--hold-out", optarg, 1, 100000000); break;
        case PART:
            part = !strcmp(optarg, "train") ? TRAIN : !strcmp(optarg, "held-out") ? HELD_OUT : ALL;
            if (part == ALL && strcmp(optarg, "all"))
                die_usage("--part is \"%s\"; all, train or held-out is expected", optarg);
            break;
        }
    }
    if (optind != argc - 1) die_usage("sd data takes one folder");
    if (!out) die_usage("-o OUT is needed");
    double started = seconds();
    Dataset *d = dataset_open(argv[optind]);
    size_t count = choose(d, part, hold_out), captions = 0;
    if (count > most) count = most;
    if (!count) die("%s has no captioned picture of that part", argv[optind]);

    char *from = realpath(argv[optind], NULL), *to = realpath(out, NULL);
    if (from && to && !strcmp(from, to)) die("%s is the data set itself; take another folder for it", out);
    free(from), free(to);
    char *images = format("%s/Images", out), *list = format("%s/captions.txt", out),
         *firsts = format("%s/prompts.txt", out);
    make_directories(images);
    Output *rows = output_open(list), *prompts = output_open(firsts);
    output_printf(rows, "image,caption\n");
    output_lazily(true);
    for (size_t i = 0; i < count; i++) {
        const Sample *s = &d->samples[i];
        char *name = write_picture(out, i, s, size);
        for (int k = 0; k < s->caption_count; k++, captions++) {
            output_printf(rows, "%s,", name);
            write_field(rows, s->captions[k]);
            output_write(rows, "\n", 1);
        }
        for (const char *c = s->captions[0]; *c; c++) output_write(prompts, *c == '\n' ? " " : c, 1);
        output_write(prompts, "\n", 1);
        free(name);
    }
    output_lazily(false);
    output_commit(prompts), output_commit(rows); // the captions last: without them it is no data set yet
    if (common.json)
        printf("{\"images\": %zu, \"captions\": %zu, \"seconds\": %.3f}\n", count, captions,
               seconds() - started);
    else
        note("%s: %zu pictures, %zu captions of %s", out, count, captions, d->layout);
    dataset_note_others(images, count);
    dataset_close(d);
    free(images), free(list), free(firsts);
    return 0;
}
