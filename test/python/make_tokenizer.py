#!/usr/bin/env python3
"""Writes the fixtures of test/io/tokenizer.c with transformers' CLIPTokenizer:

    python3 test/python/make_tokenizer.py [../shared/data]

  test/fixtures/tokenizer_small/       a small vocabulary, trained here on tokenizer_text.txt by a simple loop
  test/fixtures/tokenizer_small.json   strings and their ids with it
  test/fixtures/tokenizer_clip.json    the same with CLIP's own merges (of the data folder)
  test/fixtures/tokenizer_saved/       the small one as transformers 5 saves it, with a learnt token
"""
import gzip
import json
import os
import random
import sys
import tempfile
import unicodedata
from collections import Counter

from transformers import CLIPTokenizer

HERE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "fixtures")
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_order():
    visible = [b for b in range(256) if 32 < b < 127 or 160 < b < 256 and b != 173]
    hidden = [b for b in range(256) if b not in visible]
    return {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}


def write_folder(folder, merges, tokens, max_length, special=str):
    os.makedirs(folder, exist_ok=True)

    def save(name, data):
        with open(os.path.join(folder, name), "w") as f:
            json.dump(data, f, ensure_ascii=False)

    names = {"bos_token": special(START), "eos_token": special(END), "unk_token": special(END),
             "pad_token": END}
    save("vocab.json", {t: i for i, t in enumerate(tokens + [START, END])})
    save("tokenizer_config.json",
         names | {"model_max_length": max_length, "tokenizer_class": "CLIPTokenizer"})
    save("special_tokens_map.json", names)
    with open(os.path.join(folder, "merges.txt"), "w") as f:
        f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))


def as_released(content):
    """The form in the released model's files. It makes "<|STARTOFTEXT|>" the start token, too, but not the
    end token, which pad_token declares once more, as a plain string."""
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def base_tokens():
    symbols = list(byte_order().values())
    return symbols + [s + "</w>" for s in symbols]


def train(lines, size):
    """Byte pairs, all counted anew for each merge. Ties: the pair first in the order of its UTF-8 bytes."""
    symbol = byte_order()
    with tempfile.TemporaryDirectory() as folder:
        write_folder(folder, [], base_tokens(), 77)
        backend = CLIPTokenizer.from_pretrained(folder).backend_tokenizer
    words = Counter()
    for line in lines:
        text = backend.normalizer.normalize_str(line)
        words.update(piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text))
    words = [([*w[:-1], w[-1] + "</w>"], n) for w, n in words.items()]
    assert all(c in symbol.values() for w, _ in words for c in "".join(w).replace("</w>", ""))
    merges, tokens = [], base_tokens()
    while len(tokens) < size - 2:
        pairs = Counter()
        for w, n in words:
            for pair in zip(w, w[1:]):
                pairs[pair] += n
        a, b = min(pairs, key=lambda p: (-pairs[p], p[0].encode(), p[1].encode()))
        merges.append((a, b))
        if a + b not in tokens:
            tokens.append(a + b)
        for w, _ in words:
            i = 0
            while i + 1 < len(w):
                if w[i] == a and w[i + 1] == b:
                    w[i:i + 2] = [a + b]
                i += 1
    return merges, tokens


