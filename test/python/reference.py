# reference.py: writes the expected outputs in test/fixtures, from PyTorch, diffusers and transformers with
# made weights; and compares live. What is in each file: fixtures/README.md.
#
#     python reference.py COMMAND [ARGUMENTS]
#     checksums, noise, schedulers, rounded    bits of made weights, torch.randn, scheduler steps, fp16
#     models ARCH [PART ...], models_hard, wide, reduced
#                                              every block of a model: soft in fp32, hard in float64
#     pipeline ARCH SCHEDULER STEPS            a whole picture (full size: needs CLIP's merges)
#     fixtures                                 all of these (hours: full size, float64; 12 GB of memory)
#     statistics [ARCH]                        how soft and how hard the two regimes are
#     compare [--arch A | --model DIR]         ./sd against diffusers, live; exit status 1 where they differ
import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import made
import peers
from trace import Blocks, Trace

FIXTURES = peers.HERE / "fixtures"

# Captions of Flickr8k for the whole pictures, and what CLIP's tokenizer makes of none and of the first
# (`tokens` checks it).
FLICKR = {"pndm": "A child in a pink dress is climbing up a set of stairs in an entry way .",
          "lcm": "A black dog and a tri-colored dog playing with each other on the road ."}
EMPTY = [49406] + [49407] * 76
CAPTION = [49406, 320, 2913, 530, 320, 3360, 2595, 533, 9877, 705, 320, 1167, 539, 9577, 530, 550, 5362, 923,
           269]
CAPTION += [49407] * (77 - len(CAPTION))


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
                        ("Mixed_5b.branch1x1.bn.running_var", (64,)),
                        ("Mixed_6a.branch3x3dbl_1.conv.weight", (64, 288, 1, 1)),
                        ("Mixed_7b.branch1x1.bn.bias", (320,)), ("fc.weight", (1008, 2048)),
                        ("fc.bias", (1008,))]:
        shapes[name] = shape
    with open(FIXTURES / "made.txt", "w") as f:
        for name, shape in shapes.items():
            soft, hard = (checksum(made.made(name, shape, h)) for h in (False, True))
            f.write(f"{name} {'x'.join(map(str, shape))} {soft:016x} {hard:016x}\n")
    print(f"made.txt: {len(shapes)} tensors")


# ---- what the two regimes are like -------------------------------------------------------------------------


class Statistics:
    """Hooks that gather, over a whole model: the largest attention logit and the median standard deviation of
    a row of logits, the largest |mean| / deviation of a group before a group norm, the ratio of the largest
    channel to the median one."""

    def __init__(self, model, prefix):
        self.logits, self.deviation, self.group, self.channel, self.size = [0.0], [], [0.0], [], []
        query = {}

        def attention(module, heads, q_part, k_part):
            def on_q(m, a, out):
                query[module] = out.float()

            def on_k(m, a, out):
                q = query[module]
                if q.ndim == 4:
                    return
                d = q.shape[-1] // heads
                q = q.unflatten(-1, (heads, d)).transpose(1, 2)[:, :, :512]
                k = out.float().unflatten(-1, (heads, d)).transpose(1, 2)
                logits = q @ k.transpose(-1, -2) / math.sqrt(d)
                self.logits.append(logits.abs().max().item())
                self.deviation.append(logits.std(-1).median().item())

            q_part.register_forward_hook(on_q)
            k_part.register_forward_hook(on_k)

        def on_norm(m, a):
            x = a[0].float()
            g = x.reshape(len(x), m.num_groups, -1)
            self.group.append((g.mean(-1).abs() / g.std(-1)).max().item())

        def on_block(m, a, out):
            out = out if torch.is_tensor(out) else out[0]
            self.size.append(out.std().item())
            if out.ndim >= 3:
                x = out.float().flatten(2).transpose(1, 2) if out.ndim == 4 else out.float()
                rms = x.std(dim=(0, 1))
                self.channel.append((rms.max() / rms.median()).item())

        from trace import BLOCK

        for name, m in model.named_modules():
            if hasattr(m, "to_q"):
                attention(m, m.heads, m.to_q, m.to_k)
            elif hasattr(m, "q_proj"):
                attention(m, m.num_heads, m.q_proj, m.k_proj)
            elif isinstance(m, torch.nn.GroupNorm):
                m.register_forward_pre_hook(on_norm)
            if BLOCK.match(name):
                m.register_forward_hook(on_block)
        self.weights = np.max([p.abs().max().item() for p in model.parameters()])

    def line(self):
        deviation = np.median(self.deviation) if self.deviation else 0.0
        return (f"block std {min(self.size):.2f} .. {max(self.size):.2f} | "
                f"largest logit {max(self.logits):.1f}, median std {deviation:.2f} | "
                f"group mean/std {max(self.group):.1f} | "
                f"largest/median channel {max(self.channel):.1f} | largest weight {self.weights:.0f}")


