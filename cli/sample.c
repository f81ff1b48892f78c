// sample.c: `sd sample`, options -> Phase 1 -> PNG. See ../sd.c for what happens in between.
#include "sd.h"
#include "commands.h"
#include "options.h"
#include "verify.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// What was asked for; a NULL, a 0, -1 or NaN leaves it to the model.
typedef struct {
    const char *model, *tokenizer, *prompt, *negative, *prompts, *init, *latents, *output, *out, *dump;
    Texts loras;
    int steps, scheduler, width, height, count;
    double cfg, strength;
    uint64_t seed;
    bool philox, keep, preview, json;
} Request;

// Attaches the adapters. Is one of them an LCM-LoRA, as it says or, in others' files, by its name?
static bool attach(const Model *m, Texts specs, Lora **loras) {
    bool lcm = false;
    for (int i = 0; i < specs.count; i++) {
        float scale;
        char *path = parse_lora(specs.at[i], &scale);
        Lora *l = loras[i] = lora_load(&m->params, path);
        lora_attach(l, scale);
        const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
        lcm |= l->mode ? !strcmp(l->mode, "mimic") || !strcmp(l->mode, "consistency")
                       : strstr(name, "lcm") != NULL;
        note_verbose("%s: %d layers, scale %g", path, l->count, (double)scale);
        free(path);
    }
    return lcm;
}

