// check.c: the checks of the exercises of doc/COURSE.md, each from a definition and not from the code that it
// checks. `make exercise N=1` links it with a copy of one source file that has a mistake; see run.sh.
#include "sd.h"
#include "lib/io/architectures.h"
#include "weights/toy/made.h"
#include "test/test.h" // keep_largest

static bool right = true;

// Prints what is expected and what came out; NaN is never near.
static void expect(const char *what, double want, double got, double tolerance) {
    bool near = fabs(got - want) <= tolerance * fmax(fabs(want), 1e-6);
    printf("  %-58s %12.6g %12.6g  %s\n", what, want, got, near ? "" : "<-");
    right = right && near;
}

static void heading(const char *what) { printf("%s\n  %-58s %12s %12s\n", what, "", "expected", "came out"); }

static Tensor *drawn(uint64_t seed, int dims, const int *shape) {
    Random r;
    random_seed(&r, seed);
    size_t n = 1;
    for (int i = 0; i < dims; i++) n *= (size_t)shape[i];
    float *x = xmalloc(n * sizeof(float));
    random_normal(&r, x, n);
    Tensor *t = tensor_from(dims, shape, x);
    free(x);
    return t;
}

static Json *noise_schedule(void) {
    static const char text[] =
        "{\"beta_start\": 0.00085, \"beta_end\": 0.012, \"beta_schedule\": \"scaled_linear\", "
        "\"clip_sample\": false}";
    return json_parse(text, sizeof text - 1, "the noise schedule");
}

// ---- 1: a sampler -----------------------------------------------------------------------------------------

// A network that is always right: at z_t = sqrt(a) x0 + sqrt(1 - a) eps it predicts eps. Then DDIM never
// leaves the line from eps to x0: after each step z is sqrt(a') x0 + sqrt(1 - a') eps, with the a' of the
// next timestep.
static void sampler(void) {
    Json *j = noise_schedule();
    Scheduler s;
    scheduler_init(&s, scheduler_config(j, DDIM));
    scheduler_set_timesteps(&s, 10);
    Tensor *x0 = drawn(1, SHAPE(1, 8, 8, 4)), *eps = drawn(2, SHAPE(1, 8, 8, 4));
    float a = s.alphas_cumprod[(int)s.timesteps[0]];
    Tensor *z = combine(sqrtf(a), x0, sqrtf(1 - a), eps);
    heading("DDIM with a network that is always right: how far z is from where it should be");
    for (int i = 0; i < 10; i++) {
        z = scheduler_step(&s, z, eps, NULL);
        float last = s.config.set_alpha_to_one ? 1 : s.alphas_cumprod[0];
        a = i < 9 ? s.alphas_cumprod[(int)s.timesteps[i + 1]] : last;
        float *want = tensor_read(combine(sqrtf(a), x0, sqrtf(1 - a), eps)), *got = tensor_read(z);
        double far = 0;
        for (int k = 0; k < 256; k++) keep_largest(&far, fabs((double)(got[k] - want[k])));
        char *what = format("after step %d, timestep %d", i + 1, i < 9 ? (int)s.timesteps[i + 1] : 0);
        expect(what, 0, far < 1e-4 ? 0 : far, 0);
        free(want), free(got), free(what);
    }
    scheduler_free(&s), json_free(j);
}

// ---- 2: a step of latent consistency distillation ---------------------------------------------------------

static UNet *made_unet(const char *name, Params *p) {
    const char *text = architecture(name)->unet;
    Json *j = json_parse(text, strlen(text), name);
    UNet *u = unet_new(unet_config(j), p);
    json_free(j);
    made_params(p, "", MADE_SOFT, F32);
    return u;
}

