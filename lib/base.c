// base.c: errors, memory, strings, time, progress, files. See base.h.
#define _XOPEN_SOURCE 700 // POSIX 2008 and sync()
#define _DEFAULT_SOURCE   // madvise
#include "base.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

// ---- errors and notes ----------------------------------------------------------------------------------

void (*die_hook)(const char *message);
int verbosity;

struct Output {
    FILE *file;
    char *path, *temporary;
    bool direct;  // a device or a pipe: written as it is, there is nothing to rename
    Output *next; // the list of unfinished files
};
static Output *unfinished;

static void remove_unfinished(void) {
    for (Output *o = unfinished; o; o = o->next)
        if (!o->direct) unlink(o->temporary);
}

static _Noreturn void end_with(int status, const char *fmt, va_list args) {
    char message[1024];
    vsnprintf(message, sizeof message, fmt, args);
    for (char *c = message; *c; c++)
        if ((unsigned char)*c < ' ') *c = '?'; // names come from files: one line stays one line
    if (die_hook) die_hook(message);
    remove_unfinished();
    fflush(stdout);
    fprintf(stderr, "sd: %s\n", message);
    exit(status);
}

void die(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    end_with(1, fmt, args);
}

void die_usage(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    end_with(2, fmt, args);
}

static void note_at(int level, const char *fmt, va_list args) {
    if (verbosity < level) return;
    fputs("sd: ", stderr);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
}

void note(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    note_at(0, fmt, args);
    va_end(args);
}

void note_verbose(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    note_at(1, fmt, args);
    va_end(args);
}

// ---- memory --------------------------------------------------------------------------------------------

void prefer_huge_pages(void *at, size_t bytes) {
#if defined(MADV_HUGEPAGE)
    size_t page = (size_t)sysconf(_SC_PAGESIZE), skip = (page - (size_t)at % page) % page; // whole pages only
    if (bytes > skip)
        madvise((char *)at + skip, (bytes - skip) / page * page, MADV_HUGEPAGE); // a wish: no harm if refused
#else
    (void)at, (void)bytes;
#endif
}

// Smaller blocks than 16 MB are mostly reused, and their pages with them.
static void *large_or_small(void *p, size_t bytes) {
    if (bytes >= 16u << 20) prefer_huge_pages(p, bytes);
    return p;
}

void *xmalloc(size_t bytes) {
    void *p = malloc(bytes ? bytes : 1);
    if (!p) die("out of memory: %zu bytes were asked for", bytes);
    return large_or_small(p, bytes);
}

void *xcalloc(size_t count, size_t size) {
    void *p = calloc(count ? count : 1, size ? size : 1);
    if (!p) die("out of memory: %zu times %zu bytes were asked for", count, size);
    return large_or_small(p, count * size);
}

void *xrealloc(void *old, size_t bytes) {
    void *p = realloc(old, bytes ? bytes : 1);
    if (!p) die("out of memory: %zu bytes were asked for", bytes);
    return p;
}

// ---- strings -------------------------------------------------------------------------------------------

char *xstrdup(const char *s) {
    size_t n = strlen(s) + 1;
    return memcpy(xmalloc(n), s, n);
}

char *format(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    char *s = xmalloc((size_t)n + 1);
    va_start(args, fmt);
    vsnprintf(s, (size_t)n + 1, fmt, args);
    va_end(args);
    return s;
}

bool starts_with(const char *s, const char *start) { return !strncmp(s, start, strlen(start)); }

bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

bool next_line(const char **at, const char *end, const char **line, size_t *length) {
    if (*at == end) return false;
    *line = *at;
    const char *feed = memchr(*at, '\n', (size_t)(end - *at));
    *length = (size_t)((feed ? feed : end) - *line);
    *at = feed ? feed + 1 : end;
    if (*length && (*line)[*length - 1] == '\r') --*length;
    return true;
}

