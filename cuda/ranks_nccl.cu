// ranks_nccl.cu: what ranks exchange goes from GPU to GPU, by NCCL's point-to-point calls on the stream that
// computes. MPI starts it, and stays for agreement and heartbeats (lib/nn/ranks_mpi.c). A collective call of
// NCCL would add in an order of its own. See lib/nn/ranks.h.
#include "device.h"

extern "C" {
#include "lib/nn/ranks.h"
}
#include <atomic>
#include <nccl.h>

static std::atomic<ncclComm_t> joined;

static void check_nccl(ncclResult_t e, const char *doing) {
    if (e == ncclInvalidUsage)
        die("NCCL: %s: %s. Each rank needs a GPU of its own: see CUDA_VISIBLE_DEVICES in doc/SCALE.md; "
            "NCCL_DEBUG=WARN says more",
            doing, ncclGetErrorString(e));
    if (e != ncclSuccess) die("NCCL: %s: %s; NCCL_DEBUG=WARN says more", doing, ncclGetErrorString(e));
}

// By all ranks at the first exchange.
static void start() {
    ncclUniqueId id = {};
    ncclComm_t comm;
    if (ranks_mine() == 0) check_nccl(ncclGetUniqueId(&id), "starting");
    ranks_give(&id, sizeof id, 0);
    check_nccl(ncclCommInitRank(&comm, ranks_count(), id, ranks_mine()), "joining the ranks");
    joined = comm;
}

void ranks_swap(const float *out, size_t n, float *in, size_t m, int other) {
    if (!joined) start();
    check_nccl(ncclGroupStart(), "exchanging"); // of a group, both are under way at once
    if (n) check_nccl(ncclSend(out, n, ncclFloat, other, joined, stream), "sending");
    if (m) check_nccl(ncclRecv(in, m, ncclFloat, other, joined, stream), "receiving");
    check_nccl(ncclGroupEnd(), "exchanging");
}

const char *ranks_swap_error(void) {
    static char text[200];
    ncclResult_t e = ncclSuccess;
    if (joined) ncclCommGetAsyncError(joined, &e);
    if (e == ncclSuccess || e == ncclInProgress) return NULL;
    snprintf(text, sizeof text, "cannot exchange any more (NCCL: %s)", ncclGetErrorString(e));
    return text;
}
