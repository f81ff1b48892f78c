#!/bin/sh
# gpu_check.sh MAKE: everything once on a real GPU, into gpu-check.txt: the kernels' tests in each precision,
# also under compute-sanitizer where it is at hand; whole networks and training steps against PyTorch's
# fixtures; the demo beside the processor's; timings of the GEMM ladder beside cuBLAS, of a picture and of a
# training step.
report=gpu-check.txt
command -v nvidia-smi >/dev/null ||
    { echo "gpu-check: nvidia-smi was not found, so there is no GPU to run on" >&2; exit 1; }
make=$1
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
failed() { echo "FAILED  $*"; : >"$work/failed"; }
run() { # name, command...: one line, "name: N passed, ..."
    sh test/run.sh --one "$@" >"$work/line" 2>"$work/why"
    cat "$work/line" "$work/why"
    grep -q ' 0 failed' "$work/line" || failed "$1"
}
everything() {
    date; nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total --format=csv,noheader
    $make -s sd build/test/cuda/picture || { failed "make sd"; return; }
    for precision in f32 bf16 f16; do
        echo; echo "== activations in $precision"
        $make -s PRECISION=$precision gpu-tests || { failed "make gpu-tests"; continue; }
        dir=$($make -s PRECISION=$precision print-gpu-dir)
        for t in wrap gemm kernels; do
            run "$t" "$dir/$t"
            for tool in memcheck racecheck initcheck synccheck; do
                command -v compute-sanitizer >/dev/null || continue
                compute-sanitizer --tool $tool "$dir/$t" >"$work/log" 2>&1
                echo "  $tool: $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$work/log" | tail -n 1)"
                grep -qE 'ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards' "$work/log" ||
                    failed "$t under $tool"
            done
        done
    done
    dir=$($make -s print-gpu-dir)
    echo; echo "== whole networks, f32"
    for t in networks gradients lcm lora fid; do run "$t" "$dir/$t"; done
    run "full-size networks" env REDUCED=1 "$dir/networks"
    run "the demo beside the processor's" sh test/cuda/model.sh ./sd "$dir/sd" build/test/cuda/picture
    echo; echo "== GEMM, GFLOP/s"
    "$dir/bench" || failed bench
    echo; echo "== the kernels of a picture of Stable Diffusion v1.5"
    ./sd info --kernels sd15 | "$dir/bench" - || failed "bench of a picture's kernels"
    echo; echo "== the tiny model"
    for i in 1 2 3; do "$dir/sd" sample -q --json -p "a dog runs" -o "$work/x.png" || failed "sd sample"; done
}
everything 2>&1 | tee "$report"
echo "written to $report"
[ ! -e "$work/failed" ]
