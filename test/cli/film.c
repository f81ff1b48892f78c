// film.c: what `sd sample --film` and the page see inside, beside hooks in diffusers: make_film_fixture.py
// wrote test/fixtures/film.safetensors, with the made weights of `sd synth --arch tiny`.
//     build/test/cli/film                     that
//     build/test/cli/film MODEL FIXTURE       another model, by the same script
#define _DEFAULT_SOURCE // mkdtemp
#include "cli/captions.h"
#include "cli/film.h"
#include "test/test.h"

#include <unistd.h>

static const double TOLERANCE = 1e-4; // of the largest value: what the page promises

static void compare(const Store *s, int step, const char *what, const float *ours, size_t n) {
    char *name = format("step.%d.%s", step, what);
    const Stored *t = store_find(s, name);
    float *theirs = t && t->count == n ? store_floats(t, name) : NULL;
    check(theirs != NULL, name);
    if (theirs) check_close(name, ours, theirs, n, TOLERANCE);
    free(theirs), free(name);
}

// Latents are NCHW there.
static void compare_latents(const Store *s, int step, const char *what, const Film *f, const float *ours) {
    float *nchw = nhwc_to_nchw(ours, 1, f->c, f->h, f->w);
    compare(s, step, what, nchw, (size_t)(f->c * f->h * f->w));
    free(nchw);
}

static void film_against_diffusers(const char *model, const char *fixture) {
    Store *s = store_open(fixture);
    Model *m = model_load(model, NULL, NEED_ALL);
    SampleOptions o = sample_defaults(m);
    o.prompt = "a child in a pink dress", o.steps = 2, o.cfg = 4, o.seed = 5, o.scheduler = DDIM,
    o.progress = false;
    Film *f = film_begin(m, &o, NULL);
    Image *image = sample(m, o, NULL);
    film_end();
    check(f->count == 2, "a frame for each step");
    for (int i = 0; i < f->count; i++) {
        const Frame *frame = &f->frames[i];
        compare(s, i, "t", &frame->t, 1);
        compare_latents(s, i, "z", f, frame->z);
        compare_latents(s, i, "noise", f, frame->noise);
        compare_latents(s, i, "x0", f, frame->x0);
        int levels = 0;
        for (int l = 0; l < MAX_LEVELS; l++) {
            if (!frame->attention[l]) continue;
            char *name = format("attention.%d", l);
            compare(s, i, name, frame->attention[l],
                    (size_t)(f->tokens * frame->height[l] * frame->width[l]));
            free(name), levels++;
        }
        check(levels == m->unet_config.levels, "maps of each level");
    }
    Image *decoded = film_decode(f, f->end);
    size_t bytes = 3 * (size_t)image->width * (size_t)image->height;
    check(!memcmp(image->rgb, decoded->rgb, bytes), "the last latents make the picture");
    int count;
    Word *words = caption_words(m, " A child,  in pink!", &count);
    int ids[128], used = tokenizer_encode(m->tokenizer, " A child,  in pink!", ids, 128, NULL), tokens = 0;
    for (int i = 0; i < count; i++) {
        check(words[i].from == 1 + tokens, "a word's tokens follow those of the word before");
        tokens += words[i].count;
    }
    check(count == 4 && tokens == used - 2, "the words have all tokens but the first and the last");
    film_free(f), image_free(image), image_free(decoded), store_close(s), model_free(m);
}

int main(int argc, char **argv) {
    backend_init(0);
    char model[] = "/tmp/film-XXXXXX";
    if (argc == 3)
        film_against_diffusers(argv[1], argv[2]);
    else if (!file_exists("./sd"))
        skip("films beside diffusers", "there is no ./sd, which makes the model");
    else if (mkdtemp(model)) {
        char *synth = format("./sd synth %s/model --arch tiny -q", model), *made = format("%s/model", model);
        check(!system(synth), "a model with made weights");
        film_against_diffusers(made, "test/fixtures/film.safetensors");
        free(synth), synth = format("rm -r %s", model);
        check(!system(synth), "which goes");
        free(synth), free(made);
    }
    return test_report();
}
