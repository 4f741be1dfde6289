"""One ONNX node on its way to a torch call, and the table of those who make it.

`OPERATORS` maps an ONNX name to a builder. A builder sees one node with the shapes and types of its operands for one
set of input shapes, and returns the function that computes it. Operands that are known beforehand (weights, and
everything that follows from shapes) may be built in; the others become the function's arguments, in their order. The
functions work on tensors of any device, the meta device included, and look at no value, so that a CUDA graph can
record them.

An attribute that a builder does not read is refused: nothing is ignored that could change the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch import Tensor

from engines.engine import EngineLoadError
from engines.torch_graph import Node

Function: TypeAlias = Callable[..., Any]
"""Tensors in; a tensor out, or a tuple of them where the node has several outputs."""

CHANNELS_LAST: Final = torch.channels_last

MAX_FOLDED_ELEMENTS: Final = 1 << 28
"""Largest tensor that is worked out beforehand; a graph that asks for more is damaged or hostile."""


class Unsupported(EngineLoadError):
    """A node uses a feature of its operator that is not handled, whatever the sizes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Operand:
    """An input of a node.

    Attributes:
        tensor: the value on the CPU when it is `known`, else a meta tensor with its shape and type.
        known: it is the same in every call with these input shapes.
        non_negative: an index that cannot be below zero.
    """

    tensor: Tensor
    known: bool
    non_negative: bool = False


class Convolution(NamedTuple):
    """Parameters of a two-dimensional convolution.

    Attributes:
        strides, padding, dilations: rows, columns.
        groups: of channels.
        border: zeros around the input, (left, right, top, bottom) px, where they are not the same on both sides;
            `padding` is zero then.
    """

    strides: tuple[int, ...]
    padding: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int
    border: tuple[int, int, int, int] | None


@dataclass(slots=True, kw_only=True, eq=False)
class Operation:
    """One node while its function is built.

    Attributes:
        node: the node.
        opset: version of the operator set.
        operands: one per input; None where an optional one is left out. A builder may `replace` known ones.
        arguments: indices of the operands that the function is called with.
        channels_last: indices among `arguments` of known operands that should be stored channels-last.
        in_place: the same function over its first argument's memory, where there is one.
        convolution: what the function does, where it is one.
        clamp: (lowest, highest) that the function limits to, where it does that; None is no limit.
    """

    node: Node
    opset: int
    operands: list[Operand | None]
    arguments: list[int] = field(init=False)
    channels_last: set[int] = field(default_factory=set)
    in_place: Function | None = None
    convolution: Convolution | None = None
    clamp: tuple[float | None, float | None] | None = None
    _read: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.arguments = [index for index, operand in enumerate(self.operands) if operand is not None]

    def unsupported(self, what: str, *, of_these_sizes: bool = False) -> EngineLoadError:
        """The error to raise; other sizes of the inputs may be handled where it lies in `of_these_sizes`."""
        message = f"{self.node}: {what} is not handled by the torch engine: run the graph with --engine onnx"
        return EngineLoadError(message) if of_these_sizes else Unsupported(message)

    def attribute(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return self.node.attributes.get(name, default)

    def only(self, name: str, *allowed: Any) -> None:
        """Refuse another value of an attribute; the first is the default."""
        value = self.attribute(name, allowed[0])
        if value not in allowed:
            raise self.unsupported(f"{name}={value!r}")

    def finish(self) -> None:
        unread = sorted(set(self.node.attributes) - self._read)
        if unread:
            raise self.unsupported(f"attribute {unread[0]!r}")

    def has(self, index: int) -> bool:
        return index < len(self.operands) and self.operands[index] is not None

    def operand(self, index: int) -> Operand:
        found = self.operands[index] if index < len(self.operands) else None
        if found is None:
            raise EngineLoadError(f"{self.node}: input {index} is missing: export the model again")
        return found

    def shape(self, index: int) -> tuple[int, ...]:
        return tuple(self.operand(index).tensor.shape)

    def dtype(self, index: int) -> torch.dtype:
        return self.operand(index).tensor.dtype

    def rank(self, index: int) -> int:
        return self.operand(index).tensor.ndim

    def axis(self, value: int, rank: int) -> int:
        if not -rank <= value < rank:
            raise EngineLoadError(f"{self.node}: axis {value} of {rank} dimensions: export the model again")
        return value % rank

    def fixed(self, index: int) -> Tensor:
        """Value of a known operand, which then is no argument."""
        operand = self.operand(index)
        if not operand.known:
            raise self.unsupported(f"input {index} that depends on the picture")
        if index in self.arguments:
            self.arguments.remove(index)
        return operand.tensor

    def ints(self, index: int) -> list[int]:
        return [int(value) for value in self.fixed(index).reshape(-1).tolist()]

    def number(self, index: int) -> Any:
        return self.fixed(index).reshape(-1).item()

    def replace(self, index: int, tensor: Tensor) -> None:
        """Give the function another known tensor in place of this one."""
        self.operands[index] = Operand(tensor=tensor, known=True)

    def small_number(self, index: int, rank: int) -> Any:
        """The value of a known operand of one element that broadcasting with `rank` dimensions does not show, or None.

        It then is no argument: a number in the call costs no memory and takes on the other operand's type.
        """
        operand = self.operand(index)
        if operand.known and operand.tensor.numel() == 1 and operand.tensor.ndim <= rank:
            return self.number(index)
        return None


Builder: TypeAlias = Callable[[Operation], Function | None]
"""Returns None where the result is the first operand itself."""

OPERATORS: Final[dict[str, Builder]] = {}


def operator(*names: str) -> Callable[[Builder], Builder]:
    def register(builder: Builder) -> Builder:
        OPERATORS.update(dict.fromkeys(names, builder))
        return builder

    return register


def same(function: Function) -> Builder:
    """Builder of an operator that is this function, whatever the node."""

    def build_same(_: Operation) -> Function:
        return function

    return build_same
