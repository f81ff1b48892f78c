// lcm.c: Phase 2, latent consistency distillation (Luo et al. 2023, "Latent Consistency Models", Algorithm 1). A model
// that needs 50 guided steps becomes one that needs 4 without guidance.
//
// Sampling follows a path from noise z_T to a picture z_0 (the probability-flow ODE). A consistency model f(z_t, t)
// answers, from anywhere on the path, with the path's end. What makes it one: at two neighbouring points it must say
// the same. The nearer point is found by one step of an ODE solver that asks the frozen teacher; what f says there,
// in a slowly moving copy of the student, is the farther point's target. Guidance with scale w is part of the path,
// so w becomes an input of the network.
//
// The file is in reading order: the loop; Algorithm 1, one function; then what that function calls. There is no data
// set here (lib/io/pairs.c), no checkpoint or log (lib/io/train.c), no option or file (cli/lcm.c).
//
// Names are the paper's: theta the student's weights, theta- the target's, t_{n+k} and t_n two timesteps of the solver, k
// apart. `[L1]` ... mark the stops of doc/READING.md, the way of an LCM step.
#include "sd.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const LcmConfig lcm_defaults = {.k = 20,
                                .w_min = 5,
                                .w_max = 15,
                                .sigma_data = 0.5f,
                                .timestep_scaling = 10,
                                .loss = LOSS_HUBER,
                                .huber_c = 0.001f,
                                .boundary = true};

// ============================================================================================================
// The loop
// ============================================================================================================

// [L4] Repeat until done: draw a batch, its loss, its gradient; then theta and theta- move.
void lcm_distill(const Lcm *l, Run *run, const Model *teacher, const Pairs *pairs, void (*look)(void *, long),
                 void *context) {
    int n = run->batch, side = pairs->side, channels = pairs->channels;
    size_t numbers = (size_t)n * (size_t)side * (size_t)side * (size_t)channels;
    PairsBatch batch = pairs_batch(pairs, n);
    float *noise = xmalloc(numbers * sizeof(float)), *w = xmalloc((size_t)n * sizeof(float));
    int *index = xmalloc((size_t)n * sizeof(int));
    Random *r = &run->random;

    Scope whole = scope_begin();
    const char **nothing = xmalloc((size_t)n * sizeof *nothing);
    for (int i = 0; i < n; i++) nothing[i] = "";
    Tensor *no_text = encode_prompts(teacher, nothing, n);
    while (run_continues(run)) {
        // [L5] (z, c) ~ data, n ~ U[1, N], w ~ U[w_min, w_max], noise ~ N(0, I)
        pairs_draw(&batch, pairs, r);
        for (int i = 0; i < n; i++) {
            index[i] = random_below(r, l->solver_steps);
            w[i] = l->c.w_min + (l->c.w_max - l->c.w_min) * random_uniform(r);
        }
        random_normal(r, noise, numbers);

        Scope step = scope_begin();
        LcmBatch b = {.n = n,
                      .z = tensor_from(SHAPE(n, side, side, channels), batch.z),
                      .noise = tensor_from(SHAPE(n, side, side, channels), noise),
                      .text = text_encode(teacher->text_encoder, batch.ids, n),
                      .no_text = no_text,
                      .index = index,
                      .w = w};
        tape_begin();
        Tensor *loss = lcm_loss(l, &b);
        backward(loss);
        run_step(run, loss, NULL, batch.names); // theta: clipped, AdamW; theta- <- mu theta- + (1 - mu) theta
        tape_end();
        scope_end(step, NULL);
        if (look) look(context, run->step);
    }
    scope_end(whole, NULL);
    pairs_batch_free(&batch);
    free(noise), free(w), free(index), free(nothing);
}

// ============================================================================================================
// Algorithm 1
// ============================================================================================================

// What a batch's timesteps t (n) say: z_t = alpha z_0 + sigma noise, the scalings of the boundary condition, and how much
// each counts in the loss.
typedef struct {
    int n;
    float *t, *alpha, *sigma, *c_skip, *c_out, *lambda;
} Times;

static Times times_new(const Lcm *l, const int *index, int n, int behind);
static void times_free(Times at);
static Tensor *consistency(const Lcm *l, const UNet *net, Tensor *z, Times at, Tensor *text, const float *w);
static Tensor *guided(const Lcm *l, Tensor *z, Times at, const LcmBatch *b);

