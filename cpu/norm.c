// norm.c: group norm (with SiLU where fused) and layer norm, forward and backward.
//
// Group norm, forward: memory is read once for mean and variance and once for the result, which a convolution
// may compute instead (bands.c). A stretch of pixels stays in the nearest cache while its own mean and the
// squares about it are found; stretches are put together in double (Chan et al. 1979), as exactly as if the
// mean had been known beforehand: it may be far larger than the deviation. Vector lanes are channels.
//
// Backward: a task is one picture and a slice of whole groups, some 64 channels, which for 64 x 64 pixels is
// a megabyte: it stays in the L2 cache while several passes go over it.
#include "vector.h"

#include <math.h>

// ---- group norm -------------------------------------------------------------------------------------------

enum { SLICE = 64 }; // channels, at least

// Whole groups, and whole vectors where that can be.
static int slice_channels(GroupNorm p) {
    int size = p.c / p.groups;
    for (int channels = size; channels < p.c; channels += size)
        if (channels >= SLICE && channels % 16 == 0) return channels;
    return p.c;
}

// sum[c] of f over the pixels, for `count` channels. Stretches of STRETCH pixels are summed in fp32, these in
// double. `f` sees the pixel's first channel at x + at, c channels further on, `lanes` of them.
enum { STRETCH = 32 };
#define SUM_CHANNELS(sum, hw, stride, count, f)                                                              \
    for (int r0 = 0; r0 < (hw); r0 += STRETCH)                                                               \
        for (int c = 0; c < (count); c += W) {                                                               \
            int lanes = min_int(W, (count)-c), r1 = min_int(hw, r0 + STRETCH);                               \
            vec part = all(0);                                                                               \
            for (int r = r0; r < r1; r++) {                                                                  \
                size_t at = (size_t)r * (size_t)(stride) + (size_t)c;                                        \
                part += f;                                                                                   \
            }                                                                                                \
            for (int i = 0; i < lanes; i++) (sum)[c + i] += (double)part[i];                                 \
        }

INLINE vec square_vec(vec x) { return x * x; }

// Averages over each group of what is summed for each channel, written to every channel of the group.
static void average_groups(double *sum, int count, int size, int hw) {
    for (int c = 0; c < count; c += size) {
        double total = 0;
        for (int i = 0; i < size; i++) total += sum[c + i];
        for (int i = 0; i < size; i++) sum[c + i] = total / ((double)hw * size);
    }
}

// Per channel of a slice: what the passes need, padded to whole vectors.
typedef struct {
    double *sum, *sum2;
    float *mean, *scale, *shift, *rstd, *average, *average2;
} Channels;
static Channels channels_new(int count) {
    size_t n = (size_t)round_up(count, 16);
    float *at = scratch(S_ROWS, 10 * n);
    memset(at, 0, 10 * n * sizeof *at);
    double *d = (double *)(void *)at;
    at += 4 * n;
    return (Channels){d, d + n, at, at + n, at + 2 * n, at + 3 * n, at + 4 * n, at + 5 * n};
}

// For each channel of a picture: y = (x - mean) scale + shift, each array padded to whole vectors.
typedef struct {
    float *mean, *scale, *shift;
} Affine;

INLINE void normalise_pixels(float *y, const float *x, Affine f, int pixels, int channels, const bool silu) {
    for (int r = 0; r < pixels; r++, x += channels, y += channels)
        for (int c = 0; c < channels; c += W) {
            int lanes = min_int(W, channels - c);
            vec z = (load_part(x + c, lanes) - load(f.mean + c)) * load(f.scale + c) + load(f.shift + c);
            store_part(y + c, silu ? z * sigmoid_vec(z) : z, lanes);
        }
}
static void normalise(float *y, const float *x, Affine f, int pixels, int channels, bool silu) {
    if (silu)
        normalise_pixels(y, x, f, pixels, channels, true);
    else
        normalise_pixels(y, x, f, pixels, channels, false);
}

enum { CHUNK = 512, SHORT_STRETCH = 16 }; // pixels: a task's, and those that are summed in fp32
typedef double dvec __attribute__((vector_size(W * 8), aligned(8), may_alias));
#define DOUBLES(x) __builtin_convertvector(x, dvec)

