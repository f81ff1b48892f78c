// warp.cc: what the lanes of a warp do together, as the PTX ISA describes it: shuffles, votes and
// reductions, ldmatrix, mma.sync; and beside them cp.async and the atomics.
//
// Each lane of the mask brings a record with its inputs and with room for its result. The last lane to arrive
// carries the operation out for all (emu_collective).
#include "inside.h"

#include <algorithm>

#define EACH_LANE(lane, mask)                                                                                \
    for (unsigned left_ = mask, lane; left_ && (lane = (unsigned)__builtin_ctz(left_), true);                \
         left_ &= left_ - 1)

// ---- shuffles: PTX ISA, "shfl.sync" ----------------------------------------------------------------------

struct ShuffleLane {
    EmuShuffle kind;
    uint64_t in, out;
    int arg, width;
};

static void shuffle_operation(void **argument, unsigned mask) {
    EACH_LANE(lane, mask) {
        ShuffleLane &s = *(ShuffleLane *)argument[lane];
        // width splits the warp into segments; only five bits of the argument count.
        int me = (int)lane, segment = (32 - s.width) & 31, by = s.arg & 31;
        int first = me & segment, last = first | (~segment & 31), from;
        switch (s.kind) {
        case EMU_INDEX: from = first | (by & ~segment & 31); break;
        case EMU_UP: from = me - by < first ? me : me - by; break;
        case EMU_DOWN: from = me + by > last ? me : me + by; break;
        default: from = (me ^ by) > last ? me : me ^ by; break;
        }
        // The PTX ISA leaves open what comes from a lane that takes no part: here NaN.
        s.out = mask >> from & 1 ? ((ShuffleLane *)argument[from])->in : 0xfffbadbafffbadbaull;
    }
}
uint64_t emu_shuffle(EmuShuffle kind, unsigned mask, uint64_t value, int arg, int width, EmuSite at) {
    ShuffleLane lane = {kind, value, 0, arg, width};
    emu_collective(mask, shuffle_operation, kind, &lane, at);
    return lane.out;
}

// ---- votes and reductions --------------------------------------------------------------------------------

struct ReduceLane {
    EmuReduce kind;
    unsigned in, out;
};

static void reduce_operation(void **argument, unsigned mask) {
    bool first = true;
    unsigned sum = 0;
    EACH_LANE(lane, mask) {
        const ReduceLane &r = *(ReduceLane *)argument[lane];
        unsigned v = r.kind == EmuReduce::BALLOT ? r.in << lane : r.in;
        if (first)
            sum = v;
        else
            switch (r.kind) {
            case EmuReduce::ADD: sum += v; break;
            case EmuReduce::MIN: sum = (unsigned)std::min((int)sum, (int)v); break;
            case EmuReduce::MAX: sum = (unsigned)std::max((int)sum, (int)v); break;
            case EmuReduce::UMIN: sum = std::min(sum, v); break;
            case EmuReduce::UMAX: sum = std::max(sum, v); break;
            case EmuReduce::ALL:
            case EmuReduce::AND: sum &= v; break;
            case EmuReduce::XOR: sum ^= v; break;
            case EmuReduce::BALLOT:
            case EmuReduce::ANY:
            case EmuReduce::OR: sum |= v; break;
            }
        first = false;
    }
    EACH_LANE(lane, mask)((ReduceLane *)argument[lane])->out = sum;
}
unsigned emu_reduce(EmuReduce kind, unsigned mask, unsigned value, EmuSite at) {
    ReduceLane lane = {kind, value, 0};
    emu_collective(mask, reduce_operation, (int)kind, &lane, at);
    return lane.out;
}

// ---- ldmatrix: PTX ISA, "ldmatrix" -----------------------------------------------------------------------
// Lane 8 j + i gives the address of row i (8 values of 16 bits) of matrix j. In register j, lane l
// receives row l / 4, columns 2 (l % 4) and the next. Transposed: rows 2 (l % 4) and the next, column l / 4.

struct MatrixLane {
    uint32_t *r;
    const void *row;
    int count;
    bool transposed;
    EmuSite at;
    void *pc; // where the kernel calls, for reports
};

