#!/bin/sh
# `make paper`: the paper from data to report, phase by phase. Each stage's result is kept under $OUT, along
# with what it was made of. A stage whose result is there is skipped, so after an interruption the same
# command continues.
#
#   make paper                                     the toy world and the weights that the project ships
#   make paper-from-scratch                        the toy world, everything trained from nothing first
#   make paper MODEL=DIR DATA=DIR INCEPTION=FILE   real weights and real data; DATA30K=DIR for the larger set
#
# Sizes, as NAME=VALUE behind any of them (defaults in brackets):
#   COUNT        pictures a system, for FID [500; from scratch 2000; real 1000]
#   STEPS        guided steps of the base and the fine-tuned LoRA for those [25]; the LCM systems take 4
#   SWEEP        numbers of steps for the figure of steps against quality ["1 2 4 8"; "" for none]
#   SPEED        numbers of steps at which a picture is timed ["50 4"]: TIMED pictures [2] in each of
#                ROUNDS [3]
#   PICTURES     of Figure 3, a system [3]; 4 at most
#   BOOTSTRAP    halvings of the sets for the FID's interval [100]
#   OUT          folder of the results [run/paper, run/paper-from-scratch, run/paper-real]
#   REPORT       the report's file [report/index.html]
#   RANKS        processes that share drawing and scoring [1]; needs MPI=1 (doc/SCALE.md)
# Training, where there is any:
#   VAE_STEPS TEXT_STEPS UNET_STEPS INCEPTION_STEPS LCM_STEPS FINETUNE_STEPS DISTILL_STEPS
#   PRETRAIN_OPTIONS LCM_OPTIONS FINETUNE_OPTIONS DISTILL_OPTIONS   more options of those commands
#   BROAD SMALL LARGE   scenes to learn from [48000, 8000, 31783]; real: SMALL and LARGE are limits
#   LCM=DIR      real: replaces Phase 2's result where that phase needs too much memory; the report says so
#   PLAN=1       real: print the plan and stop
set -euf # no path is a pattern
export LC_ALL=C # a decimal point is a point
FIGURE3="A child in a pink dress is climbing up a set of stairs in an entryway"

say() { printf 'paper: %s\n' "$*" >&2; }
refuse() { say "$*"; exit "${status:-1}"; }
usage() { status=2; refuse "$*"; }

# ---- what is asked for -------------------------------------------------------------------------------------
MODEL=${MODEL:-} DATA=${DATA:-} DATA30K=${DATA30K:-} INCEPTION=${INCEPTION:-} LCM=${LCM:-}
if [ -n "${FROM_SCRATCH:-}" ]; then world=scratch
elif [ -n "$MODEL$DATA$DATA30K$INCEPTION$LCM" ]; then world=real
else world=toy; fi
case $world in
toy) OUT=${OUT:-run/paper} COUNT=${COUNT:-500} ;;
scratch) OUT=${OUT:-run/paper-from-scratch} COUNT=${COUNT:-2000} ;;
real) OUT=${OUT:-run/paper-real} COUNT=${COUNT:-1000} ;;
esac
STEPS=${STEPS:-25} SWEEP=${SWEEP-1 2 4 8} PICTURES=${PICTURES:-3} BOOTSTRAP=${BOOTSTRAP:-100}
SPEED=${SPEED-50 4} TIMED=${TIMED:-2} ROUNDS=${ROUNDS:-3}
REPORT=${REPORT:-report/index.html} RANKS=${RANKS:-1}

case $OUT$MODEL$DATA$DATA30K$INCEPTION$LCM$REPORT in *'
'*) usage "paths of two lines are not taken: OUT, MODEL, DATA, DATA30K, INCEPTION, LCM, REPORT" ;; esac
case $OUT in -*) OUT=./$OUT ;; esac
[ $world = real ] || [ -z "${PLAN:-}" ] || usage "PLAN goes with MODEL, DATA and INCEPTION"
[ $world = scratch ] && [ -n "$MODEL$DATA$DATA30K$INCEPTION$LCM" ] &&
    usage "paper-from-scratch trains its own models on its own data;" \
        "MODEL, DATA, DATA30K, INCEPTION and LCM do not go with it"
