// conv.cu: convolution and its two gradients, each as a matrix product whose matrices are never stored: their
// elements are looked up in the pictures when they are needed.
//
//   forward          y (pixels, oc) = X (pixels, kh kw c) W^T       X: what each output pixel sees
//   backward, input  dx (pixels, c) += Y (pixels, kh kw oc) W'      Y: the dy of each output that saw it
//   backward, weight dw (oc, kh kw c) += dy^T (oc, pixels) X (pixels, kh kw c)
//
// In three steps, as gemm.cu climbs them:
//   1 naive     a thread computes one element: the definition
//   2 blocked   a block shares tiles, a thread computes 4 x 4 elements (tile.h)
//   3 tensor    on tensor cores, in 16 bits (tensor.h)
// backend.conv2d and its gradients take step 3 where channels come in eights, which in Stable Diffusion are
// all but those of the first and the last convolution. SD_CONV=naive|blocked|tensor asks for a step.
//
// Where an element of X or Y lies costs divisions: a pixel's number is taken apart into picture, row and
// column, a position along k into a tap (row and column of the kernel) and a channel. A division is some 20
// instructions, a multiply-add is one. So no step but the first divides within its loop.
#include "conv.h"
#include "gemm.h"
#include "tensor.h"

// ---- where elements lie ----------------------------------------------------------------------------------

struct Place { // of a pixel
    int n, i, j;
};
__device__ __forceinline__ Place place_of(int pixel, int h, int w) {
    return {pixel / w / h, pixel / w % h, pixel % w};
}
// Moves it by so many pixels without a division, as a clock's hands move on.
__device__ __forceinline__ void move(Place &o, Place by, int h, int w) {
    o.n += by.n, o.i += by.i, o.j += by.j;
    if (o.j >= w) o.j -= w, o.i++;
    if (o.i >= h) o.i -= h, o.n++;
}

struct Tap { // a position along k: row and column in the kernel, and a channel
    int ki, kj, channel;
};
__device__ __forceinline__ Tap tap_of(int k, int kw, int channels) {
    int t = k / channels;
    return {t / kw, t % kw, k % channels};
}
__device__ __forceinline__ void move(Tap &t, int by, int kw, int channels) {
    for (t.channel += by; t.channel >= channels; t.channel -= channels)
        if (++t.kj == kw) t.kj = 0, t.ki++;
}

// The pixel of x that output pixel o sees through a tap; -1 outside of the picture.
__device__ __forceinline__ int pixel_seen(const Conv &p, Place o, int ki, int kj) {
    int i = o.i * p.stride - p.pad_top + ki, j = o.j * p.stride - p.pad_left + kj;
    return i < 0 || i >= p.h || j < 0 || j >= p.w ? -1 : (o.n * p.h + i) * p.w + j;
}
// The output pixel that saw pixel q of x through a tap; -1 if none did.
__device__ __forceinline__ int pixel_seeing(const Conv &p, Place q, int ki, int kj) {
    int i = q.i + p.pad_top - ki, j = q.j + p.pad_left - kj;
    if (i < 0 || j < 0) return -1;
    if (p.stride > 1) {
        if (i % p.stride || j % p.stride) return -1;
        i /= p.stride, j /= p.stride;
    }
    return i >= p.oh || j >= p.ow ? -1 : (q.n * p.oh + i) * p.ow + j;
}

// ---- 1. naive and 2. blocked: operands element by element, as tile.h asks for them ------------------------

