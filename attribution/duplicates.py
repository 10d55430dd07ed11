"""Near-duplicates: which passages of a corpus are copies, with small edits, of the passages found (the seeds).

seeds -> MinHash signatures in bands (datasketch) -> a passage's candidates -> similarity, and whether a name differs
matches (seed, passage) -> groups of documents

A text is compared by its words: Unicode NFKC, case folded, without white space and punctuation; a character of a
script that puts no space between words (Han, kana) is a word. A near-duplicate of a seed is alike in two ways:

- similarity(a, b) = sum of w min(count in a, count in b) / sum of w max(count in a, count in b) over the words >= the
  threshold, where w is a word's idf in the corpus (the weighted Jaccard similarity; Ioffe 2010, "Improved consistent
  sampling"). Statements are made by a template ("X is a municipality in the district of Y"), and their words are mostly
  the template's: of 1,000 T-REx sentences and 68,203 others 9,417 pairs share half of their word pairs, 828 have a
  similarity of 0.5 (python -m bench.duplicates).
- The Jaccard similarity of their pairs of consecutive words is at least ORDER times the threshold: the words stand in
  the same order, and MinHash can find them.

Of these, a pair in which a name stands in the place of another name says something else, or may: it is told
(`renamed`) but is not grouped. A name is a word with a capital or a digit, not one of grammar; where case says nothing
(Chinese, a text in lower case alone or in capitals) any word may be one. A name that is misspelled is the same name:
one letter of at least five added, left out, changed or swapped with the next, where one of the two forms stands in at
most one passage of the corpus. What this cannot tell: "the fifth contest" from "the sixth", "women's" from "men's".
"""

import difflib
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from datasketch import MinHash, MinHashLSH
from rapidfuzz.distance import OSA

from attribution.bm25 import Statistics, Tokenize
from attribution.evidence import FUNCTION_WORDS
from schemas.errors import ConfigError

THRESHOLD, LOWEST = 0.5, 0.3
ORDER = 0.6  # of the threshold; at 0.5 it costs 0.01 of the copies with small edits
PERMUTATIONS = 128
MISSED = 0.01  # of the pairs just at the least Jaccard similarity, those that the bands may miss; above it fewer
SPELLED = 5  # letters of a name in which one may be wrong: of Iran and Iraq it may not
KNOWN_WORDS = 1 << 16
_APART = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_WORD = re.compile(rf"[{_APART}]|[^\W{_APART}]+")


class Rarity:
    """How rare words are in a corpus, by the statistics of its index; `tokenize` is the index's."""

    def __init__(self, statistics: Statistics, tokenize: Tokenize):
        def of(word: str) -> tuple[float, int]:
            df = min((statistics.df(term) for term in tokenize(word)), default=0)
            return statistics.idf_of(df), df

        self._of = lru_cache(KNOWN_WORDS)(of)

    def weight(self, word: str) -> float:
        """The word's idf: of several terms the rarest one's."""
        return self._of(word)[0]

    def rare(self, word: str) -> bool:
        """Whether at most one passage of the corpus has it."""
        return self._of(word)[1] <= 1


@dataclass(frozen=True)
class Form:
    """What is compared of a text: its words in order, and of each whether it may be a name or a number."""

    words: tuple[str, ...]
    names: tuple[bool, ...]
    shingles: frozenset[str] = field(compare=False)

    def counts(self) -> Counter[str]:
        return Counter(self.words)


def words_of(text: str) -> list[str]:
    """The words in order, as they are written."""
    return _WORD.findall(text if text.isascii() else unicodedata.normalize("NFKC", text))


def form(text: str) -> Form:
    """The text's form; it has no shingles where the text has no word. A text of one word has the word as shingle."""
    written = words_of(text)
    words = tuple(word.casefold() for word in written)
    told_by_case = any(c.islower() for w in written for c in w) and any(c.isupper() for w in written for c in w)
    names = tuple(
        word not in FUNCTION_WORDS and (not told_by_case or any(c.isupper() or c.isdigit() for c in as_written))
        for word, as_written in zip(words, written, strict=True)
    )
    pairs = frozenset(f"{a} {b}" for a, b in itertools.pairwise(words))
    return Form(words, names, pairs or frozenset(words))


def jaccard(a: Form, b: Form) -> float:
    """|a and b| / |a or b| of the pairs of consecutive words; 0 where neither has any."""
    common = len(a.shingles & b.shingles)
    return common / (len(a.shingles) + len(b.shingles) - common) if common else 0.0


def similarity(a: Form, b: Form, rarity: Rarity) -> float:
    """Weighted Jaccard similarity of the words; 0 where neither has any."""
    counts, others = a.counts(), b.counts()
    common = sum(rarity.weight(word) * min(count, others[word]) for word, count in counts.items())
    every = sum(rarity.weight(word) * max(counts[word], others[word]) for word in counts | others)
    return common / every if every else 0.0


def _same_name(a: str, b: str, rarity: Rarity) -> bool:
    long = min(len(a), len(b)) >= SPELLED and (a + b).isalpha()
    return a == b or (long and OSA.distance(a, b, score_cutoff=1) <= 1 and (rarity.rare(a) or rarity.rare(b)))


