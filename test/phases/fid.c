// fid.c (test): statistics, distances, resizes and a small Inception against SciPy, NumPy, Pillow and PyTorch
// (fixtures by make_fid_fixtures.py), and input that must be refused. compare_fid.py tests the full size.
#define _POSIX_C_SOURCE 200809L
#include "sd.h"
#include "lib/nn/linalg.h"
#include "weights/toy/made.h"
#include "test/test.h"

#include <setjmp.h>
#include <sys/stat.h>
#include <unistd.h>

static Store *fixtures;

static const Stored *fixture(const char *name, const char *part) {
    char *full = format("%s.%s", name, part);
    const Stored *s = store_find(fixtures, full);
    if (!s) die("test/fixtures/fid.safetensors has no %s", full);
    free(full);
    return s;
}

static float *floats(const Stored *s) {
    float *x = xmalloc(s->count * sizeof(float));
    store_read_f32(s, x);
    return x;
}

static double *doubles(const Stored *s) {
    double *x = xmalloc(s->count * sizeof(double));
    memcpy(x, s->data, s->count * sizeof(double));
    return x;
}

static void check_number(const char *what, double got, double want, double tolerance) {
    double error = fabs(got - want) / fmax(fabs(want), 1e-300);
    int ok = error <= tolerance;
    if (ok)
        tests_passed++;
    else
        tests_failed++;
    printf("%-7s %s: %.12g, %.12g expected, error %.2g of at most %.0e\n", ok ? "ok" : "FAILED", what, got,
           want, error, tolerance);
}

// ---- statistics and distances -----------------------------------------------------------------------------

// A set of the given features, added in portions of `portion`.
static FidSet set_of(const float *features, long count, int dim, int portion) {
    FidSet s = {.path = xstrdup("a set"), .dim = dim};
    size_t D = (size_t)dim, n = (size_t)count * D;
    moments_begin(&s);
    for (long i = 0; i < count; i += portion)
        moments_add(&s, features + (size_t)i * D, (int)(count - i < portion ? count - i : portion));
    moments_end(&s);
    s.features = memcpy(xmalloc(n * sizeof(float)), features, n * sizeof(float));
    return s;
}

static FidSet fixture_set(const char *name, const char *part, int portion) {
    const Stored *s = fixture(name, part);
    float *x = floats(s);
    FidSet set = set_of(x, (long)s->shape[0], (int)s->shape[1], portion);
    free(x);
    return set;
}

static double largest_difference(const double *a, const double *b, size_t n) {
    double worst = 0;
    for (size_t i = 0; i < n; i++) keep_largest(&worst, fabs(a[i] - b[i]));
    return worst;
}

static double total_variance(const FidSet *s) {
    double sum = 0;
    for (size_t i = 0; i < (size_t)s->dim; i++) sum += s->sigma[i * ((size_t)s->dim + 1)];
    return sum;
}

static void test_moments(void) {
    FidSet whole = fixture_set("full", "a", 60);
    size_t D = (size_t)whole.dim;
    double *mu = doubles(fixture("full", "mu")), *sigma = doubles(fixture("full", "sigma"));
    // float64 sums of 60 values near 1: the last digits may differ
    check(largest_difference(whole.mu, mu, D) < 1e-14, "the mean is NumPy's");
    check(largest_difference(whole.sigma, sigma, D * D) < 1e-14, "the covariance is NumPy's");
    for (int portion = 1; portion < 60; portion = 2 * portion + 3) {
        FidSet parts = fixture_set("full", "a", portion);
        check(largest_difference(whole.mu, parts.mu, D) < 1e-14 &&
                  largest_difference(whole.sigma, parts.sigma, D * D) < 1e-14,
              "statistics do not depend on the portions");
        fid_set_free(&parts);
    }
    // Values near 1e7 with variance 1: a sum of squares, 1e14 each, would lose the variance to rounding.
    enum { N = 1000 };
    float x[2 * N];
    double want = 0;
    for (int i = 0; i < N; i++) x[2 * i] = 10000000.0f + (float)(i % 2), x[2 * i + 1] = (float)(i % 2);
    for (int i = 0; i < N; i++) want += (i % 2 - 0.5) * (i % 2 - 0.5) / (N - 1);
    FidSet far = set_of(x, N, 2, 7);
    // rounding of 1e7 in float64 limits a standard deviation of 1 to 2e-9
    check_number("a variance far from the origin", far.sigma[0], want, 2e-9);
    check_number("its covariance", far.sigma[1], want, 2e-9);
    fid_set_free(&far), fid_set_free(&whole), free(mu), free(sigma);
}

