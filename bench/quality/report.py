"""What a track leaves in its folder: `results.json`, `table.md` and the plots as SVG."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from bench.quality.metrics import METRICS

LABELS = {"mrr": "MRR", "recall_at_10": "Recall@10", "recall_at_100": "Recall@100"}
COLOURS = ("#0b5cad", "#c2410c", "#4d7c0f")
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "quality", "axes.spines.top": False, "axes.spines.right": False}
BREAKDOWNS = {"by_kind": "kind", "by_relation": "relation", "by_num_proponents": "number of proponents"}


def write(result: dict[str, Any], out: Path) -> None:
    (out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = {"B": removal_tables, "D": agreement_tables}.get(result["track"], tables)(result)
    (out / "table.md").write_text("\n".join(lines) + "\n")
    with matplotlib.style.context(["default", STYLE]):
        if result["track"] == "B":
            _save(removal_plot(result["arms"]), out / "removal.svg")
            return
        if result["track"] == "D":
            _save(agreement_plot(result["arms"], result["config"]["ks"]), out / "agreement.svg")
            return
        _save(arms_plot({title: part["arms"] for title, part in _protocols(result).items()}), out / "arms.svg")
        if "by_relation" in result:
            words = next(name for name in ("bm25_subject_object", "bm25") if name in result["arms"])
            _save(relations_plot(result["by_relation"], words), out / "relations.svg")


def _protocols(result: dict[str, Any]) -> dict[str, Any]:
    return {"Whole corpus": result} | ({"FTRACE's candidates": result["ftrace"]} if "ftrace" in result else {})


def tables(result: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown."""
    setting, counts = result["config"]["setting"], f"{result['facts']:,} facts, {result['examples']:,} examples"
    yield f"# {result['track']}, {setting}: {counts}\n"
    yield f"Data: {result['data']} (sha256 {result['data_sha256'][:16]}); seed {result['seed']}."
    if "facts_asked" in result:
        yield f"The LM was asked {result['facts_asked']:,} facts; these are the ones that it answers."
    yield "In brackets: 95 % bootstrap intervals over facts."
    if result.get("left_out"):
        yield from ("", *(f"Left out: {line}." for line in result["left_out"]))
    for title, part in _protocols(result).items():
        yield f"\n## {title}\n"
        yield from _table(["arm", *LABELS.values()], [[name, *_figures(row)] for name, row in part["arms"].items()])
        yield ""
        paired = [[name, *_differences(row)] for name, row in part["paired"].items()]
        yield from _table(["difference", *LABELS.values()], paired)
    for key, what in BREAKDOWNS.items():
        if key in result:
            arms = list(result["arms"])
            yield f"\n## MRR / Recall@10 by {what}\n"
            yield from _table(
                [what, "facts", *arms],
                [
                    [group, str(row["facts"]), *(f"{row[a]['mrr']:.3f} / {row[a]['recall_at_10']:.3f}" for a in arms)]
                    for group, row in result[key].items()
                ],
            )
    if "lexical_loss" in result:
        rows = [[arm, *(f"{share:.3f}" for share in row.values())] for arm, row in result["lexical_loss"].items()]
        yield "\n## Loss (1 - Recall@10), and its shares by the words of the fact that the missed proponents hold\n"
        yield from _table(["arm", *next(iter(result["lexical_loss"].values()))], rows)
    if "checks" in result:
        yield from _checks(result["checks"])


def _figures(row: dict[str, Any]) -> list[str]:
    return [f"{row[m]:.3f} [{row[f'{m}_interval'][0]:.3f}, {row[f'{m}_interval'][1]:.3f}]" for m in METRICS]


