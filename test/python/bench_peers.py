# bench_peers.py: the same work in ./sd and in PyTorch, interleaved in one run, so that both see the same
# drift of the machine's speed. Prints medians in seconds and the ratio PyTorch / sd: above 1, sd is faster.
# Soft made weights, fp32, full size.
#
#     python test/python/bench_peers.py [--threads 2] [--rounds 3] [--model DIR]
#
# DIR: a model of `sd synth DIR --arch sd15`; otherwise one is made in a temporary folder (4 GB) and removed.
import argparse
import gc
import json
import statistics
import subprocess
import tempfile
import time

import torch

import peers


def sd(model, threads):
    """One picture of two unguided steps: the seconds of each part."""
    command = ["./sd", "sample", "-m", model, "-p", "a dog", "--steps", "2", "--cfg", "1", "--scheduler",
               "ddim", "-t", str(threads), "-q", "--json", "-o", f"{model}/bench.png"]
    figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"text encoder": figures["text_s"], "UNet step": figures["unet_step_s"],
            "VAE decode": figures["vae_s"]}


def timed(f):
    started = time.perf_counter()
    with torch.no_grad():
        f()
    return time.perf_counter() - started


def torch_part(part):
    """PyTorch eager, one network in memory at a time."""
    net = peers.model({"text encoder": "text_encoder", "UNet step": "unet", "VAE decode": "vae"}[part],
                      "sd15")
    if part == "text encoder":
        ids = torch.full((1, 77), 49407)
        return lambda: net(ids)
    if part == "UNet step":
        x = peers.made_input("unet.sample", (1, 4, 64, 64))
        context = peers.made_input("unet.context", (1, 77, 768))
        return lambda: net(x, torch.tensor([500]), context)
    z = peers.made_input("vae.latents", (1, 4, 64, 64))
    return lambda: net.decode(z)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if not model:
            model = folder + "/sd15"
            subprocess.run(["./sd", "synth", model, "--arch", "sd15", "-q"], check=True)
        print(f"{'':14} {'sd':>8} {'PyTorch':>8}  PyTorch / sd")
        for part in ("text encoder", "UNet step", "VAE decode"):
            ours, theirs = [], []
            run = torch_part(part)
            timed(run)  # the first one is slower
            for _ in range(options.rounds):
                ours.append(sd(model, options.threads)[part])
                theirs.append(timed(run))
            del run
            gc.collect()
            ratios = [b / a for a, b in zip(ours, theirs)]
            print(f"{part:14} {statistics.median(ours):8.3f} {statistics.median(theirs):8.3f}  "
                  f"{statistics.median(ratios):.2f}", flush=True)


main()
