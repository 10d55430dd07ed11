"""A2 from end to end with an LM of two thousand parameters, and stand-ins for its peers, which no test needs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bench.quality import a2, lm, metrics, peer, peers, raw, report
from bench.quality.__main__ import main
from pipelines.rerank import EXACT
from pipelines.resources import resolve_checkpoints
from schemas.errors import ConfigError
from schemas.records import Proponent
from tests.bench.conftest import RECIPE

PLAN = a2.Plan(
    part=lm.Part(sentences=100, most_words=20, most_statements=3, per_object=3, cue=2),
    recipe=RECIPE | {"num_checkpoints": 2},
    rerank=3,
    gradients=(*a2.GRADIENTS, *a2.MORE_GRADIENTS),
    raw=(*raw.PLAIN, *raw.CONTRAST, *raw.ABLATIONS),
)
LEAST = 12  # facts that this LM surely answers
ARMS = {
    "fused", "bm25", "dense", "gradient", "fused_reranked", "gradient_exact", "bm25_prompt_target", "dense_hidden",
    "gradient_cosine", "gradient_tracin", "gradient_adam", "gradient_trackstar", "gradient_trackstar_32",
    "gradient_kfac", "gradient_kfac_32", "gradient_kfac_16",
    *raw.PLAIN, *raw.CONTRAST, *raw.ABLATIONS, "rrf", "random",
}  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory, capitals, pooled, programs):
    """(A2's result, its folder)."""
    out = tmp_path_factory.mktemp("a2")
    return a2.run("small", capitals, out, pooled, PLAN, workers=0, programs=programs), out


def last_checkpoint(out: Path) -> str:
    (model,) = out.glob("train-*/model")
    return resolve_checkpoints((str(model),))[-1]


def test_every_arm_is_measured_on_the_facts_that_are_answered(measured, capitals):
    result, _ = measured
    assert set(result["arms"]) == ARMS | set(peers.ARMS)
    assert LEAST <= result["facts"] <= result["facts_asked"] == len(capitals.facts)
    assert result["examples"] == sum(len(fact.proponents) for fact in capitals.facts)
    for row in result["arms"].values():
        for metric in metrics.METRICS:
            low, high = row[f"{metric}_interval"]
            assert 0 <= low <= row[metric] <= high <= 1
    for arm in ("fused", "bm25", "fused_reranked", "rrf", "bergson_trackstar_default"):
        assert result["arms"][arm]["mrr"] > 0.8
    # What is known by heart has next to no loss: the last checkpoint's plain gradients tell little (0.20, whitened 1).
    for arm in ("gradient", "gradient_trackstar", "gradient_tracin"):
        assert result["arms"][arm]["mrr"] > max(0.6, 2 * result["arms"]["random"]["mrr"])
    assert result["arms"]["bergson_trackstar"]["mrr"] < 0.5  # all its scores are equal: the order of the ids
    assert {f"fused - {arm}" for arm in (ARMS | set(peers.ARMS)) - {"fused"}} <= set(result["paired"])
    assert not result["left_out"] and result["versions"]["bergson"] == result["versions"]["kronfluence"] == "0.1"
    assert set(result["lexical_loss"]) >= {"fused", "bm25", "gradient"}
    json.dumps(result)


def test_the_best_pure_gradient_arm_is_compared_with_the_peer(measured):
    result, _ = measured
    pure = ARMS & {"gradient", *PLAN.raw, *(variant.name for variant in PLAN.gradients)}
    (best,) = {name.partition(" - ")[0] for name in result["paired"]} - {"fused"}
    assert result["arms"][best]["mrr"] == max(result["arms"][name]["mrr"] for name in pure)
    assert f"{best} - bergson_trackstar" in result["paired"]
    ratio = result["arms"][best]["mrr"] / result["arms"]["bergson_trackstar"]["mrr"]
    (row,) = [row for row in result["checks"] if "/ bergson_trackstar >=" in row["what"]]
    assert row["found"] == pytest.approx(ratio, rel=1e-4) and row["holds"] == (ratio >= 5)


def test_proponents_of_other_facts_are_not_found(measured, capitals):
    _, out = measured
    (file,) = out.glob("rankings-*/rankings.npz")
    with np.load(file) as found:
        rankings = dict(found)
    (folder,) = out.glob("part-*")
    part = lm.read_part(folder, capitals)
    facts = part.facts  # all are answered
    moved = [replace(a, proponents=b.proponents) for a, b in zip(facts, facts[7:] + facts[:7], strict=True)]
    right, wrong = (a2.figures(rankings, part, asked, PLAN)["arms"] for asked in (facts, moved))
    for arm in ("fused", "bm25", "gradient", "gradient_trackstar"):
        assert wrong[arm]["mrr"] < right[arm]["mrr"] / 3


def test_without_the_peer_its_arms_are_left_out_and_said(measured, capitals, pooled, tmp_path, capsys, monkeypatch):
    result, out = measured
    shutil.copytree(out, tmp_path / "out")
    monkeypatch.setattr(a2, "make_rankings", lambda *given: pytest.fail("the rankings were made again"))
    again = a2.run("small", capitals, tmp_path / "out", pooled, PLAN, workers=0)
    assert set(again["arms"]) == ARMS and len(again["left_out"]) == 3
    assert {arm: again["arms"][arm] for arm in ARMS} == {arm: result["arms"][arm] for arm in ARMS}
    assert "left out: bergson_trackstar: no --bergson names the programs" in capsys.readouterr().err
    assert not [row for row in again["checks"] if "bergson" in row["what"]]
    report.write(again, tmp_path)
    assert "Left out: bergson_trackstar: no --bergson" in (tmp_path / "table.md").read_text()


def test_a_resumed_run_says_the_same_and_makes_nothing(measured, capitals, pooled, programs, monkeypatch):
    result, out = measured
    monkeypatch.setattr(lm.train, "run", lambda config: pytest.fail("a model was trained again"))
    monkeypatch.setattr(a2.index, "run", lambda config: pytest.fail("an index was made again"))
    monkeypatch.setattr(peer, "call", lambda *given: pytest.fail("a peer ran again"))
    monkeypatch.setattr(a2, "make_rankings", lambda *given: pytest.fail("the rankings were made again"))
    again = a2.run("small", capitals, out, pooled, PLAN, workers=0, programs=programs)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in result.items() if k != "seconds"}


