"""Near-duplicates of 1,000 seeds among the 68,203 T-REx sentences: what is found, what is grouped wrongly, how fast.

    python -m bench.duplicates

Prints one JSON object, one line, last on standard output; pairs to judge by eye go to standard error. In one process
and one thread, with the texts in memory; a second is one of the processor's. Without the T-REx data the sentences are
drawn by Zipf's law, every third word a name.

Planted among the sentences, of each seed:

- copies, one of each kind: 1 to 3 ordinary words (no capital, no digit) replaced by others, inserted, or deleted; all
  in capitals or in lower case; every punctuation mark changed; a sentence of 4 to 10 words appended.
- a copy with 1 to 3 words of any kind replaced by words of any kind, which may change what it is about
  (`recall_any_word`).
- a twin: one name or number replaced by another one. It says something else, and must not be grouped with its seed.

`recall` is the share of copies whose seed is found. Of the pairs of a seed with a sentence of the corpus that is not
planted, `pairs_grouped` are near-duplicates; `pairs_by_words_alone` would be if names were not asked.
`unrelated_pairs_grouped` counts twins that are grouped, and grouped pairs that T-REx annotates with no fact in common
(in synthetic sentences, any pair); a fact in common does not make two sentences about one thing, hence the eye.
`found_of_exact` is the share that MinHash finds of the pairs that an exact join finds, which has a list of seeds for
each shingle; `exact_passages_per_second` is how fast that is.
`recall_by_shingle` is the recall of copies by similarity and names, 2 and 3 words a shingle, at several thresholds.
"""

import argparse
import itertools
import json
import random
import string
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from attribution.duplicates import THRESHOLD, Form, Seeds, form, jaccard, names_exchanged, words_of
from bench import trex

SEED, SEEDS, SENTENCES, SHOWN = 0, 1_000, 68_203, 40
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
KINDS = ("replaced", "inserted", "deleted", "case", "punctuation", "appended")


def is_ordinary(word: str) -> bool:
    return not any(c.isupper() or c.isdigit() for c in word) and any(c.isalpha() for c in word)


