"""A graph for one set of input shapes as a flat list of torch calls.

What follows from constants and shapes alone is worked out once, here; what is left runs in order. For half precision
the types are chosen value by value: convolutions and products run in half, while probabilities, coordinates, sums and
everything that is compared or ranked stay float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engines.engine import EngineLoadError, TensorSpec
from engines.torch_convolution_fusion import ActivatedConvolution, Chooser
from engines.torch_graph import TORCH_DTYPE, Graph, Node
from engines.torch_operation import CHANNELS_LAST, MAX_FOLDED_ELEMENTS, OPERATORS, Convolution, Operand, Operation
from engines.torch_operators import build

PRODUCTS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that half precision makes faster."""

ALIGN: Final = "pose2seg::AffineAlign"
ALIGN_WITH_SKELETON: Final = "pose2seg::AlignWithSkeleton"

HALF_TENSORS: Final = frozenset({"features"})
"""Graph inputs and outputs that travel only from graph to graph, so that they may be half."""

_ALIGNS = frozenset({ALIGN, ALIGN_WITH_SKELETON})
_WIDE = frozenset(
    {
        *("Sigmoid", "Softmax", "Exp", "Log", "Pow", "Sqrt", "Div", "Reciprocal", "Tanh"),
        *("TopK", "ArgMax", "ReduceSum", "ReduceMean", "GlobalAveragePool"),
        *("QuantizeLinear", "DequantizeLinear"),
    }
)  # of float32 operands, with a float32 result
_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Expand", "Transpose", "Slice", "Gather", "Identity", "Flatten"})
_FRESH = PRODUCTS | {"Add", "Mul", "Sub", "BatchNormalization", "Concat"}  # results that nothing else refers to
_FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16})


class Step(NamedTuple):
    """One torch call.

    Attributes:
        label: the node, for error messages.
        function: the call.
        arguments: slots read.
        results: slots written; -1 where nobody wants the result.
        frees: slots that are not needed afterwards.
        operator: ONNX name; "" for a change of type.
        convolution: what the call does, where it is one.
        clamp: what the call limits to, where it does that.
    """

    label: str
    function: Callable[..., Any]
    arguments: tuple[int, ...]
    results: tuple[int, ...]
    frees: tuple[int, ...] = ()
    operator: str = ""
    convolution: Convolution | None = None
    clamp: tuple[float | None, float | None] | None = None


class StepFailed(RuntimeError):
    """A torch call failed; the cause is the original error."""

    def __init__(self, label: str, cause: BaseException) -> None:
        lines = str(cause).strip().splitlines()
        super().__init__(f"{label}: {lines[0] if lines else type(cause).__name__}")


@dataclass(slots=True, eq=False)
class Program:
    """The calls, ready to run.

    Attributes:
        steps: in order.
        template: value of every slot before a run: constants on the device, None elsewhere.
        inputs: slots of the graph's inputs.
        outputs: slots of the graph's outputs.
    """

    steps: tuple[Step, ...]
    template: list[Tensor | None]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    _constant_storages: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        self._constant_storages = frozenset(_storage(value) for value in self.template if value is not None)

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """All outputs as tensors of their own, sharing memory with nothing.

        Raises:
            StepFailed: a call failed; torch.OutOfMemoryError is not wrapped.
        """
        values: list[Any] = self.template.copy()
        for slot, tensor in zip(self.inputs, inputs, strict=True):
            values[slot] = tensor
        step = None
        try:
            for step in self.steps:
                result = step.function(*[values[slot] for slot in step.arguments])
                if len(step.results) == 1:
                    values[step.results[0]] = result
                else:
                    for slot, part in zip(step.results, result, strict=True):
                        if slot >= 0:
                            values[slot] = part
                for slot in step.frees:
                    values[slot] = None
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError, ValueError, TypeError) as error:  # all that torch raises
            raise StepFailed(step.label if step is not None else "start", error) from error
        taken = {_storage(tensor) for tensor in inputs} | self._constant_storages
        outputs = []
        for slot in self.outputs:
            output: Tensor = values[slot]
            if _storage(output) in taken or 0 in output.stride():  # or expanded: its elements share memory
                output = output.clone()
            taken.add(_storage(output))
            outputs.append(output)
        return outputs


