"""Projected per-example gradients of a language model's loss, without forming a gradient.

For a weight with input `a_t` and output gradient `d_t`, an example's gradient is `G = sum_t d_t a_t^T`; its feature is
`sum_t (P_o R d_t)(P_i C a_t)^T` per layer (LoGra, arXiv 2405.13954; TrackStar, arXiv 2410.17413). An embedding is a
layer whose inputs are one-hot, a tied weight one layer with two uses, fused experts one matrix of all their rows.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.nn import functional

from attribution.backward import Backward, probe_sequences, token_batches
from attribution.checkpoint import Checkpoint, in_bfloat16
from attribution.layers import Layer, tracked_layers
from attribution.projection import Projection
from attribution.sequences import Sequence
from schemas.errors import ConfigError

Scales = dict[str, tuple[np.ndarray, np.ndarray]]


def scaled_side(side: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A projection `[p, size]` of a side that is first scaled, by numbers `[size]` or by a symmetric matrix."""
    return side * scale if scale.ndim == 1 else side @ scale


class _Projected:
    """The consumer that makes features. A layer's two sides are matrices `[out, p]` and `[in, p]`.

    It adds them up in the rows that it is given: tensors of its own for each layer would outlive the pass that made
    them, scattered over the heap, and the peak grew with every new shape of a batch.
    """

    def __init__(
        self,
        sides: dict[Layer, tuple[torch.Tensor, torch.Tensor]],
        columns: dict[Layer, slice],
        exact: torch.dtype,
    ):
        self.sides, self.columns, self.exact = sides, columns, exact
        self.met: set[Layer] = set()
        self._rows: torch.Tensor | None = None
        # Layers found to read one input (q, k, v) share one product with their right sides, made at the first.
        self._readers: dict[Layer, list[Layer]] = {}
        self._joined: dict[Layer, torch.Tensor] = {}
        self._last: tuple[torch.Tensor | None, Layer | None, dict[Layer, torch.Tensor]] = (None, None, {})

    def begin(self, rows: torch.Tensor) -> None:
        """From here on, the features of a batch are added to `rows` `[batch, dim]`."""
        self._rows = rows.zero_()

    def end(self) -> None:
        self._rows, self._last = None, (None, None, {})

    def take_input(self, layer: Layer, part: int, a: torch.Tensor) -> torch.Tensor:
        last, first, made = self._last
        if a is last and layer in made:
            return made[layer]
        if a is last and first is not None:  # met for the first time: from now on it is made with the first
            self._readers.setdefault(first, [first]).append(layer)
            self._joined[first] = torch.cat([self.sides[reader][1] for reader in self._readers[first]], dim=1)
            return a @ self.sides[layer][1]
        if layer in self._joined:
            readers = self._readers[layer]
            pieces = (a @ self._joined[layer]).split([self.sides[reader][1].shape[1] for reader in readers], dim=-1)
            self._last = (a, layer, dict(zip(readers, pieces, strict=True)))
            return pieces[0]
        self._last = (a, layer, {})
        return a @ self.sides[layer][1]

    def take_gradient(self, layer: Layer, part: int, taken: torch.Tensor, d: torch.Tensor) -> None:
        left = self.sides[layer][0]
        if d.shape[-1] != len(left):  # one expert's rows of the fused weight
            left = left[part * d.shape[-1] : (part + 1) * d.shape[-1]]
        self._add(layer, d @ left, taken)

    def take_embedding(self, layer: Layer, tokens: torch.Tensor, d: torch.Tensor) -> None:
        left, right = self.sides[layer]
        self._add(layer, left[tokens], d.to(right.dtype) @ right)

    def _add(self, layer: Layer, left: torch.Tensor, right: torch.Tensor) -> None:
        self._rows[:, self.columns[layer]] += (left.transpose(1, 2).to(self.exact) @ right.to(self.exact)).flatten(1)
        self.met.add(layer)


