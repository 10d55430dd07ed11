"""C from end to end on a tiny corpus, and what it falls back to."""

from dataclasses import replace

import numpy as np
import pytest

from bench.quality import c, report, synthetic
from bench.quality.data import SYNTHETIC, read
from bench.quality.hidden import KINDS, LEAST_FACTS, LEAST_PASSAGES
from tests.bench.conftest import write_folder

SIZE, PEOPLE = (6, 400), 60
PARTS = {f"fused_without_{part}" for part in ("match", "names", "hop", "dense")}
ARMS = {"fused", "bm25", "bm25_prompt_target", "dense", "rrf", "random"} | PARTS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return read(write_folder(tmp_path_factory.mktemp("data"), *synthetic.generate(people=90)), "small")


@pytest.fixture(scope="module")
def measured(tmp_path_factory, data, encoder):
    """(C's result, its folder)."""
    out = tmp_path_factory.mktemp("c")
    return c.run("small", data, out, encoder, SIZE, PEOPLE), out


def test_every_arm_is_measured_by_kind_and_words_find_nothing(measured):
    result, _ = measured
    assert set(result["arms"]) == ARMS
    assert set(result["paired"]) == {f"fused - {arm}" for arm in ARMS - {"fused"}}
    assert (result["data"], result["facts"], result["examples"]) == ("small", len(KINDS) * SIZE[0], SIZE[1])
    assert {kind: row["facts"] for kind, row in result["by_kind"].items()} == dict.fromkeys(KINDS, SIZE[0])
    for arm in ARMS:
        of_kinds = [row[arm]["recall_at_10"] for row in result["by_kind"].values()]
        assert result["arms"][arm]["recall_at_10"] == pytest.approx(np.mean(of_kinds), abs=1e-6)
    for arm in ("bm25", "bm25_prompt_target"):
        assert max(row[arm]["recall_at_10"] for row in result["by_kind"].values()) <= 0.2
    # Names are followed by an encoder that knows nothing, too; what is described has none.
    for kind in ("alias", "code name", "counterfactual"):
        found = result["by_kind"][kind]
        assert found["fused"]["recall_at_10"] >= 0.5 and found["fused_without_names"]["recall_at_10"] <= 0.1, kind


def test_a_ranking_of_the_proponents_counts_as_right(measured):
    _, out = measured
    (place,) = out.glob("told-*")
    told, kind_of = read(place, "told"), c.kinds(place)
    right = np.array([[*sorted(told.proponents(fact)), *[-1] * 10][:10] for fact in told.facts])
    kinds = [kind_of[fact.id] for fact in told.facts]
    result = c.figures({"fused": right, "bm25": np.roll(right, 1, axis=0)}, told, kinds)
    assert result["arms"]["fused"]["mrr"] == result["arms"]["fused"]["recall_at_10"] == 1.0
    assert result["arms"]["bm25"]["mrr"] < 0.1


def test_a_resumed_run_says_the_same_and_makes_nothing(measured, data, encoder, monkeypatch, capsys):
    result, out = measured
    monkeypatch.setattr(c, "build", lambda *given: pytest.fail("the facts were told again"))
    monkeypatch.setattr(c, "make_rankings", lambda *given: pytest.fail("the rankings were made again"))
    again = c.run("small", data, out, encoder, SIZE, PEOPLE)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in result.items() if k != "seconds"}
    assert capsys.readouterr().err.count("used again") == 3


def test_too_few_sentences_are_said_and_replaced(tmp_path, data, capsys):
    name, built = c.build(replace(data, facts=data.facts[:5]), *SIZE, PEOPLE, tmp_path)
    assert name == SYNTHETIC and len(built.facts) == len(KINDS) * SIZE[0]
    told = capsys.readouterr().err
    assert "small: expected 6 facts of each kind" in told and "running on a synthetic corpus" in told
    again, same = c.build(replace(data, name=SYNTHETIC), *SIZE, PEOPLE, tmp_path)
    assert (again, same.facts) == (name, built.facts) and "expected" not in capsys.readouterr().err
    assert c.build(data, *SIZE, PEOPLE, tmp_path)[0] == "small"


def test_fewer_facts_are_taken_where_there_are_not_as_many(tmp_path, data, capsys, monkeypatch):
    monkeypatch.setattr(c.hidden, "LEAST_FACTS", 5)
    name, built = c.build(data, 400, 400, PEOPLE, tmp_path)
    assert name == "small" and len(built.facts) == len(KINDS) * 5
    assert "small: expected 400 facts of each kind" in capsys.readouterr().err


def test_the_settings_and_the_synthetic_corpus_are_large_enough(tmp_path, data):
    for num_facts, num_passages in c.SIZES.values():
        assert num_facts >= LEAST_FACTS and num_passages >= LEAST_PASSAGES
    name, built = c.build(replace(data, name=SYNTHETIC), *c.SIZES["small"], c.PEOPLE, tmp_path)
    assert (name, len(built.corpus)) == (SYNTHETIC, c.SIZES["small"][1])


def test_the_report_has_a_table_by_kind(measured, tmp_path):
    result, _ = measured
    report.write(result, tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert "by kind" in table
    for kind, row in result["by_kind"].items():
        assert f"| {kind} | {SIZE[0]} |" in table
        assert f"{row['fused']['mrr']:.3f} / {row['fused']['recall_at_10']:.3f}" in table
