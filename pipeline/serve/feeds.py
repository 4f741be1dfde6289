"""Pictures for viewers: painted while somebody watches, shared by those who want the same, newest picture only.

Each feed has a thread that takes the newest result of its stream from `LiveRun.subscribe`; what it cannot keep up with
is left out there. Viewers take the newest picture from the feed; whoever is slow misses pictures and holds up nobody.
All but the thread runs on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import cv2

from kernels.coordinates import U8
from pipeline.channel import END, Channel, ChannelClosed
from pipeline.messages import FrameResult
from pipeline.serve.view import ViewOptions, ViewPainter, fitted

log = logging.getLogger(__name__)

MAX_SIDE_PX: Final = 1280
MAX_FPS: Final = 30.0
JPEG_QUALITY: Final = 80
IDLE_S: Final = 60.0  # a viewer who watches nothing and asks for nothing is forgotten
FIRST_PICTURE_S: Final = 5.0


class Results(Protocol):
    """What a feed needs of a run."""

    def subscribe(self, stream: int) -> Channel[FrameResult]: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """One painted frame.

    Attributes:
        number: rises within a feed.
        full: (H, W, 3) uint8 RGB of the frame's size.
        shown: the same, no longer than `MAX_SIDE_PX`.
        jpeg: of ``shown``; None while no viewer takes JPEG.
        result: what it shows.
    """

    number: int
    full: U8
    shown: U8
    jpeg: bytes | None
    result: FrameResult


class Feed:
    """One stream with one set of options."""

    def __init__(
        self, run: Results, stream: int, options: ViewOptions, loop: asyncio.AbstractEventLoop, mask_threshold: float
    ) -> None:
        self.stream = stream
        self.options = options
        self.newest: Picture | None = None
        self.ended = False
        self.watches: set[Watch] = set()
        self.wants_jpeg = False  # read by the thread: may be late by a picture
        self._loop = loop
        self._painter = ViewPainter(options, mask_threshold=mask_threshold)
        self._channel = run.subscribe(stream)
        self.thread = threading.Thread(target=self._work, name=f"view of stream {stream}", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """The thread ends after the picture in work."""
        self._channel.hang_up()

    def _work(self) -> None:
        number, next_s = 0, 0.0
        try:
            while (result := self._channel.get()) is not END:
                now = time.monotonic()
                if now < next_s:
                    continue
                next_s = max(next_s + 1.0 / MAX_FPS, now - 0.5 / MAX_FPS)
                full = self._painter.paint(result)
                shown = fitted(full, MAX_SIDE_PX)
                jpeg = jpeg_of(shown) if self.wants_jpeg else None
                number += 1
                self._tell(Picture(number=number, full=full, shown=shown, jpeg=jpeg, result=result))
        except ChannelClosed:
            return
        except Exception:
            log.exception("view of stream %d ended", self.stream)
        self._tell(None)

    def _tell(self, picture: Picture | None) -> None:
        with contextlib.suppress(RuntimeError):  # the server went away
            self._loop.call_soon_threadsafe(self._publish, picture)

    def _publish(self, picture: Picture | None) -> None:
        if picture is None:
            self.ended = True
        else:
            self.newest = picture
        for watch in self.watches:
            watch.wake.set()


def jpeg_of(picture: U8, quality: int = JPEG_QUALITY) -> bytes:
    """(h, w, 3) uint8 RGB -> JPEG."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"a picture of {picture.shape} cannot be written as JPEG")
    return data.tobytes()


def png_of(picture: U8) -> bytes:
    """(h, w, 3) uint8 RGB -> PNG."""
    done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not done:
        raise ValueError(f"a picture of {picture.shape} cannot be written as PNG")
    return data.tobytes()


class Feeds:
    """The feeds that are watched now."""

    def __init__(self, run: Results, *, mask_threshold: float) -> None:
        self._run = run
        self._mask_threshold = mask_threshold
        self._feeds: dict[tuple[int, ViewOptions], Feed] = {}

    def join(self, watch: Watch, options: ViewOptions) -> Feed:
        """The feed with these options; begun for the first who watches it."""
        key = (watch.view.stream, options)
        feed = self._feeds.get(key)
        if feed is None:
            feed = Feed(self._run, watch.view.stream, options, asyncio.get_running_loop(), self._mask_threshold)
            self._feeds[key] = feed
        feed.watches.add(watch)
        feed.wants_jpeg = feed.wants_jpeg or watch.jpeg
        return feed

    def leave(self, watch: Watch, feed: Feed) -> None:
        """The feed ends with the last who watches it."""
        feed.watches.discard(watch)
        feed.wants_jpeg = any(other.jpeg for other in feed.watches)
        if not feed.watches:
            feed.stop()
            self._feeds.pop((feed.stream, feed.options), None)

    @property
    def threads(self) -> int:
        """How many feeds there are."""
        return len(self._feeds)


