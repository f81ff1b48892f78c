// tokenizer.c: any text through the tokenizer, and any files as its vocabulary; the result is ids or a
// message. The first byte decides. Even: the rest is a prompt for the small vocabulary of the fixtures. Odd:
// the rest is vocab.json, merges.txt, tokenizer_config.json and a prompt, separated by bytes 0xff.
#define _POSIX_C_SOURCE 200809L
#include "lib/io/io.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// die() frees nothing, because the program ends there: leaks are no finding here.
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "detect_leaks=0"; }

static jmp_buf on_die;
static void leave(const char *message) {
    (void)message;
    longjmp(on_die, 1);
}

static void encode(const Tokenizer *t, const char *text, size_t bytes) {
    int *ids = xmalloc(77 * sizeof *ids), max = 2 + (int)(bytes % 76);
    long cut_at;
    char *copy = xmalloc(bytes + 1);
    memcpy(copy, text, bytes);
    copy[bytes] = 0;
    if (!setjmp(on_die)) {
        int n = tokenizer_encode(t, copy, ids, max, &cut_at);
        if (n < 2 || n > max || ids[n - 1] != tokenizer_end(t) || cut_at < -1 || cut_at >= (long)bytes)
            abort();
    }
    free(copy), free(ids);
}

static void open_and_encode(const char *data, size_t bytes) {
    static const char *const names[] = {"vocab.json", "merges.txt", "tokenizer_config.json"};
    static char folder[64];
    if (!*folder) {
        snprintf(folder, sizeof folder, "/tmp/sd-fuzz-tokenizer-%ld", (long)getpid());
        mkdir(folder, 0777);
    }
    for (int i = 0; i < 3; i++) {
        const char *end = bytes ? memchr(data, 0xff, bytes) : NULL;
        size_t length = end ? (size_t)(end - data) : bytes;
        char *path = format("%s/%s", folder, names[i]);
        FILE *f = length || i < 2 ? fopen(path, "wb") : NULL;
        if (f)
            fwrite(data, 1, length, f), fclose(f);
        else
            unlink(path);
        free(path);
        data += length + (end != NULL), bytes -= length + (end != NULL);
    }
    Tokenizer *volatile t = NULL;
    if (setjmp(on_die)) return;
    t = tokenizer_open(folder);
    encode(t, data, bytes);
    tokenizer_close(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Tokenizer *small;
    die_hook = leave;
    if (!small && !setjmp(on_die)) small = tokenizer_open("test/fixtures/tokenizer_small");
    if (!small) abort(); // run it in the project's folder
    if (size && *data % 2)
        open_and_encode((const char *)data + 1, size - 1);
    else if (size)
        encode(small, (const char *)data + 1, size - 1);
    return 0;
}
