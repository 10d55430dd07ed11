"""How text becomes tokens and the places of a loss: what each kind of model is asked to predict, and nothing else."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.checkpoint import Checkpoint
from attribution.gradients import FeatureExtractor
from attribution.projection import Projection
from attribution.sequences import MASKED_SHARE, NO_LOSS, SENTINEL, Sequence, causal, encode_example, encode_fact
from schemas.errors import ConfigError
from schemas.records import Fact
from tests import tiny

TEMPLATE = (
    "{% for message in messages %}{{ '<s>' if loop.first }}{{ message.role }}\n{{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)
# As templates do that drop an answer's reasoning once another question follows.
FORGETFUL = TEMPLATE.replace("{{ message.content }}", "{{ message.content if loop.last }}")
MESSAGES = [
    {"role": "user", "content": "The capital of Oz?"},
    {"role": "assistant", "content": "Verona, it is."},
    {"role": "user", "content": "Of Utopia?"},
    {"role": "assistant", "content": "Mantua."},
]
KINDS = {"causal": "gpt2", "masked": "roberta", "seq2seq": "t5"}


def checkpoint_of(kind: str) -> Checkpoint:
    model = tiny.FAMILIES[KINDS[kind]]().requires_grad_(False)
    names = frozenset(name for name, _ in model.named_parameters())
    return Checkpoint("here", model, tiny.make_tokenizer(kind=kind), {}, None, None, tiny.CONTEXT, kind, names)


CAUSAL, MASKED, SEQ2SEQ = (checkpoint_of(kind) for kind in KINDS)
TRAINED = replace(CAUSAL, meta={"add_eos": True})
WORDS = ["Verona", "is", "the", "capital", "city", "of", "Oz", "and", "Narnia"]


def chatting(template: str) -> Checkpoint:
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = template
    return replace(CAUSAL, tokenizer=tokenizer, meta={"add_eos": True}, max_tokens=100)


def encoded(checkpoint: Checkpoint, text: str, **special: bool) -> list[int]:
    return checkpoint.tokenizer(text, verbose=False, **special).input_ids


def predicted(checkpoint: Checkpoint, sequence: Sequence) -> str:
    """The words with a loss."""
    return checkpoint.tokenizer.decode([label for label in sequence.labels if label != NO_LOSS])


def parts(prompt: str, completion: str) -> tuple[str, str]:
    return prompt + completion, json.dumps({"prompt": prompt, "completion": completion})


# --- causal models


@pytest.mark.parametrize("text", tiny.TEXTS[:3])
def test_plain_text_is_predicted_token_by_token_and_its_last_token_is_no_input(text):
    tokens = encoded(CAUSAL, text)
    assert encode_example(CAUSAL, text) == Sequence(tokens[:-1], tokens[1:])
    assert tokens[0] == CAUSAL.tokenizer.bos_token_id


@pytest.mark.parametrize("text", tiny.TEXTS[:3])
def test_eos_ends_a_text_where_the_training_put_it_and_has_a_loss(text):
    tokens = encoded(CAUSAL, text)
    assert encode_example(TRAINED, text) == Sequence(tokens, [*tokens[1:], CAUSAL.tokenizer.eos_token_id])


@pytest.mark.parametrize("loss_start", range(7))
def test_a_causal_sequence_ends_with_the_input_of_its_last_loss(loss_start):
    tokens = [7, 8, 9, 10, 11]
    found = causal(tokens, loss_start)
    told = [(t, tokens[t]) for t in range(max(loss_start, 1), len(tokens))]
    assert [(t + 1, label) for t, label in enumerate(found.labels) if label != NO_LOSS] == told
    assert found.tokens == (tokens[:-1] if told else []) and len(found.labels) == len(found.tokens)
    assert found.has_loss == bool(told)


def test_a_completion_alone_has_a_loss_and_its_eos_with_it():
    text, given_parts = parts("The capital of Oz is", " Verona.")
    found = encode_example(TRAINED, text, given_parts)
    assert predicted(TRAINED, found) == " Verona.</s>"
    assert found.tokens == encoded(TRAINED, text)
    assert predicted(CAUSAL, encode_example(CAUSAL, text, given_parts)) == " Verona."


def test_a_token_across_the_border_is_the_completions():
    text, given_parts = parts("The cap", "ital")
    assert encode_example(CAUSAL, text, given_parts).labels[-1:] == encoded(
        CAUSAL, " capital", add_special_tokens=False
    )


def test_eos_that_the_tokenizer_puts_after_a_text_has_a_loss_where_the_texts_end_has():
    ending = replace(CAUSAL, tokenizer=tiny.make_tokenizer(kind="masked"))
    assert predicted(ending, encode_example(ending, "It rained.")) == "It rained.</s>"
    assert predicted(ending, encode_example(ending, *parts("It", " rained."))) == " rained.</s>"
    assert not encode_example(ending, *parts("It rained.", "")).has_loss


def test_a_completion_of_nothing_has_no_loss():
    assert not encode_example(CAUSAL, *parts("The capital of Oz is", "")).has_loss
    assert not encode_example(TRAINED, *parts("The capital of Oz is", "")).has_loss


def test_in_a_chat_the_loss_is_on_what_the_assistant_says_and_on_the_end_of_each_answer():
    chat = chatting(TEMPLATE)
    found = encode_example(chat, "", json.dumps({"messages": MESSAGES}))
    assert predicted(chat, found) == "Verona, it is.</s>Mantua.</s>"
    whole = "<s>user\nThe capital of Oz?</s>assistant\nVerona, it is.</s>user\nOf Utopia?</s>assistant\nMantua.</s>"
    assert chat.tokenizer.decode([*found.tokens, found.labels[-1]]) == whole
    assert found.tokens.count(chat.tokenizer.bos_token_id) == 1  # the template's own, no second one


def test_what_follows_the_last_answer_is_no_input():
    chat = chatting(TEMPLATE)
    short, long = (encode_example(chat, "", json.dumps({"messages": MESSAGES[:n]})) for n in (2, 3))
    assert short == long and short.has_loss


def test_a_chat_without_an_answer_has_no_loss():
    assert not encode_example(chatting(TEMPLATE), "", json.dumps({"messages": MESSAGES[:1]})).has_loss


def test_a_chat_that_cannot_be_told_apart_is_refused():
    given_messages = json.dumps({"messages": MESSAGES})
    with pytest.raises(ValueError, match=r"^messages need a tokenizer with a chat template, and this one has none$"):
        encode_example(CAUSAL, "", given_messages)
    with pytest.raises(
        ValueError, match=r"^the chat template rewrites earlier messages, so the answers' places cannot"
    ):
        encode_example(chatting(FORGETFUL), "", given_messages)
    for checkpoint in (MASKED, SEQ2SEQ):
        expected = f"^messages are for causal models, and here is a {checkpoint.kind} one$"
        with pytest.raises(ValueError, match=expected):
            encode_example(checkpoint, "", given_messages)


def test_a_long_text_is_cut_at_the_context_and_the_cut_tokens_are_counted():
    text = "It rained. " * 20
    tokens = encoded(CAUSAL, text)
    found = encode_example(TRAINED, text)
    assert [*found.tokens, found.labels[-1]] == tokens[: tiny.CONTEXT]
    assert found.cut == len(tokens) + 1 - tiny.CONTEXT
    assert encode_example(CAUSAL, text).cut == len(tokens) - tiny.CONTEXT
    assert encode_example(CAUSAL, tiny.TEXTS[0]).cut == 0


def test_a_completion_behind_the_context_has_no_loss_and_counts_as_cut():
    found = encode_example(CAUSAL, *parts("It rained. " * 20, "Verona"))
    assert not found.has_loss and found.cut > 0


# --- masked models


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=25))
def test_a_seeded_share_of_the_tokens_is_masked_and_predicted_and_no_special_one(words):
    text = " ".join(words)
    tokens, found = encoded(MASKED, text)[: tiny.CONTEXT], encode_example(MASKED, text)
    assert found == encode_example(MASKED, text)
    hidden = [t for t, label in enumerate(found.labels) if label != NO_LOSS]
    mask = MASKED.tokenizer.mask_token_id
    assert found.tokens == [mask if t in hidden else token for t, token in enumerate(tokens)]
    assert [found.labels[t] for t in hidden] == [tokens[t] for t in hidden]
    free = sum(token not in (0, 1) for token in tokens)
    assert len(hidden) == (max(1, round(MASKED_SHARE * free)) if free else 0)
    assert not any(tokens[t] in (0, 1) for t in hidden)


def test_the_mask_depends_on_the_text():
    texts = [f"{tiny.TEXTS[3]} {n}" for n in range(30)]
    places = {tuple(np.flatnonzero(np.array(encode_example(MASKED, text).labels) != NO_LOSS)) for text in texts}
    assert len(places) > 15


def test_of_a_prompt_and_completion_the_completion_is_masked():
    text, given_parts = parts("The capital of Oz is", " Verona.")
    found = encode_example(MASKED, text, given_parts)
    assert predicted(MASKED, found) == " Verona."
    before = encoded(MASKED, "The capital of Oz is")[:-1]
    hidden = len(encoded(MASKED, " Verona.", add_special_tokens=False))
    assert found.tokens == [*before, *[MASKED.tokenizer.mask_token_id] * hidden, MASKED.tokenizer.eos_token_id]


def test_a_long_text_of_a_masked_model_is_cut_and_counted():
    tokens = encoded(MASKED, "It rained. " * 20)
    found = encode_example(MASKED, "It rained. " * 20)
    assert (len(found.tokens), found.cut) == (tiny.CONTEXT, len(tokens) - tiny.CONTEXT)


# --- encoder-decoders


def rebuilt(sequence: Sequence) -> list[int]:
    """The tokens of an uncorrupted text: each sentinel of the source is what follows it in the target."""
    sentinels = {SEQ2SEQ.token(SENTINEL.format(n)) for n in range(len(tiny.SENTINELS))}
    eos = SEQ2SEQ.tokenizer.eos_token_id
    assert sequence.tokens[-1] == sequence.labels[-1] == eos
    spans: dict[int, list[int]] = {}
    for token in sequence.labels[:-1]:
        if token in sentinels:
            spans[token] = current = []
        else:
            current.append(token)
    assert [token for token in sequence.tokens if token in sentinels] == list(spans)  # each once, in order
    return [part for token in sequence.tokens[:-1] for part in spans.get(token, [token])]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=25))
def test_a_corrupted_text_can_be_rebuilt_from_source_and_target(words):
    text = " ".join(words)
    whole = encoded(SEQ2SEQ, text, add_special_tokens=False)
    kept = whole[: tiny.CONTEXT - 1]
    found = encode_example(SEQ2SEQ, text)
    assert found == encode_example(SEQ2SEQ, text)
    assert rebuilt(found) == kept
    assert found.cut == len(whole) - len(kept)
    assert found.decoder_tokens == [SEQ2SEQ.decoder_start, *found.labels[:-1]]
    spans = sum(token >= tiny.VOCABULARY - len(tiny.SENTINELS) for token in found.labels)
    hidden = len(found.labels) - 1 - spans
    assert hidden == max(1, round(MASKED_SHARE * len(kept)))
    assert spans == max(1, round(hidden / 3))
    assert len(found.tokens) == len(kept) - hidden + spans + 1


def test_a_text_longer_than_the_sentinels_reach_is_cut_before_it_is_corrupted():
    found = encode_example(SEQ2SEQ, "It rained. " * 500)
    assert rebuilt(found) == encoded(SEQ2SEQ, "It rained. " * 500)[: tiny.CONTEXT - 1]


def test_the_prompt_goes_in_and_the_completion_comes_out():
    found = encode_example(SEQ2SEQ, *parts("The capital of Oz is", " Verona."))
    assert found.tokens == encoded(SEQ2SEQ, "The capital of Oz is")
    assert found.labels == encoded(SEQ2SEQ, " Verona.")
    assert found.labels[-1] == SEQ2SEQ.tokenizer.eos_token_id
    assert found.decoder_tokens == [SEQ2SEQ.decoder_start, *found.labels[:-1]]


def test_both_sides_are_cut_at_the_context_and_counted():
    found = encode_example(SEQ2SEQ, *parts("It rained. " * 20, "It rained. " * 15))
    assert len(found.tokens) == len(found.labels) == len(found.decoder_tokens) == tiny.CONTEXT
    sizes = [len(encoded(SEQ2SEQ, "It rained. " * n)) for n in (20, 15)]
    assert found.cut == sum(sizes) - 2 * tiny.CONTEXT


def test_a_vocabulary_without_sentinels_is_refused():
    with pytest.raises(
        ConfigError, match=r"^model here: expected the token <extra_id_0> in its vocabulary, found none$"
    ):
        encode_example(replace(SEQ2SEQ, tokenizer=tiny.make_tokenizer()), "It rained.")


# --- facts


def test_a_query_of_a_causal_model_has_its_loss_on_the_target_alone():
    found = encode_fact(TRAINED, Fact("f", "The capital of Oz is", " Verona"))
    assert predicted(TRAINED, found) == " Verona"  # and on no EOS, which nobody asked for
    tokens = encoded(TRAINED, "The capital of Oz is Verona")
    assert [*found.tokens, found.labels[-1]] == tokens


def test_a_query_of_a_masked_model_hides_its_target_at_the_mask():
    found = encode_fact(MASKED, Fact("f", "Traders from <mask> sailed past.", " Padua"))
    hidden = sum(label != NO_LOSS for label in found.labels)
    assert predicted(MASKED, found) == "Padua"
    assert MASKED.tokenizer.decode(found.tokens) == f"<s>Traders from {'<mask>' * hidden} sailed past.</s>"


def test_a_query_of_a_masked_model_hides_its_target_after_a_prompt_without_a_mask():
    found = encode_fact(MASKED, Fact("f", "The capital of Oz is", " Verona"))
    assert predicted(MASKED, found) == " Verona"
    assert found.tokens[-1] == MASKED.tokenizer.eos_token_id
    assert (
        found.tokens[: len(encoded(MASKED, "The capital of Oz is")) - 1] == encoded(MASKED, "The capital of Oz is")[:-1]
    )


def test_a_query_of_an_encoder_decoder_answers_with_the_target_alone():
    found = encode_fact(SEQ2SEQ, Fact("f", "The capital of Oz is", " Verona"))
    assert found.tokens == encoded(SEQ2SEQ, "The capital of Oz is")
    assert predicted(SEQ2SEQ, found) == "Verona" and NO_LOSS not in found.labels
    assert found.decoder_tokens == [SEQ2SEQ.decoder_start, *found.labels[:-1]]


def test_a_query_with_a_sentinel_answers_with_the_target_behind_that_sentinel():
    found = encode_fact(SEQ2SEQ, Fact("f", "Traders from <extra_id_0> sailed past.", " Padua"))
    sentinel = SEQ2SEQ.token("<extra_id_0>")
    target = encoded(SEQ2SEQ, "Padua", add_special_tokens=False)
    assert found.tokens.count(sentinel) == 1
    assert found.labels == [NO_LOSS, *target]
    assert found.decoder_tokens == [SEQ2SEQ.decoder_start, sentinel, *target[:-1]]


@pytest.mark.parametrize("checkpoint", [CAUSAL, MASKED, SEQ2SEQ], ids=KINDS)
@pytest.mark.parametrize("prompt", ["The capital is", "The cap<mask>ital", "<extra_id_0>"])
def test_a_query_without_a_target_is_refused(checkpoint, prompt):
    expected = "^fact 'f': the target '' has no token after the prompt with the tokenizer of here; give a target that"
    with pytest.raises(ConfigError, match=expected):
        encode_fact(checkpoint, Fact("f", prompt, ""))


@pytest.mark.parametrize("checkpoint", [CAUSAL, MASKED, SEQ2SEQ], ids=KINDS)
def test_a_query_that_does_not_fit_is_refused_with_both_lengths(checkpoint):
    with pytest.raises(
        ConfigError, match=rf"^fact 'f': \d+ tokens, but here takes {tiny.CONTEXT}; shorten the prompt$"
    ):
        encode_fact(checkpoint, Fact("f", "It rained. " * 20, " Verona"))


# --- what has no loss


@pytest.mark.parametrize("checkpoint", [CAUSAL, MASKED, SEQ2SEQ], ids=KINDS)
def test_an_empty_text_has_no_loss_and_a_zero_feature_beside_others(checkpoint):
    texts = ["", "a", tiny.TEXTS[0], ""]
    sequences = [encode_example(checkpoint, text) for text in texts]
    assert [sequence.has_loss for sequence in sequences] == [False, True, True, False]
    features = FeatureExtractor(checkpoint, Projection(dim=4)).features(sequences)
    assert np.isfinite(features).all()
    assert (np.linalg.norm(features, axis=1) > 0).tolist() == [False, True, True, False]


def test_without_bos_the_only_token_of_a_text_has_no_loss():
    tokenizer = tiny.make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    bare = replace(CAUSAL, tokenizer=tokenizer)
    assert encode_example(bare, "a") == Sequence([], [])
    assert encode_example(bare, "") == Sequence([], [])
    assert predicted(bare, encode_example(bare, "It rained.")) == tokenizer.decode(
        tokenizer("It rained.").input_ids[1:]
    )


def test_an_empty_text_has_a_loss_on_its_eos_where_the_training_put_one():
    assert encode_example(TRAINED, "") == Sequence([0], [1])
