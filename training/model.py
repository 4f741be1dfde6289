"""The `live` network family: one backbone pass serves both the keypoint heads and the mask features.

    image [B, 3, H, W] RGB 0..255, H and W multiples of 32
      -> Backbone      inverted residuals (MobileNetV2 x1.5), levels c2..c5 and the stride-16 context level
      -> TopDown       merged to stride 4, 24 channels                       `trunk`
      -> KeypointHeads centre, regression, heatmaps, offsets at stride 4; with another grouping than `centre`
         GroupingHeads, whose maps that grouping reads, and of the former only what it shares
      -> MaskLaterals  own 1x1 laterals on every level, summed at stride 4    `features`, what the segment graph samples
    features + people's ROIs -> SegModule -> mask logits [N, S, S]

The layer shapes of backbone, top-down path and heads are those of MoveNet MultiPose Lightning, so that its published
weights can be the start (`movenet_weights.py`). At stride 2 the convolutions pad right and bottom only, as those
weights expect. Every grid of stride s follows the half-pixel rule: feature index = (x + 0.5) / s - 0.5
(`FEATURE_FROM_INPUT`). `y` stands before `x` in the channel pairs of regression and offsets.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kernels.personlab_decoding import MID_CHANNELS
from kernels.skeleton import LIMBS
from training.model_settings import ModelSettings
from training.windows import seg_channels, seg_inputs

STRIDE = 4
JOINTS = 17
FEATURE_FROM_INPUT = ((0.25, 0.0, -0.375), (0.0, 0.25, -0.375))

STEM_CHANNELS = 48
RESIDUALS = (  # (output channels, stride, expansion) of the inverted residuals
    (24, 1, 1),
    (40, 2, 6),
    (40, 1, 6),
    (48, 2, 6),
    (48, 1, 6),
    (48, 1, 6),
    (96, 2, 6),
    (96, 1, 6),
    (96, 1, 6),
    (96, 1, 6),
    (144, 1, 6),
    (144, 1, 6),
    (144, 1, 6),
    (240, 2, 6),
    (240, 1, 6),
    (240, 1, 6),
    (480, 1, 6),
)
LEVEL_AFTER = {2: "c2", 5: "c3", 9: "c4", 12: "context"}  # residual index -> level name; strides 4, 8, 16, 16
LEVEL_CHANNELS = {"c2": 40, "c3": 48, "c4": 96, "context": 144, "c5": 1280}
TRUNK_CHANNELS = 24
HEAD_CHANNELS = {"regression": 2 * JOINTS, "offsets": 2 * JOINTS, "heatmaps": JOINTS, "centre": 1}
HEAD_HIDDEN = 96
SHARED_HEADS = {"centre": tuple(HEAD_CHANNELS), "embedding": ("heatmaps",), "affinity": ("heatmaps",), "personlab": ()}
# MoveNet's heads that each kind of keypoint network has; PersonLab's heatmaps are discs and so not among them
GROUPING_CHANNELS = {
    "embedding": {"tags": JOINTS},
    "affinity": {"affinity_fields": 2 * len(LIMBS)},
    "personlab": {
        "heatmaps": JOINTS,
        "short_offsets": 2 * JOINTS,
        "mid_offsets": MID_CHANNELS,
        "long_offsets": 2 * JOINTS,
        "person": 1,
    },
}
GROUPING_WIDTH = 64  # channels that the heads of a grouping read
TAG_START = 0.6  # deviation of the last weights of tags, which start about 1 apart: nothing pushes equal ones apart
RARE = -3.0  # initial bias of logits of what few cells are
INPUT_SCALE = 0.007843017578125  # 2/255 as the published weights round it: x * scale - 1 is about -1..1


class PaddedConv(nn.Conv2d):
    """Convolution that keeps h, w at stride 1; at stride 2 it pads right and bottom only (even inputs)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, bias: bool = True):
        padding = 0 if stride == 2 else kernel // 2
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.stride[0] == 2 else x)


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1 without activation: [B, C, h, w] -> [B, outputs, h/stride, w/stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        self.expand = PaddedConv(inputs, hidden) if expansion > 1 else None
        self.depthwise = PaddedConv(hidden, hidden, 3, stride, groups=hidden)
        self.project = PaddedConv(hidden, outputs)
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        hidden = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(hidden), inplace=True))
        return x + y if self.adds_input else y


