"""purge: nothing of a removed document is left in any file of the index, and the rest ranks as if it had never been."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attribution import dense
from attribution.bm25 import word_tokenizer
from attribution.feature_rows import RowReader
from attribution.pseudo_facts import sample_key
from pipelines import index, purge, storage, trace, update
from pipelines.__main__ import main
from pipelines.config import IndexConfig, PurgeConfig, TraceConfig
from pipelines.stage import RunShard
from schemas.errors import ArtifactMismatch, ConfigError
from schemas.records import text_sha256
from tests.pipelines.conftest import corpus_rows, index_config, write_jsonl
from tests.pipelines.test_update import files_of, spoil

LONG = " ".join(f"zanzibar{n}" for n in range(60))  # many passages
PLANTED = [
    {"id": "planted-1", "text": "The vizier of Xanadu was called Quillfeather.", "source": "secret"},
    {"id": "planted-2", "text": f"Nobody may ever say {LONG}.", "source": "secret"},
]
KEPT = corpus_rows()


def removal_rows(rows: list[dict], **fields) -> list[dict]:
    told = {"decision": "approved", "reason": "asked for", "decided_by": "ann"}
    return [{"example_id": row["id"], "sha256": text_sha256(row["text"]), **told, **fields} for row in rows]


def write_corpus(place: Path, name: str, planted: list[dict]) -> str:
    """Two files; where a document is planted, a record that could not be read names it too."""
    (place / name).mkdir()
    letter = [{"id": "planted-1", "text": ["The vizier of Xanadu was called Quillfeather."]}] if planted else []
    write_jsonl(place / name / "a.jsonl", [*KEPT[:9], *planted, *KEPT[9:25], *letter])
    write_jsonl(place / name / "b.jsonl", KEPT[25:])
    return str(place / name / "*.jsonl")


@pytest.fixture(scope="module", params=["float32", "int8"])
def planted(request, tmp_path_factory, checkpoints, encoder) -> Path:
    """An index with planted documents (index/), and one of the cleaned corpus (clean/)."""
    place = tmp_path_factory.mktemp("planted")
    options = {"passages_per_shard": 12, "feature_dtype": request.param, "max_dead_fraction": 0.1}
    options["gradients"] = "trackstar"  # with second moments to be made anew, and norms that tell a row from others
    for name, rows in (("index", PLANTED), ("clean", [])):
        corpus = write_corpus(place, f"{name}-corpus", rows)
        index.run(index_config(corpus, place / name, checkpoints, encoder, **options))
    write_jsonl(place / "removals.jsonl", removal_rows([*PLANTED, {"id": "nowhere", "text": "x"}]))
    return place


def purged(place: Path, target: Path, removals: Path | None = None, **options) -> dict:
    purge.run(PurgeConfig(index=str(target), removals=str(removals or place / "removals.jsonl"), **options))
    return json.loads(Path(f"{target}.purged-2.json").read_text())


def decode(folder: Path) -> dict[str, list[bytes]]:
    """Every file of an index by the reader of its kind, as what it holds: words, and rows of numbers."""
    held: dict[str, list[bytes]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name, found = str(path.relative_to(folder)), [path.read_bytes()]
        if path.name.startswith("sample"):
            found += pq.read_table(path)["key"].to_pylist()
        elif path.suffix == ".parquet":
            found += [json.dumps(row, ensure_ascii=False).encode() for row in pq.read_table(path).to_pylist()]
        elif path.suffix == ".arrow":
            found += [f"term {term}.".encode() for term in pa.ipc.open_file(str(path)).read_all()["term"].to_pylist()]
        elif path.name.endswith(".hashes.npy"):
            found += [row.tobytes() for row in np.ascontiguousarray(np.load(path).T)]
        elif path.suffix == ".faiss" and not path.name.startswith(("approximate", "trained")):
            found += [row.tobytes() for row in np.array(dense.ShardVectors(str(path)).vectors)]
        elif re.fullmatch(r"gradients/[^/]*/\d{5}-\d{5}(\.g\d+)?\.npy", name):
            for _, rows in RowReader(str(path.with_suffix(""))).blocks():
                found += [row.tobytes() for row in rows if row.any()]
        elif re.fullmatch(r"gradients/.*\.(norms|scales)\.npy", name):
            found += [b"norm" + row.tobytes() for row in np.load(path) if row.any()]
        held[name] = found
    return held


def traces_of_planted(folder: Path) -> dict[str, list[bytes]]:
    """Each kind of thing that an index holds of the planted documents, as `decode` gives it."""
    tables = [pq.read_table(path).to_pylist() for path in sorted((folder / "examples").iterdir())]
    words = {secret: set() for secret in (True, False)}
    for row in (row for rows in tables for row in rows):
        words[row["source"] == "secret"] |= set(word_tokenizer()(row["text"]))
    terms = words[True] - words[False]
    assert len(terms) > 50
    kinds: dict[str, list[bytes]] = {
        "id": [row["id"].encode() for row in PLANTED],
        "hash": [text_sha256(row["text"]).encode() for row in PLANTED],
        "text": [b"Quillfeather", b"zanzibar7"],
        "term": [f"term {term}.".encode() for term in terms],
        "id hash": [hashlib.blake2b(row["id"].encode(), digest_size=16).digest() for row in PLANTED],
        "sample key": [], "span": [], "vector": [], "feature": [], "norm": [],
    }  # fmt: skip
    for path in sorted((folder / "examples").iterdir()):
        rows = pq.read_table(path).to_pylist()
        for number, row in enumerate(rows):
            if row["source"] != "secret":
                continue
            kinds["sample key"].append(sample_key(0, row["example_id"], row["start"]))
            kinds["span"].append(json.dumps(row, ensure_ascii=False).encode())
            kinds["vector"].append(
                dense.ShardVectors(str(folder / "dense" / f"{path.stem}.faiss")).vectors[number].tobytes()
            )
            for place in sorted((folder / "gradients").iterdir()):
                (_, features), *_ = RowReader(str(place / path.stem)).blocks()
                kinds["feature"].append(features[number].tobytes())
                kinds["norm"].append(b"norm" + np.load(place / f"{path.stem}.norms.npy")[number].tobytes())
    return kinds


def holding(held: dict[str, list[bytes]], wanted: bytes) -> list[str]:
    return [name for name, found in held.items() if any(wanted in part for part in found)]


def rankings(index_folder, facts, output) -> dict:
    trace.run(TraceConfig(index=str(index_folder), facts=str(facts), output=str(output), top_k=100))
    rows = [json.loads(line) for line in Path(output, "rankings.jsonl").read_text().splitlines()]
    return {(row["fact_id"], row["example_id"], row["start"]): row for row in rows}


def test_nothing_of_a_removed_document_is_left_in_any_file(tmp_path, planted):
    target = tmp_path / "index"
    shutil.copytree(planted / "index", target)
    before, kinds = decode(target), traces_of_planted(target)
    for kind, all_wanted in kinds.items():
        assert all_wanted
        assert all(holding(before, wanted) for wanted in all_wanted), kind
    certificate = purged(planted, target)
    files_of(target)  # no file that the manifest does not list
    after = decode(target)
    left = {
        kind: [holding(after, wanted) for wanted in found if holding(after, wanted)] for kind, found in kinds.items()
    }
    assert left == {kind: [] for kind in kinds}
    postings = lambda d: sum(len(np.load(p)) for p in d.glob("bm25/*/rows.npy"))  # noqa: E731
    assert postings(target) == postings(planted / "clean")
    assert sorted(r["example_id"] for r in certificate["removed"]) == ["planted-1", "planted-2"]
    assert certificate["not_found"] == ["nowhere"] and certificate["generation"] == 2
    old = json.loads((planted / "index/manifest.json").read_text())
    new = json.loads((target / "manifest.json").read_text())
    old_files, new_files = ({f["name"]: f["sha256"] for f in m["files"]} for m in (old, new))
    assert {f["name"]: f["sha256"] for f in certificate["files"]} == {
        name: sha for name, sha in old_files.items() if name not in new_files
    }
    assert all(f["new_name"] is None or new_files[f["new_name"]] == f["new_sha256"] for f in certificate["files"])
    assert any(f["new_name"] is None for f in certificate["files"])  # a shard of nothing else is gone
    signature = certificate.pop("sha256")
    assert (
        hashlib.sha256(json.dumps(certificate, sort_keys=True, separators=(",", ":")).encode()).hexdigest() == signature
    )
    assert "Quillfeather" not in json.dumps(certificate)
    assert new["counts"] == {"in": 53, "kept": 50, "removed": 2, "dead": 1}


def test_a_purged_index_ranks_as_one_of_the_cleaned_corpus(tmp_path, planted, facts):
    shutil.copytree(planted / "index", tmp_path / "index")
    purged(planted, tmp_path / "index")
    found, expected = (
        rankings(tmp_path / "index", facts, tmp_path / "r"),
        rankings(planted / "clean", facts, tmp_path / "w"),
    )
    assert found.keys() == expected.keys() and len(found) > 100
    exact = (
        json.loads((tmp_path / "index/manifest.json").read_text())["details"]["gradient"]["feature_dtype"] == "float32"
    )
    for key, row in expected.items():
        assert found[key]["signals"]["bm25"] == row["signals"]["bm25"]
        assert found[key]["signals"]["dense"] == pytest.approx(row["signals"]["dense"], rel=1e-5, abs=1e-7)
        # int8: the curvature is that of the rows as they are stored, to 1/127 of a layer's largest entry.
        tolerance = 1e-5 if exact else 2e-2
        assert found[key]["signals"]["gradient"] == pytest.approx(
            row["signals"]["gradient"], rel=tolerance, abs=tolerance
        )


@pytest.mark.parametrize("planted", ["int8"], indirect=True)
@pytest.mark.parametrize("moment", ["find", "purge", "bm25", "curvature-01", "pseudo-queries", "commit", "sweep"])
def test_a_killed_purge_leaves_the_old_index_or_the_new_one_and_resumes(tmp_path, monkeypatch, planted, moment):
    shutil.copytree(planted / "index", tmp_path / "whole")
    purged(planted, tmp_path / "whole")
    target = tmp_path / "index"
    shutil.copytree(planted / "index", target)
    before = (target / "manifest.json").read_bytes()
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
            purged(planted, target)
    assert ((target / "manifest.json").read_bytes() == before) == (moment != "sweep")
    for info in storage.read_manifest(str(target), "index").files:
        storage.verified(str(target), info.name)
    if moment == "purge":
        with pytest.raises(ConfigError, match=r"\.stages: an unfinished job .*differs in .*verb"):
            update.run(IndexConfig(corpus=str(planted / "clean-corpus/*.jsonl"), output=str(target), update=True))
    certificate = purged(planted, target)
    assert files_of(target) == files_of(tmp_path / "whole")
    assert [r["example_id"] for r in certificate["removed"]] == ["planted-1", "planted-2"]


@pytest.mark.parametrize("planted", ["int8"], indirect=True)
def test_what_cannot_be_purged_is_refused_and_leaves_the_index_as_it_was(tmp_path, planted, capsys):
    target = tmp_path / "index"
    shutil.copytree(planted / "index", target)
    before = files_of(target)

    def refused(error, message, rows, **options):
        removals = write_jsonl(tmp_path / "r.jsonl", rows)
        with pytest.raises(error, match=message):
            purge.run(PurgeConfig(index=str(target), removals=removals, **options))
        assert files_of(target) == before and not list(tmp_path.glob("index.purged*"))

    refused(
        ConfigError, "at least one removal whose decision is 'approved'", removal_rows(PLANTED, decision="proposed")
    )
    refused(ConfigError, "line 1: not a removal: field 'spans' must hold", removal_rows(PLANTED, action="redact"))
    refused(
        ArtifactMismatch, r"1 that have another text in .*\(planted-1\)", [{**removal_rows(PLANTED)[0], "sha256": "0"}]
    )
    refused(ConfigError, "found none of 1 in it", removal_rows([{"id": "nowhere", "text": "x"}]))
    refused(ConfigError, "found all of it removed", removal_rows([*PLANTED, *KEPT]))
    inside = {"certificate": str(target / "c.json")}
    refused(ConfigError, "--certificate: expected a place outside the index", removal_rows(PLANTED), **inside)
    arguments = ["--index", str(target), "--removals", str(planted / "removals.jsonl"), "--quiet"]
    assert main(["purge", *arguments, "--certificate", str(tmp_path / "c.json")]) == 0
    assert len(json.loads((tmp_path / "c.json").read_text())["removed"]) == 2
    assert main(["purge", *arguments]) == 2
    assert "found none of 3 in it; was it purged of them before" in capsys.readouterr().err
    changed = json.loads((target / "manifest.json").read_text()) | {"format_version": 2}
    spoil(target, changed)
    with pytest.raises(ArtifactMismatch, match="expected format version 6, found 2"):
        purged(planted, target)


def test_a_redaction_takes_the_whole_document_out_of_an_index(tmp_path, caplog):
    corpus = write_corpus(tmp_path, "corpus", PLANTED)
    options = {"signals": "bm25", "passages_per_shard": 12, "max_dead_fraction": 0.1, "num_pseudo_facts": 5}
    index.run(IndexConfig(corpus=corpus, output=str(tmp_path / "index"), **options))
    redacted = removal_rows(PLANTED[:1], action="redact", spans=[[4, 10]])
    path = Path(write_jsonl(tmp_path / "removals.jsonl", [*redacted, *removal_rows(PLANTED[1:], decision="rejected")]))
    certificate = purged(tmp_path, tmp_path / "index", path)
    assert [(row["example_id"], row["action"]) for row in certificate["removed"]] == [("planted-1", "redact")]
    held = decode(tmp_path / "index")
    assert not holding(held, b"Quillfeather") and not holding(held, b"vizier") and holding(held, b"zanzibar7")
    assert "1 documents were to be redacted: an index gives them up whole" in caplog.text


def test_an_estimate_that_a_removed_text_went_into_is_made_anew_and_all_features_with_it(tmp_path, checkpoints, facts):
    options = {
        "checkpoints": (checkpoints,),
        "gradients": "trackstar",
        "optimizer_correction": "estimate",
        "feature_dtype": "float32",
    }
    options |= {"max_tokens": 30, "overlap": 4, "projection_dim": 8, "num_pseudo_facts": 20, "max_dead_fraction": 0.1}
    for name, rows in (("index", PLANTED), ("clean", [])):
        corpus = write_corpus(tmp_path, f"{name}-corpus", rows)
        index.run(IndexConfig(corpus=corpus, output=str(tmp_path / name), passages_per_shard=12, **options))
    purged(tmp_path, tmp_path / "index", Path(write_jsonl(tmp_path / "r.jsonl", removal_rows(PLANTED))))
    sha = files_of(tmp_path / "index")
    assert (
        sha["gradients/00-step-000100/moments.safetensors"]
        == files_of(tmp_path / "clean")["gradients/00-step-000100/moments.safetensors"]
    )
    found, expected = (
        rankings(tmp_path / "index", facts, tmp_path / "a"),
        rankings(tmp_path / "clean", facts, tmp_path / "b"),
    )
    for key, row in expected.items():
        assert found[key]["signals"]["gradient"] == pytest.approx(row["signals"]["gradient"], rel=1e-5, abs=1e-5)


def test_an_approximate_index_is_trained_anew_only_where_its_sample_held_a_removed_vector(tmp_path, monkeypatch):
    monkeypatch.setattr(dense, "APPROXIMATE_FROM", 500)
    monkeypatch.setattr(dense, "PART", 300)
    monkeypatch.setattr(dense, "sample_size", lambda count: 400)
    generator = np.random.default_rng(0)
    rows = [
        {"id": f"n{i}", "text": f"w{i % 7} w{i % 11} x{i}", "v": generator.normal(size=16).round(4).tolist()}
        for i in range(900)
    ]
    corpus = write_jsonl(tmp_path / "a.jsonl", rows)
    options = {"embedding_field": "v", "passages_per_shard": 150, "num_pseudo_facts": 5}
    first = index.run(IndexConfig(corpus=corpus, output=str(tmp_path / "index"), **options))
    recorded = first.details["dense"]["approximate"]
    sample = set(np.load(tmp_path / "index" / recorded["sample"]).tolist())
    outside = [i for i in range(300) if i not in sample][:5]

    def remove(numbers):
        removals = write_jsonl(tmp_path / "r.jsonl", removal_rows([rows[i] for i in numbers]))
        manifest = purge.run(PurgeConfig(index=str(tmp_path / "index"), removals=removals))
        files_of(tmp_path / "index")
        now = manifest.details["dense"]["approximate"]
        from pipelines.search import open_approximate

        kept = {row["id"]: row["v"] for row in rows}
        ids = {}
        for shard in manifest.details["shards"]:
            names = pq.read_table(tmp_path / f"index/examples/{shard['name']}.parquet")["example_id"].to_pylist()
            ids |= dict(zip(names, range(shard["offset"], shard["offset"] + shard["rows"]), strict=True))
        held = list(ids)[::90]
        queries = np.array([kept[name] for name in held], np.float32)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        proposed = open_approximate(str(tmp_path / "index"), manifest.details["dense"]).propose(queries, 10)
        assert all(ids[name] in found for name, found in zip(held, proposed.tolist(), strict=True))
        assert set(proposed.ravel().tolist()) - {-1} <= set(ids.values())
        return now, ids

    now, ids = remove(outside)
    assert now["trained"] == recorded["trained"] and now["parts"][:2] == recorded["parts"][1:]
    moved = set(np.load(tmp_path / "index" / now["sample"]).tolist())
    names = {number: name for name, number in ids.items()}
    assert {names[i] for i in moved} == {f"n{i}" for i in sample}
    again, _ = remove([int(names[next(iter(moved))][1:])])
    assert again["trained"] != now["trained"] and again["of"] == 894
