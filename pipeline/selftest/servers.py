"""Servers that misbehave on request, for the selftest and the tests: every picture carries its number.

The number of a picture is the time it was made, ``started_s + number / fps`` on this machine's monotonic clock; so
whoever sees a picture knows how old it is, and which ones did not arrive.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Self, cast

import av
import numpy as np
from av.video.stream import VideoStream

from kernels.coordinates import U8

BITS: Final = 20
BLOCK: Final = 8  # px; a DCT block of the codecs
NUMBER_WIDTH: Final = BITS * BLOCK
TS_PACKET: Final = 188
_TS_TIME_BASE: Final = Fraction(1, 90_000)


def numbered_picture(number: int, height: int, width: int) -> U8:
    """(H, W, 3) uint8 RGB: grey, with the bits of the number as blocks along the top."""
    if width < NUMBER_WIDTH or height < 2 * BLOCK:
        raise ValueError(f"expected at least {NUMBER_WIDTH} x {2 * BLOCK} px, got {width} x {height}")
    image = np.full((height, width, 3), 90, np.uint8)
    image[BLOCK:, :: 2 * BLOCK] = 70 + number % 40  # something moves
    bits = np.array([number >> bit & 1 for bit in range(BITS)], np.uint8)
    image[:BLOCK, :NUMBER_WIDTH] = np.repeat(20 + 215 * bits, BLOCK)[None, :, None]
    return image


def number_of(image: U8) -> int:
    """The number drawn by `numbered_picture`."""
    middle = BLOCK // 2
    row = image[middle - 1 : middle + 1, :NUMBER_WIDTH].reshape(2, BITS, BLOCK, 3)[:, :, middle - 1 : middle + 1]
    bits = row.mean(axis=(0, 2, 3)) > 128
    return int(sum(1 << bit for bit in range(BITS) if bits[bit]))


class Camera:
    """Makes the numbered pictures, in real time, for any number of viewers.

    Attributes:
        fps: pictures a second.
        size: height, width in px; may be changed at any time, viewers get the new size from the next picture on.
        silent: makes no pictures while it is set.
    """

    def __init__(self, *, height: int = 270, width: int = 480, fps: int = 25) -> None:
        self.fps = fps
        self.size = (height, width)
        self.silent = threading.Event()
        self.started_s = time.monotonic()

    def made_s(self, number: int) -> float:
        """When a picture was made, monotonic clock, s."""
        return self.started_s + number / self.fps

    def pictures(self, ended: Callable[[], bool]) -> Iterator[tuple[int, U8]]:
        """The picture that is made next, and all after it."""
        first = int((time.monotonic() - self.started_s) * self.fps) + 1
        for number in itertools.count(first):
            while (early_s := self.made_s(number) - time.monotonic()) > 0 or self.silent.is_set():
                if ended():
                    return
                time.sleep(min(max(early_s, 0.01), 0.1))
            if time.monotonic() - self.made_s(number) > 1.0:
                continue  # it was silent
            if ended():
                return
            yield number, numbered_picture(number, *self.size)


class Muxed:
    """Encoded pictures in a container, as bytes that go to ``write`` at once."""

    def __init__(self, write: Callable[[bytes], None], *, container: str, codec: str, fps: int) -> None:
        self._fps = fps
        self._codec = codec
        options = {"flush_packets": "1"}
        if container == "mpegts":
            options |= {"pat_period": "0.2"}
        if container == "rtp":
            options |= {"packetsize": "1200"}
        self.file = _Pipe(write)
        self._output = av.open(cast("Any", self.file), "w", format=container, options=options)
        self._size = (0, 0)
        self._stream: VideoStream | None = None
        self._encoder: Any = None

    def add(self, number: int, image: U8) -> None:
        """Encode one picture; another size than before begins a new sequence of the same stream."""
        if self._stream is None:
            self._stream = cast("VideoStream", self._output.add_stream(cast("Any", self._codec), rate=self._fps))
            self._set_up(self._stream.codec_context, image)
            self._encoder = self._stream.codec_context
        if self._size != image.shape[:2]:
            if self._encoder.is_open:
                self._mux(self._encoder.encode(None))
            if self._size != (0, 0):
                self._encoder = av.CodecContext.create(self._codec, "w")
                self._encoder.framerate = self._fps
                self._set_up(self._encoder, image)
            self._size = (image.shape[0], image.shape[1])
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=self._encoder.pix_fmt)
        frame.pts, frame.time_base = number, Fraction(1, self._fps)
        self._mux(self._encoder.encode(frame))

    def finish(self) -> None:
        """Write what the encoder and the container hold back."""
        self._mux(self._encoder.encode(None))
        self._output.close()

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            packet.stream = self._stream
            self._output.mux(packet)

    def _set_up(self, context: Any, image: U8) -> None:
        context.height, context.width = image.shape[:2]
        context.time_base = Fraction(1, self._fps)
        context.gop_size = self._fps // 2
        context.max_b_frames = 0
        context.thread_count = 1
        if self._codec == "libx264":
            context.pix_fmt = "yuv420p"
            context.options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "18"}
        else:
            context.pix_fmt = "yuvj420p"
            context.options = {"qmin": "2", "qmax": "4"}


class _Pipe(io.RawIOBase):
    """Hands on what a muxer writes."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._write(bytes(data))
        return len(data)


