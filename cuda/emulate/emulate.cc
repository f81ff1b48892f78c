// emulate.cc: the emulator's scheduler: fibers, barriers, launches over cores, device memory, streams,
// graphs. Never compile it with -fsanitize=thread: check.cc answers the calls which that makes.
//
// A thread of a block runs until it waits (barrier, warp operation) or returns; then the next one runs.
// Nothing is preempted, so a kernel in which one thread spins until another writes would hang.
#include "inside.h"

#include <algorithm>
#include <chrono>
#include <climits>
#include <condition_variable>
#include <cstdarg>
#include <functional>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>
#include <cxxabi.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef __linux__
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#endif

extern "C" {
__thread uint3 threadIdx, blockIdx, blockDim, gridDim;
}
#ifndef __clang__
__constinit
#endif
    thread_local __attribute__((aligned(128))) unsigned char dynamic_shared[MAX_DYNAMIC_SHARED];
__thread Worker *emu_worker;

// ---- options and reports ---------------------------------------------------------------------------------

#ifndef EMU_COUNT_DEFAULT
#define EMU_COUNT_DEFAULT 0
#endif
int opt_check, opt_count, opt_seed, opt_sample;
static int opt_threads, opt_poison, opt_devices, opt_memory, opt_capability, opt_async;
std::atomic<int> emu_findings;
bool emu_instrumented;

static void say(const char *format, va_list v) {
    char text[2000];
    int n = vsnprintf(text, sizeof text, format, v);
    n = std::min(n, (int)sizeof text - 1);
    for (int at = 0; at < n;) {
        ssize_t wrote = write(2, text + at, (size_t)(n - at));
        if (wrote <= 0) break;
        at += (int)wrote;
    }
}

void emu_say(const char *format, ...) {
    va_list v;
    va_start(v, format);
    say(format, v);
    va_end(v);
}
void emu_die(const char *format, ...) {
    va_list v;
    va_start(v, format);
    say(format, v);
    emu_stop();
}

std::string emu_who(const Thread *t) {
    char text[120];
    snprintf(text, sizeof text, "thread (%u,%u,%u) of block (%u,%u,%u)", t->index.x, t->index.y, t->index.z,
             blockIdx.x, blockIdx.y, blockIdx.z);
    return text;
}

// Where a run ends that cannot go on. A debugger may break here.
[[noreturn]] __attribute__((noinline)) void emu_stop() {
    fflush(nullptr);
    emu_abort_if_wanted();
    _exit(86);
}
void emu_abort_if_wanted() {
    const char *s = getenv("EMU_ABORT");
    if (s && *s && strcmp(s, "0")) abort();
}

static int option(const char *name, int otherwise) {
    const char *s = getenv(name);
    if (!s || !*s) return otherwise;
    char *end;
    long value = strtol(s, &end, 10);
    if (!*end && value >= 0 && value <= INT_MAX) return (int)value;
    emu_die("emulate: %s is \"%s\"; a whole number is expected\n", name, s);
}

// ---- fibers ----------------------------------------------------------------------------------------------
// A fiber is a stack and the place where it was left. On x86-64 a switch is: push the six registers that a
// function must preserve, exchange the stack pointers, pop, return. Elsewhere ucontext does the same, slower.

#if defined(__x86_64__) && !defined(EMU_UCONTEXT)
struct Fiber {
    void *sp;
    char *stack;
    size_t size;
};
extern "C" void emu_switch_stack(void **save, void *to);
asm(".text\n"
    ".type emu_switch_stack,@function\n"
    "emu_switch_stack:\n"
    "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    "mov %rsp,(%rdi)\n"
    "mov %rsi,%rsp\n"
    "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n"
    "ret\n"
    ".size emu_switch_stack,.-emu_switch_stack\n");
static void fiber_make(Fiber *f, char *top, void (*entry)()) {
    void **s = (void **)((uintptr_t)top & ~(uintptr_t)15);
    *--s = nullptr; // the entry's own return address: a backtrace ends here
    *--s = (void *)entry;
    for (int i = 0; i < 6; i++) *--s = nullptr; // the six registers
    f->sp = s;
}
static inline void fiber_switch(Fiber *from, Fiber *to) { emu_switch_stack(&from->sp, to->sp); }
#else
#include <ucontext.h>
struct Fiber {
    ucontext_t context;
    char *stack;
    size_t size;
};
static void fiber_make(Fiber *f, char *top, void (*entry)()) {
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = (size_t)(top - f->stack);
    f->context.uc_link = nullptr;
    makecontext(&f->context, entry, 0);
}
static inline void fiber_switch(Fiber *from, Fiber *to) { swapcontext(&from->context, &to->context); }
#endif

enum { STACK = 128 << 10 };
static __thread Fiber own_fiber; // the stack of the operating system's thread

