// base.c: errors, memory, strings, time, progress, files. See base.h.
#define _GNU_SOURCE // POSIX 2008, flock, madvise, memmem, sync
#include "base.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

// ---- errors and notes ----------------------------------------------------------------------------------

void (*die_hook)(const char *message);
int verbosity;
bool json_output;

struct Output {
    FILE *file;
    char *path, *target, *temporary; // as it was asked for; behind links; while it is written
    bool direct;                     // a device or a pipe: written as it is, there is nothing to rename
    Output *next;                    // the list of unfinished files
};
static Output *unfinished;

static int folder_lock;
static char *lock_path; // of the folder that lock_folder() locked; NULL: none

static void remove_unfinished(void) {
    if (lock_path) unlink(lock_path);
    for (Output *o = unfinished; o; o = o->next)
        if (!o->direct) unlink(o->temporary);
}

// Names and captions come from files: new lines, terminals' codes and broken UTF-8 become question marks.
static void make_plain(char *text) {
    for (char *at = text, *end = text + strlen(text); at < end;) {
        size_t length = utf8_length(at, (size_t)(end - at));
        const char *next = at;
        uint32_t point = length ? utf8_get(&next) : 0;
        if (!length) length = 1;
        if (point < ' ' || (point >= 0x7f && point < 0xa0)) memset(at, '?', length);
        at += length;
    }
}

char *plain_text(const char *s) {
    char *text = xstrdup(s);
    make_plain(text);
    return text;
}

int utf8_fit(const char *s, int most) {
    size_t bytes = strlen(s), at = 0;
    for (;;) {
        size_t length = utf8_length(s + at, bytes - at);
        if (!length) length = 1; // a byte that is no character
        if (at == bytes || at + length > (size_t)most) return (int)at;
        at += length;
    }
}

static _Noreturn void end_with(int status, const char *fmt, va_list args) {
    char message[1024];
    vsnprintf(message, sizeof message, fmt, args);
    make_plain(message);
    remove_unfinished();
    if (die_hook) die_hook(message);
    fflush(stdout);
    fprintf(stderr, "sd: %s\n", message);
    if (json_output) {
        fputs("{\"error\": \"", stdout);
        for (const char *c = message; *c; c++) printf(*c == '"' || *c == '\\' ? "\\%c" : "%c", *c);
        puts("\"}");
    }
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
    char message[4096];
    vsnprintf(message, sizeof message, fmt, args);
    make_plain(message);
    fprintf(stderr, "sd: %s\n", message);
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

// Of the pages that lie wholly inside. A wish: no harm if refused.
static void advise(const void *at, size_t bytes, int what) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), skip = (page - (size_t)at % page) % page;
    if (bytes > skip) madvise((char *)at + skip, (bytes - skip) / page * page, what);
}

void prefer_huge_pages(void *at, size_t bytes) {
#if defined(MADV_HUGEPAGE)
    advise(at, bytes, MADV_HUGEPAGE);
#else
    (void)at, (void)bytes;
#endif
}

void pages_done_with(const void *at, size_t bytes) { advise(at, bytes, MADV_DONTNEED); }

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

char *vformat(const char *fmt, va_list args) {
    va_list again;
    va_copy(again, args);
    size_t room = (size_t)vsnprintf(NULL, 0, fmt, args) + 1;
    char *s = xmalloc(room);
    vsnprintf(s, room, fmt, again);
    va_end(again);
    return s;
}

char *format(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    char *s = vformat(fmt, args);
    va_end(args);
    return s;
}

void format_more(char **text, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    char *more = vformat(fmt, args);
    va_end(args);
    size_t length = strlen(*text), added = strlen(more) + 1;
    memcpy((char *)(*text = xrealloc(*text, length + added)) + length, more, added);
    free(more);
}

char *number_text(double x, bool single) {
    for (int digits = 6;; digits++) {
        char *text = format("%.*g", digits, x);
        double read = strtod(text, NULL);
        if (digits == 17 || (single ? (float)read == (float)x : read == x)) return text;
        free(text);
    }
}

