// fast.c: the fast kernels, one file a family, and their table, which bears the name of an instruction set.
// The Makefile compiles this file for each set (-march=... -DISA=avx512); cpu.c chooses among the tables when
// the program starts. As the families are one translation unit, all their names can be static.
#include "vector.h"

#include "lib/base.h"

#include <math.h>

// Each uses only what stands above it; but gemm.c is handed the innermost part of tiles.c.
#include "pointwise.c"
#include "movement.c"
#include "losses.c"
#include "optim.c"
#include "norm.c"
#include "gemm.c"
#include "tiles.c"
#include "winograd.c"
#include "conv.c"
#include "bands.c"
#include "attention.c"

const Backend ISA = {
    KERNELS_BY_NAME,
};
