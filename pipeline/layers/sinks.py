"""Layers as files: videos with alpha, mattes, folders of PNG, and which picture goes into which."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable
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
from pipeline.layers import pictures
from pipeline.layers.alpha import AlphaMaker
from pipeline.layers.cover import CoverMemory
from pipeline.layers.options import (
    ID_MARK,
    ChosenPeople,
    Layer,
    read_background,
    read_ids,
    read_layers,
)
from pipeline.layers.presence_map import PresenceMapSink
from pipeline.messages import Frame, FrameResult
from pipeline.protocols import Sink
from pipeline.settings import Settings
from pipeline.stage6_sinks import check_output, close_output, create_output, sink_error, write_whole
from pipeline.video_output import OutputClock, VideoSink

CLOSE_AFTER_S = 5.0  # a person who is away for more than two seconds never comes back under the same id
PEOPLE_AT_ONCE = 32  # files of single people that may be open: each holds an encoder
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
        order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
        stored = cv2.cvtColor(picture, order[picture.shape[2]]) if picture.ndim == 3 else picture
        ok, data = cv2.imencode(".png", stored, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_EFFORT])
        if not ok:
            raise SinkError(f"{self._path}: a picture of {picture.shape} cannot be made a PNG")
        path = self._path / f"{self._clock.number:06d}.png"
        unfinished = path.with_suffix(".part")
        file = create_output(unfinished, overwrite=True)
        try:
            try:
                write_whole(file, data.tobytes(), path)
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


class LayerSink:
    """One picture per frame into one file."""

    def __init__(self, writer: PictureWriter, paint: pictures.Paint) -> None:
        self._writer = writer
        self._paint = paint

    def check(self) -> None:
        self._writer.check()

    def write(self, result: FrameResult) -> None:
        self._writer.write_picture(self._paint(result), result.frame)

    def close(self) -> None:
        self._writer.close()


class PerPersonSink:
    """A file for each chosen person, as large as the frame, all on one time line.

    A file begins at the start of the run. While its person is away it holds one empty picture, so that this costs
    nothing; a folder has a picture of each frame in which the person is seen, and an empty one where they leave.
    """

    def __init__(
        self,
        layer: Layer,
        maker: AlphaMaker,
        chosen: ChosenPeople,
        *,
        overwrite: bool,
        make_writer: Callable[[Path, OutputClock], PictureWriter],
    ) -> None:
        """Set up.

        Args:
            layer: its path holds ``{id}``.
            maker: of the run's alphas.
            chosen: who gets a file.
            overwrite: replace files that exist.
            make_writer: opens nothing yet.
        """
        self._layer = layer
        self._maker = maker
        self._chosen = chosen
        self._overwrite = overwrite
        self._make_writer = make_writer
        self._clock = OutputClock()
        self._clip = -1
        self._writers: dict[int, PictureWriter] = {}
        self._last_seen_s: dict[int, float] = {}
        self._away: set[int] = set()
        self._files: Counter[int] = Counter()

    def check(self) -> None:
        folder = self._layer.path.parent
        pattern = self._layer.path.name.replace("[", "[[]").replace(ID_MARK, "[0-9]*")
        if folder.is_dir() and not self._overwrite and (found := sorted(folder.glob(pattern))):
            raise SinkError(f"{found[0]}: exists already: choose another name or add --overwrite")
        self._make_writer(self._layer.path_of(1), self._clock).check()

    def write(self, result: FrameResult) -> None:
        frame = result.frame
        if frame.clip != self._clip and self._writers:
            self._close_writers(list(self._writers))
        self._clip = frame.clip
        self._clock.pts_of(frame)
        here = {
            one.person.id: one
            for one in self._maker.of(result)
            if one.person.id in self._chosen and one.alpha.alpha.size
        }
        for person_id, one in here.items():
            alpha = one.alpha.in_frame(frame.height, frame.width)
            self._writer_of(person_id, frame).write_picture(self._picture(frame, alpha), frame)
            self._last_seen_s[person_id] = frame.pts_s
            self._away.discard(person_id)
        for person_id in [person_id for person_id in self._writers if person_id not in here]:
            if person_id not in self._away:
                self._away.add(person_id)
                self._writers[person_id].write_picture(self._nothing(frame), frame)
            elif frame.pts_s - self._last_seen_s[person_id] > CLOSE_AFTER_S:
                self._close_writers([person_id])

    def close(self) -> None:
        self._close_writers(list(self._writers))

    def _picture(self, frame: Frame, alpha: U8) -> U8:
        return pictures.cut_out(frame.image, alpha) if self._layer.kind == "cutout" else alpha

    def _nothing(self, frame: Frame) -> U8:
        shape = (frame.height, frame.width)
        return np.zeros((*shape, 4) if self._layer.kind == "cutout" else shape, np.uint8)

    def _writer_of(self, person_id: int, frame: Frame) -> PictureWriter:
        if person_id in self._writers:
            return self._writers[person_id]
        if len(self._writers) >= PEOPLE_AT_ONCE:
            raise SinkError(
                f"{self._layer.path}: more than {PEOPLE_AT_ONCE} people at once would each need a file: choose some "
                "with --layer-ids, or write all into one file"
            )
        path = self._layer.path_of(person_id)
        self._files[person_id] += 1
        if self._files[person_id] > 1:  # ids start anew with each clip
            path = path.with_name(f"{path.stem}-{self._files[person_id]}{path.suffix}")
        writer = self._make_writer(path, self._clock)
        writer.check()
        self._writers[person_id] = writer
        if self._clock.number:
            writer.write_picture(self._nothing(frame), frame, at_start=True)
        return writer

    def _close_writers(self, person_ids: list[int]) -> None:
        failure: Exception | None = None
        for person_id in person_ids:
            self._away.discard(person_id)
            try:
                self._writers.pop(person_id).close()
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure


def make_layer_sinks(settings: Settings) -> list[Sink]:
    """One sink per ``--layer``; they share the alphas of a frame and what is remembered of it.

    Raises:
        SettingsError: the picture of ``--layer-background`` cannot be read.
    """
    layers = read_layers(settings.layer)
    if not layers:
        return []
    chosen = read_ids(settings.layer_ids)
    maker = AlphaMaker(
        mask_threshold=settings.mask_threshold, refine=settings.refine_edges, steady=settings.steady_edges
    )
    covers = CoverMemory(maker, chosen, frames=settings.cover_frames)
    return [_sink(layer, settings, maker, chosen, covers) for layer in layers]


def _sink(layer: Layer, settings: Settings, maker: AlphaMaker, chosen: ChosenPeople, covers: CoverMemory) -> Sink:
    if layer.kind == "heatmap":
        return PresenceMapSink(layer.path, maker, chosen, overwrite=settings.overwrite)

    def make_writer(path: Path, clock: OutputClock) -> PictureWriter:
        return _writer(layer, path, clock, settings)

    if layer.per_person:
        return PerPersonSink(layer, maker, chosen, overwrite=settings.overwrite, make_writer=make_writer)
    return LayerSink(make_writer(layer.path, OutputClock()), _paint(layer, settings, maker, chosen, covers))


def _paint(
    layer: Layer, settings: Settings, maker: AlphaMaker, chosen: ChosenPeople, covers: CoverMemory
) -> pictures.Paint:
    if layer.kind == "cutout":
        return pictures.cutout(maker, chosen)
    if layer.kind == "matte":
        return pictures.matte(maker, chosen)
    if layer.kind == "outline":
        return pictures.outline(maker, chosen, alone=_has_alpha(layer))
    if layer.kind == "background":
        background = read_background(settings.layer_background)
        return pictures.NewBackground(
            maker, chosen, pictures.read_picture(background) if isinstance(background, Path) else background
        )
    if layer.kind == "blur":
        return pictures.blur(covers)
    if layer.kind == "pixelate":
        return pictures.pixelate(covers)
    return pictures.Remover(covers, CoverMemory(maker, ChosenPeople(), frames=settings.cover_frames))


def _has_alpha(layer: Layer) -> bool:
    return layer.kind in {"cutout", "outline"} and layer.path.suffix.lower() in {"", ".mov", ".webm"}


def _writer(layer: Layer, path: Path, clock: OutputClock, settings: Settings) -> PictureWriter:
    if layer.is_folder:
        return PngFolder(path, overwrite=settings.overwrite, clock=clock)
    kind = AlphaVideo if _has_alpha(layer) else MatteVideo if layer.kind == "matte" else VideoSink
    return kind(
        path,
        overwrite=settings.overwrite,
        crf=settings.video_crf,
        preset=settings.video_preset,
        encoder="libx264" if kind is not VideoSink else settings.video_encoder,
        clock=clock,
    )
