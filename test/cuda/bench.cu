// bench.cu: how fast the steps of the GEMM ladder are, in GFLOP/s, with cuBLAS beside them where it was linked
// (-DHAVE_CUBLAS -lcublas): a peer to be timed against, no part of the product. Under the emulator it measures the
// emulator; sizes are smaller there.
#include "cuda.h"
#include "cuda/gemm.h"
#ifdef HAVE_CUBLAS
#include <cublas_v2.h>
#endif
extern cudaStream_t stream; // memory.cu

int main(int argc, char **argv) {
    backend_init(0);
#ifdef EMULATE
    int size = argc > 1 ? atoi(argv[1]) : 256, rounds = 1;
#else
    int size = argc > 1 ? atoi(argv[1]) : 2048, rounds = 20;
#endif
    size_t count = (size_t)size * size;
    double flop = 2.0 * size * size * size;
    Gemm g = {size, size, size, false, true, false, 1};
    Mem absent = {NULL, F32};
    static const char *const steps[] = {"naive", "tiled", "blocked", "tensor"}, *const types[] = {"f32", "f16", "bf16"};
    printf("%s, %d x %d x %d, B transposed; f32 on tensor cores is TF32\n", backend.name(), size, size, size);
    cudaEvent_t begin, end;
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    for (int type = F32; type <= BF16; type++) {
        Mem a = {backend.alloc(count * 4), (Type)type}, b = {backend.alloc(count * 4), (Type)type}, c = {backend.alloc(count * 4), F32};
        backend.fill(a, 0.5f, count);
        backend.fill(b, 0.25f, count);
        for (int step = GEMM_NAIVE; step <= GEMM_TENSOR; step++) {
            gemm_step((GemmStep)step, c, a, b, absent, absent, g, -1); // warm up
            backend.sync();
            cudaEventRecord(begin, stream);
            for (int i = 0; i < rounds; i++) gemm_step((GemmStep)step, c, a, b, absent, absent, g, -1);
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
                cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, size, size, size, &one, b.at, t, size, a.at, t, size, &zero, c.at,
                             CUDA_R_32F, size, compute, CUBLAS_GEMM_DEFAULT);
            }
            cudaEventRecord(end, stream);
            cudaEventSynchronize(end);
            float ms;
            cudaEventElapsedTime(&ms, begin, end);
            printf("%-5s %-8s %10.2f\n", types[type], tf32 ? "cublas-tf32" : "cublas", flop * rounds / ms * 1e-6);
        }
        cublasDestroy(handle);
#endif
        backend.free(a.at);
        backend.free(b.at);
        backend.free(c.at);
    }
    return 0;
}
