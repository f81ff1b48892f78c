// samplers.c: what scheduler_config.json says, and the samplers of diffusers that Phase 1 does without:
// Euler, Euler ancestral, DPM-Solver++ 2M, and TCD, which belongs to distilled models; and noise schedules
// that end in noise alone. The noise schedule, the timesteps and the samplers of the paper are in sd.c.
#include "sd.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- scheduler_config.json --------------------------------------------------------------------------------

const Sampler samplers[] = {{"pndm", "PNDM", "PNDMScheduler", 'P'},
                            {"ddim", "DDIM", "DDIMScheduler", 'D'},
                            {"lcm", "LCM", "LCMScheduler", 'L'},
                            {"euler", "Euler", "EulerDiscreteScheduler", 'E'},
                            {"euler-a", "Euler a", "EulerAncestralDiscreteScheduler", 'A'},
                            {"dpm++2m", "DPM++ 2M", "DPMSolverMultistepScheduler", 'M'},
                            {"dpm++2m-karras", "DPM++ 2M Karras", "", 'M'}, // a setting of the one before
                            {"tcd", "TCD", "TCDScheduler", 'T'},
                            {0}};

// The keys of the constructors, the classes that have each, and the values that are obeyed; NULL where the
// value changes nothing. A class does not read other classes' keys, which a folder may keep from before.
static const struct {
    const char *key, *classes, *obeyed;
} keys[] = {
    {"num_train_timesteps|beta_start|beta_end", "PDLEAMT", "number"},
    {"beta_schedule", "PDLEAMT", "'linear'|'scaled_linear'|'squaredcos_cap_v2'"},
    {"trained_betas", "PDLEAMT", "list|null"},
    {"rescale_betas_zero_snr", "DLEAMT", "boolean|null"},
    {"prediction_type", "PA", "'epsilon'|'v_prediction'"},
    {"prediction_type", "DLEMT", "'epsilon'|'v_prediction'|'sample'"},
    {"timestep_spacing", "PDEAM", "'leading'|'trailing'|'linspace'"},
    {"timestep_spacing", "LT", NULL}, // their timesteps are those of the training
    // StableDiffusionPipeline, when it is made, changes the configuration that it is given: steps_offset
    // becomes 1 and a clip_sample that is true becomes false, whatever the file says or leaves to the class,
    // and whether the file or --scheduler chooses that. So neither is read. skip_prk_steps stays as it is.
    {"steps_offset", "PDLEAMT", NULL},
    {"clip_sample", "DLT", "boolean|null"},
    {"clip_sample_range", "DLT", NULL},
    {"skip_prk_steps", "P", "true"},
    {"set_alpha_to_one", "PDLT", "boolean|null"},
    {"thresholding", "DLM", "false|null"},
    {"thresholding", "T", NULL}, // TCD's step does not look at it
    {"dynamic_thresholding_ratio|sample_max_value", "DLMT", NULL},
    {"original_inference_steps|timestep_scaling", "LT", "number"},
    {"interpolation_type", "E", "'linear'"},
    {"timestep_type", "E", "'discrete'"},
    {"sigma_min|sigma_max", "E", "null"},
    {"use_karras_sigmas", "EM", "boolean"},
    {"use_exponential_sigmas|use_beta_sigmas", "EM", "false"},
    {"final_sigmas_type", "EM", "'zero'|'sigma_min'"},
    {"algorithm_type", "M", "'dpmsolver++'"},
    {"solver_type", "M", "'midpoint'|'logrho'|'bh1'|'bh2'"}, // other classes' names, which mean midpoint here
    {"solver_order", "M", "1|2"},
    {"lower_order_final|euler_at_final", "M", "boolean|null"},
    {"use_lu_lambdas|use_flow_sigmas", "M", "false|null"},
    {"lambda_min_clipped", "M", "'-inf'"},
    {"variance_type", "M", "null|'fixed_small'|'fixed_large'"}, // a learned one has channels of its own
    {"use_dynamic_shifting", "M", NULL}, // only with a mu, which Stable Diffusion's pipeline has not
    {"flow_shift|time_shift_type", "M", NULL},
    {"_use_default_values", "PDLEAMT", "null|false|[]"}, // keys for which the default counts, not the file
};
enum { KEYS = sizeof keys / sizeof *keys };

