// fid.c: `sd fid`, options -> Phase 4 -> figures. See ../fid.c for what happens in between.
#include "sd.h"
#include "commands.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "usage: sd fid A B [options]             how far apart two sets of pictures are: FID and KID\n"
    "       sd fid stats DIR -o FILE.npz     mean and covariance of a folder, in pytorch-fid's format\n"
    "       sd fid features DIR -o FILE.safetensors\n"
    "       sd fid fidelity DIR              the toy world's judge: do DIR/00000.png, ... show what\n"
    "                                        DIR/prompts.jsonl asks for?\n"
    "A and B are folders of pictures (.png, .jpg, .jpeg; folders within are not searched) or .npz "
    "statistics,\n"
    "which give no KID. Unreadable pictures are named and left out; more than 1 % of them is an error.\n\n"
    "      --weights FILE      Inception as safetensors (default weights/tiny-inception.safetensors, which "
    "is the\n"
    "                          toy world's; weights/fetch.sh inception gets the one that papers use)\n"
    "      --resize fid|clean  fid: as pytorch-fid, bilinear without antialiasing (default);\n"
    "                          clean: as clean-fid, bicubic with antialiasing. Their figures do not "
    "compare.\n"
    "      --bootstrap N       also a 95 % interval of the FID, from N resamplings\n"
    "      --batch N           pictures a forward pass (default 16); the result does not depend on it\n"
    "  -o, --output FILE\n"
    "      --seed N            of KID's subsets and the resampling (default 0)\n"
    "      --json              one object with the figures on stdout\n"
    "  -t, --threads N   -q, --quiet   -v, --verbose   -h, --help\n\n"
    "  sd fid real/ drawn/ --weights inception.safetensors --bootstrap 100\n"
    "  sd fid stats real/ -o real.npz --weights inception.safetensors\n"
    "  sd fid real.npz drawn/ --weights inception.safetensors\n";

enum { WEIGHTS = 256, RESIZE, BOOTSTRAP, BATCH };

static const struct option options[] = {{"weights", required_argument, 0, WEIGHTS},
                                        {"resize", required_argument, 0, RESIZE},
                                        {"bootstrap", required_argument, 0, BOOTSTRAP},
                                        {"batch", required_argument, 0, BATCH},
                                        {"output", required_argument, 0, 'o'},
                                        COMMON_LONG,
                                        {0}};

static const char *const resize_names[] = {"fid", "clean"};
static const char *const resize_words[] = {"fid: bilinear without antialiasing, as pytorch-fid",
                                           "clean: bicubic with antialiasing, as clean-fid"};

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

static void write_features(const FidSet *s, const char *path, const char *weights, FidResize resize) {
    StoreWriter *w = store_create(path);
    size_t room = 16;
    for (long i = 0; i < s->count; i++) room += strlen(s->names[i]) + 1;
    char *names = xmalloc(room), *at = names;
    *at = 0;
    for (long i = 0; i < s->count; i++) { // a line a picture, as the rows of the tensor
        const char *slash = strrchr(s->names[i], '/');
        at += sprintf(at, "%s\n", slash ? slash + 1 : s->names[i]);
    }
    if (utf8_valid(names, strlen(names), &(size_t){0})) store_metadata_add(w, "pictures", names);
    store_metadata_add(w, "weights", weights);
    store_metadata_add(w, "resize", resize_names[resize]);
    store_declare(w, "features", F32, 2, (int64_t[]){s->count, s->dim});
    store_data_f32(w, s->features, (size_t)s->count * (size_t)s->dim);
    store_commit(w);
    free(names);
}

static void print_string(const char *s) {
    putchar('"');
    for (; *s; s++)
        if (*s == '"' || *s == '\\')
            printf("\\%c", *s);
        else if ((unsigned char)*s < ' ')
            printf("\\u%04x", *s);
        else
            putchar(*s);
    putchar('"');
}

