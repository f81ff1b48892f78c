// ranks_none.c: one rank, which is one process; but ranks_split() has more for a while. See ranks.h.
#define _DEFAULT_SOURCE // MAP_ANONYMOUS, nanosleep
#include "ranks.h"
#include "kernels.h"
#include "lib/base.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

static int count = 1, mine;

int ranks_count(void) { return count; }
int ranks_mine(void) { return mine; }

// Under mpirun each of several programs would take itself for the only one.
void ranks_begin(void) {
    const char *open_mpi = getenv("OMPI_COMM_WORLD_SIZE"), *others = getenv("PMI_SIZE");
    if ((open_mpi && atoi(open_mpi) > 1) || (others && atoi(others) > 1))
        die_usage("this program was built for one process; `make MPI=1` builds the one for mpirun");
}

void ranks_end(void) {}
void ranks_watch(const char *folder) { (void)folder; }
void ranks_sum(float *x, size_t n) { (void)x, (void)n; }
double ranks_sent(void) { return 0; }
int ranks_first_bad(bool bad) { return bad ? 0 : -1; }
void ranks_give(void *data, size_t bytes, int from) { (void)data, (void)bytes, (void)from; }
void ranks_must_agree(const char *what, const void *data, size_t bytes) {
    (void)what, (void)data, (void)bytes;
}
void ranks_barrier(void) {}

// ---- a process a thread -----------------------------------------------------------------------------------

static struct {
    atomic_int pieces; // done
    atomic_flag said;  // one of the processes has said why all end
} * shared;

void *ranks_shared(size_t bytes) {
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) die("out of memory: %zu bytes were asked for", bytes);
    return at;
}

static void before_dying(const char *message) {
    (void)message;
    while (atomic_flag_test_and_set(&shared->said)) pause(); // another says it, and all are ended
}

// How many threads there are, but at most `most`. From here on this process and its children have one each.
static int take_threads(int most) {
    int n = 1;
#ifdef _OPENMP
    if (starts_with(backend.name(), "cpu")) n = omp_get_max_threads();
    if (n > most) n = most;
    if (n > 1) omp_set_num_threads(1);
#else
    (void)most;
#endif
    return n;
}

// Ends the processes, which remove their unfinished files, and waits for them.
static void end_all(const pid_t *processes, int n) {
    for (int i = 0; i < n; i++) kill(processes[i], SIGTERM);
    while (wait(NULL) > 0 || errno == EINTR) continue;
}

static void wait_for(pid_t *processes, int n, Progress *bar) {
    while (n > 0) {
        int status;
        pid_t ended = waitpid(-1, &status, WNOHANG);
        for (int i = 0; ended > 0 && i < n; i++)
            if (processes[i] == ended) processes[i] = processes[--n];
        if (interrupted() || (ended > 0 && status)) {
            end_all(processes, n);
            if (ended > 0 && WIFSIGNALED(status))
                die("a process that shares the work was ended by signal %d", WTERMSIG(status));
            exit(ended > 0 ? WEXITSTATUS(status) : 1); // what is wrong has been said
        }
        if (shared->pieces > bar->done) progress_step(bar, shared->pieces, NULL);
        if (ended <= 0) nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
}

bool ranks_split(int most, const char *what, int total) {
    int n = take_threads(most);
    if (n <= 1) return true;
    shared = ranks_shared(sizeof *shared);
    pid_t *processes = xcalloc((size_t)n, sizeof *processes), parent = getpid();
    fflush(NULL); // or each would write what waits here
    for (int i = 0; i < n; i++) {
        processes[i] = fork();
        if (processes[i] > 0) continue;
        if (processes[i] < 0) {
            int error = errno;
            end_all(processes, i);
            die("cannot start a process: %s", strerror(error));
        }
#ifdef __linux__
        prctl(PR_SET_PDEATHSIG, SIGTERM); // whatever ends its parent
#endif
        if (getppid() != parent) _exit(1);
        count = n, mine = i, verbosity = -1, die_hook = before_dying;
        return true;
    }
    interrupt_catch();
    Progress bar;
    progress_begin(&bar, what, total);
    wait_for(processes, n, &bar);
    progress_end(&bar);
    free(processes);
    return false;
}

void ranks_piece_done(void) {
    if (shared) shared->pieces++;
}

void ranks_join(void) {
    if (count > 1) exit(0);
}
