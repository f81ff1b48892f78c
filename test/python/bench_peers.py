# bench_peers.py: the same work in ./sd and in its peers, interleaved in one run, so that both see the same
# drift of the machine's speed. Prints medians in seconds, the ratio peer / sd (above 1: sd is faster) and its
# spread. Soft made weights, full size, batch 1; fp32, or with --dtype bf16 products of bf16 (in sd but for
# Winograd's convolutions; without "VAE encode" and stable-diffusion.cpp, which are asked for no type).
#
#     python test/python/bench_peers.py [--threads 2] [--rounds 5] [--model DIR] [--peers PEER,...]
#                                       [--dtype f32|bf16] [--sd-cpp FILE] [PART ...]
#
# DIR: a model of `sd synth DIR --arch sd15`; otherwise one is made in a temporary folder (4 GB) and removed.
# PEER: PyTorch (eager), OpenVINO (where it is installed), compiled (torch.compile, only if asked for).
# PART: "text encoder", "UNet step", "VAE encode", "VAE decode", or "picture": 4 steps of the LCM sampler as a
# process, start and load included, beside one of OpenVINO alone and, with --sd-cpp, beside
# stable-diffusion.cpp, whose program (sd-cli) FILE is.
import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image

import peers

NETWORKS = ["text encoder", "UNet step", "VAE encode", "VAE decode"]


def sd(words, options):
    command = ["./sd", *map(str, words), "-t", str(options.threads), "-q", "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def picture_words(options, steps):
    return ["sample", "-m", options.model, "-p", "a dog", "--steps", steps, "--cfg", 1, "--scheduler", "lcm",
            "--dtype", options.dtype, "-o", options.folder / "sd.png"]


def sd_seconds(part, options):
    """What ./sd says that this part took, without start and load."""
    if part == "VAE encode":
        return sd(["encode", options.folder / "photo.png", "-m", options.model, "-o",
                   options.folder / "z.safetensors"], options)["seconds"]
    names = {"text encoder": "text_s", "UNet step": "unet_step_s", "VAE decode": "vae_s"}
    # The first pass of a process touches its memory for the first time; a peer has done so before. So a step
    # is the median of four, and a decode that of the second picture.
    more = ["-n", 2] if part == "VAE decode" else []
    return sd(picture_words(options, 4 if part == "UNet step" else 1) + more, options)[names[part]]


class Part(torch.nn.Module):
    """A network as a function of tensors alone, which is what OpenVINO converts."""

    def __init__(self, net):
        super().__init__()
        self.net = net


class Encoder(Part):
    def forward(self, x):
        return self.net.encode(x, return_dict=False)[0].parameters


class Decoder(Part):
    def forward(self, z):
        return self.net.decode(z, return_dict=False)[0]


class UNet(Part):
    def forward(self, x, t, context):
        return self.net(x, t, context, return_dict=False)[0]


def network(part):
    """A module and its operands, positional."""
    if part == "text encoder":
        return peers.model("text_encoder", "sd15"), (torch.full((1, 77), 49407),)
    if part == "UNet step":
        return UNet(peers.model("unet", "sd15")), (peers.made_input("unet.sample", (1, 4, 64, 64)),
                                                   torch.tensor([500]),
                                                   peers.made_input("unet.context", (1, 77, 768)))
    if part == "VAE encode":
        return Encoder(peers.model("vae", "sd15")), (peers.made_input("vae.image", (1, 3, 512, 512)),)
    return Decoder(peers.model("vae", "sd15")), (peers.made_input("vae.latents", (1, 4, 64, 64)),)


def call(peer, part, options):
    """A function without arguments that does this part in the peer."""
    net, operands = network(part)
    if peer == "OpenVINO":
        import openvino
        with torch.no_grad():
            model = openvino.convert_model(net, example_input=operands)
        compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": options.dtype,
                                                         "INFERENCE_NUM_THREADS": options.threads})
        arrays = [x.numpy() for x in operands]
        return lambda: compiled(arrays)
    if peer == "compiled":
        net = torch.compile(net, options={"freezing": True})
    if options.dtype == "bf16":
        net = net.to(torch.bfloat16)
        operands = [x.to(torch.bfloat16) if x.is_floating_point() else x for x in operands]
    return lambda: net(*operands)


def timed(f):
    started = time.perf_counter()
    with torch.no_grad():
        f()
    return time.perf_counter() - started


