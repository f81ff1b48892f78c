# reference.py: writes the expected outputs under test/fixtures, from PyTorch, diffusers and transformers with
# made weights; and compares live. What is in each file: fixtures/README.md.
#
#     python reference.py checksums|noise|schedulers|tiny|text|unet|vae|pipeline    one family of fixtures
#     python reference.py fixtures                                                  all of them (hours: full size)
#     python reference.py compare [--sd ./sd] [--arch tiny] [--model DIR]           ./sd against the peers, live
import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import made
import peers
from trace import Blocks, Trace

FIXTURES = peers.HERE / "fixtures"


def save(name, tensors, **metadata):
    path = FIXTURES / f"{name}.safetensors"
    tensors = {k: torch.as_tensor(v).contiguous() for k, v in tensors.items()}
    save_file(tensors, str(path), {k: str(v) for k, v in metadata.items()})
    print(f"{path.name}: {len(tensors)} tensors, {path.stat().st_size} bytes", flush=True)


# ---- checksums of made weights -----------------------------------------------------------------------------


def checksum(w):
    bits = w.reshape(-1).view(np.uint32).astype(np.uint64)
    return int((bits * (2 * np.arange(len(bits), dtype=np.uint64) + 1)).sum(dtype=np.uint64))


def checksums():
    from pytorch_fid.inception import fid_inception_v3  # noqa: F401 (its layers are torchvision's)

    shapes = {}
    for part in ("text_encoder", "unet", "vae"):
        with torch.device("meta"):
            for name, p in peers.empty(part, "tiny").named_parameters():
                shapes[peers.disk_name(part, name)] = tuple(p.shape)
            # Of the full-size models every 40th tensor.
            for name, p in list(peers.empty(part, "sd15-lcm").named_parameters())[::40]:
                shapes.setdefault(peers.disk_name(part, name), tuple(p.shape))
    shapes["unet.time_embedding.cond_proj.weight"] = (320, 256)
    shapes["input.unet.sample"] = (2, 4, 48, 80)
    for name, shape in [("Conv2d_1a_3x3.conv.weight", (32, 3, 3, 3)), ("Mixed_5b.branch1x1.bn.weight", (64,)),
                        ("Mixed_5b.branch1x1.bn.bias", (64,)), ("Mixed_5b.branch1x1.bn.running_mean", (64,)),
                        ("Mixed_5b.branch1x1.bn.running_var", (64,)), ("fc.weight", (1008, 2048)), ("fc.bias", (1008,))]:
        shapes[name] = shape
    with open(FIXTURES / "made.txt", "w") as f:
        for name, shape in shapes.items():
            soft, hard = (checksum(made.made(name, shape, h)) for h in (False, True))
            f.write(f"{name} {'x'.join(map(str, shape))} {soft:016x} {hard:016x}\n")
    print(f"made.txt: {len(shapes)} tensors")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    checksums()
