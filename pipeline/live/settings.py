"""Every option of the live command. Each field is exactly one flag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import SettingsError
from pipeline.layers.options import LAYER_KINDS, Draw, Hide, Layer, read_named_layers
from pipeline.serve.listen import read_listen_address, read_origin
from pipeline.settings import VIDEO_PRESETS, Settings, flag_of

RECORDINGS = ("off", "plain", "drawn")
BUFFERS = ("latest", "all")
TRANSPORTS = ("tcp", "udp")

#: Options of a file's run that mean the same here.
SHARED = (
    *("model", "engine", "device", "decode", "precision", "threads", "batch", "long_side", "person_threshold"),
    *(
        "joint_threshold",
        "smooth_joints",
        "mask_threshold",
        "overlapping_masks",
        "video_preset",
        "video_encoder",
        "stats_every_s",
    ),
    *("draw", "hide", "hide_ahead", "layer_ids", "layer_background", "refine_edges", "steady_edges", "cover_frames"),
    "skip_still",
)


def _option(
    default: Any,
    text: str,
    *,
    metavar: str | None = None,
    choices: tuple[str, ...] | None = None,
    bare: str | None = None,
) -> Any:
    without_value = {} if bare is None else {"bare": bare}
    return field(default=default, metadata={"help": text, "metavar": metavar, "choices": choices} | without_value)


def _shared(name: str) -> Any:
    option = next(option for option in fields(Settings) if option.name == name)
    return field(default=option.default, metadata=option.metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings:
    """Options of one live run; checked when made.

    Raises:
        SettingsError: a value is out of range, or two options do not go together.
    """

    sources: tuple[str, ...] = field(
        metadata={
            "help": "camera number, /dev/videoN, rtsp(s)://, http(s):// (MJPEG, HLS, MPEG-TS), rtmp(s)://, udp://, "
            "tcp://, a .streams file with a source on each line, - for standard input, or a video file",
            "metavar": "SOURCE",
            "choices": None,
        }
    )
    output_dir: Path | None = _option(None, "write recordings and JSON lines of each source here", metavar="DIR")
    json: str | None = _option(None, "- writes one line of JSON per frame of all sources to stdout", metavar="-")
    record: Literal["off", "plain", "drawn"] = _option(
        "drawn", "recordings in --output-dir: none, the pictures as they came, or with people drawn", choices=RECORDINGS
    )
    layer: tuple[str, ...] = _option(
        (),
        "also record a layer of each source in --output-dir: KIND, or KIND=FORMAT such as cutout=webm; may be given "
        "several times (docs/layers.md)",
        metavar="KIND[=FORMAT]",
    )
    draw: Draw = _shared("draw")
    hide: Hide = _shared("hide")
    hide_ahead: int = _shared("hide_ahead")
    layer_ids: str | None = _shared("layer_ids")
    layer_background: str = _shared("layer_background")
    refine_edges: bool = _shared("refine_edges")
    steady_edges: bool = _shared("steady_edges")
    cover_frames: int = _shared("cover_frames")
    publish: tuple[str, ...] = _option(
        (),
        "send JSON lines of all sources to tcp://HOST:PORT, ws(s)://HOST/..., or mqtt(s)://[USER:PASSWORD@]HOST/TOPIC; "
        "@FILE reads the address from a file; may be given several times",
        metavar="URL",
    )
    push: tuple[str, ...] = _option(
        (),
        "send the pictures with people drawn to rtsp(s)://, rtmp(s):// or srt://; {stream} in the address becomes the "
        "number of the source; @FILE as above; may be given several times",
        metavar="URL",
    )
    push_kbps: int | None = _option(None, "most bits a second of --push, in thousands", metavar="N")
    zone: tuple[str, ...] = _option(
        (), "a polygon that is watched: 'NAME:X,Y X,Y X,Y ...' in shares of the picture", metavar="ZONE"
    )
    zones: Path | None = _option(None, "polygons that are watched, from a JSON file", metavar="FILE")
    webhook: tuple[str, ...] = _option(
        (), "POST who enters or leaves a zone, or stays in it, to http(s)://...; @FILE as above", metavar="URL"
    )
    virtual_camera: str | None = _option(
        None, "show source 0 with people drawn as a camera: a v4l2loopback device, or auto", metavar="DEVICE"
    )
    show: bool = _option(False, "show all sources in a window; left out where there is no display")
    rotate_minutes: float = _option(10.0, "a new recording after this many minutes", metavar="MIN")
    rotate_mb: float = _option(500.0, "a new recording at this size in MB", metavar="MB")
    keep_free_gb: float = _option(
        1.0, "remove the oldest recordings when less than this is free on the disk", metavar="GB"
    )
    buffer: Literal["latest", "all"] = _option(
        "latest", "latest: newest frame wins; all: every frame, however late", choices=BUFFERS
    )
    reconnect: bool = _option(True, "open a source that ended or failed again, for ever")
    stall_timeout: float = _option(10.0, "open a source again that gave no frame for so many seconds", metavar="S")
    rtsp_transport: Literal["tcp", "udp"] = _option("tcp", "udp for cameras that know only that", choices=TRANSPORTS)
    realtime: bool = _option(False, "read files at the speed they were made")
    max_pixels: int = _option(7680 * 4320, "refuse larger pictures", metavar="N")
    allow_url: tuple[str, ...] = _option(
        (), "open only addresses that fit, such as rtsp://10.0.0.*; may be given several times", metavar="PATTERN"
    )
    serve: str | None = _option(
        None,
        "show the run on a web page at this address; other hosts than this one need a token, see docs/operations.md",
        metavar="HOST:PORT",
        bare="127.0.0.1:8080",
    )
    serve_origin: tuple[str, ...] = _option(
        (),
        "address under which a reverse proxy shows the page, such as https://cams.example.org; asks for the token",
        metavar="URL",
    )
    serve_token_file: Path | None = _option(
        None, "read the token of the page from this file in place of making a new one", metavar="FILE"
    )
    serve_viewers: int = _option(8, "show the page's pictures to so many viewers at once", metavar="N")
    seconds: float | None = _option(None, "stop after so many seconds", metavar="S")
    model: Path | None = _shared("model")
    engine: str = _shared("engine")
    device: str | None = _shared("device")
    decode: Literal["auto", "cpu", "gpu"] = _shared("decode")
    precision: str = _shared("precision")
    threads: int | None = _shared("threads")
    batch: int | None = _shared("batch")
    long_side: int | None = _shared("long_side")
    skip_still: bool = _shared("skip_still")
    person_threshold: float | None = _shared("person_threshold")
    joint_threshold: float | None = _shared("joint_threshold")
    smooth_joints: bool = _shared("smooth_joints")
    mask_threshold: float = _shared("mask_threshold")
    overlapping_masks: bool = _shared("overlapping_masks")
    video_crf: int = _option(23, "quality of recordings, 0 (lossless) to 51", metavar="N")
    video_preset: str = _option("ultrafast", "effort of the video encoder", choices=VIDEO_PRESETS)
    video_encoder: str = _shared("video_encoder")
    stats_every_s: float = _shared("stats_every_s")

    def __post_init__(self) -> None:
        _require(bool(self.sources), "SOURCE", "at least one", "none")
        for name, low, high in (
            ("rotate_minutes", 0.01, 100_000.0),
            ("rotate_mb", 0.1, 1e6),
            ("keep_free_gb", 0.0, 1e6),
            ("stall_timeout", 0.1, 3600.0),
            ("seconds", 0.1, 1e9),
            ("max_pixels", 4096, 2**31 - 1),
            ("push_kbps", 50, 1_000_000),
            ("serve_viewers", 1, 1000),
        ):
            value = getattr(self, name)
            _require(value is None or low <= value <= high, flag_of(name), f"from {low:g} to {high:g}", value)
        for name, choices in (
            ("record", RECORDINGS),
            ("buffer", BUFFERS),
            ("rtsp_transport", TRANSPORTS),
        ):
            _require(getattr(self, name) in choices, flag_of(name), f"one of {', '.join(choices)}", getattr(self, name))
        if self.serve is not None:
            read_listen_address(self.serve)
        for origin in self.serve_origin:
            read_origin(origin)
        for name in ("serve_origin", "serve_token_file"):
            _require(self.serve is not None or not getattr(self, name), flag_of(name), "with --serve", "without it")
        _require(self.json in {None, "-"}, "--json", "- (files go to --output-dir)", self.json)
        if self.layer and self.output_dir is None:
            raise SettingsError("--layer of a live run records into a folder: add --output-dir DIR")
        self.run_settings()

    def run_settings(self) -> Settings:
        """The options that live runs share with files, checked."""
        shared = {name: getattr(self, name) for name in SHARED}
        shared["layer"] = tuple(f"{layer.kind}={layer.path}" for layer in read_live_layers(self.layer))
        return Settings(source="live", video_crf=self.video_crf, timeout_s=self.stall_timeout, **shared)


def read_live_layers(texts: Sequence[str]) -> tuple[Layer, ...]:
    """What ``--layer`` of a live run means, each with the ending of its recordings as its path.

    Raises:
        SettingsError: an unknown kind or format, or one that would make files without end.
    """
    layers = read_named_layers(texts)
    for layer in layers:
        if layer.per_person or layer.is_folder:
            raise SettingsError(
                f"--layer {layer.kind} of a live run expects a video format, such as {LAYER_KINDS[layer.kind][0][1:]}: "
                "a file for each person or picture would never end"
            )
    return layers


def _require(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise SettingsError(f"{name} must be {expected}, got {got}")
