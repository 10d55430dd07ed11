"""Long documents become passages: windows of at most `max_tokens` tokens with overlap, as character spans."""

from collections.abc import Callable, Iterator

# Character spans of a text's tokens, special tokens left out.
Spans = Callable[[str], list[tuple[int, int]]]


PIECE = 2**20  # characters that are split into tokens at once
NEAR = 2**14  # characters that are searched for white space, from a piece's end back


def windows(text: str, spans: Spans, max_tokens: int, overlap: int) -> list[tuple[int, int]]:
    """Character spans `[start, end)` of the text's passages, in order; they cover the text, white space included.

    A text of at most `max_tokens` tokens is one passage, the whole text. Consecutive windows share `overlap` tokens.
    """
    begins, ends, count, step = [], [], 0, max_tokens - overlap
    for offset, piece in _pieces(text):
        starts = [offset + start for start, end in spans(piece) if end > start]
        begins += starts[-count % step :: step]  # of tokens 0, step, 2 step, ...
        ends += starts[max(max_tokens - count, (max_tokens - count) % step) :: step]  # max_tokens after each of those
        count += len(starts)
    # A window that begins later than the first one without an end lies within that.
    return list(zip([0, *begins[1:]], [*ends, len(text)], strict=False))


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """(first character, text) of pieces of about PIECE characters: the spans of 100 MB in one list would take 2.5 GB.

    They are cut where white space begins, so that tokens are what they are in the whole text; where there is none near,
    in mid-word.
    """
    begin = 0
    while begin < len(text):
        end = min(begin + PIECE, len(text))
        if end < len(text):
            near = range(end, max(begin, end - NEAR), -1)
            end = next((i for i in near if text[i].isspace() and not text[i - 1].isspace()), end)
        yield begin, text[begin:end]
        begin = end
