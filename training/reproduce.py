"""The paper's tables, made again and printed beside its own figures.

    python -m training.reproduce table1|table2|table3|table4|table5|fps --data DATA [--output DIR] [--budget]
    [--weights RUN=CHECKPOINT ...] [--poses SET=F.json ...] [--dry-run] [--json F.json] [--markdown F.md]

What is missing is trained (or given with ``--weights``), everything is measured by `training.evaluate`, and each row
stands beside the printed one with the difference. An interrupted command, killed too, goes on where it was when it is
started again: networks at their last checkpoint, measured cells stay (`training.tables.cells`).

``--budget`` fills the same rows with a small network, a short run and composed scenes, made on the spot out of people
whom the run never sees; titles say so. ``--dry-run`` lists what would be trained and how long that takes here.

Networks by name: affine_skeleton (the paper's), affine_plain (without skeleton features), roi_skeleton and roi_plain
(RoI-Align on true boxes), units_5, units_15, units_20 (on a budget units_10, too), mask_rcnn; on a budget personlab
and mask_rcnn_movenet (its heads on the trunk of the others).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from kernels.coordinates import F64
from training.checkpoint import CheckpointError, latest_checkpoint, read_state
from training.dataset import DataError, greatest_iou, read_photos
from training.settings import SCORES, TrainSettings
from training.tables.cells import (
    Bench,
    NotMeasured,
    Options,
    locked,
    missing_test_data,
    missing_training_data,
    run_settings,
    sha256,
    write_atomically,
)
from training.tables.layout import Line, Result, document, markdown, terminal
from training.tables.plan import TABLES, Setup, Table, TestSet, budget_setup, full_setup, make_table
from training.tables.published import DATA_SETS, SOURCES

SCENES = 60  # composed scenes of each set of a table on a budget
MIXES = {"general": (1.0, 0.0, 0.0), "crowded": (0.0, 1.0, 1.0)}


def composed_sets(setup: Setup, options: Options) -> list[str]:
    """Names of the test sets that are made here, not given."""
    folder = options.folder / "scenes"
    return [name for name in MIXES if setup.tests[name].annotations.is_relative_to(folder)] if setup.budget else []


def compose_test_scenes(setup: Setup, options: Options, scenes: int, seed: int) -> None:
    """Make the composed sets of a budget where they are not there; whole or not at all.

    Nobody is in them whom a run with this recipe learns from.

    Raises:
        DataError: the recipe's data are not there, it holds nobody back, or the folder has other scenes than these.
    """
    from training.compose_benchmark import HeldBackPeople, compose

    folder = options.folder / "scenes"
    absent = []
    for name in composed_sets(setup, options):
        if not (folder / name).exists():
            absent.append(name)
            continue
        made = json.loads((folder / name / "benchmark.json").read_text())
        if (made["scenes"], made["seed"]) != (scenes, seed):
            raise DataError(
                f"{folder / name} holds {made['scenes']} scenes of seed {made['seed']}, wanted are {scenes} of seed "
                f"{seed}: give those --scenes and --scene-seed, or another --output"
            )
    if not absent:
        return
    settings = run_settings(setup.runs["affine_skeleton"], options)
    missing = missing_training_data(settings, setup)
    if missing:
        raise DataError("; ".join(missing))
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("*.partial-*"):  # of a command that was killed here; the lock says it is gone
        shutil.rmtree(left, ignore_errors=True)
    people = HeldBackPeople(settings, [settings])
    for name in absent:
        compose(people, folder / name, seed=seed, scenes=scenes, mix=MIXES[name])


def data_set_figures(files: Sequence[Path]) -> dict[str, float]:
    """Table 1's counts of annotation files together: everybody annotated, MaxIoU as stored (OCHuman) or of the boxes.

    Raises:
        DataError: a file is missing or not COCO.
    """
    pictures, values = 0, []
    for path in files:
        photos = read_photos(path)
        stored: dict[Any, list[float | None]] = {}
        for entry in json.loads(path.read_text())["annotations"]:
            stored.setdefault(entry["image_id"], []).append(entry.get("max_iou"))
        for photo in photos:
            given = stored.get(photo.image_id, [])
            if given and all(value is not None for value in given):
                values.append(np.array(given, np.float64))
            elif photo.people:
                values.append(greatest_iou(np.stack([person.box for person in photo.people])).astype(np.float64))
            pictures += bool(photo.people)
    flat: F64 = np.concatenate(values) if values else np.zeros(0)
    return {
        "images": pictures,
        "persons": len(flat),
        "persons with MaxIoU > 0.5": int((flat > 0.5).sum()),
        "persons with MaxIoU > 0.75": int((flat > 0.75).sum()),
        "mean MaxIoU": round(float(flat.mean()), 4) if len(flat) else 0.0,
    }


def data_set_table(setup: Setup) -> Result:
    """Table 1 of the sets of a setup.

    Raises:
        DataError: a file is missing or not COCO.
    """
    missing = [path for files in setup.train_sets for path in files if not path.exists()]
    if missing:
        tests = [TestSet(name="", title=path.stem, annotations=path, images=path.parent) for path in missing]
        raise DataError("; ".join(missing_test_data(tests, setup)))
    columns = [data_set_figures(files) for files in setup.train_sets]
    names = ("COCOPersons train + val", "OCHuman val + test")
    if setup.budget:
        names = tuple(
            f"{setup.tests[name].title} (for {like})"
            for name, like in zip(("general", "crowded"), ("COCOPersons", "OCHuman"), strict=True)
        )
    lines = [
        Line(label=label, published=published, ours=tuple(column[label] for column in columns))
        for label, published in DATA_SETS.items()
    ]
    title = "Table 1 of composed scenes, not of the paper's sets" if setup.budget else "Table 1, the paper's sets"
    return Result(name="table1", title=title, source=SOURCES["table1"], columns=names, lines=tuple(lines))


def title_of(table: Table, setup: Setup, networks: dict[str, dict[str, Any]]) -> str:
    """What was measured, in one honest line."""
    number = f"Table {table.name[-1]}"
    if not setup.budget:
        return f"{number}, the paper's network and sets"
    steps: dict[str, set[int]] = {}
    for known in networks.values():
        steps.setdefault(str(known["model"]["family"]), set()).update([known["step"]] if known.get("step") else [])
    families = "; ".join(
        f"family {name}, {' and '.join(f'{step:,}' for step in sorted(steps[name])) or 'no'} steps"
        for name in sorted(steps)
    )
    tests = dict.fromkeys(cell.test for cell in table.cells())
    sets = " and ".join(_counted(setup.tests[name]) for name in tests)
    return f"{number} in small, not the paper's network nor data: {families or 'no network'}; {sets}"


def started_from(networks: dict[str, dict[str, Any]]) -> list[str]:
    """A note of how much each network has learned from, and which weights it began with."""
    phrases = []
    for name, known in networks.items():
        if known.get("step") and "batch_size" in known:
            first = " and ".join(known["initial_weights"].values()) or "random weights"
            phrases.append(f"{name} {known['step'] * known['batch_size']:,} pictures, from {first}")
    return [f"Learned from: {'; '.join(phrases)}."] if phrases else []


def _counted(test: TestSet) -> str:
    content = json.loads(test.annotations.read_text())
    return f"{test.title} ({len(content['images'])} pictures, {len(content['annotations'])} people)"


def reproduce(table: Table, setup: Setup, bench: Bench) -> Result:
    """Train, measure and gather a table.

    Raises:
        DataError, CheckpointError: before anything is trained, what is missing or does not fit.
    """
    bench.require_data(table)
    lines, networks, evaluations = [], {}, []
    lacking: dict[str, list[str]] = {}  # reason -> rows
    _measure_by_network(table, bench)
    for row in table.rows:
        ours: list[float | None] = []
        for cell in row.cells:
            value = None
            if cell is not None:
                try:
                    figures = bench.figures(cell)
                except NotMeasured as reason:
                    lacking.setdefault(str(reason), []).append(row.label)
                else:
                    value = figures["mask"][cell.figure]
                    networks.setdefault(cell.run, bench.provenance(cell.run))
                    evaluations.append({"row": row.label, "run": cell.run, "set": cell.test, **figures})
            ours.append(value)
        lines.append(Line(label=row.label, published=row.published, ours=tuple(ours)))
    details = {
        "budget": setup.budget,
        "networks": networks,
        "sets": {
            name: {"title": setup.tests[name].title, "annotations_sha256": sha256(setup.tests[name].annotations)}
            for name in dict.fromkeys(entry["set"] for entry in evaluations)
        },
        "evaluations": evaluations,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
    return Result(
        name=table.name,
        title=title_of(table, setup, networks),
        source=table.source,
        columns=table.columns,
        lines=tuple(lines),
        notes=(
            *table.notes,
            *(started_from(networks) if setup.budget else []),
            *(_not_measured(labels, reason) for reason, labels in lacking.items()),
        ),
        details=details,
    )


def _not_measured(labels: Sequence[str], reason: str) -> str:
    rows = list(dict.fromkeys(labels))
    shown = rows[0] if len(rows) == 1 else f"{rows[0]} and {len(rows) - 1} more rows"
    return f"Not measured: {shown}: {reason}."


def _measure_by_network(table: Table, bench: Bench) -> None:
    """Network by network, set by set: weights are opened once, and a picture goes through them once."""
    order = {name: place for place, name in enumerate(dict.fromkeys(cell.run for cell in table.cells()))}
    for cell in sorted(table.cells(), key=lambda cell: (order[cell.run], cell.test)):
        with contextlib.suppress(NotMeasured):
            bench.figures(cell)


def planned(table: Table, setup: Setup, bench: Bench, time_steps: int) -> tuple[RichTable, list[str]]:
    """What a table would train and measure, for ``--dry-run``; and what is missing for it."""
    from training.tables.frame_rates import seconds_per_step

    listed = RichTable(title=f"{SOURCES[table.name]}: what would be done", caption_justify="left")
    for heading in ("network", "state", "steps to train", "time on this machine"):
        listed.add_column(heading)
    cells = table.cells()
    ours = composed_sets(setup, bench.options)
    tests = [setup.tests[name] for name in dict.fromkeys(cell.test for cell in cells) if name not in ours]
    problems = missing_test_data(tests, setup)
    for name in dict.fromkeys(cell.run for cell in cells):
        settings = run_settings(setup.runs[name], bench.options)
        if name in bench.options.weights:
            listed.add_row(name, escape(f"given: {bench.options.weights[name]}"), "0", "-")
            continue
        problems += missing_training_data(settings, setup)
        newest = latest_checkpoint(settings.output)
        done = min(read_state(newest)["step"], settings.steps) if newest is not None else 0
        state = "trained" if done == settings.steps else f"at step {done:,}" if done else "not begun"
        left = settings.steps - done
        listed.add_row(name, state, f"{left:,}", _duration(settings, left, done, time_steps, seconds_per_step))
    sets = {(cell.run, cell.test, cell.poses, cell.changes) for cell in cells}
    reasons = dict.fromkeys(reason for cell in cells if (reason := bench.reason_against(cell)) is not None)
    listed.caption = escape("\n".join([f"{len(sets)} evaluations", *(f"not measured: {reason}" for reason in reasons)]))
    return listed, list(dict.fromkeys(problems))


def _duration(settings: TrainSettings, left: int, done: int, time_steps: int, measure: Any) -> str:
    if not left:
        return "-"
    if done:  # it has said itself how fast it is
        newest = latest_checkpoint(settings.output)
        history = read_state(newest)["history"] if newest is not None else []
        speeds = [entry["pictures_per_s"] for entry in history if entry.get("pictures_per_s")]
        if speeds:
            return f"{_hours(left * settings.batch_size / speeds[-1])} (as fast as so far)"
    if time_steps < 1:
        return "not timed (--time-steps)"
    try:
        return f"{_hours(left * measure(settings, time_steps))} ({time_steps} steps timed)"
    except ImportError as error:
        return escape(f"not timed: {error}")


def _hours(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _named(items: Sequence[str], flag: str) -> dict[str, Path]:
    named = {}
    for item in items:
        name, sign, path = item.partition("=")
        if not (name and sign and path):
            raise DataError(f"{flag} {item}: expected NAME=PATH")
        named[name] = Path(path)
    return named


def _test_sets(items: Sequence[str]) -> list[TestSet]:
    tests = []
    for item in items:
        name, _, paths = item.partition("=")
        annotations, _, images = paths.partition(",")
        if not (name and annotations and images):
            raise DataError(f"--test {item}: expected NAME=ANNOTATIONS.json,PICTURES")
        tests.append(TestSet(name=name, title=name, annotations=Path(annotations), images=Path(images)))
    return tests


def make_parser() -> argparse.ArgumentParser:
    """Flags of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--data", type=Path, help="folder with coco/ and ochuman/; on a budget what the recipe names")
    parser.add_argument("--output", type=Path, default=Path("runs/tables"), help="networks and figures are kept here")
    parser.add_argument("--budget", action="store_true", help="a small network and composed scenes")
    parser.add_argument(
        "--weights", action="append", default=[], metavar="RUN=CHECKPOINT", help="a network that is not trained here"
    )
    parser.add_argument("--no-training", action="store_true", help="measure only what there are weights for")
    parser.add_argument(
        "--poses", action="append", default=[], metavar="SET=F.json", help="predicted poses of a test set, COCO results"
    )
    parser.add_argument(
        "--test",
        action="append",
        default=[],
        metavar="NAME=F.json,PICTURES",
        help="another set in place of general or crowded, on a budget",
    )
    parser.add_argument("--recipe", type=Path, help="of all networks but mask_rcnn, in place of the table's own")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting of every network's recipe (of Mask R-CNN's none of the model)",
    )
    for name in ("steps", "seed", "workers"):
        parser.add_argument(f"--{name}", type=int, help="overrides the recipe")
    parser.add_argument("--init-movenet", type=Path, help="as in training.train; on a budget the frozen trunk")
    parser.add_argument("--init-resnet", type=Path, help="as in training.train")
    parser.add_argument("--init-mask-rcnn", type=Path, help="as in training.train")
    parser.add_argument("--score", choices=SCORES, help="of each mask; default: one for true poses, as the tables")
    parser.add_argument("--scenes", type=int, default=SCENES, help="composed scenes of each set, on a budget")
    parser.add_argument("--scene-seed", type=int, default=0, help="of the composed scenes")
    parser.add_argument("--long-side", type=int, default=512, help="px that pictures are scaled to in an evaluation")
    parser.add_argument("--threads", type=int, help="of an evaluation")
    parser.add_argument("--pictures", type=int, default=10, help="of fps: how many are timed")
    parser.add_argument("--people", type=int, default=3, help="of fps: in each picture")
    parser.add_argument("--dry-run", action="store_true", help="list what would be trained and how long it takes")
    parser.add_argument("--time-steps", type=int, default=2, help="of --dry-run: training steps to time; 0: none")
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--markdown", type=Path, help="also write the table here")
    return parser


