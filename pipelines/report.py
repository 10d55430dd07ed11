"""The audit report: one self-contained HTML page that says what was found, what was removed and what changed.

`render_report` is pure: the same `ReportData` gives the same text, with no script, no network and no date in it.
The words that a person reads are in `templates/report.html.j2`; here are the data, the word marks and the plots.
"""

import io
import itertools
import re
import warnings
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import matplotlib.style
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from schemas.records import SIGNALS, Fact, Proponent, Removal

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
    for function in (evidence, split_proponents, signal_names, signal_bars, example_rows, known_share):
        env.globals[function.__name__] = function
    env.globals |= {"probability_plot": probability_plot, "shares_plot": shares_plot}
    numbers = {claim.fact.id: number for number, claim in enumerate(data.claims, start=1)}
    html = env.get_template("report.html.j2").render(data=data, claim_numbers=numbers)
    return printable(html)


# ---------------------------------------------------------------------------------------------------- text and numbers

_WORD = re.compile(r"\w+")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202d\u202e\ud800-\udfff\ufffe\uffff]")
_FUNCTION_WORDS = frozenset(
    _WORD.findall(
        "a an and are as at be been but by can did do does for from had has have he her his how i in into is it its "
        "not of on or s she so t than that the their them then there these they this those to was we were what when "
        "where which who whom whose will with you"
    )
)


def printable(text: str) -> str:
    """The text without what HTML, XML or UTF-8 cannot carry, and without overrides of the reading direction."""
    return _UNPRINTABLE.sub("\ufffd", text)


def _content_words(text: str) -> frozenset[str]:
    return frozenset(word.casefold() for word in _WORD.findall(text)) - _FUNCTION_WORDS


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


def known_share(answers: list[Answer]) -> float:
    return sum(answer.known for answer in answers) / len(answers) if answers else 0.0


def example_rows(data: ReportData) -> list[tuple[Fact, Answer, Answer, Answer]]:
    """Other facts to list: first all that the model knew before and lost, then kept ones up to `MAX_EXAMPLES`."""
    lost = [row for row in data.others if row[1].known and not (row[2].known and row[3].known)]
    kept = [row for row in data.others if row[1].known and row[2].known and row[3].known]
    return lost + kept[: max(MAX_EXAMPLES - len(lost), 0)]


# --------------------------------------------------------------------------------------------------------------- plots
# Drawn in stand-in colours that become the page's CSS variables, so that the plots follow light and dark mode.

PLOT_WIDTH = 420
_COLOURS = {
    "ink": "#000001",
    "muted": "#000002",
    "rule": "#000003",
    "before": "#000004",
    "after": "#000005",
    "control": "#000006",
}
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_STYLE = {"svg.fonttype": "none", "text.parse_math": False, "lines.solid_capstyle": "butt"}


def probability_plot(traced: list[TracedFact], *, name: str, title: str, description: str, axis: str) -> Markup:
    """One row per fact: the probability of its target before, after and with the control, on one axis from 0 to 1."""

    def draw(axes: Any) -> None:
        for row, fact in enumerate(traced):
            before, after, control = (a.probability for a in (fact.before, fact.after, fact.control))
            text = _shortened(f"{row + 1}. {fact.fact.prompt.strip()} {fact.fact.target.strip()}")
            axes.text(0, row + 0.34, text, fontsize=12, color=_COLOURS["ink"])
            axes.plot([0, 1], [row + 0.68] * 2, color=_COLOURS["rule"], linewidth=1)
            axes.plot([before, after], [row + 0.68] * 2, color=_COLOURS["muted"], linewidth=1.6)
            _marker(axes, before, row + 0.68, "before", "o", 7.5)
            _marker(axes, after, row + 0.68, "after", "D", 7)
            _marker(axes, control, row + 0.68, "control", "o", 11.5, hollow=True)
        bottom = len(traced) + 0.1
        for tick in (0, 0.25, 0.5, 0.75, 1):
            axes.plot([tick, tick], [0.5, bottom], color=_COLOURS["rule"], linewidth=0.8, zorder=0)
            axes.text(tick, bottom + 0.4, f"{tick:g}", fontsize=11, color=_COLOURS["muted"], ha="center")
        axes.text(0.5, bottom + 0.9, axis, fontsize=11, color=_COLOURS["muted"], ha="center")

    return _svg(draw, len(traced) + 1.2, 38, name, title, description)


