"""The weights that gradients are taken of: each once, however often it is used, with its share of the model.

A weight is a matrix `[out, in]` whatever its storage: nn.Linear as it is, GPT-2's Conv1D transposed, an embedding with
one row a token, the fused experts of a mixture as one matrix of experts x out rows. A tied weight has one gradient, of
the embedding and the output head together.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
import transformers
from transformers.pytorch_utils import Conv1D

Kind = Literal["linear", "conv1d", "embedding", "head", "experts"]
EXPERT_WEIGHTS = ("gate_up_proj", "down_proj")


@dataclass(frozen=True, eq=False)
class Use:
    """A module that applies a weight. `weight` is its attribute's name (fused experts have two weights a module)."""

    module: torch.nn.Module
    kind: Kind
    weight: str = "weight"


@dataclass(frozen=True, eq=False)
class Layer:
    """One tracked weight. `shape` is (out, in); `parameter` keeps it as the model does."""

    name: str
    parameter: torch.nn.Parameter
    shape: tuple[int, int]
    uses: list[Use] = field(default_factory=list)

    def as_matrix(self, values: torch.Tensor) -> torch.Tensor:
        """Values stored like the parameter, as `[out, in]`."""
        if self.uses[0].kind == "conv1d":
            return values.T
        return values.reshape(self.shape)


@dataclass(frozen=True)
class Coverage:
    """Parameters by what becomes of their gradients. `left_out` were not asked for, `untracked` cannot be tracked."""

    trainable: int
    tracked: int
    left_out: dict[str, int]
    untracked: dict[str, int]

    @property
    def share(self) -> float:
        """The tracked share of the parameters that were asked for."""
        asked = self.trainable - sum(self.left_out.values())
        return self.tracked / asked if asked else 0.0

    def largest_untracked(self, count: int = 5) -> str:
        """The largest untracked parameters in words, each with its share of the trainable ones."""
        named = sorted(self.untracked.items(), key=lambda item: (-item[1], item[0]))
        more = f" and {len(named) - count} more" if len(named) > count else ""
        return ", ".join(f"{name} ({size / self.trainable:.1%})" for name, size in named[:count]) + more


def _uses(model: transformers.PreTrainedModel) -> Iterator[tuple[torch.nn.Parameter, Use]]:
    embedding = model.get_input_embeddings()
    head = set(model.get_output_embeddings().modules())  # an adapter's matrices stand inside the module that it wraps
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            # Positions and token types are embeddings too, but their rows are no tokens.
            if module is embedding or (embedding is not None and module.weight is embedding.weight):
                yield module.weight, Use(module, "embedding")
        elif type(module) is torch.nn.Linear:
            yield module.weight, Use(module, "head" if module in head else "linear")
        elif isinstance(module, Conv1D):
            yield module.weight, Use(module, "conv1d")
        elif hasattr(module, "_apply_gate") and all(hasattr(module, name) for name in EXPERT_WEIGHTS):
            for name in EXPERT_WEIGHTS:
                yield getattr(module, name), Use(module, "experts", name)


def _shape(parameter: torch.nn.Parameter, kind: Kind) -> tuple[int, int]:
    if kind == "experts":
        experts, out, size = parameter.shape
        return experts * out, size
    return tuple(parameter.shape[::-1] if kind == "conv1d" else parameter.shape)


def _block_positions(model: torch.nn.Module) -> dict[str, float]:
    """Place from 1/n (lowest) to 1 (uppermost) of each parameter that stands in a stack of n blocks, by name."""
    stacks = [
        (f"{name}.", len(module))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and not any(part.isdigit() for part in name.split("."))
    ]
    places = {}
    for name, _ in model.named_parameters():
        for prefix, count in stacks:
            if name.startswith(prefix):
                places[name] = (int(name[len(prefix) :].split(".")[0]) + 1) / count
    return places


def tracked_layers(
    model: transformers.PreTrainedModel,
    trainable: frozenset[str],
    upper: float = 1.0,
    blocks_only: bool = False,
) -> tuple[list[Layer], Coverage]:
    """The layers to track, in the model's order, and what they cover.

    Args:
        model: Frozen or not.
        trainable: Names of the parameters that training moves (all of them, or an adapter's).
        upper: Share of the blocks to keep, from the top of each stack; below 1 the embeddings are left out, as their
            gradient would need the whole backward pass.
        blocks_only: Leave out what stands in no block: the embedding and the output head.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    places = _block_positions(model)
    layers: dict[int, Layer] = {}
    for parameter, use in _uses(model):
        name = names[id(parameter)]
        if name in trainable:
            layer = Layer(name.removesuffix(".weight"), parameter, _shape(parameter, use.kind))
            layers.setdefault(id(parameter), layer).uses.append(use)
    kept, left_out, untracked = [], {}, {}
    for name, parameter in model.named_parameters():
        if name not in trainable:
            continue
        layer, place = layers.get(id(parameter)), places.get(name)
        embeds = layer is not None and any(use.kind == "embedding" for use in layer.uses)
        below = place is not None and place <= 1 - upper + 1e-9
        if below or (place is None and blocks_only) or (embeds and upper < 1):
            left_out[name] = parameter.numel()
        elif layer is None:
            untracked[name] = parameter.numel()
        else:
            kept.append(layer)
    total = sum(parameter.numel() for name, parameter in model.named_parameters() if name in trainable)
    return kept, Coverage(total, sum(layer.parameter.numel() for layer in kept), left_out, untracked)
