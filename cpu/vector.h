// vector.h: a vector of floats as wide as the instruction set has, and the few functions on it that the
// kernels share: loads that convert, exp, the logistic and the normal distribution. Written once, with the
// vector extensions of gcc and clang; a file that includes it is compiled once for each instruction set.
//
// What differs between the sets is the width W, and a few functions below for which they have an instruction
// that the extensions cannot name: parts of vectors, half precision, the larger of two, products of bf16.
#ifndef VECTOR_H
#define VECTOR_H

#include "cpu.h"

#include <string.h>

#if defined(__AVX512F__)
enum { W = 16 };
#elif defined(__AVX2__)
enum { W = 8 };
#else
enum { W = 4 };
#endif
#if defined(__F16C__)
#include <immintrin.h>
#endif

typedef float vec __attribute__((vector_size(W * 4)));
typedef int32_t ivec __attribute__((vector_size(W * 4)));
typedef float vec_at __attribute__((vector_size(W * 4), aligned(4), may_alias)); // anywhere in memory
typedef uint16_t hvec __attribute__((vector_size(W * 2)));

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#define UNROLL_BY_4 _Pragma("clang loop unroll_count(4)")
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define UNROLL _Pragma("GCC unroll 64")
#define UNROLL_BY_4 _Pragma("GCC unroll 4")
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

INLINE int min_int(int a, int b) { return a < b ? a : b; }
INLINE int max_int(int a, int b) { return a > b ? a : b; }
INLINE int clamp_int(int x, int low, int high) { return x < low ? low : x > high ? high : x; }
INLINE int blocks_of(int n, int size) { return n / size + (n % size != 0); }
INLINE int round_up(int n, int to) { return blocks_of(n, to) * to; }

// ---- choosing ---------------------------------------------------------------------------------------------

// C has no ?: on vectors: a comparison gives a mask of all ones or zeros, and masks choose.
INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }
// A NaN in `a` stays: a comparison with it is false, and the instruction then gives its second operand.
INLINE vec max_vec(vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)b, (__m512)a);
#elif defined(__AVX2__)
    return (vec)_mm256_max_ps((__m256)b, (__m256)a);
#else
    return choose(a < b, b, a);
#endif
}
INLINE vec min_vec(vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_min_ps((__m512)b, (__m512)a);
#elif defined(__AVX2__)
    return (vec)_mm256_min_ps((__m256)b, (__m256)a);
#else
    return choose(a > b, b, a);
#endif
}
// a b + c, with AVX rounded once. The compiler makes the same of a product and a sum; but where c is also a
// product, it may round either of the two. This says that c is rounded.
INLINE vec fma_vec(vec a, vec b, vec c) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}
INLINE vec abs_vec(vec a) { return (vec)((ivec)a & 0x7fffffff); }
INLINE float largest_lane(vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float most = v[0];
    UNROLL for (int i = 1; i < W; i++) most = v[i] > most ? v[i] : most;
    return most;
#endif
}
INLINE float sum_lanes(vec v) {
    float s = 0;
    UNROLL for (int i = 0; i < W; i++) s += v[i];
    return s;
}

// ---- loads and stores -------------------------------------------------------------------------------------

INLINE ivec lanes_from(int first) { // first, first + 1, ...
    ivec lane = {0};
    UNROLL for (int i = 0; i < W; i++) lane[i] = i;
    return lane + first;
}
INLINE ivec first_lanes(int count) { return lanes_from(0) < count; }
INLINE vec all(float x) { return (vec){0} + x; }
INLINE vec load(const float *p) { return *(const vec_at *)p; }
INLINE void store(float *p, vec v) { *(vec_at *)p = v; }
// The first `count` lanes only (1..W); the others load as zero.
INLINE vec load_part(const float *p, int count) {
    if (count >= W) return load(p);
#if defined(__AVX512F__)
    return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p);
#elif defined(__AVX2__)
    return (vec)_mm256_maskload_ps(p, (__m256i)first_lanes(count));
#else
    float t[W] = {0};
    for (int i = 0; i < count; i++) t[i] = p[i];
    return load(t);
#endif
}
// With AVX2 half, quarter and eighth of a vector: its masked store takes some processors a dozen cycles.
INLINE void store_part(float *p, vec v, int count) {
    if (count >= W) {
        store(p, v);
        return;
    }
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), (__m512)v);
#elif defined(__AVX2__)
    __m128 rest = _mm256_castps256_ps128((__m256)v);
    if (count & 4) {
        _mm_storeu_ps(p, rest);
        p += 4, rest = _mm256_extractf128_ps((__m256)v, 1);
    }
    if (count & 2) {
        _mm_storel_pi((__m64 *)(void *)p, rest);
        p += 2, rest = _mm_movehl_ps(rest, rest);
    }
    if (count & 1) _mm_store_ss(p, rest);
