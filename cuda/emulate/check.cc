// check.cc: the checks and the counters of the emulator.
//
// Kernels compiled with -fsanitize=thread call a function at each load and store. These are here, in place
// of the compiler's own library. So the emulator sees every access, and kernels need no change.
// It finds
//   races between threads of a block (in shared and global memory) and between blocks of a launch
//   reads of bytes never written, and reads and writes of bytes that a cp.async has yet to fill
//   misaligned vectors, and accesses outside of an array, an allocation or device memory (host pointers)
// It does not find
//   an overrun into the kernel's next shared array (-fsanitize=bounds-strict finds it where sizes are known)
//   mistakes that show only on a GPU, because it orders memory less strictly than the processor
// A race is two accesses of different threads to the same two bytes, one of them a write, with no barrier
// between them. Within a warp, a __syncwarp of the whole warp is a barrier too. The times of the accesses do
// not matter, so a race is found whatever the order in which the threads run.
#include "inside.h"

#include <algorithm>
#include <array>
#include <unordered_map>
#include <unistd.h>

enum { GRAIN = 2 }; // bytes per cell, the size of half; single bytes that neighbours write look like a race

// ---- reports ---------------------------------------------------------------------------------------------

static const uintptr_t GLOBAL_SIDE = (uintptr_t)1 << 63; // cp.async touches two memories from one place

// One line of a source file, without its indentation.
static std::string source_line(const std::string &file, int line) {
    std::string text;
    if (FILE *f = fopen(file.c_str(), "r")) {
        char s[400];
        for (int i = 0; i < line && fgets(s, sizeof s, f); i++) text = s;
        fclose(f);
    }
    size_t begin = text.find_first_not_of(" \t"), end = text.find_last_not_of("\r\n ");
    return begin == std::string::npos ? "" : text.substr(begin, end - begin + 1);
}

static std::string line_name(const std::string &file, int line) { // "gemm.cu:33 `sum += a[i];`"
    std::string text = source_line(file, line);
    return file.substr(file.rfind('/') + 1) + ":" + std::to_string(line) +
           (text.empty() ? "" : " `" + text + "`");
}

std::vector<std::vector<Line>> lines_of(const std::vector<void *> &pcs) {
    char command[100], text[500];
    snprintf(command, sizeof command, "addr2line -a -i -e /proc/%d/exe", getpid());
    std::string all = command;
    for (void *pc : pcs) {
        snprintf(text, sizeof text, " %lx", (unsigned long)((uintptr_t)pc - emu_load_address));
        all += text;
    }
    std::vector<std::vector<Line>> lines;
    FILE *f = popen(all.c_str(), "r");
    while (f && fgets(text, sizeof text, f)) { // an address, then the innermost first
        char *colon = strrchr(text, ':');
        if (!colon) lines.emplace_back();
        if (!colon || lines.empty()) continue;
        Line l = {std::string(text, (size_t)(colon - text)), atoi(colon + 1)};
        std::string name = l.file.substr(l.file.rfind('/') + 1);
        if (name != "emulate.h" && name != "ptx.h") lines.back().insert(lines.back().begin(), l);
    }
    if (f) pclose(f);
    lines.resize(pcs.size());
    return lines;
}
std::string place_name(const std::vector<Line> &lines) {
    std::string name, inner;
    for (const Line &l : lines)
        if (name.empty())
            name = line_name(l.file, l.number);
        else
            inner += (inner.empty() ? "" : ", ") + line_name(l.file, l.number);
    return name.empty() ? "?" : inner.empty() ? name : name + " (" + inner + ")";
}
static std::string place(void *pc) {
    return place_name(lines_of({(void *)(((uintptr_t)pc & ~GLOBAL_SIDE) - 1)})[0]);
}

