// plan.c: the memory of a training step, counted by walking the UNet as unet() in sd.c does, with sizes in place of
// tensors. See plan.h. The counts below are the outputs of the operations of each block, in the block's order.
#include "plan.h"

#include <string.h>

typedef struct {
    double forward;  // floats that are there at the end of the pass
    double backward; // gradients of those
    double block;    // the largest block's own, while it runs
    bool recorded, checkpoints;
} Count;

// A block that makes `inner` floats on the way to a result of `out` floats; `kept`: what only the backward pass needs
// and has no gradient.
static void block(Count *c, double inner, double out, double kept) {
    if (c->recorded && !c->checkpoints) {
        c->forward += inner + out + kept, c->backward += inner + out;
        return;
    }
    double own = c->recorded ? 2 * (inner + out) + kept : inner + out; // run again, with its gradients
    if (own > c->block) c->block = own;
    c->forward += out, c->backward += out;
}

static void resnet_count(Count *c, double pixels, int in, int out) {
    block(c, pixels * (in + 3 * out + (in != out ? out : 0)), pixels * out, 0);
}

static void transformer_count(Count *c, double n, double pixels, int d, int heads, int tokens) {
    // norm, proj_in; norm1, q, k, v, attention, out; norm2, q, attention, out; norm3, ff 8 d, geglu 4 d, out; proj_out
    block(c, pixels * 26 * d + n * tokens * 2 * d, pixels * d, pixels * 2 * heads);
}

static Count count_pass(const UNetConfig *u, int n, int h, int w, int tokens, bool recorded,
                        bool checkpoints) {
    Count c = {.recorded = recorded, .checkpoints = checkpoints};
    const int *ch = u->block_out_channels, top = u->levels - 1;
    double pixels[MAX_LEVELS] = {0};
    for (int i = 0; i <= top; i++) {
        pixels[i] = (double)n * h * w;
        h = (h + 1) / 2, w = (w + 1) / 2;
    }
    block(&c, 0, pixels[0] * ch[0], 0); // conv_in
    for (int i = 0; i <= top; i++) {
        for (int j = 0; j < u->layers_per_block; j++) {
            resnet_count(&c, pixels[i], j ? ch[i] : ch[i ? i - 1 : 0], ch[i]);
            if (u->cross_attention[i]) transformer_count(&c, n, pixels[i], ch[i], u->heads[i], tokens);
        }
        if (i < top) block(&c, 0, pixels[i + 1] * ch[i], 0);
    }
    resnet_count(&c, pixels[top], ch[top], ch[top]);
    transformer_count(&c, n, pixels[top], ch[top], u->heads[top], tokens);
    resnet_count(&c, pixels[top], ch[top], ch[top]);
    for (int i = 0; i <= top; i++) {
        int level = top - i, below = ch[i ? level + 1 : top], above = ch[level ? level - 1 : 0];
        for (int j = 0; j <= u->layers_per_block; j++) {
            int in = (j ? ch[level] : below) + (j == u->layers_per_block ? above : ch[level]);
            if (recorded)
                c.forward += pixels[level] * in, c.backward += pixels[level] * in; // the concatenation
            resnet_count(&c, pixels[level], in, ch[level]);
            if (u->cross_attention[level])
                transformer_count(&c, n, pixels[level], ch[level], u->heads[level], tokens);
        }
        if (level) block(&c, pixels[level - 1] * ch[level], pixels[level - 1] * ch[level], 0);
    }
    double end = pixels[0] * (ch[0] + 6 * u->out_channels); // norm, conv_out; what the loss makes of it
    c.forward += end, c.backward += end;
    return c;
}

// ---- adapters ---------------------------------------------------------------------------------------------------

// How many rows the layer of that name has for one picture: its output's pixels, or tokens, or one for the time.
static double rows_of(const char *name, const UNetConfig *u, int h, int w, int tokens) {
    int level = 0, top = u->levels - 1;
    if (strstr(name, "time_emb")) return 1;
    if (strstr(name, "attn2.to_k") || strstr(name, "attn2.to_v") || !strncmp(name, "text_encoder.", 13))
        return tokens;
    if (sscanf(name, "unet.down_blocks.%d", &level) == 1)
        level += strstr(name, "downsamplers") != NULL;
    else if (sscanf(name, "unet.up_blocks.%d", &level) == 1)
        level = top - level - (strstr(name, "upsamplers") != NULL);
    else if (strstr(name, "mid_block"))
        level = top;
    for (; level > 0; level--) h = (h + 1) / 2, w = (w + 1) / 2;
    return (double)h * w;
}

