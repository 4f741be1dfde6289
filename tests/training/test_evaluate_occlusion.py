"""AP by MaxIoU and identity confusion on cases worked by hand, beside plain COCOeval, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.drawn_people import annotation, drawn_pose, rle, write_coco
from training.average_precision import average_precision
from training.dataset import CocoFolder, Photo
from training.evaluate import truth_for
from training.evaluate_occlusion import PARTS, main, max_iou_of, occlusion_figures, read_results

SIZE = (60, 80)


def block(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


# Two people alone, far apart; a moderate pair, the second an L around the first; a hard pair, one a frame of the other.
APART = [block(0, 0, 20, 50), block(50, 0, 70, 50)]
FIRST = block(0, 0, 30, 30)
MODERATE = [FIRST, block(0, 0, 40, 40) & (1 - FIRST)]  # boxes 30 x 30 in 40 x 40: 900 / 1600
INNER = block(1, 1, 39, 39)
HARD = [INNER, block(0, 0, 40, 40) & (1 - INNER)]  # 38 x 38 in 40 x 40: .9025
PICTURES = {1: APART, 2: MODERATE, 3: HARD}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    entries = []
    for image_id, masks in PICTURES.items():
        for mask in masks:
            ys, xs = np.nonzero(mask)
            pose = drawn_pose(float(xs.min()), float(ys.min()), float(np.ptp(xs)) + 1)
            entries.append(annotation(len(entries) + 1, image_id, pose, mask))
    images = {image_id: np.full((*SIZE, 3), 90, np.uint8) for image_id in PICTURES}
    return write_coco(tmp_path_factory.mktemp("occlusion") / "set", images, entries)


@pytest.fixture(scope="module")
def photos(folder: Path) -> list[Photo]:
    return CocoFolder(folder / "annotations.json", folder / "images").photos


def results(changes: dict[tuple[int, int], np.ndarray] | None = None) -> list[dict[str, Any]]:
    """The true masks, but for some."""
    return [
        {
            "image_id": image_id,
            "category_id": 1,
            "score": 1.0,
            "segmentation": rle((changes or {}).get((image_id, person), mask)),
        }
        for image_id, masks in PICTURES.items()
        for person, mask in enumerate(masks)
    ]


def test_max_iou_decides_the_part(photos: list[Photo]) -> None:
    values = [max_iou_of(photo).tolist() for photo in photos]
    np.testing.assert_allclose(values, [[0, 0], [0.5625] * 2, [0.9025] * 2], rtol=1e-6)
    figures = occlusion_figures(photos, results(), in_order=True, resamples=0)
    assert {name: figures[name]["people"] for name in PARTS} == {"all": 6, "general": 2, "moderate": 2, "hard": 2}


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("others", ["ignore", "absent"])
def test_true_masks_are_perfect_in_every_part(photos: list[Photo], in_order: bool, others: str) -> None:
    figures = occlusion_figures(photos, results(), in_order=in_order, others=others, resamples=0)
    for name in PARTS:
        # No picture here has people of two parts, so nobody is absent from a picture that counts.
        assert figures[name]["mask"]["AP"] == pytest.approx(1)
        assert figures[name]["mean_iou"] == 1 and figures[name]["confusion"]["mean"] == 0
    assert figures["masks_on_nobody"] == 0 and figures["empty_masks"] == 0


def test_a_wrong_mask_counts_in_its_part_only(photos: list[Photo]) -> None:
    """In the hard pair the second pose gives the first's mask: all of it lies on another person."""
    figures = occlusion_figures(photos, results({(3, 1): INNER}), in_order=True, resamples=0)
    hard, general = figures["hard"], figures["general"]
    assert general["mask"]["AP"] == pytest.approx(1) and general["confusion"]["mean"] == 0
    # Of two masks one is right, one false, the right one first: recall 1/2 at precision 1, so 51 of 101 places.
    assert hard["mask"]["AP"] == pytest.approx(51 / 101, abs=1e-4)
    assert hard["confusion"] == {"masks": 2, "mean": 0.5, "of_all_px": 0.5, "wrong_person": 0.5, "background": 0.0}
    assert hard["mean_iou"] == 0.5
    assert figures["all"]["confusion"]["mean"] == pytest.approx(1 / 6, abs=1e-4)
    # Without knowing the pose the mask is taken for the first's own: nothing is confused, one person is missed.
    guessed = occlusion_figures(photos, results({(3, 1): INNER}), resamples=0)["hard"]
    assert guessed["confusion"]["mean"] == 0 and guessed["mask"]["AP"] == pytest.approx(51 / 101, abs=1e-4)


