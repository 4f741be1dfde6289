"""`--layer` of a batch: what its outputs are called, its parts in segments, and how parts become outputs.

A part belongs to one segment: a video, or a zip of numbered PNG files. All that layers remember from frame to frame
goes over the border of segments in one file (`pipeline.layers.state`); frames that are held back are a part of it.
"""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av

from kernels.coordinates import U8
from pipeline.batch.state import Segment
from pipeline.batch.video import video_packets
from pipeline.layers.files import PictureWriter, png_bytes
from pipeline.layers.options import ID_MARK, Layer
from pipeline.layers.presence_map import PresenceMapSink
from pipeline.layers.sinks import LayerSet, writer_of
from pipeline.messages import Frame
from pipeline.settings import Settings
from pipeline.stage6_sinks import sink_error
from pipeline.video_output import OutputClock

ENCODER_THREADS: Final = 1  # encoders make other bits of the same frames with other numbers of threads
_ZIP: Final = ".zip"
_BEFORE: Final = "before-"  # a part of the one picture that a person's file begins with
_FORMATS: Final = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".webm": "webm", ".mkv": "matroska"}


class SegmentLayers:
    """All layers of one segment."""

    def __init__(self, settings: Settings, layers: Sequence[Layer], folder: Path, number: int) -> None:
        """Make the sinks, and remove what a killed process left of this segment.

        Args:
            settings: whom the layers are about, and how they are made.
            layers: with relative paths.
            folder: of the input's parts.
            number: of the segment.
        """
        self._folder = folder
        self._mark = f"{number:06d}-"
        self._starts: dict[str, int] = {}
        for old in folder.glob(f"{self._mark}*"):
            old.unlink()
        self.set = LayerSet(
            replace(settings, overwrite=True),
            [replace(layer, path=folder / (self._mark + layer.path.name)) for layer in layers],
            make_writer=self._writer,
            heatmap_at_end=False,
        )

    def parts(self) -> list[Path]:
        """Files that were written."""
        return sorted(self._folder.glob(f"{self._mark}*"))

    def starts(self) -> dict[str, int]:
        """Name of a part -> pts of its first frame, in units of the segment's time base."""
        return dict(self._starts)

    def _writer(self, layer: Layer, path: Path, _clock: OutputClock, settings: Settings) -> PictureWriter:
        if layer.is_folder:
            return _ZippedPictures(path.with_name(path.name + _ZIP))
        return _VideoPart(layer, path, settings, self._starts)


class _VideoPart:
    """A video that begins at 0 with its own first picture; when that was, is noted."""

    def __init__(self, layer: Layer, path: Path, settings: Settings, starts: dict[str, int]) -> None:
        self._layer = layer
        self._path = path
        self._settings = settings
        self._starts = starts
        self._writer = self._new(path)

    def check(self) -> None:
        """The folder is our own."""

    def write_picture(self, picture: U8, frame: Frame, *, at_start: bool = False) -> None:
        if at_start:
            before = self._path.with_name(self._path.name[:7] + _BEFORE + self._path.name[7:])
            writer = self._new(before)
            writer.write_picture(picture, frame)
            writer.close()
            return
        self._starts.setdefault(self._path.name, frame.pts)
        self._writer.write_picture(picture, frame)

    def close(self) -> None:
        self._writer.close()

    def _new(self, path: Path) -> PictureWriter:
        return writer_of(self._layer, path, OutputClock(), self._settings, threads=ENCODER_THREADS)


