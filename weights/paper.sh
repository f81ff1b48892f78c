#!/bin/sh
# `make paper`: the paper on the toy world, from data to report. Phase by phase; a phase whose result exists is skipped,
# so after an interruption the same command goes on. Results stand in $OUT (default run/paper), a file each.
#
#   COUNT=500      pictures a system
#   STEPS=25       guided steps of the base and the fine-tuned LoRA; the LCM systems take 4 unguided
set -eu
OUT=${OUT:-run/paper} COUNT=${COUNT:-500} STEPS=${STEPS:-25} MODEL=${MODEL:-weights/tiny}
mkdir -p "$OUT"

# whole FILE COMMAND...: runs the command unless its result exists; what it prints appears under FILE when it is whole.
whole() {
    file=$1; shift
    [ -s "$file" ] && return 0
    "$@" >"$file.part" && mv "$file.part" "$file"
}

# 1. The reference: held-out scenes of the Flickr world, and their captions, which every system draws.
reference=$OUT/reference
if [ ! -e "$reference/done" ]; then
    rm -rf "$reference"
    ./sd scenes "$reference" -n "$COUNT" --world flickr --split test --seed 1
    # the first caption of each scene: the one that names all its attributes
    awk 'NR > 1 { image = $0; sub(/,.*/, "", image); sub(/^[^,]*,/, ""); gsub(/^"|"$/, ""); if (!seen[image]++) print }' \
        "$reference/captions.txt" >"$OUT/prompts.txt"
    cp "$reference/scenes.jsonl" "$reference/Images/prompts.jsonl"
    touch "$reference/done"
fi
whole "$OUT/fidelity-real.json" ./sd fid fidelity "$reference/Images" --json

# 2. Each system draws the same captions with the same seeds.
system() { # system NAME STEPS OPTIONS...
    name=$1 steps=$2; shift 2
    dir=$OUT/$name
    if [ ! -e "$dir/done" ]; then
        ./sd sample --prompts "$OUT/prompts.txt" --out "$dir" --seed 1 --steps "$steps" "$@"
        cp "$reference/scenes.jsonl" "$dir/prompts.jsonl"
        touch "$dir/done"
    fi
    # 3. How good the pictures are, and how long one takes: five pictures after a warm-up.
    whole "$OUT/fid-$name.json" ./sd fid "$reference/Images" "$dir" --bootstrap 200 --json
    whole "$OUT/fidelity-$name.json" ./sd fid fidelity "$dir" --json
    long=$steps; [ "$steps" -gt 8 ] && long=50
    whole "$OUT/speed-$name.json" ./sd sample -p "$FIGURE3" --steps "$long" -n 6 -o "$OUT/speed-$name.png" --json -q "$@"
    whole "$OUT/figure3-$name.json" ./sd sample -p "$FIGURE3" --steps "$steps" --seed 3 -o "$OUT/figure3-$name.png" --json -q "$@"
}
FIGURE3="A child in a pink dress is climbing up a set of stairs in an entryway"
system base "$STEPS" -m "$MODEL"
[ -e weights/tiny-lora.safetensors ] && system lora "$STEPS" -m "$MODEL" --lora weights/tiny-lora.safetensors
[ -e weights/tiny-lcm ] && system lcm 4 -m weights/tiny-lcm
for size in 8k 30k; do
    [ -e "weights/tiny-lcm-lora-$size.safetensors" ] && system "lcm-lora-$size" 4 -m "$MODEL" --lora "weights/tiny-lcm-lora-$size.safetensors"
done

# 4. The report.
./sd report "$OUT" -o report/index.html
