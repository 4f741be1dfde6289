"""Run a source and stages, each on a thread of its own, until the end, a stop or the first error.

    source -> channel -> stage -> channel -> ... -> channel -> whoever iterates over `Pipeline.results`

How it ends:
  * end of the source or `request_stop`: the end mark travels through all channels, so everything in flight is finished;
  * a stage fails: it hangs up on its writer, so everything before it stops, and sends the end mark, so everything
    behind it finishes what it was given. The first error is raised, later ones are attached to it as notes;
  * `abort`, or leaving `results` early: all channels hang up, nothing in flight is finished, outputs are still closed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.channel import END, Channel, ChannelClosed
from pipeline.errors import PipelineError, StageError
from pipeline.messages import Frame, FrameResult
from pipeline.metrics import ServiceMeter, StageStats
from pipeline.protocols import BatchStage, HoldingStage, QueueingSource, Source, Stage

log = logging.getLogger(__name__)

STAGE_JOIN_S = 30.0  # a stage finishes the frame in work and closes; an encoder flushes. More than this is a hang
DECODE_STAGE = "decode"


class Pipeline:
    """Threads and channels of one run. Iterate over `results` exactly once."""

    def __init__(
        self,
        source: Source,
        stages: Sequence[Stage[Any, Any]],
        *,
        queue_depth: int = 2,
        max_frames: int | None = None,
        source_join_s: float = STAGE_JOIN_S,
    ) -> None:
        """Wire the parts; nothing starts yet.

        Args:
            source: gives frames; a live one drops the oldest waiting frame when the stages are slower.
            stages: in flow order; the last one makes `FrameResult`.
            queue_depth: frames that may wait between two stages.
            max_frames: end after this many frames of the source.
            source_join_s: how long a source may need to notice a stop.
        """
        self.source = source
        self._stages = list(stages)
        self._max_frames = max_frames
        self._source_join_s = source_join_s
        names = [DECODE_STAGE, *(stage.name for stage in stages)]
        self._meters = {name: ServiceMeter() for name in names}
        if len(self._meters) != len(names):
            raise ValueError(f"stage names must differ, got {names}")
        self._channels: list[Channel[Any]] = [
            Channel(
                f"{name} output",
                1 if source.live else queue_depth,
                "drop_oldest" if source.live and name == DECODE_STAGE else "block",
            )
            for name in names
        ]
        if isinstance(source, QueueingSource):
            self._channels[0] = source.channel
        self._threads: list[threading.Thread] = []
        self._error: BaseException | None = None
        self._error_lock = threading.Lock()
        self._aborted = threading.Event()

    def results(self) -> Iterator[FrameResult]:
        """Start all threads and give the results in order.

        Closing the generator early, or an exception in the loop around it, aborts the run and joins the threads.

        Raises:
            PipelineError: the first thing that went wrong, after everything is joined.
        """
        if self._threads:
            raise RuntimeError("results() was called before: build a new pipeline")
        self._start()
        output = self._channels[-1]
        ended = False
        try:
            while (item := output.get()) is not END:
                yield item
            ended = True
        except ChannelClosed:  # abort() from another thread or a signal handler
            ended = True
        finally:
            if not ended:
                self.abort()
            self._join()
        if self._error is not None:
            raise self._error

    def request_stop(self) -> None:
        """Let the source end now; what is in flight is finished. Callable from signal handlers and any thread."""
        self.source.stop()

    def abort(self) -> None:
        """Stop at once; frames in flight are thrown away, outputs are closed properly all the same."""
        self._aborted.set()
        self.source.stop()
        for channel in self._channels:
            channel.hang_up()

    def stats(self) -> list[StageStats]:
        """Figures of every stage, in flow order, at any moment of the run."""
        names = [DECODE_STAGE, *(stage.name for stage in self._stages)]
        inputs = [None, *(channel.stats() for channel in self._channels[:-1])]
        return [self._meters[name].stats(name, channel) for name, channel in zip(names, inputs, strict=True)]

    @property
    def frames_dropped(self) -> int:
        """Frames of a live source that were replaced by newer ones."""
        return sum(channel.stats().dropped for channel in self._channels)

    def _start(self) -> None:
        self._threads.append(threading.Thread(target=self._run_source, name=DECODE_STAGE, daemon=True))
        for index, stage in enumerate(self._stages):
            inbox, outbox = self._channels[index], self._channels[index + 1]
            self._threads.append(
                threading.Thread(target=self._run_stage, args=(stage, inbox, outbox), name=stage.name, daemon=True)
            )
        for thread in self._threads:
            thread.start()

    def _run_source(self) -> None:
        outbox: Channel[Frame] = self._channels[0]
        meter = self._meters[DECODE_STAGE]
        try:
            if isinstance(self.source, QueueingSource):
                self.source.fill()
                return
            frames = self.source.frames()
            count = 0
            while self._max_frames is None or count < self._max_frames:
                started = time.perf_counter()
                frame = next(frames, None)
                if frame is None:
                    break
                meter.record(time.perf_counter() - started)
                outbox.put(frame)
                count += 1
        except ChannelClosed:
            pass
        except BaseException as error:
            self._fail(DECODE_STAGE, None, error)
        finally:
            self.source.stop()
            try:
                self.source.close()
            except BaseException as error:
                self._fail(DECODE_STAGE, None, error)
            outbox.finish()

    def _run_stage(self, stage: Stage[Any, Any], inbox: Channel[Any], outbox: Channel[Any]) -> None:
        meter = self._meters[stage.name]
        item: Any = None
        try:
            stage.open()
            limit = stage.batch_limit if isinstance(stage, BatchStage) else 1
            while (item := inbox.get()) is not END:
                started = time.perf_counter()
                if limit > 1 and isinstance(stage, BatchStage):
                    items = [item, *inbox.take_waiting(limit - 1)]
                    results = stage.process_batch(items)
                    meter.record(time.perf_counter() - started, frames=len(items))
                    del items
                else:
                    results = stage.process_held(item) if isinstance(stage, HoldingStage) else [stage.process(item)]
                    meter.record(time.perf_counter() - started)
                for result in results:
                    outbox.put(result)
                results, result = (), None  # a waiting stage holds no frame
            if isinstance(stage, HoldingStage):
                for result in stage.rest():
                    outbox.put(result)
        except ChannelClosed:
            pass
        except BaseException as error:
            self._fail(stage.name, frame_index_of(item), error)
        finally:
            inbox.hang_up()
            try:
                stage.close()
            except BaseException as error:
                self._fail(stage.name, None, error)
            outbox.finish()

    def _fail(self, stage: str, frame_index: int | None, error: BaseException) -> None:
        """Keep the first error; later ones become its notes."""
        if not isinstance(error, PipelineError):
            wrapped = StageError(stage, frame_index, error)
            wrapped.__cause__ = error
            error = wrapped
        with self._error_lock:
            if self._error is None:
                self._error = error
            elif error is not self._error:
                self._error.add_note(f"later, in stage {stage}: {error}")
        self.source.stop()

    def _join(self) -> None:
        for thread in self._threads:
            timeout_s = self._source_join_s if thread.name == DECODE_STAGE else STAGE_JOIN_S
            if self._aborted.is_set() and thread.name == DECODE_STAGE:
                timeout_s = min(timeout_s, 2.0)  # a silent camera is left to its own time limit; the thread is a daemon
            thread.join(timeout_s)
            if thread.is_alive():
                if self._aborted.is_set() and thread.name == DECODE_STAGE:
                    log.warning("the source did not stop yet; it ends with its own time limit")
                    continue
                stuck = TimeoutError(f"thread still running {timeout_s:.0f} s after it was asked to stop")
                self._fail(thread.name, None, stuck)


def frame_index_of(item: object) -> int | None:
    """Number of the frame that any message is about."""
    for name in ("masks", "rois", "poses", "frame"):
        item = getattr(item, name, item)
    return item.index if isinstance(item, Frame) else None
