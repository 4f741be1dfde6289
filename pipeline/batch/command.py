"""``pose2seg batch INPUT... --out DIR``: many videos, resumable, each in a worker process."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from engines import EngineError, default_artifact, load_artifact
from pipeline.batch.crew import Crew, ProcessCrew
from pipeline.batch.file import FileOptions
from pipeline.batch.machine import WORKER_BYTES, Resources, resources, share
from pipeline.batch.plan import BatchInput, plan_inputs, shown_name
from pipeline.batch.probe import measured_fps, plan_table, probe
from pipeline.batch.progress import BatchDisplay, PatientConsole, say
from pipeline.batch.report import CSV_NAME, HTML_NAME, rows_of, write_report
from pipeline.batch.schedule import Batch
from pipeline.batch.settings import BatchSettings
from pipeline.batch.split import Split
from pipeline.batch.state import JobFolder, artifact_digest
from pipeline.batch.worker import WorkerOptions
from pipeline.command_line import parser_of
from pipeline.errors import EXIT_OK, EXIT_PARTIAL, PipelineError, SettingsError, SinkError

if TYPE_CHECKING:
    from pipeline.batch.cluster import RayCluster

log = logging.getLogger(__name__)

DESCRIPTION = "Find every person in many videos. Started again after whatever stopped it, it goes on where it was."
EPILOG = (
    "examples:  pose2seg batch footage/ --out results/\n"
    "           pose2seg batch 'day*/**/*.mov' @more.txt --out results/ --write video,json,coco,sheet\n"
    "           pose2seg batch footage/ --out results/ --dry-run\n"
    "           pose2seg batch /shared/footage/ --out /shared/results/ --cluster auto\n"
    "exit codes: 0 all inputs are done, 10 some are not (the report says which and why), others as pose2seg --help"
)
_ROWS_SHOWN: Final = 50  # of the table at the end; the report has all


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: without ``batch``.

    Returns:
        Exit code, see `pipeline.errors`.

    Raises:
        PipelineError, EngineError: nothing can be done at all.
    """
    parser = parser_of(BatchSettings, prog="pose2seg batch", description=DESCRIPTION, epilog=EPILOG)
    values = vars(parser.parse_args(arguments))
    several = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    settings = BatchSettings(**(values | several))
    if settings.cluster is not None:
        settings = settings.with_absolute_paths()
    out = settings.out if settings.out is not None else Path()
    artifact = load_artifact(settings.model if settings.model is not None else default_artifact())
    job = JobFolder(out)
    known = job.names() if (job.folder / "files").is_dir() else {}
    inputs = plan_inputs(settings.inputs, out, known=known)
    if settings.dry_run:
        return _dry_run(job, inputs, settings)
    job.create()
    with job.locked(), _cluster_of(settings) as cluster:
        found = resources()
        workers, threads = _share(settings, len(inputs), found) if cluster is None else (0, settings.threads or 1)
        deciding = {**settings.deciding(), "model_files": artifact_digest(artifact.folder), "threads": threads}
        threads = int(job.settle(deciding, overwrite=settings.overwrite)["threads"])
        if cluster is None:
            workers, _ = _share(settings, len(inputs), found, threads)
        options = WorkerOptions(
            out=out,
            file=FileOptions(
                settings=settings.of_files(threads),
                write=settings.kinds,
                segment_s=settings.segment_seconds,
                overwrite=settings.overwrite,
                model_digest=deciding["model_files"],
                upload=settings.upload,
            ),
        )
        gpu = _on_gpu(settings) if cluster is None else settings.may_use_gpu and cluster.has_gpus()
        split = _split_of(settings, gpu=gpu)
        crew: Crew = ProcessCrew(options)
        if cluster is None:
            there = f"{found.cores} cores, {found.memory_bytes / 1e9:.1f} GB free"
        else:
            workers, there = _places(cluster, settings, threads, gpu=gpu)
            workers = min(workers, len(inputs)) if split == "never" else workers
            crew = cluster.crew(options, gpu=gpu)
        log.info("%d files, %d workers of %d threads (%s)", len(inputs), workers, threads, there)
        batch = Batch(job, inputs, options.file, crew=crew, workers=workers, split=split)
        batch.prepare(overwrite=settings.overwrite, retry_failed=settings.retry_failed)
        errors = PatientConsole(stderr=True, highlight=False)
        display = BatchDisplay(errors, settings.stats_every_s)
        with _signals(batch):
            batch.run(display)
        return _conclude(batch, options.file)


def _share(settings: BatchSettings, files: int, found: Resources, threads: int | None = None) -> tuple[int, int]:
    """Workers and threads of each; ``threads``: as a run before settled them."""
    workers = None if settings.workers == "auto" else int(settings.workers)
    return share(found, files, workers=workers, threads=threads or settings.threads, gpu=_on_gpu(settings))


