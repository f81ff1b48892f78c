// npz.c: any bytes as a .npz archive, a .npy array, a compressed stream.
#define _GNU_SOURCE // memmem
#include "lib/io/npz.c"
#include "fuzz.h"

static void fuzz_one(unsigned char *data, size_t size) {
    if (!size) return;
    int64_t shape[4];
    int ndim;
    size_t n;
    // The first byte chooses, so that mutations reach what the archive's checksum would hide. 'P' begins a
    // zip, 0x93 a .npy, 0x1f gzip, 0x78 zlib: so whole files are seeds, too.
    switch (data[0] % 4) {
    case 0: {
        Zip z = {"x", data, size};
        if (memmem(data, size, "mu.npy", 6))
            free(read_archive(&z, "mu", 1 << 20, shape, &ndim));
        else if (memmem(data, size, "f8.npy", 6))
            free(read_archive(&z, "f8", 1 << 20, shape, &ndim));
        free(inflate_gzip(data, size, &n));
        break;
    }
    case 1: {
        unsigned char *out = malloc(1 << 16);
        inflate_into(out, 1 << 16, data + 1, size - 1);
        free(out);
        break;
    }
    case 2: free(inflate_gzip(data + 1, size - 1, &n)); break;
    case 3: free(inflate_gzip(data, size, &n)); free(read_npy(data, size, "x", shape, &ndim));
    }
}
