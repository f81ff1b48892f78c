// linalg.c: dense linear algebra in float64. See linalg.h.
#include "linalg.h"
#include "lib/base.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TILE_ROWS = 6, TILE_COLS = 8, BLOCK_ROWS = 48, BLOCK_K = 256, LANES = 8 };

// A FAST function is compiled for three generations of x86 processors, and the program chooses when it
// starts. Its loops over LANES elements become vector instructions of any width; a sum has LANES parts.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__OPTIMIZE__)
#define FAST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FAST
#endif

// out (6, 8) = sum over k of a[k] (6) times b[k] (8), both packed so that k is the outer axis
FAST static void tile(double *out, const double *a, const double *b, int k) {
    double sum[TILE_ROWS][TILE_COLS] = {0};
    for (int i = 0; i < k; i++, a += TILE_ROWS, b += TILE_COLS)
        for (int r = 0; r < TILE_ROWS; r++)
#pragma omp simd
            for (int c = 0; c < TILE_COLS; c++) sum[r][c] += a[r] * b[c];
    memcpy(out, sum, sizeof sum);
}

// to (k, count) = rows from.. and columns k0.. of x (rows, ld), transposed; rows beyond are zero
static void pack(double *to, const double *x, size_t ld, int rows, int from, int count, int k0, int k) {
    for (int r = 0; r < count; r++)
        for (int i = 0; i < k; i++)
            to[i * count + r] = from + r < rows ? x[(size_t)(from + r) * ld + (size_t)(k0 + i)] : 0;
}

void product_f64(double *c, size_t ldc, const double *a, size_t lda, const double *b, size_t ldb, int m,
                 int n, int k, double alpha, int flags) {
    int panels = (n + TILE_COLS - 1) / TILE_COLS;
    double *packed = xmalloc((size_t)panels * TILE_COLS * BLOCK_K * sizeof(double));
    for (int k0 = 0; k0 < k; k0 += BLOCK_K) {
        int kc = k - k0 < BLOCK_K ? k - k0 : BLOCK_K;
#pragma omp parallel
        {
#pragma omp for schedule(static)
            for (int p = 0; p < panels; p++)
                pack(packed + (size_t)p * TILE_COLS * (size_t)kc, b, ldb, n, p * TILE_COLS, TILE_COLS, k0,
                     kc);
#pragma omp for schedule(dynamic)
            for (int i0 = 0; i0 < m; i0 += BLOCK_ROWS) {
                if (flags & A_TRIANGULAR && k0 + kc <= i0) continue;
                double rows[BLOCK_ROWS * BLOCK_K], out[TILE_ROWS * TILE_COLS];
                for (int t = 0; t < BLOCK_ROWS / TILE_ROWS; t++)
                    pack(rows + t * TILE_ROWS * kc, a, lda, m, i0 + t * TILE_ROWS, TILE_ROWS, k0, kc);
                int first = flags & UPPER ? i0 / TILE_COLS : 0, last = panels - 1;
                if (flags & LOWER && last > (i0 + BLOCK_ROWS - 1) / TILE_COLS)
                    last = (i0 + BLOCK_ROWS - 1) / TILE_COLS;
                for (int p = first; p <= last; p++)
                    for (int t = 0; t < BLOCK_ROWS / TILE_ROWS; t++) {
                        tile(out, rows + t * TILE_ROWS * kc, packed + (size_t)p * TILE_COLS * (size_t)kc, kc);
                        int top = i0 + t * TILE_ROWS, left = p * TILE_COLS;
                        for (int i = 0; i < TILE_ROWS && top + i < m; i++)
                            for (int j = 0; j < TILE_COLS && left + j < n; j++)
                                c[(size_t)(top + i) * ldc + (size_t)(left + j)] +=
                                    alpha * out[i * TILE_COLS + j];
                    }
            }
        }
    }
    free(packed);
}

FAST static double squared_distance(const float *x, const float *y, int k) {
    double sum[LANES] = {0}, all = 0;
    for (int i = 0; i + LANES <= k; i += LANES)
#pragma omp simd
        for (int j = 0; j < LANES; j++) {
            double d = (double)x[i + j] - y[i + j];
            sum[j] += d * d;
        }
    for (int j = 0; j < LANES; j++) all += sum[j];
    for (int i = k / LANES * LANES; i < k; i++) all += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
    return all;
}

