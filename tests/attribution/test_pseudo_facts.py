"""Pseudo-facts: what is asked for stands in the passage, the words before it ask, and no order has a say."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.pseudo_facts import PROMPT_WORDS, make_pseudo_fact, make_pseudo_facts, sample_key
from schemas.records import Passage, text_sha256


def passage(text: str, example_id: str = "z", start: int = 0) -> Passage:
    return Passage(example_id, start, start + len(text), text, "s", text_sha256(text), "f", 1)


def length_idf(word: str) -> float:
    return float(len(word))


def test_a_name_after_three_words_is_hidden_and_the_words_before_it_ask():
    fact = make_pseudo_fact(passage("It is said that Verona was built early."), length_idf, seed=0)
    assert (fact.prompt, fact.target, fact.object) == ("It is said that", " Verona", "Verona")
    assert (fact.id, fact.proponents) == ("pseudo/z/0", ("z",))


def test_names_of_several_words_and_numbers_are_hidden_whole():
    fact = make_pseudo_fact(passage("they sailed all to New South Wales again"), length_idf, seed=0)
    assert (fact.prompt, fact.target) == ("they sailed all to", " New South Wales")
    fact = make_pseudo_fact(passage("the town then had 12,345 souls"), length_idf, seed=0)
    assert (fact.prompt, fact.target) == ("the town then had", " 12,345")


def test_without_a_name_the_rarest_word_is_hidden():
    fact = make_pseudo_fact(passage("it rained and extraordinary cats came in"), length_idf, seed=0)
    assert (fact.prompt, fact.target) == ("it rained and", " extraordinary")
    rarity = {"cats": 9.0}
    fact = make_pseudo_fact(passage("it rained and extraordinary CATS".lower()), lambda w: rarity.get(w, 1.0), seed=0)
    assert fact.target == " cats"


def test_subject_is_the_rarest_other_name_of_the_prompt():
    text = "the Aa and Oldburgh lords both met Verona"
    assert make_pseudo_fact(passage(text.replace("Verona", "verona")), length_idf, 0).object == "Oldburgh"
    fact = make_pseudo_fact(passage("Oldburgh and Aa lords both met Verona"), length_idf, seed=0)
    assert (fact.object, fact.subject) == ("Verona", "Oldburgh")
    fact = make_pseudo_fact(passage("lords and ladies both met Verona"), length_idf, seed=0)
    assert fact.subject == ""


def test_prompt_holds_at_most_ten_words_and_no_name_from_before_them():
    text = "Far Mantua " + " ".join(f"w{n}" for n in range(30)) + " Verona"
    found = {make_pseudo_fact(passage(text, f"z{n}"), lambda w: 1.0, seed=0) for n in range(5)}
    for fact in found:
        assert len(fact.prompt.split()) == PROMPT_WORDS
        assert "Mantua" not in fact.prompt and fact.subject != "Far Mantua"


@pytest.mark.parametrize("text", ["", "Verona", "Verona of old", "!!! ... ???"])
def test_a_passage_with_too_few_words_before_anything_gives_none(text):
    assert make_pseudo_fact(passage(text), length_idf, seed=0) is None


words = st.sampled_from(
    ["Verona", "Oz", "New-York", "1,234", "rained", "and", "extraordinary,", "(said)", "“Mantua”", "é", "日本", "it's"]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(words, max_size=25), st.integers(0, 5))
def test_prompt_and_target_stand_in_the_passage_as_one_piece(parts, seed):
    text = " ".join(parts)
    fact = make_pseudo_fact(passage(text), length_idf, seed)
    if fact is not None:
        assert fact.prompt + fact.target in text
        assert fact.target.strip() == fact.object != ""
        assert fact.prompt == fact.prompt.rstrip() != ""
        assert fact.subject in fact.prompt


def test_choice_depends_on_seed_and_passage_alone():
    text = "one met there Verona and Mantua and Padua and Arden and Forres and Illyria"
    facts = [make_pseudo_fact(passage(text, f"z{n}"), length_idf, seed=0) for n in range(30)]
    assert len({fact.object for fact in facts}) > 3
    again = make_pseudo_facts([passage(text, f"z{n}") for n in range(30)][::-1], length_idf, seed=0)
    assert again == facts[::-1]
    other = [make_pseudo_fact(passage(text, f"z{n}"), length_idf, seed=1) for n in range(30)]
    assert [fact.object for fact in other] != [fact.object for fact in facts]


def test_passages_that_allow_no_fact_are_left_out_in_order():
    texts = ["we all saw Verona", "no", "we all saw Mantua"]
    made = make_pseudo_facts([passage(text, f"z{n}") for n, text in enumerate(texts)], length_idf, seed=0)
    assert [fact.id for fact in made] == ["pseudo/z0/0", "pseudo/z2/0"]


def test_sample_keys_differ_by_seed_example_and_start():
    base = sample_key(0, "z", 0)
    assert sample_key(0, "z", 0) == base
    others = {sample_key(1, "z", 0), sample_key(0, "y", 0), sample_key(0, "z", 5)}
    assert len(others | {base}) == 4
    keys = [sample_key(0, f"z{n}", 0) for n in random.Random(0).sample(range(100), 100)]
    assert len(set(keys)) == 100
