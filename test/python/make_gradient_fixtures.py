# make_gradient_fixtures.py: gradients of whole networks from PyTorch's autograd, for test/phases/gradients.c.
# Made weights (made.py), made inputs, the tiny configuration; with --full also Stable Diffusion v1.5's UNet
# (an hour and 14 GB).
#
# gradients.safetensors: for each parameter `<name>`: SAMPLES entries, scattered, and the largest absolute
# value; the losses; ten training steps; a hundred steps of the optimiser alone. Versions: requirements.txt.
import math
import sys

import numpy as np
import torch
from safetensors.torch import save_file

import peers
from trace import disk_name

SAMPLES = 6
torch.set_num_threads(2)


def sampled(x):
    x = x.reshape(-1)
    at = [(i * 2654435761 + 12345) % x.numel() for i in range(SAMPLES)]
    return torch.cat([x[at], x.abs().max().reshape(1)])


def trainable(part, arch):
    return peers.model(part, arch).train(False).requires_grad_(True)


def gradients(out, part, net):
    for name, p in net.named_parameters():
        out[disk_name(part, name)] = sampled(p.grad)


def token_ids(n, tokens=32):
    return torch.tensor([[(37 * i + 11 * j * j) % 700 for j in range(tokens)] for i in range(n)])


def unet_loss(net, text, step):
    x = peers.made_input(f"gradients.{step}.x", (4, 4, 16, 16))
    noise = peers.made_input(f"gradients.{step}.noise", (4, 4, 16, 16))
    t = torch.tensor([13, 250, 500, 987])
    return torch.nn.functional.mse_loss(net(x, t, text(token_ids(4))[0]).sample, noise)


def unet_and_text(out):
    net, text = trainable("unet", "tiny"), trainable("text_encoder", "tiny")
    loss = unet_loss(net, text, 0)
    loss.backward()
    out["loss.unet"] = loss.detach().reshape(1)
    gradients(out, "unet", net)
    gradients(out, "text_encoder", text)
    # Ten steps of training: AdamW, clipping, both networks.
    parameters = [*net.parameters(), *text.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=2e-4, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01)
    losses = []
    for step in range(10):
        optimiser.zero_grad()
        loss = unet_loss(net, text, step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        losses.append(loss.item())
    out["losses.training"] = torch.tensor(losses)


def vae(out):
    net = trainable("vae", "tiny")
    pixels = peers.made_input("gradients.pixels", (2, 3, 64, 64))
    moments = net.quant_conv(net.encoder(pixels))
    z = moments[:, :4] + torch.exp(0.5 * moments[:, 4:]) * peers.made_input("gradients.z", (2, 4, 8, 8)) * 0.1
    y = net.decoder(net.post_quant_conv(z))
    loss = torch.nn.functional.mse_loss(y, pixels) + (y - pixels).abs().mean()
    loss.backward()
    out["loss.vae"] = loss.detach().reshape(1)
    gradients(out, "vae", net)


def optimiser_alone(out):
    """A hundred steps on given gradients: clip_grad_norm_, AdamW, warm-up and cosine, moving average. In
    float64: a hundred fp32 roundings of PyTorch's own would be as large as the tolerance."""
    rate, warmup, total, floor, decay = 1e-2, 10, 80, 0.1, 0.95
    w = [torch.nn.Parameter(peers.made_input(f"optimiser.{n}", s).double())
         for n, s in (("a", (37,)), ("b", (5, 3)))]
    ema = [p.detach().clone() for p in w]
    optimiser = torch.optim.AdamW(w, lr=rate, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01)

    def schedule(step):  # steps count from 1
        if step <= warmup:
            return step / warmup
        at = min(1, (step - warmup) / (total - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * at))

    for step in range(1, 101):
        for name, p in zip("ab", w):
            p.grad = (peers.made_input(f"optimiser.{name}.{step}", tuple(p.shape)) * 0.3).double()
        torch.nn.utils.clip_grad_norm_(w, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = rate * schedule(step)
        optimiser.step()
        with torch.no_grad():
            for e, p in zip(ema, w):
                e.mul_(decay).add_(p, alpha=1 - decay)
    for name, p, e in zip("ab", w, ema):
        out[f"optimiser.{name}"] = p.detach().float().reshape(-1)
        out[f"optimiser.ema.{name}"] = e.float().reshape(-1)


def full(out):
    net = trainable("unet", "sd15")
    net.enable_gradient_checkpointing()
    net.train()
    x = peers.made_input("gradients.full.x", (1, 4, 64, 64))
    noise = peers.made_input("gradients.full.noise", (1, 4, 64, 64))
    context = peers.made_input("gradients.full.context", (1, 77, 768))
    loss = torch.nn.functional.mse_loss(net(x, torch.tensor([500]), context).sample, noise)
    loss.backward()
    out["loss.full"] = loss.detach().reshape(1)
    for name, p in net.named_parameters():
        out["full." + name] = sampled(p.grad)


def main():
    out = {}
    if "--full" in sys.argv:
        full(out)
        save_file(out, str(peers.HERE / "fixtures/gradients-sd15.safetensors"))
        return
    unet_and_text(out)
    vae(out)
    optimiser_alone(out)
    save_file({k: v.contiguous() for k, v in out.items()}, str(peers.HERE / "fixtures/gradients.safetensors"))


main()
