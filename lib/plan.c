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

size_t plan_activations(const UNetConfig *u, int n, int h, int w, int tokens, bool checkpoints) {
    Count student = count_pass(u, n, h, w, tokens, true, checkpoints);
    Count teacher = count_pass(u, 2 * n, h, w, tokens, false, false);
    double recorded = student.forward + student.backward + student.block,
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