// At the solver's first timestep the nearer point of the path is its end, t = 0, and there the boundary
// condition says f(z, 0) = z whatever the network predicts. So the target is the solver's own result, and the
// loss can be told without it:
//   d(f_student(z_far), z_near),   z_near = one step of DDIM from z_far with out_c + w (out_c - out_0)
static void consistency_step(void) {
    Params teacher_p = {0}, student_p = {0};
    UNet *teacher = made_unet("tiny", &teacher_p), *student = made_unet("tiny-lcm", &student_p);
    Json *j = noise_schedule();
    LcmConfig c = lcm_defaults;
    c.loss = LOSS_MSE;
    heading("One step at the solver's first timestep, where the target is the solver's own result");
    for (int i = 0; i < 2; i++) {
        Lcm l;
        lcm_init(&l, c, scheduler_config(j, LCM), teacher, student, student);
        float w = i ? 8 : 0, t = (float)(c.k - 1);
        int index = 0;
        Scope s = scope_begin();
        LcmBatch b = {.n = 1,
                      .z = drawn(3, SHAPE(1, 16, 16, 4)),
                      .noise = drawn(4, SHAPE(1, 16, 16, 4)),
                      .text = drawn(5, SHAPE(1, 32, 128)),
                      .no_text = drawn(6, SHAPE(1, 32, 128)),
                      .index = &index,
                      .w = &w};
        double got = (double)tensor_item(lcm_loss(&l, &b));
        Times there = lcm_times(&l, &index, 1, 1);
        Tensor *far = noised(there, b.z, b.noise);
        Tensor *with = unet(teacher, far, &t, b.text, NULL),
               *without = unet(teacher, far, &t, b.no_text, NULL);
        Tensor *near = lcm_solve(&l, far, combine(1 + w, with, -w, without), &index);
        Tensor *prediction = lcm_consistency(&l, student, far, there, b.text, &w);
        char *what = format("loss (mean squared) with guidance w = %g", (double)w);
        expect(what, (double)tensor_item(loss_between(prediction, near, NULL, LOSS_MSE, 0)), got, 1e-4);
        free(what);
        scope_end(s, NULL);
        lcm_free(&l);
    }
    json_free(j), params_free(&teacher_p), params_free(&student_p);
    free(teacher), free(student);
}

// ---- 3: the KL divergence ---------------------------------------------------------------------------------

enum { N = 2, SIDE = 4, CHANNELS = 4, ALL = SIDE * SIDE * CHANNELS };

static void softmax(double *p, const float *x, double temperature) {
    double sum = 0;
    for (int k = 0; k < ALL; k++) sum += p[k] = exp((double)x[k] / temperature);
    for (int k = 0; k < ALL; k++) p[k] /= sum;
}

// KL(P || Q) = sum P log(P / Q), the mean over samples; P of the teacher's latent, Q of the student's, both
// softmax of x / T. Its gradient at the student's latent is (Q - P) / (T n).
static void divergence(void) {
    const double temperature = 2;
    tape_begin();
    Params p = {0};
    Tensor *teacher = drawn(7, SHAPE(N, SIDE, SIDE, CHANNELS)),
           *first = drawn(8, SHAPE(N, SIDE, SIDE, CHANNELS));
    Tensor *student = param_tensor(&p, SHAPE(N, SIDE, SIDE, CHANNELS), "student");
    param_allocate(student, F32);
    float *x = tensor_read(teacher), *y = tensor_read(first);
    tensor_write(student, y);
    param_trainable(student);
    Tensor *kl = kl_divergence(teacher, student, KL_ELEMENTS, (float)temperature);
    backward(kl);
    double want = 0, most = 0, P[ALL], Q[ALL];
    float gradient[N * ALL];
    backend.download(gradient, student->gradient, sizeof gradient);
    for (int i = 0; i < N; i++) {
        softmax(P, x + i * ALL, temperature), softmax(Q, y + i * ALL, temperature);
        for (int k = 0; k < ALL; k++) {
            want += P[k] * log(P[k] / Q[k]) / N;
            keep_largest(&most, fabs((double)gradient[i * ALL + k] - (Q[k] - P[k]) / (temperature * N)));
        }
    }
    heading("The divergence of two latents as distributions, KL(teacher || student)");
    expect("its value", want, (double)tensor_item(kl), 1e-4);
    expect("its gradient at the student: largest deviation", 0, most < 1e-6 ? 0 : most, 0);
    tape_end();
    free(x), free(y), params_free(&p);
}

// ---- 4: the Frechet distance ------------------------------------------------------------------------------

