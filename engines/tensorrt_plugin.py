"""Affine-Align for TensorRT: the node `pose2seg::AffineAlign` of our segment graph, as a plugin with our own kernel.

| library             | what the parser takes                                                              |
|---------------------|------------------------------------------------------------------------------------|
| TensorRT 10.8+, 11  | quick plugin with an ahead-of-time kernel: it lies inside the plan, no Python runs |
| TensorRT for RTX    | the function body of the file (GridSample); on request a plugin in Python          |

The kernel is `kernels/affine_align/affine_align.cu`; its arguments have the order that ahead-of-time plugins prescribe:
inputs, whole numbers, outputs. It is compiled when a plan is built or a Python plugin first runs, never on import.
"""

from __future__ import annotations

import ctypes
import threading
import types
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import kernels.affine_align
from engines.engine import EngineLoadError
from engines.tensorrt_library import has_aot_plugins, logger_of, python_plugins_are_safe, title_of
from kernels.affine_align.launch_shapes import CHANNELS_PER_THREAD, THREADS, launch_shape
from kernels.native.compile import CUDA_ARCHITECTURES, NativeBuildError, device_image
from kernels.native.launch import DeviceModule

NAMESPACE: Final = "pose2seg"
NAME: Final = "AffineAlign"
VERSION: Final = "1"
SOURCE: Final = Path(kernels.affine_align.__file__).parent / "affine_align.cu"

_lock = threading.Lock()
_creators: dict[tuple[str, str], Any] = {}  # must live as long as the process: TensorRT keeps a bare pointer


def kernel_image(capability: tuple[int, int] | None, *, as_ptx: bool = False) -> bytes:
    """The compiled kernel for a GPU.

    Args:
        capability: of the GPU; None, and one that our compiler's list lacks, gives PTX that every supported GPU reads.
        as_ptx: PTX in place of machine code: ahead-of-time plugins take nothing else. The driver must be as new as the
            compiler that made it: nvcc 13.0 writes what driver 580 reads, a newer NVRTC may write more.

    Raises:
        EngineLoadError: no compiler, or it refuses the source.
    """
    architecture = "" if capability is None else f"{capability[0]}{capability[1]}"
    known = architecture in CUDA_ARCHITECTURES
    try:
        return device_image(
            SOURCE,
            architecture=architecture if known else CUDA_ARCHITECTURES[0],
            kind="cubin" if known and not as_ptx else "ptx",
        )
    except NativeBuildError as error:
        raise EngineLoadError(f"the Affine-Align plugin cannot be compiled: {error}") from error


def kernel_element(trt: Any, data_type: Any) -> str:
    """The end of the kernel's name for features of a TensorRT type."""
    return "f16" if data_type == trt.DataType.HALF else "f32"


def register_aot_plugin(trt: ModuleType, image: Callable[[], bytes]) -> None:
    """Declare the quick plugin once per process; the ONNX parser finds it by the node's namespace and name.

    Args:
        trt: TensorRT 10.8+ or 11.
        image: the kernel as PTX, asked for when a network with the node is built.

    Raises:
        EngineLoadError: this library has no ahead-of-time plugins.
    """
    if not has_aot_plugins(trt):
        raise EngineLoadError(f"{title_of(trt)} has no ahead-of-time plugins: build with the function body")
    with _lock:
        if (trt.__name__, "aot") in _creators:
            return
        logger_of(trt)  # the plugin package makes a Logger of its own when it is imported, and only the first counts
        _creators[trt.__name__, "aot"] = _declare(_plugin_package(trt), trt, image)


def _plugin_package(trt: ModuleType) -> Any:
    import importlib

    return importlib.import_module(f"{trt.__name__}.plugin")


def _declare(trtp: Any, trt: ModuleType, image: Callable[[], bytes]) -> tuple[Any, ...]:
    tensor = trtp.TensorDesc
    identity = f"{NAMESPACE}::{NAME}"
    # An array of one number, not int: TensorRT up to 10.16 converts with int(array), which NumPy 2.4 refuses.
    whole_number = npt.NDArray[np.int32]

    def shapes(features: Any, theta: Any, roi_image: Any, size: Any) -> Any:  # noqa: ARG001  names are the declaration
        out = features.like()
        side = int(size[0])
        out.shape_expr = trtp.ShapeExprs.from_tuple((theta.shape_expr[0], features.shape_expr[1], side, side))
        return out

    def combinations(features: Any, theta: Any, roi_image: Any, size: Any, outputs: Any) -> Any:  # noqa: ARG001
        return [trtp.AutoTuneCombination("FP32|FP16, FP32, INT32, FP32|FP16", "LINEAR")]

    def kernel(features: Any, theta: Any, roi_image: Any, size: Any, outputs: Any, tactic: Any) -> Any:  # noqa: ARG001
        side = int(size[0])
        # As `launch_shape` has it, with the sizes that only a call knows as expressions.
        known = launch_shape(
            "affine_align", "nchw", kernel_element(trt, features.dtype), people=1, channels=1, size=side
        )
        launch, numbers = trtp.KernelLaunchParams(), trtp.SymIntExprs(5)
        launch.grid_x = known.grid[0]
        launch.grid_y = trtp.cdiv(features.shape_expr[1], CHANNELS_PER_THREAD)
        launch.grid_z = theta.shape_expr[0]
        launch.block_x = THREADS
        for position, value in enumerate((*(features.shape_expr[axis] for axis in range(4)), side)):
            numbers[position] = trtp.SymInt32(value)
        return known.name, image(), launch, numbers

    # The decorators read annotations as objects, which "from __future__ import annotations" would make text.
    inputs = {"features": tensor, "theta": tensor, "roi_image": tensor, "size": whole_number}
    outputs: Any = types.GenericAlias(tuple, (tensor,))
    shapes.__annotations__ = {**inputs, "return": tensor}
    combinations.__annotations__ = {**inputs, "outputs": outputs}
    kernel.__annotations__ = {
        **inputs,
        "outputs": outputs,
        "tactic": int,
        "return": tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymIntExprs],
    }
    return (
        trtp.register(identity)(shapes),
        trtp.autotune(identity)(combinations),
        trtp.aot_impl(identity)(kernel),
    )


