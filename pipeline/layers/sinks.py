"""All layers of a run: which picture goes into which file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.layers import pictures
from pipeline.layers.alpha import AlphaMaker
from pipeline.layers.covered_frames import CoveredFrames
from pipeline.layers.files import AlphaVideo, MatteVideo, PictureWriter, PngFolder
from pipeline.layers.options import HIDING, ChosenPeople, Layer, read_background, read_ids, read_layers
from pipeline.layers.per_person import PerPersonSink
from pipeline.layers.presence_map import PresenceMapSink
from pipeline.messages import FrameResult
from pipeline.protocols import Sink
from pipeline.settings import Settings
from pipeline.video_output import OutputClock, VideoSink

MakeWriter = Callable[[Layer, Path, OutputClock, Settings], PictureWriter]


class LayerSink:
    """One picture per frame into one file."""

    def __init__(self, writer: PictureWriter, paint: pictures.Paint) -> None:
        self._writer = writer
        self.paint = paint

    def check(self) -> None:
        self._writer.check()

    def write(self, result: FrameResult) -> None:
        self._writer.write_picture(self.paint(result), result.frame)

    def close(self) -> None:
        self._writer.close()


class HidingSink:
    """One picture per frame into one file, from frames that are held back for a while if wanted."""

    def __init__(self, writer: PictureWriter, covered: CoveredFrames, paint: pictures.HidingPaint) -> None:
        self._writer = writer
        self._covered = covered
        self.paint = paint
        self.goes_on = False  # what is held is written by another sink, in a part that follows

    def check(self) -> None:
        self._writer.check()

    def write(self, result: FrameResult) -> None:
        for covered in self._covered.of(result):
            self._writer.write_picture(self.paint(covered), covered.frame)

    def close(self) -> None:
        try:
            for covered in () if self.goes_on else self._covered.rest():
                self._writer.write_picture(self.paint(covered), covered.frame)
        finally:
            self._writer.close()


class LayerSet:
    """The sinks of all ``--layer``, and what they remember; alphas and covers of a frame are made once for all,
    those of layers that hide people and of the others apart where masks do not overlap.
    """

    def __init__(
        self,
        settings: Settings,
        layers: Sequence[Layer] | None = None,
        *,
        make_writer: MakeWriter | None = None,
        heatmap_at_end: bool = True,
    ) -> None:
        """Make the sinks; no file is touched.

        Args:
            settings: whom the layers are about, and how they are made.
            layers: in place of those of the settings.
            make_writer: in place of `writer_of`.
            heatmap_at_end: closing writes the heat map; False leaves that to who asks for `state`.

        Raises:
            SettingsError: the picture of ``--layer-background`` cannot be read.
        """
        self._settings = settings
        self._layers = read_layers(settings.layer) if layers is None else tuple(layers)
        self._make_writer = writer_of if make_writer is None else make_writer
        self._chosen = read_ids(settings.layer_ids)
        self._maker = _maker(settings, exclusive=not settings.overlapping_masks)
        # Whoever is hidden is covered wherever they may be, though somebody else may be surer there.
        self._covering_maker = self._maker if settings.overlapping_masks else _maker(settings, exclusive=False)
        self._covered = CoveredFrames(
            self._covering_maker, self._chosen, frames=settings.cover_frames, ahead=settings.hide_ahead
        )
        self._remembering: dict[int, PerPersonSink | PresenceMapSink | pictures.Remover] = {}
        self._heatmap_at_end = heatmap_at_end
        self.sinks: list[Sink] = [self._sink(number, layer) for number, layer in enumerate(self._layers)]

    def to_state(self) -> dict[str, Any]:
        """What the next frame needs, to be asked before the sinks are closed; see `pipeline.layers.state`."""
        return {
            "alpha": self._maker.to_state(),
            "covering_alpha": self._covering_maker.to_state(),
            "covered": self._covered.to_state() if any(layer.kind in HIDING for layer in self._layers) else None,
            "layers": [[number, layer.to_state()] for number, layer in self._remembering.items()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `to_state` was called."""
        self._maker.restore(state["alpha"])
        self._covering_maker.restore(state["covering_alpha"])
        if state["covered"] is not None:
            self._covered.restore(state["covered"])
        for number, layer_state in state["layers"]:
            self._remembering[number].restore(layer_state)

    def close_later(self) -> None:
        """Frames that are held back are not written when the sinks are closed: they are a part of the state."""
        for sink in self.sinks:
            if isinstance(sink, HidingSink):
                sink.goes_on = True

    def _sink(self, number: int, layer: Layer) -> Sink:
        settings = self._settings
        if layer.kind == "heatmap":
            heatmap = PresenceMapSink(
                layer.path, self._maker, self._chosen, overwrite=settings.overwrite, at_end=self._heatmap_at_end
            )
            self._remembering[number] = heatmap
            return heatmap
        if layer.per_person:
            people = PerPersonSink(
                layer,
                self._maker,
                self._chosen,
                overwrite=settings.overwrite,
                make_writer=lambda path, clock: self._make_writer(layer, path, clock, settings),
            )
            self._remembering[number] = people
            return people
        writer = self._make_writer(layer, layer.path, OutputClock(), settings)
        if layer.kind in HIDING:
            return HidingSink(writer, self._covered, self._hiding_paint(number, layer))
        return LayerSink(writer, self._paint(layer))

    def _hiding_paint(self, number: int, layer: Layer) -> pictures.HidingPaint:
        if layer.kind == "remove":
            remover = pictures.Remover()
            self._remembering[number] = remover
            return remover
        return pictures.blur if layer.kind == "blur" else pictures.pixelate

    def _paint(self, layer: Layer) -> pictures.Paint:
        return _paint(layer, self._settings, self._maker, self._chosen)


