// sample.c: `sd sample`, options -> Phase 1 -> PNG. See ../sd.c for what happens in between.
#include "sd.h"
#include "commands.h"
#include "options.h"
#include "recipe.h"
#include "verify.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

// What was asked for; a NULL, a 0, -1 or NaN leaves it to the model.
typedef struct {
    const char *model, *tokenizer, *prompt, *negative, *prompts, *init, *latents, *output, *out, *dump,
        *again;
    Texts loras;
    int steps, scheduler, spacing, width, height, count;
    double cfg, strength, eta;
    uint64_t seed;
    bool philox, keep, preview, json;
} Request;

// Attaches the adapters. Returns how to draw with the first of them that is made for a few steps.
static FewSteps attach(const Model *m, Texts specs, Lora **loras) {
    FewSteps few = {.scheduler = -1};
    for (int i = 0; i < specs.count; i++) {
        float scale;
        char *path = parse_lora(specs.at[i], &scale);
        Lora *l = loras[i] = lora_load(&m->params, path);
        lora_attach(l, scale);
        FewSteps its = lora_few_steps(l, path);
        if (!few.name) few = its;
        note_verbose("%s: %d layers, scale %g", path, l->count, (double)scale);
        free(path);
    }
    return few;
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
    const char *line;
    size_t length;
    for (const char *at = text; next_line(&at, text + bytes, &line, &length);) {
        if (memchr(line, 0, length)) die("%s: line %d holds a NUL", path, *count + 1);
        lines = xrealloc(lines, (size_t)(*count + 1) * sizeof *lines);
        lines[(*count)++] = format("%.*s", (int)length, line);
    }
    free(text);
    if (!*count) die("%s holds no caption", path);
    return lines;
}

static void check_text(const char *where, const char *text) {
    size_t at;
    if (text && !utf8_valid(text, strlen(text), &at))
        die("%s: the text is not UTF-8: byte %zu, 0x%02x", where, at, (unsigned char)text[at]);
}

