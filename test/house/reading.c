// The documents: every stop of doc/READING.md is a tag in the code, once, in the file that it names, and
// every tag in the code is a stop. No link leads nowhere. Every question and exercise of doc/COURSE.md has
// its answer in doc/TEACHING.md, and every stop that doc/THEORY.md names is one.
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

// The target of the Markdown link whose "](" is at `at`, a new string; *end is where it ends.
static char *link_target(const char *at, const char **end) {
    at += 2;
    *end = at + strcspn(at, ")\n");
    return format("%.*s", (int)(*end - at), at);
}

// The file of a stop is named behind its tag, as a link.
static void check_stop(const char *at, size_t n, const char *code) {
    char *what = format("stop %.*s of doc/READING.md stands in the code once, not %d times", (int)n, at,
                        occurrences(code, at, n));
    check(occurrences(code, at, n) == 1, what);
    free(what);
    const char *line = at + strcspn(at, "\n"), *link = strstr(at, "](../");
    char *path = link && link < line ? link_target(link, &link) : xstrdup("../nothing");
    what = format("stop %.*s of doc/READING.md stands in %s", (int)n, at, path + 3);
    char *file = file_exists(path + 3) ? read_file(path + 3, NULL) : xstrdup("");
    check(occurrences(file, at, n) == 1, what);
    free(file), free(path), free(what);
}

// Does the text have a heading whose anchor GitHub calls so: small letters, a hyphen for a blank, no signs?
static bool has_anchor(const char *text, const char *anchor) {
    for (const char *at = text; (at = strstr(at, "\n#")); at++) {
        const char *c = at + 1, *a = anchor;
        while (*c == '#') c++;
        for (c++; *c && *c != '\n'; c++) {
            unsigned char got = (unsigned char)*c;
            if (got != ' ' && got != '-' && got != '_' && got < 128 && !isalnum(got)) continue;
            if (*a++ != (got == ' ' ? '-' : (char)tolower(got))) break;
        }
        if (*c == '\n' && !*a) return true;
    }
    return false;
}

static void check_links(const char *document) {
    char *text = read_file(document, NULL), *folder = format("%s", document);
    char *slash = strrchr(folder, '/');
    slash ? (void)(slash[1] = 0) : (void)(folder[0] = 0);
    for (const char *at = text; (at = strstr(at, "]("));) {
        bool quoted = false; // between backticks
        for (const char *c = at; c > text && *c != '\n'; c--) quoted ^= *c == '`';
        char *target = link_target(at, &at), *anchor = strchr(target, '#');
        if (!quoted && !starts_with(target, "http")) {
            if (anchor) *anchor++ = 0;
            char *path = *target ? format("%s%s", folder, target) : xstrdup(document),
                 *what = format("%s: the link to %s%s%s leads somewhere", document, target, anchor ? "#" : "",
                                anchor ? anchor : "");
            bool there = file_exists(path) || is_directory(path);
            if (there && anchor) {
                char *there_text = read_file(path, NULL);
                there = has_anchor(there_text, anchor);
                free(there_text);
            }
            check(there, what);
            free(path), free(what);
        }
        free(target);
    }
    free(text), free(folder);
}

static void check_all_links(void) {
    FILE *p = popen("ls *.md doc/*.md weights/*.md", "r");
    char document[256];
    while (fgets(document, sizeof document, p)) {
        document[strcspn(document, "\n")] = 0;
        check_links(document);
    }
    pclose(p);
}

// Every Q1.2 and every exercise of `asked` stands in bold type in `answered`.
static void check_answers(const char *asked, const char *answered, const char *names) {
    for (const char *at = asked; *at; at++) {
        size_t n = 0;
        if (at[0] == 'Q' && isdigit((unsigned char)at[1])) n = strspn(at, "Q.0123456789");
        while (n && at[n - 1] == '.') n--;
        const char *number = starts_with(at, "make exercise N=") ? at + strlen("make exercise N=") : NULL;
        if (!n && !number) continue;
        char *name = n ? format("**%.*s", (int)n, at)
                       : format("**Exercise %.*s", (int)strspn(number, "0123456789"), number),
             *what = format("%s: %s is in both", names, name + 2);
        const char *answer = strstr(answered, name);
        while (answer && isdigit((unsigned char)answer[strlen(name)])) answer = strstr(answer + 1, name);
        check(answer != NULL, what);
        free(name), free(what);
    }
}

int main(void) {
    char *doc = read_file("doc/READING.md", NULL), *code = sources();
    for (const char *at = doc; *at; at++) {
        size_t n = tag_length(at);
        if (n && at >= doc + 2 && !strncmp(at - 2, "- ", 2)) check_stop(at, n, code);
    }
    for (const char *at = strstr(code, "// ["); at; at = strstr(at + 1, "// [")) {
        size_t n = tag_length(at + 3);
        if (!n) continue;
        char *stop = format("- %.*s ", (int)n, at + 3),
             *what = format("tag %.*s of the code is a stop of doc/READING.md", (int)n, at + 3);
        check(strstr(doc, stop) != NULL, what);
        free(stop), free(what);
    }
    char *theory = read_file("doc/THEORY.md", NULL);
    for (const char *at = theory; *at; at++) {
        size_t n = tag_length(at);
        if (!n) continue;
        char *stop = format("- %.*s ", (int)n, at),
             *what = format("doc/THEORY.md: %.*s is a stop of doc/READING.md", (int)n, at);
        check(strstr(doc, stop) != NULL, what);
        free(stop), free(what);
    }
    check_all_links();
    char *course = read_file("doc/COURSE.md", NULL), *teaching = read_file("doc/TEACHING.md", NULL);
    check_answers(course, teaching, "an answer in doc/TEACHING.md");
    free(course), free(teaching), free(theory), free(doc), free(code);
    return test_report();
}
