"""Networks of other shapes: what is timed computes what its label says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.bench_engines import segment_feeds
from benchmarks.bench_network_shapes import NECK, segment_file, trunk_file, windows_of
from engines import default_artifact, load_artifact, open_engine
from kernels.coordinates import transform_points

pytestmark = [  # of PyTorch's exporter
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name:UserWarning"),
]


def test_a_plain_trunk_gives_a_map_of_stride_4(tmp_path: Path) -> None:
    engine = open_engine(trunk_file((8, 16, 24, 32), (64, 96), tmp_path), engine="onnx")
    rng = np.random.default_rng(0)
    first, second = (
        next(iter(engine.run({"image": rng.integers(0, 255, (1, 64, 96, 3), dtype=np.uint8)}).values()))
        for _ in range(2)
    )
    assert first.shape == (1, NECK, 16, 24)
    assert np.isfinite(first).all() and not np.allclose(first, second)


@pytest.mark.parametrize("side", [48, 96])
def test_windows_of_another_size_show_the_same_people(side: int, tmp_path: Path) -> None:
    artifact = load_artifact(default_artifact())
    assert artifact.keypoints_path is not None
    with_people = np.zeros((1, 64, 96, 3), np.uint8)
    found = open_engine(artifact.keypoints_path, engine="onnx").run({"image": with_people})
    feeds = segment_feeds(artifact, found, 2)
    other = windows_of(feeds, f"{side} px, 48 channels")
    for person in range(2):
        np.testing.assert_allclose(
            transform_points(other["feature_from_roi"][person], other["roi_keypoints"][person, :, :2]),
            transform_points(feeds["feature_from_roi"][person], feeds["roi_keypoints"][person, :, :2]),
            atol=1e-3,
        )
    engine = open_engine(segment_file(side, 48, tmp_path), engine="onnx")
    assert engine.run(other)["probabilities"].shape == (2, side, side)
