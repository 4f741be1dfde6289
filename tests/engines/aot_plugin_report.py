"""What TensorRT's own Python layer makes of our ahead-of-time plugin, as JSON; no TensorRT library and no GPU.

    python -m tests.engines.aot_plugin_report [FOLDER of an unpacked bindings wheel]

The decorators of `tensorrt.plugin` check our declaration, and its template class is led through the calls of a build,
with sizes that are names: a stand-in for TensorRT's expressions keeps them readable.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from engines import tensorrt_plugin
from tests.engines.tensorrt_bindings import load_bindings

KERNEL = b"\x7fELF any bytes"


def readable(value: Any) -> Any:
    """Nested names and numbers of an expression."""
    return value.term if hasattr(value, "term") else value


def main() -> None:
    trt: Any = load_bindings(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    registered: dict[tuple[str, str], Any] = {}

    class Registry:
        def register_creator(self, creator: Any, plugin_namespace: str = "") -> bool:
            registered[plugin_namespace, creator.name] = creator
            return True

        def get_creator(self, name: str, version: str, plugin_namespace: str = "") -> Any:
            return registered[plugin_namespace, name]

    class Expression(trt.IDimensionExpr):
        term: Any

    def term(value: Any) -> Any:
        made = Expression.__new__(Expression)  # the real constructor wants TensorRT's own object
        made.term = value
        return made

    class ExpressionBuilder:
        def constant(self, value: int) -> Any:
            return term(value)

        def operation(self, operation: Any, first: Any, second: Any) -> Any:
            return term([operation.name, first.term, second.term])

    class Expressions(list[Any]):
        def __init__(self, size: int) -> None:
            super().__init__([None] * size)

    class SymbolicArgument:
        def __init__(self, expression: Any) -> None:
            self.term = [type(expression).__name__, expression._expr.term]

    trt.get_plugin_registry = Registry
    sys.modules["tensorrt.plugin"] = package = importlib.import_module("tensorrt_bindings.plugin")
    plugin_class = importlib.import_module("tensorrt_bindings.plugin._plugin_class")
    tensor = importlib.import_module("tensorrt_bindings.plugin._tensor")
    trt.DimsExprs = Expressions
    tensor.SymExprImpl = SymbolicArgument
    if hasattr(plugin_class, "SymExprImpl"):
        plugin_class.SymExprImpl = SymbolicArgument
    assert package.__name__ == "tensorrt_bindings.plugin"

    tensorrt_plugin.register_aot_plugin(trt, lambda: KERNEL)
    tensorrt_plugin.register_aot_plugin(trt, lambda: KERNEL)  # once a process, however often it is asked for
    ((place, creator),) = registered.items()
    fields = {field.name: field.type for field in creator.field_names}
    size = trt.PluginField("size", np.array([64], np.int32), fields["size"])
    plugin = creator.create_plugin(
        creator.name,
        place[0],
        trt.PluginFieldCollection([size]),
        trt.TensorRTPhase.BUILD,
        trt.QuickPluginCreationRequest.PREFER_AOT,
    )
    report: dict[str, Any] = {
        "version": trt.__version__,
        "registered": list(place),
        "fields": {name: kind.name for name, kind in fields.items()},
        "aot": isinstance(plugin, trt.IPluginV3QuickAOTBuild),
        "launches": {},
    }
    kind = trt.DataType
    sizes = [(8, 48, 72, 128), (32, 2, 3), (32,), (32, 48, 64, 64)]
    for features in (kind.FLOAT, kind.HALF):
        types = [features, kind.FLOAT, kind.INT32]
        output_types = plugin.get_output_data_types(types, [4, 3, 1])
        inputs = [[term(one) for one in shape] for shape in (("B", "C", "h", "w"), ("N", 2, 3), ("N",))]
        shapes = plugin.get_output_shapes(inputs, [], ExpressionBuilder())
        described = []
        for one_type, shape in zip([*types, *output_types], sizes, strict=True):
            inner = trt.PluginTensorDesc()
            inner.type, inner.format, inner.dims = one_type, trt.TensorFormat.LINEAR, shape
            outer = trt.DynamicPluginTensorDesc()
            outer.desc, outer.min, outer.opt, outer.max = inner, shape, shape, shape
            described.append(outer)
        combinations = plugin.get_supported_format_combinations(described, 3)
        plugin.configure_plugin(described[:3], described[3:])
        tactics = plugin.get_valid_tactics()
        plugin.set_tactic(0)

        class LaunchParameters:
            pass

        class Arguments(dict[int, Any]):
            nbSymExprs = 0  # noqa: N815  the real name

        launch, arguments = LaunchParameters(), Arguments()
        plugin.get_launch_params(inputs, described, 3, launch, arguments, ExpressionBuilder())
        name, image = plugin.get_kernel([one.desc for one in described[:3]], [one.desc for one in described[3:]])
        report["launches"][features.name] = {
            "output_type": output_types[0].name,
            "output_shape": [readable(one) for one in shapes[0]],
            "combinations": [
                [one.type.name for one in combinations[start : start + 4]] for start in range(0, len(combinations), 4)
            ],
            "formats": sorted({one.format.name for one in combinations}),
            "tactics": tactics,
            "kernel": name,
            "image_is_ours": image == KERNEL,
            "launch": {key: readable(value) for key, value in vars(launch).items()},
            "arguments": [readable(arguments[index]) for index in range(arguments.nbSymExprs)],
        }
    print(json.dumps(report, default=str))


if __name__ == "__main__":
    main()
