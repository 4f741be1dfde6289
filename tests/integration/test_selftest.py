"""The command `selftest` itself: its cases are chaos tests with real processes, sockets and files."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipeline.selftest import endurance
from pipeline.selftest.chaos import Case, Chaos, NotKept
from pipeline.selftest.command import CASES, main, outcome_of, table_of
from tests.clips import write_video

pytestmark = pytest.mark.timeout(280)


@pytest.fixture
def chaos(tmp_path, model_folder) -> Chaos:
    return Chaos(model=model_folder, long_side=128, cycles=1, seconds=5.0, folder=tmp_path)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name not in {"latency", "soak"}], ids=lambda case: case.name
)
def test_the_promise_is_kept(chaos, case) -> None:
    outcome = outcome_of(case, chaos)
    print(f"{case.name}: {outcome.measured}")
    assert outcome.kept, outcome.measured


def test_latency_is_measured(chaos) -> None:
    """The figure depends on what else the machine does, so only the counting is checked."""
    outcome = outcome_of(next(case for case in CASES if case.name == "latency"), chaos)
    print(outcome.measured)
    assert "p95" in outcome.measured
    assert "load" in outcome.measured


def soak_of(chaos):
    return outcome_of(next(case for case in CASES if case.name == "soak"), chaos)


def test_a_short_soak(tmp_path, model_folder) -> None:
    """The allowance for growth is that of the long one; a clip with people makes masks, lines and events."""
    clip = write_video(tmp_path / "clip.mp4", 50, height=144, width=256)
    chaos = Chaos(
        model=model_folder,
        long_side=128,
        cycles=1,
        seconds=1.0,
        folder=tmp_path,
        minutes=0.2,
        clip=clip,
        samples=tmp_path / "samples.csv",
    )
    outcome = soak_of(chaos)
    print(outcome.measured)
    assert outcome.kept, outcome.measured
    head, *rows = (tmp_path / "samples.csv").read_text().splitlines()
    assert head == "second,results,memory_mb,threads,handles"
    results = [int(row.split(",")[1]) for row in rows]
    assert len(rows) > 5 and results == sorted(results) and results[-1] > results[0]


@pytest.mark.parametrize("grows", ["memory_mb", "threads", "handles"])
def test_a_leak_breaks_the_promise(chaos, monkeypatch, grows) -> None:
    measure, count = endurance.sample_of, 0

    def leaking(process, second, results):
        nonlocal count
        count += 1
        sample = measure(process, second, results)
        return replace(sample, **{grows: getattr(sample, grows) + count * (3.0 if grows == "memory_mb" else 1)})

    monkeypatch.setattr(endurance, "sample_of", leaking)
    chaos.minutes = 0.05
    assert not soak_of(chaos).kept


def test_the_clock_without_libfaketime(chaos, monkeypatch) -> None:
    monkeypatch.setattr(endurance, "find_faketime", lambda: None)
    outcome = outcome_of(next(case for case in CASES if case.name == "clock"), chaos)
    assert outcome.kept, outcome.measured
    assert "datetime replaced" in outcome.measured


@pytest.mark.slow
def test_a_server_that_is_killed_twenty_times(tmp_path, model_folder) -> None:
    chaos = Chaos(model=model_folder, long_side=128, cycles=20, seconds=1.0, folder=tmp_path)
    outcome = outcome_of(CASES[0], chaos)
    print(outcome.measured)
    assert outcome.kept, outcome.measured


def test_a_broken_promise_is_said_and_ends_with_code_1(capsys, monkeypatch) -> None:
    def broken(_chaos):
        raise NotKept("it fell over")

    cases = (
        Case(name="good", promise="stands", provoked="pushed", measure=lambda _chaos: "stood"),
        Case(name="bad", promise="stands", provoked="pushed harder", measure=broken),
    )
    monkeypatch.setattr("pipeline.selftest.command.CASES", cases)
    assert main(["--json"]) == 1
    assert [outcome["kept"] for outcome in json.loads(capsys.readouterr().out)] == [True, False]
    assert main(["--case", "good"]) == 0
    shown = capsys.readouterr().out
    assert "stood" in shown
    assert table_of([outcome_of(cases[1], None)]).row_count == 1
