"""What an audit report is made of: a run and its ledger, and where they are given a cleaned corpus, a certificate, a
verification. All of it is read here, and checked as it is read.

RUN/ (requests, evidence, removals, ledger), CORPUS/removed/, INDEX.purged-N.json, VERIFICATION/ -> Audit
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from math import exp
from typing import Any

from pipelines.config import ReportConfig
from pipelines.review_items import Case, Item, load_case, proposal_of
from pipelines.storage import absolute, exists, is_local, join, kind_of, read_bytes, read_manifest, verified
from pipelines.versions import taken_earlier, taken_out, version_of
from schemas.errors import ArtifactMismatch, ConfigError
from schemas.ledger import Entry, manifest_sha256, read_ledger, standing, standing_removals
from schemas.manifest import MANIFEST, Manifest
from schemas.records import Removal
from schemas.removed import Removed
from schemas.requests import AuditRequest, facts_of

ARMS = ("before", "after", "control")
OUTCOMES = ("remove", "redact", "kept", "not_proposed", "undecided")
PREDICTED = "predicted_"
CERTIFICATE_KEYS = {"index", "generation", "time", "version", "removed", "not_found", "files", "manifest"}


@dataclass(frozen=True)
class Reply:
    """What one arm answered to a fact: `known` of `asked` prompts with the target, over all seeds and paraphrases.

    `said` is the first seed's own continuation of the first prompt; `probability` is the mean over seeds.
    """

    said: str
    known: int
    asked: int
    probability: float


@dataclass(frozen=True)
class MeasuredFact:
    """A fact that `verify` asked, by arm. `retain`: it is one that should stay."""

    fact_id: str
    prompt: str
    target: str
    retain: bool
    replies: dict[str, Reply]


@dataclass(frozen=True)
class Verification:
    """A folder that `verify` wrote; of a prediction the arms after and control are computed, not measured."""

    manifest: Manifest
    facts: list[MeasuredFact]

    @property
    def predicted(self) -> bool:
        return self.manifest.kind == "prediction"

    @property
    def effects(self) -> dict[str, Any]:
        """Differences between the arms with their intervals; nothing where the folder has none."""
        return self.manifest.details.get(f"{PREDICTED if self.predicted else ''}effects", {})

    def about(self, request: dict[str, Any]) -> list[MeasuredFact]:
        """The facts of a request: by its own id, else by those of its cases, else by the words that were asked."""
        cases = tuple((case["prompt"], case["output"]) for case in request["cases"])
        asked = facts_of(AuditRequest(request["request_id"], request["category"], cases, tuple(request["exemplars"])))
        names, words = {fact.id for fact in asked}, {(fact.prompt.strip(), fact.target.strip()) for fact in asked}
        found = [fact for fact in self.facts if not fact.retain]
        return (
            [fact for fact in found if fact.fact_id == request["request_id"]]
            or [fact for fact in found if fact.fact_id in names]
            or [fact for fact in found if (fact.prompt.strip(), fact.target.strip()) in words]
        )


@dataclass(frozen=True)
class Version:
    """A cleaned corpus: what it, and by hash the versions before it, took out, by example."""

    folder: str
    manifest: Manifest
    removed: dict[str, list[Removed]]

    @property
    def number(self) -> int:
        return version_of(self.manifest)

    def carried_out(self, removal: Removal) -> Removed | None:
        """The row of an approved removal: the same example, content, action and spans; None where it was not done."""
        wanted = (removal.sha256, removal.action, removal.spans)
        rows = self.removed.get(removal.example_id, [])
        return next((row for row in rows if (row.sha256, row.action, row.spans) == wanted), None)


@dataclass(frozen=True)
class Audit:
    """All that the reports show. `entries` is the whole ledger, `head` the hash of its last entry."""

    case: Case
    manifest: Manifest
    entries: list[Entry]
    head: str
    version: Version | None = None
    certificate: dict[str, Any] | None = None
    verification: Verification | None = None
    index: Manifest | None = None
    places: dict[str, str] = field(default_factory=dict)

    @cached_property
    def decided(self) -> dict[str, Removal]:
        """By example what stands: the ledger's decision over what the run proposes."""
        return {r.example_id: r for r in standing_removals(self.case.removals.values(), self.entries)}

    @cached_property
    def stands(self) -> dict[str, Entry]:
        return standing(self.entries)

    def outcome(self, example_id: str) -> str:
        """One of OUTCOMES. `not_proposed`: the policy proposes to keep it, and nobody decided otherwise."""
        removal = self.decided.get(example_id)
        if removal is None:
            return "not_proposed" if proposal_of(self.case, example_id).action == "keep" else "undecided"
        return removal.action if removal.decision == "approved" else _OUTCOME[removal.decision]

    def examples(self, request_id: str) -> list[str]:
        """A request's examples, the best ranked first."""
        return [i for i in self.case.example_ids if any(r["request_id"] == request_id for r in self.case.passages[i])]

    def items(self, request_id: str) -> list[list[str]]:
        """A request's examples in the sets that are decided together, the best ranked first."""
        best = {i: min(r["rank"] for r in self.rows(request_id, i)) for i in self.examples(request_id)}
        chosen = [item for item in self.case.items if request_id in item.request_ids]
        sets = [sorted((i for i in _ids(self.case, item) if i in best), key=lambda i: (best[i], i)) for item in chosen]
        return sorted(sets, key=lambda ids: (best[ids[0]], ids[0]))

    def rows(self, request_id: str, example_id: str) -> list[dict[str, Any]]:
        """The evidence of one request about one example, passage by passage."""
        return [row for row in self.case.passages[example_id] if row["request_id"] == request_id]

    def outcomes(self, example_ids: list[str]) -> dict[str, int]:
        found = [self.outcome(example_id) for example_id in example_ids]
        return {outcome: found.count(outcome) for outcome in OUTCOMES}

    def carried_out(self, example_ids: list[str]) -> list[tuple[Removal, Removed | None]]:
        """Each approved removal with its row in the cleaned corpus; None where it has none, or none was given."""
        approved = [self.decided[i] for i in example_ids if self.outcome(i) in ("remove", "redact")]
        return [(removal, self.version.carried_out(removal) if self.version else None) for removal in approved]


