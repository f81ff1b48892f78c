// wrap.cu: every wrapper of an instruction in cuda/ptx.h, and the built-in functions that the kernels use, on
// raw registers, against the tables and formulas of NVIDIA's manuals (PTX ISA 8; CUDA C++ Programming Guide).
// Expected values are computed here from the manual's text, element by element, independently of the
// emulator.
//
// Built twice: by g++ it tests the emulator, by nvcc it tests the inline assembly of ptx.h.
#include "cuda.h"

#include <cmath>

// ---- ldmatrix --------------------------------------------------------------------------------------------
// PTX ISA: "threads 0-7 hold the addresses of the rows of the first matrix, 8-15 of the second", and so on.
// "Each thread receives a fragment of a row: thread 0 holds elements 0, 1 of row 0, thread 1 elements 2, 3,
// ..., thread 4 elements 0, 1 of row 1". With .trans the matrix is loaded in column-major format.

static __device__ __host__ int scattered_row(int lane) { return (lane * 7 + 3) % 32; } // rows lie anywhere

template <int N, bool TRANSPOSED> static __global__ void run_ldmatrix(const uint16_t *x, uint32_t *y) {
    __shared__ __align__(16) uint16_t s[32][24];
    int lane = threadIdx.x;
    for (int i = lane; i < 32 * 24; i += 32) s[i / 24][i % 24] = x[i];
    __syncwarp();
    const void *row = &s[scattered_row(lane)][8];
    uint32_t r[N];
    if constexpr (N == 1 && !TRANSPOSED) ldmatrix_x1(r, row);
    if constexpr (N == 1 && TRANSPOSED) ldmatrix_x1_trans(r, row);
    if constexpr (N == 2 && !TRANSPOSED) ldmatrix_x2(r, row);
    if constexpr (N == 2 && TRANSPOSED) ldmatrix_x2_trans(r, row);
    if constexpr (N == 4 && !TRANSPOSED) ldmatrix_x4(r, row);
    if constexpr (N == 4 && TRANSPOSED) ldmatrix_x4_trans(r, row);
    for (int i = 0; i < N; i++) y[i * 32 + lane] = r[i];
}
template <int N, bool TRANSPOSED> static void test_ldmatrix(const char *name) {
    std::vector<uint16_t> x(32 * 24);
    for (uint16_t &v : x) v = (uint16_t)test_random();
    Device<uint16_t> dx(x);
    Device<uint32_t> dy(N * 32);
    run_ldmatrix<N, TRANSPOSED><<<1, 32>>>(dx.at, dy.at);
    Words want(N * 32);
    for (int matrix = 0; matrix < N; matrix++)
        for (int thread = 0; thread < 32; thread++)
            for (int half = 0; half < 2; half++) {
                int row = thread / 4, element = thread % 4 * 2 + half;
                if (TRANSPOSED) std::swap(row, element);
                uint32_t v = x[scattered_row(8 * matrix + row) * 24 + 8 + element];
                want[matrix * 32 + thread] |= v << 16 * half;
            }
    check_words(name, dy.get(), want);
}

// ---- mma.sync --------------------------------------------------------------------------------------------
// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type", with groupID = %laneid >> 2 and
// threadID_in_group = %laneid % 4:
//   A   row = groupID           for ai where 0 <= i < 2 || 4 <= i < 6
//             groupID + 8       otherwise
//       col = (threadID_in_group * 2) + (i & 0x1)        for ai where i < 4
//             (threadID_in_group * 2) + (i & 0x1) + 8    for ai where i >= 4
//   B   row = (threadID_in_group * 2) + (i & 0x1)        for bi where i < 2
//             (threadID_in_group * 2) + (i & 0x1) + 8    for bi where i >= 2
//       col = groupID
//   C   row = groupID           for ci where i < 2
//             groupID + 8       for ci where i >= 2
//       col = (threadID_in_group * 2) + (i & 0x1)
// "Matrix Fragments for mma.m16n8k8", .tf32:
//   A   row = groupID for a0 and a2, groupID + 8 for a1 and a3; col = threadID_in_group for a0 and a1, + 4
//   for a2, a3 B   row = threadID_in_group for b0, + 4 for b1; col = groupID;    C as above

