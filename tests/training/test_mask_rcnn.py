"""Mask R-CNN through torchvision: its data, its weights, learning, resuming, and the same figures by the same command.

Tests marked `torchvision` need one that fits the PyTorch beside it; the pinned test environment has none.
"""

from __future__ import annotations

import builtins
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from kernels.letterbox import plan_letterbox
from tests.training.drawn_people import COLOURS, annotation, background, drawn_mask, drawn_pose, paint, write_coco
from tests.training.published_weights import published
from training import evaluate, evaluate_occlusion
from training.checkpoint import load_weights
from training.dataset import CocoFolder, DataError, SceneDataset, letterbox_scene
from training.export_onnx import ExportError, require_servable
from training.mask_rcnn import (
    COCO_CLASSES,
    MaskRcnnDetector,
    MaskRcnnNetwork,
    MaskRcnnTrainer,
    frame_boxes,
    import_torchvision,
    load_detector_trunk,
    load_mask_rcnn,
    one_class,
    scene_target,
)
from training.model import LiveNetwork
from training.model_settings import ModelSettings, model_settings_from_json
from training.settings import PARTS, TrainSettings, settings_from_json
from training.train import build_optimiser, main, new_network, train

RANDOM = {"family": "mask_rcnn", "detector": {"norm": "batch", "trained_stages": 5}}
ON_MOVENET = {"family": "mask_rcnn", "detector": {"backbone": "movenet", "rois": 16}}


def detector_run(data: Path, output: Path, **changes: Any) -> TrainSettings:
    content = {
        "model": RANDOM,
        "sources": [{"annotations": "people/annotations.json", "images": "people/images", "photo_weight": 1.0}],
        "compose_weight": 0.0,
        "canvas": [128, 128],
        "view": "letterbox",
        "order": "epochs",
        "photometric": False,
        "steps": 4,
        "batch_size": 2,
        "schedule": "detectron",
        "optimiser": "sgd",
        "learning_rate": 0.005,
        "warmup_steps": 2,
        "ema": 0.0,
        "gradient_clip": 10.0,
        "workers": 0,
        "log_every": 1,
        "checkpoint_every": 100,
        **changes,
    }
    return settings_from_json(content, data=data, output=output)


# Without torchvision


def test_a_scenes_people_are_its_whole_masks_and_annotated_boxes(data: Path) -> None:
    folder = CocoFolder(data / "people/annotations.json", data / "people/images")
    scene = letterbox_scene(folder, folder.photos[0], 128)
    boxes, masks = scene_target(scene)
    assert boxes.shape == (1, 4) and masks.shape == (1, 128, 128)
    x, y, w, h = json.loads((data / "people/annotations.json").read_text())["annotations"][0]["bbox"]
    np.testing.assert_allclose(boxes[0], (x, y + 16, x + w, y + h + 16), atol=0.51)  # 128x96 pictures
    ys, xs = np.nonzero(masks[0])
    np.testing.assert_allclose((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1), boxes[0], atol=1.01)


def test_composed_people_are_their_visible_px(data: Path) -> None:
    settings = detector_run(data, Path("unused"), compose_weight=1.0, order="drawn", view="random")
    composing = replace(
        settings,
        sources=(replace(settings.sources[0], photo_weight=0.0, cutout_weight=1.0),),
        backgrounds=("backgrounds",),
    )
    dataset = SceneDataset(composing)
    crowds = [scene for scene in map(dataset.scene, range(20)) if scene.has_mask.sum() > 1]
    assert crowds
    for scene in crowds:
        boxes, masks = scene_target(scene)
        assert len(boxes) == len(masks) > 0
        assert (masks.sum(0) <= 1).all()  # nobody has a px of somebody else
        assert (boxes[:, 2:] - boxes[:, :2]).min() >= 1


def test_a_scene_without_masks_has_no_people(data: Path) -> None:
    folder = CocoFolder(data / "people/annotations.json", data / "people/images")
    scene = replace(letterbox_scene(folder, folder.photos[0], 128), has_mask=np.zeros(1, np.uint8))
    boxes, masks = scene_target(scene)
    assert boxes.shape == (0, 4) and masks.shape == (0, 128, 128)