// Two pixels a character, one above the other: an upper half block in the one's colour on the other's.
static void preview(const Image *image) {
    int columns = 64, rows = columns * image->height / image->width / 2 * 2;
    Image *small = image_resize(image, columns, rows, RESIZE_BICUBIC);
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
static char *parameters(const SampleOptions *o, const Scheduler *s, const char *model, Texts specs) {
    char *loras = xstrdup("");
    for (int i = 0; i < specs.count; i++) {
        char *longer = format("%s, LoRA: %s", loras, specs.at[i]);
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
    bool same_size = t->count == (size_t)c * (size_t)h * (size_t)w && last >= 2;
    if (!same_size || t->shape[last] != w || t->shape[last - 1] != h)
        die("%s: latents has %zu elements in another shape than (1, %d, %d, %d), which the picture's size "
            "asks for",
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

// What --json prints.
typedef struct {
    char **paths;      // (count)
    double *picture_s; // (count): until it is written
    double load_s, seconds;
    int count, steps;
    SampleTimes times;
} Figures;

static void print_figures(const Figures *f, uint64_t seed) {
    printf("{\"images\": [");
    for (int i = 0; i < f->count; i++) printf("%s", i ? ", " : ""), print_json_string(stdout, f->paths[i]);
    printf("], \"picture_s\": [");
    for (int i = 0; i < f->count; i++) printf("%s%.4f", i ? ", " : "", f->picture_s[i]);
    printf("], \"seconds\": %.4f, \"load_s\": %.4f, \"text_s\": %.4f, \"unet_step_s\": %.5f, "
           "\"unet_evaluations\": %d, \"steps\": %d, \"vae_s\": %.4f, \"peak_mb\": %.1f, \"seed\": %llu}\n",
           f->seconds, f->load_s, f->times.text_s, f->times.unet_step_s, f->times.evaluations, f->steps,
           f->times.vae_s, (double)backend.peak() / 1e6, (unsigned long long)seed);
}

// One call of sample() a picture.
static void draw(const Request *r, char **captions, int count, const Image *start) {
    Figures f = {.count = count};
    f.paths = xcalloc((size_t)count, sizeof *f.paths),
    f.picture_s = xcalloc((size_t)count, sizeof *f.picture_s);
    double started = seconds();
    Model *m = model_load(r->model, r->tokenizer, NEED_ALL);
    Lora **loras = xcalloc((size_t)r->loras.count + 1, sizeof *loras);
    bool lcm_lora = attach(m, r->loras, loras);
    f.load_s = seconds() - started;

    SampleOptions o = sample_defaults(m);
    if (lcm_lora) o.scheduler = LCM, o.steps = 4, o.cfg = 1;
    if (r->scheduler >= 0) o.scheduler = r->scheduler;
    if (r->steps) o.steps = r->steps;
    if (!isnan(r->cfg)) o.cfg = (float)r->cfg;
    if (r->width) o.width = r->width;
    if (r->height) o.height = r->height;
    o.negative = r->negative, o.strength = r->strength, o.philox = r->philox, o.init = start;
    if (r->latents)
        o.latents = load_latents(r->latents, m->unet_config.in_channels, o.height / 8, o.width / 8);
    Scheduler s; // for the text in the PNG, and to refuse early what cannot run
    scheduler_init(&s, scheduler_config(m->scheduler_json, o.scheduler));
    scheduler_set_timesteps(&s, o.steps);
    f.steps = o.steps;

    if (r->prompts) make_directories(r->out);
    for (int i = 0; i < count; i++)
        f.paths[i] = r->prompts ? format("%s/%05d.png", r->out, i) : numbered_name(r->output, i, count);
    output_discard(output_open(f.paths[0])); // what cannot be written is said before the work, not after
    if (r->dump) output_discard(output_open(r->dump)), trace_begin();
    started = seconds();
    for (int i = 0; i < count; i++) {
        if (r->keep && file_exists(f.paths[i])) continue;
        double begun = seconds();
        o.prompt = captions ? captions[i] : r->prompt, o.seed = r->seed + (uint64_t)i;
        Image *image = sample(m, o, &f.times);
        char *text = parameters(&o, &s, r->model, r->loras);
        if (r->dump) trace_save(r->dump, &o, m);
        image_save_png(f.paths[i], image, text);
        free(text);
        if (r->preview) preview(image);
        image_free(image);
        f.picture_s[i] = seconds() - begun;
        if (!r->json) note("%s", f.paths[i]);
    }
    f.seconds = seconds() - started;
    if (r->json) print_figures(&f, r->seed);
    note_verbose("loaded in %.2f s; text %.3f s, UNet %.4f s a step, VAE %.3f s; peak memory %.0f MB",
                 f.load_s, f.times.text_s, f.times.unet_step_s, f.times.vae_s, (double)backend.peak() / 1e6);
    for (int i = 0; i < count; i++) free(f.paths[i]);
    for (int i = 0; i < r->loras.count; i++) lora_free(loras[i]);
    free(f.paths), free(f.picture_s), free(loras), free((void *)o.latents);
    scheduler_free(&s);
    model_free(m);
}

// [T1] The command line: options, a model, and one call of sample() a picture.
int command_sample(int argc, char **argv) {
    Request r = {.model = DEFAULT_MODEL, .output = "out.png", .count = 1};
    r.scheduler = -1, r.cfg = NAN, r.strength = 0.8;
    Option options[] = {
        {.help = "What to draw"},
        {'p', "prompt", TEXT(&r.prompt, "TEXT"), "the caption"},
        {0, "negative", TEXT(&r.negative, "TEXT"), "what guidance leads away from (default: nothing)"},
        {0, "prompts", TEXT(&r.prompts, "FILE"), "a caption a line instead; picture i uses seed + i"},
        {0, "out", TEXT(&r.out, "DIR"), "with --prompts: where 00000.png, 00001.png, ... go"},
        {0, "keep", FLAG(&r.keep), "with --prompts: do not draw pictures that are there already"},
        {0, "init", TEXT(&r.init, "IMAGE"), "begin with this picture instead of noise"},
        {0, "strength", NUMBER(&r.strength, 0, 1),
         "with --init: how much of the way to noise it goes first, 0 to 1"},
        {0, "latents", TEXT(&r.latents, "FILE"), "begin with this noise (.safetensors, key \"latents\")"},
        {.help = "How to draw"},
        {MODEL_OPTION(&r.model)},
        {0, "tokenizer", TEXT(&r.tokenizer, "DIR"), "for a model that has none"},
        {0, "lora", TEXT(&r.loras, "FILE[:SCALE]"),
         "draw with these adapters (repeatable); one that is an LCM-LoRA makes the defaults 4 steps of lcm "
         "without guidance"},
        {0, "steps", WHOLE(&r.steps, 1, 1000), "evaluations of the UNet (default: the model's, else 50)"},
        {0, "cfg", NUMBER(&r.cfg, -1000, 1000),
         "guidance scale, 1 or less for none (default: the model's, else 7.5)"},
        {0, "scheduler", CHOICE(&r.scheduler, "pndm|ddim|lcm"), "(default: what the model names)"},
        {'W', "width", WHOLE(&r.width, 8, 16384), "in pixels, a multiple of 8 (default: the model's)"},
        {'H', "height", WHOLE(&r.height, 8, 16384), "the same"},
        {SEED_OPTION(&r.seed, "of the noise")},
        {0, "rng", CHOICE(&r.philox, "torch|philox"), "PyTorch's generator of noise on the CPU, or on a GPU"},
        {'n', "count", WHOLE(&r.count, 1, 1000000), "pictures; picture i uses seed + i"},
        {.help = "What comes out"},
        {'o', "output", TEXT(&r.output, "FILE.png"), "the picture; a-0.png, a-1.png, ... above one"},
        {0, "preview", FLAG(&r.preview), "also draw in the terminal"},
        {0, "dump", TEXT(&r.dump, "FILE"), "every block's output (.safetensors), for sd verify"},
        {JSON_OPTION(&r.json)},
        {0}};
    char **words = options_parse(
        argc, argv, options, "sd sample -p TEXT [-o FILE.png] [options]", "Draws a picture of a caption.",
        "sd sample -p \"a dog runs through a park at night\" --steps 25 --seed 7 -o dog.png\n"
        "  sd sample -p \"a dog runs through a park at night\" --lora weights/tiny-lcm-lora-8k.safetensors "
        "-o dog.png\n"
        "  sd sample -p \"the same at sunset\" --init dog.png --strength 0.6 -o sunset.png");
    no_words(words, "; a caption goes behind -p, in quotes");
    if (!r.prompt == !r.prompts) die_usage("one of --prompt and --prompts is needed");
    if (r.prompts && !r.out) die_usage("--prompts needs --out DIR");
    if (r.keep && !r.prompts) die_usage("--keep goes with --prompts");
    if (r.init && r.latents) die_usage("--init and --latents: a picture begins with one of them");
    if (r.width % 8) die_usage("--width is %d; it must be a multiple of 8", r.width);
    if (r.height % 8) die_usage("--height is %d; it must be a multiple of 8", r.height);
    check_png(r.output);
    int count = r.count;
    check_text("--prompt", r.prompt), check_text("--negative", r.negative);
    char **captions = r.prompts ? read_lines(r.prompts, &count) : NULL;
    for (int i = 0; captions && i < count; i++) check_text(r.prompts, captions[i]);
    if (r.dump && count > 1) die_usage("--dump takes one picture");
    Image *start = r.init ? image_load(r.init) : NULL;
    if (start && !r.width && !r.height) { // as diffusers: the picture's own size
        r.width = start->width / 8 * 8, r.height = start->height / 8 * 8;
        if (r.width < 8 || r.height < 8)
            die("%s has %d x %d pixels; 8 x 8 is the least", r.init, start->width, start->height);
    }
    start_backend();
    draw(&r, captions, count, start);
    for (int i = 0; captions && i < count; i++) free(captions[i]);
    free(captions), free(r.loras.at);
    if (start) image_free(start);
    return 0;
}
