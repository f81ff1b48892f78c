// dry.h: a backend that computes nothing and counts memory (dry.c). Between dry_begin() and dry_end()
// everything above kernels.h runs as ever, in no time: what a piece of work needs is found by running it.
// Parameters need not be loaded.
#ifndef DRY_H
#define DRY_H

#include "kernels.h"

typedef struct {
    const char *kernel;
    char shape[120]; // "m=4096 n=320 k=320 a=f32 b=f32 b_transposed"
    long count;      // calls of that shape
} DryCall;
typedef struct {
    size_t persistent, scratch; // bytes, at the most
    const DryCall *calls;       // in the order of their first calls, if listed; until the next dry_begin()
    int call_count;
} DryUse;
void dry_begin(bool list);
DryUse dry_end(void); // close every scope before

#endif
