// film.c: what happens inside while a picture is drawn. See film.h.
#include "film.h"
#include "captions.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static Film *film; // what the sink fills

int level_of(const char *module, const UNetConfig *u) {
    int level = 0;
    if (starts_with(module, "unet.mid_block")) level = u->levels - 1;
    if (sscanf(module, "unet.up_blocks.%d", &level) == 1) level = u->levels - 1 - level;
    sscanf(module, "unet.down_blocks.%d", &level);
    return level >= 0 && level < u->levels ? level : 0;
}

// ---- filming ----------------------------------------------------------------------------------------------

// softmax(q k^T / sqrt(d)) for each head: how much each pixel reads of each token. The kernels never store
// it, so it is computed once more. What is kept is the mean over the heads and, in finish(), over the
// transformers of the level, with the caption. q (n, h, w, channels), k (n, tokens, channels).
static void see_attention(Frame *f, const char *layer, const float *query, const Tensor *k) {
    const UNetConfig *u = &film->model->unet_config;
    int level = level_of(layer, u), tokens = k->shape[1], channels = k->shape[2], heads = u->heads[level],
        d = channels / heads, pixels = f->height[level] * f->width[level];
    size_t last = (size_t)(k->shape[0] - 1); // the picture of the batch that has the caption
    float *key = tensor_read(k), *map = f->attention[level], *p = xmalloc((size_t)tokens * sizeof *p);
    if (!map) map = f->attention[level] = xcalloc((size_t)tokens * (size_t)pixels, sizeof *map);
    f->layers[level]++, film->tokens = tokens;
    for (int i = 0; i < pixels * heads; i++) {
        int pixel = i / heads, head = i % heads;
        const float *q = query + (last * (size_t)pixels + (size_t)pixel) * (size_t)channels + head * d;
        float largest = -INFINITY, sum = 0;
        for (int t = 0; t < tokens; t++) {
            const float *kt = key + (last * (size_t)tokens + (size_t)t) * (size_t)channels + head * d;
            float dot = 0;
            for (int c = 0; c < d; c++) dot += q[c] * kt[c];
            p[t] = dot / sqrtf((float)d), largest = fmaxf(largest, p[t]);
        }
        for (int t = 0; t < tokens; t++) sum += p[t] = expf(p[t] - largest);
        for (int t = 0; t < tokens; t++) map[t * pixels + pixel] += p[t] / sum / (float)heads;
    }
    free(key), free(p);
}

// alpha and sigma of step i; of a sampler that counts in sigmas, sigma / alpha is the one it computes with.
static Times times_of_step(const Scheduler *s, int i) {
    if (!in_sigmas(s)) return times_all_at(s, (int)s->timesteps[i], 1);
    float *two = scope_floats(2), ratio = s->sigmas[i];
    two[0] = 1 / sqrtf(ratio * ratio + 1), two[1] = ratio * two[0];
    return (Times){1, NULL, two, two + 1};
}

// `guided`: the network's output, guidance applied.
static void finish(Frame *f, Tensor *guided) {
    const Scheduler *s = &film->schedule;
    int i = s->at + film->count - 1, n = film->h * film->w * film->c;
    Scope scope = scope_begin();
    Tensor *z = tensor_from(SHAPE(1, film->h, film->w, film->c), f->z);
    Times now = times_of_step(s, i);
    f->t = s->timesteps[i];
    f->noise = tensor_read(predicted_eps(s, now, z, guided));
    f->x0 = tensor_read(predicted_x0(s, now, z, guided));
    for (int r = 0; r < film->rows; r++) { // in place of what it said
        Tensor *out = tensor_from(4, z->shape, f->parts + r * n);
        float *x0 = tensor_read(predicted_x0(s, now, z, out));
        memcpy(f->parts + r * n, x0, (size_t)n * sizeof(float));
        free(x0);
    }
    scope_end(scope, NULL);
    for (int l = 0; l < MAX_LEVELS; l++)
        for (int k = 0; k < film->tokens * f->height[l] * f->width[l]; k++)
            f->attention[l][k] /= (float)f->layers[l];
}