_OUTCOME = {"rejected": "kept", "proposed": "undecided"}


def _ids(case: Case, item: Item) -> list[str]:
    return [case.example_ids[place] for place in item.examples]


# ------------------------------------------------------------------------------------------------------------- reading


def read_audit(config: ReportConfig) -> Audit:
    """Everything that the options name. Raises ConfigError or ArtifactMismatch for what is not what it should be."""
    folder = absolute(config.run).rstrip("/")
    if not is_local(folder):
        raise ConfigError(f"{folder}: expected a run on this machine, where its ledger is, found a remote one; copy it")
    case, manifest, entries = load_case(folder), read_manifest(folder, "removals"), read_ledger(folder)
    index = manifest.details.get("index", "")
    return Audit(
        case=case,
        manifest=manifest,
        entries=entries,
        head=entries[-1].hash if entries else manifest_sha256(folder),
        version=read_version(config.cleaned, case) if config.cleaned else None,
        certificate=read_certificate(config.certificate) if config.certificate else None,
        verification=read_verification(config.verification) if config.verification else None,
        index=read_manifest(index, "index") if index and exists(join(index, MANIFEST)) else None,
        places={name: getattr(config, name) for name in ("run", "cleaned", "certificate", "verification")},
    )


def read_version(folder: str, case: Case) -> Version:
    """A cleaned corpus, with the rows of the run's examples alone: it may have taken out many others."""
    manifest, removed = read_manifest(folder, "corpus"), {}
    for row in (*taken_earlier(folder), *taken_out(folder)):
        if row.id in case.passages:
            removed.setdefault(row.id, []).append(row)
    return Version(folder, manifest, removed)


def read_certificate(path: str) -> dict[str, Any]:
    """The certificate of a purge. Raises ConfigError for another file, ArtifactMismatch for one that was changed."""
    if not exists(path):
        raise ConfigError(f"--certificate: expected the file that `purge` wrote beside the index, found none at {path}")
    try:
        row = json.loads(read_bytes(path))
        missing = CERTIFICATE_KEYS - row.keys()
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: expected a certificate of `purge`, found something else ({error})") from error
    if missing:
        raise ConfigError(f"{path}: expected a certificate of `purge`, found no {', '.join(sorted(missing))} in it")
    expected = row.pop("sha256", "none")
    found = hashlib.sha256(json.dumps(row, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    if found != expected:
        raise ArtifactMismatch(
            f"{path}: expected content with the sha256 that it names, {expected}, found {found}: it was changed after "
            "it was written; restore it from a copy"
        )
    return row | {"sha256": expected}


def read_verification(folder: str) -> Verification:
    """What `verify` measured, or predicted."""
    predicted = kind_of(folder) == "prediction"
    kind, name = ("prediction", "predictions.jsonl") if predicted else ("verification", "answers.jsonl")
    manifest = read_manifest(folder, kind)
    rows = [json.loads(line) for line in read_bytes(verified(folder, name)).split(b"\n") if line]
    by_fact: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        by_fact.setdefault((row["set"], row["fact_id"]), []).append(row)
    facts = []
    for (name, fact_id), found in by_fact.items():
        arms: dict[str, list[dict[str, Any]]] = {}
        for row in found:
            arms.setdefault(row["arm"].removeprefix(PREDICTED), []).append(row)
        replies = {arm: _reply(arms[arm]) for arm in ARMS}
        facts.append(MeasuredFact(fact_id, found[0]["prompt"], found[0]["target"], name == "retain_facts", replies))
    return Verification(manifest, facts)


def _reply(rows: list[dict[str, Any]]) -> Reply:
    known = [prompt["known"] for row in rows for prompt in row.get("paraphrases") or [row]]
    probability = sum(exp(row["log_probability"]) for row in rows) / len(rows)
    return Reply(rows[0]["said"], sum(known), len(known), probability)
