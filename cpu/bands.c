// bands.c: convolutions of pictures that are not stored: of a group norm, of an upsampled picture. The rows
// that a band of the output sees are made in scratch memory, which stays in the cache, and convolved; then
// come the next ones. A large picture is written and read once less, and takes no memory.
//
// A band begins where tiles of Winograd's method begin, and the method is the whole picture's, so the result
// has the same bits as the two steps one after the other.
#include "vector.h"

typedef struct Unmade Unmade;
struct Unmade {
    void (*make_row)(float *to, const Unmade *u, int picture, int y);
    const float *x;
    Conv p;         // of the whole picture
    GroupNorm norm; // make_normed
    const float *affine;
};

static void make_normed(float *to, const Unmade *u, int picture, int y) {
    size_t at = ((size_t)picture * (size_t)u->p.h + (size_t)y) * (size_t)u->p.w * (size_t)u->p.c;
    normalise(to, u->x + at, affine_of(u->affine, u->norm, picture), u->p.w, u->p.c, u->norm.silu);
}

static void make_upsampled(float *to, const Unmade *u, int picture, int y) {
    int h = blocks_of(u->p.h, 2), w = blocks_of(u->p.w, 2), c = u->p.c;
    const float *row = u->x + ((size_t)picture * (size_t)h + (size_t)(y / 2)) * (size_t)w * (size_t)c;
    for (int i = 0; i < u->p.w; i++)
        copy_floats(to + (size_t)i * (size_t)c, row + (size_t)(i / 2) * (size_t)c, c);
}

// Output rows of a band: whole tiles, as many as keep its input below BAND_BYTES.
static const int BAND_BYTES = TILES ? 8 << 20 : 4 << 20;
static int band_rows(Conv p) {
    size_t row = (size_t)p.w * (size_t)p.c * sizeof(float) * (size_t)p.stride;
    int fit = (int)((size_t)BAND_BYTES / row) / 4 * 4;
    return clamp_int(fit, 8, round_up(p.oh, 4));
}

// Band t of a picture, or, where a picture is one band, all `together`: whole ones share the weights'
// packing.
static void convolve_band(int t, int rows, int together, float *y, const Unmade *u, Mem weight,
                          const float *packed, const float *bias, Mem residual, bool by_winograd) {
    Conv p = u->p, q = p;
    size_t in_row = (size_t)p.w * (size_t)p.c, out_row = (size_t)p.ow * (size_t)p.oc;
    int bands = blocks_of(p.oh, rows), picture = t / bands;
    int first = t % bands * rows, top = first * p.stride - p.pad_top;
    q.n = together, q.oh = min_int(rows, p.oh - first);
    int begin = clamp_int(top, 0, p.h), end = clamp_int(top + (q.oh - 1) * p.stride + p.kh, begin, p.h);
    q.pad_top = begin - top, q.h = end - begin;
    float *x = scratch(S_BAND, (size_t)together * (size_t)q.h * in_row);
    PARALLEL_FOR(true)
    for (int i = 0; i < together * q.h; i++)
        u->make_row(x + (size_t)i * in_row, u, picture + i / q.h, begin + i % q.h);
    size_t at = ((size_t)picture * (size_t)p.oh + (size_t)first) * out_row;
    convolve(by_winograd, y + at, x, weight, packed, bias, from(residual, at).at, q);
}

static void convolve_unmade(Mem y, const Unmade *u, Mem weight, Mem bias, Mem residual) {
    Conv p = u->p;
    bool by_winograd = winograd_suits(p, p.oh, p.ow);
    int rows = band_rows(p), bands = blocks_of(p.oh, rows);
    int together = bands == 1 ? p.n : 1, count = p.n / together * bands;
    const float *b = as_floats(bias, p.oc, S_BIAS);
    const float *packed = tiles_suit(p) && count > 1 ? pack_taps(weight, p) : NULL;
    if (count < 2 * cpu_threads()) { // all threads share in one band at a time
        for (int t = 0; t < count; t++)
            convolve_band(t, rows, together, y.at, u, weight, packed, b, residual, by_winograd);
        return;
    }
    PARALLEL_FOR(true) // each thread has bands of its own
    for (int t = 0; t < count; t++)
        convolve_band(t, rows, together, y.at, u, weight, packed, b, residual, by_winograd);
}

static void conv2d_normed(Mem y, Mem x, Mem gamma, Mem beta, GroupNorm norm, Mem weight, Mem bias,
                          Mem residual, Conv p) {
    const float *affine = group_norm_affine(NULL, x.at, gamma, beta, norm);
    convolve_unmade(y, &(Unmade){make_normed, x.at, p, norm, affine}, weight, bias, residual);
}

static void conv2d_upsampled(Mem y, Mem x, Mem weight, Mem bias, Conv p) {
    convolve_unmade(y, &(Unmade){make_upsampled, x.at, p, {0}, NULL}, weight, bias, (Mem){0});
}
