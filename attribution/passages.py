"""Long documents become passages: windows of at most `max_tokens` tokens with overlap, as character spans."""

from collections.abc import Callable

# Character spans of a text's tokens, special tokens left out.
Spans = Callable[[str], list[tuple[int, int]]]


def windows(text: str, spans: Spans, max_tokens: int, overlap: int) -> list[tuple[int, int]]:
    """Character spans `[start, end)` of the text's passages, in order; they cover the text, white space included.

    A text of at most `max_tokens` tokens is one passage, the whole text. Consecutive windows share `overlap` tokens.
    """
    tokens = [(start, end) for start, end in spans(text) if end > start]
    if len(tokens) <= max_tokens:
        return [(0, len(text))]
    found, first = [], 0
    while True:
        last = min(first + max_tokens, len(tokens))
        start = 0 if first == 0 else tokens[first][0]
        end = len(text) if last == len(tokens) else tokens[last][0]
        found.append((start, end))
        if last == len(tokens):
            return found
        first = last - overlap
