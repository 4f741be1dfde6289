"""Mask R-CNN with ResNet50-FPN, the detector that the paper compares with, through torchvision (extra `mask-rcnn`).

The family `mask_rcnn` of `training.train` and `training.evaluate`: the same scenes to learn from, the same pictures and
the same figures; one class, person. The layers and losses are torchvision's `MaskRCNN`, and so are the names of the
weights: a file of torchvision's own starts it (``--init-mask-rcnn``; of one with COCO's 91 classes the rows of
background and person are taken), or ImageNet weights of the ResNet (``--init-resnet``), or nothing
(``model.detector.norm`` batch).

``model.detector.backbone`` movenet puts the same FPN and heads on the trunk of the family `live`, which stays frozen
(``--init-movenet``): the comparison with our masks that does not hang on whose backbone saw more pictures.

A picture is scaled to a long side as for the family `live`, in place of torchvision's own resizing. A person's box is
the annotated one where the scene knows it, else that of the visible mask. Whoever has no mask in a scene is background:
torchvision knows no regions to ignore.

Source: He et al., Mask R-CNN, ICCV 2017; schedule and flips of `training/mask_rcnn.json` as in Detectron.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn

from kernels.coordinates import F32, F64, U8
from kernels.letterbox import Letterbox, letterbox, plan_letterbox
from kernels.mask_paste import paste_masks
from kernels.mask_rle import encode_rle
from training.dataset import Scene
from training.model import LEVEL_CHANNELS, TRUNK_CHANNELS, Backbone, LiveNetwork, TopDown
from training.model_settings import ModelSettings
from training.movenet_weights import load_movenet
from training.resnet_weights import CLASSIFIER, read_tensors, require_same_tensors, without_counters
from training.rois import annotated_box, target_mask
from training.settings import TrainSettings
from training.windows import roi_from_boxes

CLASSES = 2  # background, person
COCO_CLASSES = 91  # of torchvision's published weights: background first, then person
NO_WINDOW = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))  # of a box without area: pasted, it is an empty mask
OF_CLASSES = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")  # layers with rows per class
SAME = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def import_torchvision() -> Any:
    """torchvision with its compiled operators.

    Raises:
        ImportError: it is not installed, or does not fit the PyTorch beside it; says what to install.
    """
    advice = (
        "install the extra mask-rcnn: pip install 'pose2seg-live[train,mask-rcnn]', in an environment whose torch and "
        "torchvision are releases made for each other (docs/training.md names a pair)"
    )
    try:
        import torchvision
        from torchvision.models import detection  # noqa: F401  operators are looked up here
    except ModuleNotFoundError as error:
        raise ImportError(f"the family mask_rcnn needs torchvision: {advice}") from error
    except (RuntimeError, OSError, ImportError) as error:  # "operator torchvision::nms does not exist"
        raise ImportError(f"this torchvision does not fit torch {torch.__version__} ({error}): {advice}") from error
    return torchvision


class MoveNetWithFpn(nn.Module):
    """MoveNet's frozen trunk, and torchvision's FPN on all that `training.model.MaskLaterals` reads for our masks.

    [B, 3, H, W] in -1..1 -> maps of 256 channels by name, strides 4, 8, 16, 32 and 64.
    """

    out_channels = 256  # torchvision asks for it

    def __init__(self) -> None:
        super().__init__()
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

        self.body, self.top_down = Backbone().requires_grad_(False), TopDown().requires_grad_(False)
        of = LEVEL_CHANNELS
        widths = [of["c2"] + TRUNK_CHANNELS, of["c3"], of["c4"] + of["context"], of["c5"]]
        # MoveNet's norm layers are folded into its convolutions: what comes out is of any size
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.fpn = FeaturePyramidNetwork(widths, self.out_channels, LastLevelMaxPool())

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            levels = self.body(image)
            stride_4 = torch.cat((levels["c2"], self.top_down(levels)), dim=1)
            stride_16 = torch.cat((levels["c4"], levels["context"]), dim=1)
        read = (stride_4, levels["c3"], stride_16, levels["c5"])
        normed = {str(n): norm(level) for n, (norm, level) in enumerate(zip(self.norms, read, strict=True))}
        pyramid: dict[str, Tensor] = self.fpn(normed)
        return pyramid


class MaskRcnnNetwork(nn.Module):
    """torchvision's Mask R-CNN for one class; its parts by torchvision's names.

    Raises:
        ImportError: see `import_torchvision`.
    """

    finds_people = False  # not by joints: it has no keypoint heads

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        if settings.family != "mask_rcnn":
            raise ValueError(f"family must be 'mask_rcnn' here, got {settings.family!r}")
        torchvision = import_torchvision()
        from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor

        self.settings = settings
        detector = settings.detector
        of_input = {}
        if detector.backbone == "movenet":
            backbone: nn.Module = MoveNetWithFpn()
            of_input = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # -1..1
        else:
            norm = torchvision.ops.misc.FrozenBatchNorm2d if detector.norm == "frozen" else nn.BatchNorm2d
            trunk = torchvision.models.resnet50(weights=None, norm_layer=norm)
            backbone = _resnet_fpn_extractor(trunk, detector.trained_stages)
        whole = torchvision.models.detection.MaskRCNN(
            backbone, num_classes=CLASSES, box_batch_size_per_image=detector.rois, _skip_resize=True, **of_input
        )
        # torchvision draws these weights by the number of classes: with two, masks start at logits of several tens
        nn.init.normal_(whole.roi_heads.mask_predictor.mask_fcn_logits.weight, std=0.001)  # as Detectron
        self.backbone, self.rpn, self.roi_heads = whole.backbone, whole.rpn, whole.roi_heads
        self._transform = (whole.transform,)  # in a tuple: it has no weights and is no part of the network
        self._held = {name for name, value in self.named_parameters() if not value.requires_grad}

    def held_parameters(self) -> set[int]:
        """Identities of parameters that keep their initial values whatever the rates say: what `detector` freezes."""
        return {id(value) for name, value in self.named_parameters() if name in self._held}

    def forward(self, images: Tensor, targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Losses by name in training mode; else for each picture boxes, scores and masks (28 x 28) in input px.

        Args:
            images: (B, 3, H, W) RGB, 0..255.
            targets: for each picture ``boxes`` (N, 4) xyxy, ``labels`` (N,) of 1, ``masks`` (N, H, W) uint8.
        """
        listed, targets = self._transform[0](list(images.float() / 255), targets)
        features = self.backbone(listed.tensors)
        proposals, rpn_losses = self.rpn(listed, features, targets)
        detections, losses = self.roi_heads(features, proposals, listed.image_sizes, targets)
        return {**losses, **rpn_losses} if self.training else detections


