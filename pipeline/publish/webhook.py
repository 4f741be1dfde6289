"""Events of zones to a web server: ``POST`` with JSON, tried again, with an id that lets the server tell repeats.

A request has `LIMIT_S` in all, however slowly the server talks. What may pass (no connection, 408, 425, 429, 5xx) is
tried again after growing waits, `TRIES` times; what will not pass (another 4xx, a redirect) is not. Redirects are not
followed: the address the user named is the one that gets the data.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from pipeline.backoff import Backoff
from pipeline.live.outputs import NotTaken
from pipeline.messages import FrameResult
from pipeline.publish.target import Target

log = logging.getLogger(__name__)

LIMIT_S: Final = 5.0
TRIES: Final = 5
PASSES: Final = frozenset({408, 425, 429})
MAX_SAID: Final = 300


class Refused(Exception):
    """The server said no, and would say so again."""


class WebhookSink:
    """Posts each event of the results it is given, in order."""

    def __init__(
        self,
        target: Target,
        *,
        limit_s: float = LIMIT_S,
        wait: Callable[[float], object] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Nothing is opened yet.

        Args:
            target: an http or https address.
            limit_s: for one request.
            wait: sleeps between tries; by default until the time is up or `stop` is called.
            now: wall clock, for the ``time`` field.
        """
        self.name = target.name
        self.posted = 0
        self._target = target
        self._limit_s = limit_s
        self._stopped = threading.Event()
        self._wait = wait if wait is not None else self._stopped.wait
        self._now = now

    @staticmethod
    def wants(result: FrameResult) -> bool:
        """Only results with events."""
        return bool(result.events)

    def write(self, result: FrameResult) -> None:
        """Post the events of one frame.

        Raises:
            NotTaken: one could not be delivered; the others were tried all the same.
        """
        lost = 0
        time_text = self._now().isoformat(timespec="milliseconds")
        for event in result.events or ():
            message = {**event.to_message(result.frame), "time": time_text}
            try:
                self._deliver(json.dumps(message, ensure_ascii=False).encode(), event.key)
                self.posted += 1
            except (OSError, http.client.HTTPException, ValueError, Refused) as error:
                lost += 1
                log.warning("%s: event %s is lost: %s", self.name, event.key, self._said(error))
        if lost:
            raise NotTaken("webhook not delivered", self.name)

    def stop(self) -> None:
        """Do not wait for a further try."""
        self._stopped.set()

    def close(self) -> None:
        """Every request has a connection of its own; nothing is held."""

    def _deliver(self, body: bytes, key: str) -> None:
        backoff = Backoff()
        for attempt in range(1, TRIES + 1):
            try:
                self._post(body, key)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if attempt == TRIES or self._stopped.is_set():
                    raise
                wait_s = backoff.next_s()
                log.info("%s: %s: next try in %.1f s", self.name, self._said(error), wait_s)
                self._wait(wait_s)
            else:
                return

    def _post(self, body: bytes, key: str) -> None:
        parts = self._target.url
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "pose2seg-live",
            "Idempotency-Key": key,
            "Connection": "close",
        }
        if self._target.user is not None:
            pair = f"{self._target.user}:{self._target.password or ''}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        connection: http.client.HTTPConnection
        if self._target.scheme == "https":
            connection = http.client.HTTPSConnection(
                self._target.host, self._target.port, timeout=self._limit_s, context=ssl.create_default_context()
            )
        else:
            connection = http.client.HTTPConnection(self._target.host, self._target.port, timeout=self._limit_s)
        # The time limit of a socket is one for each byte; this one is for all of them.
        over = threading.Event()
        alarm = threading.Timer(self._limit_s, self._cut, (connection, over))
        alarm.daemon = True
        alarm.start()
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", path, body, headers)
            status = connection.getresponse().status
            if over.is_set():  # what came was cut off, and may look like an answer
                raise TimeoutError
        except (OSError, http.client.HTTPException, ValueError):
            if over.is_set():
                raise TimeoutError(f"no answer within {self._limit_s:g} s") from None
            raise
        finally:
            alarm.cancel()
            connection.close()
        if 200 <= status < 300:
            return
        if status in PASSES or status >= 500:
            raise ConnectionError(f"the server answered {status}")
        raise Refused(f"the server answered {status}: check the address")

    @staticmethod
    def _cut(connection: http.client.HTTPConnection, over: threading.Event) -> None:
        over.set()
        opened = connection.sock
        if opened is not None:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)

    def _said(self, error: Exception) -> str:
        text = self._target.hidden_in(str(error).strip() or type(error).__name__)
        return "".join(sign if sign.isprintable() else " " for sign in text)[:MAX_SAID]
