// tape.h: what an operation notes for its backward. Only tensor.c and ops.c look in here.
#ifndef TAPE_H
#define TAPE_H

#include "nn.h"

enum { RECORD_INPUTS = 5 };

typedef struct Record Record;
struct Record {
    void (*backward)(Record *r); // adds to the gradients of `in`, given that of `out`
    const char *operation;       // "conv2d", for messages
    Tensor *out, *in[RECORD_INPUTS];
    float *kept;        // statistics of the forward pass, or coefficients, in backend memory
    const int32_t *ids; // in backend memory
    float a, b;
    union {
        Gemm gemm;
        Conv conv;
        GroupNorm norm;
        Attention attention;
        Activation activation;
        struct {
            int from, cols;
        } columns;
        struct {
            Loss f;
            float c;
        } loss;
        Pool pool;
    } p;
    Conv pool_shape;
    Block *block; // run_block
    const void *layer;
};

// Notes r if the tape records and an input wants a gradient. Returns r.out, which then wants one too.
Tensor *record_as(const char *operation, Record r);
#define record(...) record_as(__func__, __VA_ARGS__)
bool is_recording(void);
Tensor *tensor_struct(int dims, const int *shape, Type type); // without data
void *record_memory(size_t bytes);                            // host memory that lives as long as the record

#endif
