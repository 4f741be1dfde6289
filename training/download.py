"""Fetch the data sets of the paper, and lay them out as the recipes expect them.

    python -m training.download coco --output DATA/coco [--parts annotations val train] [--keep-archives]
    python -m training.download ochuman --from ochuman.zip --output DATA/ochuman

COCO 2017 comes from cocodataset.org, which publishes no checksums: the archives are held against the SHA-1 that the
GluonCV project recorded. An interruption costs nothing: start the same command again. The pictures become
DATA/coco/train2017 and val2017, the annotations DATA/coco/annotations, where training/paper.json looks for them.

OCHuman cannot be fetched by a program: its authors ask for a form to be filled in at the address that this command
prints, and give a link. ``--from`` takes what came of it: the archive, its address, or a folder. Nobody publishes a
checksum of it; the numbers of pictures and people are compared with the published ones.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

from training.dataset import DataError
from training.fetch import Checksum, FetchError, Progress, fetch, require_space, shown_url
from training.ochuman import main as convert_ochuman

BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)  # damaged or encrypted
GLUONCV = "recorded by GluonCV, scripts/datasets/mscoco.py; COCO itself publishes none"
OCHUMAN_FORM = "https://cg.cs.tsinghua.edu.cn/dataset/form.html?dataset=ochuman"
OCHUMAN_PICTURES, OCHUMAN_MASKS = 5_081, 8_110  # as published


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A zip of a data set and what comes out of it."""

    url: str
    checksum: Checksum | None
    content: str  # folder that its members lie in


COCO_HOST = "http://images.cocodataset.org"  # the official place; its certificate is another name's, so no https
COCO = {
    "annotations": Archive(
        url=f"{COCO_HOST}/annotations/annotations_trainval2017.zip",
        checksum=Checksum(algorithm="sha1", digest="8551ee4bb5860311e79dace7e79cb91e432e78b3", source=GLUONCV),
        content="annotations",
    ),
    "val": Archive(
        url=f"{COCO_HOST}/zips/val2017.zip",
        checksum=Checksum(algorithm="sha1", digest="4950dc9d00dbe1c933ee0170f5797584351d2a41", source=GLUONCV),
        content="val2017",
    ),
    "train": Archive(
        url=f"{COCO_HOST}/zips/train2017.zip",
        checksum=Checksum(algorithm="sha1", digest="10ad623668ab00c62c096f0ed636d6aff41faca5", source=GLUONCV),
        content="train2017",
    ),
}


@contextmanager
def progress_bar(name: str) -> Iterator[Progress]:
    """A bar on a terminal; lines of a tenth each elsewhere."""
    if not sys.stderr.isatty():
        told = -1

        def tell(there: int, total: int | None) -> None:
            nonlocal told
            tenth = 10 * there // total if total else there // 10**9
            if tenth > told:
                told = tenth
                print(f"{name}: {there / 1e6:.0f} of {total / 1e6 if total else float('nan'):.0f} MB", flush=True)

        yield tell
        return
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns) as bar:
        task = bar.add_task(name, total=None)
        yield lambda there, total: bar.update(task, completed=there, total=total)


def unpack(archive: Path, folder: Path, content: str) -> Path:
    """Unpack the folder ``content`` of a zip into ``folder / content``, which appears when it is whole.

    Raises:
        DataError: it is no zip, is damaged, or has members outside of that folder or with unsafe names.
        FetchError: the disk would be full.
    """
    target = folder / content
    if target.exists():
        return target
    partial = folder / f"{content}.partial-{os.getpid()}"
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [entry for entry in packed.infolist() if not entry.is_dir()]
            for entry in members:
                parts = PurePosixPath(entry.filename).parts
                if parts[:1] != (content,) or ".." in parts or "\\" in entry.filename:
                    raise DataError(f"{archive}: expected members below {content}/ only, got {entry.filename!r}")
            if not members:
                raise DataError(f"{archive}: it is empty")
            require_space(folder, sum(entry.file_size for entry in members), f"unpacking {archive.name}")
            packed.extractall(partial, members=members)
        os.replace(partial / content, target)
    except BROKEN_ZIP as error:
        raise DataError(f"{archive} is not a whole zip ({error}): remove it and start again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def download_coco(
    output: Path, parts: Sequence[str], *, keep_archives: bool = False, archives: dict[str, Archive] = COCO
) -> list[Path]:
    """Fetch and unpack parts of COCO 2017; what is there already is left alone.

    Args:
        output: becomes the folder of COCO's own layout.
        parts: keys of ``archives``.
        keep_archives: leave the zips beside the folders.
        archives: where they come from.

    Returns:
        The folders.

    Raises:
        FetchError, DataError: see `training.fetch.fetch` and `unpack`.
    """
    folders = []
    output.mkdir(parents=True, exist_ok=True)
    for part in parts:
        archive = archives[part]
        folder = output / archive.content
        if not folder.exists():
            file = output / archive.url.rsplit("/", 1)[1]
            with progress_bar(file.name) as progress:
                fetch(archive.url, file, checksum=archive.checksum, progress=progress)
            unpack(file, output, archive.content)
            if not keep_archives:
                file.unlink()
        folders.append(folder)
    return folders


