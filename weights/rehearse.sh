#!/bin/sh
# The paper at the full architecture on made weights, a few steps and pictures of each stage: `make paper MODEL=...` before
# one has the weights. sh weights/rehearse.sh DATA, a captioned data set such as Flickr8k. Sizes as in weights/paper.sh;
# most of the time goes into encoding the pictures: SMALL=32 takes but 32 of them.
set -eu
DATA=${1:?sh weights/rehearse.sh DATA} OUT=${OUT:-run/rehearsal}
export DATA COUNT="${COUNT:-4}" STEPS="${STEPS:-2}" SWEEP="${SWEEP-}" SPEED="${SPEED-2 1}" TIMED="${TIMED:-1}" ROUNDS="${ROUNDS:-1}" \
    BOOTSTRAP="${BOOTSTRAP:-10}" LCM_STEPS="${LCM_STEPS:-2}" FINETUNE_STEPS="${FINETUNE_STEPS:-2}" DISTILL_STEPS="${DISTILL_STEPS:-2}" \
    FINETUNE_OPTIONS="${FINETUNE_OPTIONS---batch 1 --checkpointing --rank 4}" DISTILL_OPTIONS="${DISTILL_OPTIONS---batch 1 --checkpointing --rank 4}"
made() { [ -e "$OUT/made-weights/$1/done" ] || { ./sd synth "$OUT/made-weights/$1" --arch "$1" --dtype f16 && touch "$OUT/made-weights/$1/done"; }; }
made sd15
made inception
export MODEL="$OUT/made-weights/sd15" INCEPTION="$OUT/made-weights/inception/inception.safetensors"
if [ -z "${LCM:-}" ]; then # does Phase 2 fit this machine? It says so before its first step.
    ./sd data "$DATA" -o "$OUT/one" -n 1 -q
    if ! ./sd lcm -m "$MODEL" --data "$OUT/one" --cache "$OUT/cache" -o "$OUT/one-lcm" --run "$OUT/one-run" --batch 1 --checkpointing --steps 1 2>"$OUT/one.txt"; then
        grep 'the run needs' "$OUT/one.txt" >&2 || { tail -n 1 "$OUT/one.txt" >&2; exit 1; }
        made sd15-lcm
        LCM=$OUT/made-weights/sd15-lcm
    fi
    rm -rf "$OUT/one-run" "$OUT/one-lcm"
fi
export LCM="${LCM:-}" OUT="$OUT/paper"
exec sh weights/paper.sh
