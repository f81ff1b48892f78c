// lcm.c: Phase 2, latent consistency distillation (Luo et al. 2023, "Latent Consistency Models", Algorithm
// 1). A model that needs 50 steps of two UNet evaluations each becomes one that needs 4 steps of one each.
//
// Sampling follows a path from noise z_T to a picture z_0, the solution of a differential equation (an ODE).
// A consistency model f(z_t, t) predicts the end of the path from any point on it. Two points of one path
// have the same end, so f must give the same at both, and that is what it is trained for:
//   the student   predicts at one point of the path, at timestep t_{n+k}
//   the teacher   goes from there nearer to the end, to t_n, by one step of an ODE solver; it is frozen
//   the target    predicts at t_n; it is a moving average of the student, and gets no gradient
// The path depends on the teacher's guidance scale w, so w is an input of the student and the target.
//
// The file is in reading order: the loop, then Algorithm 1 as one function, then its parts. The data set is
// read in lib/io/pairs.c, the run is logged and saved in lib/io/train.c, and the options are in cli/train.c.
//
// Names are the paper's: theta are the student's weights, theta- the target's, t_{n+k} and t_n two
// neighbouring timesteps of the solver, k apart. In code the paper's n is `index`, and n is the batch size.
// `[L1]`, `[L2]`, ... are stops of doc/READING.md.
#include "sd.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const LcmConfig lcm_defaults = {.k = 20, // the fields: LcmConfig in sd.h
                                .w_min = 5,
                                .w_max = 15,
                                .sigma_data = 0.5f,
                                .timestep_scaling = 10,
                                .loss = LOSS_HUBER,
                                .huber_c = 0.001f,
                                .boundary = true};

// ---- The loop ---------------------------------------------------------------------------------------------

// [L4] Until all steps are done: draw a batch, compute its loss and gradient, move theta and theta-.
void lcm_distill(const Lcm *l, Run *run, const Model *teacher, const Pairs *pairs,
                 void (*after_step)(void *, long), void *context) {
    int n = run->batch, shape[] = {n, pairs->side, pairs->side, pairs->channels};
    Random *r = &run->random;
    PairsBatch batch = pairs_batch(pairs, n);
    Scope whole = scope_begin();
    const char **nothing = scope_memory((size_t)n * sizeof *nothing);
    for (int i = 0; i < n; i++) nothing[i] = "";
    Tensor *no_text = encode_prompts(teacher, nothing, n);
    int *index = scope_ints(n);
    float *w = scope_floats(n);

    if (after_step && run->step > 0) after_step(context, run->step); // a kill may have come before it
    while (run_continues(run)) {
        // [L5] (z, c) ~ data, index ~ U{0, ..., N - 1}, w ~ U[w_min, w_max], noise ~ N(0, I)
        Scope step = scope_begin();
        pairs_draw(&batch, pairs, r);
        for (int i = 0; i < n; i++) {
            index[i] = random_below(r, l->solver_steps);
            w[i] = l->c.w_min + (l->c.w_max - l->c.w_min) * random_uniform(r);
        }
        LcmBatch b = {.n = n,
                      .z = tensor_from(4, shape, batch.z),
                      .noise = random_tensor(r, 4, shape),
                      .text = text_encode(teacher->text_encoder, batch.ids, n),
                      .no_text = no_text,
                      .index = index,
                      .w = w};
        tape_begin();
        Tensor *loss = lcm_loss(l, &b);
        backward(loss);
        // theta by AdamW; theta- <- mu theta- + (1 - mu) theta
        bool done = run_step(run, loss, NULL, batch.names);
        tape_end();
        scope_end(step, NULL);
        if (after_step && done) after_step(context, run->step);
    }
    scope_end(whole, NULL);
    pairs_batch_free(&batch);
}

// ---- Algorithm 1 ------------------------------------------------------------------------------------------

static Tensor *guided(const Lcm *l, Tensor *z, Times at, const LcmBatch *b);
static float *lambda(const Lcm *l, Times at);

// Algorithm 1, up to its loss.
Tensor *lcm_loss(const Lcm *l, const LcmBatch *b) {
    Times far = lcm_times(l, b->index, b->n, 1);  // t_{n+k}, where the student predicts
    Times near = lcm_times(l, b->index, b->n, 0); // t_n, where the target predicts

    // 1. [L6] z_far ~ N(alpha(t_{n+k}) z, sigma(t_{n+k})^2 I). The paper calls it z_{t_{n+k}}.
    Tensor *z_far = noised(far, b->z, b->noise);

    // 2. One step of the solver to t_n, with the teacher under guidance w. The tape is paused.
    //    z_near = z_far + (1 + w) Psi(z_far, t_{n+k}, t_n, c) - w Psi(z_far, t_{n+k}, t_n, no caption)
    //    Psi is the change that the solver makes to z. The paper writes z_near as z_{t_n} with a hat.
    bool recording = tape_pause();
    Scope unrecorded = scope_begin();
    Tensor *z_near = lcm_solve(l, z_far, guided(l, z_far, far, b), b->index);

    // 3. [L9] The target's prediction there, f_{theta-}(z_near, w, c, t_n). It gets no gradient.
    Tensor *target = scope_end(unrecorded, lcm_consistency(l, l->target, z_near, near, b->text, b->w));
    tape_resume(recording);

    // 4. [L10] L = lambda(t_{n+k}) d(f_theta(z_far, w, c, t_{n+k}), target), d: Huber or MSE
    Tensor *prediction = lcm_consistency(l, l->student, z_far, far, b->text, b->w);
    return loss_between(prediction, target, lambda(l, far), l->c.loss, l->c.huber_c);
}

