// sd.h: the four phases of the paper, a section each.
//   Phase 1  sd.c    Stable Diffusion: text encoder, UNet, VAE, schedulers (more: samplers.c), text to image
//   Phase 2  lcm.c   latent consistency distillation
//   Phase 3  lora.c  low-rank adapters: fine-tuning and distillation
//   Phase 4  fid.c   Inception-v3, FID, KID
// sd.c knows none of the others.
#ifndef SD_H
#define SD_H

#include "lib/base.h"     // die, progress
#include "lib/io/io.h"    // Json, Store, Tokenizer, Image
#include "lib/nn/nn.h"    // Tensor, Layer, Params, Random
#include "lib/io/pairs.h" // Pairs: a data set as latents and tokens
#include "lib/io/train.h" // Run: resume, log, checkpoint

// ---- Phase 1: sd.c ----------------------------------------------------------------------------------------

enum { MAX_LEVELS = 8, MAX_LAYERS = 4 }; // levels (resolutions) of a network; ResNets of a level

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
    int cross_attention_dim, norm_num_groups;
    int time_cond_proj_dim; // of the guidance embedding; 0: none
    bool flip_sin_to_cos, use_linear_projection;
    float freq_shift, norm_eps, transformer_norm_eps;
} UNetConfig;
typedef struct {
    int latent_channels, levels, block_out_channels[MAX_LEVELS], layers_per_block, norm_num_groups;
    float scaling_factor;
} VaeConfig;
TextConfig text_config(const Json *config);
UNetConfig unet_config(const Json *config);
VaeConfig vae_config(const Json *config);
// The whole number under a key, `fallback` where it is absent; dies where it is not from 1 to `most`.
int config_count(const Json *config, const char *file, const char *key, int fallback, int most);

// The networks. unet_new() and its like declare every parameter in `params`, under its name in diffusers
// ("unet.conv_in.weight"). When the parameters are loaded or initialised, the network can be called.
typedef struct TextEncoder TextEncoder;
typedef struct UNet UNet;
typedef struct Vae Vae;
TextEncoder *text_encoder_new(TextConfig c, Params *params);
UNet *unet_new(UNetConfig c, Params *params);
Vae *vae_new(VaeConfig c, Params *params);
void text_encoder_free(TextEncoder *e); // the others are freed by free(); parameters by params_free()

// ids (n, tokens) -> last hidden state (n, tokens, hidden_size)
Tensor *text_encode(const TextEncoder *e, const int *ids, int n);
// The same for the first `tokens` tokens of each caption. No token sees a later one, so nothing else changes.
Tensor *text_encode_first(const TextEncoder *e, const int *ids, int n, int tokens);
// x (n, h, w, in_channels), timesteps (n) host, context (n, tokens, cross_attention_dim)
//   -> (n, h, w, out_channels)
// guidance (n) host: the guidance scale minus 1, for a network with time_cond_proj_dim; else NULL.
Tensor *unet(const UNet *u, Tensor *x, const float *timesteps, Tensor *context, const float *guidance);
Tensor *guidance_embedding(const float *guidance, int n, int dim); // (n, dim)
// A UNet over the memory of `owner`'s parameters of the same names, which unet_view_free() leaves alone.
UNet *unet_view(UNetConfig c, const Params *owner, Params *params);
void unet_view_free(UNet *u, Params *params);
// pixels (n, h, w, 3) in [-1, 1] -> mean and logarithm of the variance (n, h / 8, w / 8, 2 * latent_channels)
Tensor *vae_encode(const Vae *v, Tensor *pixels);
// latents, already divided by scaling_factor -> pixels (n, 8 h, 8 w, 3), about [-1, 1]
Tensor *vae_decode(const Vae *v, Tensor *latents);

