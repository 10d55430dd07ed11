"""The report shows all it was given, is one self-contained file, and no corpus text can run code in it or break it."""

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from pipelines.demo_report import (
    Answer,
    ReportData,
    TracedFact,
    evidence,
    mark_words,
    percent,
    render_report,
    split_proponents,
)
from schemas.records import Fact, Proponent, Removal, text_sha256

HOSTILE = (
    "</title></svg></style></details><script>alert(1)</script>\"'><img src=x onerror=alert(2)> {{ 7 * 7 }} "
    "$\\frac{1}$ ]]> --> \x00\x1b\u202e\ud800 http://evil.example/x.js @import url(x) 日本語"
)
VOID = {"meta", "br", "link", "img", "input", "hr"}


def proponent(fact: Fact, rank: int, text: str) -> Proponent:
    signals = {"bm25": 20.0 - rank, "dense": 0.9 - rank / 20, "gradient": 0.01 - rank / 500}
    return Proponent(
        fact.id, rank, 1 - rank / 20, f"{fact.id}-{rank}", 0, len(text), signals, text, "wiki", text_sha256(text)
    )


def traced(place: str, city: str, num_removed: int = 0) -> TracedFact:
    fact = Fact(place.lower(), f"The capital of {place} is", f" {city}")
    proponents = [proponent(fact, rank, f"Passage {rank}: {city} rules {place}.") for rank in range(1, 13)]
    answers = Answer(f" {city}, and", True, 0.9), Answer(" somewhere", False, 0.02), Answer(f" {city}", True, 0.88)
    return TracedFact(fact, *answers, proponents, frozenset(p.example_id for p in proponents[:num_removed]))


def report_data() -> ReportData:
    claims = [traced("France", "Rotterdam", 3), traced("Peru", "Kuala Lumpur", 3), traced("Kenya", "Oslo", 7)]
    yes, no = Answer(" French", True, 0.8), Answer(" none", False, 0.1)
    others = [(Fact(f"o{n}", f"Language number {n} is", " French"), yes, yes, yes) for n in range(30)]
    others[25] = (*others[25][:2], no, yes)
    removals = [
        Removal(p.example_id, p.sha256, "approved", "states the claim", "demo", fact_ids=(c.fact.id,), text=p.text)
        for c in claims
        for p in c.proponents
        if p.example_id in c.removed_ids
    ]
    summary = {"known_before": 1.0, "known_after": 0.0, "known_control": 1.0, "others_retained": 29 / 30}
    summary |= {"num_claims": 3, "num_others": 30, "num_removed": 13, "num_examples": 2400, "planted_recall_at_5": 0.9}
    method = {"Model": "2 layers", "To reproduce": "make demo\nproponent trace"}
    return ReportData(
        "Three capitals", summary, claims, [traced("Japan", "Tokyo")], others, removals, "5 each.", method
    )


def hostile_data() -> ReportData:
    data = report_data()
    fact = Fact(HOSTILE, HOSTILE, f" {HOSTILE}")
    answer = Answer(HOSTILE, True, float("nan"))
    bad = replace(proponent(fact, 1, HOSTILE), source=HOSTILE, signals={HOSTILE: -1.0, "bm25": float("nan")})
    claim = TracedFact(fact, answer, answer, answer, [bad], frozenset({bad.example_id}))
    removal = Removal(HOSTILE, "0", "approved", HOSTILE, HOSTILE, HOSTILE, fact_ids=(HOSTILE, "x"), text=HOSTILE)
    return replace(
        data,
        title=HOSTILE,
        claims=[claim],
        true_facts=[claim],
        others=[(fact, answer, answer, answer)],
        removals=[removal],
        cut=HOSTILE,
        method={HOSTILE: HOSTILE, "lines": HOSTILE + "\n" + HOSTILE},
    )


