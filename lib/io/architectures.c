// architectures.c: Stable Diffusion v1.5 as its published config.json files have it, the same with a guidance
// embedding (a full LCM), and the tiny model. See architectures.h.
#include "architectures.h"
#include "lib/base.h"

#include <stdlib.h>
#include <string.h>

#define PIPELINE(scheduler, defaults)                                                                        \
    "{\n  \"_class_name\": \"StableDiffusionPipeline\",\n  \"_diffusers_version\": \"0.30.0\",\n"            \
    "  \"feature_extractor\": [null, null],\n  \"image_encoder\": [null, null],\n"                           \
    "  \"requires_safety_checker\": false,\n  \"safety_checker\": [null, null],\n"                           \
    "  \"scheduler\": [\"diffusers\", \"" scheduler "\"],\n" defaults                                        \
    "  \"text_encoder\": [\"transformers\", \"CLIPTextModel\"],\n"                                           \
    "  \"tokenizer\": [\"transformers\", \"CLIPTokenizer\"],\n"                                              \
    "  \"unet\": [\"diffusers\", \"UNet2DConditionModel\"],\n  \"vae\": [\"diffusers\", "                    \
    "\"AutoencoderKL\"]\n}\n"

// The noise schedule is one; what differs is the class.
#define SCHEDULER(class)                                                                                     \
    "{\n  \"_class_name\": \"" class "\",\n  \"beta_end\": 0.012,\n  \"beta_schedule\": "                    \
                                     "\"scaled_linear\",\n"                                                  \
                                     "  \"beta_start\": 0.00085,\n  \"clip_sample\": false,\n  "             \
                                     "\"num_train_timesteps\": 1000,\n"                                      \
                                     "  \"prediction_type\": \"epsilon\",\n  \"set_alpha_to_one\": "         \
                                     "false,\n  \"skip_prk_steps\": true,\n"                                 \
                                     "  \"steps_offset\": 1,\n  \"timestep_spacing\": \"leading\",\n  "      \
                                     "\"trained_betas\": null\n}\n"

#define TEXT(vocab, width, layers, heads, inner, tokens, bos, eos)                                           \
    "{\n  \"architectures\": [\"CLIPTextModel\"],\n  \"model_type\": \"clip_text_model\",\n"                 \
    "  \"vocab_size\": " vocab ",\n  \"hidden_size\": " width ",\n  \"num_hidden_layers\": " layers ",\n"    \
    "  \"num_attention_heads\": " heads ",\n  \"intermediate_size\": " inner                                 \
    ",\n  \"projection_dim\": " width ",\n"                                                                  \
    "  \"max_position_embeddings\": " tokens                                                                 \
    ",\n  \"hidden_act\": \"quick_gelu\",\n  \"layer_norm_eps\": 1e-05,\n"                                   \
    "  \"bos_token_id\": " bos ",\n  \"eos_token_id\": " eos ",\n  \"pad_token_id\": " eos "\n}\n"

#define UNET(channels, layers, heads, context, groups, size, guidance)                                       \
    "{\n  \"_class_name\": \"UNet2DConditionModel\",\n  \"act_fn\": \"silu\",\n  "                           \
    "\"attention_head_dim\": " heads ",\n"                                                                   \
    "  \"block_out_channels\": " channels ",\n  \"center_input_sample\": false,\n"                           \
    "  \"cross_attention_dim\": " context ",\n  \"down_block_types\": [\"CrossAttnDownBlock2D\",\n"          \
    "    \"CrossAttnDownBlock2D\", \"CrossAttnDownBlock2D\", \"DownBlock2D\"],\n  \"downsample_padding\": "  \
    "1,\n"                                                                                                   \
    "  \"flip_sin_to_cos\": true,\n  \"freq_shift\": 0,\n  \"in_channels\": 4,\n"                            \
    "  \"layers_per_block\": " layers ",\n  \"mid_block_scale_factor\": 1,\n  \"norm_eps\": 1e-05,\n"        \
    "  \"norm_num_groups\": " groups ",\n  \"out_channels\": 4,\n  \"sample_size\": " size ",\n"             \
    "  \"time_cond_proj_dim\": " guidance                                                                    \
    ",\n  \"up_block_types\": [\"UpBlock2D\", \"CrossAttnUpBlock2D\",\n"                                     \
    "    \"CrossAttnUpBlock2D\", \"CrossAttnUpBlock2D\"]\n}\n"

