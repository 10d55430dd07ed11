"""The exact product of two gradients, unprojected and never formed: for a shortlist, and for words.

For a layer the product of a query's and an example's gradient is `sum_{t,s} (C a_t . C a'_s)(R d_t . R d'_s)` over the
tokens t of the example and s of the query, with the optimizer's correction R, C (attribution/preconditioner.py). The
sum over s and layers alone is what token t adds: the tokens' shares sum to the example's score. Divided by both norms,
each from the product with itself, it is the cosine of the two whole gradients. A tied weight has one gradient, so the
terms between its two uses belong to it. Where the extractor has a norm a layer, so have these products: the layers'
cosines are made first, and their mean is the score.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from attribution.backward import token_batches
from attribution.gradients import FeatureExtractor
from attribution.layers import Layer
from attribution.sequences import Sequence

Key = tuple[Layer, int]


@dataclass(frozen=True)
class _Sides:
    """A use's two sides: `[batch, tokens, out]` (or one-hot, token ids `[batch, tokens]`) and `[batch, tokens, in]`."""

    left: torch.Tensor
    right: torch.Tensor

    def __getitem__(self, row: int) -> "_Sides":
        return _Sides(self.left[row : row + 1], self.right[row : row + 1])


def _left_products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`[batch, tokens of a, tokens of b]` of left sides; either may be one-hot, given by its ids."""
    if a.dim() == 2 and b.dim() == 2:
        return a.unsqueeze(2) == b.unsqueeze(1)
    if a.dim() == 2:
        return _left_products(b, a).transpose(1, 2)
    if b.dim() == 2:
        rows = max(len(a), len(b))  # a query stands alone against a batch
        pairs = zip(a.expand(rows, -1, -1), b.expand(rows, -1), strict=True)
        return torch.stack([row[:, ids] for row, ids in pairs])
    return a @ b.transpose(1, 2)


def _token_products(a: _Sides, b: _Sides) -> torch.Tensor:
    """`[batch, tokens of a]`: the product of two uses' gradients, split over the tokens of the first."""
    return (_left_products(a.left, b.left) * (a.right @ b.right.transpose(1, 2))).sum(2)


class _Collector:
    """The consumer that keeps each use's two sides, corrected for the optimizer."""

    def __init__(self, scales: dict[Layer, tuple[torch.Tensor, torch.Tensor]], exact: torch.dtype):
        self.scales, self.exact = scales, exact
        self.uses: dict[Key, list[_Sides]] = {}

    def take_input(self, layer: Layer, part: int, a: torch.Tensor) -> torch.Tensor:
        return _scaled(a.to(self.exact), self.scales[layer][1]) if self.scales else a.to(self.exact)

    def take_gradient(self, layer: Layer, part: int, taken: torch.Tensor, d: torch.Tensor) -> None:
        left = d.to(self.exact)
        if self.scales:
            rows = self.scales[layer][0]
            size = left.shape[-1]
            left = _scaled(left, rows if len(rows) == size else rows[part * size : (part + 1) * size])
        self._take((layer, part), _Sides(left, taken))

    def take_embedding(self, layer: Layer, tokens: torch.Tensor, d: torch.Tensor) -> None:
        right = d.to(self.exact)
        if self.scales:  # the one-hot side stays one-hot: its scale goes to the other
            right = right * self.scales[layer][1] * self.scales[layer][0][tokens].unsqueeze(2)
        self._take((layer, 0), _Sides(tokens, right))

    def _take(self, key: Key, sides: _Sides) -> None:
        self.uses.setdefault(key, []).append(sides)


