# plant.py: a diffusers UNet with one planted mistake at a time; each run is written as a trace. `sd verify`
# must name the first block that differs. `expected.txt` beside the traces says which one that is, a line a
# mistake: its name, its block, and the largest difference there relative to the block's largest value. `none`
# has no mistake.
#
#     python plant.py OUT [--arch tiny] [--model DIR]        writes OUT/NAME.safetensors and OUT/expected.txt
import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

import peers
from trace import Trace


def resnets(unet):
    return [m for m in unet.modules() if type(m).__name__ == "ResnetBlock2D"]


def attentions(unet):
    return [m for m in unet.modules() if type(m).__name__ == "Attention"]


def feed_forwards(unet):
    return [m for m in unet.modules() if type(m).__name__ == "GEGLU"]


def epsilon(unet):  # 1e-3 (Inception's) for 1e-5 in the resnets' group norms
    for r in resnets(unet):
        r.norm1.eps = r.norm2.eps = 1e-3


def swapped_skip(unet):  # the skip connection before the stream in the concatenation, not after it
    r = unet.up_blocks[0].resnets[0]
    skip = unet.config.block_out_channels[-1]
    swap = lambda m, args: (torch.cat([args[0][:, -skip:], args[0][:, :-skip]], 1), *args[1:])
    r.register_forward_pre_hook(swap)


def quick_gelu(unet):  # x sigmoid(1.702 x) for the UNet's exact GELU
    for f in feed_forwards(unet):
        f.gelu = lambda x: x * torch.sigmoid(1.702 * x)


def missing_bias(unet):
    unet.down_blocks[1].resnets[0].conv2.bias.data.zero_()


def sine_first(unet):  # sine, cosine for cosine, sine in the timestep's embedding
    unet.time_proj.flip_sin_to_cos = False


def heads(unet):  # twice the heads of half the width in the middle block
    for a in attentions(unet.mid_block):
        a.heads *= 2


def kernel_transposed(unet):  # a 3x3 kernel by columns
    c = unet.down_blocks[0].resnets[0].conv1
    c.weight.data = c.weight.data.transpose(2, 3).contiguous()


def unscaled_logits(unet):  # attention without 1 / sqrt(d)
    for a in attentions(unet):
        a.to_q.weight.data *= (a.inner_dim // a.heads) ** 0.5


def padding(unet):  # the downsampling pads on the right and below only, as the VAE's does
    c = unet.down_blocks[0].downsamplers[0].conv
    c.padding = (0, 0)
    c.register_forward_pre_hook(lambda m, args: (F.pad(args[0], (0, 1, 0, 1)),))


def gate_first(unet):  # GEGLU's halves exchanged
    for f in feed_forwards(unet):
        w, b = f.proj.weight.data, f.proj.bias.data
        w.copy_(w.roll(len(w) // 2, 0))
        b.copy_(b.roll(len(b) // 2, 0))


def no_silu_on_time(unet):  # the resnets add a projection of the embedding itself, not of its SiLU
    for r in resnets(unet):
        r.time_emb_proj.register_forward_pre_hook(lambda m, args, emb=None: (m.plain,))
    unet.time_embedding.register_forward_hook(
        lambda m, args, out: [setattr(r.time_emb_proj, "plain", out) for r in resnets(unet)] and None
    )


def upsampling(unet):  # bilinear for nearest
    u = unet.up_blocks[0].upsamplers[0]

    def forward(x, output_size=None, *args, **kwargs):
        return u.conv(F.interpolate(x, scale_factor=2.0, mode="bilinear"))

    u.forward = forward


MISTAKES = [epsilon, swapped_skip, quick_gelu, missing_bias, sine_first, heads, kernel_transposed,
            unscaled_logits, padding, gate_first, no_silu_on_time, upsampling]


def run(arch, model, mistake):
    if model:
        from diffusers import StableDiffusionPipeline

        pipe = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32, safety_checker=None)
    else:
        pipe = peers.pipeline(arch)
    if mistake:
        mistake(pipe.unet)
    from reference import token_rows

    negative, caption = token_rows(arch)
    size = 8 * pipe.unet.config.sample_size
    with Trace(pipe) as t:
        peers.draw(pipe, caption, negative, num_inference_steps=1, guidance_scale=7.5, width=size,
                   height=size)
    return t


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("out", type=Path)
    p.add_argument("--arch", default="tiny")
    p.add_argument("--model")
    p.add_argument("--tolerance", type=float, default=1e-4)
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    right = run(a.arch, a.model, None)
    right.save(a.out / "none.safetensors")
    want = right.tensors()
    with open(a.out / "expected.txt", "w") as f:
        for mistake in MISTAKES:
            t = run(a.arch, a.model, mistake)
            t.save(a.out / f"{mistake.__name__}.safetensors")
            for name, got in t.tensors().items():
                error = ((got - want[name]).abs().max() / want[name].abs().max()).item()
                if not error <= a.tolerance:
                    break
            else:
                raise SystemExit(f"{mistake.__name__} changes nothing")
            print(f"{mistake.__name__} {name} {error:.1e}", file=f)
            print(mistake.__name__, name, f"{error:.1e}", flush=True)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