static void test_frechet(void) {
    static const struct {
        const char *name;
        double tolerance;
    } cases[] = {
        {"full", 1e-10},    // SciPy's square root is accurate to 1e-13 here; 1e-6 is required
        {"steep", 1e-6},    // variances from 1 to 1e-6: the square root's own error is about 1e-7
        {"singular", 1e-7}, // zero eigenvalues come out as 1e-17, their square roots as 3e-9
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        FidSet a = fixture_set(cases[i].name, "a", 16), b = fixture_set(cases[i].name, "b", 16);
        double *want = doubles(fixture(cases[i].name, "fid")), self = fid_distance(&a, &a);
        check_number(cases[i].name, fid_distance(&a, &b), *want, cases[i].tolerance);
        check_number("  the other way round", fid_distance(&b, &a), *want, cases[i].tolerance);
        check(fabs(self) <= 1e-10 * total_variance(&a),
              "a set's distance from itself is zero"); // 1e-6 is required
        fid_set_free(&a), fid_set_free(&b), free(want);
    }
    double zero[4] = {0}, one[4] = {1, 0, 0, 1}, mu[2] = {3, 4};
    check(frechet_distance(zero, zero, zero, zero, 2) == 0, "the distance of constant pictures is zero");
    check(frechet_distance(zero, zero, mu, one, 2) == 27, "a point from a Gaussian: |mu|^2 + the trace");
}

// The same trace computed in a second way: the Newton-Schulz iteration (Higham 2008, section 5.3) for the
// square root of the symmetric matrix L^T C2 L / s, by matrix products alone.
//   Y <- Y (3 I - Z Y) / 2,   Z <- (3 I - Z Y) Z / 2,   Y -> root, Z -> its inverse
// All of them are polynomials of one symmetric matrix. They are kept exactly symmetric, so that rounding
// errors do not grow.
static void symmetric(double *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++) x[i * n + j] = x[j * n + i] = (x[i * n + j] + x[j * n + i]) / 2;
}

static double trace_by_newton_schulz(const FidSet *a, const FidSet *b) {
    int n = a->dim;
    size_t N = (size_t)n, NN = N * N;
    double *buffer = xcalloc(7 * NN, sizeof(double)), *lt = buffer, *work = lt + NN, *y = work + NN,
           *z = y + NN, *t = z + NN, *y2 = t + NN, *z2 = y2 + NN, norm = 0, sum = 0;
    memcpy(y, a->sigma, NN * sizeof(double));
    int *order = xmalloc(N * sizeof *order), r = pivoted_cholesky(lt, order, y, n);
    double *c2 = xmalloc(NN * sizeof(double));
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j < N; j++) c2[i * N + j] = b->sigma[(size_t)order[i] * N + (size_t)order[j]];
    size_t R = (size_t)r, RR = R * R;
    memset(y, 0, NN * sizeof(double));
    product_f64(work, N, lt, N, c2, N, r, n, n, 1, 0);
    product_f64(y, R, work, N, lt, N, r, r, n, 1, 0);
    for (size_t i = 0; i < RR; i++) norm += y[i] * y[i];
    norm = sqrt(norm);
    for (size_t i = 0; i < RR; i++) y[i] /= norm;
    for (size_t i = 0; i < R; i++) z[i * (R + 1)] = 1;
    for (int step = 0; step < 40; step++) { // product_f64 multiplies by B^T, which is B
        memset(t, 0, RR * sizeof(double)), memset(y2, 0, RR * sizeof(double)),
            memset(z2, 0, RR * sizeof(double));
        for (size_t i = 0; i < R; i++) t[i * (R + 1)] = 1.5;
        product_f64(t, R, z, R, y, R, r, r, r, -0.5, 0);
        symmetric(t, R);
        product_f64(y2, R, y, R, t, R, r, r, r, 1, 0);
        product_f64(z2, R, t, R, z, R, r, r, r, 1, 0);
        symmetric(y2, R), symmetric(z2, R);
        memcpy(y, y2, RR * sizeof(double)), memcpy(z, z2, RR * sizeof(double));
    }
    for (size_t i = 0; i < R; i++) sum += y[i * (R + 1)];
    free(buffer), free(order), free(c2);
    return sum * sqrt(norm);
}

static void test_second_way(void) {
    static const int sizes[] = {1, 2, 3, 7, 33, 96, 131}; // not multiples of any panel
    Random r;
    random_seed(&r, 3);
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        int d = sizes[k], n = 3 * d + 5;
        size_t count = (size_t)n * (size_t)d;
        float *x = xmalloc(2 * count * sizeof(float));
        random_normal(&r, x, 2 * count);
        for (size_t i = 0; i < count; i++) x[count + i] *= 1.0f + (float)(i % (size_t)d) / (float)d;
        FidSet a = set_of(x, n, d, 10), b = set_of(x + count, n, d, 10);
        double by_eigenvalues = -fid_distance(&a, &b) + total_variance(&a) + total_variance(&b);
        for (int i = 0; i < d; i++) by_eigenvalues += (a.mu[i] - b.mu[i]) * (a.mu[i] - b.mu[i]);
        check_number("trace of the root by Newton-Schulz", by_eigenvalues / 2, trace_by_newton_schulz(&a, &b),
                     1e-9);
        fid_set_free(&a), fid_set_free(&b), free(x);
    }
}

