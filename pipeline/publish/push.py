"""Pictures with people drawn to a video server: RTSP (``RECORD``), RTMP, and SRT.

    encoder (here) -> MPEG-TS -> pipe -> `remux` in a process of its own -> server

SRT goes through the program ``ffmpeg``, because PyAV's wheels are built without it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, cast

import av
from av.video.stream import VideoStream

from kernels.coordinates import U8
from pipeline.errors import SinkError
from pipeline.live.srt import program_for_srt
from pipeline.messages import FrameResult
from pipeline.publish.remux import CONNECT_S, SEND_S
from pipeline.publish.target import Target
from pipeline.video_output import fit_into

KEYFRAME_EVERY_S: Final = 2.0  # who joins late waits so long at most
FIRST_PICTURES: Final = 3  # the same one: what a stream is must be known before the server is asked
FILL_S: Final = 0.1
GOODBYE_S: Final = 1.0
TIME_BASE: Final = Fraction(1, 90_000)
_FORMATS: Final = {"rtsp": "rtsp", "rtsps": "rtsp", "rtmp": "flv", "rtmps": "flv"}
_REMUX: Final = Path(__file__).with_name("remux.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class PushOptions:
    """How pictures are encoded.

    Attributes:
        preset: effort of libx264.
        crf: quality, 0 (lossless) to 51.
        kbps: most bits a second in thousands; None: no limit.
    """

    preset: str = "ultrafast"
    crf: int = 23
    kbps: int | None = None

    def of_encoder(self) -> dict[str, str]:
        """Options of libx264."""
        limit = {} if self.kbps is None else {"maxrate": f"{self.kbps}k", "bufsize": f"{self.kbps}k"}
        return {"preset": self.preset, "crf": str(self.crf), "tune": "zerolatency", **limit}


def check_push(target: Target) -> None:
    """Refuse what cannot be pushed to on this machine.

    Raises:
        SettingsError: SRT without a program that can.
    """
    if target.scheme == "srt":
        program_for_srt("--push srt://")


class PushLink:
    """One connection to a server; pictures keep the size of its first one."""

    def __init__(
        self,
        target: Target,
        first: FrameResult,
        options: PushOptions,
        *,
        stopped: Callable[[], bool] = bool,
    ) -> None:
        """Start the process and wait until the server has taken the connection.

        Args:
            target: the server.
            first: the picture that decides the size.
            options: of the encoder.
            stopped: True: do not wait for the server any longer.

        Raises:
            SinkError: it cannot be reached, refuses, or does not answer in time.
        """
        self._target = target
        self._pending = bytearray()
        command, head = _command_of(target)
        self._process = subprocess.Popen(  # noqa: S603  our own program, or ffmpeg
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        try:
            self._to, self._said = self._pipes()
            os.set_blocking(self._to, False)
            self._pending += head
            self._output: Any = av.open(
                cast("Any", _Collector(self._pending)),
                "w",
                format="mpegts",
                options={"flush_packets": "1", "pat_period": "0.5", "omit_video_pes_length": "0"},
            )
            self._stream = self._add_stream(_picture_of(first), options)
            self._start_pts = self._key_pts = self._last_pts = -1
            self._origin = first.frame.pts * first.frame.time_base
            for _ in range(FIRST_PICTURES):
                self._encode(_picture_of(first), 0)
            self._wait_until_ready(_picture_of(first), stopped)
        except BaseException:
            self.close()
            raise

    def send(self, result: FrameResult) -> None:
        """Send one picture.

        Raises:
            SinkError: the server went away, or takes nothing.
        """
        time_s = result.frame.pts * result.frame.time_base - self._origin
        self._encode(_picture_of(result), round(time_s / TIME_BASE))
        self._flush(time.monotonic() + SEND_S)
        self._throw_away_progress()

    def close(self) -> None:
        process = self._process
        if process.poll() is None:
            with contextlib.suppress(Exception):
                for packet in self._stream.encode(None):
                    self._output.mux(packet)
                self._flush(time.monotonic() + GOODBYE_S / 2)
            with contextlib.suppress(OSError):
                cast("Any", process.stdin).close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GOODBYE_S)
        process.kill()
        process.wait(GOODBYE_S)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _pipes(self) -> tuple[int, int]:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the process has no pipes")
        return self._process.stdin.fileno(), self._process.stdout.fileno()

    def _add_stream(self, picture: U8, options: PushOptions) -> VideoStream:
        stream = cast("VideoStream", self._output.add_stream("libx264", options=options.of_encoder()))
        height, width = picture.shape[:2]
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = TIME_BASE
        context.thread_count = 1
        context.max_b_frames = 0
        context.gop_size = 10_000  # key frames are asked for by time
        return stream

    def _encode(self, picture: U8, pts: int) -> None:
        self._last_pts = pts = max(pts, self._last_pts + 1)
        frame = av.VideoFrame.from_ndarray(fit_into(picture, self._stream.height, self._stream.width), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=1, dst_color_range=1)
        frame.pts, frame.time_base = pts, TIME_BASE
        frame.pict_type = av.video.frame.PictureType.NONE
        if self._key_pts < 0 or float((pts - self._key_pts) * TIME_BASE) >= KEYFRAME_EVERY_S:
            frame.pict_type = av.video.frame.PictureType.I
            self._key_pts = pts
        for packet in self._stream.encode(frame):
            self._output.mux(packet)

    def _wait_until_ready(self, picture: U8, stopped: Callable[[], bool]) -> None:
        """Meanwhile the picture is shown again and again: ffmpeg tells how far it is only while something comes."""
        started_s = time.monotonic()
        heard = b""
        while b"ready\n" not in heard and b"progress=" not in heard:
            passed_s = time.monotonic() - started_s
            self._flush(started_s + CONNECT_S)
            if stopped():
                raise SinkError("the run ends")
            if passed_s >= CONNECT_S:
                raise SinkError(f"the server did not take the connection within {CONNECT_S:g} s")
            if _is_ready(self._said, select.POLLIN, FILL_S):
                data = os.read(self._said, 4096)
                if not data:
                    raise SinkError(self._reason())
                heard += data
            elif self._target.scheme == "srt":
                self._encode(picture, round(Fraction(passed_s) / TIME_BASE))

    def _flush(self, deadline_s: float) -> None:
        """What the muxer made, into the pipe."""
        while self._pending:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise SinkError(f"the server took nothing for {SEND_S:g} s")
            if not _is_ready(self._to, select.POLLOUT, min(left_s, 0.5)):
                continue
            try:
                written = os.write(self._to, self._pending)
            except BlockingIOError:
                continue
            except OSError:
                raise SinkError(self._reason()) from None
            del self._pending[:written]
        if self._process.poll() is not None:
            raise SinkError(self._reason())

    def _throw_away_progress(self) -> None:
        """Of ffmpeg, so that its pipe does not fill."""
        while _is_ready(self._said, select.POLLIN, 0) and os.read(self._said, 65_536):
            pass

    def _reason(self) -> str:
        """Why the process ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GOODBYE_S)
        self._process.kill()
        said = b""
        if self._process.stderr is not None:
            said = self._process.stderr.read(2000) or b""
        code = self._process.returncode
        text = " ".join(said.decode("utf-8", "replace").split())
        if not text:
            text = "the server does not answer" if code is not None and code < 0 else "the connection ended"
        return text


