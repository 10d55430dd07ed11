"""`flag`: rankings become proposed removals, a file that a person reads and edits, and a random control.

rankings/ of facts + the index's examples -> removals.jsonl, control_removals.jsonl
rankings/ of audit requests + the index   -> the same, and evidence.jsonl, requests.jsonl: a run, for `review`
"""

import datetime
import logging
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pyarrow.parquet as pq

from attribution.removal import control, propose
from pipelines import progress
from pipelines.config import FlagConfig
from pipelines.duplicates import find_duplicates
from pipelines.evidence import TO_BE_JUDGED, gather, passage_of, propose_all, removals_of, with_duplicates
from pipelines.requests import read_asked, read_policy, requests_to_jsonl
from pipelines.score import load_scorers, score_passages
from pipelines.stage import library_versions, log_runner
from pipelines.storage import OutputFolder, join, read_manifest, read_rankings, verified
from schemas.errors import ConfigError
from schemas.jsonl import jsonl_bytes
from schemas.manifest import FileInfo, Manifest
from schemas.policies import PROPOSALS
from schemas.records import Removal
from schemas.removals import CONTROL, EVIDENCE, REMOVALS, REQUESTS, removals_to_jsonl

log = logging.getLogger(__name__)


def _examples(index: str, names: list[str]) -> Iterator[tuple[str, str]]:
    """(id, sha256) of every indexed example, once, though it may be many passages."""
    for name in names:
        table = pq.read_table(verified(index, f"examples/{name}.parquet"), columns=["example_id", "start", "sha256"])
        for row in table.to_pylist():
            if row["start"] == 0:
                yield row["example_id"], row["sha256"]


def cut_in_words(config: FlagConfig) -> str:
    return (
        f"at most {config.max_per_fact} examples a fact, each holding at least {config.min_coverage:.0%} of the "
        "query's word weight (idf)"
    )


def _approved(proposed: list[Removal], by: str) -> list[Removal]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return [replace(removal, decision="approved", decided_by=by, decided_at=now) for removal in proposed]


def _control(index_folder: str, index: Manifest, proposed: list[Removal], seed: int) -> list[Removal]:
    """As many random examples as are proposed. Raises ConfigError if the index has too few others."""
    randomly = control(_examples(index_folder, [s["name"] for s in index.details["shards"]]), proposed, seed)
    if len(randomly) < len(proposed):
        raise ConfigError(
            f"the control needs {len(proposed)} other examples, the index has {len(randomly)}; lower --max_per_fact"
        )
    return randomly


def _write_removals(output: OutputFolder, proposed: list[Removal], randomly: list[Removal]) -> list[FileInfo]:
    return [
        output.write(REMOVALS, removals_to_jsonl(proposed), len(proposed)),
        output.write(CONTROL, removals_to_jsonl(randomly), len(randomly)),
    ]


def _manifest(
    config: FlagConfig, index: Manifest, proposed: list[Removal], details: dict[str, Any], files: list[FileInfo]
) -> Manifest:
    kept = index.counts["kept"]
    return Manifest(
        kind="removals",
        config=asdict(config),
        versions=library_versions(),
        counts={"in": kept, "kept": kept - len(proposed), "removed": len(proposed), "dead": 0},
        details=details | {"rankings": config.rankings, "approve": config.approve},
        files=files,
    )


def run(config: FlagConfig, beam_args: tuple[str, ...] = ()) -> Manifest:
    """Writes proposals and control to `config.output`. Raises ConfigError if the evidence is enough for none."""
    rankings = read_manifest(config.rankings, "rankings")
    index_folder = rankings.details["index"]
    index = read_manifest(index_folder, "index")
    if rankings.details["requests"]:
        return flag_requests(config, index_folder, index, beam_args)
    if config.policy or config.scorers:
        raise ConfigError(
            f"--{'policy' if config.policy else 'scorers'}: expected rankings of audit requests, found those of facts "
            f"in {config.rankings}; trace with --requests"
        )
    proposed = propose(read_rankings(config.rankings), config.max_per_fact, config.min_coverage)
    if not proposed:
        raise ConfigError(
            f"{config.rankings}: expected a passage with enough evidence ({cut_in_words(config)}), found none; "
            "lower --min_coverage, or read rankings.jsonl: the corpus may not say it"
        )
    if config.approve == "all":
        proposed = _approved(proposed, config.by)
    randomly = _control(index_folder, index, proposed, config.seed)
    plan = asdict(config)
    plan.pop("quiet")
    with OutputFolder(config.output, plan) as output:
        files = _write_removals(output, proposed, randomly)
        manifest = _manifest(config, index, proposed, {"cut": cut_in_words(config)}, files)
        output.finish(manifest)
    progress.summary(
        "flag",
        {
            "proposed": len(proposed),
            "cut": cut_in_words(config),
            "decision": proposed[0].decision,
            "edit": join(config.output, REMOVALS),
        },
    )
    return manifest


