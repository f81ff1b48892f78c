#!/usr/bin/env python3
"""Writes lib/io/unicode_tables.h: the classes and mappings of Unicode that CLIP's tokenizer depends on.

    python3 test/python/make_unicode.py > lib/io/unicode_tables.h

The aim is not the newest Unicode but agreement with the `tokenizers` library, whose parts follow different
versions of the standard (its normaliser the oldest). So every table is read from the library itself, code
point by code point; Python's unicodedata only supplies one example for each canonical combining class.
"""
import unicodedata

import tokenizers
from tokenizers import Regex, normalizers

POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
nfc = normalizers.NFC().normalize_str
nfd = normalizers.NFD().normalize_str
lower = normalizers.Lowercase().normalize_str


def matching(regex, context, replacement):
    """Code points that the regular expression matches behind `context`, which it does not match itself."""
    replace = normalizers.Replace(Regex(regex), replacement).normalize_str
    return [c for c in POINTS if chr(c) != replacement
            and replace(context + chr(c)) == context + replacement] + [ord(replacement)]


def ranges(points):
    out = []
    for c in sorted(set(points)):
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def combining_classes(decomposed):
    """A mark of class k moves before one of a larger class: this tells every mark's class from examples."""
    example = {}
    for c in POINTS:
        k = unicodedata.combining(chr(c))
        if k and len(decomposed[c]) == 1 and nfd("\u0345" + chr(c)) == chr(c) + "\u0345":
            example.setdefault(k, chr(c))
    out = {0x345: 240}  # the one mark of the largest class
    for c in POINTS:
        x = chr(c)
        if len(decomposed[c]) > 1 or nfd("\u0345" + x) != x + "\u0345":
            continue
        smaller = [k for k, e in example.items() if nfd(x + e) == e + x and e != x]
        larger = [k for k, e in example.items() if nfd(e + x) == x + e and e != x]
        same = [k for k in example if k not in smaller and k not in larger]
        assert len(same) == 1, (hex(c), same)
        out[c] = same[0]
    return out


def print_table(name, ctype, entries, comment):
    print(f"\n// {comment}\nstatic const {ctype} {name} = {{")
    line = ""
    for e in entries:
        if len(line) + len(e) + 1 > 118:
            print(line)
            line = ""
        line += f"{e},"
    print(line + "\n};")


def braces(row):
    return "{" + ",".join(f"0x{v:X}" if v > 9 else str(v) for v in row) + "}"


def main():
    decomposed = {c: nfd(chr(c)) for c in POINTS}
    hangul = range(0xAC00, 0xD7A4)  # by arithmetic in unicode.c

    # A character's decomposition in one step: a first and a last part, or a single other character.
    pairs, composes, singles = [], [], []
    whole = {d: chr(c) for c, d in decomposed.items() if len(d) > 1}
    for c in POINTS:
        d = decomposed[c]
        if d == chr(c) or c in hangul:
            continue
        if len(d) == 1:
            singles.append(c)
            continue
        first = nfc(d[:-1])
        if len(first) > 1:
            first = whole[d[:-1]]  # it has a code point of its own that is excluded from composing
        assert nfd(first) == d[:-1], hex(c)
        if nfc(chr(c)) == chr(c):
            composes.append(len(pairs))
        pairs.append((c, ord(first), ord(d[-1])))
    composes.sort(key=lambda i: pairs[i][1:])

    marks = []
    for c, k in sorted(combining_classes(decomposed).items()):
        if marks and marks[-1][1] == c - 1 and marks[-1][2] == k:
            marks[-1][1] = c
        else:
            marks.append([c, c, k])

    # Lower case: runs of equal distance, each code point or each second one.
    lowers = []
    for c in POINTS:
        to = lower(chr(c))
        if to == chr(c) or c == 0x130:  # the only one that becomes two characters: in unicode.c
            assert len(to) == (2 if c == 0x130 else 1), hex(c)
            continue
        distance = ord(to) - c
        last = lowers[-1] if lowers else None
        if last and last[3] == distance and (c - last[1] == last[2] or last[0] == last[1]
                                             and c - last[1] == 2):
            last[2] = c - last[1]
            last[1] = c
        else:
            lowers.append([c, c, 1, distance])

    print("// unicode_tables.h: made by test/python/make_unicode.py from the library tokenizers "
          f"{tokenizers.__version__}.")
    print("// clang-format off")
    print_table("letters[][2]", "uint32_t", map(braces, ranges(matching(r"\p{L}", "<", "L"))),
                r"Letters, \p{L}: first, last.")
    print_table("numbers[][2]", "uint32_t", map(braces, ranges(matching(r"\p{N}", "<", "0"))),
                r"Numbers, \p{N}: first, last.")
    print_table("blanks[][2]", "uint32_t", map(braces, ranges(matching(r"\s", "<", " "))),
                r"White space, \s: first, last.")
    print_table("marks[][3]", "uint32_t", map(braces, marks),
                "Canonical combining classes other than 0: first, last, class.")
    print_table("lowers[][4]", "int32_t", (f"{{0x{a:X},0x{b:X},{s},{d}}}" for a, b, s, d in lowers),
                "Lower case: first, last, step from one to the next, distance to the lower-case letter.")
    print_table("pairs[][3]", "uint32_t", map(braces, pairs),
                "Canonical decompositions in one step: character, first part, last part.")
    print_table("compositions[]", "uint16_t", map(str, composes),
                "Rows of `pairs` that are used for composing too, sorted by first and last part.")
    print_table("singles[][2]", "uint32_t", map(braces, ranges(singles)),
                "Characters that decompose to a single other one: first, last.")
    print_table("single_to[]", "uint32_t", (f"0x{ord(decomposed[c]):X}" for c in singles),
                "Their decompositions, range by range.")


main()
