"""C++ and CUDA sources of this package to machine code: g++ for the host, nvcc or NVRTC for devices.

A source and every file that it includes in quotes are joined to one text first. That text, the flags and the
compiler's version are the key under which the result is kept in the user's cache (`kernels.native.cache`).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from kernels.native.cache import CacheFolderError, cache_folder, refuse_foreign, write_atomically

_log = logging.getLogger(__name__)

#: Compute capabilities that are compiled and reported, without the point: Turing to Blackwell.
CUDA_ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")

DeviceCode = Literal["cubin", "ptx"]

_HOST_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
_DEVICE_FLAGS = ("-O3", "-std=c++17")
_NVRTC_FLAGS = ("--std=c++17",)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"[ \t]*$', re.MULTILINE)
_COMPILE_LIMIT_S = 600

_lock = threading.Lock()
_loaded: dict[str, ctypes.CDLL] = {}


class NativeBuildError(RuntimeError):
    """A source could not be compiled: no compiler, a compiler's error, or no safe place for the result."""


def translation_unit(source: Path) -> str:
    """The source with everything that it includes in quotes, each file once, with line marks for messages.

    Raises:
        NativeBuildError: an included file does not exist.
    """
    seen: set[Path] = set()

    def read(path: Path) -> str:
        path = path.resolve()
        if path in seen:
            return ""
        seen.add(path)
        try:
            text = path.read_text(encoding="utf-8").replace("#pragma once", "")
        except OSError as cause:
            raise NativeBuildError(f"cannot read {path}, needed for {source.name}: {cause}") from cause
        parts, end = [f'#line 1 "{path.name}"\n'], 0
        for found in _INCLUDE.finditer(text):
            line = text.count("\n", 0, found.end()) + 2
            parts += [text[end : found.start()], read(path.parent / found[1]), f'#line {line} "{path.name}"']
            end = found.end()
        return "".join([*parts, text[end:], "\n"])

    return read(source)


# ------------------------------------------------------------------------------------------------------------- host


def host_library(source: Path, headers: Sequence[Path] = (), *, flags: Sequence[str] = ()) -> ctypes.CDLL:
    """Compile with g++ and load; later calls of the same process and of later processes find the result.

    Args:
        source: a .cpp file; its functions to be called are ``extern "C"`` with default visibility.
        headers: files that belong to the key besides those included in quotes.
        flags: further flags, after our own.

    Raises:
        NativeBuildError: no compiler, or it refuses the source.
    """
    compiler = host_compiler()
    if compiler is None:
        raise NativeBuildError(
            f"{source.name} needs a C++ compiler, and neither $CXX nor g++, clang++ or c++ is there: "
            "install g++ (Debian, Ubuntu: apt install g++)"
        )
    text = translation_unit(source)
    command = (*_HOST_FLAGS, *flags)
    extra = [header.read_text(encoding="utf-8") for header in headers]
    # -march=native and the like make code for this processor only, and a home folder may be shared by several.
    key = _key("host", text, *extra, *command, _version(compiler), _processor())
    with _lock:
        if key not in _loaded:

            def compile_into(folder: Path) -> Path:
                unit, library = folder / f"{source.stem}.cpp", folder / f"{source.stem}.so"
                unit.write_text(text, encoding="utf-8")
                _run([compiler, *command, str(unit), "-o", str(library), "-pthread"], source.name)
                return library

            _loaded[key] = _load(f"{source.stem}-{key}.so", compile_into)
        return _loaded[key]