// Of `pixels` pixels, for each channel: the sum of x - origin, and the sum of its squares.
static void moments(double *sum, double *squares, const float *x, const float *origin, int pixels,
                    int channels) {
    for (int r0 = 0; r0 < pixels; r0 += SHORT_STRETCH) {
        int count = min_int(SHORT_STRETCH, pixels - r0);
        const float *s = x + (size_t)r0 * (size_t)channels;
        for (int c = 0; c < channels; c += W) {
            int lanes = min_int(W, channels - c);
            vec first = load_part(s + c, lanes), rest = all(0), square = all(0);
            for (int r = 0; r < SHORT_STRETCH; r++) // on their way: the next stretch's
                __builtin_prefetch(s + (SHORT_STRETCH + r) * channels + c);
            for (int r = 1; r < count; r++) rest += load_part(s + r * channels + c, lanes) - first;
            vec mean = first + rest / (float)count;
            for (int r = 0; r < count; r++)
                square += square_vec(load_part(s + r * channels + c, lanes) - mean);
            dvec off = DOUBLES(first) - DOUBLES(load_part(origin + c, lanes)), d = DOUBLES(rest);
            *(dvec *)(sum + c) += (double)count * off + d;
            d = off + d / (double)count; // of the mean from the origin
            *(dvec *)(squares + c) += DOUBLES(square) + (double)count * d * d;
        }
    }
}

static Affine affine_of(const float *norm, GroupNorm p, int picture) {
    size_t n = (size_t)round_up(p.c, 16);
    float *at = (float *)norm + 3 * n * (size_t)picture;
    return (Affine){at, at + n, at + 2 * n};
}

// What affine_of() finds, for each picture; it stays in scratch memory until the next group norm.
static const float *group_norm_affine(float *stats, const float *x, Mem gammam, Mem betam, GroupNorm p) {
    const float *gamma = as_floats(gammam, p.c, S_GAMMA), *beta = as_floats(betam, p.c, S_BIAS);
    int chunks = blocks_of(p.hw, CHUNK), size = p.c / p.groups;
    size_t n = (size_t)round_up(p.c, 16), picture_size = (size_t)p.hw * (size_t)p.c;
    float *norm = scratch(S_NORM, 3 * n * (size_t)p.n);
    double *parts = (double *)(void *)scratch(S_PARTS, 4 * n * (size_t)p.n * (size_t)chunks);
    PARALLEL_FOR((double)p.n * p.hw * p.c > WORTH_A_THREAD)
    for (int t = 0; t < p.n * chunks; t++) {
        int from = t % chunks * CHUNK, pixels = min_int(CHUNK, p.hw - from);
        const float *origin = x + (size_t)(t / chunks) * picture_size;
        double *part = parts + 2 * n * (size_t)t;
        memset(part, 0, 2 * n * sizeof *part);
        moments(part, part + n, origin + (size_t)from * (size_t)p.c, origin, pixels, p.c);
    }
    for (int i = 0; i < p.n; i++) {
        const float *origin = x + (size_t)i * picture_size;
        double *sum = parts + 2 * n * (size_t)(i * chunks), *squares = sum + n;
        for (int t = 1; t < chunks; t++)
            for (size_t c = 0; c < 2 * n; c++) sum[c] += sum[2 * n * (size_t)t + c];
        Affine f = affine_of(norm, p, i);
        memset(f.mean, 0, 3 * n * sizeof *f.mean);
        for (int g = 0; g < p.groups; g++) {
            double count = (double)p.hw * size, mean = 0, variance = 0;
            for (int c = g * size; c < (g + 1) * size; c++) mean += sum[c] / count + (double)origin[c] / size;
            for (int c = g * size; c < (g + 1) * size; c++) { // squares about the mean instead of the origin
                double off = (double)origin[c] - mean;
                variance += (squares[c] + 2 * off * sum[c]) / count + off * off / size;
            }
            double rstd = 1 / sqrt((variance < 0 ? 0 : variance) + (double)p.eps);
            for (int c = g * size; c < (g + 1) * size; c++) {
                // What fp32 cannot hold of the mean is in the shift.
                f.mean[c] = (float)mean, f.scale[c] = (float)(rstd * (double)gamma[c]);
                f.shift[c] = (float)((double)beta[c] - (mean - (double)f.mean[c]) * rstd * (double)gamma[c]);
            }
            if (stats) {
                float *s = stats + 2 * ((size_t)i * (size_t)p.groups + (size_t)g);
                s[0] = (float)mean, s[1] = (float)rstd;
            }
        }
    }
    return norm;
}

static void group_norm(Mem y, float *stats, Mem x, Mem gamma, Mem beta, GroupNorm p) {
    const float *norm = group_norm_affine(stats, x.at, gamma, beta, p);
    int rows = max_int(1, 8192 / p.c), tasks = blocks_of(p.hw, rows); // of each picture
    PARALLEL_FOR((double)p.n * p.hw * p.c > WORTH_A_THREAD / 4)
    for (int t = 0; t < p.n * tasks; t++) {
        int picture = t / tasks, from = t % tasks * rows;
        size_t at = ((size_t)picture * (size_t)p.hw + (size_t)from) * (size_t)p.c;
        normalise((float *)y.at + at, (const float *)x.at + at, affine_of(norm, p, picture),
                  min_int(rows, p.hw - from), p.c, p.silu);
    }
}

