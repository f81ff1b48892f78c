// sd.h: the four phases of the paper, a section each.
//   Phase 1  sd.c    Stable Diffusion: text encoder, UNet, VAE, schedulers, text to image
//   Phase 2  lcm.c   latent consistency distillation
//   Phase 3  lora.c  low-rank adapters: fine-tuning and distillation
//   Phase 4  fid.c   Inception-v3, FID, KID
// sd.c knows none of the others.
#ifndef SD_H
#define SD_H

#include "lib/base.h"  // die, progress
#include "lib/io/io.h"    // Json, Store, Tokenizer, Image
#include "lib/nn/nn.h"    // Tensor, Layer, Params, Random
#include "lib/io/pairs.h" // Pairs: a data set as latents and tokens
#include "lib/io/train.h" // Run: resume, log, checkpoint

// ---- Phase 1: sd.c -----------------------------------------------------------------------------------------

enum { MAX_LEVELS = 8, MAX_LAYERS = 4 }; // resolutions of a network; ResNets a level (layers_per_block + 1)

// What config.json says. Names are diffusers' and transformers'.
typedef struct {
    int vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size,
        max_position_embeddings;
    Activation hidden_act;
    float layer_norm_eps;
} TextConfig;
typedef struct {
    int in_channels, out_channels, sample_size, levels, block_out_channels[MAX_LEVELS], layers_per_block;
    int heads[MAX_LEVELS];            // "attention_head_dim", which in SD v1.5 counts heads: see unet_config
    bool cross_attention[MAX_LEVELS]; // the level has transformers: "CrossAttnDownBlock2D"
    int cross_attention_dim, norm_num_groups,
        time_cond_proj_dim; // the last: 0 where there is no guidance embedding
    bool flip_sin_to_cos, use_linear_projection;
    float freq_shift, norm_eps, transformer_norm_eps;
} UNetConfig;
typedef struct {
    int in_channels, out_channels, latent_channels, levels, block_out_channels[MAX_LEVELS], layers_per_block;
    int norm_num_groups, sample_size;
    float scaling_factor;
} VaeConfig;
TextConfig text_config(const Json *config);
UNetConfig unet_config(const Json *config);
VaeConfig vae_config(const Json *config);

// The networks: declared once (every parameter under its diffusers name, "unet.conv_in.weight"), then loaded,
// made or initialised through `params`, then called.
typedef struct TextEncoder TextEncoder;
typedef struct UNet UNet;
typedef struct Vae Vae;
TextEncoder *text_encoder_new(TextConfig c, Params *params);
UNet *unet_new(UNetConfig c, Params *params);
Vae *vae_new(VaeConfig c, Params *params);
void text_encoder_free(TextEncoder *e); // the others are freed by free(); parameters by params_free()

// ids (n, tokens) -> last hidden state (n, tokens, hidden_size)
Tensor *text_encode(const TextEncoder *e, const int *ids, int n);
// The same for captions of `tokens` tokens, fewer than the model's. No token sees a later one, so these states are
// what text_encode() gives for the same places.
Tensor *text_encode_first(const TextEncoder *e, const int *ids, int n, int tokens);
// x (n, h, w, in_channels), timesteps (n) host, context (n, tokens, cross_attention_dim) -> (n, h, w, out_channels).
// guidance (n) host: the guidance scale's embedding argument, for a network with time_cond_proj_dim; else NULL.
Tensor *unet(const UNet *u, Tensor *x, const float *timesteps, Tensor *context, const float *guidance);
Tensor *guidance_embedding(const float *guidance, int n, int dim); // (n, dim): what that network reads of it
// pixels (n, h, w, 3) in [-1, 1] -> mean and logarithm of the variance (n, h / 8, w / 8, 2 * latent_channels)
Tensor *vae_encode(const Vae *v, Tensor *pixels);
// latents, already divided by scaling_factor -> pixels (n, 8 h, 8 w, 3), about [-1, 1]
Tensor *vae_decode(const Vae *v, Tensor *latents);

