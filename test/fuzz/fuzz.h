// fuzz.h: what the fuzzers share. `make fuzz-json` builds one with clang and runs it, `make fuzz` all of
// them; the corpus begins as a copy of test/fixtures/io. die() is a correct answer to invalid input. It frees
// nothing, so leaks are not counted.
#ifndef FUZZ_H
#define FUZZ_H

#include "lib/base.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

static jmp_buf fuzz_death;
static void fuzz_die(const char *message) {
    (void)message;
    longjmp(fuzz_death, 1);
}

// A heap copy of exactly these bytes: the sanitizer then finds a read past the end.
static inline unsigned char *fuzz_copy(const uint8_t *data, size_t size) {
    unsigned char *copy = malloc(size ? size : 1);
    if (size) memcpy(copy, data, size);
    return copy;
}

static void fuzz_one(unsigned char *data, size_t size); // given by the fuzzer

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    verbosity = -1;
    die_hook = fuzz_die;
    unsigned char *copy = fuzz_copy(data, size);
    if (!setjmp(fuzz_death)) fuzz_one(copy, size);
    free(copy);
    return 0;
}

#endif
