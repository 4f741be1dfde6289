"""CUDA graphs for programs: recorded once per set of shapes, replayed in one launch.

The logic - which sizes share a graph, padding, when to record, which graph to give up - knows no CUDA: it talks to a
`Recorder`. That of CUDA is `CudaRecorder`; tests bring their own.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

import torch
from torch import Tensor

from engines.engine import TensorSpec

CALLS_BEFORE_CAPTURE: Final = 1
"""Calls with the same sizes that run eagerly first: a folder of pictures of many sizes records nothing."""

MAX_GRAPHS: Final = 64
"""Recorded graphs that are kept; the one not used for longest goes first."""

BUCKET_NAME: Final = "N"
"""The size that is padded up, so that 32 possible numbers of people need six graphs."""

_CAPTURE = threading.Lock()  # torch cannot record two graphs of one process at a time

Sizes: TypeAlias = tuple[tuple[str, int], ...]
Compute: TypeAlias = Callable[[Sequence[Tensor]], list[Tensor]]
"""Runs a program eagerly."""


class Recorder(Protocol):
    """Records what a call does to a device, to do it again."""

    def capture(self, call: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], None]]:
        """Warm up and record a call that allocates its results.

        Returns:
            The results' memory, and a function that fills it again.
        """

    def begin(self) -> None:
        """Let the work that follows wait for what other streams do to the recorded memory."""

    def end(self) -> None:
        """The work on the recorded memory is enqueued."""


class _CudnnFlags:
    """PyTorch's flags of cuDNN, which a process has once, for several threads that want them changed for a while.

    The first to come stores them, the last to go puts them back; threads in between see each other's wishes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = self._searching = 0
        self._stored = ExitStack()

    @contextmanager
    def ieee_float32(self, *, search: bool) -> Iterator[None]:
        """No TF32, and everything else as PyTorch has it by default.

        Args:
            search: let cuDNN try all its algorithms for each new convolution and keep the fastest: seconds for a
                network.
        """
        with self._lock:
            if self._users == 0:
                self._stored.enter_context(
                    torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False)
                )
            self._users += 1
            self._searching += search
            torch.backends.cudnn.benchmark = self._searching > 0
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                self._searching -= search
                torch.backends.cudnn.benchmark = self._searching > 0
                if self._users == 0:
                    self._stored.close()


ieee_float32 = _CudnnFlags().ieee_float32
"""For convolutions of ours that are enqueued or recorded within."""


class CudaRecorder:
    """CUDA graphs on one device. All graphs of a recorder share one memory pool: they never run at the same time."""

    _WARM_UP_CALLS = 3  # lazy initialisation, and cuDNN's search for the fastest algorithms

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._done: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._last_stream: torch.cuda.Stream | None = None

    def capture(self, call: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], None]]:
        current = torch.cuda.current_stream(self._device)
        with _CAPTURE, torch.cuda.device(self._device), ieee_float32(search=True):
            self._side.wait_stream(current)
            with torch.cuda.stream(self._side):
                for _ in range(self._WARM_UP_CALLS):
                    call()
            current.wait_stream(self._side)
            graph = torch.cuda.CUDAGraph()
            # thread_local: other stages go on allocating and copying on their own threads meanwhile.
            with torch.cuda.graph(graph, self._pool, self._side, "thread_local"):
                results = call()
        return results, graph.replay

    def begin(self) -> None:
        stream = torch.cuda.current_stream(self._device)
        if self._last_stream is not None and stream != self._last_stream:
            stream.wait_event(self._done)

    def end(self) -> None:
        self._last_stream = torch.cuda.current_stream(self._device)
        self._done.record(self._last_stream)


@dataclass(slots=True, eq=False)
class _Recorded:
    inputs: list[Tensor]
    outputs: list[Tensor]
    replay: Callable[[], None]


