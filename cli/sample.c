// sample.c: `sd sample`, options -> Phase 1 -> PNG. See ../sd.c for what happens in between.
#include "captions.h"
#include "commands.h"
#include "film.h"
#include "lib/nn/ranks.h"
#include "model_folder.h"
#include "recipe.h"
#include "verify.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// What was asked for; a NULL, a 0, -1 or NaN leaves it to the model, whose choice then stands here.
typedef struct {
    SampleOptions how; // but for cfg and init
    double cfg;
    const char *model, *tokenizer, *prompts, *init, *latents, *output, *out, *dump, *again, *film, *attention;
    Texts loras, compare;
    int count, dtype;
    bool keep, preview, json;
} Request;

// What --json prints. paths, picture_s (count): where each picture is, and how long until it was written.
static void print_figures(char *const *paths, const double *picture_s, int count, double whole_s,
                          double load_s, const SampleTimes *t, const Request *r, uint64_t seed) {
    printf("{\"images\": [");
    for (int i = 0; i < count; i++) printf("%s%s", i ? ", " : "", json_quote(paths[i]));
    printf("], \"picture_s\": [");
    for (int i = 0; i < count; i++) // null: it is kept, or another rank drew it
        printf(picture_s[i] > 0 ? "%s%.4f" : "%snull", i ? ", " : "", picture_s[i]);
    printf("], \"seconds\": %.4f, \"load_s\": %.4f, \"text_s\": %.4f, \"unet_step_s\": %.5f, "
           "\"unet_evaluations\": %d, \"steps\": %d, \"vae_s\": %.4f, \"peak_mb\": %.1f, \"seed\": %llu}\n",
           whole_s, load_s, t->text_s, t->unet_step_s, t->evaluations, r->how.steps, t->vae_s,
           (double)t->peak / 1e6, (unsigned long long)seed);
}

// What the request leaves open, the model decides, and before it an adapter that is made for a few steps.
static void complete(Request *r, const Model *m, FewSteps few) {
    SampleOptions *o = &r->how, own = sample_defaults(m);
    if (few.scheduler >= 0) own.scheduler = few.scheduler, own.steps = few.steps, own.cfg = few.cfg;
    if (few.scheduler >= 0 && (o->scheduler < 0 || o->scheduler == few.scheduler))
        own.eta = (double)few.eta, own.spacing = few.trailing ? TRAILING : -1;
    if (o->scheduler < 0) o->scheduler = own.scheduler;
    o->scheduler = (int)sample_scheduler(m, o).kind;
    const char *title = samplers[o->scheduler].title;
    if (o->eta > 0 && o->scheduler != TCD) die_usage("--eta is for tcd; the sampler is %s", title);
    if (o->spacing >= 0 && (o->scheduler == LCM || o->scheduler == TCD))
        die_usage("--spacing: the timesteps of %s are those of its training", title);
    if (o->spacing < 0) o->spacing = own.spacing;
    if (isnan(o->eta)) o->eta = own.eta;
    if (!o->steps) o->steps = own.steps;
    if (isnan(r->cfg)) r->cfg = own.cfg;
    if (!o->width) o->width = own.width;
    if (!o->height) o->height = own.height;
    o->cfg = (float)r->cfg, o->progress = own.progress;
    Scheduler s = scheduler_of(sample_scheduler(m, o), o->steps); // refuses what cannot run
    if (r->latents && r->count > 1 && !scheduler_wants_noise(&s))
        die_usage("--count: from given --latents %s draws the same picture each time", title);
    scheduler_free(&s);
    if (o->negative && *o->negative && (r->cfg <= 1 || m->unet_config.time_cond_proj_dim))
        note("--negative does nothing with %s: there is no guidance to lead away from it", m->path);
    if (o->scheduler != TCD) o->eta = NAN; // of no use, so that the text in the PNG
    if (!r->init) o->strength = NAN;       //   does not have it
    if (!r->latents) return;
    int64_t shape[4] = {1, m->unet_config.in_channels, o->height / 8, o->width / 8};
    o->latents = read_tensor(store_open(r->latents), r->latents, "latents", 4, shape);
}

