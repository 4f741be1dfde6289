"""The exported graphs compute what the network computes, for any size, number of pictures and number of people."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from engines import EngineLoadError, load_artifact, open_engine, open_graph
from kernels.affine_align import affine_align_reference
from kernels.affine_align.torch_op import affine_align
from tests.tolerances import GRID_SAMPLE
from tests.training.drawn_people import TINY_MODEL, tiny_settings
from training import export_onnx
from training.checkpoint import save_checkpoint
from training.export_difference import peak_difference
from training.export_onnx import DOMAIN, ExportError, compare, export_keypoints, export_segment, main
from training.model import FEATURE_FROM_INPUT, LiveNetwork

# The exporter of PyTorch and onnxscript speak of their own future; nothing that this code could change.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def network() -> LiveNetwork:
    """Random weights that keep the signal alive to the end: maps with distinct peaks, and batch norms that matter."""
    torch.manual_seed(0)
    made = LiveNetwork(replace(TINY_MODEL, roi_size=64))
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    with torch.no_grad():  # back to values of a trained network: logits of size 1, features of size 1
        for head in made.keypoint_heads.head.values():
            list(head.children())[-1].weight.mul_(0.04)
        made.mask_laterals.refine[-1][1].weight.mul_(0.1)
    return made.eval()


@pytest.fixture(scope="module")
def checkpoint(network: LiveNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    settings = tiny_settings(folder, folder, model=network.settings)
    optimiser = torch.optim.AdamW(network.parameters())
    state = {"settings": settings.to_json()}
    return save_checkpoint(folder, step=5, network=network, ema=network, optimiser=optimiser, state=state)


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes of the checkpoint."""
    path = tmp_path_factory.mktemp("artifact") / "live"
    figures = path.parent / "dev.json"
    figures.write_text(json.dumps({"mask": {"AP": 0.25}}))
    flags = ["--checkpoint", str(checkpoint), "--output", str(path), "--evaluation", f"dev={figures}"]
    assert main(flags) == 0
    return path


def test_the_folder_is_a_complete_artifact(folder: Path) -> None:
    assert {p.name for p in folder.iterdir()} == {"model.json", "keypoints.onnx", "segment.onnx"}
    artifact = load_artifact(folder)
    np.testing.assert_allclose(artifact.feature_from_input, FEATURE_FROM_INPUT)
    assert (artifact.family, artifact.roi_size, artifact.templates.shape) == ("live", 64, (6, 17, 3))
    assert artifact.trained_on == ("people",)
    assert dict(artifact.provenance) == {"steps": 5}
    assert artifact.measured["dev"]["mask"]["AP"] == 0.25
    assert artifact.measured["export_difference"] < 2e-3
    for name in ("keypoints", "segment"):
        open_graph(artifact, name, engine="onnx").close()


def test_exported_equals_eager_on_other_sizes_and_crowds(network: LiveNetwork, folder: Path) -> None:
    worst = compare(
        network,
        folder / "keypoints.onnx",
        folder / "segment.onnx",
        sizes=((64, 64), (32, 352), (256, 96)),
        people=(1, 3, 20),
    )
    assert worst < 1e-3


def test_another_network_is_noticed(folder: Path) -> None:
    torch.manual_seed(5)
    other = LiveNetwork(replace(TINY_MODEL, roi_size=64)).eval()
    with pytest.raises(ExportError, match="exported graphs differ from the network by"):
        compare(other, folder / "keypoints.onnx", folder / "segment.onnx", sizes=((64, 64),), people=(2,))


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[LiveNetwork, Path]:
    """As PyTorch makes it: maps so flat that rounding decides where the peaks are and which come first."""
    torch.manual_seed(0)
    made = LiveNetwork(replace(TINY_MODEL, roi_size=64)).eval()
    with torch.no_grad():
        heat = made(torch.randint(0, 255, (1, 3, 96, 128), dtype=torch.uint8))["heatmaps"].sigmoid()
    assert float(heat.std((2, 3)).max()) < 2e-3
    path = tmp_path_factory.mktemp("untrained")
    onnx.save(export_keypoints(made), str(path / "keypoints.onnx"))
    onnx.save(export_segment(made), str(path / "segment.onnx"))
    return made, path


def test_flat_maps_are_compared_whatever_the_order_of_their_peaks(untrained: tuple[LiveNetwork, Path]) -> None:
    network, path = untrained
    worst = compare(network, path / "keypoints.onnx", path / "segment.onnx", sizes=((128, 160), (64, 96)), people=(3,))
    assert worst < 1e-4