// X of the forward: a row is an output pixel; or, SEEING, Y: a row is a pixel of x. k is a tap.
template <bool SEEING> struct PixelElements {
    static constexpr bool ALONG_K = true;
    typedef Place Across;
    typedef Tap Along;
    Mem x; // or dy
    Conv p;
    __device__ __forceinline__ int channels() const { return SEEING ? p.oc : p.c; }
    __device__ __forceinline__ Place across(int pixel) const {
        return SEEING ? place_of(pixel, p.h, p.w) : place_of(pixel, p.oh, p.ow);
    }
    __device__ __forceinline__ Tap along(int k) const { return tap_of(k, p.kw, channels()); }
    __device__ __forceinline__ void next(Tap &t, int by) const { move(t, by, p.kw, channels()); }
    __device__ __forceinline__ float at(Place o, Tap t) const {
        int pixel = SEEING ? pixel_seeing(p, o, t.ki, t.kj) : pixel_seen(p, o, t.ki, t.kj);
        return pixel < 0 ? 0 : load(x, (size_t)pixel * channels() + t.channel);
    }
};
struct SeenByTap { // X of the weight's gradient: a column is a tap, k an output pixel
    static constexpr bool ALONG_K = false;
    typedef Tap Across;
    typedef Place Along;
    Mem x;
    Conv p;
    __device__ __forceinline__ Tap across(int k) const { return tap_of(k, p.kw, p.c); }
    __device__ __forceinline__ Place along(int pixel) const { return place_of(pixel, p.oh, p.ow); }
    __device__ __forceinline__ void next(Place &o, int by) const {
        for (o.j += by; o.j >= p.ow; o.j -= p.ow)
            if (++o.i == p.oh) o.i = 0, o.n++;
    }
    __device__ __forceinline__ float at(Tap t, Place o) const {
        int pixel = pixel_seen(p, o, t.ki, t.kj);
        return pixel < 0 ? 0 : load(x, (size_t)pixel * p.c + t.channel);
    }
};
struct WeightForInput { // W'[(ki, kj, o)][c] of weight (oc, kh, kw, c)
    static constexpr bool ALONG_K = false;
    typedef int Across;
    typedef Tap Along;
    Mem w;
    Conv p;
    __device__ __forceinline__ int across(int c) const { return c; }
    __device__ __forceinline__ Tap along(int k) const { return tap_of(k, p.kw, p.oc); }
    __device__ __forceinline__ void next(Tap &t, int by) const { move(t, by, p.kw, p.oc); }
    __device__ __forceinline__ float at(int c, Tap t) const {
        return load(w, ((size_t)(t.channel * p.kh + t.ki) * p.kw + t.kj) * p.c + c);
    }
};
template <class A, class B> static __global__ void conv_naive(A a, B b, Epilogue out, int m, int n, int k) {
    int j = blockIdx.y * blockDim.x + threadIdx.x, i = blockIdx.x * blockDim.y + threadIdx.y;
    if (i >= m || j >= n) return;
    float sum = 0;
    for (int p = 0; p < k; p++) sum += a.at(a.across(i), a.along(p)) * b.at(b.across(j), b.along(p));
    out(i, j, sum);
}
template <class A, class B>
static void run_elements(ConvStep step, A a, B b, Epilogue out, int m, int n, int k) {
    if (step == CONV_BLOCKED) return launch_tiles(a, b, out, m, n, k);
    dim3 grid(ceil_div(m, 8), ceil_div(n, 32)), block(32, 8);
    conv_naive<A, B><<<grid, block, 0, stream>>>(a, b, out, m, n, k);
    check_launch("conv_naive", grid, block);
}

// ---- 3. tensor cores: operands chunk by chunk, as tensor.h asks for them ---------------------------------
// What it fixes: see tensor.h. A chunk is 8 channels of one pixel and one tap.

// X or Y. Which pixel a row sees through each tap (forward), or is seen from (SEEING, the input's gradient),
// is looked up in a table that the block makes before it begins: kh kw x 128 numbers. So padding, strides and
// the edges of pictures cost nothing in the loop. -1: a chunk of zeros. [C8]
template <class T, bool SEEING> struct PixelChunks {
    static constexpr bool ALONG_K = true;
    typedef TensorTile<T> S;
    const T *x; // or dy
    Conv p;
    int channels, rows; // p.c or p.oc; pixels of the result
    // A tap's numbers; the 8 keep taps that one step meets in other banks.
    static constexpr int TAP = S::M + 8;
    int *where;
    int tap, channel, at, end; // of this thread's next chunks
    int table_bytes() const { return p.kh * p.kw * TAP * (int)sizeof(int); }
    __device__ __forceinline__ void begin(void *table, int first, int k_begin, int k_end) {
        where = (int *)table;
        int r = threadIdx.x % S::M, pixel = first + r;
        Place o = place_of(pixel, SEEING ? p.h : p.oh, SEEING ? p.w : p.ow);
        for (int t = threadIdx.x / S::M; t < p.kh * p.kw; t += 256 / S::M) {
            int ki = t / p.kw, kj = t % p.kw;
            int seen = SEEING ? pixel_seeing(p, o, ki, kj) : pixel_seen(p, o, ki, kj);
            where[t * TAP + r] = pixel < rows ? seen : -1;
        }
        at = k_begin + S::template chunk<true>() * S::CHUNK, end = k_end;
        tap = at / channels, channel = at % channels;
        __syncthreads(); // the table is there
    }
    __device__ __forceinline__ void copy(T *tile) {
        int c = S::template chunk<true>();
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int r = S::template row<true>(i), pixel = at < end ? where[tap * TAP + r] : -1;
            const T *from = pixel < 0 ? x : x + (size_t)pixel * channels + channel;
            cp_async16(&tile[S::template at<true>(r, c)], from, pixel < 0 ? 0 : 16);
        }
        at += S::K;
        for (channel += S::K; channel >= channels; channel -= channels) tap++;
    }
};

