"""A stand-in for torch2trt, which no package index has: the same names and the same way of working - functions are
hooked where they live, a converter reads the context and hangs `_trt` on the result - with converters for four
functions. At import and in use it asks of `tensorrt` what the real one asks.

It proves our side: the shim, the module made of a graph, our own converter, and that a plan comes out. Whether the real
torch2trt's converters do the same is not proven by it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Self

import tensorrt as trt
import torch

CONVERTERS: dict[str, tuple[Any, str, Callable[..., Any], Callable[[Any], None]]] = {}


class Calibrator(trt.IInt8Calibrator):
    algorithm = trt.CalibrationAlgoType.ENTROPY_CALIBRATION_2


EXPLICIT_BATCH = trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH
assert trt.__version__ >= "10"


def tensorrt_converter(method: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    module_name, _, name = method.rpartition(".")
    module = importlib.import_module(module_name)

    def register(converter: Callable[[Any], None]) -> Callable[[Any], None]:
        CONVERTERS[method] = (module, name, getattr(module, name), converter)
        return converter

    return register


def add_missing_trt_tensors(network: Any, tensors: list[Any]) -> list[Any]:
    for tensor in tensors:
        if not hasattr(tensor, "_trt"):
            tensor._trt = network.add_constant(tuple(tensor.shape), tensor.detach().numpy()).get_output(0)
    return [tensor._trt for tensor in tensors]


class ConversionContext:
    def __init__(self, network: Any, torch2trt_kwargs: Any = None, builder_config: Any = None) -> None:
        assert isinstance(torch2trt_kwargs["module"], torch.nn.Module)
        assert torch2trt_kwargs["default_device_type"] == trt.DeviceType.GPU
        self.network = network
        self.lock = False
        self.method_args: Any = None
        self.method_kwargs: Any = None
        self.method_return: Any = None

    def __enter__(self) -> Self:
        for module, name, original, converter in CONVERTERS.values():
            setattr(module, name, self._hooked(original, converter))
        return self

    def __exit__(self, *_: object) -> None:
        for module, name, original, _converter in CONVERTERS.values():
            setattr(module, name, original)

    def _hooked(self, original: Callable[..., Any], converter: Callable[[Any], None]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.lock:
                return original(*args, **kwargs)
            self.lock = True
            try:
                result = original(*args, **kwargs)
                self.method_args, self.method_kwargs, self.method_return = args, kwargs, result
                converter(self)
            finally:
                self.lock = False
            return result

        return call

    def add_inputs(self, inputs: Any, names: list[str]) -> None:
        kinds = {torch.float32: trt.float32, torch.int32: trt.int32}
        for tensor, name in zip(inputs, names, strict=True):
            tensor._trt = self.network.add_input(name=name, shape=tuple(tensor.shape), dtype=kinds[tensor.dtype])
            tensor._trt.location = trt.TensorLocation.HOST

    def mark_outputs(self, outputs: Any, names: list[str]) -> None:
        for tensor, name in zip(outputs, names, strict=True):
            tensor._trt.name = name
            tensor._trt.location = trt.TensorLocation.HOST
            tensor._trt.dtype = trt.float32
            self.network.mark_output(tensor._trt)


@tensorrt_converter("torch.nn.functional.conv2d")
def convert_conv(context: Any) -> None:
    x, weight, bias, strides, pads, dilations, groups = context.method_args
    (taken,) = add_missing_trt_tensors(context.network, [x])
    layer = context.network.add_convolution_nd(
        input=taken,
        num_output_maps=int(weight.shape[0]),
        kernel_shape=tuple(weight.shape[2:]),
        kernel=weight.numpy(),
        bias=None if bias is None else bias.numpy(),
    )
    layer.stride_nd, layer.padding_nd, layer.dilation_nd, layer.num_groups = strides, pads, dilations, groups
    context.method_return._trt = layer.get_output(0)


@tensorrt_converter("torch.nn.functional.relu")
def convert_relu(context: Any) -> None:
    (taken,) = add_missing_trt_tensors(context.network, list(context.method_args))
    context.method_return._trt = context.network.add_activation(taken, trt.ActivationType.RELU).get_output(0)


@tensorrt_converter("torch.sigmoid")
def convert_sigmoid(context: Any) -> None:
    (taken,) = add_missing_trt_tensors(context.network, list(context.method_args))
    context.method_return._trt = context.network.add_activation(taken, trt.ActivationType.SIGMOID).get_output(0)


@tensorrt_converter("torch.add")
def convert_add(context: Any) -> None:
    first, second = add_missing_trt_tensors(context.network, list(context.method_args))
    layer = context.network.add_elementwise(first, second, trt.ElementWiseOperation.SUM)
    context.method_return._trt = layer.get_output(0)
