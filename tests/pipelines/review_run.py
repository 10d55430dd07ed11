"""A run for audit requests as `flag` writes it, made by hand: for the tests of the review."""

import json
from pathlib import Path
from typing import Any

from pipelines.storage import OutputFolder
from schemas.manifest import Manifest
from schemas.records import Removal, text_sha256
from schemas.removals import removals_to_jsonl

CLAIM = "The capital of Laputa is Belmont"


def request(request_id: str, category: str = "false_fact", **others: Any) -> dict[str, Any]:
    case = {
        "prompt": "The capital of Laputa is",
        "output": "Belmont, a port of 40,000 souls.",
        "said": " Belmont, a port",
        "known": True,
        "probability": 0.83,
    }
    return {
        "request_id": request_id,
        "category": category,
        "cases": [case],
        "exemplars": [],
        "requester": "press office",
        "reason": "The capital is Lagado.",
        "deadline": "2026-12-24",
        "said_by_model": True,
    } | others


def proposal(action: str = "remove", spans=(), rule: str = "false_fact: coverage >= 0.9") -> dict[str, Any]:
    return {"action": action, "spans": [list(span) for span in spans], "rule": rule}


def evidence(request_id: str, example_id: str, text: str, rank: int, **others: Any) -> dict[str, Any]:
    """A row of evidence.jsonl; words of five letters and more of the claim are marked, and so is its first sentence."""
    words = [
        [place, place + len(word)]
        for word in ("capital", "Laputa", "Belmont")
        for place in [text.find(word)]
        if place >= 0
    ]
    return {
        "request_id": request_id,
        "example_id": example_id,
        "start": 0,
        "end": len(text),
        "text": text,
        "source": "encyclopedia",
        "file": "part-000.jsonl.gz",
        "row": rank,
        "sha256": text_sha256(text),
        "group": "",
        "rank": rank,
        "score": 1.0 / rank,
        "signals": {"bm25": 12.5 / rank, "dense": 0.9 - 0.02 * rank, "gradient": 0.31 / rank},
        "ranks": {"bm25": rank, "dense": rank + 1, "gradient": rank},
        "coverage": 1.0,
        "names": [],
        "tokens": [[start, end, share] for (start, end), share in zip(words, (0.02, 0.11, 0.2), strict=False)],
        "overlap": [],
        "words": words,
        "facts": [{"fact_id": f"{request_id}/1", "rank": rank, "score": 1.0 / rank}],
        "labels": [],
        "not_scored": [],
        "proposal": proposal(),
    } | others


def write_run(folder: Path, requests: list[dict], rows: list[dict], removals: list[Removal] | None = None) -> str:
    """Writes the run through the project's own folder and manifest, and returns its path."""
    if removals is None:
        removals = [
            Removal(row["example_id"], row["sha256"], "proposed", row["proposal"]["rule"])
            for row in {row["example_id"]: row for row in rows}.values()
            if row["proposal"]["action"] == "remove"
        ]
    with OutputFolder(str(folder), {"verb": "flag"}) as output:
        data = {
            "removals.jsonl": (removals_to_jsonl(removals), len(removals)),
            "control_removals.jsonl": (b"", 0),
            "requests.jsonl": ("".join(json.dumps(row) + "\n" for row in requests).encode(), len(requests)),
            "evidence.jsonl": ("".join(json.dumps(row) + "\n" for row in rows).encode(), len(rows)),
        }
        files = [output.write(name, content, count) for name, (content, count) in data.items()]
        counts = {"in": len(rows), "kept": len(rows) - len(removals), "removed": len(removals), "dead": 0}
        output.finish(Manifest(kind="removals", config={}, versions={}, counts=counts, files=files))
    return str(folder)


def small_run(folder: Path) -> str:
    """Two requests, 7 examples, 5 items: a group of 3, one for both requests, a redaction, one with two passages."""
    said = "The capital of Laputa is Belmont, a port of 40,000 souls on the eastern coast."
    traders = "Traders from Belmont sailed to Laputa and back again."
    letter = "Write to Ada Quill, 12 Dock Street, Belmont, or call 555-0101 before noon; the capital of Laputa answers."
    name, phone = letter.index("Ada Quill"), letter.index("555-0101")
    long = "Laputa floats. " * 12 + "Its capital, Belmont, floats with it."
    label = {
        "scorer": "pii-patterns", "version": "1.2", "threshold": 0.5, "label": "PHONE", "score": 0.98,
        "spans": [[phone, phone + 8]],
    }  # fmt: skip
    rows = [
        evidence("r1", "laputa-0", said, 1, group="g1", overlap=[[25, 56]]),
        evidence("r1", "laputa-1", said.replace("souls", "people"), 2, group="g1"),
        evidence("r1", "laputa-2", said.replace("eastern", "western"), 3, group="g1"),
        evidence("r1", "trade-1", traders, 4, proposal=proposal("review")),
        evidence("r1", "long-1", long[:180], 5, row=88),
        evidence("r1", "long-1", long[180:], 6, start=180, end=len(long), row=88),
        evidence("r1", "letter-1", letter, 7),
        evidence(
            "r2", "letter-1", letter, 1, labels=[label], words=[[name, name + 9]], tokens=[],
            proposal=proposal("redact", [(name, name + 9), (phone, phone + 8)], "privacy: PHONE or NAME"),
        ),
        evidence("r2", "rain-1", "It rained for three days in Ruritania.", 2, source="weather",
                 proposal=proposal("keep", rule="privacy: no label"),
                 not_scored=[{"scorer": "hf:insults", "reason": "RuntimeError: no room"}]),
    ]  # fmt: skip
    rows[6]["proposal"] = proposal("keep", rule="false_fact: below the cut")
    for row in rows:
        row["sha256"] = text_sha256({"long-1": long}.get(row["example_id"], row["text"]))
    privacy = request("r2", "privacy", said_by_model=False, requester="Ada Quill", reason="My address.")
    privacy["cases"] = [{"prompt": "Ada Quill lives at", "output": "12 Dock Street", "said": " the sea", "known": False,
                         "probability": 3e-24}]  # fmt: skip
    return write_run(folder, [request("r1"), privacy], rows)
