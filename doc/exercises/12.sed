# cuda/gemm.cu: to be written: the definition of the product as a kernel
/gemm_naive(Matrix a/,/^}/ {
/^    int j = /c\
    // to be written. Which element is this thread's? blockIdx.x counts blocks of rows, blockIdx.y of columns; in a block\
    // threadIdx.y counts rows and threadIdx.x columns. a(i, p) and b(p, j) are the operands, out(i, j, sum) stores.
/^    if (i >= m/d
/^    float sum/d
/^    for (/d
/^    out(/d
}