void emu_finding(const char *what, const std::string &detail, void *pc, EmuSite at) {
    static std::unordered_map<uintptr_t, int> told;
    Worker &w = *emu_worker;
    emu_findings++;
    uintptr_t key = pc ? (uintptr_t)pc : (uintptr_t)at.file + (uintptr_t)at.line;
    if (told[key]++ || told.size() > 20) return; // each place once
    w.inside = false;
    emu_say("emulate: %s in kernel %s at %s, %s: %s\n", what, w.launch->kernel->name.c_str(),
            pc ? place(pc).c_str() : line_name(at.file ? at.file : "", at.line).c_str(),
            emu_who(w.current).c_str(), detail.c_str());
    w.inside = true;
    emu_abort_if_wanted();
}

void emu_fatal(const char *what, const std::string &detail, void *pc, EmuSite at) {
    emu_finding(what, detail, pc, at);
    emu_stop();
}

static std::string shared_name(Worker &w, uintptr_t a) {
    char text[300];
    if (a - w.dynamic < MAX_DYNAMIC_SHARED) {
        snprintf(text, sizeof text, "dynamic shared memory + %zu (of %zu)", (size_t)(a - w.dynamic),
                 w.launch->shared);
        return text;
    }
    for (const SharedVariable &v : emu_variables)
        if (a - w.tls - v.offset < v.size) {
            snprintf(text, sizeof text, "shared %s + %zu (of %zu)", v.name.c_str(),
                     (size_t)(a - w.tls - v.offset), (size_t)v.size);
            bool foreign = w.launch->kernel->allowed[a - w.tls] == FOREIGN;
            return text + (foreign ? " of " + emu_kernel_name(v.owner) : std::string());
        }
    return "shared memory of no variable";
}

static std::string thread_name(Worker &w, uint16_t t) {
    char text[80];
    if (t == SEVERAL) return "several warps";
    if (t & WHOLE_WARP) {
        snprintf(text, sizeof text, "lanes of warp %d", t & 31);
        return text;
    }
    uint3 i = w.thread[t & 1023].index;
    snprintf(text, sizeof text, "thread (%u,%u,%u)", i.x, i.y, i.z);
    return text;
}
static std::string block_name(Worker &w, uint32_t time) { // the block that ran at that time of the clock
    size_t i =
        (size_t)(std::upper_bound(w.block_times.begin(), w.block_times.end(), time) - w.block_times.begin());
    uint64_t n = i ? w.block_order[i - 1] : 0;
    dim3 g = w.launch->grid;
    char text[80];
    snprintf(text, sizeof text, "block (%u,%u,%u)", (unsigned)(n % g.x), (unsigned)(n / g.x % g.y),
             (unsigned)(n / g.x / g.y));
    return text;
}

// ---- races -----------------------------------------------------------------------------------------------

static Cell *shared_cells; // beside the thread-local memory of the one worker

// Is what thread `t` did at `time` ordered before what the current thread does now?
static inline bool ordered(Worker &w, uint32_t time, uint16_t t, bool shared) {
    if (time < w.launch_time) return true;   // an earlier kernel
    if (time < w.block_start) return shared; // another block of this launch, with other shared memory
    if (time < w.barrier_time) return true;
    int warp = w.current->id / 32;
    if (t == SEVERAL) return false;
    int other = t & WHOLE_WARP ? t & 31 : (t & 1023) / 32;
    if (!(t & WHOLE_WARP) && (t & 1023) == w.current->id) return true;
    return other == warp && time < w.warp[warp].synced;
}

