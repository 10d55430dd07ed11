"""The optimizer's correction of a gradient: Adam divides by sqrt(V), so that is what a step on an example does.

V is kept in Adafactor's rank-one form (arXiv 1804.04235), `V ~ r c^T / mean(V)` with row means r and column means c,
so that it splits over the two sides of a layer. The first-order effect of a step is `lr <g_q, V^-1/2 g_z>`: each of the
two features takes V^-1/4, which is r^-1/4 on its output side and (c / mean)^-1/4 on its input side.

Where no optimizer state was kept (attribution/optimizer_state.py reads one), r and c are estimated from the gradients
of a sample of the corpus.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from attribution.backward import Backward, token_batches
from attribution.layers import Layer
from attribution.sequences import Sequence

AT_ONCE = 2**24  # float64 numbers beside what is read: 128 MiB


@dataclass(frozen=True, eq=False)
class FactoredMoment:
    """Means of a second moment V `[out, in]`: `rows` `[out]` over its columns, `columns` `[in]` over its rows."""

    rows: np.ndarray
    columns: np.ndarray


def factor(v: torch.Tensor, step: int | None = None, beta2: float | None = None) -> FactoredMoment:
    """The factors of V `[out, in]` of any float type, bias-corrected by 1/(1 - beta2^step) where both are given."""
    rows, columns = [], torch.zeros(v.shape[1], dtype=torch.float64)
    for part in v.split(max(1, AT_ONCE // v.shape[1])):
        exact = part.double()
        rows.append(exact.mean(1))
        columns += exact.sum(0)
    unbias = 1.0 if step is None or beta2 is None else 1.0 / (1.0 - beta2**step)
    return FactoredMoment(torch.cat(rows).numpy() * unbias, columns.numpy() / len(v) * unbias)


def scales(moment: FactoredMoment, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """(R `[out]`, C `[in]`): factors of a layer's output gradient and input.

    `eps^2` is added to V, as Adam adds eps to sqrt(V), so that a row that never had a gradient gives a large number
    and no infinity.
    """
    rows, columns = moment.rows + eps**2, moment.columns + eps**2
    return rows**-0.25, (columns / rows.mean()) ** -0.25


@dataclass(frozen=True, eq=False)
class _Sides:
    """A use's two sides: `[batch, tokens, out]` (or one-hot, token ids `[batch, tokens]`) and `[batch, tokens, in]`."""

    left: torch.Tensor
    right: torch.Tensor

    def exact(self, examples: slice) -> "_Sides":
        left = self.left[examples]
        return _Sides(left if left.dim() == 2 else left.double(), self.right[examples].double())

    def reached(self) -> "_Sides":
        """Without tokens that are zero in every example: an expert is sent few of them."""
        hit = self.right.any(2)
        order = hit.byte().argsort(1, descending=True)[:, : int(hit.sum(1).max())].unsqueeze(2)
        return _Sides(self.left.take_along_dim(order, 1), self.right.take_along_dim(order, 1))


