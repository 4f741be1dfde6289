"""What each table consists of: networks to train, sets to measure them on, and which figure goes where.

Two ways to fill a table. In full: the paper's network, schedule and data. On a budget: the `live` family on a frozen
MoveNet trunk, a short run, and composed scenes (`training.compose_benchmark`) in place of the test sets: crowded ones
for OCHuman, general ones for COCOPersons val. The rows, columns and the code are the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from training.tables.published import ALIGNMENT, COCO_PERSONS, OCHUMAN, SOURCES, UNITS

RECIPES = Path(__file__).resolve().parents[1]
TABLES = ("table1", "table2", "table3", "table4", "table5", "fps")
FIGURES = ("AP", "AP_medium", "AP_large")
ROI = ("model.align.mode=roi", "model.align.box=gt")
PLAIN = ("model.skeleton.enabled=false",)
PERSONLAB = (  # what training/personlab.json says of the method; pictures and budget are those of the other networks
    "model.keypoints=personlab",
    *(f"lr_scale.{part}=0.0" for part in ("backbone", "top_down", "mask_laterals", "seg_module")),
    *(f"lr_scale.{part}=1.0" for part in ("keypoint_heads", "grouping_heads")),
    "keypoint_loss_weight=1.0",
    "mask_loss_weight=0.0",
    "predicted_pose_share=0.0",
    "learning_rate=0.003",
    "ema=0.99",
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A network to train: a recipe and what is changed in it."""

    name: str
    recipe: Path
    changes: tuple[str, ...] = ()
    masks: str | None = "overlapping"  # as in the paper, nobody's px are taken away; personlab; None: a detector's own


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """A COCO-format set to measure on."""

    __test__ = False  # pytest, this is no test

    name: str
    title: str
    annotations: Path
    images: Path


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One figure of one evaluation."""

    run: str
    test: str
    poses: str  # gt: annotated; predicted: a file, or the network's own; none: a detector
    figure: str = "AP"
    changes: tuple[str, ...] = ()  # model settings that differ from training


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a table: a figure of ours and the printed one for each column; None where there is none."""

    label: str
    cells: tuple[Cell | None, ...]
    published: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns, rows, and where the printed figures stand."""

    name: str
    source: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def cells(self) -> list[Cell]:
        """All cells that something can be measured for, in order, each evaluation perhaps several times."""
        return [cell for row in self.rows for cell in row.cells if cell is not None]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Where networks and data come from."""

    runs: dict[str, Run]
    tests: dict[str, TestSet]
    budget: bool
    train_sets: tuple[tuple[Path, ...], ...] = ()  # of Table 1: annotation files of each column
    crowded: str = ""  # name of the set in place of OCHuman val
    general: str = ""  # of the set in place of COCOPersons val
    get: dict[str, str] = field(default_factory=dict)  # beginning of a path -> command that brings what is missing


def unit_changes(units: int, *, budget: bool) -> tuple[str, ...]:
    """The setting of Table 4: residual units; those of the family `live` without dilation, as the paper's."""
    if budget:
        return (f"model.seg_dilations=[{','.join(['1'] * units)}]",)
    return (f"model.seg.units={units}",)


def make_runs(recipe: Path, detector_recipe: Path, *, budget: bool) -> dict[str, Run]:
    """Every network that a table needs, by name."""
    runs = [
        Run(name="affine_skeleton", recipe=recipe),
        Run(name="affine_plain", recipe=recipe, changes=PLAIN),
        Run(name="roi_skeleton", recipe=recipe, changes=ROI),
        Run(name="roi_plain", recipe=recipe, changes=(*ROI, *PLAIN)),
        *(
            Run(name=f"units_{units}", recipe=recipe, changes=unit_changes(units, budget=budget))
            for units in UNITS
            if budget or units != 10  # the paper's network has ten
        ),
        Run(name="mask_rcnn", recipe=detector_recipe, masks=None),
    ]
    if budget:
        runs.append(Run(name="mask_rcnn_movenet", recipe=RECIPES / "mask_rcnn_movenet.json", masks=None))
        # the family paper has no heads that PersonLab's masks could come from
        runs.append(Run(name="personlab", recipe=recipe, changes=PERSONLAB, masks="personlab"))
    return {run.name: run for run in runs}


