#!/bin/sh
# gpu_check.sh MAKE: everything once on a real GPU, into gpu-check.txt, the most important first.
# With QUICK=1: what fits into 5 minutes of a bare machine without network, build included; the report is
# complete up to wherever time ran out. `make gpu-check QUICK=1 STB=DIR`: DIR holds the stb headers.
# Seconds and memory are of made weights at full size, which compute as trained ones do.
# Without: the kernels' tests in each precision, also under compute-sanitizer where it is at hand; whole
# networks and training steps against PyTorch's fixtures; the demo beside the processor's; then the same.
report=gpu-check.txt
command -v nvidia-smi >/dev/null ||
    { echo "gpu-check: nvidia-smi was not found, so there is no GPU to run on" >&2; exit 1; }
make=$1 began=$(date +%s) limit=${QUICK:+300}
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
seconds() { echo $(($(date +%s) - began)); }
left() { echo $((${limit:-86400} - $(seconds))); }
failed() { echo "FAILED  $*"; : >"$work/failed"; }
section() { echo; echo "== $* ($(seconds) s)"; }
within() { # command...: ended when the time is over
    [ "$(left)" -gt 2 ] || { echo "no time left for: $*"; return 1; }
    timeout "$(left)" "$@"
}
run() { # name, command...: one line, "name: N passed, ..."
    [ "$(left)" -gt 2 ] || { echo "$1: no time left"; return; }
    timeout "$(left)" sh test/run.sh --one "$@" >"$work/line" 2>"$work/why"
    cat "$work/line" "$work/why"
    grep -q ' 0 failed' "$work/line" || failed "$1"
}
sanitized() { # tool, program, arguments
    command -v compute-sanitizer >/dev/null || { echo "$1: compute-sanitizer is not here"; return; }
    tool=$1; shift
    within compute-sanitizer --tool "$tool" "$@" >"$work/log" 2>&1
    echo "$(basename "$1") under $tool: $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$work/log" | tail -n 1)"
    grep -qE 'ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards' "$work/log" || failed "$1 under $tool"
}
machine() {
    date; nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total --format=csv,noheader
    $make -s print-gpu-dir PRECISION=bf16
}
built() { # precision: into build-$1
    $make -s PRECISION="$1" gpu-tests >"$work/build-$1" 2>&1 && return
    failed "make gpu-tests in $1"; tail -n 5 "$work/build-$1"
}
peak() { # command...: with the most memory of the GPU that was in use, MiB
    (while sleep 0.2; do nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits; done) \
        >"$work/used" 2>&1 &
    watcher=$!
    "$@"; status=$?
    kill $watcher
    echo "    memory of the GPU: $(sort -n "$work/used" | tail -n 1) MiB"
    return $status
}
draw() { # model, options...
    model=$work/$1; shift
    within "$sd" sample -m "$model" -p "a dog runs" -o "$work/x.png" "$@"
}
full_size() { # sd: seconds at Stable Diffusion's size, of the most important first
    sd=$1
    while [ ! -e "$work/made" ] && [ "$(left)" -gt 2 ] && kill -0 "$maker" 2>/dev/null; do sleep 1; done
    section "sd sample, 512 x 512: one guided step, 50 steps"
    for steps in 1 50 50; do
        peak draw sd15 -q --json --steps $steps || failed "sd sample"
    done
    draw sd15 -v --steps 1 2>&1 | grep 'tensor cores'
    wait "$maker"
    section "4 steps of an LCM"
    for i in 1 2; do
        draw lcm -q --json --steps 4 || failed "sd sample of an LCM"
    done
    section "training: sd lcm, sd lora finetune, one picture a step"
    for what in lcm "lora finetune"; do
        peak within "$sd" $what --json -m "$work/sd15" --data "$work/scenes" --cache "$work/cache" \
            -o "$work/out-$(echo $what | tr ' ' -).safetensors" --run "$work/run-$(echo $what | tr ' ' -)" \
            --steps 4 --batch 1 >"$work/log" 2>&1 || failed "sd $what"
        tail -n 12 "$work/log"
    done
}
families() { # bench: each kernel at the shapes of a picture, beside cuBLAS where it was linked
    section "the kernels of a picture of Stable Diffusion v1.5"
    ./sd info --kernels sd15 | within "$1" - || failed "bench of a picture's kernels"
}
made_weights() { # in the background, while nvcc works
    ./sd synth "$work/sd15" --dtype bf16 -q && : >"$work/made" && ./sd scenes "$work/scenes" -n 16 -q &&
        ./sd synth "$work/lcm" --arch sd15-lcm --dtype bf16 -q
}
quick() {
    machine
    $make -s sd build/test/cuda/picture || { failed "make sd"; return; }
    made_weights >"$work/making" 2>&1 & maker=$!
    built bf16; dir=$($make -s PRECISION=bf16 print-gpu-dir)
    built f32 & builder=$!
    section "kernels, activations in bf16"
    for t in memory repeated gemm conv attention kernels; do run "$t" "$dir/$t"; done
    full_size "$dir/sd"
    families "$dir/bench"
    section "memory and races, smallest shapes"
    sanitized memcheck "$dir/memory"; sanitized racecheck "$dir/attention"; sanitized memcheck "$dir/conv"
    wait $builder; dir=$($make -s print-gpu-dir)
    section "f32"
    for t in gemm conv kernels; do run "$t" "$dir/$t"; done
    run "the demo beside the processor's" sh test/cuda/model.sh ./sd "$dir/sd" build/test/cuda/picture
}
everything() {
    machine
    $make -s sd build/test/cuda/picture || { failed "make sd"; return; }
    made_weights >"$work/making" 2>&1 & maker=$!
    for precision in bf16 f32 f16; do
        section "kernels, activations in $precision"
        built $precision
        dir=$($make -s PRECISION=$precision print-gpu-dir)
        for t in wrap memory gemm conv attention kernels; do
            run "$t" "$dir/$t"
            for tool in memcheck racecheck initcheck synccheck; do sanitized $tool "$dir/$t"; done
        done
    done
    dir=$($make -s print-gpu-dir)
    section "whole networks, f32"
    for t in networks gradients lcm lora fid; do run "$t" "$dir/$t"; done
    run "full-size networks" env REDUCED=1 "$dir/networks"
    run "the demo beside the processor's" sh test/cuda/model.sh ./sd "$dir/sd" build/test/cuda/picture
    for precision in bf16 f32; do
        dir=$($make -s PRECISION=$precision print-gpu-dir)
        section "full size, $precision"
        full_size "$dir/sd"; families "$dir/bench"
        section "GEMM, GFLOP/s, $precision"
        "$dir/bench" || failed bench
    done
}
if [ -n "$QUICK" ]; then quick; else everything; fi 2>&1 | tee "$report"
echo "written to $report"
[ ! -e "$work/failed" ]