int place_in(const char *list, const char *word) {
    size_t length = strlen(word);
    for (int place = 0; *list; place++) {
        size_t n = strcspn(list, "|");
        if (n == length && !strncmp(list, word, n)) return place;
        list += n + (list[n] == '|');
    }
    return -1;
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

size_t utf8_length(const char *s, size_t bytes) {
    // First bytes, how many follow, and the range of the second; the others are 80 to BF (RFC 3629, 4).
    static const struct {
        unsigned char first, last, more, low, high;
    } sequences[] = {{0x00, 0x7F, 0, 0x00, 0x00}, {0xC2, 0xDF, 1, 0x80, 0xBF}, {0xE0, 0xE0, 2, 0xA0, 0xBF},
                     {0xE1, 0xEC, 2, 0x80, 0xBF}, {0xED, 0xED, 2, 0x80, 0x9F}, {0xEE, 0xEF, 2, 0x80, 0xBF},
                     {0xF0, 0xF0, 3, 0x90, 0xBF}, {0xF1, 0xF3, 3, 0x80, 0xBF}, {0xF4, 0xF4, 3, 0x80, 0x8F}};
    const unsigned char *u = (const unsigned char *)s;
    size_t k = 0;
    while (k < 9 && bytes && (*u < sequences[k].first || *u > sequences[k].last)) k++;
    if (k == 9 || sequences[k].more >= bytes) return 0;
    for (size_t j = 1; j <= sequences[k].more; j++)
        if (u[j] < (j == 1 ? sequences[k].low : 0x80) || u[j] > (j == 1 ? sequences[k].high : 0xBF)) return 0;
    return sequences[k].more + 1u;
}

bool utf8_valid(const char *s, size_t bytes, size_t *bad_at) {
    size_t at = 0, length;
    while ((length = utf8_length(s + at, bytes - at))) at += length;
    if (bad_at) *bad_at = at;
    return at == bytes;
}

void utf8_mend(char *text) {
    for (size_t bad, at = 0; !utf8_valid(text + at, strlen(text + at), &bad); at += bad) text[at + bad] = '?';
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
        free(n->entries);
        *n = larger;
    }
    struct Name *e = names_place(n, text, length);
    if (!e->text) {
        *e = (struct Name){.text = memcpy(xmalloc(length), text, length), .length = length};
        n->count++;
    }
    e->number = number;
}

int names_get(const Names *n, const char *text, size_t length) {
    const struct Name *e = n->size ? names_place(n, text, length) : NULL;
    return e && e->text ? e->number : -1;
}

void names_free(Names *n) {
    for (size_t i = 0; i < n->size; i++) free(n->entries[i].text);
    free(n->entries);
    *n = (Names){0};
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
static bool begun; // as a program: what it reads is not written over

static atomic_int opening; // threads that make a file which is in no list yet

static void on_signal(int signal_number) {
    if (signal_number == SIGPIPE)
        signal(SIGPIPE, SIG_IGN); // whoever read our messages has left: once is enough
    if (signals_seen++ || !catching) {
        while (opening) continue; // never this thread's own: it holds signals meanwhile
        remove_unfinished();      // unlink() may be called in a handler
        _exit(1);
    }
}

void program_begin(void) {
    begun = true;
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0) open("/dev/null", O_RDONLY); // the lowest number that is free; no output
    static const int ending[] = {SIGINT,  SIGTERM, SIGHUP,  SIGQUIT,   SIGPIPE, SIGALRM,
                                 SIGUSR1, SIGUSR2, SIGXCPU, SIGVTALRM, SIGPROF};
    struct sigaction action = {.sa_handler = on_signal}, hangup;
    sigaction(SIGHUP, NULL, &hangup);
    for (size_t i = 0; i < sizeof ending / sizeof *ending; i++) sigaction(ending[i], &action, NULL);
    if (hangup.sa_handler == SIG_IGN)
        signal(SIGHUP, SIG_IGN); // under nohup the end of the terminal is no end
    action.sa_handler = SIG_IGN;
    sigaction(SIGXFSZ, &action, NULL);
}

// From before a file is made until it is in the list of what a signal removes.
static void hold_signals(sigset_t *before) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, before);
    opening++;
}

static void release_signals(const sigset_t *before) {
    opening--;
    pthread_sigmask(SIG_SETMASK, before, NULL);
}

void interrupt_catch(void) { catching = 1; }

bool interrupted(void) { return signals_seen != 0; }

// ---- files ---------------------------------------------------------------------------------------------

static _Noreturn void die_of_writing(const char *path) { die("cannot write %s: %s", path, strerror(errno)); }

// What this program has read, by the system's own numbers: a file has one pair of them, whatever its names.
static struct Read {
    dev_t device;
    ino_t number;
    char *path;
} * inputs;
static size_t input_count;
static char *replaceable[4]; // real paths of folders and files; NULL behind the last

