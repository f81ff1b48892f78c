# make_io_fixtures.py: files and results of other programs, for the tests of lib/io/safetensors.c, image.c and
# npz.c.
#
#     python test/python/make_io_fixtures.py              writes test/fixtures/io
#     python test/python/make_io_fixtures.py --check DIR  opens what the tests wrote (SD_TEST_KEEP=DIR)
#
# Large results are kept as 64-bit FNV-1a hashes in expected.txt, a line "what hash" each. Inputs are made
# from a counter, so that C makes the same. Versions: requirements.txt.
import gzip
import io
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import safe_open
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file

OUT = Path(__file__).parent.parent / "fixtures" / "io"
expected = []


def fnv1a(data):
    h = 14695981039346656037
    for byte in data:
        h = ((h ^ byte) * 1099511628211) % 2**64
    return h


def expect(what, data):
    expected.append(f"{what} {fnv1a(data):016x}")


def noise(n, seed):
    """n bytes; test/io/files.h makes the same."""
    x = np.arange(n, dtype=np.uint32) + np.uint32(seed * 1000003)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return ((x ^ (x >> np.uint32(16))) >> np.uint32(24)).astype(np.uint8)


# ---- safetensors ----------------------------------------------------------------------------------------


def halves():
    every = np.arange(65536, dtype=np.uint16)
    f = every.view(np.float16)
    expect("f16_to_f32", f[~np.isnan(f)].astype(np.float32).tobytes())
    # A dense sample of all floats, and the two neighbours of each midpoint between halves with the midpoint.
    bits = (np.arange(1 << 19, dtype=np.uint64) * 8209 % 2**32).astype(np.uint32)
    positive = np.arange(0x7BFF, dtype=np.uint16)
    middle = (positive.view(np.float16).astype(np.float32)
              + (positive + 1).astype(np.uint16).view(np.float16).astype(np.float32)) / 2
    middle = middle.view(np.uint32)
    bits = np.concatenate([bits, middle - 1, middle, middle + 1])
    with np.errstate(all="ignore"):
        f = bits.view(np.float32)
        f = f[~np.isnan(f)]
        expect("f32_to_f16", f.astype(np.float16).tobytes())
        expect("f32_to_bf16",
               torch.from_numpy(f.copy()).to(torch.bfloat16).view(torch.int16).numpy().tobytes())


def tensors():
    t = {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3),
         "wide.f64": torch.arange(6.0, dtype=torch.float64).reshape(2, 3) - 2}
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        t[str(kind)[6:]] = (torch.arange(24.0) * 0.25 - 3).to(kind).reshape(2, 3, 4)
    for kind in (torch.int8, torch.int16, torch.int32, torch.int64):
        t[str(kind)[6:]] = (torch.arange(7) * 9 - 30).to(kind)
    for kind in (torch.uint8, torch.uint16):
        t[str(kind)[6:]] = (torch.arange(5) * 40).to(kind)
    t["bool"] = torch.tensor([True, False, True])
    save_file(t, OUT / "types.safetensors", metadata={"quote\"d": "back\\slash, line\nfeed, é, 猫"})


# ---- pictures -------------------------------------------------------------------------------------------


def raw_png(width, height, depth, colour, rows, extra=b""):
    """A PNG that PIL cannot write: 16-bit colour, 2 and 4 bits a pixel."""
    number = lambda n: struct.pack(">I", n)
    chunk = lambda kind, data: number(len(data)) + kind + data + number(zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = b"".join(b"\0" + r for r in rows)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(body))
            + chunk(b"IEND", b""))


