"""The serving graphs: peaks become candidates, in px; ROIs become masks with a score."""

from __future__ import annotations

import pytest
import torch

from tests.training.drawn_people import TINY_MODEL
from training.graphs import CANDIDATES, PEOPLE, KeypointGraph, SegmentGraph, people_candidates
from training.model import LiveNetwork

H, W = 12, 20


def quiet_maps(batch: int = 1) -> dict[str, torch.Tensor]:
    channels = {"centre": 1, "heatmaps": 17, "regression": 34, "offsets": 34}
    maps = {name: torch.zeros(batch, c, H, W) for name, c in channels.items()}
    maps["centre"] -= 20
    maps["heatmaps"] -= 20
    return maps


def test_one_person_and_one_joint_by_hand() -> None:
    maps = quiet_maps(2)
    maps["centre"][1, 0, 5, 7] = 3.0
    maps["regression"][1, 2 * 9 : 2 * 9 + 2, 5, 7] = torch.tensor([2.5, -1.25])  # y, x of the left wrist
    maps["heatmaps"][1, 9, 7, 5] = 2.0
    maps["offsets"][1, 2 * 9 : 2 * 9 + 2, 7, 5] = torch.tensor([0.5, 0.75])
    scores, guesses, candidates = people_candidates(maps)
    assert scores.shape == (2, PEOPLE)
    assert guesses.shape == (2, PEOPLE, 17, 3)
    assert candidates.shape == (2, 17, CANDIDATES, 4)
    assert float(scores[0].max()) < 1e-6
    assert float(scores[1, 0]) == pytest.approx(torch.sigmoid(torch.tensor(3.0)).item())
    # guess: cell (5, 7) + (2.5, -1.25) = (7.5, 5.75) continuous cells; px = 4 cell - 0.5
    torch.testing.assert_close(guesses[1, 0, 9], torch.tensor([22.5, 29.5, torch.sigmoid(torch.tensor(2.0)).item()]))
    torch.testing.assert_close(candidates[1, 9, 0, :2], torch.tensor([4 * 5.75 - 0.5, 4 * 7.5 - 0.5]))
    assert float(candidates[1, 9, 0, 2]) == pytest.approx(torch.sigmoid(torch.tensor(2.0)).item())
    assert not candidates[..., 3].any()


def test_a_guess_outside_the_map_has_no_probability() -> None:
    maps = quiet_maps()
    maps["heatmaps"] += 40
    maps["centre"][0, 0, 0, 0] = 3.0
    maps["regression"][0, 0, 0, 0] = -0.5  # above the picture
    guesses = people_candidates(maps)[1]
    assert float(guesses[0, 0, 0, 2]) == 0.0
    assert float(guesses[0, 0, 1, 2]) == pytest.approx(1.0)


def test_only_the_highest_of_neighbours_is_a_peak_and_rows_fall() -> None:
    maps = quiet_maps()
    maps["heatmaps"][0, 0, 4, 4], maps["heatmaps"][0, 0, 4, 5], maps["heatmaps"][0, 0, 4, 6] = 2.0, 1.0, 1.5
    maps["centre"][0, 0, 2, 2], maps["centre"][0, 0, 4, 4], maps["centre"][0, 0, 2, 9] = 1.0, 2.0, 1.5
    scores, _, candidates = people_candidates(maps)
    assert (scores[0, :2].logit().round(decimals=3)).tolist() == [2.0, 1.5]  # (2, 2) is within two cells of (4, 4)
    assert float(scores[0, 2]) < 1e-6
    assert (candidates[0, 0, :2, 2].logit().round(decimals=3)).tolist() == [2.0, 1.5]
    assert float(candidates[0, 0, 2, 2]) < 1e-6
    assert (scores.diff() <= 0).all() and (candidates[..., 2].diff() <= 0).all()


def test_mask_scores_are_the_mean_over_the_person() -> None:
    torch.manual_seed(0)
    network = LiveNetwork(TINY_MODEL).eval()
    graph = SegmentGraph(network)
    features = torch.randn(2, TINY_MODEL.feature_channels, 16, 16)
    windows = torch.tensor([[[0.5, 0, 0], [0, 0.5, 0]]]).repeat(3, 1, 1)
    joints = torch.rand(3, 17, 3) * 32
    with torch.no_grad():
        probabilities, scores = graph(features, windows, torch.tensor([0, 1, 1], dtype=torch.int32), joints)
        assert probabilities.shape == (3, 32, 32)
        for p, score in zip(probabilities, scores, strict=True):
            expected = p[p > 0.5].mean() if (p > 0.5).any() else torch.tensor(0.0)
            assert float(score) == pytest.approx(float(expected), abs=1e-6)
        list(network.seg_module.out)[-1].bias.fill_(-1e3)
        nobody, zero = graph(features, windows, torch.tensor([0, 1, 1], dtype=torch.int32), joints)
    assert float(nobody.max()) < 0.5 and zero.tolist() == [0, 0, 0]


def test_batches_are_independent_pictures() -> None:
    torch.manual_seed(0)
    graph = KeypointGraph(LiveNetwork(TINY_MODEL).eval())
    images = torch.randint(0, 255, (2, 64, 96, 3), dtype=torch.uint8)
    with torch.no_grad():
        both = graph(images)
        alone = graph(images[1:])
    assert both[3].shape == (2, TINY_MODEL.feature_channels, 16, 24)
    torch.testing.assert_close(both[3][1:], alone[3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[0][1:], alone[0], rtol=1e-4, atol=1e-5)
