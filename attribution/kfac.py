"""K-FAC whitening of a layer's gradient, from both of its sides (Martens and Grosse 2015, arXiv 1503.05671).

For a layer with input `a_t` and output gradient `d_t` the second moment of the gradient is taken for a product,

    A = mean over tokens of a a^T        D = mean over tokens of d d^T        F = D (x) A
    F^-1/2 vec(G) = vec(D^-1/2 G A^-1/2)

so that the gradient is whitened before it is projected: `(P_o D^-1/2 d_t)(P_i A^-1/2 a_t)^T`. Both are damped by
DAMPING of their mean eigenvalue. Estimated on a sample of the corpus.
"""

import math
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from attribution.backward import Backward, token_batches
from attribution.curvature import inverse_root
from attribution.layers import Layer
from attribution.sequences import Sequence

DAMPING = 0.01
ROUNDING = 1e-6  # of the longest gradient of a batch
WIDEST = 4096  # of a side with a matrix; a wider one, and those of fused experts, have the diagonal alone
SIDES = ("out", "in")
Roots = dict[str, tuple[np.ndarray, np.ndarray]]


def _shapes(layer: Layer) -> list[tuple[int, ...]]:
    """Of the layer's two sides what is kept of each: a matrix, or its diagonal."""
    experts = layer.uses[0].kind == "experts"
    return [(size,) if experts or size > WIDEST else (size, size) for size in layer.shape]


def roots_bytes(layers: list[Layer]) -> int:
    """What `save_roots` writes for these layers, but for its header."""
    return sum(4 * math.prod(shape) for layer in layers for shape in _shapes(layer))


class FactorEstimator:
    """The consumer that sums `d d^T` and `a a^T` over the tokens with a gradient; diagonals of wide sides.

    The means are over tokens, of fused experts over a token's experts as well: with k experts a token a layer's
    features are the root of k as long as another's, which a norm a layer takes away.

    Layers are those of the blocks: an embedding's input is one-hot, and a head's output as wide as the vocabulary.
    """

    def __init__(self, layers: list[Layer], device: torch.device):
        def zeros(layer: Layer) -> list[torch.Tensor]:
            return [torch.zeros(shape, dtype=torch.float64, device=device) for shape in _shapes(layer)]

        self._sums = {layer: zeros(layer) for layer in layers}
        self._tokens = dict.fromkeys(layers, 0)

    def take_input(self, layer: Layer, part: int, a: torch.Tensor) -> torch.Tensor:
        return a

    def take_gradient(self, layer: Layer, part: int, taken: torch.Tensor, d: torch.Tensor) -> None:
        # Padding has no gradient, nor has a token that an expert was not sent; the first token's query and key, which
        # sees itself alone, have rounding.
        norms = d.norm(dim=-1)
        told = norms > ROUNDING * norms.max()
        (out, into), left, right = self._sums[layer], d[told].float(), taken[told].float()
        self._tokens[layer] += len(left)
        if left.shape[1] != len(out):  # one expert's rows of the fused weight
            out = out[part * left.shape[1] : (part + 1) * left.shape[1]]
        for total, side in ((out, left), (into, right)):
            total += (side.T @ side if total.dim() == 2 else side.square().sum(0)).double()

    def take_embedding(self, layer: Layer, tokens: torch.Tensor, d: torch.Tensor) -> None:
        raise AssertionError(f"{layer.name}: an embedding has no factors")

    def roots(self) -> Roots:
        """`(D^-1/2, A^-1/2)` by layer name, damped: `[size, size]`, or `[size]` of a diagonal."""
        found = {}
        for layer, pair in self._sums.items():
            out, into = (total.cpu().numpy() / max(1, self._tokens[layer]) for total in pair)
            found[layer.name] = _root(out), _root(into)
        return found


def _root(moment: np.ndarray) -> np.ndarray:
    if moment.ndim == 2:
        return inverse_root(moment, DAMPING)
    damped = moment + DAMPING * moment.mean()
    return np.where(damped > 0, np.where(damped > 0, damped, 1.0) ** -0.5, 0.0).astype(np.float32)


def estimate_roots(backward: Backward, sequences: list[Sequence], batch_tokens: int) -> Roots:
    """`FactorEstimator`'s roots over the sequences that have a loss."""
    estimator = FactorEstimator(backward.layers, backward.checkpoint.device)
    told = [sequence for sequence in sequences if sequence.has_loss]
    for batch in token_batches([sequence.size for sequence in told], batch_tokens):
        backward.run([told[i] for i in batch], estimator)
    return estimator.roots()


def save_roots(roots: Roots, path: Path) -> None:
    named = {f"{name}.{side}": array for name, pair in roots.items() for side, array in zip(SIDES, pair, strict=True)}
    save_file(named, path)


def load_roots(path: str) -> Roots:
    """What `save_roots` wrote."""
    arrays, (out, into) = load_file(path), SIDES
    names = [name.removesuffix(f".{out}") for name in arrays if name.endswith(f".{out}")]
    return {name: (arrays[f"{name}.{out}"], arrays[f"{name}.{into}"]) for name in names}
