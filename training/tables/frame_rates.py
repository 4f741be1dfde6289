"""Pictures a second with keypoints given, as the paper states its speed, and seconds of a training step.

Weights do not change how long a network takes, so both are measured with random ones unless there are others; the
labels say so. Pictures and poses are drawn, nothing is read.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from engines import default_artifact
from kernels.coordinates import F32, U8
from kernels.mask_paste import paste_masks
from kernels.pose_fit import PAPER_TEMPLATES
from training.dataset import Scene
from training.evaluated_model import (
    FoundPeople,
    Model,
    find_people,
    open_model,
    picture_features,
    picture_plan,
    segment_people,
)
from training.families import new_network_of
from training.mask_rcnn import MaskRcnnNetwork, MaskRcnnTrainer
from training.model_settings import ModelSettings
from training.settings import TrainSettings
from training.tables.layout import Line, Result
from training.tables.published import FRAMES_PER_SECOND, SOURCES
from training.torch_engine import network_model
from training.train import Trainer, build_optimiser, set_mode

FRAME = (480, 640)  # height, width of the drawn pictures, px: most of COCO's
LONG_SIDE = 512


@dataclass(frozen=True)
class Rate:
    """Seconds of each picture by the clock and of processor time (all threads together), and what was timed."""

    label: str
    seconds: tuple[float, ...]
    processor_seconds: tuple[float, ...]

    @property
    def per_second(self) -> float:
        """Pictures a second: of the median."""
        return 1 / statistics.median(self.seconds)

    @property
    def per_processor_second(self) -> float:
        """The same of processor time, which other programs on the machine change little."""
        return 1 / max(statistics.median(self.processor_seconds), 1e-9)


def drawn_people(people: int, height: int, width: int) -> F32:
    """(N, 17, 3) standing people side by side, px, all joints visible."""
    poses = np.tile(PAPER_TEMPLATES[0], (people, 1, 1)).astype(np.float32)
    side = min(0.8 * height, 1.6 * width / max(people, 1))
    left = np.linspace(0, width - 0.5 * side, people) if people > 1 else np.array([0.5 * (width - side)])
    poses[..., 0] = np.clip(poses[..., 0] * side + left[:people, None] - 0.25 * side * (people > 1), 0, width - 1)
    poses[..., 1] = poses[..., 1] * side + 0.1 * height
    poses[..., 2] = 2
    return poses


def one_picture(model: Model, image: U8, people: FoundPeople) -> int:
    """Picture and keypoints to masks in its px, all of it; returns how many masks are not empty."""
    height, width = image.shape[:2]
    plan = picture_plan(model, height, width, LONG_SIDE)
    features = (
        picture_features(model, image, plan) if model.features is not None else find_people(model, image, plan)[1]
    )
    probabilities, _, roi_from_frame = segment_people(model, features, plan, people)
    return sum(mask.mask.size > 0 for mask in paste_masks(probabilities, roi_from_frame, height, width))


def timed(call: Callable[[], object], count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds of each of ``count`` calls by the clock and of processor time, after one call that is not counted."""
    call()
    seconds, processor = [], []
    for _ in range(count):
        started, busy = time.perf_counter(), time.process_time()
        call()
        seconds.append(time.perf_counter() - started)
        processor.append(time.process_time() - busy)
    return tuple(seconds), tuple(processor)


