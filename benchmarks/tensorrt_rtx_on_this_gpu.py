"""Do plans of TensorRT for RTX run on this GPU? `python -m benchmarks.tensorrt_rtx_on_this_gpu [--json F]`

Its support matrix lists compute capabilities 7.5, 8.6, 8.9 and 12.0, and its documentation says that plans made without
a GPU run on "8.0, 8.6, 8.9, 12.0 and later"; nothing is said of 9.0. So this tries: {default, SM80, SM89, CURRENT} x
{function body, Python plugin} x {float32, half}, with the segment graph that ships. Each case is a process of its own
with a time limit, since the library may end it. A case that runs is compared with ONNX Runtime and timed.

Without a GPU the plans are built (except CURRENT) and nothing is run; the JSON says so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from engines import EngineError, EngineOptions, default_artifact, load_artifact, open_engine
from engines.nvidia_driver import find_nvidia_driver
from engines.tensorrt_build import build_plan
from engines.tensorrt_engine import TensorRTEngine
from engines.tensorrt_library import load_library, logger_of, title_of

ROOT = Path(__file__).resolve().parent.parent
CAPABILITIES = ("default", "SM80", "SM89", "CURRENT")
FORMS = ("function", "python")
PRECISIONS = ("float32", "float16")
CASES = list(itertools.product(CAPABILITIES, FORMS, PRECISIONS))
NAMES = ("capability", "affine_align", "precision")
PEOPLE = 4
LIMIT_S = 60.0
TIMED_CALLS = 200
#: Largest difference of probabilities at which a case counts as right; half: tests/engines/test_half_precision.py.
TOLERANCE = {"float32": 2e-3, "float16": 3e-2}


def feeds(dtype: np.dtype[Any]) -> dict[str, np.ndarray[Any, Any]]:
    """A picture's features at 288 x 512 and four people, the same each time."""
    rng = np.random.default_rng(0)
    angle, scale = rng.uniform(-0.5, 0.5, PEOPLE), rng.uniform(0.3, 1.2, PEOPLE)
    matrix = np.zeros((PEOPLE, 2, 3), np.float32)
    matrix[:, 0, 0] = matrix[:, 1, 1] = scale * np.cos(angle)
    matrix[:, 0, 1], matrix[:, 1, 0] = -scale * np.sin(angle), scale * np.sin(angle)
    matrix[:, :, 2] = rng.uniform(0, 40, (PEOPLE, 2))
    joints = np.concatenate((rng.uniform(0, 64, (PEOPLE, 17, 2)), rng.integers(0, 3, (PEOPLE, 17, 1))), -1)
    return {
        "features": rng.normal(size=(1, 48, 72, 128)).astype(dtype),
        "feature_from_roi": matrix,
        "roi_image": np.zeros(PEOPLE, np.int32),
        "roi_keypoints": joints.astype(np.float32),
    }


def one_case(capability: str, form: Any, precision: Any) -> dict[str, Any]:
    """Build, load, compare, time; what came so far is printed after each, so that a crash keeps it."""
    graph = load_artifact(default_artifact()).segment_path
    options = EngineOptions(precision=precision)
    found: dict[str, Any] = dict(zip(NAMES, (capability, form, precision), strict=True))

    def tell(**more: Any) -> None:
        found.update(more)
        print(json.dumps(found), flush=True)

    tell(state="building")
    started = time.perf_counter()
    capabilities = () if capability == "default" else (capability,)
    built = build_plan("tensorrt-rtx", graph, options, capabilities=capabilities, affine_align=form)
    tell(state="built", plan_bytes=len(built.plan), build_s=round(time.perf_counter() - started, 2))
    if find_nvidia_driver().problem:
        return found
    trt: Any = load_library("tensorrt-rtx")
    validity, diagnostics = trt.Runtime(logger_of(trt)).get_engine_validity(built.plan)
    tell(state="asked", validity=validity.name, diagnostics=int(diagnostics))

    started = time.perf_counter()
    engine = TensorRTEngine(built.plan, library=trt, options=options)
    tell(state="loaded", load_s=round(time.perf_counter() - started, 2))
    dtype = next(spec.dtype for spec in engine.inputs if spec.name == "features")
    given = feeds(dtype)
    started = time.perf_counter()
    result = engine.run(given)
    tell(state="ran", first_call_ms=round((time.perf_counter() - started) * 1e3, 1))
    exact = open_engine(graph, engine="onnx").run({**given, "features": given["features"].astype(np.float32)})
    difference = float(np.abs(result["probabilities"].astype(np.float64) - exact["probabilities"]).max())
    right = difference < TOLERANCE[precision]
    tell(state="compared", largest_difference=difference, right=right)
    if right:  # a wrong result gets no time
        tell(state="timed", **timed(engine, given))
    engine.close()
    return found