def _left_products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`[batch, tokens of a, tokens of b]` of left sides; either may be one-hot, given by its ids."""
    if a.dim() == 2 and b.dim() == 2:
        return (a.unsqueeze(2) == b.unsqueeze(1)).double()
    if a.dim() == 2:
        return b.mT.take_along_dim(a.unsqueeze(2), 1)
    if b.dim() == 2:
        return a.take_along_dim(b.unsqueeze(1), 2)
    return a @ b.mT


class MomentEstimator:
    """The consumer that sums squared per-example gradients over rows and over columns, without forming one.

    With `G = L^T R` over an example's tokens, `sum_j G_ij^2` is the diagonal of `L^T (R R^T) L`, and `sum_i G_ij^2`
    that of `R^T (L L^T) R`. A weight of several uses has the cross terms of each pair of them; experts have rows of
    their own in the fused weight, so no pair of theirs meets, and their columns add up. No one-hot side is made dense.
    Sums are in float64. Call `finish_batch` after each pass.
    """

    def __init__(self, layers: list[Layer], device: torch.device):
        def zeros(size: int) -> torch.Tensor:
            return torch.zeros(size, dtype=torch.float64, device=device)

        self._rows = {layer: zeros(layer.shape[0]) for layer in layers}
        self._columns = {layer: zeros(layer.shape[1]) for layer in layers}
        self._open: dict[Layer, list[_Sides]] = {}
        self._examples = 0

    def take_input(self, layer: Layer, part: int, a: torch.Tensor) -> torch.Tensor:
        return a

    def take_gradient(self, layer: Layer, part: int, taken: torch.Tensor, d: torch.Tensor) -> None:
        sides = _Sides(d, taken)
        self._take(layer, part, sides.reached() if layer.uses[0].kind == "experts" else sides)

    def take_embedding(self, layer: Layer, tokens: torch.Tensor, d: torch.Tensor) -> None:
        self._take(layer, 0, _Sides(tokens, d))

    def _take(self, layer: Layer, part: int, sides: _Sides) -> None:
        if len(layer.uses) > 1:  # a tied weight's other uses are still to come
            self._open.setdefault(layer, []).append(sides)
        else:
            self._add(layer, part, [sides])

    def _add(self, layer: Layer, part: int, uses: list[_Sides]) -> None:
        """Adds the squares of the gradients that the uses make together, a few examples at a time."""
        tokens, size = max(use.right.shape[1] for use in uses), uses[0].right.shape[2]
        out = max(use.left.shape[-1] if use.left.dim() == 3 else 0 for use in uses)
        rows, columns = self._rows[layer], self._columns[layer]
        if out and out < len(rows):  # one expert's rows of the fused weight
            rows = rows[part * out : (part + 1) * out]
        step = max(1, AT_ONCE // (tokens * (tokens + size + out) + 1))
        for start in range(0, len(uses[0].right), step):
            exact = [use.exact(slice(start, start + step)) for use in uses]
            for a in exact:
                for b in exact:
                    left, right = _left_products(a.left, b.left), a.right @ b.right.mT
                    columns += (left @ b.right * a.right).sum((0, 1))
                    if a.left.dim() == 2:
                        rows.index_add_(0, a.left.flatten(), (left * right).sum(2).flatten())
                    elif b.left.dim() == 2:
                        rows.index_add_(0, b.left.flatten(), (left * right).sum(1).flatten())
                    else:
                        rows += (right @ b.left * a.left).sum((0, 1))

    def finish_batch(self, examples: int) -> None:
        """Counts the batch's examples, those without a gradient among them, and adds up its tied weights."""
        for layer, uses in self._open.items():
            self._add(layer, 0, uses)
        self._open.clear()
        self._examples += examples

    def moments(self) -> dict[str, FactoredMoment]:
        """The factors of the mean squared gradient by layer name, one mean example added to the sum.

        So a row that no example has reached (the embedding of a word that is not in the sample) is taken for as rare
        as that, not for infinitely rare. A layer that none has reached has zeros, to which `scales` adds eps^2.
        """
        found = {}
        for layer, rows in self._rows.items():
            # Squares of tiny gradients may cancel to just below zero.
            row_sums = rows.clamp(min=0).cpu().numpy() / layer.shape[1]
            column_sums = self._columns[layer].clamp(min=0).cpu().numpy() / layer.shape[0]
            mean = row_sums.mean() / max(1, self._examples)
            found[layer.name] = FactoredMoment(
                (row_sums + mean) / (self._examples + 1), (column_sums + mean) / (self._examples + 1)
            )
        return found


def estimate_moments(backward: Backward, sequences: list[Sequence], batch_tokens: int) -> dict[str, FactoredMoment]:
    """`MomentEstimator`'s moments by layer name, over the sequences that have a loss (none: zeros)."""
    estimator = MomentEstimator(backward.layers, backward.checkpoint.device)
    told = [sequence for sequence in sequences if sequence.has_loss]
    for batch in token_batches([sequence.size for sequence in told], batch_tokens):
        backward.run([told[i] for i in batch], estimator)
        estimator.finish_batch(len(batch))
    return estimator.moments()


def save_moments(moments: dict[str, FactoredMoment], path: Path) -> None:
    arrays = {f"{name}.rows": moment.rows for name, moment in moments.items()}
    save_file(arrays | {f"{name}.columns": moment.columns for name, moment in moments.items()}, path)


def load_moments(path: str) -> dict[str, FactoredMoment]:
    """What `save_moments` wrote."""
    arrays = load_file(path)
    names = [name.removesuffix(".rows") for name in arrays if name.endswith(".rows")]
    return {name: FactoredMoment(arrays[f"{name}.rows"], arrays[f"{name}.columns"]) for name in names}
