"""What removals did to answers: known shares, differences between arms with intervals, and a sentence for each.

  answers by seed, arm and fact -> summary (one a verification) and effects (one a fact)

An effect is a difference to the control, where as many random examples were removed, and to before. The sentences say
what was asked and what came, never what a model holds: to other prompts it may answer otherwise. A prediction's keys
and sentences say that they are one (`predicted`). It is of changes in probability alone: how many answers will change
follows from the changes' size, which a step does not tell (`python -m bench.predict`: a ninth of what was measured).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attribution.intervals import LEVEL, RESAMPLES, bootstrap
from attribution.knowledge import Answer
from schemas.records import Fact

ARMS = ("before", "after", "control")
COMPARED = (("after", "control"), ("after", "before"), ("control", "before"))
MEASURES: dict[str, Callable[[Answer], float]] = {
    "probability": lambda answer: math.exp(answer.log_probability),
    "known": lambda answer: float(answer.known),
    "paraphrases_known": lambda answer: sum(answer.prompts_known) / len(answer.prompts_known),
}
PREDICTED, PREDICTION = "predicted_", "Predicted, not measured: "


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A held-out corpus as the arms see it: `losses[arm]` `[seeds, examples]` are sums over `tokens` `[examples]`.

    `cut` counts the examples that were longer than the context, whose end was not read.
    """

    losses: dict[str, np.ndarray]
    tokens: np.ndarray
    cut: int


@dataclass(frozen=True, eq=False)
class Measured:
    """`answers[seed][arm][fact id]`; every seed has the same arms, every arm the same facts."""

    answers: list[dict[str, dict[str, Answer]]]
    facts: list[Fact]
    retain: list[Fact]
    held_out: HeldOut | None = None
    predicted: bool = field(default=False, kw_only=True)

    @property
    def prefix(self) -> str:
        return PREDICTED if self.predicted else ""

    def values(self, arm: str, facts: list[Fact], measure: str) -> np.ndarray:
        """`[seeds, facts]` of one measure."""
        take = MEASURES[measure]
        return np.array([[take(by_arm[arm][fact.id]) for fact in facts] for by_arm in self.answers])

    def paraphrased(self, facts: list[Fact]) -> list[Fact]:
        """Those that have several prompts."""
        return [fact for fact in facts if len({prompt for prompt, _ in fact.variants}) > 1]


def _name(measured: Measured, name: str, arm: str) -> str:
    """The summary's key of a measure in an arm: what was not measured says so."""
    return f"{measured.prefix if arm != 'before' else ''}{name}_{arm}"


def _differences(by_arm: dict[str, np.ndarray], sizes: np.ndarray | None = None) -> dict[str, dict[str, float]]:
    return {f"{a}_minus_{b}": bootstrap(by_arm[a] - by_arm[b], sizes).to_row() for a, b in COMPARED}


def _effects(measured: Measured) -> dict[str, Any]:
    """Differences between the arms by set of facts and measure, each with its interval."""
    found: dict[str, Any] = {}
    for name, facts in (("facts", measured.facts), ("retain_facts", measured.retain)):
        chosen = {"probability": facts}
        if not measured.predicted:
            chosen |= {"known": facts, "paraphrases_known": measured.paraphrased(facts)}
        found[name] = {
            measure: _differences({arm: measured.values(arm, those, measure) for arm in ARMS})
            for measure, those in chosen.items()
            if those
        }
    if measured.held_out:
        found["held_out"] = {"loss_per_token": _differences(measured.held_out.losses, measured.held_out.tokens)}
    return found


def summarise(measured: Measured) -> dict[str, Any]:
    """Known shares over facts and seeds, of the facts to retain that were known before those that still are, effects.

    `others_known_before` counts pairs of a fact and a seed, so that with one seed it counts facts.
    """
    facts, retain, prefix = measured.facts, measured.retain, measured.prefix
    summary: dict[str, Any] = {"num_facts": len(facts), "num_retain_facts": len(retain)}
    arms = ARMS[:1] if measured.predicted else ARMS
    for arm in arms:
        summary[f"known_{arm}"] = float(measured.values(arm, facts, "known").mean())
    known = measured.values("before", retain, "known") == 1
    summary["others_known_before"] = int(known.sum())
    for arm, name in (("after", "others_retained"), ("control", "others_retained_control")):
        if arm in arms:
            stayed = (measured.values(arm, retain, "known") == 1) & known
            summary[name] = int(stayed.sum()) / max(1, int(known.sum()))
    summary["num_seeds"] = len(measured.answers)
    if several := measured.paraphrased(facts):
        summary["num_paraphrased_facts"] = len(several)
        for arm in arms:
            summary[f"paraphrases_known_{arm}"] = float(measured.values(arm, several, "paraphrases_known").mean())
    if held := measured.held_out:
        tokens = int(held.tokens.sum())
        summary |= {"held_out_examples": len(held.tokens), "held_out_tokens": tokens, "held_out_cut": held.cut}
        for arm in ARMS:
            summary[_name(measured, "held_out_loss", arm)] = float(held.losses[arm].mean(0).sum()) / tokens
    summary[f"{prefix}effects"] = _effects(measured)
    over = "facts, or held-out texts" if len(measured.answers) == 1 else "seeds, and facts or held-out texts"
    summary["intervals"] = {"kind": "percentile bootstrap", "level": LEVEL, "resamples": RESAMPLES, "over": over}
    summary[f"{prefix}statements"] = _statements(measured, summary)
    return summary