static void fiber_main();
static Fiber *fiber_take(Worker &w) {
    if (!w.idle.empty()) {
        Fiber *f = w.idle.back();
        w.idle.pop_back();
        return f;
    }
    char *memory = (char *)mmap(nullptr, STACK + PAGE, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) emu_die("emulate: no memory for the stack of a thread\n");
    mprotect(memory, PAGE, PROT_NONE); // running off the stack faults instead of writing on a neighbour's
    Fiber *f = new Fiber();
    f->stack = memory + PAGE;
    f->size = STACK;
    // Stacks begin at different offsets in a page. Otherwise all would compete for the same cache sets.
    fiber_make(f, f->stack + STACK - w.fibers++ * 320 % 4096, fiber_main);
    return f;
}

bool emu_on_a_stack(const Worker &w, uintptr_t a) {
    const Fiber *f = w.current->fiber;
    return a - (uintptr_t)f->stack < f->size;
}

// ---- which thread runs next ------------------------------------------------------------------------------

static inline uint32_t next_random(Worker &w) {
    w.random ^= w.random << 13;
    w.random ^= w.random >> 7;
    w.random ^= w.random << 17;
    return (uint32_t)(w.random >> 16);
}

// Takes a thread that can go on; NULL if there is none.
static inline Thread *pick(Worker &w) {
    int v = w.current_warp, lane;
    if (opt_seed) {
        unsigned total = 0;
        for (int i = 0; i < w.warps; i++) total += (unsigned)__builtin_popcount(w.ready[i]);
        if (!total) return nullptr;
        int n = (int)(next_random(w) % total);
        for (v = 0; n >= __builtin_popcount(w.ready[v]); v++) n -= __builtin_popcount(w.ready[v]);
        uint32_t lanes = w.ready[v];
        while (n--) lanes &= lanes - 1;
        lane = __builtin_ctz(lanes);
    } else {
        for (int i = 0; !w.ready[v]; v = v + 1 == w.warps ? 0 : v + 1)
            if (i++ == w.warps) return nullptr;
        lane = __builtin_ctz(w.ready[v]);
    }
    w.ready[v] &= ~(1u << lane);
    w.current_warp = v;
    return &w.thread[v * 32 + lane];
}

static inline void resume(Worker &w, Fiber *from, Thread *t) {
    w.current = t;
    threadIdx = t->index;
    if (!t->fiber) t->fiber = fiber_take(w);
    if (t->fiber == from) return;
    fiber_switch(from, t->fiber);
}

// Nobody can go on: says who waits where.
[[noreturn]] static void deadlock(Worker &w) {
    struct Place {
        EmuSite at;
        std::string who;
        int count;
    };
    std::vector<Place> places;
    for (int i = 0; i < w.threads; i++) {
        Thread &t = w.thread[i];
        EmuSite at = t.done ? EmuSite{"", "", 0} : t.at;
        auto p = std::find_if(places.begin(), places.end(), [&](const Place &x) {
            return x.at.line == at.line && std::string(x.at.what) == at.what;
        });
        if (p == places.end()) p = places.insert(places.end(), {at, "", 0});
        char text[60];
        snprintf(text, sizeof text, " (%u,%u,%u)", t.index.x, t.index.y, t.index.z);
        if (p->count++ < 4) p->who += text;
    }
    emu_say("emulate: DEADLOCK in kernel %s, block (%u,%u,%u): no thread can go on\n",
            w.launch->kernel->name.c_str(), blockIdx.x, blockIdx.y, blockIdx.z);
    for (const Place &p : places)
        if (p.at.line)
            emu_say("  %4d threads wait in %s at %s:%d:%s%s\n", p.count, p.at.what, p.at.file, p.at.line,
                    p.who.c_str(), p.count > 4 ? " ..." : "");
        else
            emu_say("  %4d threads have returned:%s%s\n", p.count, p.who.c_str(), p.count > 4 ? " ..." : "");
    emu_stop();
}

static inline void wait_here(Worker &w) {
    Thread *me = w.current, *next = pick(w);
    if (!next) deadlock(w);
    resume(w, me->fiber, next);
}

static void fiber_main() {
    Worker &w = *emu_worker;
    for (;;) {
        w.launch->call->run(w.launch->call->arguments);
        Thread *me = w.current;
        Fiber *f = me->fiber;
        me->done = true;
        w.live--;
        if (!me->copies.empty()) {
            emu_finding("RETURN WITH cp.async UNDER WAY", "it was started here", nullptr, me->copies[0].at);
            me->copies.clear();
        }
        me->fiber = nullptr;
        Thread *next = pick(w);
        if (!next && w.live) deadlock(w);
        if (next && !next->fiber) { // a thread that has not begun: it takes this stack over, without a switch
            next->fiber = f;
            w.current = next;
            threadIdx = next->index;
            continue;
        }
        w.idle.push_back(f);
        if (next)
            resume(w, f, next);
        else
            fiber_switch(f, &own_fiber);
    }
}

// ---- barriers --------------------------------------------------------------------------------------------

