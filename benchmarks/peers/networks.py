"""The contestants of `benchmarks.compare` that are not ours, each run in its own environment.

    python -m benchmarks.peers.networks NAME [--model F ...] [--runtime onnxruntime|openvino] [--threads N]

They get the best of the treatment that we give ourselves: decoding on a thread beside them, a lean NumPy and OpenCV
post-processing in place of a library's own, runtime workers that sleep between calls. Networks with random weights find
nothing, so their scores and boxes are replaced by those of as many people as the frame is to have; everything that
follows (suppression, mask assembly, drawing) is real.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from benchmarks.peers.protocol import PassFigures, run_clip, serve

Array = np.ndarray[Any, Any]
LIMBS = ((5, 7), (7, 9), (6, 8), (8, 10), (5, 6), (11, 12), (5, 11), (6, 12), (11, 13), (13, 15), (12, 14), (14, 16))
COLOURS = ((230, 60, 60), (60, 180, 75), (70, 110, 230), (245, 170, 40), (150, 60, 190), (60, 200, 200))
OPACITY = 0.45
MASK_THRESHOLD = 0.5


class Contestant(Protocol):
    """Draws the people of one picture."""

    def draw(self, picture: Array, people: int) -> tuple[int, float]:
        """See `benchmarks.peers.protocol.Draw`."""


def people_boxes(people: int, height: int, width: int) -> Array:
    """(N, 4) boxes x0, y0, x1, y1 of people who stand side by side, px: 0.6 of the height, 0.35 as wide as high."""
    tall, wide = 0.6 * height, 0.21 * height
    centres = (np.arange(people) + 0.5) * width / max(people, 1)
    return np.stack(
        (centres - wide / 2, np.full(people, 0.2 * height), centres + wide / 2, np.full(people, 0.2 * height + tall)), 1
    )


def tint(picture: Array, mask: Array, x0: int, y0: int, index: int) -> None:
    """Blend a colour over the px of a mask whose top left corner is x0, y0, in place, and draw its outline."""
    height, width = mask.shape
    region = picture[y0 : y0 + height, x0 : x0 + width]
    mask = np.ascontiguousarray(mask[: region.shape[0], : region.shape[1]]).view(np.uint8)
    colour = COLOURS[index % len(COLOURS)]
    levels = np.arange(256)[:, None, None] * (1 - OPACITY) + OPACITY * np.array(colour)
    cv2.copyTo(cv2.LUT(region, levels.astype(np.uint8)), mask, region)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.polylines(
        picture, [contour + np.array((x0, y0), np.int32) for contour in contours], True, colour, 1, cv2.LINE_AA
    )


def draw_box(picture: Array, box: Array, index: int) -> None:
    """Box and label of one person."""
    x0, y0, x1, y1 = (int(value) for value in box)
    colour = COLOURS[index % len(COLOURS)]
    cv2.rectangle(picture, (x0, y0), (x1, y1), colour, 1, cv2.LINE_AA)
    cv2.putText(
        picture, f"person {index}", (x0, max(y0 - 3, 10)), cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, 1, cv2.LINE_AA
    )


def draw_skeleton(picture: Array, joints: Array, index: int) -> None:
    """Limbs and joints of one person: (17, 2) x, y in px."""
    colour = COLOURS[index % len(COLOURS)]
    points = [(int(x), int(y)) for x, y in np.clip(joints, -10000, 10000)]
    for a, b in LIMBS:
        cv2.line(picture, points[a], points[b], colour, 2, cv2.LINE_AA)
    for point in points:
        cv2.circle(picture, point, 2, (255, 255, 255), -1, cv2.LINE_AA)


class OnnxNetwork:
    """One ONNX file in ONNX Runtime or OpenVINO, both with workers that sleep between calls."""

    def __init__(self, path: Path, runtime: str, threads: int) -> None:
        if runtime == "openvino":
            import openvino

            settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
            compiled = openvino.Core().compile_model(str(path), "CPU", settings)
            request = compiled.create_infer_request()
            self.input = compiled.inputs[0].get_any_name()
            precision = str(compiled.get_property("INFERENCE_PRECISION_HINT"))
            self.name = f"openvino {openvino.__version__.partition('-')[0]}, {precision}"
            self._call: Callable[[Mapping[str, Array]], list[Array]] = lambda feeds: list(
                request.infer(feeds, share_inputs=True).values()
            )
        else:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.log_severity_level = 3
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            self.input = session.get_inputs()[0].name
            self.name = f"onnxruntime {onnxruntime.__version__}"
            self._call = lambda feeds: session.run(None, feeds)
        self.seconds = 0.0

    def run(self, image: Array) -> list[Array]:
        """Outputs of one call; its time is added to `seconds`."""
        started = time.perf_counter()
        outputs = self._call({self.input: image})
        self.seconds += time.perf_counter() - started
        return outputs

    def take_seconds(self) -> float:
        """Time in calls since this was asked last."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class Yolo:
    """YOLO26 and YOLO11, segmentation or segmentation and pose, 384 x 640."""

    HEIGHT, WIDTH = 384, 640
    CONFIDENCE = 0.25
    IOU = 0.7

    def __init__(self, paths: list[Path], runtime: str, threads: int) -> None:
        networks = [OnnxNetwork(path, runtime, threads) for path in paths]
        self._seg, self._pose = networks[0], networks[1] if len(networks) > 1 else None
        self.name = self._seg.name

    def draw(self, picture: Array, people: int) -> tuple[int, float]:
        scale = min(self.HEIGHT / picture.shape[0], self.WIDTH / picture.shape[1])
        height, width = round(picture.shape[0] * scale), round(picture.shape[1] * scale)
        top, left = (self.HEIGHT - height) // 2, (self.WIDTH - width) // 2
        canvas = np.full((self.HEIGHT, self.WIDTH, 3), 114, np.uint8)
        canvas[top : top + height, left : left + width] = cv2.resize(picture, (width, height))
        image = cv2.dnn.blobFromImage(canvas, 1 / 255)
        boxes = people_boxes(people, height, width) + np.array((left, top, left, top))
        rows, prototypes = self._seg.run(image)
        found = self._people(rows, boxes, mask_values=prototypes.shape[1])
        shift = np.array((left, top, left, top))
        for index, row in enumerate(found):
            box = np.clip((row[:4] - shift) / scale, 0, [picture.shape[1], picture.shape[0]] * 2)
            mask, x0, y0 = self._mask(row[6:], prototypes[0], row[:4], box)
            if mask.size:
                tint(picture, mask, x0, y0, index)
            draw_box(picture, box, index)
        seconds = self._seg.take_seconds()
        if self._pose is not None:
            rows = self._pose.run(image)[0]
            for index, row in enumerate(self._people(rows, boxes, mask_values=0)):
                draw_skeleton(picture, (row[6:].reshape(17, 3)[:, :2] - (left, top)) / scale, index)
            seconds += self._pose.take_seconds()
        return len(found), seconds

    def _people(self, rows: Array, boxes: Array, *, mask_values: int) -> Array:
        """(N, 6 + values): box x0, y0, x1, y1 in input px, score, class, then mask coefficients or joints."""
        rows = rows[0].copy()
        if rows.shape[0] == 300:  # YOLO26: chosen in the graph already
            rows[:, 4] *= 0.0
            rows[: len(boxes), :4], rows[: len(boxes), 4], rows[: len(boxes), 5] = boxes, 0.9, 0
            return rows[rows[:, 4] >= self.CONFIDENCE]
        extra = mask_values or 51
        classes = rows.shape[0] - 4 - extra
        rows[4 : 4 + classes] *= 0.0
        places = np.linspace(0, rows.shape[1] - 1, len(boxes)).astype(int)
        rows[:4, places] = np.concatenate(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1).T
        rows[4, places] = 0.9
        scores = rows[4 : 4 + classes].max(0)
        kept = np.flatnonzero(scores >= self.CONFIDENCE)
        rows, scores = rows[:, kept].T, scores[kept]
        corners = np.concatenate((rows[:, :2] - rows[:, 2:4] / 2, rows[:, 2:4]), 1)
        order = cv2.dnn.NMSBoxes(corners.tolist(), scores.tolist(), self.CONFIDENCE, self.IOU)
        chosen = rows[np.asarray(order, int).reshape(-1)]
        x0y0, size = chosen[:, :2] - chosen[:, 2:4] / 2, chosen[:, 2:4]
        best = chosen[:, 4 : 4 + classes]
        return np.concatenate(
            (x0y0, x0y0 + size, best.max(1, keepdims=True), best.argmax(1)[:, None], chosen[:, 4 + classes :]), 1
        )

    def _mask(self, coefficients: Array, prototypes: Array, box: Array, frame_box: Array) -> tuple[Array, int, int]:
        """Mask of one person inside its box: assembled on the prototypes' grid, scaled to the frame, cut at 0."""
        _, rows, columns = prototypes.shape
        stride = self.WIDTH / columns
        c0, r0 = np.floor(np.maximum(box[:2] / stride, 0)).astype(int)
        c1, r1 = np.ceil(np.minimum(box[2:] / stride, (columns, rows))).astype(int)
        x0, y0 = np.floor(frame_box[:2]).astype(int)
        x1, y1 = np.ceil(frame_box[2:]).astype(int)
        if c1 <= c0 or r1 <= r0 or x1 <= x0 or y1 <= y0:
            return np.zeros((0, 0), np.bool_), 0, 0
        logits = np.tensordot(coefficients, prototypes[:, r0:r1, c0:c1], 1)
        return cv2.resize(logits.astype(np.float32), (int(x1 - x0), int(y1 - y0))) > 0, int(x0), int(y0)


