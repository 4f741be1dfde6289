"""Reading COCO-format sets, decoding masks, views of photographs, and the seeded stream of scenes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.skeleton import FLIPPED_JOINTS
from tests.training.drawn_people import (
    HEIGHT,
    WIDTH,
    annotation,
    background,
    drawn_mask,
    drawn_pose,
    plain_rle,
    polygon,
    rle,
    tiny_settings,
    write_coco,
    write_people,
)
from training.dataset import (
    CocoFolder,
    DataError,
    SceneDataset,
    decode_mask,
    photo_scene,
    random_view,
    warp_keypoints,
)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of annotation: three mask codings, `ignore`, `merged`, joints without mask, a mask without joints."""
    left, right = drawn_pose(0, 2, 90), drawn_pose(40, 2, 90)
    mask = drawn_mask(left)
    entries = [
        annotation(1, 7, left, mask),
        annotation(2, 7, right, None),
        annotation(3, 7, None, drawn_mask(right)),
        annotation(4, 8, left, mask, segmentation=plain_rle(mask)),
        annotation(5, 8, left, mask, segmentation=polygon(mask)),
        annotation(6, 8, right, None, ignore=True),
        annotation(7, 8, None, mask | drawn_mask(right), merged=True),
        annotation(8, 8, None, mask, iscrowd=1),
        annotation(9, 8, right, None, segmentation=[]),
    ]
    return write_coco(tmp_path_factory.mktemp("mixed"), {i: background(i) for i in (7, 8, 9)}, entries)


def test_reads_every_kind_of_person(mixed: Path) -> None:
    folder = CocoFolder(mixed / "annotations.json", mixed / "images")
    assert [(photo.image_id, len(photo.people)) for photo in folder.photos] == [(7, 3), (8, 6), (9, 0)]
    whole, joints_only, mask_only = folder.photos[0].people
    np.testing.assert_allclose(whole.keypoints, drawn_pose(0, 2, 90))
    assert whole.has_keypoints and whole.segmentation is not None and not whole.crowd and not whole.ignore
    assert joints_only.has_keypoints and joints_only.segmentation is None
    assert not mask_only.has_keypoints and mask_only.segmentation is not None
    assert mask_only.keypoints.shape == (17, 3) and not mask_only.keypoints.any()
    _, _, ignored, merged, crowd, empty = folder.photos[1].people
    assert ignored.ignore and not ignored.crowd
    assert merged.crowd and crowd.crowd
    assert empty.segmentation is None


def test_the_three_codings_of_a_mask_are_one_mask() -> None:
    mask = drawn_mask(drawn_pose(20, 2, 90))
    assert mask[0, 0] == 0
    corner = mask.copy()
    corner[:3, :3] = 1  # runs that start with a person
    for coded in (rle(mask), plain_rle(mask)):
        np.testing.assert_array_equal(decode_mask(coded, HEIGHT, WIDTH), mask)
    np.testing.assert_array_equal(decode_mask(plain_rle(corner), HEIGHT, WIDTH), corner)
    outlined = decode_mask(polygon(mask), HEIGHT, WIDTH)
    assert (outlined != mask).sum() < 0.12 * mask.sum()  # a polygon runs through the middle of its border px


