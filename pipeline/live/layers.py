"""`--layer` of a live run: all layers of a source, recorded side by side; what they remember outlives every file."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pipeline.errors import SinkError
from pipeline.layers.files import PictureWriter
from pipeline.layers.options import Layer
from pipeline.layers.presence_map import PresenceMapSink
from pipeline.layers.sinks import LayerSet, writer_of
from pipeline.live.recording import FRAGMENT_S, DiskSpace, RecordingOptions, RecordingSink
from pipeline.messages import FrameResult
from pipeline.protocols import Sink
from pipeline.settings import Settings
from pipeline.stage6_sinks import sink_error
from pipeline.video_output import OutputClock

log = logging.getLogger(__name__)

SAVE_MAP_EVERY_S: Final = 60.0  # what a crash costs of a heat map


class LiveLayers:
    """A sink that feeds all layers of one source; one that fails costs itself only.

    Frames that were left out on the way (the queue before it was full) count as time that passed: covered regions grow
    accordingly, and stay until the people were looked for.
    """

    name = "layers"

    def __init__(
        self,
        settings: Settings,
        layers: Sequence[Layer],
        folder: Path,
        space: DiskSpace,
        options: RecordingOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up; nothing is created.

        Args:
            settings: whom the layers are about, and how they are made.
            layers: each with the ending of its recordings as its path.
            folder: of the source.
            space: of all sources.
            options: when new files begin.
            clock: monotonic, s.
        """
        self._folder = folder
        self._space = space
        self._options = options
        self._clock = clock
        self._settings = replace(settings, overwrite=False)
        made = LayerSet(self._settings, layers, make_writer=self._writer, heatmap_at_end=False)
        self._sinks: list[Sink] = [
            _LiveHeatmap(sink, folder, str(layer.path), space, options, clock=clock)
            if isinstance(sink, PresenceMapSink)
            else sink
            for layer, sink in zip(layers, made.sinks, strict=True)
        ]

    def write(self, result: FrameResult) -> None:
        """Take one frame.

        Raises:
            SinkError: some layer could not take it; the others have.
        """
        failures: list[SinkError] = []
        for sink in self._sinks:
            try:
                sink.write(result)
            except SinkError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def close(self) -> None:
        failures: list[Exception] = []
        for sink in self._sinks:
            try:
                sink.close()
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _writer(self, layer: Layer, _path: Path, _clock: OutputClock, settings: Settings) -> PictureWriter:
        def make_video(path: Path) -> PictureWriter:
            return writer_of(layer, path, OutputClock(), settings, threads=1, fragment_s=FRAGMENT_S)

        return RecordingSink(
            self._folder,
            self._space,
            self._options,
            clock=self._clock,
            ending=str(layer.path),
            make_video=make_video,
        )


class _LiveHeatmap:
    """A heat map of the time of each recording, written again every minute."""

    def __init__(
        self,
        sink: PresenceMapSink,
        folder: Path,
        ending: str,
        space: DiskSpace,
        options: RecordingOptions,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._sink = sink
        self._folder = folder
        self._ending = ending
        self._space = space
        self._options = options
        self._clock = clock
        self._began_s = self._saved_s = 0.0
        self._path: Path | None = None
        self._count = 0

    def check(self) -> None:
        """The folder was checked by the run."""

    def write(self, result: FrameResult) -> None:
        now = self._clock()
        if self._path is not None and now - self._began_s >= self._options.rotate_s:
            self.close()
        if self._path is None:
            self._begin(now)
        self._sink.write(result)
        if now - self._saved_s >= SAVE_MAP_EVERY_S:
            self._saved_s = now
            self._save()

    def close(self) -> None:
        if self._path is None:
            return
        path = self._path
        try:
            self._save()
        finally:
            self._space.closed(path)
            self._path = None

    def _begin(self, now: float) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        while True:  # a clock that is set back must not overwrite anything
            path = self._folder / f"{stamp}-{self._count % 10_000:04d}.{self._ending}"
            self._count += 1
            if not path.exists():
                break
        self._path = path
        self._space.opened(path)
        self._sink.start_anew()
        self._began_s = self._saved_s = now

    def _save(self) -> None:
        if self._path is None:
            return
        beside = self._path.with_name(f".{self._path.name}.part{self._path.suffix}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._sink.save(beside)
            if beside.exists():
                os.replace(beside, self._path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise error if isinstance(error, SinkError) else sink_error(self._path, error) from error