// One access to a range of cells.
static void race_check(Worker &w, Cell *first, Cell *last, Access kind, void *pc, void *p, bool shared) {
    auto name = [&] { return shared ? shared_name(w, (uintptr_t)p) : emu_describe(p); };
    auto by = [&](uint32_t time, uint16_t t) {
        std::string s = thread_name(w, t & (t == SEVERAL || t & WHOLE_WARP ? 0xffff : 1023));
        return time < w.block_start ? s + " of " + block_name(w, time) : s;
    };
    uint16_t me = (uint16_t)w.current->id;
    uint32_t since = shared ? w.barrier_time : w.launch_time; // older accesses cannot race with this one
    for (Cell *c = first; c <= last; c++) {
        if (c->wrote < since) { // the common cases first
            if (c->read < since) {
                if (kind == READ)
                    c->reader = me, c->read = w.clock;
                else
                    c->wrote = w.clock, c->writer = kind == ATOMIC ? me | ATOMICALLY : me, c->reader = NOBODY;
                continue;
            }
            if (kind == READ && c->read >= w.block_start && (c->reader == me || c->reader == SEVERAL)) {
                c->read = w.clock;
                continue;
            }
        }
        if (c->wrote == IN_FLIGHT) {
            emu_finding(kind == READ ? "READ BEFORE THE cp.async WAIT" : "WRITE UNDER cp.async", name(), pc,
                        {});
            c->wrote = w.clock;
            return;
        }
        bool both_atomic = kind == ATOMIC && c->writer & ATOMICALLY && c->writer < WHOLE_WARP;
        if (c->writer != NOBODY && c->wrote && !both_atomic && !ordered(w, c->wrote, c->writer, shared)) {
            emu_finding(kind == READ ? "RACE (read after write)" : "RACE (write after write)",
                        name() + ", written by " + by(c->wrote, c->writer), pc, {});
            c->writer = me;
            c->wrote = w.clock;
            return;
        }
        bool read_before = c->read && c->reader != NOBODY;
        bool read_ordered = !read_before || ordered(w, c->read, c->reader, shared);
        if (kind == READ) {
            // Only one reader is kept: alone if all others are ordered before it, else its warp, else anyone.
            bool this_block = c->read >= w.block_start && c->reader != SEVERAL;
            int reader_warp = c->reader & WHOLE_WARP ? c->reader & 31 : c->reader / 32;
            bool this_warp = this_block && reader_warp == me / 32;
            c->reader = read_ordered ? me : this_warp ? (uint16_t)(WHOLE_WARP | me / 32) : (uint16_t)SEVERAL;
            // Readers of several blocks: keep the earlier time, so that a later write sees another block.
            if (read_ordered || c->read >= w.block_start) c->read = w.clock;
            continue;
        }
        if (!read_ordered) {
            emu_finding("RACE (write after read)", name() + ", read by " + by(c->read, c->reader), pc, {});
            c->reader = NOBODY;
            return;
        }
        c->wrote = w.clock;
        c->writer = kind == ATOMIC ? me | ATOMICALLY : me;
        c->reader = NOBODY;
    }
}

// ---- one access ------------------------------------------------------------------------------------------

static void count_access(Worker &w, uintptr_t a, unsigned bytes, bool shared, void *pc);

static void shared_access(Worker &w, uintptr_t a, unsigned bytes, Access kind, void *pc) {
    bool dynamic = a - w.dynamic < MAX_DYNAMIC_SHARED;
    if (dynamic ? a - w.dynamic + bytes > w.launch->shared
                : w.launch->kernel->allowed[a - w.tls] != ITS_OWN) {
        bool named = dynamic;
        for (const SharedVariable &v : emu_variables) named |= a - w.tls - v.offset < v.size;
        if (named || a - w.tls < emu_tls_size)
            emu_finding("OUT OF BOUNDS", shared_name(w, a) + ", which is not this kernel's", pc, {});
        return;
    }
    Cell *first = &shared_cells[(a - w.tls) / GRAIN], *last = &shared_cells[(a - w.tls + bytes - 1) / GRAIN];
    for (Cell *c = first; kind != WRITE && c <= last; c++)
        if (c->wrote < w.block_start) {
            emu_finding("UNINITIALISED READ", shared_name(w, a), pc, {});
            for (; first <= last; first++)
                if (first->wrote < w.block_start) first->wrote = w.clock, first->writer = NOBODY;
            return;
        }
    race_check(w, first, last, kind, pc, (void *)a, true);
}