def register_python_plugin(trt: ModuleType, image: Callable[[], bytes]) -> None:
    """Register the plugin as Python classes: for TensorRT for RTX. Python then runs whenever the plan is enqueued; in a
    captured CUDA graph, at capture only.

    Args:
        trt: the library.
        image: the compiled kernel, asked for at the first launch.

    Raises:
        EngineLoadError: a parser of this library would end the process at the first plugin node.
    """
    if not python_plugins_are_safe(trt):
        raise EngineLoadError(
            f"{title_of(trt)} was imported before us, and its parser ends the process at a plugin node: import "
            "pose2seg first, or build with the function body"
        )
    with _lock:
        if (trt.__name__, "python") in _creators:
            return
        logger_of(trt)
        creator = make_plugin_creator(trt, image)
        if not trt.get_plugin_registry().register_creator(creator, NAMESPACE):
            raise EngineLoadError(f"{title_of(trt)} refuses the plugin {NAMESPACE}::{NAME}: is it registered twice?")
        _creators[trt.__name__, "python"] = creator


def make_plugin_creator(trt: Any, image: Callable[[], bytes]) -> Any:
    """An `IPluginCreatorV3One` for the plugin in Python. Keep a reference to it for the life of the process."""
    bases = (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)
    loaded: list[DeviceModule] = []

    def module() -> DeviceModule:
        if not loaded:
            loaded.append(DeviceModule(image()))
        return loaded[0]

    class AffineAlign(*bases):  # type: ignore[misc]  # known at run time only
        """The method names and their arguments are TensorRT's."""

        def __init__(self, size: int) -> None:
            for base in bases:
                base.__init__(self)
            self.plugin_name, self.plugin_version, self.plugin_namespace = NAME, VERSION, NAMESPACE
            self.num_outputs = 1
            self.size = size

        def get_capability_interface(self, type: Any) -> Any:  # noqa: A002, ARG002
            return self

        def get_output_data_types(self, input_types: Any) -> Any:
            return [input_types[0]]

        def get_output_shapes(self, inputs: Any, shape_inputs: Any, exprBuilder: Any) -> Any:  # noqa: ARG002
            shape = trt.DimsExprs(4)
            shape[0], shape[1] = inputs[1][0], inputs[0][1]
            shape[2], shape[3] = exprBuilder.constant(self.size), exprBuilder.constant(self.size)
            return [shape]

        def supports_format_combination(self, pos: int, in_out: Any, num_inputs: int) -> bool:  # noqa: ARG002
            described, features = in_out[pos].desc, in_out[0].desc
            fits = (
                lambda: described.type in {trt.DataType.FLOAT, trt.DataType.HALF},
                lambda: described.type == trt.DataType.FLOAT,
                lambda: described.type == trt.DataType.INT32,
                lambda: described.type == features.type,
            )[pos]()
            return bool(described.format == trt.TensorFormat.LINEAR and fits)

        def configure_plugin(self, inp: Any, out: Any) -> None:
            pass

        def on_shape_change(self, inp: Any, out: Any) -> None:
            pass

        def get_valid_tactics(self) -> list[int]:
            return []

        def set_tactic(self, tactic: int) -> None:
            pass

        def attach_to_context(self, resource_context: Any) -> Any:  # noqa: ARG002
            return self.clone()

        def clone(self) -> Any:
            other = AffineAlign(self.size)
            other.__dict__.update(self.__dict__)
            return other

        def get_fields_to_serialize(self) -> Any:
            size = np.array([self.size], np.int32)
            return trt.PluginFieldCollection([trt.PluginField("size", size, trt.PluginFieldType.INT32)])

        def enqueue(
            self,
            input_desc: Any,
            output_desc: Any,  # noqa: ARG002
            inputs: Any,
            outputs: Any,
            workspace: Any,  # noqa: ARG002
            stream: int,
        ) -> None:
            sizes = tuple(input_desc[0].dims)
            people = input_desc[1].dims[0]
            if people == 0:
                return  # an empty grid is a launch error
            element = kernel_element(trt, input_desc[0].type)
            module().launch(
                *launch_shape("affine_align", "nchw", element, people=people, channels=sizes[1], size=self.size),
                stream,
                *(ctypes.c_void_p(address) for address in inputs[:3]),
                *(ctypes.c_int(value) for value in (*sizes, self.size)),
                ctypes.c_void_p(outputs[0]),
            )

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = NAME, VERSION, NAMESPACE
            nothing = np.array([], np.int32)
            self.field_names = trt.PluginFieldCollection([trt.PluginField("size", nothing, trt.PluginFieldType.INT32)])

        def create_plugin(self, name: str, field_collection: Any, phase: Any) -> Any:  # noqa: ARG002
            sizes = [int(np.ravel(field.data)[0]) for field in field_collection if field.name == "size"]
            if not sizes:
                raise ValueError(f"{NAMESPACE}::{NAME} needs the attribute size, the side of the window in px")
            return AffineAlign(sizes[0])

    return Creator()
