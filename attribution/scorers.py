"""Scorers label passages: a classifier's labels, personal data, secrets, or what a user's own function says.

spec (`hf:NAME_OR_FOLDER`, `pii`, `secrets`, `python:module:function`, each with `@threshold`) -> Scorer
Scorer + texts -> the labels of each, with the scorer's name, version and threshold; or why it could not be scored

A label is kept whose score is at least the threshold.
"""

import hashlib
import importlib
import math
import numbers
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from attribution import patterns
from attribution.checkpoint import model_hash
from attribution.classifier import classify, load_classifier
from schemas.errors import ConfigError
from schemas.records import Label

THRESHOLD = 0.5
BATCH = 256  # texts that a scorer is given at once
MOST_OF_AN_ERROR = 1_000  # characters
FORMS = "hf:NAME_OR_FOLDER, pii, secrets or python:module:function, each with @THRESHOLD if it is not 0.5"
RESULTS = "a list with a number, or {label, score, spans}, for each text"

# Texts -> for each a number, {label, score, spans}, or a list of these.
Score = Callable[[list[str]], Any]


@dataclass(frozen=True)
class Scorer:
    """`name` is what was asked for, `label` what a bare number is the score of."""

    name: str
    version: str
    threshold: float
    label: str
    score: Score


@dataclass(frozen=True)
class Failure:
    """Why a text has no labels. `wrong_type`: what came back is no result of a scorer at all."""

    reason: str
    wrong_type: bool = False


def parse_spec(spec: str) -> tuple[str, str, float]:
    """(kind, what follows it, threshold) of a scorer's spec. Raises ConfigError for one that is none."""
    name, at, threshold = spec.rpartition("@")
    try:
        value = float(threshold) if at else THRESHOLD
    except ValueError:
        name, value = spec, THRESHOLD  # the @ is a part of a path
    kind, colon, rest = (name if at else spec).partition(":")
    fits = {"hf": bool(rest), "pii": not colon, "secrets": not colon, "python": rest.count(":") == 1}
    if not fits.get(kind) or (kind == "python" and not all(rest.split(":"))):
        raise ConfigError(f"scorer: expected {FORMS}, found {spec!r}")
    if not math.isfinite(value) or (kind != "python" and not 0 <= value <= 1):
        raise ConfigError(f"scorer {spec}: expected a threshold from 0 to 1, found {threshold}")
    return kind, rest, value


def load_scorer(spec: str, device: str = "cpu") -> Scorer:
    """The scorer of a spec, loaded; a user's module is imported here and nowhere else. Raises ConfigError."""
    kind, rest, threshold = parse_spec(spec)
    name = f"{kind}:{rest}" if rest else kind
    if kind == "hf":
        return _classifier(name, rest, threshold, device)
    if kind == "python":
        return _own(name, *rest.split(":"), threshold)
    find, packages = {
        "pii": (patterns.personal_data, ("phonenumberslite", "python-stdnum")),
        "secrets": (patterns.secrets, ("detect-secrets",)),
    }[kind]
    version = " ".join(f"{package} {metadata.version(package)}" for package in ("proponent", *packages))
    return Scorer(name, version, threshold, kind, lambda texts: [_spotted(find(text)) for text in texts])


def _spotted(found: patterns.Spans) -> list[dict[str, Any]]:
    return [{"label": label, "score": 1.0, "spans": spans} for label, spans in found.items()]


def _classifier(name: str, path: str, threshold: float, device: str) -> Scorer:
    loaded = load_classifier(path, device)

    def score(texts: list[str]) -> list[list[dict[str, Any]]]:
        rows = classify(loaded, texts)
        return [[{"label": a, "score": float(s)} for a, s in zip(loaded.labels, row, strict=True)] for row in rows]

    version = f"transformers {metadata.version('transformers')} model {model_hash(loaded.model)}"
    return Scorer(name, version, threshold, path, score)


