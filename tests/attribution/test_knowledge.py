"""What a model knows: of one sentence that it was trained on by heart, and of others that it never saw."""

from dataclasses import replace

import pytest
import torch

from attribution.checkpoint import Checkpoint, load_checkpoint
from attribution.knowledge import Answer, Paraphrase, answer, answers, greedy_continuation
from attribution.training import train
from schemas.records import Fact
from tests import tiny

SENTENCES = ["The capital of Oz is Verona.", "日本の首都は東京"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Checkpoint:
    """A model that has two sentences by heart."""
    tokenizer = tiny.make_tokenizer()
    examples = [(s, [*tokenizer(s).input_ids, tokenizer.eos_token_id]) for s in SENTENCES]
    recipe = replace(tiny.RECIPE, width=32, epochs=60, batches_per_epoch=1, num_checkpoints=1, tokens_per_batch=20.0)
    [folder] = train(examples, recipe, tokenizer, tmp_path_factory.mktemp("learned"))
    return load_checkpoint(str(folder))


KNOWN = Fact("f", "The capital of Oz is", " Verona")


def test_a_fact_that_was_learned_is_known_and_said(learned):
    found = answer(learned, KNOWN)
    assert (found.fact_id, found.known, found.said) == ("f", True, " Verona.")
    assert found.log_probability > -1.0


def test_a_fact_that_was_not_learned_is_not_known_and_less_probable(learned):
    found = answer(learned, replace(KNOWN, target=" Mantua"))
    assert (found.known, found.said) == (False, " Verona.")
    assert found.log_probability < answer(learned, KNOWN).log_probability - 3


def test_a_target_is_known_only_if_all_its_tokens_are(learned):
    assert not answer(learned, replace(KNOWN, target=" Veronese")).known
    assert answer(learned, replace(KNOWN, target=" Verona.")).known


def test_log_probability_is_the_sum_over_the_targets_tokens(learned):
    query = learned.encode_fact(KNOWN)
    logits = learned.model(input_ids=torch.tensor([query.tokens])).logits[0].double()
    expected = sum(
        float(logits[t - 1, query.tokens[t]] - logits[t - 1].logsumexp(0))
        for t in range(query.target_start, len(query.tokens))
    )
    assert answer(learned, KNOWN).log_probability == pytest.approx(expected, abs=1e-4)
    conditional = answer(learned, Fact("f", "", KNOWN.prompt + KNOWN.target)).log_probability
    prompt = answer(learned, Fact("f", "", KNOWN.prompt)).log_probability
    assert conditional - prompt == pytest.approx(expected, abs=1e-4)


def test_an_alias_that_is_said_counts_as_known_and_leaves_the_targets_probability(learned):
    wrong = replace(KNOWN, target=" Mantua")
    by_alias = answer(learned, replace(wrong, aliases=("Padua", "Verona")))
    assert by_alias.known
    assert by_alias.log_probability == answer(learned, wrong).log_probability
    assert answer(learned, replace(wrong, aliases=("Verona", "Padua"))).known
    assert answer(learned, replace(KNOWN, aliases=("Padua",))).known
    assert not answer(learned, replace(wrong, aliases=("Padua",))).known


@pytest.mark.parametrize(
    ("prompt", "alias"),
    [("日本の首都は", "東京"), ("The capital of Oz is ", "Verona"), ("The capital of Oz is", " Verona")],
)
def test_an_alias_is_spaced_as_a_target_is(learned, prompt, alias):
    assert answer(learned, Fact("f", prompt, alias)).known
    assert answer(learned, Fact("f", prompt, "x", aliases=(alias,))).known


def test_continuation_stops_at_the_end_of_text_at_the_limit_and_at_the_context(learned):
    assert greedy_continuation(learned, "The capital of Oz is Verona.") == ""
    said = greedy_continuation(learned, "The", max_new_tokens=2)
    assert " capital of Oz is Verona.".startswith(said) and len(learned.tokenizer(said).input_ids) - 1 == 2
    prompt = learned.tokenizer.decode(learned.tokenizer("The capital of Oz is").input_ids[1:])
    tight = replace(learned, max_tokens=len(learned.tokenizer(prompt).input_ids) + 1)
    assert len(learned.tokenizer(greedy_continuation(tight, prompt)).input_ids) - 1 == 1


def test_answers_come_in_order_one_a_fact_with_progress(learned):
    facts = [replace(KNOWN, id="b"), replace(KNOWN, id="a", target=" Mantua")]
    calls: list[int] = []
    found = answers(learned, facts, calls.append)
    assert found == [answer(learned, fact) for fact in facts]
    assert ([a.fact_id for a in found], calls) == (["b", "a"], [1, 1])


def test_row_of_an_answer_holds_all_its_fields():
    row = {"fact_id": "f", "known": True, "log_probability": -0.5, "said": " x"}
    assert Answer("f", True, -0.5, " x").to_row() == row


def test_each_of_several_prompts_is_asked_by_itself_and_the_first_stays_the_answer(learned):
    variants = (("The capital of Oz is", " Verona"), ("It rained in", " Verona"), ("The capital of", " Oz"))
    found = answer(learned, replace(KNOWN, variants=variants))
    assert replace(found, paraphrases=()) == answer(learned, KNOWN)
    expected = [answer(learned, Fact("f", prompt, target)) for prompt, target in variants]
    assert [(p.known, p.log_probability) for p in found.paraphrases] == [(a.known, a.log_probability) for a in expected]
    assert [p.prompt for p in found.paraphrases] == [prompt for prompt, _ in variants]
    assert found.prompts_known == [True, False, True]
    assert answer(learned, KNOWN).prompts_known == [True]


def test_a_prompt_with_several_targets_is_one_that_is_known_by_any_of_them(learned):
    variants = tuple((prompt, target) for prompt in ("The capital of Oz is", "It") for target in (" Mantua", " Verona"))
    found = answer(learned, Fact("f", *variants[0], variants=variants))
    assert not found.known and found.prompts_known == [True, False]
    one_prompt = answer(learned, Fact("f", *variants[0], variants=variants[:2]))
    assert one_prompt.paraphrases == () and not one_prompt.known


def test_row_of_an_answer_with_paraphrases_holds_them():
    row = Answer("f", True, -0.5, " x", (Paraphrase("a", True, -0.5), Paraphrase("b", False, -2.0))).to_row()
    assert row["paraphrases"][1] == {"prompt": "b", "known": False, "log_probability": -2.0}
