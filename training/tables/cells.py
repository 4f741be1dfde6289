"""Networks and figures of a table, made once and kept: what `training.reproduce` does between reading and printing.

FOLDER/runs/NAME/         a network, as `training.train` leaves it: checkpoints, resumed after an interruption
FOLDER/cells/*.json       an evaluation's figures, written when it is complete and never changed
FOLDER/scenes/NAME/       composed scenes of a table on a budget
FOLDER/TABLE.json, .md    the newest result
FOLDER/lock               held while a command works here

A kept evaluation counts only for the very same thing: weights and annotations by their SHA-256, settings, poses, score,
size. So a command that is interrupted, by a kill too, goes on where it was; other weights are measured anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines import Engine
from training.checkpoint import CheckpointError, describe, latest_checkpoint, read_state, require_same_settings
from training.dataset import CocoFolder, DataError
from training.evaluate import evaluate
from training.evaluated_model import Detector, Model, checkpoint_model
from training.mask_rcnn import import_torchvision
from training.model_settings import model_settings_from_json
from training.settings import TrainSettings, settings_from_json, with_changes
from training.tables.plan import Cell, Run, Setup, Table, TestSet

FORMAT = 1  # of a kept evaluation; another number is measured anew
OTHER_CODE = (
    "backbone.stride_in",
    "align.compat",
)  # how released weights were trained; the table's network all the same


class NotMeasured(RuntimeError):
    """A cell that cannot be filled here; the message says why and what would fill it."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command was told."""

    data: Path
    folder: Path
    weights: dict[str, Path] = field(default_factory=dict)  # run -> a checkpoint folder or file
    poses: dict[str, Path] = field(default_factory=dict)  # test set -> COCO keypoint results
    initial: dict[str, Path | None] = field(default_factory=dict)  # init_movenet, init_resnet, init_mask_rcnn
    changes: tuple[str, ...] = ()  # settings of every run
    steps: int | None = None
    seed: int | None = None
    workers: int | None = None
    score: str | None = None
    threads: int | None = None
    long_side: int = 512  # px a picture is scaled to in an evaluation; a detector's is its canvas
    train_nothing: bool = False


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by text, whole or not at all, also through a power cut."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(partial, path)


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def weights_file(checkpoint: Path) -> Path:
    """The file with the weights that are evaluated."""
    return checkpoint if checkpoint.is_file() else checkpoint / "ema.safetensors"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other commands out of a folder; the system lets go when this one ends, however it ends.

    Raises:
        DataError: another command works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"another command works in {folder}: wait for it, or give another --output") from None
        yield


def run_settings(run: Run, options: Options) -> TrainSettings:
    """The training run of a network.

    Raises:
        DataError: the recipe cannot be read, or its settings contradict each other.
    """
    try:
        recipe = json.loads(run.recipe.read_text())
        model = model_settings_from_json(recipe.get("model", {}))
        family = model.family
        everybody = [c for c in options.changes if family != "mask_rcnn" or not c.startswith("model.")]
        content = with_changes(recipe, [*everybody, *run.changes])
        starts = {"live": "init_movenet", "paper": "init_resnet"}
        initial = {starts[family]: options.initial.get(starts[family])} if family in starts else {}
        if model.detector.backbone == "movenet":
            initial = {"init_movenet": options.initial.get("init_movenet")}
        elif family == "mask_rcnn":
            whole = options.initial.get("init_mask_rcnn")
            initial = {
                "init_mask_rcnn": whole,
                "init_resnet": options.initial.get("init_resnet") if whole is None else None,
            }
        return settings_from_json(
            content,
            data=options.data,
            output=options.folder / "runs" / run.name,
            steps=options.steps,
            seed=options.seed,
            workers=options.workers,
            **initial,
        )
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"recipe {run.recipe} of {run.name}: {error}") from error


def require_fitting_weights(run: Run, path: Path, wanted: TrainSettings) -> None:
    """Refuse weights of another network than the table's.

    Raises:
        DataError: they cannot be read, or which settings differ, with both values.
    """
    try:
        found = model_settings_from_json(describe(path)["settings"]["model"])
    except (CheckpointError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"--weights {run.name}={path}: {error}") from error
    theirs, ours = (_flat(dataclasses.asdict(settings)) for settings in (found, wanted.model))
    differing = [
        f"{name} is {theirs[name]!r}, expected {ours[name]!r}"
        for name in ours
        if name not in OTHER_CODE and theirs[name] != ours[name]
    ]
    if differing:
        raise DataError(f"--weights {run.name}={path} is another network: {'; '.join(differing)}")
    if not weights_file(path).exists():
        raise DataError(f"--weights {run.name}={path}: expected {weights_file(path).name} in it")


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def finished(settings: TrainSettings) -> Path | None:
    """The last checkpoint of a run that has all its steps, None of any other.

    Raises:
        CheckpointError: the folder holds another run.
    """
    newest = latest_checkpoint(settings.output)
    if newest is None:
        return None
    require_same_settings(newest, settings)
    return newest if read_state(newest)["step"] >= settings.steps else None


