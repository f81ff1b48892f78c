#!/bin/sh
# half_picture.sh SD OTHER PICTURE LIMIT [OPTIONS...]: the tiny model draws with the processor's SD, in fp32,
# and with OTHER, whose activations have 16 bits. Latents may differ by LIMIT of their size, in the root of
# the mean square; nearly all products, convolutions and attention must have run on tensor cores.
sd=$1 other=$2 picture=$3 limit=$4; shift 4
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
passed=0 failed=0
judge() { # what, 1 or 0
    if [ "$2" = 1 ]; then passed=$((passed + 1)); echo "ok      $1"
    else failed=$((failed + 1)); echo "FAILED  $1"; fi
}
"$sd" sample -q -t 1 "$@" -o "$work/a.png" --dump "$work/a.safetensors"
"$other" sample -v "$@" -o "$work/b.png" --dump "$work/b.safetensors" >"$work/log" 2>&1
said=$("$picture" latents "$work/a.safetensors" "$work/b.safetensors" "$limit"); judge "$said" $((!$?))
share=$(sed -n 's/.*GFLOP, \([0-9.]*\) % of it on tensor cores.*/\1/p' "$work/log")
judge "${share:-0} % on tensor cores" "$(awk -v s="${share:-0}" 'BEGIN { print (s >= 99) }')"
! "$other" sample --dtype f32 "$@" -o "$work/c.png" 2>"$work/log" && grep -q PRECISION=f32 "$work/log"
judge "fp32 is that of another build" $((!$?))
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