enum Kind { F16_KIND, BF16_KIND, TF32_KIND };
template <Kind KIND>
static __global__ void run_mma(const uint32_t *a, const uint32_t *b, const float *c, float *d) {
    int lane = threadIdx.x;
    uint32_t fa[4], fb[2];
    float fc[4];
    for (int i = 0; i < 4; i++) fa[i] = a[i * 32 + lane], fc[i] = c[i * 32 + lane];
    for (int i = 0; i < 2; i++) fb[i] = b[i * 32 + lane];
    if (KIND == F16_KIND) mma_m16n8k16_f16(fc, fa, fb);
    if (KIND == BF16_KIND) mma_m16n8k16_bf16(fc, fa, fb);
    if (KIND == TF32_KIND) mma_m16n8k8_tf32(fc, fa, fb);
    for (int i = 0; i < 4; i++) d[i * 32 + lane] = fc[i];
}

static double number_of(Kind kind, uint32_t bits) {
    if (kind == TF32_KIND) return as_float(bits & 0xffffe000u); // "the lower 13 bits are ignored"
    if (kind == BF16_KIND) return as_float(bits << 16);
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double v = exponent == 31 ? (fraction ? NAN : INFINITY)
               : exponent     ? ldexp(1024 + fraction, exponent - 25)
                              : ldexp(fraction, -24);
    return bits & 0x8000 ? -v : v;
}
// A small value with few bits: every sum below is exact, whatever its order.
static uint32_t small_number(Kind kind) {
    int v = (int)(test_random() % 17) - 8;
    uint32_t f = as_word((float)v);
    if (kind == TF32_KIND)
        return f | (test_random() & 0x1fff); // with random values in the bits that are ignored
    if (kind == BF16_KIND) return f >> 16;
    return v ? (f >> 16 & 0x8000) | ((f >> 23 & 255) - 112) << 10 | (f >> 13 & 1023) : 0;
}
template <Kind KIND> static void test_mma(const char *name) {
    const int K = KIND == TF32_KIND ? 8 : 16, ELEMENTS = KIND == TF32_KIND ? 4 : 8; // of A in a thread
    for (int round = 0; round < 12; round++) {
        Words a(4 * 32), b(2 * 32);
        std::vector<float> c(4 * 32);
        double A[16][16] = {}, B[16][8] = {}, C[16][8] = {};
        for (int lane = 0; lane < 32; lane++) {
            int group = lane >> 2, in_group = lane % 4;
            for (int i = 0; i < ELEMENTS; i++) {
                uint32_t v = small_number(KIND);
                if (KIND == TF32_KIND) {
                    a[i * 32 + lane] = v;
                    A[i == 0 || i == 2 ? group : group + 8][i < 2 ? in_group : in_group + 4] =
                        number_of(KIND, v);
                } else {
                    a[i / 2 * 32 + lane] |= v << 16 * (i % 2);
                    int row = i < 2 || (4 <= i && i < 6) ? group : group + 8,
                        col = in_group * 2 + (i & 1) + (i < 4 ? 0 : 8);
                    A[row][col] = number_of(KIND, v);
                }
            }
            for (int i = 0; i < ELEMENTS / 2; i++) {
                uint32_t v = small_number(KIND);
                if (KIND == TF32_KIND) {
                    b[i * 32 + lane] = v;
                    B[i ? in_group + 4 : in_group][group] = number_of(KIND, v);
                } else {
                    b[i / 2 * 32 + lane] |= v << 16 * (i % 2);
                    B[in_group * 2 + (i & 1) + (i < 2 ? 0 : 8)][group] = number_of(KIND, v);
                }
            }
            for (int i = 0; i < 4; i++) {
                c[i * 32 + lane] = (float)(test_random() % 1000);
                C[i < 2 ? group : group + 8][in_group * 2 + (i & 1)] = c[i * 32 + lane];
            }
        }
        Device<uint32_t> da(a), db(b);
        Device<float> dc(c), dd(4 * 32);
        run_mma<KIND><<<1, 32>>>(da.at, db.at, dc.at, dd.at);
        std::vector<float> d = dd.get();
        Words got(4 * 32), want(4 * 32);
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 4; i++) {
                int row = i < 2 ? lane >> 2 : (lane >> 2) + 8, col = lane % 4 * 2 + (i & 1);
                double sum = C[row][col];
                for (int k = 0; k < K; k++) sum += A[row][k] * B[k][col];
                want[i * 32 + lane] = as_word((float)sum);
                got[i * 32 + lane] = as_word(d[i * 32 + lane]);
            }
        check_words(name, got, want);
    }
}

