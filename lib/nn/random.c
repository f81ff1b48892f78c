// random.c: PyTorch's random numbers, so that the same seed draws the same picture. See nn.h.
//
// The CPU generator is MT19937. The Box-Muller transform makes normal values of its uniform ones, in two
// ways, as in PyTorch's aten/src/ATen/native/cpu/DistributionTemplates.h. 16 or more values are made at once,
// in fp32. Fewer are made one by one, in double, and the second value of each pair is kept for the next draw.
#include "nn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double two_pi = 6.283185307179586;

void random_seed(Random *r, uint64_t seed) {
    memset(r, 0, sizeof *r);
    r->seed = seed;
    r->state[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < 624; i++)
        r->state[i] = 1812433253u * (r->state[i - 1] ^ r->state[i - 1] >> 30) + i;
    r->next = 624;
}

static void mt19937_refill(Random *r) {
    uint32_t *s = r->state;
    for (int i = 0; i < 624; i++) {
        uint32_t y = (s[i] & 0x80000000u) | (s[(i + 1) % 624] & 0x7fffffffu);
        s[i] = s[(i + 397) % 624] ^ y >> 1 ^ (y & 1 ? 0x9908b0dfu : 0);
    }
    r->next = 0;
}

uint32_t random_u32(Random *r) {
    if (r->next >= 624) mt19937_refill(r);
    uint32_t y = r->state[r->next++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}

float random_uniform(Random *r) { return (float)(random_u32(r) & 0xffffff) * (1.0f / 16777216); }

int random_below(Random *r, int n) { return (int)(random_u32(r) % (uint32_t)n); }

static double uniform_double(Random *r) { // 53 bits of two words, the first one high
    uint64_t high = random_u32(r), low = random_u32(r);
    return (double)((high << 32 | low) & ((1ull << 53) - 1)) * (1.0 / 9007199254740992.0);
}

static float normal_single(Random *r) {
    if (r->has_spare) {
        r->has_spare = false;
        return (float)r->spare;
    }
    double angle = two_pi * uniform_double(r), radius = sqrt(-2 * log1p(-uniform_double(r)));
    r->has_spare = true;
    r->spare = radius * sin(angle);
    return (float)(radius * cos(angle));
}

// 16 uniform values become 16 normal ones, in place. Values i and i + 8 are a pair.
static void box_muller_16(float *x) {
    for (int i = 0; i < 8; i++) {
        float radius = sqrtf(-2 * logf(1 - x[i])), angle = (float)two_pi * x[i + 8];
        x[i] = radius * cosf(angle);
        x[i + 8] = radius * sinf(angle);
    }
}

void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0, c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1, c3 = (uint32_t)a;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

// torch.randn on a GPU. Thread t draws four words from subsequence t of the stream and makes four normal
// values of them: elements t, t + threads, t + 2 threads and t + 3 threads of the tensor, round by round.
static void normal_philox(Random *r, float *out, size_t count) {
    // Blocks of 256 threads, at most as many as an A100 runs at once: 8 on each of 108 multiprocessors.
    const size_t block = 256, most = 108 * 8;
    size_t blocks = (count + block - 1) / block, threads = (blocks < most ? blocks : most) * block;
    uint32_t key[2] = {(uint32_t)r->seed, (uint32_t)(r->seed >> 32)};
    for (size_t first = 0, round = 0; first < count; first += 4 * threads, round++)
        for (size_t t = 0; t < threads && first + t < count; t++) {
            uint64_t offset = r->offset + round;
            uint32_t counter[4] = {(uint32_t)offset, (uint32_t)(offset >> 32), (uint32_t)t,
                                   (uint32_t)((uint64_t)t >> 32)},
                     w[4];
            philox4x32(counter, key, w);
            for (int pair = 0; pair < 2; pair++) {
                // curand: u = word 2^-32 + 2^-33, angle = 2 pi (word 2^-32) + pi 2^-32
                float u = (float)w[2 * pair] * 2.3283064e-10f + 1.1641532e-10f;
                float angle = (float)w[2 * pair + 1] * 1.46291807e-9f + 7.3145904e-10f;
                float radius = sqrtf(-2 * logf(u));
                float value[2] = {radius * sinf(angle), radius * cosf(angle)};
                for (int j = 0; j < 2; j++) {
                    size_t at = first + t + (size_t)(2 * pair + j) * threads;
                    if (at < count) out[at] = value[j];
                }
            }
        }
    r->offset += (count + 4 * threads - 1) / (4 * threads);
}

void random_seed_philox(Random *r, uint64_t seed) {
    memset(r, 0, sizeof *r);
    r->philox = true, r->seed = seed;
}

void random_normal(Random *r, float *out, size_t count) {
    if (r->philox) {
        normal_philox(r, out, count);
        return;
    }
    if (count < 16) {
        for (size_t i = 0; i < count; i++) out[i] = normal_single(r);
        return;
    }
    for (size_t i = 0; i < count; i++) out[i] = random_uniform(r);
    for (size_t i = 0; i + 16 <= count; i += 16) box_muller_16(out + i);
    if (count % 16) { // the last 16 are drawn again, so that all are made in groups of 16
        for (size_t i = count - 16; i < count; i++) out[i] = random_uniform(r);
        box_muller_16(out + count - 16);
    }
}

Tensor *random_tensor(Random *r, int dims, const int *shape) {
    Tensor *t = tensor_new(dims, shape);
    float *x = xmalloc(tensor_count(t) * sizeof(float));
    random_normal(r, x, tensor_count(t));
    tensor_write(t, x);
    free(x);
    return t;
}