def test_the_report_names_every_arm_and_what_is_to_hold(measured, tmp_path):
    result, _ = measured
    report.write(result, tmp_path)
    table, plot = ((tmp_path / name).read_text() for name in ("table.md", "arms.svg"))
    for name in ("arms", "relations"):
        ElementTree.parse(tmp_path / f"{name}.svg")
    for arm in ARMS | set(peers.ARMS):
        assert f"| {arm} | {result['arms'][arm]['mrr']:.3f} [" in table and arm in plot
    assert "The LM was asked 24 facts" in table and "## What is to hold" in table
    assert "bm25" in (tmp_path / "relations.svg").read_text()


def test_an_lm_that_answers_too_little_is_refused(measured, capitals, pooled, tmp_path, monkeypatch):
    shutil.copytree(measured[1], tmp_path / "out")
    said = lm.Said({fact.id: number < 3 for number, fact in enumerate(capitals.facts)}, {}, 0.0)
    monkeypatch.setattr(lm, "said", lambda job, out: said)
    with pytest.raises(ConfigError, match="at least 4 facts that the LM answers, found 3 of 24 asked"):
        a2.run("small", capitals, tmp_path / "out", pooled, PLAN, workers=0)


def test_exact_products_rank_their_shortlist_alone():
    def proponent(example: str, fused: float, **signals: float) -> Proponent:
        return Proponent("f", 1, fused, example, 0, 1, {"bm25": fused, **signals}, "t", "s", "0")

    ranking = [
        proponent("a", 0.9, **{EXACT: 0.1}),
        proponent("b", 0.8, **{EXACT: 0.3}),
        proponent("d", 0.6, **{EXACT: 0.3}),
        proponent("c", 0.7),
    ]
    assert a2.by_signal(ranking, EXACT) == ["b", "d", "a"]
    assert a2.by_signal(ranking, "fused") == ["a", "b", "c", "d"]
    assert a2.best_rows(np.array([[0.1, 0.3, 0.3], [2.0, 1.0, 0.0]])) == [[1, 2, 0], [0, 1, 2]]


def test_checks_hold_and_fail_where_they_should():
    arms = {"fused": {"mrr": 0.9}, "bm25": {"mrr": 0.95}, "gradient_adam": {"mrr": 0.4}}
    arms |= {"gradient_cosine": {"mrr": 0.1}, "bergson_trackstar": {"mrr": 0.08}}
    arms |= {"bergson_trackstar_default": {"mrr": 0.1}}
    paired = {"fused - bm25": {"mrr": {"interval": [-0.09, -0.01]}}}
    told = [
        (row["what"].split(" / ")[-1], row["found"], row["holds"]) for row in a2.checks(arms, paired, "gradient_adam")
    ]
    assert told == [
        ("bergson_trackstar >= 5", 5.0, True),
        ("bergson_trackstar_default >= 5", 4.0, False),
        ("gradient_cosine >= 3", 4.0, True),
        ("MRR, fused - the best other arm (bm25): not below (high end >= 0)", -0.01, False),
    ]
    paired["fused - bm25"]["mrr"]["interval"][1] = 0.0
    assert a2.checks(arms, paired, "gradient_adam")[-1]["holds"]


def test_an_lm_has_the_threads_that_it_is_given(capitals, tmp_path, monkeypatch):
    facts = tmp_path / "facts.jsonl"
    facts.write_text("")
    job = lm.training("train", capitals, facts, 0, RECIPE)
    found = []

    def run(command, env, **given):
        found.append(env["OMP_NUM_THREADS"])
        return type("Done", (), {"returncode": 0})()

    monkeypatch.setattr(lm.subprocess, "run", run)
    lm.train_all([job], tmp_path, workers=1, threads=2)
    lm.train_all([replace(job, name="other")], tmp_path, workers=1)
    assert found == ["2", "1"]


def test_the_command_runs_the_track_with_its_peer(measured, capitals, pooled, programs, tmp_path, capsys, monkeypatch):
    """The folder is resumed, so that nothing is made again."""
    result, out = measured
    shutil.copytree(out, tmp_path / "out")
    monkeypatch.setitem(a2.SETTINGS, "small", PLAN)
    monkeypatch.setattr("bench.quality.a1.default_encoder", lambda: (pooled, "given"))
    monkeypatch.setattr(a2, "make_rankings", lambda *given: pytest.fail("the rankings were made again"))
    command = ["A2", "--data", str(Path(capitals.corpus).parent), "--out", str(tmp_path / "out"), "--resume"]
    for package, folder in programs.items():
        command += [f"--{package}", str(folder)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and json.loads(printed)["arms"] == result["arms"]
    assert (tmp_path / "out" / "table.md").is_file()
