// tiles.c: products of pairs of bf16 where the processor multiplies tiles (TILES, vector.h), 8192
// multiply-adds an instruction. gemm.c drives them; below are its innermost part, and convolutions.
//
// A tile of A is 16 rows of 16 pairs, which lie in memory row by row, any distance apart; a tile of B is 16
// rows of a panel. That is how gemm.c packs both. The products themselves take so little time that everything
// beside them counts: sums stay in tiles for as long a part of k as the second cache has room for, and a
// picture that is convolved is copied once, not once for each tap.
#include "vector.h"

// ---- the product ------------------------------------------------------------------------------------------

// [K7] Sums of 32 rows and 48 columns: six registers hold them, two what is multiplied. `vectors`: of W
// columns each; 32 rows where `both`, else 16. b: (16 steps, vectors W). `next` is called for: where the sums
// will be put, and what is added to them there.
INLINE void tile_sums(float *to, long stride, const bool both, const int vectors, int steps, Rows a,
                      const float *b, Out next) {
    const int width = vectors * W;
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
    tile_zero(4);
    tile_zero(5);
    for (int s = 0; s < steps; s++, b += 16 * width) {
        for (int i = 4 * s; i < min_int(4 * s + 4, both ? 32 : 16); i++)
            UNROLL for (int j = 0; j < width; j += 16) {
                __builtin_prefetch(next.c + i * next.stride + j, 1);
                if (next.before) __builtin_prefetch(next.before + i * next.stride + j);
            }
        const float *at = a.at + (a.offsets ? a.offsets[s] : 16 * s);
        tile_load(6, at, a.stride, 16);
        tile_load(7, b, width, W);
        tile_products(0, 6, 7);
        if (vectors > 1) {
            tile_load(7, b + W, width, W);
            tile_products(1, 6, 7);
        }
        if (vectors > 2) {
            tile_load(7, b + 2 * W, width, W);
            tile_products(2, 6, 7);
        }
        if (!both) continue;
        tile_load(6, at + 16 * a.stride, a.stride, 16);
        if (vectors > 2) { // the last columns first: register 7 has them
            tile_products(5, 6, 7);
            tile_load(7, b + W, width, W);
        }
        if (vectors > 1) {
            tile_products(4, 6, 7);
            tile_load(7, b, width, W);
        }
        tile_products(3, 6, 7);
    }
    tile_store(0, to, stride);
    if (vectors > 1) tile_store(1, to + W, stride);
    if (vectors > 2) tile_store(2, to + 2 * W, stride);
    if (!both) return;
    to += 16 * stride;
    if (vectors > 2) tile_store(5, to + 2 * W, stride);
    if (vectors > 1) tile_store(4, to + W, stride);
    tile_store(3, to, stride); // the one that is ready last
}

// A row of n sums to its place. `whole`: n is vectors W.
INLINE void put_row(const float *sums, const int vectors, const bool whole, int n, Out o) {
    UNROLL for (int j = 0; j < vectors; j++) {
        int lanes = whole ? W : n - j * W;
        vec v = o.alpha * load(sums + j * W);
        if (o.before) v += load_part(o.before + j * W, lanes);
        if (o.bias) v += load_part(o.bias + j * W, lanes);
        store_part(o.c + j * W, v, lanes);
    }
}

// Rows i0.. of A, at most 32, times a panel of n columns, which are C's from j0 on. Sums that need nothing
// more go straight to memory.
INLINE void tile_rows(const int vectors, const bool whole, int i0, int j0, int rows, int n, int steps,
                      const Rows *all_rows, const float *b, const Out *all_out) {
    Rows a = rows_from(*all_rows, i0);
    const Bordered *g = a.border; // then C's rows are counted from the picture's beginning
    Out out = out_from(*all_out, g ? 0 : i0, j0);
    _Alignas(64) float sums[32][TN];
    int x = g ? a.pixel % g->line : 0, line = g ? a.pixel / g->line : 0; // of the first row
    Out next = g && x < g->w ? out_from(out, pixel_of(g, line, x), 0) : out;
    bool straight = whole && rows % 16 == 0 && out.alpha == 1 && !out.before && !out.bias && !g;
    float *to = straight ? out.c : sums[0];
    long stride = straight ? out.stride : TN;
    if (rows > 16)
        tile_sums(to, stride, true, vectors, steps, a, b, next);
    else
        tile_sums(to, stride, false, vectors, steps, a, b, next);
    for (int i = 0; i < rows && !straight; i++) {
        if (!g) {
            put_row(sums[i], vectors, whole, n, out_from(out, i, 0));
            continue;
        }
        if (x < g->w && line % g->lines < g->h)
            put_row(sums[i], vectors, whole, n, out_from(out, pixel_of(g, line, x), 0));
        if (++x == g->line) x = 0, line++;
    }
}

typedef void TileRows(int i, int j, int rows, int n, int steps, const Rows *a, const float *b,
                      const Out *out);