static void global_access(Worker &w, uintptr_t a, unsigned bytes, Access kind, void *pc) {
    size_t offset = a - (uintptr_t)emu_arena;
    char *state = emu_state + offset, lowest = WRITTEN;
    for (unsigned i = 0; i < bytes; i++) lowest = std::min(lowest, state[i]);
    if (lowest == NOT_ALLOCATED) return emu_finding("OUT OF BOUNDS", emu_describe((void *)a), pc, {});
    if (lowest == NOT_WRITTEN && kind != WRITE) {
        emu_finding("UNINITIALISED READ", emu_describe((void *)a), pc, {});
        memset(state, WRITTEN, bytes);
        return;
    }
    if (kind != READ) memset(state, WRITTEN, bytes);
    race_check(w, &emu_global_cell[offset / GRAIN], &emu_global_cell[(offset + bytes - 1) / GRAIN], kind, pc,
               (void *)a, false);
}

void emu_access(void *p, unsigned bytes, Access kind, void *pc) {
    Worker *worker = emu_worker;
    if (!worker || !worker->inside || !(opt_check || opt_count)) return;
    Worker &w = *worker;
    uintptr_t a = (uintptr_t)p;
    bool shared = a - w.tls < emu_tls_size, global = a - (uintptr_t)emu_arena < ARENA;
    if (shared && w.launch->kernel->allowed[a - w.tls] == BUILT_IN) return;
    if (opt_count) {
        if (shared || global) count_access(w, a, bytes, shared, pc);
        return;
    }
    if ((shared || global) && bytes > 1 && a & (bytes - 1) && bytes <= 16) {
        std::string name = shared ? shared_name(w, a) : emu_describe(p);
        // The processor's own instruction may fault too.
        emu_fatal("MISALIGNED ACCESS", "the address is no multiple of the size; " + name, pc, {});
    }
    if (shared) return shared_access(w, a, bytes, kind, pc);
    if (global) return global_access(w, a, bytes, kind, pc);
    if (emu_on_a_stack(w, a)) return;                               // a local variable
    if (a - emu_image_low < emu_image_high - emu_image_low) return; // __constant__, __device__, literals
    if (a - (uintptr_t)w.launch->call->arguments < w.launch->call->arguments_size) return;
    if (a < PAGE) emu_fatal("NULL POINTER", "the address is " + std::to_string(a), pc, {});
    emu_finding("HOST POINTER", "the address is neither shared, nor of cudaMalloc, nor local", pc, {});
}

void check_begin() { shared_cells = (Cell *)calloc(emu_tls_size / GRAIN + 16, sizeof(Cell)); }

// The 16 bytes that a cp.async fills.
static void copy_wrote(Worker &w, void *to, uint32_t time) {
    uintptr_t offset = (uintptr_t)to - w.tls;
    Cell written = {time, 0, (uint16_t)w.current->id, NOBODY};
    if (opt_check && offset < emu_tls_size) std::fill_n(&shared_cells[offset / GRAIN], 16 / GRAIN, written);
}
void check_in_flight(Worker &w, void *to) { copy_wrote(w, to, IN_FLIGHT); }
void check_landed(Worker &w, void *to) { copy_wrote(w, to, w.clock); }

// ---- the compiler's calls --------------------------------------------------------------------------------

// The compiler knows that the address may be no multiple of the size: clang makes one access of a struct's
// neighbours. Here it is one for each aligned part.
static void unaligned(void *p, size_t bytes, Access kind, void *pc) {
    for (size_t done = 0, n; done < bytes; done += n) {
        for (n = 16; ((uintptr_t)p + done) % n || done + n > bytes;) n /= 2;
        emu_access((char *)p + done, (unsigned)n, kind, pc);
    }
}
#define HOOKS(n)                                                                                             \
    void __tsan_read##n(void *p) { emu_access(p, n, READ, CALLER); }                                         \
    void __tsan_write##n(void *p) { emu_access(p, n, WRITE, CALLER); }                                       \
    void __tsan_unaligned_read##n(void *p) { unaligned(p, n, READ, CALLER); }                                \
    void __tsan_unaligned_write##n(void *p) { unaligned(p, n, WRITE, CALLER); }                              \
    void __tsan_volatile_read##n(void *p) { emu_access(p, n, READ, CALLER); }                                \
    void __tsan_volatile_write##n(void *p) { emu_access(p, n, WRITE, CALLER); }
