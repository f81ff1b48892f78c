// lora_names.c: how LoRA files call their tensors. What to do with them is in ../../lora.c.
//
// A file holds, for each layer, `down` (rank, in) and `up` (out, rank), under names that end so:
//   PEFT, diffusers today   unet.down_blocks.0.attentions.0. ... .to_q.lora_A.weight, .lora_B.weight
//   diffusers before PEFT   ... .to_q.lora.down.weight, .lora.up.weight; ... .processor.to_q_lora.down.weight
//   its text encoder        text_encoder.text_model. ... .q_proj.lora_linear_layer.down.weight
//   kohya                   lora_unet_down_blocks_0_attentions_0_ ... _to_q.lora_down.weight,
//                           .lora_up.weight, .alpha; so are the keys of lcm-lora-sdv1-5
// What stands before is any spelling of names.c. kohya's has underscores for dots. So layers are compared by
// "flat" names, which have underscores only.
#include "io.h"

#include <stdlib.h>
#include <string.h>

#define COUNT(table) (sizeof(table) / sizeof *(table))

static const struct {
    LoraRole role;
    const char *endings[7]; // up to a NULL
} roles[] = {{LORA_DOWN,
              {".lora_A.weight", ".lora_down.weight", ".lora.down.weight", "_lora.down.weight",
               ".lora_linear_layer.down.weight", ".lora_A.default.weight"}},
             {LORA_UP,
              {".lora_B.weight", ".lora_up.weight", ".lora.up.weight", "_lora.up.weight",
               ".lora_linear_layer.up.weight", ".lora_B.default.weight"}},
             {LORA_ALPHA, {".alpha"}}};

LoraRole lora_role(const char *key, size_t *layer_length) {
    for (size_t i = 0; i < COUNT(roles); i++)
        for (const char *const *ending = roles[i].endings; *ending; ending++)
            if (ends_with(key, *ending)) {
                *layer_length = strlen(key) - strlen(*ending);
                return roles[i].role;
            }
    return LORA_NO_ROLE;
}

// Relatives of LoRA that need other arithmetic.
static const struct {
    const char *what, *parts[5]; // up to a NULL
} foreign[] = {{"a LoHa (Hadamard products)", {"hada_w", "hada_t"}},
               {"a LoKr (Kronecker products)", {"lokr_"}},
               {"a DoRA (magnitudes)", {"dora_scale", "lora_magnitude_vector"}},
               {"a LoRA with Tucker-decomposed convolutions", {"lora_mid"}},
               {"an OFT (orthogonal matrices)", {"oft_"}},
               {"an IA3", {"on_input"}},
               {"a whole model, not a LoRA", {"model.diffusion_model."}},
               {"a file of whole weight differences", {".diff"}},
               {"a LoRA with biases", {"lora_B.bias"}},
               {"a LoRA on embeddings", {"lora_embedding"}},
               {"a LoRA on norms", {"w_norm"}}};

const char *lora_foreign(const char *key) {
    for (size_t i = 0; i < COUNT(foreign); i++)
        for (const char *const *part = foreign[i].parts; *part; part++)
            if (strstr(key, *part)) return foreign[i].what;
    return NULL;
}

// "lora_unet_down_blocks_0_...", "unet.down_blocks.0.... .processor.to_q" -> the same with underscores only
static void flatten(char flat[512], const char *name, size_t length) {
    static const char peft[] = "base_model.model.", processor[] = ".processor."; // PEFT's own files; old ones
    size_t n = 0, skip = starts_with(name, peft) ? strlen(peft) : 0;
    for (size_t i = skip; i < length && n < 500; i++) {
        if (starts_with(name + i, processor)) i += strlen(processor) - 1;
        flat[n++] = name[i] == '.' ? '_' : name[i];
    }
    flat[n] = 0;
    if (ends_with(flat, "_to_out")) strcat(flat, "_0");
}

void lora_names_add(Names *names, const char *layer, int number) {
    char *weight = format("%s.weight", layer), spelling[512], flat[512]; // a parameter's name
    for (int i = 0; name_spelling(weight, i, spelling, sizeof spelling); i++) {
        flatten(flat, spelling, strlen(spelling) - strlen(".weight"));
        if (names_get(names, flat, strlen(flat)) < 0) names_set(names, flat, strlen(flat), number);
    }
    free(weight);
}

int lora_find_layer(const Names *names, const char *key, size_t layer_length) {
    char flat[512];
    flatten(flat, key, layer_length);
    return names_get(names, flat, strlen(flat));
}

char *lora_key(const char *layer, LoraRole role, LoraFormat f) {
    if (f == LORA_PEFT) return format("%s.%s", layer, role == LORA_DOWN ? "lora_A.weight" : "lora_B.weight");
    static const char *const members[] = {
        [LORA_DOWN] = "lora_down.weight", [LORA_UP] = "lora_up.weight", [LORA_ALPHA] = "alpha"};
    char *name = xstrdup(strchr(layer, '.') + 1);
    for (char *c = name; *c; c++)
        if (*c == '.') *c = '_';
    char *key = format("%s%s.%s", starts_with(layer, "text_encoder.") ? "lora_te_" : "lora_unet_", name,
                       members[role]);
    free(name);
    return key;
}