// In blocks of rows of x: y is read from memory once a block, not once a row.
void squared_distances(double *d, const float *x, const float *y, int m, int n, int k) {
#pragma omp parallel for schedule(dynamic)
    for (int i0 = 0; i0 < m; i0 += TILE_COLS)
        for (int j = 0; j < n; j++)
            for (int i = i0; i < m && i < i0 + TILE_COLS; i++)
                d[(size_t)i * (size_t)n + (size_t)j] =
                    squared_distance(x + (size_t)i * (size_t)k, y + (size_t)j * (size_t)k, k);
}

FAST static double dot(const double *a, const double *b, int n) {
    double sum[LANES] = {0};
    int i = 0;
    for (; i + LANES <= n; i += LANES)
#pragma omp simd
        for (int j = 0; j < LANES; j++) sum[j] += a[i + j] * b[i + j];
    double s = ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
    for (; i < n; i++) s += a[i] * b[i];
    return s;
}

// Four neighbouring rows a (4, n) of the lower triangle, each element loaded once and used twice, the second
// time for the triangle that is not stored: s[r] = a[r] . x, and y += sum over r of t[r] a[r].
FAST static void both_ways(double s[4], double *y, const double *a, size_t ld, const double *x,
                           const double t[4], int n) {
    const double *a1 = a + ld, *a2 = a1 + ld, *a3 = a2 + ld;
    double sum[4][LANES] = {0};
    int i = 0;
    for (; i + LANES <= n; i += LANES)
#pragma omp simd
        for (int j = 0; j < LANES; j++) {
            double r0 = a[i + j], r1 = a1[i + j], r2 = a2[i + j], r3 = a3[i + j], v = x[i + j];
            sum[0][j] += r0 * v, sum[1][j] += r1 * v, sum[2][j] += r2 * v, sum[3][j] += r3 * v;
            y[i + j] += (t[0] * r0 + t[1] * r1) + (t[2] * r2 + t[3] * r3);
        }
    for (int r = 0; r < 4; r++) {
        s[r] = 0;
        for (int j = 0; j < LANES; j++) s[r] += sum[r][j];
    }
    for (; i < n; i++) {
        s[0] += a[i] * x[i], s[1] += a1[i] * x[i], s[2] += a2[i] * x[i], s[3] += a3[i] * x[i];
        y[i] += (t[0] * a[i] + t[1] * a1[i]) + (t[2] * a2[i] + t[3] * a3[i]);
    }
}

FAST static void axpy(double *y, double a, const double *x, int n) {
    for (int i = 0; i < n; i++) y[i] += a * x[i];
}

static void swap(double *a, double *b) {
    double t = *a;
    *a = *b, *b = t;
}

// Swaps rows and columns s and p > s of a symmetric C (n, n), of which only the upper triangle from row s on
// is valid. The diagonal is left as it is.
static void swap_symmetric(double *c, int n, int s, int p) {
    size_t N = (size_t)n, S = (size_t)s, P = (size_t)p;
    for (size_t i = S + 1; i < P; i++) swap(&c[S * N + i], &c[i * N + P]);
    for (size_t i = P + 1; i < N; i++) swap(&c[S * N + i], &c[P * N + i]);
}

