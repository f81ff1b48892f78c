// made.c (test): weights/toy/made.c makes the bits that test/python/made.py made. test/fixtures/made.txt,
// written by `reference.py checksums`, has one tensor a line: name, shape, and a checksum for either regime.
#include "weights/toy/made.h"
#include "test/test.h"

#include <inttypes.h>
#include <stdint.h>

// The sum over i of (2i + 1) * (bits of element i), modulo 2^64: it depends on values and their order.
static uint64_t checksum(const float *values, int64_t count) {
    uint64_t sum = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        sum += (2 * (uint64_t)i + 1) * bits;
    }
    return sum;
}

int main(void) {
    FILE *file = fopen("test/fixtures/made.txt", "r");
    if (!file) {
        perror("test/fixtures/made.txt");
        return 1;
    }
    char name[256], shape_text[64];
    uint64_t want[2];
    int lines = 0, wrong = 0;
    while (fscanf(file, "%255s %63s %" SCNx64 " %" SCNx64, name, shape_text, &want[0], &want[1]) == 4) {
        int64_t shape[4], count = 1;
        int ndim = 0;
        for (char *at = shape_text; *at && ndim < 4; at += *at == 'x')
            count *= shape[ndim++] = strtol(at, &at, 10);
        float *values = malloc((size_t)count * sizeof *values);
        if (!values) return 1;
        for (MadeRegime regime = MADE_SOFT; regime <= MADE_HARD; regime++) {
            made_fill(name, ndim, shape, regime, values);
            uint64_t got = checksum(values, count);
            if (got != want[regime] && wrong++ < 10)
                printf("%s, %s: checksum %016" PRIx64 ", expected %016" PRIx64 "\n", name,
                       regime == MADE_SOFT ? "soft" : "hard", got, want[regime]);
        }
        free(values);
        lines++;
    }
    fclose(file);
    printf("%d tensors in two regimes, %d wrong\n", lines, wrong);
    check(lines > 500, "the list of checksums is there");
    check(wrong == 0, "made weights are the same bits in C and in Python");
    return test_report();
}