#else
    float t[W];
    store(t, v);
    for (int i = 0; i < count; i++) p[i] = t[i];
#endif
}

// W half-precision values. bf16 is the upper half of a float. fp16 without the instruction: exponent and
// mantissa moved into place are the number divided by 2^112, subnormals included; infinities stay finite.
INLINE vec load_bf16(const void *p) {
    hvec h;
    memcpy(&h, p, sizeof h);
    return (vec)(__builtin_convertvector(h, ivec) << 16);
}
INLINE vec load_f16(const void *p) {
#if defined(__AVX512F__)
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256(p));
#elif defined(__F16C__)
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128(p));
#else
    hvec h;
    memcpy(&h, p, sizeof h);
    ivec x = __builtin_convertvector(h, ivec), magnitude = (x & 0x7fff) << 13, sign = (x & 0x8000) << 16;
    ivec special = magnitude >= 0x7c00 << 13; // infinity or NaN: all ones in the exponent here as well
    ivec scaled = (ivec)((vec)magnitude * 0x1p112f);
    return (vec)(((special & (magnitude | 0x7f800000)) | (~special & scaled)) | sign);
#endif
}
// Round to nearest even. To bf16: adding just under half of the last place, or half where the number is odd.
// To fp16 without the instruction: the same on the moved fraction. Subnormals: a sum with the right 2^n.
INLINE ivec bits_bf16(vec v) { // in the lower half of each lane
    ivec x = (ivec)v, odd = x >> 16 & 1, rounded = x + 0x7fff + odd, nan = v != v;
    return ((nan & (x | 0x400000)) | (~nan & rounded)) >> 16 & 0xffff;
}
INLINE hvec round_bf16(vec v) { return __builtin_convertvector(bits_bf16(v), hvec); }
INLINE hvec round_f16(vec v) {
#if defined(__AVX512F__)
    return (hvec)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
    return (hvec)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#else
    ivec x = (ivec)v, sign = x >> 16 & 0x8000, size = x & 0x7fffffff;
    ivec normal = (size - (112 << 23) + 0xfff + (size >> 13 & 1)) >> 13;
    ivec subnormal = (ivec)((vec)size + 0.5f) - 0x3f000000; // 0.5's last place is 2^-24
    ivec h = (ivec)choose(size < 113 << 23, (vec)subnormal, (vec)normal);
    h = (ivec)choose(size >= 0x477ff000, (vec)((ivec){0} + 0x7c00), (vec)h); // 65520 and above: infinity
    h = (ivec)choose(size > 0x7f800000, (vec)((ivec){0} + 0x7e00), (vec)h);  // NaN
    return __builtin_convertvector(h | sign, hvec);
#endif
}
INLINE vec load_as(const void *p, Type type) {
    return type == F32 ? load(p) : type == F16 ? load_f16(p) : load_bf16(p);
}
INLINE vec load_part_as(const void *p, Type type, int count) {
    if (type == F32) return load_part(p, count);
    uint16_t t[W] = {0};
    if (count < W) p = memcpy(t, p, (size_t)count * 2);
    return load_as(p, type);
}
INLINE void store_part_as(void *p, Type type, vec v, int count) {
    if (type == F32) {
        store_part(p, v, count);
        return;
    }
    uint16_t t[W];
    hvec h;
    if (type == BF16)
        h = round_bf16(v);
    else
        h = round_f16(v);
    memcpy(t, &h, sizeof t);
    memcpy(p, t, (size_t)min_int(count, W) * 2);
}
INLINE size_t size_of(Type type) { return type == F32 ? 4 : 2; }
INLINE Mem from(Mem m, size_t numbers) { // `numbers` further on
    return m.at ? (Mem){(char *)m.at + numbers * size_of(m.type), m.type} : m;
}

// ---- pairs of bf16 ----------------------------------------------------------------------------------------

// AVX512_BF16 multiplies two pairs of bf16 and adds both products to an fp32 sum. There PAIRS is true, and
// operands of products are rounded to bf16 and joined: neighbours along k share a lane, the first one in its
// lower half. A lane with a pair is moved as a float, and no float's arithmetic touches it. Elsewhere the
// same functions stand for the instructions, so that PAIRS can be tried on any processor. They keep subnormal
// numbers, which the instructions take for 0.
#if !defined(PAIRS)
#define PAIRS 0
#endif
#if PAIRS && defined(__AVX512BF16__)
#define PAIR_INSTRUCTIONS
#endif