static void barrier_open(Worker &w) {
    w.result = w.kind == EMU_COUNT_TRUE ? w.count
               : w.kind == EMU_ALL_TRUE ? w.count == w.threads
                                        : w.count > 0;
    w.arrived = w.count = 0;
    w.barrier_time = ++w.clock;
    if (opt_count) w.met += (unsigned)w.warps;
    if (opt_count)
        for (int i = 0; i < w.warps; i++) check_warp(w, i);
    for (int i = 0; i < w.threads; i++)
        if (!w.thread[i].done) w.ready[i / 32] |= 1u << i % 32;
}

int emu_barrier(EmuBarrier kind, int predicate, EmuSite at) {
    Worker &w = *emu_worker;
    Thread *me = w.current;
    if (w.arrived && (w.barrier_at.line != at.line || w.kind != kind))
        emu_die(
            "emulate: DIVERGENT BARRIER in kernel %s: %s is in %s at %s:%d, others wait in %s at line %d\n",
            w.launch->kernel->name.c_str(), emu_who(me).c_str(), at.what, at.file, at.line, w.barrier_at.what,
            w.barrier_at.line);
    w.barrier_at = me->at = at;
    w.kind = kind;
    w.count += predicate != 0;
    if (++w.arrived == w.threads) {
        barrier_open(w);
        if (!opt_seed) { // the last to come simply goes on
            w.ready[me->id / 32] &= ~(1u << me->id % 32);
            return w.result;
        }
    }
    wait_here(w);
    return w.result; // stays until the next barrier opens, and that waits for this thread
}

// ---- barriers of a warp -----------------------------------------------------------------------------------

static void sync_operation(void **, unsigned) {}
void emu_syncwarp(unsigned mask, EmuSite at) { emu_collective(mask, sync_operation, 0, nullptr, at); }

static unsigned lanes_of(const Worker &w, int warp) { // lanes that exist: the last warp may be partial
    int n = std::min(32, w.threads - warp * 32);
    return n == 32 ? ~0u : (1u << n) - 1;
}

static void warp_barrier_open(Worker &w, int warp, WarpBarrier *m) {
    Warp &v = w.warp[warp];
    m->arrived = 0;
    v.open--;
    if (m->mask == lanes_of(w, warp)) {
        ++w.clock;
        // Shuffles, votes, ldmatrix and mma do not order memory. Only __syncwarp does. A __syncwarp of only
        // some lanes is not counted, so a kernel that relies on it is reported.
        if (m->operation == sync_operation) v.synced = w.clock;
        if (opt_count) check_warp(w, warp);
    }
    w.met++;
    m->operation(m->argument, m->mask);
}

void emu_collective(unsigned mask, WarpOperation *operation, int variant, void *argument, EmuSite at) {
    Worker &w = *emu_worker;
    Thread &me = *w.current;
    int warp = me.id / 32, lane = me.id % 32;
    unsigned bit = 1u << lane;
    Warp &v = w.warp[warp];
    if (!(mask & bit))
        emu_die(
            "emulate: WRONG MASK in kernel %s: %s calls %s at %s:%d with mask %08x, which lacks its own lane\n",
            w.launch->kernel->name.c_str(), emu_who(&me).c_str(), at.what, at.file, at.line, mask);
    mask &= lanes_of(w, warp); // nobody waits for lanes that do not exist
    WarpBarrier *m = &v.barrier[0];
    if (v.open && !(m->arrived && m->mask == mask)) { // several are open: find ours, or a free place
        WarpBarrier *end = v.barrier + 32;
        m = std::find_if(v.barrier, end, [&](const WarpBarrier &x) { return x.arrived && x.mask == mask; });
        if (m == end) m = std::find_if(v.barrier, end, [](const WarpBarrier &x) { return !x.arrived; });
    }
    if (!m->arrived) {
        m->mask = mask;
        m->operation = operation;
        m->variant = variant;
        v.open++;
    } else if (m->operation != operation || m->variant != variant) {
        const Thread &other = w.thread[warp * 32 + __builtin_ctz(m->arrived)];
        emu_die("emulate: WARP DIVERGED in kernel %s: %s is in %s at %s:%d, lane %d waits in %s at line %d\n",
                w.launch->kernel->name.c_str(), emu_who(&me).c_str(), at.what, at.file, at.line,
                other.id % 32, other.at.what, other.at.line);
    }
    me.at = at;
    m->argument[lane] = argument;
    m->arrived |= bit;
    if (m->arrived == mask) {
        warp_barrier_open(w, warp, m);
        if (!opt_seed) { // the last lane goes on at once, the others after it
            w.ready[warp] |= mask & ~bit;
            return;
        }
        w.ready[warp] |= mask;
    }
    wait_here(w);
}

// ---- shared variables, by name ---------------------------------------------------------------------------
// The program's own symbol table says where each kernel's shared arrays lie among the thread-local variables:
// `float As[16][64]` of kernel _Z5tiledPf is the symbol _ZZ5tiledPfE2As.

