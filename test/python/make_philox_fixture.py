# make_philox_fixture.py: fixtures/philox.safetensors, for `--rng philox`: torch.randn on a GPU, made without
# a GPU.
#
# The values come from NVIDIA's curand_kernel.h, whose device functions nvcc also compiles for the host. The
# order in which PyTorch uses them is implemented here again, after
# distribution_elementwise_grid_stride_kernel and calc_execution_policy in
# ATen/native/cuda/DistributionTemplates.h. A second implementation in NumPy must agree: Philox from the paper
# (Salmon et al. 2011), checked with its authors' known answers (Random123), and Box-Muller in float64. One
# thing cannot be seen here: on a device curand computes sine and cosine by __sincosf, with an absolute error
# of about 5e-7 by NVIDIA's figures. A GPU's normal values may differ from these by some 3e-6.
#
#     python make_philox_fixture.py            needs nvcc
#
# `randn.SEED.N`, (3, at most 1024): samples, as in README.md, of three draws of torch.randn(N) from one
# generator.
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent.parent
CASES = [(0, 1), (1, 3), (2, 64), (1234, 16384), (2**40 + 5, 16384), (7, 1000000)]  # (seed, count)
MULTIPROCESSORS = 108  # of an A100; only draws of more than 221,184 values depend on it

PROGRAM = r"""
#define QUALIFIERS static inline __host__ __device__
#include <curand_kernel.h>
#include <cstdio>
#include <cstdlib>
#include <vector>
int main(int, char **argv) {
    unsigned long long seed = strtoull(argv[1], 0, 10), n = strtoull(argv[2], 0, 10), offset = 0;
    unsigned long long blocks = (n + 255) / 256, most = strtoull(argv[3], 0, 10) * 8;
    unsigned long long threads = 256 * (blocks < most ? blocks : most);
    for (int draw = 0; draw < 3; draw++) {
        std::vector<float> out(n);
        for (unsigned long long t = 0; t < threads; t++) {
            curandStatePhilox4_32_10_t state;
            curand_init(seed, t, offset, &state);
            for (unsigned long long first = t; first < n; first += 4 * threads) {
                float4 four = curand_normal4(&state);
                float x[4] = {four.x, four.y, four.z, four.w};
                for (int i = 0; i < 4; i++)
                    if (first + i * threads < n) out[first + i * threads] = x[i];
            }
        }
        fwrite(out.data(), sizeof(float), n, stdout);
        offset += ((n - 1) / (4 * threads) + 1) * 4;
    }
}
"""


def philox(counter, key):
    """Philox 4x32-10: counter (4 arrays), key (2 words) -> 4 arrays of 32-bit words."""
    low = np.uint64(0xFFFFFFFF)
    c, k = [np.asarray(x, np.uint64) for x in counter], list(key)
    for _ in range(10):
        even, odd = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [odd >> np.uint64(32) ^ c[1] ^ np.uint64(k[0]), odd & low,
             even >> np.uint64(32) ^ c[3] ^ np.uint64(k[1]), even & low]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


KNOWN = [  # Random123's kat_vectors: counter, key, result
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0],
     [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
]


def randn(seed, n, draw):
    """Element i belongs to thread i mod `threads`; the thread's index is the upper half of the counter. A
    round gives each thread four words, and two Box-Muller transforms make four values of them, `threads`
    apart."""
    threads = 256 * min(-(-n // 256), MULTIPROCESSORS * 8)
    rounds = -(-n // (4 * threads))
    out = np.empty((rounds, 4, threads))
    t = np.arange(threads)
    for r in range(rounds):
        w = philox([np.full(threads, draw * rounds + r), np.zeros(threads), t, np.zeros(threads)],
                   [seed % 2**32, seed >> 32])
        for pair in range(2):
            # u is in fp32, as curand has it: near 1 its rounding decides about the smallest radii.
            u = w[2 * pair].astype(np.float32) * np.float32(2**-32) + np.float32(2**-33)
            v = (w[2 * pair + 1].astype(np.float64) + 0.5) / 2**32
            radius = np.sqrt(-2 * np.log(u.astype(np.float64)))
            out[r, 2 * pair] = radius * np.sin(2 * np.pi * v)
            out[r, 2 * pair + 1] = radius * np.cos(2 * np.pi * v)
    return out.reshape(-1)[:n]


def main():
    for counter, key, words in KNOWN:
        assert [int(x) for x in philox(counter, key)] == words, "Random123's known answers"
    work, tensors = Path(tempfile.mkdtemp()), {}
    (work / "randn.cu").write_text(PROGRAM)
    subprocess.run(["nvcc", "-O1", "-o", work / "randn", work / "randn.cu"], check=True)
    for seed, n in CASES:
        raw = subprocess.run([work / "randn", str(seed), str(n), str(MULTIPROCESSORS)], check=True,
                             capture_output=True)
        x = np.frombuffer(raw.stdout, np.float32).reshape(3, n)
        error = np.max([abs(x[draw] - randn(seed, n, draw)).max() for draw in range(3)])
        print(f"seed {seed}, {n} values: curand and NumPy differ by {error:.1e}")
        assert error <= 4e-6  # fp32 angles up to 2 pi are 7e-7 off, radii are up to 5.5
        at = (np.arange(min(n, 1024)) * 2654435761 + 12345) % n
        tensors[f"randn.{seed}.{n}"] = torch.from_numpy(x[:, at].copy())
    save_file(tensors, str(HERE / "fixtures/philox.safetensors"))


if __name__ == "__main__":
    main()
