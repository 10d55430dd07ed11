"""A seeded corpus of invented people, cities and companies, for where no real data is at hand.

A fact is stated by one to four sentences in different wordings, some of which name the subject by an alias ("T. Merin")
or a city by its adjective ("a Loramese painter"). As many sentences again are about the same entities and state no
fact that is asked: some name a fact's subject and object together in another relation.
"""

import hashlib
import random
from typing import Any

SEED = 0
PEOPLE = 300
SYLLABLES = ("ta", "vo", "me", "rin", "lo", "ram", "ke", "dal", "su", "ber", "ni", "gor", "pa", "lix", "ho", "wen")
FIELDS = (
    "astronomy",
    "botany",
    "chess",
    "geology",
    "medicine",
    "opera",
    "painting",
    "poetry",
    "statistics",
    "surveying",
)
# Of each relation: the prompt, the kind of its object, and sentences that state it; {a} is the object's adjective.
RELATIONS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "born in": (
        "{s} was born in",
        "city",
        ("{s} was born in {o}.", "{o} is the birthplace of {s}.", "A {a} by birth, {s} left the country early."),
    ),
    "employer": (
        "{s} works for",
        "company",
        ("{s} works for {o}.", "{o} hired {s} in {y}.", "After {y}, {s} ran the archive of {o}."),
    ),
    "field of work": (
        "{s} works in the field of",
        "field",
        ("{s} is known for {o}.", "In {y} {s} won a prize in {o}.", "Few have done more for {o} than {s}."),
    ),
    "headquarters": (
        "The headquarters of {s} is in",
        "city",
        ("{s} is based in {o}.", "The offices of {s} stand in {o}.", "{s}, a {a} firm, was founded in {y}."),
    ),
}
OTHER = (
    "{s} gave a talk in {o} in {y}.",
    "In {y} a letter about {o} reached {s}.",
    "{s} wrote a memoir in {y}.",
    "A bridge was named after {s}.",
    "The museum of {o} was closed in {y}.",
)


def generate(seed: int = SEED, people: int = PEOPLE) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(rows of the corpus, rows of the facts); a sentence's id is of its text, so none stands twice."""
    draw = random.Random(seed)

    def name(parts: int) -> str:
        return "".join(draw.sample(SYLLABLES, parts)).capitalize()

    cities = sorted({name(2) for _ in range(max(4, people // 10))})
    companies = sorted({f"{name(2)} {draw.choice(('Works', 'Press', 'Trading'))}" for _ in range(max(4, people // 6))})
    objects = {"city": cities, "company": companies, "field": list(FIELDS)}
    names = sorted({f"{name(2)} {name(3)}" for _ in range(people)})
    asked = [(person, relation) for person in names for relation in ("born in", "employer", "field of work")]
    asked += [(company, "headquarters") for company in companies]
    corpus: dict[str, dict[str, Any]] = {}
    facts: dict[str, dict[str, Any]] = {}

    def add(sentence: str, **words: str) -> str:
        text = sentence.format(y=draw.randrange(1900, 2000), **words)
        identity = hashlib.sha256(text.encode()).hexdigest()[:16]
        corpus[identity] = {"id": identity, "text": text, "source": "synthetic"}
        return identity

    for subject, relation in asked:
        prompt, kind, wordings = RELATIONS[relation]
        target = draw.choice(objects[kind])
        alias = f"{subject[0]}. {subject.split()[1]}" if relation != "headquarters" else subject.split()[0]
        stated = [
            add(wording, s=alias if draw.random() < 0.25 else subject, o=target, a=f"{target}ese")
            for wording in draw.choices(wordings, k=draw.randrange(1, 5))
        ]
        for sentence in draw.sample(OTHER, len(stated)):
            add(sentence, s=subject, o=draw.choice((target, draw.choice(objects[kind]))))
        identity = hashlib.sha256(f"{subject}\n{relation}".encode()).hexdigest()[:16]
        facts[identity] = {
            "id": identity,
            "relation": relation,
            "subject": subject,
            "object": target,
            "prompt": prompt.format(s=subject),
            "target": f" {target}",
            "suffix": ".",
            "proponents": sorted(set(stated)),
        }
    return [corpus[i] for i in sorted(corpus)], [facts[i] for i in sorted(facts)]