class GraphCache:
    """Programs of one graph behind recorded graphs.

    Args:
        recorder: what records.
        inputs: of the graph.
        outputs: of the graph.
        max_people: largest N that is recorded.
    """

    def __init__(
        self,
        recorder: Recorder,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        max_people: int,
        max_graphs: int = MAX_GRAPHS,
    ) -> None:
        self._recorder = recorder
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self._buckets = buckets(max_people)
        self._max_graphs = max_graphs
        self._graphs: OrderedDict[tuple[tuple[int, ...], ...], _Recorded] = OrderedDict()
        self._calls: OrderedDict[tuple[tuple[int, ...], ...], int] = OrderedDict()

    @property
    def recorded(self) -> list[tuple[tuple[int, ...], ...]]:
        """Input shapes of the graphs that are kept, the oldest use first."""
        return list(self._graphs)

    def run(
        self, tensors: Sequence[Tensor], compute: Compute, recorded_compute: Compute, *, capture_now: bool = False
    ) -> list[Tensor]:
        """All outputs for these inputs, as tensors of their own.

        Args:
            tensors: the inputs; N at most `max_people`.
            compute: runs the program; called for each set of shapes until it is recorded.
            recorded_compute: the same, as it is recorded.
            capture_now: record at once.
        """
        people = self._people(tensors)
        key = tuple(
            self._padded(spec, tuple(tensor.shape), people) for spec, tensor in zip(self._inputs, tensors, strict=True)
        )
        recorded = self._graphs.get(key)
        if recorded is None:
            calls = self._calls.pop(key, 0)
            self._calls[key] = calls + 1
            while len(self._calls) > 4 * self._max_graphs:
                self._calls.popitem(last=False)
            if calls < CALLS_BEFORE_CAPTURE and not capture_now:
                return compute(tensors)
            recorded = self._record(key, tensors, recorded_compute)
        self._graphs.move_to_end(key)
        self._recorder.begin()
        for spec, buffer, tensor in zip(self._inputs, recorded.inputs, tensors, strict=True):
            _cut(spec, buffer, people).copy_(tensor, non_blocking=True)
            _clear_beyond(spec, buffer, people)
        recorded.replay()
        outputs = [
            _cut(spec, buffer, people).clone() for spec, buffer in zip(self._outputs, recorded.outputs, strict=True)
        ]
        self._recorder.end()
        return outputs

    def clear(self) -> None:
        """Give up all graphs and their memory."""
        self._graphs.clear()
        self._calls.clear()

    def _record(self, key: tuple[tuple[int, ...], ...], tensors: Sequence[Tensor], compute: Compute) -> _Recorded:
        while len(self._graphs) >= self._max_graphs:
            self._graphs.popitem(last=False)
        # Rows beyond N hold zeros in every call: poses without a joint, whom nobody sees, and whose results go.
        inputs = []
        for shape, tensor in zip(key, tensors, strict=True):
            is_map = len(shape) == 4 and tensor.is_floating_point()  # pictures of bytes have their channels last as is
            layout = torch.channels_last if is_map else torch.contiguous_format
            buffer = torch.empty(shape, dtype=tensor.dtype, device=tensor.device, memory_format=layout).zero_()
            inputs.append(buffer)
        outputs, replay = self._recorder.capture(lambda: compute(inputs))
        recorded = _Recorded(inputs, outputs, replay)
        self._graphs[key] = recorded
        return recorded

    def _people(self, tensors: Sequence[Tensor]) -> int | None:
        for spec, tensor in zip(self._inputs, tensors, strict=True):
            for name, size in zip(spec.shape, tensor.shape, strict=True):
                if name == BUCKET_NAME:
                    return int(size)
        return None

    def _padded(self, spec: TensorSpec, shape: tuple[int, ...], people: int | None) -> tuple[int, ...]:
        if people is None:
            return shape
        bucket = next(bucket for bucket in self._buckets if bucket >= people)
        return tuple(bucket if name == BUCKET_NAME else size for name, size in zip(spec.shape, shape, strict=True))


def buckets(largest: int) -> tuple[int, ...]:
    """Sizes that are recorded for 1..largest: the powers of two, and the largest itself."""
    sizes = [1]
    while sizes[-1] * 2 < largest:
        sizes.append(sizes[-1] * 2)
    return tuple(sizes) if sizes[-1] >= largest else (*sizes, largest)


def _cut(spec: TensorSpec, tensor: Tensor, people: int | None) -> Tensor:
    """The rows of a padded tensor that are wanted."""
    if people is not None:
        for axis, name in enumerate(spec.shape):
            if name == BUCKET_NAME:
                tensor = tensor.narrow(axis, 0, people)
    return tensor


def _clear_beyond(spec: TensorSpec, tensor: Tensor, people: int | None) -> None:
    """Zeros in the padding, which may hold people of an earlier call; they would be the neighbours of this one's."""
    if people is not None:
        for axis, name in enumerate(spec.shape):
            if name == BUCKET_NAME and tensor.shape[axis] > people:
                tensor.narrow(axis, people, tensor.shape[axis] - people).zero_()


def fits(specs: Sequence[TensorSpec], tensors: Sequence[Tensor], limits: Mapping[str, int]) -> bool:
    """Whether no named size of a call is above its limit."""
    return all(
        size <= limits.get(name, size)
        for spec, tensor in zip(specs, tensors, strict=True)
        for name, size in zip(spec.shape, tensor.shape, strict=True)
        if isinstance(name, str)
    )
