"""Read a video in segments that can be gone on with after any crash, and join what was written of them.

Where a segment starts has to be found again exactly. A seek alone cannot be trusted: containers without an index, open
groups of pictures and wrong timestamps all put it somewhere near. So the last frames of a finished segment are
remembered by time and checksum, and a seek counts only if it meets all of them; else the file is decoded from its start
up to them, which always finds the place.
"""

from __future__ import annotations

import errno
import heapq
import logging
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import numpy as np

from kernels.coordinates import U8
from pipeline.errors import SourceError
from pipeline.messages import Frame
from pipeline.video_input import Picture, VideoInput

log = logging.getLogger(__name__)

REMEMBERED: Final = 16
"""Frames that are compared. H.264 and HEVC refer to 16 at most: if these are right, so is what follows."""

_BACK_S: Final = (0.0, 10.0)  # how far before the first remembered frame seeks are tried
_SEARCH_S: Final = 30.0  # of video after a seek; what is not met by then is not met
_EVERY_ROW: Final = 8  # rows in a checksum: each block of pixels that a codec works on has one
_NO_ROOM: Final = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_EARLY_AUDIO_S: Final = 0.2  # audio may start that much before the video; players take the start of AAC for granted


@dataclass(frozen=True, slots=True)
class Position:
    """Behind the last frame of a segment.

    Attributes:
        index: number of the next frame.
        last: time and checksum of the frames before it, at most `REMEMBERED`.
        seekable: times rose and nothing was broken so far.
        origin: pts of the file's first frame, numerator and denominator of its time base.
        size: height, width of the file's first frame, px.
    """

    index: int
    last: tuple[tuple[int, int], ...]
    seekable: bool
    origin: tuple[int, int, int]
    size: tuple[int, int]

    def to_state(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "last": [list(pair) for pair in self.last],
            "seekable": self.seekable,
            "origin": list(self.origin),
            "size": list(self.size),
        }

    @staticmethod
    def of_state(state: dict[str, Any]) -> Position:
        pts, numerator, denominator = state["origin"]
        height, width = state["size"]
        last = tuple((pts, checksum) for pts, checksum in state["last"])
        return Position(state["index"], last, state["seekable"], (pts, numerator, denominator), (height, width))


