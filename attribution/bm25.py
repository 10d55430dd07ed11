"""BM25 over shards that score with global statistics, so that a merged ranking is the unsharded one, score for score.

A shard is four memory-mapped files: its terms (sorted, Arrow) with the end of each one's postings, the postings term by
term (`rows`, and `freqs` in the smallest type that holds them), and `lengths`, the passages' lengths in tokens.
`Statistics` hold N, the total length and df, a table sorted by term that is memory-mapped too.

score(q, z) = sum over the query's terms t of  idf(t) tf / (tf + k1 (1 - b + b |z| / avg)),
idf(t) = ln(1 + (N - df + 0.5) / (df + 0.5))        (Lucene's variant: Kamphuis et al. 2020, "Which BM25 do you mean?")

A query visits its terms from the greatest possible share of a score down, and stops where what is left cannot lift a
passage with none of the terms so far among the best (MaxScore: Turtle and Flood 1995, "Query evaluation: strategies and
optimizations"). The scores that it gives are summed anew, in one order for every shard.
"""

import bisect
import re
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import Stemmer

Tokenize = Callable[[str], list[str]]
K1, B = 0.4, 0.4  # 1.5 and 0.75, the usual, cost 0.02 of MRR on sentences (docs/method.md)
LIGHT = 0.05  # of a name's weight: a passage may lack such a word and still hold the name
SHARD_FILES = ("terms.arrow", "rows.npy", "freqs.npy", "lengths.npy")
ROUNDING = 1e-9  # relative; partial sums are added up in another order than scores
_WORD = re.compile(r"\w+")
_SHARD_TERMS = pa.schema([pa.field("term", pa.string(), False), pa.field("end", pa.int64(), False)])
# Terms of all shards together may pass the 2 GiB that the offsets of `string` reach.
_TERMS = pa.schema([pa.field("term", pa.large_string(), False), pa.field("df", pa.int64(), False)])


def word_spans(text: str) -> list[tuple[int, int]]:
    """Character spans of the words of a text."""
    return [match.span() for match in _WORD.finditer(text)]


def word_tokenizer(stemming: str = "") -> Tokenize:
    """Words in lower case (Unicode NFKC), one-character words and numbers kept; `stemming` names a Snowball language.

    Raises KeyError for a language that Snowball does not have.
    """
    stem = Stemmer.Stemmer(stemming).stemWords if stemming else None

    def tokenize(text: str) -> list[str]:
        words = _WORD.findall((text if text.isascii() else unicodedata.normalize("NFKC", text)).lower())
        return stem(words) if stem else words

    return tokenize


def _only_chunk(column: pa.ChunkedArray) -> pa.Array:
    """The column's array without a copy; files here are written in one piece."""
    assert column.num_chunks <= 1, column.num_chunks
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _place(terms: pa.Array, term: str) -> int:
    """Where a term stands among sorted ones, -1 if it does not."""
    place = bisect.bisect_left(terms, term, key=lambda scalar: scalar.as_py())
    return place if place < len(terms) and terms[place].as_py() == term else -1


def _write_table(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def _read_table(path: str) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(path)).read_all()


