#!/bin/sh
# gdb.sh GEMM SD: gdb with cuda/emulate/emulate.gdb, on programs built with DEBUG=1. test/cuda/gemm.cu stops
# in one thread of one block, prints a shared array, and steps over a barrier with `next`, which must stay
# with the thread. Then SD, with the commands of doc/CONTRIBUTING.md.
passed=0 failed=0
command -v gdb >/dev/null ||
    { echo "skipped the debugger: gdb is not here"; echo "0 passed, 0 failed, 1 skipped"; exit 0; }
want() { # what, pattern, how often at least
    if [ "$(printf '%s\n' "$out" | grep -Ec -- "$2")" -ge "$3" ]; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "FAILED  $1"; printf '%s\n' "$out" | tail -n 25; fi
}
line=$(grep -n '__syncthreads(); // the tiles are there' cuda/gemm.cu | head -n 1 | cut -d: -f1)
out=$(timeout 300 gdb -q -batch -x cuda/emulate/emulate.gdb -ex "thread-break gemm.cu:$line 1 0 0 5 3 0" \
    -ex run -ex 'print threadIdx' -ex 'print as[3]' -ex next -ex 'print threadIdx' -ex next -ex next \
    -ex 'print threadIdx' -ex 'print sum' -ex bt -ex kill "$1" 2>&1)
want "stops in the kernel" "gemm_tiled.*gemm.cu:$line" 1
want "the thread that was asked for, also after two barriers" '\$[0-9]+ = \{x = 5, y = 3, z = 0\}' 3
want "a shared array is printed" '\$[0-9]+ = \{-?[0-9.]+(e[-+][0-9]+)?, ' 1
want "next goes to the next line" "^$((line + 1))" 1

work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
awk '/\(gdb\) thread-break/ { on = 1 }
     on && !/\(gdb\)/ { exit }
     on { sub(/.*\(gdb\) /, ""); sub(/ *#.*/, ""); print }' doc/CONTRIBUTING.md >"$work/commands"
line=$(sed -n 's/^thread-break tile.h:\([0-9]*\) .*/\1/p' "$work/commands")
out="$(sed -n "${line:-0}p" cuda/tile.h 2>&1)"
want "the line that the document names" '__syncthreads\(\); // the tiles are there' 1
printf 'print threadIdx\nprint blockIdx\nkill\n' >>"$work/commands"
out=$(timeout 600 gdb -q -batch -x cuda/emulate/emulate.gdb -x "$work/commands" \
    --args "$2" sample -q -p "a dog" --steps 1 -o "$work/x.png" 2>&1)
want "stops where the document says" "tile_product.*tile.h:$line" 1
want "the document's next stays with the thread over the barrier" '\$[0-9]+ = \{x = 5, y = 0, z = 0\}' 2
want "the document's block" '\$[0-9]+ = \{x = 0, y = 1, z = 0\}' 1
want "the document's shared array" '\$[0-9]+ = \{-?[0-9.]+(e[-+][0-9]+)?, |nan' 1
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
