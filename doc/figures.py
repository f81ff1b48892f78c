#!/usr/bin/env python3
# figures.py: draws the figures of THEORY.md as SVG. Shapes and timesteps are taken from what ./sd does with
# the tiny model, so a figure cannot say anything else than the program. Needs no packages; after a change run
#
#     python3 doc/figures.py ./sd doc/figures
#
# test/house/figures.sh.test draws them again and compares.
import json
import math
import os
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

INK, QUIET, LINE = "#1d1d1f", "#5b5b63", "#c9c9ce"
BLUE, ORANGE, GREEN, PURPLE = "#2563eb", "#b45309", "#0f766e", "#a21caf"
MODEL = "weights/tiny"


class Figure:
    """Shapes on a light card, so that it can be read on a page of any colour."""

    def __init__(self, width, height, title):
        self.lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" aria-label="{title}" font-family="system-ui, sans-serif" '
            'font-size="14">',
            f"<title>{title}</title>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#fdfdfd" stroke="{LINE}"/>']

    def text(self, x, y, content, anchor="start", colour=INK, size=14, weight="normal", mono=False):
        content = content.replace("&", "&amp;").replace("<", "&lt;")
        family = ' font-family="ui-monospace, monospace"' if mono else ""
        self.lines.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}" '
                          f'font-size="{size}" font-weight="{weight}"{family}>{content}</text>')

    def box(self, x, y, w, h, colour=INK, fill="#ffffff", dashed=False):
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.lines.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="5" fill="{fill}" '
                          f'stroke="{colour}" stroke-width="1.5"{dash}/>')

    def path(self, points, colour=INK, width=1.5, dashed=False, arrow=False):
        d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        if arrow:
            (x0, y0), (x1, y1) = points[-2:]
            way = math.atan2(y1 - y0, x1 - x0)
            ends = [(x1 - 9 * math.cos(way + turn), y1 - 9 * math.sin(way + turn)) for turn in (0.4, -0.4)]
            d += "".join(f"M{x:.1f} {y:.1f}L{x1:.1f} {y1:.1f}" for x, y in ends)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.lines.append(f'<path d="{d}" fill="none" stroke="{colour}" stroke-width="{width}"{dash}/>')

    def dot(self, x, y, colour=INK, r=4.5, fill=None):
        self.lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" fill="{fill or colour}" '
                          f'stroke="{colour}" stroke-width="1.5"/>')

    def save(self, path):
        path.write_text("\n".join(self.lines + ["</svg>"]) + "\n", encoding="utf-8")


def header(path):
    """The JSON header of a safetensors file, and where its data begin."""
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        return json.loads(file.read(length)), 8 + length