static void note_input(const char *path, const struct stat *s) {
    if (!begun) return;
#pragma omp critical(inputs)
    {
        if ((input_count & (input_count - 1)) == 0) // full: twice the room
            inputs = xrealloc(inputs, (input_count ? 2 * input_count : 1) * sizeof *inputs);
        inputs[input_count++] = (struct Read){s->st_dev, s->st_ino, xstrdup(path)};
    }
}

void input_note(const char *path) {
    struct stat s;
    if (stat(path, &s) == 0) note_input(path, &s);
}

void may_replace(const char *path) {
    int i = 0;
    while (replaceable[i]) i++;
    if (i < 3) replaceable[i] = realpath(path, NULL);
}

// `real` is the output's path without links.
static void refuse_input(const char *path, const char *real, const struct stat *s) {
    for (int i = 0; replaceable[i]; i++) {
        const char *rest = starts_with(real, replaceable[i]) ? real + strlen(replaceable[i]) : "no";
        if (*rest == '/' || !*rest) return;
    }
    const char *read = NULL;
#pragma omp critical(inputs)
    for (size_t i = 0; i < input_count && !read; i++) {
        struct stat now; // a number is given anew when its file is gone
        if (inputs[i].device == s->st_dev && inputs[i].number == s->st_ino &&
            stat(inputs[i].path, &now) == 0 && now.st_dev == s->st_dev && now.st_ino == s->st_ino)
            read = inputs[i].path;
    }
    if (read) die("cannot write %s: it is %s, which this command reads; take another name", path, read);
}

