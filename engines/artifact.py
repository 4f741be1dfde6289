"""The model folder: what crosses from training to serving, and nothing else does.

    live/
      model.json        the manifest: sizes, pixel convention, templates, thresholds, origin, SHA-256 of each file
      keypoints.onnx    image -> people, joint candidates, features
      segment.onnx      features + poses -> one mask per person

The family `paper` finds no poses: they come from elsewhere, and in place of keypoints.onnx its folder holds

      features.onnx     image -> features

A folder may come from anywhere, so the manifest is read as foreign input: sizes are bounded, names stay inside the
folder, numbers are finite, and every file must have the length and SHA-256 that the manifest states.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engines.engine import (
    DEFAULT_OPTIONS,
    Announce,
    ArtifactError,
    Engine,
    EngineOptions,
    TensorSpec,
    announce_in_log,
    open_named,
)
from engines.selection import open_selected
from engines.signatures import DEFAULT_GROUPING, GROUPINGS, KEYPOINT_COUNT, SIGNATURES, signature_of

MANIFEST_NAME: Final = "model.json"
SCHEMA: Final = "pose2seg-live/artifact"
SCHEMA_VERSION: Final = 1
FAMILIES: Final = ("live", "paper")
GRAPHS: Final = ("keypoints", "segment")
"""Graphs of the family `live`, which the pipeline runs."""
GRAPHS_OF: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({"live": GRAPHS, "paper": ("features", "segment")})
"""Graphs of each family."""

_MAX_MANIFEST_BYTES = 1 << 20  # templates and figures need a few kB
_MAX_FILE_BYTES = (1 << 31) - 1  # protobuf, hence one ONNX file, ends at 2 GiB
_MAX_TEMPLATES = 64
_MAX_DECODE_PARAMETERS = 64
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REDO = "export the model again with python -m training.export_onnx, or restore the folder from its source"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Artifact:
    """A checked model folder: every file was there, with the stated SHA-256, when it was loaded.

    Attributes:
        folder: where it lies.
        family: one of `FAMILIES`.
        keypoints_path: the graph of the family `live`; None in the family `paper`. See `graph_path`.
        segment_path: the graph of both families.
        long_side: long side of the network input in px that thresholds and figures belong to.
        input_multiple: both input sides must be multiples of it.
        feature_from_input: (2, 3) float32; input px -> feature px, a property of the network.
        roi_size: side S of the aligned window and of the predicted masks, in ROI px.
        templates: (T, 17, 3) float32; x, y in the unit square, third > 0 where the joint is defined.
        person_threshold, joint_threshold: scores in 0..1 below which a person, a joint is not reported.
        decode: further numbers of the pose decoding, by parameter name; may be empty.
        trained_on: names of the training sets.
        measured: figures of this very model, for people; any JSON.
        provenance: what the weights derive from, for people; any JSON.
        features_path: the graph of the family `paper`; None in the family `live`.
        grouping: how the keypoint graph's tensors become people, one of `GROUPINGS`; says which tensors it gives.
        neighbours: whether a person's mask depends on the picture's other people in the same call of the segment graph,
            too (`kernels.neighbours`).
    """

    folder: Path
    family: str
    keypoints_path: Path | None
    segment_path: Path
    long_side: int
    input_multiple: int
    feature_from_input: NDArray[np.float32]
    roi_size: int
    templates: NDArray[np.float32]
    person_threshold: float
    joint_threshold: float
    decode: Mapping[str, float]
    trained_on: tuple[str, ...]
    measured: Mapping[str, Any]
    provenance: Mapping[str, Any]
    features_path: Path | None = None
    grouping: str = DEFAULT_GROUPING
    neighbours: bool = False

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the graphs of this folder's family."""
        return GRAPHS_OF[self.family]

    def graph_path(self, graph: str) -> Path:
        """File of a graph.

        Raises:
            ArtifactError: the family has no such graph.
        """
        paths = {"keypoints": self.keypoints_path, "features": self.features_path, "segment": self.segment_path}
        path = paths.get(graph)
        if path is None:
            what = "; its poses come from elsewhere: give a model that finds people" * (graph == "keypoints")
            raise ArtifactError(
                f"{self.folder}: a model of the family {self.family!r} has the graphs {list(self.graphs)}, "
                f"not {graph!r}{what}"
            )
        return path


def default_artifact() -> Path:
    """Folder of the model that is installed with the package."""
    return Path(__file__).resolve().parent / "artifacts" / "live"