def _scaled(side: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """A side times numbers `[size]`, or a symmetric matrix."""
    return side * scale if scale.dim() == 1 else side @ scale


@dataclass
class _Query:
    """`norms` are by what has a norm of its own: a layer, or None for all of them together."""

    uses: dict[Key, list[_Sides]]
    norms: dict[Layer | None, float] = field(default_factory=dict)


class _Against(_Collector):
    """Multiplies a batch of examples with all queries as its gradients come, and keeps no more than it must."""

    def __init__(self, scorer: "ExactScorer", queries: list[_Query], shape: tuple[int, int]):
        super().__init__(scorer.scales, scorer.exact)
        self.queries, self.scorer, self.shape = queries, scorer, shape
        # By what has a norm of its own: `[queries, batch, tokens]` and `[batch]`.
        self.products: dict[Layer | None, torch.Tensor] = {}
        self.squares: dict[Layer | None, torch.Tensor] = {}

    def _take(self, key: Key, sides: _Sides) -> None:
        whole = self.scorer.whole(key[0])
        if whole not in self.products:
            like = {"dtype": self.exact, "device": self.scorer.device}
            self.products[whole] = torch.zeros(len(self.queries), *self.shape, **like)
            self.squares[whole] = torch.zeros(self.shape[0], **like)
        for number, query in enumerate(self.queries):
            for theirs in query.uses.get(key, ()):
                self._add(self.products[whole][number], _token_products(sides, theirs))
        self.squares[whole] += _token_products(sides, sides).sum(1)
        for earlier in self.uses.get(key, ()):
            self.squares[whole] += 2 * _token_products(sides, earlier).sum(1)
        if len(key[0].uses) > 1:  # a tied weight's other use is still to come
            super()._take(key, sides)

    @staticmethod
    def _add(total: torch.Tensor, products: torch.Tensor) -> None:
        total[:, : products.shape[1]] += products

    def cosines(self) -> torch.Tensor:
        """`[queries, batch, tokens]`: each token's share of the cosine, or of the mean of the layers' cosines."""
        found = torch.zeros(len(self.queries), *self.shape, dtype=self.exact, device=self.scorer.device)
        for whole, products in self.products.items():
            ours = self.squares[whole].clamp(min=0).sqrt()
            theirs = torch.tensor([query.norms.get(whole, 0.0) for query in self.queries], dtype=self.exact)
            scale = theirs.to(ours.device)[:, None] * ours
            found += torch.where(scale > 0, 1.0 / torch.where(scale > 0, scale, 1.0), 0.0)[..., None] * products
        return found / self.scorer.num_wholes


class ExactScorer:
    """Cosines of whole gradients, with the layers, the scales and the hooks of a feature extractor."""

    def __init__(self, extractor: FeatureExtractor):
        self.extractor, self.exact = extractor, extractor.exact
        self.device = extractor.checkpoint.device
        self.scales = {}
        for layer in extractor.layers if extractor.scales is not None else ():
            sides = [torch.from_numpy(side).to(self.device, self.exact) for side in extractor.scales[layer.name]]
            self.scales[layer] = (sides[0], sides[1])
        self.num_wholes = len(extractor.layers) if extractor.norm_a_layer else 1

    def whole(self, layer: Layer) -> Layer | None:
        """What the layer's products are divided with: the layer itself where each has a norm, or all of them."""
        return layer if self.extractor.norm_a_layer else None

    def _query(self, sequence: Sequence) -> _Query:
        collector = _Collector(self.scales, self.exact)
        self.extractor.backward.run([sequence], collector)
        found = _Query(collector.uses)
        for (layer, _), uses in found.uses.items():
            square = sum(float(_token_products(a, b).sum()) for a in uses for b in uses)
            found.norms[self.whole(layer)] = found.norms.get(self.whole(layer), 0.0) + square
        found.norms = {whole: max(0.0, square) ** 0.5 for whole, square in found.norms.items()}
        return found

    def token_scores(self, queries: list[Sequence], examples: list[Sequence]) -> Iterator[tuple[int, np.ndarray]]:
        """(position of an example, `[queries, its tokens]`): what each of its tokens adds to its cosine with a query.

        For seq2seq models tokens of the encoder and of the decoder share a column. An example without a gradient gets
        zeros. The queries' sides are held in memory: about 18 MB a query of 15 tokens for a model of 135M parameters.
        """
        held = [self._query(query) for query in queries]
        told = [i for i, example in enumerate(examples) if example.has_loss]
        for i in sorted(set(range(len(examples))) - set(told)):
            yield i, np.zeros((len(queries), len(examples[i].tokens)))
        budget = max(1, self.extractor.batch_tokens // 2)  # both sides of every layer are held beside the graph
        for batch in token_batches([examples[i].size for i in told], budget):
            positions = [told[i] for i in batch]
            width = max(max(len(examples[i].tokens), len(examples[i].labels)) for i in positions)
            against = _Against(self, held, (len(positions), width))
            self.extractor.backward.run([examples[i] for i in positions], against)
            found = against.cosines().cpu().numpy().astype(np.float64)
            for row, i in enumerate(positions):
                yield i, found[:, row, : max(len(examples[i].tokens), len(examples[i].labels))]
