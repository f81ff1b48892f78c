// fuzz.h: what the fuzzers share. Each is built by clang from the file under test itself:
//   clang -std=c17 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -Ilib \
//         -isystem /usr/include/stb test/fuzz_X.c lib/base.c ... -lm
//   ASAN_OPTIONS=detect_leaks=0 ./fuzz_X -max_total_time=60 CORPUS   (a folder; a copy of test/fixtures/io is a good one)
// die() is a fine answer to nonsense; memory that was held at that moment is lost, so leaks are not counted.
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

// Exactly these bytes on the heap, so that the sanitizer sees a read of one byte more.
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
