"""The reports of an audit: what they say, that they say what is missing, and that no text of a corpus can hurt in them.

The browser's tests are skipped without Chromium, saying so; in CI they fail.
"""

import csv
import io
import json
import os
import re
import shutil
import string
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest

from pipelines import progress, report
from pipelines.__main__ import main
from pipelines.config import ReportConfig
from pipelines.language import MESSAGES, load_language
from pipelines.report import page_names
from pipelines.spreadsheet import MOST, cell, csv_bytes
from pipelines.storage import read_manifest
from schemas.errors import ArtifactMismatch, ConfigError
from schemas.ledger import Entry, append
from schemas.visible import visible
from tests.pipelines.audit_run import audited, certificate, config, verification
from tests.pipelines.review_run import evidence, proposal, request, small_run, write_run
from tests.pipelines.test_demo_report import Page, plots

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
MISSING = "the reports are not tested in a browser: found no Chromium, or no playwright; install both (extra dev)"
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


def told(text: str) -> str:
    """What a page says, without its tags."""
    without = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", without)).split())


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict[str, str]:
    return audited(tmp_path_factory.mktemp("audit"))


@pytest.fixture(scope="module")
def written(options, tmp_path_factory) -> dict[str, str]:
    """The files of a report on everything, in English."""
    folder = tmp_path_factory.mktemp("report") / "out"
    report.run(config(folder, options))
    return {path.name: path.read_text("utf-8-sig") for path in folder.iterdir()}


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
                overlap=[[0, min(40, len(text))]], tokens=[[0, len(text), 1.0]], words=[[0, 9], [-5, 10**7]],
                facts=[{"fact_id": short, "rank": 1, "score": 1.0}] * 2, proposal=proposal("redact", [[0, 5]], text),
            ))  # fmt: skip
    run = write_run(folder, requests, rows, [])
    entries = [
        Entry(text[:500].replace("\ud800", "").replace("\udfff", ""), row["example_id"], row["sha256"], "approved",
              reason=text[:500], request_ids=(row["request_id"],))
        for row in rows[::2] for text in [row["text"]]
    ]  # fmt: skip
    append(run, entries)
    return run


# ------------------------------------------------------------------------------------------------------------ contents


def test_a_page_says_what_was_asked_found_decided_done_and_measured(written):
    page = told(written["r1.html"])
    for sentence in (
        "complains of the model’s output to one prompt. Asked again before the search, the model gave the output",
        "6 training texts were found, in 7 passages; groups of near-duplicates among them, decided together: 1.",
        "6 training texts: removal approved 2, redaction approved 1, rejected 2, never proposed 0. The last two stay.",
        "1 is undecided: nobody approved or rejected what is proposed, and nothing happens to it.",
        "3 of 3 approvals were carried out in the cleaned corpus.",
        "Of 2 answers asked for, the model gave the output complained of 2 times before, 0 times after the removal, ",
        "Of one other fact that the model answered before, it answers 1 after the removal and 1 in the control.",
        "Removal approved by Ada Okafor , 27 November 2026, 09:30:00 UTC",
        "7 decisions about the training texts of this request",
        "PHONE 0.980 (at least 0.500; pii-patterns , version 1.2 )",
        "2 near-duplicates, decided with it",
    ):
        assert sentence in page + told(written["r2.html"]), sentence
    index = told(written["index.html"])
    assert (
        "Of 2 requests, the model gives what is complained of in 1 and does not in 1; in 0 it was not asked." in index
    )
    assert "before 2, after 0, control 2, of 2" in index and "−0.8600 −0.9100 to −0.8000" in index
    assert "The model does not say this." in told(written["r2.html"]) and "did not ask about" in told(
        written["r2.html"]
    )


def test_every_decision_is_listed_and_which_of_them_stand(written):
    table = re.search(r"7 decisions.*?</table>", written["r1.html"].split('id="decisions"')[1], re.DOTALL).group()
    rows = [told(row).split() for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)[1:]]
    assert [row[0] for row in rows] == list("1234567") and [row[-1] for row in rows] == [
        *("yes", "yes", "no", "no", "yes", "yes", "yes")
    ]
    assert "by mistake" in table and "Names the city" in table


def test_hashes_of_what_is_gone_are_told(written, options):
    removed = (Path(options["cleaned"]) / "removed/00000.jsonl").read_text().splitlines()
    for row in map(json.loads, removed):
        assert row["sha256"] in written["r1.html"] and row["result_sha256"] in written["r1.html"]
    assert len(removed) == 3 and "a" * 64 in written["r1.html"] and "e" * 64 in written["index.html"]
    assert "Of the training texts of this report, 1 left the index." in told(written["index.html"])


