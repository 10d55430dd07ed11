"""Facts: the ways to ask give the same fact, lists ask every pair, and a bad row is refused with file and line."""

import json

import pytest

from schemas.errors import ConfigError
from schemas.facts import MAX_VARIANTS, asked, fact_from_row, parse_facts, text_query, with_space
from schemas.records import Fact


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "The capital of Oz is", "target": " Verona"},
        {"prompt": "The capital of Oz is", "target": "Verona"},
        {"sentence": "The capital of Oz is Verona", "explain": "Verona"},
        {"sentence": "The capital of Oz is Verona.", "explain": " Verona "},
        {"subject": "Oz", "relation": "x", "object": "Verona", "template": "The capital of {subject} is {object}."},
        {"subject": "The capital of Oz", "relation": "is", "object": "Verona"},
    ],
)
def test_every_way_to_ask_gives_the_same_prompt_and_target(row):
    fact = fact_from_row({"id": "f", **row})
    assert (fact.prompt, fact.target) == ("The capital of Oz is", " Verona")


def test_prompt_with_its_own_space_keeps_it_and_the_target_gets_none():
    fact = fact_from_row({"id": "f", "prompt": "The capital is ", "target": "Verona"})
    assert (fact.prompt, fact.target) == ("The capital is ", "Verona")


@pytest.mark.parametrize(
    ("prompt", "target", "expected"),
    [
        ("is", "Verona", " Verona"),
        ("is", " Verona", " Verona"),
        ("is ", "Verona", "Verona"),
        ("says", "“no”", " “no”"),
        ("is", ".", "."),
        ("日本の首都は", "東京", "東京"),
        ("日本の首都は", "Tokyo", "Tokyo"),
        ("capital:", "東京", "東京"),
        ("столица", "Москва", " Москва"),
        ("", "Verona", "Verona"),
        ("is", "", ""),
    ],
)
def test_space_stands_between_two_words_of_spaced_scripts_only(prompt, target, expected):
    assert with_space(prompt, target) == expected


def test_part_to_explain_is_its_last_occurrence():
    fact = fact_from_row({"id": "f", "sentence": "Oz is far and Oz is green", "explain": "Oz"})
    assert (fact.prompt, fact.target) == ("Oz is far and", " Oz")


def test_part_to_explain_keeps_the_space_that_stands_in_the_sentence_and_none_where_none_stands():
    assert fact_from_row({"id": "f", "sentence": "首都は東京です", "explain": "東京"}).target == "東京"
    fact = fact_from_row({"id": "f", "sentence": "Verona it is", "explain": "Verona"})
    assert (fact.prompt, fact.target) == ("", "Verona")


def test_optional_fields_are_kept_and_fact_id_is_accepted():
    row = {"fact_id": "f1", "prompt": "p", "target": "t", "subject": "S", "relation": "R", "object": "O"}
    fact = fact_from_row({**row, "aliases": ["a", "b"], "proponents": ["z1"], "unknown": 7})
    assert fact == Fact("f1", "p", " t", "S", "R", "O", ("a", "b"), ("z1",))


def test_unknown_proponents_are_told_from_none():
    assert fact_from_row({"id": "f", "prompt": "p", "target": "t"}).proponents is None
    assert fact_from_row({"id": "f", "prompt": "p", "target": "t", "proponents": []}).proponents == ()


def test_a_written_fact_reads_back_as_itself():
    fact = Fact("f", "The capital is", " 東京", "Japan", "capital", "Tokyo", ("Tōkyō",), ("z1", "z2"))
    assert parse_facts(lines(fact.to_row()), "facts.jsonl") == [fact]
    plain = Fact("f", "p", " t")
    assert plain.to_row() == {"id": "f", "prompt": "p", "target": " t"}
    assert parse_facts(lines(plain.to_row()), "facts.jsonl") == [plain]


def test_order_is_kept_and_empty_lines_are_skipped():
    data = (
        lines({"id": "b", "prompt": "p", "target": "t"}) + b"\n  \n" + lines({"id": "a", "prompt": "p", "target": "t"})
    )
    assert [fact.id for fact in parse_facts(data, "f.jsonl")] == ["b", "a"]
    assert [fact.id for fact in parse_facts(data.replace(b"\n", b"\r\n"), "f.jsonl")] == ["b", "a"]


def test_lists_ask_every_prompt_with_every_target_each_with_its_own_space():
    fact = fact_from_row({"id": "f", "prompts": ["Oz is", 'Say "'], "targets": ["green", "far"], "combine": "max"})
    pairs = (("Oz is", " green"), ("Oz is", " far"), ('Say "', "green"), ('Say "', "far"))
    assert (fact.prompt, fact.target, fact.variants, fact.combine) == ("Oz is", " green", pairs, "max")
    assert fact_from_row({"id": "f", "variants": [list(pair) for pair in pairs], "combine": "max"}) == fact


