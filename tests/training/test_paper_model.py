"""The published network: its parameters to the last one, its geometry, and what each ablation changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.training.drawn_people import drawn_pose
from training.model_settings import ModelSettings, model_settings_from_json
from training.paper_model import (
    DEVIATION,
    FEATURE_FROM_INPUT,
    MEAN,
    Backbone,
    Bottleneck,
    PaperNetwork,
    ResNet,
    SegModule,
    main,
    parameters,
)
from training.windows import reference_sampling, seg_inputs

TINY = {
    "family": "paper",
    "feature_channels": 8,
    "seg_width": 4,
    "roi_size": 16,
    "backbone": {"width": 4},
    "seg": {"units": 2},
}


def tiny(**changes: Any) -> ModelSettings:
    return model_settings_from_json({**TINY, **changes})


def network(**changes: Any) -> PaperNetwork:
    torch.manual_seed(0)
    return PaperNetwork(tiny(**changes)).eval()


def on_meta(make: Any) -> nn.Module:
    with torch.device("meta"):
        return make()


# Parameters, counted in the paper's specification


@pytest.mark.parametrize(
    ("units", "inputs", "count"),
    [(5, 311, 10_437_378), (10, 311, 16_030_978), (15, 311, 21_624_578), (20, 311, 27_218_178), (10, 256, 15_341_058)],
)
def test_parameters_of_the_seg_module(units: int, inputs: int, count: int) -> None:
    assert parameters(on_meta(lambda: SegModule(inputs, 256, units))) == count


def test_parameters_of_the_backbone_before_and_after_the_unused_levels_are_dropped() -> None:
    every = on_meta(lambda: Backbone(64, 256, every_level=True))
    assert (parameters(every.trunk), parameters(every.lateral)) == (23_508_032, 984_064)
    assert (parameters(every.output), parameters(every.output["p2"])) == (2_360_320, 590_080)
    assert parameters(every) == 26_852_416
    used = on_meta(lambda: Backbone(64, 256))
    assert parameters(used) == 26_852_416 - 3 * 590_080
    whole = on_meta(lambda: PaperNetwork(ModelSettings(family="paper")))
    assert parameters(whole) == parameters(used) + 16_030_978
    assert [name for name, _ in whole.named_children()] == ["backbone", "seg_module"]


def test_the_command_prints_the_counts(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    printed = capsys.readouterr().out
    assert "26,852,416" in printed and "16,030,978" in printed


def test_the_stem_and_units_have_the_published_sizes() -> None:
    module = on_meta(lambda: SegModule(311, 256, 10))
    assert parameters(module.stem) == 3_901_952
    assert [parameters(unit) for unit in module.units] == [1_187_328] + [1_118_720] * 9
    assert (parameters(module.decoder), parameters(module.out)) == (872_192, 1_026)
    assert all(m.bias is not None for m in module.modules() if isinstance(m, nn.Conv2d))


# Shapes and geometry


def test_shapes_along_the_dataflow() -> None:
    net = network()
    image = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    levels = net.backbone.trunk(torch.randn(2, 3, 64, 96))
    assert [tuple(x.shape) for x in levels.values()] == [(2, 16, 16, 24), (2, 32, 8, 12), (2, 64, 4, 6), (2, 128, 2, 3)]
    features = net(image)["features"]
    assert features.shape == (2, 8, 16, 24)
    matrices = torch.tensor([[0.5, 0, 1], [0, 0.5, 2]]).repeat(3, 1, 1)
    logits = net.segment(features, matrices, torch.tensor([0, 1, 1], dtype=torch.int32), torch.zeros(3, 17, 3))
    assert logits.shape == (3, 16, 16)


def test_pictures_are_normalised_as_for_imagenet() -> None:
    net = network()
    seen = []
    net.backbone.register_forward_hook(lambda _module, given, _result: seen.append(given[0]))
    level = torch.tensor([255, 0, 51], dtype=torch.uint8).reshape(1, 3, 1, 1).expand(1, 3, 32, 32)
    net(level)
    expected = (np.array([1.0, 0.0, 0.2]) - MEAN) / DEVIATION
    np.testing.assert_allclose(seen[0][0, :, 5, 7].numpy(), expected, rtol=1e-5)


def test_feature_i_lies_on_input_px_4_i() -> None:
    """Where features change when one px does: their middle is the px over four."""
    assert FEATURE_FROM_INPUT == ((0.25, 0.0, 0.0), (0.0, 0.25, 0.0))
    torch.manual_seed(0)
    trunk = ResNet(4, "3x3").eval()
    for x, y in ((64, 64), (40, 88), (72, 24)):
        image = torch.randn(1, 3, 128, 128, requires_grad=True)
        c2 = trunk(image)["c2"]
        c2[0, :, y // 4, x // 4].abs().sum().backward()
        touched = image.grad[0].abs().sum(0).nonzero()
        low, high = touched.min(0).values, touched.max(0).values
        # Every convolution reaches as far to both sides; the max-pool alone takes one px of its window, 2 apart.
        assert ((low + high) / 2 - torch.tensor([y, x])).abs().max() <= 2


def test_stride_sits_in_the_convolution_that_is_asked_for() -> None:
    strides = {
        place: [m.stride[0] for m in (unit.conv1, unit.conv2, unit.conv3, unit.downsample[0])]
        for place in ("3x3", "1x1")
        for unit in [Bottleneck(8, 4, stride=2, stride_in=place)]
    }
    assert strides == {"3x3": [1, 2, 1, 2], "1x1": [2, 1, 1, 2]}
    torch.manual_seed(0)
    one, other = network(), network(backbone={"width": 4, "stride_in": "1x1"})
    other.load_state_dict(one.state_dict())
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    assert not torch.allclose(one(image)["features"], other(image)["features"])


def test_the_top_down_path_adds_the_upsampled_level_above() -> None:
    torch.manual_seed(0)
    backbone = Backbone(4, 8).eval()
    x = torch.randn(1, 3, 64, 64)
    c2, c3, c4, c5 = backbone.trunk(x).values()
    lateral = backbone.lateral
    merged = lateral["c5"](c5)
    for level, source in (("c4", c4), ("c3", c3), ("c2", c2)):
        size = source.shape[-2:]
        merged = F.interpolate(merged, size=size, mode="bilinear", align_corners=False) + lateral[level](source)
    torch.testing.assert_close(
        backbone(x), F.conv2d(merged, backbone.output["p2"].weight, backbone.output["p2"].bias, padding=1)
    )


def test_the_logit_is_the_softmax_of_two_classes() -> None:
    net = network()
    arguments = (
        torch.randn(1, 8, 16, 16),
        torch.tensor([[0.5, 0, 1], [0, 0.5, 2]]).repeat(2, 1, 1),
        torch.zeros(2, dtype=torch.int32),
        torch.from_numpy(np.stack([drawn_pose(1, 1, 14), drawn_pose(3, 2, 12)])),
    )
    both = net.seg_module(seg_inputs(net.settings, *arguments))
    logits = net.segment(*arguments)
    torch.testing.assert_close(logits.sigmoid(), both.softmax(1)[:, 1])
    truth = torch.rand(2, 16, 16) > 0.5
    torch.testing.assert_close(
        F.binary_cross_entropy_with_logits(logits, truth.float()), F.cross_entropy(both, truth.long())
    )


def test_every_parameter_learns_through_the_sampler() -> None:
    net = network().train()
    features = net(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))["features"]
    matrices = torch.tensor([[0.7, 0.2, 1], [-0.2, 0.7, 3]]).repeat(2, 1, 1)
    poses = torch.from_numpy(np.stack([drawn_pose(1, 1, 14)] * 2))
    net.segment(features, matrices, torch.tensor([0, 1], dtype=torch.int32), poses).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() >= 0] == []
    assert net.backbone.trunk.conv1.weight.grad.abs().sum() > 0


def test_initial_pyramid_weights_have_the_published_spread() -> None:
    torch.manual_seed(0)
    backbone = Backbone(16, 64)
    assert float(backbone.output["p2"].weight.detach().std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)
    assert float(backbone.lateral["c5"].weight.detach().std()) == pytest.approx((2 / 64) ** 0.5, rel=0.05)


def test_another_family_is_refused() -> None:
    with pytest.raises(ValueError, match="family must be 'paper' here, got 'live'"):
        PaperNetwork(ModelSettings())


# Ablations: each changes what it should, and nothing else


def hidden_joint_inputs(settings: ModelSettings) -> torch.Tensor:
    torch.manual_seed(1)
    pose = torch.from_numpy(drawn_pose(1, 1, 14))[None]
    pose[0, 9, 2] = 1
    return seg_inputs(
        settings,
        torch.randn(1, 8, 16, 16),
        torch.tensor([[[0.6, 0.1, 3.0], [-0.1, 0.6, 2.0]]]),
        torch.zeros(1, dtype=torch.int32),
        pose,
    )


def test_without_the_skeleton_the_seg_module_sees_the_same_features_only() -> None:
    plain, without = tiny(), tiny(skeleton={"enabled": False})
    torch.testing.assert_close(hidden_joint_inputs(plain)[:, :8], hidden_joint_inputs(without), rtol=0, atol=0)
    assert PaperNetwork(without).seg_module.stem[0].in_channels == 8
    assert PaperNetwork(plain).seg_module.stem[0].in_channels == 63


def test_without_negative_blobs_a_hidden_joint_looks_visible() -> None:
    plain, positive = (hidden_joint_inputs(tiny(skeleton={"negative_occluded": on})) for on in (True, False))
    assert plain[0, 8 + 9].min() < -0.5
    torch.testing.assert_close(positive[0, 8 + 9], -plain[0, 8 + 9])
    others = [c for c in range(63) if c != 8 + 9]
    torch.testing.assert_close(positive[0, others], plain[0, others], rtol=0, atol=0)


def test_units_change_the_number_of_residual_units_only() -> None:
    few, many = network(seg={"units": 2}), network(seg={"units": 5})
    assert (len(few.seg_module.units), len(many.seg_module.units)) == (2, 5)
    shapes = [{n: p.shape for n, p in net.state_dict().items() if ".units." not in n} for net in (few, many)]
    assert shapes[0] == shapes[1]


def published_sampling(matrix: np.ndarray, side: int, size: int, *, aligned: bool, maps: torch.Tensor) -> torch.Tensor:
    """What the released code does: normalise with 2 p / side - 1, a grid of the whole map, its top left corner.

    Args:
        matrix: (2, 3) roi_from_feature. side: of the map. size: of the ROI. maps: (1, C, side, side).
        aligned: PyTorch to 1.2 took corners as aligned, later versions do not.
    """
    normal = np.array([[2 / side, 0, -1], [0, 2 / side, -1], [0, 0, 1]])
    square = np.vstack((matrix, [0, 0, 1]))
    theta = np.linalg.inv(normal @ square @ np.linalg.inv(normal))[:2]
    grid = F.affine_grid(torch.from_numpy(theta)[None], (1, 1, side, side), align_corners=aligned)
    return F.grid_sample(maps, grid, align_corners=aligned)[..., :size, :size]


@pytest.mark.parametrize(("compat", "aligned"), [("ref_pt10", True), ("ref_pt13", False)])
def test_compat_samples_what_the_released_code_samples(compat: str, aligned: bool) -> None:
    settings = tiny(align={"compat": compat}, skeleton={"enabled": False})
    torch.manual_seed(0)
    maps = torch.randn(1, 8, 32, 32, dtype=torch.float64)
    matrix = np.array([[0.9, 0.3, -4.0], [-0.3, 0.9, 5.0]])
    linear = np.linalg.inv(matrix[:, :2])
    inverse = np.concatenate((linear, -linear @ matrix[:, 2:]), axis=1)
    ours = seg_inputs(
        settings, maps, torch.from_numpy(inverse)[None], torch.zeros(1, dtype=torch.int32), torch.zeros(1, 17, 3)
    )
    theirs = published_sampling(matrix, 32, 16, aligned=aligned, maps=maps)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    exact = seg_inputs(
        replace(settings, align=tiny().align),
        maps,
        torch.from_numpy(inverse)[None],
        torch.zeros(1, dtype=torch.int32),
        torch.zeros(1, 17, 3),
    )
    assert (exact - theirs).abs().max() > 0.1


def test_exact_sampling_leaves_matrices_alone() -> None:
    matrix = torch.randn(3, 2, 3)
    assert reference_sampling(matrix, "exact", 128, 128) is matrix
    slipped = reference_sampling(matrix, "ref_pt10", 128, 64)
    torch.testing.assert_close(slipped[..., 2], matrix[..., 2] * torch.tensor([63 / 64, 127 / 128]))
    torch.testing.assert_close(slipped[..., :2], matrix[..., :2])