def full_setup(data: Path, *, recipe: Path | None = None) -> Setup:
    """The paper's data below ``data``: COCO 2017 in ``coco``, OCHuman in ``ochuman``."""
    coco, ochuman = data / "coco", data / "ochuman"
    pictures = [ochuman / name for name in ("images", "images.zip", "ochuman.zip")]
    tests = [
        TestSet(
            name="coco_val",
            title="COCOPersons val",
            annotations=coco / "annotations/person_keypoints_val2017.json",
            images=coco / "val2017",
        )
    ]
    for split in ("val", "test"):
        tests += [
            TestSet(
                name=f"ochuman_{split}_{part}",
                title=f"OCHuman {split}, {part}",
                annotations=ochuman / f"{split}_{part}.json",
                images=next((path for path in pictures if path.exists()), pictures[0]),
            )
            for part in ("all", "moderate", "hard")
        ]
    train = coco / "annotations/person_keypoints_train2017.json"
    return Setup(
        runs=make_runs(recipe or RECIPES / "paper.json", RECIPES / "mask_rcnn.json", budget=False),
        tests={test.name: test for test in tests},
        budget=False,
        train_sets=((train, tests[0].annotations), (ochuman / "val_all.json", ochuman / "test_all.json")),
        crowded="ochuman_val_all",
        general="coco_val",
        get={
            str(coco): f"python -m training.download coco --output {coco} --parts annotations val train",
            str(ochuman): (
                f"python -m training.download ochuman --from FILE --output {ochuman}, with its pictures in "
                f"{pictures[0]} or {pictures[1].name}"
            ),
        },
    )


def budget_setup(scenes: Path, *, recipe: Path | None = None, tests: Iterable[TestSet] = ()) -> Setup:
    """Composed scenes below ``scenes``, or other sets by the names ``general`` and ``crowded``."""
    chosen = {
        name: TestSet(
            name=name,
            title=f"{name} scenes",
            annotations=scenes / name / "annotations.json",
            images=scenes / name / "images",
        )
        for name in ("general", "crowded")
    } | {test.name: test for test in tests}
    return Setup(
        runs=make_runs(recipe or RECIPES / "ablation.json", RECIPES / "mask_rcnn_small.json", budget=True),
        tests=chosen,
        budget=True,
        train_sets=((chosen["general"].annotations,), (chosen["crowded"].annotations,)),
        crowded="crowded",
        general="general",
    )


def make_table(name: str, setup: Setup) -> Table:
    """A table's rows for this setup.

    Raises:
        ValueError: it has no rows of cells (table1, fps), or is unknown.
    """
    makers = {"table2": _table2, "table3": _table3, "table4": _table4, "table5": _table5}
    if name not in makers:
        raise ValueError(f"expected one of {', '.join(makers)}, got {name}")
    return makers[name](setup)


def _row(label: str, cells: Iterable[Cell | None], published: Iterable[float | None]) -> Row:
    return Row(label=label, cells=tuple(cells), published=tuple(published))


def _detector_on_movenet(setup: Setup, cells: Iterable[Cell]) -> list[Row]:
    """The row of Mask R-CNN's heads on the other rows' trunk, which the paper does not have; on a budget only."""
    if "mask_rcnn_movenet" not in setup.runs:
        return []
    ours = [dataclasses.replace(cell, run="mask_rcnn_movenet", poses="none") for cell in cells]
    return [_row("Mask R-CNN on MoveNet's trunk (not in the paper)", ours, [None] * len(ours))]


