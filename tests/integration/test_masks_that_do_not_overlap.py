"""Two women cross in a drawn clip, the model that ships finds both: no px is in two masks, and none of both is lost."""

from __future__ import annotations

import json
from pathlib import Path

import av
import cv2
import numpy as np
import pycocotools.mask
import pytest

pytest.importorskip("skimage", reason="the clip is cut out of a portrait that scikit-image ships: extra 'demo'")

from examples.make_demo_clip import FPS, render
from run_stream import main

SIZE = (360, 640)
FIRST, COUNT = 131, 10

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("crossing") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "18"})
        stream.height, stream.width = SIZE
        for number in range(FIRST, FIRST + COUNT):
            small = cv2.resize(render(number)[0], SIZE[::-1], interpolation=cv2.INTER_AREA)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(small, format="rgb24")))
        container.mux(stream.encode())
    return path


def masks_of(path: Path) -> list[np.ndarray]:
    """(N, H, W) for each frame, by id."""
    frames = []
    for line in path.read_text().splitlines():
        people = sorted(json.loads(line)["people"], key=lambda person: person["id"])
        frames.append(np.array([pycocotools.mask.decode(one["mask"]) for one in people]).reshape(-1, *SIZE))
    return frames


def test_masks_of_a_run(clip: Path, tmp_path: Path) -> None:
    options = ["--engine", "onnx", "--threads", "1"]
    assert main([str(clip), "--json", str(tmp_path / "one.jsonl"), *options]) == 0
    assert main([str(clip), "--json", str(tmp_path / "several.jsonl"), "--overlapping-masks", *options]) == 0
    exclusive, overlapping = masks_of(tmp_path / "one.jsonl"), masks_of(tmp_path / "several.jsonl")
    assert len(exclusive) == len(overlapping) == COUNT
    shared_px = 0
    for masks, whole in zip(exclusive, overlapping, strict=True):
        assert len(masks) == len(whole) > 0
        assert masks.sum(axis=0).max() == 1
        np.testing.assert_array_equal(masks.any(axis=0), whole.any(axis=0))
        assert (masks <= whole).all()
        shared_px += int((whole.sum(axis=0) > 1).sum())
    assert shared_px > 100  # there was something to decide
