"""What a corpus' text looks like to a person: control and formatting characters are named, nothing acts on the reader.

Escape sequences of terminals, overrides of the reading direction, NULs and lone surrogates become ⟦ESC⟧, ⟦U+202E⟧ ...
"""

import re
import unicodedata

_SHORT = {0x00: "NUL", 0x07: "BEL", 0x08: "BS", 0x0B: "VT", 0x0C: "FF", 0x0D: "CR", 0x1B: "ESC", 0x7F: "DEL"}
# Cc without tab and line feed, Cf without the joiners (200C, 200D) that scripts and emoji need and the soft hyphen,
# the line and paragraph separators, lone surrogates, the tags that can hide text (E0000-E007F), and noncharacters.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u0600-\u0605\u061c\u06dd\u070f\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufdd0-\ufdef\ufeff\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
)


def hidden_runs(text: str) -> list[tuple[int, int]]:
    """(start, end) of each run of one and the same hidden character; a carriage return before a line feed is none."""
    runs: list[tuple[int, int]] = []
    for found in _HIDDEN.finditer(text):
        place = found.start()
        if text.startswith("\r\n", place):
            continue
        if runs and runs[-1][1] == place and text[place - 1] == text[place]:
            runs[-1] = (runs[-1][0], place + 1)
        else:
            runs.append((place, place + 1))
    return runs


def short_name(character: str) -> str:
    """`ESC`, or `U+202E`."""
    return _SHORT.get(ord(character), f"U+{ord(character):04X}")


def long_name(character: str) -> str:
    """`U+202E RIGHT-TO-LEFT OVERRIDE`; those of ASCII have no name in Unicode but their short one."""
    name = unicodedata.name(character, _SHORT.get(ord(character), "control character"))
    return f"U+{ord(character):04X} {name}"


def visible(text: str) -> str:
    """The text with every run of a hidden character as its name in brackets, its length beside it if above 1."""
    parts, place = [], 0
    for start, end in hidden_runs(text):
        times = f"×{end - start}" if end - start > 1 else ""
        parts += [text[place:start], f"⟦{short_name(text[start])}{times}⟧"]
        place = end
    return "".join([*parts, text[place:]])
