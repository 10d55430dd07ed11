"""What is proposed for removal and on which evidence; a control that is random, disjoint and as large."""

import random

from attribution.removal import control, propose
from schemas.records import Proponent, Removal


def proponent(fact_id: str, rank: int, example_id: str, coverage: float = 1.0, start: int = 0) -> Proponent:
    signals = {"bm25": 10.0 - rank}
    return Proponent(fact_id, rank, 1 / rank, example_id, start, 9, signals, f"text {example_id}", "s", "sha", coverage)


def ids(removals: list[Removal]) -> list[str]:
    return [removal.example_id for removal in removals]


def test_a_fact_proposes_its_best_examples_up_to_the_maximum():
    ranking = [proponent("f", 1, "c"), proponent("f", 2, "a"), proponent("f", 3, "b")]
    assert ids(propose([ranking], 2, 0.0)) == ["a", "c"]
    assert ids(propose([ranking], 9, 0.0)) == ["a", "b", "c"]
    assert propose([ranking], 0, 0.0) == propose([], 9, 0.0) == []


def test_passages_of_one_example_take_one_place():
    ranking = [proponent("f", 1, "a"), proponent("f", 2, "a", start=50), proponent("f", 3, "b")]
    found = propose([ranking], 2, 0.0)
    assert ids(found) == ["a", "b"]
    assert [row["rank"] for row in found[0].evidence] == [1]


def test_a_passage_below_the_minimum_coverage_is_no_evidence_whatever_its_rank():
    ranking = [proponent("f", 1, "a", 0.49), proponent("f", 2, "b", 0.5), proponent("f", 3, "c", 0.9)]
    assert ids(propose([ranking], 2, 0.5)) == ["b", "c"]
    assert propose([ranking], 2, 0.95) == []


def test_an_example_of_several_facts_is_proposed_once_with_the_evidence_of_each():
    one = [proponent("f1", 1, "a", 0.8)]
    two = [proponent("f2", 1, "b"), proponent("f2", 2, "a", 0.6)]
    [a, b] = propose([one, two], 5, 0.5)
    assert (a.example_id, a.fact_ids, a.reason) == ("a", ("f1", "f2"), "proponent of f1, f2")
    assert [(row["fact_id"], row["rank"], row["score"]) for row in a.evidence] == [("f1", 1, 1.0), ("f2", 2, 0.5)]
    assert [(row["coverage"], row["signals"]) for row in a.evidence] == [(0.8, {"bm25": 9.0}), (0.6, {"bm25": 8.0})]
    assert (a.sha256, a.text, b.fact_ids) == ("sha", "text a", ("f2",))


def test_nothing_is_approved_by_proposing_it():
    assert {r.decision for r in propose([[proponent("f", 1, "a"), proponent("f", 2, "b")]], 5, 0.0)} == {"proposed"}


CORPUS = [(f"z{n:03}", f"sha{n}") for n in range(200)]
REMOVALS = [Removal(f"z{n:03}", "", "approved", "") for n in range(40)]


def test_control_is_as_large_disjoint_and_from_the_corpus():
    chosen = control(CORPUS, REMOVALS, seed=0)
    assert len(set(ids(chosen))) == len(REMOVALS)
    assert not set(ids(chosen)) & set(ids(REMOVALS))
    assert {(r.example_id, r.sha256) for r in chosen} <= set(CORPUS)
    assert {r.decision for r in chosen} == {"approved"}
    assert ids(chosen) == sorted(ids(chosen))


def test_control_does_not_depend_on_the_order_of_the_corpus_but_on_the_seed():
    shuffled = random.Random(0).sample(CORPUS, len(CORPUS))
    assert control(iter(shuffled), REMOVALS, seed=0) == control(CORPUS, REMOVALS, seed=0)
    assert ids(control(CORPUS, REMOVALS, seed=1)) != ids(control(CORPUS, REMOVALS, seed=0))


def test_over_the_seeds_every_example_is_chosen_about_as_often():
    counts = dict.fromkeys((i for i, _ in CORPUS[40:]), 0)
    for seed in range(200):
        for example_id in ids(control(CORPUS, REMOVALS, seed)):
            counts[example_id] += 1
    # 200 draws of 40 in 160: binomial with mean 50 and standard deviation 6.1.
    assert min(counts.values()) > 25 and max(counts.values()) < 75


def test_a_corpus_with_too_few_others_gives_all_of_them():
    assert ids(control(CORPUS[:45], REMOVALS, seed=0)) == [f"z{n:03}" for n in range(40, 45)]
    assert control(CORPUS, [], seed=0) == []