static void ldmatrix_operation(void **argument, unsigned) {
    Worker &w = *emu_worker;
    Thread *me = w.current;
    auto lane_of = [&](int l) -> MatrixLane & { return *(MatrixLane *)argument[l]; };
    int count = lane_of(0).count;
    w.met--; // it is counted as an access
    for (int l = 0; l < 8 * count; l++) {
        w.current = &w.thread[(me->id & ~31) + l]; // the access is this lane's
        if ((uintptr_t)lane_of(l).row & 15)
            emu_fatal("MISALIGNED ldmatrix", "the address of a row is no multiple of 16", nullptr,
                      lane_of(l).at);
        if (emu_instrumented) emu_access((void *)lane_of(l).row, 16, READ, lane_of(l).pc);
    }
    w.current = me;
    for (int j = 0; j < count; j++)
        for (int l = 0; l < 32; l++) {
            if (!lane_of(l).transposed) {
                memcpy(&lane_of(l).r[j], (const char *)lane_of(8 * j + l / 4).row + l % 4 * 4, 4);
                continue;
            }
            uint16_t low, high;
            memcpy(&low, (const char *)lane_of(8 * j + l % 4 * 2).row + l / 4 * 2, 2);
            memcpy(&high, (const char *)lane_of(8 * j + l % 4 * 2 + 1).row + l / 4 * 2, 2);
            lane_of(l).r[j] = low | (uint32_t)high << 16;
        }
}
void emu_ldmatrix(uint32_t *r, const void *row, int count, bool transposed, EmuSite at) {
    MatrixLane lane = {r, row, count, transposed, at, CALLER};
    emu_collective(~0u, ldmatrix_operation, at.line << 4 | count << 1 | transposed, &lane, at);
}

// ---- mma.sync: PTX ISA, "Matrix Fragments for mma.m16n8k16" and "m16n8k8" ---------------------------------
// D (16, 8) = A (16, K) B (K, 8) + C. With g = lane / 4, t = lane % 4:
//   D, C   registers 0, 1: row g, columns 2t, 2t + 1; registers 2, 3: row g + 8
//   16-bit A  register 0: row g, columns 2t, 2t + 1; 1: row g + 8; 2: as 0, columns + 8; 3: as 1, columns + 8
//   16-bit B  register 0: rows 2t, 2t + 1, column g; register 1: rows 2t + 8, 2t + 9
//   tf32 (K = 8)  A: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)   B: (t, g), (t + 4, g)
// The tensor core reads the upper 19 bits of a tf32 register; the rest are ignored.

struct MmaLane {
    float *d;
    const uint32_t *a, *b;
};

typedef float Row8 __attribute__((vector_size(32)));
template <int K> static void multiply(void **argument, const float (&A)[16][K], const float (&B)[K][8]) {
    float D[16][8];
    auto each = [&](auto action) {
        for (int l = 0; l < 32; l++) {
            float *d = ((MmaLane *)argument[l])->d;
            int g = l / 4, t = l % 4;
            for (int i = 0; i < 4; i++) action(d[i], D[g + i / 2 * 8][2 * t + i % 2]);
        }
    };
    each([](float &reg, float &element) { element = reg; });
    Row8 b[K];
    memcpy(b, B, sizeof b);
    for (int i = 0; i < 16; i++) {
        Row8 sum;
        memcpy(&sum, D[i], sizeof sum);
        for (int k = 0; k < K; k++) sum += A[i][k] * b[k];
        memcpy(D[i], &sum, sizeof sum);
    }
    each([](float &reg, float &element) { reg = element; });
}

template <class Convert> static void mma_16_bit(void **argument, Convert to_float) {
    uint16_t a[16][16], b[16][8];
    for (int l = 0; l < 32; l++) {
        const MmaLane &m = *(MmaLane *)argument[l];
        int g = l / 4, t = l % 4;
        for (int i = 0; i < 4; i++) memcpy(&a[g + i % 2 * 8][2 * t + i / 2 * 8], &m.a[i], 4);
        for (int i = 0; i < 2; i++) {
            b[2 * t + i * 8][g] = (uint16_t)m.b[i];
            b[2 * t + i * 8 + 1][g] = (uint16_t)(m.b[i] >> 16);
        }
    }
    float A[16][16], B[16][8];
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++) A[i][k] = to_float(a[i][k]);
    for (int k = 0; k < 16; k++)
        for (int j = 0; j < 8; j++) B[k][j] = to_float(b[k][j]);
    multiply<16>(argument, A, B);
}