bool utf8_valid(const char *s, size_t bytes, size_t *bad_at) {
    // First bytes, how many follow, and the range of the second; the others are 80 to BF (RFC 3629, 4).
    static const struct {
        unsigned char first, last, more, low, high;
    } sequences[] = {{0x00, 0x7F, 0, 0x00, 0x00}, {0xC2, 0xDF, 1, 0x80, 0xBF}, {0xE0, 0xE0, 2, 0xA0, 0xBF},
                     {0xE1, 0xEC, 2, 0x80, 0xBF}, {0xED, 0xED, 2, 0x80, 0x9F}, {0xEE, 0xEF, 2, 0x80, 0xBF},
                     {0xF0, 0xF0, 3, 0x90, 0xBF}, {0xF1, 0xF3, 3, 0x80, 0xBF}, {0xF4, 0xF4, 3, 0x80, 0x8F}};
    const unsigned char *u = (const unsigned char *)s;
    for (size_t i = 0; i < bytes;) {
        size_t k = 0;
        while (k < 9 && (u[i] < sequences[k].first || u[i] > sequences[k].last)) k++;
        bool good = k < 9 && sequences[k].more < bytes - i;
        for (size_t j = 1; good && j <= sequences[k].more; j++)
            good = u[i + j] >= (j == 1 ? sequences[k].low : 0x80) &&
                   u[i + j] <= (j == 1 ? sequences[k].high : 0xBF);
        if (!good) {
            if (bad_at) *bad_at = i;
            return false;
        }
        i += sequences[k].more + 1u;
    }
    return true;
}

uint32_t utf8_get(const char **s) {
    const unsigned char *u = (const unsigned char *)*s;
    int more = u[0] < 0x80 ? 0 : u[0] < 0xE0 ? 1 : u[0] < 0xF0 ? 2 : 3;
    uint32_t point = more ? u[0] & (0x3Fu >> more) : u[0];
    for (int i = 1; i <= more; i++) point = point << 6 | (u[i] & 0x3F);
    *s += more + 1;
    return point;
}

int utf8_put(char out[4], uint32_t point) {
    int more = point < 0x80 ? 0 : point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
    for (int i = more; i > 0; i--, point >>= 6) out[i] = (char)(0x80 | (point & 0x3F));
    static const unsigned char first[] = {0, 0xC0, 0xE0, 0xF0};
    out[0] = (char)(first[more] | point);
    return more + 1;
}

// The entry of a name, or the free place where it belongs. (Open addressing; the hash is 64-bit FNV-1a.)
static struct Name *names_place(const Names *n, const char *text, size_t length) {
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)text[i]) * 0x100000001b3;
    for (size_t i = (size_t)(hash ^ hash >> 32);; i++) {
        struct Name *e = &n->entries[i & (n->size - 1)];
        if (!e->text || (e->length == length && !memcmp(e->text, text, length))) return e;
    }
}

void names_set(Names *n, const char *text, size_t length, int number) {
    if (2 * (n->count + 1) > n->size) { // at most half full, so that a search is short
        Names larger = {.size = n->size ? 2 * n->size : 1024, .count = n->count};
        larger.entries = xcalloc(larger.size, sizeof *larger.entries);
        for (size_t i = 0; i < n->size; i++) {
            const struct Name *e = &n->entries[i];
            if (e->text) *names_place(&larger, e->text, e->length) = *e;
        }
        names_free(n);
        *n = larger;
    }
    struct Name *e = names_place(n, text, length);
    n->count += !e->text;
    *e = (struct Name){text, length, number};
}

int names_get(const Names *n, const char *text, size_t length) {
    const struct Name *e = n->size ? names_place(n, text, length) : NULL;
    return e && e->text ? e->number : -1;
}

void names_free(Names *n) { free(n->entries); }

// ---- time and progress ---------------------------------------------------------------------------------