static void test_kid(void) {
    FidSet a = fixture_set("steep", "a", 60), b = fixture_set("steep", "b", 60);
    double error;
    for (int paired = 0; paired < 2; paired++) {
        double *want = doubles(fixture("steep", paired ? "kid_paired" : "kid"));
        check_number(paired ? "KID of pairs" : "KID of whole sets", kid_distance(&a, &b, paired, 0, &error),
                     want[0], 1e-9);
        check_number("its standard error", error, want[1], 1e-9);
        free(want);
    }
    check(kid_distance(&a, &a, true, 0, NULL) == 0, "KID of a set and itself, in pairs, is zero");
    a.count = b.count = 3;
    check(isfinite(kid_distance(&a, &b, false, 0, &error)) && isnan(error),
          "three pictures have a KID and no standard error");
    fid_set_free(&a), fid_set_free(&b);
    a = fixture_set("full", "a", 60), b = fixture_set("full", "b", 75);
    double *want = doubles(fixture("full", "kid")), kid = kid_distance(&a, &b, false, 1, &error);
    printf("        KID of 60 of 75: %.6g +- %.2g, of all pairs %.6g\n", kid, error, *want);
    check(fabs(kid - *want) < error / 3, "the mean over random subsets comes near the figure of all pairs");
    check(kid == kid_distance(&a, &b, false, 1, NULL) && kid != kid_distance(&a, &b, false, 2, NULL),
          "the seed decides the subsets");
    fid_set_free(&a), fid_set_free(&b), free(want);
}

// As the package prdc has them; and of a set and itself all is covered.
static void test_neighbours(void) {
    static const char *const names[] = {"full", "steep", "singular"};
    for (int i = 0; i < 3; i++) {
        FidSet a = fixture_set(names[i], "a", 60), b = fixture_set(names[i], "b", 60);
        Neighbours got = fid_neighbours(&a, &b), same = fid_neighbours(&a, &a);
        double *want = doubles(fixture(names[i], "prdc"));
        check_number("precision", got.precision, want[0], 1e-12);
        check_number("recall", got.recall, want[1], 1e-12);
        check_number("density", got.density, want[2], 1e-12);
        check_number("coverage", got.coverage, want[3], 1e-12);
        check(same.precision == 1 && same.recall == 1 && same.coverage == 1 && same.density > 0.9,
              "a set and itself");
        a.count = 5;
        check(isnan(fid_neighbours(&a, &b).recall) && isnan(fid_neighbours(&b, &a).density),
              "five pictures have no fifth neighbour");
        fid_set_free(&a), fid_set_free(&b), free(want);
    }
}

// Beside the definition, pair by pair in double precision.
static void test_nearest(void) {
    FidSet a = fixture_set("full", "a", 60), b = fixture_set("full", "b", 60);
    long nearest[50], wrong = 0;
    double distance[50], farthest = 0;
    fid_nearest(&a, &b, 50, nearest, distance);
    for (int i = 0; i < 50; i++) {
        long best = -1;
        double least = INFINITY;
        for (long j = 0; j < a.count; j++) {
            double sum = 0;
            for (int k = 0; k < a.dim; k++) {
                double x = (double)b.features[i * b.dim + k] - (double)a.features[j * a.dim + k];
                sum += x * x;
            }
            if (!(sum >= least)) least = sum, best = j;
        }
        wrong += nearest[i] != best;
        double error = fabs(distance[i] - sqrt(least));
        if (!(error <= farthest)) farthest = error;
    }
    check(wrong == 0, "the nearest picture");
    check(farthest < 1e-9, "its distance");
    fid_nearest(&a, &a, 50, nearest, distance);
    for (int i = 0; i < 50; i++) wrong += nearest[i] != i || !(distance[i] < 1e-6);
    check(wrong == 0, "a picture is nearest to itself");
    fid_set_free(&a), fid_set_free(&b);
}

// ---- intervals --------------------------------------------------------------------------------------------

// x: standard normal. y: s x' + shift in every coordinate, where x' is x's row turned towards new noise, so
// that the correlation is rho. Of such sets the true KID is known:
//   k(x, y) = (1 + t)^3, t = x . y / D;   E t, E t^2 and E t^3 of independent x and y from Gaussian moments
typedef struct {
    int dim, count;
    double shift, s, rho;
} Setting;

