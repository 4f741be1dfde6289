"""The OpenVINO engine: the same figures as ONNX Runtime, the same contract, and plain words for what it cannot do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from engines import default_artifact, load_artifact, open_graph
from engines.engine import EngineLoadError, EngineOptions, EngineRunError, TensorSpec, open_engine
from engines.openvino_engine import OpenVinoEngine
from tests.engines.graphs import add_graph

ROOT = Path(__file__).parents[2]
ONE_THREAD = EngineOptions(threads=1)


def _has_bfloat16() -> bool:
    """Asked of the engine, not of a `Core` made for it: there is one in a process."""
    try:
        OpenVinoEngine("add.onnx", EngineOptions(threads=1, precision="bfloat16"), content=add_graph()).close()
    except EngineLoadError:
        return False
    return True


HAS_BFLOAT16 = _has_bfloat16()


@pytest.fixture
def add_path(tmp_path: Path) -> Path:
    path = tmp_path / "add.onnx"
    path.write_bytes(add_graph())
    return path


def ones(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.ones(shape, np.float32)


def segment_feeds(images: int, people: int, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(people, 2, 3)) * np.array([0.4, 0.4, 12.0])
    joints = np.concatenate((rng.uniform(5, 60, (people, 17, 2)), rng.integers(0, 3, (people, 17, 1))), -1)
    return {
        "features": rng.normal(size=(images, 48, 24, 36)).astype(np.float32),
        "feature_from_roi": matrix.astype(np.float32),
        "roi_image": rng.integers(0, images, people).astype(np.int32),
        "roi_keypoints": joints.astype(np.float32),
    }


def test_contract_of_an_engine(add_path: Path) -> None:
    engine = open_engine(add_path, engine="openvino", options=ONE_THREAD)
    f32 = np.dtype(np.float32)
    assert [spec.name for spec in engine.inputs] == ["left", "right"]
    assert engine.inputs[0] == TensorSpec("left", f32, ("N", 3))
    wide = np.arange(30, dtype=np.float32).reshape(5, 6)[::-1, ::2]
    wide.setflags(write=False)
    first = engine.run({"left": wide, "right": wide})["total"]
    engine.run({"left": ones(5, 3), "right": ones(5, 3)})
    np.testing.assert_array_equal(first, 2 * wide)  # the caller owns it: the second call left it alone
    engine.close()
    engine.close()
    with pytest.raises(EngineRunError, match="closed"):
        engine.run({"left": wide, "right": wide})


def test_other_element_types(tmp_path: Path) -> None:
    path = tmp_path / "typed.onnx"
    path.write_bytes(add_graph(kind=TensorProto.INT32))
    three = np.full((1, 3), 3, np.int32)
    np.testing.assert_array_equal(OpenVinoEngine(path).run({"left": three, "right": three})["total"], [[6, 6, 6]])


def test_wrong_calls_are_explained(add_path: Path) -> None:
    engine = OpenVinoEngine(add_path, ONE_THREAD)
    with pytest.raises(EngineRunError, match=r"missing \['right'\]"):
        engine.run({"left": ones(2, 3)})
    with pytest.raises(EngineRunError, match="expected size 3 on axis 1"):
        engine.run({"left": ones(2, 4), "right": ones(2, 4)})
    engine.run({"left": ones(1, 3), "right": ones(1, 3)})


def test_sizes_of_one_name_must_be_equal(add_path: Path) -> None:
    """OpenVINO itself adds 2 rows to 4 without a word."""
    with pytest.raises(EngineRunError, match="N is 4 on axis 0, but N is 2 in input 'left'"):
        OpenVinoEngine(add_path, ONE_THREAD).run({"left": ones(2, 3), "right": ones(4, 3)})


def test_failure_inside_the_runtime_names_graph_and_shapes(add_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OpenVinoEngine(add_path, ONE_THREAD)

    class FailingRequest:  # no graph was found that this library refuses to run
        def infer(self, *_arguments: object, **_options: object) -> None:
            raise RuntimeError("Exception from src/somewhere.cpp:1:\nout of memory\n\n")

    monkeypatch.setattr(engine, "_request", FailingRequest())
    with pytest.raises(EngineRunError, match=r"add\.onnx failed on left .*\[2, 3\], right .*\[2, 3\]: out of memory$"):
        engine.run({"left": ones(2, 3), "right": ones(2, 3)})


def test_what_it_cannot_do_is_refused(add_path: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineLoadError, match="expected device cpu, got cuda:0"):
        OpenVinoEngine(add_path, EngineOptions(device="cuda:0"))
    with pytest.raises(EngineLoadError, match="got precision float16"):
        OpenVinoEngine(add_path, EngineOptions(precision="float16"))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(EngineLoadError, match=r"broken\.onnx: expected an ONNX graph"):
        OpenVinoEngine(broken)


def test_missing_library_is_an_error_with_advice(add_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineLoadError, match="pip install openvino"):
        open_engine(add_path, engine="openvino")


SIGNALS = """
import signal, sys, threading
from engines.engine import EngineOptions
from engines.openvino_engine import OpenVinoEngine

