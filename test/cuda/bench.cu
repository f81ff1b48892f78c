// bench.cu: the speed of each step of the GEMM ladder in GFLOP/s, beside cuBLAS where it is linked
// (-DHAVE_CUBLAS -lcublas): a reference for timing, no part of the product. Under the emulator sizes are
// smaller, and the figures are the emulator's own. `sd info --kernels sd15 | bench -` times the products,
// convolutions and attentions of that list instead, each shape once; beside products stands cuBLAS, and
// beside convolutions cuBLAS on a product of the same size.
#include "cuda.h"
#include "cuda/gemm.h"
#ifdef HAVE_CUBLAS
#include <cublas_v2.h>
#endif
extern cudaStream_t stream; // memory.cu

static float milliseconds(int rounds, void (*run)(const void *), const void *with) {
    cudaEvent_t begin, end;
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    run(with); // warm up
    backend.sync();
    cudaEventRecord(begin, stream);
    for (int i = 0; i < rounds; i++) run(with);
    cudaEventRecord(end, stream);
    cudaEventSynchronize(end);
    float ms;
    cudaEventElapsedTime(&ms, begin, end);
    return rounds ? ms / (float)rounds : 0;
}

// One line of `sd info --kernels`: how often, the kernel, its shape.
struct Shape {
    char kernel[32];
    Gemm gemm;
    Conv conv;
    Attention attention;
    Mem y, x, w, v; // room for the largest
};
static void run_shape(const void *with) {
    const Shape &s = *(const Shape *)with;
    Mem absent = {NULL, F32};
    if (!strcmp(s.kernel, "gemm"))
        backend.gemm(s.y, s.x, s.w, absent, absent, s.gemm);
    else if (!strcmp(s.kernel, "conv2d"))
        backend.conv2d(s.y, s.x, s.w, absent, absent, s.conv);
    else
        backend.attention(s.y, NULL, s.x, s.w, s.v, s.attention);
}
static Mem room(size_t count) {
    Mem m = {backend.temp(count * 4), backend.storage};
    backend.fill(m, 0.01f, count);
    return m;
}
#ifdef HAVE_CUBLAS
static void run_cublas(const void *with) {
    const Shape &s = *(const Shape *)with;
    static cublasHandle_t handle;
    if (!handle) cublasCreate(&handle), cublasSetStream(handle, stream);
    cudaDataType_t t = s.x.type == F32 ? CUDA_R_32F : s.x.type == F16 ? CUDA_R_16F : CUDA_R_16BF;
    const Gemm &g = s.gemm;
    float one = 1, zero = 0;
    cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, g.n, g.m, g.k, &one, s.w.at, t, g.k, s.x.at, t, g.k, &zero,
                 s.y.at, t, g.n, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
}
#endif
static void bench_list() {
    char line[300];
    double all_ms = 0, all_flop = 0;
    while (fgets(line, sizeof line, stdin)) {
        Shape s = {};
        long count;
        int at = 0;
        Conv &p = s.conv;
        Gemm &g = s.gemm;
        Attention &a = s.attention;
        size_t mark = backend.mark();
        double flop;
        if (sscanf(line, "%ld %31s %n", &count, s.kernel, &at) != 2) continue;
        // Of a fused kernel the convolution is timed.
        if (!strcmp(s.kernel, "conv2d_normed") || !strcmp(s.kernel, "conv2d_upsampled")) s.kernel[6] = 0;
        if (sscanf(line + at, "m=%d n=%d k=%d", &g.m, &g.n, &g.k) == 3 && !strcmp(s.kernel, "gemm")) {
            g.a_transposed = strstr(line, " a_transposed") != NULL,
            g.b_transposed = strstr(line, " b_transposed") != NULL;
            g.alpha = 1, flop = 2.0 * g.m * g.n * g.k;
            s.y = room((size_t)g.m * g.n), s.x = room((size_t)g.m * g.k), s.w = room((size_t)g.n * g.k);
        } else if (sscanf(line + at,
                          "n=%d h=%d w=%d c=%d oh=%d ow=%d oc=%d kh=%d kw=%d stride=%d top=%d left=%d", &p.n,
                          &p.h, &p.w, &p.c, &p.oh, &p.ow, &p.oc, &p.kh, &p.kw, &p.stride, &p.pad_top,
                          &p.pad_left) == 12 &&
                   !strcmp(s.kernel, "conv2d")) {
            size_t out = (size_t)p.n * p.oh * p.ow * p.oc, taps = (size_t)p.kh * p.kw * p.c;
            flop = 2.0 * (double)out * (double)taps;
            size_t in = (size_t)p.n * p.h * p.w * p.c, product = (size_t)p.n * p.oh * p.ow * taps;
#ifdef HAVE_CUBLAS // wants the matrix that a convolution does without
            in = product > in ? product : in;
#endif
            (void)product;
            g.m = p.n * p.oh * p.ow, g.n = p.oc, g.k = (int)taps;
            s.y = room(out), s.x = room(in), s.w = room(taps * p.oc);
        } else if (sscanf(line + at, "n=%d heads=%d tq=%d tk=%d d=%d", &a.n, &a.heads, &a.tq, &a.tk, &a.d) ==
                       5 &&
                   !strcmp(s.kernel, "attention")) {
            size_t q = (size_t)a.n * a.heads * a.tq * a.d, k = (size_t)a.n * a.heads * a.tk * a.d;
            a.causal = strstr(line, " causal") != NULL, a.scale = 1, flop = 4.0 * (double)q * a.tk;
            s.y = room(q), s.x = room(q), s.w = room(k), s.v = room(k);
        } else
            continue;
#ifdef EMULATE
        int rounds = 0;
#else
        int rounds = 10;
#endif
        float ms = milliseconds(rounds, run_shape, &s);
        line[strcspn(line, "\n")] = 0;
        char beside[40] = "";
#ifdef HAVE_CUBLAS
        if (strcmp(s.kernel, "attention"))
            snprintf(beside, sizeof beside, "cuBLAS %9.1f  ",
                     flop / milliseconds(rounds, run_cublas, &s) * 1e-6);
#endif
        printf("%9.3f ms %9.1f GFLOP/s  %s%s\n", ms, flop / ms * 1e-6, beside, line);
        all_ms += (double)ms * (double)count, all_flop += flop * (double)count;
        backend.release(mark);
    }
    printf("%9.1f ms %9.1f GFLOP/s  in all, each as often as it is called\n", all_ms,
           all_ms > 0 ? all_flop / all_ms * 1e-6 : 0);
}