// Schedulers (samplers): the noise schedule and the step from one timestep to the next.
typedef enum { PNDM, DDIM, LCM } SchedulerKind;
typedef enum { EPSILON, V_PREDICTION, SAMPLE } PredictionType;
typedef struct {
    SchedulerKind kind;
    int num_train_timesteps, steps_offset, original_inference_steps;
    double beta_start, beta_end;
    float timestep_scaling, clip_sample_range;
    bool scaled_linear, set_alpha_to_one, clip_sample, skip_prk_steps;
    PredictionType prediction_type;
    enum { LEADING, TRAILING, LINSPACE } timestep_spacing;
} SchedulerConfig;
typedef struct {
    SchedulerConfig config;
    float *alphas_cumprod; // (num_train_timesteps)
    float final_alpha_cumprod;
    int count, *timesteps; // evaluations of the network, in order
    int at;                // the next one
    int steps_taken;
    int step_ratio;     // num_train_timesteps / steps asked for
    Tensor *history[4]; // PNDM: last predictions, newest first; and
    Tensor *held;       //       the sample before the doubled first step
    int history_count;
} Scheduler;
// from_config(scheduler_config.json): absent keys take the class's defaults. kind -1: the class that it names.
SchedulerConfig scheduler_config(const Json *config, int kind);
void scheduler_init(Scheduler *s, SchedulerConfig c);
void scheduler_set_timesteps(Scheduler *s, int steps);
void scheduler_skip(Scheduler *s, int count); // image-to-image starts later
// One step, in place: sample (n, h, w, c) becomes the next one. noise: for LCM, the fresh noise of this step
// (same shape; not used by the last step or the others; may be NULL there).
void scheduler_step(Scheduler *s, Tensor *sample, Tensor *prediction, const Tensor *noise);
bool scheduler_wants_noise(const Scheduler *s); // will the next step add noise?
void scheduler_free(Scheduler *s);

// A whole model.
typedef struct {
    char *path;
    TextConfig text_config;
    UNetConfig unet_config;
    VaeConfig vae_config;
    Json *scheduler_json, *index_json; // scheduler_config.json; model_index.json or NULL
    Params params;                     // of all three networks
    TextEncoder *text_encoder;
    UNet *unet;
    Vae *vae;
    Tokenizer *tokenizer;
} Model;
typedef enum { NEED_TEXT = 1, NEED_UNET = 2, NEED_VAE = 4, NEED_TOKENIZER = 8, NEED_ALL = 15 } ModelParts;
// A diffusers folder or one LDM file. tokenizer: a folder, or NULL for the model's own.
Model *model_load(const char *path, const char *tokenizer, ModelParts parts);
Model *model_load_ldm(const char *path, const char *tokenizer,
                      ModelParts parts); // ldm.c: one file of the original code's
void check_vocabulary(const Model *m); // dies where the tokenizer has more tokens than the text encoder knows
void model_free(Model *m);

// Text to image.
typedef struct {
    const char *prompt, *negative;
    int width, height, steps, scheduler; // scheduler: SchedulerKind, -1 the model's own
    float cfg;                           // diffusers' guidance_scale
    uint64_t seed;
    bool philox;
    const float *latents; // start from this noise, NCHW, instead of the seed's
    const Image *init;    // image-to-image, with
    double strength;
    bool progress;
} SampleOptions;
typedef struct {
    double text_s, unet_step_s, vae_s; // unet_step_s: median over the evaluations of the UNet
    int evaluations;                   // PNDM asks once more than it has steps
} SampleTimes;
SampleOptions sample_defaults(const Model *m); // what the model says, else 50 steps, cfg 7.5
Image *sample(const Model *m, SampleOptions o, SampleTimes *times);

