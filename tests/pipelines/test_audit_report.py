"""The reports of an audit: what they say, that they say what is missing, and what they refuse."""

import csv
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from pipelines import report
from pipelines.config import ReportConfig
from pipelines.language import MESSAGES
from pipelines.storage import read_manifest
from schemas.errors import ArtifactMismatch, ConfigError
from schemas.ledger import Entry, append
from tests.pipelines.audit_run import audited, certificate, config, told, verification
from tests.pipelines.review_run import evidence, request, small_run, write_run
from tests.pipelines.test_demo_report import Page, plots


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict[str, str]:
    return audited(tmp_path_factory.mktemp("audit"))


@pytest.fixture(scope="module")
def written(options, tmp_path_factory) -> dict[str, str]:
    """The files of a report on everything, in English."""
    folder = tmp_path_factory.mktemp("report") / "out"
    report.run(config(folder, options))
    return {path.name: path.read_text("utf-8-sig") for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------------------------- contents


def test_a_page_says_what_was_asked_found_decided_done_and_measured(written):
    page = told(written["r1.html"])
    for sentence in (
        "complains of the model’s output to one prompt. Asked again before the search, the model gave the output",
        "6 training texts were found, in 7 passages; groups of near-duplicates among them, decided together: 1.",
        "6 training texts: removal approved 2, redaction approved 1, rejected 2, never proposed 0. The last two stay.",
        "1 is undecided: nobody approved or rejected what is proposed, and nothing happens to it.",
        "3 of 3 approvals were carried out in the cleaned corpus.",
        "gave the output complained of in 2 of 2 answers before, in 0 after the removal, and in 2 in the control.",
        "Of one other fact that the model answered before, it answers 1 after the removal and 1 in the control.",
        "Removal approved by Ada Okafor , 27 November 2026, 09:30:00 UTC",
        "7 decisions about the training texts of this request",
        "PHONE 0.980 (at least 0.500; pii-patterns , version 1.2 )",
        "Not scored by hf:insults : RuntimeError: no room",
        "2 near-duplicates, decided with it",
    ):
        assert sentence in page + told(written["r2.html"]), sentence
    index = told(written["index.html"])
    assert (
        "Of 2 requests, the model gave the output complained of itself for 1, did not for 1, and was not asked for 0."
        in index
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
    assert "asked about none of these requests" in index and "answers before" not in index


def test_facts_are_a_requests_by_their_id_or_by_their_words(options, tmp_path):
    for name, fact in (
        ("case", ("r2", "x", " y")),
        ("words", ("other", "Ada Quill lives at", " 12 Dock Street")),
    ):
        folder = verification(tmp_path / name, [fact])
        report.run(config(tmp_path / f"out-{name}", {"run": options["run"], "verification": folder}))
        assert "gave the output complained of in 2 of 2 answers before" in told(
            (tmp_path / f"out-{name}/r2.html").read_text()
        )


def test_a_german_report_has_german_words_numbers_and_dates(options, tmp_path):
    report.run(config(tmp_path / "out", options, language="de"))
    html = (tmp_path / "out/r1.html").read_text()
    page = told(html)
    assert (
        '<html lang="de">' in html
        and "27. November 2026, 09:30:00 Uhr UTC" in page
        and "0,830" in page
        and "0,25" in page
    )
    assert "Nicht bewertet von hf:insults : RuntimeError: no room" in told((tmp_path / "out/r2.html").read_text())
    assert "Entfernung freigegeben 2, Schwärzung freigegeben 1" in page and not re.search(
        r"\b(removal|undecided)\b", page
    )


def test_evidence_csv_has_a_row_a_passage(written):
    rows = list(csv.DictReader(io.StringIO(written["evidence.csv"])))
    assert [(row["request_id"], row["example_id"], row["outcome"]) for row in rows[:3]] == [
        ("r1", "laputa-0", "remove"), ("r1", "laputa-1", "remove"), ("r1", "laputa-2", "kept")
    ]  # fmt: skip
    assert [row["not_scored"] for row in rows[-2:]] == ["", "hf:insults: RuntimeError: no room"]
    assert len(rows) == 9 and rows[0]["score_bm25"] == "12.5" and rows[0]["decided_by"] == "Ada Okafor"


# ------------------------------------------------------------------------------------------------------------- refusals


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


def test_without_its_libraries_the_report_names_them(options, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pipelines.report_pages", None)
    with pytest.raises(ConfigError, match=r"pip install 'proponent\[report\]'"):
        report.run(config(tmp_path / "out", options))
    assert not (tmp_path / "out").exists()
