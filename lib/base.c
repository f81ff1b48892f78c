// base.c: errors, memory, time, progress and files that appear whole. See base.h.
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

// ---- memory and strings --------------------------------------------------------------------------------

static const size_t HUGE_FROM =
    16u << 20; // bytes; smaller blocks are mostly reused, and their pages with them

void prefer_huge_pages(void *at, size_t bytes) {
#if defined(MADV_HUGEPAGE)
    size_t page = (size_t)sysconf(_SC_PAGESIZE), skip = (page - (size_t)at % page) % page; // whole pages only
    if (bytes > skip)
        madvise((char *)at + skip, (bytes - skip) / page * page, MADV_HUGEPAGE); // a wish: no harm if refused
#else
    (void)at, (void)bytes;
#endif
}

void *xmalloc(size_t bytes) {
    void *p = malloc(bytes ? bytes : 1);
    if (!p) die("out of memory: %zu bytes were asked for", bytes);
    if (bytes >= HUGE_FROM) prefer_huge_pages(p, bytes);
    return p;
}

void *xcalloc(size_t count, size_t size) {
    void *p = calloc(count ? count : 1, size ? size : 1);
    if (!p) die("out of memory: %zu times %zu bytes were asked for", count, size);
    if (count * size >= HUGE_FROM) prefer_huge_pages(p, count * size);
    return p;
}

void *xrealloc(void *old, size_t bytes) {
    void *p = realloc(old, bytes ? bytes : 1);
    if (!p) die("out of memory: %zu bytes were asked for", bytes);
    return p;
}

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

// ---- UTF-8 ---------------------------------------------------------------------------------------------

bool utf8_valid(const char *s, size_t bytes, size_t *bad_at) {
    const unsigned char *u = (const unsigned char *)s;
    size_t i = 0;
    while (i < bytes) {
        unsigned char c = u[i];
        size_t more = c < 0x80   ? 0
                      : c < 0xC2 ? 4
                      : c < 0xE0 ? 1
                      : c < 0xF0 ? 2
                      : c < 0xF5 ? 3
                                 : 4; // 4: no lead byte
        if (more == 4 || more >= bytes - i) break;
        // The second byte's range excludes longer forms than needed, surrogates and what lies above U+10FFFF.
        unsigned char low = c == 0xE0   ? 0xA0
                            : c == 0xF0 ? 0x90
                                        : 0x80,
                      high = c == 0xED   ? 0x9F
                             : c == 0xF4 ? 0x8F
                                         : 0xBF;
        if (more && (u[i + 1] < low || u[i + 1] > high)) break;
        if (more > 1 && (u[i + 2] & 0xC0) != 0x80) break;
        if (more > 2 && (u[i + 3] & 0xC0) != 0x80) break;
        i += more + 1;
    }
    if (i < bytes && bad_at) *bad_at = i;
    return i >= bytes;
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
    if (point < 0x80) {
        out[0] = (char)point;
        return 1;
    }
    int more = point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
    for (int i = more; i > 0; i--, point >>= 6) out[i] = (char)(0x80 | (point & 0x3F));
    out[0] = (char)((more == 1 ? 0xC0 : more == 2 ? 0xE0 : 0xF0) | point);
    return more + 1;
}

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
    double now = seconds(), used = now - p->started, rate = used > 0 ? (double)p->done / used : 0;
    char spent[16], left[16] = "?", speed[32];
    format_time(spent, used);
    if (rate > 0) format_time(left, (double)(p->total - p->done) / rate);
    snprintf(speed, sizeof speed, rate >= 1 || rate == 0 ? "%.1f/s" : "%.2f s each",
             rate >= 1 || rate == 0 ? rate : 1 / rate);
    bool terminal = isatty(STDERR_FILENO);
    char bar[25] = "";
    if (terminal) {
        int filled = p->total > 0 ? (int)(24 * p->done / p->total) : 0;
        for (int i = 0; i < 24; i++) bar[i] = i < filled ? '#' : '.';
        bar[24] = 0;
    }
    fprintf(stderr, "%s%s %s%s%ld/%ld, %s, %s spent, %s left%s%s%s", terminal ? "\r" : "", p->what, bar,
            terminal ? " " : "", p->done, p->total, speed, spent, left, extra ? ", " : "", extra ? extra : "",
            terminal ? "\033[K" : "\n");
    p->drawn = now;
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

Output *output_open(const char *path) {
    struct stat there;
    bool exists = stat(path, &there) == 0;
    if (exists && S_ISDIR(there.st_mode)) die("cannot write %s: it is a folder", path);
    Output *o = xcalloc(1, sizeof *o);
    o->path = xstrdup(path);
    o->direct = exists && !S_ISREG(there.st_mode);
    o->temporary = o->direct ? xstrdup(path) : format("%s.%ld.part", path, (long)getpid());
    o->file = fopen(o->temporary, "wb");
    if (!o->file) {
        int error = errno;
        free(o->temporary), free(o->path), free(o);
        die("cannot write %s: %s", path, strerror(error));
    }
#pragma omp critical(unfinished_files) // pictures are written by several threads
    {
        o->next = unfinished;
        unfinished = o;
    }
    return o;
}

static void output_forget(Output *o) {
#pragma omp critical(unfinished_files)
    for (Output **p = &unfinished; *p; p = &(*p)->next)
        if (*p == o) {
            *p = o->next;
            break;
        }
    free(o->path), free(o->temporary), free(o);
}

void output_discard(Output *o) {
    fclose(o->file);
    if (!o->direct) unlink(o->temporary);
    output_forget(o);
}

void output_write(Output *o, const void *data, size_t bytes) {
    if (bytes && fwrite(data, 1, bytes, o->file) != bytes)
        die("cannot write %s: %s", o->path, strerror(errno));
}

void output_printf(Output *o, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    if (vfprintf(o->file, fmt, args) < 0) die("cannot write %s: %s", o->path, strerror(errno));
    va_end(args);
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

static bool lazy;

void output_lazily(bool on) {
    if (lazy && !on) sync();
    lazy = on;
}

void output_commit(Output *o) {
    if (fflush(o->file) || (!o->direct && !lazy && fsync(fileno(o->file))))
        die("cannot write %s: %s", o->path, strerror(errno));
    int closed = fclose(o->file);
    if (closed || (!o->direct && rename(o->temporary, o->path)))
        die("cannot write %s: %s", o->path, strerror(errno));
    output_forget(o);
}

char *read_file(const char *path, size_t *bytes) {
    FILE *f = fopen(path, "rb");
    if (!f) die("cannot read %s: %s", path, strerror(errno));
    struct stat s;
    if (fstat(fileno(f), &s) || S_ISDIR(s.st_mode)) die("cannot read %s: it is a folder", path);
    size_t capacity = (size_t)s.st_size + 1, n = 0, got;
    char *data = xmalloc(capacity);
    while ((got = fread(data + n, 1, capacity - n, f)) > 0) {
        n += got;
        if (n == capacity) data = xrealloc(data, capacity *= 2);
    }
    if (ferror(f)) die("cannot read %s: %s", path, strerror(errno));
    fclose(f);
    data[n] = 0;
    if (bytes) *bytes = n;
    return data;
}

const unsigned char *map_file(const char *path, size_t *bytes) {
    int fd = open(path, O_RDONLY);
    if (fd < 0) die("cannot read %s: %s", path, strerror(errno));
    struct stat s;
    if (fstat(fd, &s)) die("cannot read %s: %s", path, strerror(errno));
    if (!S_ISREG(s.st_mode)) die("cannot read %s: it is no regular file", path);
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