std::vector<SharedVariable> emu_variables;
uintptr_t emu_tls_size, emu_image_low, emu_image_high, emu_load_address;
static std::unordered_map<uintptr_t, std::string> function_names;
static std::set<std::string> kernel_names;
// The addresses of all kernels (see __global__), from the linker.
extern "C" __attribute__((weak)) const uintptr_t __start___patchable_function_entries[],
    __stop___patchable_function_entries[];

static std::string demangle(const std::string &name) {
    int status;
    char *text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
    std::string s = status ? name : text;
    free(text);
    return s;
}

#ifdef __linux__
static int look_at_segments(dl_phdr_info *info, size_t, void *) {
    emu_load_address = info->dlpi_addr;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        auto &p = info->dlpi_phdr[i];
        if (p.p_type == PT_TLS) emu_tls_size = p.p_memsz;
        if (p.p_type != PT_LOAD) continue;
        uintptr_t a = info->dlpi_addr + p.p_vaddr;
        if (!emu_image_low || a < emu_image_low) emu_image_low = a;
        emu_image_high = std::max(emu_image_high, (uintptr_t)(a + p.p_memsz));
    }
    return 1; // the program itself comes first; libraries are not looked at
}
static int look_for_tls(dl_phdr_info *info, size_t, void *result) {
    *(uintptr_t *)result = (uintptr_t)info->dlpi_tls_data;
    return 1;
}
static uintptr_t tls_of_this_thread() {
    uintptr_t at = 0;
    dl_iterate_phdr(look_for_tls, &at);
    return at;
}
static void read_symbols() {
    dl_iterate_phdr(look_at_segments, nullptr);
    int fd = open("/proc/self/exe", O_RDONLY);
    off_t bytes = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
    char *file = (char *)mmap(nullptr, (size_t)bytes, PROT_READ, MAP_PRIVATE, fd, 0); // fails if open did
    if (file == MAP_FAILED) return;
    auto *header = (const ElfW(Ehdr) *)file;
    auto *section = (const ElfW(Shdr) *)(file + header->e_shoff);
    for (int i = 0; i < header->e_shnum; i++) {
        if (section[i].sh_type != SHT_SYMTAB) continue;
        const char *names = file + section[section[i].sh_link].sh_offset;
        auto *symbol = (const ElfW(Sym) *)(file + section[i].sh_offset);
        for (size_t k = 0; k < section[i].sh_size / sizeof *symbol; k++) {
            std::string name = names + symbol[k].st_name;
            int type = ELF64_ST_TYPE(symbol[k].st_info);
            if (type == STT_FUNC) function_names[emu_load_address + symbol[k].st_value] = name;
            size_t e = name.rfind('E');
            if (type != STT_TLS || !symbol[k].st_size || name.compare(0, 3, "_ZZ") || e == std::string::npos)
                continue;
            std::string owner = "_Z" + name.substr(3, e - 3), readable = demangle(name);
            size_t colons = readable.rfind("::");
            if (colons != std::string::npos) readable = readable.substr(colons + 2);
            emu_variables.push_back({symbol[k].st_value, symbol[k].st_size, owner, readable});
        }
    }
    munmap(file, (size_t)bytes);
    close(fd);
    for (auto *entry = __start___patchable_function_entries; entry < __stop___patchable_function_entries;
         entry++)
        for (int before : {0, 4}) { // the instruction may stand behind an endbr64, which has 4 bytes
            auto found = function_names.find(*entry - (uintptr_t)before);
            if (found != function_names.end()) kernel_names.insert(found->second);
        }
    std::sort(emu_variables.begin(), emu_variables.end(),
              [](const SharedVariable &a, const SharedVariable &b) { return a.offset < b.offset; });
}
#else
static uintptr_t tls_of_this_thread() { return 0; }
static void read_symbols() {}
#endif

static std::map<const void *, Kernel> kernels;
static std::map<const void *, int> max_dynamic_shared;

// With its template arguments, without its parameters.
std::string emu_kernel_name(const std::string &mangled) {
    std::string full = demangle(mangled);
    size_t begin = full.rfind("void ", 0) == 0 ? 5 : 0, end = full.find('(', begin);
    while (end != std::string::npos && full.compare(end, 2, "((") &&
           full.rfind('<', end) != std::string::npos &&
           std::count(full.begin(), full.begin() + (long)end, '<') >
               std::count(full.begin(), full.begin() + (long)end, '>'))
        end = full.find('(', end + 1); // a parenthesis within the template arguments
    return full.substr(begin, end - begin);
}

static Kernel *kernel_of(const EmuCall &call) {
    Kernel &k = kernels[call.kernel];
    if (!k.name.empty()) return &k;
    std::string mangled = function_names[(uintptr_t)call.kernel];
    k.name = mangled.empty() ? call.name : emu_kernel_name(mangled);
    // Its own variables, and those of functions that are no kernels.
    k.allowed.assign(emu_tls_size, FOREIGN);
    for (SharedVariable &v : emu_variables) {
        if (v.owner != mangled && kernel_names.count(v.owner)) continue;
        k.variables.push_back(&v);
        std::fill_n(k.allowed.begin() + (long)v.offset, v.size, ITS_OWN);
    }
#ifdef __clang__
    for (uint3 *built_in : {&threadIdx, &blockIdx, &blockDim, &gridDim}) {
        uintptr_t offset = (uintptr_t)built_in - tls_of_this_thread();
        if (offset < emu_tls_size) std::fill_n(k.allowed.begin() + (long)offset, sizeof *built_in, BUILT_IN);
    }
#endif
    return &k;
}

