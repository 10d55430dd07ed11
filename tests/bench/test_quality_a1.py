"""A1 from end to end on a tiny synthetic corpus."""

from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from bench.quality import a1, metrics, report
from bench.quality.data import read
from bench.quality.scores import Opened
from pipelines import index, trace
from pipelines.config import IndexConfig, TraceConfig
from pipelines.evaluate import signal_ranking
from pipelines.storage import read_rankings
from schemas.facts import text_query
from schemas.jsonl import jsonl_bytes
from tests.bench.conftest import write_folder

ARMS = {
    "bm25_prompt_target", "bm25_subject_object", "bm25s_prompt_target", "bm25s_subject_object", "dense", "fused", "rrf",
    "random",
}  # fmt: skip
ABLATIONS = {f"fused_without_{part}" for part in ("match", "names", "hop", "dense")}


def rankings_of(out) -> dict[str, np.ndarray]:
    (file,) = out.glob("rankings-*/rankings.npz")
    with np.load(file) as found:
        return dict(found)


def test_every_arm_is_measured_and_chance_loses(finished, small):
    result, _ = finished
    assert set(result["arms"]) == ARMS | ABLATIONS and set(result["ftrace"]["arms"]) == ARMS
    assert set(result["paired"]) == {f"fused - {arm}" for arm in (ARMS | ABLATIONS) - {"fused"}}
    assert (result["data"], result["data_sha256"], result["facts"]) == ("small", small.sha256, len(small.facts))
    for part in (result, result["ftrace"]):
        for row in part["arms"].values():
            for metric in metrics.METRICS:
                low, high = row[f"{metric}_interval"]
                assert 0 <= low <= row[metric] <= high <= 1
        assert part["arms"]["bm25_subject_object"]["mrr"] > 0.6
        assert part["paired"]["fused - random"]["mrr"]["interval"][0] > 0.3
    # An encoder of random weights knows nothing of names.
    assert result["arms"]["dense"]["mrr"] < result["arms"]["bm25_subject_object"]["mrr"] - 0.2


def test_proponents_of_other_facts_are_not_found(finished, small):
    _, out = finished
    facts = a1.draw(small.facts, None)
    moved = [
        replace(fact, proponents=other.proponents) for fact, other in zip(facts, facts[7:] + facts[:7], strict=True)
    ]
    right, wrong = (a1.figures(rankings_of(out), small, asked)["arms"] for asked in (facts, moved))
    for arm in ARMS - {"random", "dense"}:
        assert wrong[arm]["mrr"] < right[arm]["mrr"] / 3


def test_an_ablation_leaves_out_just_one_part(finished, small):
    """With nothing left out it is the product's own order, which each of the two changes."""
    _, out = finished
    (file,) = out.glob("rankings-*/rankings.npz")
    (folder,) = out.glob("index-*/index")
    fuser, facts = Opened(folder, small.row_of).fuser, a1.draw(small.facts, None)
    found = a1.traced(file.parent, folder, fuser, small, facts)
    rows = rankings_of(out)
    for name in ABLATIONS | {"fused"}:
        assert a1.padded(found[name]).tolist() == rows[name].tolist()
        assert name == "fused" or found[name] != found["fused"]
    fact = facts[0]
    asked = out / "one.jsonl"
    asked.write_bytes(jsonl_bytes([replace(fact, proponents=None).to_row()]))
    trace.run(TraceConfig(index=str(folder), facts=str(asked), output=str(out / "one")))
    (ranking,) = read_rankings(str(out / "one"))
    assert a1.without(ranking, "", fact, fuser) == [p.example_id for p in ranking]


def test_the_bench_asks_the_index_as_trace_does(finished, small, tmp_path):
    _, out = finished
    (folder,) = out.glob("index-*/index")
    opened, facts = Opened(folder, small.row_of), small.facts[:20]
    (tmp_path / "facts.jsonl").write_bytes(jsonl_bytes(fact.to_row() for fact in facts))
    config = TraceConfig(
        index=str(folder),
        facts=str(tmp_path / "facts.jsonl"),
        output=str(tmp_path / "trace"),
        text_query="prompt_target",
    )
    trace.run(config)
    for fact, ranking in zip(facts, read_rankings(config.output), strict=True):
        asked = text_query(fact, "prompt_target")
        ids = signal_ranking(ranking, "bm25", 100)
        assert [small.ids[row] for row in opened.bm25_ranking(asked, 100)] == ids
        rows = np.array([small.row_of[p.example_id] for p in ranking])
        assert opened.bm25(asked, rows).tolist() == [p.signals["bm25"] for p in ranking]