def test_pages_are_whole_and_have_no_script_and_no_address(written):
    for name in ("index.html", "r1.html", "r2.html"):
        html = written[name]
        elements = Page(html).elements
        ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
        assert len(ids) == len(set(ids)) and not {tag for tag, _ in elements} & {"script", "img", "link", "iframe"}
        hrefs = {attributes["href"] for _, attributes in elements if "href" in attributes}
        assert {href[1:] for href in hrefs if href[0] == "#"} <= set(ids)
        assert {href for href in hrefs if href[0] != "#"} <= {"index.html", "r1.html", "r2.html", "evidence.csv"}
        assert not re.search(r"https?://|@import|url\((?!#)| on\w+=", html) and "default-src 'none'" in html
        assert all(svg.get("role") == "img" for svg in plots(html))
        assert [tag for tag, _ in elements].count("main") == 1 and [tag for tag, _ in elements].count("h1") == 1
        assert all("caption" in table for table in re.findall(r"<table.*?</table>", html, re.DOTALL))


def test_no_page_says_that_a_model_forgot():
    for path in MESSAGES.glob("report.*.json"):
        assert not re.search("forg[eo]t|vergess|verlernt|unlearn", path.read_text("utf-8"), re.IGNORECASE)


def test_the_same_input_gives_the_same_bytes(options, written, tmp_path):
    report.run(config(tmp_path / "again", options))
    assert {
        path.name: path.read_text("utf-8-sig") for path in (tmp_path / "again").iterdir() if path.suffix == ".html"
    } == {name: text for name, text in written.items() if name.endswith(".html")}


def test_what_was_not_given_or_not_done_is_said(tmp_path):
    run = small_run(tmp_path / "run")
    never = [request("r3", cases=[{"prompt": "a", "output": "b", "said": None, "known": None, "probability": None}],
                     said_by_model=None)]  # fmt: skip
    write_run(tmp_path / "unasked", never, [evidence("r3", "x", "a b", 1, signals={}, ranks={})], [])
    report.run(config(tmp_path / "out", {"run": run}))
    page, index = (told((tmp_path / f"out/{name}.html").read_text()) for name in ("r1", "index"))
    for text in (page, index):
        assert "No verification was given to this report: nothing was measured after the removal." in text
        assert "No cleaned corpus was given" in text and "No certificate of a purge was given" in text
    assert "6 are undecided" in page and "There is no decision about the training texts of this request." in page
    report.run(config(tmp_path / "out2", {"run": str(tmp_path / "unasked")}))
    page = told((tmp_path / "out2/r3.html").read_text())
    assert "The model was not asked" in page and "Not ranked itself: it was found as a near-duplicate." in page


def test_an_approval_that_the_cleaned_corpus_has_not_is_said(options, tmp_path):
    shutil.copytree(options["run"], tmp_path / "run")
    row = json.loads((tmp_path / "run/evidence.jsonl").read_text().splitlines()[4])
    append(tmp_path / "run", [Entry("Ada", row["example_id"], row["sha256"], "approved")])
    report.run(config(tmp_path / "out", options | {"run": str(tmp_path / "run")}))
    page = told((tmp_path / "out/r1.html").read_text())
    assert "3 of 4 approvals were carried out" in page and "not carried out" in page


def test_a_prediction_is_called_one_and_no_answer_of_it_is_shown(options, tmp_path):
    facts = [("r1", "The capital of Laputa is", " Belmont, a port of 40,000 souls.")]
    folder = verification(tmp_path / "predicted", facts, predicted=True)
    report.run(config(tmp_path / "out", {"run": options["run"], "verification": folder}))
    html = (tmp_path / "out/r1.html").read_text()
    page = told(html)
    assert "A prediction. No model was trained again." in page and "are predicted, not measured" in page
    assert "the sea" not in told(html.split('id="effect"')[1]) and "0.020" in page


def test_a_verification_of_something_else_is_not_called_this_audits(options, tmp_path):
    folder = verification(tmp_path / "other", [("elsewhere", "The sky is", " green")])
    report.run(config(tmp_path / "out", {"run": options["run"], "verification": folder}))
    index = told((tmp_path / "out/index.html").read_text())
    assert "asked about none of these requests" in index and "the model gave the output complained of" not in index


def test_facts_are_a_requests_by_their_id_or_by_their_words(options, tmp_path):
    for name, fact in (
        ("case", ("r2", "x", " y")),
        ("words", ("other", "Ada Quill lives at", " 12 Dock Street")),
    ):
        folder = verification(tmp_path / name, [fact])
        report.run(config(tmp_path / f"out-{name}", {"run": options["run"], "verification": folder}))
        assert "gave the output complained of 2 times before" in told((tmp_path / f"out-{name}/r2.html").read_text())


