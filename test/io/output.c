// output.c: a signal in the very moment in which a file is made leaves nothing behind.
#define _GNU_SOURCE
#include "lib/base.h"
#include "test/test.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

// In the program's place of the C library's: a new file is locked next, before it is in any list.
static int stopping; // 0, or the signal
int flock(int fd, int operation);
int flock(int fd, int operation) {
    (void)fd, (void)operation;
    if (stopping) raise(stopping);
    return 0;
}

static const char *folder;
static void make_output(void) { output_inside(folder, "picture.png"); }
static void make_lock(void) { lock_folder(folder); }

// In a process of its own: its status, and whether the file is there when it has ended.
static void check_nothing_left(const char *what, int signal_number, void (*make)(void), const char *file) {
    pid_t child = fork();
    if (!child) {
        program_begin();
        stopping = signal_number;
        make();
        _exit(0); // the signal did not come
    }
    int status = -1;
    waitpid(child, &status, 0);
    char *path = format("%s/%s", folder, file);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 1, what);
    check(!file_exists(path), "nothing is left of it");
    remove(path);
    free(path);
}

int main(void) {
    char place[] = "/tmp/sd-test-output-XXXXXX";
    folder = mkdtemp(place);
    if (!folder) die("no folder to test in");
    static const int signals[] = {SIGINT, SIGTERM, SIGPIPE, SIGALRM};
    for (int i = 0; i < 4; i++) {
        check_nothing_left("a signal while a picture's file is made", signals[i], make_output,
                           "picture.png.part");
        check_nothing_left("a signal while a folder is locked", signals[i], make_lock, "lock");
    }
    rmdir(folder);
    return test_report();
}
