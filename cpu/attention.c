// attention.c: softmax(scale q k^T) v in one pass over the keys (Dao et al. 2022, "FlashAttention"), and its
// gradients. The matrix of scores exists only as a block of KEYS keys x TN queries.
//
// Everything is transposed (with tiles nothing is: see there): vector lanes are queries. S^T = K Q^T and O^T
// = V^T P^T are products as in gemm.h, in which a block of scores is one panel; the largest score and the sum
// of each query are then plain vector arithmetic, and no lane is wasted whatever the size of a head.
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
        if (pairs) {
            for (int t = 0; t < p.tk; t++)
                pair_row(to + (size_t)t * (size_t)lanes_of(p.d), to + (size_t)t * (size_t)p.d, F32, p.d);
            join_rows(to_v, to_v, p.tk, p.d, p.d);
        }
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
    if (PAIRS) join_rows(b->tile, b->tile, p.d, width, width);
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
    if (PAIRS) join_rows(s, s, keys, width, width);
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

// ---- with tiles -------------------------------------------------------------------------------------------

// Tiles take A row by row, so there nothing is transposed: S = Q K^T and O = P V, whose rows are queries. K
// and V are packed as B, for a block of TILE_KEYS keys at a time; P is rounded where it lies.
enum { TILE_KEYS = 384, TILE_QUERIES = 32 };

// Of a head: K (d, keys) of a block, then V (keys, d), as panels.
static size_t tile_k_floats(Attention p) { return (size_t)lanes_of(p.d) * TILE_KEYS; }
static size_t tile_block_floats(Attention p) {
    return tile_k_floats(p) + (size_t)lanes_of(TILE_KEYS) * (size_t)round_up(p.d, W);
}

static void pack_tile_keys(float *to, const float *k, const float *v, Attention p, int index, int k0) {
    size_t at = row_at(p, index, k0, p.tk), stride = (size_t)(p.heads * p.d);
    Matrix km = {{(void *)(k + at), F32}, stride}, vm = {{(void *)(v + at), F32}, stride};
    int keys = min_int(TILE_KEYS, p.tk - k0);
    Product scores = {.n = keys, .pack_b = pack_b_columns, .b = &km};
    Product values = {.n = p.d, .pack_b = pack_b_rows, .b = &vm};
    for (int panel = 0; panel < blocks_of(keys, TN); panel++)
        pack_panel(to + packed_at(&scores, 0, p.d, panel_at(keys, panel)), &scores, 0, p.d, panel);
    to += tile_k_floats(p);
    for (int panel = 0; panel < blocks_of(p.d, TN); panel++)
        pack_panel(to + packed_at(&values, 0, keys, panel_at(p.d, panel)), &values, 0, keys, panel);
}

// A row of scores, of whose `padded` keys the first `visible` count, becomes pairs of exp2(score - largest),
// which lie closer together, and joins the sum so far. Returns what all before it is multiplied with, as the
// largest score may have grown.
INLINE float soften_row(float *row, int visible, int padded, float *largest, vec *sum) {
    for (int k = visible / W * W; k < padded; k += W)
        store(row + k, choose(first_lanes(visible - k), load(row + k), all(-1e30f)));
    vec top = all(*largest), top2 = top;
    for (int k = 0; k < padded; k += 2 * W)
        top = max_vec(top, load(row + k)), top2 = max_vec(top2, load(row + k + W));
    float before = *largest, most = largest_lane(max_vec(top, top2));
    float rescale = most > before ? exp2_vec(all(before - most))[0] : 1;
    vec total = *sum * rescale, total2 = all(0);
    for (int k = 0; k < padded; k += 2 * W) {
        vec first = exp2_vec(load(row + k) - most), second = exp2_vec(load(row + k + W) - most);
        total += first, total2 += second;
        store(row + k / 2, join_neighbours(first, second));
    }
    *largest = most, *sum = total + total2;
    return rescale;
}