// One pass of Algorithm 1, up to its loss.
Tensor *lcm_loss(const Lcm *l, const LcmBatch *b) {
    Times far = times_new(l, b->index, b->n, 0);  // t_{n+k}, where the student stands
    Times near = times_new(l, b->index, b->n, 1); // t_n, k timesteps nearer to the picture

    // 1. [L6] z_{t_{n+k}} ~ N(alpha(t_{n+k}) z, sigma(t_{n+k})^2 I)
    Tensor *z_far = combine_each(far.alpha, b->z, far.sigma, b->noise);

    // 2. The path from there to t_n, as the teacher has it under guidance w; nothing is recorded:
    //    z^_{t_n} = z_{t_{n+k}} + (1 + w) Psi(z_{t_{n+k}}, t_{n+k}, t_n, c) - w Psi(z_{t_{n+k}}, t_{n+k}, t_n, no c)
    bool recording = tape_pause();
    Scope passing = scope_begin();
    Tensor *z_near = lcm_solve(l, z_far, guided(l, z_far, far, b), b->index);

    // 3. [L9] What the target says there: f_{theta-}(z^_{t_n}, w, c, t_n). A constant.
    Tensor *target = scope_end(passing, consistency(l, l->target, z_near, near, b->text, b->w));
    tape_resume(recording);

    // 4. [L10] L = lambda(t_{n+k}) d(f_theta(z_{t_{n+k}}, w, c, t_{n+k}), target)
    Tensor *prediction = consistency(l, l->student, z_far, far, b->text, b->w);
    Tensor *loss = loss_between(prediction, target, far.lambda, l->c.loss, l->c.huber_c);
    times_free(far), times_free(near);
    return loss;
}

// ============================================================================================================
// Its parts
// ============================================================================================================

// [L7] The teacher with guidance, as one batch of two: without the captions, and with them.
//   out = out_c + w (out_c - out_0)
// This is the paper's w, which is 0 for no guidance; diffusers' guidance_scale is w + 1. The predicted picture and the
// predicted noise are affine in `out`, so guiding the network's output guides them both.
static Tensor *guided(const Lcm *l, Tensor *z, Times at, const LcmBatch *b) {
    size_t n = (size_t)at.n;
    float *t = xmalloc(4 * n * sizeof(float)), *with = t + 2 * n, *without = t + 3 * n;
    memcpy(t, at.t, n * sizeof(float)), memcpy(t + n, at.t, n * sizeof(float));
    for (size_t i = 0; i < n; i++) with[i] = 1 + b->w[i], without[i] = -b->w[i];
    Tensor *both = unet(l->teacher, stack(z, z), t, stack(b->no_text, b->text), NULL);
    Tensor *out = combine_each(with, take(both, at.n, at.n), without, take(both, 0, at.n));
    free(t);
    return out;
}

// z_t = alpha x0 + sigma eps, solved for x0 or eps, whichever of x0, eps and v = alpha eps - sigma x0 (Salimans and
// Ho 2022) the network gives as `out`. Each is a z + b out, with numbers a, b of the timestep.
static Tensor *predicted(const Lcm *l, Times at, Tensor *z, Tensor *out, bool want_x0) {
    size_t n = (size_t)at.n;
    float *a = xmalloc(2 * n * sizeof(float)), *b = a + n;
    for (size_t i = 0; i < n; i++) {
        float alpha = at.alpha[i], sigma = at.sigma[i];
        switch (l->schedule.config.prediction_type) {
        case EPSILON: a[i] = want_x0 ? 1 / alpha : 0, b[i] = want_x0 ? -sigma / alpha : 1; break;
        case V_PREDICTION: a[i] = want_x0 ? alpha : sigma, b[i] = want_x0 ? -sigma : alpha; break;
        case SAMPLE: a[i] = want_x0 ? 0 : 1 / sigma, b[i] = want_x0 ? 1 : -alpha / sigma; break;
        }
    }
    Tensor *y = combine_each(a, z, b, out);
    free(a);
    return y;
}

// [L8] Psi, the solver: DDIM (Song et al. 2020), towards the predicted picture, keeping the predicted noise.
//   z_{t_n} = alpha(t_n) x0 + sigma(t_n) eps
Tensor *lcm_solve(const Lcm *l, Tensor *z, Tensor *output, const int *index) {
    int n = z->shape[0];
    Times far = times_new(l, index, n, 0), near = times_new(l, index, n, 1);
    Tensor *x0 = predicted(l, far, z, output, true), *eps = predicted(l, far, z, output, false);
    Tensor *z_near = combine_each(near.alpha, x0, near.sigma, eps);
    times_free(far), times_free(near);
    return z_near;
}

// The consistency function f(z, w, c, t) = c_skip(t) z + c_out(t) x0, with x0 what the network predicts.
static Tensor *consistency(const Lcm *l, const UNet *net, Tensor *z, Times at, Tensor *text, const float *w) {
    Tensor *x0 = predicted(l, at, z, unet(net, z, at.t, text, w), true);
    return combine_each(at.c_skip, z, at.c_out, x0);
}

// [L11] c_skip(0) = 1 and c_out(0) = 0, so f(z, 0) = z whatever the network says: where a path ends, it ends. Without
// this boundary condition f = 0 would satisfy everything that the loss asks for. In double, as the sampler has it.
void lcm_scalings(const Lcm *l, int t, float *c_skip, float *c_out) {
    double data = (double)l->c.sigma_data, scaled = (double)t * (double)l->c.timestep_scaling;
    *c_skip = l->c.boundary ? (float)(data * data / (scaled * scaled + data * data)) : 0;
    *c_out = l->c.boundary ? (float)(scaled / sqrt(scaled * scaled + data * data)) : 1;
}

