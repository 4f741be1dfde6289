"""Convolution, bias, sum and activation in one cuDNN call where that is faster.

PyTorch launches a kernel each for the convolution, its bias, a sum and the activation. cuDNN has fused calls; which of
its engines exist for a size, a type and a number of groups differs from release to release, and so does which way is
faster. So nothing is assumed: on the GPU both ways compute the same random numbers, a fused call that fails or differs
is not taken, and the faster one is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from engines.torch_operation import CHANNELS_LAST, Convolution, Function

_log = logging.getLogger(__name__)

_WARM_UP_CALLS, _TIMED_CALLS = 3, 20
_MAX_DIFFERENCE: Final = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}  # of the largest value


class ActivatedConvolution(NamedTuple):
    """``clamp(convolution(x) + z, 0, upper)``.

    Attributes:
        convolution: its parameters.
        has_bias: the weights are followed by a bias.
        has_sum: there is a z, the last argument.
        upper: None is no limit.
    """

    convolution: Convolution
    has_bias: bool
    has_sum: bool
    upper: float | None


class Chooser(Protocol):
    """Says how to compute an activated convolution of arguments with the shapes and types of these meta tensors."""

    def __call__(self, wanted: ActivatedConvolution, arguments: Sequence[Tensor]) -> Function: ...


def in_parts(wanted: ActivatedConvolution) -> Function:
    """PyTorch's own calls: x, weight, the bias and z if there are any -> result."""
    c, has_bias, has_sum, upper = wanted.convolution, wanted.has_bias, wanted.has_sum, wanted.upper

    def compute(x: Tensor, weight: Tensor, *others: Tensor) -> Tensor:
        result = torch.conv2d(
            _ready(x, c), weight, others[0] if has_bias else None, c.strides, c.padding, c.dilations, c.groups
        )
        if has_sum:
            result += others[-1]
        return result.relu_() if upper is None else result.clamp_(0, upper)

    return compute


def by_cudnn(wanted: ActivatedConvolution) -> Function:
    """As `in_parts`, by cuDNN's fused calls: on CUDA only."""
    c, has_bias, has_sum, upper = wanted.convolution, wanted.has_bias, wanted.has_sum, wanted.upper

    def compute(x: Tensor, weight: Tensor, *others: Tensor) -> Tensor:
        x, bias = _ready(x, c), others[0] if has_bias else None
        if has_sum:
            z = others[-1].contiguous(memory_format=CHANNELS_LAST)
            result = torch.cudnn_convolution_add_relu(
                x, weight, z, 1.0, bias, c.strides, c.padding, c.dilations, c.groups
            )
        else:
            result = torch.cudnn_convolution_relu(x, weight, bias, c.strides, c.padding, c.dilations, c.groups)
        return result if upper is None else result.clamp_(max=upper)

    return compute


def _ready(x: Tensor, convolution: Convolution) -> Tensor:
    x = x.contiguous(memory_format=CHANNELS_LAST)
    return x if convolution.border is None else F.pad(x, convolution.border)


class FasterOfBoth:
    """Measures on a device; each size once.

    Args:
        device: where.
        ways: makers of the functions that compete, the trusted one first.
        time_ms: how long a call takes; CUDA events by default.
    """

    def __init__(
        self,
        device: torch.device,
        ways: Sequence[Callable[[ActivatedConvolution], Function]] = (in_parts, by_cudnn),
        time_ms: Callable[[Callable[[], Any]], float] | None = None,
    ) -> None:
        self._device = device
        self._ways = tuple(ways)
        self._time_ms = time_ms or self._time_by_events
        self._chosen: dict[tuple[Any, ...], Function] = {}

    def __call__(self, wanted: ActivatedConvolution, arguments: Sequence[Tensor]) -> Function:
        key = (wanted, *((tuple(argument.shape), argument.dtype) for argument in arguments))
        if key not in self._chosen:
            self._chosen[key] = self._measured(wanted, arguments)
        return self._chosen[key]

    def _measured(self, wanted: ActivatedConvolution, arguments: Sequence[Tensor]) -> Function:
        generator = torch.Generator(self._device).manual_seed(0)
        tensors = []
        for meta in arguments:
            tensor = torch.randn(meta.shape, generator=generator, device=self._device).to(meta.dtype)
            tensors.append(tensor.contiguous(memory_format=CHANNELS_LAST) if tensor.ndim == 4 else tensor)
        trusted, *others = (way(wanted) for way in self._ways)
        expected = trusted(*tensors).float()
        limit = _MAX_DIFFERENCE.get(arguments[0].dtype, 0.0) * float(expected.abs().max())
        running = [trusted]
        for function in others:
            try:
                found = function(*tensors)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                _log.debug("no fused call for %s: %s", wanted, str(error).partition("\n")[0])
                continue
            if found.shape == expected.shape and float((found.float() - expected).abs().max()) <= limit:
                running.append(function)
            else:
                _log.warning("cuDNN's fused call computes something else for %s: not used", wanted)
        if len(running) == 1:
            return trusted
        return min(running, key=lambda function: self._time_ms(lambda: function(*tensors)))

    def _time_by_events(self, call: Callable[[], Any]) -> float:
        for _ in range(_WARM_UP_CALLS):
            call()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(_TIMED_CALLS):
            call()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) / _TIMED_CALLS