def report(part, peer, ours, theirs):
    ratios = sorted(b / a for a, b in zip(ours, theirs))
    print(f"{part:14} {peer:12} {statistics.median(ours):8.3f} {statistics.median(theirs):8.3f} "
          f"{statistics.median(ratios):7.2f}  ({ratios[0]:.2f} to {ratios[-1]:.2f})", flush=True)


def interleave(part, peer, ours, theirs, rounds):
    theirs(), ours()  # the first ones are slower
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    report(part, peer, *zip(*pairs))


def save_openvino(folder):
    """The networks of a picture in OpenVINO's own format, for a process that only draws."""
    import openvino
    for part, name in (("text encoder", "text"), ("UNet step", "unet"), ("VAE decode", "vae")):
        net, operands = network(part)
        with torch.no_grad():
            openvino.save_model(openvino.convert_model(net, example_input=operands), folder / f"{name}.xml",
                                compress_to_fp16=False)
        del net
        gc.collect()


# Four steps of the LCM sampler in OpenVINO, as small a process as can be: no PyTorch, no tokenizer.
DRAW = """
import sys, numpy, openvino
from PIL import Image
folder, threads, precision = sys.argv[1], int(sys.argv[2]), sys.argv[3]
settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads,
            "CACHE_DIR": folder + "/cache"}
load = lambda name: openvino.compile_model(f"{folder}/{name}.xml", "CPU", settings)
context = load("text")([numpy.full((1, 77), 49407)])[0]
unet, random = load("unet"), numpy.random.default_rng(0)
alphas = numpy.cumprod(1 - numpy.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000) ** 2)
x = random.standard_normal((1, 4, 64, 64), numpy.float32)
steps = [999, 759, 519, 259]
for i, t in enumerate(steps):
    a = alphas[t]
    noise = unet([x, numpy.array([t]), context])[0]
    clean = (x - (1 - a) ** 0.5 * noise) / a ** 0.5
    skip, out = 0.25 / ((10 * t) ** 2 + 0.25), 10 * t / ((10 * t) ** 2 + 0.25) ** 0.5
    x = out * clean + skip * x
    if i < 3:
        b = alphas[steps[i + 1]]
        x = b ** 0.5 * x + (1 - b) ** 0.5 * random.standard_normal(x.shape)
    x = x.astype(numpy.float32)
image = load("vae")([x / numpy.float32(0.18215)])[0][0]
image = numpy.nan_to_num((image.transpose(1, 2, 0) / 2 + 0.5).clip(0, 1) * 255)
Image.fromarray(image.round().astype(numpy.uint8)).save(folder + "/openvino.png")
"""


def pictures(options):
    def process(command):
        return lambda: timed(lambda: subprocess.run(list(map(str, command)), check=True, capture_output=True))

    ours = process(["./sd", *picture_words(options, 4), "-t", options.threads, "-q"])
    if "OpenVINO" in options.peers:
        save_openvino(options.folder)
        theirs = process([sys.executable, "-c", DRAW, options.folder, options.threads, options.dtype])
        interleave("picture", "OpenVINO", ours, theirs, options.rounds)
    if options.sd_cpp:
        theirs = process([options.sd_cpp, "-m", options.model, "-p", "a dog", "--steps", 4, "--cfg-scale", 1,
                          "--sampling-method", "lcm", "-W", 512, "-H", 512, "-t", options.threads,
                          "-o", options.folder / "sd-cpp.png"])
        interleave("picture", "sd.cpp", ours, theirs, options.rounds)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--peers", type=lambda s: s.split(","),
                        default=["PyTorch"] + ["OpenVINO"] * (find_spec("openvino") is not None))
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--sd-cpp", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        Image.effect_noise((512, 512), 60).convert("RGB").save(options.folder / "photo.png")
        if not options.model:
            options.model = options.folder / "sd15"
            subprocess.run(["./sd", "synth", options.model, "--arch", "sd15", "-q"], check=True)
        print(f"{'':14} {'':12} {'sd':>8} {'peer':>8} {'peer/sd':>7}")
        parts = options.parts or [*NETWORKS, "picture"]
        if options.dtype == "bf16":  # these take no type
            parts, options.sd_cpp = [p for p in parts if p != "VAE encode"], None
        for part in parts:
            if part == "picture":
                pictures(options)
                continue
            for peer in options.peers:
                run = call(peer, part, options)
                interleave(part, peer, lambda: sd_seconds(part, options), lambda: timed(run), options.rounds)
                del run
                gc.collect()


main()
