"""Figures printed in the paper, by table; nothing here was measured by us.

Source: Pose2Seg: Detection Free Human Instance Segmentation, CVPR 2019 (arXiv 1803.10683), the table named beside each
block; the speed is from the text. AP is of masks, IoU .50 to .95. In Table 2 the second and third figure are of
OCHuman's moderate (MaxIoU 0.5 to 0.75) and hard (above) people, in Table 3 of COCO's medium and large.
"""

from __future__ import annotations

SOURCES = {
    "table1": "Table 1: data sets",
    "table2": "Table 2: OCHuman, everything trained on COCOPersons",
    "table3": "Table 3: COCOPersons val",
    "table4": "Table 4: residual units, COCOPersons val",
    "table5": "Table 5: Affine-Align against RoI-Align",
    "fps": "section 4: about 20 pictures a second with keypoints given, on a TITAN X (Pascal)",
}

# Table 1: (COCOPersons train and val, OCHuman val and test). "64,115" looks like train alone, 273,469 like both.
DATA_SETS: dict[str, tuple[float, float]] = {
    "images": (64_115, 4_731),
    "persons": (273_469, 8_110),
    "persons with MaxIoU > 0.5": (2_619, 8_110),
    "persons with MaxIoU > 0.75": (214, 2_614),
    "mean MaxIoU": (0.08, 0.67),
}

# Table 2: AP, AP moderate, AP hard of val; the same of test.
OCHUMAN: dict[str, tuple[float, ...]] = {
    "Mask R-CNN": (0.163, 0.194, 0.113, 0.169, 0.189, 0.128),
    "Pose2Seg, predicted poses": (0.222, 0.261, 0.150, 0.238, 0.266, 0.175),
    "Pose2Seg, true poses": (0.544, 0.576, 0.491, 0.552, 0.579, 0.495),
}

# Table 3: AP, AP medium, AP large.
COCO_PERSONS: dict[str, tuple[float | None, ...]] = {
    "Mask R-CNN, ResNet50-FPN": (0.532, 0.433, 0.648),
    "PersonLab, ResNet101": (None, 0.476, 0.592),
    "PersonLab, ResNet101, several scales": (None, 0.492, 0.621),
    "PersonLab, ResNet152": (None, 0.483, 0.595),
    "PersonLab, ResNet152, several scales": (None, 0.497, 0.621),
    "Pose2Seg, predicted poses": (0.555, 0.498, 0.670),
    "Pose2Seg, true poses": (0.582, 0.539, 0.679),
}

# Table 4: residual units -> AP. With which poses is not stated; .555 is what Table 3 has for predicted ones.
UNITS: dict[int, float] = {5: 0.545, 10: 0.555, 15: 0.555, 20: 0.556}

# Table 5: window in training, in the test, growth of the box -> OCHuman val with and without skeleton, COCOPersons val
# with and without.
ALIGNMENT: dict[tuple[str, str, float | None], tuple[float, float, float, float]] = {
    ("true box", "true box", None): (0.476, 0.133, 0.648, 0.568),
    ("true box", "box of joints", 0.3): (0.436, 0.124, 0.431, 0.354),
    ("true box", "box of joints", 0.4): (0.441, 0.115, 0.460, 0.372),
    ("true box", "box of joints", 0.5): (0.437, 0.104, 0.477, 0.380),
    ("true box", "box of joints", 0.6): (0.429, 0.093, 0.489, 0.379),
    ("true box", "box of joints", 0.7): (0.420, 0.083, 0.497, 0.371),
    ("true box", "box of joints", 0.8): (0.411, 0.074, 0.501, 0.357),
    ("true box", "box of joints", 0.9): (0.403, 0.065, 0.500, 0.343),
    ("true box", "box of joints", 1.0): (0.393, 0.057, 0.500, 0.325),
    ("Affine-Align", "Affine-Align", None): (0.544, 0.141, 0.582, 0.386),
}

FRAMES_PER_SECOND: float = 20.0
