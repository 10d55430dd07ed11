"""Curvature of TrackStar (arXiv 2410.17413): whitening takes out the directions that most gradients share.

Per layer, with phi a row's feature in that layer and s[k] the k-th largest eigenvalue over all layers of the means:

    M_x    = mean over the rows of x of phi phi^T                        x: the training corpus, the queries
    lambda = s_train[k] / (s_query[k] + s_train[k])                      so that the two spectra cross at k
    M      = lambda M_query + (1 - lambda) M_train
    phi'   = (M + damping mean(eigenvalues of M) I)^-1/2 phi             then unit norm over all layers, then dot

Products are made in float32, so entries should lie within 1e-17 and 1e17, where their squares are normal numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

MIX_SHARE = 0.015  # the paper takes component 1000 of 65,536
DAMPING = 0.1
# An eigenvalue at most this part of its layer's largest is rounding: where the exact one is 0, float32 products leave
# up to 6e-8 (3, 50 and 2,000 rows of rank 3, 50 and 5; width 256).
ROUNDING = 1e-6


@dataclass(eq=False)
class SecondMoment:
    """Sums of phi phi^T by layer: `blocks[i]` is `[w_i, w_i]` float64, over `count` rows."""

    blocks: list[np.ndarray]
    count: int

    @classmethod
    def zero(cls, widths: list[int]) -> "SecondMoment":
        """Of no rows; layer i has `widths[i]` numbers in a row."""
        return cls([np.zeros((width, width)) for width in widths], 0)

    @property
    def widths(self) -> list[int]:
        return [len(block) for block in self.blocks]

    def add(self, features: np.ndarray, block: int = 1024) -> None:
        """Adds rows `[rows, dim]`, `block` at a time: float32 products, summed in float64.

        Every row must be finite and have a gradient: a zero row says nothing and would only lower the mean.
        """
        assert features.shape[1] == sum(self.widths), (features.shape, sum(self.widths))
        for start in range(0, len(features), block):
            rows = np.asarray(features[start : start + block], np.float32)
            assert np.isfinite(rows).all(), "a row that is not finite must not reach the curvature"
            assert rows.any(axis=1).all(), "a row without a gradient must not reach the curvature"
            for matrix, columns in zip(self.blocks, _columns(self.widths), strict=True):
                matrix += rows[:, columns].T @ rows[:, columns]
            self.count += len(rows)

    def merge(self, other: "SecondMoment") -> "SecondMoment":
        """Both together; associative and commutative up to rounding."""
        assert self.widths == other.widths, (self.widths, other.widths)
        return SecondMoment([a + b for a, b in zip(self.blocks, other.blocks, strict=True)], self.count + other.count)

    def mean(self) -> list[np.ndarray]:
        """`[w_i, w_i]` by layer; zero where there are no rows."""
        return [block / max(1, self.count) for block in self.blocks]

    def save(self, path: Path, exactly: bool = False) -> None:
        """Writes the means in float32, which keeps 7 digits of them at any number of rows. Same sums, same bytes.

        `exactly` writes the sums in float64, to which more may be added later as if nothing had been written.
        """
        arrays = self.blocks if exactly else [mean.astype(np.float32) for mean in self.mean()]
        named = {f"{number:05d}": array for number, array in enumerate(arrays)}
        # One key: more of them would stand in another order each time.
        save_file(named, path, metadata={"sums of" if exactly else "means of": str(self.count)})

    @classmethod
    def load(cls, path: Path) -> "SecondMoment":
        with safe_open(path, framework="numpy") as file:
            [(kind, count)] = file.metadata().items()
            factor = 1 if kind == "sums of" else int(count)
            return cls([file.get_tensor(name).astype(np.float64) * factor for name in sorted(file.keys())], int(count))


def _columns(widths: list[int]) -> Iterator[slice]:
    """Where each layer lies in a row."""
    stop = 0
    for width in widths:
        stop += width
        yield slice(stop - width, stop)


def _symmetric(matrix: np.ndarray, layer: int) -> np.ndarray:
    if not np.isfinite(matrix).all():
        raise ValueError(
            f"curvature of layer {layer}: expected finite numbers, found {np.sum(~np.isfinite(matrix))} of "
            f"{matrix.size} that are not; a feature was too large for float32 products, or its file is damaged"
        )
    matrix = matrix.astype(np.float64)
    return (matrix + matrix.T) / 2


def _eigenvalues(matrices: list[np.ndarray]) -> np.ndarray:
    """Of all layers, largest first; what is rounding beside its layer's largest is 0."""
    found = [np.linalg.eigvalsh(_symmetric(matrix, layer)) for layer, matrix in enumerate(matrices)]
    kept = [np.where(values > ROUNDING * values.max(), values, 0.0) for values in found]
    return np.sort(np.concatenate(kept))[::-1]


