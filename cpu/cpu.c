// cpu.c: the processor as a backend. Which of the tables of kernels runs, so that a program built on one
// machine runs on another; how many threads; their scratch memory. It computes nothing.
#define _DEFAULT_SOURCE // posix_memalign
#include "cpu.h"
#include "lib/base.h"

#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

// ---- the tables -------------------------------------------------------------------------------------------

#if defined(__x86_64__)
// AMX: bits 22 and 24 of edx in cpuid's leaf 7. Linux gives a process the registers when it asks for them, as
// here.
static bool has_tiles(void) {
#if defined(__linux__)
    enum { BF16_TILES = 1 << 22, REGISTERS = 1 << 24, ASK_FOR_FEATURE = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && d & BF16_TILES && d & REGISTERS &&
           !syscall(SYS_arch_prctl, ASK_FOR_FEATURE, TILE_DATA);
#else
    return false;
#endif
}
#endif

static bool runs_here(const char *table) {
#if defined(__x86_64__)
    if (!strcmp(table, "avx512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx2");
    if (!strcmp(table, "avx512_bf16")) return runs_here("avx512") && __builtin_cpu_supports("avx512bf16");
    if (!strcmp(table, "amx_bf16")) return runs_here("avx512_bf16") && has_tiles();
    if (!strcmp(table, "avx2"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
               __builtin_cpu_supports("bmi2");
#endif
    (void)table;
    return true;
}

// The Makefile says which there are, best first: -D'TABLES=X(avx512) X(avx2) X(portable) X(plain)'. What
// comes behind plain is taken where it is asked for by name.
#define X(table) extern const Backend table;
TABLES
#undef X
static const struct {
    const char *name;
    const Backend *kernels;
} tables[] = {
#define X(table) {#table, &table},
    TABLES
#undef X
};

static const char *chosen;
static bool winograd_allowed;
static int gemm_step;

static const char *name(void) {
    static char text[64];
    snprintf(text, sizeof text, "cpu %s, %d thread%s", chosen, cpu_threads(), cpu_threads() == 1 ? "" : "s");
    return text;
}

static int gemm_step_called(const char *wanted) {
    static const char *const steps[] = {"naive", "blocked", "packed", "fast"};
    for (int i = 0; i <= GEMM_FAST; i++)
        if (!strcmp(wanted, steps[i])) return i;
    die("SD_GEMM is '%s'; naive, blocked, packed and fast are known", wanted);
}

Backend backend;

// The first table that runs here, or the one of this name. False where there is none.
static bool take(const char *wanted) {
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        if (wanted && strcmp(wanted, tables[i].name)) continue;
        if (!runs_here(tables[i].name)) continue;
        chosen = tables[i].name;
        backend = *tables[i].kernels;
        if (!backend.name) backend.name = name;
        cpu_memory(&backend);
        return true;
    }
    return false;
}

void backend_init(int threads) {
    const char *winograd = getenv("SD_WINOGRAD"), *wanted = getenv("SD_ISA"); // for tests, and to compare
    const char *step = getenv("SD_GEMM");
    gemm_step = step && *step ? gemm_step_called(step) : GEMM_FAST;
    winograd_allowed = !(winograd && !strcmp(winograd, "0"));
#ifdef _OPENMP
    if (threads > 0) omp_set_num_threads(threads); // else as OpenMP has it: OMP_NUM_THREADS, or all cores
#else
    (void)threads;
#endif
    if (!take(wanted && *wanted ? wanted : NULL))
        die("SD_ISA is '%s'; this processor runs portable, plain and, where it has them, avx2, avx512, "
            "avx512_bf16 and amx_bf16",
            wanted);
}

void backend_dtype(Type type) {
    bool wrong = (type == BF16) != (strstr(chosen, "_bf16") != NULL);
    if (wrong && (type == BF16 ? !take("amx_bf16") && !take("avx512_bf16") : !take(NULL)))
        die("--dtype bf16: this processor, or this build, has no products of bf16 (AMX, AVX512_BF16); --dtype "
            "f32 does without");
    backend.weights = strcmp(chosen, "amx_bf16") ? F32 : BF16; // elsewhere Winograd's convolutions are fp32
}

bool cpu_winograd(void) { return winograd_allowed; }
int cpu_gemm_step(void) { return gemm_step; }

int cpu_threads(void) {
#ifdef _OPENMP
    // A loop within a loop never gets threads of its own, not even where the outer one was not worth any:
    // OpenMP would start new ones and end them again, each time.
    return omp_get_level() > 0 ? 1 : omp_get_max_threads();
#else
    return 1;
#endif
}

// ---- scratch ----------------------------------------------------------------------------------------------

float *scratch(Slot slot, size_t floats) {
    static _Thread_local struct {
        float *at;
        size_t floats;
    } slots[S_M + 1];             // S_M is the last
    const size_t page = 2u << 20; // bytes; large blocks ask for huge pages
    if (slots[slot].floats < floats || !slots[slot].at) {
        if (floats > (SIZE_MAX - page) / 4) die("out of memory: scratch of %zu floats", floats);
        size_t bytes =
            floats * 4 < page ? (floats * 4 + 64) / 64 * 64 : (floats * 4 + page - 1) / page * page;
        free(slots[slot].at);
        void *at;
        if (posix_memalign(&at, bytes < page ? 64 : page, bytes))
            die("out of memory: %zu bytes of scratch", bytes);
        if (bytes >= page) prefer_huge_pages(at, bytes);
        slots[slot].at = at;
        slots[slot].floats = bytes / 4;
    }
    return slots[slot].at;
}