if [ $world = real ]; then
    [ -n "$MODEL" ] && [ -n "$DATA" ] && [ -n "$INCEPTION" ] ||
        usage "MODEL=DIR, DATA=DIR and INCEPTION=FILE go together; one is missing"
    for path in "$MODEL" "$DATA" ${DATA30K:+"$DATA30K"} "$INCEPTION" ${LCM:+"$LCM"}; do
        [ -e "$path" ] || refuse "$path does not exist"
    done
fi
whole() { # whole NAME VALUE MOST: a number from 1 to MOST
    case $2 in '' | *[!0-9]* | 0* | ????????*) ;; *) [ "$2" -gt "$3" ] || return 0 ;; esac
    usage "$1 is \"$2\"; a whole number from 1 to $3 is expected"
}
whole COUNT "$COUNT" 1000000
whole STEPS "$STEPS" 1000
whole TIMED "$TIMED" 100
whole ROUNDS "$ROUNDS" 100
whole BOOTSTRAP "$BOOTSTRAP" 100000
whole RANKS "$RANKS" 65536
whole PICTURES "$PICTURES" 4 # so many the report shows
numbers() { # numbers NAME LIST MOST: as many as the report has room for
    name=$1 most=$3 count=0
    for n in $2; do whole "$name" "$n" "$most" && count=$((count + 1)); done
    [ $count -le 8 ] || usage "$name has $count numbers; the report takes 8"
}
numbers SWEEP "$SWEEP" 100
numbers SPEED "$SPEED" 1000
[ "$COUNT" -ge 2 ] || usage "COUNT is $COUNT; FID compares at least 2 pictures"
[ "$BOOTSTRAP" -ge 2 ] || usage "BOOTSTRAP is $BOOTSTRAP; 2 is the least"
for name in VAE_STEPS TEXT_STEPS UNET_STEPS INCEPTION_STEPS LCM_STEPS FINETUNE_STEPS DISTILL_STEPS \
    BROAD SMALL LARGE; do
    eval "value=\${$name:-}"
    [ -z "$value" ] || whole "$name" "$value" 9999999
done

# A link is made at once or not at all, and what it points to says whose it is, also to another machine.
mkdir -p "$OUT/made"
me="process $$ on $(uname -n)"
runs() { # runs PROCESS
    if [ ! -d /proc/self ]; then kill -0 "$1" 2>/dev/null
    else { tr '\0' ' ' <"/proc/$1/cmdline" | grep -q 'paper\.sh'; } 2>/dev/null; fi
}
while ! ln -s "$me" "$OUT/running" 2>/dev/null; do
    owner=$(readlink "$OUT/running") || refuse "cannot write $OUT/running"
    pid=${owner#process } && pid=${pid%% *}
    [ "$owner" = "process $pid on $(uname -n)" ] && ! runs "$pid" ||
        refuse "$OUT is in use by $owner; wait for it, or take another OUT;" \
            "if it runs no more, remove $OUT/running"
    mv "$OUT/running" "$OUT/gone" && rm -f "$OUT/gone" # it was killed
done
trap 'rm -f "$OUT/running"' EXIT
rm -f "$OUT/gone" # of one that was killed two lines above

# ---- stages ------------------------------------------------------------------------------------------------
# A stage's record, $OUT/made/NAME.json, appears when its result is complete: {"stage", "made_of", "seconds",
# "command", "result"}, where "result" is what the command printed. Until then $OUT/made/NAME.begun says what
# is being made.

# identity PATHS: a number that changes with the contents of these files and folders. What a killed writer
# left behind (.part) does not count.
identity() {
    for path; do
        if [ ! -d "$path" ]; then cksum <"$path"
        else (cd "$path" && find -L . -type f ! -name '*.part' | sort |
            while IFS= read -r file; do cksum <"$file"; done); fi
    done | cksum | tr ' ' -
}
data_identity() { # of a data set: the names in its folder and what its lists say
    (
        cd "$1" && ls && find -L . ! -name . -prune -type f \( -name '*.txt' -o -name '*.csv' \
            -o -name '*.json' -o -name '*.token' \) | sort | while IFS= read -r file; do cat "$file"; done
    ) | cksum | tr ' ' -
}
quoted() { ./sd report --quote "$*"; }
typed() { # a command as one would type it: what has a blank in it stands in quotes
    between=""
    for word; do
        case $word in *' '*) word="\"$word\"" ;; esac
        printf '%s%s' "$between" "$word"
        between=" "
    done
}
clock=$(date +%s)
: >"$OUT/stages.txt" # which stages this run has reached: the report takes no other

