// base.h: what every file of the project may use: errors, memory, strings, time, progress, files.
//
// An error that the user has to fix ends the program: one line on stderr that names the thing, the value
// found and the value expected, and exit status 1. That reads better than error codes passed up to main().
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
// Where set, die() calls it before anything else. A test that wants to go on leaves it by longjmp().
extern void (*die_hook)(const char *message);
extern int verbosity;    // -1 --quiet, 0, 1 --verbose
extern bool json_output; // --json: die() also prints {"error": message} to standard output

// ---- memory --------------------------------------------------------------------------------------------

void *xmalloc(size_t bytes);              // never NULL: dies with the size
void *xcalloc(size_t count, size_t size); // zeroed; dies where count * size overflows
void *xrealloc(void *old, size_t bytes);
// Asks the system for pages of 2 MB: fewer page faults, and fewer entries of the processor's page table cache
// (TLB). xmalloc() and xcalloc() do so for large blocks.
void prefer_huge_pages(void *at, size_t bytes);
// What lies there is not needed any more (in a mapped file: will be read again); the pages go to the system.
void pages_done_with(const void *at, size_t bytes);

// ---- strings -------------------------------------------------------------------------------------------

char *xstrdup(const char *s);
char *format(const char *fmt, ...) PRINTF_LIKE(1, 2); // printf into a new string; the caller frees it
char *vformat(const char *fmt, va_list args);
// The fewest digits, from 6 on, that are read back as the same double, or float where `single`.
char *number_text(double x, bool single);
int place_in(const char *list, const char *word); // of a word in "a|b|c", or -1
void format_more(char **text, const char *fmt, ...)
    PRINTF_LIKE(2, 3); // printf behind a string, which may move
bool starts_with(const char *s, const char *start);
bool ends_with(const char *s, const char *end);
// The next line of a text that ends at `end`, without line feed or carriage return. *at moves behind it.
// False at the end of the text.
bool next_line(const char **at, const char *end, const char **line, size_t *length);

// How many bytes the character takes that the bytes begin with; 0 where that is not UTF-8 as RFC 3629 defines
// it: shortest forms only, no surrogates, nothing above U+10FFFF.
size_t utf8_length(const char *s, size_t bytes);
// True if all bytes are UTF-8. If not, *bad_at (may be NULL) is where the first broken sequence begins.
bool utf8_valid(const char *s, size_t bytes, size_t *bad_at);
void utf8_mend(char *text);        // bytes that are no UTF-8 become question marks
uint32_t utf8_get(const char **s); // the code point at *s, which moves behind it; the text must be valid
int utf8_put(char out[4], uint32_t point); // writes a code point and returns how many bytes it took
// How many of at most `most` bytes are whole characters: for "%.*s".
int utf8_fit(const char *s, int most);
// A copy to be printed: new lines, terminals' codes and what is not UTF-8 become question marks.
char *plain_text(const char *s);

// A hash table from names to numbers (0 or more), with its own copies of the names. Begins as {0}.
typedef struct {
    struct Name {
        char *text; // `length` bytes; NULL in a free place
        size_t length;
        int number;
    } * entries;
    size_t size, count; // size is a power of two
} Names;
void names_set(Names *n, const char *text, size_t length, int number); // adds the name, or changes its number
int names_get(const Names *n, const char *text, size_t length);        // -1 where it is absent
void names_free(Names *n);                                             // and empties it

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

// At the start of the program: descriptors 0 to 2 are opened where they are not, so that no message goes into
// a file. Ctrl-C and every other signal that would end the program remove unfinished files and end it with
// status 1. A file that grows past the limit of its size is an error of write(), not a signal.
void program_begin(void);
// For loops that want to finish a step first: from here on the first signal only makes interrupted() true.
void interrupt_catch(void);
bool interrupted(void);

// ---- files ---------------------------------------------------------------------------------------------

// A file is written beside its final name, as NAME.part, and renamed when complete. So a reader never sees
// half of it, and a failed run leaves the old one. Every write is checked; a full disk dies with the file's
// name. What a killed writer left is overwritten by the next. A link is followed: the file that it points to
// is replaced, and keeps its permissions. Dies where another process writes the same file, and where this
// program has read it (but see may_replace()).
typedef struct Output Output;
Output *output_open(const char *path);
void output_write(Output *o, const void *data, size_t bytes);
void output_printf(Output *o, const char *fmt, ...) PRINTF_LIKE(2, 3);
// Puts a digest of all bytes in the place of the 16 zeros that follow `mark` in what was written.
void output_seal(Output *o, const char *mark);
void output_commit(Output *o); // flush to disk, close, rename
void output_discard(Output *o);
// While on, output_commit() does not wait until a file is on disk, which takes some 20 ms: for thousands of
// small files. Turning it off flushes them all at once. Not while other threads write.
void output_lazily(bool on);
// Could the file be written? Dies where not, before the work and not after it.
void check_output(const char *path);
// The same of up to eight files, of which no two may be the same. A NULL is passed over.
void check_outputs(const char *const *paths, int count);
void input_note(const char *path);  // this file is read: no output may replace it
void may_replace(const char *path); // but this one may be, or what lies in this folder: they are our own
bool sealed(const char *path, const char *mark); // does the digest of output_seal() agree?
// DIR/NAME, whose folders are made; the caller frees it. Dies where a part of NAME is a link: what is written
// there would change something outside of DIR.
char *path_inside(const char *dir, const char *name);
// The folder's file "lock" is this process's until its end. Dies where another has it, and names that one.
void lock_folder(const char *dir);
void unlock_folder(void);

Output *output_inside(const char *dir, const char *name); // output_open() of path_inside(DIR, NAME)
void write_text_file(const char *dir, const char *name, const char *text); // the same for a text
void copy_file(const char *from, const char *to);
enum { MAX_TEXT = 1 << 28 };
// A text file, with a NUL behind it and without a byte order mark. Dies where it cannot be read.
char *read_file(const char *path, size_t *bytes);
size_t drop_mark(char *text, size_t bytes); // removes UTF-8's byte order mark; how many bytes are left
// A whole file as memory that the system reads page by page when it is touched: of a large file one pays for
// what one uses. NULL for an empty file. Dies where it cannot, and for what is not a regular file.
const unsigned char *map_file(const char *path, size_t *bytes);
// The same, but *reason where it cannot be read (else NULL), valid until the thread's next call.
const unsigned char *map_try(const char *path, size_t *bytes, const char **reason);
void unmap_file(const unsigned char *at, size_t bytes);
uint64_t hash_more(uint64_t hash, const void *data, size_t bytes); // of 64 bits; begins with any number
bool file_exists(const char *path);
bool is_directory(const char *path);
bool is_regular(const char *path); // no folder, pipe or device
bool is_link(const char *path);
void make_directories(const char *path); // mkdir -p

#endif
