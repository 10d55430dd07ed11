"""No text of a corpus, a request or a reviewer can hurt in a report, in its spreadsheet or on the terminal.

The browser's tests are skipped without Chromium, saying so; in CI they fail.
"""

import csv
import io
import re
from pathlib import Path

import pytest

from pipelines import progress, report
from pipelines.__main__ import main
from pipelines.report import page_names
from schemas.ledger import Entry, append
from schemas.visible import visible
from tests.pipelines.audit_run import config, decide, told, verification
from tests.pipelines.review_run import evidence, proposal, request, small_run, write_run
from tests.pipelines.test_demo_report import Page

HOSTILE = [
    "<script>window.hurt = 1; alert(1)</script>",
    '"><img src=x onerror="window.hurt = 1; alert(2)"><svg onload=alert(3)>',
    "'-alert(4)-' {{7*7}} ${alert(5)} {% raw %} {n} </textarea></title></style><iframe src=javascript:alert(6)>",
    "\x1b[2J\x1b[31mred\x1b]0;title\x07 \x9b1m \b\b\b\x7f",
    "\u202eevitcere\u202c \u2066isolated\u2069 \u200e\u200f\u061c \U000e0041\U000e0042 \ufeff",
    '=HYPERLINK("http://evil.example","x") +1+cmd|\' /C calc\'!A0 @SUM(1) -2',
    "NUL\0NUL\0\0 lone \ud800 surrogate \udfff end \uffff",
    "W" * 1_000_000,
    "</script><style>*{display:none}</style><meta http-equiv=refresh content='0;url=https://evil.example'>",
    "e" + "\u0301" * 300 + " \r\n\r\r\t\t " + "\x00\x1b" * 2_000 + " $\\frac{1}$ ]]> -->",
    "%s%n ../../etc/passwd \\\\host\\x :x: [bold]x[/bold]",
]
HIDDEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\uffff]")


def whole(text: str) -> str:
    """The text without lone surrogates, which a ledger refuses."""
    return text.replace("\ud800", "").replace("\udfff", "")


def hostile_run(folder: Path) -> str:
    """Every hostile text in every place that a corpus, a request, a scorer or a reviewer can fill."""
    rows, requests = [], []
    for place, text in enumerate(HOSTILE):
        short = text[:3_000]
        case = {"prompt": text, "output": text, "said": text, "known": False, "probability": float("nan")}
        texts = {"category": short, "requester": short, "reason": text, "deadline": short}
        requests.append(request(f"r{place}{short}", cases=[case], exemplars=[text], said_by_model=False, **texts))
        label = {"scorer": short, "version": short, "threshold": 0.5, "label": short, "score": float("nan"),
                 "spans": [[0, len(text)]]}  # fmt: skip
        for number in (1, 2):
            rows.append(evidence(
                f"r{place}{short}", f"{place}.{number}{short}", text, number, source=short, file=text, group=f"{place}",
                signals={"bm25": 1.0, short: float("nan")}, ranks={"bm25": 1}, labels=[label],
                not_scored=[{"scorer": short, "reason": text}],
                overlap=[[0, min(40, len(text))]], tokens=[[0, len(text), 1.0]], words=[[0, 9], [-5, 10**7]],
                facts=[{"fact_id": short, "rank": 1, "score": 1.0}] * 2, proposal=proposal("redact", [[0, 5]], text),
            ))  # fmt: skip
    run = write_run(folder, requests, rows, [])
    entries = [
        Entry(whole(text[:500]), row["example_id"], row["sha256"], "approved",
              reason=whole(text[:500]), request_ids=(row["request_id"],))
        for row in rows[::2] for text in [row["text"]]
    ]  # fmt: skip
    append(run, entries)
    return run


def test_nothing_acts_on_the_terminal(tmp_path, capsys):
    run = str(tmp_path / "r\x1b[31m\u202e")
    assert main(["report", run, "--output", str(tmp_path / "out")]) == 2
    progress.set_quiet(False)
    progress.summary("x", {"a": "[red]\x1b[2J\x07\u202e :smile:", "b": 1})
    progress.set_quiet(True)
    printed = capsys.readouterr()
    assert not HIDDEN.search((printed.err + printed.out).replace("\n", "")) and "⟦ESC⟧" in printed.err
    assert "[red]" in printed.err and ":smile:" in printed.err


