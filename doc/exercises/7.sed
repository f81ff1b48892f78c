# cuda/tensor.h: how tiles of the tensor cores' product lie in shared memory
/ int at(int r, int c)/,/^    }/ s/r >> 1 & 3/r \& 3/
