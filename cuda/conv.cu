// conv.cu: convolution and its two gradients, each as a matrix product whose matrices are never stored: the
// elements of a tile are looked up in the pictures when they are needed (tile.h does the rest).
//
//   forward          y (pixels, oc) = X (pixels, kh kw c) W^T       X: what each output pixel sees
//   backward, input  dx (pixels, c) += Y (pixels, kh kw oc) W'      Y: the dy of each output that saw it
//   backward, weight dw (oc, kh kw c) += dy^T (oc, pixels) X (pixels, kh kw c)
#include "gemm.h"
#include "tile.h"

// A position k of the inner sum: row and column in the kernel, and a channel.
struct Tap {
    int ki, kj, channel;
};
__device__ __forceinline__ Tap tap_of(int k, int kw, int channels) {
    int t = k / channels;
    return {t / kw, t % kw, k % channels};
}
struct Place {
    int n, i, j;
};
__device__ __forceinline__ Place place_of(int pixel, int h, int w) {
    return {pixel / w / h, pixel / w % h, pixel % w};
}

// X[pixel of the output][tap]: the element of x that it sees, or zero outside.
struct Seen {
    Mem x;
    Conv p;
    bool along_k;
    __device__ __forceinline__ float operator()(int pixel, int k) const {
        Place o = place_of(pixel, p.oh, p.ow);
        Tap t = tap_of(k, p.kw, p.c);
        int i = o.i * p.stride - p.pad_top + t.ki, j = o.j * p.stride - p.pad_left + t.kj;
        if (i < 0 || i >= p.h || j < 0 || j >= p.w) return 0;
        return load(x, (((size_t)o.n * p.h + i) * p.w + j) * p.c + t.channel);
    }
};
// Y[pixel of the input][tap]: the dy of the output pixel that saw it through this tap; zero if none did.
struct Seeing {
    Mem dy;
    Conv p;
    bool along_k;
    __device__ __forceinline__ float operator()(int pixel, int k) const {
        Place q = place_of(pixel, p.h, p.w);
        Tap t = tap_of(k, p.kw, p.oc);
        int i = q.i + p.pad_top - t.ki, j = q.j + p.pad_left - t.kj;
        if (i < 0 || j < 0 || i % p.stride || j % p.stride) return 0;
        i /= p.stride, j /= p.stride;
        if (i >= p.oh || j >= p.ow) return 0;
        return load(dy, (((size_t)q.n * p.oh + i) * p.ow + j) * p.oc + t.channel);
    }
};
struct WeightTransposed { // W^T[tap][o] of weight (oc, kh kw c)
    Mem w;
    int taps;
    bool along_k;
    __device__ __forceinline__ float operator()(int k, int o) const { return load(w, (size_t)o * taps + k); }
};
struct WeightForInput { // W'[(ki, kj, o)][c] of weight (oc, kh, kw, c)
    Mem w;
    Conv p;
    bool along_k;
    __device__ __forceinline__ float operator()(int k, int c) const {
        int o = k % p.oc, t = k / p.oc;
        return load(w, ((size_t)o * p.kh * p.kw + t) * p.c + c);
    }
};
struct OutputTransposed { // dy^T[o][pixel]
    Mem dy;
    int oc;
    bool along_k;
    __device__ __forceinline__ float operator()(int o, int pixel) const {
        return load(dy, (size_t)pixel * oc + o);
    }
};

static __global__ void __launch_bounds__(TILE_THREADS, 2)
    conv_forward(Seen a, WeightTransposed b, Epilogue out, int m, int n, int k) {
    __shared__ Tiles tiles;
    tile_product(tiles, a, b, out, m, n, 0, k);
}
static __global__ void __launch_bounds__(TILE_THREADS, 2)
    conv_backward_input(Seeing a, WeightForInput b, Epilogue out, int m, int n, int k) {
    __shared__ Tiles tiles;
    tile_product(tiles, a, b, out, m, n, 0, k);
}
template <class Out>
static __global__ void __launch_bounds__(TILE_THREADS, 2)
    conv_backward_weight(OutputTransposed a, Seen b, Out out, int m, int n, int k, int k_part) {
    __shared__ Tiles tiles;
    int begin = blockIdx.z * k_part, end = begin + k_part < k ? begin + k_part : k;
    tile_product(tiles, a, b, out, m, n, begin, end);
}

