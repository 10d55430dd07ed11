"""Records: the identity of a text, and a row that lacks a field is named."""

import hashlib
import json

import pytest

from schemas.errors import ERRORS_BY_NAME, ProponentError
from schemas.records import DeadLetter, Fact, Proponent, text_sha256

ROW = Proponent("f", 1, 0.5, "z", 0, 4, {"bm25": 1.0}, "text", "src", "ab", 0.25).to_row()


def test_text_sha256_is_that_of_the_utf8_bytes_and_takes_any_string():
    assert text_sha256("été") == hashlib.sha256(b"\xc3\xa9t\xc3\xa9").hexdigest()
    assert text_sha256("\ud800") != text_sha256("\ud801")


def test_a_proponent_reads_back_from_its_row_and_ignores_unknown_fields():
    assert Proponent.from_row({**ROW, "extra": 1}).to_row() == ROW
    older = {name: value for name, value in ROW.items() if name != "coverage"}
    assert Proponent.from_row(older).coverage == 0.0


@pytest.mark.parametrize("name", ["fact_id", "rank", "score", "example_id", "signals", "sha256"])
def test_a_proponent_row_without_a_field_raises_value_error_that_names_it(name):
    with pytest.raises(ValueError, match=f"'{name}'"):
        Proponent.from_row({key: value for key, value in ROW.items() if key != name})


FACTS = [
    Fact("f", "The capital is", " 東京"),
    Fact("f", "", "Verona"),
    Fact("f", "p", " t", "Japan", "capital", "Tokyo", ("Tōkyō", "Edo"), ("z1",)),
    Fact("f", "p", " t", proponents=()),
    Fact("f", "p", " t", variants=(("p", " t"), ("q ", "t")), combine="max"),
    Fact("f", "p", " t", aliases=("a", "b"), variants=(("p", " t"), ("p", " u"))),
]


@pytest.mark.parametrize("fact", FACTS)
def test_a_fact_reads_back_from_its_row_as_json(fact):
    back = Fact.from_row(json.loads(json.dumps(fact.to_row())))
    assert back == fact and hash(back) == hash(fact)


def test_a_fact_row_holds_what_the_fact_says_and_no_more():
    assert FACTS[1].to_row() == {"id": "f", "prompt": "", "target": "Verona"}
    assert FACTS[4].to_row() == {
        "id": "f",
        "prompt": "p",
        "target": " t",
        "variants": [["p", " t"], ["q ", "t"]],
        "combine": "max",
    }


def test_a_fact_row_without_a_field_raises_value_error_that_names_it():
    with pytest.raises(ValueError, match="'target'"):
        Fact.from_row({"id": "f", "prompt": "p"})


def test_a_dead_letter_row_holds_place_step_and_reason():
    row = DeadLetter("f.jsonl", 3, "read", "no id", "{}").to_row()
    assert row == {"file": "f.jsonl", "row": 3, "step": "read", "reason": "no id", "record": "{}"}


def test_each_error_has_its_own_exit_code_that_is_no_success():
    codes = [error.exit_code for error in ERRORS_BY_NAME.values()]
    assert len(set(codes)) == len(codes) == 4
    assert not {0, ProponentError.exit_code} & set(codes)
