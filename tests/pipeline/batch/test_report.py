"""The report, the live figures, and what a machine has for workers."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from rich.console import Console

from pipeline.batch.machine import WORKER_BYTES, Resources, resources, share
from pipeline.batch.plan import BatchInput
from pipeline.batch.progress import (
    ActiveFile,
    BatchDisplay,
    BatchFigures,
    PatientConsole,
    Speed,
    batch_line,
    batch_table,
    duration,
    say,
)
from pipeline.batch.report import COLUMNS, ReportRow, csv_report, html_report, write_report
from pipeline.batch.settings import SHARED, BatchSettings
from pipeline.batch.state import FileState, JobFolder, Segment, replace_file
from pipeline.errors import SettingsError, SinkError

HOSTILE = '<script>alert("x")</script>&\'"><img src=x onerror=y>.mp4'


def row(name: str, status: str = "done", error: str = "", warnings: tuple[str, ...] = ()) -> ReportRow:
    state = FileState(path="/in/" + name, name=name, size=1, mtime_ns=1, status=status, error=error)
    state.warnings = list(warnings)
    state.segments = [Segment(frames=50, people=75, seconds=2.0, first_pts=0, time_base=(1, 25), parts={})]
    _, data = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))
    return ReportRow(item=BatchInput(path=state.path, name=name), state=state, picture=data.tobytes())


class Tags(HTMLParser):
    """Collects tags and texts, and fails on what is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.texts.append(data)


def test_the_page_is_whole_and_escaped() -> None:
    rows = [row(HOSTILE, "failed", error=f"{HOSTILE}: broken\x1b[31m"), row("ok.mp4", warnings=("audio left out",))]
    text = html_report(rows, ("video", "json"))
    page = Tags()
    page.feed(text)
    assert not page.open
    assert {tag for tag, _ in page.tags} == {
        *("html", "head", "meta", "title", "style", "body", "h1", "p", "span", "table", "thead", "tbody"),
        *("tr", "th", "td", "img", "a", "br"),
    }
    assert all(key not in attrs for _, attrs in page.tags for key in ("onerror", "onclick"))
    assert all(attrs["src"].startswith("data:image/jpeg;base64,") for tag, attrs in page.tags if tag == "img")
    assert [attrs["href"] for tag, attrs in page.tags if tag == "a"] == ["./ok.mp4.people.mp4", "./ok.mp4.jsonl"]
    assert HOSTILE in page.texts
    assert "\x1b" not in text
    assert "1 done" in page.texts
    assert "1 failed" in page.texts


def test_the_table_for_programs() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_report([row("=1+1.mp4"), row('a,"b.mp4', "failed", error="x; y")]))))
    assert tuple(rows[0]) == COLUMNS
    assert rows[0]["file"] == "'=1+1.mp4"  # no formula
    assert (rows[0]["frames"], rows[0]["people_per_frame"], rows[0]["fps"]) == ("50", "1.500", "25.00")
    assert (rows[1]["file"], rows[1]["result"], rows[1]["error"]) == ('a,"b.mp4', "failed", "x; y")


def test_a_report_is_not_written_through_a_link(tmp_path) -> None:
    write_report(tmp_path, [row("a.mp4")], ("json",))
    assert "a.mp4" in (tmp_path / "report.html").read_text()
    (tmp_path / "report.html").unlink()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "report.html").symlink_to(tmp_path / "precious")
    with pytest.raises(SinkError, match="link"):
        write_report(tmp_path, [row("a.mp4")], ("json",))
    assert (tmp_path / "precious").read_text() == "precious"


def figures() -> BatchFigures:
    now = [0.0]
    speed = Speed(lambda: now[0])
    speed.note(0)
    now[0] = 2.0
    speed.note(100)
    active = ActiveFile(name="[red]x[/red].mp4", frames=50, people=100, total=150, speed=speed)
    return BatchFigures(files=4, active={"x": active}, done=1, failed=1, frames=100, frames_left=300, speed=speed)


def test_live_figures() -> None:
    line = batch_line(figures())
    assert line == "files=1/4 failed=1 active=1 frames=100 fps=50.0 left=6s"
    console = Console(file=io.StringIO(), width=100)
    console.print(batch_table(figures()))
    text = console.file.getvalue()
    assert "[red]x[/red].mp4" in text
    assert "50/150" in text
    assert "2.0" in text  # people per frame, and 2 s left
    assert "1 of 4 files done, 1 failed, 100 frames, 50.0 FPS, 6 s left" in text


@pytest.mark.parametrize(("seconds", "text"), [(None, "?"), (0.4, "0 s"), (61, "1 min 01 s"), (3660, "1 h 01 min")])
def test_durations(seconds, text) -> None:
    assert duration(seconds) == text