# stage NAME MADE_OF PATH... -- COMMAND...: what the command prints is the stage's result, and so are the
# files PATH. A result made of something else is removed, unless it was trained: that took hours, so the run
# stops instead. A missing result is made again.
stage() {
    name=$1 made_of=$2 record=$OUT/made/$1 paths="" gone=""
    shift 2
    before=$(cat "$record.begun" 2>/dev/null || true)
    of_another=no
    [ -z "$before" ] || [ "$before" = "$made_of" ] || of_another=yes
    case $name in train-*) trained=yes ;; *) trained=no ;; esac
    if [ $of_another$trained = yesno ]; then
        say "$name is of something else ($before) and is made again ($made_of)"
        rm -f "$record.json"
    fi
    while [ "$1" != -- ]; do
        paths="$paths $1"
        [ $of_another$trained != yesno ] || rm -rf "$1"
        case $1 in "$OUT"/runs/*) ;; # a checkpoint is of no more use
        *) [ -e "$1" ] || gone=$1 ;; esac
        shift
    done
    shift
    typed=$*
    [ $of_another$trained != yesyes ] ||
        refuse "$name was trained with other models, data or options ($before; asked for: $made_of);" \
            "take another OUT, or remove$paths and $record.*"
    if [ -s "$record.json" ]; then
        case $(tail -n 1 "$record.json") in *'}') ;; *) gone=$record.json ;; esac # only half of it is there
        [ -z "$gone" ] || { say "$name: $gone is gone, it is made again" && rm -f "$record.json"; }
    fi
    if [ ! -s "$record.json" ]; then
        say "$name"
        printf '%s' "$made_of" >"$record.begun.part" && mv "$record.begun.part" "$record.begun"
        case $RANKS/$name in 1/*) ;; */draw-* | */fid*) set -- mpirun -n "$RANKS" "$@" ;; esac
        "$@" >"$record.out"
        now=$(date +%s)
        result=$(cat "$record.out")
        case $result in '{'* | '['*) ;; ?*) result=$(quoted "$result") ;; esac # words are a JSON string
        seconds=$((now > clock ? now - clock : 0)) # since the stage before, so that the times add up
        printf '{"stage": "%s", "made_of": %s, "seconds": %d, "command": %s, "result": %s}\n' \
            "$name" "$(quoted "$made_of")" "$seconds" "$(quoted "${command:-$(typed "$@")}")" \
            "${result:-null}" >"$record.part"
        mv "$record.part" "$record.json" && rm -f "$record.out"
    fi
    clock=$(date +%s) command=
    echo "$name" >>"$OUT/stages.txt"
}
# figure FILE KEY: a number of a JSON line
figure() { sed -n "s/.*\"$2\": \([0-9.e+-]*\).*/\1/p" "$1" | tail -n 1; }

