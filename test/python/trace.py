# trace.py: the output of every block of a diffusers pipeline, in the file format that `sd verify` reads: a
# hundred lines that compare another implementation with this one:
#
#     from trace import Trace
#     with Trace(pipe) as t:
#         image = pipe("a dog runs", num_inference_steps=20, guidance_scale=7.5, generator=g).images[0]
#     t.save("trace.safetensors")            # then: sd verify -m MODEL trace.safetensors
#
# or:  python trace.py MODEL_DIR -p "a dog runs" --steps 20 --seed 0 -o trace.safetensors
#
# A tensor for each block, under diffusers' name of the module, NCHW (text: batch, token, channel), fp32.
# Where the UNet ran more than once, its names begin with `step.N.` (N counts evaluations from 0). With
# guidance the batch is unconditional, conditional. Inputs: inputs.ids (a row for each element of that batch),
# inputs.latents (the first noise), inputs.timesteps, inputs.cfg, inputs.noise.N (what the sampler drew after
# evaluation N, LCM), and inputs.image where there was one. The metadata names the sampler.
import argparse
import re
import sys

import torch
from safetensors.torch import save_file

BLOCK = re.compile(
    r"(.*\.)?(conv_in|conv_out|time_embedding|quant_conv|post_quant_conv|final_layer_norm)$"
    r"|.*\.(resnets|attentions|downsamplers|upsamplers)\.\d+$|.*encoder\.layers\.\d+$"
)


def disk_name(prefix, name):
    """transformers 5 dropped `text_model.` from its modules' names; files and traces keep it."""
    if prefix == "text_encoder" and not name.startswith("text_model."):
        name = "text_model." + name
    return f"{prefix}.{name}"


class Blocks:
    """Hooks on the blocks of one model. Each call of it adds a dictionary, name -> output, to `calls`."""

    def __init__(self, model, prefix, keep=lambda t: t.detach().float().clone()):
        self.calls, self.keep = [], keep
        self.handles = [model.register_forward_pre_hook(lambda *_: self.calls.append({}))]
        for name, module in model.named_modules():
            if BLOCK.match(name):
                self.handles.append(module.register_forward_hook(self.hook(disk_name(prefix, name))))

    def hook(self, name):
        def record(module, args, output):
            while not torch.is_tensor(output):  # tuples and diffusers' output classes
                output = output[0]
            if not self.calls:  # vae.encode and vae.decode do not pass through the model's own forward
                self.calls.append({})
            self.calls[-1][name] = self.keep(output)

        return record

    def remove(self):
        for handle in self.handles:
            handle.remove()


class Trace:
    def __init__(self, pipe):
        self.pipe = pipe

    def __enter__(self):
        pipe = self.pipe
        self.text, self.unet, self.vae = (
            Blocks(getattr(pipe, name), name) for name in ("text_encoder", "unet", "vae")
        )
        self.ids, self.times, self.noise, self.first = [], [], [], None
        self.sampler = sys.modules[type(pipe.scheduler).__module__]
        self.draw = getattr(self.sampler, "randn_tensor", None)

        def text_inputs(module, args, kwargs):
            self.ids.append((args[0] if args else kwargs["input_ids"]).detach().clone())

        def unet_inputs(module, args, kwargs):
            sample = args[0] if args else kwargs["sample"]
            t = args[1] if len(args) > 1 else kwargs["timestep"]
            self.times.append(float(t.flatten()[0]) if torch.is_tensor(t) else float(t))
            if self.first is None:
                images = len(sample) // (2 if pipe.do_classifier_free_guidance else 1)
                self.first = sample[:images].detach().float().clone()

        def drawing(*args, **kwargs):
            noise = self.draw(*args, **kwargs)
            self.noise.append(noise.detach().float().clone())
            return noise

        if self.draw:
            self.sampler.randn_tensor = drawing
        self.handles = [
            pipe.text_encoder.register_forward_pre_hook(text_inputs, with_kwargs=True),
            pipe.unet.register_forward_pre_hook(unet_inputs, with_kwargs=True),
        ]
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()
        for blocks in (self.text, self.unet, self.vae):
            blocks.remove()
        if self.draw:
            self.sampler.randn_tensor = self.draw

    def tensors(self):
        out = {}
        # diffusers encodes the prompt first, then the negative one; a batch has them the other way round.
        for name in self.text.calls[0] if self.text.calls else ():
            out[name] = torch.cat([call[name] for call in reversed(self.text.calls)])
        for n, call in enumerate(self.unet.calls):
            for name, value in call.items():
                out[f"step.{n}.{name}" if len(self.unet.calls) > 1 else name] = value
        for call in self.vae.calls:
            out.update(call)
        if self.ids:
            out["inputs.ids"] = torch.cat(self.ids[::-1]).float()
        out["inputs.latents"] = self.first
        out.update({f"inputs.noise.{n}": noise for n, noise in enumerate(self.noise)})
        out["inputs.timesteps"] = torch.tensor(self.times)
        out["inputs.cfg"] = torch.tensor([float(self.pipe.guidance_scale)])
        return out

    def save(self, path):
        name = type(self.pipe.scheduler).__name__.replace("Scheduler", "").lower()
        metadata = {"sampler": name} if name in ("pndm", "ddim", "lcm") else None
        save_file({name: value.contiguous() for name, value in self.tensors().items()}, path, metadata)


if __name__ == "__main__":
    from diffusers import StableDiffusionPipeline

    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("model")
    p.add_argument("-p", "--prompt", required=True)
    p.add_argument("--negative", default="")
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--cfg", type=float, default=7.5)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("-o", "--output", default="trace.safetensors")
    a = p.parse_args()
    pipe = StableDiffusionPipeline.from_pretrained(a.model, torch_dtype=torch.float32, safety_checker=None)
    with Trace(pipe) as t:
        pipe(a.prompt, negative_prompt=a.negative, num_inference_steps=a.steps, guidance_scale=a.cfg,
             generator=torch.Generator().manual_seed(a.seed))
    t.save(a.output)
