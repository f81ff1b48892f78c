# A thread an element. Blocks at the edge reach beyond the matrix, so threads without an element leave. j goes with threadIdx.x:
# neighbouring threads then read neighbouring columns of B and write neighbouring elements.
/gemm_naive(Matrix a/,/^}/ {
/threadIdx.y counts rows/d
/^    \/\/ to be written/c\
    int j = blockIdx.y * blockDim.x + threadIdx.x, i = blockIdx.x * blockDim.y + threadIdx.y;\
    if (i >= m || j >= n) return;\
    float sum = 0;\
    for (int p = 0; p < k; p++) sum += a(i, p) * b(p, j);\
    out(i, j, sum);
}
