"""Where frames come from: files, folders and globs of them, cameras and network streams."""

from __future__ import annotations

import glob
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from engines.device import HardwareDecoder
from kernels.coordinates import U8
from pipeline.errors import SourceError
from pipeline.messages import Frame
from pipeline.protocols import Source
from pipeline.redaction import redact
from pipeline.video_input import URL_SCHEMES, VideoInput

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts"),
    *(".flv", ".wmv", ".3gp", ".ogv", ".y4m", ".gif", ".mjpeg", ".h264", ".hevc"),
)
MICROSECOND = Fraction(1, 1_000_000)


def open_source(
    source: str,
    *,
    timeout_s: float = 10.0,
    image_fps: float = 2.0,
    decoder: HardwareDecoder | None = None,
    decoder_required: bool = False,
) -> Source:
    """Find out what a SOURCE argument means and open it.

    Args:
        source: a file, a folder, a glob, a webcam number or an address.
        timeout_s: limit of silence for network sources.
        image_fps: pictures a second that still images count as.
        decoder: of a GPU, for videos; see `pipeline.video_input.VideoInput`.
        decoder_required: a video that it cannot decode is an error.

    Raises:
        SourceError: nothing is there, or it is no picture and no video.
    """

    def video_of(name: str) -> VideoInput:
        return VideoInput(name, timeout_s=timeout_s, decoder=decoder, decoder_required=decoder_required)

    if "://" in source:
        scheme = source.split("://", 1)[0].lower()
        if scheme not in URL_SCHEMES:
            allowed = ", ".join(f"{name}://" for name in URL_SCHEMES)
            raise SourceError(f"{redact(source)}: expected an address starting with {allowed}, got {scheme}://")
        video = video_of(source)
        return StreamSource(video) if video.endless else FileSource([source], video, video_of, image_fps=image_fps)
    if is_stream(source):
        return CameraSource(int(source))
    files = find_files(source)
    first = None if _is_image(files[0]) else _open_first(files, video_of)
    return FileSource(files, first, video_of, image_fps=image_fps)


def is_stream(source: str) -> bool:
    """Whether a SOURCE argument means an address or a camera, not files."""
    return "://" in source or (source.isdecimal() and not os.path.exists(source))


def find_files(source: str) -> list[str]:
    """Files that a path or glob names, in natural order (2 before 10).

    Raises:
        SourceError: none.
    """
    path = Path(source)
    if path.is_dir():
        files = [str(entry) for entry in path.iterdir() if entry.is_file() and _is_media(entry.name)]
        if not files:
            count = sum(1 for _ in path.iterdir())
            raise SourceError(
                f"{source}: expected images or videos in this folder, found none among {count} entries: "
                f"file names must end in {', '.join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)}"
            )
        return sorted(files, key=_natural_order)
    if path.exists():
        return [source]
    if any(sign in source for sign in "*?["):
        files = [name for name in glob.glob(source, recursive=True) if os.path.isfile(name) and _is_media(name)]
        if not files:
            raise SourceError(f"{source}: the pattern matches no image and no video: check it (quote it in the shell)")
        return sorted(files, key=_natural_order)
    raise SourceError(f"{source}: no such file or folder: check the path")


class FileSource:
    """One file after the other; each video is a clip of its own, and so is each still image."""

    live = False

    def __init__(
        self,
        files: Sequence[str],
        first: VideoInput | None,
        video_of: Callable[[str], VideoInput],
        *,
        image_fps: float,
    ) -> None:
        """Take files that exist.

        Args:
            files: at least one path (or one address of finite length).
            first: the first file, opened already, where it is a video.
            video_of: opens the others.
            image_fps: pictures a second that still images count as.
        """
        self._files = list(files)
        self._video = first
        self._video_of = video_of
        self._image_fps = Fraction(image_fps).limit_denominator(1000)
        self._stop = threading.Event()
        self._lost = 0
        self.still_images = all(_is_image(name) for name in files)
        if self.still_images:
            self.frame_total: int | None = len(files)
        else:
            self.frame_total = first.frame_total if first is not None and len(files) == 1 else None

    @property
    def name(self) -> str:
        first = redact(self._files[0])
        return first if len(self._files) == 1 else f"{first} and {len(self._files) - 1} more"

    @property
    def frames_lost(self) -> int:
        return self._lost

    def frames(self) -> Iterator[Frame]:
        given = failed = 0
        for clip, name in enumerate(self._files):
            if self._stop.is_set():
                return
            try:
                for frame in self._image(clip, name) if _is_image(name) else self._clip(clip, name):
                    yield frame
                    given += 1
                    if self._stop.is_set():
                        return
            except SourceError as error:
                if len(self._files) == 1:
                    raise
                failed += 1
                self._lost += _is_image(name)
                log.warning("left out: %s", error)
        if not given:
            raise SourceError(f"{self.name}: none of {failed} files could be read: check them")

    def stop(self) -> None:
        self._stop.set()

    def close(self) -> None:
        if self._video is not None:
            self._video.close()

    def _image(self, clip: int, name: str) -> Iterator[Frame]:
        image = read_image(name)
        yield Frame(
            index=clip,
            source=name,
            clip=clip,
            pts=clip,
            time_base=1 / self._image_fps,
            captured_s=time.monotonic(),
            pixels=image,
        )

    def _clip(self, clip: int, name: str) -> Iterator[Frame]:
        video = self._video if clip == 0 and self._video is not None else self._video_of(name)
        self._video = video
        shown = redact(name)
        try:
            for picture in video.pictures():
                yield Frame(
                    index=picture.index,
                    source=shown,
                    clip=clip,
                    pts=picture.pts,
                    time_base=picture.time_base,
                    captured_s=time.monotonic(),
                    pixels=picture.pixels,
                )
        finally:
            self._lost += video.frames_lost
            video.close()


