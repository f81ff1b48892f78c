"""Writes test/fixtures/kernels.safetensors: inputs, outputs and gradients of each operation as PyTorch
computes them, in double from fp32 inputs, on small odd shapes. test/nn/kernels.c reads it. Layouts are those
of lib/nn/kernels.h: pictures NHWC, convolution weights (oc, kh, kw, c).

    python test/python/make_kernel_fixtures.py        (PyTorch, diffusers, safetensors)
"""
import os

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.optimization import get_cosine_schedule_with_warmup
from safetensors.torch import save_file

torch.manual_seed(20)
out = {}


def rand(*shape, mean=0.0, deviation=1.0):
    """fp32 values, held in double, with gradients."""
    return (mean + deviation * torch.randn(*shape)).double().requires_grad_()


def put(case, **tensors):
    for name, t in tensors.items():
        if isinstance(t, (list, tuple)):
            t = torch.tensor(t, dtype=torch.int32)
        if t.dtype == torch.float64:
            t = t.float()
        out[f"{case}.{name}"] = t.detach().contiguous().clone()


def nhwc(t):
    return t.permute(0, 2, 3, 1)


# linear
x, w, b = rand(5, 7), rand(9, 7), rand(9)
y = F.linear(x, w, b)
dy = rand(5, 9)
y.backward(dy)
put("linear", params=[5, 7, 9], x=x, weight=w, bias=b, y=y, dy=dy, dx=x.grad, dweight=w.grad, dbias=b.grad)

# convolutions: h, w, c, oc, kh, kw, stride, padding (left, right, top, bottom)
cases = [
    (5, 7, 3, 6, 3, 3, 1, (1, 1, 1, 1)),
    (6, 8, 5, 4, 3, 3, 2, (0, 1, 0, 1)),  # the VAE's downsampling
    (7, 5, 4, 7, 3, 3, 2, (1, 1, 1, 1)),
    (5, 11, 4, 6, 1, 7, 1, (3, 3, 0, 0)),
    (4, 6, 9, 5, 1, 1, 1, (0, 0, 0, 0)),
]
for i, (h, wd, c, oc, kh, kw, stride, pad) in enumerate(cases):
    n = 2
    x, w, b = rand(n, c, h, wd), rand(oc, c, kh, kw), rand(oc)
    y = F.conv2d(F.pad(x, pad), w, b, stride=stride)
    dy = rand(*y.shape)
    y.backward(dy)
    put(f"conv{i}", params=[n, h, wd, c, y.shape[2], y.shape[3], oc, kh, kw, stride, pad[2], pad[0]],
        x=nhwc(x), weight=nhwc(w), bias=b, y=nhwc(y), dy=nhwc(dy), dx=nhwc(x.grad), dweight=nhwc(w.grad))

# attention: n, heads, tq, tk, d, causal
for i, (n, heads, tq, tk, d, causal) in enumerate(
        [(2, 3, 7, 5, 8, 0), (1, 2, 9, 9, 5, 1), (1, 1, 17, 17, 33, 0)]):
    q, k, v = rand(n, tq, heads * d, deviation=2), rand(n, tk, heads * d, deviation=2), rand(n, tk, heads * d)
    split = lambda t: t.view(n, -1, heads, d).transpose(1, 2)
    o = F.scaled_dot_product_attention(split(q), split(k), split(v), is_causal=bool(causal))
    o = o.transpose(1, 2).reshape(n, tq, heads * d)
    do = rand(*o.shape)
    o.backward(do)
    put(f"attention{i}", params=[n, heads, tq, tk, d, causal], q=q, k=k, v=v, o=o, do=do, dq=q.grad,
        dk=k.grad, dv=v.grad)

# norms; in the last group norm the mean is 30 times the standard deviation
for i, (n, hw, c, groups, silu, ratio) in enumerate(
        [(2, 15, 12, 4, 0, 0), (2, 9, 33, 11, 1, 0), (1, 25, 16, 4, 1, 30)]):
    x, gamma, beta = rand(n, c, hw, mean=ratio), rand(c), rand(c)
    y = F.group_norm(x, groups, gamma, beta, eps=1e-5)
    y = F.silu(y) if silu else y
    dy = rand(*y.shape)
    y.backward(dy)
    swap = lambda t: t.transpose(1, 2)
    put(f"group_norm{i}", params=[n, hw, c, groups, silu, ratio], x=swap(x), gamma=gamma, beta=beta,
        y=swap(y), dy=swap(dy), dx=swap(x.grad), dgamma=gamma.grad, dbeta=beta.grad)
x, gamma, beta = rand(6, 33), rand(33), rand(33)
y = F.layer_norm(x, (33,), gamma, beta, eps=1e-5)
dy = rand(6, 33)
y.backward(dy)
put("layer_norm", params=[6, 33], x=x, gamma=gamma, beta=beta, y=y, dy=dy, dx=x.grad, dgamma=gamma.grad,
    dbeta=beta.grad)

# elementwise
for name, f in dict(silu=F.silu, gelu=F.gelu, quick_gelu=lambda x: x * torch.sigmoid(1.702 * x), relu=F.relu,
                    exp=torch.exp, square=torch.square).items():
    x, dy = rand(77, deviation=3), rand(77)
    y = f(x)
    y.backward(dy)
    put(name, x=x, y=y, dy=dy, dx=x.grad)
