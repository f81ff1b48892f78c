// trace.c: any bytes as a safetensors file for `sd info -v`, and as the two traces of `sd verify A B --json`.
#include "fuzz.h"
#include "folder.h"
#include "cli/commands.h"

static void run(int (*command)(int, char **), const char *const *words) {
    char *argv[8];
    int argc = 0;
    for (; words[argc]; argc++) argv[argc] = xstrdup(words[argc]);
    argv[argc] = NULL;
    jmp_buf outside;
    memcpy(&outside, &fuzz_death, sizeof outside);
    if (!setjmp(fuzz_death)) command(argc, argv);
    memcpy(&fuzz_death, &outside, sizeof outside);
    fflush(stdout);
}

static void fuzz_one(unsigned char *data, size_t size) {
    static bool quiet;
    if (!quiet) quiet = freopen("/dev/null", "w", stdout) != NULL;
    size_t half = size / 2;
    fuzz_write_store("a.safetensors", data, size);
    fuzz_write_store("b.safetensors", size % 2 ? data : data + half, size % 2 ? size : size - half);
    const char *a = fuzz_path("a.safetensors"), *b = fuzz_path("b.safetensors");
    run(command_info, (const char *[]){"info", a, "-v", "-q", NULL});
    run(command_verify, (const char *[]){"verify", a, b, "--json", "-q", NULL});
}
