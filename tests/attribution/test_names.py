"""Other names: runs of capitalised words, their weights by hand, and the evidence against a loop over all pairs."""

import itertools
import math

import numpy as np
import pytest

from attribution.bm25 import K1, B, Statistics, word_tokenizer
from attribution.match import Words
from attribution.names import LEAST, OFTEN, OTHER, Name, evidence, runs, side, weights

TOKENIZE = word_tokenizer()


@pytest.mark.parametrize(
    ("text", "own", "found"),
    [
        ("IBM, known as Big Blue, sold it.", ["ibm"], ["Big Blue"]),
        ("Paris is the City of Light and Love.", ["paris"], ["City of Light and Love"]),
        ("He praised Ludwig Mies van der Rohe there.", [], ["He", "Ludwig Mies van der Rohe"]),
        ("The House of the old Lords", [], ["The House", "Lords"]),  # three small words between
        ("The Duke without Portfolio", [], ["The Duke", "Portfolio"]),  # a long small word
        ("J. R. R. Tolkien taught at Leeds. Oxford came later.", [], ["J. R. R. Tolkien", "Leeds", "Oxford"]),
        ("Alan Turing Prize", ["alan", "turing"], ["Prize"]),
        ("Prize of Alan Turing in London", ["alan", "turing"], ["Prize", "London"]),
        ("Jean-Luc O’Brien (New York)", [], ["Jean-Luc O’Brien", "New York"]),
        ("The  Iron\nDuke", [], ["The Iron Duke"]),
        ("nothing here, and 東京 has no capitals", [], []),
        ("", [], []),
    ],
)
def test_the_capitalised_runs_of_a_text(text, own, found):
    assert runs(text, own) == found


def test_weights_by_hand():
    both, everywhere = np.array([1, 2, 3, 1, 1]), np.array([2, 40, 3, 100, 400])
    found = weights(both, everywhere)
    assert found[0] == OTHER  # 4 * 1 / 3 is more than 1
    assert found[1] == pytest.approx(OTHER * math.sqrt(OFTEN * 2 / 41), rel=1e-12)
    assert found[2] == 0  # never without the thing: it says nothing new
    assert found[3] == pytest.approx(OTHER * math.sqrt(OFTEN / 101), rel=1e-12)
    assert found[4] == 0 and OTHER * math.sqrt(OFTEN / 401) < LEAST
    assert weights(np.array([0]), np.array([5])).tolist() == [0]


@pytest.fixture
def passages():
    texts = [
        "Big Blue built the tabulator in the Empire State",
        "IBM built it in New York",
        "Big Blue and Big Blue again",
        "nothing of either",
        "ibm of the empire",
    ]
    return [TOKENIZE(text) for text in texts]


def statistics(passages):
    df: dict[str, int] = {}
    for tokens in passages:
        for token in set(tokens):
            df[token] = df.get(token, 0) + 1
    return Statistics.of(len(passages), sum(map(len, passages)), df)


def by_hand(first, second, tokens, known, match_weight):
    """The evidence of one passage by every pair of names, from the formulas."""
    held = Words(tokens)

    def bm25(name):
        norm = K1 * (1 - B + B * len(tokens) / known.average_length)
        return sum(known.idf(t) * tokens.count(t) / (tokens.count(t) + norm) for t in name.words)

    def share(name):
        if name.own:
            return held.share(name.words, known.idf)
        return sum(known.idf(t) * (t in tokens) for t in name.words) / sum(map(known.idf, name.words))

    found = {}
    for a, b in itertools.product(first, second):
        most = sum(map(known.idf, (*a.words, *b.words)))
        words = (bm25(a) + bm25(b)) / most + match_weight * min(share(a), share(b))
        found[a, b] = a.weight * b.weight * words / (1 + match_weight)
    return found


def test_the_evidence_is_that_of_the_best_pair(passages):
    known = statistics(passages)
    first = side(["IBM"], [("Big Blue", 0.8), ("Tabulator", 0.3)], TOKENIZE)
    second = side(["New York"], [("Empire State", 0.5)], TOKENIZE)
    found = evidence(first, second, passages, [Words(tokens) for tokens in passages], known, 0.3)
    for number, tokens in enumerate(passages):
        pairs = by_hand(first, second, tokens, known, 0.3)
        best = max(pairs, key=lambda pair: pairs[pair])
        assert found.best[number] == pytest.approx(pairs[best], rel=1e-12)
        assert found.names[number] == tuple(name.text for name in best if not name.own)
    assert found.names[0] == ("Big Blue", "Empire State") and found.names[1] == ()
    assert found.best[3] == 0


def test_the_evidence_of_a_passage_is_the_same_beside_any_other(passages):
    known = statistics(passages)
    first, second = side(["IBM"], [("Big Blue", 0.8)], TOKENIZE), side(["York"], [("Empire", 0.5)], TOKENIZE)
    held = [Words(tokens) for tokens in passages]
    whole = evidence(first, second, passages, held, known, 0.3)
    for i in range(len(passages)):
        alone = evidence(first, second, passages[i : i + 1], held[i : i + 1], known, 0.3)
        assert (alone.best[0], alone.names[0]) == (whole.best[i], whole.names[i])


def test_a_side_without_a_word_gives_no_evidence(passages):
    known, held = statistics(passages), [Words(tokens) for tokens in passages]
    second = side(["York"], [], TOKENIZE)
    assert side(["—"], [("!", 0.5)], TOKENIZE) == []
    found = evidence([], second, passages, held, known, 0.3)
    assert found.best.tolist() == [0] * len(passages) and found.names == [()] * len(passages)
    assert evidence(second, second, [], [], known, 0.3).names == []
    assert side(["York"], [("Empire", 0.5)], TOKENIZE)[1] == Name("Empire", ("empire",), 0.5)
