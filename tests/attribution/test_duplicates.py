"""Near-duplicates against brute force, what counts as one, and that groups depend on no order."""

import itertools
import math
import random
from collections import Counter

import pytest

from attribution.bm25 import Statistics, word_tokenizer
from attribution.duplicates import (
    ORDER,
    THRESHOLD,
    Match,
    Rarity,
    Seeds,
    bands,
    form,
    group,
    jaccard,
    renamed,
    similarity,
)
from schemas.errors import ConfigError

RIVER = "The Rott is a small river of Bavaria, and it flows from the hills into the broad river Inn near the border."
# Passages that make the words of a template common: "is a small river of" and the like.
COMMON = [f"The {name} is a small river and it flows from the hills near the border." for name in ("Aa", "Bee", "Cee")]


def rarity(texts: list[str]) -> Rarity:
    """As an index of the texts would have it."""
    tokenize = word_tokenizer()
    df = Counter(word for text in texts for word in set(tokenize(text)))
    return Rarity(Statistics.of(len(texts), 0, df), tokenize)


def near(seeds: list[str], text: str, corpus: tuple[str, ...] = (), threshold: float = THRESHOLD):
    """The seeds, by position, that the text is a near-duplicate of, and whether it is one with another name."""
    found = Seeds(seeds, rarity([*seeds, text, *COMMON, *corpus]), threshold).near(text)
    return [(one.seed, one.renamed) for one in found]


def sentences(count: int, seed: int) -> list[str]:
    """Sentences of few words, so that many pairs are alike, and copies of them with a word changed."""
    generator = random.Random(seed)
    words = [f"{a}{b}" for a in "bdfg" for b in ("a", "o")]
    made = [" ".join(generator.choices(words, k=generator.randint(1, 12))) for _ in range(count)]
    made += [" ".join(w if generator.random() > 0.1 else "Extra" for w in text.split()) for text in made]
    return made


def brute_force(seeds: list[str], texts: list[str], threshold: float) -> set[tuple[int, int]]:
    """Pairs (seed, text), with loops over the words and their pairs."""
    found, every = set(), seeds + texts
    df = Counter(word for text in every for word in set(text.lower().split()))
    weight = {word: math.log(1 + (len(every) - n + 0.5) / (n + 0.5)) for word, n in df.items()}
    for (i, a), (j, b) in itertools.product(enumerate(seeds), enumerate(texts)):
        x, y = a.lower().split(), b.lower().split()
        left = {tuple(x[n : n + 2]) for n in range(max(1, len(x) - 1))}
        right = {tuple(y[n : n + 2]) for n in range(max(1, len(y) - 1))}
        common = sum(weight[w] * min(x.count(w), y.count(w)) for w in set(x + y))
        most = sum(weight[w] * max(x.count(w), y.count(w)) for w in set(x + y))
        if common / most >= threshold and len(left & right) / len(left | right) >= ORDER * threshold:
            found.add((i, j))
    return found


@pytest.mark.parametrize("threshold", [0.3, THRESHOLD, 0.8, 1.0])
def test_what_is_found_is_what_brute_force_finds(threshold):
    seeds, texts = sentences(60, 1), sentences(150, 2) + sentences(60, 1)
    expected = brute_force(seeds, texts, threshold)
    asked = Seeds(seeds, rarity(seeds + texts), threshold)
    found = {(one.seed, j) for j, text in enumerate(texts) for one in asked.near(text)}
    assert found <= expected  # the exact similarity is asked of every candidate
    assert len(expected) > 100 and len(found) >= 0.99 * len(expected)


def test_the_similarities_by_hand():
    a, b = form("one two three four"), form("one two three five six six")
    assert jaccard(a, b) == 2 / (3 + 5 - 2)
    assert jaccard(b, a) == jaccard(a, b) and jaccard(a, a) == 1
    words = rarity(["one two three four", "one two three five six six", "one", "two"])
    idf = {df: math.log(1 + (4 - df + 0.5) / (df + 0.5)) for df in (1, 2, 3)}
    common = 2 * idf[3] + idf[2]
    assert similarity(a, b, words) == pytest.approx(common / (common + 4 * idf[1]), abs=1e-12)
    assert similarity(b, a, words) == similarity(a, b, words) and similarity(a, a, words) == 1


def test_bands_miss_one_of_a_hundred_at_the_threshold_and_the_next_longer_ones_more():
    assert bands(0.5, 128) == (42, 3)
    assert (1 - 0.5**3) ** 42 <= 0.01 < (1 - 0.5**4) ** 32
    assert bands(1.0, 128) == (2, 64)


@pytest.mark.parametrize(
    "copy",
    [
        RIVER.upper(),
        RIVER.lower(),
        RIVER.replace(", and", " ;  and\n"),
        RIVER.replace("small", "little"),
        RIVER.replace("small ", "").replace("the broad ", ""),
        RIVER.replace("flows", "always flows slowly"),
        RIVER + " It was dry in 1947.",
        RIVER.replace("Rott", "Ｒｏｔｔ"),  # full-width letters, the same in NFKC
        RIVER.replace("Bavaria", "Bavraia"),
        RIVER.replace("Bavaria", "Bavara").replace("Rott", "stream Rott"),
        RIVER.replace("The Rott", "A Rott"),  # a capital that the place gives, of a word of grammar
        "“" + RIVER + "”",
    ],
)
def test_a_copy_with_small_edits_is_a_near_duplicate(copy):
    assert near(["Something else entirely.", RIVER], copy) == [(1, False)]


