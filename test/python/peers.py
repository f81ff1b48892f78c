# peers.py: the implementations that sd.c is compared with (transformers, diffusers, pytorch-fid), built from
# test/configs and filled with made weights (made.py). Nothing is downloaded.
import gzip
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel

import made
from trace import disk_name

HERE = Path(__file__).parent.parent


def config(arch, part):
    return json.loads((HERE / "configs" / arch / f"{part}.json").read_text())


def fill(model, prefix, hard, dtype=torch.float32):
    """Gives a model that was built on the meta device its made weights."""
    for name, parameter in list(model.named_parameters()):
        values = torch.from_numpy(made.made(disk_name(prefix, name), tuple(parameter.shape), hard)).to(dtype)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(values, requires_grad=False))
    for name, buffer in list(model.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        if leaf == "position_ids":
            value = torch.arange(buffer.shape[-1]).expand(buffer.shape)
            model.get_submodule(owner).register_buffer(leaf, value, persistent=False)
    return model.eval()


def empty(part, arch):
    """A model without weights: "text_encoder", "unet" or "vae"."""
    settings = config(arch, part)
    with torch.device("meta"):
        if part == "text_encoder":
            return CLIPTextModel(CLIPTextConfig(**{k: v for k, v in settings.items() if k != "torch_dtype"}))
        kind = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}[part]
        return kind.from_config(settings)


def model(part, arch, hard=False, dtype=torch.float32):
    return fill(empty(part, arch), part, hard, dtype)


def scheduler(arch, kind=None):
    settings = config(arch, "scheduler")
    names = {"pndm": "PNDMScheduler", "ddim": "DDIMScheduler", "lcm": "LCMScheduler",
             "euler-a": "EulerAncestralDiscreteScheduler"}
    return getattr(diffusers, names.get(kind, settings["_class_name"])).from_config(settings)


def made_input(name, shape, dtype=torch.float32):
    """A made tensor with standard deviation 1, as an input; the test in C makes the same."""
    return torch.from_numpy(made.made("input." + name, shape)).to(dtype)


# ---- tokens ------------------------------------------------------------------------------------------------


def clip_tokenizer(merges_gz):
    """transformers' CLIPTokenizer from OpenAI's merge list."""
    from transformers import CLIPTokenizer

    merges = gzip.open(merges_gz, "rt", encoding="utf-8").read().split("\n")[1 : 49152 - 256 - 2 + 1]
    symbols = [c for c, _ in byte_symbols()]
    vocab = symbols + [s + "</w>" for s in symbols] + ["".join(m.split()) for m in merges]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    folder = Path(tempfile.mkdtemp())
    (folder / "vocab.json").write_text(json.dumps({s: i for i, s in enumerate(vocab)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def byte_symbols():
    """(symbol, byte) in the order of CLIP's vocabulary: printable bytes first, the others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [(chr(b), b) for b in printable] + [(chr(256 + n), b) for n, b in enumerate(others)]


def byte_ids(text, vocab=514, length=32):
    """Tokens of the byte-level tokenizer without merges of `sd synth --arch tiny`; words of letters only."""
    number = {b: n for n, (_, b) in enumerate(byte_symbols())}
    ids = [vocab - 2]
    for word in text.lower().split():
        ids += [number[b] for b in word.encode()]
        ids[-1] += 256  # the symbol that ends a word
    ids = ids[: length - 1] + [vocab - 1]
    return ids + [vocab - 1] * (length - len(ids))


# ---- the pipeline ------------------------------------------------------------------------------------------


def pipeline(arch, hard=False, kind=None):
    pipe = diffusers.StableDiffusionPipeline(
        model("vae", arch, hard), model("text_encoder", arch, hard), None, model("unet", arch, hard),
        scheduler(arch, kind), None, None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, ids, negative_ids, **options):
    """Runs the pipeline on token ids (rows of a list); an array of 8-bit pictures. Seeds: 0 unless given."""
    states = pipe.text_encoder(torch.tensor([ids]))[0]
    negative = pipe.text_encoder(torch.tensor([negative_ids]))[0]
    options.setdefault("generator", torch.Generator().manual_seed(0))
    out = pipe(prompt_embeds=states, negative_prompt_embeds=negative, output_type="np", **options)
    return (out.images * 255).round().astype("uint8")
