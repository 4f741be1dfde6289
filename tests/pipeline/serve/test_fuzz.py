"""Hostile requests against a real server: it answers or hangs up, never crashes, never hangs, never lets anyone in.

`make fuzz` sends 100,000 of them; the suite sends a share.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import time
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipeline.serve import feeds, routes
from pipeline.serve.openapi import ROUTES
from tests.pipeline.serve.held_run import TOKEN, Held, result_of

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "800"))
ANSWER_S = 120.0
pytestmark = pytest.mark.timeout(7200 if REQUESTS > 10_000 else 600)
OFFER = (
    "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\n"
    "m=video 9 UDP/TLS/RTP/SAVPF 96\r\nc=IN IP4 0.0.0.0\r\na=ice-ufrag:abcd\r\na=ice-pwd:abcdefghijklmnopqrstuvwx\r\n"
    "a=fingerprint:sha-256 " + ":".join(["AB"] * 32) + "\r\na=setup:actpass\r\na=mid:0\r\na=recvonly\r\na=rtcp-mux\r\n"
    "a=rtpmap:96 VP8/90000\r\na=candidate:1 1 udp 1 169.254.169.254 80 typ host\r\n"
)
hostile_text = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            *(
                "../../etc/passwd",
                "%2e%2e%2f",
                "\x00",
                "'; DROP TABLE",
                "<script>",
                "{{7*7}}",
                "${jndi:ldap://x}",
                "٣",
                "-1",
            ),
            *(
                "1e999",
                "NaN",
                "0x10",
                "\udcff",
                "A" * 5000,
                "a\r\nX-Evil: 1",
                "true",
                "null",
                "99999999999999999999",
                "0,0",
            ),
        ]
    ),
)
hostile_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | hostile_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(hostile_text, inner, max_size=4),
    max_leaves=8,
)
methods = st.sampled_from(
    ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "get", "X" * 90, "A B"]
)
names = st.sampled_from(
    ["x", "y", "on", "sdp", "streams", "token", "mask", "selected", "background", "ids", "blur_others"]
)


@st.composite
def offers(draw) -> str:
    """An offer with lines taken out, doubled, or changed."""
    lines = OFFER.split("\r\n")
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        what = draw(st.sampled_from(["drop", "double", "text", "number"]))
        if what == "drop" and len(lines) > 1:
            del lines[at]
        elif what == "double":
            lines.insert(at, lines[at])
        elif what == "text":
            lines[at] = draw(st.sampled_from(["a=", "m=", "c=", "v=", "a=fmtp:", "a=candidate:", "m=video "])) + draw(
                hostile_text
            )
        else:
            lines[at] = re.sub(r"\d+", lambda _: str(draw(st.integers(-1, 2**65))), lines[at], count=1)
    return "\r\n".join(lines)


bodies = st.one_of(
    st.dictionaries(names, hostile_json | offers(), max_size=3).map(json.dumps),
    st.builds(lambda sdp: json.dumps({"sdp": sdp, "streams": [0]}), offers()),
    st.builds(lambda x, y: json.dumps({"x": x, "y": y}), hostile_json, hostile_json),
    st.text(max_size=60),
    st.sampled_from(
        [
            "[" * 20_000,
            '{"a":' * 9_000,
            "{",
            "",
            '{"on": true, "on": false}',
            "\ufeff{}",
            "{}",
            '{"x": 1e999, "y": -0.0}',
        ]
    ),
).map(lambda text: text.encode("utf-8", "surrogatepass"))


@st.composite
def part_of_a_path(draw, known: str) -> str:
    """Mostly what there is, else something hostile, mostly written as browsers write it."""
    if draw(st.integers(0, 3)):
        return known
    text = draw(hostile_text)
    return quote(text.encode("utf-8", "surrogatepass"), safe="") if draw(st.integers(0, 5)) else text


@st.composite
def paths(draw, viewer: str, route: str) -> str:
    for name, known in (("{viewer}", viewer), ("{stream}", "0"), ("{name}", "page.js")):
        route = route.replace(name, draw(part_of_a_path(known)))
    query = draw(st.sampled_from(["", "", "", "viewer=", "streams="]))
    if query:
        route += "?" + query + draw(part_of_a_path(viewer if query == "viewer=" else "0"))
    return route


headers = st.dictionaries(
    st.sampled_from(
        [
            *(
                "Host",
                "Origin",
                "Sec-Fetch-Site",
                "Cookie",
                "Authorization",
                "X-CSRF-Token",
                "Content-Type",
                "Range",
                "Expect",
            ),
            *(
                "Content-Length",
                "Transfer-Encoding",
                "Content-Encoding",
                "Connection",
                "Upgrade",
                "X-Forwarded-For",
                "If-None-Match",
            ),
        ]
    ),
    hostile_text
    | st.sampled_from(
        [
            *(
                "null",
                "https://evil.example",
                "cross-site",
                "chunked",
                "gzip",
                "deflate, br",
                "upgrade",
                "websocket",
                "100-continue",
            ),
            *(
                "close",
                "0",
                "-1",
                "10",
                "99999999999",
                f"pose2seg_session={TOKEN[:8]}",
                "Bearer ",
                "Bearer x",
                "multipart/form-data",
            ),
        ]
    ),
    max_size=3,
)


@st.composite
def requests(draw, port: int, viewer: str, csrf: str) -> bytes:
    """Mostly well-formed enough to get somewhere, with something wrong in it; now and then mere bytes."""
    if draw(st.integers(0, 29)) == 0:
        return draw(st.binary(max_size=200)) + b"\r\n\r\n"
    route = draw(st.sampled_from(ROUTES))
    viewer = "nobody" if route.name == "remove_viewer" else viewer  # the one that all others ask for stays
    method = route.method if draw(st.integers(0, 5)) else draw(methods)
    body = draw(bodies) if method not in {"GET", "HEAD"} else b""
    sent = {
        "Host": f"127.0.0.1:{port}",
        "X-CSRF-Token": csrf,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }
    if draw(st.integers(0, 2)) == 0:
        sent |= draw(headers)
    if draw(st.integers(0, 19)) == 0:
        sent.pop(draw(st.sampled_from(sorted(sent))))
    version = draw(st.sampled_from(["HTTP/1.1"] * 20 + ["HTTP/1.0", "HTTP/2.0", "HTTP/9", ""]))
    head = f"{method} {draw(paths(viewer, route.path))} {version}\r\n" + "".join(
        f"{name}: {value}\r\n" for name, value in sent.items()
    )
    return head.encode("utf-8", "surrogatepass") + b"\r\n" + body


def exchange(port: int, request: bytes) -> bytes:
    """One answer, or nothing where the server hangs up; pictures, which come for ever, are cut off."""
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S) as connection:
        got = b""
        try:
            connection.sendall(request)
            while more := connection.recv(65536):
                got += more
                head, _, body = got.partition(b"\r\n\r\n")
                length = re.search(rb"\r\nContent-Length: (\d+)", head)
                whole = length is not None and (len(body) >= int(length[1]) or request.startswith(b"HEAD"))
                if b"multipart/x-mixed-replace" in head or whole or b" 204 " in head[:14]:
                    break
        except (BrokenPipeError, ConnectionResetError):
            pass
        return got


FUZZ = settings(
    max_examples=REQUESTS,
    deadline=None,
    derandomize="FUZZ_REQUESTS" not in os.environ,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def held(monkeypatch, caplog):
    """A server that meets strangers: short limits, so that what is left unfinished costs the test no time."""
    monkeypatch.setattr(routes, "BODY_S", 0.5)
    monkeypatch.setattr(routes, "FIRST_PICTURE_S", 0.2)
    monkeypatch.setattr(feeds, "IDLE_S", 5.0)
    caplog.set_level(logging.WARNING)
    started: list[Held] = []

    def start(**options) -> Held:
        one = Held(streams=1, header_s=1.0, viewers=1000, **options)
        one.feed(lambda index: result_of(index, (10, 20, 60, 110)), fps=5)
        started.append(one)
        return one

    yield start
    for one in started:
        one.close()


def test_hostile_requests(held, caplog) -> None:
    one = held()
    client = one.client().with_csrf()
    viewer = client("POST", "/api/viewers").json["viewer"]
    sent, statuses, slowest = 0, {}, 0.0

    @FUZZ
    @given(requests(one.port, viewer, client.headers["X-CSRF-Token"]))
    def check(request: bytes) -> None:
        nonlocal sent, slowest
        began = time.monotonic()
        got = exchange(one.port, request)
        slowest = max(slowest, time.monotonic() - began)
        sent += 1
        if sent % 5000 == 0:
            print(f"{sent} requests", flush=True)
        status = got[9:12].decode("latin1") if got else "hung up"
        statuses[status] = statuses.get(status, 0) + 1
        assert not got or re.match(rb"HTTP/\d\.\d (1|2|4|501|503|505)", got), got[:300]
        head = got.partition(b"\r\n\r\n")[0]
        assert b"X-Evil" not in head
        assert b"root:" not in got
        assert b"Traceback" not in got
        assert "failed" not in caplog.text, caplog.text[-2000:]  # what was not foreseen is logged so

    check()
    print(f"{sent} requests, slowest {slowest:.2f} s, answers {dict(sorted(statuses.items()))}")
    assert sent >= REQUESTS
    assert {"200", "400", "403", "404", "405", "415", "421"} <= set(statuses)
    assert statuses["200"] > sent / 10  # much of it gets past the first checks
    assert client("GET", "/healthz").status == 200
    assert one.run.results[0] > 0


def test_hostile_requests_without_the_token(held) -> None:
    """Nothing that begins with a wrong or no token gets past the gate, whatever else it says."""
    one = held(token=TOKEN)
    count = max(REQUESTS // 5, 1)
    passed = 0

    @settings(FUZZ, max_examples=count)
    @given(requests(one.port, "x", "x"))
    def check(request: bytes) -> None:
        nonlocal passed
        got = exchange(one.port, request)
        if got[9:12] != b"200":
            return
        passed += 1
        path = request.split(b" ")[1].partition(b"?")[0].partition(b"#")[0]
        assert path in {b"/", b"/healthz", b"/readyz", b"/api/session"} or path.startswith(b"/static/"), (
            request,
            got[:200],
        )

    check()
    assert passed > 0
    assert one.run.watched == 0
    assert one.run.recording == [False]
