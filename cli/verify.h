// verify.h: every block's output to a file, and the comparison of two such files. The format is interface.md's:
// one fp32 tensor a block, NCHW, under diffusers' module name, "step.N." before the UNet's with several steps.
#ifndef TRACE_H
#define TRACE_H

#include "sd.h"

void trace_begin(void); // collect from here on
void trace_save(const char *path, const SampleOptions *o,
                const Model *m); // what was collected, and what went in

#endif