def shares_plot(groups: list[tuple[str, list]], *, name: str, title: str, description: str) -> Markup:
    """Bars of shares: groups of (heading, [(label, series, share, note)]), one bar a row with its note at the end."""

    def draw(axes: Any) -> None:
        row = 0.0
        for heading, bars in groups:
            axes.text(0, row + 0.6, heading, fontsize=12.5, color=_COLOURS["ink"], weight="bold")
            for label, series, share, note in bars:
                row += 1
                axes.text(0, row + 0.64, label, fontsize=12, color=_COLOURS["ink"])
                axes.barh(row + 0.5, 0.53, left=0.24, height=0.42, color=_COLOURS["rule"])
                axes.barh(row + 0.5, 0.53 * share, left=0.24, height=0.42, color=_COLOURS[series])
                axes.text(0.79, row + 0.64, note, fontsize=12, color=_COLOURS["ink"])
            row += 1.5

    return _svg(draw, sum(len(bars) + 1.5 for _, bars in groups) - 0.4, 28, name, title, description)


def _marker(axes: Any, x: float, y: float, series: str, shape: str, size: float, hollow: bool = False) -> None:
    fill = "none" if hollow else _COLOURS[series]
    axes.plot([x], [y], shape, markersize=size, markerfacecolor=fill, color=_COLOURS[series], markeredgewidth=1.6)


def _shortened(text: str, limit: int = 64) -> str:
    """The text in one line; a long one loses its middle, since the target is at the end."""
    text = " ".join(printable(text).split())
    if len(text) <= limit:
        return text
    head, tail = text[: limit // 2], text[-limit // 3 :]
    return f"{head.rpartition(' ')[0] or head} … {tail.partition(' ')[2] or tail}"


def _svg(draw: Any, rows: float, row_height: float, name: str, title: str, description: str) -> Markup:
    """The figure as an inline <svg> that takes font and colours from the page; `name` keeps its ids apart."""
    height = rows * row_height
    with matplotlib.style.context(["default", _STYLE | {"svg.hashsalt": name}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has the font, matplotlib only measures
        figure = Figure(figsize=(PLOT_WIDTH / 72, height / 72))
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 1), ylim=(rows, 0))
        axes.set_axis_off()
        draw(axes)
        for artist in axes.get_children():  # a marker at 0 or 1 stands half outside
            artist.set_clip_on(False)
        out = io.BytesIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(ElementTree.fromstring(out.getvalue()), name, title, description)


def _for_page(root: ElementTree.Element, name: str, title: str, description: str) -> Markup:
    """matplotlib's SVG without what would leak into the page: its global style, metadata, namespaces and fonts."""
    used = set(re.findall(r"#([\w-]+)", " ".join(v for e in root.iter() for v in e.attrib.values())))
    for element in root.iter():
        for child in list(element):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                element.remove(child)
        element.tag = element.tag.removeprefix(_SVG)
        element.attrib = {key.removeprefix(_XLINK): value for key, value in element.attrib.items()}
        if element.get("id") not in used:
            element.attrib.pop("id", None)
        if style := element.get("style"):
            style = re.sub(r"font-family: [^;]*; ?", "", style)
            for variable, colour in _COLOURS.items():
                style = style.replace(colour, f"var(--{variable})")
            element.set("style", style)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title {name}-desc", "class": "plot"}
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        element.text = printable(text)
        root.insert(position, element)
    return Markup(ElementTree.tostring(root, encoding="unicode"))
