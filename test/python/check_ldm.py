# check_ldm.py: models in one file with the original code's names, both ways against diffusers' single-file
# loader.
#
#     python check_ldm.py [--sd ./sd] [--work DIR]      about 6 GB of disk and of memory
#
# 1. What `sd synth --layout ldm` writes is opened by StableDiffusionPipeline.from_single_file (offline, with
#    a local configuration), and every tensor there has the same bits as that of `sd synth --layout
#    diffusers`.
# 2. The tensors' bits also tell which original name belongs to which of diffusers' names. With this table,
#    not ours, a second file is written from diffusers' weights; sd draws the same picture from it as from the
#    folder.
import argparse
import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import peers
from trace import disk_name

PARTS = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}


def run(*arguments):
    subprocess.run([str(a) for a in arguments], check=True)


def bits(t):
    t = t.contiguous().reshape(-1).view(torch.int16 if t.element_size() == 2 else torch.int32)
    return hashlib.sha1(t.numpy().tobytes()).digest()


def write_configuration(folder, tokenizer):
    for part in PARTS:
        (folder / part).mkdir(parents=True)
        shutil.copy(peers.HERE / "configs" / "sd15" / f"{part}.json", folder / part / "config.json")
    (folder / "scheduler").mkdir()
    shutil.copy(peers.HERE / "configs" / "sd15" / "scheduler.json",
                folder / "scheduler" / "scheduler_config.json")
    shutil.copytree(tokenizer, folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps({
        "_class_name": "StableDiffusionPipeline", "feature_extractor": [None, None],
        "image_encoder": [None, None], "requires_safety_checker": False, "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"]}))


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--sd", default="./sd")
    p.add_argument("--work", type=Path)
    a = p.parse_args()
    work = a.work or Path(tempfile.mkdtemp())
    run(a.sd, "synth", work / "ldm", "--layout", "ldm", "--dtype", "f16", "-q")
    run(a.sd, "synth", work / "folder", "--layout", "diffusers", "--dtype", "f16", "-q")
    write_configuration(work / "config", work / "ldm" / "tokenizer")

    file = work / "ldm" / "model.safetensors"
    pipe = StableDiffusionPipeline.from_single_file(str(file), config=str(work / "config"),
                                                    local_files_only=True, torch_dtype=torch.float16)
    original = safe_open(file, "pt")
    names = {}  # the bits of a tensor -> the original name
    for name in original.keys():
        assert names.setdefault(bits(original.get_tensor(name)), name) == name, name
    table, wrong = {}, []
    for part, base in PARTS.items():
        own = safe_open(work / "folder" / part / f"{base}.safetensors", "pt")
        loaded = {disk_name(part, n).removeprefix(part + "."): t
                  for n, t in getattr(pipe, part).state_dict().items()
                  if "position_ids" not in n}
        if set(loaded) != set(own.keys()):
            wrong.append(f"{part}: the names differ: {sorted(set(loaded) ^ set(own.keys()))[:5]}")
        for name, t in loaded.items():
            if name not in own.keys() or not torch.equal(t, own.get_tensor(name)):
                wrong.append(f"{part}.{name}")
            table[names.get(bits(t))] = (part, name)
    print(f"from_single_file: {len(table)} tensors, {len(wrong)} differ", *wrong[:5])
    del pipe

    tensors = {}
    for name in original.keys():
        part, own = table[name]
        t = safe_open(work / "folder" / part / f"{PARTS[part]}.safetensors", "pt").get_tensor(own)
        tensors[name] = t.reshape(original.get_slice(name).get_shape()).clone()
    save_file(tensors, str(work / "again.safetensors"), {"format": "pt"})
    del tensors
    draw = ["-p", "a dog", "--steps", 2, "-W", 64, "-H", 64, "-q"]
    run(a.sd, "sample", "-m", work / "folder", *draw, "-o", work / "folder.png")
    run(a.sd, "sample", "-m", work / "again.safetensors", "--tokenizer", work / "ldm" / "tokenizer", *draw,
        "-o", work / "again.png")
    one, two = (np.asarray(Image.open(work / f"{n}.png")).astype(int) for n in ("folder", "again"))
    print(f"sd from a file written by diffusers' table: {np.count_nonzero(one != two)} of {one.size} values "
          f"differ, standard deviation {one.std():.0f}")
    ok = not wrong and (one == two).all() and len(table) == len(names)
    print(f"{int(ok)} passed, {int(not ok)} failed, 0 skipped")
    if not a.work:
        shutil.rmtree(work)
    return not ok


if __name__ == "__main__":
    raise SystemExit(main())
