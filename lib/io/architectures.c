// architectures.c: Stable Diffusion v1.5 as its published config.json files have it (sd15/*.json, which the
// Makefile makes C strings of), and what is different in the same model with a guidance embedding (a full
// LCM) and in the tiny model. See architectures.h.
#include "architectures.h"
#include "lib/base.h"
#include "sd15.inc"

#include <stdlib.h>
#include <string.h>

// "member: JSON value; member: JSON value; ..."
static const char tiny_text_encoder[] =
    "vocab_size: 768; hidden_size: 128; num_hidden_layers: 4; num_attention_heads: 4; "
    "intermediate_size: 512; projection_dim: 128; max_position_embeddings: 32; "
    "bos_token_id: 766; eos_token_id: 767; pad_token_id: 767";
static const char tiny_unet[] = "attention_head_dim: 4; block_out_channels: [48, 96, 144, 144]; "
                                "cross_attention_dim: 128; layers_per_block: 1; norm_num_groups: 12; "
                                "sample_size: 16";
// Its latents have unit variance: see weights/toy/pretrain.c.
static const char tiny_vae[] = "block_out_channels: [16, 32, 64, 64]; layers_per_block: 1; "
                               "norm_num_groups: 4; sample_size: 128; scaling_factor: 1.0";

// A JSON object's text, a member a line, with other values; a member that it lacks is added at the end.
static char *changed(const char *json, const char *changes) {
    char *text = xstrdup(json);
    for (const char *c = changes; *c; c += strspn(c, "; ")) {
        const char *value = strchr(c, ':') + 2;
        int length = (int)strcspn(value, ";");
        char *name = format("\"%.*s\": ", (int)(value - 2 - c), c), *at = strstr(text, name), *before = text;
        if (at) {
            at += strlen(name);
            size_t old = strcspn(at, "\n");
            if (at[old - 1] == ',') old--;
            text = format("%.*s%.*s%s", (int)(at - text), text, length, value, at + old);
        } else {
            text = format("%.*s,\n  %s%.*s\n}\n", (int)strlen(text) - 3, text, name, length, value);
        }
        c = value + length;
        free(before), free(name);
    }
    return text;
}

static void make(Architecture *a) {
    bool tiny = starts_with(a->name, "tiny"), lcm = ends_with(a->name, "-lcm");
    const char *class = lcm ? "LCMScheduler" : tiny ? "DDIMScheduler" : "PNDMScheduler";
    char *scheduler = format("_class_name: \"%s\"", class);
    char *index = format("scheduler: [\"diffusers\", \"%s\"]%s", class,
                         tiny && !lcm ? "; _sd_defaults: {\"steps\": 25, \"guidance_scale\": 4}" : "");
    char *unet = changed(unet_json, tiny ? tiny_unet : "");
    a->text_encoder = changed(text_encoder_json, tiny ? tiny_text_encoder : "");
    a->unet = changed(unet, lcm ? "time_cond_proj_dim: 256" : "");
    a->vae = changed(vae_json, tiny ? tiny_vae : "");
    a->scheduler = changed(scheduler_json, scheduler);
    a->model_index = changed(model_index_json, index);
    free(unet), free(scheduler), free(index);
}

const Architecture *architecture(const char *name) {
    static Architecture all[] = {
        {.name = "sd15"}, {.name = "sd15-lcm"}, {.name = "tiny"}, {.name = "tiny-lcm"}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (strcmp(all[i].name, name)) continue;
        if (!all[i].unet) make(&all[i]); // made when first asked for
        return &all[i];
    }
    return NULL;
}

void architecture_write(const Architecture *a, const char *dir) {
    write_text_file(dir, "scheduler/scheduler_config.json", a->scheduler);
    write_text_file(dir, "text_encoder/config.json", a->text_encoder);
    write_text_file(dir, "unet/config.json", a->unet);
    write_text_file(dir, "vae/config.json", a->vae);
    write_text_file(dir, "model_index.json", a->model_index); // last: it makes the folder a model
}
