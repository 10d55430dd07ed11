"""Which records `clean` acts on: by the decisions of people, or by a third party's list of ids, hashes or domains.

A third party (a rights holder, a hotline, a registry of opt-outs) lists what it knows of, without having seen the
corpus. So an entry of a list of hashes or domains that matches nothing is no error: it is counted and told. An id is
ours: one that stands nowhere is refused, as that of a decision is.
"""

import os
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from pipelines.config import CleanConfig
from pipelines.decisions import read_approved
from pipelines.storage import STAGES, join, read_bytes
from schemas.records import Removal, text_sha256
from schemas.removals import domain, parse_list, parse_removals, removals_to_jsonl

_WITH_HOST = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*:)?//")
PICKS = f"{STAGES}/picks"  # the approved decisions, or the list, as the workers read it
# (id, text, fields) -> (the decision about the record, the entry that picks it), None for a record that stays
Picker = Callable[[str, str, dict[str, Any]], tuple[Removal, str] | None]


def read_picks(config: CleanConfig) -> tuple[list[str], bytes]:
    """(the entries: ids, hashes or domains, what the workers read). Raises ConfigError where there is nothing to do."""
    if config.removals_are != "decisions":
        entries = parse_list(read_bytes(config.removals), config.removals, config.removals_are)
        return entries, "".join(f"{entry}\n" for entry in entries).encode()
    removals = read_approved(config.removals)
    return [removal.example_id for removal in removals], removals_to_jsonl(removals)


@lru_cache(maxsize=2)
def picker(folder: str, config: CleanConfig) -> Picker:
    """The choice that a job's folder holds."""
    path = join(folder, PICKS)
    data = read_bytes(path)
    if config.removals_are == "decisions":
        by_id = {removal.example_id: (removal, removal.example_id) for removal in parse_removals(data, path)}
        return lambda record_id, text, fields: by_id.get(record_id)
    entries = frozenset(parse_list(data, path, config.removals_are))
    reason = config.reason or f"on the list {os.path.basename(config.removals)} of {config.removals_are}"

    def listed(record_id: str, text: str, entry: str, why: str) -> tuple[Removal, str]:
        return Removal(record_id, text_sha256(text), "approved", why, config.by), entry

    def by_listed_id(record_id: str, text: str, fields: dict[str, Any]) -> tuple[Removal, str] | None:
        return listed(record_id, text, record_id, reason) if record_id in entries else None

    def by_hash(record_id: str, text: str, fields: dict[str, Any]) -> tuple[Removal, str] | None:
        sha256 = text_sha256(text)
        return listed(record_id, text, sha256, reason) if sha256 in entries else None

    def by_domain(record_id: str, text: str, fields: dict[str, Any]) -> tuple[Removal, str] | None:
        for name in domains_of(fields.get(config.url_field)):
            if name in entries:
                return listed(record_id, text, name, f"{reason}: {name}")
        return None

    return {"ids": by_listed_id, "sha256": by_hash, "domains": by_domain}[config.removals_are]


def domains_of(url: Any) -> Iterator[str]:
    """The host of a URL and every domain above it, nearest first; nothing for what is no URL."""
    try:
        host = urlsplit(url if _WITH_HOST.match(url) else f"//{url}").hostname if isinstance(url, str) else None
    except ValueError:
        return  # brackets that hold no address, for instance: it has no host
    name = domain(host or "")
    while name:
        yield name
        name = name.partition(".")[2]