extern "C" {
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void *p, size_t n) { unaligned(p, n, READ, CALLER); }
void __tsan_write_range(void *p, size_t n) { unaligned(p, n, WRITE, CALLER); }
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_init() { emu_instrumented = true; }
void __tsan_vptr_update(void *, void *) {}
void __tsan_vptr_read(void *) {}
// Atomic operations that the compiler itself puts in: guards of static variables, fences.
unsigned char __tsan_atomic8_load(const volatile unsigned char *p, int) {
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void *__tsan_memcpy(void *to, const void *from, size_t n) {
    emu_access((void *)from, (unsigned)n, READ, CALLER);
    emu_access(to, (unsigned)n, WRITE, CALLER);
    return memcpy(to, from, n);
}
void *__tsan_memmove(void *to, const void *from, size_t n) {
    emu_access((void *)from, (unsigned)n, READ, CALLER);
    emu_access(to, (unsigned)n, WRITE, CALLER);
    return memmove(to, from, n);
}
void *__tsan_memset(void *to, int value, size_t n) {
    emu_access(to, (unsigned)n, WRITE, CALLER);
    return memset(to, value, n);
}

// -fsanitize=bounds-strict: an index beyond an array whose size the compiler knows.
struct UbsanType {
    uint16_t kind, info;
    char name[1];
};
struct UbsanBounds {
    const char *file;
    uint32_t line, column;
    const UbsanType *array, *index;
};
void __ubsan_handle_out_of_bounds(UbsanBounds *d, uintptr_t index) {
    Worker *w = emu_worker;
    if (!w || !w->inside || !opt_check) return;
    char text[300];
    snprintf(text, sizeof text, "index %ld out of bounds for type %s", (long)index, d->array->name);
    emu_finding("OUT OF BOUNDS", text, nullptr, {"", d->file, (int)d->line});
}
void __ubsan_handle_out_of_bounds_abort(UbsanBounds *d, uintptr_t index) {
    __ubsan_handle_out_of_bounds(d, index);
}
}

// ---- bank conflicts and coalescing -----------------------------------------------------------------------
// The lanes' n-th executions of one instruction since they last met form one access of the warp. Shared
// memory has 32 banks of 4 bytes. The bank with the most different words decides how many passes an access
// takes. 8 bytes a lane are served half a warp at a time, 16 a quarter. Global memory moves 32-byte sectors.

struct Instruction : Counted {
    uint32_t executed[MAX_WARPS][32];
    std::vector<WarpAccess> open[MAX_WARPS];
};
struct Counter {
    std::unordered_map<uintptr_t, Instruction *> instructions;
    std::vector<Instruction *> touched[MAX_WARPS];
};

