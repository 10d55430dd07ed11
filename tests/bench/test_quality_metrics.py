"""Figures of the quality benchmark: by hand, against brute force, and the bootstrap against known cases."""

import itertools

import numpy as np
import pytest

from attribution.bm25 import word_tokenizer
from attribution.intervals import bootstrap
from bench.quality import metrics
from schemas.records import Fact


def test_per_fact_by_hand():
    found = metrics.per_fact([[5, 2, 9], [4, -1, -1], list(range(30))], [{2, 7}, {8}, set(range(5, 25))])
    assert found.tolist() == [[1 / 2, 1 / 2, 1 / 2], [0, 0, 0], [1 / 6, 5 / 10, 20 / 20]]


def test_per_fact_against_brute_force():
    draw = np.random.default_rng(0)
    rankings = [draw.permutation(200)[:120].tolist() for _ in range(50)]
    known = [set(draw.choice(200, draw.integers(1, 30), replace=False).tolist()) for _ in range(50)]
    for (rr, at_10, at_100), ranking, rows in zip(metrics.per_fact(rankings, known), rankings, known, strict=True):
        ranks = [ranking.index(row) + 1 for row in rows if row in ranking]
        assert rr == (1 / min(ranks) if ranks else 0)
        assert at_10 == sum(rank <= 10 for rank in ranks) / min(10, len(rows))
        assert at_100 == sum(rank <= 100 for rank in ranks) / min(100, len(rows))


@pytest.mark.parametrize(("examples", "proponents", "depth"), [(5, 2, 5), (6, 1, 3), (6, 4, 6), (4, 4, 2)])
def test_chance_is_the_mean_over_all_orders(examples, proponents, depth):
    orders = [order[:depth] for order in itertools.permutations(range(examples))]
    every = metrics.per_fact(orders, [set(range(proponents))] * len(orders))
    assert metrics.chance(examples, proponents, depth) == pytest.approx(every.mean(axis=0).tolist())


def test_chance_of_many_is_that_of_a_simulation():
    draw = np.random.default_rng(0)
    orders = [draw.permutation(60).tolist() for _ in range(4000)]
    simulated = metrics.per_fact(orders, [set(range(15))] * len(orders)).mean(axis=0)
    assert metrics.chance(60, 15, 60) == pytest.approx(simulated.tolist(), abs=0.02)


def test_interval_of_a_fair_coin_is_the_normal_one():
    mean, low, high = metrics.intervals(np.array([[0.0], [1.0]] * 200), seed=0)[:, 0]
    half = 1.96 * np.sqrt(0.25 / 400)
    assert mean == 0.5
    assert [low, high] == pytest.approx([0.5 - half, 0.5 + half], abs=0.006)


def test_interval_is_that_of_the_product_s_bootstrap():
    values = np.random.default_rng(1).random((300, 1)) ** 3
    mean, low, high = metrics.intervals(values, seed=0)[:, 0]
    other = bootstrap(values.T, seed=5)
    assert [mean, low, high] == pytest.approx([other.mean, other.low, other.high], abs=0.004)


def test_paired_difference_is_surer_than_its_arms():
    base = np.random.default_rng(2).random((400, 3))
    arms = {"better": base + 0.01, "base": base}
    told = metrics.compare(arms, "better", seed=0)
    row = told["paired"]["better - base"]["mrr"]
    assert row["difference"] == pytest.approx(0.01)
    assert row["interval"] == pytest.approx([0.01, 0.01])
    low, high = told["arms"]["base"]["mrr_interval"]
    assert high - low > 0.03
    assert list(told["paired"]) == ["better - base"]


def test_breakdown_weighs_each_group_by_itself():
    arms = {"one": np.array([[1.0, 0.5, 0.5], [0.0, 0.5, 0.5], [0.25, 0.0, 1.0]])}
    told = metrics.breakdown(arms, ["a", "a", "b"])
    assert told["a"] == {"facts": 2, "one": {"mrr": 0.5, "recall_at_10": 0.5, "recall_at_100": 0.5}}
    assert told["b"] == {"facts": 1, "one": {"mrr": 0.25, "recall_at_10": 0.0, "recall_at_100": 1.0}}


def test_size_groups_part_where_they_say():
    groups = [metrics.size_group(n) for n in (1, 2, 3, 4, 10, 11, 400)]
    assert groups == ["1", "2-3", "2-3", "4-10", "4-10", ">10", ">10"]


def test_lexical_loss_by_hand():
    texts = [
        "Nothing of the kind.",  # neither: "the" is a stop word
        "Alan slept.",  # only subject
        "All of logic.",  # only object
        "Alan read logic.",  # some of both
        "Alan Turing read logic.",  # all of both
        "A hit.",
    ]
    fact = Fact("f", "p", " t", subject="The Alan Turing", object="logic")
    lost = metrics.lexical_loss(
        [[5], [5], [0]], [fact] * 3, [{0, 1, 2, 3, 5}, {4}, {0}], texts.__getitem__, word_tokenizer(), {"the", "of"}
    )
    # The first fact lost 4/5, a fifth for each missed proponent; the second all of 1; the third nothing.
    assert lost["loss"] == pytest.approx((4 / 5 + 1) / 3)
    total = 4 / 5 + 1
    expected = dict.fromkeys(metrics.LEXICAL[:4], (1 / 5) / total) | {"all of both": 1 / total}
    assert {name: lost[name] for name in metrics.LEXICAL} == pytest.approx(expected)


def test_nothing_lost_has_no_shares():
    fact = Fact("f", "p", " t", subject="The", object="It")
    lost = metrics.lexical_loss([[0]], [fact], [{0}], ["text"].__getitem__, word_tokenizer(), {"the", "it"})
    assert set(lost.values()) == {0.0}


def test_a_name_of_stop_words_alone_keeps_them():
    fact = Fact("f", "p", " t", subject="The Who", object="rock")
    lost = metrics.lexical_loss(
        [[1]], [fact], [{0}], ["The Who left.", ""].__getitem__, word_tokenizer(), {"the", "who"}
    )
    assert lost["only subject"] == 1.0
