from __future__ import annotations

import threading
import time

import pytest

from engines import EngineRunError
from pipeline.errors import SinkError, SourceError, StageError, exit_code_of
from pipeline.runtime import Pipeline, frame_index_of
from tests.fakes import FunctionStage, ListSource, frame, masks_of, poses_of

pytestmark = pytest.mark.timeout(60)


def no_thread_left() -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not [thread for thread in threading.enumerate() if thread.name in {"decode", "a", "b", "c"}]:
            return True
        time.sleep(0.01)
    return False


def test_every_frame_passes_every_stage_in_order() -> None:
    source = ListSource([frame(i) for i in range(30)])
    stages = [FunctionStage("a", lambda item: (item, "a")), FunctionStage("b")]
    pipeline = Pipeline(source, stages)
    results = list(pipeline.results())
    assert [item.index for item, _ in results] == list(range(30))
    assert [(stage.opened, stage.closed, len(stage.seen)) for stage in stages] == [(1, 1, 30)] * 2
    assert source.closed == 1
    assert len({stage.thread for stage in stages}) == 2
    assert [(stats.name, stats.frames) for stats in pipeline.stats()] == [("decode", 30), ("a", 30), ("b", 30)]
    assert no_thread_left()


def test_an_empty_source_ends_cleanly() -> None:
    stage = FunctionStage("a")
    assert list(Pipeline(ListSource([]), [stage]).results()) == []
    assert stage.closed == 1


def test_max_frames() -> None:
    source = ListSource(None)
    assert len(list(Pipeline(source, [FunctionStage("a")], max_frames=7).results())) == 7
    assert source.given == 7
    assert source.closed == 1


def test_results_only_once() -> None:
    pipeline = Pipeline(ListSource([frame()]), [FunctionStage("a")])
    list(pipeline.results())
    with pytest.raises(RuntimeError, match="called before"):
        list(pipeline.results())


def test_a_failing_stage_ends_the_run_and_what_it_finished_comes_out() -> None:
    def fail_at_5(item):
        if item.index == 5:
            raise ZeroDivisionError("five")
        return item

    source = ListSource(None)
    stages = [FunctionStage("a"), FunctionStage("b", fail_at_5), FunctionStage("c")]
    results = []
    with pytest.raises(StageError, match="stage b failed at frame 5: ZeroDivisionError: five") as caught:
        results.extend(Pipeline(source, stages).results())
    assert [item.index for item in results] == [0, 1, 2, 3, 4]
    assert (caught.value.stage, caught.value.frame_index) == ("b", 5)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert exit_code_of(caught.value) == 1
    assert [stage.closed for stage in stages] == [1, 1, 1]
    assert source.closed == 1
    assert no_thread_left()


def test_an_engine_error_keeps_its_exit_code() -> None:
    def fail(item):
        raise EngineRunError("wrong tensor")

    with pytest.raises(StageError, match="stage a failed at frame 0: wrong tensor") as caught:
        list(Pipeline(ListSource([frame()]), [FunctionStage("a", fail)]).results())
    assert exit_code_of(caught.value) == 4


def test_pipeline_errors_pass_unchanged() -> None:
    def fail(item):
        raise SinkError("disk full")

    with pytest.raises(SinkError, match=r"^disk full$"):
        list(Pipeline(ListSource(None), [FunctionStage("a"), FunctionStage("b", fail)]).results())


def test_a_failing_source() -> None:
    source = ListSource([frame(0), frame(1)], error=SourceError("cable"))
    stage = FunctionStage("a")
    with pytest.raises(SourceError, match="cable"):
        list(Pipeline(source, [stage]).results())
    assert len(stage.seen) == 2  # what was decoded before is finished
    assert source.closed == 1


def test_a_stage_that_cannot_open() -> None:
    def fail() -> None:
        raise OSError("no device")

    stages = [FunctionStage("a"), FunctionStage("b", on_open=fail), FunctionStage("c")]
    with pytest.raises(StageError, match="stage b failed outside a frame: OSError: no device"):
        list(Pipeline(ListSource(None), stages).results())
    assert [stage.closed for stage in stages] == [1, 1, 1]
    assert no_thread_left()


def test_the_first_error_wins_and_later_ones_are_notes() -> None:
    def fail(item):
        raise ValueError("first")

    def fail_to_close() -> None:
        raise ValueError("second")

    with pytest.raises(StageError, match="first") as caught:
        list(Pipeline(ListSource(None), [FunctionStage("a", fail, on_close=fail_to_close)]).results())
    assert len(caught.value.__notes__) == 1
    assert "second" in caught.value.__notes__[0]


def test_a_stop_finishes_what_is_in_flight() -> None:
    source = ListSource(None)
    stages = [FunctionStage("a"), FunctionStage("b")]
    pipeline = Pipeline(source, stages)
    results = []
    for result in pipeline.results():
        results.append(result)
        if len(results) == 3:
            pipeline.request_stop()
    assert len(results) == source.given == len(stages[1].seen)
    assert [result.index for result in results] == list(range(len(results)))


def test_closing_the_generator_early_joins_all_threads() -> None:
    source = ListSource(None)
    stages = [FunctionStage("a"), FunctionStage("b"), FunctionStage("c")]
    results = Pipeline(source, stages).results()
    next(results)
    results.close()
    assert no_thread_left()
    assert [stage.closed for stage in stages] == [1, 1, 1]
    assert source.closed == 1


