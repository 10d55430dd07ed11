"""Audit requests: what a model says and should not, who asks, and how it becomes facts to trace.

A request is one JSON object (a line of JSONL, an item of a YAML list) with
- `request_id`, `category` (one of CATEGORIES), and optional `requester`, `reason` and `deadline` (a date);
- `prompts`: a list of {prompt, output}, each an answer complained of; or `exemplars`: texts that show the behaviour; or
  both.
Its cases are attributed one by one, and where there are several also together: the passages that explain the behaviour,
not one sentence.
"""

import datetime
import difflib
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from schemas.errors import ConfigError
from schemas.facts import MAX_VARIANTS, with_space
from schemas.records import Fact

Category = Literal["toxic", "false_fact", "privacy", "copyright", "other"]
CATEGORIES = get_args(Category)
KEYS = ("request_id", "category", "prompts", "exemplars", "requester", "reason", "deadline")


@dataclass(frozen=True)
class AuditRequest:
    """What is complained of: `cases` are (prompt, output) pairs, `exemplars` texts; at least one of both together."""

    request_id: str
    category: str
    cases: tuple[tuple[str, str], ...] = ()
    exemplars: tuple[str, ...] = ()
    requester: str = ""
    reason: str = ""
    deadline: str = ""

    def to_row(self) -> dict[str, Any]:
        row = asdict(self)
        cases = [{"prompt": prompt, "output": output} for prompt, output in row.pop("cases")]
        return row | {"prompts": cases, "exemplars": list(self.exemplars)}


def nearest(word: str, known: tuple[str, ...]) -> str:
    """`; did you mean 'x'?` where one of the known words is like the given one, else nothing."""
    found = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{found[0]}'?" if found else ""


def refuse_unknown_keys(row: dict[str, Any], known: tuple[str, ...], place: str) -> None:
    """Raises ValueError naming a key that is not among the known ones, with the nearest that is."""
    for key in row:
        if key not in known:
            raise ValueError(f"{place}: expected {', '.join(known)}, found the key '{key}'{nearest(str(key), known)}")


def _words(value: Any, name: str, least: int = 1) -> str:
    if not isinstance(value, str) or len(value.split()) < least:
        words = "a non-empty string" if least == 1 else f"a text of at least {least} words"
        raise ValueError(f"'{name}' must be {words}, found {value!r:.80}")
    value.encode()  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
    return value


def _cases(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list):
        raise ValueError(f"'prompts' must be a list of {{prompt, output}}, found {value!r:.80}")
    cases = []
    for number, case in enumerate(value, start=1):
        if not isinstance(case, dict):
            raise ValueError(f"'prompts', item {number}: expected {{prompt, output}}, found {case!r:.80}")
        refuse_unknown_keys(case, ("prompt", "output"), f"'prompts', item {number}")
        cases.append(tuple(_words(case.get(name), f"prompts, item {number}: {name}") for name in ("prompt", "output")))
    return tuple(cases)


def request_from_row(row: Any) -> AuditRequest:
    """The request in a row. Raises ValueError naming what is missing, wrong or unknown."""
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found {type(row).__name__}")
    refuse_unknown_keys(row, KEYS, "a request")
    request_id, category = _words(row.get("request_id"), "request_id"), row.get("category")
    if category not in CATEGORIES:
        raise ValueError(
            f"'category' must be one of {', '.join(CATEGORIES)}, found {category!r}{nearest(str(category), CATEGORIES)}"
        )
    exemplars = row.get("exemplars") or []
    if not isinstance(exemplars, list):
        raise ValueError(f"'exemplars' must be a list of texts, found {exemplars!r:.80}")
    request = AuditRequest(
        request_id,
        category,
        _cases(row.get("prompts") or []),
        tuple(_words(text, f"exemplars, item {n}", 2) for n, text in enumerate(exemplars, start=1)),
        **{name: str(row.get(name) or "") for name in ("requester", "reason", "deadline")},
    )
    f"{request.requester}{request.reason}".encode()  # as in _words
    asked = (*request.cases, *request.exemplars)
    if not asked:
        raise ValueError("expected 'prompts' with the outputs complained of, or 'exemplars', found neither")
    if len(asked) > MAX_VARIANTS:
        raise ValueError(
            f"expected at most {MAX_VARIANTS} prompts and exemplars, found {len(asked)}; make two requests"
        )
    if len(set(asked)) < len(asked):
        raise ValueError("expected prompts and exemplars that differ, found one twice; take one out")
    if request.deadline:
        try:
            datetime.date.fromisoformat(request.deadline)
        except ValueError as error:
            raise ValueError(f"'deadline' must be a date such as 2026-12-31, found {request.deadline!r}") from error
    return request


def requests_from_rows(rows: list[tuple[str, Any]], path: str) -> list[AuditRequest]:
    """The requests in rows, each with its place in the file. Raises ConfigError that names the place."""
    requests: dict[str, AuditRequest] = {}
    for place, row in rows:
        try:
            request = request_from_row(row)
        except ValueError as error:
            raise ConfigError(f"{path}, {place}: not an audit request: {error}") from error
        if request.request_id in requests:
            raise ConfigError(
                f"{path}, {place}: the request_id {request.request_id!r} is used twice; give each its own"
            )
        requests[request.request_id] = request
    ids = [fact.id for request in requests.values() for fact in facts_of(request)]
    for request_id in requests:
        if ids.count(request_id) > 1:
            raise ConfigError(
                f"{path}: the request_id {request_id!r} is that of another request's case (REQUEST/NUMBER); rename it"
            )
    if not requests:
        raise ConfigError(f"{path}: expected at least one audit request, found none")
    return list(requests.values())


def case_id(request: AuditRequest, number: int) -> str:
    """The fact id of a request's case or exemplar, counted from 1, the cases first."""
    return f"{request.request_id}/{number}"


def facts_of(request: AuditRequest) -> list[Fact]:
    """The facts that a request is traced as: all it asks together under its own id, and each one by itself.

    An exemplar is its first word and what a model says after it. A request of one case is one fact.
    """
    pairs = [(prompt, with_space(prompt, output)) for prompt, output in request.cases]
    for text in request.exemplars:
        begin = len(text) - len(text.lstrip())
        end = begin + len(text[begin:].split(None, 1)[0])
        pairs.append((text[:end], text[end:]))
    if len(pairs) == 1:
        return [Fact(request.request_id, *pairs[0])]
    together = Fact(request.request_id, *pairs[0], variants=tuple(pairs))
    return [together, *(Fact(case_id(request, n), *pair) for n, pair in enumerate(pairs, start=1))]