// Opens the file, made if need be, and locks it. -1 where another process has the lock. A file that its owner
// has just renamed or removed is not the one that was asked for: then again.
static int open_locked(const char *path) {
    for (;;) {
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        struct stat here, there;
        if (fd < 0) return -1;
        if (flock(fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK) { // other errors: no locks on this disk
            close(fd);
            errno = EWOULDBLOCK;
            return -1;
        }
        if (fstat(fd, &here) == 0 && stat(path, &there) == 0 && here.st_ino == there.st_ino) return fd;
        close(fd);
    }
}

// /dev/stdout and the like are no files but ways to one that is open.
static bool is_way(const char *path) {
    return starts_with(path, "/proc/") || starts_with(path, "/dev/fd/") || starts_with(path, "/dev/std");
}

// Where the output goes: behind links, but for such ways.
static char *behind_links(const char *path, bool *device) {
    char *real = xstrdup(path), target[4096];
    ssize_t n;
    for (int i = 0; i < 40; i++) {
        *device |= is_way(real);
        if ((n = readlink(real, target, sizeof target - 1)) <= 0) break;
        target[n] = 0;
        char *slash = strrchr(real, '/');
        char *next = target[0] == '/' || !slash ? xstrdup(target)
                                                : format("%.*s/%s", (int)(slash - real), real, target);
        free(real), real = next;
    }
    return real;
}

Output *output_open(const char *path) {
    bool direct = false;
    char *target = behind_links(path, &direct), *temporary;
    struct stat there;
    bool exists = stat(target, &there) == 0;
    if (exists && S_ISDIR(there.st_mode)) die("cannot write %s: it is a folder", path);
    direct |= exists && !S_ISREG(there.st_mode);
    int fd;
    sigset_t before;
    if (direct) {
        temporary = xstrdup(path);
        fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    } else {
        char *real = exists ? realpath(target, NULL) : NULL;
        if (real) refuse_input(path, real, &there);
        free(real);
        // A name has 255 bytes at most; a longer one is cut for the time of writing.
        const char *slash = strrchr(target, '/'), *name = slash ? slash + 1 : target;
        temporary = format("%.*s%.*s.part", (int)(name - target), target, 250, name);
        hold_signals(&before);
        fd = open_locked(temporary);
        if (fd < 0) release_signals(&before); // none was made
        if (fd < 0 && errno == EWOULDBLOCK)
            die("cannot write %s: another process is writing it, or this one twice", path);
        if (fd >= 0 && (ftruncate(fd, 0) || (exists && fchmod(fd, there.st_mode & 07777)))) {
            unlink(temporary);
            die_of_writing(path);
        }
    }
    FILE *file = fd < 0 ? NULL : fdopen(fd, "wb");
    if (!file) die_of_writing(path);
    Output *o = xmalloc(sizeof *o);
    *o = (Output){file, xstrdup(path), target, temporary, direct, NULL};
#pragma omp critical(unfinished_files) // pictures are written by several threads
    {
        o->next = unfinished;
        unfinished = o;
    }
    if (!direct) release_signals(&before);
    return o;
}

static void output_forget(Output *o) {
#pragma omp critical(unfinished_files)
    {
        Output **p = &unfinished;
        while (*p != o) p = &(*p)->next;
        *p = o->next;
    }
    free(o->path), free(o->target), free(o->temporary), free(o);
}

void output_discard(Output *o) {
    if (!o->direct) unlink(o->temporary); // before the lock goes
    fclose(o->file);
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

// A rename is on disk when its folder is.
static bool sync_folder_of(const char *path) {
    const char *slash = strrchr(path, '/');
    char *dir = slash ? format("%.*s", (int)(slash - path + 1), path) : xstrdup(".");
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool ok = fd >= 0 && (fsync(fd) == 0 || errno == EINVAL); // EINVAL: this disk knows no such thing
    if (fd >= 0) close(fd);
    free(dir);
    return ok;
}

void output_commit(Output *o) {
    bool wait = !o->direct && !lazy;
    if (fflush(o->file) || (wait && fsync(fileno(o->file)))) die_of_writing(o->path);
    if (!o->direct && rename(o->temporary, o->target)) die_of_writing(o->path); // before the lock goes
    if (fclose(o->file) || (wait && !sync_folder_of(o->target))) die_of_writing(o->path);
    output_forget(o);
}

void check_outputs(const char *const *paths, int count) {
    Output *opened[8];
    int n = 0;
    for (int i = 0; i < count; i++) {
        struct stat there;
        if (paths[i] && !*paths[i]) die_usage("the name of an output is empty");
        bool exists = paths[i] && stat(paths[i], &there) == 0;
        if (paths[i] && !(exists && !S_ISREG(there.st_mode) && !S_ISDIR(there.st_mode))) // no pipe, no device
            opened[n++] = output_open(paths[i]);
    }
    while (n) output_discard(opened[--n]);
}
void check_output(const char *path) { check_outputs(&path, 1); }

// The place of a file's digest, behind `mark`, and what the digest of the other bytes is; NULL: it has none.
static const unsigned char *seal_place(const unsigned char *data, size_t bytes, const char *mark,
                                       char digest[17]) {
    const unsigned char *place = bytes ? memmem(data, bytes, mark, strlen(mark)) : NULL;
    size_t before = place ? (size_t)(place - data) + strlen(mark) : bytes;
    if (bytes - before < 16) return NULL;
    uint64_t hash = hash_more(hash_more(3, data, before), data + before + 16, bytes - before - 16);
    snprintf(digest, 17, "%016llx", (unsigned long long)hash);
    return data + before;
}

void output_seal(Output *o, const char *mark) {
    if (fflush(o->file)) die_of_writing(o->path);
    size_t bytes = (size_t)ftello(o->file);
    void *data = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fileno(o->file), 0);
    if (data == MAP_FAILED) die_of_writing(o->path);
    char digest[17];
    const unsigned char *place = seal_place(data, bytes, mark, digest);
    if (pwrite(fileno(o->file), digest, 16, place - (unsigned char *)data) != 16) die_of_writing(o->path);
    munmap(data, bytes);
}

bool sealed(const char *path, const char *mark) {
    size_t bytes;
    char digest[17];
    const unsigned char *data = map_file(path, &bytes), *place = seal_place(data, bytes, mark, digest);
    bool agrees = place && !memcmp(digest, place, 16);
    unmap_file(data, bytes);
    return agrees;
}

char *path_inside(const char *dir, const char *name) {
    char *path = format("%s/%s", dir, name);
    make_directories(dir);
    for (char *at = path + strlen(dir) + 1; at; at = strchr(at, '/')) {
        if (*at == '/') *at = 0;
        if (is_link(path))
            die("cannot write %s: it is a link, and what it points to would change; remove the link first",
                path);
        if (!*at) mkdir(path, 0777), *at++ = '/'; // whether it is there shows when a file is opened in it
    }
    return path;
}

void lock_folder(const char *dir) {
    char *path = format("%s/lock", dir), owner[300] = "", host[256] = "";
    sigset_t before;
    hold_signals(&before);
    int fd = open_locked(path);
    if (fd < 0) release_signals(&before);
    if (fd < 0 && errno != EWOULDBLOCK) die_of_writing(path);
    if (fd < 0) {
        FILE *f = fopen(path, "r");
        if (f && fgets(owner, sizeof owner, f)) owner[strcspn(owner, "\n")] = 0;
        die("%s is in use by %s", dir, *owner ? owner : "another process");
    }
    gethostname(host, sizeof host - 1);
    int n = snprintf(owner, sizeof owner, "process %ld on %s\n", (long)getpid(), host);
    if (ftruncate(fd, 0) || write(fd, owner, (size_t)n) != n) die_of_writing(path);
    folder_lock = fd, lock_path = path;
    release_signals(&before);
}

void unlock_folder(void) {
    char *path = lock_path;
    lock_path = NULL; // a signal's handler looks at it
    unlink(path);     // before the lock goes
    close(folder_lock);
    free(path);
}

Output *output_inside(const char *dir, const char *name) {
    char *path = path_inside(dir, name);
    Output *o = output_open(path);
    free(path);
    return o;
}

void write_text_file(const char *dir, const char *name, const char *text) {
    Output *o = output_inside(dir, name);
    output_write(o, text, strlen(text));
    output_commit(o);
}

void copy_file(const char *from, const char *to) {
    size_t bytes;
    const unsigned char *data = map_file(from, &bytes);
    Output *o = output_open(to);
    output_write(o, data, bytes);
    output_commit(o);
    unmap_file(data, bytes);
}

// Some editors put it in front of every text.
size_t drop_mark(char *text, size_t bytes) {
    bool marked = bytes >= 3 && !memcmp(text, "\xef\xbb\xbf", 3);
    if (marked) memmove(text, text + 3, bytes -= 3);
    return bytes;
}

// Opens a regular file. Another thing (a folder, a pipe, a device) might never end: -1 and *reason.
static int open_input(const char *path, const char **reason) {
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); // a pipe without a writer would wait for one
    struct stat s;
    *reason = NULL;
    if (fd < 0 || fstat(fd, &s))
        *reason = strerror(errno);
    else if (S_ISDIR(s.st_mode))
        *reason = "it is a folder";
    else if (!S_ISREG(s.st_mode))
        *reason = "it is not a regular file";
    if (!*reason) {
        note_input(path, &s);
        return fd;
    }
    if (fd >= 0) close(fd);
    return -1;
}

