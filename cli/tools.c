// tools.c: the small commands around the pipeline: `sd encode`, `sd decode`, `sd tokenize`, `sd info`.
#define _POSIX_C_SOURCE 200809L // getline
#include "sd.h"
#include "commands.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

// ---- encode, decode ---------------------------------------------------------------------------------------------

static void print_output(const char *path, double took) {
    printf("{\"output\": ");
    print_json_string(path);
    printf(", \"seconds\": %.4f}\n", took);
}

// The latents of a file, (n, c, h, w); shape is filled in.
static float *read_latents(const char *path, int channels, int shape[4]) {
    Store *s = store_open(path);
    const Stored *t = store_find(s, "latents");
    if (!t) die("%s: tensor latents is missing", path);
    if (t->ndim != 4 || t->shape[0] < 1 || t->shape[1] != channels || t->shape[2] < 1 || t->shape[3] < 1 ||
        t->shape[0] > 4096 || t->shape[2] > 4096 || t->shape[3] > 4096)
        die("%s: latents must be (n, %d, h, w)", path, channels);
    for (int i = 0; i < 4; i++) shape[i] = (int)t->shape[i];
    float *x = store_floats(t, path);
    store_close(s);
    return x;
}

static const char encode_help[] = "usage: sd encode IMAGE -o FILE.safetensors [options]\n\n"
                                  "Picture -> latents, (1, 4, h / 8, w / 8), the mean of the encoder's "
                                  "posterior times the scaling factor, under the\n"
                                  "key \"latents\". The picture's size is cut down to multiples of 8.\n\n"
                                  "  -o, --output FILE   -m, --model PATH   --json   -t   -q   -v   -h\n";

int command_encode(int argc, char **argv) {
    static const struct option options[] = {{"output", required_argument, 0, 'o'}, COMMON_LONG, {0}};
    Common common = common_defaults;
    const char *output = "latents.safetensors";
    int option;
    while ((option = getopt_long(argc, argv, "o:" COMMON_SHORT, options, NULL)) != -1)
        if (!common_option(&common, option, encode_help)) output = optarg;
    if (optind != argc - 1) die_usage("sd encode takes one picture");
    common_start(&common);
    Image *image = image_load(argv[optind]);
    int w = image->width / 8 * 8, h = image->height / 8 * 8;
    if (w < 8 || h < 8)
        die("%s has %d x %d pixels; 8 x 8 is the least", argv[optind], image->width, image->height);
    Image *cut = image_crop(image, 0, 0, w, h);
    Model *m = model_load(common.model, NULL, NEED_VAE);
    double started = seconds();
    int c = m->vae_config.latent_channels;
    Tensor *moments = vae_encode(m->vae, image_to_tensor((const Image *const[]){cut}, 1));
    if (!tensor_finite(moments)) die("a NaN or an infinity arose from the picture %s", argv[optind]);
    float *x = tensor_read(combine(m->vae_config.scaling_factor, slice(moments, 0, c), 0, NULL));
    float *latents = nhwc_to_nchw(x, 1, c, h / 8, w / 8);
    StoreWriter *writer = store_create(output);
    store_declare(writer, "latents", F32, 4, (int64_t[]){1, c, h / 8, w / 8});
    store_data_f32(writer, latents, (size_t)c * (size_t)(h / 8) * (size_t)(w / 8));
    store_commit(writer);
    if (common.json)
        print_output(output, seconds() - started);
    else
        note("%s", output);
    free(x), free(latents);
    image_free(image), image_free(cut);
    model_free(m);
    return 0;
}

static const char decode_help[] = "usage: sd decode FILE.safetensors -o FILE.png [options]\n\n"
                                  "Latents (key \"latents\", (n, 4, h, w), as sd encode and diffusers write "
                                  "them) -> picture; a-0.png, a-1.png, ...\n"
                                  "above one.\n\n"
                                  "  -o, --output FILE   -m, --model PATH   --json   -t   -q   -v   -h\n";

