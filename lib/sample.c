// sample.c: `sd sample`, options -> Phase 1 -> PNG. See ../sd.c for what happens in between.
#include "../sd.h"
#include "commands.h"
#include "trace.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "usage: sd sample -p TEXT [-o FILE.png] [options]\n\n"
    "What to draw\n"
    "  -p, --prompt TEXT       the caption\n"
    "      --negative TEXT     what guidance leads away from (default: nothing)\n"
    "      --prompts FILE      a caption a line instead; picture i uses seed + i, with\n"
    "      --out DIR           where 00000.png, 00001.png, ... go\n"
    "      --init IMAGE        begin with this picture instead of noise, with\n"
    "      --strength S        how much of the way to noise (0 to 1, default 0.8)\n"
    "      --latents FILE      begin with this noise (.safetensors, key \"latents\")\n"
    "How\n"
    "      --steps N           evaluations of the network (default: the model's, else 50)\n"
    "      --cfg W             guidance scale; 1 or less: none (default: the model's, else 7.5)\n"
    "      --scheduler NAME    pndm, ddim or lcm (default: what the model names)\n"
    "  -W, --width N  -H, --height N   in pixels, multiples of 8 (default: the model's)\n"
    "      --seed N            (default 0)\n"
    "      --rng torch|philox  the CPU's or the GPU's generator of PyTorch (default torch)\n"
    "  -n, --count N           pictures; picture i uses seed + i\n"
    "  -m, --model PATH        diffusers folder or LDM file (default weights/tiny)\n"
    "      --tokenizer DIR     where the model has none\n"
    "What comes out\n"
    "  -o, --output FILE.png   (default out.png; a-0.png, a-1.png, ... above one picture)\n"
    "      --preview           also draw in the terminal\n"
    "      --dump FILE         every block's output (.safetensors), for sd verify\n"
    "      --json              one object with the figures on stdout\n"
    "  -t, --threads N   -q, --quiet   -v, --verbose   -h, --help\n\n"
    "  sd sample -p \"a dog runs through a park at night\" --steps 25 --seed 7 -o dog.png\n";

enum {
    NEGATIVE = 256,
    PROMPTS,
    OUT,
    INIT,
    STRENGTH,
    LATENTS,
    STEPS,
    CFG,
    SCHEDULER,
    RNG,
    TOKENIZER,
    PREVIEW,
    DUMP
};

static const struct option options[] = {{"prompt", required_argument, 0, 'p'},
                                        {"negative", required_argument, 0, NEGATIVE},
                                        {"prompts", required_argument, 0, PROMPTS},
                                        {"out", required_argument, 0, OUT},
                                        {"init", required_argument, 0, INIT},
                                        {"strength", required_argument, 0, STRENGTH},
                                        {"latents", required_argument, 0, LATENTS},
                                        {"steps", required_argument, 0, STEPS},
                                        {"cfg", required_argument, 0, CFG},
                                        {"scheduler", required_argument, 0, SCHEDULER},
                                        {"width", required_argument, 0, 'W'},
                                        {"height", required_argument, 0, 'H'},
                                        {"rng", required_argument, 0, RNG},
                                        {"count", required_argument, 0, 'n'},
                                        {"tokenizer", required_argument, 0, TOKENIZER},
                                        {"output", required_argument, 0, 'o'},
                                        {"preview", no_argument, 0, PREVIEW},
                                        {"dump", required_argument, 0, DUMP},
                                        COMMON_LONG,
                                        {0}};

// Two pixels a character, one above the other: an upper half block in the one's colour on the other's.
static void preview(const Image *image) {
    int columns = 64;
    Image *small =
        image_resize(image, columns, columns * image->height / image->width / 2 * 2, RESIZE_BICUBIC);
    for (int y = 0; y + 1 < small->height; y += 2) {
        for (int x = 0; x < columns; x++) {
            const unsigned char *a = small->rgb + 3 * (y * columns + x), *b = a + 3 * columns;
            fprintf(stderr, "\033[38;2;%d;%d;%dm\033[48;2;%d;%d;%dm▀", a[0], a[1], a[2], b[0], b[1], b[2]);
        }
        fputs("\033[0m\n", stderr);
    }
    image_free(small);
}