def scene_target(scene: Scene) -> tuple[F64, U8]:
    """Boxes (N, 4) xyxy in px edges and masks (N, H, W) of the people of a scene who have a mask and area."""
    height, width = scene.labels.shape
    boxes, masks = [], []
    for n in np.flatnonzero(scene.has_mask):
        if scene.photo_masks is not None and height == width:
            mask = target_mask(scene, int(n), SAME, height)
        else:
            mask = scene.labels == n + 1
        box = np.clip(annotated_box(scene, int(n)), 0, (width, height, width, height))
        if mask.any() and (box[2:] - box[:2]).min() >= 1:
            boxes.append(box)
            masks.append(mask)
    if not boxes:
        return np.zeros((0, 4)), np.zeros((0, height, width), np.uint8)
    return np.stack(boxes), np.stack(masks).astype(np.uint8)


class MaskRcnnTrainer(nn.Module):
    """One forward pass with all losses, as `training.train.Trainer` for the other families."""

    def __init__(self, network: MaskRcnnNetwork, settings: TrainSettings) -> None:
        super().__init__()
        self.network, self.settings = network, settings

    def forward(self, image: Tensor, scenes: list[Scene], rng: Generator) -> dict[str, Tensor]:
        """torchvision's five losses; half of the pictures are mirrored, as in Detectron.

        torchvision draws anchors and proposals from PyTorch's global generator. It is set from ``rng``, which
        depends on the step alone: a resumed run draws what an uninterrupted one would have drawn.
        """
        torch.manual_seed(int(rng.integers(2**62)))
        width = image.shape[-1]
        images, targets = [], []
        for picture, scene in zip(image, scenes, strict=True):
            boxes, masks = scene_target(scene)
            shown = picture
            if rng.random() < 0.5:
                shown, masks = picture.flip(-1), np.ascontiguousarray(masks[..., ::-1])
                boxes = np.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), axis=1)
            images.append(shown)
            targets.append(
                {
                    "boxes": torch.from_numpy(boxes.astype(np.float32)).to(image.device),
                    "labels": torch.ones(len(boxes), dtype=torch.int64, device=image.device),
                    "masks": torch.from_numpy(masks).to(image.device),
                }
            )
        losses: dict[str, Tensor] = self.network(torch.stack(images), targets)
        return {name.removeprefix("loss_"): value for name, value in losses.items()}


