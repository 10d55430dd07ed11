"""Second moments from an optimizer's saved state, by parameter name, shapes checked.

Read are our own `optimizer.safetensors`; a Trainer's `optimizer.pt`, accelerate's `optimizer.bin` and torch's own
`state_dict`, only by `torch.load(weights_only=True)`. Adam's kinds keep `exp_avg_sq`, Adafactor `exp_avg_sq_row` and
`exp_avg_sq_col` (row and column means already).
"""

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from transformers.trainer_pt_utils import get_parameter_names

from attribution.layers import Layer
from attribution.preconditioner import FactoredMoment, factor
from schemas.errors import ConfigError

OWN = "optimizer.safetensors"
TORCH_FILES = ("optimizer.pt", "optimizer.bin", "optimizer_state.pt")
# What the Trainer's get_decay_parameter_names leaves out of its first group (transformers 5.23, trainer.py).
NO_DECAY = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
ADAM_EPS = 1e-8
State = dict[str, dict[str, Any]]


def _refuse(file: Path, expected: str, found: str) -> ConfigError:
    return ConfigError(
        f"{file}: expected {expected}, found {found}; put the state of this model there, take the file away, or index "
        "with --optimizer_correction estimate"
    )


def _load(file: Path) -> dict[str, Any]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise _refuse(
            file, "a torch optimizer state that holds tensors alone", str(error).splitlines()[0][:200]
        ) from error
    if not isinstance(state, dict) or not {"state", "param_groups"} <= state.keys():
        raise _refuse(file, "a state_dict with `state` and `param_groups`", f"{type(state).__name__}")
    return state


def _orders(model: torch.nn.Module, trainable: frozenset[str], groups: list[list[Any]]) -> list[str]:
    """Names in the order that the groups' numbers count them: named_parameters, or the Trainer's decay and no-decay.

    Both are the only orders that torch and the Trainer make; the shapes are checked afterwards. Two parameters of one
    shape that stand in swapped places would go unnoticed, but no library writes such a state.
    """
    names = [name for name, _ in model.named_parameters() if name in trainable]
    if len(groups) != 2:
        return names
    decayed = set(get_parameter_names(model, [torch.nn.LayerNorm], list(NO_DECAY)))
    split = [name for name in names if name in decayed], [name for name in names if name not in decayed]
    return [*split[0], *split[1]] if len(split[0]) == len(groups[0]) else names


def _by_name(file: Path, saved: dict[str, Any], model: torch.nn.Module, trainable: frozenset[str]) -> State:
    groups = [list(group["params"]) for group in saved["param_groups"]]
    keys = [key for group in groups for key in group]
    named = [name for group in saved["param_groups"] for name in group.get("param_names", ())]
    if all(isinstance(key, str) for key in saved["state"]) and saved["state"]:
        return {re.sub(r"^(module\.|_orig_mod\.)+", "", key): value for key, value in saved["state"].items()}
    names = named if len(named) == len(keys) else _orders(model, trainable, groups)
    if len(names) != len(keys):
        raise _refuse(
            file, f"the state of a model of {len(names)} parameters", f"one of {len(keys)}, which is of another model"
        )
    return {name: saved["state"][key] for name, key in zip(names, keys, strict=True) if key in saved["state"]}


def _finite(file: Path, name: str, values: torch.Tensor) -> torch.Tensor:
    values = values.double()
    if not torch.isfinite(values).all() or (values < 0).any():
        raise _refuse(file, f"second moments of {name} that are numbers of at least 0", "others among them")
    return values


def _shape_error(file: Path, wrong: list[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> ConfigError:
    shown = "; ".join(f"{name} {list(expected)}, found {list(found)}" for name, expected, found in wrong[:3])
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return _refuse(file, f"second moments of the shapes of this model: {shown}{more}", "the state of another model")


def _moment(file: Path, layer: Layer, name: str, entry: dict[str, Any], beta2: float | None) -> FactoredMoment:
    if "exp_avg_sq_row" in entry:
        row, column = (_finite(file, name, entry[key]).numpy() for key in ("exp_avg_sq_row", "exp_avg_sq_col"))
        if layer.uses[0].kind == "experts":  # [experts, out] and [experts, in]
            row, column = row.reshape(-1), column.mean(axis=0)
        # Over the last axis and over the one before it, as the parameter is stored; Conv1D stores [in, out].
        return FactoredMoment(column, row) if layer.uses[0].kind == "conv1d" else FactoredMoment(row, column)
    v = layer.as_matrix(_finite(file, name, entry["exp_avg_sq"])).numpy()
    step = entry.get("step")
    return factor(v, None if step is None else int(step), beta2)


def _found_shape(layer: Layer, entry: dict[str, Any]) -> tuple[int, ...]:
    if "exp_avg_sq" in entry:
        return tuple(entry["exp_avg_sq"].shape)
    row, column = entry["exp_avg_sq_row"], entry["exp_avg_sq_col"]
    return (*row.shape, column.shape[-1])


def read_moments(
    path: str, layers: list[Layer], model: transformers.PreTrainedModel, meta: dict[str, Any], trainable: frozenset[str]
) -> tuple[dict[str, FactoredMoment], float, str] | None:
    """(second moments by layer name, the optimizer's eps, the file's name), or None where no state was kept.

    `meta` is `checkpoint.json`, which has the step, beta2 and eps of our own state. Raises ConfigError for a state of
    another model (with names and shapes), of an optimizer without second moments, or with values that are no moments.
    """
    file = next((Path(path) / name for name in (OWN, *TORCH_FILES) if (Path(path) / name).is_file()), None)
    if file is None:
        return None
    if file.name == OWN:
        entries: State = {n: {"exp_avg_sq": v, "step": meta["step"]} for n, v in load_file(file).items()}
        beta2, eps = meta["beta2"], meta["eps"]
    else:
        saved = _load(file)
        group = saved["param_groups"][0] if saved["param_groups"] else {}
        entries = _by_name(file, saved, model, trainable)
        beta2 = group["betas"][1] if "betas" in group else None
        eps = group["eps"] if isinstance(group.get("eps"), float) else ADAM_EPS
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    moments, wrong = {}, []
    for layer in layers:
        name = names[id(layer.parameter)]
        entry = entries.get(name, {})
        if not entry.keys() & {"exp_avg_sq", "exp_avg_sq_row"}:
            keys = sorted({key for value in entries.values() for key in value})
            held = ", ".join(keys) if entry or not entries else "no state for it"
            raise _refuse(file, f"a second moment (exp_avg_sq) of {name}", held or "nothing")
        expected, found = tuple(layer.parameter.shape), _found_shape(layer, entry)
        if expected != found:
            wrong.append((name, expected, found))
        else:
            moments[layer.name] = _moment(file, layer, name, entry, beta2)
    if wrong:
        raise _shape_error(file, wrong)
    return moments, float(np.float64(eps)), file.name
