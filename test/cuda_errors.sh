#!/bin/sh
# cuda_errors.sh PROGRAM: what the CUDA backend says when there is no GPU or too little memory: one line, status 1.
# The emulator plays the poor device. PROGRAM is test/kernels.c linked with the emulated kernels.
passed=0 failed=0
expect() { # words, then the environment
    words=$1; shift
    out=$(env "$@" timeout 60 "$program" 2>&1 >/dev/null); status=$?
    if [ $status = 1 ] && [ "$(printf '%s\n' "$out" | wc -l)" = 1 ] && printf '%s' "$out" | grep -Eq -- "$words"; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "FAILED  $*: status $status, wanted '$words', got: $out"; fi
}
program=$1
expect 'no NVIDIA GPU was found' EMU_DEVICES=0
expect 'out of memory: weights need [0-9.]+ MB more, [0-9.]+ of [0-9.]+ MB are free' EMU_MEMORY=0
expect "SD_GEMM is 'fast'" SD_GEMM=fast
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