// Of Gaussians whose covariances are diagonal, d^2 = sum (m1 - m2)^2 + (s1 - s2)^2, with s the standard
// deviations: two bell curves side by side differ in where they stand and in how wide they are.
static void frechet(void) {
    enum { D = 3 };
    static const struct {
        const char *what;
        double mean[2][D], deviation[2][D];
    } cases[] = {
        {"the same Gaussian twice", {{1, 2, 3}, {1, 2, 3}}, {{1, 1, 2}, {1, 1, 2}}},
        {"twice as wide in one direction", {{0}, {0}}, {{1, 1, 1}, {2, 1, 1}}},
        {"moved by 3 in one direction and by 4 in another", {{0}, {3, 4, 0}}, {{1, 1, 1}, {1, 1, 1}}},
        {"moved and widened", {{0}, {1, 0, 2}}, {{1, 2, 1}, {3, 2, 2}}}};
    heading("The distance of two Gaussians");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double c[2][D * D] = {{0}}, want = 0;
        for (int k = 0; k < D; k++) {
            for (int g = 0; g < 2; g++) c[g][k * D + k] = cases[i].deviation[g][k] * cases[i].deviation[g][k];
            want += pow(cases[i].mean[0][k] - cases[i].mean[1][k], 2) +
                    pow(cases[i].deviation[0][k] - cases[i].deviation[1][k], 2);
        }
        double got = frechet_distance(cases[i].mean[0], c[0], cases[i].mean[1], c[1], D);
        expect(cases[i].what, want, fabs(got) < 1e-9 ? 0 : got, 1e-6);
    }
}

// ---- 5: gradients by finite differences -------------------------------------------------------------------

typedef Tensor *Operation(Tensor **in);
static Tensor *do_linear(Tensor **in) {
    return linear(in[0], &(Layer){.weight = in[1], .bias = in[2], .name = "linear"});
}
static Tensor *do_conv(Tensor **in) {
    return conv2d(in[0], &(Layer){.weight = in[1], .bias = in[2], .name = "conv2d"}, 1, 1);
}
static Tensor *do_norm(Tensor **in) {
    return group_norm_silu(in[0], &(Layer){.weight = in[1], .bias = in[2], .name = "norm"}, 2, 1e-5f);
}
static Tensor *do_attention(Tensor **in) { return attention(in[0], in[1], in[2], 2, false); }
static Tensor *do_geglu(Tensor **in) { return geglu(in[0]); }
static Tensor *do_multiply(Tensor **in) { return multiply(in[0], in[1]); }
static Tensor *do_add(Tensor **in) { return add(in[0], in[1]); }
static Tensor *do_combine(Tensor **in) { return combine(0.5f, in[0], 2, in[1]); }
static Tensor *do_combine_each(Tensor **in) {
    return combine_each((float[]){0.5f, 3}, in[0], (float[]){2, -1}, in[1]);
}
static Tensor *do_add_vector(Tensor **in) { return add_vector(in[0], in[1]); }
static Tensor *do_concat(Tensor **in) { return concat(in[0], in[1]); }
static Tensor *do_upsample(Tensor **in) { return upsample(in[0]); }
static Tensor *do_log_softmax(Tensor **in) { return log_softmax(in[0]); }

typedef struct {
    const char *name;
    Operation *f;
    const char *inputs[3];
    int dims[3], shape[3][4];
} Case;
static const Case operations[] = {
    {"linear", do_linear, {"x", "weight", "bias"}, {2, 2, 1}, {{3, 4}, {5, 4}, {5}}},
    {"conv2d", do_conv, {"x", "weight", "bias"}, {4, 4, 1}, {{1, 4, 4, 3}, {2, 3, 3, 3}, {2}}},
    {"group norm, SiLU", do_norm, {"x", "gamma", "beta"}, {4, 1, 1}, {{2, 3, 3, 4}, {4}, {4}}},
    {"attention", do_attention, {"q", "k", "v"}, {3, 3, 3}, {{1, 5, 8}, {1, 3, 8}, {1, 3, 8}}},
    {"geglu", do_geglu, {"x"}, {2}, {{3, 8}}},
    {"multiply", do_multiply, {"a", "b"}, {2, 2}, {{3, 4}, {3, 4}}},
    {"add", do_add, {"a", "b"}, {2, 2}, {{3, 4}, {3, 4}}},
    {"combine", do_combine, {"x", "z"}, {2, 2}, {{3, 4}, {3, 4}}},
    {"combine_each", do_combine_each, {"x", "z"}, {2, 2}, {{2, 4}, {2, 4}}},
    {"add_vector", do_add_vector, {"x", "v"}, {4, 2}, {{2, 2, 2, 3}, {2, 3}}},
    {"concat", do_concat, {"a", "b"}, {2, 2}, {{3, 2}, {3, 4}}},
    {"upsample", do_upsample, {"x"}, {4}, {{1, 2, 2, 3}}},
    {"log_softmax", do_log_softmax, {"x"}, {2}, {{2, 6}}},
};

