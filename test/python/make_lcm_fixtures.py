"""Writes test/fixtures/lcm.safetensors: one step of latent consistency distillation in PyTorch, and its
parts, as the published script of diffusers (train_lcm_distill_sd_wds.py) computes them. test/phases/lcm.c
computes the same step in C. Weights and batches are not stored: both sides draw them from PyTorch's
generator, seeded by a hash of their names. The network runs in float64, so the test sees the rounding errors
of sd alone; tables and sinusoids are fp32 as in the script.

    python test/python/make_lcm_fixtures.py           (PyTorch, diffusers, safetensors)
    python test/python/make_lcm_fixtures.py --full    fixtures/lcm-sd15.safetensors: a step of Stable
                                                      Diffusion v1.5, made weights, fp32 (12 GB, minutes)
"""
import json
import os
import sys

import torch
from diffusers import DDPMScheduler, LCMScheduler, UNet2DConditionModel
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
out = {}


def draw(name, *shape):
    """Normal random values for a name, fp32."""
    h = 2166136261
    for byte in name.encode():
        h = ((h ^ byte) * 16777619) % 2**32
    return torch.randn(*shape, generator=torch.Generator().manual_seed(h), dtype=torch.float32)


def weight(role, name, shape):
    """All three networks are close to one another, as in training, but not equal."""
    x = draw("base " + name, *shape) + 0.1 * draw(role + " " + name, *shape)
    if name.endswith(".bias"):
        return 0.1 * x
    if len(shape) == 1:
        return 1 + 0.1 * x
    fan_in = torch.Size(shape[1:]).numel()
    return (0.3 if "cond_proj" in name else 0.8) / fan_in**0.5 * x


def network(role, guidance):
    config = json.load(open(f"{HERE}/configs/tiny/unet.json"))
    config["time_cond_proj_dim"] = 256 if guidance else None
    net = UNet2DConditionModel.from_config(config).double()
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(weight(role, name, tuple(p.shape)))
    net.time_proj = ExactTimesteps()
    return net


def table(x, t):
    return x[t].double().reshape(-1, 1, 1, 1)


schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
alphas = schedule.alphas_cumprod.sqrt()
sigmas = (1 - schedule.alphas_cumprod).sqrt()
K, N = 20, 50
solver_timesteps = torch.arange(1, N + 1) * K - 1
solver_previous = torch.cat([schedule.alphas_cumprod[:1], schedule.alphas_cumprod[solver_timesteps[:-1]]])


# PyTorch's fp32 exp is sometimes off by one in the last bit, and differs between machines. At an angle of
# 14,000 rad that changes the sine by 1e-3. PyTorch's own embedding is compared by itself; in the networks
# below exp is rounded once.
def embed(w, exact=True):
    ratio = torch.log(torch.tensor(10000.0, dtype=torch.float32)) / 127
    steps = torch.arange(128, dtype=torch.float32) * -ratio
    frequencies = steps.double().exp().float() if exact else steps.exp()
    angles = (w.float() * 1000)[:, None] * frequencies[None]
    return ((angles.double().sin_() if exact else angles.sin()),
            (angles.double().cos_() if exact else angles.cos()), angles)


def embedding(w):
    sine, cosine, _ = embed(w)
    return torch.cat([sine, cosine], 1)


class ExactTimesteps(torch.nn.Module):
    """diffusers' Timesteps(2 * half, flip_sin_to_cos=True, downscale_freq_shift=0), exp rounded once."""

    def __init__(self, half=24):
        super().__init__()
        self.half = half

    def forward(self, t):
        steps = -torch.log(torch.tensor(10000.0, dtype=torch.float32))
        steps = steps * torch.arange(self.half, dtype=torch.float32) / self.half
        angles = (t.float()[:, None] * steps.double().exp().float()[None]).double()
        return torch.cat([angles.cos(), angles.sin()], 1)


def x0_of(kind, output, t, z):
    a, s = table(alphas, t), table(sigmas, t)
    return {"epsilon": (z - s * output) / a, "sample": output, "v_prediction": a * z - s * output}[kind]


