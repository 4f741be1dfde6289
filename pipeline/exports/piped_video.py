"""Video on standard output, for ffmpeg and other programs that read a pipe: ``--output -``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, cast

import av
import numpy as np
from av.container import OutputContainer

from kernels.coordinates import U8
from pipeline.errors import SettingsError, SinkError
from pipeline.messages import Frame, FrameResult
from pipeline.video_output import VideoSink, fit_into

STDOUT: Final = 1
STDERR: Final = 2
NAME: Final = Path("standard output")


class ReaderLeft(SinkError):
    """Whoever read standard output has gone: the run is over, and nothing is wrong."""

    exit_code = 0


class StandardOutput:
    """A file of one's own for what goes to standard output; everything else that is printed goes to standard error."""

    def __init__(self) -> None:
        self._number = os.dup(STDOUT)
        os.dup2(STDERR, STDOUT)
        self._open = True

    def write(self, data: Any) -> int:
        """All of it; waits for a slow reader.

        Raises:
            ReaderLeft: nobody reads any more.
            SinkError: it cannot be written.
        """
        view = memoryview(data).cast("B")
        count = len(view)
        try:
            while view:
                view = view[os.write(self._number, view) :]
        except BrokenPipeError as error:
            raise ReaderLeft("the reader of standard output left") from error
        except OSError as error:
            raise SinkError(f"{NAME}: cannot be written ({error.strerror})") from error
        return count

    def close(self) -> None:
        """Tell the reader that this was all; what is printed from now on goes where it went before."""
        if self._open:
            self._open = False
            os.dup2(self._number, STDOUT)
            os.close(self._number)


def check_standard_output() -> None:
    """Refuse to write video to a terminal.

    Raises:
        SettingsError: it is one.
    """
    if os.isatty(STDOUT):
        raise SettingsError("--output - writes video to standard output, this is a terminal: add | your-program")


class MatroskaPipe(VideoSink):
    """H.264 in Matroska, a cluster for each frame: a reader gets it at once, and needs to be told nothing."""

    def __init__(self, *, crf: int, preset: str, encoder: str) -> None:
        super().__init__(NAME, overwrite=True, crf=crf, preset=preset, encoder=encoder, fragment_s=0.0)
        self._output: StandardOutput | None = None

    def check(self) -> None:
        check_standard_output()

    def close(self) -> None:
        try:
            super().close()
        finally:
            if self._output is not None:
                self._output.close()

    def _create(self) -> None:
        """There is no file."""

    def _open_container(self, _address: str) -> OutputContainer:
        self._output = StandardOutput()
        options = {"flush_packets": "1", "cluster_time_limit": "0"}
        return av.open(cast("Any", self._output), "w", format="matroska", options=options)


class RawPipe:
    """The px of each frame as they are, RGB, 3 bytes each; all frames have the size of the first one."""

    def __init__(self) -> None:
        self._output: StandardOutput | None = None
        self._size = (0, 0)

    def check(self) -> None:
        check_standard_output()

    def write(self, result: FrameResult) -> None:
        self.write_picture(result.drawn if result.drawn is not None else result.frame.image, result.frame)

    def write_picture(self, picture: U8, frame: Frame) -> None:
        """Write a picture of a frame.

        Raises:
            ReaderLeft, SinkError: see `StandardOutput.write`.
        """
        if self._output is None:
            self._output = StandardOutput()
            self._size = (frame.height, frame.width)
        self._output.write(np.ascontiguousarray(fit_into(picture, *self._size)))

    def close(self) -> None:
        if self._output is not None:
            self._output.close()
