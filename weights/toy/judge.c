// judge.c: `sd pretrain inception` and `check`. The toy world's judge is a small Inception (fid.c) that reads the six
// attributes of a scene off its picture. Two things are measured with it: prompt fidelity, the share of attributes
// that a generated picture shows as its caption asked; and the toy FID, on its pooled features.
#include "sd.h"
#include "pretrain.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// {"size": 128, "width": 4, ..., "heads": {"subject": ["boy", ...], ...}}: see sd.h, Phase 4.
static char *configuration(void) {
    char *text = xstrdup("{\"size\": 128, \"width\": 4, \"a\": 2, \"c\": 2, \"e\": 1, \"heads\": {");
    for (int a = 0; a < SCENE_ATTRIBUTES; a++) {
        char *more = format("%s%s\"%s\": [", text, a ? ", " : "", scene_attribute_name(a));
        free(text), text = more;
        for (int v = 0; v < scene_attribute_count(a); v++) {
            more = format("%s%s\"%s\"", text, v ? ", " : "", scene_value_name(a, v));
            free(text), text = more;
        }
        more = format("%s]", text);
        free(text), text = more;
    }
    char *whole = format("%s}}", text);
    free(text);
    return whole;
}

// Fresh scenes of both worlds in turn, pixels in [-1, 1], their attributes (SCENE_ATTRIBUTES, n), and where their figures
// are (n: left, top, right, bottom; may be NULL).
static Tensor *scenes(const PretrainOptions *o, Split split, long first, int n, int *answers,
                      int (*boxes)[4]) {
    enum { EACH = SCENE_SIZE * SCENE_SIZE * 3 };
    float *x = xmalloc((size_t)n * EACH * sizeof(float));
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < n; i++) {
        unsigned char *rgb = xmalloc(EACH);
        World world = (first + i) % 2 ? WORLD_FLICKR : WORLD_BROAD;
        long index = (first + i) / 2;
        Scene scene;
        char captions[SCENE_CAPTIONS][SCENE_CAPTION_BYTES];
        scene_describe(world, split, o->seed, index, &scene, captions);
        scene_draw_as(world, scene_seed(world, split, o->seed, index), &scene, rgb, boxes ? boxes[i] : NULL);
        for (int k = 0; k < EACH; k++) x[(size_t)i * EACH + (size_t)k] = (float)rgb[k] / 127.5f - 1;
        for (int a = 0; a < SCENE_ATTRIBUTES; a++) answers[a * n + i] = scene_value(&scene, a);
        free(rgb);
    }
    Tensor *t = tensor_from(SHAPE(n, SCENE_SIZE, SCENE_SIZE, 3), x);
    free(x);
    return t;
}

// Peak signal-to-noise ratio in dB of two pictures in [-1, 1] over a box: 10 log10(2^2 / mean squared error).
static double psnr(const float *a, const float *b, const int box[4]) {
    double sum = 0;
    for (int y = box[1]; y < box[3]; y++)
        for (int k = 3 * box[0]; k < 3 * box[2]; k++) {
            double d = (double)a[3 * SCENE_SIZE * y + k] - (double)b[3 * SCENE_SIZE * y + k];
            sum += d * d;
        }
    return 10 * log10(4 * 3.0 * (box[2] - box[0]) * (box[3] - box[1]) / sum);
}

// What the judge reads right on held-out combinations of both worlds: on the scenes themselves, which is the ceiling
// of prompt fidelity, or (v given) on what the VAE makes of them, and then also how close that comes.
typedef struct {
    double share[SCENE_ATTRIBUTES], mean; // of attributes
    double psnr, figure_psnr;             // mean over pictures: the whole; the figure's box
} Reading;

