"""Everything that only a GPU can prove, step by step: `benchmarks/gpu_check.sh` runs this.

Each step is a process of its own with a time limit, so that a crash or a hang costs one step. A step ends as *passed*,
*failed*, *skipped* (with the reason: no GPU, no library) or *out of time*. The figures that are wanted of a GPU are
listed with what was measured, or as unproven.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, environment

ROOT = Path(__file__).resolve().parent.parent
TAIL_CHARACTERS = 4000  # of a step's output, kept in the results
EXIT_SKIPPED = 77  # of a step that says itself that it cannot run here; the usual number for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One process.

    Attributes:
        name: short, also of its figures' file.
        command: arguments; ``{json}`` becomes the path its figures are to be written to.
        limit_s: it is killed after this time.
        needs_gpu: it is skipped on a machine without one.
        needs: programs without which it is skipped.
        modules: Python modules without which it is skipped.
        environment: variables to set.
    """

    name: str
    command: tuple[str, ...]
    limit_s: float
    needs_gpu: bool = True
    needs: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Verdict:
    """How a step ended."""

    name: str
    state: str  # passed, failed, skipped, out of time
    reason: str = ""
    seconds: float = 0.0
    command: str = ""
    tail: str = ""
    figures: Any = None


def steps(scratch: Path) -> list[Step]:
    """All of them, the most wanted first: the time may not do for the last ones."""
    python = shlex.quote(sys.executable)
    # Other versions of libraries than the pinned ones warn of other things; and what is missing there must not keep the
    # tests that need nothing of it from running.
    pytest = f"{python} -m pytest -q -p no:cacheprovider -W default --continue-on-collection-errors -m gpu"
    bench = f"{python} run_stream.py bench --json {{json}}"
    paper = shlex.quote(str(scratch / "paper"))

    def step(name: str, command: str, limit_s: float, **more: Any) -> Step:
        return Step(name=name, command=tuple(shlex.split(command)), limit_s=limit_s, **more)

    def pipeline(engine: str, precision: str) -> Step:
        command = f"{bench} --engine {engine} --precision {precision} --people 1,4,20 --batch 1,8 --seconds 2"
        modules = ("tensorrt_rtx",) if engine == "tensorrt-rtx" else ("torch",)
        return step(f"pipeline_{engine}_{precision}", command, 90, modules=modules)

    strict = {"FAIL_WITHOUT_CUDA": "1"}
    return [
        step("parity", f"{pytest} --timeout 150 {' '.join(gpu_test_files())}", 150, environment=strict),
        step("kernels", f"{python} -m benchmarks.bench_gpu_kernels --json {{json}}", 60),
        step("engine_choice", f"{python} run_stream.py engines list", 60, needs_gpu=False),
        pipeline("torch", "float16"),
        step(
            "paper_weights",
            f"{python} -m training.export_onnx --family paper --random-weights --output {paper}",
            150,
            needs_gpu=False,
        ),
        step("paper", f"{bench} --paper {paper} --engine torch --precision float16 --people 4 --seconds 3", 60),
        step(
            "tensorrt_rtx",
            f"{python} -m benchmarks.tensorrt_rtx_on_this_gpu --json {{json}}",
            120,
            modules=("tensorrt_rtx",),
        ),
        pipeline("tensorrt-rtx", "float16"),
        step(
            "engines", f"{python} -m benchmarks.bench_engines --engines onnx,torch --json {{json}}", 60, needs_gpu=False
        ),
        step(
            "sanitizer",
            "compute-sanitizer --tool memcheck --error-exitcode 1 "
            f"{pytest} -k 'small or same_bits or hundred_people' tests/kernels",
            90,
            needs=("compute-sanitizer",),
            environment={**strict, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        ),
        pipeline("torch", "float32"),
        step("pipeline_cpu", f"{bench} --engine onnx --people 4 --seconds 2", 60, needs_gpu=False),
    ]


def gpu_test_files() -> list[str]:
    """Test files that hold something for a GPU, from the repository's root."""
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    return [path.relative_to(ROOT).as_posix() for path in paths if "mark.gpu" in path.read_text(encoding="utf-8")]


def gpu_name() -> str | None:
    """Name of the first NVIDIA GPU; None where there is none."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0] if lines else None


def run_step(step: Step, *, gpu: bool, left_s: float, scratch: Path, base: dict[str, str]) -> Verdict:
    """Run one step within its limit and within what is left of the whole."""
    verdict = Verdict(name=step.name, state="skipped", command=" ".join(_short(part) for part in step.command))
    missing = [name for name in step.needs if shutil.which(name) is None]
    missing += [name for name in step.modules if not _has_module(name, base)]
    if step.needs_gpu and not gpu:
        verdict.reason = "no GPU on this machine"
    elif missing:
        verdict.reason = f"{', '.join(missing)} not found"
    elif left_s < 5:
        verdict.reason = "no time left"
    if verdict.reason:
        return verdict
    figures = scratch / f"{step.name}.json"
    command = [part.replace("{json}", str(figures)) for part in step.command]
    started = time.monotonic()
    limit_s = min(step.limit_s, left_s)
    with (scratch / f"{step.name}.log").open("w+b") as log:
        process = subprocess.Popen(  # noqa: S603  our own commands
            command,
            cwd=ROOT,
            env={**base, **step.environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(process.pid, 9)
            process.wait()
        log.seek(0)
        output = log.read().decode(errors="replace")
    verdict.seconds = round(time.monotonic() - started, 1)
    verdict.tail = _short(output[-TAIL_CHARACTERS:])
    verdict.state = {0: "passed", None: "out of time", EXIT_SKIPPED: "skipped"}.get(code, "failed")
    if verdict.state != "passed":
        lines = [line for line in output.strip().splitlines() if line.strip()]
        verdict.reason = (
            f"after {limit_s:.0f} s" if code is None else _short(lines[-1])[:300] if lines else f"exit code {code}"
        )
    if figures.is_file():
        verdict.figures = json.loads(figures.read_text())
        if isinstance(verdict.figures, dict) and verdict.figures.get("status") == "skipped":
            verdict.state, verdict.reason = "skipped", str(verdict.figures.get("reason", ""))
    return verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A figure that is wanted of a datacentre GPU."""

    what: str
    at_least: float
    unit: str
    measured: float | None

    @property
    def verdict(self) -> str:
        """In words; a figure that nobody measured is unproven, whatever else passed."""
        if self.measured is None:
            return "unproven: not measured here"
        return "met" if self.measured >= self.at_least else "missed"


def wanted_figures(verdicts: Sequence[Verdict], *, gpu: bool) -> list[Wanted]:
    """The figures that are wanted, each with what the steps measured; only a GPU's figures count."""
    figures = {verdict.name: verdict.figures for verdict in verdicts if gpu and verdict.state == "passed"}
    kernels = figures.get("kernels") or {}
    share = _find(kernels, "affine_align_f16_share_of_copy_bandwidth")
    ratio = _find(kernels, "affine_align_f16_times_published_pipeline")
    paper = _outcome(figures.get("paper"), key="paper", people=4, batch=1)
    engines = [name for name in figures if name.startswith("pipeline_") and name != "pipeline_cpu"]

    def best(batch: int) -> float | None:
        found = [fps for name in engines if (fps := _outcome(figures[name], people=4, batch=batch)) is not None]
        return max(found, default=None)

    return [
        Wanted(what="affine_align f16, N=32, C=256, 64 x 64", at_least=0.6, unit="of copy bandwidth", measured=share),
        Wanted(what="the same", at_least=5.0, unit="x the published gather + grid_sample", measured=ratio),
        Wanted(
            what="paper family, 512 x 512, 4 people, keypoints given, batch 1", at_least=300, unit="FPS", measured=paper
        ),
        Wanted(what="live, 720p, 4 people, frames in memory, batch 1", at_least=400, unit="FPS", measured=best(1)),
        Wanted(what="live, 720p, 4 people, frames in memory, batch 8", at_least=1500, unit="FPS", measured=best(8)),
    ]


def _has_module(name: str, environment_of_steps: dict[str, str]) -> bool:
    """Whether the steps' Python finds a module; what was carried along is on their path, not on ours."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
    done = subprocess.run([sys.executable, "-c", code], env=environment_of_steps, check=False, timeout=60)  # noqa: S603
    return done.returncode == 0


def _find(document: Any, key: str) -> float | None:
    """The first number under this key, however deep."""
    if isinstance(document, dict):
        if isinstance(document.get(key), (int, float)):
            return float(document[key])
        document = list(document.values())
    if isinstance(document, list):
        for part in document:
            if (found := _find(part, key)) is not None:
                return found
    return None


def _outcome(document: Any, *, people: int, batch: int, key: str = "outcomes") -> float | None:
    for outcome in (document or {}).get(key) or []:
        if (outcome["people"], outcome["batch"]) == (people, batch):
            return float(outcome["fps"])
    return None


def report_of(
    verdicts: Sequence[Verdict], wanted: Sequence[Wanted], machine: dict[str, object], gpu: str | None
) -> str:
    """The results for people, as Markdown."""
    lines = [
        f"# GPU check: {gpu or 'no GPU'}",
        "",
        "`benchmarks/gpu_check.sh`, commit {commit}, {date}, {cpu}, {cores} cores.".format(**machine),
        "",
        "| step | state | s | why |",
        "|---|---|---|---|",
        *(f"| {v.name} | {v.state} | {v.seconds} | {v.reason.replace('|', '/')} |" for v in verdicts),
        "",
        "| wanted on a datacentre GPU | at least | measured | verdict |",
        "|---|---|---|---|",
    ]
    for figure in wanted:
        measured = "-" if figure.measured is None else f"{figure.measured:.3g}"
        lines.append(f"| {figure.what} | {figure.at_least:g} {figure.unit} | {measured} | {figure.verdict} |")
    for verdict in verdicts:
        table = _frames_a_second(verdict)
        if table:
            lines += ["", f"## {verdict.name}", "", f"`{verdict.command}`", "", *table]
    return "\n".join(lines) + "\n"


def _frames_a_second(verdict: Verdict) -> list[str]:
    outcomes = verdict.figures.get("outcomes") if isinstance(verdict.figures, dict) else None
    if not outcomes:
        return []
    rows = [
        f"| {o['people']} | {o['batch']} | {o['fps']:.1f} | "
        + (f"{o['alone_ms']['p50']:.2f} | {o['alone_ms']['p95']:.2f} |" if o["alone_ms"] else "- | - |")
        for o in outcomes
    ]
    return ["| people | batch | FPS | alone p50 ms | p95 ms |", "|---|---|---|---|---|", *rows]


def _short(text: str) -> str:
    """Without the folders that only one machine knows."""
    return re.sub(r"/(?:[\w.@+-]+/)+(?=[\w.@+-])", "", text)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--carried", type=Path, metavar="DIR", help="folder filled by benchmarks/pack_gpu.sh")
    parser.add_argument("--limit", type=float, default=470.0, metavar="S", help="of all steps together (470)")
    parser.add_argument("--only", metavar="NAME,NAME", help="these steps alone")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="folder of the device folders")
    options = parser.parse_args()
    started = time.monotonic()
    gpu = gpu_name()
    device = _slug(gpu.split(",")[0]) if gpu else "no-gpu"
    results = options.results / device
    scratch = ROOT / "out" / "gpu_check"
    scratch.mkdir(parents=True, exist_ok=True)
    base = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "POSE2SEG_BENCH_DEVICE": device}
    if options.carried is not None:
        base["PYTHONPATH"] = f"{unpack(options.carried, scratch)}{os.pathsep}{ROOT}"
    only = set(options.only.split(",")) if options.only else None
    verdicts: list[Verdict] = []
    for step in steps(scratch):
        if only is not None and step.name not in only:
            continue
        left_s = options.limit - (time.monotonic() - started)
        verdict = run_step(step, gpu=gpu is not None, left_s=left_s, scratch=scratch, base=base)
        print(f"{verdict.state:12s} {verdict.name:28s} {verdict.seconds:6.1f} s  {verdict.reason}", flush=True)
        verdicts.append(verdict)
        _write(results, verdicts, gpu)  # whatever ends the check, what it found so far is there
    wanted = wanted_figures(verdicts, gpu=gpu is not None)
    for figure in wanted:
        print(f"{figure.verdict:28s} {figure.what}: at least {figure.at_least:g} {figure.unit}, {figure.measured}")
    print(f"results: {results.name}/gpu_check.md", flush=True)
    return 1 if any(verdict.state in {"failed", "out of time"} for verdict in verdicts) else 0


def unpack(carried: Path, scratch: Path) -> Path:
    """Install what was carried into a folder of its own.

    Raises:
        SystemExit: the folder does not hold what `benchmarks/pack_gpu.sh` writes.
    """
    installer = carried / "unpack.sh"
    if not installer.is_file():
        raise SystemExit(f"{carried}: expected a folder filled by benchmarks/pack_gpu.sh, found no unpack.sh in it")
    target = scratch / "site"
    subprocess.run(["bash", str(installer), str(target)], check=True, timeout=240)  # noqa: S603, S607
    return target


def _write(results: Path, verdicts: Sequence[Verdict], gpu: str | None) -> None:
    results.mkdir(parents=True, exist_ok=True)
    machine = environment()
    wanted = wanted_figures(verdicts, gpu=gpu is not None)
    document = {
        "schema": 1,
        "suite": "gpu_check",
        "gpu": gpu,
        "environment": machine,
        "steps": [asdict(verdict) for verdict in verdicts],
        "wanted": [{**asdict(figure), "verdict": figure.verdict} for figure in wanted],
    }
    (results / "gpu_check.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (results / "gpu_check.md").write_text(report_of(verdicts, wanted, machine, gpu), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
