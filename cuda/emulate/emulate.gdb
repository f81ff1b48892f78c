# emulate.gdb: a debugger in a CUDA kernel. Build with `make emulate DEBUG=1`, then
#   gdb -x cuda/emulate/emulate.gdb --args ./sd-emulate sample ...
#   (gdb) thread-break gemm.cu:67 1 0 0 5 3 0     stop at that line in thread (5,3,0) of block (1,0,0)
#   (gdb) run
#   (gdb) next                                    stays with this thread, also across __syncthreads()
#   (gdb) print as                                a shared array, whole
#   (gdb) print threadIdx
#   (gdb) shared-floats 8                         the first 8 floats of dynamic shared memory
# One thread of the operating system runs all blocks, so that nothing else moves while this thread is looked at.
set breakpoint pending on
set print elements 0
set print repeats 0
set environment EMU_THREADS=1
handle SIGPIPE nostop noprint

define thread-break
  if $argc != 7
    echo thread-break FILE:LINE blockIdx.x .y .z threadIdx.x .y .z\n
  else
    break $arg0 if blockIdx.x == $arg1 && blockIdx.y == $arg2 && blockIdx.z == $arg3 && threadIdx.x == $arg4 && threadIdx.y == $arg5 && threadIdx.z == $arg6
  end
end
document thread-break
thread-break FILE:LINE bx by bz tx ty tz: stop there in one thread of one block.
end

define shared-floats
  print *(float *)dynamic_shared@$arg0
end
document shared-floats
shared-floats N: the first N floats of dynamic shared memory.
end
