# plant.py: a diffusers pipeline with one planted mistake at a time, in the UNet, the VAE, the text encoder,
# guidance, the sampler or scaling, some in half precision. Each run is written as a trace, and `sd verify`
# must name the first block that differs from a run without the mistake, and give a reason that is right. What
# has no mistake must agree. Exit status 1 where one is missed or named wrongly.
#
#     python plant.py OUT [--sd ./sd] [--arch tiny] [--model DIR] [--only NAME ...]
import argparse
import inspect
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import diffusers
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


# ---- beyond the UNet ---------------------------------------------------------------------------------------


def edit(thing, method, old, new):
    """Gives an object the method of its class with one piece of its source changed."""
    owner = type(thing)
    source = textwrap.dedent(inspect.getsource(getattr(owner, method)))
    assert old in source, f"{owner.__name__}.{method} has no {old}"
    names = {}
    exec(source.replace(old, new), vars(sys.modules[owner.__module__]), names)
    thing.__class__ = type(owner.__name__, (owner,), {method: names[method], "__module__": owner.__module__})


GUIDANCE = "noise_pred_uncond + self.guidance_scale * (noise_pred_text - noise_pred_uncond)"


def guidance(other):
    return lambda pipe: edit(pipe, "__call__", GUIDANCE, other)


def ddim(old, new):
    return lambda pipe: edit(pipe.scheduler, "step", old, new)


def configured(**options):
    def plant(pipe):
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **options)

    return plant


def wrong_scaling(old, new):
    return lambda pipe: edit(pipe, "__call__", old, new)


def text_gelu(pipe):  # quick_gelu is the text encoder's; here the UNet's exact GELU
    for layer in getattr(pipe.text_encoder, "text_model", pipe.text_encoder).encoder.layers:
        layer.mlp.activation_fn = torch.nn.GELU()


def vae_bias(pipe):
    pipe.vae.decoder.mid_block.resnets[0].conv2.bias.data.zero_()


def skipped_layer(pipe):  # "clip skip" where none is asked for: the states before the last layer
    model = getattr(pipe.text_encoder, "text_model", pipe.text_encoder)
    kept = []
    model.encoder.layers[-2].register_forward_hook(
        lambda m, args, out: kept.append(model.final_layer_norm(out if torch.is_tensor(out) else out[0]))
    )
    pipe.unet.register_forward_pre_hook(
        lambda m, args, kw: (args, kw | {"encoder_hidden_states": torch.cat(kept[1::-1])}), with_kwargs=True
    )


SCALING = 0.7  # the tiny architecture's is 1, which nobody can forget
in_unet = lambda mistake: lambda pipe: mistake(pipe.unet)
F16, BF16 = {"dtype": torch.float16}, {"dtype": torch.bfloat16}
PNDM, LCM = {"kind": "pndm"}, {"kind": "lcm"}
# name, mistake, a word of the reason that `sd verify` should give ("": none is expected), options of the run
MISTAKES = [
    ("epsilon", in_unet(epsilon), "epsilon 0.001", {}),
    ("swapped_skip", in_unet(swapped_skip), "skip connection", {}),
    ("quick_gelu", in_unet(quick_gelu), "form of an activation", {}),
    ("missing_bias", in_unet(missing_bias), "bias unet.down_blocks.1.resnets.0.conv2", {}),
    ("sine_first", in_unet(sine_first), "sine and cosine", {}),
    ("heads", in_unet(heads), "8 heads", {}),
    ("kernel_transposed", in_unet(kernel_transposed), "height and width", {}),
    ("unscaled_logits", in_unet(unscaled_logits), "sqrt(d)", {}),
    ("padding", in_unet(padding), "padded below", {}),
    ("gate_first", in_unet(gate_first), "GEGLU", {}),
    ("no_silu_on_time", in_unet(no_silu_on_time), "", {}),
    ("upsampling", in_unet(upsampling), "", {}),
    ("text_gelu", text_gelu, "gelu for quick_gelu", {}),
    ("skipped_layer", skipped_layer, "before the last layer", {}),
    ("vae_bias", vae_bias, "bias vae.decoder.mid_block.resnets.0.conv2", {}),
    ("guidance_from_zero", guidance(GUIDANCE.replace("scale *", "scale * (1 + 1 / 7.5) *")),
     "without the caption times -7.5", {}),
    ("guidance_exchanged", guidance("noise_pred_text + self.guidance_scale * (noise_pred_uncond - "
                                    "noise_pred_text)"), "without the caption times 7.5", {}),
    ("no_guidance", guidance("noise_pred_text"), "with it times 1 (ours 7.5)", {}),
    ("guidance_added", guidance("noise_pred_uncond + self.guidance_scale * noise_pred_text"),
     "without the caption times 1 ", {}),
    ("guidance_pndm", guidance(GUIDANCE.replace("self.guidance_scale", "5.0")), "with it times 5", PNDM),
    ("as_v", configured(prediction_type="v_prediction"), "taken as v", {}),
    ("linear_betas", configured(beta_schedule="linear"), "beta_schedule", {}),
    ("alpha_to_one", configured(set_alpha_to_one=True), "set_alpha_to_one", {}),
    ("trailing", configured(timestep_spacing="trailing"), "trailing", {}),
    ("no_offset", configured(steps_offset=0), "steps_offset 0", {}),
    ("ddim_direction", ddim("(1 - alpha_prod_t_prev - std_dev_t**2) ** (0.5)", "(1 - alpha_prod_t) ** (0.5)"),
     "prediction", {}),
    ("pndm_second", lambda pipe: edit(pipe.scheduler, "step_plms", "(3 * self.ets[-1] - self.ets[-2]) / 2",
                                      "self.ets[-1]"), "not made as ours", PNDM),
    ("lcm_skip", ddim("c_skip * sample", "0.1 * sample"), "latents", LCM),
    ("lcm_noise", ddim("beta_prod_t_prev.sqrt() * noise", "beta_prod_t_prev * noise"), "noise", LCM),
    ("unscaled_vae", wrong_scaling("latents / self.vae.config.scaling_factor", "latents"), "times 1 ", {}),
    ("multiplied_vae", wrong_scaling("latents / self.vae.config.scaling_factor",
                                     "latents * self.vae.config.scaling_factor"), "times 0.7 ", {}),
    ("scaled_input", wrong_scaling("latent_model_input = self.scheduler.scale_model_input(",
                                   "latent_model_input = 0.9 * self.scheduler.scale_model_input("),
     "times 0.9 ", {}),
    ("fp16_bias", in_unet(missing_bias), "bias unet.down_blocks.1.resnets.0.conv2", F16),
    ("fp16_guidance", guidance(GUIDANCE.replace("self.guidance_scale", "6.5")), "with it times 6.5", F16),
    ("fp16_as_v", configured(prediction_type="v_prediction"), "taken as v", F16),
    ("bf16_heads", in_unet(heads), "8 heads", BF16),
    ("bf16_scaling", wrong_scaling("latents / self.vae.config.scaling_factor", "latents"), "times 1", BF16),
]
RIGHT = [("right", {}), ("right_pndm", PNDM), ("right_lcm", LCM), ("right_fp16", F16), ("right_bf16", BF16)]


