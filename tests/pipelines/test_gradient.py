"""The gradient signal through the verbs: what is kept of it, what is refused, and the exact order of a shortlist."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from attribution.feature_rows import RowReader
from attribution.fusion import fusion_of
from pipelines import index, purge, trace
from pipelines.config import IndexConfig, PurgeConfig, TraceConfig
from pipelines.storage import read_manifest, read_rankings
from schemas.errors import ArtifactMismatch, ConfigError, FailureBudgetExceeded
from schemas.manifest import content_sha256
from schemas.records import Removal, text_sha256
from schemas.removals import removals_to_jsonl
from tests.pipelines.conftest import corpus_rows, fact_rows, index_config, write_jsonl

NPY_HEADER = 128


def gradient_config(corpus: str, output: Path, checkpoint: str, **options):
    return index_config(corpus, output, checkpoint, "", **options)


@pytest.fixture(scope="module")
def last(checkpoints) -> Path:
    """The folder of the last checkpoint, on its own."""
    return Path(checkpoints) / read_manifest(checkpoints, "checkpoints").details["checkpoints"][-1]


def traced(built: str, facts: str, output: Path, **options) -> dict[str, list]:
    trace.run(TraceConfig(index=built, facts=facts, output=str(output), **options))
    return {ranking[0].fact_id: ranking for ranking in read_rankings(str(output))}


def test_a_reranked_shortlist_stands_first_and_its_tokens_sum_to_its_score(built_index, facts, tmp_path):
    plain = traced(built_index, facts, tmp_path / "plain")
    exact = traced(built_index, facts, tmp_path / "exact", rerank=6)
    for fact_id, ranking in exact.items():
        short = ranking[:6]
        assert {p.example_id for p in short} == {p.example_id for p in plain[fact_id][:6]}
        assert [p.example_id for p in ranking[6:]] == [p.example_id for p in plain[fact_id][6:]]
        for p in short:
            assert sum(share for _, _, share in p.tokens) == pytest.approx(p.signals["gradient_exact"], abs=1e-9)
            assert -1 <= p.signals["gradient_exact"] <= 1
            words = [p.text[start:end] for start, end, _ in p.tokens]
            assert "".join(words).replace(" ", "") in p.text.replace(" ", "")
        assert not any("gradient_exact" in p.signals or p.tokens for p in ranking[6:])
        scores = [p.score for p in ranking]
        assert scores == sorted(scores, reverse=True) and scores[-1] >= 0 and scores[0] <= 1
    weight = read_manifest(str(tmp_path / "exact"), "rankings").details["fusion"]["weights"][2]
    for fact_id, ranking in exact.items():
        before = {p.example_id: p for p in plain[fact_id]}
        low = plain[fact_id][5].score
        for p in ranking[:6]:
            both = (max(0, p.signals["gradient"]) + max(0, p.signals["gradient_exact"])) / 2
            score = before[p.example_id].score + weight * (both - max(0, p.signals["gradient"]))
            assert p.score == pytest.approx(low + (1 - low) * score, abs=1e-9)


def test_reranking_without_gradients_is_refused(corpus, facts, tmp_path):
    index.run(IndexConfig(corpus=corpus, output=str(tmp_path / "index")))
    with pytest.raises(ConfigError, match="--rerank: expected an index with the gradient signal, found bm25"):
        traced(str(tmp_path / "index"), facts, tmp_path / "rankings", rerank=3)
    assert not (tmp_path / "rankings").exists()


def test_a_dry_run_measures_and_writes_nothing(corpus, checkpoints, encoder, tmp_path):
    told = index.run(index_config(corpus, tmp_path / "index", checkpoints, encoder, dry_run=True))
    assert told["records"] == told["passages"] == len(corpus_rows())
    assert set(told["seconds"]) == {"bm25", "dense", *(name for name in told["seconds"] if name.startswith("gradient"))}
    assert all(value > 0 for name, value in told["seconds"].items() if name != "bm25") and told["peak_memory_gib"] > 0
    assert list(tmp_path.iterdir()) == []


def test_bytes_an_example_are_those_of_the_files(corpus, last, tmp_path):
    for number, kind in enumerate(("float32", "float16", "int8")):
        output = tmp_path / kind
        manifest = index.run(gradient_config(corpus, output, str(last), feature_dtype=kind))
        [row] = manifest.details["gradient"]["checkpoints"]
        rows = manifest.details["bm25"]["num_passages"]
        ours = [info for info in manifest.files if info.name.startswith("gradients/") and info.name.endswith(".npy")]
        stored = [info for info in ours if "widths" not in info.name]
        assert sum(info.bytes - NPY_HEADER for info in stored) / rows == row["bytes_per_example"]
        size = row["bytes_per_example"]
        assert size / row["dim"] == pytest.approx([4, 2, 1][number], rel=0.15)


@pytest.mark.parametrize(("gradients", "given", "dim"), [("kfac", 0, 128), ("trackstar", 0, 16), ("kfac", 5, 5)])
def test_a_projection_is_as_wide_as_fits_unless_it_is_given(corpus, last, tmp_path, gradients, given, dim):
    manifest = index.run(
        gradient_config(corpus, tmp_path / "index", str(last), gradients=gradients, projection_dim=given)
    )
    [row] = manifest.details["gradient"]["checkpoints"]
    assert row["projection"]["dim"] == dim
    told = f"gradients projected to {dim} x {dim} a layer at most, stored as float16"
    assert manifest.details["approximations"][0] == told


def test_upper_blocks_are_projected_as_wide_as_they_fit_alone(corpus, facts, last, tmp_path):
    manifest = index.run(gradient_config(corpus, tmp_path / "index", str(last), projection_dim=0, layers=0.5))
    assert [row["projection"]["dim"] for row in manifest.details["gradient"]["checkpoints"]] == [256]
    found = traced(str(tmp_path / "index"), facts, tmp_path / "rankings")
    assert all("gradient" in p.signals for ranking in found.values() for p in ranking)


def test_a_projection_of_less_than_nothing_is_refused():
    with pytest.raises(ConfigError, match="--projection_dim: expected at least 0, found -1"):
        IndexConfig(corpus="c.jsonl", output="index", projection_dim=-1)


@pytest.mark.parametrize("change", [{"version": 1}, {"kind": "two-sided gaussian"}, {"seed": 7}])
def test_an_index_of_another_projection_is_refused(built_index, facts, tmp_path, change):
    copy = tmp_path / "index"
    shutil.copytree(built_index, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["details"]["gradient"]["checkpoints"][0]["projection"].update(change)
    manifest["sha256"] = content_sha256(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactMismatch, match=r"projection of the gradients of .*: expected .*, found .*index again"):
        traced(str(copy), facts, tmp_path / "rankings")


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_smaller_features_rank_as_float32_does(corpus, facts, last, tmp_path, kind):
    scores = {}
    for name in ("float32", kind):
        index.run(gradient_config(corpus, tmp_path / name, str(last), feature_dtype=name, projection_dim=16))
        found = traced(str(tmp_path / name), facts, tmp_path / f"rankings-{name}")
        scores[name] = {(f, p.example_id): p.signals["gradient"] for f, ranking in found.items() for p in ranking}
    assert scores["float32"].keys() == scores[kind].keys()
    difference = [abs(scores["float32"][key] - scores[kind][key]) for key in scores[kind]]
    assert max(difference) < 0.02 and max(difference) > 0


def test_a_model_that_cannot_be_covered_is_refused_with_what_is_missing(corpus, last, tmp_path):
    with pytest.raises(ConfigError, match=r"expected layers that hold 100% .* found 9\d\.\d%.*wpe\.weight \(\d"):
        index.run(gradient_config(corpus, tmp_path / "index", str(last), gradients="trackstar", min_coverage=1.0))
    assert list(tmp_path.iterdir()) == []


def test_the_upper_blocks_alone_are_tracked_where_that_is_asked(corpus, last, tmp_path):
    manifest = index.run(gradient_config(corpus, tmp_path / "index", str(last), layers=0.5))
    [row] = manifest.details["gradient"]["checkpoints"]
    assert all(".h.1." in name for name in row["layers"]) and len(row["layers"]) == 4
    assert row["left_out_parameters"] > row["tracked_parameters"]
    assert any(a.startswith("gradients of 3") for a in manifest.details["approximations"])


def poisoned(last: Path, folder: Path) -> str:
    """A copy of the checkpoint with a position that is not a number."""
    shutil.copytree(last, folder)
    weights = load_file(folder / "model.safetensors")
    weights["transformer.wpe.weight"][29] = torch.nan  # reached by the longest texts alone
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_a_gradient_that_is_not_finite_goes_to_the_dead_letters_and_the_batch_survives(last, facts, tmp_path):
    rows = [*corpus_rows(), {"id": "long", "text": "It rained and rained. " * 8, "source": "weather"}]
    corpus = write_jsonl(tmp_path / "corpus.jsonl", rows)
    broken = poisoned(last, tmp_path / "broken")
    with pytest.raises(FailureBudgetExceeded, match=r"2 of 5\d passages have no usable gradient.*\n.*'long'"):
        index.run(gradient_config(corpus, tmp_path / "index", broken, overlap=0, max_dead_fraction=0.001))
    manifest = index.run(gradient_config(corpus, tmp_path / "index", broken, overlap=0, max_dead_fraction=0.1))
    [row] = manifest.details["gradient"]["checkpoints"]
    assert row["dead"] == 2  # both windows of it
    [letters] = (tmp_path / "index" / "dead_letters").glob("gradient-*.jsonl")
    found = [json.loads(line)["reason"] for line in letters.read_text().splitlines()]
    assert len(found) == 2 and all("'long'" in reason and "not finite" in reason for reason in found)
    shard = manifest.details["shards"][0]["name"]
    norms = RowReader(tmp_path / "index" / "gradients" / row["name"] / shard).norms
    assert (norms > 0).sum() == len(norms) - 2
    assert traced(str(tmp_path / "index"), facts, tmp_path / "rankings")


def test_a_model_that_computes_another_loss_than_at_indexing_is_refused(built_index, facts, tmp_path):
    copy = tmp_path / "index"
    shutil.copytree(built_index, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["details"]["gradient"]["checkpoints"][0]["probe_loss"] *= 1.01
    manifest["sha256"] = content_sha256(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactMismatch, match=r"expected a loss of .* on the fixed batch, as when the index was made"):
        traced(str(copy), facts, tmp_path / "rankings")


def test_without_an_optimizer_state_its_moments_are_estimated_from_a_sample(corpus, facts, last, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(last, bare, ignore=shutil.ignore_patterns("optimizer.safetensors"))
    found = {}
    for correction in ("auto", "none"):
        options = {"gradients": "trackstar", "optimizer_correction": correction}
        config = gradient_config(corpus, tmp_path / correction, str(bare), **options)
        manifest = index.run(config)
        [row] = manifest.details["gradient"]["checkpoints"]
        found[correction] = row["optimizer_correction"]
        assert (tmp_path / correction / "gradients" / row["name"] / "moments.safetensors").exists() == (
            correction == "auto"
        )
        assert traced(str(tmp_path / correction), facts, tmp_path / f"rankings-{correction}")
    assert found == {"auto": "estimate", "none": "none"}


def test_a_fact_asked_in_several_ways_has_the_mean_or_the_best_of_their_scores(built_index, tmp_path):
    prompts = ["The capital of Oz is", "In Oz, the capital is called"]
    row = {"targets": [fact_rows()[7]["target"].strip()]}
    rows = [{"id": f"one-{i}", "prompt": prompt, "target": row["targets"][0]} for i, prompt in enumerate(prompts)]
    rows += [{"id": kind, "prompts": prompts, **row, "combine": kind} for kind in ("mean", "max")]
    options = {"top_k": 1000, "text_query": "prompt_target"}
    # Whitening knows all queries of a run, so that they are asked together.
    found = traced(built_index, write_jsonl(tmp_path / "facts.jsonl", rows), tmp_path / "rankings", **options)
    scores = {fact: {p.example_id: p.signals for p in ranking} for fact, ranking in found.items()}
    for example_id, signals in scores["mean"].items():
        for name in signals.keys() - {"names"}:  # what other names add to the words' score is no mean of that
            apart = [scores[f"one-{i}"][example_id][name] for i in range(2)]
            assert signals[name] == pytest.approx(np.mean(apart), abs=1e-5)
            assert scores["max"][example_id][name] == pytest.approx(max(apart), abs=1e-5)


def test_a_prompt_and_its_completion_stay_whole_and_lose_on_the_completion_alone(last, tmp_path):
    text = corpus_rows()[0]["text"]
    prompt = text[: text.rindex(" ")]
    rows = [{"id": "whole", "text": text}, {"id": "parts", "prompt": prompt, "completion": text[len(prompt) :]}]
    rows += [row for row in corpus_rows()[1:20]]
    corpus = write_jsonl(tmp_path / "corpus.jsonl", rows)
    options = {"gradients": "trackstar", "feature_dtype": "float32"}  # of the others all norms are 1
    manifest = index.run(gradient_config(corpus, tmp_path / "index", str(last), **options))
    [row] = manifest.details["gradient"]["checkpoints"]
    reader = RowReader(tmp_path / "index" / "gradients" / row["name"] / manifest.details["shards"][0]["name"])
    [(_, features)] = reader.blocks()
    cosine = features[0] @ features[1] / reader.norms[0] / reader.norms[1]
    assert 0 < cosine < 0.999 and reader.norms[1] < reader.norms[0]


def test_a_scan_gives_the_scores_of_stored_features_and_stores_nothing(
    built_index, corpus, facts, checkpoints, encoder, tmp_path
):
    stored = traced(built_index, facts, tmp_path / "stored")
    scanned = traced(built_index, facts, tmp_path / "scanned", scan=True)
    for fact_id, ranking in stored.items():
        signals = {p.example_id: p.signals["gradient"] for p in scanned[fact_id]}
        assert signals == pytest.approx({p.example_id: p.signals["gradient"] for p in ranking}, abs=2e-3)
    bare = tmp_path / "bare"
    manifest = index.run(index_config(corpus, bare, checkpoints, encoder, feature_dtype="none"))
    assert not list((bare / "gradients").rglob("*.npy")) and manifest.details["fusion"] == fusion_of(
        ["bm25", "dense", "gradient"]
    )
    with pytest.raises(ConfigError, match="found an index made with --feature_dtype none; trace with --scan"):
        traced(str(bare), facts, tmp_path / "refused")
    found = traced(str(bare), facts, tmp_path / "alone", scan=True)
    assert {p.example_id for ranking in found.values() for p in ranking[:3]} <= {row["id"] for row in corpus_rows()}
    assert all(ranking[0].example_id.startswith(fact_id.removeprefix("capital-")) for fact_id, ranking in found.items())


@pytest.fixture(scope="module")
def whitened(corpus, last, tmp_path_factory) -> str:
    """An index of the last checkpoint with K-FAC's gradients, in float32, wide enough to lose nothing."""
    place = tmp_path_factory.mktemp("kfac")
    options = {"projection_dim": 256, "feature_dtype": "float32"}
    index.run(gradient_config(corpus, place / "index", str(last), **options))
    return str(place / "index")