static void print_count(const char *key, long count, bool last) {
    if (count)
        printf("\"%s\": %ld%s", key, count, last ? "" : ", ");
    else
        printf("\"%s\": null%s", key, last ? "" : ", ");
}

// What the judge reads right on true scenes: its training wrote it down, as "ceiling" in the configuration.
static double ceiling(const char *weights) {
    Store *s = store_open(weights);
    const char *config = store_metadata(s, "inception");
    Json *j = config ? json_parse(config, strlen(config), weights) : NULL;
    double value = json_get_number(j, "ceiling", -1);
    json_free(j);
    store_close(s);
    return value;
}

static int fidelity(Inception *net, const char *weights, const char *dir, FidOptions o, bool json) {
    double share[16], top = ceiling(weights);
    int heads;
    long n;
    double started = seconds(), value = fid_fidelity(net, dir, o, share, &heads, &n);
    if (json) {
        printf("{\"fidelity\": %.6g, ", value);
        if (top < 0)
            printf("\"ceiling\": null, ");
        else
            printf("\"ceiling\": %.6g, ", top);
        printf("\"attributes\": {");
    } else {
        printf("fidelity %.4f", value);
        if (top >= 0) printf(" (of true scenes: %.4f)", top);
        printf("\n");
    }
    for (int h = 0; h < heads; h++) {
        const char *name, *classes[1];
        inception_head(net, h, &name, classes, 1);
        if (json)
            printf("%s\"%s\": %.6g", h ? ", " : "", name, share[h]);
        else
            printf("  %-8s %.4f\n", name, share[h]);
    }
    if (json) printf("}, \"n\": %ld, \"seconds\": %.3f}\n", n, seconds() - started);
    return 0;
}

