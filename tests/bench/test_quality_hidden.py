"""Facts told in other words: what the four kinds are, on a synthetic corpus, and what is refused."""

import random
import re
from collections import Counter
from dataclasses import replace

import pytest

from bench.quality import hidden, synthetic
from bench.quality import hidden_words as words
from bench.quality.carriers import Carrier, cut, stems
from bench.quality.data import Data, read
from bench.quality.hidden import KINDS, Hidden, Namer, build, check
from schemas.errors import ConfigError
from schemas.facts import parse_facts
from schemas.jsonl import jsonl_bytes
from schemas.records import Fact
from tests.bench.conftest import write_folder

FACTS, PASSAGES = 8, 600
ASKED = Fact("f", "Ada Byron worked in", " Paris", subject="Ada Byron", object="Paris")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Data:
    return read(write_folder(tmp_path_factory.mktemp("data"), *synthetic.generate(people=90)), "synthetic")


@pytest.fixture(scope="module")
def built(data) -> Hidden:
    return build(data, FACTS, PASSAGES)


def texts_of(built: Hidden) -> dict[str, str]:
    return {row["id"]: row["text"] for row in built.corpus}


def test_there_are_as_many_facts_of_each_kind_and_passages_as_asked(built, data):
    assert Counter(built.kind_of.values()) == dict.fromkeys(KINDS, FACTS)
    assert len(built.corpus) == PASSAGES == len(texts_of(built))
    sources = Counter(row["source"] for row in built.corpus)
    assert sources["real"] > PASSAGES / 3 and min(sources.values()) > FACTS
    real = {row["text"] for row in built.corpus if row["source"] == "real"}
    assert real <= set(data.texts)
    assert len(parse_facts(jsonl_bytes(built.facts), "facts")) == len(KINDS) * FACTS


def test_the_same_seed_builds_the_same(built, data):
    again, other = build(data, FACTS, PASSAGES), build(data, FACTS, PASSAGES, seed=1)
    assert (again.corpus, again.facts, again.links) == (built.corpus, built.facts, built.links)
    assert other.corpus != built.corpus


def test_proponents_hold_both_hidden_names_and_no_content_word_of_what_is_asked(built):
    texts, adjectival = texts_of(built), 0
    for fact in built.facts:
        asked = stems(f"{fact['subject']} {fact['object']} {fact['prompt']} {fact['target']}")
        assert fact["proponents"] and asked
        subject, object_ = (name.lower() for name in fact["told_as"])
        for example in fact["proponents"]:
            assert not asked & stems(texts[example])
            assert subject in texts[example].lower()
            adjectival += object_ not in texts[example].lower()
            assert object_ in texts[example].lower() or fact["kind"] == "alias"
    assert adjectival > 0


def test_words_alone_find_next_to_nothing_and_find_the_links(built):
    found = check(built, FACTS, PASSAGES)
    assert set(found) == set(KINDS) and max(found.values()) <= hidden.MOST_BM25
    # The same facts, where what explains them counts as found: BM25 does see the words that are asked.
    links = [fact | {"proponents": built.links[fact["id"]]} for fact in built.facts]
    assert min(hidden.bm25_recall(replace(built, facts=links)).values()) > 0.1


def test_links_join_each_name_to_its_hidden_one(built):
    texts = texts_of(built)
    for fact in built.facts:
        explained = [texts[i] for i in built.links[fact["id"]]]
        proponents = set(fact["proponents"])
        assert not proponents & set(built.links[fact["id"]])
        for name, other in zip((fact["subject"], fact["object"]), fact["told_as"], strict=True):
            joined = [text for text in explained if name in text]
            if fact["kind"] != "description":
                joined = [text for text in joined if other.lower() in text.lower()]
            assert joined
            if fact["kind"] == "code name" and name == fact["subject"]:
                assert len(joined) == 1
            if fact["kind"] in ("alias", "counterfactual"):
                assert len(joined) >= 2


def test_descriptions_share_a_rare_word_with_their_passage_or_no_word():
    namer = Namer(random.Random(0), (), (0, 1))
    shared = []
    for number in range(60):
        name = f"Entity{number}"
        other = namer.description(name)
        (link,) = (namer.passages[i] for i in other.links)
        common = stems(other.name) & stems(link)
        shared.append(bool(common))
        if common:
            assert any(word.istitle() and word.lower() in common for word in re.findall(r"\w+", link))
    assert 15 < sum(shared) < 45
    for name, (_, sentence, description) in words.KNOWN.items():
        assert stems(sentence) & stems(description) and not stems(description) & stems(name)