static double mean_kernel(int d, double m1, double v1, double m2, double v2) {
    double D = d, t = m1 * m2, t2 = D * t * t + v1 * m2 * m2 + v2 * m1 * m1 + v1 * v2; // E t, D E t^2
    double a = D * t, v = D * v1 * m2 * m2, q = D * v2 * (m1 * m1 + v1);               // x . m2; x^T C2 x
    double cubes = a * a * a + 3 * a * v + 3 * (a * q + 2 * D * v1 * v2 * m1 * m2);    // E (x . y)^3
    return 1 + 3 * t + 3 * t2 / D + cubes / (D * D * D);
}

static double true_kid(Setting s) {
    double v = s.s * s.s;
    return mean_kernel(s.dim, 0, 1, 0, 1) + mean_kernel(s.dim, s.shift, v, s.shift, v) -
           2 * mean_kernel(s.dim, 0, 1, s.shift, v);
}

static void draw_sets(Setting s, Random *r, FidSet set[2]) {
    size_t n = (size_t)(s.count * s.dim);
    float *x = xmalloc(2 * n * sizeof(float)), *y = x + n, rho = (float)s.rho;
    random_normal(r, x, 2 * n);
    for (size_t i = 0; i < n; i++)
        y[i] = (float)s.s * (rho * x[i] + sqrtf(1 - rho * rho) * y[i]) + (float)s.shift;
    set[0] = set_of(x, s.count, s.dim, s.count), set[1] = set_of(y, s.count, s.dim, s.count);
    free(x);
}

// How many of 100 intervals hold the true value: 95 are meant, 93 to 97 are asked for in 1,000 trials. FULL=1
// makes so many; fewer may be 1.5 off by chance. (A jackknife has 99 in the first two settings; KID that
// keeps the pairs has none in the second.)
static void test_intervals(void) {
    static const Setting settings[] = {{16, 100, 0, 1, 0},
                                       {16, 100, 0, 1, 0.8},
                                       {16, 100, 0.3, 1.1, 0},
                                       {16, 100, 0.3, 1.1, 0.8},
                                       {24, 40, 0.5, 1.2, 0.5}};
    bool full = full_size("1,000 trials of each interval");
    int trials = full ? 1000 : 200, rounds = full ? 60 : 20;
    double margin = full ? 0 : 1.5;
    verbosity = -1;
    for (size_t k = 0; k < sizeof settings / sizeof *settings; k++) {
        Setting s = settings[k];
        FidSet set[2];
        double kid = true_kid(s), fid = 0, kids = 0, fids = 0, half, interval[2];
        Random r;
        random_seed(&r, k);
        for (int i = 0; i < 5 * trials; i++) { // its expectation
            draw_sets(s, &r, set);
            fid += fid_distance(&set[0], &set[1]) / (5 * trials);
            fid_set_free(&set[0]), fid_set_free(&set[1]);
        }
        for (int i = 0; i < trials; i++) {
            draw_sets(s, &r, set);
            double off = kid_distance(&set[0], &set[1], s.rho > 0, 0, &half) - kid;
            bool held = fabs(off) <= 1.96 * half;
            kids += held;
            fid_interval(&set[0], &set[1], s.rho > 0, rounds, (uint64_t)i, interval);
            fids += interval[0] <= fid && fid <= interval[1];
            fid_set_free(&set[0]), fid_set_free(&set[1]);
        }
        kids *= 100.0 / trials, fids *= 100.0 / trials;
        printf(
            "        %d pictures of %d features, shift %g, scale %g, correlation %g: of 100 intervals %.1f hold "
            "the KID %.4g, %.1f the expected FID %.4g\n",
            s.count, s.dim, s.shift, s.s, s.rho, kids, kid, fids, fid);
        check(kids >= 93 - margin && kids <= 97 + margin, "the interval of KID holds it as often as it says");
        check(fids >= 93 - margin && fids <= 97 + margin, "the interval of FID holds it as often as it says");
    }
    verbosity = 0;
}

// ---- resizes ----------------------------------------------------------------------------------------------

static void test_resize(void) {
    static const char *const names[] = {"wide", "tall", "dot", "same"};
    for (int i = 0; i < 4; i++) {
        const Stored *p = fixture(names[i], "picture"), *f = fixture(names[i], "fid"),
                     *c = fixture(names[i], "clean");
        int size = (int)f->shape[0];
        Image *image = image_new((int)p->shape[1], (int)p->shape[0]);
        memcpy(image->rgb, p->data, p->count);
        float *got = xmalloc(f->count * sizeof(float)), *want = floats(f), *clean = floats(c);
        fid_resize(got, image, size, RESIZE_FID);
        check_close(format("%s, resized as PyTorch does", names[i]), got, want, f->count,
                    5e-6); // 77 rows in fp32: 77 * 2^-24
        fid_resize(got, image, size, RESIZE_CLEAN);
        for (size_t k = 0; k < c->count; k++) got[k] = got[k] * 128 + 128;
        check_close(format("%s, resized as Pillow does", names[i]), got, clean, c->count,
                    1e-6); // 1 / 255 is required
        free(got), free(want), free(clean);
        image_free(image);
    }
}