def test_a_box_is_x_y_width_height(mixed: Path) -> None:
    person = CocoFolder(mixed / "annotations.json", mixed / "images").photos[0].people[0]
    ys, xs = np.nonzero(drawn_mask(drawn_pose(0, 2, 90)))
    np.testing.assert_array_equal(person.box, [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


def test_a_zip_and_a_folder_hold_the_same_pictures(tmp_path: Path) -> None:
    plain, packed = write_people(tmp_path / "plain"), write_people(tmp_path / "packed", zipped=True)
    from_folder = CocoFolder(plain / "annotations.json", plain / "images")
    from_zip = CocoFolder(packed / "annotations.json", packed / "images.zip")
    for one, other in zip(from_folder.photos, from_zip.photos, strict=True):
        image = from_folder.image(one)
        assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8
        np.testing.assert_array_equal(image, from_zip.image(other))
    assert from_folder.image(from_folder.photos[0])[0, 0].tolist() == background(1)[0, 0].tolist()  # RGB, not BGR


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not a COCO keypoint file: JSONDecodeError"),
        ("[]", "is not a COCO keypoint file: TypeError"),
        ('{"annotations": []}', "is not a COCO keypoint file: KeyError 'images'"),
        ('{"images": [{"id": 1, "file_name": "a.png", "height": 4}]}', "KeyError 'width'"),
        ('{"images": [], "annotations": [{"image_id": 3, "bbox": [0, 0, 1, 1]}]}', "image_id 3 is no image"),
    ],
    ids=["cut", "list", "no images", "no width", "unknown image"],
)
def test_a_file_that_is_not_coco_is_named(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"broken\.json") as caught:
        CocoFolder(path, tmp_path)
    assert said in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    people = write_people(tmp_path / "people", pictures=2)
    with pytest.raises(DataError, match=r"annotation file not found: .*none\.json"):
        CocoFolder(people / "none.json", people / "images")
    with pytest.raises(DataError, match=r"pictures not found: .*nowhere \(expected a folder or a zip\)"):
        CocoFolder(people / "annotations.json", people / "nowhere")
    folder = CocoFolder(people / "annotations.json", people / "images")
    (people / "images" / "000002.png").unlink()
    with pytest.raises(DataError, match=r"picture 000002\.png is not in"):
        folder.image(folder.photos[1])


def test_a_picture_must_be_what_the_annotations_say(tmp_path: Path) -> None:
    people = write_people(tmp_path / "people", pictures=3)
    folder = CocoFolder(people / "annotations.json", people / "images")
    (people / "images" / "000001.png").write_text("no picture")
    (people / "images" / "000002.png").write_bytes(b"")
    (people / "images" / "000003.png").write_bytes(_png(10, 20))
    for photo, came in zip(folder.photos, ("not a picture", "not a picture", "20x10"), strict=True):
        with pytest.raises(DataError, match=f"{photo.file_name}: expected a picture of 128x96, got {came}"):
            folder.image(photo)


def _png(height: int, width: int) -> bytes:
    import cv2

    return cv2.imencode(".png", np.zeros((height, width, 3), np.uint8))[1].tobytes()


def test_a_broken_zip_is_named(tmp_path: Path) -> None:
    people = write_people(tmp_path / "people", pictures=1, zipped=True)
    folder = CocoFolder(people / "annotations.json", people / "images.zip")
    photo = folder.photos[0]
    (people / "other.zip").write_bytes(b"PK not really")
    with pytest.raises(DataError, match=r"other\.zip is not a zip"):
        CocoFolder(people / "annotations.json", people / "other.zip").image(photo)
    content = json.loads((people / "annotations.json").read_text())
    content["images"][0]["file_name"] = "absent.png"
    (people / "annotations.json").write_text(json.dumps(content))
    renamed = CocoFolder(people / "annotations.json", people / "images.zip")
    with pytest.raises(DataError, match=r"absent\.png is not in .*images\.zip"):
        renamed.image(renamed.photos[0])


def test_damaged_members_and_pictures_that_are_not_there_are_named(tmp_path: Path) -> None:
    people = write_people(tmp_path / "people", pictures=6, zipped=True)
    data = bytearray((people / "images.zip").read_bytes())
    data[60:160] = bytes(100)
    (people / "damaged.zip").write_bytes(bytes(data))
    folder = CocoFolder(people / "annotations.json", people / "damaged.zip")
    folder.require_files(folder.photos)
    with pytest.raises(DataError, match=r"000001\.png in .*damaged\.zip is damaged"):
        folder.image(folder.photos[0])
    plain = write_people(tmp_path / "plain", pictures=6)
    for number in range(2, 7):
        (plain / "images" / f"{number:06d}.png").unlink()
    missing = CocoFolder(plain / "annotations.json", plain / "images")
    missing.require_files(missing.photos[:1])
    said = r"pictures are not in .*images: 000002\.png, 000003\.png, 000004\.png and 2 more"
    with pytest.raises(DataError, match=said):
        missing.require_files(missing.photos)
    with pytest.raises(DataError, match=r"000001\.png in .* cannot be read"):
        (plain / "images" / "000001.png").unlink()
        (plain / "images" / "000001.png").mkdir()
        missing.image(missing.photos[0])


