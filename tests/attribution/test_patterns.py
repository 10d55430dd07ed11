"""Personal data and secrets: planted ones are found with their span, what looks like them is not."""

import itertools
import time

import pytest

from attribution.patterns import personal_data, secrets

TOKEN = "ghp_" + "aB3dE6gH9j" * 3 + "kL2mN5"
JWT = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0."
    "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
)  # fmt: skip
KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAKC\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("label", "found"),
    [
        ("email", "ann.lee+news@mail.example.co.uk"),
        ("email", "jürgen@müller.de"),
        ("phone", "+44 20 7946 0958"),
        ("phone", "+33 1 42 68 53 00"),
        ("phone", "(212) 456-7890"),
        ("phone", "+1-212-456-7890"),
        ("phone", "020 7946 0958"),
        ("card", "4111 1111 1111 1111"),
        ("card", "5555555555554444"),
        ("card", "3782 822463 10005"),
        ("iban", "DE89 3704 0044 0532 0130 00"),
        ("iban", "GB82WEST12345698765432"),
        ("us_ssn", "536-90-4399"),
        ("ip", "91.198.174.192"),
    ],
)
@pytest.mark.parametrize(("before", "after"), [("", ""), ("Write to ", " today."), ("联系 ", "，谢谢"), ("(", ")")])
def test_personal_data_is_found_where_it_stands(label, found, before, after):
    text = before + found + after
    assert personal_data(text) == {label: [(len(before), len(before) + len(found))]}


@pytest.mark.parametrize(
    "text",
    [
        "She was born on 12/03/1985, or 2021-03-15, or on 15.03.2021 at 10:30.",
        "From 1998-2003 and 1914–1918 it was 2026-11-27T22:15:54.",
        "ISBN 978-0-306-40615-7, ISBN 2-1234-5680-2, ISBN 2253006327, ISBN 9780306406157, ISSN 2049-3630.",
        "Version 10.0.19041.1, v2.15.30.20, version 13.0.34.12, release 1.2.3.4, section 3.2.1.3, EC 3.2.1.20.",
        "A population of 2,345,678 and 1.234.567.890 stars, pi is 3.14159265358979323846.",
        "arXiv:2002.08484, doi 10.1000/182.2020, 40.7128, -74.0060",
        "4111 1111 1111 1112 fails the check of Luhn, so does 5555555555554445.",
        "6304000000000000 is nobody's, 1700000000000000000 a time in nanoseconds, 20210315123045678 too.",
        "DE89 3704 0044 0532 0130 01 fails its check digits, XX89370400440532013000 has no country.",
        "000-12-3456, 666-12-3456 and 923-45-6789 were never given to anyone.",
        "Hosts 192.168.100.200, 10.20.30.40, 127.0.0.1 and 300.400.500.600 are not public.",
        "user@localhost, @handle, a @ b.com, 5 @ 10.50",
        "2124567890",
        "",
    ],
)
def test_what_looks_like_personal_data_is_none(text):
    assert personal_data(text) == {}


def test_one_text_holds_many_and_no_character_is_in_two():
    text = "Ann, ann@x.org, +44 20 7946 0958; Bob, bob@x.org, pays from GB82 WEST 1234 5698 7654 32 WITH LOVE."
    found = personal_data(text)
    told = {label: [text[start:end] for start, end in spans] for label, spans in found.items()}
    assert told == {
        "email": ["ann@x.org", "bob@x.org"],
        "phone": ["+44 20 7946 0958"],
        "iban": ["GB82 WEST 1234 5698 7654 32"],
    }
    spans = sorted(span for spans in found.values() for span in spans)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


@pytest.mark.parametrize(
    ("label", "found"),
    [
        ("GitHub Token", TOKEN),
        ("AWS Access Key", "AKIAIOSFODNN7EXAMPLE"),
        ("JSON Web Token", JWT),
        ("Private Key", KEY[5:]),
        ("Stripe Access Key", "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc"),
        ("Basic Auth Credentials", "://ann:hunter22@"),
    ],
)
def test_a_secret_is_found_whole(label, found):
    text = f"key: {found} and no more"
    assert secrets(text) == {label: [(5, 5 + len(found))]}


def test_a_private_key_that_is_cut_reaches_to_the_end():
    text = "Here: " + KEY[:45]
    assert secrets(text) == {"Private Key": [(11, len(text))]}


@pytest.mark.parametrize(
    "text",
    [
        "The password of the game was never told.",
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.bm90IGpzb24.abc",  # its second part is no JSON
        "ghp_tooshort, AKIA1234, sk_live_x, begin a private key",
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08, 91.198.174.192",
        '"Supercalifragilisticexpialidocious"',
        "",
    ],
)
def test_what_looks_like_a_secret_is_none(text):
    assert secrets(text) == {}


@pytest.mark.parametrize("text", ["x" * 2**20, "1" * 2**20, "a." * 2**18, "a@" * 2**18, "1-" * 2**16, "A1 " * 2**18])
def test_a_megabyte_of_one_kind_takes_seconds(text):
    start = time.perf_counter()
    personal_data(text)
    secrets(text)
    assert time.perf_counter() - start < 20