static void sink(const char *name, const Tensor *t) {
    Frame *f = film->count ? film->frames + film->count - 1 : NULL;
    if (!strcmp(name, "unet.input")) {
        film->frames = xrealloc(film->frames, (size_t)(film->count + 1) * sizeof *film->frames);
        film->frames[film->count++] = (Frame){.z = tensor_read(t)};
        film->rows = t->shape[0];
    } else if (ends_with(name, ".attn2.to_q")) {
        int level = level_of(name, &film->model->unet_config);
        f->height[level] = t->shape[1], f->width[level] = t->shape[2];
        film->query = tensor_read(t);
    } else if (ends_with(name, ".attn2.to_k")) {
        see_attention(f, name, film->query, t);
        free(film->query);
    } else if (!strcmp(name, "unet.conv_out"))
        f->parts = tensor_read(t);
    else if (!strcmp(name, "guidance"))
        finish(f, (Tensor *)t);
    else if (!strcmp(name, "sampler") && film->seen)
        film->seen(film, film->count - 1);
    else if (!strcmp(name, "latents"))
        film->end = tensor_read(t);
}

Film *film_begin(const Model *m, const SampleOptions *o, void (*seen)(const Film *, int)) {
    film = xcalloc(1, sizeof *film);
    *film = (Film){
        .model = m, .h = o->height / 8, .w = o->width / 8, .c = m->unet_config.in_channels, .seen = seen};
    scheduler_init(&film->schedule, sample_scheduler(m, o));
    scheduler_set_timesteps(&film->schedule, o->steps);
    int run = o->init ? (int)(o->steps * o->strength) : o->steps; // as first_latents() skips
    if (run < o->steps) scheduler_skip(&film->schedule, o->steps - run);
    trace_sink = sink;
    return film;
}

void film_end(void) { trace_sink = NULL; }

void film_free(Film *f) {
    for (int i = 0; i < f->count; i++) {
        Frame *frame = &f->frames[i];
        free(frame->z), free(frame->parts), free(frame->noise), free(frame->x0);
        for (int l = 0; l < MAX_LEVELS; l++) free(frame->attention[l]);
    }
    scheduler_free(&f->schedule);
    free(f->frames), free(f->end), free(f);
}

Image *film_decode(const Film *f, const float *latents) {
    Scope scope = scope_begin();
    Tensor *z =
        scale(tensor_from(SHAPE(1, f->h, f->w, f->c), latents), 1 / f->model->vae_config.scaling_factor);
    Image *image = tensor_to_image(vae_decode(f->model->vae, z), 0);
    scope_end(scope, NULL);
    return image;
}

// ---- pictures ---------------------------------------------------------------------------------------------

Image *picture_grid(Image *const *tiles, int rows, int columns) {
    enum { GAP = 4 };
    int w = tiles[0]->width, h = tiles[0]->height;
    Image *grid = image_new(columns * (w + GAP) - GAP, rows * (h + GAP) - GAP);
    memset(grid->rgb, 255, 3 * (size_t)grid->width * (size_t)grid->height);
    for (int i = 0; i < rows * columns; i++)
        for (int y = 0; y < h; y++) {
            int row = i / columns * (h + GAP) + y, column = i % columns * (w + GAP);
            memcpy(grid->rgb + 3 * (row * grid->width + column), tiles[i]->rgb + 3 * y * w, 3 * (size_t)w);
        }
    return grid;
}

// Two pixels a character, one above the other: an upper half block in the one's colour on the other's.
void picture_preview(const Image *image) {
    int columns = 64, rows = columns * image->height / image->width / 2 * 2;
    Image *small = image_resize(image, columns, rows, RESIZE_BICUBIC);
    for (int y = 0; y + 1 < small->height; y += 2) {
        for (int x = 0; x < columns; x++) {
            const unsigned char *a = small->rgb + 3 * (y * columns + x), *b = a + 3 * columns;
            fprintf(stderr, "\033[38;2;%d;%d;%dm\033[48;2;%d;%d;%dm▀", a[0], a[1], a[2], b[0], b[1], b[2]);
        }
        fputs("\033[0m\n", stderr);
    }
    image_free(small);
}

