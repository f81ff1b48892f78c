# check_pipelines.py: other uses of `sd sample` than plain text to image, live against diffusers on tiny
# models with made weights: image-to-image with each scheduler, a negative prompt, given noise, several steps
# of a full LCM with its guidance embedding. Text to image itself: reference.py compare.
#
#     python check_pipelines.py [--sd ./sd]
import argparse
import subprocess
import tempfile
from pathlib import Path

import diffusers
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

CLASSES = {"pndm": diffusers.PNDMScheduler, "ddim": diffusers.DDIMScheduler, "lcm": diffusers.LCMScheduler}
PROMPT = "a child in a pink dress"
good = []


def judge(what, path, want):
    if not path.exists():
        good.append(False)
        print(f"FAILED  {what}: no picture")
        return
    got, want = (np.asarray(x).astype(int) for x in (Image.open(path), want))
    if got.shape != want.shape:
        good.append(False)
        print(f"FAILED  {what}: its shape is {got.shape}, not {want.shape}")
        return
    difference = abs(got - want)
    far = (difference > 1).mean()
    good.append(far <= 1e-3)  # 99.9 % of the 8-bit values within 1
    print(f"{'ok' if good[-1] else 'FAILED'}  {what}: {far:.2g} of the values more than 1 off, "
          f"largest difference {difference.max()}, standard deviation {want.std():.0f}", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--sd", default="./sd")
    a = p.parse_args()
    torch.set_grad_enabled(False)
    work = Path(tempfile.mkdtemp())

    def sd(*arguments):
        subprocess.run([str(x) for x in (a.sd, *arguments)], check=False)

    def seed(n=3):
        return torch.Generator().manual_seed(n)

    sd("synth", work / "tiny", "--arch", "tiny", "-q")
    sd("synth", work / "lcm", "--arch", "tiny-lcm", "-q")
    common = ["sample", "-q", "-t", 1, "-p", PROMPT, "--seed", 3, "-m", work / "tiny"]
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(str(work / "tiny"), safety_checker=None)
    pipe.set_progress_bar_config(disable=True)

    want = pipe(PROMPT, negative_prompt="rain at night", num_inference_steps=4, guidance_scale=5.0, width=96,
                height=72, generator=seed()).images[0]
    sd(*common, "--negative", "rain at night", "--steps", 4, "--cfg", 5, "-W", 96, "-H", 72, "-o",
       work / "negative.png")
    judge("a negative prompt, 96 x 72", work / "negative.png", want)

    noise = torch.randn(1, 4, 16, 16, generator=seed(9))
    save_file({"latents": noise}, str(work / "noise.safetensors"))
    want = pipe(PROMPT, num_inference_steps=4, guidance_scale=1.0, latents=noise).images[0]
    sd(*common, "--steps", 4, "--cfg", 1, "--latents", work / "noise.safetensors", "-o", work / "noise.png")
    judge("given noise, no guidance", work / "noise.png", want)

    init = Image.fromarray((np.indices((100, 140)).sum(0)[..., None] * [1, 2, 3] % 256).astype("uint8"))
    init.save(work / "init.png")
    repaint = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    repaint.set_progress_bar_config(disable=True)
    for kind, strength, steps in (("pndm", 0.6, 10), ("ddim", 0.75, 8), ("ddim", 0.29, 100), ("lcm", 0.5, 6),
                                  ("pndm", 1.0, 4)):
        repaint.scheduler = CLASSES[kind].from_config(pipe.scheduler.config)
        want = repaint(PROMPT, image=init, strength=strength, num_inference_steps=steps, guidance_scale=6.0,
                       generator=seed()).images[0]
        path = work / f"{kind}-{strength}.png"
        sd(*common, "--init", work / "init.png", "--strength", strength, "--steps", steps, "--cfg", 6,
           "--scheduler", kind, "-o", path)
        judge(f"image-to-image, {kind}, strength {strength} of {steps} steps", path, want)

    lcm = diffusers.StableDiffusionPipeline.from_pretrained(str(work / "lcm"), safety_checker=None)
    lcm.set_progress_bar_config(disable=True)
    assert isinstance(lcm.scheduler, diffusers.LCMScheduler) and lcm.unet.config.time_cond_proj_dim == 256
    for steps, cfg in ((4, 8.5), (2, 1.0), (1, 12.0)):
        want = lcm(PROMPT, num_inference_steps=steps, guidance_scale=cfg, generator=seed()).images[0]
        path = work / f"lcm-{steps}.png"
        sd(*common, "-m", work / "lcm", "--steps", steps, "--cfg", cfg, "-o", path)
        judge(f"full LCM, {steps} steps, guidance {cfg}", path, want)
    print(f"{sum(good)} passed, {len(good) - sum(good)} failed, 0 skipped")
    return not all(good)


if __name__ == "__main__":
    raise SystemExit(main())
