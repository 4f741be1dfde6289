"""Every route, once: the router and the OpenAPI document are both made from this table."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.live.source import SourceState
from pipeline.serve.access import CSRF_HEADER, MAX_TOKEN
from pipeline.serve.view import BACKGROUNDS, MAX_ID
from pipeline.serve.webrtc import MAX_SDP

Schema = dict[str, Any]
JSON: Final = "application/json"
MJPEG: Final = "multipart/x-mixed-replace"

_NUMBER: Final[Schema] = {"type": "number"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_TEXT: Final[Schema] = {"type": "string"}
_SWITCH: Final[Schema] = {"type": "boolean"}
_COUNTS: Final[Schema] = {"type": "object", "additionalProperties": _COUNT}
_SHARE: Final[Schema] = {"type": "number", "minimum": 0, "maximum": 1}
_ID: Final[Schema] = {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_ID}


def _object(properties: dict[str, Schema], *, optional: bool = False, **more: Any) -> Schema:
    required = {} if optional else {"required": list(properties)}
    return {"type": "object", "additionalProperties": False, "properties": properties} | required | more


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_OPTIONS: Final = {
    "mask": _SWITCH,
    "skeleton": _SWITCH,
    "ids": _SWITCH,
    "blur_others": _SWITCH,
    "background": {"type": "string", "enum": list(BACKGROUNDS)},
    "selected": _ID,
}
SCHEMAS: Final[dict[str, Schema]] = {
    "Error": _object({"error": _TEXT}),
    "Status": _object({"status": _TEXT}),
    "Session": _object({"needs_token": _SWITCH, "csrf": {"type": ["string", "null"]}}),
    "LogIn": _object({"token": {"type": "string", "maxLength": MAX_TOKEN}}),
    "Options": _object(_OPTIONS),
    "OptionsWish": _object(_OPTIONS, optional=True),
    "Viewer": _object({"viewer": _TEXT, "options": {"type": "array", "items": _ref("Options")}}),
    "Click": _object({"x": _SHARE, "y": _SHARE}),
    "Selected": _object({"selected": _ID}),
    "Offer": _object(
        {
            "sdp": {"type": "string", "maxLength": MAX_SDP},
            "streams": {"type": "array", "items": _COUNT, "minItems": 1, "uniqueItems": True},
        }
    ),
    "Answer": _object({"sdp": _TEXT}),
    "RecordingWish": _object({"on": _SWITCH}),
    "Recording": _object({"possible": _SWITCH, "on": _SWITCH, "frames": _COUNT, "lost": _COUNTS}),
    "Stream": _object(
        {
            "stream": _COUNT,
            "name": _TEXT,
            "state": {"type": "string", "enum": [state.value for state in SourceState]},
            "trouble": _TEXT,
            "next_try_s": {"type": ["number", "null"]},
            "width": _COUNT,
            "height": _COUNT,
            "fps": {"type": "number", "description": "results in the last second"},
            "source_fps": _NUMBER,
            "people": _COUNT,
            "p50_ms": _NUMBER,
            "p95_ms": _NUMBER,
            "frames": _COUNT,
            "results": _COUNT,
            "dropped": _COUNTS,
            "reconnects": _COUNTS,
            "recording": _ref("Recording"),
            "history": _object(
                {
                    "fps": {"type": "array", "items": _NUMBER},
                    "latency_ms": {"type": "array", "items": {"type": ["number", "null"]}},
                },
                description="one value a second, oldest first",
            ),
        }
    ),
    "State": _object(
        {
            "version": _TEXT,
            "uptime_s": _NUMBER,
            "viewers": _COUNT,
            "webrtc": {"type": ["string", "null"], "description": "why WebRTC cannot be had; null: it can"},
            "streams": {"type": "array", "items": _ref("Stream")},
            "options": {"type": ["array", "null"], "items": _ref("Options"), "description": "of ?viewer=, if given"},
        }
    ),
}

_PARAMETERS: Final[dict[str, Schema]] = {
    "stream": {"name": "stream", "in": "path", "required": True, "schema": _COUNT, "description": "number"},
    "viewer": {
        "name": "viewer",
        "in": "path",
        "required": True,
        "schema": _TEXT,
        "description": "see POST /api/viewers",
    },
    "name": {"name": "name", "in": "path", "required": True, "schema": _TEXT, "description": "file of the page"},
    "?viewer": {"name": "viewer", "in": "query", "required": False, "schema": _TEXT, "description": "whose switches"},
    "?streams": {
        "name": "streams",
        "in": "query",
        "required": False,
        "schema": {"type": "string", "pattern": "^[0-9]+(,[0-9]+)*$"},
        "description": "numbers of sources, all by default",
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One method of one path.

    Attributes:
        method, path: as usual; ``{name}`` stands for one part.
        name: of the method of `pipeline.serve.routes.Routes` that answers, and the operation's id.
        summary: one line.
        query: names of query parameters.
        body: name of a schema; None: there is none.
        answers: status -> content type, and for JSON the name of a schema.
        is_open: no token is needed.
        in_document: false for the page's own files.
    """

    method: str
    path: str
    name: str
    summary: str
    query: tuple[str, ...] = ()
    body: str | None = None
    answers: dict[int, tuple[str, str | None]] = field(default_factory=dict)
    is_open: bool = False
    in_document: bool = True