class _ZippedPictures:
    """PNG files of a segment, not compressed again: one file to bring to the disk in place of thousands."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._zip: zipfile.ZipFile | None = None

    def check(self) -> None:
        """The folder is our own."""

    def write_picture(self, picture: U8, frame: Frame, *, at_start: bool = False) -> None:
        if at_start:
            return  # a picture that is missing is nothing, too
        try:
            if self._zip is None:
                self._zip = zipfile.ZipFile(self._path, "w", zipfile.ZIP_STORED)
            self._zip.writestr(f"{frame.index:06d}.png", png_bytes(picture, self._path))
        except OSError as error:
            raise sink_error(self._path, error) from error

    def close(self) -> None:
        if self._zip is not None:
            try:
                self._zip.close()
            except OSError as error:
                raise sink_error(self._path, error) from error


def outputs_of(layers: Sequence[Layer], segments: Sequence[Segment]) -> dict[str, list[tuple[int, str]]]:
    """What an input's layers become: name behind the input's -> its parts in order, each with the segment's number.

    A heat map has no parts; a person's file has those of the segments in which it was written.
    """
    found: dict[str, list[tuple[int, str]]] = {}
    for layer in layers:
        if layer.kind == "heatmap":
            found[layer.path.name] = []
            continue
        pattern = _pattern_of(layer)
        for number, segment in enumerate(segments):
            for part in sorted(segment.parts, key=lambda name: _BEFORE not in name):
                name = part[7:].removeprefix(_BEFORE).removesuffix(_ZIP if layer.is_folder else "")
                if part[6:7] == "-" and pattern.fullmatch(name):
                    found.setdefault(name, []).append((number, part))
    return found


def _pattern_of(layer: Layer) -> re.Pattern[str]:
    return re.compile(re.escape(layer.path.name).replace(re.escape(ID_MARK), "[0-9]+"))


def existing_outputs(layers: Sequence[Layer], base: Path) -> list[Path]:
    """Files and filled folders that are called like outputs of an input.

    Args:
        layers: of the batch.
        base: path of the input's outputs up to the dot, that is not in it.
    """
    if not layers or not base.parent.is_dir():
        return []
    patterns = [_pattern_of(layer) for layer in layers]
    prefix = base.name + "."
    return [
        path
        for path in sorted(base.parent.iterdir())
        if path.name.startswith(prefix)
        and any(pattern.fullmatch(path.name.removeprefix(prefix)) for pattern in patterns)
        and not (path.is_dir() and not path.is_symlink() and not any(path.iterdir()))
    ]


def assemble_layer(
    name: str,
    parts: Sequence[tuple[int, str]],
    segments: Sequence[Segment],
    folder: Path,
    target: Path,
    *,
    origin_s: Fraction,
) -> None:
    """Make an output of its parts.

    Args:
        name: see `outputs_of`.
        parts: see `outputs_of`.
        segments: all of the input.
        folder: of the parts.
        target: file or folder to make.
        origin_s: time of the input's first frame.

    Raises:
        OSError, FFmpegError: it cannot be written.
    """
    if not Path(name).suffix:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for _, part in parts:
            with zipfile.ZipFile(folder / part) as stored:
                for entry in stored.namelist():  # our own numbers, no paths
                    (target / Path(entry).name).write_bytes(stored.read(entry))
        return
    timed: list[tuple[Path, Fraction]] = []
    for number, part in parts:
        segment = segments[number]
        start = Fraction(0)
        if not part[7:].startswith(_BEFORE):
            start = segment.starts[part] * Fraction(*segment.time_base) - origin_s
        timed.append((folder / part, start))
    container_format = _FORMATS[target.suffix]
    # bitexact: no random numbers for WebM's track and segment, so that the same frames are the same bytes
    options = {"movflags": "faststart"} if container_format in {"mp4", "mov"} else {"fflags": "bitexact"}
    with (
        av.open("file:" + str(target), "w", format=container_format, options=options) as output,
        av.open("file:" + str(timed[0][0])) as first,
    ):
        stream = output.add_stream_from_template(first.streams.video[0])
        stream.time_base = first.streams.video[0].time_base
        stream.metadata.update(first.streams.video[0].metadata)
        for _, _, packet in video_packets(timed, stream):
            output.mux(packet)


def save_heatmaps(settings: Settings, layers: Sequence[Layer], state: Any, targets: dict[str, Path]) -> None:
    """Write the heat maps of a whole input from the state behind its last segment.

    Raises:
        SinkError: they cannot be written.
    """
    placed = [replace(layer, path=targets.get(layer.path.name, layer.path)) for layer in layers]
    made = LayerSet(replace(settings, overwrite=True), placed)
    made.restore(state)
    for sink in made.sinks:
        if isinstance(sink, PresenceMapSink):
            sink.save()


def put_in_place(beside: Path, target: Path) -> None:
    """Give an output its name. Of a folder the numbered pictures are replaced, and other files are left alone.

    Raises:
        OSError: it cannot be.
    """
    if not beside.is_dir():
        os.replace(beside, target)
        return
    target.mkdir(exist_ok=True)
    for old in target.glob("[0-9]" * 6 + ".png"):
        old.unlink()
    for picture in sorted(beside.iterdir()):
        os.replace(picture, target / picture.name)
    beside.rmdir()


def remove_output(path: Path) -> None:
    """Remove what `put_in_place` was to take, or an output of a run before."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def files_below(paths: Iterable[Path]) -> list[Path]:
    """Files themselves, and those in folders."""
    return [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