def _maker(settings: Settings, *, exclusive: bool) -> AlphaMaker:
    return AlphaMaker(
        mask_threshold=settings.mask_threshold,
        exclusive=exclusive,
        refine=settings.refine_edges,
        steady=settings.steady_edges,
    )


def _paint(layer: Layer, settings: Settings, maker: AlphaMaker, chosen: ChosenPeople) -> pictures.Paint:
    if layer.kind == "cutout":
        return pictures.cutout(maker, chosen)
    if layer.kind == "matte":
        return pictures.matte(maker, chosen)
    if layer.kind == "outline":
        return pictures.outline(maker, chosen, alone=has_alpha(layer))
    background = read_background(settings.layer_background)
    return pictures.NewBackground(
        maker, chosen, pictures.read_picture(background) if isinstance(background, Path) else background
    )


def make_layer_paint(settings: Settings, layer: Layer) -> pictures.Paint:
    """What paints a layer that does not hide people, with a memory of its own.

    Raises:
        SettingsError: the picture of ``--layer-background`` cannot be read.
    """
    maker = _maker(settings, exclusive=not settings.overlapping_masks)
    return _paint(layer, settings, maker, read_ids(settings.layer_ids))


def make_layer_sinks(settings: Settings) -> list[Sink]:
    """One sink per ``--layer`` of a run.

    Raises:
        SettingsError: the picture of ``--layer-background`` cannot be read.
    """
    return LayerSet(settings).sinks if settings.layer else []


def has_alpha(layer: Layer) -> bool:
    """Whether its pictures have a fourth channel."""
    return layer.kind in {"cutout", "outline"} and layer.path.suffix.lower() in {"", ".mov", ".webm"}


def writer_of(
    layer: Layer,
    path: Path,
    clock: OutputClock,
    settings: Settings,
    *,
    threads: int | None = None,
    fragment_s: float | None = None,
) -> PictureWriter:
    """The file or folder that a layer's pictures go to; nothing is opened yet.

    Args:
        layer: what it is.
        path: in place of the layer's own.
        clock: times of its pictures.
        settings: how it is encoded.
        threads: see `VideoSink`.
        fragment_s: see `VideoSink`; those with alpha are written every second in any case.
    """
    if layer.is_folder:
        return PngFolder(path, overwrite=settings.overwrite, clock=clock)
    kind = AlphaVideo if has_alpha(layer) else MatteVideo if layer.kind == "matte" else VideoSink
    return kind(
        path,
        overwrite=settings.overwrite,
        crf=settings.video_crf,
        preset=settings.video_preset,
        threads=threads,
        fragment_s=fragment_s,
        encoder="libx264" if kind is not VideoSink else settings.video_encoder,
        clock=clock,
    )