// ---- cp.async --------------------------------------------------------------------------------------------
// "cp.async ... [dst], [src], cp-size, src-size": src-size bytes are copied, the rest of cp-size is
// zero-filled. "cp.async.wait_group N: wait until only N or fewer of the most recent groups are pending".

static __global__ void run_copies(const uint32_t *x,
                                  uint32_t *y) { // 32 threads; thread t copies t % 5 words of 4
    __shared__ __align__(16) uint32_t s[2][128];
    int t = threadIdx.x;
    for (int i = t; i < 256; i += 32) s[i / 128][i % 128] = 7;
    __syncthreads();
    cp_async16(&s[0][t * 4], x + t * 4, 16);
    cp_async_commit();
    cp_async16(&s[1][t * 4], x + 128 + t * 4, t % 5 * 4);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    for (int i = 0; i < 4; i++) y[t * 4 + i] = s[0][(t * 4 + i + 4) % 128]; // a neighbour's
    cp_async_wait<0>();
    __syncthreads();
    for (int i = 0; i < 4; i++) y[128 + t * 4 + i] = s[1][(t * 4 + i + 4) % 128];
}
static void test_copies() {
    Words x(256), want(256);
    for (uint32_t &v : x) v = test_random();
    Device<uint32_t> dx(x), dy(256);
    run_copies<<<1, 32>>>(dx.at, dy.at);
    for (int i = 0; i < 128; i++) {
        int j = (i + 4) % 128;
        want[i] = x[j];
        want[128 + i] = j % 4 < j / 4 % 5 ? x[128 + j] : 0;
    }
    check_words("cp.async with 0, 4, 8, 12 and 16 source bytes; groups", dy.get(), want);
}

static __global__ void run_round(const float *x, uint32_t *y, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = round_tf32(x[i]) & 0xffffe000u;
}
static void test_round() { // cvt.rna: to nearest, ties away from zero; 10 bits of mantissa
    std::vector<float> x;
    for (int i = 0; i < 5000; i++)
        x.push_back(as_float((test_random() & 0x807fffff) | (100 + test_random() % 50) << 23));
    for (uint32_t low : {0x0fffu, 0x1000u, 0x1001u, 0x2fffu, 0x3000u, 0x3001u})
        x.push_back(as_float(0x3f800000u | low)), x.push_back(as_float(0xbf800000u | low));
    Device<float> dx(x);
    Device<uint32_t> dy(x.size());
    run_round<<<1, 128>>>(dx.at, dy.at, (int)x.size());
    Words want;
    for (float v : x) {
        int e;
        double m = frexp(fabs((double)v), &e) * 2048; // 11 bits before the point
        double r = ldexp(floor(m + 0.5), e - 11);
        want.push_back(as_word((float)(v < 0 ? -r : r)));
    }
    check_words("round_tf32", dy.get(), want);
}

// ---- shuffles --------------------------------------------------------------------------------------------
// PTX ISA, shfl.sync: with c = ((32 - width) << 8) | clamp, segmask = c >> 8, bval = b & 31, cval = c & 31:
//   maxLane = (lane & segmask) | (cval & ~segmask), minLane = lane & segmask
//   up: j = lane - bval, p = j >= maxLane;  down: j = lane + bval, p = j <= maxLane;
//   bfly: j = lane ^ bval, p = j <= maxLane;  idx: j = minLane | (bval & ~segmask), p = j <= maxLane;  if !p,
//   j = lane
// clamp is 0 for up and 31 for the others.

