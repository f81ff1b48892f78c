// base.h: what every file of the project may use: errors, memory, time, progress, files that appear whole.
//
// An error that the user must mend ends the program: one line on stderr that names the thing, the value
// found and the value expected, and exit status 1. Libraries usually return error codes; a program whose
// only sensible answer to a truncated model is to say so and stop reads better without them.
#ifndef BASE_H
#define BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#if defined(__GNUC__)
#define PRINTF_LIKE(fmt_at, args_at) __attribute__((format(printf, fmt_at, args_at)))
#else
#define PRINTF_LIKE(fmt_at, args_at)
#endif

// ---- errors and notes ----------------------------------------------------------------------------------

// Prints "sd: <message>" as one line on stderr, removes unfinished files, exits with status 1.
_Noreturn void die(const char *fmt, ...) PRINTF_LIKE(1, 2);
// The same with exit status 2: the command was typed wrongly.
_Noreturn void die_usage(const char *fmt, ...) PRINTF_LIKE(1, 2);
// A line on stderr that does not stop the run; silent under --quiet.
void note(const char *fmt, ...) PRINTF_LIKE(1, 2);
// The same, only under --verbose.
void note_verbose(const char *fmt, ...) PRINTF_LIKE(1, 2);
// Called by die() in place of exit() when set: a test or a fuzzer that wants to live on longjmp()s from it.
extern void (*die_hook)(const char *message);
extern int verbosity; // -1 --quiet, 0, 1 --verbose

// ---- memory and strings --------------------------------------------------------------------------------

// Asks the system for large pages: a matrix then needs a few entries of the processor's page cache instead of thousands,
// and is handed over 2 MB at a time. Large blocks of xmalloc() and xcalloc() have been asked for.
void prefer_huge_pages(void *at, size_t bytes);
void *xmalloc(size_t bytes);              // never NULL: dies with the figure
void *xcalloc(size_t count, size_t size); // zeroed; count * size may not overflow
void *xrealloc(void *old, size_t bytes);
char *xstrdup(const char *s);
char *format(const char *fmt, ...) PRINTF_LIKE(1, 2); // printf into a new string; the caller frees it

// ---- UTF-8 ---------------------------------------------------------------------------------------------

// True if the bytes are UTF-8 as RFC 3629 has it: shortest forms only, no surrogates, nothing above U+10FFFF.
// Where not, *bad_at (may be NULL) is the offset of the first byte of the first broken sequence.
bool utf8_valid(const char *s, size_t bytes, size_t *bad_at);
uint32_t utf8_get(const char **s); // the code point at *s, which moves behind it; the text must be valid
int utf8_put(char out[4], uint32_t point); // writes a code point and returns how many bytes it took

// ---- time and progress ---------------------------------------------------------------------------------

double seconds(void); // monotonic clock

// A progress bar with speed and remaining time on a terminal; a plain line now and then in a file; nothing
// under --quiet. `what` is drawn first ("unet"), `extra` last ("loss 0.012", may be NULL).
typedef struct {
    const char *what;
    long total, done;
    double started, drawn;
} Progress;
void progress_begin(Progress *p, const char *what, long total);
void progress_step(Progress *p, long done, const char *extra); // done: how many of total are finished now
void progress_end(Progress *p);

// True once Ctrl-C (or SIGTERM) came, for loops that want to finish cleanly; a second Ctrl-C ends at once.
void interrupt_catch(void);
bool interrupted(void);
// For everything else, from the start of the program: Ctrl-C and SIGTERM remove unfinished files and end with status
// 1, and a file that grows past its limit is an error of write(), not the program's death.
void interrupt_tidy(void);

// ---- files ---------------------------------------------------------------------------------------------

// A file is written beside its final name and renamed when whole, so that a reader never sees half of it
// and a failed run leaves the old one. Every write is checked; a full disk dies with the name.
typedef struct Output Output;
Output *output_open(const char *path);
void output_write(Output *o, const void *data, size_t bytes);
void output_printf(Output *o, const char *fmt, ...) PRINTF_LIKE(2, 3);
void output_commit(Output *o); // flush to disk, close, rename
void output_discard(Output *o);
// While on, output_commit leaves it to the system when a file reaches the disk: for thousands of small files, each
// of which would wait some 20 ms. Turning it off flushes them all at once. Not while other threads write.
void output_lazily(bool on);
// Removes from a folder what writers that were killed left in it: NAME.PID.part, where there is no process PID.
void remove_leftovers(const char *dir);

char *read_file(const char *path, size_t *bytes); // whole file, with a NUL behind it; dies if it cannot
// A whole file as memory that the system fills page by page, when it is looked at: of a large file one pays for what one
// reads. NULL for an empty file. Dies where it cannot, and of what is no regular file.
const unsigned char *map_file(const char *path, size_t *bytes);
void unmap_file(const unsigned char *at, size_t bytes);
bool file_exists(const char *path);
bool is_directory(const char *path);
void make_directories(const char *path); // like mkdir -p

#endif
