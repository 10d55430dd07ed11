"""The tiny models on disk, made once."""

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
