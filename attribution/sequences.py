"""How examples and facts become token sequences with the positions where a loss is taken.

An example is plain text (a loss everywhere), `prompt` + `completion`, or chat `messages` (a loss on the completion, on
what the assistant says). What the model is trained to do decides the rest:

- causal: the next token; BOS and EOS as in training;
- seq2seq: the prompt goes in, the completion comes out; plain text is corrupted as T5 does it (arXiv 1910.10683: 15 %
  of the tokens in spans of 3 on average, sentinels in their place);
- masked: 15 % of the tokens are masked (BERT, arXiv 1810.04805, but always by the mask token).

A query takes its loss on the target's tokens alone. What is drawn at random is seeded by the text itself, so that an
example has one gradient, whatever its place in the corpus.
"""

import hashlib
import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schemas.errors import ConfigError
from schemas.records import Fact

if TYPE_CHECKING:
    from attribution.checkpoint import Checkpoint

NO_LOSS = -100
MASKED_SHARE, MEAN_SPAN = 0.15, 3.0
SENTINEL = "<extra_id_{}>"


@dataclass(frozen=True)
class Sequence:
    """`labels[t]` is what output t is to predict, or NO_LOSS. Outputs are those of `decoder_tokens` where given."""

    tokens: list[int]
    labels: list[int]
    decoder_tokens: list[int] | None = None
    cut: int = 0

    @property
    def has_loss(self) -> bool:
        return any(label != NO_LOSS for label in self.labels)

    @property
    def size(self) -> int:
        return len(self.tokens) + len(self.decoder_tokens or ())


def causal(tokens: list[int], loss_start: int = 1, cut: int = 0) -> Sequence:
    """Next-token prediction of the tokens from `loss_start` (at least 1: nothing predicts the first) on."""
    return _next_tokens(tokens, [t >= loss_start for t in range(len(tokens))], cut)


def _next_tokens(tokens: list[int], told: list[bool], cut: int) -> Sequence:
    """Only what the last told token is predicted from goes in: the last token itself predicts nothing, and no other
    sees it (2 % of the cost of a sentence of 46 tokens)."""
    end = max((t for t in range(1, len(tokens)) if told[t]), default=0)
    return Sequence(tokens[:end], [tokens[t] if told[t] else NO_LOSS for t in range(1, end + 1)], cut=cut)


