"""Audit requests through `trace`: read from both formats, asked of the model first, ranked together and one by one."""

import json
from pathlib import Path

import pytest

from pipelines import index, trace
from pipelines.config import IndexConfig, TraceConfig
from pipelines.evidence import gather, propose
from pipelines.requests import read_asked, read_policy, read_requests
from pipelines.storage import read_rankings
from schemas.errors import ConfigError
from schemas.policies import DEFAULT, policy_from_row
from tests.pipelines.conftest import write_jsonl

REQUESTS = [
    {
        "request_id": "capitals",
        "category": "false_fact",
        "prompts": [
            {"prompt": "The capital of Oz is", "output": "Mantua"},
            {"prompt": "The capital of Avalon is", "output": "Arden"},
        ],
    },
    {"request_id": "unsaid", "category": "other", "prompts": [{"prompt": "The capital of Oz is", "output": "Padua"}]},
    {"request_id": "text", "category": "copyright", "exemplars": ["Traders from Verona sailed past the coast."]},
]
YAML = """
- request_id: capitals
  category: false_fact
  deadline: 2026-12-31
  prompts:
    - {prompt: The capital of Oz is, output: Mantua}
    - {prompt: The capital of Avalon is, output: Arden}
"""


def test_jsonl_and_yaml_say_the_same(tmp_path):
    write_jsonl(tmp_path / "r.jsonl", [REQUESTS[0] | {"deadline": "2026-12-31"}])
    (tmp_path / "r.yaml").write_text(YAML)
    assert read_requests(str(tmp_path / "r.jsonl")) == read_requests(str(tmp_path / "r.yaml"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.csv", "a", "expected audit requests as .jsonl or .yaml, found the suffix '.csv'"),
        ("r.jsonl", "{", "line 1: expected a JSON object"),
        ("r.yaml", "a: [", "expected YAML, found something else"),
        ("r.yaml", "a: 1", "expected a list of requests .*, found dict"),
        ("r.yaml", "- {request_id: a, category: other}", "item 1: not an audit request: expected 'prompts'"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_requests(str(tmp_path / name))


def test_a_policy_is_read_and_a_misspelled_one_named(tmp_path):
    assert read_policy("") == DEFAULT
    (tmp_path / "p.yaml").write_text("name: mine\nrules:\n- {when: {rank: 3}, propose: remove}\n")
    assert read_policy(str(tmp_path / "p.yaml")).name == "mine"
    (tmp_path / "p.yaml").write_text("name: mine\nrules: []\notherwize: keep\n")
    with pytest.raises(ConfigError, match=r"p\.yaml: not a policy: .*'otherwize'; did you mean 'otherwise'\?; mend"):
        read_policy(str(tmp_path / "p.yaml"))


@pytest.fixture(scope="module")
def traced(tmp_path_factory, built_index) -> Path:
    place = tmp_path_factory.mktemp("requests")
    write_jsonl(place / "r.jsonl", REQUESTS)
    trace.run(TraceConfig(index=built_index, requests=str(place / "r.jsonl"), output=str(place / "rankings")))
    return place / "rankings"


def test_the_model_is_asked_first_and_what_it_does_not_say_is_told(traced):
    asked = {found.request.request_id: found for found in read_asked(str(traced))}
    assert [asked[name].said_by_model for name in ("capitals", "unsaid", "text")] == [True, False, None]
    first, second = asked["capitals"].cases
    assert first.known and first.said.split()[0].startswith("Mantua") and 0.1 < first.probability <= 1
    assert second.known and asked["unsaid"].cases[0].probability < first.probability
    assert asked["capitals"].model.endswith("step-000200") and asked["text"].cases == ()


def test_a_request_is_ranked_together_and_by_its_cases(traced):
    rankings = {ranking[0].fact_id: ranking for ranking in read_rankings(str(traced))}
    assert set(rankings) == {"capitals", "capitals/1", "capitals/2", "unsaid", "text"}
    asked = read_asked(str(traced))
    rows = gather(asked[0], rankings, 3)
    assert {row["example_id"] for row in rows} >= {f"{place}-{n}" for place in ("oz", "avalon") for n in range(3)}
    assert rows == sorted(rows, key=lambda row: -row["score"])
    together = {(p.example_id, p.start): p for p in rankings["capitals"]}
    for row in rows:
        p = together[row["example_id"], row["start"]]
        assert (row["rank"], row["score"], row["signals"]) == (p.rank, p.score, p.signals)
        assert (
            row["file"].endswith("corpus.jsonl") and row["row"] >= 1 and row["source"] in ("places", "trade", "weather")
        )
        assert set(row["ranks"]) == {"bm25", "dense", "gradient", "match", "names", "hop"} and row["facts"]
        for start, end in row["words"]:
            assert row["text"][start:end].lower() in {"capital", "oz", "mantua", "avalon", "arden"}
    best = max(rows, key=lambda row: row["signals"]["bm25"])
    assert best["ranks"]["bm25"] == 1
    (copied,) = [r for r in gather(asked[2], rankings, 1)]
    assert copied["longest_overlap"] == 7 and [copied["text"][s:e] for s, e in copied["overlap"]] == [
        "Traders from Verona sailed past the coast"
    ]


def test_a_policy_proposes_by_the_evidence_and_redacts_what_its_labels_mark(traced):
    asked = read_asked(str(traced))
    rankings = {ranking[0].fact_id: ranking for ranking in read_rankings(str(traced))}
    (row,) = gather(asked[2], rankings, 1)
    row |= {"not_scored": []}
    assert propose(asked[2], row, DEFAULT) == {"action": "review", "spans": [], "rule": "default: no rule holds"}
    policy = policy_from_row({"name": "p", "rules": [{"when": {"labels": {"pii/*": 0.5}}, "propose": "redact"}]})
    label = {"scorer": "pii", "version": "1", "threshold": 0.5, "score": 1.0}
    marked = row | {"labels": [label | {"label": "NAME", "spans": [[13, 19], [8, 15]]}]}
    assert propose(asked[2], marked, policy)["spans"] == [[8, 19]]
    other = label | {"scorer": "hf", "label": "toxic", "spans": [[0, 3]]}
    assert propose(asked[2], row | {"labels": [other, *marked["labels"]]}, policy)["spans"] == [[8, 19]]
    whole = row | {"labels": [label | {"label": "NAME", "spans": []}]}
    told = propose(asked[2], whole, policy)
    assert told["action"] == "review" and told["rule"].endswith("no scorer says which part to redact")


def test_without_a_checkpoint_no_model_is_asked(tmp_path, corpus, caplog):
    index.run(IndexConfig(corpus=corpus, output=str(tmp_path / "index")))
    requests = write_jsonl(tmp_path / "r.jsonl", REQUESTS[:1])
    trace.run(TraceConfig(index=str(tmp_path / "index"), requests=requests, output=str(tmp_path / "rankings")))
    (asked,) = read_asked(str(tmp_path / "rankings"))
    assert asked.said_by_model is None and asked.cases[0].said is None and asked.model == ""
    assert "no model was asked whether it says what they say" in caplog.text
    assert json.loads((tmp_path / "rankings/manifest.json").read_text())["details"]["requests"] == ["capitals"]


@pytest.mark.parametrize("options", [{}, {"facts": "f.jsonl", "requests": "r.jsonl"}])
def test_either_facts_or_requests(options):
    with pytest.raises(ConfigError, match="--facts: expected either facts or --requests, found"):
        TraceConfig(index="i", output="o", **options)
