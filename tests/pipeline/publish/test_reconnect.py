from __future__ import annotations

import itertools
import threading
import time

import pytest

from pipeline.backoff import Backoff
from pipeline.live.outputs import NotTaken, SinkWorker
from pipeline.publish.reconnect import ReconnectingSink
from pipeline.publish.target import PUBLISH_PORTS, parse_target
from tests.live_results import result

TARGET = parse_target("ws://u:hunter2@h/x", flag="--publish", ports=PUBLISH_PORTS)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class FakeLink:
    def __init__(self, *, works: int) -> None:
        self.works = works
        self.sent: list[int] = []
        self.closed = 0

    def send(self, given) -> None:
        if len(self.sent) == self.works:
            raise ConnectionError(f"gone: {TARGET.text}")
        self.sent.append(given.frame.index)

    def close(self) -> None:
        self.closed += 1


def test_it_connects_again_with_growing_waits_and_sends_nothing_old(caplog) -> None:
    caplog.set_level("DEBUG")  # also what libraries say then holds no secret
    clock, links, tries = Clock(), [FakeLink(works=3), FakeLink(works=100)], []

    def connect(_result):
        tries.append(clock.now_s)
        if 1 < len(tries) < 6:
            raise OSError("nobody there\nfor hunter2")
        return links[0] if len(tries) == 1 else links[1]

    sink = ReconnectingSink(TARGET, connect, backoff=Backoff(seed=1), clock=clock)
    reasons = []
    for index in range(600):
        clock.now_s += 0.1
        try:
            sink.write(result(index))
            reasons.append("")
        except NotTaken as error:
            reasons.append(error.reason)
    sink.close()
    assert links[0].sent == [0, 1, 2]
    assert links[1].sent[0] > 100  # about 1 + 2 + 5 + 10 s of frames were left out
    assert links[1].sent == list(range(links[1].sent[0], 600)) or len(links[1].sent) == 100
    assert (links[0].closed, links[1].closed) == (1, 1)
    assert reasons[3] == "connection lost"
    assert set(reasons) == {"", "connection lost", "not connected"}
    waits = [later - sooner for sooner, later in itertools.pairwise(tries[1:])]
    assert waits == sorted(waits)
    assert "hunter2" not in caplog.text
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert sum("cannot connect" in said for said in warned) == 1  # the same trouble is told once
    assert caplog.text.count("\n") == len(caplog.records)


def test_what_gives_way_while_it_connects_is_not_called_slow() -> None:
    going, go_on = threading.Event(), threading.Event()

    def connect(_result):
        going.set()
        assert go_on.wait(30)
        return FakeLink(works=10**6)

    worker = SinkWorker(ReconnectingSink(TARGET, connect), "publish", capacity=4)
    worker.offer(result(0))
    assert going.wait(30)
    for index in range(1, 21):
        worker.offer(result(index))
    assert worker.report().dropped == {"not connected": 16}
    assert worker.report().away
    go_on.set()
    worker.finish()
    worker.join(time.monotonic() + 30)
    report = worker.report()
    assert (report.written, report.dropped, report.away) == (5, {"not connected": 16}, True)


def test_a_bug_in_a_library_is_one_more_way_to_lose_a_connection() -> None:
    def connect(_result):
        raise ZeroDivisionError

    sink = ReconnectingSink(TARGET, connect)
    with pytest.raises(NotTaken, match="not connected"):
        sink.write(result(0))
    sink.close()