int command_decode(int argc, char **argv) {
    static const struct option options[] = {{"output", required_argument, 0, 'o'}, COMMON_LONG, {0}};
    Common common = common_defaults;
    const char *output = "out.png";
    int option, shape[4];
    while ((option = getopt_long(argc, argv, "o:" COMMON_SHORT, options, NULL)) != -1)
        if (!common_option(&common, option, decode_help)) output = optarg;
    if (optind != argc - 1) die_usage("sd decode takes one file of latents");
    option_png(output);
    common_start(&common);
    Model *m = model_load(common.model, NULL, NEED_VAE);
    float *x = read_latents(argv[optind], m->vae_config.latent_channels, shape);
    double started = seconds();
    size_t each = (size_t)shape[1] * (size_t)shape[2] * (size_t)shape[3];
    const char *dot = strrchr(output, '.');
    int stem = dot && !strchr(dot, '/') ? (int)(dot - output) : (int)strlen(output);
    for (int i = 0; i < shape[0]; i++) {
        Scope s = scope_begin();
        float *nhwc = nchw_to_nhwc(x + (size_t)i * each, 1, shape[1], shape[2], shape[3]);
        Tensor *z = tensor_from(SHAPE(1, shape[2], shape[3], shape[1]), nhwc);
        Tensor *pixels = vae_decode(m->vae, combine(1 / m->vae_config.scaling_factor, z, 0, NULL));
        if (!tensor_finite(pixels)) die("a NaN or an infinity arose from the latents of %s", argv[optind]);
        Image *image = tensor_to_image(pixels, 0);
        char *path = shape[0] > 1 ? format("%.*s-%d%s", stem, output, i, output + stem) : xstrdup(output);
        image_save_png(path, image, NULL);
        if (!common.json) note("%s", path);
        free(path), free(nhwc);
        image_free(image);
        scope_end(s, NULL);
    }
    if (common.json) print_output(output, seconds() - started);
    free(x);
    model_free(m);
    return 0;
}

// ---- tokenize ---------------------------------------------------------------------------------------------------

static const char tokenize_help[] =
    "usage: sd tokenize [-p TEXT] [options] < captions\n\n"
    "Token ids with start and end token, one line a caption, separated by blanks. Captions come from -p or, "
    "one a line\n"
    "(ended by line feeds only), from standard input. Needs no model where --tokenizer is given.\n\n"
    "  -p, --prompt TEXT   --tokenizer DIR (vocab.json and merges.txt, or bpe_simple_vocab_16e6.txt[.gz])\n"
    "      --pad   fill up with the padding token   -m, --model PATH   -q   -v   -h\n";

static void tokenize_line(const Tokenizer *t, const char *text, int max, bool pad, int *ids) {
    long cut_at;
    int n = tokenizer_encode(t, text, ids, max, &cut_at);
    if (cut_at >= 0) note("the caption is longer than %d tokens; cut before \"%.40s\"", max, text + cut_at);
    while (pad && n < max) ids[n++] = tokenizer_pad(t);
    for (int i = 0; i < n; i++) printf("%s%d", i ? " " : "", ids[i]);
    putchar('\n');
}

int command_tokenize(int argc, char **argv) {
    enum { TOKENIZER = 256, PAD };
    static const struct option options[] = {{"prompt", required_argument, 0, 'p'},
                                            {"tokenizer", required_argument, 0, TOKENIZER},
                                            {"pad", no_argument, 0, PAD},
                                            COMMON_LONG,
                                            {0}};
    Common common = common_defaults;
    const char *prompt = NULL, *dir = NULL;
    bool pad = false;
    int option;
    while ((option = getopt_long(argc, argv, "p:" COMMON_SHORT, options, NULL)) != -1) {
        if (common_option(&common, option, tokenize_help)) continue;
        if (option == 'p')
            prompt = optarg;
        else if (option == TOKENIZER)
            dir = optarg;
        else
            pad = true;
    }
    if (optind < argc) die_usage("\"%s\" is no option; a caption goes behind -p, in quotes", argv[optind]);
    if (common.json) die_usage("sd tokenize knows no --json");
    char *own = dir ? xstrdup(dir) : format("%s/tokenizer", common.model);
    Tokenizer *t = tokenizer_open(own);
    int max = tokenizer_max_length(t), *ids = xmalloc((size_t)max * sizeof(int));
    if (prompt) tokenize_line(t, prompt, max, pad, ids);
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    while (!prompt && (length = getline(&line, &room, stdin)) > 0) {
        if (line[length - 1] == '\n') line[--length] = 0;
        if (memchr(line, 0, (size_t)length)) die("standard input: a line holds a NUL byte");
        tokenize_line(t, line, max, pad, ids);
    }
    free(line), free(ids), free(own);
    tokenizer_close(t);
    return 0;
}

// ---- info -------------------------------------------------------------------------------------------------------

