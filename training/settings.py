"""Every choice of a training run, stored as JSON in each checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.model_settings import ModelSettings, checked_part, model_settings_from_json, one_of

# Settings that a resumed run may change: its length, where things are, and when it reports.
MAY_CHANGE = (
    "data",
    "output",
    "init_movenet",
    "init_resnet",
    "init_mask_rcnn",
    "init_checkpoint",
    "init_artifact",
    "steps",
    "workers",
    "log_every",
    "validate_every",
    "checkpoint_every",
)


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """One COCO-format data set below the data folder and what it is used for."""

    annotations: str
    images: str  # folder or zip
    photo_weight: float = 0.0  # share of samples that are views of its photographs
    cutout_weight: float = 0.0  # share of the people cut out of it in composed scenes
    complete: bool = False  # every person is annotated: unlabelled regions are background for the keypoint heads
    holdout_every: int = 0  # pictures whose id is divisible by this are kept out of training; 0 keeps none
    hold_back_tenth: bool = False  # keep the tenth that `training.compose_benchmark` reports on out of the run

    def __post_init__(self) -> None:
        if not isinstance(self.hold_back_tenth, bool):
            raise ValueError(f"hold_back_tenth of a source must be true or false, got {self.hold_back_tenth!r}")


MASK_PART_LEARNS = {
    "backbone": 0.0,
    "top_down": 0.0,
    "keypoint_heads": 0.0,
    "mask_laterals": 1.0,
    "seg_module": 1.0,
}  # parts of the network and their default rates; a recipe names those it changes


SCHEDULES: dict[str, tuple[float, ...]] = {  # shares of a run after which the rate drops to a tenth
    "cosine": (),
    "paper": (33 / 40,),
    "release": (15 / 25, 20 / 25),
    "detectron": (6 / 9, 8 / 9),
}


def parts_of(model: ModelSettings) -> dict[str, float]:
    """Parts of a network by name, with their default rates."""
    if model.family != "live":
        return dict.fromkeys(PARTS[model.family], 1.0)
    return dict(MASK_PART_LEARNS) if model.keypoints == "centre" else {**MASK_PART_LEARNS, "grouping_heads": 1.0}


SCORES = ("one", "pose", "mask", "pose*mask")  # of a mask in an evaluation
PARTS = {
    "live": tuple(MASK_PART_LEARNS),
    "paper": ("backbone", "seg_module"),
    "mask_rcnn": ("backbone", "rpn", "roi_heads"),
}
WITHOUT_KEYPOINTS: dict[str, Any] = {  # defaults of recipes whose model has no keypoint heads
    "relative_rate_parts": (),
    "keypoint_loss_weight": 0.0,
    "predicted_pose_share": 0.0,
}


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """How masks are scored where a run validates itself."""

    score: str = "auto"  # auto: one for true poses, pose*mask for found ones; or one of `SCORES`

    def __post_init__(self) -> None:
        one_of("eval.score", self.score, ("auto", *SCORES))


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of `python -m training.train`; each field is one flag or one key of the recipe file."""

    data: Path  # folder the sources are relative to
    output: Path  # checkpoints, log and plots go here
    model: ModelSettings = field(default_factory=ModelSettings)
    sources: tuple[SourceSettings, ...] = ()
    backgrounds: tuple[str, ...] = ()  # folders of pictures without people, relative to `data`
    compose_weight: float = 0.6  # share of samples composed from cut-out people
    close_share: float = 0.0  # of the people beside somebody in composed scenes: as good as in the same place
    canvas: tuple[int, int] = (256, 320)  # height, width of a training picture, multiples of 32
    view: str = "random"  # random: turned and scaled views; letterbox: whole photographs, centred in a square canvas
    order: str = "drawn"  # drawn: samples with replacement, by weight; epochs: every photograph once, then again
    photometric: bool = True  # random exposure, colour, blur, noise and compression
    init_movenet: Path | None = None  # ONNX file the backbone and the keypoint heads start from, or a detector's trunk
    init_resnet: Path | None = None  # ImageNet weights of ResNet-50: of the paper's backbone or Mask R-CNN's
    init_mask_rcnn: Path | None = None  # weights of torchvision's Mask R-CNN to start from
    init_checkpoint: Path | None = None  # checkpoint folder to start from (weights only)
    init_artifact: Path | None = None  # model folder (as `training.export_onnx` writes it) to start from
    seed: int = 0
    steps: int = 6000
    batch_size: int = 8  # pictures per step and process
    max_rois: int = 20  # people per step and process that the mask loss sees
    learning_rate: float = 2e-3
    schedule: str = (
        "cosine"  # cosine | paper (x0.1 after 33/40 of the steps) | release (x0.1, x0.01 after 15/25 and 20/25)
        # | detectron (x0.1, x0.01 after 6/9 and 8/9)
    )
    lr_scale: dict[str, float] = field(
        default_factory=lambda: dict(MASK_PART_LEARNS)
    )  # per part of the network; 0 freezes it
    relative_rate_parts: tuple[str, ...] = ("backbone", "top_down", "keypoint_heads")
    # Rates of these parts are multiples of each tensor's own RMS: their norm layers were folded into the convolutions,
    # which left tensors of 0.0005 to 37 RMS; one Adam step of a common rate would wreck the small ones.
    warmup_steps: int = 150
    weight_decay: float = 0.03
    optimiser: str = "adamw"  # adamw | adam (the paper's release: weight decay 0) | sgd (Detectron: momentum 0.9)
    gradient_clip: float = 5.0
    ema: float = 0.998
    mask_loss_weight: float = 3.0
    stranger_weight: float = 0.0  # how much more px of other people count in the mask loss
    dice_weight: float = 0.5  # of the Dice term beside the cross-entropy; the paper has none
    roi_augmentation_share: float = 0.85  # share of ROIs that are turned, scaled and shifted; the release: all
    pose_jitter: bool = True  # true poses get the errors of found ones; the paper: never
    keypoint_loss_weight: float = 1.0  # 0 also freezes the keypoint heads and ends distillation
    heatmap_loss: str = "squared"  # of keypoints embedding and affinity: squared, as published, or entropy
    distill_weight: float = 0.0  # of staying close to the initial weights (`init_movenet`) where people are unlabelled
    predicted_pose_share: float = 0.5  # share of ROIs that use the network's own decoded pose where it finds the person
    workers: int = 1
    amp: bool = True  # half precision on a GPU
    amp_cpu: bool = False  # bfloat16 on a CPU: half again as fast where it has AMX, slower where it has not
    log_every: int = 20
    validate_every: int = 1000
    checkpoint_every: int = 250
    eval: EvalSettings = field(default_factory=EvalSettings)

    def __post_init__(self) -> None:
        if any(side % 32 for side in self.canvas):
            raise ValueError(f"canvas must be multiples of 32, got {self.canvas}")
        one_of("schedule", self.schedule, tuple(SCHEDULES))
        one_of("optimiser", self.optimiser, ("adamw", "adam", "sgd"))
        one_of("heatmap_loss", self.heatmap_loss, ("squared", "entropy"))
        one_of("view", self.view, ("random", "letterbox"))
        one_of("order", self.order, ("drawn", "epochs"))
        if self.view == "letterbox" and self.canvas[0] != self.canvas[1]:
            raise ValueError(f"view letterbox needs a square canvas, got {self.canvas}")
        composes = self.compose_weight > 0 or any(source.cutout_weight > 0 for source in self.sources)
        if self.order == "epochs" and composes:
            raise ValueError("order epochs goes through photographs: set compose_weight and cutout_weight to 0")
        family = self.model.family
        if family == "live" and self.init_resnet is not None:
            raise ValueError("init_resnet belongs to paper and mask_rcnn; the family live has init_movenet")
        if family != "mask_rcnn" and self.init_mask_rcnn is not None:
            raise ValueError(f"init_mask_rcnn belongs to the family mask_rcnn, this is {family}")
        if family == "live" and self.model.keypoints != "centre":
            if self.distill_weight > 0:
                raise ValueError(
                    f"distill_weight belongs to keypoints centre, the network that MoveNet is; set it to 0 for "
                    f"{self.model.keypoints}"
                )
            object.__setattr__(self, "lr_scale", {**parts_of(self.model), **self.lr_scale})
        on_movenet = family == "mask_rcnn" and self.model.detector.backbone == "movenet"
        if on_movenet and (self.init_resnet is not None or self.init_mask_rcnn is not None):
            raise ValueError(
                "init_resnet and init_mask_rcnn belong to detector.backbone resnet50; movenet has init_movenet"
            )
        if family != "live":
            wanted = {"keypoint_loss_weight": 0, "predicted_pose_share": 0, "distill_weight": 0}
            if not on_movenet:
                wanted["init_movenet"] = None
            wrong = [f"{name} {value}" for name, value in wanted.items() if getattr(self, name) != value]
            if wrong:
                raise ValueError(f"the family {family} has no keypoint heads: set {', '.join(wrong)}")
            if set(self.lr_scale) != set(PARTS[family]):
                raise ValueError(f"lr_scale must name {', '.join(PARTS[family])}, got {', '.join(self.lr_scale)}")

    def rate_scale(self, part: str) -> float:
        """`lr_scale` of a part of the network; heads are frozen where no loss would teach them."""
        of_keypoints, of_masks = ("keypoint_heads", "grouping_heads"), ("mask_laterals", "seg_module")
        untaught = (self.keypoint_loss_weight == 0 and part in of_keypoints) or (
            self.mask_loss_weight == 0 and part in of_masks
        )
        return 0.0 if untaught else self.lr_scale.get(part, 0.0)

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))  # type: ignore[no-any-return]


