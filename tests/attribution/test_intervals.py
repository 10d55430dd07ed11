"""Bootstrap intervals: by hand where few resamples are possible, and how often they hold the truth."""

from itertools import product

import numpy as np
import pytest

from attribution import intervals
from attribution.intervals import Interval, bootstrap


def test_of_two_facts_each_resample_is_one_of_them():
    """n - 1 = 1 draw: the resampled mean is 0.2 or 0.6, each half of the time, whatever the level."""
    assert bootstrap(np.array([[0.2, 0.6]])) == Interval(pytest.approx(0.4), 0.2, 0.6)
    assert bootstrap(np.array([[0.2, 0.6]]), level=0.5) == Interval(pytest.approx(0.4), 0.2, 0.6)


def test_quantiles_are_those_of_all_possible_resamples():
    """Three facts, two draws: nine means, (0 + 0) / 2 to (4 + 4) / 2, of which the quantiles can be counted."""
    possible = [(a + b) / 2 for a, b in product([0.0, 1.0, 4.0], repeat=2)]
    expected = np.quantile(possible, [0.25, 0.75], method="inverted_cdf")
    found = bootstrap(np.array([[0.0, 1.0, 4.0]]), level=0.5)
    assert (found.mean, found.low, found.high) == (pytest.approx(5 / 3), *expected)
    assert (found.low, found.high) == (0.5, 2.5)  # the 3rd and the 7th of 0 0.5 0.5 1 2 2 2.5 2.5 4


def test_seeds_and_facts_are_resampled_each_on_its_own():
    """Two of each, one draw of each: a resample is one of the four values, and all four come up a quarter of the time.

    Were all values resampled as one list, a mean between them would come up, too.
    """
    values = np.array([[0.0, 1.0], [10.0, 11.0]])
    found = [bootstrap(values, level=1 - 2 * cut) for cut in (0.0, 0.26, 0.49)]
    assert [(i.low, i.high) for i in found] == [(0.0, 11.0), (1.0, 10.0), (1.0, 10.0)]
    assert found[0].mean == pytest.approx(22 / 4)


def test_a_difference_between_seeds_alone_widens_the_interval_only_where_seeds_are_resampled():
    values = np.array([[1.0] * 5, [3.0] * 5])
    assert bootstrap(values) == Interval(2.0, 1.0, 3.0)
    assert bootstrap(values.mean(0, keepdims=True)) == Interval(2.0, 2.0, 2.0)


def test_facts_that_are_all_alike_give_their_own_value_and_none_beyond_it():
    """Of shares none is below -1, by rounding neither."""
    for seeds, facts in ((1, 12), (2, 12), (3, 202)):
        assert bootstrap(np.full((seeds, facts), -1.0)) == Interval(-1.0, -1.0, -1.0)


def test_with_sizes_it_is_a_ratio_of_sums_and_long_documents_weigh_more():
    losses, tokens = np.array([[2.0, 30.0]]), np.array([4, 10])
    found = bootstrap(losses, tokens)
    assert (found.mean, found.low, found.high) == (pytest.approx(32 / 14), pytest.approx(2 / 4), pytest.approx(30 / 10))


def test_it_is_seeded_and_independent_of_the_block_size(monkeypatch):
    values = np.random.default_rng(0).normal(size=(3, 20))
    first = bootstrap(values)
    assert bootstrap(values) == first != bootstrap(values, seed=1)
    monkeypatch.setattr(intervals, "AT_ONCE", 20 * 5000)
    blocks = bootstrap(values)
    assert (blocks.mean, blocks.low, blocks.high) == pytest.approx((first.mean, first.low, first.high), abs=0.02)


@pytest.mark.parametrize(
    ("seeds", "facts", "between_seeds", "between_facts", "within", "least"),
    [(1, 20, 0.0, 1.0, 0.0, 0.89), (3, 20, 0.3, 1.0, 0.5, 0.9), (10, 40, 1.0, 1.0, 1.0, 0.9)],
)
def test_a_95_percent_interval_holds_the_true_effect_in_about_95_percent_of_trials(
    seeds, facts, between_seeds, between_facts, within, least
):
    """300 trials: the standard error of the share is 1.3 %."""
    draw, truth = np.random.default_rng(0), 0.7
    held = 0
    for _ in range(300):
        effects = truth + between_seeds * draw.normal(size=(seeds, 1)) + between_facts * draw.normal(size=(1, facts))
        found = bootstrap(effects + within * draw.normal(size=(seeds, facts)), resamples=400)
        held += found.low <= truth <= found.high
    assert least <= held / 300 <= 0.99


def test_values_without_two_axes_or_without_any_are_refused():
    for shape in ((3,), (0, 3), (2, 0)):
        with pytest.raises(ValueError, match=r"expected values \[seeds, facts\], at least one of each, found"):
            bootstrap(np.zeros(shape))
