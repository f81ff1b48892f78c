// judge.c: `sd pretrain inception`, the toy world's judge: a small Inception (fid.c) that reads the six attributes of a
// scene off its picture. Two things are measured with it: prompt fidelity, the share of attributes that a generated
// picture shows as its caption asked; and the toy FID, on its pooled features.
#include "../sd.h"
#include "pretrain.h"

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

// Fresh scenes of both worlds in turn, pixels in [-1, 1], and their attributes (SCENE_ATTRIBUTES, n).
static Tensor *scenes(const PretrainOptions *o, Split split, long first, int n, int *answers) {
    enum { EACH = SCENE_SIZE * SCENE_SIZE * 3 };
    float *x = xmalloc((size_t)n * EACH * sizeof(float));
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < n; i++) {
        unsigned char *rgb = xmalloc(EACH);
        Scene scene;
        scene_draw((first + i) % 2 ? WORLD_FLICKR : WORLD_BROAD, split, o->seed, (first + i) / 2, rgb, &scene,
                   NULL);
        for (int k = 0; k < EACH; k++) x[(size_t)i * EACH + (size_t)k] = (float)rgb[k] / 127.5f - 1;
        for (int a = 0; a < SCENE_ATTRIBUTES; a++) answers[a * n + i] = scene_value(&scene, a);
        free(rgb);
    }
    Tensor *t = tensor_from(SHAPE(n, SCENE_SIZE, SCENE_SIZE, 3), x);
    free(x);
    return t;
}

// Share of attributes read right on held-out combinations of both worlds: the ceiling of prompt fidelity.
static double accuracy(const PretrainOptions *o, Inception *net, int batches,
                       double share[SCENE_ATTRIBUTES]) {
    enum { N = 50 };
    int answers[SCENE_ATTRIBUTES * N];
    double sum = 0;
    for (int a = 0; a < SCENE_ATTRIBUTES; a++) share[a] = 0;
    for (int b = 0; b < batches; b++) {
        Scope s = scope_begin();
        Tensor *logits =
            inception_logits(net, inception_features(net, scenes(o, SPLIT_TEST, b * N, N, answers)));
        float *x = tensor_read(logits);
        int classes = tensor_cols(logits);
        for (int i = 0; i < N; i++)
            for (int a = 0, from = 0; a < SCENE_ATTRIBUTES; from += scene_attribute_count(a++)) {
                int best = 0;
                for (int v = 1; v < scene_attribute_count(a); v++)
                    if (x[i * classes + from + v] > x[i * classes + from + best]) best = v;
                share[a] += (best == answers[a * N + i]) / (double)(batches * N);
            }
        free(x);
        scope_end(s, NULL);
    }
    for (int a = 0; a < SCENE_ATTRIBUTES; a++) sum += share[a] / SCENE_ATTRIBUTES;
    return sum;
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
    Run run = pretrain_run(o, optimiser);
    int n = o->batch, *answers = xmalloc((size_t)(SCENE_ATTRIBUTES * n) * sizeof(int));
    while (run_continues(&run)) {
        tape_begin();
        Tensor *x = scenes(o, SPLIT_TRAIN, run.step * n, n, answers), *loss = NULL;
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
            inception_features(net, scenes(o, SPLIT_TRAIN, (1 << 24) + b * n, n, answers));
            scope_end(s, NULL);
        }
        inception_gather(net, false);
        char *path = format("%s-inception.safetensors", o->out);
        params_save_with(p, path, 0, F16, "inception", config);
        Inception *judge = inception_load(path); // as everybody will use it
        double share[SCENE_ATTRIBUTES], mean = accuracy(o, judge, 20, share);
        inception_free(judge);
        // Saved again with what it reads right on real scenes, the ceiling of every fidelity measured with it.
        char *with_ceiling = format("%.*s, \"ceiling\": %.4f}", (int)strlen(config) - 1, config, mean);
        params_save_with(p, path, 0, F16, "inception", with_ceiling);
        free(with_ceiling);
        note("%s: read right on held-out scenes: %.4f", path, mean);
        for (int a = 0; a < SCENE_ATTRIBUTES; a++) note("  %-8s %.4f", scene_attribute_name(a), share[a]);
        free(path);
    }
    inception_free(net);
    free(config), free(answers);
}
