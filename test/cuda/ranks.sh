#!/bin/sh
# ranks.sh SD OTHER: many ranks, same bits (doc/SCALE.md), on emulated GPUs with emulated NCCL. SD is the
# processor's program, OTHER that of `make emulate NCCL=1`. FULL=1: more trainings, on 1, 2 and 4 ranks.
. test/cli/check.sh
. test/cli/mpi.sh
make -s NCCL=1 "$2" >/dev/null || { echo "FAILED  make NCCL=1"; exit 1; }
alone=$(realpath "$1") sd=$(realpath "$2")
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1
export EMU_ASYNC=1 # what NCCL brings arrives as late as it may
trainings=finetune counts=2 batch=2 steps=1
[ -n "$FULL" ] && trainings='finetune distill lcm decoder' counts='2 4' batch=4 steps=2
some="-t 1 --batch $batch --shards $batch --steps $steps"
with="-m model --data data --cache cache --dtype f32 $some"
"$alone" synth model --arch tiny -q && "$alone" synth lcm --arch tiny-lcm -q &&
    "$alone" scenes data -n 4 -q && "$alone" lora finetune $with -o made.safetensors -q ||
    { echo "FAILED  nothing to train with"; exit 1; }

train() { # NAME RANKS: the weights are in out/NAME-RANKS
    run="--run run/$1$2" out=out/$1$2
    mkdir -p $out
    case $1 in
    lcm) ranks $2 lcm $with $run -o $out --sample-every 0 ;;
    finetune) ranks $2 lora finetune $with $run --rank 2 -o $out/a.safetensors ;;
    distill) ranks $2 lora distill $with $run --rank 2 --teacher lcm -o $out/a.safetensors ;;
    *) ranks $2 pretrain $1 $some $run -o $out ;;
    esac
}
for t in $trainings; do
    for n in 1 $counts; do
        train $t $n || bad "$t on $n ranks"
        [ $n = 1 ] && continue
        check "diff -r out/${t}1 out/$t$n >difference" "$t gives the same weights on $n ranks"
        same_log ${t}1 $t$n
        check "grep -q '\"ranks\": $n, \"sent_mb\": [0-9]*\.[0-9]*[1-9]' run/$t$n/log.jsonl" "$t is shared"
    done
done
CUDA_VISIBLE_DEVICES=0 mpirun -n 2 "$sd" lora finetune $with --fresh -o no.safetensors >out.txt 2>err
check '[ $? != 0 ] && grep -q "^sd: NCCL: .*Each rank needs a GPU of its own" err' "two ranks on one GPU"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
