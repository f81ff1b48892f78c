// norm.c: group norm (with SiLU where fused) and layer norm, forward and backward.
//
// Group norm: a task is one picture and a slice of whole groups, some 64 channels, which for 64 x 64 pixels
// is a megabyte: it stays in the L2 cache while mean, variance and result pass over it. Vector lanes are
// channels. Variance is taken about the mean in a second pass: it may be far larger than the deviation.
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

INLINE void normalise(float *y, const float *x, Channels ch, int hw, int stride, int count, const bool silu) {
    for (int r = 0; r < hw; r++, x += stride, y += stride)
        for (int c = 0; c < count; c += W) {
            int lanes = min_int(W, count - c);
            vec z = (load_part(x + c, lanes) - load(ch.mean + c)) * load(ch.scale + c) + load(ch.shift + c);
            store_part(y + c, silu ? z * sigmoid_vec(z) : z, lanes);
        }
}

static void group_norm(Mem ym, float *stats, Mem xm, Mem gammam, Mem betam, GroupNorm p) {
    const float *gamma = as_floats(gammam, p.c, S_GAMMA), *beta = as_floats(betam, p.c, S_BIAS);
    int width = slice_channels(p), slices = blocks_of(p.c, width), size = p.c / p.groups;
    PARALLEL_FOR((double)p.n * p.hw * p.c > WORTH_A_THREAD / 4)
    for (int t = 0; t < p.n * slices; t++) {
        int picture = t / slices, first = t % slices * width, count = min_int(width, p.c - first);
        size_t corner = (size_t)picture * (size_t)p.hw * (size_t)p.c + (size_t)first;
        const float *x = (const float *)xm.at + corner;
        float *y = (float *)ym.at + corner;
        Channels ch = channels_new(count);
        copy_floats(ch.mean, x, count); // the first pixel: sums of differences from it are small
        SUM_CHANNELS(ch.sum, p.hw, p.c, count, load_part(x + at, lanes) - load(ch.mean + c))
        for (int c = 0; c < count; c++) ch.sum[c] += (double)p.hw * (double)ch.mean[c];
        average_groups(ch.sum, count, size, p.hw);
        for (int c = 0; c < count; c++) ch.mean[c] = (float)ch.sum[c];
        SUM_CHANNELS(ch.sum2, p.hw, p.c, count, square_vec(load_part(x + at, lanes) - load(ch.mean + c)))
        average_groups(ch.sum2, count, size, p.hw);
        for (int c = 0; c < count; c++) { // what fp32 cannot hold of the mean goes into variance and shift
            double rest = ch.sum[c] - (double)ch.mean[c], variance = ch.sum2[c] - rest * rest;
            double rstd = 1 / sqrt((variance < 0 ? 0 : variance) + (double)p.eps);
            ch.rstd[c] = (float)rstd;
            ch.scale[c] = (float)(rstd * (double)gamma[first + c]);
            ch.shift[c] = (float)((double)beta[first + c] - rest * rstd * (double)gamma[first + c]);
        }
        if (stats)
            for (int c = 0; c < count; c += size) {
                float *s = stats + 2 * ((size_t)picture * (size_t)p.groups + (size_t)((first + c) / size));
                s[0] = ch.mean[c], s[1] = ch.rstd[c];
            }
        if (p.silu)
            normalise(y, x, ch, p.hw, p.c, count, true);
        else
            normalise(y, x, ch, p.hw, p.c, count, false);
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
    PARALLEL_FOR((double)rows * cols > WORTH_A_THREAD)
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