// ---- device memory ---------------------------------------------------------------------------------------
// Addresses are given out in turn through 64 GiB of address space: one that was freed is not soon used again.

char *emu_arena, *emu_state;
Cell *emu_global_cell;
static std::map<uintptr_t, size_t> allocations;
static uintptr_t next_address;
static size_t allocated;
static std::mutex memory_lock;
static cudaError_t last_error;
static cudaError_t fail(cudaError_t e) { return last_error = e; }

static char *reserve(size_t bytes) {
    void *p =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) emu_die("emulate: cannot reserve %zu GiB of address space\n", bytes >> 30);
    return (char *)p;
}

static void report_at_exit() {
    const char *page = getenv("EMU_PAGE");
    if (!page && EMU_COUNT_DEFAULT) page = "emulate-count.html";
    if (page && *page && opt_count) page_write(page);
    if (!emu_findings) return;
    fflush(nullptr);
    emu_say("emulate: %d findings\n", (int)emu_findings);
    _exit(86);
}

static void setup() {
    if (emu_arena) return;
    opt_seed = option("EMU_SEED", 0);
    opt_count = option("EMU_COUNT", EMU_COUNT_DEFAULT) && emu_instrumented;
    opt_sample = opt_count ? option("EMU_SAMPLE", 0) : 0;
    opt_poison = option("EMU_POISON", 1) && !opt_sample;
    opt_check = option("EMU_CHECK", 1) && emu_instrumented && !opt_count;
    opt_devices = option("EMU_DEVICES", 1);
    opt_memory = option("EMU_MEMORY", 16384);
    opt_capability = option("EMU_CAPABILITY", 80);
    opt_async = option("EMU_ASYNC", 0);
    // The checks keep one history of each byte: one thread of the operating system, always the same report.
    int cores = (int)std::thread::hardware_concurrency();
    opt_threads = emu_instrumented ? 1 : std::max(1, option("EMU_THREADS", cores));
    emu_arena = reserve(ARENA);
    next_address = (uintptr_t)emu_arena + PAGE; // so that what lies before the first is recognised too
    if (opt_check) {
        emu_state = reserve(ARENA);
        emu_global_cell = (Cell *)reserve(ARENA / 2 * sizeof(Cell));
    }
    read_symbols();
    if (emu_instrumented) check_begin();
    atexit(report_at_exit);
}

static bool capturing(); // a stream is: what allocates or waits is refused
cudaError_t emu_malloc(void **p, size_t bytes) {
    setup();
    if (capturing()) return fail(cudaErrorStreamCaptureUnsupported);
    std::lock_guard<std::mutex> guard(memory_lock);
    *p = nullptr;
    if (bytes > ((size_t)opt_memory << 20) - allocated) return fail(cudaErrorMemoryAllocation);
    size_t room = ((bytes + 255) & ~(size_t)255) + 512; // at least 512 bytes of nothing behind each
    uintptr_t begin = (uintptr_t)emu_arena, at = next_address;
    for (int round = 0;; round++) {
        auto next = allocations.lower_bound(at);
        while (next != allocations.end() && next->first - at < room) {
            at = next->first + ((next->second + 255) & ~(uintptr_t)255) + 512;
            ++next;
        }
        if (at + room <= begin + ARENA) break;
        if (round) return fail(cudaErrorMemoryAllocation);
        at = begin + PAGE;
    }
    next_address = at + room;
    allocations[at] = bytes;
    allocated += bytes;
    *p = (void *)at;
    if (opt_poison) memset(*p, 0xff, bytes); // NaN in every type
    if (emu_state) memset(emu_state + (at - begin), NOT_WRITTEN, bytes);
    return cudaSuccess;
}

static void wait_for_all();
cudaError_t cudaFree(void *p) {
    if (!p) return cudaSuccess;
    if (capturing()) return fail(cudaErrorStreamCaptureUnsupported);
    wait_for_all();
    std::lock_guard<std::mutex> guard(memory_lock);
    auto found = allocations.find((uintptr_t)p);
    if (found == allocations.end()) return fail(cudaErrorInvalidValue);
    size_t bytes = found->second;
    allocations.erase(found);
    allocated -= bytes;
    if (emu_state) memset(emu_state + ((char *)p - emu_arena), NOT_ALLOCATED, bytes);
    uintptr_t low = ((uintptr_t)p + PAGE - 1) & ~(uintptr_t)(PAGE - 1);
    uintptr_t high = ((uintptr_t)p + bytes) & ~(uintptr_t)(PAGE - 1);
    if (high > low && high - low >= 1 << 20) madvise((void *)low, high - low, MADV_DONTNEED);
    return cudaSuccess;
}

