"""JSON lines as bytes: how every such file of ours is written."""

import json
from collections.abc import Iterable
from typing import Any


def jsonl_bytes(rows: Iterable[dict[str, Any]]) -> bytes:
    """A row a line, in UTF-8."""
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
