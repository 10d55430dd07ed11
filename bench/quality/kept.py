"""What is expensive is kept in the output folder under a hash of what it depends on, for `--resume`.

A kept folder is `NAME-HASH` with its `key.json`, which is written last: without one it is unfinished.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.quality.data import say
from schemas.errors import ConfigError

KEY = "key.json"


def open_output(out: Path, resume: bool) -> None:
    """Makes the folder of a run. Raises ConfigError for one that holds something, unless the run resumes."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not resume:
        raise ConfigError(
            f"--out {out}: expected a new or empty folder, found files; give another one, or --resume to use what is "
            "kept in it"
        )
    out.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class Kept:
    """The kept folders of a run."""

    out: Path

    def folder(self, name: str, key: dict[str, Any], make: Callable[[Path], None]) -> Path:
        """The folder `name` of this key; `make(folder)` makes it, or goes on making it, where it is not finished."""
        text, place = _text(key), self.place(name, key)
        if self.finished(name, key):
            say(f"{name}: kept in {place.name}, used again")
            return place
        for other in sorted(set(self.out.glob(f"{name}-*")) - {place}):
            say(f"{name}: made anew, {_why(other, json.loads(text))}")
            shutil.rmtree(other)
        place.mkdir(exist_ok=True)
        make(place)
        (place / KEY).write_text(text)
        return place

    def place(self, name: str, key: dict[str, Any]) -> Path:
        """Where the folder `name` of this key is, or would be."""
        return self.out / f"{name}-{hashlib.sha256(_text(key).encode()).hexdigest()[:16]}"

    def finished(self, name: str, key: dict[str, Any]) -> bool:
        return (self.place(name, key) / KEY).is_file()


def _text(key: dict[str, Any]) -> str:
    return json.dumps(key, indent=1, sort_keys=True)


def _why(other: Path, key: dict[str, Any]) -> str:
    if not (other / KEY).is_file():
        return f"{other.name} was not finished"
    found = json.loads((other / KEY).read_text())
    differing = sorted(name for name in found.keys() | key.keys() if found.get(name) != key.get(name))
    changes = [f"{name} was {_short(found.get(name))} and is {_short(key.get(name))}" for name in differing]
    return f"what is kept in {other.name} is another's: {'; '.join(changes)}"


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 80 else f"{text[:77]}..."
