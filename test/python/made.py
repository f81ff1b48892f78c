# made.py: made weights in NumPy, the same bits as weights/toy/made.c. Models of the real architecture whose
# parameters come from a counter-based generator, so that nothing but checksums has to be stored.
#
# Every tensor has a key, the 64-bit FNV-1a hash of its name ("unet.conv_in.weight"; Inception's names have
# no prefix). Elements 4j .. 4j+3 are made from the four words of Philox 4x32-10 (Salmon et al. 2011) at
# counter j. A word w gives k = (w mod 2^16) + (w div 2^16) - 65535, the sum of two uniform variables, and
#     value = mean + k * scale                   (one rounding to fp32)
# after which some rows and columns are multiplied by a power of two (exact) or get an addend (one more
# rounding). No step depends on a library's logarithm or sine, so C and Python agree in every bit.
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

K_VARIANCE = 715827882.5  # of k: 2 * (65536^2 - 1) / 12
OUTLIER = 32.0  # hard: how much larger some channels are
FAR = 131072.0  # hard: 2^17, towards both ends of fp16


def fnv1a(name):
    h = 14695981039346656037
    for byte in name.encode():
        h = ((h ^ byte) * 1099511628211) % 2**64
    return h


def philox(key, first, count):
    """Words of Philox 4x32-10 at counters first .. first + count - 1, as uint64 arrays of 32-bit values."""
    mask = np.uint64(0xFFFFFFFF)
    j = np.arange(first, first + count, dtype=np.uint64)
    c = [j & mask, j >> np.uint64(32), np.zeros_like(j), np.zeros_like(j)]
    spare = [np.empty_like(j), np.empty_like(j)]
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        p0 = np.multiply(c[0], np.uint64(0xD2511F53), out=spare[0])
        p1 = np.multiply(c[2], np.uint64(0xCD9E8D57), out=spare[1])
        free0, free2 = c[0], c[2]
        n0 = np.right_shift(p1, np.uint64(32), out=free0)
        n0 ^= c[1]
        n0 ^= np.uint64(k0)
        n2 = np.right_shift(p0, np.uint64(32), out=free2)
        n2 ^= c[3]
        n2 ^= np.uint64(k1)
        p1 &= mask
        p0 &= mask
        spare = [c[1], c[3]]
        c = [n0, p1, n2, p0]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


# Standard deviation of a weight times the square root of its fan-in, by the first row whose start and part
# fit the name. Chosen so that activations stay near unit size and every branch matters: inputs of SiLU are
# made larger, what is added to the residual stream is about half of it, attention logits have a standard
# deviation of 1.5 to 3, and averages over many values are scaled up again.
GAINS = [
    ("unet.conv_in", "", 0.4),
    ("unet.conv_out", "", 0.8),
    ("unet.up_blocks.3.", "conv_shortcut", 0.6),
    ("unet.", "time_embedding.linear_1", 1.4),
    ("unet.", "time_embedding.linear_2", 1.8),
    ("unet.", "time_emb_proj", 1.5),
    ("unet.", "attn1.to_v", 2.5),
    ("unet.", "attn2.to_q", 2.2),
    ("unet.", "attn2.to_v", 2.0),
    ("unet.", "attn2.to_out", 1.8),
    ("unet.", "proj_out", 0.7),
    ("unet.", "ff.net.0.proj", 1.3),
    ("unet.", "ff.net.2", 0.6),
    ("vae.encoder.conv_in", "", 2.0),
    ("vae.encoder.conv_out", "", 1.5),
    ("vae.decoder.conv_out", "", 0.8),
    ("vae.decoder.", "conv2.", 1.6),
    ("vae.post_quant_conv", "", 0.1),
    ("vae.quant_conv", "", 3.0),
    ("vae.", "to_q", 1.5),
    ("vae.", "to_k", 1.5),
    ("vae.", "to_v", 2.5),
    ("", "samplers.0.conv", 1.0),
    ("", "conv1.", 1.5),
    ("", "conv2.", 0.8),
    ("", "conv_shortcut", 0.9),
    ("", "to_q", 1.35),
    ("", "to_k", 1.35),
    ("", "to_out", 0.7),
    ("text_encoder.", "q_proj", 1.6),
    ("text_encoder.", "k_proj", 1.6),
    ("text_encoder.", "v_proj", 1.5),
    ("text_encoder.", "out_proj", 0.7),
    ("text_encoder.", "fc1", 1.2),
    ("text_encoder.", "fc2", 0.8),
    ("", ".conv.weight", 1.4),  # the rest is Inception's, before a ReLU
    ("", "", 1.0),
]
HARD_LOGITS = 3.0  # hard: the gain of query and key


