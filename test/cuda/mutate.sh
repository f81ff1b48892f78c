#!/bin/sh
# mutate.sh KIND BUILD [FILE[:LINE]...]: breaks the kernels on purpose, one statement at a time, in a copy of
# the tree, and sees whether the tests notice.
#   sync   every __syncthreads, __syncwarp, cp_async_wait and cp_async_commit of cuda/ is deleted in turn. A
#          mistake is noticed when the checked emulator reports it or a result is wrong; statements that no
#          test needs should go.
#   ptx    mistakes in the inline assembly of ptx.h (registers swapped, .trans dropped, ...), which only a
#          build by nvcc sees: run under ptxrun (PTXRUN_LIB: its lib folder).
kind=$1 build=$2; shift 2
tree=$(mktemp -d); trap 'rm -rf "$tree"' EXIT
cp -r Makefile cuda cpu lib cli sd.h test "$tree"; mkdir -p "$tree/weights"
here=$(pwd); cd "$tree" || exit 1
passed=0 failed=0
report() { # 1: noticed
    if [ "$1" = 1 ]; then passed=$((passed + 1)); echo "noticed  $2"
    else failed=$((failed + 1)); echo "FAILED   not noticed: $2"; fi
}
noticed() { # a test program, by its name, its arguments; status 0 of the program means that it saw nothing
    program=$build/check-f32/$1; shift
    make -s BUILD="$build" "$program" >make.log 2>&1 || { tail -n 3 make.log; return 1; }
    ! (cd "$here" && EMU_ABORT=1 timeout 3600 "$program" "$@") >run.log 2>&1
}
case $kind in
sync)
    waits='__syncthreads\(\);|__syncwarp\(\);|cp_async_wait<[^>]*>\(\);|cp_async_commit\(\);'
    for place in $(grep -nE "$waits" cuda/*.cu cuda/tile.h cuda/tensor.h cuda/device.h | cut -d: -f1,2); do
        file=${place%:*} line=${place#*:}
        [ $# -gt 0 ] && case " $* " in *" ${file#*/} "* | *" ${place#*/} "*) ;; *) continue ;; esac
        cp "$file" keep
        sed -i -E "${line}s/$waits//" "$file"
        case $file in # the tests of that file's kernels
        cuda/gemm.cu | cuda/tile.h | cuda/tensor.h) tests=gemm ;;
        cuda/conv.cu) tests=conv ;;
        cuda/attention.cu)
            case $(head -n "$line" cuda/attention.cu | grep '^// ---- ' | tail -n 1) in
            *tensor*) tests=attention ;;
            *) tests='kernels attention' ;;
            esac ;;
        cuda/memory.cu) tests='kernels fill_copy' ;;
        cuda/norm.cu) tests='kernels sum_rows group_norm layer_norm' ;;
        *) tests=kernels ;;
        esac
        noticed $tests; ok=$?
        said=$(grep -o -m 1 -E 'emulate: .*|FAILED.*' run.log | head -n 1 | cut -c1-110)
        report $((1 - ok)) "$place $(sed -n "${line}p" keep | sed 's/^ *//' | cut -c1-70) -> $said"
        cp keep "$file"; touch "$file"
    done ;;
ptx)
    flags="-std=c++17 -O3 -lineinfo -I. -cudart shared -gencode arch=compute_80,code=compute_80 -no-compress"
    cp cuda/ptx.h keep
    while IFS='|' read name from to; do # without -r: a line that ends with a backslash goes on in the next
        [ -n "$name" ] || continue
        FROM=$from TO=$to perl -0pe \
            'BEGIN { $f = $ENV{FROM}; $t = $ENV{TO} } $n = s/\Q$f\E/$t/; END { exit !$n }' \
            keep >cuda/ptx.h || { report 0 "$name (no such text)"; continue; }
        ${NVCC:-nvcc} $flags test/cuda/wrap.cu -o wrap 2>make.log ||
            { report 1 "$name (does not compile)"; continue; }
        LD_LIBRARY_PATH=$PTXRUN_LIB timeout 120 ./wrap >run.log 2>&1; status=$?
        report $((status != 0)) "$name -> $(grep -m 1 -E '^FAILED|^ptxrun:' run.log | cut -c1-70)"
    done <<'LIST'
mma: a1 and a2 swapped|"r"(a[1]), "r"(a[2])|"r"(a[2]), "r"(a[1])
mma: b0 and b1 swapped|"r"(b[0]), "r"(b[1]))|"r"(b[1]), "r"(b[0]))
mma: d0 d1 and d2 d3 swapped|"+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])|\
"+f"(d[2]), "+f"(d[3]), "+f"(d[0]), "+f"(d[1])
mma: bf16 taken for f16|m16n8k16.row.col.f32.bf16.bf16.f32|m16n8k16.row.col.f32.f16.f16.f32
ldmatrix x4: r1 and r2 swapped|"=r"(r[1]), "=r"(r[2])|"=r"(r[2]), "=r"(r[1])
ldmatrix x2: r0 and r1 swapped|: "=r"(r[0]), "=r"(r[1])  |: "=r"(r[1]), "=r"(r[0])  
.trans dropped|LDMATRIX(_trans, ".trans")|LDMATRIX(_trans, "")
.trans where none belongs|LDMATRIX(, "")|LDMATRIX(, ".trans")
cp.async: zero fill inverted|"r"(bytes)|"r"(16 - bytes)
cp.async: source size forgotten|[%0], [%1], 16, %2;"|[%0], [%1], 16;"
cp.async: 8 bytes|cp.async.cg.shared.global [%0], [%1], 16, %2;"|cp.async.ca.shared.global [%0], [%1], 8;"
wait for one group less|::"n"(N)|::"n"(N + 1)
commit forgotten|asm volatile("cp.async.commit_group;" ::: "memory");|
generic address taken for a shared one|(uint32_t)__cvta_generic_to_shared(p)|(uint32_t)(uintptr_t)p
round_tf32: to even|cvt.rna.tf32.f32|cvt.rn.tf32.f32
round_tf32: not at all|asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(u) : "f"(f));|u = __float_as_uint(f);
LIST
    ;;
esac
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
