from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.device import HostDevice
from pipeline.build import model_stages
from pipeline.errors import SourceError
from pipeline.live.stream_group import StreamGroup
from pipeline.runtime import Pipeline
from pipeline.settings import Settings
from pipeline.stage5_compose import ComposeStage
from tests.fakes import FunctionStage, ListSource, fake_model, frame, picture

pytestmark = pytest.mark.timeout(60)


class LiveSource(ListSource):
    live = True


class BrokenSource(ListSource):
    """Gives its frames, then breaks."""

    def __init__(self, frames, message: str, error: type[Exception] = SourceError) -> None:
        super().__init__(frames)
        self._said, self._kind = message, error

    def frames(self):
        yield from super().frames()
        raise self._kind(self._said)


def indices(frames, stream: int) -> list[int]:
    return [item.index for item in frames if item.stream == stream]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(1, 4))
def test_every_frame_of_every_file_comes_in_order(lengths, capacity) -> None:
    sources = [ListSource([frame(i) for i in range(length)]) for length in lengths]
    group = StreamGroup(sources, capacity=capacity)
    frames = list(group.frames())
    group.close()
    for stream, length in enumerate(lengths):
        assert indices(frames, stream) == list(range(length))
    assert len(frames) == sum(lengths)
    assert [source.closed for source in sources] == [1] * len(lengths)
    assert [(stats.frames, stats.dropped, stats.ended) for stats in group.stats()] == [(n, 0, True) for n in lengths]


def test_streams_take_turns() -> None:
    group = StreamGroup([ListSource([frame(i) for i in range(20)]) for _ in range(3)], capacity=4)
    frames = group.frames()
    first = next(frames)
    deadline = time.monotonic() + 10
    while any(stats.frames < 4 for stats in group.stats()) and time.monotonic() < deadline:
        time.sleep(0.01)  # until every queue is full
    order = [first.stream, *(next(frames).stream for _ in range(8))]
    group.close()
    assert order[1:] == [(order[1] + n) % 3 for n in range(8)]


def test_one_broken_source_ends_no_other() -> None:
    sources = [
        ListSource([frame(i) for i in range(12)]),
        BrokenSource([frame(i) for i in range(3)], "camera 1: unplugged"),
        BrokenSource([], "no such thing", ValueError),
    ]
    group = StreamGroup(sources)
    frames = list(group.frames())
    group.close()
    assert indices(frames, 0) == list(range(12))
    assert indices(frames, 1) == [0, 1, 2]
    errors = [stats.error for stats in group.stats()]
    assert errors[0] is None
    assert errors[1] == "camera 1: unplugged"
    assert "no such thing" in errors[2]


def test_when_all_sources_break_the_group_does() -> None:
    group = StreamGroup([BrokenSource([frame()], "first"), BrokenSource([], "second")])
    given_frames = []
    with pytest.raises(SourceError) as caught:
        given_frames.extend(group.frames())
    group.close()
    said = [str(caught.value), *getattr(caught.value, "__notes__", ())]
    assert said == ["first", "and: second"]


def test_a_live_source_gives_its_newest_frame_and_counts_the_rest() -> None:
    live, file = LiveSource([frame(i) for i in range(50)]), ListSource([frame(i) for i in range(6)])
    group = StreamGroup([live, file])
    frames = group.frames()
    first = next(frames)
    deadline = time.monotonic() + 10
    while not group.stats()[0].ended and time.monotonic() < deadline:
        time.sleep(0.01)
    rest = [first, *frames]
    group.close()
    assert indices(rest, 0)[-1] == 49
    assert len(indices(rest, 0)) + group.frames_dropped == 50
    assert indices(rest, 1) == list(range(6))  # a file loses nothing


def test_stopping_wakes_everybody() -> None:
    group = StreamGroup([ListSource(None), ListSource([])], capacity=1)
    frames = group.frames()
    taken = [next(frames).stream for _ in range(5)]
    assert taken == [0] * 5
    threading.Timer(0.05, group.stop).start()
    assert len(list(frames)) < 10**6
    group.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stream ")]


def test_a_group_that_never_ran_closes_its_sources() -> None:
    sources = [ListSource([frame()]), ListSource([frame()])]
    StreamGroup(sources).close()
    assert [source.closed for source in sources] == [1, 1]
    with pytest.raises(ValueError, match="at least one source"):
        StreamGroup([])


def test_streams_share_calls_and_keep_their_own_ids() -> None:
    """Somebody in one stream is nobody's continuation in another, even at the same place."""
    image = picture(120, 200, (60, 20, 100, 110))
    count = 10
    sources = [ListSource([frame(i, image=image) for i in range(count)]) for _ in range(3)]
    device = HostDevice(frames_per_call=6)
    model = fake_model()
    pipeline = Pipeline(
        StreamGroup(sources, capacity=2),
        [
            *model_stages(Settings(source="x"), model, device),
            ComposeStage(device, mask_threshold=0.5, draw=False),
            FunctionStage("sink"),
        ],
        queue_depth=6,
    )
    results = list(pipeline.results())
    assert len(results) == 3 * count
    for stream in range(3):
        own = [result for result in results if result.frame.stream == stream]
        assert [result.frame.index for result in own] == list(range(count))
        assert {result.people[0].id for result in own} == {1}
        assert all(np.array_equal(result.people[0].mask, own[0].people[0].mask) for result in own)
    assert max(model.keypoint_engine.batches) > 1  # frames of several streams in one call
