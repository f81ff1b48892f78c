"""A second opinion on the tiny models' pictures.

The judge that ships with the tiny model (weights/tiny-inception.safetensors) is one network, and a
generator might please that network alone. This script trains another: plain residual blocks instead of
Inception's branches, PyTorch instead of our own training, its own scenes, with noise, shifts and blur as
augmentation. What both say of the same pictures should agree.

    python test/python/second_judge.py ./sd FOLDER...

Each FOLDER holds pictures and prompts.jsonl, the attributes asked for, as `make paper` leaves them
(run/paper/base, run/paper/lcm, ...). The network is kept in run/second-judge.pt; --steps N trains it anew.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

VALUES = {"subject": "boy girl man woman dog", "garment": "dress shirt coat none",
          "colour": "red pink orange yellow green blue purple white black brown tan",
          "action": "stand run jump climb sit throw ride fetch",
          "place": "beach park street snow entryway mountain", "time": "day sunset night"}
VALUES = {name: values.split() for name, values in VALUES.items()}


class Block(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.one = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.skip = nn.Conv2d(cin, cout, 1, stride, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(cout), nn.BatchNorm2d(cout)

    def forward(self, x):
        y = self.norm2(self.two(F.relu(self.norm1(self.one(x)))))
        return F.relu(y + self.skip(x))


class SecondJudge(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 24, 5, 2, 2), nn.ReLU(), Block(24, 48, 2), Block(48, 96, 2),
                                  Block(96, 160, 2), Block(160, 160, 1))
        self.heads = nn.ModuleList(nn.Linear(160 * 16, len(v)) for v in VALUES.values())

    def forward(self, x):  # (n, 3, 128, 128) in [-1, 1] -> logits of each attribute
        x = F.adaptive_avg_pool2d(self.body(x), 4).flatten(1)
        return [head(x) for head in self.heads]


def read(folder, lines):
    pictures = [numpy.asarray(Image.open(folder / line["image"]).convert("RGB")) for line in lines]
    return torch.from_numpy(numpy.stack(pictures)).permute(0, 3, 1, 2)


def scenes(sd, world, count, split, seed):
    """Pictures (n, 3, 128, 128) and labels (n, 6) of scenes drawn for this purpose."""
    with tempfile.TemporaryDirectory() as parent:
        folder = pathlib.Path(parent) / "scenes"
        subprocess.run([sd, "scenes", folder, "-n", str(count), "--world", world, "--split", split,
                        "--seed", str(seed), "-q"], check=True)
        lines = [json.loads(line) for line in open(folder / "scenes.jsonl")]
        return read(folder / "Images", lines), labels_of(lines)


def labels_of(lines):
    return torch.tensor([[values.index(line[name]) for name, values in VALUES.items()] for line in lines])


def augmented(x):
    x = x.float() / 127.5 - 1
    dx, dy = (int(v) for v in torch.randint(-6, 7, (2,)))
    x = torch.roll(F.pad(x, (6, 6, 6, 6), mode="replicate"), (dy, dx), (2, 3))[:, :, 6:-6, 6:-6]
    if torch.rand(()) < 0.5:  # a picture from a decoder is softer than a drawn one
        x = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear") * 0.5 + x * 0.5
    return x + torch.rand(()) * 0.1 * torch.randn_like(x)


def right(net, x, labels):
    """Share of each attribute that is read right."""
    net.eval()
    with torch.no_grad():
        outputs = [net(part.float() / 127.5 - 1) for part in x.split(100)]
    rows = [torch.stack([out.argmax(1) for out in of_part], 1) for of_part in outputs]
    return (torch.cat(rows) == labels).double().mean(0)


def train(sd, steps):
    torch.manual_seed(0)
    parts = [scenes(sd, world, 8000, "train", 77) for world in ("broad", "flickr")]
    x, labels = (torch.cat(both) for both in zip(*parts))
    net = SecondJudge()
    optimiser = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, steps)
    for step in range(steps):
        net.train()
        rows = torch.randint(len(x), (64,))
        outputs = net(augmented(x[rows]))
        loss = sum(F.cross_entropy(out, label) for out, label in zip(outputs, labels[rows].T))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", file=sys.stderr, flush=True)
    return net


def main():
    plain = argparse.RawDescriptionHelpFormatter
    options = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    options.add_argument("sd")
    options.add_argument("folder", nargs="+")
    options.add_argument("--steps", type=int, default=0, help="train anew, for so many steps")
    options.add_argument("--keep", default="run/second-judge.pt")
    o = options.parse_args()
    keep = pathlib.Path(o.keep)
    if o.steps or not keep.exists():
        net = train(o.sd, o.steps or 2500)
        keep.parent.mkdir(parents=True, exist_ok=True)
        torch.save(net.state_dict(), keep)
    net = SecondJudge()
    net.load_state_dict(torch.load(keep))

    def row(what, shares):
        print(f"{what:28} {shares.mean():.4f}   " + "  ".join(f"{n} {s:.3f}" for n, s in zip(VALUES, shares)))

    for world in ("broad", "flickr"):
        row(f"true scenes, {world}", right(net, *scenes(o.sd, world, 1000, "test", 78)))
    for folder in map(pathlib.Path, o.folder):
        lines = [json.loads(line) for line in open(folder / "prompts.jsonl")]
        names = sorted(folder.glob("*.png"))
        if len(names) != len(lines):
            sys.exit(f"{folder}: {len(names)} pictures, {len(lines)} captions")
        pictures = read(folder, [{"image": name.name} for name in names])
        row(folder.name, right(net, pictures, labels_of(lines)))


main()