def statistics(arch="tiny"):
    size = peers.config(arch, "unet")["sample_size"]
    for hard in (False, True):
        for part, run in calls(arch, size, torch.float32).items():
            model = peers.model(part.split(".")[0], arch, hard)
            s = Statistics(model, part)
            run(model)
            print(arch, "hard" if hard else "soft", part, s.line(), flush=True)


# ---- one evaluation of each model --------------------------------------------------------------------------


def token_rows(arch):
    """Rows of token ids for the text encoder: no caption, then a caption."""
    if arch == "tiny":
        return [peers.byte_ids(""), peers.byte_ids("a child in a pink dress")]
    return [EMPTY, CAPTION]


def calls(arch, size, dtype, height=None, width=None):
    """The evaluations for fixtures: inputs are made tensors, timesteps 501 and 21 in a batch."""
    h, w = height or size, width or size
    cross = peers.config(arch, "unet")["cross_attention_dim"]
    length = peers.config(arch, "text_encoder")["max_position_embeddings"]
    return {
        "text_encoder": lambda m: m(torch.tensor(token_rows(arch)))[0],
        "unet": lambda m: m(
            peers.made_input("unet.sample", (2, 4, h, w), dtype),
            torch.tensor([501, 21]),
            peers.made_input("unet.context", (2, length, cross), dtype),
            timestep_cond=peers.made_input("unet.timestep_cond", (2, 256), dtype)
            if m.config.time_cond_proj_dim else None,
        ).sample,
        "vae.encoder": lambda m: m.encode(
            peers.made_input("vae.image", (1, 3, 8 * size, 8 * size), dtype) * 0.4
        ).latent_dist.parameters,
        "vae.decoder": lambda m: m.decode(peers.made_input("vae.latents", (1, 4, size, size), dtype)
                                          * 5).sample,
    }


# ---- fixtures of whole models ------------------------------------------------------------------------------

SAMPLES = 128
SAMPLES_HARD = 1024  # largest errors are compared there: with few samples that would be a matter of chance


def sample(x, count=SAMPLES):
    """Entries (k * 2654435761 + 12345) mod n, k = 0 .. count - 1: scattered over all axes of the tensor."""
    x = x.reshape(-1)
    return x[(torch.arange(count) * 2654435761 + 12345) % len(x)].clone()


def summary(x):
    x = x.double()
    return torch.tensor([x.mean(), x.std(correction=0), x.abs().max(), x.numel()], dtype=torch.float64)


def run_blocks(part, arch, hard, run, dtype=torch.float32):
    """(block name -> its whole output, in order of evaluation; the model)"""
    prefix = part.split(".")[0]
    model = peers.model(prefix, arch, hard, dtype)
    if dtype == torch.float64 and prefix == "unet":
        # diffusers computes the sinusoids in fp32 whatever the model's type; the float64 run must not.
        model.time_proj.forward = lambda t: sinusoids(t, model.config.block_out_channels[0])
    blocks = Blocks(model, prefix, keep=lambda x: x.detach().clone())
    start = time.time()
    run(model)
    print(f"  {arch} {part} {'hard' if hard else 'soft'} {dtype}: {time.time() - start:.1f} s", flush=True)
    blocks.remove()
    out = {}
    for call in blocks.calls:
        out.update(call)
    return out


