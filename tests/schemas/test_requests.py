"""Audit requests: what is read, what is refused and named, and the facts that they become."""

import pytest

from schemas.errors import ConfigError
from schemas.records import Fact
from schemas.requests import AuditRequest, facts_of, request_from_row, requests_from_rows

ROW = {"request_id": "r1", "category": "false_fact", "prompts": [{"prompt": "Oz is ruled by", "output": "Ozma"}]}


def test_a_request_reads_back_from_its_row():
    row = ROW | {"exemplars": ["Oz is far."], "requester": "me", "reason": "wrong", "deadline": "2026-12-31"}
    request = request_from_row(row)
    assert request == AuditRequest("r1", "false_fact", (("Oz is ruled by", "Ozma"),), ("Oz is far.",), "me", "wrong",
                                   "2026-12-31")  # fmt: skip
    assert request_from_row(request.to_row()) == request


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"request_id": ""}, "'request_id' must be a non-empty string, found ''"),
        ({"category": "false fact"}, "must be one of toxic, .*found 'false fact'; did you mean 'false_fact'?"),
        ({"category": None}, "'category' must be one of"),
        ({"prompts": [{"prompt": "Oz is"}]}, "prompts, item 1: output' must be a non-empty string, found None"),
        ({"prompts": [{"output": "Ozma"}]}, "prompts, item 1: prompt' must be a non-empty string, found None"),
        ({"prompts": [{"promt": "a", "output": "b"}]}, "found the key 'promt'; did you mean 'prompt'?"),
        ({"prompts": "Oz is"}, "'prompts' must be a list of {prompt, output}, found 'Oz is'"),
        ({"prompts": []}, "expected 'prompts' with the outputs complained of, or 'exemplars', found neither"),
        ({"exemplars": ["word"]}, "exemplars, item 1' must be a text of at least 2 words"),
        ({"dedline": "2026-01-01"}, "found the key 'dedline'; did you mean 'deadline'?"),
        ({"reason": "\ud83d"}, "surrogates not allowed"),
        ({"deadline": "soon"}, "'deadline' must be a date such as 2026-12-31, found 'soon'"),
        ({"prompts": ROW["prompts"] * 2}, "found one twice"),
        ({"exemplars": [f"text {n}" for n in range(64)]}, "at most 64 prompts and exemplars, found 65"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        request_from_row(ROW | change)


def test_a_file_names_the_place_and_repeated_ids():
    with pytest.raises(ConfigError, match=r"r\.jsonl, line 2: not an audit request: expected an object, found list"):
        requests_from_rows([("line 1", ROW), ("line 2", [])], "r.jsonl")
    with pytest.raises(ConfigError, match=r"r\.jsonl, line 9: the request_id 'r1' is used twice"):
        requests_from_rows([("line 1", ROW), ("line 9", ROW)], "r.jsonl")
    rows = [("line 1", ROW | {"exemplars": ["Oz is far."]}), ("line 2", ROW | {"request_id": "r1/2"})]
    with pytest.raises(ConfigError, match=r"the request_id 'r1/2' is that of another request's case"):
        requests_from_rows(rows, "r.jsonl")
    with pytest.raises(ConfigError, match="expected at least one audit request"):
        requests_from_rows([], "r.jsonl")


def test_cases_are_asked_together_and_one_by_one_and_an_exemplar_from_its_first_word():
    assert facts_of(request_from_row(ROW)) == [Fact("r1", "Oz is ruled by", " Ozma")]
    several = request_from_row(ROW | {"exemplars": ["  Oz lies far away."]})
    pairs = (("Oz is ruled by", " Ozma"), ("  Oz", " lies far away."))
    together, first, second = facts_of(several)
    assert together == Fact("r1", *pairs[0], variants=pairs)
    assert (first, second) == (Fact("r1/1", *pairs[0]), Fact("r1/2", *pairs[1]))
