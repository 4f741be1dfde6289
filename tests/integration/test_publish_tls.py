"""Certificates that nobody vouches for are refused, by every client that speaks TLS."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading

import pytest

from pipeline.live.outputs import NotTaken
from pipeline.publish.lines import WebSocketLink
from pipeline.publish.mqtt import MqttLink
from pipeline.publish.reconnect import ReconnectingSink
from pipeline.publish.target import PUBLISH_PORTS, WEBHOOK_PORTS, parse_target
from pipeline.publish.webhook import WebhookSink
from pipeline.zones.shape import Zone
from pipeline.zones.stage import ZoneStage
from tests.live_results import person, result

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    program = shutil.which("openssl")
    assert program, "openssl is part of every Debian"
    made = folder / "both.pem"
    command = [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    extra = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, *extra, "-keyout", made, "-out", folder / "cert.pem"], check=True, capture_output=True)
    made.write_text(made.read_text() + (folder / "cert.pem").read_text())
    return made


@pytest.fixture
def server(certificate):
    """Speaks TLS; what it hears inside, it keeps."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    heard: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                client.settimeout(5)
                with client, contextlib.suppress(OSError), context.wrap_socket(client, server_side=True) as inside:
                    heard.append(inside.recv(1000))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1], heard
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


# paho-mqtt leaves the socket of a failed handshake to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("scheme", "link"), [("wss", WebSocketLink), ("mqtts", MqttLink)])
def test_lines_do_not_go_to_strangers(server, caplog, scheme, link) -> None:
    caplog.set_level("DEBUG")  # also what libraries say then holds no secret
    port, heard = server
    target = parse_target(f"{scheme}://u:hunter2@127.0.0.1:{port}/x", flag="--publish", ports=PUBLISH_PORTS)
    sink = ReconnectingSink(target, lambda _result: link(target))
    with pytest.raises(NotTaken):
        sink.write(result(0))
    assert "certificate verify failed" in caplog.text
    assert b"".join(heard) == b""
    sink.close()


def test_events_do_not_go_to_strangers(server, caplog) -> None:
    caplog.set_level("DEBUG")  # also what libraries say then holds no secret
    port, heard = server
    zone = Zone(name="all", corners=((0, 0), (1, 0), (1, 1)), enter_s=0.0)
    done = ZoneStage((zone,)).process(result(0, [person(7, 100, 20)]))
    assert done.events
    target = parse_target(f"https://127.0.0.1:{port}/", flag="--webhook", ports=WEBHOOK_PORTS)
    with pytest.raises(NotTaken):
        WebhookSink(target, wait=lambda _s: None).write(done)
    assert "certificate verify failed" in caplog.text
    assert b"".join(heard) == b""
