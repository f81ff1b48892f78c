// files.h: what the tests of file formats share: a temporary folder, pseudo-random bytes, hashes of results,
// and CHECK_DIES, which expects die().
#ifndef IO_FILES_H
#define IO_FILES_H

#include "lib/io/io.h"
#include "test/test.h"

#include <setjmp.h>
#include <unistd.h>

#define FIXTURES "test/fixtures/io/"

// ---- a folder for what the test writes ------------------------------------------------------------------

static char folder[200];

// SD_TEST_KEEP=DIR keeps the files there, for make_io_fixtures.py --check; else they are removed at the end.
static inline void folder_begin(void) {
    const char *keep = getenv("SD_TEST_KEEP"), *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s%s%s",
             keep  ? keep
             : tmp ? tmp
                   : "/tmp",
             keep ? "" : "/sd-test-", keep ? "" : "XXXXXX");
    if (keep)
        make_directories(folder);
    else if (!mkdtemp(folder))
        die("cannot make the folder %s", folder);
}

static inline void folder_end(void) {
    if (getenv("SD_TEST_KEEP")) return;
    char command[256];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    if (system(command)) printf("could not remove %s\n", folder);
}

// A path in that folder; valid for the next seven calls.
static inline const char *in_folder(const char *name) {
    static char paths[8][1200];
    static int at;
    at = (at + 1) % 8;
    snprintf(paths[at], sizeof paths[at], "%s/%s", folder, name);
    return paths[at];
}

static inline const char *write_bytes(const char *name, const void *data, size_t n) {
    const char *path = in_folder(name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, n, f) != n || fclose(f)) die("cannot write %s", path);
    return path;
}

static inline const char *write_text(const char *name, const char *text) {
    return write_bytes(name, text, strlen(text));
}

// ---- made bytes and hashes -------------------------------------------------------------------------------

static inline void noise(unsigned char *out, size_t n, uint32_t seed) { // as in make_io_fixtures.py
    for (size_t i = 0; i < n; i++) {
        uint32_t x = (uint32_t)i + seed * 1000003u;
        x = (x ^ x >> 16) * 0x7feb352du;
        x = (x ^ x >> 15) * 0x846ca68bu;
        out[i] = (unsigned char)((x ^ x >> 16) >> 24);
    }
}

static inline uint64_t fnv1a(uint64_t h, const void *data, size_t n) { // begins with FNV_START
    const unsigned char *p = data;
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 1099511628211u;
    return h;
}
#define FNV_START 14695981039346656037u

static inline void check_hash(const char *what, uint64_t got) {
    char name[80];
    unsigned long long want = 0;
    int found = 0;
    FILE *f = fopen(FIXTURES "expected.txt", "r");
    while (f && !found && fscanf(f, "%79s %llx", name, &want) == 2) found = !strcmp(name, what);
    if (f) fclose(f);
    if (!found || got != want)
        printf("%s: hash %016llx, expected %016llx\n", what, (unsigned long long)got, found ? want : 0);
    check(found && got == want, what);
}

// ---- die() expected --------------------------------------------------------------------------------------

static jmp_buf death;
static char last_words[1024];

static inline void on_death(const char *message) {
    snprintf(last_words, sizeof last_words, "%s", message);
    longjmp(death, 1);
}

// The statement must die with a message that contains `words`.
#define CHECK_DIES(what, words, statement)                                                                   \
    do {                                                                                                     \
        die_hook = on_death;                                                                                 \
        if (!setjmp(death)) {                                                                                \
            statement;                                                                                       \
            printf("it did not die with '%s'\n", words);                                                     \
            check(0, what);                                                                                  \
        } else {                                                                                             \
            if (!strstr(last_words, words)) printf("it said '%s', expected '%s'\n", last_words, words);      \
            check(strstr(last_words, words) != NULL, what);                                                  \
        }                                                                                                    \
        die_hook = NULL;                                                                                     \
    } while (0)

#endif
