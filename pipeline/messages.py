"""What travels through the pipeline: one object per frame, each holding its predecessor.

    Frame -> Poses -> AlignedRois -> InstanceMasks -> FrameResult

The type of a message says which stages are done. N people may be 0, and such a frame flows on like any other. Arrays
are read-only once a message is handed over.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.device import Array, Surface
from kernels.coordinates import F32, I32, U8
from kernels.letterbox import Letterbox
from pipeline.person import Person
from pipeline.zones.event import ZoneEvent

if TYPE_CHECKING:
    from pipeline.exports.supervision_result import SupervisionResult


class ShapesInRepr:
    """A repr that shows dtype and shape of arrays in place of their pixels."""

    __slots__ = ()

    def __repr__(self) -> str:
        shown = []
        for field in fields(self):  # type: ignore[arg-type]  # every user is a dataclass
            value = getattr(self, field.name)
            text = f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else repr(value)
            shown.append(f"{field.name}={text}")
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Frame(ShapesInRepr):
    """One decoded picture.

    Attributes:
        index: number of the frame in its source file or stream, from 0; a gap means frames that were lost or dropped.
            Pictures of a folder are numbered through in the order they are read.
        source: path or redacted address it came from.
        clip: which source file of the run, from 0. Ids of people live inside one clip; unrelated pictures are a clip
            each.
        pts: presentation time in units of ``time_base``.
        time_base: seconds.
        captured_s: monotonic clock at the moment the frame was decoded, s.
        pixels: (H, W, 3) uint8 RGB, upright: rotation marks are already applied; or the picture where a hardware
            decoder left it. Read `image`.
        stream: which of the streams that share the model, from 0. Ids of people belong to a stream.
    """

    index: int
    source: str
    clip: int
    pts: int
    time_base: Fraction
    captured_s: float
    pixels: U8 | Surface
    stream: int = 0

    def __post_init__(self) -> None:
        pixels = self.pixels
        if isinstance(pixels, np.ndarray) and (
            pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size
        ):
            raise ValueError(f"pixels must be (H, W, 3) uint8, got {pixels.dtype} {pixels.shape}")

    @property
    def image(self) -> U8:
        """(H, W, 3) uint8 RGB; a picture in device memory is brought to the host by the first who asks."""
        return self.pixels if isinstance(self.pixels, np.ndarray) else self.pixels.rgb()

    @property
    def pts_s(self) -> float:
        """Presentation time in seconds of the source's own clock."""
        return float(self.pts * self.time_base)

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Features(ShapesInRepr):
    """What the keypoint network leaves on the model's device for the segment network.

    Attributes:
        maps: (B, C, h, w) of the shared backbone, for the B frames of one call.
        row: which of the B frames this is.
        picture: (H, W, 3) uint8 RGB, the frame on the device.
        renewed: (ceil(H / 16), ceil(W / 16)) numbers that grow from picture to picture: when each block of 16 x 16
            input px was last looked at; None where every frame is looked at as a whole.
    """

    maps: Array
    row: int
    picture: Array
    renewed: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Poses(ShapesInRepr):
    """The people of a frame, as joints.

    Attributes:
        frame: the picture.
        keypoints: (N, 17, 3) float32: x, y in frame px, confidence 0..1.
        scores: (N,) float32, 0..1: how sure the keypoint network is of the person.
        letterbox: how the frame lies in the network's input.
        features: what lies on the device; None in results, so that those somebody keeps stay small.
    """

    frame: Frame
    keypoints: F32
    scores: F32
    letterbox: Letterbox
    features: Features | None

    def __post_init__(self) -> None:
        n = len(self.scores)
        if self.keypoints.shape != (n, 17, 3):
            raise ValueError(f"keypoints must be (N={n}, 17, 3), got {self.keypoints.shape}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class AlignedRois(ShapesInRepr):
    """Where each person's upright window lies.

    Attributes:
        poses: the people.
        ids: (N,) int32, all different, stable within a clip.
        joint_visible: (N, 17) bool: joints whose confidence reached the joint threshold; only these guide the mask.
        roi_from_frame: (N, 2, 3) float32.
        template_index: (N,) int32; -1: no template fits, the window is the whole frame.
        fit_scores: (N,) float32, 0..1.
    """

    poses: Poses
    ids: I32
    joint_visible: np.ndarray[Any, np.dtype[np.bool_]]
    roi_from_frame: F32
    template_index: I32
    fit_scores: F32

    def __post_init__(self) -> None:
        n = len(self.poses.scores)
        if self.roi_from_frame.shape != (n, 2, 3):
            raise ValueError(f"roi_from_frame must be (N={n}, 2, 3), got {self.roi_from_frame.shape}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class InstanceMasks(ShapesInRepr):
    """A mask per person, still in ROI space.

    Attributes:
        rois: the windows.
        probabilities: (N, S, S) float32 in ROI px, 0..1, on the host.
        scores: (N,) float32: mean probability inside the mask, 0 for an empty one.
        on_device: the probabilities where the model put them; None in results.
    """

    rois: AlignedRois
    probabilities: F32
    scores: F32
    on_device: Array = None

    def __post_init__(self) -> None:
        n = len(self.rois.roi_from_frame)
        if self.probabilities.ndim != 3 or len(self.probabilities) != n or self.scores.shape != (n,):
            raise ValueError(
                f"probabilities must be (N={n}, S, S) and scores (N={n},), "
                f"got {self.probabilities.shape}, {self.scores.shape}"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class FrameResult(ShapesInRepr):
    """All that is known about one frame.

    Attributes:
        masks: everything the stages before made, down to the picture: ``result.masks.rois.poses.frame``.
        people: in falling order of score; may be empty.
        drawn: (H, W, 3) uint8 RGB, the frame with people drawn on it; None when nothing in the run asked for drawing.
        events: who came into a zone, left one or stayed, with this frame; None when the run has no zones.
    """

    masks: InstanceMasks
    people: Sequence[Person]
    drawn: U8 | None
    events: Sequence[ZoneEvent] | None = None

    @property
    def frame(self) -> Frame:
        """The picture all this is about."""
        return self.masks.rois.poses.frame

    def overlay(self, image: U8 | None = None) -> U8:
        """Draw masks, skeletons, ids and scores.

        Args:
            image: (H, W, 3) uint8 RGB of the frame's size to draw on (it is not changed); None draws on the frame
                itself.

        Returns:
            (H, W, 3) uint8 RGB, a new array.
        """
        if image is None and self.drawn is not None:
            return self.drawn.copy()
        from pipeline.overlay import draw_people

        canvas = (self.frame.image if image is None else image).copy()
        if canvas.shape != self.frame.image.shape or canvas.dtype != np.uint8:
            raise ValueError(f"image must be uint8 {self.frame.image.shape}, got {canvas.dtype} {canvas.shape}")
        draw_people(canvas, self.people)
        return canvas

    def to_dict(self) -> dict[str, Any]:
        """The frame as plain numbers, texts and lists; docs/jsonl.md describes the fields."""
        frame = self.frame
        found: dict[str, Any] = {
            "frame": frame.index,
            "pts_s": round(frame.pts_s, 6),
            "width": frame.width,
            "height": frame.height,
            "source": frame.source,
            "people": [person.to_dict() for person in self.people],
        }
        if self.events is not None:
            found["events"] = [event.to_dict() for event in self.events]
        return found

    def to_json(self) -> str:
        """One line of JSON without its line end."""
        return json.dumps(self.to_dict(), separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    def to_supervision(self) -> SupervisionResult:
        """The people as ``supervision.Detections`` and ``supervision.KeyPoints``, row n of both the same person.

        Boxes are x0, y0, x1, y1 px, end exclusive; masks (N, H, W) bool; ``tracker_id`` is the person's id; ``visible``
        says which joints guided the mask. N may be 0.

        Raises:
            ModuleNotFoundError: supervision is not installed (extra ``interop``).
        """
        from pipeline.exports.supervision_result import to_supervision

        return to_supervision(self)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results of this frame, for ``pycocotools.coco.COCO.loadRes``; one entry per person.

        Args:
            image_id: id of the image in the ground-truth file.
        """
        return [person.to_coco(image_id) for person in self.people]