static void close_access(Instruction &s, WarpAccess &g) {
    unsigned lanes_at_once = s.shared ? std::min(32u, 128 / std::max(s.bytes, 4u)) : 32;
    uintptr_t unit = s.shared ? 4 : 32;
    uint64_t cost = s.cost, ideal = s.ideal;
    s.accesses++;
    s.lanes += (unsigned)__builtin_popcount(g.mask);
    for (unsigned from = 0; from < 32; from += lanes_at_once) {
        std::vector<uintptr_t> units;
        for (unsigned l = from; l < from + lanes_at_once; l++)
            if (g.mask >> l & 1)
                for (uintptr_t a = g.at[l] & ~(unit - 1); a < g.at[l] + s.bytes; a += unit)
                    units.push_back(a);
        if (units.empty()) continue;
        std::sort(units.begin(), units.end());
        units.erase(std::unique(units.begin(), units.end()), units.end());
        if (s.shared) {
            unsigned bank[32] = {}, most = 0;
            for (uintptr_t u : units) most = std::max(most, ++bank[u / 4 % 32]);
            s.cost += most;
            s.ideal += 1;
        } else {
            s.cost += units.size();
            // As many sectors as the different bytes need when they lie side by side.
            std::vector<uintptr_t> starts;
            for (unsigned l = 0; l < 32; l++)
                if (g.mask >> l & 1) starts.push_back(g.at[l]);
            std::sort(starts.begin(), starts.end());
            starts.erase(std::unique(starts.begin(), starts.end()), starts.end());
            s.ideal += (starts.size() * s.bytes + 31) / 32;
        }
    }
    cost = s.cost - cost, ideal = s.ideal - ideal;
    if (!s.worst.mask || cost * s.worst_ideal > s.worst_cost * ideal)
        s.worst = g, s.worst_cost = cost, s.worst_ideal = ideal;
    g.mask = 0;
}

static void count_access(Worker &w, uintptr_t a, unsigned bytes, bool shared, void *pc) {
    if (!w.counter) w.counter = new Counter();
    Instruction *&s = w.counter->instructions[(uintptr_t)pc | (shared ? 0 : GLOBAL_SIDE)];
    if (!s) {
        s = new Instruction();
        s->pc = pc;
        s->shared = shared;
        s->bytes = bytes;
    }
    int warp = w.current->id / 32, lane = w.current->id % 32;
    unsigned i = s->executed[warp][lane]++;
    auto &open = s->open[warp];
    if (open.empty()) w.counter->touched[warp].push_back(s);
    if (open.size() <= i) open.resize(i + 1);
    open[i].mask |= 1u << lane;
    open[i].at[lane] = a;
    if (open[i].mask == ~0u) close_access(*s, open[i]);
}

void check_warp(Worker &w, int i) {
    if (!w.counter) return;
    for (Instruction *s : w.counter->touched[i]) {
        for (WarpAccess &g : s->open[i])
            if (g.mask) close_access(*s, g);
        s->open[i].clear();
        memset(s->executed[i], 0, sizeof s->executed[i]);
    }
    w.counter->touched[i].clear();
}

// A launch as a line of the file that EMU_LAUNCHES names, for report.sh: bytes are of the allocations that
// its arguments point into; cold ones are older than the section and met in it for the first time.
enum { SECTORS, ASKED_FOR, PASSES, FEWEST, FLOP, INSTRUCTIONS, FIGURES };
typedef std::array<uint64_t, FIGURES> Counts;
static std::unordered_map<std::string, Counts> counted;
static std::string likeness; // of the launch that is counted
static std::unordered_map<uintptr_t, bool> section_met;
static uintptr_t section_begin;
static FILE *launches_file() {
    static const char *path = getenv("EMU_LAUNCHES");
    static FILE *f = path ? fopen(path, "w") : nullptr;
    return f;
}

extern "C" void emu_section(const char *name) {
    void *next = nullptr; // what comes later lies above
    if (!launches_file() || emu_malloc(&next, 1) != cudaSuccess) return;
    section_begin = (uintptr_t)next, section_met.clear();
    fprintf(launches_file(), "section %s\n", name);
}

// 8 bytes of the arguments; a type of an operand and what lies in the gap behind it are no address.
static uintptr_t argument(const Launch &l, size_t i) {
    uintptr_t word = *(uintptr_t *)((char *)l.call->arguments + i);
    return (uint32_t)word < 16 ? (uint32_t)word : word;
}

