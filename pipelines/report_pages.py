"""The pages of an audit's report in one language: templates/audit_*.j2 filled with the rows of report_rows.py.

All that comes from a corpus, a request or a reviewer is escaped, cut where no page should hold it, and its hidden
characters are named; none of it stands in a script (there is none), a style or an address.
"""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pipelines import report_rows as rows
from pipelines.audit import Audit, MeasuredFact, Verification
from pipelines.language import load_language
from pipelines.plots import probability_plot
from schemas.visible import visible

TEMPLATES = Path(__file__).parent / "templates"
SNIPPET = 160
MOST_PLOTTED = rows.MOST_PLOTTED


class Pages:
    """Renders pages in one language; the same audit gives the same text."""

    def __init__(self, code: str):
        self.language = load_language(code)
        self.say = self.language.say
        env = Environment(
            loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        )  # fmt: skip
        language = self.language
        for name in ("count", "number", "probability", "percent", "change"):
            env.filters[name] = getattr(language, name)
        env.filters |= {"cut": self.cut, "snippet": snippet, "date": lambda text: self.cut(language.date(text), 60)}
        env.globals |= {"language": language, "say": language.say, "named": language.named}
        self._env = env

    def cut(self, text: Any, most: int) -> Markup:
        """The first characters of a text, escaped, and how many are left out."""
        text = str(text)
        shown = escape(visible(text[:most]))
        if len(text) <= most:
            return shown
        return shown + Markup(' <span class="rest">{}</span>').format(self.say("left_out", n=len(text) - most))

    def _render(self, template: str, **values: Any) -> str:
        return visible(self._env.get_template(template).render(**values))

    # ------------------------------------------------------------------------------------------------------- sentences

    def _asked(self, request: dict[str, Any]) -> Markup:
        prompts, exemplars = len(request["cases"]), len(request["exemplars"])
        told = [self.say("asked_prompts", n=prompts)] * bool(prompts)
        told += [self.say("asked_exemplars", n=exemplars)] * bool(exemplars)
        return Markup(" ").join(told)

    def _said(self, request: dict[str, Any]) -> Markup:
        known = [case["known"] for case in request["cases"] if case["known"] is not None]
        if not known:
            return self.say("said_not_asked")
        return self.say("said_some" if any(known) else "said_none", n=sum(known), total=len(known))

    def _decided(self, counts: dict[str, int], total: int) -> list[Markup]:
        told = self.say(
            "decided", n=total, remove=counts["remove"], redact=counts["redact"], kept=counts["kept"],
            not_proposed=counts["not_proposed"],
        )  # fmt: skip
        return [told, self.say("undecided_text" if counts["undecided"] else "undecided_none", n=counts["undecided"])]

    def _carried(self, audit: Audit, example_ids: list[str]) -> Markup:
        if audit.version is None:
            return self.say("cleaned_not_given")
        carried = audit.carried_out(example_ids)
        if not carried:
            return self.say("carried_none")
        return self.say("carried_out", n=sum(row is not None for _, row in carried), total=len(carried))

    def _effect(self, verification: Verification, facts: list[MeasuredFact]) -> Markup:
        before, asked = rows.known(facts, "before")
        if verification.predicted:
            return self.say("effect_predicted", n=before, total=asked)
        after, control = (rows.known(facts, arm)[0] for arm in ("after", "control"))
        return self.say("effect_measured", n=asked, before=before, after=after, control=control)

    def _stayed(self, verification: Verification) -> Markup | None:
        others = rows.retained(verification.facts)
        if verification.predicted or not others["after"][1]:
            return None
        (after, total), (control, _) = others["after"], others["control"]
        return self.say("stayed", n=total, after=after, control=control)

    def _measured(self, audit: Audit, facts: list[MeasuredFact], missing: str) -> Markup:
        """What was measured; `missing` is the message where nothing was asked."""
        if audit.verification is None:
            return self.say("effect_not_given")
        return self._effect(audit.verification, facts) if facts else self.say(missing)

    def _brief(self, audit: Audit, facts: list[MeasuredFact]) -> Markup:
        """What was measured of a request, in a cell."""
        if audit.verification is None or not facts:
            return self.say("not_measured")
        if audit.verification.predicted:
            return self.say("predicted_heading")
        (before, asked), (after, _), (control, _) = (rows.known(facts, arm) for arm in ("before", "after", "control"))
        return self.say("measured_brief", total=asked, before=before, after=after, control=control)

    def _plot(self, facts: list[MeasuredFact]) -> Markup:
        return probability_plot(
            rows.plot_rows(facts),
            name="plot",
            title=str(self.say("plot_title")),
            description=str(self.say("plot_description")),
            axis=str(self.say("plot_axis")),
            decimal_mark=self.language.messages["decimal_mark"],
        )

    # ----------------------------------------------------------------------------------------------------------- pages

    def request(self, audit: Audit, request_id: str) -> tuple[str, int]:
        """(the page of one request, how many passages it shows)."""
        request, example_ids = audit.case.requests[request_id], audit.examples(request_id)
        counts, cards = audit.outcomes(example_ids), rows.cards(audit, request_id)
        num_passages = sum(len(audit.rows(request_id, example_id)) for example_id in example_ids)
        facts = audit.verification.about(request) if audit.verification else []
        groups = sum(bool(card["others"]) for card in cards)
        findings = [
            self._asked(request),
            self._said(request),
            self.say("found", n=len(example_ids), passages=num_passages, groups=groups),
            *self._decided(counts, len(example_ids)),
            self._carried(audit, example_ids),
            self._measured(audit, facts, "effect_not_asked"),
        ]
        html = self._render(
            "audit_request.html.j2",
            request=request,
            findings=findings,
            counts=counts,
            num_examples=len(example_ids),
            num_passages=num_passages,
            cards=cards,
            decisions=rows.decisions(audit, example_ids),
            places=rows.anchors(cards),
            verification=audit.verification,
            facts=facts,
            effect=self._measured(audit, facts, "effect_not_asked"),
            stayed=self._stayed(audit.verification) if audit.verification else None,
            plot=self._plot(facts) if facts else None,
            version=audit.version,
            carried=audit.carried_out(example_ids),
            carried_out=self._carried(audit, example_ids),
            certificate=rows.certified(audit, example_ids),
            method=rows.method(audit),
        )
        return html, num_passages

    def index(self, audit: Audit, names: dict[str, str]) -> str:
        """The page over all requests, with links to `names`; an example of several counts once in the totals."""
        found, asked = [], {}
        for request_id, request in audit.case.requests.items():
            example_ids = audit.examples(request_id)
            facts = audit.verification.about(request) if audit.verification else []
            asked |= {fact.fact_id: fact for fact in facts}
            found.append(
                {
                    "request": request,
                    "href": names[request_id],
                    "found": len(example_ids),
                    "counts": audit.outcomes(example_ids),
                    "measured": self._brief(audit, facts),
                }
            )
        every = list(audit.case.passages)
        counts = audit.outcomes(every)
        facts = list(asked.values())
        said = [row["request"]["said_by_model"] for row in found]
        findings = [
            self.say(
                "index_said", n=len(said), said=said.count(True), unsaid=said.count(False), unasked=said.count(None)
            ),
            *self._decided(counts, len(every)),
            self._carried(audit, every),
            self._measured(audit, facts, "effect_not_asked_any"),
        ]
        return self._render(
            "audit_index.html.j2",
            requests=found,
            findings=findings,
            counts=counts,
            num_examples=len(every),
            num_passages=sum(map(len, audit.case.passages.values())),
            verification=audit.verification,
            effect=self._measured(audit, facts, "effect_not_asked_any"),
            stayed=self._stayed(audit.verification) if audit.verification else None,
            plot=self._plot(facts) if facts else None,
            num_facts=len(facts),
            most_plotted=MOST_PLOTTED,
            effects=list(rows.effect_rows(audit.verification.effects)) if audit.verification else [],
            version=audit.version,
            carried_out=self._carried(audit, every),
            certificate=rows.certified(audit, every),
            reviewers=rows.reviewers(audit),
            method=rows.method(audit),
        )


def snippet(text: str) -> str:
    """The beginning of a text in one line."""
    return visible(" ".join(text[: 4 * SNIPPET].split())[:SNIPPET])
