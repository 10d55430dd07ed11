"""What a person looks at to judge a passage: the words that it shares with what the model said, and their runs.

Words are compared in lower case (Unicode NFKC, case folded); all spans are characters of the passage.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from attribution.bm25 import word_spans

LEAST_OVERLAP = 5  # words in one run that are no accident: of 4, any two texts share some
Spans = list[tuple[int, int]]
FUNCTION_WORDS = frozenset(
    word
    for line in (
        "a an and are as at be been but by can did do does for from had has have he her his how i in into is it its",
        "not of on or s she so t than that the their them then there these they this those to was we were what when",
        "where which who whom whose will with you",
    )
    for word in line.split()
)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def content_words(text: str) -> frozenset[str]:
    """The distinct words of a text, words of grammar left out."""
    return frozenset(_folded(text[start:end]) for start, end in word_spans(text)) - FUNCTION_WORDS


def matching_words(text: str, words: frozenset[str]) -> Spans:
    """Where the text has one of the words, as `content_words` gives them."""
    return [(start, end) for start, end in word_spans(text) if _folded(text[start:end]) in words]


def overlap(text: str, outputs: Iterable[str], least: int = LEAST_OVERLAP) -> tuple[Spans, int]:
    """(where at least `least` words in a row stand in one of the outputs too, the number of words in the longest run).

    Runs that touch or overlap are one span.
    """
    spans = word_spans(text)
    words = [_folded(text[start:end]) for start, end in spans]
    covered, longest = [0] * (len(words) + 1), 0
    for output in outputs:
        said = [_folded(output[start:end]) for start, end in word_spans(output)]
        places = defaultdict(list)
        for j in range(len(said) - least + 1):
            places[tuple(said[j : j + least])].append(j)
        for i in range(len(words) - least + 1):
            for j in places.get(tuple(words[i : i + least]), ()):
                if i and j and words[i - 1] == said[j - 1]:
                    continue  # a run that began before: it is counted from its first word
                length = least
                while i + length < len(words) and j + length < len(said) and words[i + length] == said[j + length]:
                    length += 1
                longest = max(longest, length)
                covered[i] += 1
                covered[i + length] -= 1
    found: Spans = []
    depth = 0
    for (start, end), change in zip(spans, covered, strict=False):
        opens, depth = depth == 0, depth + change
        if depth and opens:
            found.append((start, end))
        elif depth:
            found[-1] = (found[-1][0], end)
    return found, longest