// Each step takes the largest variance that is left as its pivot, brings it to the front and subtracts what
// that coordinate explains: from the later rows of the panel at once, from the rest in one product a panel.
// It stops where only rounding is left: n eps of the largest variance.
int pivoted_cholesky(double *lt, int *order, double *c, int n) {
    enum { PANEL = 48 };
    size_t N = (size_t)n;
    double *left = xmalloc(N * sizeof(double)), largest = 0;
    double *rows = xmalloc(N * PANEL * sizeof(double)), *columns = xmalloc(N * PANEL * sizeof(double));
    for (int i = 0; i < n; i++) order[i] = i, left[i] = c[(size_t)i * (N + 1)];
    for (int i = 0; i < n; i++) largest = fmax(largest, left[i]);
    int rank = 0;
    for (int from = 0; rank < n; from = rank) {
        for (; rank < n && rank < from + PANEL; rank++) {
            int p = rank, rest = n - rank;
            for (int i = rank; i < n; i++)
                if (left[i] > left[p]) p = i;
            if (!(left[p] > n * DBL_EPSILON * largest)) break;
            if (p > rank) {
                swap_symmetric(c, n, rank, p);
                swap(&left[rank], &left[p]);
                for (int k = 0; k < rank - from; k++)
                    swap(&rows[(size_t)k * N + (size_t)rank], &rows[(size_t)k * N + (size_t)p]);
                int t = order[rank];
                order[rank] = order[p], order[p] = t;
            }
            double *row = rows + (size_t)(rank - from) * N + rank, root = sqrt(left[rank]);
            memcpy(row, c + (size_t)rank * (N + 1), (size_t)rest * sizeof(double));
            for (int k = 0; k < rank - from; k++) {
                const double *above = rows + (size_t)k * N + rank;
                axpy(row, -*above, above, rest);
            }
            row[0] = root;
            for (int i = 1; i < rest; i++) row[i] /= root, left[rank + i] -= row[i] * row[i];
        }
        // Columns go back to the order of C: that of the coordinates which are still to come may change.
        for (int k = from; k < rank; k++)
            for (int i = 0; i < n; i++)
                lt[(size_t)k * N + (size_t)order[i]] = i < k ? 0 : rows[(size_t)(k - from) * N + (size_t)i];
        if (rank < from + PANEL) break;
        size_t rest = (size_t)(n - rank), R = (size_t)rank;
        for (size_t k = 0; k < PANEL; k++)
            for (size_t i = 0; i < rest; i++) columns[i * PANEL + k] = rows[k * N + R + i];
        product_f64(c + R * (N + 1), N, columns, PANEL, columns, PANEL, (int)rest, (int)rest, PANEL, -1,
                    UPPER);
    }
    for (int k = 0; k < rank; k++) {
        memcpy(rows, lt + (size_t)k * N, N * sizeof(double));
        for (int i = 0; i < n; i++) lt[(size_t)k * N + (size_t)i] = rows[order[i]];
    }
    free(left), free(rows), free(columns);
    return rank;
}

// y = A x for a symmetric A (n, n) of which the lower triangle is given. Rows are dealt out to SLABS partial
// sums, a fixed number, so that the result does not depend on the number of threads.
enum { SLABS = 16 };
static void symmetric_times_vector(double *y, const double *a, size_t ld, const double *x, int n,
                                   double *partial) {
#pragma omp parallel for schedule(dynamic)
    for (int slab = 0; slab < SLABS; slab++) {
        double *sum = partial + (size_t)slab * (size_t)n, s[4];
        memset(sum, 0, (size_t)n * sizeof(double));
        for (int i = 4 * slab; i < n; i += 4 * SLABS) {
            int rows = n - i < 4 ? n - i : 4;
            if (rows == 4) {
                both_ways(s, sum, a + (size_t)i * ld, ld, x, x + i, i);
                for (int r = 0; r < 4; r++) sum[i + r] += s[r];
            }
            for (int r = 0; r < rows; r++)
                for (int k = rows == 4 ? i : 0; k <= i + r; k++) {
                    double element = a[(size_t)(i + r) * ld + (size_t)k];
                    sum[i + r] += element * x[k];
                    if (k < i + r) sum[k] += element * x[i + r];
                }
        }
    }
    memset(y, 0, (size_t)n * sizeof(double));
    for (int slab = 0; slab < SLABS; slab++) axpy(y, 1, partial + (size_t)slab * (size_t)n, n);
}

