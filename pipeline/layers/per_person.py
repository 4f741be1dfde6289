"""A layer's file for each person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kernels.coordinates import U8
from pipeline.errors import SinkError
from pipeline.layers import pictures
from pipeline.layers.alpha import AlphaMaker
from pipeline.layers.files import PictureWriter
from pipeline.layers.options import ID_MARK, ChosenPeople, Layer
from pipeline.messages import Frame, FrameResult
from pipeline.video_output import OutputClock

CLOSE_AFTER_S = 5.0  # a person who is away for more than two seconds never comes back under the same id
PEOPLE_AT_ONCE = 32  # files of single people that may be open: each holds an encoder


class PerPersonSink:
    """A file for each chosen person, as large as the frame, all on one time line.

    A file begins at the start of the run. While its person is away it holds one empty picture, so that this costs
    nothing; a folder has a picture of each frame in which the person is seen, and an empty one where they leave.
    """

    def __init__(
        self,
        layer: Layer,
        maker: AlphaMaker,
        chosen: ChosenPeople,
        *,
        overwrite: bool,
        make_writer: Callable[[Path, OutputClock], PictureWriter],
    ) -> None:
        """Set up.

        Args:
            layer: its path holds ``{id}``.
            maker: of the run's alphas.
            chosen: who gets a file.
            overwrite: replace files that exist.
            make_writer: opens nothing yet.
        """
        self._layer = layer
        self._maker = maker
        self._chosen = chosen
        self._overwrite = overwrite
        self._make_writer = make_writer
        self._clock = OutputClock()
        self._clip = -1
        self._begun: set[int] = set()  # whose file is not ended
        self._writers: dict[int, PictureWriter] = {}  # of those who were seen lately
        self._last_seen_s: dict[int, float] = {}
        self._away: set[int] = set()
        self._files: Counter[int] = Counter()
        self._frames = 0

    def check(self) -> None:
        folder = self._layer.path.parent
        pattern = self._layer.path.name.replace("[", "[[]").replace(ID_MARK, "[0-9]*")
        if folder.is_dir() and not self._overwrite and (found := sorted(folder.glob(pattern))):
            raise SinkError(f"{found[0]}: exists already: choose another name or add --overwrite")
        self._make_writer(self._layer.path_of(1), self._clock).check()

    def write(self, result: FrameResult) -> None:
        frame = result.frame
        if frame.clip != self._clip:
            self._end(list(self._begun))
        self._clip = frame.clip
        self._frames += 1
        self._clock.pts_of(frame)
        here = {
            one.person.id: one
            for one in self._maker.of(result)
            if one.person.id in self._chosen and one.alpha.alpha.size
        }
        for person_id, one in here.items():
            alpha = one.alpha.in_frame(frame.height, frame.width)
            self._writer_of(person_id, frame).write_picture(self._picture(frame, alpha), frame)
            self._last_seen_s[person_id] = frame.pts_s
            self._away.discard(person_id)
        for person_id in sorted(self._begun - here.keys()):
            if person_id not in self._away:
                self._away.add(person_id)
                self._writer_of(person_id, frame).write_picture(self._nothing(frame), frame)
            elif frame.pts_s - self._last_seen_s[person_id] > CLOSE_AFTER_S:
                self._end([person_id])

    def close(self) -> None:
        self._end(list(self._begun))

    def to_state(self) -> dict[str, Any]:
        """Who has a file; see `pipeline.layers.state`. To be asked before `close`."""
        return {
            "clip": self._clip,
            "frames": self._frames,
            "begun": sorted(self._begun),
            "away": sorted(self._away),
            "last_seen_s": sorted(self._last_seen_s.items()),
            "files": sorted(self._files.items()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `to_state` was called, in files of another name."""
        self._clip, self._frames = state["clip"], state["frames"]
        self._begun, self._away = set(state["begun"]), set(state["away"])
        self._last_seen_s = dict(state["last_seen_s"])
        self._files = Counter(dict(state["files"]))

    def _picture(self, frame: Frame, alpha: U8) -> U8:
        return pictures.cut_out(frame.image, alpha) if self._layer.kind == "cutout" else alpha

    def _nothing(self, frame: Frame) -> U8:
        shape = (frame.height, frame.width)
        return np.zeros((*shape, 4) if self._layer.kind == "cutout" else shape, np.uint8)

    def _writer_of(self, person_id: int, frame: Frame) -> PictureWriter:
        if person_id in self._writers:
            return self._writers[person_id]
        if person_id not in self._begun and len(self._begun) >= PEOPLE_AT_ONCE:
            raise SinkError(
                f"{self._layer.path}: more than {PEOPLE_AT_ONCE} people at once would each need a file: choose some "
                "with --layer-ids, or write all into one file"
            )
        path = self._layer.path_of(person_id)
        goes_on = person_id in self._begun
        self._files[person_id] += not goes_on
        if self._files[person_id] > 1:  # ids start anew with each clip
            path = path.with_name(f"{path.stem}-{self._files[person_id]}{path.suffix}")
        writer = self._make_writer(path, self._clock)
        writer.check()
        self._writers[person_id] = writer
        self._begun.add(person_id)
        if self._frames > 1 and not goes_on:
            writer.write_picture(self._nothing(frame), frame, at_start=True)
        return writer

    def _end(self, person_ids: list[int]) -> None:
        failure: Exception | None = None
        for person_id in person_ids:
            self._begun.discard(person_id)
            self._away.discard(person_id)
            writer = self._writers.pop(person_id, None)
            try:
                if writer is not None:
                    writer.close()
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure
