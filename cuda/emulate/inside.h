// inside.h: what the emulator's own files share. No kernel sees it.
#ifndef EMULATE_INSIDE_H
#define EMULATE_INSIDE_H

// emulate.h declares the built-in variables const; the emulator is who writes them.
#define threadIdx emu_const_threadIdx
#define blockIdx emu_const_blockIdx
#define blockDim emu_const_blockDim
#define gridDim emu_const_gridDim
#include "emulate.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

#include <atomic>
#include <string>
#include <vector>

extern "C" {
extern __thread uint3 threadIdx, blockIdx, blockDim, gridDim;
}

enum { MAX_THREADS = 1024, MAX_WARPS = 32, MAX_DYNAMIC_SHARED = 232448 };

struct Fiber;

struct Copy { // one cp.async under way
    void *to;
    const void *from;
    int source_bytes, group; // of 16 bytes
    EmuSite at;
};

struct Thread {
    uint3 index;
    int id;
    bool done;
    Fiber *fiber;
    EmuSite at; // where it waits
    std::vector<Copy> copies;
    int group; // number of the cp.async group that is being filled
};

// Lanes of a warp that meet in one operation. The last one to arrive carries it out for all.
typedef void WarpOperation(void **argument, unsigned mask); // argument[lane] for the lanes of the mask
struct WarpBarrier {
    unsigned mask, arrived;
    WarpOperation *operation;
    int variant; // lanes must agree on it
    void *argument[32];
};

struct Warp {
    WarpBarrier barrier[32];
    int open;        // barriers that wait for lanes
    uint32_t synced; // time of the last __syncwarp of all lanes
};

// What was last done with two bytes of memory. Times are of `Worker::clock`.
struct Cell {
    uint32_t wrote, read;
    uint16_t writer, reader; // thread number with the flags below
};
enum : uint16_t { NOBODY = 0xffff, SEVERAL = 0xfffe, WHOLE_WARP = 0x8000, ATOMICALLY = 0x4000 };
enum : uint32_t { IN_FLIGHT = 0xffffffffu };

struct SharedVariable {
    uintptr_t offset, size; // in the block of thread-local variables
    std::string owner, name;
};

enum Allowed : char { FOREIGN, ITS_OWN, BUILT_IN }; // BUILT_IN: threadIdx..., whose reads clang reports too

struct Kernel { // what is known of a kernel once it was launched
    std::string name;
    std::vector<const SharedVariable *> variables;
    std::vector<char> allowed; // for each byte of thread-local memory
};

struct Launch {
    const EmuCall *call;
    Kernel *kernel;
    dim3 grid, block;
    size_t shared;
    std::atomic<uint64_t> next; // block
    uint64_t blocks;            // that run: all, but for EMU_SAMPLE
};

struct Counter; // check.cc

struct Worker { // one thread of the operating system, which runs one block at a time
    Launch *launch;
    Thread thread[MAX_THREADS];
    Warp warp[MAX_WARPS];
    uint32_t ready[MAX_WARPS]; // lanes that can go on
    int threads, warps, live, current_warp;
    Thread *current;
    bool inside; // a kernel is running
    // the barrier that some threads wait in
    int arrived, count, result;
    EmuBarrier kind;
    EmuSite barrier_at;
    std::vector<Fiber *> idle;
    int fibers;
    uint64_t random;
    // for the checks: a clock that is raised at every launch, block, barrier and __syncwarp
    uint32_t clock, launch_time, block_start, barrier_time;
    std::vector<uint32_t> block_times; // of this launch, by order of execution
    std::vector<uint64_t> block_order;
    uintptr_t tls, dynamic;
    Counter *counter;
    uint64_t flop, met; // of mma.sync; other operations of a warp, barriers among them
};

extern __thread Worker *emu_worker;
extern int opt_check, opt_count, opt_seed, opt_sample;
extern std::atomic<int> emu_findings;
extern bool emu_instrumented; // kernels were compiled with -fsanitize=thread

// emulate.cc
[[gnu::format(printf, 1, 2)]] void emu_say(const char *format, ...);
std::string emu_who(const Thread *t); // "thread (1,2,3) of block (4,5,6)"
[[noreturn]] void emu_stop();
[[noreturn, gnu::format(printf, 1, 2)]] void emu_die(const char *format, ...); // emu_say, emu_stop
void emu_abort_if_wanted();                              // EMU_ABORT=1: to stop in a debugger at a finding
std::string emu_kernel_name(const std::string &mangled); // "tiled<float>"
void emu_collective(unsigned mask, WarpOperation *operation, int variant, void *argument, EmuSite at);
extern std::vector<SharedVariable> emu_variables;
extern uintptr_t emu_tls_size, emu_image_low, emu_image_high, emu_load_address;
bool emu_on_a_stack(const Worker &w, uintptr_t a);

// Device memory: one range of addresses, with one byte of state for each byte (checked builds).
enum MemoryState : char { NOT_ALLOCATED, NOT_WRITTEN, WRITTEN };
enum { PAGE = 4096 };
static const size_t ARENA = (size_t)1 << 36;
extern char *emu_arena, *emu_state;
extern Cell *emu_global_cell;            // one for two bytes
std::string emu_describe(const void *p); // "byte 512 of an allocation of 512 bytes"

// check.cc
enum Access { READ, WRITE, ATOMIC };
size_t emu_allocation(uintptr_t a, uintptr_t *begin); // its bytes, or 0
void emu_access(void *p, unsigned bytes, Access kind, void *pc);
void emu_finding(const char *what, const std::string &detail, void *pc, EmuSite at);
[[noreturn]] void emu_fatal(const char *what, const std::string &detail, void *pc, EmuSite at); // and stops
void check_begin();                // before the first launch
void check_warp(Worker &w, int i); // the lanes of warp i met: what they do next is another access
void check_launch_end(Worker &w);
struct WarpAccess { // what 32 lanes access at once
    unsigned mask;
    uintptr_t at[32];
};
struct Counted { // of one instruction
    void *pc;
    bool shared;
    unsigned bytes;                        // a lane
    uint64_t accesses, lanes, cost, ideal; // cost: sectors, or passes over shared memory
    WarpAccess worst;
    uint64_t worst_cost, worst_ideal;
};
bool check_counted(const Launch &l);       // whether one like it was counted; notes this one as the same
void check_in_flight(Worker &w, void *to); // the 16 bytes of a cp.async
void check_landed(Worker &w, void *to);

struct Line {
    std::string file;
    int number;
};
// Where instructions come from: the line of the kernel, then those of what is inlined there, down to the
// access itself; without those of emulate.h and ptx.h.
std::vector<std::vector<Line>> lines_of(const std::vector<void *> &pcs);
std::string place_name(
    const std::vector<Line> &lines); // "norm.cu:40 `sum += load(x, i);` (device.h:46 `...`)"

// page.cc
void page_add(const Launch &l, const Counted &c); // the figures of an instruction of this launch
void page_write(const char *path);
#define CALLER __builtin_return_address(0)

#endif