class View:
    """One stream as one viewer sees it."""

    def __init__(self, feeds: Feeds, stream: int) -> None:
        self.stream = stream
        self.options = ViewOptions()
        self.seen: FrameResult | None = None
        self.watches: set[Watch] = set()
        self._feeds = feeds

    def change(self, options: ViewOptions) -> None:
        """From the next picture on."""
        self.options = options
        for watch in self.watches:
            watch.wake.set()

    def watch(self, *, jpeg: bool) -> Watch:
        """Begin to watch; `Watch.close` ends it."""
        return Watch(self._feeds, self, jpeg=jpeg)


class Watch:
    """A way by which pictures of a view leave: a WebRTC track or an HTTP answer."""

    def __init__(self, feeds: Feeds, view: View, *, jpeg: bool) -> None:
        self.view = view
        self.jpeg = jpeg
        self.wake = asyncio.Event()
        self._feeds = feeds
        self._feed: Feed | None = None
        self._number = 0
        self._closed = False
        view.watches.add(self)

    async def next(self) -> Picture | None:
        """The newest picture that was not given yet; None: no more come."""
        while not self._closed:
            self.wake.clear()
            feed = self._feed
            if feed is None or feed.options != self.view.options:
                new = self._feeds.join(self, self.view.options)
                if feed is not None:
                    self._feeds.leave(self, feed)
                feed, self._feed, self._number = new, new, 0
            picture = feed.newest
            if picture is not None and picture.number > self._number and (picture.jpeg is not None or not self.jpeg):
                self._number = picture.number
                self.view.seen = picture.result
                return picture
            if feed.ended:
                return None
            await self.wake.wait()
        return None

    def close(self) -> None:
        """Free the feed; a second call does nothing."""
        self._closed = True
        self.wake.set()
        self.view.watches.discard(self)
        if self._feed is not None:
            self._feeds.leave(self, self._feed)
            self._feed = None


class Closable(Protocol):
    """A connection."""

    def close(self) -> None: ...


class Viewer:
    """Somebody with the page open: their switches for each stream."""

    def __init__(self, feeds: Feeds, streams: int, now_s: float) -> None:
        self.id = secrets.token_urlsafe(16)
        self.views = [View(feeds, stream) for stream in range(streams)]
        self.used_s = now_s
        self._peer: Closable | None = None

    @property
    def watches(self) -> bool:
        return any(view.watches for view in self.views)

    def take_peer(self, peer: Closable) -> None:
        """The connection by which pictures go; the one before is closed."""
        before, self._peer = self._peer, peer
        if before is not None:
            before.close()

    def close(self) -> None:
        """End all that this viewer watches."""
        if self._peer is not None:
            self._peer.close()
            self._peer = None
        for view in self.views:
            for watch in list(view.watches):
                watch.close()


class TooManyViewers(Exception):
    """The limit is reached; somebody has to leave first."""


class Viewers:
    """All who have the page open, at most so many."""

    def __init__(self, feeds: Feeds, *, streams: int, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._feeds = feeds
        self._streams = streams
        self._limit = limit
        self._clock = clock
        self._viewers: dict[str, Viewer] = {}

    def __len__(self) -> int:
        return len(self._viewers)

    def add(self) -> Viewer:
        """A new one.

        Raises:
            TooManyViewers: see `Viewers`.
        """
        self.forget_idle()
        if len(self._viewers) >= self._limit:
            raise TooManyViewers
        viewer = Viewer(self._feeds, self._streams, self._clock())
        self._viewers[viewer.id] = viewer
        return viewer

    def find(self, viewer_id: str) -> Viewer | None:
        viewer = self._viewers.get(viewer_id)
        if viewer is not None:
            viewer.used_s = self._clock()
        return viewer

    def remove(self, viewer: Viewer) -> None:
        viewer.close()
        self._viewers.pop(viewer.id, None)

    def forget_idle(self) -> None:
        """Those who left without a word."""
        now = self._clock()
        for viewer in list(self._viewers.values()):
            if viewer.watches:
                viewer.used_s = now
            elif now - viewer.used_s > IDLE_S:
                self.remove(viewer)

    def all(self) -> Sequence[Viewer]:
        return list(self._viewers.values())
