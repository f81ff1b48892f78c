// web.c: the front door of the page (doc/page/): what a browser's script calls, compiled by `make web` to
// WebAssembly. What is computed and seen goes to the script through hand_over(); what happens inside is seen
// as `sd sample --film` sees it. A mistake ends the program as everywhere; the page then starts it again.
#include "captions.h"
#include "film.h"
#include "weights/toy/judge.h"
#include "weights/toy/scenes.h"

#include <emscripten.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// Module.handOver(name, step, a copy of the numbers)
EM_JS(void, hand_over, (const char *name, int step, const float *x, int count),
      { Module.handOver(UTF8ToString(name), step, HEAPF32.slice(x >> 2, (x >> 2) + count)); })
// Module.handPicture(bytes, width, height), 3 bytes a pixel
EM_JS(void, hand_picture, (const unsigned char *rgb, int width, int height),
      { Module.handPicture(HEAPU8.slice(rgb, rgb + 3 * width * height), width, height); })

static void give(Image *image) {
    hand_picture(image->rgb, image->width, image->height);
    image_free(image);
}

EMSCRIPTEN_KEEPALIVE void web_start(void) { backend_init(1); }

// A file of the page becomes one of the program's, in memory: its gzip, or where it links to.
EMSCRIPTEN_KEEPALIVE void web_file(const char *path, const unsigned char *gzip, int bytes,
                                   const char *target) {
    char *folder = format("%.*s", (int)(strrchr(path, '/') - path), path);
    make_directories(folder);
    if (!bytes && symlink(target, path)) die("cannot make the link %s", path);
    if (bytes) {
        size_t n;
        unsigned char *data = inflate_gzip(gzip, (size_t)bytes, &n);
        if (!data) die("the page is damaged: %s", path);
        Output *o = output_open(path);
        output_write(o, data, n);
        output_commit(o);
        free(data);
    }
    free(folder);
}
EMSCRIPTEN_KEEPALIVE Model *web_model(const char *path) { return model_load(path, NULL, NEED_ALL); }
EMSCRIPTEN_KEEPALIVE Lora *web_lora(const Model *m, const char *path) { return lora_load(&m->params, path); }

// The model's defaults as JSON, and its noise schedule: alphas_cumprod of each timestep.
EMSCRIPTEN_KEEPALIVE char *web_about(const Model *m) {
    SampleOptions o = sample_defaults(m);
    Scheduler s;
    scheduler_init(&s, sample_scheduler(m, &o));
    hand_over("alphas", 0, s.alphas_cumprod, s.config.num_train_timesteps);
    char *text =
        format("{\"steps\": %d, \"cfg\": %g, \"size\": %d, \"sampler\": %d, \"tokens\": %d}", o.steps,
               (double)o.cfg, o.width, s.config.kind, m->text_config.max_position_embeddings);
    scheduler_free(&s);
    return text;
}

// [["brown", first token, tokens], ...]
EMSCRIPTEN_KEEPALIVE char *web_words(const Model *m, const char *caption) {
    int count;
    Word *words = caption_words(m, caption, &count);
    char *text = xstrdup("[");
    for (int i = 0; i < count; i++)
        format_more(&text, "%s[%s, %d, %d]", i ? ", " : "", json_quote(words[i].text), words[i].from,
                    words[i].count);
    format_more(&text, "]");
    return text;
}

static void seen(const Film *f, int i) {
    const Frame *frame = &f->frames[i];
    int n = f->h * f->w * f->c;
    hand_over("z", i, frame->z, n), hand_over("noise", i, frame->noise, n), hand_over("x0", i, frame->x0, n);
    hand_over("parts", i, frame->parts, n * f->rows);
    for (int l = 0; l < MAX_LEVELS; l++)
        if (frame->attention[l])
            hand_over("attention", i, frame->attention[l], f->tokens * frame->height[l] * frame->width[l]);
    hand_over("t", i, &frame->t, 1), hand_over("frame", i, NULL, 0);
}

// lora: NULL, or adapters to draw with. sampler: a SchedulerKind. filmed: each step is handed over.
EMSCRIPTEN_KEEPALIVE void web_sample(const Model *m, Lora *lora, const char *caption, const char *negative,
                                     int steps, float cfg, int sampler, double seed, int filmed) {
    SampleOptions o = sample_defaults(m);
    o.prompt = caption, o.negative = negative, o.steps = steps, o.cfg = cfg, o.scheduler = sampler;
    o.seed = (uint64_t)seed, o.progress = false;
    if (lora) lora_attach(lora, 1);
    Film *film = filmed ? film_begin(m, &o, seen) : NULL;
    give(sample(m, o, NULL));
    film_end();
    if (film) hand_over("end", film->count, film->end, film->h * film->w * film->c), film_free(film);
    if (lora) lora_detach(lora);
}

// Latents (h, w, c) of the model's usual size as a picture.
EMSCRIPTEN_KEEPALIVE void web_decode(const Model *m, const float *latents) {
    SampleOptions o = sample_defaults(m);
    Film size = {.model = m, .h = o.height / 8, .w = o.width / 8, .c = m->unet_config.in_channels};
    give(film_decode(&size, latents));
}