// The members whose keys this class has, checked; the caller frees the items.
static Json own_keys(const Json *j, char class) {
    JsonKey known[KEYS + 1] = {{NULL, NULL}};
    Json own = {.kind = JSON_OBJECT, .file = j->file, .items = xcalloc(j->length + 1, sizeof(Json))};
    for (int k = 0, count = 0; k < KEYS; k++) {
        if (!strchr(keys[k].classes, class)) continue;
        known[count++] = (JsonKey){keys[k].key, keys[k].obeyed};
        for (size_t i = 0; i < j->length; i++)
            if (place_in(keys[k].key, j->items[i].key) >= 0) own.items[own.length++] = j->items[i];
    }
    json_check_keys(&own, json_file(j), known);
    return own;
}

// null is Python's None, which is false; an absent key has its default.
static bool flag(const Json *j, const char *key, bool fallback) {
    const Json *value = json_get(j, key);
    return value ? json_get_bool(j, key, false) : fallback;
}

static int choice(const Json *j, const char *key, const char *fallback, const char *names) {
    return place_in(names, json_get_string(j, key, fallback));
}

static double beta(const Json *j, const char *key, double fallback) {
    double x = json_get_number(j, key, fallback);
    if (!(x >= 0 && x <= 1)) die("%s: \"%s\" is %g; a number from 0 to 1 is expected", json_file(j), key, x);
    return x;
}

static const Json *read_betas(const Json *j, int steps) {
    const Json *betas = json_get(j, "trained_betas");
    if (!betas || betas->kind == JSON_NULL) return NULL;
    bool fits = betas->kind == JSON_ARRAY && betas->length == (size_t)steps;
    for (size_t i = 0; fits && i < betas->length; i++) fits = betas->items[i].kind == JSON_NUMBER;
    if (!fits)
        die("%s: \"trained_betas\" must be %d numbers, as \"num_train_timesteps\" says", json_file(j), steps);
    return betas;
}

// The classes' own defaults, where the file is silent: those of diffusers' constructors.
SchedulerConfig scheduler_config(const Json *j, int kind) {
    const char *class = json_get_string(j, "_class_name", "PNDMScheduler"), *file = json_file(j);
    for (int i = 0; kind < 0 && i <= TCD; i++)
        if (!strcmp(class, samplers[i].class)) kind = i;
    if (kind < 0) die("%s: the scheduler \"%s\" is not known; choose one with --scheduler", file, class);
    SchedulerConfig c = {.kind = (SchedulerKind)kind, .steps_offset = 1};
    bool distilled = kind == LCM || kind == TCD, sigmas = kind >= EULER && kind <= DPMPP_2M_KARRAS;
    Json own = own_keys(j, samplers[kind].letter);
    c.num_train_timesteps = config_count(&own, file, "num_train_timesteps", 1000, 100000);
    c.beta_start = beta(&own, "beta_start", distilled ? 0.00085 : 0.0001);
    c.beta_end = beta(&own, "beta_end", distilled ? 0.012 : 0.02);
    c.beta_schedule = choice(&own, "beta_schedule", distilled ? "scaled_linear" : "linear",
                             "linear|scaled_linear|squaredcos_cap_v2");
    c.trained_betas = read_betas(j, c.num_train_timesteps);
    c.zero_snr = flag(&own, "rescale_betas_zero_snr", false);
    c.prediction_type = choice(&own, "prediction_type", "epsilon", "epsilon|v_prediction|sample");
    c.timestep_spacing = LEADING;
    if (!distilled)
        c.timestep_spacing =
            choice(&own, "timestep_spacing", sigmas ? "linspace" : "leading", "leading|trailing|linspace");
    c.set_alpha_to_one = flag(&own, "set_alpha_to_one", kind != PNDM);
    if (kind == PNDM && !flag(&own, "skip_prk_steps", false))
        die("%s: PNDM with Runge-Kutta steps (\"skip_prk_steps\" is absent or false) is not supported", file);
    if (distilled)
        c.original_inference_steps =
            config_count(&own, file, "original_inference_steps", 50, c.num_train_timesteps);
    c.timestep_scaling = (float)json_get_number(&own, "timestep_scaling", 10);
    c.karras = flag(&own, "use_karras_sigmas", false) || kind == DPMPP_2M_KARRAS;
    if (kind == DPMPP_2M && c.karras) c.kind = DPMPP_2M_KARRAS;
    if (c.kind == DPMPP_2M_KARRAS && c.beta_schedule == COSINE_BETAS) // nor does it run in diffusers
        die("%s: \"beta_schedule\" 'squaredcos_cap_v2' with Karras's sigmas is not supported", file);
    c.end_at_sigma_min = choice(&own, "final_sigmas_type", "zero", "zero|sigma_min");
    c.solver_order = (int)json_get_number(&own, "solver_order", 2);
    c.lower_order_final = flag(&own, "lower_order_final", true);
    c.euler_at_final = flag(&own, "euler_at_final", false);
    free(own.items);
    return c;
}