def hear():
    signal.raise_signal(signal.SIGTERM)

def opened():
    return OpenVinoEngine(sys.argv[1], EngineOptions(threads=1))

heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append("heard"))
for order in ((0, 1), (1, 0)):
    engines = opened(), opened()
    hear()
    for index in order:
        engines[index].close()
        hear()
engine = opened()
closing = threading.Thread(target=engine.close)
closing.start()
closing.join()
hear()
print(len(heard))
"""


def test_signals_find_their_handlers_whatever_was_closed_in_any_order_by_any_thread(add_path: Path) -> None:
    """In a process of its own: a signal stack that OpenVINO unmapped would end it with a segmentation fault."""
    command = [sys.executable, "-c", SIGNALS, str(add_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


@pytest.mark.parametrize(("height", "width"), [(32, 96), (96, 160)])
def test_keypoints_are_those_of_onnx_runtime(height: int, width: int) -> None:
    artifact = load_artifact(default_artifact())
    coarse = np.random.default_rng(1).integers(0, 255, (2, height // 16, width // 16, 3), np.uint8)
    image = np.ascontiguousarray(coarse.repeat(16, 1).repeat(16, 2))
    ours = open_graph(artifact, "keypoints", engine="openvino", options=ONE_THREAD).run({"image": image})
    reference = open_graph(artifact, "keypoints", engine="onnx", options=ONE_THREAD).run({"image": image})
    for name in ("person_scores", "features"):
        np.testing.assert_allclose(ours[name], reference[name], atol=1e-4)
    confident = reference["joint_candidates"][..., 2] > 0.01  # peaks of equal height may come in another order
    np.testing.assert_allclose(
        ours["joint_candidates"][confident][:, 2], reference["joint_candidates"][confident][:, 2], atol=1e-4
    )


@pytest.mark.parametrize(("images", "people"), [(1, 1), (2, 3), (3, 7)])
def test_masks_are_those_of_onnx_runtime(images: int, people: int) -> None:
    """Also where windows leave the map, and for a matrix with NaN or infinity, which samples zeros."""
    artifact = load_artifact(default_artifact())
    feeds = segment_feeds(images, people)
    if people > 3:
        feeds["feature_from_roi"][2, 1, 1] = np.nan
        feeds["feature_from_roi"][3, 0, 1] = np.inf
    ours = open_graph(artifact, "segment", engine="openvino", options=ONE_THREAD).run(feeds)
    reference = open_graph(artifact, "segment", engine="onnx", options=ONE_THREAD).run(feeds)
    assert reference["probabilities"].std() > 0.01
    for name in ("probabilities", "scores"):
        np.testing.assert_allclose(ours[name], reference[name], atol=1e-4)


def test_bfloat16_is_taken_where_no_positions_are_worked_out() -> None:
    artifact = load_artifact(default_artifact())
    wanted = EngineOptions(threads=1, precision="bfloat16")
    if not HAS_BFLOAT16:
        with pytest.raises(EngineLoadError, match="use precision float32"):
            open_graph(artifact, "keypoints", engine="openvino", options=wanted)
        return
    keypoints = open_graph(artifact, "keypoints", engine="openvino", options=wanted)
    assert "bfloat16" in keypoints.name
    assert "float32" in OpenVinoEngine(artifact.segment_path, wanted).name
    assert "float32" in open_graph(artifact, "keypoints", engine="openvino", options=ONE_THREAD).name
    image = np.random.default_rng(0).integers(0, 255, (1, 64, 96, 3), np.uint8)
    exact = open_graph(artifact, "keypoints", engine="onnx", options=ONE_THREAD).run({"image": image})["features"]
    difference = np.abs(keypoints.run({"image": image})["features"] - exact)
    assert 0 < difference.mean() < 0.1 * np.abs(exact).mean()