def load_artifact(folder: str | Path) -> Artifact:
    """Read and check a model folder.

    Args:
        folder: holds `model.json` and the files it names.

    Raises:
        ArtifactError: the folder or a file is missing, the manifest is not one of ours or of another version, a field
            has the wrong type or range, a name points outside the folder, or a file is not the one the manifest states.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise ArtifactError(f"{folder}: expected a model folder with {MANIFEST_NAME}, found {found}")
    manifest_path = folder / MANIFEST_NAME
    _require_plain_file(manifest_path, "point --model at a folder written by python -m training.export_onnx")
    size = manifest_path.stat().st_size
    if size > _MAX_MANIFEST_BYTES:
        raise ArtifactError(f"{manifest_path}: expected at most {_MAX_MANIFEST_BYTES} bytes, got {size}: {_REDO}")
    fields = _Fields(str(manifest_path), _parse_json(manifest_path))
    artifact, files = _read_manifest(folder, fields)
    for path, (expected_bytes, expected_sha256) in files.items():
        _check_file(path, expected_bytes, expected_sha256)
    return artifact


def write_artifact(folder: str | Path, manifest: Mapping[str, Any], files: Mapping[str, Path | bytes]) -> Artifact:
    """Write a model folder, replacing the graphs and manifest it may hold.

    The manifest goes last: a run that dies half-way leaves a folder that `load_artifact` refuses, never a mixed one.

    Args:
        folder: created when missing; files of other names in it stay.
        manifest: the fields of `Artifact` without the folder and the paths: family, long_side, input_multiple,
            feature_from_input, roi_size, templates, person_threshold, joint_threshold, decode, trained_on, measured,
            provenance, and grouping and neighbours where they are not the default. Arrays may be numpy. `schema`,
            `version`, `pixel_convention` and `files` are filled in here.
        files: graph name -> its content or a file to copy; exactly those of the family, see `GRAPHS_OF`.

    Returns:
        The folder, read back through `load_artifact`.

    Raises:
        ArtifactError: a graph is missing, or a field is missing, unknown or out of range.
    """
    folder = Path(folder)
    graphs = GRAPHS_OF.get(str(manifest.get("family")), GRAPHS)  # another family is refused with the other fields
    if set(files) != set(graphs):
        raise ArtifactError(f"{folder}: expected the graphs {list(graphs)}, got {sorted(files)}")
    contents = {
        name: content if isinstance(content, bytes) else content.read_bytes() for name, content in files.items()
    }
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "version": SCHEMA_VERSION,
        "pixel_convention": _PIXEL_CONVENTION,
        **_plain_json(dict(manifest)),
        "files": {
            graph: {
                "name": f"{graph}.onnx",
                "bytes": len(contents[graph]),
                "sha256": hashlib.sha256(contents[graph]).hexdigest(),
            }
            for graph in graphs
        },
    }
    try:
        text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ArtifactError(
            f"{folder}: the manifest does not fit into JSON ({error}): give finite plain values"
        ) from error
    _read_manifest(folder, _Fields(str(folder / MANIFEST_NAME), document))  # refuse before anything is replaced
    folder.mkdir(parents=True, exist_ok=True)
    for graph in graphs:
        _replace_file(folder / f"{graph}.onnx", contents[graph])
    _replace_file(folder / MANIFEST_NAME, _shorten_number_lists(text).encode())
    return load_artifact(folder)


def open_graph(
    artifact: Artifact,
    graph: str,
    *,
    engine: str = "auto",
    options: EngineOptions = DEFAULT_OPTIONS,
    announce: Announce = announce_in_log,
) -> Engine:
    """Open one graph of the folder and check that it takes and gives what serving relies on.

    Args:
        artifact: from `load_artifact`.
        graph: one of `Artifact.graphs`.
        engine, options, announce: see `engines.engine.open_engine`.

    Raises:
        ArtifactError: the family has no such graph, or a tensor is missing or has another type or rank than
            `engines.signatures` says.
        EngineLoadError: the engine cannot load the file.
    """
    return open_graphs(artifact, (graph,), engine=engine, options=options, announce=announce)[graph]


def open_graphs(
    artifact: Artifact,
    graphs: Sequence[str] | None = None,
    *,
    engine: str = "auto",
    options: EngineOptions = DEFAULT_OPTIONS,
    announce: Announce = announce_in_log,
) -> dict[str, Engine]:
    """Open several graphs of the folder with one and the same engine; one log line says which and why.

    Args:
        artifact: from `load_artifact`.
        graphs: of `Artifact.graphs`; all by default.
        engine, options, announce: see `engines.engine.open_engine`.

    Returns:
        Graph name -> engine, in the order asked for.

    Raises:
        ArtifactError, EngineLoadError: as `open_graph`; whatever was open by then is closed.
    """
    graphs = artifact.graphs if graphs is None else graphs
    for graph in graphs:
        if graph not in SIGNATURES:
            raise ValueError(f"graph must be one of {list(SIGNATURES)}, got {graph!r}")
        artifact.graph_path(graph)  # refuses what the family has not

    def open_all(name: str, settled: EngineOptions) -> dict[str, Engine]:
        opened: dict[str, Engine] = {}
        try:
            for graph in graphs:
                opened[graph] = open_named(artifact.graph_path(graph), name, settled, announce=announce)
                _check_signature(artifact.graph_path(graph), graph, artifact.grouping, opened[graph])
        except BaseException:
            for one in opened.values():
                one.close()
            raise
        return opened

    return open_selected(engine, options, open_all, name_of=lambda opened: next(iter(opened.values())).name)


def _check_signature(path: Path, graph: str, grouping: str, opened: Engine) -> None:
    expected_inputs, expected_outputs = signature_of(graph, grouping)
    if {spec.name for spec in opened.inputs} != {spec.name for spec in expected_inputs}:
        raise ArtifactError(_signature_message(path, "inputs", expected_inputs, opened.inputs))
    _require_specs(path, "inputs", expected_inputs, opened.inputs)
    _require_specs(path, "outputs", expected_outputs, opened.outputs)


_PIXEL_CONVENTION = "integer coordinates are pixel centres; points are (x, y)"
_KEYS = frozenset(
    {
        "schema",
        "version",
        "pixel_convention",
        "family",
        "long_side",
        "input_multiple",
        "feature_from_input",
        "roi_size",
        "templates",
        "person_threshold",
        "joint_threshold",
        "decode",
        "trained_on",
        "measured",
        "provenance",
        "files",
        "grouping",
        "neighbours",
    }
)


class _Fields:
    """Typed reading of one parsed JSON object; every complaint names the file and the field."""

    def __init__(self, where: str, document: Any) -> None:
        if not isinstance(document, dict):
            raise ArtifactError(f"{where}: expected a JSON object, got {_kind(document)}: {_REDO}")
        self._where = where
        self._document = document

    def fail(self, expected: str, got: object) -> ArtifactError:
        text = repr(got)
        return ArtifactError(f"{self._where}: expected {expected}, got {text[:80]}{'…' * (len(text) > 80)}: {_REDO}")

    def keys(self) -> set[str]:
        return set(self._document)

    def get(self, key: str) -> Any:
        if key not in self._document:
            raise ArtifactError(f"{self._where}: expected a field {key!r}, it is missing: {_REDO}")
        return self._document[key]

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str):
            raise self.fail(f"{key!r} to be text", value)
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.fail(f"{key!r} to be a whole number from {low} to {high}", value)
        return value

    def number(self, key: str, low: float, high: float) -> float:
        value = self.get(key)
        if not _is_finite_number(value) or not low <= value <= high:
            raise self.fail(f"{key!r} to be a number from {low} to {high}", value)
        return float(value)

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.get(key)
        if not isinstance(value, dict):
            raise self.fail(f"{key!r} to be a JSON object", value)
        return value

    def array(self, key: str, shape: tuple[int | None, ...]) -> NDArray[np.float32]:
        """Nested lists of finite numbers as a read-only array; None in `shape` is any size of at least one."""
        value = self.get(key)
        wanted = f"{key!r} to be finite numbers in lists of shape {['any' if n is None else n for n in shape]}"
        _require_nested(value, shape, lambda got: self.fail(wanted, got))
        try:
            with np.errstate(over="ignore"):  # beyond float32 becomes inf, which is refused below
                array = np.array(value, dtype=np.float64).astype(np.float32)
        except (ValueError, OverflowError) as error:  # ragged where the size is free
            raise self.fail(wanted, value) from error
        if not np.isfinite(array).all():
            raise self.fail(wanted, value)
        array.setflags(write=False)
        return array


def _read_manifest(folder: Path, fields: _Fields) -> tuple[Artifact, dict[Path, tuple[int, str]]]:
    """Check every field; the files themselves are checked by the caller."""
    schema = fields.get("schema")
    if schema != SCHEMA:
        raise fields.fail(f"'schema' to be {SCHEMA!r}", schema)
    version = fields.get("version")
    if isinstance(version, bool) or version != SCHEMA_VERSION:
        raise fields.fail(f"'version' to be {SCHEMA_VERSION} (a newer folder needs a newer pose2seg-live)", version)
    unknown = sorted(fields.keys() - _KEYS)
    if unknown:
        raise fields.fail(f"only the fields {sorted(_KEYS)}", unknown)
    family = fields.text("family")
    if family not in FAMILIES:
        raise fields.fail(f"'family' to be one of {list(FAMILIES)}", family)
    convention = fields.text("pixel_convention")
    if convention != _PIXEL_CONVENTION:
        raise fields.fail(f"'pixel_convention' to be {_PIXEL_CONVENTION!r}", convention)

    input_multiple = fields.integer("input_multiple", 1, 256)
    long_side = fields.integer("long_side", input_multiple, 8192)
    feature_from_input = fields.array("feature_from_input", (2, 3))
    if abs(float(np.linalg.det(feature_from_input[:, :2].astype(np.float64)))) < 1e-9:
        raise fields.fail("'feature_from_input' to be invertible", feature_from_input.tolist())
    templates = fields.array("templates", (None, KEYPOINT_COUNT, 3))
    if len(templates) > _MAX_TEMPLATES or bool((templates[..., 2] < 0).any()):
        raise fields.fail(f"'templates' to be at most {_MAX_TEMPLATES} with third values >= 0", templates.shape)
    trained_on = fields.get("trained_on")
    if not isinstance(trained_on, list) or not all(isinstance(name, str) for name in trained_on):
        raise fields.fail("'trained_on' to be a list of names", trained_on)
    decode = fields.mapping("decode")
    if len(decode) > _MAX_DECODE_PARAMETERS or not all(_is_finite_number(value) for value in decode.values()):
        raise fields.fail(f"'decode' to hold at most {_MAX_DECODE_PARAMETERS} finite numbers", decode)

    grouping = fields.text("grouping") if "grouping" in set(fields.keys()) else DEFAULT_GROUPING
    if grouping not in GROUPINGS:
        raise fields.fail(f"'grouping' to be one of {list(GROUPINGS)}", grouping)
    if family != "live" and grouping != DEFAULT_GROUPING:
        raise fields.fail(f"no 'grouping' in the family {family!r}, which finds nobody", grouping)

    neighbours = "neighbours" in set(fields.keys()) and fields.get("neighbours")
    if not isinstance(neighbours, bool):
        raise fields.fail("'neighbours' to be true or false", neighbours)

    paths, files = _read_file_list(folder, fields, GRAPHS_OF[family])
    artifact = Artifact(
        folder=folder,
        family=family,
        keypoints_path=paths.get("keypoints"),
        segment_path=paths["segment"],
        long_side=long_side,
        input_multiple=input_multiple,
        feature_from_input=feature_from_input,
        roi_size=fields.integer("roi_size", 8, 512),
        templates=templates,
        person_threshold=fields.number("person_threshold", 0.0, 1.0),
        joint_threshold=fields.number("joint_threshold", 0.0, 1.0),
        decode=MappingProxyType({name: float(value) for name, value in decode.items()}),
        trained_on=tuple(trained_on),
        measured=MappingProxyType(fields.mapping("measured")),
        provenance=MappingProxyType(fields.mapping("provenance")),
        features_path=paths.get("features"),
        grouping=grouping,
        neighbours=neighbours,
    )
    return artifact, files


def _read_file_list(
    folder: Path, fields: _Fields, graphs: tuple[str, ...]
) -> tuple[dict[str, Path], dict[Path, tuple[int, str]]]:
    listed = fields.mapping("files")
    if set(listed) != set(graphs):
        raise fields.fail(f"'files' to name exactly the graphs {list(graphs)}", sorted(listed))
    paths: dict[str, Path] = {}
    files: dict[Path, tuple[int, str]] = {}
    for graph in graphs:
        entry = listed[graph]
        if not isinstance(entry, dict) or set(entry) != {"name", "bytes", "sha256"}:
            raise fields.fail(f"'files.{graph}' to have name, bytes and sha256", entry)
        name, size, sha256 = entry["name"], entry["bytes"], entry["sha256"]
        if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
            raise fields.fail(f"'files.{graph}.name' to be a plain file name inside the folder", name)
        if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= _MAX_FILE_BYTES:
            raise fields.fail(f"'files.{graph}.bytes' to be from 1 to {_MAX_FILE_BYTES}", size)
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise fields.fail(f"'files.{graph}.sha256' to be 64 hexadecimal digits", sha256)
        path = folder / name
        if path in files:
            raise fields.fail("a file of its own for each graph", name)
        paths[graph] = path
        files[path] = (size, sha256)
    return paths, files


def _check_file(path: Path, expected_bytes: int, expected_sha256: str) -> None:
    _require_plain_file(path, _REDO)
    if not path.resolve().is_relative_to(path.parent.resolve()):
        raise ArtifactError(f"{path}: expected a file inside the model folder, got a link to {path.resolve()}: {_REDO}")
    size = path.stat().st_size
    if size != expected_bytes:
        raise ArtifactError(f"{path}: expected {expected_bytes} bytes, got {size}; the file is damaged: {_REDO}")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != expected_sha256:
        raise ArtifactError(
            f"{path}: expected SHA-256 {expected_sha256}, got {sha256}; the file was changed after the export: {_REDO}"
        )


def _require_plain_file(path: Path, advice: str) -> None:
    """A pipe or device in place of a file would block the reader for ever."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: expected a file, found nothing: {advice}") from error
    except OSError as error:
        raise ArtifactError(
            f"{path}: cannot be read ({error.strerror}): check the folder and its permissions"
        ) from error
    if not stat.S_ISREG(mode):
        raise ArtifactError(f"{path}: expected a plain file, got a folder or a device: {advice}")