@pytest.mark.parametrize(
    ("row", "pairs"),
    [
        ({"prompts": ["p", "q"], "target": "t"}, (("p", " t"), ("q", " t"))),
        ({"prompt": "p", "targets": ["t", "u"]}, (("p", " t"), ("p", " u"))),
        ({"prompts": ["p", "q"], "target": "t", "prompt": None, "targets": None}, (("p", " t"), ("q", " t"))),
        ({"variants": [["p", "t"], ["q", "u"]]}, (("p", " t"), ("q", " u"))),
    ],
)
def test_one_list_or_pairs_are_enough_and_the_mean_is_what_nothing_said_means(row, pairs):
    fact = fact_from_row({"id": "f", **row})
    assert (fact.variants, fact.combine) == (pairs, "mean")


@pytest.mark.parametrize(
    "row", [{"prompts": ["p"], "targets": ["t"]}, {"variants": [["p", "t"]]}, {"prompts": ["p"], "target": " t"}]
)
def test_lists_of_one_are_the_plain_fact(row):
    assert fact_from_row({"id": "f", **row}) == fact_from_row({"id": "f", "prompt": "p", "target": "t"})


@pytest.mark.parametrize("subject", [{}, {"subject": "Oz", "object": "green", "aliases": ["grün"], "proponents": []}])
def test_a_fact_with_variants_reads_back_as_itself(subject):
    row = {"id": "f", "prompts": ["Oz is", 'Say "', "奥兹是"], "targets": ["green", "far"], **subject}
    fact = fact_from_row(row)
    assert parse_facts(lines(fact.to_row()), "facts.jsonl") == [fact] == [Fact.from_row(fact.to_row())]


def test_asked_gives_a_plain_fact_for_each_variant_and_a_plain_fact_itself():
    about = {"subject": "S", "relation": "R", "object": "O", "aliases": ["a"], "proponents": ["z"], "combine": "max"}
    kept = {"relation": "R", "aliases": ("a",), "proponents": ("z",)}
    one_target = fact_from_row({"id": "f", "prompts": ["p", "q "], "target": "t", **about})
    assert asked(one_target) == [
        Fact("f", "p", " t", "S", object="O", **kept),
        Fact("f", "q ", "t", "S", object="O", **kept),
    ]
    two_targets = fact_from_row({"id": "f", "prompt": "p", "targets": ["t", "u"], **about})
    assert asked(two_targets) == [Fact("f", "p", " t", **kept), Fact("f", "p", " u", **kept)]
    assert [text_query(fact, "auto") for fact in asked(two_targets)] == ["p t", "p u"]
    plain = Fact("f", "p", " t", "S", "R", "O")
    assert asked(plain) == [plain]


def test_subject_and_object_are_no_query_for_several_targets():
    row = {"id": "f", "prompt": "p", "subject": "S", "object": "O"}
    with pytest.raises(ConfigError, match=r"'f': --text_query subject_object needs one target.*; make several facts"):
        text_query(fact_from_row({**row, "targets": ["t", "u"]}), "subject_object")
    one_target = fact_from_row({**row, "prompt": None, "prompts": ["p", "q "], "target": "t"})
    assert {text_query(fact, "subject_object") for fact in [one_target, *asked(one_target)]} == {"S O"}