static bool is_product(Conv p) { // 1x1 without stride or padding
    return p.kh == 1 && p.kw == 1 && p.stride == 1 && p.pad_top == 0 && p.pad_left == 0 && p.oh == p.h &&
           p.ow == p.w;
}
static int pixels(int n, int h, int w) {
    size_t count = (size_t)n * h * w;
    if (count > 0x7fffffff) die("CUDA: a convolution over %zu pixels; at most %d fit", count, 0x7fffffff);
    return (int)count;
}
static const Mem absent = {NULL, F32};

static void launch_conv2d(Mem y, Mem x, Mem weight, Mem bias, Mem residual, Conv p) {
    int m = pixels(p.n, p.oh, p.ow), taps = p.kh * p.kw * p.c;
    if (!m || !p.oc) return;
    if (is_product(p)) {
        backend.gemm(y, x, weight, bias, residual, Gemm{m, p.oc, p.c, false, true, false, 1});
        return;
    }
    Epilogue out = {y, bias, residual, p.oc, 1, false};
    dim3 grid(ceil_div(m, TILE), ceil_div(p.oc, TILE));
    conv_forward<<<grid, TILE_THREADS, 0, stream>>>(Seen{x, p, true}, WeightTransposed{weight, taps, true},
                                                    out, m, p.oc, taps);
    check_launch("conv_forward", grid, TILE_THREADS);
}

static void launch_conv2d_backward_input(Mem dx, Mem dy, Mem weight, Conv p) {
    int m = pixels(p.n, p.h, p.w), k = p.kh * p.kw * p.oc;
    if (!dx.at || !m || !p.c) return;
    if (is_product(p)) { // dx += dy W
        backend.gemm(dx, dy, weight, absent, absent, Gemm{m, p.c, p.oc, false, false, true, 1});
        return;
    }
    Epilogue out = {dx, absent, absent, p.c, 1, true};
    dim3 grid(ceil_div(m, TILE), ceil_div(p.c, TILE));
    conv_backward_input<<<grid, TILE_THREADS, 0, stream>>>(Seeing{dy, p, true},
                                                           WeightForInput{weight, p, false}, out, m, p.c, k);
    check_launch("conv_backward_input", grid, TILE_THREADS);
}

static void launch_conv2d_backward_weight(float *dweight, Mem dy, Mem x, Conv p) {
    int k = pixels(p.n, p.oh, p.ow), taps = p.kh * p.kw * p.c;
    if (!dweight || !k || !p.oc) return;
    if (is_product(p)) { // dw += dy^T x
        backend.gemm(f32(dweight), dy, x, absent, absent, Gemm{p.oc, p.c, k, true, false, true, 1});
        return;
    }
    OutputTransposed a = {dy, p.oc, false};
    Seen b = {x, p, false};
    Epilogue out = {f32(dweight), absent, absent, taps, 1, true};
    int splits = split_count(p.oc, taps, k);
    int k_part = (int)ceil_div(k, splits);
    dim3 grid(ceil_div(p.oc, TILE), ceil_div(taps, TILE), splits);
    if (splits == 1) {
        conv_backward_weight<Epilogue><<<grid, TILE_THREADS, 0, stream>>>(a, b, out, p.oc, taps, k, k);
        check_launch("conv_backward_weight", grid, TILE_THREADS);
        return;
    }
    Scratch scratch;
    Part part = {scratch.floats((size_t)splits * p.oc * taps), p.oc, taps};
    conv_backward_weight<Part><<<grid, TILE_THREADS, 0, stream>>>(a, b, part, p.oc, taps, k, k_part);
    check_launch("conv_backward_weight", grid, TILE_THREADS);
    finish_split(part.part, splits, p.oc, taps, out);
}

void conv_kernels(Backend &b) {
    b.conv2d = launch_conv2d;
    b.conv2d_backward_input = launch_conv2d_backward_input;
    b.conv2d_backward_weight = launch_conv2d_backward_weight;
}
