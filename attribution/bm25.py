"""BM25 over shards that score with global statistics, so that a merged ranking is the unsharded one, score for score.

A shard holds its terms (sorted, in an Arrow file that is memory-mapped) and three arrays: `rows` and `freqs`, the
postings term by term, and `lengths`, the passages' lengths in tokens. `Statistics` hold N, df and the total length.

score(q, z) = sum over the query's terms t of  idf(t) tf / (tf + k1 (1 - b + b |z| / avg)),
idf(t) = ln(1 + (N - df + 0.5) / (df + 0.5))        (Lucene's variant: Kamphuis et al. 2020, "Which BM25 do you mean?")
"""

import bisect
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import Stemmer

Tokenize = Callable[[str], list[str]]
K1, B = 1.5, 0.75
SHARD_FILES = ("terms.arrow", "rows.npy", "freqs.npy", "lengths.npy")
_WORD = re.compile(r"\w+")
_SHARD_TERMS = pa.schema([pa.field("term", pa.string(), False), pa.field("end", pa.int64(), False)])


def word_spans(text: str) -> list[tuple[int, int]]:
    """Character spans of the words of a text."""
    return [match.span() for match in _WORD.finditer(text)]


def word_tokenizer(stemming: str = "") -> Tokenize:
    """Words in lower case (Unicode NFKC), one-character words and numbers kept; `stemming` names a Snowball language.

    Raises KeyError for a language that Snowball does not have.
    """
    stem = Stemmer.Stemmer(stemming).stemWords if stemming else None

    def tokenize(text: str) -> list[str]:
        words = _WORD.findall(unicodedata.normalize("NFKC", text).lower())
        return stem(words) if stem else words

    return tokenize


@dataclass(frozen=True)
class Statistics:
    """Global statistics: `merge` adds shards up in any order; `df` counts passages with a term."""

    num_passages: int
    total_length: int
    df: dict[str, int]

    def merge(self, other: "Statistics") -> "Statistics":
        df = Counter(self.df)
        df.update(other.df)
        return Statistics(self.num_passages + other.num_passages, self.total_length + other.total_length, dict(df))

    @property
    def average_length(self) -> float:
        return self.total_length / max(1, self.num_passages)

    def coverage(self, query: Sequence[str], passage: Sequence[str]) -> float:
        """The share of the query's distinct words, weighted by idf, that stand in the passage."""
        held, words = set(passage), sorted(set(query))
        weights = [self.idf(word) for word in words]
        return sum(w for word, w in zip(words, weights, strict=True) if word in held) / (sum(weights) or 1.0)

    def idf(self, term: str) -> float:
        df = self.df.get(term, 0)
        return float(np.log(1.0 + (self.num_passages - df + 0.5) / (df + 0.5)))


def write_shard(texts: Iterable[str], tokenize: Tokenize, folder: Path) -> Statistics:
    """Writes one shard's term frequencies and lengths to `folder` and returns its statistics."""
    postings: dict[str, list[tuple[int, int]]] = {}
    lengths = []
    for row, text in enumerate(texts):
        counts = Counter(tokenize(text))
        lengths.append(counts.total())
        for term, count in counts.items():
            postings.setdefault(term, []).append((row, count))
    terms = sorted(postings)
    ends = np.cumsum([len(postings[term]) for term in terms], dtype=np.int64)
    pairs = np.array([pair for term in terms for pair in postings[term]], dtype=np.int32).reshape(-1, 2)
    folder.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(folder / "terms.arrow"), "wb") as sink, pa.ipc.new_file(sink, _SHARD_TERMS) as writer:
        writer.write_table(pa.table([pa.array(terms, pa.string()), pa.array(ends)], schema=_SHARD_TERMS))
    np.save(folder / "rows.npy", np.ascontiguousarray(pairs[:, 0]))
    np.save(folder / "freqs.npy", np.ascontiguousarray(pairs[:, 1]))
    np.save(folder / "lengths.npy", np.array(lengths, dtype=np.int32))
    return Statistics(len(lengths), sum(lengths), {term: len(postings[term]) for term in terms})


class Shard:
    """A shard opened for scoring with the global statistics; `files` gives the path of each of SHARD_FILES.

    Arrays are memory-mapped.
    """

    def __init__(self, files: Mapping[str, str], statistics: Statistics):
        terms = pa.ipc.open_file(pa.memory_map(files["terms.arrow"])).read_all().combine_chunks()
        self._terms, self._ends = terms["term"], terms["end"].to_numpy()
        self._rows = np.load(files["rows.npy"], mmap_mode="r")
        self._freqs = np.load(files["freqs.npy"], mmap_mode="r")
        lengths = np.load(files["lengths.npy"])
        average = statistics.average_length or 1.0
        self._length_norm = K1 * (1.0 - B + B * lengths.astype(np.float64) / average)
        self._statistics = statistics
        self._impacts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.num_passages = len(lengths)

    def _impact(self, term: str) -> tuple[np.ndarray, np.ndarray]:
        """(rows, each row's share of the score) of a term; kept, as the queries of a job share their words."""
        if term not in self._impacts:
            place = bisect.bisect_left(self._terms, term, key=lambda scalar: scalar.as_py())
            if place < len(self._terms) and self._terms[place].as_py() == term:
                span = slice(int(self._ends[place - 1]) if place else 0, int(self._ends[place]))
                rows, tf = np.asarray(self._rows[span]), self._freqs[span].astype(np.float64)
                self._impacts[term] = rows, self._statistics.idf(term) * tf / (tf + self._length_norm[rows])
            else:
                self._impacts[term] = np.empty(0, np.int32), np.empty(0)
        return self._impacts[term]

    def scores(self, query: Sequence[str]) -> np.ndarray:
        """`[passages]` float64; a term that stands twice in the query counts twice. 0 where no term is shared."""
        scores = np.zeros(self.num_passages)
        for term, count in sorted(Counter(query).items()):  # one order of addition: the same sum in every shard
            rows, impact = self._impact(term)
            scores[rows] += count * impact
        return scores