static char **read_lines(const char *path, int *count) {
    size_t bytes;
    char *text = read_file(path, &bytes), **lines = NULL;
    *count = 0;
    for (char *at = text; at < text + bytes;) {
        char *end = strchr(at, '\n');
        if (end) *end = 0;
        if (end && end > at && end[-1] == '\r') end[-1] = 0;
        lines = xrealloc(lines, (size_t)(*count + 1) * sizeof *lines);
        lines[(*count)++] = xstrdup(at);
        at = end ? end + 1 : text + bytes;
    }
    free(text);
    if (!*count) die("%s holds no caption", path);
    return lines;
}

// The text that other tools read out of a PNG and show.
static char *parameters(const SampleOptions *o, const Scheduler *s, const char *model) {
    static const char *const names[] = {"PNDM", "DDIM", "LCM"};
    return format(
        "%s%s%s\nSteps: %d, Sampler: %s, CFG scale: %g, Seed: %llu, Size: %dx%d, Model: %s, Version: sd.c",
        o->prompt, o->negative ? "\nNegative prompt: " : "", o->negative ? o->negative : "", o->steps,
        names[s->config.kind], (double)o->cfg, (unsigned long long)o->seed, o->width, o->height, model);
}

static float *load_latents(const char *path, int c, int h, int w) {
    Store *s = store_open(path);
    const Stored *t = store_find(s, "latents");
    if (!t) die("%s: tensor latents is missing", path);
    size_t want = (size_t)c * (size_t)h * (size_t)w;
    if (t->count != want)
        die("%s: latents hold %zu numbers; %zu (1, %d, %d, %d) are expected", path, t->count, want, c, h, w);
    float *x = xmalloc(want * sizeof(float));
    store_read_f32(t, x);
    store_close(s);
    return x;
}

