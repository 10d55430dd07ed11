"""Near-duplicates: which passages of a corpus are copies, with small edits, of the passages found (the seeds).

seeds -> MinHash signatures in bands (datasketch) -> a passage's candidates -> the exact Jaccard similarity, the names
matches (seed, passage) -> groups of documents

A text is compared by its words: Unicode NFKC, case folded, without white space and punctuation; a character of a
script that puts no space between words (Han, kana) is a word. Its shingles are pairs of consecutive words, those of a
text of one word the word itself. J(a, b) = |a and b| / |a or b| of the shingles.

A near-duplicate has J >= threshold, and no name was exchanged: not each of the two texts has a name or a number that
the other one has not. Statements are copied for other subjects ("X is a river of Bavaria", the years of a contest),
and are as alike as copies of one statement: of 1,000 T-REx sentences and 68,203 others 9,417 pairs have J >= 0.5,
75 of them without an exchange (python -m bench.duplicates). A name is a word with a capital or a digit. Where case
says nothing (Chinese, a text in lower case alone or in capitals) any word may be one, and an exchanged word is enough.
What this cannot tell: "the fifth contest" from "the sixth", "women's" from "men's", which are ordinary words; and a
copy in which a name was replaced is none.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from datasketch import MinHash, MinHashLSH

from schemas.errors import ConfigError

# At 0.5 pairs of words find 0.97 of copies with small edits, words in threes 0.91; at 0.7, 0.82 and 0.68 (the bench).
THRESHOLD, LOWEST = 0.5, 0.2
PERMUTATIONS = 128
MISSED = 0.01  # of the pairs just at the threshold, those that the bands may miss; above it they miss fewer
_APART = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_WORD = re.compile(rf"[{_APART}]|[^\W{_APART}]+")


@dataclass(frozen=True)
class Form:
    """What is compared of a text. `names` are those of its `words` that may be names, or numbers."""

    shingles: frozenset[str]
    words: frozenset[str]
    names: frozenset[str]


def words_of(text: str) -> list[str]:
    """The words in order, as they are written."""
    return _WORD.findall(text if text.isascii() else unicodedata.normalize("NFKC", text))


def form(text: str) -> Form:
    """The text's form; it has no shingles where the text has no word."""
    written = words_of(text)
    words = [word.casefold() for word in written]
    pairs = [f"{a} {b}" for a, b in itertools.pairwise(words)]
    told_by_case = any(c.islower() for w in written for c in w) and any(c.isupper() for w in written for c in w)
    names = [w for w, as_written in zip(words, written, strict=True) if not told_by_case or _is_name(as_written)]
    return Form(frozenset(pairs or words), frozenset(words), frozenset(names))


def _is_name(word: str) -> bool:
    return any(c.isupper() or c.isdigit() for c in word)


def jaccard(a: Form, b: Form) -> float:
    """|a and b| / |a or b| of the shingles; 0 where neither has any."""
    common = len(a.shingles & b.shingles)
    return common / (len(a.shingles) + len(b.shingles) - common) if common else 0.0


def names_exchanged(a: Form, b: Form) -> bool:
    """Whether each text has a name that the other one has not."""
    return not (a.names <= b.words or b.names <= a.words)


def similarity(a: Form, b: Form) -> float:
    """Jaccard similarity of two texts, 0 where a name was exchanged."""
    return 0.0 if names_exchanged(a, b) else jaccard(a, b)


def bands(threshold: float, permutations: int = PERMUTATIONS) -> tuple[int, int]:
    """(bands, rows of a band): the longest bands, so the fewest candidates, that miss at most MISSED at the threshold.

    A pair of similarity s shares a band with probability 1 - (1 - s^rows)^bands.
    """
    rows = permutations // 2
    while rows > 1 and (1 - threshold**rows) ** (permutations // rows) > MISSED:
        rows -= 1
    return permutations // rows, rows


class Seeds:
    """The passages whose near-duplicates are looked for. Raises ConfigError for a threshold that is none."""

    def __init__(self, texts: Sequence[str], threshold: float = THRESHOLD):
        if not LOWEST <= threshold <= 1:
            raise ConfigError(
                f"threshold of near-duplicates: expected {LOWEST} to 1 (1: equal but for case, white space and "
                f"punctuation), found {threshold}; {THRESHOLD} is the measured default"
            )
        self.threshold = threshold
        self._same: dict[Form, list[int]] = {}  # a text that stands in a thousand seeds is compared once
        for seed, asked in enumerate(map(form, texts)):
            if asked.shingles:
                self._same.setdefault(asked, []).append(seed)
        self._shingles = frozenset().union(*(asked.shingles for asked in self._same))
        self._empty = MinHash(num_perm=PERMUTATIONS)
        self._index = MinHashLSH(num_perm=PERMUTATIONS, params=bands(threshold))
        for asked in self._same:
            self._index.insert(asked, self._signature(asked))

    def _signature(self, asked: Form) -> MinHash:
        signature = self._empty.copy()  # the permutations are drawn once
        signature.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in asked.shingles])
        return signature

    def near(self, text: str) -> list[tuple[int, float]]:
        """(position of a seed, similarity) of the seeds that the text is a near-duplicate of, the nearest first."""
        asked = form(text)
        # J >= t needs t of the text's shingles to be the seed's: most of a corpus ends here, before it is hashed.
        if not asked.shingles or len(asked.shingles & self._shingles) / len(asked.shingles) < self.threshold:
            return []
        candidates = ((seed, similarity(asked, seed)) for seed in self._index.query(self._signature(asked)))
        found = [(i, close) for seed, close in candidates if close >= self.threshold for i in self._same[seed]]
        return sorted(found, key=lambda pair: (-pair[1], pair[0]))


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
