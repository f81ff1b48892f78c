#!/bin/sh
# report.sh NVCC FILES...: what the compiler knows of each kernel, for each architecture: registers, spills,
# shared memory, how many blocks fit on one multiprocessor; and, where cuobjdump is at hand, which
# instructions the inner loops are made of; and, where BOUNDS names test/cuda/bounds.c as the emulator counts
# it, what no GPU can be faster than (bounds.awk). Nothing is run on a GPU; none is needed.
nvcc=$1; shift
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
ptxas=$(dirname "$nvcc")/ptxas
archs=${ARCHS:-$("$nvcc" --list-gpu-code | grep -xE 'sm_(80|86|89|90|100|120)')}
cuobjdump=${CUOBJDUMP:-$(command -v cuobjdump ||
    find / -name cuobjdump -path '*nvidia*' -type f 2>/dev/null | head -n 1)}
spills=0
for f in "$@"; do # PTX for the oldest; ptxas translates it for each
    "$nvcc" -std=c++17 -O3 -I. -arch=compute_80 -ptx "$f" -o "$work/$(basename "$f" .cu).ptx" || exit 1
done
echo "Registers, spilled bytes, static shared memory, and the blocks that fit on a multiprocessor."
echo "Dynamic shared memory, asked for at the launch, is not counted: tensor_product 49152 to 52224 bytes,"
echo "for a picture 544 more for each place of the kernel; attention_tensor 20480 to 40960; attention 128 a"
echo "channel."
for arch in $archs; do
    echo; echo "== $arch"
    printf '%-78s %4s %6s %7s %12s\n' kernel regs spill shared 'fit (threads)'
    for p in "$work"/*.ptx; do
        # Launch bounds, by kernel, from the PTX; then what ptxas says.
        awk '/^[. ]*(visible )?.entry|\.entry/ { n = $0; sub(/.*\.entry +/, "", n); sub(/\(.*/, "", n) }
             /\.maxntid/ {
                 t = 1; split($0, a, /[ ,]+/)
                 for (i = 2; i in a; i++) if (a[i] ~ /^[0-9]+$/) t *= a[i]
                 print "B", n, t
             }' "$p" >"$work/bounds"
        "$ptxas" -v -arch="$arch" -O3 "$p" -o "$work/$(basename "$p" .ptx).$arch.cubin" 2>"$work/log" ||
            { cat "$work/log"; exit 1; }
        cat "$work/bounds" "$work/log" | c++filt -p | awk -v arch="$arch" '
            $1 == "B" { t = $NF; n = $0; sub(/^B /, "", n); sub(/ [0-9]+$/, "", n); bound[n] = t; next }
            /Compiling entry function/ { split($0, q, "\047"); name = q[2] }
            /spill stores/ { match($0, /[0-9]+ bytes spill stores/); spill = substr($0, RSTART) + 0 }
            /Used [0-9]+ registers/ {
                regs = $0; sub(/.*Used /, "", regs); regs += 0
                shared = 0; if (match($0, /[0-9]+ bytes smem/)) shared = substr($0, RSTART) + 0
                t = name in bound ? bound[name] : 256
                most = (arch ~ /sm_(80|90|100)$/) ? 2048 : 1536
                bytes = arch == "sm_80" ? 167936 : arch ~ /sm_(90|100)$/ ? 233472 : 102400
                warps = int((t + 31) / 32); each = int((regs * 32 + 255) / 256) * 256 * warps
                fit = int(most / t); if (each && int(65536 / each) < fit) fit = int(65536 / each)
                if (shared && int(bytes / (shared + 1024)) < fit) fit = int(bytes / (shared + 1024))
                if (fit > 32) fit = 32
                total += spill
                percent = 100 * fit * t / most
                printf "%-78.78s %4d %6d %7d %5d (%3d %%)\n", name, regs, spill, shared, fit, percent
            }
            END { print total + 0 >"'"$work/spills"'" }'
        spills=$((spills + $(cat "$work/spills")))
    done
done
echo; echo "spilled in all: $spills bytes"
if [ -n "$cuobjdump" ]; then
    for arch in $archs; do
        [ -f "$work/gemm.$arch.cubin" ] || continue
        echo; echo "== $arch: instructions of the innermost loops with the most arithmetic"
        for c in "$work"/gemm."$arch".cubin "$work"/conv."$arch".cubin "$work"/attention."$arch".cubin; do
            # A loop is what a backward branch spans; an inner one contains no other.
            shown='^(HMMA|FFMA|LDSM|LDGSTS|LDG|LDS|STS|STG|BAR|MUFU|I2F|SHFL|LDGDEPBAR)([.]128)?$'
            "$cuobjdump" -sass "$c" 2>/dev/null | c++filt -p | awk -v shown="$shown" '
                function number(hex,  i, n) { # not all awks have strtonum
                    n = 0
                    for (i = 1; i <= length(hex); i++)
                        n = n * 16 + index("0123456789abcdef", substr(hex, i, 1)) - 1
                    return n
                }
                function flush(  i, j, k, best, bn, c, n, op, s) {
                    for (i = 0; i < loops; i++) {
                        inner = 1
                        for (j = 0; j < loops; j++)
                            if (j != i && from[j] >= from[i] && to[j] <= to[i]) inner = 0
                        if (!inner) continue
                        delete c; n = 0
                        for (k = 0; k < count; k++)
                            if (at[k] >= from[i] && at[k] <= to[i]) {
                                c[what[k]]++; c[""]++
                                if (what[k] ~ /^(HMMA|FFMA)/) n++
                            }
                        if (n <= bn) continue
                        bn = n; s = " all " c[""]
                        for (op in c) if (op ~ shown) s = s " " op " " c[op]
                    }
                    if (bn) printf "%-70.70s%s\n", name, s
                    loops = count = 0
                }
                /Function :/ { flush(); name = $0; sub(/.*Function : /, "", name) }
                /^ *\/\*[0-9a-f]+\*\// {
                    a = $1; gsub(/[\/*]/, "", a); a = number(a)
                    if ($2 == "@!PT") next # never executed
                    op = $2 ~ /^@/ ? $3 : $2; wide = op ~ /\.128/ ? ".128" : "" # 16 bytes a thread
                    sub(/[.;].*/, "", op); op = op wide
                    at[count] = a; what[count++] = op
                    if (op != "BRA" || !match($0, /0x[0-9a-f]+/)) next
                    t = number(substr($0, RSTART + 2, RLENGTH - 2))
                    if (t < a) { from[loops] = t; to[loops++] = a }
                }
                END { flush() }'
        done
    done
else echo "cuobjdump is not here: no instruction mix (CUOBJDUMP=path names one)"
fi | tee "$work/loops"
if [ -n "${BOUNDS:-}" ]; then
    EMU_COUNT=1 EMU_SAMPLE=3 EMU_LAUNCHES="$work/launches" "$BOUNDS" || exit 1
    awk '/^== / { on = /sm_90/ } on' "$work/loops" >"$work/loop"
    awk -v counted=3 -f "$(dirname "$0")/bounds.awk" "$work/loop" "$work/launches"
fi
