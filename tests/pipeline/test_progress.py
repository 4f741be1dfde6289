from __future__ import annotations

import io

import pytest
from rich.console import Console

from engines.device import HostDevice
from pipeline.metrics import ServiceMeter, percentile
from pipeline.progress import RunCounter, TerminalProgress, progress_line, summary_table
from pipeline.runtime import Pipeline
from pipeline.stage5_compose import ComposeStage
from tests.fakes import FunctionStage, ListSource, frame, masks_of


@pytest.fixture
def run():
    compose = ComposeStage(HostDevice(), mask_threshold=0.5, draw=False)
    pipeline = Pipeline(
        ListSource([frame(i) for i in range(20)]),
        [FunctionStage("masks", lambda of: masks_of(of, *[(2, 2, 20, 40)] * (of.index % 2))), compose],
    )
    counter = RunCounter(pipeline)
    for result in pipeline.results():
        counter.count(result)
    return pipeline, counter


def test_totals(run) -> None:
    pipeline, counter = run
    totals = counter.totals()
    assert (totals.frames, totals.dropped, totals.lost) == (20, 0, 0)
    assert totals.people_mean == 0.5
    assert 0 < totals.startup_s <= totals.seconds
    assert totals.fps == pytest.approx(20 / (counter._last - pipeline.source._frames[0].captured_s))
    assert [stage.name for stage in totals.stages] == ["decode", "masks", "compose"]


def test_the_plain_line_is_key_value(run) -> None:
    _, counter = run
    line = progress_line(counter, 40)
    assert line.startswith("frame=20/40 fps=")
    assert {part.partition("=")[0] for part in line.split()} == {
        *("frame", "fps", "people", "dropped", "lost", "decode_ms", "masks_ms", "compose_ms")
    }


def test_the_table_names_every_stage(run) -> None:
    _, counter = run
    out = io.StringIO()
    Console(file=out, width=120).print(summary_table("clip[red].mp4", counter.totals()))
    text = out.getvalue()
    assert "clip[red].mp4" in text
    assert "20 frames, 0.50 people per frame" in text
    for name in ("decode", "masks", "compose", "p50 ms", "waits for input"):
        assert name in text


def test_the_terminal_bar(run) -> None:
    _, counter = run
    out = io.StringIO()
    bar = TerminalProgress(Console(file=out, force_terminal=True, width=160), counter, 40)
    bar.update()
    bar._live.refresh()
    bar.close()
    assert "20/40" in out.getvalue()
    assert "FPS" in out.getvalue()
    assert "ms per frame: decode" in out.getvalue()


def test_before_the_first_frame() -> None:
    counter = RunCounter(Pipeline(ListSource([]), [FunctionStage("a")]))
    totals = counter.totals()
    assert (totals.frames, totals.fps, totals.people_mean, counter.recent_fps) == (0, 0.0, 0.0, 0.0)
    Console(file=io.StringIO()).print(summary_table("x", totals))


def test_percentiles() -> None:
    assert percentile([], 0.5) == 0.0
    assert percentile([3.0], 0.95) == 3.0
    assert percentile([float(i) for i in range(100)], 0.5) == 50.0
    assert percentile([float(i) for i in range(100)], 0.95) == 95.0


def test_the_meter_forgets_old_times_but_not_their_sum() -> None:
    meter = ServiceMeter()
    for _ in range(5000):
        meter.record(0.001)
    stats = meter.stats("a", None)
    assert stats.frames == 5000
    assert stats.busy_s == pytest.approx(5.0)
    assert stats.p50_ms == pytest.approx(1.0)
    assert len(meter._recent_ms) == 4096