double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void format_time(char out[16], double s) {
    if (s < 100)
        snprintf(out, 16, "%.1fs", s);
    else if (s < 3600)
        snprintf(out, 16, "%dm%02ds", (int)s / 60, (int)s % 60);
    else
        snprintf(out, 16, "%dh%02dm", (int)(s / 3600), (int)(s / 60) % 60);
}

static void progress_draw(Progress *p, const char *extra) {
    static const char full[] = "########################", empty[] = "........................";
    p->drawn = seconds();
    double used = p->drawn - p->started, rate = used > 0 ? (double)p->done / used : 0;
    bool terminal = isatty(STDERR_FILENO), slow = rate > 0 && rate < 1;
    char spent[16], left[16] = "?";
    format_time(spent, used);
    if (rate > 0) format_time(left, (double)(p->total - p->done) / rate);
    int filled = p->total > 0 ? (int)(24 * p->done / p->total) : 0;
    if (terminal)
        fprintf(stderr, "\r%s %.*s%.*s", p->what, filled, full, 24 - filled, empty);
    else
        fputs(p->what, stderr);
    fprintf(stderr, slow ? " %ld/%ld, %.2f s each" : " %ld/%ld, %.1f/s", p->done, p->total,
            slow ? 1 / rate : rate);
    fprintf(stderr, ", %s spent, %s left%s%s%s", spent, left, extra ? ", " : "", extra ? extra : "",
            terminal ? "\033[K" : "\n");
}

void progress_begin(Progress *p, const char *what, long total) {
    *p = (Progress){.what = what, .total = total, .started = seconds()};
    p->drawn = p->started;
}

void progress_step(Progress *p, long done, const char *extra) {
    p->done = done;
    double every = isatty(STDERR_FILENO) ? 0.1 : 15;
    if (verbosity >= 0 && (done == p->total || seconds() - p->drawn >= every)) progress_draw(p, extra);
}

void progress_end(Progress *p) {
    if (verbosity >= 0 && p->drawn > p->started && isatty(STDERR_FILENO)) fputc('\n', stderr);
}

static volatile sig_atomic_t signals_seen, catching;

static void on_signal(int signal_number) {
    (void)signal_number;
    if (signals_seen++ || !catching) {
        remove_unfinished(); // unlink() may be called in a handler
        _exit(1);
    }
}

void interrupt_tidy(void) {
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    action.sa_handler = SIG_IGN;
    sigaction(SIGXFSZ, &action, NULL);
}

void interrupt_catch(void) {
    catching = 1;
    interrupt_tidy();
}

bool interrupted(void) { return signals_seen != 0; }

// ---- files ---------------------------------------------------------------------------------------------

static _Noreturn void die_of_writing(const char *path) { die("cannot write %s: %s", path, strerror(errno)); }
static _Noreturn void die_of_reading(const char *path) { die("cannot read %s: %s", path, strerror(errno)); }

Output *output_open(const char *path) {
    struct stat there;
    bool exists = stat(path, &there) == 0;
    if (exists && S_ISDIR(there.st_mode)) die("cannot write %s: it is a folder", path);
    bool direct = exists && !S_ISREG(there.st_mode);
    char *temporary = direct ? xstrdup(path) : format("%s.%ld.part", path, (long)getpid());
    FILE *file = fopen(temporary, "wb");
    if (!file) die_of_writing(path);
    Output *o = xmalloc(sizeof *o);
    *o = (Output){.file = file, .path = xstrdup(path), .temporary = temporary, .direct = direct};
#pragma omp critical(unfinished_files) // pictures are written by several threads
    {
        o->next = unfinished;
        unfinished = o;
    }
    return o;
}

static void output_forget(Output *o) {
#pragma omp critical(unfinished_files)
    {
        Output **p = &unfinished;
        while (*p != o) p = &(*p)->next;
        *p = o->next;
    }
    free(o->path), free(o->temporary), free(o);
}

void output_discard(Output *o) {
    fclose(o->file);
    if (!o->direct) unlink(o->temporary);
    output_forget(o);
}