// Python writes -Infinity, as DPMSolverMultistepScheduler has it; JSON has none. Notes keys of no class.
Json *scheduler_load(const char *path) {
    size_t length;
    char *text = read_file(path, &length);
    for (char *at = text; (at = strstr(at, ": -Infinity")); at += 11) memcpy(at, ": \"-inf\"   ", 11);
    Json *j = json_parse(text, length, path);
    JsonKey known[KEYS + 1] = {{NULL, NULL}};
    for (int k = 0; k < KEYS; k++) known[k].key = keys[k].key;
    json_check_keys(j, path, known);
    free(text);
    return j;
}

SchedulerConfig sample_scheduler(const Model *m, const SampleOptions *o) {
    const Json *named = json_get(m->index_json, "scheduler"); // ["diffusers", a class], which diffusers takes
    const char *class =
        named && named->kind == JSON_ARRAY && named->length == 2 && named->items[1].kind == JSON_STRING
            ? named->items[1].string
            : NULL;
    const char *own = json_get_string(m->scheduler_json, "_class_name", "PNDMScheduler");
    if (o->scheduler < 0 && class && strcmp(class, own))
        die("%s names the scheduler %s, scheduler_config.json %s; choose one with --scheduler",
            json_file(named), class, own);
    // The pipeline of LCMs, unlike StableDiffusionPipeline, leaves clip_sample as it is.
    const char *pipeline = json_get_string(m->index_json, "_class_name", "");
    if (o->scheduler < 0 && starts_with(pipeline, "LatentConsistency") &&
        flag(m->scheduler_json, "clip_sample", false))
        die("%s: \"clip_sample\" is true, which %s obeys; what is supported is false",
            json_file(m->scheduler_json), pipeline);
    SchedulerConfig c = scheduler_config(m->scheduler_json, o->scheduler);
    if (o->spacing >= 0) c.timestep_spacing = o->spacing;
    c.eta = o->eta;
    return c;
}