char *read_file(const char *path, size_t *bytes) {
    size_t n;
    const unsigned char *data = map_file(path, &n);
    if (n > MAX_TEXT) die("%s has %zu MB; a text may have %d", path, n >> 20, MAX_TEXT >> 20);
    char *copy = xmalloc(n + 1);
    if (n) memcpy(copy, data, n);
    unmap_file(data, n);
    n = drop_mark(copy, n);
    copy[n] = 0;
    if (bytes) *bytes = n;
    return copy;
}

const unsigned char *map_try(const char *path, size_t *bytes, const char **reason) {
    struct stat s;
    int fd = open_input(path, reason);
    *bytes = fd < 0 || fstat(fd, &s) ? 0 : (size_t)s.st_size;
    void *at = *bytes ? mmap(NULL, *bytes, PROT_READ, MAP_PRIVATE, fd, 0) : NULL;
    if (at == MAP_FAILED) *reason = strerror(errno), at = NULL;
    if (fd >= 0) close(fd);
    return at;
}

const unsigned char *map_file(const char *path, size_t *bytes) {
    const char *reason;
    const unsigned char *at = map_try(path, bytes, &reason);
    if (reason) die("cannot read %s: %s", path, reason);
    return at;
}

// 8 bytes at a time, mixed so that any bit of the input reaches all of the hash.
uint64_t hash_more(uint64_t h, const void *data, size_t bytes) {
    const unsigned char *at = data;
    for (; bytes >= 8; at += 8, bytes -= 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        h = (h ^ word) * 0x9e3779b97f4a7c15u;
        h ^= h >> 32;
    }
    uint64_t last = bytes + 1;
    for (size_t i = 0; i < bytes; i++) last = last << 8 | at[i];
    h = (h ^ last) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 29;
}

void unmap_file(const unsigned char *at, size_t bytes) {
    if (at) munmap((void *)at, bytes);
}

bool file_exists(const char *path) {
    struct stat s;
    return stat(path, &s) == 0;
}

bool is_link(const char *path) {
    struct stat s;
    return lstat(path, &s) == 0 && S_ISLNK(s.st_mode);
}

bool is_regular(const char *path) {
    struct stat s;
    return stat(path, &s) == 0 && S_ISREG(s.st_mode);
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
