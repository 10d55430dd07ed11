"""B from end to end with an LM of two thousand parameters, and its control: random removals lose nothing."""

import json
import math
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from bench.quality import b, lm, report
from bench.quality.kept import Kept
from schemas.errors import ConfigError
from schemas.manifest import MANIFEST
from schemas.records import Fact
from tests.bench.conftest import RECIPE

PLAN = b.Plan(
    part=lm.Part(sentences=100, most_words=20, most_statements=3, per_object=3, cue=2),
    recipe=RECIPE,
    aimed=4,
    ranked=b.RANKED,
    ks=(1,),
    selecting=(0,),
    measuring=(2,),
)


@pytest.fixture(scope="module")
def data(capitals):
    return capitals


@pytest.fixture(scope="module")
def measured(tmp_path_factory, data, encoder):
    """(B's result, its folder)."""
    out = tmp_path_factory.mktemp("b")
    return b.run("small", data, out, encoder, PLAN, workers=0), out


def test_removing_the_annotated_loses_the_facts_and_random_does_not(measured):
    arms = measured[0]["arms"]
    assert arms["annotated"]["lost"] >= 0.75 and arms["random"]["lost"] <= 0.25
    assert arms["annotated"]["log_probability_change"] < arms["random"]["log_probability_change"] - 1
    assert arms["none"] == {"removed": 0, "lost": 0.0, "lost_interval": [0.0, 0.0]}


def test_every_arm_is_measured_at_every_k(measured):
    result, out = measured
    assert set(result["arms"]) == {"none", "annotated", "random", *b.RANKED}
    assert set(result["paired"]) == {f"fused - {arm}" for arm in ("annotated", "random", "bm25", "gradient")}
    assert result["knowledge"]["aimed_at"] == PLAN.aimed and result["knowledge"]["others"] >= 2
    for arm in b.RANKED:
        row = result["arms"][arm]
        assert list(row["curve"]) == ["1", b.LAST] and 0 <= row["area"] <= 1
        assert row["curve"]["1"]["removed"] <= PLAN.aimed < row["removed"]
        assert row["curve"][b.LAST]["lost"] == row["lost"]
    assert result["arms"]["random"]["removed"] <= result["arms"]["fused"]["removed"]
    assert not list(out.glob("train_fused*/model")) and len(list(out.glob("train_none*/model"))) == 1


def test_random_takes_as_many_and_none_that_is_annotated(measured, data):
    _, out = measured
    (place,) = out.glob("rankings-*")
    rankings = json.loads((place / "rankings.json").read_text())
    aimed = [fact for fact in data.facts if fact.id in rankings["fused"]][:2]
    few = {arm: {fact.id: found[fact.id] for fact in aimed} for arm, found in rankings.items()}
    removals = b.removals_of(few, aimed, data, (1,))
    assert removals["annotated"] == sorted({i for fact in aimed for i in fact.proponents})
    assert len(removals["random"]) == len(removals["fused"])
    assert set(removals["random"]).isdisjoint({*removals["annotated"], *removals["fused"]})
    for fact in aimed:
        assert few["fused"][fact.id][0] in removals["fused_k1"]
        assert set(few["fused"][fact.id][: len(fact.proponents) + b.MORE]) <= set(removals["fused"])


def test_a_resumed_run_says_the_same_and_trains_nothing(measured, data, encoder, monkeypatch, capsys):
    result, out = measured
    monkeypatch.setattr(lm.train, "run", lambda config: pytest.fail("a model was trained again"))
    monkeypatch.setattr(b.index, "run", lambda config: pytest.fail("the index was made again"))
    again = b.run("small", data, out, encoder, PLAN, workers=0)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in result.items() if k != "seconds"}
    assert "training: 2 of 2 kept, used again" in capsys.readouterr().err


def test_the_report_draws_the_removal_curve(measured, tmp_path):
    result, _ = measured
    report.write(result, tmp_path)
    table, plot = ((tmp_path / name).read_text() for name in ("table.md", "removal.svg"))
    ElementTree.parse(tmp_path / "removal.svg")
    for arm in ("annotated", "random", *b.RANKED):
        assert arm in plot and f"| {arm} | " in table
    row = result["arms"]["fused"]["curve"]["1"]
    assert f"| fused | 1 | {row['removed']} | {row['lost']:.3f} [" in table and "passages removed" in plot
    assert "area, fused - bm25: not below" in table