def run(arch, model, mistake, kind=None, dtype=torch.float32):
    if model:
        from diffusers import StableDiffusionPipeline

        pipe = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32, safety_checker=None)
    else:
        pipe = peers.pipeline(arch)
        pipe.vae.register_to_config(scaling_factor=SCALING)
    pipe.set_progress_bar_config(disable=True)
    if kind:
        pipe.scheduler = peers.scheduler(arch, kind)
    pipe.to(dtype)
    if mistake:
        mistake(pipe)
    from reference import token_rows

    negative, caption = token_rows(arch)
    size = 8 * pipe.unet.config.sample_size
    with Trace(pipe) as t:
        peers.draw(pipe, caption, negative, num_inference_steps=4, guidance_scale=7.5, width=size,
                   height=size)
    return t


def first_difference(got, want, tolerance):
    for name in sorted(got, key=lambda n: not n.startswith("inputs.")):  # else in the order of the run
        error = ((got[name] - want[name]).abs().max() / want[name].abs().max()).item()
        if not error <= tolerance:
            return name
    return "none"


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("out", type=Path)
    p.add_argument("--only", nargs="*", default=[])
    p.add_argument("--sd", default="./sd")
    p.add_argument("--arch", default="tiny")
    p.add_argument("--model")
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    model = a.model or a.out / "model"
    if not a.model:
        subprocess.run([a.sd, "synth", "-q", model, "--arch", a.arch], check=True)
        config = json.loads((model / "vae/config.json").read_text()) | {"scaling_factor": SCALING}
        (model / "vae/config.json").write_text(json.dumps(config))
    wants, missed, runs = {}, 0, 0
    cases = [(name, None, "", options) for name, options in RIGHT] + MISTAKES
    for name, mistake, word, options in cases:
        if a.only and name not in a.only:
            continue
        key = str(options)
        if key not in wants:
            wants[key] = run(a.arch, a.model, None, **options).tensors()
        t = run(a.arch, a.model, mistake, **options)
        t.save(a.out / f"{name}.safetensors")
        half = "dtype" in options
        expected = first_difference(t.tensors(), wants[key], 2e-2 if half else 1e-4) if mistake else "none"
        done = subprocess.run([a.sd, "verify", "-q", "-m", model, "--json", a.out / f"{name}.safetensors"],
                              capture_output=True, text=True)
        said = json.loads(done.stdout or "{}") or {"why": done.stderr}
        first, why = said.get("first", "none"), said.get("why", "")
        right = first == expected and (word in why if word else not why or "here, or" in why)
        runs, missed = runs + 1, missed + (not right)
        print(f"{'ok' if right else 'MISSED':6} {name:18} {expected:42}"
              f"{'' if first == expected else 'sd: ' + first + ' '} {why}", flush=True)
    print(f"{runs} runs, {missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    diffusers.logging.set_verbosity_error()
    torch.set_grad_enabled(False)
    sys.exit(main())
