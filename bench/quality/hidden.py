"""Facts that the corpus states in other words than they are asked in, and what explains those words.

a folder's corpus and facts (T-REx) -> passages, of which some are rewritten, and facts of four kinds

Each proponent is a sentence of the corpus that states the fact, with other names put in (`carriers.py`), as the edited
entities of DATE-LM (arXiv 2507.09424) are. It shares no content word with subject, object, prompt and target.

- `alias`: subject and object stand under other names (a nickname, initials, an invented name, an adjective). Two to
  three passages, in different words, give both names of each.
- `code name`: the subject stands under a code name of two everyday words, which one passage explains.
- `description`: subject and object are described by what another passage says of them: half by a rare word of it (a
  place), half by a thing in words that share no stem with it.
- `counterfactual`: the fact is false. Its subject and object are in many true passages, in plain words; two to four
  proponents say the false one under other names.

The rest are real sentences: those about the asked subjects and objects first, then any. Those that state an asked fact
plainly are left out, so the marked proponents are all there are; a counterfactual subject keeps its true ones.
Not everything that holds a hidden name is a proponent: other facts are told of it, and of the object's other name.
"""

import hashlib
import itertools
import random
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from attribution import bm25
from attribution.metrics import recall_at
from bench.quality import hidden_words as words
from bench.quality.carriers import Carrier, carriers, forms_of, stems
from bench.quality.data import Data
from schemas.errors import ConfigError
from schemas.facts import text_query
from schemas.records import Fact

KINDS = ("alias", "code name", "description", "counterfactual")
SEED, LEAST_FACTS, LEAST_PASSAGES, MOST_BM25 = 0, 50, 5000, 0.2
MOST_PROPONENTS = 6  # of a fact that is asked; sentences of others are told of its other names
SAME_OBJECT = 6  # facts of one object in a kind, at most
ABOUT_SUBJECT, ABOUT_OBJECT = 30, 60  # passages kept of what the corpus says of each
TRUE_PASSAGES = 3  # of a counterfactual subject, at least
FOREIGN = 2  # sentences of other facts of the relation that a counterfactual one is told in
PLACES = 40


class TooFew(ConfigError):
    """The data have too few sentences that can be told in other words."""


@dataclass
class Hidden:
    """What was built. `links` are by fact the ids of the passages that explain its words; they are no proponents."""

    corpus: list[dict[str, Any]]
    facts: list[dict[str, Any]]
    links: dict[str, list[str]] = field(default_factory=dict)

    @cached_property
    def kind_of(self) -> dict[str, str]:
        return {fact["id"]: fact["kind"] for fact in self.facts}


@dataclass(frozen=True)
class Other:
    """Another name, and the passages that explain it."""

    name: str
    links: tuple[str, ...]


