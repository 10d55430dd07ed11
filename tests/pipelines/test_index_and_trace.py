"""Index and trace: shard and batch invariance, refusals of what does not match, resuming, long documents."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from attribution.dense import ShardVectors
from pipelines import evaluate, index, trace
from pipelines.config import EvaluateConfig, IndexConfig, TraceConfig
from pipelines.query import Query, statistics_of, tokenizer_of
from pipelines.stage import METRICS, RunShard
from pipelines.storage import read_manifest, read_rankings
from schemas.errors import ArtifactMismatch, ConfigError
from schemas.facts import parse_facts, sides_of, text_query
from schemas.manifest import content_sha256
from schemas.rankings import rankings_from_jsonl, rankings_from_table
from tests.pipelines.conftest import corpus_rows, fact_rows, index_config, write_jsonl


def ranked(folder) -> dict:
    rows = rankings_from_jsonl(Path(folder, "rankings.jsonl").read_bytes())
    return {(p.fact_id, p.example_id, p.start): p for p in rows}


def run_trace(index_folder, facts, output, **options) -> dict:
    trace.run(TraceConfig(index=str(index_folder), facts=str(facts), output=str(output), **options))
    return ranked(output)


@pytest.fixture(scope="session")
def rankings(room, built_index, facts):
    return run_trace(built_index, facts, room / "rankings")


def test_statements_rank_above_everything_else(room, rankings, facts):
    result = evaluate.run(EvaluateConfig(rankings=str(room / "rankings"), facts=facts))
    assert result["num_facts"] == 10
    assert set(result["signals"]) == {"bm25", "dense", "gradient", "fused"}
    assert result["signals"]["bm25"]["mrr"] == result["signals"]["fused"]["mrr"] == 1.0
    # The model learned the facts from these sentences: its gradients must do better than a random order of 50 would.
    assert result["signals"]["gradient"]["mrr"] > 0.5


def test_rankings_say_the_same_in_every_format(room, rankings):
    by_parquet = {
        (p.fact_id, p.example_id, p.start): p
        for p in rankings_from_table(pq.read_table(room / "rankings/rankings.parquet"))
    }
    assert by_parquet == rankings
    trec = (room / "rankings/rankings.trec").read_text().splitlines()
    first = next(p for p in rankings.values() if p.rank == 1)
    assert trec[0].split()[:4] == [first.fact_id, "Q0", first.example_id, "1"]


@pytest.mark.parametrize("split", ["passages_per_shard", "files"])
def test_two_shards_rank_as_one_does(tmp_path, split, corpus, facts, checkpoints, encoder, rankings):
    options = {"passages_per_shard": 23} if split == "passages_per_shard" else {}
    if split == "files":
        write_jsonl(tmp_path / "a.jsonl", corpus_rows()[:17])
        write_jsonl(tmp_path / "b.jsonl", corpus_rows()[17:])
        corpus = str(tmp_path / "*.jsonl")
    manifest = index.run(index_config(corpus, tmp_path / "index", checkpoints, encoder, **options))
    assert len(manifest.details["shards"]) >= 2
    sharded = run_trace(tmp_path / "index", facts, tmp_path / "rankings")
    assert sharded.keys() == rankings.keys()
    for key, one in rankings.items():
        two = sharded[key]
        assert two.signals["bm25"] == one.signals["bm25"]
        for signal in ("dense", "gradient"):
            assert two.signals[signal] == pytest.approx(one.signals[signal], rel=1e-5, abs=1e-7)


def test_bm25_candidates_share_a_word_and_top_k_cuts_each_signal(tmp_path, built_index, facts):
    few = run_trace(built_index, facts, tmp_path / "r", top_k=2)
    per_fact = [sum(p.fact_id == fact["id"] for p in few.values()) for fact in fact_rows()]
    assert max(per_fact) <= 6 and min(per_fact) >= 2


def test_a_filter_ranks_the_best_of_what_it_lets_through(tmp_path, built_index, facts, rankings):
    found = run_trace(built_index, facts, tmp_path / "few", where="source=[tw]*", top_k=3)
    expected = set()
    for signal in ("bm25", "dense", "gradient"):
        for fact in {key[0] for key in rankings}:
            kept = {k: p for k, p in rankings.items() if k[0] == fact and p.source in ("trade", "weather")}
            kept = {k: p.signals[signal] for k, p in kept.items() if signal != "bm25" or p.signals[signal] > 0}
            expected |= set(sorted(kept, key=lambda k: (-kept[k], k))[:3])
    assert found.keys() >= expected and all(p.source in ("trade", "weather") for p in found.values())
    others = found.keys() - expected  # those near passages that hold the capital's name, and its country's
    assert others and all(found[k].signals["hop"] > 0 for k in others)
    assert all(found[k].signals == pytest.approx(rankings[k].signals, rel=1e-5, abs=1e-7) for k in expected)


@pytest.mark.parametrize(
    "where, message",
    [
        ("source=nowhere", "--where source=nowhere: expected passages that match, found none in"),
        ("id=a", "--where: expected source=PATTERN or file=PATTERN, found 'id=a'"),
    ],
)
def test_a_filter_that_keeps_nothing_is_refused(tmp_path, built_index, facts, where, message):
    with pytest.raises(ConfigError, match=message):
        run_trace(built_index, facts, tmp_path / "none", where=where)


def test_the_same_index_twice_has_the_same_bytes(tmp_path, built_index, corpus, checkpoints, encoder):
    again = index.run(index_config(corpus, tmp_path / "index", checkpoints, encoder))
    first = json.loads(Path(built_index, "manifest.json").read_text())
    assert {f["name"]: f["sha256"] for f in first["files"]} == {f.name: f.sha256 for f in again.files}
    on_disk = {str(p.relative_to(built_index)) for p in Path(built_index).rglob("*") if p.is_file()}
    assert on_disk == {f["name"] for f in first["files"]} | {"manifest.json", METRICS}


def test_a_killed_index_resumes_to_the_same_bytes(tmp_path, monkeypatch, corpus, checkpoints, encoder):
    config = index_config(corpus, tmp_path / "whole", checkpoints, encoder, passages_per_shard=23)
    whole = index.run(config)
    config = index_config(corpus, tmp_path / "index", checkpoints, encoder, passages_per_shard=23)
    process, worked = RunShard.process, []

    def dying(self, shard):
        if self.stage.startswith("gradient") and len(worked) >= 7:
            raise KeyboardInterrupt
        worked.append((self.stage, shard.name))
        return process(self, shard)

    monkeypatch.setattr(RunShard, "process", dying)
    with pytest.raises(BaseException):  # noqa: B017 (the runner may wrap the interrupt)
        index.run(config)
    assert not (tmp_path / "index").exists() and (tmp_path / ".index.partial").is_dir()
    # What a kill in the middle of a write leaves.
    (tmp_path / ".index.partial/.stages/.work-killed").mkdir()
    (tmp_path / ".index.partial/bm25/statistics.parquet.tmp-1").write_bytes(b"half")
    other = index_config(corpus, tmp_path / "index", checkpoints, encoder, passages_per_shard=24)
    with pytest.raises(ConfigError, match="another configuration is there, it differs in passages_per_shard"):
        index.run(other)
    before = list(worked)

    def counting(self, shard):
        worked.append((self.stage, shard.name))
        return process(self, shard)

    monkeypatch.setattr(RunShard, "process", counting)
    resumed = index.run(config)
    assert not set(before) & set(worked[len(before) :])
    on_disk = {str(p.relative_to(tmp_path / "index")) for p in (tmp_path / "index").rglob("*") if p.is_file()}
    assert on_disk == {f.name for f in resumed.files} | {"manifest.json", METRICS}
    assert [f.sha256 for f in resumed.files] == [f.sha256 for f in whole.files]
    assert not (tmp_path / ".index.partial").exists()


def test_an_index_of_another_model_tokenizer_or_version_is_refused(tmp_path, built_index, facts, checkpoints):
    copied = tmp_path / "checkpoints"
    shutil.copytree(checkpoints, copied)
    spoiled = tmp_path / "index"
    shutil.copytree(built_index, spoiled)
    manifest = json.loads((spoiled / "manifest.json").read_text())

    def refused(change, message):
        changed = json.loads(json.dumps(manifest))
        change(changed)
        changed["sha256"] = content_sha256(changed)
        (spoiled / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(ArtifactMismatch, match=message):
            run_trace(spoiled, facts, tmp_path / "rankings")
        assert not (tmp_path / "rankings").exists() and not (tmp_path / ".rankings.partial").exists()

    first = lambda m: m["details"]["gradient"]["checkpoints"][0]  # noqa: E731
    refused(lambda m: first(m).update(model_sha256="0"), "checkpoint weights at .*expected 0, found")
    refused(lambda m: first(m).update(tokenizer_sha256="0"), "checkpoint tokenizer at .*expected 0, found")
    refused(lambda m: first(m).update(path="/nowhere/at/all"), "expected it at /nowhere/at/all.*found nothing")
    refused(lambda m: m["details"]["dense"].update(model_sha256="0"), "encoder weights at .*another one")
    refused(lambda m: m.update(format_version=99), "expected format version 6, found 99")
    refused(lambda m: m.update(kind="corpus"), "expected a folder of kind 'index', found 'corpus'")


def test_models_that_are_not_there_are_refused_before_anything_is_written(tmp_path, corpus, checkpoints):
    (tmp_path / "empty").mkdir()
    bare = tmp_path / "bare"
    (tmp_path / "model.bin").write_text("no model")
    shutil.copytree(Path(checkpoints, "step-000200"), bare)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        os.remove(bare / name)
    for path, message in [
        (str(tmp_path / "nothing"), "found no such folder"),
        (str(tmp_path / "x.gguf"), "found no such file"),
        (str(tmp_path / "model.bin"), "found a file that is no .gguf"),
        (str(tmp_path / "empty"), "found a folder without config.json"),
        (str(bare), "found no tokenizer"),
    ]:
        config = IndexConfig(corpus=corpus, output=str(tmp_path / "index"), checkpoints=(path,))
        with pytest.raises(ConfigError, match=message):
            index.run(config)
        with pytest.raises(ConfigError, match=message):
            index.run(IndexConfig(corpus=corpus, output=str(tmp_path / "index"), encoder=path))
    assert sorted(os.listdir(tmp_path)) == ["bare", "empty", "model.bin"]


def test_a_model_without_some_of_its_weights_is_refused(tmp_path, corpus, checkpoints):
    from safetensors.torch import load_file, save_file

    spoiled = tmp_path / "spoiled"
    shutil.copytree(Path(checkpoints, "step-000200"), spoiled)
    weights = load_file(spoiled / "model.safetensors")
    weights.pop("transformer.h.0.mlp.c_fc.weight")
    save_file(weights, spoiled / "model.safetensors", metadata={"format": "pt"})
    config = IndexConfig(
        corpus=corpus, output=str(tmp_path / "index"), checkpoints=(str(spoiled),), max_tokens=30, overlap=4
    )
    with pytest.raises(ConfigError, match=r"1 of its weights are missing \(transformer\.h\.0\.mlp\.c_fc\.weight\)"):
        index.run(config)
    (spoiled / "model.safetensors").write_bytes((spoiled / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ConfigError, match="it did not load"):
        index.run(config)


def test_a_tokenizer_that_ships_a_cut_is_the_same_before_and_after_its_use(tmp_path, corpus, facts, checkpoints):
    cutting = tmp_path / "cutting"
    shutil.copytree(Path(checkpoints, "step-000200"), cutting)
    definition = json.loads((cutting / "tokenizer.json").read_text())
    definition["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    (cutting / "tokenizer.json").write_text(json.dumps(definition))
    config = IndexConfig(
        corpus=corpus, output=str(tmp_path / "index"), checkpoints=(str(cutting),), max_tokens=30, overlap=4,
        num_pseudo_facts=5,
    )  # fmt: skip
    index.run(config)
    assert run_trace(tmp_path / "index", facts, tmp_path / "rankings")


def test_the_fused_score_is_the_weighted_sum_of_signals_on_one_scale(tmp_path, built_index, facts):
    run_trace(built_index, facts, tmp_path / "rankings")
    details = read_manifest(built_index, "index").details
    query = Query(built_index, details, "auto", 100)
    idf, tokenize = statistics_of(query).idf, tokenizer_of(query)
    weights = dict(zip(details["fusion"]["signals"], details["fusion"]["weights"], strict=True))
    asked = {fact.id: fact for fact in parse_facts(Path(facts).read_bytes(), facts)}
    for ranking in read_rankings(str(tmp_path / "rankings")):
        fact = asked[ranking[0].fact_id]
        words = tokenize(text_query(fact, "auto"))
        for p in ranking:
            scale = dict.fromkeys(weights, 1.0) | {"bm25": sum(map(idf, words))}
            told = {name: min(1.0, max(0.0, p.signals[name] / scale[name])) for name in weights}
            assert p.score == pytest.approx(sum(weights[name] * told[name] for name in weights), abs=1e-9)
            sides = [tokenize(side) for side in sides_of(fact, "auto")[0]]
            held = set(tokenize(p.text))
            whole = [sum(idf(word) for word in side if word in held) / sum(map(idf, side)) for side in sides]
            assert p.signals["match"] >= min(whole) - 1e-9 and (p.signals["match"] == 1) == (min(whole) == 1)


def test_dense_is_asked_the_whole_sentence_whatever_bm25_is_asked(tmp_path, built_index, facts):
    found = {}
    for kind in ("prompt_target", "subject_object"):
        run_trace(built_index, facts, tmp_path / kind, text_query=kind)
        found[kind] = {
            (p.fact_id, p.example_id): p.signals for ranking in read_rankings(str(tmp_path / kind)) for p in ranking
        }
    both = found["prompt_target"].keys() & found["subject_object"].keys()
    assert len(both) > 20
    signals = [(found["prompt_target"][key], found["subject_object"][key]) for key in both]
    assert all(a["dense"] == pytest.approx(b["dense"], abs=1e-6) for a, b in signals)
    assert any(a["bm25"] != b["bm25"] for a, b in signals)


def test_a_fact_that_found_nothing_counts_as_a_miss(tmp_path, corpus):
    index.run(IndexConfig(corpus=corpus, output=str(tmp_path / "index")))
    rows = [*fact_rows()[:1], {"id": "none", "prompt": "qwerty", "target": "uiop", "proponents": ["oz-0"]}]
    asked = write_jsonl(tmp_path / "f.jsonl", rows)
    run_trace(tmp_path / "index", asked, tmp_path / "rankings")
    result = evaluate.run(EvaluateConfig(rankings=str(tmp_path / "rankings"), facts=asked))
    assert result["num_facts"] == 2 and result["signals"]["bm25"]["mrr"] == 0.5


def test_a_signal_is_not_credited_with_what_another_retrieved(tmp_path, built_index, facts):
    run_trace(built_index, facts, tmp_path / "rankings", top_k=1)
    result = evaluate.run(EvaluateConfig(rankings=str(tmp_path / "rankings"), facts=facts))["signals"]
    assert result["bm25"]["recall_at_100"] == pytest.approx(1 / 3)
    assert result["dense"]["recall_at_100"] <= 1 / 3 + 1e-9 and result["dense"]["mrr"] in [n / 10 for n in range(11)]


def test_a_target_without_a_token_is_refused(tmp_path, corpus):
    index.run(IndexConfig(corpus=corpus, output=str(tmp_path / "index")))
    bad = write_jsonl(tmp_path / "f.jsonl", [{"id": "a", "prompt": "The capital of Oz is", "target": "?!"}])
    with pytest.raises(ConfigError, match=r"fact 'a': the target '\?!' has no token"):
        run_trace(tmp_path / "index", bad, tmp_path / "rankings")
    assert not (tmp_path / "rankings").exists()
    with pytest.raises(ConfigError, match="expected a file, found a folder"):
        run_trace(tmp_path / "index", tmp_path, tmp_path / "rankings")


def test_an_output_that_holds_something_is_refused(tmp_path, built_index, facts):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="found other files in it"):
        run_trace(built_index, facts, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["mine.txt"]
    with pytest.raises(ConfigError, match="found a finished one"):
        run_trace(built_index, facts, built_index)


def test_a_fact_without_target_is_refused_with_its_line(tmp_path, built_index):
    bad = tmp_path / "facts.jsonl"
    bad.write_text(
        '{"id": "a", "prompt": "The capital of Oz is", "target": "Mantua"}\n{"id": "b", "prompt": "It is"}\n'
    )
    with pytest.raises(ConfigError, match=r"line 2: not a fact: field 'target' must be a non-empty string, found None"):
        run_trace(built_index, bad, tmp_path / "rankings")
    assert os.listdir(tmp_path) == ["facts.jsonl"]


def test_the_three_ways_to_ask_find_the_same_statement(tmp_path, built_index):
    rows = [
        {"id": "a", "prompt": "The capital of Oz is", "target": "Mantua"},
        {
            "id": "b",
            "subject": "Oz",
            "relation": "capital",
            "object": "Mantua",
            "template": "The capital of {subject} is {object}.",
        },
        {"id": "c", "sentence": "The capital of Oz is Mantua.", "explain": "Mantua"},
    ]
    asked = run_trace(built_index, write_jsonl(tmp_path / "facts.jsonl", rows), tmp_path / "rankings")
    best = {p.fact_id: p.text for p in asked.values() if p.rank == 1}
    assert best == dict.fromkeys("abc", "The capital of Oz is Mantua.")
    gradients = {fact: p.signals["gradient"] for (fact, example, _), p in asked.items() if example == "oz-0"}
    assert gradients["a"] == pytest.approx(gradients["b"], rel=1e-5) == pytest.approx(gradients["c"], rel=1e-5)


def test_long_documents_are_passages_whose_spans_are_their_text(tmp_path, encoder):
    text = " ".join(f"Word{n} stands in the long document." for n in range(60))
    corpus = write_jsonl(tmp_path / "c.jsonl", [{"id": "long", "text": text}, {"id": "short", "text": "A short one."}])
    config = IndexConfig(corpus=corpus, output=str(tmp_path / "index"), encoder=encoder, max_tokens=40, overlap=8)
    assert index.run(config).counts["kept"] == 2
    (table,) = [pq.read_table(p) for p in (tmp_path / "index/examples").iterdir()]
    passages = table.to_pylist()
    assert len([p for p in passages if p["example_id"] == "long"]) > 5
    for p in passages:
        assert p["text"] == (text if p["example_id"] == "long" else "A short one.")[p["start"] : p["end"]]
    rows = [{"id": "q", "prompt": "Word37 stands in", "target": "the"}]
    found = run_trace(tmp_path / "index", write_jsonl(tmp_path / "f.jsonl", rows), tmp_path / "rankings")
    best = min(found.values(), key=lambda p: p.rank)
    assert best.example_id == "long" and "Word37" in best.text


def test_paths_may_hold_spaces_and_any_letters(tmp_path, checkpoints, encoder):
    place = tmp_path / "mein Übungs-Ordner" / "語 料 (1)"
    place.mkdir(parents=True)
    os.rename(write_jsonl(tmp_path / "c", corpus_rows()), place / "Текст é #1%.jsonl")
    facts = write_jsonl(place / "les faits 😀.jsonl", fact_rows()[:2])
    shutil.copytree(Path(checkpoints, "step-000200"), place / "ein Modell é")
    config = index_config(
        str(place / "Текст *.jsonl"), place / "der Index ü", str(place / "ein Modell é"), encoder, passages_per_shard=23
    )
    manifest = index.run(config)
    assert manifest.counts["kept"] == len(corpus_rows())
    found = run_trace(place / "der Index ü", facts, place / "die Ränge 1", rerank=2)
    assert {p.text for p in found.values() if p.rank == 1} <= {row["text"] for row in corpus_rows()}
    names = ["die Ränge 1", "der Index ü", "ein Modell é", "les faits 😀.jsonl", "Текст é #1%.jsonl"]
    assert sorted(os.listdir(place)) == sorted(names)


def test_a_shard_of_another_index_is_refused_by_name(tmp_path, built_index, facts, encoder):
    other, mixed = tmp_path / "other", tmp_path / "mixed"
    corpus = write_jsonl(tmp_path / "c.jsonl", corpus_rows()[::-1])
    index.run(IndexConfig(corpus=corpus, output=str(other), encoder=encoder, max_tokens=30, overlap=4))
    shutil.copytree(built_index, mixed)
    (shard,) = os.listdir(other / "dense")
    shutil.copy(other / "dense" / shard, mixed / "dense" / shard)
    sizes = {(folder / "dense" / shard).stat().st_size for folder in (other, Path(built_index))}
    assert len(sizes) == 1  # nothing but the hash tells them apart
    with pytest.raises(ArtifactMismatch, match=rf"dense/{shard}: expected .*, as manifest\.json says, found "):
        run_trace(mixed, facts, tmp_path / "rankings")


def test_subword_bm25_finds_chinese(tmp_path, checkpoints):
    rows = [{"id": "a", "text": "法国的首都是巴黎。"}, {"id": "b", "text": "今天的天气很好。"}]
    config = IndexConfig(
        corpus=write_jsonl(tmp_path / "c.jsonl", rows), output=str(tmp_path / "index"),
        tokenizer=str(Path(checkpoints, "step-000200")), num_pseudo_facts=2,
    )  # fmt: skip
    index.run(config)
    facts = write_jsonl(tmp_path / "f.jsonl", [{"id": "q", "prompt": "首都是", "target": "巴黎"}])
    found = run_trace(tmp_path / "index", facts, tmp_path / "rankings")
    assert min(found.values(), key=lambda p: p.rank).example_id == "a"


def test_dense_ids_and_vectors_survive_the_disk(built_index):
    found = ShardVectors(str(next(Path(built_index, "dense").iterdir())))
    assert found.ids.tolist() == list(range(50))
    assert np.allclose(np.linalg.norm(found.vectors, axis=1), 1.0, atol=1e-5)