// Schedulers (samplers): the noise schedule, and the step from one timestep to the next.
typedef enum { PNDM, DDIM, LCM, EULER, EULER_ANCESTRAL, DPMPP_2M, DPMPP_2M_KARRAS, TCD } SchedulerKind;
typedef enum { EPSILON, V_PREDICTION, SAMPLE } PredictionType;
typedef struct {
    SchedulerKind kind;
    int num_train_timesteps, steps_offset, original_inference_steps, solver_order;
    double beta_start, beta_end;
    enum { LINEAR_BETAS, SCALED_LINEAR_BETAS, COSINE_BETAS } beta_schedule;
    const Json *trained_betas; // in the file's Json, which must stay; NULL: beta_schedule
    bool zero_snr;             // "rescale_betas_zero_snr"
    bool set_alpha_to_one, karras, end_at_sigma_min, lower_order_final, euler_at_final;
    float timestep_scaling;
    double eta; // TCD: how much of each step is new noise, 0 to 1
    PredictionType prediction_type;
    enum { LEADING, TRAILING, LINSPACE } timestep_spacing;
} SchedulerConfig;
typedef struct {
    SchedulerConfig config;
    float *alphas_cumprod; // (num_train_timesteps)
    int count;
    float *timesteps;   // (count) at which the network is evaluated, in order; whole numbers but for Euler
    float *sigmas;      // (count + 1) of these timesteps and of the end; samplers.c
    int at;             // index of the next timestep
    int steps_taken;    // since the start, or since scheduler_skip()
    int step_ratio;     // num_train_timesteps / steps asked for
    Tensor *history[4]; // PNDM, DPM-Solver++: the last predictions, newest first,
    int history_count;  //       how many there are,
    Tensor *held;       //       and z before the first step, which is taken twice
} Scheduler;
typedef struct {
    const char *name, *title, *class; // of --scheduler; what A1111 writes into a PNG; diffusers' class
    char letter;                      // of the class, in samplers.c
} Sampler;
extern const Sampler samplers[]; // by SchedulerKind; up to one without a name
// Of scheduler_config.json, with its class's defaults. kind -1: the class it names. Dies of what is not kept.
SchedulerConfig scheduler_config(const Json *config, int kind);
Json *scheduler_load(const char *path); // the file, as Python writes it
void scheduler_init(Scheduler *s, SchedulerConfig c);
void scheduler_set_timesteps(Scheduler *s, int steps);
void scheduler_skip(Scheduler *s, int count); // image-to-image starts later
// What sampling begins with, at the first timestep that remains: noise, or `clean` (may be NULL) noised.
Tensor *scheduler_start(const Scheduler *s, Tensor *clean, Tensor *noise);
Tensor *scheduler_input(const Scheduler *s, Tensor *z); // z as the network gets it
// One step: the next z from z (n, h, w, c), the network's output and, if scheduler_wants_noise(), new noise.
Tensor *scheduler_step(Scheduler *s, Tensor *z, Tensor *out, Tensor *noise);
bool scheduler_wants_noise(const Scheduler *s);
void scheduler_free(Scheduler *s);
// The scheduler's configuration of a single file of the original code, whose own is `scheduler` (JSON).
Json *ldm_scheduler(const Store *s, const char *path, const char *scheduler);
// Between sd.c and samplers.c: zero SNR; the classes that count in sigmas, and TCD.
void remove_last_signal(float *kept, int n); // kept (n): 1 - beta
bool in_sigmas(const Scheduler *s);
void sigma_schedule(Scheduler *s); // sigmas, given timesteps
Tensor *euler_step(const Scheduler *s, Tensor *z, Tensor *out, Tensor *noise);
Tensor *dpmpp_2m_step(Scheduler *s, Tensor *z, Tensor *out);
Tensor *tcd_step(const Scheduler *s, Tensor *z, Tensor *out, Tensor *noise);

// The timesteps of a batch: z_t = alpha z_0 + sigma eps. (n) host arrays, which go with the scope.
typedef struct {
    int n;
    float *t, *alpha, *sigma;
} Times;
Times times_at(const Scheduler *s, const int *t, int n);
Times times_all_at(const Scheduler *s, int t, int n); // all pictures of the batch at the same one
Tensor *noised(Times at, Tensor *z, Tensor *noise);   // z_t
// z_0 and eps, given z_t and the network's output, whichever of eps, v and x0 that is.
Tensor *predicted_x0(const Scheduler *s, Times at, Tensor *z, Tensor *out);
Tensor *predicted_eps(const Scheduler *s, Times at, Tensor *z, Tensor *out);
// A consistency model is f(z, t) = c_skip z + c_out x0, with c_skip = 1 and c_out = 0 at t = 0.
void boundary_scalings(double sigma_data, double timestep_scaling, int t, float *c_skip, float *c_out);

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
// A diffusers folder, or one file of the original code's. tokenizer: a folder, or NULL for the model's own.
Model *model_load(const char *path, const char *tokenizer, ModelParts parts);
void model_free(Model *m);

