"""The exported repository: its configs against Triton's own schema, its graphs in ONNX Runtime as Triton loads them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format as protobuf_text

from engines import ArtifactError, default_artifact, load_artifact
from engines.triton_repository import KEYPOINTS, SEGMENT, TritonOptions, export_triton
from pipeline.engines_command import main

ONNX_TYPES = {"tensor(float)": "TYPE_FP32", "tensor(uint8)": "TYPE_UINT8", "tensor(int32)": "TYPE_INT32"}
NUMPY_TYPES = {"TYPE_FP32": np.float32, "TYPE_UINT8": np.uint8, "TYPE_INT32": np.int32}


@pytest.fixture(scope="module")
def schema():
    """Triton's messages, from the file that its client ships; importing the client itself would need gRPC."""
    package = importlib.util.find_spec("tritonclient")
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("triton_model_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_config(schema, folder: Path):
    config = schema.ModelConfig()
    protobuf_text.Parse((folder / "config.pbtxt").read_text(), config)
    return config


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("triton") / "models"
    options = TritonOptions(max_batch=4, instances=2, threads=1)
    export_triton(load_artifact(default_artifact()), out, options)
    return out


def session_of(repository: Path, name: str):
    """As Triton's backend: the file alone, nothing registered."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        str(repository / name / "1" / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize("name", [KEYPOINTS, SEGMENT])
def test_config_fits_the_schema_and_the_graph(schema, repository, name) -> None:
    config = read_config(schema, repository / name)
    assert config.name == name
    assert config.backend == "onnxruntime"
    batched = config.max_batch_size > 0
    session = session_of(repository, name)
    for described, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [tensor.name for tensor in described] == [node.name for node in real]
        for tensor, node in zip(described, real, strict=True):
            assert schema.DataType.Name(tensor.data_type) == ONNX_TYPES[node.type]
            shape = [size if isinstance(size, int) else -1 for size in node.shape]
            assert list(tensor.dims) == (shape[1:] if batched else shape)
            if batched:
                assert shape[0] == -1
    (group,) = config.instance_group
    assert (group.count, schema.ModelInstanceGroup.Kind.Name(group.kind)) == (2, "KIND_CPU")
    assert config.parameters["intra_op_thread_count"].string_value == "1"


def test_images_share_calls_and_people_do_not(schema, repository) -> None:
    keypoints = read_config(schema, repository / KEYPOINTS)
    assert keypoints.max_batch_size == 4
    assert keypoints.HasField("dynamic_batching")
    assert keypoints.dynamic_batching.max_queue_delay_microseconds == 2000
    segment = read_config(schema, repository / SEGMENT)
    assert segment.max_batch_size == 0
    assert not segment.HasField("dynamic_batching")


@pytest.mark.parametrize("name", [KEYPOINTS, SEGMENT])
def test_warm_up_calls_run(schema, repository, name) -> None:
    config = read_config(schema, repository / name)
    session = session_of(repository, name)
    assert [warm.batch_size for warm in config.model_warmup] == ([1, 4] if name == KEYPOINTS else [0])
    for warm in config.model_warmup:
        feeds = {}
        for key, tensor in warm.inputs.items():
            assert tensor.zero_data
            shape = [warm.batch_size, *tensor.dims] if warm.batch_size else list(tensor.dims)
            feeds[key] = np.zeros(shape, NUMPY_TYPES[schema.DataType.Name(tensor.data_type)])
        assert set(feeds) == {node.name for node in session.get_inputs()}
        outputs = session.run(None, feeds)
        assert len(outputs) == len(config.output)
        for array, tensor in zip(outputs, config.output, strict=True):
            real = array.shape[1:] if warm.batch_size else array.shape
            assert all(said in {-1, size} for said, size in zip(tensor.dims, real, strict=True))


def test_files_are_those_of_the_model(repository) -> None:
    folder = default_artifact()
    assert (repository / SEGMENT / "1" / "model.onnx").read_bytes() == (folder / "segment.onnx").read_bytes()
    assert json.loads((repository / "model.json").read_text()) == json.loads((folder / "model.json").read_text())


def test_on_gpus_with_tensorrt(schema, tmp_path) -> None:
    options = TritonOptions(gpu=True, tensorrt=True, instances=3, max_batch=1)
    export_triton(load_artifact(default_artifact()), tmp_path / "out", options)
    config = read_config(schema, tmp_path / "out" / KEYPOINTS)
    assert schema.ModelInstanceGroup.Kind.Name(config.instance_group[0].kind) == "KIND_GPU"
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == ("tensorrt", {"precision_mode": "FP16"})
    assert not config.parameters
    assert len(config.model_warmup) == 1


def test_what_cannot_be(tmp_path) -> None:
    artifact = load_artifact(default_artifact())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        export_triton(artifact, tmp_path / "full", TritonOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    with pytest.raises(ValueError, match="max_batch must be from 1 to 1024, got 0"):
        TritonOptions(max_batch=0)
    with pytest.raises(ValueError, match="tensorrt needs gpu"):
        TritonOptions(tensorrt=True)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    with pytest.raises(ArtifactError):
        main(["export-triton", "--out", str(tmp_path / "o"), "--model", str(damaged)])


def test_the_command(tmp_path, capsys) -> None:
    from run_stream import main as command

    out = tmp_path / "models"
    assert command(["engines", "export-triton", "--out", str(out), "--instances", "2", "--max-batch", "16"]) == 0
    assert "pose2seg_segment/config.pbtxt" in capsys.readouterr().out.replace("\n", "")
    assert "max_batch_size: 16" in (out / KEYPOINTS / "config.pbtxt").read_text()
    assert command(["engines", "export-triton", "--out", str(out)]) == 5
    assert "not an empty folder" in capsys.readouterr().err
    assert command(["engines", "export-triton", "--out", str(tmp_path / "x"), "--tensorrt"]) == 2
    assert "tensorrt needs gpu" in capsys.readouterr().err
