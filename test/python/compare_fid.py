# compare_fid.py: `sd fid` against pytorch-fid, live, at the full architecture with made weights, on real
# photos.
#
#     python test/python/compare_fid.py PHOTOS [--sd ./sd] [--photos 300]
#         [--only features,hard,fid,npz,kid,memory,frechet,speed]
#
# or `make reference PHOTOS=DIR`. PHOTOS is a folder of at least 2 x 300 JPEGs (fewer with --photos). Each
# line says what was compared, the figure and its limit; the exit status is 1 if one is missed. Takes some
# minutes on two cores; `speed` and `frechet` need a quiet machine: they interleave the two programs and
# compare medians.
import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
import torchvision.transforms as TF
from PIL import Image
from pytorch_fid import fid_score
from pytorch_fid import inception as fid_inception
from safetensors.numpy import load_file, save_file

import made

parser = argparse.ArgumentParser()
parser.add_argument("photos_dir", type=Path)
parser.add_argument("--sd", default="./sd")
parser.add_argument("--only", default="features,hard,fid,npz,kid,memory,frechet,speed")
parser.add_argument("--photos", type=int, default=300)
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()
torch.set_num_threads(args.threads)
work = Path(tempfile.mkdtemp(prefix="sd-fid-"))
missed = 0


def report(what, value, bar, at_least=False):
    global missed
    ok = value >= bar if at_least else value <= bar
    missed += not ok
    print(f"{'ok     ' if ok else 'MISSED '} {what}: {value:.3g}, "
          f"{'at least' if at_least else 'at most'} {bar:g}", flush=True)


def sd(*words, figures=True):
    command = [args.sd, "fid", *map(str, words), "-q", "-t", str(args.threads)]
    command += ["--json"] if figures else []
    out = subprocess.run(command, capture_output=True, text=True)
    if out.returncode:
        sys.exit(f"{' '.join(command)}: {out.stderr}")
    return json.loads(out.stdout) if figures else None


def folder(name, files):
    """A folder of links to these files."""
    (work / name).mkdir()
    for f in files:
        (work / name / f.name).symlink_to(f.resolve())
    return work / name


# ---- pytorch-fid's network with made weights ---------------------------------------------------------------


def network(hard):
    """As pytorch-fid builds it, but for the download: its own class asks for the state and is given it."""
    names = fid_inception._inception_v3(num_classes=1008, aux_logits=False, weights=None).state_dict()
    state = {k: made.made(k, tuple(v.shape), hard) for k, v in names.items()
             if not k.endswith("num_batches_tracked")}
    path = work / f"inception-{'hard' if hard else 'soft'}.safetensors"
    save_file(state, path)
    tensors = {n: torch.from_numpy(v) for n, v in state.items()}
    fid_inception.load_state_dict_from_url = lambda *a, **k: tensors
    return fid_inception.InceptionV3([3]).eval(), path


# fid_inception_v3's blocks have torchvision's names and shapes, so its state_dict is complete.


def features(net, files, dtype=torch.float32, batch=10):
    out = []
    with torch.no_grad():
        for i in range(0, len(files), batch):
            # resized one at a time: pytorch-fid's own loader cannot batch photos of different sizes
            x = [TF.ToTensor()(Image.open(f).convert("RGB"))[None].to(dtype) for f in files[i : i + batch]]
            x = [torch.nn.functional.interpolate(t, size=(299, 299), mode="bilinear", align_corners=False)
                 for t in x]
            out.append(net(torch.cat(x))[0].flatten(1))  # a second resize to the same size changes nothing
    return torch.cat(out).numpy()


photos = sorted(p for p in args.photos_dir.iterdir() if p.suffix == ".jpg")[: 2 * args.photos]
if len(photos) < 2 * args.photos:
    sys.exit(f"{args.photos_dir} holds {len(photos)} .jpg files, {2 * args.photos} are needed "
             "(--photos: half of them)")
sets = []
for name, part in (("a", photos[: args.photos]), ("b", photos[args.photos :])):
    png, jpeg = work / name, folder(f"{name}-jpeg", part)
    png.mkdir()
    for p in part:
        Image.open(p).convert("RGB").save(png / f"{p.stem}.png", compress_level=1)
    sets.append((png, jpeg, sorted(png.iterdir()), sorted(jpeg.iterdir())))
few = folder("few", sets[0][2][:64])
files = sorted(few.iterdir())
parts = args.only.split(",")
net, weights = network(False)