def frame_rates(*, pictures: int, people: int, threads: int | None) -> list[Rate]:
    """Both families on drawn pictures.

    Args:
        pictures: timed ones, after one that is not counted.
        people: in each picture.
        threads: of PyTorch and of the engine; None: their own choice.
    """
    height, width = FRAME
    image = np.random.default_rng(0).integers(0, 255, (height // 16, width // 16, 3), np.uint8)
    image = np.ascontiguousarray(image.repeat(16, 0).repeat(16, 1))
    poses = drawn_people(people, height, width)
    given = FoundPeople(keypoints=poses, visibility=poses[..., 2].copy(), scores=np.ones(people, np.float32))
    before = torch.get_num_threads()
    rates = []
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        for label, family in (
            ("paper family, random weights, PyTorch", "paper"),
            ("live family, random weights, PyTorch", "live"),
        ):
            torch.manual_seed(0)
            model = network_model(new_network_of(ModelSettings(family=family)).eval())
            assert isinstance(model, Model)
            rates.append(Rate(label, *timed(lambda m=model: one_picture(m, image, given), pictures)))
        installed, _ = open_model(default_artifact(), threads=threads)
        label = "live family, installed model, ONNX Runtime"
        rates.append(Rate(label, *timed(lambda: one_picture(installed, image, given), pictures)))
    finally:
        torch.set_num_threads(before)
    return rates


def machine() -> dict[str, object]:
    """What a time depends on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
    }


def frame_rate_table(*, pictures: int, people: int, threads: int | None) -> Result:
    """The paper's claim beside what this machine does."""
    load = os.getloadavg()[0]
    rates = frame_rates(pictures=pictures, people=people, threads=threads)
    lines = [
        Line(
            label=rate.label,
            published=(FRAMES_PER_SECOND if rate.label.startswith("paper") else None, None),
            ours=(round(rate.per_second, 3), round(rate.per_processor_second, 3)),
        )
        for rate in rates
    ]
    quartiles = {
        rate.label: [round(value, 4) for value in np.quantile(rate.seconds, (0.25, 0.5, 0.75)).tolist()]
        for rate in rates
    }
    return Result(
        name="fps",
        title=f"Pictures a second on this machine, keypoints given: {FRAME[1]} x {FRAME[0]}, {people} people",
        source=SOURCES["fps"],
        columns=("pictures a second", "pictures a second of processor time"),
        lines=tuple(lines),
        notes=(
            f"Drawn pictures, median of {pictures}; letterbox, both networks, pasted masks.",
            "The live family finds joints in the same pass, and that is counted.",
            f"Load average before: {load:.1f} on {os.cpu_count()} cores.",
        ),
        details={"seconds_quartiles": quartiles, "pictures": pictures, "people": people, "machine": machine()},
    )


def drawn_scene(settings: TrainSettings, people: int, seed: int) -> Scene:
    """A picture of the run's canvas with people to learn, made of nothing that is read."""
    height, width = settings.canvas
    poses = drawn_people(people, height, width)
    labels = np.zeros((height, width), np.uint8)
    boxes = np.zeros((people, 4))
    for number, pose in enumerate(poses):
        x0, y0 = np.floor(pose[:, :2].min(0)).astype(int)
        x1, y1 = np.ceil(pose[:, :2].max(0)).astype(int) + 2
        labels[y0:y1, x0:x1] = number + 1
        boxes[number] = x0, y0, x1, y1
    return Scene(
        image=np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8),
        labels=labels,
        keypoints=poses,
        has_mask=np.ones(people, np.uint8),
        complete=True,
        max_iou=np.zeros(people, np.float32),
        boxes=boxes,
    )


def seconds_per_step(settings: TrainSettings, count: int) -> float:
    """Median time of a training step of this run on this machine, with drawn scenes and random weights.

    Raises:
        ImportError: the family mask_rcnn without torchvision.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = new_network_of(settings.model).to(device, memory_format=torch.channels_last)
    plain = dataclasses.replace(settings, distill_weight=0.0)
    optimiser = build_optimiser(network, plain)
    trainer = (MaskRcnnTrainer if isinstance(network, MaskRcnnNetwork) else Trainer)(network, plain)
    set_mode(network, plain)
    people = max(1, round(settings.max_rois / settings.batch_size))
    scenes = [drawn_scene(settings, people, seed) for seed in range(settings.batch_size)]
    image = torch.from_numpy(np.stack([scene.image for scene in scenes])).to(device).permute(0, 3, 1, 2)

    def step() -> None:
        losses = trainer(image, scenes, np.random.default_rng(0))
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return statistics.median(timed(step, count)[0])