// Text to image.
typedef struct {
    const char *prompt, *negative;
    int width, height, steps, scheduler; // scheduler: SchedulerKind, -1 the model's own
    int spacing;                         // of the timesteps: LEADING and so on; -1: the scheduler's own
    double eta;                          // of TCD
    float cfg;                           // diffusers' guidance_scale
    uint64_t seed;
    bool philox;
    const float *latents; // start from this noise (NCHW) instead of the seed's
    const Image *init;    // image-to-image, with
    double strength;
    bool progress;
} SampleOptions;
typedef struct {
    double text_s, unet_step_s, vae_s; // unet_step_s: median over the evaluations of the UNet
    int evaluations;                   // of the UNet; PNDM has one more than steps
    size_t peak;                       // bytes that were in use at once so far
} SampleTimes;
SampleOptions sample_defaults(const Model *m); // what the model says, else 50 steps, cfg 7.5
SchedulerConfig sample_scheduler(const Model *m, const SampleOptions *o); // scheduler, spacing and eta
Image *sample(const Model *m, SampleOptions o, SampleTimes *times);

// Parts of it, for training and tools.
Tensor *encode_prompts(const Model *m, const char *const *prompts, int n); // (n, tokens, hidden_size)
Tensor *image_to_tensor(const Image *const *images, int n);                // (n, h, w, 3) in [-1, 1]
Image *tensor_to_image(const Tensor *pixels, int i);
float *nchw_to_nhwc(const float *x, int n, int c, int h, int w); // new host arrays
float *nhwc_to_nchw(const float *x, int n, int c, int h, int w);
// A captioned data set as tokens and latents, kept in the folder `cache`; see lib/io/pairs.h.
Pairs *model_pairs(const Model *m, const char *data, const char *cache, int held_out);

// ---- Phase 2: lcm.c ---------------------------------------------------------------------------------------

// Names are those of Luo et al. 2023. The solver's timesteps: t_1 = k - 1, t_2 = 2 k - 1, ..., t_N = N k - 1.
typedef struct {
    int k;                              // timesteps from one of the solver's to the next; 20
    float w_min, w_max;                 // range of the guidance scale
    float sigma_data, timestep_scaling; // of boundary_scalings(); 0.5, 10
    Loss loss;                          // LOSS_HUBER or LOSS_MSE
    float huber_c;
    bool boundary;      // false: an ablation, f(z, t) is the predicted x0 at every t
    bool snr_weighting; // weigh the loss by sqrt(SNR) of the student's timestep; the paper does not
} LcmConfig;
extern const LcmConfig lcm_defaults;

typedef struct {
    LcmConfig c;
    Scheduler schedule; // alphas_cumprod, and what the networks predict
    int solver_steps;   // N
    const UNet *teacher, *student, *target;
} Lcm;

typedef struct {
    int n;
    Tensor *z;              // (n, h, w, c): latents of pictures
    Tensor *noise;          // the same shape: normal noise
    Tensor *text, *no_text; // (n, tokens, d): text states of their captions, and of no caption
    const int *index; // (n) host, 0 to N - 1: the student's timestep is t_{index + 1}, the target's t_index
    const float *w;   // (n) host: guidance scales
} LcmBatch;

// `scheduler`: the teacher's noise schedule and what it predicts.
void lcm_init(Lcm *l, LcmConfig c, SchedulerConfig scheduler, const UNet *teacher, const UNet *student,
              const UNet *target);
void lcm_free(Lcm *l);
void lcm_scalings(const Lcm *l, int t, float *c_skip, float *c_out); // c_skip and c_out at timestep t
// One step of DDIM from t_{index + 1} to t_index, given the network's output.
Tensor *lcm_solve(const Lcm *l, Tensor *z, Tensor *output, const int *index);
// Algorithm 1 up to its loss. Only the student's part is recorded.
Tensor *lcm_loss(const Lcm *l, const LcmBatch *b);
// Parts of it: the timesteps t_{index + ahead} of n pictures, and the consistency function f(z, w, c, t).
Times lcm_times(const Lcm *l, const int *index, int n, int ahead);
Tensor *lcm_consistency(const Lcm *l, const UNet *net, Tensor *z, Times at, Tensor *text, const float *w);

