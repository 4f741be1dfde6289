"""What holds for every test: property tests repeat exactly, no test sees the random state another one left, and what
a machine lacks (a GPU, nvcc) skips the tests that are marked so, and no others.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from kernels.native.compile import find_nvcc
from pipeline.errors import SettingsError
from pipeline.live.srt import program_for_srt
from tests.live_servers import NGINX_RTMP, program

# The first call of a Numba function compiles it, so no example has a deadline. `HYPOTHESIS_PROFILE=long` digs deeper.
settings.register_profile(
    "suite", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("long", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
# `make fuzz`: seven grammars, so 140,000 cases; see tests/fuzz
settings.register_profile("fuzz", deadline=None, max_examples=20_000, suppress_health_check=list(HealthCheck))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


@pytest.fixture(autouse=True)
def _random_state_does_not_leak() -> Iterator[None]:
    before = random.getstate(), np.random.get_state()  # noqa: NPY002  the global generator is what may leak
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])  # noqa: NPY002


@pytest.fixture(autouse=True)
def _log_handlers_do_not_leak() -> Iterator[None]:
    """A command that ran inside a test leaves handlers with that test's stderr, which is closed afterwards."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    for handler in list(root.handlers):
        if handler not in before:
            root.removeHandler(handler)
    root.setLevel(level)


MACHINE_MARKERS = (
    *("gpu", "nvcc", "ffmpeg", "fiftyone", "rtsp_server", "rtmp_server", "mqtt_broker", "torchvision", "chromium"),
)
MUST_RUN = {
    "gpu": "FAIL_WITHOUT_CUDA",
    "torchvision": "REQUIRE_TORCHVISION",
}  # variables that turn a skip into a failure


@functools.cache
def _missing(marker: str) -> str | None:
    """What this machine lacks for tests with this marker; None where it has everything."""
    if marker == "fiftyone":
        return (
            None if importlib.util.find_spec("fiftyone") else "fiftyone is not installed (a GB: pip install fiftyone)"
        )
    if marker == "ffmpeg":
        return None if shutil.which("ffmpeg") else "ffmpeg is not installed (make live-servers)"
    if marker == "nvcc":
        return None if find_nvcc() else "nvcc is not installed"
    if marker == "torchvision":
        return _why_no_torchvision()
    if marker == "chromium":
        return None if shutil.which("chromium") else "Debian's Chromium is not installed (make chromium)"
    if marker == "rtsp_server":
        return None if _has_rtsp_server() else "Debian's GStreamer RTSP server is not installed (make live-servers)"
    if marker == "rtmp_server":
        has_it = NGINX_RTMP.exists() and program("nginx")
        return None if has_it else "nginx with its RTMP module is not installed (make live-servers)"
    if marker == "srt_program":
        return _why_no_srt()
    if marker == "mqtt_broker":
        return None if program("mosquitto") else "the MQTT broker mosquitto is not installed (make live-servers)"
    try:
        import torch
    except ModuleNotFoundError:
        return "PyTorch is not installed"
    return None if torch.cuda.is_available() else "no CUDA device"


def _why_no_srt() -> str | None:
    try:
        program_for_srt("srt://")
    except SettingsError as error:
        return f"{error} (make live-servers)"
    return None


def _why_no_torchvision() -> str | None:
    """Asked in another process: a torchvision that does not fit leaves half of itself registered."""
    code = "import torchvision.models.detection, torchvision; assert torchvision.extension._has_ops()"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return "torchvision does not import within 120 s"
    return None if done.returncode == 0 else "no torchvision that fits this PyTorch (docs/training.md says how)"


def _has_rtsp_server() -> bool:
    code = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst, GstRtspServer\n"
    code += "Gst.init(None); raise SystemExit(not Gst.ElementFactory.find('rtph264pay'))"
    try:
        done = subprocess.run(["/usr/bin/python3", "-c", code], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in MACHINE_MARKERS:
        if item.get_closest_marker(marker) and (reason := _missing(marker)):
            variable = MUST_RUN.get(marker)
            if variable is not None and os.environ.get(variable) == "1":
                pytest.fail(f"{reason}, and {variable}=1 asks for one")
            pytest.skip(reason)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With REQUIRE_ALL_TESTS=1, as `make test` sets it, a skipped test is a failure: nothing passes by not running.

    Excepted are tests marked for what this machine lacks and the pinned packages cannot bring (`MACHINE_MARKERS`).
    """
    if os.environ.get("REQUIRE_ALL_TESTS") != "1" or exitstatus != pytest.ExitCode.OK:
        return
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    skipped = [
        report
        for report in (reporter.stats.get("skipped", []) if reporter is not None else [])
        if not any(marker in report.keywords and _missing(marker) for marker in MACHINE_MARKERS)
    ]
    if skipped:
        reporter.write_line(f"REQUIRE_ALL_TESTS=1: {len(skipped)} skipped tests count as failed", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
