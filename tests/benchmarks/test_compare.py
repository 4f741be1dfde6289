"""The comparison with other systems: the protocol end to end with ourselves, and that forced people are all drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.compare import compare, contestants, markdown
from benchmarks.peers.networks import Yolo, people_boxes, tint
from benchmarks.peers.protocol import environment_mb, run_clip
from tests.clips import write_video


def test_ours_runs_and_what_is_not_installed_is_named(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4", 6)
    ours, *_ = contestants(None)
    absent = replace(ours, name="absent", group="no-such-group")
    rows, missing = compare([ours, absent], clip, frames=4, repeat=1)
    assert [row["name"] for row in rows] == ["pose2seg-live"]
    assert rows[0]["frames"] == 4
    assert rows[0]["fps"] > 0
    assert rows[0]["cpu_ms"] > 0
    assert rows[0]["weights_mb"] > 10
    assert missing == {"absent": "not installed: python -m benchmarks.compare --install no-such-group"}
    text = markdown(rows, missing, "title")
    assert "| pose2seg-live | real |" in text
    assert "Left out: absent (not installed" in text


def test_people_stand_side_by_side() -> None:
    boxes = people_boxes(3, 200, 600)
    assert boxes.shape == (3, 4)
    assert np.all(boxes[1:, 0] > boxes[:-1, 2])
    assert people_boxes(0, 200, 600).shape == (0, 4)


class RandomYolo:
    """Outputs of a network with random weights: scores that mean nothing."""

    def __init__(self, *, chosen_in_graph: bool, pose: bool) -> None:
        rng = np.random.default_rng(0)
        extra = 51 if pose else 32
        shape = (1, 300, 6 + extra) if chosen_in_graph else (1, 4 + 80 + extra, 840)
        self.outputs = [rng.random(shape, np.float32)]
        if not pose:
            self.outputs.append(rng.normal(size=(1, 32, 96, 160)).astype(np.float32))

    def run(self, image: np.ndarray) -> list[np.ndarray]:
        assert image.shape == (1, 3, 384, 640)
        return self.outputs

    def take_seconds(self) -> float:
        return 0.25


@pytest.mark.parametrize("chosen_in_graph", [False, True])
@pytest.mark.parametrize("people", [0, 1, 3])
def test_a_network_with_random_weights_draws_as_many_as_asked_for(*, chosen_in_graph: bool, people: int) -> None:
    contestant = Yolo.__new__(Yolo)
    contestant._seg = RandomYolo(chosen_in_graph=chosen_in_graph, pose=False)
    contestant._pose = RandomYolo(chosen_in_graph=chosen_in_graph, pose=True)
    picture = np.zeros((270, 480, 3), np.uint8)
    assert contestant.draw(picture, people) == (people, 0.5)
    assert picture.any() == (people > 0)


def test_tint_touches_the_mask_and_its_outline_only() -> None:
    picture = np.full((40, 60, 3), 100, np.uint8)
    tint(picture, np.ones((10, 12), np.bool_), 5, 8, 0)
    changed = np.argwhere((picture != 100).any(-1))
    assert (*changed.min(0), *changed.max(0)) == pytest.approx((8, 5, 17, 16), abs=1)


def test_clip_runs_once_through_a_contestant(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4", 6)
    figures = run_clip(lambda _picture, people: (people, 0.01), str(clip), 5, [2, 0, 1])
    assert figures.people == [2, 0, 1, 0, 0]
    assert figures.frames == 5
    assert figures.model_ms == [10.0] * 5
    assert len(figures.frame_ms) == 4


def test_sizes_of_installed_libraries() -> None:
    alone = environment_mb(["numpy>=2"])
    assert 5 < alone < environment_mb(["numba"]) < environment_mb()
