#!/bin/sh
# errors.sh KERNELS ERRORS [LIB]: the CUDA backend's messages when there is no GPU, one that is too old, too
# little memory, or a launch that fails: one line, status 1. The emulator plays such devices. KERNELS is
# test/nn/kernels.c, ERRORS test/cuda/errors.cu, both with the emulated kernels. With LIB, the folder of a
# stand-in runtime, ERRORS was built by nvcc, and only failing launches are tested.
kernels=$1 errors=$2 lib=${3:-}
passed=0 failed=0
expect() { # words, program, argument, then the environment
    words=$1 program=$2 what=$3; shift 3
    out=$(env ${lib:+LD_LIBRARY_PATH=$lib PTXRUN_FAIL=0} "$@" \
        timeout 60 "$program" ${what:+"$what"} 2>&1 >/dev/null)
    status=$?
    said=$(printf '%s\n' "$out" | grep -v '^ptxrun\|^ ') # the stand-in reports a fault in its own words too
    if [ $status = 1 ] && [ "$(printf '%s\n' "$said" | wc -l)" = 1 ] &&
        printf '%s' "$said" | grep -Eq -- "$words"; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "FAILED  $what $*: status $status, wanted '$words', got: $out"; fi
}
launch='grid \(1, 70000, 1\), block \(256, 1, 1\)'
expect "CUDA: kernel attention, $launch: invalid (configuration )?argument" "$errors" launch
expect 'CUDA: attention heads of 1024 channels; at most 512 fit' "$errors" heads
if [ -n "$lib" ]; then
    expect 'CUDA: kernel embed.*: an illegal memory access was encountered' "$errors" fault
    expect 'out of memory: activations need 1073.7 MB more, [0-9.]+ of [0-9.]+ MB are free' \
        "$errors" memory PTXRUN_MEM=64
else
    expect 'no NVIDIA GPU was found' "$kernels" '' EMU_DEVICES=0
    expect 'the GPU emulated.* has compute capability 7.5; at least 8.0 \(Ampere\) is needed' \
        "$kernels" '' EMU_CAPABILITY=75
    expect 'out of memory: weights need [0-9.]+ MB more, [0-9.]+ of [0-9.]+ MB are free' \
        "$kernels" '' EMU_MEMORY=0
    free='67.1 of 67.1 MB are free; 0.0 MB are in use here'
    expect "out of memory: activations need 1073.7 MB more, $free" "$errors" memory EMU_MEMORY=64
    expect 'free of an address that alloc did not give' "$errors" free
    expect "SD_GEMM is 'fast'" "$kernels" '' SD_GEMM=fast
fi
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
