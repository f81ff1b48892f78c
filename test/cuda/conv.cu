// conv.cu: each step of the ladder in cuda/conv.cu against a convolution in double, forward and both
// gradients: shapes of Stable Diffusion at a reduced size, ragged edges, padding, strides, kernels of all
// kinds, sums split along k.
//
// Inputs are values of the operands' type, so the reference computes from the same, and the remaining error
// is that of the fp32 sum: 1e-5 of the largest value.
#include "operand.h"
#include "cuda/conv.h"

static const Conv shapes[] = {
    // n h w c   oh ow oc   kh kw stride pad_top pad_left
    {2, 8, 8, 64, 8, 8, 72, 3, 3, 1, 1, 1},     // a ResNet's, smaller
    {1, 16, 16, 32, 16, 16, 32, 3, 3, 1, 1, 1}, //
    {1, 9, 7, 40, 9, 7, 136, 3, 3, 1, 1, 1},    // more than a tile of output channels, a ragged one of pixels
    {3, 7, 9, 16, 7, 9, 8, 3, 3, 1, 1, 1},      // two taps in a step along k; pictures end within a tile
    {2, 12, 10, 8, 12, 10, 24, 3, 3, 1, 1, 1},  // four
    {2, 8, 8, 32, 4, 4, 32, 3, 3, 2, 1, 1},     // the UNet's downsampling
    {1, 9, 11, 24, 4, 5, 40, 3, 3, 2, 0, 0},    // the VAE's: padding at the bottom and right only
    {2, 5, 7, 48, 5, 7, 80, 1, 1, 1, 0, 0},     // a shortcut
    {1, 9, 7, 8, 5, 4, 16, 1, 1, 2, 0, 0},      //
    {1, 5, 13, 16, 5, 13, 24, 1, 7, 1, 0, 3},   // Inception's
    {1, 13, 5, 16, 13, 5, 24, 7, 1, 1, 3, 0},   //
    {1, 7, 7, 24, 7, 7, 16, 5, 5, 1, 2, 2},     //
    {1, 4, 4, 8, 6, 6, 16, 3, 3, 1, 2, 2},      // more padding than usual
    {1, 10, 10, 8, 4, 4, 8, 3, 3, 3, 2, 1},     // stride 3, uneven padding
    {1, 4, 4, 320, 4, 4, 8, 3, 3, 1, 1, 1},     // a long k: split
    {1, 2, 2, 8, 2, 2, 320, 3, 3, 1, 1, 1},     // the input's gradient, split
    {1, 40, 39, 8, 40, 39, 16, 3, 3, 1, 1, 1},  // the weight's, split
    {2, 6, 5, 4, 6, 5, 16, 3, 3, 1, 1, 1},      // channels that do not come in eights: not for step 3
    {1, 5, 6, 7, 5, 6, 3, 3, 3, 1, 1, 1},       //
};
static const char *const step_names[] = {"naive", "blocked", "tensor"}, *const type_names[] = {"f32", "f16",
                                                                                               "bf16"};

static void test(ConvStep step, Type type, Conv p) {
    size_t taps = (size_t)p.kh * p.kw * p.c;
    size_t y_count = (size_t)p.n * p.oh * p.ow * p.oc, x_count = (size_t)p.n * p.h * p.w * p.c;
    Operand x(type, random_values(x_count)), w(type, random_values(taps * p.oc)),
        dy(type, random_values(y_count));
    Operand bias(type, random_values(p.oc)), residual(type, random_values(y_count));
    Operand y(F32, random_values(y_count)), dx(F32, random_values(x_count)),
        dw(F32, random_values(taps * p.oc));
    std::vector<double> want_y(y_count), want_dx = dx.value, want_dw = dw.value;
    for (int n = 0; n < p.n; n++)
        for (int i = 0; i < p.oh; i++)
            for (int j = 0; j < p.ow; j++)
                for (int o = 0; o < p.oc; o++) {
                    size_t out = ((size_t)(n * p.oh + i) * p.ow + j) * p.oc + o;
                    double sum = bias.value[o] + residual.value[out];
                    for (int ki = 0; ki < p.kh; ki++)
                        for (int kj = 0; kj < p.kw; kj++) {
                            int row = i * p.stride - p.pad_top + ki, col = j * p.stride - p.pad_left + kj;
                            if (row < 0 || col < 0 || row >= p.h || col >= p.w) continue;
                            size_t from = ((size_t)(n * p.h + row) * p.w + col) * p.c;
                            size_t tap = ((size_t)(o * p.kh + ki) * p.kw + kj) * p.c;
                            for (int c = 0; c < p.c; c++) {
                                sum += x.value[from + c] * w.value[tap + c];
                                want_dx[from + c] += dy.value[out] * w.value[tap + c];
                                want_dw[tap + c] += dy.value[out] * x.value[from + c];
                            }
                        }
                    want_y[out] = sum;
                }
    conv_forward(step, y.mem, x.mem, w.mem, bias.mem, residual.mem, p);
    conv_backward_input(step, dx.mem, dy.mem, w.mem, p);
    conv_backward_weight(step, (float *)dw.mem.at, dy.mem, x.mem, p);
    auto compare = [&](const char *what, const Operand &got, const std::vector<double> &want) {
        char name[200];
        snprintf(name, sizeof name,
                 "%s %s %s: n %d, %dx%dx%d to %dx%dx%d, kernel %dx%d, stride %d, pad %d %d", what,
                 step_names[step], type_names[type], p.n, p.h, p.w, p.c, p.oh, p.ow, p.oc, p.kh, p.kw,
                 p.stride, p.pad_top, p.pad_left);
        std::vector<float> wanted(want.begin(), want.end());
        check_close(name, got.get().data(), wanted.data(), wanted.size(), 1e-5);
    };
    compare("forward", y, want_y), compare("input", dx, want_dx), compare("weight", dw, want_dw);
}

int main() {
    backend_init(0);
    for (const Conv &p : shapes)
        for (int type = F32; type <= BF16; type++)
            for (int step = CONV_NAIVE; step <= CONV_TENSOR; step++) {
                Mem aligned = {NULL, (Type)type};
                if (step == CONV_TENSOR && !conv_tensor_fits(aligned, aligned, p.c, p.oc)) continue;
                if (step < CONV_TENSOR && type == BF16) continue; // the types differ in load() alone
                test((ConvStep)step, (Type)type, p);
            }
    Mem odd = {(void *)2, BF16}, even = {(void *)16, BF16}, other = {(void *)16, F16};
    check(!conv_tensor_fits(odd, even, 8, 8), "an odd address is not for the tensor cores");
    check(!conv_tensor_fits(even, even, 8, 12), "12 channels are not for the tensor cores");
    check(!conv_tensor_fits(even, other, 8, 8), "two types are not for the tensor cores");
    return test_report();
}
