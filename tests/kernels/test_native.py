"""kernels.native: what is built where, whom the cache trusts, and what a launch hands to the driver."""

from __future__ import annotations

import ctypes
import json
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kernels.native import (
    CUDA_ARCHITECTURES,
    CudaDriverError,
    DeviceModule,
    NativeBuildError,
    compile,  # noqa: A004  the module, whose name says what it does
    device_image,
    fatbin,
    host_library,
)
from kernels.native.__main__ import main as report
from kernels.native.cache import CacheFolderError, cache_folder, write_atomically
from kernels.native.compile import image_for_capability, nvrtc_image, resource_report, translation_unit
from tests.fake_cuda import build_fake_driver, load_fake_driver

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(ROOT.glob("kernels/*/*.cu"))

TWICE_CPP = """#include "half.cuh"
extern "C" __attribute__((visibility("default"))) int twice(int value) { return 2 * value; }
"""

# Parameters of every size and kind, written back by the threads that were asked for.
RECORD_CU = """#include "numbers.cuh"
struct pair { int first; double second; };
extern "C" __global__ void record(const float* in, int a, long long b, double c, unsigned char d, pair e, double* out) {
  int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  int threads = blockDim.x * blockDim.y * blockDim.z;
  out[block * threads + thread] = c + in[0] + a + b + d + e.first + e.second + EXTRA;
}
extern "C" __global__ void nothing() {}
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh cache of this test's own, in a folder that only its owner may write to."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("POSE2SEG_CACHE", str(folder))
    monkeypatch.setattr(compile, "_loaded", {})
    return folder


@pytest.fixture
def record_cu(tmp_path: Path) -> Path:
    (tmp_path / "numbers.cuh").write_text("#pragma once\n#define EXTRA 1000\n")
    source = tmp_path / "record.cu"
    source.write_text(RECORD_CU)
    return source


# ---------------------------------------------------------------------------------------------------------------- host


def write_host_source(folder: Path) -> Path:
    source = folder / "twice.cpp"
    source.write_text(TWICE_CPP)
    (folder / "half.cuh").write_text("#pragma once\n")
    return source


def print_twice_4(source: Path) -> list[str]:
    """A command that does so in a process of its own."""
    code = "import pathlib, sys, kernels.native; print(kernels.native.host_library(pathlib.Path(sys.argv[1])).twice(4))"
    return [sys.executable, "-c", code, str(source)]


def test_a_library_is_built_once_and_found_by_the_next_process(cache: Path, tmp_path: Path) -> None:
    source = write_host_source(tmp_path)
    assert host_library(source).twice(21) == 42
    assert host_library(source) is host_library(source)
    (kept,) = (cache / "native").iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (cache, cache / "native")} == {0o700}
    before = kept.stat().st_mtime_ns
    done = subprocess.run(print_twice_4(source), cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "8\n"
    assert [(path, path.stat().st_mtime_ns) for path in (cache / "native").iterdir()] == [(kept, before)]


@pytest.mark.usefixtures("cache")
def test_what_is_included_and_flags_belong_to_the_key(tmp_path: Path) -> None:
    source = write_host_source(tmp_path)
    first = host_library(source)
    source.write_text(TWICE_CPP.replace("2 * value", "2 * value + OFFSET"))
    (tmp_path / "half.cuh").write_text("#pragma once\n#define OFFSET 1\n")
    second = host_library(source)
    (tmp_path / "half.cuh").write_text("#pragma once\n#ifndef OFFSET\n#define OFFSET 2\n#endif\n")
    third, fourth = host_library(source), host_library(source, flags=("-DOFFSET=3",))
    assert [library.twice(10) for library in (first, second, third, fourth)] == [20, 21, 22, 23]


@pytest.mark.usefixtures("cache")
def test_many_threads_and_processes_may_ask_at_once(tmp_path: Path) -> None:
    source = write_host_source(tmp_path)
    others = [subprocess.Popen(print_twice_4(source), cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(host_library(source).twice(3))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [6] * 4
    assert [other.communicate(timeout=120)[0] for other in others] == ["8\n"] * 3


def test_line_numbers_of_messages_are_those_of_the_file(cache: Path, tmp_path: Path) -> None:
    source = write_host_source(tmp_path)
    source.write_text(TWICE_CPP + "int wrong = nowhere;\n")
    with pytest.raises(NativeBuildError, match=r"twice\.cpp:3:13: error: .*nowhere") as caught:
        host_library(source)
    assert "g++" in str(caught.value) or "c++" in str(caught.value)
    assert list((cache / "native").iterdir()) == []


def test_each_file_is_joined_once_whoever_includes_it(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.cuh").write_text('#pragma once\n#include "../b.cuh"\nint a;\n')
    (tmp_path / "b.cuh").write_text("#pragma once\nint b;\n")
    source = tmp_path / "main.cu"
    source.write_text('#include <vector>\n#include "inner/a.cuh"\n  # include "b.cuh"\nint c;\n')
    text = translation_unit(source)
    assert [line for line in text.splitlines() if line.startswith("int")] == ["int b;", "int a;", "int c;"]
    assert "#include <vector>" in text
    (tmp_path / "b.cuh").unlink()
    with pytest.raises(NativeBuildError, match=r"cannot read .*b\.cuh, needed for main\.cu"):
        translation_unit(source)


def test_no_compiler_is_an_error_that_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(NativeBuildError, match=r"neither \$CXX nor g\+\+.*apt install g\+\+"):
        host_library(write_host_source(tmp_path))


# --------------------------------------------------------------------------------------------------------------- cache


def test_a_cache_that_others_may_write_is_refused(cache: Path, tmp_path: Path) -> None:
    cache.mkdir(mode=0o700)
    cache.chmod(0o770)
    with pytest.raises(CacheFolderError, match=r"may be written by others: chmod go-w"):
        cache_folder("native")
    with pytest.raises(NativeBuildError, match=r"may be written by others"):
        host_library(write_host_source(tmp_path))
    cache.chmod(0o700)
    folder = cache_folder("native")
    folder.chmod(0o707)
    with pytest.raises(CacheFolderError, match=r"native may be written by others"):
        cache_folder("native")


def test_a_cache_below_a_folder_that_everybody_may_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSE2SEG_CACHE", str(tmp_path / "open" / "cache"))
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(CacheFolderError, match="may be written by everybody"):
        cache_folder("native")
    (tmp_path / "open").chmod(0o1777)  # as /tmp: files of others cannot be exchanged
    assert cache_folder("native").is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_cache_of_somebody_else_is_refused(cache: Path) -> None:
    cache_folder("native")
    os.chown(cache / "native", 12345, -1)
    with pytest.raises(CacheFolderError, match="belongs to user 12345"):
        cache_folder("native")


def test_a_foreign_or_damaged_file_in_the_cache_is_not_loaded(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_host_source(tmp_path)
    host_library(source)
    (kept,) = (cache / "native").iterdir()
    kept.chmod(0o666)
    compile._loaded.clear()
    with pytest.raises(NativeBuildError, match="may be written by others"):
        host_library(source)
    monkeypatch.setenv("POSE2SEG_CACHE", str(tmp_path / "other"))
    write_atomically(cache_folder("native") / kept.name, b"no library")
    with pytest.raises(NativeBuildError, match=r"cannot load .*delete the file and try again"):
        host_library(source)


def test_a_cache_that_cannot_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POSE2SEG_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CacheFolderError, match=r"cannot make the cache folder for native.*set POSE2SEG_CACHE"):
        cache_folder("native")


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "image"
    write_atomically(target, b"first")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(target, b"second")
    assert target.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [target]


# -------------------------------------------------------------------------------------------------------------- device


def test_there_are_cuda_sources() -> None:
    assert "affine_align.cu" in {source.name for source in SOURCES}


@pytest.mark.nvcc
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_every_source_compiles_for_every_architecture(source: Path) -> None:
    rows = resource_report(source)
    kernels = {row["kernel"] for row in rows}
    assert kernels == set(re.findall(r"\.entry (\w+)\(", device_image(source, architecture="75", kind="ptx").decode()))
    assert {(row["kernel"], row["architecture"]) for row in rows} == {
        (kernel, architecture) for kernel in kernels for architecture in CUDA_ARCHITECTURES
    }
    if source.name != "affine_align.cu":
        return
    assert len(kernels) == 24
    for row in rows:
        print(row)
        assert row["stack_bytes"] == row["spill_store_bytes"] == row["spill_load_bytes"] == row["shared_bytes"] == 0
        assert isinstance(row["registers"], int) and row["registers"] <= 102  # 65,536 / 102 = 5 blocks of 128


@pytest.mark.nvcc
@pytest.mark.usefixtures("cache")
def test_one_image_holds_all_architectures(record_cu: Path) -> None:
    image = fatbin(record_cu)
    assert image[:4] == (0xBA55ED50).to_bytes(4, "little")  # what the driver knows a fat binary by
    cubins = [device_image(record_cu, architecture=one) for one in CUDA_ARCHITECTURES]
    assert all(one.startswith(b"\x7fELF") for one in cubins)
    assert len(set(cubins)) == len(cubins)
    assert len(image) > sum(map(len, cubins)) / 4  # it is compressed


@pytest.mark.nvcc
def test_the_report_is_a_table_and_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = (one for one in SOURCES if one.name == "affine_align.cu")
    rows = [
        {"kernel": "align", "architecture": one, "registers": 40, "shared_bytes": 0, "stack_bytes": 8}
        | {"spill_store_bytes": 4 if one == "75" else 0, "spill_load_bytes": 0}
        for one in CUDA_ARCHITECTURES
    ]
    monkeypatch.setattr("kernels.native.__main__.PACKAGE", source.parents[1])
    monkeypatch.setattr("kernels.native.__main__.resource_report", lambda _: rows)
    monkeypatch.setattr("kernels.native.__main__.fatbin", lambda _: b"12345")
    assert report([]) == 0
    table = capsys.readouterr().out
    assert "affine_align/affine_align.cu: 5 bytes" in table
    assert table.count(" 40l8!4") == table.count("sm_75") == len(SOURCES)
    assert report(["--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {one["source"] for one in told["sources"]} == {f"{one.parent.name}/{one.name}" for one in SOURCES}
    assert told["sources"][0]["kernels"] == rows


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_nvrtc_compiles_every_source_without_nvcc_and_gpu(
    source: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(compile, "find_nvcc", lambda: None)
    assert device_image(source, architecture="90").startswith(b"\x7fELF")
    text = device_image(source, architecture="80", kind="ptx").decode()
    assert ".target sm_80" in text and text.count(".visible .entry") > 1
    assert len(list((cache / "native").iterdir())) == 2
    with pytest.raises(NativeBuildError, match="needs nvcc"):
        fatbin(source)
    with pytest.raises(NativeBuildError, match="needs nvcc"):
        resource_report(source)


@pytest.mark.usefixtures("cache")
def test_nvrtc_repeats_what_the_compiler_said(tmp_path: Path) -> None:
    source = tmp_path / "wrong.cu"
    source.write_text('\n\nextern "C" __global__ void f() { nowhere(); }\n')
    with pytest.raises(NativeBuildError, match=r"NVRTC_ERROR_COMPILATION(.|\n)*wrong\.cu\(3\): error: .*nowhere"):
        nvrtc_image(source, architecture="90")
    with pytest.raises(NativeBuildError, match=r"sm_33(.|\n)*INVALID_OPTION"):
        nvrtc_image(source, architecture="33")


def test_without_any_compiler_the_message_names_both(record_cu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile, "find_nvcc", lambda: None)
    monkeypatch.setattr(compile, "_nvrtc_candidates", lambda: iter(["/nonexistent/libnvrtc.so.13"]))
    compile._nvrtc.cache_clear()
    with pytest.raises(NativeBuildError, match=r"neither nvcc nor libnvrtc was found: .*pip install nvidia-cuda-nvrtc"):
        device_image(record_cu, architecture="90")
    compile._nvrtc.cache_clear()


def test_architecture_and_kind_are_checked(record_cu: Path) -> None:
    with pytest.raises(NativeBuildError, match="such as '90', got 'sm_90'"):
        device_image(record_cu, architecture="sm_90")
    with pytest.raises(NativeBuildError, match="'cubin' or 'ptx', got 'sass'"):
        device_image(record_cu, architecture="90", kind="sass")


def test_a_gpu_newer_than_the_compiler_gets_ptx(record_cu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def older_compiler(_: Path, *, architecture: str, kind: str = "cubin") -> bytes:
        asked.append((architecture, kind))
        if int(architecture) > 120:
            raise NativeBuildError(f"Unsupported gpu architecture 'sm_{architecture}'")
        if architecture == "86":
            raise NativeBuildError("record.cu(3): error")
        return kind.encode()

    monkeypatch.setattr(compile, "device_image", older_compiler)
    assert image_for_capability(record_cu, 9, 0) == b"cubin"
    assert image_for_capability(record_cu, 13, 0) == b"ptx"
    assert asked == [("90", "cubin"), ("130", "cubin"), ("120", "ptx")]
    with pytest.raises(NativeBuildError, match="error"):
        image_for_capability(record_cu, 8, 6)
    assert len(asked) == 4


# -------------------------------------------------------------------------------------------------------------- launch


@pytest.fixture
def driver(record_cu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    loaded = load_fake_driver(build_fake_driver(record_cu, tmp_path))
    monkeypatch.setattr("kernels.native.launch._driver", lambda: loaded)
    return loaded


class Pair(ctypes.Structure):
    """`pair` of RECORD_CU."""

    _fields_ = (("first", ctypes.c_int), ("second", ctypes.c_double))


def test_every_argument_arrives_at_every_thread(driver: ctypes.CDLL) -> None:
    grid, block = (2, 3, 2), (4, 2, 3)
    out = (ctypes.c_double * (12 * 24 + 1))()
    module = DeviceModule(b"the image")
    arguments = (
        *(ctypes.pointer(ctypes.c_float(0.5)), ctypes.c_int(-7), ctypes.c_longlong(1 << 40), ctypes.c_double(0.25)),
        *(ctypes.c_ubyte(200), Pair(11, 0.125), ctypes.c_void_p(ctypes.addressof(out))),
    )
    first = ctypes.c_void_p(ctypes.addressof(arguments[0].contents))
    module.launch("record", grid, block, 99, first, *arguments[1:], shared_bytes=64)
    total = 0.5 - 7 + (1 << 40) + 0.25 + 200 + 11 + 0.125 + 1000
    assert list(out) == [total] * (12 * 24) + [0]
    told = driver.fake_last_launch().contents
    assert (told.name, tuple(told.grid), tuple(told.block)) == (b"record", grid, block)
    assert (told.shared_bytes, told.stream) == (64, 99)
    assert driver.fake_image() == b"the image"


def test_images_are_loaded_once_per_context_and_a_thread_without_one_gets_device_0(driver: ctypes.CDLL) -> None:
    module = DeviceModule(b"image")
    for _ in range(3):
        module.launch("nothing", (1, 1, 1), (1, 1, 1), 0)
    assert [driver.fake_count(what) for what in (b"launches", b"modules", b"retained")] == [3, 1, 1]
    driver.cuCtxSetCurrent(ctypes.c_void_p(4711))  # as another device's context would be
    module.launch("nothing", (1, 1, 1), (1, 1, 1), 0)
    driver.fake_leave_context()
    module.launch("nothing", (1, 1, 1), (1, 1, 1), 0)
    assert [driver.fake_count(what) for what in (b"launches", b"modules", b"retained")] == [5, 2, 2]


@pytest.mark.usefixtures("driver")
def test_what_the_driver_refuses_is_told_with_advice() -> None:
    with pytest.raises(
        CudaDriverError, match=r"could not load an image: unknown error \(error 200\); .*delete the fold"
    ):
        DeviceModule(b"damaged").launch("nothing", (1, 1, 1), (1, 1, 1), 0)
    module = DeviceModule(b"image")
    with pytest.raises(CudaDriverError, match=r"find absent: named symbol not found \(error 500\)"):
        module.launch("absent", (1, 1, 1), (1, 1, 1), 0)
    with pytest.raises(
        CudaDriverError, match=r"launch nothing with grid \(2, 1, 1\).*error 700\); .*compute-sanitizer"
    ):
        module.launch("nothing", (2, 1, 1), (1, 1, 1), 700)


@pytest.mark.parametrize(
    ("grid", "block", "message"),
    [
        ((0, 1, 1), (1, 1, 1), r"grid of nothing must be three sizes .*got \(0, 1, 1\)"),
        ((1, 65536, 1), (1, 1, 1), "grid of nothing"),
        ((1, 1, 65536), (1, 1, 1), "grid of nothing"),
        ((1, 1), (1, 1, 1), "grid of nothing"),
        ((1, 1, 1), (1025, 1, 1), "block of nothing must be three sizes"),
        ((1, 1, 1), (32, 32, 2), r"at most 1024 threads, got \(32, 32, 2\)"),
    ],
)
def test_launches_that_cuda_would_refuse(driver: ctypes.CDLL, grid: tuple, block: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeviceModule(b"image").launch("nothing", grid, block, 0)
    assert driver.fake_count(b"launches") == 0


@pytest.mark.usefixtures("driver")
def test_a_bare_number_is_no_argument() -> None:
    with pytest.raises(TypeError, match=r"argument 1 of record must be a ctypes value .*got 3"):
        DeviceModule(b"image").launch("record", (1, 1, 1), (1, 1, 1), 0, ctypes.c_int(3), 3)
    with pytest.raises(ValueError, match="empty image"):
        DeviceModule(b"")


def launched_in_a_process(folder: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "from kernels.native import DeviceModule; from kernels.native.launch import driver_version; "
        "DeviceModule(b'image').launch('nothing', (1, 1, 1), (1, 1, 1), 0); print(driver_version())"
    )
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_driver_is_found_by_the_systems_loader(record_cu: Path, tmp_path: Path) -> None:
    build_fake_driver(record_cu, tmp_path)
    done = launched_in_a_process(tmp_path)
    assert (done.stdout, done.returncode) == ("13000\n", 0), done.stderr


def test_a_driver_that_cannot_be_loaded_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_text("not a library")
    done = launched_in_a_process(tmp_path)
    assert done.returncode == 1
    assert "CudaDriverError: no CUDA driver: " in done.stderr
    assert "install NVIDIA's driver" in done.stderr
