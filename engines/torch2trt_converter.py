"""torch2trt in place of the ONNX parser: `engines build --converter torch2trt`. Optional; the parser is the usual way.

torch2trt (github.com/NVIDIA-AI-IOT/torch2trt) runs a PyTorch module and adds a TensorRT layer for each function that it
has a converter for. Here an ONNX graph is such a module, built of those functions, and Affine-Align gets a converter of
its own. It was last changed for TensorRT 10; `install_shim` gives it what TensorRT 11 and TensorRT for RTX took away.

Limits, all reported and none worked around: a plan has one size (one picture, `max_people` people, 16:9), inputs are
float32 or int32, and operators without a converter - such as the top-k of keypoint graphs - are refused by name.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from engines.engine import EngineLoadError, EngineOptions
from engines.tensorrt_build import (
    BuiltPlan,
    Progress,
    make_monitor,
    network_flags,
    profile_of,
    require_machine,
)
from engines.tensorrt_library import is_rtx, load_library, logger_of, reason_in, title_of
from engines.tensorrt_plugin import NAME
from kernels.affine_align.torch_op import affine_align as affine_align_op

INSTALL: Final = "pip install --no-build-isolation git+https://github.com/NVIDIA-AI-IOT/torch2trt"
_TORCH_TYPE: Final = {TensorProto.FLOAT: torch.float32, TensorProto.INT32: torch.int32}

Attributes = Mapping[str, Any]


def install_shim(trt: Any) -> None:
    """Make `import tensorrt` give torch2trt a library that still has what it expects of TensorRT 10.

    Does nothing on TensorRT 10. Must come before torch2trt is imported. Values that no longer mean anything are given
    as harmless ones: a network is strongly typed anyway, and INT8 calibrators are never made.
    """
    if not is_rtx(trt) and int(str(trt.__version__).partition(".")[0]) < 11:
        sys.modules["tensorrt"] = trt
        return
    stand_in = types.ModuleType("tensorrt")
    stand_in.__spec__ = ModuleSpec("tensorrt", None)  # torch asks for it of every module that it has rules for
    stand_in.__dict__.update({name: value for name, value in vars(trt).items() if not name.startswith("__")})
    stand_in.__dict__["__version__"] = "11.0" if is_rtx(trt) else trt.__version__  # RTX's 1.x reads as ancient
    flags = trt.NetworkDefinitionCreationFlag
    stand_in.__dict__["NetworkDefinitionCreationFlag"] = types.SimpleNamespace(
        **flags.__members__, EXPLICIT_BATCH=flags.STRONGLY_TYPED
    )
    stand_in.__dict__["IInt8Calibrator"] = type("IInt8Calibrator", (), {})
    stand_in.__dict__["CalibrationAlgoType"] = types.SimpleNamespace(ENTROPY_CALIBRATION=0, ENTROPY_CALIBRATION_2=1)
    if not hasattr(trt.ITensor, "location"):
        trt.ITensor.location = property(lambda _: trt.TensorLocation.DEVICE, _ignored)
    if trt.ITensor.dtype.fset is None:
        trt.ITensor.dtype = property(trt.ITensor.dtype.fget, _ignored)
    sys.modules["tensorrt"] = stand_in


def _ignored(_tensor: Any, _value: Any) -> None:
    """A setter that newer libraries took away, because types follow from the network."""


def load_torch2trt(trt: Any) -> Any:
    """Import torch2trt upon a TensorRT.

    Raises:
        EngineLoadError: not installed, or it does not import.
    """
    before = sys.modules.get("tensorrt")
    install_shim(trt)
    try:
        return importlib.import_module("torch2trt")
    except ModuleNotFoundError as error:
        if error.name != "torch2trt":
            raise EngineLoadError(f"torch2trt cannot be imported ({error}): {INSTALL}") from error
        raise EngineLoadError(f"torch2trt is not installed: {INSTALL}, or leave --converter out") from error
    except Exception as error:  # whatever a library of 2024 meets in newer ones
        raise EngineLoadError(
            f"torch2trt does not import upon {title_of(trt)} ({error}): leave --converter out"
        ) from error
    finally:
        # torch2trt has what it needs by now; everybody else's `import tensorrt` must not meet the stand-in.
        if before is not None:
            sys.modules["tensorrt"] = before
        else:
            sys.modules.pop("tensorrt", None)


def build_plan(
    library: str | types.ModuleType,
    onnx_path: str | Path,
    options: EngineOptions,
    *,
    progress: Progress | None = None,
) -> BuiltPlan:
    """As `engines.tensorrt_build.build_plan`, by way of torch2trt; float32, of one size.

    Raises:
        EngineLoadError: torch2trt or the library is missing, or the graph holds what torch2trt cannot convert.
    """
    trt = load_library(library) if isinstance(library, str) else library
    torch2trt = load_torch2trt(trt)
    require_machine(trt, ())
    if options.precision not in {"auto", "float32"}:
        raise EngineLoadError(f"the torch2trt converter makes float32 plans, not {options.precision}: leave it out")
    path = Path(onnx_path)
    module = GraphModule(path)
    _register_affine_align(trt, torch2trt)
    shapes = {name: profile_of(name, shape, options)[2] for name, shape in module.shapes.items()}
    for name, shape in module.shapes.items():
        if shape[0] == -1 and name in {"image", "features"}:
            shapes[name] = (1, *profile_of(name, shape, options)[1][1:])
    inputs = tuple(torch.zeros(shapes[name], dtype=module.types[name]) for name in module.shapes)

    logger = logger_of(trt)
    logger.take_errors()
    builder = trt.Builder(logger)
    network = builder.create_network(network_flags(trt, None))
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    wishes = {
        "module": module,
        "fp16_mode": False,
        "int8_mode": False,
        "default_device_type": trt.DeviceType.GPU,
        "device_types": {},
        "gpu_fallback": True,
    }
    try:
        with (
            torch.no_grad(),
            torch2trt.ConversionContext(network, torch2trt_kwargs=wishes, builder_config=config) as context,
        ):
            context.add_inputs(inputs, list(module.shapes))
            context.mark_outputs(module(*inputs), module.outputs)
    except EngineLoadError:
        raise
    except Exception as error:  # a converter's own error, of any kind
        raise EngineLoadError(
            f"{path}: torch2trt could not convert this graph ({error}; {reason_in(logger.take_errors())}): leave "
            "--converter out"
        ) from error
    layers = [network.get_layer(index).type.name for index in range(network.num_layers)]
    monitor = make_monitor(trt, progress) if progress is not None else None
    if monitor is not None:
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.failure is not None:
        raise monitor.failure
    if plan is None:
        raise EngineLoadError(f"{path}: {title_of(trt)} could not build a plan ({reason_in(logger.take_errors())})")
    profile = {name: (shape, shape, shape) for name, shape in shapes.items()}
    form = "function" if module.has_affine_align else None
    return BuiltPlan(plan=bytes(plan), layers=layers, affine_align=form, precision="float32", profile=profile)


# --------------------------------------------------------------------------------------------------------------- module


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, attributes: Attributes) -> Tensor:
    pads = attributes.get("pads", [0, 0, 0, 0])
    if list(pads[:2]) != list(pads[2:]):
        x = F.pad(x, (pads[1], pads[3], pads[0], pads[2]))
        pads = [0, 0, 0, 0]
    return F.conv2d(
        x,
        weight,
        bias,
        tuple(attributes.get("strides", (1, 1))),
        tuple(pads[:2]),
        tuple(attributes.get("dilations", (1, 1))),
        attributes.get("group", 1),
    )


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None, *, attributes: Attributes) -> Tensor:  # noqa: ARG001
    bounds = [None if one is None else float(one) for one in (low, high)]
    return torch.clamp(x, bounds[0], bounds[1])


# Called through their modules each time: that is where torch2trt puts its hooks.
FUNCTIONS: Final[Mapping[str, Callable[..., Tensor]]] = {
    "Add": lambda a, b, attributes: torch.add(a, b),  # noqa: ARG005
    "Clip": _clip,
    "Concat": lambda *parts, attributes: torch.cat(parts, attributes["axis"]),
    "Conv": _conv,
    "Div": lambda a, b, attributes: torch.div(a, b),  # noqa: ARG005
    "Mul": lambda a, b, attributes: torch.mul(a, b),  # noqa: ARG005
    "Relu": lambda x, attributes: F.relu(x),  # noqa: ARG005
    "Sigmoid": lambda x, attributes: torch.sigmoid(x),  # noqa: ARG005
    "Sub": lambda a, b, attributes: torch.sub(a, b),  # noqa: ARG005
    NAME: lambda *inputs, attributes: sys.modules[__name__].affine_align(*inputs, attributes["size"]),
}
"""ONNX operator -> the function that torch2trt converts."""


def affine_align(features: Tensor, feature_from_roi: Tensor, roi_image: Tensor, size: int) -> Tensor:
    """`kernels.affine_align` under a name of this module, where a converter can be hooked to it."""
    aligned: Tensor = affine_align_op(features, feature_from_roi, roi_image, size)
    return aligned


class GraphModule(nn.Module):
    """An ONNX graph as a module; every node is one of `FUNCTIONS`.

    Attributes:
        shapes: input -> shape, -1 where it may differ.
        types: input -> torch type.
        outputs: names.
    """

    def __init__(self, path: Path) -> None:
        """Read a graph.

        Raises:
            EngineLoadError: not a graph, or it holds an operator or input type that torch2trt cannot convert.
        """
        super().__init__()
        try:
            model = onnx.load(str(path))
        except Exception as error:  # protobuf's errors share no base
            raise EngineLoadError(f"{path}: not a complete ONNX graph ({error}): restore the file") from error
        unknown = sorted({node.op_type for node in model.graph.node} - set(FUNCTIONS))
        if unknown:
            raise EngineLoadError(
                f"{path}: torch2trt has no converter for {', '.join(unknown)}: leave --converter out, the ONNX parser "
                "reads them"
            )
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, torch.dtype] = {}
        for value in model.graph.input:
            described = value.type.tensor_type
            if described.elem_type not in _TORCH_TYPE:
                kind = TensorProto.DataType.Name(described.elem_type).lower()
                raise EngineLoadError(
                    f"{path}: torch2trt takes no {kind} input such as {value.name!r}: leave --converter out"
                )
            self.types[value.name] = _TORCH_TYPE[described.elem_type]
            self.shapes[value.name] = tuple(size.dim_value or -1 for size in described.shape.dim)
        self.outputs = [value.name for value in model.graph.output]
        self._nodes = list(model.graph.node)
        self._constants = {
            tensor.name: torch.from_numpy(np.array(numpy_helper.to_array(tensor))) for tensor in model.graph.initializer
        }
        self.has_affine_align = any(node.op_type == NAME for node in self._nodes)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values: dict[str, Tensor | None] = {"": None, **self._constants, **dict(zip(self.shapes, inputs, strict=True))}
        for node in self._nodes:
            attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
            values[node.output[0]] = FUNCTIONS[node.op_type](
                *(values[name] for name in node.input), attributes=attributes
            )
        return tuple(value for name in self.outputs if (value := values[name]) is not None)


# ---------------------------------------------------------------------------------------------- Affine-Align in layers


def _register_affine_align(trt: Any, torch2trt: Any) -> None:
    """Hook a converter to `affine_align` of this module: a feature map per person, and one GridSample layer."""
    from_context = torch2trt.add_missing_trt_tensors

    def convert(context: Any) -> None:
        features, matrices, pictures, size = context.method_args
        network = context.network
        taken = [from_context(network, [one])[0] for one in (features, matrices, pictures)]
        context.method_return._trt = add_affine_align(trt, network, taken, tuple(features.shape[2:]), size)  # noqa: SLF001

    torch2trt.tensorrt_converter(f"{__name__}.affine_align")(convert)


def add_affine_align(trt: Any, network: Any, inputs: Sequence[Any], feature_size: tuple[int, int], size: int) -> Any:
    """Affine-Align of standard layers.

    Args:
        trt: the library.
        network: where the layers go.
        inputs: tensors of features (B, C, h, w), matrices (N, 2, 3) and images (N,).
        feature_size: (h, w).
        size: side S of the window.

    Returns:
        The tensor (N, C, S, S).
    """
    height, width = feature_size
    product, total = trt.ElementWiseOperation.PROD, trt.ElementWiseOperation.SUM
    v, u = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    points = np.stack((u, v, np.ones_like(u)), -1).reshape(1, size, size, 1, 3).astype(np.float32)
    matrices = network.add_shuffle(inputs[1])
    matrices.reshape_dims = (-1, 1, 1, 2, 3)
    terms = network.add_elementwise(
        matrices.get_output(0), network.add_constant(points.shape, points).get_output(0), product
    ).get_output(0)
    sampled = network.add_reduce(terms, trt.ReduceOperation.SUM, 1 << 4, False).get_output(0)  # (N, S, S, 2): x, y
    # g = (2 x + 1) / w - 1: exact feature index to the coordinate of GridSample without aligned corners.
    scale = np.array([2 / width, 2 / height], np.float32).reshape(1, 1, 1, 2)
    shift = np.array([1 / width - 1, 1 / height - 1], np.float32).reshape(1, 1, 1, 2)
    for value, operation in ((scale, product), (shift, total)):
        constant = network.add_constant(value.shape, value).get_output(0)
        sampled = network.add_elementwise(sampled, constant, operation).get_output(0)
    maps = network.add_gather(inputs[0], inputs[2], 0).get_output(0)
    layer = network.add_grid_sample(maps, sampled)
    layer.interpolation_mode = trt.InterpolationMode.LINEAR
    layer.align_corners = False
    layer.sample_mode = trt.SampleMode.FILL
    return layer.get_output(0)
