# check_tokenizers.py: tokenizers as transformers 5 and its predecessors save them, through `sd tokenize`.
#
#     python check_tokenizers.py [--sd ./sd] [--data ../shared/data]      CLIP's merges where DATA has them
#
# Each case is a folder that differs from CLIPTokenizer.save_pretrained()'s, or from vocab.json with
# merges.txt, in its files. `sd tokenize` must give CLIPTokenizer's ids for every string, or refuse the folder
# in one line.
import argparse
import gzip
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from transformers import AddedToken, CLIPTokenizer

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
START, END = "<|startoftext|>", "<|endoftext|>"
NAMED = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}


def token(content, normalized, **flags):
    return {"content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": normalized, "special": not normalized} | flags


def learnt(size, *names):
    return {name: size + i for i, name in enumerate(names)}


def cases(size):
    """name, files to write (None: to remove), changes of tokenizer_config.json, change of tokenizer.json"""
    start, end = token(START, False), token(END, False)
    decoder = {str(size - 2): start, str(size - 1): end}

    def added(*tokens):
        return lambda t: t["added_tokens"].extend({"id": size + i} | x for i, x in enumerate(tokens))

    def set_model(**changes):
        return lambda t: t["model"].update(changes)

    def without_special(t):
        for name in START, END:
            del t["model"]["vocab"][name]

    yield "as saved", {}, {}, None
    yield "merges as strings", {}, {}, lambda t: t["model"].update(
        merges=[" ".join(m) for m in t["model"]["merges"]])
    yield "some of the merges", {}, {}, lambda t: t["model"].update(merges=t["model"]["merges"][:60])
    yield "no configuration but the length", {"special_tokens_map.json": None}, {
        "bos_token": None, "eos_token": None, "unk_token": None, "pad_token": None}, None
    yield "a learnt token", {}, {}, added(token("<Cat-Toy>", True))
    yield "special ones", {}, {}, added(token("<Cat-Toy>", False), token("<cat-toy>-2", False))
    yield "both kinds", {}, {}, added(token("<cat-toy>", True), token("<Cat", False))
    yield "special tokens that any spelling matches", {}, {}, lambda t: [
        x.update(normalized=True) for x in t["added_tokens"]]
    yield "special tokens outside the vocabulary", {}, {}, without_special
    yield "no added tokens", {}, {}, lambda t: t["added_tokens"].clear()
    yield "added_tokens.json", {"added_tokens.json": learnt(size, "<cat-toy>", "<CAT>")}, {}, None
    yield "added_tokens.json out of order", {"added_tokens.json": {
        "<CAT>": size + 1, "<cat-toy>": size}}, {}, None
    yield "added_tokens.json and tokenizer.json", {"added_tokens.json": learnt(size, "<cat-toy>")}, {}, added(
        token("<cat-toy>", False))
    yield "a gap", {"added_tokens.json": {"<cat-toy>": size + 9}}, {}, None
    yield "a decoder", {}, {"added_tokens_decoder": decoder | {str(size): token("<cat-toy>", True)}}, None
    yield "a decoder beats the others", {"added_tokens.json": learnt(size, "<CAT>")}, {
        "added_tokens_decoder": decoder | {str(size): token("<cat-toy>", False)}}, added(token("photo", True))
    yield "more special tokens", {"special_tokens_map.json": NAMED | {
        "additional_special_tokens": ["<cat-toy>"]}}, {}, None
    yield "more of them, learnt", {"added_tokens.json": learnt(size, "<cat-toy>"), "special_tokens_map.json":
                                   NAMED | {"additional_special_tokens": ["<cat-toy>", "<CAT>"]}}, {}, None
    yield "in the configuration", {}, {"extra_special_tokens": ["<cat-toy>"]}, None
    yield "truncation and padding", {}, {}, lambda t: t.update(
        truncation={"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0},
        padding={"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                 "pad_type_id": 0, "pad_token": "!"})
    yield "another padding token", {}, {"pad_token": "!"}, None
    yield "another start token", {}, {"bos_token": "dog</w>"}, None
    yield "no normalizer", {}, {}, lambda t: t.update(normalizer=None)
    yield "BERT's normalizer", {}, {}, lambda t: t.update(normalizer={
        "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
        "lowercase": True})
    yield "words at blanks", {}, {}, lambda t: t.update(pre_tokenizer={"type": "Whitespace"})
    yield "no end of a word", {}, {}, set_model(end_of_word_suffix=None)
    yield "dropout", {}, {}, set_model(dropout=0.5)
    yield "a single word", {}, {}, added(token("cat", True, single_word=True))
    yield "blanks eaten", {}, {}, added(token("<cat>", True, lstrip=True))


def compare(sd, folder, strings):
    """None, or what differs; or the line of a refusal, in brackets"""
    ours = subprocess.run([sd, "tokenize", "--tokenizer", folder], input="\n".join(strings).encode(),
                          capture_output=True)
    if ours.returncode:
        return "(refused: %s)" % ours.stderr.decode().strip().replace(str(folder), "DIR")
    theirs = CLIPTokenizer.from_pretrained(folder)
    for s, line in zip(strings, ours.stdout.decode().split("\n")):
        ids = theirs(s, truncation=True, max_length=theirs.model_max_length).input_ids
        if ids != [int(x) for x in line.split()]:
            return f"{s!r}: {ids}, sd {line}"
    return None


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--sd", default="./sd")
    args.add_argument("--data", default="../shared/data")
    args = args.parse_args()
    rows = json.load(open(FIXTURES / "tokenizer_clip.json"))["cases"]
    strings = [r[0] for r in rows if "\n" not in r[0]][::7]
    words = ["<cat-toy>", "<Cat-Toy>", "<CAT>", "<cat>", "cat", "a photo of", START, END.upper(),
             "<cat-toy>-2", "dog", "."]
    strings += [b.join((x, y, z)) for b in (" ", "") for x in words for y in words for z in words[::3]]
    failed = 0
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        bases = {"small": FIXTURES / "tokenizer_small"}
        merges = Path(args.data) / "clip/bpe_simple_vocab_16e6.txt.gz"
        if merges.exists():
            bases["CLIP"] = work / "clip"
            bases["CLIP"].mkdir()
            lines = gzip.open(merges, "rt", encoding="utf-8").read().split("\n")[1:49152 - 256 - 2 + 1]
            visible = [b for b in range(256) if 32 < b < 127 or 160 < b < 256 and b != 173]
            tokens = [chr(b) for b in visible] + [chr(256 + i) for i in range(256 - len(visible))]
            tokens += [t + "</w>" for t in tokens] + [line.replace(" ", "") for line in lines] + [START, END]
            (bases["CLIP"] / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
            (bases["CLIP"] / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n")
            (bases["CLIP"] / "tokenizer_config.json").write_text(json.dumps(NAMED | {"model_max_length": 77}))
        for base, old in bases.items():
            t = CLIPTokenizer.from_pretrained(old)
            t.save_pretrained(work / "saved")
            t.add_tokens([AddedToken("<cat-toy>", normalized=False)])
            t.save_pretrained(work / "learnt")
            tried = [("saved with a token", work / "learnt", {}, {}, None)]
            for name, files, config, change in cases(len(t) - 1):
                tried.append((f"{name}", work / "saved", files, config, change))
                if not change:  # the same beside the files of transformers 4
                    tried.append((f"{name}, older files", old, files, config, None))
            tried.append(("both, of two vocabularies", FIXTURES / "tokenizer_small",
                         {"tokenizer.json": json.load(open(work / "saved/tokenizer.json"))}, {}, None))
            for name, source, files, config, change in tried:
                folder = work / "case"
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(source, folder)
                for file, content in files.items():
                    (folder / file).unlink(missing_ok=True)
                    if content is not None:
                        (folder / file).write_text(json.dumps(content))
                path = folder / "tokenizer_config.json"
                c = json.loads(path.read_text()) | config
                path.write_text(json.dumps({k: v for k, v in c.items() if v is not None}))
                if change:
                    whole = json.load(open(folder / "tokenizer.json"))
                    change(whole)
                    (folder / "tokenizer.json").write_text(json.dumps(whole))
                what = compare(args.sd, folder, strings)
                failed += what is not None and not what.startswith("(")
                print(f"{base}, {name}: {what or 'equal'}")
    print(f"{failed} differ" if failed else "no difference")
    return 1 if failed else 0


raise SystemExit(main())
