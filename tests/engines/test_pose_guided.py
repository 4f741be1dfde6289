"""Given poses to masks, by both families: what each graph is fed with, and that windows and masks fit together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import EngineRunError, default_artifact, load_artifact, write_artifact
from engines.engine import Engine
from engines.pose_guided import PoseGuidedModel, masks_from_poses, open_pose_guided, picture_features
from kernels.coordinates import compose, invert, transform_points
from kernels.letterbox import letterbox, plan_letterbox
from kernels.pose_fit import PAPER_TEMPLATES, fit_poses, prepare_templates, whole_frame_roi
from kernels.square_letterbox import plan_square_letterbox, square_letterbox, whole_input_roi
from tests.engines.graphs import features_graph, keypoints_graph, segment_graph

GRID = {"paper": [[0.25, 0, 0], [0, 0.25, 0]], "live": [[0.25, 0, -0.375], [0, 0.25, -0.375]]}
GRAPHS = {"paper": {"features": features_graph()}, "live": {"keypoints": keypoints_graph()}}


class Recorder:
    """An engine that remembers what it was given."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.feeds, self.closed = engine, [], False

    def run(self, feeds: Any) -> Any:
        self.feeds.append(feeds)
        return self.engine.run(feeds)

    def close(self) -> None:
        self.closed = True
        self.engine.close()


def opened(folder: Path, family: str, **changes: Any) -> PoseGuidedModel:
    manifest = {
        "family": family,
        "long_side": 128,
        "input_multiple": 32,
        "feature_from_input": GRID[family],
        "roi_size": 64,
        "templates": prepare_templates(PAPER_TEMPLATES),
        "person_threshold": 0.3,
        "joint_threshold": 0.2,
        "decode": {},
        "trained_on": [],
        "measured": {},
        "provenance": {},
        **changes,
    }
    artifact = write_artifact(folder, manifest, {**GRAPHS[family], "segment": segment_graph()})
    model = open_pose_guided(artifact, engine="onnx")
    return PoseGuidedModel(
        artifact=artifact,
        picture_engine=Recorder(model.picture_engine),
        segment_engine=Recorder(model.segment_engine),
    )


def people(*lefts: float) -> np.ndarray:
    poses = np.repeat(PAPER_TEMPLATES[:1], len(lefts), 0).copy()
    poses[..., :2] = poses[..., :2] * 80 + 5
    poses[..., 0] += np.array(lefts)[:, None]
    poses[..., 2] = 2
    return poses


IMAGE = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)


def test_the_paper_sees_the_picture_centred_in_a_square(tmp_path: Path) -> None:
    model = opened(tmp_path, "paper")
    masks = masks_from_poses(model, IMAGE, people(0, 60))
    plan = plan_square_letterbox(90, 160, side=128)
    (given,) = model.picture_engine.feeds
    np.testing.assert_array_equal(given["image"][0], square_letterbox(IMAGE, plan))
    expected = fit_poses(people(0, 60), model.artifact.templates, whole_input_roi(plan, 64))
    np.testing.assert_array_equal(masks.roi_from_frame, expected.roi_from_frame)
    assert expected.template_index.tolist() == [0, 0]
    assert masks.probabilities.shape[0] == 2 and masks.scores.shape == (2,)


def test_live_sees_the_picture_as_the_pipeline_gives_it(tmp_path: Path) -> None:
    model = opened(tmp_path, "live")
    masks = masks_from_poses(model, IMAGE, people(0, 60))
    (given,) = model.picture_engine.feeds
    np.testing.assert_array_equal(given["image"][0], letterbox(IMAGE, plan_letterbox(90, 160, long_side=128)))
    assert masks.roi_from_frame.shape == (2, 2, 3)


