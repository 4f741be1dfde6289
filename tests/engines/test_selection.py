"""Which engine `auto` takes on each kind of machine, and what each other one says; faked is only what a probe finds."""

from __future__ import annotations

import ctypes
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engines.engine import EngineLoadError, EngineOptions
from engines.nvidia_driver import Gpu, NvidiaDriver, _ask, find_nvidia_driver
from engines.plan_cache import PlanCacheError
from engines.selection import AUTO_ORDER, Library, ThisMachine, _cuda_of_torch, candidate, candidates, open_selected
from kernels.native.compile import host_library
from tests.engines.graphs import add_graph

ROOT = Path(__file__).resolve().parents[2]
H100 = Gpu(0, "NVIDIA H100", (9, 0), 80 << 30)
A10 = Gpu(1, "NVIDIA A10", (8, 6), 24 << 30)
P100 = Gpu(0, "Tesla P100", (6, 0), 16 << 30)
NEW_DRIVER = NvidiaDriver(version="580.95.05", cuda=(13, 0), gpus=(H100, A10))
OLD_DRIVER = NvidiaDriver(version="535.183.01", cuda=(12, 2), gpus=(H100,))
NO_DRIVER = NvidiaDriver(problem="no NVIDIA driver (libcuda.so.1 is not there)")
NO_GPU = NvidiaDriver(version="580.95.05", cuda=(13, 0), problem="no GPU")
ONNX = Library("1.32.0")
TENSORRT = Library("11.4.0.106", 13)
RTX = Library("1.7.1.116", 13)
TORCH = Library("2.11.0+cu130", 13)
CPU_TORCH = Library("2.13.0+cpu", 0)


class Machine:
    """A machine with this driver and these libraries; remembers what was looked for."""

    def __init__(self, driver: NvidiaDriver, **libraries: Library) -> None:
        self.driver = driver
        self.looked_for: list[str] = []
        self._libraries = {name.replace("_", "-"): library for name, library in {"onnx": ONNX, **libraries}.items()}

    def library(self, engine: str) -> Library | None:
        self.looked_for.append(engine)
        return self._libraries.get(engine)


def select(machine: Machine, engine: str = "auto", *, broken: tuple[str, ...] = (), **options: Any) -> tuple[str, Any]:
    """Name of the engine that was opened, and its options."""

    def open_one(name: str, settled: EngineOptions) -> tuple[str, EngineOptions]:
        if name in broken:
            raise EngineLoadError(f"{name} is broken")
        return name, settled

    return open_selected(
        engine, EngineOptions(**options), open_one, name_of=lambda opened: f"<{opened[0]}>", machine=machine
    )


MACHINES = {
    "laptop": (Machine(NO_DRIVER), "onnx"),
    "laptop with everything installed": (Machine(NO_DRIVER, tensorrt=TENSORRT, tensorrt_rtx=RTX, torch=TORCH), "onnx"),
    "container without its GPU": (Machine(NO_GPU, tensorrt=TENSORRT, torch=TORCH), "onnx"),
    "GPU, nothing for it installed": (Machine(NEW_DRIVER), "onnx"),
    "GPU with torch": (Machine(NEW_DRIVER, torch=TORCH), "torch"),
    "GPU with torch for the CPU": (Machine(NEW_DRIVER, torch=CPU_TORCH), "onnx"),
    "GPU with TensorRT for RTX": (Machine(NEW_DRIVER, tensorrt_rtx=RTX, torch=TORCH), "tensorrt-rtx"),
    "GPU with TensorRT": (Machine(NEW_DRIVER, tensorrt=TENSORRT, tensorrt_rtx=RTX, torch=TORCH), "tensorrt"),
    "old driver": (Machine(OLD_DRIVER, tensorrt=TENSORRT, torch=TORCH), "onnx"),
    "old driver, old torch": (Machine(OLD_DRIVER, tensorrt=TENSORRT, torch=Library("2.7+cu126", 12)), "torch"),
    "old GPU": (Machine(NvidiaDriver(version="580", cuda=(13, 0), gpus=(P100,)), torch=TORCH), "onnx"),
}


@pytest.mark.parametrize("name", MACHINES)
def test_what_auto_takes(name: str, caplog: pytest.LogCaptureFixture) -> None:
    machine, expected = MACHINES[name]
    with caplog.at_level(logging.INFO):
        engine, settled = select(machine)
    assert engine == expected
    assert "openvino" not in caplog.text
    assert settled.device == ("cpu" if expected == "onnx" else "cuda:0")
    (line,) = caplog.messages
    assert line.startswith(f"engine {expected}: <{expected}> (auto")
    for better in AUTO_ORDER[: AUTO_ORDER.index(expected)]:
        assert better in line  # and why not
        assert candidate(better, EngineOptions(), machine).problem in line
    assert "\n" not in line


