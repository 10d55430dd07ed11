"""`verify`: did the knowledge go, and did the rest stay? Measured on the models before, after and in the control.

checkpoints (or corpora to train on) + facts + facts to retain -> answers.jsonl, summary.json, manifest.json
"""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from attribution.knowledge import Answer, answers, with_aliases
from pipelines import progress, resources
from pipelines.config import TrainConfig, VerifyConfig
from pipelines.corpus import list_corpus
from pipelines.stage import library_versions
from pipelines.storage import OutputFolder, join, read_bytes
from schemas.errors import ConfigError
from schemas.facts import parse_facts
from schemas.manifest import Manifest
from schemas.records import Fact

log = logging.getLogger(__name__)
ARMS = ("before", "after", "control")


def summarise(by_arm: dict[str, dict[str, Answer]], facts: list[Fact], retain: list[Fact]) -> dict[str, Any]:
    """Shares of the facts that are known, and of the facts to retain that were known before and still are."""
    summary: dict[str, Any] = {"num_facts": len(facts), "num_retain_facts": len(retain)}
    for arm, answered in by_arm.items():
        summary[f"known_{arm}"] = sum(answered[fact.id].known for fact in facts) / len(facts)
    known = [fact for fact in retain if by_arm["before"][fact.id].known]
    summary["others_known_before"] = len(known)
    for arm in ("after", "control"):
        stayed = sum(by_arm[arm][fact.id].known for fact in known)
        summary["others_retained" if arm == "after" else "others_retained_control"] = stayed / max(1, len(known))
    return summary


def _measure(path: str, facts: list[Fact], arm: str) -> dict[str, Answer]:
    loaded = resources.checkpoint(resources.resolve_checkpoints((path,))[-1])
    with progress.bar(f"verify, {arm}", len(facts), "facts") as advance:
        return {said.fact_id: said for said in answers(loaded, facts, advance)}


def _unique(facts: list[Fact], retain: list[Fact], config: VerifyConfig) -> list[Fact]:
    """Every fact once; raises ConfigError where an id stands for one fact here and another there."""
    by_id = {fact.id: fact for fact in facts}
    for fact in retain:
        known = by_id.setdefault(fact.id, fact)
        if (known.prompt, known.target) != (fact.prompt, fact.target):
            raise ConfigError(
                f"{config.retain_facts}: the id {fact.id!r} is another fact in {config.facts}; give each its own id"
            )
    return list(by_id.values())


def run(config: VerifyConfig, train: Callable[[TrainConfig], Manifest]) -> Manifest:
    """Writes every answer and the summary. `train` is the verb, for the arms that are given as corpora."""
    facts = parse_facts(read_bytes(config.facts), config.facts)
    retain = parse_facts(read_bytes(config.retain_facts), config.retain_facts)
    unique = _unique(facts, retain, config)
    for path in (config.control, config.after, config.before):  # refuses before anything is trained
        if path:
            loaded = resources.checkpoint(resources.resolve_checkpoints((path,))[-1])
            if loaded.kind != "causal":
                raise ConfigError(
                    f"{path}: expected a causal language model, whose answers are continuations, found a {loaded.kind} "
                    "one; ask it with your own tools"
                )
            for fact in unique:
                for spelled in with_aliases(fact):
                    loaded.encode_fact(spelled)
    fields = {name: loaded.meta[name] for name in ("id_field", "text_field") if name in loaded.meta}
    corpora = {arm: getattr(config, f"{arm}_corpus") for arm in ("after", "control")}
    plan = asdict(config) | {arm: [corpus, list_corpus(corpus)] for arm, corpus in corpora.items() if corpus}
    plan.pop("quiet")
    with OutputFolder(config.output, plan) as output:
        paths = {"before": config.before}
        for arm in ("after", "control"):
            paths[arm] = getattr(config, arm)
            if not paths[arm]:
                paths[arm] = join(output.path, f"{arm}-checkpoints")
                if not os.path.exists(paths[arm]):
                    again = TrainConfig(
                        corpus=corpora[arm], output=paths[arm], like=config.before, quiet=config.quiet, **fields
                    )
                    train(again)
        by_arm = {arm: _measure(paths[arm], unique, arm) for arm in ARMS}
        summary = summarise(by_arm, facts, retain)
        rows = [
            {"arm": arm, "set": name, "fact_id": fact.id, "prompt": fact.prompt, "target": fact.target}
            | by_arm[arm][fact.id].to_row()
            for name, chosen in (("facts", facts), ("retain_facts", retain))
            for fact in chosen
            for arm in ARMS
        ]
        data = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
        files = [
            output.write("answers.jsonl", data, len(rows)),
            output.write("summary.json", json.dumps(summary, indent=1).encode() + b"\n", 1),
        ]
        manifest = Manifest(
            kind="verification",
            config=asdict(config),
            versions=library_versions(),
            counts={"in": len(facts) + len(retain), "kept": len(facts) + len(retain), "removed": 0, "dead": 0},
            details=summary,
            files=files,
        )
        output.finish(manifest)
    progress.summary(
        "verify", {name: f"{value:.3f}" if isinstance(value, float) else value for name, value in summary.items()}
    )
    return manifest
