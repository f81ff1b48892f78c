// ranks.h: the processes, called ranks, that share a run. The linker picks one of
//   ranks_none.c   one rank alone, which is what `make` builds
//   ranks_mpi.c    `make MPI=1`: as many as `mpirun -n N ./sd ...` starts
// and, for what ranks_mpi.c sums, one of
//   ranks_host.c            through the host's memory, by MPI: any backend
//   cuda/ranks_nccl.cu      `make cuda NCCL=1`: from GPU to GPU, by NCCL
// All ranks run the same program on the same options. Those that share work do it by number, and each of
// these functions, except the first two, is called by all ranks at the same place. See doc/SCALE.md.
#ifndef RANKS_H
#define RANKS_H

#include <stdbool.h>
#include <stddef.h>

int ranks_count(void);
int ranks_mine(void); // this rank's number, from 0; only rank 0 speaks and writes the results

void ranks_begin(void); // first of all
void ranks_end(void);   // waits for all ranks
// What is said when a rank is gone: where the run that begins here can be continued.
void ranks_watch(const char *folder);

// x (count, in backend memory) becomes the sum of all ranks' x. It is added in the order of a binary tree
// over the ranks, ((x0 + x1) + (x2 + x3)) + ..., so the ranks are a power of two.
void ranks_sum(float *x, size_t count);
double ranks_sent(void);                             // bytes that ranks_sum() has sent from here so far
int ranks_first_bad(bool bad);                       // the first rank where it is, or -1
void ranks_give(void *data, size_t bytes, int from); // all ranks get rank `from`'s data (host memory)
// Ends the program, naming the first, where a rank has another `what` than rank 0.
void ranks_must_agree(const char *what, const void *data, size_t bytes);
void ranks_barrier(void);

// ---- a process a thread: many small pieces of work on a processor -----------------------------------------
// Begins as many processes as there are threads, but at most `most`, in each of which it returns true: they
// are ranks of one thread, with a copy of all memory. What called it waits until all have reached
// ranks_join(), draws a bar, and goes on with false; where one fails, it ends with that one's message and
// status. Where there is one thread, MPI or a GPU, it begins none and returns true.
bool ranks_split(int most, const char *what, int total); // what, total: of the bar
void ranks_piece_done(void);                             // one of `total`
void ranks_join(void);                                   // ends what was begun; all other ranks wait for all
void *ranks_shared(size_t bytes);                        // zeros; what one process writes there, all see

// ---- below ranks_sum() ------------------------------------------------------------------------------------
enum { RANKS_PIECE = 1 << 22 }; // floats, at most, of one exchange
// `out` goes to another rank, or to this one, and `in` comes from there: n and m floats in backend memory.
void ranks_swap(const float *out, size_t n, float *in, size_t m, int other);
const char *ranks_swap_error(void); // what an exchange under way has met, or NULL; asked by another thread

#endif