// A network that begins as the teacher. The guidance embedding, which the teacher lacks, begins at zero.
UNet *lcm_student(const Model *teacher, UNetConfig c, Params *params);
// A network over the optimiser's moving averages. unet_view_free() frees it.
UNet *lcm_target(UNetConfig c, const Optimiser *o, Params *params);

// The training loop. after_step (may be NULL) is called after every step.
void lcm_distill(const Lcm *l, Run *run, const Model *teacher, const Pairs *pairs,
                 void (*after_step)(void *, long step), void *context);

// ---- Phase 3: lora.c --------------------------------------------------------------------------------------

// A LoRA: low-rank adapters for some layers of a model, as one file holds them.
typedef struct {
    Layer *layer;
    Adapter adapter; // down (rank, in) or (rank, kh, kw, in), up (out, rank)
    float alpha;     // the adapter's scale is strength * alpha / rank
} LoraPart;
typedef struct {
    Params params; // "unet.conv_in.lora_A.weight" (down), "unet.conv_in.lora_B.weight" (up), ...
    LoraPart *parts;
    int count;
    char *mode;  // how it was trained: "finetune", "mimic", "consistency"; NULL: not known
    char *title; // what its metadata calls it, or ""
} Lora;
// New adapters for the layers that `targets` names (see lora.c). As in PEFT, down is random and up is zero.
Lora *lora_new(const Params *model, const char *targets, int rank, float alpha, Random *r);
LoraPart *lora_add(Lora *l, Layer *layer, int rank, float alpha); // not filled; before lora_attach()
Layer **lora_layers(const Params *model, int *count); // those that can have an adapter, in the model's order
// From lora_attach() to lora_detach() the layers compute y += strength * alpha / rank * up(down(x)).
void lora_attach(Lora *l, float strength);
void lora_detach(Lora *l);
void lora_merge(const Lora *l, float strength); // adds the update to the layers' weights, permanently
void lora_free(Lora *l);

// Files, with diffusers' and PEFT's keys, older ones, kohya's.
Lora *lora_load(const Params *model, const char *path); // dies where a part of the file does not fit
bool lora_fits(const Params *model, const char *path);  // would lora_load() take it?
void lora_save(const Lora *l, const char *path, LoraFormat f, Type type);
bool lora_describe(const char *path); // to stdout; false if it is none

// How the authors of LoRAs that were distilled for a few steps draw with them.
typedef struct {
    const char *name;     // for messages; NULL: it seems to be none of these
    int scheduler, steps; // scheduler: SchedulerKind; -1: none of these
    float cfg, eta;
    bool trailing; // the timesteps' spacing
} FewSteps;
FewSteps lora_few_steps(const Lora *l, const char *path); // path: its file's. A guess is said in a line

// Fine-tuning: the loss of a batch of latents z at the timesteps t (n, host). min_snr 0: no weighting.
Tensor *lora_finetune_loss(const Scheduler *s, const UNet *net, Tensor *z, Tensor *noise, Tensor *text,
                           const int *t, float min_snr);
typedef struct {
    float dropout; // fraction of pictures that come without their caption
    float min_snr; // 5 in the paper; 0: no weighting
} FinetuneConfig;
void lora_finetune(Run *run, const Model *model, const Lora *lora, const Pairs *pairs, FinetuneConfig c);

// Distillation by imitation. How latents become the distributions of the KL divergence is told in lora.c.
typedef enum { KL_ELEMENTS, KL_CHANNELS, KL_GAUSSIANS } KlReading;
typedef struct {
    float mse_weight, kl_weight, temperature;
    KlReading reading;
} MimicConfig;
Tensor *kl_divergence(Tensor *teacher, Tensor *student, KlReading reading, float temperature);
// l->teacher is a full LCM, l->student the base with adapters. The two losses come without their weights.
void lora_mimic_losses(const Lcm *l, const LcmBatch *b, MimicConfig c, Tensor **mse, Tensor **kl);
void lora_mimic(const Lcm *l, Run *run, const Model *model, const Lora *lora, const Pairs *pairs,
                MimicConfig c);

// ---- Phase 4: fid.c ---------------------------------------------------------------------------------------