// ---- Its parts --------------------------------------------------------------------------------------------

// [L7] The teacher's output with guidance, from out_c with captions and out_0 without:
//   out = out_c + w (out_c - out_0)
// Both come from one batch of 2 n. This is the paper's w: 0 means no guidance, and diffusers' guidance_scale
// is w + 1. The paper guides Psi instead, with the same result: Psi is affine in `out`, and (1 + w) - w = 1.
static Tensor *guided(const Lcm *l, Tensor *z, Times at, const LcmBatch *b) {
    int n = at.n;
    float *t = scope_floats(2 * n), *with = scope_floats(n), *without = scope_floats(n);
    for (int i = 0; i < n; i++) t[i] = t[n + i] = at.t[i], with[i] = 1 + b->w[i], without[i] = -b->w[i];
    Tensor *both = unet(l->teacher, stack(z, z), t, stack(b->no_text, b->text), NULL);
    return combine_each(with, take(both, n, n), without, take(both, 0, n));
}

// [L8] The solver is DDIM (Song et al. 2020): the predicted x0 and eps, mixed for t_n. Psi is z_{t_n} - z.
//   z_{t_n} = alpha(t_n) x0 + sigma(t_n) eps
Tensor *lcm_solve(const Lcm *l, Tensor *z, Tensor *output, const int *index) {
    Times far = lcm_times(l, index, z->shape[0], 1), near = lcm_times(l, index, z->shape[0], 0);
    Tensor *x0 = predicted_x0(&l->schedule, far, z, output);
    Tensor *eps = predicted_eps(&l->schedule, far, z, output);
    return noised(near, x0, eps);
}

// The consistency function f(z, w, c, t) = c_skip(t) z + c_out(t) x0, where x0 is what the network predicts.
Tensor *lcm_consistency(const Lcm *l, const UNet *net, Tensor *z, Times at, Tensor *text, const float *w) {
    Tensor *x0 = predicted_x0(&l->schedule, at, z, unet(net, z, at.t, text, w));
    float *c_skip = scope_floats(2 * at.n), *c_out = c_skip + at.n;
    for (int i = 0; i < at.n; i++) lcm_scalings(l, (int)at.t[i], &c_skip[i], &c_out[i]);
    return combine_each(c_skip, z, c_out, x0);
}

// [L11] The boundary condition: c_skip(0) = 1 and c_out(0) = 0, so f(z, 0) = z whatever the network predicts.
// At t = 0 the path has ended. Without this condition f = 0 everywhere would be consistent, with a loss of 0.
void lcm_scalings(const Lcm *l, int t, float *c_skip, float *c_out) {
    *c_skip = 0, *c_out = 1;
    if (l->c.boundary)
        boundary_scalings((double)l->c.sigma_data, (double)l->c.timestep_scaling, t, c_skip, c_out);
}

// lambda(t), the weight of timestep t in the loss. It is 1 in the paper. As an option it is
//   lambda(t) = alpha / sigma = sqrt(SNR), the square root of the signal-to-noise ratio
// x0 = (z - sigma eps) / alpha, so an error of the predicted noise is multiplied by sigma / alpha. Without
// the option the noisiest timesteps dominate the gradient; weights/README.md has the measurements.
static float *lambda(const Lcm *l, Times at) {
    float *weight = scope_floats(at.n);
    for (int i = 0; i < at.n; i++) weight[i] = l->c.snr_weighting ? at.alpha[i] / at.sigma[i] : 1;
    return weight;
}

// The solver's timesteps t_{index + ahead}. The first is t_1 = k - 1; t_0 = 0 is the end of the path.
Times lcm_times(const Lcm *l, const int *index, int n, int ahead) {
    int *t = scope_ints(n);
    for (int i = 0; i < n; i++) t[i] = index[i] + ahead > 0 ? (index[i] + ahead) * l->c.k - 1 : 0;
    return times_at(&l->schedule, t, n);
}

void lcm_init(Lcm *l, LcmConfig c, SchedulerConfig scheduler, const UNet *teacher, const UNet *student,
              const UNet *target) {
    *l = (Lcm){.c = c, .teacher = teacher, .student = student, .target = target};
    scheduler_init(&l->schedule, scheduler);
    l->solver_steps = scheduler.num_train_timesteps / c.k;
    if (c.snr_weighting && scheduler.prediction_type != EPSILON)
        die("--weighting snr is for teachers that predict noise; this one does not");
    if (l->solver_steps < 1)
        die("--skip is %d; the schedule has %d timesteps", c.k, scheduler.num_train_timesteps);
    if (scheduler.prediction_type == EPSILON && !(l->schedule.alphas_cumprod[l->solver_steps * c.k - 1] > 0))
        die("scheduler_config.json: the schedule leaves nothing of the picture at its last timestep "
            "(\"rescale_betas_zero_snr\"), from which a teacher that predicts noise cannot lead");
}

void lcm_free(Lcm *l) { scheduler_free(&l->schedule); }

// ---- The three networks -----------------------------------------------------------------------------------

// [L3] The student begins as the teacher. The layer that reads the guidance scale begins at zero, so at first
// the student predicts exactly what the teacher predicts. (In diffusers' script that layer begins at random.)
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

// theta- lies in the optimiser, which updates it after every step. The target is a view of that memory.
UNet *lcm_target(UNetConfig c, const Optimiser *o, Params *params) {
    Scope s = scope_begin();
    Params averages = optimiser_averages(o);
    UNet *target = unet_view(c, &averages, params);
    scope_end(s, NULL);
    return target;
}
