"""JSON lines over a connection: plain TCP, and WebSocket messages (``websockets``, extra ``publish``).

A line is that of ``--json -``: all streams, ``stream`` in front. What the other side sends is thrown away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from typing import Any, Final

from pipeline.errors import SettingsError, SinkError
from pipeline.messages import FrameResult
from pipeline.publish.reconnect import CONNECT_S, SEND_S
from pipeline.publish.target import Target

MAX_HEARD: Final = 65_536  # bytes that the other side may say between two frames
CLOSE_S: Final = 1.0


def line_of(result: FrameResult) -> str:
    """A frame as JSON with its stream in front, without a line end."""
    return f'{{"stream":{result.frame.stream},{result.to_json()[1:]}'


class TcpLink:
    """Lines into a TCP connection, as ``nc -lk PORT`` shows them."""

    def __init__(self, target: Target) -> None:
        """Connect.

        Raises:
            OSError: nobody listens, or does not answer in time.
        """
        self._socket = socket.create_connection((target.host, target.port), timeout=CONNECT_S)
        self._socket.settimeout(SEND_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def send(self, result: FrameResult) -> None:
        """Send one line.

        Raises:
            OSError: the other side went away, takes nothing, or talks without end.
        """
        self._hear()
        try:
            self._socket.sendall(f"{line_of(result)}\n".encode())
        except TimeoutError:
            raise TimeoutError(f"the other side took no line for {SEND_S:g} s") from None

    def close(self) -> None:
        self._socket.close()

    def _hear(self) -> None:
        """Notice a goodbye before a line is sent into nothing."""
        self._socket.setblocking(False)  # a limit of 0 s; with any other, Python waits for data
        try:
            for _ in range(MAX_HEARD // 4096):
                if not self._socket.recv(4096):
                    raise ConnectionError("the other side closed the connection")
            raise ConnectionError("the other side talks without end")
        except BlockingIOError:
            return
        finally:
            self._socket.settimeout(SEND_S)


class WebSocketLink:
    """A text message per line. The library's loop runs on a thread of its own and answers pings between frames."""

    def __init__(self, target: Target) -> None:
        """Connect.

        Raises:
            SinkError: no such server, or it does not take the connection.
        """
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"websocket {target.name}", daemon=True)
        self._thread.start()
        self._connection: Any = None
        try:
            self._connection = self._wait_for(self._open(target), CONNECT_S)
        except BaseException:
            self.close()
            raise

    def send(self, result: FrameResult) -> None:
        """Send one message.

        Raises:
            SinkError: the connection is closed, or the other side takes nothing.
        """
        self._wait_for(self._connection.send(line_of(result)), SEND_S)

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._wait_for(self._connection.close(), CLOSE_S)
            self._loop.call_soon_threadsafe(self._connection.transport.abort)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        """The thread: the loop until it is stopped, then the end of what runs in it, keep-alive and all."""
        self._loop.run_forever()

        async def end() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._loop.run_until_complete(end())
        self._loop.close()

    @staticmethod
    async def _open(target: Target) -> Any:
        connect = require_websockets()
        parts = target.url
        address = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()
        quiet = logging.getLogger(f"{__name__}.websockets")
        quiet.setLevel(logging.INFO)  # below, the library writes down every header, with the password in it
        headers = {}
        if target.user is not None:
            import base64

            pair = f"{target.user}:{target.password or ''}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        return await connect(
            address,
            additional_headers=headers,
            open_timeout=CONNECT_S,
            close_timeout=CLOSE_S,
            max_size=MAX_HEARD,
            max_queue=1,
            logger=quiet,
            compression=None,  # masks are run lengths already; a deflate per line costs more than it saves
        )

    def _wait_for(self, step: Any, limit_s: float) -> Any:
        async def limited() -> Any:
            async with asyncio.timeout(limit_s):
                return await step

        future = asyncio.run_coroutine_threadsafe(limited(), self._loop)
        try:
            return future.result(limit_s + CLOSE_S)
        except TimeoutError:
            future.cancel()
            raise SinkError(f"no answer within {limit_s:g} s") from None
        except Exception as error:
            raise SinkError(str(error) or type(error).__name__) from error


def require_websockets() -> Any:
    """``websockets.asyncio.client.connect``.

    Raises:
        SettingsError: the library is not installed.
    """
    try:
        from websockets.asyncio.client import connect
    except ImportError as error:
        raise SettingsError("--publish ws:// needs websockets: pip install 'pose2seg-live[publish]'") from error
    return connect