def hard_strings(lines):
    rng = random.Random(1234)
    out = ["", " ", "\n\t ", "!", "''", "a", "A's B'LL c'Re d've I'm 'tis we'd can't don't's", "'S'T'RE",
           "it''s", "x'sy"]
    out += ["a\u0000"[:1],
            "\u0085a\u00a0b\u1680c\u2003d\u2028e\u202ff\u205fg\u3000h\u200bi\ufeffj\u180ek\u001cl"]
    out += [f"a{START}b", START, END, START.upper(), END.upper(), f"x {END} y", f"{END}{END}",
            "<|startoftext|", "|endoftext|>", f".{END.upper()}.", f"<{START.title()}>",
            f"a\u0301{END}\u0301e", f"{START.upper()}'s {END}'s", "<|End\u00a0OfText|>",
            "<|\u017ftartoftext|>", "<|startofte\u0425t|>"]
    out += ["İstanbul İ i̇ I\u0307", "ΟΔΟΣ ΟΔΟΣ. ΑΣ ΣΑ Σ ΣΣ aΣ Σ\u0301 ΑΣ\u0307", "ǅ ǈ ǋ ǲ ᾈ ᾼ ῌ",
            "ẞß ﬁ ﬅ Å Å Ω Ω K K", "ꟋꟌ\U00010d50\U00016ea0"]
    out += ["e\u0301 \u00e9 e\u0323\u0302 \u1ec7 e\u0302\u0323 a\u0345\u0301 \u1fb4 "
            "q\u0307\u0323 q\u0323\u0307",
            "\u0344 \u0958 \u2adc \ufb2c \u0f73 \u0f75 \u0f81",
            "\u1100\u1161\u11a8 \uac00\u11a8 \uac01\u11a8 \u1100\u1161 \u1161\u11a8 \uac00\u0301\u11a8 "
            "\u1100\u0301\u1161",
            "한국어 문장 하나", "한국어",
            "\U0001d15e \U0001d1c0 \U00011099\U000110ba \U00011935\U00011930",
            "\u0300 \u0300a \u0345\u0300\u0323\u0327\u0315"]
    out += ["a photo of 2 cats, 3.5 dogs & ½ a mouse ² Ⅷ ٣٤ 一二 ①", "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ☃️ 🇫🇷 😀😃",
            "日本語のテキスト、中文文本。ไทย हिन्दी עברית العربية",
            "caf\u00e9 na\u00efve r\u00e9sum\u00e9 \u00dcBER stra\u00dfe", "&amp; &lt;b&gt; &#39; \\n \"q\"",
            "\x01\x02\x1b[0m\x7f", "\ufffe\uffff\U0010ffff\ue000\u0378"]
    out += ["word " * 80, "a" * 400, "1" * 90, "é" * 90, "漢字" * 50, "!?" * 100, "a b'" * 60, "x " * 75,
            "x " * 74 + "end", "x " * 76, "x " * 74 + END + " y", "😀" * 40, "\u0301" * 100, "e\u0301 " * 80,
            "    x" * 80]
    blocks = [(0x20, 0x7e), (0xa0, 0x24f), (0x250, 0x36f), (0x370, 0x52f), (0x590, 0x6ff), (0x900, 0xdff),
              (0xe00, 0x109f), (0x1100, 0x11ff), (0x1ab0, 0x1fff), (0x2000, 0x2bff), (0x3000, 0x30ff),
              (0x4e00, 0x9fff), (0xa640, 0xabff), (0xac00, 0xd7a3), (0xf900, 0xffff), (0x10000, 0x10fff),
              (0x11000, 0x11fff), (0x1d100, 0x1d7ff), (0x1e000, 0x1eaff), (0x1f000, 0x1faff),
              (0x20000, 0x2fa1f), (0xe0000, 0xe01ff)]
    marks = [chr(c) for c in range(0x300, 0x1e000) if unicodedata.combining(chr(c))]
    composed = [chr(c) for c in range(0xc0, 0x30000) if unicodedata.normalize("NFD", chr(c)) != chr(c)]
    for n in range(45):
        for low, high in blocks:  # one script at a time, with blanks and Latin letters between
            out.append("".join(chr(rng.randint(low, high)) if rng.random() < 0.75 else rng.choice(" aB'")
                               for _ in range(rng.randint(2, 9))))
    for _ in range(350):  # composed characters, decomposed, with marks in any order
        s = "".join(rng.choice(composed + marks) if rng.random() < 0.7 else rng.choice("aeiouASK")
                    for _ in range(rng.randint(2, 6)))
        out.append(unicodedata.normalize(rng.choice(["NFC", "NFD"]), s) if rng.random() < 0.5 else s)
    for _ in range(450):  # contractions, digits, special tokens, white space in any order
        parts = ["'s", "'T", "'re", "'ve", "'M", "'ll", "'d", "'", "a", "The", "dog", "12", ".", ",", " ",
                 "  ", "\n", "\u00a0", START, END, START.upper(), END.upper(), "<|", "|>", "é", "Σ", "日", "😀",
                 "-", "_"]
        out.append("".join(rng.choices(parts, k=rng.randint(2, 14))))
    words = sorted(set(" ".join(lines).split()))
    for _ in range(300):  # sentences
        s = " ".join(rng.choices(words, k=rng.randint(2, 9)))
        out.append(rng.choice([s, s.upper(), s.title(), s.swapcase()]))
    for i in range(30):  # just around the limit
        out.append(" ".join(rng.choices(words, k=rng.randint(40, 90))))
    return [s.replace("\0", "").encode("utf-8", "ignore").decode() for s in out]


