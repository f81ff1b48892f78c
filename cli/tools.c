// tools.c: the small commands around the pipeline: `sd encode`, `sd decode`, `sd tokenize`, `sd info`.
#define _POSIX_C_SOURCE 200809L // getline
#include "commands.h"
#include "model_folder.h"
#include "options.h"
#include "plan.h"
#include "verify.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

// ---- encode, decode ---------------------------------------------------------------------------------------

static void print_output(const char *path, double took) {
    printf("{\"output\": %s, \"seconds\": %.4f}\n", json_quote(path), took);
}

int command_encode(int argc, char **argv) {
    const char *model = DEFAULT_MODEL, *output = "latents.safetensors";
    bool json = false;
    Option options[] = {{MODEL_OPTION(&model)},
                        {'o', "output", TEXT(&output, "FILE"), "the latents (.safetensors, key \"latents\")"},
                        {JSON_OPTION(&json)},
                        {0}};
    char **words =
        options_parse(argc, argv, options, "sd encode IMAGE -o FILE.safetensors [options]",
                      "Picture -> latents (1, 4, h / 8, w / 8): the mean of what the VAE's encoder "
                      "finds, times its scaling factor. The picture is cut to multiples of 8 pixels.",
                      "sd encode dog.png -o dog.safetensors");
    const char *input = one_word(words, "sd encode takes one picture");
    check_safetensors("--output", output);
    start_backend();
    Image *image = image_load(input);
    int w = image->width / 8 * 8, h = image->height / 8 * 8;
    if (w < 8 || h < 8) die("%s has %d x %d pixels; 8 x 8 is the least", input, image->width, image->height);
    if (w < image->width || h < image->height) note("%s is cut to %d x %d pixels", input, w, h);
    Image *cut = image_crop(image, 0, 0, w, h);
    Model *m = model_load(model, NULL, NEED_VAE);
    double started = seconds();
    Tensor *moments = vae_encode(m->vae, image_to_tensor((const Image *const[]){cut}, 1));
    if (!tensor_finite(moments)) die("a NaN or an infinity arose from the picture %s", input);
    Tensor *mean = slice(moments, 0, m->vae_config.latent_channels);
    int64_t shape[4];
    float *latents = file_order(combine(m->vae_config.scaling_factor, mean, 0, NULL), shape);
    StoreWriter *writer = store_create(output);
    store_declare(writer, "latents", F32, 4, shape);
    store_data_f32(writer, latents, tensor_count(mean));
    store_commit(writer);
    if (json)
        print_output(output, seconds() - started);
    else
        note("%s", output);
    return 0;
}

int command_decode(int argc, char **argv) {
    const char *model = DEFAULT_MODEL, *output = "out.png";
    bool json = false;
    Option options[] = {
        {MODEL_OPTION(&model)},
        {'o', "output", TEXT(&output, "FILE.png"), "the picture; a-0.png, a-1.png, ... above one"},
        {JSON_OPTION(&json)},
        {0}};
    char **words =
        options_parse(argc, argv, options, "sd decode FILE.safetensors -o FILE.png [options]",
                      "Latents (n, 4, h, w), as sd encode and diffusers write them, -> n pictures.",
                      "sd decode dog.safetensors -o dog.png");
    const char *input = one_word(words, "sd decode takes one file of latents");
    check_png("--output", output);
    start_backend();
    Model *m = model_load(model, NULL, NEED_VAE);
    int64_t n[4] = {-1, m->vae_config.latent_channels, -1, -1};
    float *x = read_tensor(store_open(input), input, "latents", 4, n);
    double started = seconds();
    for (int i = 0; i < n[0]; i++) {
        Scope s = scope_begin();
        Tensor *z = picture_from(x + i * n[1] * n[2] * n[3], 1, (int)n[1], (int)n[2], (int)n[3]);
        Tensor *pixels = vae_decode(m->vae, combine(1 / m->vae_config.scaling_factor, z, 0, NULL));
        if (!tensor_finite(pixels)) die("a NaN or an infinity arose from the latents of %s", input);
        Image *image = tensor_to_image(pixels, 0);
        char *path = numbered_name(output, i, (int)n[0]);
        image_save_png(path, image, NULL);
        if (!json) note("%s", path);
        free(path), image_free(image);
        scope_end(s, NULL);
    }
    if (json) print_output(output, seconds() - started);
    return 0;
}

// ---- tokenize ---------------------------------------------------------------------------------------------

static void tokenize_line(const Tokenizer *t, const char *text, int max, bool pad, int *ids) {
    long cut_at;
    int n = tokenizer_encode(t, text, ids, max, &cut_at);
    if (cut_at >= 0)
        note("the caption is longer than %d tokens; cut before \"%.*s\"", max, utf8_fit(text + cut_at, 40),
             text + cut_at);
    while (pad && n < max) ids[n++] = tokenizer_pad(t);
    for (int i = 0; i < n; i++) printf("%s%d", i ? " " : "", ids[i]);
    putchar('\n');
}