static __global__ void run_shuffles(uint32_t *y, int width, int arg) {
    int lane = threadIdx.x, v = 1000 + lane;
    y[lane] = __shfl_sync(~0u, v, arg, width);
    y[32 + lane] = __shfl_up_sync(~0u, v, arg, width);
    y[64 + lane] = __shfl_down_sync(~0u, v, arg, width);
    y[96 + lane] = __shfl_xor_sync(~0u, v, arg, width);
    y[128 + lane] = __float_as_uint(__shfl_sync(~0u, (float)v, arg, width));
}
static void test_shuffles() {
    for (int width = 1; width <= 32; width *= 2) {
        Words got, want;
        for (int arg = -33; arg < 70; arg++) {
            Device<uint32_t> dy(160);
            run_shuffles<<<1, 32>>>(dy.at, width, arg);
            Words y = dy.get();
            got.insert(got.end(), y.begin(), y.end());
            for (int kind = 0; kind < 5; kind++)
                for (int lane = 0; lane < 32; lane++) {
                    int segmask = 32 - width, bval = arg & 31, cval = kind == 1 ? 0 : 31;
                    int max_lane = (lane & segmask) | (cval & ~segmask & 31), min_lane = lane & segmask, j;
                    bool p;
                    if (kind == 1)
                        j = lane - bval, p = j >= max_lane;
                    else if (kind == 2)
                        j = lane + bval, p = j <= max_lane;
                    else if (kind == 3)
                        j = lane ^ bval, p = j <= max_lane;
                    else
                        j = min_lane | (bval & ~segmask), p = j <= max_lane;
                    uint32_t v = 1000 + (uint32_t)(p ? j : lane);
                    want.push_back(kind == 4 ? as_word((float)v) : v);
                }
        }
        check_words("shuffles of width " + std::to_string(width), got, want);
    }
}

// ---- votes, reductions, barriers, atomics ----------------------------------------------------------------

enum { VOTES = 17 };
static __global__ void run_votes(uint32_t *y, const uint32_t *x) {
    int t = threadIdx.x, n = blockDim.x, lane = t % 32;
    uint32_t v = x[t];
    int p = v & 1;
    y[t] = __ballot_sync(~0u, p);
    y[n + t] = __any_sync(~0u, p);
    y[2 * n + t] = __all_sync(~0u, v | 1);
    y[3 * n + t] = __reduce_add_sync(~0u, v);
    y[4 * n + t] = __reduce_min_sync(~0u, (int)v);
    y[5 * n + t] = __reduce_max_sync(~0u, (int)v);
    y[6 * n + t] = __reduce_min_sync(~0u, v);
    y[7 * n + t] = __reduce_max_sync(~0u, v);
    y[8 * n + t] = __reduce_and_sync(~0u, v | 0xff);
    y[9 * n + t] = __reduce_or_sync(~0u, v & 0xff0);
    y[10 * n + t] = __reduce_xor_sync(~0u, v);
    // Two halves of a warp, with a mask each.
    if (lane % 2) {
        y[11 * n + t] = __ballot_sync(0xaaaaaaaau, p);
        y[12 * n + t] = __all_sync(0xaaaaaaaau, lane % 2);
    } else {
        y[11 * n + t] = __ballot_sync(0x55555555u, !p);
        y[12 * n + t] = __any_sync(0x55555555u, lane % 2);
    }
    y[13 * n + t] = __syncthreads_count(p);
    y[14 * n + t] = __syncthreads_and(v | 1) != 0;
    y[15 * n + t] = __syncthreads_or(p) != 0;
    y[16 * n + t] = __shfl_xor_sync(~0u, v, 1);
}
static void test_votes() {
    for (int n : {32, 64, 48, 20}) { // also where the last warp is partial
        Words x(n), want(VOTES * n);
        for (uint32_t &v : x) v = test_random();
        Device<uint32_t> dx(x), dy(VOTES * n);
        run_votes<<<1, n>>>(dy.at, dx.at);
        int count = 0;
        for (uint32_t v : x) count += v & 1;
        for (int t = 0; t < n; t++) {
            int begin = t & ~31, end = begin + 32 < n ? begin + 32 : n;
            uint32_t ballot = 0, add = 0, umin = ~0u, umax = 0, band = ~0u, bor = 0, bxor = 0, half = 0;
            int smin = INT32_MAX, smax = INT32_MIN;
            for (int i = begin; i < end; i++) {
                uint32_t v = x[i];
                ballot |= (v & 1) << (i - begin);
                add += v;
                umin = v < umin ? v : umin, umax = v > umax ? v : umax;
                smin = (int)v < smin ? (int)v : smin, smax = (int)v > smax ? (int)v : smax;
                band &= v | 0xff, bor |= v & 0xff0, bxor ^= v;
                if (i % 2 == t % 2) half |= (t % 2 ? v & 1 : !(v & 1)) << (i - begin);
            }
            uint32_t all[VOTES] = {
                ballot, ballot != 0, 1,       add,  (uint32_t)smin, (uint32_t)smax,    umin,
                umax,   band,        bor,     bxor, half,           (uint32_t)(t % 2), (uint32_t)count,
                1,      count > 0,   x[t ^ 1]};
            for (int i = 0; i < VOTES; i++) want[i * n + t] = all[i];
        }
        check_words("votes, reductions and barriers of " + std::to_string(n) + " threads", dy.get(), want);
    }
}