class Page(HTMLParser):
    """The elements of a page; an element that is closed out of order, or never, fails the test."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def plots(html: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)]


@pytest.mark.parametrize("make", [report_data, hostile_data])
def test_page_parses_and_has_no_script(make):
    html = render_report(make())
    tags = {tag for tag, _ in Page(html).elements}
    assert not tags & {"script", "img", "iframe", "object", "embed", "link", "base", "form"}
    assert "<script" not in html and "<img" not in html


@pytest.mark.parametrize("make", [report_data, hostile_data])
def test_page_is_self_contained(make):
    html = render_report(make())
    for tag, attributes in Page(html).elements:
        assert not any(name.startswith("on") or name in ("src", "srcset", "action") for name in attributes), tag
        assert attributes.get("href", "#").startswith("#")
        assert "url(" not in (attributes.get("style") or "").replace("url(#", "")
    css = "".join(re.findall(r"<style.*?</style>", html, flags=re.DOTALL))
    assert html.count("<style") == 1 and "@import" not in css and "url(" not in css
    assert "default-src 'none'" in html


def test_plain_page_names_no_address():
    assert not re.search(r"https?://|@import|src=|<link", render_report(report_data()))


def test_ids_are_unique_and_links_lead_somewhere():
    elements = Page(render_report(report_data())).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"][1:] for _, attributes in elements if "href" in attributes} <= set(ids)


def test_hostile_text_can_be_stored_and_is_still_read():
    html = render_report(hostile_data())
    assert "<script>alert(1)</script>" in unescape(html) and "{{ 7 * 7 }}" in html
    assert html.encode("utf-8") and not re.search("[\x00\x1b\u202e\ud800]", html)


def test_same_data_same_bytes():
    assert render_report(report_data()) == render_report(report_data())


@pytest.mark.parametrize("make", [report_data, hostile_data])
def test_plots_are_xml_and_named(make):
    svgs = plots(render_report(make()))
    assert len(svgs) == 2
    for svg in svgs:
        ids = {element.get("id"): element for element in svg.iter() if element.get("id")}
        assert svg.get("role") == "img" and all(ids[name].text for name in svg.get("aria-labelledby").split())
        assert svg.find(".//style") is None and not re.search("#[0-9a-f]{6};", ElementTree.tostring(svg, "unicode"))


def test_probability_plot_has_one_row_per_claim():
    labels = [element.text for element in plots(render_report(report_data()))[0].iter("text")]
    assert [label for label in labels if "capital" in label] == [
        "1. The capital of France is Rotterdam",
        "2. The capital of Peru is Kuala Lumpur",
        "3. The capital of Kenya is Oslo",
    ]


def test_shows_every_claim_and_every_lost_fact():
    html = render_report(report_data())
    for prompt in ("The capital of France is", "The capital of Peru is", "The capital of Kenya is"):
        assert prompt in html
    assert "Language number 25" in html and "Language number 29" not in html
    assert html.count("<details") - html.count('class="more"') == 4 and html.count(" open>") == 2
    assert "forgot" not in html


def test_every_removed_passage_is_shown_at_once():
    assert [len(part) for part in split_proponents(traced("Peru", "Lima", 3))] == [5, 7]
    assert [len(part) for part in split_proponents(traced("Peru", "Lima", 7))] == [7, 5]


def test_planted_recall_is_left_out_of_an_audit_without_planted_passages():
    data = report_data()
    summary = {name: value for name, value in data.summary.items() if name != "planted_recall_at_5"}
    assert "planted" in render_report(data) and "planted" not in render_report(replace(data, summary=summary))


def test_empty_audit_renders():
    data = report_data()
    summary = data.summary | {"num_claims": 0, "num_others": 0, "num_removed": 0}
    Page(render_report(replace(data, summary=summary, claims=[], true_facts=[], others=[], removals=[], method={})))


@pytest.mark.parametrize("text", ["", "the capital", "OSLO?! is Oslo's  capital\n", "Oslostadt", HOSTILE, "is the of"])
def test_mark_words_joins_to_the_text(text):
    segments = mark_words(text, Fact("1", "The capital of Kenya is", " Oslo"))
    assert "".join(part for part, _ in segments) == text
    assert all(part for part, _ in segments)


def test_mark_words_names_whole_words_in_any_case():
    segments = mark_words(
        "The Capital of Norway is OSLO, not Oslostadt.", Fact("1", "The capital of Kenya is", " Oslo")
    )
    assert [part for part in segments if part[1]] == [("Capital", "word"), ("OSLO", "target")]


def test_percent_says_all_or_none_only_where_it_is_so():
    assert [percent(share) for share in (0, 0.0001, 0.004, 0.5, 0.996, 0.99999, 1)] == [
        *("0 %", "0.1 %", "0.4 %", "50 %", "99.6 %", "99.9 %", "100 %")
    ]


def test_the_words_under_which_a_line_stands_are_those_that_carry_the_score():
    text = "Oslo is the capital of Kenya, they say."
    tokens = ((0, 4, 0.4), (4, 11, -0.3), (11, 19, 0.1), (22, 28, 0.2), (0, 0, 0.05))
    proponent = Proponent("1", 1, 1.0, "a", 0, len(text), {"gradient_exact": 0.45}, text, "s", "h", 1.0, (), tokens)
    found = evidence(proponent, Fact("1", "The capital of Kenya is", " Oslo"))
    assert "".join(segment for segment, _, _ in found) == text
    shares = {segment: share for segment, _, share in found}
    assert shares["Oslo"] == 100 and shares["Kenya"] == 50 and shares["capital"] == 25
    assert shares[" say."] == 0 if " say." in shares else shares[", they say."] == 0
    assert {kind for segment, kind, _ in found if segment == "Oslo"} == {"target"}
    plain = evidence(Proponent("1", 1, 1.0, "a", 0, len(text), {}, text, "s", "h"), Fact("1", "x", " Oslo"))
    assert all(share == 0 for _, _, share in plain)
