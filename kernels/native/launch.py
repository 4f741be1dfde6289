"""Device images to running kernels through the CUDA driver's own interface, by ctypes: no CUDA toolkit, no torch."""

from __future__ import annotations

import ctypes
import functools
import threading
from typing import Any

_MAX_GRID = (2**31 - 1, 65535, 65535)
_MAX_BLOCK = (1024, 1024, 64)
_MAX_THREADS = 1024

#: What the driver's commoner errors ask for.
_ADVICE = {
    2: "free device memory, or run fewer people at once",
    100: "check nvidia-smi: the driver is there, but no GPU that this process may use",
    200: "the image is damaged, or no image for this GPU: delete the folder native in the cache and start again",
    209: "the image holds no code for this GPU's architecture: compile for its compute capability",
    222: "the PTX is newer than the driver: update the driver, or compile with an older CUDA toolkit",
    500: "the image has no kernel of this name",
    700: "a kernel read or wrote outside its arrays: run under compute-sanitizer",
}


class CudaDriverError(RuntimeError):
    """The CUDA driver is missing, or refused a call."""


class DeviceModule:
    """A cubin, fatbin or PTX whose kernels can be launched.

    Nothing touches the driver before the first launch, so that an object can be made where there is none. The image is
    loaded once for each context that launches from it.

    Convention: a launch goes to the calling thread's current context, as PyTorch and TensorRT set it; a thread without
    one gets the primary context of device 0, the one that they would use, too.
    """

    def __init__(self, image: bytes) -> None:
        """Take the image; it is read at the first launch."""
        if not image:
            raise ValueError("an empty image cannot be launched; make one with kernels.native.compile.device_image")
        # PTX is text, and the driver reads it up to a zero byte.
        self._image = image + b"\0"
        self._functions: dict[tuple[int, str], ctypes.c_void_p] = {}
        self._modules: dict[int, ctypes.c_void_p] = {}
        self._lock = threading.Lock()

    def launch(
        self,
        name: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        stream: int,
        *args: Any,
        shared_bytes: int = 0,
    ) -> None:
        """Enqueue a kernel; returns before it has run.

        Args:
            name: of an ``extern "C" __global__`` function.
            grid: blocks along x, y, z. Nothing to do is the caller's case: a zero is an error.
            block: threads along x, y, z.
            stream: handle of a CUDA stream, such as ``torch.cuda.current_stream().cuda_stream``; 0 is the default.
            args: one ctypes value for each parameter, pointers as ``c_void_p``. They are copied by the call.
            shared_bytes: dynamic shared memory of a block.

        Raises:
            ValueError: grid or block outside what CUDA allows.
            TypeError: an argument is no ctypes value.
            CudaDriverError: no driver, no device, an image that does not fit, a refused launch.
        """
        for what, sizes, limits in (("grid", grid, _MAX_GRID), ("block", block, _MAX_BLOCK)):
            if len(sizes) != 3 or not all(1 <= size <= most for size, most in zip(sizes, limits, strict=True)):
                raise ValueError(f"{what} of {name} must be three sizes in 1..{limits}, got {tuple(sizes)}")
        if block[0] * block[1] * block[2] > _MAX_THREADS:
            raise ValueError(f"block of {name} must hold at most {_MAX_THREADS} threads, got {tuple(block)}")
        addresses = (ctypes.c_void_p * max(len(args), 1))()
        for i, argument in enumerate(args):
            # The base of all ctypes numbers and pointers; a structure is a parameter by value.
            if not isinstance(argument, (ctypes._SimpleCData, ctypes.Structure)):  # noqa: SLF001
                raise TypeError(
                    f"argument {i} of {name} must be a ctypes value such as c_int or c_void_p, got {argument!r}"
                )
            addresses[i] = ctypes.addressof(argument)
        driver = _driver()
        _check(
            driver.cuLaunchKernel(
                self._function(driver, name),
                *map(ctypes.c_uint, (*grid, *block, shared_bytes)),
                ctypes.c_void_p(stream),
                addresses,
                None,
            ),
            f"launch {name} with grid {tuple(grid)} and block {tuple(block)}",
        )

    def _function(self, driver: ctypes.CDLL, name: str) -> ctypes.c_void_p:
        context = _current_context(driver)
        function = self._functions.get((context, name))
        if function is None:
            with self._lock:
                module = self._modules.get(context)
                if module is None:
                    module = ctypes.c_void_p()
                    _check(driver.cuModuleLoadData(ctypes.byref(module), self._image), "load an image")
                    self._modules[context] = module
                function = ctypes.c_void_p()
                _check(driver.cuModuleGetFunction(ctypes.byref(function), module, name.encode()), f"find {name}")
                self._functions[context, name] = function
        return function


def _current_context(driver: ctypes.CDLL) -> int:
    context = ctypes.c_void_p()
    _check(driver.cuCtxGetCurrent(ctypes.byref(context)), "tell the current context")
    if not context.value:
        device = ctypes.c_int()
        _check(driver.cuDeviceGet(ctypes.byref(device), 0), "open device 0")
        _check(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "open the context of device 0")
        _check(driver.cuCtxSetCurrent(context), "enter the context of device 0")
    return context.value or 0


def driver_version() -> int:
    """The newest CUDA that the driver knows, as 1000 * major + 10 * minor (13000: driver 580).

    Raises:
        CudaDriverError: there is no driver or no device.
    """
    version = ctypes.c_int()
    _check(_driver().cuDriverGetVersion(ctypes.byref(version)), "tell its version")
    return version.value


@functools.cache
def _driver() -> ctypes.CDLL:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as cause:
        raise CudaDriverError(
            f"no CUDA driver: {cause}; install NVIDIA's driver (in a container: start it with --gpus all), "
            "or choose a device that this machine has"
        ) from cause
    _check(driver.cuInit(0), "start", driver)
    return driver


def _check(code: int, doing: str, driver: ctypes.CDLL | None = None) -> None:
    if code == 0:
        return
    text = ctypes.c_char_p()
    (driver or _driver()).cuGetErrorString(code, ctypes.byref(text))
    said = text.value.decode() if text.value else "unknown error"
    advice = f"; {_ADVICE[code]}" if code in _ADVICE else ""
    raise CudaDriverError(f"the CUDA driver could not {doing}: {said} (error {code}){advice}")
