// gradients.c: gradients of whole networks against PyTorch's autograd, ten training steps, a hundred steps of
// the optimiser alone. Expected values: make_gradient_fixtures.py. The error of a gradient is the largest
// difference over the sampled entries, divided by the tensor's largest value, or by 1e-3 of the network's
// largest where that is more: some true gradients are zero (that of a key's bias), and their values are
// rounding errors.
#include "sd.h"
#include "weights/toy/made.h"
#include "test/test.h"

static Store *fixture;

static float *expected(const char *name, size_t count) {
    const Stored *t = store_find(fixture, name);
    if (!t || t->count != count) die("the fixture has no %s of %zu values", name, count);
    float *x = xmalloc(count * sizeof(float));
    store_read_f32(t, x);
    return x;
}

static void fill_made(const Params *p) {
    made_params(p, "", MADE_SOFT, F32);
    for (int i = 0; i < p->count; i++) param_trainable(p->list[i].tensor);
}

// A made input, (n, c, h, w) in the fixture's layout, as an NHWC tensor.
static Tensor *input(int n, int c, int h, int w, const char *name, ...) PRINTF_LIKE(5, 6);
static Tensor *input(int n, int c, int h, int w, const char *name, ...) {
    char full[128] = "input.";
    va_list args;
    va_start(args, name);
    vsnprintf(full + 6, sizeof full - 6, name, args);
    va_end(args);
    float *x = xmalloc((size_t)(n * c * h * w) * sizeof(float));
    made_fill(full, 4, (int64_t[]){n, c, h, w}, MADE_SOFT, x);
    float *nhwc = nchw_to_nhwc(x, n, c, h, w);
    Tensor *t = tensor_from(SHAPE(n, h, w, c), nhwc);
    free(x), free(nhwc);
    return t;
}

enum { SAMPLES = 6 };

// Every parameter's gradient against the fixture's, which stands under `prefix` and the name without `strip`
// letters.
static void check_gradients(const char *what, const Params *p, const char *prefix, size_t strip,
                            double tolerance) {
    double network = 0, worst = 0;
    const char *where = "";
    float **want = xmalloc((size_t)p->count * sizeof *want);
    for (int i = 0; i < p->count; i++) {
        char *name = format("%s%s", prefix, p->list[i].name + strip);
        want[i] = expected(name, SAMPLES + 1);
        keep_largest(&network, (double)want[i][SAMPLES]);
        free(name);
    }
    for (int i = 0; i < p->count; i++) {
        Tensor g = *p->list[i].tensor;
        g.data = g.gradient;
        float *x = param_read(&g);
        uint64_t n = tensor_count(&g);
        double scale = fmax((double)want[i][SAMPLES], 1e-3 * network);
        for (uint64_t k = 0; k < SAMPLES; k++) {
            double e = fabs((double)x[(k * 2654435761u + 12345) % n] - want[i][k]) / scale;
            if (keep_largest(&worst, e)) where = p->list[i].name;
        }
        free(x), free(want[i]);
    }
    free(want);
    printf("%s: %d gradients, worst error %.2g at %s, %.0f %% of the tolerance %.0e\n", what, p->count, worst,
           where, 100 * worst / tolerance, tolerance);
    check(worst <= tolerance, what);
}

static void check_loss(const char *name, double got, double tolerance) {
    float *want = expected(name, 1), value = (float)got;
    check_close(name, &value, want, 1, tolerance);
    free(want);
}

static Json *config(const char *path) { return json_load(path); }

static Tensor *unet_loss(const UNet *u, const TextEncoder *e, int step) {
    int ids[4 * 32];
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 32; j++) ids[i * 32 + j] = (37 * i + 11 * j * j) % 700;
    Tensor *out = unet(u, input(4, 4, 16, 16, "gradients.%d.x", step), (float[]){13, 250, 500, 987},
                       text_encode(e, ids, 4), NULL);
    return loss_between(out, input(4, 4, 16, 16, "gradients.%d.noise", step), NULL, LOSS_MSE, 0);
}

static void clear_gradients(const Params *p) {
    for (int i = 0; i < p->count; i++)
        backend.fill((Mem){p->list[i].tensor->gradient, F32}, 0, tensor_count(p->list[i].tensor));
}

static void unet_and_text(void) {
    Params net = {0}, text = {0};
    Json *uj = config("test/configs/tiny/unet.json"), *tj = config("test/configs/tiny/text_encoder.json");
    UNet *u = unet_new(unet_config(uj), &net);
    TextEncoder *e = text_encoder_new(text_config(tj), &text);
    fill_made(&net), fill_made(&text);
    for (int pass = 0; pass < 2; pass++) {
        checkpointing = pass == 1;
        tape_begin();
        Tensor *loss = unet_loss(u, e, 0);
        backward(loss);
        check_loss("loss.unet", (double)tensor_item(loss), 1e-5);
        tape_end();
        // Rounding errors of fp32 in both implementations together are some 1e-5.
        check_gradients(checkpointing ? "UNet, checkpointed" : "UNet", &net, "", 0, 1e-4);
        check_gradients(checkpointing ? "text encoder, checkpointed" : "text encoder", &text, "", 0, 1e-4);
        clear_gradients(&net), clear_gradients(&text);
    }
    checkpointing = false;

    const Params *models[] = {&net, &text};
    Optimiser *o = optimiser_new(
        (OptimiserConfig){
            .rate = 2e-4f, .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f, .weight_decay = 0.01f, .max_norm = 1},
        0, models, 2);
    float losses[10], *want = expected("losses.training", 10);
    for (int step = 0; step < 10; step++) {
        tape_begin();
        Tensor *loss = unet_loss(u, e, step);
        backward(loss);
        losses[step] = tensor_item(loss);
        optimiser_step(o);
        tape_end();
    }
    check_close("ten steps of training: losses", losses, want, 10, 1e-4);
    free(want);
    optimiser_free(o);
    text_encoder_free(e), free(u);
    params_free(&net), params_free(&text);
    json_free(uj), json_free(tj);
}