def mix(train: SecondMoment, query: SecondMoment | None, share: float = MIX_SHARE) -> tuple[list[np.ndarray], float]:
    """(M `[w_i, w_i]` float64 by layer, lambda); lambda is 0 where there are no queries.

    k is `share` of all dimensions, at least 1, and at most the rank of M_query: beyond it s_query is 0, lambda would be
    1, and a few queries would leave the corpus without a say. Raises ValueError for numbers that are not finite.
    """
    corpus = train.mean()
    if query is None or not query.count:
        return corpus, 0.0
    assert train.widths == query.widths, (train.widths, query.widths)
    queries = query.mean()
    s_train, s_query = _eigenvalues(corpus), _eigenvalues(queries)
    rank = np.count_nonzero(s_query)
    if not rank:
        return corpus, 0.0
    k = min(max(1, round(share * len(s_query))), rank) - 1
    weight = float(s_train[k] / (s_query[k] + s_train[k]))
    return [weight * q + (1 - weight) * t for q, t in zip(queries, corpus, strict=True)], weight


def inverse_root(matrix: np.ndarray, damping: float, layer: int = 0) -> np.ndarray:
    """`(M + damping mean(eigenvalues) I)^-1/2`, symmetric `[w, w]` float32, of one layer's M.

    Where nothing but rounding is left even after damping the inverse is 0: a direction that no row has, with damping 0,
    and a layer whose M is all zero. Raises ValueError for numbers that are not finite.
    """
    values, vectors = np.linalg.eigh(_symmetric(matrix, layer))
    values = np.maximum(values, 0.0)
    damped = values + damping * values.mean()
    known = damped > ROUNDING * damped.max()
    roots = np.where(known, np.where(known, damped, 1.0) ** -0.5, 0.0)
    return ((vectors * roots) @ vectors.T).astype(np.float32)


class Whitener:
    """Maps a row's feature in each layer by that layer's `(M + damping mean(eigenvalues) I)^-1/2`: `roots[i]`."""

    def __init__(self, matrices: list[np.ndarray], damping: float = DAMPING):
        self.roots = [inverse_root(matrix, damping, layer) for layer, matrix in enumerate(matrices)]

    @property
    def widths(self) -> list[int]:
        return [len(root) for root in self.roots]

    def apply(self, features: np.ndarray, block: int = 1024) -> np.ndarray:
        """Whitened rows `[rows, dim]` float32, not at unit norm; what it needs beside them is `block` rows at most."""
        assert features.shape[1] == sum(self.widths), (features.shape, sum(self.widths))
        out = np.empty(features.shape, np.float32)
        for start in range(0, len(features), block):
            rows = np.asarray(features[start : start + block], np.float32)
            for root, columns in zip(self.roots, _columns(self.widths), strict=True):
                out[start : start + block, columns] = rows[:, columns] @ root
        return out

    def save(self, path: Path) -> None:
        """Writes the roots as they are, float32. Same roots, same bytes."""
        save_file({f"{number:05d}": root for number, root in enumerate(self.roots)}, path)

    @classmethod
    def load(cls, path: Path) -> "Whitener":
        whitener = cls([])
        whitener.roots = [root for _, root in sorted(load_file(path).items())]
        return whitener
