// scenes.c: `sd scenes`, the toy world's data sets. See ../weights/toy/scenes.c for the drawing.
#include "weights/toy/scenes.h"
#include "lib/base.h"
#include "commands.h"

#include <string.h>

static const char help[] =
    "usage: sd scenes DIR [options]\n\n"
    "Draws captioned scenes in Flickr8k's layout: DIR/Images/*.png, DIR/captions.txt, and DIR/scenes.jsonl "
    "with the\n"
    "attributes that the captions speak of. The same seed gives the same bytes.\n\n"
    "  -n, --count N       scenes (default 8000)\n"
    "      --world NAME    flickr (default): one look, one way of captioning; broad: many\n"
    "      --split NAME    train (default), or test: combinations of attributes that train never has\n"
    "      --seed N   --json   -t, --threads N   -q   -v   -h\n";

int command_scenes(int argc, char **argv) {
    enum { WORLD = 256, SPLIT };
    static const struct option options[] = {{"count", required_argument, 0, 'n'},
                                            {"world", required_argument, 0, WORLD},
                                            {"split", required_argument, 0, SPLIT},
                                            COMMON_LONG,
                                            {0}};
    Common common = common_defaults;
    long count = 8000;
    World world = WORLD_FLICKR;
    Split split = SPLIT_TRAIN;
    int option;
    while ((option = getopt_long(argc, argv, "n:" COMMON_SHORT, options, NULL)) != -1) {
        if (common_option(&common, option, help)) continue;
        if (option == 'n')
            count = option_whole("--count", optarg, 1, 100000000);
        else if (option == WORLD) {
            world = strcmp(optarg, "broad") ? WORLD_FLICKR : WORLD_BROAD;
            if (world == WORLD_FLICKR && strcmp(optarg, "flickr"))
                die_usage("--world is \"%s\"; flickr or broad is expected", optarg);
        } else {
            split = strcmp(optarg, "test") ? SPLIT_TRAIN : SPLIT_TEST;
            if (split == SPLIT_TRAIN && strcmp(optarg, "train"))
                die_usage("--split is \"%s\"; train or test is expected", optarg);
        }
    }
    if (optind != argc - 1) die_usage("sd scenes takes one folder");
    common_start(&common);
    double started = seconds();
    scenes_write(argv[optind], count, common.seed, world, split);
    if (common.json)
        printf("{\"images\": %ld, \"captions\": %ld, \"seconds\": %.3f}\n", count, count * SCENE_CAPTIONS,
               seconds() - started);
    return 0;
}
