// conv.c: convolution and its two gradients as products (implicit GEMM): the matrix of patches is never
// stored, the packing of the product copies from the picture instead. Which method a layer takes is decided
// at the end. Winograd's method is in winograd.c.
#include "vector.h"

// ---- patches ----------------------------------------------------------------------------------------------

// The view of a picture that makes a convolution a product: one row for each output pixel, the elements
// that it sees (kh, kw, c) beside each other.
typedef struct {
    const float *x; // (n, h, w, c)
    int h, w, c;
    int oh, ow; // rows of the product: n oh ow
    int kh, kw, stride, pad_top, pad_left;
} Patches;

static Patches patches_of(const float *x, Conv p) {
    return (Patches){x, p.h, p.w, p.c, p.oh, p.ow, p.kh, p.kw, p.stride, p.pad_top, p.pad_left};
}

// What output pixels x..x+count see of one row of the picture, `line` (NULL: outside of it): of the kw * c
// elements that lie side by side there, [begin, end). What is outside of the picture is zero.
static void copy_from_line(float *to, int stride, const Patches *g, const float *line, int x, int count,
                           int begin, int end) {
    for (int i = x; i < x + count; i++, to += stride) {
        int left = i * g->stride - g->pad_left;
        if (line && left >= 0 && left + g->kw <= g->w) {
            copy_floats(to, line + (left * g->c + begin), end - begin);
            continue;
        }
        int a = line ? clamp_int(-left * g->c, begin, end) : end;
        int z = line ? clamp_int((g->w - left) * g->c, a, end) : end;
        zero_floats(to, a - begin);
        if (z > a) copy_floats(to + (a - begin), line + (left * g->c + a), z - a);
        zero_floats(to + (z - begin), end - z);
    }
}

// Elements [begin, end) of the patches of output pixels first..first+pixels, to rows `stride` apart: all
// pixels' first rows, then all second ones.
static void copy_patches(float *to, int stride, const Patches *g, int first, int pixels, int begin, int end) {
    int row = g->kw * g->c;
    for (int ky = begin / row, at = begin; at < end; at = ++ky * row)
        for (int i = 0, run; i < pixels; i += run) {
            int x = (first + i) % g->ow, line = (first + i) / g->ow; // of the output
            int y = line % g->oh * g->stride - g->pad_top + ky;      // of the picture
            ptrdiff_t above = (ptrdiff_t)(line / g->oh) * g->h + y;
            run = min_int(g->ow - x, pixels - i);
            copy_from_line(to + (ptrdiff_t)i * stride + (at - begin), stride, g,
                           y >= 0 && y < g->h ? g->x + above * g->w * g->c : NULL, x, run, at - ky * row,
                           min_int(row, end - ky * row));
        }
}

static Rows pack_a_patches(float *to, const void *a, int i, int m, int k, int depth, int uses) {
    (void)uses;
    copy_patches(to, A_STRIDE, a, i, m, k, k + depth);
    return rows_at(to, A_STRIDE);
}

static void pack_b_patches(float *to, const void *b, int k, int depth, int j, int n, int width) {
    copy_patches(to, width, b, k, depth, j, j + n);
    for (int r = 0; r < depth && n < width; r++) zero_floats(to + r * width + n, width - n);
}

// ---- forward ----------------------------------------------------------------------------------------------

// Y (pixels, oc) = patches (pixels, kh kw c) W^T, W (oc, kh kw c)
static void conv_direct(float *y, const float *x, Mem weight, const float *bias, const float *residual,
                        Conv p) {
    Patches g = patches_of(x, p);
    int k = p.kh * p.kw * p.c;
    bool is_product =
        p.kh == 1 && p.kw == 1 && p.stride == 1 && !p.pad_top && !p.pad_left && p.oh == p.h && p.ow == p.w;
    Matrix xm = {{(void *)x, F32}, (size_t)p.c}, wm = {weight, (size_t)k};
    gemm_product(&(Product){
        .m = p.n * p.oh * p.ow,
        .n = p.oc,
        .k = k,
        .pack_a = is_product ? pack_a_rows : pack_a_patches,
        .a = is_product ? (void *)&xm : &g,
        .pack_b = pack_b_columns,
        .b = &wm,
        .out = {y, p.oc, residual, bias, 1},
    });
}

// ---- gradient of the input --------------------------------------------------------------------------------

// dx[y] += sum over the taps with y + pad - ky = stride * oy of w[ky] dy[oy]. All y of one remainder modulo
// the stride see the same taps: for each remainder (here: phase) it is a convolution of dy with stride 1, its
// taps in reverse. With stride 1 there is one phase.
typedef struct {
    Mem weight; // (oc, kh, kw, c)
    int kh, kw, c, oc;
    int first_y, first_x, stride, rows, columns; // the phase's taps: first + stride * j, rows x columns
} PhaseWeights;

// B (taps reversed x oc, c): a row of it lies in the weights as a row of c elements.
static void pack_b_phase(float *to, const void *b, int k, int depth, int j, int n, int width) {
    const PhaseWeights *f = b;
    for (int r = 0; r < depth; r++, to += width) {
        int tap = (k + r) / f->oc, o = (k + r) % f->oc;
        int ky = f->first_y + f->stride * (f->rows - 1 - tap / f->columns);
        int kx = f->first_x + f->stride * (f->columns - 1 - tap % f->columns);
        size_t row = ((size_t)o * (size_t)f->kh + (size_t)ky) * (size_t)f->kw + (size_t)kx;
        convert_floats(to, from(f->weight, row * (size_t)f->c + (size_t)j).at, f->weight.type, n);
        if (n < width) zero_floats(to + n, width - n);
    }
}

