#!/bin/sh
# cuda.sh NAME COMMAND...: runs one test program of cuda/ and turns what it prints into one line, "name: N passed, N
# failed, N skipped". A finding of the emulator or of the stand-in runtime (status 86) is a failure.
# cuda.sh --sum FILE adds up the lines of a file and prints the last line of all.
if [ "$1" = --sum ]; then
    awk '{ for (i = 1; i < NF; i++) { if ($(i + 1) ~ /^passed/) p += $i; if ($(i + 1) ~ /^failed/) f += $i; if ($(i + 1) ~ /^skipped/) s += $i } }
         END { printf "%d passed, %d failed, %d skipped\n", p, f, s; exit f > 0 }' "$2"
    exit
fi
name=$1; shift
log=${TMPDIR:-/tmp}/sd-cuda-$$.log
"$@" >"$log" 2>&1 </dev/null; status=$?
last=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$log" | tail -n 1)
grep -E '^(FAILED|emulate:|ptxrun:)' "$log" | head -n 20 >&2
if [ -z "$last" ]; then tail -n 5 "$log" >&2; last='0 passed, 1 failed, 0 skipped'
elif [ $status != 0 ]; then case $last in *' 0 failed,'*) last=$(echo "$last" | sed 's/ 0 failed,/ 1 failed,/') ;; esac
fi
rm -f "$log"
echo "$name: $last"
