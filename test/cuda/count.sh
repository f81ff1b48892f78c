#!/bin/sh
# count.sh PROGRAMS...: bank conflicts of the kernels that feed tensor cores, as the emulator counts them on
# test/cuda/gemm.cu, conv.cu and attention.cu. Every access to shared memory must take the fewest passes
# possible: x1.00.
passed=0 failed=0
for program in "$@"; do
    out=$(EMU_COUNT=1 "$program" 2>&1 >/dev/null) ||
        { echo "FAILED  $program"; failed=$((failed + 1)); continue; }
    least=4; [ "$(basename "$program")" = gemm ] && least=12
    counts=$(printf '%s\n' "$out" | awk -v least=$least '
        /^emulate: kernel / { tensor = /kernel (tensor_product|attention_tensor)/; kernels += tensor }
        tensor && / shared / && $1 == "x1.00" { passed++ }
        tensor && / shared / && $1 != "x1.00" { failed++; print "FAILED  bank conflicts:" $0 >"/dev/stderr" }
        END {
            if (kernels < least) { failed++; print "FAILED  only " kernels + 0 " forms" >"/dev/stderr" }
            print passed + 0, failed + 0
        }')
    passed=$((passed + ${counts% *})) failed=$((failed + ${counts#* }))
done
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