def test_shares_by_hand(photos: list[Photo]) -> None:
    """Half of the moderate first's mask moves onto the second: 450 px stay, 450 lie on the neighbour."""
    moved = block(0, 15, 30, 45) & block(0, 0, 40, 40)  # 30 x 25: 15 rows own, 10 rows of the other's
    moderate = occlusion_figures(photos, results({(2, 0): moved}), in_order=True, resamples=0)["moderate"]
    assert moderate["confusion"]["mean"] == pytest.approx(300 / 750 / 2)
    assert moderate["confusion"]["of_all_px"] == pytest.approx(300 / (750 + 700), abs=1e-4)
    assert moderate["mean_iou"] == pytest.approx((450 / (900 + 300) + 1) / 2, abs=1e-4)


def test_others_are_ignored_or_absent(tmp_path: Path) -> None:
    """A picture with a hard pair and somebody alone, found last: ignored he changes nothing, absent he is false."""
    alone = block(60, 0, 78, 50)
    masks = [*HARD, alone]
    entries = [annotation(n + 1, 1, drawn_pose(float(np.nonzero(m)[1].min()), 0, 30), m) for n, m in enumerate(masks)]
    root = write_coco(tmp_path / "set", {1: np.zeros((*SIZE, 3), np.uint8)}, entries)
    photos = CocoFolder(root / "annotations.json", root / "images").photos
    found = [
        {"image_id": 1, "category_id": 1, "score": score, "segmentation": rle(mask)}
        for mask, score in zip(masks, (0.5, 0.4, 0.9), strict=True)
    ]
    ignored = occlusion_figures(photos, found, others="ignore", resamples=0)
    absent = occlusion_figures(photos, found, others="absent", resamples=0)
    given = occlusion_figures(photos, found, others="absent", in_order=True, resamples=0)
    assert ignored["hard"]["mask"]["AP"] == pytest.approx(1)
    assert absent["hard"]["mask"]["AP"] == pytest.approx(2 / 3, abs=1e-4)  # precision 2/3 once both are found
    assert given["hard"]["mask"]["AP"] == pytest.approx(1)  # his pose is not fed
    assert ignored["all"]["mask"]["AP"] == absent["all"]["mask"]["AP"] == pytest.approx(1)
    assert absent["general"]["people"] == 1


def test_all_is_what_coco_says(photos: list[Photo]) -> None:
    rng = np.random.default_rng(0)
    noisy = results()
    for entry, (image_id, person) in zip(noisy, ((i, p) for i in PICTURES for p in (0, 1)), strict=True):
        mask = PICTURES[image_id][person].copy()
        mask[rng.random(SIZE) < 0.1 * (image_id + person)] = 0
        entry["segmentation"], entry["score"] = rle(mask), float(rng.random())
    coco = average_precision(truth_for(photos)[1], [dict(entry) for entry in noisy], "segm")
    ours = occlusion_figures(photos, noisy, resamples=0)["all"]["mask"]
    assert 0.1 < coco["AP"] < 0.95
    for name in ("AP", "AP50", "AP75"):
        assert ours[name] == pytest.approx(coco[name], abs=1e-4)


def test_intervals_hold_the_figure_and_are_the_same_again(photos: list[Photo]) -> None:
    changed = results({(3, 1): INNER, (1, 0): block(0, 0, 20, 30)})
    one, again = (occlusion_figures(photos, changed, in_order=True, resamples=60) for _ in range(2))
    assert one == again
    low, high = one["all"]["mask"]["AP_interval"]
    assert low < one["all"]["mask"]["AP"] <= high
    low, high = one["all"]["confusion"]["mean_interval"]
    assert low <= one["all"]["confusion"]["mean"] <= high and low < high


def test_nothing_found_and_empty_masks(photos: list[Photo]) -> None:
    nothing = occlusion_figures(photos, [], resamples=5)
    assert nothing["all"]["mask"]["AP"] == 0 and nothing["all"]["mean_iou"] == 0
    assert nothing["all"]["confusion"]["mean"] is None and nothing["all"]["confusion"]["masks"] == 0
    empty = occlusion_figures(photos, results({(1, 0): np.zeros(SIZE, np.uint8)}), in_order=True, resamples=0)
    assert empty["empty_masks"] == 1 and empty["general"]["confusion"]["masks"] == 1
    far = occlusion_figures(photos, [{**results()[0], "segmentation": rle(block(30, 55, 40, 60))}], resamples=0)
    assert far["masks_on_nobody"] == 1 and far["all"]["confusion"]["masks"] == 0


