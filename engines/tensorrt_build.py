"""An ONNX graph of a model folder to a TensorRT plan.

The network is strongly typed in every version: a tensor has the type that the file gives it, so half precision and INT8
are made in the graph (`engines.half_precision`, quantise and dequantise nodes) and not by flags of the builder. One
optimization profile covers every size up to the options' limits. TensorRT for RTX builds on a machine without a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal

from engines.engine import EngineLoadError, EngineOptions
from engines.half_precision import to_half
from engines.nvidia_driver import find_nvidia_driver
from engines.signatures import SIGNATURES
from engines.tensorrt_library import (
    driver_problem,
    has_aot_plugins,
    is_rtx,
    load_library,
    logger_of,
    reason_in,
    speaks_of_memory,
    title_of,
)
from engines.tensorrt_plugin import NAME, NAMESPACE, kernel_image, register_aot_plugin, register_python_plugin

if TYPE_CHECKING:
    import onnx

AffineAlignForm = Literal["auto", "aot", "python", "function"]
"""How the node of our own domain enters the plan; `auto` is `aot` where it exists, else `function`."""

Shape = tuple[int, ...]
Progress = Callable[[float, str], None]

INPUT_MULTIPLE: Final = 32  # px: sides of the input image, as model folders have it
FEATURE_STRIDE: Final = 4  # px of the input image per feature, in both families
BEST_PEOPLE: Final = 4  # what the kernels are tuned for: the usual picture
_TURING: Final = (7, 5)
_PLUGIN_LAYERS: Final = frozenset({"PLUGIN", "PLUGIN_V2", "PLUGIN_V3"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltPlan:
    """A plan and what went into it.

    Attributes:
        plan: the serialised engine. It holds machine code: load it from trusted places only.
        layers: type of each layer after parsing, before TensorRT fused them.
        affine_align: "aot", "python" or "function", what the parser took for our node; None where the graph has none.
        precision: "float32", "float16" or "int8".
        profile: input -> (smallest, best, largest) shape.
    """

    plan: bytes
    layers: list[str]
    affine_align: str | None
    precision: str
    profile: Mapping[str, tuple[Shape, Shape, Shape]]


def build_plan(
    library: str | ModuleType,
    onnx_path: str | Path,
    options: EngineOptions,
    *,
    capabilities: Sequence[str] = (),
    affine_align: AffineAlignForm = "auto",
    progress: Progress | None = None,
) -> BuiltPlan:
    """Build a plan; takes from a second to some minutes.

    Args:
        library: "tensorrt" or "tensorrt-rtx", or the loaded module.
        onnx_path: a float32 graph of a model folder, or one with quantise and dequantise nodes.
        options: precision ("auto" is float16, or what the graph's quantisation says), largest B and N, long side,
            device.
        capabilities: TensorRT for RTX only: names such as "SM89", or "CURRENT" for this machine's GPU. Empty takes the
            library's default, compute capability 8.0, 8.6, 8.9, 12.0 and later (and Turing's on a Turing GPU).
        affine_align: see `AffineAlignForm`. "python" needs Python wherever the plan runs.
        progress: called with the done share, 0..1, and what is being done. An exception in it ends the build and is
            raised.

    Raises:
        EngineLoadError: library or driver missing, not a graph, an operator that the library does not know, or a build
            that failed; with the reason and what to do.
    """
    trt = load_library(library) if isinstance(library, str) else library
    path = Path(onnx_path)
    require_machine(trt, capabilities)
    form = _form(trt, affine_align)
    model, precision = prepare_graph(path, options.precision, keep_plugin=form != "function")
    if _node_count(model, NAME) == 0:
        form = None
    elif form == "aot":
        register_aot_plugin(trt, lambda: kernel_image(_capability(options.device), as_ptx=True))
    elif form == "python":
        register_python_plugin(trt, lambda: kernel_image(_capability(options.device)))

    logger = logger_of(trt)
    logger.take_errors()
    with _on_device(options.device):
        builder = trt.Builder(logger)
    network = builder.create_network(network_flags(trt, form))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString(), str(path)):
        raise EngineLoadError(_parse_problem(trt, path, parser, logger.take_errors()))
    layers = [network.get_layer(index).type.name for index in range(network.num_layers)]
    _require_form(path, form, layers)

    config = builder.create_builder_config()
    # On by default, and float32 means float32 here: in a half graph it is what places the samples.
    config.clear_flag(trt.BuilderFlag.TF32)
    profile, shapes = builder.create_optimization_profile(), {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shapes[tensor.name] = profile_of(tensor.name, tuple(tensor.shape), options)
        profile.set_shape(tensor.name, *shapes[tensor.name])
    if config.add_optimization_profile(profile) < 0:
        raise EngineLoadError(f"{path}: {title_of(trt)} refuses the sizes {shapes}: {reason_in(logger.take_errors())}")
    _set_capabilities(trt, config, capabilities)
    monitor = make_monitor(trt, progress) if progress is not None else None
    if monitor is not None:
        config.progress_monitor = monitor
    with _on_device(options.device):
        plan = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.failure is not None:
        raise monitor.failure
    if plan is None:
        raise EngineLoadError(_build_problem(trt, path, logger.take_errors()))
    return BuiltPlan(plan=bytes(plan), layers=layers, affine_align=form, precision=precision, profile=shapes)


# --------------------------------------------------------------------------------------------------------------- graph


def prepare_graph(path: Path, precision: str, *, keep_plugin: bool) -> tuple[onnx.ModelProto, str]:
    """Read a graph and write it as TensorRT wants it, in the wanted precision.

    Args:
        path: an `.onnx` file.
        precision: of `EngineOptions`.
        keep_plugin: leave our node to a plugin. Otherwise its plugin attributes are taken off: a parser takes the
            file's function body then, also where a plugin of that name is registered.

    Returns:
        The model and its precision: "float32", "float16" or "int8".

    Raises:
        EngineLoadError: not an ONNX file, or a precision that this graph cannot have.
    """
    try:
        import onnx
    except ImportError as error:
        raise EngineLoadError(f"plans are built from ONNX files ({error}): pip install 'pose2seg-live[gpu]'") from error
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and the checker's errors share no base
        raise EngineLoadError(f"{path}: not a complete ONNX graph ({_first_line(error)}): restore the file") from error
    quantised = _node_count(model, "QuantizeLinear") > 0
    if precision == "bfloat16":
        raise EngineLoadError("TensorRT plans are float32, float16 or int8: choose --precision float16")
    if precision == "int8" and not quantised and any(value.name == "image" for value in model.graph.input):
        raise EngineLoadError(
            f"{path}: int8 needs a graph with quantise and dequantise nodes: make one with "
            "python -m training.quantize, or choose --precision float16"
        )
    cast_images_first(model)
    if quantised or precision == "float32":
        chosen = "int8" if quantised else "float32"
    else:
        # Beside a quantised graph features come as float32.
        model = to_half(model, half_features=precision != "int8")
        chosen = "float16"
    if not keep_plugin:
        for node in model.graph.node:
            if node.op_type == NAME and node.domain == NAMESPACE:
                kept = [one for one in node.attribute if one.name not in {"plugin_namespace", "plugin_version"}]
                del node.attribute[:]
                node.attribute.extend(kept)
        write_products_out(model)
    return model, chosen


def cast_images_first(model: onnx.ModelProto) -> None:
    """Let the only reader of a uint8 input be a cast: TensorRT takes such an input, but computes nothing with it.

    A transposition of 0..255 gives the same numbers as float32 that it gives as uint8.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    for value in graph.input:
        if value.type.tensor_type.elem_type != TensorProto.UINT8:
            continue
        name = value.name + "__float"
        moved = {value.name}
        for node in graph.node:
            for position, used in enumerate(node.input):
                if used == value.name:
                    node.input[position] = name
            if node.op_type == "Transpose" and node.input[0] == name:
                moved.update(node.output)
        cast = helper.make_node("Cast", [value.name], [name], name=f"cast_{name}", to=TensorProto.FLOAT)
        nodes = [cast, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
        # What is known of types in between is no longer true.
        kept = [known for known in graph.value_info if known.name not in moved]
        del graph.value_info[:]
        graph.value_info.extend(kept)


def write_products_out(model: onnx.ModelProto) -> None:
    """Replace the one matrix product in the body of Affine-Align, (P, 3) @ (N, 3, 2), by products and a sum.

    TensorRT for RTX has no float32 matrix product on Turing, and elsewhere one may be computed with fewer bits than the
    place of a sample needs.
    """
    from onnx import helper

    for function in model.functions:
        if (function.domain, function.name) != (NAMESPACE, NAME):
            continue
        nodes: list[Any] = []
        for node in function.node:
            if node.op_type != "MatMul":
                nodes.append(node)
                continue
            out = node.output[0]
            for suffix, axes in (("left", [0, 3]), ("right", [1]), ("summed", [2])):
                nodes.append(helper.make_node("Constant", [], [f"{out}__{suffix}_axes"], value_ints=axes))
            left, right, terms = f"{out}__left", f"{out}__right", f"{out}__terms"
            nodes += [
                helper.make_node("Unsqueeze", [node.input[0], f"{left}_axes"], [left]),  # (1, P, 3, 1)
                helper.make_node("Unsqueeze", [node.input[1], f"{right}_axes"], [right]),  # (N, 1, 3, 2)
                helper.make_node("Mul", [left, right], [terms]),
                helper.make_node("ReduceSum", [terms, f"{out}__summed_axes"], [out], keepdims=0),
            ]
        del function.node[:]
        function.node.extend(nodes)


def profile_of(name: str, shape: Shape, options: EngineOptions) -> tuple[Shape, Shape, Shape]:
    """Smallest, best and largest shape of an input.

    Args:
        name: of the input.
        shape: as parsed; -1 is dynamic.
        options: `max_batch`, `max_people`, `long_side`.

    Raises:
        EngineLoadError: a dynamic size whose meaning is not known.
    """
    side = -(-options.long_side // INPUT_MULTIPLE) * INPUT_MULTIPLE
    wide = -(-side * 9 // 16 // INPUT_MULTIPLE) * INPUT_MULTIPLE  # the usual video is 16:9
    least, step = INPUT_MULTIPLE, FEATURE_STRIDE
    ranges = {
        "B": (1, 1, options.max_batch),
        "N": (1, min(BEST_PEOPLE, options.max_people), options.max_people),
        "H": (least, wide, side),
        "W": (least, side, side),
        "h": (least // step, wide // step, side // step),
        "w": (least // step, side // step, side // step),
    }
    known = next(
        (spec.shape for inputs, _ in SIGNATURES.values() for spec in inputs if spec.name == name), ("?",) * len(shape)
    )
    sizes = []
    for axis, size in enumerate(shape):
        if size >= 0:
            sizes.append((size, size, size))
            continue
        symbol = known[axis] if len(known) == len(shape) else "?"
        if symbol not in ranges:
            raise EngineLoadError(
                f"input {name!r} is {shape} with a dynamic size on axis {axis}; known are the inputs of model folders"
            )
        sizes.append(ranges[str(symbol)])
    low, best, high = zip(*sizes, strict=True)
    return low, best, high


def _node_count(model: onnx.ModelProto, operator: str) -> int:
    return sum(node.op_type == operator for node in model.graph.node)


# ------------------------------------------------------------------------------------------------------------- library


def require_machine(trt: ModuleType, capabilities: Sequence[str]) -> None:
    """Raise EngineLoadError where this library cannot build on this machine."""
    if is_rtx(trt):
        # Asking for this machine's capability where there is none ends the process when a plugin is in the network.
        problem = driver_problem("tensorrt-rtx") if "CURRENT" in capabilities else None
        unknown = [name for name in capabilities if not hasattr(trt.ComputeCapability, name)]
        if unknown:
            allowed = sorted(trt.ComputeCapability.__members__)
            raise EngineLoadError(f"unknown compute capabilities {unknown}: {title_of(trt)} has {', '.join(allowed)}")
    else:
        problem = driver_problem("tensorrt")
        if capabilities:
            raise EngineLoadError(f"{title_of(trt)} builds for this machine's GPU only: leave capabilities empty")
    if problem is not None:
        raise EngineLoadError(problem)


def _form(trt: ModuleType, wanted: AffineAlignForm) -> str | None:
    if wanted == "auto":
        return "aot" if has_aot_plugins(trt) else "function"
    return wanted


def _on_device(device: str | None) -> contextlib.AbstractContextManager[Any]:
    """A builder makes plans for the GPU that is the current one; the first is that already."""
    index = int((device or "cuda:0").partition(":")[2] or 0)
    if index == 0 or not find_nvidia_driver().gpus:
        return contextlib.nullcontext()
    from engines.torch_memory import on_device

    return on_device(index)


def _capability(device: str | None) -> tuple[int, int] | None:
    index = int((device or "cuda:0").partition(":")[2] or 0)
    return next((gpu.capability for gpu in find_nvidia_driver().gpus if gpu.index == index), None)


def network_flags(trt: ModuleType, form: str | None) -> int:
    """Flags of `create_network`: strongly typed everywhere."""
    flag = trt.NetworkDefinitionCreationFlag
    flags = 1 << int(flag.STRONGLY_TYPED)
    if form == "aot":
        flags |= 1 << int(flag.PREFER_AOT_PYTHON_PLUGINS)
    return flags


def _set_capabilities(trt: ModuleType, config: Any, capabilities: Sequence[str]) -> None:
    if not is_rtx(trt):
        return
    if not capabilities and any(gpu.capability == _TURING for gpu in find_nvidia_driver().gpus):
        capabilities = ("SM75",)
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for position, name in enumerate(capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), position)


def _require_form(path: Path, form: str | None, layers: Sequence[str]) -> None:
    """Parsers choose without a word; a plan with the other implementation would be slower, or need Python."""
    plugins = [layer for layer in layers if layer in _PLUGIN_LAYERS]
    if form in {"aot", "python"} and not plugins:
        raise EngineLoadError(
            f"{path}: the parser took the function body instead of our plugin: the node must carry plugin_namespace "
            "and plugin_version; export the model again"
        )
    if form == "function" and (plugins or "GRID_SAMPLE" not in layers):
        raise EngineLoadError(f"{path}: expected the function body of {NAMESPACE}::{NAME}, the parser took {layers}")


def _parse_problem(trt: ModuleType, path: Path, parser: Any, errors: Sequence[str]) -> str:
    found = [parser.get_error(index) for index in range(parser.num_errors)]
    for error in found:
        # An unknown operator is looked for among the plugins last.
        if error.code() == trt.ErrorCode.UNSUPPORTED_NODE or "Plugin not found" in error.desc():
            return (
                f"{path}: {title_of(trt)} does not know operator {error.node_operator()!r} (node "
                f"{error.node_name()!r}): export with operators that it has, or choose --engine onnx"
            )
    reason = reason_in([*(error.desc() for error in found), *errors])
    node = next((f" at {error.node_operator()} {error.node_name()!r}" for error in found), "")
    return f"{path}: {title_of(trt)} cannot read this graph{node} ({reason}): update it, or choose --engine onnx"


def _build_problem(trt: ModuleType, path: Path, errors: Sequence[str]) -> str:
    advice = (
        "free device memory, or lower --max-batch and --long-side"
        if speaks_of_memory(errors)
        else "see --debug for all"
    )
    return f"{path}: {title_of(trt)} could not build a plan ({reason_in(errors)}): {advice}"


def make_monitor(trt: ModuleType, progress: Progress) -> Any:
    """An `IProgressMonitor` that calls back; `failure` holds what the callback raised."""
    base: Any = trt.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]  # the base is known at run time only
        """Nested phases of a build to one share that only grows. Called from TensorRT's threads."""

        def __init__(self) -> None:
            base.__init__(self)
            self.failure: BaseException | None = None
            self._phases: dict[str, tuple[str | None, int, int]] = {}  # name -> parent, steps, done
            self._share = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = (parent_phase, max(int(num_steps), 1), 0)
            self._tell(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            parent, steps, _ = self._phases.get(phase_name, (None, 1, 0))
            self._phases[phase_name] = (parent, steps, min(int(step) + 1, steps))
            return self._tell(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)
            if not self._phases:
                self._share = 1.0
                self._tell(phase_name)

        def _tell(self, phase_name: str) -> bool:
            self._share = max(self._share, self._done(phase_name))
            try:
                progress(self._share, phase_name)
            except BaseException as error:  # crosses C++; raised again by build_plan
                self.failure = self.failure or error
            return self.failure is None

        def _done(self, phase_name: str) -> float:
            chain: list[tuple[int, int]] = []
            name: str | None = phase_name
            while name in self._phases and len(chain) <= len(self._phases):
                name, steps, done = self._phases[name]
                chain.append((steps, done))
            share, width = 0.0, 1.0
            for steps, done in reversed(chain):
                share += width * done / steps
                width /= steps
            return min(share, 1.0)

    return Monitor()


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
