// ldm_names.h: the names of the original code (CompVis/stable-diffusion) for diffusers' names.
#ifndef LDM_H
#define LDM_H

#include <stdbool.h>
#include <stddef.h>

// "unet.down_blocks.0.resnets.0.conv1.weight" -> "model.diffusion_model.input_blocks.1.0.in_layers.2.weight".
// unet_layers: the UNet's layers_per_block; vae_levels: the VAE's resolutions. False where there is no such name.
bool ldm_name(const char *name, int unet_layers, int vae_levels, char *out, size_t room);

#endif
