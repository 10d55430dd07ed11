"""Near-duplicates against brute force, what counts as one, and that groups depend on no order."""

import itertools
import random

import pytest

from attribution.duplicates import (
    THRESHOLD,
    Match,
    Seeds,
    bands,
    form,
    group,
    jaccard,
    names_exchanged,
    similarity,
)
from schemas.errors import ConfigError

RIVER = "The Rott is a small river of Bavaria, and it flows from the hills into the broad river Inn near the border."


def sentences(count: int, seed: int) -> list[str]:
    """Sentences of few words, so that many pairs are alike, and copies of them with a word changed."""
    generator = random.Random(seed)
    words = [f"{a}{b}" for a in "bdfg" for b in ("a", "o")]
    made = [" ".join(generator.choices(words, k=generator.randint(1, 12))) for _ in range(count)]
    made += [" ".join(w if generator.random() > 0.1 else "Extra" for w in text.split()) for text in made]
    return made


def brute_force(seeds: list[str], texts: list[str], threshold: float) -> set[tuple[int, int]]:
    """Pairs (seed, text) by sets of pairs of words, counted with loops."""
    found = set()
    for (i, a), (j, b) in itertools.product(enumerate(seeds), enumerate(texts)):
        x, y = a.lower().split(), b.lower().split()
        left = {tuple(x[n : n + 2]) for n in range(max(1, len(x) - 1))}
        right = {tuple(y[n : n + 2]) for n in range(max(1, len(y) - 1))}
        if len(left & right) / len(left | right) >= threshold and not names_exchanged(form(a), form(b)):
            found.add((i, j))
    return found


@pytest.mark.parametrize("threshold", [0.3, THRESHOLD, 0.8, 1.0])
def test_what_is_found_is_what_brute_force_finds(threshold):
    seeds, texts = sentences(60, 1), sentences(150, 2) + sentences(60, 1)
    expected = brute_force(seeds, texts, threshold)
    asked = Seeds(seeds, threshold)
    found = {(seed, j) for j, text in enumerate(texts) for seed, _ in asked.near(text)}
    assert found <= expected  # the exact similarity is asked of every candidate
    assert len(expected) > 100 and len(found) >= 0.99 * len(expected)


def test_the_similarity_is_that_of_the_shingles():
    a, b = form("one two three four"), form("one two three five six")
    assert jaccard(a, b) == 2 / (3 + 4 - 2)
    assert jaccard(b, a) == jaccard(a, b) and jaccard(a, a) == 1


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
        RIVER + " It was last seen to be dry in 1947.",
        RIVER.replace("Rott", "Ｒｏｔｔ"),  # full-width letters, the same in NFKC
        "“" + RIVER + "”",
    ],
)
def test_a_copy_with_small_edits_is_a_near_duplicate(copy):
    assert [seed for seed, _ in Seeds(["Something else entirely.", RIVER]).near(copy)] == [1]


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
def test_a_statement_about_another_name_or_number_is_none(text, twin):
    assert jaccard(form(text), form(twin)) >= THRESHOLD  # by their words alone they would be
    assert similarity(form(text), form(twin)) == 0
    assert Seeds([text]).near(twin) == [] and Seeds([twin]).near(text) == []


def test_chinese_is_compared_character_by_character():
    text = "罗马是意大利的首都，也是一座古老的城市。"
    assert form("罗马是").shingles == {"罗 马", "马 是"}
    for copy in (text.replace("，", " "), text.replace("一座", ""), text + "人口很多。"):
        assert [seed for seed, _ in Seeds([text]).near(copy)] == [0]
    assert Seeds([text]).near("今天天气很好，我们去公园散步。") == []


def test_texts_without_two_words():
    assert form("").shingles == form(" ?! \n").shingles == frozenset()
    seeds = Seeds(["", "?!", "Rome", "rome."])
    assert seeds.near("") == seeds.near("...") == []
    assert seeds.near("ROME!") == [(2, 1.0), (3, 1.0)]
    assert seeds.near("Paris") == seeds.near("Rome is old") == []
    assert Seeds([]).near(RIVER) == []


def test_a_megabyte_without_a_space_is_one_word():
    assert Seeds(["x" * 2**20]).near("X" * 2**20) == [(0, 1.0)]


@pytest.mark.parametrize("threshold", [0.0, 0.1, 1.1])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(ConfigError, match=r"expected 0.2 to 1 .*, found"):
        Seeds([RIVER], threshold)


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
