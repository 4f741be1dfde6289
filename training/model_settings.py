"""What a network is made of and how people are cut out for it: one field for each choice of the paper's ablations.

Nested settings are written with dots (``align.mode``), as in recipes, in errors and in `--set align.mode=roi`.
Section numbers are those of the table in docs/paper.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from kernels.coordinates import F32
from kernels.pose_fit import PAPER_TEMPLATES, prepare_templates

KEYPOINTS = ("centre", "embedding", "affinity", "personlab")  # keypoint networks, by how their joints become people
OWN_WIDTH = {"live": 48, "paper": 256, "mask_rcnn": 256}  # channels of the features and of the mask part, by family
PUBLISHED_BY_IMPORTANCE = (0, 2, 1)  # of `PAPER_TEMPLATES`: whole body, half body, whole body from behind


def one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise ValueError with the allowed values if ``value`` is none of them."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")


def yes_or_no(owner: Any, prefix: str, *names: str) -> None:
    """Raise ValueError if a switch holds something else than true or false."""
    for name in names:
        if not isinstance(getattr(owner, name), bool):
            raise ValueError(f"{prefix}.{name} must be true or false, got {getattr(owner, name)!r}")


@dataclass(frozen=True, kw_only=True)
class BackboneSettings:
    """ResNet of the family `paper`."""

    width: int = 64  # channels of the stem; ResNet-50 has 64
    stride_in: str = "3x3"  # convolution that carries a stage's stride; "1x1" is what the authors' weights grew up with

    def __post_init__(self) -> None:
        one_of("backbone.stride_in", self.stride_in, ("3x3", "1x1"))
        if self.width < 1:
            raise ValueError(f"backbone.width must be at least 1, got {self.width}")


@dataclass(frozen=True, kw_only=True)
class DetectorSettings:
    """The family `mask_rcnn`; see `training.mask_rcnn`."""

    backbone: str = (
        "resnet50"  # below the FPN; movenet: the trunk of the family `live`, which keeps its initial weights
    )
    norm: str = "frozen"  # frozen: norm layers keep what the initial weights say; batch: they learn, for random weights
    trained_stages: int = 3  # of the ResNet, from the last one back; 5: all. The rest keeps its initial weights
    rois: int = 512  # proposals of a picture that the heads learn from; people are a quarter of them at most

    def __post_init__(self) -> None:
        one_of("detector.backbone", self.backbone, ("resnet50", "movenet"))
        one_of("detector.norm", self.norm, ("frozen", "batch"))
        one_of("detector.trained_stages", self.trained_stages, (0, 1, 2, 3, 4, 5))
        if self.backbone == "movenet" and (self.norm, self.trained_stages) != ("frozen", 3):
            raise ValueError("detector.norm and detector.trained_stages belong to detector.backbone resnet50")
        if not isinstance(self.rois, int) or self.rois < 4:
            raise ValueError(f"detector.rois must be a whole number of at least 4, got {self.rois!r}")


@dataclass(frozen=True, kw_only=True)
class SegSettings:
    """SegModule of the family `paper`."""

    units: int = 10  # residual units before the decoder (Table 4: 5, 10, 15, 20)

    def __post_init__(self) -> None:
        if not isinstance(self.units, int) or self.units < 1:
            raise ValueError(f"seg.units must be a whole number of at least 1, got {self.units!r}")


@dataclass(frozen=True, kw_only=True)
class SkeletonSettings:
    """The skeleton drawn for the SegModule."""

    enabled: bool = True  # off: the SegModule sees aligned features only (Table 5)
    negative_occluded: bool = True  # a hidden joint is a negative blob; off: hidden and visible joints look the same
    neighbours: bool = False  # draw the picture's other people, too (ours, not the paper's): `kernels.neighbours`

    def __post_init__(self) -> None:
        yes_or_no(self, "skeleton", "enabled", "negative_occluded", "neighbours")
        if self.neighbours and not self.enabled:
            raise ValueError("skeleton.neighbours needs skeleton.enabled")


@dataclass(frozen=True, kw_only=True)
class AlignSettings:
    """How a person's window is found, and how features are read in it."""

    mode: str = "affine"  # affine: similarity to the best template; roi: an upright box, stretched (RoI-Align)
    box: str = "gt"  # of mode roi: annotated box, or box around the joints
    expand: float = 0.0  # of box joints: its width and height grow by this share about its middle
    min_scale_rule: bool = True  # a fit must magnify more than the window of the whole picture does
    hard_rule: bool = True  # a template lacking one of the person's joints is out
    score: str = "ref"  # what rates a fit: the released code's formula, or Eq. 5 as printed
    compat: str = "exact"  # where features are read; ref_pt10, ref_pt13: as the released code reads them in old and new
    # PyTorch, see `training.windows.reference_sampling`

    def __post_init__(self) -> None:
        one_of("align.mode", self.mode, ("affine", "roi"))
        one_of("align.box", self.box, ("gt", "joints"))
        one_of("align.score", self.score, ("ref", "paper"))
        one_of("align.compat", self.compat, ("exact", "ref_pt10", "ref_pt13"))
        yes_or_no(self, "align", "min_scale_rule", "hard_rule")
        if not 0 <= self.expand <= 10:
            raise ValueError(f"align.expand must be from 0 to 10, got {self.expand}")
        if self.mode == "affine" and (self.box != "gt" or self.expand):
            raise ValueError("align.box and align.expand belong to align.mode roi, not to affine")
        if self.box == "gt" and self.expand:
            raise ValueError(
                f"align.expand grows boxes around joints: set align.box joints, or expand 0 ({self.expand})"
            )


