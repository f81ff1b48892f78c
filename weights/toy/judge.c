// judge.c: the toy world's judge (judge.h): what it sees on drawn pictures, and its training, the stage
// `inception` of `sd pretrain`. `check` is here too: how well it reads held-out scenes.
#include "judge.h"
#include "pretrain.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- the network ------------------------------------------------------------------------------------------

static Judge *judge_of(Inception *net, const char *config, const char *path) {
    Judge *j = xcalloc(1, sizeof *j);
    j->net = net;
    j->config = config ? json_parse(config, strlen(config), path) : NULL;
    j->heads = json_get(j->config, "heads");
    j->ceiling = json_get_number(j->config, "ceiling", -1);
    if (!j->heads || j->heads->kind != JSON_OBJECT || !j->heads->length)
        die("%s: these Inception weights judge no attributes: they are not the toy world's", path);
    int classes = 0;
    for (size_t h = 0; h < j->heads->length; h++) {
        const Json *head = &j->heads->items[h];
        if (head->kind != JSON_ARRAY || !head->length)
            die("%s: the Inception configuration's head %s has no classes", path, head->key);
        for (size_t k = 0; k < head->length; k++)
            if (head->items[k].kind != JSON_STRING)
                die("%s: the Inception configuration's head %s names no class %zu", path, head->key, k);
        classes += (int)head->length;
    }
    j->fc = layer_linear(inception_params(net), inception_dim(net), classes, true, "fc");
    return j;
}

Judge *judge_new(const char *config) {
    return judge_of(inception_new(config, "the toy judge"), config, "the toy judge");
}

static const Stored *find_in_store(void *store, const char *name) { return store_find(store, name); }

Judge *judge_load(const char *path) {
    Store *store = store_open(path);
    Judge *j = judge_of(inception_load(path), store_metadata(store, "inception"), path);
    Params fc = params_part(inception_params(j->net), "fc.");
    params_load(&fc, find_in_store, store, path);
    params_to_f32(&fc);
    store_close(store);
    return j;
}

void judge_free(Judge *j) {
    inception_free(j->net);
    json_free(j->config);
    free(j);
}

// The most likely of a head's classes.
static int largest(const float *logit, int classes) {
    int best = 0;
    for (int k = 1; k < classes; k++)
        if (logit[k] > logit[best]) best = k;
    return best;
}

int *judge_answers(const Judge *j, const float *features, int n) {
    Scope scope = scope_begin();
    float *logits = tensor_read(linear(tensor_from(SHAPE(n, inception_dim(j->net)), features), j->fc));
    scope_end(scope, NULL);
    size_t heads = j->heads->length;
    int *answers = xmalloc((size_t)n * heads * sizeof *answers);
    const float *logit = logits;
    for (size_t i = 0; i < (size_t)n * heads; logit += j->heads->items[i++ % heads].length)
        answers[i] = largest(logit, (int)j->heads->items[i % heads].length);
    free(logits);
    return answers;
}

// ---- drawn pictures ---------------------------------------------------------------------------------------

// prompts.jsonl: the attributes that picture 00000.png, 00001.png, ... was asked for, a line a picture.
typedef struct {
    char *file;
    size_t count;
    char **pictures; // their paths
    Json **wanted;   // {"subject": "girl", ...}
} Prompts;

static Prompts read_prompts(const char *dir) {
    Prompts p = {.file = format("%s/prompts.jsonl", dir)};
    size_t bytes, length;
    char *text = read_file(p.file, &bytes);
    for (const char *at = text, *line; next_line(&at, text + bytes, &line, &length);) {
        if (!length) continue;
        p.wanted = xrealloc(p.wanted, (p.count + 1) * sizeof *p.wanted);
        p.pictures = xrealloc(p.pictures, (p.count + 1) * sizeof *p.pictures);
        char *where = format("%s, line %zu", p.file, p.count + 1), *picture;
        p.wanted[p.count] = json_parse(line, length, where);
        p.pictures[p.count] = picture = format("%s/%05zu.png", dir, p.count);
        if (!file_exists(picture)) die("the picture %s is missing: %s has a line for it", picture, p.file);
        p.count++;
        free(where);
    }
    if (!p.count) die("%s holds no line", p.file);
    free(text);
    return p;
}

