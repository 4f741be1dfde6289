"""The GPU benchmark's cases on whole frames: every contestant does the same work, and bytes are counted right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import gpu_frame_cases
from benchmarks.bench_gpu_kernels import OURS, Case, check, largest_difference
from benchmarks.gpu_frame_cases import letterbox_cases, paste_cases


@pytest.fixture(autouse=True)
def _small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_frame_cases, "FRAMES", {"small": (180, 320)})
    monkeypatch.setattr(gpu_frame_cases, "LONG_SIDE_PX", 128)
    monkeypatch.setattr(gpu_frame_cases, "PEOPLE", (1, 3))


def test_all_contestants_agree() -> None:
    names = []
    for suite in (letterbox_cases, paste_cases):
        for case in suite(Case, torch.device("cpu")):
            errors = check(case)
            assert errors[OURS] <= min(errors.values()) + 1e-6
            names.append(case.name)
    assert names == ["letterbox_rgb"] * 2 + ["letterbox_nv12"] * 2 + ["paste_and_blend"] * 2


def test_a_wrong_contestant_is_refused() -> None:
    for suite in (letterbox_cases, paste_cases):
        case = next(suite(Case, torch.device("cpu")))
        wrong = case.contestants[OURS]().clone().roll(5, dims=1)
        assert case.error(wrong.double(), case.expected) > case.max_error[OURS]
        assert case.error(wrong.double(), wrong.double()) == 0
    assert largest_difference(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 1.5])) == 2.5


def test_bytes() -> None:
    rgb, _, nv12, _ = letterbox_cases(Case, torch.device("cpu"))
    network_input = 96 * 128 * 3
    assert rgb.minimum_bytes == 180 * 320 * 3 + network_input
    assert nv12.minimum_bytes == 180 * 320 * 3 // 2 + network_input
    covered = np.zeros((20, 70), bool)
    covered[0, 31] = covered[17, 69] = True  # tiles of 8 x 32 px: the first, and the last one of three by three
    assert gpu_frame_cases._tile_bytes(covered) == 2 * 8 * 32 * 3