def test_each_refusal_says_what_to_do() -> None:
    machine = Machine(OLD_DRIVER, tensorrt=TENSORRT, torch=CPU_TORCH)
    refusals = {found.name: found.refusal for found in candidates(EngineOptions(), machine)}
    assert refusals == {
        "tensorrt": "driver 535.183.01 ends at CUDA 12.2, tensorrt 11.4.0.106 is built for CUDA 13: update the NVIDIA "
        "driver to 580 or later",
        "tensorrt-rtx": "it is not installed: pip install tensorrt-rtx-cu13",
        "torch": "torch 2.13.0+cpu is built without CUDA: install the build for CUDA "
        "(https://pytorch.org/get-started/locally)",
        "onnx": "",
        "openvino": "it is not installed: pip install openvino",
    }


def test_plans_need_torch_for_their_tensors() -> None:
    found = candidate("tensorrt", EngineOptions(precision="int8"), Machine(NEW_DRIVER, tensorrt=TENSORRT))
    assert found.refusal == "torch, which holds its tensors: it is not installed: pip install 'pose2seg-live[gpu]'"
    found = candidate("tensorrt-rtx", EngineOptions(), Machine(NEW_DRIVER, tensorrt_rtx=RTX, torch=CPU_TORCH))
    assert "torch, which holds its tensors: torch 2.13.0+cpu is built without CUDA" in found.problem


def test_without_a_driver_no_gpu_library_is_looked_for() -> None:
    machine = Machine(NO_DRIVER, tensorrt=TENSORRT, torch=TORCH)
    select(machine)
    assert machine.looked_for == ["onnx"]


def test_debug_shows_every_refusal(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        select(Machine(NEW_DRIVER))
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "engine tensorrt is not taken",
        "engine tensorrt-rtx is not taken",
        "engine torch is not taken",
        "engine onnx",
    ]
    assert "pip install" in caplog.messages[0]


@pytest.mark.parametrize(
    ("options", "expected", "device"),
    [
        ({"device": "cpu"}, "onnx", "cpu"),
        ({"device": "cuda"}, "tensorrt", "cuda:0"),
        ({"device": "cuda:1"}, "tensorrt", "cuda:1"),
        ({"precision": "float16"}, "tensorrt", "cuda:0"),
        ({"precision": "bfloat16"}, "torch", "cuda:0"),
    ],
)
def test_options_narrow_the_choice(options: dict[str, str], expected: str, device: str) -> None:
    machine = Machine(NEW_DRIVER, tensorrt=TENSORRT, torch=TORCH)
    engine, settled = select(machine, **options)
    assert (engine, settled.device) == (expected, device)


def test_openvino_is_taken_for_what_onnx_runtime_has_not() -> None:
    machine = Machine(NO_DRIVER, openvino=Library("2026.4"))
    assert select(machine)[0] == "onnx"
    assert select(machine, precision="bfloat16")[0] == "openvino"


def test_the_second_gpu_is_judged_by_itself() -> None:
    driver = NvidiaDriver(version="580", cuda=(13, 0), gpus=(H100, Gpu(1, "Tesla P100", (6, 0), 1)))
    machine = Machine(driver, torch=TORCH)
    assert select(machine, device="cuda:0")[0] == "torch"
    with pytest.raises(EngineLoadError, match=r"Tesla P100 has compute capability 6\.0, 7\.5 is needed"):
        select(machine, "torch", device="cuda:1")
    with pytest.raises(EngineLoadError, match=r"there is no cuda:2: choose one of cuda:0 NVIDIA H100, cuda:1 Tesla"):
        select(machine, "torch", device="cuda:2")