def settings_from_json(content: dict[str, Any], **overrides: Any) -> TrainSettings:
    """Settings out of a recipe or a checkpoint; unknown keys are an error, keyword arguments win.

    Raises:
        ValueError: an unknown key or a value that is not allowed.
    """
    merged = {**content, **{key: value for key, value in overrides.items() if value is not None}}
    known = {f.name for f in dataclasses.fields(TrainSettings)}
    unknown = sorted(set(merged) - known)
    if unknown:
        raise ValueError(f"unknown training settings {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    for name in ("data", "output", "init_movenet", "init_resnet", "init_mask_rcnn", "init_checkpoint", "init_artifact"):
        if merged.get(name) is not None:
            merged[name] = Path(merged[name])
    if isinstance(merged.get("model"), dict):
        merged["model"] = model_settings_from_json(merged["model"])
    if (family := merged.get("model", ModelSettings()).family) != "live":
        merged = {"lr_scale": dict.fromkeys(PARTS[family], 1.0), **WITHOUT_KEYPOINTS, **merged}
    if isinstance(merged.get("eval"), dict):
        merged["eval"] = checked_part(EvalSettings, merged["eval"], "eval")
    if "lr_scale" in merged:
        model = merged.get("model", ModelSettings())
        parts = parts_of(model)
        foreign = sorted(set(merged["lr_scale"]) - set(parts))
        if foreign:
            raise ValueError(f"lr_scale names {', '.join(foreign)}; parts are {', '.join(parts)}")
        merged["lr_scale"] = {**parts, **merged["lr_scale"]}
    merged["sources"] = tuple(
        s if isinstance(s, SourceSettings) else checked_part(SourceSettings, s, "a source")
        for s in merged.get("sources", ())
    )
    for name in ("backgrounds", "canvas", "relative_rate_parts"):
        if name in merged:
            merged[name] = tuple(merged[name])
    return TrainSettings(**merged)


def with_changes(content: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """JSON settings with some replaced, as `--set` names them: ``model.align.mode=roi``, ``steps=5``.

    Args:
        content: of a recipe or checkpoint; not changed.
        changes: dotted name, equals sign, JSON value; a word needs no quotes.

    Raises:
        ValueError: no equals sign, or a name that leads through something that holds no settings.
    """
    result: dict[str, Any] = json.loads(json.dumps(content))
    for change in changes:
        name, sign, text = change.partition("=")
        if not sign or not name:
            raise ValueError(f"expected NAME=VALUE such as model.align.mode=roi, got {change!r}")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        *path, last = name.split(".")
        place = result
        for step in path:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise ValueError(f"{change!r}: {step} holds a value, not settings")
        place[last] = value
    return result


def changed_settings(stored: dict[str, Any], given: TrainSettings) -> list[str]:
    """What a run would continue with other settings than its checkpoint has, but for those in `MAY_CHANGE`.

    Args:
        stored: `TrainSettings.to_json` of the checkpoint. A key it lacks is younger than the checkpoint and counts as
            its default.
        given: the settings of the run.

    Returns:
        One phrase for each difference, with the setting's name (``lr_scale.backbone``, ``sources[0].complete``) and
        both values.

    Raises:
        ValueError: the stored settings are not of this version.
    """
    old, new = (
        dict(_flat("", {name: value for name, value in settings.to_json().items() if name not in MAY_CHANGE}))
        for settings in (settings_from_json(stored, data=given.data, output=given.output), given)
    )
    return [
        f"{name} was {_shown(old, name)}, now {_shown(new, name)}"
        for name in sorted(old.keys() | new.keys())
        if name not in old or name not in new or old[name] != new[name]
    ]


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """JSON as (dotted name, number or text) pairs."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else key, inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _flat(f"{name}[{index}]", inner)
    else:
        yield name, value


def _shown(values: dict[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "absent"
