// nccl.h: NCCL's calls that cuda/ranks_nccl.cu uses, for the emulator, by MPI. Each rank emulates a GPU of
// its own, unless two are told the same one in CUDA_VISIBLE_DEVICES. What a group receives arrives in the
// order of the stream: with EMU_ASYNC=1 at the latest moment.
#ifndef NCCL_H
#define NCCL_H

#define OMPI_SKIP_MPICXX 1 // C alone
#define MPICH_SKIP_MPICXX 1
#include <algorithm>
#include <mpi.h>
#include <vector>

enum ncclResult_t { ncclSuccess, ncclInvalidUsage = 5, ncclInProgress = 7 };
enum ncclDataType_t { ncclFloat = 7 };
struct ncclUniqueId {
    char internal[128];
};
typedef MPI_Comm *ncclComm_t;

static inline const char *ncclGetErrorString(ncclResult_t e) { return e ? "invalid usage" : "no error"; }
static inline ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t *e) { return *e = ncclSuccess; }
static inline ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    strcpy(id->internal, "id");
    return ncclSuccess;
}
static inline ncclResult_t ncclCommInitRank(ncclComm_t *comm, int count, ncclUniqueId id, int rank) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    int gpu = visible ? atoi(visible) : -1 - rank;
    std::vector<int> gpus(count);
    MPI_Comm_dup(MPI_COMM_WORLD, *comm = new MPI_Comm);
    MPI_Allgather(&gpu, 1, MPI_INT, gpus.data(), 1, MPI_INT, **comm);
    bool shared = std::count(gpus.begin(), gpus.end(), gpu) > 1;
    return shared || strcmp(id.internal, "id") ? ncclInvalidUsage : ncclSuccess;
}

// ---- a group ----------------------------------------------------------------------------------------------

struct EmuTransfer {
    const void *out;
    void *in;
    size_t count;
    int peer;
    ncclComm_t comm;
    cudaStream_t stream;
};
static std::vector<EmuTransfer> emu_group;

static inline ncclResult_t ncclGroupStart() { return ncclSuccess; }
static inline ncclResult_t ncclSend(const void *out, size_t count, ncclDataType_t, int peer, ncclComm_t comm,
                                    cudaStream_t stream) {
    emu_group.push_back({out, nullptr, count, peer, comm, stream});
    return ncclSuccess;
}
static inline ncclResult_t ncclRecv(void *in, size_t count, ncclDataType_t, int peer, ncclComm_t comm,
                                    cudaStream_t stream) {
    emu_group.push_back({nullptr, in, count, peer, comm, stream});
    return ncclSuccess;
}
static inline ncclResult_t ncclGroupEnd() {
    std::vector<std::vector<float>> host;
    std::vector<MPI_Request> requests(emu_group.size());
    for (EmuTransfer &t : emu_group) {
        MPI_Request *request = &requests[host.size()];
        host.emplace_back(t.count);
        float *at = host.back().data();
        if (t.in) MPI_Irecv(at, (int)t.count, MPI_FLOAT, t.peer, 0, *t.comm, request);
        if (t.in) continue;
        cudaMemcpyAsync(at, t.out, t.count * sizeof(float), cudaMemcpyDeviceToHost, t.stream);
        cudaStreamSynchronize(t.stream);
        MPI_Isend(at, (int)t.count, MPI_FLOAT, t.peer, 0, *t.comm, request);
    }
    MPI_Waitall((int)requests.size(), requests.data(), MPI_STATUSES_IGNORE);
    for (size_t i = 0; i < host.size(); i++) {
        EmuTransfer &t = emu_group[i];
        if (t.in) cudaMemcpyAsync(t.in, host[i].data(), t.count * 4, cudaMemcpyHostToDevice, t.stream);
    }
    emu_group.clear();
    return ncclSuccess;
}
#endif