def changed_output(path: Path, name: str, kind: str, constant: Any, changed: Path) -> None:
    """Write a graph with one more node at an output: `Add` or `Mul` of a constant, or `Gather` of rows."""
    model = onnx.load(str(path))
    for node in model.graph.node:
        for index, output in enumerate(node.output):
            if output == name:
                node.output[index] = f"{name}_before"
        for index, value in enumerate(node.input):
            if value == name:
                node.input[index] = f"{name}_before"
    array = np.asarray(constant, np.int64 if kind == "Gather" else np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"{name}_constant"))
    axis = {"axis": 2 if name == "joint_candidates" else 1} if kind == "Gather" else {}
    model.graph.node.append(onnx.helper.make_node(kind, [f"{name}_before", f"{name}_constant"], [name], **axis))
    onnx.checker.check_model(model)
    onnx.save(model, str(changed))


REVERSED, WITHOUT_THE_FIRST, ONLY_THE_FIRST = list(range(31, -1, -1)), [*range(1, 32), 31], [0] * 32
CHANGES = [
    ("person_scores", "Mul", 1.02),
    ("person_scores", "Gather", WITHOUT_THE_FIRST),
    ("person_keypoints", "Add", [1, 0, 0]),
    ("person_keypoints", "Add", [0, -1, 0]),
    ("person_keypoints", "Add", [0, 0, 0.05]),
    ("person_keypoints", "Gather", REVERSED),
    ("joint_candidates", "Add", [1, 0, 0, 0]),
    ("joint_candidates", "Add", [0, -1, 0, 0]),
    ("joint_candidates", "Add", [0, 0, 0.01, 0]),
    ("joint_candidates", "Add", [0, 0, 0, 0.1]),
    ("joint_candidates", "Gather", REVERSED),
    ("joint_candidates", "Gather", WITHOUT_THE_FIRST),
    ("joint_candidates", "Gather", ONLY_THE_FIRST),
    ("features", "Add", 0.01),
    ("probabilities", "Mul", 0.99),
    ("scores", "Mul", 0.99),
]
FLAT_CHANGES = [  # of the keypoint graph, where the rows of a flat map are not all alike
    change for change in CHANGES if change[1] != "Gather" and change[0] not in {"probabilities", "scores"}
]


@pytest.mark.parametrize(("output", "kind", "constant"), CHANGES, ids=[f"{o} {k} {c}"[:45] for o, k, c in CHANGES])
def test_a_graph_that_computes_something_else_is_caught(
    network: LiveNetwork, folder: Path, tmp_path: Path, output: str, kind: str, constant: Any
) -> None:
    graphs = {name: folder / f"{name}.onnx" for name in ("keypoints", "segment")}
    name = "segment" if output in {"probabilities", "scores"} else "keypoints"
    changed_output(graphs[name], output, kind, constant, tmp_path / "changed.onnx")
    with pytest.raises(ExportError, match="exported graphs differ from the network by"):
        graphs[name] = tmp_path / "changed.onnx"
        compare(network, graphs["keypoints"], graphs["segment"], sizes=((64, 96),), people=(2,))


@pytest.mark.parametrize(("output", "kind", "constant"), FLAT_CHANGES, ids=[f"{o} {c}" for o, _, c in FLAT_CHANGES])
def test_flat_maps_still_catch_what_does_not_depend_on_order(
    untrained: tuple[LiveNetwork, Path], tmp_path: Path, output: str, kind: str, constant: Any
) -> None:
    network, path = untrained
    changed_output(path / "keypoints.onnx", output, kind, constant, tmp_path / "changed.onnx")
    with pytest.raises(ExportError, match="exported graphs differ from the network by"):
        compare(network, tmp_path / "changed.onnx", path / "segment.onnx", sizes=((64, 96),), people=(1,))


