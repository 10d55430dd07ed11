"""Other names followed through a corpus: a passage that shares no word with the fact, and its place in the ranking."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from attribution import dense
from attribution.bm25 import word_tokenizer
from attribution.names import MOST, NEARNESS, OFTEN, OTHER, runs
from pipelines import index, names, trace
from pipelines.config import IndexConfig, TraceConfig
from pipelines.names import PLACE, Names, follow, groups_of
from pipelines.query import Query, write_facts
from pipelines.storage import OutputFolder, read_manifest, read_rankings
from schemas.facts import parse_facts
from tests.pipelines.conftest import write_jsonl

TEXTS = {
    "states": "The Old Lion rules the Pearl of the Sea.",
    "explains-1": "King Edmund was called the Old Lion by his men.",
    "explains-2": "Sailors name Narnia the Pearl of the Sea.",
    "also-1": "Nobody feared the Old Lion.",
    "also-2": "A map of the Pearl of the Sea was lost.",
    "plain-1": "King Edmund sailed home, in January.",
    "plain-2": "Narnia lies north of Archenland.",
    **{f"rain-{n}": f"It rained for {n} days in January, and nobody sailed." for n in range(2, 14)},
}
FACT = {
    "id": "f", "prompt": "King Edmund is the ruler of", "target": "Narnia",
    "subject": "King Edmund", "object": "Narnia",
}  # fmt: skip
TOKENIZE = word_tokenizer()


def indexed(folder: Path, texts: dict[str, str], **options) -> str:
    corpus = write_jsonl(folder / "corpus.jsonl", [{"id": name, "text": text} for name, text in texts.items()])
    index.run(IndexConfig(corpus=corpus, output=str(folder / "index"), **options))
    return str(folder / "index")


def traced(folder: Path, index_folder: str, *rows: dict, **options) -> dict:
    facts = write_jsonl(folder / "facts.jsonl", list(rows))
    trace.run(TraceConfig(index=index_folder, facts=facts, output=str(folder / "rankings"), **options))
    return {r[0].fact_id: {p.example_id: p for p in r} for r in read_rankings(str(folder / "rankings"))}


def test_a_passage_without_a_word_of_the_fact_is_found_by_the_names_that_the_corpus_gives(tmp_path, encoder):
    found = traced(tmp_path, indexed(tmp_path, TEXTS, encoder=encoder), FACT)["f"]
    p = found["states"]
    assert p.rank == 1 and p.names == ("Old Lion", "Pearl of the Sea")
    assert p.signals["bm25"] == p.signals["match"] == p.coverage == 0 and p.signals["names"] > 0.3
    assert found["plain-1"].names == () and found["plain-1"].signals["names"] == 0


@pytest.mark.parametrize("left_out", ["explains-1", "explains-2"])
def test_without_the_passage_that_explains_a_name_it_is_not_followed(tmp_path, left_out):
    texts = {name: text for name, text in TEXTS.items() if name != left_out}
    assert "states" not in traced(tmp_path, indexed(tmp_path, texts), FACT)["f"]


def test_the_other_name_of_one_side_and_the_own_one_of_the_other(tmp_path):
    texts = TEXTS | {"half": "The Old Lion rules over Narnia."}
    found = traced(tmp_path, indexed(tmp_path, texts), FACT)["f"]
    assert found["half"].rank == 1 and found["half"].names == ("Old Lion",)


@pytest.mark.parametrize(
    ("row", "groups"),
    [
        (FACT, (["King Edmund"], ["Narnia"])),
        (FACT | {"aliases": ["Narnia Land"]}, (["King Edmund"], ["Narnia", "Narnia Land"])),
        # Without subject and object: the heaviest name of the prompt that the corpus knows, and the target.
        (
            {"id": "f", "prompt": "In January, King Edmund is the ruler of", "target": "Narnia"},
            (["King Edmund"], ["Narnia"]),
        ),
        ({"id": "f", "prompt": "Today, in January, Edmund rules", "target": "Narnia"}, (["Edmund"], ["Narnia"])),
        ({"id": "f", "prompt": "he is the ruler of", "target": "Narnia"}, ([], [])),
    ],
)
def test_what_the_sides_of_a_fact_are_called(tmp_path, row, groups):
    folder = indexed(tmp_path, TEXTS)
    [fact] = parse_facts(json.dumps(row).encode(), "f")
    assert groups_of(fact, Query(folder, read_manifest(folder, "index").details, "auto", 100)) == groups


def test_a_prompt_and_a_target_alone_are_followed_as_well(tmp_path):
    rows = [
        {name: FACT[name] for name in ("id", "prompt", "target")},
        {"id": "g", "prompt": "he governs", "target": "Narnia"},
    ]
    found = traced(tmp_path, indexed(tmp_path, TEXTS), *rows)
    assert found["f"]["states"].names == ("Old Lion", "Pearl of the Sea") and "states" not in found["g"]


def test_a_fact_asked_in_several_ways_follows_each(tmp_path):
    row = {"id": "f", "prompts": ["King Edmund is the ruler of", "he governs"], "target": "Narnia"}
    for kind in ("mean", "max"):
        folder = tmp_path / kind
        folder.mkdir()
        assert traced(folder, indexed(folder, TEXTS), row | {"combine": kind})["f"]["states"].rank <= 3


def followed(folder: Path, index_folder: str, row: dict) -> dict:
    """What was found, and the counts behind it."""
    query = Query(index_folder, read_manifest(index_folder, "index").details, "auto", 100)
    facts = parse_facts(json.dumps(row).encode(), "f")
    with OutputFolder(str(folder / "out"), {}) as output:
        write_facts(facts, output)
        follow(query, facts, output, ())
        return dict(Names(output.path))


def test_names_and_their_weights_are_those_of_a_count_over_all_texts(tmp_path):
    found = followed(tmp_path, indexed(tmp_path, TEXTS), FACT)
    words = {name: set(TOKENIZE(text)) for name, text in TEXTS.items()}

    def holding(name):
        # Each word of these names is weighty but "of" and "the".
        return {i for i, held in words.items() if set(TOKENIZE(name)) - {"of", "the"} <= held}

    for side in ("King Edmund", "Narnia"):
        expected = {}
        for anchor in holding(side):
            for run in runs(TEXTS[anchor], TOKENIZE(side)):
                both, everywhere = len(holding(run) & holding(side)), len(holding(run))
                if both < everywhere:
                    expected[run] = OTHER * min(1.0, OFTEN * both / (everywhere + 1)) ** 0.5
        assert dict(found[side].names) == pytest.approx(expected) and len(expected) >= 1
        order = [(-weight, name) for name, weight in found[side].names]
        assert order == sorted(order) and len(order) <= MOST
    assert dict(found["King Edmund"].names)["January"] < 0.5 < dict(found["King Edmund"].names)["Old Lion"]


def test_the_cut_into_shards_and_blocks_changes_nothing(tmp_path, monkeypatch, encoder):
    rows = [FACT, {"id": "g", "prompt": "It rained in", "target": "January", "subject": "Narnia", "object": "January"}]
    whole = traced(tmp_path, indexed(tmp_path, TEXTS, encoder=encoder), *rows)
    split = tmp_path / "split"
    split.mkdir()
    monkeypatch.setattr(names, "SIDES_PER_BLOCK", 2)
    cut = traced(split, indexed(split, TEXTS, encoder=encoder, passages_per_shard=4), *rows)
    assert {fact: list(ranking) for fact, ranking in cut.items()} == {fact: list(r) for fact, r in whole.items()}
    for fact, ranking in whole.items():
        for example, p in ranking.items():
            other = cut[fact][example]
            assert other.names == p.names and other.signals == pytest.approx(p.signals, rel=1e-5, abs=1e-6)
            assert other.score == pytest.approx(p.score, rel=1e-5)


def assert_hops(found: dict, vectors: dict) -> None:
    """Each passage's is the smaller of the two sides', from the unit vectors of all passages."""
    about = {"King Edmund": ["explains-1", "plain-1"], "Narnia": ["explains-2", "plain-2"]}
    near = NEARNESS * OTHER
    named = {"states": (near, near), "also-1": (near, 0.0), "also-2": (0.0, near)}
    named |= {f"rain-{n}": (near * (OFTEN * 1 / 14) ** 0.5, 0.0) for n in range(2, 14)}  # January is in 13 passages
    for example, p in found.items():
        reached = [
            1.0 if example in anchors else max(0.0, named.get(example, (0.0, 0.0))[side], *(
                float(vectors[example] @ vectors[a]) for a in anchors)
            )
            for side, anchors in enumerate(about.values())
        ]  # fmt: skip
        assert p.signals["hop"] == pytest.approx(min(reached), abs=1e-5)


def test_hop_is_the_nearness_to_passages_about_both_sides(tmp_path, encoder):
    folder = indexed(tmp_path, TEXTS, encoder=encoder)
    found = traced(tmp_path, folder, FACT)["f"]
    assert_hops(found, vectors_of(folder))
    assert found["explains-1"].signals["hop"] < 1  # it holds one side alone


def vectors_of(folder: str) -> dict:
    [shard] = read_manifest(folder, "index").details["shards"]
    ids = pq.read_table(f"{folder}/examples/{shard['name']}.parquet")["example_id"].to_pylist()
    return dict(zip(ids, dense.ShardVectors(f"{folder}/dense/{shard['name']}.faiss").vectors.copy(), strict=True))


def test_nothing_of_the_stages_is_left_in_the_rankings(tmp_path):
    traced(tmp_path, indexed(tmp_path, TEXTS), FACT)
    left = Counter(path.name for path in (tmp_path / "rankings").rglob("*") if PLACE.split("/")[0] in str(path))
    assert not left


def test_where_vectors_are_searched_approximately_hop_scores_what_the_others_propose(tmp_path, monkeypatch):
    monkeypatch.setattr(dense, "APPROXIMATE_FROM", 500)
    draw = np.random.default_rng(0)

    def vector(text: str) -> list[float]:
        return (draw.normal(size=16) + (8.0 if "Lion" in text else 0.0)).round(4).tolist()

    texts = TEXTS | {f"filler-{n}": f"w{n % 7} w{n % 11} x{n}" for n in range(600)}
    rows = [{"id": name, "text": text, "v": vector(text)} for name, text in texts.items()]
    corpus = write_jsonl(tmp_path / "corpus.jsonl", rows)
    options = {"embedding_field": "v", "passages_per_shard": 200}
    made = index.run(IndexConfig(corpus=corpus, output=str(tmp_path / "index"), **options))
    assert made.details["dense"]["search"] == "approximate"
    found = traced(tmp_path, str(tmp_path / "index"), FACT | {"embedding": vector("")}, top_k=20)["f"]
    assert found["states"].names == ("Old Lion", "Pearl of the Sea")
    told = read_manifest(str(tmp_path / "rankings"), "rankings").details["approximations"]
    assert "hop: scored for the other signals' candidates, proposes none itself" in told
    assert_hops(found, {row["id"]: np.array(row["v"]) / np.linalg.norm(row["v"]) for row in rows})
