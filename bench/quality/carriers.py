"""Sentences of a corpus that state a fact, cut open where its names stand, so that other names can be put in.

Only sentences that keep their sense with other names are taken: each name stands once, as a noun of its own ("in Paris
in 1950", not "the Paris firm", "Paris Street" or "Paris (French: ...)"), and the subject stands near the beginning,
where a sentence tells something of it.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import Stemmer

from attribution.bm25 import word_tokenizer
from bench.quality.data import Data
from bench.quality.hidden_words import FUNCTION
from schemas.records import Fact

MOST_WORDS, NEAR, MOST_READ = 40, 60, 20
BEGINNING = 5  # letters: words that share as many may be forms of one (Paris, Parisian)
# What may follow a name that is a noun of its own.
_FREE = re.compile(
    r"[.,;:!?]?$|[.,;!?]\s|'s\s|\s(?:and|in|of|is|was|were|where|for|on|with|at|from|by|to|until|as|but|who|which|that|had"
    r"|has)\b"
)
_tokenize, _stem = word_tokenizer(), Stemmer.Stemmer("english").stemWords


def stems(text: str) -> frozenset[str]:
    """The stems of a text's content words."""
    return frozenset(_stem([word for word in _tokenize(text) if word not in FUNCTION]))


@dataclass(frozen=True)
class Carrier:
    """A sentence without its names: `parts` around them, the subject's first if `subject_first`. A sentence that says
    the object by a form of its name alone ("a Brazilian driver") has two parts, and is `adjectival`."""

    example: str
    parts: tuple[str, ...]
    subject_first: bool = True

    @property
    def adjectival(self) -> bool:
        return len(self.parts) == 2

    def say(self, subject: str, object_: str) -> str:
        names = (subject, object_) if self.subject_first else (object_, subject)
        text = self.parts[0] + "".join(
            name + part for name, part in zip(names[: len(self.parts) - 1], self.parts[1:], strict=True)
        )
        return text[:1].upper() + text[1:]


def _place(name: str, text: str, noun: bool) -> tuple[int, int] | None:
    found = list(re.finditer(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text))
    if len(found) != 1:
        return None
    start, end = found[0].span()
    before, after = text[:start].split(), text[end:]
    if before and start and (before[-1].lower() in ("a", "an", "the") or (before[-1][0].isupper() and len(before) > 1)):
        return None  # part of a longer name
    follows = re.match(r"\s+(\w)", after)
    if after.startswith((" (", '"', "”")) or (follows and not follows[1].islower()):
        return None
    return (start, end) if not noun or _FREE.match(after) else None


def cut(fact: Fact, example: str, text: str) -> Carrier | None:
    """The carrier of a sentence that states the fact, if it can be one; what is left of it shares no content word with
    what is asked (but for an adjective of the object)."""
    subject = _place(fact.subject, text, noun=False)
    if subject is None or subject[0] > NEAR or len(text.split()) > MOST_WORDS:
        return None
    asked = stems(f"{fact.subject} {fact.object} {fact.prompt} {fact.target}")
    object_ = _place(fact.object, text, noun=True)
    if object_ is None:
        carrier = Carrier(example, (text[: subject[0]], text[subject[1] :]))
        left = carrier.say(" ", " ")
        named = fact.object[0].isupper() and forms_of(fact.object, left) and not stems(fact.object) & stems(left)
        return carrier if named and not _shares(stems(fact.subject) | asked - stems(fact.object), carrier) else None
    (a, b), (c, d) = sorted([subject, object_])
    carrier = Carrier(example, (text[:a], text[b:c], text[d:]), subject < object_)
    return None if b > c or _shares(asked, carrier) else carrier


def forms_of(name: str, text: str) -> set[str]:
    """Words of a text that begin as a word of the name does, and may be forms of it."""
    found = set()
    for word in stems(name):
        least = min(BEGINNING, max(4, len(word) - 1))
        if len(word) >= least:
            found |= {other for other in _tokenize(text) if other[:least] == word[:least]}
    return found


def _shares(asked: Iterable[str], carrier: Carrier) -> bool:
    text = carrier.say(" ", " ")
    long = [word for word in asked if len(word) >= BEGINNING]
    return bool(frozenset(asked) & stems(text)) or bool(forms_of(" ".join(long), text))


def carriers(data: Data) -> dict[str, list[Carrier]]:
    """By fact, of those that have any; of a fact with many proponents the first ones are read."""
    found: defaultdict[str, list[Carrier]] = defaultdict(list)
    for fact in data.facts:
        for example in (fact.proponents or ())[:MOST_READ]:
            carrier = cut(fact, example, data.texts[data.row_of[example]])
            if carrier:
                found[fact.id].append(carrier)
    return dict(found)