// A model that was trained on few words lists them, a line each, beside its tokenizer. Of other words it
// knows the letters at most, so they are named. `folder` is the tokenizer's; texts (count), of which some may
// be NULL.
static void note_new_words(const char *folder, const char *const *texts, int count) {
    char *list = format("%s/words.txt", folder), *fresh = xstrdup("");
    size_t bytes, length;
    char *words = file_exists(list) ? read_file(list, &bytes) : NULL;
    static const char between[] = " \t\n\r.,;:!?\"'()[]-/0123456789";
    Names known = {0}; // and those that were named
    const char *line;
    for (const char *at = words; words && next_line(&at, words + bytes, &line, &length);)
        names_set(&known, line, length, 0);
    for (int i = 0; words && i < count; i++) {
        char *text = xstrdup(texts[i] ? texts[i] : ""); // kept: `known` points into it
        for (char *c = text; *c; c++) *c = (char)tolower((unsigned char)*c);
        for (const char *at = text; *(at += strspn(at, between)); at += length) {
            length = strcspn(at, between);
            if (names_get(&known, at, length) >= 0) continue;
            names_set(&known, at, length, 0);
            char *more = format("%s%s%.*s", fresh, *fresh ? ", " : "", (int)length, at);
            free(fresh), fresh = more;
        }
    }
    if (*fresh)
        note("the model was trained without these words (%s lists those that it knows): %s", list, fresh);
    names_free(&known), free(words), free(fresh), free(list);
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

// One call of sample() a picture. `options` are those behind the request; `original` may be NULL.
static void draw(Request *r, const Option *options, char **captions, int count, const Image *start,
                 const Image *original) {
    Figures f = {.count = count};
    f.paths = xcalloc((size_t)count, sizeof *f.paths),
    f.picture_s = xcalloc((size_t)count, sizeof *f.picture_s);
    double started = seconds();
    Model *m = model_load(r->model, r->tokenizer, NEED_ALL);
    Lora **loras = xcalloc((size_t)r->loras.count + 1, sizeof *loras);
    FewSteps few = attach(m, r->loras, loras);
    f.load_s = seconds() - started;

    SampleOptions o = sample_defaults(m);
    if (few.scheduler >= 0) o.scheduler = few.scheduler, o.steps = few.steps, o.cfg = few.cfg;
    bool own = few.scheduler >= 0 && (r->scheduler < 0 || r->scheduler == few.scheduler);
    if (own) o.eta = (double)few.eta, o.spacing = few.trailing ? TRAILING : -1;
    if (r->scheduler >= 0) o.scheduler = r->scheduler;
    if (r->spacing >= 0) o.spacing = r->spacing;
    if (!isnan(r->eta)) o.eta = r->eta;
    if (r->steps) o.steps = r->steps;
    if (!isnan(r->cfg)) o.cfg = (float)r->cfg;
    if (r->width) o.width = r->width;
    if (r->height) o.height = r->height;
    o.negative = r->negative, o.strength = r->strength, o.philox = r->philox, o.init = start;
    if (r->latents) {
        Store *file = store_open(r->latents);
        int64_t shape[4] = {1, m->unet_config.in_channels, o.height / 8, o.width / 8};
        o.latents = read_tensor(file, r->latents, "latents", 4, shape);
        store_close(file);
    }
    Scheduler s; // to refuse early what cannot run
    scheduler_init(&s, sample_scheduler(m, &o));
    scheduler_set_timesteps(&s, o.steps);
    if (r->eta > 0 && s.config.kind != TCD)
        die_usage("--eta is for tcd; the sampler is %s", scheduler_titles[s.config.kind]);
    if (r->spacing >= 0 && (s.config.kind == LCM || s.config.kind == TCD))
        die_usage("--spacing: the timesteps of %s are those of its training",
                  scheduler_titles[s.config.kind]);
    f.steps = o.steps;
    // What the model chose, for the text in the PNG.
    r->steps = o.steps, r->scheduler = (int)s.config.kind;
    if (isnan(r->cfg)) r->cfg = o.cfg;
    if (!r->init) r->strength = NAN;
    r->spacing = o.spacing, r->eta = s.config.kind == TCD ? o.eta : NAN;
    r->width = o.width, r->height = o.height;
    uint64_t first = r->seed;

    char *folder = r->tokenizer ? xstrdup(r->tokenizer) : format("%s/tokenizer", r->model);
    note_new_words(folder, captions ? (const char *const *)captions : &r->prompt, captions ? count : 1);
    note_new_words(folder, &r->negative, 1);
    free(folder);
    if (r->prompts) make_directories(r->out);
    for (int i = 0; i < count; i++)
        f.paths[i] = r->prompts ? format("%s/%05d.png", r->out, i) : numbered_name(r->output, i, count);
    check_output(f.paths[0]); // what cannot be written is said before the work, not after
    if (r->dump) check_output(r->dump), trace_begin();
    started = seconds();
    for (int i = 0; i < count; i++) {
        if (r->keep && file_exists(f.paths[i])) continue;
        double begun = seconds();
        if (captions) r->prompt = captions[i];
        o.prompt = r->prompt, o.seed = r->seed = first + (uint64_t)i;
        Image *image = sample(m, o, &f.times);
        char *text = recipe_write(options);
        if (r->dump) trace_save(r->dump, &o, m);
        image_save_png(f.paths[i], image, text);
        free(text);
        if (r->preview) preview(image);
        if (original && i == 0) recipe_compare(image, original, r->again);
        image_free(image);
        f.picture_s[i] = seconds() - begun;
        if (!r->json) note("%s", f.paths[i]);
    }
    f.seconds = seconds() - started;
    if (r->json) print_figures(&f, first);
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
    r.scheduler = r.spacing = -1, r.cfg = r.eta = NAN, r.strength = 0.8;
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
        {0, "again", TEXT(&r.again, "FILE.png"),
         "draw what the text in this picture says; options that are typed beside it overrule it"},
        {.help = "How to draw"},
        {MODEL_OPTION(&r.model)},
        {0, "tokenizer", TEXT(&r.tokenizer, "DIR"), "for a model that has none"},
        {0, "lora", TEXT(&r.loras, "FILE[:SCALE]"),
         "draw with these adapters (repeatable); one that is an LCM-LoRA, as it says or by its layers or its name, "
         "makes the defaults 4 steps of lcm without guidance"},
        {0, "steps", WHOLE(&r.steps, 1, 1000), "evaluations of the UNet (default: the model's, else 50)"},
        {0, "cfg", NUMBER(&r.cfg, -1000, 1000),
         "guidance scale, 1 or less for none (default: the model's, else 7.5)"},
        {0, "scheduler", CHOICE(&r.scheduler, "pndm|ddim|lcm|euler|euler-a|dpm++2m|dpm++2m-karras|tcd"),
         "(default: what the model names)"},
        {0, "spacing", CHOICE(&r.spacing, "leading|trailing|linspace"),
         "of the timesteps (default: what the model or diffusers says; Hyper-SD LoRAs need trailing)"},
        {0, "eta", NUMBER(&r.eta, 0, 1),
         "of tcd: how much of each step is new noise (default: 0, as in diffusers' pipeline)"},
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
        "sd sample -p \"a dog runs in the park at night\" --steps 25 --seed 7 -o dog.png\n"
        "  sd sample -p \"a dog runs in the park at night\" --lora weights/tiny-lcm-lora-8k.safetensors "
        "-o dog.png\n"
        "  sd sample -p \"the same at sunset\" --init dog.png --strength 0.6 -o sunset.png\n"
        "  sd sample --again sunset.png -o same.png");
    no_words(words, "; a caption goes behind -p, in quotes");
    if (r.again && r.prompts) die_usage("--again draws one picture; it does not go with --prompts");
    Image *original = r.again ? recipe_read(options, r.again) : NULL;
    if (!r.prompt == !r.prompts) die_usage("one of --prompt, --prompts and --again is needed");
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
    draw(&r, options, captions, count, start, original);
    for (int i = 0; captions && i < count; i++) free(captions[i]);
    free(captions), free(r.loras.at);
    image_free(start), image_free(original);
    return 0;
}
