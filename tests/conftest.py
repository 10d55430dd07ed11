"""The tiny models on disk, made once."""

import os

# Before torch is imported: tiny models gain nothing from threads; with `-n 2` on two cores two threads a worker took
# 202 s where one took 26 (once each, on a shared machine).
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import transformers

from tests import tiny

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny_paths(tmp_path_factory) -> dict[str, str]:
    """Folders of the tiny causal models by architecture, without optimizer state."""
    root = tmp_path_factory.mktemp("tiny")
    return {name: tiny.save(make(), root / name) for name, make in tiny.MODELS.items()}
