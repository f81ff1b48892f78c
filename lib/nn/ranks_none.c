// ranks_none.c: one rank. See ranks.h.
#include "ranks.h"
#include "lib/base.h"

#include <stdlib.h>

int ranks_count(void) { return 1; }
int ranks_mine(void) { return 0; }

// Under mpirun each of several programs would take itself for the only one.
void ranks_begin(void) {
    const char *open_mpi = getenv("OMPI_COMM_WORLD_SIZE"), *others = getenv("PMI_SIZE");
    if ((open_mpi && atoi(open_mpi) > 1) || (others && atoi(others) > 1))
        die_usage("this program was built for one process; `make MPI=1` builds the one for mpirun");
}

void ranks_end(void) {}
void ranks_watch(const char *folder) { (void)folder; }
void ranks_sum(float *x, size_t count) { (void)x, (void)count; }
double ranks_sent(void) { return 0; }
int ranks_first_bad(bool bad) { return bad ? 0 : -1; }
void ranks_give(void *data, size_t bytes, int from) { (void)data, (void)bytes, (void)from; }
void ranks_must_agree(const char *what, const void *data, size_t bytes) {
    (void)what, (void)data, (void)bytes;
}
void ranks_barrier(void) {}
