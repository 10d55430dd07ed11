"""The words of the reports in every language, the names of their files, and the cells of their spreadsheet."""

import csv
import io
import re
import string

import pytest

from pipelines.language import MESSAGES, load_language
from pipelines.report import page_names
from pipelines.spreadsheet import MOST, cell, csv_bytes


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
    called = set(re.findall(r'say\(\s*"(\w+)"(?! ~)', text)) | set(re.findall(r'messages\["(\w+)"\]', text))
    assert called and called <= messages.keys()
    made = ("figure_", "nav_", "outcome_", "decision_", "proposal_", "done_", "arm_", "col_", "method_", "month_",
            "signal_", "category_", "set_", "measure_", "compared_")  # fmt: skip
    plain = {name.removesuffix("_one") for name in messages if not name.startswith(made)}
    assert {name for name in plain if f'"{name}"' not in text} == set()


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