// z = gamma xhat + beta; y = silu(z) or z. dz = dy silu'(z) or dy.
// dx += rstd (g - average(g) - xhat average(g xhat)), g = gamma dz; dgamma += sum dz xhat; dbeta += sum dz
static void group_norm_backward(Mem dxm, float *dgamma, float *dbeta, Mem dym, Mem xm, Mem gammam, Mem betam,
                                const float *stats, GroupNorm p) {
    const float *gamma = as_floats(gammam, p.c, S_GAMMA), *beta = as_floats(betam, p.c, S_BIAS);
    int width = slice_channels(p), slices = blocks_of(p.c, width), size = p.c / p.groups;
    float *parts = scratch(S_PARTS, 2 * (size_t)p.n * (size_t)p.c); // sums of each picture: dz xhat, dz
    PARALLEL_FOR((double)p.n * p.hw * p.c > WORTH_A_THREAD / 8)
    for (int t = 0; t < p.n * slices; t++) {
        int picture = t / slices, first = t % slices * width, count = min_int(width, p.c - first);
        size_t corner = (size_t)picture * (size_t)p.hw * (size_t)p.c + (size_t)first;
        const float *x = (const float *)xm.at + corner, *dy = (const float *)dym.at + corner;
        Channels ch = channels_new(count);
        for (int c = 0; c < count; c++) {
            const float *s = stats + 2 * ((size_t)picture * (size_t)p.groups + (size_t)((first + c) / size));
            ch.mean[c] = s[0], ch.rstd[c] = s[1];
            ch.scale[c] = gamma[first + c], ch.shift[c] = beta[first + c];
        }
        const float *dz = dy; // (hw, stride)
        int stride = p.c;
        if (p.silu) { // computed once, kept for the second pass
            float *to = scratch(S_TILE, (size_t)p.hw * (size_t)count + W);
            for (int r = 0; r < p.hw; r++)
                for (int c = 0; c < count; c += W) {
                    int lanes = min_int(W, count - c);
                    size_t at = (size_t)r * (size_t)p.c + (size_t)c;
                    vec xhat = (load_part(x + at, lanes) - load(ch.mean + c)) * load(ch.rstd + c);
                    vec z = xhat * load(ch.scale + c) + load(ch.shift + c);
                    store_part(to + (size_t)r * (size_t)count + c,
                               load_part(dy + at, lanes) * silu_slope_vec(z), lanes);
                }
            dz = to, stride = count;
        }
        SUM_CHANNELS(ch.sum, p.hw, stride, count, load_part(dz + at, lanes))
        SUM_CHANNELS(ch.sum2, p.hw, p.c, count,
                     load_part(dz + (size_t)r * (size_t)stride + c, lanes) *
                         ((load_part(x + at, lanes) - load(ch.mean + c)) * load(ch.rstd + c)))
        for (int c = 0; c < count; c++) {
            float *part = parts + 2 * ((size_t)picture * (size_t)p.c + (size_t)(first + c));
            part[0] = (float)ch.sum2[c], part[1] = (float)ch.sum[c];
            ch.sum[c] *= (double)ch.scale[c], ch.sum2[c] *= (double)ch.scale[c];
        }
        if (!dxm.at) continue;
        average_groups(ch.sum, count, size, p.hw);
        average_groups(ch.sum2, count, size, p.hw);
        for (int c = 0; c < count; c++) ch.average[c] = (float)ch.sum[c], ch.average2[c] = (float)ch.sum2[c];
        float *dx = (float *)dxm.at + corner;
        for (int r = 0; r < p.hw; r++)
            for (int c = 0; c < count; c += W) {
                int lanes = min_int(W, count - c);
                size_t at = (size_t)r * (size_t)p.c + (size_t)c;
                vec rstd = load(ch.rstd + c), xhat = (load_part(x + at, lanes) - load(ch.mean + c)) * rstd;
                vec g = load_part(dz + (size_t)r * (size_t)stride + c, lanes) * load(ch.scale + c);
                vec v = rstd * (g - load(ch.average + c) - xhat * load(ch.average2 + c));
                store_part(dx + at, load_part(dx + at, lanes) + v, lanes);
            }
    }
    for (int c = 0; c < p.c; c++) {
        double sum = 0, sum_xhat = 0;
        for (int i = 0; i < p.n; i++) {
            const float *part = parts + 2 * ((size_t)i * (size_t)p.c + (size_t)c);
            sum_xhat += (double)part[0], sum += (double)part[1];
        }
        if (dgamma) dgamma[c] += (float)sum_xhat;
        if (dbeta) dbeta[c] += (float)sum;
    }
}

