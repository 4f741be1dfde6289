"""Open one live source: a stream through FFmpeg, a camera through FFmpeg or OpenCV, standard input, a paced file."""

from __future__ import annotations

import http.client
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import BinaryIO, Final, Literal, cast
from urllib.parse import urljoin, urlsplit

from engines.device import HardwareDecoder
from pipeline.errors import SourceError
from pipeline.live.address import Address, AllowedUrls, is_known_to_ffmpeg
from pipeline.live.source import LiveInput, Opener
from pipeline.live.srt import SrtInput
from pipeline.redaction import redact
from pipeline.stage1_decode import CameraSource
from pipeline.video_input import LiveAccess, Picture, VideoInput

log = logging.getLogger(__name__)

MAX_REDIRECTS: Final = 5
PROBE_BYTES: Final = 1_000_000  # read to find out what a stream is; FFmpeg's own limit is five times that
PROBE_US: Final = 1_000_000
RtspTransport = Literal["tcp", "udp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputOptions:
    """How live sources are opened.

    Attributes:
        timeout_s: limit for opening, and for silence inside of FFmpeg.
        rtsp_transport: tcp loses nothing; udp for cameras that know only that.
        max_pixels: of a picture; larger ones are refused.
        realtime: files are read at the speed they were made.
        allowed: which addresses a redirect may lead to.
        decoder: of a GPU.
        decoder_required: what it cannot decode is an error.
    """

    timeout_s: float = 10.0
    rtsp_transport: RtspTransport = "tcp"
    max_pixels: int = 7680 * 4320
    realtime: bool = False
    allowed: AllowedUrls = AllowedUrls()  # noqa: RUF009  frozen
    decoder: HardwareDecoder | None = None
    decoder_required: bool = False


def opener_of(address: Address, options: InputOptions) -> Opener:
    """What opens a source, as often as it is called."""
    openers: dict[str, Callable[[Address, InputOptions], LiveInput]] = {
        "url": _open_url,
        "camera": _open_camera,
        "device": _open_camera,
        "stdin": _open_stdin,
        "file": _open_file,
    }
    return lambda: openers[address.kind](address, options)


def _open_url(address: Address, options: InputOptions) -> LiveInput:
    """Redirects are followed here, not by FFmpeg, so that each step can be looked at; most streams have none."""
    url = address.text
    if address.url.scheme.lower() == "srt" and not is_known_to_ffmpeg("srt"):
        probe = {"probesize": str(PROBE_BYTES), "analyzeduration": str(PROBE_US)}
        access = LiveAccess(options=probe, container_format="mpegts", max_pixels=options.max_pixels)
        return SrtInput(url, timeout_s=options.timeout_s, access=access)
    for _ in range(MAX_REDIRECTS):
        try:
            return _video(url, options, _url_options(url, options))
        except SourceError:
            target = redirect_of(url, timeout_s=options.timeout_s) if url.lower().startswith("http") else None
            if target is None:
                raise
            options.allowed.check_redirect(url, target)
            log.debug("%s: redirected to %s", address.name, redact(target))
            url = target
    raise SourceError(
        f"{address.name}: expected a stream, found more than {MAX_REDIRECTS} redirects: check the address"
    )


def _url_options(url: str, options: InputOptions) -> dict[str, str]:
    scheme = url.partition("://")[0].lower()
    found = {"probesize": str(PROBE_BYTES), "analyzeduration": str(PROBE_US)}
    if scheme in {"rtsp", "rtsps"}:
        found |= {"rtsp_transport": options.rtsp_transport}
    elif scheme in {"http", "https"}:
        found |= {"max_redirects": "0"}
    elif scheme == "udp":
        found |= {"overrun_nonfatal": "1", "protocol_whitelist": "udp"}
    elif scheme in {"rtmp", "rtmps", "srt"}:
        found |= {"protocol_whitelist": f"{scheme},rtmp,tcp,tls,udp"}
    return found


def redirect_of(url: str, *, timeout_s: float) -> str | None:
    """Where an http(s) address redirects to, one step; None when it does not, or does not answer."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme.lower() == "https" else http.client.HTTPConnection
    try:
        with closing(kind(parts.hostname or "", parts.port, timeout=timeout_s)) as connection:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path, headers={"User-Agent": "Lavf", "Connection": "close"})
            response = connection.getresponse()
            location = response.headers.get("Location")
            if response.status in {301, 302, 303, 307, 308} and location:
                return urljoin(url, location)
    except (OSError, http.client.HTTPException, ValueError) as error:
        log.debug("%s: no redirect could be read: %s", redact(url), redact(str(error)))
    return None


def _open_camera(address: Address, options: InputOptions) -> LiveInput:
    """Through FFmpeg's v4l2; where that fails, through OpenCV, which knows the interfaces of every system."""
    device = f"/dev/video{address.text}" if address.kind == "camera" else address.text
    if sys.platform.startswith("linux"):
        try:
            return VideoInput(
                device,
                timeout_s=options.timeout_s,
                live=LiveAccess(container_format="v4l2", max_pixels=options.max_pixels),
            )
        except SourceError as error:
            log.debug("%s: not through v4l2 (%s), trying OpenCV", address.name, error)
    return OpenCVCamera(int(device.removeprefix("/dev/video")), max_pixels=options.max_pixels)


def _open_stdin(address: Address, options: InputOptions) -> LiveInput:
    probe = {"probesize": str(PROBE_BYTES), "analyzeduration": str(PROBE_US)}
    return VideoInput(
        address.name,
        timeout_s=options.timeout_s,
        live=LiveAccess(options=probe, max_pixels=options.max_pixels),
        file=cast("BinaryIO", _Unbuffered(sys.stdin.fileno())),
    )


class _Unbuffered:
    """Bytes as they come. A buffered reader waits until it has all that was asked for: a second of some streams."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, count: int) -> bytes:
        return os.read(self._descriptor, count)


def _open_file(address: Address, options: InputOptions) -> LiveInput:
    video = _video(address.text, options, {})
    return PacedInput(video) if options.realtime else video


def _video(address: str, options: InputOptions, ffmpeg_options: dict[str, str]) -> VideoInput:
    return VideoInput(
        address,
        timeout_s=options.timeout_s,
        decoder=options.decoder,
        decoder_required=options.decoder_required,
        live=LiveAccess(options=ffmpeg_options, max_pixels=options.max_pixels),
    )


class PacedInput:
    """A file at the speed it was made."""

    def __init__(self, video: VideoInput) -> None:
        self._video = video
        self._wake = threading.Event()
        self.endless = False

    @property
    def packets_broken(self) -> int:
        return self._video.packets_broken

    def pictures(self, given_up: Callable[[], bool]) -> Iterator[Picture]:
        started: float | None = None
        first_s = 0.0
        for picture in self._video.pictures(given_up):
            pts_s = float(picture.pts * picture.time_base)
            if started is None:
                started, first_s = time.monotonic(), pts_s
            while (early_s := pts_s - first_s - (time.monotonic() - started)) > 0 and not given_up():
                self._wake.wait(min(early_s, 0.2))
            yield picture

    def close(self) -> None:
        self._video.close()


class OpenCVCamera:
    """A webcam through OpenCV."""

    endless = True
    packets_broken = 0

    def __init__(self, number: int, *, max_pixels: int) -> None:
        """Open it.

        Raises:
            SourceError: there is none of this number, or another program has it.
        """
        self._camera = CameraSource(number)
        self._max_pixels = max_pixels

    def pictures(self, given_up: Callable[[], bool]) -> Iterator[Picture]:
        for frame in self._camera.frames():
            if frame.height * frame.width > self._max_pixels:
                raise SourceError(
                    f"{self._camera.name}: expected pictures of at most {self._max_pixels} px, got {frame.width} x "
                    f"{frame.height}: raise --max-pixels if that is right"
                )
            yield Picture(frame.index, frame.pixels, frame.pts, frame.time_base)
            if given_up():
                return

    def close(self) -> None:
        self._camera.close()