static void vae(void) {
    Params p = {0};
    Json *j = config("test/configs/tiny/vae.json");
    Vae *v = vae_new(vae_config(j), &p);
    fill_made(&p);
    tape_begin();
    Tensor *x = input(2, 3, 64, 64, "gradients.pixels"), *moments = vae_encode(v, x);
    Tensor *deviation = activation(combine(0.5f, slice(moments, 4, 4), 0, NULL), EXP);
    Tensor *z = add(slice(moments, 0, 4),
                    multiply(deviation, combine(0.1f, input(2, 4, 8, 8, "gradients.z"), 0, NULL)));
    Tensor *y = vae_decode(v, z);
    Tensor *loss = add(loss_between(y, x, NULL, LOSS_MSE, 0), loss_between(y, x, NULL, LOSS_L1, 0));
    backward(loss);
    check_loss("loss.vae", (double)tensor_item(loss), 1e-5);
    tape_end();
    check_gradients("VAE", &p, "", 0, 1e-4);
    free(v);
    params_free(&p);
    json_free(j);
}

// The optimiser on given gradients, against torch.optim.AdamW, clip_grad_norm_, a LambdaLR and a moving
// average.
static void optimiser_alone(void) {
    Params p = {0};
    Tensor *w[2] = {param_tensor(&p, SHAPE(37), "a"), param_tensor(&p, SHAPE(5, 3), "b")};
    float g[37];
    for (int i = 0; i < 2; i++) {
        char *name = format("input.optimiser.%c", 'a' + i);
        int64_t shape[2] = {w[i]->shape[0], w[i]->shape[1]};
        made_fill(name, w[i]->dims, shape, MADE_SOFT, g);
        param_allocate(w[i], F32), param_write(w[i], g), param_trainable(w[i]);
        free(name);
    }
    const Params *models[] = {&p};
    Optimiser *o = optimiser_new((OptimiserConfig){.rate = 1e-2f,
                                                   .beta1 = 0.9f,
                                                   .beta2 = 0.99f,
                                                   .eps = 1e-8f,
                                                   .weight_decay = 0.01f,
                                                   .max_norm = 1,
                                                   .warmup = 10,
                                                   .total = 80,
                                                   .floor = 0.1f},
                                 0.95f, models, 1);
    for (int step = 1; step <= 100; step++) {
        for (int i = 0; i < 2; i++) {
            char *name = format("input.optimiser.%c.%d", 'a' + i, step);
            int64_t shape[2] = {w[i]->shape[0], w[i]->shape[1]};
            made_fill(name, w[i]->dims, shape, MADE_SOFT, g);
            for (size_t k = 0; k < tensor_count(w[i]); k++) g[k] *= 0.3f;
            backend.upload(w[i]->gradient, g, tensor_count(w[i]) * sizeof(float));
            free(name);
        }
        optimiser_step(o);
    }
    for (int ema = 0; ema < 2; ema++) {
        for (int i = 0; i < 2; i++) {
            char *name = format("optimiser.%s%c", ema ? "ema." : "", 'a' + i);
            float *got = tensor_read(w[i]), *want = expected(name, tensor_count(w[i]));
            check_close(name, got, want, tensor_count(w[i]), 1e-6);
            free(got), free(want), free(name);
        }
        optimiser_swap_ema(o);
    }
    optimiser_free(o);
    params_free(&p);
}

// Every gradient of Stable Diffusion v1.5's UNet, with gradient checkpointing.
static void full(void) {
    store_close(fixture);
    fixture = store_open("test/fixtures/gradients-sd15.safetensors");
    Params p = {0};
    Json *j = config("test/configs/sd15/unet.json");
    UNet *u = unet_new(unet_config(j), &p);
    fill_made(&p);
    checkpointing = true;
    tape_begin();
    float context[77 * 768];
    made_fill("input.gradients.full.context", 3, (int64_t[]){1, 77, 768}, MADE_SOFT, context);
    Tensor *out = unet(u, input(1, 4, 64, 64, "gradients.full.x"), (float[]){500},
                       tensor_from(SHAPE(1, 77, 768), context), NULL);
    Tensor *loss = loss_between(out, input(1, 4, 64, 64, "gradients.full.noise"), NULL, LOSS_MSE, 0);
    backward(loss);
    check_loss("loss.full", (double)tensor_item(loss), 1e-4);
    tape_end();
    check_gradients("Stable Diffusion v1.5's UNet", &p, "full.", 5, 1e-3);
    printf("peak memory %.2f GB\n", (double)backend.peak() / 1e9);
    check(backend.peak() < 14e9, "the full UNet's gradient takes less than 14 GB");
    checkpointing = false;
    free(u);
    params_free(&p);
    json_free(j);
}

int main(void) {
    backend_init(2);
    fixture = store_open("test/fixtures/gradients.safetensors");
    optimiser_alone();
    vae();
    unet_and_text();
    if (full_size("the full-size gradient")) {
        if (file_exists("test/fixtures/gradients-sd15.safetensors"))
            full();
        else
            skip("the full-size gradient", "no fixture");
    }
    store_close(fixture);
    return test_report();
}