static void note_launch(const Launch &l, const Counts &c) {
    if (!launches_file()) return;
    size_t bytes = 0, cold = 0;
    std::unordered_map<uintptr_t, bool> met;
    for (size_t i = 0; i + 8 <= l.call->arguments_size; i += 8) {
        uintptr_t word = argument(l, i), at;
        size_t size = word - (uintptr_t)emu_arena < ARENA ? emu_allocation(word, &at) : 0;
        if (!size || met[at]) continue;
        met[at] = true, bytes += size;
        if (at < section_begin && !section_met[at]) cold += size;
        section_met[at] = true;
    }
    FILE *f = launches_file();
    fprintf(f, "launch %u,%u,%u %u %zu", l.grid.x, l.grid.y, l.grid.z, l.block.x * l.block.y * l.block.z,
            l.shared);
    for (uint64_t n : c) fprintf(f, " %llu", (unsigned long long)n);
    fprintf(f, " %zu %zu %s\n", bytes, cold, l.kernel->name.c_str());
}

bool check_counted(const Launch &l) {
    char shape[100];
    snprintf(shape, sizeof shape, " %u,%u,%u %zu ", l.grid.x, l.grid.y, l.grid.z, l.shared);
    likeness = l.kernel->name + shape;
    for (size_t i = 0; i + 8 <= l.call->arguments_size; i += 8) {
        uintptr_t word = argument(l, i);
        if (word - (uintptr_t)emu_arena < ARENA) word = 1; // an address, whichever
        likeness.append((char *)&word, 8);
    }
    auto found = counted.find(likeness);
    if (found != counted.end()) note_launch(l, found->second);
    return found != counted.end();
}

static Counts counts_of(const Worker &w, const std::vector<Instruction *> &all) {
    const Launch &l = *w.launch;
    Counts c = {0, 0, 0, 0, w.flop, w.met};
    for (Instruction *s : all) {
        c[s->shared ? PASSES : SECTORS] += s->cost, c[s->shared ? FEWEST : ASKED_FOR] += s->ideal;
        // cp.async is one instruction, and two accesses.
        bool copies = s->shared && w.counter->instructions.count((uintptr_t)s->pc | GLOBAL_SIDE);
        c[INSTRUCTIONS] += copies ? 0 : s->accesses;
    }
    double scale = (double)l.grid.x * l.grid.y * l.grid.z / (double)l.blocks;
    for (uint64_t &n : c) n = (uint64_t)((double)n * scale);
    return c;
}

void check_launch_end(Worker &w) {
    static std::unordered_map<std::string, int> told;
    if (!w.counter) w.counter = new Counter();
    std::vector<Instruction *> all;
    for (auto &i : w.counter->instructions)
        if (i.second->accesses) all.push_back(i.second);
    std::sort(all.begin(), all.end(), [](const Instruction *a, const Instruction *b) {
        return a->cost - a->ideal > b->cost - b->ideal;
    });
    if (launches_file()) note_launch(*w.launch, counted[likeness] = counts_of(w, all));
    w.flop = w.met = 0;
    if (!opt_sample &&
        !told[w.launch->kernel->name]++) { // the first launch of each kernel speaks for the others
        emu_say("emulate: kernel %s, grid (%u,%u,%u), block (%u,%u,%u)\n", w.launch->kernel->name.c_str(),
                w.launch->grid.x, w.launch->grid.y, w.launch->grid.z, w.launch->block.x, w.launch->block.y,
                w.launch->block.z);
        for (Instruction *s : all) page_add(*w.launch, *s);
        for (size_t i = 0; i < all.size() && i < 12; i++) {
            const Instruction &s = *all[i];
            emu_say("  x%-5.2f %s %2u bytes a lane, %9llu %s, ideal %9llu, %4.1f lanes  %s\n",
                    (double)s.cost / (double)s.ideal, s.shared ? "shared" : "global", s.bytes,
                    (unsigned long long)s.cost, s.shared ? "passes " : "sectors", (unsigned long long)s.ideal,
                    (double)s.lanes / (double)s.accesses, place(s.pc).c_str());
        }
    }
    for (auto &i : w.counter->instructions)
        i.second->accesses = i.second->lanes = i.second->cost = i.second->ideal = 0;
}
