// ldm_names.c: models in one file, with the names of the original code (CompVis/stable-diffusion): what the web's
// checkpoints look like. The names follow from diffusers' by rule; nothing but names and the 1x1 convolutions of the
// VAE's attention differs. One way is enough: to load, our names are looked up under theirs; to write, likewise.
#include "sd.h"
#include "architectures.h"
#include "ldm_names.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *ours, *theirs;
} Renaming;

static const Renaming resnet_names[] = {{"norm1", "in_layers.0"},
                                        {"conv1", "in_layers.2"},
                                        {"time_emb_proj", "emb_layers.1"},
                                        {"norm2", "out_layers.0"},
                                        {"conv2", "out_layers.3"},
                                        {"conv_shortcut", "skip_connection"},
                                        {0}};
static const Renaming vae_names[] = {{"conv_shortcut", "nin_shortcut"},
                                     {"group_norm", "norm"},
                                     {"to_q", "q"},
                                     {"to_k", "k"},
                                     {"to_v", "v"},
                                     {"to_out.0", "proj_out"},
                                     {0}};

// "conv1.weight" by the table -> "in_layers.2.weight"; what no row begins stays as it is.
static const char *rename_front(const char *rest, const Renaming *table, char buffer[256]) {
    for (; table->ours; table++) {
        size_t n = strlen(table->ours);
        if (strncmp(rest, table->ours, n) || rest[n] != '.') continue;
        snprintf(buffer, 256, "%s%s", table->theirs, rest + n);
        return buffer;
    }
    return rest;
}

// The original numbers the UNet's blocks through: input_blocks.0 is conv_in, then each level has its ResNets (with
// their transformers as the second member) and its downsampler; output_blocks likewise without a first.
static bool unet_name(const char *n, int layers, char *out, size_t room) {
    int i, j, at = 0;
    char buffer[256];
    const char *prefix = "model.diffusion_model";
    static const Renaming top[] = {{"conv_in", "input_blocks.0.0"},
                                   {"time_embedding.linear_1", "time_embed.0"},
                                   {"time_embedding.linear_2", "time_embed.2"},
                                   {"time_embedding.cond_proj", "time_embed.cond_proj"},
                                   {"conv_norm_out", "out.0"},
                                   {"conv_out", "out.2"},
                                   {0}};
    if (sscanf(n, "down_blocks.%d.resnets.%d.%n", &i, &j, &at) == 2 && at)
        snprintf(out, room, "%s.input_blocks.%d.0.%s", prefix, 1 + (layers + 1) * i + j,
                 rename_front(n + at, resnet_names, buffer));
    else if (sscanf(n, "down_blocks.%d.attentions.%d.%n", &i, &j, &at) == 2 && at)
        snprintf(out, room, "%s.input_blocks.%d.1.%s", prefix, 1 + (layers + 1) * i + j, n + at);
    else if (sscanf(n, "down_blocks.%d.downsamplers.0.conv.%n", &i, &at) == 1 && at)
        snprintf(out, room, "%s.input_blocks.%d.0.op.%s", prefix, (layers + 1) * (i + 1), n + at);
    else if (sscanf(n, "mid_block.resnets.%d.%n", &i, &at) == 1 && at)
        snprintf(out, room, "%s.middle_block.%d.%s", prefix, 2 * i,
                 rename_front(n + at, resnet_names, buffer));
    else if (sscanf(n, "mid_block.attentions.%d.%n", &i, &at) == 1 && at)
        snprintf(out, room, "%s.middle_block.1.%s", prefix, n + at);
    else if (sscanf(n, "up_blocks.%d.resnets.%d.%n", &i, &j, &at) == 2 && at)
        snprintf(out, room, "%s.output_blocks.%d.0.%s", prefix, (layers + 1) * i + j,
                 rename_front(n + at, resnet_names, buffer));
    else if (sscanf(n, "up_blocks.%d.attentions.%d.%n", &i, &j, &at) == 2 && at)
        snprintf(out, room, "%s.output_blocks.%d.1.%s", prefix, (layers + 1) * i + j, n + at);
    else if (sscanf(n, "up_blocks.%d.upsamplers.0.conv.%n", &i, &at) == 1 &&
             at) // the first level has no transformers
        snprintf(out, room, "%s.output_blocks.%d.%d.conv.%s", prefix, (layers + 1) * i + layers, i ? 2 : 1,
                 n + at);
    else {
        const char *renamed = rename_front(n, top, buffer);
        if (renamed == n) return false;
        snprintf(out, room, "%s.%s", prefix, renamed);
    }
    return true;
}

