"""The published network (family `paper`): ResNet50-FPN, Affine-Align, skeleton features, SegModule. Poses are given.

    image [B, 3, H, W] RGB 0..255, H and W multiples of 32 (published: 512 x 512, see `kernels.square_letterbox`)
      -> ResNet        levels c2..c5 of 256, 512, 1024, 2048 channels at strides 4, 8, 16, 32
      -> Backbone      top-down pyramid, its stride-4 level only: `features` [B, 256, H/4, W/4]
    features + people's windows -> [N, 311, 64, 64] -> SegModule -> mask logits [N, 64, 64]

Every convolution pads both sides alike, so feature i lies on input px 4 i (`FEATURE_FROM_INPUT`). Names of the trunk's
parameters are torchvision's, so that its ImageNet weights load as they are (`training.resnet_weights`).

    python -m training.paper_model      prints the numbers of parameters

Source: Pose2Seg section 3 and the released code for widths, biases and initial values. Differs: a stage's stride is in
its 3 x 3 convolution, where the ImageNet weights have it (`backbone.stride_in`); the pyramid's unused levels P3 to P5
are left out (``every_level`` puts them back, for counting).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model_settings import ModelSettings
from training.windows import seg_channels, seg_inputs

STRIDE = 4
FEATURE_FROM_INPUT = ((0.25, 0.0, 0.0), (0.0, 0.25, 0.0))
MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB in 0..1
DEVIATION = (0.229, 0.224, 0.225)
STAGES = (3, 4, 6, 3)  # bottlenecks of ResNet-50
EXPANSION = 4  # a bottleneck's outputs are four times its width
LEVELS = ("c2", "c3", "c4", "c5")


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with batch norms, added to the input; [B, C, h, w] -> [B, 4 width, h / stride, w / stride].

    Args:
        inputs: channels C.
        width: channels of the 3x3 convolution.
        stride: of the unit.
        stride_in: "3x3" or "1x1", the convolution that has it.
        bias: of the convolutions; a ResNet has none, the SegModule does.
    """

    def __init__(self, inputs: int, width: int, *, stride: int = 1, stride_in: str = "3x3", bias: bool = False) -> None:
        super().__init__()
        outputs = EXPANSION * width
        first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
        self.conv1 = nn.Conv2d(inputs, width, 1, first, bias=bias)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, 1, bias=bias)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=bias)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=bias), nn.BatchNorm2d(outputs))
            if stride > 1 or inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class ResNet(nn.Module):
    """[B, 3, H, W] normalised -> levels by name: c2 /4, c3 /8, c4 /16, c5 /32."""

    def __init__(self, width: int, stride_in: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, units in enumerate(STAGES):
            stage_width = width * 2**stage
            stride = 1 if stage == 0 else 2
            blocks = []
            for unit in range(units):
                blocks.append(Bottleneck(inputs, stage_width, stride=stride if unit == 0 else 1, stride_in=stride_in))
                inputs = EXPANSION * stage_width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.max_pool2d(x, 3, 2, 1)
        levels = {}
        for stage, level in enumerate(LEVELS):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            levels[level] = x
        return levels


class Backbone(nn.Module):
    """ResNet and top-down pyramid: [B, 3, H, W] normalised -> P2 [B, channels, H/4, W/4]."""

    def __init__(self, width: int, channels: int, *, stride_in: str = "3x3", every_level: bool = False) -> None:
        super().__init__()
        self.trunk = ResNet(width, stride_in)
        self.lateral = nn.ModuleDict(
            {level: nn.Conv2d(EXPANSION * width * 2**stage, channels, 1) for stage, level in enumerate(LEVELS)}
        )
        self.output = nn.ModuleDict(
            {
                level.replace("c", "p"): nn.Conv2d(channels, channels, 3, padding=1)
                for level in (LEVELS if every_level else LEVELS[:1])
            }
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                spread = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / spread))

    def forward(self, x: Tensor) -> Tensor:
        levels = self.trunk(x)
        merged = self.lateral["c5"](levels["c5"])
        for level in ("c4", "c3", "c2"):
            larger = F.interpolate(merged, scale_factor=2.0, mode="bilinear", align_corners=False)
            merged = larger + self.lateral[level](levels[level])
        result: Tensor = self.output["p2"](merged)
        return result


class SegModule(nn.Module):
    """[N, inputs, S, S] -> logits of background and person [N, 2, S, S].

    7x7 stride 2, residual units, x 2, one more unit, 1x1. Every convolution has a bias.
    """

    def __init__(self, inputs: int, width: int, units: int) -> None:
        super().__init__()
        wide = EXPANSION * width
        self.stem = nn.Sequential(nn.Conv2d(inputs, width, 7, 2, 3), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.units = nn.Sequential(
            Bottleneck(width, width, bias=True), *(Bottleneck(wide, width, bias=True) for _ in range(units - 1))
        )
        self.decoder = Bottleneck(wide, width // 2, bias=True)
        self.out = nn.Conv2d(EXPANSION * (width // 2), 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.units(self.stem(x))
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
        logits: Tensor = self.out(self.decoder(x))
        return logits


class PaperNetwork(nn.Module):
    """Features of a picture, and masks of people whose poses are given. See the module docstring for the dataflow."""

    feature_from_input = FEATURE_FROM_INPUT
    finds_people = False

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        if settings.family != "paper":
            raise ValueError(f"family must be 'paper' here, got {settings.family!r}")
        self.settings = settings
        self.backbone = Backbone(
            settings.backbone.width, settings.feature_channels, stride_in=settings.backbone.stride_in
        )
        self.seg_module = SegModule(seg_channels(settings), settings.seg_width, settings.seg.units)
        self.register_buffer("mean", torch.tensor(MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).reshape(3, 1, 1), persistent=False)

    def features(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] (uint8 or float, RGB 0..255) -> [B, C, H/4, W/4]."""
        normalised = (image.to(self.mean.dtype) / 255.0 - self.mean) / self.deviation
        result: Tensor = self.backbone(normalised)
        return result

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Pictures as in `features` -> `features` by name, as the live network gives them."""
        return {"features": self.features(image)}

    def segment(
        self,
        features: Tensor,
        feature_from_roi: Tensor,
        roi_image: Tensor,
        roi_keypoints: Tensor,
        present: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Mask logits [N, S, S]: that of person less that of background, whose sigmoid is the softmax of both.

        Arguments as in the segment graph, and see `training.windows.seg_inputs`.
        """
        both = self.seg_module(seg_inputs(self.settings, features, feature_from_roi, roi_image, roi_keypoints, present))
        return both[:, 1] - both[:, 0]


def parameters(module: nn.Module) -> int:
    """Number of values that learn."""
    return sum(p.numel() for p in module.parameters())


def main() -> None:
    """Print the numbers of parameters of the published network, its parts and its ablations."""
    settings = ModelSettings(family="paper")
    with torch.device("meta"):
        every, used = (Backbone(64, 256, every_level=every) for every in (True, False))
        rows = {
            "ResNet-50 trunk": every.trunk,
            "laterals": every.lateral,
            "3x3 outputs P2 to P5": every.output,
            "backbone with P2 to P5": every,
            "backbone as used, P2 only": used,
        }
        for units in (5, 10, 15, 20):
            rows[f"SegModule, {units} units"] = SegModule(311, 256, units)
        rows["SegModule, 10 units, no skeleton"] = SegModule(256, 256, 10)
        rows["whole network"] = PaperNetwork(settings)
    for name, module in rows.items():
        print(f"{name:<34}{parameters(module):>12,}")


if __name__ == "__main__":
    main()
