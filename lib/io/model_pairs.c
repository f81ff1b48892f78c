// model_pairs.c: a captioned data set as a model sees it: its tokens, and its VAE's latents. Joins pairs.h, which knows
// no model, to sd.h.
#include "sd.h"

static float *encode(void *vae, const Image *const *images, int n) {
    Scope s = scope_begin();
    float *moments = tensor_read(vae_encode(vae, image_to_tensor(images, n)));
    scope_end(s, NULL);
    return moments;
}

Pairs *model_pairs(const Model *m, const char *data, const char *cache) {
    Params vae = params_part(&m->params, "vae.");
    int side = m->unet_config.sample_size;
    PairsModel how = {.tokenizer = m->tokenizer,
                      .tokens = m->text_config.max_position_embeddings,
                      .size = 8 * side,
                      .side = side,
                      .channels = m->vae_config.latent_channels,
                      .scale = m->vae_config.scaling_factor,
                      .encoder = params_key(&vae),
                      .context = m->vae,
                      .encode = encode};
    return pairs_open(data, cache, &how);
}