# ----------------------------------------------------------------------------------------------------------- languages


def places(message: str) -> list[str]:
    return sorted(name for _, name, _, _ in string.Formatter().parse(message) if name is not None)


def test_languages_have_the_same_messages_with_the_same_places():
    english, *others = (
        load_language(path.name.split(".")[1]) for path in sorted(MESSAGES.glob("report.*.json"), reverse=True)
    )
    assert english.code == "en" and [other.code for other in others] == ["de"]
    for other in others:
        assert other.messages.keys() == english.messages.keys()
        assert {k: places(v) for k, v in other.messages.items()} == {k: places(v) for k, v in english.messages.items()}
        same = {name for name, text in other.messages.items() if text == english.messages[name] and " " in text}
        assert same == set(), "not translated"
    for name in english.messages:
        if name.endswith("_one"):
            assert set(places(english.messages[name])) <= set(places(english.messages[name.removesuffix("_one")]))


def test_every_message_is_used_and_every_used_one_is_there():
    sources = [*MESSAGES.parent.glob("report_pages.py"), *MESSAGES.parent.glob("language.py"),
               *(MESSAGES.parent / "templates").glob("audit*.j2")]  # fmt: skip
    text = "\n".join(path.read_text("utf-8") for path in sources)
    messages = load_language("en").messages
    used = set(re.findall(r'say\(\s*"(\w+)"(?! ~)', text)) | set(re.findall(r'messages\["(\w+)"\]', text))
    assert used <= messages.keys()
    parts = ("figure_", "nav_", "outcome_", "decision_", "proposal_", "done_", "arm_", "col_", "method_", "month_",
             "signal_", "category_", "set_", "measure_", "compared_", "said_", "undecided_")  # fmt: skip
    unused = {name for name in messages if name.removesuffix("_one") not in used and not name.startswith(parts)}
    assert unused == set()


def test_numbers_and_dates_are_those_of_the_language():
    english, german = load_language("en"), load_language("de")
    assert (english.count(1234567), german.count(1234567)) == ("1,234,567", "1.234.567")
    assert (english.number(-12.345), german.number(-12.345)) == ("−12.3", "−12,3")
    assert (english.number(0.0), english.number(2e-7), german.number(2e-7)) == ("0.00", "2.00e−07", "2,00e−07")
    assert {german.number(value) for value in (None, float("nan"), float("inf"))} == {"–"}
    assert (english.percent(0.5), german.percent(0.9999), german.percent(1.0)) == ("50%", "99,9 %", "100 %")
    assert (english.date("2026-12-24"), german.date("2026-03-01")) == ("24 December 2026", "1. März 2026")
    assert german.date("2026-11-27T09:30:00+00:00") == "27. November 2026, 09:30:00 Uhr UTC"
    assert english.date("soon <b>") == "soon <b>" and english.probability(1e-9) == "< 0.001"
    assert english.say("left_out", n=1) == "… 1 more character is left out"
    assert german.say("of", n="<b>", total=1000) == "&lt;b&gt; von 1.000"


def test_a_german_report_has_german_words_numbers_and_dates(options, tmp_path):
    report.run(config(tmp_path / "out", options, language="de"))
    html = (tmp_path / "out/r1.html").read_text()
    page = told(html)
    assert '<html lang="de">' in html and "27. November 2026, 09:30:00 Uhr UTC" in page and "0,830" in page
    assert "Entfernung freigegeben 2, Schwärzung freigegeben 1" in page and not re.search(
        r"\b(removal|undecided)\b", page
    )


# ----------------------------------------------------------------------------------------------------- files and texts


def test_file_names_are_safe_and_no_two_are_alike():
    ids = ["a", "A", "a/b", "a_b", "../../etc/passwd", "index", "CON", "nul.x", "", " ", "日本", "x" * 500, ".hidden",
           "ok-1.2", "\ud800\0", "a\nb", "r?#%20"]  # fmt: skip
    names = page_names(ids)
    assert list(names) == ids and len({name.casefold() for name in names.values()}) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}\.html", name) for name in names.values())
    assert (
        names["ok-1.2"] == "ok-1.2.html"
        and names["a_b"] == "a_b-" + names["a_b"][4:]
        and "index.html" not in names.values()
    )
    assert page_names(reversed(ids)) == names
    collided = page_names(["a b", page_names(["a b"])["a b"].removesuffix(".html")])
    assert len(set(collided.values())) == 2


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1", "＝1", "-"])
def test_a_cell_that_could_be_a_formula_is_a_text(text):
    assert cell(text).startswith("'") and not cell(text).strip("'\n\t ").startswith("'")


