#!/bin/sh
# sh weights/rehearse.sh DATA, where DATA is a captioned data set such as Flickr8k: rehearses
# `make paper MODEL=...` for someone who does not have the weights yet. It runs the paper at the full
# architecture on made-up weights, with a few steps and pictures of each stage. Sizes are set as for
# weights/paper.sh. Most of the time goes into encoding the pictures; SMALL=32 takes only 32 of them.
set -eu
export LC_ALL=C # a decimal point is a point
DATA=${1:?sh weights/rehearse.sh DATA} OUT=${OUT:-run/rehearsal}
export DATA COUNT="${COUNT:-4}" STEPS="${STEPS:-2}" SWEEP="${SWEEP-}" BOOTSTRAP="${BOOTSTRAP:-10}" \
    SPEED="${SPEED-2 1}" TIMED="${TIMED:-1}" ROUNDS="${ROUNDS:-1}" \
    LCM_STEPS="${LCM_STEPS:-2}" FINETUNE_STEPS="${FINETUNE_STEPS:-2}" DISTILL_STEPS="${DISTILL_STEPS:-2}" \
    FINETUNE_OPTIONS="${FINETUNE_OPTIONS---batch 1 --checkpointing --rank 4}" \
    DISTILL_OPTIONS="${DISTILL_OPTIONS---batch 1 --checkpointing --rank 4}"
made() { # made ARCH: weights of that architecture, made once
    folder=$OUT/made-weights/$1
    [ -e "$folder/done" ] || { ./sd synth "$folder" --arch "$1" --dtype f16 && touch "$folder/done"; }
}
made sd15
made inception
export MODEL="$OUT/made-weights/sd15" INCEPTION="$OUT/made-weights/inception/inception.safetensors"
if [ -z "${LCM:-}" ]; then # does Phase 2 fit this machine? It says so before its first step.
    ./sd data "$DATA" -o "$OUT/one" -n 1 -q
    if ! ./sd lcm -m "$MODEL" --data "$OUT/one" --cache "$OUT/cache" -o "$OUT/one-lcm" \
        --run "$OUT/one-run" --batch 1 --checkpointing --steps 1 2>"$OUT/one.txt"; then
        grep 'the run needs' "$OUT/one.txt" >&2 || { tail -n 1 "$OUT/one.txt" >&2; exit 1; }
        made sd15-lcm
        LCM=$OUT/made-weights/sd15-lcm
    fi
    rm -rf "$OUT/one-run" "$OUT/one-lcm"
fi
export LCM="${LCM:-}" OUT="$OUT/paper"
exec sh weights/paper.sh
