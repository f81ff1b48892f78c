// synth.c: `sd synth DIR`, a model of the real architecture with made weights (made.h): every loader and every
// command can be tried at full size without a download. Its pictures are patterns.
#include "sd.h"
#include "lib/io/architectures.h"
#include "commands.h"
#include "lib/io/ldm_names.h"
#include "weights/toy/made.h"

#include <stdlib.h>
#include <string.h>

// Parameters [from, to) in file order, made one at a time: the whole model never stands in memory.
static void write_made(const Params *p, int from, int to, const char *path, MadeRegime regime, Type type,
                       bool ldm) {
    StoreWriter *w = store_create(path);
    int64_t shape[4];
    char name[512];
    store_metadata_add(w, "format", "pt");
    for (int i = from; i < to; i++) {
        const Tensor *t = p->list[i].tensor;
        int dims = param_file_shape(t, shape);
        snprintf(name, sizeof name, "%s", strchr(p->list[i].name, '.') + 1);
        if (ldm) {
            ldm_name(p->list[i].name, 2, 4, name, sizeof name);
            bool was_conv = strstr(name, "first_stage_model") && strstr(name, ".attn_1.") && dims == 2;
            if (was_conv) shape[2] = shape[3] = 1, dims = 4; // the original's VAE has 1x1 convolutions there
        }
        store_declare(w, name, type, dims, shape);
    }
    Progress bar;
    progress_begin(&bar, path, to - from);
    for (int i = from; i < to; i++) {
        const Tensor *t = p->list[i].tensor;
        float *x = xmalloc(tensor_count(t) * sizeof(float));
        made_fill(p->list[i].name, param_file_shape(t, shape), shape, regime, x);
        store_data_f32(w, x, tensor_count(t));
        free(x);
        progress_step(&bar, i + 1 - from, NULL);
    }
    progress_end(&bar);
    store_commit(w);
}

static void copy_file(const char *from, const char *to) {
    size_t bytes;
    char *data = read_file(from, &bytes);
    Output *o = output_open(to);
    output_write(o, data, bytes);
    output_commit(o);
    free(data);
}

// Before anything is written: is there a tokenizer to copy, and does the text encoder know its tokens?
static void check_tokenizer(const char *dir, int vocab_size) {
    for (int i = 0; i < 2; i++) {
        char *path = format("%s/%s", dir, i ? "merges.txt" : "vocab.json");
        if (!file_exists(path)) die("--tokenizer: there is no %s", path);
        free(path);
    }
    Tokenizer *t = tokenizer_open(dir);
    if (tokenizer_end(t) >= vocab_size)
        die("--tokenizer: %s has %d tokens, the text encoder knows %d", dir, tokenizer_end(t) + 1,
            vocab_size);
    tokenizer_close(t);
}

static void write_tokenizer(const char *dir, const char *from, int max_length) {
    static const char *const files[] = {"vocab.json", "merges.txt", "tokenizer_config.json",
                                        "special_tokens_map.json"};
    make_directories(dir);
    if (!from) { // bytes alone: whoever replaces vocab.json and merges.txt by CLIP's gets CLIP's tokens
        tokenizer_train(dir, NULL, 0, 514, max_length);
        return;
    }
    for (int i = 0; i < 4; i++) {
        char *a = format("%s/%s", from, files[i]), *b = format("%s/%s", dir, files[i]);
        if (i < 2 || file_exists(a)) copy_file(a, b);
        free(a), free(b);
    }
}

static void synth_inception(const char *dir, MadeRegime regime, Type type) {
    Inception *net = inception_new(NULL);
    Params *p = inception_params(net);
    char *path = format("%s/inception.safetensors", dir);
    int64_t shape[4];
    make_directories(dir);
    StoreWriter *w = store_create(path);
    for (int i = 0; i < p->count; i++)
        store_declare(w, p->list[i].name, type, param_file_shape(p->list[i].tensor, shape), shape);
    for (int i = 0; i < p->count; i++) {
        const Tensor *t = p->list[i].tensor;
        float *x = xmalloc(tensor_count(t) * sizeof(float));
        made_fill(p->list[i].name, param_file_shape(t, shape), shape, regime, x);
        store_data_f32(w, x, tensor_count(t));
        free(x);
    }
    store_commit(w);
    free(path);
    inception_free(net);
}