// The loss is the mean square of the distance to some other tensor of the result's shape.
static double loss_of(const Case *c, Tensor **in, bool differentiate) {
    if (differentiate) tape_begin();
    Scope s = scope_begin();
    Tensor *y = c->f(in), *loss = loss_between(y, drawn(99, y->dims, y->shape), NULL, LOSS_MSE, 0);
    if (differentiate) backward(loss);
    double value = (double)tensor_item(loss);
    scope_end(s, NULL);
    if (differentiate) tape_end();
    return value;
}

// Slopes (L(x + h) - L(x - h)) / 2h beside what backward() says. In fp32 the two agree to some thousandths.
static void gradients(void) {
    const float h = 1e-2f;
    heading("Gradients, relative to the largest: how far backward() is from the slope of the loss");
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++) {
        const Case *c = &operations[i];
        Params p = {0};
        Tensor *in[3] = {0};
        for (int k = 0; k < 3 && c->inputs[k]; k++) {
            in[k] = param_tensor(&p, c->dims[k], c->shape[k], "%s", c->inputs[k]);
            param_allocate(in[k], F32);
            float *x = tensor_read(drawn(10 * i + (size_t)k, c->dims[k], c->shape[k]));
            tensor_write(in[k], x);
            param_trainable(in[k]);
            free(x);
        }
        loss_of(c, in, true);
        for (int k = 0; k < 3 && c->inputs[k]; k++) {
            size_t n = tensor_count(in[k]);
            float *x = tensor_read(in[k]), *says = xmalloc(n * sizeof(float));
            backend.download(says, in[k]->gradient, n * sizeof(float));
            double most = 0, far = 0;
            for (size_t e = 0; e < n; e++) {
                float before = x[e];
                double at[2];
                for (int side = 0; side < 2; side++) {
                    x[e] = side ? before + h : before - h;
                    tensor_write(in[k], x);
                    at[side] = loss_of(c, in, false);
                }
                x[e] = before;
                tensor_write(in[k], x);
                double slope = (at[1] - at[0]) / (2 * (double)h);
                keep_largest(&most, fabs(slope)), keep_largest(&far, fabs(slope - (double)says[e]));
            }
            char *what = format("%s, %s", c->name, c->inputs[k]);
            expect(what, 0, far / most < 0.02 ? 0 : far / most, 0);
            free(x), free(says), free(what);
        }
        params_free(&p);
    }
}

// ---- 8: Euler's step --------------------------------------------------------------------------------------

