"""Windows cover their text, hold at most so many tokens, and share so many with the next."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.bm25 import word_spans
from attribution.passages import windows
from tests import tiny

pieces = st.sampled_from(["ab ", "é\n", "日 ", "x,", ". ", "  "])
texts = st.lists(pieces, max_size=5).map("".join) | st.lists(pieces, min_size=12, max_size=30).map("".join)


@settings(max_examples=150, deadline=None)
@given(texts, st.integers(1, 7), st.data())
def test_windows_cover_the_text_hold_max_tokens_and_share_the_overlap(text, max_tokens, data):
    overlap = data.draw(st.integers(0, max_tokens - 1))
    found, words = windows(text, word_spans, max_tokens, overlap), word_spans(text)
    held = [[word for word in words if start <= word[0] and word[1] <= end] for start, end in found]
    assert found[0][0] == 0 and found[-1][1] == len(text)
    assert all(len(tokens) <= max_tokens for tokens in held)
    assert [word for i, tokens in enumerate(held) for word in tokens[overlap if i else 0 :]] == words
    for (start, end), (next_start, next_end) in itertools.pairwise(found):
        assert start < next_start <= end < next_end
    if len(words) <= max_tokens:
        assert found == [(0, len(text))]
    else:
        assert all(len(tokens) == max_tokens for tokens in held[:-1])
        assert all(held[i][-overlap:] == held[i + 1][:overlap] for i in range(len(held) - 1) if overlap)


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [(0, ["  one two ", "three four ", "five "]), (1, ["  one two ", "two three ", "three four ", "four five "])],
)
def test_windows_of_two_words(overlap, expected):
    text = "  one two three four five "
    assert [text[start:end] for start, end in windows(text, word_spans, 2, overlap)] == expected


def test_text_without_tokens_is_one_passage():
    assert windows("", word_spans, 3, 1) == [(0, 0)]
    assert windows(" \n", word_spans, 3, 1) == [(0, 2)]


def test_empty_spans_are_no_tokens():
    def spans(text: str) -> list[tuple[int, int]]:
        return [(0, 0), *word_spans(text), (len(text), len(text))]

    assert windows("one two", spans, 2, 0) == [(0, 7)]


def test_byte_level_tokens_cut_the_text_between_characters():
    tokenizer = tiny.make_tokenizer()

    def spans(text: str) -> list[tuple[int, int]]:
        return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]

    text = "The capital of Oz is Verona. 日本の首都は東京です。🙂 It rained." * 2
    found = windows(text, spans, 10, 0)
    assert len(found) > 3
    assert "".join(text[start:end] for start, end in found) == text
