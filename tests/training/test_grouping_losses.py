"""Targets and losses of the other keypoint networks: by hand, gradients, and targets that decode to the people."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from engines.signatures import KEYPOINT_OUTPUTS
from kernels.groupings import group_people, grouping_parameters
from kernels.personlab_decoding import TREE
from kernels.personlab_masks import MAX_DISTANCE, embedding_distances
from kernels.skeleton import LIMBS
from tests.training.drawn_people import drawn_mask, drawn_pose
from training.dataset import LABEL_COVERED, Scene
from training.graphs import TENSORS_OF
from training.grouping_losses import (
    PUSH_WEIGHT,
    JointTargets,
    field_loss,
    field_targets,
    grouping_losses,
    heatmap_loss,
    joint_targets,
    tag_losses,
)
from training.losses import INCOMPLETE_WEIGHT
from training.personlab_losses import LOSS_WEIGHTS, RADIUS_CELLS, personlab_losses, personlab_targets

HEIGHT, WIDTH = 160, 192
NOSE, LEFT_ANKLE, LEFT_SHOULDER, RIGHT_SHOULDER = 0, 15, 5, 6


def scene(*poses: np.ndarray, complete: bool = True, masks: bool = True) -> Scene:
    """People in the order they are given, the later ones in front."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for index, pose in enumerate(poses):
        labels[drawn_mask(pose, HEIGHT, WIDTH) > 0] = index + 1
    return Scene(
        image=np.zeros((HEIGHT, WIDTH, 3), np.uint8),
        labels=labels if masks else np.zeros_like(labels),
        keypoints=np.stack(poses).astype(np.float32) if poses else np.zeros((0, 17, 3), np.float32),
        has_mask=np.full(len(poses), int(masks), np.uint8),
        complete=complete,
        max_iou=np.zeros(len(poses), np.float32),
    )


