// memory.cu: the device, its memory, copies to and from the host.
//
// Persistent memory (weights, optimiser state) is cudaMalloc's. Scratch memory (activations) is a stack in
// one arena: it grows while the first step runs and is kept, so that later steps never ask the driver for
// memory. All work is on one stream, so memory that is given back may be handed out again at once: whoever
// uses it next comes later on the stream.
//
// With OWN_ALLOCATIONS (the checked emulator, PTX for a stand-in runtime, builds for compute-sanitizer) every
// tensor is an allocation of its own, freed when its scope ends: then the checks see an overrun into a
// neighbour.
#include "pointwise.h"

#include <map>
#include <vector>

#ifndef STORAGE // F32, BF16 or F16: the type of activations, from `make PRECISION=`
#define STORAGE F32
#endif

cudaStream_t stream;

void check_cuda(cudaError_t e, const char *doing) {
    if (e != cudaSuccess) die("CUDA: %s: %s", doing, cudaGetErrorString(e));
}

int step_named(const char *variable, const char *const *names, int count) {
    const char *wanted = getenv(variable);
    char *known = xstrdup("");
    if (!wanted || !*wanted) return -1;
    for (int i = 0; i < count; i++) {
        if (!strcmp(wanted, names[i])) return i;
        format_more(&known, "%s%s", i ? ", " : "", names[i]);
    }
    die("%s is '%s'; known are %s", variable, wanted, known);
}

// What -v says at the end of a run.
static double operations, tensor_operations;
static long launches;
void count_operations(double count, bool tensor) {
    operations += count, tensor_operations += tensor ? count : 0;
}
static void say_operations() {
    if (verbosity < 1 || operations == 0) return;
    note_verbose(
        "CUDA: %ld kernels launched; products, convolutions and attention of %.1f GFLOP, %.1f %% of it on "
        "tensor cores",
        launches, operations * 1e-9, 100 * tensor_operations / operations);
}

static void forget_runs();
void check_launch(const char *kernel, dim3 grid, dim3 block) {
    launches++;
    cudaError_t e = cudaGetLastError();
    if (e != cudaSuccess)
        die("CUDA: kernel %s, grid (%u, %u, %u), block (%u, %u, %u): %s%s", kernel, grid.x, grid.y, grid.z,
            block.x, block.y, block.z, cudaGetErrorString(e),
            e == cudaErrorInvalidValue || e == cudaErrorInvalidConfiguration || verbosity > 0
                ? ""
                : ", here or in a kernel before it; -v finds which");
    if (verbosity > 0) { // -v: every kernel is waited for, so that a fault names the right one
        e = cudaStreamSynchronize(stream);
        if (e != cudaSuccess) die("CUDA: kernel %s failed while it ran: %s", kernel, cudaGetErrorString(e));
    }
}

// ---- memory ----------------------------------------------------------------------------------------------

static size_t persistent, scratch, peak; // bytes
static void note_peak() {
    if (persistent + scratch > peak) peak = persistent + scratch;
}
static size_t peak_bytes(void) { return peak; }

static void *device_alloc(size_t bytes, const char *what) {
    void *p = NULL;
    if (cudaMalloc(&p, bytes ? bytes : 1) == cudaSuccess) return p;
    cudaGetLastError();
    size_t available = 0, total = 0;
    cudaMemGetInfo(&available, &total);
    die("CUDA: out of memory: %s need %.1f MB more, %.1f of %.1f MB are free; %.1f MB are in use here", what,
        bytes / 1e6, available / 1e6, total / 1e6, (persistent + scratch) / 1e6);
}

struct Persistent {
    size_t bytes;
    void *copy; // the weight in the type of activations, or NULL: see in_storage()
    bool fresh; // the weight has not changed since
};
static std::map<const void *, Persistent> persistent_blocks;

