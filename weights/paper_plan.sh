# paper_plan.sh: plan(), read by paper.sh. It says beforehand what `make paper MODEL=...` will take. Every
# stage is tried with a step or a picture, and its time multiplied. This also shows early what does not work.

planned() { # planned STAGE SECONDS MEGABYTES DISK: a line of the plan
    printf '%s{"stage": "%s", "seconds": %.0f, "mb": %.0f, "disk_mb": %.1f}' "$before" "$1" "$2" "$3" "$4"
    before=", "
}
calc() { awk "BEGIN { printf \"%.6g\", $1 }"; }
megabytes() { du -ckL "$@" 2>/dev/null | awk 'END { printf "%.1f", $1 / 1000 }'; }
second_step() { # seconds of the second step of a run of two: the first may do more than a step
    awk '
        { match($0, /"seconds": [0-9.]+/); at[NR] = substr($0, RSTART + 11, RLENGTH - 11) }
        END { print at[2] - at[1] }' "$1/log.jsonl"
}
first_extra() { # by how much the first step is longer
    awk '
        { match($0, /"seconds": [0-9.]+/); at[NR] = substr($0, RSTART + 11, RLENGTH - 11) }
        END { d = 2 * at[1] - at[2]; print (d > 0 ? d : 0) }' "$1/log.jsonl"
}

# try_training NAME STEPS COMMAND...: two steps; prints the plan of STEPS of them
try_training() {
    try=$1 try_steps=$2
    shift 2
    "$@" --run "$p/run-$try" --cache "$p/cache" --data "$p/data" --steps 2 --json \
        >"$p/$try.json" 2>"$p/$try.err" || {
        grep 'the run needs' "$p/$try.err" >&2 || cat "$p/$try.err" >&2
        return 1
    }
    planned "train-$try" \
        "$(calc "$try_steps * ($(second_step "$p/run-$try") + $(first_extra "$p/run-$try") / 50)")" \
        "$(figure "$p/$try.json" peak_mb)" \
        "$(calc "$(megabytes "$p/run-$try") + $(megabytes "$p/$try.safetensors" "$p/$try")")"
}
# try_drawing NAME STEPS OPTIONS...: one picture of two steps. A sampler may evaluate the UNet more often than
# it has steps.
try_drawing() {
    try=$1 try_steps=$2
    shift 2
    sample=$p/draw-$try.json
    ./sd sample -p "$FIGURE3" --steps 2 -o "$p/$try.png" --json -q "$@" >"$sample"
    step=$(figure "$sample" unet_step_s)
    picture="$(figure "$sample" text_s) + $(figure "$sample" vae_s)"
    picture=$(calc "$picture + ($(figure "$sample" unet_evaluations) - 2) * $step")
    numbers=$try_steps
    case $try in lcm*) numbers=$(printf '%s\n' $try_steps $SWEEP | sort -un) ;; esac
    for n in $numbers; do
        at=$try-at-$n drawn=$COUNT
        [ "$n" != "$try_steps" ] || at=$try drawn=$((COUNT + PICTURES)) # with those of Figure 3
        planned "draw-$at" "$(calc "$drawn * ($n * $step + $picture)")" \
            "$(figure "$sample" peak_mb)" "$(calc "$drawn * $(megabytes "$p/$try.png")")"
        judged=$((${judged:-0} + COUNT))
    done
    timed=0 calls=0
    for n in $SPEED; do timed=$((timed + n)) calls=$((calls + 1)); done
    speed_s=$(calc "${speed_s:-0} + $ROUNDS * ($TIMED + 1) * ($timed * $step + $calls * $picture)")
}

