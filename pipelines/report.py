"""`report`: what an audit found, decided and changed, as pages that any browser opens without a network or a script.

RUN/ with its ledger (+ cleaned corpus, certificate, verification) -> audit.py reads -> report_rows.py arranges
     -> templates/audit_*.j2, in a language -> index.html, <request>.html, evidence.csv, manifest.json

The same input gives the same bytes: the pages have no date of their own. They say what was asked and measured.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from pipelines import progress
from pipelines.audit import Verification, read_audit
from pipelines.config import ReportConfig
from pipelines.report_rows import csv_heading, csv_rows, totals
from pipelines.spreadsheet import csv_bytes
from pipelines.stage import library_versions
from pipelines.storage import OutputFolder, join
from schemas.errors import ConfigError
from schemas.ledger import manifest_sha256
from schemas.manifest import Manifest
from schemas.visible import visible

if TYPE_CHECKING:
    from pipelines.report_pages import Pages

INDEX = "index.html"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_RESERVED = {"index", "con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
MOST_NAME = 80


def page_names(request_ids: Iterable[str]) -> dict[str, str]:
    """A file name for each request: its id where that is a safe one on every system, and no other's in any case.

    Any other has its unsafe characters replaced and the beginning of the id's SHA-256 added.
    """
    ids = list(request_ids)
    plain = {request_id: _UNSAFE.sub("_", request_id).strip("._-")[:MOST_NAME] for request_id in ids}
    alike = Counter(name.casefold() for name in plain.values())
    names, used = {}, {"index"}
    for request_id, name in plain.items():
        safe = name == request_id and name.split(".")[0].casefold() not in _RESERVED
        if safe and alike[name.casefold()] == 1:
            names[request_id] = name
            used.add(name.casefold())
    for request_id, name in plain.items():
        if request_id not in names:
            digest = hashlib.sha256(request_id.encode("utf-8", "surrogatepass")).hexdigest()
            tried = (f"{name or 'request'}-{digest[:length]}" for length in range(8, len(digest) + 1))
            names[request_id] = next(one for one in tried if one.casefold() not in used)
            used.add(names[request_id].casefold())
    return {request_id: f"{names[request_id]}.html" for request_id in ids}


def _load_pages(config: ReportConfig) -> "Pages":
    try:
        from pipelines.report_pages import Pages
    except ImportError as error:
        raise ConfigError(
            f"expected the libraries of the report, found: {error}; pip install 'proponent[report]'"
        ) from error
    return Pages(config.language)


def run(config: ReportConfig) -> Manifest:
    """Writes the pages to `config.output`. Raises ConfigError or ArtifactMismatch for an input that is not whole."""
    pages, audit = _load_pages(config), read_audit(config)
    names = page_names(audit.case.requests)
    plan = {name: value for name, value in asdict(config).items() if name != "quiet"}
    plan |= {"run_manifest": manifest_sha256(audit.case.folder), "ledger": [len(audit.entries), audit.head]}
    with OutputFolder(config.output, plan) as output:
        files = []
        for request_id, name in names.items():
            html, passages = pages.request(audit, request_id)
            files.append(output.write(name, html.encode("utf-8"), passages))
        files.append(output.write(INDEX, pages.index(audit, names).encode("utf-8"), len(names)))
        rows = list(csv_rows(audit))
        files.append(output.write("evidence.csv", csv_bytes(csv_heading(audit), rows), len(rows)))
        manifest = Manifest(
            kind="report",
            config={name: value for name, value in asdict(config).items() if name != "quiet"},
            versions=library_versions(),
            counts={"in": len(names), "kept": len(names), "removed": 0, "dead": 0},
            details={
                "pages": {name: visible(i) for i, name in names.items()},
                "ledger": {"entries": len(audit.entries), "hash": audit.head},
            },
            files=files,
        )
        output.finish(manifest)
    found = totals(audit)
    progress.summary(
        "report",
        {
            "requests": len(names),
            "training texts found": found["found"],
            "approved for removal": found["remove"],
            "approved for redaction": found["redact"],
            "kept": found["kept"] + found["not_proposed"],
            "undecided": found["undecided"],
            "measured": _measured(audit.verification),
            "open": join(config.output, INDEX),
        },
    )
    return manifest


def _measured(verification: Verification | None) -> str:
    if verification is None:
        return "no verification given"
    return "a prediction" if verification.predicted else "before, after and control"