def pictures():
    w, h = 23, 17
    y, x = np.mgrid[0:h, 0:w]
    smooth = np.stack([x * 11, y * 15, (x + y) * 6], -1).clip(0, 255).astype(np.uint8)
    rgb = noise(w * h * 3, 1).reshape(h, w, 3)
    rgba = noise(w * h * 4, 2).reshape(h, w, 4)
    gray = noise(w * h, 3).reshape(h, w)
    made = {}

    def save(name, image, **options):
        image.save(OUT / name, **options)
        made[name] = None

    save("rgb.png", Image.fromarray(rgb))
    save("rgba.png", Image.fromarray(rgba))
    save("gray.png", Image.fromarray(gray))
    save("gray-alpha.png", Image.fromarray(rgba[..., :2].copy(), "LA"))
    save("one-bit.png", Image.fromarray(gray > 127))
    palette = Image.fromarray(smooth).quantize(19)
    save("palette.png", palette)
    save("palette-transparent.png", palette, transparency=bytes(range(0, 190, 10)))
    save("key-transparent.png", Image.fromarray(rgb), transparency=tuple(int(v) for v in rgb[0, 0]))
    save("one-pixel.png", Image.fromarray(rgb[:1, :1]))
    gray16 = (np.arange(w * h, dtype=np.uint32) * 171 % 65536).astype(np.uint16).reshape(h, w)
    gray16[0, :8] = [0, 1, 254, 255, 256, 257, 32768, 65535]
    save("gray16.png", Image.fromarray(gray16))
    big = noise(w * h * 6, 4).reshape(h, w * 6)
    (OUT / "rgb16.png").write_bytes(raw_png(w, h, 16, 2, [r.tobytes() for r in big]))
    two = noise(6 * h, 5).reshape(h, 6)
    (OUT / "gray2.png").write_bytes(raw_png(w, h, 2, 0, [r.tobytes() for r in two]))
    save("baseline.jpg", Image.fromarray(smooth), quality=92)
    save("full-chroma.jpg", Image.fromarray(smooth), quality=95, subsampling=0)
    save("progressive.jpg", Image.fromarray(smooth), quality=92, progressive=True)
    save("gray.jpg", Image.fromarray(smooth[..., 2]), quality=92)
    save("cmyk.jpg", Image.fromarray(smooth).convert("CMYK"), quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees, says the camera
    save("turned.jpg", Image.fromarray(smooth), quality=92, exif=exif)
    for name in ("rgb16.png", "gray2.png"):
        made[name] = None
    save_numpy({name: np.ascontiguousarray(np.array(Image.open(OUT / name).convert("RGB"))) for name in made},
               OUT / "pictures.safetensors")

    small = Image.fromarray(rgb[:4, :4])
    for name, text, compressed in (("latin1.png", "a café, 20 steps\nSteps: 20", False),
                                   ("utf8.png", "a 猫\nSteps: 20", False),
                                   ("packed.png", "packed é " * 50, True)):
        info = PngInfo()
        info.add_text("Software", "PIL")
        info.add_text("parameters", text, zip=compressed)
        small.save(OUT / name, pnginfo=info)
    info = PngInfo()
    info.add_itxt("parameters", "packed 猫 " * 50, lang="en", tkey="Parameter", zip=True)
    small.save(OUT / "packed-utf8.png", pnginfo=info)


def resizing():
    filters = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC, "lanczos": Image.LANCZOS}
    sizes = [(37, 23, 19, 11), (37, 23, 64, 51), (37, 23, 37, 50), (37, 23, 12, 23), (37, 23, 1, 1),
             (1, 1, 7, 5), (2, 3, 3, 2), (64, 64, 32, 32), (64, 64, 224, 224), (299, 211, 128, 128),
             (100, 75, 299, 299), (5, 300, 300, 5), (500, 375, 17, 512)]
    for w, h, w2, h2 in sizes:
        source = Image.fromarray(noise(w * h * 3, w).reshape(h, w, 3))
        for name, f in filters.items():
            expect(f"resize-{w}-{h}-{w2}-{h2}-{name}", source.resize((w2, h2), f).tobytes())
        # Black and white squares, where the overshoot of the sharp filters is clipped.
        hard = Image.fromarray((noise(w * h * 3, w) // 128 * 255).astype(np.uint8).reshape(h, w, 3))
        expect(f"resize-{w}-{h}-{w2}-{h2}-hard", hard.resize((w2, h2), Image.LANCZOS).tobytes())
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    for w, h, size in [(37, 23, 16), (23, 37, 16), (40, 40, 16), (100, 75, 64), (101, 75, 75), (64, 67, 64),
                       (64, 69, 64), (67, 64, 64)]:
        source = Image.fromarray(noise(w * h * 3, w).reshape(h, w, 3))
        result = Compose([Resize(size, InterpolationMode.BILINEAR), CenterCrop(size)])(source)
        expect(f"square-{w}-{h}-{size}", result.tobytes())


# ---- npz ------------------------------------------------------------------------------------------------


def arrays():
    plain = {}
    for kind in ("<f2", "<f4", "<f8", ">f2", ">f4", ">f8", "|i1", "<i2", "<i4", "<i8", ">i2", ">i4", ">i8"):
        name = kind[1:] + ("be" if kind[0] == ">" else "")
        plain[name] = (np.arange(24) * 5 - 50).reshape(2, 3, 4).astype(kind)
    for kind in ("|u1", "<u2", "<u4", "<u8", ">u2", ">u4", ">u8"):
        plain[kind[1:] + ("be" if kind[0] == ">" else "")] = (np.arange(24) * 9).reshape(2, 3, 4).astype(kind)
    plain["bool"] = (np.arange(24) % 3 == 0).reshape(2, 3, 4)
    plain["fortran"] = np.asfortranarray((np.arange(24.0) * 5 - 50).reshape(2, 3, 4))
    plain["scalar"] = np.array(7.0)
    plain["vector"] = np.arange(5.0)
    plain["empty"] = np.zeros((3, 0))
    plain["large"] = np.array([-(2**63), 2**63 - 1, -1])
    plain["complex"] = np.zeros(2, dtype=np.complex128)
    plain["five"] = np.zeros((1, 1, 1, 1, 1))
    np.savez(OUT / "stored.npz", **plain)
    np.savez_compressed(OUT / "deflated.npz", **plain)
    mu = np.arange(6.0) / 8
    with zipfile.ZipFile(OUT / "versions.npz", "w") as z:
        for version in (1, 2, 3):
            f = io.BytesIO()
            np.lib.format.write_array(f, mu, version=(version, 0))
            z.writestr(zipfile.ZipInfo(f"v{version}.npy"), f.getvalue())  # dated 1980: always the same bytes
        z.comment = b"a comment PK\5\6 that looks like an end record, but is none" + b" " * 9
    # zip64: every 32-bit field of the directory is ffffffff, the values stand in the extra field, and the end
    # record refers to a zip64 one. zipfile writes that for large archives only, so here it is by hand.
    f = io.BytesIO()
    np.lib.format.write_array(f, mu)
    data = f.getvalue()
    packed = zlib.compress(data, 9)[2:-4]
    name, crc = b"mu.npy", zlib.crc32(data)
    extra = struct.pack("<HHQQ", 1, 16, len(data), len(packed))
    local = struct.pack("<IHHHHHIIIHH", 0x04034B50, 45, 0, 8, 0, 33, crc, 2**32 - 1, 2**32 - 1, len(name),
                        len(extra)) + name + extra
    extra = struct.pack("<HH4x", 0x9999, 4) + struct.pack("<HHQQQ", 1, 24, len(data), len(packed), 0)
    entry = struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 45, 45, 0, 8, 0, 33, crc, 2**32 - 1, 2**32 - 1,
                        len(name), len(extra), 0, 0, 0, 0, 2**32 - 1) + name + extra
    at = len(local) + len(packed)
    end64 = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, 1, 1, len(entry), at)
    locator = struct.pack("<IIQI", 0x07064B50, 0, at + len(entry), 1)
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    (OUT / "zip64.npz").write_bytes(local + packed + entry + end64 + locator + end)
    assert np.array_equal(np.load(OUT / "zip64.npz")["mu"], mu)