def _differences(row: dict[str, Any]) -> list[str]:
    told = [(row[metric]["difference"], *row[metric]["interval"]) for metric in METRICS]
    return [f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" for mean, low, high in told]


def _table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield "|---" * len(header) + "|"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def arms_plot(protocols: dict[str, dict[str, Any]]) -> Figure:
    """Every arm's figures with their intervals, a panel a protocol, the best arm by the first one's MRR on top."""
    first = next(iter(protocols.values()))
    names = sorted(first, key=lambda arm: first[arm]["mrr"])
    figure = Figure(figsize=(2 + 4 * len(protocols), 1.2 + 0.42 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(protocols), sharey=True, squeeze=False)[0]
    for panel, (title, arms) in zip(panels, protocols.items(), strict=True):
        here = [(row, arms[name]) for row, name in enumerate(names) if name in arms]
        for place, (metric, colour) in enumerate(zip(METRICS, COLOURS, strict=True)):
            rows = [row + 0.2 - 0.2 * place for row, _ in here]
            low, high = zip(*(arm[f"{metric}_interval"] for _, arm in here), strict=True)
            panel.hlines(rows, low, high, color=colour, linewidth=1.5)
            panel.plot([arm[metric] for _, arm in here], rows, "o", color=colour, markersize=4, label=LABELS[metric])
        panel.set(title=title, xlim=(-0.02, 1.02), yticks=range(len(names)), yticklabels=names)
        panel.grid(axis="x", color="#dddddd")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(METRICS), frameon=False)
    return figure


def relations_plot(groups: dict[str, Any], before: str, after: str = "fused") -> Figure:
    """MRR and Recall@10 of two arms by relation, the hardest for the second one on top."""
    names = sorted(groups, key=lambda group: -groups[group][after]["recall_at_10"])
    figure = Figure(figsize=(9.5, 1.2 + 0.27 * len(names)), layout="constrained")
    panels, rows = figure.subplots(1, 2, sharey=True), range(len(names))
    for panel, metric in zip(panels, METRICS[:2], strict=True):
        ends = {arm: [groups[name][arm][metric] for name in names] for arm in (before, after)}
        panel.hlines(rows, ends[before], ends[after], color="#999999", linewidth=1.5)
        for arm, colour, size in ((before, COLOURS[1], 7), (after, COLOURS[0], 4)):
            panel.plot(ends[arm], rows, "o", color=colour, markersize=size, label=arm)
        labels = [f"{name} ({groups[name]['facts']})" for name in names]
        panel.set(title=LABELS[metric], yticks=rows, yticklabels=labels)
        panel.grid(axis="x", color="#dddddd")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def removal_tables(result: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown, of a track that removes examples and trains anew."""
    knowledge, config = result["knowledge"], result["config"]
    arms, seeds = result["arms"], ", ".join(map(str, config["measuring"]))
    yield f"# {result['track']}, {config['setting']}: {result['facts']:,} facts, {result['examples']:,} examples\n"
    yield f"Data: {result['data']} (sha256 {result['data_sha256'][:16]}); measured on the training seeds {seeds}."
    yield (
        f"Of {knowledge['facts_asked']:,} facts the LM surely says {knowledge['known_on_selecting_seeds']} on each of "
        f"the seeds {', '.join(map(str, config['selecting']))}, of which "
        f"{knowledge['of_these_in_the_subjects_name']} are in their subject's name and left out; with nothing "
        f"removed it says on the measuring seeds "
        f"{', '.join(f'{share:.1%}' for share in knowledge['still_known_on_measuring_seeds'])} of them."
    )
    yield "In brackets: 95 % bootstrap intervals over facts, a fact's seeds together.\n"
    header = ["arm", "at k", "removed", "facts lost", "log probability", "others retained", "of these untouched"]
    rows = []
    for name, arm in arms.items():
        for k, found in (arm.get("curve") or {"": arm}).items():
            if name != "none":
                told = [_ends(found, measure) for measure in ("retained", "retained_untouched")]
                lost, change = _ends(found, "lost"), _ends(found, "log_probability_change", "+.2f")
                rows.append([name, k, str(found["removed"]), lost, change, *told])
    yield from _table(header, rows)
    yield from _paired("Facts lost, paired by fact", result["paired"])
    yield from _checks(result["checks"])


def _paired(title: str, paired: dict[str, Any], form: str = "+.3f") -> Iterator[str]:
    yield f"\n## {title}\n"
    measures = list(dict.fromkeys(name for row in paired.values() for name in row))
    rows = [
        [name, *(_difference(row[measure], form) if measure in row else "" for measure in measures)]
        for name, row in paired.items()
    ]
    yield from _table(["difference", *(measure.replace("_", " ") for measure in measures)], rows)


def _checks(checks: list[dict[str, Any]]) -> Iterator[str]:
    yield "\n## What is to hold\n"
    rows = [[row["what"], f"{row['found']:.3f}", "yes" if row["holds"] else "no"] for row in checks]
    yield from _table(["what", "found", "holds"], rows)


def _ends(row: dict[str, Any], measure: str, form: str = ".3f") -> str:
    if measure not in row:
        return ""
    low, high = row[f"{measure}_interval"]
    return f"{row[measure]:{form}} [{low:{form}}, {high:{form}}]"


def _difference(row: dict[str, Any], form: str) -> str:
    low, high = row["interval"]
    return f"{row['difference']:{form}} [{low:{form}}, {high:{form}}]"


def removal_plot(arms: dict[str, Any]) -> Figure:
    """The removal curve: the share of facts lost over the passages removed, a line an arm, with intervals."""
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    panel = figure.subplots()
    for place, (name, arm) in enumerate((name, arm) for name, arm in arms.items() if name != "none"):
        points = sorted((arm.get("curve") or {"": arm}).values(), key=lambda point: point["removed"])
        removed, lost = [p["removed"] for p in points], [p["lost"] for p in points]
        low, high = zip(*(p["lost_interval"] for p in points), strict=True)
        colour = f"C{place}"
        panel.vlines(removed, low, high, color=colour, linewidth=1)
        panel.plot(removed, lost, "o-" if "curve" in arm else "s", color=colour, markersize=5, label=name)
    panel.set(xlabel="passages removed", ylabel="facts lost, of those known with nothing removed", ylim=(-0.02, 1.02))
    panel.set_xlim(left=0)
    panel.grid(color="#dddddd")
    figure.legend(loc="outside lower center", ncols=6, frameon=False)
    return figure


def agreement_tables(result: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown, of a track that compares scores with what a training makes of the examples."""
    knowledge, config, arms = result["knowledge"], result["config"], result["arms"]
    yield f"# {result['track']}, {config['setting']}: {result['facts']:,} facts, {result['examples']:,} examples\n"
    yield f"Data: {result['data']} (sha256 {result['data_sha256'][:16]}); seed {result['seed']}."
    yield (
        f"LDS over {config['subsets']} trainings on half of the examples ({result['seconds']['a training']:.0f} s a "
        f"training). Tail-patch: one step on one example (learning rate {config['learning_rate']:g}), the gain in "
        "probability."
    )
    yield (
        f"The LM says {knowledge['answered_with_all_examples']:.1%} of the facts, with half of the examples "
        f"{knowledge['answered_with_half_of_them']:.1%}."
    )
    yield "In brackets: 95 % bootstrap intervals over facts. Seconds: of an arm's index and trace.\n"
    if result["left_out"]:
        yield from (*(f"Left out: {line}." for line in result["left_out"]), "")
    measures = [f"tail_patch_at_{k}" for k in config["ks"]]
    rows = [
        [
            name,
            _ends(arm, "lds"),
            *(_ends(arm, measure, ".4f") for measure in measures),
            f"{arm['seconds']:.0f}" if "seconds" in arm else "",
        ]
        for name, arm in sorted(arms.items(), key=lambda pair: -pair[1]["lds"])
    ]
    yield from _table(["arm", "LDS", *(f"tail-patch at {k}" for k in config["ks"]), "seconds"], rows)
    yield from _paired("Differences, paired by fact", result["paired"], "+.4f")
    yield from _checks(result["checks"])


def agreement_plot(arms: dict[str, Any], ks: Sequence[int]) -> Figure:
    """Every arm's LDS, and beside it its tail-patch at each k, with intervals; the best arm by LDS on top."""
    names = sorted(arms, key=lambda arm: arms[arm]["lds"])
    figure = Figure(figsize=(10, 1.2 + 0.42 * len(names)), layout="constrained")
    panels, rows = figure.subplots(1, 2, sharey=True), range(len(names))
    drawn = [(panels[0], "lds", 0.0, "#0b5cad", "LDS")]
    for place, k in enumerate(ks):
        shift = 0.3 * (0.5 - place / max(1, len(ks) - 1))
        drawn.append((panels[1], f"tail_patch_at_{k}", shift, f"C{place}", f"k = {k}"))
    for panel, measure, shift, colour, label in drawn:
        low, high = zip(*(arms[name][f"{measure}_interval"] for name in names), strict=True)
        panel.hlines([row + shift for row in rows], low, high, color=colour, linewidth=1.5)
        points = [arms[name][measure] for name in names]
        panel.plot(points, [row + shift for row in rows], "o", color=colour, markersize=4, label=label)
    panels[0].set(title="LDS", yticks=rows, yticklabels=names)
    panels[1].set(title="Tail-patch: gain in the target's probability")
    for panel in panels:
        panel.axvline(0, color="#999999", linewidth=0.8)
        panel.grid(axis="x", color="#dddddd")
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=len(ks), frameon=False)
    return figure


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})