def renamed(a: Form, b: Form, rarity: Rarity) -> bool:
    """Whether a name stands in the place of another one, be it that two of them changed places."""
    matcher = difflib.SequenceMatcher(None, a.words, b.words, autojunk=False)
    for change, i, i_end, j, j_end in matcher.get_opcodes():
        if change == "replace":
            taken = [word for word, name in zip(a.words[i:i_end], a.names[i:i_end], strict=True) if name]
            put = [word for word, name in zip(b.words[j:j_end], b.names[j:j_end], strict=True) if name]
            if taken and put and not all(any(_same_name(x, y, rarity) for y in put) for x in taken):
                return True
    runs, others = _runs(a), _runs(b)
    order = [word for word in runs if word in others]
    if order == [word for word in others if word in runs]:
        return False
    place = {word: number for number, word in enumerate(others)}
    return any(
        place[x] > place[y] and not (runs[x] == runs[y] and others[x] == others[y])
        for x, y in itertools.combinations(order, 2)
    )


def _runs(asked: Form) -> dict[str, int]:
    """The names that stand once in a text, in order, each with the number of the run of names that it stands in: the
    words of one name may change places."""
    counts, runs, number = asked.counts(), {}, 0
    for word, name in zip(asked.words, asked.names, strict=True):
        number += not name
        if name and counts[word] == 1:
            runs[word] = number
    return runs


def bands(least: float, permutations: int = PERMUTATIONS) -> tuple[int, int]:
    """(bands, rows of a band): the longest bands, so the fewest candidates, that miss at most MISSED at `least`.

    A pair of Jaccard similarity s shares a band with probability 1 - (1 - s^rows)^bands.
    """
    rows = permutations // 2
    while rows > 1 and (1 - least**rows) ** (permutations // rows) > MISSED:
        rows -= 1
    return permutations // rows, rows


@dataclass(frozen=True)
class Near:
    """A seed, by its position, that a text is a near-duplicate of."""

    seed: int
    similarity: float
    renamed: bool


class Seeds:
    """The passages whose near-duplicates are looked for. Raises ConfigError for a threshold that is none."""

    def __init__(self, texts: Sequence[str], rarity: Rarity, threshold: float = THRESHOLD):
        if not LOWEST <= threshold <= 1:
            raise ConfigError(
                f"threshold of near-duplicates: expected {LOWEST} to 1 (1: equal but for case, white space and "
                f"punctuation), found {threshold}; {THRESHOLD} is the measured default"
            )
        self.threshold, self.least_jaccard, self._rarity = threshold, ORDER * threshold, rarity
        self._same: dict[Form, list[int]] = {}  # a text that stands in a thousand seeds is compared once
        for seed, asked in enumerate(map(form, texts)):
            if asked.shingles:
                self._same.setdefault(asked, []).append(seed)
        self._shingles = frozenset().union(*(asked.shingles for asked in self._same))
        self._empty = MinHash(num_perm=PERMUTATIONS)
        self._index = MinHashLSH(num_perm=PERMUTATIONS, params=bands(self.least_jaccard))
        for asked in self._same:
            self._index.insert(asked, self._signature(asked))

    def _signature(self, asked: Form) -> MinHash:
        signature = self._empty.copy()  # the permutations are drawn once
        signature.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in asked.shingles])
        return signature

    def near(self, text: str) -> list[Near]:
        """The seeds that the text is a near-duplicate of, the nearest first."""
        asked, found = form(text), []
        # J >= t needs t of the text's shingles to be the seed's: most of a corpus ends here, before it is hashed.
        if not asked.shingles or len(asked.shingles & self._shingles) / len(asked.shingles) < self.least_jaccard:
            return []
        for seed in self._index.query(self._signature(asked)):
            if jaccard(asked, seed) >= self.least_jaccard:
                close = similarity(asked, seed, self._rarity)
                if close >= self.threshold:
                    other = renamed(asked, seed, self._rarity)
                    found += [Near(place, close, other) for place in self._same[seed]]
        return sorted(found, key=lambda near: (-near.similarity, near.seed))


@dataclass(frozen=True)
class Match:
    """A passage of `example_id` is a near-duplicate of a seed, a passage of `seed`; both are ids of documents."""

    seed: str
    example_id: str
    similarity: float


def group(matches: Iterable[Match]) -> dict[str, str]:
    """The group of every document that has a near-duplicate, named by the smallest id in it.

    Documents of seeds are together where a chain of matches joins them; any other document joins its nearest seed's
    group (ties: the smallest id) and brings no further one, so that nothing is in a group but seeds and their own
    near-duplicates.
    """
    matches = [match for match in matches if match.seed != match.example_id]
    parent = {match.seed: match.seed for match in matches}
    nearest: dict[str, Match] = {}

    def root(seed: str) -> str:
        while parent[seed] != seed:
            parent[seed] = seed = parent[parent[seed]]
        return seed

    for match in matches:
        if match.example_id in parent:
            parent[root(match.seed)] = root(match.example_id)
        else:
            best = nearest.get(match.example_id, match)
            nearest[match.example_id] = min(best, match, key=lambda m: (-m.similarity, m.seed))
    member_of = {seed: root(seed) for seed in parent} | {i: root(match.seed) for i, match in nearest.items()}
    names: dict[str, str] = {}
    for example_id in sorted(member_of):
        names.setdefault(member_of[example_id], example_id)
    # A seed whose matches all are other groups' is alone: it has no group.
    sizes: dict[str, int] = {}
    for seed in member_of.values():
        sizes[seed] = sizes.get(seed, 0) + 1
    return {i: names[member] for i, member in sorted(member_of.items()) if sizes[member] > 1}