// Parts of it, for training and tools.
Tensor *encode_prompts(const Model *m, const char *const *prompts, int n); // (n, tokens, hidden_size)
Tensor *image_to_tensor(const Image *const *images, int n);                // (n, h, w, 3) in [-1, 1]
Image *tensor_to_image(const Tensor *pixels, int i);
float *nchw_to_nhwc(const float *x, int n, int c, int h, int w); // new host arrays
float *nhwc_to_nchw(const float *x, int n, int c, int h, int w);
// A captioned data set as tokens and latents, kept in the folder `cache` (lib/io/model_pairs.c, lib/io/pairs.h).
Pairs *model_pairs(const Model *m, const char *data, const char *cache);

// ---- Phase 2: lcm.c ----------------------------------------------------------------------------------------

// Names are those of Luo et al. 2023. Timesteps of the solver: t_1 = k - 1, t_2 = 2 k - 1, ..., t_N = N k - 1.
typedef struct {
    int k;                              // timesteps that the solver skips; 20
    float w_min, w_max;                 // range of the guidance scale
    float sigma_data, timestep_scaling; // of the boundary scalings; 0.5, 10
    Loss loss;                          // LOSS_HUBER or LOSS_MSE
    float huber_c;
    bool boundary; // false, to see what they do: no boundary scalings, f is the predicted picture everywhere
    bool snr_weighting; // a pair's loss counts sqrt(SNR) of its noisier timestep; in the paper 1
} LcmConfig;
extern const LcmConfig lcm_defaults;

typedef struct {
    LcmConfig c;
    Scheduler schedule; // alphas_cumprod, and what the teacher predicts
    int solver_steps;   // N
    const UNet *teacher, *student, *target;
} Lcm;

typedef struct {
    int n;
    Tensor *z;              // (n, h, w, c) latents of pictures
    Tensor *noise;          // the same shape, normal
    Tensor *text, *no_text; // (n, tokens, d) states of their captions; of no caption
    const int *index; // (n) host, 0 to N - 1: the student stands at t_{index + 1}, the target one before
    const float *w;   // (n) host, the guidance scale
} LcmBatch;

// Starts from what the model's scheduler_config.json says of the noise.
void lcm_init(Lcm *l, LcmConfig c, const Json *scheduler, const UNet *teacher, const UNet *student,
              const UNet *target);
void lcm_free(Lcm *l);
// c_skip and c_out at timestep t: f(z, t) = c_skip z + c_out x0.
void lcm_scalings(const Lcm *l, int t, float *c_skip, float *c_out);
// One step of DDIM from t_{index + 1} to the solver's timestep before it, batched, given what the network said.
Tensor *lcm_solve(const Lcm *l, Tensor *z, Tensor *output, const int *index);
// Algorithm 1 up to its loss. The tape should record; only the student is recorded.
Tensor *lcm_loss(const Lcm *l, const LcmBatch *b);
// Its parts, for Phase 3: z at the solver's timesteps t_{index + 1}, and f(z, w, c, t) there of any network.
Tensor *lcm_noised(const Lcm *l, Tensor *z, Tensor *noise, const int *index);
Tensor *lcm_answer(const Lcm *l, const UNet *net, Tensor *z, const int *index, Tensor *text, const float *w);

// A network that begins as the teacher; what the teacher lacks (the guidance embedding) begins at zero.
UNet *lcm_student(const Model *teacher, UNetConfig c, Params *params);
// A network whose parameters are the optimiser's moving averages: its memory, not a copy.
UNet *lcm_target(UNetConfig c, const Optimiser *o, Params *params);
void lcm_target_free(UNet *target, Params *params);

// The training loop. look (may be NULL) is called after every step.
void lcm_distill(const Lcm *l, Run *run, const Model *teacher, const Pairs *pairs,
                 void (*look)(void *, long step), void *context);

// ---- Phase 3: lora.c ---------------------------------------------------------------------------------------