// What a single file's metadata says of its model (SAI's ModelSpec, kohya), and two empty tensors by which
// other tools tell: "v_pred", the network predicts v, and "ztsnr", it learnt with an SNR of zero at the end.
// Returns the scheduler's configuration. Such a network is sampled by DDIM at the last timestep too (Lin et
// al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed").
Json *ldm_scheduler(const Store *s, const char *path, const char *scheduler) {
    static const char *const versions[][2] = {{"modelspec.architecture", "stable-diffusion-v1"},
                                              {"ss_base_model_version", "sd_v1"}};
    for (int i = 0; i < 2; i++) {
        const char *says = store_metadata(s, versions[i][0]);
        if (says && (i == 0 ? strcmp(says, versions[i][1]) : !starts_with(says, versions[i][1])))
            die("%s: its metadata says that \"%s\" is '%s'; what is supported is '%s'", path, versions[i][0],
                says, versions[i][1]);
    }
    const char *key = "modelspec.prediction_type";
    if (!store_metadata(s, key)) key = "modelspec.predict_key"; // ComfyUI's
    const char *type = store_metadata(s, key), *zero = store_metadata(s, "ss_zero_terminal_snr"),
               *kohya_v = store_metadata(s, "ss_v_parameterization");
    bool v = store_find(s, "v_pred") || (type && place_in("v|v_prediction", type) >= 0) ||
             (kohya_v && place_in("True|true|1", kohya_v) >= 0);
    bool zero_snr = store_find(s, "ztsnr") || (zero && place_in("True|true|1", zero) >= 0);
    if (type && !v && strcmp(type, "epsilon"))
        die("%s: its metadata says that \"%s\" is '%s'; what is supported is 'epsilon'|'v'", path, key, type);
    if (v) note("%s: it says that the network predicts v", path);
    if (zero_snr) note("%s: it says that the SNR is zero at the last timestep; DDIM samples it", path);
    char *text = format("%.*s%s%s}", (int)(strrchr(scheduler, '}') - scheduler), scheduler,
                        v ? ", \"prediction_type\": \"v_prediction\"" : "",
                        zero_snr ? ", \"_class_name\": \"DDIMScheduler\", \"rescale_betas_zero_snr\": true, "
                                   "\"timestep_spacing\": \"trailing\""
                                 : "");
    Json *config = json_parse(text, strlen(text), "the scheduler of Stable Diffusion v1.5");
    free(text);
    return config;
}

// ---- Sigmas: Euler, Euler ancestral, DPM-Solver++ ---------------------------------------------------------

// Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", divide z_t by
// sqrt(a). What is left of the schedule is one number, the noise beside a picture of size 1:
//   z_t / sqrt(a) = z_0 + sigma eps,   sigma = sqrt((1 - a) / a)
// Euler's latents are kept in that scale, as diffusers has them, and divided by sqrt(sigma^2 + 1) for the
// network. DPM-Solver++ keeps z_t as it is.
bool in_sigmas(const Scheduler *s) { return s->config.kind >= EULER && s->config.kind <= DPMPP_2M_KARRAS; }

static bool is_euler(const Scheduler *s) {
    return s->config.kind == EULER || s->config.kind == EULER_ANCESTRAL;
}

static float sigma_of(const Scheduler *s, int t) {
    float a = s->alphas_cumprod[t];
    return sqrtf((1 - a) / a);
}

// Between two timesteps sigma is interpolated.
static double sigma_at(const Scheduler *s, float t) {
    int low = (int)t;
    double sigma = (double)sigma_of(s, low), part = (double)t - low;
    return part > 0 ? part * ((double)sigma_of(s, low + 1) - sigma) + sigma : sigma;
}

// Its inverse interpolates the logarithm.
static double timestep_of(const Scheduler *s, double sigma) {
    int low = 0;
    double wanted = log(fmax(sigma, 1e-10));
    while (low < s->config.num_train_timesteps - 2 && log((double)sigma_of(s, low + 1)) <= wanted) low++;
    double from = log((double)sigma_of(s, low)), to = log((double)sigma_of(s, low + 1));
    return low + fmin(fmax((from - wanted) / (from - to), 0), 1);
}

