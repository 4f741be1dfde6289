"""The server over real sockets: routes as the document says, pictures, limits, slow clients, the end."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from pathlib import Path

import cv2
import jsonschema
import numpy as np
import pytest

from pipeline.errors import SettingsError
from pipeline.live.source import SourceState
from pipeline.serve import feeds, routes, server
from pipeline.serve.listen import ListenAddress
from pipeline.serve.openapi import ROUTES, document
from pipeline.serve.server import PageOptions, PageServer
from tests.pipeline.serve.held_run import HeldRun, result_of, wait_for

pytestmark = pytest.mark.timeout(300)
LEFT, RIGHT = (10, 20, 60, 110), (100, 20, 150, 110)
DOCUMENT = document("1")
HEAD = rb"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: (\d+)\r\nX-Stream: (\d+)\r\n\r\n"
MJPEG = "/api/streams/0/pictures.mjpg"


def checked(answer, method: str, path: str):
    """The answer fits what the document says of it."""
    operation = DOCUMENT["paths"][path][method.lower()]
    described = operation["responses"][str(answer.status)]
    content = described.get("content", {})
    if not content:
        assert answer.body == b""
        return answer
    kind = answer.headers["Content-Type"].partition(";")[0]
    assert kind in content or "*/*" in content
    if content.get(kind):
        jsonschema.validate(answer.json, content[kind]["schema"] | {"components": DOCUMENT["components"]})
    return answer


def pictures_in(data: bytes) -> list[tuple[int, np.ndarray]]:
    """The whole parts of a multipart answer."""
    found = []
    for head in re.finditer(
        rb"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: (\d+)\r\nX-Stream: (\d+)\r\n\r\n", data
    ):
        jpeg = data[head.end() : head.end() + int(head[1])]
        if len(jpeg) == int(head[1]):
            image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
            assert image is not None
            found.append((int(head[2]), image))
    return found


def open_pictures(held, path: str, *, buffer: int | None = None, headers: str = "") -> socket.socket:
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(120)
    connection.connect(("127.0.0.1", held.port))
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{held.port}\r\n{headers}\r\n".encode())
    return connection


def read_pictures(connection: socket.socket, count: int) -> list[tuple[int, np.ndarray]]:
    data = b""
    while len(pictures_in(data)) < count:
        more = connection.recv(65536)
        assert more, data[:300]
        data += more
    return pictures_in(data)


def test_the_document_is_openapi() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    for path, operations in DOCUMENT["paths"].items():
        for operation in operations.values():
            named = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path))
            assert operation["summary"]
    text = json.dumps(DOCUMENT)
    for name in re.findall(r"#/components/schemas/(\w+)", text):
        jsonschema.Draft202012Validator.check_schema(DOCUMENT["components"]["schemas"][name])
    ids = [operation["operationId"] for operations in DOCUMENT["paths"].values() for operation in operations.values()]
    assert len(set(ids)) == len(ids)


def test_every_route_answers_as_the_document_says(serve, monkeypatch) -> None:
    held = serve()
    held.feed(lambda index: result_of(index, LEFT, RIGHT, stream=index % 2))
    client = held.client().with_csrf()
    tested = set()

    def ask(method: str, path: str, body=None, *, expect: int, query: str = "", **parts):
        answer = client(method, path.format(**parts) + query, body)
        assert answer.status == expect, answer.body
        tested.add((method, path))
        return checked(answer, method, path)

    assert ask("GET", "/healthz", expect=200).json == {"status": "ok"}
    wait_for(lambda: all(held.run.results), "results")
    ask("GET", "/readyz", expect=200)
    held.run.states = [SourceState.RECONNECTING] * 2
    ask("GET", "/readyz", expect=503)
    held.run.states = [SourceState.LIVE] * 2
    assert ask("GET", "/api", expect=200).json == document(client("GET", "/api/state").json["version"])
    assert b'<script type="module"' in ask("GET", "/", expect=200).body
    ask("GET", "/metrics", expect=200)
    ask("GET", "/api/session", expect=200)
    ask("POST", "/api/session", {"token": "x"}, expect=400)
    ask("DELETE", "/api/session", expect=204)
    made = ask("POST", "/api/viewers", expect=201).json
    viewer = made["viewer"]
    assert len(made["options"]) == 2
    state = ask("GET", "/api/state", expect=200, query=f"?viewer={viewer}").json
    assert state["options"] == made["options"]
    assert "hunter2" not in json.dumps(state)
    assert state["streams"][0]["recording"] == {
        "possible": True,
        "on": False,
        "frames": 7,
        "lost": {"sink too slow": 1},
    }
    ask("GET", "/api/state", expect=404, query="?viewer=nobody")
    route = "/api/viewers/{viewer}/streams/{stream}"
    options = ask("PATCH", route, {"mask": False, "background": "dim"}, expect=200, viewer=viewer, stream=1).json
    assert options == made["options"][1] | {"mask": False, "background": "dim"}
    ask("PATCH", route, {"mask": 1}, expect=400, viewer=viewer, stream=1)
    ask("PATCH", route, {}, expect=404, viewer="nobody", stream=1)
    ask("PATCH", route, {}, expect=404, viewer=viewer, stream=2)
    ask("POST", route + "/click", {"x": 0.2, "y": 0.5}, expect=409, viewer=viewer, stream=0)
    assert (
        ask("GET", "/api/streams/{stream}/snapshot.png", expect=200, stream=0, query=f"?viewer={viewer}").body[:4]
        == b"\x89PNG"
    )
    clicked = ask("POST", route + "/click", {"x": 0.2, "y": 0.5}, expect=200, viewer=viewer, stream=0).json
    assert clicked["selected"] == result_of(0, LEFT, RIGHT).people[0].id or clicked["selected"] is not None
    assert ask("POST", route + "/click", {"x": 0.5, "y": 0.5}, expect=200, viewer=viewer, stream=0).json == {
        "selected": None
    }
    for wrong in ({"x": 2, "y": 0}, {"x": True, "y": 0}, {"x": 0.5}, {"x": 0, "y": 0, "z": 0}, {"x": "0", "y": 0}):
        ask("POST", route + "/click", wrong, expect=400, viewer=viewer, stream=0)
    offer = {"sdp": "v=0\r\nnonsense", "streams": [0]}
    ask("POST", "/api/viewers/{viewer}/webrtc", offer, expect=400, viewer=viewer)
    ask("PUT", "/api/streams/{stream}/recording", {"on": True}, expect=200, stream=1)
    assert held.run.recording == [False, True]
    ask("PUT", "/api/streams/{stream}/recording", {"on": 1}, expect=400, stream=1)
    held.run.recording[0] = None
    answer = ask("PUT", "/api/streams/{stream}/recording", {"on": True}, expect=409, stream=0)
    assert "--output-dir" in answer.error
    ask("DELETE", "/api/viewers/{viewer}", expect=204, viewer=viewer)
    ask("DELETE", "/api/viewers/{viewer}", expect=404, viewer=viewer)
    ask("GET", "/static/{name}", expect=200, name="page.js")
    for path in ("/static/nothing.js", "/static/..%2fserver.py", "/static/%2e%2e/server.py", "/nothing"):
        assert client("GET", path).status in {400, 404}, path
    pictures = {("GET", "/api/viewers/{viewer}/pictures"), ("GET", "/api/streams/{stream}/pictures.mjpg")}
    assert tested | pictures == {(route.method, route.path) for route in ROUTES}


def test_methods_that_there_are_not(serve) -> None:
    client = serve().client().with_csrf()
    answer = client("POST", "/healthz")
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET"
    assert answer.error


@pytest.mark.parametrize("path", ["/healthz", "/nothing"])
def test_expectations(serve, path) -> None:
    """Found by fuzzing: an Expect that is no text was answered with 500."""
    held = serve()
    for value, status in ((b"\xed\xb3\xbf", b"417"), (b"x", b"417"), (b"100-continue", b"100")):
        with socket.create_connection(("127.0.0.1", held.port), timeout=120) as connection:
            host = f"127.0.0.1:{held.port}".encode()
            connection.sendall(b"GET %s HTTP/1.1\r\nHost: %s\r\nExpect: %s\r\n\r\n" % (path.encode(), host, value))
            assert connection.recv(1000)[9:12] == status


def test_handles_and_threads_stay_flat(serve) -> None:
    held = serve(streams=1)
    held.feed(lambda index: result_of(index, LEFT))
    client = held.client().with_csrf()

    def visit() -> None:
        viewer = client("POST", "/api/viewers").json["viewer"]
        with open_pictures(held, f"/api/viewers/{viewer}/pictures") as connection:
            read_pictures(connection, 1)
            client("PATCH", f"/api/viewers/{viewer}/streams/0", {"background": "dim"})
            read_pictures(connection, 1)
        client("GET", f"/api/streams/0/snapshot.png?viewer={viewer}")
        assert client("DELETE", f"/api/viewers/{viewer}").status == 204

    def used() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    for _ in range(3):
        visit()
    wait_for(lambda: held.run.watched == 0, "nobody watches")
    handles, threads = used()
    for _ in range(12):
        visit()
    wait_for(lambda: held.run.watched == 0, "nobody watches")
    wait_for(lambda: used()[0] <= handles + 2 and used()[1] <= threads + 2, f"as many as before: {handles}, {threads}")


def test_pictures_as_mjpeg(serve) -> None:
    held = serve()
    held.feed(lambda index: result_of(index, LEFT, stream=index % 2))
    with open_pictures(held, "/api/streams/1/pictures.mjpg") as connection:
        found = read_pictures(connection, 3)
    assert {stream for stream, _ in found} == {1}
    assert all(image.shape == (120, 160, 3) for _, image in found)
    assert abs(int(found[0][1][5, 80].mean()) - 90) < 6
    viewer = held.client().with_csrf()("POST", "/api/viewers").json["viewer"]
    with open_pictures(held, f"/api/viewers/{viewer}/pictures") as connection:
        found = read_pictures(connection, 6)
    assert {stream for stream, _ in found} == {0, 1}


def test_switches_act_on_pictures_that_come(serve) -> None:
    held = serve(streams=1)
    held.feed(lambda index: result_of(index, LEFT, RIGHT))
    client = held.client().with_csrf()
    viewer = client("POST", "/api/viewers").json["viewer"]
    with open_pictures(held, f"/api/viewers/{viewer}/pictures?streams=0") as connection:
        before = read_pictures(connection, 2)[-1][1]
        options = {"background": "green", "mask": False, "skeleton": False, "ids": False}
        assert client("PATCH", f"/api/viewers/{viewer}/streams/0", options).status == 200
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            after = read_pictures(connection, 1)[-1][1]
            if after[5, 80, 1] > 150:
                break
    assert before[5, 80].tolist() == pytest.approx([90, 90, 90], abs=8)
    assert after[5, 80].tolist() == pytest.approx([0, 177, 64], abs=16)


def test_nothing_is_painted_while_nobody_watches(serve) -> None:
    held = serve(streams=1)
    held.feed(lambda index: result_of(index, LEFT))

    def names() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("view of")]

    client = held.client().with_csrf()
    viewer = client("POST", "/api/viewers").json["viewer"]
    client("GET", "/api/state")
    assert held.run.watched == 0
    assert names() == []
    with (
        open_pictures(held, f"/api/viewers/{viewer}/pictures") as one,
        open_pictures(held, MJPEG) as two,
    ):
        read_pictures(one, 2)
        read_pictures(two, 2)
        assert held.run.watched == 1  # the same picture is painted once
        assert "pose2seg_view_threads 1.0" in client("GET", "/metrics").body.decode()
    wait_for(lambda: held.run.watched == 0 and not names(), "the thread that paints is gone")


def test_a_viewer_who_takes_nothing_slows_nobody_and_is_let_go(serve, monkeypatch) -> None:
    monkeypatch.setattr(routes, "WRITE_S", 8.0)
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)

    def noisy(index: int):
        result = result_of(index, size=(480, 640))
        result.frame.image[...] = np.roll(noise, index, axis=0)
        return result

    held = serve(streams=1)
    made = [noisy(index) for index in range(5)]
    held.feed(lambda index: made[index % 5])
    stalled = open_pictures(held, MJPEG, buffer=4096)
    try:
        with open_pictures(held, MJPEG) as quick:
            read_pictures(quick, 3)
            client = held.client()
            assert client("GET", "/api/state").json["viewers"] == 2
            results = held.run.results[0]
            for _ in range(30):  # the run and the other viewer go on meanwhile
                read_pictures(quick, 1)
            assert held.run.results[0] > results
            wait_for(lambda: client("GET", "/api/state").json["viewers"] == 1, "the stalled viewer is let go")
            read_pictures(quick, 2)
        wait_for(lambda: held.run.watched == 0, "all are gone")
    finally:
        stalled.close()


def test_snapshots_are_whole_frames(serve) -> None:
    held = serve(streams=1)
    held.feed(lambda index: result_of(index, (100, 100, 400, 1000), size=(1080, 1920)), fps=10)
    answer = held.client()("GET", "/api/streams/0/snapshot.png")
    assert answer.status == 200
    image = cv2.imdecode(np.frombuffer(answer.body, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert image.shape == (1080, 1920, 3)
    assert re.fullmatch(r'attachment; filename="stream-00-[0-9-]+\.png"', answer.headers["Content-Disposition"])
    assert held.client()("GET", "/api/state").json["viewers"] == 0


def test_a_source_without_pictures_gives_no_snapshot(serve, monkeypatch) -> None:
    monkeypatch.setattr(routes, "FIRST_PICTURE_S", 0.3)
    answer = serve().client()("GET", "/api/streams/0/snapshot.png")
    assert (answer.status, answer.error) == (503, "this source gives no picture now")


def test_viewers_are_limited_and_forgotten(serve, monkeypatch) -> None:
    monkeypatch.setattr(feeds, "IDLE_S", 1.0)
    held = serve(viewers=2, streams=1)
    held.feed(result_of)
    client = held.client().with_csrf()
    with open_pictures(held, MJPEG) as connection:
        read_pictures(connection, 1)
        assert client("POST", "/api/viewers").status == 201
        answer = client("POST", "/api/viewers")
        assert answer.status == 503
        assert "--serve-viewers" in answer.error
        wait_for(lambda: client("POST", "/api/viewers").status == 201, "who went without a word is forgotten")
        read_pictures(connection, 2)  # who watches is not


def test_large_requests_are_refused(serve) -> None:
    client = serve().client().with_csrf()
    assert client("PUT", "/api/streams/0/recording", raw=b" " * (server.MAX_BODY + 1)).status == 413
    assert client("PUT", "/api/streams/0/recording", raw=b"[" * 60_000).status == 400
    assert client("GET", "/" + "a" * 10_000).status in {400, 414}
    assert client("GET", "/", None, {"X": "a" * 10_000}).status == 400
    assert client("GET", "/healthz").status == 200


def test_a_header_that_does_not_come_to_an_end_is_cut_off(serve) -> None:
    held = serve(header_s=1.0)
    started = time.monotonic()
    connections = []
    for text in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n", b"G"):
        connection = socket.create_connection(("127.0.0.1", held.port), timeout=120)
        connection.sendall(text)
        connections.append(connection)
    for connection in connections:
        try:
            while connection.recv(1000):
                pass
        except ConnectionResetError:
            pass
        connection.close()
    assert time.monotonic() - started < 20
    assert held.client()("GET", "/healthz").status == 200


def test_a_body_that_does_not_come_is_not_waited_for(serve, monkeypatch) -> None:
    monkeypatch.setattr(routes, "BODY_S", 0.5)
    held = serve()
    csrf = held.client()("GET", "/api/session").json["csrf"]
    with socket.create_connection(("127.0.0.1", held.port), timeout=120) as connection:
        connection.sendall(
            f"PUT /api/streams/0/recording HTTP/1.1\r\nHost: 127.0.0.1:{held.port}\r\nX-CSRF-Token: {csrf}\r\n"
            "Content-Type: application/json\r\nContent-Length: 12\r\n\r\n{".encode()
        )
        assert b"408" in connection.recv(1000).split(b"\r\n")[0]


def test_connections_are_limited(serve, monkeypatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 5)
    held = serve()
    connections = [socket.create_connection(("127.0.0.1", held.port), timeout=120) for _ in range(5)]
    wait_for(lambda: _status(held) == 503, "the sixth is refused")
    for connection in connections:
        connection.close()
    wait_for(lambda: _status(held) == 200, "and there is room again")


def _status(held) -> int:
    try:
        return held.client()("GET", "/healthz").status
    except ConnectionError:
        return 503


def test_figures_for_prometheus(serve) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    held = serve(streams=1)
    held.run.push(result_of(0, LEFT))
    text = held.client()("GET", "/metrics").body.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    values = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families.values()
        for sample in family.samples
    }
    stream = ("stream", "0")
    assert values["pose2seg_frames_in_total", (stream,)] == 10
    assert values["pose2seg_frames_out_total", (stream,)] == 1
    assert values["pose2seg_frames_dropped_total", (("reason", "newer frame"), stream)] == 4
    assert values["pose2seg_frames_dropped_total", (("reason", "broken packet"), stream)] == 3
    assert values["pose2seg_reconnects_total", (("reason", "stalled"), stream)] == 2
    assert values["pose2seg_people", (stream,)] == 1
    assert values["pose2seg_queue_depth", (("stage", "keypoints"),)] == 1
    assert values["pose2seg_latency_seconds_count", (stream,)] == 1
    assert values["pose2seg_latency_seconds_sum", (stream,)] == pytest.approx(0.012)
    assert values["pose2seg_latency_seconds_bucket", (("le", "0.01"), stream)] == 0
    assert values["pose2seg_latency_seconds_bucket", (("le", "0.02"), stream)] == 1
    assert values["pose2seg_stage_seconds_bucket", (("le", "+Inf"), ("stage", "keypoints"))] == 2
    assert values["pose2seg_source_state", (("state", "live"), stream)] == 1
    assert values["pose2seg_sink_frames_total", (("sink", "recording of stream 0"), stream)] == 7
    assert values["process_resident_memory_bytes", ()] > 1e6
    assert "hunter2" not in text


def test_the_end_of_the_run_ends_pictures_and_the_server_stops_quickly(serve) -> None:
    held = serve(streams=1)
    held.feed(result_of)
    with (
        open_pictures(held, MJPEG) as one,
        open_pictures(held, MJPEG) as two,
    ):
        read_pictures(one, 1)
        read_pictures(two, 1)
        started = time.monotonic()
        held.close()
        assert time.monotonic() - started < 30
        for connection in (one, two):
            try:
                while connection.recv(65536):
                    pass
            except ConnectionResetError:
                pass
    with pytest.raises(ConnectionRefusedError):
        held.client()("GET", "/healthz")


def test_an_ended_source_ends_its_pictures(serve) -> None:
    held = serve(streams=1)
    held.feed(result_of)
    with open_pictures(held, MJPEG) as connection:
        read_pictures(connection, 1)
        held._feeding.set()
        held._thread.join(10)
        held.run.end()
        data = b""
        while not data.endswith(b"0\r\n\r\n"):  # the last chunk
            more = connection.recv(65536)
            assert more
            data += more


def test_a_port_that_is_taken(serve) -> None:
    held = serve()
    with pytest.raises(SettingsError, match=r"cannot listen there .* choose another address or port"):
        PageServer(HeldRun(), PageOptions(listen=ListenAddress(host="127.0.0.1", port=held.port)))
    with pytest.raises(SettingsError, match="cannot listen there"):
        PageServer(HeldRun(), PageOptions(listen=ListenAddress(host="no-such-host.invalid", port=0), token="x" * 20))


def test_a_mistake_of_ours_is_logged_and_told_to_nobody(serve, caplog) -> None:
    held = serve()
    client = held.client()
    held.run.sources = lambda: 1 / 0
    answer = client("GET", "/api/state")
    assert answer.status == 500
    assert "mistake of this program" in answer.error
    assert "ZeroDivisionError" not in answer.body.decode()
    assert "ZeroDivisionError" in caplog.text