ROUTES: Final = (
    Route(method="GET", path="/", name="page", summary="The page.", answers={200: ("text/html", None)}, is_open=True),
    Route(
        method="GET",
        path="/static/{name}",
        name="static",
        summary="A file of the page.",
        answers={200: ("*/*", None), 404: (JSON, "Error")},
        is_open=True,
    ),
    Route(
        method="GET",
        path="/healthz",
        name="healthz",
        summary="Whether the process answers.",
        answers={200: (JSON, "Status")},
        is_open=True,
    ),
    Route(
        method="GET",
        path="/readyz",
        name="readyz",
        summary="Whether at least one source gives results.",
        answers={200: (JSON, "Status"), 503: (JSON, "Status")},
        is_open=True,
    ),
    Route(
        method="GET",
        path="/metrics",
        name="metrics",
        summary="All figures for Prometheus.",
        answers={200: ("text/plain", None)},
    ),
    Route(
        method="GET",
        path="/api",
        name="document",
        summary="This document.",
        answers={200: (JSON, None)},
    ),
    Route(
        method="GET",
        path="/api/session",
        name="session",
        summary="Whether a token is needed, and this browser's CSRF token.",
        answers={200: (JSON, "Session")},
        is_open=True,
    ),
    Route(
        method="POST",
        path="/api/session",
        name="log_in",
        summary="Give the token, get a session cookie.",
        body="LogIn",
        answers={200: (JSON, "Session"), 429: (JSON, "Error")},
        is_open=True,
    ),
    Route(
        method="DELETE",
        path="/api/session",
        name="log_out",
        summary="End this browser's session.",
        answers={204: ("", None)},
        is_open=True,
    ),
    Route(
        method="GET",
        path="/api/state",
        name="state",
        summary="All sources in figures.",
        query=("?viewer",),
        answers={200: (JSON, "State"), 404: (JSON, "Error")},
    ),
    Route(
        method="POST",
        path="/api/viewers",
        name="add_viewer",
        summary="Begin to watch; the viewer has switches of its own for each source.",
        answers={201: (JSON, "Viewer"), 503: (JSON, "Error")},
    ),
    Route(
        method="DELETE",
        path="/api/viewers/{viewer}",
        name="remove_viewer",
        summary="Watch no more.",
        answers={204: ("", None), 404: (JSON, "Error")},
    ),
    Route(
        method="PATCH",
        path="/api/viewers/{viewer}/streams/{stream}",
        name="change_options",
        summary="Switch what this viewer sees of a source.",
        body="OptionsWish",
        answers={200: (JSON, "Options"), 404: (JSON, "Error")},
    ),
    Route(
        method="POST",
        path="/api/viewers/{viewer}/streams/{stream}/click",
        name="click",
        summary="Select the person at a place of the picture; nobody there: nobody is selected.",
        body="Click",
        answers={200: (JSON, "Selected"), 404: (JSON, "Error"), 409: (JSON, "Error")},
    ),
    Route(
        method="POST",
        path="/api/viewers/{viewer}/webrtc",
        name="webrtc",
        summary="Pictures by WebRTC: an offer with one video to receive for each of `streams`.",
        body="Offer",
        answers={200: (JSON, "Answer"), 404: (JSON, "Error"), 501: (JSON, "Error")},
    ),
    Route(
        method="GET",
        path="/api/viewers/{viewer}/pictures",
        name="pictures",
        summary="Pictures as MJPEG, as this viewer sees them; the header X-Stream of each part says whose it is.",
        query=("?streams",),
        answers={200: (MJPEG, None), 404: (JSON, "Error")},
    ),
    Route(
        method="GET",
        path="/api/streams/{stream}/pictures.mjpg",
        name="mjpeg",
        summary="Pictures of one source as MJPEG, for other programs.",
        answers={200: (MJPEG, None), 404: (JSON, "Error"), 503: (JSON, "Error")},
    ),
    Route(
        method="GET",
        path="/api/streams/{stream}/snapshot.png",
        name="snapshot",
        summary="One picture in full size, as a viewer sees it.",
        query=("?viewer",),
        answers={200: ("image/png", None), 404: (JSON, "Error"), 503: (JSON, "Error")},
    ),
    Route(
        method="PUT",
        path="/api/streams/{stream}/recording",
        name="record",
        summary="Start or stop the recording of a source, below the run's --output-dir.",
        body="RecordingWish",
        answers={200: (JSON, "Recording"), 404: (JSON, "Error"), 409: (JSON, "Error")},
    ),
)


def document(version: str) -> dict[str, Any]:
    """OpenAPI 3.1."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        if route.in_document:
            paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pose2seg live",
            "version": version,
            "description": "Figures, pictures, switches and recordings of a live run.",
        },
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "no other header is needed"},
                "session": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": "pose2seg_session",
                    "description": f"what changes something needs {CSRF_HEADER} too, see GET /api/session; so does a "
                    "server that asks for no token",
                },
            },
        },
        "security": [{"token": []}, {"session": []}],
    }


def _operation(route: Route) -> dict[str, Any]:
    parameters = [_PARAMETERS[name] for name in re.findall(r"{(\w+)}", route.path)]
    parameters += [_PARAMETERS[name] for name in route.query]
    statuses = dict(route.answers) | {400: (JSON, "Error"), 403: (JSON, "Error"), 421: (JSON, "Error")}
    if route.body is not None:
        statuses |= {408: (JSON, "Error"), 413: (JSON, "Error"), 415: (JSON, "Error")}
    if not route.is_open:
        statuses |= {401: (JSON, "Error"), 429: (JSON, "Error")}
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "parameters": parameters,
        "responses": {str(status): _response(status, *statuses[status]) for status in sorted(statuses)},
    }
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": _ref(route.body)}}}
    if route.is_open:
        operation["security"] = []
    return operation


def _response(status: int, content_type: str, schema: str | None) -> dict[str, Any]:
    described: dict[str, Any] = {"description": "done" if status < 400 else "refused; `error` says what to do"}
    if content_type:
        described["content"] = {content_type: {} if schema is None else {"schema": _ref(schema)}}
    return described
