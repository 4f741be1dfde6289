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
from pipeline.messages import FrameResult
from pipeline.stage6_sinks import check_output, create_output, sink_error

log = logging.getLogger(__name__)

KEYFRAME_EVERY_S = 1.0  # also the length of a fragment: what a crash may cost
_MOVFLAGS = "hybrid_fragmented+frag_keyframe"
_NVIDIA_DRIVER = Path("/dev/nvidiactl")  # without it NVENC cannot be there, and need not be tried
_MIN_TIME_BASE = Fraction(1, 1_000_000)
_BT709 = 1  # the same number for primaries, transfer and matrix in H.264
_LIMITED_RANGE = 1


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
    ) -> None:
        """Write to ``path``.

        Args:
            path: a name ending in .mp4, .m4v or .mov.
            overwrite: replace it when it exists.
            crf: quality, 0 (lossless) to 51.
            preset: effort of libx264.
            threads: of the encoder; None leaves it to libx264.
            encoder: one of `pipeline.settings.VIDEO_ENCODERS`; ``auto`` is NVENC on a GPU that has it.
        """
        self._path = path
        self._overwrite = overwrite
        self._crf = crf
        self._preset = preset
        self._threads = threads
        self._encoder = encoder
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._size = (0, 0)  # height, width; even
        self._time_base = Fraction(1, 90000)
        self._clip = -1
        self._clip_start = 0  # pts of the clip's first frame and of that frame in the output, in output units
        self._clip_offset = 0
        self._last_pts = -1
        self._last_step = 1
        self._keyframe_pts = 0
        self._broken = False

    def check(self) -> None:
        check_output(self._path, overwrite=self._overwrite)

    def write(self, result: FrameResult) -> None:
        image = result.drawn if result.drawn is not None else result.frame.image
        try:
            if self._container is None:
                self._open(result)
            frame = av.VideoFrame.from_ndarray(fit_into(image, *self._size), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED_RANGE)
            frame.pts = self._output_pts(result)
            frame.time_base = self._time_base
            self._encode(frame)
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

    def _open(self, result: FrameResult) -> None:
        create_output(self._path, overwrite=self._overwrite).close()  # refuses what must not be replaced
        container = av.open(
            "file:" + str(self._path), "w", format="mp4", options={"movflags": _MOVFLAGS, "flush_packets": "1"}
        )
        self._container = container
        frame = result.frame
        self._size = (frame.height + frame.height % 2, frame.width + frame.width % 2)
        self._time_base = max(frame.time_base, _MIN_TIME_BASE)
        encoder = self._chosen_encoder()
        stream = container.add_stream(encoder, options=self._encoder_options(encoder))
        stream.height, stream.width = self._size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = self._time_base
        context.gop_size = 250
        context.max_b_frames = 0  # reordered frames would make a fragmented file start late, and wait in the encoder
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = _LIMITED_RANGE
        if self._threads is not None:
            context.thread_count = self._threads
        self._stream = stream

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
            return {"preset": self._preset, "crf": str(self._crf)}
        # Constant quality on NVENC's own scale, which lies close to that of x264; key frames where we ask for them.
        return {"preset": "p4", "rc": "vbr", "cq": str(self._crf), "b:v": "0", "forced-idr": "1"}

    def _encode(self, frame: av.VideoFrame) -> None:
        if self._stream is None:
            raise RuntimeError("the video is not open")
        frame.pict_type = av.video.frame.PictureType.NONE
        if float((int(frame.pts or 0) - self._keyframe_pts) * self._time_base) >= KEYFRAME_EVERY_S:
            frame.pict_type = av.video.frame.PictureType.I
            self._keyframe_pts = int(frame.pts or 0)
        self._mux(self._stream.encode(frame))

    def _mux(self, packets: Sequence[av.Packet[VideoStream]]) -> None:
        if self._container is None:
            raise RuntimeError("the video is not open")
        for packet in packets:
            packet.duration = (
                self._last_step
            )  # counts for the very last frame only: the others end where the next begins
        self._container.mux(packets)

    def _output_pts(self, result: FrameResult) -> int:
        """Time in the output: from 0, always rising; a new clip follows the one before."""
        frame = result.frame
        pts = round(frame.pts * frame.time_base / self._time_base)
        if frame.clip != self._clip:
            self._clip = frame.clip
            self._clip_start = pts
            self._clip_offset = 0 if self._last_pts < 0 else self._last_pts + self._last_step
        output_pts = max(pts - self._clip_start + self._clip_offset, self._last_pts + 1)
        if self._last_pts >= 0:
            self._last_step = output_pts - self._last_pts
        self._last_pts = output_pts
        return output_pts

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
        padded: U8 = np.pad(image, ((0, missing_rows), (0, missing_columns), (0, 0)), mode="edge")
        return padded
    scale = min(height / image.shape[0], width / image.shape[1])
    content_height = min(height, max(1, round(image.shape[0] * scale)))
    content_width = min(width, max(1, round(image.shape[1] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - content_height) // 2, (width - content_width) // 2
    canvas[top : top + content_height, left : left + content_width] = cv2.resize(
        image, (content_width, content_height), interpolation=method
    )
    return canvas