// lambda(t), which Algorithm 1 leaves at 1. An error of the predicted noise reaches the picture sigma / alpha times as large:
// 15 times at the last timestep, 0.13 times at the solver's first. So two thirds of the gradient come from the noisiest quarter
// of the timesteps. At the others f gets worse, even than the teacher's guess in one step; and then the noisy ones suffer
// too, for their targets are what f says at the less noisy ones. Weighed by alpha / sigma = sqrt(SNR), an error of the noise
// costs the same everywhere (under Huber, which is linear; a squared error would take SNR). Song and Dhariwal 2023, "Improved
// Techniques for Training Consistency Models", weigh by one over the step in sigma / alpha: much the same from 100 on.
static float lambda(const Lcm *l, float alpha, float sigma) { return l->c.snr_weighting ? alpha / sigma : 1; }

// behind: 0 for t_{index + 1}, 1 for the solver's timestep before it. Before the first of them, at k - 1, lies 0.
static Times times_new(const Lcm *l, const int *index, int n, int behind) {
    float *room = xmalloc(6 * (size_t)n * sizeof(float));
    Times at = {n, room, room + n, room + 2 * n, room + 3 * n, room + 4 * n, room + 5 * n};
    for (int i = 0; i < n; i++) {
        int t = (index[i] + 1 - behind) * l->c.k - 1;
        if (t < 0) t = 0;
        at.t[i] = (float)t;
        at.alpha[i] = sqrtf(l->schedule.alphas_cumprod[t]);
        at.sigma[i] = sqrtf(1 - l->schedule.alphas_cumprod[t]);
        lcm_scalings(l, t, &at.c_skip[i], &at.c_out[i]);
        at.lambda[i] = lambda(l, at.alpha[i], at.sigma[i]);
    }
    return at;
}

static void times_free(Times at) { free(at.t); }

Tensor *lcm_noised(const Lcm *l, Tensor *z, Tensor *noise, const int *index) {
    Times at = times_new(l, index, z->shape[0], 0);
    Tensor *z_t = combine_each(at.alpha, z, at.sigma, noise);
    times_free(at);
    return z_t;
}

Tensor *lcm_answer(const Lcm *l, const UNet *net, Tensor *z, const int *index, Tensor *text, const float *w) {
    Times at = times_new(l, index, z->shape[0], 0);
    Tensor *answer = consistency(l, net, z, at, text, w);
    times_free(at);
    return answer;
}

void lcm_init(Lcm *l, LcmConfig c, const Json *scheduler, const UNet *teacher, const UNet *student,
              const UNet *target) {
    *l = (Lcm){.c = c, .teacher = teacher, .student = student, .target = target};
    scheduler_init(&l->schedule, scheduler_config(scheduler, LCM));
    l->solver_steps = l->schedule.config.num_train_timesteps / c.k;
    if (c.snr_weighting && l->schedule.config.prediction_type != EPSILON)
        die("--weighting snr is for teachers that predict noise; this one does not");
    if (l->solver_steps < 1)
        die("--skip is %d; the schedule has %d timesteps", c.k, l->schedule.config.num_train_timesteps);
}

void lcm_free(Lcm *l) { scheduler_free(&l->schedule); }

// ============================================================================================================
// The three networks
// ============================================================================================================

// [L3] The student begins as the teacher. The layer that reads the guidance scale begins at zero, so that the student
// says exactly what the teacher says until it has learnt better. (diffusers' script begins with random weights there.)
UNet *lcm_student(const Model *teacher, UNetConfig c, Params *params) {
    UNet *student = unet_new(c, params);
    for (int i = 0; i < params->count; i++) {
        Tensor *t = params->list[i].tensor;
        const Tensor *from = params_find(&teacher->params, params->list[i].name);
        param_allocate(t, F32);
        if (from)
            backend.copy(mem(t), mem(from), tensor_count(t)); // from whatever type it is stored in
        else
            backend.fill(mem(t), 0, tensor_count(t));
    }
    return student;
}

// theta- lives in the optimiser, which moves it after every step; this network looks at that memory.
UNet *lcm_target(UNetConfig c, const Optimiser *o, Params *params) {
    UNet *target = unet_new(c, params);
    if (params->count != o->count) die("the moving average has %d tensors, not %d", o->count, params->count);
    for (int i = 0; i < params->count; i++)
        params->list[i].tensor->type = F32, params->list[i].tensor->data = o->ema[i];
    return target;
}

void lcm_target_free(UNet *target, Params *params) {
    for (int i = 0; i < params->count; i++) params->list[i].tensor->data = NULL; // the optimiser's
    params_free(params);
    free(target);
}
