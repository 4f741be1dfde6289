"""Segments of one file in any order, by any worker, some ahead of their turn: what comes out is what one pass gives."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kernels.neighbours import OWN_ONLY
from pipeline.batch import ahead
from pipeline.batch.ahead import detect_segment, scout_file
from pipeline.batch.crew import ProcessCrew
from pipeline.batch.detections import (
    DETECTIONS,
    DetectionsDamaged,
    FoundFrame,
    Summary,
    check_detections,
    read_detections,
)
from pipeline.batch.file import FileOptions, FileProgress, Interrupted, Paused, found_in, process_file
from pipeline.batch.plan import plan_inputs
from pipeline.batch.schedule import Batch
from pipeline.batch.state import JobFolder
from pipeline.batch.worker import WorkerOptions
from pipeline.build import Model, open_model
from pipeline.errors import SourceError
from pipeline.settings import Settings
from tests.clips import numbered_picture, read_video, write_everything, write_video
from tests.magenta_model import write_magenta_model

pytestmark = pytest.mark.timeout(280)
FRAMES = 110
KINDS = ("video", "json", "coco", "sheet")
AFTERWARDS = {"state.json", "lock", "picture.jpg"}  # all that is kept of a file that is finished


def write_open_groups(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "12", "x264-params": "open-gop=1:bframes=3"})
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        stream.codec_context.gop_size = 12
        stream.codec_context.max_b_frames = 3
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


CLIPS = {
    "plain.mp4": lambda path: write_video(path, FRAMES),
    "open.mkv": write_open_groups,
    "uneven.mp4": lambda path: write_video(path, FRAMES, times_ms=np.cumsum(np.arange(FRAMES) % 7 * 13 + 5).tolist()),
    "no-times.h264": lambda path: write_video(path, FRAMES),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    opened = open_model(
        Settings(source="x", model=write_magenta_model(tmp_path_factory.mktemp("model")), threads=1, engine="onnx")
    )
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, write in CLIPS.items():
        write(folder / name)
    return folder


class Job:
    """One input and what may be done about it."""

    def __init__(self, source: Path, out: Path, model: Model, segment_s: float, **options: object) -> None:
        self.job = JobFolder(out)
        self.job.create()
        (self.item,) = plan_inputs([str(source)], out)
        self.model = model
        own = {"engine": "onnx", "video_crf": 0, "smooth_joints": True, **options}
        self.options = FileOptions(settings=Settings(source="x", **own), write=KINDS, segment_s=segment_s)

    def scout(self) -> list[tuple[int, dict | None]]:
        borders: list[tuple[int, dict | None]] = []
        told = scout_file(
            self.item,
            self.job,
            self.model,
            self.options,
            border=lambda number, start: borders.append((number, json.loads(json.dumps(start)))),
        )
        assert told == len(borders)
        return borders

    def detect(
        self,
        number: int,
        start: dict | None,
        report: Callable[[FileProgress], None] = lambda progress: None,
    ) -> None:
        detect_segment(self.item, number, start, self.job, self.model, self.options, report=report)

    def go_on(self, until: int | None = None) -> bool:
        """Whether it is finished."""
        try:
            state = process_file(
                self.item, self.job, self.model, self.options, report=lambda progress: None, until=until
            )
        except Paused:
            return False
        assert state.status == "done"
        return True

    def path(self, number: int) -> Path:
        return self.job.folder_of(self.item.key) / DETECTIONS.format(number)

    def left(self) -> set[str]:
        return {entry.name for entry in self.job.folder_of(self.item.key).iterdir()}

    def outputs(self) -> dict[str, object]:
        frames, times = read_video(self.item.output(self.job.out, "video"))
        found = {kind: self.item.output(self.job.out, kind).read_bytes() for kind in KINDS if kind != "video"}
        return {**found, "times": times, "frames": [frame.tobytes() for frame in frames]}


@pytest.fixture(scope="module")
def one_pass(clips, model, tmp_path_factory) -> dict[str, dict[str, object]]:
    found = {}
    for name in CLIPS:
        job = Job(clips / name, tmp_path_factory.mktemp("whole"), model, 1e4)
        assert job.go_on()
        found[name] = job.outputs()
    return found


def test_everything_at_once(model, tmp_path) -> None:
    """Sound, uneven times, a rotation mark, reordered frames and open groups; detections come last segment first.

    FULL_LENGTH=1 makes it ten minutes; twelve seconds are enough to meet every kind of border.
    """
    full = os.environ.get("FULL_LENGTH") == "1"
    source = write_everything(tmp_path / "in.mp4", seconds=600 if full else 12)
    whole = Job(source, tmp_path / "whole", model, 1e4)
    assert whole.go_on()
    split = Job(source, tmp_path / "split", model, 30.0 if full else 2.0)
    borders = split.scout()
    assert len(borders) >= (15 if full else 3)
    for number, start in reversed(borders):
        split.detect(number, start)
    assert split.go_on()
    assert split.outputs() == whole.outputs()
    with av.open(str(split.item.output(split.job.out, "video"))) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(CLIPS)),
    segment_s=st.floats(0.1, 1.5),
    seed=st.integers(0, 2**32 - 1),
    lost=st.floats(0.0, 0.5),
)
@example(name="plain.mp4", segment_s=0.4, seed=1, lost=0.0)
@example(name="open.mkv", segment_s=0.3, seed=2, lost=0.3)
def test_any_split_and_any_order_of_workers_give_the_same(
    clips, one_pass, model, tmp_path_factory, name, segment_s, seed, lost
) -> None:
    """Detections come in any order, some never; the pass in order is called at any time, with any promise."""
    choices = random.Random(seed)
    job = Job(clips / name, tmp_path_factory.mktemp("split"), model, segment_s)
    borders = job.scout()
    choices.shuffle(borders)
    for number, start in borders:
        if choices.random() >= lost:
            job.detect(number, start)
        if choices.random() < 0.3:
            job.go_on(until=choices.randint(0, len(borders)))
    job.go_on()
    assert job.outputs() == one_pass[name]
    assert not list(job.path(0).parent.glob("people-*"))  # nothing is left of what was found ahead


def test_a_late_worker_leaves_nothing_of_a_file_that_is_finished(clips, model, tmp_path) -> None:
    job = Job(clips / "plain.mp4", tmp_path, model, 0.6)
    borders = job.scout()
    assert job.go_on(until=len(borders))
    seen: list[FileProgress] = []
    for number, start in borders:
        job.detect(number, start, seen.append)
    assert seen == []  # and has run no network
    assert job.left() == AFTERWARDS


def test_a_late_worker_leaves_nothing_of_a_segment_that_is_finished(clips, model, tmp_path) -> None:
    job = Job(clips / "plain.mp4", tmp_path, model, 0.6)
    borders = job.scout()
    assert not job.go_on(until=2)
    for number, start in borders[:3]:
        job.detect(number, start)
    assert [job.path(number).exists() for number in range(3)] == [False, False, True]


def test_a_file_that_is_finished_before_a_late_worker_writes(clips, model, tmp_path, monkeypatch) -> None:
    job = Job(clips / "plain.mp4", tmp_path, model, 0.6)
    number, start = job.scout()[1]
    written = []

    def late(*args: object, **more: object) -> int:
        assert job.go_on()
        frames = detect(*args, **more)
        written.append(job.path(number).exists())
        return frames

    detect = ahead.detect
    monkeypatch.setattr(ahead, "detect", late)
    job.detect(number, start)
    assert written == [True]
    assert job.left() == AFTERWARDS


def test_a_file_that_is_finished_while_a_late_worker_writes(clips, model, tmp_path) -> None:
    job = Job(clips / "plain.mp4", tmp_path, model, 0.6)
    number, start = job.scout()[1]
    folder = write_magenta_model(tmp_path / "model")
    other = open_model(Settings(source="x", model=folder, threads=1, engine="onnx"))
    in_order = Job(clips / "plain.mp4", tmp_path, other, 0.6)

    def finish(progress: FileProgress) -> None:
        if progress.frames == 2:
            assert in_order.go_on()

    try:
        job.detect(number, start, finish)
    finally:
        other.close()
    assert job.left() == AFTERWARDS


def test_parts_that_a_killed_worker_left_of_a_finished_file_go_with_the_next_run(clips, model, tmp_path) -> None:
    job = Job(clips / "plain.mp4", tmp_path, model, 0.6)
    assert job.go_on()
    for name in (job.path(1).name, f".{job.path(2).name}.node.7.new", "000000.mp4"):
        (job.path(0).parent / name).write_bytes(b"x")
    crew = ProcessCrew(WorkerOptions(out=job.job.out, file=job.options))
    batch = Batch(job.job, [job.item], job.options, crew=crew, workers=1)
    assert batch.left_to_do(retry_failed=False) == []
    assert len(job.left()) == len(AFTERWARDS) + 3  # asked what is left to do, as --dry-run does: nothing is touched
    batch.prepare(overwrite=False, retry_failed=False)
    assert job.left() == AFTERWARDS


def test_a_file_in_which_no_seek_can_be_trusted_is_not_split(clips, model, tmp_path) -> None:
    job = Job(clips / "no-times.h264", tmp_path, model, 0.4)
    assert len(job.scout()) <= 1


def test_a_short_file_is_not_split(clips, model, tmp_path) -> None:
    assert Job(clips / "plain.mp4", tmp_path, model, 3.0).scout() == []


def test_an_interrupted_scout_starts_where_the_file_is(clips, model, tmp_path) -> None:
    job = Job(clips / "plain.mp4", tmp_path, model, 0.6)
    every = job.scout()
    assert not job.go_on(until=2)
    assert [number for number, _ in job.scout()] == [number for number, _ in every][2:]
    with pytest.raises(Interrupted):
        scout_file(job.item, job.job, model, job.options, border=lambda *border: None, stop=lambda: True)
    assert job.go_on()
    assert job.scout() == []


def test_detections_that_cannot_be_used_are_made_again(clips, one_pass, model, tmp_path) -> None:
    job = Job(clips / "plain.mp4", tmp_path, model, 0.6)
    borders = job.scout()
    for number, start in borders:
        job.detect(number, start)
    job.path(0).write_bytes(job.path(0).read_bytes()[:-30])  # cut
    whole = bytearray(job.path(1).read_bytes())
    whole[len(whole) // 2] ^= 255  # one wrong byte
    job.path(1).write_bytes(whole)
    job.path(2).write_bytes(job.path(3).read_bytes())  # of another segment
    assert job.go_on()
    assert job.outputs() == one_pass["plain.mp4"]


def test_detections_of_other_frames_are_noticed_while_they_are_read(clips, one_pass, model, tmp_path) -> None:
    job = Job(clips / "plain.mp4", tmp_path, model, 0.6)
    for number, start in job.scout():
        job.detect(number, start)
    head, _, rest = job.path(1).read_bytes().partition(b"\n")
    wrong = (1 << 40).to_bytes(8, "little") + rest[8:]  # pts of its first frame
    job.path(1).write_bytes(head + b"\n" + wrong)
    assert job.go_on()
    assert job.outputs() == one_pass["plain.mp4"]


def test_detections_are_read_as_they_were_written(clips, model, tmp_path) -> None:
    job = Job(clips / "plain.mp4", tmp_path, model, 0.6)
    number, start = job.scout()[1]
    job.detect(number, start)
    state = job.job.load(job.item.key)
    found = found_in(job.item, state, number, start["index"], model, job.options)
    frames = list(read_detections(job.path(number), found))
    summary = check_detections(job.path(number), found)
    assert isinstance(summary, Summary)
    assert summary.frames == len(frames) == 15
    assert all(isinstance(frame, FoundFrame) and len(frame.scores) == 1 for frame in frames)
    assert frames[0].probabilities.shape == (1, 64, 64)
    other = found_in(job.item, state, number, start["index"] + 1, model, job.options)
    assert check_detections(job.path(number), other) is None
    with pytest.raises(DetectionsDamaged, match="something else"):
        next(read_detections(job.path(number), other))
    changed = Settings(source="x", engine="onnx", long_side=96)
    options = FileOptions(settings=changed, write=KINDS, segment_s=0.6)
    assert found_in(job.item, state, number, 15, model, options).origin != found.origin


def test_a_file_that_changed_under_a_worker(clips, model, tmp_path) -> None:
    source = tmp_path / "in.mp4"
    source.write_bytes((clips / "plain.mp4").read_bytes())
    job = Job(source, tmp_path / "out", model, 0.6)
    borders = job.scout()
    write_video(source, 12)
    with pytest.raises(SourceError, match="it was changed"):
        job.detect(*borders[-1])


def test_weak_poses_change_nothing_for_anybody_else_in_the_call() -> None:
    """What segments ahead of their turn rest on: bit for bit the same whichever weak poses share the call.

    Those who score enough to appear are in it either way, and in the same order.
    """
    random_values = np.random.default_rng(5)
    n = 12
    with_features = random_values.normal(size=(1, 48, 36, 64)).astype(np.float32)
    turns, scales = random_values.uniform(-0.6, 0.6, n), random_values.uniform(0.1, 0.6, n)
    windows = np.zeros((n, 2, 3), np.float32)
    windows[:, 0, 0] = windows[:, 1, 1] = scales * np.cos(turns)
    windows[:, 1, 0] = scales * np.sin(turns)
    windows[:, 0, 1] = -windows[:, 1, 0]
    windows[:, :, 2] = random_values.uniform(0, 30, (n, 2))
    joints = np.concatenate(
        [random_values.uniform(0, 64, (n, 17, 2)), random_values.integers(0, 3, (n, 17, 1))], axis=2
    ).astype(np.float32)
    weak = np.arange(n) % 3 > 0
    joints[weak, :, 2] = np.where(joints[weak, :, 2] > 0, OWN_ONLY, 0)
    for threads in (1, 2):
        model = open_model(Settings(source="x", engine="onnx", threads=threads))

        def seen(rows, model=model):
            return model.segment_engine.run(
                {
                    "features": with_features,
                    "feature_from_roi": windows[rows],
                    "roi_image": np.zeros(len(rows), np.int32),
                    "roi_keypoints": joints[rows],
                }
            )

        everyone = seen(np.arange(n))
        for _ in range(25):
            rows = np.flatnonzero(~weak | (random_values.random(n) < random_values.random()))
            some = seen(rows)
            for name in ("probabilities", "scores"):
                assert np.array_equal(some[name], everyone[name][rows])
        without_one = seen(np.arange(1, n))
        assert not np.array_equal(without_one["probabilities"][2], everyone["probabilities"][3])  # a neighbour is gone
        model.close()


@pytest.mark.slow
def test_weak_poses_of_the_model_that_ships(tmp_path) -> None:
    """Two people who cross, and weak poses that the pass in order drops: found ahead, they change nothing."""
    pytest.importorskip("skimage", reason="the clip is cut out of a portrait that scikit-image ships: extra 'demo'")
    from examples.make_demo_clip import write_clip

    write_clip(tmp_path / "large.mp4", frames=50)
    with av.open(str(tmp_path / "large.mp4")) as large, av.open(str(tmp_path / "clip.mp4"), "w") as small:
        stream = small.add_stream("libx264", rate=25, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        stream.codec_context.gop_size = 10
        for number, frame in enumerate(large.decode(video=0)):
            picture = cv2.resize(frame.to_ndarray(format="rgb24"), (320, 180), interpolation=cv2.INTER_AREA)
            reduced = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            reduced.pts, reduced.time_base = number, Fraction(1, 25)
            small.mux(stream.encode(reduced))
        small.mux(stream.encode(None))
    options = {"long_side": 192, "threads": 1, "person_threshold": 0.39, "smooth_joints": False}
    model = open_model(Settings(source="x", engine="onnx", **options))
    try:
        whole = Job(tmp_path / "clip.mp4", tmp_path / "whole", model, 0.4, **options)
        assert whole.go_on()
        split = Job(tmp_path / "clip.mp4", tmp_path / "split", model, 0.4, **options)
        dropped = 0
        borders = split.scout()
        for number, start in reversed(borders):
            split.detect(number, start)
            state = split.job.load(split.item.key)
            found = found_in(split.item, state, number, start["index"] if start else 0, model, split.options)
            dropped += sum(len(frame.scores) for frame in read_detections(split.path(number), found))
        assert len(borders) >= 3
        assert split.go_on()
    finally:
        model.close()
    assert split.outputs() == whole.outputs()
    lines = [json.loads(line) for line in whole.outputs()["json"].splitlines()]
    kept = sum(len(line["people"]) for line in lines)
    assert kept > 25
    assert dropped > kept