if "features" in parts:
    sd("features", few, "-o", work / "f.safetensors", "--weights", weights)
    got, want = load_file(work / "f.safetensors")["features"], features(net, files)
    report("features of 64 photos, relative to the largest", np.abs(got - want).max() / np.abs(want).max(),
           1e-4)

if "hard" in parts:
    hard, hard_weights = network(True)
    sd("features", folder("sixteen", files[:16]), "-o", work / "h.safetensors", "--weights", hard_weights)
    got, single = load_file(work / "h.safetensors")["features"], features(hard, files[:16])
    exact = features(hard.double(), files[:16], torch.float64)
    error, peer = np.abs(got - exact).max(), np.abs(single - exact).max()
    print(f"        hard weights: error {error:.3g}, PyTorch's fp32 {peer:.3g}, "
          f"largest feature {np.abs(exact).max():.3g}")
    report("hard weights: error in multiples of PyTorch's own", error / peer, 3)

if {"fid", "npz", "kid"} & set(parts):
    stats, kept = [], []
    for png, jpeg, pngs, jpegs in sets:
        f = features(net, pngs)
        kept.append(f)
        stats.append((f.astype(np.float64).mean(0), np.cov(f.astype(np.float64), rowvar=False)))
    want = fid_score.calculate_frechet_distance(*stats[0], *stats[1])

if "fid" in parts:
    figures = sd(sets[0][0], sets[1][0], "--weights", weights)
    report(f"FID of PNG ({figures['fid']:.6g}, pytorch-fid {want:.6g})", abs(figures["fid"] / want - 1), 1e-4)
    # Most of that error is SciPy's: with fewer pictures than features the product is singular. The trace of
    # its square root is also the sum of the singular values of X Y^T, X and Y being the centred features.
    x, y = (f.astype(np.float64) - f.astype(np.float64).mean(0) for f in kept)
    root = np.linalg.svd(x @ y.T, compute_uv=False).sum() / (len(x) - 1)
    exact = sum(((stats[0][0] - stats[1][0]) ** 2, *(np.diag(c) for _, c in stats))).sum() - 2 * root
    report(f"FID of PNG beside the exact root ({exact:.6g})", abs(figures["fid"] / exact - 1), 1e-4)
    figures = sd(sets[0][1], sets[1][1], "--weights", weights)
    report(f"FID of JPEG ({figures['fid']:.6g}), beside pytorch-fid's of the same pictures",
           abs(figures["fid"] / want - 1), 1e-2)
    clean = sd(sets[0][0], sets[1][0], "--weights", weights, "--resize", "clean")
    print(f"        FID with --resize clean: {clean['fid']:.6g}")
    same = sd(sets[0][0], sets[0][0], "--weights", weights)
    report("FID of a set and itself, by the trace", abs(same["fid"]) / np.trace(stats[0][1]), 1e-6)
    ten = folder("ten", sets[0][2][:10])
    same = sd(ten, ten, "--weights", weights)
    trace = np.trace(np.cov(kept[0][:10].astype(np.float64), rowvar=False))
    report("FID of ten pictures and themselves, by the trace", abs(same["fid"]) / trace, 1e-6)

if "npz" in parts:
    sd("stats", sets[0][0], "-o", work / "ours.npz", "--weights", weights)
    np.savez_compressed(work / "theirs-a.npz", mu=stats[0][0], sigma=stats[0][1])
    np.savez(work / "theirs-b.npz", mu=stats[1][0], sigma=np.asfortranarray(stats[1][1]))
    ours = np.load(work / "ours.npz")
    loaded = fid_score.calculate_frechet_distance(ours["mu"], ours["sigma"], *stats[1])
    report("our statistics in pytorch-fid", abs(loaded / want - 1), 1e-4)
    theirs = sd(work / "theirs-a.npz", work / "theirs-b.npz")["fid"]
    report("pytorch-fid's statistics here", abs(theirs / want - 1), 1e-4)

if "kid" in parts:
    x, y = (f.astype(np.float64) for f in kept)
    k = lambda s, t: (s @ t.T / 2048 + 1) ** 3
    kxx, kyy, n = k(x, x), k(y, y), len(x)
    mmd = (kxx.sum() - np.trace(kxx) + kyy.sum() - np.trace(kyy)) / (n * (n - 1)) - 2 * k(x, y).mean()
    got = sd(sets[0][0], sets[1][0], "--weights", weights)
    report(f"KID ({got['kid']:.6g} +- {got['kid_stderr']:.2g})", abs(got["kid"] - mmd),
           1e-6 * max(1, abs(mmd)))