def _told(flags: list[dict[str, bool]]) -> tuple[int, int, int]:
    """(answered before, of these no longer after, of these still in the control)."""
    told = [flag for flag in flags if flag["before"]]
    return len(told), sum(not flag["after"] for flag in told), sum(flag["control"] for flag in told)


def _sentence(measured: Measured, noun: str, how: str, flags: list[dict[str, bool]]) -> str:
    answered, gone, still = _told(flags)
    seeds = f" (over {len(measured.answers)} seeds)" if len(measured.answers) > 1 else ""
    if not answered:
        return f"None of the {len(flags)} {noun}{seeds} was answered {how} before, so no such answer could go."
    return (
        f"After the removal the model no longer answers {gone} of {answered} {noun}{seeds} {how} as it did before; the "
        f"control still answers {still} of {answered} so."
    )


def _predicted_sentence(fact: Fact, probability: dict[str, float]) -> str:
    step, control = (probability[arm] - probability["before"] for arm in ("after", "control"))
    return (
        f"{PREDICTION}one step on the removals changes the probability of {fact.target.strip()!r} by {step:+.4f}, one "
        f"on the control by {control:+.4f}; the size of a change that would be measured is not predicted."
    )


def _flags(measured: Measured, facts: list[Fact], every_prompt: bool) -> list[dict[str, bool]]:
    """For each seed and fact, and each prompt of it or the first: whether it is answered with the target, by arm."""
    found = []
    for by_arm in measured.answers:
        for fact in facts:
            said = {arm: by_arm[arm][fact.id] for arm in ARMS}
            if every_prompt:
                prompts = zip(*(said[arm].prompts_known for arm in ARMS), strict=True)
                found += [dict(zip(ARMS, known, strict=True)) for known in prompts]
            else:
                found.append({arm: said[arm].known for arm in ARMS})
    return found


def _statements(measured: Measured, summary: dict[str, Any]) -> list[str]:
    """What was found, a sentence each; an interval where there is one."""
    several, found = measured.paraphrased(measured.facts), []
    asked = [("first prompts of the facts", measured.facts, False)]
    asked += [("prompts of the paraphrased facts", several, True)] if several else []
    asked += [("first prompts of the facts to retain", measured.retain, False)]
    if not measured.predicted:
        found = [_sentence(measured, noun, "with their targets", _flags(measured, *those)) for noun, *those in asked]
    effects, label = summary[f"{measured.prefix}effects"], PREDICTION if measured.predicted else ""
    for name, what in (("facts", "the facts"), ("retain_facts", "the facts to retain")):
        found.append(
            f"{label}mean change in the target's probability over {what}, after minus control: "
            f"{_number(effects[name]['probability']['after_minus_control'])}."
        )
    if measured.held_out:
        values = [summary[_name(measured, "held_out_loss", arm)] for arm in ARMS]
        found.append(
            "{}held-out loss per token: {:.4f} before, {:.4f} after the removal, {:.4f} in the control; ".format(
                label, *values
            )
            + f"after minus control: {_number(effects['held_out']['loss_per_token']['after_minus_control'])}."
        )
    return [f"{sentence[0].upper()}{sentence[1:]}" for sentence in found]


def _number(row: dict[str, float]) -> str:
    return f"{row['mean']:+.4f} ({LEVEL:.0%} interval {row['low']:+.4f} to {row['high']:+.4f})"


def fact_effects(measured: Measured) -> list[dict[str, Any]]:
    """A row a fact: by arm the mean probability and the prompts answered with the target (over seeds), a sentence."""
    rows = []
    for name, facts in (("facts", measured.facts), ("retain_facts", measured.retain)):
        for fact in facts:
            flags = _flags(measured, [fact], every_prompt=True)
            probability = {arm: float(measured.values(arm, [fact], "probability").mean()) for arm in ARMS}
            row: dict[str, Any] = {"set": name, "fact_id": fact.id, "prompt": fact.prompt, "target": fact.target}
            row["prompts"] = len(flags)
            for arm in ARMS[:1] if measured.predicted else ARMS:
                row[f"prompts_known_{arm}"] = sum(flag[arm] for flag in flags)
            row |= {_name(measured, "probability", arm): probability[arm] for arm in ARMS}
            for a, b in COMPARED:
                row[f"{measured.prefix}probability_{a}_minus_{b}"] = probability[a] - probability[b]
            if measured.predicted:
                row["predicted_statement"] = _predicted_sentence(fact, probability)
            else:
                row["statement"] = _sentence(measured, "prompts", f"with {fact.target.strip()!r}", flags)
            rows.append(row)
    return rows


def answer_rows(measured: Measured, seeds: list[int]) -> list[dict[str, Any]]:
    """A row for every answer; an arm that was predicted is named so."""
    return [
        {
            "arm": _arm(measured, arm),
            "seed": seed,
            "set": name,
            "fact_id": fact.id,
            "prompt": fact.prompt,
            "target": fact.target,
        }
        | by_arm[arm][fact.id].to_row()
        for name, chosen in (("facts", measured.facts), ("retain_facts", measured.retain))
        for fact in chosen
        for seed, by_arm in zip(seeds, measured.answers, strict=True)
        for arm in ARMS
    ]


def _arm(measured: Measured, arm: str) -> str:
    return arm if arm == "before" else f"{measured.prefix}{arm}"
