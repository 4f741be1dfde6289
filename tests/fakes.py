"""Stand-ins that implement our protocols: networks that see magenta, sources that are lists, sinks that collect.

The fake keypoint network finds magenta blobs in its input and reports a standing person in each; its one feature
channel is "how magenta". The fake segment network looks at that channel through the windows it is given. So a mask that
comes out of the whole pipeline on the blob proves every matrix on the way, without any training.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from engines import EngineOutOfMemory, EngineRunError, TensorSpec
from engines.artifact import Artifact
from engines.signatures import SIGNATURES
from kernels.affine_align import affine_align
from kernels.coordinates import half_pixel_scale, transform_points
from kernels.neighbours import neighbour_features
from kernels.pose_fit import PAPER_TEMPLATES, prepare_templates
from pipeline.build import Model
from pipeline.messages import AlignedRois, Frame, FrameResult, InstanceMasks, Poses

MAGENTA = (255, 0, 255)
STRIDE = 4
MAX_PEOPLE = 8

#: (17, 2): a standing person, x and y as shares of a box; COCO order.
STANDING = np.array(
    [
        *((0.50, 0.08), (0.55, 0.06), (0.45, 0.06), (0.60, 0.08), (0.40, 0.08)),
        *((0.75, 0.22), (0.25, 0.22), (0.85, 0.38), (0.15, 0.38), (0.88, 0.52), (0.12, 0.52)),
        *((0.65, 0.52), (0.35, 0.52), (0.66, 0.74), (0.34, 0.74), (0.67, 0.96), (0.33, 0.96)),
    ],
    np.float32,
)


def frame(
    index: int = 0,
    *,
    height: int = 48,
    width: int = 64,
    clip: int = 0,
    source: str = "list",
    image: NDArray[np.uint8] | None = None,
) -> Frame:
    """A grey frame, 25 a second."""
    if image is None:
        image = np.full((height, width, 3), 90, np.uint8)
    return Frame(
        index=index,
        source=source,
        clip=clip,
        pts=index,
        time_base=Fraction(1, 25),
        captured_s=time.monotonic(),
        pixels=image,
    )


def picture(height: int, width: int, *boxes: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """A grey picture with magenta "people" in boxes (x0, y0, x1, y1), the ends not included."""
    image = np.full((height, width, 3), 90, np.uint8)
    for x0, y0, x1, y1 in boxes:
        image[y0:y1, x0:x1] = MAGENTA
    return image


class FakeKeypointEngine:
    """One standing person for each magenta blob."""

    name = "fake"
    inputs: tuple[TensorSpec, ...] = SIGNATURES["keypoints"][0]
    outputs: tuple[TensorSpec, ...] = SIGNATURES["keypoints"][1]

    def __init__(self, *, fail_at: int | None = None, delay_s: float = 0.0, memory: int = 1000) -> None:
        """A call with more than ``memory`` pictures runs out of memory."""
        self.calls = 0
        self.closed = 0
        self.batches: list[int] = []
        self._fail_at = fail_at
        self._delay_s = delay_s
        self._memory = memory

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        image = feeds["image"]
        assert image.dtype == np.uint8
        assert image.ndim == 4 and image.shape[3] == 3
        if self.calls == self._fail_at:
            raise EngineRunError("the fake engine was told to fail")
        if len(image) > self._memory:
            raise EngineOutOfMemory("the fake engine has no memory for this")
        self.calls += 1
        self.batches.append(len(image))
        if self._delay_s:
            time.sleep(self._delay_s)
        rows = [self._run_one(image[row : row + 1]) for row in range(len(image))]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def _run_one(self, image: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        red, green, blue = (image[0, :, :, c].astype(np.int32) for c in range(3))
        magenta = ((red > 150) & (blue > 150) & (green < 110)).astype(np.uint8)
        count, _, boxes, _ = cv2.connectedComponentsWithStats(magenta)
        boxes = sorted((box for box in boxes[1:count].tolist() if box[4] >= 6), key=lambda box: -box[4])[:MAX_PEOPLE]
        keypoints = np.zeros((1, MAX_PEOPLE, 17, 3), np.float32)
        scores = np.zeros((1, MAX_PEOPLE), np.float32)
        candidates = np.zeros((1, 17, MAX_PEOPLE, 4), np.float32)
        for n, (x, y, width, height, _) in enumerate(boxes):
            keypoints[0, n, :, 0] = x + STANDING[:, 0] * width - 0.5
            keypoints[0, n, :, 1] = y + STANDING[:, 1] * height - 0.5
            keypoints[0, n, :, 2] = 0.9
            scores[0, n] = 0.95 - 0.02 * n
            candidates[0, :, n, :3] = keypoints[0, n]
        features = magenta.reshape(magenta.shape[0] // STRIDE, STRIDE, magenta.shape[1] // STRIDE, STRIDE).mean((1, 3))
        return {
            "person_scores": scores,
            "person_keypoints": keypoints,
            "joint_candidates": candidates,
            "features": features[None, None].astype(np.float32),
        }

    def close(self) -> None:
        self.closed += 1


class FakeSegmentEngine:
    """The probability is the first feature channel; with ``neighbours`` nought where somebody else is."""

    name = "fake"
    inputs: tuple[TensorSpec, ...] = SIGNATURES["segment"][0]
    outputs: tuple[TensorSpec, ...] = SIGNATURES["segment"][1]

    def __init__(
        self, *, roi_size: int = 64, fail_at: int | None = None, memory: int = 1000, neighbours: bool = False
    ) -> None:
        """A call with more than ``memory`` people runs out of memory."""
        self.calls = 0
        self.closed = 0
        self.feeds: dict[str, NDArray[Any]] = {}
        self.batches: list[int] = []
        self._memory = memory
        self._roi_size = roi_size
        self._fail_at = fail_at
        self._neighbours = neighbours

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        assert set(feeds) == {spec.name for spec in self.inputs}
        for spec in self.inputs:
            assert feeds[spec.name].dtype == spec.dtype
            assert feeds[spec.name].size > 0
        if self.calls == self._fail_at:
            raise EngineRunError("the fake engine was told to fail")
        if len(feeds["roi_image"]) > self._memory:
            raise EngineOutOfMemory("the fake engine has no memory for this")
        self.calls += 1
        self.batches.append(len(feeds["roi_image"]))
        self.feeds = dict(feeds)
        sampled = affine_align(feeds["features"], feeds["feature_from_roi"], feeds["roi_image"], self._roi_size)[:, 0]
        if self._neighbours:
            people = (feeds[name] for name in ("feature_from_roi", "roi_image", "roi_keypoints"))
            sampled = sampled * (1 - neighbour_features(*people, self._roi_size)[:, 0])
        return {"probabilities": sampled, "scores": sampled.max(axis=(1, 2))}

    def close(self) -> None:
        self.closed += 1


def fake_model(
    *,
    keypoint_engine: FakeKeypointEngine | None = None,
    segment_engine: FakeSegmentEngine | None = None,
    long_side: int = 128,
    decode: Mapping[str, float] | None = None,
    neighbours: bool = False,
) -> Model:
    """A model of the two fake networks."""
    artifact = Artifact(
        folder=Path("fake"),
        family="live",
        keypoints_path=Path("fake/keypoints.onnx"),
        segment_path=Path("fake/segment.onnx"),
        long_side=long_side,
        input_multiple=32,
        feature_from_input=half_pixel_scale(1 / STRIDE, 1 / STRIDE).astype(np.float32),
        roi_size=64,
        templates=prepare_templates(PAPER_TEMPLATES),
        person_threshold=0.3,
        joint_threshold=0.2,
        decode=decode or {},
        trained_on=(),
        measured={},
        provenance={},
        neighbours=neighbours,
    )
    return Model(
        artifact=artifact,
        keypoint_engine=keypoint_engine or FakeKeypointEngine(),
        segment_engine=segment_engine or FakeSegmentEngine(neighbours=neighbours),
    )


class ListSource:
    """Frames from a list, or from an endless counter; knows whether it was closed."""

    name = "list"
    still_images = False

    def __init__(
        self,
        frames: Sequence[Frame] | None = None,
        *,
        live: bool = False,
        error: Exception | None = None,
        interval_s: float = 0.0,
    ) -> None:
        self._frames = frames
        self._error = error
        self._interval_s = interval_s
        self._stop = threading.Event()
        self.live = live
        self.frame_total = None if frames is None else len(frames)
        self.frames_lost = 0
        self.given = 0
        self.closed = 0

    def frames(self) -> Iterator[Frame]:
        index = 0
        while not self._stop.is_set() and (self._frames is None or index < len(self._frames)):
            if self._interval_s:
                time.sleep(self._interval_s)
            self.given += 1
            yield frame(index) if self._frames is None else self._frames[index]
            index += 1
        if self._error is not None and not self._stop.is_set():
            raise self._error

    def stop(self) -> None:
        self._stop.set()

    def close(self) -> None:
        self.closed += 1


class FunctionStage:
    """A stage made of a function; counts what the runtime does with it."""

    def __init__(
        self,
        name: str,
        function: Callable[[Any], Any] = lambda item: item,
        *,
        on_open: Callable[[], None] | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self.seen: list[Any] = []
        self.opened = self.closed = 0
        self.thread: threading.Thread | None = None
        self._function = function
        self._on_open = on_open
        self._on_close = on_close

    def open(self) -> None:
        self.opened += 1
        self.thread = threading.current_thread()
        if self._on_open is not None:
            self._on_open()

    def process(self, item: Any) -> Any:
        assert threading.current_thread() is self.thread
        self.seen.append(item)
        return self._function(item)

    def close(self) -> None:
        self.closed += 1
        if self._on_close is not None:
            self._on_close()


class CollectingSink:
    """Keeps what it is given."""

    def __init__(self, *, error: Exception | None = None, fail_at: int | None = None) -> None:
        self.results: list[FrameResult] = []
        self.checked = self.closed = 0
        self._error = error
        self._fail_at = fail_at

    def check(self) -> None:
        self.checked += 1

    def write(self, result: FrameResult) -> None:
        if self._error is not None and len(self.results) == self._fail_at:
            raise self._error
        self.results.append(result)

    def close(self) -> None:
        self.closed += 1


def poses_of(of: Frame, *boxes: tuple[float, float, float, float], confidence: float = 0.9) -> Poses:
    """Standing people in boxes (x0, y0, x1, y1) of a frame; the fake network's features are not among it."""
    from kernels.letterbox import plan_letterbox

    keypoints = np.zeros((len(boxes), 17, 3), np.float32)
    for n, (x0, y0, x1, y1) in enumerate(boxes):
        matrix = np.array([[x1 - x0, 0, x0], [0, y1 - y0, y0]])
        keypoints[n, :, :2] = transform_points(matrix, STANDING)
        keypoints[n, :, 2] = confidence
    return Poses(
        frame=of,
        keypoints=keypoints,
        scores=np.linspace(0.9, 0.5, len(boxes), dtype=np.float32),
        letterbox=plan_letterbox(of.height, of.width, long_side=128),
        features=None,
    )


def masks_of(of: Frame, *boxes: tuple[float, float, float, float], size: int = 64) -> InstanceMasks:
    """People whose masks fill their boxes; the window of each is its box, stretched."""
    poses = poses_of(of, *boxes)
    roi_from_frame = np.zeros((len(boxes), 2, 3), np.float32)
    for n, (x0, y0, x1, y1) in enumerate(boxes):
        scale_x, scale_y = size / (x1 - x0), size / (y1 - y0)
        roi_from_frame[n] = [
            [scale_x, 0, (0.5 - x0) * scale_x - 0.5],
            [0, scale_y, (0.5 - y0) * scale_y - 0.5],
        ]
    rois = AlignedRois(
        poses=poses,
        ids=np.arange(1, len(boxes) + 1, dtype=np.int32),
        joint_visible=np.ones((len(boxes), 17), np.bool_),
        roi_from_frame=roi_from_frame,
        template_index=np.zeros(len(boxes), np.int32),
        fit_scores=np.ones(len(boxes), np.float32),
    )
    probabilities = np.ones((len(boxes), size, size), np.float32)
    return InstanceMasks(rois=rois, probabilities=probabilities, scores=np.ones(len(boxes), np.float32))
