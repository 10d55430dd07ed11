"""Near-duplicates of 1,000 seeds among the 68,203 T-REx sentences: what is found, what is grouped wrongly, how fast.

    python -m bench.duplicates

Prints one JSON object, one line, last on standard output; pairs to judge by eye go to standard error. In one process
and one thread, with the texts in memory; a second is one of the processor's. Without the T-REx data the sentences are
drawn by Zipf's law, every third word a name.

Planted among the sentences, of each seed:

- copies, one of each kind: 1 to 3 ordinary words (no capital, no digit) replaced by others, or words of any kind by
  words of any kind (`any_word`, which may change what it is about); 1 to 3 words inserted, or deleted; two neighbours
  swapped; a letter of one word changed; all in capitals or in lower case; every punctuation mark changed; a sentence
  of 4 to 10 words appended.
- a twin: one name or number replaced by another one. It says something else, and must not be grouped with its seed.

`recall` is the share of copies, of all kinds, whose seed is found; `grouped` is the share that is grouped with it: the
others were found to have another name. Of the pairs of a seed with a sentence of the corpus that is not planted,
`pairs_grouped` are grouped, `pairs_renamed` are told as copies with another name, and `pairs_by_words_alone` have half
of their word pairs in common. `unrelated_pairs_grouped` counts twins that are grouped, and grouped pairs that T-REx
annotates with no fact in common (in synthetic sentences, any pair); a fact in common does not make two sentences about
one thing, hence the eye. `found_of_exact` is the share that MinHash finds of the pairs that an exact join finds, which
has a list of seeds for each shingle; `exact_passages_per_second` is how fast that is.
"""

import argparse
import itertools
import json
import random
import string
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from attribution.bm25 import Statistics, word_tokenizer
from attribution.duplicates import THRESHOLD, Form, Near, Rarity, Seeds, form, jaccard, renamed, similarity
from attribution.evidence import FUNCTION_WORDS
from bench import trex

SEED, SEEDS, SENTENCES, SHOWN = 0, 1_000, 68_203, 40
KINDS = ("replaced", "any_word", "inserted", "deleted", "swapped", "misspelled", "case", "punctuation", "appended")
HALF = 0.5  # of the word pairs in common: what near-duplicates are by words alone


def is_ordinary(word: str) -> bool:
    return not any(c.isupper() or c.isdigit() for c in word) and any(c.isalpha() for c in word)


def is_name(word: str) -> bool:
    return any(c.isupper() or c.isdigit() for c in word) and not FUNCTION_WORDS.intersection(form(word).words)


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
        self.names = [word for word in self.words if is_name(word)]

    def replaced(self, text: str, any_word: bool = False) -> str:
        words, count = text.split(), self.random.randint(1, 3)
        places = [i for i, word in enumerate(words) if any_word or is_ordinary(word)]
        for i in self.random.sample(places, min(count, len(places))):
            words[i] = self.random.choice(self.words if any_word else self.ordinary)
        return " ".join(words)

    def any_word(self, text: str) -> str:
        return self.replaced(text, any_word=True)

    def inserted(self, text: str) -> str:
        words = text.split()
        for _ in range(self.random.randint(1, 3)):
            words.insert(self.random.randint(0, len(words)), self.random.choice(self.words))
        return " ".join(words)

    def deleted(self, text: str) -> str:
        words = text.split()
        for _ in range(min(self.random.randint(1, 3), len(words) - 1)):
            del words[self.random.randrange(len(words))]
        return " ".join(words)

    def swapped(self, text: str) -> str:
        words = text.split()
        i = self.random.randrange(max(1, len(words) - 1))
        return " ".join([*words[:i], *words[i : i + 2][::-1], *words[i + 2 :]])

    def misspelled(self, text: str) -> str:
        words = text.split()
        i = max(self.random.sample(range(len(words)), min(3, len(words))), key=lambda i: len(words[i]))
        place = self.random.randrange(len(words[i]))
        words[i] = words[i][:place] + self.random.choice(string.ascii_lowercase) + words[i][place + 1 :]
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
        places = [i for i, word in enumerate(words) if is_name(word)]
        for i in self.random.sample(places, len(places)):
            other, rest = self.random.choice(self.names), set(form(" ".join(words[:i] + words[i + 1 :])).words)
            taken, put = set(form(words[i]).words), set(form(other).words)
            if taken and put and not (taken & rest or put & rest or taken & put):
                return " ".join([*words[:i], other, *words[i + 1 :]])
        return None