class SegmentedVideo:
    """One file, frame after frame, with borders between segments. Borders depend on the file and the length only."""

    def __init__(self, path: str, *, shown: str, segment_s: float, position: Position | None = None) -> None:
        """Open the file, and find the place.

        Args:
            path: of the video.
            shown: what frames call their source.
            segment_s: a segment ends before the first key frame after so many seconds; after twice as many frames as
                that takes it ends at any frame.
            position: go on here; None starts at the first frame.

        Raises:
            SourceError: it is no video, or has become another one.
        """
        self._path = path
        self._shown = shown
        self._segment_s = segment_s
        self._stopped = False
        self._index = 0
        self._last: deque[tuple[int, int]] = deque(maxlen=REMEMBERED)
        self._seekable = True
        self._origin: tuple[int, int, int] | None = None
        self._size = (0, 0)
        self._pending: tuple[Picture, bool] | None = None
        self._video: MarkedVideo | None = None
        self._pictures: Iterator[Picture] = iter(())
        if position is None:
            self._open(None)
        else:
            self._go_to(position)

    @property
    def frame_total(self) -> int | None:
        return None if self._video is None else self._video.frame_total

    @property
    def frame_rate(self) -> float:
        """Average frames a second; a usual value where the file does not say."""
        return float(self._video.frame_rate if self._video is not None else 25)

    @property
    def frames_lost(self) -> int:
        return 0 if self._video is None else self._video.frames_lost

    @property
    def position(self) -> Position:
        """Behind the last frame of the segment that was read."""
        if self._origin is None:
            raise RuntimeError("no frame was read yet")
        return Position(self._index, tuple(self._last), self._seekable, self._origin, self._size)

    def has_more(self) -> bool:
        """Whether there is another segment; reads its first frame."""
        if self._pending is None:
            self._pending = self._next()
        return self._pending is not None

    def segment(self) -> Iterator[Frame]:
        """The frames of the next segment."""
        started_s: float | None = None
        count = 0
        most = max(1, round(2 * self._segment_s * self.frame_rate))
        while not self._stopped and self.has_more() and self._pending is not None:
            picture, is_key = self._pending
            now_s = float(picture.pts * picture.time_base)
            if started_s is None:
                started_s = now_s
            elif count >= most or (is_key and now_s - started_s >= self._segment_s):
                return
            self._pending = None
            pixels = picture.pixels
            if not isinstance(pixels, np.ndarray):
                raise TypeError("a batch decodes on the CPU")
            self._note(picture, pixels)
            count += 1
            yield Frame(
                index=self._index - 1,
                source=self._shown,
                clip=0,
                pts=picture.pts,
                time_base=picture.time_base,
                captured_s=time.monotonic(),
                pixels=pixels,
            )

    def stop(self) -> None:
        """End the segment now; it is not whole then."""
        self._stopped = True

    def close(self) -> None:
        if self._video is not None:
            self._video.close()

    def _note(self, picture: Picture, pixels: U8) -> None:
        if self._origin is None:
            base = picture.time_base
            self._origin = (picture.pts, base.numerator, base.denominator)
            self._size = (pixels.shape[0], pixels.shape[1])
        if self._last and picture.pts <= self._last[-1][0]:
            self._seekable = False
        if self._video is not None and (self._video.times_made_up or self._video.packets_broken):
            self._seekable = False
        self._last.append((picture.pts, checksum(pixels)))
        self._index += 1

    def _next(self) -> tuple[Picture, bool] | None:
        picture = next(self._pictures, None)
        return None if picture is None or self._video is None else (picture, self._video.is_key)

    def _open(self, seek_s: float | None) -> None:
        self.close()
        self._video = MarkedVideo(self._path, timeout_s=10.0)
        if seek_s is not None:
            self._video.seek(seek_s)
        self._pictures = self._video.pictures()

    def _go_to(self, position: Position) -> None:
        if position.seekable and len(position.last) == REMEMBERED:
            base = Fraction(*position.origin[1:])
            first_s, last_s = (float(position.last[i][0] * base) for i in (0, -1))
            for back_s in _BACK_S:
                try:
                    self._open(max(first_s - back_s, float(position.origin[0] * base)))
                    met = self._read_up_to(position, until_s=last_s + _SEARCH_S)
                except (SourceError, av.FFmpegError, OSError) as error:
                    log.debug("%s: seek failed: %s", self._shown, error)
                    met = False
                if met and self._video is not None and not self._video.times_made_up:
                    self._take(position)
                    return
            log.debug("%s: no seek met the remembered frames: decoded from the start", self._shown)
        self._open(None)
        recent: deque[tuple[int, int]] = deque(maxlen=REMEMBERED)
        for index in range(position.index):
            picture = next(self._pictures, None)
            if picture is None:
                raise SourceError(f"{self._shown}: has only {index} frames, had {position.index}: it was changed")
            if index >= position.index - REMEMBERED:
                recent.append((picture.pts, checksum(picture.pixels)))
        if tuple(recent) != position.last:
            raise SourceError(f"{self._shown}: its frames are other ones than before: add --overwrite to start anew")
        self._take(position)

    def _read_up_to(self, position: Position, *, until_s: float) -> bool:
        """Whether the remembered frames come, one after the other; then the next one is the one behind them."""
        recent: deque[tuple[int, int]] = deque(maxlen=REMEMBERED)
        for picture in self._pictures:
            recent.append((picture.pts, checksum(picture.pixels)))
            if picture.pts == position.last[-1][0]:
                return tuple(recent) == position.last
            if float(picture.pts * picture.time_base) > until_s:
                return False
        return False

    def _take(self, position: Position) -> None:
        self._index = position.index
        self._last.extend(position.last)
        self._seekable = position.seekable
        self._origin = position.origin
        self._size = position.size
        if self._video is not None:
            self._video.count_from(position.index)


class SegmentSource:
    """The next segment of a video, as a source of a pipeline; the video stays open."""

    live = False
    still_images = False
    frame_total = None
    frames_lost = 0

    def __init__(self, video: SegmentedVideo, name: str) -> None:
        self._video = video
        self.name = name
        self.ended = False

    def frames(self) -> Iterator[Frame]:
        yield from self._video.segment()
        self.ended = True

    def stop(self) -> None:
        """A pipeline also says so at the end of a whole segment, when it means nothing any more."""
        if not self.ended:
            self._video.stop()

    def close(self) -> None:
        """The video is closed by whoever opened it."""


class MarkedVideo(VideoInput):
    """Also tells which pictures are key frames, and counts lost frames behind a seek."""

    is_key = False
    times_made_up = False
    _before = 0
    _seen = 0

    @property
    def stored_size(self) -> tuple[int, int]:
        """Height, width in px that the file states, before any turning."""
        context = self._stream.codec_context
        return (context.height, context.width)

    def seek(self, seconds: float) -> None:
        base = self._stream.time_base or Fraction(1, 1000)
        self._container.seek(int(seconds / base), stream=self._stream, backward=True)

    def count_from(self, index: int) -> None:
        """The next picture is number ``index`` of the file."""
        self._before = index - self._seen

    def pictures(self, given_up: Any = bool) -> Iterator[Picture]:
        for picture in super().pictures(given_up):
            self._seen += 1
            yield picture

    def _decoded_frames(self, given_up: Any) -> Iterator[av.VideoFrame]:
        for frame in super()._decoded_frames(given_up):
            self.is_key = bool(frame.key_frame)
            self.times_made_up |= frame.pts is None
            yield frame

    def _count_lost(self, decoded: int, end_s: float) -> None:
        super()._count_lost(decoded + self._before, end_s)


