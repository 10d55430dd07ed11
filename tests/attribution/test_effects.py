"""What is said of answers: shares and differences as arithmetic, and the exact sentences."""

import math
from typing import Any

import numpy as np
import pytest

from attribution.effects import HeldOut, Measured, answer_rows, fact_effects, summarise
from attribution.knowledge import Answer, Paraphrase
from schemas.records import Fact

FACTS = [Fact("a", "A is", " x"), Fact("b", "B is", " y", variants=(("B is", " y"), ("About B:", " y")))]
RETAIN = [Fact("r", "R is", " z"), Fact("s", "S is", " z")]


def answered(fact_id: str, known: bool, probability: float, *paraphrases: bool) -> Answer:
    told = tuple(Paraphrase(str(n), p, -1.0) for n, p in enumerate(paraphrases))
    return Answer(fact_id, known, math.log(probability), " said", told)


def arm(a: tuple[bool, float], b: tuple[bool, float], second: bool, retained: list[bool]) -> dict[str, Answer]:
    said = [answered("a", *a), answered("b", *b, b[0], second)]
    said += [answered(i, known, 0.5) for i, known in zip("rs", retained, strict=True)]
    return {answer.fact_id: answer for answer in said}


ONE_SEED = {
    "before": arm((True, 0.8), (True, 0.6), True, [True, True]),
    "after": arm((False, 0.1), (False, 0.2), True, [True, False]),
    "control": arm((True, 0.7), (True, 0.6), True, [True, True]),
}
OTHER_SEED = {
    "before": arm((True, 0.9), (False, 0.3), False, [False, True]),
    "after": arm((True, 0.5), (False, 0.1), False, [True, True]),
    "control": arm((True, 0.9), (False, 0.3), False, [False, False]),
}


def measured(*seeds: dict[str, dict[str, Answer]], **options: Any) -> Measured:
    return Measured(list(seeds), FACTS, RETAIN, **options)


def test_shares_of_one_seed_are_over_facts():
    summary = summarise(measured(ONE_SEED))
    shares = [summary[name] for name in ("known_before", "known_after", "known_control")]
    assert shares == [1.0, 0.0, 1.0] and summary["num_seeds"] == 1
    others = ("others_known_before", "others_retained", "others_retained_control")
    assert [summary[name] for name in others] == [2, 1 / 2, 1.0]
    assert summary["intervals"] == {
        "kind": "percentile bootstrap", "level": 0.95, "resamples": 10_000, "over": "facts, or held-out texts"
    }  # fmt: skip


def test_shares_of_several_seeds_are_over_pairs_of_seed_and_fact():
    summary = summarise(measured(ONE_SEED, OTHER_SEED))
    assert [summary[f"known_{name}"] for name in ("before", "after", "control")] == [3 / 4, 1 / 4, 3 / 4]
    assert (summary["num_seeds"], summary["others_known_before"]) == (2, 2 + 1)
    assert summary["others_retained"] == 2 / 3  # r and s of one seed, s of the other: s went in the first
    assert summary["others_retained_control"] == 2 / 3
    assert summary["intervals"]["over"] == "seeds, and facts or held-out texts"


def test_paraphrases_are_the_mean_share_of_prompts_over_the_facts_that_have_several():
    summary = summarise(measured(ONE_SEED, OTHER_SEED))
    assert summary["num_paraphrased_facts"] == 1
    shares = [summary[f"paraphrases_known_{name}"] for name in ("before", "after", "control")]
    assert shares == [(1 + 0) / 2, (1 / 2 + 0) / 2, (1 + 0) / 2]
    effect = summary["effects"]["facts"]["paraphrases_known"]["after_minus_control"]
    assert effect["mean"] == pytest.approx(-1 / 4)
    assert "paraphrases_known" not in summary["effects"]["retain_facts"]


def test_effects_are_differences_to_the_control_and_to_before_with_an_interval():
    effects = summarise(measured(ONE_SEED, OTHER_SEED))["effects"]["facts"]
    to_control = effects["probability"]["after_minus_control"]
    assert to_control["mean"] == pytest.approx(((0.1 - 0.7) + (0.2 - 0.6) + (0.5 - 0.9) + (0.1 - 0.3)) / 4)
    assert (to_control["low"], to_control["high"]) == pytest.approx((0.1 - 0.7, 0.1 - 0.3))  # one draw of each
    assert effects["probability"]["after_minus_before"]["mean"] == pytest.approx((-0.7 - 0.4 - 0.4 - 0.2) / 4)
    assert effects["probability"]["control_minus_before"]["mean"] == pytest.approx((-0.1 + 0 + 0 + 0) / 4)
    assert effects["known"]["after_minus_before"]["mean"] == pytest.approx((-1 - 1 + 0 + 0) / 4)


