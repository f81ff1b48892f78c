// operations.c: the operations of lib/nn/nn.h that formulas are made of. Values are compared with the formula
// in double, gradients with its slope (L(x + h) - L(x - h)) / 2h. Then the memory of scopes.
#include "lib/nn/nn.h"
#include "test/test.h"

enum { N = 2, H = 3, W = 5, C = 4, COUNT = N * H * W * C };

// An operation, and element i of its result as a formula of its inputs a and b. `b`: it has a second input.
typedef struct {
    const char *name;
    Tensor *(*f)(Tensor *a, Tensor *b);
    double (*element)(const double *a, const double *b, int i);
    bool b;
    int count; // elements of the result
} Case;

static Tensor *do_sub(Tensor *a, Tensor *b) { return sub(a, b); }
static Tensor *do_scale(Tensor *a, Tensor *b) { return (void)b, scale(a, -0.75f); }
static Tensor *do_add_scalar(Tensor *a, Tensor *b) { return (void)b, add_scalar(a, 2.5f); }
static Tensor *do_square(Tensor *a, Tensor *b) { return (void)b, square(a); }
static Tensor *do_exponential(Tensor *a, Tensor *b) { return (void)b, exponential(a); }
static Tensor *do_logarithm(Tensor *a, Tensor *b) { return (void)b, logarithm(a); }
static Tensor *do_sum(Tensor *a, Tensor *b) { return (void)b, sum(a); }
static Tensor *do_sum_of_all(Tensor *a, Tensor *b) { return (void)b, sum(reshape(a, SHAPE(COUNT))); }
static Tensor *do_mean(Tensor *a, Tensor *b) { return (void)b, mean(a); }
static Tensor *do_spatial_mean(Tensor *a, Tensor *b) { return (void)b, spatial_mean(a); }
static Tensor *do_twice(Tensor *a, Tensor *b) { return (void)b, sub(square(a), a); } // both gradients arrive

static double is_sub(const double *a, const double *b, int i) { return a[i] - b[i]; }
static double is_scale(const double *a, const double *b, int i) { return (void)b, -0.75 * a[i]; }
static double is_add_scalar(const double *a, const double *b, int i) { return (void)b, a[i] + 2.5; }
static double is_square(const double *a, const double *b, int i) { return (void)b, a[i] * a[i]; }
static double is_exponential(const double *a, const double *b, int i) { return (void)b, exp(a[i]); }
static double is_logarithm(const double *a, const double *b, int i) { return (void)b, log(a[i]); }
static double is_twice(const double *a, const double *b, int i) { return (void)b, a[i] * a[i] - a[i]; }

// The sum of `count` elements from a[from] on, each `stride` behind the one before.
static double strided(const double *a, int from, int count, int stride) {
    double total = 0;
    for (int i = 0; i < count; i++) total += a[from + i * stride];
    return total;
}
static double is_sum(const double *a, const double *b, int i) { return (void)b, strided(a, i * C, C, 1); }
static double is_sum_of_all(const double *a, const double *b, int i) {
    return (void)b, strided(a, i, COUNT, 1);
}
static double is_mean(const double *a, const double *b, int i) {
    return (void)b, strided(a, i, COUNT, 1) / COUNT;
}
static double is_spatial_mean(const double *a, const double *b, int i) {
    return (void)b, strided(a, i / C * H * W * C + i % C, H * W, C) / (H * W);
}

static const Case cases[] = {
    {"sub", do_sub, is_sub, true, COUNT},
    {"scale", do_scale, is_scale, false, COUNT},
    {"add_scalar", do_add_scalar, is_add_scalar, false, COUNT},
    {"square", do_square, is_square, false, COUNT},
    {"exponential", do_exponential, is_exponential, false, COUNT},
    {"logarithm", do_logarithm, is_logarithm, false, COUNT},
    {"sum", do_sum, is_sum, false, COUNT / C},
    {"sum of a vector", do_sum_of_all, is_sum_of_all, false, 1},
    {"mean", do_mean, is_mean, false, 1},
    {"spatial_mean", do_spatial_mean, is_spatial_mean, false, N *C},
    {"a tensor used twice", do_twice, is_twice, false, COUNT},
};

