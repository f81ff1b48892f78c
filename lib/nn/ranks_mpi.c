// ranks_mpi.c: ranks by MPI. See ranks.h.
#define _POSIX_C_SOURCE 200809L // gethostname, kill, nanosleep
#include "ranks.h"
#include "kernels.h"
#include "lib/base.h"

#include <errno.h>
#include <mpi.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int count = 1, mine;

int ranks_count(void) { return count; }
int ranks_mine(void) { return mine; }

// ---- the sum ----------------------------------------------------------------------------------------------

static double sent;

double ranks_sent(void) { return sent; }

// Sends x [give, give + give_count) to another rank, whose [take, take + take_count) is added to ours here,
// or replaces it.
static void exchange(float *x, int other, size_t give, size_t give_count, size_t take, size_t take_count,
                     bool add) {
    size_t mark = backend.mark();
    float *arrived = add ? backend.temp(RANKS_PIECE * sizeof(float)) : NULL;
    for (size_t at = 0; at < give_count || at < take_count; at += RANKS_PIECE) {
        size_t n = give_count > at ? give_count - at : 0, m = take_count > at ? take_count - at : 0;
        if (n > RANKS_PIECE) n = RANKS_PIECE;
        if (m > RANKS_PIECE) m = RANKS_PIECE;
        float *own = x + take + at;
        ranks_swap(x + give + at, n, add ? arrived : own, m, other);
        sent += (double)n * sizeof(float);
        if (add) // a + b = b + a: both ranks of a pair agree
            backend.combine((Mem){own, F32}, 1, (Mem){arrived, F32}, 0, (Mem){0}, 1, m);
    }
    backend.release(mark);
}

// Recursive vector halving (Rabenseifner 2004), with the nearest rank first: after its first rounds a rank
// holds the sum of 2, 4, 8, ... neighbours on 1/2, 1/4, 1/8, ... of the vector, which is the tree. Then the
// same way back, sums instead of summands. 2 (N - 1) / N of the vector leave each rank.
void ranks_sum(float *x, size_t n) {
    size_t from[32], to[32]; // the part of x that is ours in each round
    int round = 0;
    from[0] = 0, to[0] = n;
    for (int d = 1; d < count; d *= 2, round++) {
        size_t a = from[round], b = to[round], middle = a + (b - a) / 2;
        bool upper = mine & d;
        from[round + 1] = upper ? middle : a, to[round + 1] = upper ? b : middle;
        exchange(x, mine ^ d, upper ? a : middle, upper ? middle - a : b - middle, from[round + 1],
                 to[round + 1] - from[round + 1], true);
    }
    for (int d = count / 2; d > 0; d /= 2, round--) {
        bool upper = mine & d;
        size_t a = from[round - 1], b = to[round - 1], middle = a + (b - a) / 2;
        exchange(x, mine ^ d, from[round], to[round] - from[round], upper ? a : middle,
                 upper ? middle - a : b - middle, false);
    }
}

// ---- agreement --------------------------------------------------------------------------------------------