def checksum(pixels: Any) -> int:
    """CRC-32 of every eighth row of (H, W, 3) uint8."""
    return zlib.crc32(np.ascontiguousarray(pixels[::_EVERY_ROW]).data)


def join_video(parts: Sequence[tuple[Path, Fraction]], source: str, origin_s: Fraction, target: Path) -> list[str]:
    """Put encoded segments behind each other, packet by packet, and copy the sound of the source.

    Args:
        parts: files and the time of each one's first frame in the output, s.
        source: its audio streams are copied.
        origin_s: time in the source that is 0 in the output.
        target: mp4 to write.

    Returns:
        What could not be copied, for people.

    Raises:
        OSError: the target cannot be written.
    """
    try:
        return _join(parts, source, origin_s, target, sound=True)
    except (av.FFmpegError, ValueError) as error:
        if getattr(error, "errno", None) in _NO_ROOM:
            raise
        reason = getattr(error, "strerror", None) or str(error)
    # What the muxer makes of foreign sound is not known before it has it; the people must not be lost for it.
    _join(parts, source, origin_s, target, sound=False)
    return [f"audio left out: it cannot be put into mp4 ({reason})"]


def _join(
    parts: Sequence[tuple[Path, Fraction]], source: str, origin_s: Fraction, target: Path, *, sound: bool
) -> list[str]:
    warnings: list[str] = []
    with (
        av.open("file:" + str(target), "w", format="mp4", options={"movflags": "faststart"}) as output,
        av.open("file:" + str(parts[0][0])) as first,
        av.open("file:" + source, options={"protocol_whitelist": "file,crypto,data"}) as heard,
    ):
        video = output.add_stream_from_template(first.streams.video[0])
        video.time_base = first.streams.video[0].time_base
        copied: dict[int, Any] = {}
        for stream in heard.streams.audio if sound else ():
            name = stream.codec_context.name if stream.codec_context is not None else "unknown"
            codec = stream.codec_context.codec.canonical_name if stream.codec_context is not None else ""
            if codec not in output.supported_codecs and name not in output.supported_codecs:
                warnings.append(f"audio left out: {name} cannot be put into mp4")
                continue
            try:
                copied[stream.index] = output.add_stream_from_template(stream)
            except (av.FFmpegError, ValueError) as error:
                warnings.append(f"audio left out: {name}: {error}")
        streams = [video_packets(parts, video)]
        if copied:
            streams.append(_audio_packets(heard, copied, origin_s, warnings))
        for _, _, packet in heapq.merge(*streams, key=lambda entry: entry[:2]):
            output.mux(packet)
    return warnings


_Timed = tuple[float, int, Any]


def video_packets(parts: Sequence[tuple[Path, Fraction]], stream: Any) -> Iterator[_Timed]:
    """Packets of encoded parts one after the other, each as time in s, 0, packet for ``stream``.

    Args:
        parts: files, and when each one's first frame is shown, s.
        stream: of the output.
    """
    last = -1
    for path, start_s in parts:
        with av.open("file:" + str(path)) as container:
            for packet in container.demux(container.streams.video[0]):
                if packet.dts is None or packet.pts is None or packet.time_base is None:
                    continue
                base = packet.time_base
                pts = max(packet.pts + round(start_s / base), last + 1)
                last = packet.pts = packet.dts = pts  # the encoder reorders nothing
                packet.stream = stream
                yield float(pts * base), 0, packet


def _audio_packets(container: Any, copied: dict[int, Any], origin_s: Fraction, warnings: list[str]) -> Iterator[_Timed]:
    last: dict[int, int] = {}
    try:
        for packet in container.demux([container.streams[index] for index in copied]):
            if packet.dts is None or packet.time_base is None:
                continue
            base = packet.time_base
            shift = round(origin_s / base)
            packet.dts -= shift
            packet.pts = packet.dts if packet.pts is None else packet.pts - shift
            index = packet.stream.index
            if packet.dts * base < -_EARLY_AUDIO_S or packet.dts <= last.get(index, packet.dts - 1):
                continue  # the muxer takes rising times only
            last[index] = packet.dts
            packet.stream = copied[index]
            yield float(packet.dts * base), 1, packet
    except (av.FFmpegError, OSError) as error:
        warnings.append(f"audio ends early: {getattr(error, 'strerror', None) or error}")
