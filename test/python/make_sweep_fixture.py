# make_sweep_fixture.py: writes test/fixtures/configurations.json, what the reference makes of every key of a
# configuration. The keys are those of the constructors of diffusers' UNet2DConditionModel and AutoencoderKL,
# transformers' CLIPTextConfig and CLIPTokenizer and PEFT's LoraConfig, as inspect.signature has them, and
# some more that their readers honour. Each gets every value of a list; the rest of the configuration is that
# of weights/tiny. What comes out is the "same" as without the change, an "error", or "other" numbers (none:
# weights are missing). Values are JSON texts. test/phases/configurations.c does the same with ours.
# Run it in the repository's root.
import inspect
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.simplefilter("ignore")
import diffusers
import numpy as np
import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

import made

diffusers.logging.set_verbosity(logging.CRITICAL)
transformers.utils.logging.set_verbosity(logging.CRITICAL)
transformers.utils.logging.disable_progress_bar()
diffusers.utils.logging.disable_progress_bar()
logging.disable(logging.CRITICAL)
torch.set_grad_enabled(False)

TINY = Path("weights/tiny")
work = Path(tempfile.mkdtemp())
ANY = [None, False, True, 0, 2, 0.5, "default", [1, 1, 1, 1]]
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
UP_CROSS, UP_PLAIN = "CrossAttnUpBlock2D", "UpBlock2D"


def made_input(name, *shape):
    return torch.from_numpy(made.made("input." + name, shape))


def numbers(*tensors):
    """Entries (k * 2654435761 + 12345) mod n of each."""
    picked = [x.reshape(-1)[(k * 2654435761 + 12345) % x.numel()].item() for x in tensors for k in range(3)]
    return [float(f"{x:.6g}") for x in picked]


def folder(part, config, name="config.json"):
    """A copy of a part of the model with another configuration; the weights are linked."""
    d = work / part
    shutil.rmtree(d, ignore_errors=True)
    d.mkdir(parents=True)
    for f in (TINY / part).iterdir():
        if f.name not in (name, "special_tokens_map.json"):
            (d / f.name).symlink_to(f.resolve())
    (d / name).write_text(json.dumps(config))
    return d


def filled(constructor, config, part):
    """from_pretrained(), but fast: no weights are drawn at random."""
    with torch.device("meta"):
        m = constructor.from_config(config)
    weights = {
        k: v.float()
        for k, v in load_file(TINY / part / "diffusion_pytorch_model.safetensors").items()
    }
    lacks = m.load_state_dict(weights, strict=False, assign=True).missing_keys
    assert not lacks and not any(b.is_meta for b in m.buffers())
    return m.eval()


def keys(constructor, *more):
    own = inspect.signature(constructor).parameters
    general = inspect.signature(transformers.PreTrainedConfig.__init__).parameters  # of every model
    return [k for k in own if k not in ("self", "kwargs") and k not in general] + list(more)


def unet(config):
    m = filled(diffusers.UNet2DConditionModel, config, "unet")
    guidance = made_input("unet.timestep_cond", 1, 256) if m.config.time_cond_proj_dim else None
    context = made_input("unet.context", 1, 32, 128)
    y = m(made_input("unet.sample", 1, 4, 8, 8), 501, context, timestep_cond=guidance)
    size = m.config.sample_size  # the pipeline draws a picture of that size
    return numbers(y.sample) + [64 if size is None else size]


def vae(config):
    m = filled(diffusers.AutoencoderKL, config, "vae")
    z = m.encode(made_input("vae.image", 1, 3, 64, 64)).latent_dist.mean * m.config.scaling_factor
    return numbers(z, m.decode(made_input("vae.latents", 1, 4, 8, 8) / m.config.scaling_factor).sample)


