"""Videos made on the spot.

Every frame carries its own number as blocks that survive compression, so a test can prove which frames arrived, and a
magenta "person" for the fake networks.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from tests.fakes import MAGENTA

BITS = 10
BLOCK = 8  # px; a DCT block of the codecs
NUMBER_WIDTH = BITS * BLOCK


def numbered_picture(number: int, height: int = 96, width: int = 128, *, person: bool = True) -> NDArray[np.uint8]:
    """Blocks of the number's bits along the top, below them a magenta person who walks to the right."""
    image = np.full((height, width, 3), 90, np.uint8)
    if person and width >= NUMBER_WIDTH and height >= 64:
        left = 10 + number % max(1, width - 60)
        image[24 : height - 8, left : left + 32] = MAGENTA
    for bit in range(min(BITS, width // BLOCK)):
        image[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 235 if number >> bit & 1 else 20
    return image


def number_of(image: NDArray[np.uint8]) -> int:
    """The number drawn by `numbered_picture`."""
    middle = BLOCK // 2
    return sum(
        (int(image[middle - 1 : middle + 1, bit * BLOCK + middle].mean()) > 128) << bit
        for bit in range(min(BITS, image.shape[1] // BLOCK))
    )


def write_video(
    path: Path,
    count: int = 20,
    *,
    height: int = 96,
    width: int = 128,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    fps: int = 25,
    times_ms: Sequence[int] | None = None,
    rotation: int = 0,
    faststart: bool = True,
    keyframe_every: int = 5,
) -> Path:
    """Write ``count`` numbered frames.

    Args:
        path: the container follows from its suffix.
        count: frames.
        height: px.
        width: px.
        codec: encoder name.
        pixel_format: of the encoded video.
        fps: frames a second, when there are no times.
        times_ms: presentation time of each frame; any rising numbers.
        rotation: display rotation mark in degrees, counter-clockwise.
        faststart: mp4 index in front, so that a cut file can be opened.
        keyframe_every: frames.
    """
    options = {"movflags": "faststart"} if faststart and path.suffix in {".mp4", ".mov"} else {}
    with av.open(str(path), "w", options=options) as container:
        codec_options = {"preset": "ultrafast", "crf": "12"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=fps, options=codec_options)
        stream.height, stream.width, stream.pix_fmt = height, width, pixel_format
        stream.codec_context.gop_size = keyframe_every
        stream.codec_context.max_b_frames = 0
        if codec in {"mjpeg", "mpeg4"}:
            stream.codec_context.bit_rate = 8_000_000
        time_base = Fraction(1, 1000) if times_ms is not None else Fraction(1, fps)
        stream.codec_context.time_base = time_base
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, height, width), format="rgb24")
            frame = frame.reformat(format=pixel_format)
            frame.pts = number if times_ms is None else times_ms[number]
            frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_everything(path: Path, *, seconds: int) -> Path:
    """Sound, uneven times, a rotation mark, reordered frames, open groups: an mp4 of 10 numbered frames a second."""
    options = {"preset": "ultrafast", "crf": "20", "x264-params": "open-gop=1:bframes=3:keyint=50"}
    uneven = np.random.default_rng(4).integers(-40, 40, seconds * 10)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10, options=options)
        video.height, video.width, video.pix_fmt = 96, 128, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        video.codec_context.max_b_frames = 3
        video.set_display_rotation(180)
        sound = container.add_stream("aac", rate=16000, layout="mono")
        silence = np.zeros((1, 1600), np.int16)
        for number in range(seconds * 10):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = 100 * number + int(uneven[number]) + 40, Fraction(1, 1000)
            container.mux(video.encode(frame))
            block = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
            block.sample_rate, block.pts, block.time_base = 16000, 1600 * number, Fraction(1, 16000)
            container.mux(sound.encode(block))
        container.mux(video.encode(None))
        container.mux(sound.encode(None))
    return path


def read_video(path: Path) -> tuple[list[NDArray[np.uint8]], list[float]]:
    """All frames as RGB, and their times in s."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [frame.to_ndarray(format="rgb24") for frame in frames], [
            float(frame.pts * frame.time_base) for frame in frames
        ]


def write_images(folder: Path, names: Sequence[str], *, height: int = 96, width: int = 128) -> Path:
    """Numbered pictures under the given names, numbered in that order."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        image = cv2.cvtColor(numbered_picture(number, height, width), cv2.COLOR_RGB2BGR)
        assert cv2.imwrite(str(folder / name), image)
    return folder


def write_empty_video(path: Path) -> Path:
    """A well-formed AVI with a video stream that holds not one frame."""
    main_header = struct.pack("<14I", 40000, 0, 0, 0x10, 0, 0, 1, 0, 64, 48, 0, 0, 0, 0)
    stream_header = struct.pack(
        "<4s4sIHHIIIIIIIIhhhh", b"vids", b"MJPG", 0, 0, 0, 0, 1, 25, 0, 0, 0, 0, 0, 0, 0, 64, 48
    )
    stream_format = struct.pack("<IiiHH4sIiiII", 40, 64, 48, 1, 24, b"MJPG", 64 * 48 * 3, 0, 0, 0, 0)
    stream_list = _chunk(b"LIST", b"strl" + _chunk(b"strh", stream_header) + _chunk(b"strf", stream_format))
    header_list = _chunk(b"LIST", b"hdrl" + _chunk(b"avih", main_header) + stream_list)
    path.write_bytes(_chunk(b"RIFF", b"AVI " + header_list + _chunk(b"LIST", b"movi") + _chunk(b"idx1", b"")))
    return path


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
