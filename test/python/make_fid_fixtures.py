# make_fid_fixtures.py: writes test/fixtures/fid.safetensors, what test/phases/fid.c compares fid.c with.
#   Fréchet distances by SciPy's sqrtm (full rank) and by singular values (singular covariances, where sqrtm
#   errs), means and covariances by NumPy, KID and its standard error by NumPy, for pairs too, precision,
#   recall, density and coverage by the package prdc of Naeem et al., resizes by
#   PyTorch and Pillow, and a small Inception's features, logits and gradients by PyTorch, on pytorch-fid's
#   own blocks with fewer channels; and the features of pytorch-fid's whole network with made weights, hard
#   ones from a float64 run.
#
#     python test/python/make_fid_fixtures.py
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from prdc import compute_prdc
from pytorch_fid import inception as fid_inception
from safetensors.numpy import save_file
from torchvision.models import inception as tv_inception

import made

D = 24
rng = np.random.default_rng(14)
out = {}

# ---- statistics and distances ------------------------------------------------------------------------------


def features(n, decay, shift):
    x = rng.standard_normal((n, D)) * np.exp(-decay * np.arange(D) / D)
    return np.abs(x @ rng.standard_normal((D, D)) / 5 + shift).astype(np.float32)


def moments(x):
    return np.mean(x.astype(np.float64), axis=0), np.cov(x.astype(np.float64), rowvar=False)


