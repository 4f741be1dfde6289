"""What each route does; `pipeline.serve.openapi` says what it takes and gives."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import socket
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import Any, Final, NoReturn

from aiohttp import web

from pipeline.errors import SettingsError, SinkError
from pipeline.serve import webrtc
from pipeline.serve.access import Gate
from pipeline.serve.feeds import FIRST_PICTURE_S, Feeds, TooManyViewers, View, Viewer, Viewers, Watch, png_of
from pipeline.serve.figures import History, Run, is_ready, stream_figures
from pipeline.serve.openapi import document
from pipeline.serve.scrape import CONTENT_TYPE, Scrape
from pipeline.serve.view import person_at

log = logging.getLogger(__name__)

BODY_S: Final = 10.0
CLOSE_S: Final = 1.5
WRITE_S: Final = 10.0  # a viewer who takes nothing for so long is let go
SEND_BUFFER: Final = 256 * 1024  # bytes that the system holds for a slow viewer: a few pictures
_TYPES: Final = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}


class Routes:
    """State of one server; its methods are named in `pipeline.serve.openapi.ROUTES`. All run on the event loop."""

    def __init__(
        self,
        run: Run,
        gate: Gate,
        *,
        streams: int,
        viewers: int,
        mask_threshold: float,
        webrtc_addresses: Sequence[str] | None,
    ) -> None:
        self._run = run
        self._gate = gate
        self._streams = streams
        self._feeds = Feeds(run, mask_threshold=mask_threshold)
        self.viewers = Viewers(self._feeds, streams=streams, limit=viewers)
        self.history = History(run)
        self._scrape = Scrape(run, lambda: (len(self.viewers), self._feeds.threads))
        self._webrtc_addresses = webrtc_addresses
        self._webrtc_missing = webrtc.missing()
        self._began_s = time.monotonic()
        self._version = _version()
        self._files = {
            entry.name: entry.read_bytes()
            for entry in (files("pipeline.serve") / "static").iterdir()
            if entry.is_file()
        }

    async def close(self) -> None:
        """Let go of all viewers."""
        for viewer in self.viewers.all():
            self.viewers.remove(viewer)
        if webrtc.Peer.closing:
            await asyncio.wait(webrtc.Peer.closing, timeout=CLOSE_S)

    async def page(self, _request: web.Request) -> web.StreamResponse:
        return self._file("index.html")

    async def static(self, request: web.Request) -> web.StreamResponse:
        return self._file(request.match_info["name"])

    def _file(self, name: str) -> web.Response:
        data = self._files.get(name)
        if data is None:
            raise web.HTTPNotFound(text="no such file")
        kind = _TYPES[name[name.rindex(".") :]]
        charset = None if kind == "image/svg+xml" else "utf-8"
        return web.Response(body=data, content_type=kind, charset=charset, headers={"Cache-Control": "no-cache"})

    async def healthz(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response({"status": "ok"})

    async def readyz(self, _request: web.Request) -> web.StreamResponse:
        if is_ready(self._run.sources()):
            return web.json_response({"status": "ready"})
        return web.json_response({"status": "no source gives results"}, status=503)

    async def metrics(self, _request: web.Request) -> web.StreamResponse:
        return web.Response(body=self._scrape.text(), headers={"Content-Type": CONTENT_TYPE})

    async def document(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response(document(self._version))

    async def session(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"needs_token": self._gate.needs_token, "csrf": self._gate.csrf_of(request)})

    async def log_in(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, {"token"})
        if not isinstance(body["token"], str):
            _refuse("token must be a text")
        return self._gate.log_in(request, body["token"])

    async def log_out(self, request: web.Request) -> web.StreamResponse:
        return self._gate.log_out(request)

    async def state(self, request: web.Request) -> web.StreamResponse:
        options = None
        if "viewer" in request.query:
            viewer = self._viewer(request.query["viewer"])
            options = [view.options.to_dict() for view in viewer.views]
        return web.json_response(
            {
                "version": self._version,
                "uptime_s": round(time.monotonic() - self._began_s, 1),
                "viewers": len(self.viewers),
                "webrtc": self._webrtc_missing,
                "streams": [stream_figures(snapshot, self.history) for snapshot in self._run.sources()],
                "options": options,
            }
        )

    async def add_viewer(self, _request: web.Request) -> web.StreamResponse:
        viewer = self._new_viewer()
        options = [view.options.to_dict() for view in viewer.views]
        return web.json_response({"viewer": viewer.id, "options": options}, status=201)

    async def remove_viewer(self, request: web.Request) -> web.StreamResponse:
        self.viewers.remove(self._viewer(request.match_info["viewer"]))
        return web.Response(status=204)

    async def change_options(self, request: web.Request) -> web.StreamResponse:
        view = self._view(request)
        body = await _body(request)
        try:
            view.change(view.options.changed(body))
        except ValueError as error:
            _refuse(str(error))
        return web.json_response(view.options.to_dict())

    async def click(self, request: web.Request) -> web.StreamResponse:
        view = self._view(request)
        body = await _body(request, {"x", "y"})
        x, y = body["x"], body["y"]
        for value in (x, y):
            if type(value) not in {int, float} or not math.isfinite(value) or not 0 <= value <= 1:
                _refuse("x and y must be numbers from 0 to 1: shares of the picture's width and height")
        if view.seen is None:
            raise web.HTTPConflict(text="this viewer has not seen a picture of this source yet")
        person = person_at(view.seen, x, y)
        chosen = None if person is None or person.id == view.options.selected else person.id
        view.change(view.options.changed({"selected": chosen}))
        return web.json_response({"selected": chosen})

    async def webrtc(self, request: web.Request) -> web.StreamResponse:
        viewer = self._viewer(request.match_info["viewer"])
        body = await _body(request, {"sdp", "streams"})
        sdp, streams = body["sdp"], body["streams"]
        if not isinstance(sdp, str):
            _refuse("sdp must be a text")
        if not isinstance(streams, list) or not streams or any(type(number) is not int for number in streams):
            _refuse("streams must be a list of numbers of sources")
        if len(set(streams)) != len(streams) or not all(0 <= number < self._streams for number in streams):
            _refuse(f"streams must be different numbers from 0 to {self._streams - 1}")
        if self._webrtc_missing is not None:
            raise web.HTTPNotImplemented(text=self._webrtc_missing)
        peer = webrtc.Peer([viewer.views[number] for number in streams], self._webrtc_addresses)
        viewer.take_peer(peer)
        try:
            answer = await peer.answer(sdp, request.remote or "127.0.0.1")
        except webrtc.BadOffer as error:
            _refuse(str(error))
        return web.json_response({"sdp": answer})

    async def pictures(self, request: web.Request) -> web.StreamResponse:
        viewer = self._viewer(request.match_info["viewer"])
        wanted = request.query.get("streams")
        if wanted is None:
            numbers = list(range(self._streams))
        elif re.fullmatch(r"\d{1,9}(,\d{1,9}){0,999}", wanted, re.ASCII):
            numbers = [int(number) for number in wanted.split(",")]
        else:
            _refuse("streams must be numbers of sources such as 0,2")
        if len(set(numbers)) != len(numbers) or not all(number < self._streams for number in numbers):
            _refuse(f"streams must be different numbers from 0 to {self._streams - 1}")
        return await _send_pictures(request, [viewer.views[number] for number in numbers])

    async def mjpeg(self, request: web.Request) -> web.StreamResponse:
        stream = self._stream(request)
        viewer = self._new_viewer()
        try:
            return await _send_pictures(request, [viewer.views[stream]])
        finally:
            self.viewers.remove(viewer)

    async def snapshot(self, request: web.Request) -> web.StreamResponse:
        stream = self._stream(request)
        given = request.query.get("viewer")
        viewer = self._new_viewer() if given is None else self._viewer(given)
        watch = viewer.views[stream].watch(jpeg=False)
        try:
            async with asyncio.timeout(FIRST_PICTURE_S):
                picture = await watch.next()
        except TimeoutError:
            picture = None
        finally:
            watch.close()
            if given is None:
                self.viewers.remove(viewer)
        if picture is None:
            raise web.HTTPServiceUnavailable(text="this source gives no picture now")
        data = await asyncio.get_running_loop().run_in_executor(None, png_of, picture.full)
        name = f"stream-{stream:02d}-{time.strftime('%Y%m%d-%H%M%S')}.png"
        return web.Response(
            body=data, content_type="image/png", headers={"Content-Disposition": f'attachment; filename="{name}"'}
        )

    async def record(self, request: web.Request) -> web.StreamResponse:
        stream = self._stream(request)
        body = await _body(request, {"on"})
        if type(body["on"]) is not bool:
            _refuse("on must be true or false")
        change = self._run.start_recording if body["on"] else self._run.stop_recording
        try:
            await asyncio.get_running_loop().run_in_executor(None, change, stream)
        except (SettingsError, SinkError) as error:
            raise web.HTTPConflict(text=str(error)) from error
        figures = stream_figures(self._run.sources()[stream], self.history)
        return web.json_response(figures["recording"])

    def _new_viewer(self) -> Viewer:
        try:
            return self.viewers.add()
        except TooManyViewers:
            raise web.HTTPServiceUnavailable(
                text="too many viewers: close the page elsewhere, or start the run with more --serve-viewers"
            ) from None

    def _viewer(self, viewer_id: str) -> Viewer:
        viewer = self.viewers.find(viewer_id)
        if viewer is None:
            raise web.HTTPNotFound(text="no such viewer; it was away for too long: ask POST /api/viewers for another")
        return viewer

    def _view(self, request: web.Request) -> View:
        return self._viewer(request.match_info["viewer"]).views[self._stream(request)]

    def _stream(self, request: web.Request) -> int:
        text = request.match_info["stream"]
        if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or int(text) >= self._streams:
            raise web.HTTPNotFound(text=f"no such source: they are numbered from 0 to {self._streams - 1}")
        return int(text)


def _refuse(said: str) -> NoReturn:
    raise web.HTTPBadRequest(text=said)


async def _body(request: web.Request, names: set[str] | None = None) -> dict[str, Any]:
    """The object that a request carries.

    Args:
        request: from outside.
        names: what it must have, no more and no less; None: anything.

    Raises:
        HTTPException: 400, 408, 413 or 415.
    """
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="expected Content-Type: application/json")
    try:
        async with asyncio.timeout(BODY_S):
            data = await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"the request took longer than {BODY_S:.0f} s") from None
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        _refuse("expected JSON")
    if not isinstance(body, dict):
        _refuse("expected a JSON object")
    if names is not None and set(body) != names:
        _refuse(f"expected exactly {', '.join(sorted(names))}")
    return body


async def _send_pictures(request: web.Request, views: Sequence[View]) -> web.StreamResponse:
    """Pictures until the client or the run goes; a client who takes nothing is let go."""
    response = web.StreamResponse(headers={"Content-Type": "multipart/x-mixed-replace; boundary=picture"})
    response.headers["X-Accel-Buffering"] = "no"  # nginx would collect pictures
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    await response.prepare(request)
    watches = [view.watch(jpeg=True) for view in views]
    waiting = {asyncio.ensure_future(watch.next()): watch for watch in watches}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                watch = waiting.pop(task)
                picture = task.result()
                if picture is None or picture.jpeg is None:
                    continue
                await _write(response, watch, picture.jpeg)
                waiting[asyncio.ensure_future(watch.next())] = watch
    except (ConnectionError, TimeoutError):
        if request.transport is not None:
            request.transport.abort()
    finally:
        for task in waiting:
            task.cancel()
        for watch in watches:
            watch.close()
    return response


async def _write(response: web.StreamResponse, watch: Watch, jpeg: bytes) -> None:
    head = (
        f"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\nX-Stream: {watch.view.stream}\r\n\r\n"
    )
    async with asyncio.timeout(WRITE_S):
        await response.write(head.encode() + jpeg + b"\r\n")


def _version() -> str:
    try:
        return version("pose2seg-live")
    except PackageNotFoundError:
        return "not installed"