// ---- a small Inception ------------------------------------------------------------------------------------

static const struct {
    const char *name, *config;
    int size;
} nets[] = { // so large that the last blocks see 2x2 pixels
    {"small", "{\"size\": 111, \"width\": 1, \"a\": 2, \"c\": 1, \"e\": 2}", 111},
    {"smaller", "{\"size\": 123, \"width\": 2, \"a\": 1, \"c\": 2, \"e\": 1}", 123}};

static Inception *made_net(const char *config, MadeRegime regime) {
    Inception *net = inception_new(config, "config");
    made_params(inception_params(net), "", regime, F32);
    return net;
}

// The same with a classifier behind it, as the fixtures have it.
static Inception *made_classifier(const char *config, Layer **fc) {
    Inception *net = inception_new(config, "config");
    *fc = layer_linear(inception_params(net), inception_dim(net), 5, true, "fc");
    made_params(inception_params(net), "", MADE_SOFT, F32);
    return net;
}

static Tensor *made_pictures(int n, int size) {
    float *x = xmalloc((size_t)(3 * n * size * size) * sizeof(float));
    made_fill("input.pictures", 4, (int64_t[]){n, 3, size, size}, MADE_SOFT, x);
    float *turned = nchw_to_nhwc(x, n, 3, size, size);
    Tensor *t = tensor_from(SHAPE(n, size, size, 3), turned);
    free(x), free(turned);
    return t;
}

static void check_tensor(const char *net, const char *what, const Tensor *t, double tolerance) {
    const Stored *s = fixture(net, what);
    float *got = tensor_read(t), *want = floats(s);
    char *text = format("%s Inception: %s", net, what);
    check(tensor_count(t) == s->count, "the size is the same");
    if (tensor_count(t) == s->count) check_close(text, got, want, s->count, tolerance);
    free(got), free(want), free(text);
}

static void test_inception(void) {
    for (int i = 0; i < 2; i++) {
        Scope s = scope_begin();
        const char *name = nets[i].name;
        Layer *fc;
        Inception *net = made_classifier(nets[i].config, &fc);
        Params *p = inception_params(net);
        Tensor *x = made_pictures(3, nets[i].size);
        // Training mode: batch norm uses the statistics of the batch. Forward and backward.
        static const char *const learnt[] = {"Conv2d_1a_3x3.conv.weight", "Mixed_5b.branch_pool.conv.weight",
                                             "Mixed_6a.branch3x3dbl_1.bn.weight", "fc.bias"};
        for (int k = 0; k < 4; k++) param_trainable(params_find(p, learnt[k]));
        tape_begin();
        Tensor *f = inception_features(net, x);
        Tensor *loss = loss_pick(log_softmax(linear(f, fc)), (int[]){0, 3, 2});
        check_tensor(name, "train.features", f, 1e-4); // batch statistics of 12 numbers amplify rounding
        check_tensor(name, "train.loss", loss, 1e-4);
        backward(loss);
        for (int k = 0; k < 4; k++) {
            Tensor *w = params_find(p, learnt[k]), gradient = *w;
            gradient.data = w->gradient;
            float *order = param_read(&gradient), *want = floats(fixture(name, format("d.%s", learnt[k])));
            check_close(format("%s Inception: gradient of %s", name, learnt[k]), order, want, tensor_count(w),
                        2e-4);
            free(order), free(want);
        }
        tape_end();
        inception_free(net);
        // Inference with the stored statistics, folded into the convolutions.
        net = made_classifier(nets[i].config, &fc);
        inception_fold(net);
        f = inception_features(net, x);
        check_tensor(name, "features", f, 1e-5); // 20 layers of fp32 sums in another order
        check_tensor(name, "logits", linear(f, fc), 1e-5);
        // A picture's features do not depend on its neighbours in the batch.
        float *whole = tensor_read(f), *one = tensor_read(inception_features(net, take(x, 1, 1)));
        check_close("a picture alone", one, whole + inception_dim(net), (size_t)inception_dim(net), 1e-6);
        free(whole), free(one);
        inception_free(net);
        scope_end(s, NULL);
    }
    Inception *net = inception_new(NULL, NULL);
    check(inception_dim(net) == 2048 && inception_size(net) == 299 &&
              params_count(inception_params(net)) == 23885392 - 2049 * 1008, // without the classifier
          "without a configuration it is Inception-v3");
    printf("        Inception-v3: %zu parameters in %d tensors\n", params_count(inception_params(net)),
           inception_params(net)->count);
    inception_free(net);
}