@contextlib.contextmanager
def _cluster_of(settings: BatchSettings) -> Iterator[RayCluster | None]:
    """The cluster that the settings name, joined; None where they name none."""
    if settings.cluster is None:
        yield None
        return
    from pipeline.batch.cluster import RayCluster

    cluster = RayCluster(settings.cluster)
    try:
        yield cluster
    finally:
        cluster.close()


def _places(cluster: RayCluster, settings: BatchSettings, threads: int, *, gpu: bool) -> tuple[int, str]:
    """How many workers a cluster gets, and what it has, for people.

    Raises:
        PipelineError: no node has room for one.
    """
    found = cluster.capacity(threads=threads, gpu=gpu)
    there = f"{found.nodes} nodes, {found.cores} cores, {found.gpus} GPUs"
    if not found.workers:
        wanted = f"{threads} cores, {WORKER_BYTES / 1e9:.1f} GB{' and a GPU' if gpu else ''}"
        raise PipelineError(
            f"--cluster {settings.cluster}: no node has {wanted} for a worker, together they have {there}: ask for "
            "less with --threads, or add nodes"
        )
    return found.workers if settings.workers == "auto" else int(settings.workers), there


def _split_of(settings: BatchSettings, *, gpu: bool) -> Split:
    """Whether files may be shared.

    Raises:
        SettingsError: it was asked for, and the networks do not treat each person by themselves.
    """
    exact = settings.engine in {"auto", "onnx"} and not gpu
    if settings.split == "always" and not exact:
        raise SettingsError("--split always needs the networks in ONNX Runtime on the CPU: add --engine onnx")
    return settings.split if exact else "never"


def _dry_run(job: JobFolder, inputs: Sequence[BatchInput], settings: BatchSettings) -> int:
    """Say what would be done; nothing is written."""
    workers, threads = _share(settings, len(inputs), resources())
    options = FileOptions(settings=settings.of_files(threads), write=settings.kinds, segment_s=settings.segment_seconds)
    crew = ProcessCrew(WorkerOptions(out=job.out, file=options))
    batch = Batch(job, inputs, options, crew=crew, workers=workers)
    left = inputs if settings.overwrite else batch.left_to_do(retry_failed=settings.retry_failed)
    probes = [probe(item) for item in left]
    fps = measured_fps(probes, options.settings, kinds=settings.kinds)
    console = PatientConsole(highlight=False)
    say(console, plan_table(probes, workers=workers, fps=fps))
    if len(left) < len(inputs):
        say(console, Text(f"{len(inputs) - len(left)} files are settled by a run before"))
    return EXIT_OK


def _upload_report(out: Path, address: str) -> None:
    from pipeline.batch.storage import upload

    for name in (HTML_NAME, CSV_NAME):
        try:
            upload(out / name, f"{address.rstrip('/')}/{name}")
        except PipelineError as error:
            log.warning("%s", error)


@contextlib.contextmanager
def _signals(batch: Batch) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the batch; a closed terminal does not."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        batch.request_stop()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _conclude(batch: Batch, options: FileOptions) -> int:
    """Write the report, print its short form."""
    rows = rows_of(batch.job, batch.inputs, batch.states)
    table = Table(title=Text(f"report: {batch.job.out / HTML_NAME}"), title_justify="left")
    for heading in ("file", "frames", "people per frame", "FPS", "result"):
        table.add_column(heading, overflow="fold", justify="left" if heading in {"file", "result"} else "right")
    for row in rows[:_ROWS_SHOWN]:
        texts = [row.state.error, *row.state.warnings] if row.state is not None else []
        said = ": ".join([row.result, *filter(None, ["; ".join(filter(None, texts))])])
        frames = row.state.frames if row.state is not None else 0
        figures = (str(frames), f"{row.people_per_frame:.2f}", f"{row.fps:.1f}")
        table.add_row(Text(row.item.name), *figures, Text(shown_name(said)))
    if len(rows) > _ROWS_SHOWN:
        table.caption = Text(f"and {len(rows) - _ROWS_SHOWN} more in the report")
    say(PatientConsole(highlight=False), table)
    try:
        write_report(batch.job.out, rows, options.write, options.layers)
    except SinkError as error:
        log.warning("no report: %s", error)
    if options.upload is not None:
        _upload_report(batch.job.out, options.upload)
    if batch.interrupted:
        log.info("interrupted: the same command goes on where it stopped")
    return EXIT_OK if all(row.result == "done" for row in rows) else EXIT_PARTIAL


def _on_gpu(settings: BatchSettings) -> bool:
    if settings.device is not None:
        return settings.device != "cpu"
    if settings.engine in {"onnx", "openvino"}:
        return False
    from engines.selection import ThisMachine

    try:
        return bool(ThisMachine().driver.gpus)
    except EngineError:
        return False
