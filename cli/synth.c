// synth.c: `sd synth DIR`, a model of the real architecture with made weights (made.h): every loader and
// every command can be tried at full size without a download. Its pictures are patterns.
#include "commands.h"
#include "model_folder.h"
#include "options.h"
#include "weights/toy/made.h"

#include <stdlib.h>
#include <string.h>

// Where weights are to be written; dies where they cannot be, or would replace others than made ones.
static const char *place(const char *dir, const char *file, bool force) {
    const char *path = path_inside(dir, file);
    if (!force && file_exists(path)) {
        Store *s = store_open(path);
        if (!store_metadata(s, "made"))
            die("%s holds other weights than made ones; --force replaces them", path);
        store_close(s);
        may_replace(path);
    }
    check_output(path);
    return path;
}

// To a file, one parameter at a time: the whole model never stands in memory. strip: what names in the file
// lack, "unet."; ldm: in the original code's spelling.
static void write_made(const Params *p, const char *strip, const char *path, MadeRegime regime, Type type,
                       bool ldm) {
    StoreWriter *w = store_create(path);
    int64_t shape[4];
    char name[512];
    if (ldm || *strip) store_metadata_add(w, "format", "pt"); // transformers asks for it
    store_metadata_add(w, "made", regime == MADE_SOFT ? "soft" : "hard");
    for (int i = 0; i < p->count; i++) {
        int dims = param_file_shape(p->list[i].tensor, shape);
        snprintf(name, sizeof name, "%s", p->list[i].name);
        if (ldm) name_spelling(p->list[i].name, 0, name, sizeof name);
        if (ldm && strstr(name, "first_stage_model") && strstr(name, ".attn_1.") && dims == 2)
            shape[2] = shape[3] = 1, dims = 4; // the original's VAE has 1x1 convolutions there
        store_declare(w, name + strlen(strip), type, dims, shape);
    }
    Progress bar;
    progress_begin(&bar, path, p->count);
    for (int i = 0; i < p->count; i++) {
        size_t n = tensor_count(p->list[i].tensor);
        float *x = xmalloc(n * sizeof(float));
        made_fill(p->list[i].name, param_file_shape(p->list[i].tensor, shape), shape, regime, x);
        store_data_f32(w, x, n);
        free(x);
        progress_step(&bar, i + 1, NULL);
    }
    progress_end(&bar);
    store_commit(w);
}

// Before anything is written: is there a tokenizer to copy, and does the text encoder know its tokens?
static void check_tokenizer(const char *dir, int vocab_size) {
    for (int i = 0; i < 2; i++) {
        char *path = format("%s/%s", dir, i ? "merges.txt" : "vocab.json");
        if (!file_exists(path)) die("--tokenizer: there is no %s", path);
    }
    Tokenizer *t = tokenizer_open(dir);
    if (tokenizer_end(t) >= vocab_size)
        die("--tokenizer: %s has %d tokens, the text encoder knows %d", dir, tokenizer_end(t) + 1,
            vocab_size);
}

static void write_tokenizer(const char *model, const char *from, int max_length) {
    static const char *const files[] = {"vocab.json", "merges.txt", "tokenizer_config.json",
                                        "special_tokens_map.json"};
    char *dir = path_inside(model, "tokenizer");
    make_directories(dir);
    if (!from) // bytes alone: whoever replaces vocab.json and merges.txt by CLIP's gets CLIP's tokens
        tokenizer_train(dir, NULL, 0, 514, max_length);
    for (int i = 0; from && i < 4; i++) {
        char *a = format("%s/%s", from, files[i]), *b = path_inside(dir, files[i]);
        if (i < 2 || file_exists(a)) copy_file(a, b);
    }
}

int command_synth(int argc, char **argv) {
    const char *arch = "sd15", *tokenizer = NULL;
    MadeRegime regime = MADE_SOFT;
    Type type = F32;
    bool ldm = false, force = false;
    Option options[] = {
        {0, "arch", CHOICE(&arch, "sd15|sd15-lcm|tiny|tiny-lcm|inception"), "the architecture"},
        {0, "weights", CHOICE(&regime, "soft|hard"),
         "mild values, or what trained networks do to arithmetic"},
        {0, "dtype", CHOICE(&type, TYPE_NAMES), "of the weights"},
        {0, "layout", CHOICE(&ldm, "diffusers|ldm"),
         "ldm: one file, DIR/model.safetensors; sd15 and sd15-lcm only"},
        {0, "tokenizer", TEXT(&tokenizer, "DIR"), "copied in (default: one of bytes, without merges)"},
        {FORCE_OPTION(&force)},
        {0}};
    char **words = options_parse(
        argc, argv, options, "sd synth DIR [options]",
        "Writes a complete model with made weights: the architecture is real, the pictures are patterns.",
        "sd synth run/synth\n  sd sample -m run/synth -p \"a dog runs\" --steps 2");
    const char *dir = one_word(words, "sd synth takes one folder");
    start_backend();
    if (!strcmp(arch, "inception")) {
        if (ldm) die_usage("--layout ldm does not go with --arch inception");
        if (tokenizer) die_usage("--tokenizer does not go with --arch inception");
        Inception *net = inception_new(NULL, NULL);
        Params *p = inception_params(net);
        layer_linear(p, inception_dim(net), 1008, true, "fc"); // not for FID, but pytorch-fid loads it
        write_made(p, "", place(dir, "inception.safetensors", force), regime, type, false);
        return 0;
    }
    if (ldm && !starts_with(arch, "sd15")) die_usage("--layout ldm goes with --arch sd15 and sd15-lcm only");
    const Architecture *a = architecture(arch);
    Model *m = model_declared(NULL, a);
    if (tokenizer) check_tokenizer(tokenizer, m->text_config.vocab_size);
    const char *paths[3] = {0}; // all are looked at before the first is written
    for (int i = 0; i < 3 && !ldm; i++) paths[i] = place(dir, networks[i].weights, force);
    if (ldm) write_made(&m->params, "", place(dir, "model.safetensors", force), regime, type, true);
    for (int i = 0; i < 3 && !ldm; i++) {
        Params part = params_part(&m->params, networks[i].prefix);
        write_made(&part, networks[i].prefix, paths[i], regime, type, false);
    }
    write_tokenizer(dir, tokenizer, m->text_config.max_position_embeddings);
    if (!ldm) architecture_write(a, dir); // behind the weights: where they fail, the folder is no model
    return 0;
}
