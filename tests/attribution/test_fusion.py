"""Fusion: one scale for all queries, what other names add, the weighted sum by hand, and weights that sum to 1."""

import numpy as np
import pytest

from attribution.fusion import WEIGHTS, fusion_of, scaled


def parts(**given):
    return {name: np.array(values) for name, values in given.items()}


def test_each_signal_has_its_own_scale():
    found = scaled(
        parts(bm25=[6.0, 0.0], dense=[0.5, -0.1], gradient=[-0.25, 0.125], match=[1.0, 0.25], hop=[0.5, 0.0]),
        8.0,
        np.array([0.0, 0.5]),
    )
    assert found["bm25"].tolist() == [0.75, 0.0] and found["match"].tolist() == [1.0, 0.25]
    assert found["dense"].tolist() == [0.5, 0.0] and found["gradient"].tolist() == [0.0, 0.125]
    assert found["hop"].tolist() == [0.5, 0.0]


def test_other_names_count_as_far_as_they_say_more_than_the_own_words():
    found = scaled(parts(bm25=[6.0, 0.0, 8.0], match=[1.0, 0.0, 1.0]), 8.0, np.array([0.9, 0.5, 1.0]))
    own = (0.75 + 0.3) / 1.3
    np.testing.assert_allclose(found["names"], [0.9 - own, 0.5, 0.0], rtol=1e-12, atol=1e-12)


def test_the_scale_does_not_depend_on_the_other_candidates():
    draw = np.random.default_rng(0)
    given = {name: draw.random(6) for name in ("dense", "bm25", "match")}
    whole = scaled(given, 3.0, np.linspace(0, 1, 6))
    for i in range(6):
        alone = scaled(
            {name: values[i : i + 1] for name, values in given.items()}, 3.0, np.linspace(0, 1, 6)[i : i + 1]
        )
        assert all(alone[name][0] == whole[name][i] for name in whole)


def test_a_query_without_a_word_that_counts_and_no_candidates():
    found = scaled(parts(bm25=[0.0, 0.0], match=[0.0, 0.0]), 0.0, np.zeros(2))
    assert {name: values.tolist() for name, values in found.items()} == {name: [0.0, 0.0] for name in found}
    assert all(len(values) == 0 for values in scaled(parts(bm25=[], match=[]), 1.0, np.empty(0)).values())


@pytest.mark.parametrize("signals", [["bm25"], ["bm25", "dense"], ["bm25", "gradient"], ["bm25", "dense", "gradient"]])
def test_the_most_that_a_passage_can_score_is_one_and_weights_keep_their_proportions(signals):
    found = fusion_of(signals)
    assert found["signals"] == [*signals, "match", "names", "hop"]
    told = dict(zip(found["signals"], found["weights"], strict=True))
    most = {name: np.ones(3) for name in found["signals"] if name != "names"}
    most |= {"bm25": np.array([8.0, 0.0, 4.0]), "match": np.array([1.0, 0.0, 0.5])}
    parts_of_most = scaled(most, 8.0, np.ones(3))  # by its own words, by other names alone, half by each
    scores = sum(told[name] * parts_of_most[name] for name in told)
    np.testing.assert_allclose(scores, 1.0, atol=1e-12)
    assert all(told[a] / told["bm25"] == pytest.approx(WEIGHTS[a] / WEIGHTS["bm25"]) for a in told)
    assert told["names"] == pytest.approx(told["bm25"] + told["match"])