// A LoRA: low-rank adapters on some layers of a model, as one file holds them.
typedef struct {
    Layer *layer;    // on which it hangs
    Adapter adapter; // down (rank, in or window and in), up (out, rank): parameters of the set
    float alpha;     // the adapter's scale is strength * alpha / rank
} LoraPart;
typedef struct {
    Params
        params; // of all parts: "unet.conv_in.lora_A.weight" (down), "unet.conv_in.lora_B.weight" (up), ...
    LoraPart *parts;
    int count;
    char *mode; // how it was trained: "finetune", "mimic", "consistency"; NULL: not known
} Lora;
// Layers by name: `targets` lists groups and parts of layer names, see lora.c. down random, up zero, as PEFT begins.
Lora *lora_new(const Params *model, const char *targets, int rank, float alpha, Random *r);
LoraPart *lora_add(Lora *l, Layer *layer, int rank, float alpha); // not filled; before lora_hang()
Layer **lora_layers(const Params *model, int *count); // those that can carry one, in the model's order
// Unmerged: from lora_hang() to lora_take_off() the layers compute y += strength * alpha / rank * up(down(x)).
void lora_hang(Lora *l, float strength);
void lora_take_off(Lora *l);
void lora_merge(const Lora *l, float strength); // into the layers' weights, for good
void lora_free(Lora *l);

// Files, lib/io/lora_names.c: diffusers' and PEFT's keys, older ones, kohya's.
typedef enum { LORA_PEFT, LORA_KOHYA } LoraFormat;
Lora *lora_load(const Params *model, const char *path); // dies where a part of the file does not fit
bool lora_fits(const Params *model, const char *path);
void lora_save(const Lora *l, const char *path, LoraFormat f, Type type);
bool lora_describe(const char *path); // to stdout; false if it is none

// Fine-tuning: the loss of a batch whose latents z stand at timesteps t (n, host). min_snr 0: all weigh the same.
Tensor *lora_finetune_loss(const Scheduler *s, const UNet *net, Tensor *z, Tensor *noise, Tensor *text,
                           const int *t, float min_snr);
typedef struct {
    float dropout; // share of pictures that come without their caption
    float min_snr; // 5 in the paper; 0: off
} FinetuneConfig;
void lora_finetune(Run *run, const Model *model, const Lora *lora, const Pairs *pairs, FinetuneConfig c);

// Distillation by imitation. What of two latents the KL divergence compares, the paper does not say: see lora.c.
typedef enum { KL_ELEMENTS, KL_CHANNELS, KL_GAUSSIANS } KlReading;
typedef struct {
    float mse_weight, kl_weight, temperature;
    KlReading reading;
} MimicConfig;
Tensor *kl_divergence(Tensor *teacher, Tensor *student, KlReading reading, float temperature);
// l->teacher is a full LCM, l->student the base with adapters. Both losses are without their weights.
void lora_mimic_losses(const Lcm *l, const LcmBatch *b, MimicConfig c, Tensor **mse, Tensor **kl);
void lora_mimic(const Lcm *l, Run *run, const Model *model, const Lora *lora, const Pairs *pairs,
                MimicConfig c);
// The model's UNet once more, over the same weights, to hang adapters on: the model's own stays without. Goes by
// lcm_target_free().
UNet *lora_student(const Model *model, Params *params);

// ---- Phase 4: fid.c ----------------------------------------------------------------------------------------

