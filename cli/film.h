// film.h: what happens inside while a picture is drawn, a frame for each evaluation of the UNet. All of it is
// seen through trace_sink (lib/nn/nn.h), as `sd sample --dump` and `sd verify` see it; sample() does not
// notice.
#ifndef FILM_H
#define FILM_H

#include "sd.h"

// Latents are (h, w, c) on the host, in the scale in which the network reads them: alpha z_0 + sigma eps.
typedef struct {
    float t;                      // timestep
    float *z;                     // the latents that the network read
    float *noise, *x0;            // the noise predicted, guidance applied, and the end of the path by that
    float *parts;                 // (rows, h, w, c): x0 by each of the predictions, without guidance
    float *attention[MAX_LEVELS]; // of each level (tokens, h, w of the level), or NULL: see film.c
    int height[MAX_LEVELS], width[MAX_LEVELS], layers[MAX_LEVELS];
} Frame;
typedef struct Film Film;
struct Film {
    const Model *model;
    Scheduler schedule;
    int h, w, c, rows, tokens; // rows: 2 with guidance, without the caption and with it
    int count;                 // of frames so far
    Frame *frames;
    float *end, *query;              // the last latents; of the attention that is being computed
    void (*seen)(const Film *, int); // called after each frame; may be NULL
};
// From film_begin() to film_end() one call of sample(m, o, ...) is filmed.
Film *film_begin(const Model *m, const SampleOptions *o, void (*seen)(const Film *, int));
void film_end(void);
void film_free(Film *f);
Image *film_decode(const Film *f, const float *latents); // as a picture

int level_of(const char *module, const UNetConfig *u); // of a block of the UNet; others count as level 0

// FILE.png: the pictures expected at each step, one after another. FILE-strip.png: 8 of them in a row.
void film_save(const Film *f, const char *path);
char *film_strip_name(const char *path); // FILE-strip.png
// A grid: what each word (a row) does at each level (a column), over the picture.
void film_save_attention(const Film *f, const char *caption, const Image *picture, const char *path);
Image *picture_grid(Image *const *tiles, int rows, int columns); // all of one size, with a white line between
void picture_preview(const Image *image);                        // in the terminal

#endif