def synthetic(count: int) -> list[str]:
    """Sentences of 8 to 40 words by Zipf's law (exponent 1.07, 50,000 words), a third of the words names."""
    generator = np.random.default_rng(SEED)
    weights = 1.0 / np.arange(1, 50_001) ** 1.07
    ends = np.cumsum(weights / weights.sum())
    spelled = [
        "".join(string.ascii_lowercase[n // 26**place % 26] for place in range(4)) for n in range(len(weights) + 1)
    ]
    words = [word.capitalize() if n % 3 == 0 else word for n, word in enumerate(spelled)]
    lengths = generator.integers(8, 41, count)
    return [" ".join(words[n] for n in np.searchsorted(ends, generator.random(length))) + "." for length in lengths]


def facts_of(ids: Sequence[str]) -> list[set[str]]:
    """The annotated facts of each sentence."""
    stated: dict[str, set[str]] = defaultdict(set)
    for fact in trex.read("facts.jsonl.gz"):
        for example_id in fact["proponents"]:
            stated[example_id].add(fact["id"])
    return [stated[example_id] for example_id in ids]


class Editor:
    """Edits sentences, seeded; `words` are those that the corpus has, as often as it has them."""

    def __init__(self, texts: Sequence[str]):
        self.random = random.Random(SEED)
        self.words = [word for text in texts[:: max(1, len(texts) // 5_000)] for word in text.split()]
        self.ordinary = [word for word in self.words if is_ordinary(word)]
        self.names = [word for word in self.words if word[0].isupper() or word[0].isdigit()]

    def replaced(self, text: str, any_word: bool = False) -> str:
        words, count = text.split(), self.random.randint(1, 3)
        places = [i for i, word in enumerate(words) if any_word or is_ordinary(word)]
        for i in self.random.sample(places, min(count, len(places))):
            words[i] = self.random.choice(self.words if any_word else self.ordinary)
        return " ".join(words)

    def inserted(self, text: str) -> str:
        words = text.split()
        for _ in range(self.random.randint(1, 3)):
            words.insert(self.random.randint(0, len(words)), self.random.choice(self.ordinary))
        return " ".join(words)

    def deleted(self, text: str) -> str:
        words = text.split()
        places = [i for i, word in enumerate(words) if is_ordinary(word)]
        for i in sorted(self.random.sample(places, min(self.random.randint(1, 3), len(places))), reverse=True):
            del words[i]
        return " ".join(words)

    def case(self, text: str) -> str:
        return text.upper() if self.random.random() < 0.5 else text.lower()

    def punctuation(self, text: str) -> str:
        return "".join(self.random.choice(";!,  ") if c in ".,;:()\"'" else c for c in text) + " ..."

    def appended(self, text: str) -> str:
        return f"{text} It {' '.join(self.random.choices(self.ordinary, k=self.random.randint(3, 9)))}."

    def twin(self, text: str) -> str | None:
        """None for a sentence in which every name stands twice, or that has none."""
        words = text.split()
        places = [i for i, word in enumerate(words) if not is_ordinary(word)]
        for i in self.random.sample(places, len(places)):
            other, rest = self.random.choice(self.names), form(" ".join(words[:i] + words[i + 1 :])).words
            taken, put = form(words[i]).words, form(other).words
            if taken and put and not (taken & rest or put & rest or taken & put):
                return " ".join([*words[:i], other, *words[i + 1 :]])
        return None


def exact_join(seeds: Sequence[Form], texts: Sequence[str]) -> Iterator[tuple[int, int, bool]]:
    """(seed, text, whether a name was exchanged) of all pairs at or above the threshold, without hashing."""
    having: dict[str, list[int]] = defaultdict(list)
    for seed, asked in enumerate(seeds):
        for shingle in asked.shingles:
            having[shingle].append(seed)
    for place, text in enumerate(texts):
        asked = form(text)
        common = Counter(seed for shingle in asked.shingles for seed in having.get(shingle, ()))
        for seed, count in common.items():
            close = count / (len(asked.shingles) + len(seeds[seed].shingles) - count)
            if close >= THRESHOLD:
                yield seed, place, names_exchanged(asked, seeds[seed])


def shingles_of(text: str, size: int) -> set[tuple[str, ...]]:
    words = [word.casefold() for word in words_of(text)]
    return set(zip(*(words[n:] for n in range(size)), strict=False)) or {tuple(words)}


def recall_by_shingle(pairs: Sequence[tuple[str, str]]) -> dict[str, dict[str, float]]:
    told: dict[str, dict[str, float]] = {}
    exchanged = [names_exchanged(form(a), form(b)) for a, b in pairs]
    for size in (2, 3):
        close = []
        for (a, b), other in zip(pairs, exchanged, strict=True):
            x, y = shingles_of(a, size), shingles_of(b, size)
            close.append(0.0 if other else len(x & y) / len(x | y))
        told[str(size)] = {str(t): round(sum(c >= t for c in close) / len(close), 4) for t in THRESHOLDS}
    return told


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if trex.DATA.is_dir():
        rows = trex.read("corpus.jsonl.gz")
        texts, facts = [row["text"] for row in rows], facts_of([row["id"] for row in rows])
    else:
        print(f"the T-REx data is not at {trex.DATA}: synthetic sentences", file=sys.stderr)
        texts, facts = synthetic(SENTENCES), None
    chosen = random.Random(SEED).sample(range(len(texts)), SEEDS)
    seed_texts, editor = [texts[i] for i in chosen], Editor(texts)

    start = time.process_time()
    seeds = Seeds(seed_texts)
    building, start = time.process_time() - start, time.process_time()
    found = {(seed, i) for i, text in enumerate(texts) for seed, _ in seeds.near(text) if chosen[seed] != i}
    scanning = time.process_time() - start

    copies = [(n, kind, getattr(editor, kind)(text)) for n, text in enumerate(seed_texts) for kind in KINDS]
    hits = [(kind, n in {seed for seed, _ in seeds.near(copy)}) for n, kind, copy in copies]
    any_word = [n in {s for s, _ in seeds.near(editor.replaced(t, True))} for n, t in enumerate(seed_texts)]
    twins = [(n, twin) for n, text in enumerate(seed_texts) if (twin := editor.twin(text)) is not None]
    twins_grouped = [(n, twin) for n, twin in twins if n in {seed for seed, _ in seeds.near(twin)}]
    by_words = sum(jaccard(form(seed_texts[n]), form(twin)) >= THRESHOLD for n, twin in twins)

    forms = [form(text) for text in seed_texts]
    start = time.process_time()
    exact = [(s, i, exchanged) for s, i, exchanged in exact_join(forms, texts) if chosen[s] != i]
    joining = time.process_time() - start
    expected = {(s, i) for s, i, exchanged in exact if not exchanged}
    if not found <= expected:
        raise AssertionError(f"pairs below the threshold were found: {sorted(found - expected)[:3]}")
    unrelated = [(s, i) for s, i in sorted(found) if facts is None or not facts[chosen[s]] & facts[i]]
    for s, i in itertools.chain(unrelated, random.Random(SEED).sample(sorted(found), min(SHOWN, len(found)))):
        mark = "no fact in common" if (s, i) in unrelated else "grouped"
        print(f"{mark}\n    {seed_texts[s]}\n    {texts[i]}", file=sys.stderr)
    for n, twin in twins_grouped[:SHOWN]:
        print(f"twin grouped\n    {seed_texts[n]}\n    {twin}", file=sys.stderr)
    result = {
        "corpus": "T-REx" if facts is not None else "synthetic",
        "seeds": len(seed_texts),
        "sentences": len(texts),
        "threshold": THRESHOLD,
        "recall": round(sum(hit for _, hit in hits) / len(hits), 4),
        "recall_by_kind": {k: round(sum(h for kind, h in hits if kind == k) / SEEDS, 4) for k in KINDS},
        "recall_any_word": round(sum(any_word) / len(any_word), 4),
        "twins": len(twins),
        "twins_grouped": len(twins_grouped),
        "twins_by_words_alone": by_words,
        "pairs_grouped": len(found),
        "pairs_by_words_alone": len(exact),
        "unrelated_pairs_grouped": len(twins_grouped) + len(unrelated),
        "found_of_exact": round(len(found) / len(expected), 4) if expected else None,
        "passages_per_second": round(len(texts) / scanning),
        "exact_passages_per_second": round(len(texts) / joining),
        "seconds_of_seeds": round(building, 3),
        "recall_by_shingle": recall_by_shingle([(seed_texts[n], copy) for n, _, copy in copies]),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