class CameraServer:
    """A camera behind a TCP port that can be cut off and come back at the same port.

    Attributes:
        port: on 127.0.0.1.
        accepted: connections so far.
        corrupt_share: of the transport packets whose content is damaged, 0..1.
        mute: connections are accepted, and nothing is ever said.
    """

    def __init__(self, camera: Camera, *, seed: int = 0) -> None:
        self.camera = camera
        self.port = 0
        self.accepted = 0
        self.corrupt_share = 0.0
        self.mute = False
        self._random = random.Random(seed)  # noqa: S311  which packets are damaged
        self._listener: socket.socket | None = None
        self._clients: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._up = threading.Event()
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Listen, at the port of before."""
        listener = socket.create_server(("127.0.0.1", self.port), backlog=16)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._up = up = threading.Event()
        threading.Thread(target=self._accept, args=(listener, up), name=f"camera {self.port}", daemon=True).start()

    def kill(self) -> None:
        """Close the port and all connections, without a word of goodbye."""
        self._up.set()
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket, down: threading.Event) -> None:
        while not down.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.accepted += 1
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._clients.add(client)
            threading.Thread(
                target=self._serve_and_close, args=(client, down), name=f"client {self.port}", daemon=True
            ).start()

    def _serve_and_close(self, client: socket.socket, down: threading.Event) -> None:
        try:
            if self.mute:
                down.wait(3600)
                return
            self.serve(client, down)
        except (OSError, av.FFmpegError):
            pass  # the viewer went away, or was thrown out
        finally:
            with self._lock:
                self._clients.discard(client)
            client.close()

    def serve(self, client: socket.socket, down: threading.Event) -> None:
        """Everything that one viewer gets; MPEG-TS without a greeting."""
        muxed = Muxed(self.damaging(client.sendall), container="mpegts", codec="libx264", fps=self.camera.fps)
        for number, image in self.camera.pictures(down.is_set):
            muxed.add(number, image)

    def damaging(self, send: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """``send`` with some transport packets damaged behind their headers."""

        def damaged(data: bytes) -> None:
            if self.corrupt_share:
                changed = bytearray(data)
                for start in range(0, len(changed) - TS_PACKET + 1, TS_PACKET):
                    if self._random.random() < self.corrupt_share:
                        for _ in range(8):
                            changed[start + self._random.randrange(8, TS_PACKET)] = self._random.randrange(256)
                data = bytes(changed)
            send(data)

        return damaged


class HttpCameraServer(CameraServer):
    """The same over HTTP: ``/stream.ts``, ``/stream.mjpeg`` (a JPEG per part), and ``/to?URL``, a redirect."""

    def serve(self, client: socket.socket, down: threading.Event) -> None:
        request = client.recv(65536)
        target = request.split(b" ")[1].decode() if request.count(b" ") > 1 else "/"
        if target.startswith("/to?"):
            client.sendall(f"HTTP/1.1 302 Found\r\nLocation: {target[4:]}\r\nContent-Length: 0\r\n\r\n".encode())
        elif target.startswith("/stream.mjpeg"):
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n")
            self._serve_parts(client, down)
        elif target.startswith("/stream.ts"):
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\nConnection: close\r\n\r\n")
            super().serve(client, down)
        else:
            client.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    def _serve_parts(self, client: socket.socket, down: threading.Event) -> None:
        def part(jpeg: bytes) -> None:
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            client.sendall(head.encode() + jpeg + b"\r\n")

        muxed = Muxed(part, container="mjpeg", codec="mjpeg", fps=self.camera.fps)
        for number, image in self.camera.pictures(down.is_set):
            muxed.add(number, image)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipPacket:
    """An encoded picture of a clip.

    Attributes:
        data: H.264 with its parameter sets in the stream, as MPEG-TS has it.
        at_s: when it is shown.
        decode_s: when it is decoded.
        is_key: nothing before it is needed.
    """

    data: bytes
    at_s: float
    decode_s: float
    is_key: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A video that is played over and over."""

    packets: tuple[ClipPacket, ...]
    length_s: float


def clip_of_numbers(count: int, *, height: int = 270, width: int = 480, fps: int = 25) -> Clip:
    """Numbered pictures, from 0."""
    buffer = io.BytesIO()
    muxed = Muxed(lambda data: cast("None", buffer.write(data)), container="mpegts", codec="libx264", fps=fps)
    for number in range(count):
        muxed.add(number, numbered_picture(number, height, width))
    muxed.finish()
    buffer.seek(0)
    return read_clip(buffer)


