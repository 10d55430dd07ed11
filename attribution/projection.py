"""Seeded random projections of both sides of a linear layer's gradient (LoGra, arXiv 2405.13954).

`P` spans a subspace drawn uniformly: orthonormal rows times `sqrt(size / p)`, so that inner products of projected
gradients are unbiased estimates of the unprojected ones. Their variance is that of independent Gaussian entries times
`(1 - p / size)`, about, which counts where a layer is not much wider than p. It comes from a counter-based generator
keyed by (seed, module, side): the same on every machine and device but for rounding, and never stored.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

PROJECTION_VERSION = 2
MOST_NUMBERS = 2**16  # of a passage's features; TrackStar's have as many (arXiv 2410.17413)
LEAST_DIM, MOST_DIM = 16, 256


@dataclass(frozen=True)
class Projection:
    """`dim` is p: a module's feature has p_o x p_i numbers, at most p a side."""

    dim: int = 16
    seed: int = 0

    def matrix(self, module: str, side: str, size: int) -> np.ndarray:
        """`[min(dim, size), size]` float32; the identity where the side is not longer than `dim`."""
        if size <= self.dim:
            return np.eye(size, dtype=np.float32)
        key = hashlib.blake2b(f"{self.seed}/{module}/{side}".encode(), digest_size=16).digest()
        generator = np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype=np.uint64)))
        rows = generator.standard_normal((size, self.dim)).T
        # CholeskyQR, again for its rounding: a side of 196,608 fused rows takes LAPACK's QR 0.6 s, and a model has 100.
        for _ in range(2):
            rows = np.linalg.solve(np.linalg.cholesky(rows @ rows.T), rows)
        return np.ascontiguousarray(rows * np.sqrt(size / self.dim), dtype=np.float32)

    def to_json(self) -> dict[str, object]:
        return {"kind": "two-sided orthonormal", "dim": self.dim, "seed": self.seed, "version": PROJECTION_VERSION}


def fitting_dim(shapes: Iterable[tuple[int, int]]) -> int:
    """The p for layers of these shapes `[out, in]`: the largest of 256, 128, 64, 32 and 16 that makes no more than
    MOST_NUMBERS of a passage, or 16.

    So a small model's layers keep more of themselves: of SmolLM2-135M, with 210 layers in its blocks, 54,000 numbers at
    16; of GPT-2's shape with 4 blocks 65,536 at 64. With more than 256 layers there are more than MOST_NUMBERS.
    """
    shapes, dim = list(shapes), MOST_DIM
    while dim > LEAST_DIM and sum(min(dim, out) * min(dim, into) for out, into in shapes) > MOST_NUMBERS:
        dim //= 2
    return dim