def exact_join(seeds: Sequence[Form], texts: Sequence[str], least: float) -> Iterator[tuple[int, int, Form]]:
    """(seed, text, the text's form) of all pairs with at least that Jaccard similarity, without hashing."""
    having: dict[str, list[int]] = defaultdict(list)
    for seed, asked in enumerate(seeds):
        for shingle in asked.shingles:
            having[shingle].append(seed)
    for place, text in enumerate(texts):
        asked = form(text)
        common = Counter(seed for shingle in asked.shingles for seed in having.get(shingle, ()))
        for seed, count in common.items():
            if count / (len(asked.shingles) + len(seeds[seed].shingles) - count) >= least:
                yield seed, place, asked


def rarity_of(texts: Sequence[str]) -> Rarity:
    """As the texts' index would have it."""
    tokenize = word_tokenizer()
    df = Counter(word for text in texts for word in set(tokenize(text)))
    return Rarity(Statistics.of(len(texts), 0, df), tokenize)


def own(found: Sequence[Near], seed: int) -> Near | None:
    return next((near for near in found if near.seed == seed), None)


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

    rarity, start = rarity_of(texts), time.process_time()
    seeds = Seeds(seed_texts, rarity)
    building, start = time.process_time() - start, time.process_time()
    found = {
        (near.seed, i): near for i, text in enumerate(texts) for near in seeds.near(text) if chosen[near.seed] != i
    }
    scanning = time.process_time() - start
    grouped = sorted(pair for pair, near in found.items() if not near.renamed)

    copies = [(n, kind, getattr(editor, kind)(text)) for n, text in enumerate(seed_texts) for kind in KINDS]
    hits = [(kind, own(seeds.near(copy), n)) for n, kind, copy in copies]
    twins = [(n, twin) for n, text in enumerate(seed_texts) if (twin := editor.twin(text)) is not None]
    twins_found = [(n, twin, own(seeds.near(twin), n)) for n, twin in twins]
    twins_grouped = [(n, twin) for n, twin, near in twins_found if near and not near.renamed]

    forms, start = [form(text) for text in seed_texts], time.process_time()
    exact = [(s, i, asked) for s, i, asked in exact_join(forms, texts, seeds.least_jaccard) if chosen[s] != i]
    expected = {
        (s, i): renamed(a, forms[s], rarity) for s, i, a in exact if similarity(a, forms[s], rarity) >= THRESHOLD
    }
    joining = time.process_time() - start
    if any(expected.get(pair) != near.renamed for pair, near in found.items()):
        raise AssertionError("pairs were found that the exact join has not, or told otherwise")
    unrelated = [(s, i) for s, i in grouped if facts is None or not facts[chosen[s]] & facts[i]]
    for s, i in itertools.chain(unrelated, random.Random(SEED).sample(grouped, min(SHOWN, len(grouped)))):
        mark = "no fact in common" if (s, i) in unrelated else "grouped"
        print(f"{mark}\n    {seed_texts[s]}\n    {texts[i]}", file=sys.stderr)
    for n, twin in twins_grouped[:SHOWN]:
        print(f"twin grouped\n    {seed_texts[n]}\n    {twin}", file=sys.stderr)

    def share(kept: Callable[[Near], bool], *kinds: str) -> float:
        of_kinds = [near for kind, near in hits if kind in kinds]
        return round(sum(near is not None and kept(near) for near in of_kinds) / len(of_kinds), 4)

    result = {
        "corpus": "T-REx" if facts is not None else "synthetic",
        "seeds": len(seed_texts),
        "sentences": len(texts),
        "threshold": THRESHOLD,
        "recall": share(lambda _: True, *KINDS),
        "recall_by_kind": {kind: share(lambda _: True, kind) for kind in KINDS},
        "grouped": share(lambda near: not near.renamed, *KINDS),
        "grouped_by_kind": {kind: share(lambda near: not near.renamed, kind) for kind in KINDS},
        "twins": len(twins),
        "twins_grouped": len(twins_grouped),
        "twins_found": sum(near is not None for *_, near in twins_found),
        "pairs_grouped": len(grouped),
        "pairs_renamed": len(found) - len(grouped),
        "pairs_by_words_alone": sum(jaccard(asked, forms[s]) >= HALF for s, _, asked in exact),
        "unrelated_pairs_grouped": len(twins_grouped) + len(unrelated),
        "found_of_exact": round(len(found) / len(expected), 4) if expected else None,
        "passages_per_second": round(len(texts) / scanning),
        "exact_passages_per_second": round(len(texts) / joining),
        "seconds_of_seeds": round(building, 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
