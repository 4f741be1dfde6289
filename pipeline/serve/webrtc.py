"""Pictures to a browser by WebRTC (aiortc): a connection per viewer, a track per stream, each encoded for this viewer.

aiortc is asked for when it is needed: where it is missing or does not load, the page takes MJPEG.

An offer comes from outside. Of its addresses only the ports are taken, and put behind the address that the request
itself came from: nobody can make this process send packets to a third machine.
"""

from __future__ import annotations

import asyncio
import fractions
import ipaddress
import logging
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pipeline.serve.feeds import View, Watch

if TYPE_CHECKING:
    from aiortc import RTCPeerConnection

log = logging.getLogger(__name__)

CONNECT_S: Final = 20.0
CLOSE_S: Final = 3.0
MAX_SDP: Final = 60_000  # characters
MAX_CANDIDATES: Final = 16
CLOCK_HZ: Final = 90_000
BITRATE: Final = 1_500_000  # of one stream at the start; then what the browser says it can take, up to ...
MAX_BITRATE: Final = 6_000_000
INSTALL: Final = "pip install 'pose2seg-live[serve]'"
_CANDIDATE: Final = re.compile(
    r"a=candidate:(?P<foundation>[A-Za-z0-9+/]{1,32}) (?P<component>1) (?P<protocol>udp|UDP) (?P<priority>\d{1,10}) "
    r"(?P<host>[A-Za-z0-9.:-]{1,255}) (?P<port>\d{1,5}) typ host\b"
)


class BadOffer(ValueError):
    """The offer cannot be answered; says what was expected."""


def missing() -> str | None:
    """Why WebRTC cannot be had here; None: it can."""
    try:
        import aiortc  # noqa: F401
    except Exception as error:
        return f"aiortc is not there ({type(error).__name__}): {INSTALL}"
    return None


def with_address(sdp: str, address: str) -> str:
    """The offer with ``address`` in place of every host that it names; other kinds of candidates are left out.

    Args:
        sdp: from outside.
        address: IP of who sent it.

    Raises:
        BadOffer: it is no offer to get one or more videos.
    """
    if len(sdp) > MAX_SDP:
        raise BadOffer(f"sdp must not be longer than {MAX_SDP} characters, got {len(sdp)}")
    if not sdp.isascii() or not sdp.startswith("v=0"):
        raise BadOffer("sdp must be a session description")
    ip = ipaddress.ip_address(address.partition("%")[0])
    lines, candidates = [], 0
    for line in sdp.replace("\r\n", "\n").split("\n"):
        if line.startswith("m=") and not line.startswith("m=video "):
            raise BadOffer("sdp must ask for videos only")
        if line.startswith("c="):
            line = f"c=IN IP{ip.version} {'0.0.0.0' if ip.version == 4 else '::'}"  # noqa: PLW2901, S104
        elif line.startswith(("a=candidate", "a=remote-candidates", "a=rtcp:")):
            found = _CANDIDATE.match(line)
            if found is None or int(found["port"]) > 65535 or candidates >= MAX_CANDIDATES:
                continue
            candidates += 1
            line = f"a=candidate:{found['foundation']} 1 udp {found['priority']} {ip} {found['port']} typ host"  # noqa: PLW2901
        lines.append(line)
    return "\r\n".join(lines)