def test_warp_drops_what_leaves_and_swaps_sides_when_mirrored() -> None:
    pose = drawn_pose(10, 2, 80)
    pose[16] = (3, 4, 0)  # absent joints may carry any numbers
    right = warp_keypoints(np.array([[1.0, 0, 70], [0, 1, 0]]), pose[None], HEIGHT, WIDTH, mirrored=False)[0]
    gone = pose[:, 0] + 70 >= WIDTH - 0.5
    assert gone.any() and not gone.all()
    assert not right[gone].any() and not right[16].any()
    np.testing.assert_allclose(right[~gone][:-1, 0], pose[~gone][:-1, 0] + 70)

    mirror = np.array([[-1.0, 0, WIDTH - 1], [0, 1, 0]])
    flipped = warp_keypoints(mirror, pose[None], HEIGHT, WIDTH, mirrored=True)[0]
    for joint, other in enumerate(FLIPPED_JOINTS):
        expected = (WIDTH - 1 - pose[other, 0], pose[other, 1], 2) if pose[other, 2] else (0, 0, 0)
        np.testing.assert_allclose(flipped[joint], expected, rtol=1e-6)
    left_eye, right_eye = flipped[1, 0], flipped[2, 0]
    assert left_eye > right_eye  # still facing the camera: her left is on the picture's right