@dataclass(frozen=True)
class Statistics:
    """Global statistics; `table` has the terms, sorted, and of each how many passages hold it."""

    num_passages: int
    total_length: int
    table: pa.Table
    _idf: dict[str, float] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, num_passages: int, total_length: int, df: Mapping[str, int]) -> "Statistics":
        terms = sorted(df)
        return cls(num_passages, total_length, pa.table([terms, [df[term] for term in terms]], schema=_TERMS))

    @classmethod
    def merge(cls, parts: Sequence["Statistics"]) -> "Statistics":
        """Those of the passages of all parts together, whatever their order."""
        joined = pa.concat_tables([part.table for part in parts] or [_TERMS.empty_table()])
        summed = joined.group_by("term").aggregate([("df", "sum")]).sort_by("term")
        table = pa.table([summed["term"], summed["df_sum"]], schema=_TERMS).combine_chunks()
        return cls(sum(part.num_passages for part in parts), sum(part.total_length for part in parts), table)

    @classmethod
    def load(cls, path: str, num_passages: int, total_length: int) -> "Statistics":
        return cls(num_passages, total_length, _read_table(path))

    def save(self, path: Path) -> None:
        _write_table(self.table, path)

    @property
    def average_length(self) -> float:
        return self.total_length / max(1, self.num_passages)

    def coverage(self, query: Sequence[str], passage: Sequence[str]) -> float:
        """The share of the query's distinct words, weighted by idf, that stand in the passage."""
        held, words = set(passage), sorted(set(query))
        weights = [self.idf(word) for word in words]
        return sum(w for word, w in zip(words, weights, strict=True) if word in held) / (sum(weights) or 1.0)

    def weighty(self, name: Sequence[str]) -> list[str]:
        """The distinct words of a name that each have more than a LIGHT share of its idf, rarest first."""
        weights = {word: self.idf(word) for word in name}
        least = LIGHT * sum(weights.values())
        return sorted((word for word, w in weights.items() if w > least), key=lambda word: (-weights[word], word))

    def df(self, term: str) -> int:
        """How many passages hold the term."""
        place = _place(_only_chunk(self.table["term"]), term)
        return _only_chunk(self.table["df"])[place].as_py() if place >= 0 else 0

    def idf_of(self, df: int) -> float:
        return float(np.log(1.0 + (self.num_passages - df + 0.5) / (df + 0.5)))

    def idf(self, term: str) -> float:
        if term not in self._idf:
            self._idf[term] = self.idf_of(self.df(term))
        return self._idf[term]


def write_shard(texts: Iterable[str], tokenize: Tokenize, folder: Path) -> int:
    """Writes one shard's term frequencies and lengths to `folder` and returns its length in tokens."""
    numbers: defaultdict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__
    tokens, lengths = array("i"), array("i")
    for text in texts:
        words = tokenize(text)
        tokens.extend(map(numbers.__getitem__, words))
        lengths.append(len(words))
    terms = sorted(numbers)
    rank = np.empty(len(terms), dtype=np.int64)
    rank[[numbers[term] for term in terms]] = np.arange(len(terms))
    count = len(lengths)
    row_of = np.repeat(np.arange(count), lengths)
    keys, freqs = np.unique(rank[np.array(tokens, dtype=np.int64)] * count + row_of, return_counts=True)
    term_of, rows = np.divmod(keys, max(1, count))
    ends = np.cumsum(np.bincount(term_of, minlength=len(terms)))
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table([pa.array(terms, pa.string()), pa.array(ends, pa.int64())], schema=_SHARD_TERMS)
    _write_table(table, folder / "terms.arrow")
    np.save(folder / "rows.npy", rows.astype(np.int32))
    np.save(folder / "freqs.npy", freqs.astype(np.min_scalar_type(freqs.max(initial=0))))
    np.save(folder / "lengths.npy", np.array(lengths, dtype=np.int32))
    return int(sum(lengths))


def shard_statistics(terms_file: str, num_passages: int, total_length: int) -> Statistics:
    """What one shard adds to the global statistics, from its file of terms."""
    table = _read_table(terms_file)
    df = np.diff(table["end"].to_numpy(), prepend=0)
    columns = [table["term"].cast(pa.large_string()), pa.array(df, pa.int64())]
    return Statistics(num_passages, total_length, pa.table(columns, schema=_TERMS))


