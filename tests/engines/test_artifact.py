"""Model folders: what is written reads back, and whatever is wrong with a foreign folder is said in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from engines.artifact import (
    GRAPHS,
    KEYPOINT_COUNT,
    MANIFEST_NAME,
    default_artifact,
    load_artifact,
    open_graph,
    write_artifact,
)
from engines.engine import ArtifactError, EngineLoadError, EngineOptions
from tests.engines.graphs import add_graph, features_graph, keypoints_graph, segment_graph

GRAPH_FILES = {"keypoints": keypoints_graph(), "segment": segment_graph()}


def manifest(**changes: Any) -> dict[str, Any]:
    templates = np.full((2, KEYPOINT_COUNT, 3), 0.5, np.float32)
    templates[1, 3] = (0.1, 0.9, 2.0)
    fields: dict[str, Any] = {
        "family": "live",
        "long_side": 448,
        "input_multiple": 32,
        "feature_from_input": np.array([[0.25, 0, -0.375], [0, 0.25, -0.375]]),
        "roi_size": 64,
        "templates": templates,
        "person_threshold": np.float32(0.3),
        "joint_threshold": 0.1,
        "decode": {"spread": 0.3},
        "trained_on": ["set a", "set b"],
        "measured": {"mask": {"AP": np.float64(0.25), "people": 3}},
        "provenance": {"derived_from": "nothing"},
    }
    return {**fields, **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_artifact(tmp_path / "model", manifest(), GRAPH_FILES)
    return tmp_path / "model"


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / MANIFEST_NAME
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_round_trip(tmp_path: Path) -> None:
    written = write_artifact(tmp_path / "deep" / "model", manifest(), GRAPH_FILES)
    read = load_artifact(str(tmp_path / "deep" / "model"))
    for artifact in (written, read):
        assert artifact.family == "live"
        assert (artifact.long_side, artifact.input_multiple, artifact.roi_size) == (448, 32, 64)
        assert artifact.person_threshold == 0.3
        assert artifact.joint_threshold == 0.1
        assert artifact.decode == {"spread": 0.3}
        assert artifact.trained_on == ("set a", "set b")
        assert artifact.measured == {"mask": {"AP": 0.25, "people": 3}}
        assert artifact.provenance == {"derived_from": "nothing"}
        assert artifact.feature_from_input.dtype == artifact.templates.dtype == np.float32
        np.testing.assert_array_equal(artifact.feature_from_input, [[0.25, 0, -0.375], [0, 0.25, -0.375]])
        np.testing.assert_array_equal(artifact.templates, manifest()["templates"])
        assert artifact.graph_path("keypoints").read_bytes() == GRAPH_FILES["keypoints"]
        assert artifact.segment_path.read_bytes() == GRAPH_FILES["segment"]


def test_masks_may_depend_on_neighbours(tmp_path: Path) -> None:
    for neighbours in (True, False):
        write_artifact(tmp_path / "model", manifest(neighbours=neighbours), GRAPH_FILES)
        assert load_artifact(tmp_path / "model").neighbours is neighbours
    assert not write_artifact(tmp_path / "model", manifest(), GRAPH_FILES).neighbours


def test_arrays_are_read_only(folder: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        load_artifact(folder).templates[0, 0, 0] = 1


def test_graphs_may_be_given_as_files(tmp_path: Path) -> None:
    sources = {}
    for name, content in GRAPH_FILES.items():
        sources[name] = tmp_path / f"from_{name}"
        sources[name].write_bytes(content)
    artifact = write_artifact(tmp_path / "model", manifest(), sources)
    assert artifact.segment_path.read_bytes() == GRAPH_FILES["segment"]


def test_writing_again_replaces_and_leaves_no_rest(folder: Path) -> None:
    write_artifact(folder, manifest(long_side=512), {**GRAPH_FILES, "segment": add_graph()})
    assert load_artifact(folder).long_side == 512
    assert sorted(path.name for path in folder.iterdir()) == ["keypoints.onnx", "model.json", "segment.onnx"]


def test_manifest_is_readable_text(folder: Path) -> None:
    lines = (folder / MANIFEST_NAME).read_text().splitlines()
    assert max(map(len, lines)) < 120
    assert "  [0.25, 0.0, -0.375]," in lines
    assert len(lines) < 120


@given(
    st.lists(st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3), min_size=17, max_size=17),
    st.floats(0, 1),
    st.integers(2, 64),
)
def test_numbers_survive_exactly(
    tmp_path_factory: pytest.TempPathFactory, joints: Any, threshold: float, side: int
) -> None:
    template = np.array([joints], np.float32)
    template[..., 2] = np.abs(template[..., 2])
    written = manifest(templates=template, joint_threshold=threshold, roi_size=side * 8)
    artifact = write_artifact(tmp_path_factory.mktemp("artifact"), written, GRAPH_FILES)
    np.testing.assert_array_equal(artifact.templates, template)
    assert artifact.joint_threshold == threshold
    assert artifact.roi_size == side * 8


def test_folder_missing_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"expected a model folder with model\.json, found nothing"):
        load_artifact(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="found a file"):
        load_artifact(tmp_path / "file")


def test_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"model\.json: expected a file, found nothing: point --model at"):
        load_artifact(tmp_path)


@pytest.mark.parametrize("name", ["keypoints.onnx", "segment.onnx"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=rf"{name}: expected a file, found nothing: export the model again"):
        load_artifact(folder)


@pytest.mark.parametrize("name", ["keypoints.onnx", "segment.onnx"])
def test_one_changed_bit(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name}: expected SHA-256 [0-9a-f]{{64}}, got [0-9a-f]{{64}}"):
        load_artifact(folder)


def test_truncated_file(folder: Path) -> None:
    path = folder / "segment.onnx"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match=f"expected {len(whole)} bytes, got {len(whole) - 1}; the file is damaged"):
        load_artifact(folder)


@pytest.mark.parametrize(
    "name", ["../segment.onnx", "/etc/passwd", "a/b.onnx", "..", "", ".", "a\\b", "x\n", "-", "é", 7, None]
)
def test_file_name_stays_in_the_folder(folder: Path, name: Any) -> None:
    edit(folder, lambda document: document["files"]["segment"].update(name=name))
    with pytest.raises(ArtifactError, match=r"'files\.segment\.name' to be a plain file name inside the folder"):
        load_artifact(folder)


def test_link_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "segment.onnx").rename(tmp_path / "elsewhere.onnx")
    (folder / "segment.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(ArtifactError, match="expected a file inside the model folder, got a link to"):
        load_artifact(folder)


@pytest.mark.parametrize("name", [MANIFEST_NAME, "segment.onnx"])
def test_pipe_in_place_of_a_file_does_not_hang(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ArtifactError, match="expected a plain file, got a folder or a device"):
        load_artifact(folder)


def test_both_graphs_in_one_file(folder: Path) -> None:
    edit(folder, lambda document: document["files"].update(segment=document["files"]["keypoints"]))
    with pytest.raises(ArtifactError, match="expected a file of its own for each graph"):
        load_artifact(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a JSON manifest, got something else"),
        (b"{", "expected a JSON manifest"),
        (b"\xff\xfe", "expected a JSON manifest"),
        (b"[]", "expected a JSON object, got a list"),
        (b"null", "expected a JSON object, got null"),
        (b'{"schema": NaN}', "NaN is not a JSON number"),
        (b'{"schema": 1e999}', "1e999 is too large for a number"),
        (b'{"schema": 1, "schema": 2}', "a field appears twice"),
        (b"[" * 200_000, "expected a JSON manifest"),
        (b'{"schema": ' + b"9" * 10_000 + b"}", "expected a JSON manifest"),
        (b"{}", "expected a field 'schema', it is missing"),
        (b'{"schema": "other"}', "expected 'schema' to be 'pose2seg-live/artifact', got 'other'"),
        (b" " * ((1 << 20) + 1), "expected at most 1048576 bytes, got 1048577"),
    ],
)
def test_manifest_that_is_none(folder: Path, content: bytes, message: str) -> None:
    (folder / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        load_artifact(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", 2, r"'version' to be 1 \(a newer folder needs a newer pose2seg-live\), got 2"),
        ("version", True, "'version' to be 1"),
        ("surprise", 1, r"expected only the fields .*, got \['surprise'\]"),
        ("family", "dead", r"'family' to be one of \['live', 'paper'\], got 'dead'"),
        ("family", ["live"], "'family' to be text"),
        ("pixel_convention", "corners", "'pixel_convention' to be"),
        ("input_multiple", 0, "'input_multiple' to be a whole number from 1 to 256, got 0"),
        ("input_multiple", True, "'input_multiple' to be a whole number"),
        ("long_side", 448.0, "'long_side' to be a whole number from 32 to 8192"),
        ("long_side", 10**30, "'long_side' to be a whole number"),
        ("roi_size", 1_000_000, "'roi_size' to be a whole number from 8 to 512"),
        ("feature_from_input", [[1, 0, 0]], r"'feature_from_input' to be finite numbers in lists of shape \[2, 3\]"),
        ("feature_from_input", [[1, 0, 0], [1, 0, 10**400]], "'feature_from_input' to be finite numbers"),
        ("feature_from_input", [[1, 0, 0], [1, 0, 1e300]], "'feature_from_input' to be finite numbers"),
        ("feature_from_input", [[1, 0, 0], [1, 0, "0"]], "'feature_from_input' to be finite numbers"),
        ("feature_from_input", [[1, 2, 0], [2, 4, 0]], "'feature_from_input' to be invertible"),
        ("templates", [], "'templates' to be finite numbers in lists of shape"),
        ("templates", [[[0, 0, 1]] * 16], r"lists of shape \['any', 17, 3\]"),
        ("templates", [[[0, 0, 1]] * 17] * 65, "'templates' to be at most 64"),
        ("templates", [[[0, 0, -1]] * 17], "with third values >= 0"),
        ("person_threshold", 1.5, "'person_threshold' to be a number from 0.0 to 1.0, got 1.5"),
        ("joint_threshold", None, "'joint_threshold' to be a number"),
        ("decode", {"a": "b"}, "'decode' to hold at most 64 finite numbers"),
        ("decode", [], "'decode' to be a JSON object"),
        ("neighbours", 1, "'neighbours' to be true or false"),
        ("neighbours", None, "'neighbours' to be true or false"),
        ("trained_on", "everything", "'trained_on' to be a list of names"),
        ("measured", 3, "'measured' to be a JSON object"),
        ("provenance", None, "'provenance' to be a JSON object"),
        ("files", {}, r"'files' to name exactly the graphs \['keypoints', 'segment'\]"),
        ("files", {graph: {} for graph in GRAPHS}, r"'files\.keypoints' to have name, bytes and sha256"),
    ],
)
def test_field_of_wrong_type_or_range(folder: Path, field: str, value: Any, message: str) -> None:
    edit(folder, lambda document: document.update({field: value}))
    with pytest.raises(ArtifactError, match=message) as caught:
        load_artifact(folder)
    assert len(str(caught.value)) < 1000  # a hostile value is cut, not printed whole
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bytes", 0, r"'files\.segment\.bytes' to be from 1 to"),
        ("bytes", 1 << 40, r"'files\.segment\.bytes' to be from 1 to"),
        ("bytes", "12", r"'files\.segment\.bytes' to be"),
        ("sha256", "0" * 63, "to be 64 hexadecimal digits"),
        ("sha256", 5, "to be 64 hexadecimal digits"),
        ("url", "x", "to have name, bytes and sha256"),
    ],
)
def test_file_entry(folder: Path, key: str, value: Any, message: str) -> None:
    edit(folder, lambda document: document["files"]["segment"].update({key: value}))
    with pytest.raises(ArtifactError, match=message):
        load_artifact(folder)


@pytest.mark.parametrize("field", sorted(manifest()))
def test_field_missing(folder: Path, field: str) -> None:
    edit(folder, lambda document: document.pop(field))
    with pytest.raises(ArtifactError, match=f"expected a field '{field}', it is missing"):
        load_artifact(folder)


@given(st.binary(max_size=300))
def test_any_bytes_as_manifest_give_an_artifact_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(ArtifactError):
        load_artifact(folder)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(["templates", "feature_from_input", "files", "decode", "long_side", "family"]), json_values)
def test_any_json_in_a_field_loads_or_gives_an_artifact_error(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: Any
) -> None:
    folder = tmp_path_factory.mktemp("any")
    write_artifact(folder, manifest(), GRAPH_FILES)
    edit(folder, lambda document: document.update({field: value}))
    try:
        artifact = load_artifact(folder)
    except ArtifactError:
        return
    assert field in {"decode", "long_side"}  # the only ones that random JSON can satisfy
    assert artifact.folder == folder


def test_refused_manifest_leaves_the_old_folder_alone(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ArtifactError, match="'long_side'"):
        write_artifact(folder, manifest(long_side=-1), {**GRAPH_FILES, "segment": add_graph()})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_writing_refuses_what_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not fit into JSON"):
        write_artifact(tmp_path, manifest(measured={"AP": float("nan")}), GRAPH_FILES)
    with pytest.raises(ArtifactError, match="does not fit into JSON"):
        write_artifact(tmp_path, manifest(provenance={"object": object()}), GRAPH_FILES)


def test_writing_wants_both_graphs(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"expected the graphs \['keypoints', 'segment'\], got \['keypoints'\]"):
        write_artifact(tmp_path, manifest(), {"keypoints": b"x"})


def test_writing_where_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "keypoints.onnx").mkdir()
    with pytest.raises(ArtifactError, match=r"keypoints\.onnx: cannot be written"):
        write_artifact(tmp_path, manifest(), GRAPH_FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keypoints.onnx"]


def test_open_graph_runs(folder: Path) -> None:
    artifact = load_artifact(folder)
    image = np.full((1, 32, 64, 3), 9, np.uint8)
    features = open_graph(artifact, "keypoints", options=EngineOptions(threads=1)).run({"image": image})["features"]
    assert features.shape == (1, 3, 32, 64)
    feeds = {
        "features": features,
        "feature_from_roi": np.zeros((2, 2, 3), np.float32),
        "roi_image": np.zeros(2, np.int32),
        "roi_keypoints": np.full((2, 17, 3), 5, np.float32),
    }
    result = open_graph(artifact, "segment", options=EngineOptions(threads=1)).run(feeds)
    assert result["probabilities"].shape == (2, 4, 4)
    np.testing.assert_array_equal(result["scores"], [5, 5])


@pytest.mark.parametrize(
    ("graph", "content", "message"),
    [
        ("segment", keypoints_graph(), r"segment\.onnx: expected the inputs features float32"),
        ("segment", add_graph(), r"got left float32\[N, 3\]"),
        ("keypoints", keypoints_graph(score_kind=TensorProto.DOUBLE), "expected the outputs person_scores float32"),
        ("keypoints", keypoints_graph(features_name="maps"), "expected the outputs .*features float32"),
    ],
)
def test_graph_of_another_program(tmp_path: Path, graph: str, content: bytes, message: str) -> None:
    artifact = write_artifact(tmp_path, manifest(), {**GRAPH_FILES, graph: content})
    with pytest.raises(ArtifactError, match=message):
        open_graph(artifact, graph)


def test_right_hash_but_no_graph(tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path, manifest(), {**GRAPH_FILES, "keypoints": b"no graph at all"})
    with pytest.raises(EngineLoadError, match="cannot load this graph"):
        open_graph(artifact, "keypoints")


def test_unknown_graph(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"graph must be one of \['keypoints', 'features', 'segment'\], got 'masks'"):
        open_graph(load_artifact(folder), "masks")


def test_a_folder_of_the_family_paper(tmp_path: Path) -> None:
    files = {"features": features_graph(), "segment": segment_graph()}
    artifact = write_artifact(tmp_path, manifest(family="paper"), files)
    assert artifact.graphs == ("features", "segment")
    assert artifact.keypoints_path is None and artifact.features_path == tmp_path / "features.onnx"
    features = open_graph(artifact, "features").run({"image": np.full((1, 32, 64, 3), 9, np.uint8)})["features"]
    assert features.shape == (1, 3, 32, 64)
    open_graph(artifact, "segment").close()
    with pytest.raises(
        ArtifactError, match=r"'paper' has the graphs .*, not 'keypoints'; its poses come from elsewhere"
    ):
        open_graph(artifact, "keypoints")


def test_families_do_not_mix(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"expected the graphs \['features', 'segment'\], got \['keypoints', 'seg"):
        write_artifact(tmp_path / "mixed", manifest(family="paper"), GRAPH_FILES)
    edit(folder, lambda document: document.update(family="paper"))
    with pytest.raises(ArtifactError, match=r"'files' to name exactly the graphs \['features', 'segment'\]"):
        load_artifact(folder)


def test_default_artifact_lies_in_the_package() -> None:
    assert default_artifact().parts[-3:] == ("engines", "artifacts", "live")
    assert default_artifact().is_absolute()
