#!/bin/sh
# count.sh PROGRAM: bank conflicts of the tensor-core product, as the emulator counts them on
# test/cuda/gemm.cu. Every access to shared memory must take the fewest passes possible: x1.00.
out=$(EMU_COUNT=1 "$1" 2>&1 >/dev/null) || { echo '0 passed, 1 failed, 0 skipped'; exit 1; }
printf '%s\n' "$out" | awk '
    /^emulate: kernel / { tensor = /kernel gemm_tensor</; kernels += tensor }
    tensor && / shared / && $1 == "x1.00" { passed++ }
    tensor && / shared / && $1 != "x1.00" { failed++; print "FAILED  bank conflicts:" $0 }
    END {
        if (kernels < 12) { failed++; print "FAILED  only " kernels + 0 " forms of gemm_tensor were seen" }
        printf "%d passed, %d failed, 0 skipped\n", passed, failed; exit failed > 0
    }'