static void *persistent_alloc(size_t bytes) {
    void *p = device_alloc(bytes, "weights");
    persistent_blocks[p] = {bytes, NULL, false};
    persistent += bytes;
    note_peak();
    return p;
}
static void persistent_free(void *at) {
    if (!at) return;
    auto block = persistent_blocks.find(at);
    if (block == persistent_blocks.end()) die("CUDA: free of an address that alloc did not give");
    void *copy = block->second.copy;
    persistent -= block->second.bytes;
    persistent_blocks.erase(block);
    forget_runs();
    check_cuda(cudaFree(at), "freeing memory");
    persistent_free(copy);
}

// The tensor cores want both operands of a product in one type, whatever that of the file, and weights that
// are trained stay fp32. So a weight has a copy in the type of activations, made when it is first needed and
// again after the weight has changed: at most once a training step.
void weight_changes(const void *at) {
    auto block = persistent_blocks.upper_bound(at);
    if (backend.storage == F32 || block == persistent_blocks.begin()) return;
    --block; // the last that begins at or before it
    if ((const char *)at >= (const char *)block->first + block->second.bytes || !block->second.fresh) return;
    block->second.fresh = false;
    forget_runs();
}
Mem in_storage(Mem x, size_t count, Scratch &) {
    if (backend.storage == F32 || x.type == backend.storage) return x;
    Mem y = {NULL, backend.storage};
    auto block = persistent_blocks.find(x.at);
    if (block == persistent_blocks.end() || block->second.bytes != count * size_of(x.type)) {
        y.at = backend.temp(count * size_of(y.type)); // goes with the caller's Scratch
        backend.copy(y, x, count);
        return y;
    }
    Persistent &weight = block->second;
    if (!weight.copy) weight.copy = persistent_alloc(count * size_of(y.type));
    y.at = weight.copy;
    if (!weight.fresh) backend.copy(y, x, count);
    weight.fresh = true;
    return y;
}

#ifdef OWN_ALLOCATIONS
// A mark is the number of tensors below it.
struct Block {
    void *at;
    size_t bytes;
};
static std::vector<Block> tensors;
static void *scratch_alloc(size_t bytes) {
    void *p = device_alloc(bytes, "activations");
    tensors.push_back({p, bytes});
    scratch += bytes;
    note_peak();
    return p;
}
static size_t scratch_mark(void) { return tensors.size(); }
static void scratch_release(size_t mark) {
    if (mark > tensors.size()) die("CUDA: release of a mark that is above the top");
    while (tensors.size() > mark) {
        check_cuda(cudaFree(tensors.back().at), "freeing memory");
        scratch -= tensors.back().bytes;
        tensors.pop_back();
    }
}
static void *scratch_release_but(size_t mark, void *at, size_t) { // it need not move: nothing lies beside it
    for (size_t i = mark; i < tensors.size(); i++) {
        if (tensors[i].at != at) continue;
        Block kept = tensors[i];
        tensors.erase(tensors.begin() + (long)i);
        scratch_release(mark);
        tensors.push_back(kept);
        return at;
    }
    die("CUDA: release_but of an address that temp did not give after the mark");
}
#else
// The arena is a row of chunks. A mark counts bytes from the beginning of the first; what does not fit into
// the rest of a chunk begins the next. A chunk that is too small for a tensor is passed over.
struct Chunk {
    char *at;
    size_t begin, bytes; // of the row
};
static std::vector<Chunk> chunks;
#ifdef EMULATE
static const size_t CHUNK = 1 << 20, ALIGN = 256; // small, so that small networks meet the ends of chunks
#else
static const size_t CHUNK = (size_t)256 << 20, ALIGN = 256;
#endif