def write_result(result: Result, folder: Path, extra: Sequence[Path | None]) -> None:
    """Keep a result in the folder, and where the flags say."""
    texts = {".json": json.dumps(document(result), indent=1) + "\n", ".md": markdown(result)}
    for suffix, path in zip(texts, extra, strict=True):
        for target in (folder / f"{result.name}{suffix}", path):
            if target is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(target, texts[suffix])


def run(options: argparse.Namespace, console: Console) -> int:
    """The command behind its flags.

    Raises:
        DataError, CheckpointError: see `main`.
    """
    if options.table == "fps":
        from training.tables.frame_rates import frame_rate_table

        if options.pictures < 1 or options.people < 1:
            raise DataError(f"--pictures and --people must be at least 1, got {options.pictures} and {options.people}")
        result = frame_rate_table(pictures=options.pictures, people=options.people, threads=options.threads)
        console.print(terminal(result))
        write_result(result, options.output, (options.json, options.markdown))
        return 0
    if options.data is None:
        raise DataError(f"{options.table} needs --data, the folder with the data sets")
    tests = _test_sets(options.test)
    if options.budget:
        setup = budget_setup(options.output / "scenes", recipe=options.recipe, tests=tests)
    elif tests:
        raise DataError("--test replaces the composed sets: give --budget too")
    else:
        setup = full_setup(options.data, recipe=options.recipe)
    chosen = Options(
        data=options.data,
        folder=options.output,
        weights=_named(options.weights, "--weights"),
        poses=_named(options.poses, "--poses"),
        initial={name: getattr(options, name) for name in ("init_movenet", "init_resnet", "init_mask_rcnn")},
        changes=tuple(options.set),
        steps=options.steps,
        seed=options.seed,
        workers=options.workers,
        score=options.score,
        threads=options.threads,
        long_side=options.long_side,
        train_nothing=options.no_training,
    )
    bench = Bench(setup, chosen)
    if options.dry_run:
        if options.table == "table1":
            console.print("table1 trains nothing: it reads annotation files")
            return 0
        listed, problems = planned(make_table(options.table, setup), setup, bench, options.time_steps)
        console.print(listed)
        for problem in problems:
            console.print(f"missing: {problem}", soft_wrap=True, markup=False)
        return 0
    with locked(options.output):
        if options.budget:
            compose_test_scenes(setup, chosen, options.scenes, options.scene_seed)
        if options.table == "table1":
            result = data_set_table(setup)
        else:
            result = reproduce(make_table(options.table, setup), setup, bench)
            console.print(f"{bench.measured} evaluations measured, the others were there already")
        console.print(terminal(result))
        write_result(result, options.output, (options.json, options.markdown))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """0: the table is made. 2: an error, said in one line. 130: interrupted."""
    options = make_parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        return run(options, console)
    except (DataError, CheckpointError, OSError, ValueError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where this one was", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
