// pairs.h: a captioned data set as training needs it: latents and tokens. The pictures pass the VAE's encoder
// once. Its output is kept on disk and found again by the pictures' content, so the next run starts at once.
#ifndef PAIRS_H
#define PAIRS_H

#include "io.h"

typedef struct {
    const char *name;
    const float *moments; // (side, side, 2 channels): mean and logarithm of the variance, in the mapped cache
    int *ids, captions;   // (captions, tokens)
} Pair;
typedef struct {
    Pair *list;
    int count, held; // pairs to train on; behind them those that are held out, to validate with
    int turn;        // 0, or which batch of the validation is drawn next, from 1 on
    int side, channels, tokens;
    float scale;  // the VAE's scaling_factor
    uint64_t key; // a hash of everything that training learns from: pictures, captions, encoder
    Dataset *data;
    void *mapping;
    size_t mapped;
} Pairs;

// What pairs_open needs of a model; sd.h, which knows models, stands above this file.
typedef struct {
    const Tokenizer *tokenizer;
    int tokens;       // a caption's length, padding included
    int size;         // pictures become size x size pixels, and
    int side;         //   latents side x side,
    int channels;     //   of so many channels
    float scale;      // scaling_factor
    int held_out;     // at most so many pairs: of the split "test", else the last ones of the data set
    uint64_t encoder; // params_key() of the VAE
    void *context;
    // pictures (n, all of size x size) -> moments (n, side, side, 2 channels), host
    float *(*encode)(void *context, const Image *const *images, int n);
} PairsModel;
// The samples that dataset_trains() allows. Unreadable pictures are named and left out; dies where they are
// more than 1 %, and where the encoder makes a NaN or an infinity. cache: a folder, made where it is missing.
Pairs *pairs_open(const char *data, const char *cache, const PairsModel *m);
void pairs_close(Pairs *p);
// Picture i: a draw from the encoder's posterior, scaled as the UNet wants it, (side, side, channels).
void pairs_latents(const Pairs *p, int i, Random *r, float *out);
// A batch: n random pictures, of each a draw from the posterior and one of its captions. In a validation they
// are the held-out ones in their order.
typedef struct {
    int n, side, channels, tokens;
    float *z;    // (n, side, side, channels) host: latents
    int *ids;    // (n, tokens)
    char *names; // of the pictures, for messages
} PairsBatch;
PairsBatch pairs_batch(const Pairs *p, int n); // dies where there are fewer pictures than n
void pairs_draw(PairsBatch *b, const Pairs *p, Random *r);
void pairs_batch_free(PairsBatch *b);
// A hash of all weights of a model.
uint64_t params_key(const Params *p);
bool hash_file(const char *path, uint64_t *hash); // of its bytes; false where it cannot be read

#endif
