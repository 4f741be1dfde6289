"""Lines and events to real receivers: an MQTT broker, a WebSocket server, TCP and HTTP servers."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import socket
import threading
from typing import Self

import paho.mqtt.client as mqtt
import pytest
from websockets.asyncio.server import serve

from pipeline.selftest.servers import Camera, CameraServer
from tests.fakes import MAGENTA
from tests.integration.test_live import Watched, urls
from tests.live_servers import Mosquitto, free_port

pytestmark = pytest.mark.timeout(180)


class WalkingCamera(Camera):
    """Somebody in magenta walks from left to right and back, once in four seconds."""

    def pictures(self, ended):
        for number, image in super().pictures(ended):
            height, width = image.shape[:2]
            phase = number / self.fps % 4 / 2
            x = round((phase if phase < 1 else 2 - phase) * (width - 40))
            image[30:height, x : x + 40] = MAGENTA
            yield number, image


@pytest.fixture
def camera() -> Camera:
    return Camera(height=144, width=256, fps=20)


def dropped(watched, word: str) -> dict[str, int]:
    (report,) = [report for report in watched.run.shared_sinks() if word in report.name]
    return report.dropped


class LineServer:
    """Takes TCP connections and keeps the lines."""

    def __init__(self) -> None:
        self.port = free_port()
        self.lines: list[dict] = []
        self.listener: socket.socket | None = None
        self.clients: list[socket.socket] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.kill()

    def start(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for client in self.clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        self.clients.clear()

    def _accept(self, listener) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self.clients.append(client)
                threading.Thread(target=self._read, args=(client,), daemon=True).start()

    def _read(self, client) -> None:
        with client, client.makefile("rb") as lines, contextlib.suppress(OSError):
            for line in lines:
                if line.endswith(b"\n"):
                    self.lines.append(json.loads(line))


def test_tcp_is_connected_again_and_a_dead_one_costs_only_itself(camera) -> None:
    with CameraServer(camera) as server, LineServer() as lines:
        nobody = free_port()
        with Watched(
            urls(server), camera=camera, publish=(f"tcp://127.0.0.1:{lines.port}", f"tcp://127.0.0.1:{nobody}")
        ) as watched:
            watched.wait(lambda: len(lines.lines) >= 20, "lines")
            lines.kill()
            watched.wait(lambda: dropped(watched, str(lines.port)).get("not connected", 0) > 3, "the loss is counted")
            lines.start()
            before = len(lines.lines)
            watched.wait(lambda: len(lines.lines) >= before + 20, "lines again")
            watched.more(count=5)
        frames = [line["frame"] for line in lines.lines]
        assert frames == sorted(set(frames))
        assert {line["stream"] for line in lines.lines} == {0}
        assert dropped(watched, str(nobody))["not connected"] > 20
        alive, dead = (watched.run.shared_sinks()[n] for n in (0, 1))
        results = watched.report().results
        for report in (alive, dead):
            assert report.written + sum(report.dropped.values()) == results
        assert dead.written == 0
        assert watched.stopped_after_s < 5


class WebSocketServer:
    """The library's own server; it can stop reading."""

    def __init__(self) -> None:
        self.port = free_port()
        self.lines: list[dict] = []
        self.headers: list[str | None] = []
        self.deaf = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.ready, self.ended = threading.Event(), asyncio.Event()
        self.thread = threading.Thread(target=self.loop.run_until_complete, args=(self._serve(),), daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        assert self.ready.wait(30)
        return self

    def __exit__(self, *_) -> None:
        self.loop.call_soon_threadsafe(self.ended.set)
        self.thread.join(10)
        assert not self.thread.is_alive()
        self.loop.close()

    async def _serve(self) -> None:
        async def take(connection) -> None:
            self.headers.append(connection.request.headers.get("Authorization"))
            async for message in connection:
                self.lines.append(json.loads(message))
                await connection.send("what we say is not listened to")

        async with serve(take, "127.0.0.1", self.port, close_timeout=0.5):
            self.ready.set()
            await self.ended.wait()


def test_websocket(camera, caplog) -> None:
    caplog.set_level("DEBUG")  # also what libraries say then holds no secret
    caplog.set_level("INFO", logger="websockets.server")  # not ours
    with CameraServer(camera) as server, WebSocketServer() as receiver:
        with Watched(
            urls(server), camera=camera, publish=(f"ws://user:hunter2@127.0.0.1:{receiver.port}/lines?token=abc123",)
        ) as watched:
            watched.wait(lambda: len(receiver.lines) >= 60, "lines")
        assert watched.stopped_after_s < 5
    frames = [line["frame"] for line in receiver.lines]
    assert frames == sorted(set(frames))
    assert receiver.headers == ["Basic dXNlcjpodW50ZXIy"]
    for secret in ("hunter2", "abc123", "dXNlcjpodW50ZXIy"):
        assert secret not in caplog.text
    (report,) = watched.run.shared_sinks()
    assert report.written >= 60
    assert report.dropped.keys() <= {"sink too slow", "not connected"}  # only while the connection was made


class Listener:
    """A client of the broker that keeps all messages."""

    def __init__(self, broker: Mosquitto) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.retained: list[tuple[str, bytes]] = []
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        self.client.username_pw_set(broker.user, broker.password)
        self.client.on_message = self._on_message
        self.client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self.client.reconnect_delay_set(1, 1)
        self.client.connect("127.0.0.1", broker.port)
        self.client.loop_start()

    def _on_message(self, _client, _data, message) -> None:
        self.messages.append((message.topic, message.payload))

    def of(self, topic: str) -> list[dict]:
        return [json.loads(payload) for name, payload in list(self.messages) if name == topic]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.mark.mqtt_broker
def test_mqtt_frames_events_and_a_broker_that_is_killed(tmp_path, caplog) -> None:
    caplog.set_level("DEBUG")  # also what libraries say then holds no secret
    camera = WalkingCamera(height=144, width=256, fps=20)
    with CameraServer(camera) as server, Mosquitto(tmp_path) as broker, contextlib.ExitStack() as stack:
        listener = Listener(broker)
        stack.callback(listener.close)
        good = f"mqtt://{broker.user}:hunter2%2F%23%40@127.0.0.1:{broker.port}/site/7"
        bad = f"mqtt://{broker.user}:wrongword@127.0.0.1:{broker.port}/site/8"
        with Watched(
            urls(server), camera=camera, publish=(good, bad), zone=("door:0.5,0 1,0 1,1 0.5,1",), joint_threshold=0.1
        ) as watched:
            watched.wait(lambda: len(listener.of("site/7/stream-00/event")) >= 2, "somebody came and went")
            watched.wait(lambda: len(listener.of("site/7/stream-00/frame")) >= 20, "frames")
            broker.kill()
            watched.wait(lambda: dropped(watched, "site/7").get("not connected", 0) > 3, "the loss is counted")
            broker.start()
            before = len(listener.of("site/7/stream-00/frame"))
            watched.wait(lambda: len(listener.of("site/7/stream-00/frame")) >= before + 10, "frames again")
        watched.wait(lambda: listener.messages[-1] == ("site/7/status", b"offline"), "a goodbye")
    assert watched.stopped_after_s < 5
    frames = [line["frame"] for line in listener.of("site/7/stream-00/frame")]
    assert frames == sorted(set(frames))
    events = listener.of("site/7/stream-00/event")
    assert [event["kind"] for event in events[:2]] in (["enter", "leave"], ["leave", "enter"])
    assert events[0]["stream"] == 0 and events[0]["zone"] == "door"
    assert ("site/7/status", b"online") in listener.messages
    assert dropped(watched, "site/8")["not connected"] > 0
    assert "refused: Not authorized" in caplog.text
    for secret in ("hunter2", "wrongword"):
        assert secret not in caplog.text
        assert secret.encode() not in b"".join(payload for _, payload in listener.messages)


class HookServer:
    """A web server that fails on request."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.requests: list[tuple[str, dict, dict]] = []
        outer = self

        class Answers(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, dict(self.headers), body))
                status = outer.statuses.pop(0) if outer.statuses else 200
                self.send_response(status)
                if status in {301, 307}:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_arguments) -> None:
                """Quiet."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.url = f"http://user:hunter2@127.0.0.1:{self.server.server_port}/hook/s3cret?key=abc123"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_a_webhook_hears_of_a_walk(caplog) -> None:
    caplog.set_level("DEBUG")  # also what libraries say then holds no secret
    camera = WalkingCamera(height=144, width=256, fps=20)
    with CameraServer(camera) as server, HookServer(503) as hook:
        with Watched(urls(server), camera=camera, webhook=(hook.url,), zone=("door:0.5,0 1,0 1,1 0.5,1",)) as watched:
            watched.wait(lambda: len(hook.requests) >= 4, "events")
        assert watched.stopped_after_s < 5
    (first_path, headers, first), (_, again, repeated) = hook.requests[:2]
    assert first_path == "/hook/s3cret?key=abc123"
    assert headers["Authorization"] == "Basic dXNlcjpodW50ZXIy"
    assert headers["Idempotency-Key"] == again["Idempotency-Key"] == first["key"]
    assert first == repeated
    kinds = [body["kind"] for _, _, body in hook.requests[1:]]
    assert kinds in (["enter", "leave", "enter"], ["leave", "enter", "leave"]) or len(kinds) > 3
    assert {body["zone"] for _, _, body in hook.requests} == {"door"}
    assert first["time"].endswith("+00:00")
    (report,) = watched.run.shared_sinks()
    assert report.written >= 3
    for secret in ("hunter2", "s3cret", "abc123"):
        assert secret not in caplog.text + report.name
