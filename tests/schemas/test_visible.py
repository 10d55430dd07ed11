"""Hidden characters are named; letters of every script stay as they are."""

import unicodedata

import pytest

from schemas.visible import hidden_runs, long_name, short_name, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "⟦ESC⟧[31mred"),
        ("a\u202eb", "a⟦U+202E⟧b"),
        ("\0\0\0x\0", "⟦NUL×3⟧x⟦NUL⟧"),
        ("\ud800", "⟦U+D800⟧"),
        ("a\r\nb\rc\td\n", "a\r\nb⟦CR⟧c\td\n"),
        ("\u202e\u202d", "⟦U+202E⟧⟦U+202D⟧"),
        ("می\u200cخواهم 👩\u200d🚀 naïve 数", "می\u200cخواهم 👩\u200d🚀 naïve 数"),
    ],
)
def test_what_is_hidden_is_named_and_the_rest_stays(text, shown):
    assert visible(text) == shown


def test_no_control_or_direction_gets_through():
    for code in [*range(0x3000), *range(0xD800, 0xE000), *range(0xFE00, 0x10000), *range(0xE0000, 0xE0080)]:
        character = chr(code)
        acts = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or (
            unicodedata.bidirectional(character) in ("RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "FSI", "PDI")
        )
        if acts and character not in "\t\n":
            assert visible(character) == f"⟦{short_name(character)}⟧"


def test_runs_are_of_one_character_and_a_million_are_one():
    assert hidden_runs("a\0\0\x1b\x1bb") == [(1, 3), (3, 5)]
    assert hidden_runs("\0" * 1_000_000) == [(0, 1_000_000)]


def test_names():
    assert (short_name("\u202e"), long_name("\u202e")) == ("U+202E", "U+202E RIGHT-TO-LEFT OVERRIDE")
    assert (short_name("\x1b"), long_name("\x1b"), long_name("\x01")) == (
        "ESC",
        "U+001B ESC",
        "U+0001 control character",
    )