@pytest.mark.parametrize("family", ["paper", "live"])
def test_the_segment_graph_is_fed_in_its_own_grids(family: str, tmp_path: Path) -> None:
    model = opened(tmp_path, family)
    poses = people(0, 60)
    poses[1, 9] = (7, 7, 0)
    poses[0, 3, 2] = 1
    masks = masks_from_poses(model, IMAGE, poses)
    (feeds,) = model.segment_engine.feeds
    plan = plan_square_letterbox(90, 160, side=128) if family == "paper" else plan_letterbox(90, 160, long_side=128)
    feature_from_frame = compose(GRID[family], plan.input_from_frame)
    expected = compose(feature_from_frame, invert(masks.roi_from_frame))
    np.testing.assert_allclose(feeds["feature_from_roi"], expected, rtol=1e-5, atol=1e-4)
    assert feeds["roi_image"].tolist() == [0, 0]
    moved = transform_points(masks.roi_from_frame, poses[..., :2])
    np.testing.assert_allclose(feeds["roi_keypoints"][0, :, :2], moved[0], atol=1e-3)
    assert feeds["roi_keypoints"][0, 3, 2] == 1 and not feeds["roi_keypoints"][1, 9].any()
    assert feeds["features"].shape == (1, 3, *model.picture_engine.feeds[0]["image"].shape[1:3])


@pytest.mark.parametrize(("family", "window"), [("paper", whole_input_roi), ("live", whole_frame_roi)])
def test_whom_no_template_fits_gets_the_whole_picture(family: str, window: Any, tmp_path: Path) -> None:
    model = opened(tmp_path, family)
    poses = people(0, 0, 0)
    poses[0, 2:] = 0
    poses[1, :, 0] = np.nan
    masks = masks_from_poses(model, IMAGE, poses)
    whole = window(plan_square_letterbox(90, 160, side=128), 64) if family == "paper" else window(90, 160, 64)
    np.testing.assert_array_equal(masks.roi_from_frame[:2], np.stack([whole, whole]))
    assert not model.segment_engine.feeds[0]["roi_keypoints"][1].any()
    assert np.abs(masks.roi_from_frame[2] - whole).max() > 0.01


def test_nobody_costs_nothing(tmp_path: Path) -> None:
    model = opened(tmp_path, "paper")
    masks = masks_from_poses(model, IMAGE, people())
    assert (masks.probabilities.shape, masks.scores.shape, masks.roi_from_frame.shape) == ((0, 64, 64), (0,), (0, 2, 3))
    assert not model.picture_engine.feeds and not model.segment_engine.feeds


def test_random_weights_are_known_as_such(tmp_path: Path) -> None:
    assert not opened(tmp_path / "a", "paper").has_random_weights
    random = {"weights": "random: for timing only, the masks mean nothing"}
    assert opened(tmp_path / "b", "paper", provenance=random).has_random_weights


def test_the_default_model_takes_given_poses() -> None:
    model = open_pose_guided(load_artifact(default_artifact()), engine="onnx")
    masks = masks_from_poses(model, IMAGE, people(0, 60))
    assert masks.probabilities.shape == (2, 64, 64)
    assert np.isfinite(masks.probabilities).all() and (masks.probabilities >= 0).all()
    model.close()
    with pytest.raises(EngineRunError, match="closed"):
        masks_from_poses(model, IMAGE, people(0))


def test_a_segment_graph_that_does_not_open_closes_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(tmp_path, "paper")
    recorder = model.picture_engine

    def one_only(_artifact: Any, graph: str, **_options: Any) -> Any:
        if graph == "segment":
            raise EngineRunError("no memory")
        return recorder

    monkeypatch.setattr("engines.pose_guided.open_graph", one_only)
    with pytest.raises(EngineRunError, match="no memory"):
        open_pose_guided(model.artifact)
    assert recorder.closed


def test_errors_say_what_came(tmp_path: Path) -> None:
    model = opened(tmp_path, "paper")
    with pytest.raises(ValueError, match=r"keypoints must be \(N, 17, 3\), got \(17, 3\)"):
        masks_from_poses(model, IMAGE, people(0)[0])
    with pytest.raises(ValueError, match=r"image must be \(H, W, 3\) uint8, got float64"):
        masks_from_poses(model, IMAGE / 255, people(0))
    with pytest.raises(ValueError, match="got uint8"):
        picture_features(model, IMAGE[..., 0])
