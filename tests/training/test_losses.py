"""Targets on the stride-4 grid by hand, and losses that vanish for the right answer only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training.drawn_people import drawn_pose
from training.dataset import Scene
from training.graphs import people_candidates
from training.losses import (
    INCOMPLETE_WEIGHT,
    KeypointTargets,
    _splat,
    distillation_loss,
    focal_loss,
    keypoint_losses,
    keypoint_targets,
    mask_loss,
)

HEIGHT, WIDTH = 64, 96


def scene(*poses: np.ndarray, complete: bool = True) -> Scene:
    n = len(poses)
    return Scene(
        image=np.zeros((HEIGHT, WIDTH, 3), np.uint8),
        labels=np.zeros((HEIGHT, WIDTH), np.uint8),
        keypoints=np.stack(poses).astype(np.float32) if n else np.zeros((0, 17, 3), np.float32),
        has_mask=np.zeros(n, np.uint8),
        complete=complete,
        max_iou=np.zeros(n, np.float32),
    )


def three_joints() -> np.ndarray:
    pose = np.zeros((17, 3), np.float32)
    pose[0] = (21.5, 9.5, 2)  # exactly cell (2.5, 5.5) of y, x
    pose[5] = (40.0, 30.0, 1)
    pose[16] = (30.7, 50.1, 2)
    return pose


def perfect_maps(targets: KeypointTargets) -> dict[str, torch.Tensor]:
    """What a network must say to be right: certain peaks, certain background, exact regressions."""
    batch, _, h, w = targets.heatmaps.shape
    maps = {
        "heatmaps": torch.where(targets.heatmaps > 0.999, 20.0, -20.0),
        "centre": torch.where(targets.centre > 0.999, 20.0, -20.0),
        "regression": torch.zeros(batch, 34, h, w),
        "offsets": torch.zeros(batch, 34, h, w),
    }
    for (b, y, x), values in zip(targets.people.tolist(), targets.regression, strict=True):
        maps["regression"][b, :, y, x] = values.reshape(-1)
    for (b, joint, y, x), shift in zip(targets.joints.tolist(), targets.offsets, strict=True):
        maps["offsets"][b, 2 * joint : 2 * joint + 2, y, x] = shift
    return maps


def test_peaks_offsets_and_regression_by_hand() -> None:
    targets = keypoint_targets([scene(), scene(three_joints())])
    assert targets.heatmaps.shape == (2, 17, 16, 24) and targets.centre.shape == (2, 1, 16, 24)
    assert not targets.heatmaps[0].any() and not targets.centre[0].any()
    # Cells own 4 px: (px + 0.5) / 4 is (y, x) = (2.5, 5.5), (7.625, 10.125), (12.65, 7.8).
    assert targets.joints.tolist() == [[1, 0, 2, 5], [1, 5, 7, 10], [1, 16, 12, 7]]
    np.testing.assert_allclose(targets.offsets, [[0.5, 0.5], [0.625, 0.125], [0.65, 0.8]], atol=1e-5)
    for _, joint, y, x in targets.joints.tolist():
        assert targets.heatmaps[1, joint, y, x] == 1.0
        assert (targets.heatmaps[1, joint] == 1.0).sum() == 1
        assert 0 < targets.heatmaps[1, joint, y, x + 1] < 1
    assert not targets.heatmaps[1, 1].any()  # an absent joint draws nothing
    # The centre is the middle of the joints' box: y (2.5 + 12.65) / 2 = 7.575, x (5.5 + 10.125) / 2 = 7.8125.
    assert targets.people.tolist() == [[1, 7, 7]]
    assert targets.centre[1, 0, 7, 7] == 1.0
    np.testing.assert_allclose(
        targets.regression[0, [0, 5, 16]], [[-4.5, -1.5], [0.625, 3.125], [5.65, 0.8]], atol=1e-5
    )
    assert (targets.regression_weight[0] > 0).tolist() == [j in {0, 5, 16} for j in range(17)]
    assert float(targets.regression_weight.sum()) == pytest.approx(1 / (10.15 + 1), rel=1e-5)  # of the extent in cells
    assert (targets.weight == 1).all()


def test_offsets_lie_in_their_cell_wherever_people_stand() -> None:
    rng = np.random.default_rng(0)
    poses = []
    for _ in range(30):
        pose = drawn_pose(rng.uniform(-10, 70), rng.uniform(-10, 30), rng.uniform(15, 80))
        outside = (pose[:, 0] < -0.5) | (pose[:, 0] >= WIDTH - 0.5) | (pose[:, 1] < -0.5) | (pose[:, 1] >= HEIGHT - 0.5)
        pose[outside] = 0
        if (pose[:, 2] > 0).sum() >= 3:
            poses.append(pose)
    targets = keypoint_targets([scene(*poses)])
    assert ((targets.offsets >= 0) & (targets.offsets < 1)).all()
    assert ((targets.heatmaps >= 0) & (targets.heatmaps <= 1)).all()
    assert len(targets.joints) == sum(int((p[:, 2] > 0).sum()) for p in poses)
    assert len(targets.people) == len(poses)


def test_overlapping_gaussians_take_the_greater() -> None:
    near, far = np.zeros((9, 9), np.float32), np.zeros((9, 9), np.float32)
    _splat(near, 4.2, 3.9, 1.0)
    _splat(far, 4.0, 6.0, 1.0)
    both = near.copy()
    _splat(both, 4.0, 6.0, 1.0)
    np.testing.assert_array_equal(both, np.maximum(near, far))
    assert near[4, 3] == 1.0
    assert near[4, 4] == pytest.approx(np.exp(-0.5))
    _splat(both, 400.0, 6.0, 1.0)  # far outside: nothing happens
    np.testing.assert_array_equal(both, np.maximum(near, far))


def test_where_not_everybody_is_labelled_the_empty_counts_little() -> None:
    targets = keypoint_targets([scene(three_joints(), complete=False), scene(three_joints()), scene(complete=False)])
    assert targets.weight[0, 0, 2, 5] == 1.0
    assert float(targets.weight[0, 0, 0, 23]) == pytest.approx(INCOMPLETE_WEIGHT)
    assert (targets.weight[1] == 1).all()
    assert np.allclose(targets.weight[2], INCOMPLETE_WEIGHT)


def test_nothing_is_taught_where_somebody_stands_whose_joints_nobody_knows() -> None:
    unlabelled = np.zeros((HEIGHT, WIDTH), np.uint8)
    unlabelled[41:60, 30:51] = 1  # cells 10..14 and 7..12; the ankle in cell (12, 7) belongs to a listed person
    scenes = [replace(scene(three_joints(), complete=c), unlabelled=unlabelled) for c in (True, False)]
    targets = keypoint_targets([*scenes, scene(three_joints())])
    assert (targets.joints[:3] == torch.tensor([[0, 0, 2, 5], [0, 5, 7, 10], [0, 16, 12, 7]])).all()
    for image in (0, 1):
        expected = torch.zeros(5, 6)
        expected[2, 0] = 1.0  # what is known stays
        torch.testing.assert_close(targets.weight[image, 0, 10:15, 7:13], expected)
    outside = targets.weight[0, 0].clone()
    outside[10:15, 7:13] = 1.0
    assert (outside == 1).all() and (targets.weight[2] == 1).all()

    maps = perfect_maps(targets)
    maps["centre"][0, 0, 13, 11] = maps["heatmaps"][0, 3, 13, 11] = 20.0  # the network finds that somebody
    losses = keypoint_losses(maps, targets)
    assert all(float(value) == pytest.approx(0, abs=1e-3) for value in losses.values())
    maps["heatmaps"][0, 3, 13, 13] = 20.0  # one cell beside the region
    assert float(keypoint_losses(maps, targets)["heatmaps"]) > 0.1


def test_losses_vanish_for_perfect_maps_and_for_nothing_else() -> None:
    targets = keypoint_targets([scene(three_joints(), drawn_pose(50, 5, 45)), scene()])
    maps = perfect_maps(targets)
    right = keypoint_losses(maps, targets)
    assert set(right) == {"centre", "heatmaps", "regression", "offsets"}
    for name, value in right.items():
        assert float(value) == pytest.approx(0, abs=1e-3), name
    spoiled = {
        "centre": ("centre", (0, 0, 0, 0), 20.0),  # a person who is not there
        "heatmaps": ("heatmaps", (0, 0, 2, 5), -20.0),  # a joint that is missed
        "regression": ("regression", (0, 0, 7, 7), 99.0),
        "offsets": ("offsets", (0, 1, 2, 5), 9.0),
    }
    for name, (kind, place, value) in spoiled.items():
        wrong = {key: tensor.clone() for key, tensor in maps.items()}
        wrong[kind][place] = value
        losses = keypoint_losses(wrong, targets)
        assert float(losses[name]) > 0.1, name
        assert all(float(losses[other]) < 1e-3 for other in losses if other != name)


def test_perfect_maps_decode_to_the_joints_they_were_made_from() -> None:
    """Targets and the exported decoding share one convention: the candidates are the joints, in px."""
    pose = three_joints()
    maps = perfect_maps(keypoint_targets([scene(pose)]))
    scores, guesses, candidates = people_candidates(maps)
    assert float(scores[0, 0]) > 0.99 and float(scores[0, 1]) < 0.01
    for joint in (0, 5, 16):
        np.testing.assert_allclose(candidates[0, joint, 0, :2], pose[joint, :2], atol=1e-4)
        np.testing.assert_allclose(guesses[0, 0, joint, :2], pose[joint, :2], atol=1e-4)
        assert float(candidates[0, joint, 0, 2]) > 0.99


def test_gradient_descent_on_the_maps_reaches_zero() -> None:
    targets = keypoint_targets([scene(drawn_pose(20, 5, 55))])
    generator = torch.Generator().manual_seed(0)
    shapes = {"heatmaps": 17, "centre": 1, "regression": 34, "offsets": 34}
    maps = {name: torch.randn(1, c, 16, 24, generator=generator).requires_grad_() for name, c in shapes.items()}
    optimiser = torch.optim.Adam(list(maps.values()), lr=0.5)
    for step in range(250):
        optimiser.param_groups[0]["lr"] = 0.5 * (1 - step / 250)
        optimiser.zero_grad()
        total = torch.stack(list(keypoint_losses(maps, targets).values())).sum()
        total.backward()
        optimiser.step()
    assert float(total.detach()) < 0.02


def test_nobody_in_the_batch_is_no_division_by_zero() -> None:
    targets = keypoint_targets([scene()])
    maps = {
        name: torch.zeros(1, c, 16, 24, requires_grad=True)
        for name, c in (("heatmaps", 17), ("centre", 1), ("regression", 34), ("offsets", 34))
    }
    losses = keypoint_losses(maps, targets)
    assert all(torch.isfinite(value) for value in losses.values())
    assert float(losses["regression"].detach()) == float(losses["offsets"].detach()) == 0
    torch.stack(list(losses.values())).sum().backward()
    assert all(tensor.grad is not None and torch.isfinite(tensor.grad).all() for tensor in maps.values())


def test_focal_loss_by_hand() -> None:
    logits, targets = torch.tensor([[[[0.0, 0.0, 0.0]]]]), torch.tensor([[[[1.0, 0.5, 0.0]]]])
    weight = torch.tensor([[[[1.0, 1.0, 0.1]]]])
    # (1-p)^2 log p at the peak; (1-t)^4 p^2 log(1-p) elsewhere; all p are 1/2
    expected = np.log(2) * (0.25 + 0.5**4 * 0.25 + 0.1 * 0.25)
    assert float(focal_loss(logits, targets, weight)) == pytest.approx(expected, rel=1e-5)
    certain_and_wrong = focal_loss(torch.tensor([[[[-1e4, 1e4, 1e4]]]]), targets, weight)
    assert torch.isfinite(certain_and_wrong)


def test_mask_loss_is_entropy_plus_half_dice() -> None:
    targets = torch.zeros(2, 4, 4)
    targets[0, :2] = 1
    assert float(mask_loss((targets * 2 - 1) * 30, targets)) == pytest.approx(0, abs=1e-5)
    undecided = float(mask_loss(torch.zeros(2, 4, 4), targets))
    dice = np.mean([1 - (2 * 4 + 1) / (8 + 8 + 1), 1 - 1 / (8 + 1)])
    assert undecided == pytest.approx(np.log(2) + 0.5 * dice, rel=1e-5)
    assert float(mask_loss(-(targets * 2 - 1) * 30, targets)) > 20


def test_distillation_pulls_only_where_nothing_is_labelled() -> None:
    targets = keypoint_targets([scene(three_joints(), complete=False), scene(three_joints())])
    incomplete = torch.tensor([1.0, 0.0])
    generator = torch.Generator().manual_seed(1)
    reference = {
        name: torch.randn(2, c, 16, 24, generator=generator)
        for name, c in (("heatmaps", 17), ("centre", 1), ("regression", 34))
    }
    same = {name: value.clone().requires_grad_() for name, value in reference.items()}
    assert float(distillation_loss(same, reference, targets, incomplete).detach()) == 0
    ours = {name: (value + 0.5).detach().requires_grad_() for name, value in reference.items()}
    loss = distillation_loss(ours, reference, targets, incomplete)
    loss.backward()
    assert float(loss.detach()) > 0
    labelled = targets.weight[0, 0] == 1
    assert labelled.any() and not labelled.all()
    for name in ("heatmaps", "centre", "regression"):
        gradient = ours[name].grad
        assert gradient is not None
        assert not gradient[1].any(), name  # the complete picture teaches by its labels alone
        assert not gradient[0, :, labelled].any(), name
        assert gradient[0].any(), name


def test_px_of_strangers_weigh_more_in_the_mask_loss() -> None:
    targets = torch.zeros(1, 4, 4)
    strangers = torch.zeros(1, 4, 4)
    strangers[0, 0] = 1
    on_strangers, elsewhere = torch.full((1, 4, 4), -9.0), torch.full((1, 4, 4), -9.0)
    on_strangers[0, 0] = 2.0
    elsewhere[0, 3] = 2.0

    def loss(logits: torch.Tensor, weight: float) -> float:
        return float(mask_loss(logits, targets, dice_weight=0, strangers=strangers, stranger_weight=weight))

    assert (
        loss(on_strangers, 0)
        == pytest.approx(loss(elsewhere, 0))
        == pytest.approx(float(mask_loss(elsewhere, targets, dice_weight=0)))
    )
    assert loss(elsewhere, 3) == pytest.approx(loss(elsewhere, 0), rel=1e-3)
    assert loss(on_strangers, 3) == pytest.approx(4 * loss(on_strangers, 0), rel=1e-3)
