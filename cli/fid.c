// fid.c: `sd fid`, options -> Phase 4 -> figures. See ../fid.c for what happens in between.
#define _POSIX_C_SOURCE 200809L // open_memstream
#include "sd.h"
#include "commands.h"
#include "lib/nn/ranks.h"
#include "options.h"
#include "weights/toy/judge.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// What was asked for.
typedef struct {
    const char *weights, *output;
    char **paths;
    int rounds;  // of the interval; 0: none
    int nearest; // of so many pictures of B the nearest of A
    uint64_t seed;
    bool paired, json;
    FidOptions o;
    double started;
} Command;

static const char *const resize_names[] = {"fid", "clean"};
static const char *const resize_words[] = {"fid: bilinear without antialiasing, as pytorch-fid",
                                           "clean: bicubic with antialiasing, as clean-fid"};

static void write_features(const FidSet *s, const Command *c) {
    StoreWriter *w = store_create(c->output);
    size_t bytes;
    char *names;
    FILE *f = open_memstream(&names, &bytes);
    for (long i = 0; f && i < s->count; i++) { // a line a picture, as the rows of the tensor
        const char *slash = strrchr(s->names[i], '/');
        fprintf(f, "%s\n", slash ? slash + 1 : s->names[i]);
    }
    if (!f || fclose(f)) die("out of memory");
    if (utf8_valid(names, bytes, NULL)) store_metadata_add(w, "pictures", names);
    store_metadata_add(w, "weights", c->weights);
    store_metadata_add(w, "resize", resize_names[c->o.resize]);
    store_declare(w, "features", F32, 2, (int64_t[]){s->count, s->dim});
    store_data_f32(w, s->features, (size_t)s->count * (size_t)s->dim);
    store_commit(w);
}

// A member of a JSON object, null where there is no such figure.
static void print_figure(const char *key, int digits, double x) {
    if (!isfinite(x))
        printf("\"%s\": null, ", key);
    else
        printf("\"%s\": %.*g, ", key, digits, x);
}

// `sd fid fidelity`.
static void print_fidelity(const Command *c) {
    Judge *judge = judge_load(c->weights);
    note("%d features of %s, resize %s", inception_dim(judge->net), c->weights, resize_words[c->o.resize]);
    size_t heads = judge->heads->length;
    double *fraction = xmalloc(heads * sizeof(double)), ceiling = judge->ceiling < 0 ? NAN : judge->ceiling;
    long n;
    double interval[2], value = judge_pictures(judge, c->paths[1], c->o, fraction, interval, &n);
    if (c->json) {
        printf("{"), print_figure("fidelity", 6, value);
        printf("\"fidelity_interval\": [%.6g, %.6g], ", interval[0], interval[1]);
        print_figure("ceiling", 6, ceiling), printf("\"attributes\": {");
    } else {
        printf("fidelity %.4f  (95 %%: %.4f to %.4f)", value, interval[0], interval[1]);
        if (!isnan(ceiling)) printf(" (of true scenes: %.4f)", ceiling);
        printf("\n");
    }
    for (size_t h = 0; h < heads; h++) {
        const char *name = judge->heads->items[h].key;
        if (c->json)
            printf("%s%s: %.6g", h ? ", " : "", json_quote(name), fraction[h]);
        else
            printf("  %-8s %.4f\n", name, fraction[h]);
    }
    if (c->json) printf("}, \"n\": %ld, \"seconds\": %.3f}\n", n, seconds() - c->started);
}

// `sd fid stats` and `sd fid features`.
static void write_set(Inception *net, const Command *c, bool stats) {
    FidOptions o = c->o;
    o.statistics = stats, o.keep_features = !stats;
    FidSet s = fid_scan(net, c->paths[1], o);
    if (ranks_mine()) return;
    if (stats)
        fid_write_statistics(&s, c->output);
    else
        write_features(&s, c);
    if (c->json)
        printf("{\"output\": %s, \"n\": %ld, \"features\": %d, \"resize\": \"%s\", \"seconds\": %.3f}\n",
               json_quote(c->output), s.count, s.dim, resize_names[o.resize], seconds() - c->started);
}