// Of any z and any prediction of the noise, z' = z + (sigma' - sigma) eps; with new noise of size sigma_up
// the old one is left at sigma_down, and sigma_up^2 + sigma_down^2 = sigma'^2.
static void euler(void) {
    static const SchedulerKind kinds[] = {EULER, EULER_ANCESTRAL};
    Json *j = noise_schedule();
    for (int k = 0; k < 2; k++) {
        Scheduler s;
        scheduler_init(&s, scheduler_config(j, kinds[k]));
        scheduler_set_timesteps(&s, 5);
        heading(k ? "Euler ancestral, from any z: how far z' is from where it should be"
                  : "Euler, from any z");
        for (int i = 0; i < 5; i++) {
            Tensor *z = drawn(10, SHAPE(1, 8, 8, 4)), *eps = drawn(11, SHAPE(1, 8, 8, 4)),
                   *noise = scheduler_wants_noise(&s) ? drawn(12, SHAPE(1, 8, 8, 4)) : NULL;
            float *z0 = tensor_read(z), *e = tensor_read(eps), *more = noise ? tensor_read(noise) : e;
            double sigma = (double)s.sigmas[i], next = (double)s.sigmas[i + 1], far = 0, most = 1;
            double up = noise ? next * sqrt(sigma * sigma - next * next) / sigma : 0,
                   down = sqrt(next * next - up * up);
            float *got = tensor_read(scheduler_step(&s, z, eps, noise));
            for (int n = 0; n < 256; n++) {
                double want = (double)z0[n] + (down - sigma) * (double)e[n] + up * (double)more[n];
                keep_largest(&far, fabs(want - (double)got[n])), keep_largest(&most, fabs(want));
            }
            char *what = format("step %d, sigma %.3g to %.3g", i + 1, sigma, next);
            expect(what, 0, far < 1e-5 * most ? 0 : far, 0);
            free(what), free(z0), free(e), free(got);
            if (noise) free(more);
        }
        scheduler_free(&s);
    }
    json_free(j);
}

// ---- 9: v-prediction --------------------------------------------------------------------------------------

// A network that is always right says v = alpha eps - sigma x0 of z = alpha x0 + sigma eps; then x0 and eps
// come back, also where alpha or sigma is next to nothing. What a network says that predicts eps stays right.
static void v_prediction(void) {
    static const char *const what[] = {"eps", "v"};
    Json *j = noise_schedule();
    Tensor *x0 = drawn(13, SHAPE(1, 8, 8, 4)), *eps = drawn(14, SHAPE(1, 8, 8, 4));
    float *x = tensor_read(x0), *e = tensor_read(eps);
    for (int v = 0; v < 2; v++) {
        SchedulerConfig c = scheduler_config(j, DDIM);
        c.prediction_type = v ? V_PREDICTION : EPSILON;
        Scheduler s;
        scheduler_init(&s, c);
        heading(v ? "A network that predicts v: largest deviation"
                  : "A network that predicts eps: largest deviation");
        for (int t = 99; t < 1000; t += 450) {
            Scope scope = scope_begin();
            Times at = times_all_at(&s, t, 1);
            float a = at.alpha[0], b = at.sigma[0];
            Tensor *z = noised(at, x0, eps), *out = v ? combine(a, eps, -b, x0) : eps;
            float *got[] = {tensor_read(predicted_x0(&s, at, z, out)),
                            tensor_read(predicted_eps(&s, at, z, out))};
            for (int k = 0; k < 2; k++) {
                double far = 0;
                for (int n = 0; n < 256; n++) keep_largest(&far, fabs((double)(got[k][n] - (k ? e : x)[n])));
                char *name = format("%s from %s, timestep %d", k ? "eps" : "x0", what[v], t);
                expect(name, 0, far < 1e-4 ? 0 : far, 0);
                free(name), free(got[k]);
            }
            scope_end(scope, NULL);
        }
        scheduler_free(&s);
    }
    free(x), free(e), json_free(j);
}

// ---- 10: a merge ------------------------------------------------------------------------------------------

