#!/bin/sh
# gpu_check.sh MAKE: everything once on a real GPU, into gpu-check.txt: the tests in each precision, under
# compute-sanitizer where it is at hand, and timings of the GEMM ladder beside cuBLAS.
report=gpu-check.txt
command -v nvidia-smi >/dev/null || { echo "gpu-check: nvidia-smi was not found, so there is no GPU to run on" >&2; exit 1; }
make=$1; status=0
{
    date; nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total --format=csv,noheader
    for precision in f32 bf16 f16; do
        echo; echo "== activations in $precision"
        $make -s PRECISION=$precision gpu-tests && dir=$($make -s PRECISION=$precision print-gpu-dir) || exit 1
        for t in cuda_wrap cuda_gemm kernels; do
            sh test/cuda.sh "$t" "$dir/$t"
            for tool in memcheck racecheck initcheck synccheck; do
                command -v compute-sanitizer >/dev/null || continue
                compute-sanitizer --tool $tool "$dir/$t" 2>&1 | grep 'ERROR SUMMARY' | sed "s/^/  $tool: /"
            done
        done
    done
    echo; echo "== GEMM, GFLOP/s"
    $make -s gpu-tests && "$($make -s print-gpu-dir)/cuda_bench"
} 2>&1 | tee "$report"
grep -qE ' [1-9][0-9]* failed' "$report" && status=1
echo "written to $report"
exit $status
