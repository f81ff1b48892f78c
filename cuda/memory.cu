// memory.cu: the device, its memory, copies to and from the host.
//
// Lasting memory (weights, optimiser state) is cudaMalloc's. Passing memory (activations) is a stack in one
// arena: it grows while the first step runs and is kept, so that later steps never ask the driver for memory.
// All work is on one stream, so memory that is given back may be handed out again at once: whoever uses it next
// comes later on the stream.
//
// Under the emulator, and where PTX is built for a stand-in runtime (OWN_ALLOCATIONS), every tensor is an
// allocation of its own, freed when its scope ends: then the checks see an overrun into a neighbour.
#include "device.h"

#include <vector>

#if defined(EMULATE) && !defined(OWN_ALLOCATIONS)
#define OWN_ALLOCATIONS 1
#endif
#ifndef STORAGE // F32, BF16 or F16: the type of activations, from `make PRECISION=`
#define STORAGE F32
#endif

cudaStream_t stream;
static char device_name[400];

void check_cuda(cudaError_t e, const char *doing) {
    if (e != cudaSuccess) die("CUDA: %s: %s", doing, cudaGetErrorString(e));
}

void check_launch(const char *kernel, dim3 grid, dim3 block) {
    cudaError_t e = cudaGetLastError();
    if (e != cudaSuccess)
        die("CUDA: kernel %s, grid (%u, %u, %u), block (%u, %u, %u): %s", kernel, grid.x, grid.y, grid.z, block.x,
            block.y, block.z, cudaGetErrorString(e));
    if (verbosity > 0) { // -v: every kernel is waited for, so that a fault names the right one
        e = cudaStreamSynchronize(stream);
        if (e != cudaSuccess) die("CUDA: kernel %s failed while it ran: %s", kernel, cudaGetErrorString(e));
    }
}

void k_init(int threads) {
    (void)threads;
    if (stream) return;
    int count = 0;
    cudaError_t e = cudaGetDeviceCount(&count);
    if (e != cudaSuccess || count == 0)
        die("CUDA: no NVIDIA GPU was found (%s); `make` builds sd for the processor, `make emulate` runs these kernels on it",
            e != cudaSuccess ? cudaGetErrorString(e) : "0 devices");
    check_cuda(cudaSetDevice(0), "choosing the first GPU");
    cudaDeviceProp p;
    check_cuda(cudaGetDeviceProperties(&p, 0), "asking for the GPU's properties");
    if (p.major < 8)
        die("CUDA: the GPU %s has compute capability %d.%d; at least 8.0 (Ampere) is needed", p.name, p.major, p.minor);
    check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
    snprintf(device_name, sizeof device_name, "cuda %s, sm_%d%d", p.name, p.major, p.minor);
}
const char *k_name(void) { return device_name; }
Type k_storage(void) { return STORAGE; }

// ---- memory ----------------------------------------------------------------------------------------------

static size_t lasting, passing, peak; // bytes
static void note_peak() {
    if (lasting + passing > peak) peak = lasting + passing;
}
size_t k_peak(void) { return peak; }

static void *device_alloc(size_t bytes, const char *what) {
    k_init(0);
    void *p = NULL;
    if (cudaMalloc(&p, bytes ? bytes : 1) == cudaSuccess) return p;
    cudaGetLastError();
    size_t available = 0, total = 0;
    cudaMemGetInfo(&available, &total);
    die("CUDA: out of memory: %s need %.1f MB more, %.1f of %.1f MB are free; %.1f MB are in use here", what, bytes / 1e6,
        available / 1e6, total / 1e6, (lasting + passing) / 1e6);
}

struct Block {
    void *at;
    size_t bytes;
};
static std::vector<Block> lasting_blocks;

void *k_alloc(size_t bytes) {
    void *p = device_alloc(bytes, "weights");
    lasting_blocks.push_back({p, bytes});
    lasting += bytes;
    note_peak();
    return p;
}
void k_free(void *at) {
    if (!at) return;
    for (size_t i = lasting_blocks.size(); i-- > 0;) {
        if (lasting_blocks[i].at != at) continue;
        lasting -= lasting_blocks[i].bytes;
        lasting_blocks[i] = lasting_blocks.back();
        lasting_blocks.pop_back();
        check_cuda(cudaFree(at), "freeing memory");
        return;
    }
    die("CUDA: k_free of an address that k_alloc did not give");
}

#ifdef OWN_ALLOCATIONS
// A mark is the number of tensors below it.
static std::vector<Block> tensors;
void *k_temp(size_t bytes) {
    void *p = device_alloc(bytes, "activations");
    tensors.push_back({p, bytes});
    passing += bytes;
    note_peak();
    return p;
}
size_t k_mark(void) { return tensors.size(); }
void k_release(size_t mark) {
    if (mark > tensors.size()) die("CUDA: k_release of a mark that is above the top");
    while (tensors.size() > mark) {
        check_cuda(cudaFree(tensors.back().at), "freeing memory");
        passing -= tensors.back().bytes;
        tensors.pop_back();
    }
}
void *k_release_but(size_t mark, void *at, size_t bytes) { // it need not move: nothing lies beside it
    (void)bytes;
    for (size_t i = mark; i < tensors.size(); i++) {
        if (tensors[i].at != at) continue;
        Block kept = tensors[i];
        tensors.erase(tensors.begin() + (long)i);
        k_release(mark);
        tensors.push_back(kept);
        return at;
    }
    die("CUDA: k_release_but of an address that k_temp did not give after the mark");
}
#else
// The arena is a row of chunks. A mark counts bytes from the beginning of the first; what does not fit into the
// rest of a chunk begins the next. A chunk that is too small for a tensor is passed over.
struct Chunk {
    char *at;
    size_t begin, bytes; // of the row
};
static std::vector<Chunk> chunks;
static const size_t CHUNK = (size_t)256 << 20, ALIGN = 256;

