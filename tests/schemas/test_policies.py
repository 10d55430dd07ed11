"""Policies: the first rule that holds decides; what is misspelled is named with the nearest right word."""

import pytest

from schemas.policies import DEFAULT, Found, Policy, Rule, policy_from_row

ROW = {
    "name": "house",
    "approve": True,
    "rules": [
        {"when": {"category": "privacy", "labels": {"pii/*": 0.5}}, "propose": "redact"},
        {"when": {"said": True, "rank": 5, "coverage": 0.9}, "propose": "remove"},
        {"when": {"score": 0.9, "overlap": 8}, "propose": "keep"},
    ],
    "otherwise": "review",
}
FOUND = Found("false_fact", True, rank=5, score=0.5, coverage=0.9, overlap=3)


def test_the_first_rule_that_holds_decides():
    policy = policy_from_row(ROW)
    assert policy.approve and policy.name == "house"
    assert policy.propose(FOUND) == ("remove", "house, rule 2: said True, rank 5, coverage 0.9", [])
    labelled = Found("privacy", True, 1, 1.0, 1.0, 0, [("pii/EMAIL", 0.5), ("pii/PHONE", 0.4), ("hf/toxic", 0.9)])
    proposal, told, named = policy.propose(labelled)
    assert (
        proposal == "redact"
        and told == "house, rule 1: category privacy, labels pii/* 0.5"
        and named == [("pii/EMAIL", 0.5)]
    )


@pytest.mark.parametrize(
    ("found", "proposal"),
    [
        (Found("false_fact", True, 6, 0.5, 0.9, 3), "review"),  # rank one too far
        (Found("false_fact", True, 5, 0.5, 0.89, 3), "review"),
        (Found("false_fact", False, 5, 0.5, 0.9, 3), "review"),
        (Found("false_fact", None, 5, 0.5, 0.9, 3), "review"),
        (Found("false_fact", None, 5, 0.9, 0.9, 8), "keep"),
        (Found("toxic", True, 9, 1.0, 0.0, 0, [("pii/EMAIL", 1.0)]), "review"),  # the label of another category's rule
    ],
)
def test_every_condition_of_a_rule_must_hold(found, proposal):
    assert policy_from_row(ROW).propose(found)[0] == proposal


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rulez": []},
            "a policy: expected name, approve, rules, otherwise, found the key 'rulez'; did you mean 'rules'?",
        ),
        ({"rules": [{"when": {"coverag": 0.5}, "propose": "keep"}]}, "rule 1, when: .*did you mean 'coverage'?"),
        ({"rules": [{"wen": {}, "propose": "keep"}]}, "rule 1: expected {when"),
        ({"rules": [{"when": {}, "propose": "removed"}]}, "rule 1, propose: .*'removed'; did you mean 'remove'?"),
        ({"rules": [{"when": {"category": ["privat"]}, "propose": "keep"}]}, "rule 1, category: .*'privat'"),
        ({"rules": [{"when": {"rank": "five"}, "propose": "keep"}]}, "rule 1, rank: expected a number, found 'five'"),
        ({"rules": [{"when": {"said": "yes"}, "propose": "keep"}]}, "rule 1, said: expected true or false"),
        ({"rules": [{"when": {"labels": {"pii/*": True}}, "propose": "keep"}]}, r"labels pii/\*: expected a number"),
        ({"name": " "}, "'name' must be a non-empty string"),
        ({"approve": "no"}, "'approve' must be true or false, found 'no'"),
        ({"rules": None}, "'rules' must be a list"),
        ({"otherwise": "ask"}, "otherwise: expected remove, redact, keep, review, found 'ask'"),
    ],
)
def test_what_is_wrong_is_named_with_the_nearest_right_word(change, message):
    with pytest.raises(ValueError, match=message):
        policy_from_row(ROW | change)


def test_the_default_approves_nothing_and_leaves_what_the_model_does_not_say_to_a_person():
    assert not DEFAULT.approve
    assert DEFAULT.propose(Found("false_fact", False, 1, 1.0, 1.0, 20))[0] == "review"
    assert DEFAULT.propose(Found("false_fact", True, 1, 1.0, 0.9, 0))[0] == "remove"
    assert DEFAULT.propose(Found("toxic", True, 1, 1.0, 1.0, 0))[0] == "review"
    assert DEFAULT.propose(Found("copyright", True, 40, 0.1, 0.1, 8))[0] == "remove"
    assert Policy("empty", ()).propose(FOUND) == ("review", "empty: no rule holds", [])
    assert Rule({}, "keep").holds(FOUND) and Rule({}, "keep").told() == "always"
