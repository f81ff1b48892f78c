// lora.c: `sd lora`: merges adapters and converts their files; train.c has its two trainings, ../lora.c the
// algorithms, lib/io/lora_names.c the layouts of files.
#include "lib/io/architectures.h"
#include "commands.h"
#include "model_folder.h"
#include "options.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

// ---- merge ------------------------------------------------------------------------------------------------

// The networks that can have adapters.
enum { NETWORKS = 2 };
static const struct {
    const char *name, *file;
} networks[NETWORKS] = {{"unet", "unet/diffusion_pytorch_model.safetensors"},
                        {"text_encoder", "text_encoder/model.safetensors"}};

// Adds the adapters to the weights, and tells which networks that changed. Returns how to draw with the first
// of them that is made for a few steps.
static FewSteps merge(const Model *m, Texts specs, bool changed[NETWORKS]) {
    FewSteps few = {.scheduler = -1};
    for (int i = 0; i < specs.count; i++) {
        float scale;
        char *path = parse_lora(specs.at[i], &scale);
        Lora *l = lora_load(&m->params, path);
        FewSteps its = lora_few_steps(l, path);
        if (!few.name) few = its;
        for (int k = 0; k < l->count; k++)
            changed[!strncmp(l->parts[k].layer->name, "text_encoder.", 13)] = true;
        lora_merge(l, scale);
        note_verbose("%s: %d layers, scale %g", path, l->count, (double)scale);
        lora_free(l);
        free(path);
    }
    return few;
}

// The model's folder, without the weights of the networks that changed and without model_index.json.
static void copy_unchanged(const char *from, const char *to, const bool changed[NETWORKS]) {
    DIR *folder = opendir(from);
    if (!folder) die("cannot read the folder %s: %s", from, strerror(errno));
    make_directories(to);
    for (struct dirent *e; (e = readdir(folder));) {
        if (e->d_name[0] == '.') continue;
        char *a = format("%s/%s", from, e->d_name), *b = path_inside(to, e->d_name);
        bool config_only = false;
        for (int k = 0; k < NETWORKS; k++) config_only |= changed[k] && !strcmp(e->d_name, networks[k].name);
        if (is_directory(a))
            copy_folder(a, b, config_only);
        else if (strcmp(e->d_name, "model_index.json"))
            copy_file(a, b);
        free(a), free(b);
    }
    closedir(folder);
}

static int command_merge(int argc, char **argv) {
    const char *model = DEFAULT_MODEL, *out = NULL;
    Texts specs = {0};
    int type = -1;
    bool json = false;
    Option options[] = {
        {'m', "model", TEXT(&model, "DIR"), "the model, a diffusers folder"},
        {0, "lora", TEXT(&specs, "FILE[:SCALE]"), "the adapters (repeatable)"},
        {'o', "output", TEXT(&out, "DIR"), "the new model's folder"},
        {0, "dtype", CHOICE(&type, TYPE_NAMES), "of the networks that change (default: as they are)"},
        {JSON_OPTION(&json)},
        {0}};
    char **words = options_parse(
        argc, argv, options, "sd lora merge -m MODEL --lora FILE[:SCALE] ... -o DIR [options]",
        "Writes the model with the adapters' updates added to its weights: W + SCALE alpha / rank up down.",
        "sd lora merge --lora weights/tiny-lora.safetensors:0.8 -o run/merged");
    no_words(words, "; a LoRA goes behind --lora");
    if (!specs.count || !out) die_usage("--lora FILE and --output DIR are needed");
    start_backend();
    double started = seconds();
    if (!is_directory(model)) die("%s is no folder: adapters are merged into a diffusers folder", model);
    if (same_folder(model, out))
        die("--output is the model itself, %s; the merged one needs its own folder", out);

    Model *m = model_load(model, NULL, NEED_TEXT | NEED_UNET);
    bool changed[NETWORKS] = {false, false};
    FewSteps few = merge(m, specs, changed);
    copy_unchanged(model, out, changed);
    for (int k = 0; k < NETWORKS; k++) {
        if (!changed[k]) continue;
        char *prefix = format("%s.", networks[k].name), *path = path_inside(out, networks[k].file);
        Params part = params_part(&m->params, prefix);
        params_save(&part, path, strlen(prefix), type < 0 ? part.list[0].tensor->type : (Type)type);
        free(prefix), free(path);
    }
    char *from = format("%s/model_index.json", model), *to = path_inside(out, "model_index.json");
    if (few.scheduler >= 0) { // a merged LCM-LoRA draws as an LCM does
        char *scheduler, *index;
        few_steps_configs(m, few, lcm_defaults, &scheduler, &index);
        write_text_file(out, "scheduler/scheduler_config.json", scheduler);
        write_text_file(out, "model_index.json", index);
        free(scheduler), free(index);
    } else if (file_exists(from))
        copy_file(from, to); // last: it makes the folder a model
    if (json) {
        printf("{\"loras\": %d, \"output\": ", specs.count), print_json_string(stdout, out);
        printf(", \"seconds\": %.3f}\n", seconds() - started);
    }
    free(from), free(to), free(specs.at);
    model_free(m);
    return 0;
}

