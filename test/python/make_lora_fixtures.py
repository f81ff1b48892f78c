# make_lora_fixtures.py: low-rank adapters in PEFT, diffusers and PyTorch on the tiny architecture with made
# weights (made.py): forward passes, the losses of Phase 3 with their gradients, and files in all formats.
# Writes test/fixtures/lora.safetensors and test/fixtures/lora/*.safetensors, which test/phases/lora.c reads.
#
#     python make_lora_fixtures.py                    writes them
#     python make_lora_fixtures.py full               lora-sd15.safetensors: a forward pass and a step of
#                                                     LCM-LoRA at full size, rank 64 (8 GB, minutes)
#     python make_lora_fixtures.py time [--checkpointing] [--threads N]
#                                                     PyTorch's time for that step, random weights
#     python make_lora_fixtures.py live --sd ../sd    files of sd opened by diffusers and PEFT, and files of
#                                                     theirs by sd; with --full at full size
import argparse
import json
import logging
import resource
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

import made
import peers

FIXTURES = peers.HERE / "fixtures"
RANK, ALPHA = 2, 1.0

# The layers of lcm-lora-sdv1-5, and those of a text encoder, as ends of names.
UNET = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut",
        "time_emb_proj", "proj_in", "proj_out", "downsamplers.0.conv", "upsamplers.0.conv", "conv_in",
        "time_embedding.linear_1", "time_embedding.linear_2"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def targets(model, ends):
    return [n for n, m in model.named_modules()
            if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))
            and any(n == e or n.endswith("." + e) for e in ends)]


def owner_name(prefix, name):
    """A module's name as the files and sd.c have it (transformers 5 leaves "text_model." out)."""
    return peers.disk_name(prefix, name + ".weight").removesuffix(".weight")


def adapters(model):
    return [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]


def adapt(model, prefix, names, rank=RANK, alpha=ALPHA):
    """PEFT adapters with made weights; the test in C makes the same."""
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=names), model)
    for name, layer in adapters(model):
        for part in ("A", "B"):
            w = getattr(layer, f"lora_{part}")["default"].weight
            key = f"lora.{owner_name(prefix, name)}.lora_{part}.weight"
            w.data = torch.from_numpy(made.made(key, tuple(w.shape))).to(w.dtype, copy=True)
            w.requires_grad_(True)
    return model


def with_adapters(model, on):
    for _, layer in adapters(model):
        layer.enable_adapters(on)


def case(out, name, loss, *models):
    """A loss; and of every adapter's gradient, in the order of names: largest value, norm, 16 entries."""
    loss.backward()
    rows = {}
    for prefix, model in models:
        for layer_name, layer in adapters(model):
            for part in ("A", "B"):
                w = getattr(layer, f"lora_{part}")["default"].weight
                g = w.grad.reshape(-1)
                some = g[torch.arange(16) * len(g) // 16]
                key = f"{owner_name(prefix, layer_name)}.lora_{part}.weight"
                rows[key] = torch.cat([g.abs().max()[None], g.norm()[None], some])
                w.grad = None
    out[f"{name}.loss"] = loss.detach().reshape(1)
    out[f"{name}.gradients"] = torch.stack([rows[k] for k in sorted(rows)])


def schedule():
    return peers.scheduler("tiny", "ddim").alphas_cumprod.double()


def scalings(t):
    s = t.double() * 10
    return 0.25 / (s**2 + 0.25), s / (s**2 + 0.25) ** 0.5


def wide(x):
    return x.reshape(-1, 1, 1, 1)


def predicted_x0(net, z, t, text, condition=None):
    """f(z, t) = c_skip z + c_out x0."""
    a = wide(schedule()[t])
    skip, out = (wide(x) for x in scalings(t))
    eps = net(z, t, text, timestep_cond=condition).sample
    return skip * z + out * (z - (1 - a).sqrt() * eps) / a.sqrt()


def guidance_embedding(w, dim=256):
    half = dim // 2
    f = torch.exp(torch.arange(half) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    x = 1000 * w[:, None].float() * f[None]  # in fp32, as diffusers has it: an input, not a result
    return torch.cat([x.sin(), x.cos()], 1).double()


def kl(teacher, student, reading, temperature):
    if reading == "elements":
        p, q = (x.flatten(1) / temperature for x in (teacher, student))
        return F.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="batchmean")
    if reading == "channels":
        p, q = (x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]) / temperature for x in (teacher, student))
        return F.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="batchmean")
    p, q = (torch.distributions.Normal(x.mean((2, 3)), (x.var((2, 3), unbiased=False) + 1e-6).sqrt())
            for x in (teacher, student))
    return torch.distributions.kl_divergence(p, q).sum(1).mean()