static void conv_direct_backward_input(float *dx, const float *dy, Mem weight, Conv p, bool add) {
    if (!add && p.stride > 1) fill((Mem){dx, F32}, 0, (size_t)p.n * (size_t)p.h * (size_t)p.w * (size_t)p.c);
    for (int phase = 0; phase < p.stride * p.stride; phase++) {
        int y0 = phase / p.stride, x0 = phase % p.stride; // pixels y0 + stride * i of dx
        int first_y = (y0 + p.pad_top) % p.stride, first_x = (x0 + p.pad_left) % p.stride;
        PhaseWeights f = {weight,
                          p.kh,
                          p.kw,
                          p.c,
                          p.oc,
                          first_y,
                          first_x,
                          p.stride,
                          .rows = blocks_of(max_int(p.kh - first_y, 0), p.stride),
                          .columns = blocks_of(max_int(p.kw - first_x, 0), p.stride)};
        int h = blocks_of(max_int(p.h - y0, 0), p.stride), w = blocks_of(max_int(p.w - x0, 0), p.stride);
        if (!f.rows || !f.columns || !h || !w) continue; // no tap reaches these pixels
        int top = f.rows - 1 - (y0 + p.pad_top) / p.stride;
        int left = f.columns - 1 - (x0 + p.pad_left) / p.stride;
        Patches g = {dy, p.oh, p.ow, p.oc, h, w, f.rows, f.columns, 1, top, left};
        int m = p.n * h * w;
        float *to = p.stride == 1 ? dx : scratch(S_PARTS, (size_t)m * (size_t)p.c);
        gemm_product(&(Product){
            .m = m,
            .n = p.c,
            .k = f.rows * f.columns * p.oc,
            .pack_a = pack_a_patches,
            .a = &g,
            .pack_b = pack_b_phase,
            .b = &f,
            .out = {to, p.c, add && p.stride == 1 ? dx : NULL, NULL, 1},
        });
        if (p.stride == 1) continue;
        PARALLEL_FOR(m * p.c > WORTH_A_THREAD)
        for (int row = 0; row < p.n * h; row++)
            for (int x = 0; x < w; x++) {
                const float *s = to + ((size_t)row * (size_t)w + (size_t)x) * (size_t)p.c;
                size_t line = (size_t)(row / h) * (size_t)p.h + (size_t)(y0 + row % h * p.stride);
                float *d = dx + (line * (size_t)p.w + (size_t)(x0 + x * p.stride)) * (size_t)p.c;
                for (int c = 0; c < p.c; c++) d[c] += s[c];
            }
    }
}

// ---- gradient of the weights ------------------------------------------------------------------------------

// dW (oc, kh kw c) += dY^T (oc, pixels) patches (pixels, kh kw c)
static void conv_direct_backward_weight(float *dweight, const float *dy, const float *x, Conv p) {
    Patches g = patches_of(x, p);
    Matrix dym = {{(void *)dy, F32}, (size_t)p.oc};
    int n = p.kh * p.kw * p.c;
    gemm_product(&(Product){
        .m = p.oc,
        .n = n,
        .k = p.n * p.oh * p.ow,
        .pack_a = pack_a_columns,
        .a = &dym,
        .pack_b = pack_b_patches,
        .b = &g,
        .out = {dweight, n, dweight, NULL, 1},
    });
}

// ---- the kernels ------------------------------------------------------------------------------------------

// `packed`: the weights by pack_taps(), or NULL.
static void convolve(bool by_winograd, float *y, const float *x, Mem weight, const float *packed,
                     const float *bias, const float *residual, Conv p) {
    if (by_winograd)
        winograd(y, x, weight, bias, residual, p);
    else if (tiles_suit(p))
        conv_tiles(y, x, weight, packed, bias, residual, p);
    else
        conv_direct(y, x, weight, bias, residual, p);
}

static void conv2d(Mem y, Mem x, Mem weight, Mem bias, Mem residual, Conv p) {
    const float *b = as_floats(bias, p.oc, S_BIAS);
    convolve(winograd_suits(p, p.oh, p.ow), y.at, x.at, weight, NULL, b, residual.at, p);
}

static void conv2d_backward_input(Mem dx, Mem dy, Mem weight, Conv p, bool add) {
    if (!dx.at) return;
    if (winograd_suits(p, p.h, p.w))
        winograd_backward_input(dx.at, dy.at, weight, p, add);
    else
        conv_direct_backward_input(dx.at, dy.at, weight, p, add);
}

static void conv2d_backward_weight(float *dweight, Mem dy, Mem x, Conv p) {
    if (!dweight) return;
    // The sums over tiles take four times the weights' memory.
    if (winograd_suits(p, p.oh, p.ow) && (double)p.oc * p.c <= 1 << 20)
        winograd_backward_weight(dweight, dy.at, x.at, p);
    else
        conv_direct_backward_weight(dweight, dy.at, x.at, p);
}