// Which words of the captions the model was trained without.
static void note_words(const Request *r, const char *const *captions, int count) {
    const char *folder = r->tokenizer ? r->tokenizer : format("%s/tokenizer", r->model);
    note_new_words(folder, captions, count);
    note_new_words(folder, &r->how.negative, 1);
}

// One call of sample() a picture. `options` are those behind the request; `original` may be NULL.
static void draw(Request *r, const Option *options, char **captions, int count, const Image *original) {
    char **paths = xcalloc((size_t)count, sizeof *paths);
    double *picture_s = ranks_shared((size_t)count * sizeof *picture_s), started = seconds();
    bool *kept = ranks_shared((size_t)count);
    SampleTimes *times = ranks_shared(sizeof *times); // of the last picture
    SampleOptions *o = &r->how;
    uint64_t first = o->seed;
    Model *m = model_load(r->model, r->tokenizer, NEED_ALL);
    FewSteps few = add_loras(m, r->loras, false, (bool[ADAPTED]){0});
    double load_s = seconds() - started;
    complete(r, m, few);
    note_words(r, captions ? (const char *const *)captions : &o->prompt, captions ? count : 1);
    if (r->prompts) make_directories(r->out);
    for (int i = 0; i < count; i++)
        paths[i] = r->prompts ? format("%s/%05d.png", r->out, i) : numbered_name(r->output, i, count);
    for (int i = 1; !ranks_mine() && (r->init || !captions) && i < count; i++)
        if (file_exists(paths[i])) check_output(paths[i]); // it may be a folder, or the start picture
    uint64_t all = hash_more(0, &first, sizeof first);
    for (int i = 0; captions && i < count; i++) all = hash_more(all, captions[i], strlen(captions[i]));
    if (captions) ranks_must_agree("seed or list of prompts", &all, sizeof all);
    // What cannot be written is said before the work, not after.
    const char *strip = r->film ? film_strip_name(r->film) : NULL;
    check_outputs((const char *[]){ranks_mine() ? NULL : paths[0], r->dump, r->film, strip, r->attention}, 5);
    if (r->keep) may_replace(r->out); // what is not kept is read first
    if (r->dump) trace_begin();
    started = seconds();
    // A small model's operations are not worth threads: as many pictures are drawn at once instead.
    bool small = captions && m->unet_config.block_out_channels[0] < 320 && !r->preview;
    bool draws = ranks_split(small ? count : 1, "pictures", count);
    for (int i = ranks_mine(); draws && i < count; i += ranks_count(), ranks_piece_done()) {
        double begun = seconds();
        if (captions) o->prompt = captions[i];
        o->seed = first + (uint64_t)i;
        char *text = recipe_write(options);
        if (r->keep) kept[i] = recipe_is_of(text, paths[i]);
        if (kept[i]) {
            free(text);
            continue;
        }
        Film *film = r->film || r->attention ? film_begin(m, o, NULL) : NULL;
        Image *image = sample(m, *o, times);
        film_end();
        if (r->film) film_save(film, r->film);
        if (r->attention) film_save_attention(film, o->prompt, image, r->attention);
        if (r->dump) trace_save(r->dump, o, m, r->loras);
        image_save_png(paths[i], image, text);
        free(text);
        if (r->preview) picture_preview(image);
        if (original && i == 0) recipe_compare(image, original, r->again);
        image_free(image);
        picture_s[i] = seconds() - begun;
        if (!r->json) note("%s", paths[i]);
    }
    ranks_join();
    int all_kept = 0;
    for (int i = 0; r->keep && i < count; i++) {
        ranks_give(&kept[i], 1, i % ranks_count());
        all_kept += kept[i];
    }
    if (r->keep) note("%d of %d pictures are kept", all_kept, count);
    if (captions) dataset_note_others(r->out, (size_t)count);
    if (r->json) print_figures(paths, picture_s, count, seconds() - started, load_s, times, r, first);
    note_verbose("loaded in %.2f s; text %.3f s, UNet %.4f s a step, VAE %.3f s; peak memory %.0f MB", load_s,
                 times->text_s, times->unet_step_s, times->vae_s, (double)times->peak / 1e6);
}

