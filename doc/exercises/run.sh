#!/bin/sh
# `make exercise N=1`: the first time, writes a copy of one source file that has a mistake or a gap; every
# time, builds the copy against the other objects and checks it. FRESH=1 begins again. N.sed plants the
# mistake, N.solution.sed mends it. The first line of N.sed says where to look; a line "# try: ..." is what
# shows the difference, as arguments of the whole program with the copy in it, which is built then.
# CC, FLAGS, OBJECTS and CHECK come from the Makefile; WORK is where copies stand.
# A kernel's copy runs under the emulator; see cuda/build.mk.
set -eu
export LC_ALL=C # a decimal point is a point
n=$1 WORK=${WORK:-run/exercise} here=doc/exercises
case $n in *[!0-9]*) n="" ;; esac
[ -f "$here/$n.sed" ] || { echo "make exercise N=1, N=2, ... N=12; there is no exercise \"$1\"" >&2; exit 2; }
about=$(sed -n '1s/^# //p' "$here/$n.sed")
source=${about%%:*} topic=${about#*: } dir=$WORK/$n
copy=$dir/$(basename "$source")
if [ "${FRESH:-0}" != 0 ] && [ -f "$copy" ]; then
    kept=$copy.before number=1
    while [ -e "$kept" ]; do number=$((number + 1)) kept=$copy.before-$number; done
    mv "$copy" "$kept"
    echo "What was there is kept as $kept."
fi
if [ ! -f "$copy" ]; then
    mkdir -p "$dir"
    sed -f "$here/$n.sed" "$source" >"$copy.part"
    ! cmp -s "$copy.part" "$source" || { echo "exercise $n does not fit $source any more" >&2; exit 1; }
    mv "$copy.part" "$copy"
    what="a mistake in it ($topic). Find it, mend it"
    case $topic in "to be written: "*) what="a gap in it (${topic#*: }). Fill it" ;; esac
    echo "Exercise $n: $copy is a copy of $source with $what, and run this again."
fi
case $source in cuda/*) exec "${MAKE:-make}" -s kernel-exercise N="$n" DIR="$dir" ;; esac
object=$dir/copy.o others=""
for o in $OBJECTS; do
    case $o in "${CHECK%/doc/exercises/*}/${source%.c}.o") ;; *) others="$others $o" ;; esac
done
$CC $FLAGS -O1 -w -I"$(dirname "$source")" -c "$copy" -o "$object"
$CC $FLAGS "$CHECK" "$object" $others -o "$dir/check" -lm
try=$(sed -n 's/^# try: //p' "$here/$n.sed")
[ -z "$try" ] || [ -n "${QUIET:-}" ] || {
    $CC $FLAGS "$MAIN" "$object" $others -o "$dir/sd" -lm
    echo "What it does: $dir/sd $try"
}
"$dir/check" "$n"
