"""What holds for every test: property tests repeat exactly, and no test sees the random state another one left."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# The first call of a Numba function compiles it, so no example has a deadline. `HYPOTHESIS_PROFILE=long` digs deeper.
settings.register_profile(
    "suite", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("long", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


@pytest.fixture(autouse=True)
def _random_state_does_not_leak() -> Iterator[None]:
    before = random.getstate(), np.random.get_state()  # noqa: NPY002  the global generator is what may leak
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])  # noqa: NPY002


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With REQUIRE_ALL_TESTS=1, as `make test` sets it, a skipped test is a failure: nothing passes by not running."""
    if os.environ.get("REQUIRE_ALL_TESTS") != "1" or exitstatus != pytest.ExitCode.OK:
        return
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter is not None else []
    if skipped:
        reporter.write_line(f"REQUIRE_ALL_TESTS=1: {len(skipped)} skipped tests count as failed", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
