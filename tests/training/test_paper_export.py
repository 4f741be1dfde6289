"""The family `paper` as a model folder: exported equals eager, with every ablation that a folder can hold."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from engines import Artifact, load_artifact, open_graph, write_artifact
from engines.pose_guided import masks_from_poses, open_pose_guided
from tests.training.drawn_people import drawn_mask, drawn_pose, paint
from training import evaluate, evaluated_model
from training.checkpoint import save_weights
from training.convert_authors_checkpoint import AUTHORS_MODEL
from training.export_onnx import (
    DOMAIN,
    ExportError,
    compare,
    export_features,
    export_segment,
    main,
    random_network,
    require_servable,
)
from training.model_settings import AlignSettings, ModelSettings, model_settings_from_json
from training.torch_engine import network_model

# The exporter of PyTorch and onnxscript speak of their own future; nothing that this code could change.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

TINY: dict[str, Any] = {
    "family": "paper",
    "feature_channels": 8,
    "seg_width": 8,
    "roi_size": 32,
    "backbone": {"width": 4},
    "seg": {"units": 2},
}
TINY_FLAGS = [
    *("--set", "model.feature_channels=8", "--set", "model.seg_width=8", "--set", "model.roi_size=32"),
    *("--set", "model.backbone.width=4", "--set", "model.seg.units=2"),
]


def tiny(**changes: Any) -> ModelSettings:
    return model_settings_from_json({**TINY, **changes})


def write(network: Any, folder: Path) -> tuple[Path, Path]:
    paths = folder / "features.onnx", folder / "segment.onnx"
    for path, model in zip(paths, (export_features(network), export_segment(network)), strict=True):
        onnx.save(model, str(path))
    return paths


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes of random weights."""
    path = tmp_path_factory.mktemp("artifact") / "paper"
    assert main(["--family", "paper", "--random-weights", "--output", str(path), *TINY_FLAGS]) == 0
    return path


def test_the_folder_is_complete_and_says_that_its_weights_are_random(folder: Path) -> None:
    assert {p.name for p in folder.iterdir()} == {"model.json", "features.onnx", "segment.onnx"}
    artifact = load_artifact(folder)
    np.testing.assert_array_equal(artifact.feature_from_input, [[0.25, 0, 0], [0, 0.25, 0]])
    assert (artifact.family, artifact.long_side, artifact.roi_size) == ("paper", 512, 32)
    assert artifact.templates.shape == (6, 17, 3) and artifact.decode == {} and artifact.trained_on == ()
    assert artifact.provenance["weights"].startswith("random")
    assert open_pose_guided(artifact, engine="onnx").has_random_weights
    assert artifact.measured["export_difference"] < 1e-3
    for name in ("features", "segment"):
        open_graph(artifact, name, engine="onnx").close()
    aligns = [n for n in onnx.load(artifact.segment_path).graph.node if n.op_type == "AffineAlign"]
    assert len(aligns) == 1 and aligns[0].domain == DOMAIN
    assert [f.name for f in onnx.load(artifact.segment_path).functions] == ["AffineAlign"]


def test_random_weights_are_the_same_every_time_and_keep_values_small() -> None:
    one, other = random_network(tiny()), random_network(tiny())
    state = other.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())
    features = one(torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8))["features"]
    assert 1e-3 < float(features.detach().abs().max()) < 1e3