// W' = W + s B A element by element, s = strength alpha / rank: of a linear layer and of a convolution.
static void merge(void) {
    Params p = {0};
    UNet *net = made_unet("tiny", &p);
    Random r;
    random_seed(&r, 15);
    const int rank = 4;
    const float alpha = 8, strength = 0.5f;
    Lora *l = lora_new(&p, "to_q,conv1", rank, alpha, &r);
    const LoraPart *parts[2] = {NULL, NULL};
    for (int i = 0; i < l->count; i++) {
        Tensor *up = l->parts[i].adapter.up;
        float *x = xmalloc(tensor_count(up) * sizeof *x);
        random_normal(&r, x, tensor_count(up));
        tensor_write(up, x);
        free(x);
        parts[l->parts[i].layer->weight->dims == 4] = &l->parts[i];
    }
    float *before[2];
    for (int k = 0; k < 2; k++) before[k] = tensor_read(parts[k]->layer->weight);
    lora_merge(l, strength);
    heading("Weights with adapters of rank 4 and alpha 8 merged at strength 0.5");
    for (int k = 0; k < 2; k++) {
        Tensor *w = parts[k]->layer->weight;
        size_t out = (size_t)w->shape[0], in = tensor_count(w) / out;
        float *got = tensor_read(w), *a = tensor_read(parts[k]->adapter.down),
              *b = tensor_read(parts[k]->adapter.up);
        double far = 0;
        for (size_t i = 0; i < out; i++)
            for (size_t c = 0; c < in; c++) {
                double want = (double)before[k][i * in + c];
                for (size_t q = 0; q < (size_t)rank; q++)
                    want += (double)(strength * alpha / rank) * (double)b[i * (size_t)rank + q] *
                            (double)a[q * in + c];
                keep_largest(&far, fabs(want - (double)got[i * in + c]));
            }
        expect(k ? "a convolution: largest deviation" : "a linear layer: largest deviation", 0,
               far < 1e-5 ? 0 : far, 0);
        free(got), free(a), free(b), free(before[k]);
    }
    lora_free(l), params_free(&p), free(net);
}

// ---- 11: the kernel inception distance --------------------------------------------------------------------

// The estimate as its definition has it, over all pairs of pictures, with k(x, y) = (x . y / D + 1)^3.
static void kid(void) {
    enum { M = 12, D = 6 };
    Random r;
    random_seed(&r, 16);
    float x[2][M * D];
    for (int s = 0; s < 2; s++) random_normal(&r, x[s], M * D);
    for (int i = 0; i < M * D; i++) x[1][i] = 0.7f * x[0][i] + 0.5f * x[1][i]; // pairs are alike
    FidSet sets[2];
    for (int s = 0; s < 2; s++) sets[s] = (FidSet){.path = "a set", .count = M, .dim = D, .features = x[s]};
    heading("KID of two sets of 12 pictures with 6 features");
    for (int paired = 0; paired < 2; paired++) {
        double want = 0;
        for (int a = 0; a < 2; a++)
            for (int b = 0; b < 2; b++)
                for (int i = 0; i < M; i++)
                    for (int j = 0; j < M; j++) {
                        bool all = a != b && !paired; // pairs (i, i) count
                        if (i == j && !all) continue;
                        double dot = 0;
                        for (int d = 0; d < D; d++) dot += (double)x[a][i * D + d] * (double)x[b][j * D + d];
                        want += (a == b ? 1 : -1) * pow(dot / D + 1, 3) / (all ? M * M : M * (M - 1));
                    }
        expect(paired ? "pairs of one caption left out" : "independent pictures", want,
               kid_distance(&sets[0], &sets[1], paired, 0, NULL), 1e-6);
    }
    FidSet same = sets[0];
    double want = 0; // of a set and itself, in which picture i meets itself: less than nothing
    for (int i = 0; i < M; i++)
        for (int j = 0; j < M; j++) {
            double dot = 0;
            for (int d = 0; d < D; d++) dot += (double)x[0][i * D + d] * (double)x[0][j * D + d];
            want += pow(dot / D + 1, 3) * 2 * ((i != j) / (M * (M - 1.0)) - 1.0 / (M * M));
        }
    expect("a set and itself", want, kid_distance(&sets[0], &same, false, 0, NULL), 1e-6);
}

int main(int argc, char **argv) {
    // 6, 7 and 12 are kernels: see cuda/build.mk.
    static void (*const exercises[])(void) = {[1] = sampler, consistency_step, divergence, frechet, gradients,
                                              [8] = euler,   v_prediction,     merge,      kid};
    int n = argc > 1 ? atoi(argv[1]) : 0;
    if (n < 1 || n >= (int)(sizeof exercises / sizeof *exercises) || !exercises[n])
        die_usage("which exercise, 1 to 5 or 8 to 11?");
    backend_init(1);
    exercises[n]();
    printf(right ? "Exercise %d: right.\n" : "Exercise %d: not yet.\n", n);
    return right ? 0 : 1;
}