static __global__ void run_atomics(int *largest, unsigned *count, unsigned *swapped, float *sum,
                                   unsigned *old) {
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    atomicMax(largest, t * 37 % 101 - 50);
    old[t] = atomicAdd(count, 1u);
    atomicAdd(sum, 0.25f);
    unsigned seen = 0, wanted;
    do {
        wanted = seen;
        seen = atomicCAS(swapped, wanted, wanted + t);
    } while (seen != wanted);
}
static void test_atomics() {
    Device<int> largest(std::vector<int>(1, -1000));
    Device<unsigned> count(1), swapped(1), old(256);
    Device<float> sum(1);
    run_atomics<<<4, 64>>>(largest.at, count.at, swapped.at, sum.at, old.at);
    Words seen(256), once(256, 1);
    for (uint32_t v : old.get())
        if (v < 256) seen[v]++;
    int most = -1000;
    for (int t = 0; t < 256; t++) most = t * 37 % 101 - 50 > most ? t * 37 % 101 - 50 : most;
    check_words("atomicAdd gives each thread another old value", seen, once);
    check_words("atomicMax, atomicAdd, atomicCAS, atomicAdd of floats",
                Words{(uint32_t)largest.get()[0], count.get()[0], swapped.get()[0], as_word(sum.get()[0])},
                Words{(uint32_t)most, 256, 255 * 256 / 2, as_word(64)});
}

// ---- arithmetic -------------------------------------------------------------------------------------------

// fp32 to a type of E bits of exponent and M of fraction: to nearest, ties to even, by exact arithmetic.
static uint32_t narrow(double x, int E, int M) {
    uint32_t sign = std::signbit(x) ? 1u << (E + M) : 0, infinity = ((1u << E) - 1) << M;
    int lowest = 2 - (1 << (E - 1)), largest = (1 << (E - 1)) - 1;
    double a = fabs(x);
    if (x != x) return 0x7fff; // cvt.rn of NaN: the canonical one
    if (a == 0 || std::isinf(a)) return sign | (a == 0 ? 0 : infinity);
    int e = ilogb(a) < lowest ? lowest : ilogb(a);
    uint32_t quanta = (uint32_t)nearbyint(ldexp(a, M - e));
    if (quanta >> (M + 1)) quanta >>= 1, e++;
    if (e > largest) return sign | infinity;
    return sign | (quanta >> M ? (uint32_t)(e - lowest + 1) << M | (quanta & ((1u << M) - 1)) : quanta);
}