// The allocation that holds p, or the nearest before it; end() if there is none.
static std::map<uintptr_t, size_t>::iterator allocation_before(uintptr_t a) {
    auto next = allocations.upper_bound(a);
    return next == allocations.begin() ? allocations.end() : --next;
}

std::string emu_describe(const void *p) {
    std::lock_guard<std::mutex> guard(memory_lock);
    uintptr_t a = (uintptr_t)p;
    auto own = allocation_before(a), next = allocations.upper_bound(a);
    char text[120];
    if (own != allocations.end() && (a - own->first < own->second + 4096 || next == allocations.end()))
        snprintf(text, sizeof text, "byte %zu of an allocation of %zu bytes", (size_t)(a - own->first),
                 own->second);
    else if (next != allocations.end())
        snprintf(text, sizeof text, "%zu bytes before an allocation of %zu bytes", (size_t)(next->first - a),
                 next->second);
    else
        snprintf(text, sizeof text, "freed global memory");
    return text;
}

size_t emu_allocation(uintptr_t a, uintptr_t *begin) {
    auto own = allocation_before(a);
    if (own == allocations.end() || a - own->first >= own->second) return 0;
    return *begin = own->first, own->second;
}

// True unless [p, p + bytes) lies in device memory but not within one allocation.
static bool range_ok(const void *p, size_t bytes, bool device) {
    uintptr_t a = (uintptr_t)p;
    if (a - (uintptr_t)emu_arena >= ARENA) return !device;
    std::lock_guard<std::mutex> guard(memory_lock);
    auto own = allocation_before(a);
    return device && own != allocations.end() && a - own->first + bytes <= own->second;
}

// ---- streams, events, graphs -----------------------------------------------------------------------------
// Work is done at the call. With EMU_ASYNC=1 a stream keeps it until something waits for it, the latest
// moment that CUDA allows. A stream that is being captured keeps it for cudaGraphLaunch.

struct EmuGraph {
    std::vector<std::function<void()>> work;
};
struct EmuStream {
    EmuGraph *capture;
    std::deque<std::function<void()>> queue;
    long submitted, done;
};
struct EmuEvent {
    std::chrono::steady_clock::time_point at;
    cudaStream_t stream;
    long after; // what was submitted before it
};
static std::vector<cudaStream_t> streams;

static bool capturing() {
    for (cudaStream_t s : streams)
        if (s->capture) return true;
    return false;
}
static void wait_for(cudaStream_t s, long until) {
    for (; s && s->done < until && !s->queue.empty(); s->done++) {
        std::function<void()> work = std::move(s->queue.front());
        s->queue.pop_front();
        work();
    }
}
static void wait_for_all() {
    for (cudaStream_t s : streams) wait_for(s, s->submitted);
}

static void submit(cudaStream_t s, std::function<void()> work) {
    if (s && s->capture)
        s->capture->work.push_back(std::move(work));
    else if (s && opt_async) {
        s->queue.push_back(std::move(work));
        s->submitted++;
    } else
        work();
}
static std::map<uintptr_t, size_t> pinned; // host memory of cudaMallocHost

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t s) {
    setup();
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    // CUDA would note a copy to or from the host, and a replay find other bytes there. So it is refused here.
    if (s && s->capture && !(to_device && from_device)) return fail(cudaErrorStreamCaptureUnsupported);
    if (bytes == 0) return cudaSuccess;
    if (opt_sample) return to_device ? cudaSuccess : (memset(to, 0, bytes), cudaSuccess);
    if (!range_ok(to, bytes, to_device) || !range_ok(from, bytes, from_device)) {
        emu_say("emulate: cudaMemcpy of %zu bytes: out of bounds, or the wrong kind\n", bytes);
        emu_findings++;
        return fail(cudaErrorInvalidValue);
    }
    // From pinned memory the bytes are read when the copy runs, and are spoilt then, so that staging memory
    // which is filled again too early shows. Other host memory is free again when the call returns.
    auto staging = pinned.upper_bound((uintptr_t)from);
    bool is_pinned = staging != pinned.begin() && (--staging)->first + staging->second > (uintptr_t)from;
    std::shared_ptr<std::string> kept;
    if (opt_async && s && !from_device && !is_pinned) kept.reset(new std::string((const char *)from, bytes));
    submit(s, [=] {
        memmove(to, kept ? kept->data() : from, bytes);
        if (opt_async && is_pinned && !from_device) memset((void *)from, 0xff, bytes);
        if (!emu_state || !to_device) return;
        char *state = emu_state + ((char *)to - emu_arena);
        if (from_device)
            memmove(state, emu_state + ((const char *)from - emu_arena), bytes);
        else
            memset(state, WRITTEN, bytes);
    });
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    wait_for_all();
    return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t s) {
    setup();
    if (bytes && !range_ok(to, bytes, true)) return fail(cudaErrorInvalidValue);
    if (opt_sample) return cudaSuccess;
    submit(s, [=] {
        memset(to, value, bytes);
        if (emu_state) memset(emu_state + ((char *)to - emu_arena), WRITTEN, bytes);
    });
    return cudaSuccess;
}
cudaError_t cudaMemset(void *to, int value, size_t bytes) {
    wait_for_all();
    return cudaMemsetAsync(to, value, bytes, nullptr);
}
cudaError_t emu_malloc_host(void **p, size_t bytes) {
    if (capturing()) return fail(cudaErrorStreamCaptureUnsupported);
    *p = malloc(bytes ? bytes : 1);
    pinned[(uintptr_t)*p] = bytes;
    return *p ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}