// W'[(ki, kj, o)][c] of weight (oc, kh kw, c).
template <class T> struct WeightChunks {
    static constexpr bool ALONG_K = false;
    typedef TensorTile<T> S;
    const T *w;
    int oc, taps, c;
    int column, at, end, tap[2], o[2];
    static int table_bytes() { return 0; }
    __device__ __forceinline__ void begin(void *, int first, int k_begin, int k_end) {
        column = first + S::template chunk<false>() * S::CHUNK, at = k_begin, end = k_end;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int k = k_begin + S::template row<false>(i);
            tap[i] = k / oc, o[i] = k % oc;
        }
    }
    __device__ __forceinline__ void copy(T *tile) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int r = S::template row<false>(i);
            bool inside = at + r < end && column < c;
            const T *from = inside ? w + (size_t)(o[i] * taps + tap[i]) * c + column : w;
            cp_async16(&tile[S::template at<false>(r, S::template chunk<false>())], from, inside ? 16 : 0);
            for (o[i] += S::K; o[i] >= oc; o[i] -= oc) tap[i]++;
        }
        at += S::K;
    }
};

// X of the weight's gradient: a column is a tap and stays the same; the pixels move on.
template <class T> struct SeenChunks {
    static constexpr bool ALONG_K = false;
    typedef TensorTile<T> S;
    const T *x;
    Conv p;
    Tap tap;
    bool inside; // is this thread's column one of X?
    int at, end;
    Place by, o[2];
    static int table_bytes() { return 0; }
    __device__ __forceinline__ void begin(void *, int first, int k_begin, int k_end) {
        int column = first + S::template chunk<false>() * S::CHUNK;
        tap = tap_of(column, p.kw, p.c), inside = tap.ki < p.kh;
        at = k_begin, end = k_end;
        by = place_of(S::K, p.oh, p.ow);
#pragma unroll
        for (int i = 0; i < 2; i++) o[i] = place_of(k_begin + S::template row<false>(i), p.oh, p.ow);
    }
    __device__ __forceinline__ void copy(T *tile) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int r = S::template row<false>(i);
            int pixel = inside && at + r < end ? pixel_seen(p, o[i], tap.ki, tap.kj) : -1;
            const T *from = pixel < 0 ? x : x + (size_t)pixel * p.c + tap.channel;
            cp_async16(&tile[S::template at<false>(r, S::template chunk<false>())], from, pixel < 0 ? 0 : 16);
            move(o[i], by, p.oh, p.ow);
        }
        at += S::K;
    }
};

// ---- the three products, by a given step -----------------------------------------------------------------

bool conv_tensor_fits(Mem a, Mem b, int channels_a, int channels_b) {
    return a.type == b.type && a.type != F32 && ((uintptr_t)a.at | (uintptr_t)b.at) % 16 == 0 &&
           channels_a % 8 == 0 && channels_b % 8 == 0;
}

static int pixels(int n, int h, int w) {
    size_t count = (size_t)n * h * w;
    if (count > 0x7fffffff) die("a convolution over %zu pixels; at most %d fit", count, 0x7fffffff);
    return (int)count;
}

void conv_forward(ConvStep step, Mem y, Mem x, Mem weight, Mem bias, Mem residual, Conv p, bool row) {
    int m = pixels(p.n, p.oh, p.ow), k = p.kh * p.kw * p.c;
    Epilogue out(y, bias, residual, p.oc, 1, false);
    out.rows = row ? p.oh * p.ow : 0;
    if (step != CONV_TENSOR)
        return run_elements(step, PixelElements<false>{x, p}, Elements<true>{weight, (size_t)k}, out, m, p.oc,
                            k);
    in_16_bits(x.type, [&](auto t) {
        typedef decltype(t) T;
        PixelChunks<T, false> a = {(const T *)x.at, p, p.c, m, NULL, 0, 0, 0, 0};
        launch_tensor<T>(a, MatrixChunks<T, true>{(const T *)weight.at, p.oc, k, 0, 0, 0}, out, m, p.oc, k);
    });
}
void conv_backward_input(ConvStep step, Mem dx, Mem dy, Mem weight, Conv p) {
    int m = pixels(p.n, p.h, p.w), k = p.kh * p.kw * p.oc;
    Epilogue out(dx, absent, absent, p.c, 1, true);
    if (step != CONV_TENSOR)
        return run_elements(step, PixelElements<true>{dy, p}, WeightForInput{weight, p}, out, m, p.c, k);
    in_16_bits(dy.type, [&](auto t) {
        typedef decltype(t) T;
        PixelChunks<T, true> a = {(const T *)dy.at, p, p.oc, m, NULL, 0, 0, 0, 0};
        WeightChunks<T> b = {(const T *)weight.at, p.oc, p.kh * p.kw, p.c, 0, 0, 0, {}, {}};
        launch_tensor<T>(a, b, out, m, p.c, k);
    });
}
void conv_backward_weight(ConvStep step, float *dweight, Mem dy, Mem x, Conv p) {
    int n = p.kh * p.kw * p.c, k = pixels(p.n, p.oh, p.ow);
    Epilogue out(f32(dweight), absent, absent, n, 1, true);
    if (step != CONV_TENSOR)
        return run_elements(step, Elements<false>{dy, (size_t)p.oc}, SeenByTap{x, p}, out, p.oc, n, k);
    in_16_bits(dy.type, [&](auto t) {
        typedef decltype(t) T;
        MatrixChunks<T, false> a = {(const T *)dy.at, p.oc, k, 0, 0, 0};
        launch_tensor<T>(a, SeenChunks<T>{(const T *)x.at, p, {}, false, 0, 0, {}, {}}, out, p.oc, n, k);
    });
}

