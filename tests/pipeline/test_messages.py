from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from engines.device import HostDevice
from pipeline.messages import AlignedRois, Frame, FrameResult, InstanceMasks, Poses
from pipeline.stage5_compose import ComposeStage
from tests.fakes import frame, masks_of, poses_of

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "schema" / "frame.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def result_of(*boxes: tuple[float, float, float, float], draw: bool = False) -> FrameResult:
    stage = ComposeStage(HostDevice(), mask_threshold=0.5, draw=draw)
    stage.open()
    return stage.process(masks_of(frame(3, height=60, width=80), *boxes))


def test_the_frame_checks_its_picture() -> None:
    with pytest.raises(ValueError, match=r"pixels must be \(H, W, 3\) uint8, got float32"):
        frame(image=np.zeros((4, 4, 3), np.float32))
    with pytest.raises(ValueError, match="uint8"):
        frame(image=np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        frame(image=np.zeros((0, 4, 3), np.uint8))


def test_counts_of_people_must_agree() -> None:
    poses = poses_of(frame(), (1, 1, 20, 40))
    with pytest.raises(ValueError, match=r"keypoints must be \(N=1, 17, 3\), got \(0, 17, 3\)"):
        Poses(
            frame=poses.frame,
            keypoints=poses.keypoints[:0],
            scores=poses.scores,
            letterbox=poses.letterbox,
            features=None,
        )
    with pytest.raises(ValueError, match="roi_from_frame"):
        AlignedRois(
            poses=poses,
            ids=np.ones(1, np.int32),
            joint_visible=np.ones((1, 17), np.bool_),
            roi_from_frame=np.zeros((2, 2, 3), np.float32),
            template_index=np.zeros(1, np.int32),
            fit_scores=np.zeros(1, np.float32),
        )
    masks = masks_of(frame(), (1, 1, 20, 40))
    with pytest.raises(ValueError, match="probabilities"):
        InstanceMasks(rois=masks.rois, probabilities=masks.probabilities[:0], scores=masks.scores)


def test_repr_shows_shapes_in_place_of_pixels() -> None:
    text = repr(masks_of(frame(), (1, 1, 20, 40)))
    assert "probabilities=float32[1, 64, 64]" in text
    assert "pixels=uint8[48, 64, 3]" in text
    assert len(text) < 1500


def test_times_of_a_frame() -> None:
    assert frame(5).pts_s == pytest.approx(0.2)


def test_a_json_line_matches_the_documented_schema() -> None:
    result = result_of((10, 5, 30, 50), (40, 10, 60, 55))
    line = result.to_json()
    assert "\n" not in line
    document = json.loads(line)
    VALIDATOR.validate(document)
    assert {key: document[key] for key in ("frame", "pts_s", "width", "height", "source")} == {
        "frame": 3,
        "pts_s": 0.12,
        "width": 80,
        "height": 60,
        "source": "list",
    }
    first, second = document["people"]
    assert (first["id"], second["id"]) == (1, 2)
    assert first["bbox"] == [10, 5, 20, 45]
    decoded = coco_mask.decode(first["mask"])
    expected = np.zeros((60, 80), np.uint8)
    expected[5:50, 10:30] = 1
    np.testing.assert_array_equal(decoded, expected)
    np.testing.assert_array_equal(result.people[0].mask, expected.astype(bool))
    assert len(first["keypoints"]) == 17


def test_a_frame_without_people_is_a_line_too() -> None:
    document = json.loads(result_of().to_json())
    VALIDATOR.validate(document)
    assert document["people"] == []


def test_the_schema_refuses_what_is_not_documented() -> None:
    document = json.loads(result_of((10, 5, 30, 50)).to_json())
    for broken in (
        {**document, "extra": 1},
        {key: value for key, value in document.items() if key != "pts_s"},
        {**document, "people": [{**document["people"][0], "keypoints": document["people"][0]["keypoints"][:16]}]},
        {**document, "people": [{**document["people"][0], "id": 0}]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            VALIDATOR.validate(broken)


def test_every_field_of_a_line_is_in_the_document() -> None:
    text = (Path(__file__).parents[2] / "docs" / "jsonl.md").read_text()
    for name in [*SCHEMA["properties"], *SCHEMA["$defs"]["person"]["properties"]]:
        assert f"`{name}`" in text, name


def test_coco_results_are_loadable_and_keep_the_mask_area(tmp_path) -> None:
    result = result_of((10, 5, 30, 50), (40, 10, 60, 55))
    entries = result.to_coco(image_id=7)
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 7, "width": 80, "height": 60, "file_name": "a.jpg"}],
        "annotations": [],
        "categories": [{"id": 1, "name": "person"}],
    }
    truth.createIndex()
    path = tmp_path / "results.json"
    path.write_text(json.dumps(entries))
    loaded = truth.loadRes(str(path))
    annotations = loaded.loadAnns(loaded.getAnnIds())
    assert [annotation["area"] for annotation in annotations] == [20 * 45, 20 * 45]
    assert len(annotations[0]["keypoints"]) == 51
    assert annotations[0]["score"] == pytest.approx(float(result.people[0].score), abs=1e-5)


def test_the_box_of_an_empty_mask_is_that_of_the_visible_joints() -> None:
    masks = masks_of(frame(height=60, width=80), (10, 5, 30, 50))
    masks.probabilities[:] = 0.0
    person = ComposeStage(HostDevice(), mask_threshold=0.5, draw=False).process(masks).people[0]
    assert not person.mask.any()
    x, y, width, height = person.bbox
    assert (x, y) == (pytest.approx(10 + 0.12 * 20), pytest.approx(5 + 0.06 * 45))
    assert (width, height) == (pytest.approx(0.76 * 20, abs=1e-3), pytest.approx(0.9 * 45, abs=1e-3))
    person.joint_visible[:] = False
    assert coco_mask.area(person.mask_rle) == 0


def test_a_person_without_mask_and_joints_has_an_empty_box() -> None:
    masks = masks_of(frame(height=60, width=80), (10, 5, 30, 50))
    masks.probabilities[:] = 0.0
    masks.rois.joint_visible[:] = False
    person = ComposeStage(HostDevice(), mask_threshold=0.5, draw=False).process(masks).people[0]
    assert person.bbox == (0.0, 0.0, 0.0, 0.0)
    assert "id=1" in repr(person)


def test_overlay_draws_on_a_copy() -> None:
    result = result_of((10, 5, 30, 50))
    before = result.frame.image.copy()
    drawn = result.overlay()
    np.testing.assert_array_equal(result.frame.image, before)
    assert (drawn != before).any()
    black = np.zeros_like(before)
    on_black = result.overlay(black)
    assert not black.any()
    assert on_black.any()
    with pytest.raises(ValueError, match="image must be uint8"):
        result.overlay(np.zeros((5, 5, 3), np.uint8))


def test_overlay_gives_what_the_pipeline_drew() -> None:
    result = result_of((10, 5, 30, 50), draw=True)
    assert result.drawn is not None
    overlay = result.overlay()
    np.testing.assert_array_equal(overlay, result.drawn)
    assert overlay is not result.drawn
    np.testing.assert_array_equal(overlay, result.overlay(result.frame.image))


def test_frames_are_immutable() -> None:
    of: Frame = frame()
    with pytest.raises(AttributeError):
        of.index = 3  # type: ignore[misc]