static void *scratch_alloc(size_t bytes) {
    bytes = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    for (const Chunk &c : chunks) {
        size_t at = scratch > c.begin ? scratch : c.begin;
        if (at + bytes > c.begin + c.bytes) continue;
        scratch = at + bytes;
        note_peak();
        return c.at + (at - c.begin);
    }
    size_t begin = chunks.empty() ? 0 : chunks.back().begin + chunks.back().bytes;
    size_t size = bytes > CHUNK ? bytes : CHUNK;
    chunks.push_back({(char *)device_alloc(size, "activations"), begin, size});
    scratch = begin + bytes;
    note_peak();
    return chunks.back().at;
}
static size_t scratch_mark(void) { return scratch; }
// Gives back what lies above the mark. Under the emulator it becomes NaN, so that nobody relies on it.
static void free_from(size_t mark) {
#ifdef EMULATE
    for (const Chunk &c : chunks) {
        size_t from = mark > c.begin ? mark - c.begin : 0, to = scratch > c.begin ? scratch - c.begin : 0;
        if (to > c.bytes) to = c.bytes;
        if (from < to) check_cuda(cudaMemsetAsync(c.at + from, 0xff, to - from, stream), "freeing memory");
    }
#endif
    scratch = mark;
}
static void scratch_release(size_t mark) {
    if (mark > scratch) die("CUDA: release of a mark that is above the top");
    free_from(mark);
}
// A copy within the GPU moves it down. Where the two places overlap it stays: what is lost below is less than
// its own size, and comes back with the next mark.
static void *scratch_release_but(size_t mark, void *at, size_t bytes) {
    if (mark > scratch) die("CUDA: release of a mark that is above the top");
    size_t old_top = scratch;
    scratch = mark;
    char *to = (char *)scratch_alloc(bytes), *from = (char *)at;
    if (from >= to + bytes || from + bytes <= to)
        check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream), "moving a result");
    else if (from != to) {
        for (const Chunk &c : chunks)
            if (from >= c.at && from < c.at + c.bytes)
                scratch = c.begin + (size_t)(from - c.at) + (bytes + ALIGN - 1) / ALIGN * ALIGN;
        to = from;
    }
    size_t top = scratch;
    scratch = old_top;
    if (top < old_top) free_from(top);
    scratch = top;
    return to;
}
#endif

// ---- runs as graphs ---------------------------------------------------------------------------------------
// A network's pass is some 400 launches, and many a kernel takes less time than its launch. So the calls of a
// run that comes again are caught and launched as one graph. That freezes the kernels' arguments: addresses,
// shapes, factors. The caller's key stands for all of these but two, which end all graphs: memory that was
// given back, and a weight's copy that is stale (weight_changes). A run is caught the second time: the first
// may still ask for memory.

#ifdef OWN_ALLOCATIONS // of tensors, within the run
static void forget_runs() {}
static const bool catching = false;
#else
static std::map<uint64_t, cudaGraphExec_t> runs; // NULL: it ran once
static uint64_t run_begun;
static bool catching;

static void forget_runs() {
    for (auto &run : runs)
        if (run.second) {
            check_cuda(cudaStreamSynchronize(stream), "waiting for the GPU");
            check_cuda(cudaGraphExecDestroy(run.second), "forgetting a graph");
        }
    runs.clear();
}
static bool replay_run(uint64_t key) {
    auto run = runs.find(key);
    if (run == runs.end() || !run->second) return false;
    check_cuda(cudaGraphLaunch(run->second, stream), "launching a graph");
    return true;
}
static void begin_run(uint64_t key) {
    run_begun = key;
    catching = runs.count(key) && verbosity < 1; // -v waits for each kernel
    if (catching)
        check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "beginning a graph");
}
static void end_run() {
    if (!catching) {
        if (runs.size() > 64) forget_runs();
        runs[run_begun] = NULL;
        return;
    }
    catching = false;
    cudaGraph_t graph;
    check_cuda(cudaStreamEndCapture(stream, &graph), "ending a graph");
    check_cuda(cudaGraphInstantiate(&runs[run_begun], graph, 0), "making a graph");
    check_cuda(cudaGraphDestroy(graph), "making a graph");
    replay_run(run_begun);
}
#endif

// ---- copies ----------------------------------------------------------------------------------------------

// Uploads go through two pinned buffers in turn: while one is on its way, the next is filled, and the
// caller's own memory (a mapped file, a local array) is free again when the upload returns. Small ones share
// a buffer, so they wait for none before it.
enum { STAGE_COUNT = 2 };
static const size_t STAGE = 4 << 20; // bytes
static char *stage[STAGE_COUNT];
static cudaEvent_t stage_empty[STAGE_COUNT];
static int stage_now;
static size_t stage_used;

