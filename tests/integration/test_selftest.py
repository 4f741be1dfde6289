"""The command `selftest` itself: its cases are chaos tests with real processes, sockets and files."""

from __future__ import annotations

import json

import pytest

from pipeline.selftest.command import CASES, Case, Chaos, NotKept, main, outcome_of, table_of

pytestmark = pytest.mark.timeout(280)


@pytest.fixture
def chaos(tmp_path, model_folder) -> Chaos:
    return Chaos(model=model_folder, long_side=128, cycles=1, seconds=5.0, folder=tmp_path)


@pytest.mark.parametrize("case", [case for case in CASES if case.name != "latency"], ids=lambda case: case.name)
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
