// attention.c: softmax(scale q k^T) v in one pass over the keys (Dao et al. 2022, "FlashAttention"), and its
// gradients. The matrix of scores exists only as a block of KEYS keys x TN queries.
//
// Everything is transposed: vector lanes are queries. S^T = K Q^T and O^T = V^T P^T are products as in
// gemm.h, in which a block of scores is one panel; the largest score and the sum of each query are then plain
// vector arithmetic, and no lane is wasted whatever the size of a head.
#include "vector.h"

#include <math.h>

enum { KEYS = 128 }; // even, for pairs
static const float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

// 2^x for -126 <= x <= 127, below that 2^-126: as exp_vec, but scores carry the factor log2(e) already.
INLINE vec exp2_vec(vec x) {
    x = max_vec(x, all(-126));
    vec shifted = x + 0x1.8p23f, f = x - (shifted - 0x1.8p23f);
    vec p = 1.32645911e-3f * f + 9.67161916e-3f;
    p = p * f + 5.55073507e-2f;
    p = p * f + 2.40222409e-1f;
    p = p * f + 6.93147004e-1f;
    return (p * f + 1.0f) * (vec)(((ivec)shifted << 23) + 0x3f800000);
}

// Keys and values of one head, rows of d side by side; tiles may read some rows beyond the end. Where PAIRS,
// a lane of k holds elements 2 e and 2 e + 1 of a key, one of v element e of the values 2 t and 2 t + 1.
typedef struct {
    const float *k, *v;
} Head;

static size_t head_floats(Attention p) { return 2 * ((size_t)(p.tk + TM) * (size_t)p.d + W); }

static Head head_of(float *packed, Attention p, int index) {
    float *k = packed + (size_t)index * head_floats(p);
    return (Head){k, k + head_floats(p) / 2};
}

// Where row t of head `index` begins in (n, length, heads d).
static size_t row_at(Attention p, int index, int t, int length) {
    return ((size_t)(index / p.heads) * (size_t)length + (size_t)t) * (size_t)(p.heads * p.d) +
           (size_t)(index % p.heads * p.d);
}

static float *pack_heads(const float *k, const float *v, Attention p, bool pairs) {
    float *packed = scratch(S_KEYS, (size_t)(p.n * p.heads) * head_floats(p));
    PARALLEL_FOR((double)p.n * p.heads * p.tk * p.d > WORTH_A_THREAD)
    for (int index = 0; index < p.n * p.heads; index++) {
        float *to = packed + (size_t)index * head_floats(p), *to_v = to + head_floats(p) / 2;
        zero_floats(to + (size_t)p.tk * (size_t)p.d, TM * p.d + W);
        zero_floats(to_v + (size_t)p.tk * (size_t)p.d, TM * p.d + W);
        for (int t = 0; t < p.tk; t++) {
            copy_floats(to + (size_t)t * (size_t)p.d, k + row_at(p, index, t, p.tk), p.d);
            copy_floats(to_v + (size_t)t * (size_t)p.d, v + row_at(p, index, t, p.tk), p.d);
        }
        if (pairs) join_neighbours_of(to, p.tk, p.d, p.d, lanes_of(p.d)), join_rows(to_v, p.tk, p.d, p.d);
    }
    return packed;
}

// A panel (d, width) of queries q0..q0+nq, times `factor`.
static void pack_queries(float *to, const float *q, Attention p, int index, int q0, int nq, int width,
                         float factor) {
    Matrix m = {{(void *)(q + row_at(p, index, q0, p.tq)), F32}, (size_t)(p.heads * p.d)};
    pack_b_columns(to, &m, 0, p.d, 0, nq, width);
    for (int i = 0; i < p.d * width; i += W) store(to + i, load(to + i) * factor);
}