class StreamSource:
    """A network stream without an end."""

    live = True
    still_images = False
    frame_total = None

    def __init__(self, video: VideoInput) -> None:
        self._video = video
        self._stop = threading.Event()
        self.name = video.name

    @property
    def frames_lost(self) -> int:
        return self._video.frames_lost

    def frames(self) -> Iterator[Frame]:
        for picture in self._video.pictures():
            yield Frame(
                index=picture.index,
                source=self.name,
                clip=0,
                pts=picture.pts,
                time_base=picture.time_base,
                captured_s=time.monotonic(),
                pixels=picture.pixels,
            )
            if self._stop.is_set():
                return

    def stop(self) -> None:
        self._stop.set()

    def close(self) -> None:
        self._video.close()


class CameraSource:
    """A webcam through OpenCV, which knows the capture interfaces of every system."""

    live = True
    still_images = False
    frame_total = None
    frames_lost = 0

    def __init__(self, number: int) -> None:
        """Open the camera.

        Raises:
            SourceError: there is none of this number, or another program has it.
        """
        self.name = f"camera {number}"
        if os.name == "posix" and os.path.isdir("/sys") and not os.path.exists(f"/dev/video{number}"):
            raise SourceError(f"{self.name}: no such camera (/dev/video{number} is missing): check the number")
        self._capture: Any = cv2.VideoCapture(number)
        self._stop = threading.Event()
        if not self._capture.isOpened():
            raise SourceError(f"{self.name}: cannot be opened: check the number and that no other program uses it")

    def frames(self) -> Iterator[Frame]:
        started = time.monotonic()
        index = 0
        while not self._stop.is_set():
            ok, bgr = self._capture.read()
            now = time.monotonic()
            if not ok or bgr is None:
                raise SourceError(f"{self.name}: gave no picture after {index} frames: check its connection")
            yield Frame(
                index=index,
                source=self.name,
                clip=0,
                pts=round((now - started) / MICROSECOND),
                time_base=MICROSECOND,
                captured_s=now,
                pixels=_rgb(bgr),
            )
            index += 1

    def stop(self) -> None:
        self._stop.set()

    def close(self) -> None:
        self._capture.release()


def read_image(name: str) -> U8:
    """Read a still image as (H, W, 3) uint8 RGB, its EXIF orientation applied.

    Raises:
        SourceError: it cannot be read or is no image.
    """
    try:
        data = np.fromfile(name, np.uint8)
    except OSError as error:
        raise SourceError(f"{name}: cannot be read ({error.strerror}): check the path and its permissions") from error
    try:
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    except cv2.error as error:
        raise SourceError(f"{name}: cannot be decoded as an image ({error.err})") from error
    if bgr is None:
        raise SourceError(f"{name}: expected an image, found something else or a damaged file: try another copy")
    return _rgb(bgr)


def _rgb(bgr: Any) -> U8:
    image: U8 = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    return image


def _open_first(files: Sequence[str], video_of: Callable[[str], VideoInput]) -> VideoInput | None:
    """Open the only file now, so that a bad one ends the run before outputs are touched; of many, one may be bad."""
    try:
        return video_of(files[0])
    except SourceError:
        if len(files) == 1:
            raise
        return None


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and "://" not in name


def _is_media(name: str) -> bool:
    hidden = os.path.basename(name).startswith(".")
    return not hidden and name.lower().endswith(IMAGE_SUFFIXES + VIDEO_SUFFIXES)


def _natural_order(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name)]
