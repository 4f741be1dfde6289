"""The other keypoint networks from training to serving: they learn a picture by heart, resume exactly, are exported as
they compute, and find the people of that picture in a video, through the command that users run.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file
from torch import nn

from engines import EngineOptions, default_artifact, load_artifact, open_graph
from kernels.groupings import PARAMETERS
from run_stream import main as run_command
from tests.training.drawn_people import (
    COLOURS,
    TINY_MODEL,
    annotation,
    background,
    drawn_mask,
    drawn_pose,
    paint,
    tiny_settings,
    write_coco,
)
from tests.training.published_weights import published
from training.dataset import Scene
from training.evaluate import main as evaluate_command
from training.export_onnx import ExportError, compare, export
from training.graphs import KeypointGraph
from training.grouping_losses import grouping_losses
from training.model import (
    GROUPING_CHANNELS,
    GROUPING_WIDTH,
    HEAD_HIDDEN,
    SHARED_HEADS,
    KeypointHeads,
    LiveNetwork,
    PaddedConv,
    SeparableConv,
)
from training.model_settings import ModelSettings
from training.movenet_weights import load_movenet
from training.settings import settings_from_json
from training.train import Trainer, build_optimiser, found_poses, set_mode, train

GROUPINGS = [name for name in PARAMETERS if name != "centre"]
HEIGHT, WIDTH = 128, 160
VARIANTS = 2
POSES = (drawn_pose(4, 6, 118), drawn_pose(76, 14, 104))

# The exporter of PyTorch and onnxscript speak of their own future; nothing that this code could change.
EXPORTS = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def two_people() -> Scene:
    image, labels = background(1, HEIGHT, WIDTH), np.zeros((HEIGHT, WIDTH), np.uint8)
    for index, pose in enumerate(POSES):
        mask = drawn_mask(pose, HEIGHT, WIDTH)
        paint(image, mask, COLOURS[index])
        labels[mask > 0] = index + 1
    return Scene(
        image=image,
        labels=labels,
        keypoints=np.stack(POSES).astype(np.float32),
        has_mask=np.ones(2, np.uint8),
        complete=True,
        max_iou=np.zeros(2, np.float32),
    )


def errors_px(found: np.ndarray) -> list[float]:
    """Mean distance of each true person's joints from those of the nearest row (M, 17, 2 or more); px."""
    return [float(np.linalg.norm(found[:, :, :2] - pose[:, :2], axis=-1).mean(1).min(initial=np.inf)) for pose in POSES]


def model_of(keypoints: str) -> ModelSettings:
    return replace(TINY_MODEL, keypoints=keypoints)


@dataclass(frozen=True, eq=False)
class Learned:
    network: LiveNetwork
    first: dict[str, float]
    last: dict[str, float]


def with_shipped_weights(network: LiveNetwork) -> LiveNetwork:
    """Backbone, top-down path and shared heads of the model that is installed, which are MoveNet's."""
    graph = onnx.load(str(default_artifact() / "keypoints.onnx")).graph
    shipped = {tensor.name.removeprefix("network."): tensor for tensor in graph.initializer}
    state = network.state_dict()
    known = {
        name: torch.from_numpy(numpy_helper.to_array(shipped[name]).copy())
        for name in state
        if name in shipped and not name.startswith("mask_laterals")
    }
    assert any(name.startswith("backbone") for name in known) and any(name.startswith("top_down") for name in known)
    network.load_state_dict({**state, **known})
    return network


