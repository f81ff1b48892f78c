// gemm.h: the matrix product inside the kernels. Convolutions, Winograd and attention are products whose
// operands are packed from elsewhere, or already lie as the innermost loop wants them.
//
//   tile     TM rows x TN columns of C stay in registers while k runs
//   panel    TN columns of B, `depth` rows: depth x TN numbers in a row; the last panel is only as wide as
//            needed, rounded up to W and padded with zeros
//   block    up to DEPTH of k; up to ROWS rows of A and some panels of B, which then lie in the L2 cache
#ifndef GEMM_H
#define GEMM_H

#include "vector.h"

#if defined(__AVX512F__)
enum { TM = 8, TV = 3 }; // 24 of 32 registers hold sums
#elif defined(__AVX2__)
enum { TM = 4, TV = 3 }; // 12 of 16
#else
enum { TM = 4, TV = 2 };
#endif
enum {
    TN = TV * W,
    DEPTH = 256,
    ROWS = 360,             // a multiple of every TM
    A_STRIDE = DEPTH + 16,  // of packed A; not a power of two, or its rows would share one cache set
    A_K_STRIDE = ROWS + 16, // the same where A is packed with k outside
};

// What becomes of the sums: c = alpha sums + before + bias. `before` has c's shape and stride and may be c.
typedef struct {
    float *c;
    long stride;                // of c's and before's rows
    const float *before, *bias; // or NULL
    float alpha;
} Out;

// C (m, n) from A (m, depth) and one block of B (depth, n) in panels. a[i * a_stride + k], or, with k outside,
// a[k * a_stride + i].
#define gemm_block LOCAL(gemm_block)
void gemm_block(int m, int n, int depth, const float *a, long a_stride, bool k_outside, const float *b,
                Out out);

// A whole product, whose operands are fetched by functions.
// PackA: rows i..i+m of A, columns k..k+depth, to rows of A_STRIDE; or, with k outside, to `depth` rows of A_K_STRIDE.
// PackB: one panel: columns j..j+n, rows k..k+depth, to `depth` rows of `width`, the columns beyond n zero.
typedef void PackA(float *to, const void *a, int i, int m, int k, int depth);
typedef void PackB(float *to, const void *b, int k, int depth, int j, int n, int width);
typedef struct {
    int m, n, k;
    PackA *pack_a;
    const void *a;
    bool k_outside;
    PackB *pack_b;
    const void *b;
    Out out;
} Product;
#define gemm_product LOCAL(gemm_product)
void gemm_product(const Product *p);

// Operands that are plain matrices in memory, rows `stride` apart.
typedef struct {
    Mem at;
    size_t stride;
} Matrix;
#define pack_a_rows LOCAL(pack_a_rows)
#define pack_a_columns LOCAL(pack_a_columns)
#define pack_b_rows LOCAL(pack_b_rows)
#define pack_b_columns LOCAL(pack_b_columns)
PackA pack_a_rows;    // A (m, k)
PackA pack_a_columns; // A (k, m), for k_outside
PackB pack_b_rows;    // B (k, n)
PackB pack_b_columns; // B (n, k)

// A block's depth for a sum over k: even shares, at most DEPTH.
INLINE int block_depth(int k) { return min_int(DEPTH, round_up(blocks_of(k, blocks_of(k, DEPTH)), 16)); }

#endif
