// linalg.h: dense linear algebra in float64, on the host: what a Fréchet distance of covariances needs and the
// fp32 kernels of kernels.h cannot give. Matrices are row-major, ld is the distance between two rows.
#ifndef LINALG_H
#define LINALG_H

#include <stdbool.h>
#include <stddef.h>

// C (m, n) += alpha A B^T, with A (m, k) and B (n, k): every number of C is the scalar product of two rows. One
// product serves all that is needed. `lower` computes only what touches the lower triangle of a square C. Each sum
// runs over k in order, whatever the number of threads.
void product_f64(double *c, size_t ldc, const double *a, size_t lda, const double *b, size_t ldb, int m,
                 int n, int k, double alpha, bool lower);

// C = L L^T for a positive semidefinite C (n, n), whose lower triangle is read and destroyed. Returns the rank r and
// writes L^T as r rows of n (room for n rows is needed).
int pivoted_cholesky(double *lt, double *c, int n);

// A (n, n), symmetric, its lower triangle given and destroyed, becomes similar to the tridiagonal matrix with
// diagonal d (n) and off-diagonal e (n - 1).
void tridiagonalise(double *d, double *e, double *a, int n);

// Eigenvalues of that matrix, in place of its diagonal; e (n), of which n - 1 are given, is destroyed.
void tridiagonal_eigenvalues(double *d, double *e, int n);

#endif