// A row of pictures for each system: the model as it is (and with --lora), and with each adapter of
// --compare. What the request leaves open each system decides for itself.
static void compare(const Request *asked) {
    int rows = asked->compare.count + 1, columns = asked->count;
    Image **tiles = xcalloc((size_t)(rows * columns), sizeof *tiles);
    check_output(asked->output);
    note_words(asked, &asked->how.prompt, 1);
    for (int i = 0; i < rows; i++) {
        Request r = *asked;
        Texts loras = {xcalloc((size_t)r.loras.count + 1, sizeof(char *)), r.loras.count + (i > 0)};
        for (int k = 0; k < loras.count; k++)
            loras.at[k] = k < r.loras.count ? r.loras.at[k] : r.compare.at[i - 1];
        Model *m = model_load(r.model, r.tokenizer, NEED_ALL);
        complete(&r, m, add_loras(m, loras, false, (bool[ADAPTED]){0}));
        SampleTimes t;
        double begun = seconds();
        for (int k = 0; k < columns; k++, r.how.seed++) {
            Image *image = tiles[i * columns + k] = sample(m, r.how, &t);
            if (image->width != tiles[0]->width || image->height != tiles[0]->height)
                die("--compare: the systems draw pictures of different sizes");
        }
        note("row %d: %s, %s, %d steps, guidance %g: %.3f s a picture", i + 1,
             i ? r.compare.at[i - 1] : r.model, samplers[r.how.scheduler].title, r.how.steps, r.cfg,
             (seconds() - begun) / columns);
        model_free(m);
    }
    image_save_png(asked->output, picture_grid(tiles, rows, columns), NULL);
    note("%s", asked->output);
}