int main(int argc, char **argv) {
    backend_init(0);
    if (argc > 1 && !strcmp(argv[1], "-")) return bench_list(), 0;
#ifdef EMULATE
    int size = argc > 1 ? atoi(argv[1]) : 256, rounds = 1;
#else
    int size = argc > 1 ? atoi(argv[1]) : 2048, rounds = 20;
#endif
    size_t count = (size_t)size * size;
    double flop = 2.0 * size * size * size;
    Gemm g = {size, size, size, false, true, false, 1};
    Mem absent = {NULL, F32};
    static const char *const steps[] = {"naive", "tiled", "blocked", "tensor"}, *const types[] = {
                                                                                    "f32", "f16", "bf16"};
    printf("%s, %d x %d x %d, B transposed; f32 on tensor cores is TF32\n", backend.name(), size, size, size);
    cudaEvent_t begin, end;
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    for (int type = F32; type <= BF16; type++) {
        Mem a = {backend.alloc(count * 4), (Type)type}, b = {backend.alloc(count * 4), (Type)type},
            c = {backend.alloc(count * 4), F32};
        backend.fill(a, 0.5f, count);
        backend.fill(b, 0.25f, count);
        for (int step = GEMM_NAIVE; step <= GEMM_TENSOR; step++) {
            gemm_step((GemmStep)step, c, a, b, absent, absent, g); // warm up
            backend.sync();
            cudaEventRecord(begin, stream);
            for (int i = 0; i < rounds; i++) gemm_step((GemmStep)step, c, a, b, absent, absent, g);
            cudaEventRecord(end, stream);
            cudaEventSynchronize(end);
            float ms;
            cudaEventElapsedTime(&ms, begin, end);
            printf("%-5s %-8s %10.2f\n", types[type], steps[step], flop * rounds / ms * 1e-6);
        }
#ifdef HAVE_CUBLAS
        cublasHandle_t handle;
        cublasCreate(&handle);
        cublasSetStream(handle, stream);
        cudaDataType_t t = type == F32 ? CUDA_R_32F : type == F16 ? CUDA_R_16F : CUDA_R_16BF;
        float one = 1, zero = 0;
        for (int tf32 = 0; tf32 <= (type == F32); tf32++) {
            cublasComputeType_t compute = tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
            for (int i = -1; i < rounds; i++) { // the first is not counted
                if (i == 0) cudaEventRecord(begin, stream);
                cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, size, size, size, &one, b.at, t, size, a.at, t,
                             size, &zero, c.at, CUDA_R_32F, size, compute, CUBLAS_GEMM_DEFAULT);
            }
            cudaEventRecord(end, stream);
            cudaEventSynchronize(end);
            float ms;
            cudaEventElapsedTime(&ms, begin, end);
            printf("%-5s %-8s %10.2f\n", types[type], tf32 ? "cublas-tf32" : "cublas",
                   flop * rounds / ms * 1e-6);
        }
        cublasDestroy(handle);
#endif
        backend.free(a.at);
        backend.free(b.at);
        backend.free(c.at);
    }
    return 0;
}