@dataclass(frozen=True, kw_only=True)
class TemplateSettings:
    """Which of the published templates poses are fitted to."""

    k: int = 3  # 3: front, half body, behind; 2: front and half body; 1: front
    factor: float = 1.0  # enlarges the templates; above 1 the window is tighter around the person

    def __post_init__(self) -> None:
        one_of("templates.k", self.k, (1, 2, 3))
        if not 0.1 <= self.factor <= 10:
            raise ValueError(f"templates.factor must be from 0.1 to 10, got {self.factor}")

    def prepared(self) -> F32:
        """(2k, 17, 3) templates as `kernels.pose_fit.fit_poses` takes them."""
        chosen = sorted(PUBLISHED_BY_IMPORTANCE[: self.k])
        return prepare_templates(PAPER_TEMPLATES[chosen], factor=self.factor)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The network; stored in every checkpoint."""

    family: str = "live"
    keypoints: str = "centre"  # keypoint network of the family `live`, one of `KEYPOINTS`
    feature_channels: int = 0  # 0: the family's own, `OWN_WIDTH`
    seg_width: int = 0  # as above
    seg_dilations: tuple[int, ...] = (1, 2, 4, 1, 2, 4)  # residual units of the family `live`
    roi_size: int = 64
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    detector: DetectorSettings = field(default_factory=DetectorSettings)
    seg: SegSettings = field(default_factory=SegSettings)
    skeleton: SkeletonSettings = field(default_factory=SkeletonSettings)
    align: AlignSettings = field(default_factory=AlignSettings)
    templates: TemplateSettings = field(default_factory=TemplateSettings)

    def __post_init__(self) -> None:
        one_of("family", self.family, tuple(OWN_WIDTH))
        one_of("keypoints", self.keypoints, KEYPOINTS)
        if self.family != "live" and self.keypoints != "centre":
            raise ValueError(
                f"keypoints {self.keypoints} belongs to the family live, not to {self.family}: leave it out"
            )
        for name in ("feature_channels", "seg_width"):
            if getattr(self, name) == 0:
                object.__setattr__(self, name, OWN_WIDTH[self.family])
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}")
        if self.roi_size < 8 or self.roi_size % 2:
            raise ValueError(f"roi_size must be even and at least 8 px, got {self.roi_size}")
        plain = ModelSettings.__dataclass_fields__
        if self.family == "mask_rcnn":
            plain_parts = {name: kind() for name, kind in NESTED.items() if name != "detector"}
            plain_parts |= {name: plain[name].default for name in ("seg_dilations", "roi_size")}
            foreign = [name for name, value in plain_parts.items() if getattr(self, name) != value]
            if foreign:
                raise ValueError(f"{', '.join(foreign)} belong to networks that are given poses, this is mask_rcnn")
            return
        if self.detector != DetectorSettings():
            raise ValueError(f"detector belongs to the family mask_rcnn, this is {self.family}")
        if self.family == "live":
            own_to_paper = {
                "backbone": self.backbone != BackboneSettings(),
                "seg.units": self.seg != SegSettings(),
                "align.compat": self.align.compat != "exact",
            }
            if any(own_to_paper.values()):
                names = ", ".join(name for name, is_set in own_to_paper.items() if is_set)
                raise ValueError(f"{names} belong to the family paper, this is live")
        elif self.seg_dilations != plain["seg_dilations"].default:
            raise ValueError("seg_dilations belong to the family live; the family paper has seg.units")


NESTED = {
    "backbone": BackboneSettings,
    "detector": DetectorSettings,
    "seg": SegSettings,
    "skeleton": SkeletonSettings,
    "align": AlignSettings,
    "templates": TemplateSettings,
}


def checked_part(kind: Any, content: dict[str, Any], what: str) -> Any:
    """Settings within settings.

    Raises:
        ValueError: names unknown and missing keys, or a value that is not allowed.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{what} must be a JSON object, got {content!r}")
    fields = dataclasses.fields(kind)
    known = {f.name for f in fields}
    unknown = sorted(set(content) - known)
    if unknown:
        raise ValueError(f"unknown settings {', '.join(unknown)} of {what}; known are {', '.join(sorted(known))}")
    required = (f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING)
    missing = [name for name in required if name not in content]
    if missing:
        raise ValueError(f"{what} lacks {', '.join(missing)}")
    return kind(**content)


def model_settings_from_json(content: dict[str, Any]) -> ModelSettings:
    """Model settings out of a recipe or a checkpoint; what is absent has its default.

    Raises:
        ValueError: an unknown key or a value that is not allowed.
    """
    chosen = dict(content)
    if "seg_dilations" in chosen:
        chosen["seg_dilations"] = tuple(chosen["seg_dilations"])
    for name, kind in NESTED.items():
        if name in chosen and not isinstance(chosen[name], kind):
            chosen[name] = checked_part(kind, chosen[name], f"the model's {name}")
    settings: ModelSettings = checked_part(ModelSettings, chosen, "the model")
    return settings