// The VAE's decoder counts its levels from the finest, diffusers from the coarsest.
static bool vae_name(const char *n, int levels, char *out, size_t room) {
    int i, j, at = 0;
    char buffer[256], half[16];
    const char *prefix = "first_stage_model";
    if (sscanf(n, "%15[a-z].%n", half, &at) == 1 && at &&
        (!strcmp(half, "encoder") || !strcmp(half, "decoder"))) {
        const char *rest = n + at;
        bool up = half[0] == 'd';
        at = 0;
        if (sscanf(rest, up ? "up_blocks.%d.resnets.%d.%n" : "down_blocks.%d.resnets.%d.%n", &i, &j, &at) ==
                2 &&
            at)
            snprintf(out, room, "%s.%s.%s.%d.block.%d.%s", prefix, half, up ? "up" : "down",
                     up ? levels - 1 - i : i, j, rename_front(rest + at, vae_names, buffer));
        else if (sscanf(rest,
                        up ? "up_blocks.%d.upsamplers.0.conv.%n" : "down_blocks.%d.downsamplers.0.conv.%n",
                        &i, &at) == 1 &&
                 at)
            snprintf(out, room, "%s.%s.%s.%d.%s.conv.%s", prefix, half, up ? "up" : "down",
                     up ? levels - 1 - i : i, up ? "upsample" : "downsample", rest + at);
        else if (sscanf(rest, "mid_block.resnets.%d.%n", &i, &at) == 1 && at)
            snprintf(out, room, "%s.%s.mid.block_%d.%s", prefix, half, i + 1,
                     rename_front(rest + at, vae_names, buffer));
        else if (sscanf(rest, "mid_block.attentions.%d.%n", &i, &at) == 1 && at)
            snprintf(out, room, "%s.%s.mid.attn_%d.%s", prefix, half, i + 1,
                     rename_front(rest + at, vae_names, buffer));
        else {
            static const Renaming top[] = {{"conv_norm_out", "norm_out"}, {0}};
            snprintf(out, room, "%s.%s.%s", prefix, half, rename_front(rest, top, buffer));
        }
        return true;
    }
    snprintf(out, room, "%s.%s", prefix, n); // quant_conv, post_quant_conv
    return true;
}

bool ldm_name(const char *name, int unet_layers, int vae_levels, char *out, size_t room) {
    if (!strncmp(name, "unet.", 5)) return unet_name(name + 5, unet_layers, out, room);
    if (!strncmp(name, "vae.", 4)) return vae_name(name + 4, vae_levels, out, room);
    if (strncmp(name, "text_encoder.", 13)) return false;
    snprintf(out, room, "cond_stage_model.transformer.%s", name + 13);
    return true;
}

typedef struct {
    const Store *store;
    const char *path;
} LdmFile;

static const Stored *find_ldm(void *context, const char *name) {
    const LdmFile *file = context;
    char theirs[512];
    if (!ldm_name(name, 2, 4, theirs, sizeof theirs)) return NULL;
    const Stored *t = store_find(file->store, theirs);
    if (!t) die("%s: tensor %s is missing (%s of diffusers)", file->path, theirs, name);
    return t;
}

static Json *config(const char *text) {
    return json_parse(text, strlen(text), "the configuration of Stable Diffusion v1.5");
}

// A single file carries no configuration: it is Stable Diffusion v1's, which the shapes then confirm.
Model *model_load_ldm(const char *path, const char *tokenizer, ModelParts parts) {
    const char *ending = strrchr(path, '.');
    if (ending && (!strcmp(ending, ".ckpt") || !strcmp(ending, ".bin") || !strcmp(ending, ".pt") ||
                   !strcmp(ending, ".pth")))
        die("%s is a pickle, which can run code; convert it: see \"Model files\" in README.md", path);
    Store *s = store_open(path);
    if (!store_find(s, "model.diffusion_model.input_blocks.0.0.weight"))
        die("%s is no Stable Diffusion checkpoint: tensor model.diffusion_model.input_blocks.0.0.weight is "
            "missing",
            path);
    const Stored *context =
        store_find(s, "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight");
    if (context && context->ndim == 2 && context->shape[1] != 768)
        die("%s is of another version of Stable Diffusion: its text states have %lld numbers, version 1's "
            "768",
            path, (long long)context->shape[1]);
    bool guidance = store_find(s, "model.diffusion_model.time_embed.cond_proj.weight");
    const Architecture *a = architecture(guidance ? "sd15-lcm" : "sd15");
    Model *m = xcalloc(1, sizeof *m);
    m->path = xstrdup(path);
    m->scheduler_json = config(a->scheduler);
    Json *j = config(a->text_encoder);
    m->text_config = text_config(j);
    json_free(j), j = config(a->unet);
    m->unet_config = unet_config(j);
    json_free(j), j = config(a->vae);
    m->vae_config = vae_config(j);
    json_free(j);
    if (parts & NEED_TEXT) m->text_encoder = text_encoder_new(m->text_config, &m->params);
    if (parts & NEED_UNET) m->unet = unet_new(m->unet_config, &m->params);
    if (parts & NEED_VAE) m->vae = vae_new(m->vae_config, &m->params);
    LdmFile file = {s, path};
    params_load(&m->params, find_ldm, &file, path);
    if (parts == NEED_ALL) params_note_extra(&m->params, find_ldm, &file, s, path);
    store_close(s);
    if (parts & NEED_TOKENIZER) {
        if (!tokenizer)
            die("%s holds no tokenizer; name a folder with vocab.json and merges.txt by --tokenizer DIR",
                path);
        m->tokenizer = tokenizer_open(tokenizer);
        check_vocabulary(m);
    }
    return m;
}