// The length of the block's name in front of the layer's: "unet.mid_block.resnets.1".
static size_t block_length(const char *name) {
    const char *at = strstr(name, "resnets.");
    if (!at && !(at = strstr(name, "attentions."))) return 0;
    const char *number = strchr(at, '.') + 1;
    return (size_t)(number - name) + strspn(number, "0123456789");
}

// x down^T of every adapted layer; of the block that has most of it, where blocks keep their result alone.
static double adapter_floats(const UNetConfig *u, const Lora *lora, int n, int h, int w, int tokens,
                             bool checkpoints) {
    double all = 0, block = 0, most = 0;
    for (int i = 0; lora && i < lora->count; i++) {
        const char *name = lora->parts[i].layer->name, *before = i ? lora->parts[i - 1].layer->name : "";
        double floats = n * rows_of(name, u, h, w, tokens) * lora->parts[i].adapter.down->shape[0];
        size_t length = block_length(name);
        if (!length || length != block_length(before) || strncmp(name, before, length)) block = 0;
        block += floats, all += floats;
        if (block > most) most = block;
    }
    return checkpoints ? most : all;
}

// The text encoder's outputs, in a layer's order: norm, q, k, v, attention, out; norm, fc1, its activation, fc2.
static double text_floats(const TextConfig *t, int n, int tokens, bool checkpoints) {
    double d = t->hidden_size, layer = 8 * d + 2.0 * t->intermediate_size, layers = t->num_hidden_layers;
    return 2.0 * n * tokens * (checkpoints ? layers * d + layer : layers * layer);
}

// ---- the whole --------------------------------------------------------------------------------------------------

size_t plan_activations(const UNetConfig *u, const Lora *lora, int n, int h, int w, int tokens,
                        bool checkpoints) {
    Count student = count_pass(u, n, h, w, tokens, true, checkpoints);
    Count teacher = count_pass(u, 2 * n, h, w, tokens, false, false);
    double recorded = student.forward + student.backward + student.block +
                      2 * adapter_floats(u, lora, n, h, w, tokens, checkpoints), // and their gradients
        other = teacher.forward + teacher.block;
    return (size_t)(sizeof(float) * (recorded > other ? recorded : other));
}

size_t plan_available(void) {
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

static double activations(const Plan *p, int n, bool checkpoints) {
    int side = p->unet->sample_size;
    double bytes = (double)plan_activations(p->unet, p->lora, n, side, side, p->tokens, checkpoints);
    return bytes + (p->text ? sizeof(float) * text_floats(p->text, n, p->tokens, checkpoints) : 0);
}

double plan_run(const Plan *p) {
    double one = p->numbers * sizeof(float);
    double lasting = p->models + one * (p->average ? 5 : 4); // weights, gradients, two moments, average
    double plain = activations(p, p->batch, false), least = activations(p, p->batch, true),
           single = activations(p, 1, true);
    // On a GPU the backend knows what there is, and says so when it is used up.
    double room = strncmp(backend.name(), "cpu", 3) ? 0 : (double)plan_available() + p->models;
    checkpointing = p->checkpointed || (room > 0 && lasting + plain > room);
    double passing = checkpointing ? least : plain;
    note(
        "memory: models that stay as they are %.0f MB, %s %.0f, gradients %.0f, moments %.0f, moving average "
        "%.0f, activations %.0f%s: %.0f MB",
        p->models / 1e6, p->lora ? "adapters" : "student", one / 1e6, one / 1e6, 2 * one / 1e6,
        p->average ? one / 1e6 : 0, passing / 1e6, checkpointing ? " (with gradient checkpointing)" : "",
        (lasting + passing) / 1e6);
    if (room > 0 && lasting + passing > room)
        die("the run needs %.0f MB of memory and %.0f MB are there (with --batch 1 it would need %.0f MB)",
            (lasting + passing) / 1e6, room / 1e6, (lasting + single) / 1e6);
    return lasting + passing;
}