def trace(sd, *options):
    """Shapes (h x w x c or as they are) of all blocks of one picture, and the timesteps of its steps."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.safetensors"
        subprocess.run([sd, "sample", "-q", "-m", MODEL, "-p", "a dog", "--cfg", "1", "--dump", path, "-o",
                        Path(folder) / "dog.png", *options], check=True, stdout=subprocess.DEVNULL,
                       env={**os.environ, "OMP_NUM_THREADS": "1"})
        head, begin = header(path)
        at = head["inputs.timesteps"]["data_offsets"]
        data = path.read_bytes()[begin + at[0]:begin + at[1]]
        times = [round(t) for t in struct.unpack(f"<{len(data) // 4}f", data)]
        return {name: t["shape"] for name, t in head.items() if "shape" in t}, times


# ---- the UNet ----------------------------------------------------------------------------------------------

def unet(sd, out):
    shapes, _ = trace(sd, "--steps", "1")
    shapes = {name.removeprefix("unet."): shape for name, shape in shapes.items() if name.startswith("unet.")}
    blocks = [name for name in shapes if name not in ("input", "time_embedding")]
    sides = sorted({shapes[name][2] for name in blocks}, reverse=True)
    down = [[] for _ in sides]  # what is made on the way down at this side, in order
    middle = [name for name in blocks if name.startswith("mid_block")]
    up = [[] for _ in sides]
    for name in blocks:
        if name not in middle:
            (up if name.startswith(("up", "conv_out")) else down)[sides.index(shapes[name][2])].append(name)
    # Stable Diffusion v1.5's channels at each level: those of its convolutions that keep them.
    kernels = subprocess.run([sd, "info", "--kernels", "sd15"], check=True, capture_output=True,
                             text=True).stdout
    theirs = {int(h): int(c) for h, c, oc in
              re.findall(r"conv2d_normed +n=2 h=(\d+) w=\d+ c=(\d+) .* oc=(\d+) ", kernels) if c == oc}
    rows, width, high = [0] * len(sides), 1000, 22
    for i in range(len(sides)):
        rows[i] = max(len(down[i]), len(up[i]))
    top, gap, wide = 84, 34, 290
    height = top + sum(rows) * high + len(sides) * gap + (len(middle) + 1) * high + 46
    f = Figure(width, height, "The UNet of weights/tiny: the shape of every block's output")
    f.text(24, 32, "The UNet of weights/tiny: what each block makes, height × width × channels",
           weight="600", size=16)
    f.text(24, 54, "Arrows across: skip connections. A ResNet on the right reads them beside what comes from "
           "below. In brackets: Stable Diffusion v1.5's.", colour=QUIET, size=13)

    def item(x, y, name):
        n, c, h, w = shapes[name]
        colour = PURPLE if "attention" in name else GREEN if "sampler" in name else INK
        f.text(x + 10, y + 16, name, colour=colour, size=12, mono=True)
        f.text(x + wide - 10, y + 16, f"{h}×{w}×{c}", "end", size=12, mono=True)

    y, places, ends = top, {}, []
    for i, side in enumerate(sides):
        left, right, tall = 24 + 40 * i, width - 24 - wide - 40 * i, rows[i] * high
        for x, names in ((left, down[i]), (right, up[i])):
            f.box(x, y, wide, len(names) * high + 6)
            for k, name in enumerate(names):
                item(x, y + k * high, name)
                places[name] = y + k * high + 12
        there, channels = list(theirs.items())[i]
        f.text(width / 2, y - 6, f"side {side} ({there}×{there}×{channels})", "middle", QUIET, 12)
        ends.append((left, right, y, y + len(down[i]) * high + 6, y + len(up[i]) * high + 6))
        y += tall + gap
    # Skips as unet_blocks() keeps them: every output on the way down that the next block does not overwrite.
    kept = [name for i in range(len(sides)) for name in down[i]]
    kept = [name for name in kept
            if "resnets" not in name or name.replace("resnets", "attentions") not in shapes]
    readers = [name for name in blocks if name.startswith("up_blocks") and "resnets" in name]
    assert len(kept) == len(readers)
    for reader in readers:
        name = kept.pop()
        level = sides.index(shapes[name][2])
        assert shapes[name][2] == shapes[reader][2]
        left, right = ends[level][:2]
        f.path([(left + wide + 4, places[name]), (right - 4, places[reader])], BLUE, arrow=True)
    x = (width - wide) / 2
    f.box(x, y, wide, len(middle) * high + 6)
    for k, name in enumerate(middle):
        item(x, y + k * high, name)
    for i in range(len(sides) - 1):
        f.path([(ends[i][0] + 60, ends[i][3]), (ends[i][0] + 60, ends[i + 1][2])], arrow=True)
        back = ends[i + 1][1] + wide - 60
        f.path([(back, ends[i + 1][2]), (back, ends[i][4])], arrow=True)
    f.path([(ends[-1][0] + 60, ends[-1][3]), (ends[-1][0] + 60, y + 30), (x, y + 30)], arrow=True)
    back = ends[-1][1] + wide - 60
    f.path([(x + wide, y + 30), (back, y + 30), (back, ends[-1][4])], arrow=True)
    temb = shapes["time_embedding"][1]
    f.text(24, height - 16, f"Every ResNet also reads the timestep ({temb} numbers), every attention the "
           "caption's text states.", colour=QUIET, size=13)
    f.save(out / "unet.svg")


# ---- the timeline of a sampler -----------------------------------------------------------------------------

def sampler(sd, out):
    c = json.loads(Path(MODEL, "scheduler/scheduler_config.json").read_text())
    assert c["beta_schedule"] == "scaled_linear"
    first, last, total = math.sqrt(c["beta_start"]), math.sqrt(c["beta_end"]), c["num_train_timesteps"]
    kept, alphas = 1, []
    for t in range(total):
        kept *= 1 - (first + (last - first) * t / (total - 1)) ** 2
        alphas.append(math.sqrt(kept))
    rows = [("DDIM", "ddim", n) for n in (1, 4, 10)] + [("LCM", "lcm", n) for n in (1, 2, 4)]
    width, top, tall, row = 1000, 70, 170, 40
    left, right, base = 130, width - 40, top + tall
    height = base + 60 + row * len(rows) + 34
    f = Figure(width, height, "How much noise there is at each timestep, and which timesteps samplers visit")
    f.text(24, 32, "The way down: how much noise there is, and where samplers stop", weight="600", size=16)
    x = lambda t: right - (right - left) * t / (total - 1)
    y = lambda v: base - tall * v
    for v in (0, 0.5, 1):
        f.path([(left, y(v)), (right, y(v))], LINE, 1)
        f.text(left - 10, y(v) + 5, f"{v:g}", "end", QUIET, 12)
    f.path([(x(t), y(alphas[t])) for t in range(0, total, 9)], ORANGE, 2.2)
    f.path([(x(t), y(math.sqrt(1 - alphas[t] ** 2))) for t in range(0, total, 9)], BLUE, 2.2)
    f.text(x(180), y(alphas[180]) - 8, "alpha: the picture", "end", ORANGE, 13)
    f.text(x(750), y(1) - 8, "sigma: the noise", "start", BLUE, 13)
    for t in (999, 750, 500, 250, 0):
        f.text(x(t), base + 20, f"{t}", "middle", QUIET, 12)
    f.text(24, base + 20, "timestep", colour=QUIET, size=12)
    level = base + 62
    for name, scheduler, steps in rows:
        _, times = trace(sd, "--steps", str(steps), "--scheduler", scheduler, "-W", "32", "-H", "32")
        colour = GREEN if scheduler == "lcm" else INK
        f.text(24, level + 5, f"{name}, {steps} step" + "s" * (steps > 1), colour=colour, size=13)
        f.path([(left, level), (right, level)], LINE, 1)
        for k, t in enumerate(times):
            if scheduler == "lcm":  # to the end at once, and back up by new noise
                above = level - 15 + 4 * k
                f.path([(x(t), level), (x(t), above), (right, above), (right, level)], colour, 1.2)
            f.dot(x(t), level, colour)
            if steps <= 4:
                f.text(x(t), level + 19, f"{t}", "middle", colour, 12)
        level += row
    f.text(24, height - 18, "A dot is an evaluation of the network. DDIM goes from dot to dot; LCM from each "
           "dot to the end, and new noise takes it back up to the next.", colour=QUIET, size=13)
    f.save(out / "sampler.svg")


# ---- an LCM step -------------------------------------------------------------------------------------------

def lcm_step(out):
    width, height = 1000, 474
    f = Figure(width, height, "One step of latent consistency distillation")
    f.text(24, 32, "One step of latent consistency distillation: lcm_loss() in lcm.c", weight="600", size=16)
    curve = lambda u: (90 + 730 * u, 330 - 170 * u ** 1.7)  # the teacher's path, from noise to the picture
    f.path([curve(u / 40) for u in range(41)], LINE, 3)
    f.text(90, 356, "noise, t = 999", "middle", QUIET, 13)
    far, near, end = curve(0.3), curve(0.48), curve(1)
    student, target = (850, 120), (850, 190)
    f.text(880, 160, "t = 0", colour=QUIET, size=13)
    f.dot(*curve(0))
    f.dot(*end, QUIET)
    f.text(90, 400, "z_far = alpha z_0 + sigma noise [L6]: a picture of the data set, made noisy", size=13)
    f.path([(300, 384), (far[0], far[1] + 12)], arrow=True)
    f.path([far, (near[0] - 6, near[1] + 3)], ORANGE, 2.5, arrow=True)
    f.text(380, 352, "frozen teacher under guidance w [L7]: one step of DDIM, 20 timesteps [L8]",
           colour=ORANGE, size=13)
    f.path([(395, 338), ((far[0] + near[0]) / 2 + 6, (far[1] + near[1]) / 2 + 8)], ORANGE, 1)
    f.path([far, (student[0] - 8, student[1])], BLUE, 2.5, arrow=True)
    f.text(470, 172, "student f_theta(z_far, c, w, t_far)   [L10]", "end", BLUE, 13)
    f.path([near, (target[0] - 8, target[1])], GREEN, 2.5, dashed=True, arrow=True)
    f.text(585, 268, "target f_theta-(z_near, c, w, t_near)   [L9]", colour=GREEN, size=13)
    f.dot(*far, BLUE)
    f.dot(*near, GREEN)
    f.text(far[0] - 12, far[1] - 10, "t_far", "end", BLUE, 13)
    f.text(near[0] + 10, near[1] + 20, "t_near", colour=GREEN, size=13)
    f.dot(*student, BLUE)
    f.dot(*target, GREEN)
    f.path([(student[0], student[1] + 7), (target[0], target[1] - 7)], PURPLE, 2.5)
    f.text(838, 96, "loss: the two ends shall be one", "end", PURPLE, 13)
    f.path([(770, 102), (846, 140)], PURPLE, 1)
    f.text(24, 432, "The gradient goes through the student alone. After the step theta- moves a little "
           "towards theta [G9].", colour=QUIET, size=13)
    f.text(24, 452, "At t = 0 f is z itself [L11]: from there what is right spreads along the path, 20 "
           "timesteps at a time.", colour=QUIET, size=13)
    f.save(out / "lcm-step.svg")


# ---- a LoRA layer ------------------------------------------------------------------------------------------

def lora(out):
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    head, _ = header("weights/tiny-lora.safetensors")
    (rank, inputs), (outputs, _) = (head[f"{layer}.lora_{part}.weight"]["shape"] for part in "AB")
    width, height = 1000, 320
    f = Figure(width, height, "A layer with a low-rank adapter")
    f.text(24, 32, "A layer with an adapter: y = W x + s B A x", weight="600", size=16)
    f.text(24, 54, f"{layer} with weights/tiny-lora.safetensors", colour=QUIET, size=12, mono=True)
    f.box(60, 140, 60, 60)
    f.text(90, 175, "x", "middle", size=18)
    f.text(90, 220, f"{inputs}", "middle", QUIET, 13)
    f.box(330, 80, 200, 70, QUIET, "#ececef")
    f.text(430, 112, "W, frozen", "middle")
    f.text(430, 134, f"{outputs} × {inputs} = {outputs * inputs:,}", "middle", QUIET, 13)
    f.box(250, 210, 150, 50, ORANGE, "#fff7ed")
    f.text(325, 232, "A, down  [P1]", "middle", ORANGE)
    f.text(325, 251, f"{rank} × {inputs} = {rank * inputs:,}", "middle", QUIET, 13)
    f.box(460, 210, 150, 50, ORANGE, "#fff7ed")
    f.text(535, 232, "B, up: zeros first", "middle", ORANGE)
    f.text(535, 251, f"{outputs} × {rank} = {outputs * rank:,}", "middle", QUIET, 13)
    f.text(430, 226, f"{rank}", "middle", QUIET, 13)
    f.box(660, 210, 90, 50, ORANGE, "#fff7ed")
    f.text(705, 240, "× s  [P2]", "middle", ORANGE)
    f.dot(800, 170, INK, 15, "#ffffff")
    f.text(800, 176, "+", "middle", size=18)
    f.box(860, 140, 60, 60)
    f.text(890, 175, "y", "middle", size=18)
    f.text(890, 220, f"{outputs}", "middle", QUIET, 13)
    f.path([(120, 160), (180, 160), (180, 115), (326, 115)], arrow=True)
    f.path([(120, 180), (180, 180), (180, 235), (246, 235)], ORANGE, arrow=True)
    f.path([(400, 235), (456, 235)], ORANGE, arrow=True)
    f.path([(610, 235), (656, 235)], ORANGE, arrow=True)
    f.path([(750, 235), (800, 235), (800, 190)], ORANGE, arrow=True)
    f.path([(530, 115), (800, 115), (800, 150)], arrow=True)
    f.path([(815, 170), (856, 170)], arrow=True)
    f.text(24, 298, f"{rank * (inputs + outputs):,} numbers learn in place of {outputs * inputs:,}. "
           f"s = strength alpha / {rank}. Merged, W + s B A takes the place of W, and the layer is as fast "
           "as before.", colour=QUIET, size=13)
    f.save(out / "lora.svg")


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: python3 doc/figures.py ./sd FOLDER")
    sd, out = sys.argv[1], Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    unet(sd, out)
    sampler(sd, out)
    lcm_step(out)
    lora(out)


main()
