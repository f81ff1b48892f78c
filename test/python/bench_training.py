# bench_training.py: a training step in ./sd and in PyTorch, interleaved in one run: the tiny model's stages
# with their shipped configuration and batch, fp32. Prints samples a second (medians) and the ratio sd /
# PyTorch: above 1, sd is faster.
#
#     python test/python/bench_training.py [--threads 2] [--rounds 3] [--steps 12] [--model DIR] [STAGE ...]
#
# DIR: a model of `sd synth DIR --arch sd15`, which the stage "full size" needs: fine-tuning a LoRA of rank 64
# at 512x512, one picture a step. Asked for by name; four steps take some minutes.
#
# PyTorch does forward, loss, backward, clipping and AdamW (fused, its fastest) in eager mode, on data in
# memory. sd's figures are those of real runs: they also draw scenes or batches, keep a moving average, write
# the log.
import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model

import peers


def parameters(*models):
    return [p for m in models for p in m.parameters() if p.requires_grad]


def trainable(part):
    return peers.model(part, "tiny").requires_grad_(True)


def stepper(loss, weights):
    optimiser = torch.optim.AdamW(weights, lr=1e-5, fused=True)

    def step():
        optimiser.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()

    return step


def tokens(n, arch="tiny"):
    settings = peers.config(arch, "text_encoder")
    return torch.randint(0, settings["vocab_size"], (n, settings["max_position_embeddings"]))


def unet(n):
    net, text, ids = trainable("unet"), trainable("text_encoder"), tokens(n)
    z, noise, t = torch.randn(n, 4, 16, 16), torch.randn(n, 4, 16, 16), torch.randint(0, 1000, (n,))
    return stepper(lambda: F.mse_loss(net(z, t, text(ids)[0]).sample, noise), parameters(net, text))


def vae(n):
    net, x = trainable("vae"), torch.randn(n, 3, 64, 64)

    def loss():
        m = net.quant_conv(net.encoder(x))
        mean, log_variance = m[:, :4], m[:, 4:]
        y = net.decoder(net.post_quant_conv(mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)))
        edges = sum(F.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (2, 3))
        kl = (mean**2 + log_variance.exp() - 1 - log_variance).mean() / 2
        return F.l1_loss(y, x) + 4 * F.mse_loss(y, x) + 0.125 * edges + 5e-4 * kl

    return stepper(loss, parameters(net))


def text(n):
    net, ids, z = trainable("text_encoder"), tokens(n), torch.randn(n, 4, 16, 16)
    tower = torch.nn.Sequential(
        torch.nn.Conv2d(4, 48, 3, 2, 1), torch.nn.SiLU(), torch.nn.Conv2d(48, 96, 3, 2, 1), torch.nn.SiLU(),
        torch.nn.Conv2d(96, 128, 3, 2, 1), torch.nn.SiLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(128, 64), torch.nn.LayerNorm(64))
    project = torch.nn.Sequential(torch.nn.Linear(128, 64), torch.nn.LayerNorm(64))

    def loss():
        scores = tower(z) @ project(net(ids)[0][:, -1]).T * 0.25
        labels = torch.arange(n)
        return (F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2

    return stepper(loss, parameters(net, tower, project))


def guided_unet():
    settings = dict(peers.config("tiny", "unet"), time_cond_proj_dim=256)
    with torch.device("meta"):
        net = UNet2DConditionModel.from_config(settings)
    return peers.fill(net, "unet", False)


def lcm(n):
    """The step of the published script: the target is evaluated at the teacher's guided DDIM step."""
    teacher, student, target = peers.model("unet", "tiny"), guided_unet().requires_grad_(True), guided_unet()
    encoder, ids = peers.model("text_encoder", "tiny"), tokens(n)
    z, w, t = torch.randn(n, 4, 16, 16), torch.randn(n, 256), torch.randint(20, 1000, (n,))
    weights = parameters(student)

    def loss():
        with torch.no_grad():
            states = encoder(ids)[0]
            cond, uncond = teacher(z, t, states).sample, teacher(z, t, torch.zeros_like(states)).sample
            near = 0.9 * z + 0.1 * (cond + 7 * (cond - uncond))
            goal = target(near, t - 20, states, timestep_cond=w).sample
        d = student(z, t, states, timestep_cond=w).sample - goal
        return ((d**2 + 1e-6).sqrt() - 1e-3).mean()

    step = stepper(loss, weights)

    def with_average():
        step()
        torch._foreach_lerp_(list(target.parameters()), weights, 0.05)

    return with_average


def adapted(rank, ends, arch="tiny"):
    net = peers.model("unet", arch)
    names = [n for n, m in net.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))
             and any(n == e or n.endswith("." + e) for e in ends)]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), net)
    return net


ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
ALL = ATTENTION + ["ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "proj_in",
                   "proj_out", "downsamplers.0.conv", "upsamplers.0.conv", "conv_in", "linear_1", "linear_2"]


