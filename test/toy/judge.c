// judge.c (test): a judge with made weights. Its heads, the statistics of batch norm that training gathers,
// what it says of drawn pictures, and the input that has to be refused. Its training: pretrain.sh.test.
#define _POSIX_C_SOURCE 200809L
#include "weights/toy/judge.h"
#include "weights/toy/made.h"
#include "test/test.h"

#include <setjmp.h>

static const char config[] = "{\"size\": 111, \"width\": 1, \"a\": 2, \"c\": 1, \"e\": 2, \"heads\": "
                             "{\"colour\": [\"red\", \"blue\"], \"place\": [\"park\", \"sea\", \"street\"]}}";

static Judge *made_judge(void) {
    Judge *j = judge_new(config);
    made_params(inception_params(j->net), "", MADE_SOFT, F32);
    return j;
}

// Statistics gathered over one batch make inference repeat what training computed on it.
static void test_gathering(void) {
    enum { N = 3, SIZE = 111 };
    Judge *j = made_judge();
    float *pixels = xmalloc(N * SIZE * SIZE * 3 * sizeof(float));
    made_fill("input.pictures", 4, (int64_t[]){N, SIZE, SIZE, 3}, MADE_SOFT, pixels);
    Scope s = scope_begin();
    Tensor *x = tensor_from(SHAPE(N, SIZE, SIZE, 3), pixels);
    judge_gather_begin();
    float *train = tensor_read(inception_features(j->net, x));
    judge_gather_end(j);
    inception_fold(j->net);
    float *infer = tensor_read(inception_features(j->net, x));
    // batch statistics of 12 values amplify rounding; a variance divided by 11 instead of 12 would be off by
    // 4 %
    check_close("gathered statistics", infer, train, N * (size_t)inception_dim(j->net), 1e-3);
    scope_end(s, NULL);
    free(pixels), free(train), free(infer);
    judge_free(j);
}

// ---- drawn pictures, and what has to be refused -----------------------------------------------------------

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

static void write_text(const char *path, const char *text) {
    Output *o = output_open(path);
    output_printf(o, "%s", text);
    output_commit(o);
}

static void draw(const char *path, int size, int seed) {
    Image *image = image_new(size, size);
    for (int k = 0; k < 3 * size * size; k++) image->rgb[k] = (unsigned char)(k * (seed + 1));
    image_save_png(path, image, NULL);
    image_free(image);
}

// What the heads say of a picture that goes through by itself.
static const char *read_off(const Judge *j, const char *path, int head) {
    int size = inception_size(j->net), from = 0;
    float *pixels = xmalloc((size_t)(3 * size * size) * sizeof(float));
    Image *image = image_load(path);
    fid_resize(pixels, image, size, RESIZE_FID);
    Scope s = scope_begin();
    Tensor *features = inception_features(j->net, tensor_from(SHAPE(1, size, size, 3), pixels));
    float *logits = tensor_read(linear(features, j->fc));
    scope_end(s, NULL);
    for (int h = 0; h < head; h++) from += (int)j->heads->items[h].length;
    int best = 0;
    for (int k = 1; k < (int)j->heads->items[head].length; k++)
        if (logits[from + k] > logits[from + best]) best = k;
    image_free(image), free(pixels), free(logits);
    return j->heads->items[head].items[best].string;
}

static void test_pictures(const char *folder) {
    verbosity = -1;
    char *weights = format("%s/judge.safetensors", folder), *list = format("%s/prompts.jsonl", folder);
    char *picture[2] = {format("%s/00000.png", folder), format("%s/00001.png", folder)};
    Judge *j = made_judge();
    params_save(inception_params(j->net), weights, 0, F32, "inception", config);
    judge_free(j);
    j = judge_load(weights);
    check(j->heads->length == 2 && !strcmp(j->heads->items[1].key, "place") &&
              !strcmp(j->heads->items[1].items[2].string, "street") && tensor_rows(j->fc->weight) == 5,
          "the heads are what the configuration says");
    check(j->ceiling < 0, "an untrained judge knows no ceiling");
    FidOptions o = {.batch = 7};
    double fraction[2], interval[2];
    long n;
    REFUSED("prompts.jsonl", judge_pictures(j, folder, o, fraction, interval, &n));
    write_text(list, "{\"colour\": \"red\", \"place\": \"sea\"}\n{\"colour\": \"blue\"}\n");
    REFUSED("00000.png is missing", judge_pictures(j, folder, o, fraction, interval, &n));
    for (int i = 0; i < 2; i++) draw(picture[i], 40 + 60 * i, i);
    double fidelity = judge_pictures(j, folder, o, fraction, interval, &n);
    check(n == 2 && fidelity == (fraction[0] + fraction[1]) / 2 && fraction[1] * (1 - fraction[1]) == 0,
          "the judge asks only for what was said");
    write_text(
        list,
        format("{\"colour\": \"%s\", \"place\": \"%s\"}\n{\"colour\": \"no colour\", \"place\": \"%s\"}",
               read_off(j, picture[0], 0), read_off(j, picture[0], 1), read_off(j, picture[1], 1)));
    fidelity = judge_pictures(j, folder, o, fraction, interval, &n);
    check(n == 2 && fraction[0] == 0.5 && fraction[1] == 1 && fidelity == 0.75, "three of four are right");
    // Parts of the two pictures: 1/4 and -1/4. With two right and two wrong ones: mean 3.5 / 6.
    double middle = 3.5 / 6,
           half = 1.96 * sqrt(2 * middle * middle + 2 * (1 - middle) * (1 - middle) + 2.0 / 16) / 6;
    check(fabs(interval[0] - (middle - half)) < 1e-12 && fabs(interval[1] - (middle + half)) < 1e-12,
          "its interval");
    write_text(list, "{\"colour\": \"red\"}\n{\"colour\": \"red\"}\n");
    REFUSED("no line of", judge_pictures(j, folder, o, fraction, interval, &n));
    write_text(list, "\n");
    REFUSED("holds no line", judge_pictures(j, folder, o, fraction, interval, &n));
    judge_free(j);

    REFUSED("judge no attributes", judge_new("{\"size\": 111, \"width\": 1}"));
    REFUSED("judge no attributes", judge_new("{\"size\": 111, \"width\": 1, \"heads\": {}}"));
    REFUSED("head colour has no classes", judge_new("{\"width\": 1, \"heads\": {\"colour\": []}}"));
    REFUSED("head colour names no class 1",
            judge_new("{\"width\": 1, \"heads\": {\"colour\": [\"red\", 2]}}"));
    verbosity = 0;
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    backend_init(2);
    char name[] = "/tmp/sd-test-judge-XXXXXX", *folder = mkdtemp(name);
    test_gathering();
    test_pictures(folder);
    char *clean = format("rm -rf %s", folder);
    if (system(clean)) printf("%s stays\n", folder);
    return test_report();
}
