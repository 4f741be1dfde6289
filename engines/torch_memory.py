"""Device memory, streams and CUDA graphs for engines that take bare addresses (TensorRT), by PyTorch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_TORCH_DTYPE: Final[dict[np.dtype[Any], torch.dtype]] = {
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float16): torch.float16,
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.int8): torch.int8,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.bool_): torch.bool,
}
_NUMPY_DTYPE: Final = {kind: dtype for dtype, kind in _TORCH_DTYPE.items()}


def on_device(index: int) -> contextlib.AbstractContextManager[Any]:
    """Make a CUDA device the current one; libraries that take no device work on that."""
    return torch.cuda.device(index)


class TorchMemory:
    """Tensors of one CUDA device, and the stream that an engine's work goes to.

    TensorRT wants a stream that is not the default one. Where the caller's current stream is the default one, work goes
    to a stream of our own that waits for the caller's, and the caller's waits for it; nothing is synchronised with the
    host.
    """

    out_of_memory: tuple[type[Exception], ...] = (torch.OutOfMemoryError,)

    def __init__(self, device: str | None = None) -> None:
        """Take a device, "cuda" or "cuda:N"; None is CUDA's current one.

        Raises:
            RuntimeError: torch has no CUDA, or there is no such device.
        """
        torch.cuda.init()  # type: ignore[no-untyped-call]
        chosen = torch.device(device or "cuda")
        index = torch.cuda.current_device() if chosen.index is None else chosen.index
        self._device = torch.device("cuda", index)
        self._own_stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._caller = torch.cuda.current_stream(self._device)
        self._last: torch.cuda.Stream | None = None

    @property
    def device(self) -> str:
        """The device as torch writes it, such as cuda:0."""
        return str(self._device)

    @contextlib.contextmanager
    def session(self) -> Iterator[int]:
        """Everything enqueued inside goes, in order, to one stream that is not the default one; gives its handle."""
        with torch.cuda.device(self._device):
            self._caller = torch.cuda.current_stream(self._device)
            work = self._caller if self._caller.cuda_stream != 0 else self._own_stream
            # Buffers are used again by every call, also where a caller changes the stream between two calls.
            for earlier in (self._caller, self._last):
                if earlier is not None and earlier != work:
                    work.wait_stream(earlier)
            self._last = work
            with torch.cuda.stream(work):
                yield work.cuda_stream
            if work != self._caller:
                self._caller.wait_stream(work)

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Tensor:
        """A new tensor of the caller's stream, contents undefined; 256-byte aligned."""
        with torch.cuda.stream(self._caller):
            return torch.empty(tuple(shape), dtype=_TORCH_DTYPE[dtype], device=self._device)

    def zeros(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Tensor:
        """A buffer that outlives calls, all zero once what is enqueued by now has run."""
        return torch.zeros(tuple(shape), dtype=_TORCH_DTYPE[dtype], device=self._device)

    def address(self, tensor: Tensor) -> int:
        return tensor.data_ptr()

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Enqueue a copy of equal shapes."""
        target.copy_(source, non_blocking=True)

    def clear(self, target: Tensor) -> None:
        """Enqueue zeros."""
        target.zero_()

    def concatenate(self, parts: Sequence[Tensor]) -> Tensor:
        """Tensors one after the other along the first axis."""
        return torch.cat(tuple(parts))

    def describe(self, value: Any) -> tuple[np.dtype[Any], tuple[int, ...], str] | None:
        """Type, shape and device of a tensor; None for anything else."""
        if not isinstance(value, Tensor) or value.dtype not in _NUMPY_DTYPE:
            return None
        return _NUMPY_DTYPE[value.dtype], tuple(value.shape), str(value.device)

    def upload(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def download(self, tensor: Tensor) -> NDArray[Any]:
        """Waits for the work that makes it."""
        array: NDArray[Any] = tensor.cpu().numpy()
        return array

    def capture(self, enqueue: Callable[[int], None]) -> Callable[[], None]:
        """Record what `enqueue(stream)` enqueues; the result enqueues it again on the stream of the session."""
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream(self._device)
        # Other threads (decoding, another engine) may allocate meanwhile; only this one's calls would spoil the graph.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            enqueue(stream.cuda_stream)
        return graph.replay

    def wait(self) -> None:
        """Until everything enqueued on the device has run."""
        torch.cuda.synchronize(self._device)

    def free(self) -> None:
        """Give memory that nobody uses back to the device."""
        torch.cuda.empty_cache()
