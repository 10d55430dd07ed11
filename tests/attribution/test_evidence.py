"""Shared words and runs of words, against a search of every pair of positions."""

import random

from attribution.evidence import content_words, matching_words, overlap


def cut(text: str, spans: list[tuple[int, int]]) -> list[str]:
    return [text[start:end] for start, end in spans]


def test_words_match_whatever_their_case_and_form_and_grammar_is_left_out():
    words = content_words("The CAPITAL of Straße is ﬁne")
    assert words == {"capital", "strasse", "fine"}
    text = "Its capital is STRASSE, not capitals; fine."
    assert cut(text, matching_words(text, words)) == ["capital", "STRASSE", "fine"]


def test_a_run_goes_on_over_punctuation_and_shorter_ones_are_none():
    text = "Before: One, two three - four FIVE six! After one two three four."
    assert overlap(text, ["zero one two three four five six seven"]) == ([(8, 38)], 6)
    assert cut(text, [(8, 38)]) == ["One, two three - four FIVE six"]
    assert overlap(text, ["one two three four"]) == ([], 0)
    assert overlap("", ["a b c d e"]) == overlap("a b c d e", [""]) == overlap("a b c d e", []) == ([], 0)


def test_runs_that_touch_are_one_span_and_the_longest_is_of_one_output():
    assert overlap("a b c d e f g h i j k", ["a b c d e", "f g h i j"]) == ([(0, 19)], 5)
    assert overlap("a b c d e f g", ["a b c d e f", "b c d e f g"]) == ([(0, 13)], 6)


def test_runs_are_those_of_a_search_of_every_pair_of_positions():
    draw = random.Random(0)
    for _ in range(300):
        text, outputs = ([draw.choice("abc") for _ in range(draw.randrange(30))] for _ in range(2))
        covered, longest = set(), 0
        for i in range(len(text)):
            for j in range(len(outputs)):
                length = 0
                while (
                    max(i + length - len(text), j + length - len(outputs)) < 0
                    and text[i + length] == outputs[j + length]
                ):
                    length += 1
                if length >= 4:
                    covered |= set(range(i, i + length))
                    longest = max(longest, length)
        spans, found = overlap(" ".join(text), [" ".join(outputs)], 4)
        assert {n for start, end in spans for n in range(start // 2, (end + 1) // 2)} == covered and found == longest
