#!/bin/sh
# `make exercise N=1`: the first time, writes a copy of one source file that has a mistake; every time, builds
# the copy against the other objects and checks it. N.sed plants the mistake, N.solution.sed mends it; the
# first line of N.sed says where to look. CC, FLAGS, OBJECTS and CHECK come from the Makefile; WORK is where
# copies stand.
# A kernel's copy runs under the emulator; see cuda/build.mk.
set -eu
export LC_ALL=C # a decimal point is a point
n=$1 WORK=${WORK:-run/exercise} here=doc/exercises
[ -f "$here/$n.sed" ] || { echo "make exercise N=1, N=2, ... N=7; there is no exercise \"$n\"" >&2; exit 2; }
about=$(sed -n '1s/^# //p' "$here/$n.sed")
source=${about%%:*} topic=${about#*: } dir=$WORK/$n
copy=$dir/$(basename "$source")
if [ ! -f "$copy" ]; then
    mkdir -p "$dir"
    sed -f "$here/$n.sed" "$source" >"$copy.part"
    ! cmp -s "$copy.part" "$source" || { echo "exercise $n does not fit $source any more" >&2; exit 1; }
    mv "$copy.part" "$copy"
    echo "Exercise $n: $copy is a copy of $source with a mistake in it ($topic)." \
        "Find it, mend it, and run this again."
fi
case $source in cuda/*) exec "${MAKE:-make}" -s kernel-exercise N="$n" DIR="$dir" ;; esac
object=$dir/copy.o others=""
for o in $OBJECTS; do
    case $o in "${CHECK%/doc/exercises/*}/${source%.c}.o") ;; *) others="$others $o" ;; esac
done
$CC $FLAGS -O1 -w -I"$(dirname "$source")" -c "$copy" -o "$object"
$CC $FLAGS "$CHECK" "$object" $others -o "$dir/check" -lm
[ -n "${QUIET:-}" ] || {
    $CC $FLAGS "$MAIN" "$object" $others -o "$dir/sd" -lm
    echo "What it does to pictures: $dir/sd takes the place of ./sd."
}
"$dir/check" "$n"