def timed(engine: TensorRTEngine, given: dict[str, np.ndarray[Any, Any]]) -> dict[str, float]:
    """Latency of one call with tensors on the device, each waited for, in microseconds."""
    import torch

    tensors = {name: torch.from_numpy(array).to(engine.device) for name, array in given.items()}
    took = []
    for _ in range(20):
        engine.run_on_device(tensors)
    torch.cuda.synchronize()
    for _ in range(TIMED_CALLS):
        started = time.perf_counter()
        engine.run_on_device(tensors)
        torch.cuda.synchronize()
        took.append((time.perf_counter() - started) * 1e6)
    quantiles = statistics.quantiles(took, n=100)
    return {"p50_us": round(quantiles[49], 1), "p95_us": round(quantiles[94], 1), "p99_us": round(quantiles[98], 1)}


def in_own_process(case: tuple[str, str, str], limit_s: float) -> dict[str, Any]:
    """One case; a crash, an error or a hang costs this one only."""
    named = dict(zip(NAMES, case, strict=True))
    if case[0] == "CURRENT" and find_nvidia_driver().problem:
        return {**named, "state": "skipped", "error": "CURRENT needs a GPU"}
    command = [sys.executable, "-m", "benchmarks.tensorrt_rtx_on_this_gpu", "--case", *case]
    started = time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False)  # noqa: S603
        out, code, errors = done.stdout, done.returncode, done.stderr
    except subprocess.TimeoutExpired as stopped:
        out = stopped.stdout.decode() if isinstance(stopped.stdout, bytes) else (stopped.stdout or "")
        code, errors = None, f"stopped after {limit_s:.0f} s"
    lines = [line for line in out.splitlines() if line.startswith("{")]
    found: dict[str, Any] = {**named, **(json.loads(lines[-1]) if lines else {"state": "nothing"})}
    found["seconds"] = round(time.monotonic() - started, 1)
    if code != 0:
        reason = [line for line in errors.strip().splitlines() if line.strip()]
        found.setdefault("error", reason[-1][:400] if reason else f"ended with {code}")
        found["exit"] = code
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="F", help="write all cases as JSON")
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="S", help="of one case (%(default)s)")
    parser.add_argument("--total", type=float, default=110.0, metavar="S", help="of all cases (%(default)s)")
    parser.add_argument(
        "--case", nargs=3, metavar=("CAPABILITY", "FORM", "PRECISION"), help="one case, in this process"
    )
    options = parser.parse_args()
    if options.case:
        try:
            one_case(*options.case)
        except EngineError as error:
            print(json.dumps({"state": "failed", "error": str(error)}), flush=True)
            return 1
        return 0
    driver = find_nvidia_driver()
    try:
        library: str | None = title_of(load_library("tensorrt-rtx"))
    except EngineError as error:
        library = None
        print(f"nothing to try: {error}")
    gpu = driver.gpus[0] if driver.gpus else None
    report: dict[str, Any] = {
        "library": library,
        "driver": driver.version,
        "gpu": gpu.name if gpu else None,
        "compute_capability": ".".join(map(str, gpu.capability)) if gpu else None,
        "note": "" if gpu else f"plans built, none run: {driver.problem}",
        "cases": [],
    }
    started = time.monotonic()
    for case in CASES if library else ():
        left_s = options.total - (time.monotonic() - started)
        if left_s < 5:
            found = {
                **dict(zip(("capability", "affine_align", "precision"), case, strict=True)),
                "state": "no time left",
            }
        else:
            found = in_own_process(case, min(options.limit, left_s))
        report["cases"].append(found)
        shown = {
            name: value for name, value in found.items() if name not in {"capability", "affine_align", "precision"}
        }
        print(f"{case[0]:8s} {case[1]:8s} {case[2]:8s} {shown}", flush=True)
        if options.json is not None:  # whatever ends this, what was found so far is there
            options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    right = [found for found in report["cases"] if found.get("right")]
    report["runs"] = bool(right) if gpu else None
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if gpu:
        print(f"{len(right)} of {len(report['cases'])} cases run right on {gpu.name}, {report['compute_capability']}")
    else:
        print(report["note"])
    print(json.dumps({name: report[name] for name in ("library", "gpu", "compute_capability", "runs", "note")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
