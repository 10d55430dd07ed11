"""The demo's report: one self-contained HTML page that says what was found, what was removed and what changed.

`render_report` is pure: the same `ReportData` gives the same text, with no script, no network and no date in it.
The words that a person reads are in `templates/demo_report.html.j2`; here are the data and the word marks.
"""

import itertools
import re
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from attribution.evidence import FUNCTION_WORDS
from pipelines.plots import Row, probability_plot, shares_plot
from schemas.records import SIGNALS, Fact, Proponent, Removal
from schemas.visible import visible

TEMPLATES = Path(__file__).parent / "templates"
MIN_SHOWN = 5  # passages of a card that are shown at once; the rest, below the last removed one, unfolds
MAX_EXAMPLES = 12  # rows of the table of other facts; facts that were lost are always listed

MarkKind = Literal["", "word", "target"]


@dataclass(frozen=True)
class Answer:
    """One fact as measured on one model: `known` if the target is what the model says by itself (greedy)."""

    said: str
    known: bool
    probability: float


@dataclass(frozen=True)
class TracedFact:
    """A fact with the model's answers and the passages behind it, best first."""

    fact: Fact
    before: Answer
    after: Answer
    control: Answer
    proponents: list[Proponent]
    removed_ids: frozenset[str]


@dataclass(frozen=True)
class ReportData:
    """All that the report shows.

    `summary` needs `num_claims`, `num_others`, `num_removed` and `num_examples` (counts), and `known_before`,
    `known_after`, `known_control` and `others_retained` (shares in 0..1: of the claims, and of the other facts that
    the model knew before). `planted_recall_at_5` (a share) is shown where it is given.
    """

    title: str
    summary: dict[str, float]
    claims: list[TracedFact]
    true_facts: list[TracedFact]
    others: list[tuple[Fact, Answer, Answer, Answer]]  # before, after, control
    removals: list[Removal]
    cut: str
    method: dict[str, str]


def render_report(data: ReportData) -> str:
    """The page as text, ready to be written as UTF-8."""
    loader = FileSystemLoader(TEMPLATES)
    env = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters |= {"percent": percent, "probability": probability, "score": score, "count": count}
    for function in (evidence, split_proponents, signal_names, signal_bars, example_rows, known_share, plot_rows):
        env.globals[function.__name__] = function
    env.globals |= {"probability_plot": probability_plot, "shares_plot": shares_plot}
    numbers = {claim.fact.id: number for number, claim in enumerate(data.claims, start=1)}
    html = env.get_template("demo_report.html.j2").render(data=data, claim_numbers=numbers)
    return visible(html)


# ---------------------------------------------------------------------------------------------------- text and numbers

_WORD = re.compile(r"\w+")


def _content_words(text: str) -> frozenset[str]:
    return frozenset(word.casefold() for word in _WORD.findall(text)) - FUNCTION_WORDS


def mark_words(text: str, fact: Fact) -> list[tuple[str, MarkKind]]:
    """The text in segments that join to exactly the text; words of the fact's target and prompt are named so."""
    targets, prompts = _content_words(fact.target), _content_words(fact.prompt)
    segments: list[tuple[str, MarkKind]] = []
    done = 0
    for match in _WORD.finditer(text):
        word = match.group().casefold()
        if word not in targets and word not in prompts:
            continue
        if match.start() > done:
            segments.append((text[done : match.start()], ""))
        segments.append((match.group(), "target" if word in targets else "word"))
        done = match.end()
    if done < len(text):
        segments.append((text[done:], ""))
    return segments


def evidence(proponent: Proponent, fact: Fact) -> list[tuple[str, MarkKind, float]]:
    """`mark_words` of the passage, cut at its tokens: (segment, kind, share in percent of the highest share).

    A token's share is what it adds to the exact gradient's score; only what speaks for the claim is shown, 0 is not.
    """
    shares = [0.0] * len(proponent.text)
    cuts = {0, len(proponent.text)}
    highest = max((share for _, _, share in proponent.tokens), default=0.0)
    for start, end, share in proponent.tokens:
        shares[start:end] = [share] * (end - start)
        cuts |= {start, end}
    segments, done = [], 0
    for text, kind in mark_words(proponent.text, fact):
        inner = sorted({done, done + len(text)} | {cut for cut in cuts if done < cut < done + len(text)})
        for start, end in itertools.pairwise(inner):
            share = max(shares[start], 0.0) / highest if highest > 0 else 0.0
            segments.append((proponent.text[start:end], kind, round(100 * share)))
        done += len(text)
    return segments


def count(value: float) -> str:
    return f"{value:,.0f}"


def percent(share: float) -> str:
    """A percentage that says 0 or 100 only where it is exactly that."""
    value = 100 * share
    rounded = f"{value:.0f}"
    if rounded in ("0", "100") and value not in (0, 100):
        rounded = f"{min(max(value, 0.1), 99.9):.1f}"
    return f"{rounded} %"


def probability(value: float) -> str:
    return "< 0.001" if 0 < value < 0.001 else f"{value:.3f}"


def score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


# -------------------------------------------------------------------------------------------------- what a card shows


def split_proponents(traced: TracedFact) -> tuple[list[Proponent], list[Proponent]]:
    """Those shown at once (at least `MIN_SHOWN`, and every removed one) and those that unfold."""
    removed = [n for n, p in enumerate(traced.proponents, start=1) if p.example_id in traced.removed_ids]
    shown = max([MIN_SHOWN, *removed])
    return traced.proponents[:shown], traced.proponents[shown:]


def signal_names(traced: TracedFact) -> list[str]:
    """The signals that any proponent has: the known ones in their fixed order, then others by name."""
    present = {name for proponent in traced.proponents for name in proponent.signals}
    return [name for name in SIGNALS if name in present] + sorted(present - set(SIGNALS))


def signal_bars(traced: TracedFact, proponent: Proponent) -> list[tuple[str, float | None, float]]:
    """(signal, score, length of its bar in percent of the fact's highest score); the fused score is last, as ""."""
    bars = []
    for name in [*signal_names(traced), ""]:
        scores = [p.signals.get(name) if name else p.score for p in traced.proponents]
        value = proponent.signals.get(name) if name else proponent.score
        highest = max((s for s in scores if s is not None and isfinite(s)), default=0.0)
        length = 100 * value / highest if value is not None and isfinite(value) and highest > 0 else 0.0
        bars.append((name, value, round(max(length, 0.0), 1)))
    return bars


def plot_rows(claims: list[TracedFact]) -> list[Row]:
    """What the plot of probabilities shows of each claim."""
    return [
        (
            f"{claim.fact.prompt.strip()} {claim.fact.target.strip()}",
            *(answer.probability for answer in (claim.before, claim.after, claim.control)),
        )
        for claim in claims
    ]


def known_share(answers: list[Answer]) -> float:
    return sum(answer.known for answer in answers) / len(answers) if answers else 0.0


def example_rows(data: ReportData) -> list[tuple[Fact, Answer, Answer, Answer]]:
    """Other facts to list: first all that the model knew before and lost, then kept ones up to `MAX_EXAMPLES`."""
    lost = [row for row in data.others if row[1].known and not (row[2].known and row[3].known)]
    kept = [row for row in data.others if row[1].known and row[2].known and row[3].known]
    return lost + kept[: max(MAX_EXAMPLES - len(lost), 0)]
