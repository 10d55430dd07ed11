"""TracIn (arXiv 2002.08484): `score(z, q) = sum_c lr_c <phi_c(q), phi_c(z)>` over checkpoints c.

Features are scaled to unit norm per checkpoint first (without it long and hard examples win: TrackStar reports MRR
0.064 against about 0.29, arXiv 2410.17413), and the learning rates to sum 1, so a score lies in [-1, 1].
"""

import numpy as np


def checkpoint_weights(learning_rates: list[float | None]) -> tuple[list[float], bool]:
    """(weights that sum to 1, whether they are equal because a checkpoint's learning rate is not recorded)."""
    rates = [rate for rate in learning_rates if rate is not None]
    if len(rates) < len(learning_rates) or not sum(rates):
        return [1.0 / len(learning_rates)] * len(learning_rates), True
    return [rate / sum(rates) for rate in rates], False


def unit(features: np.ndarray, norms: np.ndarray | None = None) -> np.ndarray:
    """Rows at unit norm; a zero row stays zero."""
    norms = np.linalg.norm(features, axis=1) if norms is None else norms
    return features / np.where(norms > 0, norms, 1.0).astype(features.dtype)[:, None]


def add_checkpoint(
    scores: np.ndarray, weight: float, queries: np.ndarray, features: np.ndarray, rows: np.ndarray
) -> None:
    """Adds `weight * cos` to columns `rows` of `scores` `[facts, all rows]`.

    Queries `[facts, dim]` are at unit norm, features `[len(rows), dim]` need not be.
    """
    scores[:, rows] += weight * (queries @ unit(features).T)
