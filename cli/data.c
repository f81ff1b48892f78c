// data.c: captioned data sets in Flickr8k's layout: `sd data` makes one of any other, or of a part of it;
// `sd scenes` draws the toy world's.
#define _XOPEN_SOURCE 700 // realpath, symlink
#include "commands.h"
#include "model_folder.h"
#include "options.h"
#include "weights/toy/scenes.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// A field of RFC 4180: in quotes, those inside doubled.
static void write_field(Output *o, const char *text) {
    output_write(o, "\"", 1);
    for (; *text; text++) output_write(o, *text == '"' ? "\"\"" : text, *text == '"' ? 2 : 1);
    output_write(o, "\"", 1);
}

// The lists that a command writes last tell its folder from others. `own` is one that only this command has.
static void refuse_foreign(const char *dir, const char *own) {
    char *list = format("%s/captions.txt", dir), *mine = format("%s/%s", dir, own);
    if (file_exists(list) && !file_exists(mine))
        die("%s is another data set: it has a captions.txt, but no %s; --force replaces it", dir, own);
}

// The picture under OUT/Images, whose name begins with its number so that the order of names is the set's.
static char *write_picture(const char *out, size_t i, const Sample *s, int size) {
    const char *ending = size ? ".png" : strrchr(s->path, '.');
    const char *end = ending ? ending + 1 : "";
    while (isalnum((unsigned char)*end)) end++;
    if (!ending || *end) ending = ""; // what is behind the last dot is none
    char *name = format("%05zu%s", i, ending), *path = format("%s/Images/%s", out, name);
    if (is_link(path)) unlink(path); // an earlier run's
    if (size) {
        Image *whole = image_load(s->path), *square = image_center_square(whole, size, RESIZE_BILINEAR);
        image_save_png(path, square, s->captions[0]);
        image_free(whole), image_free(square);
    } else {
        char *target = realpath(s->path, NULL);
        if (!target) die("cannot read %s: %s", s->path, strerror(errno));
        if (file_exists(path))
            die("cannot make the link %s: a file is there already; take another folder", path);
        if (symlink(target, path)) die("cannot write %s: %s", path, strerror(errno));
        free(target);
    }
    free(path);
    return name;
}

int command_data(int argc, char **argv) {
    const char *out = NULL;
    DatasetPart part = PART_ALL;
    long hold_out = 1000, most = 0;
    int size = 0;
    bool json = false, force = false;
    Option options[] = {
        {'o', "output", TEXT(&out, "OUT"), "the new data set's folder"},
        {0, "part", CHOICE(&part, "all|train|held-out"),
         "where the layout knows splits, train is its train and restval, and held-out its test"},
        {0, "hold-out", WHOLE(&hold_out, 1, 100000000),
         "elsewhere the last N are held out, at most half of the set"},
        {'n', "count", WHOLE(&most, 1, 100000000), "only the first N of that part"},
        {0, "size", WHOLE(&size, 8, 16384),
         "instead of links: the middle square as training sees it, N x N pixels, PNG"},
        {FORCE_OPTION(&force)},
        {JSON_OPTION(&json)},
        {0}};
    char **words = options_parse(argc, argv, options, "sd data DIR -o OUT [options]",
                                 "Writes the captioned data set DIR, or a part of it, in Flickr8k's layout: "
                                 "OUT/captions.txt, links to the pictures in OUT/Images, and OUT/prompts.txt "
                                 "with the first caption of each picture, a line each. Both files are in the "
                                 "order of the names in OUT/Images.",
                                 "sd data flickr8k -o run/train --part train\n"
                                 "  sd data flickr8k -o run/held-out --part held-out --size 512");
    const char *dir = one_word(words, "sd data takes one folder");
    if (!out) die_usage("-o OUT is needed");
    double started = seconds();
    Dataset *d = dataset_open(dir);
    size_t count = dataset_choose(d, part, (size_t)hold_out), captions = 0;
    if (most && count > (size_t)most) count = (size_t)most;
    if (!count) die("%s has no captioned picture of that part", dir);

    if (same_folder(dir, out)) die("%s is the data set itself; take another folder for it", out);
    refuse_inside(out, dir);
    if (!force) refuse_foreign(out, "prompts.txt");
    for (size_t i = 0; i < d->count; i++) input_note(d->samples[i].path);
    const char *images = path_inside(out, "Images");
    make_directories(images);
    Output *rows = output_open(path_inside(out, "captions.txt")),
           *prompts = output_open(path_inside(out, "prompts.txt"));
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
    if (json)
        printf("{\"images\": %zu, \"captions\": %zu, \"seconds\": %.3f}\n", count, captions,
               seconds() - started);
    else
        note("%s: %zu pictures, %zu captions of %s", out, count, captions, d->layout);
    dataset_note_others(images, count);
    return 0;
}

int command_scenes(int argc, char **argv) {
    long count = 8000;
    World world = WORLD_FLICKR;
    Split split = SPLIT_TRAIN;
    uint64_t seed = 0;
    bool json = false, force = false;
    Option options[] = {
        {'n', "count", WHOLE(&count, 1, 100000000), "scenes"},
        {0, "world", CHOICE(&world, "broad|flickr"), "flickr: one look, one way of captioning; broad: many"},
        {0, "split", CHOICE(&split, "train|test"), "test: combinations of attributes that train never has"},
        {SEED_OPTION(&seed, "the same seed gives the same bytes")},
        {FORCE_OPTION(&force)},
        {JSON_OPTION(&json)},
        {0}};
    char **words =
        options_parse(argc, argv, options, "sd scenes DIR [options]",
                      "Draws captioned scenes in Flickr8k's layout: DIR/Images/*.png, DIR/captions.txt, and "
                      "DIR/scenes.jsonl with the attributes that the captions speak of.",
                      "sd scenes run/flickr -n 8000\n  sd scenes run/held-out -n 1000 --split test");
    const char *dir = one_word(words, "sd scenes takes one folder");
    if (!force) refuse_foreign(dir, "scenes.jsonl");
    start_backend();
    double started = seconds();
    scenes_write(dir, count, seed, world, split);
    if (json)
        printf("{\"images\": %ld, \"captions\": %ld, \"seconds\": %.3f}\n", count, count * SCENE_CAPTIONS,
               seconds() - started);
    return 0;
}
