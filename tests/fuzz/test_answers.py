"""Whatever a server answers - broker, WebSocket server, TCP receiver, web server - costs its own connection only."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import socket
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.live.outputs import NotTaken
from pipeline.publish import webhook as publish_webhook
from pipeline.publish.lines import TcpLink, WebSocketLink
from pipeline.publish.mqtt import MqttLink
from pipeline.publish.reconnect import ReconnectingSink
from pipeline.publish.target import PUBLISH_PORTS, WEBHOOK_PORTS, parse_target
from pipeline.publish.webhook import WebhookSink
from pipeline.zones.shape import Zone
from pipeline.zones.stage import ZoneStage
from tests.live_results import person, result

IS_LONG = os.environ.get("HYPOTHESIS_PROFILE") == "fuzz"
CASES = 2000 if IS_LONG else 25  # each opens a connection
SLOW_S = 40.0
pytestmark = pytest.mark.timeout(7200 if IS_LONG else 250)

WS_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
MQTT_PIECES = st.sampled_from(
    [b"\x20\x02\x00\x00", b"\x20\x02\x00\x05", b"\x40\x02\x00\x01", b"\xd0\x00", b"\x30\x05\x00\x01ax", b"\xff" * 5]
)
HTTP_PIECES = st.sampled_from(
    [b"HTTP/1.1 ", b"200 OK", b"500 x", b"\r\n", b"\r\n\r\n", b"Content-Length: 99999999999\r\n", b"Transfer-", b"\xff"]
)
WS_PIECES = st.sampled_from([b"\x81\x05hello", b"\x82\x7f", b"\x89\x00", b"\x88\x02\x03\xe8", b"\xff\xff", b"\x81\x85"])


class Answering:
    """A server that answers everybody with the same bytes, and hangs up."""

    def __init__(self, answer: bytes, *, handshake: bool) -> None:
        self.answer, self.handshake = answer, handshake
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(10)
        assert not self.thread.is_alive()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                with client, contextlib.suppress(OSError):
                    client.settimeout(0.5)
                    asked = client.recv(65_536)
                    key = re.search(rb"Sec-WebSocket-Key: (\S+)", asked)
                    if self.handshake and key:
                        digest = hashlib.sha1(key[1] + WS_GUID.encode()).digest()
                        client.sendall(
                            b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
                            + base64.b64encode(digest)
                            + b"\r\n\r\n"
                        )
                    client.sendall(self.answer)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(65_536):
                        pass


def try_to_send(scheme: str, link, server: Answering) -> None:
    target = parse_target(f"{scheme}://user:hunter2@127.0.0.1:{server.port}/x", flag="--publish", ports=PUBLISH_PORTS)
    sink = ReconnectingSink(target, lambda _result: link(target))
    started = time.monotonic()
    for index in range(3):
        with contextlib.suppress(NotTaken):
            sink.write(result(index))
    sink.close()
    assert time.monotonic() - started < SLOW_S


def answers(pieces):
    return st.one_of(
        st.binary(max_size=60), st.lists(st.one_of(pieces, st.binary(max_size=6)), max_size=6).map(b"".join)
    )


@settings(max_examples=CASES)
@given(answers(MQTT_PIECES))
def test_mqtt(answer) -> None:
    with Answering(answer, handshake=False) as server:
        try_to_send("mqtt", MqttLink, server)


@settings(max_examples=CASES)
@given(answers(WS_PIECES), st.booleans())
def test_websocket(answer, handshake) -> None:
    with Answering(answer, handshake=handshake) as server:
        try_to_send("ws", WebSocketLink, server)


@settings(max_examples=CASES)
@given(st.binary(max_size=60))
def test_tcp(answer) -> None:
    with Answering(answer, handshake=False) as server:
        try_to_send("tcp", TcpLink, server)


@settings(max_examples=CASES)
@given(answers(HTTP_PIECES))
def test_webhook(answer) -> None:
    zone = Zone(name="all", corners=((0, 0), (1, 0), (1, 1)), enter_s=0.0)
    done = ZoneStage((zone,)).process(result(0, [person(7, 100, 20)]))
    assert done.events
    with pytest.MonkeyPatch.context() as patch, Answering(answer, handshake=False) as server:
        patch.setattr(publish_webhook, "TRIES", 1)
        target = parse_target(f"http://127.0.0.1:{server.port}/", flag="--webhook", ports=WEBHOOK_PORTS)
        started = time.monotonic()
        with contextlib.suppress(NotTaken):
            WebhookSink(target).write(done)
        assert time.monotonic() - started < SLOW_S