def test_an_error_in_the_loop_joins_all_threads() -> None:
    source = ListSource(None)
    results = Pipeline(source, [FunctionStage("a")]).results()
    with pytest.raises(KeyError):
        for _ in results:
            raise KeyError
    results.close()
    assert no_thread_left()
    assert source.closed == 1


def test_abort_from_another_thread_ends_a_waiting_reader() -> None:
    blocked = threading.Event()
    release = threading.Event()

    def wait(item):
        blocked.set()
        release.wait(30)
        return item

    pipeline = Pipeline(ListSource(None), [FunctionStage("a", wait)])

    def abort() -> None:
        blocked.wait(30)
        pipeline.abort()
        release.set()

    helper = threading.Thread(target=abort, daemon=True)
    helper.start()
    assert list(pipeline.results()) == []
    helper.join(30)
    assert no_thread_left()


def test_a_live_source_drops_and_counts_while_a_file_waits() -> None:
    def slow(item):
        time.sleep(0.02)
        return item

    live = Pipeline(ListSource([frame(i) for i in range(40)], live=True), [FunctionStage("a", slow)])
    indices = [result.index for result in live.results()]
    assert indices == sorted(indices)
    assert indices[-1] == 39  # the newest frame always gets through
    assert live.frames_dropped == 40 - len(indices) > 0

    file = Pipeline(ListSource([frame(i) for i in range(40)]), [FunctionStage("a", slow)])
    assert len(list(file.results())) == 40
    assert file.frames_dropped == 0


def test_figures_of_the_stages() -> None:
    def slow(item):
        time.sleep(0.005)
        return item

    pipeline = Pipeline(ListSource([frame(i) for i in range(10)]), [FunctionStage("a", slow), FunctionStage("b")])
    list(pipeline.results())
    decode, a, b = pipeline.stats()
    assert decode.input is None
    assert a.input is not None
    assert b.input is not None
    assert 4.0 < a.p50_ms <= a.p95_ms
    assert a.busy_s >= 0.05
    assert b.input.reader_wait_s > 0  # b waits for the slow a
    assert a.input.received == a.input.delivered == 10


def test_stage_names_must_differ() -> None:
    with pytest.raises(ValueError, match="must differ"):
        Pipeline(ListSource([]), [FunctionStage("a"), FunctionStage("a")])


@pytest.mark.slow
def test_start_and_stop_a_hundred_times() -> None:
    before = threading.active_count()
    for round_number in range(100):
        results = Pipeline(ListSource(None), [FunctionStage("a"), FunctionStage("b")]).results()
        for _ in range(round_number % 4):
            next(results)
        results.close()
    assert no_thread_left()
    assert threading.active_count() <= before


def test_frame_index_of_every_message() -> None:
    of = frame(9)
    masks = masks_of(of, (2, 2, 20, 40))
    assert [frame_index_of(message) for message in (of, poses_of(of), masks.rois, masks, None, 3)] == [
        9,
        9,
        9,
        9,
        None,
        None,
    ]


class Later(FunctionStage):
    """Gives each message with the one that comes ``by`` later, and the last ones at the end."""

    def __init__(self, name: str, by: int) -> None:
        super().__init__(name)
        self._by = by
        self._held: list = []

    def process_held(self, item):
        self._held.append(item)
        return [self._held.pop(0)] if len(self._held) > self._by else []

    def rest(self):
        return self._held


@pytest.mark.parametrize("count", [0, 1, 3, 10])
def test_a_stage_that_holds_messages_back_loses_none(count: int) -> None:
    pipeline = Pipeline(ListSource([frame(i) for i in range(count)]), [Later("a", 3), FunctionStage("b")])
    assert [item.index for item in pipeline.results()] == list(range(count))
    assert {stats.name: stats.frames for stats in pipeline.stats()} == {"decode": count, "a": count, "b": count}


def test_what_is_held_back_is_thrown_away_by_an_abort() -> None:
    pipeline = Pipeline(ListSource([frame(i) for i in range(10)]), [Later("a", 3), FunctionStage("b")])
    seen = []
    for item in pipeline.results():
        seen.append(item.index)
        pipeline.abort()
    assert len(seen) < 10


class BatchRecorder(FunctionStage):
    """A stage that takes up to four messages a call, and waits for ``gate`` before the first."""

    batch_limit = 4

    def __init__(self, name: str, gate: threading.Event) -> None:
        super().__init__(name)
        self.batches: list[list[int]] = []
        self._gate = gate

    def process_batch(self, items):
        self._gate.wait(10)
        self.batches.append([item.index for item in items])
        return list(items)


def test_messages_that_wait_are_one_call() -> None:
    gate = threading.Event()
    stage = BatchRecorder("a", gate)
    source = ListSource([frame(i) for i in range(11)])
    pipeline = Pipeline(source, [stage, FunctionStage("b")], queue_depth=4)
    results = pipeline.results()
    threading.Timer(0.3, gate.set).start()  # by then the channel before the stage is full
    assert [item.index for item in results] == list(range(11))
    assert [index for batch in stage.batches for index in batch] == list(range(11))
    assert max(map(len, stage.batches)) <= 4
    assert any(len(batch) > 1 for batch in stage.batches)
    by_name = {stats.name: stats.frames for stats in pipeline.stats()}
    assert by_name == {"decode": 11, "a": 11, "b": 11}