@pytest.mark.parametrize(
    ("text", "twin"),
    [
        (RIVER, RIVER.replace("Rott", "Isar")),
        (RIVER.lower(), RIVER.lower().replace("rott", "isar")),  # case says nothing: any word may be a name
        (RIVER, RIVER.upper().replace("ROTT", "ISAR")),
        ("The contest of 1983 was held on grass.", "The contest of 1997 was held on grass."),
        ("The capital of Italy is Rome.", "The capital of Italy is Brasilia."),
        ("意大利的首都是罗马，一座古老的城市。", "意大利的首都是巴黎，一座古老的城市。"),
    ],
)  # fmt: skip
def test_a_statement_about_another_name_or_number_is_told_apart(text, twin):
    assert jaccard(form(text), form(twin)) >= THRESHOLD  # most of their words are the same
    words = rarity([text, twin])
    assert renamed(form(text), form(twin), words) and renamed(form(twin), form(text), words)
    corpus = tuple(f"{text} {n}" for n in range(3))  # a template that the corpus is full of
    assert near([text], twin, corpus) in ([], [(0, True)]) and near([twin], text, corpus) in ([], [(0, True)])


def test_statements_of_one_template_are_no_near_duplicates():
    places = ["Kalchreuth", "Adelsdorf", "Gremsdorf", "Marloffstein", "Aurachtal", "Oberreichenbach"]
    texts = [f"{place} is a municipality in the district of Erlangen in Bavaria." for place in places]
    forms = [form(text) for text in texts]
    assert jaccard(forms[0], forms[1]) > 0.8
    assert all(similarity(a, b, rarity(texts)) < THRESHOLD for a, b in itertools.combinations(forms, 2))
    assert similarity(forms[0], forms[1], rarity(texts[:2] + ["Something else entirely."] * 6)) > THRESHOLD


def test_names_that_changed_places_are_another_statement():
    seed = "In the final of the open tournament at Ostby, Alma defeated Bertram after five long sets of tennis."
    swapped = seed.replace("Alma", "?").replace("Bertram", "Alma").replace("?", "Bertram")
    assert near([seed], swapped) == [(0, True)]
    assert near([seed.replace("Alma", "Alma Ann")], seed.replace("Alma", "Ann Alma")) == [(0, False)]  # one name
    assert near([seed.replace("Alma", "Alma, Ann")], seed.replace("Alma", "Alma and Ann")) == [(0, False)]


def test_a_name_that_is_known_with_another_letter_is_another_name():
    seed, twin = "The long river Gambia flows into the sea.", "The long river Zambia flows into the sea."
    assert near([seed], twin) == [(0, False)]  # nobody else has heard of either
    assert near([seed], twin, ("Gambia and Zambia.",)) == [(0, True)]
    assert near(["The war of Iran began there."], "The war of Iraq began there.") == [(0, True)]
    assert near(["It was signed in 19571 there."], "It was signed in 19572 there.") == [(0, True)]


def test_chinese_is_compared_character_by_character():
    text = "罗马是意大利的首都，也是一座古老的城市。"
    assert form("罗马是").shingles == {"罗 马", "马 是"}
    for copy in (text.replace("，", " "), text.replace("一座", ""), text + "人口很多。"):
        assert near([text], copy) == [(0, False)]
    assert near([text], "今天天气很好，我们去公园散步。") == []


def test_texts_without_two_words():
    assert form("").shingles == form(" ?! \n").shingles == frozenset()
    seeds = ["", "?!", "Rome", "rome."]
    assert near(seeds, "") == near(seeds, "...") == []
    assert near(seeds, "ROME!") == [(2, False), (3, False)]
    assert near(seeds, "Paris") == near(seeds, "Rome is old") == []
    assert near([], RIVER) == []


def test_a_megabyte_without_a_space_is_one_word():
    assert near(["x" * 2**20], "X" * 2**20) == [(0, False)]


@pytest.mark.parametrize("threshold", [0.0, 0.2, 1.1])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(ConfigError, match=r"expected 0.3 to 1 .*, found"):
        Seeds([RIVER], rarity([RIVER]), threshold)


def test_a_group_is_named_by_its_smallest_id_and_holds_direct_neighbours_alone():
    matches = [
        Match("s2", "a", 0.9),
        Match("s2", "s1", 0.6),
        Match("s1", "s2", 0.6),
        Match("s3", "b", 0.7),
        Match("s3", "a", 0.8),  # a is nearer to s2: it does not make s2 and s3 one group
        Match("s4", "s4", 1.0),  # another passage of the same document
    ]
    assert group(matches) == {"a": "a", "s1": "a", "s2": "a", "b": "b", "s3": "b"}


def test_a_tie_goes_to_the_smallest_seed_and_a_seed_left_alone_has_no_group():
    assert group([Match("s2", "x", 0.8), Match("s1", "x", 0.8)]) == {"s1": "s1", "x": "s1"}


def test_groups_depend_on_no_order():
    generator = random.Random(0)
    ids = [f"d{n}" for n in range(40)]
    matches = [Match(*generator.sample(ids, 2), generator.choice([0.5, 0.7, 0.9])) for _ in range(45)]
    expected = group(matches)
    assert len(set(expected.values())) > 1
    for _ in range(20):
        generator.shuffle(matches)
        assert group(matches) == expected