def streams():
    # 40,000 bytes with repeats near and far (a deflate window is 32,768 bytes).
    words = noise(1600, 6) % 26 + 97
    pick = (noise(400, 7) % 16).astype(int)
    text = b"".join(words[100 * p : 100 * p + 100].tobytes() for p in pick)
    expect("stream", text)
    ways = {"level0": (0, zlib.Z_DEFAULT_STRATEGY), "level1": (1, zlib.Z_DEFAULT_STRATEGY),
            "level9": (9, zlib.Z_DEFAULT_STRATEGY), "fixed": (9, zlib.Z_FIXED), "rle": (9, zlib.Z_RLE),
            "huffman": (9, zlib.Z_HUFFMAN_ONLY)}
    for name, (level, strategy) in ways.items():
        n = 2000 if name in ("level0", "rle", "huffman") else len(text)  # what compresses badly is short
        c = zlib.compressobj(level, zlib.DEFLATED, 15, 9, strategy)
        (OUT / f"{name}.zlib").write_bytes(c.compress(text[:n]) + c.flush())
    expect("stream-2000", text[:2000])
    c = zlib.compressobj(9, zlib.DEFLATED, -15)
    (OUT / "raw.deflate").write_bytes(c.compress(text) + c.flush())
    # Codes of up to 15 bits: byte k is about half as frequent as byte k - 1.
    bits = noise(20000, 8).astype(int) | noise(20000, 9).astype(int) << 8 | 1 << 16
    skewed = bytes(int(b & -b).bit_length() for b in bits)
    c = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
    (OUT / "skewed.zlib").write_bytes(c.compress(skewed) + c.flush())
    expect("stream-skewed", skewed)
    # A gzip header with every field, and a second member behind it.
    c = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = c.compress(text[:20000]) + c.flush()
    head = bytes([31, 139, 8, 2 | 4 | 8 | 16, 1, 2, 3, 4, 0, 3])
    head += struct.pack("<H", 5) + b"extra" + b"name\0" + b"comment\0"
    first = head + struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    first += body + struct.pack("<II", zlib.crc32(text[:20000]), 20000)
    (OUT / "members.gz").write_bytes(first + gzip.compress(text[20000:], 9, mtime=0))
    assert gzip.decompress((OUT / "members.gz").read_bytes()) == text