def _own(name: str, module: str, function: str, threshold: float) -> Scorer:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # last, so that a file there hides no module of ours
    try:
        imported = importlib.import_module(module)
    except Exception as error:
        raise ConfigError(
            f"scorer {name}: expected a module that can be imported, found {type(error).__name__}: {error}; check its "
            "name, and that it is in this folder or installed"
        ) from error
    score, source = getattr(imported, function, None), getattr(imported, "__file__", None)
    if not callable(score):
        raise ConfigError(f"scorer {name}: expected a function {function!r} in {source or module}, found none")
    if not source:
        raise ConfigError(f"scorer {name}: expected a module with a file, whose sha256 is its version, found none")
    sha256 = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    return Scorer(name, f"sha256 {sha256}", threshold, function, score)


def score_texts(scorer: Scorer, texts: Sequence[str]) -> tuple[list[tuple[Label, ...]], dict[int, Failure]]:
    """(each text's labels, the failures by position: those texts have none).

    A batch in which anything is wrong is scored again text by text, so that a text costs no other one its labels.
    """
    labels: list[tuple[Label, ...]] = [()] * len(texts)
    failures: dict[int, Failure] = {}
    for start in range(0, len(texts), BATCH):
        batch = list(texts[start : start + BATCH])
        found = _scored(scorer, batch)
        if isinstance(found, Failure):
            for place, text in enumerate(batch, start):
                alone = _scored(scorer, [text])
                if isinstance(alone, Failure):
                    failures[place] = alone
                else:
                    labels[place] = alone[0]
        else:
            labels[start : start + len(batch)] = found
    return labels, failures


def require_results(scorer: str, texts: int, failures: Sequence[Failure]) -> None:
    """Raises ConfigError where not one of a job's texts was given anything that is a result."""
    if texts and len(failures) == texts and all(failure.wrong_type for failure in failures):
        raise ConfigError(
            f"scorer {scorer}: expected {RESULTS}, found for all of the {texts} texts: {failures[0].reason}; correct "
            "the function"
        )


def _scored(scorer: Scorer, texts: list[str]) -> list[tuple[Label, ...]] | Failure:
    """The labels of each text; or the one failure, as nothing tells whose it is."""
    try:
        results = scorer.score(list(texts))
    except Exception as error:  # whatever a user's function raises, it is told with the text that it was raised for
        told = f"{type(error).__name__}: {error}"[:MOST_OF_AN_ERROR]  # it may quote the text, whatever is in it
        return Failure(told.encode(errors="replace").decode())
    if isinstance(results, str | bytes | dict | set) or not hasattr(results, "__len__"):
        return Failure(f"expected {RESULTS}, found {type(results).__name__}", wrong_type=True)
    if len(results) != len(texts):
        return Failure(f"expected as many results as texts, {len(texts)}, found {len(results)}")
    try:
        return [_labels(scorer, text, result) for text, result in zip(texts, results, strict=True)]
    except TypeError as error:
        return Failure(str(error), wrong_type=True)
    except ValueError as error:
        return Failure(str(error))


def _labels(scorer: Scorer, text: str, result: Any) -> tuple[Label, ...]:
    """The labels of one result at or above the threshold. Raises TypeError (no result) or ValueError (no number)."""
    made = []
    for row in result if isinstance(result, list | tuple) else [result]:
        row = {"score": row} if isinstance(row, numbers.Real) and not isinstance(row, bool) else row
        if not isinstance(row, dict) or not row.keys() <= {"label", "score", "spans"} or "score" not in row:
            raise TypeError(f"expected {RESULTS}, found {row!r:.80}")
        score, label, spans = row["score"], row.get("label", scorer.label), row.get("spans") or ()
        if not isinstance(score, numbers.Real) or isinstance(score, bool) or not isinstance(label, str):
            raise TypeError(f"expected a number as score and a string as label, found {row!r:.80}")
        if not math.isfinite(score):
            raise ValueError(f"expected a finite score, found {score}")
        try:
            spans = tuple(sorted((int(start), int(end)) for start, end in spans))
        except (TypeError, ValueError) as error:
            raise TypeError(f"expected spans as pairs of start and end, found {row!r:.80}") from error
        if any(not 0 <= start < end <= len(text) for start, end in spans):
            raise ValueError(f"expected spans inside the text's {len(text)} characters, found {list(spans)[:3]}")
        if score >= scorer.threshold:
            made.append(Label(scorer.name, scorer.version, scorer.threshold, label, float(score), spans))
    return tuple(made)