// rows[i, e] = or += factor[i] tile[e, i]: a (d, width) tile goes back to rows of heads d elements.
static void unpack_queries(float *rows, const float *tile, const vec factor[TV], Attention p, int nq,
                           int width, bool add) {
    size_t stride = (size_t)(p.heads * p.d);
    for (int j = 0; j < width; j += W)
        for (int e = 0; e < p.d; e += W) {
            vec r[W];
            int lanes = min_int(W, p.d - e), count = min_int(W, nq - j);
            for (int i = 0; i < W; i++)
                r[i] = i < lanes ? load(tile + (e + i) * width + j) * factor[j / W] : all(0);
            transpose(r);
            for (int i = 0; i < count; i++) {
                float *to = rows + (size_t)(j + i) * stride + e;
                store_part(to, add ? load_part(to, lanes) + r[i] : r[i], lanes);
            }
        }
}

// The mask of the lanes whose query, q0 + j + lane, comes before `key`.
INLINE ivec before_key(int key, int q0, int j) { return lanes_from(q0 + j) < key; }

static int keys_seen(Attention p, int q_end) { return p.causal ? min_int(p.tk, q_end) : p.tk; }

// A block of scores (keys, vectors * W) becomes exp2(score - largest), and joins the sums so far. `rescale`:
// what the sums before it are multiplied with, as the largest score may have grown; 1e-38: there were none.
INLINE void soften(const int vectors, float *s, int keys, vec largest[TV], vec sum[TV], vec rescale[TV]) {
    vec top[TV], total[TV];
    UNROLL for (int j = 0; j < vectors; j++) top[j] = largest[j];
    for (int k = 0; k < keys; k++)
        UNROLL for (int j = 0; j < vectors; j++) top[j] = max_vec(top[j], load(s + (k * vectors + j) * W));
    UNROLL for (int j = 0; j < vectors; j++) {
        rescale[j] = exp2_vec(largest[j] - top[j]);
        total[j] = sum[j] * rescale[j];
    }
    for (int k = 0; k < keys; k++) UNROLL for (int j = 0; j < vectors; j++) {
            vec e = exp2_vec(load(s + (k * vectors + j) * W) - top[j]);
            store(s + (k * vectors + j) * W, e);
            total[j] += e;
        }
    UNROLL for (int j = 0; j < vectors; j++) largest[j] = top[j], sum[j] = total[j];
}

// A block of queries, and what the keys so far have made of it.
typedef struct {
    int q0, nq, width;
    float *tile, *out; // (d, width): the queries; the sum of values
    vec largest[TV], sum[TV];
} Queries;

// `memory`: 2 d TN floats.
static void begin_queries(Queries *b, float *memory, const float *q, Attention p, int index, int q0) {
    int nq = min_int(TN, p.tq - q0), width = round_up(nq, W);
    *b = (Queries){.q0 = q0, .nq = nq, .width = width, .tile = memory, .out = memory + p.d * width};
    for (int j = 0; j < TV; j++) b->largest[j] = all(-1e30f), b->sum[j] = all(0);
    pack_queries(b->tile, q, p, index, q0, nq, width, p.scale * LOG2_E);
    if (PAIRS) join_rows(b->tile, p.d, width, width);
}

// The block of keys and values from k0 on; s has room for its scores, KEYS TN floats.
static void see_keys(Queries *b, float *s, Head head, Attention p, int k0) {
    int width = b->width, vectors = width / W, keys = min_int(KEYS, keys_seen(p, b->q0 + b->nq) - k0);
    if (keys <= 0) return;
    vec rescale[TV];
    int d = lanes_of(p.d);
    gemm_block(keys, width, d, with_pairs(rows_at(head.k + (size_t)k0 * (size_t)d, d)), b->tile,
               (Out){s, width, NULL, NULL, 1});
    bool masked = p.causal && k0 + keys - 1 > b->q0;
    if (masked)
        for (int k = 0; k < keys; k++)
            for (int j = 0; j < vectors; j++) {
                float *at = s + k * width + j * W;
                store(at, choose(before_key(k0 + k, b->q0, j * W), all(-1e30f), load(at)));
            }
    if (vectors == TV)
        soften(TV, s, keys, b->largest, b->sum, rescale);
    else if (vectors == 2)
        soften(2, s, keys, b->largest, b->sum, rescale);
    else
        soften(1, s, keys, b->largest, b->sum, rescale);
    if (k0)
        for (int e = 0; e < p.d; e++)
            for (int j = 0; j < vectors; j++) {
                float *at = b->out + e * width + j * W;
                store(at, load(at) * rescale[j]);
            }
    if (PAIRS) join_rows(s, keys, width, width);
    gemm_block(p.d, width, lanes_of(keys),
               with_pairs(columns_at(head.v + (size_t)lanes_of(k0) * (size_t)p.d, p.d)), s,
               (Out){b->out, width, k0 ? b->out : NULL, NULL, 1});
}