def host_compiler() -> str | None:
    """Path of the C++ compiler: ``$CXX``, else g++, clang++ or c++ on the path; None where there is none."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return next(filter(None, map(shutil.which, names)), None)


def _load(name: str, compile_into: Callable[[Path], Path]) -> ctypes.CDLL:
    try:
        folder = cache_folder("native")
    except CacheFolderError as cause:
        raise NativeBuildError(str(cause)) from cause
    kept = folder / name
    if not kept.exists():
        with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as scratch:
            write_atomically(kept, compile_into(Path(scratch)).read_bytes())
    try:
        refuse_foreign(kept)
        return ctypes.CDLL(str(kept))
    except (CacheFolderError, OSError) as cause:
        raise NativeBuildError(f"cannot load {kept}: {cause}; delete the file and try again") from cause


# ----------------------------------------------------------------------------------------------------------- device


def device_image(source: Path, *, architecture: str, kind: DeviceCode = "cubin") -> bytes:
    """Machine code (cubin) or PTX of a .cu file for one compute capability.

    Args:
        source: a .cu file without includes in angle brackets; kernels are ``extern "C" __global__``.
        architecture: compute capability without the point, e.g. "90".
        kind: "cubin" runs on this architecture (and later minor versions of it) only; "ptx" on this and every later
            one, if the driver is as new as the compiler: nvcc 13.0 writes PTX 9.0, which drivers from 580 on read.

    Raises:
        NativeBuildError: neither nvcc nor NVRTC, or the compiler refuses the source or the architecture.
    """
    if not re.fullmatch(r"\d{2,3}[af]?", architecture):
        raise NativeBuildError(f"architecture must be a compute capability such as '90', got {architecture!r}")
    if kind not in {"cubin", "ptx"}:
        raise NativeBuildError(f"kind must be 'cubin' or 'ptx', got {kind!r}")
    text = translation_unit(source)
    nvcc = find_nvcc()
    if nvcc is not None and host_compiler() is not None:  # nvcc leaves the preprocessing to g++
        target = f"-arch={'sm' if kind == 'cubin' else 'compute'}_{architecture}"
        return _nvcc(nvcc, source, text, [f"-{kind}", target], suffix=kind)
    return nvrtc_image(source, architecture=architecture, kind=kind)


def image_for_capability(source: Path, major: int, minor: int) -> bytes:
    """The image to load on a GPU: machine code for it, or PTX where the compiler is older than the GPU.

    Raises:
        NativeBuildError: as `device_image`; the message is that of the machine code.
    """
    own = f"{major}{minor}"
    try:
        return device_image(source, architecture=own)
    except NativeBuildError as cause:
        # A compiler that refuses the source refuses it for every architecture, so only unknown ones are tried again.
        if "architecture" not in str(cause) or own in CUDA_ARCHITECTURES:
            raise
        older = max((one for one in CUDA_ARCHITECTURES if int(one) < int(own)), key=int, default=None)
        if older is None:
            raise
        _log.warning("no machine code for compute capability %s.%s, PTX of %s instead", major, minor, older)
        return device_image(source, architecture=older, kind="ptx")


def fatbin(source: Path) -> bytes:
    """Machine code for all `CUDA_ARCHITECTURES` and PTX of the newest, in one image that the driver chooses from.

    Raises:
        NativeBuildError: there is no nvcc (NVRTC makes no such image), or it is too old to know an architecture.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise NativeBuildError("code for all architectures needs nvcc: install the CUDA toolkit 12.8 or newer")
    flags = [f"-gencode=arch=compute_{one},code=sm_{one}" for one in CUDA_ARCHITECTURES]
    newest = CUDA_ARCHITECTURES[-1]
    flags += [f"-gencode=arch=compute_{newest},code=compute_{newest}", "-fatbin"]
    return _nvcc(nvcc, source, translation_unit(source), flags, suffix="fatbin")


def find_nvcc() -> str | None:
    """Path of nvcc: on the path, else in ``$CUDA_HOME`` or ``$CUDA_PATH``, else in /usr/local/cuda; None without."""
    found = shutil.which("nvcc")
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    return found or next(filter(None, (shutil.which("nvcc", path=str(Path(f, "bin"))) for f in folders if f)), None)


def _nvcc(nvcc: str, source: Path, text: str, flags: Sequence[str], *, suffix: str) -> bytes:
    key = _key("nvcc", text, *_DEVICE_FLAGS, *flags, _version(nvcc))

    def compile_into(folder: Path) -> bytes:
        unit, image = folder / f"{source.stem}.cu", folder / f"{source.stem}.{suffix}"
        unit.write_text(text, encoding="utf-8")
        _run([nvcc, *_DEVICE_FLAGS, *flags, str(unit), "-o", str(image)], source.name)
        return image.read_bytes()

    return _kept(f"{source.stem}-{key}.{suffix}", compile_into)


