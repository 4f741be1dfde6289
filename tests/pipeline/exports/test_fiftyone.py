"""FiftyOne's own importer on what `--export coco` writes; it needs no database."""

from __future__ import annotations

import numpy as np
import pytest

from tests.layer_results import result_of
from tests.pipeline.exports.test_datasets import LEFT, RIGHT, exported

pytestmark = [
    pytest.mark.fiftyone,
    pytest.mark.timeout(200),
    pytest.mark.filterwarnings("ignore"),  # its dependencies' own
]


def test_its_importer_finds_boxes_masks_and_joints(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FIFTYONE_DO_NOT_TRACK", "1")
    import fiftyone.utils.coco

    results = [result_of({1: LEFT, 2: RIGHT}), result_of({}, number=1)]
    folder = exported(tmp_path, results, "coco") / "coco"
    importer = fiftyone.utils.coco.COCODetectionDatasetImporter(
        dataset_dir=str(folder), label_types=["detections", "segmentations", "keypoints"]
    )
    with importer:
        found = {path: (metadata, labels) for path, metadata, labels in importer}
    assert sorted(path.rpartition("/")[2] for path in found) == ["a_000000.jpg", "a_000001.jpg"]
    metadata, labels = found[str(folder / "data" / "a_000000.jpg")]
    assert (metadata.width, metadata.height) == (160, 120)
    people = results[0].people
    for person, box, masked, joints in zip(
        people,
        labels["detections"].detections,
        labels["segmentations"].detections,
        labels["keypoints"].keypoints,
        strict=True,
    ):
        assert box.label == masked.label == joints.label == "person"
        x, y, width, height = person.bbox
        assert box.bounding_box == pytest.approx([x / 160, y / 120, width / 160, height / 120], abs=1e-4)
        np.testing.assert_array_equal(masked.mask, person.crop.mask)
        np.testing.assert_allclose(np.array(joints.points) * (160, 120), person.keypoints[:, :2], atol=0.02)
        assert masked["track_id"] == person.id
