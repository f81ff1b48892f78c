// linalg.h: dense linear algebra in float64, on the host: what a Fréchet distance of covariances needs and
// the fp32 kernels of kernels.h cannot give. Matrices are row-major, ld is the distance between two rows.
#ifndef LINALG_H
#define LINALG_H

#include <stdbool.h>
#include <stddef.h>

// C (m, n) += alpha A B^T, with A (m, k) and B (n, k): every element of C gets the scalar product of two
// rows. The result does not depend on the number of threads.
enum {
    LOWER = 1, // only the lower triangle of a square C is wanted; of the rest just the edge is computed
    UPPER = 2, // only the upper triangle
    A_TRIANGULAR = 4, // row i of A is zero before column i; most of these zeros are skipped
};
void product_f64(double *c, size_t ldc, const double *a, size_t lda, const double *b, size_t ldb, int m,
                 int n, int k, double alpha, int flags);

// d (m, n): the squared distance of each row of x (m, k) from each row of y (n, k). That of equal rows is 0.
void squared_distances(double *d, const float *x, const float *y, int m, int n, int k);

// C = L L^T for a positive semidefinite C (n, n), whose upper triangle is read and destroyed. Its rows and
// columns are put into another order first: row i of the new order is row order[i] of the old. Returns the
// rank r and writes L^T as r rows of n, row i zero before column i (room for n rows is needed).
int pivoted_cholesky(double *lt, int *order, double *c, int n);

// A (n, n), symmetric, its lower triangle given and destroyed, becomes similar to the tridiagonal matrix with
// diagonal d (n) and off-diagonal e (n - 1).
void tridiagonalise(double *d, double *e, double *a, int n);

// Eigenvalues of that matrix, in place of its diagonal; e (n), of which n - 1 are given, is destroyed.
void tridiagonal_eigenvalues(double *d, double *e, int n);

#endif