INLINE vec join_lanes(vec first, vec second) {
#if defined(PAIR_INSTRUCTIONS)
    ivec low = (ivec)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)first));
    ivec high = (ivec)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)second));
    return (vec)(low | high << 16);
#else
    return (vec)(bits_bf16(first) | bits_bf16(second) << 16);
#endif
}
// Lanes (0, 1), (2, 3), ... of `first`, then of `second`.
INLINE vec join_neighbours(vec first, vec second) {
#if defined(PAIR_INSTRUCTIONS)
    return (vec)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
#else
    hvec halves[] = {round_bf16(first), round_bf16(second)};
    vec pairs;
    memcpy(&pairs, halves, sizeof pairs);
    return pairs;
#endif
}
// sum + the products of the pair at `a` and each pair of b.
INLINE vec add_products(const float *a, vec b, vec sum) {
    int32_t bits;
    memcpy(&bits, a, sizeof bits);
    ivec pair = (ivec){0} + bits;
#if defined(PAIR_INSTRUCTIONS)
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)pair, (__m512bh)b);
#else
    sum = fma_vec((vec)(pair & -0x10000), (vec)((ivec)b & -0x10000), sum);
    return fma_vec((vec)(pair << 16), (vec)((ivec)b << 16), sum);
#endif
}

// ---- tiles of pairs ---------------------------------------------------------------------------------------