// Counts an mma.sync; true where its result does not matter.
static bool counted(int k) {
    emu_worker->flop += 2 * 16 * 8 * (unsigned)k;
    return opt_sample;
}
static void mma_f16(void **argument, unsigned) {
    if (!counted(16)) mma_16_bit(argument, emu_half_to_float);
}
static void mma_bf16(void **argument, unsigned) {
    if (!counted(16)) mma_16_bit(argument, emu_bf16_to_float);
}
static void mma_tf32(void **argument, unsigned) {
    if (counted(8)) return;
    float A[16][8], B[8][8];
    auto seen = [](uint32_t u) { return __uint_as_float(u & ~0x1fffu); };
    for (int l = 0; l < 32; l++) {
        const MmaLane &m = *(MmaLane *)argument[l];
        int g = l / 4, t = l % 4;
        for (int i = 0; i < 4; i++) A[g + i % 2 * 8][t + i / 2 * 4] = seen(m.a[i]);
        for (int i = 0; i < 2; i++) B[t + i * 4][g] = seen(m.b[i]);
    }
    multiply<8>(argument, A, B);
}
void emu_mma(EmuMma kind, float *d, const uint32_t *a, const uint32_t *b, EmuSite at) {
    static WarpOperation *const operations[] = {mma_f16, mma_bf16, mma_tf32};
    MmaLane lane = {d, a, b};
    emu_collective(~0u, operations[kind], at.line, &lane, at);
}

// ---- cp.async: the bytes are read and land at the wait, the latest moment that the PTX ISA allows --------

void emu_cp_async16(void *shared, const void *global, int source_bytes, EmuSite at) {
    Worker &w = *emu_worker;
    Thread &me = *w.current;
    uintptr_t low = (uintptr_t)shared | (source_bytes ? (uintptr_t)global : 0);
    if (low & 15) emu_fatal("MISALIGNED cp.async", "an address is no multiple of 16", nullptr, at);
    me.copies.push_back({shared, global, source_bytes, me.group, at});
    if (!emu_instrumented) return;
    if (source_bytes) emu_access((void *)global, (unsigned)source_bytes, READ, CALLER);
    emu_access(shared, 16, WRITE, CALLER);
    check_in_flight(w, shared);
}
void emu_cp_async_commit() { emu_worker->current->group++; }
void emu_cp_async_wait(int keep) {
    Worker &w = *emu_worker;
    Thread &me = *w.current;
    size_t done = 0;
    for (; done < me.copies.size() && me.copies[done].group < me.group - keep; done++) {
        const Copy &c = me.copies[done];
        if (c.source_bytes) memcpy(c.to, c.from, (size_t)c.source_bytes);
        memset((char *)c.to + c.source_bytes, 0, (size_t)(16 - c.source_bytes));
        if (emu_instrumented) check_landed(w, c.to);
    }
    me.copies.erase(me.copies.begin(), me.copies.begin() + (long)done);
}

// ---- atomics ---------------------------------------------------------------------------------------------

template <class T, class Change> static T atomically(T *p, void *pc, Change change) {
    if (emu_instrumented) emu_access(p, sizeof *p, ATOMIC, pc);
    uint32_t seen = __atomic_load_n((uint32_t *)p, __ATOMIC_RELAXED), wanted;
    T old;
    do {
        memcpy(&old, &seen, sizeof old);
        T changed = change(old);
        memcpy(&wanted, &changed, sizeof wanted);
    } while (
        !__atomic_compare_exchange_n((uint32_t *)p, &seen, wanted, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
float atomicAdd(float *p, float v) {
    return atomically(p, CALLER, [=](float o) { return o + v; });
}
int atomicAdd(int *p, int v) {
    return atomically(p, CALLER, [=](int o) { return (int)((unsigned)o + (unsigned)v); });
}
unsigned atomicAdd(unsigned *p, unsigned v) {
    return atomically(p, CALLER, [=](unsigned o) { return o + v; });
}
int atomicMax(int *p, int v) {
    return atomically(p, CALLER, [=](int o) { return std::max(o, v); });
}
unsigned atomicCAS(unsigned *p, unsigned compare, unsigned v) {
    return atomically(p, CALLER, [=](unsigned o) { return o == compare ? v : o; });
}
