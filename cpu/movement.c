// movement.c: data movement: columns, nearest-neighbour upsampling, pooling, tables, and the sinusoids of
// time. Copies of whole rows of channels, shared among threads by rows of the output.
#include "vector.h"

#include "lib/base.h"

#include <math.h>

INLINE void add_row(float *y, const float *x, float factor, int count) { // y += factor x
    for (int i = 0; i < count; i += W) {
        int lanes = min_int(W, count - i);
        store_part(y + i, load_part(y + i, lanes) + factor * load_part(x + i, lanes), lanes);
    }
}

static void copy_columns(Mem y, int y_stride, Mem x, int x_stride, int rows, int cols, bool add) {
    if (!y.at) return;
    PARALLEL_FOR((double)rows * cols > WORTH_A_THREAD)
    for (int r0 = 0; r0 < rows; r0 += 64)
        for (int r = r0; r < min_int(rows, r0 + 64); r++) {
            Mem to = from(y, (size_t)r * (size_t)y_stride), s = from(x, (size_t)r * (size_t)x_stride);
            if (y.type == F32 && x.type == F32 && !add)
                copy_floats(to.at, s.at, cols);
            else if (y.type == F32 && x.type == F32)
                add_row(to.at, s.at, 1, cols);
            else
                combine(to, 1, s, 0, (Mem){0}, add ? 1 : 0, (size_t)cols);
        }
}

static void upsample(Mem y, Mem x, int n, int h, int w, int c) {
    PARALLEL_FOR((double)n * h * w * c > WORTH_A_THREAD / 4)
    for (int row = 0; row < n * 2 * h; row++) {
        const float *s = (const float *)x.at + (size_t)(row / 2) * (size_t)w * (size_t)c;
        float *to = (float *)y.at + (size_t)row * 2 * (size_t)w * (size_t)c;
        for (int j = 0; j < 2 * w; j++)
            copy_floats(to + (size_t)j * (size_t)c, s + (size_t)(j / 2) * (size_t)c, c);
    }
}

static void upsample_backward(Mem dx, Mem dy, int n, int h, int w, int c) {
    if (!dx.at) return;
    PARALLEL_FOR((double)n * h * w * c > WORTH_A_THREAD / 4)
    for (int row = 0; row < n * h; row++)
        for (int j = 0; j < w; j++) {
            size_t line = 2 * (size_t)w * (size_t)c;
            const float *a = (const float *)dy.at + 2 * (size_t)row * line + 2 * (size_t)j * (size_t)c,
                        *b = a + line;
            float *to = (float *)dx.at + ((size_t)row * (size_t)w + (size_t)j) * (size_t)c;
            for (int i = 0; i < c; i += W) {
                int lanes = min_int(W, c - i);
                vec sum = load_part(a + i, lanes) + load_part(a + c + i, lanes) + load_part(b + i, lanes) +
                          load_part(b + c + i, lanes);
                store_part(to + i, load_part(to + i, lanes) + sum, lanes);
            }
        }
}

// ---- pooling ----------------------------------------------------------------------------------------------

// The part of a kernel that lies inside the picture: rows y0..y1, columns x0..x1 of picture `n`.
typedef struct {
    int n, y0, y1, x0, x1;
} Inside;
static Inside inside_of(Conv p, int pixel) {
    int y = pixel / p.ow % p.oh * p.stride - p.pad_top, x = pixel % p.ow * p.stride - p.pad_left;
    return (Inside){pixel / (p.oh * p.ow), max_int(y, 0), min_int(y + p.kh, p.h), max_int(x, 0),
                    min_int(x + p.kw, p.w)};
}
static size_t pixel_at(Conv p, int n, int y, int x) {
    return (((size_t)n * (size_t)p.h + (size_t)y) * (size_t)p.w + (size_t)x) * (size_t)p.c;
}
static float pixels_of(Inside s) { return (float)((s.y1 - s.y0) * (s.x1 - s.x0)); }

// W channels of rows x columns pixels, from x on; the lines of the picture are `line` floats apart.
INLINE vec pool_channels(const Pool kind, const float *x, int rows, int columns, size_t line, int pixel,
                         int lanes) {
    vec v = kind == POOL_MAX ? load_part(x, lanes) : all(0);
    for (int i = 0; i < rows; i++, x += line)
        for (int j = 0; j < columns; j++) {
            vec q = load_part(x + j * pixel, lanes);
            v = kind != POOL_MAX ? v + q : choose((q > v) | (q != q), q, v); // NaN wins
        }
    return v;
}