// Where the consistency function of an LCM puts the end of the path that leads through z at timestep t.
EMSCRIPTEN_KEEPALIVE void web_consistency(const Model *m, const char *caption, const float *z, int t,
                                          float cfg) {
    Lcm l;
    Scope scope = scope_begin();
    int side = m->unet_config.sample_size, c = m->unet_config.in_channels;
    float w = cfg - 1;
    lcm_init(&l, lcm_defaults, scheduler_config(m->scheduler_json, LCM), NULL, m->unet, NULL);
    Tensor *text = encode_prompts(m, &caption, 1), *from = tensor_from(SHAPE(1, side, side, c), z);
    float *end = tensor_read(lcm_consistency(&l, m->unet, from, times_all_at(&l.schedule, t, 1), text, &w));
    hand_over("end", t, end, side * side * c);
    free(end), lcm_free(&l);
    scope_end(scope, NULL);
}

// ---- the judge --------------------------------------------------------------------------------------------

static struct {
    Judge *judge;
    FidSet reference, sets[2]; // sets: pictures drawn, and as many true scenes
    int asked, right;          // attributes of the captions, and those that the drawn pictures show
} scores;

EMSCRIPTEN_KEEPALIVE void web_judge(const char *weights, const char *statistics) {
    scores.judge = judge_load(weights), scores.reference = fid_read_statistics(statistics);
}

EMSCRIPTEN_KEEPALIVE void web_judge_clear(void) {
    for (int i = 0; i < 2; i++) {
        fid_set_free(&scores.sets[i]);
        scores.sets[i] = (FidSet){.dim = inception_dim(scores.judge->net)};
    }
    scores.asked = scores.right = 0;
}

// The caption of a scene of the split `test`, which no training has seen.
EMSCRIPTEN_KEEPALIVE char *web_scene(int index) {
    Scene scene;
    char captions[SCENE_CAPTIONS][SCENE_CAPTION_BYTES];
    scene_describe(WORLD_FLICKR, SPLIT_TEST, 1, index, &scene, captions);
    return xstrdup(captions[0]);
}

static void measure(int set, const Image *image, const Scene *scene) {
    FidSet *s = &scores.sets[set];
    const Judge *j = scores.judge;
    int size = inception_size(j->net);
    float *x = xmalloc((size_t)(3 * size * size) * sizeof *x);
    fid_resize(x, image, size, RESIZE_FID);
    Scope scope = scope_begin();
    float *features = tensor_read(inception_features(j->net, tensor_from(SHAPE(1, size, size, 3), x)));
    scope_end(scope, NULL);
    s->features = xrealloc(s->features, (size_t)((s->count + 1) * s->dim) * sizeof(float));
    memcpy(s->features + s->count++ * s->dim, features, (size_t)s->dim * sizeof(float));
    int *answers = scene ? judge_answers(j, features, 1) : NULL;
    for (int a = 0; scene && a < SCENE_ATTRIBUTES; a++)
        scores.asked++, scores.right += answers[a] == scene_value(scene, a);
    free(x), free(features), free(answers);
}

// Takes a picture of the caption of scene `index` (rgb, 128 x 128), and a true scene of another caption.
EMSCRIPTEN_KEEPALIVE void web_score(int index, unsigned char *rgb) {
    Scene scene;
    Image drawn = {SCENE_SIZE, SCENE_SIZE, rgb}, *real = image_new(SCENE_SIZE, SCENE_SIZE);
    scene_draw(WORLD_FLICKR, SPLIT_TEST, 2, index, real->rgb, &scene, NULL);
    measure(1, real, NULL);
    scene_draw(WORLD_FLICKR, SPLIT_TEST, 1, index, real->rgb, &scene, NULL);
    measure(0, &drawn, &scene);
    give(real);
}

// {"count": 50, "fidelity": 0.87, "ceiling": 0.99} and, if asked for, {"precision": 0.7, "recall": 0.5,
// "fid": [drawn, true scenes]}: the neighbours are as many true scenes.
EMSCRIPTEN_KEEPALIVE char *web_scores(int fid) {
    char *text = format("{\"count\": %ld, \"fidelity\": %.4f, \"ceiling\": %.4f", scores.sets[0].count,
                        (double)scores.right / (scores.asked ? scores.asked : 1), scores.judge->ceiling);
    Neighbours near = {0};
    if (fid) near = fid_neighbours(&scores.sets[1], &scores.sets[0]);
    if (fid) format_more(&text, ", \"precision\": %.3f, \"recall\": %.3f", near.precision, near.recall);
    for (int i = 0; fid && i < 2; i++) {
        FidSet s = {.dim = scores.sets[i].dim};
        moments_begin(&s), moments_add(&s, scores.sets[i].features, (int)scores.sets[i].count),
            moments_end(&s);
        format_more(&text, "%s%.2f", i ? ", " : ", \"fid\": [", fid_distance(&s, &scores.reference));
        fid_set_free(&s);
    }
    format_more(&text, "%s}", fid ? "]" : "");
    return text;
}
