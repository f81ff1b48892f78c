# make_sampler_fixture.py: fixtures/samplers.safetensors, for phases/samplers.c: diffusers' schedulers step by
# step, and what they make of every key of their constructors.
#
#     python make_sampler_fixture.py
#
# The network is made: out = 0.5 x + sin(1.7 i + 0.9 k) + t / 2000 at element i of the (1, 4, 2, 2) latents,
# step k and timestep t. Noise: torch's generator, seed 0, as the pipeline draws it.
#
# `run.NAME.SPACING.PREDICTION.KARRAS.STEPS.10 ETA.IMAGE`, (rows, 18): step k, its timestep, and the latents
# behind it, for every fourth step and the last; IMAGE 1: image-to-image with strength 0.55 from cos(i).
# `grid.NAME.SPACING`, int32: for 1, 2, ... steps the sum over i of (i + 1) t_i of the first so many of them;
# 0 where diffusers has fewer.
# `sweep`, (cases, 32): the last latents of 5 and of 16 steps; NaN where diffusers fails. The metadata's
# `sweep` has a line a case: --scheduler or -, and what scheduler_config.json has; behind a "+" it has the
# members of SD15 too.
import inspect
import json
import tempfile
import warnings
from pathlib import Path

import diffusers
import numpy as np
import torch
from safetensors.numpy import save_file

HERE = Path(__file__).parent.parent
NAMES = {"pndm": "PNDMScheduler", "ddim": "DDIMScheduler", "lcm": "LCMScheduler", "tcd": "TCDScheduler",
         "euler": "EulerDiscreteScheduler", "euler-a": "EulerAncestralDiscreteScheduler",
         "dpm++2m": "DPMSolverMultistepScheduler"}
SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "skip_prk_steps": True}
SHAPE = (1, 4, 2, 2)


def pipeline(config, name=None):
    """The scheduler of a folder with this scheduler_config.json, or the one of that name made from it, as
    StableDiffusionPipeline leaves it."""
    with tempfile.TemporaryDirectory() as d:
        (Path(d) / "scheduler_config.json").write_text(json.dumps(config))
        made = getattr(diffusers, NAMES[name] if name else config["_class_name"]).from_pretrained(d)
    return diffusers.StableDiffusionPipeline(None, None, None, None, made, None, None,
                                             requires_safety_checker=False).scheduler


def draw(s, steps, eta=0.0, strength=None, rows=None):
    """The pipeline's loop."""
    generator = torch.Generator("cpu").manual_seed(0)
    s.set_timesteps(steps)
    timesteps = s.timesteps
    if strength is None:
        z = torch.randn(SHAPE, generator=generator) * s.init_noise_sigma
    else:
        begin = max(steps - min(int(steps * strength), steps), 0)
        timesteps = timesteps[begin:]
        if hasattr(s, "set_begin_index"):
            s.set_begin_index(begin)
        clean = torch.cos(torch.arange(16.0)).reshape(SHAPE)
        z = s.add_noise(clean, torch.randn(SHAPE, generator=generator), timesteps[:1])
    accepted = inspect.signature(s.step).parameters
    more = {k: v for k, v in (("eta", eta), ("generator", generator)) if k in accepted}
    for k, t in enumerate(timesteps):
        wave = np.sin(1.7 * np.arange(16) + 0.9 * k) + float(t) / 2000
        out = 0.5 * s.scale_model_input(z, t) + torch.from_numpy(wave.astype(np.float32)).reshape(SHAPE)
        z = s.step(out, t, z, **more).prev_sample
        if rows is not None and (k % 4 == 0 or k == len(timesteps) - 1):
            rows.append(np.concatenate([[k, float(t)], z.numpy().ravel()]))
    return z.numpy().ravel()


def runs():
    tensors = {}
    for name in NAMES:
        fixed = name in ("lcm", "tcd")
        for karras in (False, True) if name in ("euler", "dpm++2m") else (False,):
            for spacing in ("leading",) if fixed else ("leading", "trailing", "linspace"):
                for prediction in ("epsilon", "v_prediction", "sample"):
                    if prediction == "sample" and name in ("pndm", "euler-a"):
                        continue
                    for steps in (1, 4, 20, 50):
                        image = steps == 20 and prediction == "epsilon"
                        for eta in (0, 0.3, 1) if name == "tcd" else (0,):
                            for strength in (None, 0.55) if image else (None,):
                                config = {"_class_name": NAMES[name], "timestep_spacing": spacing,
                                          "prediction_type": prediction, **SD15}
                                if karras:
                                    config["use_karras_sigmas"] = True
                                rows = []
                                draw(pipeline(config), steps, eta, strength, rows)
                                key = ".".join(map(str, (name, spacing, prediction, int(karras), steps,
                                                         round(10 * eta), int(strength is not None))))
                                tensors["run." + key] = np.array(rows, np.float32)
    return tensors


