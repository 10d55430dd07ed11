"""Facts from JSONL: the three ways to ask, and what is refused.

A row is one of
- `prompt` + `target` (`target` continues `prompt`; the space between them may stand in either or be left out),
- `subject` + `relation` + `object`, with a `template` such as "The capital of {subject} is {object}." (without one:
  "{subject} {relation} {object}"),
- `sentence` + `explain`: a plain sentence and the part of it to explain (its last occurrence).
With `id` (or `fact_id`), and optional `aliases` of the target and `proponents`.
"""

import json
from typing import Any

from schemas.errors import ConfigError
from schemas.records import Fact


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


def _prompt_and_target(row: dict[str, Any]) -> tuple[str, str]:
    def text(name: str) -> str:
        value = row.get(name)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"field '{name}' must be a non-empty string, found {value!r}")
        value.encode()  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
        return value

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


def fact_from_row(row: dict[str, Any]) -> Fact:
    """The fact in a row. Raises ValueError naming the field that is missing or wrong."""
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    fact_id = row.get("id", row.get("fact_id"))
    if not isinstance(fact_id, str) or not fact_id:
        raise ValueError(f"field 'id' (or 'fact_id') must be a non-empty string, found {fact_id!r}")
    prompt, target = _prompt_and_target(row)
    for name in ("aliases", "proponents"):
        value = row.get(name) or []
        if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
            raise ValueError(f"field '{name}' must be a list of strings that are not empty, found {value!r}")
    proponents = row.get("proponents")
    return Fact(
        id=fact_id,
        prompt=prompt,
        target=target,
        subject=row.get("subject") or "",
        relation=row.get("relation") or "",
        object=row.get("object") or "",
        aliases=tuple(row.get("aliases") or ()),
        proponents=None if proponents is None else tuple(proponents),
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


def text_query(fact: Fact, kind: str) -> str:
    """What the text signals are asked: `subject_object`, `prompt_target`, or `auto`, the first where it is possible.

    Raises ConfigError where `subject_object` is asked of a fact that lacks one of them.
    """
    if kind == "prompt_target" or (kind == "auto" and not (fact.subject and fact.object)):
        return fact.prompt + fact.target
    if not (fact.subject and fact.object):
        raise ConfigError(f"fact {fact.id!r}: --text_query subject_object needs its subject and object; give both")
    return f"{fact.subject} {fact.object}"