void *k_temp(size_t bytes) {
    bytes = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    for (const Chunk &c : chunks) {
        size_t at = passing > c.begin ? passing : c.begin;
        if (at + bytes > c.begin + c.bytes) continue;
        passing = at + bytes;
        note_peak();
        return c.at + (at - c.begin);
    }
    size_t begin = chunks.empty() ? 0 : chunks.back().begin + chunks.back().bytes;
    size_t size = bytes > CHUNK ? bytes : CHUNK;
    chunks.push_back({(char *)device_alloc(size, "activations"), begin, size});
    passing = begin + bytes;
    note_peak();
    return chunks.back().at;
}
size_t k_mark(void) { return passing; }
void k_release(size_t mark) {
    if (mark > passing) die("CUDA: k_release of a mark that is above the top");
    passing = mark;
}
// A copy within the GPU moves it down. Where the two places overlap it stays: what is lost below is less than its
// own size, and comes back with the next mark.
void *k_release_but(size_t mark, void *at, size_t bytes) {
    k_release(mark);
    char *to = (char *)k_temp(bytes), *from = (char *)at;
    if (from == to) return to;
    if (from >= to + bytes || from + bytes <= to) {
        check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream), "moving a result");
        return to;
    }
    for (const Chunk &c : chunks)
        if (from >= c.at && from < c.at + c.bytes)
            passing = c.begin + (size_t)(from - c.at) + (bytes + ALIGN - 1) / ALIGN * ALIGN;
    return at;
}
#endif

// ---- copies ----------------------------------------------------------------------------------------------

// Uploads go through two pinned buffers in turn: while one is on its way, the next is filled, and the caller's
// own memory (a mapped file, a local array) is free again when k_upload returns.
enum { STAGE_COUNT = 2 };
static const size_t STAGE = 4 << 20; // bytes
static char *stage[STAGE_COUNT];
static cudaEvent_t stage_empty[STAGE_COUNT];
static int stage_next;

void k_upload(void *to, const void *host, size_t bytes) {
    if (!stage[0])
        for (int i = 0; i < STAGE_COUNT; i++) {
            check_cuda(cudaMallocHost(&stage[i], STAGE), "asking for pinned memory");
            check_cuda(cudaEventCreateWithFlags(&stage_empty[i], cudaEventDisableTiming), "creating an event");
        }
    for (size_t at = 0; at < bytes;) {
        size_t n = bytes - at < STAGE ? bytes - at : STAGE;
        int s = stage_next;
        stage_next = (s + 1) % STAGE_COUNT;
        check_cuda(cudaEventSynchronize(stage_empty[s]), "waiting for an upload");
        memcpy(stage[s], (const char *)host + at, n);
        check_cuda(cudaMemcpyAsync((char *)to + at, stage[s], n, cudaMemcpyHostToDevice, stream), "uploading");
        check_cuda(cudaEventRecord(stage_empty[s], stream), "uploading");
        at += n;
    }
}
void k_download(void *host, const void *from, size_t bytes) {
    if (bytes) check_cuda(cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, stream), "downloading");
    check_cuda(cudaStreamSynchronize(stream), "waiting for the GPU");
}
void k_sync(void) { check_cuda(cudaStreamSynchronize(stream), "waiting for the GPU"); }

static __global__ void fill(Mem y, float value, size_t count) {
    EACH(i, count) store(y, i, value);
}
void k_fill(Mem y, float value, size_t count) {
    if (!count) return;
    fill<<<blocks_for(count), THREADS, 0, stream>>>(y, value, count);
    check_launch("fill", blocks_for(count), THREADS);
}

// y may overlap x from below. One block moves a piece after the other, each read as a whole before it is written;
// what is written lies below all that later pieces read.
static __global__ void copy_overlapping(Mem y, Mem x, size_t count) {
    for (size_t begin = 0; begin < count; begin += blockDim.x) {
        size_t i = begin + threadIdx.x;
        float v = i < count ? load(x, i) : 0;
        __syncthreads(); // all of the piece has been read
        if (i < count) store(y, i, v);
    }
}
static __global__ void copy(Mem y, Mem x, size_t count) {
    EACH(i, count) store(y, i, load(x, i));
}
static size_t size_of(Type t) { return t == F32 ? 4 : 2; }
void k_copy(Mem y, Mem x, size_t count) {
    if (!count || (y.at == x.at && y.type == x.type)) return;
    bool overlap = (char *)y.at < (char *)x.at + count * size_of(x.type) && (char *)x.at < (char *)y.at + count * size_of(y.type);
    if (overlap) {
        copy_overlapping<<<1, 1024, 0, stream>>>(y, x, count);
        check_launch("copy_overlapping", 1, 1024);
    } else {
        copy<<<blocks_for(count), THREADS, 0, stream>>>(y, x, count);
        check_launch("copy", blocks_for(count), THREADS);
    }
}
