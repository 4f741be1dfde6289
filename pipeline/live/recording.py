"""Recordings and JSON lines of a source that runs for ever: rotated, within the free space, readable after a crash."""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

from kernels.coordinates import U8
from pipeline.errors import SinkError
from pipeline.layers.files import PictureWriter
from pipeline.messages import Frame, FrameResult
from pipeline.stage6_sinks import sink_error
from pipeline.video_output import VideoSink

log = logging.getLogger(__name__)

FOLDER = "stream-{:02d}"
RECORDING_NAME: Final = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9]{4}(\.[a-z]{1,16})?\.(mp4|m4v|mov|webm|mkv|png|jpe?g)")
FOLDER_NAME: Final = re.compile(r"stream-[0-9]{2}")
SPACE_EVERY_S: Final = 2.0
RETRY_S: Final = 5.0
FRAGMENT_S: Final = 0.4  # with the frames in the encoder (none) and in the queue, less than 1 s is lost in a crash


class DiskSpace:
    """Keeps some space free below a folder by removing the oldest recordings of ours, and nothing else.

    Ours are regular files ``stream-NN/YYYYMMDD-HHMMSS-NNNN.mp4`` directly in the folder, and those of layers, whose
    names have the kind before the suffix; links are not followed.
    """

    def __init__(self, folder: Path, keep_free_bytes: int, *, free: Callable[[Path], int] | None = None) -> None:
        """Watch ``folder``.

        Args:
            folder: of all sources.
            keep_free_bytes: what is to stay free on its disk.
            free: bytes free on the disk of a path.
        """
        self.folder = folder
        self.removed = 0
        self._keep_free = keep_free_bytes
        self._free = free if free is not None else (lambda path: shutil.disk_usage(path).free)
        self._open: set[Path] = set()
        self._order: dict[Path, int] = {}  # of this run's recordings: names follow a wall clock that may be set back
        self._count = 0
        self._lock = threading.Lock()

    def opened(self, path: Path) -> None:
        """Keep a recording that is being written."""
        with self._lock:
            self._open.add(path)
            self._count += 1
            self._order[path] = self._count

    def closed(self, path: Path) -> None:
        with self._lock:
            self._open.discard(path)

    def make_room(self) -> bool:
        """Remove recordings until enough is free; False when that is not enough."""
        with self._lock:
            recordings: list[Path] | None = None
            while self._free(self.folder) < self._keep_free:
                if recordings is None:
                    recordings = [path for path in self._recordings() if path not in self._open]
                if not recordings:
                    return False
                oldest = recordings.pop(0)
                try:
                    oldest.unlink()
                except OSError as error:
                    log.warning("%s: cannot be removed (%s)", oldest, error.strerror)
                    continue
                self.removed += 1
                self._order.pop(oldest, None)
                log.info("%s: removed, less than %.2f GB are free", oldest, self._keep_free / 1e9)
        return True

    def _recordings(self) -> list[Path]:
        """Oldest first: those of other runs by their names, which begin with the time, then this run's as they came."""
        found = []
        for folder in self.folder.iterdir():
            if FOLDER_NAME.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
                found += [
                    path
                    for path in folder.iterdir()
                    if RECORDING_NAME.fullmatch(path.name) and path.is_file() and not path.is_symlink()
                ]
        return sorted(found, key=lambda path: (self._order.get(path, -1), path.name, path.parent.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingOptions:
    """How recordings are written.

    Attributes:
        rotate_s: a new file after so long.
        rotate_bytes: a new file at this size.
        crf, preset, encoder: see `pipeline.video_output.VideoSink`.
    """

    rotate_s: float
    rotate_bytes: int
    crf: int = 23
    preset: str = "ultrafast"
    encoder: str = "libx264"


class RecordingSink:
    """One recording after the other in a folder; a picture of another size begins a new one.

    A write error or a full disk ends the recording in work with one log line; every `RETRY_S` it is tried again.
    """

    name = "recording"

    def __init__(
        self,
        folder: Path,
        space: DiskSpace,
        options: RecordingOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
        ending: str = "mp4",
        make_video: Callable[[Path], PictureWriter] | None = None,
    ) -> None:
        """Set up; nothing is created.

        Args:
            folder: of the source.
            space: of all sources.
            options: when a new recording begins, and how a plain one is encoded.
            clock: monotonic, s.
            ending: of the names of recordings, behind their number and a dot.
            make_video: opens nothing; an mp4 by default.
        """
        self._folder = folder
        self._ending = ending
        self._make_video = self._plain_video if make_video is None else make_video
        self._space = space
        self._options = options
        self._clock = clock
        self._video: PictureWriter | None = None
        self._path = folder
        self._size = (0, 0)
        self._began_s = self._looked_s = 0.0
        self._count = 0
        self._not_before_s = 0.0
        self._troubled = False
        self.files = 0

    def write(self, result: FrameResult) -> None:
        """Take one frame.

        Raises:
            SinkError: it cannot be written now; later frames may be.
        """
        self.write_picture(result.drawn if result.drawn is not None else result.frame.image, result.frame)

    def check(self) -> None:
        """The folder was checked by the run."""

    def write_picture(self, picture: U8, frame: Frame, *, at_start: bool = False) -> None:
        """Take one picture of a frame.

        Raises:
            SinkError: as `write`.
        """
        if at_start:
            raise ValueError("recordings begin with their first picture")
        now = self._clock()
        if now < self._not_before_s:
            raise SinkError(f"{self._folder}: waits for room")
        try:
            if self._video is not None and self._is_full(frame, now):
                self.close()
            if self._video is None or now - self._looked_s >= SPACE_EVERY_S:
                self._looked_s = now
                if not self._space.make_room():
                    raise SinkError(f"{self._folder}: less is free than --keep-free-gb asks for")
            if self._video is None:
                self._begin(frame, now)
            if self._video is not None:
                self._video.write_picture(picture, frame)
        except (SinkError, OSError) as error:
            self._not_before_s = now + RETRY_S
            self._end_quietly()
            if not self._troubled:
                log.error("recording stopped: %s; everything else goes on, and it is tried again", error)  # noqa: TRY400
            self._troubled = True
            raise SinkError(str(error)) from error
        if self._troubled:
            self._troubled = False
            log.info("%s: recording again", self._path)

    def close(self) -> None:
        video, self._video = self._video, None
        if video is not None:
            try:
                video.close()
            finally:
                self._space.closed(self._path)

    def _is_full(self, frame: Frame, now: float) -> bool:
        if (frame.height, frame.width) != self._size or now - self._began_s >= self._options.rotate_s:
            return True
        return self._path.stat().st_size >= self._options.rotate_bytes

    def _begin(self, frame: Frame, now: float) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        while True:  # a clock that is set back must not overwrite anything
            self._path = self._folder / f"{stamp}-{self._count % 10_000:04d}.{self._ending}"
            self._count += 1
            if not self._path.exists():
                break
        video = self._make_video(self._path)
        self._space.opened(self._path)
        self._size = (frame.height, frame.width)
        self._began_s = now
        self._video = video
        self.files += 1

    def _plain_video(self, path: Path) -> VideoSink:
        return VideoSink(
            path,
            overwrite=False,
            crf=self._options.crf,
            preset=self._options.preset,
            threads=1,
            encoder=self._options.encoder,
            fragment_s=FRAGMENT_S,
        )

    def _end_quietly(self) -> None:
        """After a failure: keep what is there; an empty file is nothing."""
        try:
            self.close()
        except (SinkError, OSError) as error:
            log.debug("%s: %s", self._path, error)
        try:
            if self._path.is_file() and self._path.stat().st_size == 0:
                self._path.unlink()
        except OSError as error:
            log.debug("%s: %s", self._path, error)


class DrawingSink:
    """Draws people for a sink of a run that draws none; on the sink's own thread, so only while it is there."""

    def __init__(self, sink: RecordingSink) -> None:
        self._sink = sink
        self.name = sink.name

    def write(self, result: FrameResult) -> None:
        """Take one frame.

        Raises:
            SinkError: see `RecordingSink.write`.
        """
        self._sink.write(result if result.drawn is not None else replace(result, drawn=result.overlay()))

    def close(self) -> None:
        self._sink.close()


class LiveJsonSink:
    """A line of JSON per frame in a file; after a failure it goes on behind the last whole line."""

    name = "json"

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._file: IO[bytes] | None = None
        self._end = 0
        self._not_before_s = 0.0
        self._troubled = False

    def write(self, result: FrameResult) -> None:
        """Take one frame.

        Raises:
            SinkError: it cannot be written now; later frames may be.
        """
        now = self._clock()
        if now < self._not_before_s:
            raise SinkError(f"{self._path}: waits for room")
        line = (result.to_json() + "\n").encode()
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("ab", buffering=0)
                self._end = self._file.tell()
            view = memoryview(line)
            while view:
                view = view[self._file.write(view) :]
            self._end += len(line)
        except OSError as error:
            self._not_before_s = now + RETRY_S
            if self._file is not None:
                os.ftruncate(self._file.fileno(), self._end)
                self._file.seek(self._end)
            said = sink_error(self._path, error)
            if not self._troubled:
                log.error("JSON lines stopped: %s; everything else goes on, and it is tried again", said)  # noqa: TRY400
            self._troubled = True
            raise said from error
        if self._troubled:
            self._troubled = False
            log.info("%s: JSON lines again", self._path)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class StandardOutputSink:
    """A line of JSON per frame on standard output, of all sources; ``stream`` says which one."""

    name = "stdout"

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor

    def write(self, result: FrameResult) -> None:
        """Take one frame; waits for a slow reader.

        Raises:
            SinkError: the reader went away.
        """
        line = f'{{"stream":{result.frame.stream},{result.to_json()[1:]}\n'.encode()
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError as error:
            raise SinkError(f"standard output: {error.strerror}") from error

    def close(self) -> None:
        """Standard output belongs to the process."""
