// made.c: made weights, the same bits as test/python/made.py. Not a way to initialise a training run.
//
// Every tensor has a key, the 64-bit FNV-1a hash of its name. Elements 4j .. 4j+3 are made from the four
// words of Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") at counter j. A
// word w gives k = (w mod 2^16) + (w div 2^16) - 65535, the sum of two uniform numbers, and
//     value = mean + k * scale                      (one rounding, to fp32)
// after which some rows and columns are multiplied by a power of two (exact) or get an addend (one more
// rounding). k * scale has 17 + 24 bits, so it is exact in double and it makes no difference whether the
// compiler fuses the addition. No logarithm and no sine: C libraries disagree about their last bits.
#include "made.h"
#include "lib/io/io.h" // param_write

#include <math.h>
#include <stdlib.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

static const double k_variance = 715827882.5; // of k: 2 (65536^2 - 1) / 12
static const float outlier = 32;              // hard: how much larger some channels are
static const float far_off = 131072;          // hard: 2^17, towards both ends of fp16

static uint64_t fnv1a(const char *s) {
    uint64_t h = 14695981039346656037u;
    for (; *s; s++) h = (h ^ (unsigned char)*s) * 1099511628211u;
    return h;
}

static bool has(const char *name, const char *part) { return strstr(name, part) != NULL; }

static bool has_any(const char *name, const char *const *parts) { // up to a NULL
    while (*parts && !has(name, *parts)) parts++;
    return *parts != NULL;
}

// ---- how large ------------------------------------------------------------------------------------------

// Standard deviation of a weight times the square root of its fan-in, by the first row whose start and part
// fit the name. Chosen so that activations stay near unit size and every branch counts: what goes through
// SiLU is made larger before it, what is added to the stream is about half of it, attention logits spread
// by 1.5 to 3, and what averages over many values is scaled up again.
static const struct {
    const char *start, *part;
    double gain;
} gains[] = {
    {"unet.conv_in", "", 0.4},
    {"unet.conv_out", "", 0.8},
    {"unet.up_blocks.3.", "conv_shortcut", 0.6},
    {"unet.", "time_embedding.linear_1", 1.4},
    {"unet.", "time_embedding.linear_2", 1.8},
    {"unet.", "time_emb_proj", 1.5},
    {"unet.", "attn1.to_v", 2.5},
    {"unet.", "attn2.to_q", 2.2},
    {"unet.", "attn2.to_v", 2.0},
    {"unet.", "attn2.to_out", 1.8},
    {"unet.", "proj_out", 0.7},
    {"unet.", "ff.net.0.proj", 1.3},
    {"unet.", "ff.net.2", 0.6},
    {"vae.encoder.conv_in", "", 2.0},
    {"vae.encoder.conv_out", "", 1.5},
    {"vae.decoder.conv_out", "", 0.8},
    {"vae.decoder.", "conv2.", 1.6},
    {"vae.post_quant_conv", "", 0.1},
    {"vae.quant_conv", "", 3.0},
    {"vae.", "to_q", 1.5},
    {"vae.", "to_k", 1.5},
    {"vae.", "to_v", 2.5},
    {"", "samplers.0.conv", 1.0},
    {"", "conv1.", 1.5},
    {"", "conv2.", 0.8},
    {"", "conv_shortcut", 0.9},
    {"", "to_q", 1.35},
    {"", "to_k", 1.35},
    {"", "to_out", 0.7},
    {"text_encoder.", "q_proj", 1.6},
    {"text_encoder.", "k_proj", 1.6},
    {"text_encoder.", "v_proj", 1.5},
    {"text_encoder.", "out_proj", 0.7},
    {"text_encoder.", "fc1", 1.2},
    {"text_encoder.", "fc2", 0.8},
    {"", ".conv.weight", 1.4}, // what is left is Inception's, in front of a ReLU
    {"", "", 1.0},
};
static const double hard_logits = 3.0; // hard: the gain of query and key

static void mean_and_deviation(const char *name, int64_t fan_in, MadeRegime regime, double *mean,
                               double *deviation) {
    bool weight = ends_with(name, ".weight");
    bool decoder = starts_with(name, "vae.decoder."); // what is the same for every picture stays small there
    *mean = 0;
    if (starts_with(name, "input."))
        *deviation = 1;
    else if (ends_with(name, "running_var"))
        *mean = 1, *deviation = 0.2;
    else if (ends_with(name, "running_mean"))
        *deviation = 0.3;
    else if (has(name, "norm") || has(name, ".bn.")) {
        *mean = weight ? 1 : 0;
        *deviation = weight ? 0.2 : decoder ? 0.06 : 0.3;
    } else if (ends_with(name, ".bias"))
        *deviation = decoder ? 0.04 : 0.2;
    else if (ends_with(name, "token_embedding.weight"))
        *deviation = 1;
    else if (ends_with(name, "position_embedding.weight"))
        *deviation = 1.5;
    else {
        int i = 0;
        while (!starts_with(name, gains[i].start) || !has(name, gains[i].part)) i++; // the last row fits all
        double gain = gains[i].gain;
        static const char *const logits[] = {"to_q.", "to_k.", "q_proj.", "k_proj.", NULL};
        if (regime == MADE_HARD && has_any(name, logits)) gain = hard_logits;
        *deviation = gain / sqrt((double)fan_in);
    }
}

// ---- what is not random -----------------------------------------------------------------------------------

// A tensor as `rows` x `cols` x `area`: output channels, input channels, pixels of the kernel.
typedef struct {
    float *at;
    int64_t rows, cols, area;
} Weights;

static float *middle(Weights w, int64_t row, int64_t col) {
    return &w.at[(row * w.cols + col) * w.area + w.area / 2];
}