static void end_queries(const Queries *b, float *o, float *lse, Attention p, int index) {
    vec factor[TV];
    for (int j = 0; j < TV; j++) factor[j] = 1.0f / b->sum[j];
    unpack_queries(o + row_at(p, index, b->q0, p.tq), b->out, factor, p, b->nq, b->width, false);
    for (int i = 0; lse && i < b->nq; i++)
        lse[(size_t)index * (size_t)p.tq + (size_t)(b->q0 + i)] =
            (b->largest[i / W][i % W] + log2f(b->sum[i / W][i % W])) * LN_2;
}

// Where a head's keys and values are too many for the cache, as in the VAE, several blocks of queries see
// each block of keys while it is there.
enum { TOGETHER = 8, CACHED = 1 << 19 }; // blocks; floats of keys and values

static void attend(float *o, float *lse, const float *q, Head head, Attention p, int index, int q0,
                   int queries) {
    size_t each = 2 * (size_t)p.d * TN;
    float *memory = scratch(S_TILE, TOGETHER * each + KEYS * TN);
    Queries blocks[TOGETHER];
    int count = 0, end = min_int(p.tq, q0 + queries);
    for (int at = q0; at < end; at += TN, count++)
        begin_queries(&blocks[count], memory + (size_t)count * each, q, p, index, at);
    for (int k0 = 0; k0 < keys_seen(p, end); k0 += KEYS)
        for (int i = 0; i < count; i++) see_keys(&blocks[i], memory + TOGETHER * each, head, p, k0);
    for (int i = 0; i < count; i++) end_queries(&blocks[i], o, lse, p, index);
}

static void attention(Mem o, float *lse, Mem q, Mem k, Mem v, Attention p) {
    float *packed = pack_heads(k.at, v.at, p, PAIRS);
    int queries = 2.0 * p.tk * p.d > CACHED ? TOGETHER * TN : TN, blocks = blocks_of(p.tq, queries);
    PARALLEL_FOR((double)p.n * p.heads * p.tq * p.tk * p.d > 5 * WORTH_A_THREAD)
    for (int t = 0; t < p.n * p.heads * blocks; t++)
        attend(o.at, lse, q.at, head_of(packed, p, t / blocks), p, t / blocks, t % blocks * queries, queries);
}

// ---- gradients --------------------------------------------------------------------------------------------