int ranks_first_bad(bool bad) {
    int first = bad ? mine : count;
    if (count > 1) MPI_Allreduce(MPI_IN_PLACE, &first, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    return first < count ? first : -1;
}

void ranks_give(void *data, size_t bytes, int from) {
    for (size_t at = 0; count > 1 && at < bytes; at += 1 << 30) {
        size_t n = bytes - at < 1 << 30 ? bytes - at : 1 << 30;
        MPI_Bcast((char *)data + at, (int)n, MPI_BYTE, from, MPI_COMM_WORLD);
    }
}

void ranks_must_agree(const char *what, const void *data, size_t bytes) {
    void *theirs = xmalloc(bytes);
    memcpy(theirs, data, bytes);
    ranks_give(theirs, bytes, 0);
    int rank = ranks_first_bad(memcmp(data, theirs, bytes) != 0);
    if (rank > 0) die("rank %d has another %s than rank 0", rank, what);
    free(theirs);
}

void ranks_barrier(void) {
    if (count > 1) MPI_Barrier(MPI_COMM_WORLD);
}

bool ranks_split(int most, const char *what, int total) { return (void)most, (void)what, (void)total, true; }
void ranks_piece_done(void) {}
void ranks_join(void) { ranks_barrier(); }
void *ranks_shared(size_t bytes) { return xcalloc(1, bytes); }

// ---- ranks that are gone ----------------------------------------------------------------------------------

// A thread of each rank looks for the others: at the processes of those on the same machine, and at a message
// a second from the rank before it, which shows a machine or a network that is gone.
enum { SILENCE = 20 };              // seconds without such a message
enum { BEAT, LAST_BEAT, SAID_WHY }; // messages: I am here; I have finished; I end, and have said why
static struct Home {
    char host[256];
    long process;
    uint64_t program; // hash of its file
    bool here;        // on this machine: we see its process
} * homes;
static MPI_Comm beats = MPI_COMM_NULL;
static pthread_t watcher;
static volatile bool dying, ending; // this rank has something to say; all have finished
static char continues[512];

static void rest(double s) {
    nanosleep(&(struct timespec){(time_t)s, (long)((s - (double)(time_t)s) * 1e9)}, NULL);
}

static bool exists(int rank) { return !kill((pid_t)homes[rank].process, 0) || errno != ESRCH; }

// To all others: they need not say that this rank is gone.
static void say_why(void) {
    char out = 0;
    MPI_Request request;
    for (int i = 0; i < count && beats != MPI_COMM_NULL; i++)
        if (i != mine) MPI_Isend(&out, 1, MPI_CHAR, i, SAID_WHY, beats, &request);
}

// Whether within so many seconds another rank says why it ends.
static bool another_says(double most) {
    int said = 0;
    for (double begun = seconds(); !said && seconds() - begun < most && beats != MPI_COMM_NULL; rest(0.05))
        MPI_Iprobe(MPI_ANY_SOURCE, SAID_WHY, beats, &said, MPI_STATUS_IGNORE);
    return said;
}

// Ends the run for a rank that is gone, with a line if it is this rank that says it.
static void lost(int rank, const char *why, bool says) {
    bool said = another_says(0.5); // it may have said what is wrong, and mpirun will end all
    if (dying || ending) return;
    if (!says || said) rest(2), _exit(1);
    die_hook = NULL;
    say_why();
    die("rank %d %s%s", rank, why, continues);
}

static void *watch(void *nothing) {
    double heard = seconds(), spoke = 0, awake = heard;
    int next = (mine + 1) % count, before = (mine + count - 1) % count, done = 1, there = 1;
    char out = 0, in;
    MPI_Request request = MPI_REQUEST_NULL;
    for (; !ending && !dying; rest(0.1)) {
        int first = mine, ended = -1; // of this machine: the first that is here, one that is not
        for (int i = 0; i < count; i++) {
            if (!homes[i].here) continue;
            if (!exists(i))
                ended = i;
            else if (i < first)
                first = i;
        }
        if (ended >= 0) lost(ended, "has ended", first == mine);
        const char *error = ranks_swap_error();
        if (error) lost(mine, error, true);
        MPI_Test(&request, &done, MPI_STATUS_IGNORE);
        if (done && seconds() - spoke >= 1) {
            MPI_Isend(&out, 1, MPI_CHAR, next, BEAT, beats, &request);
            spoke = seconds();
        }
        for (there = 1; there;) {
            MPI_Iprobe(before, BEAT, beats, &there, MPI_STATUS_IGNORE);
            if (there) MPI_Recv(&in, 1, MPI_CHAR, before, BEAT, beats, MPI_STATUS_IGNORE), heard = seconds();
        }
        if (seconds() - awake > SILENCE / 2) heard = seconds(); // it was this process that slept
        awake = seconds();
        if (awake - heard > SILENCE) lost(before, "has been silent for 20 seconds", true);
    }
    if (dying) return nothing;
    MPI_Wait(&request, MPI_STATUS_IGNORE);
    MPI_Send(&out, 1, MPI_CHAR, next, LAST_BEAT, beats);
    for (MPI_Status status = {.MPI_TAG = BEAT}; status.MPI_TAG != LAST_BEAT;)
        MPI_Recv(&in, 1, MPI_CHAR, before, MPI_ANY_TAG, beats, &status);
    return nothing;
}

void ranks_watch(const char *folder) {
    int begun;
    snprintf(continues, sizeof continues, "; the same command continues from the last checkpoint in %s",
             folder);
    // A first number, to itself: what carries the sums is started here and not after the first step.
    MPI_Initialized(&begun);
    if (!begun) return;
    float number[] = {1, 0}, *x = backend.alloc(sizeof number);
    backend.upload(x, number, sizeof number);
    ranks_swap(x, 1, x + 1, 1, mine);
    backend.download(number, x, sizeof number);
    if (number[1] != 1) die("rank %d: what it sends does not arrive", mine);
    backend.free(x);
}

// What is wrong with an option or a file is wrong on all ranks: rank 0 says it and ends all.
static void before_dying(const char *message) {
    (void)message;
    dying = true;
    if (mine && another_says(2)) rest(2), _exit(1);
    say_why();
}

void ranks_begin(void) {
    // What Open MPI, MPICH and batch systems tell a rank. Alone, MPI would take a while to begin.
    static const char *const told[] = {"OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMIX_RANK", "PALS_RANKID"};
    int level, launched = 0;
    for (size_t i = 0; i < sizeof told / sizeof *told; i++) launched |= getenv(told[i]) != NULL;
    if (!launched) return;
    MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &level);
    MPI_Comm_size(MPI_COMM_WORLD, &count), MPI_Comm_rank(MPI_COMM_WORLD, &mine);
    if (count == 1) return;
    die_hook = before_dying;
    MPI_Comm_dup(MPI_COMM_WORLD, &beats);
    if (level < MPI_THREAD_MULTIPLE)
        die("this MPI library lets only one thread call it (MPI_THREAD_MULTIPLE is missing)");
    if (mine && !freopen("/dev/null", "w", stdout)) die("cannot open /dev/null: %s", strerror(errno));
    if (mine) verbosity = -1;
    const char *self = "/proc/self/exe";
    size_t bytes = 0;
    char *program = file_exists(self) ? read_file(self, &bytes) : NULL;
    struct Home home = {.process = (long)getpid(), .program = hash_more(0, program, bytes)};
    free(program);
    gethostname(home.host, sizeof home.host - 1);
    homes = xmalloc((size_t)count * sizeof home);
    MPI_Allgather(&home, sizeof home, MPI_BYTE, homes, sizeof home, MPI_BYTE, MPI_COMM_WORLD);
    for (int i = 0; i < count; i++)
        if (homes[i].program != homes[0].program) die("rank %d has another program than rank 0", i);
    for (int i = 0; i < count; i++) homes[i].here = !strcmp(homes[i].host, home.host) && exists(i);
    if (pthread_create(&watcher, NULL, watch, NULL)) die("cannot start a thread");
}

void ranks_end(void) {
    int begun;
    MPI_Initialized(&begun);
    if (!begun) return;
    if (count > 1) {
        ranks_barrier();
        ending = true;
        pthread_join(watcher, NULL);
        ranks_barrier(); // nobody watches any more when the first process ends
    }
    MPI_Finalize();
}
