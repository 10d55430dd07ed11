"""Audit requests and policies from their files, and what the model says when it is asked first.

requests (JSONL or YAML) -> facts to trace; the model's own answer to each prompt -> requests.jsonl of the rankings
"""

import json
import os
from dataclasses import asdict, dataclass
from math import exp
from typing import Any

import yaml

from attribution.checkpoint import Checkpoint
from attribution.knowledge import answer, greedy_continuation
from pipelines import progress
from pipelines.storage import read_bytes, verified
from schemas.errors import ConfigError
from schemas.facts import with_space
from schemas.jsonl import jsonl_bytes
from schemas.policies import DEFAULT, Policy, policy_from_row
from schemas.records import Fact
from schemas.removals import REQUESTS
from schemas.requests import AuditRequest, case_id, requests_from_rows

LEAST_SAID, MOST_SAID = 8, 64  # tokens of the model's own answer that are kept, as many as the output complained of has


def _yaml(data: bytes, path: str) -> Any:
    try:
        return yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected YAML, found something else: {error}") from error


def _lines(data: bytes, path: str) -> list[tuple[str, Any]]:
    rows = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            try:
                rows.append((f"line {number}", json.loads(line)))
            except ValueError as error:
                raise ConfigError(
                    f"{path}, line {number}: expected a JSON object, found something else: {error}"
                ) from error
    return rows


def read_requests(path: str) -> list[AuditRequest]:
    """The requests of a .jsonl file, or of a .yaml one that holds a list. Raises ConfigError naming the place."""
    suffix, data = os.path.splitext(path)[1], read_bytes(path)
    if suffix in (".jsonl", ".ndjson"):
        return requests_from_rows(_lines(data, path), path)
    if suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{path}: expected audit requests as .jsonl or .yaml, found the suffix '{suffix}'; rename it")
    rows = _yaml(data, path)
    if not isinstance(rows, list):
        raise ConfigError(f"{path}: expected a list of requests (- request_id: ...), found {type(rows).__name__}")
    return requests_from_rows([(f"item {number}", row) for number, row in enumerate(rows, start=1)], path)


def read_policy(path: str) -> Policy:
    """The policy in a YAML file, or the default one for no file. Raises ConfigError naming what is wrong in it."""
    if not path:
        return DEFAULT
    try:
        return policy_from_row(_yaml(read_bytes(path), path))
    except ValueError as error:
        raise ConfigError(f"{path}: not a policy: {error}; mend the file") from error


@dataclass(frozen=True)
class Said:
    """A request's case and what the model itself answered; of None it was not asked: an exemplar, or no model."""

    prompt: str
    output: str
    said: str | None = None
    known: bool | None = None
    probability: float | None = None


@dataclass(frozen=True)
class AskedRequest:
    """A request after its first question. `said_by_model`: whether any output is the model's own greedy answer; None
    where none could be asked."""

    request: AuditRequest
    cases: tuple[Said, ...]
    model: str

    @property
    def said_by_model(self) -> bool | None:
        known = [case.known for case in self.cases if case.known is not None]
        return any(known) if known else None

    def to_row(self) -> dict[str, Any]:
        row = self.request.to_row()
        row.pop("prompts")
        cases = [asdict(case) for case in self.cases]
        return row | {"cases": cases, "model": self.model, "said_by_model": self.said_by_model}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "AskedRequest":
        """The one that `to_row` made the row from."""
        cases = tuple(Said(**case) for case in row["cases"])
        names = ("request_id", "category", "requester", "reason", "deadline")
        request = AuditRequest(
            cases=tuple((case.prompt, case.output) for case in cases),
            exemplars=tuple(row["exemplars"]),
            **{name: row[name] for name in names},
        )
        return cls(request, cases, row["model"])


def ask_model(requests: list[AuditRequest], checkpoint: Checkpoint | None, name: str) -> list[AskedRequest]:
    """Asks a causal model every prompt; without one (None) the requests go on unasked."""
    asked = []
    with progress.bar("requests, the model's own answers", sum(len(r.cases) for r in requests), "prompts") as advance:
        for request in requests:
            cases = []
            for number, (prompt, output) in enumerate(request.cases, start=1):
                case = Said(prompt, output)
                if checkpoint is not None:
                    fact = Fact(case_id(request, number), prompt, with_space(prompt, output))
                    found, query = answer(checkpoint, fact), checkpoint.encode_fact(fact)
                    count = min(max(LEAST_SAID, len(query.tokens) - query.target_start), MOST_SAID)
                    said = greedy_continuation(checkpoint, prompt, count)
                    case = Said(prompt, output, said, found.known, exp(found.log_probability))
                cases.append(case)
                advance(1)
            asked.append(AskedRequest(request, tuple(cases), name))
    return asked


def requests_to_jsonl(asked: list[AskedRequest]) -> bytes:
    return jsonl_bytes(request.to_row() for request in asked)


def read_asked(folder: str) -> list[AskedRequest]:
    """The requests of a folder of rankings or of a run."""
    data = read_bytes(verified(folder, REQUESTS))
    return [AskedRequest.from_row(json.loads(line)) for line in data.split(b"\n") if line]
