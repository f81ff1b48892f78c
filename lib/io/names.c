// names.c: every spelling of a parameter's name that files use. In here it has diffusers' name with the
// network in front, "unet.conv_in.weight". A file has another front for the network ("lora_unet."), and
// behind it diffusers' names of today, older ones, or those of the original code (CompVis/stable-diffusion,
// built on "latent diffusion models"). Names follow from names by rule. One direction is enough: to load, a
// parameter is looked up under its spellings; to write, its name is replaced.
#include "io.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *diffusers, *other;
} Renaming;

// The first row that fits the front of a name counts. i and j stand for the name's numbers.
//
// The original numbers the UNet's blocks through. input_blocks.0 is conv_in; then each level takes three
// numbers: two ResNets, with their transformers as second members, and a downsampler. The VAE's decoder
// counts its four levels from the finest, diffusers from the coarsest.
static const Renaming unet_blocks[] = {
    {"conv_in.", "input_blocks.0.0."},
    {"time_embedding.linear_1.", "time_embed.0."},
    {"time_embedding.linear_2.", "time_embed.2."},
    {"time_embedding.cond_proj.", "time_embed.cond_proj."},
    {"down_blocks.{i}.resnets.{j}.", "input_blocks.{3i+j+1}.0."},
    {"down_blocks.{i}.attentions.{j}.", "input_blocks.{3i+j+1}.1."},
    {"down_blocks.{i}.downsamplers.0.conv.", "input_blocks.{3i+3}.0.op."},
    {"mid_block.resnets.{i}.", "middle_block.{2i}."},
    {"mid_block.attentions.0.", "middle_block.1."},
    {"up_blocks.{i}.resnets.{j}.", "output_blocks.{3i+j}.0."},
    {"up_blocks.{i}.attentions.{j}.", "output_blocks.{3i+j}.1."},
    {"up_blocks.0.upsamplers.0.conv.", "output_blocks.2.1.conv."}, // this level has no transformers
    {"up_blocks.{i}.upsamplers.0.conv.", "output_blocks.{3i+2}.2.conv."},
    {"conv_norm_out.", "out.0."},
    {"conv_out.", "out.2."},
    {0}};
static const Renaming vae_blocks[] = {
    {"encoder.down_blocks.{i}.resnets.{j}.", "encoder.down.{i}.block.{j}."},
    {"encoder.down_blocks.{i}.downsamplers.0.", "encoder.down.{i}.downsample."},
    {"encoder.mid_block.resnets.{i}.", "encoder.mid.block_{i+1}."},
    {"encoder.mid_block.attentions.{i}.", "encoder.mid.attn_{i+1}."},
    {"encoder.conv_norm_out.", "encoder.norm_out."},
    {"decoder.up_blocks.{i}.resnets.{j}.", "decoder.up.{3-i}.block.{j}."},
    {"decoder.up_blocks.{i}.upsamplers.0.", "decoder.up.{3-i}.upsample."},
    {"decoder.mid_block.resnets.{i}.", "decoder.mid.block_{i+1}."},
    {"decoder.mid_block.attentions.{i}.", "decoder.mid.attn_{i+1}."},
    {"decoder.conv_norm_out.", "decoder.norm_out."},
    {0}};
static const Renaming vae_attention[] = {
    {"encoder.mid_block.attentions.{i}.", "encoder.mid_block.attentions.{i}."},
    {"decoder.mid_block.attentions.{i}.", "decoder.mid_block.attentions.{i}."},
    {0}};
static const Renaming text_attention[] = {
    {"text_model.encoder.layers.{i}.self_attn.", "text_model.encoder.layers.{i}.self_attn."}, {0}};
static const Renaming as_today[] = {{0}}; // as diffusers has them
static const Renaming no_text_model[] = {{"text_model.", ""}, {0}};

// What may follow.
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
static const Renaming vae_members_2023[] = {
    {"conv_shortcut.", "nin_shortcut."}, {"group_norm.", "norm."}, {0}};
static const Renaming old_vae_attention[] = {
    {"to_q.", "query."}, {"to_k.", "key."}, {"to_v.", "value."}, {"to_out.0.", "proj_attn."}, {0}};
static const Renaming old_text_attention[] = {
    {"q_proj.", "to_q."}, {"k_proj.", "to_k."}, {"v_proj.", "to_v."}, {"out_proj.", "to_out."}, {0}};

// Each front of a network goes with each of its styles. The first of both are the original code's. Files of
// one network leave its name out.
static const struct {
    const char *network, *fronts[9]; // up to a NULL
    struct {
        const Renaming *blocks, *members;
    } styles[5]; // up to one without blocks
} networks[] = {
    {"unet.",
     {"model.diffusion_model.", "", "unet.", "lora_unet.", "diffusion_model."}, // the last is ComfyUI's
     {{unet_blocks, unet_members}, {as_today, NULL}}},
    {"vae.",
     {"first_stage_model.", "", "vae."},
     {{vae_blocks, vae_members},
      {vae_blocks, vae_members_2023},     // diffusers' converter of that year kept to_q, to_k, to_v, to_out.0
      {vae_attention, old_vae_attention}, // before diffusers 0.18
      {as_today, NULL}}},
    {"text_encoder.",
     {"cond_stage_model.transformer.", "", "text_encoder.", "lora_te.", "lora_te1.", "clip_l.",
      "text_encoders.clip_l.transformer.", "conditioner.embedders.0.transformer."},
     {{as_today, NULL},
      {no_text_model, NULL}, // transformers 5, and flattened single files
      {text_attention, old_text_attention}}}};

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
    for (; table && table->diffusers; table++) {
        const char *rest = match(*name, table->diffusers, ij);
        if (!rest) continue;
        *name = rest;
        return table;
    }
    return NULL;
}

bool name_spelling(const char *name, int number, char *out, size_t room) {
    size_t k = 0;
    while (k < sizeof networks / sizeof *networks && !starts_with(name, networks[k].network)) k++;
    if (k == sizeof networks / sizeof *networks) return false;
    int styles = 0, fronts = 0, ij[2];
    while (networks[k].styles[styles].blocks) styles++;
    while (networks[k].fronts[fronts]) fronts++;
    int style = number % styles, front = number / styles;
    if (front >= fronts) return false;
    name += strlen(networks[k].network);
    const Renaming *block = find(networks[k].styles[style].blocks, &name, ij);
    const Renaming *member = find(networks[k].styles[style].members, &name, (int[2]){0, 0});
    char text[256] = "", *to = text;
    for (const char *c = block ? block->other : ""; *c;)
        if (*c == '{')
            to += sprintf(to, "%d", value(&c, ij));
        else
            *to++ = *c++;
    *to = 0;
    snprintf(out, room, "%s%s%s%s", networks[k].fronts[front], text, member ? member->other : "", name);
    return true;
}
