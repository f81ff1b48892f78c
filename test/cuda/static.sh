#!/bin/sh
# static.sh MAKE ARCHS...: nvcc's code for cuda/, without running it. Every architecture compiles without a
# warning and links; no kernel spills; the inner loops of the tensor-core kernels (products, convolutions,
# attention) consist of 16-byte asynchronous copies, ldmatrix and mma, with no other load from global memory
# and no division (needs cuobjdump).
make=$1; shift
passed=0 failed=0 skipped=0
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
judge() { # what, 1 or 0
    if [ "$2" = 1 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED  $1"; fi
}
for arch in "$@"; do
    "$make" -s cuda ARCH="$arch" CUDA_SD="$work/sd" >"$work/log" 2>&1; status=$?
    [ $status = 0 ] && [ -x "$work/sd" ] && ! grep -qi warning "$work/log"; ok=$?
    judge "make cuda ARCH=$arch: $(grep -i -m 1 'warning\|error' "$work/log")" $((!ok))
    rm -f "$work/sd"
done
ARCHS="$*" "$make" -s cuda-report >"$work/report"
judge "spills: $(grep 'spilled in all' "$work/report")" "$(grep -cx 'spilled in all: 0 bytes' "$work/report")"
grep -q '^tensor_product.*HMMA' "$work/report" ||
    { skipped=$((skipped + 1)); echo "skipped instructions: no cuobjdump"; }
# ldmatrix transposes pairs of 16 bits: it cannot load fp32 values that are not contiguous along k.
awk '/^== / { arch = $2 }
     /^(tensor_product|attention_tensor).*HMMA/ {
         ok = / LDGSTS\.128 / && !/ LDG / && !/ LDGSTS / && !/ I2F / && (/ LDSM / || /<float/)
         print ok, arch, $0
     }' "$work/report" >"$work/loops"
while read -r ok loop; do judge "instructions: $loop" "$ok"; done <"$work/loops"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