# ---- the models --------------------------------------------------------------------------------------------
w=weights
[ $world = toy ] || w=$OUT/weights
reference=$OUT/reference
mkdir -p "$OUT/logs" "$w" # logs: of the training runs, thinned to a hundred points each
base=$w/tiny judge=$w/tiny-inception.safetensors lcm=$w/tiny-lcm
lora=$w/tiny-lora.safetensors adapters=$w/tiny-lcm-lora size=128
if [ $world = real ]; then
    base=$MODEL judge=$INCEPTION lcm=$w/lcm-8k lora=$w/lora.safetensors adapters=$w/lcm-lora
    size=$(sed -n 's/.*"sample_size": *\([0-9]*\).*/\1/p' "$MODEL/unet/config.json" 2>/dev/null || true)
    size=$((${size:-64} * 8))
fi

# train NAME MADE_OF RUN PICTURES PATH -- COMMAND...: a stage that trains, continues from its checkpoint and
# leaves a log
train() {
    training=$1 of=$2 run=$3 pictures=$4
    shift 4
    if [ "$run" = none ]; then
        stage "train-$training" "$of" "$@"
        return
    fi
    stage "train-$training" "$of" "$run" "$@"
    ./sd report --log "$run" "$pictures" "$typed" >"$OUT/logs/$training.jsonl"
}
pretrain() { # pretrain STAGE STEPS AFTER PATH OPTIONS...
    part=$1 steps=$2 after=$3 made=$4 set_=""
    shift 4
    [ $# = 0 ] || set_=$(ls "$OUT/broad/Images" | wc -l) # those with --data; the others draw on the way
    train "$part" "$part ${steps:-default} steps ${PRETRAIN_OPTIONS:-} after $after" \
        "$OUT/runs/$part" "$set_" "$made" -- ./sd pretrain "$part" -o "$base" --run "$OUT/runs/$part" \
        ${steps:+--steps $steps} ${PRETRAIN_OPTIONS:-} "$@"
}
# Phases 2 and 3 on one data set. distil SIZE DATA LCM: the LCM, and adapters that imitate it.
distil() {
    set_=$1 data=$2 teacher=$3 pictures=$(ls "$2/Images" | wc -l)
    captions_id=$(identity "$data/captions.txt")
    if [ -z "$LCM" ]; then
        train "lcm-$set_" \
            "teacher $base_id, data $captions_id, ${LCM_STEPS:-default} steps ${LCM_OPTIONS:-}" \
            "$OUT/runs/lcm-$set_" "$pictures" "$teacher" -- \
            ./sd lcm -m "$base" --data "$data" --cache "$OUT/cache" -o "$teacher" \
            --run "$OUT/runs/lcm-$set_" ${LCM_STEPS:+--steps $LCM_STEPS} ${LCM_OPTIONS:-} --json
    fi
    of="teacher $(identity "$teacher/unet"), base $base_id, data $captions_id"
    train "lcm-lora-$set_" "$of, ${DISTILL_STEPS:-default} steps ${DISTILL_OPTIONS:-}" \
        "$OUT/runs/lcm-lora-$set_" "$pictures" "$adapters-$set_.safetensors" -- \
        ./sd lora distill -m "$base" --teacher "$teacher" --data "$data" --cache "$OUT/cache" \
        -o "$adapters-$set_.safetensors" --run "$OUT/runs/lcm-lora-$set_" \
        ${DISTILL_STEPS:+--steps $DISTILL_STEPS} ${DISTILL_OPTIONS:-} --json
}
finetune() { # finetune DATA
    of="base $base_id, data $(identity "$1/captions.txt")"
    train lora "$of, ${FINETUNE_STEPS:-default} steps ${FINETUNE_OPTIONS:-}" \
        "$OUT/runs/lora" "$(ls "$1/Images" | wc -l)" "$lora" -- \
        ./sd lora finetune -m "$base" --data "$1" --cache "$OUT/cache" -o "$lora" --run "$OUT/runs/lora" \
        ${FINETUNE_STEPS:+--steps $FINETUNE_STEPS} ${FINETUNE_OPTIONS:-} --json
}
scenes() { # scenes NAME COUNT OPTIONS...: toy pictures to learn from
    name=$1 n=$2
    shift 2
    stage "$name" "$n scenes $*" "$OUT/$name" -- ./sd scenes "$OUT/$name" -n "$n" "$@" --json
}

case $world in
toy) find weights/logs -name '*.jsonl' -exec cp {} "$OUT/logs/" \; 2>/dev/null || true ;;
scratch)
    # As the shipped weights were made: weights/README.md.
    LCM_OPTIONS=${LCM_OPTIONS---lr 1.5e-4 --schedule cosine --weighting snr --w-min 2 --w-max 5}
    FINETUNE_OPTIONS=${FINETUNE_OPTIONS---lr 1e-3 --schedule cosine --targets lcm --ema 0.99 --min-snr 5}
    DISTILL_OPTIONS=${DISTILL_OPTIONS---lr 1e-3 --schedule cosine --w-min 3.5 --w-max 3.5}
    LCM_STEPS=${LCM_STEPS:-3000} FINETUNE_STEPS=${FINETUNE_STEPS:-2500}
    scenes broad "${BROAD:-48000}" --world broad
    train tokenizer "captions of the toy world" none "" "$base/tokenizer" -- \
        ./sd pretrain tokenizer -o "$base"
    pretrain vae "${VAE_STEPS:-}" nothing "$base/vae"
    pretrain text "${TEXT_STEPS:-}" "$(identity "$base/vae")" "$base/text_encoder" --data "$OUT/broad"
    text_id=$(cat "$OUT/made/text-encoder" 2>/dev/null || identity "$base/text_encoder")
    printf '%s' "$text_id" >"$OUT/made/text-encoder" # as it was before the UNet's training moved it on
    pretrain unet "${UNET_STEPS:-}" "$text_id" "$base/unet" --data "$OUT/broad"
    pretrain inception "${INCEPTION_STEPS:-}" nothing "$judge"
    scenes flickr8k "${SMALL:-8000}" --world flickr
    scenes flickr30k "${LARGE:-31783}" --world flickr
    ;;
