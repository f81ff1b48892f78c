// winograd.c: 3x3 convolutions of stride 1 in tiles of 4 x 4 outputs (Lavin and Gray 2016, "Fast Algorithms
// for Convolutional Neural Networks", F(4x4, 3x3)). A tile of outputs needs 6 x 6 inputs; along one axis,
// with input d, weights g, output y,
//     y = A^T ((G g) * (B^T d)),       * number by number, six multiplications instead of twelve,
// and along both, 36 instead of 144. Each of the 36 positions is a product over the channels, tiles x c times
// c x oc, and there the time goes. A reader new to it should first read conv.c, which computes the same.
//
// B, G and A evaluate and interpolate polynomials at six points: 0, +-P, +-Q, infinity. The textbook takes P
// = 1, Q = 2; 5/8 and 3/2 lose a quarter as much precision (largest error of a layer 1 to 3e-6 of the largest
// output; the direct way 4e-7). Points that differ in sign share an even and an odd part.
//
// In sums of two products fma_vec() says which one is rounded: any optimisation gives the same bits.
//
// Lanes are channels everywhere: channels must be multiples of 16. Loops from the outside: blocks of tiles
// whose transformed input V stays in the cache; panels of TN output channels; of those, SLAB input channels
// at a time: the transformed weights U are made on the spot, because they are four times as many as the
// weights; 36 products; the way back.
#include "vector.h"

static const float P = 0.625f, Q = 1.5f, P2 = 0.390625f, Q2 = 2.25f;
enum { POSITIONS = 36, SLAB = 64 };
static const double BUDGET = (TM == 8 ? 6 : 3) << 20; // bytes of V, about; AVX-512 has more cache beside it

// ---- the transforms along one axis ------------------------------------------------------------------------

// B^T d: (6) to (6). Row 0 is (x^2 - P^2)(x^2 - Q^2), the last one x times it; others lack a factor.
INLINE void input_axis(const vec d[6], vec o[6]) {
    const float s0 = P2 * Q2, s1 = -(P2 + Q2);
    o[0] = s0 * d[0] + (s1 * d[2] + d[4]);
    vec even_p = d[4] - Q2 * d[2], odd_p = P * (d[3] - Q2 * d[1]);
    vec even_q = d[4] - P2 * d[2], odd_q = Q * (d[3] - P2 * d[1]);
    o[1] = even_p + odd_p, o[2] = even_p - odd_p;
    o[3] = even_q + odd_q, o[4] = even_q - odd_q;
    o[5] = s0 * d[1] + (s1 * d[3] + d[5]);
}

// A^T m: (6) to (4): y[i] = sum over points of point^i m.
INLINE void output_axis(const vec m[6], vec y[4]) {
    vec even_p = m[1] + m[2], odd_p = P * (m[1] - m[2]), even_q = m[3] + m[4], odd_q = Q * (m[3] - m[4]);
    y[0] = m[0] + (even_p + even_q);
    y[1] = odd_p + odd_q;
    y[2] = fma_vec(all(Q2), even_q, P2 * even_p);
    y[3] = m[5] + fma_vec(all(Q2), odd_q, P2 * odd_p);
}

// A d: (4) to (6), its transpose, for the gradient of the output.
INLINE void gradient_axis(const vec d[4], vec o[6]) {
    vec even_p = d[0] + P2 * d[2], odd_p = P * (d[1] + P2 * d[3]);
    vec even_q = d[0] + Q2 * d[2], odd_q = Q * (d[1] + Q2 * d[3]);
    o[0] = d[0];
    o[1] = even_p + odd_p, o[2] = even_p - odd_p;
    o[3] = even_q + odd_q, o[4] = even_q - odd_q;
    o[5] = d[3];
}

// G g: (3) to (6), and its transpose. Row of point p: (1, p, p^2) / (the derivative of the polynomial at p).
static const float G0 = 1 / (P2 * Q2), GP = 1 / (2 * P2 * (P2 - Q2)), GQ = 1 / (2 * Q2 * (Q2 - P2));
INLINE void weight_axis(const vec g[3], vec o[6]) {
    vec even_p = fma_vec(all(GP), g[0], (GP * P2) * g[2]), odd_p = (GP * P) * g[1];
    vec even_q = fma_vec(all(GQ), g[0], (GQ * Q2) * g[2]), odd_q = (GQ * Q) * g[1];
    o[0] = G0 * g[0];
    o[1] = even_p + odd_p, o[2] = even_p - odd_p;
    o[3] = even_q + odd_q, o[4] = even_q - odd_q;
    o[5] = g[2];
}
INLINE void weight_axis_back(const vec d[6], vec g[3]) {
    vec even_p = d[1] + d[2], odd_p = d[1] - d[2], even_q = d[3] + d[4], odd_q = d[3] - d[4];
    g[0] = G0 * d[0] + fma_vec(all(GP), even_p, GQ * even_q);
    g[1] = fma_vec(all(GP * P), odd_p, (GQ * Q) * odd_q);
    g[2] = d[5] + fma_vec(all(GP * P2), even_p, (GQ * Q2) * even_q);
}