@pytest.mark.parametrize(
    ("machine", "engine", "options", "message"),
    [
        (
            Machine(NO_DRIVER),
            "tensorrt",
            {},
            "no NVIDIA driver .*: install the NVIDIA driver.*; then pip install tensor",
        ),
        (Machine(NEW_DRIVER, torch=TORCH), "tensorrt", {}, "it is not installed: pip install tensorrt-cu13"),
        (Machine(NEW_DRIVER, torch=TORCH), "tensorrt-rtx", {}, "pip install tensorrt-rtx"),
        (Machine(NEW_DRIVER), "torch", {}, r"pip install 'pose2seg-live\[gpu\]'"),
        (Machine(NO_DRIVER), "torch", {}, r"pip install 'pose2seg-live\[gpu\]'"),
        (Machine(NO_DRIVER, torch=TORCH), "torch", {"device": "cuda:0"}, "no NVIDIA driver"),
        (Machine(NEW_DRIVER, torch=CPU_TORCH), "torch", {}, "is built without CUDA"),
        (Machine(NEW_DRIVER), "openvino", {}, "pip install openvino"),
        (Machine(NEW_DRIVER, tensorrt=TENSORRT), "tensorrt", {"device": "cpu"}, "it needs a GPU, not --device cpu"),
        (Machine(NEW_DRIVER), "onnx", {"device": "cuda"}, "it runs on the CPU, not on cuda"),
        (Machine(NEW_DRIVER), "onnx", {"precision": "float16"}, r"it has no float16: --precision auto\|float32"),
        (Machine(NEW_DRIVER, torch=TORCH), "torch", {"precision": "int8"}, "it has no int8"),
        (Machine(NEW_DRIVER), "tensort", {}, "unknown engine 'tensort': choose one of auto, tensorrt,"),
    ],
)
def test_a_named_engine_that_cannot_be_used_is_an_error(
    machine: Machine, engine: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(EngineLoadError, match=message):
        select(machine, engine, **options)


@pytest.mark.parametrize("options", [{}, {"device": "cpu"}])
def test_torch_runs_on_the_cpu_for_who_names_it(options: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(NO_DRIVER, torch=CPU_TORCH)
    with caplog.at_level(logging.INFO):
        engine, settled = select(machine, "torch", **options)
    assert (engine, settled.device) == ("torch", "cpu")
    assert caplog.messages == ["engine torch: <torch> (asked for by name)"]


def test_auto_goes_on_where_an_engine_does_not_load(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(NEW_DRIVER, tensorrt=TENSORRT, tensorrt_rtx=RTX, torch=TORCH)
    with caplog.at_level(logging.INFO):
        engine, _ = select(machine, broken=("tensorrt", "tensorrt-rtx"))
    assert engine == "torch"
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "INFO"]
    assert caplog.messages[0] == "engine tensorrt does not load, tensorrt-rtx is tried next: tensorrt is broken"
    assert "not tensorrt, tensorrt-rtx: it does not load" in caplog.messages[2]


def test_a_named_engine_never_becomes_another() -> None:
    machine = Machine(NEW_DRIVER, tensorrt=TENSORRT, torch=TORCH)
    with pytest.raises(EngineLoadError, match="tensorrt is broken"):
        select(machine, "tensorrt", broken=("tensorrt",))


def test_an_unsafe_plan_cache_is_not_papered_over() -> None:
    def open_one(_name: str, _options: EngineOptions) -> None:
        raise PlanCacheError("chmod")

    with pytest.raises(PlanCacheError):
        open_selected(
            "auto",
            EngineOptions(),
            open_one,
            name_of=str,
            machine=Machine(NEW_DRIVER, tensorrt=TENSORRT, torch=TORCH),
        )


def test_nothing_left_names_every_reason() -> None:
    with pytest.raises(EngineLoadError) as caught:
        select(Machine(NO_DRIVER), device="cuda")
    assert "no engine can run here (tensorrt, tensorrt-rtx, torch: no NVIDIA driver" in str(caught.value)
    assert "onnx, openvino: it runs on the CPU, not on cuda" in str(caught.value)


def test_all_broken_raises_the_last_error() -> None:
    with pytest.raises(EngineLoadError, match="onnx is broken"):
        select(Machine(NO_DRIVER), broken=("onnx",))
    with pytest.raises(EngineLoadError, match="onnx is broken"):
        select(Machine(NEW_DRIVER, torch=TORCH, openvino=Library("2026.4")), broken=("torch", "onnx", "openvino"))


# --------------------------------------------------------------------------------------------------------- the probes


class DriverLibrary:
    """libcuda.so.1 as far as it is asked: every function answers through the pointers that ctypes passes."""

    def __init__(self, *, init: int = 0, cuda: int = 13000, gpus: tuple[Gpu, ...] = (), device: int = 0) -> None:
        self._init, self._cuda, self._gpus, self._device = init, cuda, gpus, device

    def cuInit(self, _flags):  # noqa: N802
        return self._init

    def cuDriverGetVersion(self, out):  # noqa: N802
        out._obj.value = self._cuda
        return 0

    def cuDeviceGetCount(self, out):  # noqa: N802
        out._obj.value = len(self._gpus)
        return 0

    def cuDeviceGet(self, out, index):  # noqa: N802
        out._obj.value = 100 + index
        return self._device

    def cuDeviceGetName(self, out, size, device):  # noqa: N802
        out.value = self._gpus[device.value - 100].name.encode()[:size]
        return 0

    def cuDeviceGetAttribute(self, out, attribute, device):  # noqa: N802
        out._obj.value = self._gpus[device.value - 100].capability[attribute - 75]
        return 0

    def cuDeviceTotalMem_v2(self, out, device):  # noqa: N802
        out._obj.value = self._gpus[device.value - 100].memory_bytes
        return 0

    def cuGetErrorString(self, code, out):  # noqa: N802
        out._obj.value = b"invalid device ordinal" if code == 101 else None
        return 0


def test_a_driver_is_read() -> None:
    found = _ask(DriverLibrary(cuda=12080, gpus=(H100, A10)), "570.1")  # type: ignore[arg-type]
    assert found == NvidiaDriver(version="570.1", cuda=(12, 8), gpus=(H100, A10))


DRIVER_SOURCE = """
#include <cstddef>
#include <cstring>
#define API extern "C" __attribute__((visibility("default"))) int
typedef int CUdevice;
API cuInit(unsigned int flags) { return flags; }
API cuDriverGetVersion(int* version) { *version = 13000; return 0; }
API cuDeviceGetCount(int* count) { *count = 2; return 0; }
API cuDeviceGet(CUdevice* device, int ordinal) { *device = 40 + ordinal; return 0; }
API cuDeviceGetName(char* name, int size, CUdevice device) {
    std::strncpy(name, device == 40 ? "NVIDIA H100" : "NVIDIA A10", size);
    return 0;
}
API cuDeviceGetAttribute(int* value, int attribute, CUdevice device) {
    *value = device == 40 ? (attribute == 75 ? 9 : 0) : (attribute == 75 ? 8 : 6);
    return 0;
}
API cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
    *bytes = (size_t)(device == 40 ? 80 : 24) << 30;
    return 0;
}
"""


def test_a_driver_is_read_through_its_c_interface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signatures of cuda.h, in a library that g++ made: ctypes passes what a driver would take."""
    monkeypatch.setenv("POSE2SEG_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "driver.cpp"
    source.write_text(DRIVER_SOURCE)
    assert _ask(host_library(source), "580.1").gpus == (H100, A10)


@pytest.mark.parametrize(
    ("library", "problem"),
    [
        (DriverLibrary(), "no GPU"),
        (DriverLibrary(init=100), "no GPU"),
        (DriverLibrary(init=804), "the NVIDIA driver does not start (CUDA driver error 804)"),
        (DriverLibrary(gpus=(H100,), device=101), "GPU 0 does not answer (invalid device ordinal)"),
    ],
)
def test_a_driver_without_a_usable_gpu(library: DriverLibrary, problem: str) -> None:
    found = _ask(library, "580.1")  # type: ignore[arg-type]
    assert (found.problem, found.gpus, found.version) == (problem, (), "580.1")


def test_a_library_that_only_bears_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    find_nvidia_driver.cache_clear()
    try:
        assert "is not an NVIDIA driver" in find_nvidia_driver().problem
    finally:
        find_nvidia_driver.cache_clear()


def test_this_machine() -> None:
    found = ThisMachine().library("onnx")
    assert found is not None
    assert found.version[0].isdigit()


@pytest.mark.parametrize(
    ("text", "cuda"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip = None\n", 0),
        ("__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\n", 13),
        ("cuda = '12.6'\n", 12),
        ("something else", None),
    ],
)
def test_cuda_of_torch_is_read_from_its_file(tmp_path: Path, text: str, cuda: int | None) -> None:
    (tmp_path / "version.py").write_text(text)
    assert _cuda_of_torch(tmp_path / "__init__.py") == cuda
    assert _cuda_of_torch(None) is None


def test_selecting_imports_no_library_but_the_chosen_one(tmp_path: Path) -> None:
    (tmp_path / "add.onnx").write_bytes(add_graph())
    code = (
        "import sys; from engines import open_engine; "
        f"open_engine({str(tmp_path / 'add.onnx')!r}); "
        "print([name for name in ('torch', 'tensorrt', 'tensorrt_rtx', 'openvino', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "[]\n"
