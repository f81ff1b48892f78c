// ldm_names.c: what diffusers' tensors are called in a file of the original code (CompVis/stable-diffusion,
// built on "latent diffusion models"). Names follow from names by rule. One direction is enough: to load, the
// name of a parameter is looked up under its original; to write, it is replaced.
#include "io.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *diffusers, *original;
} Renaming;

// The first row that fits the front of a name counts. i and j stand for the name's numbers.
//
// The original numbers the UNet's blocks through. input_blocks.0 is conv_in; then each level takes three
// numbers: two ResNets, with their transformers as second members, and a downsampler. The VAE's decoder
// counts its four levels from the finest, diffusers from the coarsest.
#define UNET "model.diffusion_model."
#define VAE "first_stage_model."
static const Renaming rules[] = {
    {"unet.conv_in.", UNET "input_blocks.0.0."},
    {"unet.time_embedding.linear_1.", UNET "time_embed.0."},
    {"unet.time_embedding.linear_2.", UNET "time_embed.2."},
    {"unet.time_embedding.cond_proj.", UNET "time_embed.cond_proj."},
    {"unet.down_blocks.{i}.resnets.{j}.", UNET "input_blocks.{3i+j+1}.0."},
    {"unet.down_blocks.{i}.attentions.{j}.", UNET "input_blocks.{3i+j+1}.1."},
    {"unet.down_blocks.{i}.downsamplers.0.conv.", UNET "input_blocks.{3i+3}.0.op."},
    {"unet.mid_block.resnets.{i}.", UNET "middle_block.{2i}."},
    {"unet.mid_block.attentions.0.", UNET "middle_block.1."},
    {"unet.up_blocks.{i}.resnets.{j}.", UNET "output_blocks.{3i+j}.0."},
    {"unet.up_blocks.{i}.attentions.{j}.", UNET "output_blocks.{3i+j}.1."},
    {"unet.up_blocks.0.upsamplers.0.conv.", UNET "output_blocks.2.1.conv."}, // this level has no transformers
    {"unet.up_blocks.{i}.upsamplers.0.conv.", UNET "output_blocks.{3i+2}.2.conv."},
    {"unet.conv_norm_out.", UNET "out.0."},
    {"unet.conv_out.", UNET "out.2."},
    {"vae.encoder.down_blocks.{i}.resnets.{j}.", VAE "encoder.down.{i}.block.{j}."},
    {"vae.encoder.down_blocks.{i}.downsamplers.0.", VAE "encoder.down.{i}.downsample."},
    {"vae.encoder.mid_block.resnets.{i}.", VAE "encoder.mid.block_{i+1}."},
    {"vae.encoder.mid_block.attentions.{i}.", VAE "encoder.mid.attn_{i+1}."},
    {"vae.encoder.conv_norm_out.", VAE "encoder.norm_out."},
    {"vae.decoder.up_blocks.{i}.resnets.{j}.", VAE "decoder.up.{3-i}.block.{j}."},
    {"vae.decoder.up_blocks.{i}.upsamplers.0.", VAE "decoder.up.{3-i}.upsample."},
    {"vae.decoder.mid_block.resnets.{i}.", VAE "decoder.mid.block_{i+1}."},
    {"vae.decoder.mid_block.attentions.{i}.", VAE "decoder.mid.attn_{i+1}."},
    {"vae.decoder.conv_norm_out.", VAE "decoder.norm_out."},
    {"vae.", VAE},
    {"text_encoder.", "cond_stage_model.transformer."},
    {0}};

// What may follow: members of the UNet's ResNets; of the VAE's ResNets and attention.
static const Renaming unet_members[] = {{"norm1.", "in_layers.0."},
                                        {"conv1.", "in_layers.2."},
                                        {"time_emb_proj.", "emb_layers.1."},
                                        {"norm2.", "out_layers.0."},
                                        {"conv2.", "out_layers.3."},
                                        {"conv_shortcut.", "skip_connection."},
                                        {0}};
static const Renaming vae_members[] = {{"conv_shortcut.", "nin_shortcut."},
                                       {"group_norm.", "norm."},
                                       {"to_q.", "q."},
                                       {"to_k.", "k."},
                                       {"to_v.", "v."},
                                       {"to_out.0.", "proj_out."},
                                       {0}};

// The rest of a name behind `pattern`, or NULL where it does not begin so. The name's numbers go to ij.
static const char *match(const char *name, const char *pattern, int ij[2]) {
    while (*pattern) {
        if (*pattern != '{') {
            if (*name++ != *pattern++) return NULL;
            continue;
        }
        char *end;
        ij[pattern[1] - 'i'] = (int)strtol(name, &end, 10);
        if (end == name) return NULL;
        name = end, pattern += 3;
    }
    return name;
}

// The value of a sum like "{3i+j+1}"; *at moves behind it.
static int value(const char **at, const int ij[2]) {
    const char *c = *at;
    int sum = 0;
    while (*c++ != '}') { // over '{', '+' or '-'
        int term = c[-1] == '-' ? -1 : 1;
        for (; *c >= '0' && *c <= '9'; c++) term *= *c - '0';
        if (*c == 'i' || *c == 'j') term *= ij[*c++ - 'i'];
        sum += term;
    }
    *at = c;
    return sum;
}

static const Renaming *find(const Renaming *table, const char **name, int ij[2]) {
    for (; table->diffusers; table++) {
        const char *rest = match(*name, table->diffusers, ij);
        if (!rest) continue;
        *name = rest;
        return table;
    }
    return NULL;
}

bool ldm_name(const char *name, char *out, size_t room) {
    bool vae = !strncmp(name, "vae.", 4);
    int ij[2];
    const Renaming *front = find(rules, &name, ij);
    if (!front) return false;
    const Renaming *member = find(vae ? vae_members : unet_members, &name, ij);
    char text[256], *to = text;
    for (const char *c = front->original; *c;)
        if (*c == '{')
            to += sprintf(to, "%d", value(&c, ij));
        else
            *to++ = *c++;
    *to = 0;
    snprintf(out, room, "%s%s%s", text, member ? member->original : "", name);
    return true;
}