def test_as_many_masks_as_poses(photos: list[Photo]) -> None:
    with pytest.raises(ValueError, match="1 masks for the poses of 2 people"):
        occlusion_figures(photos, results()[1:], in_order=True)


def command(folder: Path, *more: object) -> list[str]:
    return [*map(str, ("--annotations", folder / "annotations.json", "--images", folder / "images", *more))]


def test_the_command_reads_masks_of_another_system(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "masks.json"
    file.write_text(json.dumps(results()))
    assert main(command(folder, "--results", file, "--json", tmp_path / "out.json", "--resamples", 5)) == 0
    assert "moderate" in capsys.readouterr().out
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["all"]["people"] == 6 and figures["hard"]["mask"]["AP"] == pytest.approx(1)


def test_the_command_runs_the_baseline_on_true_poses(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert main(command(folder, "--masks", "limbs", "--json", out, "--resamples", 0, "--threads", 1)) == 0
    figures = json.loads(out.read_text())
    assert (figures["poses"], figures["masks"], figures["score"]) == ("gt", "limbs", "one")
    assert figures["all"]["confusion"]["masks"] == 6 and "mean_interval" not in figures["all"]["confusion"]
    assert figures["hard"]["confusion"]["mean"] > figures["general"]["confusion"]["mean"]


def test_masks_of_low_score_can_be_left_out(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.json"
    weak = {**results()[0], "score": 0.2, "segmentation": rle(block(30, 55, 40, 60))}
    file.write_text(json.dumps([*results(), weak]))
    out = tmp_path / "out.json"
    options = ["--results", file, "--json", out, "--resamples", 0]
    assert main(command(folder, *options)) == 0
    everything = json.loads(out.read_text())
    assert main(command(folder, *options, "--least-score", 0.5)) == 0
    sure = json.loads(out.read_text())
    assert (everything["masks_on_nobody"], sure["masks_on_nobody"]) == (1, 0)
    assert sure["least_score"] == 0.5 and "least_score" not in everything
    assert main(command(folder, "--poses", "gt", "--masks", "limbs", "--least-score", 0.5)) == 2
    assert "--least-score is for masks that were found" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a": 1}, "it holds a dict"),
        ([{"score": 1}], "entry 0: KeyError 'image_id'"),
        ([{"image_id": 9, "score": 1, "segmentation": {}}], "entry 0: KeyError 9"),
        ([{"image_id": 1, "score": 1, "segmentation": {"size": [4, 4], "counts": "0"}}], r"an RLE of \[4, 4\] px in a"),
        ([{**results()[0], "score": float("inf")}], "score is inf"),
        ([{**results()[0], "segmentation": [[1, 2, 3]]}], "entry 0: TypeError"),
    ],
)
def test_results_that_are_none_are_named(
    photos: list[Photo], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, said: str
) -> None:
    file = tmp_path / "masks.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=said):
        read_results(file, photos)
    assert main(command(folder, "--results", file)) == 2
    assert "expected a list of COCO results" in capsys.readouterr().err


def test_the_command_says_what_is_wrong(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(folder, "--resamples", -1)) == 2
    assert "--resamples must be at least 0" in capsys.readouterr().err
    assert main(command(folder, "--set", "model.align.box=joints")) == 2
    assert "give --checkpoint" in capsys.readouterr().err
    assert main(command(folder, "--results", tmp_path / "missing.json")) == 2
    assert "missing.json" in capsys.readouterr().err


def test_exclusive_masks_confuse_no_more_people(folder: Path, tmp_path: Path) -> None:
    """The installed model on the drawn blocks: px that two masks claim go to one, so fewer lie on somebody else."""
    figures = {}
    for masks in ("overlapping", "exclusive"):
        out = tmp_path / f"{masks}.json"
        assert main(command(folder, "--masks", masks, "--json", out, "--resamples", 0, "--threads", 1)) == 0
        figures[masks] = json.loads(out.read_text())
    assert figures["exclusive"]["masks"] == "exclusive" and figures["overlapping"]["masks"] == "overlapping"
    assert main(command(folder, "--json", tmp_path / "default.json", "--resamples", 0, "--threads", 1)) == 0
    assert json.loads((tmp_path / "default.json").read_text()) == figures["exclusive"]
    # Confusion of all px together; a single mask's share may rise when it loses px of its own.
    assert (
        figures["exclusive"]["all"]["confusion"]["of_all_px"] <= figures["overlapping"]["all"]["confusion"]["of_all_px"]
    )