def test_checks_hold_and_fail_where_they_should():
    def paired(low: float, high: float) -> dict:
        return {"difference": (low + high) / 2, "interval": [low, high]}

    arms = {"random": {"lost": 0.05, "retained": 0.96}, "fused": {"retained": 0.94}}
    rows = {"fused - annotated": {"lost": paired(-0.06, 0.1)}}
    rows |= {"fused - bm25": {"lost": paired(0, 0), "area": paired(-0.1, 0.0)}}
    rows |= {"fused - gradient": {"lost": paired(0, 0), "area": paired(0.01, 0.2)}}
    told = [(row["what"].split(":")[0].split(",")[0], row["holds"]) for row in b.checks(arms, rows)]
    assert told == [
        ("lost at annotated + 2", False),
        ("area", True),
        ("area", False),
        ("area", True),
        ("area", True),
        ("lost by random <= 0.05", True),
        ("other facts retained by fused >= 0.95", False),
        ("other facts retained by random >= 0.95", True),
    ]


def test_a_fact_that_its_subject_tells_is_known_without_a_statement():
    def named(subject: str, target: str) -> bool:
        return b.names_itself(Fact("f", "", target, subject=subject, object=target))

    assert named("Muskegon River", "river") and named("United States Supreme Court", "supreme court")
    assert not named("Riverside", "river") and not named("Muskegon River", "river bed")


def test_what_is_surely_known_is_said_by_every_lm_and_not_by_the_subject():
    names = (("Oz", "city"), ("Emerald City", "city"), ("Ev", "city"), ("Ix", "city"))
    facts = [Fact(name, "", target, subject=name, object=target) for name, target in names]

    def said(*probabilities: float) -> lm.Said:
        rows = {name: math.log(value) for (name, _), value in zip(names, probabilities, strict=True)}
        return lm.Said(dict.fromkeys(rows, True), rows, 1.0)

    first, second = said(0.96, 1, 0.94, 1), said(1, 1, 1, 1)
    second.known["Ix"] = False
    assert b.surely_known(facts, [first, second]) == (facts[:1], 1)
    assert b.surely_known(facts, [second]) == ([facts[0], facts[2]], 1)


def test_facts_that_share_a_statement_with_one_aimed_at_are_not_to_stay(data):
    shared = [replace(fact, proponents=(*fact.proponents, "Oz-0")) for fact in data.facts]
    aimed, others = b.draw(shared, 4, 24, (0,))
    assert len(aimed) == 4 and not others
    aimed, others = b.draw(data.facts, 100, 24, (0,))
    assert len(aimed) == round(0.6 * 24) and len(others) == 24 - len(aimed)
    assert not {fact.id for fact in aimed} & {fact.id for fact in others}
    with pytest.raises(ConfigError, match="at least 4 facts that the LM knows"):
        b.draw(data.facts[:3], 4, 12, (0, 1))


def test_facts_that_no_sentence_tells_as_they_are_asked_are_refused(tmp_path, data, encoder):
    unlike = replace(data, facts=[replace(fact, prompt="Which") for fact in data.facts])
    with pytest.raises(ConfigError, match=r"tells as they are asked, .* found none of 24"):
        b.run("small", unlike, tmp_path, encoder, PLAN, workers=0)


