"""Write the drawn frames as an H.264 mp4 that survives a crash.

While it is written the file is fragmented, a fragment per second or so: whatever kills the process, the fragments
before are playable. At the end it becomes a plain mp4. Presentation times are kept as they came, so variable frame
rates stay variable.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np
from av.container import OutputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from kernels.coordinates import U8
from pipeline.errors import SinkError
from pipeline.messages import Frame, FrameResult
from pipeline.stage6_sinks import check_output, create_output, sink_error

log = logging.getLogger(__name__)

KEYFRAME_EVERY_S = 1.0  # also the length of a fragment: what a crash may cost
_MOVFLAGS = "hybrid_fragmented+frag_keyframe"
_NVIDIA_DRIVER = Path("/dev/nvidiactl")  # without it NVENC cannot be there, and need not be tried
_MIN_TIME_BASE = Fraction(1, 1_000_000)
_BT709 = 1  # the same number for primaries, transfer and matrix in H.264
_LIMITED_RANGE = 1


class OutputClock:
    """Times of a written video: from 0, always rising; a new clip follows the one before.

    Several files that share a clock lie on one time line.
    """

    def __init__(self) -> None:
        self.time_base = Fraction(1, 90000)  # s; that of the first frame, from then on
        self.last_step = 1  # between the two newest frames
        self.number = -1  # of the newest frame, from 0
        self._frame: Frame | None = None
        self._clip = -1
        self._clip_start = 0  # pts of the clip's first frame and of that frame in the output, in output units
        self._clip_offset = 0
        self._last_pts = -1

    def pts_of(self, frame: Frame) -> int:
        """Time of the newest frame in units of ``time_base``; asked again about it, the same."""
        if frame is self._frame:
            return self._last_pts
        if self._frame is None:
            self.time_base = max(frame.time_base, _MIN_TIME_BASE)
        self._frame = frame
        self.number += 1
        pts = round(frame.pts * frame.time_base / self.time_base)
        if frame.clip != self._clip:
            self._clip = frame.clip
            self._clip_start = pts
            self._clip_offset = 0 if self._last_pts < 0 else self._last_pts + self.last_step
        output_pts = max(pts - self._clip_start + self._clip_offset, self._last_pts + 1)
        if self._last_pts >= 0:
            self.last_step = output_pts - self._last_pts
        self._last_pts = output_pts
        return output_pts


class VideoSink:
    """An mp4 of one size: that of the first frame, made even. Later frames of other sizes are fitted into it."""

    def __init__(
        self,
        path: Path,
        *,
        overwrite: bool,
        crf: int,
        preset: str,
        threads: int | None = None,
        encoder: str = "libx264",
        fragment_s: float | None = None,
        clock: OutputClock | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Write to ``path``.

        Args:
            path: a name ending in .mp4, .m4v or .mov.
            overwrite: replace it when it exists.
            crf: quality, 0 (lossless) to 51.
            preset: effort of libx264.
            threads: of the encoder; None leaves it to libx264.
            encoder: one of `pipeline.settings.VIDEO_ENCODERS`; ``auto`` is NVENC on a GPU that has it.
            fragment_s: write at least so often, and let libx264 hold no frame back; by default a fragment per key
                frame, and a better picture for its size.
            clock: shared with other files of the run; None: this file begins with its first frame.
            size: height, width in px in place of the first frame's; made even.
        """
        self._fragment_s = fragment_s
        self._path = path
        self._overwrite = overwrite
        self._crf = crf
        self._preset = preset
        self._threads = threads
        self._encoder = encoder
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._wanted_size = size
        self._size = (0, 0)  # height, width; even
        self._clock = OutputClock() if clock is None else clock
        self._keyframe_pts = 0
        self._broken = False

    def check(self) -> None:
        check_output(self._path, overwrite=self._overwrite)

    def write(self, result: FrameResult) -> None:
        self.write_picture(result.drawn if result.drawn is not None else result.frame.image, result.frame)

    def write_picture(self, picture: U8, frame: Frame, *, at_start: bool = False) -> None:
        """Write a picture that belongs to a frame's time; of any size, see the class.

        Args:
            picture: in the colours that the stream was made for.
            frame: the newest one.
            at_start: not at its time but at 0, as the first picture of a file that begins later than the run.

        Raises:
            SinkError: as `write`.
        """
        try:
            pts = self._clock.pts_of(frame)
            if at_start:
                pts = 0
            if self._container is None:
                self._open(frame)
            encoded = self._converted(fit_into(picture, *self._size))
            encoded.pts = pts
            encoded.time_base = self._clock.time_base
            self._encode(encoded)
        except (av.FFmpegError, OSError) as error:
            self._broken = True
            if isinstance(error, SinkError):
                raise
            raise self._error(error) from error

    def close(self) -> None:
        if self._container is None:
            return
        container = self._container
        failure: Exception | None = None
        # After a failed write nothing more may be handed to the muxer: FFmpeg crashes on a second packet when the
        # header did not fit on the disk. What the encoder still holds could not be written anyway.
        if self._stream is not None and not self._broken:
            try:
                self._mux(self._stream.encode(None))
            except (av.FFmpegError, OSError) as error:
                failure = error
        self._container = None
        try:
            container.close()
        except (av.FFmpegError, OSError) as error:
            failure = failure or error
        if failure is not None and not self._broken:  # else it was told when it happened
            raise self._error(failure) from failure

    def _open(self, frame: Frame) -> None:
        self._create()
        container = self._open_container("file:" + str(self._path))
        self._container = container
        height, width = self._wanted_size or (frame.height, frame.width)
        self._size = (height + height % 2, width + width % 2)
        stream = self._add_stream(container)
        stream.height, stream.width = self._size
        context = stream.codec_context
        context.time_base = self._clock.time_base
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = _LIMITED_RANGE
        if self._threads is not None:
            context.thread_count = self._threads
        self._stream = stream

    def _create(self) -> None:
        create_output(self._path, overwrite=self._overwrite).close()  # refuses what must not be replaced

    def _open_container(self, address: str) -> OutputContainer:
        options = {"movflags": _MOVFLAGS, "flush_packets": "1"}
        if self._fragment_s is not None:
            options["frag_duration"] = str(round(self._fragment_s * 1e6))
        return av.open(address, "w", format="mp4", options=options)

    def _add_stream(self, container: OutputContainer) -> VideoStream:
        encoder = self._chosen_encoder()
        stream = container.add_stream(encoder, options=self._encoder_options(encoder))
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 250
        # Reordered frames would make a fragmented file start late, and wait in the encoder.
        stream.codec_context.max_b_frames = 0
        return stream

    def _converted(self, picture: U8) -> av.VideoFrame:
        """The picture in the pixel format of the stream."""
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        return frame.reformat(format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED_RANGE)

    def _chosen_encoder(self) -> Literal["libx264", "h264_nvenc"]:
        if self._encoder == "libx264":
            return "libx264"
        refusal = self._refusal_of("h264_nvenc") if _NVIDIA_DRIVER.exists() else "no NVIDIA driver"
        if refusal is not None and self._encoder != "auto":
            raise SinkError(
                f"{self._path}: {self._encoder} cannot be used here ({refusal}): choose --video-encoder libx264"
            )
        chosen: Literal["libx264", "h264_nvenc"] = "h264_nvenc" if refusal is None else "libx264"
        log.debug("%s: encoder %s (NVENC: %s)", self._path, chosen, refusal or "works")
        return chosen

    def _refusal_of(self, encoder: str) -> str | None:
        """Why an encoder cannot be opened for frames of this size; None when it can."""
        try:
            context = av.CodecContext.create(encoder, "w")
            if not isinstance(context, VideoCodecContext):
                return "it is no video encoder"
            context.height, context.width = self._size
            context.pix_fmt = "yuv420p"
            context.time_base = Fraction(1, 25)
            context.open()
        except (av.FFmpegError, OSError, ValueError) as error:
            return str(getattr(error, "strerror", None) or error)
        return None

    def _encoder_options(self, encoder: str) -> dict[str, str]:
        if encoder == "libx264":
            low_delay = {"tune": "zerolatency"} if self._fragment_s is not None else {}
            return {"preset": self._preset, "crf": str(self._crf)} | low_delay
        # Constant quality on NVENC's own scale, which lies close to that of x264; key frames where we ask for them.
        return {"preset": "p4", "rc": "vbr", "cq": str(self._crf), "b:v": "0", "forced-idr": "1"}

    def _encode(self, frame: av.VideoFrame) -> None:
        if self._stream is None:
            raise RuntimeError("the video is not open")
        frame.pict_type = av.video.frame.PictureType.NONE
        if float((int(frame.pts or 0) - self._keyframe_pts) * self._clock.time_base) >= KEYFRAME_EVERY_S:
            frame.pict_type = av.video.frame.PictureType.I
            self._keyframe_pts = int(frame.pts or 0)
        self._mux(self._stream.encode(frame))

    def _mux(self, packets: Sequence[av.Packet[VideoStream]]) -> None:
        if self._container is None:
            raise RuntimeError("the video is not open")
        for packet in packets:
            # Counts for the very last frame only: the others end where the next begins.
            packet.duration = self._clock.last_step
        self._container.mux(packets)

    def _error(self, error: Exception) -> SinkError:
        if isinstance(error, OSError):
            return sink_error(self._path, error)
        text = getattr(error, "strerror", None) or str(error)
        return SinkError(f"{self._path}: the video encoder refused ({text}): choose another size or another place")


def fit_into(image: U8, height: int, width: int) -> U8:
    """Make a frame exactly (height, width).

    One missing row or column repeats the border; other sizes are scaled and centred on black.
    """
    missing_rows, missing_columns = height - image.shape[0], width - image.shape[1]
    if missing_rows == 0 and missing_columns == 0:
        return np.ascontiguousarray(image)
    if missing_rows in (0, 1) and missing_columns in (0, 1):
        edges = ((0, missing_rows), (0, missing_columns), (0, 0))[: image.ndim]
        padded: U8 = np.pad(image, edges, mode="edge")
        return padded
    scale = min(height / image.shape[0], width / image.shape[1])
    content_height = min(height, max(1, round(image.shape[0] * scale)))
    content_width = min(width, max(1, round(image.shape[1] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas = np.zeros((height, width, *image.shape[2:]), np.uint8)
    top, left = (height - content_height) // 2, (width - content_width) // 2
    canvas[top : top + content_height, left : left + content_width] = cv2.resize(
        image, (content_width, content_height), interpolation=method
    )
    return canvas
