"""`FrameResult.to_supervision` with the real library: its objects, and what its annotators and zones make of them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import supervision

from tests.layer_results import Box, result_of

LEFT: Box = (20.0, 30.0, 50.0, 100.0)
RIGHT: Box = (100.0, 25.0, 135.0, 105.0)


@pytest.mark.parametrize("people", [{}, {7: LEFT}, {7: LEFT, 3: RIGHT}])
def test_each_row_is_a_person(people: dict[int, Box]) -> None:
    result = result_of(people)
    detections, keypoints = result.to_supervision()
    assert isinstance(detections, supervision.Detections) and isinstance(keypoints, supervision.KeyPoints)
    assert len(detections) == len(keypoints) == len(people)
    assert detections.mask.shape == (len(people), 120, 160)
    assert keypoints.xy.shape == (len(people), 17, 2)
    for n, person in enumerate(result.people):
        assert detections.tracker_id[n] == person.id
        assert detections.class_id[n] == 0 and detections.data["class_name"][n] == "person"
        assert detections.confidence[n] == np.float32(person.score)
        np.testing.assert_array_equal(detections.mask[n], person.mask)
        np.testing.assert_array_equal(keypoints.xy[n], person.keypoints[:, :2])
        np.testing.assert_array_equal(keypoints.keypoint_confidence[n], person.keypoints[:, 2])
        np.testing.assert_array_equal(keypoints.visible[n], person.joint_visible)
    # The box of a mask, as supervision itself computes it from the mask; its ends are the last px.
    expected = supervision.mask_to_xyxy(detections.mask) + np.array([0, 0, 1, 1])
    np.testing.assert_array_equal(detections.xyxy, expected.reshape(-1, 4))


def test_annotators_and_zones_take_them() -> None:
    result = result_of({1: LEFT, 2: RIGHT})
    detections, keypoints = result.to_supervision()
    scene = result.frame.image.copy()
    masked = supervision.MaskAnnotator().annotate(scene.copy(), detections)
    assert (masked[40:90, 25:45] != scene[40:90, 25:45]).any()
    np.testing.assert_array_equal(masked[:, 60:95], scene[:, 60:95])
    drawn = supervision.EdgeAnnotator().annotate(scene.copy(), keypoints)
    assert (drawn != scene).any()
    labelled = supervision.LabelAnnotator().annotate(scene.copy(), detections, labels=["a", "b"])
    assert (labelled != scene).any()
    zone = supervision.PolygonZone(polygon=np.array([[0, 0], [80, 0], [80, 120], [0, 120]]))
    assert zone.trigger(detections).tolist() == [person.id == 1 for person in result.people]
    only_first = detections[detections.tracker_id == 1]
    assert len(only_first) == 1 and only_first.mask[0, 60, 35]


def test_nothing_to_draw_is_fine() -> None:
    result = result_of({})
    detections, keypoints = result.to_supervision()
    scene = result.frame.image.copy()
    np.testing.assert_array_equal(supervision.MaskAnnotator().annotate(scene.copy(), detections), scene)
    np.testing.assert_array_equal(supervision.EdgeAnnotator().annotate(scene.copy(), keypoints), scene)


def test_without_the_library_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "pose2seg-live\[interop\]"'):
        result_of({}).to_supervision()