def text_encoder(config):
    m, info = transformers.CLIPTextModel.from_pretrained(folder("text_encoder", config),
                                                         dtype=torch.float32,
                                                         output_loading_info=True)
    assert not info["missing_keys"]
    ids = torch.tensor([[766] + [(7 * i) % 760 for i in range(20)] + [767] * 11])
    # as StableDiffusionPipeline calls it
    mask = (torch.arange(32) < 22)[None].long() if getattr(m.config, "use_attention_mask", None) else None
    states = m(ids, attention_mask=mask)[0]
    return numbers(states, states[:, -1])


def tokenizer(config):
    t = transformers.CLIPTokenizer.from_pretrained(folder("tokenizer", config, "tokenizer_config.json"))
    texts = ["A brown dog <|endoftext|> Caf\u00c9 <cat-toy>!! a", "a dog runs " * 20]
    options = dict(padding="max_length", max_length=t.model_max_length, truncation=True)
    return [i for ids in t(texts, **options).input_ids for i in ids]


BLOCK = ".attentions.0.transformer_blocks.0."
ADAPTED = {
    "mid_block" + BLOCK + "attn1.to_q": (144, 144), "mid_block" + BLOCK + "attn2.to_k": (144, 128),
    "down_blocks.0" + BLOCK + "attn1.to_q": (48, 48), "down_blocks.1" + BLOCK + "attn1.to_out.0": (96, 96)
}
RANK = 2