def consistency(net, unet, z, noise, context, nothing, index, w):
    """Algorithm 1 of Luo et al.; the teacher is the base without its adapters. `net` calls `unet`. Returns
    the loss, z_t and t."""
    far, near = (index + 1) * 20 - 1, (index * 20 - 1).clamp(min=0)
    a, b = wide(schedule()[far]), wide(schedule()[near])
    z_far = a.sqrt() * z + (1 - a).sqrt() * noise
    with torch.no_grad():
        with_adapters(unet, False)
        cond, uncond = net(z_far, far, context).sample, net(z_far, far, nothing).sample
        with_adapters(unet, True)
        eps = cond + wide(w) * (cond - uncond)
        z_near = b.sqrt() * (z_far - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps
        target = predicted_x0(net, z_near, near, context)
    student = predicted_x0(net, z_far, far, context)
    return (((student - target) ** 2 + 0.001**2).sqrt() - 0.001).mean(), z_far, far


def full_case(unet):
    """The step at full size: fp32 within the network, double around it."""

    def net(z, t, context, timestep_cond=None):
        answer = unet(z.float(), t, context.float())
        answer.sample = answer.sample.double()
        return answer

    z, noise = (peers.made_input("lora.full." + x, (1, 4, 64, 64), torch.float64) for x in ("z", "noise"))
    context, nothing = (peers.made_input("lora.full." + x, (1, 77, 768), torch.float64)
                        for x in ("text", "no_text"))
    return net, z, context, lambda: consistency(
        net, unet, z, noise, context, nothing, torch.tensor([30]), torch.tensor([9.0]))[0]


def full():
    out = {}
    unet = peers.model("unet", "sd15")
    adapt(unet, "unet", targets(unet, UNET), rank=64, alpha=8)
    net, z, context, loss = full_case(unet)
    with torch.no_grad():
        y = net(z, torch.tensor([300]), context).sample.reshape(-1)
        out["unet"] = y[(torch.arange(512) * 2654435761 + 12345) % len(y)]
    unet.enable_gradient_checkpointing()
    unet.train()
    case(out, "consistency", loss(), ("unet", unet))
    print("loss", float(out["consistency.loss"]))
    save_file({k: v.float().contiguous() for k, v in out.items()}, str(FIXTURES / "lora-sd15.safetensors"))


def time_step(checkpointing):
    unet = UNet2DConditionModel.from_config(peers.config("sd15", "unet")).requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=64, lora_alpha=8, target_modules=targets(unet, UNET)), unet)
    optimiser = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=1e-4)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train()
    *_, loss = full_case(unet)
    for _ in range(3):
        started = time.time()
        loss().backward()
        optimiser.step(), optimiser.zero_grad()
        print(f"{time.time() - started:.2f} s a step of LCM-LoRA at full size", flush=True)
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB at the most")