// ---- convert ----------------------------------------------------------------------------------------------

// The layers of an architecture, declared and empty: their names and shapes are all that a conversion needs.
static Params declare_layers(const char *text, const char *net) {
    Params p = {0};
    Json *a = json_parse(text, strlen(text), "text_encoder/config.json"),
         *b = json_parse(net, strlen(net), "unet/config.json");
    text_encoder_free(text_encoder_new(text_config(a), &p));
    free(unet_new(unet_config(b), &p));
    json_free(a), json_free(b);
    return p;
}

static Params layers_for(const char *file, const char *model) {
    if (model) {
        char *a = format("%s/text_encoder/config.json", model), *b = format("%s/unet/config.json", model);
        char *text = read_file(a, NULL), *net = read_file(b, NULL);
        Params p = declare_layers(text, net);
        free(a), free(b), free(text), free(net);
        return p;
    }
    const Architecture *tiny = architecture("tiny"), *sd15 = architecture("sd15");
    Params p = declare_layers(tiny->text_encoder, tiny->unet);
    if (lora_fits(&p, file)) return p;
    params_free(&p);
    return declare_layers(sd15->text_encoder, sd15->unet);
}

static int command_convert(int argc, char **argv) {
    const char *model = NULL, *out = NULL;
    int to = -1, type = -1;
    bool json = false;
    Option options[] = {{0, "format", CHOICE(&to, "peft|kohya|diffusers"),
                         "what to write (default: the other one); diffusers is peft"},
                        {0, "dtype", CHOICE(&type, TYPE_NAMES), "(default: as it is)"},
                        {'m', "model", TEXT(&model, "DIR"),
                         "whose layers they are (default: Stable Diffusion v1.5's or the tiny model's)"},
                        {'o', "output", TEXT(&out, "FILE"), "the new file"},
                        {JSON_OPTION(&json)},
                        {0}};
    char **words = options_parse(argc, argv, options, "sd lora convert FILE -o FILE [options]",
                                 "Between the spellings of LoRA files.",
                                 "sd lora convert weights/tiny-lora.safetensors -o kohya.safetensors");
    const char *in = one_word(words, "sd lora convert takes one file");
    if (!out) die_usage("--output FILE is needed");
    start_backend();
    Params p = layers_for(in, model);
    Lora *l = lora_load(&p, in);
    Store *s = store_open(in);
    if (to < 0) to = strncmp(store_at(s, 0)->name, "lora_", 5) ? LORA_KOHYA : LORA_PEFT;
    for (size_t i = 0; type < 0 && i < store_count(s); i++)
        if (store_at(s, i)->ndim >= 2) type = (int)store_at(s, i)->type;
    store_close(s);
    lora_save(l, out, to == LORA_KOHYA ? LORA_KOHYA : LORA_PEFT, (Type)type);
    if (json) {
        const char *written = to == LORA_KOHYA ? "kohya" : "peft";
        printf("{\"layers\": %d, \"format\": \"%s\", \"output\": ", l->count, written);
        print_json_string(stdout, out), printf("}\n");
    }
    lora_free(l);
    params_free(&p);
    return 0;
}

// ---- sd lora ----------------------------------------------------------------------------------------------

int command_lora(int argc, char **argv) {
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
        const char *what;
    } commands[] = {{"finetune", command_lora_finetune, "adapters learn the look of captioned pictures"},
                    {"distill", command_lora_distill, "adapters learn to draw in 4 steps"},
                    {"merge", command_merge, "adapters into a model's weights"},
                    {"convert", command_convert, "between the formats of LoRA files"}};
    enum { COUNT = sizeof commands / sizeof *commands };
    const char *name = argc > 1 ? argv[1] : "";
    for (int i = 0; i < COUNT; i++)
        if (!strcmp(name, commands[i].name)) return commands[i].run(argc - 1, argv + 1);
    if (strcmp(name, "--help") && strcmp(name, "-h"))
        die_usage("\"%s\" is no sub-command of sd lora; finetune, distill, merge and convert are%s", name,
                  did_you_mean(name, "finetune|distill|merge|convert", ""));
    puts("usage: sd lora COMMAND [options]\n");
    for (int i = 0; i < COUNT; i++) printf("  %-10s %s\n", commands[i].name, commands[i].what);
    puts("\nsd lora COMMAND --help says more.");
    return 0;
}
