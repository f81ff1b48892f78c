// test.h: what a test program needs. A test is a function that checks; main() runs them and ends with
// test_report(). Comparisons are written so that NaN fails, and each says how much of its tolerance it used.
#ifndef TEST_H
#define TEST_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int tests_passed, tests_failed, tests_skipped;

// One thing a user relies on, in words.
static inline void check(int ok, const char *what) {
    if (ok)
        tests_passed++;
    else {
        tests_failed++;
        printf("FAILED  %s\n", what);
    }
}

static inline void skip(const char *what, const char *why) {
    tests_skipped++;
    printf("skipped %s: %s\n", what, why);
}

// Long or large tests run under `make test-full` alone, which sets FULL: if (full_size("a full step")) ...
static inline int full_size(const char *what) {
    if (!getenv("FULL")) skip(what, "make test-full runs it");
    return getenv("FULL") != NULL;
}

// Keeps the largest value so far; true if it is x. NaN counts as infinite: it stays, and exceeds every
// tolerance. fmax() and `if (x > *largest)` would skip it; test/house/nan.sh.test looks for such comparisons.
static inline int keep_largest(double *largest, double x) {
    int larger = !(x <= *largest);
    if (larger) *largest = isnan(x) ? INFINITY : x;
    return larger;
}

// Largest |got - want|, divided by the largest |want| or by `floor`, whichever is more. Any NaN makes it
// infinite or NaN.
static inline double max_error(const float *got, const float *want, size_t n, double floor) {
    double worst = 0, scale = floor;
    for (size_t i = 0; i < n; i++) {
        keep_largest(&worst, fabs((double)got[i] - want[i]));
        keep_largest(&scale, fabs(want[i]));
    }
    return scale > 0 ? worst / scale : worst;
}

// The tolerance is relative to the largest value of `want`. Prints the error, and how much of the tolerance
// it uses.
static inline int check_close(const char *what, const float *got, const float *want, size_t n,
                              double tolerance) {
    double e = max_error(got, want, n, 1e-30);
    int ok = e <= tolerance;
    if (ok)
        tests_passed++;
    else
        tests_failed++;
    printf("%-7s %s: error %.2g, %.0f %% of the tolerance %.0e\n", ok ? "ok" : "FAILED", what, e,
           100 * e / tolerance, tolerance);
    return ok;
}

// The sanitizers' build (make asan) rounds differently: the compiler fuses other multiply-adds. Tolerances
// near the limit of fp32 are for the usual build.
static inline int other_rounding(void) { return getenv("QUICK") != NULL; }

// CPU time of the process: for a single thread, a better clock than the wall's while other programs run.
static inline double processor_seconds(void) { return (double)clock() / CLOCKS_PER_SEC; }

static inline int test_report(void) {
    printf("%d passed, %d failed, %d skipped\n", tests_passed, tests_failed, tests_skipped);
    return tests_failed ? 1 : 0;
}

#endif
