// lora.c: `sd lora`: merges adapters and converts their files; train.c has its two trainings, ../lora.c the
// algorithms, lib/io/lora_names.c the layouts of files.
#include "commands.h"
#include "lib/nn/ranks.h"
#include "model_folder.h"
#include "options.h"

#include <string.h>

// ---- merge ------------------------------------------------------------------------------------------------

FewSteps add_loras(const Model *m, Texts specs, bool merged, bool changed[ADAPTED]) {
    FewSteps few = {.scheduler = -1};
    for (int i = 0; i < specs.count; i++) {
        float scale;
        char *path = parse_lora(specs.at[i], &scale);
        Lora *l = lora_load(&m->params, path);
        FewSteps its = lora_few_steps(l, path);
        if (few.name && its.name) note("%s: the sampler and steps of %s before it count", path, few.name);
        if (!few.name) few = its;
        for (int k = 0; k < l->count; k++) changed[starts_with(l->parts[k].layer->name, "unet.")] = true;
        if (merged)
            lora_merge(l, scale);
        else
            lora_attach(l, scale);
        note_verbose("%s: %d layers, scale %g", path, l->count, (double)scale);
    }
    return few;
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
    refuse_inside(out, model);

    Model *m = model_load(model, NULL, NEED_TEXT | NEED_UNET);
    bool changed[ADAPTED] = {false, false};
    FewSteps few = add_loras(m, specs, true, changed);
    copy_folder(model, out, (const char *const[]){"model_index.json", "text_encoder", "unet", NULL});
    for (int k = 0; k < ADAPTED; k++) {
        const Network *n = &networks[k];
        const char *from = format("%s/%s", model, n->name);
        if (!changed[k]) copy_folder(from, path_inside(out, n->name), NULL);
        if (!changed[k]) continue;
        copy_file(format("%s/config.json", from), path_inside(out, format("%s/config.json", n->name)));
        Params part = params_part(&m->params, n->prefix);
        network_write(n, &m->params, out, type < 0 ? part.list[0].tensor->type : (Type)type);
    }
    const char *index = format("%s/model_index.json", model);
    if (few.scheduler >= 0) { // a merged LCM-LoRA draws as an LCM does
        Configs c = few_steps_configs(m, few, lcm_defaults);
        write_text_file(out, "scheduler/scheduler_config.json", c.scheduler);
        write_text_file(out, "model_index.json", c.index);
    } else if (file_exists(index))
        copy_file(index, path_inside(out, "model_index.json")); // last: it makes the folder a model
    if (json)
        printf("{\"loras\": %d, \"output\": %s, \"seconds\": %.3f}\n", specs.count, json_quote(out),
               seconds() - started);
    return 0;
}

// ---- convert ----------------------------------------------------------------------------------------------

// The layers that a file may be for: the model's, or the tiny model's, or Stable Diffusion v1.5's.
static Model *layers_for(const char *file, const char *model) {
    if (model) return model_declared(model, NULL);
    Model *tiny = model_declared(NULL, architecture("tiny"));
    if (lora_fits(&tiny->params, file)) return tiny;
    model_free(tiny);
    return model_declared(NULL, architecture("sd15"));
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
    Model *m = layers_for(in, model);
    Lora *l = lora_load(&m->params, in);
    Store *s = store_open(in);
    if (to < 0) to = starts_with(store_at(s, 0)->name, "lora_") ? LORA_PEFT : LORA_KOHYA;
    if (to > LORA_KOHYA) to = LORA_PEFT;
    for (size_t i = 0; type < 0 && i < store_count(s); i++)
        if (store_at(s, i)->ndim >= 2) type = (int)store_at(s, i)->type;
    lora_save(l, out, (LoraFormat)to, (Type)type);
    if (json)
        printf("{\"layers\": %d, \"format\": \"%s\", \"output\": %s}\n", l->count,
               to == LORA_KOHYA ? "kohya" : "peft", json_quote(out));
    return 0;
}

// ---- sd lora ----------------------------------------------------------------------------------------------

int command_lora(int argc, char **argv) {
    static int (*const commands[])(int argc, char **argv) = {command_lora_finetune, command_lora_distill,
                                                             command_merge, command_convert};
    const char *name = argc > 1 ? argv[1] : "";
    if (strcmp(name, "--help") && strcmp(name, "-h")) {
        int which = choice("sd lora has no sub-command", name, "finetune|distill|merge|convert");
        return which > 1 && ranks_mine() ? 0 : commands[which](argc - 1, argv + 1); // ranks share trainings
    }
    puts("usage: sd lora COMMAND [options]\n\n"
         "  finetune   adapters learn the look of captioned pictures\n"
         "  distill    adapters learn to draw in 4 steps\n"
         "  merge      adapters into a model's weights\n"
         "  convert    between the formats of LoRA files\n\n"
         "sd lora COMMAND --help says more.");
    return 0;
}