def test_other_cells_are_as_they_are_and_long_ones_are_cut():
    assert [cell(value) for value in ("a=1", "", None, 3, -0.5, float("nan"), True)] == [
        "a=1",
        "",
        "",
        3,
        -0.5,
        "",
        "True",
    ]
    assert len(cell("x" * 10**6)) < 32_767 and cell("x" * 10**6).endswith(f"+{10**6 - MOST}")
    assert cell("\x1b[2J\0") == "⟦ESC⟧[2J⟦NUL⟧"
    rows = list(csv.reader(io.StringIO(csv_bytes(["a", "b"], [["x;=1", 'q"\n=2']]).decode("utf-8-sig"))))
    assert rows == [["a", "b"], ["x;=1", 'q"\n=2']]


def test_evidence_csv_has_a_row_a_passage(written):
    rows = list(csv.DictReader(io.StringIO(written["evidence.csv"])))
    assert [(row["request_id"], row["example_id"], row["outcome"]) for row in rows[:3]] == [
        ("r1", "laputa-0", "remove"), ("r1", "laputa-1", "remove"), ("r1", "laputa-2", "kept")
    ]  # fmt: skip
    assert len(rows) == 9 and rows[0]["score_bm25"] == "12.5" and rows[0]["decided_by"] == "Ada Okafor"


def test_nothing_acts_on_the_terminal(tmp_path, capsys):
    run = str(tmp_path / "r\x1b[31m\u202e")
    assert main(["report", run, "--output", str(tmp_path / "out")]) == 2
    progress.set_quiet(False)
    progress.summary("x", {"a": "[red]\x1b[2J\x07\u202e :smile:", "b": 1})
    progress.set_quiet(True)
    printed = capsys.readouterr()
    assert not HIDDEN.search((printed.err + printed.out).replace("\n", "")) and "⟦ESC⟧" in printed.err
    assert "[red]" in printed.err and ":smile:" in printed.err


# ------------------------------------------------------------------------------------------------------------ refusals


def test_inputs_that_are_not_whole_are_refused_and_leave_nothing(options, tmp_path):
    path = Path(certificate(tmp_path / "certificate.json"))
    path.write_text(path.read_text().replace("laputa-0", "laputa-9"))
    (tmp_path / "other.json").write_text('{"index": 1}')
    for more, error, message in (
        ({"certificate": str(path)}, ArtifactMismatch, "it was changed after it was written; restore it from a copy"),
        (
            {"certificate": str(tmp_path / "other.json")},
            ConfigError,
            "expected a certificate of `purge`, found no files, ",
        ),
        (
            {"certificate": str(tmp_path / "none.json")},
            ConfigError,
            "the file that `purge` wrote beside the index, found none",
        ),
        ({"cleaned": options["run"]}, ArtifactMismatch, "expected a folder of kind 'corpus', found 'removals'"),
        (
            {"verification": options["run"]},
            ArtifactMismatch,
            "expected a folder of kind 'verification', found 'removals'",
        ),
        ({"verification": str(tmp_path)}, ConfigError, "expected a finished folder of kind 'verification'"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            report.run(config(tmp_path / "out", options, **more))
        assert not (tmp_path / "out").exists()
    shutil.copytree(options["run"], tmp_path / "run")
    ledger = tmp_path / "run/ledger.jsonl"
    ledger.write_text(ledger.read_text().replace("Ben", "Bea"))
    with pytest.raises(ArtifactMismatch, match="entry 5: expected content with the hash"):
        report.run(ReportConfig(run=str(tmp_path / "run"), output=str(tmp_path / "out")))


def test_the_folder_lists_its_pages(options, tmp_path):
    report.run(config(tmp_path / "out", options))
    manifest = read_manifest(str(tmp_path / "out"), "report")
    assert manifest.details["pages"] == {"r1.html": "r1", "r2.html": "r2"} and manifest.counts["in"] == 2
    assert [(info.name, info.rows) for info in manifest.files] == [
        ("r1.html", 7), ("r2.html", 2), ("index.html", 2), ("evidence.csv", 9)
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="expected a new output folder, found a finished one"):
        report.run(config(tmp_path / "out", options))


# ----------------------------------------------------------------------------------------------------------- a browser


@pytest.fixture(scope="module")
def browser() -> Iterator:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if not chromium:
        if os.environ.get("CI"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield launched
        launched.close()


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


def test_pages_work_by_keyboard_at_any_width_in_the_dark_and_printed(browser, options, tmp_path):
    wrong: list[str] = []
    report.run(config(tmp_path / "out", options))
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
