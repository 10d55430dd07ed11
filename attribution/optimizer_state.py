"""Second moments from an optimizer's saved state, by parameter name, number and shapes checked.

Read are our own `optimizer.safetensors`; a Trainer's `optimizer.pt`, accelerate's `optimizer.bin` and torch's own
`state_dict`, only by `torch.load(weights_only=True)`. Adam's kinds keep V as `exp_avg_sq`, to be bias-corrected by
1/(1 - beta2^step); Adafactor (arXiv 1804.04235) keeps its means over the last axis as `exp_avg_sq_row` and over the one
before as `exp_avg_sq_col`, with a decay of 1 - step^-0.8 that needs no correction.
"""

import re
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file

from attribution.checkpoint import CHECKPOINT_JSON, OPTIMIZER
from attribution.layers import Layer
from attribution.preconditioner import FactoredMoment, factor
from schemas.errors import ConfigError

FILES = (OPTIMIZER, "optimizer.pt", "optimizer.bin", "optimizer_state.pt")
# What transformers' example scripts with accelerate (run_clm_no_trainer.py, run_mlm_no_trainer.py) do not decay.
SCRIPTS_NO_DECAY = (("bias", "layer_norm.weight"), ("bias", "LayerNorm.weight"))
FACTORS = ("exp_avg_sq_row", "exp_avg_sq_col")
# What torch.load(weights_only=True) raised on 3,000 files with three random bytes changed, and on empty and cut ones.
DAMAGED = (UnpicklingError, RuntimeError, EOFError, ValueError, OSError, AssertionError, LookupError, TypeError)
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Entry:
    """What an optimizer keeps of one parameter, and the options of the parameter's group."""

    state: dict[str, Any]
    group: dict[str, Any]

    @property
    def second(self) -> list[torch.Tensor]:
        """V, or the two means of it; nothing for an optimizer without a second moment."""
        if all(key in self.state for key in FACTORS):
            return [self.state[key] for key in FACTORS]
        # AMSGrad divides by the largest V so far.
        found = self.state.get("max_exp_avg_sq", self.state.get("exp_avg_sq"))
        return [] if found is None else [found]

    @property
    def shape(self) -> Shape:
        """Of the parameter, as this state has it."""
        first, *last = self.second
        return (*first.shape, *(values.shape[-1] for values in last))


def _refuse(file: Path, expected: str, found: str) -> ConfigError:
    return ConfigError(
        f"{file}: expected {expected}, found {found}; put the state of this model there, take the file away, or index "
        "with an estimate from a sample of the corpus (--optimizer_correction estimate)"
    )


def _few(found: list[str], count: int = 3) -> str:
    more = f" and {len(found) - count} more" if len(found) > count else ""
    return ", ".join(found[:count]) + more


def _own(file: Path, meta: dict[str, Any]) -> dict[str, _Entry]:
    missing = [key for key in ("step", "beta2", "eps") if key not in meta]
    if missing:
        raise _refuse(file, f"step, beta2 and eps in the {CHECKPOINT_JSON} beside it", f"no {' and no '.join(missing)}")
    try:
        found = load_file(file)
    except SafetensorError as error:
        raise _refuse(file, "a safetensors file", str(error)) from error
    group = {"betas": (None, meta["beta2"]), "eps": meta["eps"]}
    return {name: _Entry({"exp_avg_sq": v, "step": meta["step"]}, group) for name, v in found.items()}


def _load(file: Path) -> dict[str, Any]:
    try:
        # Only what is read of the file comes into memory; files of before torch 1.6 cannot be mapped.
        saved = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (*DAMAGED, zipfile.BadZipFile) as error:
        # torch's own text is no help: it advises to run the file's code.
        code = re.search(r"GLOBAL (\S+)", str(error))
        found = f"the object {code[1]}, which is made by running code" if code else "one that is damaged or none"
        raise _refuse(file, "an optimizer state of torch that holds tensors and numbers alone", found) from error
    if not isinstance(saved, dict) or not {"state", "param_groups"} <= saved.keys():
        keys = _few([str(key) for key in saved]) if isinstance(saved, dict) else type(saved).__name__
        raise _refuse(file, "the state_dict of an optimizer, `state` and `param_groups`", keys or "nothing")
    return saved


def _splits(model: torch.nn.Module, names: list[str], groups: int) -> Iterator[list[list[str]]]:
    """The ways in which training code is known to share out the parameters to this number of groups."""
    if groups == 1:
        yield [names]
    if groups == 2:
        decayed = set(transformers.Trainer.get_decay_parameter_names(None, model))
        undecayed = [{name for name in names if name not in decayed}]
        undecayed += [{name for name in names if any(part in name for part in parts)} for parts in SCRIPTS_NO_DECAY]
        for others in undecayed:
            yield [[name for name in names if name not in others], [name for name in names if name in others]]


