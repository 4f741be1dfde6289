"""A model folder as a model repository of NVIDIA Triton Inference Server: both graphs as ONNX, each with its config.

    OUT/model.json                          the manifest: thresholds, grouping, templates, feature_from_input
    OUT/pose2seg_keypoints/config.pbtxt     image -> people, joint candidates, features
    OUT/pose2seg_keypoints/1/model.onnx
    OUT/pose2seg_segment/config.pbtxt       features and windows -> masks
    OUT/pose2seg_segment/1/model.onnx

The files are those of the model folder, byte for byte. `pose2seg::AffineAlign` in the segment graph carries its meaning
as a local function, which ONNX Runtime expands when it loads the file, in Triton as anywhere.

There is no ensemble: between both graphs people are grouped, named and fitted on the host, which is code and no graph
(`kernels.pose_decoding`, `kernels.pose_fit`), and the number of people is not the number of images.

Source of the format: Triton's model_config.proto and docs/user_guide/model_configuration.md.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from engines.artifact import Artifact
from engines.engine import ArtifactError, TensorSpec
from engines.onnx_engine import declared_tensors

KEYPOINTS: Final = "pose2seg_keypoints"
SEGMENT: Final = "pose2seg_segment"
_TYPES: Final = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8", "int32": "TYPE_INT32"}
_WARM_PEOPLE: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonOptions:
    """How Triton is to run both graphs.

    Attributes:
        max_batch: images that may share a call of the keypoint graph.
        queue_delay_us: how long an image may wait for others.
        instances: copies of each graph that work at the same time, on each GPU or on the CPU.
        gpu: on GPUs; else on the CPU.
        threads: of one call on the CPU; 0 leaves it to ONNX Runtime, which takes all cores for each instance.
        tensorrt: ONNX Runtime hands the graphs to TensorRT on the GPU, in half precision.
    """

    max_batch: int = 8
    queue_delay_us: int = 2000
    instances: int = 1
    gpu: bool = False
    threads: int = 0
    tensorrt: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_batch", 1, 1024),
            ("queue_delay_us", 0, 1_000_000),
            ("instances", 1, 256),
            ("threads", 0, 1024),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} must be from {low} to {high}, got {value}")
        if self.tensorrt and not self.gpu:
            raise ValueError("tensorrt needs gpu")


@dataclass(frozen=True, slots=True)
class _Name:
    """A value of an enumeration, which stands without quotes."""

    text: str


def export_triton(artifact: Artifact, out: Path, options: TritonOptions) -> list[Path]:
    """Write the repository; it is there when it is whole.

    Args:
        artifact: of the family `live`.
        out: folder to make; an empty one is taken.
        options: how Triton is to run it.

    Returns:
        The files.

    Raises:
        ArtifactError: the model has no keypoint graph.
        EngineLoadError: a graph cannot be loaded.
        FileExistsError: there is something in the folder.
        OSError: it cannot be written.
    """
    if artifact.family != "live":
        raise ArtifactError(
            f"{artifact.folder}: expected a model that finds people, got the family {artifact.family!r}"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(17, "exists already, and is not an empty folder", str(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        beside.chmod(0o755)
        for name, graph in ((KEYPOINTS, "keypoints"), (SEGMENT, "segment")):
            path = artifact.graph_path(graph)
            folder = beside / name / "1"
            folder.mkdir(parents=True)
            shutil.copyfile(path, folder / "model.onnx")
            fields = (
                _keypoints_config(path, artifact, options) if graph == "keypoints" else _segment_config(path, options)
            )
            (beside / name / "config.pbtxt").write_text(_HEAD + text_format(fields))
        shutil.copyfile(artifact.folder / "model.json", beside / "model.json")
        if out.exists():
            out.rmdir()
        beside.rename(out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return sorted(path for path in out.rglob("*") if path.is_file())


_HEAD: Final = "# Written by `pose2seg engines export-triton`. Fields: model_config.proto of Triton Inference Server.\n"


def _keypoints_config(path: Path, artifact: Artifact, options: TritonOptions) -> dict[str, Any]:
    inputs, outputs = declared_tensors(path)
    multiple = artifact.input_multiple
    warm = (-(-artifact.long_side * 9 // (16 * multiple)) * multiple, artifact.long_side, 3)
    return {
        "name": KEYPOINTS,
        "backend": "onnxruntime",
        "max_batch_size": options.max_batch,
        "input": [_tensor(spec, batched=True) for spec in inputs],
        "output": [_tensor(spec, batched=True) for spec in outputs],
        # Images of one size share a call; Triton keeps those of other sizes apart.
        "dynamic_batching": {"max_queue_delay_microseconds": options.queue_delay_us},
        **_placement(options),
        "model_warmup": [
            _warm_up(f"{size} images", inputs, {"image": warm}, batch=size) for size in sorted({1, options.max_batch})
        ],
    }


def _segment_config(path: Path, options: TritonOptions) -> dict[str, Any]:
    inputs, outputs = declared_tensors(path)
    channels = next(spec for spec in inputs if spec.name == "features").shape[1]
    shapes: dict[str, Sequence[int | str]] = {
        "features": (1, channels, 36, 64),
        "feature_from_roi": (_WARM_PEOPLE, 2, 3),
        "roi_image": (_WARM_PEOPLE,),
        "roi_keypoints": (_WARM_PEOPLE, 17, 3),
    }
    return {
        "name": SEGMENT,
        "backend": "onnxruntime",
        # Images and people are counted apart, so there is no axis that Triton could batch along: a request holds all
        # people of one or more images.
        "max_batch_size": 0,
        "input": [_tensor(spec, batched=False) for spec in inputs],
        "output": [_tensor(spec, batched=False) for spec in outputs],
        **_placement(options),
        "model_warmup": [_warm_up(f"{_WARM_PEOPLE} people", inputs, shapes, batch=0)],
    }


def _placement(options: TritonOptions) -> dict[str, Any]:
    kind = "KIND_GPU" if options.gpu else "KIND_CPU"
    found: dict[str, Any] = {"instance_group": [{"count": options.instances, "kind": _Name(kind)}]}
    if options.threads and not options.gpu:
        found["parameters"] = {"intra_op_thread_count": str(options.threads)}
    if options.tensorrt:
        accelerator = {"name": "tensorrt", "parameters": {"precision_mode": "FP16"}}
        found["optimization"] = {"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}}
    return found


def _tensor(spec: TensorSpec, *, batched: bool) -> dict[str, Any]:
    shape = spec.shape[1:] if batched else spec.shape
    return {
        "name": spec.name,
        "data_type": _Name(_type_of(spec)),
        "dims": [size if isinstance(size, int) else -1 for size in shape],
    }


def _type_of(spec: TensorSpec) -> str:
    name = np.dtype(spec.dtype).name
    if name not in _TYPES:
        raise ArtifactError(f"tensor {spec.name!r}: expected one of {', '.join(_TYPES)}, got {name}")
    return _TYPES[name]


def _warm_up(
    name: str, inputs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int | str]], *, batch: int
) -> dict[str, Any]:
    """A call of zeros before the first request, so that no client waits for what is made once."""
    content = {
        spec.name: {"data_type": _Name(_type_of(spec)), "dims": list(shapes[spec.name]), "zero_data": True}
        for spec in inputs
    }
    return {"name": name, **({"batch_size": batch} if batch else {}), "inputs": content}


def text_format(fields: Mapping[str, Any], indent: str = "") -> str:
    """A message in protobuf's text format.

    Args:
        fields: name -> number, text, truth value, `_Name`, message, or a list of these. A message under ``inputs`` or
            ``parameters`` is a map.
        indent: of each line.
    """
    lines = []
    for name, value in fields.items():
        if isinstance(value, list) and all(isinstance(entry, int) for entry in value):
            lines.append(f"{indent}{name}: [ {', '.join(map(str, value))} ]")
            continue
        entries = value if isinstance(value, list) else [value]
        if name in {"inputs", "parameters"} and isinstance(value, dict):
            # of a model, a parameter is a message with a text; of an accelerator, it is a text
            wrapped = name == "parameters" and not indent
            entries = [
                {"key": key, "value": {"string_value": entry} if wrapped else entry} for key, entry in value.items()
            ]
        for entry in entries:
            if isinstance(entry, Mapping):
                lines.append(f"{indent}{name} {{\n{text_format(entry, indent + '  ')}{indent}}}")
            else:
                lines.append(f"{indent}{name}: {_scalar(entry)}")
    return "".join(line + "\n" for line in lines)


def _scalar(value: Any) -> str:
    if isinstance(value, _Name):
        return value.text
    return json.dumps(value)
