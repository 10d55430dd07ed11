"""The package as `--setup_file` ships it to workers: built from the checkout, installed elsewhere, it indexes."""

import json
import os
import shutil
import site
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.runners


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """What Beam's stager makes of setup.py, in a copy: an egg-info of before would bring its list of files along."""
    folder = tmp_path_factory.mktemp("sdist")
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "demo-output")
    shutil.copytree(ROOT, folder / "checkout", ignore=ignored)
    command = [sys.executable, "setup.py", "sdist", "--dist-dir", str(folder)]
    subprocess.run(command, cwd=folder / "checkout", check=True, capture_output=True)
    (made,) = folder.glob("*.tar.gz")
    return made


def test_the_sdist_holds_what_an_installation_needs(sdist):
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    modules = [p.relative_to(ROOT) for d in ("schemas", "attribution", "pipelines") for p in (ROOT / d).rglob("*.py")]
    templates = [p.relative_to(ROOT) for p in (ROOT / "pipelines/templates").iterdir()]
    needed = {str(path) for path in [*modules, *templates]} | {"README.md", "constraints.txt", "pyproject.toml"}
    assert len(modules) > 50 and templates and needed <= held


def test_the_installed_sdist_indexes_outside_of_the_checkout(sdist, files, checkpoints, encoder, tmp_path):
    """In an environment of its own that sees the libraries of this one, but not the checkout."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    (installed,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    seen = [path for path in [*site.getsitepackages(), *sys.path] if path.endswith("site-packages")]
    (installed / "libraries.pth").write_text("\n".join(dict.fromkeys(seen)))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*command: object) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(python, "-m", "pip", "install", "--quiet", "--no-deps", sdist)
    shown = "import pipelines, schemas, attribution; print(pipelines.__file__, schemas.__file__, attribution.__file__)"
    assert all(Path(file).is_relative_to(installed) for file in run(python, "-c", shown).split())
    options = ["--passages_per_shard", "8", "--max_dead_fraction", "0.05", "--max_tokens", "30", "--overlap", "4"]
    models = ["--checkpoints", Path(checkpoints, "step-000200"), "--encoder", encoder]
    corpus = ["--corpus", files / "*.jsonl*", "--output", "index", "--quiet"]
    run(tmp_path / "venv/bin/proponent", "index", *corpus, *models, *options)
    manifest = json.loads((tmp_path / "index/manifest.json").read_text())
    assert manifest["counts"] == {"in": 52, "kept": 50, "removed": 0, "dead": 2}
    assert manifest["details"]["signals"] == ["bm25", "dense", "gradient"]
    templates = [{p.name for p in (root / "pipelines/templates").iterdir()} for root in (ROOT, installed)]
    assert templates[0] == templates[1]
    assert not (installed / "tests").exists() and not (installed / "bench").exists()
