"""What a frame costs against people and against pixels: processor time, which other programs disturb little.

    python -m benchmarks.bench_scaling VIDEO [--frame 30] [--seconds 1] [--plot docs/images/scaling.png] [--save]

One frame of the clip is decoded and its best person found. That person is then repeated, moved a little each time, to
make N people; the frame is scaled to other sizes; and the keypoint network gets other input sizes. Every step runs on
one thread and is timed by that thread's processor clock. A straight line is fitted to each total by least squares;
R2 says how straight it is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.measure import Row, Timing, report, summarise
from engines import EngineOptions, default_artifact, load_artifact, open_graph
from kernels.coordinates import invert, transform_points
from kernels.letterbox import letterbox, plan_letterbox
from kernels.mask_paste import paste_masks
from kernels.pose_decoding import DecodeParameters, decode_people
from kernels.pose_fit import fit_poses, whole_frame_roi
from kernels.roi_inputs import segment_feeds
from pipeline.overlay import draw_people
from pipeline.person import Person
from pipeline.stage1_decode import open_source

PEOPLE = (1, 2, 3, 5, 8, 10, 15, 20)
HEIGHTS = (270, 480, 720, 1080)  # of the frame, px
LONG_SIDES = (256, 384, 512, 640, 768)  # of the network's input, px


def processor_ms(call: Callable[[], object], seconds: float) -> Timing:
    """Processor time of this thread for one call."""
    call()
    samples: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(samples) < 5:
        begin = time.thread_time()
        call()
        samples.append((time.thread_time() - begin) * 1e3)
    return summarise(samples)


class Scene:
    """One frame with N copies of its best person."""

    def __init__(self, picture: np.ndarray[Any, np.dtype[np.uint8]], long_side: int) -> None:
        self.artifact = load_artifact(default_artifact())
        one = EngineOptions(threads=1, device="cpu")
        self.keypoints = open_graph(self.artifact, "keypoints", engine="onnx", options=one)
        self.segment = open_graph(self.artifact, "segment", engine="onnx", options=one)
        self.picture = picture
        self.resize(picture.shape[0], long_side)

    def resize(self, height: int, long_side: int) -> None:
        """Scale the frame and find its best person again."""
        width = round(self.picture.shape[1] * height / self.picture.shape[0])
        self.frame = cv2.resize(self.picture, (width, height), interpolation=cv2.INTER_AREA)
        self.plan = plan_letterbox(height, width, long_side=long_side, multiple=self.artifact.input_multiple)
        self.image = letterbox(self.frame, self.plan)[None]
        found = self.keypoints.run({"image": self.image})
        poses, scores = decode_people(
            found["person_scores"][0],
            found["person_keypoints"][0],
            found["joint_candidates"][0],
            parameters=DecodeParameters(**self.artifact.decode),
        )
        if not len(poses):
            raise ValueError("expected a frame with somebody in it, found nobody: choose another --frame")
        self.features = found["features"]
        self.best = poses[scores.argmax()].copy()
        self.best[:, :2] = transform_points(invert(self.plan.input_from_frame), self.best[None, :, :2])[0]

    def people(self, count: int) -> dict[str, Callable[[], object]]:
        """The steps that depend on people, each fed with what the step before gives."""
        poses = np.repeat(self.best[None], count, 0)
        poses[:, :, 0] += np.linspace(-0.1, 0.1, count)[:, None] * self.frame.shape[1]
        visible = poses[:, :, 2] >= self.artifact.joint_threshold
        usable = np.where(visible[:, :, None], poses, 0).astype(np.float32)
        whole = whole_frame_roi(*self.frame.shape[:2], self.artifact.roi_size)

        def fit() -> Any:
            return fit_poses(usable, self.artifact.templates, whole, roi_size=self.artifact.roi_size).roi_from_frame

        roi = fit()

        def feeds() -> Any:
            return segment_feeds(
                poses, np.where(visible, 2.0, 0.0), roi, self.plan.input_from_frame, self.artifact.feature_from_input
            )

        fed = {"features": self.features, **feeds()}

        def segment() -> Any:
            return self.segment.run(fed)["probabilities"]

        masks = segment()

        def paste() -> Any:
            return paste_masks(masks, roi, *self.frame.shape[:2], threshold=0.5)

        drawn = [
            Person(
                id=index + 1,
                score=0.5,
                keypoints=poses[index],
                joint_visible=visible[index],
                crop=crop,
                frame_height=self.frame.shape[0],
                frame_width=self.frame.shape[1],
            )
            for index, crop in enumerate(paste())
        ]
        return {
            "fit": lambda: (fit(), feeds()),
            "segment network": segment,
            "paste": paste,
            "draw": lambda: draw_people(self.frame.copy(), drawn),
        }


def straight_line(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    """Slope, value at 0, and R2 of the least-squares line."""
    slope, start = np.polyfit(x, y, 1)
    spread = ((y - y.mean()) ** 2).sum()
    return float(slope), float(start), float(1 - ((y - slope * x - start) ** 2).sum() / spread)


def plot(path: Path, panels: list[tuple[str, str, np.ndarray[Any, Any], dict[str, list[float]]]]) -> None:
    """One panel for each of (title, name of x, x, lines); the sum of the lines with its straight fit on top."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.8), layout="constrained", squeeze=False)
    for axis, (title, name, x, lines) in zip(axes[0], panels, strict=True):
        total = np.sum([*lines.values()], axis=0)
        slope, start, r2 = straight_line(x, total)
        for label, values in lines.items():
            axis.plot(x, values, "o-", markersize=3, linewidth=1, label=label)
        if len(lines) > 1:
            axis.plot(x, total, "ko", markersize=4, label="all")
        axis.plot(x, slope * x + start, "k--", linewidth=1, label=f"{start:.2g} + {slope:.3g} x, R2 {r2:.4f}")
        axis.set(title=title, xlabel=name, ylabel="processor time, ms", ylim=(0, None), xlim=(0, None))
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path, metavar="VIDEO")
    parser.add_argument("--frame", type=int, default=30, help="which frame of the clip")
    parser.add_argument("--seconds", type=float, default=0.5, help="of samples for each figure")
    parser.add_argument("--plot", type=Path, metavar="F.png")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    options = parser.parse_args()
    source = open_source(str(options.video), timeout_s=10.0, image_fps=2.0)
    picture = next(frame.image for frame in source.frames() if frame.index == options.frame)
    source.stop()
    source.close()
    scene = Scene(picture, 512)
    rows: list[Row] = []
    lines: dict[str, dict[str, list[float]]] = {"people": {}, "frame": {}, "input": {}}

    def record(panel: str, name: str, settings: dict[str, object], call: Callable[[], object]) -> None:
        timing = processor_ms(call, options.seconds)
        lines[panel].setdefault(name, []).append(timing.median_ms)
        rows.append(Row(name=name, settings=settings, timings={"processor": timing}))

    for count in PEOPLE:
        for name, call in scene.people(count).items():
            record("people", name, {"people": count, "frame": picture.shape[0]}, call)
    for height in HEIGHTS:
        scene.resize(height, 512)
        record("frame", "letterbox", {"height": height}, lambda: letterbox(scene.frame, scene.plan))
        calls = scene.people(3)
        for name in ("paste", "draw"):
            record("frame", name, {"height": height, "people": 3}, calls[name])
    sizes = []
    for side in LONG_SIDES:
        scene.resize(picture.shape[0], side)
        sizes.append(scene.plan.input_height * scene.plan.input_width / 1e3)
        image = {"image": scene.image}
        record("input", "keypoint network", {"long_side": side}, lambda fed=image: scene.keypoints.run(fed))
    aspect = picture.shape[1] / picture.shape[0]
    panels = [
        (f"people, frame {picture.shape[1]} x {picture.shape[0]}", "people", np.array(PEOPLE, float), lines["people"]),
        ("frame size, 3 people", "million px", np.array([h * h * aspect / 1e6 for h in HEIGHTS]), lines["frame"]),
        ("network input", "thousand px", np.array(sizes), lines["input"]),
    ]
    notes: dict[str, object] = {}
    for title, name, x, found in panels:
        slope, start, r2 = straight_line(x, np.sum([*found.values()], axis=0))
        notes[title] = f"{start:.3f} ms + {slope:.4f} ms for each of {name}, R2 {r2:.4f}"
    if options.plot:
        plot(options.plot, panels)
    report("scaling", rows, notes=notes, save=options.save)


if __name__ == "__main__":
    main()
