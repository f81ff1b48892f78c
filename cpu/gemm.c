// gemm.c: the matrix product C = alpha A B, in four steps from the definition to the fast one.
//
//   1 naive     three loops, straight from memory
//   2 blocked   a tile of C stays in registers while k runs
//   3 packed    the operands are copied to where the innermost loop wants them
//   4 fast      the same for each instruction set, ragged edges, several threads, and operands that are
//               fetched by a function: convolutions and attention are products, too
//
// All compute the same, but they add in different orders; and where PAIRS (vector.h), step 4 rounds the
// operands to bf16. backend.gemm is step 4. SD_GEMM=naive|blocked|packed in the environment asks for another
// one, to compare.
#include "vector.h"

#include <limits.h>

// ---- steps 1 to 3 -----------------------------------------------------------------------------------------

// What becomes of the sums: c = alpha sums + before + bias. `before` has c's shape and stride and may be c.
typedef struct {
    float *c;
    long stride;                // of c's and before's rows
    const float *before, *bias; // or NULL
    float alpha;
} Out;

// The same from row i and column j on.
INLINE Out out_from(Out o, int i, int j) {
    long at = i * o.stride + j;
    o.c += at;
    if (o.before) o.before += at;
    if (o.bias) o.bias += j;
    return o;
}

// Here A (m, k) and B (k, n) are fp32, transposed or not: element (i, j) lies at at[i * row + j * col].
typedef struct {
    const float *at;
    size_t row, col;
} Strided;
INLINE float element(Strided x, int i, int j) { return x.at[(size_t)i * x.row + (size_t)j * x.col]; }

static void put_sum(Out o, int i, int j, float sum) {
    long at = i * o.stride + j;
    o.c[at] = o.alpha * sum + (o.before ? o.before[at] : 0) + (o.bias ? o.bias[j] : 0);
}

// [K1] 1. The definition. For each multiplication it reads two elements, most of them from far away: a column
// of B touches a new cache line for every element.
static void gemm_naive(int m, int n, int k, Strided a, Strided b, Out out) {
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            float sum = 0;
            for (int p = 0; p < k; p++) sum += element(a, i, p) * element(b, p, j);
            put_sum(out, i, j, sum);
        }
}

// [K2] 2. What it fixes: a tile of 4 x 16 sums stays in registers, so 4 + 16 reads serve 64 multiplications.
// Along an edge the tile stands out over C; it then reads the last row or column again, and those sums are
// not stored. What is left: where a row of the tile is none of memory, its 16 elements are read one by one.
enum { STEP_ROWS = 4, STEP_COLS = 16 };
static void gemm_blocked(int m, int n, int k, Strided a, Strided b, Out out) {
    for (int i0 = 0; i0 < m; i0 += STEP_ROWS)
        for (int j0 = 0; j0 < n; j0 += STEP_COLS) {
            float sum[STEP_ROWS][STEP_COLS] = {0};
            for (int p = 0; p < k; p++)
                for (int i = 0; i < STEP_ROWS; i++) {
                    float x = element(a, min_int(i0 + i, m - 1), p);
                    for (int j = 0; j < STEP_COLS; j++)
                        sum[i][j] += x * element(b, p, min_int(j0 + j, n - 1));
                }
            for (int i = 0; i < min_int(STEP_ROWS, m - i0); i++)
                for (int j = 0; j < min_int(STEP_COLS, n - j0); j++) put_sum(out, i0 + i, j0 + j, sum[i][j]);
        }
}

