"""A manifest reads back as itself, gives the same bytes for the same job, and is refused where it does not fit."""

import json
from dataclasses import replace

import pytest

from schemas.errors import ArtifactMismatch
from schemas.manifest import (
    FORMAT_VERSION,
    FileInfo,
    Manifest,
    check_counts,
    content_sha256,
    parse_manifest,
    require_match,
)

MANIFEST = Manifest(
    kind="index",
    config={"corpus": "gs://b/ü-*.jsonl", "signals": ["bm25"]},
    versions={"proponent": "0.1.0"},
    counts={"in": 5, "kept": 3, "removed": 1, "dead": 1},
    details={"weights": {"bm25": 0.95}},
    files=[FileInfo("bm25/00000/rows.npy", 3, 140, "ab"), FileInfo("a", 0, 0, "cd")],
)


def changed(**fields: object) -> bytes:
    """The manifest with other fields and the hash of its new content."""
    row = {**json.loads(MANIFEST.to_json()), **fields}
    return json.dumps(row | {"sha256": content_sha256(row)}).encode()


def test_a_written_manifest_reads_back_as_itself():
    assert parse_manifest(MANIFEST.to_json(), "folder", "index") == MANIFEST


def test_bytes_do_not_depend_on_the_order_of_the_keys():
    reordered = replace(MANIFEST, config=dict(reversed(MANIFEST.config.items())))
    assert list(reordered.config) != list(MANIFEST.config)
    assert reordered.to_json() == MANIFEST.to_json()
    assert "ü" in MANIFEST.to_json().decode() and MANIFEST.to_json().endswith(b"}\n")


def test_one_edited_by_hand_is_refused_with_both_hashes_however_small_the_edit():
    written = MANIFEST.to_json()
    row = json.loads(written)
    assert parse_manifest(json.dumps(dict(reversed(row.items()))).encode(), "here", "index") == MANIFEST  # layout only
    for old, new in ((b'"rows": 3', b'"rows": 4'), (b"0.95", b"0.96"), (b'"sha256": "ab"', b'"sha256": "ac"')):
        assert written.count(old) == 1
        with pytest.raises(ArtifactMismatch, match=rf"manifest.json: .* {row['sha256']}, found \w{{64}}: .*restore"):
            parse_manifest(written.replace(old, new), "here", "index")
    row.pop("sha256")
    with pytest.raises(ArtifactMismatch, match="that it names, none, found"):
        parse_manifest(json.dumps(row).encode(), "here", "index")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"{}", b'{"kind": "index"}', b"\xff"])
def test_what_is_no_manifest_is_refused_with_the_remedy(data):
    with pytest.raises(
        ArtifactMismatch, match=r"here/manifest.json: expected a manifest of proponent.*make the folder"
    ):
        parse_manifest(data, "here", "index")


@pytest.mark.parametrize("data", [changed(files=[{"name": "a"}]), changed(files=None), changed(more=1)])
def test_a_manifest_that_lacks_its_fields_is_refused_with_the_remedy(data):
    with pytest.raises(
        ArtifactMismatch, match=r"here/manifest.json: expected a manifest of proponent.*make the folder"
    ):
        parse_manifest(data, "here", "index")


def test_another_format_version_is_refused_with_both_versions():
    with pytest.raises(ArtifactMismatch, match=f"here: expected format version {FORMAT_VERSION}, found 999; .*again"):
        parse_manifest(changed(format_version=999), "here", "index")


def test_another_kind_is_refused_with_both_kinds():
    with pytest.raises(ArtifactMismatch, match="here: expected a folder of kind 'rankings', found 'index'; check the"):
        parse_manifest(MANIFEST.to_json(), "here", "rankings")


def test_counts_must_add_up():
    check_counts({"in": 6, "kept": 3, "removed": 2, "dead": 1})
    for name in ("in", "kept", "removed", "dead"):
        counts = {"in": 6, "kept": 3, "removed": 2, "dead": 1}
        counts[name] += 1
        with pytest.raises(AssertionError, match=f"{counts['in']} records came in"):
            check_counts(counts)


def test_a_mismatch_names_both_values_and_the_remedy():
    require_match("tokenizer", {"a": 1}, {"a": 1}, "index again")
    with pytest.raises(ArtifactMismatch, match=r"^tokenizer: expected aa, found bb; index again$"):
        require_match("tokenizer", "aa", "bb", "index again")