esac
[ -e "$base" ] || refuse "$base is missing; weights/README.md tells how it was made"
[ -e "$judge" ] || refuse "$judge is missing; weights/README.md tells how it was made"
base_id=$(identity "$base") judge_id=$(identity "$judge")
. weights/paper_plan.sh # plan(): real weights only
case $world in
scratch)
    finetune "$OUT/flickr8k"
    distil 8k "$OUT/flickr8k" "$lcm"
    distil 30k "$OUT/flickr30k" "$w/tiny-lcm-30k"
    ;;
real)
    LCM_OPTIONS=${LCM_OPTIONS---batch 1 --checkpointing}
    FINETUNE_OPTIONS=${FINETUNE_OPTIONS---batch 1 --checkpointing}
    DISTILL_OPTIONS=${DISTILL_OPTIONS---batch 1 --checkpointing --rank 64}
    data_id=$(data_identity "$DATA")
    stage data-8k "$DATA $data_id, at most ${SMALL:-all}, $COUNT held out" "$OUT/data-8k" -- \
        ./sd data "$DATA" -o "$OUT/data-8k" --part train --hold-out "$COUNT" ${SMALL:+-n $SMALL} --json
    # Before hours are spent: can the held-out pictures be read?
    stage reference "$COUNT held-out pictures of $DATA $data_id, $size pixels" "$reference" -- \
        ./sd data "$DATA" -o "$reference" --part held-out --hold-out "$COUNT" -n "$COUNT" \
        --size "$size" --json
    plan
    [ -n "$LCM" ] && lcm=$LCM
    finetune "$OUT/data-8k"
    distil 8k "$OUT/data-8k" "$lcm"
    if [ -n "$DATA30K" ]; then
        large_id=$(data_identity "$DATA30K")
        stage data-30k "$DATA30K $large_id, at most ${LARGE:-all}, $COUNT held out" "$OUT/data-30k" -- \
            ./sd data "$DATA30K" -o "$OUT/data-30k" --part train --hold-out "$COUNT" \
            ${LARGE:+-n $LARGE} --json
        distil 30k "$OUT/data-30k" "${LCM:-$w/lcm-30k}"
    fi
    ;;
