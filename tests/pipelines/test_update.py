"""index --update: the same bytes as a full build, refusals, and a kill at any moment."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines import index, storage, trace, update
from pipelines.__main__ import main
from pipelines.config import IndexConfig, TraceConfig
from pipelines.stage import METRICS, RunShard
from pipelines.storage import GENERATION
from schemas.errors import ArtifactMismatch, ConfigError, FailureBudgetExceeded
from tests.pipelines.conftest import corpus_rows, index_config, write_jsonl

ROWS = corpus_rows()
# With an optimizer state nothing of TrackStar's gradients is estimated from a sample, which would be another.
OPTIONS = {"passages_per_shard": 11, "feature_dtype": "int8", "gradients": "trackstar"}


def files_of(folder) -> dict[str, str]:
    """sha256 by name, generations left out; every file in the folder is one that the manifest lists."""
    manifest = json.loads(Path(folder, "manifest.json").read_text())
    found = {str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file()}
    assert found - {METRICS} == {info["name"] for info in manifest["files"]} | {"manifest.json"}
    return {GENERATION.sub("", info["name"]): info["sha256"] for info in manifest["files"]}


def rankings(index_folder, facts, output) -> list[dict]:
    trace.run(TraceConfig(index=str(index_folder), facts=str(facts), output=str(output), top_k=20))
    return [json.loads(line) for line in Path(output, "rankings.jsonl").read_text().splitlines()]


def updating(folder, corpus) -> IndexConfig:
    return IndexConfig(corpus=str(corpus), output=str(folder), update=True)


@pytest.fixture(scope="module")
def grown(tmp_path_factory, checkpoints, encoder) -> Path:
    """The index of two files (before/), and of the same two and a third (whole/); the third repeats an id of theirs."""
    place = tmp_path_factory.mktemp("grown")
    (place / "corpus").mkdir()
    write_jsonl(place / "corpus/a.jsonl", [*ROWS[:20], {"id": ROWS[3]["id"], "text": "Said twice."}])
    write_jsonl(place / "corpus/b.jsonl", ROWS[20:40])
    options = OPTIONS | {"max_dead_fraction": 0.2}
    index.run(index_config(str(place / "corpus/*.jsonl"), place / "before", checkpoints, encoder, **options))
    again = [{"id": ROWS[5]["id"], "text": "Said before."}, {"id": "twice", "text": "Once, for Oz."}]
    write_jsonl(place / "corpus/c.jsonl", [*ROWS[40:], *again, {"id": "twice", "text": "Again."}])
    index.run(index_config(str(place / "corpus/*.jsonl"), place / "whole", checkpoints, encoder, **options))
    return place


def test_an_updated_index_has_the_bytes_of_a_full_build_and_ranks_alike(tmp_path, grown, facts):
    shutil.copytree(grown / "before", tmp_path / "index")
    untouched = {info.name: info.sha256 for info in storage.read_manifest(str(grown / "before"), "index").files}
    manifest = update.run(updating(tmp_path / "index", grown / "corpus/*.jsonl"))
    assert files_of(tmp_path / "index") == files_of(grown / "whole")
    whole = storage.read_manifest(str(grown / "whole"), "index")
    assert manifest.counts == whole.counts == {"in": 54, "kept": 51, "removed": 0, "dead": 3}
    assert manifest.details["fusion"] == whole.details["fusion"]
    assert manifest.details["generation"] == 2 and [h["files"] for h in manifest.details["history"]] == [2, 1]
    kept = {info.name: info.sha256 for info in manifest.files}
    shards = [name for name in untouched if re.search(r"\d{5}-\d{5}", name)]
    assert shards and all(kept[name] == untouched[name] for name in shards)
    assert "bm25/statistics.g2.arrow" in kept
    assert rankings(tmp_path / "index", facts, tmp_path / "r") == rankings(grown / "whole", facts, tmp_path / "w")


def test_the_same_files_again_change_nothing(tmp_path, grown):
    shutil.copytree(grown / "whole", tmp_path / "index")
    before = (tmp_path / "index/manifest.json").read_bytes()
    update.run(updating(tmp_path / "index", grown / "corpus/*.jsonl"))
    assert (tmp_path / "index/manifest.json").read_bytes() == before


@pytest.mark.parametrize("moment", ["scan", "bm25", "gradient-01", "pseudo-queries", "commit", "sweep"])
def test_a_killed_update_leaves_the_old_index_or_the_new_one_and_resumes(tmp_path, monkeypatch, grown, facts, moment):
    shutil.copytree(grown / "before", tmp_path / "index")
    config = updating(tmp_path / "index", grown / "corpus/*.jsonl")
    (tmp_path / "index/dense/left-by-a-kill.faiss").write_bytes(b"half")
    process, write, complete = RunShard.process, storage.write_bytes, storage._complete

    def dying(self, shard):
        if self.stage.startswith(moment):
            raise KeyboardInterrupt
        return process(self, shard)

    def no_manifest(path, data):
        if path.endswith("manifest.json") and moment == "commit":
            raise KeyboardInterrupt
        write(path, data)

    def no_sweep(folder):
        if moment == "sweep":
            raise KeyboardInterrupt
        complete(folder)

    with monkeypatch.context() as patch:
        patch.setattr(RunShard, "process", dying)
        patch.setattr(storage, "write_bytes", no_manifest)
        patch.setattr(storage, "_complete", no_sweep)
        with pytest.raises(BaseException):  # noqa: B017 (the runner may wrap the interrupt)
            update.run(config)
    readable = "whole" if moment == "sweep" else "before"
    assert rankings(tmp_path / "index", facts, tmp_path / "r") == rankings(grown / readable, facts, tmp_path / "w")
    if moment not in ("scan", "sweep"):
        other = IndexConfig(corpus=str(grown / "corpus/c.jsonl"), output=config.output, update=True)
        with pytest.raises(ConfigError, match=r"\.stages: an unfinished job .* differs in corpus; delete it"):
            update.run(other)
    update.run(config)
    assert files_of(tmp_path / "index") == files_of(grown / "whole")


def test_what_cannot_be_added_is_refused_and_leaves_the_index_as_it_was(tmp_path, grown, checkpoints):
    shutil.copytree(grown / "before", tmp_path / "index")
    before = files_of(tmp_path / "index")

    def refused(error, message, corpus="corpus/c.jsonl", **options):
        config = IndexConfig(corpus=str(grown / corpus), output=str(tmp_path / "index"), update=True, **options)
        with pytest.raises(error, match=message):
            update.run(config)
        assert files_of(tmp_path / "index") == before

    refused(
        ConfigError, r"--max_tokens: expected 30, as the index at .* was made, found 64; leave it out", max_tokens=64
    )
    write_jsonl(
        grown / "odd.jsonl", [{"id": "x"}, {"id": "y", "text": "One."}, {"id": ROWS[0]["id"], "text": "Known."}]
    )
    refused(FailureBudgetExceeded, r"2 of 3 records refused.*(?s:.*)the id stands earlier in the corpus", "odd.jsonl")
    write_jsonl(grown / "all.jsonl", ROWS[:2])
    refused(ConfigError, "expected records with an id and a text, found none among 2", "all.jsonl")
    changed = json.loads((tmp_path / "index/manifest.json").read_text())
    changed["details"]["corpus"]["files"][0][1] += 1
    spoil(tmp_path / "index", changed)
    refused(
        ConfigError, r"a\.jsonl: expected the \d+ bytes that .* was made from, found \d+; put new", "corpus/*.jsonl"
    )
    changed["details"]["gradient"]["checkpoints"][0]["model_sha256"] = "0"
    spoil(tmp_path / "index", changed)
    refused(ArtifactMismatch, "checkpoint weights at .*expected 0, found")


def spoil(folder, row: dict) -> None:
    from schemas.manifest import content_sha256

    Path(folder, "manifest.json").write_text(json.dumps(row | {"sha256": content_sha256(row)}))


def test_an_option_on_the_command_line_is_refused_though_it_is_the_default(tmp_path, grown, capsys):
    shutil.copytree(grown / "before", tmp_path / "index")
    arguments = ["--update", "--corpus", str(grown / "corpus/c.jsonl"), "--output", str(tmp_path / "index"), "--quiet"]
    assert main(["index", *arguments, "--max_tokens", "256"]) == 2
    assert "--max_tokens: expected 30" in capsys.readouterr().err
    assert main(["index", *arguments, "--max_tokens", "30", "--dry_run"]) == 2
    assert "--dry_run: expected it without --update" in capsys.readouterr().err
    assert main(["index", *arguments]) == 0


def test_new_vectors_join_an_approximate_index_in_parts_of_their_own(tmp_path, monkeypatch):
    from attribution import dense

    monkeypatch.setattr(dense, "APPROXIMATE_FROM", 500)
    generator = np.random.default_rng(0)
    rows = [
        {"id": f"{i}", "text": f"w{i % 7} w{i % 11} x{i}", "v": generator.normal(size=16).round(4).tolist()}
        for i in range(900)
    ]
    for name, part in (("a", rows[:400]), ("b", rows[400:700]), ("c", rows[700:])):
        write_jsonl(tmp_path / f"{name}.jsonl", part)
    options = {"embedding_field": "v", "passages_per_shard": 150, "num_pseudo_facts": 5}
    first = index.run(IndexConfig(corpus=str(tmp_path / "a.jsonl"), output=str(tmp_path / "index"), **options))
    assert first.details["dense"]["search"] == "exact"
    second = update.run(updating(tmp_path / "index", tmp_path / "[ab].jsonl"))
    assert second.details["dense"]["search"] == "approximate" and second.details["dense"]["approximate"]["of"] == 700
    third = update.run(updating(tmp_path / "index", tmp_path / "*.jsonl"))
    files_of(tmp_path / "index")
    one, two = second.details["dense"]["approximate"], third.details["dense"]["approximate"]
    assert two["trained"] == one["trained"] and two["parts"][: len(one["parts"])] == one["parts"]
    assert [s for part in two["parts"] for s in part["shards"]] == [s["name"] for s in third.details["shards"]]
    assert two["recall_at_10"] >= dense.MIN_RECALL
    from pipelines.search import open_approximate

    found = open_approximate(str(tmp_path / "index"), third.details["dense"])
    queries = np.array([row["v"] for row in rows[690:720]], np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    assert all(i in ids for i, ids in enumerate(found.propose(queries, 10).tolist(), start=690))
