"""Facts from JSONL: the ways to ask, and what is refused.

A row is one of
- `prompt` + `target` (`target` continues `prompt`; the space between them may stand in either or be left out),
- `subject` + `relation` + `object`, with a `template` such as "The capital of {subject} is {object}." (without one:
  "{subject} {relation} {object}"),
- `sentence` + `explain`: a plain sentence and the part of it to explain (its last occurrence),
- `prompts` for `prompt`, `targets` for `target`, or both: lists, of which every prompt is asked with every target,
- `variants`: a list of [prompt, target], as a fact with lists is written.
With `id` (or `fact_id`), optional `aliases` of the target, `proponents` and `embedding` (a vector, for an index of the
corpus' own vectors), and for lists `combine`: the scores of all
that is asked become their "mean" (where nothing is said) or their "max". So one fact may be asked in several wordings,
and one behaviour by several of its answers.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from typing import Any, get_args

from schemas.errors import ConfigError
from schemas.records import Combine, Fact

MAX_VARIANTS = 64


def _without_spaces(character: str) -> bool:
    """Whether the character's script puts no space between words: CJK, but not Hangul."""
    return ord(character) >= 0x2E80 and not 0xAC00 <= ord(character) <= 0xD7AF


def with_space(prompt: str, target: str) -> str:
    """The target with the space that belongs between two words, unless there is one or the script has none."""
    if not prompt or not target or _without_spaces(prompt[-1]) or _without_spaces(target[0]):
        return target
    word_ends = prompt[-1].isalnum() or prompt[-1] in ".,;:!?)]’”%"
    word_begins = target[0].isalnum() or target[0] in "\"'(“‘$€£#@+-−"
    return " " + target if word_ends and word_begins else target


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"field '{name}' must be a non-empty string, found {value!r}")
    value.encode()  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
    return value


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item.strip() for item in value)


def _prompt_and_target(row: dict[str, Any]) -> tuple[str, str]:
    def text(name: str) -> str:
        return _text(row, name)

    if "sentence" in row or "explain" in row:
        sentence, part = text("sentence"), text("explain").strip()
        start = sentence.rfind(part)
        if start < 0:
            raise ValueError(f"the part to explain, {part!r}, does not stand in the sentence {sentence!r}")
        prompt = sentence[:start].rstrip()
        return prompt, sentence[len(prompt) : start + len(part)]
    if "prompt" in row or "target" in row:
        prompt = text("prompt")
        return prompt, with_space(prompt, text("target"))
    if "subject" in row and "object" in row:
        subject, target = text("subject"), text("object")
        template = text("template") if "template" in row else "{subject} " + text("relation") + " {object}"
        if "{subject}" not in template.split("{object}")[0] or "{object}" not in template:
            raise ValueError(
                "the template must have {subject} before {object}, as a model is asked by what stands before the "
                f"target, found {template!r}"
            )
        prompt = template[: template.index("{object}")].replace("{subject}", subject).rstrip()
        return prompt, with_space(prompt, target)
    raise ValueError(
        "expected prompt + target, or subject + relation + object, or sentence + explain; found the fields "
        + (", ".join(sorted(row)) or "(none)")
    )


def _texts(row: dict[str, Any], one: str, several: str) -> list[str]:
    """The strings of the list field `several`, or the string of `one` where there is no list."""
    if row.get(several) is None:
        return [_text(row, one)]
    found = row[several]
    if not found or not _strings(found):
        raise ValueError(f"field '{several}' must be a list of at least one non-empty string, found {found!r}")
    if row.get(one) is not None:
        raise ValueError(f"expected '{one}' or '{several}', found both; put all of them into '{several}'")
    return found


def _pairs(row: dict[str, Any]) -> list[tuple[str, str]]:
    """The prompts and targets of a row's `variants`; `prompt` and `target`, where given, are the first one's."""
    found = row["variants"]
    if not found or not isinstance(found, list) or not all(_strings(pair) and len(pair) == 2 for pair in found):
        raise ValueError(f"field 'variants' must be a list of [prompt, target], non-empty strings, found {found!r}")
    for name, first in zip(("prompt", "target"), found[0], strict=True):
        if row.get(name) not in (None, first):
            raise ValueError(
                f"expected '{name}' to be that of the first variant, {first!r}, found {row[name]!r}; leave '{name}' out"
            )
    return [(prompt, target) for prompt, target in found]


