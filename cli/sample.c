// sample.c: `sd sample`, options -> Phase 1 -> PNG. See ../sd.c for what happens in between.
#include "sd.h"
#include "commands.h"
#include "verify.h"

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
    "      --keep              pictures that are there already are kept, not drawn again\n"
    "      --init IMAGE        begin with this picture instead of noise, with\n"
    "      --strength S        how much of the way to noise (0 to 1, default 0.8)\n"
    "      --latents FILE      begin with this noise (.safetensors, key \"latents\")\n"
    "How\n"
    "      --steps N           evaluations of the network (default: the model's, else 50)\n"
    "      --cfg W             guidance scale; 1 or less: none (default: the model's, else 7.5)\n"
    "      --scheduler NAME    pndm, ddim or lcm (default: what the model names)\n"
    "      --lora FILE[:SCALE] adapters to draw with (repeatable); where one is an LCM-LoRA, the defaults "
    "are\n"
    "                          4 steps of lcm without guidance\n"
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
    KEEP,
    INIT,
    STRENGTH,
    LATENTS,
    STEPS,
    CFG,
    SCHEDULER,
    LORA,
    RNG,
    TOKENIZER,
    PREVIEW,
    DUMP
};

static const struct option options[] = {{"prompt", required_argument, 0, 'p'},
                                        {"negative", required_argument, 0, NEGATIVE},
                                        {"prompts", required_argument, 0, PROMPTS},
                                        {"out", required_argument, 0, OUT},
                                        {"keep", no_argument, 0, KEEP},
                                        {"init", required_argument, 0, INIT},
                                        {"strength", required_argument, 0, STRENGTH},
                                        {"latents", required_argument, 0, LATENTS},
                                        {"steps", required_argument, 0, STEPS},
                                        {"cfg", required_argument, 0, CFG},
                                        {"scheduler", required_argument, 0, SCHEDULER},
                                        {"lora", required_argument, 0, LORA},
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

// Adapters to draw with.
typedef struct {
    const char *spec; // as typed
    Lora *lora;
} Worn;

// Loads them and hangs them on the model. True if one of them makes it an LCM: by what it says of itself or, of other
// tools' files, by its name.
static bool wear(const Model *m, Worn *worn, int count) {
    bool lcm = false;
    for (int i = 0; i < count; i++) {
        float scale;
        char *path = option_lora(worn[i].spec, &scale);
        Lora *l = worn[i].lora = lora_load(&m->params, path);
        lora_hang(l, scale);
        const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
        lcm |= l->mode ? !strcmp(l->mode, "mimic") || !strcmp(l->mode, "consistency")
                       : strstr(name, "lcm") != NULL;
        note_verbose("%s: %d layers, scale %g", path, l->count, (double)scale);
        free(path);
    }
    return lcm;
}

// The text that other tools read out of a PNG and show.
static char *parameters(const SampleOptions *o, const Scheduler *s, const char *model, const Worn *worn,
                        int worn_count) {
    char *loras = xstrdup("");
    for (int i = 0; i < worn_count; i++) {
        char *longer = format("%s, LoRA: %s", loras, worn[i].spec);
        free(loras), loras = longer;
    }
    static const char *const names[] = {"PNDM", "DDIM", "LCM"};
    char *text = format(
        "%s%s%s\nSteps: %d, Sampler: %s, CFG scale: %g, Seed: %llu, Size: %dx%d, Model: %s%s, Version: sd.c",
        o->prompt, o->negative ? "\nNegative prompt: " : "", o->negative ? o->negative : "", o->steps,
        names[s->config.kind], (double)o->cfg, (unsigned long long)o->seed, o->width, o->height, model,
        loras);
    free(loras);
    return text;
}

static float *load_latents(const char *path, int c, int h, int w) {
    Store *s = store_open(path);
    const Stored *t = store_find(s, "latents");
    if (!t) die("%s: tensor latents is missing", path);
    int last = t->ndim - 1; // (1, c, h, w); the 1 may be missing
    if (t->count != (size_t)c * (size_t)h * (size_t)w || last < 2 || t->shape[last] != w ||
        t->shape[last - 1] != h)
        die("%s: the %zu numbers of latents have another shape than (1, %d, %d, %d), which the size asks for",
            path, t->count, c, h, w);
    float *x = store_floats(t, path);
    store_close(s);
    return x;
}

static void check_text(const char *where, const char *text) {
    size_t at;
    if (text && !utf8_valid(text, strlen(text), &at))
        die("%s: the text is not UTF-8: byte %zu, 0x%02x", where, at, (unsigned char)text[at]);
}

// [T1] The command line: options, a model, and one call of sample() a picture.
int command_sample(int argc, char **argv) {
    Common common = common_defaults;
    const char *prompt = NULL, *negative = NULL, *prompts = NULL, *out = NULL, *init = NULL, *latents = NULL;
    const char *output = "out.png", *tokenizer = NULL, *dump = NULL;
    int steps = 0, scheduler = -1, width = 0, height = 0, count = 1, option;
    double cfg = -1, strength = 0.8;
    bool philox = false, show = false, with_cfg = false, keep = false;
    Worn *worn = xcalloc((size_t)argc, sizeof *worn);
    int worn_count = 0;
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
        case KEEP: keep = true; break;
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
        case LORA: worn[worn_count++].spec = optarg; break;
        case TOKENIZER: tokenizer = optarg; break;
        case PREVIEW: show = true; break;
        case DUMP: dump = optarg; break;
        }
    }
    if (optind < argc) die_usage("\"%s\" is no option; a caption goes behind -p, in quotes", argv[optind]);
    if (!prompt == !prompts) die_usage("one of --prompt and --prompts is needed");
    if (prompts && !out) die_usage("--prompts needs --out DIR");
    if (keep && !prompts) die_usage("--keep goes with --prompts");
    if (init && latents) die_usage("--init and --latents: a picture begins with one of them");
    if (width % 8) die_usage("--width is %d; it must be a multiple of 8", width);
    if (height % 8) die_usage("--height is %d; it must be a multiple of 8", height);
    option_png(output);
    int lines = 0;
    char **captions = prompts ? read_lines(prompts, &lines) : NULL;
    if (prompts) count = lines;
    if (dump && count > 1) die_usage("--dump takes one picture");
    check_text("--prompt", prompt), check_text("--negative", negative);
    for (int i = 0; i < lines; i++) check_text(prompts, captions[i]);
    Image *start = init ? image_load(init) : NULL;
    if (start && !width && !height) { // as diffusers: the picture's own size
        width = start->width / 8 * 8, height = start->height / 8 * 8;
        if (width < 8 || height < 8)
            die("%s has %d x %d pixels; 8 x 8 is the least", init, start->width, start->height);
    }

    common_start(&common);
    double started = seconds();
    Model *m = model_load(common.model, tokenizer, NEED_ALL);
    bool lcm_lora = wear(m, worn, worn_count);
    double load_s = seconds() - started;

    SampleOptions o = sample_defaults(m);
    if (lcm_lora) o.scheduler = LCM, o.steps = 4, o.cfg = 1;
    if (scheduler >= 0) o.scheduler = scheduler;
    if (steps) o.steps = steps;
    if (with_cfg) o.cfg = (float)cfg;
    if (width) o.width = width;
    if (height) o.height = height;
    o.negative = negative, o.strength = strength, o.philox = philox, o.init = start;
    if (latents) o.latents = load_latents(latents, m->unet_config.in_channels, o.height / 8, o.width / 8);

    Scheduler s; // for the note in the PNG, and to refuse early what cannot run
    scheduler_init(&s, scheduler_config(m->scheduler_json, o.scheduler));
    scheduler_set_timesteps(&s, o.steps);
    if (prompts) make_directories(out);
    char **paths = xcalloc((size_t)count, sizeof *paths);
    const char *dot = strrchr(output, '.');
    int stem = dot && !strchr(dot, '/') ? (int)(dot - output) : (int)strlen(output);
    for (int i = 0; i < count; i++)
        paths[i] = prompts     ? format("%s/%05d.png", out, i)
                   : count > 1 ? format("%.*s-%d%s", stem, output, i, output + stem)
                               : xstrdup(output);
    output_discard(output_open(paths[0])); // better now than after the last step
    if (dump) output_discard(output_open(dump)), trace_begin();
    SampleTimes times = {0};
    double *picture_s = xcalloc((size_t)count, sizeof *picture_s); // of each, written out and all
    started = seconds();
    for (int i = 0; i < count; i++) {
        if (keep && file_exists(paths[i])) continue;
        double begun = seconds();
        o.prompt = captions ? captions[i] : prompt;
        o.seed = common.seed + (uint64_t)i;
        Image *image = sample(m, o, &times);
        char *text = parameters(&o, &s, common.model, worn, worn_count);
        if (dump) trace_save(dump, &o, m);
        image_save_png(paths[i], image, text);
        free(text);
        if (show) preview(image);
        image_free(image);
        picture_s[i] = seconds() - begun;
        if (!common.json) note("%s", paths[i]);
    }
    double total = seconds() - started;
    if (common.json) {
        printf("{\"images\": [");
        for (int i = 0; i < count; i++) {
            if (i) printf(", ");
            print_json_string(paths[i]);
        }
        printf("], \"picture_s\": [");
        for (int i = 0; i < count; i++) printf("%s%.4f", i ? ", " : "", picture_s[i]);
        printf("], \"seconds\": %.4f, \"load_s\": %.4f, \"text_s\": %.4f, \"unet_step_s\": %.5f, "
               "\"unet_evaluations\": %d, \"steps\": %d, \"vae_s\": %.4f, "
               "\"peak_mb\": %.1f, \"seed\": %llu}\n",
               total, load_s, times.text_s, times.unet_step_s, times.evaluations, o.steps, times.vae_s,
               (double)backend.peak() / 1e6, (unsigned long long)common.seed);
    }
    note_verbose("loaded in %.2f s; text %.3f s, UNet %.4f s a step, VAE %.3f s; peak memory %.0f MB", load_s,
                 times.text_s, times.unet_step_s, times.vae_s, (double)backend.peak() / 1e6);
    for (int i = 0; i < count; i++) free(paths[i]);
    for (int i = 0; i < lines; i++) free(captions[i]);
    free(paths), free(captions), free(picture_s), free((void *)o.latents);
    if (start) image_free(start);
    scheduler_free(&s);
    for (int i = 0; i < worn_count; i++) lora_free(worn[i].lora);
    free(worn);
    model_free(m);
    return 0;
}