def _storage(tensor: Tensor) -> int:
    return 0 if tensor.is_meta else tensor.untyped_storage().data_ptr()


@dataclass(slots=True, eq=False)
class PreparedGraph:
    """What all programs of a graph share: constants folded as far as shapes do not matter, and one copy of each on the
    device.

    Args:
        graph: as read.
        device: where programs run.
        half: type of the products, float16 or bfloat16; None leaves every type as the file has it.

    Attributes:
        inputs, outputs: those of the graph; `HALF_TENSORS` are float16 where `half` is.

    Raises:
        EngineLoadError: an operator that the engine does not have.
    """

    graph: Graph
    device: torch.device
    half: torch.dtype | None
    inputs: tuple[TensorSpec, ...] = field(init=False)
    outputs: tuple[TensorSpec, ...] = field(init=False)
    nodes: tuple[Node, ...] = field(init=False)
    constants: dict[str, Tensor] = field(init=False)
    uses: dict[str, int] = field(init=False)
    _on_device: dict[tuple[str, torch.dtype, bool], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted({node.operator for node in self.graph.nodes} - OPERATORS.keys())
        if unknown:
            raise EngineLoadError(
                f"{self.graph.path}: the torch engine has no operator {', '.join(unknown)}: "
                "run the graph with --engine onnx"
            )
        self.inputs, self.outputs = (
            tuple(self._half_spec(spec) for spec in specs) for specs in (self.graph.inputs, self.graph.outputs)
        )
        self.constants = dict(self.graph.constants)
        self.nodes = tuple(node for node in _needed(self.graph) if not self._fold(node))
        self.uses = {spec.name: 1 for spec in self.graph.outputs}
        for node in self.nodes:
            for name in node.inputs:
                self.uses[name] = self.uses.get(name, 0) + 1

    def _half_spec(self, spec: TensorSpec) -> TensorSpec:
        if self.half == torch.float16 and spec.name in HALF_TENSORS and spec.dtype == np.float32:
            return replace(spec, dtype=np.dtype(np.float16))
        return spec

    def _fold(self, node: Node) -> bool:
        """Whether the node's results follow from constants; they are stored then."""
        if any(name and name not in self.constants for name in node.inputs):
            return False
        operands = [Operand(tensor=self.constants[name], known=True) if name else None for name in node.inputs]
        self.constants.update(_fold(Operation(node=node, opset=self.graph.opset, operands=operands)))
        return True

    def constant(self, name: str, tensor: Tensor, *, channels_last: bool) -> Tensor:
        """A CPU tensor on the device. With a name it is kept, and shared between programs."""
        key = (name, tensor.dtype, channels_last)
        if name and key in self._on_device:
            return self._on_device[key]
        moved = _to_device(tensor, self.device, channels_last=channels_last)
        if name:
            self._on_device[key] = moved
        return moved

    def free(self) -> None:
        """Drop the copies on the device; programs that were compiled keep theirs."""
        self._on_device.clear()


def compile_program(
    prepared: PreparedGraph, shapes: Mapping[str, Sequence[int]], choose: Chooser | None = None
) -> Program:
    """Specialise a graph for one set of input shapes.

    Args:
        prepared: the graph.
        shapes: shape of each input.
        choose: how convolutions with an activation are computed; None is in parts.

    Raises:
        EngineLoadError: a node uses what is not handled.
        StepFailed: a node does not work with these shapes.
    """
    return _Compiler(prepared, shapes).finish(choose)


def try_program(prepared: PreparedGraph, shapes: Mapping[str, Sequence[int]]) -> None:
    """As `compile_program`, without the constants on the device and without a result."""
    _Compiler(prepared, shapes)


def _to_device(tensor: Tensor, device: torch.device, *, channels_last: bool) -> Tensor:
    if 0 in tensor.stride() and tensor.numel() > 1:  # expanded: move what is really there, expand again
        core = tensor[tuple(slice(0, 1) if step == 0 else slice(None) for step in tensor.stride())]
        return core.contiguous().to(device).expand(tensor.shape)
    if channels_last and tensor.ndim == 4:
        return tensor.to(device).contiguous(memory_format=CHANNELS_LAST)
    return tensor.to(device)


def _fold(operation: Operation, function: Callable[..., Any] | None = None) -> dict[str, Tensor]:
    """Results of a node whose arguments are all known, by name. The function is built unless it is given."""
    node = operation.node
    if function is None:
        function = build(operation)
        if function is None:
            return {node.outputs[0]: operation.operand(0).tensor}
    tensors = [operation.operand(index).tensor for index in operation.arguments]
    try:
        if tensors:
            _check_size(node, function(*[tensor.to("meta") for tensor in tensors]))
        results = function(*tensors)
    except EngineLoadError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise EngineLoadError(f"{StepFailed(str(node), error)}: export the model again") from error
    results = results if isinstance(results, tuple) else (results,)
    return {name: result for name, result in zip(node.outputs, results, strict=False) if name}


def _check_size(node: Node, results: Tensor | tuple[Tensor, ...]) -> None:
    for result in results if isinstance(results, tuple) else (results,):
        if result.numel() > MAX_FOLDED_ELEMENTS:
            raise EngineLoadError(f"{node}: a constant of shape {tuple(result.shape)}: export the model again")


def _needed(graph: Graph) -> list[Node]:
    """Nodes that an output depends on, in order."""
    wanted = {spec.name for spec in graph.outputs}
    kept = []
    for node in reversed(graph.nodes):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            kept.append(node)
    return kept[::-1]


@dataclass(frozen=True, slots=True, eq=False)
class _Value:
    """What a name stands for: a known CPU tensor, or a slot and a meta tensor of its shape and type."""

    operand: Operand
    slot: int = -1
    shared_name: str = ""

    @property
    def dtype(self) -> torch.dtype:
        return self.operand.tensor.dtype

    @property
    def is_dynamic_float(self) -> bool:
        return not self.operand.known and self.dtype in _FLOATS


class _Compiler:
    """One compilation: nodes become steps, in order."""

    def __init__(self, prepared: PreparedGraph, shapes: Mapping[str, Sequence[int]]) -> None:
        self._prepared = prepared
        self._steps: list[Step] = []
        self._metas: list[Tensor] = []  # of every slot
        self._constants: dict[tuple[int, bool], int] = {}  # id of a CPU tensor, channels-last -> slot
        self._constant_sources: list[tuple[int, str, Tensor, bool]] = []
        self._casts: dict[tuple[int, torch.dtype], int] = {}
        self._known_casts: dict[tuple[int, torch.dtype], Tensor] = {}
        self._fresh: set[int] = set()
        self._values = {
            name: _Value(Operand(tensor=tensor, known=True), shared_name=name)
            for name, tensor in prepared.constants.items()
        }
        self._inputs = []
        for spec in prepared.inputs:
            dtype = torch.from_numpy(np.empty(0, spec.dtype)).dtype
            meta = torch.empty(tuple(shapes[spec.name]), dtype=dtype, device="meta")
            self._values[spec.name] = _Value(Operand(tensor=meta, known=False), self._new_slot(meta))
            self._inputs.append(self._values[spec.name].slot)
        for node in prepared.nodes:
            self._add(node)
        self._outputs = [self._output(spec) for spec in prepared.outputs]

    def finish(self, choose: Chooser | None) -> Program:
        """Drop what nobody reads, say when each value is no longer needed, and bring the constants to the device."""
        steps, read = [], set(self._outputs)
        for step in reversed(self._steps if choose is None else self._fused(choose)):
            if not any(slot in read for slot in step.results):
                continue
            frees = []
            results = tuple(slot if slot in read else -1 for slot in step.results)
            for slot in dict.fromkeys(step.arguments):
                if slot not in read:
                    read.add(slot)
                    frees.append(slot)
            steps.append(step._replace(frees=tuple(frees), results=results))
        template: list[Tensor | None] = [None] * len(self._metas)
        for slot, name, tensor, channels_last in self._constant_sources:
            if slot in read:
                template[slot] = self._prepared.constant(name, tensor, channels_last=channels_last)
        return Program(tuple(steps[::-1]), template, tuple(self._inputs), tuple(self._outputs))

    def _fused(self, choose: Chooser) -> list[Step]:
        """The steps with convolution, sum and activation as one, where nobody reads what is between them."""
        readers: dict[int, list[int]] = {slot: [-1] for slot in self._outputs}
        for position, step in enumerate(self._steps):
            for slot in step.arguments:
                readers.setdefault(slot, []).append(position)
        steps: list[Step | None] = list(self._steps)
        for first, step in enumerate(self._steps):
            if step.convolution is None:
                continue
            chain = [first]
            while len(chain) < 3 and len(readers.get(self._steps[chain[-1]].results[0], [])) == 1:
                (following,) = readers[self._steps[chain[-1]].results[0]]
                if following < 0 or steps[following] is not self._steps[following]:  # an output, or already joined
                    break
                if self._steps[following].operator != "Add" and self._steps[following].clamp is None:
                    break
                chain.append(following)
                if self._steps[following].clamp is not None:
                    break
            fused = self._fusion(step, [self._steps[position] for position in chain[1:]], choose)
            if fused is not None:
                for position in chain[:-1]:
                    steps[position] = None
                steps[chain[-1]] = fused
        return [step for step in steps if step is not None]

    def _fusion(self, convolution: Step, others: Sequence[Step], choose: Chooser) -> Step | None:
        """One step in place of a convolution, perhaps a sum, and an activation; None where they are something else."""
        if not others or others[-1].clamp is None or others[-1].clamp[0] != 0 or convolution.convolution is None:
            return None
        arguments = convolution.arguments
        if len(others) == 2:
            (mine,) = convolution.results
            other = [slot for slot in others[0].arguments if slot != mine]
            if len(other) != 1 or len(others[0].arguments) != 2:
                return None  # a number, or the same twice
            ours, theirs = self._metas[mine], self._metas[other[0]]
            if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
                return None
            arguments = (*arguments, other[0])
        wanted = ActivatedConvolution(
            convolution.convolution, len(convolution.arguments) == 3, len(others) == 2, others[-1].clamp[1]
        )
        function = choose(wanted, [self._metas[slot] for slot in arguments])
        return Step(convolution.label, function, arguments, others[-1].results, operator="Conv")

    def _new_slot(self, meta: Tensor) -> int:
        self._metas.append(meta)
        return len(self._metas) - 1

    def _add(self, node: Node) -> None:
        values = [self._values[name] if name else None for name in node.inputs]
        if self._is_dropped_cast(node, values):
            self._values[node.outputs[0]] = self._values[node.inputs[0]]
            return
        try:
            operands = [
                None if value is None else self._as_type(value, target)
                for value, target in zip(values, self._types(node, values), strict=True)
            ]
            operation = Operation(node=node, opset=self._prepared.graph.opset, operands=operands)
            function = build(operation)
            if function is None:
                self._alias(node, values[0], operation.operand(0))
            elif all(operation.operand(index).known for index in operation.arguments):
                for name, tensor in _fold(operation, function).items():
                    self._values[name] = _Value(Operand(tensor=tensor, known=True))
            else:
                self._call(node, operation, function, values)
        except EngineLoadError:
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise StepFailed(str(node), error) from error

    def _is_dropped_cast(self, node: Node, values: Sequence[_Value | None]) -> bool:
        """A cast from one float type to another: in half precision types are chosen here, not by the file."""
        if self._prepared.half is None or node.operator not in {"Cast", "CastLike"}:
            return False
        value = values[0]
        target = TORCH_DTYPE.get(node.attributes["to"]) if node.operator == "Cast" else None
        return value is not None and value.is_dynamic_float and (target is None or target in _FLOATS)

    def _types(self, node: Node, values: Sequence[_Value | None]) -> list[torch.dtype | None]:
        """The float type in which each operand is read; None where it stays as it is."""
        half = self._prepared.half
        floats = [value.dtype for value in values if value is not None and value.is_dynamic_float]
        if half is None or not floats or node.operator in {"Shape", "Cast", "CastLike"}:
            return [None] * len(values)
        if node.operator in _ALIGNS:  # matrices and poses are coordinates
            return [half, torch.float32, None, torch.float32][: len(values)]
        if node.operator in PRODUCTS:
            two_unknown = node.operator == "MatMul" and len(floats) > 1
            target = torch.float32 if two_unknown else half
        elif node.operator in _WIDE:
            target = torch.float32
        elif node.operator == "Concat":
            target = half if half in floats else torch.float32
        else:
            target = floats[0] if len(set(floats)) == 1 else torch.float32
        return [target if value is not None and value.dtype in _FLOATS else None for value in values]

    def _as_type(self, value: _Value, dtype: torch.dtype | None) -> Operand:
        operand = value.operand
        if dtype is None or dtype == value.dtype:
            return operand
        if not operand.known:
            return replace(operand, tensor=operand.tensor.to(dtype))
        key = (id(operand.tensor), dtype)
        if key not in self._known_casts:
            self._known_casts[key] = operand.tensor.to(dtype)
        return replace(operand, tensor=self._known_casts[key])

    def _alias(self, node: Node, value: _Value | None, operand: Operand) -> None:
        assert value is not None  # noqa: S101  a builder says "the first operand itself"
        slot = value.slot if operand.known else self._slot_as(value, operand.tensor.dtype)
        self._fresh.discard(slot)  # two names now stand for it
        self._values[node.outputs[0]] = _Value(operand, slot, value.shared_name if operand is value.operand else "")

    def _call(
        self, node: Node, operation: Operation, function: Callable[..., Any], values: Sequence[_Value | None]
    ) -> None:
        slots, metas = [], []
        for index in operation.arguments:
            operand = operation.operand(index)
            value = values[index] if index < len(values) else None
            if operand.known:
                channels_last = index in operation.channels_last
                name = self._shared_name(value, operand.tensor)
                slots.append(self._constant_slot(operand.tensor, channels_last, name))
                metas.append(operand.tensor.to("meta"))
            else:
                assert value is not None  # noqa: S101  builders replace known operands only
                slots.append(self._slot_as(value, operand.tensor.dtype))
                metas.append(operand.tensor)
        if operation.in_place is not None and slots[0] in self._fresh and self._prepared.uses[node.inputs[0]] == 1:
            function = operation.in_place
        results = function(*metas)
        results = results if isinstance(results, tuple) else (results,)
        written = tuple(self._new_slot(result) for result in results)
        step = Step(str(node), function, tuple(slots), written, operator=node.operator)
        self._steps.append(step._replace(convolution=operation.convolution, clamp=operation.clamp))
        first = values[0]
        inherits = node.operator in _VIEWS and first is not None and first.operand.non_negative
        for position, (slot, result) in enumerate(zip(written, results, strict=True)):
            ranks = node.operator == "TopK" and position == 1
            if position < len(node.outputs) and node.outputs[position]:
                operand = Operand(tensor=result, known=False, non_negative=inherits or ranks)
                self._values[node.outputs[position]] = _Value(operand, slot)
        if node.operator in _FRESH:
            self._fresh.update(written)

    def _shared_name(self, value: _Value | None, tensor: Tensor) -> str:
        """Name of a constant that is the file's own, or that in another type; "" where a builder made it."""
        if value is None:
            return ""
        original = value.operand.tensor
        is_own = tensor is original or tensor is self._known_casts.get((id(original), tensor.dtype))
        return value.shared_name if is_own else ""

    def _slot_as(self, value: _Value, dtype: torch.dtype) -> int:
        """Slot of a value in another float type; the cast becomes a step of its own, once."""
        if dtype == value.dtype:
            return value.slot
        key = (value.slot, dtype)
        if key not in self._casts:
            self._casts[key] = self._new_slot(value.operand.tensor.to(dtype))
            self._steps.append(Step("cast", lambda x: x.to(dtype), (value.slot,), (self._casts[key],)))
        return self._casts[key]

    def _constant_slot(self, tensor: Tensor, channels_last: bool, name: str) -> int:
        key = (id(tensor), channels_last)
        if key not in self._constants:
            self._constants[key] = self._new_slot(tensor.to("meta"))
            self._constant_sources.append((self._constants[key], name, tensor, channels_last))  # also keeps its id
        return self._constants[key]

    def _output(self, spec: TensorSpec) -> int:
        value = self._values[spec.name]
        dtype = torch.from_numpy(np.empty(0, spec.dtype)).dtype
        if value.operand.known:
            return self._constant_slot(value.operand.tensor.to(dtype), False, "")
        return self._slot_as(value, dtype)