class RfDetr:
    """RF-DETR-Seg nano as ONNX: boxes, logits, masks of all queries."""

    def __init__(self, paths: list[Path], runtime: str, threads: int) -> None:
        self._network = OnnxNetwork(paths[0], runtime, threads)
        self.name = self._network.name
        self._side = int(paths[0].stem.rpartition("-")[2])
        self._mean = np.array((0.485, 0.456, 0.406), np.float32) * 255
        self._deviation = np.array((0.229, 0.224, 0.225), np.float32) * 255

    def draw(self, picture: Array, people: int) -> tuple[int, float]:
        height, width = picture.shape[:2]
        scaled = (cv2.resize(picture, (self._side, self._side)) - self._mean) / self._deviation
        outputs = self._network.run(np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32))
        boxes, logits, masks = outputs
        scores = 1 / (1 + np.exp(-logits[0])).max(1)
        scores[:] = 0
        scores[:people] = 0.9
        boxes = boxes[0].copy()
        boxes[:people] = people_boxes(people, height, width)
        chosen = np.flatnonzero(scores >= 0.5)
        for index, query in enumerate(chosen):
            mask = cv2.resize(masks[0, query], (width, height)) > 0
            tint(picture, mask, 0, 0, index)
            draw_box(picture, boxes[query], index)
        return len(chosen), self._network.take_seconds()