// ---- the choice ------------------------------------------------------------------------------------------

static bool is_product(Conv p) { // 1x1 without stride or padding
    return p.kh == 1 && p.kw == 1 && p.stride == 1 && p.pad_top == 0 && p.pad_left == 0 && p.oh == p.h &&
           p.ow == p.w;
}

// The step for these operands, of which b may be converted to the type of activations.
static ConvStep choose(Mem a, Mem &b, size_t b_count, int channels_a, int channels_b, Scratch &scratch) {
    static const char *const names[] = {"naive", "blocked", "tensor"};
    static const int wanted = step_named("SD_CONV", names, 3);
    if (wanted == CONV_NAIVE) return CONV_NAIVE;
    if (wanted == CONV_BLOCKED || channels_a % 8 || channels_b % 8) return CONV_BLOCKED;
    Mem converted = in_storage(b, b_count, scratch);
    if (!conv_tensor_fits(a, converted, channels_a, channels_b)) return CONV_BLOCKED;
    b = converted;
    return CONV_TENSOR;
}

static void run_conv2d(Mem y, Mem x, Mem weight, Mem bias, Mem residual, Conv p, bool row) {
    if (!pixels(p.n, p.oh, p.ow) || !p.oc) return;
    if (is_product(p) && !row) {
        Gemm g = {p.n * p.oh * p.ow, p.oc, p.c, false, true, false, 1};
        backend.gemm(y, x, weight, bias, residual, g);
        return;
    }
    Scratch scratch;
    ConvStep step = choose(x, weight, (size_t)p.oc * p.kh * p.kw * p.c, p.c, p.c, scratch);
    conv_forward(step, y, x, weight, bias, residual, p, row);
}
static void launch_conv2d(Mem y, Mem x, Mem weight, Mem bias, Mem residual, Conv p) {
    run_conv2d(y, x, weight, bias, residual, p, false);
}
static void launch_conv2d_vector(Mem y, Mem x, Mem weight, Mem bias, Mem v, Conv p) {
    run_conv2d(y, x, weight, bias, v, p, true);
}

static void launch_conv2d_backward_input(Mem dx, Mem dy, Mem weight, Conv p, bool add) {
    if (!dx.at || !pixels(p.n, p.h, p.w) || !p.c) return;
    if (is_product(p)) { // dx = or += dy W
        Gemm g = {p.n * p.h * p.w, p.c, p.oc, false, false, add, 1};
        backend.gemm(dx, dy, weight, absent, absent, g);
        return;
    }
    if (!add) backend.fill(dx, 0, (size_t)p.n * p.h * p.w * p.c);
    Scratch scratch;
    ConvStep step = choose(dy, weight, (size_t)p.oc * p.kh * p.kw * p.c, p.oc, p.c, scratch);
    conv_backward_input(step, dx, dy, weight, p);
}

static void launch_conv2d_backward_weight(float *dweight, Mem dy, Mem x, Conv p) {
    int k = pixels(p.n, p.oh, p.ow);
    if (!dweight || !k || !p.oc) return;
    if (is_product(p)) { // dw += dy^T x
        backend.gemm(f32(dweight), dy, x, absent, absent, Gemm{p.oc, p.c, k, true, false, true, 1});
        return;
    }
    Scratch scratch;
    ConvStep step = choose(dy, x, (size_t)p.n * p.h * p.w * p.c, p.oc, p.c, scratch);
    conv_backward_weight(step, dweight, dy, x, p);
}

void conv_kernels(Backend &b) {
    b.conv2d = launch_conv2d;
    b.conv2d_vector = launch_conv2d_vector;
    b.conv2d_backward_input = launch_conv2d_backward_input;
    b.conv2d_backward_weight = launch_conv2d_backward_weight;
}
