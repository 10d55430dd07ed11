"""The optimizer's correction of a gradient: Adam divides by sqrt(V), so that is what a step on an example does.

V is kept in Adafactor's rank-one form (arXiv 1804.04235), `V ~ r c^T / mean(V)` with row means r and column means c,
so that it splits over the two sides of a layer. The first-order effect of a step is `lr <g_q, V^-1/2 g_z>`: each of the
two features takes V^-1/4, which is r^-1/4 on its output side and (c / mean)^-1/4 on its input side.

Where no optimizer state was kept, r and c are estimated from the gradients of a sample of the corpus.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from attribution.backward import Backward, token_batches
from attribution.layers import Layer
from attribution.sequences import Sequence


@dataclass(frozen=True)
class FactoredMoment:
    """Means of a second moment V `[out, in]`: `rows` `[out]` over its columns, `columns` `[in]` over its rows."""

    rows: np.ndarray
    columns: np.ndarray


def factor(v: np.ndarray, step: int | None = None, beta2: float | None = None) -> FactoredMoment:
    """The factors of V `[out, in]`, bias-corrected by 1/(1 - beta2^step) where both are given."""
    corrected = v.astype(np.float64) / (1.0 - beta2**step if step and beta2 else 1.0)
    return FactoredMoment(corrected.mean(axis=1), corrected.mean(axis=0))


def scales(moment: FactoredMoment, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """(R `[out]`, C `[in]`): factors of a layer's output gradient and input.

    `eps^2` is added to V, as Adam adds eps to sqrt(V), so that a row that never had a gradient gives a large number
    and no infinity.
    """
    rows, columns = moment.rows + eps**2, moment.columns + eps**2
    return rows**-0.25, (columns / rows.mean()) ** -0.25


class _Squares:
    """The consumer that sums squared per-example gradients over rows and over columns, without forming one.

    With `G = L^T R` over an example's tokens, `sum_j G_ij^2` is the diagonal of `L^T (R R^T) L`.
    """

    def __init__(self, layers: list[Layer], device: torch.device):
        def zeros(size: int) -> torch.Tensor:
            return torch.zeros(size, dtype=torch.float64, device=device)

        self.rows = {layer: zeros(layer.shape[0]) for layer in layers}
        self.columns = {layer: zeros(layer.shape[1]) for layer in layers}
        self._tied: dict[Layer, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def take_input(self, layer: Layer, part: int, a: torch.Tensor) -> torch.Tensor:
        return a

    def take_gradient(self, layer: Layer, part: int, taken: torch.Tensor, d: torch.Tensor) -> None:
        self._take(layer, part, d.double(), taken.double())

    def take_embedding(self, layer: Layer, tokens: torch.Tensor, d: torch.Tensor) -> None:
        self._take(layer, 0, tokens, d.double())

    def _take(self, layer: Layer, part: int, left: torch.Tensor, right: torch.Tensor) -> None:
        if len(layer.uses) > 1:  # a tied weight: its two uses make one gradient
            self._tied.setdefault(layer, []).append((left, right))
            return
        for row in range(len(right)):
            self._add(layer, part, self._dense(layer, left[row]), right[row])

    def _dense(self, layer: Layer, left: torch.Tensor) -> torch.Tensor:
        if left.dim() == 2:
            return left
        return torch.nn.functional.one_hot(left, layer.shape[0]).double()

    def _add(self, layer: Layer, part: int, left: torch.Tensor, right: torch.Tensor) -> None:
        rows = ((right @ right.T) @ left * left).sum(0)
        begin = part * len(rows) if len(rows) < layer.shape[0] else 0  # an expert's rows of the fused weight
        self.rows[layer][begin : begin + len(rows)] += rows
        self.columns[layer] += ((left @ left.T) @ right * right).sum(0)

    def finish_batch(self) -> None:
        for layer, uses in self._tied.items():
            for row in range(len(uses[0][1])):
                lefts = torch.cat([self._dense(layer, left[row]) for left, _ in uses])
                self._add(layer, 0, lefts, torch.cat([right[row] for _, right in uses]))
        self._tied.clear()


def estimate_moments(backward: Backward, sequences: list[Sequence], batch_tokens: int) -> dict[str, FactoredMoment]:
    """The factors of the mean squared gradient by layer name, over the sequences that have a loss.

    One mean example is added to the sum: a row that no sequence has reached (the embedding of a word that is not in
    the sample) is taken for as rare as that, not for infinitely rare.
    """
    squares, told = _Squares(backward.layers, backward.checkpoint.device), [s for s in sequences if s.has_loss]
    for batch in token_batches([sequence.size for sequence in told], batch_tokens):
        backward.run([told[i] for i in batch], squares)
        squares.finish_batch()
    moments = {}
    for layer in backward.layers:
        out, size = layer.shape
        rows = squares.rows[layer].cpu().numpy() / size / max(1, len(told))
        columns = squares.columns[layer].cpu().numpy() / out / max(1, len(told))
        mean = rows.mean()
        moments[layer.name] = FactoredMoment(
            (rows * len(told) + mean) / (len(told) + 1), (columns * len(told) + mean) / (len(told) + 1)
        )
    return moments


def save_moments(moments: dict[str, FactoredMoment], path: Path) -> None:
    arrays = {f"{name}.rows": moment.rows for name, moment in moments.items()}
    save_file(arrays | {f"{name}.columns": moment.columns for name, moment in moments.items()}, path)


def load_moments(path: str) -> dict[str, FactoredMoment]:
    """What `save_moments` wrote."""
    arrays = load_file(path)
    names = [name.removesuffix(".rows") for name in arrays if name.endswith(".rows")]
    return {name: FactoredMoment(arrays[f"{name}.rows"], arrays[f"{name}.columns"]) for name in names}