def _table2(setup: Setup) -> Table:
    if setup.budget:
        tests = [("crowded", setup.crowded)]
        columns: tuple[str, ...] = ("AP",)
    else:
        names = {"all": "AP", "moderate": "AP moderate", "hard": "AP hard"}
        tests = [
            (f"{split} {shown}", f"ochuman_{split}_{part}")
            for split in ("val", "test")
            for part, shown in names.items()
        ]
        columns = tuple(column for column, _ in tests)
    kinds = (("mask_rcnn", "none"), ("affine_skeleton", "predicted"), ("affine_skeleton", "gt"))
    rows = [
        _row(label, (Cell(run=run, test=test, poses=poses) for _, test in tests), published[: len(tests)])
        for (label, published), (run, poses) in zip(OCHUMAN.items(), kinds, strict=True)
    ]
    rows[1:1] = _detector_on_movenet(setup, [cell for cell in rows[0].cells if cell is not None])
    return Table(name="table2", source=SOURCES["table2"], columns=columns, rows=tuple(rows))


def _table3(setup: Setup) -> Table:
    kinds = {
        "Mask R-CNN, ResNet50-FPN": ("mask_rcnn", "none"),
        "Pose2Seg, predicted poses": ("affine_skeleton", "predicted"),
        "Pose2Seg, true poses": ("affine_skeleton", "gt"),
    }
    note = (
        "PersonLab: printed figures only, of all people of COCO. Not measured: the family paper has no heads for discs "
        "and offsets, a ResNet-101 or -152 with them is not built here, and weights of one are not known; --budget "
        "trains one on MoveNet's trunk."
    )
    if "personlab" in setup.runs:
        kinds["PersonLab, ResNet101"] = ("personlab", "predicted")
        note = (
            "PersonLab: printed figures are of all people of COCO and of networks with a ResNet. Ours has the frozen "
            "trunk of the other rows, new heads for discs and offsets, its own poses, and masks by its long offsets."
        )
    rows = []
    for label, published in COCO_PERSONS.items():
        cells: list[Cell | None] = [None] * len(FIGURES)
        if label in kinds:
            run, poses = kinds[label]
            cells = [Cell(run=run, test=setup.general, poses=poses, figure=figure) for figure in FIGURES]
        rows.append(_row(label, cells, published))
        if label == "Mask R-CNN, ResNet50-FPN":
            rows += _detector_on_movenet(setup, [cell for cell in cells if cell is not None])
    return Table(
        name="table3",
        source=SOURCES["table3"],
        columns=("AP", "AP medium", "AP large"),
        rows=tuple(rows),
        notes=(note,),
    )


def _table4(setup: Setup) -> Table:
    rows = []
    for units, value in UNITS.items():
        run = f"units_{units}" if f"units_{units}" in setup.runs else "affine_skeleton"
        cells = [Cell(run=run, test=setup.general, poses=poses) for poses in ("gt", "predicted")]
        rows.append(_row(f"{units} residual units", cells, (value, value)))
    return Table(
        name="table4",
        source=SOURCES["table4"],
        columns=("AP, true poses", "AP, predicted poses"),
        rows=tuple(rows),
        notes=("The paper does not say with which poses its AP was measured: it stands in both columns.",),
    )


def _table5(setup: Setup) -> Table:
    order = [(test, kind) for test in (setup.crowded, setup.general) for kind in ("skeleton", "plain")]
    rows = []
    for (trained, tested, expand), published in ALIGNMENT.items():
        start = "affine" if trained == "Affine-Align" else "roi"
        changes = () if expand is None else ("model.align.box=joints", f"model.align.expand={expand:g}")
        cells = [Cell(run=f"{start}_{kind}", test=test, poses="gt", changes=changes) for test, kind in order]
        grown = "" if expand is None else f" + {100 * expand:.0f} %"
        rows.append(_row(f"{trained} -> {tested}{grown}", cells, published))
    columns = tuple(
        f"{setup.tests[test].title}, {'skeleton' if kind == 'skeleton' else 'without'}" for test, kind in order
    )
    return Table(
        name="table5",
        source=SOURCES["table5"],
        columns=columns,
        rows=tuple(rows),
        notes=(
            "A row says: window in training -> window in the test. Rows with a box of joints share the weights above.",
        ),
    )