def sinusoids(t, width):
    f = torch.exp(-math.log(10000) * torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    x = t.double()[:, None] * f[None]
    return torch.cat([torch.cos(x), torch.sin(x)], -1)


def soft_fixture(name, part, arch, run, whole=()):
    tensors = {}
    for block, x in run_blocks(part, arch, False, run).items():
        tensors[block] = sample(x)
        tensors[block + ".summary"] = summary(x)
        if block in whole:
            tensors[block + ".whole"] = x
    save(name, tensors, torch=torch.__version__,
         order=" ".join(k for k in tensors if "." in k and "summary" not in k))


def backwards(function, channels):
    """The same function, but its sums over channels are added from the last to the first."""
    return lambda x, w, *rest, **named: function(x.flip(channels), w.flip(channels), *rest, **named)


def single_runs(run):
    """What `run` gives in fp32, sums of linear layers and of convolutions forwards or backwards: where a
    softmax is sharp, the error of one order is a matter of chance, and another one's up to four times as
    large. Without oneDNN, some of whose convolutions err ten times as much, by the machine it runs on."""
    linear, conv = F.linear, F.conv2d
    with torch.backends.mkldnn.flags(enabled=False):
        for linears in (linear, backwards(linear, -1)):
            for convolutions in (conv, backwards(conv, 1)):
                with patch.object(F, "linear", linears), patch.object(F, "conv2d", convolutions):
                    yield run()


def hard_fixture(name, part, arch, size, **shape):
    """Samples of the float64 run; the largest errors of PyTorch's fp32 against it, over the whole block and
    over the samples."""
    singles = list(single_runs(lambda: run_blocks(part, arch, True,
                                                  calls(arch, size, torch.float32, **shape)[part])))
    double = run_blocks(part, arch, True, calls(arch, size, torch.float64, **shape)[part], torch.float64)
    tensors = {}
    for block, want in double.items():
        scale = want.abs().max()
        errors = [(single.pop(block).double() - want).abs() / scale for single in singles]
        error = torch.stack([e.max() for e in errors]).max()
        sampled = torch.stack([sample(e, SAMPLES_HARD).max() for e in errors]).max()
        tensors[block] = sample(want, SAMPLES_HARD)
        tensors[block + ".summary"] = summary(want)
        tensors[block + ".fp32_error"] = torch.stack([error, sampled]).double()
        print(f"    {block:48} largest {scale:10.3f}  fp32 error {error:.1e}", flush=True)
    save(name, tensors, torch=torch.__version__)


MERGES = peers.HERE.parent.parent / "shared/data/clip/bpe_simple_vocab_16e6.txt.gz"


def clip_ids(text):
    return peers.clip_tokenizer(MERGES)(text, padding="max_length", truncation=True, max_length=77).input_ids


def tokens():
    for text, ids in (("", EMPTY), (FLICKR["pndm"], CAPTION)):
        assert clip_ids(text) == ids, text


ENDS = {"text_encoder": ["text_encoder.text_model.final_layer_norm"], "unet": ["unet.conv_out"],
        "vae.encoder": ["vae.quant_conv"], "vae.decoder": ["vae.decoder.conv_out"]}


def models(arch, *parts):
    """Soft fixtures of each model of an architecture: NAME-soft-PART."""
    size = peers.config(arch, "unet")["sample_size"]
    for part, run in calls(arch, size, torch.float32).items():
        if not parts or part in parts:
            soft_fixture(f"{arch}-soft-{part}", part, arch, run, ENDS[part] if arch == "tiny" else ())


def models_hard(arch, *parts):
    size = peers.config(arch, "unet")["sample_size"]
    for part in calls(arch, size, torch.float32):
        if not parts or part in parts:
            hard_fixture(f"{arch}-hard-{part}", part, arch, size)


def wide():
    """UNets on latents that are not square: the tiny one on 5x9, odd at every level; the full-size on
    48x80."""
    soft_fixture("tiny-soft-unet-5x9", "unet", "tiny", calls("tiny", 0, torch.float32, 5, 9)["unet"])
    soft_fixture("sd15-soft-unet-48x80", "unet", "sd15", calls("sd15", 0, torch.float32, 48, 80)["unet"])


def reduced():
    """The full-size networks on small pictures, for an emulated GPU."""
    run = calls("sd15", 8, torch.float32, 8, 16)
    for part, size in (("unet", "8x16"), ("vae.encoder", "64x64"), ("vae.decoder", "8x8")):
        soft_fixture(f"sd15-soft-{part}-{size}", part, "sd15", run[part])


def rounded():
    """The tiny UNet with weights rounded to fp16 and bf16, then fp32 again."""
    tensors = {}
    for dtype in (torch.float16, torch.bfloat16):
        model = peers.model("unet", "tiny")
        for p in model.parameters():
            p.data = p.data.to(dtype).float()
        tensors[str(dtype).split(".")[1]] = calls("tiny", 16, torch.float32)["unet"](model)
    save("tiny-rounded-unet", tensors)


# ---- noise and schedulers ----------------------------------------------------------------------------------


def noise():
    """Three draws from one generator: every size from 1 to 64 (seed = size), and 4x64x64 (seed 1234)."""
    tensors = {}
    for n in range(1, 65):
        torch.manual_seed(n)
        tensors[f"randn.{n}"] = torch.stack([torch.randn(n) for _ in range(3)])
    torch.manual_seed(1234)
    tensors["randn.4x64x64"] = torch.stack([sample(torch.randn(4, 64, 64), 1024) for _ in range(3)])
    save("noise", tensors)


def schedulers():
    """Each scheduler with made model outputs: timesteps, and the latents after each step. LCM's noise comes
    from PyTorch's generator with seed 0."""
    tensors = {}
    shape = (1, 4, 4, 4)
    for kind in ("pndm", "ddim", "lcm"):
        for steps in (1, 4, 20, 50):
            s = peers.scheduler("sd15-lcm" if kind == "lcm" else "sd15", kind)
            s.set_timesteps(steps)
            x, after = peers.made_input("scheduler.sample", shape), []
            generator = torch.Generator().manual_seed(0)
            for i, t in enumerate(s.timesteps):
                output = peers.made_input(f"scheduler.output.{i}", shape)
                options = {"generator": generator} if kind == "lcm" else {}
                x = s.step(output, t, x, **options).prev_sample
                after.append(x.flatten())
            tensors[f"{kind}.{steps}.timesteps"] = s.timesteps.to(torch.int64)
            tensors[f"{kind}.{steps}.latents"] = torch.stack(after)
    save("schedulers", tensors)


# ---- the whole pipeline ------------------------------------------------------------------------------------


PIXELS = 65536  # of a picture at full size


def picture(arch, kind, steps, guidance=7.5, whole=True, ids=None, size=None, seed=0):
    pipe = peers.pipeline(arch, kind=kind)
    after = []

    def on_step(pipe, i, t, values):
        after.append(values["latents"].clone())
        print(f"  {arch} {kind} step {i + 1} of {steps}, latents {after[-1].std():.3f}", flush=True)
        return values

    negative, caption = token_rows(arch)
    size = size or 8 * peers.config(arch, "unet")["sample_size"]
    start = time.time()
    image = peers.draw(pipe, ids or caption, negative, num_inference_steps=steps, guidance_scale=guidance,
                       width=size, height=size, callback_on_step_end=on_step,
                       generator=torch.Generator().manual_seed(seed))[0]
    print(f"  {arch} {kind} {steps} steps: {time.time() - start:.0f} s, std {image.std():.1f}, "
          f"clipped {np.isin(image, (0, 255)).mean():.4f}", flush=True)
    image = torch.from_numpy(image)
    return {
        "ids": torch.tensor([negative, ids or caption], dtype=torch.int32),
        "latents": after[-1],
        "steps": torch.stack([sample(x) for x in after]),
        "picture": image if whole else sample(image, PIXELS),
        "std": torch.tensor([image.double().std()]),
    }


def pipeline(arch, kind, steps, guidance=7.5):
    """Seed 0, no negative prompt; 8-bit picture height x width x 3 (at full size PIXELS sampled values)."""
    steps, tiny = int(steps), arch == "tiny"
    prompt = "a child in a pink dress" if tiny else FLICKR[kind]
    save(f"{arch}-picture-{kind}-{steps}",
         picture(arch, kind, steps, float(guidance), whole=tiny, ids=None if tiny else clip_ids(prompt)),
         guidance=guidance, seed=0, prompt=prompt)


# ---- ./sd beside the peers, live ---------------------------------------------------------------------------


def sd(*arguments):
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    if done.returncode:
        print(f"FAILED {' '.join(map(str, arguments))}: exit {done.returncode}: {done.stderr.strip()}")
    return done


def judge(what, used, allowed):
    ok = used <= allowed  # NaN fails
    print(f"{'ok' if ok else 'FAILED'}  {what}: {used:.2g}, allowed {allowed:.2g}", flush=True)
    return ok


def compare(*arguments):
    """A model (synthesised unless --model names one) through ./sd and through diffusers: every block of a
    guided step, pictures with each scheduler, the VAE both ways. Exit status 1 where something differs."""
    from diffusers import StableDiffusionPipeline
    from PIL import Image

    p = argparse.ArgumentParser(prog="reference.py compare")
    p.add_argument("--sd", default="./sd")
    p.add_argument("--arch", default="tiny")
    p.add_argument("--model")
    p.add_argument("--steps", type=int, default=4)
    p.add_argument("--prompt", default="a child in a pink dress")
    a = p.parse_args(arguments)
    work = Path(tempfile.mkdtemp())
    folder = a.model or work / "model"
    if not a.model and sd(a.sd, "synth", folder, "--arch", a.arch).returncode:
        return 1
    pipe = StableDiffusionPipeline.from_pretrained(str(folder), torch_dtype=torch.float32,
                                                   safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    good = []

    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    options = dict(width=size, height=size, guidance_scale=7.5)
    with Trace(pipe) as t:
        pipe(a.prompt, num_inference_steps=2, generator=torch.Generator().manual_seed(0), **options)
    t.save(work / "trace.safetensors")
    verdict = sd(a.sd, "verify", "-m", folder, work / "trace.safetensors", "--json")
    if verdict.returncode == 0:
        blocks = json.loads(verdict.stdout)["blocks"]
        good.append(judge(f"{len(blocks)} blocks of two steps", np.max([b["max_rel"] for b in blocks]), 1e-4))
    else:
        good.append(False)

    for kind in ("pndm", "ddim", "lcm"):
        names = {"pndm": "PNDMScheduler", "ddim": "DDIMScheduler", "lcm": "LCMScheduler"}
        import diffusers

        pipe.scheduler = getattr(diffusers, names[kind]).from_config(pipe.scheduler.config)
        want = pipe(a.prompt, num_inference_steps=a.steps, generator=torch.Generator().manual_seed(0),
                    **options).images[0]
        path = work / f"{kind}.png"
        sd(a.sd, "sample", "-m", folder, "-p", a.prompt, "--seed", 0, "--steps", a.steps, "--cfg", 7.5,
           "--scheduler", kind, "-W", size, "-H", size, "-o", path)
        if not path.exists():
            good.append(False)
            continue
        got, want = (np.asarray(x).astype(int) for x in (Image.open(path), want))
        good.append(judge(f"{kind}: fraction of 8-bit values more than 1 off (std {want.std():.0f})",
                          (abs(got - want) > 1).mean(), 1e-3))

    picture = work / "ddim.png"
    sd(a.sd, "encode", "-m", folder, picture, "-o", work / "latents.safetensors")
    pixels = torch.from_numpy(np.array(Image.open(picture))).permute(2, 0, 1)[None].float() / 127.5 - 1
    want = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    got = load_file(work / "latents.safetensors")["latents"]
    good.append(judge("encode", ((got - want).abs().max() / want.abs().max()).item(), 1e-4))
    sd(a.sd, "decode", "-m", folder, work / "latents.safetensors", "-o", work / "decoded.png")
    want = pipe.vae.decode(got / pipe.vae.config.scaling_factor).sample[0].permute(1, 2, 0)
    want = ((want / 2 + 0.5).clamp(0, 1) * 255).round().int().numpy()
    got = np.asarray(Image.open(work / "decoded.png")).astype(int)
    good.append(judge("decode: fraction of 8-bit values more than 1 off", (abs(got - want) > 1).mean(), 1e-3))
    print(f"{sum(good)} passed, {len(good) - sum(good)} failed, 0 skipped")
    return 0 if all(good) else 1


def fixtures():
    checksums(), noise(), schedulers(), rounded()
    for arch in ("tiny", "sd15"):
        models(arch)
        models_hard(arch)
    wide(), reduced()
    for arch, kind, steps in (("tiny", "pndm", 20), ("tiny", "ddim", 20), ("tiny", "lcm", 4),
                              ("tiny", "euler-a", 6), ("sd15", "pndm", 20), ("sd15-lcm", "lcm", 4)):
        pipeline(arch, kind, steps)


COMMANDS = [checksums, noise, schedulers, tokens, statistics, models, models_hard, rounded, wide, reduced,
            pipeline, fixtures, compare]

if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    torch.set_grad_enabled(False)
    command = {c.__name__: c for c in COMMANDS}.get(sys.argv[1] if len(sys.argv) > 1 else "")
    if not command:
        sys.exit(f"usage: reference.py {' | '.join(c.__name__ for c in COMMANDS)}")
    sys.exit(command(*sys.argv[2:]))
