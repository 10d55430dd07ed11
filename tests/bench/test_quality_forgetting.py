"""The statistics of removals, with the values written as arithmetic."""

import numpy as np
import pytest

from bench.quality import forgetting
from bench.quality.forgetting import Known


def known(*rows: str, log_probability: float = -1.0) -> Known:
    """A row of 0 and 1 a seed, a digit a fact."""
    table = np.array([[digit == "1" for digit in row] for row in rows])
    return Known(table, np.full(table.shape, log_probability))


NONE = known("11101", "11001")


def test_only_what_was_known_on_the_seed_can_be_lost():
    arm = known("01110", "01001")
    assert forgetting.lost(NONE, arm).tolist() == [[1, 0, 0, 0, 1], [1, 0, 0, 0, 0]]
    # 3 of the 4 + 3 pairs of a seed and a fact that are known without a removal; the fourth fact is never known.
    mean, low, high = forgetting.share(forgetting.lost(NONE, arm), NONE.known)
    assert mean == round(3 / 7, 6) and 0 <= low < mean < high <= 1


def test_nothing_lost_and_all_lost_have_no_width():
    nothing, everything = known("11101", "11001"), known("00010", "00110")
    assert forgetting.share(forgetting.lost(NONE, nothing), NONE.known) == (0.0, 0.0, 0.0)
    assert forgetting.share(forgetting.lost(NONE, everything), NONE.known) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="known on a seed"):
        forgetting.share(np.zeros((2, 2)), np.zeros((2, 2), dtype=bool))


def test_seeds_of_a_fact_stay_together():
    """Three seeds that say the same tell no more than one: the interval is as wide."""
    one, arm = known("1" * 20), known("1" * 10 + "0" * 10)
    three, arms = known(*["1" * 20] * 3), known(*["1" * 10 + "0" * 10] * 3)
    assert forgetting.share(forgetting.lost(three, arms), three.known) == forgetting.share(
        forgetting.lost(one, arm), one.known
    )


def test_a_paired_difference_is_of_the_same_facts():
    """One arm loses one fact of 20 more than the other, which loses half of them: the difference is far surer."""
    none, few, more = known("1" * 20), known("0" * 10 + "1" * 10), known("0" * 11 + "1" * 9)
    losses = [forgetting.lost(none, arm) for arm in (few, more)]
    mean, low, high = forgetting.share(losses[1] - losses[0], none.known)
    assert (mean, low) == (1 / 20, 0.0) and high <= 4 / 19  # of 19 draws the fact is drawn 4 times at most in 97.5 %
    alone = forgetting.share(losses[1], none.known)
    assert alone[2] - alone[1] > 2 * (high - low)


def test_area_is_the_mean_height_of_the_curve():
    by_k = {k: np.array([[value]]) for k, value in ((1, 0.2), (3, 0.5), (5, 0.6))}
    # Two steps of width 2 over a width of 4: ((0.2 + 0.5) + (0.5 + 0.6)) / 4.
    assert forgetting.area(by_k)[0, 0] == pytest.approx((0.2 + 2 * 0.5 + 0.6) / 4)
    # Steps of width 1 and 4 over a width of 5.
    by_k = {k: np.array([[value]]) for k, value in ((6, 0.8), (1, 0.2), (2, 0.4))}
    assert forgetting.area(by_k)[0, 0] == pytest.approx((1 * (0.2 + 0.4) / 2 + 4 * (0.4 + 0.8) / 2) / 5)
    assert forgetting.area({3: np.array([[0.7]])})[0, 0] == 0.7


def test_retained_counts_the_facts_that_it_is_asked_for():
    arm = known("10101", "11000")
    # Of the first two facts and the last, known 3 + 3 times: still known 2 + 2 times.
    mean, _, _ = forgetting.retained(NONE, arm, np.array([True, True, False, False, True]))
    assert mean == round(4 / 6, 6)
    assert forgetting.retained(NONE, arm, np.array([False, False, False, True, False])) is None


def test_the_change_of_log_probability_is_of_all_seeds_and_facts():
    none, arm = known("11", "10"), known("10", "00", log_probability=-3.5)
    assert forgetting.change(none, arm)[0] == -2.5
    arm.log_probability[0, 0] = -1.0  # the first fact: (0 - 2.5) / 2, the second: -2.5
    assert forgetting.change(none, arm)[0] == pytest.approx((-1.25 - 2.5) / 2)


def test_the_union_holds_each_example_once():
    rankings = {"a": ["x", "y", "z"], "b": ["y", "w"]}
    assert forgetting.union(rankings, {"a": 1, "b": 1}) == ["x", "y"]
    assert forgetting.union(rankings, {"a": 2, "b": 9}) == ["w", "x", "y"]