@pytest.mark.parametrize("option", [{"curvature": "none"}, {"optimizer_correction": "estimate"}])
def test_an_option_of_other_gradients_is_refused(corpus, last, tmp_path, option):
    with pytest.raises(ConfigError, match=f"--{next(iter(option))}: expected it with --gradients trackstar, found"):
        gradient_config(corpus, tmp_path / "index", str(last), **option)


def test_whitened_gradients_find_what_taught_a_fact(whitened, facts, tmp_path):
    details = read_manifest(whitened, "index").details["gradient"]
    [row] = details["checkpoints"]
    assert row["optimizer_correction"] == "kfac" and details["curvature"]["kind"] == "none"
    assert row["coverage"] > 0.95 and not any("wte" in name for name in row["layers"])
    assert "whitened by a product of two sides" in " ".join(read_manifest(whitened, "index").details["approximations"])
    found = traced(whitened, facts, tmp_path / "rankings")
    best = [
        min(i for i, p in enumerate(sorted(r, key=lambda p: -p.signals["gradient"])) if p.example_id in told) + 1
        for r, told in ((found[row["id"]], row["proponents"]) for row in fact_rows())
    ]
    assert np.mean([1 / rank for rank in best]) > 0.8


def test_whitened_gradients_are_the_same_in_shards_and_as_a_scan(whitened, corpus, facts, last, tmp_path):
    options = {"projection_dim": 256, "feature_dtype": "float32"}
    index.run(gradient_config(corpus, tmp_path / "cut", str(last), passages_per_shard=13, **options))
    ways = {"cut": traced(str(tmp_path / "cut"), facts, tmp_path / "cut-rankings")}
    ways["scan"] = traced(whitened, facts, tmp_path / "scan-rankings", scan=True)
    whole = traced(whitened, facts, tmp_path / "rankings")
    for found in ways.values():
        for fact, ranking in whole.items():
            scores = {p.example_id: p.signals["gradient"] for p in found[fact]}
            assert all(scores[p.example_id] == pytest.approx(p.signals["gradient"], abs=2e-5) for p in ranking)


