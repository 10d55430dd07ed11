"""Taking spans out of a record's text: in the text, and in the JSON line that the record stands in.

A line keeps every byte but those of the spans: the text's JSON string is found in it, and characters of the decoded
value are mapped to places in the raw string, escapes included, so that nothing is parsed and dumped again. The text is
made of parts (pipelines/corpus.py): the text field, `prompt` and `completion`, or the contents of `messages`. A span
over two parts is taken out of both; one that holds what stands in no part (the "role: " of a chat) is refused.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from json.decoder import scanstring
from typing import Any

REDACTED = "[REDACTED]"
Spans = Sequence[tuple[int, int]]
# One match, one character of the value; a pair of surrogates is one character.
_ESCAPE = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.")
_SPACE = re.compile(r"[ \t\n\r]*")
_decode = json.JSONDecoder().raw_decode


def redact_text(text: str, spans: Spans) -> str:
    """The text with REDACTED in the place of each span; raises ValueError for a span beyond its end."""
    if spans[-1][1] > len(text):
        raise ValueError(f"the span {list(spans[-1])} ends after the text, which has {len(text)} characters")
    for start, end in reversed(spans):
        text = text[:start] + REDACTED + text[end:]
    return text


def split_spans(spans: Spans, parts: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """For each part (begin and end in the text) the spans inside it, counted from its begin.

    Raises ValueError where a span holds a character of no part.
    """
    inside: list[list[tuple[int, int]]] = [[] for _ in parts]
    for start, end in spans:
        held = 0
        for number, (begin, stop) in enumerate(parts):
            first, last = max(start, begin), min(end, stop)
            if first < last:
                inside[number].append((first - begin, last - begin))
                held += last - first
        if held < end - start:
            raise ValueError(
                f"the span [{start}, {end}] holds characters that stand in no field of the record (a chat's roles and "
                "line ends are added to its text); end the span at the end of what is said"
            )
    return inside


def redact_fields(fields: dict[str, Any], text_field: str, spans: Spans) -> dict[str, str]:
    """The new value of each string field that a span is in, of a record with plain text or prompt and completion."""
    if fields.get(text_field) is not None:
        return {text_field: redact_text(fields[text_field], spans)}
    if fields.get("messages") is not None:
        raise ValueError("the span is in 'messages', which can be redacted in JSONL alone; remove the record instead")
    cut = len(fields["prompt"])
    inside = split_spans(spans, [(0, cut), (cut, cut + len(fields["completion"]))])
    both = zip(("prompt", "completion"), inside, strict=True)
    return {name: redact_text(fields[name], found) for name, found in both if found}


def redact_line(line: bytes, text_field: str, spans: Spans) -> bytes:
    """The JSON line of a well-formed record with REDACTED in the place of each span of its text, else as it was.

    Raises ValueError, with the reason, for a span that is not all text, and for a field that stands twice in an object:
    what the first holds would stay.
    """
    text = line.decode("utf-8")
    strings = _strings(text, text_field)
    ends = list(accumulate(len(value) + gap for value, _, gap in strings))
    parts = [(end - len(value), end) for (value, _, _), end in zip(strings, ends, strict=True)]
    if spans[-1][1] > ends[-1]:
        raise ValueError(f"the span {list(spans[-1])} ends after the text, which has {ends[-1]} characters")
    inside = split_spans(spans, parts)
    cuts = []
    for (value, begin, _), found in zip(strings, inside, strict=True):
        if found:
            places = _places(text, begin, value)
            cuts += [(places(start), places(end)) for start, end in found]
    for start, end in sorted(cuts, reverse=True):  # a completion may stand before its prompt
        text = text[:start] + REDACTED + text[end:]
    return text.encode("utf-8")


def _strings(text: str, text_field: str) -> list[tuple[str, int, int]]:
    """(value, place of its opening quote in the line, characters of the text before it that are in no part) of each."""
    top = _members(text, _SPACE.match(text, len(text) - len(text.lstrip("\ufeff"))).end())
    held = {name: value for name, (value, _) in top.items() if value is not None}
    if text_field in held:
        return [(*_once(top, text_field), 0)]
    if "messages" in held:
        _, begin = _once(top, "messages")
        strings, gap = [], 0
        for place in _items(text, begin):
            message = _members(text, place)
            role, _ = _once(message, "role")
            strings.append((*_once(message, "content"), gap + len(role) + len(": ")))
            gap = len("\n")
        return strings
    return [(*_once(top, name), 0) for name in ("prompt", "completion")]


class _Twice(tuple):
    """A field that stands more than once in its object."""


def _once(members: dict[str, tuple[Any, int]], name: str) -> tuple[Any, int]:
    if isinstance(members[name], _Twice):
        raise ValueError(f"the field '{name}' stands twice in its object, and only the last would be redacted; mend it")
    return members[name]


def _members(text: str, begin: int) -> dict[str, tuple[Any, int]]:
    """The (value, place) of each member of the object at `begin`, escaped keys decoded, the last of equal keys."""
    found: dict[str, tuple[Any, int]] = {}
    place = _SPACE.match(text, begin + 1).end()
    while text[place] != "}":
        name, place = scanstring(text, place + 1, True)
        place = _SPACE.match(text, _SPACE.match(text, place).end() + 1).end()
        value, end = _decode(text, place)
        found[name] = _Twice((value, place)) if name in found else (value, place)
        place = _after_item(text, end)
    return found


def _items(text: str, begin: int) -> Iterator[int]:
    """The place of each item of the array at `begin`."""
    place = _SPACE.match(text, begin + 1).end()
    while text[place] != "]":
        yield place
        place = _after_item(text, _decode(text, place)[1])


def _after_item(text: str, end: int) -> int:
    """The place of what follows an item: the next one, behind its comma, or the closing bracket."""
    end = _SPACE.match(text, end).end()
    return _SPACE.match(text, end + 1).end() if text[end] == "," else end


def _places(text: str, begin: int, value: str) -> Callable[[int], int]:
    """Maps a character's number in the string's value to its place in the text, where the string's quote is `begin`."""
    _, end = scanstring(text, begin + 1, True)
    numbers: list[int] = []  # of the characters that are written as an escape
    extra = [0]  # characters that the first n escapes take beyond the one that each stands for
    for escape in _ESCAPE.finditer(text, begin + 1, end - 1):
        numbers.append(escape.start() - begin - 1 - extra[-1])
        extra.append(extra[-1] + len(escape.group()) - 1)
    assert len(value) == end - begin - 2 - extra[-1], "an escape of the string was counted wrongly"
    return lambda number: begin + 1 + number + extra[bisect_left(numbers, number)]