// Householder's reduction. Step j reflects what lies below the diagonal of column j onto its first entry:
//   A <- H A H = A - v w^T - w v^T
// The reflections of a panel are gathered and applied to the rest in one product, so that each step by itself
// only has to read A once, for A v (Dongarra, Hammarling and Sorensen 1989). The pivots of the Cholesky
// factor have brought the largest variances to the front; from there small eigenvalues stay exact.
void tridiagonalise(double *d, double *e, double *a, int n) {
    enum { PANEL = 32, PAIR = 2 * PANEL };
    size_t N = (size_t)n;
    double *vw = xcalloc(N * PAIR, sizeof(double)); // (n, PAIR): each row v w v w ... of the panel's steps
    double *wv = xcalloc(N * PAIR, sizeof(double)); // the same as w v w v ...
    double *v = xmalloc(N * sizeof(double)), *w = xmalloc(N * sizeof(double));
    double *partial = xmalloc(N * SLABS * sizeof(double));
    for (int from = 0; from < n; from += PANEL) {
        int m = 0; // columns of vw and wv that are filled
        for (int j = from; j < n && j < from + PANEL; j++, m += 2) {
            int below = n - j - 1;
            for (int i = j; i < n; i++)
                v[i] = a[(size_t)i * N + (size_t)j] - dot(vw + (size_t)i * PAIR, wv + (size_t)j * PAIR, m);
            d[j] = v[j];
            if (!below) break;
            double *x = v + j + 1, norm = sqrt(dot(x, x, below));
            e[j] = x[0] > 0 ? -norm : norm;
            double scale = norm * (norm + fabs(x[0])); // H = 1 - x x^T / scale, with x as it is after
            x[0] -= e[j];
            double inverse = scale > 0 ? 1 / scale : 0;
            // w = A x; A is still without the panel's earlier reflections, which the next lines add
            symmetric_times_vector(w + j + 1, a + (size_t)(j + 1) * (N + 1), N, x, below, partial);
            double between[PAIR] = {0};
            for (int i = j + 1; i < n; i++) axpy(between, v[i], wv + (size_t)i * PAIR, m);
            for (int i = j + 1; i < n; i++) w[i] -= dot(vw + (size_t)i * PAIR, between, m);
            double half = inverse * inverse * dot(w + j + 1, x, below) / 2;
            for (int i = j + 1; i < n; i++) {
                w[i] = inverse * w[i] - half * v[i];
                vw[(size_t)i * PAIR + (size_t)m] = wv[(size_t)i * PAIR + (size_t)m + 1] = v[i];
                vw[(size_t)i * PAIR + (size_t)m + 1] = wv[(size_t)i * PAIR + (size_t)m] = w[i];
            }
        }
        int next = from + PANEL, rest = n - next;
        if (rest > 0)
            product_f64(a + (size_t)next * (N + 1), N, vw + (size_t)next * PAIR, PAIR,
                        wv + (size_t)next * PAIR, PAIR, rest, rest, PAIR, -1, LOWER);
    }
    free(vw), free(wv), free(v), free(w), free(partial);
}

// QL steps with Wilkinson's shift. A step rotates every neighbouring pair from the bottom of an unreduced
// block to its top, after which the off-diagonal at the top has shrunk cubically. Without eigenvectors only
// the squares of sines, cosines and off-diagonals occur (Pal, Walker and Kahan; Parlett, "The Symmetric
// Eigenvalue Problem", section 8.15). The shift enters every rotation, so that it is not lost where elements
// differ by twenty orders of magnitude. QL keeps small eigenvalues accurate where the large elements stand
// last, so the result of tridiagonalise() is reversed first.
void tridiagonal_eigenvalues(double *d, double *e, int n) {
    const double eps2 = DBL_EPSILON * DBL_EPSILON;
    double largest = 0;
    for (int i = 0, j = n - 1; i < j; i++, j--) swap(&d[i], &d[j]);
    for (int i = 0, j = n - 2; i < j; i++, j--) swap(&e[i], &e[j]);
    for (int i = 0; i < n; i++) largest = fmax(largest, fabs(d[i]));
    for (int i = 0; i < n - 1; i++) e[i] *= e[i];
    long steps = 0;
    for (int l = 0; l < n; l++)
        for (;; steps++) {
            int m = l; // the block l..m ends where an off-diagonal is negligible
            while (m < n - 1 && !(e[m] <= eps2 * (fabs(d[m] * d[m + 1]) + eps2 * largest * largest))) m++;
            if (m == l) break;
            if (steps > 30L * n) die("the eigenvalues of a covariance did not converge: is it a covariance?");
            double root = sqrt(e[l]), g = (d[l + 1] - d[l]) / (2 * root);
            double shift = d[l] - root / (g + copysign(sqrt(1 + g * g), g));
            double c2 = 1, s2 = 0, gamma = d[m] - shift, p = gamma * gamma; // squares of cosine and sine
            for (int i = m - 1; i >= l; i--) {
                double r = p + e[i], before = gamma, c2_before = c2;
                if (i < m - 1) e[i + 1] = s2 * r;
                c2 = p / r, s2 = e[i] / r;
                gamma = c2 * (d[i] - shift) - s2 * before;
                d[i + 1] = before + (d[i] - gamma);
                p = c2 > 0 ? gamma * gamma / c2 : c2_before * e[i];
            }
            e[l] = s2 * p, d[l] = shift + gamma;
        }
}
