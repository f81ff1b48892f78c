# trace.py: the output of every block of a diffusers pipeline, in the file format that `sd verify` reads: a
# hundred lines that compare another implementation with this one:
#
#     from trace import Trace
#     with Trace(pipe) as t:
#         image = pipe("a dog runs", num_inference_steps=20, guidance_scale=7.5, generator=g).images[0]
#     t.save("trace.safetensors")            # then: sd verify -m MODEL trace.safetensors
#
# or:  python trace.py MODEL_DIR -p "a dog runs" --steps 20 --seed 0 -o trace.safetensors
#      python trace.py MODEL_DIR --gradients lcm|lora -o step.safetensors    # sd verify --gradients
#
# The format: doc/TRACE.md.
import argparse
import functools
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


# Where sd.c calls a sampler other than diffusers calls its class.
SAMPLERS = {"eulerdiscrete": "euler", "eulerancestraldiscrete": "euler-a", "dpmsolvermultistep": "dpm++2m"}


class Trace:
    def __init__(self, pipe):
        if not hasattr(pipe, "unet"):
            raise SystemExit(f"trace.py: {type(pipe).__name__} has no UNet; sd.c is Stable Diffusion v1")
        self.pipe = pipe

    def __enter__(self):
        pipe = self.pipe
        self.text, self.unet, self.vae = (
            Blocks(getattr(pipe, name), name) for name in ("text_encoder", "unet", "vae")
        )
        self.ids, self.times, self.noise, self.first, self.context, self.steps = [], [], [], None, None, []
        self.scaled = self.image = None
        self.sampler = sys.modules[type(pipe.scheduler).__module__]
        self.draw = getattr(self.sampler, "randn_tensor", None)
        self.step, self.encode, self.decode = pipe.scheduler.step, pipe.vae.encode, pipe.vae.decode
        kept = lambda t: t.detach().float().clone()

        def text_inputs(module, args, kwargs):
            self.ids.append((args[0] if args else kwargs["input_ids"]).detach().clone())

        def unet_inputs(module, args, kwargs):
            sample, t, context = (
                args[i] if len(args) > i else kwargs[name]
                for i, name in enumerate(("sample", "timestep", "encoder_hidden_states"))
            )
            self.times.append(float(t.flatten()[0]) if torch.is_tensor(t) else float(t))
            self.unet.calls[-1]["unet.input"] = kept(sample)
            if self.context is None:
                images = len(sample) // (2 if pipe.do_classifier_free_guidance else 1)
                self.first, self.context = kept(sample[:images]), kept(context)

        def drawing(*args, **kwargs):
            noise = self.draw(*args, **kwargs)
            self.noise.append(kept(noise))
            return noise

        @functools.wraps(self.step)  # diffusers reads its signature
        def step(model_output, timestep, sample, *args, **kwargs):
            if not self.steps:
                self.first = kept(sample)  # before a sampler scales it for the UNet
            out = self.step(model_output, timestep, sample, *args, **kwargs)
            latents = out[0] if isinstance(out, tuple) else out.prev_sample
            self.steps.append({"guidance": kept(model_output), "sampler": kept(latents)})
            self.eta = kwargs.get("eta")
            return out

        @functools.wraps(self.encode)
        def encode(x, *args, **kwargs):
            self.image = kept(x)
            return self.encode(x, *args, **kwargs)

        @functools.wraps(self.decode)
        def decode(z, *args, **kwargs):
            self.scaled = kept(z)
            return self.decode(z, *args, **kwargs)

        if self.draw:
            self.sampler.randn_tensor = drawing
        pipe.scheduler.step, pipe.vae.encode, pipe.vae.decode = step, encode, decode
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
        self.pipe.scheduler.step = self.step
        self.pipe.vae.encode, self.pipe.vae.decode = self.encode, self.decode
        if self.draw:
            self.sampler.randn_tensor = self.draw

    def tensors(self):
        out = {}
        # diffusers encodes the prompt first, then the negative one; a batch has them the other way round.
        for name in self.text.calls[0] if self.text.calls else ():
            out[name] = torch.cat([call[name] for call in reversed(self.text.calls)])
        if self.context is not None:  # what the UNet got
            out["text_encoder" if self.ids else "inputs.context"] = self.context
        for n, call in enumerate(self.unet.calls):
            for name, value in (call | (self.steps[n] if n < len(self.steps) else {})).items():
                out[f"step.{n}.{name}" if len(self.unet.calls) > 1 else name] = value
        if self.steps:
            out["latents"] = self.steps[-1]["sampler"].clone()
        if self.scaled is not None:
            out["vae.scaling"] = self.scaled
        for call in self.vae.calls:
            out.update(call)
        if self.ids:
            out["inputs.ids"] = torch.cat(self.ids[::-1]).float()
        out["inputs.latents"] = self.first
        if self.image is not None:
            out["inputs.image"] = self.image
        out.update({f"inputs.noise.{n}": noise for n, noise in enumerate(self.noise)})
        out["inputs.timesteps"] = torch.tensor(self.times)
        out["inputs.cfg"] = torch.tensor([float(self.pipe.guidance_scale)])
        return out

    def save(self, path):
        name = type(self.pipe.scheduler).__name__.replace("Scheduler", "").lower()
        name = SAMPLERS.get(name, name)
        if name == "dpm++2m" and self.pipe.scheduler.config.use_karras_sigmas:
            name += "-karras"
        metadata = {"sampler": name, "pipeline": type(self.pipe).__name__}
        if name == "tcd" and self.eta is not None:
            metadata["eta"] = repr(float(self.eta))
        save_file({name: value.contiguous() for name, value in self.tensors().items()}, path, metadata)


LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv_in"]


def gradients(folder, phase, seed, lora, n=2, side=None, tokens=32, rank=4, layers=LAYERS):
    """A step of Phase 2 (latent consistency distillation, as in diffusers' train_lcm_distill_sd_wds.py; the
    student is its own target) or of Phase 3 (noise prediction, where PEFT's adapters learn), on random
    latents and captions: what went in, the loss, every gradient. The adapters go to the file `lora`."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    draw = lambda *shape: torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)
    schedule = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    if schedule.config.prediction_type != "epsilon":
        raise SystemExit("trace.py: --gradients is for models that predict noise")
    a = schedule.alphas_cumprod.double()
    wide = lambda x: x.float().reshape(-1, 1, 1, 1)
    alpha, sigma = lambda t: wide(a[t].sqrt()), lambda t: wide((1 - a[t]).sqrt())
    config = unet.config
    side, dim, size = side or config.sample_size, config.cross_attention_dim, config.in_channels
    z, noise = draw(n, size, side, side), draw(n, size, side, side + 1)[..., 1:].contiguous()
    context = draw(2 * n if phase == "lcm" else n, tokens, dim)
    out = {"inputs.z": z, "inputs.noise": noise, "inputs.context": context}
    if phase == "lcm":
        index, w, k = torch.tensor([17, 41])[:n], torch.tensor([7.5, 12.0])[:n], 20
        out |= {"inputs.index": index.float(), "inputs.w": w}
        student = UNet2DConditionModel.from_config(unet.config, time_cond_proj_dim=256)
        student.load_state_dict(unet.state_dict(), strict=False)
        student.time_embedding.cond_proj.weight.data.zero_()
        frequencies = (torch.arange(128) * -(torch.tensor(10000.0).log() / 127)).double().exp().float()
        angles = 1000 * w[:, None] * frequencies
        condition = torch.cat([angles.double().sin(), angles.double().cos()], 1).float()
        far, near = (index + 1) * k - 1, (index * k - 1).clamp(min=0)
        x0 = lambda z, t, eps: (z - sigma(t) * eps) / alpha(t)

        def consistency(z, t):
            scaled = 10.0 * t.double()
            eps = student(z, t, context[n:], timestep_cond=condition).sample
            skip, scale = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25).sqrt()
            return wide(skip) * z + wide(scale) * x0(z, t, eps)

        z_far = alpha(far) * z + sigma(far) * noise
        with torch.no_grad():
            without, with_text = unet(torch.cat([z_far] * 2), torch.cat([far] * 2), context).sample.chunk(2)
            eps = with_text + wide(w) * (with_text - without)
            target = consistency(alpha(near) * x0(z_far, far, eps) + sigma(near) * eps, near)
        loss = (((consistency(z_far, far) - target) ** 2 + 0.001**2).sqrt() - 0.001).mean()
        learnt = student
    else:
        from peft import LoraConfig, inject_adapter_in_model

        t = torch.tensor([250, 777])[:n]
        unet.requires_grad_(False)
        adapters = {}
        learnt = inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), unet)
        for name, p in learnt.named_parameters():
            if p.requires_grad:
                p.data = draw(*p.shape) / p[0].numel() ** 0.5
                adapters["unet." + name.replace(".default", "")] = p.data
        save_file(adapters, lora)
        out["inputs.timesteps"] = t.float()
        loss = ((learnt(alpha(t) * z + sigma(t) * noise, t, context).sample - noise) ** 2).mean()
    loss.backward()
    for name, p in learnt.named_parameters():
        if p.grad is not None:
            out["gradient.unet." + name.replace(".default", "")] = p.grad
    return out | {"loss": loss.detach().reshape(1)}


if __name__ == "__main__":
    from diffusers import StableDiffusionPipeline

    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("model")
    p.add_argument("-p", "--prompt")
    p.add_argument("--gradients", choices=["lcm", "lora"])
    p.add_argument("--lora", default="adapters.safetensors", help="--gradients lora writes these adapters")
    p.add_argument("--negative", default="")
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--cfg", type=float, default=7.5)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("-o", "--output", default="trace.safetensors")
    p.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    a = p.parse_args()
    if a.gradients:
        tensors = gradients(a.model, a.gradients, a.seed, a.lora)
        save_file({name: value.contiguous() for name, value in tensors.items()}, a.output)
        sys.exit()
    if a.prompt is None:
        p.error("-p is required")
    dtype = getattr(torch, a.dtype)
    pipe = StableDiffusionPipeline.from_pretrained(a.model, torch_dtype=dtype, safety_checker=None)
    with Trace(pipe) as t:
        pipe(a.prompt, negative_prompt=a.negative, num_inference_steps=a.steps, guidance_scale=a.cfg,
             generator=torch.Generator().manual_seed(a.seed))
    t.save(a.output)