// Features that are not the 2,048 of the Inception of all papers: the toy world's judge has 512.
static const char *warning_of(int features) {
    return features == 2048 ? "" : "; these are not the papers' Inception: compares with nothing published";
}

// The name of picture i's file without folder and ending; "" behind the last one.
static const char *stem(const FidSet *s, long i) {
    const char *path = i < s->count ? s->names[i] : ".", *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    return format("%.*s", (int)(strrchr(name, '.') - name), name);
}

// Are the pictures of both sets named alike, row by row? Where not, and they must be, dies with the first.
static bool same_names(const FidSet *a, const FidSet *b, bool must) {
    for (long i = 0; i < a->count || i < b->count; i++) {
        const char *x = stem(a, i), *y = stem(b, i);
        if (!strcmp(x, y)) continue;
        if (must)
            die("--paired: picture %ld is \"%s\" in %s and \"%s\" in %s; pairs have the same name", i + 1, x,
                a->path, y, b->path);
        return false;
    }
    return true;
}

// An .npy is none, but fid_read_statistics() says what to do with it.
static bool is_statistics(const char *path) {
    return (ends_with(path, ".npz") || ends_with(path, ".npy")) && file_exists(path) && !is_directory(path);
}

// --nearest: a member of the JSON object, or a line a picture.
static void print_nearest(const FidSet *a, const FidSet *b, const Command *c) {
    int rows = c->nearest < b->count ? c->nearest : (int)b->count;
    long *nearest = xmalloc((size_t)rows * sizeof *nearest);
    double *distance = xmalloc((size_t)rows * sizeof *distance);
    fid_nearest(a, b, rows, nearest, distance);
    if (c->json) printf("\"nearest\": [");
    for (int i = 0; i < rows; i++) {
        const char *drawn = b->names[i], *real = a->names[nearest[i]];
        if (c->json)
            printf("%s{\"picture\": %s, \"nearest\": %s, \"distance\": %.6g}", i ? ", " : "",
                   json_quote(drawn), json_quote(real), distance[i]);
        else
            printf("%s: the nearest is %s, distance %.4f\n", plain_text(drawn), plain_text(real),
                   distance[i]);
    }
    if (c->json) printf("], ");
    free(nearest), free(distance);
}

