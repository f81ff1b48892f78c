#!/bin/sh
# `make demo`: the caption of the paper's Figure 3, or FIGURE3=..., drawn by every tiny model that is here.
set -eu
export LC_ALL=C # a decimal point is a point
caption=$FIGURE3
draw() { # draw NAME FILE OPTIONS...
    name=$1 file=$2; shift 2
    figures=$(./sd sample -q --json -p "$caption" --seed 3 -o "$file" "$@")
    seconds=$(printf '%s' "$figures" | sed 's/.*"seconds": \([0-9.]*\).*/\1/')
    steps=$(printf '%s' "$figures" | sed 's/.*"steps": \([0-9]*\).*/\1/')
    printf '  %-28s %3s steps  %6.2f s  %s\n' "$name" "$steps" "$seconds" "$file"
}
echo "\"$caption\""
draw "base" demo-base.png
[ -e weights/tiny-lora.safetensors ] &&
    draw "fine-tuned LoRA" demo-lora.png --lora weights/tiny-lora.safetensors
[ -e weights/tiny-lcm-lora-8k.safetensors ] &&
    draw "LCM-LoRA, 8,000 pictures" demo-lcm-lora-8k.png --lora weights/tiny-lcm-lora-8k.safetensors
[ -e weights/tiny-lcm-lora-30k.safetensors ] &&
    draw "LCM-LoRA, 31,783 pictures" demo-lcm-lora-30k.png --lora weights/tiny-lcm-lora-30k.safetensors
exit 0
