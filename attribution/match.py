"""How far a passage holds both sides of a fact: its subject and its object, or its prompt and its target.

    share(side, passage) = sum of idf(t) likeness(t, passage) over the side's words / sum of idf(t)
    match(fact, passage) = the smaller share of its two sides

BM25 adds words up: a passage that says one side often is above one that says both once. And it knows equal words only,
where texts have linguist and linguistics, aluminum and aluminium, Sreekanth and Srikanth. Here a word is 1 where it
stands in the passage, and ALIKE times its likeness to the word that is most like it where it does not: the share of the
longer word that is a common beginning, or 1 - edits / letters. What it is worth is in docs/method.md.
"""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from rapidfuzz.distance import OSA, Prefix

ALIKE = 0.5
BEGINNING = 4  # letters that two words must begin with to be forms of one
OF_THE_SHORTER, OF_THE_LONGER = 0.75, 0.6  # of their letters, that the beginning must be
MISSPELLED, FURTHER = 6, 8  # letters of a word in which one may be wrong, or two
KNOWN_PAIRS = 1 << 16


def folded(word: str) -> str:
    """Without accents, as they are often left out: Štrosmajer, Strosmajer."""
    if word.isascii():
        return word
    return "".join(c for c in unicodedata.normalize("NFKD", word) if not unicodedata.combining(c)) or word


def _may_be_wrong(word: str) -> int:
    return (len(word) >= MISSPELLED) + (len(word) >= FURTHER)


@lru_cache(KNOWN_PAIRS)
def likeness(a: str, b: str) -> float:
    """Of two words that begin with the same letter: 1 for equal ones, at most ALIKE for forms or spellings of one."""
    if a == b:
        return 1.0
    if not (a.isalpha() and b.isalpha()):  # 1991 is no form of 1990
        return 0.0
    shorter, longer = sorted((len(a), len(b)))
    begins, best = Prefix.similarity(a, b), 0.0
    if begins >= max(BEGINNING, OF_THE_SHORTER * shorter, OF_THE_LONGER * longer):
        best = begins / longer
    wrong = _may_be_wrong(a)
    if wrong and longer - shorter <= wrong:
        edits = OSA.distance(a, b, score_cutoff=wrong)
        if edits <= wrong:
            best = max(best, 1 - edits / len(a))
    return ALIKE * best


class Words:
    """A passage's distinct words, to be asked."""

    def __init__(self, words: Iterable[str]):
        self._words = set(map(folded, words))
        self._by_letter: dict[str, list[str]] = {}
        for word in self._words:
            self._by_letter.setdefault(word[:1], []).append(word)

    def share(self, side: Sequence[str], idf: Callable[[str], float]) -> float:
        """Of the side's words, weighted by their idf; 0 for a side without words."""
        weights = [idf(word) for word in side]
        held = sum(w * self._likeness(folded(word)) for word, w in zip(side, weights, strict=True) if w)
        return held / sum(weights) if sum(weights) else 0.0

    def _likeness(self, word: str) -> float:
        if word in self._words:
            return 1.0
        if len(word) < BEGINNING:
            return 0.0
        return max((likeness(word, other) for other in self._by_letter.get(word[0], ())), default=0.0)


def match(sides: Sequence[tuple[Sequence[str], Sequence[str]]], passage: Words, idf: Callable[[str], float]) -> float:
    """The smaller share of a fact's two sides; of several names of them, the best one's."""
    return max(min(passage.share(first, idf), passage.share(second, idf)) for first, second in sides)
