"""Scoring passages as a stage: labels in the given order whatever the shards, a dead letter for what fails."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from attribution.scorers import load_scorer, score_texts
from pipelines import score
from pipelines.storage import OutputFolder, join, read_bytes
from schemas.errors import ConfigError
from schemas.records import Passage, text_sha256

OWN = """
def shouting(texts):
    if "bad" in texts:
        raise RuntimeError("cannot read this")
    return [float(text.isupper()) for text in texts]

def broken(texts):
    return None
"""
TEXTS = ["LOUD", "write to ann@x.org", "bad", "quiet", "call +44 20 7946 0958", "AKIAIOSFODNN7EXAMPLE"]
PASSAGES = [
    Passage(f"e{n}", 7 * n, 7 * n + len(text), text, "s", text_sha256(text), "corpus.jsonl", n + 1)
    for n, text in enumerate(TEXTS)
]


@pytest.fixture
def own(tmp_path, monkeypatch) -> str:
    (tmp_path / "own_of_pipelines.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "python:own_of_pipelines:"


@pytest.mark.parametrize("size", [2, 1000])
def test_labels_come_in_order_whatever_the_shards(own, tmp_path, monkeypatch, size):
    monkeypatch.setattr(score, "SHARD", size)
    scorers = ["pii", "secrets@0.9", f"{own}shouting"]
    with OutputFolder(str(tmp_path / "run"), {"test": 1}) as output:
        scored, files = score.score_passages(PASSAGES, scorers, output)
        (file,) = files
        letters = [json.loads(line) for line in read_bytes(join(output.path, file.name)).splitlines()]
    expected = [[] for _ in TEXTS]
    for scorer in map(load_scorer, scorers):
        for of_passage, more in zip(expected, score_texts(scorer, TEXTS)[0], strict=True):
            of_passage += more
    assert [row["labels"] for row in scored] == [[label.to_row() for label in of] for of in expected]
    assert [[label["label"] for label in row["labels"]] for row in scored] == [
        ["shouting"],
        ["email"],
        [],
        [],
        ["phone"],
        ["AWS Access Key", "shouting"],
    ]
    failed = {"scorer": f"{own}shouting", "reason": "RuntimeError: cannot read this"}
    assert [row["not_scored"] for row in scored] == [[failed] if text == "bad" else [] for text in TEXTS]
    reason = f"example 'e2', from character 14: scorer {own}shouting: RuntimeError: cannot read this"
    told = {"file": "corpus.jsonl", "row": 3, "step": "score", "reason": reason, "record": ""}
    assert letters == [told] and file.rows == 1


def test_the_wrong_type_for_all_passages_leaves_nothing(own, tmp_path):
    with (
        pytest.raises(ConfigError, match=r"scorer python:own_of_pipelines:broken: expected a list .* all of the 6"),
        OutputFolder(str(tmp_path / "run"), {"test": 1}) as output,
    ):
        score.score_passages(PASSAGES, [f"{own}broken"], output)
    assert not [path for path in Path(tmp_path).iterdir() if "run" in path.name and path.is_dir()]


def test_no_passages_and_no_scorers(tmp_path):
    with OutputFolder(str(tmp_path / "a"), {"test": 1}) as output:
        assert score.score_passages([], ["pii"], output) == ([], [])
    with OutputFolder(str(tmp_path / "b"), {"test": 1}) as output:
        assert score.score_passages([replace(PASSAGES[0], text="")], [], output) == (
            [{"labels": [], "not_scored": []}],
            [],
        )


def test_a_scorer_that_is_named_twice_or_unknown_is_refused_before_anything_is_written():
    with pytest.raises(ConfigError, match="scorer pii: expected once, found 2 times"):
        score.load_scorers(["pii@0.5", "secrets", "pii"])
    with pytest.raises(ConfigError, match="scorer: expected hf:NAME_OR_FOLDER"):
        score.load_scorers(["piii"])
    assert [scorer.name for scorer in score.load_scorers(["pii", "secrets"])] == ["pii", "secrets"]
