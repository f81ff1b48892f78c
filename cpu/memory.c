// memory.c: memory for kernels that run on the processor, the definitions and the fast ones: persistent
// blocks, the stack of scratch memory, and copies to and from the host, plain ones here.
#define _DEFAULT_SOURCE // MAP_ANONYMOUS, madvise, posix_memalign
#include "cpu.h"
#include "lib/base.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

// AddressSanitizer sees every overrun of a persistent block by itself (malloc is its own). For the stack it
// is told which bytes may be touched: what nobody asked for, or what was released, is poisoned.
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define POISONING 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define POISONING 1
#endif
#if defined(POISONING)
#include <sanitizer/asan_interface.h>
enum { GAP = 64 }; // poisoned bytes behind each piece
static void forbid(void *at, size_t bytes) { ASAN_POISON_MEMORY_REGION(at, bytes); }
static void permit(void *at, size_t bytes) { ASAN_UNPOISON_MEMORY_REGION(at, bytes); }
#else
enum { GAP = 0 };
static void forbid(void *at, size_t bytes) { (void)at, (void)bytes; }
static void permit(void *at, size_t bytes) { (void)at, (void)bytes; }
#endif

enum { ALIGN = 64 };                        // a cache line, and the widest vector
static const size_t HUGE_PAGE = 2u << 20;   // bytes; what one entry of the processor's page cache can cover
static const size_t STEP = 64u << 20;       // the stack grows by this many bytes
static const size_t KEEP = (size_t)2 << 30; // released pages beyond this many go back to the system

static size_t persistent, top, peak; // bytes in use: persistent blocks, the stack; their largest sum so far

static size_t peak_bytes(void) { return peak; }
static void synchronise(void) {} // a call has returned when it is done
static void upload(void *to, const void *host, size_t bytes) {
    const size_t part = 1 << 18; // bytes; pages that are touched for the first time cost more than the copy
    PARALLEL_FOR(bytes > part)
    for (size_t at = 0; at < bytes; at += part)
        memcpy((char *)to + at, (const char *)host + at, bytes - at < part ? bytes - at : part);
}
static void download(void *host, const void *from, size_t bytes) {
    if (bytes) memcpy(host, from, bytes);
}

static _Noreturn void out_of_memory(size_t bytes) {
    die("out of memory: %zu bytes were asked for, %.1f MB are in use (%.1f persistent, %.1f scratch)", bytes,
        (double)(persistent + top) / 1e6, (double)persistent / 1e6, (double)top / 1e6);
}

static void note_peak(void) {
    if (persistent + top > peak) peak = persistent + top;
}

// ---- persistent memory -----------------------------------------------------------------------------------

// A block starts with a header of ALIGN bytes that holds its size; the caller gets what follows.
static void *persistent_alloc(size_t bytes) {
    void *block;
    bool large = bytes >= 2 * HUGE_PAGE;
    if (bytes > SIZE_MAX / 2 || posix_memalign(&block, large ? HUGE_PAGE : ALIGN, ALIGN + bytes))
        out_of_memory(bytes);
    if (large) prefer_huge_pages(block, ALIGN + bytes);
    *(size_t *)block = bytes;
    persistent += bytes;
    note_peak();
    return (char *)block + ALIGN;
}

static void persistent_free(void *at) {
    if (!at) return;
    void *block = (char *)at - ALIGN;
    size_t bytes = *(size_t *)block;
    persistent -= bytes;
    if (bytes >= 1 << 20) pages_done_with(block, ALIGN + bytes); // free() may keep them between other blocks
    free(block);
}

// ---- scratch memory --------------------------------------------------------------------------------------

// One range of addresses is reserved once, far larger than any machine's memory, so that the stack can grow
// and never moves. Addresses cost nothing; a page takes memory when it is first touched.
#if SIZE_MAX >> 32
static const size_t ADDRESSES = (size_t)1 << 38; // 256 GiB, or what `ulimit -v` leaves
#else
static const size_t ADDRESSES = (size_t)1 << 27; // in WebAssembly they take memory at once
#endif
static char *base;      // the range
static size_t reserved; // its bytes
static size_t open_to;  // below this the pages may be touched (the rest is PROT_NONE)
static size_t touched;  // pages above this were never used, or went back to the system

static void reserve(void) {
    size_t least = (size_t)64 << 20;
    for (reserved = ADDRESSES; reserved >= least; reserved /= 2) {
        void *at = mmap(NULL, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) continue;
        base = at;
        prefer_huge_pages(base, reserved);
        return;
    }
    die("out of memory: cannot reserve %zu MB of addresses for activations", least >> 20);
}

static void *scratch_alloc(size_t bytes) {
    if (!base) reserve();
    if (bytes > reserved - top || reserved - top - bytes < ALIGN + GAP) out_of_memory(bytes);
    size_t end = top + (bytes + ALIGN - 1) / ALIGN * ALIGN + GAP;
    if (end > open_to) {
        size_t to = (end + STEP - 1) / STEP * STEP;
        if (to > reserved) to = reserved;
        if (mprotect(base + open_to, to - open_to, PROT_READ | PROT_WRITE)) out_of_memory(bytes);
        forbid(base + open_to, to - open_to);
        open_to = to;
    }
    void *piece = base + top;
    permit(piece, bytes);
    top = end;
    if (top > touched) touched = top;
    note_peak();
    return piece;
}

static size_t scratch_mark(void) { return top; }

static void scratch_release(size_t mark) {
    if (mark > top) die("release: the mark %zu lies above the top of the stack, %zu", mark, top);
    if (mark < top) forbid(base + mark, top - mark);
    top = mark;
    // Pages are kept for the next block of the network, which will want as many; only a great surplus goes.
    if (touched - top > KEEP) {
        size_t keep = (top + KEEP + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
        if (keep >= touched) return;
        madvise(base + keep, touched - keep, MADV_DONTNEED);
        touched = keep;
    }
}

static void *scratch_release_but(size_t mark, void *at, size_t bytes) {
    if (mark > top) die("release_but: the mark %zu lies above the top of the stack, %zu", mark, top);
    permit(base + mark, top - mark);
    memmove(base + mark, at, bytes);
    if (mark < top) forbid(base + mark, top - mark);
    top = mark;
    return scratch_alloc(bytes); // the place it was moved to
}

void cpu_memory(Backend *b) {
    b->storage = F32;
    b->alloc = persistent_alloc, b->free = persistent_free;
    b->temp = scratch_alloc, b->mark = scratch_mark;
    b->release = scratch_release, b->release_but = scratch_release_but;
    b->peak = peak_bytes;
    b->upload = upload, b->download = download, b->sync = synchronise;
}
