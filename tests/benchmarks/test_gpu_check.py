"""The GPU check without a GPU: what runs, what is skipped, and that nothing unmeasured counts as proven."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import Step, Verdict, report_of, run_step, steps, wanted_figures

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {"commit": "abc", "date": "2026-01-01", "cpu": "a CPU", "cores": 2}


def run(code: str, scratch: Path, *, gpu: bool = False, left_s: float = 60.0, **options) -> Verdict:
    defaults = {"name": "step", "command": (sys.executable, "-c", code), "limit_s": 20.0, "needs_gpu": False}
    return run_step(Step(**{**defaults, **options}), gpu=gpu, left_s=left_s, scratch=scratch, base=dict(os.environ))


def test_a_step_that_passes_and_its_figures(tmp_path) -> None:
    code = "import json, sys, time; json.dump({'outcomes': []}, open(sys.argv[1], 'w')); time.sleep(.2); print('fine')"
    verdict = run("", tmp_path, command=(sys.executable, "-c", code, "{json}"))
    assert (verdict.state, verdict.figures, verdict.reason) == ("passed", {"outcomes": []}, "")
    assert "fine" in verdict.tail
    assert 0.2 <= verdict.seconds < 20


def test_a_step_that_fails_says_its_last_words(tmp_path) -> None:
    verdict = run("raise SystemExit('no such kernel')", tmp_path)
    assert (verdict.state, verdict.reason) == ("failed", "no such kernel")
    assert run("import os; os.abort()", tmp_path).state == "failed"


def test_a_step_may_skip_itself(tmp_path) -> None:
    verdict = run(f"print('no TensorRT here'); raise SystemExit({gpu_check.EXIT_SKIPPED})", tmp_path)
    assert (verdict.state, verdict.reason) == ("skipped", "no TensorRT here")
    code = "import json, sys; json.dump({'status': 'skipped', 'reason': 'no CUDA device'}, open(sys.argv[1], 'w'))"
    verdict = run("", tmp_path, command=(sys.executable, "-c", code, "{json}"))
    assert (verdict.state, verdict.reason) == ("skipped", "no CUDA device")


def test_a_step_that_hangs_costs_its_limit_and_leaves_no_process(tmp_path) -> None:
    started = time.monotonic()
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(90 + 7.25)'])"
    verdict = run(code, tmp_path, limit_s=1.5)
    assert verdict.state == "out of time"
    assert time.monotonic() - started < 15
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # a killed grandchild is gone when init has collected it
        listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        if "sleep(90 + 7.25)" not in listed:
            break
        time.sleep(0.1)
    assert "sleep(90 + 7.25)" not in listed


def test_what_cannot_run_is_skipped_with_the_reason(tmp_path) -> None:
    assert run("", tmp_path, needs_gpu=True).reason == "no GPU on this machine"
    assert run("", tmp_path, needs=("no-such-program",)).reason == "no-such-program not found"
    assert run("", tmp_path, modules=("json", "no_such_module")).reason == "no_such_module not found"
    assert run("", tmp_path, left_s=1.0).reason == "no time left"


def verdicts_of(fps: float) -> list[Verdict]:
    outcomes = [{"people": 4, "batch": batch, "fps": fps * batch, "alone_ms": None} for batch in (1, 8)]
    return [
        Verdict(name="pipeline_torch_float16", state="passed", figures={"outcomes": outcomes}),
        Verdict(name="pipeline_torch_float32", state="failed", figures={"outcomes": [{**outcomes[0], "fps": 9e9}]}),
        Verdict(
            name="kernels",
            state="passed",
            figures={"notes": {"affine_align_f16_share_of_copy_bandwidth": 0.7}},
        ),
    ]


def test_wanted_figures_are_met_missed_or_unproven() -> None:
    figures = wanted_figures(verdicts_of(500.0), gpu=True)
    assert [figure.verdict.split(":")[0] for figure in figures] == ["met", "unproven", "unproven", "met", "met"]
    figures = wanted_figures(verdicts_of(100.0), gpu=True)
    assert [figure.verdict for figure in figures[3:]] == ["missed", "missed"]
    assert all(figure.measured is None for figure in wanted_figures(verdicts_of(500.0), gpu=False))


def test_the_report_names_what_is_unproven() -> None:
    verdicts = verdicts_of(500.0)
    text = report_of(verdicts, wanted_figures(verdicts, gpu=False), MACHINE, None)
    assert text.count("unproven") == 5
    assert "| pipeline_torch_float32 | failed |" in text
    assert "| 4 | 8 | 4000.0 |" in text


def test_the_parity_step_holds_every_test_for_a_gpu() -> None:
    files = gpu_check.gpu_test_files()
    assert {"tests/kernels/test_affine_align_native.py", "tests/engines/test_torch_device.py"} <= set(files)
    arguments = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "--collect-only", *files]
    listed = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert listed.returncode == 0, listed.stdout[-2000:]
    assert sum("::" in line for line in listed.stdout.splitlines()) > 200


def test_the_steps_are_commands_that_exist(tmp_path) -> None:
    """Modules and scripts of every step are there: a renamed one would only be noticed on a GPU otherwise."""
    names = set()
    for step in steps(tmp_path):
        names.add(step.name)
        command = list(step.command)
        if "-m" in command:
            module = command[command.index("-m") + 1]
            if module != "pytest":
                assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
        else:
            assert (ROOT / command[1]).is_file()
    assert len(names) == len(steps(tmp_path))
    assert sum(step.limit_s for step in steps(tmp_path) if step.needs_gpu) < 1200


@pytest.mark.slow
def test_the_check_runs_here_and_claims_nothing(tmp_path) -> None:
    if gpu_check.gpu_name() is not None:
        pytest.skip("this machine has a GPU; what is tested is a machine without one")
    done = subprocess.run(
        ["bash", "benchmarks/gpu_check.sh", "--only", "parity,kernels,pipeline_cpu", "--results", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "no-gpu" / "gpu_check.json").read_text())
    states = {step["name"]: step["state"] for step in document["steps"]}
    assert states == {"parity": "skipped", "kernels": "skipped", "pipeline_cpu": "passed"}
    assert {figure["measured"] for figure in document["wanted"]} == {None}
    assert "unproven" in (tmp_path / "no-gpu" / "gpu_check.md").read_text()
    assert str(ROOT) not in json.dumps(document)
