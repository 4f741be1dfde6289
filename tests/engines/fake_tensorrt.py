"""A TensorRT that runs on the CPU: the classes and arguments of the real bindings, arithmetic in NumPy, and no mercy.

Whatever real TensorRT leaves undefined is an error here: an address that no buffer has, running on the default stream
or outside a session, replaying a graph whose context was changed since, running before shapes and addresses are set.
`test_tensorrt_api.py` holds every class and method against the real ones. `FakeMemory` stands for device memory.
"""

from __future__ import annotations

import contextlib
import enum
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Compute = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]


class FakeOutOfMemoryError(RuntimeError):
    """In place of torch's."""


class FakeMemory:
    """NumPy arrays as device tensors; their host address is the device address."""

    out_of_memory: tuple[type[Exception], ...] = (FakeOutOfMemoryError,)

    def __init__(self, stream: int = 7) -> None:
        self.stream = stream
        self.active: int | None = None
        self.capturing: list[Callable[[], None]] | None = None
        self.buffers: dict[int, NDArray[Any]] = {}
        self.events: list[str] = []
        self.free_bytes = 1 << 40
        self.can_capture = True

    @property
    def device(self) -> str:
        return "cuda:0"

    @contextlib.contextmanager
    def session(self) -> Iterator[int]:
        assert self.active is None
        self.active = self.stream
        try:
            yield self.stream
        finally:
            self.active = None

    def _make(self, shape: Sequence[int], dtype: np.dtype[Any], fill: int) -> NDArray[Any]:
        assert self.active is not None
        assert self.capturing is None, "an allocation inside a captured graph"
        made = np.full(tuple(shape), fill, dtype)
        if made.nbytes > self.free_bytes:
            raise FakeOutOfMemoryError(f"{made.nbytes} bytes wanted, {self.free_bytes} free")
        return made

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
        self.events.append("empty")
        return self._make(shape, dtype, 113)  # anything but zero: nothing may be read before it is written

    def zeros(self, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
        self.events.append("zeros")
        made = self._make(shape, dtype, 0)
        self.buffers[made.ctypes.data] = made
        return made

    def address(self, tensor: NDArray[Any]) -> int:
        return int(tensor.ctypes.data)

    def copy(self, target: NDArray[Any], source: NDArray[Any]) -> None:
        assert self.active is not None
        assert target.shape == source.shape
        self.events.append("copy")
        np.copyto(target, source, casting="no")

    def clear(self, target: NDArray[Any]) -> None:
        assert self.active is not None
        self.events.append("clear")
        target[...] = 0

    def concatenate(self, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate(parts)

    def describe(self, value: Any) -> tuple[np.dtype[Any], tuple[int, ...], str] | None:
        return (value.dtype, value.shape, "cuda:0") if isinstance(value, np.ndarray) else None

    def upload(self, array: NDArray[Any]) -> NDArray[Any]:
        return array.copy()

    def download(self, tensor: NDArray[Any]) -> NDArray[Any]:
        return tensor

    def capture(self, enqueue: Callable[[int], None]) -> Callable[[], None]:
        if not self.can_capture:
            raise RuntimeError("operation not permitted when stream is capturing")
        assert self.active is not None
        self.events.append("capture")
        recorded: list[Callable[[], None]] = []
        self.capturing = recorded
        try:
            enqueue(self.stream)
        finally:
            self.capturing = None

        def replay() -> None:
            assert self.active is not None
            self.events.append("replay")
            for step in recorded:
                step()

        return replay

    def wait(self) -> None:
        self.events.append("wait")

    def free(self) -> None:
        self.events.append("free")


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    BF16 = 7
    INT64 = 8


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class EngineValidity(enum.Enum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class ComputeCapability(enum.Enum):
    CURRENT = 0


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        pass


def plan_of(*tensors: tuple[str, str, str, Sequence[int], Sequence[Sequence[int]]]) -> bytes:
    """A plan of (name, "INPUT" or "OUTPUT", type, shape, [smallest, best, largest])."""
    return json.dumps([list(one) for one in tensors]).encode()


class World:
    """One fake library and what it is asked to do; `module` is what code under test gets."""

    def __init__(self, memory: FakeMemory, compute: Compute, *, name: str = "tensorrt") -> None:
        self.memory = memory
        self.compute = compute
        self.contexts: list[Any] = []
        self.kernels = b"kernels"
        self.accepted_kernels: list[bytes] = []
        self.validity = EngineValidity.VALID
        self.fail: str | None = None  # what execute_async_v3 says instead of running
        self.creators: list[Any] = []
        self.module = _module(self, name)


def _module(world: World, name: str) -> ModuleType:
    rtx = name == "tensorrt_rtx"
    memory = world.memory

    class IRuntimeCache:
        def __init__(self) -> None:
            self._content = b""

        def deserialize(self, blob: bytes) -> bool:
            world.accepted_kernels.append(blob)
            return blob == world.kernels

        def serialize(self) -> bytes:
            return world.kernels

        def reset(self) -> bool:
            return True

    class IRuntimeConfig:
        def __init__(self) -> None:
            self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
            self.cache: Any = None

        def create_runtime_cache(self) -> IRuntimeCache:
            return IRuntimeCache()

        def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
            self.cache = cache
            return True

    class IExecutionContext:
        def __init__(self, engine: ICudaEngine, how: Any) -> None:
            self._engine, self.how = engine, how
            self.shapes: dict[str, tuple[int, ...]] = {}
            self.addresses: dict[str, int] = {}
            self.scratch: tuple[int, int] | None = None
            self._warm: set[Any] = set()

        def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
            tensor = self._engine.tensors[name]
            assert tensor[1] == "INPUT"
            low, _, high = tensor[4]
            if not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
                self._engine.logger.log(ILogger.ERROR, " ".join((name, str(shape), "is outside the profile")))
                return False
            self.shapes[name] = tuple(shape)
            return True

        def set_tensor_address(self, name: str, memory: int) -> bool:
            assert name in self._engine.tensors
            self.addresses[name] = memory
            return True

        def infer_shapes(self) -> list[str]:
            inputs = [one[0] for one in self._engine.tensors.values() if one[1] == "INPUT"]
            return [one for one in inputs if one not in self.shapes]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            feeds = {one: np.zeros(shape, self._engine.dtype(one)) for one, shape in self.shapes.items()}
            return world.compute(feeds)[name].shape

        def set_device_memory(self, memory: int, size: int) -> None:
            self.scratch = (memory, size)

        def execute_async_v3(self, stream_handle: int) -> bool:
            assert stream_handle != 0, "the default stream"
            assert stream_handle == memory_of.active
            if world.fail is not None:
                self._engine.logger.log(ILogger.ERROR, world.fail)
                return False
            state = (tuple(sorted(self.shapes.items())), tuple(sorted(self.addresses.items())))
            if self.how is ExecutionContextAllocationStrategy.USER_MANAGED:
                assert self.scratch is not None
                assert memory_of.buffers[self.scratch[0]].nbytes >= self._engine.device_memory_size_v2
            if memory_of.capturing is None:
                self._warm.add(state)
                self._run(state)
                memory_of.events.append("execute")
            else:
                assert state in self._warm, "captured without a call of these shapes before"
                memory_of.capturing.append(lambda: self._run(state))
            return True

        def _run(self, state: Any) -> None:
            now = (tuple(sorted(self.shapes.items())), tuple(sorted(self.addresses.items())))
            assert now == state, "the context was changed after its graph was captured"
            arrays = {one: memory_of.buffers[address] for one, address in self.addresses.items()}
            assert set(arrays) == set(self._engine.tensors)
            feeds = {one: arrays[one] for one in self.shapes}
            for one, shape in self.shapes.items():
                assert arrays[one].shape == shape
                assert arrays[one].dtype == self._engine.dtype(one)
            for one, value in world.compute(feeds).items():
                arrays[one][...] = value

    memory_of = memory

    class ICudaEngine:
        def __init__(self, tensors: list[Any], logger: Any) -> None:
            self.tensors = {one[0]: one for one in tensors}
            self.logger = logger
            self.device_memory_size_v2 = 1000
            self.num_io_tensors = len(tensors)

        def dtype(self, name: str) -> np.dtype[Any]:
            kinds = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "UINT8": np.uint8}
            return np.dtype(kinds[self.tensors[name][2]])

        def get_tensor_name(self, index: int) -> str:
            return list(self.tensors)[index]

        def get_tensor_dtype(self, name: str) -> DataType:
            return DataType[self.tensors[name][2]]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(self.tensors[name][3])

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode[self.tensors[name][1]]

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
            assert profile_index == 0
            return [tuple(shape) for shape in self.tensors[name][4]]

        def create_runtime_config(self) -> IRuntimeConfig:
            return IRuntimeConfig()

        def create_execution_context(self, strategy: Any = None) -> IExecutionContext:
            assert isinstance(strategy, IRuntimeConfig) is rtx
            world.contexts.append(IExecutionContext(self, strategy))
            return world.contexts[-1]

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
            try:
                return ICudaEngine(json.loads(serialized_engine), self._logger)
            except ValueError:
                self._logger.log(ILogger.ERROR, "IRuntime::deserializeCudaEngine: magic tag does not match")
                return None

        def get_engine_validity(self, buffer: bytes) -> tuple[EngineValidity, int]:
            return (world.validity, 4)

    class IPluginRegistry:
        def register_creator(self, creator: Any, plugin_namespace: str = "") -> bool:
            world.creators.append((creator, plugin_namespace))
            return True

    class PluginPart:
        def __init__(self) -> None:
            pass

    class PluginField:
        def __init__(self, name: str, data: Any, type: Any) -> None:  # noqa: A002
            self.name, self.data, self.type = name, data, type

    module = ModuleType(name)
    made: dict[str, Any] = {
        "__version__": "1.7.1.116" if rtx else "11.4.0.106",
        "ILogger": ILogger,
        "Runtime": Runtime,
        "ICudaEngine": ICudaEngine,
        "IExecutionContext": IExecutionContext,
        "IRuntimeConfig": IRuntimeConfig,
        "DataType": DataType,
        "TensorIOMode": TensorIOMode,
        "ExecutionContextAllocationStrategy": ExecutionContextAllocationStrategy,
    }
    if rtx:
        made |= {
            "IRuntimeCache": IRuntimeCache,
            "ComputeCapability": ComputeCapability,
            "CudaGraphStrategy": CudaGraphStrategy,
            "EngineValidity": EngineValidity,
            "IPluginRegistry": IPluginRegistry,
            "IPluginV3": type("IPluginV3", (PluginPart,), {}),
            "IPluginV3OneCore": type("IPluginV3OneCore", (PluginPart,), {}),
            "IPluginV3OneBuild": type("IPluginV3OneBuild", (PluginPart,), {}),
            "IPluginV3OneRuntime": type("IPluginV3OneRuntime", (PluginPart,), {}),
            "IPluginCreatorV3One": type("IPluginCreatorV3One", (PluginPart,), {}),
            "PluginField": PluginField,
            "PluginFieldCollection": list,
            "PluginFieldType": enum.Enum("PluginFieldType", [("INT32", 5)]),
            "get_plugin_registry": IPluginRegistry,
        }
    else:  # TensorRT's own classes have none of these
        for member in ("create_runtime_cache", "set_runtime_cache"):
            delattr(IRuntimeConfig, member)
        delattr(Runtime, "get_engine_validity")
    module.__dict__.update(made)
    return module
