"""Redaction: only the bytes of a span change, whatever the escapes around it; what cannot be done is refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.redaction import REDACTED, redact_fields, redact_line, redact_text, split_spans

MARK = REDACTED.encode()


def test_text_loses_its_spans_and_nothing_else():
    assert redact_text("call Ann or Bob now", [(5, 8), (12, 15)]) == "call [REDACTED] or [REDACTED] now"
    assert redact_text("Ann", [(0, 1), (1, 3)]) == "[REDACTED][REDACTED]"  # neighbours, not one span
    with pytest.raises(ValueError, match=r"the span \[2, 4\] ends after the text, which has 3 characters"):
        redact_text("Ann", [(2, 4)])


@pytest.mark.parametrize(
    "line, span, expected",
    [
        (b'{"text": "a secret b"}\n', (2, 8), b'{"text": "a @ b"}\n'),
        # Spacing, key order, numbers, a line end and other escapes stay as they are.
        (
            b' {"n" : 1e3,"text":"\\u0041 x\\/y", "z":[1.50]}\r\n',
            (2, 5),
            b' {"n" : 1e3,"text":"\\u0041 @", "z":[1.50]}\r\n',
        ),
        # A character outside the first plane is one, written as one escape pair or as itself.
        (b'{"text": "\\ud83d\\ude00ab\\ud83d\\uDE00"}', (1, 2), b'{"text": "\\ud83d\\ude00@b\\ud83d\\uDE00"}'),
        ('{"text": "😀ab"}'.encode(), (0, 2), b'{"text": "@b"}'),
        (b'{"text": "\\"\\\\\\n\\u00e9x"}', (2, 4), b'{"text": "\\"\\\\@x"}'),
        # The key is known by what it says; deeper objects with the same key are not it.
        (b'{"m": {"text": "no"}, "te\\u0078t": "yes"}', (0, 3), b'{"m": {"text": "no"}, "te\\u0078t": "@"}'),
        (b'\xef\xbb\xbf{"text": "bom"}', (0, 3), b'\xef\xbb\xbf{"text": "@"}'),
        (
            b'{"text": "all", "prompt": "p", "completion": "c"}',
            (0, 3),
            b'{"text": "@", "prompt": "p", "completion": "c"}',
        ),
        (
            b'{"text":null,"completion": "cd", "prompt": "ab"}',
            (1, 2),
            b'{"text":null,"completion": "cd", "prompt": "a@"}',
        ),
        (b'{"completion": "cd", "prompt": "ab"}', (1, 3), b'{"completion": "@d", "prompt": "a@"}'),
    ],
)
def test_a_line_keeps_every_byte_but_those_of_the_span(line, span, expected):
    assert redact_line(line, "text", [span]) == expected.replace(b"@", MARK)


CHAT = b'{"messages": [{"role": "user", "content": "I am \\u0041nn"} , {"content":"Hi Ann","role":"assistant"}]}\n'
CHAT_TEXT = "user: I am Ann\nassistant: Hi Ann"


def test_a_chat_loses_the_span_from_what_was_said():
    spans = [(11, 14), (29, 32)]
    assert [CHAT_TEXT[start:end] for start, end in spans] == ["Ann", "Ann"]
    expected = CHAT.replace(b"\\u0041nn", MARK).replace(b"Hi Ann", b"Hi " + MARK)
    assert redact_line(CHAT, "text", spans) == expected


@pytest.mark.parametrize("span", [(0, 4), (10, 20), (13, 16)])
def test_a_span_over_a_chats_roles_or_line_ends_is_refused(span):
    with pytest.raises(ValueError, match=rf"the span \[{span[0]}, {span[1]}\] holds characters that stand in no field"):
        redact_line(CHAT, "text", [span])


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"text": "Ann", "text": "Bob"}', "the field 'text' stands twice in its object"),
        (b'{"text": "Ann", "te\\u0078t": "Bob"}', "the field 'text' stands twice in its object"),
        (b'{"messages": [{"role": "assistant", "content": "Ann", "content": "Bob"}]}', "field 'content' stands twice"),
        (b'{"text": "Bo"}', r"the span \[0, 3\] ends after the text, which has 2 characters"),
    ],
)
def test_what_would_leave_a_copy_or_lies_outside_is_refused(line, message):
    with pytest.raises(ValueError, match=message):
        redact_line(line, "text", [(0, 3)])


def test_columns_of_a_table_are_redacted_part_by_part():
    pair = {"text": None, "prompt": "ab", "completion": "cd"}
    assert redact_fields({"text": "abc"}, "text", [(1, 2)]) == {"text": "a[REDACTED]c"}
    assert redact_fields(pair, "text", [(3, 4)]) == {"completion": "c[REDACTED]"}
    assert redact_fields(pair, "text", [(1, 3)]) == {"prompt": "a[REDACTED]", "completion": "[REDACTED]d"}
    with pytest.raises(ValueError, match="in 'messages', which can be redacted in JSONL alone"):
        redact_fields({"messages": []}, "text", [(0, 1)])


def test_spans_are_split_at_the_parts_that_hold_them():
    assert split_spans([(0, 2), (3, 6)], [(0, 4), (4, 9)]) == [[(0, 2), (3, 4)], [(0, 2)]]


def written(text: str, draw) -> str:
    """A JSON string of the text, each character as itself or as one of its escapes."""
    parts = []
    for character in text:
        plain = json.dumps(character, ensure_ascii=False)[1:-1]
        parts.append(draw(st.sampled_from([plain, json.dumps(character)[1:-1]])))
    return '"' + "".join(parts) + '"'


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_line_reads_back_as_its_text_redacted_and_is_the_same_around_it(data):
    text = data.draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), min_size=2, max_size=6)))
    spans = list(zip(cuts[::2], cuts[1::2], strict=False))
    if not spans:
        return
    other = data.draw(st.dictionaries(st.text(max_size=5).filter(lambda name: name != "text"), st.text(max_size=9)))
    members = [f"{json.dumps(name)} : {json.dumps(value)}" for name, value in other.items()]
    members.insert(data.draw(st.integers(0, len(members))), f'"text":{written(text, data.draw)}')
    line = ("{" + " ,".join(members) + "}\n").encode()
    found = redact_line(line, "text", spans)
    assert json.loads(found) == other | {"text": redact_text(text, spans)}
    pieces = found.split(MARK)
    if len(pieces) == len(spans) + 1:  # unless the text itself has the mark
        place = 0
        for piece in pieces:
            assert line.find(piece, place) >= place
            place = line.find(piece, place) + len(piece)
        assert line.startswith(pieces[0]) and line.endswith(pieces[-1])