// The whole Inception-v3 on two pictures of 13 x 13 patches. Hard weights have large channels and values near
// fp16's limits: they are compared with a float64 run, in multiples of the error of PyTorch's own fp32.
static void test_whole_inception(void) {
    enum { PATCHES = 13, PIXELS = 23, SIZE = PATCHES * PIXELS };
    float patch[2][3][PATCHES][PATCHES];
    made_fill("input.patches", 4, (int64_t[]){2, 3, PATCHES, PATCHES}, MADE_SOFT, patch[0][0][0]);
    float *pixels = xmalloc(2 * SIZE * SIZE * 3 * sizeof(float)), *at = pixels;
    for (int i = 0; i < 2; i++)
        for (int y = 0; y < SIZE; y++)
            for (int x = 0; x < SIZE; x++)
                for (int c = 0; c < 3; c++) *at++ = patch[i][c][y / PIXELS][x / PIXELS] / 2;
    for (MadeRegime regime = MADE_SOFT; regime <= MADE_HARD; regime++) {
        Inception *net = made_net(NULL, regime);
        inception_fold(net);
        Scope s = scope_begin();
        float *got = tensor_read(inception_features(net, tensor_from(SHAPE(2, SIZE, SIZE, 3), pixels)));
        scope_end(s, NULL);
        size_t n = 2 * (size_t)inception_dim(net);
        if (regime == MADE_SOFT) {
            float *want = floats(fixture("inception", "soft"));
            check_close("Inception-v3, soft weights", got, want, n, 1e-5); // 1e-4 is required
            free(want);
        } else {
            double *want = doubles(fixture("inception", "hard")), largest = 0, error = 0,
                   *peer = doubles(fixture("inception", "hard_fp32_error"));
            for (size_t k = 0; k < n; k++) keep_largest(&largest, fabs(want[k]));
            for (size_t k = 0; k < n; k++) keep_largest(&error, fabs(got[k] - want[k]) / largest);
            double bar = fmax(3 * *peer, 1e-6);
            printf("%-7s Inception-v3, hard weights: error %.2g of at most %.2g, PyTorch's fp32 %.2g\n",
                   error <= bar ? "ok" : "FAILED", error, bar, *peer);
            if (error <= bar)
                tests_passed++;
            else
                tests_failed++;
            free(want), free(peer);
        }
        free(got), inception_free(net);
    }
    free(pixels);
}

// ---- what has to be refused -------------------------------------------------------------------------------

static jmp_buf back;
static char said[1024];
static void hook(const char *message) {
    snprintf(said, sizeof said, "%s", message);
    longjmp(back, 1);
}

// The statement must die with a line that holds `words`.
#define REFUSED(words, statement)                                                                            \
    do {                                                                                                     \
        said[0] = 0, die_hook = hook;                                                                        \
        if (!setjmp(back)) { statement; }                                                                    \
        die_hook = NULL;                                                                                     \
        if (!strstr(said, words)) printf("said: \"%s\", not \"%s\"\n", said, words);                         \
        check(strstr(said, words) != NULL, "refused: " words);                                               \
    } while (0)

static char *folder;
static char *in_folder(const char *name) { return format("%s/%s", folder, name); }

static void write_text(const char *path, const char *text) {
    Output *o = output_open(path);
    output_printf(o, "%s", text);
    output_commit(o);
}

// A folder with `good` pictures of many sizes and `bad` files that are no pictures.
static char *pictures(const char *name, int good, int bad) {
    char *dir = in_folder(name);
    make_directories(dir);
    for (int i = 0; i < good; i++) {
        Image *image = image_new(1 + 17 * i % 150, 1 + 31 * i % 170);
        for (int k = 0; k < 3 * image->width * image->height; k++)
            image->rgb[k] = (unsigned char)(k * (i + 1));
        image_save_png(format("%s/good%03d.png", dir, i), image, NULL);
        image_free(image);
    }
    for (int i = 0; i < bad; i++) write_text(format("%s/bad%03d.jpg", dir, i), "no picture");
    return dir;
}

static void save_npz(const char *path, const char *mu, int64_t n, const char *sigma, int64_t h, int64_t w,
                     double middle) {
    double *x = xcalloc((size_t)(n + h * w), sizeof(double));
    for (int64_t i = 0; i < (h < w ? h : w); i++) x[n + i * w + i] = 1;
    if (h * w > 1) x[n + 1] = middle;
    NpzArray arrays[] = {{mu, x, 1, {n}}, {sigma, x + n, 2, {h, w}}};
    npz_write(path, arrays, 2);
    free(x);
}

