"""Every option of a run. Each field is exactly one flag of the command, made by `pipeline.command_line`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from engines import ENGINE_NAMES, PRECISIONS
from engines.engine import DEVICE_PATTERN, Precision
from pipeline.errors import SettingsError
from pipeline.exports.options import EXPORT_KINDS, PIPE_FORMATS, STANDARD_OUTPUT, Pipe, read_exports
from pipeline.layers.options import (
    DRAW_CHOICES,
    HIDING,
    HIDING_CHOICES,
    LAYER_KINDS,
    Draw,
    Hide,
    read_background,
    read_ids,
    read_layers,
)
from pipeline.redaction import redact

VIDEO_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower")
DECODERS = ("auto", "cpu", "gpu")
Decode = Literal["auto", "cpu", "gpu"]
VIDEO_ENCODERS = ("auto", "libx264", "h264_nvenc")
VideoEncoder = Literal["auto", "libx264", "h264_nvenc"]
VideoPreset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower"]


def _option(default: Any, text: str, *, metavar: str | None = None, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": text, "metavar": metavar, "choices": choices})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Options of one run; checked when made.

    Raises:
        SettingsError: a value is out of range, or two options do not go together.
    """

    source: str = field(
        metadata={
            "help": "a video or image file, a folder or glob of them, a webcam number, or an rtsp:// or http(s):// URL",
            "metavar": "SOURCE",
            "choices": None,
        }
    )
    output: Path | None = _option(
        None, "write the video with people drawn on it; - writes it to standard output", metavar="F.mp4|-"
    )
    pipe: Pipe = _option(
        "matroska", "of --output -: H.264 in Matroska, or the px as they are (RGB, 3 bytes each)", choices=PIPE_FORMATS
    )
    json: Path | None = _option(None, "write one line of JSON per frame (docs/jsonl.md)", metavar="F.jsonl")
    coco: Path | None = _option(None, "write COCO results of a folder of images", metavar="F.json")
    coco_images: Path | None = _option(
        None, "COCO annotation file whose images give each file name its id, for --coco", metavar="F.json"
    )
    table: Path | None = _option(
        None, "write a table with a row per person per frame (docs/interop.md)", metavar="F.parquet"
    )
    export: tuple[str, ...] = _option(
        (),
        f"write labels for other programs; KIND is {', '.join(EXPORT_KINDS)}; may be given several times "
        "(docs/interop.md)",
        metavar="KIND=PATH",
    )
    export_every: int = _option(1, "of --export coco, cvat, yolo-*: every Nth frame, from the first one", metavar="N")
    sheet: Path | None = _option(None, "write a contact sheet of the run", metavar="F.png")
    layer: tuple[str, ...] = _option(
        (),
        f"write a layer for editing; KIND is {', '.join(LAYER_KINDS)}; may be given several times (docs/layers.md)",
        metavar="KIND=FILE",
    )
    layer_ids: str | None = _option(
        None, "people the layers are about: 1,3 or not:1,3 (everybody else); all by default", metavar="IDS"
    )
    layer_background: str = _option(
        "blur", "of --layer background: a picture, a colour such as #00ff00, or blur", metavar="FILE|COLOUR|blur"
    )
    refine_edges: bool = _option(False, "move the edges of layers onto edges of the picture; costs time")
    steady_edges: bool = _option(True, "hold the edges of layers still where the picture stands still")
    cover_frames: int = _option(
        60, "blur, pixelate and remove cover somebody who is not found for this many frames more", metavar="N"
    )
    hide_ahead: int = _option(
        0,
        "blur, pixelate and remove hold frames back, so that somebody who is found is covered in this many before, too",
        metavar="N",
    )
    draw: Draw = _option(
        "people",
        "what --output, --show and published streams show: people drawn on the video, or that layer",
        choices=DRAW_CHOICES,
    )
    hide: Hide = _option("off", "hide people in every picture that leaves the run", choices=HIDING_CHOICES)
    overwrite: bool = _option(False, "replace outputs that exist")
    show: bool = _option(False, "show the result in a window while it runs")
    model: Path | None = _option(None, "model folder; the one that comes with the package by default", metavar="DIR")
    engine: str = _option("auto", "what runs the networks", choices=ENGINE_NAMES)
    device: str | None = _option(
        None, "where the networks run: cpu, cuda or cuda:N; the best that works by default", metavar="DEVICE"
    )
    decode: Decode = _option(
        "auto", "what decodes video: auto takes the GPU where the networks run on one", choices=DECODERS
    )
    precision: Precision = _option("auto", "arithmetic of the networks", choices=PRECISIONS)
    threads: int | None = _option(None, "cores each network may use; all by default", metavar="N")
    batch: int | None = _option(
        None,
        "frames that wait may share one call of the networks, this many at most; up to the device by default",
        metavar="N",
    )
    long_side: int | None = _option(
        None, "long side of the network input in px; smaller is faster; the model's own by default", metavar="PX"
    )
    skip_still: bool = _option(
        False, "the networks skip what has not changed: faster where the camera stands still (docs/operations.md)"
    )
    person_threshold: float | None = _option(
        None, "score (0..1) it takes to appear, half of it to stay; the model's own by default", metavar="P"
    )
    joint_threshold: float | None = _option(
        None, "joints below this confidence (0..1) do not guide the mask; the model's own by default", metavar="P"
    )
    smooth_joints: bool = _option(
        False, "hold joints that tremble still, in what is drawn and in what is written; masks do not change"
    )
    mask_threshold: float = _option(0.5, "mask pixels are those above this probability (0..1)", metavar="P")
    overlapping_masks: bool = _option(
        False, "a px may lie in several masks, as in the paper; else only in that of the surest person"
    )
    max_frames: int | None = _option(None, "stop after this many frames", metavar="N")
    queue_depth: int = _option(2, "frames that may wait between two stages", metavar="N")
    image_fps: float = _option(2.0, "pictures a second when images become a video", metavar="FPS")
    video_crf: int = _option(20, "quality of the written video, 0 (lossless) to 51", metavar="N")
    video_preset: VideoPreset = _option("veryfast", "effort of the video encoder", choices=VIDEO_PRESETS)
    video_encoder: VideoEncoder = _option(
        "auto", "auto takes NVENC on a GPU that has it; only libx264 knows --video-preset", choices=VIDEO_ENCODERS
    )
    timeout_s: float = _option(10.0, "give a network source up after this many seconds of silence", metavar="S")
    stats_every_s: float = _option(5.0, "seconds between progress lines when the output is not a terminal", metavar="S")
    debug: bool = _option(False, "log more, and show tracebacks")

    def __post_init__(self) -> None:
        _require(bool(self.source), "SOURCE", "not empty", self.source)
        for name in ("person_threshold", "joint_threshold", "mask_threshold"):
            value = getattr(self, name)
            _require(value is None or 0.0 <= value <= 1.0, name, "from 0 to 1", value)
        for name, low, high in (
            ("threads", 1, 1024),
            ("batch", 1, 64),
            ("long_side", 32, 4096),
            ("max_frames", 1, None),
            ("queue_depth", 1, 256),
            ("video_crf", 0, 51),
            ("cover_frames", 0, None),
            ("hide_ahead", 0, 250),
            ("export_every", 1, None),
        ):
            value = getattr(self, name)
            in_range = value is None or (value >= low and (high is None or value <= high))
            _require(in_range, name, f"from {low} to {high}" if high is not None else f"{low} or more", value)
        for name in ("image_fps", "timeout_s", "stats_every_s"):
            value = getattr(self, name)
            _require(0.001 <= value <= 86400.0, name, "from 0.001 to 86400", value)
        _require(self.engine in ENGINE_NAMES, "engine", f"one of {', '.join(ENGINE_NAMES)}", self.engine)
        known_device = self.device is None or DEVICE_PATTERN.fullmatch(self.device) is not None
        _require(known_device, "device", "cpu, cuda or cuda:N", self.device)
        known_encoder = self.video_encoder in VIDEO_ENCODERS
        _require(known_encoder, "video_encoder", f"one of {', '.join(VIDEO_ENCODERS)}", self.video_encoder)
        _require(self.decode in DECODERS, "decode", f"one of {', '.join(DECODERS)}", self.decode)
        _require(self.precision in PRECISIONS, "precision", f"one of {', '.join(PRECISIONS)}", self.precision)
        _require(
            self.video_preset in VIDEO_PRESETS, "video_preset", f"one of {', '.join(VIDEO_PRESETS)}", self.video_preset
        )
        if self.coco_images is not None and self.coco is None:
            raise SettingsError("--coco-images gives ids to --coco: add --coco F.json")
        _require(self.pipe in PIPE_FORMATS, "pipe", f"one of {', '.join(PIPE_FORMATS)}", self.pipe)
        self._check_layers()
        self._check_output_names()

    def _check_layers(self) -> None:
        layers = read_layers(self.layer)
        read_ids(self.layer_ids)
        read_background(self.layer_background)
        _require(self.draw in DRAW_CHOICES, "draw", f"one of {', '.join(DRAW_CHOICES)}", self.draw)
        if self.layer_ids is not None and not layers and self.hide == "off" and self.draw == "people":
            raise SettingsError("--layer-ids chooses people of layers: add --layer KIND=FILE, --draw or --hide")
        shown = {self.draw, *(layer.kind for layer in layers)}
        if self.layer_background != "blur" and "background" not in shown:
            raise SettingsError("--layer-background is shown by a layer: add --layer background=FILE")
        _require(self.hide in HIDING_CHOICES, "hide", f"one of {', '.join(HIDING_CHOICES)}", self.hide)
        hides = self.hide != "off" or self.draw in HIDING or any(layer.kind in HIDING for layer in layers)
        if self.cover_frames == 0 and hides:
            raise SettingsError(f"--cover-frames must be 1 or more with --hide or --layer {', '.join(HIDING)}, got 0")
        if self.hide_ahead and not hides:
            raise SettingsError(f"--hide-ahead is for hidden people: add --layer {'|'.join(HIDING)}=FILE or --hide")

    def output_paths(self) -> list[tuple[str, Path]]:
        """All files and folders that a run writes, each with the flag that names it."""
        single = [(flag_of(name), getattr(self, name)) for name in ("output", "json", "coco", "table", "sheet")]
        layers = [(f"--layer {layer.kind}", layer.path) for layer in read_layers(self.layer)]
        exports = [(f"--export {export.kind}", export.path) for export in read_exports(self.export)]
        files = [(flag, Path(path)) for flag, path in single if path is not None and not self.is_piped(path)]
        return [*files, *exports, *layers]

    def is_piped(self, path: Path | None = None) -> bool:
        """Whether an output, by default the video, goes to standard output."""
        return (self.output if path is None else path) == STANDARD_OUTPUT

    def _check_output_names(self) -> None:
        owners: dict[Path, str] = {}
        for flag, path in self.output_paths():
            place = path.resolve()
            if place in owners:
                raise SettingsError(f"{owners[place]} and {flag} both name {path}: give each its own file")
            owners[place] = flag
        for name, suffixes in (
            ("output", (".mp4", ".m4v", ".mov")),
            ("sheet", (".png", ".jpg", ".jpeg")),
            ("table", (".parquet",)),
        ):
            path = getattr(self, name)
            if (
                path is not None
                and not (name == "output" and self.is_piped())
                and Path(path).suffix.lower() not in suffixes
            ):
                raise SettingsError(f"--{name} expects a name ending in {', '.join(suffixes)}, got {path}")

    def describe(self) -> str:
        """All options as ``key=value``, passwords taken out."""
        return redact(" ".join(f"{option.name}={getattr(self, option.name)}" for option in fields(self)))


def flag_of(name: str) -> str:
    """The flag that sets the field ``name``."""
    return "--" + name.replace("_", "-")


def _require(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        flag = name if name == "SOURCE" else flag_of(name)
        raise SettingsError(f"{flag} must be {expected}, got {got}")