static void pool(Mem y, Mem xm, Conv p, Pool kind) {
    size_t line = (size_t)p.w * (size_t)p.c;
    PARALLEL_FOR((double)p.n * p.oh * p.ow * p.c * p.kh * p.kw > WORTH_A_THREAD)
    for (int row = 0; row < p.n * p.oh; row++)
        for (int pixel = row * p.ow; pixel < (row + 1) * p.ow; pixel++) {
            Inside s = inside_of(p, pixel);
            const float *x = (const float *)xm.at + pixel_at(p, s.n, s.y0, s.x0);
            float *to = (float *)y.at + (size_t)pixel * (size_t)p.c;
            int rows = s.y1 - s.y0, columns = s.x1 - s.x0;
            for (int c = 0; c < p.c; c += W) {
                int lanes = min_int(W, p.c - c);
                vec v = kind == POOL_MAX
                            ? pool_channels(POOL_MAX, x + c, rows, columns, line, p.c, lanes)
                            : pool_channels(POOL_AVERAGE, x + c, rows, columns, line, p.c, lanes);
                store_part(to + c, kind == POOL_MAX ? v : v / pixels_of(s), lanes);
            }
        }
}

// Kernels overlap, so a picture belongs to one thread.
static void pool_backward(Mem dxm, Mem dy, Mem xm, Conv p, Pool kind) {
    if (!dxm.at) return;
    const float *x = xm.at;
    float *dx = dxm.at;
    int pixels = p.oh * p.ow;
    PARALLEL_FOR((double)p.n * pixels * p.c * p.kh * p.kw > WORTH_A_THREAD)
    for (int picture = 0; picture < p.n; picture++)
        for (int pixel = picture * pixels; pixel < (picture + 1) * pixels; pixel++) {
            Inside s = inside_of(p, pixel);
            const float *d = (const float *)dy.at + (size_t)pixel * (size_t)p.c;
            if (kind != POOL_MAX) {
                for (int i = s.y0; i < s.y1; i++)
                    for (int j = s.x0; j < s.x1; j++)
                        add_row(dx + pixel_at(p, s.n, i, j), d, 1 / pixels_of(s), p.c);
                continue;
            }
            for (int c = 0; c < p.c; c++) {
                size_t largest = pixel_at(p, s.n, s.y0, s.x0) + (size_t)c;
                for (int i = s.y0; i < s.y1; i++)
                    for (int j = s.x0; j < s.x1; j++) {
                        size_t at = pixel_at(p, s.n, i, j) + (size_t)c;
                        if (x[at] > x[largest] || isnan(x[at])) largest = at;
                    }
                dx[largest] += d[c];
            }
        }
}

// ---- tables -----------------------------------------------------------------------------------------------

static void embed(Mem y, Mem table, const int32_t *ids, int rows, int cols) {
    for (int r = 0; r < rows; r++)
        convert_floats((float *)y.at + (size_t)r * (size_t)cols,
                       from(table, (size_t)ids[r] * (size_t)cols).at, table.type, cols);
}

static void embed_backward(float *dtable, Mem dy, const int32_t *ids, int rows, int cols) {
    if (!dtable) return;
    for (int r = 0; r < rows; r++)
        add_row(dtable + (size_t)ids[r] * (size_t)cols, (const float *)dy.at + (size_t)r * (size_t)cols, 1,
                cols);
}

// A few hundred values a step, so in plain C.
static void sinusoid(Mem y, const float *t, const float *f, int rows, int dim, bool cos_first) {
    int half = dim / 2;
    for (int r = 0; r < rows; r++) {
        float *to = (float *)y.at + (size_t)r * (size_t)dim;
        for (int i = 0; i < half; i++) {
            float angle = t[r] * f[i];
            to[cos_first ? i : half + i] = (float)cos((double)angle);
            to[cos_first ? half + i : i] = (float)sin((double)angle);
        }
        if (dim % 2) to[dim - 1] = 0;
    }
}