// A way for the noisy latents through the UNet that no block bends: conv_in copies latent channel o mod 4 to
// channel o, up_blocks.3 passes the skip connection on, conv_out averages the copies. So epsilon resembles
// the latents, as a trained network's does, and sampling neither explodes nor freezes. Signs alternate so
// that the even part of SiLU cancels.
static void add_straight_path(const char *name, Weights w) {
    if (!ends_with(name, ".weight")) return;
    if (starts_with(name, "unet.conv_in")) {
        for (int64_t o = 0; o < w.rows; o++) *middle(w, o, o % w.cols) += o / w.cols % 2 ? -1.0f : 1.0f;
    } else if (starts_with(name, "unet.up_blocks.3.") && has(name, "conv_shortcut")) {
        for (int64_t o = 0; o < w.rows; o++) *middle(w, o, w.cols - w.rows + o) += 2.0f; // the skip's half
    } else if (starts_with(name, "unet.conv_out")) {
        float step = (float)(12.0 / (double)w.cols);
        for (int64_t i = 0; i < w.cols; i++) *middle(w, i % w.rows, i) += i / w.rows % 2 ? -step : step;
    }
}

static void scale_rows(Weights w, float by, int64_t first) {
    for (int64_t r = first; r < w.rows; r += 64)
        for (int64_t i = 0; i < w.cols * w.area; i++) w.at[r * w.cols * w.area + i] *= by;
}

static void scale_columns(Weights w, float by, int64_t first) {
    for (int64_t r = 0; r < w.rows; r++)
        for (int64_t c = first; c < w.cols; c += 64)
            for (int64_t i = 0; i < w.area; i++) w.at[(r * w.cols + c) * w.area + i] *= by;
}

// What trained networks do to arithmetic, beside sharp attention.
static void harden(const char *name, Weights w) {
    // Some channels of the stream are 32 times as large as the others ...
    static const char *const loud[] = {"conv2.", "proj_out.", "conv_in.", "fc2.", NULL};
    if (has_any(name, loud)) scale_rows(w, outlier, 5);
    if (has(name, "position_embedding")) scale_columns(w, outlier, 5);
    // ... some groups of a group norm have a mean far larger than their standard deviation ...
    if (ends_with(name, "conv1.bias") || ends_with(name, "conv_in.bias"))
        for (int64_t r = w.rows / 4; r < w.rows / 2; r++) w.at[r] += 40.0f;
    // ... and some weights are near the limits of fp16, at either end.
    bool vae_out = starts_with(name, "vae.") && has(name, "conv_norm_out.");
    if (has(name, "norm3.") || has(name, "layer_norm2.") || vae_out) scale_rows(w, 1 / far_off, 7);
    if (ends_with(name, "ff.net.0.proj.weight") || ends_with(name, "fc1.weight") ||
        strcmp(name, "vae.encoder.conv_out.weight") == 0 || strcmp(name, "vae.decoder.conv_out.weight") == 0)
        scale_columns(w, far_off, 7);
}

// The same for Inception, which has neither attention nor group norms.
static void harden_inception(const char *name, Weights w) {
    // The loud channels are such as live: what is negative everywhere ends in the ReLU, however loud.
    static const char *const loud[] = {"Mixed_5b.branch1x1.bn.", "Mixed_6b.branch1x1.bn.",
                                       "Mixed_7b.branch1x1.bn.", NULL};
    if (has_any(name, loud) && (ends_with(name, ".weight") || ends_with(name, ".bias")))
        scale_rows(w, outlier, 11);
    // A convolution's channel near one limit of fp16, its batch norm's weight near the other.
    if (ends_with(name, ".conv.weight")) scale_rows(w, far_off, 7);
    if (ends_with(name, ".bn.weight")) scale_rows(w, 1 / far_off, 7);
}

// ---- the tensor -------------------------------------------------------------------------------------------

void made_fill(const char *name, int ndim, const int64_t *shape, MadeRegime regime, float *out) {
    Weights w = {out, shape[0], ndim > 1 ? shape[1] : 1, 1};
    for (int i = 2; i < ndim; i++) w.area *= shape[i];
    int64_t count = w.rows * w.cols * w.area;
    double mean, deviation;
    mean_and_deviation(name, w.cols * w.area, regime, &mean, &deviation);
    double scale = (float)(deviation / sqrt(k_variance));
    uint64_t hash = fnv1a(name);
    uint32_t key[2] = {(uint32_t)hash, (uint32_t)(hash >> 32)};
#pragma omp parallel for schedule(static) if (count > 1 << 16)
    for (int64_t j = 0; j < (count + 3) / 4; j++) {
        uint32_t counter[4] = {(uint32_t)j, (uint32_t)(j >> 32)}, words[4];
        philox4x32(counter, key, words);
        for (int64_t i = 0; i < 4 && 4 * j + i < count; i++) {
            int32_t k = (int32_t)(words[i] & 0xffff) + (int32_t)(words[i] >> 16) - 65535;
            out[4 * j + i] = (float)(mean + k * scale);
        }
    }
    add_straight_path(name, w);
    if (regime == MADE_HARD) starts_with(name, "Mixed_") ? harden_inception(name, w) : harden(name, w);
}

void made_params(const Params *p, const char *prefix, MadeRegime regime, Type type) {
    for (int i = 0; i < p->count; i++) {
        Tensor *t = p->list[i].tensor;
        char *name = format("%s%s", prefix, p->list[i].name);
        float *x = xmalloc(tensor_count(t) * sizeof *x);
        int64_t shape[4];
        made_fill(name, param_file_shape(t, shape), shape, regime, x);
        if (t->data && t->type != type) backend.free(t->data), t->data = NULL;
        if (!t->data) param_allocate(t, type);
        param_write(t, x);
        free(x), free(name);
    }
}