def mean_and_deviation(name, shape, hard):
    if name.startswith("input."):
        return 0.0, 1.0
    if name.endswith("running_var"):
        return 1.0, 0.2
    if name.endswith("running_mean"):
        return 0.0, 0.3
    decoder = name.startswith("vae.decoder.")  # what is the same for every picture stays small there
    if "norm" in name or ".bn." in name:
        return (1.0, 0.2) if name.endswith(".weight") else (0.0, 0.06 if decoder else 0.3)
    if name.endswith(".bias"):
        return 0.0, 0.04 if decoder else 0.2
    if name.endswith("token_embedding.weight"):
        return 0.0, 1.0
    if name.endswith("position_embedding.weight"):
        return 0.0, 1.5
    gain = next(g for start, part, g in GAINS if name.startswith(start) and part in name)
    if hard and any(part in name for part in ("to_q.", "to_k.", "q_proj.", "k_proj.")):
        gain = HARD_LOGITS
    return 0.0, gain / math.sqrt(float(np.prod(shape[1:], dtype=np.int64)))


def add_straight_path(name, w):
    """A straight path for the noisy latents through the UNet: conv_in copies latent channel o mod 4 to
    channel o, up_blocks.3 passes the skip connection on, conv_out averages the copies. So epsilon resembles
    the latents, as that of a trained network does, and sampling neither explodes nor stands still."""
    if not name.endswith(".weight"):
        return
    o = np.arange(len(w))
    if name.startswith("unet.conv_in"):
        w[o, o % w.shape[1], 1, 1] += np.where(o // w.shape[1] % 2, np.float32(-1), np.float32(1))
    elif name.startswith("unet.up_blocks.3.") and "conv_shortcut" in name:
        w[o, w.shape[1] - len(w) + o, 0, 0] += np.float32(2)
    elif name.startswith("unet.conv_out"):
        i = np.arange(w.shape[1])
        step = np.float32(STRAIGHT / w.shape[1])
        w[i % len(w), i, 1, 1] += np.where(i // len(w) % 2, -step, step)


STRAIGHT = 12.0


def harden(name, w):
    """Other numerical difficulties of trained networks than sharp attention."""
    rows, cols = len(w), w.shape[1] if w.ndim > 1 else 1
    # Some channels of the stream are 32 times as large as the others ...
    if any(p in name for p in ("conv2.", "proj_out.", "conv_in.", "fc2.")):
        w[5::64] *= np.float32(OUTLIER)
    if "position_embedding" in name:
        w[:, 5::64] *= np.float32(OUTLIER)
    # ... some groups of a group norm have a mean far larger than their standard deviation ...
    if name.endswith(("conv1.bias", "conv_in.bias")):
        w[rows // 4 : rows // 2] += np.float32(40)
    # ... and some weights are near the limits of fp16, at either end.
    small = "norm3." in name or "layer_norm2." in name or "vae." in name and "conv_norm_out." in name
    large = ("ff.net.0.proj.weight", "fc1.weight")
    if small:
        w[7::64] *= np.float32(1 / FAR)
    if name.endswith(large) or name in ("vae.encoder.conv_out.weight", "vae.decoder.conv_out.weight"):
        w[:, 7::64] *= np.float32(FAR)


def harden_inception(name, w):
    """The same for Inception, which has neither attention nor group norms."""
    # Only channels that are not negative everywhere are made large: others end in the ReLU.
    loud = ("Mixed_5b.branch1x1.bn.", "Mixed_6b.branch1x1.bn.", "Mixed_7b.branch1x1.bn.")
    if name.startswith(loud) and name.endswith((".weight", ".bias")):
        w[11::64] *= np.float32(OUTLIER)
    # A convolution's channel near one limit of fp16, its batch norm's weight near the other.
    if name.endswith(".conv.weight"):
        w[7::64] *= np.float32(FAR)
    if name.endswith(".bn.weight"):
        w[7::64] *= np.float32(1 / FAR)


pool = ThreadPoolExecutor(2)


def made(name, shape, hard=False):
    count = int(np.prod(shape, dtype=np.int64))
    mean, deviation = mean_and_deviation(name, shape, hard)
    scale = float(np.float32(deviation / math.sqrt(K_VARIANCE)))
    key, out = fnv1a(name), np.empty((count + 3) // 4 * 4, np.float32)

    def fill(first, blocks=1 << 13):
        blocks = min(blocks, len(out) // 4 - first)
        low16 = np.uint64(0xFFFF)
        part = out[4 * first : 4 * (first + blocks)].reshape(blocks, 4)
        for lane, w in enumerate(philox(key, first, blocks)):
            k = (w & low16) + (w >> np.uint64(16))
            part[:, lane] = (k.view(np.int64) - 65535) * scale + mean

    list(pool.map(fill, range(0, len(out) // 4, 1 << 13)))
    w = out[:count].reshape(shape)
    add_straight_path(name, w)
    if hard:
        harden_inception(name, w) if name.startswith("Mixed_") else harden(name, w)
    return w