// AMX multiplies matrices: it has eight tile registers of 16 rows of 16 lanes, and tile_products(sum, a, b)
// adds to each of 16 x W sums the products of 16 pairs, of a row of tile a and a column of tile b. There
// TILES is true. Registers are named by number, and a thread may use them between tiles_begin() and
// tiles_end(). Elsewhere functions stand for the instructions, as above. `stride`: of rows in memory, in
// lanes.
#if !defined(TILES)
#define TILES 0
#endif
#if TILES && defined(__AMX_BF16__)
// Their shapes, as the processor wants them told: 16 rows of 64 bytes.
static const struct {
    uint8_t palette, start, unused[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tile_shapes = {
    .palette = 1, .bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
INLINE void tiles_begin(void) {
    __asm__ volatile("" ::: "memory"); // what was written by now lies in memory when a tile is loaded
    _tile_loadconfig(&tile_shapes);
}
INLINE void tiles_end(void) { _tile_release(); }
#define tile_zero(tile) _tile_zero(tile)
#define tile_load(tile, from, stride, columns) _tile_loadd(tile, from, (size_t)(stride)*4)
#define tile_store(tile, to, stride) _tile_stored(tile, to, (size_t)(stride)*4)
#define tile_products(sum, a, b) _tile_dpbf16ps(sum, a, b)
#else
static _Thread_local float tiles[8][16][16]; // [register][row][lane]
INLINE void tiles_begin(void) {}
INLINE void tiles_end(void) {}
INLINE void tile_zero(int tile) { memset(tiles[tile], 0, sizeof tiles[tile]); }
INLINE void tile_load(int tile, const float *from, long stride, int columns) {
    for (int i = 0; i < 16; i++) memcpy(tiles[tile][i], from + i * stride, (size_t)columns * 4);
}
INLINE void tile_store(int tile, float *to, long stride) {
    for (int i = 0; i < 16; i++) memcpy(to + i * stride, tiles[tile][i], W * 4);
}
INLINE void tile_products(int sum, int a, int b) {
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            store(tiles[sum][i], add_products(&tiles[a][i][k], load(tiles[b][k]), load(tiles[sum][i])));
}
#endif

// ---- rows of floats ---------------------------------------------------------------------------------------

INLINE void copy_floats(float *to, const float *x, int count) {
    int i = 0;
    for (; i + W <= count; i += W) store(to + i, load(x + i));
    if (i < count && i) // the last vector overlaps the one before
        store(to + count - W, load(x + count - W));
    else if (i < count)
        store_part(to, load_part(x, count), count);
}
INLINE void zero_floats(float *to, int count) {
    int i = 0;
    for (; i + W <= count; i += W) store(to + i, all(0));
    if (i < count) store_part(to + i, all(0), count - i);
}
INLINE void convert_floats(float *to, const void *x, Type type, int count) {
    if (type == F32) {
        copy_floats(to, x, count);
        return;
    }
    int i = 0;
    for (; i + W <= count; i += W) store(to + i, load_as((const uint16_t *)x + i, type));
    if (i < count) store_part(to + i, load_part_as((const uint16_t *)x + i, type, count - i), count - i);
}

// A vector of weights as fp32: itself, or converted into scratch. NULL where absent.
INLINE const float *as_floats(Mem m, int count, Slot slot) {
    if (!m.at || m.type == F32) return m.at;
    float *to = scratch(slot, (size_t)count);
    convert_floats(to, m.at, m.type, count);
    return to;
}

// ---- functions --------------------------------------------------------------------------------------------

// exp(x) = 2^n exp(r), n = x / ln 2 rounded, |r| <= ln 2 / 2; ln 2 in two parts, the first so short that its
// product with n is exact. Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits. The
// polynomial is the minimax one of degree 5 with 1 + r fixed. Relative error 1.7e-7. Below -87 it is
// exp(-87), 1.6e-38; above 88 it is exp(88), 1.7e38. NaN stays NaN.
INLINE vec exp_vec(vec x) {
    x = min_vec(max_vec(x, all(-87)), all(88));
    vec shifted = x * 1.44269504f + 0x1.8p23f, n = shifted - 0x1.8p23f;
    vec r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vec p = 8.31247773e-3f * r + 4.18905504e-2f;
    p = p * r + 1.66671157e-1f;
    p = p * r + 4.99992281e-1f;
    p = p * (r * r) + r;
    return (p + 1.0f) * (vec)(((ivec)shifted << 23) + 0x3f800000);
}
// The same where the ends matter: 0 below, infinity above what fp32 holds.
INLINE vec exp_full(vec x) {
    vec y = exp_vec(0.5f * x); // twice as far, at twice the error
    return y * y;
}
INLINE vec sigmoid_vec(vec x) { return 1.0f / (1.0f + exp_vec(-x)); }

// Of x / (1 + exp(-x)): s (1 + x (1 - s)), s = 1 / (1 + exp(-x)).
INLINE vec silu_slope_vec(vec x) {
    vec s = sigmoid_vec(x);
    return s * (1.0f + x * (1.0f - s));
}

// Phi(x), the fraction of the normal distribution below x: erfc(a) / 2 at a = |x| / sqrt(2), or 1 less that.
// tail(|x|) = exp(-x^2 / 2) t Q(t), t = 1 / (1 + c |x|), where Q is the minimax polynomial of degree 8 for
// exp(x^2 / 2) / t times the tail, up to |x| = 9.3. Relative error 3e-7 to the right, 2e-6 at -9, so the far
// tail keeps its digits too. A density beside it, exp(-x^2 / 2) / sqrt(2 pi), shares the exponential.
INLINE vec normal_below_vec(vec x) {
    vec t = 1.0f / (0.46845824f * abs_vec(x) + 1.0f), q = 0.0477228574f * t - 0.260461956f;
    q = q * t + 0.567246795f;
    q = q * t - 0.569860518f;
    q = q * t + 0.180995494f;
    q = q * t + 6.05550688e-3f;
    q = q * t + 0.155354694f;
    q = q * t + 0.186026186f;
    q = q * t + 0.186920971f;
    vec tail = q * t * exp_vec(-0.5f * x * x);
    return choose(x < 0.0f, tail, 1.0f - tail);
}
INLINE vec normal_density_vec(vec x) { return 0.398942280f * exp_vec(-0.5f * x * x); }
INLINE vec gelu_vec(vec x) { return x * normal_below_vec(x); }
INLINE vec gelu_slope_vec(vec x) { return normal_below_vec(x) + x * normal_density_vec(x); }

// A W x W block transposed in place. Each round riffles rows i and i + W/2 together, like a deck of cards;
// after log2(W) rounds row and column have changed places.
INLINE vec riffle_low(vec a, vec b) {
#if defined(__AVX512F__)
    return SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif defined(__AVX2__)
    return SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
    return SHUFFLE(a, b, 0, 4, 1, 5);
#endif
}
INLINE vec riffle_high(vec a, vec b) {
#if defined(__AVX512F__)
    return SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
    return SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
    return SHUFFLE(a, b, 2, 6, 3, 7);
#endif
}
INLINE void transpose(vec r[W]) {
    UNROLL for (int round = 1; round < W; round *= 2) {
        vec t[W];
        UNROLL for (int i = 0; i < W / 2; i++) {
            t[2 * i] = riffle_low(r[i], r[i + W / 2]);
            t[2 * i + 1] = riffle_high(r[i], r[i + W / 2]);
        }
        UNROLL for (int i = 0; i < W; i++) r[i] = t[i];
    }
}

#endif
