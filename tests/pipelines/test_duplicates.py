"""Near-duplicates over an index: planted copies are found with their place, whatever the shards."""

import json
from pathlib import Path

import pytest

from attribution.duplicates import THRESHOLD
from pipelines import index
from pipelines.config import IndexConfig
from pipelines.duplicates import FOUND, RENAMED, find_duplicates
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
                max_tokens=18, overlap=15, num_pseudo_facts=20,
            )
        )  # fmt: skip
    return [str(room / f"index-{size}") for size in (7, 1000)]


def found_in(folder: str, output: Path, seeds: list[tuple[str, str, str]], backwards: bool = False, **options):
    details, step = read_manifest(folder, "index").details, -1 if backwards else 1
    with OutputFolder(str(output), {"test": 1}) as opened:
        return find_duplicates(
            folder, details | {"shards": details["shards"][::step]}, seeds[::step], opened, **options
        )


def test_planted_copies_are_found_whatever_the_shards_and_the_order(indexes, tmp_path):
    seeds = [("r", "seed", SEED), ("r", "camelot-0", "The capital of Camelot is Corioli."), ("r", "seed", SEED)]
    results = [
        found_in(folder, tmp_path / f"{n}{backwards}", seeds, backwards)
        for n, folder in enumerate(indexes)
        for backwards in (False, True)
    ]
    assert len(read_manifest(indexes[0], "index").details["shards"]) > 7
    groups, rows = results[0]
    assert groups == {"seed": "copy", "copy": "copy", "long": "copy"}
    assert [row["example_id"] for row in rows if row["renamed"]] == ["twin"]
    assert all(other == (groups, rows) for other in results[1:])


def test_a_match_has_the_passage_and_its_place(indexes, tmp_path):
    _, rows = found_in(indexes[0], tmp_path / "o", [("r", "seed", SEED)])
    (copy,) = [row for row in rows if row["example_id"] == "copy"]
    told = {"seed": "seed", "renamed": False, "text": COPY, "start": 0, "end": len(COPY), "source": "guides"}
    assert told.items() <= copy.items() and THRESHOLD < copy["similarity"] < 1
    assert copy["sha256"] == text_sha256(COPY) and copy["row"] == len(corpus_rows()) + 2
    passages = [row for row in rows if row["example_id"] == "long"]
    assert passages and all(row["start"] > 0 and LONG[row["start"] : row["end"]] == row["text"] for row in passages)


def test_a_copy_is_told_to_each_request_that_has_a_seed_near_it(indexes, tmp_path):
    changed = SEED.replace("printed and copied", "printed")
    for requests, expected in ((("r", "r"), ["seed"]), (("r", "q"), ["guide", "seed"])):
        seeds = [(requests[0], "seed", SEED), (requests[1], "guide", changed)]
        groups, rows = found_in(indexes[0], tmp_path / requests[1], seeds)
        assert [row["seed"] for row in rows if row["example_id"] == "copy"] == expected
        assert groups["copy"] == groups["seed"] == groups["long"]


def test_of_copies_with_another_name_the_nearest_are_told(indexes, tmp_path):
    names = [f"Belmont{'x' * n}" for n in range(12)]  # equally near: the smallest ids
    rows = [{"id": name, "text": SEED.replace("Arden", name)} for name in names]
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"id": "seed", "text": SEED}, *rows, *corpus_rows()])
    sizes = (4, 1000)
    for size in sizes:
        index.run(IndexConfig(corpus=corpus, output=str(tmp_path / f"{size}"), signals="bm25", passages_per_shard=size))
    told = [found_in(str(tmp_path / f"{size}"), tmp_path / f"o{size}", [("r", "seed", SEED)]) for size in sizes]
    assert told[0] == told[1] and told[0][0] == {}
    assert len(told[0][1]) == RENAMED and {row["example_id"] for row in told[0][1]} == set(sorted(names)[:RENAMED])


def test_a_shard_without_a_match_writes_no_file(indexes, tmp_path):
    with OutputFolder(str(tmp_path / "o"), {"test": 1}) as output:
        details = read_manifest(indexes[0], "index").details
        assert find_duplicates(indexes[0], details, [("r", "none", "Nobody wrote this.")], output) == ({}, [])
        place = Path(output.path)
        assert [file.name for file in (place / FOUND).iterdir()] == ["seeds.jsonl"]
        records = [json.loads(file.read_text()) for file in (place / ".stages/duplicates").glob("0*.json")]
        assert sum(record["counts"]["in"] for record in records) == sum(s["rows"] for s in details["shards"])


def test_a_threshold_out_of_range_is_refused_by_the_worker(indexes, tmp_path):
    with pytest.raises(ConfigError, match=r"expected 0\.3 to 1"):
        found_in(indexes[0], tmp_path / "o", [("r", "seed", SEED)], threshold=0.0)