// Karras's sigmas (equation 5) are evenly spaced in sigma^(1/7): more of the steps have little noise.
static void karras_sigmas(Scheduler *s) {
    const SchedulerConfig *c = &s->config;
    int n = s->count;
    bool euler = is_euler(s); // begins and ends where its timesteps do, DPM-Solver++ where the schedule does
    double most = euler ? sigma_at(s, s->timesteps[0]) : (double)sigma_of(s, c->num_train_timesteps - 1),
           least = euler ? sigma_at(s, s->timesteps[n - 1]) : (double)sigma_of(s, 0);
    double from = pow(most, 1 / 7.0), to = pow(least, 1 / 7.0);
    for (int i = 0; i < n; i++) {
        double sigma = pow(from + (i ? i / (n - 1.0) : 0) * (to - from), 7), t = timestep_of(s, sigma);
        s->sigmas[i] = (float)sigma;
        s->timesteps[i] = (float)(euler ? t : nearbyint(t));
    }
}

void sigma_schedule(Scheduler *s) {
    s->sigmas = xrealloc(s->sigmas, (size_t)(s->count + 1) * sizeof *s->sigmas);
    for (int i = 0; i < s->count; i++) s->sigmas[i] = (float)sigma_at(s, s->timesteps[i]);
    if (s->config.karras) karras_sigmas(s);
    s->sigmas[s->count] = s->config.end_at_sigma_min ? sigma_of(s, 0) : 0;
}

// z_t = alpha z_0 + sigma eps, whose sigma is not the one above: that is sigma / alpha.
static Times times_of_sigma(double sigma, int n) {
    float *alpha_sigma = scope_floats(2 * n);
    Times at = {n, NULL, alpha_sigma, alpha_sigma + n};
    for (int i = 0; i < n; i++) {
        at.alpha[i] = (float)(1 / sqrt(sigma * sigma + 1));
        at.sigma[i] = (float)(sigma / sqrt(sigma * sigma + 1));
    }
    return at;
}

static float euler_scale(const Scheduler *s) {
    double sigma = (double)s->sigmas[s->at];
    return (float)sqrt(sigma * sigma + 1);
}

Tensor *scheduler_input(const Scheduler *s, Tensor *z) {
    return is_euler(s) ? scale(z, 1 / euler_scale(s)) : z;
}

Tensor *scheduler_start(const Scheduler *s, Tensor *clean, Tensor *noise) {
    float sigma = in_sigmas(s) ? s->sigmas[s->at] : 0;
    if (clean && is_euler(s)) return combine(1, clean, sigma, noise);
    // Noise of size sigma, to which "leading" timesteps, which begin below the last one, add the picture's.
    if (is_euler(s)) return scale(noise, s->config.timestep_spacing == LEADING ? euler_scale(s) : sigma);
    if (!clean) return noise;
    int n = noise->shape[0], t = (int)s->timesteps[s->at];
    return noised(in_sigmas(s) ? times_of_sigma((double)sigma, n) : times_all_at(s, t, n), clean, noise);
}

// [S6] Euler's method (Karras et al., algorithm 1 without its churn). dz/dsigma = (z - x0) / sigma = eps, so
//   z' = z + (sigma' - sigma) eps = x0 + sigma' eps
// which is DDIM in this scale. Euler ancestral goes farther down, and up again by new noise:
//   z' = x0 + sigma_down eps + sigma_up noise,   sigma_up^2 = sigma'^2 (sigma^2 - sigma'^2) / sigma^2,
//                                                sigma_down^2 = sigma'^2 - sigma_up^2
Tensor *euler_step(const Scheduler *s, Tensor *z, Tensor *out, Tensor *noise) {
    double sigma = (double)s->sigmas[s->at], next = (double)s->sigmas[s->at + 1];
    double up = noise ? sqrt(next * next * (sigma * sigma - next * next) / (sigma * sigma)) : 0;
    Times now = times_of_sigma(sigma, z->shape[0]);
    Tensor *in = scheduler_input(s, z);
    Tensor *x0 = predicted_x0(s, now, in, out), *eps = predicted_eps(s, now, in, out);
    Tensor *down = combine(1, x0, (float)sqrt(next * next - up * up), eps);
    return noise ? combine(1, down, (float)up, noise) : down;
}

