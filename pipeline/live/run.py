"""Many live sources in one process: each its own fault domain, all sharing the networks' calls.

LiveSource 0 --.                                              .-- queue -- recording of 0
LiveSource 1 ---+- StreamGroup -> stages of a file's run -> dispatch -- queue -- JSON lines of 0
...          --'   newest frame of each                       `-- newest result for who subscribed
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from engines import Announce, announce_in_log
from engines.device import HardwareDecoder, device_of
from pipeline.build import Model, compose_stages, model_stages, open_model
from pipeline.channel import Channel
from pipeline.errors import SettingsError, SinkError
from pipeline.live.address import AllowedUrls, read_addresses
from pipeline.live.input import InputOptions, opener_of
from pipeline.live.layers import LiveLayers
from pipeline.live.outputs import DispatchStage, LiveSink, SinkReport, SinkWorker
from pipeline.live.recording import (
    FOLDER,
    DiskSpace,
    DrawingSink,
    LiveJsonSink,
    RecordingOptions,
    RecordingSink,
    StandardOutputSink,
)
from pipeline.live.settings import LiveSettings, read_live_layers
from pipeline.live.source import OPEN_TIMEOUT_S, LiveSource, SourceReport
from pipeline.live.stream_group import StreamGroup
from pipeline.messages import FrameResult
from pipeline.metrics import Histogram, HistogramMeter, StageStats
from pipeline.publish.outputs import Outputs, read_outputs
from pipeline.runtime import Pipeline
from pipeline.zones.shape import read_zones
from pipeline.zones.stage import ZoneStage

log = logging.getLogger(__name__)

RECORDING_QUEUE: Final = 8  # pictures: a second at most of a slow encoder, and the memory of a few frames
JSON_QUEUE: Final = 64
RECORDING_LABEL: Final = "recording of stream {}"
DRAIN_S: Final = 4.0  # from the wish to stop to the end by force
STOP_RECORDING_S: Final = 3.0
NO_FRAMES: Final = HistogramMeter().histogram()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSnapshot:
    """All about one source at one moment.

    Attributes:
        stream: its number, as in `Frame.stream`.
        source: the connection.
        results: frames that went through the networks.
        people: in the newest of them.
        waiting_dropped: decoded frames that a newer one replaced before the networks took them.
        p50_ms, p95_ms: from the decoded frame to its result, recent frames.
        sinks: of this source.
        latency: from the decoded frame to its result, all frames.
        recording: whether its pictures are being recorded; None: they cannot be, there is no --output-dir.
    """

    stream: int
    source: SourceReport
    results: int
    people: int
    waiting_dropped: int
    p50_ms: float
    p95_ms: float
    sinks: tuple[SinkReport, ...]
    latency: Histogram = NO_FRAMES
    recording: bool | None = None

    @property
    def dropped(self) -> dict[str, int]:
        """All losses before the networks, by reason."""
        return dict(Counter(self.source.dropped) + Counter({"newer frame": self.waiting_dropped}))


class LiveRun:
    """Everything of one live run; `run` runs it, the other members may be used from any thread meanwhile."""

    def __init__(
        self,
        settings: LiveSettings,
        *,
        model: Model | None = None,
        extra_sinks: Sequence[LiveSink] = (),
        announce: Announce = announce_in_log,
    ) -> None:
        """Open the model and wire; no source is opened yet and no output touched.

        Args:
            settings: what to do.
            model: networks to use in place of those the settings name; closed at the end.
            extra_sinks: get the results of all sources, each behind a queue of its own.
            announce: see `pipeline.build.open_model`.

        Raises:
            SettingsError: an option or a source cannot be.
            SourceError: a file is not there.
            SinkError: the folder cannot be written.
            EngineError: the model cannot be used.
        """
        self._settings = settings
        self._recording_lock = threading.Lock()
        allowed = AllowedUrls(settings.allow_url)
        addresses = read_addresses(settings.sources, allowed)
        zones = read_zones(settings.zone, settings.zones)
        outputs = read_outputs(settings, streams=len(addresses), zones=len(zones))
        self._check_folder(settings)
        run = settings.run_settings()
        model = model if model is not None else open_model(run, announce=announce)
        self._model = model
        try:
            device = device_of(model.keypoint_engine, model.segment_engine, frames_per_call=settings.batch)
            options = InputOptions(
                timeout_s=max(settings.stall_timeout, OPEN_TIMEOUT_S),
                rtsp_transport=settings.rtsp_transport,
                max_pixels=settings.max_pixels,
                realtime=settings.realtime,
                allowed=allowed,
                decoder=_decoder(settings, device.decoder, device.name),
                decoder_required=settings.decode == "gpu",
            )
            lossless = [
                settings.buffer == "all" or (address.kind == "file" and not settings.realtime) for address in addresses
            ]
            self.live_sources = [
                LiveSource(
                    address.name,
                    opener_of(address, options),
                    stall_timeout_s=settings.stall_timeout,
                    reconnect=settings.reconnect and address.kind not in {"file", "stdin"},
                    lossless=waits,
                )
                for address, waits in zip(addresses, lossless, strict=True)
            ]
            self._group = StreamGroup(self.live_sources, capacity=1)
            self.space: DiskSpace | None = None
            self._dispatch = DispatchStage(
                self._make_sinks(settings, outputs),
                shared=[*_shared_sinks(settings, extra_sinks), *outputs.shared_workers()],
            )
            self.pipeline = Pipeline(
                self._group,
                [
                    *model_stages(run, model, device),
                    *compose_stages(run, device, draw=_draws(settings, outputs)),
                    *([ZoneStage(zones)] if zones else []),
                    self._dispatch,
                ],
                queue_depth=min(device.frames_per_call, len(addresses)),
                source_join_s=2.0,
            )
        except BaseException:
            model.close()
            raise
        self._stopping: threading.Timer | None = None

    def run(self) -> int:
        """Run until all sources have ended or somebody asks to stop.

        Returns:
            How many results came out.

        Raises:
            PipelineError: every source failed for good, or a stage failed.
        """
        count = 0
        try:
            for _ in self.pipeline.results():
                count += 1
        finally:
            if self._stopping is not None:
                self._stopping.cancel()
        return count

    def request_stop(self) -> None:
        """Finish what is in work and close the outputs, within `DRAIN_S`; callable from signal handlers."""
        if self._stopping is None:
            self._stopping = threading.Timer(DRAIN_S, self.pipeline.abort)
            self._stopping.daemon = True
            self._stopping.start()
        self.pipeline.request_stop()

    def abort(self) -> None:
        """Stop now; outputs are closed all the same."""
        self.pipeline.abort()

    def close(self) -> None:
        """Free what a run that does not begin has opened."""
        self._model.close()
        self._dispatch.close()

    def sources(self) -> list[SourceSnapshot]:
        """State and counters of every source."""
        found = []
        for stream, (source, waiting) in enumerate(zip(self.live_sources, self._group.stats(), strict=True)):
            results, people, p50_ms, p95_ms = self._dispatch.figures(stream)
            found.append(
                SourceSnapshot(
                    stream=stream,
                    source=source.report(),
                    results=results,
                    people=people,
                    waiting_dropped=waiting.dropped,
                    p50_ms=p50_ms,
                    p95_ms=p95_ms,
                    sinks=tuple(self._dispatch.sinks(stream)),
                    latency=self._dispatch.latency(stream),
                    recording=self.is_recording(stream),
                )
            )
        return found

    def shared_sinks(self) -> list[SinkReport]:
        """Sinks that take the results of all sources."""
        return self._dispatch.shared_sinks()

    def subscribe(self, stream: int) -> Channel[FrameResult]:
        """The newest result of one stream, again and again; `Channel.hang_up` when it is no longer wanted."""
        return self._dispatch.subscribe(stream)

    def stages(self) -> list[StageStats]:
        """How long each stage works and waits, in flow order."""
        return self.pipeline.stats()

    def is_recording(self, stream: int) -> bool | None:
        """Whether a recording of this stream is being made; None: it cannot be, there is no folder for it."""
        if self.space is None:
            return None
        return self._dispatch.has_sink(stream, RECORDING_LABEL.format(stream))

    def start_recording(self, stream: int) -> None:
        """Record this stream from its next frame on, below the run's own folder; does nothing where it is recorded.

        Raises:
            SettingsError: the run has no folder.
            SinkError: the run is over.
        """
        with self._recording_lock:
            recording = self.is_recording(stream)
            if recording is None:
                raise SettingsError("recordings need a folder: start the run with --output-dir")
            if not recording and not self._dispatch.attach(stream, self._recording_worker(stream)):
                raise SinkError("the run is over")

    def stop_recording(self, stream: int) -> None:
        """End the recording of this stream and wait until its file is whole; does nothing where there is none."""
        with self._recording_lock:
            worker = self._dispatch.detach(stream, RECORDING_LABEL.format(stream))
            if worker is not None:
                worker.join(time.monotonic() + STOP_RECORDING_S)
                self._dispatch.keep_report(stream, worker.report())

    def _recording_worker(self, stream: int) -> SinkWorker:
        settings, space = self._settings, self.space
        if space is None:
            raise SettingsError("recordings need a folder: start the run with --output-dir")
        sink = RecordingSink(space.folder / FOLDER.format(stream), space, self._recording_options())
        drawing = DrawingSink(sink) if settings.record == "off" else sink
        return SinkWorker(drawing, RECORDING_LABEL.format(stream), capacity=RECORDING_QUEUE)

    def _make_sinks(self, settings: LiveSettings, outputs: Outputs) -> list[list[SinkWorker]]:
        sinks = [outputs.workers_of(stream) for stream in range(len(self.live_sources))]
        if settings.output_dir is None:
            return sinks
        self.space = DiskSpace(settings.output_dir, round(settings.keep_free_gb * 1e9))
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        for stream, workers in enumerate(sinks):
            folder = settings.output_dir / FOLDER.format(stream)
            workers.append(
                SinkWorker(LiveJsonSink(folder / f"{stamp}.jsonl"), f"json of stream {stream}", capacity=JSON_QUEUE)
            )
            if settings.record != "off":
                workers.append(self._recording_worker(stream))
            if settings.layer:
                workers.append(self._layers_worker(stream))
        return sinks

    def _layers_worker(self, stream: int) -> SinkWorker:
        settings, space = self._settings, self.space
        if space is None:
            raise SettingsError("layers are recorded into a folder: start the run with --output-dir")
        sink = LiveLayers(
            settings.run_settings(),
            read_live_layers(settings.layer),
            space.folder / FOLDER.format(stream),
            space,
            self._recording_options(),
        )
        return SinkWorker(sink, f"layers of stream {stream}", capacity=RECORDING_QUEUE)

    def _recording_options(self) -> RecordingOptions:
        settings = self._settings
        return RecordingOptions(
            rotate_s=settings.rotate_minutes * 60,
            rotate_bytes=round(settings.rotate_mb * 1e6),
            crf=settings.video_crf,
            preset=settings.video_preset,
            encoder=settings.video_encoder,
        )

    @staticmethod
    def _check_folder(settings: LiveSettings) -> None:
        folder = settings.output_dir
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".pose2seg-may-write"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise SinkError(f"--output-dir {folder}: cannot be written ({error.strerror}): choose another") from error


def _shared_sinks(settings: LiveSettings, extra: Sequence[LiveSink]) -> list[SinkWorker]:
    workers = [SinkWorker(sink, sink.name, capacity=RECORDING_QUEUE) for sink in extra]
    if settings.json is not None:
        workers.append(SinkWorker(StandardOutputSink(), "json on stdout", capacity=JSON_QUEUE))
    return workers


def _draws(settings: LiveSettings, outputs: Outputs) -> bool:
    """Whether some output of the run shows people drawn."""
    # Viewers of the page get people drawn by the page itself, while they look; a layer in place of that is made here.
    page = settings.serve is not None and settings.draw != "people"
    return page or outputs.want_pictures or (settings.output_dir is not None and settings.record == "drawn")


def _decoder(settings: LiveSettings, decoder: HardwareDecoder | None, device: str) -> HardwareDecoder | None:
    if settings.decode == "gpu" and decoder is None:
        raise SettingsError(f"--decode gpu needs the networks on a GPU, they run on {device}: choose --engine torch")
    return None if settings.decode == "cpu" else decoder