def flag_requests(config: FlagConfig, index_folder: str, index: Manifest, beam_args: tuple[str, ...] = ()) -> Manifest:
    """Writes a run for audit requests: evidence a passage, proposals by the policy, control.

    Raises ConfigError where no passage was found for any request, or a policy or scorer is wrong.
    """
    policy, scorers = read_policy(config.policy), load_scorers(config.scorers)
    asked = read_asked(config.rankings)
    rankings = {ranking[0].fact_id: ranking for ranking in read_rankings(config.rankings)}
    gathered = [gather(request, rankings, config.max_per_fact) for request in asked]
    if not any(gathered):
        raise ConfigError(f"{config.rankings}: expected passages for some request, found none: is it empty?")
    log_runner(beam_args)
    plan = asdict(config) | {
        "policy_read": repr(policy),
        "scorers_read": [[scorer.name, scorer.version] for scorer in scorers],
    }
    plan.pop("quiet")
    with OutputFolder(config.output, plan) as output:
        if config.duplicates:
            seeds = {(row["request_id"], row["example_id"], row["text"]) for rows in gathered for row in rows}
            groups, matches = find_duplicates(index_folder, index.details, seeds, output, config.duplicates, beam_args)
            pairs = zip(gathered, asked, strict=True)
            gathered = [with_duplicates(rows, groups, matches, request) for rows, request in pairs]
        # A passage of several requests is labelled once.
        passages = {(r["example_id"], r["start"]): passage_of(r) for rows in gathered for r in rows}
        scored, letters = score_passages(list(passages.values()), config.scorers, output, beam_args=beam_args)
        by_passage = dict(zip(passages, scored, strict=True))
        labelled = [[row | by_passage[row["example_id"], row["start"]] for row in rows] for rows in gathered]
        rows = propose_all(labelled, asked, policy)
        proposed = removals_of(rows)
        told = [r for r in proposed if not r.reason.startswith(TO_BE_JUDGED)]
        by = config.by if config.approve == "all" else f"policy {policy.name}" if policy.approve else ""
        if by:
            approved = {removal.example_id: removal for removal in _approved(told, by)}
            proposed = [approved.get(removal.example_id, removal) for removal in proposed]
        randomly = _control(index_folder, index, proposed, config.seed)
        files = [
            *_write_removals(output, proposed, randomly),
            output.write(EVIDENCE, jsonl_bytes(rows), len(rows)),
            output.write(REQUESTS, requests_to_jsonl(asked), len(asked)),
            *letters,
        ]
        unsaid = [request.request.request_id for request in asked if request.said_by_model is False]
        details = {"policy": policy.name, "requests": [r.request.request_id for r in asked], "not_said": unsaid}
        details |= {"index": index_folder, "duplicates": config.duplicates}
        details["scorers"] = [[scorer.name, scorer.version, scorer.threshold] for scorer in scorers]
        details["not_scored"] = sum(info.rows for info in letters)
        manifest = _manifest(config, index, proposed, details, files)
        output.finish(manifest)
    actions = [row["proposal"]["action"] for row in rows]
    progress.summary(
        "flag",
        {
            "requests": len(asked),
            "not said by the model": ", ".join(unsaid) or "none",
            "passages": ", ".join(f"{actions.count(action)} {action}" for action in PROPOSALS),
            "near-duplicate groups": len({row["group"] for row in rows if row["group"]}),
            "policy": policy.name,
            "approved": sum(removal.decision == "approved" for removal in proposed),
            "next": f"proponent review {config.output}",
        },
    )
    return manifest