def noise_of(kind, output, t, z):
    a, s = table(alphas, t), table(sigmas, t)
    return {"epsilon": output, "sample": (z - a * output) / s, "v_prediction": a * output + s * z}[kind]


def scalings(t, boundary):
    if not boundary:
        return 0.0, 1.0
    scaled = 10.0 * t.double()
    return [x.reshape(-1, 1, 1, 1) for x in (0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25).sqrt())]


def ddim(x0, noise, index):
    previous = solver_previous[index].double().reshape(-1, 1, 1, 1)
    return previous.sqrt() * x0 + (1 - previous).sqrt() * noise


def loss_of(student, target, teacher, b, kind="epsilon", loss="huber", boundary=True, snr=False):
    start = solver_timesteps[b["index"]]
    t = (start - K).clamp(min=0)
    z = table(alphas, start) * b["z"] + table(sigmas, start) * b["noise"]
    w, cond = b["w"].double().reshape(-1, 1, 1, 1), embedding(b["w"])
    skip, scale = scalings(start, boundary)
    output = student(z, start, timestep_cond=cond, encoder_hidden_states=b["text"]).sample
    prediction = skip * z + scale * x0_of(kind, output, start, z)
    with torch.no_grad():
        with_text = teacher(z, start, encoder_hidden_states=b["text"]).sample
        without = teacher(z, start, encoder_hidden_states=b["no_text"]).sample
        x0 = [x0_of(kind, y, start, z) for y in (with_text, without)]
        noise = [noise_of(kind, y, start, z) for y in (with_text, without)]
        z_near = ddim(x0[0] + w * (x0[0] - x0[1]), noise[0] + w * (noise[0] - noise[1]), b["index"])
        output = target(z_near, t, timestep_cond=cond, encoder_hidden_states=b["text"]).sample
        skip, scale = scalings(t, boundary)
        goal = skip * z_near + scale * x0_of(kind, output, t, z_near)
    d = prediction - goal
    d = d**2 if loss == "l2" else (d**2 + 0.001**2).sqrt() - 0.001
    return (d * table(alphas, start) / table(sigmas, start)).mean() if snr else d.mean()


def batch(name, index):
    n = len(index)
    return {
        "index": torch.tensor(index),
        "w": 5 + 10 * torch.sigmoid(draw(name + " w", n)),
        "z": draw(name + " z", n, 4, 16, 16).double(),
        "noise": draw(name + " noise", n, 4, 16, 16).double(),
        "text": draw(name + " text", n, 32, 128).double(),
        "no_text": draw("no text", 1, 32, 128).double().expand(n, -1, -1),
    }


def sampled(x, count):
    n = x.numel()
    return x.reshape(-1)[(torch.arange(count) * 2654435761 + 12345) % n]


def norm(x):
    """Summed in double: in fp32 the norm of 30 million values is off by some thousandths."""
    return torch.linalg.vector_norm(x, dtype=torch.float64).float()


def full():
    """One network plays all three roles: they begin with the same weights, and without the guidance embedding
    the student is the teacher. Everything around it stays in double. Gradients, in the order of names:
    largest value, norm, 6 entries."""
    torch.set_default_dtype(torch.float32)
    import peers
    from trace import disk_name

    net = peers.model("unet", "sd15-lcm").requires_grad_(True)
    net.time_proj = ExactTimesteps(160)
    net.enable_gradient_checkpointing()
    net.train()

    def single(z, t, timestep_cond=None, encoder_hidden_states=None):
        cond = None if timestep_cond is None else timestep_cond.float()
        answer = net(z.float(), t, encoder_hidden_states.float(), timestep_cond=cond)
        answer.sample = answer.sample.double()
        return answer

    b = {"index": torch.tensor([24]), "w": torch.tensor([7.5])}
    for name, shape in (("z", (1, 4, 64, 64)), ("noise", (1, 4, 64, 64)), ("text", (1, 77, 768)),
                        ("no_text", (1, 77, 768))):
        b[name] = peers.made_input("lcm.full." + name, shape).double()
    loss = loss_of(single, single, single, b)
    loss.backward()
    print("loss", loss.item())
    facts = lambda g: torch.cat([g.abs().max()[None], norm(g)[None], sampled(g, 6)])
    rows = {disk_name("unet", name): facts(p.grad)
            for name, p in net.named_parameters()}
    save_file({"loss": loss.detach().float().reshape(1),
               "gradients": torch.stack([rows[k] for k in sorted(rows)])},
              f"{HERE}/fixtures/lcm-sd15.safetensors")


