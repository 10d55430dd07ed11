"""Progress bars of long steps and the summary table at their end, on standard error.

A bar lives in the process that does the work: on the local runner that is the driver, on a cluster a worker's log.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from schemas.visible import visible

_state = {"quiet": False}


def set_quiet(quiet: bool) -> None:
    _state["quiet"] = quiet


def is_quiet() -> bool:
    return _state["quiet"]


@contextmanager
def bar(label: str, total: int | None, unit: str) -> Iterator[Callable[..., None]]:
    """Yields `advance(count, tokens=0)`; the bar shows the rate, the time left and tokens a second."""
    with tqdm(
        total=total, desc=label, unit=f" {unit}", disable=_state["quiet"], file=sys.stderr, mininterval=0.5, leave=True
    ) as shown:
        seen = {"tokens": 0}

        def advance(count: int, tokens: int = 0) -> None:
            seen["tokens"] += tokens
            elapsed = shown.format_dict["elapsed"]
            if tokens and elapsed:
                shown.set_postfix_str(f"{seen['tokens'] / elapsed:,.0f} tokens/s", refresh=False)
            shown.update(count)

        yield advance


def summary(title: str, rows: dict[str, object]) -> None:
    """The table that a verb ends with; a value may come from a corpus, and nothing in it acts on the terminal."""
    if _state["quiet"]:
        return
    table = Table(title=title, show_header=False, title_justify="left", min_width=min(60, 20 + len(title)))
    for name, value in rows.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else visible(str(value)))
    Console(stderr=True, markup=False, emoji=False).print(table)