class Peer:
    """One viewer's connection."""

    closing: ClassVar[set[asyncio.Task[None]]] = set()  # of all; they take a moment

    def __init__(self, views: Sequence[View], local_addresses: Sequence[str] | None) -> None:
        """Set up; `answer` begins.

        Args:
            views: the streams, in the order of the offer's videos.
            local_addresses: IPs that take packets; None: all of this machine.
        """
        self._views = views
        self._local_addresses = local_addresses
        self._connection: RTCPeerConnection | None = None
        self._watches: list[Watch] = []
        self._limit: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    async def answer(self, sdp: str, address: str) -> str:
        """The answer to an offer.

        Args:
            sdp: the browser's offer.
            address: IP that it came from.

        Raises:
            BadOffer: it cannot be answered.
        """
        import aiortc
        from aiortc.codecs import h264, vpx

        offer = with_address(sdp, address)
        _listen_only_on(self._local_addresses)
        for codec in (vpx, h264):  # read when an encoder is made; the library's own are for small pictures
            codec.DEFAULT_BITRATE, codec.MAX_BITRATE = BITRATE, MAX_BITRATE  # type: ignore[attr-defined]
        connection = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        self._connection = connection
        connection.on("connectionstatechange", self._on_state)
        try:
            await connection.setRemoteDescription(aiortc.RTCSessionDescription(sdp=offer, type="offer"))
            transceivers = connection.getTransceivers()
            if len(transceivers) != len(self._views):
                raise BadOffer(f"sdp must ask for {len(self._views)} videos, it asks for {len(transceivers)}")
            for transceiver, view in zip(transceivers, self._views, strict=True):
                watch = view.watch(jpeg=False)
                self._watches.append(watch)
                transceiver.sender.replaceTrack(_track_of(watch))
                transceiver.direction = "sendonly"
            await connection.setLocalDescription(await connection.createAnswer())
        except BadOffer:
            await self._end()
            raise
        except Exception as error:  # the library's parser meets text from outside
            await self._end()
            log.debug("offer refused: %s: %s", type(error).__name__, error)
            raise BadOffer("sdp cannot be understood") from error
        self._limit = asyncio.get_running_loop().create_task(self._end_if_not_connected())
        return str(connection.localDescription.sdp)

    def close(self) -> None:
        """End it soon; callable from anywhere on the loop."""
        for watch in self._watches:
            watch.close()
        if self._closing is None and self._connection is not None:
            self._closing = asyncio.get_running_loop().create_task(self._end())
            Peer.closing.add(self._closing)
            self._closing.add_done_callback(Peer.closing.discard)

    async def _end(self) -> None:
        for watch in self._watches:
            watch.close()
        if self._limit is not None:
            self._limit.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                async with asyncio.timeout(CLOSE_S):
                    await connection.close()
            except Exception as error:
                log.debug("a connection did not close as it should: %s: %s", type(error).__name__, error)

    async def _end_if_not_connected(self) -> None:
        await asyncio.sleep(CONNECT_S)
        if self._connection is not None and self._connection.connectionState != "connected":
            self._limit = None
            await self._end()

    def _on_state(self) -> None:
        if self._connection is not None and self._connection.connectionState in {"failed", "closed"}:
            self.close()


def _track_of(watch: Watch) -> Any:
    """A track that gives the newest picture whenever the sender is ready for one."""
    import av
    from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

    class ViewTrack(MediaStreamTrack):
        kind = "video"

        def __init__(self) -> None:
            super().__init__()
            self._began_s: float | None = None

        async def recv(self) -> av.VideoFrame:
            picture = await watch.next() if self.readyState == "live" else None
            if picture is None:
                self.stop()
                raise MediaStreamError
            now = time.monotonic()
            if self._began_s is None:
                self._began_s = now
            frame = av.VideoFrame.from_ndarray(picture.shown, format="rgb24")
            frame.pts = int((now - self._began_s) * CLOCK_HZ)
            frame.time_base = fractions.Fraction(1, CLOCK_HZ)
            return frame

        def stop(self) -> None:
            super().stop()
            watch.close()

    return ViewTrack()


def _listen_only_on(addresses: Sequence[str] | None) -> None:
    """Connections gather these addresses from now on. The library offers all of the machine's, and never loopback."""
    if addresses is None:
        return
    from aioice import ice

    def only(use_ipv4: bool, use_ipv6: bool) -> list[str]:
        wanted = {4: use_ipv4, 6: use_ipv6}
        return [address for address in addresses if wanted[ipaddress.ip_address(address).version]]

    ice.get_host_addresses = only  # one server a process, so it is the same for all its connections
