# launch.sed: the one change that the emulator makes to a .cu file. Line numbers stay.
#   k<T><<<grid, block, shared, stream>>>(a, b)  ->  emu_launch(k<T>, "k<T>", emu_config(grid, block, shared, stream), a, b)
# The kernel's name with its template arguments, and <<<, stand on one line.
s/\([A-Za-z_][A-Za-z0-9_]*\(<[^<>]*>\)\{0,1\}\)<<</emu_launch(\1, "\1", emu_config(/g
s/>>>()/))/g
s/>>>(/), /g