enum { TYPES = 11 };
static const char *const type_names[TYPES] = {"F32", "F16", "BF16", "F64", "I8",  "U8",
                                              "I16", "U16", "I32",  "I64", "BOOL"};

static void info_file(const char *path, bool all) {
    Store *s = store_open(path);
    size_t numbers = 0, by_type[TYPES] = {0};
    for (size_t i = 0; i < store_count(s); i++) {
        const Stored *t = store_at(s, i);
        numbers += t->count, by_type[t->type] += t->count;
    }
    const char *kind =
        store_find(s, "model.diffusion_model.input_blocks.0.0.weight") ? "LDM checkpoint" : "tensors";
    for (size_t i = 0; i < store_count(s); i++)
        if (strstr(store_at(s, i)->name, "lora")) {
            kind =
                strncmp(store_at(s, i)->name, "lora_", 5) ? "LoRA, diffusers/PEFT keys" : "LoRA, kohya keys";
            break;
        }
    if (store_find(s, "Conv2d_1a_3x3.conv.weight")) kind = "Inception";
    printf("%s: %s, %zu tensors, %.2f M numbers", path, kind, store_count(s), (double)numbers / 1e6);
    for (int i = 0; i < TYPES; i++)
        if (by_type[i]) printf(", %s %.0f %%", type_names[i], 100 * (double)by_type[i] / (double)numbers);
    putchar('\n');
    for (size_t i = 0; all && i < store_count(s); i++) {
        const Stored *t = store_at(s, i);
        printf("  %s %s (", t->name, type_names[t->type]);
        for (int d = 0; d < t->ndim; d++) printf("%s%lld", d ? ", " : "", (long long)t->shape[d]);
        puts(")");
    }
    store_close(s);
}

static const char info_help[] = "usage: sd info PATH\n\n"
                                "What a model's folder, a .safetensors file (checkpoint, LoRA, Inception, "
                                "latents) or .npz statistics contain; with\n"
                                "-v every tensor.\n";

int command_info(int argc, char **argv) {
    static const struct option options[] = {COMMON_LONG, {0}};
    Common common = common_defaults;
    int option;
    while ((option = getopt_long(argc, argv, COMMON_SHORT, options, NULL)) != -1)
        common_option(&common, option, info_help);
    if (optind != argc - 1) die_usage("sd info takes one path");
    if (common.json) die_usage("sd info knows no --json");
    const char *path = argv[optind], *ending = strrchr(path, '.');
    if (!file_exists(path)) die("cannot read %s: %s", path, strerror(ENOENT));
    if (ending && !strcmp(ending, ".npz")) {
        int64_t shape[4];
        int dims;
        free(npz_read(path, "mu", shape, &dims));
        printf("%s: FID statistics of %lld features\n", path, (long long)shape[0]);
        return 0;
    }
    if (!is_directory(path)) {
        info_file(path, verbosity > 0);
        lora_describe(path);
        return 0;
    }
    backend_init(1);
    Model *m = model_load(path, NULL, NEED_ALL);
    const char *parts[] = {"text_encoder.", "unet.", "vae."};
    for (int k = 0; k < 3; k++) {
        size_t numbers = 0;
        Type type = F32;
        for (int i = 0; i < m->params.count; i++)
            if (!strncmp(m->params.list[i].name, parts[k], strlen(parts[k])))
                numbers += tensor_count(m->params.list[i].tensor), type = m->params.list[i].tensor->type;
        printf("%-13.*s %8.2f M parameters, %s\n", (int)strlen(parts[k]) - 1, parts[k], (double)numbers / 1e6,
               type_names[type]);
    }
    static const char *const schedulers[] = {"PNDM", "DDIM", "LCM"};
    SampleOptions o = sample_defaults(m);
    printf("scheduler     %s; draws %d x %d in %d steps with guidance %g\n",
           schedulers[scheduler_config(m->scheduler_json, -1).kind], o.width, o.height, o.steps,
           (double)o.cfg);
    if (m->unet_config.time_cond_proj_dim)
        puts("              with a guidance embedding: a latent consistency model");
    for (int i = 0; verbosity > 0 && i < m->params.count; i++) {
        const Tensor *t = m->params.list[i].tensor;
        printf("  %s %s (", m->params.list[i].name, type_names[t->type]);
        for (int d = 0; d < t->dims; d++) printf("%s%d", d ? ", " : "", t->shape[d]);
        puts(")");
    }
    model_free(m);
    return 0;
}
