// lora_names.c: how LoRA files call their tensors. What to do with them is in ../../lora.c.
//
// A file holds, for each layer, `down` (rank, in) and `up` (out, rank), in one of these spellings:
//   PEFT, diffusers today   unet.down_blocks.0.attentions.0. ... .to_q.lora_A.weight, .lora_B.weight
//   diffusers before PEFT   ... .to_q.lora.down.weight, .lora.up.weight; ... .processor.to_q_lora.down.weight
//   its text encoder        text_encoder.text_model. ... .q_proj.lora_linear_layer.down.weight
//   kohya                   lora_unet_down_blocks_0_attentions_0_ ... _to_q.lora_down.weight,
//                           .lora_up.weight, .alpha; so are the keys of lcm-lora-sdv1-5
// kohya's spelling cannot tell a dot from an underscore, so layers are compared by "flat" names, which have
// underscores only. One comparison then serves all spellings.
#include "io.h"

#include <stdlib.h>
#include <string.h>

#define COUNT(table) (sizeof(table) / sizeof *(table))

static const struct {
    LoraRole role;
    const char *endings[6]; // up to a NULL
} roles[] = {{LORA_DOWN,
              {".lora_A.weight", ".lora_down.weight", ".lora.down.weight", "_lora.down.weight",
               ".lora_linear_layer.down.weight"}},
             {LORA_UP,
              {".lora_B.weight", ".lora_up.weight", ".lora.up.weight", "_lora.up.weight",
               ".lora_linear_layer.up.weight"}},
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

// Relatives of LoRA that need other arithmetic, and other models' files.
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
               {"a LoRA on norms", {"w_norm"}},
               {"a LoRA for SDXL", {"lora_te1_", "lora_te2_", "text_encoder_2.", "add_embedding"}},
               {"a LoRA for SDXL (or in the original code's names)",
                {"lora_unet_input_blocks", "lora_unet_output_blocks", "lora_unet_middle_block"}},
               {"a LoRA for a diffusion transformer (SD 3, Flux)", {"transformer.", "double_blocks"}}};

const char *lora_foreign(const char *key) {
    for (size_t i = 0; i < COUNT(foreign); i++)
        for (const char *const *part = foreign[i].parts; *part; part++)
            if (strstr(key, *part)) return foreign[i].what;
    return NULL;
}

// Replaces the first `from` in `text` (room for 512 bytes) by `to`, if it is there.
static void replace(char *text, const char *from, const char *to) {
    char *at = strstr(text, from), rest[512];
    if (!at) return;
    snprintf(rest, sizeof rest, "%s", at + strlen(from));
    snprintf(at, 512 - (size_t)(at - text), "%s%s", to, rest);
}

static void replace_front(char *text, const char *from, const char *to) {
    if (starts_with(text, from)) replace(text, from, to);
}

// "lora_unet_down_blocks_0_...", "unet.down_blocks.0...." -> "unet_down_blocks_0_..."
static void flatten(char flat[512], const char *name, size_t length) {
    snprintf(flat, 512, "%.*s", (int)(length < 400 ? length : 400), name);
    replace_front(flat, "base_model.model.", ""); // PEFT's own save_pretrained
    replace(flat, ".processor.", ".");
    for (char *c = flat; *c; c++)
        if (*c == '.') *c = '_';
    replace_front(flat, "lora_te_", "text_encoder_");
    replace_front(flat, "lora_unet_", "unet_");
    if (starts_with(flat, "text_encoder_")) {
        static const char *const old[][2] = {
            {"_to_q", "_q_proj"}, {"_to_k", "_k_proj"}, {"_to_v", "_v_proj"}, {"_to_out", "_out_proj"}};
        for (size_t i = 0; i < COUNT(old); i++) replace(flat, old[i][0], old[i][1]);
        replace_front(flat, "text_encoder_encoder_", "text_encoder_text_model_encoder_"); // transformers 5
    }
    if (ends_with(flat, "_to_out")) strcat(flat, "_0");
}

char *lora_flat_name(const char *layer) {
    char flat[512];
    flatten(flat, layer, strlen(layer));
    return xstrdup(flat);
}

int lora_find_layer(const char *key, size_t layer_length, char *const *flats, int count) {
    static const char *const networks[] = {"", "unet_", "text_encoder_", "text_encoder_text_model_"};
    char flat[512], full[600];
    flatten(flat, key, layer_length);
    for (size_t k = 0; k < COUNT(networks); k++) { // files of one network leave its name out
        snprintf(full, sizeof full, "%s%s", networks[k], flat);
        for (int i = 0; i < count; i++)
            if (!strcmp(full, flats[i])) return i;
    }
    return -1;
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