@given(st.integers(0, 10_000))
def test_a_view_is_a_similarity_that_keeps_a_person_in_sight(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pose = drawn_pose(30, 2, 90)
    photo = _photo(pose)
    matrix, mirrored = random_view(rng, photo, 64, 96)
    linear = matrix[:, :2]
    product = linear.T @ linear
    np.testing.assert_allclose(product, np.eye(2) * product[0, 0], atol=1e-9)
    assert (np.linalg.det(linear) < 0) == mirrored
    inside = np.linalg.solve(linear, np.array([48.0, 32.0]) - matrix[:, 2])  # canvas middle, in photo px
    extent = max(photo.people[0].box[3] - photo.people[0].box[1], 8)
    assert np.abs(inside - photo.people[0].box.reshape(2, 2).mean(0)).max() < 3 * extent


def _photo(pose: Any) -> Any:
    from training.dataset import Person, Photo

    low, high = pose[:, :2].min(0), pose[:, :2].max(0)
    person = Person(
        box=np.concatenate((low, high)).astype(np.float64),
        keypoints=pose,
        segmentation=rle(drawn_mask(pose)),
        ignore=False,
        crowd=False,
    )
    return Photo(image_id=1, file_name="000001.png", height=HEIGHT, width=WIDTH, people=(person,))


def test_a_photo_scene_lists_only_people_one_may_learn_from(mixed: Path) -> None:
    folder = CocoFolder(mixed / "annotations.json", mixed / "images")
    backdrop = np.full((HEIGHT, WIDTH, 3), 9, np.uint8)
    seen = set()
    for seed in range(20):
        first = photo_scene(np.random.default_rng(seed), folder, folder.photos[0], backdrop, complete=True)
        assert first.complete and len(first.keypoints) <= 2  # never the mask without joints
        assert first.labels.max() <= len(first.keypoints)
        assert not np.isin(first.labels, 1 + np.flatnonzero(first.has_mask == 0)).any()
        second = photo_scene(np.random.default_rng(seed), folder, folder.photos[1], backdrop, complete=False)
        assert not second.complete and len(second.keypoints) <= 3  # neither weak labels nor crowds
        empty = photo_scene(np.random.default_rng(seed), folder, folder.photos[2], backdrop, complete=True)
        assert empty.keypoints.shape == (0, 17, 3) and empty.has_mask.shape == (0,) and not empty.labels.any()
        seen |= set(first.has_mask.tolist())
    assert seen == {0, 1}
    assert (backdrop == 9).all()


def test_a_photo_scene_moves_picture_mask_and_joints_alike(tmp_path: Path) -> None:
    """The drawn person is the only red thing in the picture: red px, label px and joints must agree in every view."""
    pose = drawn_pose(30, 2, 90)
    mask = drawn_mask(pose)
    image = np.full((HEIGHT, WIDTH, 3), (0, 120, 0), np.uint8)
    image[mask > 0] = (250, 0, 0)
    path = write_coco(tmp_path / "red", {1: image}, [annotation(1, 1, pose, mask)])
    folder = CocoFolder(path / "annotations.json", path / "images")
    backdrop = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    views = 0
    for seed in range(25):
        scene = photo_scene(np.random.default_rng(seed), folder, folder.photos[0], backdrop, complete=True)
        if not len(scene.keypoints):
            continue
        views += 1
        red = scene.image[..., 0] > 125
        assert (red != (scene.labels == 1)).sum() <= 0.02 * red.sum() + 4
        for x, y, v in scene.keypoints[0]:
            if v > 0:
                around = red[max(0, round(y) - 1) : round(y) + 2, max(0, round(x) - 1) : round(x) + 2]
                assert around.any()
    assert views > 15


KINDS = {
    "no joints, a box": {"joints": 0, "mask": False},
    "no joints, a mask": {"joints": 0, "mask": True},
    "two joints": {"joints": 2, "mask": True},
    "weak label": {"joints": 17, "mask": False, "ignore": True},
    "weak label with a mask": {"joints": 17, "mask": True, "ignore": True},
    "crowd": {"joints": 0, "mask": True, "iscrowd": 1},
    "several people in one mask": {"joints": 17, "mask": True, "merged": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_people_who_are_not_listed_are_marked_and_never_background(tmp_path: Path, kind: str) -> None:
    """Whom nobody labelled is painted red, the labelled person green, both on blue: the mark must lie on the red."""
    extra = dict(KINDS[kind])
    joints, has_mask = extra.pop("joints"), extra.pop("mask")
    known, unknown = drawn_pose(0, 2, 90), drawn_pose(66, 2, 90)
    mask = drawn_mask(unknown)
    region = mask.copy()
    if not has_mask:
        ys, xs = np.nonzero(mask)
        region[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = 1
    image = np.full((HEIGHT, WIDTH, 3), (0, 0, 120), np.uint8)
    image[region > 0] = (250, 0, 0)
    image[drawn_mask(known) > 0] = (0, 250, 0)
    unknown[joints:] = 0
    entry = annotation(2, 1, unknown if joints else None, mask, **extra)
    if not has_mask:
        del entry["segmentation"]
    path = write_coco(tmp_path / "both", {1: image}, [annotation(1, 1, known, drawn_mask(known)), entry])
    folder = CocoFolder(path / "annotations.json", path / "images")
    backdrop = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    marked = 0
    for seed in range(25):
        scene = photo_scene(np.random.default_rng(seed), folder, folder.photos[0], backdrop, complete=True)
        red = (scene.image[..., 0] > 125) & (scene.image[..., 1] < 125)
        if scene.unlabelled is None:
            assert red.sum() < 4
            continue
        assert scene.unlabelled.shape == (HEIGHT, WIDTH) and scene.unlabelled.dtype == np.uint8
        assert set(np.unique(scene.unlabelled)) == {0, 1} and not (scene.unlabelled[scene.labels > 0]).any()
        if len(scene.keypoints):
            marked += 1
            edge = 6 * np.sqrt(red.sum()) + 60  # px of a border one or two wide
            assert (red != (scene.unlabelled > 0)).sum() < min(edge, 0.25 * max(red.sum(), 200))
    assert marked > 10


def test_max_iou_is_that_of_what_is_in_the_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes count as far as they lie in the view, masks as far as they are visible; the view is 20 px to the right."""
    shape = (HEIGHT, WIDTH)
    tall, low = (np.zeros(shape, np.uint8) for _ in range(2))
    tall[10:80, 40:80], low[50:80, 70:90] = 1, 1  # the lower one is in front
    pose = drawn_pose(30, 2, 90)
    entries = [
        annotation(1, 1, pose, None, bbox=[10, 10, 30, 60]),  # in view: columns 0 to 20
        annotation(2, 1, pose, None, bbox=[10, 10, 40, 55]),  # 0 to 30
        annotation(3, 2, pose, tall),
        annotation(4, 2, pose, low),
        annotation(5, 2, pose, None, bbox=[100, 10, 8, 5]),
    ]
    path = write_coco(tmp_path / "people", {1: background(1), 2: background(2), 3: background(3)}, entries)
    folder = CocoFolder(path / "annotations.json", path / "images")
    backdrop = np.zeros((*shape, 3), np.uint8)
    matrix = np.array([[1.0, 0, -20], [0, 1, 0]])
    monkeypatch.setattr("training.dataset.random_view", lambda *_: (matrix, False))
    boxes, masks, nobody = (
        photo_scene(np.random.default_rng(0), folder, photo, backdrop, complete=True).max_iou for photo in folder.photos
    )
    np.testing.assert_allclose(boxes, [1100 / 1750, 1100 / 1750], rtol=1e-6)  # 20 x 55 of 20 x 60 + 30 x 55 - 20 x 55
    np.testing.assert_allclose(
        masks, [300 / 3100, 300 / 3100, 0], rtol=1e-6
    )  # the masks' own boxes, 40 x 70 and 20 x 30
    assert nobody.shape == (0,)
    assert all(values.dtype == np.float32 for values in (boxes, masks, nobody))


def test_sample_i_is_a_function_of_seed_and_i(data: Path, tmp_path: Path) -> None:
    one, other = (SceneDataset(tiny_settings(data, tmp_path)) for _ in range(2))
    for index in (5, 0, 5):  # order and repetition do not matter
        a, b = one[index], other.scene(index)
        for name in ("image", "labels", "keypoints", "has_mask", "max_iou"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert a.image.shape == (64, 64, 3) and a.image.dtype == np.uint8
        assert a.keypoints.dtype == np.float32 and a.labels.shape == (64, 64)
    assert not np.array_equal(one[0].image, one[1].image)
    reseeded = SceneDataset(tiny_settings(data, tmp_path, seed=1))
    assert not np.array_equal(one[0].image, reseeded[0].image)


def test_length_counts_every_sample_of_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = SceneDataset(tiny_settings(data, tmp_path, steps=7, batch_size=3))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert len(dataset) == 21
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert len(dataset) == 42


def test_photographs_alone_need_neither_cut_outs_nor_backgrounds(tmp_path: Path) -> None:
    path = write_people(tmp_path / "people", pictures=1)
    for entry in (content := json.loads((path / "annotations.json").read_text()))["annotations"]:
        del entry["segmentation"]
    (path / "annotations.json").write_text(json.dumps(content))
    settings = tiny_settings(tmp_path, tmp_path, compose_weight=0.0, backgrounds=())
    dataset = SceneDataset(settings)
    assert not dataset.cutouts.groups and not dataset.cutouts.backgrounds
    for seed in range(3):
        assert not dataset.cutouts.background(np.random.default_rng(seed), 48, 64).any()  # black
    scenes = [dataset[index] for index in range(8)]
    assert all(scene.image.shape == (64, 64, 3) for scene in scenes) and any(len(s.keypoints) for s in scenes)


def test_samples_that_cannot_be_made_are_an_error_at_the_start(data: Path, tmp_path: Path) -> None:
    chosen = tiny_settings(data, tmp_path)
    (source,) = chosen.sources
    cases = [
        (
            {"compose_weight": 0.0, "backgrounds": ("people",)},
            r"no pictures \(.*\.png\) in people: set `backgrounds` to",
        ),
        ({"compose_weight": 0.3, "backgrounds": ()}, "composition needs pictures without people"),
        (
            {"compose_weight": 0.0, "sources": (replace(source, photo_weight=0.0),)},
            "no samples: set compose_weight or the photo_weight of a source above 0",
        ),
        (
            {"compose_weight": 0.0, "sources": (replace(source, holdout_every=1),)},
            r"people/annotations\.json: photo_weight is 0\.3, but no picture outside the held-out ones has",
        ),
    ]
    for changes, said in cases:
        with pytest.raises(DataError, match=said):
            SceneDataset(replace(chosen, **changes))


def test_held_out_people_are_neither_shown_nor_cut_out(data: Path, tmp_path: Path) -> None:
    settings = tiny_settings(data, tmp_path)
    whole = SceneDataset(settings)
    part = SceneDataset(replace(settings, sources=(replace(settings.sources[0], holdout_every=2),)))
    assert [photo.image_id for photo in part.sources[0].photos] == [1, 3]
    assert len(whole.cutouts.groups[0]) == 4 and len(part.cutouts.groups[0]) == 2
