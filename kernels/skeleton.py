"""The 17 COCO joints, their limbs, and the skeleton drawn as feature maps in ROI space."""

from __future__ import annotations

import numpy as np

from kernels.coordinates import F32, I32

JOINT_NAMES = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)
JOINTS = len(JOINT_NAMES)

#: (17,) index of each joint's mirror image: left and right change places, the nose stays.
FLIP_PAIRS: I32 = np.array([0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15], np.int32)

#: (19, 2) joint indices of each limb, in the channel order of the published network (not the order of COCO's file).
LIMBS: I32 = np.array(
    [
        (0, 1),
        (0, 2),
        (1, 2),
        (1, 3),
        (2, 4),
        (3, 5),
        (4, 6),
        (5, 6),
        (5, 7),
        (5, 11),
        (6, 8),
        (6, 12),
        (7, 9),
        (8, 10),
        (11, 12),
        (11, 13),
        (12, 14),
        (13, 15),
        (14, 16),
    ],
    np.int32,
)
CHANNELS = JOINTS + 2 * len(LIMBS)
