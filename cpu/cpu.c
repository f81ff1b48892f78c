// cpu.c: the fast kernels' front door. Every k_ function that computes is forwarded to the version for the best
// instruction set that this processor has, so that a program built on one machine runs on another. Threads and
// scratch memory are kept here as well. It computes nothing.
#define _DEFAULT_SOURCE // madvise
#include "lib/base.h"
#include "cpu.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__x86_64__)
#define SETS(X) X(avx512) X(avx2) X(portable)
static bool has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx2");
}
static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}
#else
#define SETS(X) X(portable)
#endif
static bool has_portable(void) { return true; }

// ---- one table of kernels for each set -----------------------------------------------------------------------

typedef struct {
    const char *name;
    bool (*runs_here)(void);
#define FIELD(name, parameters, arguments) void(*name) parameters;
    KERNELS(FIELD)
} Table;

#define DECLARE_avx512(name, parameters, arguments) void name##_avx512 parameters;
#define DECLARE_avx2(name, parameters, arguments) void name##_avx2 parameters;
#define DECLARE_portable(name, parameters, arguments) void name##_portable parameters;
#define ENTRY_avx512(name, parameters, arguments) name##_avx512,
#define ENTRY_avx2(name, parameters, arguments) name##_avx2,
#define ENTRY_portable(name, parameters, arguments) name##_portable,

#define DECLARE(set) KERNELS(DECLARE_##set)
SETS(DECLARE)
#define TABLE(set) {#set, has_##set, KERNELS(ENTRY_##set)},
static const Table tables[] = {SETS(TABLE)}; // best first
static const Table *chosen;

#define FORWARD(name, parameters, arguments)                                                                 \
    void k_##name parameters { chosen->name arguments; }
KERNELS(FORWARD)

// ---- the machine ---------------------------------------------------------------------------------------------

int cpu_threads(void) {
#ifdef _OPENMP
    // A loop within a loop never gets threads of its own, not even where the outer one was not worth any: OpenMP would
    // start new ones and end them again, each time.
    return omp_get_level() > 0 ? 1 : omp_get_max_threads();
#else
    return 1;
#endif
}

static bool winograd_allowed;
bool cpu_winograd(void) { return winograd_allowed; }

void k_init(int threads) {
    const char *winograd = getenv("SD_WINOGRAD");
    winograd_allowed = !(winograd && !strcmp(winograd, "0"));
#ifdef _OPENMP
    if (threads > 0) omp_set_num_threads(threads); // else as OpenMP has it: OMP_NUM_THREADS, or all cores
#else
    (void)threads;
#endif
    const char *wanted = getenv("SD_ISA"); // for tests, and to compare
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        if (wanted && *wanted && strcmp(wanted, tables[i].name)) continue;
        if (!tables[i].runs_here()) continue;
        chosen = &tables[i];
        return;
    }
    die("SD_ISA is '%s'; this processor runs portable and, where it has them, avx2 and avx512", wanted);
}

const char *k_name(void) {
    static char name[64];
    snprintf(name, sizeof name, "cpu %s, %d thread%s", chosen->name, cpu_threads(),
             cpu_threads() == 1 ? "" : "s");
    return name;
}

// ---- scratch -------------------------------------------------------------------------------------------------

float *scratch(Slot slot, size_t floats) {
    static _Thread_local struct {
        float *at;
        size_t floats;
    } slots[S_SLOTS];
    const size_t page = 2u << 20; // bytes; large blocks ask for huge pages
    if (slots[slot].floats < floats || !slots[slot].at) {
        if (floats > (SIZE_MAX - page) / 4) die("out of memory: scratch of %zu floats", floats);
        size_t bytes =
            floats * 4 < page ? (floats * 4 + 64) / 64 * 64 : (floats * 4 + page - 1) / page * page;
        free(slots[slot].at);
        void *at;
        if (posix_memalign(&at, bytes < page ? 64 : page, bytes))
            die("out of memory: %zu bytes of scratch", bytes);
#ifdef MADV_HUGEPAGE
        if (bytes >= page) madvise(at, bytes, MADV_HUGEPAGE); // a wish
#endif
        slots[slot].at = at;
        slots[slot].floats = bytes / 4;
    }
    return slots[slot].at;
}