def test_counterfactual_facts_are_false_and_their_subjects_are_told_of_truly(built, data):
    true, told = {(f.subject, f.relation): f.object for f in data.facts}, []
    for fact in built.facts:
        known = true[fact["subject"], fact["relation"]]
        assert (fact["object"] != known) == (fact["kind"] == "counterfactual")
        if fact["kind"] == "counterfactual":
            about = [
                row for row in built.corpus if row["source"] == "real" and stems(fact["subject"]) <= stems(row["text"])
            ]
            told.append(len(about))
    # Some were rewritten for other facts, after this one was chosen.
    assert min(told) >= 1 and sum(told) >= hidden.TRUE_PASSAGES * FACTS


def test_no_passage_states_an_asked_fact_plainly(built):
    for fact in built.facts:
        both = stems(f"{fact['subject']} {fact['object']}")
        assert not [row["text"] for row in built.corpus if both <= stems(row["text"])]


def test_a_hidden_name_alone_does_not_tell_a_proponent(built):
    """Each stands in other passages too, that are neither proponents nor links."""
    others = 0
    for fact in built.facts:
        known = {*fact["proponents"], *built.links[fact["id"]]}
        subject = fact["told_as"][0].lower()
        others += any(subject in row["text"].lower() for row in built.corpus if row["id"] not in known)
    assert others > 0.8 * len(built.facts)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("In 1840 Ada Byron moved to Paris for a year.", "In 1840 S moved to O for a year."),
        ("Paris was the home of Ada Byron.", "O was the home of S."),
        ("Ada Byron, a Parisian, wrote.", None),  # the form of a name that stands in no slot is an adjective
        ("Ada Byron and Ada Byron went to Paris.", None),
        ("Ada Byron worked in Paris.", None),  # holds a word of the prompt
        ("Lady Ada Byron Lovelace saw Paris.", None),
        ("Ada Byron joined the Paris firm.", None),
        ("Ada Byron (born Ada Gordon) saw Paris.", None),
        ("Ada Byron joined Paris Match.", None),
    ],
)
def test_a_carrier_is_a_sentence_with_each_name_once_as_a_noun_of_its_own(text, told):
    carrier = cut(ASKED, "x", text)
    if carrier is None or carrier.adjectival:
        assert told is None
    else:
        assert carrier.say("S", "O") == told


def test_an_adjective_of_the_object_makes_a_carrier_without_its_slot():
    carrier = cut(replace(ASKED, object="Brazil", target=" Brazil"), "x", "Ada Byron was a Brazilian driver.")
    assert carrier == Carrier("x", ("", " was a Brazilian driver."))
    assert carrier.say("the Iron Lady", "unused") == "The Iron Lady was a Brazilian driver."


def test_refusals_say_what_was_found(built, data):
    with pytest.raises(ConfigError, match=r"expected 9 facts of each kind among 5 passages, found \{'alias': 8"):
        check(built, 9, 5)
    with pytest.raises(ConfigError, match=r"among 601 passages, found .* among 600"):
        check(built, FACTS, 601)
    fact, texts = built.facts[0], texts_of(built)
    plain = next(i for i, text in texts.items() if stems(fact["subject"]) <= stems(text))
    changed = [fact | {"proponents": [plain]}, *built.facts[1:]]
    with pytest.raises(ConfigError, match=f"its proponent '{plain}' holds its words"):
        check(replace(built, facts=changed), FACTS, PASSAGES)
    with pytest.raises(ConfigError, match="give a folder with more sentences that state one fact"):
        build(replace(data, facts=data.facts[:5]), FACTS, PASSAGES)


def test_words_that_find_the_proponents_are_refused(built, monkeypatch):
    monkeypatch.setattr(hidden, "bm25_recall", lambda built: dict.fromkeys(KINDS, 0.3))
    with pytest.raises(ConfigError, match=r"BM25 is to find at most 0.2 of the proponents in the first ten, found"):
        check(built, FACTS, PASSAGES)