def test_a_part_holds_all_statements_of_its_facts_and_keeps_its_bounds(data):
    ids, facts = lm.choose(data, replace(PLAN.part, sentences=18))
    assert len(ids) <= 18 and facts
    assert all(set(fact.proponents) <= set(ids) for fact in facts)
    assert lm.choose(data, replace(PLAN.part, sentences=18)) == (ids, facts)
    assert lm.choose(data, replace(PLAN.part, sentences=9, seed=1))[0] != ids
    assert len(lm.choose(data, replace(PLAN.part, most_statements=1))[1]) == 12
    unlike = replace(data, facts=[replace(fact, prompt="Which") for fact in data.facts[:3]] + data.facts[3:])
    count = len({i for fact in data.facts[3:] for i in fact.proponents})
    assert lm.choose(unlike, replace(PLAN.part, sentences=count))[1] == unlike.facts[3:]
    assert lm.choose(unlike, PLAN.part)[1] == unlike.facts
    assert lm.choose(data, replace(PLAN.part, most_words=3)) == ([], [])
    alike = replace(data, facts=[replace(fact, relation="r", object="is") for fact in data.facts])
    assert len(lm.choose(alike, replace(PLAN.part, per_object=2))[1]) <= 2


@pytest.mark.parametrize(
    "text, told",
    [
        ("Oz has a capital, which is Verona.", True),
        ("Verona is the capital of Oz.", False),  # the object comes first
        ("The capital of Oz, called Verona, is Verona.", True),  # the second time it stands behind the word
        ("The capital of Oz, Verona, is old.", False),
        ("Verona.", False),
    ],
)
def test_a_sentence_says_a_fact_as_it_is_asked(data, text, told):
    (fact,) = [fact for fact in data.facts if fact.id == "Oz"]
    assert lm.is_told_as_asked(fact, text, 1) == told
    assert lm.is_told_as_asked(fact, text.replace("which", "Oz"), 2) == (told and "which" in text)


def test_a_training_with_another_recipe_is_done_anew_and_said(tmp_path, data, capsys):
    facts = tmp_path / "facts.jsonl"
    b.write_facts(facts, data.facts[:2])
    quick = PLAN.recipe | {"epochs": 1}
    first = lm.training("train_none_seed0", data, facts, 0, quick)
    lm.train_all([first], tmp_path, workers=0)
    said = lm.said(first, tmp_path)
    assert set(said.known) == {"Oz", "Narnia"} and said.log_probability["Oz"] < 0 < said.seconds
    other = lm.training("train_none_seed0", data, facts, 0, quick | {"epochs": 2}, keeps_model=True)
    lm.train_all([other], tmp_path, workers=0)
    assert "train_none_seed0: made anew, what is kept in" in (told := capsys.readouterr().err) and "recipe was" in told
    assert not Kept(tmp_path).finished(first.name, first.key)
    model = Kept(tmp_path).place(other.name, other.key) / lm.MODEL
    assert lm.model_of(other, tmp_path) == str(model) and (model / MANIFEST).is_file()


def test_a_training_that_was_killed_goes_on(tmp_path, data, monkeypatch):
    facts = tmp_path / "facts.jsonl"
    b.write_facts(facts, data.facts[:2])
    job = lm.training("train_none_seed0", data, facts, 0, PLAN.recipe | {"epochs": 1})

    def killed(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(lm, "answers", killed)
        lm.train_all([job], tmp_path, workers=0)
    monkeypatch.setattr(lm.train, "run", lambda config: pytest.fail("what was trained was trained again"))
    lm.train_all([job], tmp_path, workers=0)
    assert set(lm.said(job, tmp_path).known) == {"Oz", "Narnia"}


def test_a_training_in_a_process_of_its_own_says_the_same(tmp_path, data, monkeypatch):
    facts = tmp_path / "facts.jsonl"
    b.write_facts(facts, data.facts[:2])
    job = lm.training("train_none_seed0", data, facts, 0, PLAN.recipe | {"epochs": 1})
    for name, workers in (("here", 0), ("there", 2)):
        (tmp_path / name).mkdir()
        lm.train_all([job], tmp_path / name, workers)
    here, there = (lm.said(job, tmp_path / name) for name in ("here", "there"))
    assert here.known == there.known
    assert here.log_probability == pytest.approx(there.log_probability, rel=1e-4)
    monkeypatch.setattr(lm.sys, "executable", "false")
    with pytest.raises(lm.TrainingFailed, match="train_other_seed0: its process ended with 1; --resume"):
        lm.train_all([replace(job, name="train_other_seed0")], tmp_path / "there", workers=1)
