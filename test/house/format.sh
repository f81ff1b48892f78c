#!/bin/sh
# format.sh          is the code laid out as .clang-format says, and no line longer than 110 columns?
# format.sh --apply  lays it out (make format)
# Versions of clang-format differ, so one alone counts: the machine's if it is that one, else PyPI's.
version=14.0.6 venv=${BUILD:-build}/clang-format
passed=0 failed=0 skipped=0
of_version() { "$1" --version 2>/dev/null | grep -qw "version $version"; }
install() { python3 -m venv "$venv" && "$venv/bin/pip" install -q clang-format==$version; }
for program in "$CLANG_FORMAT" clang-format-14 clang-format "$venv/bin/clang-format"; do
    of_version "$program" && break
done
of_version "$program" || { install >/dev/null 2>&1; of_version "$program"; } || program=''

code=$(find *.[ch] cli weights lib cpu cuda test doc -name '*.[ch]' -o -name '*.cc' -o -name '*.cu' |
    grep -v unicode_tables.h)
scripts=$(find Makefile .ci/run cuda/build.mk weights lib cuda test doc -name '*.sh' -o -name '*.test' \
    -o -name '*.py' -o -name Makefile -o -name run -o -name build.mk)
if [ "$1" = --apply ]; then
    [ -n "$program" ] || { echo "needs: pip install clang-format==$version" >&2; exit 1; }
    # headings end at column 110
    sed -i -E '/^(\/\/|#) ---- .*----$/s/^(.{110}).*/\1/' $code $scripts
    "$program" -i $code
    exit
fi

if [ -z "$program" ]; then
    skipped=1
    echo "skipped the format: clang-format $version is not here and cannot be installed"
else
    for file in $code; do
        if "$program" "$file" | cmp -s - "$file"; then passed=$((passed + 1))
        else failed=$((failed + 1)); echo "FAILED  make format would change $file"; fi
    done
fi
# Strings of C stay whole.
long=$(LC_ALL=C.UTF-8 grep -HnE '^.{111}' $code $scripts | grep -vE '^[^:]*\.(c|h|cc|cu):.*"' | cut -d: -f1,2)
if [ -z "$long" ]; then passed=$((passed + 1))
else failed=$((failed + 1)); echo "FAILED  lines of more than 110 columns:"; echo "$long"; fi
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