x, dy = rand(5, 22), rand(5, 11)
value, gate = x.chunk(2, dim=-1)
y = value * F.gelu(gate)
y.backward(dy)
put("geglu", params=[5, 11], x=x, y=y, dy=dy, dx=x.grad)

# data movement
x = rand(2, 5, 3, 4)
y = F.interpolate(x, scale_factor=2, mode="nearest")
dy = rand(*y.shape)
y.backward(dy)
put("upsample", params=[2, 3, 4, 5], x=nhwc(x), y=nhwc(y), dy=nhwc(dy), dx=nhwc(x.grad))
# n, c, h, w, kernel, stride, pad, kind as in kernels.h (0 max, 1 average of the pixels inside, 2 with
# padding)
for i, (n, c, h, wd, k, stride, pad, kind) in enumerate(
        [(2, 3, 7, 9, 3, 2, 0, 0), (1, 5, 6, 5, 3, 1, 1, 1), (1, 5, 6, 5, 3, 1, 1, 2),
         (2, 4, 5, 6, 3, 2, 1, 0)]):
    x = rand(n, c, h, wd)
    average = lambda: F.avg_pool2d(x, k, stride, pad, count_include_pad=kind == 2)
    y = F.max_pool2d(x, k, stride, pad) if kind == 0 else average()
    dy = rand(*y.shape)
    y.backward(dy)
    put(f"pool{i}", params=[n, h, wd, c, y.shape[2], y.shape[3], c, k, k, stride, pad, pad, kind], x=nhwc(x),
        y=nhwc(y), dy=nhwc(dy), dx=nhwc(x.grad))
table, ids, dy = rand(6, 5), torch.tensor([3, 0, 3, 5, 5, 3, 1]), rand(7, 5)
y = F.embedding(ids, table)
y.backward(dy)
put("embed", params=[7, 5, 6], table=table, ids=ids.tolist(), y=y, dy=dy, dtable=table.grad)
t = torch.tensor([0, 1, 19, 261, 981, 999, 14.25], dtype=torch.float32)
for i, (dim, cos_first, shift) in enumerate([(320, 1, 0), (32, 0, 1), (7, 0, 0)]):
    y = get_timestep_embedding(t, dim, flip_sin_to_cos=bool(cos_first), downscale_freq_shift=shift)
    put(f"sinusoid{i}", params=[len(t), dim, cos_first, shift], t=t, y=y)

# losses, with a weight for each row; c of the LCM paper's code
c = torch.tensor(1e-3).double()
for name, f in dict(mse=lambda d: d**2, l1=torch.abs, huber=lambda d: torch.sqrt(d**2 + c**2) - c).items():
    x, target, weight = rand(4, 9), rand(4, 9), rand(4, mean=1, deviation=0.2)
    dloss = torch.tensor([0.75], dtype=torch.float64)
    loss = (weight[:, None] * f(x - target)).mean().reshape(1)
    loss.backward(dloss)
    put(name, params=[4, 9], prediction=x, target=target, weight=weight, loss=loss, dloss=dloss,
        dprediction=x.grad)
x, dy, dloss = rand(5, 11, deviation=4), rand(5, 11), torch.tensor([1.5], dtype=torch.float64)
y = F.log_softmax(x, dim=-1)
y.backward(dy)
dx, x.grad = x.grad, None
ids = torch.tensor([2, -1, 0, 10, 7])  # a negative id is not in the sum, but in the count
loss = F.nll_loss(F.log_softmax(x, dim=-1), ids, ignore_index=-1, reduction="sum").reshape(1) / 5
loss.backward(dloss)
put("log_softmax", params=[5, 11], x=x, ids=ids.tolist(), y=y, dy=dy, dx=dx, loss=loss, dloss=dloss,
    dx_pick=x.grad)

# AdamW with clipping, warm-up and cosine, two parameter tensors. diffusers' schedule begins at rate 0; sd.c's
# first step is the schedule's second, so the scheduler is advanced once before it.
steps, warmup, total, n1 = 6, 2, 6, 40
w1, w2 = rand(n1), rand(17)
start = torch.cat([w1, w2]).detach().clone()
optimiser = torch.optim.AdamW([w1, w2], lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
schedule = get_cosine_schedule_with_warmup(optimiser, warmup, total)
optimiser.step()  # without gradients: nothing happens
schedule.step()
gradients, ema = [], start.clone()
for step in range(1, steps + 1):
    g = rand(n1 + 17, deviation=0.5 / step**2)  # the later ones are too small to be clipped
    gradients.append(g.detach())
    w1.grad, w2.grad = g[:n1].detach().clone(), g[n1:].detach().clone()
    norm = torch.nn.utils.clip_grad_norm_([w1, w2], 1.0)
    rate = schedule.get_last_lr()[0]
    optimiser.step()
    schedule.step()
    w = torch.cat([w1, w2]).detach().clone()
    ema = 0.95 * ema + 0.05 * w
    put("adamw", **{f"w{step}": w, f"ema{step}": ema, f"norm{step}": norm.reshape(1),
                    f"rate{step}": torch.tensor([rate], dtype=torch.float64)})
put("adamw", params=[steps, warmup, total, n1], w=start, g=torch.stack(gradients))

path = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "fixtures",
                    "kernels.safetensors")
save_file(out, path)
print(f"{path}: {len(out)} tensors, {os.path.getsize(path)} bytes")