def test_the_most_variants_are_taken_and_one_more_is_refused():
    prompts = [f"p{n}" for n in range(MAX_VARIANTS // 2)]
    assert len(asked(fact_from_row({"id": "f", "prompts": prompts, "targets": ["t", "u"]}))) == MAX_VARIANTS
    with pytest.raises(ValueError, match=r"expected at most 64 variants .*, found 66; make several facts"):
        fact_from_row({"id": "f", "prompts": [*prompts, "q"], "targets": ["t", "u"]})


GOOD = {"id": "good", "prompt": "p", "target": "t"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "f", "prompt": "p"}, "field 'target' must be a non-empty string, found None"),
        ({"id": "f", "prompt": "p", "target": " \t"}, r"field 'target' must be a non-empty string, found ' \\t'"),
        ({"id": "f", "target": "t"}, "field 'prompt' must be a non-empty string, found None"),
        ({"id": "f", "prompt": "p", "target": 7}, "field 'target' must be a non-empty string, found 7"),
        ({"id": "f", "sentence": "abc", "explain": "x"}, "'x', does not stand in the sentence 'abc'"),
        ({"id": "f", "sentence": "abc"}, "field 'explain' must be a non-empty string"),
        ({"id": "f", "subject": "s", "object": "o"}, "field 'relation' must be a non-empty string"),
        (
            {"id": "f", "subject": "s", "object": "o", "template": "{subject} is"},
            "template must have {subject} before {object}",
        ),
        ({"id": "f", "subject": "s", "object": "o", "template": "{object} is {subject}"}, "{subject} before {object}"),
        ({"id": "f", "subject": "s", "object": "o", "template": "it is {object}"}, "found 'it is {object}'"),
        ({"id": "f", "subject": "s", "object": "o", "template": 7}, "field 'template' must be a non-empty string"),
        ({"id": "f", "subject": "s"}, "found the fields id, subject"),
        ({"prompt": "p", "target": "t"}, r"field 'id' \(or 'fact_id'\) must be a non-empty string, found None"),
        ({"id": 7, "prompt": "p", "target": "t"}, "must be a non-empty string, found 7"),
        (["id"], "expected a JSON object, found list"),
        ({"id": "f", "prompts": "p", "target": "t"}, "'prompts' must be a list of at least one non-empty .*found 'p'"),
        ({"id": "f", "prompts": [], "target": "t"}, r"'prompts' must be a list of at least one .*, found \[\]"),
        ({"id": "f", "prompt": "p", "targets": ["t", 5]}, r"'targets' must be a list .*, found \['t', 5\]"),
        ({"id": "f", "prompt": "p", "targets": ["t", " "]}, r"'targets' must be a list .*, found \['t', ' '\]"),
        ({"id": "f", "prompts": ["p", "q"]}, "field 'target' must be a non-empty string, found None"),
        ({"id": "f", "targets": ["t"]}, "field 'prompt' must be a non-empty string, found None"),
        ({**GOOD, "prompts": ["p", "q"]}, "expected 'prompt' or 'prompts', found both; put all of them into 'prompts'"),
        ({**GOOD, "targets": ["t", "u"]}, "expected 'target' or 'targets', found both"),
        (
            {"id": "f", "sentence": "abc", "explain": "c", "targets": ["t"]},
            "expected one way to ask, found 'targets' and sentence, explain; take one of them out",
        ),
        ({"id": "f", "variants": [["p", "t"]], "prompts": ["p"]}, "one way to ask, found 'variants' and prompts"),
        ({"id": "f", "variants": [["p", "t", "u"]]}, r"'variants' must be a list of \[prompt, target\], .*'u'"),
        ({"id": "f", "variants": ["pt"]}, r"'variants' must be a list of \[prompt, target\], .* found \['pt'\]"),
        ({"id": "f", "variants": {}}, r"'variants' must be a list of \[prompt, target\], .* found {}"),
        (
            {**GOOD, "variants": [["q", "t"]]},
            "'prompt' to be that of the first variant, 'q', found 'p'; leave 'prompt'",
        ),
        ({"id": "f", "variants": [["p", "t"]] * 65}, "expected at most 64 variants .*, found 65; make several facts"),
        ({"id": "f", "prompt": "p", "targets": ["t", " t"]}, "expected variants that differ, found 'p t' twice"),
        ({"id": "f", "prompt": "p", "targets": ["t", "\ud800"]}, "surrogates not allowed"),
        ({**GOOD, "combine": "sum"}, "field 'combine' must be 'mean' or 'max', found 'sum'"),
        ({**GOOD, "combine": ["max"]}, r"field 'combine' must be 'mean' or 'max', found \['max'\]"),
    ],
)
def test_a_bad_fact_is_refused_with_file_line_and_field(row, message):
    with pytest.raises(ConfigError, match="facts.jsonl, line 2: not a fact: .*" + message + ".*mend the line"):
        parse_facts(lines(GOOD, row), "facts.jsonl")


@pytest.mark.parametrize("data", [b"{not json}\n", b'{"id": "\xff"}\n', b"null\n"])
def test_what_is_no_json_object_is_refused_with_its_line(data):
    with pytest.raises(ConfigError, match=r"facts.jsonl, line 3: not a fact"):
        parse_facts(lines(GOOD) + b"\n" + data, "facts.jsonl")


@pytest.mark.parametrize("name", ["aliases", "proponents"])
@pytest.mark.parametrize("value", ["Verona", 5, [5]])
def test_aliases_and_proponents_that_are_no_list_of_strings_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"facts.jsonl, line 1: not a fact: .*'{name}'"):
        parse_facts(lines({**GOOD, name: value}), "facts.jsonl")


def test_a_duplicate_id_is_refused_at_its_second_line():
    with pytest.raises(ConfigError, match=r"facts.jsonl, line 2: the fact id 'good' is used twice; ids must be unique"):
        parse_facts(lines(GOOD, {**GOOD, "target": "other"}), "facts.jsonl")


@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_a_file_without_facts_is_refused(data):
    with pytest.raises(ConfigError, match=r"facts.jsonl: expected at least one fact"):
        parse_facts(data, "facts.jsonl")


def test_text_query_takes_subject_and_object_where_both_are_there():
    full, bare = Fact("f", "p is", " t", subject="S", object="O"), Fact("g", "p is", " t", subject="S")
    assert text_query(full, "subject_object") == text_query(full, "auto") == "S O"
    assert text_query(full, "prompt_target") == "p is t"
    assert text_query(bare, "auto") == "p is t"
    with pytest.raises(ConfigError, match="fact 'g': --text_query subject_object needs its subject and object"):
        text_query(bare, "subject_object")


@pytest.mark.parametrize(
    ("prompt", "target", "joined"),
    [
        ("It cost", "$5", "It cost $5"),
        ('He said "', "hi", 'He said "hi'),
        ("수도는", "서울", "수도는 서울"),
        ("首都是", "巴黎", "首都是巴黎"),
        ("It ends", ".", "It ends."),
    ],
)
def test_the_space_between_prompt_and_target_is_the_script_s(prompt, target, joined):
    assert prompt + with_space(prompt, target) == joined