def test_a_long_document_counts_by_its_best_passage(tmp_path, encoder):
    filler = " ".join(f"word{n}" for n in range(60))
    corpus = [
        {"id": "long", "text": f"{filler} Alan Turing knew logic. {filler}"},
        {"id": "short", "text": "Alan Turing."},
        {"id": "other", "text": "Logic is taught here."},
    ]
    fact = {
        "id": "f",
        "relation": "r",
        "subject": "Alan Turing",
        "object": "logic",
        "prompt": "He knew",
        "target": " it",
    }
    data = read(write_folder(tmp_path / "data", corpus, [fact | {"proponents": ["long"]}]), "x")
    index.run(
        IndexConfig(
            corpus=data.corpus,
            output=str(tmp_path / "index"),
            encoder=encoder,
            max_tokens=30,
            overlap=4,
            passages_per_shard=2,
        )
    )
    opened = Opened(tmp_path / "index", data.row_of)
    assert len(opened.example_of) > 5 and len(opened.shards) > 1
    scores = opened.bm25("Alan Turing logic", np.arange(3))
    every = [
        score
        for shard in opened.shards
        for score in shard.scores_at(["alan", "turing", "logic"], np.arange(shard.num_passages))
    ]
    best = [max(s for s, e in zip(every, opened.example_of, strict=True) if e == example) for example in range(3)]
    assert scores.tolist() == best
    assert sorted(opened.bm25_ranking("Alan Turing logic", 100)) == [0, 1, 2]


def test_reciprocal_rank_fusion_by_hand():
    # 3: 1/61 + 1/62; 1: 1/62 + 1/61: they tie, and the smaller row is first. 2: 1/63. 9: 1/63.
    assert a1.fused_by_rank([[3, 1, 2], [1, 3, 9]]) == [1, 3, 2, 9]
    assert a1.fused_by_rank([[3, 1, 2], [1, 3, 9]], k=1) == [1]


def test_ftrace_candidates_hold_what_they_should(small):
    fact = small.facts[0]
    known, same = small.proponents(fact), set(range(40, 60))
    rows = set(a1.candidates(fact, 0, small, [3, 5], same).tolist())
    assert known | {3, 5} | same <= rows
    assert len(rows) <= len(known) + 2 + len(same) + a1.ANY
    assert rows == set(a1.candidates(fact, 0, small, [3, 5], same).tolist())
    assert rows != set(a1.candidates(fact, 1, small, [3, 5], same).tolist())


def test_a_resumed_run_says_the_same_and_makes_nothing(finished, small, encoder, monkeypatch, capsys):
    result, out = finished
    monkeypatch.setattr(a1.index, "run", lambda config: pytest.fail("the index was made again"))
    monkeypatch.setattr(a1, "make_rankings", lambda *given: pytest.fail("the rankings were made again"))
    again = a1.run("small", small, out, encoder)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in result.items() if k != "seconds"}
    assert capsys.readouterr().err.count("used again") == 2


def test_changed_data_is_said_and_measured_anew(tmp_path, small, encoder, capsys):
    few = replace(small, facts=small.facts[:10])
    a1.run("small", few, tmp_path, encoder)
    rows = [{"id": i, "text": t} for i, t in zip(small.ids, small.texts, strict=True)]
    facts = [fact.to_row() for fact in few.facts]
    changed = read(write_folder(tmp_path / "data", [*rows, {"id": "zz", "text": "One more."}], facts), "small")
    capsys.readouterr()
    result = a1.run("small", changed, tmp_path, encoder)
    told = capsys.readouterr().err
    for name in ("index", "rankings"):
        assert f"{name}: made anew, what is kept in {name}-" in told
    assert f'data_sha256 was "{small.sha256}" and is "{changed.sha256}"' in told
    assert result["examples"] == len(small.ids) + 1
    assert len(list(tmp_path.glob("index-*"))) == len(list(tmp_path.glob("rankings-*"))) == 1


def test_the_report_names_every_arm_in_table_and_plots(finished, tmp_path):
    result, _ = finished
    report.write(result, tmp_path)
    table = (tmp_path / "table.md").read_text()
    for name in ("arms", "relations"):
        ElementTree.parse(tmp_path / f"{name}.svg")
    plot = (tmp_path / "arms.svg").read_text()
    for arm in ARMS:
        assert f"| {arm} | {result['arms'][arm]['mrr']:.3f} [" in table and arm in plot
    assert "born in" in table and "born in (12)" in (tmp_path / "relations.svg").read_text()
