"""A GPU's memory, or the CPU's through the same code: what the pipeline's stages do there, with our own kernels.

Each thread that calls works on a CUDA stream of its own, so that uploads, networks and pasting of different frames
overlap. Whatever is handed to another thread is finished first: `network_input` and `run` only enqueue, `to_host` and
`paste` wait. Memory comes from PyTorch's caching allocators, of the device and of pinned host memory, which take
nothing new once every size has been seen.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from engines.device import Array, Ceilings, Paint, Pasted, Surface, best_of
from engines.engine import DeviceEngine, Engine, EngineOutOfMemory, EngineRunError
from kernels.coordinates import F32, U8
from kernels.device_frames import pasted_masks
from kernels.device_frames.torch_op import letterbox_frames, paste_and_blend, rgb_of_nv12
from kernels.letterbox import Letterbox


class TorchSurface:
    """A picture in device memory, (H, W, 3) uint8 RGB."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels
        self.shape: tuple[int, int, int] = (int(pixels.shape[0]), int(pixels.shape[1]), 3)
        self._lock = threading.Lock()
        self._host: U8 | None = None

    def rgb(self) -> U8:
        with self._lock:
            if self._host is None:
                self._host = self.pixels.cpu().numpy()
            return self._host


class TorchDevice:
    """See `engines.device.Device`."""

    def __init__(self, name: str, *, frames_per_call: int) -> None:
        """Use a device.

        Args:
            name: as PyTorch writes it: ``cuda:0``; ``cpu`` runs the same code on the host.
            frames_per_call: see `engines.device.Device`.
        """
        self._device = torch.device(name)
        self._is_cuda = self._device.type == "cuda"
        self.index = self._device.index or 0
        self._threads = threading.local()
        self.frames_per_call = frames_per_call
        self.name = f"{name} {torch.cuda.get_device_name(self._device)}" if self._is_cuda else f"{name} through torch"
        self.decoder = NvidiaDecoder(self) if self._is_cuda else None

    def pictures(self, frames: Sequence[U8 | Surface]) -> list[Array]:
        with self.stream():
            return [
                frame.pixels
                if isinstance(frame, TorchSurface)
                else self._uploaded(frame if isinstance(frame, np.ndarray) else frame.rgb())
                for frame in frames
            ]

    def surface_of(self, luma: Array, chroma: Array, *, full_range: bool, bt709: bool) -> TorchSurface:
        """RGB in memory of our own, from NV12 planes on this device; see `engines.device.HardwareDecoder.adopt`."""
        if self._is_cuda:
            torch.cuda.default_stream(self._device).synchronize()  # the decoder writes on it
        with self.stream(), _memory_errors():
            planes = from_dlpack(luma), from_dlpack(chroma)
            pixels = rgb_of_nv12(*planes, matrix="bt709" if bt709 else "bt601", full_range=full_range)
            self.wait()
        return TorchSurface(pixels)

    def make_current(self) -> None:
        """Make the context that PyTorch works in the calling thread's."""
        torch.zeros(1, device=self._device)

    def network_input(self, pictures: Sequence[Array], plan: Letterbox) -> Array:
        with self.stream(), _memory_errors():
            return letterbox_frames(list(pictures), plan)

    def run(self, engine: Engine, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if not isinstance(engine, DeviceEngine):
            raise EngineRunError(f"{engine.name} does not work on {self.name}")
        with self.stream(), _memory_errors():
            on_device = {
                name: feed if isinstance(feed, Tensor) else self._uploaded(feed) for name, feed in feeds.items()
            }
            return engine.run_on_device(on_device)

    def to_host(self, arrays: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
        with self.stream(), _memory_errors():
            host = {name: self._downloaded(array) for name, array in arrays.items()}
            self.wait()
        return {name: tensor.numpy() for name, tensor in host.items()}

    def join(self, arrays: Sequence[Array]) -> Array:
        with self.stream(), _memory_errors():
            joined = torch.cat(list(arrays))
            self.wait()
            return joined

    def paste(
        self,
        picture: Array,
        probabilities: Array,
        roi_from_frame: F32,
        frame_height: int,
        frame_width: int,
        *,
        threshold: float,
        exclusive: bool,
        paint: Paint | None,
    ) -> Pasted:
        with self.stream(), _memory_errors():
            if not len(probabilities):
                painted = None if paint is None else self._downloaded(picture)
                self.wait()
                return Pasted(crops=[], painted=None if painted is None else painted.clone().numpy())
            canvas = None if paint is None else picture.clone()
            bits, plan = paste_and_blend(
                probabilities.contiguous(),
                roi_from_frame,
                frame_height,
                frame_width,
                threshold=threshold,
                exclusive=exclusive,
                frame=canvas,
                colors=None if paint is None else paint.colors,
                opacity=0.0 if paint is None else paint.opacity,
                order=None if paint is None else paint.order,
            )
            words = self._downloaded(bits)
            painted = None if canvas is None else self._downloaded(canvas)
            self.wait()
        return Pasted(
            crops=pasted_masks(words.numpy(), plan.boxes), painted=None if painted is None else painted.numpy()
        )

    def ceilings(self) -> Ceilings:
        size, side = (2**28, 8192) if self._is_cuda else (2**24, 1024)
        dtype = torch.float16 if self._is_cuda else torch.float32
        with self.stream():
            source = torch.ones(size, device=self._device)
            target = torch.empty_like(source)
            matrix = torch.rand(side, side, device=self._device, dtype=torch.float32).to(dtype)

            def copy() -> None:
                target.copy_(source)
                self.wait()

            def multiply() -> None:
                torch.matmul(matrix, matrix)
                self.wait()

            return Ceilings(
                copy_bytes_per_s=2 * source.numel() * source.element_size() / best_of(copy),
                flops=2 * side**3 / best_of(multiply),
                dtype=str(dtype).removeprefix("torch."),
            )

    def memory_bytes(self) -> int | None:
        return torch.cuda.max_memory_allocated(self._device) if self._is_cuda else None

    def free_memory(self) -> None:
        if self._is_cuda:
            torch.cuda.empty_cache()

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """The calling thread's own stream, current inside the block."""
        if not self._is_cuda:
            yield
            return
        own: torch.cuda.Stream | None = getattr(self._threads, "stream", None)
        if own is None:
            own = self._threads.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.device(self._device), torch.cuda.stream(own):
            yield

    def wait(self) -> None:
        """Until everything that this thread enqueued is done."""
        if self._is_cuda:
            torch.cuda.current_stream(self._device).synchronize()

    def _uploaded(self, array: NDArray[Any]) -> Tensor:
        host = torch.from_numpy(np.ascontiguousarray(array) if array.flags.writeable else array.copy())
        if not self._is_cuda:
            return host.clone()
        pinned = torch.empty(host.shape, dtype=host.dtype, pin_memory=True)
        pinned.copy_(host)
        return pinned.to(self._device, non_blocking=True)

    def _downloaded(self, tensor: Tensor) -> Tensor:
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor = tensor.float()
        if not self._is_cuda:
            return tensor
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return pinned.copy_(tensor, non_blocking=True)


class NvidiaDecoder:
    """NVDEC through FFmpeg, in the context that PyTorch works in."""

    device_type = "cuda"

    def __init__(self, device: TorchDevice) -> None:
        self._owner = device
        self.device = str(device.index)

    def options(self) -> dict[str, str]:
        """The calling thread's context, PyTorch's: FFmpeg wants other flags than PyTorch gave it, and refuses to share
        it when asked for the primary one.
        """
        self._owner.make_current()
        return {"primary_ctx": "0", "current_ctx": "1"}

    def adopt(self, luma: Array, chroma: Array, *, full_range: bool, bt709: bool) -> Surface:
        return self._owner.surface_of(luma, chroma, full_range=full_range, bt709=bt709)


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """PyTorch's own out-of-memory error as ours."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EngineOutOfMemory(f"the GPU's memory is full ({str(error).splitlines()[0]})") from error
