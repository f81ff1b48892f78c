# check.sh: what the *.sh.test share; they source it before they change to their own folder. Where a check
# fails, it shows the end of the program's messages (the file err) or of a comparison (the file difference).
passed=0 failed=0 skipped=0
ok() { passed=$((passed + 1)); }
bad() { failed=$((failed + 1)); echo "FAILED  $1"; tail -n 4 err difference 2>/dev/null; }
check() { if eval "$1"; then ok; else bad "$2"; fi; } # condition, what a user relies on