def grids():
    tensors = {}
    for name in ("ddim", "dpm++2m"):
        for spacing in ("leading", "trailing", "linspace"):
            s = pipeline({"_class_name": NAMES[name], "timestep_spacing": spacing, **SD15})
            sums = []
            for steps in range(1, 1000):
                s.set_timesteps(steps)
                t = s.timesteps.numpy()[:steps]
                sums.append(int((t * np.arange(1, len(t) + 1)).sum()) if len(t) == steps else 0)
            tensors[f"grid.{name}.{spacing}"] = np.array(sums, np.int32)
    return tensors


BETAS = [round(0.01 + 0.02 * i, 2) for i in range(20)]
STRINGS = {"beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"],
           "prediction_type": ["epsilon", "v_prediction", "sample", "flow_prediction", "original_sample"],
           "timestep_spacing": ["leading", "trailing", "linspace", "karras"],
           "interpolation_type": ["linear", "log_linear"], "timestep_type": ["discrete", "continuous"],
           "final_sigmas_type": ["zero", "sigma_min", "one"],
           "algorithm_type": ["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "deis"],
           "solver_type": ["midpoint", "heun", "logrho", "bh1", "bh2"],
           "time_shift_type": ["exponential", "linear"],
           "variance_type": ["learned", "learned_range", "fixed"]}
NUMBERS = {"num_train_timesteps": [20, 500, 100.5], "original_inference_steps": [20, 100, 2000],
           "solver_order": [1, 2, 3], "sigma_min": [0.1], "sigma_max": [10.0], "lambda_min_clipped": [-5.1],
           "beta_start": [0, 0.0002, -0.01], "beta_end": [0.02, 1.5]}


def values(key, default):
    if key == "trained_betas":
        return [None, BETAS, BETAS[:3]]
    more = STRINGS.get(key, []) + NUMBERS.get(key, [])
    if isinstance(default, bool):
        more += [not default, default, 1]
    elif isinstance(default, (int, float)) and key not in NUMBERS and abs(default) < 1e9:
        more += [0, 2 * default + 1, 0.7]
    return more + [None, "other"]


def cases():
    """(--scheduler or -, configuration)"""
    for name in NAMES:
        base = {"_class_name": NAMES[name], **SD15}
        yield "-", base
        yield "-", {"_class_name": NAMES[name]}
        for key, p in list(inspect.signature(getattr(diffusers, NAMES[name])).parameters.items()):
            for value in values(key, p.default):
                change = {key: value}
                if key == "trained_betas" and value:
                    change["num_train_timesteps"] = len(BETAS)
                yield "-", {**base, **change}
        yield "-", {**base, "skip_prk_steps": False}
        for more in ({"num_train_timesteps": 20}, {}):
            yield "-", {**base, **more, "trained_betas": BETAS}
        for prediction in ("epsilon", "v_prediction", "sample"):
            for spacing in ("leading", "trailing", "linspace"):
                for more in ({"rescale_betas_zero_snr": True}, {"use_karras_sigmas": True},
                             {"final_sigmas_type": "sigma_min"}, {"beta_schedule": "squaredcos_cap_v2"},
                             {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True},
                             {"clip_sample": True, "steps_offset": 0}):
                    yield "-", {**base, "prediction_type": prediction, "timestep_spacing": spacing, **more}
        for spacing in ("leading", "trailing", "linspace"):
            for order in (1, 2):
                for lower in (False, True):
                    for euler in (False, True):
                        for last in ("zero", "sigma_min"):
                            if name == "dpm++2m":
                                yield "-", {**base, "solver_order": order, "lower_order_final": lower,
                                            "euler_at_final": euler, "final_sigmas_type": last,
                                            "timestep_spacing": spacing}
        # another class from this one's file: as diffusers saves it, and one that leaves everything open
        whole = json.loads(pipeline(base).to_json_string())
        for other in NAMES:
            yield other, whole
            yield other, {"_class_name": NAMES[name]}


def main():
    warnings.simplefilter("ignore")
    diffusers.logging.set_verbosity(100)
    torch.set_num_threads(1)
    lines, results = [], []
    for name, config in cases():
        line = name + "\t" + json.dumps(config)
        if SD15.items() <= config.items():
            line = f"{name}\t+" + json.dumps({k: v for k, v in config.items() if k not in SD15})
        if line in lines:
            continue
        row = []
        for steps in (5, 16):
            try:
                row.append(draw(pipeline(config, None if name == "-" else name), steps))
            except Exception:
                row.append(np.full(16, np.nan))
        lines.append(line)
        results.append(np.concatenate(row))
    tensors = {**runs(), **grids(), "sweep": np.array(results, np.float32)}
    path = HERE / "fixtures/samplers.safetensors"
    save_file(tensors, path, {"sweep": "\n".join(lines)})
    failed = int(np.isnan(tensors["sweep"]).any(1).sum())
    print(f"{len(tensors)} tensors, {len(lines)} cases of which diffusers fails {failed}, "
          f"{path.stat().st_size} bytes")


main()
