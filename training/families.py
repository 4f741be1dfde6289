"""The families of networks behind one name: which class a model's settings mean.

`live` and `paper`, which are given poses, have `settings`, `feature_from_input` (2, 3), `finds_people`,
``network(image)`` with at least ``features`` among its named results, and ``segment(features, feature_from_roi,
roi_image, roi_keypoints)`` to mask logits. `mask_rcnn` is a detector: see `training.mask_rcnn`.
"""

from __future__ import annotations

import numpy as np

from kernels.coordinates import F64
from kernels.pose_fit import whole_frame_roi
from training.mask_rcnn import MaskRcnnNetwork
from training.model import LiveNetwork
from training.model_settings import ModelSettings
from training.paper_model import PaperNetwork

PoseGuidedNetwork = LiveNetwork | PaperNetwork
Network = PoseGuidedNetwork | MaskRcnnNetwork


def new_network_of(settings: ModelSettings) -> Network:
    """A network with random weights.

    Raises:
        ImportError: the family mask_rcnn without torchvision.
    """
    kinds: dict[str, type[Network]] = {"live": LiveNetwork, "paper": PaperNetwork, "mask_rcnn": MaskRcnnNetwork}
    return kinds[settings.family](settings)


def whole_input_window(network: PoseGuidedNetwork, height: int, width: int) -> F64:
    """(2, 3) input px to ROI px: the window of a person for whom there is no other, in an input of this size.

    The family `paper` puts the first px on the first px, as its features lie; `live` keeps px edges in place.
    """
    size = network.settings.roi_size
    if network.settings.family == "paper":
        scale = size / max(height, width)
        return np.array([[scale, 0.0, 0.0], [0.0, scale, 0.0]])
    return whole_frame_roi(height, width, size).astype(np.float64)