def finetune(n, rank=16, arch="tiny"):
    net, encoder, ids = adapted(rank, ATTENTION, arch), peers.model("text_encoder", arch), tokens(n, arch)
    side = net.config.sample_size
    z, noise, t = torch.randn(n, 4, side, side), torch.randn(n, 4, side, side), torch.randint(0, 1000, (n,))

    def loss():
        with torch.no_grad():
            states = encoder(ids)[0]
        return F.mse_loss(net(z, t, states).sample, noise)

    return stepper(loss, parameters(net))


def full_size(n):
    return finetune(n, 64, "sd15")


def mimic(n):
    net, teacher = adapted(16, ALL), guided_unet()
    encoder, ids = peers.model("text_encoder", "tiny"), tokens(n)
    z, w, t = torch.randn(n, 4, 16, 16), torch.randn(n, 256), torch.randint(0, 1000, (n,))

    def loss():
        with torch.no_grad():
            states = encoder(ids)[0]
            goal = teacher(z, t, states, timestep_cond=w).sample
        y = net(z, t, states).sample
        kl = F.kl_div(y.flatten(1).log_softmax(1), goal.flatten(1).softmax(1), reduction="batchmean")
        return F.mse_loss(y, goal) + kl

    return stepper(loss, parameters(net))


MODEL = "weights/tiny"
STAGES = {  # PyTorch's step, the batch, sd's command; pretrain writes into a copy of the model
    "unet": (unet, 64, "pretrain unet -o {model} --data {data}"),
    "vae": (vae, 12, "pretrain vae -o {model}"),
    "text": (text, 128, "pretrain text -o {model} --data {data}"),
    "lcm": (lcm, 16, "lcm --data {data} -o {out} --sample-every 0"),
    "lora finetune": (finetune, 16, "lora finetune --data {data} -o {out}.safetensors"),
    "lora mimic": (mimic, 16, "lora distill --teacher weights/tiny-lcm --data {data} -o {out}.safetensors"),
    "full size": (full_size, 1, "lora finetune -m {full} --rank 64 --batch 1 --data {few} "
                                "-o {out}.safetensors"),
}


def sd(command, folder, options, batch):
    """Samples a second of a run, without its first two steps."""
    args = command.format(model=folder / "tiny", data=folder / "data", out=folder / "out", full=options.model,
                          few=folder / "few").split()
    steps = options.steps
    where = ["--run", folder / "run", "--fresh", "--steps", steps, "-t", options.threads, "-q"]
    subprocess.run(["./sd", *args, *map(str, where)], check=True, capture_output=True)
    log = [json.loads(line) for line in (folder / "run/log.jsonl").read_text().splitlines()]
    return batch * (steps - 2) / (log[-1]["seconds"] - log[1]["seconds"])


def torch_rate(step, batch, steps):
    step(), step()
    started = time.perf_counter()
    for _ in range(steps - 2):
        step()
    return batch * (steps - 2) / (time.perf_counter() - started)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("stages", nargs="*", default=[s for s in STAGES if s != "full size"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=22)
    parser.add_argument("--model")
    options = parser.parse_args()
    if "full size" in options.stages and not options.model:
        parser.error("the stage \"full size\" needs --model DIR")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(["cp", "-rL", MODEL, folder / "tiny"], check=True)
        for data, count in {"data": 256, "few": 8}.items():
            words = ["scenes", folder / data, "-n", str(count), "--world", "broad", "-q"]
            subprocess.run(["./sd", *words], check=True)
        print(f"{'samples a second':16} {'sd':>8} {'PyTorch':>8}  sd / PyTorch")
        for stage in options.stages:
            build, batch, command = STAGES[stage]
            step = build(batch)
            ours, theirs = [], []
            for _ in range(options.rounds):
                ours.append(sd(command, folder, options, batch))
                theirs.append(torch_rate(step, batch, options.steps))
            ratios = [a / b for a, b in zip(ours, theirs)]
            print(f"{stage:16} {statistics.median(ours):8.3g} {statistics.median(theirs):8.3g}  "
                  f"{statistics.median(ratios):.2f}", flush=True)


main()