// [S7] DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), for z = alpha x0 + sigma eps. The equation over
// lambda, the logarithm of alpha / sigma, is solved exactly but for x0, which is extrapolated from this
// step's prediction and the one before:
//   z' = (sigma' / sigma) z - alpha' (e^-h - 1) D,   h = lambda' - lambda
//   D = x0 + (x0 - x0_before) / (2 r),               r = (lambda - lambda_before) / h
// The first step, and the last towards sigma 0, take D = x0. Our sigma is sigma / alpha, so e^-h is a ratio.
Tensor *dpmpp_2m_step(Scheduler *s, Tensor *z, Tensor *out) {
    const SchedulerConfig *c = &s->config;
    double sigma = (double)s->sigmas[s->at], next = (double)s->sigmas[s->at + 1];
    Times now = times_of_sigma(sigma, z->shape[0]), then = times_of_sigma(next, z->shape[0]);
    bool last = s->at == s->count - 1 &&
                (c->euler_at_final || (c->lower_order_final && s->count < 15) || !c->end_at_sigma_min);
    Tensor *x0 = predicted_x0(s, now, z, out), *d = x0;
    if (c->solver_order == 2 && s->history_count > 0 && !last) {
        double r = log((double)s->sigmas[s->at - 1] / sigma) / log(sigma / next);
        d = combine((float)(1 + 0.5 / r), x0, (float)(-0.5 / r), s->history[0]);
    }
    tensor_keep(&s->history[0], x0);
    s->history_count = 1;
    return combine(then.sigma[0] / now.sigma[0], z, then.alpha[0] * (float)(1 - next / sigma), d);
}

// Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1: sqrt(a) is
// shifted and scaled so that nothing of the picture is left at the last timestep, and the first stays.
void remove_last_signal(float *kept, int n) {
    double product = 1;
    float before = 1, *root = xmalloc((size_t)n * sizeof *root);
    for (int i = 0; i < n; i++) root[i] = sqrtf((float)(product *= (double)kept[i]));
    float last = root[n - 1], up = root[0] / (root[0] - last);
    for (int i = 0; i < n; i++) {
        float scaled = (root[i] - last) * up, a = scaled * scaled;
        kept[i] = 1 - (1 - a / before), before = a;
    }
    free(root);
}

// ---- TCD --------------------------------------------------------------------------------------------------

// Zheng et al. 2024, "Trajectory Consistency Distillation", algorithm 4 (strategic stochastic sampling). The
// network was distilled to jump from timestep t to any before it. It jumps to u = (1 - eta) t', farther than
// the next timestep t', and new noise leads back to it:
//   z_u  = sqrt(a_u) x0 + sqrt(1 - a_u) eps
//   z_t' = sqrt(a_t' / a_u) z_u + sqrt(1 - a_t' / a_u) noise
// With eta 0, the default of diffusers' pipeline, u = t' and nothing is random.
Tensor *tcd_step(const Scheduler *s, Tensor *z, Tensor *out, Tensor *noise) {
    int t = (int)s->timesteps[s->at], next = s->at + 1 < s->count ? (int)s->timesteps[s->at + 1] : 0;
    int u = (int)floorf((float)(1 - s->config.eta) * (float)next), n = z->shape[0];
    Times now = times_all_at(s, t, n);
    Tensor *x0 = predicted_x0(s, now, z, out), *eps = predicted_eps(s, now, z, out);
    Tensor *z_u = noised(times_all_at(s, u, n), x0, eps);
    if (!noise) return z_u;
    float kept = s->alphas_cumprod[next] / s->alphas_cumprod[u];
    return combine(sqrtf(kept), z_u, sqrtf(1 - kept), noise);
}
