"""Which facts are lost when examples are taken out and the model is trained anew, how sure that is, and its curve.

Of every seed the models of all arms start from the same weights and read what they share in the same order, so an arm
is compared to `none` of its own seed. Arrays are `[seeds, facts]`. A fact counts on the seeds on which `none` knows it:
what was not known cannot be lost. Intervals are those of `attribution/intervals.py` over facts, the seeds of a fact
staying together (its rows are no independent trials), so they say nothing of other seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from attribution.intervals import bootstrap

Ends = tuple[float, float, float]  # mean, low, high


@dataclass(frozen=True, eq=False)
class Known:
    """What an arm's models answer: `known` and the target's `log_probability` in nats, both `[seeds, facts]`."""

    known: np.ndarray
    log_probability: np.ndarray

    def of(self, facts: np.ndarray) -> "Known":
        """Of these columns alone."""
        return Known(self.known[:, facts], self.log_probability[:, facts])


def lost(none: Known, arm: Known) -> np.ndarray:
    """1 where a fact is known without a removal, and not known with it."""
    return (none.known & ~arm.known).astype(float)


def share(values: np.ndarray, known: np.ndarray) -> Ends:
    """The sum of `values` over the number of `known`, with its interval; facts that are known on no seed do not count.

    Raises ValueError where none is known on any.
    """
    counts = known.sum(axis=0)
    if not counts.any():
        raise ValueError("expected a fact that is known on a seed, found none")
    told = counts > 0
    return _ends(values.sum(axis=0)[None, told], counts[told])


def change(none: Known, arm: Known) -> Ends:
    """The mean change of the target's log probability; finer than what is said, and of all seeds."""
    return _ends((arm.log_probability - none.log_probability).mean(axis=0)[None], None)


def _ends(values: np.ndarray, sizes: np.ndarray | None) -> Ends:
    found = bootstrap(values, sizes)
    return tuple(round(value, 6) for value in (found.mean, found.low, found.high))


def area(curve: dict[int, np.ndarray]) -> np.ndarray:
    """The area under the removal curve, of values by k: the trapezoid rule over k, divided by the curve's width.

    It is the curve's mean height: of k = 1, 3, 5 it is (v1 + 2 v3 + v5) / 4, between 0 and 1 where the values are.
    """
    ks = sorted(curve)
    if len(ks) == 1:
        return curve[ks[0]]
    steps = [(b - a) * (curve[a] + curve[b]) / 2 for a, b in pairwise(ks)]
    return sum(steps) / (ks[-1] - ks[0])


def retained(none: Known, arm: Known, counted: np.ndarray) -> Ends | None:
    """Of the facts `counted` that are known without a removal, the share that still is; None where there is none."""
    known = none.known & counted
    return share((known & arm.known).astype(float), known) if known.any() else None


def union(rankings: dict[str, Sequence[str]], most: dict[str, int]) -> list[str]:
    """What is taken out: the first `most[fact]` of each fact's ranking, each example once, in the order of ids."""
    return sorted({example for fact, ranking in rankings.items() for example in ranking[: most[fact]]})
