"""The stop-watch: percentiles, taking turns, what is stored; the kernels' suite compares before it times."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from benchmarks import bench_kernels
from benchmarks.measure import MIN_SAMPLE_S, Row, device, environment, measure, report, summarise


def test_summary_of_known_samples() -> None:
    timing = summarise(range(1, 102), calls_per_sample=3)
    assert (timing.median_ms, timing.iqr_ms, timing.p95_ms, timing.p99_ms) == (51, 50, 96, 100)
    assert (timing.samples, timing.calls_per_sample) == (101, 3)
    with pytest.raises(ValueError, match="no samples"):
        summarise([])


def test_contestants_take_turns_and_short_calls_are_repeated_within_a_sample() -> None:
    order: list[str] = []
    timings = measure(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, warm_up_s=0.01, seconds=0, min_samples=5
    )
    sampled = "".join(order)[-2 * timings["b"].calls_per_sample :]
    assert "ab" in sampled
    assert set(sampled) == {"a", "b"}
    for timing in timings.values():
        assert timing.samples == 5
        assert timing.calls_per_sample * timing.median_ms / 1e3 > MIN_SAMPLE_S / 100


def test_report_prints_json_last_and_stores_the_same(tmp_path, capsys) -> None:
    timings = {"ours": summarise([1.0, 1.0]), "theirs": summarise([4.0, 4.0])}
    report("suite", [Row(name="case", settings={"people": 3}, timings=timings)], save=True, results=tmp_path)
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    stored = json.loads((tmp_path / device() / "suite.json").read_text(encoding="utf-8"))
    assert printed == stored
    assert stored["rows"][0]["speedup"] == 4.0
    assert {"cpu", "cores", "python", "libraries", "commit", "command"} <= set(stored["environment"])


def test_every_case_of_the_kernels_suite_agrees_for_one_person() -> None:
    names = set()
    for case in bench_kernels.cases():
        if case.settings.get("people", 1) == 1 and case.name != "letterbox":  # its slow twin takes a second
            case.agree(*(call() for call in case.contestants.values()))
            names.add(case.name)
    pastes = {"paste_masks", "paste_masks, exclusive", "paste_alpha, exclusive", "encode_rle"}
    assert names == {"fit_poses", "decode_people", "skeleton_features", "neighbour_features", "affine_align", *pastes}


def test_the_cases_of_exclusive_masks_are_of_people_who_do_and_do_not_overlap() -> None:
    for case in bench_kernels.exclusive_cases():
        exclusive, whole = (call() for call in case.contestants.values())
        case.agree(exclusive, whole)
        size = (bench_kernels.FRAME_HEIGHT, bench_kernels.FRAME_WIDTH)
        taken = any((a.in_frame(*size) != b.in_frame(*size)).any() for a, b in zip(exclusive, whole, strict=True))
        assert taken == (case.settings["overlapping"] and case.settings["people"] > 1)


def test_a_wrong_kernel_is_noticed() -> None:
    case = next(bench_kernels.fit_cases())
    fast, slow = (call() for call in case.contestants.values())
    spoiled = type(fast)(
        roi_from_frame=fast.roi_from_frame + np.float32(0.1),
        template_index=fast.template_index,
        fit_scores=fast.fit_scores,
    )
    with pytest.raises(AssertionError):
        case.agree(spoiled, slow)


def test_the_recorded_command_names_files_without_the_machines_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["bench", "/somewhere/clip.mp4", "--poses", "other=/else/where/p.json", "--repeat", "3"]
    )
    command = environment()["command"]
    assert isinstance(command, str)
    assert command.endswith(" clip.mp4 --poses other=p.json --repeat 3")