if "--full" in sys.argv:
    full()
    sys.exit()

# Tables: the noise schedule, scalings of all timesteps, the solver's step from each of its timesteps, the
# embedding of w.
out["alphas_cumprod"] = schedule.alphas_cumprod
lcm = LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
both = [lcm.get_scalings_for_boundary_condition_discrete(t) for t in range(1000)]
out["scalings"] = torch.tensor([[float(a), float(b)] for a, b in both])
index = torch.arange(N)
z, y = draw("solver z", N, 4, 1, 1).double(), draw("solver y", N, 4, 1, 1).double()
start = solver_timesteps
for kind in ("epsilon", "v_prediction", "sample"):
    step = ddim(x0_of(kind, y, start, z), noise_of(kind, y, start, z), index)
    out["solver." + kind] = step.reshape(N, 4)
w = torch.tensor([0.0, 1.0, 5.0, 6.5, 7.3, 9.99, 12.34, 14.0, 15.0])
sine, cosine, angles = embed(w, exact=False)
out["w"], out["w.embedding"], out["w.angles"] = w, torch.cat([sine, cosine], 1), angles

# One step.
teacher, student, target = network("teacher", False), network("student", True), network("target", True)
b = batch("one", [0, 17, 49])
out["one.w"] = b["w"]
for name, options in {
    "huber": {}, "l2": {"loss": "l2"}, "v_prediction": {"kind": "v_prediction"}, "sample": {"kind": "sample"},
    "no_boundary": {"boundary": False}, "snr": {"snr": True},
}.items():
    with torch.set_grad_enabled(name == "huber"):
        loss = loss_of(student, target, teacher, b, **options)
    out["loss." + name] = loss.detach().reshape(1)
    print(name, float(loss.detach()))
    if name == "huber":
        loss.backward()
for name, p in student.named_parameters():
    head = torch.stack([p.grad.abs().max(), p.grad.norm()])
    out["grad." + name] = torch.cat([head, sampled(p.grad, 24)])
print("norm", float(torch.nn.utils.clip_grad_norm_(student.parameters(), 1e9)))

# The optimiser's step and the moving average, fed gradients that both sides know.
for name, p in student.named_parameters():
    p.grad = (0.01 * draw("gradient " + name, *p.shape)).double()
adamw = torch.optim.AdamW(student.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01, eps=1e-8)
torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
adamw.step()
with torch.no_grad():
    for (name, t), s in zip(target.named_parameters(), student.parameters()):
        t.mul_(0.95).add_(s, alpha=0.05)
        out["ema." + name] = sampled(t, 8)

# Ten steps: the target follows the student from the student's own start, as the script has it.
student, target = network("student", True), network("student", True)
adamw = torch.optim.AdamW(student.parameters(), lr=5e-5, betas=(0.9, 0.999), weight_decay=0.01, eps=1e-8)
losses = []
for i in range(10):
    b = batch(f"step {i}", [(7 * i + 3) % N, (31 * i + 20) % N])
    out[f"w.{i}"] = b["w"]
    loss = loss_of(student, target, teacher, b)
    adamw.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    adamw.step()
    with torch.no_grad():
        for t, s in zip(target.parameters(), student.parameters()):
            t.mul_(0.95).add_(s, alpha=0.05)
    losses.append(float(loss))
    print(i, losses[-1], flush=True)
out["losses"] = torch.tensor(losses)

save_file({k: v.float().contiguous() for k, v in out.items()}, f"{HERE}/fixtures/lcm.safetensors")