def test_windows_of_another_size_are_caught(network: LiveNetwork, folder: Path, tmp_path: Path) -> None:
    """Too few peaks where the window is larger, cells that are none where it is smaller."""
    model = onnx.load(str(folder / "keypoints.onnx"))
    pools = [node for node in model.graph.node if node.op_type == "MaxPool"]
    assert len(pools) == 2
    for pool in pools:
        attributes = {a.name: a for a in pool.attribute}
        before = list(attributes["kernel_shape"].ints)
        pads = list(attributes["pads"].ints)
        size = 8 - before[0]  # 3 for 5 and 5 for 3
        attributes["kernel_shape"].ints[:] = [size] * 2
        attributes["pads"].ints[:] = [size // 2] * 4
        onnx.save(model, str(tmp_path / "changed.onnx"))
        with pytest.raises(ExportError, match="exported graphs differ from the network by"):
            compare(network, tmp_path / "changed.onnx", folder / "segment.onnx", sizes=((64, 96),), people=(1,))
        attributes["kernel_shape"].ints[:], attributes["pads"].ints[:] = before, pads


def test_difference_of_peaks_by_hand() -> None:
    probability = np.zeros((4, 5))
    probability[1, 1], probability[1, 2], probability[3, 4] = 0.8, 0.75, 0.3  # 0.75 is no peak
    cells = np.arange(20.0)[:, None] / 20  # a value by which a cell is told from the others
    rows, heights = cells[[6, 19]], np.array([0.8, 0.3])

    def difference(rows: Any, heights: Any) -> float:
        filled = np.zeros((4, 1)), np.zeros(4)
        filled[0][: len(rows)], filled[1][: len(rows)] = rows, heights
        return peak_difference(filled[0], filled[1], cells, probability, 3)

    assert difference(rows, heights) == 0
    assert difference(rows[::-1], heights[::-1]) == 0
    assert difference(rows + 0.01, heights) == pytest.approx(0.01)
    assert difference(rows, heights - 0.02) == pytest.approx(0.02)
    assert difference(rows[1:], heights[1:]) == pytest.approx(0.05)  # a peak is missed that is 0.05 above its neighbour
    assert difference(rows[:1], heights[:1]) == pytest.approx(0.3)
    assert difference(cells[[6, 19, 7]], [0.8, 0.3, 0.75]) == pytest.approx(0.05)  # a row that is none
    assert difference(rows[[0, 1, 1]], heights[[0, 1, 1]]) == pytest.approx(0.3)  # the same twice
    assert difference(rows, [np.nan, 0.3]) > 1 and difference(rows * np.nan, heights) > 1
    full = peak_difference(rows[:1], heights[:1], cells, probability, 3)
    assert full == 0  # the list is full: what is lower than its last row need not be there


def test_the_segment_graph_has_one_node_of_our_domain_and_its_meaning(folder: Path) -> None:
    model = onnx.load(str(folder / "segment.onnx"))
    ours = [node for node in model.graph.node if node.domain == DOMAIN]
    assert [node.op_type for node in ours] == ["AffineAlign"]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in ours[0].attribute}
    assert attributes == {"size": 64, "plugin_namespace": b"pose2seg", "plugin_version": b"1"}
    assert [(f.domain, f.name, list(f.attribute)) for f in model.functions] == [(DOMAIN, "AffineAlign", ["size"])]
    assert {node.domain for node in model.functions[0].node} <= {"", "ai.onnx"}
    assert DOMAIN in {opset.domain for opset in model.opset_import}
    assert not any(node.op_type == "GridSample" for node in model.graph.node)  # it is inside the function only
    assert not onnx.load(str(folder / "keypoints.onnx")).functions


def test_files_tell_nothing_about_the_machine_they_were_made_on(folder: Path) -> None:
    for name in ("keypoints.onnx", "segment.onnx"):
        content = (folder / name).read_bytes()
        for trace in (b"site-packages", b"/training/", str(Path.home()).encode() + b"/", b"Traceback"):
            assert trace not in content, f"{name}: {trace!r}"