enum { NUMBERS = 14 };
static __global__ void run_numbers(const uint32_t *x, uint32_t *y, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float f = __uint_as_float(x[i]), g = __uint_as_float(x[(i + 1) % n]);
        __half h = __float2half_rn(f), k = __float2half_rn(g);
        __nv_bfloat16 b = __float2bfloat16_rn(f);
        uint16_t bits;
        memcpy(&bits, &h, 2);
        y[i] = bits;
        memcpy(&bits, &b, 2);
        y[n + i] = bits;
        y[2 * n + i] = __float_as_uint(__half2float(h));
        y[3 * n + i] = __float_as_uint(__bfloat162float(b));
        __half2 pair = __floats2half2_rn(f, g);
        memcpy(&y[4 * n + i], &pair, 4);
        __nv_bfloat162 pair_b = __floats2bfloat162_rn(f, g);
        memcpy(&y[5 * n + i], &pair_b, 4);
        y[6 * n + i] = __float_as_uint(fminf(f, g));
        y[7 * n + i] = __float_as_uint(fmaxf(f, g));
        y[8 * n + i] = __clz((int)x[i]);
        y[9 * n + i] = __popc(x[i]);
        y[10 * n + i] = __ffs((int)x[i]);
        __half sum = h + k, product = h * k;
        memcpy(&bits, &sum, 2);
        y[11 * n + i] = bits;
        memcpy(&bits, &product, 2);
        y[12 * n + i] = bits;
        y[13 * n + i] = __float_as_uint(__fmaf_rn(f, g, f));
    }
}
static void test_numbers() {
    Words x = {0,           0x80000000u,
               1,           0x80000001u,
               0x7f800000u, 0xff800000u,
               0x7fc00000u, 0xffc12345u,
               0x7f800001u, 0x7fffff,
               0x800000,    0x33000000u,
               0x33000001u, 0x387fe000u,
               0x38800000u, 0x477fefffu,
               0x477ff000u, 0x7f7fffffu,
               0xff7fffffu, 0x3f808000u,
               0x3f818000u, 0x3f801000u,
               0x3f803000u, 0x80000000u,
               0,           0};
    for (int i = 0; i < 4000; i++) {
        uint32_t r = test_random();
        x.push_back(i % 2 ? r : (r & 0x807fffffu) | (100 + test_random() % 50) << 23);
    }
    int n = (int)x.size();
    Device<uint32_t> dx(x), dy(NUMBERS * n);
    run_numbers<<<1, 128>>>(dx.at, dy.at, n);
    Words y = dy.get();
    static const char *const names[NUMBERS] = {"float2half",   "float2bfloat16",
                                               "half2float",   "bfloat162float",
                                               "floats2half2", "floats2bfloat162",
                                               "fminf",        "fmaxf",
                                               "clz",          "popc",
                                               "ffs",          "half +",
                                               "half *",       "fmaf"};
    for (int k = 0; k < NUMBERS; k++) {
        Words got(y.begin() + k * n, y.begin() + (k + 1) * n), want(n);
        for (int i = 0; i < n; i++) {
            uint32_t u = x[i], v = x[(i + 1) % n];
            float f = as_float(u), g = as_float(v);
            uint32_t h = narrow(f, 5, 10), hg = narrow(g, 5, 10), b = narrow(f, 8, 7), bg = narrow(g, 8, 7);
            double hf = number_of(F16_KIND, h), hgf = number_of(F16_KIND, hg);
            // "If one of the inputs is NaN the result is the other"; "+0.0 > -0.0" (PTX ISA, min and max)
            auto smaller = [&](bool min) {
                if (f != f || g != g) return f != f ? v : u;
                if (f == 0 && g == 0) return min ? u | v : u & v;
                return (f < g) == min ? u : v;
            };
            switch (k) {
            case 0: want[i] = h; break;
            case 1: want[i] = b; break;
            case 2: want[i] = as_word((float)hf); break;
            case 3: want[i] = b << 16; break;
            case 4: want[i] = h | hg << 16; break;
            case 5: want[i] = b | bg << 16; break;
            case 6: want[i] = smaller(true); break;
            case 7: want[i] = smaller(false); break;
            case 8: want[i] = u ? (uint32_t)__builtin_clz(u) : 32; break;
            case 9: want[i] = (uint32_t)__builtin_popcount(u); break;
            case 10: want[i] = (uint32_t)__builtin_ffs((int)u); break;
            case 11: want[i] = narrow(hf + hgf, 5, 10); break;
            case 12: want[i] = narrow(hf * hgf, 5, 10); break;
            default: want[i] = as_word(fmaf(f, g, f));
            }
            bool is_float = k == 2 || k == 3 || k == 6 || k == 7 || k == 13;
            if (is_float && as_float(got[i]) != as_float(got[i]) && as_float(want[i]) != as_float(want[i]))
                got[i] = want[i]; // any NaN
        }
        check_words(names[k], got, want);
    }
}

