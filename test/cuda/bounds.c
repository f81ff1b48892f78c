// bounds.c: a picture and an LCM training step of Stable Diffusion v1.5 at full size, for the emulator to
// count with EMU_SAMPLE: parameters have addresses and no values, of each launch a few blocks run. See
// report.sh.
#define _POSIX_C_SOURCE 200809L // setenv
#include "cli/model_folder.h"
#include "lib/nn/dry.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void emu_section(const char *name); // the launches that follow belong to it

static size_t stored;
static void *(*dry_temp)(size_t bytes);
static void *counted(size_t bytes) { return stored += bytes, dry_temp(bytes); }
static void three(const Mem *y, Mem x, const Mem *w, int m, int n, int k) {}
static void gated(Mem y, Mem x, Mem w, Mem bias, int m, int n, int k) {}
static void with_vector(Mem y, Mem x, Mem weight, Mem bias, Mem v, Conv p) {}

static void pass(const Model *m, Tensor *context) {
    int side = m->unet_config.sample_size;
    Scope s = scope_begin();
    unet(m->unet, tensor_new(SHAPE(2, side, side, 4)), (float[]){999, 999}, context, (float[]){0, 0});
    scope_end(s, NULL);
}

// What a pass must move: every weight once, every tensor of the network written once and read once.
static double compulsory(const Model *m, Tensor *context) {
    double weights = 0;
    for (int i = 0; i < m->params.count; i++)
        if (!strncmp(m->params.list[i].name, "unet.", 5))
            weights += (double)tensor_count(m->params.list[i].tensor) * (backend.storage == F32 ? 4 : 2);
    bool fuses = backend.gemm_three != NULL;
    dry_begin(false);
    if (fuses) backend.gemm_three = three, backend.gemm_geglu = gated, backend.conv2d_vector = with_vector;
    dry_temp = backend.temp, backend.temp = counted;
    pass(m, context);
    dry_end();
    return weights + 2 * (double)stored;
}

static void lcm_step(const Model *m) {
    emu_section("-");
    int side = m->unet_config.sample_size, tokens = m->text_config.max_position_embeddings;
    Params params = {0};
    UNet *student = lcm_student(m, m->unet_config, &params);
    for (int i = 0; i < params.count; i++) param_trainable(params.list[i].tensor);
    const Params *learnt = &params;
    Optimiser *o = optimiser_new(
        (OptimiserConfig){.rate = 1e-5f, .beta1 = 0.9f, .beta2 = 0.999f, .max_norm = 1}, 0.95f, &learnt, 1);
    Lcm l;
    lcm_init(&l, lcm_defaults, scheduler_config(m->scheduler_json, LCM), m->unet, student, student);
    LcmBatch b = {.n = 1, .index = (int[]){5}, .w = (float[]){7}};
    b.z = tensor_new(SHAPE(1, side, side, 4)), b.noise = tensor_new(SHAPE(1, side, side, 4));
    b.no_text = b.text = tensor_new(SHAPE(1, tokens, m->text_config.hidden_size));
    emu_section("an LCM training step, one picture");
    Scope s = scope_begin();
    tape_begin();
    backward(lcm_loss(&l, &b));
    tape_end();
    optimiser_step(o);
    scope_end(s, NULL);
}

int main(void) {
    setenv("EMU_MEMORY", "60000", 0);
    backend_init(0);
    Model *m = model_declared(NULL, architecture("sd15"));
    for (int i = 0; i < m->params.count; i++) param_allocate(m->params.list[i].tensor, backend.storage);
    int side = m->unet_config.sample_size, tokens = m->text_config.max_position_embeddings;
    Scope s = scope_begin();
    emu_section("the captions, once a picture");
    Tensor *context = text_encode(m->text_encoder, scope_ints(2 * tokens), 2);
    constant_begin(context);
    emu_section("the first guided step");
    pass(m, context);
    char name[100];
    snprintf(name, sizeof name, "a guided step, compulsory %.0f", compulsory(m, context));
    emu_section(name);
    pass(m, context);
    constant_end();
    emu_section("the VAE");
    vae_decode(m->vae, tensor_new(SHAPE(1, side, side, 4)));
    scope_end(s, NULL);
    s = scope_begin();
    lcm_step(m);
    scope_end(s, NULL);
    return 0;
}
