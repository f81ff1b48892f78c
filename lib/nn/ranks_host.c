// ranks_host.c: what ranks exchange goes through the host's memory, by MPI. See ranks.h.
#include "ranks.h"
#include "kernels.h"
#include "lib/base.h"

#include <mpi.h>

void ranks_swap(const float *out, size_t n, float *in, size_t m, int other) {
    static float *leaves, *arrives;
    if (!leaves) leaves = xmalloc(2 * RANKS_PIECE * sizeof(float)), arrives = leaves + RANKS_PIECE;
    if (n) backend.download(leaves, out, n * sizeof(float));
    MPI_Sendrecv(leaves, (int)n, MPI_FLOAT, other, 0, arrives, (int)m, MPI_FLOAT, other, 0, MPI_COMM_WORLD,
                 MPI_STATUS_IGNORE);
    if (m) backend.upload(in, arrives, m * sizeof(float));
}

const char *ranks_swap_error(void) { return NULL; } // MPI ends the program itself