def _ochuman_files(source: Path, output: Path) -> tuple[Path, Path]:
    """(annotation file, folder or zip of the pictures) of what the authors gave."""
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as packed:
            names = packed.namelist()
            annotations = next((n for n in names if PurePosixPath(n).name == "ochuman.json"), None)
            if annotations is not None:
                try:
                    (output / "ochuman.json").write_bytes(packed.read(annotations))
                except BROKEN_ZIP as error:
                    raise DataError(f"{source} is not a whole zip ({error}): fetch it again") from error
        if any(n.lower().endswith(".jpg") for n in names):
            if annotations is None:
                raise DataError(f"{source}: it holds pictures and no ochuman.json; give the folder that has both")
            return output / "ochuman.json", source
        raise DataError(
            f"{source}: expected pictures and ochuman.json in it, it holds {', '.join(names[:5]) or 'nothing'}"
        )
    if source.is_dir():
        annotations_file = next(iter(sorted(source.rglob("ochuman.json"))), None)
        pictures = next((p for p in (source / "images", source / "images.zip") if p.exists()), None)
        if annotations_file is not None and pictures is not None:
            return annotations_file, pictures
    raise DataError(
        f"{source}: expected OCHuman's zip with images and ochuman.json, or a folder with ochuman.json and images or "
        "images.zip"
    )


def prepare_ochuman(source: str | None, output: Path) -> tuple[int, int]:
    """Take OCHuman from a file, a folder or an address, check it and write the COCO files of its parts.

    Returns:
        The numbers of pictures and of people with masks.

    Raises:
        DataError: there is no source, or it is not OCHuman. FetchError: it cannot be fetched.
    """
    if source is None:
        raise DataError(
            f"OCHuman has no direct link. Fill in the form at {OCHUMAN_FORM}, fetch what its authors send you, and "
            "give it with --from: a zip, a folder, or its address"
        )
    output.mkdir(parents=True, exist_ok=True)
    if source.startswith(("http://", "https://")):
        with progress_bar("OCHuman") as progress:
            given = fetch(source, output / "ochuman.zip", progress=progress)
        if not zipfile.is_zipfile(given):
            given.unlink()
            raise DataError(
                f"{shown_url(source)} gave no zip: perhaps a page for a browser; fetch the file there and give its path"
            )
    else:
        given = Path(source)
        if not given.exists():
            raise DataError(f"{given}: there is no such file or folder")
    annotations, pictures = _ochuman_files(given, output)
    try:
        content = json.loads(annotations.read_text())
        people = sum(bool(p["segms"]) for entry in content["images"] for p in entry["annotations"])
        count = len(content["images"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{annotations} is not OCHuman's annotation file: {type(error).__name__} {error}") from error
    if convert_ochuman(["--annotations", str(annotations), "--output", str(output)]) != 0:
        raise DataError(f"{annotations}: the COCO files of its parts could not be written")
    remark = "as published" if (count, people) == (OCHUMAN_PICTURES, OCHUMAN_MASKS) else "published are 5,081 and 8,110"
    print(f"{count:,} pictures, {people:,} masks ({remark}); pictures: {pictures}")
    return count, people


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.download", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sets = parser.add_subparsers(dest="set", required=True)
    coco = sets.add_parser("coco", help="COCO 2017: annotations 0.25 GB, val 0.8 GB, train 19 GB")
    coco.add_argument("--output", type=Path, required=True, help="folder for annotations, val2017 and train2017")
    coco.add_argument("--parts", nargs="+", choices=tuple(COCO), default=["annotations", "val"], help="default: both")
    coco.add_argument("--keep-archives", action="store_true", help="leave the zips there")
    ochuman = sets.add_parser("ochuman", help="OCHuman, from what its authors gave you")
    ochuman.add_argument("--output", type=Path, required=True, help="folder for the COCO files of its parts")
    ochuman.add_argument("--from", dest="source", help="zip, folder or address")
    options = parser.parse_args(arguments)
    try:
        if options.set == "coco":
            for folder in download_coco(options.output, options.parts, keep_archives=options.keep_archives):
                print(folder)
        else:
            prepare_ochuman(options.source, options.output)
    except (DataError, FetchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
