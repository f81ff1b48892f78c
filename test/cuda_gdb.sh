#!/bin/sh
# cuda_gdb.sh PROGRAM: drives gdb as cuda/emulate.gdb describes it, on cuda_gemm.cu built with DEBUG=1: stops in one
# thread of one block, prints a shared array, and steps over a barrier with `next`, which must stay with the thread.
passed=0 failed=0
command -v gdb >/dev/null || { echo "skipped the debugger: gdb is not here"; echo "0 passed, 0 failed, 1 skipped"; exit 0; }
line=$(grep -n '__syncthreads(); // the tiles are there' cuda/gemm.cu | head -n 1 | cut -d: -f1)
out=$(timeout 120 gdb -q -batch -x cuda/emulate.gdb -ex "thread-break gemm.cu:$line 1 0 0 5 3 0" -ex run -ex 'print threadIdx' \
    -ex 'print as[3]' -ex next -ex 'print threadIdx' -ex next -ex next -ex 'print threadIdx' -ex 'print sum' -ex bt -ex kill "$1" 2>&1)
want() { # what, pattern, how often at least
    if [ "$(printf '%s\n' "$out" | grep -Ec -- "$2")" -ge "$3" ]; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "FAILED  $1"; printf '%s\n' "$out" | tail -n 25; fi
}
want "stops in the kernel" "gemm_tiled.*gemm.cu:$line" 1
want "the thread that was asked for, also after two barriers" '\$[0-9]+ = \{x = 5, y = 3, z = 0\}' 3
want "a shared array is printed" '\$[0-9]+ = \{-?[0-9.]+(e[-+][0-9]+)?, ' 1
want "next goes to the next line" "^$((line + 1))" 1
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