static void prompts_free(Prompts *p) {
    for (size_t i = 0; i < p->count; i++) free(p->pictures[i]), json_free(p->wanted[i]);
    free(p->file), free(p->pictures), free(p->wanted);
}

double judge_pictures(const Judge *j, const char *dir, FidOptions o, double *fraction, double interval[2],
                      long *count) {
    Prompts prompts = read_prompts(dir);
    o.keep_features = true, o.statistics = false;
    FidSet s = fid_scan_files(j->net, dir, prompts.pictures, prompts.count, o);
    size_t heads = j->heads->length;
    int *best = judge_answers(j, s.features, (int)s.count); // (count, heads)
    long *asked = xcalloc(heads, sizeof(long)), *right = xcalloc(heads, sizeof(long));
    int *answer = xcalloc((size_t)s.count * heads, sizeof(int)); // 0: not asked; 1: wrong; 2: right
    for (long i = 0, line = 0; i < s.count; i++, line++) {
        while (strcmp(prompts.pictures[line], s.names[i])) line++; // unreadable pictures were left out
        for (size_t h = 0; h < heads; h++) {
            const Json *head = &j->heads->items[h];
            const char *want = json_get_string(prompts.wanted[line], head->key, NULL);
            const char *shown = head->items[best[(size_t)i * heads + h]].string;
            if (want) asked[h]++, right[h] += !strcmp(shown, want); // some captions do not say
            answer[(size_t)i * heads + h] = want ? 1 + !strcmp(shown, want) : 0;
        }
    }
    double sum = 0;
    for (size_t h = 0; h < heads; h++) {
        if (!asked[h]) die("no line of %s names the attribute \"%s\"", prompts.file, j->heads->items[h].key);
        sum += fraction[h] = (double)right[h] / (double)asked[h];
    }
    *count = s.count;
    // Its variance: that of the pictures' parts in it (the answers of a picture depend on one another), where
    // two more are all right and two all wrong, as Agresti and Coull (1998) have it; so it is never 0.
    double mean = sum / (double)heads, n = (double)s.count, middle = (n * mean + 2) / (n + 4),
           squares = 2 * middle * middle + 2 * (1 - middle) * (1 - middle);
    for (size_t i = 0; i < (size_t)s.count; i++) {
        double part = 0;
        for (size_t h = 0; h < heads; h++)
            if (answer[i * heads + h])
                part += (answer[i * heads + h] - 1 - fraction[h]) * n / (double)asked[h] / (double)heads;
        squares += part * part;
    }
    interval[0] = fmax(middle - 1.96 * sqrt(squares) / (n + 4), 0);
    interval[1] = fmin(middle + 1.96 * sqrt(squares) / (n + 4), 1);
    free(best), free(asked), free(right), free(answer);
    prompts_free(&prompts);
    fid_set_free(&s);
    return mean;
}

// ---- scenes -----------------------------------------------------------------------------------------------

