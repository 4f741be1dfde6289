from __future__ import annotations

from pathlib import Path

import pytest

from tests.magenta_model import write_magenta_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A model that sees one magenta person, run by the real engine."""
    return write_magenta_model(tmp_path_factory.mktemp("model"))