class MaskRcnn:
    """torchvision's Mask R-CNN ResNet-50 FPN in PyTorch, its own size (short side 800)."""

    def __init__(self, _paths: list[Path], _runtime: str, threads: int) -> None:
        from benchmarks.peers.torchvision_without_cuda import import_torchvision

        torchvision = import_torchvision()
        import torch

        torch.set_num_threads(threads)
        self._torch = torch
        self._model = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
        self._people = 0
        self._model.roi_heads.postprocess_detections = self._forced
        self.name = f"torch {torch.__version__}, torchvision {torchvision.__version__}"

    def _forced(self, _logits: Any, _boxes: Any, _proposals: Any, shapes: list[tuple[int, int]]) -> Any:
        torch = self._torch
        boxes = torch.from_numpy(people_boxes(self._people, *shapes[0]).astype(np.float32))
        count = len(boxes)
        return [boxes], [torch.full((count,), 0.9)], [torch.ones(count, dtype=torch.int64)]

    def draw(self, picture: Array, people: int) -> tuple[int, float]:
        torch = self._torch
        self._people = people
        started = time.perf_counter()
        with torch.inference_mode():
            image = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
            found = self._model([image])[0]
        seconds = time.perf_counter() - started
        for index, (mask, box) in enumerate(zip(found["masks"].numpy(), found["boxes"].numpy(), strict=True)):
            tint(picture, mask[0] > MASK_THRESHOLD, 0, 0, index)
            draw_box(picture, box, index)
        return len(found["masks"]), seconds