esac

# ---- Phase 4: the reference, held-out pictures and their captions, which every system draws ----------------
# (Real ones were read above, before the training.)
if [ $world != real ]; then
    stage held-out "$COUNT scenes" "$OUT/held-out" -- \
        ./sd scenes "$OUT/held-out" -n "$COUNT" --world flickr --split test --seed 1 --json
    stage reference "$COUNT scenes" "$reference" -- ./sd data "$OUT/held-out" -o "$reference" --json
    cp "$OUT/held-out/scenes.jsonl" "$reference/Images/prompts.jsonl"
    stage fidelity-real "$COUNT scenes, judge $judge_id" -- \
        ./sd fid fidelity "$reference/Images" --weights "$judge" --json
fi
drawn=$(grep -c . "$reference/prompts.txt")
# What the report says of the whole.
about() { # about FINISHED
    cpu=$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo 2>/dev/null | head -n 1)
    cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo '?')
    {
        printf '{"world": "%s", "finished": %s, ' $world "$1"
        printf '"model": %s, ' "$(quoted "$base")"
        printf '"data": %s, ' "$(quoted "${DATA:-the Flickr world, held-out scenes}")"
        printf '"inception": %s, "standin": %s, ' "$(quoted "$judge")" "$(quoted "$LCM")"
        printf '"count": %d, "steps": %d, ' "$drawn" "$STEPS"
        printf '"machine": %s, ' "$(quoted "${cpu:-$(uname -m)}, $cores cores," \
            "threads used: ${OMP_NUM_THREADS:-all}, $(uname -s)")"
        printf '"version": %s}\n' "$(quoted "$(git describe --always --dirty 2>/dev/null || echo unknown)")"
    } >"$OUT/paper.json.part"
    mv "$OUT/paper.json.part" "$OUT/paper.json"
}
about false
[ "$drawn" -ge 2 ] || refuse "$DATA has $drawn pictures to compare with; FID needs 2 at least"
[ "$drawn" = "$COUNT" ] || say "$drawn pictures can be held out, not $COUNT"
prompts_id=$(identity "$reference/prompts.txt")