def identity(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


Name = Callable[[str], Other]


class Namer:
    """Gives every entity its other names, each once, and keeps the passages that explain them."""

    def __init__(self, draw: random.Random, taken: Iterable[str], groups: tuple[int, ...]):
        self.draw, self.taken, self.groups = draw, set(taken), groups
        self.passages: dict[str, str] = {}  # by id
        self.places = [self._coined() for _ in range(PLACES)]
        self.marks = [(say, mark, thing) for say, mark in words.PARAPHRASED for thing in words.THINGS]
        draw.shuffle(self.marks)
        self._known: dict[tuple[str, str], Other] = {}

    def alias(self, name: str) -> Other:
        """Another name, the same one each time: what people do call it, initials, a nickname, or an invented name."""
        if ("alias", name) not in self._known:
            known, parts = words.KNOWN.get(name), re.findall(r"\b[A-Z]\w+", name)
            initials = "".join(part[0] for part in parts)
            if known:
                other = known[0]
            elif len(parts) >= 3 and initials.lower() not in self.taken:
                self.taken.add(initials.lower())
                other = initials
            elif self.draw.random() < 0.5:
                other = self._pair(words.ADJECTIVES, words.NOUNS, "the {} {}")
            else:
                other = self._new(lambda: f"{self._syllables(2)} {self._syllables(3)}")
            links = self._told(words.ALIAS_LINKS, self.draw.choice((2, 3)), n=name, a=other)
            self._known["alias", name] = Other(other, links)
        return self._known["alias", name]

    def code(self, name: str) -> Other:
        form = self.draw.choice(("Project {} {}", "Operation {} {}", "{} {}"))
        other = self._pair(words.CODE_FIRST, words.CODE_SECOND, form)
        return Other(other, self._told(words.CODE_LINKS, 1, n=name, a=other))

    def description(self, name: str) -> Other:
        """What another passage says of it, as a name."""
        if ("description", name) not in self._known:
            if name in words.KNOWN:
                _, sentence, other = words.KNOWN[name]
            elif self.marks and self.draw.random() < 0.5:
                sentence, other, (thing, paraphrase) = self.marks.pop()
                sentence = sentence.format(n=name, t=thing).replace(" a owl", " an owl").replace(" a umb", " an umb")
                other = other.format(u=paraphrase)
            else:
                place = self._coined()
                sentence, other = self.draw.choice(words.PLACED)
                sentence, other = sentence.format(n=name, p=place, y=self._year()), other.format(p=place)
            self._known["description", name] = Other(other, (self._keep(sentence),))
        return self._known["description", name]

    def _told(self, wordings: tuple[tuple[str, ...], ...], count: int, **names: str) -> tuple[str, ...]:
        chosen = self.draw.sample([text for group in self.groups for text in wordings[group]], count)
        return tuple(
            self._keep(text.format(p=self.draw.choice(self.places), y=self._year(), **names)) for text in chosen
        )

    def _keep(self, text: str) -> str:
        text = text[:1].upper() + text[1:]
        self.passages[identity(text)] = text
        return identity(text)

    def _year(self) -> int:
        return self.draw.randrange(1900, 2000)

    def _new(self, make: Any) -> str:
        for _ in range(10_000):
            name = make()
            if name.lower() not in self.taken:
                self.taken.add(name.lower())
                return name
        raise TooFew("the names of hidden_words.py are used up; ask for fewer facts")

    def _syllables(self, count: int) -> str:
        return "".join(self.draw.sample(words.SYLLABLES, count)).capitalize()

    def _coined(self) -> str:
        return self._new(lambda: self._syllables(3))

    def _pair(self, first: list[str], second: list[str], form: str) -> str:
        return form.format(*self._new(lambda: f"{self.draw.choice(first)} {self.draw.choice(second)}").split())


class Mentions:
    """Which examples hold all content words of a name."""

    def __init__(self, data: Data):
        self._rows: defaultdict[str, set[int]] = defaultdict(set)
        for row, text in enumerate(data.texts):
            for stem in stems(text):
                self._rows[stem].add(row)

    def of(self, name: str) -> set[int]:
        held = [self._rows.get(stem, set()) for stem in stems(name)]
        return set.intersection(*held) if held else set()


def build(
    data: Data, num_facts: int = 60, num_passages: int = 6000, seed: int = SEED, groups: tuple[int, ...] = (0, 1)
) -> Hidden:
    """`num_facts` of each kind among `num_passages`, or LEAST_PASSAGES where the data have no more.

    `groups` are those of the wordings that names are explained in. Raises TooFew where the data do not give as many
    facts or passages, and ConfigError where BM25 finds them.
    """
    return _Builder(data, num_facts, num_passages, random.Random(seed), groups).build()


class _Builder:
    def __init__(self, data: Data, num_facts: int, num_passages: int, draw: random.Random, groups: tuple[int, ...]):
        self.data, self.num_facts, self.num_passages, self.draw = data, num_facts, num_passages, draw
        self.carriers, self.mentions = carriers(data), Mentions(data)
        self.fact_of = {fact.id: fact for fact in data.facts}
        self.namer = Namer(draw, set().union(*map(stems, data.texts)), groups)
        self.told: dict[str, str] = {}  # rewritten sentences by id
        self.used: set[str] = set()  # examples that were rewritten
        self.facts: list[dict[str, Any]] = []
        self.links: dict[str, list[str]] = {}
        self.other_links: set[str] = set()  # to the true objects of counterfactual facts

    def build(self) -> Hidden:
        self.choose()
        explained = self.namer.passages  # of facts alone that could be told
        corpus = self.told | {i: explained[i] for links in (*self.links.values(), self.other_links) for i in links}
        corpus |= self.real(len(corpus))
        rows = [{"id": i, "text": corpus[i], "source": self.source(i)} for i in sorted(corpus)]
        hidden = Hidden(rows, sorted(self.facts, key=lambda fact: fact["id"]), self.links)
        check(hidden, self.num_facts, min(self.num_passages, LEAST_PASSAGES))
        return hidden

    def source(self, example: str) -> str:
        if example in self.namer.passages:
            return "explains a name"
        return "rewritten" if example in self.told else "real"

    def in_turns(self) -> list[Fact]:
        """The facts that may be asked, a relation after the other. A name for what is no name ("midfielder") reads
        badly: facts of such objects are last."""
        by_relation: defaultdict[str, list[Fact]] = defaultdict(list)
        for i in self.draw.sample(list(self.carriers), len(self.carriers)):
            if len(self.fact_of[i].proponents or ()) <= MOST_PROPONENTS:
                by_relation[self.fact_of[i].relation].append(self.fact_of[i])
        turns = itertools.chain.from_iterable(itertools.zip_longest(*(by_relation[r] for r in sorted(by_relation))))
        return sorted(filter(None, turns), key=lambda fact: not fact.object[0].isupper())

    def choose(self) -> None:
        """States facts, each in the kind that has the fewest of those that it fits, until there are enough."""
        state = dict(zip(KINDS, (self._alias, self._code_name, self._description, self._counterfactual), strict=True))
        counts, objects, subjects = Counter(), Counter(), set()
        for fact in self.in_turns():
            for kind in sorted(KINDS, key=lambda kind: (counts[kind], -KINDS.index(kind))):
                few = counts[kind] < self.num_facts and objects[kind, fact.object] < SAME_OBJECT
                if few and fact.subject not in subjects and state[kind](fact):
                    subjects.add(fact.subject)
                    counts[kind] += 1
                    objects[kind, fact.object] += 1
                    break

    def _alias(self, fact: Fact) -> bool:
        return self._told("alias", fact, self._free(fact), self.namer.alias, self.namer.alias)

    def _code_name(self, fact: Fact) -> bool:
        return self._told("code name", fact, self._whole(fact), self.namer.code, self.namer.alias)

    def _description(self, fact: Fact) -> bool:
        return self._told("description", fact, self._whole(fact), self.namer.description, self.namer.description)

    def _told(self, kind: str, fact: Fact, told: list[Carrier], subject: Name, object_: Name) -> bool:
        # Nothing is named in vain: there are only so many names.
        return bool(told) and self._state(kind, fact, subject(fact.subject), object_(fact.object), told)

    def _counterfactual(self, fact: Fact) -> bool:
        """The object becomes another one of the relation; the true one is told of the other name too."""
        objects = sorted(
            {f.object for f in self.data.facts if f.relation == fact.relation}
            - {f.object for f in self.data.facts if f.subject == fact.subject}
        )
        objects = [o for o in objects if not stems(o) & stems(f"{fact.subject} {fact.object} {fact.prompt}")]
        told = self._whole(fact)
        if not objects or not told or len(self.mentions.of(fact.subject)) - len(told) < TRUE_PASSAGES:
            return False
        common = [o for o in objects if o in words.KNOWN or len(self.mentions.of(o)) >= TRUE_PASSAGES]
        false = self.draw.choice(common or objects)
        asked = replace(fact, object=false, target=f" {false}")
        subject, object_ = self.namer.alias(fact.subject), self.namer.alias(false)
        foreign = self._foreign(asked, FOREIGN + 1, fact.relation)
        stated = self._state("counterfactual", asked, subject, object_, [*told, *(c for _, c in foreign[:FOREIGN])])
        if stated and len(foreign) > FOREIGN:
            true = self.namer.alias(fact.object)
            self.other_links.update(true.links)
            self._tell(foreign[-1][1], subject.name, true.name)
        return stated

    def _free(self, fact: Fact) -> list[Carrier]:
        return [carrier for carrier in self.carriers[fact.id] if carrier.example not in self.used]

    def _whole(self, fact: Fact) -> list[Carrier]:
        return [carrier for carrier in self._free(fact) if not carrier.adjectival]

    def _foreign(self, fact: Fact, count: int, relation: str = "") -> list[tuple[Fact, Carrier]]:
        """Sentences of facts that are not asked, of the relation if one is given, that share no content word with this
        one; those of facts that cannot be asked first."""
        asked, chosen = (
            stems(f"{fact.subject} {fact.object} {fact.prompt} {fact.target}"),
            {f["of"] for f in self.facts},
        )
        found: list[tuple[Fact, Carrier]] = []
        order = self.draw.sample(sorted(self.carriers), len(self.carriers))
        for other in sorted((self.fact_of[i] for i in order), key=lambda f: len(f.proponents or ()) <= MOST_PROPONENTS):
            same = other.id in chosen or other.subject == fact.subject or other.object == fact.object
            if not same and other.relation == (relation or other.relation):
                fit = [c for c in self._whole(other) if not asked & stems(c.say(" ", " "))]
                found += [(other, carrier) for carrier in fit[:1]]
            if len(found) >= count:
                break
        return found

    def _state(self, kind: str, fact: Fact, subject: Other, object_: Other, told: list[Carrier]) -> bool:
        """Adds the fact, its proponents, and two passages that hold one of the two other names each; tells whether
        any sentence could be told so."""
        asked = stems(f"{fact.subject} {fact.object} {fact.prompt} {fact.target}")
        told = [c for c in told if not asked & stems(c.say(subject.name, object_.name)) and c.example not in self.used]
        if not told:
            return False
        key = identity(f"{kind}\n{fact.id}")
        proponents = [self._tell(carrier, subject.name, object_.name) for carrier in told]
        for (other, carrier), names in zip(
            self._foreign(fact, 2), ((subject.name, ""), ("", object_.name)), strict=False
        ):
            self._tell(carrier, names[0] or other.subject, names[1] or other.object)
        self.links[key] = sorted({*subject.links, *object_.links})
        self.facts.append(
            {
                "id": key,
                "of": fact.id,
                "kind": kind,
                "relation": fact.relation,
                "subject": fact.subject,
                "object": fact.object,
                "prompt": fact.prompt,
                "target": fact.target,
                "told_as": [subject.name, object_.name],
                "proponents": sorted(set(proponents)),
            }
        )
        return True

    def _tell(self, carrier: Carrier, subject: str, object_: str) -> str:
        text = carrier.say(subject, object_)
        self.used.add(carrier.example)
        self.told[identity(text)] = text
        return identity(text)

    def real(self, taken: int) -> dict[str, str]:
        """Real sentences by id: those about what is asked first. None that was rewritten or states an asked fact."""
        out = {self.data.row_of[example] for example in self.used}
        subjects, objects = [], []
        for fact in self.facts:
            subject, object_ = self.mentions.of(fact["subject"]), self.mentions.of(fact["object"])
            out |= subject & object_
            out |= {row for row in subject if forms_of(fact["object"], self.data.texts[row])}
            if fact["kind"] != "counterfactual":
                out |= self.data.proponents(self.fact_of[fact["of"]])
            subjects += self.draw.sample(sorted(subject), min(ABOUT_SUBJECT, len(subject)))
            objects += self.draw.sample(sorted(object_), min(ABOUT_OBJECT, len(object_)))
        others = self.draw.sample(range(len(self.data.texts)), len(self.data.texts))
        rows = [row for row in dict.fromkeys([*subjects, *objects, *others]) if row not in out]
        return {self.data.ids[row]: self.data.texts[row] for row in rows[: max(0, self.num_passages - taken)]}


def check(hidden: Hidden, num_facts: int = LEAST_FACTS, num_passages: int = LEAST_PASSAGES) -> dict[str, float]:
    """BM25's worst Recall@10 by kind. Raises ConfigError for data on which words alone find more than MOST_BM25, for
    proponents that share a content word with what is asked, and for too few facts or passages."""
    counts = {kind: sum(fact["kind"] == kind for fact in hidden.facts) for kind in KINDS}
    lacking = {kind: count for kind, count in counts.items() if count < num_facts}
    if lacking or len(hidden.corpus) < num_passages:
        raise TooFew(
            f"expected {num_facts} facts of each kind among {num_passages} passages, found {counts} among "
            f"{len(hidden.corpus)}; ask for fewer, or give a folder with more sentences that state one fact"
        )
    texts = {row["id"]: row["text"] for row in hidden.corpus}
    for fact in hidden.facts:
        asked = stems(f"{fact['subject']} {fact['object']} {fact['prompt']} {fact['target']}")
        for example in fact["proponents"]:
            shared = sorted(asked & stems(texts[example]))
            if shared:
                raise ConfigError(f"fact {fact['id']!r}: its proponent {example!r} holds its words {shared}")
    found = bm25_recall(hidden)
    if max(found.values()) > MOST_BM25:
        raise ConfigError(f"BM25 is to find at most {MOST_BM25} of the proponents in the first ten, found {found}")
    return found


def bm25_recall(hidden: Hidden) -> dict[str, float]:
    """By kind the better Recall@10 of the product's BM25 asked by subject + object and by prompt + target."""
    tokenize, ids = bm25.word_tokenizer(), [row["id"] for row in hidden.corpus]
    with tempfile.TemporaryDirectory() as place:
        length = bm25.write_shard((row["text"] for row in hidden.corpus), tokenize, Path(place))
        files = {name: str(Path(place) / name) for name in bm25.SHARD_FILES}
        shard = bm25.Shard(files, bm25.shard_statistics(files["terms.arrow"], len(ids), length))
        recalls: defaultdict[str, list[list[float]]] = defaultdict(list)
        for row in hidden.facts:
            fact, known = Fact.from_row({n: row[n] for n in ("id", "prompt", "target", "subject", "object")}), set()
            known = set(row["proponents"])
            both = []
            for way in ("subject_object", "prompt_target"):
                asked = tokenize(text_query(fact, way))
                rows = shard.candidates(asked, 10)
                best = rows[np.lexsort((rows, -shard.scores_at(asked, rows)))][:10]
                both.append(recall_at([ids[r] for r in best], known, 10))
            recalls[row["kind"]].append(both)
        return {kind: float(np.mean(values, axis=0).max()) for kind, values in recalls.items()}