char *film_strip_name(const char *path) {
    return format("%.*s-strip.png", (int)strlen(path) - (ends_with(path, ".png") ? 4 : 0), path);
}

void film_save(const Film *f, const char *path) {
    enum { STRIP = 8 };
    Image **frames = xcalloc((size_t)f->count + 1, sizeof *frames), *strip[STRIP];
    for (int i = 0; i < f->count; i++) frames[i] = film_decode(f, f->frames[i].x0);
    frames[f->count] = film_decode(f, f->end);
    int frame_ms = 3000 / (f->count + 1), shown = f->count < STRIP ? f->count + 1 : STRIP;
    image_save_film(path, frames, f->count + 1, frame_ms < 40 ? 40 : frame_ms, 2000);
    for (int i = 0; i < shown; i++) strip[i] = frames[i * f->count / (shown - 1)];
    Image *row = picture_grid(strip, 1, shown);
    char *name = film_strip_name(path);
    image_save_png(name, row, NULL);
    note("%s: the picture expected at each of %d steps; %s: %d of them", path, f->count, name, shown);
    for (int i = 0; i <= f->count; i++) image_free(frames[i]);
    image_free(row), free(frames), free(name);
}

// From black over red and yellow to white, laid over a dim picture.
static Image *overlay(const Image *picture, const float *map, int h, int w) {
    Image *heat = image_new(w, h), *out;
    float least = map[0], largest = map[0] + 1e-9f;
    for (int i = 0; i < h * w; i++) least = fminf(least, map[i]), largest = fmaxf(largest, map[i]);
    for (int i = 0; i < h * w; i++)
        memset(heat->rgb + 3 * i, (int)(255 * (map[i] - least) / (largest - least)), 3);
    out = image_resize(heat, picture->width, picture->height, RESIZE_BICUBIC);
    for (int i = 0; i < 3 * out->width * out->height; i++) {
        int hot = 3 * out->rgb[i] - 255 * (i % 3);
        out->rgb[i] = (unsigned char)((picture->rgb[i] + 2 * (hot < 0 ? 0 : hot > 255 ? 255 : hot)) / 3);
    }
    image_free(heat);
    return out;
}

void film_save_attention(const Film *f, const char *caption, const Image *picture, const char *path) {
    int count, rows = 0, columns = 0;
    Word *words = caption_words(f->model, caption, &count);
    char *named = xstrdup(""), *sides = xstrdup("");
    Image **tiles = xcalloc((size_t)count * MAX_LEVELS + 1, sizeof *tiles);
    for (int i = 0, n = 0; i < count; i++) {
        if (!words[i].count) continue;
        format_more(&named, "%s%s", rows++ ? ", " : "", words[i].text);
        for (int l = 0; l < MAX_LEVELS; l++) {
            int h = f->frames[0].height[l], w = f->frames[0].width[l];
            if (!h) continue;
            if (rows == 1) format_more(&sides, "%s%d x %d", columns++ ? ", " : "", w, h);
            float *map = xcalloc((size_t)(h * w), sizeof *map); // summed over the word's tokens and all steps
            for (int k = 0; k < f->count; k++)
                for (int p = 0; p < words[i].count * h * w; p++)
                    map[p % (h * w)] += f->frames[k].attention[l][words[i].from * h * w + p];
            tiles[n++] = overlay(picture, map, h, w);
            free(map);
        }
    }
    if (!rows) die("--attention: the caption has no word");
    Image *grid = picture_grid(tiles, rows, columns);
    image_save_png(path, grid, NULL);
    note("%s: rows are the words %s; columns are the levels of %s", path, named, sides);
    for (int i = 0; i < rows * columns; i++) image_free(tiles[i]);
    for (int i = 0; i < count; i++) free(words[i].text);
    image_free(grid), free(tiles), free(words), free(named), free(sides);
}