# Prints the plan as JSON.
probe() {
    p=$OUT/plan before="["
    rm -rf "$p" && mkdir -p "$p"
    ./sd data "$DATA" -o "$p/data" --part train --hold-out "$COUNT" -n 1 -q
    ./sd data "$DATA" -o "$p/reference" --part held-out --hold-out "$COUNT" -n 16 --size "$size" -q
    say "plan: the encoder, and two steps of fine-tuning"
    ./sd encode -m "$base" "$p/reference/Images/00000.png" -o "$p/latents.safetensors" --json -q \
        >"$p/encode.json"
    learnt=$(ls "$OUT/data-8k/Images" | wc -l)
    try_training lora "${FINETUNE_STEPS:-1000}" \
        ./sd lora finetune -m "$base" -o "$p/lora.safetensors" ${FINETUNE_OPTIONS:-} || exit 1
    planned encode "$(calc "$learnt * $(figure "$p/encode.json" seconds)")" 0 \
        "$(calc "$learnt * $size * $size / 64 * 32 / 1000000")"
    teacher=$LCM
    if [ -z "$LCM" ]; then
        say "plan: two steps of Phase 2"
        try_training lcm-8k "${LCM_STEPS:-2000}" \
            ./sd lcm -m "$base" -o "$p/lcm-8k" --sample-every 0 ${LCM_OPTIONS:-} ||
            refuse "Phase 2 does not fit this machine;" \
                "LCM=DIR takes a latent consistency model of the same base instead"
        teacher=$p/lcm-8k
    fi
    say "plan: two steps of Phase 3"
    try_training lcm-lora-8k "${DISTILL_STEPS:-1000}" \
        ./sd lora distill -m "$base" --teacher "$teacher" -o "$p/lcm-lora-8k.safetensors" \
        ${DISTILL_OPTIONS:-} || exit 1
    say "plan: a picture of each system, and the Inception network"
    try_drawing base "$STEPS" -m "$base"
    try_drawing lora "$STEPS" -m "$base" --lora "$p/lora.safetensors"
    try_drawing lcm 4 -m "$teacher"
    try_drawing lcm-lora-8k 4 -m "$base" --lora "$p/lcm-lora-8k.safetensors"
    ./sd fid "$p/reference/Images" "$p/reference/Images" --weights "$judge" --bootstrap 2 --json \
        >"$p/fid.json" 2>"$p/fid.err" || { cat "$p/fid.err" >&2; exit 1; }
    planned fid "$(calc "2 * $judged / 32 * $(figure "$p/fid.json" seconds)")" \
        "$(figure "$p/fid.json" peak_mb)" 0
    planned speed "$speed_s" 0 0
    echo "]"
    rm -rf "$p"
}

plan() {
    training="${LCM_STEPS:-default} ${LCM_OPTIONS:-}, ${FINETUNE_STEPS:-default} ${FINETUNE_OPTIONS:-}"
    training="$training, ${DISTILL_STEPS:-default} ${DISTILL_OPTIONS:-}"
    of="models $base_id, $judge_id, ${LCM:+LCM given, }$(ls "$OUT/data-8k/Images" | wc -l) pictures"
    of="$of to learn from, training $training, $COUNT pictures, $STEPS steps"
    stage plan "$of, sweep $SWEEP, speed $SPEED $TIMED $ROUNDS" -- probe
    say "plan (measured on a step or a picture each):"
    room=$(df -Pk "$OUT" | awk 'NR == 2 { print int($4 / 1000) }')
    tr '{' '\n' <"$OUT/made/plan.json" | awk -v all=$((${DATA30K:+1} + 0)) -v room="$room" '
        function figure(key) {
            if (!match($0, "\"" key "\": [0-9.]+")) return 0
            return substr($0, RSTART + length(key) + 4, RLENGTH - length(key) - 4) + 0
        }
        function row(name, s, mb, disk) {
            printf "  %-20s %8.2f h %8d MB of memory %8d MB of disk\n", name, s / 3600, mb, disk
        }
        NR > 2 {
            match($0, /"stage": "[^"]*"/)
            row(substr($0, RSTART + 10, RLENGTH - 11), figure("seconds"), figure("mb"), figure("disk_mb"))
            s += figure("seconds"); disk += figure("disk_mb"); if (figure("mb") > most) most = figure("mb")
        }
        END {
            row("all together", s, most, disk)
            if (disk > room) {
                printf "paper: the run needs %d MB of disk, %d MB are free\n", disk, room
                exit 1
            }
        }' >&2 || exit 1
    [ -z "$DATA30K" ] || say "the larger set comes on top: its encoding, Phase 2 and Phase 3 once more"
    [ -z "${PLAN:-}" ] || exit 0
}