def _is_ready(descriptor: int, event: int, limit_s: float) -> bool:
    """Whether a pipe can be read or written, or is broken; select() knows only the first 1024 descriptors."""
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(limit_s * 1e3))


class _Collector(io.RawIOBase):
    """Takes what a muxer writes."""

    def __init__(self, into: bytearray) -> None:
        self._into = into

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._into += bytes(data)
        return len(data)


def _picture_of(result: FrameResult) -> U8:
    return result.drawn if result.drawn is not None else result.overlay()


def _command_of(target: Target) -> tuple[list[str], bytes]:
    """The process for a target, and what it is told before the stream."""
    if target.scheme == "srt":
        told = ["-hide_banner", "-loglevel", "error", "-progress", "pipe:1", "-stats_period", "0.2"]
        probe = ["-probesize", "65536", "-analyzeduration", "100000", "-fpsprobesize", "0"]
        flow = ["-f", "mpegts", "-i", "pipe:0", "-c", "copy", "-f", "mpegts", target.text]
        return [program_for_srt("--push srt://"), *told, *probe, *flow], b""
    options: Mapping[str, str] = {"rtsp_transport": "tcp"} if _FORMATS[target.scheme] == "rtsp" else {}
    if _FORMATS[target.scheme] == "flv":
        options = {"flvflags": "no_duration_filesize"}
    order = {"url": target.text, "format": _FORMATS[target.scheme], "options": options}
    return [sys.executable, "-P", str(_REMUX)], json.dumps(order).encode() + b"\n"
