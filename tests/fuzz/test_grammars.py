"""Whatever somebody writes as a source, a list, a target, a zone or a flag is taken or refused in one clear line.

`make fuzz` tries 20,000 cases of each, 140,000 in all; the suite a share of them.
"""

from __future__ import annotations

import json
import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError, SettingsError
from pipeline.live.address import LIVE_SCHEMES, AllowedUrls, parse_address, read_list
from pipeline.live.command import parse_live_settings
from pipeline.publish.mqtt import topic_of
from pipeline.publish.target import PUBLISH_PORTS, PUSH_PORTS, WEBHOOK_PORTS, parse_target
from pipeline.redaction import redact
from pipeline.zones.shape import Zone, parse_zone, read_zone_file

CASES = settings().max_examples if os.environ.get("HYPOTHESIS_PROFILE") == "fuzz" else 300
SLOW_S = 5.0  # a case takes microseconds; this is a hang, also on a loaded machine
pytestmark = pytest.mark.timeout(7200 if CASES > 1000 else 200)

SCHEMES = sorted({*LIVE_SCHEMES, *PUBLISH_PORTS, *PUSH_PORTS, *WEBHOOK_PORTS, "file", "data"} - {"srt"})
FRAGMENTS = (
    *(f"{scheme}://" for scheme in SCHEMES),
    *("-", "0", "/dev/video", "host", "[::1]", "[", "]", ":", ":0", ":80", ":99999", "@", "user:pw@", "/", "?", "#"),
    *("%00", "%", "\\", "..", "\n", " ", "\0", "*", ".streams", ".mp4", "\u2100", "\udcff", "xn--", "{stream}", "+"),
    *("{", "token=", "&", "\u202e", "\ufeff", "\x7f", "é", "1e999", "nan", ",", "0.5,0.5 ", "1,1 ", "door:"),
)
TEXTS = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(FRAGMENTS), max_size=9).map("".join))
NUMBERS = st.one_of(st.floats(), st.integers(), st.floats(0, 1), st.booleans(), st.none(), st.text(max_size=3))
CORNERS = st.lists(st.one_of(NUMBERS, st.floats(0, 1), st.lists(NUMBERS, max_size=3)), max_size=6)
ZONES = st.fixed_dictionaries(
    {"name": st.one_of(st.text(max_size=6), NUMBERS), "polygon": st.one_of(CORNERS, NUMBERS)},
    optional={
        **dict.fromkeys(("enter_s", "leave_s", "dwell_s", "margin", "unknown"), NUMBERS),
        "streams": st.one_of(st.lists(NUMBERS, max_size=3), NUMBERS),
    },
)
JSON = st.recursive(
    NUMBERS, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4))
)
DOCUMENTS = st.one_of(
    JSON.map(json.dumps),
    st.one_of(JSON, st.lists(st.one_of(ZONES, JSON), max_size=4)).map(lambda zones: json.dumps({"zones": zones})),
)


def outcome(function, *arguments, **options):
    """What came out, or what was said against it."""
    started = time.monotonic()
    try:
        value = function(*arguments, **options)
    except PipelineError as error:
        value = error
    assert time.monotonic() - started < SLOW_S
    return value


def assert_one_line(said: str) -> None:
    assert said.strip()
    assert "\n" not in said and "\r" not in said and "\x1b" not in said


@settings(max_examples=CASES)
@given(TEXTS)
def test_sources(text) -> None:
    found = outcome(parse_address, text)
    if isinstance(found, SettingsError):
        assert str(found).isprintable()
    else:
        assert found.name.isprintable()
        assert found.kind != "url" or found.url.scheme.lower() in LIVE_SCHEMES
        AllowedUrls(("rtsp://h*:5*/*", "*://*")).allows(found.text)


@settings(max_examples=CASES)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(TEXTS, max_size=5).map("\n".join).map(lambda text: text.encode("utf-8", "surrogatepass")),
    )
)
def test_lists_of_sources(tmp_path_factory, content) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.streams"
    path.write_bytes(content)
    found = outcome(read_list, path)
    if isinstance(found, SettingsError):
        assert str(found).startswith(str(path))
        assert_one_line(str(found))
    else:
        assert 1 <= len(found) <= 64


@settings(max_examples=CASES)
@given(TEXTS, st.sampled_from([PUBLISH_PORTS, PUSH_PORTS, WEBHOOK_PORTS]))
def test_targets(text, ports) -> None:
    if text.startswith("@"):
        return  # names a file of this machine
    found = outcome(parse_target, text, flag="--flag", ports=ports)
    if isinstance(found, SettingsError):
        assert str(found).isprintable()
        return
    assert found.scheme in ports and 0 < found.port < 65_536
    assert found.name.isprintable()
    assert found.host
    if found.password:
        assert f":{found.url.password}@" not in found.name
    if found.scheme == "mqtt":
        assert isinstance(outcome(topic_of, found), str | SettingsError)
    found.of_stream(3)
    found.hidden_in(text)


@settings(max_examples=CASES)
@given(TEXTS)
def test_zones_as_flags(text) -> None:
    found = outcome(parse_zone, text)
    if isinstance(found, SettingsError):
        assert_one_line(str(found))
    else:
        check_zone(found)


@settings(max_examples=CASES)
@given(st.one_of(st.binary(max_size=100), DOCUMENTS.map(lambda text: text.encode("utf-8", "surrogatepass"))))
def test_zone_files(tmp_path_factory, content) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    path.write_bytes(content)
    found = outcome(read_zone_file, path)
    if isinstance(found, SettingsError):
        assert_one_line(str(found))
    else:
        for zone in found:
            check_zone(zone)


def check_zone(zone: Zone) -> None:
    assert zone.name.isprintable()
    assert all(0 <= value <= 1 for corner in zone.corners for value in corner)
    zone.distance(zone.outline(90, 160), (3.0, 4.0))


FLAGS = (
    *("--publish", "--push", "--push-kbps", "--zone", "--zones", "--webhook", "--virtual-camera", "--output-dir"),
    *("--json", "--record", "--rotate-minutes", "--rotate-mb", "--keep-free-gb", "--buffer", "--no-reconnect"),
    *("--stall-timeout", "--rtsp-transport", "--realtime", "--max-pixels", "--allow-url", "--seconds", "--show"),
    *("--threads", "--batch", "--long-side", "--video-crf", "--video-preset", "--unknown", "--", "-", "0", "nan"),
    *("1", "-1", "1e999", "99999999999999999999", "all", "latest", "udp", "plain", "\udcff", "", "\u2100"),
)


@settings(max_examples=CASES)
@given(st.lists(st.one_of(st.sampled_from(FLAGS), TEXTS), max_size=7))
def test_flags(arguments) -> None:
    if {"-h", "--help"} & set(arguments):
        return
    found = outcome(parse_live_settings, arguments)
    if isinstance(found, PipelineError):
        assert str(found).strip()
    else:
        assert found.sources


@settings(max_examples=CASES)
@given(st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=10)), max_size=12).map("".join))
def test_redaction_is_done_once(text) -> None:
    shown = outcome(redact, text)
    assert redact(shown) == shown
