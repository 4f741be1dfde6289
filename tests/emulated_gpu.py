"""Kernels of a .cu file run on the CPU with all their threads, barriers and warp operations; see emulated_gpu.hpp."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path
from typing import Any

from kernels.native.compile import NativeBuildError, host_compiler, translation_unit

SHIM = Path(__file__).with_name("emulated_gpu.hpp")
ERRORS = {
    1: "a block or its shared memory is not of this emulation",
    2: "threads of a warp or block wait at different barriers",
    3: "there is no such kernel",
}


class EmulatedGpu:
    """The kernels of one source."""

    def __init__(self, source: Path, folder: Path, *, host_headers: tuple[str, ...] = ("half.cuh",)) -> None:
        """Compile.

        Undefined behaviour (overflow, a misaligned vector) stops the process, which no test survives unnoticed.

        Args:
            source: a .cu file.
            folder: where the library goes.
            host_headers: included files whose device side is machine code of a GPU; their host side is taken.
        """
        compiler = host_compiler()
        if compiler is None:
            raise NativeBuildError("the emulation of a GPU needs a C++ compiler: install g++")
        text = translation_unit(source)
        for header in host_headers:
            start = f'#line 1 "{header}"\n'
            before, after = text.split(start)
            text = f"{before}#undef __CUDA_ARCH__\n{start}" + re.sub(
                r"^(#line (?!1 )\d+ )", r"#define __CUDA_ARCH__ 900\n\1", after, count=1, flags=re.MULTILINE
            )
        text = re.sub(r"extern __shared__ \w+ (\w+)\[\];", r"static auto* const \1 = emulated_shared_memory;", text)
        found = subprocess.run(
            [
                *(compiler, "-E", "-P", "-D__global__=KERNEL_HERE", "-D__launch_bounds__(...)="),
                *("-D__grid_constant__=", "-x", "c++", "-"),
            ],
            input=text,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        names = re.findall(r'extern\s+"C"\s+KERNEL_HERE\s+void\s+(\w+)', found)
        table = ",\n".join(f'{{"{name}", &emulated::unpacked<&{name}>::call}}' for name in names)
        unit, library = folder / "emulated_gpu.cpp", folder / "emulated_gpu.so"
        unit.write_text(
            f"{SHIM.read_text(encoding='utf-8')}\n#define __CUDA_ARCH__ 900\n{text}\n"
            f"static emulated::kernel emulated_kernels[] = {{\n{table}\n}};\nEMULATE\n"
        )
        done = subprocess.run(
            [
                *(compiler, "-O1", "-std=c++17", "-shared", "-fPIC", "-Wno-unknown-pragmas", "-ffp-contract=off"),
                *("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error", "-o", str(library), str(unit)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise NativeBuildError(done.stderr[-4000:])
        self._library = ctypes.CDLL(str(library))
        self.reversed = False  # the order in which threads come to run; a kernel must not depend on it
        self.launches = 0

    def launch(
        self,
        name: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        *args: Any,
        shared_bytes: int = 0,
    ) -> None:
        """As `kernels.native.launch.DeviceModule.launch`, at once and without a stream."""
        addresses = (ctypes.c_void_p * len(args))(*(ctypes.addressof(argument) for argument in args))
        three = ctypes.c_uint * 3
        code = self._library.emulate(
            name.encode(), three(*grid), three(*block), ctypes.c_uint(shared_bytes), addresses, int(self.reversed)
        )
        assert code == 0, f"{name} with grid {grid} and block {block}: {ERRORS[code]}"
        self.launches += 1