def test_people_of_two_pictures_in_one_call(network: LiveNetwork, folder: Path) -> None:
    """roi_image sends each window to its own picture; people alone and together get the same mask."""
    engine = open_engine(folder / "segment.onnx", engine="onnx")
    rng = np.random.default_rng(1)
    features = rng.normal(size=(2, TINY_MODEL.feature_channels, 24, 40)).astype(np.float32)
    window = np.array([[0.4, 0.1, 3], [-0.1, 0.4, 5]], np.float32)
    pose = np.concatenate((rng.uniform(0, 64, (17, 2)), np.full((17, 1), 2)), -1).astype(np.float32)
    feeds = {
        "features": features,
        "feature_from_roi": np.stack([window] * 3),
        "roi_image": np.array([1, 0, 1], np.int32),
        "roi_keypoints": np.stack([pose] * 3),
    }
    together = engine.run(feeds)["probabilities"]
    np.testing.assert_allclose(together[0], together[2], atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3
    for person, image in enumerate((1, 0, 1)):
        alone = engine.run(
            {
                "features": features[image : image + 1],
                "feature_from_roi": window[None],
                "roi_image": np.zeros(1, np.int32),
                "roi_keypoints": pose[None],
            }
        )["probabilities"]
        np.testing.assert_allclose(together[person], alone[0], atol=1e-4)


class OnlyAffineAlign(nn.Module):
    def forward(self, features: torch.Tensor, feature_from_roi: torch.Tensor, roi_image: torch.Tensor) -> torch.Tensor:
        return affine_align(features, feature_from_roi, roi_image, 12)


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph that is the AffineAlign node alone, so that its function body can be fed with anything."""
    batch, people, rows, columns = (torch.export.Dim(name, min=1, max=64) for name in ("B", "N", "h", "w"))
    example = (torch.randn(2, 3, 8, 10), torch.randn(3, 2, 3), torch.tensor([0, 1, 1], dtype=torch.int32))
    model = export_onnx._export(
        OnlyAffineAlign(),
        example,
        ["features", "feature_from_roi", "roi_image"],
        ["aligned"],
        ({0: batch, 2: rows, 3: columns}, {0: people}, {0: people}),
    )
    path = tmp_path_factory.mktemp("sampler") / "affine_align.onnx"
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("extent", [(2, 2), (9, 5), (30, 41)])
@pytest.mark.parametrize("people", [1, 6])
def test_the_function_body_is_the_kernel(sampler: Path, extent: tuple[int, int], people: int) -> None:
    rng = np.random.default_rng(people)
    features = rng.uniform(-1, 1, (3, 3, *extent)).astype(np.float32)
    matrices = rng.normal(0, 1, (people, 2, 3)).astype(np.float32)
    matrices[:, :, 2] *= max(extent)
    images = rng.integers(0, 3, people).astype(np.int32)
    feeds = {"features": features, "feature_from_roi": matrices, "roi_image": images}
    aligned = open_engine(sampler, engine="onnx").run(feeds)["aligned"]
    np.testing.assert_allclose(aligned, affine_align_reference(features, matrices, images, 12), **GRID_SAMPLE)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30, -1e30])
@pytest.mark.parametrize("where", [(0, 0), (1, 1), (0, 2), (1, 2)])
def test_broken_matrices_sample_zeros_and_nothing_else_changes(
    sampler: Path, bad: float, where: tuple[int, int]
) -> None:
    features = np.ones((2, 3, 6, 7), np.float32)
    matrices = np.repeat(np.array([[[0.3, 0, 1], [0, 0.3, 1]]], np.float32), 3, 0)
    images = np.array([0, 1, 1], np.int32)
    engine = open_engine(sampler, engine="onnx")
    feeds = {"features": features, "feature_from_roi": matrices, "roi_image": images}
    expected = engine.run(feeds)["aligned"]
    assert expected.any()
    broken = matrices.copy()
    broken[1][where] = bad
    aligned = engine.run({**feeds, "feature_from_roi": broken})["aligned"]
    np.testing.assert_allclose(aligned, affine_align_reference(features, broken, images, 12), **GRID_SAMPLE)
    np.testing.assert_array_equal(aligned[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("what", ["no checkpoint", "no figures"])
def test_the_command_says_what_it_lacks(checkpoint: Path, tmp_path: Path, capsys, what: str) -> None:
    start = checkpoint if what == "no figures" else tmp_path / "step-1"
    figures = f"dev={tmp_path / 'none.json'}"
    assert main(["--checkpoint", str(start), "--output", str(tmp_path / "out"), "--evaluation", figures]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and len(error.splitlines()) == 1
    assert ("state.json" if what == "no checkpoint" else "none.json") in error
    assert not (tmp_path / "out").exists()


def test_a_graph_that_lost_its_function_is_caught(network: LiveNetwork, tmp_path: Path, folder: Path) -> None:
    model = export_segment(network)
    del model.functions[:]
    onnx.save(model, str(tmp_path / "segment.onnx"))
    with pytest.raises(EngineLoadError, match="AffineAlign"):
        compare(network, folder / "keypoints.onnx", tmp_path / "segment.onnx", sizes=((64, 64),), people=(1,))