def _in_order(file: Path, saved: dict[str, Any], model: torch.nn.Module, expected: dict[str, Shape]) -> list[list[str]]:
    """The names that the numbers of each group stand for, by order: a state_dict counts them group by group.

    Known are one group in the order of `named_parameters`, tied weights once, and two, with weight decay and without,
    each in that order: the Trainer's split, or else that of transformers' scripts. Two splits cannot both fit and
    differ in the families that are taken: what a script does not decay the Trainer does not decay either, so that
    groups of the same sizes are the same groups. Any other grouping is refused, for it may hold blocks of the same
    shapes in another order, which no check of shapes would see. Raises ConfigError.
    """
    groups, names = [len(group["params"]) for group in saved["param_groups"]], list(expected)
    if sum(groups) != len(names):
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        entries = [_Entry(saved["state"].get(number, {}), {}) for number in numbers]
        shapes = [str(list(entry.shape)) for entry in entries if entry.second]
        wanted = _few([f"{name} {list(shape)}" for name, shape in expected.items()])
        raise _refuse(
            file,
            f"the state of this model's {len(names)} trained parameters ({wanted})",
            f"one of {len(numbers)} ({_few(shapes)}), which is of another model",
        )
    for split in _splits(model, names, len(groups)):
        if [len(part) for part in split] == groups:
            return split
    raise _refuse(
        file,
        "one group of parameters, the Trainer's two (with weight decay and without), or names in the groups "
        "(torch.optim.AdamW(model.named_parameters()))",
        f"groups of {' and '.join(map(str, groups))} without names, whose order cannot be told",
    )


def _by_name(
    file: Path, saved: dict[str, Any], model: torch.nn.Module, expected: dict[str, Shape]
) -> dict[str, _Entry]:
    """Entries by parameter name: the state's own names where it has any, else by order. Raises ConfigError."""
    groups, state = saved["param_groups"], saved["state"]
    if all(isinstance(key, str) for group in groups for key in group["params"]):
        names = [list(group["params"]) for group in groups]
    elif all(len(group.get("param_names", ())) == len(group["params"]) for group in groups):
        names = [list(group["param_names"]) for group in groups]
    else:
        names = _in_order(file, saved, model, expected)
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    tied = {alias: first[id(parameter)] for alias, parameter in model.named_parameters(remove_duplicate=False)}
    found = {}
    for group, group_names in zip(groups, names, strict=True):
        for key, name in zip(group["params"], group_names, strict=True):
            name = name.removeprefix("module.").replace("_orig_mod.", "")  # DistributedDataParallel, torch.compile
            if key in state:
                found[tied.get(name, name)] = _Entry(state[key], group)
    return found


def _require_fit(file: Path, found: dict[str, _Entry], model: torch.nn.Module, layers: Collection[str]) -> None:
    """Raises ConfigError unless all that is found is of this model, and every layer's second moment is found."""
    keys = sorted({key for entry in found.values() for key in entry.state})
    if not any(entry.second for entry in found.values()):
        raise _refuse(file, "second moments (exp_avg_sq)", f"only {_few(keys, 8)}" if keys else "no state at all")
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    unknown = sorted(found.keys() - shapes.keys())
    if unknown:
        named = _few([f"{name} {list(found[name].shape) if found[name].second else ''}".strip() for name in unknown])
        raise _refuse(
            file,
            f"the parameters of this model ({_few([f'{name} {list(shape)}' for name, shape in shapes.items()])})",
            f"{named}, which it has not: the state is of another model",
        )
    wrong = [name for name, entry in found.items() if entry.second and entry.shape != shapes[name]]
    if wrong:
        raise _refuse(
            file,
            f"second moments of this model's shapes ({_few([f'{name} {list(shapes[name])}' for name in wrong])})",
            f"those of another model ({_few([f'{name} {list(found[name].shape)}' for name in wrong])})",
        )
    without = [name for name in layers if name not in found or not found[name].second]
    if without:
        held = sorted({key for name in without if name in found for key in found[name].state})
        raise _refuse(
            file,
            f"a second moment (exp_avg_sq) of every tracked layer, {_few(without)} among them",
            f"only {_few(held, 8)} there" if held else "none there, so the training did not move them",
        )


def _eps(file: Path, entries: list[_Entry]) -> float:
    """What Adam adds to sqrt(V). Adafactor's first eps is added to the squared gradients."""
    found = sorted({str(entry.group.get("eps")) for entry in entries})
    eps = entries[0].group.get("eps")
    if isinstance(eps, tuple | list):
        eps = eps[0] ** 0.5 if isinstance(eps[0], float) else None
    if len(found) > 1 or not isinstance(eps, int | float):
        raise _refuse(file, "one eps, a number, for all tracked layers", f"eps {_few(found)}")
    return float(eps)