def _parse_json(path: Path) -> Any:
    def refuse_constant(name: str) -> Any:
        raise ValueError(f"{name} is not a JSON number")

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(f"{text[:20]} is too large for a number")
        return number

    def refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) != len(pairs):
            raise ValueError("a field appears twice")
        return document

    try:
        return json.loads(
            path.read_bytes().decode("utf-8"),
            parse_constant=refuse_constant,
            parse_float=finite,
            object_pairs_hook=refuse_repeats,
        )
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}): check its permissions") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ArtifactError(f"{path}: expected a JSON manifest, got something else ({error}): {_REDO}") from error


def _require_nested(value: Any, shape: tuple[int | None, ...], fail: Any) -> None:
    if not shape:
        if not _is_finite_number(value):
            raise fail(value)
        return
    if not isinstance(value, list) or not value or (shape[0] is not None and len(value) != shape[0]):
        raise fail(value)
    for item in value:
        _require_nested(item, shape[1:], fail)


def _is_finite_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:  # an integer too long for a float
        return False


def _kind(value: Any) -> str:
    return {list: "a list", str: "text", type(None): "null"}.get(type(value), type(value).__name__)


def _plain_json(value: Any) -> Any:
    """numpy values and tuples as JSON has them; float32 keeps its short decimal form."""
    if isinstance(value, Mapping):
        return {str(key): _plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_json(item) for item in value]
    if isinstance(value, np.ndarray):
        return [_plain_json(item) for item in value]
    if isinstance(value, np.float32):
        return float(str(value))
    if isinstance(value, np.generic):
        return value.item()
    return value


