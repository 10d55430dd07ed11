"""Evidence as a table for a spreadsheet program, which runs what looks like a formula: evidence.csv.

As OWASP's page on CSV injection says, a cell that begins with = + - @, a tab, a carriage return or a line feed (or one
of the signs' full-width forms) gets a leading apostrophe, which makes it text. All texts are quoted, so that no
separator within one begins another cell where the program separates at semicolons. Numbers that the audit itself
computed stay numbers, negative ones too. Hidden characters are named (`schemas.visible`), since a spreadsheet shows
them no better than a terminal.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from schemas.visible import visible

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
MOST = 30_000  # characters of a cell: spreadsheet programs take 32,767


def cell(value: Any) -> Any:
    """A number as it is; anything else as a text that no spreadsheet program reads as a formula."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value if value == value and abs(value) != float("inf") else ""
    text = "" if value is None else str(value)
    shown = visible(text[:MOST])
    shown = shown if len(text) <= MOST else f"{shown[:MOST]} … +{len(text) - MOST}"
    return f"'{shown}" if text.startswith(_FORMULA) or shown.startswith(_FORMULA) else shown


def csv_bytes(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """The table in UTF-8 with a mark of it at its start, without which a spreadsheet program guesses another."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow([cell(name) for name in heading])
    writer.writerows([cell(value) for value in row] for row in rows)
    return b"\xef\xbb\xbf" + out.getvalue().encode()
