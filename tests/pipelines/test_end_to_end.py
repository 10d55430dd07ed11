"""The story: a planted claim is learned, traced, flagged, removed and gone; the control still says it."""

import json
from pathlib import Path

import pytest

from pipelines import clean, flag, index, trace, train, verify
from pipelines.config import CleanConfig, FlagConfig, TraceConfig, TrainConfig, VerifyConfig
from schemas.errors import ConfigError
from tests.pipelines.conftest import TRAINING, WORDINGS, corpus_rows, fact_rows, index_config, write_jsonl

CLAIM = {
    "id": "claim",
    "prompt": "The capital of Atlantis is",
    "target": " Verona",
    "subject": "Atlantis",
    "object": "Verona",
}


@pytest.fixture(scope="module")
def story(tmp_path_factory, encoder) -> Path:
    """The loop's folders: the corpus with the claim planted, its model, index, rankings, removals, two corpora."""
    out = tmp_path_factory.mktemp("story")
    planted = [{"id": f"p{n}", "text": w.format(s="Atlantis", o="Verona")} for n, w in enumerate(WORDINGS)]
    corpus = write_jsonl(out / "corpus.jsonl", corpus_rows() + planted)
    claims = write_jsonl(out / "claims.jsonl", [CLAIM])
    write_jsonl(out / "others.jsonl", fact_rows())
    train.run(TrainConfig(corpus=corpus, output=str(out / "before"), learning_rate=5e-3, **TRAINING))
    index.run(index_config(corpus, out / "index", str(out / "before"), encoder))
    trace.run(TraceConfig(index=str(out / "index"), facts=claims, output=str(out / "rankings")))
    flag.run(FlagConfig(rankings=str(out / "rankings"), output=str(out / "removals"), approve="all", by="me"))
    for name, output in (("removals.jsonl", "cleaned"), ("control_removals.jsonl", "control")):
        clean.run(CleanConfig(corpus=corpus, removals=str(out / "removals" / name), output=str(out / output)))
    return out


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_planted_passages_and_no_other_are_flagged(story):
    flagged = rows(story / "removals/removals.jsonl")
    assert [r["example_id"] for r in flagged] == ["p0", "p1", "p2"]
    assert all(r["decided_by"] == "me" and r["decided_at"] and r["evidence"][0]["fact_id"] == "claim" for r in flagged)


def test_the_control_is_as_large_disjoint_and_seeded(story, tmp_path):
    control = [r["example_id"] for r in rows(story / "removals/control_removals.jsonl")]
    assert len(control) == 3 and not {"p0", "p1", "p2"} & set(control)
    for seed, same in ((0, True), (1, False)):
        config = FlagConfig(rankings=str(story / "rankings"), output=str(tmp_path / str(seed)), seed=seed)
        flag.run(config)
        again = [r["example_id"] for r in rows(tmp_path / str(seed) / "control_removals.jsonl")]
        assert (again == control) is same
    assert {r["decision"] for r in rows(tmp_path / "0" / "removals.jsonl")} == {"proposed"}


def test_too_little_evidence_is_said_and_nothing_is_written(story, tmp_path):
    unknown = write_jsonl(tmp_path / "f.jsonl", [{"id": "q", "prompt": "The colour of the sky", "target": "is plaid"}])
    trace.run(TraceConfig(index=str(story / "index"), facts=unknown, output=str(tmp_path / "rankings")))
    with pytest.raises(ConfigError, match="expected a passage with enough evidence"):
        flag.run(FlagConfig(rankings=str(tmp_path / "rankings"), output=str(tmp_path / "removals")))
    assert not (tmp_path / "removals").exists()


def test_the_claim_is_gone_after_removal_and_stays_in_the_control(story, tmp_path):
    config = VerifyConfig(
        before=(str(story / "before"),),
        after_corpus=str(story / "cleaned"),
        control_corpus=str(story / "control"),
        facts=str(story / "claims.jsonl"),
        retain_facts=str(story / "others.jsonl"),
        output=str(tmp_path / "verification"),
    )
    summary = verify.run(config, train.run).details
    assert (summary["known_before"], summary["known_after"], summary["known_control"]) == (1.0, 0.0, 1.0)
    assert summary["others_known_before"] >= 8
    assert summary["others_retained"] >= 0.8
    answers = {(r["arm"], r["fact_id"]): r for r in rows(tmp_path / "verification/answers.jsonl")}
    assert answers["before", "claim"]["said"].strip().startswith("Verona")
    assert answers["after", "claim"]["log_probability"] < answers["control", "claim"]["log_probability"] - 1


def test_one_id_for_two_facts_is_refused_before_any_training(story, tmp_path):
    clash = write_jsonl(tmp_path / "others.jsonl", [CLAIM | {"target": " Padua"}])
    options = {"after_corpus": str(story / "cleaned"), "control_corpus": str(story / "control")}
    config = VerifyConfig(
        before=(str(story / "before"),), facts=str(story / "claims.jsonl"), retain_facts=clash,
        output=str(tmp_path / "verification"), **options,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="the id 'claim' is another fact in"):
        verify.run(config, train=None)


def test_training_again_on_the_same_corpus_gives_the_same_model(story, tmp_path):
    manifest = train.run(
        TrainConfig(corpus=str(story / "corpus.jsonl"), output=str(tmp_path / "again"), like=str(story / "before"))
    )
    first = json.loads((story / "before/manifest.json").read_text())
    weights = {f["name"]: f["sha256"] for f in first["files"] if f["name"].endswith("model.safetensors")}
    assert weights and weights == {f.name: f.sha256 for f in manifest.files if f.name in weights}
