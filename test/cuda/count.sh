#!/bin/sh
# count.sh PROGRAMS...: what the emulator counts on test/cuda/gemm.cu, conv.cu and attention.cu: every access
# to shared memory of the kernels that feed tensor cores takes the fewest passes possible, x1.00. Its page
# has the text's figures, line by line. Of bugs.cu the kernel with bank conflicts: they stand at their line.
passed=0 failed=0
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
page=${EMU_PAGE:-$work/page.html}
for program in "$@"; do
    name=$(basename "$program") planted=
    [ "$name" = bugs ] && planted=count_conflicts
    # shellcheck disable=SC2086 # no argument where none is planted
    EMU_COUNT=1 EMU_PAGE=$page "$program" $planted 2>"$work/text" >/dev/null ||
        { echo "FAILED  $program"; failed=$((failed + 1)); continue; }
    least=4; [ "$name" = gemm ] && least=12; [ "$name" = bugs ] && least=0
    awk -v least=$least -v planted="$planted" '
        function fail(what) { failed++; print "FAILED  " what }
        FNR == NR && /^emulate: kernel / {
            kernel = $0; sub(/^emulate: kernel /, "", kernel); sub(/, grid.*/, "", kernel)
            tensor = kernel ~ /^(tensor_product|attention_tensor)/; forms += tensor
        }
        FNR == NR && / (shared|global) / {
            if (tensor && $2 == "shared" && $1 == "x1.00") passed++
            if (tensor && $2 == "shared" && $1 != "x1.00") fail("bank conflicts:" $0)
            match($0, /[a-z_]+[.](cu|h|cc):[0-9]+ `/); line = substr($0, RSTART, RLENGTH - 2)
            sub(/:/, SUBSEP, line); told[kernel, line, $2] += $7; lines[kernel]++
        }
        FNR == NR { next }
        /^<h2>/ { kernel = $0; gsub(/<h2>|<\/h2>.*/, "", kernel); gsub(/&lt;/, "<", kernel) }
        /^<tr><td><th>/ { file = $0; gsub(/<[^>]*>/, "", file) }
        /^<tr[^>]*><td>[0-9]/ { line = $0; sub(/^[^>]*><td>/, "", line); line += 0; marked = /class=x/ }
        /^<\/details><td>/ {
            n = split($0, of, "<td>"); sub(/<.*/, "", of[n])
            shown[kernel, file, line, "global"] = of[5]; shown[kernel, file, line, "shared"] = of[8]
            if (marked && of[8] == 1024 && of[9] == 992 && of[10] == "32.00") found = file ":" line
        }
        END {
            for (k in told) { # the text lists twelve accesses of a kernel at the most, the page all
                split(k, of, SUBSEP)
                if (shown[k] == told[k] || (lines[of[1]] == 12 && shown[k] > told[k])) passed++
                else fail(of[1] ", " of[2] ":" of[3] ": page " shown[k] ", text " told[k])
            }
            if (forms < least) fail("only " forms + 0 " forms")
            if (planted) {
                "grep -n \"= s.threadIdx.x..threadIdx.y.;\" test/cuda/bugs.cu" | getline where
                where = "bugs.cu:" where + 0
                if (found == where) passed++; else fail("the conflict stands at " found ", not " where)
            }
            print passed + 0, failed + 0
        }' "$work/text" "$page" >"$work/result"
    grep FAILED "$work/result"
    counts=$(tail -n 1 "$work/result")
    passed=$((passed + ${counts% *})) failed=$((failed + ${counts#* }))
done
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