def _shorten_number_lists(text: str) -> str:
    """Put lists of plain numbers on one line, so that a manifest can be read and compared."""
    return re.sub(r"\[\s*([-+.\deE]+(?:,\s*[-+.\deE]+)*)\s*\]", lambda m: "[" + re.sub(r",\s*", ", ", m[1]) + "]", text)


def _replace_file(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ArtifactError(f"{path}: cannot be written ({error.strerror}): check space and permissions") from error


def _require_specs(path: Path, side: str, expected: tuple[TensorSpec, ...], got: tuple[TensorSpec, ...]) -> None:
    by_name = {spec.name: spec for spec in got}
    for want in expected:
        have = by_name.get(want.name)
        if have is None or len(have.shape) != len(want.shape):
            raise ArtifactError(_signature_message(path, side, expected, got))
        # engines of half precision hand features from graph to graph as they are
        if have.dtype != want.dtype and not (want.name == "features" and have.dtype == np.float16):
            raise ArtifactError(_signature_message(path, side, expected, got))
        for want_size, have_size in zip(want.shape, have.shape, strict=True):
            if isinstance(want_size, int) and isinstance(have_size, int) and want_size != have_size:
                raise ArtifactError(_signature_message(path, side, expected, got))


def _signature_message(path: Path, side: str, expected: tuple[TensorSpec, ...], got: tuple[TensorSpec, ...]) -> str:
    return (
        f"{path}: expected the {side} {'; '.join(map(str, expected))}, got {'; '.join(map(str, got))}: "
        "give a model folder made for this version of pose2seg-live"
    )