// `sd fid A B`. net: NULL where both are statistics.
static void compare(Inception *net, const Command *c) {
    FidSet set[2];
    char **lists[2];
    size_t count[2];
    bool pictures[2] = {!is_statistics(c->paths[0]), !is_statistics(c->paths[1])};
    bool both = pictures[0] && pictures[1];
    double kid = NAN, kid_stderr = NAN, interval[2] = {NAN, NAN};
    FidOptions o = c->o;
    o.statistics = true, o.keep_features = both || c->rounds;
    for (int i = 0; i < 2; i++) // what is refused is refused before the pictures take their time
        if (pictures[i])
            lists[i] = fid_list(c->paths[i], o, &count[i]);
        else
            set[i] = fid_read_statistics(c->paths[i]);
    uint64_t made_by[2];
    for (int i = 0; i < 2; i++) made_by[i] = pictures[i] ? fid_made_by(net, o.resize) : set[i].made_by;
    if (made_by[0] && made_by[1] && made_by[0] != made_by[1])
        die("%s and %s: the features of one come from other --weights or another --resize, so their distance "
            "means nothing",
            c->paths[0], c->paths[1]);
    for (int i = 0; i < 2; i++) {
        if (!pictures[i]) continue;
        if (!pictures[1 - i] && set[1 - i].dim != inception_dim(net))
            die("%s has %d features; %s computes %d", c->paths[1 - i], set[1 - i].dim, c->weights,
                inception_dim(net));
        set[i] = fid_scan_files(net, c->paths[i], lists[i], count[i], o);
        if (set[i].count <= set[i].dim)
            note("%s has %ld pictures for %d features: such an FID is much too large; compare it only with "
                 "others of as many pictures",
                 c->paths[i], set[i].count, set[i].dim);
    }
    if (both && same_names(&set[0], &set[1], c->paired) && !c->paired)
        note("both sets have the same names; where these show the same captions, KID needs --paired");
    double fid = fid_distance(&set[0], &set[1]);
    Neighbours near = {NAN, NAN, NAN, NAN};
    if (both) near = fid_neighbours(&set[0], &set[1]);
    if (both) kid = kid_distance(&set[0], &set[1], c->paired, c->seed, &kid_stderr);
    if (c->rounds) fid_interval(&set[0], &set[1], c->paired, c->rounds, c->seed, interval);
    if (c->rounds && isnan(interval[0])) note("an interval needs four pictures in each set");
    const char *warning = warning_of(set[0].dim);
    if (!net && *warning) note("%d features%s", set[0].dim, warning);
    if (c->json) {
        printf("{"), print_figure("fid", 12, fid);
        printf(isnan(interval[0]) ? "\"fid_interval\": null, " : "\"fid_interval\": [%.12g, %.12g], ",
               interval[0], interval[1]);
        print_figure("kid", 12, kid), print_figure("kid_stderr", 6, kid_stderr);
        printf("\"paired\": %s, ", c->paired ? "true" : "false");
        print_figure("precision", 6, near.precision), print_figure("recall", 6, near.recall);
        print_figure("density", 6, near.density), print_figure("coverage", 6, near.coverage);
        if (c->nearest) print_nearest(&set[0], &set[1], c);
        // Statistics do not say of how many pictures they are.
        print_figure("n_a", 15, set[0].count ? (double)set[0].count : NAN);
        print_figure("n_b", 15, set[1].count ? (double)set[1].count : NAN);
        printf("\"resize\": %s, \"features\": %d, \"seconds\": %.3f, \"peak_mb\": %.1f}\n",
               net ? json_quote(resize_names[o.resize]) : "null", set[0].dim, seconds() - c->started,
               (double)backend.peak() / 1e6);
        return;
    }
    printf("FID %.6f", fid);
    if (!isnan(interval[0]))
        printf("  (95 %%: %.6f to %.6f, about the FID of so many pictures)", interval[0], interval[1]);
    if (!isnan(kid)) printf("\nKID %.8f", kid);
    if (!isnan(kid_stderr)) printf(" +- %.8f", kid_stderr);
    printf("\n");
    if (!isnan(near.recall))
        printf("precision %.4f  recall %.4f  density %.4f  coverage %.4f  (A is real, B is drawn)\n",
               near.precision, near.recall, near.density, near.coverage);
    if (c->nearest) print_nearest(&set[0], &set[1], c);
    if (net)
        printf("resize %s%s\n", resize_words[o.resize],
               made_by[0] && made_by[1] ? "" : " (the pictures; the statistics do not say theirs)");
    if (*warning) printf("%d features%s\n", set[0].dim, warning);
}

