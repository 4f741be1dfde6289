from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pipeline.serve.view import ViewOptions, ViewPainter
from tests.pipeline.serve.held_run import Held, result_of


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> None:
    """The first picture of each kind in a fresh clone compiles kernels, which takes longer than a client waits."""
    result = result_of(0, (10, 20, 60, 110))
    for options in (ViewOptions(blur_others=True), ViewOptions(background="blur"), ViewOptions(background="dim")):
        ViewPainter(options, mask_threshold=0.5).paint(result)


@pytest.fixture
def serve() -> Iterator[Callable[..., Held]]:
    """Starts servers, and ends them."""
    held: list[Held] = []

    def start(**options) -> Held:
        held.append(Held(**options))
        return held[-1]

    yield start
    for one in held:
        one.close()
