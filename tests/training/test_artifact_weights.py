"""A run starts from a model folder with the very network that was exported, whatever the export folded together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from engines.artifact import default_artifact, load_artifact, open_graph
from tests.training.drawn_people import TINY_MODEL, tiny_settings
from training.artifact_weights import load_artifact_weights, restore_norms
from training.checkpoint import CheckpointError, load_weights
from training.dataset import SceneDataset
from training.graphs import KeypointGraph, SegmentGraph
from training.model import LiveNetwork
from training.model_settings import ModelSettings, SkeletonSettings
from training.settings import MASK_PART_LEARNS
from training.train import Trainer, train

INSTALLED = ModelSettings(skeleton=SkeletonSettings(neighbours=True))  # with weights of zero if it was exported without


@pytest.fixture(scope="module")
def network() -> LiveNetwork:
    torch.manual_seed(0)
    made = LiveNetwork(INSTALLED)
    load_artifact_weights(made, default_artifact())
    return made.eval()


def poses(people: int) -> dict[str, torch.Tensor]:
    random = np.random.default_rng(3)
    keypoints = np.concatenate((random.uniform(0, 64, (people, 17, 2)), np.full((people, 17, 1), 2.0)), -1)
    matrices = np.tile(np.array([[0.3, 0, 0], [0, 0.3, 0]], np.float32), (people, 1, 1))
    return {
        "feature_from_roi": torch.from_numpy(matrices),
        "roi_image": torch.zeros(people, dtype=torch.int32),
        "roi_keypoints": torch.from_numpy(keypoints.astype(np.float32)),
    }


@torch.no_grad()
def test_the_installed_model_computes_what_it_did(network: LiveNetwork) -> None:
    artifact = load_artifact(default_artifact())
    image = np.random.default_rng(0).integers(0, 255, (1, 64, 96, 3), np.uint8)
    engine = open_graph(artifact, "keypoints", engine="onnx")
    expected = engine.run({"image": image})
    engine.close()
    found = dict(zip(expected, KeypointGraph(network)(torch.from_numpy(image)), strict=True))
    features = found["features"]
    assert float((features - torch.from_numpy(expected["features"])).abs().max()) < 1e-3 * float(features.abs().max())
    feeds = poses(3)
    engine = open_graph(artifact, "segment", engine="onnx")
    expected = engine.run({"features": features.numpy(), **{name: value.numpy() for name, value in feeds.items()}})
    engine.close()
    probabilities, scores = SegmentGraph(network)(features, *feeds.values())
    np.testing.assert_allclose(probabilities.numpy(), expected["probabilities"], atol=2e-3)
    np.testing.assert_allclose(scores.numpy(), expected["scores"], atol=2e-3)


def test_norms_get_statistics_and_nothing_else_changes(data: Path, tmp_path: Path) -> None:
    settings = tiny_settings(data, tmp_path, model=INSTALLED, canvas=(96, 128), lr_scale=dict(MASK_PART_LEARNS))
    network = LiveNetwork(INSTALLED)
    load_artifact_weights(network, default_artifact())
    scenes = [SceneDataset(settings)[index] for index in range(12)]
    image = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
    trainer = Trainer(network.eval(), settings)

    @torch.no_grad()
    def loss() -> float:
        return float(trainer(image, scenes, np.random.default_rng(5))["mask"])

    before, learning_blindly = loss(), 0.0
    norms = [module for module in network.seg_module.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(bool((norm.running_var == 1).all()) for norm in norms)
    network.train()
    learning_blindly = loss()
    load_artifact_weights(network, default_artifact())
    restore_norms(trainer, network, scenes)
    assert not network.training
    assert loss() == pytest.approx(before, rel=1e-3)
    assert all(float((norm.running_var - 1).abs().min()) > 0 for norm in norms)
    network.train()
    assert abs(loss() - before) < 0.3 * abs(learning_blindly - before)


def test_another_network_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the network has .*: other model settings"):
        load_artifact_weights(LiveNetwork(TINY_MODEL), default_artifact())
    with pytest.raises(CheckpointError, match="has no grouping_heads"):
        load_artifact_weights(LiveNetwork(ModelSettings(keypoints="embedding")), default_artifact())


def test_a_run_can_start_from_a_model_folder(data: Path, tmp_path: Path) -> None:
    settings = tiny_settings(
        data,
        tmp_path / "run",
        model=INSTALLED,
        lr_scale=dict(MASK_PART_LEARNS),
        init_artifact=default_artifact(),
        learning_rate=1e-9,
        weight_decay=0.0,
        steps=1,
    )
    made = load_weights(train(settings))
    expected = LiveNetwork(INSTALLED)
    load_artifact_weights(expected, default_artifact())
    for name, value in expected.named_parameters():
        if value.ndim > 1:  # norm layers got their statistics
            torch.testing.assert_close(made.get_parameter(name), value, atol=1e-6, rtol=1e-4)
