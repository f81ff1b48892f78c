#!/usr/bin/env python3
# mutate.py: how many mistakes do the tests notice? One small mistake at a time is planted in a copy of the
# tree, on a line that a test executes: a number changed, an operator or a condition swapped. The object is
# compiled again, and the tests that execute the line run, the shortest first, until one fails.
#
#     python3 test/house/mutate.py WORK [--count 100] [--seed 1] [--most SECONDS] [--slow] [--again]
#
# WORK is a folder outside the tree. Its results.tsv has a line a mistake; a run goes on where the last ended.
# A mistake is noticed (by which test), has survived, is the same (the compiler makes the same code), or is
# `equal`: that is written by hand in place of `survived`, with the reason, where no bit of any result can
# change. The last two do not count and are replaced. --most leaves out tests that take longer, --slow adds
# those of SLOW. --again plants the survivors once more, beside the tests of today. The product is copied at
# the first start, the tests at each. Needs Linux, gcc and its gcov.
import argparse
import contextlib
import hashlib
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("work", type=Path)
parser.add_argument("--count", type=int, default=100)
parser.add_argument("--seed", default="1")
parser.add_argument("--most", type=float, default=math.inf)
parser.add_argument("--slow", action="store_true")
parser.add_argument("--again", action="store_true")
options = parser.parse_args()

project = Path(__file__).resolve().parents[2]
work = options.work.resolve()
tree, results, coverage = work / "tree", work / "results.tsv", work / "coverage.json"
planted = work / "planted"  # the file with the mistake, as it was
cc = os.environ.get("CC", "gcc")
cpu = Path("/proc/cpuinfo").read_text()
isa = "avx512" if "avx512vl" in cpu else "avx2" if "avx2" in cpu else "portable"  # what runs here
environment = dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive", KILLS="1")
PRODUCT = ["sd.c", "lcm.c", "lora.c", "fid.c", "lib/*.c", "lib/*/*.c", "cpu/*.c"]
ROOMS = ["nn", "io", "phases", "toy", "cli"]  # test/house reads the sources: it would see any change
SCRIPTS = ["test/cli/data.sh.test", "test/cli/lora.sh.test"]
SLOW = ["test/toy/pretrain.sh.test", "test/cli/lcm.sh.test", "test/cli/paper.sh.test"]


def shell(*command):
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, errors="replace",
                          env=environment, stdin=subprocess.DEVNULL)


def make(*goals, build="build", flags="-O3 -g"):
    r = shell("make", "-j1", f"CC={cc}", f"ISAS={isa}", f"BUILD={build}", f"CFLAGS={flags}", *goals)
    return r.stdout if r.returncode == 0 else sys.exit(r.stderr[-2000:])


def copy(folder):
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "--", folder], cwd=project,
                           capture_output=True, text=True, check=True).stdout.split("\n")[:-1]
    for name in names:
        old, new = tree / name, project / name
        if new.is_file() and not (old.exists() and old.read_bytes() == new.read_bytes()):
            old.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(new, old)


SWAPS = {" + ": " - ", " - ": " + ", " * ": " / ", " / ": " * ", " += ": " -= ", " -= ": " += ",
         " *= ": " /= ", " < ": " <= ", " <= ": " < ", " > ": " >= ", " >= ": " > ", " == ": " != ",
         " != ": " == ", " && ": " || ", " || ": " && ", "true": "false", "false": "true"}
