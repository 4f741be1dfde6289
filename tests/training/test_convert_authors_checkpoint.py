"""The authors' file becomes our network: every tensor at its place, or a list of what does not fit."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.checkpoint import CheckpointError, describe, load_weights
from training.convert_authors_checkpoint import AUTHORS_MODEL, convert, expected_tensors, main
from training.model_settings import ModelSettings, model_settings_from_json
from training.paper_model import PaperNetwork
from training.resnet_weights import load_resnet

SMALL: dict[str, Any] = {
    **AUTHORS_MODEL,
    "feature_channels": 8,
    "seg_width": 4,
    "backbone": {"width": 4, "stride_in": "1x1"},
    "seg": {"units": 2},
}
SMALL_FLAGS = [
    *("--set", "model.feature_channels=8", "--set", "model.seg_width=4"),
    *("--set", "model.backbone.width=4", "--set", "model.seg.units=2"),
]


def small() -> ModelSettings:
    return model_settings_from_json(SMALL)


def norm(tensors: dict[str, Tensor], name: str, channels: int) -> None:
    for part in ("weight", "bias", "running_mean"):
        tensors[f"{name}.{part}"] = 0.1 * torch.randn(channels)
    tensors[f"{name}.running_var"] = torch.rand(channels) + 0.5


def conv(tensors: dict[str, Tensor], name: str, outputs: int, inputs: int, side: int, *, bias: bool) -> None:
    tensors[f"{name}.weight"] = torch.randn(outputs, inputs, side, side) / (inputs * side * side) ** 0.5
    if bias:
        tensors[f"{name}.bias"] = 0.1 * torch.randn(outputs)


def unit(
    tensors: dict[str, Tensor], name: str, inputs: int, width: int, shortcut: tuple[str, str] | None, *, bias: bool
) -> None:
    conv(tensors, f"{name}.conv1", width, inputs, 1, bias=bias)
    conv(tensors, f"{name}.conv2", width, width, 3, bias=bias)
    conv(tensors, f"{name}.conv3", 4 * width, width, 1, bias=bias)
    for number, channels in (("bn1", width), ("bn2", width), ("bn3", 4 * width)):
        norm(tensors, f"{name}.{number}", channels)
    if shortcut is not None:
        conv(tensors, f"{name}.{shortcut[0]}", 4 * width, inputs, 1, bias=bias)
        norm(tensors, f"{name}.{shortcut[1]}", 4 * width)


def authors_tensors(*, width: int = 4, channels: int = 8, seg_width: int = 4, units: int = 2) -> dict[str, Tensor]:
    """A state dict as the authors' code would write it, spelled out name by name."""
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}
    conv(tensors, "backbone.conv1", width, 3, 7, bias=False)
    norm(tensors, "backbone.bn1", width)
    inputs = width
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        stage_width = width * 2 ** (stage - 1)
        for block in range(blocks):
            shortcut = ("conv4", "bn4") if block == 0 else None
            unit(tensors, f"backbone.layer{stage}.{block}", inputs, stage_width, shortcut, bias=False)
            inputs = 4 * stage_width
        conv(tensors, f"backbone.fpn_c{stage}p{stage}", channels, inputs, 1, bias=True)
        conv(tensors, f"backbone.fpn_p{stage}", channels, channels, 3, bias=True)
    conv(tensors, "segnet.conv1", seg_width, channels + 55, 7, bias=True)
    norm(tensors, "segnet.bn1", seg_width)
    inputs = seg_width
    for block in range(units):
        shortcut = ("downsample.0", "downsample.1") if block == 0 else None
        unit(tensors, f"segnet.layer1.{block}", inputs, seg_width, shortcut, bias=True)
        inputs = 4 * seg_width
    unit(tensors, "segnet.decoder1.0", inputs, seg_width // 2, ("downsample.0", "downsample.1"), bias=True)
    conv(tensors, "segnet.pred_small", 2, 4 * (seg_width // 2), 1, bias=True)
    return tensors


@pytest.fixture
def authors(tmp_path: Path) -> Path:
    torch.save(authors_tensors(), tmp_path / "last.pkl")
    return tmp_path / "last.pkl"


def test_every_tensor_finds_its_place(authors: Path) -> None:
    state, theirs = convert(authors, small()), authors_tensors()
    places = {
        "backbone.trunk.conv1.weight": "backbone.conv1.weight",
        "backbone.trunk.layer1.0.downsample.0.weight": "backbone.layer1.0.conv4.weight",
        "backbone.trunk.layer3.0.downsample.1.running_var": "backbone.layer3.0.bn4.running_var",
        "backbone.trunk.layer4.2.conv3.weight": "backbone.layer4.2.conv3.weight",
        "backbone.lateral.c5.weight": "backbone.fpn_c4p4.weight",
        "backbone.lateral.c2.bias": "backbone.fpn_c1p1.bias",
        "backbone.output.p2.weight": "backbone.fpn_p1.weight",
        "seg_module.stem.0.weight": "segnet.conv1.weight",
        "seg_module.stem.1.running_mean": "segnet.bn1.running_mean",
        "seg_module.units.0.downsample.0.bias": "segnet.layer1.0.downsample.0.bias",
        "seg_module.units.1.conv2.weight": "segnet.layer1.1.conv2.weight",
        "seg_module.decoder.bn3.weight": "segnet.decoder1.0.bn3.weight",
        "seg_module.out.bias": "segnet.pred_small.bias",
    }
    for ours, name in places.items():
        torch.testing.assert_close(state[ours], theirs[name], rtol=0, atol=0)
    unused = {f"backbone.fpn_p{level}.{part}" for level in (2, 3, 4) for part in ("weight", "bias")}
    kept = {name: value for name, value in state.items() if "num_batches" not in name}
    assert len(kept) == len(theirs.keys() - unused)
    assert sum(value.numel() for value in kept.values()) == sum(
        value.numel() for name, value in theirs.items() if name not in unused
    )


def published_features(tensors: dict[str, Tensor], image: Tensor) -> Tensor:
    """The authors' backbone as their code computes it, straight from the tensors."""

    def normed(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            tensors[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias)

    x = F.relu(normed(F.conv2d(image, tensors["backbone.conv1.weight"], stride=2, padding=3), "backbone.bn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    levels = []
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            name, stride = f"backbone.layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = F.relu(normed(F.conv2d(x, tensors[f"{name}.conv1.weight"], stride=stride), f"{name}.bn1"))
            y = F.relu(normed(F.conv2d(y, tensors[f"{name}.conv2.weight"], padding=1), f"{name}.bn2"))
            y = normed(F.conv2d(y, tensors[f"{name}.conv3.weight"]), f"{name}.bn3")
            if block == 0:
                x = normed(F.conv2d(x, tensors[f"{name}.conv4.weight"], stride=stride), f"{name}.bn4")
            x = F.relu(x + y)
        levels.append(x)
    merged: Tensor | None = None
    for level in (4, 3, 2, 1):
        name = f"backbone.fpn_c{level}p{level}"
        lateral = F.conv2d(levels[level - 1], tensors[f"{name}.weight"], tensors[f"{name}.bias"])
        if merged is not None:
            lateral = lateral + F.interpolate(merged, lateral.shape[-2:], mode="bilinear", align_corners=False)
        merged = lateral
    assert merged is not None
    return F.conv2d(merged, tensors["backbone.fpn_p1.weight"], tensors["backbone.fpn_p1.bias"], padding=1)


def test_the_converted_backbone_computes_what_the_authors_does(authors: Path) -> None:
    network = PaperNetwork(small()).eval()
    network.load_state_dict(convert(authors, small()))
    image = torch.randn(1, 3, 64, 96)
    expected = published_features(authors_tensors(), image)
    torch.testing.assert_close(network.backbone(image), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["zip", "old format", "parallel", "old names", "counters", "nested"])
def test_every_form_of_the_file_gives_the_same(kind: str, tmp_path: Path, authors: Path) -> None:
    tensors: Any = authors_tensors()
    if kind == "parallel":
        tensors = {f"module.{name}": value for name, value in tensors.items()}
    elif kind == "old names":
        tensors = {name.replace("segnet.", "pose2seg.seg_branch."): value for name, value in tensors.items()}
    elif kind == "counters":
        tensors["backbone.bn1.num_batches_tracked"] = torch.tensor(7)
    elif kind == "nested":
        tensors = {"state_dict": tensors}
    path = tmp_path / "other.pth"
    torch.save(tensors, path, _use_new_zipfile_serialization=kind != "old format")
    expected = convert(authors, small())
    found = convert(path, small())
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_differences_are_listed_by_the_authors_names(tmp_path: Path) -> None:
    tensors = authors_tensors()
    del tensors["segnet.bn1.weight"], tensors["backbone.fpn_p4.bias"]
    tensors["fc.weight"] = torch.zeros(3)
    tensors["segnet.pred_small.bias"] = torch.zeros(3)
    torch.save(tensors, tmp_path / "other.pkl")
    with pytest.raises(
        ValueError,
        match=r"other\.pkl holds another network; missing: backbone\.fpn_p4\.bias, segnet\.bn1\.weight; "
        r"unexpected: fc\.weight; wrong shape: segnet\.pred_small\.bias is \(3,\), not \(2,\)",
    ):
        convert(tmp_path / "other.pkl", small())


class Attack:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("attacked"),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_a_file_that_would_run_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.pkl").write_bytes(pickle.dumps(Attack()))
    torch.save({"backbone": Attack()}, "worse.pth")
    for name in ("evil.pkl", "worse.pth"):
        assert main([name, "out.safetensors"]) == 2
        assert f"error: {name}: expected tensors by name" in capsys.readouterr().err
    assert not Path("attacked").exists() and not Path("out.safetensors").exists()


@pytest.mark.parametrize("content", [b"", b"weights", b"PK\x03\x04 no zip"])
def test_other_files_are_refused_in_one_line(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.pkl").write_bytes(content)
    assert main([str(tmp_path / "in.pkl"), str(tmp_path / "out.safetensors")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert main([str(tmp_path / "none.pkl"), str(tmp_path / "out.safetensors")]) == 2
    assert "none.pkl" in capsys.readouterr().err
    assert main([str(tmp_path / "in.pkl"), str(tmp_path / "out.pth")]) == 2
    assert "expected a name that ends in .safetensors" in capsys.readouterr().err


def test_what_is_written_is_a_checkpoint_that_knows_its_network(authors: Path, tmp_path: Path) -> None:
    out = tmp_path / "authors.safetensors"
    assert main([str(authors), str(out), *SMALL_FLAGS]) == 0
    assert describe(out)["provenance"] == {"converted_from": "last.pkl"}
    network = load_weights(out)
    assert network.settings == small()
    assert (network.settings.backbone.stride_in, network.settings.align.compat) == ("1x1", "ref_pt10")
    torch.testing.assert_close(network.seg_module.out.bias, nn.Parameter(authors_tensors()["segnet.pred_small.bias"]))
    with pytest.raises(CheckpointError, match=r"last\.pkl is neither a checkpoint folder nor weights"):
        load_weights(authors)


def test_the_published_size() -> None:
    """Shapes only: 41,113,154 parameters and the three unused outputs."""
    expected = expected_tensors(model_settings_from_json(AUTHORS_MODEL))
    spelled_out = authors_shapes_of_the_published_size()
    assert sum(v.numel() for n, v in expected.items() if "running" not in n) == 41_113_154 + 3 * 590_080
    assert {tuple(v.shape) for v in expected.values()} == {tuple(v.shape) for v in spelled_out.values()}
    assert len(expected) == len(spelled_out)
    assert json.loads(json.dumps(AUTHORS_MODEL)) == AUTHORS_MODEL


def authors_shapes_of_the_published_size() -> dict[str, Tensor]:
    with torch.device("meta"):
        return authors_tensors(width=64, channels=256, seg_width=256, units=10)


# ImageNet weights in torchvision's layout


def test_imagenet_weights_load_by_their_own_names(tmp_path: Path) -> None:
    tensors = {
        name.removeprefix("backbone.").replace("conv4", "downsample.0").replace("bn4", "downsample.1"): value
        for name, value in authors_tensors().items()
        if name.startswith("backbone.") and "fpn" not in name
    }
    file = {**tensors, "fc.weight": torch.zeros(1000, 128), "fc.bias": torch.zeros(1000)}
    torch.save(file, tmp_path / "resnet50.pth")
    network = PaperNetwork(small())
    load_resnet(network.backbone.trunk, tmp_path / "resnet50.pth")
    state = network.backbone.trunk.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in tensors.items())
    del file["layer2.0.downsample.0.weight"]
    torch.save(file, tmp_path / "short.pth")
    with pytest.raises(
        ValueError, match=r"short\.pth holds another network; missing: layer2\.0\.downsample\.0\.weight"
    ):
        load_resnet(network.backbone.trunk, tmp_path / "short.pth")