// ---- layer norm -------------------------------------------------------------------------------------------

// Zero in the lanes from `lanes` on.
INLINE vec keep(vec x, int lanes) {
    if (lanes >= W) return x;
    for (int i = lanes; i < W; i++) x[i] = 0;
    return x;
}

static void layer_norm(Mem ym, float *stats, Mem xm, Mem gammam, Mem betam, int rows, int cols, float eps) {
    const float *gamma = as_floats(gammam, cols, S_GAMMA), *beta = as_floats(betam, cols, S_BIAS);
    PARALLEL_ROWS((double)rows * cols > WORTH_A_THREAD)
    for (int r = 0; r < rows; r++) {
        const float *x = (const float *)xm.at + (size_t)r * (size_t)cols;
        float *y = (float *)ym.at + (size_t)r * (size_t)cols;
        vec sum = all(0), rests = all(0), squares = all(0);
        for (int c = 0; c < cols; c += W) sum += load_part(x + c, min_int(W, cols - c));
        float mean = sum_lanes(sum) / (float)cols;
        for (int c = 0; c < cols; c += W) {
            int lanes = min_int(W, cols - c);
            vec d = keep(load_part(x + c, lanes) - mean, lanes);
            rests += d, squares += d * d;
        }
        float rest = sum_lanes(rests) / (float)cols; // what rounding kept from the mean
        float variance = sum_lanes(squares) / (float)cols - rest * rest;
        float rstd = 1 / sqrtf((variance < 0 ? 0 : variance) + eps);
        for (int c = 0; c < cols; c += W) {
            int lanes = min_int(W, cols - c);
            vec xhat = ((load_part(x + c, lanes) - mean) - rest) * rstd;
            store_part(y + c, xhat * load_part(gamma + c, lanes) + load_part(beta + c, lanes), lanes);
        }
        if (stats) stats[2 * (size_t)r] = mean + rest, stats[2 * (size_t)r + 1] = rstd;
    }
}

// As the group norm's. A task is a stretch of rows, so that dgamma and dbeta are summed in a fixed order.
static void layer_norm_backward(Mem dxm, float *dgamma, float *dbeta, Mem dym, Mem xm, Mem gammam,
                                const float *stats, int rows, int cols) {
    const float *gamma = as_floats(gammam, cols, S_GAMMA);
    int stretches = blocks_of(rows, STRETCH);
    size_t padded = (size_t)round_up(cols, W);
    float *parts = scratch(S_PARTS, 2 * (size_t)stretches * padded);
    PARALLEL_FOR((double)rows * cols > WORTH_A_THREAD)
    for (int t = 0; t < stretches; t++) {
        float *g = scratch(S_TILE, padded); // of one row
        float *part_gamma = parts + 2 * (size_t)t * padded, *part_beta = part_gamma + padded;
        memset(part_gamma, 0, 2 * padded * sizeof *parts);
        for (int r = t * STRETCH; r < min_int(rows, (t + 1) * STRETCH); r++) {
            size_t row = (size_t)r * (size_t)cols;
            const float *x = (const float *)xm.at + row, *dy = (const float *)dym.at + row;
            float mean = stats[2 * (size_t)r], rstd = stats[2 * (size_t)r + 1];
            vec sum = all(0), sum_xhat = all(0);
            for (int c = 0; c < cols; c += W) {
                int lanes = min_int(W, cols - c);
                vec xhat = (load_part(x + c, lanes) - mean) * rstd, d = load_part(dy + c, lanes);
                vec gc = d * load_part(gamma + c, lanes);
                store(g + c, gc);
                sum += gc, sum_xhat += gc * xhat;
                store(part_gamma + c, load(part_gamma + c) + d * xhat);
                store(part_beta + c, load(part_beta + c) + d);
            }
            if (!dxm.at) continue;
            float average = sum_lanes(sum) / (float)cols, average_xhat = sum_lanes(sum_xhat) / (float)cols;
            float *dx = (float *)dxm.at + row;
            for (int c = 0; c < cols; c += W) {
                int lanes = min_int(W, cols - c);
                vec xhat = (load_part(x + c, lanes) - mean) * rstd;
                vec v = rstd * (load(g + c) - average - xhat * average_xhat);
                store_part(dx + c, load_part(dx + c, lanes) + v, lanes);
            }
        }
    }
    for (int c = 0; c < cols; c++) {
        double sum = 0, sum_xhat = 0;
        for (int t = 0; t < stretches; t++) {
            const float *part = parts + 2 * (size_t)t * padded + c;
            sum_xhat += (double)part[0], sum += (double)part[padded];
        }
        if (dgamma) dgamma[c] += (float)sum_xhat;
        if (dbeta) dbeta[c] += (float)sum;
    }
}
