"""What layers are written to: videos with alpha, mattes, folders of PNG."""

from __future__ import annotations

import contextlib
import os
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import cv2
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream

from kernels.coordinates import U8
from pipeline.errors import SinkError
from pipeline.messages import Frame
from pipeline.stage6_sinks import check_output, close_output, create_output, sink_error, write_whole
from pipeline.video_output import OutputClock, VideoSink

_BT709 = 1
_LIMITED_RANGE = 1
_PNG_EFFORT = 1


class PictureWriter(Protocol):
    """A file, or a folder, that takes pictures."""

    def check(self) -> None:
        """See `Sink.check`."""

    def write_picture(self, picture: U8, frame: Frame, *, at_start: bool = False) -> None:
        """Add a picture at a frame's time, or before all others.

        Raises:
            SinkError: it cannot be written.
        """

    def close(self) -> None:
        """See `Sink.close`."""


class AlphaVideo(VideoSink):
    """RGB and alpha: ProRes 4444 in .mov, VP9 in .webm. After a kill all but the last second can be read."""

    def _open_container(self, address: str) -> OutputContainer:
        if self._path.suffix.lower() == ".mov":
            flags = {"movflags": "hybrid_fragmented", "frag_duration": "1000000", "flush_packets": "1"}
            return av.open(address, "w", format="mov", options=flags)
        return av.open(address, "w", format="webm", options={"cluster_time_limit": "1000", "flush_packets": "1"})

    def _add_stream(self, container: OutputContainer) -> VideoStream:
        if self._path.suffix.lower() == ".mov":
            options = {"profile": "4444", "alpha_bits": "8", "vendor": "apl0"}
            stream = container.add_stream("prores_ks", options=options)
            stream.pix_fmt = "yuva444p10le"
            return stream
        options = {
            "crf": str(self._crf),
            "b": "0",
            "deadline": "realtime",
            "cpu-used": "8",
            "row-mt": "1",
            "auto-alt-ref": "0",  # frames that are not shown cannot carry alpha
            "lag-in-frames": "0",
        }
        stream = container.add_stream("libvpx-vp9", options=options)
        stream.pix_fmt = "yuva420p"
        stream.metadata["alpha_mode"] = "1"
        # From it libvpx gets the length of a frame in units of the time base, and refuses 0.
        stream.codec_context.framerate = min(Fraction(25), 1 / self._clock.time_base)
        return stream

    def _converted(self, picture: U8) -> av.VideoFrame:
        frame = av.VideoFrame.from_ndarray(picture, format="rgba")
        wanted = "yuva444p10le" if self._path.suffix.lower() == ".mov" else "yuva420p"
        return frame.reformat(format=wanted, dst_colorspace=_BT709, dst_color_range=_LIMITED_RANGE)


class MatteVideo(VideoSink):
    """A grey video: H.264 in mp4 and mov, FFV1 without any loss in Matroska."""

    def _open_container(self, address: str) -> OutputContainer:
        if self._path.suffix.lower() == ".mkv":
            options = {"cluster_time_limit": "1000", "flush_packets": "1"}
            return av.open(address, "w", format="matroska", options=options)
        return super()._open_container(address)

    def _add_stream(self, container: OutputContainer) -> VideoStream:
        if self._path.suffix.lower() == ".mkv":
            stream = container.add_stream("ffv1", options={"level": "3", "slices": "4"})
            stream.pix_fmt = "gray"
            return stream
        return super()._add_stream(container)

    def _converted(self, picture: U8) -> av.VideoFrame:
        if self._path.suffix.lower() == ".mkv":
            return av.VideoFrame.from_ndarray(picture, format="gray")
        return super()._converted(np.asarray(cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB), np.uint8))


def png_bytes(picture: U8, path: Path) -> bytes:
    """A picture (H, W), (H, W, 3) RGB or (H, W, 4) RGBA as PNG.

    Raises:
        SinkError: it cannot be one; ``path`` is named.
    """
    order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    stored = cv2.cvtColor(picture, order[picture.shape[2]]) if picture.ndim == 3 else picture
    ok, data = cv2.imencode(".png", stored, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_EFFORT])
    if not ok:
        raise SinkError(f"{path}: a picture of {picture.shape} cannot be made a PNG")
    return data.tobytes()


class PngFolder:
    """A folder of pictures, 000000.png and on, numbered as the frames of the run. Every file is whole, or not there."""

    def __init__(self, path: Path, *, overwrite: bool, clock: OutputClock) -> None:
        self._path = path
        self._overwrite = overwrite
        self._clock = clock
        self._begun = False

    def check(self) -> None:
        if not self._path.exists() and not self._path.is_symlink():
            check_output(self._path, overwrite=self._overwrite)
            return
        if not self._path.is_dir():
            raise SinkError(f"{self._path}: expected a folder for PNG files, this is a file: choose another name")
        if not self._overwrite and any(self._path.iterdir()):
            raise SinkError(f"{self._path}: has files in it already: choose another folder or add --overwrite")
        if not os.access(self._path, os.W_OK | os.X_OK):
            raise SinkError(f"{self._path}: may not be written: check its permissions")

    def write_picture(self, picture: U8, frame: Frame, *, at_start: bool = False) -> None:
        if at_start:
            return  # a picture that is missing is nothing, too
        self._clock.pts_of(frame)
        if not self._begun:
            self._begin()
            self._begun = True
        data = png_bytes(picture, self._path)
        path = self._path / f"{self._clock.number:06d}.png"
        unfinished = path.with_suffix(".part")
        file = create_output(unfinished, overwrite=True)
        try:
            try:
                write_whole(file, data, path)
            finally:
                close_output(file, path)
            os.replace(unfinished, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            if isinstance(error, SinkError):
                raise
            raise sink_error(path, error) from error

    def close(self) -> None:
        """Every file is closed already."""

    def _begin(self) -> None:
        """Make the folder; of an earlier run nothing remains between the new pictures."""
        self.check()
        try:
            self._path.mkdir(exist_ok=True)
            for old in self._path.glob("[0-9]" * 6 + ".png"):
                old.unlink()
        except OSError as error:
            raise sink_error(self._path, error) from error
