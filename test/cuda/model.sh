#!/bin/sh
# model.sh SD OTHER PICTURE [OPTIONS...]: the tiny model draws with two programs, the processor's SD and
# OTHER; OPTIONS are those of `sd sample` (none: the demo). Every 8-bit value must agree within 1 (PICTURE is
# test/cuda/picture.c), every block of every step within 1e-4 of its largest value.
sd=$1 other=$2 picture=$3; shift 3
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
passed=0 failed=0
[ $# -gt 0 ] || set -- -p "A child in a pink dress is climbing up a set of stairs in an entryway" --seed 3
step() { # what, command...: its closing line or its status
    what=$1; shift
    if "$@" >"$work/log" 2>&1; then
        passed=$((passed + 1)); echo "ok      $what: $(tail -n 2 "$work/log" | head -n 1)"
    else failed=$((failed + 1)); echo "FAILED  $what"; tail -n 5 "$work/log"; fi
}
step "drawn by the processor" "$sd" sample -t 1 "$@" -o "$work/a.png" --dump "$work/trace.safetensors"
step "drawn by the other" "$other" sample "$@" -o "$work/b.png"
step "the picture" "$picture" "$work/a.png" "$work/b.png"
step "every block" "$other" verify "$work/trace.safetensors"
tail -n 1 "$work/log"
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