def test_boxes_come_back_through_the_letterbox() -> None:
    plan = plan_letterbox(60, 100, long_side=200)  # twice as large: px edges stay px edges
    np.testing.assert_allclose(frame_boxes(np.array([[0, 0, 200, 120]], np.float32), plan), [[0, 0, 100, 60]])
    uneven = plan_letterbox(61, 100, long_side=50)  # 31 rows for 30.5
    np.testing.assert_allclose(frame_boxes(np.array([[10, 0, 50, 31]], np.float32), uneven), [[20, 0, 100, 61]], 1e-5)


def test_rows_of_background_and_person_are_taken_out_of_91_classes() -> None:
    rng = torch.Generator().manual_seed(0)
    tensors = {
        "roi_heads.box_predictor.cls_score.weight": torch.rand(COCO_CLASSES, 8, generator=rng),
        "roi_heads.box_predictor.bbox_pred.weight": torch.rand(4 * COCO_CLASSES, 8, generator=rng),
        "roi_heads.mask_predictor.mask_fcn_logits.bias": torch.rand(COCO_CLASSES, generator=rng),
        "roi_heads.mask_predictor.conv5_mask.bias": torch.rand(256, generator=rng),
    }
    chosen = one_class(tensors)
    for name, rows in zip(tensors, (2, 8, 2, 256), strict=True):
        torch.testing.assert_close(chosen[name], tensors[name][:rows], msg=name)
    two = {name: value[:2] for name, value in tensors.items()}
    assert one_class(two) is two


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"family": "mask_rcnn", "skeleton": {"enabled": False}}, "skeleton belong to networks that are given poses"),
        ({"family": "mask_rcnn", "roi_size": 32}, "roi_size belong to networks that are given poses"),
        ({"family": "paper", "detector": {"norm": "batch"}}, "detector belongs to the family mask_rcnn, this is paper"),
        ({"family": "mask_rcnn", "detector": {"norm": "group"}}, "detector.norm must be one of frozen, batch"),
        (
            {"family": "mask_rcnn", "detector": {"backbone": "vgg"}},
            "detector.backbone must be one of resnet50, movenet",
        ),
        (
            {"family": "mask_rcnn", "detector": {"backbone": "movenet", "trained_stages": 5}},
            "detector.norm and detector.trained_stages belong to detector.backbone resnet50",
        ),
        ({"family": "mask_rcnn", "detector": {"rois": 2}}, "detector.rois must be a whole number of at least 4, got 2"),
    ],
)
def test_settings_of_other_families_are_refused(model: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        model_settings_from_json(model)


def test_weights_of_other_families_are_refused(data: Path) -> None:
    with pytest.raises(ValueError, match="init_mask_rcnn belongs to the family mask_rcnn, this is live"):
        settings_from_json({"model": {}}, data=data, output="out", init_mask_rcnn="w.pth")
    with pytest.raises(ValueError, match="the family mask_rcnn has no keypoint heads: set init_movenet"):
        settings_from_json({"model": RANDOM}, data=data, output="out", init_movenet="m.onnx")
    with pytest.raises(ValueError, match=r"init_resnet and init_mask_rcnn belong to detector\.backbone resnet50"):
        settings_from_json({"model": ON_MOVENET}, data=data, output="out", init_resnet="r.pth")


def test_without_torchvision_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "torchvision":
            raise ModuleNotFoundError("No module named 'torchvision'", name="torchvision")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(
        ImportError, match=r"needs torchvision: install the extra mask-rcnn: pip install 'pose2seg-live"
    ):
        MaskRcnnNetwork(ModelSettings(family="mask_rcnn"))


def test_the_command_says_so_in_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent() -> Any:
        raise ImportError("the family mask_rcnn needs torchvision: install the extra mask-rcnn")

    monkeypatch.setattr("training.mask_rcnn.import_torchvision", absent)
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"model": RANDOM, "compose_weight": 0}))
    assert main(["--recipe", str(recipe), "--data", str(data), "--output", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == "error: the family mask_rcnn needs torchvision: install the extra mask-rcnn\n"


class OneBox:
    """A detector that has learned one thing: the drawn person's own colour."""

    def people(self, image: np.ndarray, long_side: int) -> tuple[list[dict], np.ndarray]:
        found = (np.abs(image.astype(int) - COLOURS[1]) < 80).all(-1).astype(np.uint8)
        rles = [coco_mask.encode(np.asfortranarray(mask)) for mask in (found, 1 - found)]
        return rles, np.array([0.9, 0.3], np.float32)


def test_a_detector_is_scored_by_the_same_figures(data: Path, tmp_path: Path) -> None:
    pose = drawn_pose(20, 2, 90)
    mask = drawn_mask(pose)
    image = np.full((96, 128, 3), 250, np.uint8)
    image[mask > 0] = COLOURS[1]
    path = write_coco(tmp_path / "set", {1: image}, [annotation(1, 1, pose, mask)])
    folder = CocoFolder(path / "annotations.json", path / "images")
    figures, out = evaluate.evaluate(folder, OneBox(), long_side=128, poses="engine")
    assert figures["mask"]["AP"] == 1.0 and figures["mean_iou"] == 1.0  # the false one scores less and comes second
    assert figures["keypoints"] is None
    assert (figures["poses"], figures["masks"], figures["score"]) == ("none", "detector", "mask")
    assert [round(r["score"], 3) for r in out.mask_results] == [0.9, 0.3]
    with pytest.raises(DataError, match=r"a detector finds people and masks by itself.*got gt, None and None"):
        evaluate.evaluate(folder, OneBox(), long_side=128, poses="gt")


def test_a_detector_is_measured_under_occlusion_too(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate_occlusion, "checkpoint_model", lambda *_: (OneBox(), 128))
    sets = ["--annotations", str(data / "people/annotations.json"), "--images", str(data / "people/images")]
    options = ["--checkpoint", "any", "--resamples", "0", "--json", str(tmp_path / "figures.json")]
    assert evaluate_occlusion.main([*sets, *options, "--poses", "engine"]) == 0
    assert json.loads((tmp_path / "figures.json").read_text())["masks"] == "detector"
    assert evaluate_occlusion.main([*sets, *options]) == 2
    assert "expected --poses engine" in capsys.readouterr().err


def test_a_detector_has_no_export() -> None:
    with pytest.raises(ExportError, match="the family mask_rcnn has no export"):
        require_servable(model_settings_from_json(RANDOM))


# With torchvision


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 around what is set, px edges."""
    ys, xs = np.nonzero(mask)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


@pytest.mark.torchvision
def test_the_parts_are_those_of_the_settings() -> None:
    network = MaskRcnnNetwork(ModelSettings(family="mask_rcnn"))
    assert tuple(name for name, _ in network.named_children()) == PARTS["mask_rcnn"]
    import torchvision

    whole = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2)
    ours = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    assert ours == {name for name in whole.state_dict() if not name.endswith("num_batches_tracked")}
    assert import_torchvision() is torchvision


@pytest.mark.torchvision
def test_the_network_is_torchvisions_own(tmp_path: Path) -> None:
    """Its file of 91 classes loads, and the masks are those that its own forward pass gives for the class person."""
    import torchvision

    torch.manual_seed(0)
    settings = model_settings_from_json(RANDOM)
    whole = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=2, min_size=128, max_size=128, box_score_thresh=0.05
    ).eval()
    with torch.no_grad():  # an untrained one finds nobody: everything with a box is a person
        whole.roi_heads.box_predictor.cls_score.bias += torch.tensor([0.0, 5.0])
        whole.roi_heads.mask_predictor.mask_fcn_logits.weight *= 0  # its masks are noise: whole boxes instead
        whole.roi_heads.mask_predictor.mask_fcn_logits.bias[:] = 3.0
    torch.save(whole.state_dict(), tmp_path / "two.pth")
    network = MaskRcnnNetwork(settings)
    load_mask_rcnn(network, tmp_path / "two.pth")
    image = background(3, 128, 128)
    with torch.no_grad():
        theirs = whole([torch.from_numpy(image).permute(2, 0, 1).float() / 255])[0]
    rles, scores = MaskRcnnDetector(network).people(image, 128)
    assert len(scores) == len(theirs["scores"]) > 0
    np.testing.assert_allclose(scores, theirs["scores"].numpy(), atol=1e-4)
    for rle, mask, box in zip(rles, theirs["masks"], theirs["boxes"].numpy(), strict=True):
        if min(box[2:] - box[:2]) < 2:
            continue  # may have no px whose centre lies inside
        expected, found = extent((mask[0] > 0.5).numpy()), extent(coco_mask.decode(rle) > 0)
        np.testing.assert_allclose(found, box, atol=0.75)  # to the nearest px; the value falls off at the edge
        np.testing.assert_allclose(found, expected, atol=1.01)  # torchvision's own are up to a px larger

    wide = {
        name: value.repeat(46, *[1] * (value.ndim - 1))[: len(value) // 2 * COCO_CLASSES]
        if name.startswith(("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits."))
        else value
        for name, value in whole.state_dict().items()
    }
    torch.save(wide, tmp_path / "coco.pth")
    again = MaskRcnnNetwork(settings)
    load_mask_rcnn(again, tmp_path / "coco.pth")
    for name, value in network.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, msg=name)

    broken = {**wide, "extra": torch.zeros(1)}
    broken.pop("rpn.head.cls_logits.bias")
    torch.save(broken, tmp_path / "broken.pth")
    with pytest.raises(ValueError, match=r"another network; missing: rpn.head.cls_logits.bias; unexpected: extra"):
        load_mask_rcnn(again, tmp_path / "broken.pth")


@pytest.mark.torchvision
def test_boxes_in_the_letterboxs_border_are_no_masks() -> None:
    """An untrained network that calls everything a person, on a picture that fills a third of its square."""
    torch.manual_seed(1)
    network = MaskRcnnNetwork(model_settings_from_json(RANDOM))
    with torch.no_grad():
        network.roi_heads.box_predictor.cls_score.bias += torch.tensor([0.0, 5.0])
    rles, scores = MaskRcnnDetector(network).people(background(5, 40, 128), 128)
    assert len(rles) == len(scores) > 0
    assert all(rle["size"] == [40, 128] for rle in rles)
    assert (np.diff(scores) <= 0).all()


@pytest.mark.torchvision
def test_imagenet_weights_start_the_trunk_and_early_stages_stay(tmp_path: Path, data: Path) -> None:
    import torchvision

    trunk = torchvision.models.resnet50(weights=None)
    torch.save(trunk.state_dict(), tmp_path / "resnet50.pth")
    settings = detector_run(
        data, tmp_path / "run", model={"family": "mask_rcnn"}, init_resnet=tmp_path / "resnet50.pth"
    )
    network = new_network(settings)
    torch.testing.assert_close(network.backbone.body.layer4[2].conv3.weight, trunk.layer4[2].conv3.weight)
    learned = {id(p) for group in build_optimiser(network, settings).param_groups for p in group["params"]}
    assert id(network.backbone.body.conv1.weight) not in learned
    assert id(network.backbone.body.layer1[0].conv1.weight) not in learned
    assert id(network.backbone.body.layer2[0].conv1.weight) in learned
    with pytest.raises(ValueError, match="holds another network; missing"):
        torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "half.pth")
        load_detector_trunk(network, tmp_path / "half.pth")
    with pytest.raises(
        ValueError, match="norm layers that never learn need weights: give init_mask_rcnn or init_resnet"
    ):
        new_network(detector_run(data, tmp_path / "run", model={"family": "mask_rcnn"}))


@pytest.mark.torchvision
def test_masks_of_two_classes_start_undecided(data: Path) -> None:
    settings = detector_run(data, Path("unused"))
    network = new_network(settings)
    dataset = SceneDataset(settings)
    scenes = [dataset.scene(i) for i in range(2)]
    image = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
    losses = MaskRcnnTrainer(network, settings)(image, scenes, np.random.default_rng(0))
    assert float(losses["mask"].detach()) == pytest.approx(np.log(2), abs=0.1)


@pytest.mark.slow
@pytest.mark.torchvision
@pytest.mark.timeout(1200)
def test_heads_learn_on_movenets_trunk_which_stays(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    source = LiveNetwork(ModelSettings()).eval()
    movenet = published(source).write(tmp_path / "movenet.onnx")
    with pytest.raises(ValueError, match="MoveNet's trunk never learns here and needs weights: give init_movenet"):
        new_network(detector_run(data, tmp_path / "run", model=ON_MOVENET))

    settings = detector_run(data, tmp_path / "run", model=ON_MOVENET, steps=2, init_movenet=movenet)
    network = new_network(settings)
    image = torch.from_numpy(background(1, 64, 96)).permute(2, 0, 1)[None]
    seen = []
    network.backbone.body.register_forward_hook(lambda _module, _inputs, levels: seen.append(levels))
    network.eval()(image)
    with torch.no_grad():
        levels, trunk = source.trunk(image)
        read = network.backbone.top_down(seen[0])
    for name, level in levels.items():
        torch.testing.assert_close(seen[0][name], level, rtol=1e-3, atol=1e-3, msg=name)  # 2/255, rounded and not
    torch.testing.assert_close(read, trunk, rtol=1e-3, atol=1e-3)

    checkpoint = train(settings)
    learned, started = load_weights(checkpoint).state_dict(), new_network(settings).state_dict()
    for name, value in learned.items():
        frozen = name.startswith(("backbone.body.", "backbone.top_down."))
        if frozen:
            assert torch.equal(value, started[name]), name
    assert not torch.equal(
        learned["backbone.fpn.inner_blocks.0.0.weight"], started["backbone.fpn.inner_blocks.0.0.weight"]
    )
    assert not torch.equal(learned["backbone.norms.0.running_mean"], started["backbone.norms.0.running_mean"])
    arguments = ["--annotations", str(data / "people/annotations.json"), "--images", str(data / "people/images")]
    assert evaluate.main([*arguments, "--checkpoint", str(checkpoint)]) == 0


@pytest.mark.slow
@pytest.mark.torchvision
@pytest.mark.timeout(1200)
def test_it_learns_resumes_and_is_evaluated_by_the_same_commands(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order are other bits
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    straight = train(detector_run(data, tmp_path / "straight", steps=2))
    history = json.loads((straight / "state.json").read_text())["history"]
    logged = [entry for entry in history if "classifier" in entry]
    assert {"classifier", "box_reg", "mask", "objectness", "rpn_box_reg"} <= set(logged[0])
    assert all(np.isfinite(entry["mask"]) for entry in logged)

    train(detector_run(data, tmp_path / "broken", steps=2), stop_after=1)
    resumed = train(detector_run(data, tmp_path / "broken", steps=2))
    first, second = load_weights(straight), load_weights(resumed)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name

    arguments = ["--annotations", str(data / "people/annotations.json"), "--images", str(data / "people/images")]
    figures = tmp_path / "figures.json"
    assert evaluate.main([*arguments, "--checkpoint", str(straight), "--json", str(figures)]) == 0
    written = json.loads(figures.read_text())
    assert written["masks"] == "detector" and written["people_with_mask"] == 4
    assert written["long_side"] == 128  # the canvas it was trained on
    assert 0 <= written["mask"]["AP"] <= 1
    assert evaluate.main([*arguments, "--checkpoint", str(straight), "--poses", "gt"]) == 2
    assert "a detector finds people and masks by itself" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.torchvision
@pytest.mark.timeout(1200)
def test_it_over_fits_four_pictures(tmp_path: Path) -> None:
    """Eighty steps on four drawn people: the losses of the masks and of the classes fall by more than half."""
    images, annotations = {}, []
    for number in range(1, 5):
        image, pose = background(number), drawn_pose(10 + 8 * number, 2, 90)
        mask = drawn_mask(pose)
        paint(image, mask, COLOURS[1])
        images[number] = image
        annotations.append(annotation(number, number, pose, mask))
    write_coco(tmp_path / "people", images, annotations)
    checkpoint = train(
        detector_run(tmp_path, tmp_path / "run", steps=80, optimiser="adamw", learning_rate=5e-4, schedule="cosine")
    )
    logged = [e for e in json.loads((checkpoint / "state.json").read_text())["history"] if "mask" in e]
    early, late = (
        {k: np.mean([e[k] for e in part]) for k in ("mask", "classifier")} for part in (logged[:5], logged[-5:])
    )
    print("losses at first", early, "at last", late)
    assert late["mask"] < 0.5 * early["mask"]
    assert late["classifier"] < 0.5 * early["classifier"]