def _variants(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Every (prompt, target) that a row asks, at least one."""
    lists = [name for name in ("variants", "prompts", "targets") if row.get(name) is not None]
    if not lists:
        return [_prompt_and_target(row)]
    rivals = ["sentence", "explain", *(("prompts", "targets") if lists[0] == "variants" else ())]
    found = [name for name in rivals if row.get(name) is not None]
    if found:
        raise ValueError(f"expected one way to ask, found '{lists[0]}' and {', '.join(found)}; take one of them out")
    pairs: Iterable[tuple[str, str]]
    if lists[0] == "variants":
        pairs, count = _pairs(row), len(row["variants"])
    else:  # counted before they are paired: two long lists would fill the memory
        prompts, targets = _texts(row, "prompt", "prompts"), _texts(row, "target", "targets")
        pairs, count = product(prompts, targets), len(prompts) * len(targets)
    if count > MAX_VARIANTS:
        raise ValueError(
            f"expected at most {MAX_VARIANTS} variants (prompts x targets), found {count}; make several facts"
        )
    spaced = [(prompt, with_space(prompt, target)) for prompt, target in pairs]
    for position, pair in enumerate(spaced):
        "".join(pair).encode()  # a lone surrogate is no text
        if pair in spaced[:position]:
            raise ValueError(f"expected variants that differ, found {''.join(pair)!r} twice; take one out")
    return spaced


def fact_from_row(row: dict[str, Any]) -> Fact:
    """The fact in a row. Raises ValueError naming the field that is missing or wrong."""
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    fact_id = row.get("id", row.get("fact_id"))
    if not isinstance(fact_id, str) or not fact_id:
        raise ValueError(f"field 'id' (or 'fact_id') must be a non-empty string, found {fact_id!r}")
    variants = _variants(row)
    for name in ("aliases", "proponents"):
        value = row.get(name) or []
        if not _strings(value):
            raise ValueError(f"field '{name}' must be a list of strings that are not empty, found {value!r}")
    combine = "mean" if row.get("combine") is None else row["combine"]
    if combine not in get_args(Combine):
        raise ValueError(f"field 'combine' must be 'mean' or 'max', found {combine!r}")
    proponents = row.get("proponents")
    embedding = row.get("embedding") or []
    numbers = isinstance(embedding, list) and all(isinstance(x, (int, float)) and math.isfinite(x) for x in embedding)
    if not numbers or (embedding and not any(embedding)):
        raise ValueError(f"field 'embedding' must be a list of finite numbers, not all zero, found {embedding!r:.80}")
    return Fact(
        id=fact_id,
        prompt=variants[0][0],
        target=variants[0][1],
        subject=row.get("subject") or "",
        relation=row.get("relation") or "",
        object=row.get("object") or "",
        aliases=tuple(row.get("aliases") or ()),
        proponents=None if proponents is None else tuple(proponents),
        variants=tuple(variants) if len(variants) > 1 else (),
        combine=combine,
        embedding=tuple(map(float, embedding)),
    )


def parse_facts(data: bytes, path: str) -> list[Fact]:
    """The facts of a JSONL file. Raises ConfigError with file and line: one bad question spoils the answer."""
    facts: dict[str, Fact] = {}
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            fact = fact_from_row(json.loads(line))
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: not a fact: {error}; mend the line or take it out") from error
        if fact.id in facts:
            raise ConfigError(f"{path}, line {number}: the fact id {fact.id!r} is used twice; ids must be unique")
        facts[fact.id] = fact
    if not facts:
        raise ConfigError(f"{path}: expected at least one fact (JSONL), found none")
    return list(facts.values())


def _has_one_target(fact: Fact) -> bool:
    return len({target.strip() for _, target in fact.variants}) <= 1


def asked(fact: Fact) -> list[Fact]:
    """A plain fact for each of its variants, in order, under the same id; the fact itself where it has none.

    They keep its subject and object only where all have one target: of several, the object names but one.
    """
    if not fact.variants:
        return [fact]
    plain = replace(fact, variants=(), combine="mean")
    if not _has_one_target(fact):
        plain = replace(plain, subject="", object="")
    return [replace(plain, prompt=prompt, target=target) for prompt, target in fact.variants]


def text_query(fact: Fact, kind: str) -> str:
    """What BM25 is asked: `subject_object`, `prompt_target`, or `auto`, the first where it is possible.

    Raises ConfigError where `subject_object` is asked of a fact that lacks one of them, or has several targets.
    """
    if kind == "subject_object" and not _has_one_target(fact):
        raise ConfigError(
            f"fact {fact.id!r}: --text_query subject_object needs one target, which the object names, found several; "
            "make several facts, or ask with --text_query auto"
        )
    if kind == "prompt_target" or (kind == "auto" and not (fact.subject and fact.object)):
        return fact.prompt + fact.target
    if not (fact.subject and fact.object):
        raise ConfigError(f"fact {fact.id!r}: --text_query subject_object needs its subject and object; give both")
    return f"{fact.subject} {fact.object}"


def sides_of(fact: Fact, kind: str) -> list[tuple[str, str]]:
    """The two sides of what `text_query` asks: subject and object, or prompt and target, each alias of it in turn."""
    by_subject = text_query(fact, kind) != fact.prompt + fact.target
    first, second = (fact.subject, fact.object) if by_subject else (fact.prompt, fact.target)
    return [(first, name) for name in (second, *fact.aliases)]