// Shared memory of a block that a device of this capability gives, static and dynamic together.
static size_t most_shared() {
    int c = opt_capability;
    return (size_t)(c == 80 || c == 87 ? 163 : c == 90 || c == 100 ? 227 : c < 80 ? 64 : 99) << 10;
}
static size_t static_shared(Kernel *k) {
    size_t bytes = 0;
    for (const SharedVariable *v : k->variables)
        if (v->offset != (uintptr_t)dynamic_shared - tls_of_this_thread()) bytes += v->size;
    return bytes;
}

cudaError_t cudaGetDeviceCount(int *count) {
    setup();
    *count = opt_devices;
    return opt_devices ? cudaSuccess : fail(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) {
    setup();
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "emulated%s", opt_check ? ", checked" : opt_count ? ", counting" : "");
    p->totalGlobalMem = (size_t)opt_memory << 20;
    p->major = opt_capability / 10;
    p->minor = opt_capability % 10;
    p->multiProcessorCount = opt_threads;
    p->sharedMemPerBlockOptin = most_shared();
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    setup();
    *total = (size_t)opt_memory << 20;
    *available = *total - allocated;
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
    if (capturing()) return fail(cudaErrorStreamCaptureUnsupported);
    wait_for_all();
    return cudaSuccess;
}
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
const char *cudaGetErrorString(cudaError_t e) {
    switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    default: return "unknown error";
    }
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) {
    streams.push_back(*s = new EmuStream());
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *s) { return cudaStreamCreateWithFlags(s, 0); }
cudaError_t cudaStreamDestroy(cudaStream_t s) {
    wait_for(s, s->submitted);
    streams.erase(std::find(streams.begin(), streams.end(), s));
    delete s;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    if (s && s->capture) return fail(cudaErrorStreamCaptureUnsupported);
    if (s) wait_for(s, s->submitted);
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) {
    *e = new EmuEvent();
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) {
    delete e;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    e->at = std::chrono::steady_clock::now();
    e->stream = s, e->after = s ? s->submitted : 0;
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    if (e->stream && e->stream->capture) return fail(cudaErrorStreamCaptureUnsupported);
    wait_for(e->stream, e->after);
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end) {
    *milliseconds = std::chrono::duration<float, std::milli>(end->at - begin->at).count();
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
    if (!s || s->capture) return fail(cudaErrorInvalidValue);
    s->capture = new EmuGraph();
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph) {
    if (!s || !s->capture) return fail(cudaErrorInvalidValue);
    *graph = std::exchange(s->capture, nullptr);
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    *exec = new EmuGraph(*graph);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
    for (auto &work : exec->work) submit(s, work);
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return cudaGraphDestroy(exec); }
cudaError_t emu_set_attribute(const void *kernel, cudaFuncAttribute, int value) {
    setup();
    EmuCall call = {"", kernel, nullptr, nullptr, nullptr, 0};
    if (value < 0 || (size_t)value + static_shared(kernel_of(call)) > most_shared())
        return fail(cudaErrorInvalidValue);
    max_dynamic_shared[kernel] = value;
    return cudaSuccess;
}

// ---- launches --------------------------------------------------------------------------------------------

static void run_block(Worker &w, uint64_t number) {
    Launch &l = *w.launch;
    blockIdx = {(unsigned)(number % l.grid.x), (unsigned)(number / l.grid.x % l.grid.y),
                (unsigned)(number / l.grid.x / l.grid.y)};
    if (opt_poison) { // shared memory holds nothing at first: NaN in every type
        if (w.tls)
            for (const SharedVariable *v : l.kernel->variables)
                memset((void *)(w.tls + v->offset), 0xff, v->size);
        memset(dynamic_shared, 0xff, l.shared);
    }
    for (int i = 0; i < w.threads; i++) {
        w.thread[i].done = false;
        w.thread[i].fiber = nullptr;
        w.thread[i].group = 0;
    }
    for (int i = 0; i < w.warps; i++) {
        w.ready[i] = lanes_of(w, i);
        w.warp[i].open = 0;
        w.warp[i].synced = 0;
        for (WarpBarrier &m : w.warp[i].barrier) m.arrived = 0;
    }
    w.live = w.threads;
    w.arrived = w.count = 0;
    w.current_warp = 0;
    w.block_start = w.barrier_time = ++w.clock;
    w.random = 0x9e3779b97f4a7c15ull * (uint64_t)(opt_seed + 1) + number * 0xd1342543de82ef95ull + 1;
    if (opt_check || opt_count) {
        w.block_times.push_back(w.clock);
        w.block_order.push_back(number);
    }
    w.inside = true;
    resume(w, &own_fiber, pick(w));
    w.inside = false;
    if (opt_count)
        for (int i = 0; i < w.warps; i++) check_warp(w, i);
}