int command_fid(int argc, char **argv) {
    Common common = common_defaults;
    const char *weights = "weights/tiny-inception.safetensors", *output = NULL;
    int rounds = 0, option;
    FidOptions o = {.batch = 16};
    while ((option = getopt_long(argc, argv, "o:" COMMON_SHORT, options, NULL)) != -1) {
        if (common_option(&common, option, help)) continue;
        switch (option) {
        case 'o': output = optarg; break;
        case WEIGHTS: weights = optarg; break;
        case BOOTSTRAP: rounds = (int)option_whole("--bootstrap", optarg, 2, 100000); break;
        case BATCH: o.batch = (int)option_whole("--batch", optarg, 1, 4096); break;
        case RESIZE:
            if (!strcmp(optarg, "fid"))
                o.resize = RESIZE_FID;
            else if (!strcmp(optarg, "clean"))
                o.resize = RESIZE_CLEAN;
            else
                die_usage("--resize is \"%s\"; fid or clean is expected", optarg);
            break;
        }
    }
    char **word = argv + optind;
    int words = argc - optind;
    if (words < 2) die_usage("two sets of pictures are needed, or stats, features or fidelity and a folder");
    bool stats = !strcmp(word[0], "stats"), features = !strcmp(word[0], "features");
    bool judge = !strcmp(word[0], "fidelity"),
         both_given = ends_with(word[0], ".npz") && ends_with(word[1], ".npz");
    if (words > 2) die_usage("\"%s\" is one argument too many", word[2]);
    if ((stats || features) && !output) die_usage("%s needs -o FILE", word[0]);
    if (stats && !ends_with(output, ".npz"))
        die_usage("-o is \"%s\"; a name that ends in .npz is expected", output);
    if (!stats && !features && output) die_usage("-o goes with stats and features only");
    if (rounds && (stats || features || judge || both_given))
        die_usage("--bootstrap needs the pictures of one set at least");
    for (int i = stats || features || judge; i < 2; i++)
        if (!is_directory(word[i]) &&
            !(file_exists(word[i]) && ends_with(word[i], ".npz") && !stats && !features && !judge))
            die(file_exists(word[i]) ? "%s is neither a folder nor an .npz file" : "%s does not exist",
                word[i]);

    if (output)
        output_discard(output_open(output)); // where one cannot write is said before the work, not after
    common_start(&common);
    double started = seconds();
    Inception *net = both_given ? NULL : inception_load(weights);
    if (net) note("%d features of %s, resize %s", inception_dim(net), weights, resize_words[o.resize]);
    int status = 0;
    if (judge) {
        status = fidelity(net, weights, word[1], o, common.json);
    } else if (stats || features) {
        o.statistics = stats, o.keep_features = features;
        FidSet s = fid_scan(net, word[1], o);
        if (stats)
            fid_write_statistics(&s, output);
        else
            write_features(&s, output, weights, o.resize);
        if (common.json) {
            printf("{\"output\": ");
            print_string(output);
            printf(", \"n\": %ld, \"features\": %d, \"resize\": \"%s\", \"seconds\": %.3f}\n", s.count, s.dim,
                   resize_names[o.resize], seconds() - started);
        }
        fid_set_free(&s);
    } else {
        FidSet set[2];
        bool pictures[2];
        for (int i = 0; i < 2; i++) pictures[i] = !ends_with(word[i], ".npz") || is_directory(word[i]);
        o.statistics = true;
        o.keep_features = (pictures[0] && pictures[1]) || rounds;
        for (int i = 0; i < 2; i++) // statistics first: they are refused before the pictures take their time
            if (!pictures[i]) set[i] = fid_read_statistics(word[i]);
        for (int i = 0; i < 2; i++)
            if (pictures[i] && !pictures[1 - i] && set[1 - i].dim != inception_dim(net))
                die("%s has %d features; %s computes %d", word[1 - i], set[1 - i].dim, weights,
                    inception_dim(net));
        for (int i = 0; i < 2; i++)
            if (pictures[i]) set[i] = fid_scan(net, word[i], o);
        for (int i = 0; i < 2; i++)
            if (pictures[i] && set[i].count <= set[i].dim)
                note("%s has %ld pictures for %d features: such an FID is much too large; compare it only "
                     "with others of "
                     "as many pictures",
                     word[i], set[i].count, set[i].dim);
        double fid = fid_distance(&set[0], &set[1]), interval[2] = {0}, kid = 0, kid_stderr = 0;
        bool with_kid = pictures[0] && pictures[1];
        if (with_kid) kid = kid_distance(&set[0], &set[1], common.seed, &kid_stderr);
        if (rounds) fid_bootstrap(&set[0], &set[1], rounds, common.seed, interval);
        if (common.json) {
            printf("{\"fid\": %.12g, ", fid);
            if (rounds)
                printf("\"fid_interval\": [%.12g, %.12g], ", interval[0], interval[1]);
            else
                printf("\"fid_interval\": null, ");
            if (with_kid)
                printf("\"kid\": %.12g, \"kid_stderr\": %.6g, ", kid, kid_stderr);
            else
                printf("\"kid\": null, \"kid_stderr\": null, ");
            print_count("n_a", set[0].count, false), print_count("n_b", set[1].count, false);
            if (net)
                printf("\"resize\": \"%s\", ", resize_names[o.resize]);
            else
                printf("\"resize\": null, "); // statistics do not say how theirs were made
            printf("\"features\": %d, \"seconds\": %.3f, \"peak_mb\": %.1f}\n", set[0].dim,
                   seconds() - started, (double)backend.peak() / 1e6);
        } else {
            printf("FID %.6f", fabs(fid) < 5e-7 ? 0 : fid); // not -0.000000
            if (rounds) printf("  (95 %%: %.6f to %.6f)", interval[0], interval[1]);
            if (with_kid) printf("\nKID %.8f +- %.8f", kid, kid_stderr);
            printf("\n");
            if (net) printf("resize %s\n", resize_words[o.resize]);
        }
        fid_set_free(&set[0]), fid_set_free(&set[1]);
    }
    if (net) inception_free(net);
    return status;
}