// Queries q0.. of a head, as many as are multiplied at once.
static void attend_tiles(float *o, float *lse, const float *q, const float *packed, Attention p, int index,
                         int q0) {
    int nq = min_int(TILE_QUERIES, p.tq - q0), lanes = lanes_of(p.d), width = round_up(p.d, W);
    float *queries = scratch(S_TILE, (size_t)TILE_QUERIES * (size_t)(lanes + TILE_KEYS + 2 * width));
    float *s = queries + TILE_QUERIES * lanes, *out = s + TILE_QUERIES * TILE_KEYS;
    float *scaled = out + TILE_QUERIES * width, largest[TILE_QUERIES];
    vec sum[TILE_QUERIES];
    for (int i = 0; i < nq; i++) {
        const float *row = q + row_at(p, index, q0 + i, p.tq);
        for (int e = 0; e < p.d; e += W)
            store(scaled + e, load_part(row + e, min_int(W, p.d - e)) * (p.scale * LOG2_E));
        pair_row(queries + i * lanes, scaled, F32, p.d);
        sum[i] = all(0), largest[i] = -1e30f;
    }
    for (int k0 = 0, seen = keys_seen(p, q0 + nq); k0 < seen; k0 += TILE_KEYS) {
        int keys = min_int(TILE_KEYS, p.tk - k0);
        const float *block = packed + (size_t)(k0 / TILE_KEYS) * tile_block_floats(p);
        gemm_block(nq, round_up(keys, W), lanes, with_pairs(rows_at(queries, lanes)), block,
                   (Out){s, TILE_KEYS, NULL, NULL, 1});
        for (int i = 0; i < nq; i++) {
            int visible = p.causal ? clamp_int(q0 + i + 1 - k0, 0, keys) : keys;
            float rescale = soften_row(s + i * TILE_KEYS, visible, 2 * lanes_of(keys), &largest[i], &sum[i]);
            for (int e = 0; e < width && k0 && rescale != 1; e += W)
                store(out + i * width + e, load(out + i * width + e) * rescale);
        }
        gemm_block(nq, p.d, lanes_of(keys), with_pairs(rows_at(s, TILE_KEYS)), block + tile_k_floats(p),
                   (Out){out, width, k0 ? out : NULL, NULL, 1});
    }
    for (int i = 0; i < nq; i++) {
        float total = sum_lanes(sum[i]), *to = o + row_at(p, index, q0 + i, p.tq);
        for (int e = 0; e < p.d; e += W)
            store_part(to + e, load(out + i * width + e) * (1 / total), min_int(W, p.d - e));
        if (lse) lse[(size_t)index * (size_t)p.tq + (size_t)(q0 + i)] = (largest[i] + log2f(total)) * LN_2;
    }
}

static void attention_tiles(float *o, float *lse, const float *q, const float *k, const float *v,
                            Attention p) {
    int key_blocks = blocks_of(p.tk, TILE_KEYS), query_blocks = blocks_of(p.tq, TILE_QUERIES);
    size_t head = (size_t)key_blocks * tile_block_floats(p);
    float *packed = scratch(S_KEYS, (size_t)(p.n * p.heads) * head);
    PARALLEL_FOR((double)p.n * p.heads * p.tk * p.d > WORTH_A_THREAD)
    for (int t = 0; t < p.n * p.heads * key_blocks; t++)
        pack_tile_keys(packed + (size_t)t * tile_block_floats(p), k, v, p, t / key_blocks,
                       t % key_blocks * TILE_KEYS);
    PARALLEL_FOR((double)p.n * p.heads * p.tq * p.tk * p.d > 5 * WORTH_A_THREAD)
    for (int t = 0; t < p.n * p.heads * query_blocks; t++)
        attend_tiles(o, lse, q, packed + (size_t)(t / query_blocks) * head, p, t / query_blocks,
                     t % query_blocks * TILE_QUERIES);
}

static void attention(Mem o, float *lse, Mem q, Mem k, Mem v, Attention p) {
    if (TILES) {
        attention_tiles(o.at, lse, q.at, k.at, v.at, p);
        return;
    }
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
