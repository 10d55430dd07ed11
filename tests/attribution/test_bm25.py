"""BM25: the Lucene formula, by hand and against bm25s; shards with merged statistics score as the whole, bit by bit."""

import itertools
import math
import tempfile
from pathlib import Path

import bm25s
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.bm25 import (
    K1,
    SHARD_FILES,
    B,
    Shard,
    Statistics,
    common,
    shard_statistics,
    word_spans,
    word_tokenizer,
    write_shard,
)

TEXTS = [
    "the capital of oz is verona",
    "verona verona verona",
    "it rained and rained for days in the capital of utopia and nobody there minded",
    "",
    "oz",
]
QUERIES = [["oz"], ["capital", "verona"], ["verona", "verona", "the"], ["unheard"], [], ["rained", "unheard", "oz"]]
tokenize = word_tokenizer()


def files_of(folder) -> dict[str, str]:
    return {name: str(folder / name) for name in SHARD_FILES}


def written(texts: list[str], folder: Path) -> Statistics:
    length = write_shard(texts, tokenize, folder)
    return shard_statistics(str(folder / "terms.arrow"), len(texts), length)


def open_shards(parts: list[list[str]], folder: Path) -> tuple[list[Shard], Statistics]:
    merged = Statistics.merge([written(part, folder / str(i)) for i, part in enumerate(parts)])
    return [
        Shard({name: str(folder / str(i) / name) for name in SHARD_FILES}, merged) for i in range(len(parts))
    ], merged


def scores(shard: Shard, query: list[str]) -> np.ndarray:
    return shard.scores_at(query, np.arange(shard.num_passages))


def test_score_is_the_lucene_formula(tmp_path):
    [shard], statistics = open_shards([["oz oz verona", "oz mantua mantua mantua mantua", "padua"]], tmp_path)
    average = (3 + 5 + 1) / 3
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    assert statistics.idf("oz") == pytest.approx(idf, rel=1e-15)
    assert scores(shard, ["oz"]).tolist() == pytest.approx(
        [
            idf * 2 / (2 + 0.4 * (1 - 0.4 + 0.4 * 3 / average)),
            idf * 1 / (1 + 0.4 * (1 - 0.4 + 0.4 * 5 / average)),
            0.0,
        ],
        rel=1e-14,
    )


def test_idf_of_a_word_in_no_passage_and_in_all():
    statistics = Statistics.of(10, 30, {"all": 10})
    assert statistics.idf("none") == pytest.approx(math.log(1 + 10.5 / 0.5))
    assert statistics.idf("all") == pytest.approx(math.log(1 + 0.5 / 10.5))
    assert statistics.idf("all") > 0


def test_scores_equal_those_of_bm25s_on_the_same_tokens(tmp_path):
    [shard], _ = open_shards([TEXTS], tmp_path)
    reference = bm25s.BM25(method="lucene", k1=K1, b=B, dtype="float64")
    reference.index([tokenize(text) for text in TEXTS], show_progress=False)
    for query in QUERIES:
        known = [word for word in query if word != "unheard"]
        expected = reference.get_scores(known) if known else np.zeros(len(TEXTS))
        np.testing.assert_allclose(scores(shard, query), expected, rtol=1e-6, atol=1e-12)


def test_a_word_twice_in_the_query_counts_twice(tmp_path):
    [shard], _ = open_shards([TEXTS], tmp_path)
    np.testing.assert_array_equal(scores(shard, ["oz", "oz"]), 2 * scores(shard, ["oz"]))


def test_scores_do_not_depend_on_the_order_of_the_query_nor_on_what_was_asked_before(tmp_path):
    query = ["the", "capital", "of", "oz", "is", "not", "verona", "and", "it", "rained"]
    [shard], _ = open_shards([TEXTS], tmp_path)
    first = scores(shard, query)
    shard.candidates(query, 2)
    np.testing.assert_array_equal(scores(shard, query[::-1]), first)
    np.testing.assert_array_equal(scores(shard, query), first)