#define TILE_ROWS(v)                                                                                         \
    static __attribute__((noinline)) void tile_rows_##v(int i, int j, int rows, int n, int steps,            \
                                                        const Rows *a, const float *b, const Out *out) {     \
        if (n == v * W)                                                                                      \
            tile_rows(v, true, i, j, rows, n, steps, a, b, out);                                             \
        else                                                                                                 \
            tile_rows(v, false, i, j, rows, n, steps, a, b, out);                                            \
    }
TILE_ROWS(1)
TILE_ROWS(2)
#if defined(__AVX2__)
TILE_ROWS(3)
#endif
static TileRows *const tile_rows_of[TV] = {tile_rows_1, tile_rows_2,
#if defined(__AVX2__)
                                           tile_rows_3
#endif
};

// Rows outside, panels inside: 32 rows of A stay in the nearest cache while B passes. Rows up to a multiple
// of 16 are read. (The structs go by address: copied for each call, they cost 4 % of a UNet's step.)
static void tile_panels(int m, int n, int steps, Rows a, const float *b, Out out) {
    tiles_begin();
    for (int i = 0; i < m; i += BLOCK)
        for (int p = 0; p < blocks_of(n, TN); p++) {
            int j = panel_at(n, p), width = panel_at(n, p + 1) - j;
            tile_rows_of[blocks_of(width, W) - 1](i, j, min_int(BLOCK, m - i), width, steps, &a,
                                                  b + (long)j * steps * 16, &out);
        }
    tiles_end();
}

// ---- convolutions -----------------------------------------------------------------------------------------

// A picture is copied once, as pairs, with a line of zeros above and below and a pixel of zeros behind each
// line, which is also the one before the next. There the pixels that a tap sees from neighbours lie side by
// side, so that a tile of them is read where it is, and each tap is the same distance away from its pixel.
// Pixels of the border get sums, too; these are not stored.
typedef struct {
    Bordered size;
    const float *at;    // pixel (0, 0) of the first picture
    int lanes;          // of a pixel
    const int *offsets; // Rows.offsets, of all taps
} BorderedPairs;

static Rows pack_a_bordered(float *to, const void *a, int i, int m, int k, int depth, int uses) {
    (void)to, (void)m, (void)depth, (void)uses;
    const BorderedPairs *p = a;
    return (Rows){.at = p->at + (size_t)i * (size_t)p->lanes,
                  .stride = p->lanes,
                  .offsets = p->offsets + k / 32,
                  .border = &p->size,
                  .pixel = i};
}

// 3x3, stride 1, whole steps of channels, and nothing seen beyond a border of one pixel.
static bool tiles_suit(Conv p) {
    return TILES && p.kh == 3 && p.kw == 3 && p.stride == 1 && p.pad_top <= 1 && p.pad_left == 1 &&
           p.ow == p.w && p.oh < p.h + p.pad_top && p.c % 32 == 0;
}

// All of the weights, packed: for the bands of a picture.
static const float *pack_taps(Mem weight, Conv p) {
    Matrix wm = {weight, (size_t)(9 * p.c)};
    return pack_all(&(Product){.n = p.oc, .k = 9 * p.c, .pack_b = pack_b_columns, .b = &wm});
}

// `packed`: by pack_taps(), or NULL.
static void conv_tiles(float *y, const float *x, Mem weight, const float *packed, const float *bias,
                       const float *residual, Conv p) {
    int line = p.w + 1, lines = p.h + 1, lanes = p.c / 2, k = 9 * p.c;
    size_t pixel = (size_t)lanes, before = (size_t)line + 1, all_lines = (size_t)p.n * (size_t)lines;
    float *at = scratch(S_V, (before + (all_lines + 1) * (size_t)line + BLOCK) * pixel);
    zero_floats(at, (int)before * lanes);
    at += before * pixel;
    PARALLEL_FOR((double)p.n * p.h * p.w * p.c > WORTH_A_THREAD)
    for (int l = 0; l < (int)all_lines; l++) {
        float *to = at + (size_t)l * (size_t)line * pixel;
        int kept = l % lines < p.h ? p.w : 0; // none of a line below a picture
        size_t from = (size_t)(l / lines * p.h + l % lines) * (size_t)p.w * (size_t)p.c;
        pair_row(to, x + from, F32, kept * p.c);
        zero_floats(to + (size_t)kept * pixel, (line - kept) * lanes);
    }
    int *offsets = (int *)(void *)scratch(S_U, (size_t)k / 32);
    for (int i = 0; i < k / 32; i++) {
        int tap = i * 32 / p.c;
        offsets[i] = ((tap / 3 - p.pad_top) * line + tap % 3 - 1) * lanes + (i * 32 - tap * p.c) / 2;
    }
    BorderedPairs pairs = {{p.w, p.oh, line, lines}, at, lanes, offsets};
    Matrix wm = {weight, (size_t)k};
    gemm_product(&(Product){
        .m = ((p.n - 1) * lines + p.oh - 1) * line + p.w,
        .n = p.oc,
        .k = k,
        .pack_a = pack_a_bordered,
        .a = &pairs,
        .pack_b = pack_b_columns,
        .b = &wm,
        .out = {y, p.oc, residual, bias, 1},
        .packed = packed,
    });
}
