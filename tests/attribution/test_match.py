"""The match of both sides of a fact: by hand, and what counts as a form or a spelling of a word."""

import pytest

from attribution.match import ALIKE, Words, folded, likeness, match

IDF = {"paris": 4.0, "france": 2.0, "capital": 1.0, "the": 0.1}


def idf(word: str) -> float:
    return IDF.get(word, 5.0)


def test_a_share_by_hand():
    passage = Words(["the", "capital", "of", "french", "lands"])
    assert passage.share(["the", "capital"], idf) == 1.0
    assert passage.share(["capital", "paris"], idf) == pytest.approx(1 / 5)
    assert passage.share(["france"], idf) == 0.0  # "fr" is no beginning
    assert Words(["franco"]).share(["france", "the"], idf) == pytest.approx(ALIKE * 5 / 6 * 2 / 2.1)
    assert passage.share([], idf) == 0.0 and Words([]).share(["paris"], idf) == 0.0


def test_the_match_is_the_smaller_side_and_the_best_way_to_say_it():
    passage = Words(["paris", "capital"])
    sides = [(["paris"], ["france"]), (["paris"], ["capital", "france"])]
    assert match(sides[:1], passage, idf) == 0.0
    assert match(sides, passage, idf) == pytest.approx(1 / 3)
    assert match([(["paris"], ["capital"])], passage, idf) == 1.0


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("judaizers", "judaizing", 0.0),  # 6 of 9 letters in common are less than three quarters
        ("linguist", "linguistics", ALIKE * 8 / 11),
        ("sreekanth", "srikanth", ALIKE * (1 - 2 / 9)),
        ("aluminum", "aluminium", ALIKE * (1 - 1 / 8)),
        ("rome", "roma", 0.0),  # too short to be misspelled, and to have a beginning of three quarters
        ("rome", "rome", 1.0),
        ("paris", "parish", ALIKE * 5 / 6),
        ("1990s", "1990", 0.0),
        ("19901", "19902", 0.0),
        ("conservation", "conversation", ALIKE * (1 - 2 / 12)),
        ("cat", "cats", 0.0),
    ],
)
def test_forms_and_spellings(a, b, expected):
    assert likeness(a, b) == pytest.approx(expected)


def test_accents_are_left_out_and_letters_without_a_base_are_kept():
    assert folded("štrosmajer") == "strosmajer" and folded("東京") == "東京" and folded("plain") == "plain"
    assert Words(["Strosmajer".lower()]).share(["štrosmajer"], idf) == 1.0


def test_a_short_word_counts_only_as_itself():
    assert Words(["rye"]).share(["rya"], idf) == 0.0 and Words(["rya"]).share(["rya"], idf) == 1.0