words = st.sampled_from(["oz", "utopia", "verona", "mantua", "the", "of", "rained", "ж", "日本", "𠀀x", "é"])
passages = st.lists(st.lists(words, max_size=8).map(" ".join), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(passages, st.lists(st.integers(0, 12), max_size=3), st.lists(words, min_size=1, max_size=6))
def test_any_split_into_shards_gives_the_same_scores_bit_by_bit(texts, cuts, query):
    bounds = [0, *sorted(min(cut, len(texts)) for cut in cuts), len(texts)]
    parts = [texts[a:b] for a, b in itertools.pairwise(bounds)]
    with tempfile.TemporaryDirectory() as root:
        [whole], together = open_shards([texts], Path(root, "whole"))
        shards, merged = open_shards(parts, Path(root, "parts"))
        assert merged == together
        split = np.concatenate([scores(shard, query) for shard in shards])
        np.testing.assert_array_equal(split, scores(whole, query))


@settings(max_examples=100, deadline=None)
@given(passages, st.lists(words, max_size=6), st.integers(1, 14))
def test_candidates_hold_the_best_k_with_all_ties_and_only_passages_that_share_a_word(texts, query, k):
    with tempfile.TemporaryDirectory() as root:
        [shard], _ = open_shards([texts], Path(root))
        for _ in range(2):  # the second time with what the first kept
            rows, all_scores = shard.candidates(query, k), scores(shard, query)
            assert rows.tolist() == sorted(set(rows.tolist())) and (all_scores[rows] > 0).all()
            least = np.sort(all_scores)[::-1][min(k, len(texts)) - 1]
            assert set(np.flatnonzero((all_scores >= least) & (all_scores > 0))) <= set(rows.tolist())


def test_common_words_are_not_visited_where_rare_ones_settle_the_best(tmp_path):
    texts = ["verona the"] * 3 + [f"the w{i}" for i in range(50)]
    [shard], _ = open_shards([texts], tmp_path)
    assert shard.candidates(["the", "verona"], 3).tolist() == [0, 1, 2]
    assert len(shard.candidates(["the", "verona"], 4)) == 53  # the fourth has "the" alone, as all others


def test_shards_with_their_own_statistics_would_score_otherwise(tmp_path):
    [whole], _ = open_shards([TEXTS], tmp_path / "whole")
    own = Shard(files_of(tmp_path / "own"), written(TEXTS[:2], tmp_path / "own"))
    assert not np.allclose(scores(own, ["verona"]), scores(whole, ["verona"])[:2])


def test_merging_statistics_is_associative_and_order_free():
    a, b, c = parts = [Statistics.of(1, 4, {"a": 1}), Statistics.of(2, 5, {"a": 2, "b": 1}), Statistics.of(0, 0, {})]
    merge, expected = Statistics.merge, Statistics.of(3, 9, {"a": 3, "b": 1})
    assert merge([merge([a, b]), c]) == merge([a, merge([b, c])]) == merge([c, b, a]) == merge(parts) == expected
    assert expected.average_length == 9 / 3
    assert a == Statistics.of(1, 4, {"a": 1})  # merging changed neither side


def test_statistics_read_back_from_their_file(tmp_path):
    kept = Statistics.of(3, 9, {"verona": 3, "日本": 1, "a": 2})
    kept.save(tmp_path / "statistics.arrow")
    found = Statistics.load(str(tmp_path / "statistics.arrow"), 3, 9)
    assert found == kept and [found.df(term) for term in ("a", "verona", "日本", "b", "zz", "")] == [2, 3, 1, 0, 0, 0]


def test_df_counts_passages_and_length_counts_words(tmp_path):
    assert written(["oz oz", "oz verona", ""], tmp_path) == Statistics.of(3, 4, {"oz": 2, "verona": 1})


def test_every_word_of_a_shard_is_found_in_any_script(tmp_path):
    vocabulary = ["a", "z", "zz", "é", "ж", "日本", "가", "𠀀", "0", "_"]
    [shard], _ = open_shards([vocabulary], tmp_path)
    for row, word in enumerate(vocabulary):
        assert np.flatnonzero(scores(shard, [word])).tolist() == [row]


@pytest.mark.parametrize("texts", [[], ["", "!?"]])
def test_a_shard_without_words_scores_zero(texts, tmp_path):
    [shard], _ = open_shards([texts], tmp_path)
    assert scores(shard, ["oz"]).tolist() == [0.0] * len(texts)
    assert shard.candidates(["oz"], 3).tolist() == []


def test_the_same_texts_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_shard(TEXTS, tokenize, tmp_path / name)
    assert {file.name for file in (tmp_path / "a").iterdir()} == set(SHARD_FILES)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_coverage_is_the_share_of_the_querys_idf_weight():
    statistics = Statistics.of(10, 100, {"rare": 1, "common": 9})
    rare, common = math.log(1 + 9.5 / 1.5), math.log(1 + 1.5 / 9.5)
    query = ["rare", "common", "common"]
    assert statistics.coverage(query, ["rare", "x"]) == pytest.approx(rare / (rare + common))
    assert statistics.coverage(query, ["common"]) == pytest.approx(common / (rare + common))
    assert statistics.coverage(query, ["common", "rare"]) == 1.0
    assert statistics.coverage(query, []) == statistics.coverage([], ["rare"]) == 0.0


def test_words_are_lower_case_nfkc_and_short_ones_are_kept():
    assert tokenize("A ﬁne Ｏｚ, 7 x_y naïve—café!") == ["a", "fine", "oz", "7", "x_y", "naïve", "café"]
    assert tokenize("") == []


def test_stemming_joins_forms_and_an_unknown_language_is_refused():
    assert word_tokenizer("english")("Rains rained raining") == ["rain"] * 3
    assert tokenize("Rains rained") == ["rains", "rained"]
    with pytest.raises(KeyError):
        word_tokenizer("klingon")


def test_word_spans_cut_the_words_out_of_the_text():
    text = "The capital: Oz-Verona."
    assert [text[a:b] for a, b in word_spans(text)] == ["The", "capital", "Oz", "Verona"]


def test_a_name_is_held_by_the_passages_with_its_weighty_words(tmp_path):
    texts = ["the duke of york", "duke of earl", "york", "the duke rode to york", "of the", "earl of york"]
    shards, statistics = open_shards([texts[:3], texts[3:]], tmp_path)
    assert statistics.weighty(["the", "duke", "of", "york", "duke"]) == ["duke", "the", "of", "york"]
    found = [[i + 3 * n for i in shard.holding(["duke", "york"]).tolist()] for n, shard in enumerate(shards)]
    assert found == [[0], [3]]
    assert shards[0].holding(["absent", "duke"]).tolist() == [] == shards[0].holding([]).tolist()
    common_word = Statistics.of(1000, 5000, {"of": 990, "york": 3})
    weights = {word: common_word.idf(word) for word in ("of", "york")}
    assert weights["of"] < 0.05 * sum(weights.values()) and common_word.weighty(["of", "york"]) == ["york"]


@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
def test_what_two_sorted_arrays_share(a, b):
    first, second = (np.array(sorted(rows), dtype=np.int32) for rows in (a, b))
    assert common(first, second).tolist() == sorted(a & b)