static const char help[] =
    "usage: sd synth DIR [options]\n\n"
    "Writes a complete model with made weights: the architecture is real, the pictures are patterns.\n\n"
    "      --arch NAME       sd15 (default), sd15-lcm, tiny, tiny-lcm, inception\n"
    "      --weights NAME    soft (default) or hard: mild numbers, or what trained networks do to "
    "arithmetic\n"
    "      --dtype TYPE      f32 (default), f16, bf16\n"
    "      --layout NAME     diffusers (default), or ldm: one file DIR/model.safetensors (sd15 only)\n"
    "      --tokenizer DIR   copied in; else a byte-level one without merges\n"
    "  -q   -v   -h\n";

int command_synth(int argc, char **argv) {
    enum { ARCH = 256, WEIGHTS, DTYPE, LAYOUT, TOKENIZER };
    static const struct option options[] = {{"arch", required_argument, 0, ARCH},
                                            {"weights", required_argument, 0, WEIGHTS},
                                            {"dtype", required_argument, 0, DTYPE},
                                            {"layout", required_argument, 0, LAYOUT},
                                            {"tokenizer", required_argument, 0, TOKENIZER},
                                            COMMON_LONG,
                                            {0}};
    Common common = common_defaults;
    const char *arch = "sd15", *tokenizer = NULL;
    MadeRegime regime = MADE_SOFT;
    Type type = F32;
    bool ldm = false;
    int option;
    while ((option = getopt_long(argc, argv, COMMON_SHORT, options, NULL)) != -1) {
        if (common_option(&common, option, help)) continue;
        switch (option) {
        case ARCH: arch = optarg; break;
        case TOKENIZER: tokenizer = optarg; break;
        case WEIGHTS:
            regime = strcmp(optarg, "hard") ? MADE_SOFT : MADE_HARD;
            if (strcmp(optarg, "hard") && strcmp(optarg, "soft"))
                die_usage("--weights is \"%s\"; soft or hard is expected", optarg);
            break;
        case DTYPE:
            type = !strcmp(optarg, "f16") ? F16 : !strcmp(optarg, "bf16") ? BF16 : F32;
            if (type == F32 && strcmp(optarg, "f32"))
                die_usage("--dtype is \"%s\"; f32, f16 or bf16 is expected", optarg);
            break;
        case LAYOUT:
            ldm = !strcmp(optarg, "ldm");
            if (!ldm && strcmp(optarg, "diffusers"))
                die_usage("--layout is \"%s\"; diffusers or ldm is expected", optarg);
            break;
        }
    }
    if (optind != argc - 1) die_usage("sd synth takes one folder");
    const char *dir = argv[optind];
    common_start(&common);
    if (!strcmp(arch, "inception")) {
        if (ldm) die_usage("--layout ldm does not go with --arch inception");
        synth_inception(dir, regime, type);
        return 0;
    }
    const Architecture *a = architecture(arch);
    if (!a) die_usage("--arch is \"%s\"; sd15, sd15-lcm, tiny, tiny-lcm or inception is expected", arch);
    if (ldm && strncmp(arch, "sd15", 4)) die_usage("--layout ldm goes with --arch sd15 and sd15-lcm only");
    Json *text = json_parse(a->text_encoder, strlen(a->text_encoder), "text"),
         *unet_json = json_parse(a->unet, strlen(a->unet), "unet");
    Json *vae = json_parse(a->vae, strlen(a->vae), "vae");
    Params p = {0};
    TextConfig t = text_config(text);
    if (tokenizer) check_tokenizer(tokenizer, t.vocab_size);
    void *networks[3];
    int text_from = p.count;
    networks[0] = text_encoder_new(t, &p);
    int unet_from = p.count;
    networks[1] = unet_new(unet_config(unet_json), &p);
    int vae_from = p.count;
    networks[2] = vae_new(vae_config(vae), &p);
    make_directories(dir);
    if (ldm) {
        char *path = format("%s/model.safetensors", dir);
        write_made(&p, 0, p.count, path, regime, type, true);
        free(path);
    } else {
        const struct {
            int from, to;
            const char *file;
        } parts[] = {{text_from, unet_from, "text_encoder/model.safetensors"},
                     {unet_from, vae_from, "unet/diffusion_pytorch_model.safetensors"},
                     {vae_from, p.count, "vae/diffusion_pytorch_model.safetensors"}};
        architecture_write(a, dir);
        for (int i = 0; i < 3; i++) {
            char *path = format("%s/%s", dir, parts[i].file);
            write_made(&p, parts[i].from, parts[i].to, path, regime, type, false);
            free(path);
        }
    }
    char *tokens = format("%s/tokenizer", dir);
    write_tokenizer(tokens, tokenizer, t.max_position_embeddings);
    free(tokens);
    text_encoder_free(networks[0]), free(networks[1]), free(networks[2]);
    params_free(&p);
    json_free(text), json_free(unet_json), json_free(vae);
    return 0;
}