// {"size": 128, "width": 4, ..., "heads": {"subject": ["boy", ...], ...}}: see sd.h, Phase 4, and judge.h.
static char *configuration(void) {
    char *text = xstrdup("{\"size\": 128, \"width\": 4, \"a\": 2, \"c\": 2, \"e\": 1, \"heads\": {");
    for (int a = 0; a < SCENE_ATTRIBUTES; a++) {
        format_more(&text, "%s\"%s\": [", a ? ", " : "", scene_attribute_name(a));
        for (int v = 0; v < scene_attribute_count(a); v++)
            format_more(&text, "%s\"%s\"", v ? ", " : "", scene_value_name(a, v));
        format_more(&text, "]");
    }
    format_more(&text, "}}");
    return text;
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

// What the judge reads right on held-out combinations of both worlds: on the scenes themselves, which is the
// ceiling of prompt fidelity, or (v given) on what the VAE makes of them, together with the PSNR of that.
typedef struct {
    double fraction[SCENE_ATTRIBUTES], mean; // of attributes read right
    double psnr, figure_psnr;                // mean over pictures: of the whole picture; of the figure's box
} Reading;

static Reading read_scenes(const PretrainOptions *o, const Judge *judge, const Vae *v, int batches) {
    enum { N = 50, EACH = SCENE_SIZE * SCENE_SIZE * 3 };
    Scene shown[N];
    int boxes[N][4], whole[4] = {0, 0, SCENE_SIZE, SCENE_SIZE};
    Reading r = {0};
    for (int b = 0; b < batches; b++) {
        Scope s = scope_begin();
        Tensor *x = pretrain_scenes(o, SPLIT_TEST, BOTH_WORLDS, b * N, N, SCENE_SIZE, shown, boxes),
               *seen = x;
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
        float *logits = tensor_read(linear(inception_features(judge->net, seen), judge->fc)), *logit = logits;
        for (int i = 0; i < N; i++)
            for (int a = 0; a < SCENE_ATTRIBUTES; logit += scene_attribute_count(a++)) {
                bool right = largest(logit, scene_attribute_count(a)) == scene_value(&shown[i], a);
                r.fraction[a] += right / (double)(batches * N);
            }
        free(logits);
        scope_end(s, NULL);
    }
    for (int a = 0; a < SCENE_ATTRIBUTES; a++) r.mean += r.fraction[a] / SCENE_ATTRIBUTES;
    return r;
}

static void print_reading(const char *what, const Reading *r) {
    printf("%-28s %.4f ", what, r->mean);
    for (int a = 0; a < SCENE_ATTRIBUTES; a++) printf("  %s %.3f", scene_attribute_name(a), r->fraction[a]);
    printf("\n");
}

// `sd pretrain check`: the ceilings of every figure that is measured on drawn pictures.
void pretrain_check(const PretrainOptions *o) {
    enum { BATCHES = 20 };
    char *path = format("%s-inception.safetensors", o->out);
    Judge *judge = judge_load(path);
    Model *m = model_load(o->out, NULL, NEED_VAE);
    Reading real = read_scenes(o, judge, NULL, BATCHES), seen = read_scenes(o, judge, m->vae, BATCHES);
    print_reading("held-out scenes", &real);
    print_reading("the same through the VAE", &seen);
    printf("PSNR of the VAE: %.2f dB, over the figure's box %.2f dB\n", seen.psnr, seen.figure_psnr);
    model_free(m);
    judge_free(judge);
    free(path);
}

// ---- training ---------------------------------------------------------------------------------------------

// Convolutions and fc: normal, standard deviation sqrt(2 / fan-in), which keeps that of the activations
// through a ReLU (He et al. 2015). Norms begin as the identity.
static void initialise(const Params *p, Random *r) {
    for (int i = 0; i < p->count; i++) {
        Tensor *t = p->list[i].tensor;
        const char *name = p->list[i].name;
        size_t n = tensor_count(t), fan_in = n / (size_t)t->shape[0];
        float *x = xcalloc(n, sizeof(float));
        bool one = strstr(name, ".bn.weight") || strstr(name, ".running_var");
        if (t->dims > 1) random_normal(r, x, n);
        for (size_t k = 0; k < n; k++) x[k] = one ? 1 : t->dims > 1 ? x[k] * sqrtf(2 / (float)fan_in) : 0;
        param_allocate(t, F32);
        tensor_write(t, x);
        if (!strstr(name, ".running_")) param_trainable(t);
        free(x);
    }
}

// What a convolution gives, over everything that went through the network: sums over the positions of all
// pictures. So the statistics are exact ones of many batches, rather than a moving average with a noisy end.
typedef struct {
    char *name; // "Mixed_5b.branch1x1.conv"
    int channels;
    double *sum, *square, count;
} Gathered;
static Gathered *gathered;
static int gathered_count;

static void gather(const char *name, const Tensor *y) {
    int channels = tensor_cols(y), rows = tensor_rows(y), i = 0;
    while (i < gathered_count && strcmp(gathered[i].name, name)) i++;
    if (i == gathered_count) {
        gathered = xrealloc(gathered, (size_t)++gathered_count * sizeof *gathered);
        gathered[i] = (Gathered){xstrdup(name), channels, xcalloc((size_t)channels, sizeof(double)),
                                 xcalloc((size_t)channels, sizeof(double)), 0};
    }
    Gathered *g = &gathered[i];
    float *x = tensor_read(y);
    for (size_t row = 0; row < (size_t)rows; row++)
        for (int c = 0; c < channels; c++) {
            double v = x[row * (size_t)channels + (size_t)c];
            g->sum[c] += v, g->square[c] += v * v;
        }
    g->count += rows;
    free(x);
}

void judge_gather_begin(void) { trace_sink = gather; }

void judge_gather_end(Judge *j) {
    trace_sink = NULL;
    for (int i = 0; i < gathered_count; i++) {
        Gathered *g = &gathered[i];
        float *mean = xmalloc((size_t)g->channels * sizeof(float));
        float *var = xmalloc((size_t)g->channels * sizeof(float));
        for (int c = 0; c < g->channels; c++) {
            double m = g->sum[c] / g->count;
            mean[c] = (float)m, var[c] = (float)fmax(g->square[c] / g->count - m * m, 0);
        }
        int unit = (int)(strlen(g->name) - strlen("conv"));
        char *names[] = {format("%.*sbn.running_mean", unit, g->name),
                         format("%.*sbn.running_var", unit, g->name)};
        tensor_write(params_find(inception_params(j->net), names[0]), mean);
        tensor_write(params_find(inception_params(j->net), names[1]), var);
        free(names[0]), free(names[1]), free(mean), free(var), free(g->name), free(g->sum), free(g->square);
    }
    free(gathered);
    gathered = NULL, gathered_count = 0;
}

// Loss: the sum of the heads' cross-entropies.
void pretrain_inception(const PretrainOptions *o) {
    char *config = configuration();
    Judge *judge = judge_new(config);
    Params *p = inception_params(judge->net);
    Random init;
    random_seed(&init, o->seed + 3);
    initialise(p, &init);
    const Params *models[] = {p};
    Run run = pretrain_run(o, NULL, models, 1);
    int n = run.batch, *answers = xmalloc((size_t)n * sizeof(int));
    Scene *shown = xmalloc((size_t)n * sizeof *shown);
    while (run_continues(&run)) {
        tape_begin();
        Split split = run.turn ? SPLIT_TEST : SPLIT_TRAIN;
        Tensor *x = pretrain_scenes(o, split, BOTH_WORLDS, run.portion * n, n, SCENE_SIZE, shown, NULL),
               *loss = NULL;
        Tensor *logits = linear(inception_features(judge->net, x), judge->fc);
        for (int a = 0, from = 0; a < SCENE_ATTRIBUTES; from += scene_attribute_count(a++)) {
            for (int i = 0; i < n; i++) answers[i] = scene_value(&shown[i], a);
            Tensor *head = loss_pick(log_softmax(slice(logits, from, scene_attribute_count(a))), answers);
            loss = loss ? add(loss, head) : head;
        }
        backward(loss);
        run_step(&run, loss, NULL, "fresh scenes");
        tape_end();
    }
    if (pretrain_end(o, &run)) {
        judge_gather_begin();
        for (int b = 0; b < 16; b++) {
            Scope s = scope_begin();
            Tensor *x =
                pretrain_scenes(o, SPLIT_TRAIN, BOTH_WORLDS, (1 << 24) + b * n, n, SCENE_SIZE, NULL, NULL);
            inception_features(judge->net, x);
            scope_end(s, NULL);
        }
        judge_gather_end(judge);
        char *path = format("%s-inception.safetensors", o->out);
        params_save(p, path, 0, F16, "inception", config);
        may_replace(path);
        Judge *saved = judge_load(path); // as everybody will use it
        Reading real = read_scenes(o, saved, NULL, 20);
        judge_free(saved);
        // Saved again with the ceiling of every fidelity that is measured with it.
        char *with_ceiling = format("%.*s, \"ceiling\": %.4f}", (int)strlen(config) - 1, config, real.mean);
        params_save(p, path, 0, F16, "inception", with_ceiling);
        print_reading("held-out scenes", &real);
        free(with_ceiling), free(path);
    }
    judge_free(judge);
    free(config), free(answers), free(shown);
}
