// tape.h: what an operation notes for its backward. Only tensor.c, ops.c and losses.c include it.
#ifndef TAPE_H
#define TAPE_H

#include "nn.h"

enum { RECORD_INPUTS = 5 };

// Part of an operand as a matrix: how many elements stand before it, and from one of its rows to the next.
typedef struct {
    size_t x_from, y_from;
    int x_stride, y_stride, rows, cols;
} Part;

typedef struct Record Record;
struct Record {
    void (*backward)(Record *r); // adds to the gradients of `in`, given that of `out`
    const char *operation;       // "conv2d", for messages
    Tensor *out, *in[RECORD_INPUTS];
    bool in_place;      // out is older: another record made it
    float *kept;        // statistics of the forward pass or coefficients, in backend memory
    const int32_t *ids; // in backend memory
    float a, b;
    union {
        Gemm gemm;
        Conv conv;
        GroupNorm norm;
        Attention attention;
        Activation activation;
        Part part;
        struct {
            Loss f;
            float c;
        } loss;
        struct {
            int groups, rows, cols;
        } sum;
        Pool pool;
    } p;
    Conv pool_shape;
    Block *block; // run_block
    const void *layer;
};

// Notes r if the tape records and an input wants a gradient; then r.out wants one too. Returns r.out.
Tensor *record_as(const char *operation, Record r);
#define record(...) record_as(__func__, __VA_ARGS__)
bool is_recording(void);
bool in_block(const Tensor *t);                               // made by the block that runs now (run_block)
Tensor *tensor_struct(int dims, const int *shape, Type type); // without data

Tensor *like(const Tensor *x); // a new tensor of its shape and type
void same_shape(const char *operation, const Tensor *a, const Tensor *b); // dies where they differ
// Copies a host array, of floats or ids, to backend memory that goes with the scope, as tensors do.
void *upload(const void *host, int count);

#endif
