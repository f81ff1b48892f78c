#!/bin/sh
# bounds.sh [BENCH]: cuda/bounds.awk against bounds of an H100 worked out by hand: 132 multiprocessors, 1,980
# cycles a microsecond. With BENCH, bench.cu in the checked emulator: of a launch whose blocks all do the
# same, two count as much as all of them.
passed=0 failed=0
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
cat >"$work/launches" <<END
section by hand, compulsory 20000000
launch 133,1,1 256 0 0 1 0 1 7137650280 0 0 0 tensor
launch 132,1,1 256 0 0 1 1306800 1000000 0 0 0 0 shared
launch 66,2,1 256 0 0 1 0 1 0 7318080 0 0 issue
launch 264,1,1 256 0 2090880 1990880 0 1 0 0 1 0 L1
launch 132,1,1 256 0 627264 627264 0 1 1 0 1 0 L2
launch 132,1,1 256 0 2000000 2000000 0 1 0 0 63500000 3500000 memory
END
awk -v counted=2 -f cuda/bounds.awk /dev/null "$work/launches" >"$work/report"
# 133 blocks: two rounds of 53.7 million operations, 2,731 a cycle. One pass a cycle. Four instructions a
# cycle. Four sectors a cycle; with cp.async two. 3.5 MB met for the first time, and 10 MB beyond the cache.
for want in "tensor 19.8" "shared 5.0" "issue 7.0" "L1 2.0" "L2 1.2" "memory 4.0"; do
    got=$(awk -v what="${want% *}" '$1 == "1x" && $2 == what { print $9 }' "$work/report")
    if [ "$got" = "${want#* }" ]; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "FAILED  $want, not $got"; fi
done
for sample in ${1:+0 2}; do
    echo "1 gemm m=1024 n=256 k=64 a=f32 b=f32 b_transposed" |
        EMU_COUNT=1 EMU_SAMPLE=$sample EMU_LAUNCHES=$work/of-$sample "$1" - >"$work/log" 2>&1
done
if [ -n "$1" ]; then
    if grep -q tile_product "$work/of-2" && cmp "$work/of-0" "$work/of-2"; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "FAILED  two blocks count for all"; diff "$work/of-0" "$work/of-2"; fi
fi
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