// Both axes of an (in x in) block `d`, row-major: columns first. Of the (out x out) results each is put where
// it belongs as soon as it is there, `put`: there are more of them than registers.
#define BOTH_AXES(axis, in, out, d, put)                                                                     \
    do {                                                                                                     \
        vec half[out * in]; /* out rows, in columns */                                                       \
        UNROLL for (int x_ = 0; x_ < in; x_++) {                                                             \
            vec column_[in], t_[out];                                                                        \
            UNROLL for (int y_ = 0; y_ < in; y_++) column_[y_] = (d)[y_ * in + x_];                          \
            axis(column_, t_);                                                                               \
            UNROLL for (int y_ = 0; y_ < out; y_++) half[y_ * in + x_] = t_[y_];                             \
        }                                                                                                    \
        UNROLL for (int y_ = 0; y_ < out; y_++) {                                                            \
            vec t_[out];                                                                                     \
            axis(half + y_ * in, t_);                                                                        \
            UNROLL for (int x_ = 0; x_ < out; x_++) {                                                        \
                const int i = y_ * out + x_;                                                                 \
                const vec value = t_[x_];                                                                    \
                put;                                                                                         \
            }                                                                                                \
        }                                                                                                    \
    } while (0)

// ---- tiles ------------------------------------------------------------------------------------------------

// A batch of pictures cut into tiles of 4 x 4 outputs; tile t sees the 6 x 6 pixels from (top, left) of x.
typedef struct {
    int n, h, w, c; // the input
    int oh, ow, oc; // the output
    int pad_top, pad_left;
    int rows, columns; // tiles of a picture
} Tiles;
static Tiles tiles_of(int n, int h, int w, int c, int oh, int ow, int oc, int pad_top, int pad_left) {
    return (Tiles){n, h, w, c, oh, ow, oc, pad_top, pad_left, blocks_of(oh, 4), blocks_of(ow, 4)};
}

// Where the pixels of a size x size patch begin; outside of the picture: `zeros`.
static void patch(const float **at, int size, const float *x, const float *zeros, int picture, int top,
                  int left, int h, int w, int c) {
    for (int i = 0; i < size * size; i++) {
        int y = top + i / size, xx = left + i % size;
        bool inside = y >= 0 && y < h && xx >= 0 && xx < w;
        at[i] = inside ? x + (((ptrdiff_t)picture * h + y) * w + xx) * c : zeros;
    }
}

// V, for `count` tiles: V[position][slab of input channels][tile][channel], as a product reads it.
static int v_row(const Tiles *g) { return min_int(g->c, SLAB); }
static size_t v_slab(const Tiles *g, int count) { return (size_t)count * (size_t)v_row(g); }
static size_t v_position(const Tiles *g, int count) {
    return v_slab(g, count) * (size_t)blocks_of(g->c, SLAB) + 16; // 16: not all in the same cache set
}

// V of tile t0 + t.
static void input_tile(float *v, int count, const float *x, const float *zeros, const Tiles *g, int t0,
                       int t) {
    size_t stride = v_position(g, count);
    float *to = v + (size_t)t * (size_t)v_row(g);
    t += t0;
    int picture = t / (g->rows * g->columns), y = t / g->columns % g->rows * 4, xx = t % g->columns * 4;
    const float *at[36];
    patch(at, 6, x, zeros, picture, y - g->pad_top, xx - g->pad_left, g->h, g->w, g->c);
    for (int c = 0; c < g->c; c += W) {
        vec d[36];
        UNROLL for (int i = 0; i < 36; i++) d[i] = load(at[i] + c);
        if (c % 16 == 0) // on their way: what the tile to the right sees that this one does not
            UNROLL for (int i = 0; i < 36; i++) if (i % 6 >= 2) __builtin_prefetch(at[i] + 4 * g->c + c);
        float *channel = to + (size_t)(c / SLAB) * v_slab(g, count) + c % SLAB;
        BOTH_AXES(input_axis, 6, 6, d, store(channel + (size_t)i * stride, value));
    }
}

// ---- the weights ------------------------------------------------------------------------------------------