def _seeded(text: str) -> random.Random:
    return random.Random(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def chat_text(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    """(the chat as the model's template writes it, the character spans that the assistant says).

    A span begins where the template prompts for an answer and ends with the message. Raises ValueError where the
    tokenizer has no template, or one that writes an earlier message anew when a later one follows.
    """
    if not tokenizer.chat_template:
        raise ValueError("messages need a tokenizer with a chat template, and this one has none")
    whole, spans = tokenizer.apply_chat_template(messages, tokenize=False), []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = ""
        if i:
            before = tokenizer.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True)
        after = tokenizer.apply_chat_template(messages[: i + 1], tokenize=False)
        if not (whole.startswith(before) and whole.startswith(after) and len(before) < len(after)):
            raise ValueError("the chat template rewrites earlier messages, so the answers' places cannot be told")
        spans.append((len(before), len(after)))
    return whole, spans


def _with_spans(
    checkpoint: "Checkpoint", text: str, spans: list[tuple[int, int]], special: bool, end: bool
) -> Sequence:
    """Tokens of the text with a loss on those that reach into one of the spans.

    With `special` the tokenizer's own special tokens stand around the text, with `end` the EOS of the training after
    it: what follows the text has a loss where its last character has.
    """
    encoded = checkpoint.tokenizer(
        text, add_special_tokens=special, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False
    )
    tokens, told, in_text = list(encoded["input_ids"]), [], False
    for (start, stop), added in zip(encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True):
        if special and added:
            told.append(in_text and bool(told) and told[-1])
        else:
            in_text = True
            told.append(any(start < span_end and stop > span_start for span_start, span_end in spans))
    if end and checkpoint.adds_eos:
        tokens, told = [*tokens, checkpoint.tokenizer.eos_token_id], [*told, told[-1] if in_text else True]
    cut, tokens = max(0, len(tokens) - checkpoint.max_tokens), tokens[: checkpoint.max_tokens]
    return _next_tokens(tokens, told, cut)


def _masked(checkpoint: "Checkpoint", text: str, prompt: str | None) -> Sequence:
    """A masked LM's example: a seeded share of the tokens, or all of the completion's, hidden."""
    tokenizer = checkpoint.tokenizer
    encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    tokens = list(encoded["input_ids"])[: checkpoint.max_tokens]
    offsets, special = encoded["offset_mapping"], encoded["special_tokens_mask"]
    free = [t for t in range(len(tokens)) if not special[t]]
    if prompt is None:
        count = min(len(free), max(1, round(MASKED_SHARE * len(free))))
        hidden = set(_seeded(text).sample(free, count))
    else:
        hidden = {t for t in free if offsets[t][1] > len(prompt)}
    return Sequence(
        [tokenizer.mask_token_id if t in hidden else token for t, token in enumerate(tokens)],
        [token if t in hidden else NO_LOSS for t, token in enumerate(tokens)],
        cut=len(encoded["input_ids"]) - len(tokens),
    )


def _from_to(
    checkpoint: "Checkpoint", source: list[int], labels: list[int], loss_start: int = 0, cut: int = 0
) -> Sequence:
    limit = checkpoint.max_tokens
    cut += max(0, len(source) - limit) + max(0, len(labels) - limit)
    source, labels = source[:limit], labels[:limit]
    decoder = [checkpoint.decoder_start, *labels[:-1]] if labels else []
    told = [label if t >= loss_start else NO_LOSS for t, label in enumerate(labels)]
    return Sequence(source, told, decoder, cut)


def _corrupted(checkpoint: "Checkpoint", text: str) -> Sequence:
    """T5's span corruption of a text, seeded by it."""
    tokenizer = checkpoint.tokenizer
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    whole = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    tokens = whole[: checkpoint.max_tokens - len(end)]  # cut first: no target asks for what the source lost
    hidden = min(len(tokens), max(1, round(MASKED_SHARE * len(tokens)))) if tokens else 0
    spans = max(1, round(hidden / MEAN_SPAN)) if hidden else 0
    draw = _seeded(text)
    # `hidden` tokens in `spans` spans, the others in the gaps around them: both cut at random places.
    cuts = sorted(draw.sample(range(1, hidden), spans - 1)) if spans else []
    lengths = [b - a for a, b in zip([0, *cuts], [*cuts, hidden], strict=True)] if spans else []
    shown = len(tokens) - hidden
    places = sorted(draw.randrange(shown + 1) for _ in lengths)
    source, target, at, taken = [], [], 0, 0
    for number, (place, length) in enumerate(zip(places, lengths, strict=True)):
        begin = place + taken
        source += [*tokens[at:begin], checkpoint.token(SENTINEL.format(number))]
        target += [checkpoint.token(SENTINEL.format(number)), *tokens[begin : begin + length]]
        at, taken = begin + length, taken + length
    cut = len(whole) - len(tokens)
    return _from_to(checkpoint, [*source, *tokens[at:], *end], [*target, *end] if tokens else [], cut=cut)


def encode_example(checkpoint: "Checkpoint", text: str, parts: str = "") -> Sequence:
    """The sequence of an example. `parts` is the JSON of its `prompt` and `completion`, or of its `messages`.

    Raises ValueError for a form that the model's kind or tokenizer does not take.
    """
    given = json.loads(parts) if parts else {}
    if "messages" in given:
        if checkpoint.kind != "causal":
            raise ValueError(f"messages are for causal models, and {checkpoint.path} is a {checkpoint.kind} one")
        rendered, spans = chat_text(checkpoint.tokenizer, given["messages"])
        return _with_spans(checkpoint, rendered, spans, special=False, end=False)
    prompt = given.get("prompt")
    if checkpoint.kind == "masked":
        return _masked(checkpoint, text, prompt)
    if checkpoint.kind == "seq2seq":
        if prompt is None:
            return _corrupted(checkpoint, text)
        tokenizer = checkpoint.tokenizer
        source, labels = tokenizer(prompt, verbose=False), tokenizer(text_target=given["completion"], verbose=False)
        return _from_to(checkpoint, source.input_ids, labels.input_ids)
    return _with_spans(checkpoint, text, [(len(prompt or ""), len(text))], special=True, end=True)


def _refuse_target(checkpoint: "Checkpoint", fact: Fact) -> ConfigError:
    return ConfigError(
        f"fact {fact.id!r}: the target {fact.target!r} has no token after the prompt with the tokenizer of "
        f"{checkpoint.path}; give a target that the model can say"
    )


def _fits(checkpoint: "Checkpoint", fact: Fact, size: int) -> None:
    if size > checkpoint.max_tokens:
        raise ConfigError(
            f"fact {fact.id!r}: {size} tokens, but {checkpoint.path} takes {checkpoint.max_tokens}; shorten the prompt"
        )


def _masked_fact(checkpoint: "Checkpoint", fact: Fact) -> Sequence:
    """The target hidden behind as many mask tokens: where the prompt has one, else after the prompt."""
    tokenizer, mask = checkpoint.tokenizer, checkpoint.tokenizer.mask_token
    before, found, after = fact.prompt.partition(mask)
    if found:
        text, start = before + fact.target.strip() + after, len(before)
        end = start + len(fact.target.strip())
    else:
        text, start = fact.prompt + fact.target, len(fact.prompt)
        end = len(text)
    encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    hidden = [
        not special and stop > start and begin < end
        for (begin, stop), special in zip(encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
    ]
    tokens = encoded["input_ids"]
    if start == end or not any(hidden):
        raise _refuse_target(checkpoint, fact)
    _fits(checkpoint, fact, len(tokens))
    return Sequence(
        [tokenizer.mask_token_id if h else token for h, token in zip(hidden, tokens, strict=True)],
        [token if h else NO_LOSS for h, token in zip(hidden, tokens, strict=True)],
    )


def _seq2seq_fact(checkpoint: "Checkpoint", fact: Fact) -> Sequence:
    """The prompt goes in, the target comes out; where the prompt holds a sentinel, after that sentinel."""
    sentinel = SENTINEL.format(0)
    target = checkpoint.tokenizer(fact.target.strip(), add_special_tokens=False).input_ids
    source = checkpoint.tokenizer(fact.prompt).input_ids
    if not target:
        raise _refuse_target(checkpoint, fact)
    _fits(checkpoint, fact, max(len(source), len(target) + 1))
    if sentinel in fact.prompt:
        return _from_to(checkpoint, source, [checkpoint.token(sentinel), *target], loss_start=1)
    return _from_to(checkpoint, source, target)


def encode_fact(checkpoint: "Checkpoint", fact: Fact) -> Sequence:
    """The sequence of a query, with a loss on the target's tokens alone.

    Raises ConfigError if the target has no token or the whole does not fit the model.
    """
    if checkpoint.kind == "masked":
        return _masked_fact(checkpoint, fact)
    if checkpoint.kind == "seq2seq":
        return _seq2seq_fact(checkpoint, fact)
    encoded = checkpoint.encode_fact(fact)
    return causal(encoded.tokens, encoded.target_start)
