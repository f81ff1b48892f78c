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

// What is long or large is for `make test-full` alone, which sets FULL. "if (full_size("a step at full size")) ..."
static inline int full_size(const char *what) {
    if (!getenv("FULL")) skip(what, "make test-full runs it");
    return getenv("FULL") != NULL;
}

// Largest |got - want| divided by the largest |want| (or by `floor`, where that is more); NaN counts as infinite.
static inline double max_error(const float *got, const float *want, size_t n, double floor) {
    double worst = 0, scale = floor;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)got[i] - want[i]);
        if (!(d <= worst)) worst = isnan(d) ? INFINITY : d;
        if (fabs(want[i]) > scale) scale = fabs(want[i]);
    }
    return scale > 0 ? worst / scale : worst;
}

// `tolerance` is relative to the largest value of `want`. Prints what was used of it.
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

// A build for the sanitizers (make asan) rounds otherwise than the one that people use: another choice of fused
// multiply-adds. Bars near the limit of fp32 are for the latter.
static inline int other_rounding(void) { return getenv("QUICK") != NULL; }

// Seconds of one processor: beside other programs a better clock than the wall's, where one thread works.
static inline double processor_seconds(void) { return (double)clock() / CLOCKS_PER_SEC; }

static inline int test_report(void) {
    printf("%d passed, %d failed, %d skipped\n", tests_passed, tests_failed, tests_skipped);
    return tests_failed ? 1 : 0;
}

#endif
