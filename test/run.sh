#!/bin/sh
# run.sh PROGRAM...             runs test programs, JOBS of them at a time (default 1), and prints a line for
#                               each; the last line is their sum
# run.sh --one NAME COMMAND...  runs one and prints its line, "NAME: N passed, N failed, N skipped"
# run.sh --sum FILE             adds up such lines
# A test ends with "N passed, N failed, N skipped". A missing line is a failure. So is an exit status other
# than 0 behind a line without failures: the test died after it had spoken, or `make`, a sanitizer or the
# emulator found something. The exit status is 1 where something failed. What failed goes to stderr; under
# VERBOSE=1 everything that a test prints does.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}" # threads that wait leave the processor to other programs
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

one() { # NAME COMMAND...
    name=$1
    shift
    if [ -n "$VERBOSE" ]; then { "$@" 2>&1 </dev/null; echo $? >"$work/status"; } | tee "$work/log" >&2
    else "$@" >"$work/log" 2>&1 </dev/null; echo $? >"$work/status"
    fi
    status=$(cat "$work/status")
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$work/log" | tail -n 1)
    set -- $(printf '%s' "$line" | tr -cd '0-9 ')
    [ -n "$line" ] || set -- 0 0 0
    if [ "$status" != 0 ] || [ "$2" != 0 ] || [ -z "$line" ]; then
        grep -E '^FAILED|: error:|ERROR|runtime error|^emulate:|^ptxrun:' "$work/log" | head -n 20 >&2
        if [ "$2" = 0 ]; then
            tail -n 10 "$work/log" >&2
            echo "FAILED  $name ended with status $status, ${line:-without a closing line}" >&2
            set -- "$1" 1 "$3"
        fi
    fi
    printf '%-14s %s passed, %s failed, %s skipped\n' "$name:" "$1" "$2" "$3"
}

sum() { # FILE
    awk '{ for (i = 2; i <= NF; i++) {
               if ($i ~ /^passed/) passed += $(i - 1)
               if ($i ~ /^failed/) failed += $(i - 1)
               if ($i ~ /^skipped/) skipped += $(i - 1)
           } }
         END {
             if (NR == 0) failed++
             printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
             exit failed > 0
         }' "$1"
}

case $1 in
--one) shift; one "$@" >"$work/line"; cat "$work/line"; sum "$work/line" >/dev/null ;;
--sum) sum "$2" ;;
*) for program; do printf '%s\n%s\n' "${program##*/}" "$program"; done |
       xargs -r -n 2 -P "${JOBS:-1}" sh "$0" --one | tee "$work/lines"
   sum "$work/lines" ;;
esac