// [K3] 3. What it fixes: 16 columns of B are copied once, in the order in which the tile reads them, and so
// are 4 rows of A. Then the innermost loop reads memory from front to back and multiplies whole vectors. At
// most STEP_DEPTH of k is packed at a time, so that both copies stay in the cache; what earlier parts of k
// gave is added. What is left: one thread; 16 sums in flight where the instruction set has registers for
// more; B packed anew in every call.
enum { STEP_DEPTH = 256, STEP_VECTORS = STEP_COLS / W };
static void gemm_packed(int m, int n, int k, Strided a, Strided b, Out out) {
    float a_tile[STEP_DEPTH][STEP_ROWS], b_panel[STEP_DEPTH][STEP_COLS];
    for (int p0 = 0; p0 < k; p0 += STEP_DEPTH) {
        int depth = min_int(STEP_DEPTH, k - p0);
        for (int j0 = 0; j0 < n; j0 += STEP_COLS) {
            for (int p = 0; p < depth; p++)
                for (int j = 0; j < STEP_COLS; j++)
                    b_panel[p][j] = element(b, p0 + p, min_int(j0 + j, n - 1));
            for (int i0 = 0; i0 < m; i0 += STEP_ROWS) {
                for (int i = 0; i < STEP_ROWS; i++)
                    for (int p = 0; p < depth; p++) a_tile[p][i] = element(a, min_int(i0 + i, m - 1), p0 + p);
                vec sum[STEP_ROWS][STEP_VECTORS] = {0};
                for (int p = 0; p < depth; p++)
                    UNROLL for (int i = 0; i < STEP_ROWS; i++) UNROLL for (int v = 0; v < STEP_VECTORS; v++)
                        sum[i][v] += a_tile[p][i] * load(&b_panel[p][v * W]);
                for (int i = 0; i < min_int(STEP_ROWS, m - i0); i++)
                    for (int j = 0; j < min_int(STEP_COLS, n - j0); j++)
                        put_sum(out, i0 + i, j0 + j, sum[i][j / W][j % W]);
            }
        }
        out.before = out.c, out.bias = NULL;
    }
}

// ---- step 4: its sizes ------------------------------------------------------------------------------------

// The order of loops, from the outside: tasks (rows x columns of C, shared among threads), blocks of k,
// panels of B, tiles. A task packs its block of A; B is packed by the task too where few tasks would use it,
// else once for all. Every element of C is one chain of multiply-adds over k, whatever the tasks.

#if defined(__AVX512F__)
enum { TM = 8, TV = 3 }; // 24 of 32 registers hold sums
#elif defined(__AVX2__)
enum { TM = 4, TV = 3 }; // 12 of 16
#else
enum { TM = 4, TV = 2 };
#endif
enum {
    TN = TV * W,
    DEPTH = TILES     ? 1280
            : TM == 8 ? 320
                      : 256,     // of k; for tiles, putting sums away takes longer than many products
    ROWS = TILES ? 256 : 360,    // a multiple of every BLOCK
    BLOCK = TILES ? 32 : TM,     // rows that are multiplied at once
    TILE_PAIRS = TILES ? 16 : 1, // pairs along k that are multiplied at once
    A_STRIDE = DEPTH + 16,       // of packed A; not a power of two, or its rows would share one cache set
    A_K_STRIDE = ROWS + 16,      // the same where A is packed with k outside
    PACKED_A = (ROWS + BLOCK) * A_STRIDE,
};
_Static_assert(PACKED_A >= DEPTH * A_K_STRIDE, "room for a block of A either way round");

// What is packed next. Each tile calls for a row of it, so that the second cache has it in time.
typedef struct {
    const char *at;
    size_t stride, bytes; // from row to row; of a row
    int rows;
} Ahead;

// Pictures of w x h pixels that lie with a border, in `lines` lines of `line` pixels each.
typedef struct {
    int w, h, line, lines;
} Bordered;
// The number, without the border, of the x-th pixel of such a line.
INLINE int pixel_of(const Bordered *g, int line, int x) {
    return (line / g->lines * g->h + line % g->lines) * g->w + x;
}

// Rows of A, or of a part of it.
typedef struct {
    const float *at;
    long stride;
    bool k_outside;     // element (i, k) is at[k stride + i] instead of at[i stride + k]
    bool far;           // not in a cache yet
    bool pairs;         // element k is the pair of elements 2 k and 2 k + 1, in bf16; so are those of B
    int first;          // how many rows of the block come before these
    const Ahead *ahead; // or NULL
    // For tiles:
    const int *offsets;     // or NULL: where each 16 pairs of a row lie, from where the row begins
    const Bordered *border; // or NULL: rows are pixels, from number `pixel` on; C is without the border
    int pixel;
} Rows;
INLINE Rows rows_at(const float *at, long stride) { return (Rows){.at = at, .stride = stride}; }
INLINE Rows columns_at(const float *at, long stride) {
    return (Rows){.at = at, .stride = stride, .k_outside = true};
}
INLINE Rows rows_from(Rows a, int i) {
    a.at += a.k_outside ? i : i * a.stride;
    a.first += i;
    a.pixel += i;
    return a;
}

