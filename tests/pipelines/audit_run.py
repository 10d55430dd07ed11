"""A run that was reviewed, cleaned, purged and verified, all of it small: for the tests of the reports."""

import hashlib
import json
import re
from html import unescape
from math import log
from pathlib import Path
from typing import Any

from pipelines import clean
from pipelines.config import CleanConfig, ReportConfig
from pipelines.storage import OutputFolder
from schemas.ledger import Entry, append
from schemas.manifest import Manifest
from tests.pipelines.review_run import small_run

NOW = "2026-11-27T09:30:00+00:00"


def decide(run: str) -> None:
    """The group is approved but for one; a redaction, a rejection and a decision taken back; one stays undecided."""
    rows = {r["example_id"]: r for r in map(json.loads, (Path(run) / "evidence.jsonl").read_text().splitlines())}

    def entry(example_id: str, decision: str, who: str = "Ada Okafor", **more: Any) -> Entry:
        return Entry(who, example_id, rows[example_id]["sha256"], decision, request_ids=("r1",), **more)

    letter = next(row for row in rows.values() if row["example_id"] == "letter-1")
    spans = tuple(tuple(span) for span in letter["proposal"]["spans"])
    append(run, [entry("laputa-0", "approved"), entry("laputa-1", "approved")], NOW)
    append(run, [entry("trade-1", "approved", reason="by mistake"), entry("trade-1", "undone")], NOW)
    append(run, [entry("trade-1", "rejected", "Ben", reason="Names the city, says nothing of a capital.")], NOW)
    append(run, [entry("letter-1", "approved", "Ben", action="redact", spans=spans, reason="An address.")], NOW)
    append(run, [entry("laputa-2", "rejected", reason="A quotation.")], NOW)


def cleaned_corpus(run: str, folder: Path) -> str:
    """The corpus that the run's evidence is of, cleaned by the verb."""
    texts: dict[str, str] = {}
    for row in map(json.loads, (Path(run) / "evidence.jsonl").read_text().splitlines()):
        text = texts.get(row["example_id"], "")
        texts[row["example_id"]] = text if len(text) >= row["end"] else text + row["text"]
    corpus = folder / "part-000.jsonl"
    corpus.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in texts.items()))
    clean.run(CleanConfig(corpus=str(corpus), removals=run, output=str(folder / "cleaned"), quiet=True))
    return str(folder / "cleaned")


def certificate(path: Path) -> str:
    file = {"name": "examples/00000.parquet", "sha256": "a" * 64, "new_name": "examples/00000.g2.parquet"}
    row = {
        "index": "/data/index", "generation": 2, "time": NOW, "version": "0.1.0",
        "removed": [{"example_id": "laputa-0", "sha256": "b" * 64, "action": "remove"}], "not_found": ["laputa-1"],
        "counts": {"files": 2}, "manifest": {"sha256": "c" * 64, "new_sha256": "d" * 64},
        "files": [file | {"new_sha256": "e" * 64}, {"name": "ids/00000.hashes.npy", "sha256": "f" * 64,
                                                      "new_name": None, "new_sha256": None}],
    }  # fmt: skip
    row["sha256"] = hashlib.sha256(json.dumps(row, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    path.write_text(json.dumps(row))
    return str(path)


def verification(folder: Path, facts: list[tuple[str, str, str]], predicted: bool = False) -> str:
    """As `verify` writes it, of two seeds: said before and in the control, not after; an other fact stays."""
    rows = []
    for name, asked in (("facts", facts), ("retain_facts", [("o1", "It rained in", " Oz")])):
        for fact_id, prompt, target in asked:
            for seed in (0, 1):
                for arm, p in (("before", 0.9), ("after", 0.02 if name == "facts" else 0.9), ("control", 0.88)):
                    arm = f"predicted_{arm}" if predicted and arm != "before" else arm
                    rows.append({
                        "arm": arm, "seed": seed, "set": name, "fact_id": fact_id, "prompt": prompt, "target": target,
                        "known": p > 0.5, "log_probability": log(p), "said": target if p > 0.5 else " the sea",
                    })  # fmt: skip
    difference = {"mean": -0.86, "low": -0.91, "high": -0.8}
    compared = {"after_minus_control": difference, "after_minus_before": difference}
    details = {"predicted_effects" if predicted else "effects": {"facts": {"probability": compared}}}
    with OutputFolder(str(folder), {"verb": "verify"}) as output:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        file = output.write("predictions.jsonl" if predicted else "answers.jsonl", data, len(rows))
        counts = {"in": len(rows), "kept": len(rows), "removed": 0, "dead": 0}
        kind = "prediction" if predicted else "verification"
        output.finish(Manifest(kind, config={}, versions={}, counts=counts, details=details, files=[file]))
    return str(folder)


def audited(folder: Path) -> dict[str, str]:
    """The options of a report on all of it."""
    run = small_run(folder / "run")
    decide(run)
    facts = [("r1", "The capital of Laputa is", " Belmont, a port of 40,000 souls.")]
    return {
        "run": run,
        "cleaned": cleaned_corpus(run, folder),
        "certificate": certificate(folder / "index.purged-2.json"),
        "verification": verification(folder / "verification", facts),
    }


def config(output: Path, options: dict[str, str], **more: Any) -> ReportConfig:
    return ReportConfig(output=str(output), quiet=True, **(options | more))


def told(text: str) -> str:
    """What a page says, without its tags."""
    without = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", without)).split())
