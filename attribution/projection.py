"""Seeded random projections of both sides of a linear layer's gradient (LoGra, arXiv 2405.13954).

`P` has independent Gaussian entries of variance 1/p, so that inner products of projected gradients are unbiased
estimates of the unprojected ones. It comes from a counter-based generator keyed by (seed, module, side): the same on
every machine and device, and never stored.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

PROJECTION_VERSION = 1


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
        return generator.standard_normal((self.dim, size), dtype=np.float32) / np.float32(np.sqrt(self.dim))

    def to_json(self) -> dict[str, object]:
        return {"kind": "two-sided gaussian", "dim": self.dim, "seed": self.seed, "version": PROJECTION_VERSION}
