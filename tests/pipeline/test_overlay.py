from __future__ import annotations

import itertools

import numpy as np
import pytest

from engines.device import HostDevice
from pipeline.overlay import color_of, draw_people, draw_text, highlight_person, text_size
from pipeline.person import Person
from pipeline.stage5_compose import ComposeStage
from tests.fakes import frame, masks_of


def people_of(height: int, width: int, *boxes: tuple[float, float, float, float]) -> list[Person]:
    stage = ComposeStage(HostDevice(), mask_threshold=0.5, draw=False)
    return list(stage.process(masks_of(frame(height=height, width=width), *boxes)).people)


def test_colors_are_stable_and_neighbours_differ() -> None:
    colors = [color_of(person_id) for person_id in range(1, 41)]
    assert colors == [color_of(person_id) for person_id in range(1, 41)]
    assert len(set(colors)) == 40
    for first, second in itertools.combinations(colors[:6], 2):
        assert np.abs(np.subtract(first, second)).sum() > 60
    for color in colors:
        assert max(color) > 140  # seen on dark pictures
        assert max(color) - min(color) > 50  # a colour, not a grey


def test_masks_are_tinted_inside_and_nothing_far_outside_changes() -> None:
    image = np.full((200, 300, 3), 90, np.uint8)
    (person,) = people_of(200, 300, (100, 50, 160, 180))
    draw_people(image, [person])
    changed = (image != 90).any(axis=2)
    assert changed[60:170, 105:155].all()
    outside = np.ones_like(changed)
    outside[20:190, 80:180] = False  # the label above and the contour around belong to the person
    assert not changed[outside].any()
    inside = image[120, 104].astype(int)
    assert inside.tolist() == pytest.approx((0.58 * 90 + 0.42 * np.array(color_of(1))).tolist(), abs=2)


def test_a_hole_in_a_mask_stays_open() -> None:
    masks = masks_of(frame(height=200, width=300), (50, 20, 178, 148))
    masks.probabilities[0, 24:40, 24:40] = 0.0
    masks.rois.joint_visible[:] = False
    person = ComposeStage(HostDevice(), mask_threshold=0.5, draw=False).process(masks).people[0]
    image = np.full((200, 300, 3), 90, np.uint8)
    draw_people(image, [person])
    assert image[84, 114].tolist() == [90, 90, 90]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (40, 30), (270, 480), (2160, 3840), (64, 7680)])
def test_every_frame_size(height, width) -> None:
    image = np.full((height, width, 3), 90, np.uint8)
    people = people_of(height, width, (0, 0, width, height), (-0.2 * width, -0.2 * height, 0.4 * width, 0.5 * height))
    draw_people(image, people)
    assert (image != 90).any()


def test_lines_and_letters_grow_with_the_frame() -> None:
    """The share of a picture that skeleton and label take is about the same on 480p and 4K."""
    shares = []
    for height, width in ((480, 854), (2160, 3840)):
        image = np.full((height, width, 3), 90, np.uint8)
        masks = masks_of(frame(height=height, width=width), (width * 0.4, height * 0.2, width * 0.6, height * 0.9))
        masks.probabilities[:] = 0.0
        draw_people(image, [ComposeStage(HostDevice(), mask_threshold=0.5, draw=False).process(masks).people[0]])
        shares.append((image != 90).any(axis=2).mean())
    assert 0.5 < shares[0] / shares[1] < 2.0


def test_invisible_joints_and_their_limbs_are_not_drawn() -> None:
    masks = masks_of(frame(height=400, width=400), (100, 50, 300, 390))
    masks.probabilities[:] = 0.0
    masks.rois.joint_visible[0, 9:] = False  # wrists and everything below
    person = ComposeStage(HostDevice(), mask_threshold=0.5, draw=False).process(masks).people[0]
    image = np.full((400, 400, 3), 90, np.uint8)
    draw_people(image, [person])
    assert not (image[240:] != 90).any()
    assert (image[60:200] != 90).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, -1e30])
def test_joints_from_anywhere(value) -> None:
    masks = masks_of(frame(height=100, width=100), (20, 20, 60, 90))
    masks.rois.poses.keypoints[0, 5, :2] = value
    person = ComposeStage(HostDevice(), mask_threshold=0.5, draw=False).process(masks).people[0]
    image = np.full((100, 100, 3), 90, np.uint8)
    draw_people(image, [person])
    assert (image[30:80, 25:55] != 90).any(axis=2).all()  # the mask is drawn all the same
    assert (image[95:, :15] == 90).all()


def test_labels_of_people_on_one_spot_do_not_cover_each_other() -> None:
    masks = masks_of(frame(height=300, width=300), *[(100, 150, 160, 290)] * 3)
    masks.probabilities[:] = 0.0
    masks.rois.joint_visible[:, 11:] = False
    people = ComposeStage(HostDevice(), mask_threshold=0.5, draw=False).process(masks).people
    image = np.full((300, 300, 3), 90, np.uint8)
    draw_people(image, people)
    found = [bool((np.abs(image.astype(int) - color_of(person.id)).max(axis=2) < 40).sum() > 30) for person in people]
    assert found == [True, True, True]


def test_text_fits_its_box_and_is_cut_at_the_border() -> None:
    image = np.full((60, 200, 3), 90, np.uint8)
    width, height = text_size("12  0.98", 13)
    draw_text(image, "12  0.98", 20, 40, height=13, color=(0, 0, 0), background=(255, 255, 255))
    changed = (image != 90).any(axis=2)
    assert changed[40 - height : 40, 20 : 20 + width].mean() > 0.98  # the edge of a letter may hit the old grey
    changed[40 - height : 40, 20 : 20 + width] = False
    assert not changed.any()
    draw_text(image, "x", -1000, 10, height=13, color=(0, 0, 0), background=(255, 255, 255))
    draw_text(image, "x", 195, 70, height=13, color=(0, 0, 0), background=(255, 255, 255))


def test_each_part_can_be_left_out() -> None:
    (person,) = people_of(200, 300, (100, 50, 160, 180))
    parts = {}
    for part in ("masks", "skeletons", "labels"):
        image = np.full((200, 300, 3), 90, np.uint8)
        draw_people(image, [person], **({"masks": False, "skeletons": False, "labels": False} | {part: True}))
        parts[part] = (image != 90).any(axis=2)
    assert parts["masks"][60:170, 105:155].all()
    assert not parts["labels"][60:].any() and parts["labels"][:60].any()
    assert 0 < parts["skeletons"].sum() < parts["masks"].sum()
    image = np.full((200, 300, 3), 90, np.uint8)
    draw_people(image, [person], masks=False, skeletons=False, labels=False)
    assert (image == 90).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (40, 30), (200, 300), (2160, 3840)])
def test_highlight_is_a_white_line_around_the_person(height, width) -> None:
    image = np.full((height, width, 3), 90, np.uint8)
    people = people_of(height, width, (0.3 * width, 0.3 * height, 0.6 * width, 0.8 * height))
    for person in people:
        highlight_person(image, person)
    if height > 100:
        assert (image == 255).all(axis=2).any()
        assert (image[int(0.5 * height), int(0.45 * width)] == 90).all()
        assert (image[: int(0.2 * height)] == 90).all()