def test_unprojected_the_exact_product_is_the_stored_one(whitened, facts, tmp_path):
    found = traced(whitened, facts, tmp_path / "rankings", rerank=5)
    for ranking in found.values():
        for p in ranking[:5]:
            assert p.signals["gradient_exact"] == pytest.approx(p.signals["gradient"], abs=1e-4)
            assert sum(share for *_, share in p.tokens) == pytest.approx(p.signals["gradient_exact"], abs=1e-9)


def test_the_whitening_is_made_again_where_its_sample_held_a_removed_text(corpus, last, tmp_path):
    place = tmp_path / "index"
    index.run(gradient_config(corpus, place, str(last)))
    before = read_manifest(str(place), "index").details["gradient"]["checkpoints"][0]
    gone = corpus_rows()[0]
    removal = Removal(gone["id"], text_sha256(gone["text"]), "approved", "wrong", decided_by="ada")
    (tmp_path / "removals.jsonl").write_bytes(removals_to_jsonl([removal]))
    purge.run(PurgeConfig(index=str(place), removals=str(tmp_path / "removals.jsonl")))
    after = read_manifest(str(place), "index").details["gradient"]["checkpoints"][0]
    assert (before["moments_of"], after["moments_of"]) == (1, 2)


def test_another_trace_into_the_same_folder_has_a_whitener_of_its_own(corpus, facts, last, tmp_path):
    """In one process: what was loaded by its path for the first one is not what the second one needs."""
    index.run(gradient_config(corpus, tmp_path / "index", str(last), gradients="trackstar", num_pseudo_facts=1))
    few = write_jsonl(tmp_path / "few.jsonl", fact_rows()[:1])
    fresh = traced(str(tmp_path / "index"), facts, tmp_path / "fresh")
    traced(str(tmp_path / "index"), few, tmp_path / "rankings")
    shutil.rmtree(tmp_path / "rankings")
    again = traced(str(tmp_path / "index"), facts, tmp_path / "rankings")
    for fact, ranking in fresh.items():
        scores = {p.example_id: p.signals["gradient"] for p in again[fact]}
        assert all(scores[p.example_id] == pytest.approx(p.signals["gradient"], abs=1e-6) for p in ranking)
