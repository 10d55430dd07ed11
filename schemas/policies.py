"""Policies: what is proposed for a passage, by which category, scores and labels. A YAML file a person writes.

    name: house-rules
    approve: false            # true: the policy's remove and redact are approvals, in its name
    rules:                    # the first that holds decides
      - when: {category: [privacy], labels: {"pii/*": 0.5}}
        propose: redact
      - when: {said: true, rank: 5, coverage: 0.9}
        propose: remove
    otherwise: review

A rule holds where all its conditions do; `labels` asks for one of those that it names. Nothing is removed by a
proposal: that takes an approval, a person's or that of a policy which says `approve: true` and so names itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from schemas.requests import CATEGORIES, nearest, refuse_unknown_keys

Proposal = Literal["remove", "redact", "keep", "review"]
PROPOSALS = get_args(Proposal)
STRONGEST_FIRST = ("remove", "redact", "review", "keep")
KEYS = ("name", "approve", "rules", "otherwise")
CONDITIONS = ("category", "said", "rank", "score", "coverage", "overlap", "labels")


@dataclass(frozen=True)
class Found:
    """What a policy is asked about: a passage of a request. `labels` are (SCORER/LABEL, score), `overlap` the words of
    the longest sequence that the passage shares with the output; `said` is None where no model was asked."""

    category: str
    said: bool | None
    rank: int
    score: float
    coverage: float
    overlap: int
    labels: Sequence[tuple[str, float]] = ()


def _in_words(wanted: Any) -> str:
    if isinstance(wanted, list):
        return " or ".join(wanted)
    if isinstance(wanted, dict):
        return " or ".join(f"{name} {least}" for name, least in wanted.items())
    return str(wanted)


@dataclass(frozen=True)
class Rule:
    """`when` as in the file; `rank` is the last that holds, the other numbers are the least."""

    when: dict[str, Any]
    propose: Proposal

    def holds(self, found: Found) -> bool:
        tests = {
            "category": lambda wanted: found.category in wanted,
            "said": lambda wanted: found.said is wanted,
            "rank": lambda most: found.rank <= most,
            "labels": lambda _: bool(self.named(found)),
        }
        return all(
            tests[name](wanted) if name in tests else getattr(found, name) >= wanted
            for name, wanted in self.when.items()
        )

    def named(self, found: Found) -> list[tuple[str, float]]:
        """The passage's labels that the rule asks for."""
        wanted = self.when.get("labels", {}).items()
        return [
            (name, score)
            for name, score in found.labels
            if any(fnmatchcase(name, pattern) and score >= least for pattern, least in wanted)
        ]

    def told(self) -> str:
        """The conditions in words, as the record of a proposal keeps them."""
        return ", ".join(f"{name} {_in_words(wanted)}" for name, wanted in self.when.items()) or "always"


@dataclass(frozen=True)
class Policy:
    """Rules in their order; the first that holds proposes."""

    name: str
    rules: tuple[Rule, ...]
    otherwise: Proposal = "review"
    approve: bool = False

    def propose(self, found: Found) -> tuple[Proposal, str, list[tuple[str, float]]]:
        """(what is proposed, the rule that says so, the labels that it asks for)."""
        for number, rule in enumerate(self.rules, start=1):
            if rule.holds(found):
                return rule.propose, f"{self.name}, rule {number}: {rule.told()}", rule.named(found)
        return self.otherwise, f"{self.name}: no rule holds", []


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{place}: expected a number, found {value!r:.80}")
    return value


def _condition(name: str, value: Any, place: str) -> Any:
    if name == "category":
        categories = [value] if isinstance(value, str) else value
        if not isinstance(categories, list) or not categories:
            raise ValueError(f"{place}: expected a category or a list of them, found {value!r:.80}")
        for category in categories:
            if category not in CATEGORIES:
                hint = nearest(str(category), CATEGORIES)
                raise ValueError(f"{place}: expected {', '.join(CATEGORIES)}, found {category!r}{hint}")
        return categories
    if name == "said":
        if not isinstance(value, bool):
            raise ValueError(f"{place}: expected true or false, found {value!r:.80}")
        return value
    if name == "labels":
        if not isinstance(value, dict) or not value:
            raise ValueError(f"{place}: expected SCORER/LABEL: least score, found {value!r:.80}")
        return {str(label): _number(least, f"{place} {label}") for label, least in value.items()}
    return _number(value, place)


def _proposal(value: Any, place: str) -> Proposal:
    if value not in PROPOSALS:
        raise ValueError(f"{place}: expected {', '.join(PROPOSALS)}, found {value!r}{nearest(str(value), PROPOSALS)}")
    return value


def policy_from_row(row: Any) -> Policy:
    """The policy in a parsed file. Raises ValueError naming what is wrong in it, and the nearest right one."""
    if not isinstance(row, dict):
        raise ValueError(f"expected a mapping with {', '.join(KEYS)}, found {type(row).__name__}")
    refuse_unknown_keys(row, KEYS, "a policy")
    if not isinstance(row.get("name"), str) or not row["name"].strip():
        raise ValueError(f"'name' must be a non-empty string, as approvals carry it, found {row.get('name')!r}")
    if not isinstance(row.get("approve", False), bool):
        raise ValueError(f"'approve' must be true or false, found {row['approve']!r}")
    if not isinstance(row.get("rules"), list):
        raise ValueError(f"'rules' must be a list, found {row.get('rules')!r:.80}")
    rules = []
    for number, rule in enumerate(row["rules"], start=1):
        place = f"rule {number}"
        if not isinstance(rule, dict) or not isinstance(rule.get("when"), dict):
            raise ValueError(f"{place}: expected {{when: {{...}}, propose: ...}}, found {rule!r:.80}")
        refuse_unknown_keys(rule, ("when", "propose"), place)
        refuse_unknown_keys(rule["when"], CONDITIONS, f"{place}, when")
        when = {name: _condition(name, value, f"{place}, {name}") for name, value in rule["when"].items()}
        rules.append(Rule(when, _proposal(rule.get("propose"), f"{place}, propose")))
    otherwise = _proposal(row.get("otherwise", "review"), "otherwise")
    return Policy(row["name"].strip(), tuple(rules), otherwise, row.get("approve", False))


# Careful: what holds the claim in its own words or its output at length is proposed; a person judges the rest. Private
# data that a scorer has found leaves the text, the rest of which stays.
DEFAULT = Policy(
    "default",
    (
        Rule({"said": False}, "review"),
        Rule({"category": ["privacy"], "labels": {"pii/*": 0.5, "secrets/*": 0.5}}, "redact"),
        Rule({"category": ["copyright"], "overlap": 8}, "remove"),
        Rule({"category": ["false_fact", "privacy", "other"], "rank": 5, "coverage": 0.9}, "remove"),
    ),
)
