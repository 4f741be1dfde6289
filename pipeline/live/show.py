"""All sources of a live run in one window, on the main thread, as the systems' event loops ask."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence
from typing import Final

import numpy as np

from kernels.coordinates import U8
from pipeline.channel import Channel, ChannelClosed
from pipeline.errors import SinkError
from pipeline.live.run import LiveRun
from pipeline.messages import FrameResult
from pipeline.video_output import fit_into
from pipeline.window import NoDisplay, ResultWindow

log = logging.getLogger(__name__)

REFRESH_S: Final = 0.03
STOP_S: Final = 30.0
MAX_GRID_PX: Final = 1920 * 1080
WAITING: Final = np.zeros((270, 480, 3), np.uint8)


def open_window(title: str) -> ResultWindow | None:
    """A window; None, with one line in the log, where there is no display.

    Raises:
        SettingsError: the library for windows is not installed.
    """
    try:
        return ResultWindow(title)
    except NoDisplay as error:
        said = str(error).partition(": use")[0]  # that advice is for runs of a file
        log.warning("no window: %s; the run goes on without it", said)
        return None


def run_in_window(run: LiveRun, window: ResultWindow) -> None:
    """Run to the end, and show every source meanwhile; closing the window asks the run to stop.

    Raises:
        PipelineError: what ended the run.
    """
    channels = [run.subscribe(stream) for stream in range(len(run.live_sources))]
    pictures: list[U8] = [WAITING] * len(channels)
    ended = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            run.run()
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    worker = threading.Thread(target=work, name="live run", daemon=True)
    worker.start()
    try:
        while not ended.wait(REFRESH_S):
            for stream, channel in enumerate(channels):
                newest = _newest(channel)
                if newest is not None:
                    pictures[stream] = newest.drawn if newest.drawn is not None else newest.overlay()
            if not window.show_picture(grid_of(pictures)):
                break
    except SinkError as error:
        log.warning("%s: the run goes on without it", error)
        ended.wait()
    finally:
        window.close()
        if not ended.is_set():
            run.request_stop()
        worker.join(STOP_S)
    if errors:
        raise errors[0]


def grid_of(pictures: Sequence[U8]) -> U8:
    """(H, W, 3) uint8: all pictures side by side, each fitted into a tile of the first one's shape."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    if len(pictures) == 1:
        return pictures[0]
    height, width = pictures[0].shape[:2]
    scale = min(1.0, math.sqrt(MAX_GRID_PX / (rows * columns * height * width)))
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    grid = np.zeros((rows * height, columns * width, 3), np.uint8)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        grid[row * height : (row + 1) * height, column * width : (column + 1) * width] = fit_into(
            picture, height, width
        )
    return grid


def _newest(channel: Channel[FrameResult]) -> FrameResult | None:
    try:
        waiting = channel.take_waiting(1)
    except ChannelClosed:
        return None
    return waiting[-1] if waiting else None