int command_fid(int argc, char **argv) {
    Command c = {.weights = "weights/tiny-inception.safetensors", .o.batch = 8};
    Option options[] = {
        {0, "weights", TEXT(&c.weights, "FILE"),
         "Inception as safetensors; for real pictures see weights/fetch.sh"},
        {0, "resize", CHOICE(&c.o.resize, "fid|clean"),
         "fid: as pytorch-fid, bilinear without antialiasing; clean: as clean-fid, bicubic with "
         "antialiasing; their figures do not compare"},
        {0, "bootstrap", WHOLE(&c.rounds, 2, 100000),
         "also a 95 % interval about the FID's expectation at this number of pictures, from N halvings of the sets"},
        {0, "paired", FLAG(&c.paired),
         "pictures of the same name show the same caption: KID leaves out these pairs, which bias it, and the "
         "intervals are those of pairs"},
        {0, "nearest", WHOLE(&c.nearest, 1, 1000),
         "for the first N pictures of B, name the picture of A that is nearest: A the training set, are they "
         "learnt by heart?"},
        {0, "recursive", FLAG(&c.o.recursive), "also the pictures in folders within A and B"},
        {0, "batch", WHOLE(&c.o.batch, 1, 4096), "pictures a forward pass; the result does not depend on it"},
        {'o', "output", TEXT(&c.output, "FILE"), "what stats and features write"},
        {SEED_OPTION(&c.seed, "of KID's subsets and of the halvings")},
        {JSON_OPTION(&c.json)},
        {0}};
    char **word = options_parse(
        argc, argv, options,
        "sd fid A B [options]          how far apart two sets of pictures are: FID, KID,\n"
        "                                     precision, recall, density, coverage\n"
        "       sd fid stats DIR -o FILE.npz  mean and covariance of a folder, in pytorch-fid's format\n"
        "       sd fid features DIR -o FILE.safetensors\n"
        "       sd fid fidelity DIR           the toy world's judge: do DIR/00000.png, ... show what\n"
        "                                     DIR/prompts.jsonl asks for?",
        "A and B are folders of pictures (.png, .jpg, .jpeg), taken as pytorch-fid takes them, or .npz "
        "statistics, which give no KID. Unreadable pictures are named and left out; more than 1 % of them is "
        "an error.",
        "sd fid real/ drawn/ --weights inception.safetensors --bootstrap 100\n"
        "  sd fid stats real/ -o real.npz --weights inception.safetensors\n"
        "  sd fid real.npz drawn/ --weights inception.safetensors");
    if (!word[0] || !word[1])
        die_usage("two sets of pictures are needed, or stats, features or fidelity and a folder");
    if (word[2]) die_usage("\"%s\" is one argument too many", word[2]);
    bool stats = !strcmp(word[0], "stats"), features = !strcmp(word[0], "features");
    bool judge = !strcmp(word[0], "fidelity"), sets = !stats && !features && !judge;
    bool both_given = is_statistics(word[0]) && is_statistics(word[1]);
    if ((stats || features) && !c.output) die_usage("%s needs -o FILE", word[0]);
    if (stats && !ends_with(c.output, ".npz"))
        die_usage("-o is \"%s\"; a name that ends in .npz is expected", c.output);
    if (!stats && !features && c.output) die_usage("-o goes with stats and features only");
    if (c.rounds && (!sets || both_given)) die_usage("--bootstrap needs the pictures of one set at least");
    if (c.paired && (!sets || ends_with(word[0], ".npz") || ends_with(word[1], ".npz")))
        die_usage("--paired needs two folders of pictures");
    if (c.nearest && (!sets || is_statistics(word[0]) || is_statistics(word[1])))
        die_usage("--nearest needs two folders of pictures");
    if (judge && c.o.recursive) die_usage("--recursive does not go with fidelity");
    for (int i = sets ? 0 : 1; i < 2; i++)
        if (!is_directory(word[i]) && !(sets && is_statistics(word[i])))
            die("%s %s%s", word[i],
                file_exists(word[i]) ? "is neither a folder nor an .npz file" : "does not exist",
                did_you_mean(word[i], "stats|features|fidelity", ""));

    if (c.output && !ranks_mine()) check_output(c.output); // dies before the work, not after
    start_backend();
    c.paths = word, c.started = seconds();
    Inception *net = both_given || judge ? NULL : inception_load(c.weights);
    if (net)
        note("%d features of %s, resize %s%s", inception_dim(net), c.weights, resize_words[c.o.resize],
             warning_of(inception_dim(net)));
    if (judge)
        print_fidelity(&c);
    else if (sets)
        compare(net, &c);
    else
        write_set(net, &c, stats);
    return 0;
}