// P = exp(scale q k^T - lse);  dP = do v^T;  dS = scale P (dP - delta), delta = sum over the head of do o
//   dv += P^T do;  dk += dS^T q;  dq += dS k
// One block of queries at a time. A thread has whole heads, because every block adds to all of dk and dv.
static void attend_backward(float *dq, float *dk, float *dv, const float *dout, const float *q, Head head,
                            const float *o, const float *lse, Attention p, int index, int q0) {
    int nq = min_int(TN, p.tq - q0), width = round_up(nq, W), vectors = width / W;
    size_t stride = (size_t)(p.heads * p.d), first = row_at(p, index, q0, p.tq);
    int padded = round_up(p.d, W);
    float *tile = scratch(S_TILE, (size_t)(3 * p.d + 2 * KEYS) * TN + 2 * (size_t)nq * (size_t)padded);
    float *tile_dout = tile + p.d * width, *tile_dq = tile_dout + p.d * width; // (d, width): transposed
    float *s = tile_dq + p.d * width, *ds = s + KEYS * width;                  // (keys, width)
    float *rows_q = ds + KEYS * width, *rows_dout = rows_q + nq * padded;      // (nq, d) as panels
    pack_queries(tile, q, p, index, q0, nq, width, p.scale * LOG2_E);
    pack_queries(tile_dout, dout, p, index, q0, nq, width, 1);
    Matrix qm = {{(void *)(q + first), F32}, stride}, dm = {{(void *)(dout + first), F32}, stride};
    for (int panel = 0; panel < blocks_of(p.d, TN); panel++) {
        int e = panel_at(p.d, panel), n = panel_at(p.d, panel + 1) - e, w = round_up(n, W);
        if (dk) pack_b_rows(rows_q + e * nq, &qm, 0, nq, e, n, w);
        if (dv) pack_b_rows(rows_dout + e * nq, &dm, 0, nq, e, n, w);
    }
    float lse2[TN] = {0}, delta[TN] = {0};
    for (int i = 0; i < nq; i++) {
        lse2[i] = lse[(size_t)index * (size_t)p.tq + (size_t)(q0 + i)] * LOG2_E;
        vec sum = all(0);
        for (int e = 0; e < p.d; e += W) {
            size_t at = first + (size_t)i * stride + (size_t)e;
            sum += load_part(dout + at, min_int(W, p.d - e)) * load_part(o + at, min_int(W, p.d - e));
        }
        delta[i] = sum_lanes(sum);
    }
    int seen = keys_seen(p, q0 + nq);
    for (int k0 = 0; k0 < seen; k0 += KEYS) {
        int keys = min_int(KEYS, seen - k0);
        const float *kb = head.k + (size_t)k0 * (size_t)p.d, *vb = head.v + (size_t)k0 * (size_t)p.d;
        gemm_block(keys, width, p.d, rows_at(kb, p.d), tile, (Out){s, width, NULL, NULL, 1});
        gemm_block(keys, width, p.d, rows_at(vb, p.d), tile_dout, (Out){ds, width, NULL, NULL, 1});
        bool masked = p.causal && k0 + keys - 1 > q0;
        for (int j = 0; j < vectors; j++)
            for (int k = 0; k < keys; k++) {
                float *at = s + k * width + j * W, *dat = ds + k * width + j * W;
                vec probability = exp2_vec(load(at) - load(lse2 + j * W));
                if (masked) probability = choose(before_key(k0 + k, q0, j * W), all(0), probability);
                store(at, probability);
                store(dat, p.scale * probability * (load(dat) - load(delta + j * W)));
            }
        size_t to = row_at(p, index, k0, p.tk);
        if (dv)
            gemm_block(keys, p.d, nq, rows_at(s, width), rows_dout,
                       (Out){dv + to, (long)stride, dv + to, NULL, 1});
        if (dk)
            gemm_block(keys, p.d, nq, rows_at(ds, width), rows_q,
                       (Out){dk + to, (long)stride, dk + to, NULL, 1});
        if (dq)
            gemm_block(p.d, width, keys, columns_at(kb, p.d), ds,
                       (Out){tile_dq, width, k0 ? tile_dq : NULL, NULL, 1});
    }
    vec one[TV];
    for (int j = 0; j < TV; j++) one[j] = all(1);
    if (dq) unpack_queries(dq + first, tile_dq, one, p, nq, width, true);
}

static void attention_backward(Mem dq, Mem dk, Mem dv, Mem dout, Mem q, Mem k, Mem v, Mem o, const float *lse,
                               Attention p) {
    float *packed = pack_heads(k.at, v.at, p, false);
    PARALLEL_FOR((double)p.n * p.heads * p.tq * p.tk * p.d > 2 * WORTH_A_THREAD)
    for (int index = 0; index < p.n * p.heads; index++)
        for (int q0 = 0; q0 < p.tq; q0 += TN)
            attend_backward(dq.at, dk.at, dv.at, dout.at, q.at, head_of(packed, p, index), o.at, lse, p,
                            index, q0);
}
