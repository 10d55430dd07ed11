"""Near-duplicates over an index: planted copies are found with their place, whatever the shards."""

import json
from pathlib import Path

import pytest

from attribution.duplicates import Seeds
from pipelines import index
from pipelines.config import IndexConfig
from pipelines.duplicates import FOUND, find_duplicates
from pipelines.storage import OutputFolder, read_manifest
from schemas.errors import ConfigError
from schemas.records import text_sha256
from tests.pipelines.conftest import corpus_rows, write_jsonl

SEED = "The capital of Avalon is Arden, says a guide that was often printed and copied."
COPY = "the capital of Avalon is Arden says a guide that was often copied!"
LONG = " ".join(f"Word{n} stands here alone." for n in range(30)) + " " + COPY
PLANTED = {"seed": SEED, "copy": COPY, "long": LONG, "twin": SEED.replace("Arden", "Belmont")}


@pytest.fixture(scope="module")
def indexes(tmp_path_factory) -> list[str]:
    """The same corpus in shards of 7 passages, and in one."""
    room = tmp_path_factory.mktemp("duplicates")
    rows = corpus_rows() + [{"id": i, "text": text, "source": "guides"} for i, text in PLANTED.items()]
    corpus = write_jsonl(room / "corpus.jsonl", rows)
    for size in (7, 1000):
        index.run(
            IndexConfig(
                corpus=corpus, output=str(room / f"index-{size}"), signals="bm25", passages_per_shard=size,
                max_tokens=30, overlap=20, num_pseudo_facts=20,
            )
        )  # fmt: skip
    return [str(room / f"index-{size}") for size in (7, 1000)]


def found_in(folder: str, output: Path, seeds: list[tuple[str, str]], backwards: bool = False, **options):
    shards = read_manifest(folder, "index").details["shards"]
    step = -1 if backwards else 1
    with OutputFolder(str(output), {"test": 1}) as opened:
        return find_duplicates(folder, shards[::step], seeds[::step], opened, **options)


def test_planted_copies_are_found_whatever_the_shards_and_the_order(indexes, tmp_path):
    seeds = [("seed", SEED), ("camelot-0", "The capital of Camelot is Corioli."), ("seed", SEED)]
    results = [
        found_in(folder, tmp_path / f"{n}{backwards}", seeds, backwards)
        for n, folder in enumerate(indexes)
        for backwards in (False, True)
    ]
    assert len(read_manifest(indexes[0], "index").details["shards"]) > 7
    groups, rows = results[0]
    assert groups == {"seed": "copy", "copy": "copy", "long": "copy"}
    assert all(other == (groups, rows) for other in results[1:])


def test_a_match_has_the_passage_and_its_place(indexes, tmp_path):
    _, rows = found_in(indexes[0], tmp_path / "o", [("seed", SEED)])
    (copy,) = [row for row in rows if row["example_id"] == "copy"]
    ((_, similarity),) = Seeds([SEED]).near(COPY)
    told = {"seed": "seed", "similarity": similarity, "text": COPY, "start": 0, "end": len(COPY), "source": "guides"}
    assert told.items() <= copy.items()
    assert copy["sha256"] == text_sha256(COPY) and copy["row"] == len(corpus_rows()) + 2
    passages = [row for row in rows if row["example_id"] == "long"]
    assert passages and all(row["start"] > 0 and LONG[row["start"] : row["end"]] == row["text"] for row in passages)


def test_a_shard_without_a_match_writes_no_file(indexes, tmp_path):
    with OutputFolder(str(tmp_path / "o"), {"test": 1}) as output:
        shards = read_manifest(indexes[0], "index").details["shards"]
        assert find_duplicates(indexes[0], shards, [("none", "Nobody wrote this.")], output) == ({}, [])
        place = Path(output.path)
        assert [file.name for file in (place / FOUND).iterdir()] == ["seeds.jsonl"]
        records = [json.loads(file.read_text()) for file in (place / ".stages/duplicates").glob("0*.json")]
        assert sum(record["counts"]["in"] for record in records) == sum(shard["rows"] for shard in shards)


def test_a_threshold_out_of_range_is_refused_by_the_worker(indexes, tmp_path):
    with pytest.raises(ConfigError, match=r"expected 0\.2 to 1"):
        found_in(indexes[0], tmp_path / "o", [("seed", SEED)], threshold=0.0)