static void run_blocks(Worker &w) {
    Launch &l = *w.launch;
    emu_worker = &w;
    blockDim = {l.block.x, l.block.y, l.block.z};
    gridDim = {l.grid.x, l.grid.y, l.grid.z};
    w.threads = (int)(l.block.x * l.block.y * l.block.z);
    w.warps = (w.threads + 31) / 32;
    w.tls = tls_of_this_thread();
    w.dynamic = (uintptr_t)dynamic_shared;
    w.launch_time = ++w.clock;
    w.block_times.clear();
    w.block_order.clear();
    for (int i = 0; i < w.threads; i++) {
        unsigned u = (unsigned)i;
        w.thread[i].id = i;
        w.thread[i].index = {u % l.block.x, u / l.block.x % l.block.y, u / l.block.x / l.block.y};
    }
    uint64_t blocks = (uint64_t)l.grid.x * l.grid.y * l.grid.z, number;
    while ((number = l.next++) < l.blocks) {
        if (l.blocks < blocks) number = number * (blocks - 1) / (l.blocks - 1);
        // With a seed, another block comes first. Blocks must not depend on one another; the checks see it.
        if (opt_seed) number = (number + (uint64_t)opt_seed * 7919) % blocks;
        run_block(w, number);
    }
}

// Workers other than the calling thread wait here between launches, even at exit. So nothing is destroyed.
static std::vector<Worker *> workers;
static std::mutex &pool_lock = *new std::mutex();
static std::condition_variable &pool_go = *new std::condition_variable(),
                               &pool_done = *new std::condition_variable();
static unsigned pool_round;
static int pool_busy;

static void worker_main(Worker *w) {
    for (unsigned seen = 0;;) {
        {
            std::unique_lock<std::mutex> guard(pool_lock);
            pool_go.wait(guard, [&] { return pool_round != seen; });
            seen = pool_round;
        }
        run_blocks(*w);
        std::lock_guard<std::mutex> guard(pool_lock);
        if (!--pool_busy) pool_done.notify_one();
    }
}

static void run(const emu_config &c, const EmuCall &call) {
    uint64_t blocks = (uint64_t)c.grid.x * c.grid.y * c.grid.z;
    Launch l = {&call, kernel_of(call), c.grid, c.block, c.shared, {0}, blocks};
    // EMU_SAMPLE=n: of a launch n blocks run, from the first to the last, and count for all; nothing is
    // copied to or from the device. Launches that differ in addresses alone are counted once.
    if (opt_sample > 1) l.blocks = std::min(blocks, (uint64_t)opt_sample);
    if (opt_sample && check_counted(l)) return;
    for (int i = (int)workers.size(); i < opt_threads; i++) {
        workers.push_back(new Worker());
        if (i) std::thread(worker_main, workers.back()).detach(); // number 0 is this thread's
    }
    for (Worker *w : workers) w->launch = &l;
    if (workers.size() > 1 && blocks > 1) {
        {
            std::lock_guard<std::mutex> guard(pool_lock);
            pool_busy = (int)workers.size() - 1;
            pool_round++;
        }
        pool_go.notify_all();
        run_blocks(*workers[0]);
        std::unique_lock<std::mutex> guard(pool_lock);
        pool_done.wait(guard, [] { return !pool_busy; });
    } else
        run_blocks(*workers[0]);
    if (opt_count) check_launch_end(*workers[0]);
}

void emu_submit(const emu_config &c, const EmuCall &call) {
    setup();
    std::shared_ptr<void> keep(call.arguments, call.destroy);
    uint64_t threads = (uint64_t)c.block.x * c.block.y * c.block.z;
    auto raised = max_dynamic_shared.find(call.kernel);
    size_t dynamic = raised == max_dynamic_shared.end() ? 48 << 10 : (size_t)raised->second;
    bool empty = !threads || !c.grid.x || !c.grid.y || !c.grid.z;
    if (empty || threads > MAX_THREADS || c.block.z > 64 || c.grid.x > 0x7fffffffu || c.grid.y > 65535 ||
        c.grid.z > 65535)
        return (void)fail(cudaErrorInvalidConfiguration);
    size_t fixed = static_shared(kernel_of(call));
    if (c.shared > dynamic || fixed > 48 << 10 ||
        c.shared + fixed > std::max(most_shared(), (size_t)48 << 10))
        return (void)fail(cudaErrorInvalidValue);
    submit(c.stream, [=] {
        (void)keep;
        run(c, call);
    });
}