static Reading read_scenes(const PretrainOptions *o, Inception *net, const Vae *v, int batches) {
    enum { N = 50, EACH = SCENE_SIZE * SCENE_SIZE * 3 };
    int answers[SCENE_ATTRIBUTES * N], boxes[N][4], whole[4] = {0, 0, SCENE_SIZE, SCENE_SIZE};
    Reading r = {0};
    for (int b = 0; b < batches; b++) {
        Scope s = scope_begin();
        Tensor *x = scenes(o, SPLIT_TEST, b * N, N, answers, boxes), *seen = x;
        if (v) {
            Tensor *moments = vae_encode(v, x), *mean = slice(moments, 0, tensor_cols(moments) / 2);
            seen = clamp(vae_decode(v, mean), 1);
            float *before = tensor_read(x), *after = tensor_read(seen);
            for (int i = 0; i < N; i++) {
                r.psnr += psnr(before + i * EACH, after + i * EACH, whole) / (batches * N);
                r.figure_psnr += psnr(before + i * EACH, after + i * EACH, boxes[i]) / (batches * N);
            }
            free(before), free(after);
        }
        Tensor *logits = inception_logits(net, inception_features(net, seen));
        float *z = tensor_read(logits);
        int classes = tensor_cols(logits);
        for (int i = 0; i < N; i++)
            for (int a = 0, from = 0; a < SCENE_ATTRIBUTES; from += scene_attribute_count(a++)) {
                int best = 0;
                for (int k = 1; k < scene_attribute_count(a); k++)
                    if (z[i * classes + from + k] > z[i * classes + from + best]) best = k;
                r.share[a] += (best == answers[a * N + i]) / (double)(batches * N);
            }
        free(z);
        scope_end(s, NULL);
    }
    for (int a = 0; a < SCENE_ATTRIBUTES; a++) r.mean += r.share[a] / SCENE_ATTRIBUTES;
    return r;
}

static void print_reading(const char *what, const Reading *r) {
    printf("%-28s %.4f ", what, r->mean);
    for (int a = 0; a < SCENE_ATTRIBUTES; a++) printf("  %s %.3f", scene_attribute_name(a), r->share[a]);
    printf("\n");
}

// `sd pretrain check`: what can be known before a picture is drawn. No figure of a drawn picture can pass these.
void pretrain_check(const PretrainOptions *o) {
    enum { BATCHES = 20 };
    char *path = format("%s-inception.safetensors", o->out);
    Inception *judge = inception_load(path);
    Model *m = model_load(o->out, NULL, NEED_VAE);
    Reading real = read_scenes(o, judge, NULL, BATCHES), seen = read_scenes(o, judge, m->vae, BATCHES);
    print_reading("held-out scenes", &real);
    print_reading("the same through the VAE", &seen);
    printf("PSNR of the VAE: %.2f dB, over the figure's box %.2f dB\n", seen.psnr, seen.figure_psnr);
    model_free(m);
    inception_free(judge);
    free(path);
}

// Loss: the sum of the heads' cross-entropies.
void pretrain_inception(const PretrainOptions *o) {
    char *config = configuration();
    Inception *net = inception_new(config);
    Params *p = inception_params(net);
    Random init;
    random_seed(&init, o->seed + 3);
    inception_initialise(net, &init);
    const Params *models[] = {p};
    Optimiser *optimiser = optimiser_new(pretrain_adamw(o), (float)o->ema, models, 1);
    Run run = pretrain_run(o, NULL, optimiser);
    int n = o->batch, *answers = xmalloc((size_t)(SCENE_ATTRIBUTES * n) * sizeof(int));
    while (run_continues(&run)) {
        tape_begin();
        Tensor *x = scenes(o, SPLIT_TRAIN, run.step * n, n, answers, NULL), *loss = NULL;
        Tensor *logits = inception_logits(net, inception_features(net, x));
        for (int a = 0, from = 0; a < SCENE_ATTRIBUTES; from += scene_attribute_count(a++)) {
            Tensor *head =
                loss_pick(log_softmax(slice(logits, from, scene_attribute_count(a))), answers + a * n);
            loss = loss ? add(loss, head) : head;
        }
        backward(loss);
        run_step(&run, loss, NULL, "fresh scenes");
        tape_end();
    }
    if (run_end(&run)) {
        optimiser_swap_ema(optimiser);
        inception_gather(net, true); // the statistics of batch norm, over many batches
        for (int b = 0; b < 16; b++) {
            Scope s = scope_begin();
            inception_features(net, scenes(o, SPLIT_TRAIN, (1 << 24) + b * n, n, answers, NULL));
            scope_end(s, NULL);
        }
        inception_gather(net, false);
        char *path = format("%s-inception.safetensors", o->out);
        params_save_with(p, path, 0, F16, "inception", config);
        Inception *judge = inception_load(path); // as everybody will use it
        Reading real = read_scenes(o, judge, NULL, 20);
        inception_free(judge);
        // Saved again with what it reads right on real scenes, the ceiling of every fidelity measured with it.
        char *with_ceiling = format("%.*s, \"ceiling\": %.4f}", (int)strlen(config) - 1, config, real.mean);
        params_save_with(p, path, 0, F16, "inception", with_ceiling);
        free(with_ceiling);
        print_reading("held-out scenes", &real);
        free(path);
    }
    inception_free(net);
    free(config), free(answers);
}