class FeatureExtractor:
    """Features of sequences for one checkpoint.

    Args:
        checkpoint: The model; under bfloat16 its linear layers are kept in it from here on.
        projection: What is drawn for each side of each layer.
        batch_tokens: Padded tokens a batch at most: bounds the memory of a pass.
        upper: Share of the blocks whose layers are tracked, from the top.
        blocks_only: Track no embedding and no output head.
        scales: (R `[out]`, C `[in]`) by layer name: the optimizer's correction (attribution/preconditioner.py); or
            symmetric matrices, which whiten (attribution/kfac.py).
        unit_labels: Take each token's gradient of the logits at unit length.
        norm_a_layer: Bring each layer's part of a feature to unit norm over the root of the number of layers, so that
            the product of two features is the mean of the layers' cosines.

    Raises ConfigError if no layer can be tracked, or one that should be gets no gradient.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        projection: Projection,
        batch_tokens: int = 2048,
        upper: float = 1.0,
        blocks_only: bool = False,
        scales: Scales | None = None,
        unit_labels: bool = False,
        norm_a_layer: bool = False,
    ):
        self.checkpoint, self.projection, self.batch_tokens, self.scales = checkpoint, projection, batch_tokens, scales
        self.norm_a_layer = norm_a_layer
        self.layers, self.coverage = tracked_layers(checkpoint.model, checkpoint.trainable, upper, blocks_only)
        if not self.layers:
            raise ConfigError(
                f"model {checkpoint.path}: expected linear layers to track, found none of a known kind among "
                f"{self.coverage.largest_untracked()}"
            )
        parameter = self.layers[0].parameter
        self.exact = torch.promote_types(parameter.dtype, torch.float32)
        if checkpoint.dtype == torch.bfloat16:
            in_bfloat16(checkpoint.model)
        sides, columns, dim = {}, {}, 0
        for layer in self.layers:
            out, size = layer.shape
            left, right = projection.matrix(layer.name, "out", out), projection.matrix(layer.name, "in", size)
            if scales is not None:
                rows, across = scales[layer.name]
                left, right = scaled_side(left, rows), scaled_side(right, across)
            width = left.shape[0] * right.shape[0]
            # Transposed once here, so that a row's product reads it in order.
            sides[layer] = tuple(
                torch.from_numpy(np.ascontiguousarray(side.T)).to(checkpoint.device, self._side_dtype(layer))
                for side in (left, right)
            )
            columns[layer], dim = slice(dim, dim + width), dim + width
        self.dim, self.columns = dim, columns
        self._consumer = _Projected(sides, columns, self.exact)
        self.backward = Backward(checkpoint, self.layers, unit_labels)
        self._require_gradients()

    def _side_dtype(self, layer: Layer) -> torch.dtype:
        if self.checkpoint.dtype == torch.bfloat16 and any(use.kind != "embedding" for use in layer.uses):
            return torch.bfloat16
        return self.exact

    @property
    def widths(self) -> list[int]:
        """Numbers of each layer in a feature, in order."""
        return [columns.stop - columns.start for columns in self.columns.values()]

    @property
    def uses_mask(self) -> bool:
        return self.backward.uses_mask

    def _require_gradients(self) -> None:
        self.features(probe_sequences(self.checkpoint))
        silent = [layer for layer in self.layers if layer not in self._consumer.met]
        if silent:
            share = sum(layer.parameter.numel() for layer in silent) / self.coverage.trainable
            raise ConfigError(
                f"model {self.checkpoint.path}: no gradient reaches {len(silent)} of its layers "
                f"({', '.join(layer.name for layer in silent[:3])}), {share:.1%} of its trainable parameters; they "
                "cannot be tracked as they are used"
            )

    def probe_loss(self) -> float:
        """The summed loss on a fixed seeded batch: recorded with an index, compared when it is used again."""
        return float(self.backward.losses(probe_sequences(self.checkpoint)).sum())

    def batches(self, sequences: list[Sequence]) -> Iterator[tuple[list[int], np.ndarray]]:
        """(positions, features `[len(positions), dim]`) of all sequences that have a loss, a batch at a time.

        The features stand in the same memory each time: they are the caller's until the next batch. The largest come
        first, padding included: what the others need then fits into the memory that is there.
        """
        told = [i for i, sequence in enumerate(sequences) if sequence.has_loss]
        sizes = [sequences[i].size for i in told]
        batches = sorted(token_batches(sizes, self.batch_tokens), key=lambda b: -len(b) * max(sizes[i] for i in b))
        memory = torch.empty(
            max(map(len, batches), default=0), self.dim, dtype=self.exact, device=self.checkpoint.device
        )
        for batch in batches:
            positions, rows = [told[i] for i in batch], memory[: len(batch)]
            self._consumer.begin(rows)
            try:
                self.backward.run([sequences[i] for i in positions], self._consumer)
            finally:
                self._consumer.end()
            if self.norm_a_layer:
                for columns in self.columns.values():
                    rows[:, columns] = functional.normalize(rows[:, columns], dim=1) / len(self.columns) ** 0.5
            yield positions, rows.cpu().numpy()

    def features(self, sequences: list[Sequence], progress: Callable[[int, int], None] | None = None) -> np.ndarray:
        """`[len(sequences), dim]`, in the given order; a sequence with no token to predict has a zero feature.

        `progress(sequences, tokens)` is called after each batch.
        """
        out = np.zeros((len(sequences), self.dim), dtype=np.float64 if self.exact == torch.float64 else np.float32)
        for positions, found in self.batches(sequences):
            out[positions] = found
            if progress:
                progress(len(positions), sum(sequences[i].size for i in positions))
        return out
