"""Where a model's tensors live between the stages: on the host, or in a GPU's memory.

The stages of the pipeline are written once against `Device`. On the host its methods are the kernels in `kernels/`;
on a GPU they are our CUDA kernels, and only what the host needs comes down: joint candidates, mask bits, and the
painted frame where somebody looks at it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from engines.engine import DeviceEngine, Engine
from kernels.coordinates import F32, U8
from kernels.letterbox import Letterbox, letterbox
from kernels.mask_paste import PastedMask, paste_masks

FRAMES_PER_CALL = 8  # on a GPU; more gain little there, and a frame waits longer

Array: TypeAlias = Any
"""A tensor of a device: a numpy array on the host, a `torch.Tensor` elsewhere. Opaque to the pipeline."""


@runtime_checkable
class Surface(Protocol):
    """A picture that a hardware decoder left in device memory."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, 3), as the array of the picture would have it."""

    def rgb(self) -> U8:
        """(H, W, 3) uint8 RGB on the host; brought down once, then kept."""


class HardwareDecoder(Protocol):
    """How a GPU decodes video for a device, in the terms of FFmpeg's hardware acceleration."""

    @property
    def device_type(self) -> str:
        """FFmpeg's name of the kind of device: ``cuda``."""

    @property
    def device(self) -> str:
        """Which of them: ``0``."""

    def options(self) -> dict[str, str]:
        """For opening the device in the calling thread, so that decoder and networks share one context."""

    def adopt(self, luma: Array, chroma: Array, *, full_range: bool, bt709: bool) -> Surface:
        """Turn a decoded picture into an RGB one in memory of our own; the decoder's may be used again afterwards.

        Args:
            luma: (H, W) uint8 plane, anything that exports DLPack.
            chroma: (H / 2, W / 2, 2) uint8, Cb and Cr.
            full_range: levels 0..255; else 16..235 (luma) and 16..240.
            bt709: BT.709's matrix; else BT.601's.
        """


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Paint:
    """How people are tinted on a frame.

    Attributes:
        colors: (N, 3) uint8 RGB.
        opacity: share of the colour in a tinted px, 0..1.
        order: (N,) int32, the people from bottom to top.
    """

    colors: U8
    opacity: float
    order: NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pasted:
    """Masks of one frame: a crop per person, and the tinted frame, (H, W, 3) uint8 RGB, where the device made it."""

    crops: list[PastedMask]
    painted: U8 | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What a device can do at most, measured: the lines of a roofline.

    Attributes:
        copy_bytes_per_s: read and written together, of a large copy.
        flops: of a large matrix product in ``dtype``.
        dtype: of the product.
    """

    copy_bytes_per_s: float
    flops: float
    dtype: str


class Device(Protocol):
    """What the stages do with tensors. Every method may be called from any stage's thread; calls of one thread are in
    order, and what a method returns may be handed to another thread at once.
    """

    @property
    def name(self) -> str:
        """For people: ``cpu``, ``cuda:0 NVIDIA H100``."""

    @property
    def decoder(self) -> HardwareDecoder | None:
        """What decodes video beside the networks; None: the CPU does."""

    @property
    def frames_per_call(self) -> int:
        """How many waiting frames one call of the keypoint network should take: 1 where more gain nothing."""

    def pictures(self, frames: Sequence[U8 | Surface]) -> list[Array]:
        """Frames as (H, W, 3) uint8 RGB arrays of this device."""

    def network_input(self, pictures: Sequence[Array], plan: Letterbox) -> Array:
        """(B, input_height, input_width, 3) uint8: pictures of one size, letterboxed."""

    def run(self, engine: Engine, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run an engine of this device; feeds may be of the device or numpy arrays.

        Raises:
            EngineRunError: as `Engine.run`; `EngineOutOfMemory` when a smaller batch may succeed.
        """

    def to_host(self, arrays: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
        """Bring arrays down; waits for the work of this thread."""

    def join(self, arrays: Sequence[Array]) -> Array:
        """Arrays of this device as one, along the first axis."""

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
        """Masks into the frame, see `kernels.mask_paste.paste_masks`.

        Args:
            picture: of `pictures`; not changed.
            probabilities: (N, S, S) of this device.
            roi_from_frame: (N, 2, 3).
            frame_height: px.
            frame_width: px.
            threshold: a px is person where the interpolated probability is greater.
            exclusive: a px that several people claim goes to the surest of them alone.
            paint: tint a copy of the picture, too.
        """

    def ceilings(self) -> Ceilings:
        """Measure; takes about half a second."""

    def memory_bytes(self) -> int | None:
        """Most that was held at once so far; None on the host, whose memory is the process's."""

    def free_memory(self) -> None:
        """Give back what is kept for speed; called after `EngineOutOfMemory`."""


class HostDevice:
    """The CPU: numpy arrays and the kernels in `kernels/`."""

    name = "cpu"
    decoder = None

    def __init__(self, *, frames_per_call: int = 1) -> None:
        self.frames_per_call = frames_per_call
        self._input: U8 = np.empty((0, 0, 0, 3), np.uint8)

    def pictures(self, frames: Sequence[U8 | Surface]) -> list[Array]:
        return [frame if isinstance(frame, np.ndarray) else frame.rgb() for frame in frames]

    def network_input(self, pictures: Sequence[Array], plan: Letterbox) -> Array:
        """See `Device`; the array is used again by the next call."""
        shape = (len(pictures), plan.input_height, plan.input_width, 3)
        if self._input.shape != shape:
            self._input = np.empty(shape, np.uint8)
        for row, picture in enumerate(pictures):
            letterbox(picture, plan, out=self._input[row])
        return self._input

    def run(self, engine: Engine, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return dict(engine.run(feeds))

    def to_host(self, arrays: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
        return dict(arrays)

    def join(self, arrays: Sequence[Array]) -> Array:
        return np.concatenate(arrays)

    def paste(
        self,
        picture: Array,  # noqa: ARG002  nothing is painted here
        probabilities: Array,
        roi_from_frame: F32,
        frame_height: int,
        frame_width: int,
        *,
        threshold: float,
        exclusive: bool,
        paint: Paint | None,  # noqa: ARG002  the overlay does it together with its contours
    ) -> Pasted:
        crops = paste_masks(
            probabilities, roi_from_frame, frame_height, frame_width, threshold=threshold, exclusive=exclusive
        )
        return Pasted(crops=crops, painted=None)

    def ceilings(self) -> Ceilings:
        source, side = np.ones(32_000_000, np.float32), 1024
        target, matrix = np.empty_like(source), np.ones((side, side), np.float32)
        return Ceilings(
            copy_bytes_per_s=2 * source.nbytes / best_of(lambda: np.copyto(target, source)),
            flops=2 * side**3 / best_of(lambda: matrix @ matrix),
            dtype="float32",
        )

    def memory_bytes(self) -> int | None:
        return None

    def free_memory(self) -> None:
        self._input = np.empty((0, 0, 0, 3), np.uint8)


def best_of(call: Callable[[], object], *, seconds: float = 0.25) -> float:
    """Shortest time of one call, s, among those that fit into ``seconds``; at least three."""
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - started < seconds:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def device_of(*engines: Engine, frames_per_call: int | None = None) -> Device:
    """The device that the engines of a model work on.

    Args:
        engines: of one model.
        frames_per_call: see `Device`; None lets the device decide.

    Raises:
        ValueError: they work on different devices.
    """
    devices = [engine for engine in engines if isinstance(engine, DeviceEngine)]
    if not devices:
        return HostDevice(frames_per_call=frames_per_call or 1)
    names = {engine.device for engine in devices}
    if len(names) != 1 or len(devices) != len(engines):
        raise ValueError(f"the engines of a model must work on one device, got {[engine.name for engine in engines]}")
    from engines.torch_device import TorchDevice

    limit = min(engine.limits.get("B", FRAMES_PER_CALL) for engine in devices)
    return TorchDevice(names.pop(), frames_per_call=min(limit, frames_per_call or FRAMES_PER_CALL))
