from __future__ import annotations

import contextlib
import http.server
import resource
import struct
import sys
import threading
from dataclasses import fields
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from rich.console import Console

from pipeline.command_line import parser_of
from pipeline.errors import SettingsError, SourceError
from pipeline.live import address as live_address
from pipeline.live.address import AllowedUrls, parse_address
from pipeline.live.command import _start_page, live_table, parse_live_settings, sink_line, stats_line
from pipeline.live.input import InputOptions, opener_of, redirect_of
from pipeline.live.outputs import SinkReport
from pipeline.live.run import SourceSnapshot
from pipeline.live.settings import LiveSettings
from pipeline.live.source import SourceReport, SourceState
from pipeline.selftest.servers import Camera, HttpCameraServer, number_of, numbered_picture
from pipeline.settings import flag_of

pytestmark = pytest.mark.timeout(60)


def test_one_flag_for_each_setting() -> None:
    parser = parser_of(LiveSettings, prog="x", description="", epilog="")
    by_field = {action.dest: action for action in parser._actions if action.dest != "help"}
    assert set(by_field) == {option.name for option in fields(LiveSettings)}
    for name, action in by_field.items():
        flags = [flag for flag in action.option_strings if not flag.startswith("--no-")]
        assert flags == ([] if name == "sources" else [flag_of(name)])
        assert action.help


def test_parsing() -> None:
    settings = parse_live_settings(
        ["rtsp://a/1", "0", "--allow-url", "rtsp://a", "--allow-url", "http://b", "--no-reconnect", "--batch", "4"]
    )
    assert settings.sources == ("rtsp://a/1", "0")
    assert settings.allow_url == ("rtsp://a", "http://b")
    assert not settings.reconnect
    assert settings.run_settings().batch == 4


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["0", "--rotate-minutes", "0"],
        ["0", "--buffer", "some"],
        ["0", "--stall-timeout", "nan"],
        ["0", "--batch", "1000"],
        ["0", "--json", "a.jsonl"],
        ["0", "--unknown"],
    ],
)
def test_values_that_are_refused(arguments) -> None:
    with pytest.raises(SettingsError):
        parse_live_settings(arguments)


def test_what_is_shown_of_a_source() -> None:
    report = SourceReport(
        name="rtsp://***@[bold]cam/1",
        state=SourceState.RECONNECTING,
        width=480,
        height=270,
        frames=100,
        fps=24.9,
        age_s=3.0,
        connects=2,
        reconnects={"cannot open": 3},
        dropped={"broken packet": 2},
        size_changes=0,
        time_jumps=0,
        trouble="refused",
        next_try_s=4.2,
    )
    snapshot = SourceSnapshot(
        stream=1,
        source=report,
        results=90,
        people=2,
        waiting_dropped=8,
        p50_ms=40.4,
        p95_ms=80.6,
        sinks=(SinkReport(name="recording of stream 1", written=80, dropped={"sink too slow": 10}),),
    )
    assert stats_line(snapshot) == (
        "stream=1 state=reconnecting fps=24.9 people=2 frames=100 results=90 latency_ms=40/81 "
        "dropped[broken-packet]=2 dropped[newer-frame]=8 reconnects[cannot-open]=3 recording_lost[sink-too-slow]=10"
    )
    publish = SinkReport(name="publish tcp://h:1", written=3, dropped={"not connected": 7}, away=True)
    assert sink_line(publish) == "sink=publish-tcp://h:1 written=3 away=true lost[not-connected]=7"
    console = Console(width=200)
    with console.capture() as captured:
        console.print(live_table([snapshot]))
    shown = captured.get()
    assert "rtsp://***@[bold]cam/1" in shown
    assert "reconnecting in 4 s: refused" in shown


def test_redirects_are_followed_here_and_looked_at(monkeypatch) -> None:
    camera = Camera(height=64, width=192)
    with HttpCameraServer(camera) as server:
        to = f"http://127.0.0.1:{server.port}/to?http://127.0.0.1:{server.port}/stream.ts"
        assert redirect_of(to, timeout_s=5) == f"http://127.0.0.1:{server.port}/stream.ts"
        assert redirect_of(f"http://127.0.0.1:{server.port}/nothing", timeout_s=5) is None
        opened = opener_of(parse_address(to), InputOptions())()
        assert opened.endless
        opened.close()
        # seen from outside, the same redirect leads into a private network
        looked_up = live_address.is_private
        monkeypatch.setattr(live_address, "is_private", lambda host: host != "localhost" and looked_up(host))
        outside = parse_address(to.replace("127.0.0.1", "localhost", 1))
        with pytest.raises(SourceError, match="in a private network: refused"):
            opener_of(outside, InputOptions())()
        allowed = InputOptions(allowed=AllowedUrls(("http://localhost", "http://127.0.0.1")))
        opener_of(outside, allowed)().close()


@pytest.mark.parametrize("source", ["9876", "/dev/video9876"])
def test_a_camera_that_is_not_there(source) -> None:
    with pytest.raises(SourceError, match="camera 9876: no such camera"):
        opener_of(parse_address(source), InputOptions())()


class Looping(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", self.path + "x")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments) -> None:
        """Quiet."""


def test_redirects_without_end_are_refused() -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Looping)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(SourceError, match="more than 5 redirects"):
            opener_of(parse_address(f"http://127.0.0.1:{server.server_port}/"), InputOptions())()
    finally:
        server.shutdown()
        server.server_close()


def test_numbers_in_pictures() -> None:
    for number in (0, 1, 1023, 2**20 - 1):
        assert number_of(numbered_picture(number, 64, 192)) == number
    with pytest.raises(ValueError, match="at least 160 x 16"):
        numbered_picture(1, 64, 64)


def test_a_jpeg_that_claims_to_be_huge_takes_no_memory() -> None:
    """Its header says 16000 x 16000, which would be 0.8 GB; FFmpeg itself would go along with that."""
    ok, small = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))
    assert ok
    jpeg = bytearray(small.tobytes())
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = struct.pack(">HH", 16_000, 16_000)

    class Huge(Looping):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            part = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
            with contextlib.suppress(OSError):
                for _ in range(200):
                    self.wfile.write(part + jpeg + b"\r\n")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Huge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with pytest.raises(SourceError):
            opened = opener_of(parse_address(f"http://127.0.0.1:{server.server_port}/"), InputOptions())()
            next(opened.pictures(lambda: False))
    finally:
        server.shutdown()
        server.server_close()
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1e3
    assert grown_mb < 200


def test_the_page_says_which_extra_it_needs(monkeypatch) -> None:
    closed = []
    run = SimpleNamespace(close=lambda: closed.append(True))
    for name in [name for name in sys.modules if name.startswith("pipeline.serve.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(SettingsError, match=r"--serve needs aiohttp: pip install 'pose2seg-live\[serve\]'"):
        _start_page(run, parse_live_settings(["0", "--serve"]), Console())
    assert closed == [True]
    assert _start_page(run, parse_live_settings(["0"]), Console()) is None