typedef struct {
    Mem at; // (oc, 3, 3, c)
    int oc, c;
    bool reverse; // for the gradient of the input: taps in reverse, oc and c change roles
} Weights;

INLINE void store_u(float *to, size_t stride, const vec g[9]) {
    BOTH_AXES(weight_axis, 3, 6, g, store(to + (size_t)i * stride, value));
}

// U of output channels j..j+width and input channels k..k+depth: for each position a panel (depth, width).
INLINE void slab_of_type(float *to, size_t stride, const Weights *w, const Type type, int j, int width, int k,
                         int depth) {
    const char *base = w->at.at;
    size_t bytes = size_of(type), tap = (size_t)w->c * bytes, filter = 9 * tap;
    if (w->reverse) { // weight[input channel, 8 - tap, output channel]: lanes lie side by side
        for (int i = 0; i < depth; i++)
            for (int x = 0; x < width; x += W) {
                vec g[9];
                UNROLL for (int q = 0; q < 9; q++) g[8 - q] = load_as(
                    base + (size_t)(k + i) * filter + (size_t)q * tap + (size_t)(j + x) * bytes, type);
                store_u(to + i * width + x, stride, g);
            }
        return;
    }
    // weight[output channel, tap, input channel]: blocks W x W are transposed. Their 9 W rows are too many
    // for the processor to foresee: the next cache line of each is asked for.
    for (int i = 0; i < depth; i += W)
        for (int x = 0; x < width; x += W) {
            vec r[9][W];
            for (int q = 0; q < 9; q++) {
                const char *s = base + (size_t)(j + x) * filter + (size_t)q * tap + (size_t)(k + i) * bytes;
                UNROLL for (int l = 0; l < W; l++) {
                    r[q][l] = load_as(s + (size_t)l * filter, type);
                    __builtin_prefetch(s + (size_t)l * filter + 64);
                }
                transpose(r[q]);
            }
            for (int l = 0; l < W; l++) {
                vec g[9];
                UNROLL for (int q = 0; q < 9; q++) g[q] = r[q][l];
                store_u(to + (i + l) * width + x, stride, g);
            }
        }
}
static void slab(float *to, size_t stride, const Weights *w, int j, int width, int k, int depth) {
    if (w->at.type == F32)
        slab_of_type(to, stride, w, F32, j, width, k, depth);
    else if (w->at.type == F16)
        slab_of_type(to, stride, w, F16, j, width, k, depth);
    else
        slab_of_type(to, stride, w, BF16, j, width, k, depth);
}

// Those weights lie in as many runs as there are taps, too many for the processor to foresee: the part-th of
// POSITIONS parts of them is called for. Beyond the last weights there is nothing. (INLINE: gcc takes a
// function that only prefetches for one without effect, and drops its calls.)
INLINE void call_slab(const Weights *w, int j, int k, int part) {
    int filter = w->reverse ? k : j, element = w->reverse ? j : k;
    int rows = 9 * min_int(w->reverse ? SLAB : TN, w->oc - filter);
    size_t bytes = size_of(w->at.type);
    size_t run = (size_t)min_int(w->reverse ? TN : SLAB, w->c - element) * bytes;
    for (int r = part; r < rows; r += POSITIONS) {
        const char *row = from(w->at, ((size_t)filter * 9 + (size_t)r) * (size_t)w->c + (size_t)element).at;
        for (size_t i = 0; i < run; i += 64) __builtin_prefetch(row + i, 0, 2);
    }
}

// ---- forward, and the gradient of the input ---------------------------------------------------------------