def how_to_get(path: Path, setup: Setup) -> str:
    """The command that brings a missing file, as the end of a sentence; nothing where none is known."""
    for beginning, command in setup.get.items():
        if path.is_relative_to(beginning):
            return f": get it by {command}"
    return ""


def missing_test_data(tests: list[TestSet], setup: Setup) -> list[str]:
    """One phrase for each annotation file and folder of pictures that is not there."""
    return [
        f"{what} of {test.title} not found: {path}{how_to_get(path, setup)}"
        for test in tests
        for what, path in (("annotations", test.annotations), ("pictures", test.images))
        if not path.exists()
    ]


def missing_training_data(settings: TrainSettings, setup: Setup) -> list[str]:
    """One phrase for each file of a recipe that is not there."""
    wanted = [settings.data / path for source in settings.sources for path in (source.annotations, source.images)]
    wanted += [settings.data / folder for folder in settings.backgrounds]
    wanted += [p for p in (settings.init_movenet, settings.init_resnet, settings.init_mask_rcnn) if p is not None]
    return [f"training data not found: {path}{how_to_get(path, setup)}" for path in wanted if not path.exists()]


class Remembered:
    """A picture's graph whose results are kept while they fit: rows that differ in windows only share them.

    Args:
        engine: the graph that takes the picture.
        limit_bytes: of kept results; beyond it nothing more is kept.
    """

    def __init__(self, engine: Engine, limit_bytes: int = 400_000_000) -> None:
        self.engine, self.left = engine, limit_bytes
        self.name, self.inputs, self.outputs = engine.name, engine.inputs, engine.outputs
        self._kept: dict[bytes, dict[str, NDArray[Any]]] = {}

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """As `engines.engine.Engine.run`; the caller must not write into the results."""
        image = feeds["image"]
        key = hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).digest()
        if key in self._kept:
            return self._kept[key]
        results = self.engine.run(feeds)
        size = sum(value.nbytes for value in results.values())
        if size <= self.left:
            self._kept[key] = results
            self.left -= size
        return results

    def close(self) -> None:
        """Closes the graph and forgets."""
        self._kept.clear()
        self.engine.close()


