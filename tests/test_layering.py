"""Who may import what. Read from the syntax trees, so that an import inside a function counts as well."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("schemas", "attribution", "pipelines", "tests", "bench")
LOWER = {
    "schemas": {"schemas"},
    "attribution": {"schemas", "attribution"},
    "pipelines": {"schemas", "attribution", "pipelines"},
}
BEAM_ALLOWED = ("pipelines/", "tests/", "bench/")


def imported(source: str) -> Iterator[str]:
    """The dotted names that a module imports anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            yield from (str(a.value) for a in node.args[:1] if isinstance(a, ast.Constant))


def violations(file: str, source: str) -> list[str]:
    """What the module at `file` (relative to the repository) imports against the rules, with the rule."""
    package, found = file.split("/")[0], []
    for name in imported(source):
        top = name.split(".")[0]
        if not top:
            found.append(f"{file}: relative import {name}; name the package")
            continue
        if top in PACKAGES and top not in LOWER.get(package, PACKAGES):
            found.append(f"{file}: {package} must not import {name}")
        outside = top not in sys.stdlib_module_names and top not in PACKAGES
        if package == "schemas" and outside and top not in ("numpy", "pyarrow"):
            found.append(f"{file}: schemas must not import {name}")
        if top == "apache_beam" and not file.startswith(BEAM_ALLOWED):
            found.append(f"{file}: Beam is for {', '.join(BEAM_ALLOWED)}")
        if top == "faiss" and file != "attribution/dense.py" and package != "bench":
            found.append(f"{file}: FAISS is for attribution/dense.py and bench/")
    return found


def our_files() -> list[Path]:
    return [*ROOT.glob("*.py"), *(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))]


def test_no_module_imports_what_its_layer_may_not():
    files = our_files()
    assert {"schemas", "attribution", "pipelines"} <= {file.relative_to(ROOT).parts[0] for file in files}
    assert [v for file in files for v in violations(file.relative_to(ROOT).as_posix(), file.read_text())] == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("schemas/planted.py", "import torch"),
        ("schemas/planted.py", "from apache_beam.io import filesystems"),
        ("schemas/planted.py", "from attribution.bm25 import Statistics"),
        ("attribution/planted.py", "import apache_beam as beam"),
        ("attribution/planted.py", "def late():\n    from pipelines import index"),
        ("attribution/planted.py", "import importlib\nimportlib.import_module('pipelines.index')"),
        ("attribution/planted.py", "from tests import tiny"),
        ("attribution/planted.py", "import faiss"),
        ("attribution/planted.py", "from .bm25 import Shard"),
        ("pipelines/planted.py", "import os, faiss.contrib"),
        ("pipelines/planted.py", "from bench import trex"),
        ("setup.py", "import apache_beam"),
    ],
)
def test_a_planted_violation_is_caught(file, source):
    assert violations(file, source) != []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "schemas/planted.py",
            "import json\nimport numpy as np\nimport pyarrow.parquet as pq\nfrom schemas import errors",
        ),
        ("attribution/dense.py", "import faiss\nfrom schemas.records import Fact"),
        ("pipelines/planted.py", "import apache_beam as beam\nfrom attribution import dense"),
        ("tests/planted.py", "import apache_beam\nfrom pipelines import index"),
    ],
)
def test_what_a_layer_may_import_passes(file, source):
    assert violations(file, source) == []