def perfect_maps(keypoints: str, one: Scene) -> dict[str, torch.Tensor]:
    """Raw maps of a network that learned one scene by heart."""
    if keypoints == "personlab":
        drawn = personlab_targets([one])
        return {
            "heatmaps": (drawn.heatmaps - 0.5) * 20,
            "person": (drawn.person - 0.5) * 20,
            "short_offsets": drawn.short_offsets,
            "mid_offsets": drawn.mid_offsets,
            "long_offsets": drawn.long_offsets,
        }
    drawn = joint_targets([one])
    maps = {"heatmaps": torch.logit(drawn.heatmaps.clamp(1e-4, 1 - 1e-4))}
    if keypoints == "affinity":
        return {**maps, "affinity_fields": torch.from_numpy(field_targets([one]))}
    tags = torch.zeros(1, 17, HEIGHT // 4, WIDTH // 4)
    for (_, joint, row, column), person in zip(drawn.joints.tolist(), drawn.person.tolist(), strict=True):
        tags[0, joint, row, column] = 3.0 * person
    return {**maps, "tags": tags}


def decoded(keypoints: str, maps: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    names = [spec.name for spec in KEYPOINT_OUTPUTS[keypoints]]
    tensors = dict(zip(names, (t[0].numpy() for t in TENSORS_OF[keypoints](maps)), strict=False))
    return group_people(tensors, grouping_parameters(keypoints, {}))


PEOPLE = (drawn_pose(8.3, 10, 130), drawn_pose(60.7, 20.4, 125), drawn_pose(120, 60, 70))
#: px: a quarter of a cell and the rounding of a cell's middle; centre of mass of a cut-off Gaussian; discs know exactly
TOLERANCE_PX = {"embedding": 1.6, "affinity": 1.2, "personlab": 0.2}


@pytest.mark.parametrize("keypoints", list(TOLERANCE_PX))
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_targets_decode_to_the_people_they_were_drawn_from(keypoints: str, count: int) -> None:
    found, scores = decoded(keypoints, perfect_maps(keypoints, scene(*PEOPLE[:count])))
    sure = found[scores > 0.25]
    assert len(sure) == count
    for pose in PEOPLE[:count]:
        distances = np.linalg.norm(sure[:, :, :2] - pose[:, :2], axis=-1)
        best = int(distances.mean(1).argmin())
        assert distances[best].max() < TOLERANCE_PX[keypoints]
        assert sure[best, :, 2].min() > 0.5


# Heatmaps


def test_a_gaussian_is_centred_on_its_joint_not_on_its_cell() -> None:
    pose = drawn_pose(8, 10, 130)
    pose[NOSE, :2] = 40.5, 41.5  # cells 9.75 and 10
    drawn = joint_targets([scene(pose)])
    around = drawn.heatmaps[0, NOSE]
    assert around[10, 10] == around.max() > 0.95
    assert around[10, 9] > around[10, 11]  # the quarter of a cell that it lies to the left
    assert around[9, 10] == pytest.approx(float(around[11, 10]))
    assert [0, NOSE, 10, 10] in drawn.joints.tolist()


def test_heatmap_loss_by_hand() -> None:
    targets = JointTargets(
        heatmaps=torch.tensor([[[[1.0, 0.0]]]]),
        weight=torch.tensor([[[[1.0, 0.1]]]]),
        joints=torch.zeros(2, 4, dtype=torch.int64),
        person=torch.zeros(2, dtype=torch.int64),
    )
    logits = torch.tensor([[[[0.0, 0.0]]]])  # probability one half: 0.25 x 1 + 0.25 x 0.1, by two joints
    assert float(heatmap_loss(logits, targets)) == pytest.approx(0.275 / 2)
    assert float(heatmap_loss(logits, targets, "entropy")) == pytest.approx(1.1 * np.log(2) / 2)


def test_joints_out_of_view_are_not_taught() -> None:
    pose = drawn_pose(8, 10, 130)
    pose[NOSE, :2] = -3, 20
    drawn = joint_targets([scene(pose)])
    assert NOSE not in drawn.joints[:, 1].tolist()
    assert float(drawn.heatmaps[0, NOSE].max()) == 0


@pytest.mark.parametrize("keypoints", ["embedding", "personlab"])
def test_empty_regions_count_a_tenth_where_not_everybody_is_listed(keypoints: str) -> None:
    one = replace(scene(PEOPLE[0], complete=False), unlabelled=np.zeros((HEIGHT, WIDTH), np.uint8))
    one.unlabelled[:, 150:] = 1
    weight = personlab_targets([one]).heatmap_weight if keypoints == "personlab" else joint_targets([one]).weight
    assert float(weight[0, 0, 20, 30]) == pytest.approx(INCOMPLETE_WEIGHT)
    assert float(weight[0, 0, 20, 45]) == 0.0  # somebody whose joints are not taught
    nose = (PEOPLE[0][NOSE, 1::-1] // 4).astype(int)
    assert float(weight[0, 0, nose[0], nose[1]]) == 1.0


# Tags


def tag_case(*people: tuple[int, tuple[float, ...]]) -> tuple[torch.Tensor, JointTargets]:
    """Tags of people's joints, people as (picture, tags of their first joints); a column of its own for each."""
    pictures = 1 + max((picture for picture, _ in people), default=0)
    tags = torch.zeros(pictures, 17, 1, max(len(people), 1))
    joints, person = [], []
    for n, (picture, values) in enumerate(people):
        for joint, value in enumerate(values):
            tags[picture, joint, 0, n] = value
            joints.append((picture, joint, 0, n))
            person.append(n)
    targets = JointTargets(
        heatmaps=torch.zeros(pictures, 17, 1, 1),
        weight=torch.ones(pictures, 1, 1, 1),
        joints=torch.tensor(joints, dtype=torch.int64).reshape(-1, 4),
        person=torch.tensor(person, dtype=torch.int64),
    )
    return tags.requires_grad_(True), targets


def test_pull_and_push_by_hand() -> None:
    tags, targets = tag_case((0, (1.0, 3.0)), (0, (4.0, 4.0, 4.0)), (1, (2.0,)))
    pull, push = tag_losses(tags, targets)
    assert float(pull.detach()) == pytest.approx((1.0 + 0.0 + 0.0) / 3)  # 1 and 3 are 1 from their mean
    assert float(push.detach()) == pytest.approx(np.exp(-(2.0**2) / 2))  # means 2 and 4; who is alone pushes nobody


def test_push_is_the_mean_of_pictures_with_somebody_to_push() -> None:
    _, push = tag_losses(*tag_case((0, (0.0,)), (0, (1.0,)), (0, (2.0,)), (1, (0.0,)), (1, (0.0,))))
    assert float(push.detach()) == pytest.approx(((4 * np.exp(-0.5) + 2 * np.exp(-2)) / 6 + 1.0) / 2)


def test_tags_move_together_and_apart() -> None:
    tags, targets = tag_case((0, (0.0, 0.4)), (0, (1.0, 1.0)))
    pull, push = tag_losses(tags, targets)
    (pull + push).backward()
    gradient = tags.grad[0, :2, 0]
    assert gradient[0, 0] < gradient[1, 0]  # the first person's tags move together,
    assert gradient[:, 0].sum() > 0 and gradient[:, 1].sum() < 0  # and away from the second's
    assert float(tags.grad[0, 2:].abs().sum()) == 0


def test_nobody_to_tag_is_no_loss_and_no_nan() -> None:
    tags, targets = tag_case()
    pull, push = tag_losses(tags, targets)
    (pull + push).backward()
    assert float(pull.detach()) == float(push.detach()) == 0.0 and float(tags.grad.abs().sum()) == 0
    _, push = tag_losses(*tag_case((0, (1.0,))))
    assert float(push.detach()) == 0.0


# Fields


def test_a_field_is_the_unit_vector_along_its_limb() -> None:
    pose = drawn_pose(8, 10, 130)
    pose[LEFT_SHOULDER, :2], pose[RIGHT_SHOULDER, :2] = (37.5, 41.5), (69.5, 65.5)  # cells (9, 10), (17, 16)
    limb = LIMBS.tolist().index([LEFT_SHOULDER, RIGHT_SHOULDER])
    field = field_targets([scene(pose)])[0, 2 * limb : 2 * limb + 2]
    np.testing.assert_allclose(field[:, 13, 13], (0.8, 0.6), rtol=1e-6)  # x before y
    assert field[:, 13, 15].tolist() == [0, 0]  # 2 cells beside: 1.2 across
    assert field[:, 4, 4].tolist() == [0, 0]


def test_where_limbs_of_two_people_cross_the_field_is_their_mean() -> None:
    one, two = drawn_pose(8, 10, 130), drawn_pose(8, 10, 130)
    one[LEFT_SHOULDER, :2], one[RIGHT_SHOULDER, :2] = (41.5, 41.5), (81.5, 41.5)
    two[LEFT_SHOULDER, :2], two[RIGHT_SHOULDER, :2] = (61.5, 21.5), (61.5, 61.5)
    limb = LIMBS.tolist().index([LEFT_SHOULDER, RIGHT_SHOULDER])
    field = field_targets([scene(one, two)])[0, 2 * limb : 2 * limb + 2]
    np.testing.assert_allclose(field[:, 10, 15], (0.5, 0.5), rtol=1e-6)


def test_absent_ends_draw_no_limb() -> None:
    pose = drawn_pose(8, 10, 130)
    pose[LEFT_SHOULDER] = 0
    fields = field_targets([scene(pose)])[0]
    for limb, ends in enumerate(LIMBS.tolist()):
        assert (np.abs(fields[2 * limb : 2 * limb + 2]).max() > 0) == (LEFT_SHOULDER not in ends)


def test_field_loss_by_hand() -> None:
    targets = torch.zeros(1, 38, 1, 3)
    targets[0, 0, 0, :2] = 1.0
    fields = torch.zeros(1, 38, 1, 3)
    fields[0, 1, 0, 2] = 2.0
    weight = torch.tensor([[[[1.0, 1.0, 0.1]]]])
    assert float(field_loss(fields, targets, weight)) == pytest.approx((1 + 1 + 0.4) / 2)


# PersonLab


def test_discs_and_short_offsets_by_hand() -> None:
    pose = drawn_pose(8, 10, 130)
    pose[NOSE, :2] = 43.5, 41.5  # cells 10.5 and 10
    drawn = personlab_targets([scene(pose)])
    rows, columns = np.mgrid[: HEIGHT // 4, : WIDTH // 4]
    inside = np.hypot(rows - 10, columns - 10.5) <= RADIUS_CELLS
    np.testing.assert_array_equal(drawn.heatmaps[0, NOSE].numpy(), inside)
    np.testing.assert_array_equal(drawn.short_weight[0, NOSE].numpy(), inside)
    assert drawn.short_offsets[0, 2 * NOSE : 2 * NOSE + 2, 12, 9].tolist() == [-2.0, 1.5]  # y before x


def test_where_discs_overlap_the_nearest_joint_has_the_cell() -> None:
    one, two = drawn_pose(8, 10, 130), drawn_pose(8, 10, 130)
    one[NOSE, :2], two[NOSE, :2] = (41.5, 41.5), (57.5, 41.5)  # cells 10 and 14
    for order in ((one, two), (two, one)):
        short = personlab_targets([scene(*order)]).short_offsets[0, :2]
        assert short[:, 10, 11].tolist() == [0, -1] and short[:, 10, 13].tolist() == [0, 1]


def test_middle_offsets_lead_along_the_tree_and_back() -> None:
    pose = PEOPLE[0]
    drawn = personlab_targets([scene(pose)])
    cells = (pose[:, 1::-1] + 0.5) / 4 - 0.5
    for edge, (a, b) in enumerate(TREE.tolist()):
        for back, (start, end) in enumerate(((a, b), (b, a))):
            row, column = np.rint(cells[start]).astype(int)
            assert drawn.mid_weight[0, 2 * edge + back, row, column] == 1
            channel = 4 * edge + 2 * back
            offset = drawn.mid_offsets[0, channel : channel + 2, row, column].numpy()
            np.testing.assert_allclose(offset + np.array([row, column]), cells[end], atol=1e-4)


def test_offsets_to_an_absent_joint_are_not_taught() -> None:
    pose = PEOPLE[0].copy()
    pose[LEFT_ANKLE] = 0
    drawn = personlab_targets([scene(pose)])
    for edge, ends in enumerate(TREE.tolist()):
        for back in range(2):
            assert bool(drawn.mid_weight[0, 2 * edge + back].any()) == (LEFT_ANKLE not in ends)
    assert not drawn.long_weight[0, LEFT_ANKLE].any() and drawn.long_weight[0, NOSE].any()


def test_long_offsets_lead_from_a_mask_to_its_own_joints() -> None:
    one = scene(*PEOPLE[:2])
    drawn = personlab_targets([one])
    labels = one.labels[1::4, 1::4]
    for index, pose in enumerate(PEOPLE[:2]):
        cells = (pose[:, 1::-1] + 0.5) / 4 - 0.5
        for row, column in np.argwhere(labels == index + 1)[::7]:
            offset = drawn.long_offsets[0, 2 * LEFT_ANKLE : 2 * LEFT_ANKLE + 2, row, column].numpy()
            np.testing.assert_allclose(offset + np.array([row, column]), cells[LEFT_ANKLE], atol=1e-4)
    np.testing.assert_array_equal(drawn.person[0, 0].numpy(), labels > 0)


def test_what_nobody_knows_of_masks_is_not_taught() -> None:
    one = scene(PEOPLE[0])
    one.labels[100:, 150:] = LABEL_COVERED
    weight = personlab_targets([one]).person_weight[0, 0]
    assert float(weight[30, 40]) == 0.0 and float(weight[5, 45]) == 1.0
    without = personlab_targets([scene(PEOPLE[0], masks=False)])
    nose = (PEOPLE[0][NOSE, 1::-1] // 4).astype(int)
    assert float(without.person_weight[0, 0, nose[0], nose[1]]) == 0.0  # a person, but where they end nobody knows
    assert float(without.person_weight[0, 0, 5, 45]) == 1.0
    assert not without.person.any() and not without.long_weight.any()


def test_personlab_loss_by_hand() -> None:
    drawn = personlab_targets([scene(PEOPLE[0])])
    maps = perfect_maps("personlab", scene(PEOPLE[0]))
    perfect = personlab_losses(maps, drawn)
    assert all(float(loss) < 0.01 for loss in perfect.values()) and set(perfect) == set(LOSS_WEIGHTS)
    off = {**maps, "short_offsets": maps["short_offsets"] + RADIUS_CELLS, "long_offsets": maps["long_offsets"] - 2.0}
    losses = personlab_losses(off, drawn)
    assert float(losses["short_offsets"]) == pytest.approx(2.0, rel=1e-4)  # a radius in y and one in x
    assert float(losses["long_offsets"]) == pytest.approx(0.125 * 2 * 2 / RADIUS_CELLS, rel=1e-4)


def test_target_masks_come_back_by_the_long_offsets() -> None:
    one = scene(*PEOPLE[:2])
    maps = perfect_maps("personlab", one)
    poses = np.stack(PEOPLE[:2]).astype(np.float32)
    poses[..., 2] = 1.0
    long, short = (maps[name][0].numpy() for name in ("long_offsets", "short_offsets"))
    distances = embedding_distances(maps["person"].sigmoid()[0, 0].numpy(), long, short, poses)
    labels = one.labels[1::4, 1::4]
    for index in range(2):
        found, true = distances[index] <= MAX_DISTANCE, labels == index + 1
        assert (found & true).sum() / (found | true).sum() > 0.9  # refined offsets blur where two people touch


# All


@pytest.mark.parametrize("keypoints", list(TOLERANCE_PX))
@pytest.mark.parametrize("people", [0, 2])
def test_every_head_gets_a_finite_gradient(keypoints: str, people: int) -> None:
    one = scene(*PEOPLE[:people])
    torch.manual_seed(0)
    maps = {name: torch.randn_like(value).requires_grad_(True) for name, value in perfect_maps(keypoints, one).items()}
    losses = grouping_losses(keypoints, maps, [one])
    torch.stack(list(losses.values())).sum().backward()
    for name, value in maps.items():
        assert value.grad is not None and bool(torch.isfinite(value.grad).all()), name
        assert bool(value.grad.any()) or people == 0, name


def test_the_push_is_weighted() -> None:
    one = scene(*PEOPLE[:2])
    maps = perfect_maps("embedding", one)
    drawn = joint_targets([one])
    assert float(grouping_losses("embedding", maps, [one])["push"]) == pytest.approx(
        PUSH_WEIGHT * float(tag_losses(maps["tags"], drawn)[1])
    )