// Inception-v3 in the form that FID uses. `config` is one JSON object, NULL for that network itself:
//   {"size": 299,    pictures come in size x size, 3 channels, about [-1, 1]
//    "width": 16,    channels in sixteenths of Inception-v3's
//    "a": 3, "c": 4, "e": 2,    blocks of each kind (at most these)
//    "classes": 1008}           rows of fc; or, for a classifier of several attributes,
//    "heads": {"subject": ["boy", "girl", ...], "garment": [...], ...}    groups of rows, in this order
// and, once trained, "ceiling": the share of attributes read right on true scenes (sd fid fidelity prints it).
// A weights file carries it as the metadata entry "inception"; a file without one is Inception-v3 itself.
typedef struct Inception Inception;
Inception *inception_new(const char *config); // declares parameters under pytorch-fid's names; nothing loaded
Inception *inception_load(const char *path);  // from safetensors, ready to compute: batch norm is folded
Params *inception_params(Inception *net);     // conv, bn (weight, bias, running_mean, running_var), fc
void inception_free(Inception *net);
int inception_size(const Inception *net);    // of the side of its pictures
int inception_dim(const Inception *net);     // features: 2048
int inception_classes(const Inception *net); // rows of fc
// Head i: its name and, as far as there is room, its classes' names. Returns how many classes; 0: there is no head i.
int inception_head(const Inception *net, int i, const char **name, const char **classes, int room);
// x (n, size, size, 3) -> features (n, dim), and from them logits (n, classes), one head behind another.
Tensor *inception_features(Inception *net, Tensor *x);
Tensor *inception_logits(const Inception *net, Tensor *features);
// To train: fp32 memory and starting values for all parameters; those to be learnt become trainable. Forward
// then norms with the statistics of the batch. Afterwards inception_gather(net, true), some forwards without
// the tape over the training pictures, and inception_gather(net, false), which sets running_mean and _var.
void inception_initialise(Inception *net, Random *r);
void inception_gather(Inception *net, bool on);
void inception_fold(Inception *net); // batch norm joins the convolutions: from now on inference only

// A set of pictures as FID sees it.
typedef struct {
    char *path;
    long count;         // pictures; 0 where the statistics do not say
    int dim;            // features
    double *mu, *sigma; // (dim), (dim, dim): mean and covariance (divided by count - 1)
    float *features;    // (count, dim), or NULL where they were not kept
    char **names;       // (count) files, or NULL
} FidSet;
typedef enum {
    RESIZE_FID,   // pytorch-fid: bilinear without antialiasing, on floats
    RESIZE_CLEAN, // clean-fid: Pillow's bicubic with antialiasing, on floats
} FidResize;
typedef struct {
    FidResize resize;
    int batch, readers; // pictures a forward pass; threads that read ahead, 0: as many as suit the machine
    bool statistics, keep_features;
} FidOptions;
FidSet fid_scan(Inception *net, const char *dir, FidOptions o);
FidSet fid_read_statistics(const char *npz);
void fid_write_statistics(const FidSet *s, const char *npz);
void fid_set_free(FidSet *s);
void fid_resize(float *out, const Image *image, int size,
                FidResize how); // (size, size, 3), the network's input

// Mean and covariance in one pass over any number of features, in any portions.
typedef struct {
    int dim;
    long count;
    double *mean, *scatter; // (dim); (dim, dim), lower triangle: sum of (x - mean)(x - mean)^T
} Moments;
void moments_begin(Moments *m, int dim);
void moments_add(Moments *m, const float *features, int count); // (count, dim)
void moments_end(Moments *m, double *mu, double *sigma);        // needs two at least; frees

double frechet_distance(const double *mu1, const double *c1, const double *mu2, const double *c2, int dim);
double fid_distance(const FidSet *a, const FidSet *b);
// Kernel inception distance: the mean over 100 subsets of min(1000, count) pictures; and its standard error.
double kid_distance(const FidSet *a, const FidSet *b, uint64_t seed, double *standard_error);
// The toy world's judge: the share of attributes that pictures 00000.png, ... of `dir` show as its prompts.jsonl asks,
// the mean over the heads, and of each head (up to 16).
double fid_fidelity(Inception *net, const char *dir, FidOptions o, double share[16], int *heads, long *count);
// 95 % interval of the FID, by resampling the pictures `rounds` times.
void fid_bootstrap(const FidSet *a, const FidSet *b, int rounds, uint64_t seed, double interval[2]);

#endif