def read_clip(source: Path | io.BytesIO) -> Clip:
    """The first video stream of a file; anything but H.264 is encoded anew.

    Raises:
        av.FFmpegError: it is no video.
    """
    with av.open(str(source) if isinstance(source, Path) else cast("Any", source)) as opened:
        stream = opened.streams.video[0]
        if stream.codec_context.name != "h264" or "mpegts" not in opened.format.name:
            buffer = io.BytesIO()
            muxed = Muxed(
                lambda data: cast("None", buffer.write(data)),
                container="mpegts",
                codec="libx264",
                fps=max(1, round(float(stream.average_rate or 25))),
            )
            for number, frame in enumerate(opened.decode(stream)):
                muxed.add(number, cast("U8", frame.to_ndarray(format="rgb24")))
            muxed.finish()
            buffer.seek(0)
            return read_clip(buffer)
        base = float(stream.time_base or Fraction(1, 90_000))
        packets = [
            ClipPacket(
                data=bytes(packet),
                at_s=float(packet.pts) * base,
                decode_s=float(packet.dts) * base,
                is_key=packet.is_keyframe,
            )
            for packet in opened.demux(stream)
            if packet.pts is not None and packet.dts is not None
        ]
    step_s = (packets[-1].decode_s - packets[0].decode_s) / max(1, len(packets) - 1)
    return Clip(packets=tuple(packets), length_s=packets[-1].decode_s - packets[0].decode_s + (step_s or 0.04))


class ClipServer(CameraServer):
    """A clip over and over, as fast as the viewer takes it, with times that go on; nothing is encoded meanwhile."""

    def __init__(self, camera: Camera, clip: Clip) -> None:
        self.clip = clip
        super().__init__(camera)

    def serve(self, client: socket.socket, down: threading.Event) -> None:
        output = av.open(
            cast("Any", _Pipe(client.sendall)),
            "w",
            format="mpegts",
            options={"flush_packets": "1", "pat_period": "0.5"},
        )
        stream = output.add_mux_stream("h264", time_base=_TS_TIME_BASE)
        first_s = self.clip.packets[0].decode_s
        for turn in itertools.count():
            offset_s = turn * self.clip.length_s - first_s
            for piece in self.clip.packets:
                if down.is_set():
                    return
                packet = av.Packet(piece.data)
                packet.stream = stream
                packet.time_base = _TS_TIME_BASE
                packet.pts = round((piece.at_s + offset_s) / _TS_TIME_BASE)
                packet.dts = round((piece.decode_s + offset_s) / _TS_TIME_BASE)
                packet.is_keyframe = piece.is_key
                output.mux(packet)


class RtspCameraServer(CameraServer):
    """The same over RTSP, with RTP inside the connection; the RTP packets are FFmpeg's.

    Attributes:
        password: asked for, as ``user:password``; empty: nobody is asked.
    """

    password = ""

    def serve(self, client: socket.socket, down: threading.Event) -> None:
        sending = threading.Lock()
        reader = client.makefile("rb")
        while not down.is_set():
            request, headers = _read_request(reader)
            if not request:
                return
            method, url, _ = (*request.split(" "), "", "")[:3]
            answer = {"CSeq": headers.get("cseq", "0"), "Session": "1"}
            body = ""
            if method == "OPTIONS":
                answer["Public"] = "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER"
            elif method == "DESCRIBE":
                body = (
                    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n"
                    "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\n"
                    "a=control:video\r\n"
                )
                answer |= {"Content-Type": "application/sdp", "Content-Base": url + "/"}
            elif method == "SETUP":
                answer["Transport"] = "RTP/AVP/TCP;unicast;interleaved=0-1"
            answer["Content-Length"] = str(len(body))
            lines = ["RTSP/1.0 200 OK", *(f"{name}: {value}" for name, value in answer.items()), "", body]
            text = "\r\n".join(lines)
            with sending:
                client.sendall(text.encode())
            if method == "PLAY":
                threading.Thread(
                    target=self._play, args=(client, down, sending), name=f"play {self.port}", daemon=True
                ).start()
            if method == "TEARDOWN":
                return

    def _play(self, client: socket.socket, down: threading.Event, sending: threading.Lock) -> None:
        def interleaved(packet: bytes) -> None:
            channel = 1 if 200 <= packet[1] <= 207 else 0  # RTCP, RTP
            if not channel and self.corrupt_share and self._random.random() < self.corrupt_share:
                changed = bytearray(packet)
                for _ in range(8):
                    changed[self._random.randrange(14, len(changed))] = self._random.randrange(256)
                packet = bytes(changed)
            with sending:
                client.sendall(b"$" + bytes([channel]) + len(packet).to_bytes(2, "big") + packet)

        with contextlib.suppress(OSError, av.FFmpegError):
            muxed = Muxed(interleaved, container="rtp", codec="libx264", fps=self.camera.fps)
            for number, image in self.camera.pictures(down.is_set):
                muxed.add(number, image)


def _read_request(reader: Any) -> tuple[str, dict[str, str]]:
    """The first line and the headers of an RTSP request; RTCP that comes between is thrown away."""
    line = b""
    while not line.strip():
        start = reader.read(1)
        if not start:
            return "", {}
        if start == b"$":
            _, length = reader.read(1), int.from_bytes(reader.read(2), "big")
            reader.read(length)
            continue
        line = start + reader.readline()
    headers = {}
    while (header := reader.readline().strip()) != b"":
        name, _, value = header.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return line.decode("latin-1").strip(), headers