def expected(tokenizer, text):
    """Ids after truncation as diffusers asks for it; and where the first token that was cut off begins, in
    bytes, or -1."""
    length = tokenizer.model_max_length
    ids = tokenizer(text, truncation=True, max_length=length).input_ids
    whole = tokenizer(text, return_offsets_mapping=True)
    cut = -1
    if len(whole.input_ids) > length:
        cut = len(text[:whole.offset_mapping[length - 1][0]].encode())
    return ids, cut


def fnv(hash, ids):
    for i in ids:
        hash = (hash ^ i) * 0x100000001B3 % 2**64
    return hash


def write_cases(name, tokenizer, strings, extra=None):
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    with open(os.path.join(HERE, name), "w") as f:
        f.write("{" + (json.dumps(extra)[1:-1] + "," if extra else "") + '"cases":[\n')
        rows = []
        for s in strings:
            ids, cut = expected(tokenizer, s)
            assert ids[0] == start and ids[-1] == end
            rows.append(json.dumps([s, ids[1:-1], cut], separators=(",", ":")))
        f.write(",\n".join(rows) + "\n]}\n")
    print(name, len(strings), "strings")


def main():
    data = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "../../../shared/data")
    with open(os.path.join(HERE, "tokenizer_text.txt"), newline="\n") as f:
        lines = f.read().split("\n")[:-1]
    strings = hard_strings(lines)

    small = os.path.join(HERE, "tokenizer_small")
    write_folder(small, *train(lines, 640), 32)
    write_cases("tokenizer_small.json", CLIPTokenizer.from_pretrained(small), strings[:60] + strings[60::8])

    saved = os.path.join(HERE, "tokenizer_saved")
    tokenizer = CLIPTokenizer.from_pretrained(small)
    tokenizer.add_tokens(["<Cat-Toy>"])
    tokenizer.save_pretrained(saved)
    with open(os.path.join(saved, "tokenizer.json")) as f:
        whole = json.load(f)
    with open(os.path.join(saved, "tokenizer.json"), "w") as f:  # without indentation: 11 KB in place of 25
        json.dump(whole, f, ensure_ascii=False, separators=(",", ":"))
    learnt = ["<Cat-Toy>", "a <cat-toy> runs", "<CAT-TOY>s<cat-toy>", "a<|startoftext|><cat-toy>.",
              "<cat-toy"]
    write_cases("tokenizer_saved.json", CLIPTokenizer.from_pretrained(saved), learnt)

    with gzip.open(os.path.join(data, "clip/bpe_simple_vocab_16e6.txt.gz"), "rt", encoding="utf-8") as f:
        merges = [tuple(line.split()) for line in f.read().split("\n")[1:49152 - 256 - 2 + 1]]
    with tempfile.TemporaryDirectory() as folder:
        tokens = base_tokens() + [a + b for a, b in merges]
        write_folder(folder, merges, tokens, 77)
        clip = CLIPTokenizer.from_pretrained(folder)
        write_folder(folder, merges, tokens, 77, as_released)
        released = CLIPTokenizer.from_pretrained(folder)
    hash = 0xCBF29CE484222325
    with open(os.path.join(data, "flickr8k/captions.txt"), newline="\n") as f:
        for line in f.read().split("\n")[1:-1]:
            hash = fnv(hash, clip(line.split(",", 1)[1], truncation=True, max_length=77).input_ids)
    # Ids of the strings that read otherwise with the released model's configuration.
    other = [[s, b] for s in strings if (b := expected(released, s)[0][1:-1]) != expected(clip, s)[0][1:-1]]
    write_cases("tokenizer_clip.json", clip, strings,
                {"captions_fnv": f"{hash:016x}", "released": other[:40]})


main()
