// half.cu: the emulator's conversions between fp32 and 16 bits against the processor's own instructions:
// every fp16 value to fp32; fp32 to fp16 and bf16 on a dense grid of bit patterns (every 61st, 70 million)
// and on all patterns near a tie. F16C rounds to nearest, ties to even. So does AVX512-BF16, but it takes
// subnormal values as zero: those are compared with exact arithmetic instead. There is no kernel here; nvcc's
// build has nothing to test.
#include "cuda.h"

#if defined(__x86_64__) && !defined(__CUDACC__)
#include <immintrin.h>

__attribute__((target("f16c"))) static uint16_t hardware_half(float f) {
    return _cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT);
}
__attribute__((target("f16c"))) static float hardware_float(uint16_t h) { return _cvtsh_ss(h); }
__attribute__((target("avx512bf16,avx512vl"))) static uint16_t hardware_bf16(float f) {
    __m128bh pair = _mm_cvtneps_pbh(_mm_set1_ps(f));
    uint16_t bits;
    memcpy(&bits, &pair, 2);
    return bits;
}

static size_t half_wrong, bf16_wrong, compared;
static bool has_bf16;
static void compare(uint32_t u) {
    float f = as_float(u);
    bool nan = f != f;
    uint16_t h = emu_float_to_half(f), b = emu_float_to_bf16(f);
    compared++;
    if (nan)
        half_wrong += h != 0x7fff, bf16_wrong += b != 0x7fff; // as cvt.rn gives it, not as x86 does
    else {
        half_wrong += h != hardware_half(f);
        bool subnormal = (u & 0x7f800000) == 0;
        uint16_t exact = (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
        bf16_wrong += b != (has_bf16 && !subnormal ? hardware_bf16(f) : exact);
    }
}

int main() {
    if (!__builtin_cpu_supports("f16c")) {
        skip("half conversions", "this processor has no F16C");
        return test_report();
    }
    has_bf16 = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl");
    if (!has_bf16) skip("bf16 against AVX512-BF16", "this processor has none; compared with arithmetic");
    size_t wrong = 0;
    for (uint32_t h = 0; h < 65536; h++) {
        float got = emu_half_to_float((uint16_t)h), want = hardware_float((uint16_t)h);
        wrong += got != got ? want == want : as_word(got) != as_word(want);
        wrong += as_word(emu_bf16_to_float((uint16_t)h)) != h << 16;
    }
    check(!wrong, "all 65536 values of 16 bits to fp32");
    for (uint64_t u = 0; u < (uint64_t)1 << 32; u += 61) compare((uint32_t)u);
    for (uint32_t top = 0; top < 65536; top++)
        for (uint32_t low : {0u, 1u, 0xfffu, 0x1000u, 0x1001u, 0x1fffu, 0x7fffu, 0x8000u, 0x8001u, 0xffffu})
            compare(top << 16 | low);
    printf("%zu values compared%s\n", compared, has_bf16 ? ", bf16 with the processor" : "");
    check(!half_wrong, "fp32 to fp16");
    check(!bf16_wrong, "fp32 to bf16");
    return test_report();
}
#else
int main() {
    skip("half conversions", "nothing to compare with here");
    return test_report();
}
#endif