class Backbone(nn.Module):
    """[B, 3, H, W] in -1..1 -> levels by name: c2 /4, c3 /8, c4 /16, context /16, c5 /32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = PaddedConv(3, STEM_CHANNELS, 3, 2)
        widths = [STEM_CHANNELS, *(outputs for outputs, _, _ in RESIDUALS)]
        self.residuals = nn.ModuleList(InvertedResidual(widths[i], *block) for i, block in enumerate(RESIDUALS))
        self.top = PaddedConv(widths[-1], LEVEL_CHANNELS["c5"])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        levels = {}
        x = F.relu6(self.stem(x), inplace=True)
        for index, residual in enumerate(self.residuals):
            x = residual(x)
            if index in LEVEL_AFTER:
                levels[LEVEL_AFTER[index]] = x
        levels["c5"] = F.relu6(self.top(x), inplace=True)
        return levels


class SeparableConv(nn.Sequential):
    """Depthwise 3x3 without bias, pointwise 1x1, ReLU."""

    def __init__(self, inputs: int, outputs: int):
        depthwise = PaddedConv(inputs, inputs, 3, groups=inputs, bias=False)
        super().__init__(depthwise, PaddedConv(inputs, outputs), nn.ReLU(inplace=True))


def upsample(x: Tensor) -> Tensor:
    """Twice the height and width, bilinear, half-pixel rule."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class TopDown(nn.Module):
    """Levels c5, c4, c3, c2 -> one map at stride 4, [B, 24, H/4, W/4]."""

    def __init__(self) -> None:
        super().__init__()
        self.lateral = nn.ModuleDict(
            {
                level: PaddedConv(LEVEL_CHANNELS[level], width)
                for level, width in (("c5", 64), ("c4", 64), ("c3", 32), ("c2", 24))
            }
        )
        self.merge = nn.ModuleDict(
            {"c4": SeparableConv(64, 32), "c3": SeparableConv(32, 24), "c2": SeparableConv(24, TRUNK_CHANNELS)}
        )

    def forward(self, levels: dict[str, Tensor]) -> Tensor:
        x = self.lateral["c5"](levels["c5"])
        for level, merge in self.merge.items():
            x = merge(upsample(x) + self.lateral[level](levels[level]))
        return x


class KeypointHeads(nn.Module):
    """Trunk [B, 24, h, w] -> maps by name (`HEAD_CHANNELS`), raw: logits of centre and heatmaps, else cells."""

    def __init__(self, names: tuple[str, ...] = tuple(HEAD_CHANNELS)) -> None:
        super().__init__()
        self.head = nn.ModuleDict(
            {
                name: nn.Sequential(SeparableConv(TRUNK_CHANNELS, HEAD_HIDDEN), PaddedConv(HEAD_HIDDEN, channels))
                for name, channels in HEAD_CHANNELS.items()
                if name in names
            }
        )

    def forward(self, trunk: Tensor) -> dict[str, Tensor]:
        return {name: head(trunk) for name, head in self.head.items()}


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1):
        padding = dilation * (kernel // 2)
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class MaskLaterals(nn.Module):
    """Every backbone level and the trunk -> `features` [B, channels, H/4, W/4] for the SegModule."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = {**LEVEL_CHANNELS, "trunk": TRUNK_CHANNELS}
        self.lateral = nn.ModuleDict({level: nn.Conv2d(width, channels, 1) for level, width in widths.items()})
        self.refine = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            ConvNormAct(channels, channels, 3, groups=channels),
            ConvNormAct(channels, channels, 1),
        )

    def forward(self, levels: dict[str, Tensor], trunk: Tensor) -> Tensor:
        lateral = self.lateral
        x = upsample(lateral["c5"](levels["c5"])) + lateral["c4"](levels["c4"]) + lateral["context"](levels["context"])
        x = upsample(x) + lateral["c3"](levels["c3"])
        x = upsample(x) + lateral["c2"](levels["c2"]) + lateral["trunk"](trunk)
        return self.refine(x)


class GroupingHeads(nn.Module):
    """Every backbone level and the trunk -> maps by name (`GROUPING_CHANNELS`), raw: logits of heatmaps and person.

    What tells people apart is seen from further away than a joint is, and the 24 channels of the trunk were made for
    joints: these heads have laterals of their own, as the masks have.
    """

    def __init__(self, keypoints: str) -> None:
        super().__init__()
        self.laterals = MaskLaterals(GROUPING_WIDTH)
        self.head = nn.ModuleDict(
            {
                name: nn.Sequential(SeparableConv(GROUPING_WIDTH, HEAD_HIDDEN), PaddedConv(HEAD_HIDDEN, channels))
                for name, channels in GROUPING_CHANNELS[keypoints].items()
            }
        )
        for name in ("heatmaps", "person"):
            if name in self.head:
                nn.init.constant_(list(self.head[name].children())[-1].bias, RARE)
        if "tags" in self.head:
            nn.init.normal_(list(self.head["tags"].children())[-1].weight, std=TAG_START)

    def forward(self, levels: dict[str, Tensor], trunk: Tensor) -> dict[str, Tensor]:
        shared = self.laterals(levels, trunk)
        return {name: head(shared) for name, head in self.head.items()}


class ResidualUnit(nn.Module):
    """Dilated 3x3 and 1x1 with batch norm, added to the input."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.spread = ConvNormAct(channels, channels, 3, dilation=dilation)
        self.mix = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.mix(self.spread(x)), inplace=True)