class Gone(io.StringIO):
    """A terminal that was closed."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_closed_terminal_ends_the_showing_only(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr("pipeline.batch.progress.silence", lambda: calls.append(1))
    display = BatchDisplay(PatientConsole(file=Gone(), force_terminal=True), 5.0)
    for _ in range(3):
        display.update(figures())
    display.close()
    say(PatientConsole(file=Gone()), batch_table(figures()))
    assert calls


def write_machine(folder, cpu: str, limit: str, used: str, available_kb: int) -> Resources:
    for name, text in (("cpu.max", cpu), ("memory.max", limit), ("memory.current", used)):
        (folder / name).write_text(text + "\n")
    (folder / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {available_kb} kB\n")
    return resources(folder, folder / "meminfo")


def test_what_a_container_has(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.batch.machine.usable_cores", lambda: 16)
    assert write_machine(tmp_path, "max 100000", "max", "0", 1000) == Resources(cores=16, memory_bytes=1_024_000)
    assert write_machine(tmp_path, "250000 100000", "5000000", "1000000", 10**7) == Resources(
        cores=3, memory_bytes=4_000_000
    )
    monkeypatch.undo()
    assert resources().cores >= 1
    assert resources().memory_bytes > 0


@pytest.mark.parametrize(
    ("cores", "workers_fit", "files", "said", "expected"),
    [
        (2, 100, 10, {}, (2, 1)),
        (16, 100, 1, {}, (1, 16)),
        (16, 3, 100, {}, (3, 5)),
        (16, 100, 100, {"threads": 4}, (4, 4)),
        (16, 100, 100, {"workers": 2}, (2, 8)),
        (16, 100, 100, {"gpu": True}, (1, 16)),
        (1, 0, 5, {}, (1, 1)),
    ],
)
def test_workers_and_threads(cores, workers_fit, files, said, expected) -> None:
    found = Resources(cores=cores, memory_bytes=workers_fit * WORKER_BYTES + 1)
    got = share(found, files, **{"workers": None, "threads": None, "gpu": False, **said})
    assert got == expected
    assert "workers" in said or got[0] * got[1] <= max(cores, 1)


def test_settings_and_their_refusals(tmp_path) -> None:
    good = BatchSettings(inputs=("a",), out=tmp_path, write="json,json,coco")
    assert good.kinds == ("json", "coco")
    of_layers = {"layer_ids", "layer_background", "refine_edges", "steady_edges", "cover_frames", "hide_ahead"}
    assert set(good.deciding()) >= set(SHARED) - {"queue_depth", "stats_every_s", "batch"} - of_layers
    assert good.deciding()["layer"] is None  # as a batch of an older version, which goes on
    with_layers = BatchSettings(inputs=("a",), out=tmp_path, write="", layer=("cutout", "blur"), cover_frames=30)
    assert set(with_layers.deciding()["layer"]) == {*of_layers, "layer"}
    assert with_layers.of_files().layer == ("cutout=cutout.mov", "blur=blur.mp4")
    assert good.of_files(3).threads == 3
    for values, message in (
        ({"out": None}, "add --out"),
        ({"write": "mp3"}, "--write must be some of"),
        ({"write": ""}, "got nothing"),
        ({"workers": "0"}, "--workers must be"),
        ({"segment_seconds": 0.0}, "--segment-seconds must be"),
        ({"video_crf": 99}, "--video-crf must be"),
        ({"layer_ids": "1"}, "add --layer"),
        ({"layer": ("blur=x.mp4",)}, "named for their inputs"),
        ({"layer": ("background",), "layer_background": "none.png"}, "cannot be read"),
    ):
        with pytest.raises(SettingsError, match=message):
            BatchSettings(**{"inputs": ("a",), "out": tmp_path, **values})


def test_one_batch_at_a_time(tmp_path) -> None:
    job = JobFolder(tmp_path)
    job.create()
    with job.locked(), pytest.raises(SettingsError, match="another batch is writing"), JobFolder(tmp_path).locked():
        pass
    with job.locked():
        pass


def test_states_come_back_and_damage_is_seen(tmp_path) -> None:
    job = JobFolder(tmp_path)
    job.create()
    state = row("a.mp4").state
    state.segments[0].parts = {"000000.jsonl": 5}
    job.save("key", state)
    assert job.load("key") == state
    assert not job.parts_are_whole("key", state)
    (job.folder_of("key") / "000000.jsonl").write_bytes(b"12345")
    assert job.parts_are_whole("key", state)
    (job.folder_of("key") / "state.json").write_text("{")
    with pytest.raises(SettingsError, match="cannot be read"):
        job.load("key")


def test_a_failed_replacement_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "state.json"
    replace_file(path, json.dumps({"a": 1}).encode())

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(SinkError, match="No space left"):
        replace_file(path, b"x" * 100)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]