# ---- what the tests wrote ---------------------------------------------------------------------------------


def check(folder):
    t = load_file(folder / "written.safetensors")
    want = torch.from_numpy(np.arange(15, dtype=np.float32) * np.float32(0.3))
    assert torch.equal(t["full"], want.reshape(3, 5)) and torch.equal(t["half"], want.half().reshape(3, 5))
    assert torch.equal(t["brain"], want.bfloat16()) and t["empty"].shape == (0, 4)
    assert t["integers"].tolist() == [-1, 2**40]
    with safe_open(folder / "written.safetensors", "pt") as f:
        assert f.metadata() == {"prompt": 'a "cat",\n\ta \\ and a 猫', "format": "pt"}
    source = noise(29 * 13 * 3, 29).reshape(13, 29, 3)
    for name, text in (("written.png", None), ("written-latin1.png", "a café\nSteps: 20, Size: 29x13"),
                       ("written-utf8.png", "a 猫\nSteps: 20")):
        image = Image.open(folder / name)
        image.load()
        assert np.array_equal(np.array(image), source) and image.text.get("parameters") == text, name
        assert image.mode == "RGB"
    z = np.load(folder / "written.npz")
    assert sorted(z) == ["mu", "scalar", "sigma"]
    assert zipfile.ZipFile(folder / "written.npz").testzip() is None
    assert np.array_equal(z["mu"], np.arange(6) * 0.1) and z["scalar"].shape == ()
    assert np.array_equal(z["sigma"], (np.arange(6) * 0.1).reshape(2, 3))
    print("everything opens and is right")


if len(sys.argv) == 3 and sys.argv[1] == "--check":
    check(Path(sys.argv[2]))
else:
    OUT.mkdir(parents=True, exist_ok=True)
    halves()
    tensors()
    pictures()
    resizing()
    arrays()
    streams()
    (OUT / "expected.txt").write_text("\n".join(expected) + "\n")
