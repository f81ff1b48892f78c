#!/bin/sh
# bugs.sh PROGRAM SEEDS...: runs each planted mistake of bugs.cu with each seed (0: the fixed order) and
# looks for the words that its report must contain; correct kernels must not be reported.
program=$1; shift
passed=0 failed=0
expect() { # name, words that the report contains ("" : no report)
    for seed in $seeds; do
        out=$(EMU_SEED=$seed EMU_COUNT=${count:-0} timeout 20 "$program" "$1" 2>&1); status=$?
        if [ -z "$2" ]; then [ $status = 0 ] && [ -z "$out" ]; ok=$?
        else printf '%s' "$out" | grep -Eq -- "$2" && { [ -n "$count" ] || [ $status = 86 ]; }; ok=$?; fi
        if [ $ok = 0 ]; then passed=$((passed + 1))
        else
            failed=$((failed + 1))
            echo "FAILED  $1 with seed $seed: status $status; wanted '$2'; $(printf '%s' "$out" | head -n 2)"
        fi
    done
}
seeds="${*:-0 1}"
for good in reverse syncwarp histogram blocks sum global_exchange partial_shuffle async; do
    expect good_$good ""
done
S='shared s \+ [0-9]+ \(of [0-9]+\)'
T='thread \([0-9]+,0,0\) of block \(0,0,0\)'
expect no_barrier "(RACE|UNINITIALISED READ) .*kernel no_barrier at bugs.cu:[0-9]+ .*$T: $S"
expect no_second_barrier "RACE .*$S, (read|written) by"
expect no_syncwarp "(RACE|UNINITIALISED READ) .*$S"
expect shuffle_is_no_barrier "RACE .*$S"
expect racy_histogram "RACE .*shared h"
expect blocks_overlap \
    'RACE \(write after write\) .*byte [0-9]+ of an allocation of 512 bytes, written by thread .* of block'
expect threads_overlap 'RACE \(write after write\) .*allocation'
expect block_reads_block 'RACE .*by thread .* of block'
expect sum_without_atomic 'RACE'
expect global_exchange 'RACE'
expect barrier_in_if 'DEADLOCK.*barrier_in_if'
expect two_barriers 'DIVERGENT BARRIER|DEADLOCK'
expect early_return 'DEADLOCK'
expect shuffle_in_branch 'DEADLOCK'
expect shuffle_and_vote 'WARP DIVERGED'
expect mask_without_self 'WRONG MASK'
expect global_past_end 'OUT OF BOUNDS .*byte 512 of an allocation of 512 bytes'
F='`K load_past_end.*` \(device.h:[0-9]+ `default: .*`\)'
expect load_past_end "OUT OF BOUNDS .*at bugs.cu:[0-9]+ $F, .*byte 512 of an allocation of 512 bytes"
expect global_before_begin 'OUT OF BOUNDS .*(before an allocation|byte [0-9]+ of an allocation)'
expect global_uninitialised 'UNINITIALISED READ'
expect static_past_end 'OUT OF BOUNDS .*bugs.cu'
expect past_end_by_pointer \
    'OUT OF BOUNDS in kernel past_end_by_pointer at bugs.cu:.*which is not this kernel.s'
expect dynamic_past_end 'OUT OF BOUNDS .*dynamic shared memory \+ 512 \(of 512\)'
expect shared_never_written "UNINITIALISED READ .*$S"
expect shared_uninitialised "UNINITIALISED READ .*$S"
expect shared_of_last_block "UNINITIALISED READ .*$S"
expect null_pointer 'NULL POINTER .*bugs.cu'
expect host_pointer 'HOST POINTER'
expect misaligned 'MISALIGNED ACCESS'
expect no_wait "READ BEFORE THE cp.async WAIT .*$S"
expect wait_one_short "READ BEFORE THE cp.async WAIT .*$S"
expect async_no_barrier "(RACE|READ BEFORE|UNINITIALISED).*$S"
expect never_waited 'RETURN WITH cp.async UNDER WAY'
expect ldmatrix_misaligned 'MISALIGNED ldmatrix'
count=1 seeds=0
expect count_conflicts 'x32.00 shared .*s\[threadIdx.x\]\[threadIdx.y\]'
expect count_padded 'x1.00 +shared .*s\[threadIdx.x\]\[threadIdx.y\]'
expect count_strided 'x8.00 +global .*x\[threadIdx.x \* 8\]'
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
