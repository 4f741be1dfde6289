"""Make docs/images/composition.png: scenes as training composes them, of people whose picture may be shown.

    python examples/make_composition_picture.py docs/images/composition.png

The people are drawn figures and the portrait of Eileen Collins by NASA (public domain) that scikit-image ships; the
backgrounds are its gravel, grass and bricks. Needs the extras `train` and `demo`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from skimage import data

from kernels.pose_fit import PAPER_TEMPLATES
from training.limb_masks import limb_mask
from training.preview import main as preview

SIDE = 420
SAMPLES = ("11", "12", "15", "22", "25", "27")
WIDTH_PX = 900
SHIRTS = ((196, 62, 52), (52, 96, 180), (226, 176, 60), (70, 140, 96))
TROUSERS = ((52, 58, 84), (92, 72, 60), (40, 40, 44), (120, 120, 132))
SKIN = ((224, 178, 150), (150, 102, 76), (240, 204, 180), (96, 66, 52))
# Joints of the portrait, in its px, by COCO index.
PORTRAIT_JOINTS = {
    0: (223, 122),
    1: (247, 103),
    2: (202, 101),
    3: (272, 128),
    4: (176, 124),
    5: (322, 272),
    6: (85, 265),
    8: (52, 425),
    10: (135, 497),
}


def figure(rng: np.random.Generator, number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    """A drawn person with bent limbs: picture, mask and (17, 3) joints."""
    pose = PAPER_TEMPLATES[0].copy()
    pose[:, :2] *= SIDE
    pose[:, 2] = 2
    for upper, lower in ((7, 9), (8, 10), (13, 15), (14, 16)):
        swing = rng.normal(0, 0.035 * SIDE, 2)
        pose[upper, :2] += swing
        pose[lower, :2] += swing + rng.normal(0, 0.06 * SIDE, 2) * (1, 0.5)
    mask = limb_mask(pose, pose[:, 2], SIDE, SIDE)
    rows = np.arange(SIDE)[:, None]
    hips, chin = pose[11:13, 1].mean(), pose[0, 1] + 0.04 * SIDE
    image = np.empty((SIDE, SIDE, 3), np.uint8)
    image[:] = np.where(rows < hips, rows % 24 // 12, 2)[..., None]
    shirt, trousers, skin = (np.array(colours[number % 4]) for colours in (SHIRTS, TROUSERS, SKIN))
    image = np.select(
        [image == 0, image == 1, image == 2], [np.broadcast_to(c, image.shape) for c in (shirt, 0.8 * shirt, trousers)]
    ).astype(np.uint8)
    image[: int(chin)] = skin
    for joint in (9, 10):
        cv2.circle(image, [round(float(value)) for value in pose[joint, :2]], 18, skin.tolist(), -1)
    return image, mask, pose


def portrait() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    """NASA's portrait, her outline and joints."""
    outline = json.loads((Path(__file__).with_name("astronaut_outline.json")).read_text())["person"]
    image = data.astronaut()
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1)
    pose = np.zeros((17, 3), np.float32)
    for joint, place in PORTRAIT_JOINTS.items():
        pose[joint] = (*place, 2)
    return image, mask, pose


def write_data(folder: Path) -> Path:
    """A data folder for training: ``people`` and ``backgrounds``."""
    rng = np.random.default_rng(3)
    (folder / "people" / "images").mkdir(parents=True)
    (folder / "backgrounds").mkdir()
    for name in ("gravel", "grass", "brick"):
        image = getattr(data, name)()
        colour = image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
        cv2.imwrite(str(folder / "backgrounds" / f"{name}.png"), cv2.cvtColor(colour, cv2.COLOR_RGB2BGR))
    content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    people = [figure(rng, number) for number in range(12)] + [portrait()] * 3
    for number, (image, mask, pose) in enumerate(people, 1):
        name = f"{number}.png"
        cv2.imwrite(str(folder / "people" / "images" / name), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        rle = coco_mask.encode(np.asfortranarray(mask))
        box = [float(value) for value in coco_mask.toBbox(rle)]
        segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
        keypoints = [float(value) for value in pose.ravel()]
        shared = {"id": number, "height": image.shape[0], "width": image.shape[1]}
        content["images"].append({**shared, "file_name": name})
        annotation = {"id": number, "image_id": number, "category_id": 1, "bbox": box, "keypoints": keypoints}
        content["annotations"].append({**annotation, "segmentation": segmentation})
    (folder / "people" / "annotations.json").write_text(json.dumps(content))
    source = {"annotations": "people/annotations.json", "images": "people/images", "cutout_weight": 1.0}
    recipe = {"sources": [source], "backgrounds": ["backgrounds"], "compose_weight": 1.0, "canvas": [192, 256]}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return folder


def main() -> int:
    """Write the picture named on the command line, in 256 colours: it is kept in the repository."""
    output = Path(sys.argv[1] if len(sys.argv) == 2 else "composition.png")
    with tempfile.TemporaryDirectory() as name:
        folder = write_data(Path(name))
        sheet = folder / "sheet.png"
        flags = ["--recipe", str(folder / "recipe.json"), "--data", str(folder), "--output", str(sheet)]
        if code := preview([*flags, "--samples", *SAMPLES]):
            return code
        image = Image.open(sheet)
        height = round(image.height * WIDTH_PX / image.width)
        image.resize((WIDTH_PX, height), Image.Resampling.BOX).quantize(256).save(output, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