// A whole product, whose operands are fetched by functions.
// PackA: rows i..i+m of A, columns k..k+depth, which `uses` panels of B want: copied to rows of A_STRIDE or
// (k outside) of A_K_STRIDE, or where they are. Rows beyond m may be read, up to a multiple of TM.
// PackB: columns j..j+n, rows k..k+depth of B, to `depth` rows of `width`, the columns beyond n zero.
typedef Rows PackA(float *to, const void *a, int i, int m, int k, int depth, int uses);
typedef void PackB(float *to, const void *b, int k, int depth, int j, int n, int width);
typedef struct {
    int m, n, k;
    PackA *pack_a;
    const void *a;
    PackB *pack_b;
    const void *b;
    Out out;
    const float *packed; // or NULL: all of B, as pack_all() has left it
} Product;

// Operands that are plain matrices in memory, rows `stride` apart.
typedef struct {
    Mem at;
    size_t stride;
} Matrix;

// Panel p of n columns begins here (that after the last: at n). All are TN wide but the last; where that one
// would be a single vector, which keeps too few sums in flight, the one before it gives it a vector.
INLINE int panel_at(int n, int p) {
    int last = blocks_of(n, TN) - 1;
    return p > last ? n : p * TN - (p && p == last && n - p * TN <= W ? W : 0);
}

// A block's depth for a sum over k: even parts, at most DEPTH.
INLINE int block_depth(int k) {
    return min_int(DEPTH, round_up(blocks_of(k, blocks_of(k, DEPTH)), 16 * (TILES ? 2 : 1)));
}

// ---- the tile ---------------------------------------------------------------------------------------------

// [K4] `rows` and `vectors` are constants at each place it is expanded, so that all sums stay in registers.
// A's elements are read one by one and multiplied with whole vectors of B. m rows, perhaps more than the
// tile's, and n <= vectors * W columns are left: A's missing rows are read (its buffer is long enough) and
// not stored. Rows that are far are called for one tile ahead, and a row of what is packed next.
INLINE void tile(const int rows, const int vectors, const bool k_outside, const bool pairs, int depth, Rows r,
                 const float *b, int m, int n, Out out) {
    const float *a = r.at;
    const long a_stride = r.stride;
    for (int i = rows; r.far && i < min_int(2 * rows, m); i++)
        for (int k = 0; k < depth; k += 16) __builtin_prefetch(a + i * a_stride + k);
    if (r.ahead && r.first / TM < r.ahead->rows)
        for (size_t i = 0; i < r.ahead->bytes; i += 64)
            __builtin_prefetch(r.ahead->at + (size_t)(r.first / TM) * r.ahead->stride + i, 0, 2);
    vec sum[2 * TM][TV];
    UNROLL for (int i = 0; i < rows; i++) {
        if (i < m) // C on its way to the nearest cache while k runs
            for (int j = 0; j < vectors * W; j += 16) __builtin_prefetch(out.c + i * out.stride + j, 1);
        UNROLL for (int j = 0; j < vectors; j++) sum[i][j] = all(0);
    }
    UNROLL_BY_4 for (int k = 0; k < depth; k++) {
        vec bv[TV];
        UNROLL for (int j = 0; j < vectors; j++) bv[j] = load(b + j * W);
        UNROLL for (int i = 0; i < rows; i++) {
            const float *x = k_outside ? a + i : a + i * a_stride;
            UNROLL for (int j = 0; j < vectors; j++) sum[i][j] =
                pairs ? add_products(x, bv[j], sum[i][j]) : sum[i][j] + *x * bv[j];
        }
        b += vectors * W;
        a += k_outside ? a_stride : 1;
    }
    if (n == vectors * W) {
        UNROLL for (int i = 0; i < rows; i++) {
            if (i >= m) continue;
            UNROLL for (int j = 0; j < vectors; j++) {
                vec v = out.alpha * sum[i][j];
                if (out.before) v += load(out.before + i * out.stride + j * W);
                if (out.bias) v += load(out.bias + j * W);
                store(out.c + i * out.stride + j * W, v);
            }
        }
        return;
    }
    UNROLL for (int i = 0; i < rows; i++) { // the last vector is not whole
        if (i >= m) continue;
        UNROLL for (int j = 0; j < vectors; j++) {
            int lanes = n - j * W;
            vec v = out.alpha * sum[i][j];
            if (out.before) v += load_part(out.before + i * out.stride + j * W, lanes);
            if (out.bias) v += load_part(out.bias + j * W, lanes);
            store_part(out.c + i * out.stride + j * W, v, lanes);
        }
    }
}

