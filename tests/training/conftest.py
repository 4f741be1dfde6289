"""Training needs the extra `train`: without torch none of these tests can run. The drawn data are made once."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra `train` is not installed")

from tests.training.drawn_people import write_data  # after the check above


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with ``people`` and ``backgrounds``; read only."""
    return write_data(tmp_path_factory.mktemp("data"))
