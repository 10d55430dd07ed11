"""Personal data and secrets by patterns: what is found in a text, by label, as character spans.

Phone numbers are found and checked by phonenumbers, card numbers, IBANs and US social security numbers are checked by
python-stdnum (check digits, ranges, the lengths of each country), secrets are those of detect-secrets' detectors. No
detector asks a server whether what it found is in force.

Not looked for: names and street addresses, which no pattern tells; what detect-secrets tells by entropy or by a word
such as "password" before it: in prose that is nearly always a title or a name in quotes.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from functools import lru_cache

from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.plugins.base import RegexBasedDetector
from phonenumbers import Leniency, PhoneNumberMatcher
from stdnum import iban, luhn
from stdnum.us import ssn

from schemas.records import joined_spans

Span = tuple[int, int]
Spans = dict[str, list[Span]]
# Countries whose numbers are told without their +: Germany's, for instance, may be as short as a year.
NATIONAL = ("US", "GB")
_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+[^\W\d_]{2,24}\b")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{2,4}){3,8}(?!\w)")
_CARD = re.compile(
    r"(?<![\w.+-])(?:\d{4}(?P<a>[ -]?)\d{4}(?P=a)\d{4}(?P=a)\d{1,4}(?:(?P=a)\d{1,3})?"
    r"|\d{4}(?P<b>[ -]?)\d{6}(?P=b)\d{4,5})(?![\w-]|\.\d)"
)
# Visa, Mastercard, American Express, Diners, JCB, and Discover with UnionPay: the digits they begin with, and how many.
_ISSUED = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[689]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12,15}|6(?:011|4[4-9]\d|5\d\d|2\d\d)\d{12,15}"
)
_SSN = re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])")
_IP = re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\w)")
_VERSION = re.compile(r"(?:\bv|\bversions?|\breleases?|\bbuild|\bfirmware)[.:]?\s*$", re.IGNORECASE)
_NEAR = 20  # characters before a number that may say that it is a version
# Where a detector's pattern is the beginning of the secret alone: the rest of it.
_REST = {
    "Private Key": re.compile(r".*?-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|.*", re.DOTALL),
    "JSON Web Token": re.compile(r"[\w.+/=-]*[\w+/=-]|"),
}
_OTHERS = ("Public IP (ipv4)",)  # no secret


def _emails(text: str) -> Iterator[Span]:
    return (match.span() for match in _EMAIL.finditer(text))


def _ibans(text: str) -> Iterator[Span]:
    """Words in capitals may follow an IBAN: it ends where its check digits say so."""
    for match in _IBAN.finditer(text):
        found = match.group()
        while found and not iban.is_valid(found):
            found = found.rpartition(" ")[0]
        if found:
            yield match.start(), match.start() + len(found)


def _cards(text: str) -> Iterator[Span]:
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match.group())
        if _ISSUED.fullmatch(digits) and luhn.is_valid(digits):
            yield match.span()


def _social_security(text: str) -> Iterator[Span]:
    return (match.span() for match in _SSN.finditer(text) if ssn.is_valid(match.group()))


def _phones(text: str) -> Iterator[Span]:
    """International numbers, and those of NATIONAL countries written in their groups: a bare run of digits is none."""
    for country in NATIONAL:
        for match in PhoneNumberMatcher(text, country, leniency=Leniency.STRICT_GROUPING):
            found = match.raw_string
            if not found.isdigit():
                # A bracket that is not closed in the number is the sentence's.
                yield match.start + (found[0] == "(" and ")" not in found), match.end


def _addresses(text: str) -> Iterator[Span]:
    """Public IPv4 addresses; mostly single digits are a version, a section, or an enzyme's number (EC 3.2.1.20)."""
    for match in _IP.finditer(text):
        parts = match.group().split(".")
        if (
            sum(len(part) > 1 for part in parts) < 2
            or max(map(int, parts)) > 255
            or any(len(p) > 1 and p[0] == "0" for p in parts)
        ):
            continue
        before = text[max(0, match.start() - _NEAR) : match.start()]
        if ipaddress.ip_address(match.group()).is_global and not _VERSION.search(before):
            yield match.span()


# In the order in which they take characters: the digits of an IBAN are no phone number.
PERSONAL: dict[str, Callable[[str], Iterator[Span]]] = {
    "email": _emails,
    "iban": _ibans,
    "card": _cards,
    "us_ssn": _social_security,
    "phone": _phones,
    "ip": _addresses,
}


def personal_data(text: str) -> Spans:
    """Spans of personal data by label, each sorted; no character is in two."""
    taken: list[Span] = []
    found: Spans = {}
    for label, find in PERSONAL.items():
        spans = sorted(s for s in set(find(text)) if all(s[1] <= start or end <= s[0] for start, end in taken))
        if spans:
            found[label] = spans
            taken += spans
    return found


@lru_cache(maxsize=1)
def _detectors() -> list[RegexBasedDetector]:
    known = sorted(get_mapping_from_secret_type_to_class().items())
    return [made() for kind, made in known if issubclass(made, RegexBasedDetector) and kind not in _OTHERS]


def secrets(text: str) -> Spans:
    """Spans of secrets by detect-secrets' name of their kind; a private key's reaches to its end."""
    found: Spans = {}
    for detector in _detectors():
        spans = set()
        for match in (m for pattern in detector.denylist for m in pattern.finditer(text)):
            if not any(True for _ in detector.analyze_string(match.group())):
                continue  # a detector may ask more of it than its pattern does
            start, end = match.span()
            if detector.secret_type in _REST:
                end = _REST[detector.secret_type].match(text, end).end()
            spans.add((start, end))
        if spans:
            found[detector.secret_type] = list(joined_spans(spans))
    return found
