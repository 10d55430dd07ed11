"""Other names of a thing, as the corpus gives them, and what they say for a passage without the fact's own words.

The passages that hold a name best are its anchors. Capitalised runs of words in them ("Big Blue", "the City of Light")
may be other names of the thing, or of things beside it. How far one stands for it is seen in the whole corpus:

    weight(run) = OTHER min(1, OFTEN both / (all + 1))^1/2

where `all` passages hold the run and `both` of them the name as well. A run that is never without the name says nothing
new; one that mostly is ("January", "American") says little. Nothing is asked of the words between them ("also known
as"): a passage must be reached from both sides of a fact, by a name of its subject and one of its object, and two
wrong names seldom stand in one passage. For a subject's name i and an object's name j a passage has

    evidence(i, j) = weight(i) weight(j) (BM25 share of both's words + weight of the match * smaller share of the two)

and the best pair counts. What it is worth is in docs/method.md (`python -m bench.quality C`).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from attribution.bm25 import K1, B, Statistics, Tokenize
from attribution.match import Words

ANCHORS = 30  # passages that names are taken from
MOST = 50  # names of a thing
OTHER, OFTEN = 0.8, 4
NEARNESS = 0.7  # of its weight, that a name counts among cosines: those of what is meant are 0.3 to 0.5
LEAST = 0.1  # a name of less weight is none: it stands with the thing in less than a 256th of its passages
SMALL, BETWEEN = 3, 2  # letters of a word in small letters that may stand inside a name, and how many of them
INITIAL = 2  # letters after which a full stop ends no sentence
_WORD = re.compile(r"\w+")
_WITHIN = re.compile(r"[\s.'’-]*")  # what may stand between the words of one name


def runs(text: str, own: Iterable[str]) -> list[str]:
    """The capitalised runs of a text in order, without the words `own` (in small letters), which end a run.

    Up to two small words of at most three letters may stand inside: City of Light, Ludwig van der Rohe. In scripts
    without capitals there are none.
    """
    own, found = set(own), []
    run: list[re.Match] = []  # words of the run; the last ones may be small
    end = 0

    def close() -> None:
        while run and not run[-1].group()[0].isupper():
            run.pop()
        if run:
            found.append(" ".join(text[run[0].start() : run[-1].end()].split()))
        run.clear()

    for word in _WORD.finditer(text):
        between, this = text[end : word.start()], word.group()
        sentence_ends = between.startswith(".") and len(between) > 1 and run and len(run[-1].group()) > INITIAL
        if not _WITHIN.fullmatch(between) or sentence_ends or this.lower() in own:
            close()
        end = word.end()
        if this.lower() in own:
            continue
        if this[0].isupper():
            run.append(word)
        elif run:
            small = next((i for i, w in enumerate(reversed(run)) if w.group()[0].isupper()), 0)
            if len(this) > SMALL or small >= BETWEEN:
                close()
            else:
                run.append(word)
    close()
    return found


def weights(both: np.ndarray, everywhere: np.ndarray) -> np.ndarray:
    """Of names by how many passages hold them with the thing, and how many hold them; 0 for one that says nothing."""
    found = OTHER * np.sqrt(np.minimum(1.0, OFTEN * both / (everywhere + 1.0)))
    return np.where((both < everywhere) & (found >= LEAST), found, 0.0)


@dataclass(frozen=True)
class Name:
    """A name of one side of a fact: its `words`, and how far it stands for it: 1 for the side's own, which is `own`."""

    text: str
    words: tuple[str, ...]
    weight: float = 1.0
    own: bool = False


def side(own: Sequence[str], others: Iterable[tuple[str, float]], tokenize: Tokenize) -> list[Name]:
    """The names of one side: its own, then other ones with their weights; those without words left out."""
    named = [Name(text, tuple(tokenize(text)), own=True) for text in own]
    named += [Name(text, tuple(tokenize(text)), weight) for text, weight in others]
    return [name for name in named if name.words]


@dataclass(frozen=True)
class Evidence:
    """Of each passage the `best` evidence, as a share of the most that there is, and the other `names` in its pair."""

    best: np.ndarray
    names: list[tuple[str, ...]]


def evidence(
    first: Sequence[Name],
    second: Sequence[Name],
    passages: Sequence[Sequence[str]],
    held: Sequence[Words],
    statistics: Statistics,
    match_weight: float,
) -> Evidence:
    """Of passages given by their tokens; `held` are the same, to be asked for words that are like one."""
    if not (first and second and passages):
        return Evidence(np.zeros(len(passages)), [()] * len(passages))
    terms = sorted({word for name in (*first, *second) for word in name.words})
    column, idf = {term: i for i, term in enumerate(terms)}, np.array([statistics.idf(term) for term in terms])
    frequencies = np.zeros((len(passages), len(terms)))
    for row, tokens in zip(frequencies, passages, strict=True):
        for term, count in Counter(tokens).items():
            if term in column:
                row[column[term]] = count
    norms = K1 * (1 - B + B * np.array([len(tokens) for tokens in passages]) / (statistics.average_length or 1.0))
    impacts = idf * frequencies / (frequencies + norms[:, None])
    sides = [_Side(names, column, idf, impacts, frequencies > 0, held, statistics) for names in (first, second)]
    # [names of the first, names of the second, passages]
    shares = (sides[0].bm25[:, None] + sides[1].bm25[None]) / (sides[0].most[:, None] + sides[1].most[None])[..., None]
    both = np.minimum(sides[0].held[:, None], sides[1].held[None])
    weights = (sides[0].weights[:, None] * sides[1].weights[None])[..., None]
    found = (weights * (shares + match_weight * both) / (1.0 + match_weight)).reshape(-1, len(passages))
    place = found.argmax(axis=0)
    pairs = [(first[i], second[j]) for i, j in zip(*np.divmod(place, len(second)), strict=True)]
    names = [tuple(name.text for name in pair if not name.own) for pair in pairs]
    return Evidence(found[place, np.arange(len(passages))], names)


class _Side:
    """The names of one side: `[names]` weights and sums of idf, `[names, passages]` BM25 and shares."""

    def __init__(
        self,
        names: Sequence[Name],
        column: Mapping[str, int],
        idf: np.ndarray,
        impacts: np.ndarray,
        present: np.ndarray,
        held: Sequence[Words],
        statistics: Statistics,
    ):
        self.weights = np.array([name.weight for name in names])
        places = [[column[word] for word in name.words] for name in names]
        self.most = np.array([idf[at].sum() or 1.0 for at in places])
        self.bm25 = np.stack([impacts[:, at].sum(axis=1) for at in places])
        shares = [
            np.array([words.share(name.words, statistics.idf) for words in held])
            if name.own
            else present[:, at] @ idf[at] / (idf[at].sum() or 1.0)
            for name, at in zip(names, places, strict=True)
        ]
        self.held = np.stack(shares)