PLACES = re.compile(r" (?:[-+*/<>]|[<>=!]=|&&|\|\||[-+*]=) |\b(?:true|false)\b|"
                    r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?f?(?![\w.])")


def mistakes(path):
    """(line, column, end, replacement) of each mistake that the file has room for"""
    for number, line in enumerate(path.read_text().split("\n"), 1):
        code = re.sub(r'"(\\.|[^"\\])*"', lambda m: '"' * len(m.group()), line).split("//")[0]
        # What an error says is no arithmetic; the condition before it is.
        code = re.split(r"\b(?:die\w*|note|f?printf|format|free)\(", code)[0]
        for m in [] if code.lstrip().startswith("#") else PLACES.finditer(code):
            old = m.group()
            percent = "1.01f * " if old[-1] == "f" else "1.01 * "
            larger = str(int(old) + 1) if old.isdigit() else percent + old
            yield number, m.start(), m.end(), SWAPS.get(old, larger)


# ---- building and running ----------------------------------------------------------------------------------


def link(test):
    """builds what a test runs; false if it cannot be"""
    if test.endswith(".test"):
        return link("cli/main")
    o, out = f"build/{test}.o", "sd" if test == "cli/main" else f"build/{test}"
    if not (tree / o).exists() or (tree / o).stat().st_mtime < (tree / f"{test}.c").stat().st_mtime:
        (tree / o).parent.mkdir(parents=True, exist_ok=True)
        r = shell(*cc.split(), *base.split(), "-O1", "-c", f"{test}.c", "-o", o)
        if r.returncode:
            sys.exit(r.stderr[-2000:])
    r = shell(cc.split()[-1], "-fopenmp", o, *objects.split(), "-o", out, "-lm")
    return r.returncode == 0 and (test != "test/cli/cli" or link("cli/main"))


def run(test, limit=None, build="build", **more):
    """None if it passes, else what happened first; limit: seconds of processor time, ten times that in all"""
    def limits():
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
        if limit:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))

    command = ["sh", test] if test.endswith(".test") else ["stdbuf", "-oL", f"{build}/{test}"]
    process = subprocess.Popen(command, cwd=tree, env=dict(environment, **more), preexec_fn=limits, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
                               errors="replace", start_new_session=True)
    timer = threading.Timer(10 * (limit or 90), os.killpg, (process.pid, signal.SIGKILL))
    timer.start()
    passes = False
    try:
        for line in process.stdout:
            if line.startswith("FAILED"):
                return line[6:].strip()[:90]
            passes = passes or re.match(r"\d+ passed, 0 failed", line)
        return None if process.wait() == 0 and passes else f"status {process.wait()}"
    finally:
        timer.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def measure(test):
    """which lines the test executes, into known["lines"]: {file: {line: [tests]}}"""
    build, counts, lines = "build/coverage", work / "counts", known["lines"]
    if not (tree / build / "sd").exists():
        make("sd", build=build, flags="-O1 --coverage")
        (tree / "sd").rename(tree / build / "sd")
    if test in programs:
        make(f"{build}/{test}", build=build, flags="-O1 --coverage")
    start = time.monotonic()
    failed = run(test, build=build, GCOV_PREFIX=str(counts), SD=str(tree / build / "sd"))
    known["cost"][test] = time.monotonic() - start
    print(f"coverage of {test}" + (f": {failed}" if failed else ""), flush=True)
    for data in counts.rglob("*.gcda"):
        shutil.copy(Path("/") / data.relative_to(counts).with_suffix(".gcno"), data.parent)
        r = shell("gcov", "--json-format", "--stdout", str(data))
        for f in (f for report in r.stdout.split("\n") if report for f in json.loads(report)["files"]):
            for entry in f["lines"]:
                tests = lines.setdefault(f["file"], {}).setdefault(str(entry["line_number"]), [])
                if entry["count"] and test not in tests:
                    tests.append(test)
    shutil.rmtree(counts, ignore_errors=True)
    coverage.write_text(json.dumps(known))


def usual_seconds(test):
    """what the test takes without any mistake, when it must pass"""
    if test not in known["seconds"]:
        start = time.monotonic()
        failed = run(test) if link(test) else "it does not link"
        if failed:
            sys.exit(f"{test} fails without any mistake: {failed}")
        known["seconds"][test] = time.monotonic() - start
        coverage.write_text(json.dumps(known))
    return known["seconds"][test]


# ---- one mistake -------------------------------------------------------------------------------------------


def draws():
    """(key, file, line, column, end, replacement, tests), in an order that only text and seed decide"""
    found, seen = [], {}
    for path in sorted(p for pattern in PRODUCT for p in tree.glob(pattern)):
        name = str(path.relative_to(tree))
        lines, text = known["lines"].get(name, {}), path.read_text().split("\n")
        for number, start, end, new in mistakes(path):
            n = number  # gcov counts a statement at its first line
            while str(n) not in lines and n > 1 and not re.search(r"[;{}]( *//.*)?$", text[n - 2]):
                n -= 1
            place = f"{name}\t{text[number - 1].strip()}\t{start}\t{new.strip()}"
            seen[place] = seen.get(place, 0) + 1
            key = hashlib.sha256(f"{options.seed} {place} {seen[place]}".encode()).hexdigest()[:12]
            if lines.get(str(n)):
                found.append((key, name, number, start, end, new, lines[str(n)]))
    return sorted(found)