if "memory" in parts:

    def peak(*words):
        """KB, from Linux's /proc while the child runs: wait4 would include this program's own size."""
        command = [args.sd, "fid", *map(str, words), "-q", "-t", str(args.threads)]
        child, high = subprocess.Popen(command), 0
        while child.poll() is None:
            found = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{child.pid}/status").read_text())
            high = int(found[1]) if found else high
            time.sleep(0.01)
        if child.returncode:
            sys.exit(f"{' '.join(map(str, command))} failed")
        return high

    # The small network on many links to few photos: the full network's own memory varies by megabytes.
    dirs = []
    for n in (300, 3000):
        dirs.append(work / f"times-{n}")
        dirs[-1].mkdir()
        for i in range(n):
            (dirs[-1] / f"{i:04}.png").symlink_to(files[i % len(files)].resolve())
    less, more = (peak("stats", d, "-o", work / "memory.npz") for d in dirs)
    report(f"KB more a picture, statistics ({less} KB of 300, {more} of 3000)", (more - less) / 2700, 0.5)
    less, more = (peak("features", d, "-o", work / "memory.safetensors") for d in dirs)
    report(f"KB more a picture, 512 features kept: 2 and names ({less} KB, {more} KB)", (more - less) / 2700,
           2.5)

if "frechet" in parts:
    rng = np.random.default_rng(0)
    pair = [np.abs(rng.standard_normal((4096, 2048)) * np.exp(-np.arange(2048) / 500) + s) for s in (0, 0.1)]
    moments = [(x.mean(0), np.cov(x, rowvar=False)) for x in pair]
    for i, (mu, sigma) in enumerate(moments):
        np.savez(work / f"{i}.npz", mu=mu, sigma=sigma)
    (m1, c1), (m2, c2) = moments

    def by_scipy():  # from the files, as sd
        (m1, c1), (m2, c2) = ((f["mu"], f["sigma"])
                              for f in (np.load(work / "0.npz"), np.load(work / "1.npz")))
        low = np.linalg.cholesky(c1)
        w = scipy.linalg.eigvalsh(low.T @ c2 @ low)
        return ((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * np.sqrt(w.clip(0)).sum()

    ours, theirs = [], []
    for _ in range(3):
        start = time.time()
        got = sd(work / "0.npz", work / "1.npz")["fid"]
        ours.append(time.time() - start)
        start = time.time()
        want_here = by_scipy()
        theirs.append(time.time() - start)
    report(f"Frechet distance beside eigvalsh ({got:.10g})", abs(got / want_here - 1), 1e-6)
    root = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2) - 2 * np.trace(scipy.linalg.sqrtm(c1 @ c2)).real
    report("Frechet distance beside SciPy's sqrtm", abs(got / root - 1), 1e-6)
    report("its seconds, reading included", statistics.median(ours), 15)
    report("its time, reading included, by Cholesky + eigvalsh's",
           statistics.median(ours) / statistics.median(theirs), 1)

if "speed" in parts:
    peers = {"pytorch-fid": lambda: features(net, files, batch=50)}
    if find_spec("openvino"):
        import openvino

        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        with torch.no_grad():
            model = openvino.convert_model(net, example_input=torch.zeros(8, 3, 299, 299))
        compiled = openvino.compile_model(model, "CPU", settings)
        peers["OpenVINO"] = lambda: features(lambda x: [torch.from_numpy(compiled(x.numpy())[0])], files,
                                             batch=8)
    peers["sd"] = lambda: sd("features", few, "-o", work / "s.safetensors", "--weights", weights)
    rates = {name: [] for name in peers}
    for _ in range(3):
        for name, run in peers.items():
            start = time.time()
            run()
            rates[name].append(len(files) / (time.time() - start))
    rates = {name: statistics.median(values) for name, values in rates.items()}
    print("        images/s:", ", ".join(f"{name} {rate:.2f}" for name, rate in rates.items()))
    for name, limit in {"pytorch-fid": 1.5, "OpenVINO": 0.9}.items():
        if name in peers:
            report(f"throughput by {name}'s", rates["sd"] / rates[name], limit, at_least=True)

sys.exit(missed > 0)
