"""AlignedRois -> InstanceMasks: the segment network looks at the shared features through each person's window."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines import Engine, EngineOutOfMemory
from engines.device import Array, Device
from kernels.coordinates import F32, compose, invert
from kernels.neighbours import OWN_ONLY
from kernels.renewal import window_renewals
from kernels.roi_inputs import segment_feeds
from pipeline.messages import AlignedRois, Features, InstanceMasks

JOINT_SEEN = 2.0  # the network's mark of a joint that is there and visible (COCO's v)


class _KnownMask(NamedTuple):
    probabilities: F32
    score: np.float32
    number: int  # of the picture it was made from


class SegmentStage:
    """Owns the segment engine; all people of all frames that came out of one keypoint call are one call."""

    name = "segment"

    def __init__(
        self,
        engine: Engine,
        device: Device,
        *,
        feature_from_input: F32,
        roi_size: int,
        neighbours: bool = False,
        person_threshold: float = 0.0,
    ) -> None:
        """Keep what the model prescribes.

        Args:
            engine: of the segment graph; closed with the stage.
            device: where the engine works, and where the features lie.
            feature_from_input: (2, 3), a property of the network.
            roi_size: side of the window, ROI px.
            neighbours: a mask depends on the other people of the picture, too: on those who reach ``person_threshold``.
            person_threshold: weaker people are nobody's neighbours. A mask then follows from the picture alone, and not
                from who is known from earlier ones.
        """
        self._engine = engine
        self._device = device
        self._feature_from_input = feature_from_input
        self._roi_size = roi_size
        self._neighbours = neighbours
        self._person_threshold = person_threshold
        self._people_per_call = int(getattr(engine, "limits", {}).get("N", 0)) or None
        self._known: dict[int, dict[bytes, _KnownMask]] = {}  # for each stream, by what the mask was made from

    @property
    def batch_limit(self) -> int:
        """As many as one keypoint call may have made."""
        return max(1, self._device.frames_per_call)

    def open(self) -> None:
        """The engine was loaded when the run was built, so that a bad model ends it before anything else starts."""

    def process(self, rois: AlignedRois) -> InstanceMasks:
        return self.process_batch([rois])[0]

    def process_batch(self, items: Sequence[AlignedRois]) -> list[InstanceMasks]:
        """Masks of several frames; neighbours whose features lie in one array share a call."""
        return [masks for group in _by_features(items) for masks in self._one_group(group)]

    def close(self) -> None:
        self._engine.close()

    def _one_group(self, group: Sequence[AlignedRois]) -> list[InstanceMasks]:
        counts = [len(rois.roi_from_frame) for rois in group]
        features = group[0].poses.features
        if features is None or not sum(counts):
            empty = np.zeros((0, self._roi_size, self._roi_size), np.float32)
            return [_masks(rois, empty, empty, np.zeros(0, np.float32)) for rois in group]
        feeds = self._feeds(group)
        if features.renewed is not None and len(group) == 1:
            return [self._known_or_new(group[0], features, features.renewed, feeds)]
        probabilities, host = self._run(features.maps, feeds)
        ends = np.cumsum(counts).tolist()
        return [
            _masks(
                rois,
                probabilities[end - count : end],
                host["probabilities"][end - count : end],
                host["scores"][end - count : end],
            )
            for rois, count, end in zip(group, counts, ends, strict=True)
        ]

    def _known_or_new(
        self, rois: AlignedRois, features: Features, renewed: NDArray[np.int64], feeds: dict[str, NDArray[Any]]
    ) -> InstanceMasks:
        """Masks of one frame; somebody in whose window nothing has changed since their last mask keeps it.

        Where masks depend on neighbours, all are made again as soon as somebody comes, goes, moves or needs a new one.
        """
        known = self._known.setdefault(rois.poses.frame.stream, {})
        matrices, joints = feeds["feature_from_roi"], feeds["roi_keypoints"]
        keys = [matrix.tobytes() + pose.tobytes() for matrix, pose in zip(matrices, joints, strict=True)]
        if self._neighbours:
            everybody = blake2b(b"".join(sorted(keys))).digest()
            keys = [key + everybody for key in keys]
        changed = window_renewals(
            renewed,
            compose(invert(self._feature_from_input), matrices),
            roi_size=self._roi_size,
            margin=2.0 / float(self._feature_from_input[0, 0]),
        )
        new = [
            n
            for n, (key, number) in enumerate(zip(keys, changed.tolist(), strict=True))
            if key not in known or known[key].number < number
        ]
        if new and self._neighbours:
            new = list(range(len(keys)))
        if new:
            _, host = self._run(features.maps, {name: feed[new] for name, feed in feeds.items()})
            number = int(renewed.max())
            for row, n in enumerate(new):
                known[keys[n]] = _KnownMask(host["probabilities"][row], host["scores"][row], number)
        masks = [known[key] for key in keys]
        self._known[rois.poses.frame.stream] = dict(zip(keys, masks, strict=True))  # whoever is gone is forgotten
        probabilities = np.stack([mask.probabilities for mask in masks])
        return _masks(rois, probabilities, probabilities, np.array([mask.score for mask in masks], np.float32))

    def _feeds(self, group: Sequence[AlignedRois]) -> dict[str, NDArray[Any]]:
        """Inputs for all people of the group, those of one frame after those of the other."""
        parts = []
        for rois in group:
            poses = rois.poses
            weak = self._neighbours & (poses.scores < self._person_threshold)
            visible = np.where(weak, OWN_ONLY, JOINT_SEEN)[:, None]
            part = segment_feeds(
                poses.keypoints,
                np.where(rois.joint_visible, visible, 0.0),
                rois.roi_from_frame,
                poses.letterbox.input_from_frame,
                self._feature_from_input,
            )
            if poses.features is not None:
                part["roi_image"][:] = poses.features.row
            parts.append(part)
        if len(parts) == 1:
            return dict(parts[0])
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run(self, maps: Array, feeds: Mapping[str, NDArray[Any]]) -> tuple[Array, dict[str, NDArray[Any]]]:
        """Probabilities on the device and all outputs on the host; more people than one call takes are several.

        Where masks depend on neighbours, a picture's people stay together unless they alone are more than a call takes:
        then those of another call are not seen.
        """
        people = len(feeds["roi_image"])
        limit = min(people, self._people_per_call or people)
        on_device: list[Array] = []
        on_host: list[dict[str, NDArray[Any]]] = []
        done = 0
        while done < people:
            end = min(done + limit, people)
            if self._neighbours:
                end = _end_of_pictures(feeds["roi_image"], done, end)
            rows = slice(done, end)
            try:
                outputs = self._device.run(
                    self._engine, {"features": maps, **{name: feed[rows] for name, feed in feeds.items()}}
                )
                host = self._device.to_host(outputs)
            except EngineOutOfMemory:
                self._device.free_memory()
                if limit == 1:
                    raise
                limit = self._people_per_call = max(1, limit // 2)
                continue
            on_device.append(outputs["probabilities"])
            on_host.append(host)
            done = rows.stop
        if len(on_host) == 1:
            return on_device[0], on_host[0]
        return self._device.join(on_device), {
            name: np.concatenate([part[name] for part in on_host]) for name in on_host[0]
        }


def _end_of_pictures(images: NDArray[np.integer], first: int, end: int) -> int:
    """The last border between pictures in first < row <= end; ``end`` where there is none."""
    if end == len(images):
        return end
    borders = [row for row in range(first + 1, end + 1) if images[row] != images[row - 1]]
    return borders[-1] if borders else end


def _by_features(items: Sequence[AlignedRois]) -> Iterator[list[AlignedRois]]:
    """Runs of neighbours whose features are rows of the same array."""
    group: list[AlignedRois] = []
    for rois in items:
        if group and _maps_of(group[-1].poses.features) is not _maps_of(rois.poses.features):
            yield group
            group = []
        group.append(rois)
    if group:
        yield group


def _maps_of(features: Features | None) -> Array:
    return None if features is None else features.maps


def _masks(rois: AlignedRois, on_device: Array, probabilities: F32, scores: F32) -> InstanceMasks:
    """The message; the feature maps end here."""
    poses = rois.poses
    features = None if poses.features is None else replace(poses.features, maps=None)
    return InstanceMasks(
        rois=replace(rois, poses=replace(poses, features=features)),
        probabilities=probabilities,
        scores=scores,
        on_device=on_device,
    )