// The sizes it is compiled for: TM rows, two thirds, one third (pairs: TM alone); 1..TV vectors; A either way
// round. Each takes all rows of a panel, tile by tile. One vector alone keeps too few sums in flight: it
// takes two tiles at once.
enum { SOME = (TM + 2) / 3, MORE = (2 * TM + 2) / 3 };
typedef void Panel(int depth, Rows a, const float *b, int m, int n, Out out);
#define TILE(name, rows, vectors, k_outside, pairs)                                                          \
    static __attribute__((noinline)) void name(int depth, Rows a, const float *b, int m, int n, Out out) {   \
        int i = 0;                                                                                           \
        for (; vectors == 1 && i + 2 * rows <= m; i += 2 * rows)                                             \
            tile(2 * rows, vectors, k_outside, pairs, depth, rows_from(a, i), b, m - i, n,                   \
                 out_from(out, i, 0));                                                                       \
        for (; i < m; i += rows)                                                                             \
            tile(rows, vectors, k_outside, pairs, depth, rows_from(a, i), b, m - i, n, out_from(out, i, 0)); \
    }
#define SIZES(v) /* of v vectors */                                                                          \
    TILE(rows_some_##v, SOME, v, false, false)                                                               \
    TILE(rows_more_##v, MORE, v, false, false)                                                               \
    TILE(rows_all_##v, TM, v, false, false)                                                                  \
    TILE(outside_some_##v, SOME, v, true, false)                                                             \
    TILE(outside_more_##v, MORE, v, true, false)                                                             \
    TILE(outside_all_##v, TM, v, true, false)
#define SIZES_OF(v)                                                                                          \
    {                                                                                                        \
        {rows_some_##v, rows_more_##v, rows_all_##v}, {                                                      \
            outside_some_##v, outside_more_##v, outside_all_##v                                              \
        }                                                                                                    \
    }
SIZES(1)
SIZES(2)
#if defined(__AVX2__)
SIZES(3)
#endif
static Panel *const panels[TV][2][3] = {SIZES_OF(1), SIZES_OF(2),
#if defined(__AVX2__)
                                        SIZES_OF(3)
#endif
};

#define PAIRS_OF(v)                                                                                          \
    TILE(pairs_##v, TM, v, false, true)                                                                      \
    TILE(pairs_outside_##v, TM, v, true, true)
PAIRS_OF(1)
PAIRS_OF(2)
#if defined(__AVX2__)
PAIRS_OF(3)
#endif
static Panel *const pair_panels[TV][2] = {{pairs_1, pairs_outside_1},
                                          {pairs_2, pairs_outside_2},
#if defined(__AVX2__)
                                          {pairs_3, pairs_outside_3}
#endif
};

// The same by tiles: in tiles.c.
static void tile_panels(int m, int n, int steps, Rows a, const float *b, Out out);

static void gemm_block(int m, int n, int depth, Rows a, const float *b, Out out) {
    if (TILES && a.pairs) {
        tile_panels(m, n, depth / TILE_PAIRS, a, b, out);
        return;
    }
    int whole = m / TM * TM, rest = m - whole, size = rest <= SOME ? 0 : rest <= MORE ? 1 : 2;
    for (int p = 0; p < blocks_of(n, TN); p++) { // a panel stays in the nearest caches while A's rows pass
        int j = panel_at(n, p), width = panel_at(n, p + 1) - j;
        const float *bp = b + (long)j * depth;
        if (PAIRS && a.pairs) {
            pair_panels[blocks_of(width, W) - 1][a.k_outside](depth, a, bp, m, width, out_from(out, 0, j));
            continue;
        }
        Panel *const *of = panels[blocks_of(width, W) - 1][a.k_outside];
        if (whole) of[2](depth, a, bp, whole, width, out_from(out, 0, j));
        if (rest) of[size](depth, rows_from(a, whole), bp, rest, width, out_from(out, whole, j));
    }
}

// ---- packing ----------------------------------------------------------------------------------------------

static const void *at(const Matrix *m, int row, int column) {
    return from(m->at, (size_t)row * m->stride + (size_t)column).at;
}

// Rows are read where they are if they lie near each other or few panels want them, and if tiles are whole.
static bool in_place(const Matrix *x, int m, int uses) {
    return !PAIRS && x->at.type == F32 && m % TM == 0 && (x->stride <= A_STRIDE || uses <= 4);
}
static Rows pack_a_rows(float *to, const void *a, int i, int m, int k, int depth, int uses) {
    const Matrix *x = a;
    if (in_place(x, m, uses)) return (Rows){.at = at(x, i, k), .stride = (long)x->stride, .far = true};
    for (int r = 0; r < m; r++) convert_floats(to + r * A_STRIDE, at(x, i + r, k), x->at.type, depth);
    return rows_at(to, A_STRIDE);
}

static Rows pack_a_columns(float *to, const void *a, int i, int m, int k, int depth, int uses) {
    const Matrix *x = a;
    if (in_place(x, m, uses)) return columns_at(at(x, k, i), (long)x->stride);
    for (int r = 0; r < depth; r++) convert_floats(to + r * A_K_STRIDE, at(x, k + r, i), x->at.type, m);
    return columns_at(to, A_K_STRIDE);
}

static void pack_b_rows(float *to, const void *b, int k, int depth, int j, int n, int width) {
    const Matrix *x = b;
    for (int r = 0; r < depth; r++, to += width) {
        convert_floats(to, at(x, k + r, j), x->at.type, n);
        if (n < width) zero_floats(to + n, width - n);
    }
}

// [K5] Linear weights lie as (n, k), so a panel is made of W x W blocks transposed in registers.
INLINE void transpose_panel(float *to, const Matrix *x, const Type type, int k, int depth, int j, int n,
                            int width) {
    for (int column = 0; column < width; column += W)
        for (int row = 0; row < depth; row += W) {
            vec r[W];
            int count = min_int(W, depth - row);
            if (count == W && column + W <= n) {
                UNROLL for (int i = 0; i < W; i++) r[i] = load_as(at(x, j + column + i, k + row), type);
            } else {
                for (int i = 0; i < W; i++)
                    r[i] =
                        column + i < n ? load_part_as(at(x, j + column + i, k + row), type, count) : all(0);
            }
            transpose(r);
            for (int i = 0; i < count; i++) store(to + (row + i) * width + column, r[i]);
        }
}
static void pack_b_columns(float *to, const void *b, int k, int depth, int j, int n, int width) {
    const Matrix *x = b;
    if (x->at.type == F32)
        transpose_panel(to, x, F32, k, depth, j, n, width);
    else if (x->at.type == F16)
        transpose_panel(to, x, F16, k, depth, j, n, width);
    else
        transpose_panel(to, x, BF16, k, depth, j, n, width);
}

// ---- packing pairs ----------------------------------------------------------------------------------------

// The lanes that so many elements along k take; A as what its rows hold.
INLINE int lanes_of(int depth) { return PAIRS ? round_up(blocks_of(depth, 2), TILE_PAIRS) : depth; }
INLINE Rows with_pairs(Rows a) {
    a.pairs = PAIRS;
    return a;
}

// Of rows 2 k and 2 k + 1 of `width` elements, which become row k of `to`; that may be x. The rows up to
// lanes_of(depth) are zero.
static void join_rows(float *to, const float *x, int depth, long stride, int width) {
    for (int k = 0; k < depth; k += 2)
        for (int j = 0; j < width; j += W) {
            const float *at = x + k * stride + j;
            int n = min_int(W, width - j);
            vec second = k + 1 < depth ? load_part(at + stride, n) : all(0);
            store_part(to + k / 2 * stride + j, join_lanes(load_part(at, n), second), n);
        }
    for (int k = blocks_of(depth, 2); k < lanes_of(depth); k++) zero_floats(to + k * stride, width);
}

// The pairs of elements i and i + 1 of a row, W of them; of the row's `left` elements there are no more.
INLINE vec load_pairs(const void *p, const Type type, int left) {
    const char *second = (const char *)p + W * size_of(type);
    vec pairs = all(0);
    if (left >= 2 * W && type == BF16)
        memcpy(&pairs, p, sizeof pairs);
    else if (left >= 2 * W)
        pairs = join_neighbours(load_as(p, type), load_as(second, type));
    else if (left > 0)
        pairs = join_neighbours(load_part_as(p, type, min_int(left, W)),
                                left > W ? load_part_as(second, type, left - W) : all(0));
    return pairs;
}
// A row of `depth` elements as lanes_of(depth) pairs. `to` may be x.
static void pair_row(float *to, const void *x, Type type, int depth) {
    int lanes = lanes_of(depth);
    for (int k = 0; k < lanes; k += W) {
        const char *at = (const char *)x + (size_t)k * 2 * size_of(type);
        int left = depth - 2 * k;
        vec pairs = type == F32   ? load_pairs(at, F32, left)
                    : type == F16 ? load_pairs(at, F16, left)
                                  : load_pairs(at, BF16, left);
        store_part(to + k, pairs, min_int(lanes - k, W));
    }
}

// pack_b_columns() of pairs.
INLINE void transpose_pairs(float *to, const Matrix *x, const Type type, int k, int depth, int j, int n,
                            int width) {
    for (int column = 0; column < width; column += W)
        for (int lane = 0; lane < lanes_of(depth); lane += W) {
            vec r[W];
            UNROLL for (int i = 0; i < W; i++) r[i] =
                column + i < n ? load_pairs(at(x, j + column + i, k + 2 * lane), type, depth - 2 * lane)
                               : all(0);
            transpose(r);
            for (int i = 0; i < min_int(W, lanes_of(depth) - lane); i++)
                store(to + (lane + i) * width + column, r[i]);
        }
}
static void pack_b_pairs(float *to, const Matrix *x, int k, int depth, int j, int n, int width) {
    if (x->at.type == F32)
        transpose_pairs(to, x, F32, k, depth, j, n, width);
    else if (x->at.type == F16)
        transpose_pairs(to, x, F16, k, depth, j, n, width);
    else
        transpose_pairs(to, x, BF16, k, depth, j, n, width);
}

// ---- the driver -------------------------------------------------------------------------------------------

static void pack_panel(float *to, const Product *p, int k, int depth, int panel) {
    int j = panel_at(p->n, panel), n = panel_at(p->n, panel + 1) - j, width = round_up(n, W);
    if (!PAIRS) {
        p->pack_b(to, p->b, k, depth, j, n, width);
    } else if (p->pack_b == pack_b_columns) {
        pack_b_pairs(to, p->b, k, depth, j, n, width);
    } else {
        float *rows = scratch(S_TILE, (size_t)depth * (size_t)width);
        p->pack_b(rows, p->b, k, depth, j, n, width);
        join_rows(to, rows, depth, width, width);
    }
}

static Rows pack_rows(float *to, const Product *p, int i, int m, int k, int depth, int uses) {
    if (!PAIRS) return p->pack_a(to, p->a, i, m, k, depth, uses);
    Rows a = rows_at(to, lanes_of(depth) + 16);
    if (p->pack_a == pack_a_rows) {
        const Matrix *x = p->a;
        for (int r = 0; r < m; r++) pair_row(to + r * a.stride, at(x, i + r, k), x->at.type, depth);
    } else if (TILES && p->pack_a == pack_a_columns) { // element by element; sampling does not need it
        const Matrix *x = p->a;
        a.stride = A_STRIDE;
        for (int r = 0; r < m; r++) {
            float *row = to + r * A_STRIDE;
            for (int d = 0; d < depth; d++) convert_floats(row + d, at(x, k + d, i + r), x->at.type, 1);
            pair_row(row, row, F32, depth);
        }
    } else {
        a = p->pack_a(to, p->a, i, m, k, depth, uses);
        if (a.k_outside) join_rows(to, to, depth, a.stride, m);
        for (int r = 0; r < m && !a.k_outside && !a.offsets; r++)
            pair_row(to + r * a.stride, to + r * a.stride, F32, depth);
    }
    return with_pairs(a);
}

// Where B is weights: what will be packed of them for this panel from row k of B on. Beyond the last,
// nothing.
static Ahead ahead_of(const Product *p, int k, int depth, int panel) {
    if (p->pack_b != pack_b_columns || k >= p->k) return (Ahead){0};
    const Matrix *x = p->b;
    int j = panel_at(p->n, panel);
    size_t bytes = size_of(x->at.type);
    return (Ahead){at(x, j, k), x->stride * bytes, (size_t)min_int(depth, p->k - k) * bytes,
                   panel_at(p->n, panel + 1) - j};
}

// All of B, packed: for each block of k its panels. Where the one begins that begins with column j, of the
// block from row k on.
static size_t packed_at(const Product *p, int k, int depth, int j) {
    return (size_t)(PAIRS ? k / 2 : k) * (size_t)round_up(p->n, W) + (size_t)j * (size_t)lanes_of(depth);
}
static float *pack_all(const Product *p) {
    int most = block_depth(p->k), n_panels = blocks_of(p->n, TN);
    float *to = scratch(S_SHARED_B, (size_t)lanes_of(p->k) * (size_t)round_up(p->n, W));
    PARALLEL_FOR((double)p->n * p->k > WORTH_A_THREAD)
    for (int t = 0; t < blocks_of(p->k, most) * n_panels; t++) {
        int k = t / n_panels * most, depth = min_int(most, p->k - k), panel = t % n_panels;
        pack_panel(to + packed_at(p, k, depth, panel_at(p->n, panel)), p, k, depth, panel);
    }
    return to;
}

// Such a panel of n columns, at `b`, that m rows want next: each tile calls for its share; AMX's do not.
static Ahead ahead_packed(const float *b, int depth, int n, int m) {
    size_t bytes = (size_t)lanes_of(depth) * (size_t)round_up(n, W) * sizeof *b;
    int calls = blocks_of(m, TM);
    size_t share = (bytes / (size_t)calls + 63) / 64 * 64;
    return (Ahead){(const char *)b, share, share, TILES ? 0 : (int)(bytes / share)};
}

// [K6] Step 4 as a whole: rows and columns of C become tasks, and each packs and multiplies block by block.
// B is packed once for all where at least three blocks of rows want it, else panel by panel on the way.
static void gemm_product(const Product *p) {
    if (p->m <= 0 || p->n <= 0) return;
    int threads = (double)p->m * p->n * p->k < 2e5 ? 1 : cpu_threads();
    int most = block_depth(p->k), n_panels = blocks_of(p->n, TN);
    int row_blocks = blocks_of(p->m, ROWS), tasks = threads == 1 ? 1 : 2 * threads;

    const float *shared = p->packed;
    if (!shared && row_blocks > 2) shared = pack_all(p);

    if (row_blocks > threads) row_blocks = round_up(row_blocks, threads); // no thread waits for a last block
    if (row_blocks * n_panels < tasks)                                    // narrow
        row_blocks = min_int(blocks_of(tasks, n_panels), blocks_of(p->m, BLOCK));
    int rows = round_up(blocks_of(p->m, row_blocks), BLOCK);
    row_blocks = blocks_of(p->m, rows);
    // Panels of a task: as many as make `tasks`, or up to twice as many where the threads then end together.
    int least = blocks_of(n_panels, blocks_of(tasks, row_blocks)), width = least, longest = INT_MAX;
    for (int w = least; w <= 2 * least && w <= n_panels; w++) {
        int share = w * blocks_of(row_blocks * blocks_of(n_panels, w), threads);
        if (share < longest) longest = share, width = w;
    }
    int column_blocks = blocks_of(n_panels, width);
    PARALLEL_FOR(threads > 1)
    for (int t = 0; t < row_blocks * column_blocks; t++) {
        int i = t / column_blocks * rows, m = min_int(rows, p->m - i);
        int first = t % column_blocks * width, end = min_int(first + width, n_panels);
        float *a_block = scratch(S_A, PACKED_A);
        float *own = shared ? NULL : scratch(S_B, DEPTH * TN);
        for (int k = 0; k < p->k; k += most) {
            int depth = min_int(most, p->k - k);
            Rows a = pack_rows(a_block, p, i, m, k, depth, end - first);
            for (int panel = first, next; panel < end; panel = next) {
                // AMX takes all panels at once. (Of two vectors the last ones might be cut anew.)
                next = TILES && TV > 2 && shared ? end : panel + 1;
                int j = panel_at(p->n, panel), n = panel_at(p->n, next) - j;
                const float *b = own;
                Ahead ahead = {0};
                if (own) {
                    pack_panel(own, p, k, depth, panel);
                    ahead = next < end ? ahead_of(p, k, depth, next) : ahead_of(p, k + most, most, first);
                } else {
                    b = shared + packed_at(p, k, depth, j);
                    if (next < end) {
                        int after = panel_at(p->n, next), columns = panel_at(p->n, next + 1) - after;
                        ahead = ahead_packed(shared + packed_at(p, k, depth, after), depth, columns, m);
                    }
                }
                a.ahead = &ahead;
                Out o = out_from(p->out, a.border ? 0 : i, j);
                if (k) o.before = o.c, o.bias = NULL; // what the blocks before this one left
                gemm_block(m, n, lanes_of(depth), a, b, o);
                a.far = false;
            }
        }
    }
}

// ---- the kernel -------------------------------------------------------------------------------------------

static void gemm(Mem c, Mem a, Mem b, Mem bias, Mem residual, Gemm g) {
    if (c.type != F32) die("gemm: the result must be fp32");
    if (g.add && residual.at) { // two things to add: the first goes into C beforehand
        combine(c, 1, residual, 0, (Mem){0}, 1, (size_t)g.m * (size_t)g.n);
        residual = (Mem){0};
    }
    Out out = {c.at, g.n, g.add ? c.at : residual.at, as_floats(bias, g.n, S_BIAS), g.alpha};
    static void (*const steps[])(int, int, int, Strided, Strided, Out) = {gemm_naive, gemm_blocked,
                                                                          gemm_packed};
    if (cpu_gemm_step() != GEMM_FAST) {
        const float *as = as_floats(a, g.m * g.k, S_A), *bs = as_floats(b, g.k * g.n, S_B);
        steps[cpu_gemm_step()](
            g.m, g.n, g.k, g.a_transposed ? (Strided){as, 1, (size_t)g.m} : (Strided){as, (size_t)g.k, 1},
            g.b_transposed ? (Strided){bs, 1, (size_t)g.k} : (Strided){bs, (size_t)g.n, 1}, out);
        return;
    }
    Matrix am = {a, (size_t)(g.a_transposed ? g.m : g.k)}, bm = {b, (size_t)(g.b_transposed ? g.k : g.n)};
    gemm_product(&(Product){
        .m = g.m,
        .n = g.n,
        .k = g.k,
        .pack_a = g.a_transposed ? pack_a_columns : pack_a_rows,
        .a = &am,
        .pack_b = g.b_transposed ? pack_b_columns : pack_b_rows,
        .b = &bm,
        .out = out,
    });
}
