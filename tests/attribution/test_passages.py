"""Windows cover their text, hold at most so many tokens, and share so many with the next."""

import itertools
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution import passages
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


def before_pieces(text, spans, max_tokens, overlap):
    """The windows by their definition, of all tokens in one list."""
    tokens, found, first = [span for span in spans(text) if span[1] > span[0]], [], 0
    while True:
        last = min(first + max_tokens, len(tokens))
        start = 0 if first == 0 else tokens[first][0]
        found.append((start, len(text) if last == len(tokens) else tokens[last][0]))
        if last == len(tokens):
            return found
        first = last - overlap


@settings(max_examples=150, deadline=None)
@given(st.lists(pieces, max_size=400).map("".join), st.integers(1, 7), st.data())
def test_a_long_text_in_pieces_has_the_windows_of_the_whole(text, max_tokens, data):
    overlap, spans = data.draw(st.integers(0, max_tokens - 1)), word_spans
    asked = []

    def watched(piece):
        asked.append(piece)
        return word_spans(piece)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passages, "PIECE", 64)
        patch.setattr(passages, "NEAR", 64)
        found = windows(text, watched, max_tokens, overlap)
    assert "".join(asked) == text and all(len(piece) <= 64 for piece in asked)
    if all(len(word) < 60 for word in text.split()):
        assert found == before_pieces(text, spans, max_tokens, overlap)


def test_the_tokens_of_a_long_text_are_never_all_in_memory(monkeypatch):
    monkeypatch.setattr(passages, "PIECE", 2**16)
    text = "word " * 400_000
    tracemalloc.start()
    try:
        assert len(windows(text, word_spans, 100, 10)) == 4445
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * 2**20  # all spans at once: 50 MB


def test_subwords_of_a_text_in_pieces_are_those_of_the_whole(monkeypatch):
    tokenizer = tiny.make_tokenizer()

    def spans(text: str) -> list[tuple[int, int]]:
        return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]

    text = "The capital of Oz is Verona.  It rained\n\nfor 日本 days. " * 20
    whole = windows(text, spans, 10, 3)
    monkeypatch.setattr(passages, "PIECE", 50)
    monkeypatch.setattr(passages, "NEAR", 50)
    assert windows(text, spans, 10, 3) == whole


def test_a_long_text_without_white_space_is_cut_all_the_same(monkeypatch):
    monkeypatch.setattr(passages, "PIECE", 10)
    assert windows("日" * 25, word_spans, 1, 0) == [(0, 10), (10, 20), (20, 25)]


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