int command_tokenize(int argc, char **argv) {
    const char *model = DEFAULT_MODEL, *prompt = NULL, *dir = NULL;
    bool pad = false;
    Option options[] = {
        {'p', "prompt", TEXT(&prompt, "TEXT"), "the caption (default: standard input, one a line)"},
        {'m', "model", TEXT(&model, "PATH"), "the model whose tokenizer it is"},
        {0, "tokenizer", TEXT(&dir, "DIR"),
         "a tokenizer itself: tokenizer.json, vocab.json and merges.txt, or bpe_simple_vocab_16e6.txt[.gz]"},
        {0, "pad", FLAG(&pad), "fill up with the padding token"},
        {0}};
    char **words = options_parse(
        argc, argv, options, "sd tokenize [-p TEXT] [options] < captions",
        "Text -> token ids with start and end token, a line a caption. Lines end at line feeds only.",
        "sd tokenize -p \"a dog runs\"\n  sd tokenize --pad < captions.txt");
    no_words(words, "; a caption goes behind -p, in quotes");
    Tokenizer *t = tokenizer_open(dir ? dir : format("%s/tokenizer", model));
    int max = tokenizer_max_length(t), *ids = xmalloc((size_t)max * sizeof(int));
    if (prompt) tokenize_line(t, prompt, max, pad, ids);
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    for (bool first = true; !prompt && (length = getline(&line, &room, stdin)) > 0; first = false) {
        if (first) length = (ssize_t)drop_mark(line, (size_t)length), line[length] = 0;
        if (length && line[length - 1] == '\n') line[--length] = 0;
        if (memchr(line, 0, (size_t)length)) die("standard input: a line holds a NUL byte");
        tokenize_line(t, line, max, pad, ids);
    }
    return 0;
}

// ---- info -------------------------------------------------------------------------------------------------

enum { TYPES = 11 };
static const char *const type_names[TYPES] = {"F32", "F16", "BF16", "F64", "I8",  "U8",
                                              "I16", "U16", "I32",  "I64", "BOOL"};

static void print_tensor(const char *name, Type type, int dims, const int64_t *shape) {
    printf("  %s %s %s\n", plain_text(name), type_names[type], shape_text((char[200]){0}, shape, dims));
}

static void info_file(const char *path) {
    Store *s = store_open(path);
    size_t numbers = 0, by_type[TYPES] = {0};
    for (size_t i = 0; i < store_count(s); i++)
        numbers += store_at(s, i)->count, by_type[store_at(s, i)->type] += store_at(s, i)->count;
    printf("%s: %s, %zu tensors, %.2f M numbers", path, store_kind(s), store_count(s), (double)numbers / 1e6);
    for (int i = 0; i < TYPES; i++)
        if (by_type[i]) printf(", %s %.0f %%", type_names[i], 100 * (double)by_type[i] / (double)numbers);
    putchar('\n');
    for (size_t i = 0; verbosity > 0 && i < store_count(s); i++)
        print_tensor(store_at(s, i)->name, store_at(s, i)->type, store_at(s, i)->ndim, store_at(s, i)->shape);
    lora_describe(path);
}

static void info_model(const char *path) {
    start_backend();
    Model *m = model_load(path, NULL, NEED_ALL);
    for (int k = 0; k < 3; k++) {
        Params p = params_part(&m->params, networks[k].prefix);
        printf("%-13s %8.2f M parameters, %s\n", networks[k].name, (double)params_count(&p) / 1e6,
               type_names[p.list[p.count - 1].tensor->type]);
    }
    SampleOptions o = sample_defaults(m);
    printf("scheduler     %s; draws %d x %d in %d steps with guidance %g\n",
           samplers[scheduler_config(m->scheduler_json, -1).kind].title, o.width, o.height, o.steps,
           (double)o.cfg);
    if (m->unet_config.time_cond_proj_dim)
        puts("              with a guidance embedding: a latent consistency model");
    for (int i = 0; verbosity > 0 && i < m->params.count; i++) {
        const Tensor *t = m->params.list[i].tensor;
        int64_t shape[4];
        int dims = param_file_shape(t, shape);
        print_tensor(m->params.list[i].name, t->type, dims, shape);
    }
}

// False where it is no picture.
static bool info_picture(const char *path) {
    size_t n;
    const unsigned char *bytes = map_file(path, &n);
    const char *kind = n ? file_kind(bytes, n) : NULL;
    if (!kind || !ends_with(kind, " picture")) return false;
    Image *image = image_load(path);
    char *text = image_png_parameters(path); // what sd sample --again draws from
    printf("%s: a picture of %d x %d pixels\n", path, image->width, image->height);
    if (text) puts(text);
    return true;
}

int command_info(int argc, char **argv) {
    bool kernels = false, training = false, json = false;
    Option options[] = {
        {0, "kernels", FLAG(&kernels),
         "list the kernels that one picture calls: how often, which, of what shape; PATH may be an "
         "architecture (sd15, tiny), too"},
        {0, "training", FLAG(&training), "with --kernels: those of one step of sd lcm"},
        {0, "json", FLAG(&json), ""}, // not shown: refused below
        {0}};
    char **words = options_parse(
        argc, argv, options, "sd info PATH",
        "What is in a model's folder, a .safetensors file (checkpoint, LoRA, Inception, latents), "
        ".npz statistics or a picture (what it was drawn from); with -v every tensor.",
        "sd info dog.png\n  sd info weights/tiny\n  sd info weights/tiny-lora.safetensors -v\n  sd info --kernels sd15");
    const char *path = one_word(words, "sd info takes one path"), *ending = strrchr(path, '.');
    if (json) die_usage("sd info prints text only: it has no --json");
    if (training && !kernels) die_usage("--training goes with --kernels");
    if (kernels) {
        start_backend();
        plan_kernels(path, training);
        return 0;
    }
    if (!file_exists(path)) die("cannot read %s: %s", path, strerror(ENOENT));
    if (ending && !strcmp(ending, ".npz")) {
        int64_t shape[4];
        npz_read(path, "mu", 32768, shape, &(int){0});
        printf("%s: FID statistics of %lld features\n", path, (long long)shape[0]);
    } else if (is_directory(path))
        info_model(path);
    else if (!info_picture(path))
        info_file(path);
    return 0;
}
