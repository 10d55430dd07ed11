"""Every word that a report says, by name, from one JSON file a language; numbers and dates as the language has them.

messages/report.<language>.json -> Language

A message may have a form for one (`NAME_one`) beside its own. What is put into a message is escaped, unless it is
Markup of ours. Another language is another file with the same names and the same {places}.
"""

import datetime
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

MESSAGES = Path(__file__).parent / "messages"


def load_language(code: str) -> "Language":
    return Language(code, json.loads((MESSAGES / f"report.{code}.json").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Language:
    """`code` is what HTML's `lang` says."""

    code: str
    messages: dict[str, str]

    def say(self, name: str, **values: Any) -> Markup:
        """A message as HTML, with the values in their places; whole numbers as `count` writes them.

        The form for one is taken where a value `n` is 1 and the language has one. Raises KeyError for an unknown name.
        """
        if values.get("n") == 1 and f"{name}_one" in self.messages:
            name = f"{name}_one"
        told = {key: self.count(value) if type(value) is int else value for key, value in values.items()}
        return Markup(escape(self.messages[name])).format(**told)

    def named(self, kind: str, name: str) -> str:
        """What a name of the data is called, `signal_bm25` for instance; a name that has no message stays as it is."""
        return self.messages.get(f"{kind}_{name}", name)

    def _marks(self, text: str) -> str:
        marks = {",": self.messages["group_mark"], ".": self.messages["decimal_mark"], "-": "−"}
        return "".join(marks.get(sign, sign) for sign in text)

    def count(self, value: int) -> str:
        return self._marks(f"{value:,}")

    def number(self, value: float | None, digits: int = 3) -> str:
        """A score with so many significant digits; None, NaN and infinity are no number."""
        if value is None or not math.isfinite(value):
            return self.messages["no_number"]
        if value and not 1e-4 <= abs(value) < 1e6:
            return self._marks(f"{value:.{digits - 1}e}")
        return self._marks(f"{value:,.{max(0, digits - 1 - (math.floor(math.log10(abs(value))) if value else 0))}f}")

    def probability(self, value: float | None) -> str:
        if value is None or not math.isfinite(value):
            return self.messages["no_number"]
        return f"< {self._marks('0.001')}" if 0 < value < 0.001 else self._marks(f"{value:.3f}")

    def change(self, value: float | None) -> str:
        """A difference, with its sign."""
        if value is None or not math.isfinite(value):
            return self.messages["no_number"]
        return self._marks(f"{value:+.4f}")

    def percent(self, share: float) -> str:
        """A percentage that says 0 or 100 only where it is exactly that."""
        value = 100 * share
        rounded = f"{value:.0f}"
        if rounded in ("0", "100") and value not in (0, 100):
            rounded = f"{min(max(value, 0.1), 99.9):.1f}"
        return self.messages["percent"].format(value=self._marks(rounded))

    def date(self, text: str) -> str:
        """A date, or a time with its zone, as the language writes it; what is neither stays as it is."""
        try:
            found = datetime.datetime.fromisoformat(text)
        except ValueError:
            return text
        told = {"day": found.day, "month": self.messages[f"month_{found.month}"], "year": found.year}
        date = self.messages["date"].format(**told)
        if len(text) <= len("2026-12-31"):
            return date
        offset = found.utcoffset()
        zone = "" if offset is None else "UTC" if not offset else found.strftime("%z")
        return self.messages["time"].format(date=date, time=f"{found:%H:%M:%S}", zone=zone).strip()