// A panel of output channels of tiles t0..t0+count.
static void output_panel(const Tiles *g, const Weights *w, const float *v, int t0, int count, int panel,
                         Out out) {
    int j = panel_at(g->oc, panel), width = panel_at(g->oc, panel + 1) - j;
    size_t m_position = (size_t)count * TN + 16, u_position = (size_t)SLAB * TN + 16,
           v_stride = v_position(g, count);
    float *m = scratch(S_M, POSITIONS * m_position), *u = scratch(S_U, POSITIONS * u_position);
    for (int k = 0; k < g->c; k += SLAB) {
        int depth = min_int(SLAB, g->c - k);
        slab(u, u_position, w, j, width, k, depth);
        bool last = k + SLAB >= g->c;
        for (int i = 0; i < POSITIONS; i++) {
            float *mi = m + (size_t)i * m_position;
            call_slab(w, last ? j + width : j, last ? 0 : k + SLAB, i); // while this one is multiplied
            gemm_block(count, width, depth,
                       rows_at(v + (size_t)i * v_stride + (size_t)(k / SLAB) * v_slab(g, count), v_row(g)),
                       u + (size_t)i * u_position, (Out){mi, width, k ? mi : NULL, NULL, 1});
        }
    }
    for (int t = t0; t < t0 + count; t++) {
        int picture = t / (g->rows * g->columns), y = t / g->columns % g->rows * 4, x = t % g->columns * 4;
        size_t corner =
            (((size_t)picture * (size_t)g->oh + (size_t)y) * (size_t)g->ow + (size_t)x) * (size_t)g->oc;
        for (int i = 0; i < 16; i++) { // on their way: the outputs of the tile to the right
            size_t at = corner + (size_t)(i / 4 * g->ow + i % 4 + 4) * (size_t)g->oc + (size_t)j;
            __builtin_prefetch(out.c + at, 1), __builtin_prefetch(out.c + at + 16, 1);
            if (out.before) __builtin_prefetch(out.before + at), __builtin_prefetch(out.before + at + 16);
        }
        for (int c = 0; c < width; c += W) {
            vec s[36], bias = out.bias ? load(out.bias + j + c) : all(0);
            UNROLL for (int i = 0; i < 36; i++) s[i] =
                load(m + (size_t)i * m_position + (t - t0) * width + c);
            BOTH_AXES(output_axis, 6, 4, s, {
                if (y + i / 4 >= g->oh || x + i % 4 >= g->ow) continue;
                size_t at = corner + (size_t)(i / 4 * g->ow + i % 4) * (size_t)g->oc + (size_t)(j + c);
                vec sum = value + bias;
                store(out.c + at, out.before ? sum + load(out.before + at) : sum);
            });
        }
    }
}

// `count` tiles from t0 on: transformed, multiplied, transformed back. zeros (c): what lies outside.
static void tiles_block(const Tiles *g, const Weights *w, const float *x, const float *zeros, int t0,
                        int count, Out out) {
    float *v = scratch(S_V, POSITIONS * v_position(g, count) + (size_t)(TM * v_row(g)));
    PARALLEL_FOR(true)
    for (int t = 0; t < count; t++) input_tile(v, count, x, zeros, g, t0, t);
    PARALLEL_FOR(true)
    for (int p = 0; p < blocks_of(g->oc, TN); p++) output_panel(g, w, v, t0, count, p, out);
}

static void run(const Tiles *g, const Weights *w, const float *x, Out out) {
    int all_tiles = g->n * g->rows * g->columns, threads = cpu_threads();
    int count = clamp_int((int)(BUDGET / (POSITIONS * 4.0 * g->c)), TM == 8 ? 96 : 64, 256);
    int blocks = blocks_of(all_tiles, count);
    if (threads > 1 && blocks_of(g->oc, TN) < 2 * threads)
        blocks = max_int(blocks, min_int(2 * threads, blocks_of(all_tiles, 4 * TM)));
    if (blocks > threads) blocks = round_up(blocks, threads); // no thread waits for a last block
    count = round_up(blocks_of(all_tiles, blocks), TM);
    blocks = blocks_of(all_tiles, count);
    float *zeros = scratch(S_PARTS, (size_t)g->c);
    zero_floats(zeros, g->c);
    if (blocks < threads) { // all threads share in one block at a time
        for (int b = 0; b < blocks; b++)
            tiles_block(g, w, x, zeros, b * count, min_int(count, all_tiles - b * count), out);
        return;
    }
    PARALLEL_FOR(true) // each thread has blocks of its own
    for (int b = 0; b < blocks; b++)
        tiles_block(g, w, x, zeros, b * count, min_int(count, all_tiles - b * count), out);
}

static void winograd(float *y, const float *x, Mem weight, const float *bias, const float *residual, Conv p) {
    Tiles g = tiles_of(p.n, p.h, p.w, p.c, p.oh, p.ow, p.oc, p.pad_top, p.pad_left);
    run(&g, &(Weights){weight, p.oc, p.c, false}, x, (Out){y, 0, residual, bias, 1});
}

// dx = or += the convolution of dy with the weights' taps in reverse.
static void winograd_backward_input(float *dx, const float *dy, Mem weight, Conv p, bool add) {
    Tiles g = tiles_of(p.n, p.oh, p.ow, p.oc, p.h, p.w, p.c, 2 - p.pad_top, 2 - p.pad_left);
    run(&g, &(Weights){weight, p.oc, p.c, true}, dy, (Out){dx, 0, add ? dx : NULL, NULL, 1});
}

// ---- the gradient of the weights --------------------------------------------------------------------------

