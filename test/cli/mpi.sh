# mpi.sh: what the tests of ranks share, behind check.sh. $sd is the program of many ranks.
if ! command -v mpicc >/dev/null || ! command -v mpirun >/dev/null; then
    echo "no mpicc or mpirun here"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
# More ranks than processors, on any of them; Open MPI asks twice before it runs as root.
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
ranks() { n=$1 && shift && mpirun -n "$n" "$sd" "$@" >out.txt 2>err; }
same() { if cmp "$1" "$2" >difference 2>&1; then ok; else bad "$3"; fi; }
# What a log says of the training, without what the clock says.
log() { sed 's/, "samples_per_s.*//' "run/$1/log.jsonl"; }
same_log() { log "$1" >a && log "$2" >b && same a b "the log is the same on $2"; }