// Inception-v3 in the form that FID uses, up to its features. `config` is one JSON object, NULL for that
// network:
//   {"size": 299,              pictures come in size x size, 3 channels, about [-1, 1]
//    "width": 16,              channels in sixteenths of Inception-v3's
//    "a": 3, "c": 4, "e": 2}   blocks of each kind (at most these)
// A weights file carries it as the metadata entry "inception"; a file without one is Inception-v3 itself.
// Other keys do not matter here (the toy world's judge has some).
typedef struct Inception Inception;
// Declares parameters under pytorch-fid's names; nothing is loaded. path: where config is from, for messages.
Inception *inception_new(const char *config, const char *path);
Inception *inception_load(const char *path); // from safetensors, ready to compute: batch norm is folded
Params *inception_params(Inception *net); // of each unit: conv, bn (weight, bias, running_mean, running_var)
void inception_free(Inception *net);
int inception_size(const Inception *net); // of the side of its pictures
int inception_dim(const Inception *net);  // features: 2048
// x (n, size, size, 3) -> features (n, dim). Until it is folded, batch norm uses the statistics of the batch,
// as in training. trace() sees the output of every convolution.
Tensor *inception_features(Inception *net, Tensor *x);
void inception_fold(Inception *net); // batch norm joins the convolutions: from now on inference only

// A set of pictures as FID sees it.
typedef struct {
    char *path;
    long count;         // pictures; 0 where the statistics do not say
    int dim;            // features
    uint64_t made_by;   // fid_made_by(); 0: statistics of another program do not say
    double *mu, *sigma; // (dim), (dim, dim): mean and covariance (divided by count - 1)
    float *features;    // (count, dim), or NULL where they were not kept
    char **names;       // (count) files; NULL where the set comes from statistics
} FidSet;
// On floats: pytorch-fid's bilinear without antialiasing; clean-fid's, Pillow's bicubic with antialiasing.
typedef enum { RESIZE_FID, RESIZE_CLEAN } FidResize;
typedef struct {
    FidResize resize;
    int batch;                                 // pictures a forward pass
    bool statistics, keep_features, recursive; // recursive: also pictures of folders within the folder
} FidOptions;
// A number of 53 bits, not 0, that another trained network or another resize does not have: sets compare only
// if it is the same.
uint64_t fid_made_by(const Inception *net, FidResize resize);
// The paths of the folder's pictures, sorted. Dies where there are none, or too few for statistics.
char **fid_list(const char *dir, FidOptions o, size_t *count);
FidSet fid_scan(Inception *net, const char *dir, FidOptions o); // all pictures of the folder
FidSet fid_scan_files(Inception *net, const char *dir, char *const *paths, size_t count, FidOptions o);
// pytorch-fid's file: mu (dim), sigma (dim, dim); and, which NumPy's readers pass over, made_by (1).
FidSet fid_read_statistics(const char *npz);
void fid_write_statistics(const FidSet *s, const char *npz);
void fid_set_free(FidSet *s);
// (size, size, 3), the network's input
void fid_resize(float *out, const Image *image, int size, FidResize how);

// Mean and covariance in one pass over any number of features, in any portions. Until the end the lower
// triangle of sigma is the sum of (x - mu)(x - mu)^T.
void moments_begin(FidSet *s);                                 // of no pictures, with dim set
void moments_add(FidSet *s, const float *features, int count); // (count, dim), at least one
void moments_end(FidSet *s);                                   // needs two at least

double frechet_distance(const double *mu1, const double *c1, const double *mu2, const double *c2, int dim);
double fid_distance(const FidSet *a, const FidSet *b);
// Kernel inception distance: the mean over 100 subsets of min(1000, count) pictures; and its standard error,
// NaN of less than 4. paired: the counts are equal, row i of both sets has the caption or the like in common.
double kid_distance(const FidSet *a, const FidSet *b, bool paired, uint64_t seed, double *standard_error);
// How much of what is drawn looks real, and how much of what is real is drawn: each 0 to 1, density from 0
// on. a: real pictures, b: drawn ones. NaN of 5 pictures or fewer.
typedef struct {
    double precision, recall, density, coverage;
} Neighbours;
Neighbours fid_neighbours(const FidSet *a, const FidSet *b);
// Of each of the first `rows` pictures of b the number of the picture of a whose features are nearest, and
// how far these are: (rows) each.
void fid_nearest(const FidSet *a, const FidSet *b, int rows, long *nearest, double *distance);
// 95 % interval about the FID's expectation at these numbers of pictures, by halving the sets `rounds` times
// (2 at least); NaN of less than 4 pictures.
void fid_interval(const FidSet *a, const FidSet *b, bool paired, int rounds, uint64_t seed, double ends[2]);

#endif