def learn_by_heart(keypoints: str, steps: int) -> Learned:
    """Teach the heads of a network one picture, with a little noise so that what a video loses does not matter."""
    torch.manual_seed(0)
    network = with_shipped_weights(LiveNetwork(model_of(keypoints)))
    if (
        keypoints != "personlab"
    ):  # in seconds: MoveNet's head needs longer on drawn people than one that sees all levels
        network.keypoint_heads = KeypointHeads(())
        head = nn.Sequential(SeparableConv(GROUPING_WIDTH, HEAD_HIDDEN), PaddedConv(HEAD_HIDDEN, 17))
        nn.init.constant_(head[1].bias, -3.0)
        network.grouping_heads.head["heatmaps"] = head
    settings = tiny_settings(
        Path("data"),
        Path("out"),
        model=network.settings,
        lr_scale={
            **dict.fromkeys(network._modules, 0.0),
            "top_down": 1.0,
            "keypoint_heads": 1.0,
            "grouping_heads": 1.0,
        },
        relative_rate_parts=(),
        mask_loss_weight=0.0,
        learning_rate=8e-3,
    )
    optimiser = build_optimiser(network, settings)
    set_mode(network, settings)
    one, rng = two_people(), np.random.default_rng(0)
    noise = rng.normal(0, 2, (VARIANTS, *one.image.shape)) * np.arange(VARIANTS)[:, None, None, None]  # the first: none
    noisy = np.clip(one.image + noise, 0, 255).astype(np.uint8)
    with torch.no_grad():  # frozen: the same at every step
        levels, trunk = network.trunk(torch.from_numpy(noisy).permute(0, 3, 1, 2))
    history = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = group["base"] * min(1.0, (step + 1) / 10, 2 * (1 - step / steps))
        losses = grouping_losses(keypoints, network.heads(levels, trunk), [one] * VARIANTS, kind="entropy")
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_([p for p in network.parameters() if p.requires_grad], 5.0)
        optimiser.step()
        history.append({name: float(loss.detach()) for name, loss in losses.items()})
    return Learned(network.eval(), history[0], history[-1])


@pytest.fixture(scope="module", params=GROUPINGS)
def learned(request: pytest.FixtureRequest) -> Learned:
    return learn_by_heart(request.param, steps=120)


@pytest.mark.slow
def test_one_picture_is_learned_by_heart(learned: Learned) -> None:
    keypoints = learned.network.settings.keypoints
    print(keypoints, learned.first, learned.last)
    assert sum(learned.last.values()) < 0.5 * sum(learned.first.values())  # entropy has a floor: targets are no 0 and 1
    image = torch.from_numpy(two_people().image).permute(2, 0, 1)[None]
    with torch.no_grad():
        maps = learned.network(image)
    (poses,) = found_poses(maps, PARAMETERS[keypoints](), keypoints)
    print(len(poses), errors_px(poses))
    assert max(errors_px(poses)) < 4.0


# Serving


def exported(mark):
    for one in EXPORTS:
        mark = one(mark)
    return mark