class Bench:
    """Trains and measures what a table's cells need.

    Args:
        setup: where networks and data come from.
        options: what the command was told.

    Raises:
        DataError: weights are named for a network that there is none of, or are another network's; poses for an unknown
            set, or not there.
    """

    def __init__(self, setup: Setup, options: Options) -> None:
        self.setup, self.options = setup, options
        self.measured = 0
        self._model: tuple[Any, Model | Detector, int] | None = None
        self._pictures: tuple[Path, Remembered] | None = None  # of the weights that were opened last
        self._digests: dict[Path, str] = {}
        for name, path in options.weights.items():
            if name not in setup.runs:
                raise DataError(f"--weights {name}={path}: networks are {', '.join(setup.runs)}")
            require_fitting_weights(setup.runs[name], path, run_settings(setup.runs[name], options))
        for name, path in options.poses.items():
            if name not in setup.tests:
                raise DataError(f"--poses {name}={path}: test sets are {', '.join(setup.tests)}")
            if not path.is_file():
                raise DataError(f"--poses {name}={path}: no such file")
        self.cells = options.folder / "cells"

    def reason_against(self, cell: Cell) -> str | None:
        """Why a cell cannot be filled here; None: it can."""
        settings = run_settings(self.setup.runs[cell.run], self.options)
        family = settings.model.family
        if cell.poses == "predicted" and family == "paper" and cell.test not in self.options.poses:
            return f"the family paper finds no poses: give --poses {cell.test}=FILE.json (COCO keypoint results)"
        if family == "mask_rcnn":
            try:
                import_torchvision()
            except ImportError as error:
                return str(error)
        if cell.run not in self.options.weights and self.options.train_nothing and finished(settings) is None:
            return f"{cell.run} is not trained: give --weights {cell.run}=CHECKPOINT, or let it train"
        return None

    def require_data(self, table: Table) -> None:
        """Check all that a table reads before anything is trained.

        Raises:
            DataError: what is missing, with the command that brings it. CheckpointError: a folder holds another run.
        """
        wanted = [cell for cell in table.cells() if self.reason_against(cell) is None]
        tests = {cell.test: self.setup.tests[cell.test] for cell in wanted}
        missing = missing_test_data(list(tests.values()), self.setup)
        for name in dict.fromkeys(cell.run for cell in wanted):
            settings = run_settings(self.setup.runs[name], self.options)
            if name not in self.options.weights and finished(settings) is None:
                missing += missing_training_data(settings, self.setup)
        if missing:
            raise DataError("; ".join(dict.fromkeys(missing)))

    def checkpoint(self, name: str) -> Path:
        """The weights of a network: given, trained before, or trained now (resumed if begun)."""
        if name in self.options.weights:
            return self.options.weights[name]
        settings = run_settings(self.setup.runs[name], self.options)
        done = finished(settings)
        if done is not None:
            return done
        from training.train import train

        return train(settings)

    def provenance(self, name: str) -> dict[str, Any]:
        """Where the weights of a network come from, for the result's file."""
        path = self.checkpoint(name)
        known = describe(path)
        given = {"given": path.name} if name in self.options.weights else {}
        settings = known["settings"]
        trained = {key: settings[key] for key in ("steps", "batch_size", "canvas", "seed") if key in settings}
        initial = {name: Path(settings[name]).name for name in settings if name.startswith("init_") and settings[name]}
        return {
            **given,
            **known.get("provenance", {}),
            "step": known.get("step"),
            **trained,
            **({"initial_weights": initial} if trained else {}),
            "model": settings["model"],
        }

    def _digest(self, path: Path) -> str:
        if path not in self._digests:
            self._digests[path] = sha256(path)
        return self._digests[path]

    def identity(self, cell: Cell, checkpoint: Path) -> dict[str, Any]:
        """All that a cell's evaluation depends on."""
        file = self.options.poses.get(cell.test) if cell.poses == "predicted" else None
        return {
            "format": FORMAT,
            "run": cell.run,
            "weights": self._digest(weights_file(checkpoint)),
            "changes": list(cell.changes),
            "test": cell.test,
            "annotations": self._digest(self.setup.tests[cell.test].annotations),
            "poses": cell.poses if file is None else self._digest(file),
            "score": self.options.score,
            "long_side": self.options.long_side,
        }

    def path_of(self, identity: dict[str, Any]) -> Path:
        """Where an evaluation is kept."""
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        return self.cells / f"{identity['run']}-{identity['test']}-{digest}.json"

    def kept_figures(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """Figures of an evaluation that was complete; a file that is damaged or of something else counts as none."""
        try:
            content = json.loads(self.path_of(identity).read_text())
            figures: dict[str, Any] = content["figures"]
            return figures if content["identity"] == identity and "mask" in figures else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def figures(self, cell: Cell) -> dict[str, Any]:
        """Figures of a cell's evaluation, kept or measured now.

        Raises:
            NotMeasured: see `reason_against`.
        """
        reason = self.reason_against(cell)
        if reason is not None:
            raise NotMeasured(reason)
        checkpoint = self.checkpoint(cell.run)
        identity = self.identity(cell, checkpoint)
        figures = self.kept_figures(identity)
        if figures is not None:
            return figures
        test = self.setup.tests[cell.test]
        model, side = self._open(checkpoint, cell.changes)
        poses: str | Path = "gt" if cell.poses == "gt" else "engine"
        if cell.poses == "predicted" and cell.test in self.options.poses:
            poses = self.options.poses[cell.test]
        started = time.monotonic()
        figures, _ = evaluate(
            CocoFolder(test.annotations, test.images),
            model,
            long_side=self.options.long_side if isinstance(model, Model) else side,
            poses=poses,
            masks=self.setup.runs[cell.run].masks,
            score=self.options.score,
        )
        figures["poses"] = cell.poses
        self.cells.mkdir(parents=True, exist_ok=True)
        content = {"identity": identity, "figures": figures, "seconds": round(time.monotonic() - started, 1)}
        write_atomically(self.path_of(identity), json.dumps(content, indent=1) + "\n")
        self.measured += 1
        return figures

    def _open(self, checkpoint: Path, changes: tuple[str, ...]) -> tuple[Model | Detector, int]:
        key = (checkpoint, changes)
        if self._model is None or self._model[0] != key:
            self._model = None  # the one before leaves memory first
            model, side = checkpoint_model(checkpoint, list(changes), self.options.threads)
            if isinstance(model, Model):
                graph = "features" if model.keypoints is None else "keypoints"
                if self._pictures is None or self._pictures[0] != checkpoint:  # windows change nothing of it
                    self._pictures = (checkpoint, Remembered(getattr(model, graph)))
                model = dataclasses.replace(model, **{graph: self._pictures[1]})
            self._model = (key, model, side)
        return self._model[1], self._model[2]