def opened(browser, width: int, wrong: list[str], **more):
    """A page of this width; what must not happen on it goes into `wrong`."""
    page = browser.new_page(viewport={"width": width, "height": 900}, **more)
    page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("console", lambda m: wrong.append(f"console: {m.text}"))
    page.on("request", lambda r: r.url.startswith("file://") or wrong.append(f"request: {r.url}"))
    return page


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("hostile")
    run = hostile_run(place / "run")
    facts = [(f"r{n}{text[:3_000]}", text[:3_000], text[:3_000]) for n, text in enumerate(HOSTILE)]
    report.run(config(place / "out", {"run": run, "verification": verification(place / "verification", facts)}))
    return place / "out"


def test_hostile_text_is_only_text(hostile):
    for path in hostile.iterdir():
        assert not HIDDEN.search(path.read_text("utf-8").lstrip("\ufeff").replace("\r\n", "\n")), path.name
        assert path.stat().st_size < 3_000_000
        if path.suffix == ".html":
            tags = {tag for tag, _ in Page(path.read_text()).elements}
            assert not tags & {"script", "img", "iframe", "link", "object", "form", "base", "textarea"}
    pages = [path for path in hostile.glob("*.html") if path.name != "index.html"]
    assert len(pages) == len(HOSTILE)
    shown = {place: told((hostile / name).read_text()) for place, name in enumerate(page_names(
        f"r{n}{text[:3_000]}" for n, text in enumerate(HOSTILE)).values())}  # fmt: skip
    assert "<script>window.hurt = 1; alert(1)</script>" in shown[0] and "{{7*7}}" in shown[2] and "{n}" in shown[2]
    assert "ESC" in shown[3] and "U+202E" in shown[4]
    assert "996,000 more characters of this passage are left out" in shown[7]
    for row in csv.DictReader(io.StringIO((hostile / "evidence.csv").read_text("utf-8-sig"))):
        assert not any(value.startswith(("=", "+", "@", "\t", "\r", "-")) for value in row.values())


def test_hostile_text_executes_nothing_and_breaks_nothing_in_a_browser(browser, hostile):
    wrong: list[str] = []
    page = opened(browser, 1280, wrong)
    page.goto((hostile / "index.html").as_uri())
    links = page.evaluate("[...document.querySelectorAll('tbody th a')].map((a) => a.href)")
    assert len(links) == len(HOSTILE)
    for address in (page.url, *links):
        page.goto(address)
        page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
        for width in (1280, 420):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") == width, address
        assert page.evaluate("window.hurt") is None and page.url == address
        assert page.locator("main").evaluate("(e) => getComputedStyle(e).display") == "block"
    page.close()
    assert wrong == []


def test_pages_work_by_keyboard_at_any_width_in_the_dark_and_printed(browser, tmp_path):
    wrong: list[str] = []
    run = small_run(tmp_path / "run")
    decide(run)
    facts = [("r1", "The capital of Laputa is", " Belmont, a port of 40,000 souls.")]
    report.run(config(tmp_path / "out", {"run": run, "verification": verification(tmp_path / "verified", facts)}))
    for width, scheme in ((1280, "dark"), (420, "light")):
        page = opened(browser, width, wrong, color_scheme=scheme)
        for name in ("index", "r1"):
            page.goto((tmp_path / f"out/{name}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") == width
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.className") == "skip"
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        assert page.url.endswith("#content")
        folded = page.locator(".card").nth(3)
        assert not folded.locator(".text").first.is_visible()
        folded.locator("> summary").focus()
        page.keyboard.press("Enter")
        assert folded.locator(".text").first.is_visible()
        background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert background == ("rgb(19, 21, 25)" if scheme == "dark" else "rgb(246, 246, 243)")
        page.emulate_media(media="print")
        assert page.locator(".duplicate .text").first.is_visible() and not page.locator("nav").is_visible()
        page.close()
    assert wrong == []


def test_the_test_of_hidden_characters_finds_them():
    assert all(HIDDEN.search(text) for text in (HOSTILE[3], HOSTILE[4], HOSTILE[6])) and not HIDDEN.search(
        visible(HOSTILE[4])
    )