def adapter(config):
    m = filled(diffusers.UNet2DConditionModel, json.loads((TINY / "unet/config.json").read_text()), "unet")
    before = {k: m.get_submodule(k).weight.clone() for k in ADAPTED}
    d = work / "adapter"
    d.mkdir(exist_ok=True)
    weights = {}
    for name, (out, inputs) in ADAPTED.items():
        for letter, shape in (("A", (RANK, inputs)), ("B", (out, RANK))):
            key = f"base_model.model.{name}.lora_{letter}.weight"
            weights[key] = made_input(key, *shape)
    save_file(weights, d / "adapter_model.safetensors")
    (d / "adapter_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    m = peft.PeftModel.from_pretrained(m, d).merge_and_unload()
    return [x for k in ADAPTED for x in numbers(m.get_submodule(k).weight - before[k])[:1]]


LORA = {"peft_type": "LORA", "r": RANK, "lora_alpha": 3, "target_modules": ["to_q", "to_k", "to_out.0"]}
PATTERNS = [
    "to_q", "attn1.to_q", r"attn1\.to_q", r".*attn1\.to_q", "^down_blocks.*to_q", "^to_q", "down_blocks",
    "o_q", "to_(q|k)", "to_q|to_k", "to_[qk]", "to_[^k]", "mid_block.*", "to_q$", ".*", "",
    r"blocks\.[0-9]+\..*to_q", r"blocks\.\d\..*to_q", r"\w+_block.*", ".*?to_q", "to_q??", "to_q{1}",
    "(?:to_q)", "(?i)TO_Q", "to_[\\w]", "(to_q", "*to_q", "to_q++", "a)|(to_q", "[]to_q]*", "mid_block\\b.*",
    "to_(q|)", "x*to_q"
]
OVERLAP = [{"to_k": 16, "attn2.to_k": 2}, {"attn2.to_k": 2, "to_k": 16}, {".*": 1, "to_q": 7},
           {"to_q": 7, ".*": 1}, {"to_q": None}, {"to_q": "8"}, {"to_q": 2.5}]
SPECIAL = ["bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "mask_token", "sep_token"]

UNET = {
    "act_fn": ["swish", "SiLU", "mish", "relu"], "attention_type": ["gated"],
    "mid_block_type": ["UNetMidBlock2D"], "dropout": [0.1], "freq_shift": [-1, 0.25],
    "down_block_types": [[CROSS] * 3, [CROSS] * 4, [PLAIN] * 4, [CROSS, CROSS, PLAIN, CROSS],
                         [CROSS, CROSS, "AttnDownBlock2D", PLAIN], [CROSS, CROSS, CROSS, 1]],
    "up_block_types": [[UP_CROSS] * 4, [UP_PLAIN] * 4, [UP_PLAIN] + [UP_CROSS] * 2,
                       [UP_CROSS, UP_PLAIN, UP_CROSS, UP_CROSS],
                       [UP_PLAIN, UP_CROSS, "AttnUpBlock2D", UP_CROSS]],
    "block_out_channels": [[48, 96, 144], [48, 96, 144, 192]], "cross_attention_dim": [128, 64, [128] * 4],
    "attention_head_dim": [4, 6, 12, 5, [4] * 4, [2, 4, 6, 8], [4] * 3, [4, 4, 4, "4"], [0] * 4],
    "norm_num_groups": [12, 6, 24, 7], "norm_eps": [1e-5, 1e-3], "in_channels": [4, 8, 9],
    "out_channels": [4, 8], "sample_size": [16, 64, [16, 16]], "time_cond_proj_dim": [256],
    "time_embedding_dim": [192, 96], "time_embedding_type": ["positional", "fourier"],
    "resnet_time_scale_shift": ["scale_shift"], "only_cross_attention": [[False] * 4, [True] * 4],
    "addition_embed_type": ["text_time"], "class_embed_type": ["timestep", "projection"],
    "encoder_hid_dim_type": ["text_proj"], "encoder_hid_dim": [128],
    "cross_attention_norm": ["layer_norm", "group_norm"], "reverse_transformer_layers_per_block": [[[1]] * 4],
    "transformer_layers_per_block": [[2, 1, 1, 1]]}
VAE = {
    "act_fn": ["swish", "relu"], "scaling_factor": [0.18215, -1], "norm_num_groups": [4, 8, 5],
    "down_block_types": [["DownEncoderBlock2D"] * 3, ["AttnDownEncoderBlock2D"] * 4],
    "up_block_types": [["UpDecoderBlock2D"] * 3, ["AttnUpDecoderBlock2D"] * 4], "latent_channels": [4, 8],
    "block_out_channels": [[16, 32, 64]], "latents_mean": [[0.0] * 4], "sample_size": [[64, 64]]}
TEXT = {
    "hidden_act": ["quick_gelu", "relu", "gelu_new", "gelu_pytorch_tanh"], "layer_norm_eps": [1e-3],
    "num_attention_heads": [4, 8, 5], "hidden_size": [64], "vocab_size": [768, 700],
    "intermediate_size": [256], "max_position_embeddings": [32, 77], "eos_token_id": [767, [1]],
    "model_type": ["clip", "bert"], "num_hidden_layers": [4, 5]}
LEARNT = {"content": "<cat-toy>", "lstrip": False, "rstrip": False, "normalized": False,
          "single_word": False, "special": True}
TOKENIZER = {
    **{k: ["<|startoftext|>", "<|endoftext|>", "!", "<cat-toy>", "a</w>"] for k in SPECIAL},
    "model_max_length": [16, 32, 20.5, 1e30, "32"], "padding_side": ["left", "right"],
    "truncation_side": ["left", "right"], "tokenizer_class": ["T5Tokenizer"],
    "additional_special_tokens": [["<cat-toy>"], ["!"], ["dog</w>"]],
    "extra_special_tokens": [["<cat-toy>"], ["!"], {"x": "!"}], "added_tokens_decoder": [{"700": LEARNT}]}
ADAPTER = {
    "init_lora_weights": ["gaussian", "eva", "olora", "pissa", "pissa_niter_4", "corda", "loftq",
                          "orthogonal", "mica", "lora_ga"],
    "peft_type": ["LORA", "LOHA", "IA3"], "r": [8], "bias": ["none", "all", "lora_only"],
    "target_modules": [["to_q"], ["attn1.to_q", "to_k", "to_out.0"], "to_q", r".*to_(q|k|out\.0)", ".*to_.*",
                       "all-linear", ["q", "k", "0"], r".*\.to_\w+(\.0)?"],
    "exclude_modules": [["to_k"], ["to_v"], "to_k", ".*to_k"], "modules_to_save": [["conv_in"]],
    "layers_to_transform": [[0]], "layers_pattern": ["attentions"],
    "alpha_pattern": [{p: 8} for p in PATTERNS] + OVERLAP,
    "rank_pattern": [{"to_q": 2}, {"to_q": 4}, {"to_v": 4}, {"x": 0}], "megatron_config": [{"a": 1}],
    "loftq_config": [{"loftq_bits": 4}], "eva_config": [{"rho": 2.0}], "lora_ga_config": [{}],
    "corda_config": [{"corda_method": "kpm"}], "trainable_token_indices": [[1]],
    "target_parameters": [["conv_in.weight"]], "layer_replication": [[[0, 1]]], "task_type": ["CAUSAL_LM"],
    "lora_dropout": [0.1], "alora_invocation_tokens": [[1]],
    "runtime_config": [{"ephemeral_gpu_offload": False}]}

# What a run needs: the function, the configuration, the keys, and more values than ANY.
SWEEPS = {
    "unet/config.json": (
        unet, TINY / "unet/config.json", keys(diffusers.UNet2DConditionModel.__init__, "x"), UNET),
    "vae/config.json": (vae, TINY / "vae/config.json", keys(diffusers.AutoencoderKL.__init__, "x"), VAE),
    "text_encoder/config.json": (
        text_encoder, TINY / "text_encoder/config.json",
        keys(transformers.CLIPTextConfig.__init__, "use_attention_mask", "model_type", "return_dict", "x"),
        TEXT),
    "tokenizer/tokenizer_config.json": (
        tokenizer, TINY / "tokenizer/tokenizer_config.json",
        keys(transformers.CLIPTokenizer.__init__, "model_max_length", "padding_side", "truncation_side",
             "split_special_tokens", "do_lower_case", "errors", "add_prefix_space",
             "additional_special_tokens", "extra_special_tokens", "cls_token", "mask_token", "sep_token",
             "tokenizer_class", "chat_template", "clean_up_tokenization_spaces", "add_bos_token",
             "model_input_names", "added_tokens_decoder", "x"),
        TOKENIZER),
    "adapter/adapter_config.json": (adapter, LORA, keys(peft.LoraConfig.__init__, "x"), ADAPTER)}


def outcome(run, config):
    try:
        got = run(config)
        return got if np.all(np.isfinite(np.array(got, float))) else []
    except AssertionError:
        return []  # weights are missing: random ones in the reference
    except Exception:
        return "error"


def sweep(run, base, names, more):
    base = base if isinstance(base, dict) else json.loads(base.read_text())
    unchanged = run(base)
    out = {"base": {k: json.dumps(v) for k, v in base.items()}, "unchanged": unchanged, "keys": {}}
    for key in names:
        row = {"same": [], "error": [], "other": []}
        for value in ANY + more.get(key, []) + ["absent"] * (key in base):
            config = {k: v for k, v in base.items() if k != key}
            if value != "absent":
                config[key] = value
            got = outcome(run, config)
            text = "absent" if value == "absent" else json.dumps(value)
            if got == "error":
                row["error"].append(text)
            elif got and len(got) == len(unchanged) and np.allclose(got, unchanged, 1e-5, 1e-6):
                row["same"].append(text)
            else:
                row["other"].append([text, got])
        out["keys"][key] = row
        print(key, *(f"{k} {len(v)}" for k, v in row.items()), flush=True)
    return out


if __name__ == "__main__":
    names = sys.argv[1:] or SWEEPS
    result = {name: sweep(*SWEEPS[name]) for name in names}
    path = Path("test/fixtures/configurations.json")
    if sys.argv[1:] and path.exists():
        result = {**json.loads(path.read_text()), **result}
    text = []
    for name, r in result.items():
        rows = [f'"{key}": {json.dumps(row, separators=(",", ":"))}' for key, row in r["keys"].items()]
        head = f'"{name}": {{"base": {json.dumps(r["base"])}, "unchanged": {r["unchanged"]}, "keys": {{\n'
        text.append(head + ",\n".join(rows) + "}}")
    path.write_text("{" + ",\n".join(text) + "}\n")
    print(path, path.stat().st_size, "bytes")
    shutil.rmtree(work)
