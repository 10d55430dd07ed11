"""How sure a mean effect is: percentile bootstrap intervals over seeds and facts.

Every seed's models are asked the same facts, so that seeds and facts are crossed: both are resampled, each on its own
(the pigeonhole bootstrap, arXiv 0712.1111), and the effect is averaged over the pairs. Of n there are n - 1 draws: with
n the resampled mean's variance is (n - 1) / n of what it should be, and 95 % intervals over three seeds and 20 facts
held the truth in 89 % of 400 trials, against 95 % with n - 1. Few seeds that differ much stay too sure (88 % where
three seeds vary as much as the facts): an interval of two or three seeds is a hint.
"""

from dataclasses import asdict, dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
AT_ONCE = 2**22  # float64 numbers of a block of resamples: 32 MiB


@dataclass(frozen=True)
class Interval:
    """A mean, and between what the given share of the resampled means lies."""

    mean: float
    low: float
    high: float

    def to_row(self) -> dict[str, float]:
        return asdict(self)


def _draws(draw: np.random.Generator, units: int, resamples: int) -> np.ndarray:
    """`[resamples, units]`: how often each unit is drawn, n - 1 times in all; a single unit is taken as it is."""
    if units == 1:
        return np.ones((resamples, 1))
    return draw.multinomial(units - 1, np.full(units, 1.0 / units), resamples).astype(np.float64)


def bootstrap(
    values: np.ndarray,
    sizes: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """The mean of `values` `[seeds, facts]` with its percentile interval.

    With `sizes` `[facts]` it is the sum of the values over the sum of the sizes: of losses over documents, a loss per
    token. Where all values are alike the interval has no width, which says nothing of facts that were not asked.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"expected values [seeds, facts], at least one of each, found the shape {values.shape}")
    seeds, facts = values.shape
    weighed = np.ones(facts) if sizes is None else np.asarray(sizes, dtype=np.float64)
    draw, means = np.random.default_rng(seed), np.empty(resamples)
    step = max(1, AT_ONCE // facts)
    for start in range(0, resamples, step):
        block = means[start : start + step]
        over_seeds, over_facts = _draws(draw, seeds, len(block)), _draws(draw, facts, len(block))
        sums = np.einsum("rs,sf,rf->r", over_seeds, values, over_facts, optimize=True)
        block[:] = sums / (over_seeds.sum(1) * (over_facts @ weighed))  # divided last: whole numbers stay exact
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.sum() / (seeds * weighed.sum())), float(low), float(high))
