from __future__ import annotations

import socket
import threading
import time
from datetime import UTC, datetime

import pytest

from pipeline.live.outputs import NotTaken
from pipeline.publish import webhook as publish_webhook
from pipeline.publish.target import WEBHOOK_PORTS, parse_target
from pipeline.publish.webhook import TRIES, WebhookSink
from pipeline.zones.shape import Zone
from pipeline.zones.stage import ZoneStage
from tests.integration.test_publish import HookServer
from tests.live_results import person, result
from tests.live_servers import free_port

pytestmark = pytest.mark.timeout(60)
ALL = Zone(name="all", corners=((0, 0), (1, 0), (1, 1), (0, 1)), enter_s=0.0)


def with_event():
    done = ZoneStage((ALL,)).process(result(0, [person(7, 60, 60)]))
    assert [event.kind for event in done.events] == ["enter"]
    return done


def sink(url: str, **options) -> WebhookSink:
    target = parse_target(url, flag="--webhook", ports=WEBHOOK_PORTS)
    return WebhookSink(target, wait=lambda _s: None, now=lambda: datetime(2030, 1, 2, tzinfo=UTC), **options)


def test_what_is_posted() -> None:
    done = with_event()
    with HookServer() as hook:
        hooked = sink(hook.url)
        hooked.write(done)
    ((_, headers, body),) = hook.requests
    assert headers["Content-Type"] == "application/json"
    assert body == {
        "key": done.events[0].key,
        "kind": "enter",
        "zone": "all",
        "id": 7,
        "seconds": 0.0,
        "point": [0.4727, 0.6302],
        "lost": False,
        "inside": 1,
        "stream": 0,
        "source": "list",
        "frame": 0,
        "pts_s": 0.0,
        "time": "2030-01-02T00:00:00.000+00:00",
    }
    assert hooked.posted == 1
    assert not WebhookSink.wants(result(0))
    assert WebhookSink.wants(done)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
def test_what_may_pass_is_tried_again_with_the_same_id(status) -> None:
    with HookServer(status, status) as hook:
        sink(hook.url).write(with_event())
    assert len(hook.requests) == 3
    assert len({headers["Idempotency-Key"] for _, headers, _ in hook.requests}) == 1


def test_tries_end() -> None:
    with HookServer(*[500] * 20) as hook, pytest.raises(NotTaken, match="webhook not delivered"):
        sink(hook.url).write(with_event())
    assert len(hook.requests) == TRIES


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 410])
def test_what_will_not_pass_is_not_tried_again_and_redirects_are_not_followed(status) -> None:
    with HookServer(status) as hook, pytest.raises(NotTaken):
        sink(hook.url).write(with_event())
    assert len(hook.requests) == 1


def test_nobody_there(caplog) -> None:
    caplog.set_level("DEBUG")  # also what libraries say then holds no secret
    with pytest.raises(NotTaken):
        sink(f"http://u:hunter2@127.0.0.1:{free_port()}/s3cret").write(with_event())
    assert "refused" in caplog.text
    assert "hunter2" not in caplog.text and "s3cret" not in caplog.text


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"\xff\x00garbage\r\n\r\n", b"HTTP/1.1 999999 x\r\n\r\n"]
)
def test_a_server_that_drips_or_talks_nonsense_costs_its_time_limit(monkeypatch, answer) -> None:
    monkeypatch.setattr(publish_webhook, "TRIES", 1)
    ended = threading.Event()

    def drip(client) -> None:
        with client:
            try:
                client.recv(65536)
                client.sendall(answer)
                while not ended.wait(0.05):
                    client.sendall(b"a")
            except OSError:
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=lambda: drip(listener.accept()[0]), daemon=True).start()
        started = time.monotonic()
        with pytest.raises(NotTaken):
            sink(f"http://127.0.0.1:{listener.getsockname()[1]}/", limit_s=0.5).write(with_event())
        assert time.monotonic() - started < 20
        ended.set()


def test_a_stopped_run_does_not_wait_for_tries() -> None:
    target = parse_target(f"http://127.0.0.1:{free_port()}/", flag="--webhook", ports=WEBHOOK_PORTS)
    hooked = WebhookSink(target)
    hooked.stop()
    started = time.monotonic()
    with pytest.raises(NotTaken):
        hooked.write(with_event())
    assert time.monotonic() - started < 5