// The loss is the mean of the squared result.
static double loss_of(const Case *c, const double *a, const double *b) {
    double total = 0;
    for (int i = 0; i < c->count; i++) {
        double y = c->element(a, b, i);
        total += y * y;
    }
    return total / c->count;
}

static void value_and_gradient(const Case *c) {
    Params p = {0};
    Random r;
    random_seed(&r, 7);
    Tensor *in[2];
    double x[2][COUNT];
    for (int k = 0; k < 2; k++) {
        float host[COUNT];
        in[k] = param_tensor(&p, SHAPE(N, H, W, C), "x%d", k);
        param_allocate(in[k], F32);
        for (int i = 0; i < COUNT; i++)
            x[k][i] = (double)(host[i] = 0.5f + random_uniform(&r)); // logarithm's
        tensor_write(in[k], host);
        param_trainable(in[k]);
    }
    tape_begin();
    Tensor *y = c->f(in[0], in[1]);
    backward(mean(square(y)));
    check(tensor_count(y) == (size_t)c->count, c->name);
    float *got = tensor_read(y), want[COUNT], slope[COUNT], gradient[COUNT];
    for (int i = 0; i < c->count; i++) want[i] = (float)c->element(x[0], x[1], i);
    check_close(c->name, got, want, (size_t)c->count, 1e-6);
    for (int k = 0; k < 1 + c->b; k++) {
        for (int i = 0; i < COUNT; i++) {
            const double h = 1e-5, at = x[k][i];
            x[k][i] = at + h;
            double above = loss_of(c, x[0], x[1]);
            x[k][i] = at - h;
            slope[i] = (float)((above - loss_of(c, x[0], x[1])) / (2 * h));
            x[k][i] = at;
        }
        backend.download(gradient, in[k]->gradient, sizeof gradient);
        char *what = format("%s, gradient of %c", c->name, 'a' + k);
        check_close(what, gradient, slope, COUNT, 1e-5);
        free(what);
    }
    tape_end();
    free(got);
    params_free(&p);
}

// In a sum of very many elements the roundings must not add up.
static void long_sum(void) {
    enum { LONG = 1 << 18 };
    float *x = xmalloc(LONG * sizeof(float)), one = 1;
    for (int i = 0; i < LONG; i++) x[i] = i % 2 ? 1.001f : 0.999f;
    Scope s = scope_begin();
    float got = tensor_item(mean(tensor_from(SHAPE(LONG), x)));
    check_close("the mean of 262,144 elements", &got, &one, 1, 1e-6);
    scope_end(s, NULL);
    free(x);
}

// z = scope_end(loop, step(z)) keeps z alone, in the same memory however often the loop turns.
static void loops(void) {
    Scope whole = scope_begin(), loop = scope_begin();
    float host[COUNT], want[COUNT];
    for (int i = 0; i < COUNT; i++) host[i] = (float)i;
    Tensor *z = tensor_from(SHAPE(N, H, W, C), host), *kept = NULL;
    size_t mark = 0;
    for (int step = 0; step < 10; step++) {
        int *counter = scope_memory(sizeof(int));
        check(*counter == 0, "the host memory of a scope is zeroed");
        *counter = 1;
        z = scope_end(loop, add_scalar(scale(z, 0.5f), 1));
        if (step == 0) mark = backend.mark();
        if (step == 4) tensor_keep(&kept, z);
    }
    check(backend.mark() == mark, "a loop of scopes takes no more memory with every turn");
    float *got = tensor_read(z), *at_five = tensor_read(kept), again[COUNT];
    for (int i = 0; i < COUNT; i++) want[i] = (float)i / 1024 + 2 * (1 - 1 / 1024.0f);
    check_close("what a loop of scopes computes", got, want, COUNT, 1e-6);
    for (int i = 0; i < COUNT; i++) again[i] = (float)i / 32 + 2 * (1 - 1 / 32.0f);
    check_close("a tensor that was kept", at_five, again, COUNT, 1e-6);
    tensor_keep(&kept, z);
    float *second = tensor_read(kept);
    check(!memcmp(second, got, sizeof want), "a slot that is used again holds the newer tensor");
    free(got), free(at_five), free(second);
    tensor_discard(kept), tensor_discard(NULL);
    scope_end(whole, NULL);
}

