# check.sh: how the *.sh.test count what holds; each reads it before it leaves the project's folder. What the program said
# last (the file err), or how two things differ (difference), is shown where something does not hold.
passed=0 failed=0 skipped=0
ok() { passed=$((passed + 1)); }
bad() { failed=$((failed + 1)); echo "FAILED  $1"; tail -n 4 err difference 2>/dev/null; }
check() { if eval "$1"; then ok; else bad "$2"; fi; } # condition, what a user relies on
