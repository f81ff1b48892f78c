#!/bin/sh
# run.sh CC: builds for a 64-bit ARM processor by a cross compiler and runs by qemu-user: kernels, JSON,
# tokenizer, and a picture that must be this machine's, within 1 of 255. Skipped where they are missing:
# apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
. test/cli/check.sh
cross=$1
if ! command -v ${cross##* } >/dev/null || ! command -v qemu-aarch64 >/dev/null; then
    echo "no ${cross##* } or no qemu-aarch64 here"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
build=${BUILD:-build}/aarch64
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
export QEMU_LD_PREFIX=${QEMU_LD_PREFIX:-/usr/aarch64-linux-gnu}
make BUILD="$build" CC="$cross" ARCH=aarch64 MPI= NCCL= "$build/test/attack/sd" "$build/test/nn/kernels" \
    "$build/test/io/json" "$build/test/io/tokenizer" >"$dir/built" 2>&1 || bad "it is built"
cat "$dir/built"
check '! grep -q "warning:\|error:" "$dir/built"' "without a warning"
for test in io/json io/tokenizer nn/kernels; do
    qemu-aarch64 "$build/test/$test" >"$dir/out.txt" 2>&1 && ok || { bad "$test"; tail -n 20 "$dir/out.txt"; }
    echo "$test: $(tail -n 1 "$dir/out.txt")"
done
draw="sample -p dog --steps 2 -W 64 -H 64 -q -o"
./sd $draw "$dir/here.png" && qemu-aarch64 "$build/test/attack/sd" $draw "$dir/there.png" || bad "a picture"
differs=$("${BUILD:-build}/test/aarch64/differs" "$dir/here.png" "$dir/there.png")
echo "the picture differs by ${differs:-?} of 255"
check '[ "${differs:-255}" -le 1 ]' "the picture is this machine's, within 1 of 255"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