void output_write(Output *o, const void *data, size_t bytes) {
    if (bytes && fwrite(data, 1, bytes, o->file) != bytes) die_of_writing(o->path);
}

void output_printf(Output *o, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    if (vfprintf(o->file, fmt, args) < 0) die_of_writing(o->path);
    va_end(args);
}

static bool lazy;

void output_lazily(bool on) {
    if (lazy && !on) sync();
    lazy = on;
}

void output_commit(Output *o) {
    if (fflush(o->file) || (!o->direct && !lazy && fsync(fileno(o->file)))) die_of_writing(o->path);
    int closed = fclose(o->file);
    if (closed || (!o->direct && rename(o->temporary, o->path))) die_of_writing(o->path);
    output_forget(o);
}

void remove_leftovers(const char *dir) {
    DIR *folder = opendir(dir);
    if (!folder) return;
    for (struct dirent *e; (e = readdir(folder));) {
        char *part = strstr(e->d_name, ".part"), *pid = part;
        while (pid && pid > e->d_name && pid[-1] >= '0' && pid[-1] <= '9') pid--;
        if (!part || part[5] || pid == part || pid == e->d_name || pid[-1] != '.') continue;
        char *path = format("%s/%s", dir, e->d_name);
        if (kill((pid_t)strtol(pid, NULL, 10), 0) && errno == ESRCH) unlink(path);
        free(path);
    }
    closedir(folder);
}

void write_text_file(const char *dir, const char *name, const char *text) {
    char *path = format("%s/%s", dir, name), *slash = strrchr(path, '/');
    *slash = 0;
    make_directories(path);
    *slash = '/';
    Output *o = output_open(path);
    output_write(o, text, strlen(text));
    output_commit(o);
    free(path);
}

void copy_file(const char *from, const char *to) {
    size_t bytes;
    const unsigned char *data = map_file(from, &bytes);
    Output *o = output_open(to);
    output_write(o, data, bytes);
    output_commit(o);
    unmap_file(data, bytes);
}

char *read_file(const char *path, size_t *bytes) {
    FILE *f = fopen(path, "rb");
    if (!f) die_of_reading(path);
    struct stat s;
    if (fstat(fileno(f), &s) || S_ISDIR(s.st_mode)) die("cannot read %s: it is a folder", path);
    size_t capacity = (size_t)s.st_size + 1, n = 0, got;
    char *data = xmalloc(capacity);
    while ((got = fread(data + n, 1, capacity - n, f)) > 0) {
        n += got;
        if (n == capacity) data = xrealloc(data, capacity *= 2);
    }
    if (ferror(f)) die_of_reading(path);
    fclose(f);
    data[n] = 0;
    if (bytes) *bytes = n;
    return data;
}

const unsigned char *map_file(const char *path, size_t *bytes) {
    int fd = open(path, O_RDONLY);
    struct stat s;
    if (fd < 0 || fstat(fd, &s)) die_of_reading(path);
    if (!S_ISREG(s.st_mode)) die("cannot read %s: it is not a regular file", path);
    *bytes = (size_t)s.st_size;
    void *at = *bytes ? mmap(NULL, *bytes, PROT_READ, MAP_PRIVATE, fd, 0) : NULL;
    if (at == MAP_FAILED) die("cannot map %s into memory: %s", path, strerror(errno));
    close(fd);
    return at;
}

void unmap_file(const unsigned char *at, size_t bytes) {
    if (at) munmap((void *)at, bytes);
}

bool file_exists(const char *path) {
    struct stat s;
    return stat(path, &s) == 0;
}

bool is_directory(const char *path) {
    struct stat s;
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

void make_directories(const char *path) {
    char *p = xstrdup(path);
    for (char *c = p + 1; *c; c++)
        if (*c == '/') {
            *c = 0;
            mkdir(p, 0777); // the last one decides
            *c = '/';
        }
    if (mkdir(p, 0777) && !is_directory(p)) die("cannot make the folder %s: %s", path, strerror(errno));
    free(p);
}