// random_tensor() draws what random_normal() draws.
static void noise(void) {
    Random a, b;
    random_seed(&a, 3), random_seed(&b, 3);
    float want[COUNT];
    random_normal(&a, want, COUNT);
    Scope s = scope_begin();
    float *got = tensor_read(random_tensor(&b, SHAPE(N, H, W, C)));
    check(!memcmp(got, want, sizeof want), "random_tensor() is torch.randn()");
    free(got);
    scope_end(s, NULL);
}

// e <- d e + (1 - d) w after each step; with a warm-up d is at most (1 + n) / (10 + n) after n steps.
static void moving_average(void) {
    Params p = {0};
    Tensor *w = param_tensor(&p, SHAPE(1), "w");
    param_allocate(w, F32), param_trainable(w);
    backend.fill(mem(w), 1, 1);
    OptimiserConfig c = {.rate = 0.1f, .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f};
    Optimiser *o = optimiser_new(c, 0.51f, (const Params *[]){&p}, 1);
    o->ema_warmup = true;
    double average = 1;
    for (int n = 0; n < 12; n++) {
        tape_begin();
        backward(mean(square(w)));
        optimiser_step(o);
        tape_end();
        double d = fmin(0.51, (1.0 + n) / (10.0 + n));
        float now, kept, want;
        backend.download(&now, w->data, sizeof now), backend.download(&kept, o->ema[0], sizeof kept);
        average = d * average + (1 - d) * (double)now, want = (float)average;
        check_close("a moving average with warm-up", &kept, &want, 1, 1e-6);
    }
    optimiser_free(o), params_free(&p);
}

// x_0 is a parameter, x_{i+1} = 2 x_i + x_0, 20 times: two gradients are in use at once, and no more are
// kept. dx_20/dx_0 = 2^21 - 1.
static void gradients_memory(void) {
    Params p = {0};
    Tensor *start = param_tensor(&p, SHAPE(COUNT), "x"), *x = start;
    param_allocate(start, F32), param_trainable(start);
    backend.fill(mem(start), 1, COUNT);
    tape_begin();
    for (int i = 0; i < 20; i++) x = combine(2, x, 1, start);
    Tensor *loss = mean(x);
    size_t before = backend.mark();
    backward(loss);
    size_t took = backend.mark() - before;
    check(took >= 2 * COUNT * sizeof(float) && took < 3 * COUNT * sizeof(float),
          "a gradient takes the memory of one that is done with");
    float got[COUNT], want[COUNT];
    backend.download(got, start->gradient, sizeof got);
    for (int i = 0; i < COUNT; i++) want[i] = (float)((1 << 21) - 1) / COUNT;
    check_close("the gradient of a long chain", got, want, COUNT, 1e-6);
    tape_end();
    params_free(&p);
}

// log(1e-40) is finite, its derivative 1e40 is not. The way back leads through a reshape.
static void first_nan(void) {
    Params p = {0};
    Tensor *x = param_tensor(&p, SHAPE(2, 3), "x");
    param_allocate(x, F32), param_trainable(x);
    backend.fill(mem(x), 1e-40f, 6);
    tape_begin();
    Tensor *loss = mean(square(reshape(logarithm(x), SHAPE(6))));
    backward(loss);
    FirstNan found = tape_first_nan(loss);
    check(found.operation && !strcmp(found.operation, "activation") && found.backward,
          "the operation whose gradient is infinite is found");
    tape_end();
    params_free(&p);
}

int main(void) {
    backend_init(2);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) value_and_gradient(&cases[i]);
    long_sum();
    loops();
    noise();
    moving_average();
    gradients_memory();
    first_nan();
    return test_report();
}