def machine_code(o):
    shell("strip", "-g", "-o", "stripped", o)
    return (tree / "stripped").read_bytes()


def plant(name, number, start, end, new, tests):
    """the verdict, and which test noticed what"""
    path = tree / name
    order = [t for t in tests if known["cost"][t] <= options.most]
    order.sort(key=lambda t: (path.stem not in t) * 5 + known["cost"][t])
    limits = {t: int(20 + 5 * usual_seconds(t)) for t in order}
    fast = name.startswith("cpu/") and f'"{path.name}"' in (tree / "cpu/fast.c").read_text()
    o = f"build/cpu/fast.{isa}.o" if fast else f"build/{name[:-2]}.o"
    original, before, code = path.read_text(), (tree / o).read_bytes(), machine_code(o)
    planted.write_text(f"{name}\n{original}")
    text = original.split("\n")
    text[number - 1] = text[number - 1][:start] + new + text[number - 1][end:]
    try:
        path.write_text("\n".join(text))
        r = shell("make", "-s", "-j1", f"CC={cc.split()[-1]}", f"ISAS={isa}", "CFLAGS=-O3", o)
        if r.returncode:
            return "no code", ""
        if code == machine_code(o):
            return "same", ""
        for test in order + (SLOW if options.slow else []):
            failed = run(test, limits.get(test)) if link(test) else "it does not link"
            if failed:
                return "noticed", f"{test}: {failed}"
        return "survived", ""
    finally:
        path.write_text(original)
        (tree / o).write_bytes(before)
        planted.unlink()


# ---- all of them -------------------------------------------------------------------------------------------
os.nice(10)
first = not tree.exists()
tree.mkdir(parents=True, exist_ok=True)
if planted.exists():  # the last run was killed: its mistake goes
    broken, whole = planted.read_text().split("\n", 1)
    (tree / broken).write_text(whole)
copy("." if first else "test")
if not (work / "shared").exists() and (project.parent / "shared").exists():
    (work / "shared").symlink_to(project.parent / "shared")
programs = [str(p.relative_to(tree))[:-2] for r in ROOMS for p in sorted((tree / "test" / r).glob("*.c"))
            if p.name != "bf16.c"]  # it links a set of kernels of its own
base, objects = make("--eval=show: ; @echo '$(BASE) $(CFLAGS) $(OPENMP)'; echo '$(TESTED)'",
                     "show").split("\n")[:2]
make("sd")
known = json.loads(coverage.read_text()) if coverage.exists() else {"cost": {}, "lines": {}, "seconds": {}}
for test in programs + SCRIPTS:
    if test not in known["cost"]:
        measure(test)
make("sd")

table = {}
if results.exists():
    table = {row[0]: row for row in (line.split("\t") for line in results.read_text().split("\n")[:-1])}
counted = lambda: sum(row[1] in ("noticed", "survived") for row in table.values())
for key, *mistake in draws():
    row = table.get(key)
    if row if not options.again else not row or row[1] != "survived":
        continue
    if not options.again and counted() >= options.count:
        break
    name, number, start, end, new, _ = mistake
    line = (tree / name).read_text().split("\n")[number - 1]
    changed = f"{line[:start]}<<{line[start:end].strip()} => {new.strip()}>>{line[end:]}".strip()
    verdict, by = plant(*mistake)
    if options.again:
        row[3] = f"noticed now: {by}" if verdict == "noticed" else row[3]
    elif verdict != "no code":
        row = table[key] = [key, verdict, f"{name}:{number}", by, changed]
    if row:
        print("\t".join(row[1:]), flush=True)
    results.write_text("".join("\t".join(row) + "\n" for row in table.values()))
print(f"{sum(row[1] == 'noticed' for row in table.values())} of {counted()} planted mistakes noticed")