// [T1] The command line: options, a model, and one call of sample() a picture.
int command_sample(int argc, char **argv) {
    Request r = {.model = DEFAULT_MODEL, .output = "out.png", .count = 1};
    SampleOptions *o = &r.how;
    o->scheduler = o->spacing = r.dtype = -1, r.cfg = o->eta = NAN, o->strength = 0.8;
    Option options[] = {
        {.help = "What to draw"},
        {'p', "prompt", TEXT(&o->prompt, "TEXT"), "the caption"},
        {0, "negative", TEXT(&o->negative, "TEXT"), "what guidance leads away from (default: nothing)"},
        {0, "prompts", TEXT(&r.prompts, "FILE"), "a caption a line instead; picture i uses seed + i"},
        {0, "out", TEXT(&r.out, "DIR"), "with --prompts: where 00000.png, 00001.png, ... go"},
        {0, "keep", FLAG(&r.keep),
         "with --prompts: do not draw pictures that are there and were drawn with the same options"},
        {0, "init", TEXT(&r.init, "IMAGE"), "begin with this picture instead of noise"},
        {0, "strength", NUMBER(&o->strength, 0, 1),
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
        {0, "steps", WHOLE(&o->steps, 1, 1000), "evaluations of the UNet (default: the model's, else 50)"},
        {0, "cfg", NUMBER(&r.cfg, -1000, 1000),
         "guidance scale, 1 or less for none (default: the model's, else 7.5)"},
        {0, "scheduler", CHOICE(&o->scheduler, "pndm|ddim|lcm|euler|euler-a|dpm++2m|dpm++2m-karras|tcd"),
         "(default: what the model names)"},
        {0, "spacing", CHOICE(&o->spacing, "leading|trailing|linspace"),
         "of the timesteps (default: what the model or diffusers says; Hyper-SD LoRAs need trailing)"},
        {0, "eta", NUMBER(&o->eta, 0, 1),
         "of tcd: how much of each step is new noise (default: 0, as in diffusers' pipeline)"},
        {'W', "width", WHOLE(&o->width, 8, 16384), "in pixels, a multiple of 8 (default: the model's)"},
        {'H', "height", WHOLE(&o->height, 8, 16384), "the same"},
        {SEED_OPTION(&o->seed, "of the noise")},
        {0, "rng", CHOICE(&o->philox, "torch|philox"),
         "PyTorch's generator of noise on the CPU, or on a GPU"},
        {0, "dtype", CHOICE(&r.dtype, "f32|bf16"),
         "of what products multiply (default: f32); bf16 needs a processor with AMX or AVX512_BF16"},
        {'n', "count", WHOLE(&r.count, 1, MOST_PICTURES), "pictures; picture i uses seed + i"},
        {.help = "What comes out"},
        {'o', "output", TEXT(&r.output, "FILE.png"), "the picture; a-0.png, a-1.png, ... above one"},
        {0, "preview", FLAG(&r.preview), "also draw in the terminal"},
        {0, "dump", TEXT(&r.dump, "FILE"), "every block's output (.safetensors), for sd verify"},
        {0, "film", TEXT(&r.film, "FILE.png"),
         "also the picture expected at each step, as an animated PNG, and some of them in FILE-strip.png"},
        {0, "attention", TEXT(&r.attention, "FILE.png"),
         "also where the picture reads each word: a row a word, a column a level of the UNet"},
        {0, "compare", TEXT(&r.compare, "LORA ..."),
         "instead a row of pictures for the model and for each of these adapters, in one PNG"},
        {JSON_OPTION(&r.json)},
        {0}};
    char **words = options_parse(
        argc, argv, options, "sd sample -p TEXT [-o FILE.png] [options]", "Draws a picture of a caption.",
        "sd sample -p \"a dog runs in the park at night\" --steps 25 --seed 7 -o dog.png\n"
        "  sd sample -p \"a dog runs in the park at night\" --lora weights/tiny-lcm-lora-8k.safetensors "
        "-o dog.png\n"
        "  sd sample -p \"the same at sunset\" --init dog.png --strength 0.6 -o sunset.png\n"
        "  sd sample --again sunset.png -o same.png");
    for (; r.compare.count && *words; words++) { // --compare A B C
        r.compare.at = xrealloc(r.compare.at, (size_t)(r.compare.count + 1) * sizeof(char *));
        r.compare.at[r.compare.count++] = *words;
    }
    no_words(words, "; a caption goes behind -p, in quotes");
    if (r.again && r.prompts) die_usage("--again draws one picture; it does not go with --prompts");
    Image *original = r.again ? recipe_read(options, r.again) : NULL;
    if (!o->prompt == !r.prompts) die_usage("one of --prompt, --prompts and --again is needed");
    if (r.prompts && !r.out) die_usage("--prompts needs --out DIR");
    goes_with(options, r.prompts ? "output|count" : "out|keep", r.prompts ? "prompt" : "prompts");
    if (!r.init) goes_with(options, "strength", "init");
    if (r.init && r.latents) die_usage("--init and --latents: a picture begins with one of them");
    if (o->width % 8) die_usage("--width is %d; it must be a multiple of 8", o->width);
    if (o->height % 8) die_usage("--height is %d; it must be a multiple of 8", o->height);
    check_png("--output", r.output);
    int count = r.count;
    check_text("--prompt", o->prompt), check_text("--negative", o->negative);
    char **captions = r.prompts ? read_lines(r.prompts, &count) : NULL;
    for (int i = 0; captions && i < count; i++) check_text(r.prompts, captions[i]);
    const char *inside = r.film ? "--film" : r.attention ? "--attention" : NULL;
    if ((r.dump || inside) && (count > 1 || r.prompts))
        die_usage("%s takes one picture", r.dump ? "--dump" : inside);
    if (r.dump && r.dtype > 0) die_usage("--dump is for sd verify, which compares fp32; not with --dtype");
    if (r.dump && inside) die_usage("--dump does not go with %s", inside);
    if (r.compare.count && (r.prompts || r.dump || inside || r.again || r.json || r.preview))
        die_usage("--compare draws captions of --prompt only, and nothing beside its one picture");
    if (r.film) check_png("--film", r.film);
    if (r.attention) check_png("--attention", r.attention);
    const Image *start = o->init = r.init ? image_load(r.init) : NULL;
    if (start && !o->width && !o->height) { // as diffusers: the picture's own size
        o->width = start->width / 8 * 8, o->height = start->height / 8 * 8;
        if (o->width < 8 || o->height < 8)
            die("%s has %d x %d pixels; 8 x 8 is the least", r.init, start->width, start->height);
    }
    if (!r.prompts && ranks_mine()) return 0; // the pictures of one prompt are not shared
    start_backend();
    if (r.dtype >= 0) backend_dtype(r.dtype ? BF16 : F32);
    if (r.dtype > 0) note_verbose("running on %s", backend.name());
    if (r.compare.count) return compare(&r), 0;
    draw(&r, options, captions, count, original);
    return 0;
}