def fixtures():
    """In float64: the test then measures the error of sd alone."""
    torch.manual_seed(0)
    out = {}
    unet = peers.model("unet", "tiny", dtype=torch.float64)
    adapt(unet, "unet", targets(unet, UNET))
    n, size = 2, 16
    z, noise = (peers.made_input("lora." + x, (n, 4, size, size), torch.float64) for x in ("z", "noise"))
    context, nothing = (peers.made_input("lora." + x, (n, 32, 128), torch.float64)
                        for x in ("text", "no_text"))
    t = torch.tensor([999, 259])
    with torch.no_grad():
        out["unet"] = unet(z, t, context).sample
        with_adapters(unet, False)
        out["unet.without"] = unet(z, t, context).sample
        with_adapters(unet, True)

    text = peers.model("text_encoder", "tiny", dtype=torch.float64)
    adapt(text, "text_encoder", targets(text, TEXT))
    ids = torch.arange(2 * 32).reshape(2, 32) * 37 % 768
    with torch.no_grad():
        out["text"] = text(ids)[0]

    # Fine-tuning, with and without min-SNR weights; the second through the text encoder too.
    a = wide(schedule()[t])
    z_t = a.sqrt() * z + (1 - a).sqrt() * noise
    case(out, "finetune", F.mse_loss(unet(z_t, t, context).sample, noise), ("unet", unet))
    snr = (a / (1 - a)).reshape(-1)
    errors = F.mse_loss(unet(z_t, t, text(ids)[0]).sample, noise, reduction="none").mean((1, 2, 3))
    case(out, "finetune_text", (errors * snr.clamp(max=5) / snr).mean(), ("unet", unet),
         ("text_encoder", text))

    # LCM-LoRA.
    index, w = torch.tensor([49, 12]), torch.tensor([5.5, 13.0], dtype=torch.float64)
    loss, z_far, far = consistency(unet, unet, z, noise, context, nothing, index, w)
    case(out, "consistency", loss, ("unet", unet))

    # Imitation of a full LCM (mimic).
    settings = dict(peers.config("tiny", "unet"), time_cond_proj_dim=256)
    with torch.device("meta"):
        lcm = UNet2DConditionModel.from_config(settings)
    peers.fill(lcm, "unet", False, torch.float64)
    with torch.no_grad():
        teacher = predicted_x0(lcm, z_far, far, context, guidance_embedding(w))
    for reading, weight, temperature in (("elements", 10.0, 1.0), ("channels", 0.5, 2.0),
                                         ("gaussians", 0.1, 1.0)):
        student = predicted_x0(unet, z_far, far, context)
        mse, divergence = F.mse_loss(student, teacher), kl(teacher, student, reading, temperature)
        out[f"mimic_{reading}.parts"] = torch.stack([mse, divergence]).detach()
        case(out, f"mimic_{reading}", mse + weight * divergence, ("unet", unet))
    save_file({k: v.float().contiguous() for k, v in out.items()}, str(FIXTURES / "lora.safetensors"))
    files()


# ---- files -------------------------------------------------------------------------------------------------

