// Every stop of doc/READING.md is a tag in the code, once, and every tag in the code is a stop.
#define _POSIX_C_SOURCE 200809L // popen
#include "lib/base.h"
#include "test/test.h"

#include <ctype.h>

// Text of all sources, one after another.
static char *sources(void) {
    FILE *p = popen("cat $(find *.c lib cpu weights/toy cli cuda -name '*.[ch]' -o -name '*.cu')", "r");
    size_t room = 1 << 22, n = 0, got;
    char *text = xmalloc(room);
    while ((got = fread(text + n, 1, room - n - 1, p)) > 0)
        if ((n += got) + 1 == room) text = xrealloc(text, room *= 2);
    pclose(p);
    text[n] = 0;
    return text;
}

// The tag that begins at `at`: '[', a capital letter, digits, ']'. Returns its length or 0.
static size_t tag_length(const char *at) {
    if (at[0] != '[' || !isupper((unsigned char)at[1]) || !isdigit((unsigned char)at[2])) return 0;
    size_t n = 3;
    while (isdigit((unsigned char)at[n])) n++;
    return at[n] == ']' ? n + 1 : 0;
}

static int occurrences(const char *text, const char *tag, size_t n) {
    int count = 0;
    for (const char *at = text; (at = strstr(at, "// "));) { // a tag opens a comment, or ends one
        const char *end = strchr(at, '\n');
        for (const char *c = at; end && c < end; c++) count += !strncmp(c, tag, n) && c[-1] == ' ';
        at = end ? end : at + 3;
    }
    return count;
}

int main(void) {
    char *doc = read_file("doc/READING.md", NULL), *code = sources();
    for (const char *at = doc; *at; at++) {
        size_t n = tag_length(at);
        if (!n || at < doc + 2 || strncmp(at - 2, "- ", 2)) continue;
        char *what = format("stop %.*s of doc/READING.md stands in the code once, not %d times", (int)n, at,
                            occurrences(code, at, n));
        check(occurrences(code, at, n) == 1, what);
        free(what);
    }
    for (const char *at = strstr(code, "// ["); at; at = strstr(at + 1, "// [")) {
        size_t n = tag_length(at + 3);
        if (!n) continue;
        char *stop = format("- %.*s ", (int)n, at + 3),
             *what = format("tag %.*s of the code is a stop of doc/READING.md", (int)n, at + 3);
        check(strstr(doc, stop) != NULL, what);
        free(stop), free(what);
    }
    free(doc), free(code);
    return test_report();
}
