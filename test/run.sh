#!/bin/sh
# Runs every test program given and adds up their closing lines; a program that dies counts as a failure.
# Prints what failed and, under VERBOSE=1, everything. The last line is "N passed, N failed, N skipped".
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}" # threads that wait leave the processor to other programs
passed=0 failed=0 skipped=0
for t in "$@"; do
    out=$("$t" 2>&1 </dev/null); status=$?
    last=$(printf '%s\n' "$out" | grep -E '^[0-9]+ passed, [0-9]+ failed' | tail -n 1)
    name=$(basename "$t")
    if [ -z "$last" ]; then
        failed=$((failed + 1))
        printf '%s\n' "$out" | tail -n 20
        echo "FAILED  $name ended with status $status and no closing line"
        continue
    fi
    set -- $(printf '%s' "$last" | tr -cd '0-9 ')
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + ${3:-0}))
    if [ "$2" != 0 ] || [ $status != 0 ]; then
        printf '%s\n' "$out" | grep -E 'FAILED|ERROR|runtime error' | head -n 20
        [ "$2" = 0 ] && failed=$((failed + 1))
    fi
    [ -n "$VERBOSE" ] && printf '%s\n' "$out"
    printf '%-14s %s\n' "$name" "$last"
done
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