# draw_and_judge NAME STEPS ID INTERVAL OPTIONS...: the pictures, and how good they are. Picture i of the
# reference shows the caption that picture i of the system is drawn from: these are pairs.
draw_and_judge() {
    name=$1 steps=$2 id=$3 interval=$4 of="$steps steps, model $3, captions $prompts_id, $drawn pictures"
    shift 4
    system=$name # stage() sets name
    stage "draw-$system" "$of" "$OUT/$system" -- \
        ./sd sample --prompts "$reference/prompts.txt" --out "$OUT/$system" --keep --seed 1 \
        --steps "$steps" --json "$@"
    stage "fid-$system" "$of, Inception $judge_id, pairs${interval:+, $interval}" -- \
        ./sd fid "$reference/Images" "$OUT/$system" --weights "$judge" --paired $interval --json
    [ $world = real ] && return
    cp "$reference/Images/prompts.jsonl" "$OUT/$system/prompts.jsonl"
    stage "fidelity-$system" "$of, judge $judge_id" -- \
        ./sd fid fidelity "$OUT/$system" --weights "$judge" --json
}
# figure3 ROW STEPS ID OPTIONS...: one picture is named so, several are numbered
figure3() {
    row=$1 steps=$2 id=$3 n=$PICTURES
    shift 3
    set -- -- ./sd sample -p "$FIGURE3" --steps "$steps" --seed 3 -n "$n" \
        -o "$OUT/figure3-$row.png" --json -q "$@"
    [ "$n" != 1 ] || { n=0 && set -- "$OUT/figure3-$row.png" "$@"; }
    while [ "$n" -gt 0 ]; do n=$((n - 1)) && set -- "$OUT/figure3-$row-$n.png" "$@"; done
    stage "figure3-$row" "$steps steps, model $id, $PICTURES pictures" "$@"
}
systems="" # NAME, ID and OPTIONS of those that are here, a line each
# system NAME STEPS OPTIONS...: one row of the paper's table
system() {
    row=$1 row_steps=$2
    shift 2
    for last; do :; done # the last option: the model, or the adapters on the base
    [ -e "$last" ] || { say "$last is missing: the row $row of the report stays empty"; return 0; }
    row_id=$base_id
    [ "$last" = "$base" ] || row_id=$base_id+$(identity "$last")
    draw_and_judge "$row" "$row_steps" "$row_id" "--bootstrap $BOOTSTRAP" "$@"
    figure3 "$row" "$row_steps" "$row_id" "$@"
    case $row in lcm | lcm-lora-*)
        for n in $SWEEP; do
            [ "$n" = "$row_steps" ] || draw_and_judge "$row-at-$n" "$n" "$row_id" "" "$@"
        done ;;
    esac
    systems="$systems$row $row_id $*
"
}
# rows COMMAND...: calls it with NAME STEPS OPTIONS of each row of the table
rows() {
    "$@" base "$STEPS" -m "$base"
    "$@" lora "$STEPS" -m "$base" --lora "$lora"
    "$@" lcm 4 -m "$lcm"
    "$@" lcm-lora-8k 4 -m "$base" --lora "$adapters-8k.safetensors"
    [ $world = real ] && [ -z "$DATA30K" ] ||
        "$@" lcm-lora-30k 4 -m "$base" --lora "$adapters-30k.safetensors"
}
rows system
if [ $world != real ] && [ -e "$lora" ]; then # what learnt longest from so few: does it know them by heart?
    scenes flickr8k "${SMALL:-8000}" --world flickr
    stage nearest-lora "$(identity "$lora"), captions $prompts_id, judge $judge_id" -- \
        ./sd fid "$OUT/flickr8k/Images" "$OUT/lora" --weights "$judge" --nearest 6 --json
fi

# Seconds a picture. The systems take turns, so that a busy moment of the machine affects them all alike. The
# first picture of each call is a warm-up and does not count.
timed() { # timed STEPS NAME ITS_OWN_STEPS OPTIONS...
    n=$1 row=$2
    shift 3
    for last; do :; done
    [ -e "$last" ] || return 0
    sample=$(./sd sample -p "$FIGURE3" --steps "$n" -n $((TIMED + 1)) -o "$OUT/speed.png" --json -q "$@")
    printf '%s{"system": "%s", "steps": %d, "sample": %s}\n' "$before" "$row" "$n" "$sample"
    before=", "
}
speed() {
    before="["
    for round in $(seq "$ROUNDS"); do
        for n in $SPEED; do rows timed "$n"; done
    done
    echo "]"
    for n in $(seq 0 "$TIMED"); do rm -f "$OUT/speed-$n.png"; done
}
command="./sd sample -p \"$FIGURE3\" --steps N -n $((TIMED + 1)) --json -q, $ROUNDS rounds over all systems"
systems_id=$(printf '%s' "$systems" | cksum | tr ' ' -)
[ -z "$SPEED" ] || stage speed "$systems_id, steps $SPEED, $ROUNDS rounds of $TIMED" -- speed

# ---- the report --------------------------------------------------------------------------------------------
about true
./sd report "$OUT" -o "$REPORT"
