"""SRT through the program ``ffmpeg``, because the FFmpeg inside PyAV's wheels is built without it.

server -> ffmpeg (copies packets) -> pipe, MPEG-TS -> decoder here
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, cast

from pipeline.errors import SettingsError, SourceError
from pipeline.redaction import redact
from pipeline.video_input import LiveAccess, Picture, VideoInput

POLL_S: Final = 0.25
END_S: Final = 2.0
ADVICE: Final = "install an ffmpeg that knows srt (Debian: apt install ffmpeg), PyAV's wheels do not"


def program_for_srt(name: str) -> str:
    """Path of an ``ffmpeg`` that knows SRT.

    Args:
        name: what needs it, for the message.

    Raises:
        SettingsError: there is none.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise SettingsError(f"{name} needs the program ffmpeg, and it is not in the PATH: {ADVICE}")
    if not _knows_srt(program):
        raise SettingsError(f"{name}: {program} was built without srt: {ADVICE}")
    return program


@functools.cache
def _knows_srt(program: str) -> bool:
    try:
        done = subprocess.run(  # noqa: S603  a program that the user installed
            [program, "-hide_banner", "-protocols"], capture_output=True, timeout=20, check=False, text=True
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "srt" in done.stdout.split()


class SrtInput:
    """An open SRT connection; see `pipeline.live.source.LiveInput`."""

    endless = True

    def __init__(self, address: str, *, timeout_s: float, access: LiveAccess) -> None:
        """Start the program and find the video in what it gives.

        Args:
            address: ``srt://...``; it stands in the list of processes.
            timeout_s: limit for silence.
            access: for the decoder.

        Raises:
            SourceError: nobody answers, or it is no video.
        """
        self._given_up: Callable[[], bool] = bool
        self._timeout_s = timeout_s
        told = ["-hide_banner", "-loglevel", "error", "-nostdin", "-protocol_whitelist", "srt,udp"]
        probe = ["-probesize", "1000000", "-analyzeduration", "1000000", "-fflags", "nobuffer"]
        flow = ["-i", address, "-map", "0:v:0", "-c", "copy", "-flush_packets", "1", "-f", "mpegts", "pipe:1"]
        self._process = subprocess.Popen(  # noqa: S603
            [program_for_srt("srt://"), *told, *probe, *flow],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        try:
            self._video = VideoInput(redact(address), timeout_s=timeout_s, live=access, file=cast("BinaryIO", self))
        except SourceError as error:
            said = self._said()
            self.close()
            raise (SourceError(f"{redact(address)}: {said}") if said else error) from None
        except BaseException:
            self.close()
            raise

    @property
    def packets_broken(self) -> int:
        """Packets so far that could not be decoded."""
        return self._video.packets_broken

    def read(self, count: int) -> bytes:
        """Bytes as they come; none at the end, after `timeout_s` of silence, or when nobody wants them."""
        pipe = self._process.stdout
        if pipe is None or pipe.closed:
            return b""
        poll, deadline_s = select.poll(), time.monotonic() + self._timeout_s
        poll.register(pipe.fileno(), select.POLLIN)
        while time.monotonic() < deadline_s and not self._given_up():
            if poll.poll(POLL_S * 1e3):
                return os.read(pipe.fileno(), count)
        return b""

    def pictures(self, given_up: Callable[[], bool]) -> Iterator[Picture]:
        """Pictures as they come.

        Raises:
            SourceError: not one could be decoded.
        """
        self._given_up = given_up
        yield from self._video.pictures(given_up)

    def close(self) -> None:
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        if hasattr(self, "_video"):
            self._video.close()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _said(self) -> str:
        """What the program complained about, if it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(POLL_S)
        if self._process.poll() is None or self._process.stderr is None:
            return ""
        text = (self._process.stderr.read(2000) or b"").decode("utf-8", "replace")
        return redact(" ".join(text.split()))