def frechet_sqrtm(a, b):
    (m1, c1), (m2, c2) = moments(a), moments(b)
    root = scipy.linalg.sqrtm(c1 @ c2)
    return ((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * np.trace(root).real


def frechet_singular_values(a, b):
    """C = F^T F, F the centred features: tr (C1 C2)^(1/2) is the sum of the singular values of F1 F2^T."""
    (m1, c1), (m2, c2) = moments(a), moments(b)
    f1, f2 = ((x.astype(np.float64) - m) / np.sqrt(len(x) - 1) for x, m in ((a, m1), (b, m2)))
    nuclear = np.linalg.svd(f1 @ f2.T, compute_uv=False).sum()
    return ((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * nuclear


sets = {"full": (features(60, 0, 1.0), features(75, 1, 1.2)),
        "steep": (features(60, 5, 0.3), features(60, 7, 0.3)),
        "singular": (features(10, 0, 1.0), features(15, 0, 1.1))}
for name, (a, b) in sets.items():
    out[f"{name}.a"], out[f"{name}.b"] = a, b
    out[f"{name}.fid"] = np.array([frechet_singular_values(a, b) if name == "singular"
                                   else frechet_sqrtm(a, b)])
out["full.mu"], out["full.sigma"] = moments(sets["full"][0])

# ---- KID: Binkowski et al. 2018, the unbiased estimator on the whole sets ----------------------------------


def kid(x, y, paired):
    x, y, n = x.astype(np.float64), y.astype(np.float64), len(x)
    k = lambda s, t: (s @ t.T / D + 1) ** 3
    kxx, kyy, kxy, off = k(x, x), k(y, y), k(x, y), 1 - np.eye(n)
    kxx, kyy, h = kxx * off, kyy * off, (kxx + kyy - kxy - kxy.T) * off
    cross = kxy * off / (n - 1) if paired else kxy / n
    hx, hy = kxx.sum(1) / (n - 1) - cross.sum(1), kyy.sum(1) / (n - 1) - cross.sum(0)
    jackknife = 4 * (hx.var(ddof=1) + hy.var(ddof=1) + paired * 2 * np.cov(hx, hy)[0, 1]) / n
    # The interaction of i and j: what is left of h without its mean and the effects of i and of j.
    mean = h.sum() / (n * (n - 1))
    effect = (h.sum(1) - (n - 1) * mean) / (n - 2)
    left = (h - mean - effect[:, None] - effect[None, :]) * off
    second = 2 * (left**2).sum() / (n * (n - 3)) / n**2
    share = min(second / jackknife, 0.5)
    return np.array([(hx + hy).mean(), np.sqrt(jackknife * (1 - 1.9 * share**2))])


out["steep.kid"], out["steep.kid_paired"] = kid(*sets["steep"], False), kid(*sets["steep"], True)
# For sets of different size, the mean over all subsets: each sum over pairs divided by its own number of
# pairs.
x, y = (s.astype(np.float64) for s in sets["full"])
k = lambda s, t: (s @ t.T / D + 1) ** 3
kxx, kyy = k(x, x), k(y, y)
np.fill_diagonal(kxx, 0), np.fill_diagonal(kyy, 0)
out["full.kid"] = np.array([kxx.sum() / (60 * 59) + kyy.sum() / (75 * 74) - 2 * k(x, y).mean()])

# ---- precision, recall, density, coverage ------------------------------------------------------------------

for name in ("full", "steep", "singular"):
    real, fake = sets[name]
    found = compute_prdc(real_features=real, fake_features=fake, nearest_k=5)
    out[f"{name}.prdc"] = np.array([found[k] for k in ("precision", "recall", "density", "coverage")])

# ---- resizes -----------------------------------------------------------------------------------------------

SIZE = 31
for name, (h, w) in {"wide": (23, 90), "tall": (77, 12), "dot": (1, 1), "same": (SIZE, SIZE)}.items():
    picture = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
    out[f"{name}.picture"] = picture
    t = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    t = 2 * F.interpolate(t, size=(SIZE, SIZE), mode="bilinear", align_corners=False) - 1
    out[f"{name}.fid"] = t[0].permute(1, 2, 0).contiguous().numpy()
    channels = [Image.fromarray(picture[:, :, c].astype(np.float32)).resize((SIZE, SIZE), Image.BICUBIC)
                for c in range(3)]
    out[f"{name}.clean"] = np.stack([np.asarray(c).clip(0, 255) for c in channels], axis=2).astype(np.float32)

# ---- a small Inception -------------------------------------------------------------------------------------


def narrow(block, w):
    """The block with w / 16 of its channels."""
    for name, unit in block.named_modules():
        if isinstance(unit, tv_inception.BasicConv2d):
            old = unit.conv
            unit.conv = nn.Conv2d(old.in_channels * w // 16 if old.in_channels != 3 else 3,
                                  old.out_channels * w // 16, old.kernel_size, old.stride, old.padding,
                                  bias=False)
            unit.bn = nn.BatchNorm2d(old.out_channels * w // 16, eps=0.001)
    return block


class Small(nn.Module):
    def __init__(self, w, a, c, e, classes):
        super().__init__()
        unit = tv_inception.BasicConv2d
        blocks = {"Conv2d_1a_3x3": unit(3, 32, kernel_size=3, stride=2),
                  "Conv2d_2a_3x3": unit(32, 32, kernel_size=3),
                  "Conv2d_2b_3x3": unit(32, 64, kernel_size=3, padding=1), "pool1": nn.MaxPool2d(3, 2),
                  "Conv2d_3b_1x1": unit(64, 80, kernel_size=1), "Conv2d_4a_3x3": unit(80, 192, kernel_size=3),
                  "pool2": nn.MaxPool2d(3, 2)}
        channels = 192
        for i in range(a):
            pool = 64 if i else 32
            blocks["Mixed_5" + "bcd"[i]] = fid_inception.FIDInceptionA(channels, pool)
            channels = 224 + pool
        blocks["Mixed_6a"] = tv_inception.InceptionB(channels)
        channels += 480
        for i in range(c):
            blocks["Mixed_6" + "bcde"[i]] = fid_inception.FIDInceptionC(channels, (128, 160, 160, 192)[i])
            channels = 768
        blocks["Mixed_7a"] = tv_inception.InceptionD(channels)
        channels += 512
        for i in range(e):
            last = fid_inception.FIDInceptionE_2 if i == e - 1 else fid_inception.FIDInceptionE_1
            blocks["Mixed_7" + "bc"[i]] = last(channels)
            channels = 2048
        self.order = list(blocks)
        for name, block in blocks.items():
            self.add_module(name, narrow(block, w))
        self.fc = nn.Linear(2048 * w // 16, classes)
        state = {k: torch.from_numpy(made.made(k, tuple(v.shape))) for k, v in self.state_dict().items()
                 if not k.endswith("num_batches_tracked")}
        self.load_state_dict(state, strict=False)

    def forward(self, x):
        for name in self.order:
            x = getattr(self, name)(x)
        return x.mean((2, 3))


# The gradient of a ReLU jumps where its input crosses zero. Among a million inputs some are as near to zero
# as fp32's rounding error. At 127 pixels the "smaller" network has one whose jump is 1 % of a gradient, and
# its sign depends on the order of a sum. At the sizes here no such jump matters.
for name, (w, a, c, e, size) in {"small": (1, 2, 1, 2, 111), "smaller": (2, 1, 2, 1, 123)}.items():
    net = Small(w, a, c, e, 5)
    x = torch.from_numpy(made.made("input.pictures", (3, 3, size, size)))
    with torch.no_grad():
        f = net.eval()(x)
        out[f"{name}.features"], out[f"{name}.logits"] = f.numpy(), net.fc(f).numpy()
    f = net.train()(x)
    loss = F.cross_entropy(net.fc(f), torch.tensor([0, 3, 2]))
    loss.backward()
    out[f"{name}.train.features"] = f.detach().numpy()
    out[f"{name}.train.loss"] = loss.detach().numpy()[None]
    for p in ("Conv2d_1a_3x3.conv.weight", "Mixed_5b.branch_pool.conv.weight",
              "Mixed_6a.branch3x3dbl_1.bn.weight", "fc.bias"):
        out[f"{name}.d.{p}"] = net.get_parameter(p).grad.numpy()

# ---- the whole network -------------------------------------------------------------------------------------

# Pictures of 13 x 13 patches of 23 x 23 pixels: flat areas and edges, as photos have.
pictures = torch.from_numpy(made.made("input.patches", (2, 3, 13, 13))) / 2
pictures = pictures.repeat_interleave(23, 2).repeat_interleave(23, 3)


def whole(hard):
    shapes = {k: v.shape
              for k, v in fid_inception._inception_v3(num_classes=1008, aux_logits=False, weights=None)
              .state_dict().items() if not k.endswith("num_batches_tracked")}
    state = {k: torch.from_numpy(made.made(k, tuple(v), hard)) for k, v in shapes.items()}
    fid_inception.load_state_dict_from_url = lambda *a, **k: state
    return fid_inception.InceptionV3([3], resize_input=False, normalize_input=False).eval()


with torch.no_grad():
    out["inception.soft"] = whole(False)(pictures)[0].flatten(1).numpy()
    hard = whole(True)
    single, exact = hard(pictures)[0].flatten(1), hard.double()(pictures.double())[0].flatten(1)
    out["inception.hard"] = exact.numpy()
    out["inception.hard_fp32_error"] = ((single - exact).abs().max() / exact.abs().max()).numpy()[None]
    print("hard: PyTorch's fp32 error", out["inception.hard_fp32_error"][0])

path = Path(__file__).parent.parent / "fixtures" / "fid.safetensors"
save_file({k: np.ascontiguousarray(v) for k, v in out.items()}, path)
print(path, path.stat().st_size, "bytes")
