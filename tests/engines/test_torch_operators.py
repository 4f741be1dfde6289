"""Every operator of the torch engine against ONNX Runtime, with the attributes that are easy to get wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.engine import EngineLoadError, EngineOptions, EngineRunError
from engines.onnx_engine import OnnxEngine
from engines.torch_engine import TorchEngine
from engines.torch_operation import OPERATORS
from tests.tolerances import TORCH_OPERATOR

ON_CPU = EngineOptions(device="cpu", threads=1)
Array = np.ndarray[Any, np.dtype[Any]]


def random(*shape: int, seed: int = 0, low: float = -2.0, high: float = 2.0) -> Array:
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def integers(*shape: int, low: int = -9, high: int = 9, dtype: Any = np.int64) -> Array:
    return np.random.default_rng(1).integers(low, high, shape).astype(dtype)


@dataclass
class Case:
    """One node: inputs that arrive at run time, then inputs that are constants (None: left out), attributes."""

    operator: str
    feeds: list[Array]
    constants: list[Array | None] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    opset: int = 18
    name: str = ""

    def __str__(self) -> str:
        return self.operator + (f"-{self.name}" if self.name else "")


def model_of(case: Case, *, sizes_known: bool = False) -> bytes:
    """A file with this node alone; sizes of its inputs are left open unless they are wanted."""
    inputs, initializers, names = [], [], []
    for index, array in enumerate(case.feeds):
        names.append(f"x{index}")
        shape = [size if sizes_known else f"x{index}_{axis}" for axis, size in enumerate(array.shape)]
        inputs.append(helper.make_tensor_value_info(f"x{index}", helper.np_dtype_to_tensor_dtype(array.dtype), shape))
    for index, constant in enumerate(case.constants):
        names.append("" if constant is None else f"c{index}")
        if constant is not None:
            initializers.append(numpy_helper.from_array(np.asarray(constant), f"c{index}"))
    outputs = [f"y{index}" for index in range(case.outputs)]
    node = helper.make_node(case.operator, names, outputs, name="it", **case.attributes)
    graph = helper.make_graph(
        [node], "test", inputs, [onnx.ValueInfoProto(name=name) for name in outputs], initializers
    )
    opsets = [helper.make_opsetid("", case.opset)]
    inferred = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets, ir_version=9))
    content: bytes = inferred.SerializeToString()
    return content


def both(tmp_path: Path, content: bytes, feeds: dict[str, Array], **options: Any) -> list[tuple[Array, Array]]:
    """Results of ONNX Runtime and of torch, output by output."""
    path = tmp_path / "it.onnx"
    path.write_bytes(content)
    expected = OnnxEngine(path, threads=1).run(feeds)
    engine = TorchEngine(path, EngineOptions(device="cpu", threads=1, **options))
    found = engine.run(feeds)
    engine.close()
    return [(expected[name], found[name]) for name in expected]


POOL = {"kernel_shape": [3, 3]}
CASES = [
    Case("Conv", [random(2, 4, 9, 7)], [random(6, 4, 3, 3), random(6)], {"pads": [1, 1, 1, 1]}),
    Case("Conv", [random(1, 4, 9, 7)], [random(6, 4, 3, 3)], {"pads": [0, 1, 2, 3]}, name="asymmetric"),
    Case("Conv", [random(2, 4, 8, 6)], [random(4, 4, 3, 3)], {"pads": [0, 0, 1, 1], "strides": [2, 2]}, name="stride"),
    Case("Conv", [random(1, 4, 9, 9)], [random(6, 2, 3, 3)], {"group": 2, "dilations": [2, 3], "pads": [2, 3, 2, 3]}),
    Case("Conv", [random(1, 6, 9, 9)], [random(6, 1, 5, 3)], {"group": 6, "strides": [2, 1]}, name="depthwise"),
    Case("Conv", [random(1, 3, 9, 7)], [random(4, 3, 4, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Case("Conv", [random(1, 3, 9, 7)], [random(4, 3, 4, 3)], {"auto_pad": "SAME_LOWER", "strides": [2, 1]}),
    Case("Conv", [random(1, 3, 9, 7)], [random(4, 3, 4, 3)], {"auto_pad": "VALID"}, name="valid"),
    Case("Conv", [random(1, 1, 1, 1)], [random(5, 1, 1, 1)], name="one-px"),
    Case("ConvTranspose", [random(2, 4, 5, 6)], [random(4, 3, 4, 4), random(3)], {"strides": [2, 2], "pads": [1] * 4}),
    Case(
        "ConvTranspose",
        [random(1, 4, 5, 6)],
        [random(4, 3, 3, 3)],
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        name="output-padding",
    ),
    Case("ConvTranspose", [random(1, 4, 5, 6)], [random(4, 3, 3, 3)], {"strides": [2, 2], "pads": [0, 1, 1, 0]}),
    Case("ConvTranspose", [random(1, 4, 5, 6)], [random(4, 2, 3, 3)], {"group": 2, "dilations": [2, 1]}, name="groups"),
    Case("MaxPool", [random(2, 3, 9, 8)], [], {**POOL, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("MaxPool", [random(2, 3, 9, 8)], [], {**POOL, "strides": [2, 2], "ceil_mode": 1}, name="ceil"),
    Case("MaxPool", [random(1, 3, 9, 8)], [], {**POOL, "pads": [0, 0, 2, 1]}, name="asymmetric"),
    Case("MaxPool", [random(1, 3, 9, 9)], [], {**POOL, "dilations": [2, 2], "pads": [1, 1, 1, 1]}, name="dilated"),
    Case("MaxPool", [random(1, 3, 9, 8)], [], {**POOL, "strides": [2, 2], "auto_pad": "SAME_UPPER"}, name="same"),
    Case("GlobalAveragePool", [random(2, 3, 5, 4)]),
    Case(
        "BatchNormalization",
        [random(2, 4, 3, 3)],
        [random(4), random(4), random(4), random(4, low=0.1)],
        {"epsilon": 1e-3, "momentum": 0.9},
    ),
    Case("Gemm", [random(3, 4)], [random(5, 4), random(5)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm", [random(4, 3)], [random(4, 5)], {"transA": 1}, name="no-c"),
    Case("MatMul", [random(2, 3, 4), random(2, 4, 5)]),
    Case("MatMul", [random(2, 3, 4)], [random(4, 5)], name="constant"),
    *(
        Case(name, [random(2, 3, 4), random(3, 1, seed=1)])
        for name in ("Add", "Sub", "Mul", "Div", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min")
    ),
    *(
        Case(name, [integers(2, 3, 4, dtype=np.float32), integers(3, 4, low=-2, high=3, dtype=np.float32)], name="ties")
        for name in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    ),
    *(Case(name, [random(2, 3)], [np.float32(0.7)], name="scalar") for name in ("Add", "Sub", "Mul", "Div", "Greater")),
    *(Case(name, [random(3)], [np.full((1, 1), 0.7, np.float32)], name="rank") for name in ("Add", "Max", "Less")),
    Case("Div", [integers(40)], [np.array(4)], name="integers"),
    Case("Max", [random(3), random(3, seed=1), random(3, seed=2)], name="three"),
    Case("Pow", [random(2, 3)], [np.float32(2)], name="square"),
    Case("Pow", [random(2, 3, low=0.1)], [random(3)]),
    Case("Mod", [integers(40)], [np.array(4)]),
    Case("Mod", [random(9)], [np.float32(0.3)], {"fmod": 1}, name="fmod"),
    *(Case(name, [random(2, 3, 4, 5)]) for name in ("Abs", "Ceil", "Exp", "Floor", "Neg", "Relu", "Sigmoid", "Tanh")),
    *(Case(name, [random(2, 3, 4, 5, low=0.1)]) for name in ("Log", "Reciprocal", "Sqrt")),
    Case("Round", [np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.4999999], np.float32)]),
    Case("Sign", [np.array([-2, 0, 3], np.float32)]),
    Case("IsNaN", [np.array([np.nan, 0, np.inf], np.float32)]),
    Case("Not", [np.array([True, False])]),
    *(
        Case(name, [np.array([True, True, False, False]), np.array([True, False, True, False])])
        for name in ("And", "Or", "Xor")
    ),
    Case("And", [np.array([[True], [False]])], [np.array([True, False])], name="constant"),
    Case("Clip", [random(9)], [np.float32(-1), np.float32(0.5)]),
    Case("Clip", [random(9)], [None, np.float32(0.5)], name="high"),
    Case("Clip", [random(9)], [np.float32(-0.5)], name="low"),
    Case("Clip", [random(9)], name="nothing"),
    Case("Clip", [random(9), np.array(-0.5, np.float32)], [np.float32(0.5)], name="dynamic"),
    Case("Where", [np.array([True, False, True]), random(2, 3), random(2, 3, seed=1)]),
    Case("Where", [np.array([[True], [False]]), random(2, 3)], [np.float32(0)], name="scalar"),
    Case("Where", [np.array([[True], [False]])], [np.float32(1), random(2, 3)], name="constants"),
    Case("Cast", [random(3, 3, low=-300, high=300)], [], {"to": TensorProto.INT64}, name="to-int"),
    Case("Cast", [integers(3, 3, dtype=np.uint8, low=0, high=255)], [], {"to": TensorProto.FLOAT}, name="bytes"),
    Case("Cast", [random(3, 3)], [], {"to": TensorProto.FLOAT}, name="same"),
    Case("CastLike", [integers(3, dtype=np.int32)], [np.float32(1)]),
    Case("Resize", [random(1, 2, 5, 7)], [None, np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}),
    Case(
        "Resize", [random(1, 2, 5, 7)], [None, np.array([1, 1, 1.7, 0.6], np.float32)], {"mode": "linear"}, name="odd"
    ),
    Case("Resize", [random(1, 2, 5, 7)], [None, None, np.array([1, 2, 11, 3])], {"mode": "linear"}, name="sizes"),
    Case(
        "Resize",
        [random(1, 2, 5, 7)],
        [None, None, np.array([1, 2, 9, 14])],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        name="corners",
    ),
    Case(
        "Resize",
        [random(1, 2, 5, 7)],
        [None, np.array([1, 1, 2, 3], np.float32)],
        {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
        name="pytorch",
    ),
    Case("Resize", [random(1, 2, 5, 7)], [None, np.array([3, 2], np.float32)], {"mode": "linear", "axes": [2, 3]}),
    Case("Resize", [random(1, 2, 5, 7)], [None, np.array([1, 1, 1, 1], np.float32)], {"mode": "linear"}, name="same"),
    *(
        Case(
            "Resize",
            [random(1, 2, 5, 7)],
            [None, np.array([1, 1, *scales], np.float32)],
            {"mode": "nearest", "coordinate_transformation_mode": transform, "nearest_mode": rounding},
            name=f"{transform}-{rounding}-{scales}",
        )
        for transform in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        for scales in ((2, 2), (2.6, 0.5))
    ),
    Case("DepthToSpace", [random(2, 12, 3, 4)], [], {"blocksize": 2, "mode": "CRD"}),
    Case("DepthToSpace", [random(2, 12, 3, 4)], [], {"blocksize": 2}, name="dcr"),
    Case("Identity", [random(3)]),
    Case("Shape", [random(2, 3, 4)], [], {"start": -2, "end": 3}),
    Case("Size", [random(2, 3, 4)]),
    Case("Reshape", [random(2, 3, 4)], [np.array([0, -1])]),
    Case("Reshape", [random(2, 3, 4)], [np.array([2, 3, 4])], name="same"),
    Case("Reshape", [random(2, 3, 4)], [np.array([3, 8])], {"allowzero": 1}, name="allowzero"),
    Case("Flatten", [random(2, 3, 4)], [], {"axis": -1}),
    Case("Flatten", [random(2, 3, 4)], [], {"axis": 0}, name="all"),
    Case("Transpose", [random(2, 3, 4)], [], {"perm": [2, 0, 1]}),
    Case("Transpose", [random(2, 3, 4)], name="reversed"),
    Case("Squeeze", [random(2, 1, 4, 1)], [np.array([-1])]),
    Case("Squeeze", [random(2, 1, 4, 1)], name="all"),
    Case("Unsqueeze", [random(2, 3)], [np.array([-1, 0])]),
    Case("Expand", [random(3, 1)], [np.array([2, 1, 4])]),
    Case("Expand", [random(2, 4)], [np.array([1, 1])], name="smaller"),
    Case("Tile", [random(2, 3)], [np.array([2, 3])]),
    Case("Concat", [random(2, 3), random(2, 1)], [random(2, 2)], {"axis": -1}),
    Case("Split", [random(2, 7)], [np.array([3, 4])], {"axis": 1}, outputs=2),
    Case("Split", [random(2, 7)], [], {"axis": -1, "num_outputs": 3}, outputs=3, name="uneven"),
    Case("Slice", [random(5, 6)], [np.array([1, -3]), np.array([np.iinfo(np.int64).max, -1])]),
    Case("Slice", [random(5, 6)], [np.array([-1]), np.array([-99]), np.array([1]), np.array([-1])], name="backwards"),
    Case("Slice", [random(5, 6)], [np.array([4]), np.array([0]), np.array([-2]), np.array([-2])], name="backwards-2"),
    Case("Slice", [random(5, 6)], [np.array([0]), np.array([9]), np.array([1]), np.array([4])], name="steps"),
    Case("Gather", [random(3, 4, 5)], [np.array([[0, -1], [2, 1]])], {"axis": 1}),
    Case("Gather", [random(3, 4, 5)], [np.array(-2)], {"axis": 2}, name="scalar"),
    Case("Gather", [random(3, 4), np.array([[2, -3]], np.int32)], name="dynamic"),
    Case("GatherElements", [random(3, 4)], [np.array([[0, -1], [3, 1]])], {"axis": 1}),
    Case("GatherElements", [random(3, 4), np.array([[0, -1], [2, 1]])], [], {"axis": 0}, name="dynamic"),
    Case("TopK", [random(2, 9)], [np.array([3])], {"axis": 1}, outputs=2),
    Case("TopK", [random(9, 2)], [np.array([4])], {"axis": 0, "largest": 0}, outputs=2, name="smallest"),
    Case("Pad", [random(1, 2, 3, 4)], [np.array([0, 1, 2, 0, 0, 0, 1, 3]), np.float32(7)]),
    Case("Pad", [random(1, 2, 3, 4)], [np.array([0, 0, 2, 1, 0, 0, 1, 3])], {"mode": "edge"}, name="edge"),
    Case("Pad", [random(1, 2, 3, 4)], [np.array([0, 0, 2, 1, 0, 0, 1, 3])], {"mode": "reflect"}, name="reflect"),
    Case("Pad", [random(2, 3)], [np.array([1, 2]), np.float32(0), np.array([-1])], name="axes"),
    *(Case(f"Reduce{name}", [random(2, 3, 4)], [np.array([0, -1])]) for name in ("Max", "Mean", "Min", "Sum")),
    *(Case(f"Reduce{name}", [random(2, 3)], [], {"keepdims": 0}, name="all") for name in ("Mean", "Sum")),
    Case("ReduceSum", [random(2, 3)], [], {"noop_with_empty_axes": 1}, name="nothing"),
    Case("ReduceMax", [random(2, 3)], [], {"axes": [1]}, opset=13, name="old"),
    Case("Softmax", [random(2, 3, 4)], [], {"axis": 1}),
    Case("Softmax", [random(2, 3, 4)], name="last"),
    Case("ArgMax", [random(2, 3, 4)], [], {"axis": -1, "keepdims": 0}),
    Case("QuantizeLinear", [random(4, 50, high=9)], [np.float32(0.031), np.uint8(31)]),
    Case("QuantizeLinear", [random(4, 50)], [random(4, low=0.01, high=0.1), integers(4, dtype=np.int8)], {"axis": 0}),
    Case("QuantizeLinear", [np.array([0.5, 1.5, 2.5, -0.5], np.float32)], [np.float32(1)], name="ties"),
    Case("DequantizeLinear", [integers(4, 9, low=0, high=255, dtype=np.uint8)], [np.float32(0.03), np.uint8(120)]),
    Case("DequantizeLinear", [integers(4, 9, dtype=np.int8)], [random(9), integers(9, dtype=np.int8)], {"axis": -1}),
    Case("DequantizeLinear", [integers(4, dtype=np.int32)], [np.float32(0.01)], name="bias"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_as_onnx_runtime(tmp_path: Path, case: Case) -> None:
    feeds = {f"x{index}": array for index, array in enumerate(case.feeds)}
    without_axes = case.operator == "Squeeze" and not case.constants  # then open sizes leave the rank open
    for expected, found in both(tmp_path, model_of(case, sizes_known=without_axes), feeds):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        np.testing.assert_allclose(found.astype(np.float64), expected.astype(np.float64), **TORCH_OPERATOR)


@pytest.mark.parametrize("case", [case for case in CASES if len(case.feeds) == 1], ids=str)
def test_constants_fold_to_the_same(tmp_path: Path, case: Case) -> None:
    """The same node with its input a constant, too: nothing is left to run."""
    constant = Case(case.operator, [], [*case.feeds, *case.constants], case.attributes, case.outputs, case.opset)
    graph = onnx.load_model_from_string(model_of(constant))
    graph.graph.input.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, [1]))
    content = graph.SerializeToString()
    for expected, found in both(tmp_path, content, {"unused": np.zeros(1, np.float32)}):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found.astype(np.float64), expected.astype(np.float64), **TORCH_OPERATOR)


def test_every_operator_has_a_case() -> None:
    elsewhere = {"pose2seg::AffineAlign", "pose2seg::AlignWithSkeleton", "Constant", "ConstantOfShape", "Range"}
    assert {case.operator for case in CASES} | elsewhere == set(OPERATORS)


def one_node(tmp_path: Path, name: str, case: Case) -> Path:
    path = tmp_path / f"{name}.onnx"
    path.write_bytes(model_of(case, sizes_known=True))
    return path


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case("Elu", [random(3)]), r"the torch engine has no operator Elu: run the graph with --engine onnx"),
        (
            Case("Resize", [random(1, 2, 5, 7)], [None, np.array([1, 1, 2, 2], np.float32)], {"mode": "cubic"}),
            r"Resize 'it': mode='cubic' is not handled by the torch engine",
        ),
        (
            Case(
                "Resize",
                [random(1, 2, 5, 7)],
                [None, np.array([1, 1, 2, 2], np.float32)],
                {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
            ),
            "coordinate_transformation_mode='asymmetric'",
        ),
        (
            Case("Resize", [random(1, 2, 8, 8)], [None, np.array([1, 1, 0.5, 0.5], np.float32)], {"antialias": 1}),
            "antialias=1",
        ),
        (Case("MaxPool", [random(1, 2, 8, 8)], [], POOL, outputs=2), "the output of indices"),
        (Case("MaxPool", [random(1, 2, 8, 8)], [], {**POOL, "storage_order": 1}), "storage_order=1"),
        (Case("MaxPool", [random(1, 2, 8)], [], {"kernel_shape": [3]}), "an input with 3 dimensions"),
        (Case("Reshape", [random(2, 3), np.array([3, 2])]), "input 1 that depends on the picture"),
        (
            Case("ConvTranspose", [random(1, 4, 5, 6)], [random(4, 3, 3, 3)], {"output_shape": [7, 8]}),
            "output_shape is not handled",
        ),
        (Case("Pad", [random(2, 3)], [np.array([1, 0, 1, 0])], {"mode": "edge"}), "mode='edge' on these axes"),
        (Case("ArgMax", [random(2, 3)], [], {"select_last_index": 1}), "select_last_index=1"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_not_handled_is_refused_at_load(tmp_path: Path, case: Case, message: str) -> None:
    with pytest.raises(EngineLoadError, match=message):
        TorchEngine(one_node(tmp_path, case.operator, case), ON_CPU)


def test_unknown_attribute_is_refused(tmp_path: Path) -> None:
    """ONNX's own checker catches this for its operators; for ours nobody else does."""
    path = tmp_path / "align.onnx"
    node = helper.make_node("AffineAlign", ["f", "m", "i"], ["y"], domain="pose2seg", size=4, rotate=1)
    kinds = {"f": (1, [1, 2, 8, 8]), "m": (1, ["N", 2, 3]), "i": (TensorProto.INT32, ["N"])}
    graph = helper.make_graph(
        [node],
        "test",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in kinds.items()],
        [helper.make_tensor_value_info("y", 1, ["N", 2, 4, 4])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("pose2seg", 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
    with pytest.raises(EngineLoadError, match="AffineAlign 'y': attribute 'rotate' is not handled"):
        TorchEngine(path, ON_CPU)


def test_failing_call_names_the_node(tmp_path: Path) -> None:
    engine = TorchEngine(one_node(tmp_path, "pick", Case("Gather", [random(2), np.array([1])], name="it")), ON_CPU)
    with pytest.raises(
        EngineRunError, match=r"pick\.onnx failed on x0 float32\[2\], x1 int64\[1\]: Gather 'it': index"
    ):
        engine.run({"x0": random(2), "x1": np.array([7])})
    assert engine.run({"x0": random(2), "x1": np.array([-1])})["y0"] == random(2)[1]


def test_shapes_that_do_not_fit_name_the_node(tmp_path: Path) -> None:
    path = tmp_path / "add.onnx"
    path.write_bytes(model_of(Case("Add", [random(4), random(4)])))
    with pytest.raises(EngineRunError, match=r"failed on x0 float32\[3\], x1 float32\[4\]: Add 'it'"):
        TorchEngine(path, ON_CPU).run({"x0": random(3), "x1": random(4)})


def test_top_k_of_too_few(tmp_path: Path) -> None:
    path = tmp_path / "best.onnx"
    path.write_bytes(model_of(Case("TopK", [random(9)], [np.array([5])], outputs=2)))
    engine = TorchEngine(path, ON_CPU)
    with pytest.raises(EngineRunError, match="the best 5 of 4: give a larger picture"):
        engine.run({"x0": random(4)})


def test_shape_arithmetic_is_done_beforehand(tmp_path: Path) -> None:
    """From Shape through Range, ConstantOfShape and Expand: what follows from sizes alone leaves no call behind."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["columns"], axis=0),
        helper.make_node("Constant", [], ["zero"], value_int=0),
        helper.make_node("Range", ["zero", "columns", "one"], ["indices"]),
        helper.make_node("Cast", ["indices"], ["ramp"], to=TensorProto.FLOAT),
        helper.make_node("ConstantOfShape", ["shape"], ["half"], value=numpy_helper.from_array(random(1), "v")),
        helper.make_node("Mul", ["half", "ramp"], ["slope"]),
        helper.make_node("Add", ["x", "slope"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", 1, ["A", "B"])],
        [helper.make_tensor_value_info("y", 1, ["A", "B"])],
        [numpy_helper.from_array(np.array(1), "one")],
    )
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    for shape in ((2, 3), (4, 1)):
        ((expected, found),) = both(tmp_path, content, {"x": random(*shape)})
        np.testing.assert_allclose(found, expected, **TORCH_OPERATOR)
    engine = TorchEngine(tmp_path / "it.onnx", ON_CPU)
    engine.run({"x": random(2, 3)})
    (program,) = engine._programs.values()
    assert [step.label for step in program.steps] == ["Add 'y'"]


@pytest.mark.parametrize("name", ["range", "shape"])
def test_a_graph_cannot_ask_for_endless_constants(tmp_path: Path, name: str) -> None:
    many = np.array(1 << 40)
    nodes = {
        "range": [helper.make_node("Range", ["zero", "many", "one"], ["long"])],
        "shape": [
            helper.make_node("ConstantOfShape", ["sizes"], ["wide"]),
            helper.make_node("Neg", ["wide"], ["long"]),
        ],
    }[name]
    kind = TensorProto.INT64 if name == "range" else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", 1, [1])],
        [helper.make_tensor_value_info("long", kind, ["A"])],
        [
            numpy_helper.from_array(array, key)
            for key, array in {"zero": np.array(0), "one": np.array(1), "many": many, "sizes": many[None]}.items()
        ],
    )
    path = tmp_path / "endless.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    )
    with pytest.raises(EngineLoadError, match=r"1099511627776"):
        TorchEngine(path, ON_CPU)


HALF_CASES = [
    Case("Conv", [random(2, 8, 9, 7)], [random(6, 8, 3, 3), random(6)], {"pads": [1, 1, 1, 1]}),
    Case("ConvTranspose", [random(2, 4, 5, 6)], [random(4, 3, 4, 4), random(3)], {"strides": [2, 2], "pads": [1] * 4}),
    Case("Gemm", [random(3, 4)], [random(5, 4), random(5)], {"transB": 1}),
    Case("MatMul", [random(2, 3, 4)], [random(4, 5)]),
]


@pytest.mark.parametrize("case", HALF_CASES, ids=str)
@pytest.mark.parametrize(("precision", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_products_are_half(tmp_path: Path, case: Case, precision: str, bits: int) -> None:
    ((expected, found),) = both(tmp_path, model_of(case), {"x0": case.feeds[0]}, precision=precision)
    assert found.dtype == np.float32
    error = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"{precision}: {error:.2g} of the largest value")
    assert 0 < error < 4 * 2.0**-bits


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "case",
    [
        Case("Sigmoid", [random(9)]),
        Case("TopK", [random(9)], [np.array([9])], outputs=2),
        Case("ReduceSum", [random(999)]),
    ],
    ids=str,
)
def test_probabilities_ranks_and_sums_are_not(tmp_path: Path, case: Case, precision: str) -> None:
    for expected, found in both(tmp_path, model_of(case), {"x0": case.feeds[0]}, precision=precision):
        np.testing.assert_allclose(found, expected, **TORCH_OPERATOR)


@pytest.mark.parametrize(("precision", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_chain_of_products_is_half(tmp_path: Path, precision: str, bits: int) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", 1, ["A", 4, "C", "D"])],
        [helper.make_tensor_value_info("y", 1, ["A", 2, "C", "D"])],
        [numpy_helper.from_array(random(8, 4, 3, 3), "w"), numpy_helper.from_array(random(2, 8, 1, 1), "v")],
    )
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    ((expected, found),) = both(tmp_path, content, {"x": random(1, 4, 9, 9)}, precision=precision)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"{precision}: {error:.2g} of the largest value")
    assert 0 < error < 4 * 2.0**-bits