SOME = ["conv_in", "down_blocks.0.resnets.0.time_emb_proj", "down_blocks.1.resnets.0.conv_shortcut",
        "mid_block.attentions.0.proj_in", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"]
SOME_TEXT = ["encoder.layers.1.self_attn.q_proj", "encoder.layers.1.mlp.fc2"]


def kohya(state, alphas):
    """PEFT keys with their network's name in front -> kohya's."""
    out = {}
    for key, w in state.items():
        name, part = key.rsplit(".lora_", 1)
        name = name.replace("text_encoder.", "lora_te_", 1).replace("unet.", "lora_unet_", 1)
        name = name.replace(".", "_")
        out[f"{name}.lora_{'down' if part[0] == 'A' else 'up'}.weight"] = w
        out[f"{name}.alpha"] = torch.tensor(float(alphas(key, w)))
    return out


def peft_state(unet, text):
    state = {f"unet.{k}": v for k, v in get_peft_model_state_dict(unet).items()}
    for k, v in get_peft_model_state_dict(text).items():
        name = owner_name("text_encoder", k.split(".lora_")[0])
        state[f"{name}.lora_{k.split('.lora_')[1]}"] = v
    return {k: v.contiguous() for k, v in state.items()}


def files():
    from diffusers import StableDiffusionPipeline

    folder = FIXTURES / "lora"
    folder.mkdir(exist_ok=True)
    unet = adapt(peers.model("unet", "tiny"), "unet", SOME)
    text = peers.model("text_encoder", "tiny")
    names = [n for n, _ in text.named_modules() if any(n.endswith(s) for s in SOME_TEXT)]
    adapt(text, "text_encoder", names)
    deltas = {}
    for prefix, model in (("unet", unet), ("text_encoder", text)):
        for name, layer in adapters(model):
            d = layer.get_delta_weight("default").detach().reshape(-1)
            some = d[torch.arange(64) * len(d) // 64]
            deltas[owner_name(prefix, name)] = torch.cat([d.abs().max().reshape(1), some])
    save_file({k: v.contiguous() for k, v in deltas.items()}, str(folder / "deltas.safetensors"))
    state = peft_state(unet, text)
    # 1. As diffusers writes it today, alpha in the header.
    metadata = {}
    for prefix, model in (("unet", unet), ("text_encoder", text)):
        metadata |= {f"{prefix}.{k}": v for k, v in model.peft_config["default"].to_dict().items()}
    metadata = {k: list(v) if isinstance(v, set) else v for k, v in metadata.items()}
    StableDiffusionPipeline.write_lora_layers(state, str(folder), True, "peft.safetensors", None, True,
                                              metadata)
    # 2. kohya, bf16.
    save_file({k: v if k.endswith("alpha") else v.bfloat16()
               for k, v in kohya(state, lambda k, w: ALPHA).items()},
              str(folder / "kohya.safetensors"))
    # 3. diffusers before PEFT, fp16: no alpha, so the scale goes into up. The processors' names, and the text
    #    encoder's own.
    old = {}
    for k, v in state.items():
        name, part = k.split(".lora_")
        part, v = ("down", v) if part[0] == "A" else ("up", v * ALPHA / RANK)
        if k.startswith("text_encoder"):
            old[f"{name}.lora_linear_layer.{part}.weight"] = v.half()
        elif ".attn2." in name:
            block, layer = name.rsplit(".attn2.", 1)
            old[f"{block}.attn2.processor.{layer.removesuffix('.0')}_lora.{part}.weight"] = v.half()
        else:
            old[f"{name}.lora.{part}.weight"] = v.half()
    save_file(old, str(folder / "old.safetensors"))
    for f in sorted(folder.iterdir()):
        print(f.name, f.stat().st_size)


# ---- live --------------------------------------------------------------------------------------------------


class Lines(logging.Handler):
    """Warnings of diffusers, transformers and PEFT."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []
        for name in ("diffusers", "transformers", "peft"):
            logging.getLogger(name).addHandler(self)

    def emit(self, record):
        self.lines.append(record.getMessage())

    def take(self):
        lines, self.lines = [x for x in self.lines if "key" in x.lower() or "lora" in x.lower()], []
        return lines


def run(sd, *args):
    done = subprocess.run([sd, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"sd {' '.join(map(str, args))}: {done.stderr}")
    return done.stdout


def live(sd, full):
    """Files of sd in diffusers and PEFT, files of theirs in sd, and the pictures of both."""
    import numpy as np
    from diffusers import StableDiffusionPipeline
    from PIL import Image

    work = Path(tempfile.mkdtemp())
    lines = Lines()
    sd = str(Path(sd).resolve())
    run(sd, "synth", work / "model", "--arch", "tiny", "-q")
    unet, text = peers.model("unet", "tiny"), peers.model("text_encoder", "tiny")
    config = json.loads((work / "model/text_encoder/config.json").read_text())
    text.resize_token_embeddings(config["vocab_size"])
    adapt(unet, "unet", targets(unet, UNET), rank=4, alpha=1)
    adapt(text, "text_encoder", targets(text, TEXT), rank=4, alpha=1)
    metadata = {f"{prefix}.{k}": list(v) if isinstance(v, set) else v
                for prefix, model in (("unet", unet), ("text_encoder", text))
                for k, v in model.peft_config["default"].to_dict().items()}
    StableDiffusionPipeline.write_lora_layers(peft_state(unet, text), str(work), True, "theirs.safetensors",
                                              None, True, metadata)
    run(sd, "lora", "convert", work / "theirs.safetensors", "-o", work / "kohya.safetensors", "--format",
        "kohya", "-q")
    run(sd, "lora", "convert", work / "kohya.safetensors", "-o", work / "peft.safetensors", "--format",
        "peft", "-q")
    pictures, draw = {}, ["-p", "a dog", "--steps", 2, "--cfg", 1, "--seed", 3, "-q", "-m"]
    for name in ("theirs", "kohya", "peft"):
        run(sd, "sample", *draw, work / "model", "--lora", work / f"{name}.safetensors", "-o",
            work / f"{name}.png")
        pictures["sd, " + name] = np.array(Image.open(work / f"{name}.png")).astype(int)
        lines.take()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pipe = StableDiffusionPipeline.from_pretrained(work / "model", safety_checker=None)
            pipe.load_lora_weights(str(work), weight_name=f"{name}.safetensors")
        said = lines.take() + [str(w.message) for w in caught if "key" in str(w.message)]
        loaded = len(adapters(pipe.unet)), len(adapters(pipe.text_encoder))
        print(f"diffusers loads {name}: {loaded[0]} + {loaded[1]} layers, warnings: {said or 'none'}")
        pipe.set_progress_bar_config(disable=True)
        image = pipe("a dog", num_inference_steps=2, guidance_scale=1.0,
                     generator=torch.Generator().manual_seed(3)).images[0]
        pictures["diffusers, " + name] = np.array(image).astype(int)
    run(sd, "lora", "merge", "-m", work / "model", "--lora", work / "peft.safetensors", "-o", work / "merged",
        "-q")
    run(sd, "sample", *draw, work / "merged", "-o", work / "merged.png")
    pictures["sd, merged"] = np.array(Image.open(work / "merged.png")).astype(int)
    run(sd, "sample", *draw, work / "model", "-o", work / "without.png")
    pictures["(without)"] = np.array(Image.open(work / "without.png")).astype(int)
    first = pictures["diffusers, theirs"]
    for name, picture in pictures.items():
        print(f"{name}: largest difference {np.abs(picture - first).max()} of 255")
    # PEFT alone, on a fresh network.
    from peft import set_peft_model_state_dict

    fresh = peers.model("unet", "tiny")
    state = {k.removeprefix("unet."): v for k, v in load_file(work / "peft.safetensors").items()
             if k.startswith("unet.")}
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=1,
                                       target_modules=[n.split(".lora_")[0] for n in state]), fresh)
    loaded = set_peft_model_state_dict(fresh, state)
    missing = [k for k in loaded.missing_keys if "lora" in k]
    print(f"PEFT: {len(missing)} missing and {len(loaded.unexpected_keys)} unexpected keys")
    if full:
        full_files(sd, work)


def full_files(sd, work):
    """The layout of lcm-lora-sdv1-5 at full size, rank 64: what sd reads is what was written."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(peers.config("sd15", "unet"))
    torch.manual_seed(0)
    theirs = {}
    for name in targets(unet, UNET):
        w, stem = unet.get_submodule(name).weight, "lora_unet_" + name.replace(".", "_")
        theirs[stem + ".lora_down.weight"] = torch.randn(64, *w.shape[1:]).half()
        theirs[stem + ".lora_up.weight"] = torch.randn(w.shape[0], 64, *[1] * (w.ndim - 2)).half()
        theirs[stem + ".alpha"] = torch.tensor(8.0).half()
    save_file(theirs, str(work / "full.safetensors"))
    run(sd, "lora", "convert", work / "full.safetensors", "-o", work / "full-peft.safetensors", "-q")
    ours = load_file(work / "full-peft.safetensors")
    errors = []
    for key, w in ours.items():
        name, part = key.removeprefix("unet.").split(".lora_")
        stem, matrix = "lora_unet_" + name.replace(".", "_"), "down" if part[0] == "A" else "up"
        errors.append((w - theirs[f"{stem}.lora_{matrix}.weight"]).abs().max())
    print(f"full size: {len(ours)} tensors of {2 * len(theirs) // 3}, "
          f"largest difference {torch.stack(errors).max()}")


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("what", nargs="?", default="fixtures", choices=["fixtures", "full", "time", "live"])
    p.add_argument("--sd", default="../sd")
    p.add_argument("--full", action="store_true")
    p.add_argument("--checkpointing", action="store_true")
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    if a.what == "fixtures":
        fixtures()
    elif a.what == "full":
        full()
    elif a.what == "time":
        time_step(a.checkpointing)
    else:
        live(a.sd, a.full)
