# make_film_fixture.py: what diffusers sees inside while it draws: latents, predicted noise, the picture
# expected (x0) and the maps of cross-attention, as cli/film.c has them. It writes
# test/fixtures/film.safetensors, which test/cli/film.c reads. Any other model is compared live:
#
#     ./sd synth run/made --arch tiny && python make_film_fixture.py run/made test/fixtures/film.safetensors
#     python make_film_fixture.py weights/tiny /tmp/film.safetensors
#     build/test/cli/film weights/tiny /tmp/film.safetensors
import re
import sys

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import save_file

CAPTION, STEPS, GUIDANCE, SEED = "a child in a pink dress", 2, 4.0, 5


def level_of(name, levels):
    block = re.match(r"(down|mid|up)_blocks?\.?(\d*)", name)
    if block[1] == "mid":
        return levels - 1
    return int(block[2]) if block[1] == "down" else levels - 1 - int(block[2])


def main(model, output):
    pipe = StableDiffusionPipeline.from_pretrained(
        model, torch_dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.unet.set_attn_processor(AttnProcessor())  # the one that forms the matrix of weights
    levels, maps, seen = len(pipe.unet.config.block_out_channels), {}, {}

    def watch(name, module):
        scores = module.get_attention_scores

        def watched(query, key, mask=None):
            weights = scores(query, key, mask)  # (2 heads, pixels, tokens): without and with the caption
            maps.setdefault(level_of(name, levels), []).append(weights.chunk(2)[1].mean(0).T)
            return weights

        module.get_attention_scores = watched

    for name, module in pipe.unet.named_modules():
        if name.endswith("attn2"):
            watch(name, module)
    step = pipe.scheduler.step

    def stepped(noise, t, latents, **kwargs):
        result = step(noise, t, latents, **{**kwargs, "return_dict": True})
        at = f"step.{len([k for k in seen if k.endswith('.t')])}."
        seen[at + "t"] = torch.tensor([float(t)])
        seen[at + "z"], seen[at + "noise"] = latents.clone(), noise.clone()
        seen[at + "x0"] = result.pred_original_sample.clone()
        for level, list_ in maps.items():
            seen[at + f"attention.{level}"] = torch.stack(list_).mean(0).contiguous()
        maps.clear()
        return (result.prev_sample,)

    pipe.scheduler.step = stepped
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(SEED)
    pipe(CAPTION, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generator)
    save_file({k: v.contiguous() for k, v in seen.items()}, output)


if __name__ == "__main__":
    with torch.no_grad():
        main(*sys.argv[1:])