// ---- memory that the host sets ---------------------------------------------------------------------------

__constant__ float coefficients[4];
static __global__ void use_constant(float *y) { y[threadIdx.x] = coefficients[threadIdx.x]; }
static __global__ void use_dynamic(const uint32_t *x, uint32_t *y) {
    extern __shared__ __align__(128) unsigned char dynamic_shared[];
    uint32_t *s = (uint32_t *)dynamic_shared;
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];
}
static void test_memories() {
    float c[4] = {1, 2, 3, 4};
    cudaMemcpyToSymbol(coefficients, c, sizeof c);
    Device<float> y(4);
    use_constant<<<1, 4>>>(y.at);
    check(y.get() == std::vector<float>(c, c + 4), "constant memory");
    Words x(100), want(100);
    for (int i = 0; i < 100; i++) x[i] = test_random();
    for (int i = 0; i < 100; i++) want[i] = x[99 - i];
    Device<uint32_t> dx(x), dy(100);
    use_dynamic<<<1, 100, 400>>>(dx.at, dy.at);
    check_words("dynamic shared memory", dy.get(), want);
}

static __global__ void add_one(uint32_t *x) { x[threadIdx.x] += 1; }
static void test_graph() { // work recorded once is done at each launch
    Device<uint32_t> x(32);
    cudaStream_t s;
    cudaStreamCreate(&s);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal);
    add_one<<<1, 32, 0, s>>>(x.at);
    add_one<<<1, 32, 0, s>>>(x.at);
    cudaStreamEndCapture(s, &graph);
    check(x.get()[5] == 0, "a captured kernel does not run");
    cudaGraphInstantiate(&exec, graph, 0);
    for (int i = 0; i < 3; i++) cudaGraphLaunch(exec, s);
    cudaStreamSynchronize(s);
    check(x.get()[5] == 6, "a graph of two kernels, launched three times");
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaEvent_t begin, end;
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    cudaEventRecord(begin, s);
    add_one<<<1, 32, 0, s>>>(x.at);
    cudaEventRecord(end, s);
    cudaEventSynchronize(end);
    float ms = -1;
    cudaEventElapsedTime(&ms, begin, end);
    check(ms >= 0, "events measure time");
    cudaStreamDestroy(s);
}

int main() {
    test_ldmatrix<1, false>("ldmatrix x1");
    test_ldmatrix<1, true>("ldmatrix x1 trans");
    test_ldmatrix<2, false>("ldmatrix x2");
    test_ldmatrix<2, true>("ldmatrix x2 trans");
    test_ldmatrix<4, false>("ldmatrix x4");
    test_ldmatrix<4, true>("ldmatrix x4 trans");
    test_mma<F16_KIND>("mma m16n8k16 f16");
    test_mma<BF16_KIND>("mma m16n8k16 bf16");
    test_mma<TF32_KIND>("mma m16n8k8 tf32");
    test_copies();
    test_round();
    test_shuffles();
    test_votes();
    test_atomics();
    test_numbers();
    test_memories();
    test_graph();
    return test_report();
}