def common(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What two sorted arrays of distinct rows share; the shorter one is looked up in the longer."""
    short, long = (a, b) if len(a) <= len(b) else (b, a)
    if not len(short):
        return short
    place = np.minimum(np.searchsorted(long, short), len(long) - 1)
    return short[long[place] == short]


def values_at(known: np.ndarray, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The values of `rows` by the sorted rows that are known to have one; 0 for others."""
    if not len(known):
        return np.zeros(len(rows))
    place = np.minimum(np.searchsorted(known, rows), len(known) - 1)
    return np.where(known[place] == rows, values[place], 0.0)


@dataclass(frozen=True)
class _Posting:
    """A term's passages in a shard, sorted, what it adds to the score of each, and the most of that."""

    rows: np.ndarray
    impact: np.ndarray
    most: float


class Shard:
    """A shard opened for scoring with the global statistics; `files` gives the path of each of SHARD_FILES.

    Arrays are memory-mapped; what a term adds to each score is kept once made, as the queries of a job share words.
    """

    def __init__(self, files: Mapping[str, str], statistics: Statistics):
        terms = _read_table(files["terms.arrow"])
        self._terms, self._ends = _only_chunk(terms["term"]), terms["end"].to_numpy()
        self._rows = np.load(files["rows.npy"], mmap_mode="r")
        self._freqs = np.load(files["freqs.npy"], mmap_mode="r")
        lengths = np.load(files["lengths.npy"])
        average = statistics.average_length or 1.0
        self._length_norm = K1 * (1.0 - B + B * lengths.astype(np.float64) / average)
        self._statistics = statistics
        self._postings: dict[str, _Posting] = {}
        self._spans: dict[str, slice] = {}
        self.num_passages = len(lengths)
        self._sums = np.zeros(self.num_passages)  # all zero between queries

    def _span(self, term: str) -> slice:
        """Where the term's postings stand; looking it up takes longer than most of what is done with them."""
        if term not in self._spans:
            place = _place(self._terms, term)
            begin, end = (self._ends[place - 1] if place else 0, self._ends[place]) if place >= 0 else (0, 0)
            self._spans[term] = slice(int(begin), int(end))
        return self._spans[term]

    def holding(self, name: Sequence[str]) -> np.ndarray:
        """Rows, sorted, of the passages that hold a name: each of its words but for light ones (`weighty`).

        Of a name without a weighty word there are none.
        """
        found = None
        for word in self._statistics.weighty(name):
            rows = self._rows[self._span(word)]
            found = rows if found is None else common(found, rows)
        return np.empty(0, np.int32) if found is None else np.asarray(found)

    def _posting(self, term: str) -> _Posting:
        if term not in self._postings:
            span = self._span(term)
            rows, impact = np.empty(0, np.int32), np.empty(0)
            if span.stop > span.start:
                rows, tf = np.array(self._rows[span]), self._freqs[span].astype(np.float64)
                impact = self._statistics.idf(term) * tf / (tf + self._length_norm[rows])
            self._postings[term] = _Posting(rows, impact, float(impact.max(initial=0.0)))
        return self._postings[term]

    def candidates(self, query: Sequence[str], k: int) -> np.ndarray:
        """Rows, sorted, among which are the k of highest score and all that equal the last of them.

        A passage that shares no term with the query is none.
        """
        found = [(count, posting) for t, count in Counter(query).items() if len((posting := self._posting(t)).rows)]
        found.sort(key=lambda pair: -pair[0] * pair[1].most)
        # What the terms from here on can add to a score at most.
        left = np.cumsum([0.0, *(count * posting.most for count, posting in reversed(found))])[::-1]
        touched: list[np.ndarray] = []
        num_touched, least, position = 0, 0.0, 0
        while position < len(found) and left[position] >= least:
            count, posting = found[position]
            sums = self._sums[posting.rows]
            new = posting.rows[sums == 0]
            self._sums[posting.rows] = sums + count * posting.impact
            touched.append(new)
            num_touched, position = num_touched + len(new), position + 1
            if num_touched >= k > 0:
                partial = self._sums[np.concatenate(touched)]
                least = np.partition(partial, num_touched - k)[num_touched - k] * (1 - ROUNDING)
        rows = np.concatenate(touched) if touched else np.empty(0, np.int32)
        kept = np.sort(rows[self._sums[rows] + left[position] >= least])
        self._sums[rows] = 0.0
        return kept

    def scores_at(self, query: Sequence[str], rows: np.ndarray) -> np.ndarray:
        """Float64 scores of passages `rows`; a term that stands twice in the query counts twice. 0 for no shared term.

        Terms are added in one order, so that a passage has the same score in every shard and beside any other.
        """
        scores = np.zeros(len(rows))
        for term, count in sorted(Counter(query).items()):
            posting = self._posting(term)
            if len(posting.rows):
                place = np.minimum(np.searchsorted(posting.rows, rows), len(posting.rows) - 1)
                scores += np.where(posting.rows[place] == rows, count * posting.impact[place], 0.0)
        return scores
