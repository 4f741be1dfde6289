"""Every option of the batch command. Each field is exactly one flag."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pipeline.batch.plan import OUTPUT_SUFFIXES
from pipeline.batch.split import SPLITS, Split
from pipeline.errors import SettingsError
from pipeline.exports.parquet_table import require_pyarrow
from pipeline.layers.options import read_background, read_named_layers
from pipeline.layers.pictures import read_picture
from pipeline.redaction import redact
from pipeline.settings import Settings, flag_of

#: Options of a single run that mean the same here.
SHARED = (
    *("model", "engine", "device", "precision", "threads", "batch", "long_side", "person_threshold"),
    *(
        "joint_threshold",
        "smooth_joints",
        "mask_threshold",
        "overlapping_masks",
        "queue_depth",
        "video_crf",
        "video_preset",
    ),
    *("video_encoder", "stats_every_s"),
    *("layer_ids", "layer_background", "refine_edges", "steady_edges", "cover_frames", "hide_ahead"),
)
#: Options that do not change results.
_FREE = ("queue_depth", "stats_every_s", "batch")
#: Options that decide results where there are layers.
_OF_LAYERS = ("layer_ids", "layer_background", "refine_edges", "steady_edges", "cover_frames", "hide_ahead")


def _option(default: Any, text: str, *, metavar: str | None = None, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": text, "metavar": metavar, "choices": choices})


def _shared(name: str) -> Any:
    option = next(option for option in fields(Settings) if option.name == name)
    return field(default=option.default, metadata=option.metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """Options of one batch; checked when made.

    Raises:
        SettingsError: a value is out of range, or two options do not go together.
    """

    inputs: tuple[str, ...] = field(
        metadata={
            "help": "videos, folders with all below them, globs, lists of these (@list or list.txt, a name on each "
            "line), - for a list on standard input",
            "metavar": "INPUT",
            "choices": None,
        }
    )
    out: Path | None = _option(None, "folder of all outputs, mirrored; needed", metavar="DIR")
    write: str = _option("video,json", f"outputs of each input: some of {','.join(OUTPUT_SUFFIXES)}", metavar="KINDS")
    layer: tuple[str, ...] = _option(
        (),
        "also write a layer of each input: KIND, or KIND=FORMAT such as cutout=webm, cutout=png (a folder), "
        "cutout={id}.mov (a file per person); may be given several times (docs/layers.md)",
        metavar="KIND[=FORMAT]",
    )
    layer_ids: str | None = _shared("layer_ids")
    layer_background: str = _shared("layer_background")
    refine_edges: bool = _shared("refine_edges")
    steady_edges: bool = _shared("steady_edges")
    cover_frames: int = _shared("cover_frames")
    hide_ahead: int = _shared("hide_ahead")
    workers: str = _option("auto", "processes; auto takes what cores and memory allow", metavar="N")
    upload: str | None = _option(
        None,
        "put finished outputs below this address of object storage, and keep none here; the state stays in --out",
        metavar="s3://BUCKET/PREFIX",
    )
    cluster: str | None = _option(
        None,
        "workers on all nodes of a Ray cluster: auto for the one this machine is part of, or HOST:PORT of its head "
        "(docs/scale.md)",
        metavar="auto|ADDRESS",
    )
    split: Split = _option(
        "auto",
        "whether workers share a file, each with other segments of it; auto: those do who would have nothing to do",
        choices=SPLITS,
    )
    segment_seconds: float = _option(30.0, "an interrupted batch loses at most so much video of a file", metavar="S")
    overwrite: bool = _option(False, "start anew and replace outputs that exist")
    retry_failed: bool = _option(False, "try inputs again that failed in the run before")
    dry_run: bool = _option(False, "probe, measure, estimate and say what would be done")
    model: Path | None = _shared("model")
    engine: str = _shared("engine")
    device: str | None = _shared("device")
    precision: str = _shared("precision")
    threads: int | None = _shared("threads")
    batch: int | None = _shared("batch")
    long_side: int | None = _shared("long_side")
    person_threshold: float | None = _shared("person_threshold")
    joint_threshold: float | None = _shared("joint_threshold")
    smooth_joints: bool = _shared("smooth_joints")
    mask_threshold: float = _shared("mask_threshold")
    overlapping_masks: bool = _shared("overlapping_masks")
    queue_depth: int = _shared("queue_depth")
    video_crf: int = _shared("video_crf")
    video_preset: str = _shared("video_preset")
    video_encoder: str = _shared("video_encoder")
    stats_every_s: float = _shared("stats_every_s")

    def __post_init__(self) -> None:
        if self.out is None:
            raise SettingsError("batch needs a folder for its outputs: add --out DIR")
        unknown = [kind for kind in self.kinds if kind not in OUTPUT_SUFFIXES]
        if unknown or not (self.kinds or self.layer):
            allowed = ",".join(OUTPUT_SUFFIXES)
            raise SettingsError(f"{flag_of('write')} must be some of {allowed}, got {self.write or 'nothing'}")
        if "parquet" in self.kinds:
            require_pyarrow(flag_of("write") + " parquet")
        if self.workers != "auto" and not (self.workers.isdecimal() and 1 <= int(self.workers) <= 1024):
            raise SettingsError(f"{flag_of('workers')} must be auto or a number from 1 to 1024, got {self.workers}")
        if not 0.1 <= self.segment_seconds <= 86400:
            raise SettingsError(f"{flag_of('segment_seconds')} must be from 0.1 to 86400, got {self.segment_seconds}")
        if self.upload is not None:
            from pipeline.batch.storage import check_address

            check_address(self.upload)
            if not self.upload.startswith(("s3://", "gs://")):
                raise SettingsError(f"--upload expects s3:// or gs://, got {redact(self.upload)}")
        self.of_files()
        if self.layer:
            self._deciding_of_layers()  # a background that cannot be read is told before anything starts

    @property
    def may_use_gpu(self) -> bool:
        """Whether a GPU is taken where there is one."""
        return self.device != "cpu" and self.engine not in {"onnx", "openvino"}

    def with_absolute_paths(self) -> BatchSettings:
        """For workers who stand elsewhere."""
        background = read_background(self.layer_background)
        return replace(
            self,
            out=None if self.out is None else self.out.absolute(),
            model=None if self.model is None else self.model.absolute(),
            layer_background=str(background.absolute()) if isinstance(background, Path) else self.layer_background,
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """What ``--write`` names, each once."""
        return tuple(dict.fromkeys(kind for kind in self.write.split(",") if kind))

    def of_files(self, threads: int | None = None) -> Settings:
        """The options of each input's run.

        Args:
            threads: of a network call; None takes what was said.
        """
        values = {name: getattr(self, name) for name in SHARED}
        if threads is not None:
            values["threads"] = threads
        values["layer"] = tuple(f"{layer.kind}={layer.path}" for layer in read_named_layers(self.layer))
        return Settings(source="batch", **values)

    def deciding(self) -> dict[str, Any]:
        """The options that decide results, as plain JSON values."""
        values = {name: getattr(self, name) for name in SHARED if name not in {*_FREE, *_OF_LAYERS}}
        values["model"] = None if self.model is None else str(self.model.absolute())
        values["layer"] = self._deciding_of_layers() if self.layer else None
        if self.upload is not None:
            values["upload"] = self.upload
        return {**values, "write": sorted(self.kinds), "segment_seconds": self.segment_seconds}

    def _deciding_of_layers(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in _OF_LAYERS}
        background = read_background(self.layer_background)
        if isinstance(background, Path):
            values["layer_background"] = picture_digest(background)
        return {**values, "layer": sorted(str(layer.path) for layer in read_named_layers(self.layer))}


def picture_digest(path: Path) -> str:
    """What a picture shows, as a text: another one of the same name gives other results.

    Raises:
        SettingsError: it cannot be read.
    """
    return hashlib.sha256(read_picture(path).tobytes()).hexdigest()