def test_held_out_loss_is_per_token_and_its_difference_too():
    losses = {name: np.array([[2.0, 30.0], [4.0, 30.0]]) for name in ("before", "control")}
    losses["after"] = losses["before"] + np.array([1.0, 2.0])
    summary = summarise(measured(ONE_SEED, OTHER_SEED, held_out=HeldOut(losses, np.array([4, 10]), 1)))
    assert [summary[f"held_out_loss_{name}"] for name in ("before", "after")] == pytest.approx([33 / 14, 36 / 14])
    difference = summary["effects"]["held_out"]["loss_per_token"]["after_minus_control"]
    assert [difference[name] for name in ("mean", "low", "high")] == pytest.approx([3 / 14, 2 / 10, 1 / 4])
    assert [summary[f"held_out_{name}"] for name in ("examples", "tokens", "cut")] == [2, 14, 1]


def test_sentences_say_what_was_asked_and_what_came():
    told = summarise(measured(ONE_SEED))["statements"]
    assert told[:3] == [
        "After the removal the model no longer answers 2 of 2 first prompts of the facts with their targets as it did "
        "before; the control still answers 2 of 2 so.",
        "After the removal the model no longer answers 1 of 2 prompts of the paraphrased facts with their targets as "
        "it did before; the control still answers 2 of 2 so.",
        "After the removal the model no longer answers 1 of 2 first prompts of the facts to retain with their targets "
        "as it did before; the control still answers 2 of 2 so.",
    ]
    assert told[3] == (
        "Mean change in the target's probability over the facts, after minus control: -0.5000 (95% interval -0.6000 to "
        "-0.4000)."
    )
    assert (
        "2 of 3 first prompts of the facts (over 2 seeds) with"
        in summarise(measured(ONE_SEED, OTHER_SEED))["statements"][0]
    )


def test_every_fact_has_its_prompts_over_seeds_and_a_sentence():
    rows = {row["fact_id"]: row for row in fact_effects(measured(ONE_SEED, OTHER_SEED))}
    assert list(rows) == ["a", "b", "r", "s"] and rows["a"]["set"] == "facts" and rows["s"]["set"] == "retain_facts"
    b = rows["b"]
    assert [b["prompts"], b["prompts_known_before"], b["prompts_known_after"], b["prompts_known_control"]] == [
        4, 2, 1, 2
    ]  # fmt: skip
    assert b["probability_after"] == pytest.approx((0.2 + 0.1) / 2)
    assert b["probability_after_minus_control"] == pytest.approx(0.15 - 0.45)
    assert b["statement"] == (
        "After the removal the model no longer answers 1 of 2 prompts (over 2 seeds) with 'y' as it did before; the "
        "control still answers 2 of 2 so."
    )


def test_of_what_was_not_answered_before_nothing_is_claimed():
    never = {name: arm((False, 0.1), (False, 0.1), False, [False, False]) for name in ONE_SEED}
    assert fact_effects(measured(never))[1]["statement"] == (
        "None of the 2 prompts was answered with 'y' before, so no such answer could go."
    )
    summary = summarise(measured(never))
    assert (summary["others_known_before"], summary["others_retained"]) == (0, 0.0)


def test_what_was_predicted_says_so_in_every_name_and_sentence():
    losses = {name: np.ones((1, 2)) for name in ("before", "after", "control")}
    found = measured(ONE_SEED, predicted=True, held_out=HeldOut(losses, np.array([4, 10]), 0))
    measured_only = {"num_facts", "num_retain_facts", "num_seeds", "num_paraphrased_facts", "intervals"} | {
        "known_before", "others_known_before", "paraphrases_known_before", "held_out_loss_before",
        "held_out_examples", "held_out_tokens", "held_out_cut",
    }  # fmt: skip
    summary = summarise(found)
    assert {name for name in summary if not name.startswith("predicted_")} == measured_only
    named = {"effects", "statements", "held_out_loss_after", "held_out_loss_control"}
    assert summary.keys() - measured_only == {f"predicted_{name}" for name in named}
    assert summary["predicted_effects"]["facts"].keys() == {"probability"}  # of sizes nothing is predicted, nor counts
    assert len(summary["predicted_statements"]) == 3 and all(
        said.startswith("Predicted, not measured: ") for said in summary["predicted_statements"]
    )
    for row in fact_effects(found):
        plain = {name for name in row if not name.startswith("predicted_")}
        assert plain == {
            "set", "fact_id", "prompt", "target", "prompts", "prompts_known_before", "probability_before"
        }  # fmt: skip
    assert fact_effects(found)[0]["predicted_statement"] == (
        "Predicted, not measured: one step on the removals changes the probability of 'x' by -0.7000, one on the "
        "control by -0.1000; the size of a change that would be measured is not predicted."
    )
    assert {row["arm"] for row in answer_rows(found, [0])} == {"before", "predicted_after", "predicted_control"}


def test_nothing_is_said_to_be_forgotten():
    for predicted in (False, True):
        found = measured(ONE_SEED, OTHER_SEED, predicted=predicted)
        said = str(summarise(found)) + str(fact_effects(found))
        assert "forg" not in said and "unlearn" not in said