@pytest.fixture(scope="module")
def folder(learned: Learned, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    export(learned.network, path, trained_on=["drawn"], measured={}, provenance={})
    return path


def write_clip(path: Path, count: int = 5) -> Path:
    """The picture that was learned, as a video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"crf": "12"}
        for _ in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(two_people().image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@exported
def test_the_folder_names_its_grouping_and_parameters(learned: Learned, folder: Path) -> None:
    keypoints = learned.network.settings.keypoints
    artifact = load_artifact(folder)
    assert artifact.family == "live" and artifact.grouping == keypoints
    assert PARAMETERS[keypoints](**artifact.decode) == PARAMETERS[keypoints]()
    assert artifact.measured["export_difference"] < 2e-3


@exported
@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_exported_equals_eager(learned: Learned, folder: Path, engine: str) -> None:
    artifact = load_artifact(folder)
    device = "cpu" if engine == "torch" else None
    opened = open_graph(artifact, "keypoints", engine=engine, options=EngineOptions(device=device))
    image = np.stack([two_people().image, background(2, HEIGHT, WIDTH)])
    found = opened.run({"image": image})
    opened.close()
    with torch.no_grad():
        eager = KeypointGraph(learned.network)(torch.from_numpy(image))
    for (name, tensor), expected in zip(found.items(), eager, strict=True):
        if name != "joint_candidates":  # peaks of equal height come in any order
            np.testing.assert_allclose(tensor, expected.numpy(), rtol=1e-3, atol=1e-3, err_msg=name)


@exported
def test_another_network_is_noticed(learned: Learned, folder: Path) -> None:
    other = copy.deepcopy(learned.network)
    with torch.no_grad():
        list(other.grouping_heads.head["heatmaps"].children())[-1].bias.add_(8.0)
    artifact = load_artifact(folder)
    with pytest.raises(ExportError, match="exported graphs differ from the network by"):
        compare(other, artifact.graph_path("keypoints"), artifact.segment_path, sizes=((64, 64),), people=(1,))


@exported
def test_the_command_finds_the_people_in_a_video(learned: Learned, folder: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4")
    flags = ["--model", str(folder), "--long-side", str(WIDTH), "--json", str(tmp_path / "out.jsonl")]
    assert run_command([str(clip), *flags, "--output", str(tmp_path / "out.mp4")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    for line in lines:
        found = np.array([person["keypoints"] for person in line["people"]], float).reshape(-1, 17, 3)
        print(len(found), errors_px(found))
        assert max(errors_px(found)) < 5.0
    ids = [[person["id"] for person in line["people"]] for line in lines]
    assert all(one == ids[0] for one in ids)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5


def changed_manifest(folder: Path, copy: Path, **changes: object) -> Path:
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((folder / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps({**manifest, **changes}))
    return copy


@exported
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"grouping": "telepathy"},
            "expected 'grouping' to be one of ['centre', 'embedding', 'affinity', 'personlab']",
        ),
        ({"grouping": 7}, "expected 'grouping' to be text, got 7"),
        ({"grouping": "centre"}, "keypoints.onnx: expected the outputs person_scores"),
        ({"decode": {"stride": 0.0}}, "stride must be from 1 to 64, got 0.0: export the model again"),
        ({"decode": {"stride": 1e300}}, "stride must be from 1 to 64"),
        ({"decode": {"telepathy": 1.0}}, "got telepathy: a newer folder needs a newer pose2seg-live"),
    ],
    ids=["unknown grouping", "no text", "another graph's", "no stride", "far stride", "unknown parameter"],
)
def test_a_hostile_manifest_is_refused(folder: Path, tmp_path: Path, capsys, changes: dict, said: str) -> None:
    clip = write_clip(tmp_path / "in.mp4", 1)
    hostile = changed_manifest(folder, tmp_path / "model", **changes)
    assert run_command([str(clip), "--model", str(hostile), "--json", str(tmp_path / "out.jsonl")]) == 4
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert said in line
    assert not (tmp_path / "out.jsonl").exists()


def write_set(folder: Path) -> Path:
    people = [annotation(n + 1, 1, pose, drawn_mask(pose, HEIGHT, WIDTH)) for n, pose in enumerate(POSES)]
    return write_coco(folder, {1: two_people().image}, people)


@exported
def test_personlab_masks_are_scored(learned: Learned, folder: Path, tmp_path: Path, capsys) -> None:
    data = write_set(tmp_path / "set")
    flags = ["--annotations", str(data / "annotations.json"), "--images", str(data / "images")]
    flags += ["--model", str(folder), "--masks", "personlab", "--long-side", str(WIDTH)]
    if learned.network.settings.keypoints != "personlab":
        assert evaluate_command(flags) == 2
        assert "--masks personlab needs a model whose keypoints are personlab" in capsys.readouterr().err
        return
    assert evaluate_command([*flags, "--json", str(tmp_path / "own.json")]) == 0
    own = json.loads((tmp_path / "own.json").read_text())
    print(own)
    assert own["mean_iou"] > 0.6  # cells of 4 px against people 20 px wide
    assert own["keypoints"]["AP50"] > 0.9
    assert evaluate_command([*flags, "--poses", "gt", "--json", str(tmp_path / "gt.json")]) == 0
    assert json.loads((tmp_path / "gt.json").read_text())["mean_iou"] > 0.6


# Training


@pytest.mark.parametrize("keypoints", GROUPINGS)
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(keypoints: str, data: Path, tmp_path: Path) -> None:
    def settings(name: str):
        rates = {**dict.fromkeys(("backbone", "top_down", "mask_laterals", "seg_module"), 0.0), "keypoint_heads": 1.0}
        return tiny_settings(
            data,
            tmp_path / name,
            model=model_of(keypoints),
            steps=4,
            checkpoint_every=2,
            lr_scale=rates,
            mask_loss_weight=0.0,
            predicted_pose_share=0.0,
        )

    whole = train(settings("whole"))
    assert train(settings("parts"), stop_after=2).name == "step-0000002"
    resumed = train(settings("parts"))
    for name in ("weights", "ema", "optimiser"):
        one, other = (load_file(str(path / f"{name}.safetensors")) for path in (whole, resumed))
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]), f"{name} {key}"


@pytest.mark.parametrize("keypoints", GROUPINGS)
def test_masks_are_learned_beside_the_joints(keypoints: str) -> None:
    """The parts of the masks are there as in the default network, and learn from poses this grouping finds."""
    settings = tiny_settings(Path("data"), Path("out"), model=model_of(keypoints), predicted_pose_share=1.0)
    assert settings.lr_scale["grouping_heads"] == 1.0
    network = LiveNetwork(settings.model)
    build_optimiser(network, settings)
    scene = two_people()
    image = torch.from_numpy(scene.image).permute(2, 0, 1)[None]
    losses = Trainer(network, settings)(image, [scene], np.random.default_rng(0))
    assert "mask" in losses
    torch.stack(list(losses.values())).sum().backward()
    for name, part in network.named_children():
        assert any(p.grad is not None and bool(p.grad.any()) for p in part.parameters()) or name == "keypoint_heads"
    assert all(
        p.grad is not None and bool(p.grad.any()) for p in network.grouping_heads.head.parameters() if p.ndim > 1
    )


@pytest.mark.parametrize("keypoints", GROUPINGS)
def test_movenets_trunk_and_the_heads_it_shares_are_the_start(keypoints: str, tmp_path: Path) -> None:
    source = LiveNetwork(TINY_MODEL)
    path = published(source).write(tmp_path / "movenet.onnx")
    torch.manual_seed(1)
    network = load_movenet(LiveNetwork(model_of(keypoints)), path)
    for part in ("backbone", "top_down"):
        for name, value in getattr(source, part).state_dict().items():
            assert torch.equal(getattr(network, part).state_dict()[name], value), name
    assert tuple(network.keypoint_heads.head) == SHARED_HEADS[keypoints]
    for name, head in network.keypoint_heads.head.items():
        for key, value in source.keypoint_heads.head[name].state_dict().items():
            assert torch.equal(head.state_dict()[key], value), f"{name} {key}"
    assert set(network.grouping_heads.head) == set(GROUPING_CHANNELS[keypoints])


def test_settings_that_do_not_fit_are_refused() -> None:
    def refused(said: str, **content: object) -> None:
        with pytest.raises(ValueError, match=said):
            settings_from_json(content, data="data", output="out")

    refused(
        "keypoints must be one of centre, embedding, affinity, personlab, got 'boxes'", model={"keypoints": "boxes"}
    )
    refused("keypoints embedding belongs to the family live", model={"family": "paper", "keypoints": "embedding"})
    refused("distill_weight belongs to keypoints centre", model={"keypoints": "affinity"}, distill_weight=1.0)
    refused("lr_scale names grouping_heads", lr_scale={"grouping_heads": 1.0})
    nothing = settings_from_json({"mask_loss_weight": 0.0}, data="data", output="out")
    with pytest.raises(ValueError, match="nothing is taught"):
        Trainer(LiveNetwork(nothing.model), nothing)