#define VAE(channels, layers, groups, size, scale)                                                           \
    "{\n  \"_class_name\": \"AutoencoderKL\",\n  \"act_fn\": \"silu\",\n  \"block_out_channels\": " channels \
    ",\n"                                                                                                    \
    "  \"down_block_types\": [\"DownEncoderBlock2D\", \"DownEncoderBlock2D\", \"DownEncoderBlock2D\",\n"     \
    "    \"DownEncoderBlock2D\"],\n  \"in_channels\": 3,\n  \"latent_channels\": 4,\n"                       \
    "  \"layers_per_block\": " layers ",\n  \"norm_num_groups\": " groups ",\n  \"out_channels\": 3,\n"      \
    "  \"sample_size\": " size ",\n  \"scaling_factor\": " scale                                             \
    ",\n  \"up_block_types\": [\"UpDecoderBlock2D\",\n"                                                      \
    "    \"UpDecoderBlock2D\", \"UpDecoderBlock2D\", \"UpDecoderBlock2D\"]\n}\n"

#define SD15_TEXT TEXT("49408", "768", "12", "12", "3072", "77", "49406", "49407")
#define SD15_UNET(guidance) UNET("[320, 640, 1280, 1280]", "2", "8", "768", "32", "64", guidance)
#define SD15_VAE VAE("[128, 256, 512, 512]", "2", "32", "512", "0.18215")
#define TINY_TEXT TEXT("768", "128", "4", "4", "512", "32", "766", "767")
#define TINY_UNET(guidance) UNET("[48, 96, 144, 144]", "1", "4", "128", "12", "16", guidance)
#define TINY_VAE                                                                                             \
    VAE("[16, 32, 64, 64]", "1", "4", "128", "1.0") // latents have unit spread: see weights/toy/pretrain.c

static const Architecture all[] = {
    {"sd15", SD15_TEXT, SD15_UNET("null"), SD15_VAE, SCHEDULER("PNDMScheduler"),
     PIPELINE("PNDMScheduler", "")},
    {"sd15-lcm", SD15_TEXT, SD15_UNET("256"), SD15_VAE, SCHEDULER("LCMScheduler"),
     PIPELINE("LCMScheduler", "")},
    {"tiny", TINY_TEXT, TINY_UNET("null"), TINY_VAE, SCHEDULER("DDIMScheduler"),
     PIPELINE("DDIMScheduler", "  \"sd_defaults\": {\"steps\": 25, \"guidance_scale\": 4},\n")},
    {"tiny-lcm", TINY_TEXT, TINY_UNET("256"), TINY_VAE, SCHEDULER("LCMScheduler"),
     PIPELINE("LCMScheduler", "")},
};

const Architecture *architecture(const char *name) {
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!strcmp(all[i].name, name)) return &all[i];
    return NULL;
}

static void write_text(const char *dir, const char *part, const char *file, const char *text) {
    char *folder = format("%s/%s", dir, part), *path = format("%s/%s", folder, file);
    make_directories(folder);
    Output *o = output_open(path);
    output_write(o, text, strlen(text));
    output_commit(o);
    free(path), free(folder);
}

void architecture_write(const Architecture *a, const char *dir) {
    write_text(dir, ".", "model_index.json", a->model_index);
    write_text(dir, "scheduler", "scheduler_config.json", a->scheduler);
    write_text(dir, "text_encoder", "config.json", a->text_encoder);
    write_text(dir, "unet", "config.json", a->unet);
    write_text(dir, "vae", "config.json", a->vae);
}