class BlazePose:
    """MediaPipe's pose landmarks with a segmentation mask: one person, real weights."""

    def __init__(self, _paths: list[Path], _runtime: str, _threads: int) -> None:
        import mediapipe

        self._solution = mediapipe.solutions.pose.Pose(model_complexity=1, enable_segmentation=True)
        self.name = f"mediapipe {mediapipe.__version__}"

    def draw(self, picture: Array, _people: int) -> tuple[int, float]:
        started = time.perf_counter()
        result = self._solution.process(picture)
        seconds = time.perf_counter() - started
        if result.pose_landmarks is None:
            return 0, seconds
        if result.segmentation_mask is not None:
            tint(picture, result.segmentation_mask > MASK_THRESHOLD, 0, 0, 0)
        height, width = picture.shape[:2]
        order = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)  # BlazePose's points for COCO's joints
        points = result.pose_landmarks.landmark
        draw_skeleton(picture, np.array([(points[i].x * width, points[i].y * height) for i in order]), 0)
        return 1, seconds


class MoveNet:
    """MoveNet MultiPose Lightning as ONNX: six skeletons at most, no masks, real weights; long side 512."""

    LONG_SIDE = 512
    CONFIDENCE = 0.2

    def __init__(self, paths: list[Path], runtime: str, threads: int) -> None:
        self._network = OnnxNetwork(paths[0], runtime, threads)
        self.name = self._network.name

    def draw(self, picture: Array, _people: int) -> tuple[int, float]:
        scale = self.LONG_SIDE / max(picture.shape[:2])
        height, width = round(picture.shape[0] * scale), round(picture.shape[1] * scale)
        canvas = np.zeros((-(-height // 32) * 32, -(-width // 32) * 32, 3), np.uint8)
        canvas[:height, :width] = cv2.resize(picture, (width, height))
        rows = self._network.run(canvas[None].astype(np.int32))[0][0]
        rows = rows[rows[:, 55] >= self.CONFIDENCE]
        for index, row in enumerate(rows):
            joints = row[:51].reshape(17, 3)[:, 1::-1] * canvas.shape[1::-1] / scale
            draw_skeleton(picture, joints, index)
        return len(rows), self._network.take_seconds()


CONTESTANTS: dict[str, Callable[[list[Path], str, int], Any]] = {
    "yolo": Yolo,
    "rfdetr": RfDetr,
    "maskrcnn": MaskRcnn,
    "blazepose": BlazePose,
    "movenet": MoveNet,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CONTESTANTS)
    parser.add_argument("--model", type=Path, nargs="*", default=[])
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    contestant = CONTESTANTS[options.name](options.model, options.runtime, options.threads)

    def run(clip: str, frames: int, people: Any) -> PassFigures:
        return run_clip(contestant.draw, clip, frames, people)

    files = [file for path in options.model for file in (path, path.with_suffix(".bin")) if file.is_file()]
    weights = sum(file.stat().st_size for file in files)
    serve(run, {"runtime": contestant.name, "weights_mb": weights / 1e6 if weights else None})


if __name__ == "__main__":
    main()
