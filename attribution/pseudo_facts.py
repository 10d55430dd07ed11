"""Facts cut from the corpus itself: a span of a passage is hidden, the words before it ask for it.

They are asked as people ask, without any annotation: their gradients tell what those of questions look like. A fact
keeps only a few of the words before the span: a whole passage as the query would find itself by any signal.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterable

from schemas.records import Fact, Passage

_NAME = re.compile(r"\b(?:[A-Z][\w'’-]+(?: [A-Z][\w'’-]+)*|\d[\d,.]*\d|\d)\b")
_WORD = re.compile(r"\w+")
MIN_BEFORE, PROMPT_WORDS = 3, 10


def sample_key(seed: int, example_id: str, start: int) -> bytes:
    """The passages with the smallest keys are the sample: no order and no shard has a say in it."""
    text = f"{seed}/{example_id}/{start}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def make_pseudo_fact(passage: Passage, idf: Callable[[str], float], seed: int) -> Fact | None:
    """A fact whose answer stands in the passage, or None where nothing in it can be asked for.

    The hidden span is a name or number (else the rarest word) with at least three words before it; the prompt is the
    up to ten words before it; the subject is the rarest other name of the prompt, if it has one.
    """
    text = passage.text
    words = [match.span() for match in _WORD.finditer(text)]
    if len(words) <= MIN_BEFORE:
        return None
    earliest = words[MIN_BEFORE][0]
    names = [match for match in _NAME.finditer(text)]
    late = [match.span() for match in names if match.start() >= earliest]
    if late:
        start, end = random.Random(f"{seed}/{passage.example_id}/{passage.start}").choice(late)
    else:
        start, end = max(words[MIN_BEFORE:], key=lambda span: (idf(text[slice(*span)].lower()), span))
    before = [span for span in words if span[1] <= start]
    cut = before[max(0, len(before) - PROMPT_WORDS)][0]
    prompt = text[cut:start].rstrip()
    subjects = [match.group() for match in names if match.start() >= cut and match.end() <= start]
    subject = max(subjects, key=lambda name: max(idf(w.lower()) for w in _WORD.findall(name)), default="")
    return Fact(
        id=f"pseudo/{passage.example_id}/{passage.start}",
        prompt=prompt,
        target=text[cut + len(prompt) : end],
        subject=subject,
        object=text[start:end],
        proponents=(passage.example_id,),
    )


def make_pseudo_facts(passages: Iterable[Passage], idf: Callable[[str], float], seed: int) -> list[Fact]:
    """A fact for every passage that allows one, in the order given."""
    made = (make_pseudo_fact(passage, idf, seed) for passage in passages)
    return [fact for fact in made if fact is not None]