def _correction(file: Path, name: str, entry: _Entry) -> tuple[int, float] | tuple[None, None]:
    """(step, beta2) of the bias correction, or nothing where the optimizer has no constant decay."""
    if "betas" not in entry.group:
        return None, None
    step = entry.state.get("step", entry.group.get("step"))  # apex counts the steps of a group
    if step is None or int(step) < 1:
        raise _refuse(file, f"the number of steps taken on {name}, at least 1", "none" if step is None else f"{step}")
    return int(step), float(entry.group["betas"][1])


def _require_numbers(file: Path, name: str, entry: _Entry) -> None:
    for values in entry.second:
        low, high = (float(bound) for bound in values.aminmax())
        if not 0 <= low <= high < float("inf"):
            raise _refuse(file, f"second moments of {name} that are numbers of at least 0", f"{low} to {high}")


def _moment(file: Path, layer: Layer, name: str, entry: _Entry) -> FactoredMoment:
    _require_numbers(file, name, entry)
    if len(entry.second) == 1:
        return factor(layer.as_matrix(entry.second[0]), *_correction(file, name, entry))
    rows, columns = (values.double() for values in entry.second)
    if layer.uses[0].kind == "conv1d":  # stored as [in, out]
        rows, columns = columns, rows
    # Fused experts have [experts, out] and [experts, in], and one matrix of all rows.
    return FactoredMoment(rows.flatten().numpy(), columns.view(-1, layer.shape[1]).mean(0).numpy())


def _read(
    path: str, model: transformers.PreTrainedModel, meta: dict[str, Any], trainable: frozenset[str]
) -> tuple[Path, dict[str, _Entry]] | None:
    """(the file, what it keeps by parameter name), or None where no state was kept. Raises ConfigError."""
    file = next((Path(path) / name for name in FILES if (Path(path) / name).is_file()), None)
    if file is None:
        return None
    expected = {name: tuple(p.shape) for name, p in model.named_parameters() if name in trainable}
    return file, _own(file, meta) if file.name == OPTIMIZER else _by_name(file, _load(file), model, expected)


def read_moments(
    path: str, layers: list[Layer], model: transformers.PreTrainedModel, meta: dict[str, Any], trainable: frozenset[str]
) -> tuple[dict[str, FactoredMoment], float, str] | None:
    """(second moments by layer name, the optimizer's eps, the file's name), or None where no state was kept.

    Args:
        path: The checkpoint: a folder, or anything else, which has no state.
        layers: Those whose moments are wanted.
        model: As it was loaded.
        meta: `checkpoint.json`, which has the step, beta2 and eps of our own state.
        trainable: Names of the parameters that training moves: what a state without names is counted by.

    Raises ConfigError for a state of another model (with names and shapes), in an order that cannot be told, of an
    optimizer without second moments, with values that are none, or in a file that holds more than tensors and numbers.
    """
    read = _read(path, model, meta, trainable)
    if read is None:
        return None
    file, found = read
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tracked = {names[id(layer.parameter)]: layer for layer in layers}
    _require_fit(file, found, model, tracked)
    eps = _eps(file, [found[name] for name in tracked or found])
    return {layer.name: _moment(file, layer, name, found[name]) for name, layer in tracked.items()}, eps, file.name


def _whole(file: Path, name: str, entry: _Entry) -> torch.Tensor:
    """V in the parameter's shape, bias-corrected; Adafactor's is the product of its two means over their common one."""
    _require_numbers(file, name, entry)
    if len(entry.second) == 2:
        rows, columns = (values.float() for values in entry.second)
        total = rows.mean(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        return (rows / total).unsqueeze(-1) * columns.unsqueeze(-2)
    step, beta2 = _correction(file, name, entry)
    return entry.second[0].float() / (1.0 if step is None else 1.0 - beta2**step)


def read_whole_moments(
    path: str, model: transformers.PreTrainedModel, meta: dict[str, Any], trainable: frozenset[str]
) -> tuple[dict[str, torch.Tensor], float, str] | None:
    """(V by name of each trained parameter, in its shape, the optimizer's eps, the file's name), or None: no state.

    What the optimizer divides its step by is sqrt(V) + eps. Arguments and refusals are those of `read_moments`.
    """
    read = _read(path, model, meta, trainable)
    if read is None:
        return None
    file, found = read
    names = [name for name, _ in model.named_parameters() if name in trainable]
    _require_fit(file, found, model, names)
    eps = _eps(file, [found[name] for name in names])
    return {name: _whole(file, name, found[name]) for name in names}, eps, file.name
