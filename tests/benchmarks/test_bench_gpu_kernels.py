"""The benchmark of the GPU kernels: what it says without a GPU, a dry run on the CPU, wrong output noticed."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from benchmarks import bench_gpu_kernels
from benchmarks.bench_gpu_kernels import OURS, Case, Outcome, align_cases, check, headlines, main, skeleton_cases
from benchmarks.measure import summarise

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_gpu_kernels, "SHAPES", (("paper", 2, 8, 16, 24),))
    monkeypatch.setattr(bench_gpu_kernels, "FLUSH_BYTES", {"cpu": 1 << 10})
    monkeypatch.setattr(bench_gpu_kernels, "COPY_BYTES", {"cpu": 1 << 20})


def test_without_a_gpu_it_says_so_and_ends_well(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    document = main(["--json", str(tmp_path / "result.json")])
    assert document["status"] == "skipped"
    assert "no CUDA device" in document["reason"]
    assert json.loads((tmp_path / "result.json").read_text()) == document
    assert json.loads(capsys.readouterr().out) == document


@pytest.mark.usefixtures("small")
def test_dry_run_on_the_cpu(tmp_path) -> None:
    ours = ["--only", "affine_align", "align_with_skeleton"]
    document = main(["--device", "cpu", "--seconds", "0", "--json", str(tmp_path / "result.json"), *ours])
    assert json.loads((tmp_path / "result.json").read_text())["rows"] == document["rows"]
    assert document["status"] == "dry run"
    assert not any("share_of_copy_bandwidth" in name for name in document["notes"])  # that is a GPU's figure
    cases = {(row["name"], row["settings"]["type"], row["settings"]["layout"]) for row in document["rows"]}
    assert {
        (name, kind, layout)
        for name in ("affine_align", "align_with_skeleton")
        for kind in ("f16", "f32")
        for layout in ("NCHW", "NHWC")
    } == cases
    for row in document["rows"]:
        assert next(iter(row["timings"])) == OURS
        assert "copy of as many bytes" in row["timings"]
        assert row["speedup"] > 0


@pytest.mark.usefixtures("small")
def test_every_way_computes_the_same_and_the_bytes_are_counted() -> None:
    for case in (*align_cases(CPU), *skeleton_cases(CPU)):
        errors = check(case)
        assert errors[OURS] <= case.max_error[OURS]
        element = 2 if case.settings["type"] == "f16" else 4
        written = case.expected.numel() * element
        assert written < case.minimum_bytes <= written + 8 * 16 * 24 * element  # and at most the whole map read


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("spoil", [lambda result: result + 0.01, lambda result: result * torch.nan])
def test_a_wrong_kernel_gets_no_time(spoil) -> None:
    case = next(align_cases(CPU))
    wrong = dataclasses.replace(case, contestants={OURS: lambda: spoil(case.contestants[OURS]())})
    with pytest.raises(AssertionError, match=r"affine_align .*, ours: off by"):
        check(wrong)


@pytest.mark.usefixtures("small")
def test_the_headline_is_the_share_of_a_copys_bandwidth() -> None:
    outcomes = []
    for case in align_cases(CPU):
        timings = {OURS: summarise([0.05]), "published: gather, grid_sample": summarise([0.5])}
        small_case: Case = dataclasses.replace(case, minimum_bytes=100_000)
        outcomes.append(Outcome(case=small_case, errors={OURS: 0.0}, timings=timings, copy_bytes_per_s=4e9))
    assert headlines(outcomes) == {
        "affine_align_f16_share_of_copy_bandwidth": 0.5,
        "affine_align_f16_times_published_pipeline": 10.0,
        "affine_align_f16_share_of_copy_bandwidth_nchw": 0.5,
        "affine_align_f16_times_published_pipeline_nchw": 10.0,
    }


@pytest.mark.gpu
@pytest.mark.usefixtures("small")
def test_it_runs_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLUSH_BYTES", "COPY_BYTES"):
        monkeypatch.setattr(bench_gpu_kernels, name, {"cuda": 1 << 24})
    document = main(["--seconds", "0", "--only", "affine_align", "align_with_skeleton"])
    assert document["status"] == "measured"
    assert document["notes"]["affine_align_f16_share_of_copy_bandwidth"] > 0