// [T1] The command line: options, a model, and one call of sample() a picture.
int command_sample(int argc, char **argv) {
    Common common = common_defaults;
    const char *prompt = NULL, *negative = NULL, *prompts = NULL, *out = NULL, *init = NULL, *latents = NULL;
    const char *output = "out.png", *tokenizer = NULL, *dump = NULL;
    int steps = 0, scheduler = -1, width = 0, height = 0, count = 1, option;
    double cfg = -1, strength = 0.8;
    bool philox = false, show = false, with_cfg = false;
    while ((option = getopt_long(argc, argv, "p:o:W:H:n:" COMMON_SHORT, options, NULL)) != -1) {
        if (common_option(&common, option, help)) continue;
        switch (option) {
        case 'p': prompt = optarg; break;
        case 'o': output = optarg; break;
        case 'W': width = (int)option_whole("--width", optarg, 8, 16384); break;
        case 'H': height = (int)option_whole("--height", optarg, 8, 16384); break;
        case 'n': count = (int)option_whole("--count", optarg, 1, 1000000); break;
        case NEGATIVE: negative = optarg; break;
        case PROMPTS: prompts = optarg; break;
        case OUT: out = optarg; break;
        case INIT: init = optarg; break;
        case STRENGTH: strength = option_number("--strength", optarg, 0, 1); break;
        case LATENTS: latents = optarg; break;
        case STEPS: steps = (int)option_whole("--steps", optarg, 1, 1000); break;
        case CFG: cfg = option_number("--cfg", optarg, -1000, 1000), with_cfg = true; break;
        case SCHEDULER:
            scheduler = !strcmp(optarg, "pndm")   ? PNDM
                        : !strcmp(optarg, "ddim") ? DDIM
                        : !strcmp(optarg, "lcm")  ? LCM
                                                  : -1;
            if (scheduler < 0) die_usage("--scheduler is \"%s\"; pndm, ddim or lcm is expected", optarg);
            break;
        case RNG:
            philox = !strcmp(optarg, "philox");
            if (!philox && strcmp(optarg, "torch"))
                die_usage("--rng is \"%s\"; torch or philox is expected", optarg);
            break;
        case TOKENIZER: tokenizer = optarg; break;
        case PREVIEW: show = true; break;
        case DUMP: dump = optarg; break;
        }
    }
    if (optind < argc) die_usage("\"%s\" is no option; a caption goes behind -p, in quotes", argv[optind]);
    if (!prompt == !prompts) die_usage("one of --prompt and --prompts is needed");
    if (prompts && !out) die_usage("--prompts needs --out DIR");
    if (width % 8 || height % 8) die_usage("the size is %d x %d; both must be multiples of 8", width, height);
    const char *texts[2] = {prompt, negative};
    for (int i = 0; i < 2; i++) {
        size_t at;
        if (texts[i] && !utf8_valid(texts[i], strlen(texts[i]), &at))
            die("the prompt is not UTF-8: byte %zu", at);
    }

    common_start(&common);
    double started = seconds();
    Model *m = model_load(common.model, tokenizer, NEED_ALL);
    double load_s = seconds() - started;

    SampleOptions o = sample_defaults(m);
    if (scheduler >= 0) o.scheduler = scheduler;
    if (steps) o.steps = steps;
    if (with_cfg) o.cfg = (float)cfg;
    if (width) o.width = width;
    if (height) o.height = height;
    o.negative = negative, o.strength = (float)strength, o.philox = philox;
    if (latents) o.latents = load_latents(latents, m->unet_config.in_channels, o.height / 8, o.width / 8);
    Image *start = init ? image_load(init) : NULL;
    o.init = start;
    int lines = 0;
    char **captions = prompts ? read_lines(prompts, &lines) : NULL;
    if (prompts) count = lines, make_directories(out);
    if (dump && count > 1) die_usage("--dump takes one picture");

    Scheduler s; // for the note in the PNG, and to refuse early what cannot run
    scheduler_init(&s, scheduler_config(m->scheduler_json, o.scheduler));
    scheduler_set_timesteps(&s, o.steps);
    if (dump) trace_begin();
    char **paths = xcalloc((size_t)count, sizeof *paths);
    SampleTimes times = {0};
    started = seconds();
    interrupt_catch();
    int drawn = 0;
    for (; drawn < count && !interrupted(); drawn++) {
        o.prompt = captions ? captions[drawn] : prompt;
        o.seed = common.seed + (uint64_t)drawn;
        Image *image = sample(m, o, &times);
        const char *dot = strrchr(output, '.');
        int stem = dot && !strchr(dot, '/') ? (int)(dot - output) : (int)strlen(output);
        paths[drawn] = prompts     ? format("%s/%05d.png", out, drawn)
                       : count > 1 ? format("%.*s-%d%s", stem, output, drawn, output + stem)
                                   : xstrdup(output);
        char *text = parameters(&o, &s, common.model);
        image_save_png(paths[drawn], image, text);
        free(text);
        if (show) preview(image);
        image_free(image);
        if (!common.json) note("%s", paths[drawn]);
    }
    double total = seconds() - started;
    if (dump) trace_save(dump, &o, m);
    if (common.json) {
        printf("{\"images\": [");
        for (int i = 0; i < drawn; i++) printf("%s\"%s\"", i ? ", " : "", paths[i]);
        printf("], \"seconds\": %.4f, \"load_s\": %.4f, \"text_s\": %.4f, \"unet_step_s\": %.5f, \"steps\": "
               "%d, \"vae_s\": %.4f, "
               "\"peak_mb\": %.1f, \"seed\": %llu}\n",
               total, load_s, times.text_s, times.unet_step_s, o.steps, times.vae_s, (double)k_peak() / 1e6,
               (unsigned long long)common.seed);
    }
    note_verbose("loaded in %.2f s; text %.3f s, UNet %.4f s a step, VAE %.3f s; peak memory %.0f MB", load_s,
                 times.text_s, times.unet_step_s, times.vae_s, (double)k_peak() / 1e6);
    for (int i = 0; i < drawn; i++) free(paths[i]);
    for (int i = 0; i < lines; i++) free(captions[i]);
    free(paths), free(captions), free((void *)o.latents);
    if (start) image_free(start);
    scheduler_free(&s);
    model_free(m);
    return interrupted() ? 1 : 0;
}
