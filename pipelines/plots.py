"""Plots of what was measured, as inline SVG that takes its font and colours from the page and needs no script.

Drawn in stand-in colours that become the page's CSS variables, so that the plots follow light and dark mode.
"""

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib.style
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from schemas.visible import visible

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


Row = tuple[str, float, float, float]  # a fact in words, and its target's probability before, after, in the control


def probability_plot(
    rows: Sequence[Row], *, name: str, title: str, description: str, axis: str, decimal_mark: str = "."
) -> Markup:
    """One row per fact: the probability of its target before, after and with the control, on one axis from 0 to 1."""

    def draw(axes: Any) -> None:
        for row, (words, before, after, control) in enumerate(rows):
            axes.text(0, row + 0.34, _shortened(f"{row + 1}. {words}"), fontsize=12, color=_COLOURS["ink"])
            axes.plot([0, 1], [row + 0.68] * 2, color=_COLOURS["rule"], linewidth=1)
            axes.plot([before, after], [row + 0.68] * 2, color=_COLOURS["muted"], linewidth=1.6)
            _marker(axes, before, row + 0.68, "before", "o", 7.5)
            _marker(axes, after, row + 0.68, "after", "D", 7)
            _marker(axes, control, row + 0.68, "control", "o", 11.5, hollow=True)
        bottom = len(rows) + 0.1
        for tick in (0, 0.25, 0.5, 0.75, 1):
            axes.plot([tick, tick], [0.5, bottom], color=_COLOURS["rule"], linewidth=0.8, zorder=0)
            axes.text(
                tick,
                bottom + 0.4,
                f"{tick:g}".replace(".", decimal_mark),
                fontsize=11,
                color=_COLOURS["muted"],
                ha="center",
            )
        axes.text(0.5, bottom + 0.9, axis, fontsize=11, color=_COLOURS["muted"], ha="center")

    return _svg(draw, len(rows) + 1.2, 38, name, title, description)


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
    text = " ".join(visible(text).split())
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
        element.text = visible(text)
        root.insert(position, element)
    return Markup(ElementTree.tostring(root, encoding="unicode"))