// dW = G^T (sum over tiles of (A dy A^T) * (B^T x B)) G: for each position a product oc x tiles times tiles x
// c. Its first factor lies with the tiles outside, its second in panels.
static void winograd_backward_weight(float *dweight, const float *dy, const float *x, Conv p) {
    Tiles g = tiles_of(p.n, p.h, p.w, p.c, p.oh, p.ow, p.oc, p.pad_top, p.pad_left);
    int all_tiles = g.n * g.rows * g.columns;
    int count = clamp_int((int)(2 * BUDGET / (POSITIONS * 4.0 * (g.c + g.oc))), 32, DEPTH);
    count = blocks_of(all_tiles, blocks_of(all_tiles, count));
    size_t y_row = (size_t)g.oc + 16, y_position = (size_t)count * y_row + 16;
    size_t v_stride = (size_t)count * (size_t)g.c + 16, sums_stride = (size_t)g.oc * (size_t)g.c;
    float *ys = scratch(S_U, POSITIONS * y_position), *v = scratch(S_V, POSITIONS * v_stride);
    float *sums = scratch(S_M, POSITIONS * sums_stride);
    int most = max_int(g.c, g.oc);
    float *zeros = scratch(S_PARTS, (size_t)most);
    zero_floats(zeros, most);
    for (int t0 = 0; t0 < all_tiles; t0 += count) {
        int n = min_int(count, all_tiles - t0);
        PARALLEL_FOR(true)
        for (int t = t0; t < t0 + n; t++) {
            int picture = t / (g.rows * g.columns), y = t / g.columns % g.rows * 4, xx = t % g.columns * 4;
            const float *at[36];
            patch(at, 6, x, zeros, picture, y - g.pad_top, xx - g.pad_left, g.h, g.w, g.c);
            for (int c = 0, panel = 0; c < g.c; c += W) {
                if (c == panel_at(g.c, panel + 1)) panel++;
                int begin = panel_at(g.c, panel), width = panel_at(g.c, panel + 1) - begin;
                vec d[36];
                UNROLL for (int i = 0; i < 36; i++) d[i] = load(at[i] + c);
                float *to = v + (size_t)begin * (size_t)n + (size_t)(t - t0) * (size_t)width + (c - begin);
                BOTH_AXES(input_axis, 6, 6, d, store(to + (size_t)i * v_stride, value));
            }
            patch(at, 4, dy, zeros, picture, y, xx, g.oh, g.ow, g.oc);
            for (int c = 0; c < g.oc; c += W) {
                vec d[16];
                UNROLL for (int i = 0; i < 16; i++) d[i] = load(at[i] + c);
                float *to = ys + (size_t)(t - t0) * y_row + c;
                BOTH_AXES(gradient_axis, 4, 6, d, store(to + (size_t)i * y_position, value));
            }
        }
        PARALLEL_FOR(true)
        for (int i = 0; i < POSITIONS; i++) {
            float *s = sums + (size_t)i * sums_stride;
            gemm_block(g.oc, g.c, n, columns_at(ys + (size_t)i * y_position, (long)y_row),
                       v + (size_t)i * v_stride, (Out){s, g.c, t0 ? s : NULL, NULL, 1});
        }
    }
    PARALLEL_FOR(true)
    for (int o = 0; o < g.oc; o++)
        for (int c = 0; c < g.c; c += W) {
            vec d[36];
            UNROLL for (int i = 0; i < 36; i++) d[i] =
                load(sums + (size_t)i * sums_stride + (size_t)o * (size_t)g.c + c);
            float *to = dweight + (size_t)o * 9 * (size_t)g.c + c;
            BOTH_AXES(weight_axis_back, 6, 3, d, {
                float *tap = to + (size_t)i * (size_t)g.c;
                store(tap, load(tap) + value);
            });
        }
}

// Tiles are whole: where they stick out far beyond the picture, or where there are too few of them to pay for
// the transformed weights, the direct way is faster. It multiplies pairs of bf16 where there are such; this
// way stays in fp32. Tiles multiply so fast that transforms cost more than they save.
static bool winograd_suits(Conv p, int oh, int ow) {
    double all_tiles = (double)p.n * blocks_of(oh, 4) * blocks_of(ow, 4), pixels = (double)p.n * oh * ow;
    return p.kh == 3 && p.kw == 3 && p.stride == 1 && p.pad_top <= 2 && p.pad_left <= 2 && p.c % 16 == 0 &&
           p.oc % 16 == 0 && !TILES && all_tiles >= (PAIRS ? 8 : 4) &&
           all_tiles * POSITIONS < 0.7 * pixels * 9 && cpu_winograd();
}