// A file with the small network's weights; the tensor `spoilt` is filled with `value`.
static char *save_weights(const char *name, const char *spoilt, float value, const char *config) {
    Inception *net = made_net(nets[0].config, MADE_SOFT);
    Params *p = inception_params(net);
    char *path = in_folder(name);
    StoreWriter *w = store_create(path);
    if (config) store_metadata_add(w, "inception", config);
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < p->count; i++) {
            Tensor *t = p->list[i].tensor;
            int64_t shape[4] = {t->shape[0], t->shape[3], t->shape[1], t->shape[2]};
            if (t->dims == 2) shape[1] = t->shape[1];
            if (round == 0) {
                store_declare(w, p->list[i].name, F32, t->dims, shape);
                continue;
            }
            float *x = param_read(t);
            if (!strcmp(p->list[i].name, spoilt))
                for (size_t k = 0; k < tensor_count(t); k++) x[k] = value;
            store_data_f32(w, x, tensor_count(t));
            free(x);
        }
    store_commit(w);
    inception_free(net);
    return path;
}

static void test_refusals(void) {
    verbosity = -1;
    FidOptions o = {.batch = 7, .statistics = true, .keep_features = true};
    char *weights = save_weights("good.safetensors", "", 0, nets[0].config);
    Inception *net = inception_load(weights);

    REFUSED("holds no picture", fid_scan(net, pictures("empty", 0, 0), o));
    REFUSED("one picture", fid_scan(net, pictures("one", 1, 0), o));
    REFUSED("could not be read", fid_scan(net, pictures("spoilt", 20, 1), o));
    REFUSED("could not be read", fid_scan(net, pictures("none", 0, 3), o));
    REFUSED("cannot read the folder", fid_scan(net, in_folder("absent"), o));

    // Gray, CMYK, 16-bit, palette with transparency, progressive, one pixel, rotated by EXIF: all in one
    // folder.
    FidSet kinds = fid_scan(net, "test/fixtures/io", o);
    check(kinds.count == 22, "pictures of every kind are read");
    fid_set_free(&kinds);
    mkfifo(in_folder("spoilt/pipe.png"), 0600);
    mkdir(in_folder("spoilt/folder.png"), 0700);
    REFUSED("could not be read", fid_scan(net, in_folder("spoilt"), o));

    FidSet edge = fid_scan(net, pictures("edge", 99, 1), o);
    check(edge.count == 99, "one unreadable in a hundred is left out");
    fid_set_free(&edge);
    REFUSED("1 of 99 pictures could not be read, ", fid_scan(net, pictures("beyond", 98, 1), o));
    REFUSED("bad000.jpg the last", fid_scan(net, pictures("beyond", 98, 1), o));

    char *dir = pictures("mixed", 120, 1); // one in 121 may be unreadable
    FidSet s = fid_scan(net, dir, o);
    check(s.count == 120 && strstr(s.names[119], "good119.png"),
          "pictures of all sizes, one unreadable, left out");
    o.batch = 50;
    FidSet again = fid_scan(net, dir, o);
    check(again.count == 120 && !memcmp(s.features, again.features, 120 * (size_t)s.dim * sizeof(float)),
          "features do not depend on the batch");
    check(largest_difference(s.sigma, again.sigma, (size_t)s.dim * (size_t)s.dim) < 1e-12,
          "nor the statistics");

    // Written and read again, to the last bit.
    char *npz = in_folder("s.npz");
    fid_write_statistics(&s, npz);
    FidSet read = fid_read_statistics(npz);
    check(read.made_by == s.made_by && read.dim == s.dim && !memcmp(read.mu, s.mu, (size_t)s.dim * 8) &&
              !memcmp(read.sigma, s.sigma, (size_t)s.dim * (size_t)s.dim * 8),
          "statistics come back as they were written");
    check(s.made_by == fid_made_by(net, o.resize) && s.made_by != fid_made_by(net, RESIZE_CLEAN),
          "they know which resize they were made with");
    check(fabs(fid_distance(&s, &read)) < 1e-6 * total_variance(&s), "and their distance is zero");
    REFUSED("a KID needs the features", kid_distance(&s, &read, false, 0, NULL));
    fid_set_free(&s), fid_set_free(&again);

    save_npz(npz, "mean", 4, "sigma", 4, 4, 0);
    REFUSED("mu", fid_read_statistics(npz));
    save_npz(npz, "mu", 4, "cov", 4, 4, 0);
    REFUSED("sigma", fid_read_statistics(npz));
    save_npz(npz, "mu", 4, "sigma", 4, 5, 0);
    REFUSED("sigma has 2 dimensions (4, 5); (4, 4) is expected", fid_read_statistics(npz));
    save_npz(npz, "mu", 4, "sigma", 5, 5, 0);
    REFUSED("sigma has 2 dimensions (5, 5)", fid_read_statistics(npz));
    save_npz(npz, "mu", 4, "sigma", 4, 4, 0.5);
    REFUSED("is no covariance", fid_read_statistics(npz));
    save_npz(npz, "mu", 4, "sigma", 4, 4, NAN);
    REFUSED("is nan", fid_read_statistics(npz));
    double two[] = {0, 0, 1, 0, 0, 1}, fraction = 0.5;
    NpzArray spoilt[] = {
        {"mu", two, 1, {2}}, {"sigma", two + 2, 2, {2, 2}}, {"made_by", &fraction, 2, {1, 0}}};
    npz_write(npz, spoilt, 3); // an empty array
    REFUSED("made_by is no number", fid_read_statistics(npz));
    spoilt[2].ndim = 1;
    npz_write(npz, spoilt, 3); // and a fraction
    REFUSED("made_by is no number", fid_read_statistics(npz));
    // A set in half precision against itself: the FID is negative. A little less than zero is zero.
    FidSet exact = fixture_set("singular", "a", 10), half = fixture_set("singular", "a", 10);
    for (size_t i = 0; i < (size_t)half.dim * (size_t)half.dim; i++)
        half.sigma[i] = (double)f16_to_f32(f32_to_f16((float)half.sigma[i]));
    REFUSED("half precision?", fid_distance(&half, &half));
    check(fid_distance(&exact, &exact) >= 0, "a negative FID that is rounding is zero");
    fid_set_free(&exact), fid_set_free(&half);
    // Symmetric, but no covariance: 1 on the diagonal, 3 off it. As the first and as the second.
    double odd[4] = {1, 3, 3, 1}, one[4] = {1, 0, 0, 1}, nowhere[2] = {0};
    REFUSED("has negative eigenvalues", frechet_distance(nowhere, odd, nowhere, one, 2));
    REFUSED("has negative eigenvalues", frechet_distance(nowhere, one, nowhere, odd, 2));
    save_npz(npz, "mu", 4, "sigma", 4, 4, 0);
    s = fid_read_statistics(npz);
    REFUSED("different networks", fid_distance(&s, &read));
    write_text(npz, "PK no zip");
    REFUSED("s.npz", fid_read_statistics(npz));
    fid_set_free(&s), fid_set_free(&read);

    REFUSED("tensor Mixed_6a.branch3x3.conv.weight has a NaN",
            inception_load(
                save_weights("nan.safetensors", "Mixed_6a.branch3x3.conv.weight", NAN, nets[0].config)));
    REFUSED("a variance cannot be negative",
            inception_load(save_weights("negative.safetensors", "Mixed_6a.branch3x3.bn.running_var", -1,
                                        nets[0].config)));
    REFUSED("has the shape",
            inception_load(save_weights("shape.safetensors", "", 0, NULL))); // not Inception-v3's
    Inception *large = inception_load(
        save_weights("large.safetensors", "Mixed_6a.branch3x3.bn.bias", 3e38f, nets[0].config));
    REFUSED("good000.png hold a NaN or an infinity", fid_scan(large, dir, o));
    inception_free(large);
    REFUSED("j: the Inception configuration's width is 0", inception_new("{\"width\": 0}", "j"));

    // torchvision's network has the same names; its 1000 classes tell it apart.
    char *other = in_folder("torchvision.safetensors");
    StoreWriter *w = store_create(other);
    store_declare(w, "fc.weight", F32, 2, (int64_t[]){1000, 1});
    store_data_f32(w, (float[1000]){0}, 1000);
    store_commit(w);
    REFUSED("torchvision's Inception-v3", inception_load(other));

    inception_free(net);
    verbosity = 0;
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    backend_init(1); // matrices of a few rows: threads would wait for one another
    test_intervals();
    backend_init(2);
    fixtures = store_open("test/fixtures/fid.safetensors");
    char name[] = "/tmp/sd-test-fid-XXXXXX";
    folder = mkdtemp(name);
    test_moments();
    test_frechet();
    test_second_way();
    test_kid();
    test_neighbours();
    test_nearest();
    test_resize();
    test_inception();
    if (getenv("QUICK"))
        skip("the whole Inception-v3", "QUICK");
    else
        test_whole_inception();
    test_refusals();
    store_close(fixtures);
    char *clean = format("rm -rf %s", folder);
    if (system(clean)) printf("%s stays\n", folder);
    return test_report();
}