class MaskRcnnDetector:
    """A network as `training.evaluate.Detector`. It is put into eval mode."""

    def __init__(self, network: MaskRcnnNetwork) -> None:
        self.network = network.eval()
        self.device = next(network.parameters()).device

    @torch.no_grad()
    def people(self, image: U8, long_side: int) -> tuple[list[dict[str, Any]], F32]:
        """Masks as COCO RLE of the picture's size and their scores (N,), falling; N at most 100, scores above 0.05."""
        height, width = image.shape[:2]
        plan = plan_letterbox(height, width, long_side=long_side)
        batch = torch.from_numpy(letterbox(image, plan)).permute(2, 0, 1)[None].to(self.device)
        found = self.network(batch)[0]
        order = torch.argsort(found["scores"], descending=True, stable=True)
        boxes = frame_boxes(found["boxes"][order].cpu().numpy(), plan)
        probabilities = np.ascontiguousarray(found["masks"][order, 0].cpu().numpy())
        roi_from_frame = roi_from_boxes(boxes, NO_WINDOW, probabilities.shape[-1]).astype(np.float32)
        # torchvision's own pasting rounds boxes to whole px, and fails on one that lies in the letterbox's border.
        rles = encode_rle(paste_masks(probabilities, roi_from_frame, height, width), height, width)
        return rles, found["scores"][order].cpu().numpy()


def frame_boxes(boxes: F32, plan: Letterbox) -> F64:
    """(N, 4) xyxy edges in input px to edges in px of the picture (px centres are whole numbers in ``plan``)."""
    scale, shift = plan.input_from_frame[[0, 1], [0, 1]], plan.input_from_frame[:, 2].astype(np.float64)
    return (boxes.astype(np.float64) - 0.5 - np.tile(shift, 2)) / np.tile(scale, 2) + 0.5


def one_class(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights for COCO's 91 classes to those for background and person; others as they are."""
    score = tensors.get("roi_heads.box_predictor.cls_score.weight")
    if score is None or len(score) != COCO_CLASSES:
        return tensors
    chosen = dict(tensors)
    for name, value in tensors.items():
        if name.startswith(OF_CLASSES) and len(value) % COCO_CLASSES == 0:  # box regression has four rows a class
            rows = value.reshape(COCO_CLASSES, -1, *value.shape[1:])[:CLASSES]
            chosen[name] = rows.reshape(-1, *value.shape[1:]).contiguous()
    return chosen


def load_mask_rcnn(network: MaskRcnnNetwork, path: Path) -> None:
    """Start from a file of torchvision's Mask R-CNN with ResNet50-FPN, of 2 or 91 classes.

    Raises:
        ValueError: the file cannot be read or is another network; names what is missing, unexpected or of other shape.
    """
    tensors = one_class(without_counters(read_tensors(path)))
    require_same_tensors(path, without_counters(network.state_dict()), tensors)
    network.load_state_dict(tensors, strict=False)


def load_detector_trunk(network: MaskRcnnNetwork, path: Path) -> None:
    """Start the ResNet from ImageNet weights in torchvision's file format, classifier left out.

    Raises:
        ValueError: as in `load_mask_rcnn`.
    """
    body: nn.Module = network.backbone.body
    tensors = without_counters(read_tensors(path))
    for name in CLASSIFIER:
        tensors.pop(name, None)
    require_same_tensors(path, without_counters(body.state_dict()), tensors)
    body.load_state_dict(tensors, strict=False)


def load_movenet_trunk(network: MaskRcnnNetwork, path: Path) -> None:
    """Start a trunk of `MoveNetWithFpn` from the ONNX file of MoveNet MultiPose Lightning.

    Raises:
        ValueError: as in `training.movenet_weights.load_movenet`.
    """
    published = load_movenet(LiveNetwork(ModelSettings()), path)
    network.backbone.body.load_state_dict(published.backbone.state_dict())
    network.backbone.top_down.load_state_dict(published.top_down.state_dict())
