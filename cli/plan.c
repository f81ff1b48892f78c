// plan.c: a dry run (lib/nn/dry.h) of one training step: the very functions, with kernels that do nothing.
#include "plan.h"
#include "lib/nn/dry.h"
#include "model_folder.h"

#include <stdlib.h>
#include <string.h>

// One step of sd lcm or sd lora, of n pictures. What the batch holds does not matter: it is zeros.
static void step(const Plan *p, int n) {
    const Model *m = p->model;
    const UNetConfig *u = &m->unet_config;
    int side = u->sample_size, tokens = m->text_config.max_position_embeddings;
    int *ids = xcalloc((size_t)(n * tokens), sizeof *ids), *index = xcalloc((size_t)n, sizeof *index);
    float *w = xcalloc((size_t)n, sizeof *w);
    bool learns_text = false;
    for (int i = 0; p->lora && i < p->lora->count; i++)
        learns_text |= !strncmp(p->lora->parts[i].layer->name, "text_encoder.", 13);

    Params params = {0};
    UNet *copy = p->student ? lcm_student(m, *p->student, &params) : NULL;
    for (int i = 0; i < params.count; i++) param_trainable(params.list[i].tensor);
    const UNet *student = copy ? copy : p->adapted;
    Lcm l;
    lcm_init(&l, lcm_defaults, scheduler_config(m->scheduler_json, LCM), p->teacher ? p->teacher : m->unet,
             student, student);

    LcmBatch b = {.n = n, .index = index, .w = w};
    b.z = tensor_new(SHAPE(n, side, side, u->in_channels));
    b.noise = tensor_new(SHAPE(n, side, side, u->in_channels));
    if (!learns_text) b.text = text_encode(m->text_encoder, ids, n);
    if (!p->mimic) b.no_text = b.text;
    tape_begin();
    if (learns_text) b.text = text_encode(m->text_encoder, ids, n);
    if (!copy && !p->teacher)
        backward(lora_finetune_loss(&l.schedule, student, b.z, b.noise, b.text, index, 0));
    else if (p->mimic) {
        Tensor *mse, *kl;
        lora_mimic_losses(&l, &b, *p->mimic, &mse, &kl);
        backward(combine(1, mse, 1, kl));
    } else
        backward(lcm_loss(&l, &b));
    tape_end();

    lcm_free(&l);
    params_free(&params);
    free(copy), free(ids), free(index), free(w);
}

// Bytes of activations and their gradients at the peak of a step of n pictures.
static size_t activations(const Plan *p, int n, bool checkpoints) {
    bool was = checkpointing;
    checkpointing = checkpoints;
    dry_begin(false);
    Scope s = scope_begin();
    step(p, n);
    scope_end(s, NULL);
    checkpointing = was;
    return dry_end().scratch;
}

// Bytes of memory that this machine could give now; 0 where it does not say.
static size_t available_memory(void) {
    FILE *f = fopen("/proc/meminfo", "r");
    char line[256];
    unsigned long long kilobytes = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kilobytes) == 1) break;
    if (f) fclose(f);
    return (size_t)kilobytes * 1024;
}

double plan_weights(const Params *p) {
    double bytes = 0;
    for (int i = 0; i < p->count; i++)
        bytes += (double)tensor_count(p->list[i].tensor) * (p->list[i].tensor->type == F32 ? 4 : 2);
    return bytes;
}

double plan_run(const Plan *p) {
    double one = p->learnt * sizeof(float);
    // Weights, gradients, two moments, average, sums of shards' gradients.
    double persistent = p->models + one * ((p->average ? 5 : 4) + p->sums);
    double plain = (double)activations(p, p->batch, false), least = (double)activations(p, p->batch, true),
           single = (double)activations(p, 1, true);
    // On a GPU the backend knows what there is, and says so when it is used up.
    double room = strncmp(backend.name(), "cpu", 3) ? 0 : (double)available_memory() + p->models + p->encoder;
    checkpointing = p->checkpointed || (room > 0 && persistent + plain > room);
    double scratch = checkpointing ? least : plain;
    note(
        "memory: models that stay as they are %.0f MB, %s %.0f, gradients %.0f, moments %.0f, moving average "
        "%.0f, activations %.0f%s: %.0f MB",
        p->models / 1e6, p->lora ? "adapters" : "student", one / 1e6, one / 1e6, 2 * one / 1e6,
        p->average ? one / 1e6 : 0, scratch / 1e6, checkpointing ? " (with gradient checkpointing)" : "",
        (persistent + scratch) / 1e6);
    if (p->sums) note("memory: %.0f MB of it are sums of shards' gradients", one * p->sums / 1e6);
    double checkpoint = one * (p->average ? 4 : 3);
    note("disk: %.0f MB for %s", checkpoint * (p->keep_one ? 1 : 2) / 1e6,
         p->keep_one ? "the checkpoint"
                     : "two checkpoints, the newest and the one before (--keep-one keeps one)");
    if (room > 0 && persistent + scratch > room)
        die("the run needs %.0f MB of memory and %.0f MB are there (with --batch 1 it would need %.0f MB)",
            (persistent + scratch) / 1e6, room / 1e6, (persistent + single) / 1e6);
    return persistent + scratch;
}

// ---- which kernels ----------------------------------------------------------------------------------------

// One picture of two captions, as `sd sample` draws it with guidance: of its steps one.
static void picture(const Model *m) {
    int side = m->unet_config.sample_size, tokens = m->text_config.max_position_embeddings;
    int *ids = scope_ints(2 * tokens);
    Tensor *text = text_encode(m->text_encoder, ids, 2);
    Tensor *z = tensor_new(SHAPE(2, side, side, m->unet_config.in_channels));
    unet(m->unet, z, (float[]){999, 999}, text, (float[]){0, 0});
    vae_decode(m->vae, take(z, 0, 1));
}

void plan_kernels(const char *model, bool training) {
    const Architecture *a = is_directory(model) ? NULL : architecture(model);
    if (!a && !is_directory(model))
        die("%s is neither a diffusers folder nor an architecture (sd15, tiny, ...)", model);
    Model *m = model_declared(a ? NULL : model, a);
    dry_begin(true);
    Scope s = scope_begin();
    if (training)
        step(&(Plan){.model = m, .student = &m->unet_config}, 1);
    else
        picture(m);
    scope_end(s, NULL);
    DryUse use = dry_end();
    for (int i = 0; i < use.call_count; i++)
        printf("%5ld  %-22s %s\n", use.calls[i].count, use.calls[i].kernel, use.calls[i].shape);
}