static void upload(void *to, const void *host, size_t bytes) {
    if (catching) die("CUDA: an upload within a run that is to be repeated");
    weight_changes(to);
    if (!stage[0])
        for (int i = 0; i < STAGE_COUNT; i++) {
            check_cuda(cudaMallocHost(&stage[i], STAGE), "asking for pinned memory");
            check_cuda(cudaEventCreateWithFlags(&stage_empty[i], cudaEventDisableTiming),
                       "creating an event");
        }
    for (size_t at = 0; at < bytes;) {
        size_t n = bytes - at < STAGE ? bytes - at : STAGE;
        if (stage_used + n > STAGE) {
            check_cuda(cudaEventRecord(stage_empty[stage_now], stream), "uploading");
            stage_now = (stage_now + 1) % STAGE_COUNT, stage_used = 0;
            check_cuda(cudaEventSynchronize(stage_empty[stage_now]), "waiting for an upload");
        }
        char *from = stage[stage_now] + stage_used;
        memcpy(from, (const char *)host + at, n);
        check_cuda(cudaMemcpyAsync((char *)to + at, from, n, cudaMemcpyHostToDevice, stream), "uploading");
        at += n, stage_used += n;
    }
}
static void download(void *host, const void *from, size_t bytes) {
    if (bytes) check_cuda(cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, stream), "downloading");
    check_cuda(cudaStreamSynchronize(stream), "waiting for the GPU");
}
static void synchronise(void) { check_cuda(cudaStreamSynchronize(stream), "waiting for the GPU"); }

struct Fill {
    Mem y;
    float value;
    template <int W> __device__ void run(size_t i) const {
        Lanes<W> l;
        for (float &v : l.v) v = value;
        store_lanes(y, i, l);
    }
};
static void launch_fill(Mem y, float value, size_t count) {
    weight_changes(y.at);
    run_pointwise("fill", Fill{y, value}, count, count, y, y, y);
}

struct Copy {
    Mem y, x;
    template <int W> __device__ void run(size_t i) const { store_lanes(y, i, load_lanes<W>(x, i)); }
};
static void launch_copy(Mem y, Mem x, size_t count) {
    if (!count || (y.at == x.at && y.type == x.type)) return;
    weight_changes(y.at);
    run_pointwise("copy", Copy{y, x}, count, count, y, x, x);
}

void memory_kernels(Backend &b) {
    b.alloc = persistent_alloc, b.free = persistent_free;
    b.temp = scratch_alloc, b.mark = scratch_mark;
    b.release = scratch_release, b.release_but = scratch_release_but;
    b.peak = peak_bytes;
#ifndef OWN_ALLOCATIONS
    static const char *const names[] = {"off", "on"};
    if (step_named("SD_GRAPH", names, 2) != 0) b.replay = replay_run, b.begin = begin_run, b.end = end_run;
#endif
    b.upload = upload, b.download = download, b.sync = synchronise;
    b.fill = launch_fill, b.copy = launch_copy;
}

// ---- the device, and the table ---------------------------------------------------------------------------

static char device_name[400];
static const char *name(void) { return device_name; }

static void choose_device() {
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
        die("CUDA: the GPU %s has compute capability %d.%d; at least 8.0 (Ampere) is needed", p.name, p.major,
            p.minor);
    check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
    snprintf(device_name, sizeof device_name, "cuda %s, sm_%d%d", p.name, p.major, p.minor);
}

Backend backend;

void backend_init(int) {
    choose_device();
    static bool will_say = atexit(say_operations) == 0;
    (void)will_say;
    backend.name = name;
    backend.storage = STORAGE;
    memory_kernels(backend); // each file fills in its part of the table
    gemm_kernels(backend);
    conv_kernels(backend);
    attention_kernels(backend);
    norm_kernels(backend);
    pointwise_kernels(backend);
    loss_kernels(backend);
    optim_kernels(backend);
}

void backend_dtype(Type type) {
    if (type != STORAGE)
        die("--dtype: a GPU computes with the type of its build; make cuda PRECISION=%s",
            type == BF16 ? "bf16" : "f32");
}