@pytest.mark.parametrize(
    "changes",
    [
        {"skeleton": {"enabled": False}},
        {"skeleton": {"negative_occluded": False}},
        {"align": {"compat": "ref_pt10"}},
        {"align": {"compat": "ref_pt13"}, "seg": {"units": 3}},
    ],
    ids=["no skeleton", "no negative blobs", "as PyTorch 1.0", "as PyTorch 1.3"],
)
def test_ablations_inside_the_segment_graph_are_exported(changes: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    network = random_network(tiny(**changes))  # its backbone is the folder's
    segment = tmp_path / "segment.onnx"
    onnx.save(export_segment(network), str(segment))
    difference = compare(network, folder / "features.onnx", segment, sizes=((64, 64),), people=(7,))
    assert difference < 1e-3
    changed = {name: (folder / f"{name}.onnx").read_bytes() for name in ("features", "segment")}
    manifest = {f.name: getattr(load_artifact(folder), f.name) for f in fields(Artifact)}
    for name in ("folder", "keypoints_path", "features_path", "segment_path"):
        del manifest[name]
    artifact = write_artifact(tmp_path / "model", manifest, {**changed, "segment": segment})
    open_graph(artifact, "segment", engine="onnx").close()  # all four inputs, whatever the graph does with them
    if "enabled" not in changes.get("skeleton", {}):
        plain = random_network(tiny(seg=changes.get("seg", TINY["seg"])))
        plain.load_state_dict(network.state_dict())
        with pytest.raises(ExportError, match="exported graphs differ from the network by"):
            compare(plain, folder / "features.onnx", segment, sizes=((64, 64),), people=(7,))


def test_the_place_of_the_stride_is_exported(folder: Path, tmp_path: Path) -> None:
    network = random_network(tiny(backbone={"width": 4, "stride_in": "1x1"}))
    path = tmp_path / "features.onnx"
    onnx.save(export_features(network), str(path))
    assert compare(network, path, folder / "segment.onnx", sizes=((64, 64),), people=()) < 1e-3
    with pytest.raises(ExportError, match="exported graphs differ from the network by"):
        compare(network, folder / "features.onnx", folder / "segment.onnx", sizes=((64, 64),), people=())


@pytest.mark.parametrize(
    ("align", "said"),
    [
        ({"mode": "roi"}, "serving has no align.mode roi: evaluate the checkpoint itself"),
        ({"mode": "roi", "box": "joints", "expand": 0.5}, "align.mode roi, align.box joints, align.expand 0.5"),
        ({"hard_rule": False}, "align.hard_rule False"),
        ({"min_scale_rule": False, "score": "paper"}, "align.min_scale_rule False, align.score paper"),
    ],
)
def test_windows_that_serving_does_not_have_are_refused(align: dict[str, Any], said: str) -> None:
    with pytest.raises(ExportError, match=said):
        require_servable(tiny(align=align))
    require_servable(replace(tiny(), align=AlignSettings(compat="ref_pt13")))


def test_converted_weights_are_exported_with_their_origin_and_templates(tmp_path: Path) -> None:
    own = {"backbone": {"width": 4, "stride_in": "1x1"}, "templates": {"k": 2, "factor": 1.2}}
    settings = model_settings_from_json({**TINY, **AUTHORS_MODEL, **own})
    weights = tmp_path / "authors.safetensors"
    save_weights(weights, random_network(settings).state_dict(), settings, provenance={"converted_from": "last.pkl"})
    assert main(["--checkpoint", str(weights), "--output", str(tmp_path / "model")]) == 0
    artifact = load_artifact(tmp_path / "model")
    assert dict(artifact.provenance) == {"converted_from": "last.pkl"} and artifact.trained_on == ()
    np.testing.assert_allclose(artifact.templates, settings.templates.prepared(), rtol=1e-6)


@pytest.mark.parametrize("flags", [["--random-weights"], ["--family", "paper", "--checkpoint", "x"], []])
def test_half_a_request_is_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*flags, "--output", "o"])
    assert caught.value.code == 2
    assert "--random-weights" in capsys.readouterr().err


def test_masks_of_the_folder_are_those_of_the_network(folder: Path, tmp_path: Path) -> None:
    """The whole way twice: given poses through the folder's engines, and through the network by the evaluation."""
    network = random_network(tiny())
    image = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    poses = np.stack([drawn_pose(10, 5, 80), drawn_pose(60, 5, 80)])
    poses[1, 9, 2] = 1
    for pose in poses:
        paint(image, drawn_mask(pose, 90, 160), (200, 60, 40))
    found = masks_from_poses(open_pose_guided(load_artifact(folder), engine="onnx"), image, poses)
    model = network_model(network)
    plan = evaluated_model.picture_plan(model, 90, 160, 512)
    people = evaluated_model.FoundPeople(keypoints=poses, visibility=poses[..., 2], scores=np.ones(2, np.float32))
    features = evaluated_model.picture_features(model, image, plan)
    probabilities, scores, windows = evaluated_model.segment_people(model, features, plan, people)
    np.testing.assert_array_equal(found.roi_from_frame, windows)
    np.testing.assert_allclose(found.probabilities, probabilities, atol=1e-3)
    np.testing.assert_allclose(found.scores, scores, atol=5e-3)  # a px at one half may lie on either side


def test_the_folder_is_evaluated_with_true_poses_only(
    folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = data / "people"
    common = ["--annotations", str(people / "annotations.json"), "--images", str(people / "images")]
    common += ["--model", str(folder), "--long-side", "128", "--engine", "onnx"]
    figures = tmp_path / "figures.json"
    assert evaluate.main([*common, "--poses", "gt", "--json", str(figures)]) == 0
    assert json.loads(figures.read_text())["people_with_mask"] == 4
    assert evaluate.main([*common, "--poses", "engine"]) == 2
    assert "a model of the family paper finds no people" in capsys.readouterr().err
    assert evaluate.main([*common, "--poses", "gt", "--set", "model.align.mode=roi"]) == 2
    assert "--set changes a checkpoint" in capsys.readouterr().err


def test_the_published_size_exported_equals_eager(tmp_path: Path) -> None:
    """All 41 million parameters at 512 x 512: within 1e-3, features relative to their largest."""
    network = random_network(ModelSettings(family="paper"))
    worst = compare(network, *write(network, tmp_path), sizes=((512, 512),), people=(2,))
    print("largest difference", worst)
    assert worst < 1e-3
