"""The loader of the first weights copies what fits and refuses what does not, on graphs that are made here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from tests.training.drawn_people import TINY_MODEL
from tests.training.published_weights import GraphOfConvolutions, published
from training.model import LiveNetwork
from training.movenet_weights import load_movenet


@pytest.fixture(scope="module")
def source() -> LiveNetwork:
    torch.manual_seed(1)
    return LiveNetwork(TINY_MODEL)


def target() -> LiveNetwork:
    torch.manual_seed(2)
    return LiveNetwork(TINY_MODEL)


def test_every_weight_of_backbone_and_heads_is_copied_and_the_mask_part_is_left(
    tmp_path: Path, source: LiveNetwork
) -> None:
    untouched = target()
    loaded = load_movenet(target(), published(source).write(tmp_path / "movenet.onnx"))
    for part in ("backbone", "top_down", "keypoint_heads"):
        expected = dict(getattr(source, part).named_parameters())
        for name, value in getattr(loaded, part).named_parameters():
            assert torch.equal(value, expected[name]), f"{part}.{name}"
    for part in ("mask_laterals", "seg_module"):
        expected = dict(getattr(untouched, part).named_parameters())
        for name, value in getattr(loaded, part).named_parameters():
            assert torch.equal(value, expected[name]), f"{part}.{name}"
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (1, 3, 64, 96), np.uint8))
    with torch.no_grad():
        ours, theirs = loaded.keypoint_maps(image), source.keypoint_maps(image)
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_a_foreign_network_is_refused(tmp_path: Path, source: LiveNetwork) -> None:
    few = GraphOfConvolutions()
    few.add(nn.Conv2d(3, 4, 3), "only")
    with pytest.raises(
        ValueError, match=r"foreign\.onnx holds 1 convolutions, MoveNet MultiPose has \d+: is it another"
    ):
        load_movenet(target(), few.write(tmp_path / "foreign.onnx"))


def spoil_shape(graph: GraphOfConvolutions) -> None:
    graph.constants[0] = numpy_helper.from_array(np.zeros((48, 3, 5, 5), np.float32), "w0")


def spoil_stride(graph: GraphOfConvolutions) -> None:
    del graph.nodes[0].attribute[:]
    graph.nodes[0].attribute.extend([helper.make_attribute("strides", [1, 1]), helper.make_attribute("group", 1)])


def spoil_head(graph: GraphOfConvolutions) -> None:
    index = next(i for i, node in enumerate(graph.nodes) if "/kpt_heatmap_0/" in node.output[0])
    graph.nodes[index].output[0] = "model/segmentation_0/conv0"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_shape, r"backbone\.stem: expected .*48, 3, 3, 3.* the file has .*48, 3, 5, 5"),
        (spoil_stride, r"backbone\.stem: expected \(stride, groups, shapes\) \(\(2, 2\), 1.* the file has \(\(1, 1\)"),
        (spoil_head, "expected a convolution of 'kpt_heatmap', found 'model/segmentation_0/conv0'"),
    ],
    ids=["shape", "stride", "head name"],
)
def test_a_layer_that_differs_is_named(tmp_path: Path, source: LiveNetwork, spoil: Callable, said: str) -> None:
    path = published(source, spoil).write(tmp_path / "near.onnx")
    with pytest.raises(ValueError, match=said):
        load_movenet(target(), path)