def resource_report(source: Path, architectures: Sequence[str] = CUDA_ARCHITECTURES) -> list[dict[str, object]]:
    """What ptxas says of each kernel: one row of kernel, architecture, registers, shared_bytes, stack_bytes,
    spill_store_bytes, spill_load_bytes.

    Raises:
        NativeBuildError: there is no nvcc, or it refuses the source.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise NativeBuildError("the report of registers needs nvcc: install the CUDA toolkit 12.8 or newer")
    flags = [f"-gencode=arch=compute_{one},code=sm_{one}" for one in architectures]
    with tempfile.TemporaryDirectory(prefix="pose2seg-") as scratch:
        unit = Path(scratch, f"{source.stem}.cu")
        unit.write_text(translation_unit(source), encoding="utf-8")
        said = _run(
            [nvcc, *_DEVICE_FLAGS, *flags, "-Xptxas=-v", "-fatbin", str(unit), "-o", str(Path(scratch, "fatbin"))],
            source.name,
        )
    return list(_ptxas_rows(said))


def _ptxas_rows(said: str) -> Iterator[dict[str, object]]:
    for block in re.split(r"(?=Compiling entry function)", said)[1:]:
        name = re.match(r"Compiling entry function '(\w+)' for 'sm_(\w+)'", block)
        used = re.search(r"Used (\d+) registers", block)
        # ptxas also tells of functions that were not inlined; the entry's own line comes right after its name.
        stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block)
        if name is None or used is None or stack is None:
            raise NativeBuildError(f"ptxas reports in a form that is not known here: {block.strip()[:300]!r}")
        shared = re.search(r"(\d+) bytes smem", block)
        yield {
            "kernel": name[1],
            "architecture": name[2],
            "registers": int(used[1]),
            "shared_bytes": int(shared[1]) if shared else 0,
            "stack_bytes": int(stack[1]),
            "spill_store_bytes": int(stack[2]),
            "spill_load_bytes": int(stack[3]),
        }


# ------------------------------------------------------------------------------------------------------------ NVRTC


def nvrtc_image(source: Path, *, architecture: str, kind: DeviceCode = "cubin") -> bytes:
    """`device_image` made by the run-time compiler, which CUDA builds of PyTorch bring along; needs no GPU.

    Raises:
        NativeBuildError: there is no libnvrtc, or it refuses the source.
    """
    library, name = _nvrtc()
    text = translation_unit(source)
    version = (ctypes.c_int(), ctypes.c_int())
    library.nvrtcVersion(*map(ctypes.byref, version))
    target = f"--gpu-architecture={'sm' if kind == 'cubin' else 'compute'}_{architecture}"
    options = (*_NVRTC_FLAGS, target)
    # The version has no patch level; the path usually tells installations apart.
    key = _key("nvrtc", text, *options, f"{version[0].value}.{version[1].value}", name)
    return _kept(f"{source.stem}-{key}.{kind}", lambda _: _nvrtc_compile(library, text, source.name, options, kind))


def _nvrtc_compile(library: ctypes.CDLL, text: str, name: str, options: Sequence[str], kind: DeviceCode) -> bytes:
    program = ctypes.c_void_p()

    def check(code: int, doing: str) -> None:
        if code:
            reason = library.nvrtcGetErrorString(code).decode()
            raise NativeBuildError(f"NVRTC could not {doing} {name}: {reason}{_nvrtc_log(library, program)}")

    check(library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), name.encode(), 0, None, None), "read")
    try:
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        check(library.nvrtcCompileProgram(program, len(options), array), f"compile with {' '.join(options)}")
        what, size = kind.upper(), ctypes.c_size_t()
        check(getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)), "hand out the code of")
        image = ctypes.create_string_buffer(size.value)
        check(getattr(library, f"nvrtcGet{what}")(program, image), "hand out the code of")
        return image.raw.rstrip(b"\0") if kind == "ptx" else image.raw
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _nvrtc_log(library: ctypes.CDLL, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    if not program or library.nvrtcGetProgramLogSize(program, ctypes.byref(size)) or size.value <= 1:
        return ""
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    return "\n" + log.value.decode(errors="replace").strip()


@functools.cache
def _nvrtc() -> tuple[ctypes.CDLL, str]:
    for candidate in _nvrtc_candidates():
        try:
            # It opens this one by its bare name, which the loader only finds in a folder of its own search path.
            for builtins in Path(candidate).parent.glob("libnvrtc-builtins.so.*") if "/" in candidate else ():
                ctypes.CDLL(str(builtins))
            library = ctypes.CDLL(candidate)
        except OSError:
            continue
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        return library, candidate
    raise NativeBuildError(
        "CUDA code needs a compiler, and neither nvcc nor libnvrtc was found: install the CUDA toolkit, "
        "or pip install nvidia-cuda-nvrtc"
    )


def _nvrtc_candidates() -> Iterator[str]:
    """Where libnvrtc may lie: wheels of NVIDIA (nvidia/cu13/lib, nvidia/cuda_nvrtc/lib), the toolkit, the loader."""
    found = importlib.util.find_spec("nvidia")
    for root in found.submodule_search_locations or () if found else ():
        for path in sorted(Path(root).glob("*/lib/libnvrtc.so.*"), reverse=True):
            if ".alt." not in path.name:
                yield str(path)
    for folder in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if folder:
            yield from map(str, sorted(Path(folder, "lib64").glob("libnvrtc.so.*"), reverse=True))
    yield from ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")


# ------------------------------------------------------------------------------------------------------- what both use


def _kept(name: str, compile_into: Callable[[Path], bytes]) -> bytes:
    """The image of this name from the cache, or a new one that is put there."""
    try:
        kept = cache_folder("native") / name
        if kept.exists():
            refuse_foreign(kept)
            return kept.read_bytes()
        with tempfile.TemporaryDirectory(prefix="build-", dir=kept.parent) as scratch:
            image = compile_into(Path(scratch))
        write_atomically(kept, image)
    except (CacheFolderError, OSError) as cause:
        raise NativeBuildError(str(cause)) from cause
    return image


def _run(command: Sequence[str], name: str) -> str:
    """What the compiler says on both outputs."""
    try:
        done = subprocess.run(  # noqa: S603  a compiler that the user has, on our own source
            command, capture_output=True, text=True, errors="replace", timeout=_COMPILE_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as cause:
        raise NativeBuildError(f"compiling {name} failed: {cause}") from cause
    said = done.stdout + done.stderr
    if done.returncode:
        raise NativeBuildError(f"compiling {name} failed:\n{' '.join(command)}\n{said.strip()[-4000:]}")
    return said


@functools.cache
def _version(compiler: str) -> str:
    return compiler + "\n" + _run([compiler, "--version"], Path(compiler).name)


@functools.cache
def _processor() -> str:
    """Text that differs between processors with different instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.system()} {platform.machine()} {platform.processor()} {flags}"


def _key(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()[:32]
