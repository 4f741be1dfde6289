"""Decode one video file or address with FFmpeg, on the CPU or a GPU: upright RGB pictures with their own times."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from engines.device import HardwareDecoder, Surface
from kernels.coordinates import U8
from pipeline.errors import SourceError
from pipeline.redaction import redact

log = logging.getLogger(__name__)

URL_SCHEMES = ("rtsp", "rtsps", "http", "https")
# What an address may make FFmpeg open. Local files are left out: a playlist from elsewhere must not read this machine.
_URL_PROTOCOLS = "rtsp,rtsps,rtp,rtcp,srtp,udp,tcp,tls,http,https,httpproxy,crypto,data"
# And what a local file may open: not the network. (A file that is really a playlist stays on the disk.)
_FILE_PROTOCOLS = "file,crypto,data"
MAX_DECODE_THREADS = 4
MAX_BROKEN_IN_A_ROW = 1000  # packets; a file of noise ends here instead of being searched for hours
MAX_BROKEN_LIVE = 50  # more broken packets than good ones lately: it has become another stream; opened again
DEVICE_FORMATS = ("v4l2",)
_FALLBACK_FPS = Fraction(25)
_FALLBACK_TIME_BASE = Fraction(1, 90000)
_DURATION_TAG = "DURATION"  # of Matroska, one per stream


@dataclass(frozen=True, slots=True)
class Picture:
    """One decoded picture: (H, W, 3) uint8 RGB, its time in units of ``time_base`` seconds, its number in the file."""

    index: int
    pixels: U8 | Surface
    pts: int
    time_base: Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveAccess:
    """How to read something that does not wait for us.

    Attributes:
        options: for FFmpeg, on top of our own.
        container_format: FFmpeg's name of it, where it is not to be guessed.
        max_pixels: larger pictures are refused before memory is taken for them.
    """

    options: Mapping[str, str] = field(default_factory=dict)
    container_format: str | None = None
    max_pixels: int | None = None


class VideoInput:
    """An opened video. `pictures` is to be iterated once, on one thread.

    Attributes:
        name: path or address, without passwords.
        endless: a network stream of no stated length.
        frame_rate: average frames a second; a usual value where the file does not say.
        frame_total: how many frames the file says it has; None where it says nothing.
        frames_lost: how many of them did not come; known after the last one.
        packets_broken: how many packets so far could not be decoded.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float,
        decoder: HardwareDecoder | None = None,
        decoder_required: bool = False,
        live: LiveAccess | None = None,
        file: BinaryIO | None = None,
    ) -> None:
        """Open and find the video stream.

        Args:
            address: path of a file, or a URL with a scheme of `URL_SCHEMES`; other schemes only where ``live`` is
                given.
            timeout_s: limit for opening and for each read from the network.
            decoder: of a GPU; what it cannot decode, the CPU does, with a line in the log.
            decoder_required: what it cannot decode is an error.
            live: it is read as it comes: little is buffered, and no decoder thread holds a frame back.
            file: read this; ``address`` is only its name.

        Raises:
            SourceError: it cannot be opened, is no video, or has no decoder.
        """
        self.name = redact(address)
        self._live = live
        self._decoder = decoder
        self.frames_lost = 0
        self._discarded = self.packets_broken = 0
        self._trouble = ""
        is_url = "://" in address and file is None
        self._is_http = address.lower().startswith("http")
        options = {"protocol_whitelist": _URL_PROTOCOLS if is_url else _FILE_PROTOCOLS}
        if is_url and address.lower().startswith("rtsp"):
            options["rtsp_transport"] = "tcp"  # lost UDP packets would be grey blocks
        if live is not None:
            options |= live.options
            if live.max_pixels is not None and live.container_format is None:
                options["max_pixels"] = str(live.max_pixels)  # for decoders that look at the stream while it is opened
        is_device = live is not None and live.container_format in DEVICE_FORMATS
        target: str | BinaryIO = address if is_url or is_device else "file:" + address  # "a:b.mp4" is no protocol

        def opened(acceleration: HWAccel | None) -> InputContainer:
            return av.open(
                target if file is None else file,
                "r",
                format=live.container_format if live is not None else None,
                options=options,
                timeout=(timeout_s, timeout_s) if is_url or is_device else None,
                hwaccel=acceleration,
            )

        try:
            self._container = self._open_accelerated(opened, required=decoder_required) or opened(None)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise _open_error(
                self.name, error, is_url or is_device
            ) from None  # the cause quotes the address with its password
        try:
            self._stream = self._find_stream()
        except SourceError:
            self._container.close()
            raise
        self.endless = is_url and not self._container.duration
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.frame_rate = Fraction(rate) if rate else _FALLBACK_FPS
        self.frame_total = self._stated_frames()

    def _open_accelerated(
        self, opened: Callable[[HWAccel | None], InputContainer], *, required: bool
    ) -> InputContainer | None:
        """The container with its GPU decoder; None when the GPU cannot decode this video, and no container is open."""
        decoder = self._decoder
        if decoder is None:
            return None
        container: InputContainer | None = None
        try:
            container = opened(
                HWAccel(
                    decoder.device_type,
                    decoder.device,
                    allow_software_fallback=True,
                    options=dict(decoder.options()),
                    is_hw_owned=True,
                )
            )
            streams = container.streams.video
            if not streams or streams[0].codec_context is None or streams[0].codec_context.is_hwaccel:
                return container  # what is no video at all gets its own error
            reason = f"{decoder.device_type} has no decoder for {streams[0].codec_context.name}"
        except FileNotFoundError:
            raise
        except (av.FFmpegError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
            # also PermissionError: without a driver FFmpeg says so despite the allowed fallback
            reason = f"{decoder.device_type}: {_reason(error)}"
        if container is not None:
            container.close()
        if required:
            raise SourceError(f"{self.name}: cannot be decoded on the GPU ({reason}): use --decode cpu")
        log.info("%s: decoded on the CPU: %s", self.name, reason)
        self._decoder = None
        return None

    def _find_stream(self) -> VideoStream:
        streams = self._container.streams.video
        if not streams:
            kinds = sorted({str(stream.type) for stream in self._container.streams}) or ["nothing"]
            raise SourceError(
                f"{self.name}: expected a video stream, found {', '.join(kinds)}: give a video or an image"
            )
        stream = streams[0]
        if stream.codec_context is None:
            raise SourceError(f"{self.name}: no decoder for its video format: convert it, for example to H.264")
        if not stream.codec_context.is_hwaccel:
            # Threads that decode a frame each keep as many frames back.
            stream.thread_type = "AUTO" if self._live is None else "SLICE"
            stream.codec_context.thread_count = min(MAX_DECODE_THREADS, os.cpu_count() or 1)
        if self._live is not None and self._live.max_pixels is not None:
            pixels = stream.codec_context.width * stream.codec_context.height
            if pixels > self._live.max_pixels:
                raise SourceError(
                    f"{self.name}: expected pictures of at most {self._live.max_pixels} px, got "
                    f"{stream.codec_context.width} x {stream.codec_context.height}: raise --max-pixels if that is right"
                )
            stream.codec_context.options = {"max_pixels": str(self._live.max_pixels)}
        return stream

    def _stated_frames(self) -> int | None:
        """How many frames the file says it has, counted or from its length; None where it says nothing."""
        if self._stream.frames > 0:
            return self._stream.frames
        duration_s = self._stated_duration_s()
        return None if duration_s is None else max(1, round(duration_s * float(self.frame_rate)))

    def pictures(self, given_up: Callable[[], bool] = bool) -> Iterator[Picture]:
        """Decode to the end. Broken packets are left out and counted in `frames_lost`.

        Args:
            given_up: asked before each packet, also before those of sound and between broken ones; True ends here.

        Raises:
            SourceError: not one frame could be decoded, or the network went silent.
        """
        step_s = 1.0 / float(self.frame_rate)
        decoded, last_pts, end_s = 0, 0, 0.0
        for frame in self._decoded_frames(given_up):
            time_base = Fraction(frame.time_base or self._stream.time_base or _FALLBACK_TIME_BASE)
            pts = frame.pts
            if pts is None:  # containers without timestamps: count frames
                pts = last_pts + max(1, round(step_s / time_base)) if decoded else 0
            last_pts = int(pts)
            end_s = float(last_pts * time_base) + step_s
            yield Picture(decoded, self._pixels(frame), last_pts, time_base)
            decoded += 1
        if not decoded and not given_up():
            reason = self._trouble or "it holds none"
            raise SourceError(f"{self.name}: expected at least one video frame, none could be decoded ({reason})")
        if not self.endless:
            self._count_lost(decoded, end_s)

    def _pixels(self, frame: av.VideoFrame) -> U8 | Surface:
        """Upright RGB; on the GPU where the frame lies there as 8-bit NV12 and needs no turning."""
        decoder = self._decoder
        layout = frame.sw_format
        if decoder is None or layout is None or layout.name != "nv12" or round(frame.rotation / 90) % 4:
            return upright_rgb(frame)
        return decoder.adopt(
            frame.planes[0],
            frame.planes[1],
            full_range=frame.color_range == ColorRange.JPEG,
            bt709=_is_bt709(frame),
        )

    def _decoded_frames(self, given_up: Callable[[], bool]) -> Iterator[av.VideoFrame]:
        """Frames of all packets that decode."""
        packets = self._packets()
        decoded = broken = 0
        live = self._live is not None
        most_broken = MAX_BROKEN_LIVE if live else MAX_BROKEN_IN_A_ROW
        while broken < most_broken:
            try:
                packet = None if given_up() else next(packets, None)
                if packet is None:
                    break
                if packet.stream.index != self._stream.index:
                    continue
                self._discarded += packet.size > 0 and packet.is_discard
                frames = packet.decode()
                # A decoder of another codec makes a picture of noise now and then: live, one good packet is not enough.
                broken = max(broken - 1, 0) if live else 0
            except av.error.EOFError:
                break
            except av.InvalidDataError as error:
                self.packets_broken += 1
                broken += 1
                self._trouble = _reason(error)
                log.debug("%s: broken packet: %s", self.name, self._trouble)
                packets = self._packets()  # a generator that raised gives nothing more
                continue
            except (av.FFmpegError, OSError) as error:
                self._trouble = _reason(error)
                # Over HTTP without a length, FFmpeg reports the plain end of a file as an I/O error too.
                unclear_end = self._is_http and getattr(error, "errno", None) == errno.EIO
                if not decoded or (self.endless and not unclear_end):
                    raise SourceError(f"{self.name}: reading stopped ({self._trouble})") from None
                log.warning("%s: reading stopped after %d frames (%s)", self.name, decoded, self._trouble)
                break
            for frame in frames:
                if isinstance(frame, av.VideoFrame):
                    yield frame
                    decoded += 1
        if given_up():
            return
        if live and broken >= most_broken:
            raise SourceError(f"{self.name}: most of its packets cannot be decoded ({self._trouble})")
        try:
            yield from self._stream.decode(None)  # those that wait in the decoder when reading broke off
        except av.error.EOFError:
            pass  # reading ended properly, and the decoder was emptied then
        except (av.FFmpegError, OSError) as error:
            log.debug("%s: the decoder could not be emptied: %s", self.name, _reason(error))

    def _packets(self) -> Iterator[av.Packet[Any]]:
        """Of the video; live also those of sound, so that the reader can see that only sound comes."""
        if self._live is not None:
            return self._container.demux()
        return self._container.demux(self._stream)

    def close(self) -> None:
        """Close the file or connection. A second call does nothing."""
        self._container.close()

    def _count_lost(self, decoded: int, end_s: float) -> None:
        if self._stream.frames > 0:
            lost, about = self._stream.frames - self._discarded - decoded, ""
        else:
            duration_s = self._stated_duration_s() or 0.0
            start_s = float((self._stream.start_time or 0) * (self._stream.time_base or 0))
            missing_s = duration_s - (end_s - start_s)
            # Without a frame count in the file, less than a second of difference is rounding, not loss.
            lost, about = (
                (round(missing_s * float(self.frame_rate)), "about ") if missing_s > 1.0 else (self.packets_broken, "")
            )
        self.frames_lost = max(lost, 0)
        if self.frames_lost:
            log.warning(
                "%s: %s%d frames lost, %d decoded: the file is cut or damaged",
                self.name,
                about,
                self.frames_lost,
                decoded,
            )

    def _stated_duration_s(self) -> float | None:
        """Length of the video that the file's header states, s; None where it states none."""
        if self._stream.duration and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        tag = self._stream.metadata.get(_DURATION_TAG)
        if tag is not None:
            try:
                hours, minutes, seconds = tag.split(":")
                return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
            except ValueError:
                return None
        only_video = len(self._container.streams) == 1
        if self._container.duration and only_video:
            return float(self._container.duration) / av.time_base
        return None


def _is_bt709(frame: av.VideoFrame) -> bool:
    """Which matrix the colours were made with; BT.601 where nothing is said, as swscale takes it on the CPU."""
    return frame.colorspace == Colorspace.ITU709


def upright_rgb(frame: av.VideoFrame) -> U8:
    image: U8 = frame.to_ndarray(format="rgb24")  # type: ignore[assignment]  # rgb24 is uint8
    quarter_turns = round(frame.rotation / 90) % 4  # counter-clockwise, as np.rot90
    return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns else image


def _open_error(name: str, error: Exception, is_url: bool) -> SourceError:
    if isinstance(error, FileNotFoundError) and not is_url:
        return SourceError(f"{name}: no such file or folder: check the path")
    if isinstance(error, PermissionError) and not is_url:
        return SourceError(f"{name}: may not be read: check its permissions")
    if isinstance(error, av.InvalidDataError):
        return SourceError(
            f"{name}: expected a video, found something else or a file cut before its index: try another copy"
        )
    if isinstance(error, av.error.ProtocolNotFoundError):
        return SourceError(f"{name}: expected an address starting with {', '.join(s + '://' for s in URL_SCHEMES)}")
    advice = "check address, network and password" if is_url else "try another copy"
    return SourceError(f"{name}: cannot be opened ({_reason(error)}): {advice}")


def _reason(error: Exception) -> str:
    if isinstance(error, av.error.ExitError):
        return "no answer within the time limit"  # PyAV interrupts the call
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return redact(str(text))