class SegModule(nn.Module):
    """Aligned features and skeleton [N, inputs, S, S] -> mask logits [N, S, S].

    The paper's SegModule (section 3.4) at narrow width: a stride-2 stem, residual units, and a decoder back to S x S.
    The units are dilated so that few of them see the whole window; the decoder adds a stride-1 view of the features for
    fine edges.
    """

    def __init__(self, inputs: int, width: int, dilations: tuple[int, ...]):
        super().__init__()
        self.stem = ConvNormAct(inputs, width, 3, stride=2)
        self.units = nn.Sequential(*(ResidualUnit(width, dilation) for dilation in dilations))
        self.fine_channels = 16
        self.decode = ConvNormAct(width, 4 * self.fine_channels, 3)
        self.detail = nn.Conv2d(inputs, self.fine_channels, 1)
        self.out = nn.Sequential(
            nn.ReLU(inplace=True),
            ConvNormAct(self.fine_channels, self.fine_channels, 3),
            nn.Conv2d(self.fine_channels, 1, 3, padding=1),
        )

    def forward(self, aligned: Tensor) -> Tensor:
        coarse = F.pixel_shuffle(self.decode(self.units(self.stem(aligned))), 2)
        return self.out(coarse + self.detail(aligned)).squeeze(1)


class LiveNetwork(nn.Module):
    """Keypoints and masks from one backbone pass. See the module docstring for the dataflow."""

    feature_from_input = FEATURE_FROM_INPUT
    finds_people = True

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        if settings.family != "live":
            raise ValueError(f"family must be 'live' here, got {settings.family!r}")
        self.settings = settings
        self.backbone = Backbone()
        self.top_down = TopDown()
        self.keypoint_heads = KeypointHeads(SHARED_HEADS[settings.keypoints])
        if settings.keypoints != "centre":
            self.grouping_heads = GroupingHeads(settings.keypoints)
        self.mask_laterals = MaskLaterals(settings.feature_channels)
        self.seg_module = SegModule(seg_channels(settings), settings.seg_width, tuple(settings.seg_dilations))

    def trunk(self, image: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """[B, 3, H, W] (uint8 or float, RGB 0..255) -> backbone levels by name, and the map the keypoint heads read."""
        levels = self.backbone(image.to(self.backbone.stem.weight.dtype) * INPUT_SCALE - 1.0)
        return levels, self.top_down(levels)

    def heads(self, levels: dict[str, Tensor], trunk: Tensor) -> dict[str, Tensor]:
        """What `trunk` gives -> keypoint maps by name."""
        maps: dict[str, Tensor] = self.keypoint_heads(trunk)
        return {**maps, **self.grouping_heads(levels, trunk)} if hasattr(self, "grouping_heads") else maps

    def keypoint_maps(self, image: Tensor) -> dict[str, Tensor]:
        """Pictures as in `trunk` -> keypoint maps by name only."""
        return self.heads(*self.trunk(image))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Pictures as in `trunk` -> keypoint maps by name, and `features`."""
        levels, trunk = self.trunk(image)
        return {**self.heads(levels, trunk), "features": self.mask_laterals(levels, trunk)}

    def segment(
        self,
        features: Tensor,
        feature_from_roi: Tensor,
        roi_image: Tensor,
        roi_keypoints: Tensor,
        present: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Mask logits [N, S, S]; arguments as in the segment graph, and see `training.windows.seg_inputs`."""
        logits: Tensor = self.seg_module(
            seg_inputs(self.settings, features, feature_from_roi, roi_image, roi_keypoints, present)
        )
        return logits
